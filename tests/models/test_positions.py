"""Padding, positions and generation: a batch is its single prompts, and a cache is no cache."""

import logging

import pytest
import torch

import mi_course as mi
from mi_course.models.batch import columns_of
from tests.models.common import FAMILIES, PROMPTS, hooks_left, make, random_model, single_sites, whole_sites

every_family = pytest.mark.parametrize("family", FAMILIES)
POLICIES = ["all", "prompt", "last", "generated", 0, -2, [0, 1], torch.tensor([2, 0, -1])]


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_unequal_lengths_gives_the_numbers_of_single_prompts(family, side):
    model = make(family)
    names = [n for n in whole_sites(model) if "scores" not in n and "pattern" not in n]
    batch = model.tokenize(PROMPTS, side=side)
    cache, last = mi.record(model, batch, names), model.last_logits(batch)
    for i, prompt in enumerate(PROMPTS):
        real, one = batch.mask[i].bool(), mi.record(model, [prompt], names)
        torch.testing.assert_close(cache.logits[i, real], one.logits[0], rtol=0, atol=1e-4)
        torch.testing.assert_close(last[i], one.logits[0, -1], rtol=0, atol=1e-4)
        for name in names:
            torch.testing.assert_close(cache[name][i, real], one[name][0], rtol=0, atol=1e-4, msg=name)


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_bfloat16_batches_agree_with_single_prompts(family, side):
    model = mi.wrap(random_model(family).to(torch.bfloat16))
    batch = model.tokenize(PROMPTS, side=side)
    logits = model(batch)
    assert logits.dtype == torch.bfloat16
    for i, prompt in enumerate(PROMPTS):
        one = model([prompt])[0].float()
        error = (logits[i, batch.mask[i].bool()].float() - one).abs().max()
        assert error <= 3e-2 * one.abs().max()


def test_columns_count_real_tokens():
    batch = make("gpt2").tokenize(PROMPTS)
    assert batch.lengths.tolist() == [7, 3, 5] and batch.last.tolist() == [6, 6, 6]
    assert columns_of(batch.mask, [0, -2]).tolist() == [[0, 5], [4, 5], [2, 5]]
    right = make("gpt2").tokenize(PROMPTS, side="right")
    assert right.last.tolist() == [6, 2, 4] and columns_of(right.mask, [0, -2]).tolist() == [[0, 5], [0, 1], [0, 3]]
    assert columns_of(right.mask, torch.tensor([-1, 1, 0])).tolist() == [[6], [1], [0]]


@every_family
@pytest.mark.parametrize("side", ["left", "right"])
def test_edits_at_a_position_equal_those_on_single_prompts(family, side):
    model = make(family)
    batch = model.tokenize(PROMPTS, side=side)
    for name in ["x1", "L0H1", "L1H2.q", "L1H2.k", "L1H2.pattern", "mlp0", "L0N5"]:
        for position in (0, -1, -2):
            with mi.intervene(model, mi.scale(name, 0.3, positions=position)):
                batched = model.last_logits(batch)
                single = torch.stack([model.last_logits([prompt])[0] for prompt in PROMPTS])
            torch.testing.assert_close(batched, single, rtol=0, atol=1e-4, msg=f"{name} at {position}")
            with mi.intervene(model, mi.scale(f"{name}@{position}", 0.3)):
                assert torch.equal(model.last_logits(batch), batched)


def test_positions_select_exactly_their_columns():
    model = make("llama")
    x = mi.record(model, PROMPTS, "x1")["x1"]

    def zeroed(positions):
        with mi.intervene(model, mi.zero("x1", positions=positions)):
            return (mi.record(model, PROMPTS, "x1")["x1"] == 0).all(-1).int().tolist()

    assert zeroed("all") == [[1] * 7] * 3
    assert zeroed("prompt") == [[1] * 7, [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1, 1]]
    assert zeroed("last") == zeroed(-1) == [[0] * 6 + [1]] * 3
    assert zeroed("generated") == [[0] * 7] * 3
    assert zeroed([0, -1]) == [[1, 0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0, 1]]
    assert zeroed(torch.tensor([1, 0, -2])) == [[0, 1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0]]
    mask = torch.zeros(3, 7, dtype=torch.bool)
    mask[1, 5] = True
    assert zeroed(mask) == [[0] * 7, [0, 0, 0, 0, 0, 1, 0], [0] * 7]
    assert torch.equal(mi.record(model, PROMPTS, "x1")["x1"], x)


def test_the_position_of_a_site_goes_before_that_of_the_edit():
    model = make("gpt2")
    with mi.intervene(model, mi.zero(["x1@0", "x2"], positions="last")):
        cache = mi.record(model, PROMPTS[:1], ["x1", "x2"])
    assert [(cache[site] == 0).all(-1)[0].nonzero().flatten().tolist() for site in ("x1", "x2")] == [[0], [6]]


def test_patching_one_position_takes_one_value_for_each_row():
    model = make("gpt2")
    value = mi.record(model, PROMPTS, "x1@0")["x1@0"]
    with mi.intervene(model, mi.patch("x1@-1", value)):
        torch.testing.assert_close(mi.record(model, PROMPTS, "x1@-1")["x1@-1"], value)


def cached_logits(model, batch, tokens):
    """Logits while feeding `tokens` one by one after the prompt, with the KV cache: what `generate` does."""
    ids, mask, position = batch.ids, batch.mask, batch.position_ids
    past, logits = None, []
    with torch.no_grad():
        for step in range(tokens.shape[1] + 1):
            out = model.hf(ids, attention_mask=mask, position_ids=position, past_key_values=past, use_cache=True)
            past = out.past_key_values
            logits.append(out.logits[:, -1])
            if step < tokens.shape[1]:
                ids, position = tokens[:, step : step + 1], position[:, -1:] + 1
                mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return torch.stack(logits, dim=1)


