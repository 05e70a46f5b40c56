"""Exercises: how one is declared, and where the declared ones are found.

An exercise is a generator of probes with a name, a reference implementation and three hints::

    @exercise(
        "pipeline.ablate_direction",
        reference="mi_course.teach.checks.pipeline:ablate_direction_reference",
        hints=("what to think about", "which operation", "a sketch"),
        expected="what a learner should see",
    )
    def ablate_direction():
        x, r = torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])
        yield Probe(
            tried="x = [3, 4], r = [2, 0]: a direction that is not of length 1",
            args=(x, r),
            expected=torch.tensor([0.0, 4.0]),
            diagnose={"r was not normalised, so too much was taken away": x - (x @ r) * r},
        )
        yield some_function  # takes the answer, raises NotYet(...) when a property fails

The probes of chapter `pipeline` live in `mi_course/teach/checks/pipeline.py`, which is imported when first asked for.
Right and wrong answers to each exercise live in `tests/exercises/pipeline.py`, and are run by `make test`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Exercise", "NotYet", "Probe", "chapters", "exercise", "get", "names"]

NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")
CHECKS = "mi_course.teach.checks"


class NotYet(Exception):
    """An answer that is not right yet, with a diagnosis.

    tried: the input, in words. expected: what should have come out, or which law should hold. got: what came out.
    likely: the likely mistake. next: what to do about it; without it the card points to the next hint.
    """

    def __init__(self, tried: str, expected: str = "", got: str = "", likely: str = "", next: str = "") -> None:
        super().__init__(likely or f"{tried}: expected {expected}, got {got}")
        self.tried, self.expected, self.got, self.likely, self.next = tried, expected, got, likely, next

    def rows(self) -> list[tuple[str, str]]:
        named = [("Tried", self.tried), ("Expected", self.expected), ("Got", self.got), ("Likely mistake", self.likely)]
        return [(label, text) for label, text in named if text]


@dataclass
class Probe:
    """One question to an answer whose right reply is known beforehand: analytic, an invariant, or planted.

    tried      the input in words, shown to the learner
    expected   the right value (tensor, number, bool, str, or a tuple, list or dict of these), or a test `got -> bool`
    args       positional arguments of the call; `run(answer)` replaces the plain call `answer(*args)`
    means      `expected` in words; needed when `expected` is a test
    diagnose   likely mistake -> the value that this mistake gives, or a test `got -> bool`; the first that fits is told
    tolerance  allowed difference, relative to the largest expected value (absolute where all expected values are 0)
    next       advice in place of "ask for the next hint"
    """

    tried: str
    expected: Any
    args: tuple = ()
    run: Callable[[Callable], Any] | None = None
    means: str = ""
    diagnose: Mapping[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-4
    next: str = ""

    def __post_init__(self) -> None:
        if callable(self.expected) and not self.means:
            raise ValueError(f"probe {self.tried!r}: `expected` is a test, so `means` must say it in words")

    def ask(self, answer: Callable) -> Any:
        return self.run(answer) if self.run is not None else answer(*self.args)


@dataclass(frozen=True)
class Exercise:
    """A declared exercise. `probes()` makes fresh probes on each call."""

    name: str
    probes: Callable[[], Iterable[Probe | Callable]]
    reference_at: str | Callable
    hints: tuple[str, str, str]
    expected: str

    @property
    def chapter(self) -> str:
        return self.name.partition(".")[0]

    @property
    def reference(self) -> Any:
        """The package's own implementation, imported when first needed."""
        if not isinstance(self.reference_at, str):
            return self.reference_at
        module, _, attribute = self.reference_at.partition(":")
        return getattr(importlib.import_module(module), attribute)


_registered: dict[str, Exercise] = {}


def exercise(name: str, *, reference: str | Callable, hints: tuple[str, str, str], expected: str) -> Callable:
    """Declare an exercise; decorates a generator function that yields its probes.

    name: "chapter.what_to_write". reference: "package.module:function", or the function itself. hints: three, from a
    thought to a sketch. expected: what the learner should see when it is right. Raises ValueError when one of them is
    malformed.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"exercise name {name!r}: write it as chapter.what_to_write in lower case")
    if len(hints) != 3 or not all(isinstance(hint, str) and hint.strip() for hint in hints):
        raise ValueError(f"exercise {name!r}: give three hints, the last one a sketch")
    if not expected.strip():
        raise ValueError(f"exercise {name!r}: `expected` must say what a right answer shows")

    def register(probes: Callable[[], Iterable]) -> Callable:
        _registered[name] = Exercise(name, probes, reference, tuple(hints), expected)
        return probes

    return register


def get(name: str) -> Exercise:
    """The exercise called `name`; KeyError with the nearest names otherwise."""
    chapter = name.partition(".")[0]
    if name not in _registered and chapter in chapters():
        importlib.import_module(f"{CHECKS}.{chapter}")
    if name not in _registered:
        known = names()
        near = difflib.get_close_matches(name, known, n=3) or known
        raise KeyError(f"no exercise {name!r}; did you mean {', '.join(near) or '(none is registered)'}?")
    return _registered[name]


def chapters() -> list[str]:
    """Chapters that have a module of checks."""
    package = importlib.import_module(CHECKS)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def names(chapter: str | None = None) -> list[str]:
    """Names of all shipped exercises, or of those of one chapter, in order of declaration."""
    for each in chapters() if chapter is None else [chapter]:
        if each in chapters():
            importlib.import_module(f"{CHECKS}.{each}")
    return [name for name in _registered if chapter in (None, name.partition(".")[0])]
