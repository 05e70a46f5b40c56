"""`check` and `hint`: what a learner calls under each exercise."""

from __future__ import annotations

import functools
import io
import sys
from contextlib import nullcontext, redirect_stderr
from typing import Any

from . import journal
from .cards import Card, display
from .compare import describe, difference, wrong_kind
from .exercises import Exercise, NotYet, Probe, get
from .guard import Guarded, NotStarted, code_of, steady
from .settings import strict

__all__ = ["CheckFailed", "check", "examine", "hint"]

_hints_shown: dict[str, int] = {}


class CheckFailed(AssertionError):
    """Raised by `check` in strict mode when an answer is not done; the message is the card in plain text."""


def check(name: str, answer: Any) -> Any:
    """Check an answer, show a card, and return something that the rest of the chapter can use.

    done         returns `answer`
    not started  (the stub raises NotImplementedError) returns the package's reference implementation, and says so
    not yet      shows a diagnosis, returns the reference implementation, and says so

    In strict mode (`MI_COURSE_STRICT=1`, nbgrader) raises CheckFailed unless done. Raises KeyError for an unknown
    name, and nothing else: an answer that raises, changes its inputs or leaves hooks behind is diagnosed, and the
    model is left as it was.
    """
    exercise = get(name)
    with redirect_stderr(io.StringIO()) if strict() else nullcontext():  # nbgrader takes a warning for a failure
        state, trouble = examine(exercise, answer)
        card = _card(exercise, state, trouble)
    if strict():
        if state != "done":
            _hand_over(answer, exercise.reference, sys._getframe(1).f_globals)
            raise CheckFailed(card.text())
    else:
        journal.note_check(name, state)
    display(card)
    return answer if state == "done" else exercise.reference


def _hand_over(answer: Any, reference: Any, names: dict[str, Any]) -> None:
    """Give the reference the names of a notebook that hold the answer: a raising `check` returns nothing, and grading
    goes on after it, so one missing answer would cost the points of all later ones that build on it."""
    if names.get("__name__") != "__main__":  # called from a module
        return
    for name in [name for name, value in names.items() if value is answer and answer is not None]:
        names[name] = reference


def examine(exercise: Exercise, answer: Any, *, own: bool = False) -> tuple[str, NotYet | None]:
    """("done" | "not started" | "not yet", diagnosis or None), without showing or noting anything.

    `own=True` also accepts the package's own function: this is how the tests check the references.
    """
    if answer is None or answer is Ellipsis:
        return "not started", None
    try:
        if not own:
            _refuse_own(exercise, answer)
        if not callable(answer):
            raise NotYet(
                "check(name, answer)",
                expected="the function itself",
                got=describe(answer),
                likely="You passed the result of a call. Leave the parentheses out: check(name, my_function).",
            )
        guarded = Guarded(answer, forbidden=None if own else code_of(exercise.reference))
        with steady():
            for probe in exercise.probes():
                _ask(probe, guarded)
    except NotStarted:
        return "not started", None
    except NotYet as trouble:
        return "not yet", trouble
    return "done", None


def _refuse_own(exercise: Exercise, answer: Any) -> None:
    inner = answer
    while isinstance(inner, functools.partial):
        inner = inner.func
    if inner is exercise.reference or str(getattr(inner, "__module__", "")).partition(".")[0] == "mi_course":
        raise NotYet(
            "whose function this is",
            expected="a function that you wrote",
            got=f"{getattr(inner, '__module__', '')}.{getattr(inner, '__name__', inner)}",
            likely="This is the package's own function. Define yours under the name of the stub and check that one.",
        )


def _ask(probe: Probe | Any, guarded: Guarded) -> None:
    """Put one probe to the answer; raises NotYet with a diagnosis when the reply is wrong.

    A probe is a `Probe`, or a function that takes the answer and raises NotYet; its docstring says what it tries.
    """
    plain = not isinstance(probe, Probe)
    guarded.tried = (probe.__doc__ or probe.__name__).strip().splitlines()[0] if plain else probe.tried
    try:
        got = probe(guarded) if plain else probe.ask(guarded)
    except (NotYet, NotStarted):
        raise
    except Exception as error:  # not in the answer (Guarded explains those): its result could not be used
        likely = "The function returned something that cannot be used further. Look at its type and shape."
        raise NotYet(guarded.tried, got=f"{type(error).__name__}: {error}", likely=likely) from error
    if plain:
        return
    if not _fits(got, probe.expected, probe.tolerance):
        expected = probe.means or describe(probe.expected)
        raise NotYet(probe.tried, expected, describe(got), _likely_mistake(got, probe), probe.next)


def _likely_mistake(got: Any, probe: Probe) -> str:
    """A wrong type or dtype comes before the known mistakes, and these before what the numbers alone say."""
    if kind := wrong_kind(got, probe.expected):
        return kind
    known = [mistake for mistake, wrong in probe.diagnose.items() if _fits(got, wrong, probe.tolerance)]
    if known:
        return known[0]
    if callable(probe.expected):
        return "The result does not do what was expected."
    return difference(got, probe.expected, probe.tolerance)


def _fits(got: Any, wanted: Any, tolerance: float) -> bool:
    """Is `got` the value `wanted`, or does it pass the test `wanted`? A test that raises is one that `got` fails."""
    if not callable(wanted):
        return not difference(got, wanted, tolerance)
    try:
        return bool(wanted(got))
    except Exception:
        return False


REFERENCE = (
    "REFERENCE IN USE. The chapter goes on with the package's reference implementation in place of yours. What "
    "follows is its result, not yours."
)


def _card(exercise: Exercise, state: str, trouble: NotYet | None) -> Card:
    """The expected result is in every card, with a worked case where the diagnosis does not show one."""
    result = ("Expected result", exercise.expected)
    ask_hint = f'mi.teach.hint("{exercise.name}")'
    if state == "done":
        return Card(exercise.name, state, [result, *_example(exercise)])
    if state == "not started":
        to_do = ("To do", f"Replace the stub by your code and run the cell again. Stuck? {ask_hint}")
        return Card(exercise.name, state, [to_do, result, *_example(exercise)], banner=REFERENCE)
    advice = trouble.next or f"Mend it and run the cell again, or ask for the next hint: {ask_hint}"
    return Card(exercise.name, state, [*trouble.rows(), ("Next", advice), result], banner=REFERENCE)


def _example(exercise: Exercise) -> list[tuple[str, str]]:
    """The first probe as a row: what is put in, and what comes out."""
    with steady():
        first = next((probe for probe in exercise.probes() if isinstance(probe, Probe)), None)
    return [] if first is None else [("For example", f"{first.tried}: {first.means or describe(first.expected)}")]


def hint(name: str, n: int | None = None) -> None:
    """Show the next of the three hints of an exercise, or hint `n` (1 to 3). The last one is a sketch."""
    exercise = get(name)
    count = len(exercise.hints)
    if n is None:
        n = min(_hints_shown.get(name, 0) + 1, count)
    if n not in range(1, count + 1):
        raise ValueError(f"n={n!r}: hints are numbered 1 to {count}; leave n out for the next one")
    _hints_shown[name] = max(n, _hints_shown.get(name, 0))
    if not strict():
        journal.note_hint(name, _hints_shown[name])
    more = f'Another: mi.teach.hint("{name}")' if n < count else "This was the last one."
    display(Card(f"Hint {n} of {count} for {name}", "note", [("Hint", exercise.hints[n - 1]), ("Then", more)]))
