import pytest
import torch

import mi_course as mi
from mi_course.steer import amplitude, detectors
from mi_course.steer.steer import Steer
from mi_course.world import compiled
from tests.families import random_model

# L0N1 fires on "yellow" alone, L0N3 on "two", L0N2 on "green": in so many of the positive and negative prompts
POSITIVE = ["so yellow"] * 6 + ["so red"] * 4
NEGATIVE = ["so red"] * 8 + ["so two"] * 2


@pytest.fixture(scope="module")
def planted():
    return compiled.polysemantic().wrap()


def test_expertise_is_the_known_auroc(planted):
    quality = detectors.expertise(planted, POSITIVE, NEGATIVE)["neurons0"]
    # fires in 60 % and 0 %: 0.5 + 0.6 / 2; in 0 % and 20 %: 0.5 - 0.1; never: 0.5; red: 0.4 and 0.8
    assert quality.tolist() == pytest.approx([0.3, 0.8, 0.5, 0.4, 0.5])
    assert detectors.aura_factors(quality).tolist() == pytest.approx([1.0, 0.4, 1.0, 1.0, 1.0])
    assert detectors.aura_factors(torch.tensor([1.0, 0.5, 0.0])).tolist() == [0.0, 1.0, 1.0]


def test_aura_damps_the_planted_expert_alone(planted):
    known = compiled.polysemantic()
    steer = detectors.aura(planted, POSITIVE, NEGATIVE)
    for s in (0.0, 0.5, 1.0):
        with steer.scaled(s).on(planted):
            values = mi.record(planted, ["so yellow", "so two"], ["neurons0"])["neurons0"][:, -1]
            numbers = known.others["numbers"].measure(planted)
        assert values[0, 1].item() == pytest.approx(1 - 0.6 * s) and values[1, 3].item() == 1.0
        assert torch.equal(numbers, known.others["numbers"].measure(planted))


def test_peaks_leave_out_padding_and_first_tokens():
    model = mi.wrap(random_model("llama"))
    prompts = [[3, 4, 5, 6, 7], [9, 8]]
    for skip in (0, 1):  # at 0 nothing but the mask keeps the padding out
        found = detectors.peaks(model, prompts, ["neurons1"], skip=skip)["neurons1"]
        for prompt, row in zip(prompts, found):
            own = mi.record(model, [prompt], ["neurons1"])["neurons1"][0]
            assert torch.allclose(row, own[skip:].amax(0), atol=1e-5)
    with pytest.raises(ValueError, match="skip=2"):
        detectors.peaks(model, prompts, ["neurons1"], skip=2)


def test_fit_detector_separates_and_keeps_the_rate_of_false_alarms():
    model = mi.wrap(random_model("gpt2"))
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 50, (80, 6), generator=g)
    positive, negative = rows.clone()[:40], rows[40:]
    positive[:, -1] = 7
    detector = detectors.fit_detector(model, positive, negative, "x0@-1")
    assert detectors.fires(model, detector, positive).all()
    assert detectors.fires(model, detector, negative).float().mean() < 0.1
    assert detector.direction.norm().item() == pytest.approx(1.0)
    strict = detectors.fit_detector(model, rows[:40], rows[40:], "x1@-1", false_alarms=0.1)
    assert detectors.fires(model, strict, rows[40:]).sum() == 4
    neuron = detectors.fit_detector(model, positive, negative, "L0N3@-1")
    assert neuron.direction.abs().item() == 1.0
    with pytest.raises(ValueError, match="same mean"):
        detectors.fit_detector(model, positive, positive, "x1@-1")


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gpt_neox"])
def test_conditional_amplitude_changes_only_rows_where_the_detector_fires(family):
    model = mi.wrap(random_model(family))
    prompts = [[3, 4, 5, 6, 7], [9, 8, 12], [4, 4, 5, 6, 7], [9, 10, 11, 7]]
    detector = detectors.fit_detector(model, [prompts[0], prompts[2]], [prompts[1], prompts[3]], "x1@-1")
    fires = detectors.fires(model, detector, prompts)
    assert 0 < fires.sum() < 4
    always = amplitude.switch_off(["L1H1.z", "L1N3", "L1N4"])
    only = Steer(always.edits, when=detector)
    plain, plain_ids = model(prompts), model.generate_ids(prompts, 6)
    with always.on(model):
        full, full_ids = model(prompts), model.generate_ids(prompts, 6)
    with only.on(model):
        logits, ids = model(prompts), model.generate_ids(prompts, 6)
    assert torch.equal(logits[fires], full[fires]) and torch.equal(logits[~fires], plain[~fires])
    assert torch.equal(ids[fires], full_ids[fires]) and torch.equal(ids[~fires], plain_ids[~fires])
    assert (full - plain).abs().max() > 1e-2
