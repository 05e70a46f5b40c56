import pytest
import torch

import mi_course as mi
from mi_course.models import SiteError
from mi_course.steer.steer import Detector, Steer, together
from mi_course.steer.weights import WeightEdit
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [4, 4, 5, 6, 7]]


def edits(model, positions="all"):
    vector = 3 * torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    return mi.add("x1", vector, positions=positions), mi.zero(["L0H1.z", "L1N3"], positions=positions)


def under(model, *steers):
    with together(model, *steers):
        return model(PROMPTS), model.generate_ids(PROMPTS, 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_is_the_identity_and_strength_1_the_edits_to_the_bit(family):
    model = mi.wrap(random_model(family))
    steer = Steer(edits(model))
    base, base_ids = model(PROMPTS), model.generate_ids(PROMPTS, 6)
    logits, ids = under(model, steer.scaled(0.0))
    assert torch.equal(logits, base) and torch.equal(ids, base_ids)
    with mi.intervene(model, *edits(model)):
        full, full_ids = model(PROMPTS), model.generate_ids(PROMPTS, 6)
    logits, ids = under(model, steer)
    assert torch.equal(logits, full) and torch.equal(ids, full_ids)
    assert (full - base).abs().max() > 1e-2
    assert torch.equal(model(PROMPTS), base)


def test_the_dial_is_a_blend_of_old_and_edited_value():
    model = mi.wrap(random_model("llama"))
    for s in (-1.0, 0.3, 2.5):
        with Steer((mi.scale("mlp0", 0.25),), s).on(model):
            steered = mi.record(model, PROMPTS, ["mlp0"])["mlp0"]
        plain = mi.record(model, PROMPTS, ["mlp0"])["mlp0"]
        assert torch.allclose(steered, plain * (1 + s * (0.25 - 1)), atol=1e-5)
    v = torch.ones(model.d_model)
    with mi.intervene(model, mi.add("x1", v, 0.7)):
        added = model(PROMPTS)
    assert torch.allclose(under(model, Steer((mi.add("x1", v),), 0.7))[0], added, atol=1e-5)


def test_steers_compose_and_nest_in_any_form():
    model = mi.wrap(random_model("gpt2"))
    v, w = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(1))
    first, second = Steer((mi.add("x1", v),), 0.5), Steer((mi.add("x1", w),), 2.0)
    both = Steer((mi.add("x1", 0.5 * v + 2 * w),))
    expected = under(model, both)[0]
    assert torch.allclose(under(model, first, second)[0], expected, atol=1e-4)
    with mi.intervene(model, first, [second]):
        assert torch.allclose(model(PROMPTS), expected, atol=1e-4)
    weight = model.hf.get_parameter("transformer.h.1.mlp.c_proj.weight")
    edit = WeightEdit({"transformer.h.1.mlp.c_proj.weight": torch.ones_like(weight)})
    with first.on(model), edit.on(model):
        nested = model(PROMPTS)
    assert torch.equal(under(model, first, edit)[0], nested)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_schedule_counts_generated_tokens(family, use_cache):
    model = mi.wrap(random_model(family))
    v = torch.ones(model.d_model)
    before, after = [], []
    steer = Steer((mi.add("x0", v),), 2.0, schedule=(0.5, 0.0, -1.0))
    keep_before, keep_after = (mi.edit("x0", lambda x, kept=kept: kept.append(x) or x) for kept in (before, after))
    with mi.intervene(model, keep_before, steer, keep_after):
        model.generate_ids([PROMPTS[0]], 5, use_cache=use_cache, min_new_tokens=5)
    factors = [(new - old)[0, -1].mean().item() for new, old in zip(after, before)]  # last prompt token, then replies
    assert factors == pytest.approx([2.0, 1.0, 0.0, -2.0, -2.0], abs=1e-4)
    with pytest.raises(ValueError, match="schedule is empty"):
        Steer((mi.add("x0", v),), schedule=())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_conditional_steering_leaves_other_prompts_alone_also_while_generating(family):
    model = mi.wrap(random_model(family))
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    scores = mi.record(model, PROMPTS, ["x0@0"])["x0@0"] @ direction
    threshold = scores.sort().values[1:].mean().item()  # one of three rows lies above
    when = Detector("x0@0", direction, threshold)
    always = Steer(edits(model))
    steer = Steer(edits(model), when=when)
    base, (full, _) = model(PROMPTS), under(model, always)
    logits, ids = under(model, steer)
    fires = scores > threshold
    assert fires.sum() == 1
    assert torch.equal(logits[~fires], base[~fires]) and torch.equal(logits[fires], full[fires])
    assert torch.equal(ids[~fires], model.generate_ids(PROMPTS, 6)[~fires])
    with always.on(model):
        assert torch.equal(ids[fires], model.generate_ids(PROMPTS, 6)[fires])


def test_a_detector_must_come_first_and_fit():
    model = mi.wrap(random_model("gpt2"))
    v = torch.ones(model.d_model)
    late = Steer((mi.add("x1", v),), when=Detector("x2@-1", v))
    with pytest.raises(SiteError, match="after the steered 'x1'"), late.on(model):
        model(PROMPTS)
    with late.on(model):
        for _ in range(2):  # the second pass must not use what the first one left
            with pytest.raises(SiteError, match="after"):
                model(PROMPTS)
    with (
        pytest.raises(SiteError, match="direction has shape"),
        Steer((mi.add("x1", v),), when=Detector("x0@-1", v[1:])).on(model),
    ):
        model(PROMPTS)
    with pytest.raises(ValueError, match="no position"):
        Detector("x1", v)
    neuron = Steer((mi.add("x1", v),), when=Detector("L0N2@-1", torch.tensor(1.0), -1e9))
    assert torch.equal(under(model, neuron)[0], under(model, Steer((mi.add("x1", v),)))[0])
    assert not model.taps._handles


def test_bad_input_and_exceptions():
    model = mi.wrap(random_model("gpt2"))
    base = model(PROMPTS)
    for wrong in ((), (3,), "x1"):
        with pytest.raises(TypeError, match="primitive edits"):
            Steer(wrong)
    with pytest.raises(RuntimeError, match="inside"), Steer(edits(model)).on(model):
        raise RuntimeError("inside")
    assert not model.taps._handles and torch.equal(model(PROMPTS), base)
