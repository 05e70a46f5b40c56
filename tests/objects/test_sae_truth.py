"""SAEs on planted features: what training finds, what absorbs, what revives dead features. Everything has a control."""

import pytest
import torch
from scipy.optimize import linear_sum_assignment

from mi_course.objects.sae import SAE, fit, train
from mi_course.objects.sae_truth import absorption, cosines, recovery
from mi_course.world.compiled import planted_features

PLANTED = planted_features()
F = PLANTED.directions
CHANCE = SAE(16, 32).requires_grad_(False)
FAST = {"steps": 400, "lr": 4e-3}


@pytest.fixture(scope="module")
def data():
    return PLANTED.sample(10000)[0], *PLANTED.sample(4000, seed=1)


@pytest.fixture(scope="module")
def fitted(data):
    """One trained SAE of each kind, and a Matryoshka one."""
    options = {"relu": {"sparsity": 0.3}, "topk": {"k": 2}, "batchtopk": {"k": 2}, "jumprelu": {"sparsity": 0.1},
               "gated": {"sparsity": 0.6}}
    trained = {kind: train(data[0], 32, kind, **o, **FAST) for kind, o in options.items()}
    return trained | {"matryoshka": train(data[0], 32, "topk", k=2, prefixes=(4, 32), **FAST)}


# ---------------------------------------------------------------------------------------------------------- measures


def test_a_perfect_dictionary_recovers_everything():
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    sae = SAE(16, 32)
    with torch.no_grad():
        sae.W_dec[order[:24]] = 3 * F                                         # any length: only directions count
    found = recovery(sae, F)
    assert torch.equal(found.latent, order[:24]) and found.score == pytest.approx(1, abs=1e-5)


def test_each_latent_stands_for_one_feature():
    sae = SAE(16, 3)
    with torch.no_grad():
        sae.W_dec.copy_(F[:3])
        sae.W_dec[1] = F[0] + 0.1 * F[1]                                      # two rows for feature 0, none for 1
    found = recovery(sae, F[:3])
    assert found.latent.tolist()[0] == 0 and found.latent[2] == 2
    assert found.latent[1] == 1 and found.cosine[1] < 0.4 and found.best[0] == pytest.approx(1, abs=1e-5)
    few = recovery(SAE(16, 5), F)
    assert (few.latent == -1).sum() == 19 and (few.cosine[few.latent == -1] == 0).all()


def test_the_matching_is_near_the_best_possible(fitted):
    """Against the Hungarian algorithm: as good on trained SAEs; never below half, as greedy matching promises."""
    def best(sae):
        similar = cosines(F, sae.W_dec)
        return similar[linear_sum_assignment(similar, maximize=True)].mean().item()

    for sae in fitted.values():
        assert best(sae) - 0.005 <= recovery(sae, F).score <= best(sae) + 1e-6
    assert best(CHANCE) / 2 < recovery(CHANCE, F).score <= best(CHANCE)


def test_absorption_by_construction(data):
    """Two dictionaries with the right features; in one the child's latent carries the parent and shuts its latent."""
    _, x, codes = data
    parent, child = F[PLANTED.parent], F[PLANTED.child]
    clean, absorbing = SAE(16, 16).requires_grad_(False), SAE(16, 16).requires_grad_(False)
    basis = torch.linalg.qr(torch.stack([parent, child, *F[2:16]]).T).Q.T     # rows 0 and 1 span parent and child
    dual = torch.linalg.pinv(torch.stack([parent, child, *basis[2:]]))        # reads the coordinates exactly
    for sae in (clean, absorbing):
        sae.W_dec.copy_(torch.stack([parent, child, *basis[2:]]))
        sae.W_enc.copy_(dual)
        sae.b_enc.fill_(-0.1)
    absorbing.W_dec[1] = parent + child
    absorbing.W_enc[:, 0] -= 10 * dual[:, 1]
    only = codes[:, 2:].sum(1) == 0                                           # states without any other feature
    measured = [absorption(s, x[only], codes[only], F, PLANTED.parent, PLANTED.child) for s in (clean, absorbing)]
    assert [m.latent for m in measured] == [0, 0] and [m.heir for m in measured] == [1, 1]
    assert [m.silent_with_child for m in measured] == [0, 1] and [m.silent_alone for m in measured] == [0, 0]
    assert measured[1].heir_cosine - measured[0].heir_cosine > 0.5 and measured[1].difference == 1


