"""The steering report: breakdown points of planted curves, scores by hand, a steer whose parts are measured apart."""

import json
import math
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate.dose_response import DoseResponse, breakdown_point, dose_response
from mi_course.evaluate.fluency import Fluency, ending_ids, fluency, generation_loss, judge, repetition_rate, write
from mi_course.evaluate.side_effects import SideEffects
from mi_course.evaluate.statistics import effect, null_band
from mi_course.evaluate.steering import (
    SteeringReport,
    as_dial,
    harmonic_mean,
    kept,
    matched_null,
    steering_report,
    steering_score,
)


@pytest.fixture(scope="module")
def lab():
    return mi.load()


# --- breakdown point ------------------------------------------------------------------------------------------------
def test_breakdown_of_planted_curves():
    x = np.array([-2.0, -1.0, 0.0, 1.0, 2.0, 4.0])
    # a straight line falls through the bar exactly where algebra says, whatever the order of the strengths
    line = 1 - 0.1 * np.abs(x)
    for order in (np.arange(6), np.array([5, 2, 0, 4, 1, 3])):
        assert breakdown_point(x[order], line[order], 0.75, at_least=True) == pytest.approx(2.5)
        assert breakdown_point(x[order], line[order], 0.85, at_least=True, side=-1) == pytest.approx(-1.5)
    loss = 0.01 * x**2
    assert breakdown_point(x, loss, 0.10, at_least=False) == pytest.approx(2 + 2 * (0.10 - 0.04) / 0.12)
    # the first exit counts, also when the measure comes back
    assert breakdown_point(x, [1, 1, 1, 0, 1, 1], 0.5, at_least=True) == pytest.approx(0.5)
    # on the bar is inside; never left is infinite, with the sign of the side
    assert breakdown_point([0, 1, 2], [1, 0.5, 0.4], 0.5, at_least=True) == pytest.approx(1)
    assert breakdown_point([0, 1], [1, 0.5], 0.5, at_least=True) == math.inf
    assert breakdown_point([-1, 0], [1, 1], 0.5, at_least=True, side=-1) == -math.inf
    # a number that is none broke there: the last good strength is all that is known
    assert breakdown_point([0, 1, 2], [1, 1, math.nan], 0.5, at_least=True) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1, 1], 0.5), "lacks 0"),
        (([0, 1], [0.4, 1], 0.5), "broken at strength 0 already"),
        (([0, 1], [1], 0.5), "one value for each strength"),
    ],
)
def test_breakdown_refuses_what_has_no_answer(arguments, message):
    with pytest.raises(ValueError, match=message):
        breakdown_point(*arguments, at_least=True)


def planted(s):
    """accuracy 'a' falls by 0.1 per unit, loss 'b' rises with the square; the target saturates at 1."""
    return {"target": min(1.0, abs(s)), "a": 1 - 0.1 * abs(s), "b": 0.5 + 0.05 * s**2}


