"""What the build knows of the chapters and the teaching layer needs: `course.json`, written by `mi-course build`.

citations  key of a paper -> [chapter, heading] of each section that cites it
exercises  name of an exercise -> [chapter, minutes], in the order of the course
"""

from __future__ import annotations

import functools
import json
from importlib.resources import files

__all__ = ["cited_in", "exercise_places", "title"]


@functools.cache
def _course() -> dict:
    file = files("mi_course.teach") / "course.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"citations": {}, "exercises": {}}


def cited_in(key: str) -> list[tuple[str, str]]:
    """(chapter, heading of the section) for each place that cites the paper."""
    return [(stem, heading) for stem, heading in _course()["citations"].get(key, [])]


def exercise_places() -> dict[str, tuple[str, int]]:
    """Exercise -> (chapter, minutes); an exercise of no built chapter is missing."""
    return {name: (stem, minutes) for name, (stem, minutes) in _course()["exercises"].items()}


def title(stem: str) -> str:
    """Number and title of a chapter: `00_pipeline` -> "00 The whole pipeline in one hour"."""
    from mi_course.cli.chapters import TABLE

    return next(entry.heading for entry in TABLE if entry.stem == stem)
