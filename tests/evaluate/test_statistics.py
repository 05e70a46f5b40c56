import math

import numpy as np
import pytest

from mi_course.evaluate import effect, null_band, wilson
from mi_course.evaluate.statistics import rank_correlation


def test_wilson_solves_its_defining_equation():
    # The limits are the p at which the observed proportion lies exactly z standard errors away.
    for successes, n in [(7, 10), (1, 50), (49, 50), (500, 1000)]:
        for limit in wilson(successes, n, z=1.96):
            assert abs(successes / n - limit) == pytest.approx(1.96 * math.sqrt(limit * (1 - limit) / n), rel=1e-9)


def test_wilson_at_the_edges():
    assert wilson(0, 20)[0] == 0.0 and 0 < wilson(0, 20)[1] < 0.2
    assert wilson(20, 20)[1] == 1.0 and 0.8 < wilson(20, 20)[0] < 1
    low, high = wilson(3, 20)
    mirrored = wilson(17, 20)
    assert (1 - high, 1 - low) == pytest.approx(mirrored)


def test_wilson_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = [low <= 0.9 <= high for low, high in (wilson(k, 60) for k in rng.binomial(60, 0.9, 2000))]
    assert 0.92 < np.mean(hits) < 0.98


@pytest.mark.parametrize("successes, n", [(1, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError):
        wilson(successes, n)


def test_effect_is_paired():
    before = np.array([0.0, 10.0, 20.0, 30.0])
    result = effect(before + 1, before)  # items differ widely, their change does not
    assert result.mean == pytest.approx(1) and result.standard_error == pytest.approx(0) and result.n == 4
    assert effect([0, 2], [0, 0]).standard_error == pytest.approx(1.0)
    with pytest.raises(ValueError, match="same items"):
        effect([1, 2], [1])
    with pytest.raises(ValueError, match="NaN"):
        effect([math.nan], [1])


def test_null_band():
    band = null_band([1.0, 2.0, 3.0])
    assert (band.low, band.high) == (0.0, 4.0)
    assert band.contains(3.9) and not band.contains(4.1)
    assert band.z(5.0) == pytest.approx(3.0)
    flat = null_band([0, 0, 0])
    assert flat.z(1) == math.inf and flat.z(-1) == -math.inf and flat.z(0) == 0
    with pytest.raises(ValueError, match="at least 3"):
        null_band([1.0, 2.0])


def test_ties_share_their_mean_rank():
    # ranks 0.5 0.5 2 3 against 0 1 2 3; the lowest rank for both (0 0 2 3) would give 5.5 / sqrt(33.75) = 0.947
    assert rank_correlation([7, 7, 8, 30], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(22.5), abs=1e-9)
