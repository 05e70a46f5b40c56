"""The random models must exercise what they claim to: a test model whose parameters do not matter tests nothing."""

import pytest
import torch

from tests.families import FAMILIES, random_model

IDS = torch.randint(3, 50, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_matters(family):
    model = random_model(family)
    model(IDS).logits.log_softmax(-1).pow(2).mean().backward()
    useless = {n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7}
    # a key bias shifts all scores of a row alike, which softmax ignores (with RoPE it does matter)
    assert useless <= {n for n in useless if n.endswith("k_proj.bias") and family == "opt"}


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_far_from_uniform_and_seeds_reproduce(family):
    model = random_model(family)
    out = model(IDS, output_attentions=True)
    last_rows = torch.stack(out.attentions)[..., -1, :]
    assert last_rows.amax(-1).mean() > 2 / IDS.shape[1]
    assert torch.equal(out.logits, random_model(family)(IDS).logits)
    assert not torch.allclose(out.logits, random_model(family, seed=1)(IDS).logits)


@pytest.mark.parametrize("family, neutral", [
    ("gpt_neo", dict(window_size=64)), ("mistral", dict(sliding_window=None)), ("gemma2", dict(sliding_window=64)),
    ("gemma2", dict(attn_logit_softcapping=None)), ("gemma2", dict(final_logit_softcapping=None)),
    ("gemma2", dict(query_pre_attn_scalar=12)), ("gpt_neox", dict(use_parallel_residual=False))])
def test_the_special_features_change_the_logits(family, neutral):
    assert (random_model(family)(IDS).logits - random_model(family, **neutral)(IDS).logits).abs().max() > 1e-3


def test_unknown_family_names_the_choices():
    with pytest.raises(KeyError, match="gpt2"):
        random_model("gpt5")
