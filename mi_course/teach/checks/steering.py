"""Chapter 15, Side effects and the choice of a method: checks of its exercises.

Breakdown point of a dose-response curve, matched random objects, the loss of what was generated, one score from three,
a strength chosen on validation data, a foretold KL, and the methods that nothing else beats. Functions without an
underscore are the references that the chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


# --- 1. breakdown -----------------------------------------------------------------------------------------------------


def breakdown(strengths: Tensor, damage: Tensor, bar: float) -> float:
    """The first strength at which the damage passes the bar, on straight lines between the strengths; inf if never."""
    for i in range(1, len(damage)):
        if damage[i] > bar:
            share = (bar - damage[i - 1]) / (damage[i] - damage[i - 1])
            return float(strengths[i - 1] + share * (strengths[i] - strengths[i - 1]))
    return math.inf


@exercise(
    "steering.breakdown",
    reference=breakdown,
    hints=(
        "Walk outward from strength 0. Between which two neighbours does the damage pass the bar for the first time?",
        "Between the last good point (x0, y0) and the first bad one (x1, y1) take a straight line. At which x is it at "
        "the height of the bar?",
        "Sketch: for i in 1, 2, ...: if damage[i] > bar: share = (bar - damage[i-1]) / (damage[i] - damage[i-1]); "
        "return strengths[i-1] + share * (strengths[i] - strengths[i-1]). After the loop: math.inf.",
    ),
    expected="A strength between two of those tried, or inf when the bar holds at all of them. A curve that comes back "
    "later has broken all the same.",
)
def _check_breakdown() -> Iterator[Probe | Callable]:
    yield Probe(
        tried="strengths [0, 1, 2], damage [0, 0, 0.4], bar 0.1: a quarter of the way from 1 to 2",
        args=(_numbers(0, 1, 2), _numbers(0, 0, 0.4), 0.1),
        expected=1.25,
        diagnose={
            "This is the first strength that is too much. The bar was passed before it: draw the straight line.": 2.0,
            "This is the last strength that was good. The bar is passed after it: draw the straight line.": 1.0,
            "This is the share of the way. Add the strength where it starts.": 0.25,
            "The share was measured from the far end.": 1.75,
        },
    )
    yield Probe(
        tried="strengths [0, 1, 3], damage [0.02, 0.05, 0.2], bar 0.1: unequal steps, and damage before the last step",
        args=(_numbers(0, 1, 3), _numbers(0.02, 0.05, 0.2), 0.1),
        expected=1 + 2 * 0.05 / 0.15,
        diagnose={
            "Multiply the share by the length of the step, which is not always 1.": 1 + 0.05 / 0.15,
            "The line starts at the damage of the last good strength, not at 0.": 2.0,
            "This is the line from strength 0 straight to the bad point. Start at its neighbour.": 3 * 0.08 / 0.18,
        },
    )
    yield Probe(
        tried="damage [0, 0.3, 0, 0.2] at strengths [0, 1, 2, 3], bar 0.1: it breaks, recovers and breaks again",
        args=(_numbers(0, 1, 2, 3), _numbers(0, 0.3, 0, 0.2), 0.1),
        expected=1 / 3,
        diagnose={"This is the last time that the bar is passed. A steer has broken at the first.": 2.5},
    )
    yield Probe(
        tried="damage [0, 0.125, 0.0625], bar 0.125: the bar is reached and not passed",
        args=(_numbers(0, 1, 2), _numbers(0, 0.125, 0.0625), 0.125),
        expected=lambda got: got == math.inf,
        means="inf: no strength tried does too much",
        diagnose={
            "On the bar is still good. Only what is larger than the bar breaks it.": 1.0,
            "Return math.inf where no strength breaks the bar; None or the last strength would look like a number of "
            "its own.": lambda got: got is None or math.isfinite(got),
        },
    )
    yield Probe(
        tried="damage [0, 0.5] at strengths [0, 4], bar 0.5 and bar 0.25",
        run=lambda answer: (
            answer(_numbers(0, 4), _numbers(0, 0.5), 0.5),
            answer(_numbers(0, 4), _numbers(0, 0.5), 0.25),
        ),
        expected=lambda got: got[0] == math.inf and abs(got[1] - 2) < 1e-4,
        means="(inf, 2.0)",
    )


# --- 2. a matched random change ---------------------------------------------------------------------------------------


def random_change(delta: Tensor, seed: int) -> Tensor:
    """Random numbers where delta [a, b] is not zero, scaled to the norm of delta."""
    r = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)) * (delta != 0)
    return r * delta.norm() / r.norm()


@exercise(
    "steering.random_change",
    reference=random_change,
    hints=(
        "A control must be like the real thing in all but what is tested. Here: the same number of weights, in the "
        "same places, with the same total size.",
        "Draw normal numbers from a generator with the seed, set them to zero where delta is zero, and then scale.",
        "Sketch: r = torch.randn(delta.shape, generator=torch.Generator().manual_seed(seed)) * (delta != 0); return "
        "r * delta.norm() / r.norm().",
    ),
    expected="A tensor in the shape of delta, zero exactly where delta is, as long as delta, and unrelated to it. The "
    "same seed gives the same tensor.",
)
def _check_random_change() -> Iterator[Probe | Callable]:
    delta = torch.zeros(6, 5)
    delta[1:4, 2] = _numbers(3.0, -4.0, 12.0)

    def of_its_size(answer: Callable) -> None:
        """a change of three weights in one column of a 6 x 5 matrix, norm 13"""
        r = answer(delta, 0)
        if not isinstance(r, Tensor) or r.shape != delta.shape:
            got = f"{type(r).__name__} {list(getattr(r, 'shape', []))}"
            raise NotYet(answer.tried, "a tensor of shape [6, 5]", got, "Return one tensor in the shape of delta.")
        if r.dtype != delta.dtype:
            likely = f"The dtype is {str(r.dtype).removeprefix('torch.')}; keep that of delta, float32."
            raise NotYet(answer.tried, "float32 numbers", str(r.dtype), likely)
        if not torch.equal(r != 0, delta != 0):
            n = int((r != 0).sum())
            likely = (
                "Weights outside the change moved, too. Multiply by (delta != 0)."
                if n > 3
                else "It must move the same weights as delta, no fewer."
            )
            raise NotYet(answer.tried, "non-zero exactly where delta is", f"{n} numbers that are not zero", likely)
        if abs(float(r.norm()) - 13) > 1e-3:
            likely = "Scale it to the norm of delta."
            full = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
            if abs(float(r.norm()) - 13 * float((full * (delta != 0)).norm() / full.norm())) < 1e-2:
                likely = "It was scaled before the zeros were put in, which takes length away. Mask first, then scale."
            elif abs(float(r.norm()) - 1) < 1e-3:
                likely = "This has length 1. Multiply by the norm of delta."
            raise NotYet(answer.tried, "norm 13", f"norm {float(r.norm()):.3f}", likely)

    def unrelated(answer: Callable) -> None:
        """a change of 3,000 weights: is the random one unrelated to it, and normal in its values?"""
        big = torch.rand(60, 50, generator=torch.Generator().manual_seed(5)) + 0.5
        r = answer(big, 1)
        cosine = float(torch.cosine_similarity(r.flatten(), big.flatten(), dim=0))
        if abs(cosine) > 0.1:
            likely = (
                "Numbers of one sign point along delta, whose entries here are all positive. Draw from a normal "
                "distribution."
                if abs(abs(cosine) - 0.93) > 0.06
                else "Its direction is that of delta: shuffling or rescaling a one-sided delta leaves it one-sided."
            )
            raise NotYet(answer.tried, "a cosine with delta near 0", f"{cosine:.2f}", likely)
        if float(r.abs().std()) < 0.3 * float(r.norm()) / 3000**0.5:
            raise NotYet(
                answer.tried, "sizes that differ, as normal numbers do", "all of one size",
                "Random signs on equal sizes are no random direction: draw normal numbers.",
            )  # fmt: skip

    def seeded(answer: Callable) -> None:
        """the same seed twice, and another seed"""
        a, b, c = answer(delta, 3), answer(delta, 3), answer(delta, 4)
        if not torch.equal(a, b):
            likely = "Draw from a generator with the seed: torch.Generator().manual_seed(seed)."
            raise NotYet(answer.tried, "the same tensor for the same seed", "two different ones", likely)
        if torch.equal(a, c):
            raise NotYet(answer.tried, "another tensor for another seed", "the same one", "The seed is not used.")

    yield of_its_size
    yield unrelated
    yield seeded


# --- 3. the loss of what was generated --------------------------------------------------------------------------------


def answer_loss(logits: Tensor, ids: Tensor, n: int) -> float:
    """Mean -log p of the last n tokens of ids [T], from logits [T, V]; row t of the logits predicts token t + 1."""
    log_p = logits.log_softmax(-1)[:-1]
    losses = -log_p.gather(1, ids[1:, None])[:, 0]
    return float(losses[-n:].mean())


@exercise(
    "steering.answer_loss",
    reference=answer_loss,
    hints=(
        "The logits at a position are about the token that comes next. Which row of the logits predicts the first "
        "token of the answer?",
        "Pair row t of the log-softmax with token t + 1, which leaves T - 1 losses, and keep the last n of them.",
        "Sketch: log_p = logits.log_softmax(-1)[:-1]; losses = -log_p.gather(1, ids[1:, None])[:, 0]; the mean of the "
        "last n.",
    ),
    expected="Nats per token of the answer: 0 when the model is sure of every token, log V when it knows nothing.",
)
def _check_answer_loss() -> Iterator[Probe | Callable]:
    V = 8
    ids = torch.tensor([0, 3, 5, 2, 7])
    sure = torch.zeros(5, V)
    sure[torch.arange(4), ids[1:]] = 50.0

    yield Probe(
        tried="five tokens, of which the last three are the answer; the model is sure of every next token",
        args=(sure, ids, 3),
        expected=0.0,
        diagnose={
            "Row t of the logits predicts token t + 1. Here every row was compared with its own token.": lambda got: (
                float(got) > 10
            ),
            "These are logits as they are. Take the log-softmax first.": -50.0,
            "This is the mean probability. Take the mean of -log p.": 1.0,
        },
    )
    uneven = torch.zeros(5, V)
    uneven[1, 5] = math.log(7.0)  # p = 1/2 for the first token of the answer
    uneven[2, 2] = math.log(21.0)  # p = 3/4
    losses = [math.log(8), math.log(2), math.log(4 / 3), math.log(8)]
    yield Probe(
        tried="a model that gives the answer's tokens the probabilities 1/2, 3/4 and 1/8",
        args=(uneven, ids, 3),
        expected=sum(losses[1:]) / 3,
        diagnose={
            "The tokens of the prompt were counted, too. Only the last n tokens are the answer.": sum(losses) / 4,
            "This is a sum. Divide by n, so that long and short answers compare.": sum(losses[1:]),
            "The loss is minus the log-probability.": -sum(losses[1:]) / 3,
            "These are logits as they are. Take the log-softmax first.": -(math.log(7) + math.log(21)) / 3,
            "This is the mean probability. Take the mean of -log p.": (1 / 2 + 3 / 4 + 1 / 8) / 3,
            "The first token of the answer is missing.": sum(losses[2:]) / 2,
            "This counts one token too many.": sum(losses) / 3,
        },
    )
    yield Probe(
        tried="the same with n = 1",
        args=(uneven, ids, 1),
        expected=math.log(8),
    )
    yield Probe(
        tried="all logits equal: the model knows nothing",
        args=(torch.full((5, V), 3.0), ids, 2),
        expected=math.log(8),
        means="log 8, whatever the logits are",
    )


# --- 4. one score -----------------------------------------------------------------------------------------------------


def score(before: float, after: float, kept: float, fluent: float) -> float:
    """Harmonic mean of the gain, what is kept and fluency; gain = the share of what was missing, at least 0."""
    gain = max(0.0, (after - before) / (1 - before))
    parts = (gain, kept, fluent)
    return 0.0 if min(parts) == 0 else 3 / sum(1 / part for part in parts)


@exercise(
    "steering.score",
    reference=score,
    hints=(
        "First the gain: of what was missing, 1 - before, which share is there now? Doing nothing must give 0, and so "
        "must making it worse.",
        "The harmonic mean of three numbers is three over the sum of their inverses. What is it when one of them is 0?",
        "Sketch: gain = max(0, (after - before) / (1 - before)); 0 if any of the three is 0; else "
        "3 / (1/gain + 1/kept + 1/fluent).",
    ),
    expected="1 for a steer that does all and breaks nothing, 0 for one that gains nothing or leaves nothing. One bad "
    "part cannot be made up for by two good ones.",
)
def _check_score() -> Iterator[Probe | Callable]:
    yield Probe(
        tried="before 0, after 0.5, kept 1, fluent 0.5",
        args=(0.0, 0.5, 1.0, 0.5),
        expected=0.6,
        diagnose={
            "This is the plain mean. The harmonic mean is 3 / (1/a + 1/b + 1/c).": 2 / 3,
            "This is the product. The harmonic mean is 3 / (1/a + 1/b + 1/c).": 0.25,
            "This is the geometric mean. The harmonic mean is 3 / (1/a + 1/b + 1/c).": 0.25 ** (1 / 3),
            "This is 1 over the sum of inverses. There are three parts: 3 over it.": 0.2,
            "This is the smallest part.": 0.5,
        },
    )
    yield Probe(
        tried="before 0.5, after 0.75, kept 1, fluent 1: half of what was missing",
        args=(0.5, 0.75, 1.0, 1.0),
        expected=0.75,
        diagnose={
            "This uses `after` itself. A behaviour that was half there already would be half a success of everyone.": (
                3 / (1 / 0.75 + 2)
            ),
            "This uses after - before. Divide by what was missing, 1 - before.": 3 / (4 + 2),
        },
    )
    yield Probe(
        tried="doing nothing: before 0.3, after 0.3, kept 1, fluent 1",
        args=(0.3, 0.3, 1.0, 1.0),
        expected=0.0,
        diagnose={"Nothing was gained, so the score is 0.": lambda got: float(got) > 0},
    )
    yield Probe(
        tried="making it worse: before 0.3, after 0.1, kept 1, fluent 1",
        args=(0.3, 0.1, 1.0, 1.0),
        expected=0.0,
        diagnose={"A loss is no negative gain here. The least gain is 0.": lambda got: float(got) != 0},
    )
    yield Probe(
        tried="a steer that leaves nothing elsewhere: before 0, after 1, kept 0, fluent 1",
        args=(0.0, 1.0, 0.0, 1.0),
        expected=0.0,
        diagnose={"With one part at 0 the score is 0: no other part can make up for it.": lambda got: float(got) > 0},
    )
    yield Probe(
        tried="gains nothing and leaves nothing: before 0, after 0, kept 0, fluent 1",
        args=(0.0, 0.0, 0.0, 1.0),
        expected=0.0,
    )
    yield Probe(
        tried="a steer after which the model writes nonsense: before 0, after 1, kept 1, fluent 0",
        args=(0.0, 1.0, 1.0, 0.0),
        expected=0.0,
    )
    yield Probe(
        tried="before 0.2, after 0.6, kept 0.9, fluent 0.8",
        args=(0.2, 0.6, 0.9, 0.8),
        expected=3 / (1 / 0.5 + 1 / 0.9 + 1 / 0.8),
    )


# --- 5. the strength --------------------------------------------------------------------------------------------------


def choose_strength(validation: Mapping[float, float], test: Mapping[float, float]) -> tuple[float, float]:
    """(the strength with the best validation score, its score on test); of equal ones the weakest."""
    best = max(validation, key=lambda s: (validation[s], -abs(s)))
    return best, test[best]


@exercise(
    "steering.choose_strength",
    reference=choose_strength,
    hints=(
        "Which of the two tables may you look at before you have decided?",
        "Find the key of the largest value in `validation`. Among equal values take the strength nearest to 0: it does "
        "least.",
        "Sketch: best = max(validation, key=lambda s: (validation[s], -abs(s))); return best, test[best].",
    ),
    expected="A pair: the strength that validation chose, and what that strength reaches on test, even where another "
    "strength would have done better there.",
)
def _check_choose_strength() -> Iterator[Probe | Callable]:
    yield Probe(
        tried="validation {0.5: 0.6, 1: 0.9, 2: 0.7}, test {0.5: 0.5, 1: 0.8, 2: 0.95}",
        args=({0.5: 0.6, 1.0: 0.9, 2.0: 0.7}, {0.5: 0.5, 1.0: 0.8, 2.0: 0.95}),
        expected=(1.0, 0.8),
        diagnose={
            "The strength was chosen on the test data. What it reaches there is then no test any more.": (2.0, 0.95),
            "The strength is right, but the best score on test belongs to another one. Report what the chosen strength "
            "reaches.": (1.0, 0.95),
            "The strength is right, but this is its validation score, which was the reason to choose it and is "
            "flattered. Report the test score.": (1.0, 0.9),
            "The order is (strength, score on test).": (0.8, 1.0),
            "Sums or means of both tables still let the test data choose.": lambda got: got[0] == 2.0,
            "This is the worst strength.": (0.5, 0.5),
        },
    )
    yield Probe(
        tried="validation {4: 0.9, 1: 0.9, -2: 0.9, 0: 0.1}: three equal strengths",
        args=({4.0: 0.9, 1.0: 0.9, -2.0: 0.9, 0.0: 0.1}, {4.0: 0.1, 1.0: 0.2, -2.0: 0.3, 0.0: 0.4}),
        expected=(1.0, 0.2),
        diagnose={
            "Of equal strengths take the weakest, here 1, whatever their order in the table.": (4.0, 0.1),
            "Weak means near 0: -2 is stronger than 1.": (-2.0, 0.3),
        },
    )
    yield Probe(
        tried="validation {1: 0.2, -0.5: 0.2}",
        args=({1.0: 0.2, -0.5: 0.2}, {1.0: 0.7, -0.5: 0.6}),
        expected=(-0.5, 0.6),
        diagnose={"Weak means near 0: compare sizes, without the sign.": (1.0, 0.7)},
    )


# --- 6. a foretold KL -------------------------------------------------------------------------------------------------


def foretold_kl(base: Tensor, slightly: Tensor, step: float) -> Tensor:
    """KL to expect at strength 1, from log-probabilities [..., V] at strength 0 and `step`: 1/2 sum p slope^2."""
    slope = (slightly - base) / step
    return (base.exp() * slope.square()).sum(-1) / 2


@exercise(
    "steering.foretold_kl",
    reference=foretold_kl,
    hints=(
        "How fast does each log-probability begin to move? That is a slope: change over step.",
        "Near 0 the KL is a parabola. Its height at strength 1 is half the mean of the squared slopes, weighted by the "
        "probabilities of the unsteered model.",
        "Sketch: slope = (slightly - base) / step; (base.exp() * slope.square()).sum(-1) / 2.",
    ),
    expected="One number per position, never negative: 0 where the steer does not move the distribution, and four "
    "times as much for a steer of twice the size.",
)
def _check_foretold_kl() -> Iterator[Probe | Callable]:
    base = _numbers(0.5, 0.25, 0.25).log()
    slope = _numbers(0.0, 2.0, -2.0)

    yield Probe(
        tried="probabilities [1/2, 1/4, 1/4], whose logs move by 0, +0.2, -0.2 in a step of 0.1",
        args=(base, base + 0.1 * slope, 0.1),
        expected=1.0,
        diagnose={
            "Half of it: near 0 the KL is 1/2 times the mean squared slope.": 2.0,
            "This is the mean over words with equal weights. Weight by the probabilities.": 4 / 3,
            "This is the sum over words without weights. Weight by the probabilities.": 4.0,
            "The change was not divided by the step.": 0.01,
            "The square is missing, and up and down cancel.": 0.0,
            "The squares are of changes; divide by the step twice.": 0.1,
            "Weigh by the probabilities, base.exp(), not by their logs.": lambda got: float(got) < 0,
            "This is the KL at `step`, not at strength 1. It grows with the square of the strength.": 0.0101,
        },
        tolerance=1e-3,
    )
    two = torch.stack([base, _numbers(1 / 3, 1 / 3, 1 / 3).log()])
    moved = two + 0.05 * torch.stack([slope, torch.zeros(3)])
    yield Probe(
        tried="two positions, the second of which does not move; step 0.05",
        args=(two, moved, 0.05),
        expected=_numbers(1.0, 0.0),
        diagnose={"One number per position: sum over words only.": lambda got: torch.as_tensor(got).dim() == 0},
        tolerance=1e-3,
    )

    def like_the_kl(answer: Callable) -> None:
        """a random distribution over 50 words that moves a little: against the KL itself, at two sizes"""
        generator = torch.Generator().manual_seed(0)
        logits, direction = torch.randn(2, 50, generator=generator, dtype=torch.float64)
        base = logits.log_softmax(-1)
        slightly = (logits + 1e-4 * direction).log_softmax(-1)
        for size in (0.02, 0.04):
            there = (logits + size * direction).log_softmax(-1)
            kl = float((base.exp() * (base - there)).sum())
            got = float(answer(base, slightly, 1e-4)) * size**2
            if abs(got - kl) > 0.1 * kl:
                raise NotYet(
                    answer.tried, f"about {kl:.2e} at strength {size}", f"{got:.2e}",
                    "Use the slopes of the log-probabilities, weighted by the base's probabilities.",
                )  # fmt: skip

    yield like_the_kl


# --- 7. reading the table ---------------------------------------------------------------------------------------------


def unbeaten(table: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the rows (score, cost) that no other row beats, by rising cost.

    A row is beaten by one that is at least as good in both and better in one.
    """

    def beats(a, b):
        return a[0] >= b[0] and a[1] <= b[1] and a != b

    names = [name for name, row in table.items() if not any(beats(other, row) for other in table.values())]
    return sorted(names, key=lambda name: table[name][1])


