"""Chapter 07, Gradient detection: checks of its exercises.

The first-order effect of removing a head, saliency of tokens, integrated gradients, the selection of knowledge neurons,
attribution patching, its correction for saturated attention, and precision against exact effects. The functions without
an underscore are the references that the chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.objects import Task


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4 * float(b.abs().max().clamp_min(1e-6)))


# --- 1. first-order effect of removing a head ------------------------------------------------------------------------


def zero_effect(value: Tensor, grad: Tensor, mask: Tensor) -> Tensor:
    """Estimate of F(head set to zero) - F for every item and head: -(grad . o) over real tokens and coordinates.

    value, grad [n, T, H, d_head]; mask [n, T], 1 at real tokens -> [n, H] (Eq. 13 with Delta = -o).
    """
    return -(value * grad * mask[:, :, None, None]).sum((1, 3))


@exercise(
    "gradient.zero_effect",
    reference=zero_effect,
    hints=(
        "F(o + delta) - F(o) is about grad . delta. When a head is set to zero, what is delta?",
        "delta = -o at every real token. The dot product runs over all that belongs to the head: its coordinates (the "
        "last axis) and its positions. Items and heads stay apart.",
        "Sketch: the product value * grad, times mask with two axes added at its end, summed over axes 1 and 3, with a "
        "minus sign.",
    ),
    expected="A tensor [n, H]. Below 0: without the head F would fall, so the head helps.",
)
def _check_zero_effect() -> Iterator[Probe]:
    value, grad = torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([[1.0, 1], [-2, 0.25]])
    yield Probe(
        tried="one prompt of two tokens, one head of two coordinates: values [1, 2], [3, 4], gradients [1, 1], "
        "[-2, 0.25]",
        args=(value[None, :, None], grad[None, :, None], torch.ones(1, 2, dtype=torch.long)),
        expected=torch.tensor([[2.0]]),
        means="-(1 + 2 - 6 + 1) = 2",
        diagnose={
            "This is grad . o, the effect with the sign turned round. Removing the head means delta = -o.": (
                torch.tensor([[-2.0]])
            ),
            "The size was taken of each product, so parts that cancel no longer do.": lambda got: any(
                _near(got.abs(), torch.tensor([[x]])) for x in (10.0, 8.0)
            ),
            "The products were averaged. The effect is their sum.": lambda got: any(
                _near(got.abs(), torch.tensor([[x]])) for x in (0.5, 1.0)
            ),
            "This is the sum of the gradient alone; it must be multiplied with the value.": lambda got: _near(
                got.abs(), torch.tensor([[0.25]])
            ),
            "This is a norm, which has no sign and no baseline.": lambda got: any(
                _near(got.abs(), torch.tensor([[float(x)]])) for x in (grad.norm(), (value * grad).norm())
            ),
        },
    )
    value, grad = _random(3, 5, 4, 6), _random(3, 5, 4, 6, seed=1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
    product = value * grad
    right = -torch.einsum("bthd,bthd,bt->bh", value, grad, mask.float())
    yield Probe(
        tried="three prompts of 5, 3 and 4 tokens, padded on the left; four heads of six coordinates",
        args=(value, grad, mask),
        expected=right,
        diagnose={
            "Padding was counted. Only real tokens have a part in the prompt: use the mask.": -product.sum((1, 3)),
            "The heads were added up; each has its own effect.": lambda got: got.numel() in (1, 3),
            "The items were averaged; each has its own effect.": lambda got: got.shape == (4,),
            "The positions were kept apart. A head is removed at all tokens at once.": lambda got: (
                got.dim() == 3 and got.shape[1] == 5
            ),
            "Only the last token was counted. Here the head is removed at all tokens.": -product[:, -1].sum(-1),
            "The mask was turned round: it is 1 at real tokens.": -(product * (1 - mask)[:, :, None, None]).sum((1, 3)),
        },
    )


# --- 2. saliency of tokens -------------------------------------------------------------------------------------------


def token_saliency(model: Model, task: Task) -> Tensor:
    """First-order change of F when one token's embedding is replaced by that of the twin's token, [n, T]."""
    from mi_course.models import record

    clean = record(model, task.prompts, ["embed"], grad=True)
    twin = record(model, task.corrupted, ["embed"])["embed"]
    F = task.metric_of(clean.logits[:, -1], model)
    (grad,) = torch.autograd.grad(F.sum(), clean["embed"])
    return (grad * (twin - clean["embed"])).sum(-1).detach()


@exercise(
    "gradient.token_saliency",
    reference=token_saliency,
    hints=(
        "The object is the embedding of each token, o = `embed`, and delta = (embedding in the twin) - (embedding "
        "here). What is differentiated, and with respect to what?",
        "`mi.record(model, prompts, ['embed'], grad=True)` keeps the graph: `task.metric_of(cache.logits[:, -1], "
        "model)` is F for every prompt, and torch.autograd.grad(F.sum(), cache['embed']) its derivative. The sum "
        "over prompts is harmless, since no prompt sees another.",
        "Sketch: record both kinds of prompts; grad from torch.autograd.grad; return (grad * (twin - clean)) summed "
        "over the last axis, detached.",
    ),
    expected="A tensor [n, T] that is 0 wherever prompt and twin have the same token, and below 0 where swapping the "
    "token would lower F.",
)
def _check_token_saliency() -> Iterator[Probe | Callable]:
    model, task = _tiny()
    own, other, grad = _embeddings_and_gradient(model, task)
    right = (grad * (other - own)).sum(-1)
    twin_grad = _embeddings_and_gradient(model, task, "corrupted")[2]
    yield Probe(
        tried="a random two-layer GPT-2 and three prompts of six tokens, whose twins differ in two of them",
        args=(model, task),
        expected=right,
        diagnose={
            "The sign is turned round: delta = twin - prompt.": -right,
            "This is gradient x input, which compares with an embedding of zeros: its sign and baseline differ. Use "
            "delta = twin - prompt.": lambda got: any(
                _near(got, s * (grad * o).sum(-1)) for s in (1, -1) for o in (own, other)
            ),
            "The gradient was taken at the twin. Here it belongs to the prompt itself.": (
                twin_grad * (other - own)
            ).sum(-1),
            "The mean of F over the prompts was differentiated, so everything is divided by their number. Use the "
            "sum.": right / 3,
            "The coordinates were averaged; a dot product is a sum.": right / own.shape[-1],
            "Sizes were taken; the sign says whether the token helps.": lambda got: (
                got.shape == right.shape and bool((got >= 0).all())
            ),
            "The coordinates were kept apart: one number per token.": lambda got: got.shape == own.shape,
        },
        tolerance=1e-3,
    )

    def where_nothing_changes(answer: Callable) -> None:
        """prompts that are their own twins"""
        from dataclasses import replace

        got = answer(model, replace(task, corrupted=task.prompts))
        if got.abs().max() > 1e-6:
            raise NotYet(answer.tried, "zeros: no token changes", likely="Something other than the change was scored.")

    yield where_nothing_changes


def _tiny() -> tuple[Model, Task]:
    """A random GPT-2 with loud parts, and three prompts with twins."""
    import transformers

    import mi_course as mi

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=12, n_layer=2, n_head=2, n_inner=10, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    g = torch.Generator().manual_seed(0)
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * (0.8 if "mlp" in name else 0.5))
    prompts = torch.randint(1, 20, (3, 6), generator=g)
    twins = prompts.clone()
    twins[:, 2], twins[:, 4] = (prompts[:, 2] + 3) % 19 + 1, (prompts[:, 4] + 7) % 19 + 1
    task = mi.Task("tiny", prompts.tolist(), [3, 4, 5], corrupted=twins.tolist(), foils=[7, 8, 9])
    return mi.wrap(hf), task


def _embeddings_and_gradient(model: Model, task: Task, on: str = "clean") -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of the prompts and of their twins, and the gradient of F, without any hook."""
    E = model.hf.get_input_embeddings().weight.detach()
    own, other = (E[torch.tensor(rows)] for rows in (task.prompts, task.corrupted))
    with torch.enable_grad():
        point = (own if on == "clean" else other).clone().requires_grad_()
        F = task.metric_of(model.hf(inputs_embeds=point).logits[:, -1], model)
        (grad,) = torch.autograd.grad(F.sum(), point)
    return own, other, grad


