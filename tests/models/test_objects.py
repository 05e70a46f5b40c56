"""Reading: the objects of Table 1 are what the survey's equations say, on every family ("Tests for section 2", 1-4)."""

import pytest
import torch

import mi_course as mi
from mi_course.models import weights
from tests.models.common import FAMILIES, PROMPTS, make, random_model, single_sites, whole_sites

every_family = pytest.mark.parametrize("family", FAMILIES)


def close(got, expected, rtol=1e-4):
    assert got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=0, atol=rtol * max(1.0, expected.abs().max().item()))


@every_family
def test_residual_states_and_patterns_equal_those_of_transformers(family):
    """An independent reading: transformers' own hidden_states and attentions, prompt by prompt and without padding."""
    model, hf = make(family), random_model(family)  # transformers leaves hooks of its own behind: use another module
    for prompt in PROMPTS:
        states = [f"x{layer}" for layer in range(model.n_layers + 1)]
        patterns = [f"pattern{layer}" for layer in range(model.n_layers)]
        cache = mi.record(model, [prompt], states + patterns)
        with torch.no_grad():
            out = hf(torch.tensor([prompt]), output_hidden_states=True, output_attentions=True, use_cache=False)
        for layer in range(model.n_layers):
            assert torch.equal(cache[f"x{layer}"], out.hidden_states[layer])
            assert torch.equal(cache[f"pattern{layer}"], out.attentions[layer])
        normed = weights.unembedding(model).norm(cache[f"x{model.n_layers}"])
        close(normed, out.hidden_states[-1])  # transformers' last state is behind the final norm


@every_family
def test_writes_sum_to_the_final_state(family):
    model = make(family)
    names = [f"{branch}{layer}.write" for layer in range(model.n_layers) for branch in ("attn", "mlp")]
    names += ["embed"] + ["pos"] * (model.family.pos is not None)
    cache = mi.record(model, PROMPTS, [*names, f"x{model.n_layers}"])
    close(sum(cache[name] for name in names), cache[f"x{model.n_layers}"])


@every_family
def test_equations_2_and_3_from_hooks(family):
    model = make(family)
    if model.family.is_parallel(model.config):
        with pytest.raises(mi.models.SiteError, match="parallel"):
            mi.record(model, PROMPTS, "mid0")
        return
    cache = mi.record(model, PROMPTS, ["x0", "attn0.write", "mid0", "mlp0.write", "x1"])
    assert torch.equal(cache["mid0"], cache["x0"] + cache["attn0.write"])
    close(cache["x1"], cache["mid0"] + cache["mlp0.write"])


@every_family
def test_results_sum_to_the_block_output(family):
    model = make(family)
    for layer in range(model.n_layers):
        cache = mi.record(model, PROMPTS, [f"z{layer}", f"result{layer}", f"attn{layer}"])
        w = weights.attention(model, layer)
        for head in range(model.n_heads):
            close(cache[f"result{layer}"][:, :, head], cache[f"z{layer}"][:, :, head] @ w.W_O[head])
        close(cache[f"result{layer}"].sum(2) + w.b_O, cache[f"attn{layer}"])


@every_family
def test_ffn_is_a_sum_of_neuron_values(family):
    """h_ffn = sum_j s_j v_j + b_out, and s_j comes from key j: column of W_in, row of W_out, whatever the storage."""
    model = make(family)
    cache = mi.record(model, PROMPTS, ["neurons1", "mlp1", "x1"] + ["gate1", "up1"] * model.family.gated)
    w = weights.ffn(model, 1)
    total = sum(cache["neurons1"][..., j, None] * w.W_out[j] for j in range(model.d_ffn))
    close(total + w.b_out, cache["mlp1"])
    if model.family.gated:
        close(w.act(cache["gate1"]) * cache["up1"], cache["neurons1"])
    seen = cache["x1"]
    if not model.family.is_parallel(model.config):
        seen = mi.record(model, PROMPTS, "mid1")["mid1"]
    seen = weights.mlp_norm(model, 1)(seen)
    for j in (0, 5, model.d_ffn - 1):
        if model.family.gated:
            close(seen @ w.W_gate[:, j] + w.b_gate[j], cache["gate1"][..., j])
            close(seen @ w.W_up[:, j] + w.b_up[j], cache["up1"][..., j])
        else:
            close(w.act(seen @ w.W_in[:, j] + w.b_in[j]), cache["neurons1"][..., j])


@every_family
def test_patterns_are_causal_and_sum_to_one(family):
    model = make(family)
    for layer in range(model.n_layers):
        pattern = mi.record(model, [PROMPTS[0]], f"pattern{layer}")[f"pattern{layer}"]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern[..., 0]))
        assert (pattern.triu(1) == 0).all()
        window = weights.attention(model, layer).window
        if window is not None and window < pattern.shape[-1]:
            assert (pattern.tril(-window) == 0).all()
            assert (pattern.diagonal(-(window - 1), dim1=-2, dim2=-1) > 0).all()


