"""Chapter 00, the whole pipeline: checks of its exercises.

Behaviour: refusal. Measure it, find its direction, remove the direction, rank the heads, and put a null band beside
the result. The functions without an underscore are the references that a chapter uses while an exercise is open.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.objects import Task


# --- 1. measure ------------------------------------------------------------------------------------------------------


def refusal_score(logits: Tensor, refusal_ids: Sequence[int]) -> Tensor:
    """Log-odds of refusing, log P - log(1 - P), in nats. logits [B, V] at the answer position -> [B].

    P is the probability that the next token is one of `refusal_ids`, the openers of a refusal; sigmoid(score) = P.
    This is the metric of Arditi et al. (2024), computed from sums of exponentials so that a sure model does not give
    infinity.
    """
    is_refusal = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
    is_refusal[list(refusal_ids)] = True
    return logits[:, is_refusal].logsumexp(-1) - logits[:, ~is_refusal].logsumexp(-1)


@exercise(
    "pipeline.refusal_score",
    reference=refusal_score,
    hints=(
        "A refusal can open with several words, so the probability P of refusing is a sum over their tokens. The "
        "score is the logarithm of P / (1 - P). Which tokens make up 1 - P?",
        "A softmax divides all tokens of a row by the same number. In a ratio of two sums it cancels, so you never "
        "need the softmax: log(sum of exp(logits)) is `torch.logsumexp`, and it stays exact for large logits.",
        "Sketch: make a bool mask [V] that is True at the refusal ids; take the logsumexp of the masked logits over "
        "the last axis; take the same of all other logits; return the difference, shape [B].",
    ),
    expected="One number for each prompt. Above 0 the model is more likely to refuse than not; torch.sigmoid(score) "
    "is the probability of a refusal.",
)
def _check_refusal_score() -> Iterator[Probe]:
    yield Probe(
        tried="equal logits over 6 tokens, of which 2 open a refusal (so P = 2/6)",
        args=(torch.zeros(1, 6), [1, 4]),
        expected=torch.tensor([math.log(2 / 4)]),
        means="log(2/6) - log(4/6) = -0.6931, shape [1]",
        diagnose={
            "This is log P. The score is a log-odds: log(1 - P) has to be taken away.": torch.tensor([math.log(2 / 6)]),
            "This is the probability P itself; the score is log P - log(1 - P).": torch.tensor([2 / 6]),
            "This is the odds P / (1 - P) without the logarithm.": torch.tensor([0.5]),
            "The sign is turned round: a model that refuses must score high.": torch.tensor([math.log(4 / 2)]),
            "Only one of the refusal tokens is counted; a refusal can open with any.": torch.tensor([math.log(1 / 5)]),
            "P came out above 1. The softmax must run over the vocabulary, not over the prompts.": lambda got: bool(
                got.isnan().any()
            ),
            "A mean (or a maximum) over tokens does not count how many there are. Probabilities add up: sum the "
            "exponentials of the logits, not the logits.": torch.zeros(1),
            "One of the two sums runs over all tokens. 1 - P is the sum over the tokens that are no refusal, and P "
            "sums over all refusal tokens.": lambda got: got.shape == (1,) and bool(got < 0),
        },
    )
    p = torch.tensor([[0.5, 0.1, 0.1, 0.3], [0.1, 0.2, 0.3, 0.4]])
    planted = torch.tensor([math.log(0.8 / 0.2), 0.0])
    yield Probe(
        tried="two prompts with known probabilities: P(refusal) = 0.8 in the first and 0.5 in the second",
        args=(p.log() + torch.tensor([[7.0], [-3.0]]), [0, 3]),
        expected=planted,
        diagnose={
            "The numbers depend on a constant added to all logits of a row. Logits are probabilities only up to such "
            "a constant: use logsumexp (or a softmax) over the last axis.": lambda got: (
                got.shape == (2,) and abs((got - planted)[0]) > 1 and abs((got - planted)[1]) > 1
            ),
            "The prompts were averaged; keep one score for each row.": lambda got: got.numel() == 1,
            "The batch axis was summed. Sum over the last axis, the vocabulary.": lambda got: got.shape != (2,),
        },
    )
    yield Probe(
        tried="a model that is very sure: logits of 60 and -60 at the only refusal token, 0 elsewhere",
        args=(torch.tensor([[0.0, 60.0, 0.0, 0.0, 0.0], [0.0, -60.0, 0.0, 0.0, 0.0]]), [1]),
        expected=torch.tensor([60.0, -60.0]) - math.log(4),
        diagnose={
            "The probability was rounded to exactly 1 (or 0), and its logarithm is infinite. Stay with logits: the "
            "difference of two logsumexp is exact.": lambda got: bool((~got.isfinite()).any()),
            "The probability was clamped, or a small number was added to it, and the score stops growing. Stay with "
            "logits: the difference of two logsumexp is exact.": lambda got: bool((got.abs() < 50).any()),
        },
    )


# --- 2. locate: a direction ------------------------------------------------------------------------------------------


def mean_difference(harmful: Tensor, harmless: Tensor) -> Tensor:
    """Mean harmful state minus mean harmless state (Eq. 22): [n, d] and [m, d] -> [d]."""
    return harmful.mean(0) - harmless.mean(0)


@exercise(
    "pipeline.mean_difference",
    reference=mean_difference,
    hints=(
        "You have two clouds of points, one per prompt set. What is the arrow from the middle of one cloud to the "
        "middle of the other? The sets may differ in size.",
        "Average over the prompts (which axis is that?), so that [n, d] becomes [d]. The arrow should point towards "
        "harmful: adding it to a harmless state then makes it look harmful. Keep its length, which says how far "
        "apart the clouds are.",
        "Sketch: take the mean of each set over axis 0, and return the harmful mean minus the harmless one, shape [d].",
    ),
    expected="A vector [d]. Added to the mean harmless state it gives the mean harmful state exactly.",
)
def _check_mean_difference() -> Iterator[Probe | Callable]:
    harmful = torch.tensor([[-5.0, -10.0], [7.0, 6.0], [10.0, 10.0]])
    harmless = torch.tensor([[4.0, 2.0], [-2.0, -6.0]])
    right = torch.tensor([3.0, 4.0])
    yield Probe(
        tried="3 harmful states with mean [4, 2] and 2 harmless states with mean [1, -2]",
        args=(harmful, harmless),
        expected=right,
        diagnose={
            "The sign is turned round: the direction must point from harmless to harmful.": -right,
            "The direction was scaled to length 1. Its length, here 5, is the distance between the two means: keep "
            "it.": right / 5,
            "These are sums, not means: a set with more prompts would count more.": harmful.sum(0) - harmless.sum(0),
            "This is the mean of all numbers. Average over the prompts (axis 0) only; a direction has one number per "
            "dimension.": lambda got: getattr(got, "numel", lambda: 1)() == 1,
            "The mean was taken over the dimensions (axis 1) instead of the prompts (axis 0).": lambda got: (
                got.shape == (3,)
            ),
            "The two means were added.": harmful.mean(0) + harmless.mean(0),
            "Medians or single prompts were compared, not means.": harmful.median(0).values - harmless.median(0).values,
        },
    )

    def independence_of_a_common_part(answer: Callable) -> None:
        """the same constant vector added to every state of both sets"""
        g = torch.Generator().manual_seed(1)
        a, b, shift = (torch.randn(n, 4, generator=g) for n in (5, 5, 1))
        plain, moved = answer(a, b), answer(a + 10 * shift, b + 10 * shift)
        if plain.shape != moved.shape or not torch.allclose(plain, moved, atol=1e-3):
            raise NotYet(
                answer.tried,
                expected="the same direction as without it: what the two sets share says nothing about their "
                "difference",
                likely="The result is not a difference of the two means.",
            )

    yield independence_of_a_common_part
    g = torch.Generator().manual_seed(0)
    planted = torch.zeros(32)
    planted[5] = 3.0
    noise_a, noise_b = (torch.randn(n, 32, generator=g) for n in (400, 250))
    noise_a[:, 9] *= 20  # a loud dimension that has nothing to do with the difference
    noise_b[:, 9] *= 20
    yield Probe(
        tried="400 and 250 noisy states of size 32; a step of 3 along dimension 5 is planted, and dimension 9 is 20 "
        "times louder",
        args=(noise_a - noise_a.mean(0) + planted, noise_b - noise_b.mean(0)),
        expected=planted,
        tolerance=1e-3,
        means="the planted step: 3 at index 5, and 0 elsewhere, also at the loud dimension",
        diagnose={
            "The direction follows the loudest dimension. The largest variance (a principal component) is not the "
            "largest difference between the sets.": lambda got: got.abs().argmax().item() == 9,
        },
    )


# --- 3. steer: remove the direction ----------------------------------------------------------------------------------


def ablate_direction(x: Tensor, r: Tensor) -> Tensor:
    """Directional ablation x - (x . r) r with r scaled to length 1: [..., d] and [d] -> [..., d]."""
    r = r / r.norm()
    return x - (x @ r)[..., None] * r


@exercise(
    "pipeline.ablate_direction",
    reference=ablate_direction,
    hints=(
        "Each state is a part along r and a part at a right angle to r. You want to keep the second one. How long is "
        "the first one?",
        "For a direction of length 1 the part along it is (x . r) r. The r that you are given has some other length, "
        "so scale it first. The dot product has one axis less than x: it needs an axis of size 1 at the end before "
        "it multiplies r.",
        "Sketch: divide r by its norm; take the dot products over the last axis, keeping that axis with size 1; "
        "return x minus (dot product times r). It should work for x of shape [d], [T, d] and [B, T, d].",
    ),
    expected="A tensor shaped like x whose dot product with r is 0 everywhere. Doing it twice changes nothing more.",
)
def _check_ablate_direction() -> Iterator[Probe | Callable]:
    x, r = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 0.0])
    yield Probe(
        tried="x = [[3, 4]], r = [1, 0]",
        args=(x, r),
        expected=torch.tensor([[0.0, 4.0]]),
        diagnose={
            "This is the part along r, the one that should go. Return what is left of x.": torch.tensor([[3.0, 0.0]]),
            "The part along r was added instead of taken away.": torch.tensor([[6.0, 4.0]]),
            "This takes r away once. How much of r is in x is the dot product (x . r).": torch.tensor([[2.0, 4.0]]),
            "The part along r was taken away twice, which reflects x at the plane.": torch.tensor([[-3.0, 4.0]]),
        },
    )
    x, r = torch.tensor([[2.0, 1.0, 5.0]]), torch.tensor([3.0, 4.0, 0.0])
    right = torch.tensor([[0.8, -0.6, 5.0]])
    dot = 10.0
    yield Probe(
        tried="x = [[2, 1, 5]], r = [3, 4, 0]: a direction of length 5",
        args=(x, r),
        expected=right,
        diagnose={
            "r was not scaled to length 1, so 25 times too much was taken away.": x - dot * r,
            "r was divided by its length in one of its two places only; both need it (or divide once by r . r).": x
            - dot / 5 * r,
            "x was multiplied with r number by number. The formula needs the dot product: a sum over the last axis.": x
            - x * (r / 5) ** 2,
            "The dimensions in which r is not 0 were erased. Only the part along r should go.": torch.tensor(
                [[0.0, 0.0, 5.0]]
            ),
        },
    )
    g = torch.Generator().manual_seed(0)
    square, r = torch.randn(3, 3, generator=g), torch.tensor([0.0, 2.0, 1.0])
    right = _without(square, r)
    by_column = square - (square @ (r / r.norm())) * (r / r.norm())
    yield Probe(
        tried="x of shape [3, 3], as many positions as dimensions",
        args=(square, r),
        expected=right,
        diagnose={
            "The dot products [T] were multiplied with r [d] along the same axis; with T = d torch does not complain. "
            "Give them an axis of size 1 at the end ([..., None] or keepdim=True).": by_column,
        },
    )
    for shape in ([4], [2, 5, 4]):
        x, r = torch.randn(shape, generator=g), torch.randn(4, generator=g) * 3
        yield Probe(
            tried=f"x of shape {shape}, a random r",
            args=(x, r),
            expected=_without(x, r),
            diagnose={
                "One dot product was used for all positions. Each position has its own: sum over the last axis only.": x
                - (x * r).sum() / (r @ r) * r,
            },
        )

    def doing_it_twice(answer: Callable) -> None:
        """the result put in once more"""
        x, r = torch.randn(6, 8, generator=g), torch.randn(8, generator=g)
        once = answer(x, r)
        if (once @ r).abs().max() > 1e-3:
            raise NotYet(answer.tried, "a dot product of 0 with r", "a part along r is left")
        if not torch.allclose(answer(once, r), once, atol=1e-4):
            raise NotYet(answer.tried, "no further change", likely="More than the part along r is taken away.")

    yield doing_it_twice


def _without(x: Tensor, r: Tensor) -> Tensor:
    """x without its part along r, by a projection matrix: a second way to the same numbers."""
    return x @ (torch.eye(len(r)) - torch.outer(r, r) / (r @ r))


# --- 4. locate: the heads --------------------------------------------------------------------------------------------


def head_effects(model: Model, task: Task) -> Tensor:
    """Mean of F(ablated) - F(base) over items, for each head set to zero at all positions: [n_layers, n_heads].

    F is the metric of the task. A head that helps the behaviour gets a negative number.
    """
    from mi_course.locate.causal import ablate_each, heads

    values = ablate_each(model, task, heads(model), kind="zero").values
    return torch.as_tensor(values, dtype=torch.float32).reshape(model.n_layers, model.n_heads)


@exercise(
    "pipeline.head_effects",
    reference=head_effects,
    hints=(
        "Ask of each head: what happens to the metric when it writes nothing? You need the metric once without any "
        "intervention (the base), and once for each head.",
        '`mi.zero("L1H2.z")` sets head 2 of layer 1 to zero, and `with mi.intervene(model, edit):` keeps it so inside '
        "the block only. `task.measure(model)` gives one number for each item. The course writes effects as "
        "F(intervened) - F(base).",
        "Sketch: base = task.measure(model).mean(); two loops over layer and head; inside, a `with` block around one "
        "measurement; effects[layer, head] = its mean - base; return effects, shape [n_layers, n_heads].",
    ),
    expected="A grid [n_layers, n_heads]. Most heads are near 0; the few that carry the behaviour are clearly "
    "negative, because removing them lowers the score.",
)
def _check_head_effects() -> Iterator[Probe]:
    model, task = _tiny_model_and_task()
    truth = _effects_by_erasing_weights(model, task)
    base = task.measure(model).mean()

    def like(a: Tensor, b: Tensor) -> bool:
        return torch.allclose(a, b, atol=1e-4)

    yield Probe(
        tried="a random model of 2 layers x 3 heads, 4 prompts; compared with erasing each head's rows of W_O",
        args=(model, task),
        expected=truth,
        tolerance=1e-3,
        diagnose={
            "The sign is turned round: an effect is F(intervened) - F(base), and a helping head is negative.": -truth,
            "The base was not taken away: this is the metric itself under each ablation.": truth + base,
            "These are sizes without signs. Helping and hindering heads must be told apart.": truth.abs(),
            "These are sums over the items; take the mean.": truth * len(task),
            "This is the effect on the first item only; take the mean over the items.": lambda got: like(
                got, _effects_by_erasing_weights(model, task.subset(1))
            ),
            "The whole layer was ablated, so that all its heads have the same effect.": lambda got: like(
                got, _effects_by_erasing_weights(model, task, whole_layers=True)[:, None].expand_as(truth)
            ),
            "Heads were ablated on top of each other. Leave the `with` block before the next head, so that only one "
            "is missing at a time.": lambda got: like(got, _effects_by_erasing_weights(model, task, piling_up=True)),
            "Rows and columns are swapped: the result is [n_layers, n_heads].": lambda got: got.shape == truth.T.shape,
            "The item axis is left: take the mean over items for each head.": lambda got: got.dim() == 3,
            "The effects were rescaled. Leave them in the units of the metric.": lambda got: _parallel(got, truth),
            "Only the last position was ablated. Heads write at all positions.": lambda got: like(got[-1], truth[-1]),
        },
    )
    model, task = _tiny_model_and_task(n_layers=3, n_heads=2)
    yield Probe(
        tried="another random model, of 3 layers x 2 heads",
        args=(model, task),
        expected=_effects_by_erasing_weights(model, task),
        tolerance=1e-3,
    )


def _tiny_model_and_task(n_layers: int = 2, n_heads: int = 3) -> tuple[Model, Task]:
    """A random GPT-2 with loud attention, whose last head but one writes nothing; and four items for it."""
    import transformers

    import mi_course as mi

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=12, n_layer=n_layers, n_head=n_heads, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    g = torch.Generator().manual_seed(0)
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.4)
        size = 12 // n_heads
        hf.transformer.h[-1].attn.c_proj.weight[-2 * size : -size] = 0
    prompts = torch.randint(1, 20, (4, 6), generator=g).tolist()
    return mi.wrap(hf), mi.Task("tiny", prompts, targets=[3, 4, 5, 6], foils=[7, 8, 9, 10])


@torch.no_grad()
def _effects_by_erasing_weights(
    model: Model, task: Task, whole_layers: bool = False, piling_up: bool = False
) -> Tensor:
    """The effects without any hook: erase the rows of W_O that belong to a head, in a copy, and run that."""
    prompts = torch.tensor(task.prompts)
    rows = torch.arange(len(prompts))

    def metric(hf: torch.nn.Module) -> Tensor:
        last = hf(prompts).logits[:, -1]
        return (last[rows, torch.tensor(task.targets)] - last[rows, torch.tensor(task.foils)]).mean()

    base, size = metric(model.hf), model.d_head
    effects = torch.zeros(model.n_layers, 1 if whole_layers else model.n_heads)
    erased = copy.deepcopy(model.hf)
    for layer in range(model.n_layers):
        for head in range(effects.shape[1]):
            if not piling_up:
                erased = copy.deepcopy(model.hf)
            output = erased.transformer.h[layer].attn.c_proj
            if whole_layers:
                output.weight[:], output.bias[:] = 0, 0
            output.weight[head * size : (head + 1) * size] = 0
            effects[layer, head] = metric(erased) - base
    return effects[:, 0] if whole_layers else effects


def _parallel(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and abs(torch.cosine_similarity(a.flatten(), b.flatten(), dim=0)) > 0.9999


# --- 5. the null band ------------------------------------------------------------------------------------------------


def null_band(effect: Callable[[Tensor], float], direction: Tensor, n: int = 20, seed: int = 0) -> tuple[float, float]:
    """Mean - 2 s.d. and mean + 2 s.d. of `effect(v)` over n random directions v as long as `direction` [d].

    The v are normal draws, which point everywhere with the same chance, scaled to |direction|; `seed` fixes them.
    """
    from mi_course import evaluate

    g = torch.Generator().manual_seed(seed)
    draws = torch.randn(n, len(direction), generator=g)
    draws = draws / draws.norm(dim=-1, keepdim=True) * direction.norm()
    band = evaluate.null_band(effect(v) for v in draws)
    return band.low, band.high


@exercise(
    "pipeline.null_band",
    reference=null_band,
    hints=(
        "How large an effect would some direction have that has nothing to do with the behaviour? Draw many of them, "
        "and see how the effect spreads. What must they share with your direction, so that the comparison is fair?",
        "A vector of normal random numbers (`torch.randn`) points everywhere with the same chance. Scale it to the "
        "norm of your direction. Use a `torch.Generator` with `manual_seed(seed)`, so that the band is the same on "
        "every run.",
        "Sketch: make the generator once; n times draw a normal vector, scale it to the length of `direction`, keep "
        "float(effect(v)); return mean - 2 s.d. and mean + 2 s.d. as a pair.",
    ),
    expected="Two numbers, low and high. About 95 % of random directions fall between them, so an effect inside the "
    "band is no evidence.",
)
def _check_null_band() -> Iterator[Probe | Callable]:
    direction = torch.zeros(16)
    direction[:2] = torch.tensor([3.0, 4.0])
    yield Probe(
        tried="a direction of length 5 with the effect `length of v`: every fair random direction gives exactly 5",
        run=lambda answer: tuple(answer(lambda v: v.norm().item(), direction, 12)),
        expected=(5.0, 5.0),
        tolerance=1e-3,
        diagnose={
            "The band is centred on 0. Centre it on the mean effect of the random directions.": (0.0, 0.0),
            "The random directions have length 1. A shorter vector has a smaller effect for that reason alone: scale "
            "them to the length of `direction`.": (1.0, 1.0),
            "The random directions are not scaled to the length of `direction`: their lengths differ from draw to "
            "draw.": lambda got: got[0] < got[1] - 0.01,
            "The random directions have the same length, but not that of `direction`: divide by the norm first, then "
            "multiply.": lambda got: abs(got[0] - got[1]) < 0.01,
        },
    )

    def planted(answer: Callable) -> tuple[float, float]:
        values = itertools.cycle([1.0, 2.0, 3.0, 6.0, 8.0, 10.0])
        low, high = answer(lambda v: next(values), torch.ones(4), 6)
        return float(low), float(high)

    mean, sd, population_sd = 5.0, math.sqrt(64 / 5), math.sqrt(64 / 6)
    yield Probe(
        tried="n = 6 draws whose effects are 1, 2, 3, 6, 8 and 10 (mean 5, s.d. 3.58)",
        run=planted,
        means="(5 - 2 s.d., 5 + 2 s.d.) = (-2.155, 12.155)",
        expected=lambda got: any(_near(got, (mean - 2 * s, mean + 2 * s)) for s in (sd, population_sd)),
        diagnose={
            "The band is one standard deviation wide on each side; take two.": lambda got: any(
                _near(got, (mean - s, mean + s)) for s in (sd, population_sd)
            ),
            "The standard deviation was divided by sqrt(n). That is the error of the mean; the band says where single "
            "draws fall.": lambda got: any(
                _near(got, (mean - 2 * s / 6**0.5, mean + 2 * s / 6**0.5)) for s in (sd, population_sd)
            ),
            "This is the smallest and the largest draw. They drift apart as n grows; take mean +- 2 s.d.": (1.0, 10.0),
            "The variance was used in place of the standard deviation.": lambda got: any(
                _near(got, (mean - 2 * s * s, mean + 2 * s * s)) for s in (sd, population_sd)
            ),
            "Low and high are swapped.": lambda got: got[0] > got[1],
        },
    )

    def calls(answer: Callable) -> int:
        seen: list[Tensor] = []
        answer(lambda v: float(seen.append(v.clone()) or v[0]), torch.ones(4), 7)
        return len({tuple(v.tolist()) for v in seen})

    yield Probe(
        tried="n = 7: how many different directions does the effect see?",
        run=calls,
        expected=7,
        diagnose={
            "The same direction is used for every draw. Make the generator once, before the loop.": 1,
            "The effect of the direction itself is among the draws, or n is not used.": lambda got: got != 7,
        },
    )
    one = torch.zeros(8)
    one[0] = 1.0
    yield Probe(
        tried="2000 draws in 8 dimensions, effect = first entry of v: mean 0 and s.d. 1/sqrt(8) = 0.354 when no "
        "direction is preferred",
        run=lambda answer: tuple(float(edge) for edge in answer(lambda v: v[0].item(), one, 2000)),
        means="about (-0.71, 0.71)",
        expected=lambda got: abs(got[0] + 0.707) < 0.06 and abs(got[1] - 0.707) < 0.06,
        diagnose={
            "The draws point to one side. `torch.rand` gives numbers between 0 and 1 only; `torch.randn` has both "
            "signs.": lambda got: got[0] + got[1] > 0.4,
            "Some directions come more often than others. Shuffled or sign-flipped copies of the direction are no "
            "random directions: draw them with `torch.randn`.": lambda got: got[1] - got[0] > 0,
        },
    )

    def the_seed(answer: Callable) -> None:
        """the same call twice, then with another seed"""

        def band(seed: int) -> tuple[float, ...]:
            return tuple(float(edge) for edge in answer(lambda v: v[0].item(), one, 6, seed))

        first, again, other = band(3), band(3), band(4)
        if first != again:
            raise NotYet(
                answer.tried,
                expected="the same band twice for the same seed",
                got=f"{first} and {again}",
                likely="The draws do not depend on `seed`: make a torch.Generator, call manual_seed(seed), and pass "
                "it to torch.randn.",
            )
        if first == other:
            raise NotYet(
                answer.tried,
                expected="other draws for another seed",
                got=f"{first} both times",
                likely="The seed is fixed inside the function: use the argument.",
            )

    yield the_seed


def _near(got: tuple, wanted: tuple) -> bool:
    return all(abs(float(g) - w) < 1e-3 for g, w in zip(got, wanted))
