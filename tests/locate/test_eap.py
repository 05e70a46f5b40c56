"""EAP and its path versions against one edge at a time with plain autograd, identities, and compiled circuits."""

import pytest

import mi_course as mi
from mi_course.locate.eap import clean_corrupted, eap, eap_ig, eap_items, eap_spans, path_points
from mi_course.locate.edges import ablate_edges
from mi_course.locate.graph import Graph
from mi_course.objects import Task
from mi_course.world import compiled
from tests.families import FAMILIES
from tests.locate import slow_edges
from tests.locate.slow_edges import PROMPTS, TASK, TWINS, make
from tests.locate.test_edges import some_edges
from tests.models.common import hooks_left

SWAPPED = Task("t", prompts=TWINS, corrupted=PROMPTS, targets=TASK.targets, foils=TASK.foils)


@pytest.mark.parametrize("family", FAMILIES)
def test_one_backward_equals_one_edge_at_a_time(family):
    model = make(family)
    edges = some_edges(Graph(model), 7)
    for scores, points in [(eap(model, TASK), [0.0]), (eap_ig(model, TASK, steps=2, rule="left"), [1.0, 0.5])]:
        largest = abs(scores.values).max()
        for edge in edges:
            slow = slow_edges.eap(model, TASK, edge, points)
            assert scores[edge] == pytest.approx(slow, abs=1e-5 * largest), edge
    assert all(p.grad is None for p in model.hf.parameters()) and not hooks_left(model)


def test_points_of_the_rules():
    assert path_points(4, "right", from_clean=False) == [0.25, 0.5, 0.75, 1.0]  # Eq. 18: fractions that are clean
    assert path_points(4, "left", from_clean=False) == [0.0, 0.25, 0.5, 0.75]
    assert path_points(2, "midpoint", from_clean=False) == [0.25, 0.75]
    assert path_points(4, "left") == [1.0, 0.75, 0.5, 0.25]  # counted from the clean run: the corrupted end is in
    model = make("gpt2")
    for rule, mirrored in [("left", "right"), ("midpoint", "midpoint")]:  # clean and corrupted change places
        there, back = eap_ig(model, TASK, 3, rule), eap_ig(model, SWAPPED, 3, mirrored, kind="denoising")
        assert there.values == pytest.approx(back.values, abs=1e-6)
    with pytest.raises(ValueError, match="rule='trapezoid'"):
        path_points(3, "trapezoid")
    with pytest.raises(ValueError, match="steps=0"):
        path_points(0, "left")


def total_change(model, task):
    return (task.measure(model, on="corrupted") - task.measure(model)).mean().item()


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gemma2"])
def test_only_edges_that_leave_the_input_sum_to_the_total_change(family):
    model = make(family)
    scores = eap_ig(model, TASK, steps=40)
    total = total_change(model, TASK)
    sums = {end: 0.0 for end in ("x0->", "->logits", "->")}
    for edge, value in zip(scores.sites, scores.values):
        for end in sums:
            sums[end] += value * (end in edge)
    assert sums["x0->"] == pytest.approx(total, abs=2e-3 * abs(scores.values).max())
    assert abs(sums["->logits"] - total) > 0.02 * abs(total)
    assert abs(sums["->"] - total) > 0.02 * abs(total)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_own_path_sums_to_the_effect_of_patching_the_sender(family):
    model = make(family)
    scores = eap_ig(model, TASK, steps=30, path="activations")
    base = TASK.measure(model).mean()
    for senders in (["x0"], [f"L0H{h}" for h in range(4)], ["mlp1"]):
        values = [slow_edges.write(model, TWINS, s) for s in senders]
        with mi.intervene(model, *[mi.patch(s, v) for s, v in zip(senders, values)]):
            effect = (TASK.measure(model).mean() - base).item()
        left = sum(v for e, v in zip(scores.sites, scores.values) if e.split("->")[0] in senders)
        assert left == pytest.approx(effect, abs=2e-3 * abs(scores.values).max())


