"""The residual stream as a sum of writes, on every family (survey Eq. 1-6, "Tests for section 2" 1 to 4)."""

import pytest
import torch

import mi_course as mi
from mi_course.models import weights as parts
from mi_course.objects.decompose import decompose_residual, direct_logit_attribution, neuron_writes
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

PROMPTS = torch.randint(3, 50, (3, 9), generator=torch.Generator().manual_seed(2))
TOKENS, FOILS = [7, 8, 9], [20, 21, 22]


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return mi.wrap(random_model(request.param))


def close(a, b, tolerance=2e-5):
    return (a - b).abs().max() <= tolerance * b.abs().max()


def hidden_states(model, prompts=PROMPTS):
    """Hugging Face's own states, and x^L caught before the final norm with a hook of our own."""
    caught = []
    norm = model.hf.get_submodule(model.family.final_norm)
    handle = norm.register_forward_pre_hook(lambda module, args: caught.append(args[0].detach()))
    with torch.no_grad():
        states = model.hf(prompts, use_cache=False, output_hidden_states=True).hidden_states
    handle.remove()
    return [*states[:-1], caught[0]]  # the last entry of hidden_states is already normed


def test_writes_sum_to_the_stream(model):
    d = decompose_residual(model, PROMPTS)
    states = hidden_states(model)
    assert close(d.writes.sum(0), states[-1])
    assert torch.equal(d.total, states[-1])
    per_layer = model.n_heads + 2
    assert len(d.names) == 1 + (model.family.pos is not None) + model.n_layers * per_layer
    # and already at every block border, where only the writes of the blocks before count
    start = 1 + (model.family.pos is not None)
    for layer in range(model.n_layers):
        assert close(d.writes[: start + layer * per_layer].sum(0), states[layer])


def test_no_write_is_empty_or_repeated(model):
    d = decompose_residual(model, PROMPTS)
    for i, name in enumerate(d.names):
        no_bias = name.endswith("bias") and not parts.attention(model, int(name[4:-5])).b_O.any()
        assert d.writes[i].abs().max() > 0 or no_bias, name
    heads = [d[f"L0H{h}"] for h in range(model.n_heads)]
    assert all(not torch.allclose(a, b) for i, a in enumerate(heads) for b in heads[:i])


def test_equations_2_and_3(model):
    """x^mid = x + attention write, x' = x^mid + FFN write; in parallel blocks both branches read x^l."""
    for layer in range(model.n_layers):
        sites = [f"x{layer}", f"attn{layer}.write", f"mlp{layer}.write", f"x{layer + 1}"]
        cache = mi.record(model, PROMPTS, sites)
        mid = cache[sites[0]] + cache[sites[1]]
        assert close(mid + cache[sites[2]], cache[sites[3]])
        if not model.family.is_parallel(model.config):
            assert close(mi.record(model, PROMPTS, [f"mid{layer}"])[f"mid{layer}"], mid)
            ffn_reads = mid
        else:
            ffn_reads = cache[sites[0]]
        w, x = parts.ffn(model, layer), parts.mlp_norm(model, layer)(ffn_reads)
        s = w.act(x @ w.W_gate + w.b_gate) * (x @ w.W_up + w.b_up) if model.family.gated else w.act(x @ w.W_in + w.b_in)
        out, post = s @ w.W_out + w.b_out, parts.post_norm(model, layer, "mlp")
        assert close((out if post is None else post(out)).detach(), cache[sites[2]])


def test_patterns_are_causal_and_rows_sum_to_one(model):
    for layer in range(model.n_layers):
        pattern = mi.record(model, PROMPTS, [f"pattern{layer}"])[f"pattern{layer}"]
        T = pattern.shape[-1]
        assert torch.allclose(pattern.sum(-1), torch.ones(pattern.shape[:-1]), atol=1e-6)
        assert not pattern[..., torch.ones(T, T).triu(1).bool()].any()
        window = parts.attention(model, layer).window
        if window is not None and window < T:
            too_far = torch.ones(T, T).tril(-window).bool()
            assert not pattern[..., too_far].any() and pattern[..., window, 1].min() > 0