def uncached_logits(model, batch, tokens):
    """The same from one pass over prompt and tokens, told where the prompt ends."""
    whole = mi.Batch.from_mask(
        torch.cat([batch.ids, tokens], dim=1), torch.cat([batch.mask, torch.ones_like(tokens)], dim=1)
    )
    model.taps.prompt_width = batch.ids.shape[1]
    try:
        return model(whole)[:, batch.ids.shape[1] - 1 :]
    finally:
        model.taps.prompt_width = None


@every_family
@pytest.mark.parametrize("positions", POLICIES, ids=str)
def test_edits_with_the_cache_equal_edits_without(family, positions):
    """Every kind of site under every policy: also keys and values, which the cache holds unedited."""
    model, tokens = make(family), torch.tensor([[11, 12, 13], [14, 15, 16], [17, 18, 19]])
    batch = model.tokenize(PROMPTS)
    plain = cached_logits(model, batch, tokens)
    names = ["x1", "L1H2", "k1", "L1H2.v", "pattern1", "neurons1"]
    if isinstance(positions, str) and positions in ("all", "generated"):
        names = [name for name in whole_sites(model) if "0" not in name] + single_sites(model)
    for name in names:
        shift = 0.0 if "pattern" in name else 0.2  # a pattern shifted at masked keys would look into the future
        with mi.intervene(model, mi.edit(name, lambda value, b=shift: 0.3 * value + b, positions=positions)):
            cached, uncached = cached_logits(model, batch, tokens), uncached_logits(model, batch, tokens)
        torch.testing.assert_close(cached, uncached, rtol=0, atol=2e-4, msg=f"{name} at {positions}")
        changed = (cached - plain).abs().amax((0, 2)) > 1e-6
        if isinstance(positions, str):
            # before the first generated token there is nothing to change; on its last layer a prompt may not matter
            assert changed.tolist()[:1] == [positions != "generated"], name
            assert positions in ("prompt", "last") or changed[1:].any(), name
    assert not hooks_left(model)


@every_family
def test_steered_generation_equals_a_loop_written_by_hand(family):
    """Independent of our machinery: a plain hook on block 1 and a loop that recomputes everything for each token."""
    model, vector = make(family), 2 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    batch = model.tokenize(PROMPTS)
    width = batch.ids.shape[1]
    chosen = {
        "all": lambda n: torch.ones(3, n).bool(),
        "prompt": lambda n: torch.nn.functional.pad(batch.mask, (0, n - width)).bool(),
        "last": lambda n: (torch.arange(n) == width - 1).expand(3, n),
        "generated": lambda n: (torch.arange(n) >= width).expand(3, n),
        -2: lambda n: (torch.arange(n) == width - 2).expand(3, n),
    }
    outcomes = set()
    for positions, columns in chosen.items():
        ids, mask = batch.ids, batch.mask
        for _ in range(6):
            shift = columns(ids.shape[1])[..., None] * vector

            def steer(module, args, shift=shift):
                return (args[0] + shift, *args[1:])

            handle = model.blocks[1].register_forward_pre_hook(steer)
            try:
                position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
                with torch.no_grad():
                    logits = model.hf(ids, attention_mask=mask, position_ids=position_ids, use_cache=False).logits
            finally:
                handle.remove()
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        with mi.intervene(model, mi.add("x1", vector, positions=positions)):
            ours = model.generate_ids(PROMPTS, 6, eos_token_id=None)
        assert torch.equal(ours, ids[:, width:]), positions
        outcomes.add(str(ours.tolist()))
    assert len(outcomes) > 2  # the policies lead to different texts


@every_family
def test_generation_of_a_batch_equals_single_prompts(family):
    model = make(family)
    together = model.generate_ids(PROMPTS, 6, eos_token_id=None)
    for i, prompt in enumerate(PROMPTS):
        assert torch.equal(together[i], model.generate_ids([prompt], 6, eos_token_id=None)[0])


def test_a_row_that_ends_early_raises_no_false_alarm():
    """transformers sees a padded step without a mask and warns, once in a process; the mask was there in the prompt."""
    lab, heard = mi.load("lab"), []
    log, listener = logging.getLogger("transformers.modeling_utils"), logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())
    log.addHandler(listener)
    log.warning_once.__func__.cache_clear()
    try:
        ids = lab.generate_ids(["how to bake bread ?", "the capital of france is"], 12)
        assert ids[1, -1] == lab.config.pad_token_id and heard == [] and log.filters == []
        log.warning_once.__func__.cache_clear()
        lab.hf(torch.tensor([[5, lab.config.pad_token_id]]))
        assert len(heard) == 1  # a call without a mask that is not ours is still warned of
    finally:
        log.removeHandler(listener)


def test_a_patched_prompt_stays_patched_while_generating():
    """A recorded value [B, T, ...] covers the prompt; generated tokens keep theirs, also for cached keys and values."""
    model = make("llama")
    other = [[8, 9, 10, 11, 12, 13, 14], [5, 6, 7], [9, 8, 7, 6, 5]]
    for name in ("x1", "k1", "v0", "L1H2.v", "mlp0"):
        value = mi.record(model, other, name)[name]
        with mi.intervene(model, mi.patch(name, value)):
            cached = model.generate_ids(PROMPTS, 5, eos_token_id=None)
            assert torch.equal(cached, model.generate_ids(PROMPTS, 5, eos_token_id=None, use_cache=False)), name
