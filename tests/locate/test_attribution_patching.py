"""Attribution patching against exact patching; AtP* and RelP by what they promise."""

import numpy as np
import pytest
import torch

import mi_course as mi
from mi_course.locate import causal, gradient, passes
from mi_course.locate.attribution_patching import attention_pattern, attribution_patching, linearised
from mi_course.world import compiled
from tests.locate.test_gradient import PROMPTS, TWINS, sites_of, task
from tests.models.common import FAMILIES, hooks_left, make


@pytest.mark.parametrize("direction", ["noising", "denoising"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "gemma2", "phi3"])
def test_scores_are_the_slope_of_a_small_patch(family, direction):
    """Patch a small share e of the way to the other run: effect / e is the score, sign included (audit A21)."""
    model, sites, e = make(family), sites_of(make(family)), 1e-3
    scores = attribution_patching(model, task(), sites, direction)
    assert scores.sign == direction
    run, other = (PROMPTS, TWINS) if direction == "noising" else (TWINS, PROMPTS)
    here, there = mi.record(model, run, sites), mi.record(model, other, sites)
    for i, site in enumerate(sites):
        F = []
        for share in (e, -e):
            with mi.intervene(model, mi.patch(site, here[site] + share * (there[site] - here[site]))):
                F.append(task().measure(model, on="clean" if direction == "noising" else "corrupted").numpy())
        slope = (F[0] - F[1]).astype(float) / (2 * e)
        assert scores.per_item.T[:, i] == pytest.approx(slope, abs=1e-2 + 1e-2 * abs(slope).max()), site


def test_exact_on_a_linear_model_in_both_directions():
    c = compiled.mediation()
    model = c.wrap()
    for direction in ("noising", "denoising"):
        keys = [key for key in c.expected if key.startswith(direction)]
        found = attribution_patching(model, c.task, [key.split()[1] for key in keys], direction)
        assert found.values == pytest.approx([c.expected[key] for key in keys], abs=1e-4)


def test_a_layer_of_states_adds_up_to_the_swap_where_the_model_is_linear():
    c = compiled.mediation()
    found = attribution_patching(c.wrap(), c.task, causal.grid(c.wrap(), range(4)), "noising").values.reshape(2, 4)
    assert found.sum(1) == pytest.approx([-5, -5], abs=1e-4)


def test_equals_gradient_times_input_with_the_twin_and_needs_three_passes():
    model = make("qwen3")
    found = attribution_patching(model, task(), sites_of(model))
    other = gradient.gradient_times_input(model, task(), sites_of(model), baseline="twin")
    assert found.per_item.T == pytest.approx(other.per_item.T, abs=1e-5)
    assert (found.forwards, found.backwards) == (2 * len(PROMPTS), len(PROMPTS))


