"""First-order scores and integrated gradients: identities on every family, planted truth on compiled models."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import mi_course as mi
from mi_course.locate import causal, gradient
from mi_course.locate import integrated_gradients as ig
from mi_course.locate.attribution_patching import attribution_patching
from mi_course.locate.knowledge_neurons import context_neurons, knowledge_neurons, select
from mi_course.locate.magnitude import all_neurons
from mi_course.objects import Task
from mi_course.world import compiled
from tests.models.common import FAMILIES, hooks_left, make

PROMPTS = [[0, 5, 6, 7, 8, 9], [0, 9, 10, 11], [0, 3, 4, 5, 6]]
TWINS = [[0, 15, 6, 7, 8, 9], [0, 9, 20, 11], [0, 3, 14, 5, 16]]


def task(metric="logit_diff"):
    return Task("t", PROMPTS, targets=[1, 2, 3], foils=[4, 5, 6], corrupted=TWINS, metric=metric)


def sites_of(model):
    names = ["embed", "x0", "x1", "x1@-1", "attn0", "mlp1@2", "z0", "L1H2.z", "L1H3", "L0H1.q", "L1H2.k@1", "L1H1.v"]
    return [*names, "L0H2.pattern", "L0N7", "L1N3@-1", "neurons1", f"x{model.n_layers}"]


# -- first order -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_slope_of_a_real_intervention(family):
    """(F(o + e (0 - o)) - F(o)) / e -> score, with the intervention done by `scale`: shares no code with the scores."""
    model, sites, e = make(family), sites_of(make(family)), 1e-3
    scores = gradient.gradient_times_input(model, task(), sites)
    for i, site in enumerate(sites):
        with mi.intervene(model, mi.scale(site, 1 - e)):
            low = task().measure(model).double()
        with mi.intervene(model, mi.scale(site, 1 + e)):
            high = task().measure(model).double()
        slope = (low - high).numpy() / (2 * e)
        assert scores.per_item.T[:, i] == pytest.approx(slope, abs=1e-2 + 1e-2 * abs(slope).max()), site
    assert not hooks_left(model)


def test_the_error_is_of_second_order():
    """Halve the step and a quarter of the error is left: slope 2 on log-log axes (Eq. 13)."""
    model = make("gpt2").hf.double()
    model = mi.wrap(model)
    try:
        p = gradient.gradients(model, task(), ["neurons1"])
        delta = torch.randn(p.values["neurons1"].shape, generator=torch.Generator().manual_seed(0)).double()
        errors = []
        for e in (0.1, 0.05, 0.025, 0.0125):
            with mi.intervene(model, mi.edit("neurons1", lambda s, e=e: s + e * delta)):
                change = task().measure(model) - p.F
            errors.append((change - e * (p.grads["neurons1"] * delta).sum((1, 2))).abs().mean().item())
        slopes = np.diff(np.log(errors)) / math.log(0.5)
        assert slopes == pytest.approx([2, 2, 2], abs=0.15)
    finally:
        model.hf.float()


def test_one_pass_gives_total_derivatives_and_no_weight_is_differentiated():
    model = make("llama")
    p = gradient.gradients(model, task(), ["x1", "L0H1.z", "x2@-1"])
    alone = [gradient.gradients(model, task(), [site]).grads for site in ("x1", "z0", "x2")]
    for found in alone:
        for name, grad in found.items():
            assert torch.allclose(p.grads[name], grad, atol=1e-5), "reading one site changed the gradient of another"
    assert all(w.grad is None and w.requires_grad for w in model.hf.parameters())


@pytest.mark.parametrize("make_model", [compiled.lookup, compiled.polysemantic, compiled.mediation])
def test_exact_where_the_model_is_linear_in_the_object(make_model):
    c = make_model()
    model = c.wrap()
    sites = [key.split()[1] for key in c.expected if key.startswith("zero") and len(key.split()) == 2] or ["L0H0.z"]
    exact = causal.ablate_each(model, c.task, sites)
    assert gradient.gradient_times_input(model, c.task, sites).values == pytest.approx(exact.values, abs=1e-4)


def test_a_sign_that_flips_cancels_in_the_mean_and_not_in_the_mean_of_sizes():
    """In `decodable` L0H0 writes +volume or -volume: one raises the preference for "shout", one lowers it."""
    c = compiled.decodable()
    model = c.wrap()
    loud = replace(c.task, targets=["shout"] * len(c.task), foils=["whisper"] * len(c.task))
    signed = gradient.gradient_times_input(model, loud, ["L0H0.z", "L0H1.z"])
    sizes = gradient.gradient_times_input(model, loud, ["L0H0.z", "L0H1.z"], reduce="mean_abs")
    assert signed.values == pytest.approx([0, 0], abs=1e-4)
    assert sizes.values == pytest.approx([10, 0], abs=1e-4)
    assert (signed.sign, sizes.sign) == ("ablation", "magnitude")
    assert np.abs(signed.per_item.T).mean(0) == pytest.approx(sizes.values)


def test_rescaling_a_neuron_changes_the_norm_and_nothing_else():
    """s_j times c and v_j divided by c: the same model (gated FFN, whose up branch is linear)."""
    from tests.families import random_model

    model, twin = mi.wrap(random_model("llama")), mi.wrap(random_model("llama"))
    c = torch.exp(torch.randn(twin.d_ffn, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        twin.block(1).mlp.up_proj.weight *= c[:, None]
        twin.block(1).mlp.down_proj.weight /= c
    sites = causal.neurons(model, 1)
    assert torch.allclose(model(PROMPTS), twin(PROMPTS), atol=1e-4)
    for method, same in ((gradient.gradient_times_input, True), (gradient.gradient_norm, False)):
        a, b = method(model, task(), sites).values, method(twin, task(), sites).values
        assert np.allclose(a, b, rtol=1e-3, atol=1e-4) == same
    norms = [gradient.gradient_norm(m, task(), sites).values for m in (model, twin)]
    assert norms[0] / norms[1] == pytest.approx(c.numpy(), rel=1e-3)


def test_two_targets_give_two_rankings():
    model, sites = make("gpt2"), causal.heads(make("gpt2"))
    one = gradient.gradient_times_input(model, task(), sites)
    gap = gradient.gradient_times_input(model, task(), sites, target=gradient.counterfactual_gap)
    prob = gradient.gradient_times_input(model, task("prob"), sites)
    assert one.spearman(gap) < 0.95 and one.spearman(prob) < 0.999
    # the gap by hand: sign(gap) * gradient of logit_y
    logit = Task("t", PROMPTS, [1, 2, 3], foils=[7, 7, 7])
    change = [model.last_logits(p)[range(3), [1, 2, 3]] for p in (PROMPTS, TWINS)]

    def y(model, part):
        return lambda logits: logits[range(3), [1, 2, 3]]

    plain = gradient.gradient_times_input(model, logit, sites, target=y)
    assert gap.per_item.T == pytest.approx((change[0] - change[1]).sign()[:, None].numpy() * plain.per_item.T, abs=1e-5)


def test_batches_padding_and_costs():
    model, sites = make("gemma2"), ["L0H1.z", "L1N3@-1", "x1", "L1H0.pattern"]
    whole = gradient.gradient_times_input(model, task(), sites)
    pieces = gradient.gradient_times_input(model, task(), sites, batch_size=1)
    assert whole.per_item.T == pytest.approx(pieces.per_item.T, abs=1e-4)
    assert (whole.forwards, whole.backwards) == (3, 3)
    assert whole.token_layers == sum(map(len, PROMPTS)) * model.n_layers
    paths = ig.integrated_gradients(model, task(), ["L1N3", "L1N4", "L0H1.z"], steps=4)
    # clean run, then 4 steps and the baseline itself, from block 1 of 2 (half a forward) and from block 0
    assert paths.forwards == 3 + 3 * 5 / 2 + 3 * 5 and paths.backwards == 3 * 4 / 2 + 3 * 4


def test_the_norm_of_one_gradient_by_hand():
    model = make("qwen3")
    p = gradient.gradients(model, task(), ["z1"])
    by_hand = [p.grads["z1"][i, -len(row) :, 2].norm().item() for i, row in enumerate(PROMPTS)]
    assert gradient.gradient_norm(model, task(), ["L1H2.z"]).per_item.T[:, 0] == pytest.approx(by_hand, rel=1e-5)
    largest = [p.grads["z1"][i, -len(row) :, 2].abs().sum().item() for i, row in enumerate(PROMPTS)]
    assert gradient.gradient_norm(model, task(), ["L1H2.z"], order=1).per_item.T[:, 0] == pytest.approx(
        largest, rel=1e-5
    )


def test_features_keep_their_error_term():
    from mi_course.world import sae
    from mi_course.world import task as world_task

    model = mi.load()
    model.saes["d"] = sae("x3-topk")
    facts = world_task("facts", n=3)
    active = mi.record(model, facts.prompts, ["dF*"])["dF*"].amax((0, 1)).topk(2).indices.tolist()
    sites = [f"dF{j}" for j in active]
    paths = ig.integrated_gradients(model, facts, sites, path="own", steps=24)
    assert paths.values == pytest.approx(causal.ablate_each(model, facts, sites).values, abs=2e-2)


# -- paths -------------------------------------------------------------------------------------------------------------


def test_points_of_the_rules():
    assert ig.path_points(4) == [0.125, 0.375, 0.625, 0.875]
    assert ig.path_points(4, "left") == [0, 0.25, 0.5, 0.75]
    assert ig.path_points(4, "right") == [0.25, 0.5, 0.75, 1]


def test_one_point_at_either_end_is_the_gradient_there():
    model, sites = make("gpt2"), ["embed"]
    at_clean, at_twin = (
        ig.integrated_gradients(model, task(), sites, baseline="twin", rule=rule, steps=1) for rule in ("right", "left")
    )
    noising, denoising = (
        attribution_patching(model, task(), sites, direction) for direction in ("noising", "denoising")
    )
    assert at_clean.values == pytest.approx(noising.values, rel=1e-4)
    assert at_twin.values == pytest.approx(-denoising.values, rel=1e-4)  # of one sign: what the twin's value changes
    assert abs(at_clean.values - at_twin.values).max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_completeness_on_every_family(family):
    model = make(family)
    sites = ["embed", "neurons1", "L0H1.z", "x1@-1", "L1H2.k"]
    for baseline in ("twin", "mean") if family == "gpt2" else ("twin",):
        found = ig.integrated_gradients(model, task(), sites, baseline=baseline, steps=24)
        scale = max(1.0, np.abs(found.per_item.T).max())
        for name, residual in found.residual.items():
            assert np.abs(residual).max() < 0.06 * scale, (name, residual)
    assert not hooks_left(model)


def test_the_residual_falls_with_steps_faster_at_midpoints():
    model = make("gpt2")

    def residual(rule, steps):
        found = ig.integrated_gradients(model, task(), ["neurons0"], baseline="twin", rule=rule, steps=steps)
        return np.abs(found.residual["neurons0"]).mean()

    midpoint, right = ([residual(rule, m) for m in (8, 16, 32, 64)] for rule in ("midpoint", "right"))
    assert midpoint[-1] < midpoint[0] / 20 and right[-1] < right[0] / 4
    assert midpoint[-1] < right[-1] / 10
    # a factor of about 4 for each doubling at midpoints, about 2 at right ends
    assert (midpoint[1] / midpoint[3]) ** 0.5 > 3 and 1.6 < (right[1] / right[3]) ** 0.5 < 2.6


@pytest.mark.parametrize("family", FAMILIES)
def test_the_own_path_is_the_exact_ablation_and_the_joint_path_is_not(family):
    model, sites = make(family), ["L0N3", "L0N17", "L0N31@-1", "L1H2.z"]
    exact = causal.ablate_each(model, task(), sites)
    own = ig.integrated_gradients(model, task(), sites, path="own", steps=32)
    joint = ig.integrated_gradients(model, task(), [*causal.neurons(model, 0), "L0N31@-1", "L1H2.z"], steps=32)
    scale = np.abs(exact.values).max()
    assert own.values == pytest.approx(exact.values, abs=0.02 * scale + 1e-3)
    error = np.abs([joint[site] - exact[site] for site in sites[:2]]).max()
    assert error > 10 * np.abs(own.values - exact.values)[:2].max()


def test_saturation_hides_from_the_gradient_and_not_from_the_path():
    c = compiled.saturated()
    model, exact = c.wrap(), -20.0
    first = gradient.gradient_times_input(model, c.task, ["L0H0.z"], baseline="twin")
    path = ig.integrated_gradients(model, c.task, ["L0H0.z"], baseline="twin", steps=64)
    assert abs(first.values[0]) < 1e-5
    assert path.values[0] == pytest.approx(exact, abs=0.1)
    assert causal.patch_each(model, c.task, ["L0H0.z"], "noising").values[0] == pytest.approx(exact, abs=1e-3)


def test_integrated_gradients_beat_the_gradient_against_exact_ablation():
    """Precision@k and Spearman against T2, for the heads of lab on facts."""
    from mi_course.world import task as world_task

    model, facts = mi.load(), world_task("facts", n=5)
    heads = causal.heads(model)
    exact = causal.ablate_each(model, facts, heads)
    first, path = gradient.gradient_times_input(model, facts, heads), ig.integrated_gradients(model, facts, heads)
    assert path.spearman(exact) > first.spearman(exact) > 0.3
    assert path.against(exact.top(6))["recall_at_k"] >= first.against(exact.top(6))["recall_at_k"]


def test_token_attributions():
    c = compiled.lookup()
    model = c.wrap()
    found = ig.token_attributions(model, c.task, baseline="zero", steps=64)
    batch = model.tokenize(c.task.prompts)
    with mi.intervene(model, mi.zero("embed")):
        removed = c.task.measure(model)
    assert found.sum(1).tolist() == pytest.approx((removed - c.task.measure(model)).tolist(), abs=0.2)
    for method in ("gradient norm", "gradient x input", "integrated gradients"):
        found = ig.token_attributions(model, c.task, method, baseline="twin")
        subject = found.abs().argmax(1) == batch.columns(4)  # <bos> the capital of SUBJECT is
        assert subject.all() or method == "gradient norm"
    with pytest.raises(ValueError, match="method='guess'"):
        ig.token_attributions(model, c.task, "guess")


def test_token_attributions_leave_padding_out():
    model = make("llama")
    for method in ("gradient norm", "gradient x input", "integrated gradients"):
        found = ig.token_attributions(model, task(), method, steps=4)
        assert found.shape == (3, 6) and found[1, :2].tolist() == [0, 0] and (found[0] != 0).all()
        alone = ig.token_attributions(model, task().subset([1]), method, steps=4)
        assert torch.allclose(found[1, 2:], alone[0], atol=1e-4)


# -- knowledge neurons and context neurons -----------------------------------------------------------------------------


def test_knowledge_neurons_of_a_known_memory():
    c = compiled.lookup()
    model = c.wrap()
    one = c.task.where(subject="peru")  # three wordings
    scores = knowledge_neurons(model, one, position=None)
    assert select(scores) == ["L0N2"]
    last = knowledge_neurons(model, one)  # as published at the last token alone, where this memory does not sit
    assert last.sites[0] == "L0N0@-1" and np.abs(last.values).max() < 1e-6 and select(last) == []


def test_select_keeps_what_most_prompts_share():
    items = -np.array([[1.0, 0.5, 0.1, 0.0], [1.0, 0.1, 0.5, 0.0], [2.0, 0.5, 0.1, -5.0]])
    scores = gradient.GradientScores(["L0N0", "L0N1", "L0N2", "L0N3"], items.mean(0), "m", "ablation", per_item=items.T)
    assert select(scores, 0.2, 0.5) == ["L0N0", "L0N1"]
    assert select(scores, 0.2, 0.7) == ["L0N0"]
    assert select(scores, 0.2, 0) == ["L0N0", "L0N1", "L0N2"]
    with pytest.raises(ValueError, match="threshold=1.5"):
        select(scores, 1.5)


def test_context_neurons_walk_from_without_to_with():
    """Completeness: a layer's scores sum to F(activations without the context) - F; an unchanged neuron scores 0."""
    model = make("gpt2")
    without = [row[-3:] for row in PROMPTS]
    scores = context_neurons(model, task(), without, steps=32)
    assert len(scores) == model.n_layers * model.d_ffn and scores.sites == all_neurons(model, -1)
    clean = task().measure(model)
    for layer in range(model.n_layers):
        state = mi.record(model, without, [f"neurons{layer}@-1"])[f"neurons{layer}@-1"]
        with mi.intervene(model, mi.patch(f"neurons{layer}@-1", state)):
            exact = task().measure(model) - clean
        found = scores.per_item.T[:, layer * model.d_ffn : (layer + 1) * model.d_ffn].sum(1)
        assert found == pytest.approx(exact.numpy(), abs=0.05)
    same = context_neurons(model, task(), PROMPTS, steps=2)
    assert np.abs(same.per_item.T).max() == 0
    with pytest.raises(ValueError, match="without has 2"):
        context_neurons(model, task(), without[:2])


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda m: gradient.gradient_times_input(m, task(), ["x1"], baseline="noise"), "baseline='noise'"),
        (lambda m: gradient.gradient_times_input(m, task(), ["x1"], reduce="sum"), "reduce='sum'"),
        (lambda m: gradient.gradient_times_input(m, task("accuracy"), ["x1"]), "has no gradient"),
        (lambda m: gradient.gradient_times_input(m, task(), ["pattern1"], baseline="mean"), "baseline='mean'"),
        (lambda m: gradient.gradient_times_input(m, task(), ["x9"]), "out of range"),
        (lambda m: gradient.gradient_times_input(m, task(), ["x1"], batch_size=0), "batch_size=0"),
        (lambda m: gradient.gradients(m, task(), ["x1"], on="both"), "on='both'"),
        (lambda m: ig.integrated_gradients(m, task(), ["x1"], rule="simpson"), "rule='simpson'"),
        (lambda m: ig.integrated_gradients(m, task(), ["x1"], steps=0), "steps=0"),
        (lambda m: ig.integrated_gradients(m, task(), ["x1"], path="both"), "path='both'"),
        (
            lambda m: ig.integrated_gradients(m, Task("t", PROMPTS, [1, 2, 3], metric="prob"), ["x1"], baseline="twin"),
            "no corrupted prompts",
        ),
    ],
)
def test_errors_name_the_argument_and_leave_nothing_behind(call, part):
    model = make("gpt2")
    with pytest.raises(ValueError, match=part):
        call(model)
    assert not hooks_left(model) and all(w.requires_grad for w in model.hf.parameters())
