"""Tests of the checks: right answers of several kinds pass, wrong ones fail for the intended reason.

For each module mi_course/teach/checks/<chapter>.py there is a module tests/exercises/<chapter>.py with

    RIGHT = {exercise: [answer, answer, ...]}                          at least two, written differently
    WRONG = {exercise: {name: (answer, "part of the message")}}        at least four, each with its own message

Mistakes that fit every exercise (nothing returned, an exception, ...) are made here from the right answers.
"""

import dis
import importlib
from dataclasses import replace

import pytest
import torch

from mi_course.teach import exercises
from mi_course.teach.checking import examine
from mi_course.teach.guard import code_of
from tests.exercises.mutants import mutants

ANSWERS = {}
for chapter in exercises.chapters():
    ANSWERS[chapter] = importlib.import_module(f"tests.exercises.{chapter}")
NAMES = [name for chapter in exercises.chapters() for name in exercises.names(chapter)]


def answers(kind, name):
    return getattr(ANSWERS[name.partition(".")[0]], kind).get(name, {})


RIGHT = [
    pytest.param(name, answer, id=f"{name}-{i}") for name in NAMES for i, answer in enumerate(answers("RIGHT", name))
]
WRONG = [
    pytest.param(name, *case, id=f"{name}-{label}") for name in NAMES for label, case in answers("WRONG", name).items()
]


def message(name, answer):
    """State, and the diagnosis without the parts that only repeat the input."""
    state, trouble = examine(exercises.get(name), answer)
    return state, "" if trouble is None else f"{trouble.likely} {trouble.next}"


@pytest.mark.parametrize("name", NAMES)
def test_the_reference_is_right(name):
    exercise = exercises.get(name)
    assert examine(exercise, exercise.reference, own=True) == ("done", None)


@pytest.mark.parametrize("name", NAMES)
def test_there_are_enough_answers(name):
    right, wrong = answers("RIGHT", name), answers("WRONG", name)
    assert len({str([(i.opname, i.argrepr) for i in dis.get_instructions(code_of(a))]) for a in right}) >= 2
    assert len(wrong) >= 4
    assert len({part for _, part in wrong.values()}) >= 4, "wrong answers must fail for different reasons"


def test_no_answer_belongs_to_an_unknown_exercise():
    for chapter, module in ANSWERS.items():
        assert set(module.RIGHT) | set(module.WRONG) == set(exercises.names(chapter))


@pytest.mark.parametrize("name, answer", RIGHT)
def test_right_answers_pass(name, answer):
    state, trouble = examine(exercises.get(name), answer)
    assert state == "done", trouble and trouble.rows()


@pytest.mark.parametrize("name, answer, part", WRONG)
def test_wrong_answers_are_diagnosed(name, answer, part):
    state, told = message(name, answer)
    assert state == "not yet", "this wrong answer survived"
    assert part in told


# --- mistakes that fit every exercise --------------------------------------------------------------------------------


def stub(*args, **kwargs):
    raise NotImplementedError("your turn")


def broken(right):
    return lambda *args, **kwargs: undefined_name  # noqa: F821


def raising_later(right):
    calls = []

    def answer(*args, **kwargs):
        calls.append(1)
        if len(calls) > 1:
            raise NotImplementedError
        return right(*args, **kwargs)

    return answer


def not_a_number(right):
    return lambda *args, **kwargs: _nan(right(*args, **kwargs))


def _nan(value):
    if isinstance(value, (tuple, list)):
        return type(value)(_nan(item) for item in value)
    return value * float("nan")


GENERAL = {
    "nothing returned": (lambda right: lambda *args, **kwargs: right(*args, **kwargs) and None, None),
    "nan": (not_a_number, None),
    "an undefined name": (broken, "not defined"),
    "wrong arguments": (lambda right: lambda: None, "Keep the names and the order of the stub"),
    "a string": (lambda right: lambda *args, **kwargs: "done", None),
    "double precision": (lambda right: lambda *args, **kwargs: _double(right(*args, **kwargs)), "The dtype is float64"),
    "one more axis": (lambda right: lambda *args, **kwargs: _deeper(right(*args, **kwargs)), None),
}


def _double(value):
    return value.double() if isinstance(value, torch.Tensor) else pytest.skip("no tensor comes back")


def _deeper(value):
    return value.unsqueeze(0) if isinstance(value, torch.Tensor) else [value]


@pytest.mark.parametrize("mistake", GENERAL)
@pytest.mark.parametrize("name", NAMES)
def test_general_mistakes_are_diagnosed(name, mistake):
    make, part = GENERAL[mistake]
    state, told = message(name, make(list(answers("RIGHT", name))[0]))
    assert state == "not yet"
    assert (part or "") in told
    assert told.strip()


@pytest.mark.parametrize("name", NAMES)
def test_a_stub_is_not_started_and_half_a_stub_is_not_done(name):
    assert examine(exercises.get(name), stub) == ("not started", None)
    state, told = message(name, raising_later(list(answers("RIGHT", name))[0]))
    assert state == "not yet"
    assert "part of the stub is left" in told


@pytest.mark.parametrize("name", NAMES)
def test_the_packages_own_function_is_refused(name):
    reference = exercises.get(name).reference
    for answer in (reference, lambda *args, **kwargs: reference(*args, **kwargs)):
        state, told = message(name, answer)
        assert state == "not yet"
        assert "package's own" in told


# --- answers spoilt by machine ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_no_mutant_of_a_right_answer_survives(name):
    """SAME in the module of answers lists the changes that leave an answer right."""
    same = getattr(ANSWERS[name.partition(".")[0]], "SAME", {}).get(name, ())
    plain = [answer for answer in answers("RIGHT", name) if answer.__name__ != "<lambda>"]
    tried = [(f"{a.__name__}, {what}", mutant) for a in plain for what, mutant in mutants(a)]
    assert len(tried) >= 3, "give right answers as plain functions, with operators or numbers in them"
    assert {what for what, mutant in tried if examine(exercises.get(name), mutant)[0] == "done"} == set(same)


# --- these tests can fail --------------------------------------------------------------------------------------------


def test_a_wrong_answer_that_survives_fails_the_tests():
    name = NAMES[0]
    right = list(answers("RIGHT", name))[0]
    with pytest.raises(AssertionError, match="this wrong answer survived"):
        test_wrong_answers_are_diagnosed(name, right, "")


def test_a_check_that_lets_mutants_live_fails_the_tests(monkeypatch):
    name = "pipeline.mean_difference"
    weak = replace(exercises.get(name), probes=lambda: iter(()))
    monkeypatch.setattr(exercises, "get", lambda asked: weak)
    with pytest.raises(AssertionError):
        test_no_mutant_of_a_right_answer_survives(name)
