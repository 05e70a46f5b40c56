"""What an SAE computes: equations 7 to 9, the five kinds, gradients, the degenerate scale, its place in a model."""

import pytest
import torch

import mi_course as mi
from mi_course.objects.sae import AUXK_WEIGHT, SAE, fit, loss_recovered, states, train
from tests.families import random_model


def random_sae(d=16, m=40, **options):
    """Nothing at a neutral value: rows of any norm, all biases non-zero."""
    sae, g = SAE(d, m, **options), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in sae.state_dict().items():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
            if name == "threshold":
                p.abs_()
    return sae.requires_grad_(False).eval()


KINDS = [{"kind": "relu"}, {"kind": "topk", "k": 3}, {"kind": "batchtopk", "k": 3}, {"kind": "jumprelu"},
         {"kind": "gated"}]
X = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------ equations and kinds


@pytest.mark.parametrize("options", KINDS, ids=lambda o: o["kind"])
def test_equation_7_by_hand(options):
    """One state and one feature at a time, from each kind's definition."""
    sae, x = random_sae(**options), X[:12].view(4, 3, 16)
    a = sae.encode(x)
    assert a.shape == (4, 3, 40) and (a >= 0).all() and (a == 0).any() and (a > 0).any()
    for i in (0, 3):
        for t in (0, 2):
            z = torch.stack([(x[i, t] - sae.b_dec) @ sae.W_enc[:, j] + sae.b_enc[j] for j in range(40)])
            third = z.sort(descending=True).values[2]
            for j in range(40):
                on = {"relu": z[j] > 0, "topk": z[j] > 0 and z[j] >= third}.get(sae.kind)
                if sae.kind in ("jumprelu", "batchtopk"):
                    on = z[j] > (sae.threshold[j] if sae.kind == "jumprelu" else sae.threshold)
                size = z[j]
                if sae.kind == "gated":                       # two readings of the same weights: is it on, how large
                    size = (x[i, t] - sae.b_dec) @ (sae.W_enc[:, j] * sae.r_mag[j].exp()) + sae.b_mag[j]
                    on = z[j] > 0 and size > 0
                assert a[i, t, j].item() == pytest.approx(size.item() if on else 0.0, abs=1e-5)


@pytest.mark.parametrize("options", KINDS, ids=lambda o: o["kind"])
def test_equation_8_features_are_rows(options):
    sae = random_sae(**options)
    a = sae.encode(X)
    assert torch.allclose(sae.decode(a), sum(a[:, j, None] * sae.W_dec[j] for j in range(40)) + sae.b_dec, atol=1e-4)
    assert torch.equal(sae(X), sae.decode(a))


def test_equation_9_and_the_penalty_of_each_kind():
    for options, penalty in [(KINDS[0], lambda s: s.encode(X).sum(1)), (KINDS[3], lambda s: (s.encode(X) > 0).sum(1)),
                             (KINDS[4], lambda s: s.pre(X).relu().sum(1))]:
        sae = random_sae(**options)
        error = (X - sae(X)).norm(dim=1) ** 2
        if sae.kind == "gated":
            error = error + (X - sae.decode(sae.pre(X).relu())).norm(dim=1) ** 2
        expected = (error + 0.3 * penalty(sae)).mean()
        assert torch.allclose(sae.loss(X, sparsity=0.3), expected, rtol=1e-5)


def test_batchtopk_shares_its_budget_among_the_states_of_a_batch():
    sae = random_sae(kind="batchtopk", k=3).train()
    a, full = sae.encode(X), sae.pre(X).relu()
    per_state = (a > 0).sum(1)
    assert per_state.float().mean() == 3 and per_state.float().std() > 0       # k on average, not for each
    assert a[a > 0].min() >= full[a == 0].max()
    one_by_one = torch.cat([sae.encode(x[None]) for x in X])
    assert torch.allclose(one_by_one, random_sae(kind="topk", k=3).encode(X), atol=1e-5)  # alone in a batch: TopK


