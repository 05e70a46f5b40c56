"""check and hint: three states, diagnoses, nothing that leaks."""

import copy
import functools
import random
import sys
import warnings

import pytest
import torch

from mi_course.teach import CheckFailed, check, hint
from mi_course.teach.checking import examine
from mi_course.teach.compare import describe, difference
from mi_course.teach.exercises import NotYet, Probe, exercise, get


def stub(x):
    raise NotImplementedError("your turn")


def good(x):
    return x + x


# --- the three states ------------------------------------------------------------------------------------------------


def test_done_returns_the_learners_function(double, capsys):
    assert check("toy.double", good) is good
    out = capsys.readouterr().out
    assert "DONE: toy.double" in out
    assert "Expected result: a number" in out
    assert "For example: x = [1, -2]: float32 tensor of shape [2]: 2, -4" in out


@pytest.mark.parametrize("answer", [stub, None, ...])
def test_not_started_returns_the_reference_and_says_so(double, capsys, answer):
    result = check("toy.double", answer)
    assert result is double.reference
    out = capsys.readouterr().out
    assert "NOT STARTED: toy.double" in out
    assert "REFERENCE IN USE" in out
    assert 'mi.teach.hint("toy.double")' in out
    assert "Expected result: a number" in out
    assert "For example: x = [1, -2]: float32 tensor of shape [2]: 2, -4" in out


def test_not_yet_diagnoses_and_returns_the_reference(double, capsys):
    result = check("toy.double", lambda x: x**2)
    assert result is double.reference
    out = capsys.readouterr().out
    for part in (
        "NOT YET: toy.double",
        "Tried: x = [1, -2]",
        "Expected: float32 tensor of shape [2]: 2, -4",
        "Got: float32 tensor of shape [2]: 1, 4",
        "Likely mistake: squared instead of doubled",
        "Expected result: a number",
        "REFERENCE IN USE",
    ):
        assert part in out


def test_strict_mode_raises_unless_done(double, monkeypatch):
    monkeypatch.setenv("MI_COURSE_STRICT", "1")
    assert check("toy.double", good) is good
    for answer, words in ((stub, "NOT STARTED"), (lambda x: x, "NOT YET")):
        with pytest.raises(CheckFailed, match=words):
            check("toy.double", answer)
    monkeypatch.setenv("MI_COURSE_STRICT", "0")
    check("toy.double", stub)


def test_while_nbgrader_grades_checks_raise_and_later_cells_have_the_reference(double, monkeypatch):
    monkeypatch.setenv("NBGRADER_EXECUTION", "autograde")
    cells = {"__name__": "__main__", "check": check, "double": stub, "other": stub, "wrong": lambda x: x}
    for line in ("double = check('toy.double', double)", "wrong = check('toy.double', wrong)"):
        with pytest.raises(CheckFailed):
            exec(line, cells)
    assert {name for name, value in cells.items() if value is double.reference} == {"double", "other", "wrong"}
    with pytest.raises(CheckFailed):
        check("toy.double", stub)
    assert stub is not double.reference  # a name of this module, not of a notebook


def test_a_warning_costs_no_points(double, monkeypatch, capfd):
    def careful(x):
        warnings.warn("careful", stacklevel=1)
        print("progress", file=sys.stderr)
        return 2 * x

    monkeypatch.setenv("MI_COURSE_STRICT", "1")
    check("toy.double", careful)
    assert "progress" not in capfd.readouterr().err  # nbgrader gives 0 points for anything on stderr
    monkeypatch.delenv("MI_COURSE_STRICT")
    check("toy.double", careful)
    assert "progress" in capfd.readouterr().err


def test_unknown_name_suggests(double):
    with pytest.raises(KeyError, match="toy.double"):
        check("toy.doubel", good)


def test_the_packages_own_function_is_refused_however_it_is_wrapped(register):
    x = torch.ones(3)
    from mi_course.teach.checks.pipeline import mean_difference

    exercise_ = register("toy.own", Probe("x", torch.zeros(3), args=(x[None], x[None])), reference=mean_difference)
    own = mean_difference
    for answer in (own, functools.partial(own), lambda a, b: own(a, b), lambda a, b: own(harmful=a, harmless=b)):
        state, trouble = examine(exercise_, answer)
        assert state == "not yet"
        assert "package's own" in trouble.likely
    assert examine(exercise_, lambda a, b: (a - b)[0]) == ("done", None)
    assert examine(exercise_, own, own=True) == ("done", None)


