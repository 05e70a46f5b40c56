"""Lists of tokens and their nulls: planted values are found, random vectors are not taken for a theme."""

import pytest
import torch

import mi_course as mi
from mi_course.evaluate import null_band
from mi_course.locate import token_lists
from mi_course.models import weights as parts
from mi_course.objects.weights import folded_unembedding
from mi_course.world import compiled, lexicon
from tests.families import random_model


def test_top_tokens_are_what_the_vector_adds_to_the_logits():
    model = mi.wrap(random_model("gpt2"))
    x, v = torch.randn(2, 1, model.d_model, generator=torch.Generator().manual_seed(0)).unbind()
    u = parts.unembedding(model)
    added = ((u.norm.centre(x + 1e-3 * v) - u.norm.centre(x)) * u.norm.gain @ u.W_U)[0].detach()  # scale held
    assert token_lists.top_tokens(model, v, 5)[0].tolist() == added.topk(5).indices.tolist()
    assert token_lists.top_tokens(model, v, 5, lowest=True)[0].tolist() == (-added).topk(5).indices.tolist()
    assert torch.equal(token_lists.top_tokens(model, 9 * v, 5), token_lists.top_tokens(model, v, 5))


def test_amplifying_a_neuron_raises_its_tokens():
    """The causal check (test 6 of L5): the tokens read off its value gain most when the neuron is turned up."""
    c = compiled.polysemantic()
    model = c.wrap()
    listed = token_lists.top_tokens(model, parts.ffn(model, 0).W_out[:1], 2)[0].tolist()
    assert set(token_lists.words(model, torch.tensor([listed]))[0]) == {"apple", "eight"}
    before = model.last_logits(["so red"])
    with mi.intervene(model, mi.scale("L0N0", 3.0)):
        gained = (model.last_logits(["so red"]) - before)[0]
    assert set(gained.topk(2).indices.tolist()) == set(listed)


def test_cohesion_is_the_mean_over_pairs():
    model = mi.wrap(random_model("llama"))
    W = folded_unembedding(model)[0].T.detach()
    W = torch.nn.functional.normalize(W - W.mean(0), dim=1)
    ids = torch.tensor([[3, 9, 20], [5, 6, 7]])
    for row, got in zip(ids, token_lists.cohesion(model, ids)):
        pairs = [W[row[i]] @ W[row[j]] for i in range(3) for j in range(i)]
        assert got.item() == pytest.approx(sum(pairs).item() / 3, abs=1e-5)


def test_purity_counts_the_commonest_label():
    labels = torch.tensor([0, 0, 1, 1, 1, -1, -1])
    ids = torch.tensor([[0, 1, 2, 3], [2, 3, 4, 5], [5, 6, 0, 2]])
    assert token_lists.purity(ids, labels).tolist() == [0.5, 0.75, 0.25]  # unlabelled tokens agree with no other


def test_labels_come_from_word_groups():
    model = mi.load()
    labels = token_lists.label_tokens(model, {"cities": lexicon.CITIES, "jobs": [*lexicon.PROFESSIONS, "no such word"]})
    assert labels[model.token_id("paris")] == 0 and labels[model.token_id("nurse")] == 1
    assert labels[model.token_id("dog")] == -1 and int((labels == 0).sum()) == len(set(lexicon.CITIES))
    with pytest.raises(ValueError, match="is in 'a' and in 'b'"):
        token_lists.label_tokens(model, {"a": ["paris"], "b": ["paris"]})


def test_nulls():
    like = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)) * torch.tensor([5.0, *[1] * 7])
    for mixed in (True, False):
        drawn = token_lists.random_directions(2000, like, mixed)
        assert torch.allclose(drawn.norm(dim=1), like.norm(dim=1).mean().expand(2000), atol=1e-3)
        assert (drawn[:, 0].std() / drawn[:, 1].std() > 2) == mixed  # only mixtures share the covariance
    counts = torch.tensor([100.0, 100, 100, 1, 1, 0])
    lists = token_lists.frequency_lists(counts, 2, 500)
    assert lists.shape == (500, 2) and (lists < 3).float().mean() > 0.95 and not (lists == 5).any()
    assert (lists[:, 0] != lists[:, 1]).all()
    with pytest.raises(ValueError, match="more than the 5 tokens"):
        token_lists.frequency_lists(counts, 6, 3)


def test_a_written_theme_beats_the_nulls_and_a_random_vector_does_not():
    """Test 3 of L5 on the shipped model: the sum of city columns is a list of cities, random directions are not."""
    model = mi.load()
    labels = token_lists.label_tokens(model, {"cities": lexicon.CITIES, "jobs": lexicon.PROFESSIONS})
    W = folded_unembedding(model)[0].detach()
    theme = W[:, labels == 0].mean(1)[None]
    values = parts.ffn(model, 3).W_out.detach()
    random = token_lists.top_tokens(model, token_lists.random_directions(100, values), 8)
    found = token_lists.top_tokens(model, theme, 8)
    for measure in (lambda ids: token_lists.purity(ids, labels), lambda ids: token_lists.cohesion(model, ids)):
        null = null_band(measure(random).tolist())
        assert measure(found).item() > null.high
    assert token_lists.cohesion(model, random).mean() > 0  # random lists share their vector: hence a null, not 0


def test_bad_input_is_named():
    model = mi.wrap(random_model("gpt2"))
    with pytest.raises(ValueError, match="k=0 is outside"):
        token_lists.top_tokens(model, torch.randn(1, 32), 0)
    with pytest.raises(ValueError, match="no pairs"):
        token_lists.cohesion(model, torch.tensor([[3]]))
