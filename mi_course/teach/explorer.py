"""The paper explorer: Table 2 of the survey, browsed by object, localizer, steerer and scenario.

    papers(object="Neuron", localizer="Causal")      a table with links, counts, known errors, and where it is taught
    papers().counts("object", "localizer")           how many rows of the table have each pair of tags

A tag is what the survey's table says. Where that is known to be wrong, the table says so and what is right;
`corrected=True` filters and counts by the right tags instead.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .cards import Rich
from .course import cited_in, title
from .library import TAGS, Correction, Paper, library
from .plots import Table
from .settings import interactive

__all__ = ["Entry", "PaperTable", "papers"]

# What one may ask for -> the field of papers.json.
FIELDS = {
    "object": "object",
    "localizer": "localizing",
    "steerer": "steering",
    "scenario": "scenario",
    "section": "section",
    "objective": "objective",
    "venue": "venue",
}
AXES = ("object", "localizer", "steerer", "scenario")
NONE = "none named"  # the table's "-"
LONG = 25  # a longer list starts folded

# Where the course teaches what a tag names.
CHAPTERS = {
    "Token Embedding": ["01_residual_stream"],
    "Residual Stream": ["01_residual_stream"],
    "MHA": ["02_attention_heads"],
    "FFN & MHA": ["02_attention_heads", "03_ffn_memories"],
    "FFN": ["03_ffn_memories"],
    "Neuron": ["03_ffn_memories"],
    "SAE Feature": ["04_superposition"],
    "Magnitude Analysis": ["05_magnitude"],
    "Causal Attribution": ["06_causal_attribution"],
    "Gradient Detection": ["07_gradient_detection"],
    "Probing": ["08_probing"],
    "Vocab Projection": ["09_vocabulary_projection"],
    "Circuit Discovery": ["10_circuits"],
    "Amplitude Manipulation": ["12_amplitude"],
    "Targeted Optimization": ["13_targeted_optimization"],
    "Vector Arithmetic": ["14_vector_arithmetic"],
    "Safety and Reliability": ["16_safety"],
    "Fairness and Bias": ["17_fairness"],
    "Persona and Role": ["18_persona"],
    "Multilingualism": ["19_multilingual"],
    "Knowledge Management": ["20_knowledge"],
    "Logic and Reasoning": ["21_reasoning"],
    "Efficient Training": ["22_efficient_training"],
    "Efficient Inference": ["23_efficient_inference"],
}


@dataclass(frozen=True)
class Entry:
    """One row of Table 2: the paper, its tags as the survey has them, and what is known to be wrong in the row."""

    paper: Paper
    row: dict
    corrections: tuple[Correction, ...]

    def tag(self, field: str, corrected: bool = False) -> str:
        """The value of one of FIELDS, as the survey has it or as corrected."""
        name = FIELDS[field]
        if corrected and name in TAGS:
            right = [c.correct for c in self.corrections if c.field == name and c.correct is not None]
            return right[0] if right else self.row[name]
        return self.row[name]

    def taught(self) -> list[tuple[str, str]]:
        """(chapter, section) that cite the paper, then chapters that teach its localizer, steerer, object, scenario.

        A chapter is named once; section is "" where the whole chapter is meant.
        """
        places = cited_in(self.paper.key)
        for field in ("localizer", "steerer", "object", "scenario"):
            for stem in CHAPTERS.get(self.tag(field, corrected=True), []):
                if stem not in [chapter for chapter, _ in places]:
                    places.append((stem, ""))
        return places


@functools.cache
def entries() -> tuple[Entry, ...]:
    """All rows of Table 2 in its order."""
    found = [
        Entry(paper, row, tuple(c for c in paper.corrections if c.row == row["n"]))
        for paper in library().values()
        for row in paper.rows
    ]
    return tuple(sorted(found, key=lambda entry: entry.row["n"]))


def papers(*, words: str = "", corrected: bool = False, **where: str) -> PaperTable:
    """Papers of the survey's Table 2 with these tags, as a table that shows itself.

    where: object, localizer, steerer, scenario, section, objective, venue. A value fits when it equals an entry, else
    when it is part of one; upper and lower case do not matter. "-" means that the table names none.
    words: all of these must be in authors, title or key. corrected: filter and count by the corrected tags.
    In a notebook with a person in front of it, menus below the table filter further.

    Raises ValueError for a field or a value that the table does not have.
    """
    for field in where:
        if field not in FIELDS:
            raise ValueError(f"papers() has no field {field!r}; use one of {', '.join(FIELDS)}, words")
    wanted = {field: _values(field, value) for field, value in where.items()}
    found = [
        entry
        for entry in entries()
        if all(entry.tag(field, corrected) in values for field, values in wanted.items())
        and all(word in _searched(entry) for word in words.lower().split())
    ]
    asked = [f"{field} {value}" for field, value in where.items()] + ([f'"{words}"'] if words else [])
    return PaperTable(found, ", ".join(asked), corrected, where)


def _values(field: str, asked: str) -> set[str]:
    """The entries of the table that a value asked for means."""
    asked = "-" if asked == NONE else asked
    known = sorted({entry.tag(field, corrected) for entry in entries() for corrected in (False, True)})
    same = {value for value in known if value.lower() == asked.lower()}
    found = same or {value for value in known if asked.strip() and asked.lower() in value.lower()}
    if not found:
        raise ValueError(f"{field}={asked!r} is not in the table; use one of {', '.join(known)}")
    return found


def _searched(entry: Entry) -> str:
    return f"{entry.paper.authors} {entry.paper.title} {entry.paper.key}".lower()


class PaperTable(Rich):
    """Rows of Table 2: a count, a cross-table of objects and localizers, and the list with links."""

    def __init__(self, found: list[Entry], asked: str = "", corrected: bool = False, where: dict | None = None) -> None:
        self.entries, self.asked, self.corrected, self.where = found, asked, corrected, dict(where or {})

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def keys(self) -> list[str]:
        """The papers' keys, each once."""
        return list(dict.fromkeys(entry.paper.key for entry in self.entries))

    def summary(self) -> str:
        tags = "tags as corrected" if self.corrected else "tags as the survey has them"
        what = f" with {self.asked}" if self.asked else ""
        return f"{len(self)} of {len(entries())} rows of Table 2{what}: {len(self.keys)} papers ({tags})"

    def counts(self, rows: str = "object", columns: str = "localizer") -> Table:
        """How many rows have each pair of tags; rows, columns: two of object, localizer, steerer, scenario."""
        for name, field in (("rows", rows), ("columns", columns)):
            if field not in AXES:
                raise ValueError(f"{name}={field!r}: use one of {', '.join(AXES)}")
        pairs = Counter((e.tag(rows, self.corrected), e.tag(columns, self.corrected)) for e in self.entries)
        down, across = (
            [value for value, _ in Counter(e.tag(field, self.corrected) for e in self.entries).most_common()]
            for field in (rows, columns)
        )
        grid = [[pairs[d, a] for a in across] + [sum(pairs[d, a] for a in across)] for d in down]
        grid.append([sum(column) for column in zip(*grid)] if grid else [0])
        top = max([pairs[pair] for pair in pairs], default=1)
        shade = [[n / top for n in line[:-1]] + [0.0] for line in grid[:-1]] + [[0.0] * len(grid[-1])]
        return Table(
            [[str(n) if n else "." for n in line] for line in grid],
            [_named(value) for value in down] + ["all"],
            [_named(value) for value in across] + ["all"],
            f"Rows of Table 2 by {rows} (down) and {columns} (across)",
            shade,
        )

    def text(self) -> str:
        lines = [self.summary(), self.counts().text()]
        for entry in self.entries[:LONG]:
            lines.append(f"- {entry.paper.line()} [{entry.paper.key}] {entry.paper.url}")
            lines.append("    " + ", ".join(_named(entry.tag(field)) for field in AXES))
            lines += [f"    known error: {correction.line()}" for correction in entry.corrections]
            lines.append("    taught in: " + ", ".join(_place(*place) for place in entry.taught()))
        if len(self) > LONG:
            lines.append(f"... and {len(self) - LONG} more rows; ask for fewer, or look at the table in a notebook")
        return "\n".join(lines)

    def html(self) -> str:
        head = f"<p><b>{escape(self.summary())}</b></p>"
        if not self.entries:
            return f"<div>{head}</div>"
        listed = self._list()
        if len(self) > LONG:
            listed = f"<details><summary>The {len(self)} rows</summary>{listed}</details>"
        return f"<div>{head}{self.counts().html()}{listed}</div>"

    def _list(self) -> str:
        cell = "text-align:left;vertical-align:top;padding:.2em .6em"
        columns = ("paper, and known errors of its row", ", ".join(AXES), "taught in")
        head = "".join(f'<th scope="col" style="{cell}">{escape(name)}</th>' for name in columns)
        body = ""
        for entry in self.entries:  # three columns: with one for each tag JupyterLab cut the last ones off
            paper = entry.paper
            by = escape(f"{paper.authors} {paper.year}")
            name = f'<a href="{escape(paper.url)}">{by}</a>. {escape(paper.title)}. <code>{escape(paper.key)}</code>'
            wrong = "".join(f"<br>known error: {escape(correction.line())}" for correction in entry.corrections)
            tags = "<br>".join(escape(_named(entry.tag(field))) for field in AXES)
            cells = [name + wrong, tags, "<br>".join(_link(*place) for place in entry.taught())]
            body += "<tr>" + "".join(f'<td style="{cell}">{text}</td>' for text in cells) + "</tr>"
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<div style="overflow-x:auto">{table}</div>'

    def _ipython_display_(self) -> None:
        """The static table, and menus below it where someone can use them."""
        from IPython.display import publish_display_data

        publish_display_data({"text/html": self.html(), "text/plain": self.text()})
        if interactive():
            _menus(self)


