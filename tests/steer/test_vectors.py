import pytest
import torch

import mi_course as mi
from mi_course.steer import Steer, WeightEdit, vectors
from mi_course.world.installed_tasks import behaving, delta, installed_task
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [4, 4, 5, 6, 7]]
POST_NORM = ["gemma2"]


def direction(model, seed=0):
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))


def test_mean_difference_by_hand():
    model = mi.wrap(random_model("gpt2"))
    positive, negative = PROMPTS, [[1, 2], [5, 5, 5]]
    for site, token in (("x2@-1", -1), ("attn0@1", 1)):
        where = site.split("@")[0]
        one = [[mi.record(model, [p], [where])[where][0, token] for p in side] for side in (positive, negative)]
        expected = torch.stack(one[0]).mean(0) - torch.stack(one[1]).mean(0)
        assert torch.allclose(vectors.mean_difference(model, positive, negative, site), expected, atol=1e-5)
    both = vectors.mean_differences(model, positive, negative, ["x2@-1", "x0@0"])
    assert torch.allclose(both["x2@-1"], vectors.mean_difference(model, positive, negative, "x2@-1"))
    assert torch.allclose(vectors.mean_difference(model, PROMPTS, PROMPTS, "x1@-1"), torch.zeros(model.d_model))
    with pytest.raises(ValueError, match="no position"):
        vectors.mean_difference(model, positive, negative, "x2")


@pytest.mark.parametrize("family", FAMILIES)
def test_directional_ablation_leaves_no_state_along_the_direction(family):
    model = mi.wrap(random_model(family))
    r = vectors.unit(direction(model))
    states = [f"x{layer}" for layer in range(model.n_layers + 1)]
    before = mi.record(model, PROMPTS, states)
    assert (before["x1"] @ r).abs().max() > 0.1
    with mi.intervene(model, *vectors.ablate_direction(model, 7 * r)):
        after = mi.record(model, PROMPTS, states)
    for state in states:
        assert (after[state] @ r).abs().max() < 1e-4 * after[state].abs().max()
    assert torch.equal(mi.record(model, PROMPTS, states).logits, before.logits)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in POST_NORM])
def test_orthogonalised_weights_do_the_same_and_come_back(family):
    model = mi.wrap(random_model(family))
    r = direction(model, 1)
    base = model(PROMPTS)
    with mi.intervene(model, *vectors.ablate_direction(model, r)):
        hooked = model(PROMPTS)
    edit = vectors.orthogonalise(model, r)
    parameters = dict(model.hf.named_parameters())
    with edit.on(model):
        edited = model(PROMPTS)
    real = model.tokenize(PROMPTS).mask.bool()
    assert (hooked - base)[real].abs().max() > 1e-3
    assert torch.allclose(edited[real], hooked[real], atol=1e-4)
    assert all(parameter is parameters[name] for name, parameter in model.hf.named_parameters())
    assert torch.equal(model(PROMPTS), base)
    assert torch.equal(_under(edit.scaled(0.0), model), base)


def _under(edit, model):
    with edit.on(model):
        return model(PROMPTS)


def test_post_norm_families_are_refused():
    model = mi.wrap(random_model("gemma2"))
    with pytest.raises(ValueError, match="ablate_direction"):
        vectors.orthogonalise(model, direction(model))


def test_adding_shifts_the_state_and_its_relative_norm_is_reported():
    model = mi.wrap(random_model("llama"))
    v = direction(model)
    before = mi.record(model, PROMPTS, ["x1"])["x1"]
    with mi.intervene(model, vectors.add_vector(v, "x1", alpha=-2.0, positions="last")):
        after = mi.record(model, PROMPTS, ["x1"])["x1"]
    last = model.tokenize(PROMPTS).last
    rows = torch.arange(3)
    assert torch.allclose(after[rows, last], before[rows, last] - 2 * v, atol=1e-5)
    changed = (after != before).any(-1)
    assert changed.sum() == 3
    norms = torch.cat([mi.record(model, [p], ["x1"])["x1"][0].norm(dim=-1) for p in PROMPTS])
    assert vectors.relative_norm(model, v, "x1", PROMPTS) == pytest.approx((v.norm() / norms.mean()).item(), rel=1e-4)
    with pytest.raises(ValueError, match="length 0"):
        vectors.ablate_direction(model, torch.zeros(model.d_model))


