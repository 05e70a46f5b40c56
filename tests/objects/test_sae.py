import pytest
import torch

import mi_course as mi
from mi_course.objects.sae import SAE, fit, loss_recovered, train
from mi_course.world.compiled import planted_features
from tests.families import random_model

PLANTED = planted_features()


@pytest.fixture(scope="module")
def data():
    return PLANTED.sample(20000)[0], *PLANTED.sample(4000, seed=1)


@pytest.fixture(scope="module")
def fitted(data):
    return train(data[0], 32, l1=0.3, steps=1000)


def random_sae(d=16, m=40, **options):
    """Nothing at a neutral value: rows of any norm, all biases non-zero."""
    sae, g = SAE(d, m, **options), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in sae.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return sae.requires_grad_(False)


def test_equations_7_to_9():
    sae, x = random_sae(), torch.randn(5, 3, 16, generator=torch.Generator().manual_seed(0))
    a = sae.encode(x)
    assert a.shape == (5, 3, 40) and (a >= 0).all() and (a == 0).any() and (a > 0).any()
    by_hand = sum(a[..., j, None] * sae.W_dec[j] for j in range(40)) + sae.b_dec        # features are rows (A13)
    assert torch.allclose(sae.decode(a), by_hand, atol=1e-5)
    loss = torch.stack([(v - sae(v)).norm() ** 2 + 0.3 * sae.encode(v).norm(p=1) for v in x.flatten(0, 1)]).mean()
    assert torch.allclose(sae.loss(x, l1=0.3), loss, rtol=1e-5)


def test_topk_keeps_the_k_largest():
    sae, x = random_sae(kind="topk", k=3), torch.randn(50, 16)
    a, full = sae.encode(x), torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc)
    assert ((a > 0).sum(1) <= 3).all()
    assert torch.allclose(a.sum(1), full.sort(descending=True).values[:, :3].sum(1))


def test_the_l1_loss_is_degenerate_without_a_norm_constraint():
    """Audit A11: same reconstruction, any L1 term you like; with unit rows there is no freedom left."""
    sae, x = random_sae(), torch.randn(200, 16)
    cheap = sae.rescaled(7.0)
    assert torch.allclose(cheap(x), sae(x), atol=1e-4)
    penalty = [(s.loss(x, 1.0) - s.loss(x, 0.0)).item() for s in (sae, cheap)]
    assert penalty[1] == pytest.approx(penalty[0] / 7, rel=1e-4)
    assert sae.rescaled(1e4).loss(x, 1.0) < sae.loss(x, 0.0) * 1.01                  # the penalty is gone

    one, other = sae.unit_rows(), cheap.unit_rows()
    assert torch.allclose(one.W_dec.norm(dim=1), torch.ones(40), atol=1e-5)
    assert torch.allclose(one(x), sae(x), atol=1e-4)
    for a, b in zip(one.parameters(), other.parameters()):
        assert torch.allclose(a, b, atol=1e-4)


def test_training_finds_the_planted_features(data, fitted):
    x, test_x, codes = data
    assert torch.allclose(fitted.W_dec.norm(dim=1), torch.ones(32), atol=1e-5)
    quality = fitted.quality(test_x)
    assert quality["fvu"] < 0.1 and quality["dead"] < 0.1
    assert quality["l0"] < 2.5 * (codes > 0).sum(1).float().mean()
    best = (PLANTED.directions @ fitted.W_dec.T).max(1)
    assert best.values.mean() > 0.95
    chance = (PLANTED.directions @ SAE(16, 32).W_dec.T).max(1).values.mean()
    assert chance < 0.75
    assert SAE(16, 32).quality(test_x)["fvu"] > 5 * quality["fvu"]


def test_the_penalty_buys_sparsity_with_error(data):
    weak, strong = (train(data[0], 32, l1=l1, steps=400).quality(data[1]) for l1 in (0.02, 0.5))
    assert strong["l0"] < weak["l0"] and strong["fvu"] > weak["fvu"]