def test_spans_and_items_are_parts_of_the_plain_score():
    model, graph = make("qwen2"), Graph(make("qwen2"))
    plain = eap(model, TASK)
    by_position = eap_spans(model, TASK, "each")
    assert list(by_position) == [f"-{i}" for i in range(1, 8)]
    assert sum(s.values for s in by_position.values()) == pytest.approx(plain.values, abs=1e-6)
    only_last = by_position["-1"]
    assert all(only_last[e] != 0 for e in graph.edges if e.endswith("logits") and not e.startswith("x0"))
    assert all(by_position["-2"][e] == 0 for e in graph.edges if e.endswith("logits"))  # read at the last token alone
    named = eap_spans(model, TASK, {"changed": [1, [2], 2], "rest": [[0, 2, 3, 4], [0, 1, 3], [0, 1, 3, 4, 5, 6]]})
    assert named["changed"].values + named["rest"].values == pytest.approx(plain.values, abs=1e-6)
    x0 = [i for i, edge in enumerate(plain.sites) if edge.startswith("x0->")]
    assert named["rest"].values[x0] == pytest.approx(0, abs=1e-7)  # the input differs at the changed word alone
    items = eap_items(model, TASK, points=path_points(2, "left"))
    assert items.shape == (3, *graph.allowed.shape)
    assert items.mean(0)[graph.allowed].numpy() == pytest.approx(eap_ig(model, TASK, 2, "left").values, abs=1e-6)
    with pytest.raises(ValueError, match="2 entries for 3 items"):
        eap_spans(model, TASK, {"s": [0, 1]})


def test_batches_kinds_and_costs():
    model = make("gpt2")
    assert eap(model, TASK, batch_size=1).values == pytest.approx(eap(model, TASK).values, abs=1e-6)
    back = eap(model, SWAPPED, kind="denoising")
    assert back.sign == "denoising" and back.values == pytest.approx(eap(model, TASK).values, abs=1e-6)
    both = (eap(model, TASK).values - eap(model, TASK, kind="denoising").values) / 2
    ends = clean_corrupted(model, TASK)
    assert ends.values == pytest.approx(both, abs=1e-6)  # denoising has the other gradient and the opposite difference
    assert (eap(model, TASK).forwards, eap(model, TASK).backwards) == (6, 3)
    steps = eap_ig(model, TASK, steps=4)
    assert (steps.forwards, steps.backwards) == (6 + 12, 12)
    own = eap_ig(model, TASK, steps=1, path="activations")
    assert own.backwards == 3 * 7
    assert eap(model, TASK, kind="zero").sign == "ablation"
    with pytest.raises(ValueError, match="path='weights'"):
        eap_ig(model, TASK, path="weights")


def test_linear_model_is_estimated_exactly_with_its_sign():
    c = compiled.mediation()
    model = c.wrap()
    found, exact = eap(model, c.task), ablate_edges(model, c.task)
    assert found.values == pytest.approx(exact.values, abs=1e-3)
    assert found["L0H0->logits"] == pytest.approx(-3, abs=1e-4)  # S < 0: corrupting the edge hurts, so the edge helps
    assert found.against(c.edges)["auroc"] == 1.0


def test_saturated_softmax_hides_an_edge_from_eap_but_not_from_the_path():
    c = compiled.saturated()
    model = c.wrap()
    edge = "L0H0->L1H0.q"
    assert ablate_edges(model, c.task, [edge])[edge] == pytest.approx(-20, abs=1e-3)
    assert abs(eap(model, c.task)[edge]) < 1e-4
    assert eap_ig(model, c.task, steps=50)[edge] < -10


def test_an_or_gate_is_flat_at_the_clean_run():
    edges = ["L0H0->mlp0", "L0H1->mlp0"]
    c = compiled.and_gate()
    assert all(eap(c.wrap(), c.task)[edge] == pytest.approx(-10, abs=1e-3) for edge in edges)
    c = compiled.or_gate()
    assert all(eap(c.wrap(), c.task)[edge] == 0 for edge in edges)
    # on the path both inputs rise together, and half of it is spent below the bend: each gets half of the change
    assert all(eap_ig(c.wrap(), c.task, steps=10)[edge] == pytest.approx(-5, abs=1e-3) for edge in edges)
