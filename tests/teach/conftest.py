"""Small exercises of our own, so that these tests do not depend on a chapter."""

import pytest
import torch

from mi_course.teach import exercises, journal
from mi_course.teach.exercises import NotYet, Probe, exercise


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    """Each test has its own progress file, and is not strict unless it says so."""
    monkeypatch.setenv("MI_COURSE_PROGRESS", str(tmp_path / "state" / "progress.json"))
    monkeypatch.delenv("MI_COURSE_STRICT", raising=False)
    monkeypatch.setattr(journal, "_session", {})
    return tmp_path / "state" / "progress.json"


@pytest.fixture
def register(monkeypatch):
    """Declare an exercise for one test: register(name, *probes, reference=...)."""
    exercises.names()  # the shipped ones are declared once, on import: before the registry is replaced
    monkeypatch.setattr(exercises, "_registered", dict(exercises._registered))

    def declare(name, *probes, reference=None, hints=("think", "look", "sketch"), expected="a number"):
        exercise(name, reference=reference or (lambda x: 2 * x), hints=hints, expected=expected)(lambda: iter(probes))
        return exercises.get(name)

    return declare


@pytest.fixture
def double(register):
    """The exercise toy.double: f(x) = 2x."""
    x = torch.tensor([1.0, -2.0])

    def additive(answer):
        """a sum put in at once and in parts"""
        if not torch.allclose(answer(x + 1), answer(x) + answer(torch.ones(2))):
            raise NotYet(answer.tried, "the same result", likely="The function is not linear.")

    return register(
        "toy.double",
        Probe(
            tried="x = [1, -2]",
            args=(x,),
            expected=torch.tensor([2.0, -4.0]),
            diagnose={"squared instead of doubled": x**2, "the sign is lost": lambda got: bool((got > 0).all())},
        ),
        additive,
    )
