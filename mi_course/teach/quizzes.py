"""Quiz questions that give a reason for every option.

Each option unfolds to its verdict and reason (plain HTML: works in JupyterLab, Colab, exported pages and without a
kernel, and stores no widget state). Plain-text front ends list the options first and the reasons after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_lowercase

from .cards import Rich, with_code

__all__ = ["Option", "Question", "Quiz", "quiz"]


@dataclass(frozen=True)
class Option:
    """One option with the reason why it is right or wrong."""

    text: str
    reason: str
    right: bool = False


@dataclass(frozen=True)
class Question:
    """A question with two to six options `(text, reason)`; the one right option is `(text, reason, True)`."""

    text: str
    options: tuple[Option, ...]

    def __post_init__(self) -> None:
        options = tuple(option if isinstance(option, Option) else Option(*option) for option in self.options)
        object.__setattr__(self, "options", options)
        if not 2 <= len(options) <= 6 or sum(option.right for option in options) != 1:
            raise ValueError(f"question {self.text!r}: give two to six options, exactly one of them right")
        if not all(option.text.strip() and option.reason.strip() for option in options):
            raise ValueError(f"question {self.text!r}: every option needs a text and a reason")

    def verdict(self, letter: str) -> str:
        option = self.options[ascii_lowercase.index(letter)]
        return f"{'Right' if option.right else 'Not right'}: {option.reason}"


class Quiz(Rich):
    """Questions; with `answers` also the verdict on each."""

    def __init__(self, questions: Sequence[Question], answers: str | None = None) -> None:
        self.questions = tuple(questions)
        self.answers = None if answers is None else self._read(answers)

    def _read(self, answers: str) -> str:
        letters = answers.replace(" ", "").replace(",", "").lower()
        if len(letters) != len(self.questions):
            raise ValueError(f"answers={answers!r}: give one letter per question, {len(self.questions)} in all")
        for letter, question in zip(letters, self.questions):
            if letter not in ascii_lowercase[: len(question.options)]:
                last = ascii_lowercase[len(question.options) - 1]
                raise ValueError(f"answers={answers!r}: {letter!r} is no option of {question.text!r} (a to {last})")
        return letters

    @property
    def right(self) -> int:
        """How many of the given answers are right."""
        given = zip(self.answers or "", self.questions)
        return sum(question.options[ascii_lowercase.index(letter)].right for letter, question in given)

    def text(self) -> str:
        lines: list[str] = []
        for number, question in enumerate(self.questions, 1):
            lines.append(f"{number}. {question.text}")
            lines += [f"   {letter}) {option.text}" for letter, option in zip(ascii_lowercase, question.options)]
            if self.answers:
                letter = self.answers[number - 1]
                lines.append(f"   You chose {letter}. {question.verdict(letter)}")
        if self.answers:
            return "\n".join([*lines, f"{self.right} of {len(self.questions)} right."])
        lines.append("Reasons (read them after choosing):")
        for number, question in enumerate(self.questions, 1):
            for letter, _ in zip(ascii_lowercase, question.options):
                lines.append(f"   {number}{letter}) {question.verdict(letter)}")
        return "\n".join(lines)

    def html(self) -> str:
        parts: list[str] = []
        for number, question in enumerate(self.questions, 1):
            parts.append(f"<p><b>{number}. {with_code(question.text)}</b></p>")
            for letter, option in zip(ascii_lowercase, question.options):
                chosen = self.answers is not None and self.answers[number - 1] == letter
                mark = " (your choice)" if chosen else ""
                parts.append(
                    f"<details style='margin:.2em 0 .2em 1em'{' open' if chosen else ''}>"
                    f"<summary>{letter}) {with_code(option.text)}{mark}</summary>"
                    f"<div style='margin-left:1.2em'>{with_code(question.verdict(letter))}</div></details>"
                )
        if self.answers:
            parts.append(f"<p>{self.right} of {len(self.questions)} right.</p>")
        return f"<div style='max-width:60em'>{''.join(parts)}</div>"


def quiz(questions: Sequence[Question], answers: str | None = None) -> Quiz:
    """Show questions; `answers="bac"`, one letter for each, gives the verdicts. ValueError for malformed answers."""
    if not questions or not all(isinstance(each, Question) for each in questions):
        raise ValueError("questions must be a non-empty list of Question(text, options)")
    return Quiz(questions, answers)