@every_family
def test_qk_form_reproduces_scores(family):
    """scale (norm(x) W_Q + b_Q) R (norm(x) W_K + b_K)^T, soft-capped, head by head; the pattern is its softmax."""
    model, prompt = make(family), PROMPTS[0]
    for layer in range(model.n_layers):
        cache = mi.record(model, [prompt], [f"x{layer}", f"scores{layer}", f"pattern{layer}"])
        w, x = weights.attention(model, layer), weights.attn_norm(model, layer)(cache[f"x{layer}"])
        position_ids = torch.arange(len(prompt))[None]
        for head in range(model.n_heads):
            group = w.kv_head(head)
            q, k = x @ w.W_Q[:, head] + w.b_Q[head], x @ w.W_K[:, group] + w.b_K[group]
            q, k = (norm(y) if norm else y for norm, y in ((w.q_norm, q), (w.k_norm, k)))
            q, k = (weights.rotate(model, y[:, :, None], position_ids)[:, :, 0] for y in (q, k))
            scores = w.scale * q @ k.transpose(1, 2)
            scores = scores if w.softcap is None else w.softcap * torch.tanh(scores / w.softcap)
            close(cache[f"scores{layer}"][:, head], scores)
            n, window = len(prompt), w.window or len(prompt)
            seen = torch.ones(n, n).tril().triu(1 - window).bool()
            close(cache[f"pattern{layer}"][:, head], scores.masked_fill(~seen, -torch.inf).softmax(-1))


@every_family
def test_rotation_depends_on_the_offset_only(family):
    model = make(family)
    q, k = torch.randn(1, 1, 1, model.d_head), torch.randn(1, 1, 1, model.d_head)

    def score(i, j):
        rotated = [weights.rotate(model, y, torch.tensor([[p]])) for y, p in ((q, i), (k, j))]
        return (rotated[0] * rotated[1]).sum().item()

    assert score(9, 4) == pytest.approx(score(25, 20), abs=1e-4)
    if model.family.rotary is None:
        assert score(9, 4) == pytest.approx(score(9, 8), abs=1e-6)
    else:
        assert abs(score(9, 4) - score(9, 8)) > 1e-3


@every_family
def test_whole_layer_forms_agree_with_single_objects(family):
    model = make(family)
    whole = mi.record(model, PROMPTS, whole_sites(model))
    one = mi.record(model, PROMPTS, single_sites(model))
    group = weights.attention(model, 1).kv_head(2)
    for part in ("z", "q"):
        assert torch.equal(one[f"L1H2.{part}"], whole[f"{part}1"][:, :, 2])
    for part in ("k", "v"):
        assert whole[f"{part}1"].shape[2] == model.n_kv_heads
        assert torch.equal(one[f"L1H2.{part}"], whole[f"{part}1"][:, :, group])
    for part in ("scores", "pattern"):
        assert torch.equal(one[f"L1H2.{part}"], whole[f"{part}1"][:, 2])
    close(one["L1H2"], whole["result1"][:, :, 2], rtol=1e-6)
    for name, layer in (("L0N5", "neurons0"), ("L0N5.gate", "gate0"), ("L0N5.up", "up0")):
        if name in one:
            assert torch.equal(one[name], whole[layer][..., 5])


@every_family
def test_logits_come_from_the_final_state(family):
    model = make(family)
    cache = mi.record(model, PROMPTS, f"x{model.n_layers}")
    unembedding = weights.unembedding(model)
    assert unembedding.W_U.shape == (model.d_model, model.n_vocab)
    close(unembedding(cache[f"x{model.n_layers}"]), cache.logits)
    close(model.unembed(cache[f"x{model.n_layers}"]), cache.logits)


@every_family
def test_embedding_matrix(family):
    model = make(family)
    table, batch = weights.embedding(model), model.tokenize(PROMPTS)
    cache = mi.record(model, batch, ["embed", "x0"])
    x0 = table.scale * table.W_E[batch.ids]
    x0 = x0 if table.W_pos is None else x0 + table.W_pos[batch.position_ids]
    close(cache["x0"], x0)
    tied = torch.equal(table.W_E.T, weights.unembedding(model).W_U)
    assert tied == table.tied


