"""Erasure: what no linear probe may find afterwards, what it costs, and the compiled model that uses one variable."""

import pytest
import torch

import mi_course as mi
from mi_course.locate.erasure import Eraser, erase_direction, erase_means, inlp, leace
from mi_course.locate.probe_sweep import features
from mi_course.locate.probing import fit
from mi_course.world import compiled
from tests.models.common import FAMILIES, PROMPTS, hooks_left, make


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def states(n=400, d=16, n_classes=3, seed=0):
    """Correlated states in which classes of unequal size differ."""
    index = (torch.rand(n, generator=torch.Generator().manual_seed(seed)) ** 2 * n_classes).long()
    x = random(n, d, seed=seed) @ random(d, d, seed=seed + 1) + 2 * random(n_classes, d, seed=seed + 2)[index]
    return x, index.tolist()


def majority(y):
    return max(y.count(label) for label in set(y)) / len(y)


@pytest.mark.parametrize("erase", [leace, erase_means])
@pytest.mark.parametrize("n_classes", [2, 3])
def test_no_linear_probe_beats_the_majority(erase, n_classes):
    x, y = states(n_classes=n_classes)
    eraser = erase(x, y)
    clean = eraser(x)
    assert eraser.rank == n_classes - 1
    one_hot = torch.nn.functional.one_hot(torch.tensor(y)).double()
    covariance = (clean - clean.mean(0)).double().T @ (one_hot - one_hot.mean(0)) / len(x)
    assert covariance.abs().max() < 1e-5
    for kind, penalty in (("logistic", None), ("logistic", 1e-4), ("linear", None), ("ridge", None)):
        assert fit(x, y, kind, penalty).accuracy(x, y) > majority(y) + 0.1
        assert fit(clean, y, kind, penalty).accuracy(clean, y) <= majority(y) + 0.005


def test_leace_is_the_least_change():
    """Against mean projection, and against other oblique maps that take away the same covariance."""
    x, y = states()

    def moved(eraser):
        return (eraser(x) - x).square().sum(1).mean().item()

    best = moved(leace(x, y))
    assert best < 0.9 * moved(erase_means(x, y))
    for seed in range(5):  # erase in another metric: still guards, moves more
        M = random(16, 16, seed=20 + seed)
        other = erase_means(x @ M, y)
        assert best < moved(Eraser("other", x.mean(0), M @ other.A @ M.inverse(), 2))


def test_leace_is_the_formula_with_explicit_inverses():
    x, y = states()
    x = x.double()
    one_hot = torch.nn.functional.one_hot(torch.tensor(y)).double()
    centred, z = x - x.mean(0), one_hot - one_hot.mean(0)
    S, C = centred.T @ centred / len(x), centred.T @ z / len(x)
    values, vectors = torch.linalg.eigh(S)
    W = torch.linalg.inv(vectors @ values.sqrt().diag() @ vectors.T)
    WC = W @ C
    P = WC @ torch.linalg.pinv(WC)
    wanted = x - (torch.linalg.inv(W) @ P @ W @ centred.T).T
    assert torch.allclose(leace(x, y)(x.float()), wanted.float(), atol=1e-3)


def test_leace_bears_states_that_do_not_fill_the_space():
    x, y = states(d=6)
    flat = x @ random(6, 16, seed=8)  # 6 of 16 dimensions
    clean = leace(flat, y)(flat)
    assert torch.isfinite(clean).all()
    assert fit(clean, y, "ridge").accuracy(clean, y) <= majority(y) + 0.005