# -- QK fix ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_recomputed_pattern_is_the_models_own(family):
    model = make(family)
    for layer in range(model.n_layers):
        cache = mi.record(model, PROMPTS, [f"q{layer}", f"k{layer}", f"pattern{layer}"])
        found = attention_pattern(model, layer, cache[f"q{layer}"], cache[f"k{layer}"], cache.batch)
        rows = cache.batch.mask.bool()[:, None, :, None].expand_as(found)
        assert torch.allclose(found[rows], cache[f"pattern{layer}"][rows], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_qk_fix_is_exact_up_to_the_pattern(family):
    """Patch the query or key for real, read the pattern, and take its change times the gradient of the pattern."""
    model = make(family)
    p = gradient.gradients(model, task(), ["pattern1"])
    for site in ("L1H2.q", "L1H2.k", "L1H1.q@-1", "L1H3.k@1", "q1"):
        there = mi.record(model, TWINS, [site])[site]
        with mi.intervene(model, mi.patch(site, there)):
            new = mi.record(model, PROMPTS, ["pattern1"])["pattern1"]
        rows = p.batch.mask.bool()[:, None, :, None]
        expected = ((new - p.values["pattern1"]) * p.grads["pattern1"] * rows).sum((1, 2, 3))
        found = attribution_patching(model, task(), [site], qk_fix=True)
        assert found.per_item.T[:, 0] == pytest.approx(expected.numpy(), abs=1e-4), site


def test_qk_fix_finds_the_query_that_saturation_hides():
    c = compiled.saturated()
    model, sites = c.wrap(), ["L1H0.q", "L0H0.z"]
    exact = causal.patch_each(model, c.task, sites, "noising").values
    assert exact == pytest.approx([-20, -20], abs=1e-3)
    assert attribution_patching(model, c.task, sites).values == pytest.approx([0, 0], abs=1e-4)
    # the query is found exactly; the head that feeds it is not: the fix concerns queries and keys alone
    assert attribution_patching(model, c.task, sites, qk_fix=True).values == pytest.approx([-20, 0], abs=1e-3)


# -- GradDrop ----------------------------------------------------------------------------------------------------------


def test_grad_drop_on_cancelling_heads():
    """L0H0 writes +u, L1H0 takes it out again: patching L0H0 by 0 has no effect, and no gradient.

    Without block 1 only the direct path is left, which is what GradDrop shows. Without block 0 nothing is.
    """
    c = compiled.cancelling()
    model = c.wrap()
    plain = gradient.gradients(model, c.task, ["z0"])
    cut = [mi.edit([f"attn1{w}", f"mlp1{w}"], torch.Tensor.detach) for w in (".write",)]
    direct = gradient.gradients(model, c.task, ["z0"], edits=cut)
    effect = [(p.grads["z0"] * p.values["z0"])[:, -1, 0].sum(-1) for p in (plain, direct)]
    assert effect[0].abs().max() < 1e-5 and effect[1].tolist() == pytest.approx([2.0] * len(c.task), abs=1e-4)


def test_grad_drop_is_the_mean_size_over_dropped_blocks():
    model, sites = make("gpt2"), ["L0H1.z", "L1N3", "mlp2", "L2H0.q"]
    found = attribution_patching(model, task(), sites, grad_drop=True)
    other = mi.record(model, TWINS, ["z0", "neurons1", "mlp2", "q2"])
    total = 0
    for dropped in range(3):
        stop = mi.edit([f"attn{dropped}", f"mlp{dropped}"], torch.Tensor.detach)
        p = gradient.gradients(model, task(), sites, edits=[stop])
        products = {name: g * (other[name] - p.values[name]) for name, g in p.grads.items()}
        total += passes.per_site(products, [mi.Site.parse(s) for s in sites], model, p.batch).abs()
    assert found.per_item.T == pytest.approx((total / 2).numpy(), abs=1e-5)
    assert found.sign == "magnitude" and found.backwards == 3 * len(PROMPTS)
    # an object of the dropped block loses its own way out: mlp2 is left with two of three terms, hence L - 1
    plain = attribution_patching(model, task(), ["mlp2"])
    assert found["mlp2"] == pytest.approx(np.abs(plain.per_item.T).mean(), rel=1e-4)


def test_grad_drop_with_a_single_block_leaves_nothing():
    c = compiled.and_gate()
    assert attribution_patching(c.wrap(), c.task, ["L0H0.z"], grad_drop=True).values.tolist() == [0.0]


# -- relevance ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_relevance_changes_no_value_and_conserves_relevance(family):
    """With the rules of RelP every part is homogeneous of degree one but for biases: without biases, x . g = F at every
    depth. Biases are dropped here by subtracting what they contribute: compare x0 with the families that have none.
    """
    model = make(family)
    before = model(PROMPTS)
    with linearised(model):
        assert torch.equal(model(PROMPTS), before)
    assert not hooks_left(model)
    if family in ("llama", "mistral", "phi3"):  # RMSNorm, no biases
        with linearised(model):
            p = gradient.gradients(model, task(), ["x0", "x1", "x2", "mid1"])
        for name, g in p.grads.items():
            total = (g * p.values[name]).sum((1, 2))
            assert torch.allclose(total, p.F, rtol=1e-3, atol=1e-3), name
    plain, relevance = (
        attribution_patching(model, task(), ["mlp0", "L0H1.z"], rule=r) for r in ("gradient", "relevance")
    )
    assert not np.allclose(plain.values, relevance.values, rtol=1e-2)
    assert not hooks_left(model)


def test_errors():
    model = make("gpt2")
    with pytest.raises(ValueError, match="direction='up'"):
        attribution_patching(model, task(), ["x1"], "up")
    with pytest.raises(ValueError, match="rule='lrp'"):
        attribution_patching(model, task(), ["x1"], rule="lrp")
    with pytest.raises(ValueError, match="no corrupted prompts"):
        attribution_patching(model, mi.Task("t", PROMPTS, [1, 2, 3], metric="prob"), ["x1"])
    with pytest.raises(RuntimeError):
        with linearised(model):
            raise RuntimeError
    assert not hooks_left(model)