def test_absorption_needs_a_hierarchy(data):
    _, x, codes = data
    with pytest.raises(ValueError, match="child=5 is on where parent=0 is off"):
        absorption(CHANCE, x, codes, F, parent=0, child=5)
    with pytest.raises(ValueError, match="codes: need states"):
        absorption(CHANCE, x[:1], codes[:1] * 0, F, parent=0, child=1)


# ---------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["relu", "topk", "batchtopk", "jumprelu", "gated", "matryoshka"])
def test_training_finds_the_planted_features(data, fitted, kind):
    _, x, codes = data
    sae = fitted[kind]
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(32), atol=1e-5)
    quality, untrained = sae.quality(x), CHANCE.quality(x)
    assert quality["fvu"] < 0.2 < untrained["fvu"] / 3
    assert quality["l0"] < 2.5 * (codes > 0).sum(1).float().mean()
    assert recovery(sae, F).score > recovery(CHANCE, F).score + 0.2


def test_only_the_l1_penalty_shrinks(data, fitted):
    x = data[1]
    shrinkage = {kind: sae.quality(x)["shrinkage"] for kind, sae in fitted.items()}
    assert shrinkage.pop("relu") > 0.1
    assert all(abs(value) < 0.03 for value in shrinkage.values())


def test_l1_shrinks_a_lone_feature_by_half_the_penalty():
    """x = c f: the best activation minimises (c - a)^2 + lambda a, so a = c - lambda / 2."""
    c = 0.5 + torch.rand(5000, 1, generator=torch.Generator().manual_seed(0))
    f = torch.tensor([[0.6, 0.8, 0.0, 0.0]])
    sae = SAE(4, 1, seed=1)
    with torch.no_grad():
        sae.W_dec.copy_(f)
        sae.W_enc.copy_(f.T)
    sae = fit(sae, torch.cat([c @ f, torch.zeros(5000, 4)]), sparsity=0.2, steps=500, lr=1e-2)
    made = sae(c @ f) @ f[0]
    assert (c[:, 0] - made).mean().item() == pytest.approx(0.1, abs=0.03)


def test_the_penalty_buys_sparsity_with_error(data):
    weak, strong = (train(data[0], 32, sparsity=s, steps=200, lr=4e-3).quality(data[1]) for s in (0.02, 0.5))
    assert strong["l0"] < weak["l0"] and strong["fvu"] > weak["fvu"]


def test_batchtopk_keeps_its_budget_when_used_state_by_state(data, fitted):
    """In training k a state on average, exactly; later one threshold decides, and the average stays near k."""
    x, sae = data[1], fitted["batchtopk"]
    assert not sae.training and sae.threshold > 0
    a = sae.encode(x)
    assert (a > 0).sum(1).float().mean().item() == pytest.approx(2, rel=0.15)
    assert torch.equal(a, torch.cat([sae.encode(x[:7]), sae.encode(x[7:])]))  # no longer depends on the batch


def test_absorption_silences_the_parent_when_the_child_is_on(data, fitted):
    """Audit A12: the general feature's latent goes silent, not the specific one's. A Matryoshka keeps it on."""
    _, x, codes = data
    plain, nested = (absorption(fitted[name], x, codes, F, PLANTED.parent, PLANTED.child)
                     for name in ("topk", "matryoshka"))
    assert plain.silent_with_child > 0.6 and plain.difference > 0.3
    assert plain.heir != plain.latent and plain.heir_cosine > 0.3             # carries the parent along
    assert nested.silent_with_child < 0.3 and nested.heir_cosine < 0.3


def mostly_dead(data, remedy=None):
    """Quality after training a ReLU SAE in which 24 of 32 features start out of reach: 8 are left for 24 directions."""
    sae = SAE(16, 32)
    with torch.no_grad():
        sae.b_enc[:24] = -2.0
    return fit(sae, data[0], sparsity=0.1, steps=400, lr=8e-3, dead_after=50, remedy=remedy).quality(data[1])


@pytest.fixture(scope="module")
def without_remedy(data):
    return mostly_dead(data)


@pytest.mark.parametrize("remedy", ["resample", "auxk"])
def test_a_remedy_revives_dead_features(data, without_remedy, remedy):
    remedied = mostly_dead(data, remedy)
    assert without_remedy["dead"] >= 0.6
    assert remedied["dead"] < 0.25 and remedied["fvu"] < 0.5 * without_remedy["fvu"]


def test_history_follows_training(data):
    history = []
    train(data[0], 32, "topk", k=2, steps=100, history=history)
    assert len(history) == 50 and history[-1]["step"] == 100 and history[-1]["l0"] <= 2
    assert history[-1]["loss"] < 0.7 * history[0]["loss"] and set(history[0]) == {"step", "loss", "l0", "dead"}