@every_family
def test_shapes_are_those_of_the_grammar(family):
    model, n_rows, width = make(family), 3, 7
    cache = mi.record(model, PROMPTS, whole_sites(model) + single_sites(model))
    d, heads, kv, n, ffn = model.d_model, model.n_heads, model.n_kv_heads, model.d_head, model.d_ffn
    square = (n_rows, heads, width, width)
    expected = {"x": (d,), "mid": (d,), "attn": (d,), "mlp": (d,), "embed": (d,), "pos": (d,), "z": (heads, n)}
    expected |= {"q": (heads, n), "k": (kv, n), "v": (kv, n), "result": (heads, d), "neurons": (ffn,)}
    expected |= {"gate": (ffn,), "up": (ffn,)}
    for name in whole_sites(model):
        site = mi.Site.parse(name)
        key = site.part if site.kind in ("head", "neuron") else site.kind
        assert cache[name].shape == (square if key in ("scores", "pattern") else (n_rows, width, *expected[key])), name
    assert cache["L1H2"].shape == (n_rows, width, d)
    assert cache["L1H2.z"].shape == (n_rows, width, n)
    assert cache["L1H2.pattern"].shape == (n_rows, width, width)
    assert cache["L0N5"].shape == (n_rows, width)


def test_matrix_says_what_can_be_asked():
    """Every `yes` of the printed table can be recorded, every `-` is an error that gives the reason."""
    header, *rows = mi.matrix().splitlines()
    things = header.split()[1:]
    for row in rows[:-1]:
        name, *cells = row.split()
        model = make(name)
        for thing, cell in zip(things, cells):
            kind, dot, part = thing.partition(".")
            site = thing if thing in ("embed", "pos") else f"{kind}0{dot}{part}"
            if cell == "-" or (cell == "config" and model.family.is_parallel(model.config)):
                with pytest.raises(mi.models.SiteError, match=f"does not exist in {name}: .{{20,}}"):
                    mi.record(model, PROMPTS, site)
            else:
                assert site in mi.record(model, PROMPTS, site)


@every_family
def test_only_named_sites_are_kept(family):
    model = make(family)
    names = ["L1H2.z", "L0N5", "x1@-1", "L1H2.q", "L1H2.pattern", "v1"]
    cache = mi.record(model, PROMPTS, names)
    assert list(cache) == names
    for name in names:
        assert cache[name].untyped_storage().nbytes() == cache[name].nbytes, name


def test_a_position_is_read_at_real_tokens_under_both_paddings():
    model = make("llama")
    whole = {i: mi.record(model, [p], ["x1", "pattern1", "L0N5"]) for i, p in enumerate(PROMPTS)}
    for side in ("left", "right"):
        cache = mi.record(model, model.tokenize(PROMPTS, side=side), ["x1@-1", "x1@0", "L0N5@1", "pattern1@-1"])
        assert cache["pattern1@-1"].shape == (3, model.n_heads, 7)
        for i in range(3):
            close(cache["x1@-1"][i], whole[i]["x1"][0, -1])
            close(cache["x1@0"][i], whole[i]["x1"][0, 0])
            close(cache["L0N5@1"][i], whole[i]["L0N5"][0, 1])


class ToySAE:
    """An SAE with a reconstruction error: 48 features on x1."""

    site = "x1"

    def __init__(self, d):
        generator = torch.Generator().manual_seed(0)
        self.W_enc, self.W_dec = (torch.randn(s, generator=generator) / d**0.5 for s in ((d, 48), (48, d)))

    def encode(self, x):
        return torch.relu(x @ self.W_enc)

    def decode(self, a):
        return a @ self.W_dec


def test_sae_features_read_and_write_and_keep_the_error():
    model = make("llama")
    sae = ToySAE(model.d_model)
    model.saes["toy"] = sae
    try:
        plain = mi.record(model, PROMPTS, ["x1", "toyF*", "toyF7"])
        close(plain["toyF*"], sae.encode(plain["x1"]))
        assert torch.equal(plain["toyF7"], plain["toyF*"][..., 7])
        with mi.intervene(model, mi.scale("toyF7", 1.0), mi.scale("toyF*", 1.0)):
            assert torch.equal(model(PROMPTS), plain.logits)
        with mi.intervene(model, mi.edit("toyF7", lambda a: a + 2.0)):
            steered = mi.record(model, PROMPTS, "x1")["x1"]
        close(steered, plain["x1"] + 2.0 * sae.W_dec[7])
        with pytest.raises(mi.models.SiteError, match="no SAE is called 'other'"):
            mi.record(model, PROMPTS, "otherF3")
    finally:
        model.saes.clear()


@every_family
def test_without_logits_only_what_the_sites_need_is_run_and_the_values_are_equal(family):
    model = mi.wrap(random_model(family))  # of its own, for the hooks below
    everything = mi.record(model, PROMPTS, whole_sites(model))
    ran = []
    for layer in range(model.n_layers):
        module = model.block(layer).get_submodule(model.family.mlp_out)
        module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    for site in whole_sites(model):
        ran.clear()
        cache = mi.record(model, PROMPTS, [site], logits=False)
        assert torch.equal(cache[site], everything[site]) and cache.logits is None
        layer = mi.Site.parse(site).layer
        needed = 0 if layer is None else layer if site.startswith("x") else layer + 1
        assert ran == list(range(needed)), site
    assert torch.equal(mi.record(model, PROMPTS, ["x0"]).logits, everything.logits)  # all blocks run again
