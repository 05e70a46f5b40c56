"""What a learner has done, kept in one small local file; nothing is sent anywhere.

The file is `$MI_COURSE_PROGRESS` (a path, or "off"), else `mi_course/progress.json` in the user's state folder. A
file that cannot be read or written never stops a chapter: a broken one is set aside as `progress.json.broken`, and
where nothing can be written the progress lasts as long as the session. Strict mode (builds, grading) writes nothing.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from .cards import Rich
from .course import exercise_places, title
from .exercises import chapters, names

__all__ = ["Progress", "forget", "note_check", "note_hint", "path", "progress"]

STATES = ("not started", "not yet", "done")
_session: dict[str, dict] = {}


def path() -> Path | None:
    """Where progress is kept; None when switched off."""
    asked = os.environ.get("MI_COURSE_PROGRESS", "").strip()
    if asked.lower() in {"off", "0", "none"}:
        return None
    if asked:
        return Path(asked).expanduser()
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA")
    with suppress(RuntimeError):  # no home folder
        return (Path(base) if base else Path.home() / ".local" / "state") / "mi_course" / "progress.json"
    return None


def load() -> dict[str, dict]:
    """Name -> {"state", "tries", "hints"} from the file and this session."""
    return {**_read(), **_session}


def _read() -> dict[str, dict]:
    file = path()
    if file is None:
        return {}
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))["entries"]
        return {str(name): dict(entry) for name, entry in kept.items()}
    except OSError:
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        with suppress(OSError):
            file.replace(file.with_name(file.name + ".broken"))
        return {}


def _note(name: str, **changes: Any) -> None:
    entries = load()
    entry = {**entries.get(name, {}), **changes}
    _session[name] = entries[name] = entry
    file = path()
    if file is None:
        return
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        fresh = file.with_name(f"{file.name}.{os.getpid()}")
        fresh.write_text(json.dumps({"version": 1, "entries": entries}, indent=1, sort_keys=True), encoding="utf-8")
        fresh.replace(file)


def note_check(name: str, state: str) -> None:
    """Note the state of an exercise. What was done once stays done."""
    before = _sound(load().get(name))
    if before["state"] != "done":
        _note(name, state=state, tries=before["tries"] + (state != "not started"))


def note_hint(name: str, n: int) -> None:
    _note(name, hints=n)


def forget() -> None:
    """Delete the progress file and start anew."""
    _session.clear()
    file = path()
    if file is not None:
        with suppress(OSError):
            file.unlink(missing_ok=True)


@dataclass(frozen=True)
class Row:
    """One exercise and what the learner has done with it; `chapter` is "" while no built chapter has it."""

    name: str
    chapter: str
    minutes: int
    state: str
    tries: int
    hints: int


class Progress(Rich):
    """Every chapter with how much of it is done, and its exercises with their state, tries and hints seen."""

    def __init__(self) -> None:
        kept, places = load(), exercise_places()
        known = [name for chapter in chapters() for name in names(chapter)]
        known.sort(key=lambda name: list(places).index(name) if name in places else len(places))
        self.rows = [Row(name, *places.get(name, ("", 0)), **_sound(kept.get(name))) for name in known]

    @property
    def chapters(self) -> dict[str, list[Row]]:
        """Title of a chapter -> its exercises, in the order of the course."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            name = title(row.chapter) if row.chapter else f"{row.name.partition('.')[0]} (in no chapter yet)"
            found.setdefault(name, []).append(row)
        return found

    def summary(self) -> str:
        left = [row for row in self.rows if row.state != "done"]
        told = f"{len(self.rows) - len(left)} of {len(self.rows)} exercises done"
        if not left:
            return told
        return f"{told}; about {sum(row.minutes for row in left)} minutes left; next: {left[0].name}"

    def text(self) -> str:
        width = max([len(row.name) for row in self.rows], default=0)
        lines = [self.summary()]
        for chapter, rows in self.chapters.items():
            lines.append(f"{chapter}: {_done(rows)}")
            lines += [f"  {row.name:<{width}}  {_told(row)}" for row in rows]
        return "\n".join(lines)

    def html(self) -> str:
        parts = [f"<p><b>{escape(self.summary())}</b></p>"]
        cell = "<td style='text-align:left;padding:.1em .8em'>{}</td>"
        for chapter, rows in self.chapters.items():
            body = "".join(f"<tr>{cell.format(escape(r.name))}{cell.format(escape(_told(r)))}</tr>" for r in rows)
            head = f"<summary>{escape(chapter)}: {_done(rows)}</summary>"
            opened = " open" if 0 < sum(row.state == "done" for row in rows) < len(rows) else ""
            parts.append(f"<details{opened}>{head}<table><tbody>{body}</tbody></table></details>")
        return f"<div>{''.join(parts)}</div>"


def _done(rows: list[Row]) -> str:
    return f"{sum(row.state == 'done' for row in rows)} of {len(rows)} done"


def _told(row: Row) -> str:
    more = [f"{row.tries} {'try' if row.tries == 1 else 'tries'}"] if row.tries else []
    more += [f"{row.hints} of 3 hints"] if row.hints else []
    return row.state + (f" ({', '.join(more)})" if more else "")


def _sound(entry: Any) -> dict[str, Any]:
    """State, tries and hints of an entry of the file, whatever someone wrote there."""
    entry = entry if isinstance(entry, dict) else {}
    count = {name: entry.get(name) for name in ("tries", "hints")}
    count = {name: n if isinstance(n, int) and n > 0 else 0 for name, n in count.items()}
    return {"state": entry.get("state") if entry.get("state") in STATES else "not started", **count}


def progress() -> Progress:
    """The map of what is done, chapter by chapter; shows itself as the last line of a cell."""
    return Progress()
