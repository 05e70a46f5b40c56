"""Head reports: numbers against a direct computation in every family, planted heads, bad input."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import attention_mass
from mi_course.locate.head_report import head_reports
from mi_course.models import SiteError, record
from mi_course.models import weights as parts
from mi_course.objects.decompose import decompose_residual
from mi_course.objects.weights import folded_unembedding
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

PROMPT = [5, 6, 7, 8, 9, 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_report_says_what_the_head_does(family):
    model = mi.wrap(random_model(family))
    reports = head_reports(model, PROMPT, ["L0H3", "L1H2"], query=-2, k=3)
    parts_of_stream = decompose_residual(model, [PROMPT])
    scale = parts.unembedding(model).norm.scale(parts_of_stream.total)[0, 4]
    for report, (layer, head) in zip(reports, ((0, 3), (1, 2))):
        pattern = record(model, [PROMPT], [f"pattern{layer}"])[f"pattern{layer}"][0, head]
        assert torch.equal(report.pattern, pattern) and report.query == 4 and report.head == f"L{layer}H{head}"
        position, token, weight = report.attended[0]
        assert position == int(pattern[4].argmax()) and token == str(PROMPT[position])
        assert weight == pytest.approx(pattern[4].max().item())
        logits = parts_of_stream[report.head][0, 4] @ folded_unembedding(model)[0] * scale
        logits = logits - logits.mean()
        assert [int(t) for t, _ in report.raises] == logits.topk(3).indices.tolist()
        assert [value for _, value in report.lowers] == pytest.approx((-logits).topk(3).values.neg().tolist(), abs=1e-4)
    assert reports[0].scores == {}


def test_first_query_sees_itself_only_so_write_and_readout_agree():
    model = mi.wrap(random_model("llama"))
    report = head_reports(model, PROMPT, ["L1H3"], query=0)[0]
    assert [(i, w) for i, _, w in report.attended] == [(0, pytest.approx(1.0))]
    assert [value for _, value in report.carries] == pytest.approx([value for _, value in report.raises], abs=1e-4)


def test_named_scores_are_those_of_attention_mass_with_their_chance():
    model = mi.wrap(random_model("gpt2"))
    prompts = attention_mass.repeated_sequences(model, list(range(5, 40)), 8, 4)
    report = head_reports(model, PROMPT, ["L1H1"], naming_prompts=prompts)[0]
    assert report.scores["induction"][0] == attention_mass.prefix_matching(model, prompts)["L1H1"]
    assert report.scores["previous token"][1] == attention_mass.uniform_mass(
        model, prompts, attention_mass.previous_keys)
    assert report.scores["copying"] == (attention_mass.copying(model, prompts)["L1H1"], 0.0)
    text = str(report)
    assert text.startswith("L1H1 at 6@5") and "induction" in text and "no preference" in text


def test_planted_induction_head_is_named_and_read():
    made = compiled.induction()
    model = made.wrap()
    prompts = attention_mass.repeated_sequences(model, list("abcdefghijkl"), 8, 4)
    report, decoy = head_reports(model, "a b c d e f c d", ["L1H0", "L1H1"], naming_prompts=prompts)
    assert report.attended[0][:2] == (5, "e") and report.attended[0][2] > 0.99 # d was followed by e
    assert report.raises[0][0] == report.carries[0][0] == "e" and report.raises[0][1] > 10 * report.raises[1][1]
    score, chance = report.scores["induction"]
    assert score > 0.9 > 4 * chance and report.scores["copying"][0] > 1
    assert decoy.attended[0][0] == 0 and abs(decoy.raises[0][1]) < 1e-3       # attends to <bos>, writes what none reads
    assert decoy.scores["first token"][0] > 0.9 > decoy.scores["induction"][0]


def test_bad_input_is_named():
    model = mi.wrap(random_model("gpt2"))
    for wrong in (["mlp1"], ["z1"], ["L0H1.q"]):
        with pytest.raises(SiteError, match="is not a head"):
            head_reports(model, PROMPT, wrong)
    with pytest.raises(SiteError, match="nothing is not a head"):
        head_reports(model, PROMPT, [])
    with pytest.raises(ValueError, match="outside row 0"):
        head_reports(model, PROMPT, ["L0H1"], query=9)
