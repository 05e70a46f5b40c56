import pytest
import torch
from sklearn.metrics import roc_auc_score

import mi_course as mi
from mi_course.models import SiteError, weights
from mi_course.objects.sae import SAE
from mi_course.objects.sae_features import auroc, by_token, logit_effect, stream_directions, top_examples
from tests.families import random_model

DOCUMENTS = [[5, 9, 30, 12], [8, 41, 6, 6, 17, 3], [5, 5, 6], [40, 41, 42, 43, 44]]


@pytest.fixture(scope="module", params=["gpt2", "gemma2"])
def model(request):
    return mi.wrap(random_model(request.param))


@pytest.fixture(scope="module")
def token_sae(model):
    """Feature 0 fires on token 6 alone, at 0.5 (it reads the token embedding); feature 1 never fires."""
    embedded = mi.record(model, torch.arange(50)[:, None], ["embed"])["embed"][:, 0]
    sae = SAE(model.d_model, 2, site="embed").requires_grad_(False)
    dual = torch.linalg.lstsq(embedded - embedded.mean(0), torch.eye(50)[:, [6]] - 0.02).solution[:, 0]
    at = (embedded @ dual).sort(descending=True).values
    assert (embedded @ dual).argmax() == 6
    sae.W_enc[:, 0] = dual / (at[0] - at[1])
    sae.b_enc[0] = 0.5 - at[0] / (at[0] - at[1])
    sae.b_enc[1] = -100.0
    return sae


def test_top_examples_are_the_places_where_a_planted_feature_fires(model, token_sae):
    examples = top_examples(model, token_sae, DOCUMENTS, 0, k=5)
    assert [(e.document, e.position, e.token) for e in examples] == [(1, 2, "6"), (2, 2, "6")]    # first of equals
    assert examples[0].value == pytest.approx(0.5, abs=1e-3)
    assert examples[0].tokens == ["8", "41", "6", "6", "17", "3"] and len(examples[0].values) == 6
    assert [v > 0 for v in examples[0].values] == [False, False, True, True, False, False]
    assert examples[0].context(before=1, after=2) == "41 [6] 6 17"
    assert len(top_examples(model, token_sae, DOCUMENTS, 0, k=1)) == 1
    assert top_examples(model, token_sae, DOCUMENTS, 1) == []


def test_by_token_counts_occurrences(model, token_sae):
    (use,) = by_token(model, token_sae, DOCUMENTS, 0)
    assert (use.token, use.count, use.rate) == ("6", 3, 1.0) and use.mean == pytest.approx(0.5, abs=1e-3)
    assert by_token(model, token_sae, DOCUMENTS, 0, min_count=4) == []
    assert by_token(model, token_sae, DOCUMENTS, 1) == []


def test_equal_contexts_count_once(model, token_sae):
    """A causal model says the same after the same words, whatever follows."""
    documents = [[9, 6, 12], [9, 6, 30, 31], [8, 6, 12]]
    assert [e.document for e in top_examples(model, token_sae, documents, 0)] == [0, 2]


def test_more_tokens_than_a_context_holds(model, monkeypatch):
    monkeypatch.setattr(model, "n_ctx", 6)
    always = SAE(model.d_model, 1, site="x1").requires_grad_(False)
    always.b_enc.fill_(1e3)
    uses = by_token(model, always, DOCUMENTS, 0, min_count=1)
    assert len(uses) == len({i for d in DOCUMENTS for i in d}) > 6 and all(use.rate == 1 for use in uses)


def test_activations_equal_the_recorded_site(model):
    """In padded batches too, and on a model's own layer."""
    model.saes["s"] = sae = SAE(model.d_model, 64, site="x1", seed=2)
    for example in top_examples(model, sae, DOCUMENTS, 7):
        alone = mi.record(model, [DOCUMENTS[example.document]], ["sF7"])["sF7"][0]
        assert torch.allclose(torch.tensor(example.values), alone, atol=1e-4)
        assert example.value == max(example.values) == example.values[example.position]


@pytest.mark.parametrize("site", ["x2", "mid1", "mlp1", "mlp1.write", "attn1.write", "neurons1", "z1"])
def test_logit_effect_is_what_a_feature_adds_directly(model, site):
    """Add one feature at the last layer and freeze the norms: the logits change by activation * scale * effect."""
    width = mi.record(model, [DOCUMENTS[0]], [site])[site].flatten(2).shape[-1]
    sae, last = SAE(width, 30, site=site, seed=4), f"x{model.n_layers}"
    assert torch.allclose(logit_effect(model, sae)[3], logit_effect(model, sae, 3), atol=1e-5)
    direction = stream_directions(model, sae)[3]
    x = mi.record(model, [DOCUMENTS[0]], [last])[last][0, -1]
    norm, W_U = weights.unembedding(model).norm, weights.unembedding(model).W_U
    frozen = (norm.centre(direction) * norm.scale(x) * norm.gain) @ W_U
    assert torch.allclose(norm.scale(x) * logit_effect(model, sae, 3), frozen, atol=1e-4)


@pytest.mark.parametrize("site", ["x", "mlp", "mlp.write", "attn.write", "neurons", "z"])
def test_stream_directions_are_what_an_edit_of_the_last_layer_adds(model, site):
    L, kind = model.n_layers, site.split(".")[0]
    if model.family.mlp_post_norm and site in ("mlp", "neurons", "z"):
        pytest.skip("a post-norm rescales the write by a number that depends on it")
    site, last = (f"x{L}" if site == "x" else site.replace(kind, f"{kind}{L - 1}")), f"x{L}"
    prompt = [DOCUMENTS[0]]
    plain = mi.record(model, prompt, [site, last, f"mlp{L - 1}.write"])
    sae = SAE(plain[site].flatten(2).shape[-1], 30, site=site, seed=4)
    edits = [mi.add(site, sae.W_dec[3].detach().view(plain[site].shape[2:]))]
    if kind in ("attn", "z"):                            # direct means that the FFN behind does not react
        edits.append(mi.patch(f"mlp{L - 1}.write", plain[f"mlp{L - 1}.write"]))
    with mi.intervene(model, *edits):
        after = mi.record(model, prompt, [last])[last]
    assert torch.allclose(after - plain[last], stream_directions(model, sae)[3].expand_as(after), atol=1e-4)


def test_features_that_write_nothing_are_refused(model):
    with pytest.raises(SiteError, match="write nothing to the stream"):
        logit_effect(model, SAE(8, 4, site="L0H1.q"))


def test_auroc_of_one_feature_and_of_all():
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 4, (300, 6), generator=g).float() * (torch.rand(300, 6, generator=g) < 0.6)
    labels = torch.rand(300, generator=g) < 0.3
    ours = auroc(scores, labels)                                               # many ties: most features are off
    for j in range(6):
        assert ours[j].item() == pytest.approx(roc_auc_score(labels, scores[:, j]), abs=1e-5)
        assert auroc(scores[:, j], labels).item() == pytest.approx(ours[j].item())


@pytest.mark.parametrize("act, says", [
    (lambda: top_examples(None, SAE(4, 8, site="x1"), [[1]], 8), "feature 8 does not exist"),
    (lambda: top_examples(None, SAE(4, 8), [[1]], 0), "site is not set"),
    (lambda: top_examples(None, SAE(4, 8, site="x1"), [], 0), "documents is empty"),
])
def test_bad_input_is_named(act, says):
    with pytest.raises(ValueError, match=says):
        act()
