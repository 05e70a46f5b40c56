"""Writing: identity edits change no bit, edits do what their formula says, and nothing is left behind."""

import gc
import weakref

import pytest
import torch

import mi_course as mi
from mi_course.models import weights
from tests.models.common import FAMILIES, PROMPTS, hooks_left, make, random_model, sites

every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_identity_edits_give_bit_equal_logits(family, dtype):
    model = make(family) if dtype == torch.float32 else mi.wrap(random_model(family).to(dtype))
    names, plain = sites(model), model(PROMPTS)
    recorded = mi.record(model, PROMPTS, names)
    assert torch.equal(recorded.logits, plain)
    for name in names:
        assert recorded[name].dtype in (dtype, torch.float32)
        with mi.intervene(model, mi.edit(name, torch.clone)):
            assert torch.equal(model(PROMPTS), plain), name
        with mi.intervene(model, mi.patch(name, recorded[name])):
            assert torch.equal(model(PROMPTS), plain), name
    with mi.intervene(model, *[mi.scale(name, 1.0) for name in names]):
        assert torch.equal(model(PROMPTS), plain)
    assert torch.equal(model(PROMPTS), plain) and not hooks_left(model)


@every_family
def test_every_site_can_be_written(family):
    """Every edit is seen by a recording inside it, changes the logits, and is gone afterwards."""
    model = make(family)
    plain = model(PROMPTS)
    for name in sites(model):
        before = mi.record(model, PROMPTS, name)[name]
        with mi.intervene(model, mi.scale(name, 0.5)):
            cache = mi.record(model, PROMPTS, name)
        torch.testing.assert_close(cache[name], before * 0.5)
        assert not torch.allclose(cache.logits, plain), name
    assert torch.equal(model(PROMPTS), plain) and not hooks_left(model)


@every_family
def test_ablating_z_and_result_is_the_same(family):
    """Audit A7: z = 0 and z W_O = 0 are one ablation; so is removing the neuron and its value from the output."""
    model = make(family)
    with mi.intervene(model, mi.zero("L1H2.z")):
        by_z = model(PROMPTS)
    with mi.intervene(model, mi.zero("L1H2")):
        by_result = model(PROMPTS)
    torch.testing.assert_close(by_z, by_result, rtol=0, atol=2e-5)
    with mi.intervene(model, mi.zero(["L1N3", "L1N4"])):
        by_neuron = model(PROMPTS)
    s = mi.record(model, PROMPTS, "neurons1")["neurons1"]
    W_out = weights.ffn(model, 1).W_out
    with mi.intervene(model, mi.edit("mlp1", lambda y: y - s[..., 3:5] @ W_out[3:5])):
        torch.testing.assert_close(model(PROMPTS), by_neuron, rtol=0, atol=2e-5)


