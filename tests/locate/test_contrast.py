"""Contrasts against slow arithmetic, their null under shuffled labels, and ReasonScore against a loop over tokens."""

import math

import numpy as np
import pytest
import torch

import mi_course as mi
from mi_course.locate import contrast as C
from mi_course.locate.magnitude import activation_norms
from mi_course.objects import neurons
from mi_course.objects.sae import SAE
from mi_course.world import compiled
from tests.families import random_model

SOURCE, TARGET = [[3, 4, 5, 6, 7], [9, 8, 7], [4, 4, 5]], [[10, 11, 12, 13], [14, 15]]


def noise(n=40, m=300, seed=0):
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed))


HALF = torch.arange(40) % 2 == 0


def test_statistics_against_plain_arithmetic():
    values = noise(40, 5)
    source, target = values[HALF], values[~HALF]
    difference = source.mean(0) - target.mean(0)
    assert torch.allclose(C.statistic_of(values, HALF), difference, atol=1e-6)
    correlation = [np.corrcoef(values[:, j], HALF)[0, 1] for j in range(5)]
    effect = C.statistic_of(values, HALF, "effect")
    assert effect.tolist() == pytest.approx(correlation, abs=1e-5)
    cohen = difference / ((source.var(0, correction=0) + target.var(0, correction=0)) / 2).sqrt()
    assert torch.allclose(effect, cohen / (cohen**2 + 4).sqrt(), atol=1e-6)  # one increasing function of the other
    assert torch.allclose(C.statistic_of(values, HALF, "auroc"), neurons.auroc(values, HALF) - 0.5)


def test_effect_is_finite_and_free_of_scale():
    values = torch.stack([torch.full((40,), 3.0), HALF.float(), noise(40, 1)[:, 0]], dim=1)
    effect = C.statistic_of(values, HALF, "effect")
    assert effect[:2].tolist() == pytest.approx([0.0, 1.0])  # a constant, and a perfect detector without spread
    assert torch.allclose(C.statistic_of(values * torch.tensor([1.0, 1e3, 1e-3]), HALF, "effect"), effect, atol=1e-4)
    unequal = torch.arange(40) < 7
    assert C.statistic_of(unequal[:, None].float(), unequal, "effect").item() == pytest.approx(1.0)


@pytest.mark.parametrize("statistic", C.STATISTICS)
def test_p_values_are_uniform_when_labels_mean_nothing(statistic):
    p = C.permutation_test(noise(m=2000), HALF, statistic, draws=499).p
    uniform = (torch.arange(2000) + 0.5) / 2000
    assert (p.sort().values - uniform).abs().max() < 1.95 / math.sqrt(2000)  # Kolmogorov and Smirnov, .1 %
    assert C.permutation_test(noise(m=2000) + HALF[:, None], HALF, statistic, draws=499).p.median() < 0.01


def test_the_largest_of_many_has_its_own_null():
    hits = {"p": 0, "p_max": 0, "q": 0}
    for seed in range(40):
        test = C.permutation_test(noise(30, 100, seed), torch.arange(30) < 15, draws=99)
        hits["p"] += bool((test.p < 0.05).any())
        hits["p_max"] += bool((test.p_max <= 0.05).any())
        hits["q"] += bool((test.q <= 0.05).any())
    assert hits["p"] > 35  # "the best neuron has p < .05" is nearly sure without any effect
    assert hits["p_max"] <= 6 and hits["q"] <= 6  # 2 expected; 6 is the 99.6 % quantile


@pytest.mark.parametrize("statistic", ["effect", "auroc"])
def test_a_planted_site_is_found(statistic):
    values = noise()
    values[:, 123] += 2.0 * HALF
    test = C.permutation_test(values, HALF, statistic, draws=9999)
    assert test.p_max[123] <= 0.01 and test.q[123] < 0.05
    assert (test.p_max <= 0.05).nonzero().flatten().tolist() == [123]
    assert torch.equal(test.p, C.permutation_test(values, HALF, statistic, draws=9999).p)