# --- diagnoses -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer, part",
    [
        (lambda x: x.tolist(), "of type list"),
        (lambda x: x.numpy() * 2, "of type ndarray"),
        (lambda x: None, "is a `return` missing"),
        (lambda x: 2 * x[:, None], "The shape is [2, 1]; it should be [2]"),
        (lambda x: (2 * x).double(), "The dtype is float64; it should be float32"),
        (lambda x: x * float("nan"), "nan"),
        (lambda x: x / 0, "infinite"),
        (lambda x: x.abs() * 2, "the sign is lost"),
        (lambda x: x * 2.5, "largest difference at index [1]: -5, should be -4"),
        (lambda x: x @ torch.ones(3, 3), "Shapes do not fit"),
        (lambda: 0, "Keep the names and the order"),
        (lambda x: unknown * x, "not defined"),  # noqa: F821
        (lambda x: {}["key"], "stops with this error"),
        (good(torch.ones(2)), "Leave the parentheses out"),
        (lambda x: torch.where(x.sum() == -1, x * 2, x**2), "not linear"),
    ],
)
def test_wrong_results_are_diagnosed(double, answer, part):
    state, trouble = examine(double, answer)
    assert state == "not yet"
    assert part in " ".join(text for _, text in trouble.rows())


def test_an_error_shows_the_learners_line(double):
    def answer(x):
        return x.no_such_attribute

    _, trouble = examine(double, answer)
    assert "AttributeError" in trouble.got
    assert "return x.no_such_attribute" in trouble.got


def test_a_result_that_the_probe_cannot_use_is_no_crash(register):
    toy = register("toy.pair", Probe("two results", (1.0, 2.0), run=lambda answer: (answer()[0], answer()[1])))
    state, trouble = examine(toy, lambda: None)
    assert state == "not yet"
    assert "cannot be used" in trouble.likely


def test_torch_not_implemented_is_not_a_stub(double):
    state, trouble = examine(double, lambda x: torch.empty(2, device="meta").to("cpu"))
    assert state == "not yet"
    assert "NotImplementedError" in trouble.got


def test_interrupting_is_not_swallowed(double):
    def answer(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        examine(double, answer)


# --- nothing leaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [lambda x: x.mul_(2), lambda x: x.__setitem__(0, 9.0) or x * 2])
def test_changed_inputs_are_diagnosed_and_put_back(register, change):
    x = torch.tensor([1.0, float("nan")])
    toy = register("toy.inputs", Probe("x", torch.tensor([2.0, float("nan")]), args=(x,)))
    state, trouble = examine(toy, change)
    assert state == "not yet"
    assert "in-place" in trouble.likely
    assert x[0] == 1.0


def test_inputs_in_lists_and_dictionaries_are_watched(register):
    x = torch.ones(2)
    toy = register("toy.nested", Probe("x", torch.ones(2), args=({"a": [x]},)))
    assert "in-place" in examine(toy, lambda d: d["a"][0].zero_())[1].likely
    assert x.sum() == 2


def net():
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())


def snapshot(model):
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()]
    return hooks, ["forward" in m.__dict__ for m in model.modules()], copy.deepcopy(model.state_dict())


def leave_hook(model, x):
    model[0].register_forward_hook(lambda *_: None)
    return model(x)


def leave_hook_and_raise(model, x):
    model.register_forward_pre_hook(lambda *_: None)
    raise ValueError("halfway")


def replace_forward(model, x):
    model[1].forward = lambda h: h * 0
    return model(x)


def change_weights(model, x):
    model[0].weight.data.zero_()
    return model(x)


def remove_a_hook(model, x):
    model[0]._forward_hooks.clear()
    return model(x)


@pytest.mark.parametrize("answer", [leave_hook, leave_hook_and_raise, replace_forward, change_weights, remove_a_hook])
def test_the_model_is_left_as_it_was(register, answer):
    model, x = net(), torch.ones(1, 2)
    model[0].register_forward_hook(lambda *_: None)  # a hook of the caller's own stays
    before = snapshot(model)
    toy = register("toy.model", Probe("the model", lambda got: True, args=(model, x), means="anything"))
    state, trouble = examine(toy, answer)
    assert snapshot(model)[:2] == before[:2]
    assert all(torch.equal(now, was) for now, was in zip(snapshot(model)[2].values(), before[2].values()))
    if answer is not remove_a_hook:
        assert state == "not yet"
    if answer not in (leave_hook_and_raise, remove_a_hook):
        assert "so that the model is left as it was" in trouble.likely


def test_a_model_that_the_answer_only_names_is_watched_too(register):
    model, x = net(), torch.ones(1, 2)
    toy = register("toy.closure", Probe("x", lambda got: True, args=(x,), means="anything"))
    for answer in (lambda x: leave_hook(model, x), torch.no_grad()(lambda x: leave_hook(model, x))):
        state, _ = examine(toy, answer)
        assert state == "not yet"
        assert snapshot(model)[0] == [0, 0, 0]


def test_an_open_intervention_of_the_wrapper_is_closed(register):
    import mi_course as mi
    from tests.families import random_model

    model = mi.wrap(random_model("gpt2", seed=0))
    prompts = [[1, 2, 3]]
    before = model(prompts)
    kept = []

    def leave_open(model):
        kept.append(mi.intervene(model, mi.zero("L0H1.z"), mi.zero("L1H0.pattern")))
        kept[-1].__enter__()
        return model(prompts)

    toy = register("toy.open", Probe("the model", lambda got: True, args=(model,), means="anything"))
    state, trouble = examine(toy, leave_open)
    assert state == "not yet"
    assert "hooks left" in trouble.got
    assert torch.equal(model(prompts), before)
    with mi.intervene(model, mi.zero("L0H1.z")):  # and it can be intervened on again
        assert not torch.equal(model(prompts), before)
    assert torch.equal(model(prompts), before)


