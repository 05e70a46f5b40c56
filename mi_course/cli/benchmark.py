"""`mi-course benchmark localizers` and `benchmark steerers`: how the course's methods do, and yours beside them.

The rows of the course's own methods are stored (`python -m mi_course.world.scoreboard` and `...bakeoff` make them); a
function of yours is run now, on the same prompts:
    localizers   f(model, task, sites) -> array, higher = more important
    steerers     g(model, task, strength) -> context manager, made from the task's training split
"""

import importlib.util
import json
import math
import sys
from pathlib import Path

QUICK = {
    "seeds": (0,),
    "tasks": ("facts", "refusal_harmful", "ioi"),
    "objects": ("heads", "ffns"),
    "behaviours": ("refuse", "agree"),
}


def run(args) -> int:
    """Print the scoreboard. Raises ValueError when the function cannot be loaded or returns something unusable."""
    import torch

    torch.set_num_threads(1)
    return {"localizers": localizers, "steerers": steerers}[args.what](args)


def localizers(args) -> int:
    from ..world import scoreboard

    function = load_function(args.fn) if args.fn else None
    rows = [row for row in scoreboard.stored(args.edges) if not args.quick or _is_quick(row)]
    if function:
        rows = mine(function, args.fn.rpartition(":")[2], args.quick, args.edges) + rows
    table = scoreboard.summary(rows)
    if args.json:
        print(json.dumps({"rows": rows, "summary": _without_nan(table)}))
    else:
        print(as_text(table))
    return 0


def steerers(args) -> int:
    from ..world import bakeoff

    if args.edges:
        raise ValueError("--edges ranks edges and goes with localizers: mi-course benchmark localizers --edges")
    function = load_function(args.fn) if args.fn else None
    options = {"seeds": QUICK["seeds"], "tasks": QUICK["behaviours"]} if args.quick else {}
    rows = bakeoff.stored()
    if args.quick:
        rows = [row for row in rows if row["seed"] in QUICK["seeds"] and row["behaviour"] in QUICK["behaviours"]]
    if function:
        rows = list(bakeoff.bakeoff(function, args.fn.rpartition(":")[2], **options)) + rows
    table = bakeoff.summary(rows)
    if args.json:
        print(json.dumps({"rows": rows, "summary": table}))
    else:
        print(steerers_as_text(table))
    return 0


def steerers_as_text(table: list[dict]) -> str:
    """The bake-off, best score first."""
    lines = [
        f"steerers: means over {max(line['behaviours'] for line in table)} behaviours, strength chosen on validation, "
        "measured on test",
        f"  {'':22} {'score':>14} {'gain':>5} {'kept':>5} {'fluent':>6} {'worst':>6} {'wins':>4} {'seconds':>8} "
        f"{'bytes':>10}",
    ]
    for line in table:
        error = line["score_error"]
        score = f"{line['score']:.2f}" + (f" +- {error:.2f}" if error is not None else "")
        size = "" if line["bytes"] is None else f"{line['bytes']:,.0f}"
        lines.append(
            f"  {line['steerer']:22} {score:>14} {line['gain']:5.2f} {line['kept']:5.2f} {line['fluency']:6.2f} "
            f"{line['worst_score']:6.2f} {line['wins']:4d} {line['seconds']:8.2f} {size:>10}"
        )
    return "\n".join(lines)


def mine(function, name: str, quick: bool, edges: bool = False) -> list[dict]:
    """The rows of one function, on installed behaviours (T1) and exhaustive maps (T2; not for edges)."""
    from ..models import load
    from ..world import scoreboard

    base, options = load("lab"), {"seeds": QUICK["seeds"]} if quick else {}
    if edges:
        return list(scoreboard.t1(function, name, base=base, edges=True, **options))
    behaviours = [b for b in scoreboard.installed() if not quick or scoreboard.kind_of(b) != "neurons"]
    rows = list(scoreboard.t1(function, name, behaviours=behaviours, base=base, **options))
    if quick:
        options |= {"tasks": QUICK["tasks"], "objects": QUICK["objects"]}
    return rows + list(scoreboard.t2(function, name, base=base, **options))


def _is_quick(row: dict) -> bool:
    of_task = row["tier"] != "T2" or (row["task"] in QUICK["tasks"] and row["objects"] in QUICK["objects"])
    return row["seed"] in QUICK["seeds"] and of_task and row["objects"] != "neurons"


def load_function(where: str):
    """The function that `file.py:name` names. Raises ValueError that says what is missing."""
    file, colon, name = where.rpartition(":")
    if not colon or not name or not file:
        raise ValueError(f"--fn {where!r} is not FILE.py:NAME; write for instance --fn mine.py:my_localizer")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--fn: there is no file {file!r}; give a path from here, or from /")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None:
        raise ValueError(f"--fn: {file!r} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # dataclasses and pickling look their module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ValueError(f"--fn: {file} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        what = "is not callable" if hasattr(module, name) else "is not there"
        raise ValueError(f"--fn: {name!r} {what} in {file}; functions there: {', '.join(there) or 'none'}")
    return function


def as_text(table: list[dict]) -> str:
    """The summary as two tables, best first within each kind of object."""
    lines = []
    for tier, title, measures in (
        ("T1", "installed behaviours, against the answer key", ("auroc", "auroc_alone", "recall")),
        (
            "T1 edges",
            "edges of installed behaviours (base: by the sizes in lab, without the behaviour)",
            ("recall", "recall_base", "auroc", "auroc_base"),
        ),
        ("T2", "freely trained behaviours (against the exhaustive map, zero ablation)", ("spearman", "overlap")),
    ):
        if not any(line["tier"] == tier for line in table):
            continue
        lines += ["", f"{tier}: {title}"]
        for objects in ("heads", "ffns", "neurons", "states", "edges"):
            part = [line for line in table if line["tier"] == tier and line["objects"] == objects]
            if not part:
                continue
            names = " ".join(f"{measure:>15}" for measure in measures)
            lines.append(f"  {objects:<26} {names}  forwards backwards     ms (a prompt)")
            for line in sorted(part, key=lambda line: -line[measures[0]]):
                numbers = " ".join(f"{_with_error(line, measure):>15}" for measure in measures)
                cost = f"{line['forwards']:9.1f} {line['backwards']:9.1f} {1000 * line['seconds']:6.1f}"
                lines.append(f"    {line['localizer']:<24} {numbers} {cost}")
    return "\n".join(lines[1:])


def _with_error(line: dict, measure: str) -> str:
    error = line[f"{measure}_error"]
    return f"{line[measure]:.3f}" + ("" if math.isnan(error) else f" +- {error:.3f}")


def _without_nan(table: list[dict]) -> list[dict]:
    """JSON has no NaN."""
    return [{k: None if isinstance(v, float) and math.isnan(v) else v for k, v in line.items()} for line in table]
