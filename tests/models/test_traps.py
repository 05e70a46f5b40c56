"""The transformers-5 traps: what goes wrong with plain hooks, and that we do not fall in.

Each test first shows the trap on the Hugging Face module itself, so that it fails when a later version closes it.
"""

import pytest
import torch

import mi_course as mi
from tests.models.common import FAMILIES, PROMPTS, make, random_model

BARE = [f for f in FAMILIES if f not in ("gpt_neo", "gptj")]


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_return_a_bare_tensor_or_a_tuple(family):
    """The old idiom `output[0][:] = 0` then edits batch row 0 only, silently. Ours edits every row on every family."""
    model = make(family)
    batch, returned = model.tokenize(PROMPTS), []

    def old_idiom(module, args, output):
        returned.append(type(output))
        output[0][:] = 0

    handle = model.blocks[0].register_forward_hook(old_idiom)
    try:
        x1 = mi.record(model, batch, "x1")["x1"]
    finally:
        handle.remove()
    rows = [bool((row == 0).all()) for row in x1]
    assert rows == ([True, False, False] if family in BARE else [True, True, True])
    assert issubclass(returned[0], torch.Tensor if family in BARE else tuple)
    with mi.intervene(model, mi.zero("x1")):
        assert (mi.record(model, batch, "x1")["x1"] == 0).all()


def test_sdpa_returns_no_attention_weights():
    """Under transformers' default there is no pattern, and asking for it gives an empty answer instead of an error."""
    hf = random_model("llama")
    hf.set_attn_implementation("sdpa")
    seen = []
    handle = hf.model.layers[0].self_attn.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    try:
        hf(torch.tensor([PROMPTS[0]]))
    finally:
        handle.remove()
    assert seen == [None]
    pattern = mi.record(mi.wrap(hf), PROMPTS, "pattern0")["pattern0"]
    torch.testing.assert_close(pattern.sum(-1), torch.ones(3, 4, 7))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_hidden_state_is_already_normed(family):
    """hidden_states[-1] lies behind the final norm; x^L does not, and unembedding it gives the logits."""
    model, ids = make(family), torch.tensor([PROMPTS[0]])
    with torch.no_grad():
        out = random_model(family)(ids, output_hidden_states=True)  # transformers leaves hooks of its own behind
    last = f"x{model.n_layers}"
    x = mi.record(model, ids, last)[last]
    assert not torch.allclose(out.hidden_states[-1], x, atol=0.05)
    torch.testing.assert_close(model.unembed(x), out.logits, rtol=0, atol=1e-5)
    assert not torch.allclose(model.unembed(out.hidden_states[-1]), out.logits, atol=0.01)  # the double-norm bug


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo"])
def test_left_padding_needs_position_ids(family):
    model = make(family)
    batch, alone = model.tokenize(PROMPTS), model([PROMPTS[1]])[0, -1]
    with torch.no_grad():
        naive = model.hf(batch.ids, attention_mask=batch.mask).logits[1, -1]
    assert (naive - alone).abs().max() > 1e-2
    torch.testing.assert_close(model(batch)[1, -1], alone, rtol=0, atol=1e-4)


def test_the_default_dtype_of_a_checkpoint_is_not_taken(tmp_path):
    """transformers would load a bfloat16 checkpoint in bfloat16; we load in float32 unless told otherwise."""
    from transformers import AutoModelForCausalLM

    random_model("llama").to(torch.bfloat16).save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    from mi_course.models.model import _dtype

    assert _dtype(None) == torch.float32