def test_results_are_z_w_o_and_sum_to_the_block_output(model):
    for layer in range(model.n_layers):
        cache = mi.record(model, PROMPTS, [f"z{layer}", f"result{layer}", f"attn{layer}"])
        w = parts.attention(model, layer)
        assert cache[f"z{layer}"].shape == (*PROMPTS.shape, model.n_heads, model.d_head)  # O7: two objects (A7)
        assert cache[f"result{layer}"].shape == (*PROMPTS.shape, model.n_heads, model.d_model)
        for h in range(model.n_heads):
            assert close(cache[f"z{layer}"][:, :, h] @ w.W_O[h].detach(), cache[f"result{layer}"][:, :, h])
        assert close(cache[f"result{layer}"].sum(2) + w.b_O.detach(), cache[f"attn{layer}"])


def test_neuron_writes_sum_to_the_ffn(model):
    for layer in range(model.n_layers):
        total = neuron_writes(model, PROMPTS, layer).sum(1) + parts.ffn(model, layer).b_out.detach()
        assert close(total, mi.record(model, PROMPTS, [f"mlp{layer}@-1"])[f"mlp{layer}@-1"])


def before_softcap(model, logits):
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.atanh(logits / cap)


def test_direct_attributions_sum_to_the_logit(model):
    logits = before_softcap(model, model.last_logits(PROMPTS))
    rows = torch.arange(len(PROMPTS))
    single, pair = (direct_logit_attribution(model, PROMPTS, TOKENS, *foils) for foils in ([], [FOILS]))
    assert close(single.logits, logits[rows, TOKENS], 2e-4)  # atanh near the cap loses digits
    assert close(pair.logits, logits[rows, TOKENS] - logits[rows, FOILS], 2e-4)
    for attribution in (single, pair):
        assert close(attribution.values.sum(0), attribution.logits)


def test_attribution_uses_the_last_real_token_of_each_row(model):
    rows = [[5, 9, 30, 12], [8, 41, 6, 6, 17, 3]]
    together = direct_logit_attribution(model, rows, [7, 8])
    for i, row in enumerate(rows):
        alone = direct_logit_attribution(model, [row], [[7, 8][i]])
        assert close(together.values[:, i], alone.values[:, 0], 1e-4)


def test_the_last_ffn_is_credited_with_what_zeroing_it_takes_away(model):
    """Nothing reads the last FFN but the logits, so its direct effect is its total effect on x^L, scale frozen."""
    mlp, final = f"mlp{model.n_layers - 1}", f"x{model.n_layers}@-1"
    x = mi.record(model, PROMPTS, [final])[final]
    with mi.intervene(model, mi.zero(mlp)):
        without = mi.record(model, PROMPTS, [final])[final]
    u = parts.unembedding(model)
    taken = u.norm.centre(x - without) * u.norm.scale(x) * u.norm.gain @ u.W_U
    credit = direct_logit_attribution(model, PROMPTS, TOKENS)[mlp]
    assert close(credit, taken[torch.arange(len(PROMPTS)), TOKENS].detach(), 1e-4)


def test_compiled_induction_is_attributed_to_its_copying_head():
    c = compiled.induction()
    attribution = direct_logit_attribution(c.wrap(), c.task.prompts, c.task.targets, c.task.foils)
    assert torch.allclose(attribution["L1H0"], torch.full((len(c.task),), 10.0), atol=1e-4)
    rest = [name for name in attribution.names if name != "L1H0"]
    assert max(attribution[name].abs().max() for name in rest) < 1e-4


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="tokens must have one token per prompt, 3"):
        direct_logit_attribution(model, PROMPTS, [7])
    with pytest.raises(KeyError, match="writers are embed"):
        decompose_residual(model, PROMPTS)["L9H9"]