def test_false_discovery_rate_by_hand():
    q = C.false_discovery_rate(torch.tensor([0.01, 0.9, 0.02, 0.5]))
    assert q.tolist() == pytest.approx([0.04, 0.9, 0.04, 2 / 3])
    # never above the q of a larger p: .03 * 2 / 1 = .06 gives way to .04
    assert C.false_discovery_rate(torch.tensor([0.04, 0.03])).tolist() == pytest.approx([0.04, 0.04])


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_contrast_of_a_model_and_padding(family):
    model = mi.wrap(random_model(family))
    sites = ["L0N3", "x1", "L1H2"]
    got = C.contrast(model, SOURCE, TARGET, sites)
    means = [np.mean([activation_norms(model, [p], sites).values for p in some], axis=0) for some in (SOURCE, TARGET)]
    assert got.values == pytest.approx(means[0] - means[1], rel=1e-4, abs=1e-5)  # prompts weigh the same
    assert got.sites == sites and got.forwards == 5
    assert C.contrast(model, SOURCE, TARGET, sites, batch_size=1).values == pytest.approx(got.values, abs=1e-5)
    turned = C.contrast(model, TARGET, SOURCE, sites)
    assert turned.values == pytest.approx(-got.values, abs=1e-6)


def test_contrast_finds_the_neuron_of_a_subject_and_ignores_the_decoys():
    c = compiled.lookup()
    model, sites = c.wrap(), [f"L0N{j}" for j in range(8)]
    italy, rest = c.others["italy"].prompts, [p for s in c.others if s != "italy" for p in c.others[s].prompts]
    effect = C.contrast(model, italy, rest, sites, "effect", norm="raw")
    assert effect.top(1, by="positive") == ["L0N1"]
    assert effect["L0N1"] == pytest.approx(1) and abs(effect["L0N6"]) < 1e-3 and abs(effect["L0N7"]) < 1e-3


def test_bad_labels_and_statistics():
    with pytest.raises(ValueError, match="both kinds"):
        C.statistic_of(noise(), torch.ones(40, dtype=torch.bool))
    with pytest.raises(ValueError, match="statistic='t'"):
        C.statistic_of(noise(), HALF, "t")
    with pytest.raises(ValueError, match="truth value for each of the 40"):
        C.statistic_of(noise(), HALF[:3])
    with pytest.raises(ValueError, match="source and target"):
        C.contrast(mi.wrap(random_model("gpt2")), [], TARGET, ["x1"])


# --- ReasonScore -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def with_features():
    c = compiled.induction()
    model = c.wrap()
    model.saes["d"] = SAE(model.d_model, 12, site="x1", seed=3)
    return model, c.task.prompts[:6]


def slow_reason_score(model, prompts, sites, words, window, alpha):
    """From the paper's formula, token by token."""
    inside, outside, by_word = [], [], {word: [] for word in words}
    for prompt in prompts:
        tokens = model.tokens(prompt)
        values = mi.record(model, [prompt], ["dF*"])["dF*"][0]
        for t in range(len(tokens)):
            around = {w for s in range(-window[1], window[0] + 1) if 0 <= t + s < len(tokens) for w in words
                      if tokens[t + s] == w}  # fmt: skip
            for word in around:
                by_word[word].append(values[t])
            (inside if around else outside).append(values[t])
    mean = {w: torch.stack(rows).mean(0) if rows else torch.zeros(12) for w, rows in by_word.items()}
    plus, minus = torch.stack(inside).mean(0), torch.stack(outside).mean(0)
    scores = []
    for i in range(len(sites)):
        parts = np.array([float(mean[w][i]) for w in words])
        H = 1.0
        if parts.sum() > 0:
            share = parts / parts.sum()
            H = -sum(x * math.log(x) for x in share if x > 0) / math.log(len(words))
        scores.append(float(plus[i] / plus.sum()) * H**alpha - float(minus[i] / minus.sum()))
    return scores


@pytest.mark.parametrize("window", [(1, 2), (0, 0), (0, 1)])
def test_reason_score_equals_the_formula(with_features, window):
    model, prompts = with_features
    sites, words = [f"dF{i}" for i in range(12)], ["a", "d", "g"]
    got = C.reason_score(model, prompts, sites, words, window, batch_size=2)
    wanted = slow_reason_score(model, prompts, sites, words, window, 0.7)
    assert got.values == pytest.approx(wanted, abs=1e-6)


def test_reason_score_wants_words_and_something_else(with_features):
    model, prompts = with_features
    with pytest.raises(ValueError, match="window covers"):
        C.reason_score(model, ["a b"], ["dF0"], ["a"], window=(9, 9))
    with pytest.raises(ValueError, match="none of"):
        C.reason_score(model, ["a b"], ["dF0"], ["c", "d"])