def test_random_state_gradient_mode_and_default_dtype_stay(double):
    def careless(x):
        torch.manual_seed(7)
        random.seed(7)
        torch.set_grad_enabled(False)
        torch.set_default_dtype(torch.float64)
        return x * 2

    torch.manual_seed(1)
    random.seed(1)
    wanted = torch.rand(3), random.random()
    torch.manual_seed(1)
    random.seed(1)
    assert examine(double, careless)[0] == "done"
    assert torch.equal(torch.rand(3), wanted[0])
    assert random.random() == wanted[1]
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32


def test_the_verdict_does_not_depend_on_the_session_s_random_state(register):
    toy = register("toy.random", Probe("a seeded draw", lambda got: True, means="a draw", run=lambda answer: answer()))
    seen = []

    def draw():
        seen.append(torch.rand(1).item())
        return seen[-1]

    examine(toy, draw)
    torch.manual_seed(123)
    examine(toy, draw)
    assert seen[0] == seen[1]


# --- comparing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "got, expected",
    [
        (torch.tensor([1.0, 2.00001]), torch.tensor([1.0, 2.0])),
        (torch.tensor(3), 3),
        (3, 3.0),
        (torch.tensor(True), True),
        ([1, 2.0], (1.0, 2)),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}),
        (torch.tensor([1, 2]), torch.tensor([1, 2])),
        (torch.tensor([float("-inf"), 0.0]), torch.tensor([float("-inf"), 0.0])),
        (1e-6, 0.0),
        ("yes", "yes"),
    ],
)
def test_equal_within_tolerance(got, expected):
    assert difference(got, expected) == ""


@pytest.mark.parametrize(
    "got, expected, part",
    [
        (torch.tensor([1.0, 2.01]), torch.tensor([1.0, 2.0]), "index [1]: 2.01, should be 2"),
        (torch.tensor([1e-7]), torch.tensor([2e-7]), "values differ"),  # tolerance is relative
        (torch.tensor([1, 3]), torch.tensor([1, 2]), "values differ"),
        (1.1, 1.0, "The value is 1.1; it should be 1"),
        (float("nan"), 1.0, "nan"),
        (True, 1.0, "single number"),
        (torch.ones(1), 1.0, "tensor of shape [1]; it should be a single number"),
        ([1.0], (1.0, 2.0), "The length is 1; it should be 2"),
        ((1.0, 3.0), (1.0, 2.0), "Item 1"),
        ({"b": 1}, {"a": 1}, "The keys are ['b']"),
        (False, True, "truth value"),
        ("no", "yes", "differs"),
        (None, (1, 2), "`return` missing"),
        (torch.tensor([0.0]), torch.tensor([float("-inf")]), "values differ"),
    ],
)
def test_differences_are_named(got, expected, part):
    assert part in difference(got, expected)


def test_describe_is_short():
    assert describe(torch.zeros(3, 100)) == "float32 tensor of shape [3, 100]: 0, 0, 0, 0, 0, 0, 0, 0, ..."
    assert describe((1, 2.5)) == "(1, 2.5)"
    assert len(describe(object())) < 120


# --- declaring -------------------------------------------------------------------------------------------------------


def test_malformed_exercises_are_refused():
    with pytest.raises(ValueError, match="chapter.what_to_write"):
        exercise("Bad Name", reference=good, hints=("a", "b", "c"), expected="x")
    with pytest.raises(ValueError, match="three hints"):
        exercise("toy.x", reference=good, hints=("a", "b"), expected="x")
    with pytest.raises(ValueError, match="in words"):
        Probe("x", expected=lambda got: True)


def test_reference_by_name_is_imported_when_needed(register):
    assert register("toy.late", reference="mi_course.teach.compare:describe").reference is describe


def test_a_plain_function_probe_says_what_it_tries(double):
    _, trouble = examine(double, lambda x: torch.where(x.sum() == -1, x * 2, x**2))
    assert trouble.tried == "a sum put in at once and in parts"


# --- hints -----------------------------------------------------------------------------------------------------------


def test_hints_come_one_after_the_other(register, capsys):
    register("toy.hints", hints=("first thought", "second thought", "a sketch"))
    told = []
    for _ in range(4):
        hint("toy.hints")
        told.append(capsys.readouterr().out)
    assert ["first" in told[0], "second" in told[1], "sketch" in told[2], "sketch" in told[3]] == [True] * 4
    hint("toy.hints", 1)
    assert "first thought" in capsys.readouterr().out
    with pytest.raises(ValueError, match="1 to 3"):
        hint("toy.hints", 4)


def test_not_yet_carries_its_parts():
    trouble = NotYet("x", "1", "2", "sign", "look again")
    assert trouble.rows() == [("Tried", "x"), ("Expected", "1"), ("Got", "2"), ("Likely mistake", "sign")]
    assert get("pipeline.refusal_score").chapter == "pipeline"
