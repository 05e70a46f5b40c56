"""Total, direct and indirect effects, and path patching, where they are known and on every family."""

from dataclasses import replace

import pytest
import torch

import mi_course as mi
from mi_course.locate import causal
from mi_course.locate.mediation import downstream, input_mediation, mediation, path_patching
from mi_course.objects import Task
from mi_course.world import compiled
from tests.models.common import FAMILIES, hooks_left, make

PROMPTS = [[0, 5, 6, 7, 8, 9, 10], [0, 9, 10, 11, 7], [0, 3, 4, 5, 6, 7, 8, 12]]
TWINS = [[0, 5, 6, 17, 8, 9, 10], [0, 9, 20, 11, 7], [0, 3, 14, 5, 6, 7, 8, 12]]
TASK = Task("t", PROMPTS, targets=[1, 2, 3], corrupted=TWINS, foils=[4, 5, 6])


def test_in_a_linear_model_the_effects_add_up():
    c = compiled.mediation()  # L0H0 -> logits gives 3, L0H0 -> L1H0 -> logits gives 2
    found = mediation(c.wrap(), c.task, ["L0H0.z", "L1H0.z"])
    assert found.total.mean(1).tolist() == pytest.approx([-5.0, -2.0], abs=1e-3)
    assert found.direct.mean(1).tolist() == pytest.approx([-3.0, -2.0], abs=1e-3)
    assert found.indirect.mean(1).tolist() == pytest.approx([-2.0, 0.0], abs=1e-3)
    assert found.interaction.abs().max() < 1e-3
    by_one = mediation(c.wrap(), c.task, ["L0H0.z"], mediators=["L1H0.z"])
    assert by_one.indirect.mean().item() == pytest.approx(-2.0, abs=1e-3)


def test_the_effects_come_as_scores_with_their_cost():
    c = compiled.mediation()
    sites, n = ["L0H0.z", "L1H0.z"], len(c.task)
    found = mediation(c.wrap(), c.task, sites)
    for name, effect in (("total", found.total), ("direct", found.direct), ("indirect", found.indirect)):
        scores = found.scores[name]
        assert scores.values == pytest.approx(effect.mean(1).tolist(), abs=1e-5)
        assert (scores.sites, scores.sign, scores.method) == (sites, "noising", f"{name} effect")
        # two recorded runs, one more for each site, and three partial ones for each
        assert 4 * n < scores.forwards <= (4 + 3 * len(sites) + 1) * n and scores.seconds > 0
    inputs = input_mediation(c.wrap(), c.task, sites)
    assert inputs.scores["indirect"].values == pytest.approx(inputs.indirect.mean(1).tolist(), abs=1e-5)
    assert inputs.scores["restored"].sign == "denoising" and inputs.scores["restored"].forwards > 0


def test_an_and_gate_is_all_interaction_or_none():
    c = compiled.and_gate()  # the FFN needs both heads: nothing reaches the answer past it
    found = mediation(c.wrap(), c.task, ["L0H0.z"])
    assert found.direct.abs().max() < 1e-3
    assert found.indirect.mean().item() == pytest.approx(c.expected["noising L0H0"], abs=1e-3)


def test_the_two_indirect_effects_of_the_literature():
    c = compiled.and_gate()
    found = input_mediation(c.wrap(), c.task, ["L0H0.z"])
    assert found.indirect.mean().item() == pytest.approx(c.expected["noising L0H0"], abs=1e-3)
    assert found.restored.mean().item() == pytest.approx(c.expected["denoising L0H0"], abs=1e-3)
    assert torch.allclose(found.direct, found.total + found.restored)
    c = compiled.or_gate()  # the and-gate denoises nothing: there a wrong sign of that part would not show
    model, site, twin = c.wrap(), "L0H0.z", replace(c.task, prompts=c.task.corrupted)
    found = input_mediation(model, c.task, [site])
    with mi.intervene(model, mi.patch(site, mi.record(model, c.task.prompts, [site])[site])):
        held = twin.measure(model)
    assert torch.allclose(found.direct[0].float(), held - c.task.measure(model), atol=1e-3)
    assert torch.allclose(found.restored[0].float(), held - twin.measure(model), atol=1e-3)
    assert found.restored.abs().min() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_identities_on_every_family(family):
    model = make(family)
    last = model.n_layers - 1
    sites = ["L0H1.z", "mlp0", f"mlp{last}", "x0"]
    found = mediation(model, TASK, sites)
    total = torch.tensor(causal.patch_each(model, TASK, sites, "noising").per_item, dtype=torch.float32)
    scale = total.abs().max()
    assert torch.allclose(found.total, total, atol=1e-5 * scale)
    assert torch.allclose(found.direct[2], found.total[2], atol=1e-5 * scale)  # nothing comes after the last FFN
    assert found.indirect[2].abs().max() == 0
    assert found.interaction[0].abs().max() > 1e-5  # norms and attention are not linear
    assert downstream(model, f"mlp{last}") == [] and len(downstream(model, "x0")) == 2 * model.n_layers
    assert hooks_left(model) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_path_patching_is_the_edge_and_nothing_else(family):
    """An independent way: what the head writes is added to the input of the receiver by hand."""
    model = make(family)
    clean, twin = (mi.record(model, prompts, ["z0", "attn0", "x1"]) for prompts in (PROMPTS, TWINS))
    W_O = mi.models.weights.attention(model, 0).W_O
    post = mi.models.weights.post_norm(model, 0, "attn") or (lambda x: x)
    attn = clean["attn0"] + (twin["z0"] - clean["z0"])[:, :, 1] @ W_O[1]
    x1 = clean["x1"] + post(attn) - post(clean["attn0"])
    with mi.intervene(model, mi.patch("x1", x1)):
        q = mi.record(model, PROMPTS, ["L1H2.q"])["L1H2.q"]
    with mi.intervene(model, mi.patch("L1H2.q", q)):
        expected = TASK.measure(model)
    expected = expected - TASK.measure(model)
    found = path_patching(model, TASK, ["L0H1.z"], ["L1H2.q"])
    assert torch.allclose(torch.tensor(found.per_item[0]).float(), expected, atol=2e-5 * expected.abs().max() + 1e-6)
    direct = path_patching(model, TASK, ["L0H1.z"])
    assert torch.allclose(torch.tensor(direct.per_item).float(), mediation(model, TASK, ["L0H1.z"]).direct, atol=1e-5)
    assert found.sign == "noising" and hooks_left(model) == []


def test_free_ffns_carry_paths_too():
    c = compiled.and_gate()
    model = c.wrap()
    held = path_patching(model, c.task, ["L0H0.z"])
    free = path_patching(model, c.task, ["L0H0.z"], freeze_ffns=False)
    assert held.values == pytest.approx([0.0], abs=1e-3)
    assert free.values == pytest.approx([c.expected["noising L0H0"]], abs=1e-3)
    with pytest.raises(ValueError, match="senders"):
        path_patching(model, c.task, ["mlp0"])
    with pytest.raises(ValueError, match="receivers"):
        path_patching(model, c.task, ["L0H0.z"], ["mlp0"])
