"""Behaviours to bring about, the bake-off, its summary by hand, and the command that shows it."""

import json
from contextlib import nullcontext
from functools import partial

import pytest
import torch

import mi_course as mi
from mi_course import cli
from mi_course.cli import benchmark
from mi_course.steer import registry
from mi_course.steer.weights import WeightEdit
from mi_course.world import bakeoff as bo
from mi_course.world import steering_tasks as st


@pytest.fixture(scope="module")
def lab():
    return bo.load_base()


# --- the behaviours -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", st.behaviours())
def test_a_behaviour_is_absent_splits_share_no_prompt_and_positive_prompts_show_it(lab, name):
    tasks = {split: st.steering_task(name, split) for split in st.SIZES}
    prompts = [prompt for task in tasks.values() for prompt in task.prompts]
    assert len(set(prompts)) == len(prompts)
    task = tasks["test"]
    assert task.success(lab) < (0.6 if name == "he" else 0.4)
    assert torch.allclose(task.wanted_shares(lab).sum(-1), torch.ones(len(task)))
    assert not set(task.contrast) & set(prompts)
    # the positive prompts have the wanted kind of answer already
    p = lab.last_logits(task.positive).softmax(-1)
    every_wanted = (task.wanted_shares(lab) > 0).any(0)
    assert p[:, every_wanted].sum(-1).mean() > (0.7 if name == "he" else 0.9)
    assert st.steering_task(name, "test") is task  # made once
    for label, target in zip(task.labels, task.targets, strict=True):
        assert label["continuation"].split()[0] == target


def test_success_is_the_probability_of_the_wanted_words_by_hand(lab):
    task = st.steering_task("refuse", "test")
    by_hand = 0.0
    for prompt, words in zip(task.prompts, task.wanted, strict=True):
        p = lab.last_logits([prompt])[0].softmax(-1)
        by_hand += sum(p[lab.token_id(word)].item() for word in words) / len(task)
    assert task.success(lab) == pytest.approx(by_hand, abs=1e-5)
    with pytest.raises(ValueError, match="behaviour 'x' is unknown"):
        st.steering_task("x")
    with pytest.raises(ValueError, match="split 'x' is unknown"):
        st.steering_task("refuse", "x")


def test_the_panel_is_right_now_and_leaves_out_what_the_behaviour_claims(lab):
    panel = st.panel(lab, "move", "test", n=6)
    assert set(panel.accuracy(lab).values()) == {1.0} and "facts" in panel.domains
    of_moved = [p for p in panel.prompts if any(name in p for name in st.moved())]
    places = [body.split("}")[1] for body in st.generate.LANDMARK_BODIES["place"] if body.startswith("{s}")]
    assert not any(p.endswith(place) for p in of_moved for place in places)
    with mi.intervene(lab, mi.zero("mlp0")):
        assert min(panel.accuracy(lab).values()) < 0.5
    assert "refusal_harmless" not in st.panel(lab, "refuse", "test", n=2).domains


# --- steerers -------------------------------------------------------------------------------------------------------
FAST = tuple(n for n, s in registry.STEERERS.items() if s.family in ("prompt", "output", "vectors", "amplitude"))


@pytest.mark.parametrize("name", FAST)
def test_strength_0_is_the_identity_and_nothing_is_left_behind(lab, name, monkeypatch):
    if name in ("probe direction", "trained vector"):
        monkeypatch.setitem(registry.BUDGET, "steps", 2)
        monkeypatch.setattr(registry, "middle_layers", lambda model: range(3, 4))
    task, before = st.steering_task("agree", "train").subset(6), lab.fingerprint()
    base = lab.last_logits(task.prompts)
    steerer = registry.STEERERS[name]
    with steerer(lab, task, 0.0):
        assert torch.equal(lab.last_logits(task.prompts), base)
    with pytest.raises(KeyError), steerer(lab, task, 2.0):
        assert not torch.equal(lab.last_logits(task.prompts), base)
        raise KeyError
    assert torch.equal(lab.last_logits(task.prompts), base) and lab.fingerprint() == before
    assert "tokenize" not in lab.__dict__
    made = steerer.made(lab, task)
    assert steerer.made(lab, task) is made and registry.bytes_of(made) is not None


