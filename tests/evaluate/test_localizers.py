"""Judging localizers: what they may return, what they cost, chance, agreement, consensus."""

import numpy as np
import pytest
import torch

import mi_course as mi
from mi_course.evaluate import localizers as ev
from mi_course.locate import causal
from mi_course.objects import Scores
from mi_course.world import compiled

SITES = ["L0H0.z", "L0H1.z", "L1H0.z", "L1H1.z"]


@pytest.fixture(scope="module")
def induction():
    c = compiled.induction()
    return c.wrap(), c.task.subset(8)


def scores(values, sites=SITES, sign="ablation"):
    return Scores(sites, values, "m", sign)


@pytest.mark.parametrize("result", [[1, 2, 3, 4], np.arange(4), torch.arange(4.0, requires_grad=True)])
def test_numbers_become_scores(induction, result):
    found = ev.scored(lambda model, task, sites: result, *induction, SITES, name="mine")
    assert found.method == "mine" and found.sign == "importance" and found.sites == SITES
    assert found.values[3] > found.values[2] and found.seconds >= 0


def test_scores_are_put_in_order(induction):
    shuffled = Scores(SITES[::-1], [4.0, 3, 2, 1], "m", "noising", forwards=7)
    found = ev.scored(lambda model, task, sites: shuffled, *induction, SITES)
    assert found.values.tolist() == [1, 2, 3, 4] and found.sign == "noising" and found.forwards == 7


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ([1.0, 2.0], r"shape \(2,\) for 4 sites"),
        ([[1.0, 2, 3, 4]], r"shape \(1, 4\)"),
        ([1.0, float("nan"), 2, 3], "1 numbers that are NaN"),
        ("L0H0", "not numbers|shape"),
        (None, "not numbers|shape"),
        (scores([1.0, 2], ["L0H0.z", "L0H1.z"]), "other sites than it was asked for"),
    ],
)
def test_bad_results_are_refused(induction, result, message):
    with pytest.raises(ValueError, match=message):
        ev.scored(lambda model, task, sites: result, *induction, SITES, name="mine")


def test_what_is_no_function_is_refused(induction):
    with pytest.raises(ValueError, match="not callable; give a function"):
        ev.scored("norm", *induction, SITES)


def test_cost_is_counted_at_the_model(induction):
    model, task = induction

    def two_forwards_one_backward(model, task, sites):
        task.measure(model)
        task.measure(model, grad=True).sum().backward()
        return np.zeros(len(sites))

    for parameter in model.hf.parameters():
        parameter.requires_grad_(True)
    found = ev.scored(two_forwards_one_backward, model, task, SITES)
    model.hf.zero_grad()
    assert (found.forwards, found.backwards) == (2 * len(task), len(task))
    assert found.token_layers == 2 * model.tokenize(task.prompts).ids.numel() * model.n_layers

    x = mi.record(model, task.prompts, ["x1"])["x1"]
    found = ev.scored(lambda m, t, s: [0.0 * float(m.resume(1, x, t.prompts).sum())] * 4, model, task, SITES)
    assert found.forwards == len(task) / 2  # one of two layers


def test_counting_leaves_nothing_behind_and_nests(induction):
    model, task = induction
    before = task.measure(model)
    with ev.metered(model) as outer:
        with pytest.raises(RuntimeError, match="mine"), ev.metered(model) as inner:
            task.measure(model)
            raise RuntimeError("mine")
        task.measure(model)
    assert outer.forward == 2 * inner.forward > 0
    assert torch.equal(task.measure(model), before)
    assert all("forward" not in m.__dict__ for m in model.hf.modules())


def test_our_own_cost_is_kept(induction):
    model, task = induction
    direct = causal.ablate_each(model, task, SITES)
    found = ev.scored(lambda m, t, s: causal.ablate_each(m, t, s), model, task, SITES)
    assert found.values == pytest.approx(direct.values) and found.forwards == direct.forwards


def test_random_rankings_have_the_means_of_chance():
    band = ev.random_rankings(24, 2, draws=3000)
    assert band["auroc"].mean == pytest.approx(0.5, abs=0.02)
    assert band["recall_at_k"].mean == pytest.approx(2 / 24, abs=0.02)
    # variance of the Mann-Whitney statistic: (n + 1) / (12 k (n - k))
    assert band["auroc"].sd == pytest.approx((25 / (12 * 2 * 22)) ** 0.5, rel=0.06)
    with pytest.raises(ValueError, match="at least one true and one false"):
        ev.random_rankings(6, 6)


def test_agreement_with_a_reference():
    reference = scores([-5.0, 4, -1, 0.5])
    assert ev.agreement(scores([50.0, -40, 10, 5]), reference, 2) == {
        "spearman": pytest.approx(1),
        "overlap": 1.0,
        "chance_overlap": 0.5,
    }
    reverse = ev.agreement(scores([1.0, 2, 3, 4]), reference, 2)
    assert reverse["spearman"] == pytest.approx(-1) and reverse["overlap"] == 0
    # a localizer whose numbers mean importance: negative ones are unimportant, the reference's are not
    mine = ev.agreement(scores([3.0, 2, 1, -9], sign="importance"), reference, 2, by="positive")
    assert mine["spearman"] == pytest.approx(1) and mine["overlap"] == 1


def test_consensus_is_the_mean_rank():
    a, b = scores([-9.0, 3, 2, 1]), scores([0.1, 0.2, 0.3, 0.0])
    found = ev.consensus([a, b])
    assert found.values.tolist() == pytest.approx([(3 + 1) / 6, (2 + 2) / 6, (1 + 3) / 6, 0])
    tied = ev.consensus([a, scores([7.0] * 4)])  # one that knows nothing moves nobody
    assert tied.top(4) == a.top(4)
    assert ev.relative_ranks([5, 5, 1]).tolist() == [0.75, 0.75, 0]
    with pytest.raises(ValueError, match="two methods"):
        ev.consensus([a])
    with pytest.raises(ValueError, match="over other sites"):
        ev.consensus([a, scores([1.0], ["x1"])])


def test_flops():
    assert ev.flops(7e9, 10, forwards=1) == 2 * 7e9 * 10
    assert ev.flops(7e9, 10, forwards=1, backwards=1) == 6 * 7e9 * 10
    with pytest.raises(ValueError, match="must be positive"):
        ev.flops(0, 10, 1)
