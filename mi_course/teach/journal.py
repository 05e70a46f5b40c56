"""What a learner has done, kept in one small local file; nothing is sent anywhere.

The file is `$MI_COURSE_PROGRESS` (a path, or "off"), else `mi_course/progress.json` in the user's state folder. A
file that cannot be read or written never stops a chapter: a broken one is set aside as `progress.json.broken`, and
where nothing can be written the progress lasts as long as the session. Strict mode (builds, grading) writes nothing.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import Any

from .cards import Rich
from .exercises import chapters, names

__all__ = ["Progress", "forget", "note_check", "note_hint", "path", "progress"]

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


def _tries(name: str) -> int:
    tries = load().get(name, {}).get("tries", 0)
    return tries if isinstance(tries, int) else 0


def note_check(name: str, state: str) -> None:
    """Note the state of an exercise. What was done once stays done."""
    if load().get(name, {}).get("state") == "done":
        return
    _note(name, state=state, tries=_tries(name) + (state != "not started"))


def note_hint(name: str, n: int) -> None:
    _note(name, hints=n)


def forget() -> None:
    """Delete the progress file and start anew."""
    _session.clear()
    file = path()
    if file is not None:
        with suppress(OSError):
            file.unlink(missing_ok=True)


class Progress(Rich):
    """Exercises of every chapter with their state, as a table."""

    def __init__(self) -> None:
        kept = load()
        self.rows = [
            (chapter, name, kept.get(name, {}).get("state", "not started"), kept.get(name, {}).get("hints", 0))
            for chapter in chapters()
            for name in names(chapter)
        ]

    def summary(self) -> str:
        done = sum(state == "done" for _, _, state, _ in self.rows)
        return f"{done} of {len(self.rows)} exercises done"

    def text(self) -> str:
        width = max([len(name) for _, name, _, _ in self.rows], default=0)
        lines = [
            f"  {name:<{width}}  {state}" + (f"  ({hints} of 3 hints)" if hints else "")
            for _, name, state, hints in self.rows
        ]
        return "\n".join([self.summary(), *lines])

    def html(self) -> str:
        left = "style='text-align:left'"
        row = f"<tr><th scope='row' {left}>{{}}</th><td {left}>{{}}</td><td>{{}} of 3</td></tr>"
        body = "".join(row.format(escape(name), escape(state), hints) for _, name, state, hints in self.rows)
        head = "<tr><th scope='col'>exercise</th><th scope='col'>state</th><th scope='col'>hints seen</th></tr>"
        return f"<table><caption>{self.summary()}</caption><thead>{head}</thead><tbody>{body}</tbody></table>"


def progress() -> Progress:
    """The map of what is done; shows itself as the last line of a cell."""
    return Progress()
