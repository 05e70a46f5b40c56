"""How sure can we be? Intervals, effects with their error, and the null band.

Every result of the course stands beside one of these: an accuracy beside its Wilson interval, a mean effect beside its
standard error, and an intervention beside the same intervention on matched random objects (survey-map section 0,
"two standing instruments").
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


def _one_dimensional(values, name: str) -> np.ndarray:
    array = np.asarray([float(v) for v in values], dtype=float)
    if array.size == 0:
        raise ValueError(f"{name} is empty: give at least one number")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinity: drop or mend those items first")
    return array


def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion: the interval we print beside every accuracy.

    Unlike p +- z * sqrt(p(1-p)/n) it stays inside [0, 1] and has a width when all items succeed, which is the usual
    case here (E. B. Wilson, 1927).

    Args: successes, n: counts with 0 <= successes <= n, n > 0.  z: normal quantile, 1.96 for 95 %.
    Returns (low, high), proportions.
    """
    if n <= 0:
        raise ValueError("n must be positive: measure at least one item")
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must lie between 0 and n={n}: pass counts, not a proportion")
    p = successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True)
class Effect:
    """A mean change, its standard error over items, and the number of items."""

    mean: float
    standard_error: float
    n: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} +- {self.standard_error:.3f} (n={self.n})"


def effect(after: Iterable[float], before: Iterable[float]) -> Effect:
    """Paired effect F(intervened) - F(base) over items, with its standard error s / sqrt(n).

    Args: after, before: the metric of the same items, in the same order, with and without the intervention.
    """
    after, before = _one_dimensional(after, "after"), _one_dimensional(before, "before")
    if after.shape != before.shape:
        raise ValueError(f"after has {after.size} items and before {before.size}: measure the same items twice")
    difference = after - before
    error = difference.std(ddof=1) / math.sqrt(difference.size) if difference.size > 1 else math.nan
    return Effect(float(difference.mean()), float(error), int(difference.size))


@dataclass(frozen=True)
class NullBand:
    """Mean +- 2 standard deviations of a measure over random objects of equal count, norm or layers."""

    mean: float
    sd: float
    n: int

    @property
    def low(self) -> float:
        return self.mean - 2 * self.sd

    @property
    def high(self) -> float:
        return self.mean + 2 * self.sd

    def contains(self, value: float) -> bool:
        return self.low <= value <= self.high

    def z(self, value: float) -> float:
        """Distance of the value from the null's mean in its standard deviations (infinite if the null is a point)."""
        if self.sd > 0:
            return (float(value) - self.mean) / self.sd
        return math.copysign(math.inf, value - self.mean) if value != self.mean else 0.0


def null_band(values: Iterable[float]) -> NullBand:
    """The null band of a measure: `values` are its values for at least 3 matched random objects.

    The standard deviation is the sample one (n - 1), so few draws give a wider band.
    """
    array = _one_dimensional(values, "values")
    if array.size < 3:
        raise ValueError(f"a null band needs at least 3 random draws, got {array.size}: draw more random objects")
    return NullBand(float(array.mean()), float(array.std(ddof=1)), int(array.size))


def rank_correlation(a: Iterable[float], b: Iterable[float]) -> float:
    """Spearman's correlation of two measures of the same things, -1 ... 1; ties share their mean rank.

    NaN when one of them gives everything the same value.
    """
    a, b = _one_dimensional(a, "a"), _one_dimensional(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a has {a.size} numbers and b {b.size}: measure the same things twice")
    ranks = [((x[None] < x[:, None]).sum(1) + (x[None] == x[:, None]).sum(1) / 2) for x in (a, b)]
    if min(r.std() for r in ranks) == 0:
        return math.nan
    return float(np.corrcoef(*ranks)[0, 1])


def shuffled_correlation(a: Iterable[float], b: Iterable[float], draws: int = 200, seed: int = 0) -> NullBand:
    """The null band of `rank_correlation`: the same numbers, b in random order."""
    a, b = list(a), np.array(list(b), dtype=float)
    rng = np.random.default_rng(seed)
    return null_band(rank_correlation(a, rng.permutation(b)) for _ in range(draws))