# --- 3. integrated gradients -----------------------------------------------------------------------------------------


def integrate(f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Integrated gradients [d] of f along the straight path from start [d] to end [d], midpoint rule (Eq. 14).

    f takes points [m, d] (or [d]) and returns one number for each.
    """
    alphas = (torch.arange(steps) + 0.5) / steps
    points = (start + alphas[:, None] * (end - start)).requires_grad_()
    (grad,) = torch.autograd.grad(f(points).sum(), points)
    return (end - start) * grad.mean(0)


@exercise(
    "gradient.integrate",
    reference=integrate,
    hints=(
        "One gradient describes one point. Integrated gradients averages the gradient over the way from the start to "
        "the end, and multiplies that average with the whole step.",
        "The points are start + a (end - start) with a in the middle of each of `steps` equal pieces of 0 ... 1: for "
        "two steps 0.25 and 0.75. Make all points one tensor [steps, d] with requires_grad_(), so that one backward "
        "pass is enough.",
        "Sketch: a = (arange(steps) + one half) / steps; points = start + a[:, None] * (end - start); grad of "
        "f(points).sum() with respect to points; return (end - start) times the mean of grad over the points.",
    ),
    expected="A tensor [d] whose sum comes ever closer to f(end) - f(start) as the steps grow.",
)
def _check_integrate() -> Iterator[Probe | Callable]:
    def square_and_line(x: Tensor) -> Tensor:
        return x[..., 0] ** 2 + 3 * x[..., 1]

    start, end = torch.tensor([1.0, 0.0]), torch.tensor([3.0, 2.0])
    yield Probe(
        tried="f(x) = x0^2 + 3 x1 from [1, 0] to [3, 2], four steps",
        args=(square_and_line, start, end, 4),
        expected=torch.tensor([8.0, 6.0]),
        means="[9 - 1, 6 - 0] = [8, 6]",
        diagnose={
            "These are left ends (0, 1/4, 1/2, 3/4). Take the middle of each piece (1/8, 3/8, ...).": torch.tensor(
                [7.0, 6.0]
            ),
            "These are right ends (1/4, ..., 1). Take the middle of each piece (1/8, 3/8, ...).": torch.tensor(
                [9.0, 6.0]
            ),
            "The average gradient is right; multiply it with end - start.": torch.tensor([4.0, 3.0]),
            "Either only the gradient at the end was used, or it was multiplied with `end`: average over the path, and "
            "multiply with end - start.": torch.tensor([12.0, 6.0]),
            "The gradients were summed over the steps. The integral is their average.": torch.tensor([32.0, 24.0]),
            "The path runs from the start to the end, so the factor is end - start.": torch.tensor([-8.0, -6.0]),
            "Only the gradient at the start was used.": torch.tensor([4.0, 6.0]),
            "The attributions were added up; each coordinate keeps its own.": lambda got: got.numel() == 1,
            "The steps were kept apart; average over them.": lambda got: got.shape == (4, 2),
        },
    )
    yield Probe(
        tried="f(x) = 1 - relu(1 - x0), which is flat beyond 1, from [0] to [4], eight steps",
        args=(lambda x: 1 - torch.relu(1 - x[..., 0]), torch.zeros(1), torch.tensor([4.0]), 8),
        expected=torch.tensor([1.0]),
        means="[1], as f(4) - f(0) = 1",
        diagnose={
            "Only the gradient at the end was used, and there f is flat. That is the point: it must be averaged over "
            "the path.": torch.tensor([0.0]),
            "Only the gradient at the start was used.": torch.tensor([4.0]),
        },
    )
    yield Probe(
        tried="f(x) = x0 x1 x2 from [0, 1, 0] to [2, 1, 3], 200 steps",
        args=(lambda x: x.prod(-1), torch.tensor([0.0, 1, 0]), torch.tensor([2.0, 1, 3]), 200),
        expected=torch.tensor([3.0, 0.0, 3.0]),
        means="[3, 0, 3]: the two that move share f(end) = 6; the one that stays gets 0",
    )

    def completeness(answer: Callable) -> None:
        """a curved function of five coordinates, with 4, 16 and 64 steps"""
        w, a, b = _random(5, seed=3), _random(5), _random(5, seed=1)

        def f(x: Tensor) -> Tensor:
            return torch.tanh(x @ w) + (x**3).sum(-1)

        errors = [abs(float(answer(f, a, b, m).sum() - (f(b) - f(a)))) for m in (4, 16, 64)]
        if not errors[2] < errors[1] / 8 < errors[0] / 64:
            raise NotYet(
                answer.tried,
                "the sum comes closer to f(end) - f(start), by a factor of about 16 each time",
                ", ".join(f"off by {error:.2g}" for error in errors),
                likely="The points are not in the middle of their pieces, or not evenly spaced.",
            )

    yield completeness


# --- 4. knowledge neurons --------------------------------------------------------------------------------------------


def select_neurons(attributions: Tensor, threshold: float, share: float) -> Tensor:
    """Neurons that matter in more than `share` of the prompts: attributions [n, m] -> bool [m] (Dai et al. 2022).

    In one prompt a neuron matters when its attribution is above `threshold` times the largest of that prompt.
    """
    kept = attributions > threshold * attributions.amax(1, keepdim=True)
    return kept.float().mean(0) > share


@exercise(
    "gradient.select_neurons",
    reference=select_neurons,
    hints=(
        "Two steps: which neurons matter in each prompt, and which of these matter in enough prompts?",
        "Each prompt has its own largest attribution, and so its own bar: compare row by row. Signs stay: a neuron "
        "that speaks against the answer is not one that knows it.",
        "Sketch: kept = attributions > threshold * (maximum of each row); return (mean of kept over the prompts) > "
        "share.",
    ),
    expected="A bool tensor [m], True for few neurons.",
)
def _check_select_neurons() -> Iterator[Probe]:
    attributions = torch.tensor([[10.0, 2.5, 1, -20, 2.5, 9], [2, 1, 0.5, 0, 0.3, 0.1], [10, 0.5, 0.1, -9, 2.5, 0.1]])
    kept, sizes = attributions > 0.2 * attributions.amax(1, keepdim=True), attributions.abs()
    yield Probe(
        tried="three prompts and six neurons; threshold 0.2, share 0.6; the bars are 2, 0.4 and 2",
        args=(attributions, 0.2, 0.6),
        expected=torch.tensor([True, True, False, False, True, False]),
        diagnose={
            "One bar was used for all prompts. Each prompt has its own largest attribution.": lambda got: (
                _same(got, (attributions > 2).float().mean(0) > 0.6)
            ),
            "Sizes were compared, so a neuron that speaks against the answer set the bar, or was kept.": lambda got: (
                bool(got[3]) or _same(got, (sizes > 0.2 * sizes.amax(1, keepdim=True)).float().mean(0) > 0.6)
            ),
            "A neuron was kept if any prompt has it.": kept.any(0),
            "Only neurons of all prompts were kept; more than `share` is enough.": kept.all(0),
            "The prompts were averaged first, which lets one loud prompt decide.": lambda got: _same(
                got, attributions.mean(0) > 0.2 * attributions.mean(0).max()
            ),
        },
    )  # fmt: skip
    edge = torch.tensor([[1.0, 0.5, 0.6, 0.7], [1.0, 0.6, 0.2, 0.7], [1, 0.6, 0.2, 0.2], [1, 0.6, 0.2, 0.2]])
    yield Probe(
        tried="neurons that lie exactly on the threshold 0.5, or in exactly half of the prompts with share 0.5",
        args=(edge, 0.5, 0.5),
        expected=torch.tensor([True, True, False, False]),
        means="above the threshold and in more than the share of prompts: what lies on a bar is not above it",
        diagnose={
            "A neuron in exactly `share` of the prompts was kept; it must be in more.": torch.tensor(
                [True, True, False, True]
            ),
        },
    )
    strict = torch.tensor([[1.0, 0.5], [1.0, 0.5], [1.0, 0.9]])
    yield Probe(
        tried="a neuron exactly on the threshold in two of three prompts; threshold 0.5, share 0.5",
        args=(strict, 0.5, 0.5),
        expected=torch.tensor([True, False]),
        diagnose={"A neuron exactly on the threshold was kept; it must be above.": torch.tensor([True, True])},
    )
    wide = _random(40, 30).exp()
    right = torch.stack([(row > 0.3 * row.max()).float() for row in wide]).mean(0) > 0.2
    yield Probe(
        tried="40 prompts and 30 neurons; threshold 0.3, share 0.2",
        args=(wide, 0.3, 0.2),
        expected=right,
        diagnose={
            "The bar was taken over the prompts, for each neuron; take it over the neurons, for each prompt.": (
                (wide > 0.3 * wide.amax(0)).float().mean(0) > 0.2
            ),
        },
    )


def _same(got: Tensor, other: Tensor) -> bool:
    return got.shape == other.shape and bool((got == other).all())


# --- 5. attribution patching -----------------------------------------------------------------------------------------


def attribution_patch(model: Model, task: Task, sites: Sequence[str], direction: str) -> Tensor:
    """Estimates [n_sites] of what patching each site would do, averaged over the prompts: delta . gradient.

    direction "noising": gradient at the prompts, delta = twin - prompt; "denoising": gradient at the twins, delta =
    prompt - twin.
    """
    from mi_course.models import record

    here, there = (task.prompts, task.corrupted) if direction == "noising" else (task.corrupted, task.prompts)
    run, other = record(model, here, sites, grad=True), record(model, there, sites)
    F = task.metric_of(run.logits[:, -1], model)
    grads = torch.autograd.grad(F.sum(), [run[site] for site in sites])
    return torch.stack([(g * (other[site] - run[site])).sum().detach() / len(task) for g, site in zip(grads, sites)])


@exercise(
    "gradient.attribution_patch",
    reference=attribution_patch,
    hints=(
        "Patching replaces o, as it is in one run, by its value in the other run. What is delta, and in which run is "
        "the derivative taken?",
        "The derivative belongs to the run that would be patched: the prompts for noising, the twins for denoising. "
        "Record all sites of that run with grad=True and those of the other run without; one call of "
        "torch.autograd.grad takes a list of tensors and returns a list of gradients.",
        "Sketch: here, there = prompts, twins (or the reverse); run = record(here, grad=True); other = record(there); "
        "grads = autograd.grad(F.sum(), list of run[site]); for each site the sum of grad * (other - run), divided by "
        "the number of prompts.",
    ),
    expected="A tensor [n_sites]. Under noising a site that carries what the answer needs is below 0, under denoising "
    "above 0.",
)
def _check_attribution_patch() -> Iterator[Probe | Callable]:
    from mi_course.world import compiled

    known = compiled.mediation()
    linear, heads = known.wrap(), ["L0H0", "L1H0", "L1H1"]
    turned = {
        "noising": "The sign is turned round: delta = (value of the other run) - (value of this run).",
        "denoising": "The direction was ignored: for denoising the two runs change places.",
    }
    for direction, sign in (("noising", -1.0), ("denoising", 1.0)):
        right = sign * torch.tensor([5.0, 2.0, 0.0])
        yield Probe(
            tried=f"a linear model set by hand (`compiled.mediation`), heads L0H0, L1H0 and an idle one, {direction}: "
            "here the first order is exact",
            args=(linear, known.task, heads, direction),
            expected=right,
            diagnose={
                turned[direction]: -right,
                "The prompts were added up; average over them.": 2 * right,
                "The prompts were kept apart: one number for each site.": lambda got: got.dim() == 2,
            },
            tolerance=1e-3,
        )
    model, task = _tiny()
    sites = ["x1", "L0H1.z", "mlp0", "neurons1"]
    values = {on: _values_and_gradients(model, task, sites, on) for on in ("clean", "corrupted")}

    def estimate(at: str, to: str, scale: float = 1 / 3) -> Tensor:
        return torch.stack([
            (values[at][site][1] * (values[to][site][0] - values[at][site][0])).sum() * scale for site in sites
        ])  # fmt: skip

    for direction, at, to in (("noising", "clean", "corrupted"), ("denoising", "corrupted", "clean")):
        right = estimate(at, to)
        yield Probe(
            tried=f"a random two-layer GPT-2, sites {', '.join(sites)}, {direction}",
            args=(model, task, sites, direction),
            expected=right,
            diagnose={
                "The gradient was taken in the other run. It belongs to the run that is patched: the prompts for "
                "noising, the twins for denoising.": lambda got, at=at, to=to: any(
                    _near(got, s * estimate(to, at)) for s in (1, -1)
                ),
                "The sign is turned round.": -right,
                "This is gradient x value, with the sign of keeping or of zeroing; patching puts in the value of the "
                "other run.": lambda got, at=at: any(
                    _near(got, s * torch.stack([(g * v).sum() / 3 for v, g in values[at].values()])) for s in (1, -1)
                ),
                "The prompts were added up; average over them.": 3 * right,
                "Only the last position was patched. A site without a position is patched everywhere.": torch.stack(
                    [(g * (values[to][s][0] - v))[:, -1].sum() / 3 for s, (v, g) in values[at].items()]
                ),
                "Sizes were taken; the estimate has a sign.": lambda got, right=right: (
                    got.shape == right.shape and bool((got >= 0).all())
                ),
                "The prompts were kept apart: one number for each site.": lambda got: got.dim() == 2,
            },
            tolerance=1e-3,
        )


def _values_and_gradients(model: Model, task: Task, sites: Sequence[str], on: str) -> dict[str, tuple[Tensor, Tensor]]:
    """site -> (value, gradient of F), one site at a time."""
    from mi_course.models import record

    found = {}
    with torch.enable_grad():
        for site in sites:
            cache = record(model, task.prompts if on == "clean" else task.corrupted, [site], grad=True)
            F = task.metric_of(cache.logits[:, -1], model)
            found[site] = (cache[site].detach(), torch.autograd.grad(F.sum(), cache[site])[0])
    return found


# --- 6. the QK fix ---------------------------------------------------------------------------------------------------


def qk_fix(q: Tensor, new_q: Tensor, k: Tensor, grad_pattern: Tensor) -> Tensor:
    """(pattern with the new queries - pattern) . gradient of the pattern, for one causal head (Kramar et al. 2024).

    q, new_q, k [T, d_head]; grad_pattern [T, T], rows are queries. Returns one number.
    """

    def pattern(q: Tensor) -> Tensor:
        scores = q @ k.T / k.shape[1] ** 0.5
        future = torch.ones_like(scores).triu(1).bool()
        return scores.masked_fill(future, -torch.inf).softmax(-1)

    return ((pattern(new_q) - pattern(q)) * grad_pattern).sum()


@exercise(
    "gradient.qk_fix",
    reference=qk_fix,
    hints=(
        "The softmax is cheap, so do it exactly, twice: with the old queries and with the new ones. Only what follows "
        "the pattern is left to the gradient.",
        "pattern = softmax over the keys of q k^T / sqrt(d_head), where a query sees no later key. The estimate is the "
        "dot product of the change of the pattern with grad_pattern.",
        "Sketch: a function pattern(q) with scores, a causal mask (-inf above the diagonal) and softmax(-1); return "
        "((pattern(new_q) - pattern(q)) * grad_pattern).sum().",
    ),
    expected="One number: the estimated effect of the new queries on F. With equal queries it is 0.",
)
def _check_qk_fix() -> Iterator[Probe]:
    q, new = torch.tensor([[0.0], [40.0]]), torch.tensor([[0.0], [-40.0]])
    k, grad = torch.tensor([[1.0], [-1.0]]), torch.tensor([[3.0, 7.0], [-10.0, 12.0]])
    yield Probe(
        tried="two tokens with keys +1 and -1; the query of the second turns from +40 to -40; its attention is worth "
        "-10 on the first token and +12 on the second",
        args=(q, new, k, grad),
        expected=torch.tensor(22.0),
        means="all attention moves from the first to the second token: 12 - (-10) = 22",
        diagnose={
            "This is the first order through the softmax, which is flat here. Compute the softmax with the new "
            "queries.": lambda got: bool(got.abs() < 1e-3),
            "The sign is turned round: new pattern - old pattern.": torch.tensor(-22.0),
            "The old pattern was not taken away.": torch.tensor(15.0),
            "The scores were compared; it is the pattern, after the softmax, that has this gradient.": lambda got: bool(
                got.abs() > 100
            ),
            "The softmax runs over the keys, the last axis.": lambda got: bool((got - 22).abs() > 1),
        },
    )
    q, new, k, grad = _random(5, 4), _random(5, 4, seed=1), _random(5, 4, seed=2), _random(5, 5, seed=3)
    yield Probe(
        tried="five tokens, d_head = 4, random queries, keys and gradients",
        args=(q, new, k, grad),
        expected=_by_query(new, k, grad) - _by_query(q, k, grad),
        diagnose={
            "The causal mask is missing: a query attends to no later token.": (
                ((new @ k.T / 2).softmax(-1) - (q @ k.T / 2).softmax(-1)) * grad
            ).sum(),
            "The scores were not divided by sqrt(d_head).": _by_query(new, k, grad, 1.0) - _by_query(q, k, grad, 1.0),
            "The scores were divided by d_head in place of its root.": _by_query(new, k, grad, 4.0)
            - _by_query(q, k, grad, 4.0),
            "The old pattern was not taken away.": _by_query(new, k, grad),
            "The gradient is [query, key]; it was transposed.": _by_query(new, k, grad.T) - _by_query(q, k, grad.T),
        },
    )


def _by_query(q: Tensor, k: Tensor, grad: Tensor, divisor: float = 2.0) -> Tensor:
    """Sum over queries of pattern . grad, one query at a time."""
    total = torch.tensor(0.0)
    for i in range(len(q)):
        weights = [math.exp(float(q[i] @ k[j]) / divisor) for j in range(i + 1)]
        total = total + sum(w / sum(weights) * float(grad[i, j]) for j, w in enumerate(weights))
    return total


# --- 7. precision against exact effects -------------------------------------------------------------------------------


def precision_at_k(estimate: Tensor, exact: Tensor, k: int) -> float:
    """Share of the k objects with the largest |estimate| that are among the k with the largest |exact effect|."""
    top = [set(values.abs().topk(k).indices.tolist()) for values in (estimate, exact)]
    return len(top[0] & top[1]) / k


@exercise(
    "gradient.precision_at_k",
    reference=precision_at_k,
    hints=(
        "Take the k objects that the method calls most important, and the k that the interventions call so. How many "
        "are in both lists?",
        "Important means large in size, whatever the sign: an object that hurts is a finding too.",
        "Sketch: indices of the k largest of estimate.abs() and of exact.abs(); size of the intersection, divided by "
        "k.",
    ),
    expected="A number from 0 to 1. A random ranking of m objects gets k / m on average.",
)
def _check_precision_at_k() -> Iterator[Probe]:
    estimate = torch.tensor([0.9, -1.0, 0.1, 0.3, 0.0, 0.2, 0.0])
    exact = torch.tensor([-5.0, 0.5, 4.0, 3.0, 0.1, -0.2, 0.0])
    yield Probe(
        tried="estimates 0.9, -1, 0.1, 0.3, 0, 0.2, 0; exact effects -5, 0.5, 4, 3, 0.1, -0.2, 0; k = 3",
        args=(estimate, exact, 3),
        expected=2 / 3,
        means="objects 1, 0, 3 against 0, 2, 3: two of three",
        diagnose={
            "The largest values were taken with their sign. Important means large in size.": lambda got: (
                abs(got - 1 / 3) < 1e-6
            ),
            "This is the number of hits; divide by k.": lambda got: abs(got - 2) < 1e-6,
            "This is the Jaccard overlap, hits / (objects in either list).": lambda got: abs(got - 0.5) < 1e-6,
            "It was divided by the number of all objects.": lambda got: abs(got - 2 / 7) < 1e-6,
        },
    )
    yield Probe(
        tried="the same with k = 1 (largest estimate: object 1; largest effect: object 0)",
        args=(estimate, exact, 1),
        expected=0.0,
    )
    a = _random(50)
    yield Probe(tried="50 estimates that are minus the effects, k = 10", args=(a, -a, 10), expected=1.0)
    b = a + _random(50, seed=5)
    hits = set(sorted(range(50), key=lambda i: -abs(float(a[i])))[:7]) & set(
        sorted(range(50), key=lambda i: -abs(float(b[i])))[:7]
    )
    yield Probe(tried="50 noisy estimates, k = 7", args=(b, a, 7), expected=len(hits) / 7)
