import math

import pytest
import torch

import mi_course as mi
from mi_course.locate import projection
from mi_course.steer import decoding
from mi_course.steer.decoding import IMPLAUSIBLE, DoLa
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 4, 5, 6, 7, 8], [9, 8, 7], [4, 4, 5, 6]]


def test_by_hand():
    final = torch.tensor([0.5, 0.4, 0.06, 0.04]).log()
    near, far = torch.tensor([0.5, 0.3, 0.1, 0.1]).log(), torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    got = decoding.contrast(final, torch.stack([near, far]), alpha=0.1)
    expected = [math.log(0.5 / 0.7), math.log(0.4 / 0.1), math.log(0.06 / 0.1), IMPLAUSIBLE]
    assert torch.allclose(got, torch.tensor(expected))  # 0.04 < 0.1 * 0.5 is out; the second word wins over the first
    half = decoding.contrast(final, far[None], alpha=0.1, strength=0.5)
    assert half[1] == pytest.approx(math.log(0.4) - 0.5 * math.log(0.1), rel=1e-5)
    # farthest is decided for every row by itself
    rows = decoding.contrast(
        torch.stack([final, far]), torch.stack([torch.stack([far, far]), torch.stack([final] * 2)])
    )
    assert torch.allclose(rows[0, 1], torch.tensor(math.log(0.4 / 0.1)))
    assert torch.allclose(rows[1, 0], torch.tensor(math.log(0.7 / 0.5)))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_those_of_the_reading_contrast(family):
    model = mi.wrap(random_model(family))
    expected = projection.layer_contrast(model, PROMPTS, alpha=0.2).scores
    base, whole = model.last_logits(PROMPTS), model(PROMPTS)
    with DoLa(alpha=0.2).on(model):
        for batch in (PROMPTS, model.tokenize(PROMPTS, side="right")):
            got = model.last_logits(batch)
            out = expected == -torch.inf
            assert torch.equal(got == IMPLAUSIBLE, out)
            assert torch.allclose(got[~out], expected[~out], atol=1e-4)
        every = model(PROMPTS)
    assert torch.allclose(every[:, -1][~out], expected[~out], atol=1e-4)
    # an earlier token is contrasted like the last one of a shorter prompt
    with DoLa(alpha=0.2).on(model):
        assert torch.allclose(every[0, 3], model.last_logits([PROMPTS[0][:4]])[0], atol=1e-4)
    assert torch.equal(model.last_logits(PROMPTS), base) and torch.equal(model(PROMPTS), whole)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_generation_uses_the_contrast_at_every_token(family):
    model = mi.wrap(random_model(family))
    dola = DoLa(alpha=0.05)
    with dola.on(model):
        cached = model.generate_ids(PROMPTS, 5, min_new_tokens=5)
    plain = model.generate_ids(PROMPTS, 5, min_new_tokens=5)
    assert not torch.equal(cached, plain)
    rows = [list(p) for p in PROMPTS]
    eos = {1}
    with dola.on(model):
        for _ in range(5):  # token by token, without a cache
            for row in rows:
                scores = model.last_logits([row])[0]
                scores[list(eos)] = -math.inf
                row.append(int(scores.argmax()))
    assert [row[len(p) :] for row, p in zip(rows, PROMPTS)] == cached.tolist()


def test_resumed_runs_are_right_below_the_candidates_and_refused_above():
    model = mi.wrap(random_model("gpt2"))
    x = mi.record(model, PROMPTS, ["x1"])["x1"]
    with DoLa(candidates=[2]).on(model):
        whole, last = model(PROMPTS), model.last_logits(PROMPTS)
        assert torch.allclose(model.resume(1, x, PROMPTS), whole, atol=1e-5)
        assert torch.allclose(model.resume(1, x, PROMPTS, last=True), last, atol=1e-5)
        with pytest.raises(ValueError, match="DoLa reads x2"):
            model.resume(2, x, PROMPTS)
    with DoLa().on(model), pytest.raises(ValueError, match="DoLa reads x1"):
        model.resume(1, x, PROMPTS)
    assert "resume" not in model.__dict__
    assert torch.equal(model.resume(1, x, PROMPTS), model(PROMPTS))


def test_identity_exceptions_and_arguments():
    model = mi.wrap(random_model("gpt2"))
    base = model(PROMPTS)
    with DoLa().scaled(0.0).on(model):
        assert torch.equal(model(PROMPTS), base)
    with pytest.raises(RuntimeError, match="inside"), DoLa().on(model):
        raise RuntimeError("inside")
    assert torch.equal(model(PROMPTS), base) and "last_logits" not in model.__dict__
    assert not model.hf._forward_hooks
    with DoLa(candidates=[1]).on(model):
        with DoLa(candidates=[2]).on(model):
            pass
        one = model.last_logits(PROMPTS)
        with pytest.raises(ValueError, match="DoLa reads x1"):  # the outer one is in force again
            model.resume(1, mi.record(model, PROMPTS, ["x1"])["x1"], PROMPTS)
    expected = projection.layer_contrast(model, PROMPTS, candidates=[1]).scores
    keep = expected > -torch.inf
    assert torch.allclose(one[keep], expected[keep], atol=1e-4)
    with pytest.raises(ValueError, match="candidates"), DoLa(candidates=[3]).on(model):
        pass
    with pytest.raises(ValueError, match="alpha"):
        DoLa(alpha=0.0)
