"""Patchscopes: patching a state back in changes no bit, the last layer is the lens, identity is recovered by layer."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import patchscopes
from mi_course.world import compiled, lexicon
from tests.families import FAMILIES, random_model

ROWS = [[5, 9, 30, 12], [8, 41, 6, 6, 17, 3]]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_identity_patch_is_exact(family):
    model = mi.wrap(random_model(family))
    plain = model.last_logits(ROWS)
    for layer in range(model.n_layers + 1):
        for position in (-1, 1):
            states = patchscopes.source_states(model, ROWS, layer, position)
            assert torch.equal(patchscopes.patchscope(model, states, layer, ROWS, position), plain)
    assert not model.taps._handles


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_at_the_last_layer_it_is_the_logit_lens(family):
    model = mi.wrap(random_model(family))
    states = patchscopes.source_states(model, ROWS, 1)
    read = patchscopes.patchscope(model, states, model.n_layers, [3, 4, 4])
    assert torch.allclose(read, model.unembed(states), atol=1e-5)


def test_the_target_prompt_reads_what_is_put_in():
    """compiled.lookup: the last head fetches what stands at the subject, whichever prompt it comes from."""
    c = compiled.lookup()
    model = c.wrap()
    states = patchscopes.source_states(model, ["the city of peru", "the seat of egypt"], 1)
    said = patchscopes.patchscope(model, states, 1, "the capital of norway is", position=-2).argmax(-1)
    assert said.tolist() == [model.token_id("lima"), model.token_id("cairo")]
    raw = patchscopes.source_states(model, ["the city of peru"], 0)  # before the look-up the attribute is not there
    late = patchscopes.patchscope(model, raw, 1, "the capital of norway is", position=-2).argmax(-1)
    assert late.item() != model.token_id("lima")


def test_token_identity_by_layer_on_the_shipped_model():
    model, target = mi.load(), "note : paul . we read that"
    words = [w[0] for w in list(lexicon.NOUNS.values())[:20]]
    prompts = [f"the {w}" for w in words]
    found = patchscopes.recovery(model, prompts, words, target, target_position=3)
    null = patchscopes.recovery(model, prompts, words, target, target_position=3, null=True)
    assert found.sites == [f"x{layer}" for layer in range(7)]
    assert found["x0"] > 0.9 and found["x1"] > 0.5 and found["x6"] < 0.2 and null.values.max() < 0.15
    # at x4 the state comes too late for the heads that repeat a word, not without the word
    early = patchscopes.recovery(model, prompts, words, target, target_position=3, target_layer=1)
    assert found["x4"] < 0.1 and early["x4"] > 0.5


def test_generation_reads_the_state_too():
    model = mi.load()
    state = patchscopes.source_states(model, ["the dog"], 1)
    said = patchscopes.patchscope_generate(model, state, 1, "note : paul . we read that", position=3, max_new_tokens=1)
    assert said == ["dog"]


def test_identity_prompt():
    assert patchscopes.identity_prompt(["cat", "sun"]) == "cat : cat ; sun : sun ; x"
    with pytest.raises(ValueError, match="words is empty"):
        patchscopes.identity_prompt([])


def test_bad_input_is_named():
    model = mi.wrap(random_model("gpt2"))
    states = torch.zeros(2, model.d_model)
    with pytest.raises(ValueError, match="give one, or one for each"):
        patchscopes.patchscope(model, states, 1, [[3], [4], [5]])
    with pytest.raises(ValueError, match="states has shape"):
        patchscopes.patchscope(model, states[0], 1, [3, 4])
    with pytest.raises(ValueError, match="layer 9 is out of range"):
        patchscopes.patchscope(model, states, 9, [3, 4])
    with pytest.raises(ValueError, match="two different tokens"):
        patchscopes.recovery(model, ROWS, [7, 7], [3, 4], null=True)