@every_family
def test_zeroing_all_writes_leaves_the_embedding(family):
    model = make(family)
    writes = [f"{branch}{layer}.write" for layer in range(model.n_layers) for branch in ("attn", "mlp")]
    with mi.intervene(model, mi.zero(writes)):
        cache = mi.record(model, PROMPTS, ["x0", f"x{model.n_layers}"])
    assert torch.equal(cache["x0"], cache[f"x{model.n_layers}"])


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in ("gptj", "gpt_neox")])
def test_mid_is_written_without_touching_attention(family):
    """mid <- v: the FFN reads v, the next state is v + FFN(v), and the recorded attention output keeps its value."""
    model = make(family)
    new = torch.randn(3, 7, model.d_model)
    before = mi.record(model, PROMPTS, ["attn1", "x1"])
    with mi.intervene(model, mi.patch("mid1", new)):
        cache = mi.record(model, PROMPTS, ["mid1", "mlp1.write", "x2", "attn1", "neurons1"])
    torch.testing.assert_close(cache["mid1"], new)
    torch.testing.assert_close(cache["x2"], new + cache["mlp1.write"], rtol=0, atol=1e-4)
    torch.testing.assert_close(cache["attn1"], before["attn1"])
    if not model.family.gated:
        w = weights.ffn(model, 1)
        neurons = w.act(weights.mlp_norm(model, 1)(new) @ w.W_in + w.b_in)
        torch.testing.assert_close(cache["neurons1"], neurons, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_writing_a_key_or_value_reaches_its_group_only(family):
    """Four query heads share two key-value heads: zeroing the value of head 0 silences heads 0 and 1."""
    model = make(family)
    before = mi.record(model, PROMPTS, ["z1", "pattern1"])
    with mi.intervene(model, mi.zero("L1H0.v")):
        z = mi.record(model, PROMPTS, "z1")["z1"]
    assert (z[:, :, :2] == 0).all() and torch.equal(z[:, :, 2:], before["z1"][:, :, 2:])
    with mi.intervene(model, mi.scale("L1H3.k", 0.1)):
        pattern = mi.record(model, PROMPTS, "pattern1")["pattern1"]
    changed = (pattern != before["pattern1"]).flatten(2).any(-1).all(0)
    assert changed.tolist() == [False, False, True, True]


@every_family
def test_attention_edge_knockout(family):
    """Scores at -inf renormalise the row; a zeroed entry of the pattern does not (audit A4)."""
    model = make(family)
    prompt = [PROMPTS[0]]

    strongest = mi.record(model, prompt, "L0H1.pattern")["L0H1.pattern"][0, -1].argmax()

    def cut(value):
        def function(tensor):
            new = tensor.clone()
            new[:, -1, strongest] = value
            return new

        return function

    with mi.intervene(model, mi.edit("L0H1.scores", cut(-1e9))):
        by_scores = mi.record(model, prompt, "L0H1.pattern")["L0H1.pattern"][0, -1]
    with mi.intervene(model, mi.edit("L0H1.pattern", cut(0.0))):
        by_pattern = mi.record(model, prompt, "L0H1.pattern")["L0H1.pattern"][0, -1]
    assert by_scores[strongest] == 0 and by_pattern[strongest] == 0
    assert by_scores.sum().item() == pytest.approx(1, abs=1e-5) and by_pattern.sum() < 1 - 1e-4


def test_primitive_edits_are_their_formulas():
    model, r, v = make("gpt2"), torch.randn(32), torch.randn(32)
    x = mi.record(model, PROMPTS, "x1")["x1"]

    def after(edit, site="x1"):
        with edit.on(model):
            return mi.record(model, PROMPTS, site)[site]

    unit = r / r.norm()
    torch.testing.assert_close(after(mi.project("x1", r)), x - (x @ unit)[..., None] * unit)
    assert (after(mi.project("x1", 7 * r)) @ unit).abs().max() < 1e-5
    torch.testing.assert_close(after(mi.add("x1", v, alpha=-2.0)), x - 2 * v)
    torch.testing.assert_close(after(mi.mean("x1", v)), v.expand_as(x))
    assert (after(mi.zero("x1")) == 0).all()
    torch.testing.assert_close(after(mi.scale("x1", -3)), -3 * x)
    torch.testing.assert_close(after(mi.scale("x1", v)), v * x)  # one factor for each entry
    torch.testing.assert_close(after(mi.mean("L2N7", 0.25), "L2N7"), torch.full((3, 7), 0.25))
    z = torch.randn(4, 8)
    torch.testing.assert_close(after(mi.mean("z1", z), "z1"), z.expand(3, 7, 4, 8))
    torch.testing.assert_close(after(mi.add("x1", v, alpha=0.0)), x)
    square = torch.randn(4, 7)
    torch.testing.assert_close(after(mi.add("scores0", square), "scores0")[0, 0], scores_plus(model, square))


def scores_plus(model, square):
    return mi.record(model, PROMPTS, "scores0")["scores0"][0, 0] + square[0]


def test_edits_compose_left_to_right_and_nest():
    model, v = make("llama"), torch.randn(32)
    x = mi.record(model, PROMPTS, "x1")["x1"]

    def record():
        return mi.record(model, PROMPTS, "x1")["x1"]

    double, shift = mi.scale("x1", 2.0), mi.add("x1", v)
    with mi.intervene(model, double, shift):
        torch.testing.assert_close(record(), 2 * x + v)
    with mi.intervene(model, [shift, double]):
        torch.testing.assert_close(record(), 2 * (x + v))
    with double.on(model):
        with shift.on(model):
            torch.testing.assert_close(record(), 2 * x + v)
            with mi.intervene(model, mi.zero("x1")):
                assert (record() == 0).all()
            torch.testing.assert_close(record(), 2 * x + v)
        torch.testing.assert_close(record(), 2 * x)
    assert torch.equal(record(), x) and not hooks_left(model)


def test_two_wrappers_of_one_module_compose():
    hf = random_model("llama")
    first, second = mi.wrap(hf), mi.wrap(hf)
    pattern = mi.record(first, PROMPTS, "pattern0")["pattern0"]
    with mi.intervene(first, mi.scale("pattern0", 0.5)), mi.intervene(second, mi.scale("pattern0", 0.5)):
        torch.testing.assert_close(mi.record(second, PROMPTS, "pattern0")["pattern0"], pattern / 4)
    assert not hooks_left(first) and not hooks_left(second)


@every_family
def test_nothing_is_left_after_an_exception(family):
    model = make(family)
    plain = model(PROMPTS)

    def fail(value):
        raise ZeroDivisionError

    for name in sites(model):
        with pytest.raises(ZeroDivisionError):
            with mi.intervene(model, mi.scale("pattern0", 0.5), mi.edit(name, fail)):
                model(PROMPTS)
        assert not hooks_left(model), name
    with pytest.raises(KeyError):
        with mi.intervene(model, mi.zero("x1"), mi.zero("L1H1.pattern")):
            raise KeyError
    with pytest.raises(ZeroDivisionError):
        with mi.intervene(model, mi.edit("q1", fail)):
            model.generate_ids(PROMPTS, 3)
    assert not hooks_left(model) and model.taps.prompt_width is None
    with pytest.raises(ZeroDivisionError), mi.intervene(model, mi.edit("x1", fail)):
        model.resume(1, torch.zeros(3, 7, model.d_model), PROMPTS)
    with pytest.raises(mi.models.SiteError), mi.intervene(model, mi.zero("L0H0.q"), mi.zero("x99")):
        pass
    assert not hooks_left(model)
    assert torch.equal(model(PROMPTS), plain)


@every_family
def test_gradients_at_recorded_sites_are_total_derivatives(family):
    """Recorded together, every site has the gradient of a leaf that is patched in at this site alone."""
    model = make(family)
    names = sites(model)
    cache = mi.record(model, PROMPTS, names, grad=True)
    assert torch.equal(cache.logits, model(PROMPTS))
    gradients = torch.autograd.grad(cache.logits[1, -1, 5], [cache[name] for name in names])
    for name, gradient in zip(names, gradients):
        leaf = cache[name].detach().requires_grad_()
        with mi.intervene(model, mi.edit(name, lambda value, leaf=leaf: leaf)):
            (expected,) = torch.autograd.grad(model(PROMPTS, grad=True)[1, -1, 5], leaf)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5, msg=name)
        assert gradient.abs().sum() > 0, name