def test_absorption_silences_the_parent_when_the_child_is_on(data):
    """Audit A12: the general feature's latent goes silent, not the specific one's."""
    x, test_x, codes = data
    sae = train(x, 32, kind="topk", k=2, steps=1000)
    latent = (PLANTED.directions[PLANTED.parent] @ sae.W_dec.T).argmax()
    silent = sae.encode(test_x)[:, latent] == 0
    parent, child = codes[:, PLANTED.parent] > 0, codes[:, PLANTED.child] > 0
    assert silent[child].float().mean() > silent[parent & ~child].float().mean() + 0.3
    heir = (PLANTED.directions[PLANTED.child] @ sae.W_dec.T).argmax()
    assert heir != latent and sae.W_dec[heir] @ PLANTED.directions[PLANTED.parent] > 0.3   # carries the parent along


def test_dead_features_stay_dead_without_the_remedy(data):
    x, test_x, _ = data

    def mostly_dead():
        sae = SAE(16, 32)
        with torch.no_grad():
            sae.b_enc[:24] = -20.0                 # 8 features are left for 24 directions
        return sae

    without = fit(mostly_dead(), x, l1=0.1, steps=600).quality(test_x)
    remedied = fit(mostly_dead(), x, l1=0.1, steps=600, resample_every=100).quality(test_x)
    assert without["dead"] >= 0.75
    assert remedied["dead"] < 0.1 and remedied["fvu"] < 0.5 * without["fvu"]


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def model(request):
    model = mi.wrap(random_model(request.param))
    model.saes["s"] = random_sae(model.d_model, 64, site="x1")
    return model


PROMPTS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))


def test_features_are_sites_and_keep_the_error(model):
    sae = model.saes["s"]
    cache = mi.record(model, PROMPTS, ["x1", "sF*", "sF5"])
    assert torch.equal(cache["sF*"], sae.encode(cache["x1"]))
    assert torch.equal(cache["sF5"], cache["sF*"][..., 5])
    with mi.intervene(model, mi.scale("sF*", 1.0)):
        assert torch.allclose(model(PROMPTS), cache.logits, atol=1e-4)         # the error term stays (A11 d)
    with mi.intervene(model, mi.zero("sF5")):
        changed = mi.record(model, PROMPTS, ["x1"])["x1"]
    assert torch.allclose(cache["x1"] - changed, cache["sF5"][..., None] * sae.W_dec[5], atol=1e-5)


def test_splice_replaces_the_state_by_its_reconstruction(model):
    sae = model.saes["s"]
    plain = mi.record(model, PROMPTS, ["x1"])["x1"]
    with mi.intervene(model, sae.splice()):
        assert torch.allclose(mi.record(model, PROMPTS, ["x1"])["x1"], sae(plain))


def test_loss_recovered_is_one_for_a_perfect_and_zero_for_a_zero_reconstruction(model):
    d = model.d_model
    perfect = SAE(d, 2 * d, site="x1")
    with torch.no_grad():                                                      # relu(x) and relu(-x)
        perfect.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)], dim=1))
        perfect.W_dec.copy_(perfect.W_enc.T)
    nothing = SAE(d, 4, site="x1")
    with torch.no_grad():
        nothing.W_dec.zero_()
    unequal = [[5, 9, 30, 12], [8, 41, 6, 6, 17, 3]]
    assert loss_recovered(model, perfect, unequal) == pytest.approx(1.0, abs=1e-4)
    assert loss_recovered(model, nothing, unequal) == pytest.approx(0.0, abs=1e-4)


def test_save_and_load_refuse_another_model(model, tmp_path):
    sae = model.saes["s"]
    sae.save(tmp_path / "s.safetensors", model)
    again = SAE.load(tmp_path / "s.safetensors", model)
    x = torch.randn(4, model.d_model)
    assert torch.equal(again(x), sae(x)) and again.site == "x1"
    with pytest.raises(ValueError, match="another model"):
        SAE.load(tmp_path / "s.safetensors", mi.wrap(random_model(model.family.name, seed=5)))


@pytest.mark.parametrize("act, says", [
    (lambda: SAE(4, 8, kind="gated"), "kind='gated'"),
    (lambda: SAE(4, 8, kind="topk"), "give k in 1 ... 8"),
    (lambda: SAE(4, 8, k=3), "none for 'relu'"),
    (lambda: SAE(4, 8).rescaled(-1.0), "c must be positive"),
    (lambda: SAE(4, 8).splice(), "site is not set"),
    (lambda: train(torch.randn(2, 3, 4), 8), r"x has shape \(2, 3, 4\)"),
])
def test_bad_input_is_named(act, says):
    with pytest.raises(ValueError, match=says):
        act()