@exercise(
    "steering.unbeaten",
    reference=unbeaten,
    hints=(
        "When is there no reason to take a method? When another one costs no more, scores no less, and is better in "
        "one of the two.",
        "Compare each row with every other: it is beaten if some other has score >= and cost <=, and the two rows are "
        "not equal.",
        "Sketch: keep a name if no other row satisfies o[0] >= r[0] and o[1] <= r[1] and o != r; sort the kept names "
        "by their cost.",
    ),
    expected="Names, cheapest first. With each step the score rises too; everything else in the table is beaten by one "
    "of them.",
)
def _check_unbeaten() -> Iterator[Probe | Callable]:
    table = {
        "tuning": (0.95, 10.0),
        "vector": (0.7, 1.0),
        "slow": (0.6, 5.0),
        "nothing": (0.0, 0.0),
        "dear": (0.95, 30.0),
    }
    yield Probe(
        tried="five methods as (score, cost): tuning (0.95, 10), vector (0.7, 1), slow (0.6, 5), nothing (0, 0), dear "
        "(0.95, 30)",
        args=(table,),
        expected=["nothing", "vector", "tuning"],
        diagnose={
            "Only the best score was kept. A cheaper method with a lower score has its place, too.": lambda got: (
                list(got) in (["tuning"], ["tuning", "dear"], ["dear", "tuning"])
            ),
            "Sort by cost, the cheapest first.": lambda got: sorted(got) == ["nothing", "tuning", "vector"],
            "`dear` scores no more than `tuning` and costs three times as much: equal scores do not protect it.": (
                lambda got: "dear" in got
            ),
            "`slow` is beaten by `vector`, which is better and cheaper.": lambda got: "slow" in got,
            "`nothing` costs nothing: nobody beats it on cost.": lambda got: "nothing" not in got,
        },
    )
    yield Probe(
        tried="two equal methods a (0.5, 1) and b (0.5, 1), and c (0.4, 1)",
        args=({"c": (0.4, 1.0), "a": (0.5, 1.0), "b": (0.5, 1.0)},),
        expected=lambda got: sorted(got) == ["a", "b"],
        means="a and b, in any order",
        diagnose={
            "Two equal rows do not beat each other: keep both.": lambda got: len(got) < 2,
            "c has the same cost as a and a lower score: it is beaten.": lambda got: "c" in got,
        },
    )

    def against_all_pairs(answer: Callable) -> None:
        """30 random methods: each that is left out must be beaten, and none that is kept"""
        values = torch.randint(0, 12, (30, 2), generator=torch.Generator().manual_seed(2)).tolist()
        table = {f"m{i}": (s / 10, c / 2) for i, (s, c) in enumerate(values)}
        got, wanted = list(answer(table)), unbeaten(table)
        if sorted(got) != sorted(wanted):
            wrong = next(iter(set(got) ^ set(wanted)))
            what = "beaten, but kept" if wrong in got else "not beaten, but left out"
            raise NotYet(answer.tried, f"{len(wanted)} names", f"{wrong} {table[wrong]} is {what}")
        costs = [table[name][1] for name in got]
        if costs != sorted(costs):
            raise NotYet(answer.tried, "names by rising cost", f"costs {costs}", "Sort by cost, the cheapest first.")

    yield against_all_pairs
