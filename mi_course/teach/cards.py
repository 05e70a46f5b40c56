"""What the course shows a learner: cards with a rich and a plain form.

A card says the same thing in HTML and in plain text, and it never relies on colour alone: the state is always written
out. The HTML uses inline styles and inherits the text colour, so it is readable in light and dark themes and after
export.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import escape
from typing import Any

__all__ = ["Card", "Rich", "display"]


def with_code(text: str) -> str:
    """Text for HTML; what stands in `backticks` is set as code, as in the prose of the chapters."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", escape(text))


# Okabe-Ito colours: told apart under the common kinds of colour blindness.
TONES = {"done": "#009E73", "not yet": "#D55E00", "not started": "#0072B2", "note": "#777777"}


class Rich:
    """Base of everything that shows itself: subclasses give `html()` and `text()`."""

    def html(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} must define html()")

    def text(self) -> str:
        raise NotImplementedError(f"{type(self).__name__} must define text()")

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return {"text/html": self.html(), "text/plain": self.text()}

    def __repr__(self) -> str:
        return self.text()

    def __str__(self) -> str:
        return self.text()


@dataclass(repr=False)
class Card(Rich):
    """One message to the learner.

    `state` is one of `TONES`; `rows` are (label, text) pairs; `more` are (label, text) pairs that start folded in HTML;
    `banner` is a line that must not be overlooked.
    """

    title: str
    state: str = "note"
    rows: list[tuple[str, str]] = field(default_factory=list)
    more: list[tuple[str, str]] = field(default_factory=list)
    banner: str = ""

    def heading(self) -> str:
        return self.title if self.state == "note" else f"{self.state.upper()}: {self.title}"

    def html(self) -> str:
        row = '<div style="margin-top:.35em"><b>{}:</b> <span style="white-space:pre-wrap">{}</span></div>'
        fold = (
            '<details style="margin-top:.35em"><summary>{}</summary><div style="white-space:pre-wrap;margin:.3em 0 0 '
            '1em">{}</div></details>'
        )
        parts = [f'<div style="font-weight:600">{escape(self.heading())}</div>']
        parts += [row.format(escape(label), with_code(text)) for label, text in self.rows]
        if self.banner:
            parts.append(
                f'<div style="border:2px dashed;padding:.3em .6em;margin-top:.5em">{with_code(self.banner)}</div>'
            )
        parts += [fold.format(escape(label), with_code(text)) for label, text in self.more]
        style = f"border-left:6px solid {TONES[self.state]};padding:.5em .9em;margin:.4em 0;max-width:60em"
        return f'<div role="note" style="{style}">{"".join(parts)}</div>'

    def text(self) -> str:
        lines = [self.heading()]
        for label, text in self.rows + self.more:
            first, *rest = text.splitlines() or [""]
            lines += [f"  {label}: {first}", *(f"    {line}" for line in rest)]
        if self.banner:
            lines.append(f"  *** {self.banner} ***")
        return "\n".join(lines)


def display(item: Rich) -> None:
    """Show `item` now: through IPython where it runs, else printed as plain text."""
    try:
        from IPython import get_ipython
        from IPython.display import display as show_in_ipython
    except ImportError:
        print(item.text())
        return
    if get_ipython() is None:
        print(item.text())
    else:
        show_in_ipython(item)
