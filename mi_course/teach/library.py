"""Citations: the papers of the survey's Table 2 (`papers.json`) and others that the course uses (`references.bib`).

`corrections.json` holds what is known to be wrong in Table 2. Corrections of an address, a year, a venue, an author
or a key always apply; corrections of a tag (object, localizing, steering) are kept beside the tag of the survey.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from .cards import Rich

__all__ = ["Citation", "Correction", "Library", "Paper", "cite", "library"]

TAGS = ("object", "localizing", "steering")


@dataclass(frozen=True)
class Correction:
    """One known error of Table 2, or of what the survey says of a paper.

    row    the number of the row, 1 to 216
    field  what is wrong: a tag, key, url, year, venue, authors_short; or "text", what the survey says in prose
    survey, correct   what stands there, and what should (None: it is wrong or doubtful, and nothing better is known)
    why    the reason in a sentence
    basis  where that is known from: "prose" of the survey, "authors' list", "paper" (or its code), "recollection"
    source section of the course's audit of the survey
    """

    row: int
    key: str
    field: str
    survey: str | int | None
    correct: str | int | None
    why: str
    basis: str
    source: str

    def line(self) -> str:
        should = f" -> {self.correct}" if self.correct is not None else ""
        doubt = " (from memory, unconfirmed)" if self.basis == "recollection" else ""
        if self.field == "text":
            return f'The survey says: "{self.survey}" {self.why}{doubt}'
        ours = {"localizing": "localizer", "steering": "steerer", "authors_short": "authors"}
        field = ours.get(self.field, self.field)
        return f"{field}: {self.survey or 'missing'}{should}. {self.why}{doubt}"


@dataclass(frozen=True)
class Paper:
    """A paper; `rows` are its rows of Table 2, empty for papers from outside the table."""

    key: str
    authors: str
    year: int
    title: str
    venue: str
    url: str
    rows: tuple[dict, ...] = ()
    corrections: tuple[Correction, ...] = ()

    def line(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}. {self.venue}."


class Library(dict):
    """Key -> paper. Aliases, the second keys that the survey uses for a paper, lead to the same paper."""

    def __init__(self, papers: dict[str, Paper], aliases: dict[str, str]) -> None:
        super().__init__(papers)
        self.aliases = aliases

    def __missing__(self, key: str) -> Paper:
        if key in self.aliases:
            return self[self.aliases[key]]
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key in self.aliases


class Citation(Rich):
    """Papers as a reference list."""

    def __init__(self, cited: list[Paper]) -> None:
        self.cited = cited

    def text(self) -> str:
        return "\n".join(f"{paper.line()} {paper.url}".strip() for paper in self.cited)

    def html(self) -> str:
        return f"<ul>{''.join(f'<li>{_line_with_link(paper)}</li>' for paper in self.cited)}</ul>"

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {p.line()} <{p.url}>" if p.url else f"- {p.line()}" for p in self.cited)


def _line_with_link(paper: Paper) -> str:
    link = f' <a href="{escape(paper.url)}">{escape(paper.url)}</a>' if paper.url else ""
    return escape(paper.line()) + link


def cite(*keys: str) -> Citation:
    """The papers with these keys, as a list that shows itself. KeyError with near keys when one is unknown."""
    if not keys:
        raise ValueError("cite() needs at least one key, such as cite('arditi2024refusal')")
    return Citation([_lookup(key) for key in keys])


def _lookup(key: str) -> Paper:
    if key not in library():
        near = difflib.get_close_matches(key, library(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; add it to mi_course/teach/references.bib"
        raise KeyError(f"no paper with the key {key!r}{hint}")
    return library()[key]


@functools.cache
def library() -> Library:
    """Key -> paper, Table 2 first."""
    folder = files("mi_course.teach")
    wrong = json.loads((folder / "corrections.json").read_text(encoding="utf-8"))
    corrections = [Correction(**entry) for entry in wrong["corrections"]]
    rows: dict[str, list[dict]] = {}
    for row in json.loads((folder / "papers.json").read_text(encoding="utf-8")):
        row = _corrected(row, corrections)
        rows.setdefault(row["key"], []).append(row)
    found = {key: _from_table(key, its, corrections) for key, its in rows.items()}
    for paper in _from_bib((folder / "references.bib").read_text(encoding="utf-8")):
        if paper.key in found or paper.key in wrong["aliases"]:
            raise ValueError(f"references.bib repeats the key {paper.key!r} of papers.json: remove it there")
        found[paper.key] = paper
    return Library(found, wrong["aliases"])


def _corrected(row: dict, corrections: list[Correction]) -> dict:
    """A row with what is bibliographic put right; its tags stay as the survey has them."""
    mended = {c.field: c.correct for c in corrections if c.row == row["n"] and c.correct is not None}
    return {**row, **{field: value for field, value in mended.items() if field not in TAGS}}


def _from_table(key: str, rows: list[dict], corrections: list[Correction]) -> Paper:
    first = rows[0]
    authors = first["authors_short"] or "Authors not recorded"
    numbers = {row["n"] for row in rows}
    wrong = tuple(c for c in corrections if c.row in numbers)
    return Paper(key, authors, first["year"], first["title"], first["venue"], first["url"] or "", tuple(rows), wrong)


def _from_bib(text: str) -> Iterator[Paper]:
    """Read the simple BibTeX of references.bib: one field a line, values in braces."""
    seen = set()
    for key, body in re.findall(r"@\w+\{([^,\s]+),\n(.*?)\n\}", text, flags=re.DOTALL):
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, flags=re.MULTILINE))
        missing = {"author", "year", "title", "venue", "url"} - set(fields)
        if missing:
            raise ValueError(f"references.bib: {key!r} lacks {', '.join(sorted(missing))}")
        if key in seen:
            raise ValueError(f"references.bib: {key!r} stands there twice")
        seen.add(key)
        names = [name.split(",")[0].strip() for name in fields["author"].split(" and ")]
        short = (
            names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} et al."
        )
        yield Paper(key, short, int(fields["year"]), fields["title"], fields["venue"], fields["url"])
