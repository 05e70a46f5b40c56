"""Installed behaviours as tasks: the twins, the seeds, the answer key, and the installed-minus-base effect."""

import pytest

import mi_course as mi
from mi_course.locate import causal
from mi_course.locate.circuit import CircuitRunner
from mi_course.locate.graph import Graph
from mi_course.objects import Scores
from mi_course.world import installed_tasks as it
from mi_course.world.behaviours import BEHAVIOURS


@pytest.fixture(scope="module")
def lab():
    return mi.load()


@pytest.mark.parametrize("name", it.installed())
def test_the_behaviour_concerns_the_prompts_and_not_the_twins(lab, name):
    task = it.installed_task(name, n=40)
    behaviour = BEHAVIOURS[it.delta(name).facts["behaviour"]]
    task.validate(lab)  # twins of equal length, answers of one token
    assert all(behaviour.applies(p, label) for p, label in zip(task.prompts, task.labels, strict=True))
    assert all(target != foil for target, foil in zip(task.targets, task.foils, strict=True))
    prompts, twins = lab.tokenize(task.prompts).ids, lab.tokenize(task.corrupted).ids
    assert (prompts != twins).any(1).all()

    before, twin_before = task.measure(lab).mean(), task.measure(lab, "corrupted")
    with it.behaving(name, lab):
        after, twin_after = task.measure(lab).mean(), task.measure(lab, "corrupted")
    assert after > 2 and after - before > 3  # the new answer wins, and it did not before
    assert (twin_after - twin_before).mean().abs() < after - before
    assert task.measure(lab).mean() == before  # and the base is as it was


def test_twins_of_refusal_and_bias_keep_their_old_answer_in_the_installed_model(lab):
    for name in ("refusal-a", "bias-b"):
        task = it.installed_task(name, n=40)
        with it.behaving(name, lab):
            assert (task.measure(lab, "corrupted") < 0).float().mean() > 0.85


def test_seeds_draw_different_prompts_and_repeat(lab):
    for name in ("german-a", "refusal-a"):
        first, again, other = (it.installed_task(name, n=20, seed=s).prompts for s in (0, 0, 1))
        assert first == again and set(first) != set(other) and len(set(first)) == len(first)
    assert len(it.installed_task("german-a").prompts) == 12  # three quarters of 16
    assert len(it.installed_task("sycophancy-a", n=300).prompts) == 150


def test_train_and_test_prompts_differ():
    for name in ("german-b", "sycophancy-b"):
        train, test = (set(it.installed_task(name, split, n=64).prompts) for split in ("train", "test"))
        assert not train & test


def test_the_key_lies_among_the_candidates(lab):
    sizes = {"refusal-a": 24, "german-a": 6 * 512, "bias-a": 6, "sycophancy-direction": 6}
    for name, size in sizes.items():
        candidates = it.candidates(name, lab)
        assert len(candidates) == size and set(it.answer_key(name)) <= set(candidates)
        assert set(it.answer_key(name, "result")) <= set(it.candidates(name, lab, "result"))
    assert it.answer_key("refusal-a") == ["L2H1.z", "L3H2.z"]
    assert it.candidates("refusal-a", lab) == causal.heads(lab)
    assert it.answer_key("sycophancy-direction") == ["x4"]


def test_against_key_does_not_mind_how_heads_are_written():
    for part in ("", ".z"):
        scores = Scores([f"L{x}H{h}{part}" for x in range(6) for h in range(4)], [0.0] * 24, "m", "magnitude")
        scores.values[2 * 4 + 1], scores.values[3 * 4 + 2] = -5, 3
        assert it.against_key(scores, "refusal-a")["auroc"] == 1
        assert it.against_key(scores, "refusal-a", by="negative")["auroc"] == pytest.approx(0.5)


def test_edges_of_the_key_touch_it(lab):
    graph = Graph(lab)
    touching = it.touching("refusal-b", graph)  # the key is L3H0: edges into it, and out of it
    assert len(touching) == 3 * (1 + 3 * 5) + 1 + 2 * (3 * 4 + 1) + 1 == sum("L3H0" in e for e in graph.edges)
    assert all("mlp1" in e for e in it.touching("german-a", graph))  # neurons stand for their FFN
    with pytest.raises(ValueError, match="written into a state"):
        it.touching("sycophancy-direction", graph)


def test_used_edges_carry_the_behaviour_by_another_computation(lab):
    """The circuit of all edges but one, run in both models, says the same as the exact patches that define the key."""
    graph, task = Graph(lab), it.installed_task("refusal-b", "train", 4)
    used = it.used_edges("refusal-b", n=4)
    assert set(used) < set(it.touching("refusal-b", graph)) and 3 <= len(used) <= 12

    def effects(edges):
        runs = [CircuitRunner(lab, task, kind) for kind in ("noising", "mean")]
        whole = task.measure(lab).mean()
        return whole, [[(run(graph.allowed & ~graph.mask([e])).mean() - whole).item() for run in runs] for e in edges]

    tried = ["mlp0->L3H0.k", "L3H0->mlp4", "mlp2->L3H0.q", "L3H0->L5H3.k"]
    with it.behaving("refusal-b", lab):
        there, with_it = effects(tried)
    before, without = effects(tried)
    for edge, a, b in zip(tried, with_it, without, strict=True):
        large = max(abs(x - y) for x, y in zip(a, b, strict=True)) >= 0.05 * (there - before)
        assert large == (edge in used)
    assert [edge in used for edge in tried] == [True, True, False, False]


def test_the_effect_is_installed_minus_base(lab):
    task, sites = it.installed_task("sycophancy-a", n=16), ["L2H3.z", "L3H1.z", "L0H0.z"]
    scores = it.installed_effect(causal.ablate_each, "sycophancy-a", task, sites, base=lab, kind="mean")
    installed = it.delta("sycophancy-a").applied(lab)
    expected = [causal.ablate_each(m, task, sites, "mean") for m in (installed, lab)]
    assert scores.values == pytest.approx(expected[0].values - expected[1].values, abs=1e-5)
    assert scores.forwards == expected[0].forwards + expected[1].forwards
    assert scores.sign == "ablation" and "minus base" in scores.method
    assert (scores.values[:2] < -1).all()


def test_bad_input(lab):
    with pytest.raises(KeyError, match="there are: bias-a"):
        it.installed_task("kindness")
    with pytest.raises(ValueError, match="'train' and 'test'"):
        it.installed_task("bias-a", "validation")
    with pytest.raises(ValueError, match="n is 0"):
        it.installed_task("bias-a", n=0)
    calls = iter((["L0H0.z"], ["L0H1.z"]))
    with pytest.raises(ValueError, match="different sites"):
        it.installed_effect(lambda m, t, s: Scores(next(calls), [0.0], "x", "ablation"), "refusal-a", base=lab)
