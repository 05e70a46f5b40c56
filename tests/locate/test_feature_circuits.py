"""Feature effects and edges: what must add up adds up, in every family; planted features; bad input."""

import pytest
import torch

import mi_course as mi
from mi_course.locate.feature_circuits import error_share, feature_edges, feature_effects
from mi_course.models import edit, intervene, patch, record
from mi_course.objects import Task
from mi_course.objects.sae import SAE
from tests.families import FAMILIES, random_model

CLEAN, CORRUPTED = [[5, 6, 7, 8], [9, 4, 11, 13, 20]], [[5, 16, 7, 8], [9, 4, 21, 13, 20]]


def case(family="gpt2", sites=("x1",), **task):
    """A random model with random TopK SAEs, and a task of two prompts of unequal length."""
    model = mi.wrap(random_model(family))
    for i, site in enumerate(sites):
        width = record(model, CLEAN, [site])[site].flatten(2).shape[-1]
        model.saes[f"s{i}"] = SAE(width, 30, "topk", 4, site, seed=i).eval().requires_grad_(False)
    return model, Task("t", CLEAN, [3, 4], **({"corrupted": CORRUPTED, "foils": [6, 7]} | task))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_and_error_sum_to_the_first_order_effect_of_the_whole_state(family):
    model, task = case(family, ("x1", "mlp1.write", "z1", "neurons0"))
    scores = feature_effects(model, task, ["s0", "s1", "s2", "s3"])
    sites = [model.saes[f"s{i}"].site for i in range(4)]
    cache, other = record(model, CLEAN, sites, grad=True), record(model, CORRUPTED, sites)
    metric = task.metric_of(cache.logits[torch.arange(2), cache.batch.last], model).mean()
    for i, site in enumerate(sites):
        expected = (torch.autograd.grad(metric, cache[site], retain_graph=True)[0] * (other[site] - cache[site])).sum()
        found = sum(scores[node] for node in scores.sites if node.startswith(f"s{i}"))
        assert found == pytest.approx(expected.item(), abs=2e-4)
    assert len(scores) == 4 * 31 and scores.sign == "noising" and (scores.forwards, scores.backwards) == (4, 2)


def test_with_many_steps_they_sum_to_the_exact_effect_of_patching():
    model, task = case()
    with intervene(model, patch("x1", record(model, CORRUPTED, ["x1"])["x1"])):
        patched = task.measure(model).mean()
    exact = (patched - task.measure(model).mean()).item()
    first, many = feature_effects(model, task, ["s0"]), feature_effects(model, task, ["s0"], steps=64)
    assert many.values.sum() == pytest.approx(exact, abs=1e-2 * abs(exact) + 1e-3)
    assert abs(first.values.sum() - exact) > 5 * abs(many.values.sum() - exact)
    assert many.backwards == 2 * 65


def test_one_step_is_the_gradient_half_way():
    """64 steps hide where in a step the gradient is taken: one step does not."""
    model, task = case()
    clean, other = (record(model, prompts, ["x1"])["x1"] for prompts in (CLEAN, CORRUPTED))
    half = ((clean + other) / 2).requires_grad_()
    with intervene(model, edit("x1", lambda value: half)):
        metric = task.metric_of(model.last_logits(CLEAN, grad=True), model).mean()
    expected = (torch.autograd.grad(metric, half)[0] * (other - clean)).sum().item()
    found, plain = feature_effects(model, task, ["s0"], steps=1), feature_effects(model, task, ["s0"])
    assert found.values.sum() == pytest.approx(expected, abs=2e-4)
    assert abs(plain.values.sum() - expected) > 1e-2


