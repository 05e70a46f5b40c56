"""Chapter 10, circuits: checks of its exercises.

Counting edges, patching one edge, edge attribution, gradients on a path, what a receiver reads in a circuit, the areas
under a faithfulness curve, and pruning edge by edge. The functions without an underscore are the references that the
chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.objects import Task


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(got, expected, tolerance: float = 1e-4) -> bool:
    """Whether `got` is a tensor or number like `expected`."""
    got, expected = torch.as_tensor(got), torch.as_tensor(expected)
    return got.shape == expected.shape and torch.allclose(got.float(), expected.float(), atol=tolerance)


# --- 1. counting edges -----------------------------------------------------------------------------------------------


def count_edges(n_layers: int, n_heads: int, parallel: bool = False) -> int:
    """Edges of a transformer whose heads have keys and values of their own; parallel: FFN and attention read x^l."""
    total = 0
    for layer in range(n_layers):
        before = 1 + layer * (n_heads + 1)
        total += 3 * n_heads * before + before + (0 if parallel else n_heads)
    return total + 1 + n_layers * (n_heads + 1)


@exercise(
    "circuits.count_edges",
    reference=count_edges,
    hints=(
        "Go through the receivers in the order of the computation, and ask of each: how many senders have written by "
        "then? x0 counts as one.",
        "Before layer l there are 1 + l (H + 1) senders: x0, and H heads and an FFN per layer. A head of layer l has "
        "three inputs that read them. The FFN of a sequential block also reads the H heads of its own layer; in a "
        "parallel block it does not. The logits read everybody.",
        "Sketch: for each layer: before = 1 + layer * (n_heads + 1); add 3 * n_heads * before for q, k and v; add "
        "before (+ n_heads if not parallel) for the FFN. After the loop add one edge to the logits from every sender.",
    ),
    expected="One integer. GPT-2 small (12 layers x 12 heads) has 32,491 edges, the number in the literature.",
)
def _check_count_edges() -> Iterator[Probe]:
    yield Probe(
        tried="one layer, one head, sequential: q, k and v read x0; the FFN reads x0 and the head; the logits read x0, "
        "the head and the FFN",
        args=(1, 1),
        expected=8,
        means="3 + 2 + 3 = 8",
        diagnose={
            "A head has three inputs, q, k and v, and each of them can be reached on its own.": 6,
            "The logits are a receiver too: x0, every head and every FFN has an edge to them.": 5,
            "The FFN of a sequential block also reads the heads of its own layer.": 7,
            "x0, the input of block 0, is a sender too.": lambda got: got in (2, 3),
        },
    )
    yield Probe(
        tried="one layer, one head, parallel: the FFN reads x0 alone",
        args=(1, 1, True),
        expected=7,
        diagnose={"In a parallel block the FFN reads x^l, as attention does: not the heads of its own layer.": 8},
    )
    for n_layers, n_heads, parallel in ((2, 4, False), (3, 2, True), (12, 12, False)):
        right = count_edges(n_layers, n_heads, parallel)
        yield Probe(
            tried=f"{n_layers} layers x {n_heads} heads, {'parallel' if parallel else 'sequential'} blocks",
            args=(n_layers, n_heads, parallel),
            expected=right,
            diagnose={
                "Too many: a receiver of layer l reads what was written before it, not what all layers write.": (
                    lambda got, right=right: got > right
                ),
                "Senders are missing: before layer l there are x0 and, for each layer below, all heads and the FFN.": (
                    lambda got, right=right: got < right
                ),
            },
        )


# --- 2. one edge, exactly --------------------------------------------------------------------------------------------


def value_edge(model: Model, task: Task, change: Tensor, layer: int, head: int) -> Tensor:
    """F(edge changed) - F(clean) of each item, [n], when the values of one head alone read x^layer + change.

    change [B, T, d]: other write minus own write of a sender. Every other reader of the stream reads x^layer.
    """
    from mi_course.models import intervene, patch, record, weights
    from mi_course.objects.weights import head as head_weights

    w = head_weights(model, layer, head)
    x = record(model, task.prompts, [f"x{layer}"])[f"x{layer}"]
    v = weights.attn_norm(model, layer)(x + change) @ w.W_V + w.b_V
    base = task.measure(model)
    with intervene(model, patch(f"L{layer}H{head}.v", v)):
        return task.measure(model) - base


@exercise(
    "circuits.value_edge",
    reference=value_edge,
    hints=(
        "The head computes its values from the stream: v = norm(x) W_V + b_V. Only this computation may see the "
        "changed stream. So compute the new values yourself and put them in at one site.",
        '`mi.record(model, task.prompts, ["x2"])["x2"]` is what layer 2 reads, [B, T, d]. `weights.attn_norm(model, 2)`'
        " is its norm, `head(model, 2, 1)` (from mi_course.objects.weights) has W_V and b_V. The site of the values is "
        "`L2H1.v`; `mi.patch(site, value)` puts them in.",
        "Sketch: x = recorded x^layer; v = norm(x + change) @ W_V + b_V; base = task.measure(model); inside "
        "`with mi.intervene(model, mi.patch(site, v)):` measure again; return the difference.",
    ),
    expected="One number per item. In the compiled model of direct and indirect paths, the edge L0H0->L1H0.v is worth "
    "exactly -2.",
)
def _check_value_edge() -> Iterator[Probe]:
    import mi_course as mi
    from mi_course.world import compiled

    known = compiled.mediation()
    model = known.wrap()
    runs = [mi.record(model, prompts, ["L0H0"])["L0H0"] for prompts in (known.task.corrupted, known.task.prompts)]
    yield Probe(
        tried="compiled.mediation, the edge L0H0->L1H0.v with the corrupted twin's write (its direct path is worth "
        "-3, this one -2)",
        args=(model, known.task, runs[0] - runs[1], 1, 0),
        expected=torch.tensor([-2.0, -2.0]),
        diagnose={
            "The sign is turned round: F(changed) - F(clean).": torch.tensor([2.0, 2.0]),
            "This is the total effect, of both paths: everybody reads the changed stream. Only the values of the one "
            "head may see it.": torch.tensor([-5.0, -5.0]),
            "F(clean) was not taken away.": lambda got: _near(got, known.task.measure(model) - 2, 1e-2),
            "The items were averaged; return one number per item.": lambda got: torch.as_tensor(got).numel() == 1,
        },
        tolerance=1e-3,
    )
    model, task, change = _tiny()
    x = mi.record(model, task.prompts, ["x1"])["x1"]
    base = task.measure(model)

    def with_values(make: Callable) -> Tensor:
        with mi.intervene(model, mi.edit("L1H1.v", make)):
            return task.measure(model) - base

    from mi_course.models import weights
    from mi_course.objects.weights import head as head_weights

    w, norm = head_weights(model, 1, 1), weights.attn_norm(model, 1)
    right = with_values(lambda v: norm(x + change) @ w.W_V + w.b_V)
    with mi.intervene(model, mi.patch("x1", x + change)):
        everywhere = task.measure(model) - base
        layer_values = mi.record(model, task.prompts, ["v1"])["v1"]
    with mi.intervene(model, mi.patch("v1", layer_values)):
        both_heads = task.measure(model) - base
    yield Probe(
        tried="a random model, edge from x0 to the values of L1H1",
        args=(model, task, change, 1, 1),
        expected=right,
        tolerance=1e-3,
        diagnose={
            "The norm is missing: the head reads norm(x + change), and the norm is not linear.": with_values(
                lambda v: (x + change) @ w.W_V + w.b_V
            ),
            "norm(x) + change was used. The change enters before the norm.": with_values(
                lambda v: (norm(x) + change) @ w.W_V + w.b_V
            ),
            "The bias b_V is missing.": with_values(lambda v: norm(x + change) @ w.W_V),
            "The head read the change alone; it reads x + change.": with_values(lambda v: norm(change) @ w.W_V + w.b_V),
            "The change was taken away; add it (it is already the other write minus the own one).": with_values(
                lambda v: norm(x - change) @ w.W_V + w.b_V
            ),
            "All readers of the stream saw the change. Only the values of this head may.": everywhere,
            "The values of all heads of the layer were changed.": both_heads,
            "The sign is turned round: F(changed) - F(clean).": -right,
            "The effect was divided by F(clean). Leave it in the units of the metric.": lambda got: _near(
                torch.as_tensor(got) * base, right, 1e-3
            ),
        },
    )


def _tiny() -> tuple[Model, Task, Tensor]:
    """A random GPT-2 of two layers x two heads, four pairs of prompts, and the change of x0 between the twins."""
    import transformers

    import mi_course as mi

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=12, n_layer=2, n_head=2, n_inner=10, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    g = torch.Generator().manual_seed(0)
    hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    for name, parameter in hf.named_parameters():
        scale, shift = (0.3, 1.0) if "ln_" in name and name.endswith("weight") else (0.5, 0.0)
        parameter.copy_(shift + scale * torch.randn(parameter.shape, generator=g))
    model = mi.wrap(hf)
    clean = torch.randint(3, 20, (4, 5), generator=g)
    corrupted = clean.clone()
    corrupted[:, 2] = (clean[:, 2] + 5) % 17 + 3
    task = mi.Task("tiny", clean.tolist(), [1, 2, 1, 2], corrupted.tolist(), foils=[2, 1, 2, 1])
    runs = [mi.record(model, prompts, ["x0"])["x0"] for prompts in (task.corrupted, task.prompts)]
    return model, task, runs[0] - runs[1]


# --- 3. EAP ----------------------------------------------------------------------------------------------------------


def eap_scores(clean: Tensor, corrupted: Tensor, gradients: Tensor) -> Tensor:
    """First-order estimate of F(edge corrupted) - F(clean) for all edges, mean over items: [n_senders, n_receivers].

    clean, corrupted [s, B, T, d]: writes of the senders; gradients [r, B, T, d]: dF_b / d(what the receiver reads).
    """
    return torch.einsum("sbtd,rbtd->sr", corrupted - clean, gradients) / clean.shape[1]


@exercise(
    "circuits.eap_scores",
    reference=eap_scores,
    hints=(
        "A first-order estimate is change times slope. The change of an edge is how its sender's write differs, a "
        "vector at every token; the slope is the gradient at what its receiver reads, also a vector at every token.",
        "For every pair of sender and receiver: multiply, sum over tokens and dimensions, average over items. One "
        "einsum does it. Which difference estimates F(edge corrupted) - F(clean)?",
        'Sketch: change = corrupted - clean; torch.einsum("sbtd,rbtd->sr", change, gradients), divided by the number '
        "of items.",
    ),
    expected="A matrix with a row per sender and a column per receiver. Where F is linear it is the exact effect.",
)
def _check_eap_scores() -> Iterator[Probe]:
    clean, corrupted = torch.zeros(1, 2, 2, 1), torch.tensor([1.0, 2, 3, 4]).view(1, 2, 2, 1)
    gradients = torch.tensor([[1.0, 1, 1, 1], [10, 0, 0, 2]]).view(2, 2, 2, 1)
    yield Probe(
        tried="one sender that writes 0 at every token, and 1, 2 (first item) and 3, 4 (second) in the twin; two "
        "receivers with gradients 1, 1, 1, 1 and 10, 0, 0, 2",
        args=(clean, corrupted, gradients),
        expected=torch.tensor([[5.0, 9.0]]),
        means="(1 + 2 + 3 + 4) / 2 items = 5 and (10 + 8) / 2 = 9",
        diagnose={
            "The sign is turned round. The survey's Eq. 17 writes clean - corrupted, which is minus the effect of "
            "corrupting the edge. Here a score predicts F(edge corrupted) - F(clean).": torch.tensor(
                [[-5.0, -9.0]]
            ),
            "The items were summed; take their mean.": torch.tensor([[10.0, 18.0]]),
            "The tokens were averaged too. Sum over tokens, average over items.": torch.tensor([[2.5, 4.5]]),
            "The sizes were taken before summing: contributions of both signs must be able to cancel.": lambda got: (
                False
            ),
        },
    )
    clean, corrupted, gradients = _random(3, 2, 4, 5), _random(3, 2, 4, 5, seed=1), _random(6, 2, 4, 5, seed=2)
    right = torch.einsum("sbtd,rbtd->sr", corrupted - clean, gradients) / 2
    last = torch.einsum("sbd,rbd->sr", (corrupted - clean)[:, :, -1], gradients[:, :, -1]) / 2
    yield Probe(
        tried="random writes of 3 senders and gradients of 6 receivers, 2 items, 4 tokens, d = 5",
        args=(clean, corrupted, gradients),
        expected=right,
        diagnose={
            "The sign was lost: a score predicts a change, in its direction.": right.abs(),
            "The sizes were taken before summing: contributions of both signs must be able to cancel.": torch.einsum(
                "sbtd,rbtd->sr", (corrupted - clean).abs(), gradients.abs()
            )
            / 2,
            "This is gradient times the clean write; the change of the write is wanted.": torch.einsum(
                "sbtd,rbtd->sr", clean, gradients
            )
            / 2,
            "This is gradient times the corrupted write; the change of the write is wanted.": torch.einsum(
                "sbtd,rbtd->sr", corrupted, gradients
            )
            / 2,
            "Only the last token was used; an edge is there at all tokens.": last,
            "Rows and columns are swapped: one row per sender.": lambda got: _near(got, right.T),
            "Writes and gradients were averaged over items before they were multiplied.": torch.einsum(
                "std,rtd->sr", (corrupted - clean).mean(1), gradients.mean(1)
            ),
            "Writes and gradients were summed over tokens before they were multiplied.": torch.einsum(
                "sbd,rbd->sr", (corrupted - clean).sum(2), gradients.sum(2)
            )
            / 2,
        },
    )


# --- 4. gradients on a path ------------------------------------------------------------------------------------------


def path_average(
    gradient: Callable[[Tensor], Tensor], clean: Tensor, corrupted: Tensor, steps: int, rule: str = "midpoint"
) -> Tensor:
    """Mean of gradient(x) over `steps` points x = corrupted + alpha (clean - corrupted), shaped like x.

    alpha: (k + 1/2) / steps for "midpoint", k / steps for "left", (k + 1) / steps for "right", k = 0 ... steps - 1.
    """
    shift = {"left": 0.0, "midpoint": 0.5, "right": 1.0}[rule]
    total = torch.zeros_like(clean)
    for k in range(steps):
        total = total + gradient(corrupted + (k + shift) / steps * (clean - corrupted))
    return total / steps


@exercise(
    "circuits.path_average",
    reference=path_average,
    hints=(
        "Where the clean run is saturated, its own gradient is 0. Somewhere on the way from the corrupted input to the "
        "clean one it is not. So ask for the gradient at several places on the way, and take the mean.",
        "The k-th point is corrupted + alpha (clean - corrupted). The rules differ in alpha: left k/n (the corrupted "
        "end is in), right (k + 1)/n (the clean end is in), midpoint (k + 1/2)/n (neither), with k = 0 ... n - 1.",
        "Sketch: shift = 0, 1/2 or 1 by rule; for k in range(steps): add gradient(corrupted + (k + shift) / steps * "
        "(clean - corrupted)); divide by steps.",
    ),
    expected="A tensor like the input. Times (clean - corrupted) and summed it tends to F(clean) - F(corrupted).",
)
def _check_path_average() -> Iterator[Probe | Callable]:
    clean, corrupted = torch.tensor([1.0, 2.0]), torch.tensor([0.0, -2.0])
    for rule, points in (("right", (0.25, 0.5, 0.75, 1.0)), ("left", (0.0, 0.25, 0.5, 0.75))):
        middle = corrupted + sum(points) / 4 * (clean - corrupted)
        yield Probe(
            tried=f"F = sum of x^2 / 2, so the gradient is x; from [0, -2] to [1, 2] in 4 steps, rule {rule!r}",
            args=(lambda x: x, clean, corrupted, 4, rule),
            expected=middle,
            diagnose={
                "This is the other rule: alpha counts from the corrupted end, so 'left' has alpha = 0 in it and "
                "'right' alpha = 1.": corrupted + (1 - sum(points) / 4) * (clean - corrupted),
                "The gradients were summed; take their mean.": 4 * middle,
                "The midpoints were used whatever the rule.": corrupted + 0.5 * (clean - corrupted),
                "The points start at 0 instead of at `corrupted`.": sum(points) / 4 * (clean - corrupted),
                "The mean was multiplied with (clean - corrupted). Only the mean gradient is wanted.": middle
                * (clean - corrupted),
            },
        )
    yield Probe(
        tried="gradient x^3, from 0 to 1 in 2 steps, rule 'midpoint': points 1/4 and 3/4",
        args=(lambda x: x**3, torch.ones(1), torch.zeros(1), 2, "midpoint"),
        expected=torch.tensor([(0.25**3 + 0.75**3) / 2]),
        diagnose={
            "The gradient was taken once, at the mean of the points. Average the gradients, not the points.": (
                torch.tensor([0.125])
            ),
            "The end points are in: these are the points of another rule.": lambda got: any(
                _near(got, torch.tensor([value])) for value in (0.0625, 0.5625)
            ),
        },
    )

    def sums_to_the_change(answer: Callable) -> None:
        """F = sum of sin(x) with 200 steps: (clean - corrupted) . mean gradient against F(clean) - F(corrupted)"""
        a, b = _random(3, 4), _random(3, 4, seed=1)
        for rule in ("midpoint", "left", "right"):
            got = answer(torch.cos, a, b, 200, rule)
            if not isinstance(got, Tensor) or got.shape != a.shape:
                raise NotYet(answer.tried, "a tensor of the shape of the input, [3, 4]", likely="A wrong shape.")
            total, change = ((a - b) * got).sum().item(), (a.sin() - b.sin()).sum().item()
            if not math.isclose(total, change, abs_tol=0.05):
                raise NotYet(
                    answer.tried,
                    f"{change:.3f}, whatever the rule",
                    f"{total:.3f} with {rule!r}",
                    likely="With many steps the mean gradient times the whole difference must give the change of F.",
                )

    yield sums_to_the_change


# --- 5. what a receiver reads in a circuit ---------------------------------------------------------------------------


def circuit_input(other_stream: Tensor, writes: Tensor, other_writes: Tensor, kept: Tensor) -> Tensor:
    """What a receiver reads when only some edges into it are in the circuit: [B, T, d].

    other_stream [B, T, d]: the stream of the other run. writes, other_writes [s, B, T, d]: this run's and the other's.
    kept bool [s]: the senders whose edge to this receiver is in the circuit.
    """
    return other_stream + (writes - other_writes)[kept].sum(0)


@exercise(
    "circuits.circuit_input",
    reference=circuit_input,
    hints=(
        "Start from the other run's stream: it is the sum of everything that the other run wrote. What must be "
        "exchanged for a sender whose edge is in the circuit?",
        "For a kept sender the other run's write goes out and this run's write comes in. For the others nothing "
        "changes.",
        "Sketch: other_stream + the sum over kept senders of (writes - other_writes); `(a - b)[kept]` picks the rows.",
    ),
    expected="With no edge kept, the other run's stream. With all kept, this run's own stream.",
)
def _check_circuit_input() -> Iterator[Probe]:
    def one(*numbers: float) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float).view(-1, 1, 1, 1)

    stream = torch.tensor([[[100.0]]])
    yield Probe(
        tried="other stream 100; three senders that write 1, 2, 3 here and 10, 20, 30 in the other run; the first and "
        "the third are kept",
        args=(stream, one(1, 2, 3), one(10, 20, 30), torch.tensor([True, False, True])),
        expected=torch.tensor([[[64.0]]]),
        means="100 + (1 - 10) + (3 - 30) = 64",
        diagnose={
            "The sign is turned round: this run's write comes in, the other's goes out.": torch.tensor([[[136.0]]]),
            "The edges outside the circuit were exchanged instead of those in it.": torch.tensor([[[82.0]]]),
            "All senders were exchanged; only those that are kept.": torch.tensor([[[46.0]]]),
            "The other run's writes are still in the stream: take them out for kept senders.": torch.tensor(
                [[[104.0]]]
            ),
            "The other stream is missing: it holds the embedding's and all other writes.": torch.tensor([[[-36.0]]]),
            "The other writes went out and nothing came in.": torch.tensor([[[60.0]]]),
        },
    )
    stream, writes, other = _random(2, 3, 4), _random(5, 2, 3, 4, seed=1), _random(5, 2, 3, 4, seed=2)
    kept = torch.tensor([True, True, False, False, True])
    yield Probe(
        tried="random writes of 5 senders, 2 items, 3 tokens, d = 4; three senders kept",
        args=(stream, writes, other, kept),
        expected=stream + (writes[0] - other[0]) + (writes[1] - other[1]) + (writes[4] - other[4]),
        diagnose={
            "The kept senders were averaged; add them up.": stream + (writes - other)[kept].mean(0),
            "The shape should be that of the stream: sum over the senders.": lambda got: (
                torch.as_tensor(got).shape != stream.shape
            ),
        },
    )
    yield Probe(
        tried="no sender kept",
        args=(stream, writes, other, torch.zeros(5, dtype=torch.bool)),
        expected=stream,
        means="the other run's stream",
    )


# --- 6. areas under a faithfulness curve -----------------------------------------------------------------------------


def areas(shares: Tensor, faithfulness: Tensor) -> tuple[Tensor, Tensor]:
    """(CPR, CMD): the area under the curve, and the area between the curve and 1, by trapezoids in the share of edges.

    shares [n], rising; faithfulness [n].
    """
    return torch.trapezoid(faithfulness, shares), torch.trapezoid((1 - faithfulness).abs(), shares)


@exercise(
    "circuits.areas",
    reference=areas,
    hints=(
        "A trapezoid between two neighbouring points: the width in shares times the mean of the two heights. Which "
        "height counts for CMD?",
        "CPR takes the faithfulness itself as the height, CMD its distance from 1, which is never negative: above 1 is "
        "as far from the model as below.",
        "Sketch: width = shares[1:] - shares[:-1]; area(height) = sum of width * (height[1:] + height[:-1]) / 2; "
        "return area(faithfulness), area(|1 - faithfulness|).",
    ),
    expected="Two numbers. A circuit that equals the model at every size has CPR = 1 (over shares 0 to 1) and CMD = 0.",
)
def _check_areas() -> Iterator[Probe]:
    shares, high = torch.tensor([0.0, 0.1, 0.3, 1.0]), torch.tensor([0.0, 0.8, 1.6, 1.0])
    cpr, cmd = 0.04 + 0.24 + 0.91, 0.06 + 0.08 + 0.21
    left = (0 * 0.1 + 0.8 * 0.2 + 1.6 * 0.7, 1 * 0.1 + 0.2 * 0.2 + 0.6 * 0.7)
    right = (0.8 * 0.1 + 1.6 * 0.2 + 1 * 0.7, 0.2 * 0.1 + 0.6 * 0.2)
    even = (1.0, (0.6 + 0.4 + 0.3) / 3)

    def first_is(value: float) -> Callable:
        return lambda got: _near(float(got[0]), value) and not _near(float(got[0]), cpr)

    yield Probe(
        tried="faithfulness 0, 0.8, 1.6, 1 at shares 0, 0.1, 0.3, 1: it overshoots",
        args=(shares, high),
        expected=(torch.tensor(cpr), torch.tensor(cmd)),
        means=f"CPR = 0.04 + 0.24 + 0.91 = {cpr:.2f}, CMD = 0.06 + 0.08 + 0.21 = {cmd:.2f}",
        diagnose={
            "Overshoot was counted as closeness: CMD takes the size of 1 - faithfulness.": lambda got: _near(
                float(got[1]), 1 - cpr
            ),
            "The two areas are swapped: return (CPR, CMD).": lambda got: _near(float(got[0]), cmd),
            "CMD is right. CPR is the area under the curve itself.": lambda got: _near(float(got[1]), cmd),
            "The left end of each interval was used as its height; take the mean of both ends.": first_is(left[0]),
            "The right end of each interval was used as its height; take the mean of both ends.": first_is(right[0]),
            "The intervals were taken as equally wide. Shares are not evenly spaced.": lambda got: any(
                first_is(even[0] * width)(got) for width in (1.0, 3.0, 2.9 / 3)
            ),
            "This is the mean of the values, not the area under the curve.": first_is(0.85),
        },
    )
    yield Probe(
        tried="faithfulness 1, 0.5 at shares 0.2, 0.6: the area starts where the shares start",
        args=(torch.tensor([0.2, 0.6]), torch.tensor([1.0, 0.5])),
        expected=(torch.tensor(0.3), torch.tensor(0.1)),
    )


# --- 7. pruning ------------------------------------------------------------------------------------------------------


def prune(edges: list, distance: Callable[[list], float], threshold: float) -> list:
    """The edges that ACDC keeps. distance(kept): how far the circuit of these edges is from the whole model.

    edges come in the order in which they are tried. An edge goes when the distance grows by less than `threshold`,
    compared with the circuit as it then is.
    """
    kept, now = list(edges), distance(edges)
    for edge in edges:
        without = [other for other in kept if other != edge]
        new = distance(without)
        if new - now < threshold:
            kept, now = without, new
    return kept


@exercise(
    "circuits.prune",
    reference=prune,
    hints=(
        "Keep a list of what is left. Try each edge once: how far is the circuit without it? If that is hardly farther "
        "than the circuit is now, the edge goes for good.",
        "Compare with the *current* circuit, not with the whole model and not with 0: the distance of the current "
        "circuit changes whenever an edge goes. Do not change a list while you loop over it.",
        "Sketch: kept = list(edges); now = distance(kept); for each edge: without = kept minus the edge; new = "
        "distance(without); if new - now < threshold: kept, now = without, new. Return kept.",
    ),
    expected="The edges that stay, in their order. Of two edges that back each other up, the one tried later stays.",
)
def _check_prune() -> Iterator[Probe | Callable]:
    costs = {"a": 1.0, "b": 0.1, "c": 0.4, "d": 0.0}

    def additive(kept: list) -> float:
        return sum(cost for edge, cost in costs.items() if edge not in kept)

    yield Probe(
        tried="edges a, b, c, d, each of which costs 1, 0.1, 0.4, 0 when it is missing; threshold 0.45",
        args=(["a", "b", "c", "d"], additive, 0.45),
        expected=["a"],
        diagnose={
            "The distance was compared with 0 or with the whole model. c costs 0.4 more than the circuit without b, "
            "which is below the threshold.": ["a", "c"],
            "These are the edges that should go.": ["b", "c", "d"],
            "Everything was kept. An edge goes when the distance grows by less than the threshold.": list("abcd"),
        },
    )
    yield Probe(
        tried="two edges of which either is enough (distance 1 when both are missing), and one that does nothing; "
        "threshold 0.5",
        args=(["first", "second", "idle"], lambda kept: float("first" not in kept and "second" not in kept), 0.5),
        expected=["second"],
        diagnose={
            "Each edge was tried on the whole model. When the first is gone, the second is needed.": [],
            "The edges were tried in reverse order; they come in the order in which they are tried.": ["first"],
            "Both redundant edges were kept.": ["first", "second"],
        },
    )
    yield Probe(
        tried="an edge whose removal brings the circuit closer to the model (distance 2 with it, 1 without)",
        args=(["bad", "good"], lambda kept: 1.0 + ("bad" in kept) + 5 * ("good" not in kept), 0.01),
        expected=["good"],
        diagnose={
            "The size of the change was compared. An edge whose removal brings the circuit closer goes too.": [
                "bad",
                "good",
            ],
        },
    )
    yield Probe(
        tried="one edge whose removal costs exactly the threshold, 0.5",
        args=(["e"], lambda kept: 0.0 if kept else 0.5, 0.5),
        expected=["e"],
        diagnose={"An edge goes when the distance grows by *less* than the threshold.": []},
    )

    def counts_and_leaves_its_input(answer: Callable) -> None:
        """six edges, counting calls of `distance`, and looking at the list that was given"""
        edges, calls = list("abcdef"), []

        def distance(kept: list) -> float:
            calls.append(list(kept))
            return 0.3 * (6 - len(kept))

        answer(edges, distance, 0.4)
        if edges != list("abcdef"):
            raise NotYet(
                answer.tried, "the list of edges is left as it was", str(edges), likely="The input was changed."
            )
        if len(calls) > 13:
            raise NotYet(
                answer.tried,
                "about one call for each edge",
                f"{len(calls)} calls",
                likely="The distance was asked for too often: a call is a forward pass of the model.",
            )

    yield counts_and_leaves_its_input