def test_dose_response_measures_inside_the_context_and_reads_both_bars():
    now = []

    @contextmanager
    def dial(s):
        now.append(s)
        yield
        now.pop()

    dose = dose_response(
        dial, (1, 2, 0.5), lambda: planted(now[-1])["target"],
        {"a": lambda: planted(now[-1])["a"]}, {"b": lambda: planted(now[-1])["b"]},
    )  # fmt: skip
    assert now == [] and dose.strengths.tolist() == [0, 0.5, 1, 2] and dose.neutral == 0
    assert dose.target.tolist() == [0, 0.5, 1, 1]
    assert np.allclose(dose.accuracy_drop, [0, 0.05, 0.1, 0.2]) and np.allclose(dose.loss_rise, [0, 0.0125, 0.05, 0.2])
    assert dose.breakdown(accuracy_drop=0.15, loss_rise=9) == pytest.approx(1.5)
    assert dose.breakdown(accuracy_drop=9, loss_rise=0.05) == pytest.approx(1.0)
    assert dose.breakdown(accuracy_drop=0.15, loss_rise=0.05) == pytest.approx(1.0)  # the nearer one
    assert dose.best(accuracy_drop=0.15, loss_rise=1) == 1  # 2 breaks the bar
    assert dose.best(accuracy_drop=0.5, loss_rise=1) == 1  # of equal targets the weaker
    assert dose.best(accuracy_drop=0.01, loss_rise=1) == 0
    assert list(dose.to_frame().columns) == ["strength", "target", "accuracy: a", "loss: b"]
    nothing = DoseResponse(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert nothing.breakdown() == math.inf and nothing.best() == 1


def test_the_worst_domain_counts_on_the_side_that_is_asked_for():
    dose = DoseResponse(
        np.array([-2.0, -1.0, 0.0, 1.0, 2.0]), np.array([1.0, 0.5, 0, 0.5, 0.9]),
        {"a": np.array([0.7, 0.8, 0.9, 1.0, 1.0]), "b": np.array([0.8, 0.8, 0.8, 0.8, 0.4])},
        {"c": np.array([2.0, 2.0, 1.0, 1.1, 1.2]), "d": np.array([1.0, 1.0, 1.0, 0.5, 0.5])},
    )  # fmt: skip
    assert dose.neutral == 2
    assert np.allclose(dose.accuracy_drop, [0.2, 0.1, 0, 0, 0.4])  # what another domain gains makes nothing good
    assert np.allclose(dose.loss_rise, [1, 1, 0, 0.1, 0.2])
    assert dose.breakdown(0.1, 9) == pytest.approx(1.25) and dose.breakdown(0.1, 9, side=-1) == pytest.approx(-1)
    assert dose.breakdown(9, 0.15) == pytest.approx(1.5) and dose.breakdown(9, 0.5, side=-1) == pytest.approx(-0.5)
    assert dose.breakdown(0.1, 0.5, side=-1) == pytest.approx(-0.5)  # the nearer one, from 0
    assert dose.best(0.3, 9) == -2 and dose.best(0.5, 0.15) == 1 and dose.best(0.5, 0.3) == 2


def test_scores_by_hand():
    assert harmonic_mean([1, 1, 1]) == 1 and harmonic_mean([1, 0, 1]) == 0
    assert harmonic_mean([1, 0.5]) == pytest.approx(2 / 3) and harmonic_mean([0.3]) == pytest.approx(0.3)
    assert steering_score(1, 0.5, 0.5) == pytest.approx(3 / 5)
    assert kept(0.2, 0.1) == pytest.approx(0.8) and kept(0.1, 1) == pytest.approx(math.exp(-1))  # no product
    assert kept(0.1, 0) == pytest.approx(0.9) and kept(0, 1) == pytest.approx(math.exp(-1)) and kept(0, 0) == 1
    for bad in ([], [1, -1]):
        with pytest.raises(ValueError, match="none negative"):
            harmonic_mean(bad)
    with pytest.raises(ValueError, match="kept=1.2"):
        steering_score(1, 1.2, 1)


def test_matched_null_is_mean_and_spread_over_seeds():
    now = []

    @contextmanager
    def null(seed):
        now.append(seed)
        yield
        now.pop()

    band = matched_null(lambda: float(now[-1] ** 2), null, draws=4)
    assert band.mean == pytest.approx(3.5) and band.sd == pytest.approx(np.std([0, 1, 4, 9], ddof=1)) and not now


# --- fluency ----------------------------------------------------------------------------------------------------------
def test_repetition():
    assert repetition_rate([1, 2, 3, 4]) == 0 and repetition_rate([]) == repetition_rate([1, 1]) == 0
    assert repetition_rate([1, 1, 1, 1]) == pytest.approx(2 / 3)  # pairs 11 11 11
    assert repetition_rate([1, 2, 1, 2, 1]) == pytest.approx(2 / 4)
    assert repetition_rate([1, 2, 1, 2], n=1) == pytest.approx(1 / 2)


def test_generation_loss_is_that_of_each_token_alone(lab):
    prompts = ["amber tower is in", "the opposite of hot is"]
    answers = [[lab.token_id("rome"), lab.token_id(".")], [lab.token_id("cold")]]
    for prompt, answer, losses in zip(prompts, answers, generation_loss(lab, prompts, answers), strict=True):
        ids = lab.tokenize([prompt]).ids[0].tolist()
        for i, token in enumerate(answer):
            expected = -lab.last_logits([ids + answer[:i]])[0].log_softmax(-1)[token].item()
            assert losses[i] == pytest.approx(expected, abs=1e-4)


def test_the_first_token_costs_nothing_and_likelier_text_earns_nothing():
    plain = Fluency(1.0, 1.0, 0.0)
    assert Fluency(9.0, 1.0, 0.0).relative_to(plain) == 1  # all of the rise is in the first token
    assert Fluency(1.0, 2.0, 0.0).relative_to(plain) == pytest.approx(math.exp(-1))
    assert Fluency(0.5, 0.2, 0.0).relative_to(plain) == 1


def test_a_judgement_is_the_mean_over_prompts_of_means_over_tokens(lab):
    prompts = ["amber tower is in", "the opposite of hot is"]
    answers = [[lab.token_id("rome"), lab.token_id("."), lab.token_id("rome")], [lab.token_id("cold")]]
    (a, b, c), (d,) = generation_loss(lab, prompts, answers)
    found = judge(lab, prompts, answers)
    assert found.loss == pytest.approx(((a + b + c) / 3 + d) / 2)
    assert found.later_loss == pytest.approx((b + c) / 2)  # the answer of one word has no later token
    assert found.repetition == 0


def test_writing_stops_with_the_token_that_ends_the_text(lab):
    end = next(iter(ending_ids(lab)))

    class Writes:
        hf = lab.hf

        def generate_ids(self, prompts, max_new_tokens):
            return torch.tensor([[7, 8, end, 9], [7, 7, 8, 9], [end, 7, end, 7]])[:, :max_new_tokens]

    assert write(Writes(), ["a", "b", "c"], 4) == [[7, 8, end], [7, 7, 8, 9], [end]]


def test_fluency_of_a_broken_model_is_worse_and_is_judged_by_the_sound_one(lab):
    prompts = world.task("facts", "test", 8).prompts
    plain = fluency(lab, prompts)
    noise = torch.randn(lab.d_model, generator=torch.Generator().manual_seed(0))
    broken = fluency(lab, prompts, lambda: mi.intervene(lab, mi.add("x3", noise / noise.norm() * 200)))
    again = fluency(lab, prompts, nullcontext)
    assert plain == again and plain.relative_to(plain) == 1
    assert broken.loss > plain.loss + 1 and broken.relative_to(plain) < 0.5
    stuck = fluency(lab, prompts, lambda: mi.intervene(lab, mi.add("x6", 4000 * _unembedding(lab, "anna"))))
    assert stuck.repetition > 0.8 > 0.2 > plain.repetition
    assert Fluency(1, math.nan, 0).relative_to(plain) == 1
    with pytest.raises(ValueError, match="prompts is empty"):
        fluency(lab, [])


def _unembedding(lab, word):
    row = lab.hf.get_output_embeddings().weight.detach()[lab.token_id(word)]
    return row / row.norm()


# --- the report -------------------------------------------------------------------------------------------------------
class Scaled:
    """A steer with `scaled` and `on`, as Steer and WeightEdit have them."""

    def __init__(self, strength=1.0):
        self.strength = strength

    def scaled(self, strength):
        return Scaled(strength)

    def on(self, model):
        return mi.intervene(model, mi.scale("L3H1.z", 1 - self.strength))


def test_a_report_is_what_its_parts_measure(lab):
    task, other = world.task("facts", "test", 24), world.task("capitals", "test", 12)
    documents = {"ioi": world.documents("test", 3)["ioi"]}
    report = steering_report(
        lab, Scaled(), task, name="head off", strengths=(0, 0.5, 1), documents=documents, tasks={"capitals": other},
        other={"two": other}, null=lambda seed: lambda s: mi.intervene(lab, mi.scale(f"L2H{seed}.z", 1 - s)), draws=3,
        max_new_tokens=3, bytes_changed=128,
    )  # fmt: skip
    base = task.measure(lab)
    with mi.intervene(lab, mi.zero("L3H1.z")):
        change = task.measure(lab) - base
        assert report.after == task.accuracy(lab)
        assert report.other["two"] == (1.0, other.accuracy(lab))
        assert report.side.accuracy_change[0, 1] == pytest.approx(other.accuracy(lab) - 1)
    assert report.gain.mean == pytest.approx(change.mean().item(), abs=1e-5)
    gains = []
    for head in range(3):
        with mi.intervene(lab, mi.zero(f"L2H{head}.z")):
            gains.append((task.measure(lab) - base).mean().item())
    assert report.null_gain.mean == pytest.approx(np.mean(gains), abs=1e-5)
    assert report.null_side.kl.shape == (3, 2) and report.side.domains == ["ioi", "capitals"]
    assert 0 <= report.score <= 1 and report.worst_domain in ("ioi", "capitals")
    stored = json.loads(report.to_json())
    assert stored["bytes_changed"] == 128 and stored["side"]["domains"] == ["ioi", "capitals"]
    assert stored["dose"]["strengths"] == [0, 0.5, 1]
    text = str(report)
    assert "head off at strength 1 on facts" in text and "null band" in text and "128 bytes" in text
    assert {"target accuracy", "kl, ioi"} <= set(report.to_frame()["measure"])


def test_what_a_report_derives_from_planted_parts():
    nan = math.nan
    side = SideEffects(["s"], ["good", "bad", "text"], np.array([[0.1, 0.5, 0.2]]), np.array([[-0.3, 0.1, 0.2]]),
                       np.array([[0.1, -0.4, nan]]))  # fmt: skip
    draws = np.array([[0.0], [0.1], [0.2]])  # null band -0.1 ... 0.3
    null_side = SideEffects(["r0", "r1", "r2"], side.domains, *(np.repeat(draws, 3, 1) for _ in range(3)))
    report = SteeringReport(
        name="s", task="t", strength=1.0, before=0.1, after=0.9, gain=effect([1, 2], [0, 0]),
        dose=DoseResponse(np.array([0.0, 1.0]), np.array([0.1, 0.9])), side=side, other={},
        null_after=null_band([0.1, 0.2, 0.3]), null_gain=null_band([5.0, 6.0, 7.0]), null_side=null_side,
        plain=Fluency(1.0, 1.0, 0.0), steered=Fluency(3.0, 1.5, 0.0), slowdown=1.0,
    )  # fmt: skip
    assert report.accuracy_drop == pytest.approx(0.4) and report.loss_rise == pytest.approx(0.2)
    assert report.worst_domain == "bad"
    assert report.score == pytest.approx(3 / (1 / 0.9 + 1 / 0.6 + math.exp(0.5)))
    assert report.rows()[0] == ("target accuracy", 0.1, 0.9, pytest.approx(0.0), pytest.approx(0.4))
    assert [outside for _, _, outside in report.by_domain()] == [
        (False, True, False),  # accuracy +0.1 inside, loss -0.3 outside, KL 0.1 inside
        (True, False, True),
        (False, False, False),  # no accuracy was measured there
    ]


def test_a_report_wants_domains_and_a_steer(lab):
    task = world.task("facts", "test", 2)
    with pytest.raises(ValueError, match="documents or tasks"):
        steering_report(lab, Scaled(), task, strengths=(0, 1))
    with pytest.raises(TypeError, match="give a Steer"):
        as_dial(lab, 3)
    assert as_dial(lab, nullcontext) is nullcontext
