"""Chapter 12, Amplitude manipulation: checks of its exercises.

One dial for every operation, the breakdown point of a dose-response, features clamped together with the error kept,
AurA, a detector with a wanted rate of false alarms, a cut attention edge, and skipped layers. The functions without an
underscore are the references that the chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..compare import describe
from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.objects import SAE


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4 * float(b.abs().max().clamp_min(1e-6)))


# --- 1. one dial -----------------------------------------------------------------------------------------------------


def dial(o: Tensor, full: Callable[[Tensor], Tensor], s: float) -> Tensor:
    """The object at strength s: o + s (full(o) - o). s = 0 is the identity, s = 1 the full operation (Eq. 19)."""
    return o + s * (full(o) - o)


@exercise(
    "amplitude.dial",
    reference=dial,
    hints=(
        "At strength 0 nothing may happen, at strength 1 the full operation. What lies between the two values?",
        "full(o) - o is the whole change. Strength s does s of it: half of the way at 0.5, beyond it at 2, and the "
        "other way round at -1.",
        "Sketch: o plus s times the difference between full(o) and o.",
    ),
    expected="A tensor like o: o itself at s = 0, full(o) at s = 1, and on the straight line through both elsewhere.",
)
def _check_dial() -> Iterator[Probe | Callable]:
    o = torch.tensor([4.0, -2.0])
    yield Probe(
        tried="o = [4, -2], switched off (full(o) = 0) at strength 0.25",
        args=(o, torch.zeros_like, 0.25),
        expected=torch.tensor([3.0, -1.5]),
        means="[3, -1.5]: a quarter of the way to zero",
        diagnose={
            "This is strength 0.75: the roles of o and full(o) are swapped.": torch.tensor([1.0, -0.5]),
            "The full value was added to o. At strength 1 nothing but full(o) may be left.": o,
            "This is s times full(o), which is not o at s = 0.": torch.zeros(2),
        },
    )
    v = torch.tensor([1.0, 3.0])
    yield Probe(
        tried="o = [4, -2], full(o) = o + [1, 3], at strength 2",
        args=(o, lambda x: x + v, 2.0),
        expected=o + 2 * v,
        means="[6, 4]: twice the change",
        diagnose={
            "The dial was made for switching off alone. Use full(o).": -o,
            "full was given s o. The operation acts on o itself; only its change is scaled.": 2 * o + v,
            "The full value was added to o. At strength 1 nothing but full(o) may be left.": o + 2 * (o + v),
            "The strength was kept within 0 ... 1. A dial goes beyond: 2 is twice the change, -1 the opposite.": o + v,
        },
    )
    yield Probe(
        tried="o = [4, -2], doubled (full(o) = 2 o), at strength -1",
        args=(o, lambda x: 2 * x, -1.0),
        expected=torch.zeros(2),
        means="[0, 0]: the factor is 1 + s (2 - 1) = 0",
        diagnose={
            "The strength was kept within 0 ... 1. A dial goes beyond: 2 is twice the change, -1 the opposite.": o,
        },
    )

    def neutral(answer: Callable) -> None:
        """strength 0, where the value must come out bit by bit"""
        value = _random(50, 8) * 10 ** _random(50, 1, seed=1)
        got = answer(value, lambda x: 3 * x + 1, 0.0)
        if not torch.equal(got, value):
            raise NotYet(answer.tried, "o itself", describe(got), "Strength 0 changes the value.")

    yield neutral


# --- 2. where the rest breaks ----------------------------------------------------------------------------------------


def breakdown_point(strengths: Sequence[float], values: Sequence[float], bar: float) -> float:
    """First strength, going up from 0, at which `values` fall below the bar; straight lines between; inf if never."""
    for i in range(1, len(strengths)):
        if values[i] < bar:
            share = (values[i - 1] - bar) / (values[i - 1] - values[i])
            return strengths[i - 1] + share * (strengths[i] - strengths[i - 1])
    return math.inf


@exercise(
    "amplitude.breakdown_point",
    reference=breakdown_point,
    hints=(
        "Walk outward from strength 0. What is the first strength that does not hold the bar, and what was before it?",
        "The line between the last good point (x0, y0) and the first bad one (x1, y1) meets the bar at the share "
        "(y0 - bar) / (y0 - y1) of the way. A curve that comes back later has broken all the same.",
        "Sketch: for i from 1 on: if values[i] < bar, return x0 plus the share times (x1 - x0). After the loop: "
        "math.inf.",
    ),
    expected="One number: a strength, or inf when the bar holds at all of them.",
)
def _check_breakdown_point() -> Iterator[Probe]:
    yield Probe(
        tried="accuracy 1.0, 0.9, 0.5 at strengths 0, 1, 3; bar 0.8",
        args=([0.0, 1.0, 3.0], [1.0, 0.9, 0.5], 0.8),
        expected=1.5,
        means="1.5: a quarter of the way from 1 to 3",
        diagnose={
            "This is the first strength that breaks the bar; the curve crosses it before.": 3.0,
            "This is the last strength that holds the bar; the curve crosses it after.": 1.0,
            "The crossing was looked for in the middle. Use how far each end is from the bar.": 2.0,
            "The share was taken from the wrong end.": 2.5,
            "This is an index. Return a strength.": 2,
            "The fall was set in relation to the bar. The share is (y0 - bar) / (y0 - y1).": lambda got: (
                abs(float(got) - (1 + 2 * 0.1 / 0.8)) < 1e-6
            ),
        },
    )
    yield Probe(
        tried="accuracy 1.0, 0.6, 1.0, 0.4 at strengths 0, 1, 2, 3; bar 0.8: it comes back and falls again",
        args=([0.0, 1.0, 2.0, 3.0], [1.0, 0.6, 1.0, 0.4], 0.8),
        expected=0.5,
        means="0.5: the first time",
        diagnose={
            "This is the last crossing. What breaks first and comes back has broken all the same.": 2.0 + 1 / 3,
            "The curve crosses upwards there. Look for the first fall.": 1.5,
        },
    )
    yield Probe(
        tried="accuracy 1.0, 0.9, 0.8 at strengths 0, 1, 2; bar 0.8",
        args=([0.0, 1.0, 2.0], [1.0, 0.9, 0.8], 0.8),
        expected=lambda got: got == math.inf,
        means="inf: a value on the bar still holds it",
        diagnose={
            "A value on the bar still holds it: broken means below.": 2.0,
            "Nothing breaks here. Return math.inf, and no strength.": lambda got: not got > 2,
        },
    )


# --- 3. clamp features ------------------------------------------------------------------------------------------------


def clamp_features(sae: SAE, x: Tensor, values: Mapping[int, float]) -> Tensor:
    """States x [..., d] with features set to values {j: number} in one encoding; the error x - x^ is kept."""
    a = sae.encode(x)
    changed = a.clone()
    for j, value in values.items():
        changed[..., j] = value
    return x + sae.decode(changed) - sae.decode(a)


class _ByHand:
    """Two features of three dimensions, read and written along the first two axes: a = max(x, 0)."""

    def encode(self, x: Tensor) -> Tensor:
        return x[..., :2].relu()

    def decode(self, a: Tensor) -> Tensor:
        return torch.cat([a, torch.zeros_like(a[..., :1])], -1)


def _small_sae() -> SAE:
    from mi_course.objects.sae import SAE

    return SAE(6, 10, "topk", k=3, seed=2).requires_grad_(False).eval()


@exercise(
    "amplitude.clamp_features",
    reference=clamp_features,
    hints=(
        "The state is reconstruction plus error. Which of the two may change, and by how much?",
        "Encode once. Write all values into a copy of the activations. The state moves by decode(new) - decode(old); "
        "everything that the SAE does not explain stays.",
        "Sketch: a = encode(x); new = a.clone(), with new[..., j] = value for each j; return x + decode(new) - "
        "decode(a).",
    ),
    expected="Tensor like x. A feature set to the value that it has changes nothing, whatever the SAE's error.",
)
def _check_clamp_features() -> Iterator[Probe | Callable]:
    x = torch.tensor([[3.0, 1.0, 5.0]])
    yield Probe(
        tried="an SAE with features along the axes 0 and 1; x = [3, 1, 5], feature 0 set to 2",
        args=(_ByHand(), x, {0: 2.0}),
        expected=torch.tensor([[2.0, 1.0, 5.0]]),
        means="[2, 1, 5]: axis 2, which the SAE does not explain, stays",
        diagnose={
            "This is the reconstruction with the new value: the error x - x^ was lost.": torch.tensor(
                [[2.0, 1.0, 0.0]]
            ),
            "The value was added to what the feature had. Clamping replaces it.": torch.tensor([[5.0, 1.0, 5.0]]),
            "The error was taken from the changed reconstruction, so nothing is left of the clamp.": x,
            "All other features were lost: start from a copy of the activations.": torch.tensor([[2.0, 0.0, 5.0]]),
        },
    )
    sae, x = _small_sae(), _random(2, 3, 6, seed=3)
    a = sae.encode(x)
    new = a.clone()
    new[..., 1], new[..., 4] = 3.0, 0.5
    right = x + sae.decode(new) - sae.decode(a)
    again = clamp_features(sae, clamp_features(sae, x, {1: 3.0}), {4: 0.5})
    added = x + 3.0 * sae.W_dec[1] + 0.5 * sae.W_dec[4]
    yield Probe(
        tried="a top-k SAE, random states of two prompts of three tokens, features 1 and 4 set to 3 and 0.5 at once",
        args=(sae, x, {1: 3.0, 4: 0.5}),
        expected=right,
        diagnose={
            "The features were set one after the other. The SAE then reads its own output, and finds other activations."
            " Encode once.": again,
            "Only the first feature was set.": clamp_features(sae, x, {1: 3.0}),
            "Only the last feature was set.": clamp_features(sae, x, {4: 0.5}),
            "The value was added to what the feature had. Clamping replaces it.": added,
            "This is the reconstruction with the new value: the error x - x^ was lost.": sae.decode(new),
        },
    )

    def nothing_new(answer: Callable) -> None:
        """a silent feature set to 0"""
        state = x[0, :1]
        j = int((sae.encode(state)[0] == 0).nonzero()[0])
        if not _near(got := answer(sae, state, {j: 0.0}), state):
            raise NotYet(answer.tried, "the state as it was", describe(got), "A clamp that changes no activation "
                         "changes the state: the error must be kept.")  # fmt: skip

    yield nothing_new


# --- 4. AurA ----------------------------------------------------------------------------------------------------------


def aura_factors(peaks: Tensor, toxic: Tensor) -> Tensor:
    """Factor of every neuron [m] from its peaks [n, m] in n texts: 1 - 2 (AUROC - 1/2) where AUROC > 1/2, else 1."""
    up, down = peaks[toxic], peaks[~toxic]
    larger = (up[:, None] > down[None]).float() + 0.5 * (up[:, None] == down[None])
    quality = larger.mean((0, 1))
    return (1 - 2 * (quality - 0.5)).clamp(max=1.0)


@exercise(
    "amplitude.aura_factors",
    reference=aura_factors,
    hints=(
        "How good is a neuron as a detector? AUROC is the chance that a toxic text has the larger value than a "
        "harmless one; ties count half (chapter 03).",
        "Compare every toxic text with every harmless one: up[:, None] > down[None] has the shape [n_toxic, "
        "n_harmless, m]. Its mean, with half of the ties, is the AUROC. The factor falls from 1 at 0.5 to 0 at 1.",
        "Sketch: quality as above; 1 - 2 (quality - 0.5); clamp(max=1), so that a neuron that detects the harmless "
        "texts is left alone.",
    ),
    expected="A tensor [m] within 0 ... 1: 0 for a perfect detector, 1 for every neuron that is no detector.",
)
def _check_aura_factors() -> Iterator[Probe]:
    toxic = torch.tensor([True, True, False, False])
    yield Probe(
        tried="peaks of one neuron: 3 and 2 in toxic texts, 1 and 0 in others",
        args=(torch.tensor([[3.0], [2.0], [1.0], [0.0]]), toxic),
        expected=torch.tensor([0.0]),
        means="[0]: a perfect detector is switched off",
        diagnose={
            "This is the AUROC. A perfect detector has AUROC 1 and factor 0.": torch.tensor([1.0]),
            "The excess AUROC - 0.5 must be doubled, or a perfect detector keeps half of its value.": torch.tensor(
                [0.5]
            ),
            "The roles of the two groups are swapped.": torch.tensor([2.0]),
        },
    )
    values = torch.tensor([[3.0, 0.0, 1.0, 2.0], [1.0, 0.0, 1.0, 0.0], [2.0, 1.0, 1.0, 0.0], [0.0, 2.0, 1.0, 0.0]])
    right = torch.tensor([0.5, 1.0, 1.0, 0.5])  # AUROC 3/4, 0, 1/2, 3/4 (with ties)
    yield Probe(
        tried="four neurons with AUROC 0.75, 0, 0.5 (all equal) and 0.75 (three ties)",
        args=(values, toxic),
        expected=right,
        means="[0.5, 1, 1, 0.5]",
        diagnose={
            "Neurons with an AUROC below 0.5 are amplified here. AurA leaves them alone: at most 1.": torch.tensor(
                [0.5, 2.0, 1.0, 0.5]
            ),
            "Neurons that detect the harmless texts are scaled down too. AurA leaves AUROC < 0.5 alone.": torch.tensor(
                [0.5, 0.0, 1.0, 0.5]
            ),
            "Ties were not counted. Each counts half.": torch.tensor([0.5, 1.0, 1.0, 1.0]),
            "Ties were counted whole. Each counts half.": torch.tensor([0.5, 1.0, 0.0, 0.0]),
            "Experts were switched off altogether (that is Det0). AurA scales each by its quality.": torch.tensor(
                [0.0, 1.0, 1.0, 0.0]
            ),
            "The excess AUROC - 0.5 must be doubled, or a perfect detector keeps half of its value.": torch.tensor(
                [0.75, 1.0, 1.0, 0.75]
            ),
            "This is the AUROC itself.": torch.tensor([0.75, 0.0, 0.5, 0.75]),
        },
    )
    peaks, labels = _random(30, 6, seed=4), torch.arange(30) < 11
    peaks[labels] += torch.linspace(-2, 3, 6)
    ranks = peaks.argsort(0).argsort(0) + 1.0  # no ties here: Mann and Whitney's count
    quality = (ranks[labels].sum(0) - 11 * 12 / 2) / (11 * 19)
    yield Probe(
        tried="11 toxic and 19 other texts, six neurons",
        args=(peaks, labels),
        expected=(2 - 2 * quality).clamp(max=1.0),
        diagnose={
            "The roles of the two groups are swapped.": (2 * quality).clamp(max=1.0),
            "Neurons with an AUROC below 0.5 are amplified here. AurA leaves them alone: at most 1.": 2 - 2 * quality,
        },
    )


# --- 5. a detector ----------------------------------------------------------------------------------------------------


def fit_detector(positive: Tensor, negative: Tensor, false_alarms: float) -> tuple[Tensor, float]:
    """Unit direction [d] from the negative to the positive mean, and a threshold that this share of negatives exceeds.

    positive, negative [n, d].
    """
    direction = positive.mean(0) - negative.mean(0)
    direction = direction / direction.norm()
    return direction, (negative @ direction).quantile(1 - false_alarms).item()


@exercise(
    "amplitude.fit_detector",
    reference=fit_detector,
    hints=(
        "Two questions: along which direction do the two groups differ, and how far along it must a prompt lie?",
        "Direction: the difference of the means, divided by its length. Then every negative has one number, its dot "
        "product with the direction. The share `false_alarms` of these may lie above the threshold.",
        "Sketch: d = mean of positive - mean of negative, over its norm; threshold = (negative @ d).quantile(1 - "
        "false_alarms); return d and threshold.item().",
    ),
    expected="A pair: direction [d] of length 1, and the threshold as a number.",
)
def _check_fit_detector() -> Iterator[Probe | Callable]:
    positive = torch.tensor([[4.0, 3.0], [6.0, 3.0]])
    negative = torch.tensor([[0.0, 4.0], [1.0, 2.0], [2.0, 3.0], [3.0, 4.0], [-1.0, 2.0]])
    e = torch.tensor([1.0, 0.0])
    yield Probe(
        tried="positives [4, 3], [6, 3]; negatives [0, 4], [1, 2], [2, 3], [3, 4], [-1, 2]; false_alarms 0.25",
        args=(positive, negative, 0.25),
        expected=lambda got: len(got) == 2 and _near(got[0], e) and 2 - 1e-4 < got[1] < 3 - 1e-4,
        means="direction [1, 0], threshold 2 (or up to 3): of the five negatives only [3, 4] lies above",
        diagnose={
            "The direction must have length 1, or the threshold is in other units.": lambda got: (
                abs(float(got[0].norm()) - 4) < 1e-3
            ),
            "The direction points at the negatives: positive minus negative.": lambda got: _near(got[0], -e),
            "The quantile was taken from the wrong end: 1 - false_alarms of the negatives lie below.": (e, 0.0),
            "The threshold lies half way between the means; here the negatives' own distribution decides.": (e, 3.0),
            "The threshold was taken from the positives. False alarms are negatives that fire.": lambda got: got[1] > 4,
        },
    )

    def rates(answer: Callable) -> None:
        """two clouds of 400 random states that overlap"""
        a, b = _random(400, 5, seed=5) + torch.tensor([2.0, 1, 0, 0, 0]), _random(400, 5, seed=6) - 1.0
        for wanted in (0.02, 0.1):
            direction, threshold = answer(a, b, wanted)
            right = torch.nn.functional.normalize(a.mean(0) - b.mean(0), dim=0)
            if not _near(direction, right):
                likely = (
                    "The direction is that from the mean of the negatives to the mean of the positives, of length 1."
                )
                raise NotYet(answer.tried, describe(right), describe(direction), likely)
            rate = float((b @ direction > threshold).float().mean())
            if abs(rate - wanted) > 0.005:
                raise NotYet(
                    answer.tried,
                    f"false alarms {wanted}",
                    f"{rate:.3f}",
                    "The share of negatives above the threshold is not what was asked for.",
                )

    yield rates


# --- 6. an attention edge ---------------------------------------------------------------------------------------------


def cut_edge(pattern: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """The pattern [n, H, T, T] with what `queries` read from `keys` (bool [n, T]) at 0 and the rest shared anew."""
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    left = pattern.masked_fill(pairs, 0.0)
    return left / left.sum(-1, keepdim=True).clamp_min(1e-9)


@exercise(
    "amplitude.cut_edge",
    reference=cut_edge,
    hints=(
        "Which entries go? Row: who reads. Column: what is read. And what must every row of a pattern add up to?",
        "pairs = queries[:, None, :, None] & keys[:, None, None, :] marks the entries, [n, 1, T, T]. After they are "
        "set to 0, divide every row by its sum over the keys (the last axis).",
        "Sketch: left = masked_fill(pairs, 0); left / left.sum(-1, keepdim=True), with the sum kept above a tiny "
        "number such as 1e-9, for a query that has nothing left.",
    ),
    expected="Tensor like the pattern. Rows add up to 1, except for queries that have no key left: these read nothing.",
)
def _check_cut_edge() -> Iterator[Probe]:
    p = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])[None, None]
    last, middle = torch.tensor([[False, False, True]]), torch.tensor([[False, True, False]])

    def rows(*values):
        return torch.tensor(values)[None, None]

    head = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]
    yield Probe(
        tried="one head, three tokens, last row [0.2, 0.2, 0.6]: the last query must not read key 1",
        args=(p, last, middle),
        expected=rows(*head, [0.25, 0.0, 0.75]),
        means="last row [0.25, 0, 0.75]",
        diagnose={
            "The row no longer adds up to 1: what was cut must be shared among the other keys.": rows(
                *head, [0.2, 0.0, 0.6]
            ),
            "Query and key are swapped: rows are queries, columns keys.": p,
            "All queries lost the key. Only those in `queries` must.": lambda got: _near(
                got, rows([1.0, 0, 0], [1.0, 0, 0], [0.25, 0, 0.75])
            ),
            "The columns were made to add up to 1. It is the rows.": lambda got: (
                got.shape == p.shape and abs(float(got[0, 0, :, 2].sum()) - 1) < 1e-4
            ),
            "A second softmax was taken. The pattern is past the softmax: divide by the sum.": lambda got: (
                got.shape == p.shape and float(got[0, 0, 0, 2]) > 0.05
            ),
            "Everything that the query reads is gone.": rows(*head, [0.0, 0.0, 0.0]),
            "The rest was shared equally. It keeps its proportions.": rows(*head, [0.3, 0.0, 0.7]),
        },
    )
    first = torch.tensor([[True, False, False]])
    yield Probe(
        tried="the first query must not read the first key, the only one that it has",
        args=(p, first, first),
        expected=rows([0.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.2, 0.6]),
        means="a row of zeros: there is nothing left to read",
        diagnose={
            "0 / 0: a query with no key left must read nothing. Keep the sum above a tiny number.": lambda got: bool(
                got.isnan().any()
            ),
        },
    )
    pattern = _random(2, 3, 4, 4, seed=7).tril().masked_fill(torch.ones(4, 4).triu(1).bool(), -torch.inf).softmax(-1)
    queries = torch.tensor([[False, False, True, True], [False, True, False, True]])
    keys = torch.tensor([[True, True, False, False], [True, False, False, False]])
    right = pattern.clone()
    for n in range(2):
        for q in queries[n].nonzero()[:, 0]:
            right[n, :, q, keys[n]] = 0
            right[n, :, q] /= right[n, :, q].sum(-1, keepdim=True)
    yield Probe(
        tried="two prompts of four tokens, three heads; each prompt has its own queries and keys",
        args=(pattern, queries, keys),
        expected=right,
        diagnose={
            "Only one head was changed, or one prompt's masks were used for all.": lambda got: (
                got.shape == right.shape and not _near(got, right)
            ),
        },
    )


# --- 7. skipped layers ------------------------------------------------------------------------------------------------


def skip_layers(layers: Sequence[int]) -> list:
    """Edits for `mi.intervene` after which x^(l+1) = x^l for every layer l of the list."""
    import mi_course as mi

    return [mi.zero([f"attn{layer}.write", f"mlp{layer}.write"]) for layer in layers]


@exercise(
    "amplitude.skip_layers",
    reference=skip_layers,
    hints=(
        "x^(l+1) = x^l + what attention writes + what the FFN writes. When are the two states equal?",
        "Two writes per layer must be zero: the sites attn2.write and mlp2.write for layer 2. Setting the state x2 or "
        "x3 to zero would delete all that came before.",
        'Sketch: for every layer, mi.zero([f"attn{l}.write", f"mlp{l}.write"]); return the list.',
    ),
    expected="A list of edits. Under them the model's logits are those of a model that was built without these layers.",
)
def _check_skip_layers() -> Iterator[Probe]:
    import mi_course as mi

    model, prompts = _three_layers()
    parts = {"attention": "attn{}.write", "FFN": "mlp{}.write"}

    def logits(edits) -> Tensor:
        with mi.intervene(model, *edits):
            return model(prompts)

    def flat(edits, tried: str) -> list:
        if not isinstance(edits, (list, tuple)) or not all(hasattr(edit, "taps") for edit in edits):
            likely = "Return a plain list of edits, as mi.zero makes them."
            raise NotYet(tried, "a list of edits", describe(edits), likely)
        return list(edits)

    for layers in ([1], [0, 2]):
        short = _without(model, layers)
        yield Probe(
            tried=f"a random GPT-2 of three layers, without layers {layers}: its logits",
            run=lambda answer, layers=layers: logits(flat(answer(list(layers)), answer.tried)),
            expected=short,
            means="the logits of the same model with these blocks taken out",
            diagnose={
                "Only the attention was taken out; the FFN still writes.": logits(
                    [mi.zero(parts["attention"].format(layer)) for layer in layers]
                ),
                "Only the FFN was taken out; attention still writes.": logits(
                    [mi.zero(parts["FFN"].format(layer)) for layer in layers]
                ),
                "The state was set to zero: all that came before is gone as well.": lambda got, layers=layers: any(
                    _near(got, logits([mi.zero(f"x{layer + shift}") for layer in layers])) for shift in (0, 1)
                ),
                "The layers below were skipped, too.": logits(skip_layers(range(max(layers) + 1))),
                "Nothing was changed. Return the edits; the check applies them.": model(prompts),
                "The wrong layers were skipped: layers count from 0.": lambda got, layers=layers: any(
                    _near(got, logits(skip_layers([(layer + shift) % 3 for layer in layers]))) for shift in (1, 2)
                ),
            },
        )


def _three_layers() -> tuple[Model, list]:
    import transformers

    import mi_course as mi

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=12, n_layer=3, n_head=2, n_inner=10, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    g = torch.Generator().manual_seed(0)
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.5)
    return mi.wrap(hf), [[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]]


@torch.no_grad()
def _without(model: Model, layers: Sequence[int]) -> Tensor:
    """Logits of the blocks that are left, called one after the other without any hook."""
    body, ids = model.body, model.tokenize([[3, 4, 5, 6, 7], [9, 8, 7, 6, 5]]).ids
    x = body.wte(ids) + body.wpe(torch.arange(ids.shape[1]))
    causal = torch.full((ids.shape[1],) * 2, torch.finfo(x.dtype).min).triu(1)[None, None]
    for layer, block in enumerate(body.h):
        if layer not in layers:
            out = block(x, attention_mask=causal)
            x = out[0] if isinstance(out, tuple) else out
    return model.hf.lm_head(body.ln_f(x))