def test_the_threshold_learns_from_the_mean_of_a_step():
    """Audit-style check of the straight-through gradient: against finite differences of the *mean* loss."""
    g = torch.Generator().manual_seed(0)
    sae, x = random_sae(d=3, m=2, kind="jumprelu"), 2 * torch.randn(400_000, 3, generator=g)
    sae.bandwidth, step = 0.1, 0.05
    sae.threshold.fill_(0.4)
    sae.train().threshold.requires_grad_(True)
    (gradient,) = torch.autograd.grad(sae.loss(x, sparsity=0.7), sae.threshold)
    for j in range(2):
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                moved = sae.threshold.clone()
                moved[j] += sign * step
                a = sae.pre(x) * (sae.pre(x) > moved)
                losses.append(((x - sae.decode(a)).pow(2).sum(1) + 0.7 * (a > 0).sum(1)).mean())
        assert gradient[j].item() == pytest.approx(((losses[0] - losses[1]) / (2 * step)).item(), rel=0.05, abs=2e-3)
    assert gradient.abs().min() > 0.01


def test_jumprelu_passes_the_ordinary_gradient_to_everything_else():
    sae = random_sae(kind="jumprelu").train().requires_grad_(True)
    sae.loss(X).backward()
    W = sae.W_enc.detach().clone().requires_grad_(True)
    z = (X - sae.b_dec.detach()) @ W + sae.b_enc.detach()
    a = z * (z > sae.threshold.detach())
    (X - a @ sae.W_dec.detach() - sae.b_dec.detach()).pow(2).sum(1).mean().backward()
    assert torch.allclose(sae.W_enc.grad, W.grad, atol=1e-4)


def test_the_gate_learns_only_through_its_own_terms():
    """The step of the gate has no gradient: without the extra reconstruction its bias would never move."""
    sae = random_sae(kind="gated").requires_grad_(True)
    sae.loss(X).backward()
    b = sae.b_enc.detach().clone().requires_grad_(True)
    z = (X - sae.b_dec.detach()) @ sae.W_enc.detach() + b
    (X - z.relu() @ sae.W_dec.detach() - sae.b_dec.detach()).pow(2).sum(1).mean().backward()
    assert torch.allclose(sae.b_enc.grad, b.grad, atol=1e-4) and sae.b_enc.grad.abs().max() > 0


@pytest.mark.parametrize("options", KINDS, ids=lambda o: o["kind"])
def test_matryoshka_adds_up_the_errors_of_its_prefixes(options):
    sae, whole = random_sae(**options, prefixes=(5, 16, 40)), random_sae(**options)
    a = sae.encode(X)
    assert torch.equal(a, whole.encode(X))                                     # the same function, another loss
    by_hand = sum((X - a[:, :n] @ sae.W_dec[:n] - sae.b_dec).norm(dim=1).pow(2).mean() for n in (5, 16, 40))
    extra = whole.loss(X) - (X - whole(X)).pow(2).sum(1).mean()               # what gated adds
    assert torch.allclose(sae.loss(X), by_hand + extra, rtol=1e-5)


def test_auxk_adds_what_dead_features_make_of_the_error():
    sae = random_sae(kind="topk", k=3)
    dead = torch.zeros(40, dtype=torch.bool)
    dead[10:30] = True
    e, z = X - sae(X), sae.pre(X)[:, 10:30]
    best = z.sort(dim=1, descending=True)                                     # d / 2 = 8 of the 20
    guess = torch.stack([sum(v * sae.W_dec[10 + j] for v, j in zip(vs[:8], js[:8])) for vs, js in zip(*best)])
    expected = sae.loss(X) + AUXK_WEIGHT * (e - guess).norm(dim=1).pow(2).mean()
    assert torch.allclose(sae.loss(X, dead=dead), expected, rtol=1e-5)
    assert torch.equal(sae.loss(X, dead=~dead & dead), sae.loss(X))