def test_gradients_equal_finite_differences():
    """In float64, on the family that computes in its own dtype throughout."""
    model = mi.wrap(random_model("gpt2").double())
    names = sites(model)
    cache = mi.record(model, PROMPTS, names, grad=True)
    metric = cache.logits[1, -1, 5]
    gradients = torch.autograd.grad(metric, [cache[name] for name in names])
    generator = torch.Generator().manual_seed(0)
    for name, gradient in zip(names, gradients):
        direction = torch.randn(gradient.shape, generator=generator, dtype=torch.float64)
        eps, ends = 1e-5, []
        for sign in (1, -1):
            with mi.intervene(model, mi.edit(name, lambda value, step=sign * eps, d=direction: value + step * d)):
                ends.append(model(PROMPTS)[1, -1, 5])
        slope = ((ends[0] - ends[1]) / (2 * eps)).item()
        assert (gradient * direction).sum().item() == pytest.approx(slope, rel=1e-4, abs=1e-6), name


def test_gradients_flow_when_parameters_are_frozen():
    model = mi.wrap(random_model("llama").requires_grad_(False))
    cache = mi.record(model, PROMPTS, ["embed", "x1", "L1H0.z@-1"], grad=True)
    for name in cache:
        (gradient,) = torch.autograd.grad(cache.logits[0, -1, 3], cache[name], retain_graph=True)
        assert gradient.shape == cache[name].shape and gradient.abs().sum() > 0


def test_no_graph_is_built_unless_asked():
    model = make("gpt2")
    assert not model(PROMPTS).requires_grad and not mi.record(model, PROMPTS, "x1").logits.requires_grad
    assert model(PROMPTS, grad=True).requires_grad and model.last_logits(PROMPTS, grad=True).requires_grad


@every_family
def test_resume_equals_a_full_run_with_the_state_patched(family):
    model = make(family)
    new = torch.randn(3, 7, model.d_model)
    for layer in range(model.n_layers + 1):
        plain = mi.record(model, PROMPTS, f"x{layer}")
        assert torch.equal(model.resume(layer, plain[f"x{layer}"], PROMPTS), plain.logits)
        with mi.intervene(model, mi.patch(f"x{layer}", new), mi.scale(f"L{model.n_layers - 1}H1", 0.5)):
            full = model(PROMPTS)
        with mi.intervene(model, mi.scale(f"L{model.n_layers - 1}H1", 0.5)):
            if layer < model.n_layers:
                assert torch.equal(model.resume(layer, new, PROMPTS), full)
                last = model.resume(layer, new, PROMPTS, last=True)
                torch.testing.assert_close(last, full[:, -1], rtol=0, atol=1e-5)
    assert not hooks_left(model)


def test_resume_does_not_compute_the_blocks_below():
    model, calls = make("llama"), []
    handles = [b.mlp.register_forward_hook(lambda *_, i=i: calls.append(i)) for i, b in enumerate(model.blocks)]
    try:
        model.resume(1, torch.zeros(3, 7, model.d_model), PROMPTS)
    finally:
        [handle.remove() for handle in handles]
    assert calls == [1]


def test_a_model_is_freed_when_forgotten():
    model = mi.wrap(random_model("llama"))
    with mi.intervene(model, mi.zero("pattern0")):
        mi.record(model, PROMPTS, ["x1", "pattern1"])
    gone = weakref.ref(model.hf)
    del model
    gc.collect()
    assert gone() is None
