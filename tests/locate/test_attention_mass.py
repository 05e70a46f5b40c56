"""Attention scores against slow loops, a head whose attention is even by construction, and the compiled induction."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import attention_mass as am
from mi_course.models import weights as parts
from mi_course.objects import weights
from mi_course.world import compiled
from tests.families import random_model

PROMPTS = [[0, 5, 6, 7, 5, 6], [0, 9, 9, 3, 9, 4, 8], [0, 7, 3, 7]]  # unequal: the batch is padded
SCORES = (am.previous_token, am.current_token, am.first_token, am.duplicate_token, am.prefix_matching)
IS_KEY = {  # does the score ask about key j for query i of this row?
    "previous token": lambda row, i, j: j == i - 1,
    "current token": lambda row, i, j: j == i,
    "first token": lambda row, i, j: j == 0 and i > 0,
    "duplicate token": lambda row, i, j: j < i and row[j] == row[i],
    "prefix matching": lambda row, i, j: 0 < j <= i and row[j - 1] == row[i],
}


@pytest.fixture(scope="module")
def model():
    return mi.wrap(random_model("gpt2"))


@pytest.fixture(scope="module")
def circuit():
    c = compiled.induction()
    return c, c.wrap()


def by_loops(model, prompts, is_key):
    """Mean over queries that have a key, one prompt at a time, in plain Python: "L0H0" -> score."""
    shares = {f"L{layer}H{head}": [] for layer in range(model.n_layers) for head in range(model.n_heads)}
    for row in prompts:
        cache = mi.record(model, [row], [f"{site}.pattern" for site in shares])
        for i in range(len(row)):
            keys = [j for j in range(i + 1) if is_key(row, i, j)]
            for site in shares if keys else ():
                shares[site].append(sum(cache[f"{site}.pattern"][0, i, j].item() for j in keys))
    return {site: sum(found) / len(found) for site, found in shares.items()}


@pytest.mark.parametrize("score", SCORES, ids=lambda f: f.__name__)
def test_scores_equal_slow_loops(model, score):
    got = score(model, PROMPTS)
    wanted = by_loops(model, PROMPTS, IS_KEY[got.method])
    assert got.sites == list(wanted)
    assert got.values.tolist() == pytest.approx(list(wanted.values()), abs=1e-5)
    assert (got.sign, got.forwards) == ("magnitude", 3)


def test_batches_and_padding_change_nothing(model):
    whole = am.prefix_matching(model, PROMPTS)
    pieces = am.attention_mass(model, PROMPTS, am.induction_keys, batch_size=1)
    right = am.prefix_matching(model, model.tokenize(PROMPTS, side="right"))
    assert pieces.values.tolist() == pytest.approx(whole.values.tolist(), abs=1e-5)
    assert right.values.tolist() == pytest.approx(whole.values.tolist(), abs=1e-5)


def test_even_attention_scores_the_control():
    hf = random_model("gpt2")
    with torch.no_grad():
        for block in hf.transformer.h:
            block.attn.c_attn.weight[:, :32], block.attn.c_attn.bias[:32] = 0, 0  # queries are zero
    model = mi.wrap(hf)
    for keys in (am.previous_keys, am.first_keys, am.duplicate_keys, am.induction_keys):
        control = am.uniform_mass(model, PROMPTS, keys)
        assert 0 < control < 1
        assert am.attention_mass(model, PROMPTS, keys).values == pytest.approx(control, abs=1e-5)


def test_compiled_induction_has_the_heads_it_was_built_with(circuit):
    c, model = circuit
    rows = am.repeated_sequences(model, list("abcdefghijkl"), length=8, n=6)
    assert all(len(row) == 17 and row[0] == 0 and row[1:9] == row[9:] and len(set(row[1:9])) == 8 for row in rows)
    assert rows == am.repeated_sequences(model, list("abcdefghijkl"), length=8, n=6)
    assert rows != am.repeated_sequences(model, list("abcdefghijkl"), length=8, n=6, seed=1)
    assert am.previous_token(model, rows)["L0H0"] == pytest.approx(1, abs=1e-4)
    assert am.prefix_matching(model, rows)["L1H0"] == pytest.approx(1, abs=1e-4)
    assert am.duplicate_token(model, rows)["L1H0"] == pytest.approx(0, abs=1e-4)
    assert am.prefix_matching(model, rows)["L0H0"] == pytest.approx(0, abs=1e-4)
    assert set(am.first_token(model, rows).top(2)) == set(c.decoys)
    assert am.copying_weights(model)["L1H0"] == pytest.approx(1, abs=1e-4)
    copied = am.copying(model, rows)
    assert copied.top(1, by="positive") == ["L1H0"]
    assert copied["L0H1"] == pytest.approx(0, abs=1e-4)  # writes where nobody reads


def naive_copying(model, prompts, layer, head):
    """From the logits of every write, over the whole vocabulary."""
    W_U, h = weights.folded_unembedding(model)[0], weights.head(model, layer, head)
    norm, post = parts.attn_norm(model, layer), parts.post_norm(model, layer, "attn")
    z = []
    for row in prompts:
        x = mi.record(model, [row], f"x{layer}")[f"x{layer}"][0]
        write = (norm(x) @ h.W_V + h.b_V) @ h.W_O
        logits = (write if post is None else write * post.gain) @ W_U
        own = logits[torch.arange(len(row)), torch.tensor(row)]
        z.append(((own - logits.mean(-1)) / logits.std(-1, correction=0))[1:])
    return torch.cat(z).mean().item()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_copying_equals_the_full_logits(family):
    model = mi.wrap(random_model(family))
    got = am.copying(model, PROMPTS)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            assert got[f"L{layer}H{head}"] == pytest.approx(naive_copying(model, PROMPTS, layer, head), abs=1e-3)


def test_copying_changes_sign_with_the_output_matrix(model):
    before = am.copying(model, PROMPTS).values[-4:]  # the last layer
    weight = model.block(model.n_layers - 1).attn.c_proj.weight
    with torch.no_grad():
        weight.neg_()
        after = am.copying(model, PROMPTS).values[-4:]
        weight.neg_()
    assert after.tolist() == pytest.approx((-before).tolist(), abs=1e-5)


def test_span_mass(model):
    spans = [(1, 3), (2, 3), (0, 2)]
    got = am.span_mass(model, PROMPTS, spans)
    rows = {tuple(row): span for row, span in zip(PROMPTS, spans)}
    wanted = by_loops(
        model, PROMPTS, lambda row, i, j: i == len(row) - 1 and rows[tuple(row)][0] <= j < rows[tuple(row)][1]
    )
    assert got.values.tolist() == pytest.approx(list(wanted.values()), abs=1e-5)
    assert am.span_mass(model, [[0, 5]], [(0, 2)]).values == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match=r"spans\[1\] starts after the query"):
        am.span_mass(model, PROMPTS, spans, query=1)


def test_bad_input_is_named(model):
    with pytest.raises(ValueError, match="prompts in which tokens repeat"):
        am.prefix_matching(model, [[0, 1, 2, 3]])
    with pytest.raises(ValueError, match=r"keys gave torch.int64"):
        am.attention_mass(model, PROMPTS, lambda batch: batch.ids)
    with pytest.raises(ValueError, match="length=3"):
        am.repeated_sequences(model, [4, 5], length=3, n=1)


def test_bos_is_left_out_where_there_is_none(model):
    assert [len(row) for row in am.repeated_sequences(model, [4, 5, 6], length=3, n=2)] == [6, 6]