@pytest.mark.parametrize("baseline", ["corrupted", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2"])
def test_edges_into_all_of_a_later_stream_state_sum_to_the_effect_of_the_sender(family, baseline):
    model, task = case(family, ("x1", "x2"))
    receivers = [f"s1F{j}" for j in range(30)] + ["s1.error"]
    edges = feature_edges(model, task, "s0", receivers, baseline)
    effects = feature_effects(model, task, ["s0"], baseline)
    into = edges.values.reshape(31, 31)                                        # receiver x sender
    assert edges.sites[1] == "s0F1->s1F0" and edges.sites[-1] == "s0.error->s1.error"
    assert into.sum(0) == pytest.approx(effects.values, abs=2e-4)
    assert abs(into).max() > 1e-2


def test_zero_baseline_is_ablation_of_features_and_error():
    model, task = case(corrupted=None)
    scores = feature_effects(model, task, ["s0"], "zero")
    sae, cache = model.saes["s0"], record(model, CLEAN, ["x1"], grad=True)
    metric = task.metric_of(cache.logits[torch.arange(2), cache.batch.last], model).mean()
    gradient = torch.autograd.grad(metric, cache["x1"])[0]
    x = cache["x1"].detach()
    assert scores["s0.error"] == pytest.approx(-(gradient * (x - sae(x))).sum().item(), abs=1e-4)
    j = int(sae.encode(x)[0, -1].argmax())
    by_hand = -((gradient @ sae.W_dec[j]) * sae.encode(x)[..., j]).sum().item()
    assert scores[f"s0F{j}"] == pytest.approx(by_hand, abs=1e-5) and scores.sign == "ablation"


def test_a_dictionary_with_one_planted_direction_splits_the_effect_along_and_across_it():
    model, task = case()
    direction = torch.nn.functional.normalize(torch.randn(32, generator=torch.Generator().manual_seed(3)), dim=0)
    sae = SAE(32, 8, "relu", site="x1").eval().requires_grad_(False)
    sae.W_dec[5], sae.W_enc[:] = direction, 0.0
    sae.W_enc[:, 5], sae.b_enc[5] = direction, 50.0                            # reads one direction, always active
    model.saes["s0"] = sae
    scores = feature_effects(model, task, ["s0"])
    cache, other = record(model, CLEAN, ["x1"], grad=True), record(model, CORRUPTED, ["x1"])["x1"]
    metric = task.metric_of(cache.logits[torch.arange(2), cache.batch.last], model).mean()
    gradient, change = torch.autograd.grad(metric, cache["x1"])[0], (other - cache["x1"]).detach()
    along = ((gradient @ direction) * (change @ direction)).sum().item()
    assert scores["s0F5"] == pytest.approx(along, abs=1e-4) and abs(along) > 1e-2
    assert scores["s0.error"] == pytest.approx((gradient * change).sum().item() - along, abs=1e-4)
    assert scores.values[[0, 1, 2, 3, 4, 6, 7]] == pytest.approx(0)
    share = error_share(scores)["s0"]
    assert share == pytest.approx(abs(scores["s0.error"]) / (abs(scores["s0.error"]) + abs(along)), rel=1e-3)


def test_a_dictionary_that_writes_nothing_leaves_everything_to_the_error():
    model, task = case()
    model.saes["s0"].W_dec.zero_()
    assert error_share(feature_effects(model, task, ["s0"])) == {"s0": 1.0}


def test_bad_input_is_named():
    model, task = case(sites=("x1", "x2"))
    with pytest.raises(ValueError, match="give a list of names"):
        feature_effects(model, task, "s0")
    with pytest.raises(ValueError, match="'s7' is not attached"):
        feature_effects(model, task, ["s7"])
    with pytest.raises(ValueError, match="baseline='mean' is unknown"):
        feature_effects(model, task, ["s0"], "mean")
    with pytest.raises(ValueError, match="use baseline='zero'"):
        feature_effects(model, Task("t", CLEAN, [3, 4], foils=[6, 7]), ["s0"])
    with pytest.raises(ValueError, match="belong to several SAEs"):
        feature_edges(model, task, "s0", ["s1F0", "s0F1"])
    with pytest.raises(ValueError, match="no feature or error"):
        feature_edges(model, task, "s0", ["L0H1"])
    with pytest.raises(ValueError, match="does not come before"):
        feature_edges(model, task, "s1", ["s0F0"])
