"""Citations: the papers of the survey's Table 2 (`papers.json`) and others that the course uses (`references.bib`)."""

from __future__ import annotations

import difflib
import functools
import json
import re
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from .cards import Rich

__all__ = ["Citation", "Paper", "cite", "find_papers", "library"]


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

    def line(self) -> str:
        return f"{self.authors} ({self.year}). {self.title}. {self.venue}."


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


def find_papers(**where: str) -> Citation:
    """Papers of Table 2 whose rows have these values: `find_papers(section="5.1.1", steering="Vector Arithmetic")`.

    Fields: section, scenario, objective, object, localizing, steering, venue. A row fits when the value is part of
    its entry.
    """
    fields = ("section", "scenario", "objective", "object", "localizing", "steering", "venue")
    for name in where:
        if name not in fields:
            raise ValueError(f"find_papers() has no field {name!r}; use one of {', '.join(fields)}")
    fits = [p for p in library().values() if any(all(v in str(row[f]) for f, v in where.items()) for row in p.rows)]
    if not fits:
        raise ValueError(f"no paper of Table 2 has {where}")
    return Citation(fits)


def _lookup(key: str) -> Paper:
    if key not in library():
        near = difflib.get_close_matches(key, library(), n=3, cutoff=0.5)
        hint = f"; did you mean {', '.join(near)}?" if near else "; add it to mi_course/teach/references.bib"
        raise KeyError(f"no paper with the key {key!r}{hint}")
    return library()[key]


@functools.cache
def library() -> dict[str, Paper]:
    """Key -> paper, Table 2 first."""
    folder = files("mi_course.teach")
    rows: dict[str, list[dict]] = {}
    for row in json.loads((folder / "papers.json").read_text(encoding="utf-8")):
        rows.setdefault(row["key"], []).append(row)
    found = {key: _from_table(key, its) for key, its in rows.items()}
    for paper in _from_bib((folder / "references.bib").read_text(encoding="utf-8")):
        if paper.key in found:
            raise ValueError(f"references.bib repeats the key {paper.key!r} of papers.json: remove it there")
        found[paper.key] = paper
    return found


def _from_table(key: str, rows: list[dict]) -> Paper:
    first = rows[0]
    authors = first["authors_short"] or "Authors not recorded"
    return Paper(key, authors, first["year"], first["title"], first["venue"], first["url"] or "", tuple(rows))


def _from_bib(text: str) -> list[Paper]:
    """Read the simple BibTeX of references.bib: one field a line, values in braces."""
    found = []
    for key, body in re.findall(r"@\w+\{([^,\s]+),\n(.*?)\n\}", text, flags=re.DOTALL):
        fields = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},?$", body, flags=re.MULTILINE))
        missing = {"author", "year", "title", "venue", "url"} - set(fields)
        if missing:
            raise ValueError(f"references.bib: {key!r} lacks {', '.join(sorted(missing))}")
        names = [name.split(",")[0].strip() for name in fields["author"].split(" and ")]
        short = (
            names[0] if len(names) == 1 else f"{names[0]} and {names[1]}" if len(names) == 2 else f"{names[0]} et al."
        )
        found.append(Paper(key, short, int(fields["year"]), fields["title"], fields["venue"], fields["url"]))
    return found