def _named(tag: str) -> str:
    return NONE if tag == "-" else tag


def _place(stem: str, section: str) -> str:
    return f"{title(stem)}, {section}" if section else title(stem)


def _link(stem: str, section: str) -> str:
    """A link beside the notebook that shows it, where that chapter exists; else its title and that it is planned."""
    if not _ready(stem):
        return escape(f"{title(stem)} (planned)")
    anchor = "#" + quote(section.replace(" ", "-")) if section else ""
    return f'<a href="{escape(stem)}.ipynb{anchor}">{escape(_place(stem, section))}</a>'


def _ready(stem: str) -> bool:
    """Does the chapter exist beside the notebook that asks, or in the repository around the current folder?"""
    from mi_course.cli.chapters import find_root

    root = find_root()
    folders = [Path("."), *([root / "chapters"] if root else [])]
    return any((folder / f"{stem}.ipynb").exists() for folder in folders)


def _menus(table: PaperTable) -> None:
    """Menus for the four axes; the list that they leave appears below them with the first choice."""
    try:
        import ipywidgets
        from IPython.display import display as show_widget
    except ImportError:
        return
    menus = {}
    for field in AXES:
        values = Counter(entry.tag(field, table.corrected) for entry in entries())
        options = [("any", "")] + [(f"{_named(value)} ({n})", value) for value, n in values.most_common()]
        chosen = _values(field, table.where[field]) if field in table.where else {""}
        first = next(iter(chosen)) if len(chosen) == 1 and chosen & set(values) else ""
        menus[field] = ipywidgets.Dropdown(options=options, value=first, description=field)
    output = ipywidgets.Output()

    def update(change: Any) -> None:
        where = {field: menu.value for field, menu in menus.items() if menu.value}
        bundle = papers(corrected=table.corrected, **where)._repr_mimebundle_()
        # As an output of the notebook, not of a widget: so links to chapters open them.
        output.outputs = ({"output_type": "display_data", "data": bundle, "metadata": {}},)

    for menu in menus.values():
        menu.observe(update, names="value")
    show_widget(ipywidgets.VBox([ipywidgets.HBox(list(menus.values())), output]))