def test_a_prompt_is_a_prefix_and_a_bias_moves_one_logit(lab):
    task = st.steering_task("german", "train")
    with registry.STEERERS["prompt"](lab, task, 1.0):
        steered = lab.last_logits(task.prompts)
    assert torch.allclose(steered, lab.last_logits([f"{task.tag} {p}" for p in task.prompts]), atol=1e-5)
    long = " ".join(["amber"] * (lab.n_ctx - 1))
    with registry.prefixed(lab, "amber amber"):
        assert torch.equal(lab.tokenize([long]).ids, mi.load().tokenize([long]).ids)  # does not fit: left as it is
        assert lab.tokenize("amber").ids.shape[1] == 4 and lab.tokenize([[1, 2]]).ids.shape[1] == 2
    agree = st.steering_task("agree", "train")
    with registry.STEERERS["logit bias"](lab, agree, 2.0):
        change = lab.last_logits(agree.prompts)
    change = change - lab.last_logits(agree.prompts)
    moved = change.abs().amax(0).nonzero()[:, 0].tolist()
    assert moved == [lab.token_id("yes")] and change[:, moved[0]].std() < 1e-4 < change[:, moved[0]].mean()


def test_training_methods_bring_the_behaviour_about(lab, monkeypatch):
    monkeypatch.setitem(registry.BUDGET, "steps", 12)
    task = st.steering_task("agree", "train").subset(16)
    steer = registry.masked_finetuning(lab, task)
    assert registry.bytes_of(steer) == 4 * sum(int(d.count_nonzero()) for d in steer.deltas.values()) > 0
    with steer.on(lab):
        assert task.success(lab) > 0.8
    assert task.success(lab) < 0.4


def test_bytes_are_those_of_the_smaller_form():
    g = torch.Generator().manual_seed(0)
    A, B, dense = (torch.randn(shape, generator=g) for shape in ((40, 2), (2, 30), (8, 6)))
    sparse = torch.zeros(50, 50).index_put((torch.arange(3), torch.arange(3)), torch.ones(3))
    for delta, numbers in ((A @ B, 2 * 70), ((A @ B).T, 2 * 70), (dense, 48), (sparse, 3), (torch.ones(7), 7)):
        assert registry.bytes_of(WeightEdit({"w": delta}, 0.5)) == 4 * numbers
    assert registry.bytes_of(WeightEdit({"a": A @ B, "b": dense})) == 4 * (140 + 48)


# --- the bake-off ---------------------------------------------------------------------------------------------------
@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(bo, "SIZES", {"validation": (2, 4, 4, 3), "test": (2, 4, 4, 3)})
    monkeypatch.setattr(bo, "STRENGTHS", (1.0, 2.0))
    monkeypatch.setattr(bo, "panel", partial(st.panel, domains=("facts", "verdict")))
    bo.exam.cache_clear()
    yield
    bo.exam.cache_clear()


def test_strength_is_chosen_on_validation_and_doing_nothing_scores_nothing(lab, small):
    options = {"seeds": (0,), "tasks": ("agree",), "base": lab}
    (row,) = bo.bakeoff(bo.nothing, "nothing", **options)
    assert row["score"] == row["gain"] == row["drop"] == 0 and row["kept"] == row["fluency"] == 1
    assert row["strength"] == min(bo.STRENGTHS)  # of equal ones the weakest
    (row,) = bo.bakeoff(registry.STEERERS["logit bias"], **options)
    validation = bo.exam(lab, "agree", "validation", 0)
    task, marks = st.steering_task("agree", "train"), {}
    for s in bo.STRENGTHS:
        marks[s] = validation.mark(lab, registry.STEERERS["logit bias"](lab, task, s))["score"]
    assert row["strength"] == max(marks, key=marks.get) and row["steerer"] == "logit bias"
    test = bo.exam(lab, "agree", "test", 0)
    with registry.STEERERS["logit bias"](lab, task, row["strength"]):
        assert row["success"] == pytest.approx(test.task.success(lab))
    assert row["gain"] == pytest.approx((row["success"] - test.before) / (1 - test.before))
    assert row["forwards"] > 0 and row["backwards"] == 0 and row["bytes"] == 4