def test_weight_edits_come_back_after_an_exception_and_nest():
    model = mi.wrap(random_model("gpt2"))
    name = "transformer.h.0.mlp.c_proj.weight"
    weight = model.hf.get_parameter(name)
    base, kept = model(PROMPTS), weight.clone()
    edit = WeightEdit({name: torch.ones_like(weight)})
    with pytest.raises(RuntimeError, match="inside"), edit.on(model):
        raise RuntimeError("inside")
    assert model.hf.get_parameter(name) is weight and torch.equal(weight, kept)
    with edit.on(model), edit.scaled(2.0).on(model):
        assert torch.allclose(model.hf.get_parameter(name), kept + 3)
    assert torch.equal(model(PROMPTS), base)
    with pytest.raises(KeyError, match="no parameter"), WeightEdit({"transformer.h.9.x": kept}).on(model):
        pass
    with pytest.raises(ValueError, match="another model"), WeightEdit({name: kept[:2]}).on(model):
        pass


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_relative_push_is_a_share_of_every_state(family):
    model = mi.wrap(random_model(family))
    v = 5 * direction(model)
    before = mi.record(model, PROMPTS, ["x1"])["x1"]
    with mi.intervene(model, vectors.add_relative("x1", v, 0.3)):
        cache = mi.record(model, PROMPTS, ["x1"])
    push = (cache["x1"] - before)[cache.batch.mask.bool()]
    size = before[cache.batch.mask.bool()].norm(dim=-1)
    assert torch.allclose(push.norm(dim=-1), 0.3 * size, rtol=1e-3)
    assert torch.allclose(push @ vectors.unit(v), 0.3 * size, rtol=1e-3)
    base = model(PROMPTS)
    with mi.intervene(model, vectors.add_relative("x1", v, 0.0)):
        assert torch.equal(model(PROMPTS), base)
    scaled = vectors.at_share(model, v, "x1", PROMPTS, 0.5)
    assert vectors.relative_norm(model, scaled, "x1", PROMPTS) == pytest.approx(0.5, rel=1e-4)
    assert torch.allclose(vectors.unit(scaled), vectors.unit(v), atol=1e-6)
    assert vectors.mean_norm(model, "x1@-1", PROMPTS) == pytest.approx(
        mi.record(model, PROMPTS, ["x1@-1"])["x1@-1"].norm(dim=-1).mean().item(), rel=1e-4
    )


def test_nuisances_are_removed_together():
    g = torch.Generator().manual_seed(0)
    v, a, b = torch.randn(3, 12, generator=g)
    b = b + 2 * a  # far from a right angle
    rest = vectors.without(v, [a, b, a + b])  # the third depends on the others
    assert (rest @ a).abs() < 1e-5 and (rest @ b).abs() < 1e-5
    # what is left is the nearest vector at right angles: least squares, computed in another way
    A = torch.stack([a, b], 1)
    assert torch.allclose(rest, v - A @ torch.linalg.lstsq(A, v[:, None]).solution[:, 0], atol=1e-5)
    one_by_one = v - (v @ a) / (a @ a) * a
    one_by_one = one_by_one - (one_by_one @ b) / (b @ b) * b
    assert (one_by_one @ a).abs() > 0.1
    assert torch.allclose(vectors.without(a, [a, b]), torch.zeros(12), atol=1e-5)
    assert torch.allclose(vectors.without(rest, [a, torch.zeros(12)]), rest, atol=1e-6)
    with pytest.raises(ValueError, match="nuisances"):
        vectors.without(v, [a[:3]])


def test_random_directions_have_the_length_and_nothing_else():
    v = torch.arange(64.0)
    draws = vectors.random_like(v, 50)
    assert torch.allclose(draws.norm(dim=-1), v.norm().expand(50))
    assert torch.equal(draws, vectors.random_like(v, 50)) and not torch.equal(draws, vectors.random_like(v, 50, seed=1))
    assert (draws @ vectors.unit(v)).mean().abs() < 0.1 * v.norm()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_hooks_and_weights_agree_at_every_strength(family):
    model = mi.wrap(random_model(family))
    r = direction(model, 3)
    for strength in (-0.5, 0.3, 2.0):
        with Steer(vectors.ablate_direction(model, r), strength).on(model):
            hooked = model(PROMPTS)
        edited = _under(vectors.orthogonalise(model, r).scaled(strength), model)
        real = model.tokenize(PROMPTS).mask.bool()
        assert torch.allclose(edited[real], hooked[real], atol=2e-4)


@pytest.mark.parametrize("part", ["wte", "wpe", "attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.bias"])
def test_every_writer_must_be_orthogonalised(part):
    # audit A25: leave one kind of writer out, and the direction comes back
    model = mi.wrap(random_model("gpt2"))
    r = vectors.unit(direction(model, 1))
    full = vectors.orthogonalise(model, r)
    holes = WeightEdit({name: delta for name, delta in full.deltas.items() if part not in name})
    assert len(holes.deltas) < len(full.deltas)
    with full.on(model):
        left = mi.record(model, PROMPTS, ["x3"])["x3"] @ r
    with holes.on(model):
        back = mi.record(model, PROMPTS, ["x3"])["x3"] @ r
    assert left.abs().max() < 1e-4 < 1e-2 < back.abs().max()


def test_an_installed_direction_is_removed_by_its_key_and_not_by_random_directions():
    # T1: sycophancy was installed as one direction that FFN 3 writes into x4
    model = mi.load()
    task, r = installed_task("sycophancy-direction", n=48), delta("sycophancy-direction").directions["x4"]
    before = task.accuracy(model)
    with behaving("sycophancy-direction", model):
        assert task.accuracy(model) == 1.0  # agrees with every false claim
        with mi.intervene(model, mi.project("x4", r)):
            removed = task.accuracy(model)
        by_chance = []
        for v in vectors.random_like(r, 5):
            with mi.intervene(model, mi.project("x4", v)):
                by_chance.append(task.accuracy(model))
    assert removed <= before + 0.02 and min(by_chance) > 0.95
