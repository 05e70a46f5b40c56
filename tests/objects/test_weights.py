"""Objects made of weights (survey O5, O14, O15, O20-O22), on every family, against recorded activations."""

import pytest
import torch

import mi_course as mi
from mi_course.models import weights as parts
from mi_course.objects import weights
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

PROMPTS = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return mi.wrap(random_model(request.param))


def heads(model):
    return [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]


def close(a, b, tolerance=2e-5):
    """Equal up to `tolerance` of the largest value."""
    return (a - b).abs().max() <= tolerance * b.abs().max()


def attention_input(model, layer):
    return parts.attn_norm(model, layer)(mi.record(model, PROMPTS, [f"x{layer}"])[f"x{layer}"])


@torch.no_grad()
def test_qk_circuit_gives_the_scores(model):
    for layer, h in heads(model):
        site = f"L{layer}H{h}.scores"
        recorded, x = mi.record(model, PROMPTS, [site])[site], attention_input(model, layer)
        circuit = weights.head(model, layer, h).scores(x[0])
        causal = torch.ones_like(circuit).tril().bool()
        assert close(circuit[causal], recorded[0][causal])


@torch.no_grad()
def test_ov_circuit_gives_the_result_with_the_pattern(model):
    for layer, h in heads(model):
        cache, x = mi.record(model, PROMPTS, [f"L{layer}H{h}", f"L{layer}H{h}.pattern"]), attention_input(model, layer)
        head = weights.head(model, layer, h)
        result = cache[f"L{layer}H{h}.pattern"] @ (x @ head.W_OV + head.b_V @ head.W_O)
        assert close(result, cache[f"L{layer}H{h}"])


@torch.no_grad()
def test_circuits_have_the_rank_of_a_head(model):
    head = weights.head(model, 0, model.n_heads - 1)
    assert head.W_OV.shape == head.qk_matrix().shape == (model.d_model, model.d_model)
    assert torch.linalg.matrix_rank(head.W_OV) <= model.d_head
    assert torch.linalg.matrix_rank(head.qk_matrix(3)) <= model.d_head


@torch.no_grad()
def test_one_qk_matrix_only_without_rope(model):
    head = weights.head(model, 0, 0)
    same = torch.allclose(head.qk_matrix(0), head.qk_matrix(2))
    assert same == (model.family.rotary is None)


def test_grouped_heads_share_keys_and_values(model):
    first, second = weights.head(model, 0, 0), weights.head(model, 0, 1)
    shared = model.n_kv_heads < model.n_heads
    assert (first.kv_head == second.kv_head) == shared
    assert torch.equal(first.W_K, second.W_K) == torch.equal(first.W_V, second.W_V) == shared
    assert not torch.equal(first.W_Q, second.W_Q)


@torch.no_grad()
def test_ov_eigenvalues_are_those_of_the_token_map(model):
    head, norm, post = weights.head(model, 0, 1), parts.attn_norm(model, 0), parts.post_norm(model, 0, "attn")
    W_E = norm.centre(parts.embedding(model).W_E) * norm.gain
    W_O = head.W_O * (1.0 if post is None else post.gain)
    token_map = W_E @ head.W_V @ W_O @ weights.folded_unembedding(model)[0]  # [V, V]
    full = torch.linalg.eigvals(token_map.double()).abs().sort(descending=True).values[: model.d_head].float()
    few = weights.ov_eigenvalues(model, 0, 1).abs().sort(descending=True).values
    assert close(few, full, 1e-3)
    assert -1 <= weights.copying_score(model, 0, 1) <= 1


@torch.no_grad()
def test_neuron_keys_and_values(model):
    for layer in range(model.n_layers):
        x = "x" if model.family.is_parallel(model.config) else "mid"
        cache = mi.record(model, PROMPTS, [f"{x}{layer}", f"neurons{layer}", f"mlp{layer}"])
        ffn, read = parts.ffn(model, layer), parts.mlp_norm(model, layer)(cache[f"{x}{layer}"])
        values = weights.neuron_values(model, layer)
        assert values.shape == (model.d_ffn, model.d_model)
        # an explicit sum over neurons, so that no storage order of a matrix can hide in a product
        total = sum(cache[f"neurons{layer}"][..., j, None] * values[j] for j in range(model.d_ffn)) + ffn.b_out
        assert close(total, cache[f"mlp{layer}"])
        for j in (0, model.d_ffn - 1):
            if model.family.gated:
                gate, up = (weights.neuron_keys(model, layer, part)[j] for part in ("gate", "up"))
                s = ffn.act(read @ gate + ffn.b_gate[j]) * (read @ up + ffn.b_up[j])
            else:
                s = ffn.act(read @ weights.neuron_keys(model, layer)[j] + ffn.b_in[j])
            assert close(s, cache[f"neurons{layer}"][..., j])


@torch.no_grad()
def test_folded_unembedding_gives_the_logits(model):
    final = f"x{model.n_layers}"
    cache, u = mi.record(model, PROMPTS, [final]), parts.unembedding(model)
    W, b = weights.folded_unembedding(model)
    logits = u.norm.scale(cache[final]) * (cache[final] @ W) + b
    if u.softcap is not None:
        logits = u.softcap * torch.tanh(logits / u.softcap)
    assert close(logits, cache.logits)


@torch.no_grad()
def test_folding_norms_leaves_the_logits(model):
    before = model(PROMPTS)
    folded = weights.fold_norms(model)
    assert close(folded(PROMPTS), before)
    for layer in range(model.n_layers):
        for norm in (parts.attn_norm(folded, layer), parts.mlp_norm(folded, layer)):
            assert torch.equal(norm.gain, torch.ones_like(norm.gain)) and not norm.bias.any()
    assert torch.equal(model(PROMPTS), before)  # the model itself is untouched
    assert not torch.equal(parts.attn_norm(model, 0).gain, torch.ones(model.d_model))


def test_copying_score_tells_copying_from_suppression():
    model = compiled.induction().wrap()
    assert weights.copying_score(model, 1, 0) == pytest.approx(1.0, abs=1e-3)
    with torch.no_grad():
        model.hf.transformer.h[1].attn.c_proj.weight.neg_()
    assert weights.copying_score(model, 1, 0) == pytest.approx(-1.0, abs=1e-3)


@torch.no_grad()
def test_lookup_keys_and_values_are_the_ones_written_by_hand():
    c = compiled.lookup()
    model = c.wrap()
    words = {w: model.token_id(w) for w in ("france", "peru", "paris", "lima")}
    W_E = parts.embedding(model).W_E
    keys, values = weights.neuron_keys(model, 0), weights.neuron_values(model, 0)
    assert (W_E[words["france"]] @ keys[0]).item() == 2.0 and (W_E[words["peru"]] @ keys[0]).item() == 0.0
    moved = values @ weights.head(model, 1, 0).W_OV @ weights.folded_unembedding(model)[0]
    moved = moved / moved.max()
    assert moved[0, words["paris"]] == pytest.approx(1.0, abs=1e-4)
    assert moved[2, words["lima"]] == pytest.approx(1.0, abs=1e-4)
    assert moved[0, words["lima"]].abs() < 1e-4


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="layer 9 is out of range.*0 to"):
        weights.head(model, 9, 0)
    with pytest.raises(ValueError, match="head -1 is out of range"):
        weights.head(model, 0, -1)
    with pytest.raises(ValueError, match="choose one"):
        weights.neuron_keys(model, 0, "in" if model.family.gated else "gate")
