"""Reading neurons: contributions add up, contexts are where the neuron is largest, AUROC against counting pairs."""

import pytest
import torch

import mi_course as mi
from mi_course.models import weights as parts
from mi_course.objects import neurons
from mi_course.objects.decompose import direct_logit_attribution
from mi_course.objects.weights import folded_unembedding
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

PROMPTS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))
TOKENS, FOILS = [7, 8], [9, 10]


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_of_a_layer_sum_to_its_write(family):
    model = mi.wrap(random_model(family))
    each = neurons.direct_contributions(model, PROMPTS, TOKENS, FOILS)
    assert each.shape == (2, model.n_layers, model.d_ffn)
    whole = direct_logit_attribution(model, PROMPTS, TOKENS, FOILS)
    final = mi.record(model, PROMPTS, [f"x{model.n_layers}@-1"])[f"x{model.n_layers}@-1"]
    W = folded_unembedding(model)[0]
    u = (W[:, TOKENS] - W[:, FOILS]).T * parts.unembedding(model).norm.scale(final)
    for layer in range(model.n_layers):
        b_out = parts.ffn(model, layer).b_out
        if parts.post_norm(model, layer, "mlp") is not None:  # these families have no bias to take apart
            assert not b_out.any()
        assert torch.allclose(each[:, layer].sum(1) + u @ b_out, whole[f"mlp{layer}"], rtol=0, atol=2e-5)


def test_contributions_are_blind_to_what_an_attention_head_fetches():
    c = compiled.lookup()
    each = neurons.direct_contributions(c.wrap(), c.task.prompts, c.task.targets, c.task.foils)
    assert not each.any()  # every fact is written by a neuron of layer 0, at the subject, and moved by L1H0


def test_promoted_tokens_of_a_known_direction():
    model = compiled.polysemantic().wrap()
    values = parts.ffn(model, 0).W_out
    first, second = neurons.promoted(model, values[:2], k=2)
    assert set(first) == {"apple", "eight"} and second[0] == "banana"


def test_mixtures_have_the_covariance_of_the_values():
    values = torch.randn(40, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 1, 1, 1, 1, 4.0])
    null = neurons.mixtures(values, 20_000)
    assert torch.allclose(null.T @ null / 20_000, values.T @ values / 40, rtol=0, atol=0.6)
    assert torch.equal(neurons.mixtures(values, 5, seed=3), neurons.mixtures(values, 5, seed=3))


def test_top_contexts_of_a_look_up_neuron():
    c = compiled.lookup()
    subjects = list(c.others)
    found = neurons.top_contexts(c.wrap(), c.task.prompts, "L0N2", k=4)
    assert [context.tokens[-1] for context in found[:3]] == [subjects[2]] * 3
    assert [context.activation for context in found] == [1, 1, 1, 0]
    assert str(found[0]).endswith(f"[{subjects[2]}]") and found[0].tokens[0] == "<bos>"
    assert all(c.task.prompts[context.document].split()[-2] == subjects[2] for context in found[:3])


def test_top_contexts_are_the_largest_and_never_on_padding():
    model = compiled.induction().wrap()
    hf = model.hf
    with torch.no_grad():
        hf.transformer.h[0].mlp.c_fc.bias[0] = -1.0
        hf.transformer.h[0].mlp.c_fc.weight[:, 0] = -1.0  # negative wherever there is a token: padding must not win
    documents = ["a b", "c d e f g", "a"]
    found = neurons.top_contexts(model, documents, "L0N0", k=3, width=2, batch_size=2)
    assert sorted(context.document for context in found) == [0, 1, 2]
    for context in found:
        own = mi.record(model, [documents[context.document]], ["L0N0"])["L0N0"]
        assert context.activation == own.max().item() and 1 <= len(context.tokens) <= 2


@pytest.mark.parametrize("site", ["neurons0", "L0H0", "L0N1@-1"])
def test_top_contexts_want_one_neuron(site):
    with pytest.raises(ValueError, match="must be one neuron"):
        neurons.top_contexts(compiled.lookup().wrap(), ["the"], site)


def test_auroc_counts_pairs():
    values = torch.randint(0, 5, (30, 7), generator=torch.Generator().manual_seed(2)).float()  # many ties
    labels = torch.arange(30) % 3 == 0
    gap = values[labels][:, None] - values[~labels][None]
    by_pairs = ((gap > 0).float() + (gap == 0).float() / 2).mean((0, 1))
    assert torch.allclose(neurons.auroc(values, labels), by_pairs, atol=1e-6)
    assert torch.allclose(neurons.auroc(values, ~labels), 1 - by_pairs, atol=1e-6)


def test_the_best_of_many_is_lucky():
    values = torch.randn(60, 2000, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(60) < 30
    null = neurons.best_by_luck(values, labels, draws=50)
    assert null.shape == (50,) and null.min() > 0.65  # the best of 2,000 useless detectors
    assert null.min() - 0.05 < neurons.auroc(values, labels).max() < null.max() + 0.05  # as lucky as the null says
    assert torch.equal(null, neurons.best_by_luck(values, labels, draws=50))


@pytest.mark.parametrize("labels", [torch.ones(6, dtype=torch.bool), torch.tensor([1, 0] * 3), torch.ones(5).bool()])
def test_labels_must_be_two_kinds_of_truth_values(labels):
    with pytest.raises(ValueError, match="labels must"):
        neurons.auroc(torch.zeros(6, 2), labels)
