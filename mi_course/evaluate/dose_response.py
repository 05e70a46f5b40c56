"""Dose and response: what a steer does to its target and to the rest as its strength grows, and where the rest breaks.

The breakdown point is the first strength, going outward from 0, at which a measure of the rest leaves its bar. Between
the last strength that holds it and the first that does not, the measure is taken to be a straight line. `inf` says
that no strength tried was enough: then the point lies beyond the largest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

Dial = Callable[[float], AbstractContextManager]


def breakdown_point(
    strengths: Sequence[float], values: Sequence[float], bar: float, *, at_least: bool, side: int = 1
) -> float:
    """The strength from which `values` leaves `bar`, going outward from strength 0.

    Args:
        strengths, values: a measure at each strength, 0 among them, in any order.
        bar: the worst value that is still good.
        at_least: True when values must be >= bar (accuracy), False when they must be <= bar (loss, KL).
        side: 1 looks at strengths above 0, -1 at those below.

    It is the *first* exit: a measure that comes back later has broken all the same. Returns inf (-inf for side -1)
    when the bar holds at all strengths of that side. ValueError when strength 0 is missing, or breaks the bar itself:
    then it is the bar that is wrong.
    """
    x, y = np.asarray(strengths, dtype=float), np.asarray(values, dtype=float)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"strengths has shape {x.shape} and values {y.shape}: give one value for each strength")
    if side not in (1, -1):
        raise ValueError(f"side={side!r}: choose 1 (strengths above 0) or -1 (below)")
    if not (x == 0).any():
        raise ValueError("strengths lacks 0, the strength that does nothing: the bar is judged from there")
    order = [i for i in np.argsort(side * x, kind="stable") if side * x[i] >= 0]
    room = (y - bar if at_least else bar - y)[order]  # >= 0 where the bar holds; NaN counts as broken
    if not room[0] >= 0:
        raise ValueError(f"bar={bar:g} is broken at strength 0 already (value {y[order[0]]:g}): choose a looser bar")
    broken = np.flatnonzero(~(room >= 0))
    if not len(broken):
        return side * math.inf
    i = broken[0]
    before, after = x[order[i - 1]], x[order[i]]
    if not np.isfinite(room[i]):
        return float(before)
    return float(before + (after - before) * room[i - 1] / (room[i - 1] - room[i]))


@dataclass(frozen=True)
class DoseResponse:
    """Measures over strengths. All arrays [n_strengths], in the order of `strengths` (ascending, 0 among them).

    target      the wanted effect, for instance the share of prompts with the wanted answer
    accuracy    domain -> accuracy on a task of that domain
    loss        domain -> mean loss on documents of that domain, nats per token
    """

    strengths: np.ndarray
    target: np.ndarray
    accuracy: dict[str, np.ndarray] = field(default_factory=dict)
    loss: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def neutral(self) -> int:
        """Index of strength 0."""
        return int(np.flatnonzero(self.strengths == 0)[0])

    @property
    def accuracy_drop(self) -> np.ndarray:
        """Largest fall of a domain's accuracy below strength 0 at each strength; 0 without domains."""
        return self._worst(self.accuracy, -1)

    @property
    def loss_rise(self) -> np.ndarray:
        """Largest rise of a domain's loss above strength 0 at each strength, nats per token; 0 without domains."""
        return self._worst(self.loss, 1)

    def _worst(self, by_domain: dict, sign: int) -> np.ndarray:
        changes = [sign * (values - values[self.neutral]) for values in by_domain.values()]
        return np.maximum(0, np.max(changes, axis=0)) if changes else np.zeros(len(self.strengths))

    def breakdown(self, accuracy_drop: float = 0.05, loss_rise: float = 0.05, side: int = 1) -> float:
        """The smallest strength at which the worst domain loses more than `accuracy_drop`, or gains `loss_rise` nats.

        The two bars are read apart and the nearer point counts; inf where neither is broken. See `breakdown_point`.
        """
        points = [
            breakdown_point(self.strengths, self.accuracy_drop, accuracy_drop, at_least=False, side=side),
            breakdown_point(self.strengths, self.loss_rise, loss_rise, at_least=False, side=side),
        ]
        return min(points, key=abs)

    def best(self, accuracy_drop: float = 0.05, loss_rise: float = 0.05) -> float:
        """The strength with the highest target among those tried that hold both bars (0 always does).

        Of equal ones the weakest. Take it from validation data, and report on test data.
        """
        holds = (self.accuracy_drop <= accuracy_drop) & (self.loss_rise <= loss_rise)
        candidates = sorted(np.flatnonzero(holds), key=lambda i: (-self.target[i], abs(self.strengths[i])))
        return float(self.strengths[candidates[0]])

    def to_frame(self):
        """A pandas frame, one row for each strength."""
        import pandas as pd

        columns = {"strength": self.strengths, "target": self.target}
        columns |= {f"accuracy: {d}": v for d, v in self.accuracy.items()}
        columns |= {f"loss: {d}": v for d, v in self.loss.items()}
        return pd.DataFrame(columns)


def dose_response(
    dial: Dial,
    strengths: Sequence[float],
    target: Callable[[], float],
    accuracy: Mapping[str, Callable[[], float]] | None = None,
    loss: Mapping[str, Callable[[], float]] | None = None,
) -> DoseResponse:
    """Measure target and rest at every strength. 0 is added where it is missing.

    Args:
        dial: strength -> a fresh context manager, such as `lambda s: steer.scaled(s).on(model)`.
        target: () -> one number, measured inside the context.
        accuracy, loss: domain -> () -> one number.
    """
    x = sorted({float(s) for s in strengths} | {0.0})
    measures = {"target": target}
    measures |= {("accuracy", d): f for d, f in (accuracy or {}).items()}
    measures |= {("loss", d): f for d, f in (loss or {}).items()}
    values: dict = {key: [] for key in measures}
    for strength in x:
        with dial(strength):
            for key, measure in measures.items():
                values[key].append(float(measure()))
    arrays = {key: np.array(v) for key, v in values.items()}
    parts = {kind: {k[1]: v for k, v in arrays.items() if k[0] == kind} for kind in ("accuracy", "loss")}
    return DoseResponse(np.array(x), arrays["target"], **parts)