def test_the_l1_loss_is_degenerate_without_a_norm_constraint():
    """Audit A11: same reconstruction, any L1 term you like; with unit rows there is no freedom left."""
    sae = random_sae()
    cheap = sae.rescaled(7.0)
    assert torch.allclose(cheap(X), sae(X), atol=1e-4)
    penalty = [(s.loss(X, 1.0) - s.loss(X, 0.0)).item() for s in (sae, cheap)]
    assert penalty[1] == pytest.approx(penalty[0] / 7, rel=1e-4)
    assert sae.rescaled(1e4).loss(X, 1.0) < sae.loss(X, 0.0) * 1.01                  # the penalty is gone

    one, other = sae.unit_rows(), cheap.unit_rows()
    assert torch.allclose(one.W_dec.norm(dim=1), torch.ones(40), atol=1e-5)
    assert torch.allclose(one(X), sae(X), atol=1e-4)
    for a, b in zip(one.parameters(), other.parameters()):
        assert torch.allclose(a, b, atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- quality


def test_quality_of_known_reconstructions():
    d = 4
    x = torch.rand(500, d, generator=torch.Generator().manual_seed(1)) + 0.1
    sae = SAE(d, 6).requires_grad_(False)
    sae.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)[:, :2]], dim=1))    # features 4 and 5 see -x: never on
    sae.W_dec.copy_(sae.W_enc.T)
    assert sae.quality(x) == pytest.approx({"fvu": 0, "l0": 4, "dead": 2 / 6, "shrinkage": 0}, abs=1e-6)
    sae.W_dec.mul_(0.8)                                                        # all lengths a fifth too short
    short = sae.quality(x)
    assert short["shrinkage"] == pytest.approx(0.2, abs=1e-5)
    assert short["fvu"] == pytest.approx((0.04 * x.pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item(), rel=1e-4)


@pytest.mark.parametrize("options", [*KINDS, {"kind": "batchtopk", "k": 3, "prefixes": (8, 40)}],
                         ids=lambda o: o["kind"])
def test_train_does_not_depend_on_the_scale_of_the_states(options):
    """States 50 times as large: 50 times the activations, thresholds and biases; same features, same quality."""
    one, large = (train(x, 40, **options, steps=30, seed=1) for x in (X, 50 * X))
    assert torch.allclose(50 * one.encode(X), large.encode(50 * X), atol=2e-2)
    for name, value in one.quality(X).items():
        assert large.quality(50 * X)[name] == pytest.approx(value, abs=2e-3)


# ------------------------------------------------------------------------------------------------------- in the model


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def model(request):
    model = mi.wrap(random_model(request.param))
    model.saes["s"] = random_sae(model.d_model, 64, site="x1")
    return model


PROMPTS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
UNEQUAL = [[5, 9, 30, 12], [8, 41, 6, 6, 17, 3]]


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


@pytest.mark.parametrize("site", ["x1", "mlp0.write", "neurons1", "z1"])
def test_an_sae_reads_and_edits_any_site(model, site):
    """Also z, whose heads lie on an axis of their own: the SAE sees them side by side."""
    plain = mi.record(model, PROMPTS, [site])[site]
    model.saes["other"] = sae = random_sae(plain.flatten(2).shape[-1], 50, kind="topk", k=5, site=site)
    cache = mi.record(model, PROMPTS, ["otherF*"])
    assert torch.equal(cache["otherF*"], sae.encode(plain.flatten(2)))
    feature = int(cache["otherF*"].flatten(0, 1).sum(0).argmax())
    with mi.intervene(model, mi.zero(f"otherF{feature}")):
        after = mi.record(model, PROMPTS, [site])[site]
    lost = cache["otherF*"][..., feature, None] * sae.W_dec[feature]
    assert torch.allclose((plain - after).flatten(2), lost, atol=1e-4)
    with mi.intervene(model, sae.splice()):
        assert torch.allclose(mi.record(model, PROMPTS, [site])[site].flatten(2), sae(plain.flatten(2)), atol=1e-5)
    del model.saes["other"]


def test_states_are_those_of_real_tokens(model):
    x = states(model, "x1", UNEQUAL, skip=1, batch_size=2)
    one_by_one = [mi.record(model, [row], ["x1"])["x1"][0, 1:] for row in UNEQUAL]
    assert torch.allclose(x, torch.cat(one_by_one), atol=1e-4) and len(x) == 3 + 5
    assert len(states(model, "x1", UNEQUAL, batch_size=1)) == 10


@pytest.mark.parametrize("site", ["x1", "z1"])
def test_loss_recovered_is_one_for_a_perfect_and_zero_for_a_useless_reconstruction(model, site):
    d = states(model, site, UNEQUAL).shape[1]
    perfect = SAE(d, 2 * d, site=site)
    with torch.no_grad():                                                      # relu(x) and relu(-x)
        perfect.W_enc.copy_(torch.cat([torch.eye(d), -torch.eye(d)], dim=1))
        perfect.W_dec.copy_(perfect.W_enc.T)
    for baseline in ("zero", "mean"):
        constant = SAE(d, 4, site=site)
        with torch.no_grad():
            constant.W_dec.zero_()
            constant.b_dec.copy_(states(model, site, UNEQUAL).mean(0) * (baseline == "mean"))
        for size in (1, 64):
            assert loss_recovered(model, perfect, UNEQUAL, baseline, batch_size=size) == pytest.approx(1.0, abs=1e-4)
            assert loss_recovered(model, constant, UNEQUAL, baseline, batch_size=size) == pytest.approx(0.0, abs=1e-3)


def test_first_tokens_can_be_left_as_they_are(model):
    sae = random_sae(model.d_model, 8, site="x1")
    batch = model.tokenize(UNEQUAL)
    later = batch.mask.bool() & (batch.position_ids >= 2)

    def loss(*edits):                                                          # row by row, without padding
        total = []
        for row in UNEQUAL:
            with mi.intervene(model, *edits):
                logprobs = model([row])[0, :-1].log_softmax(-1)
            total.append(-logprobs.gather(-1, torch.tensor(row)[1:, None])[:, 0])
        return torch.cat(total).mean()

    def but_two(value):
        return lambda x: torch.cat([x[:, :2], value(x[:, 2:])], dim=1)

    plain, spliced, without = (loss(), loss(mi.edit("x1", but_two(sae))), loss(mi.edit("x1", but_two(lambda x: 0 * x))))
    expected = ((without - spliced) / (without - plain)).item()
    assert loss_recovered(model, sae, UNEQUAL, skip=2) == pytest.approx(expected, rel=1e-3)
    assert loss_recovered(model, sae, UNEQUAL, skip=2) != pytest.approx(loss_recovered(model, sae, UNEQUAL), rel=1e-2)
    with mi.intervene(model, sae.splice(later)):
        spliced = mi.record(model, batch, ["x1"])["x1"]
    plain = mi.record(model, batch, ["x1"])["x1"]
    assert torch.equal(spliced[~later], plain[~later]) and torch.allclose(spliced[later], sae(plain[later]), atol=1e-5)


@pytest.mark.parametrize("options", [*KINDS, {"kind": "batchtopk", "k": 3, "prefixes": (8, 64)}],
                         ids=lambda o: o["kind"])
def test_save_and_load_refuse_another_model(model, tmp_path, options):
    sae = random_sae(model.d_model, 64, site="x1", **options)
    sae.save(tmp_path / "s.safetensors", model)
    again = SAE.load(tmp_path / "s.safetensors", model)
    x = torch.randn(4, model.d_model)
    assert torch.equal(again(x), sae(x)) and (again.site, again.prefixes) == ("x1", sae.prefixes)
    sae.save(tmp_path / "half.safetensors", model, torch.float16)
    assert torch.allclose(SAE.load(tmp_path / "half.safetensors", model)(x), sae(x), atol=0.1)
    assert (tmp_path / "half.safetensors").stat().st_size < 0.6 * (tmp_path / "s.safetensors").stat().st_size
    with pytest.raises(ValueError, match="another model"):
        SAE.load(tmp_path / "s.safetensors", mi.wrap(random_model(model.family.name, seed=5)))


@pytest.mark.parametrize("act, says", [
    (lambda: SAE(4, 8, kind="cubic"), "kind='cubic'"),
    (lambda: SAE(4, 8, kind="topk"), "give k in 1 ... 8"),
    (lambda: SAE(4, 8, kind="batchtopk", k=9), "give k in 1 ... 8"),
    (lambda: SAE(4, 8, k=3), "none for others"),
    (lambda: SAE(4, 8, prefixes=(2, 4)), r"prefixes=\(2, 4\) must increase and end in m=8"),
    (lambda: SAE(4, 8, prefixes=(4, 4, 8)), "must increase"),
    (lambda: SAE(4, 8).rescaled(-1.0), "c must be positive"),
    (lambda: SAE(4, 8, kind="gated").rescaled(2.0), "use relu or topk"),
    (lambda: SAE(4, 8, kind="topk", k=2).loss(torch.randn(3, 4), sparsity=0.1), "choose k instead"),
    (lambda: SAE(4, 8).splice(), "site is not set"),
    (lambda: train(torch.randn(2, 3, 4), 8), r"x has shape \(2, 3, 4\)"),
    (lambda: fit(SAE(4, 8), torch.randn(9, 4), remedy="prayer"), "remedy='prayer'"),
    (lambda: loss_recovered(None, SAE(4, 8), ["a"], baseline="none"), "choose 'zero' or 'mean'"),
    (lambda: states(None, "x1", []), "documents is empty"),
])
def test_bad_input_is_named(act, says):
    with pytest.raises(ValueError, match=says):
        act()