def test_one_probe_direction_is_not_enough_and_inlp_goes_on():
    x, y = states(n_classes=2)
    one = erase_direction(x, fit(x, y, penalty=1e-3).direction())(x)
    assert fit(one, y).accuracy(one, y) > majority(y) + 0.03
    left = [fit(e(x), y).accuracy(e(x), y) for e in (inlp(x, y, 1), inlp(x, y, 4), inlp(x, y, 12))]
    assert left[0] > left[2] and left[2] <= majority(y) + 0.05
    assert inlp(x, y, 4).rank == 4 and inlp(*states(), 2).rank == 4
    A = inlp(x, y, 4).A
    assert torch.allclose(A @ A, A, atol=1e-5) and torch.allclose(A, A.T, atol=1e-6)


def test_erasing_twice_is_erasing_once_and_the_mean_stays():
    x, y = states()
    for eraser in (leace(x, y), erase_means(x, y), inlp(x, y, 3), erase_direction(x, random(16))):
        clean = eraser(x)
        assert torch.allclose(eraser(clean), clean, atol=1e-3)
        assert torch.allclose(clean.mean(0), x.mean(0), atol=1e-3)


# --- as interventions ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def circuit():
    c = compiled.decodable()
    return c, c.wrap()


@pytest.mark.parametrize("erase", [leace, erase_means, lambda x, y: inlp(x, y, 1)])
def test_decodable_is_not_used(circuit, erase):
    """A probe reads both variables. Erasing mood changes no logit; erasing volume leaves no preference."""
    c, model = circuit
    x = features(model, c.task.prompts, ["x1"])["x1"]
    base = c.task.measure(model)
    logits = model.last_logits(c.task.prompts)
    for variable in ("volume", "mood"):
        y = [label[variable] for label in c.task.labels]
        assert fit(x, y).accuracy(x, y) == 1
        eraser = erase(x, y)
        assert fit(eraser(x), y, "ridge").accuracy(eraser(x), y) == 0.5
        direction = fit(x, y, "mean difference").direction()
        assert torch.cosine_similarity(direction, c.directions[variable], dim=0).abs() > 0.999
        with mi.intervene(model, eraser.at("x1", "last")):
            changed = c.task.measure(model) - base
            if variable == "mood":
                assert torch.allclose(model.last_logits(c.task.prompts), logits, atol=1e-4)
            else:
                assert torch.allclose(changed, torch.full((16,), -10.0), atol=1e-3)


def test_the_direction_steers(circuit):
    """Adding the difference of the class means to quiet prompts makes them loud ones, exactly."""
    c, model = circuit
    quiet = c.task.where(volume="quiet")
    x = features(model, c.task.prompts, ["x1"])["x1"]
    probe = fit(x, [label["volume"] for label in c.task.labels], "mean difference")
    loud = probe.direction("loud", "quiet")
    assert torch.cosine_similarity(loud, c.directions["volume"], dim=0) > 0.9999
    with mi.intervene(model, mi.add("x1", loud, positions="last")):
        assert torch.allclose(quiet.measure(model), torch.full((8,), -10.0), atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_every_family_the_state_is_clean_where_it_was_erased(family):
    model = make(family)
    prompts = [[3 + i, 4 + i % 5, 9, 20 + i] for i in range(12)] + PROMPTS
    y = [i % 2 == 0 for i in range(len(prompts))]
    eraser = erase_means(features(model, prompts, ["x1"])["x1"], y)
    before = features(model, prompts, ["x1"], 0)["x1"]
    with mi.intervene(model, eraser.at("x1", "last")):
        after = features(model, prompts, ["x1"])["x1"]
        means = [after[[label == side for label in y]].mean(0) for side in (True, False)]
        assert torch.allclose(*means, atol=1e-4)
        assert torch.equal(features(model, prompts, ["x1"], 0)["x1"], before)
    assert hooks_left(model) == []


def test_bad_input_is_named():
    x, y = states()
    with pytest.raises(ValueError, match="one non-zero vector"):
        erase_direction(x, torch.zeros(16))
    with pytest.raises(ValueError, match="rounds=0"):
        inlp(x, y, 0)
    with pytest.raises(ValueError, match="the one class"):
        leace(x, [1] * len(x))
