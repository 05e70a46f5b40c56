"""The few environment variables that the teaching layer reads, and the question whether someone can click."""

from __future__ import annotations

import os

__all__ = ["strict", "interactive"]


def _on(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in {"", "0", "false", "no", "off"}


def strict() -> bool:
    """True with `MI_COURSE_STRICT=1`, and while nbgrader validates or grades: checks raise.

    Solutions are executed, and work is graded, in this mode.
    """
    return _on("MI_COURSE_STRICT") or bool(os.environ.get("NBGRADER_EXECUTION"))


def interactive() -> bool:
    """True in a notebook kernel of a person: not in strict mode, and not with `MI_COURSE_STATIC=1`.

    A kernel cannot tell whether a browser listens. So every widget of the course comes after a static form of the same
    content, and the builds, which run in strict mode, store the static form only.
    """
    if strict() or _on("MI_COURSE_STATIC"):
        return False
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")