def test_a_steerer_that_breaks_the_model_scores_low(lab, small):
    def breaks(model, task, strength):
        return mi.intervene(model, mi.scale("mlp0", 1 - strength))

    (row,) = bo.bakeoff(breaks, "breaks", (0,), ("agree",), lab, strengths=(1.0,))
    assert row["drop"] > 0.9 and row["score"] < 0.3 and row["family"] == "yours"
    with pytest.raises(ValueError, match="returned float; return a context"):
        list(bo.bakeoff(lambda m, t, s: s, "wrong", (0,), ("agree",), lab))


def test_a_steerer_of_facts_is_asked_for_facts_only(lab, small):
    rome = registry.STEERERS["ROME"]
    assert rome.suits(st.steering_task("move")) and not rome.suits(st.steering_task("agree"))
    assert list(bo.bakeoff(rome, "", (0,), ("agree", "refuse"), lab)) == []
    one = st.steering_task("move", "train")
    one = one.where(subject_text=one.labels[0]["subject_text"])
    with rome.make(lab, one).on(lab):
        assert one.success(lab) > 0.4


def row(steerer, behaviour, seed, score, **more):
    numbers = dict.fromkeys((*bo.MEASURES, "seconds", "forwards", "backwards"), 0.5)
    return numbers | {
        "steerer": steerer, "family": "f", "behaviour": behaviour, "seed": seed, "score": score, "bytes": 8,
    } | more  # fmt: skip


def test_the_summary_averages_seeds_then_behaviours():
    rows = [row("a", "x", 0, 0.2), row("a", "x", 1, 0.4), row("a", "y", 0, 0.9), row("b", "x", 0, 0.5, bytes=None)]
    first, second = bo.summary(rows)
    assert first["steerer"] == "a" and first["score"] == pytest.approx(0.6) and first["wins"] == 1
    assert first["score_error"] == pytest.approx(0.3) and first["worst_score"] == pytest.approx(0.3)
    # b did not do y, which counts as 0
    assert second["score"] == 0.25 and second["wins"] == 1 and second["behaviours"] == 1 and second["worst_score"] == 0
    assert second["bytes"] is None and bo.summary(rows[:1])[0]["score_error"] is None


def test_rows_are_stored_and_only_missing_ones_made(lab, small, tmp_path, monkeypatch):
    monkeypatch.setattr(bo, "SEEDS", (0,))
    monkeypatch.setattr(bo, "behaviours", lambda: ["agree"])
    calls = []

    def counted(model, task, strength):
        calls.append(strength)
        return nullcontext()

    file = tmp_path / "rows.json"
    bo.make(file, lab, {"mine": counted})
    made = len(calls)
    bo.make(file, lab, {"mine": counted, "nothing": bo.nothing})
    content = json.loads(file.read_text())
    assert len(calls) == made and [r[0] for r in content["rows"]] == ["mine", "nothing"]
    assert content["fingerprint"] == lab.fingerprint()
    file.write_text(file.read_text().replace(lab.fingerprint(), "another"))
    with pytest.raises(ValueError, match="rows of another model"):
        bo.make(file, lab, {})


# --- the command ----------------------------------------------------------------------------------------------------
def test_your_steerer_stands_beside_the_stored_ones(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK", {"seeds": (0,), "behaviours": ("agree",)})
    monkeypatch.setattr(bo, "stored", lambda: [row("stored one", "agree", 0, 0.3), row("stored two", "move", 0, 0.9)])
    file = tmp_path / "mine.py"
    file.write_text("from contextlib import nullcontext\ndef lazy(model, task, strength):\n    return nullcontext()\n")
    assert cli.main(["benchmark", "steerers", "--fn", f"{file}:lazy", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [line["steerer"] for line in found["summary"]] == ["stored one", "lazy"]
    assert cli.main(["benchmark", "steerers"]) == 0
    assert "stored two" in capsys.readouterr().out
    assert cli.main(["benchmark", "steerers", "--fn", "mine.py"]) == 1
    assert "is not FILE.py:NAME" in capsys.readouterr().err
    assert cli.main(["benchmark", "steerers", "--edges"]) == 1
    assert "goes with localizers" in capsys.readouterr().err
