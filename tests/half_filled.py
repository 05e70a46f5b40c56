"""Half-filled notebooks run from top to bottom: `python -m tests.half_filled [00_pipeline ...]`.

One run per chapter, in a process of its own: the first exercise answered wrongly, the second solved, the third left
empty, the fourth solved, and so on. (All empty and all solved are the notebooks themselves, which nbval runs.)

At each exercise the process also forks, and the copies try the answers that the run does not take: solved, empty and
wrong. A copy runs the answer and its check, and then looks whether the session is what the run has: `check` gave back
the learner's own function when it was right and the reference when it was not, and no other name and no random state
has changed. What follows would be cells that the full, the empty or this run have executed in the same state, so the
copy ends there.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from mi_course.cli.build import find_masters
from mi_course.cli.master import REGION, STUB, Chapter, Exercise, read_master

ROOT = Path(__file__).parents[1]
WORKERS = 2
KINDS = ("solved", "left empty", "answered wrongly")


def pattern(number: int) -> str:
    """What the run does with exercise `number`, counted from 0."""
    return "solved" if number % 2 else "left empty" if number else "answered wrongly"


def answer_source(kind: str, exercise: Exercise, source: str) -> str:
    """The source of an answer cell, for one of KINDS."""
    if kind == "solved":
        return source
    return REGION.sub(rf"\1{STUB}", source) if kind == "left empty" else wrong_answer(exercise, source)


def wrong_answer(exercise: Exercise, source: str) -> str:
    """The first wrong answer that tests/exercises has; where it has none, one that returns nothing."""
    module = exercise.name.partition(".")[0]
    if not (ROOT / "tests" / "exercises" / f"{module}.py").exists():
        return REGION.sub(r"\1return None", source)
    take = f'next(iter(WRONG["{exercise.name}"].values()))[0]'
    return f"{source}\n\nfrom tests.exercises.{module} import WRONG\n\n{exercise.function} = {take}\ndel WRONG"


def run_chapter(chapter: Chapter) -> dict[str, str]:
    """Run the half-filled chapter, and the other answers in copies. Returns variant -> what failed, or ""."""
    shell = new_shell()
    cells = {cell.id: cell.source for cell in chapter.cells if cell.cell_type == "code"}
    exercises = {exercise.answer: exercise for exercise in chapter.exercises}
    checks = {exercise.check for exercise in chapter.exercises}  # each runs with its answer
    report = {"half-filled": ""}
    for name, source in cells.items():
        if name in exercises:
            exercise, check = exercises[name], cells[exercises[name].check]
            taken = pattern(chapter.exercises.index(exercise))
            answers = {kind: answer_source(kind, exercise, source) for kind in KINDS}
            for kind in KINDS:
                if kind != taken:
                    failure = in_copy(try_answer, shell, exercise, kind, answers[kind], check)
                    report[f"{exercise.name} {kind}"] = failure
            report["half-filled"] = try_answer(shell, exercise, taken, answers[taken], check)
        elif name not in checks:
            report["half-filled"] = run_cell(shell, name, source)
        if report["half-filled"]:
            break
    return report


def new_shell():
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.history_manager.enabled = False
    return shell


def run_cell(shell, name: str, source: str) -> str:
    """Run one cell quietly. Returns what went wrong, or ""."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        result = shell.run_cell(source)
    error = result.error_before_exec or result.error_in_exec
    return f"cell {name!r}: {type(error).__name__}: {error}" if error else ""


def try_answer(shell, exercise: Exercise, kind: str, answer: str, check: str) -> str:
    """Run an answer and its check. Returns what is wrong with what the check did to the session, or ""."""
    failure = run_cell(shell, exercise.answer, answer)
    given, before = shell.user_ns.get(exercise.function), session(shell)
    failure = failure or run_cell(shell, exercise.check, check)
    if failure:
        return failure
    at, got = f"cell {exercise.check!r}", shell.user_ns[exercise.function]
    if kind == "solved" and got is not given:
        return f"{at}: check refused the solution"
    if kind != "solved" and got is given:
        return f"{at}: check gave back an answer that is not done, not the reference"
    after = session(shell)
    changed = [name for name in before | after if before.get(name) != after.get(name) and name != exercise.function]
    return f"{at}: calling the answer changed {', '.join(sorted(changed))}" if changed else ""


def session(shell) -> dict[str, object]:
    """What later cells can see: the names with their objects, and the random states."""
    names = {name: id(value) for name, value in shell.user_ns.items() if not name.startswith("_")}
    states = {"the random state of Python": hash(random.getstate())}
    if torch := sys.modules.get("torch"):
        states["the random state of torch"] = hash(torch.random.get_rng_state().numpy().tobytes())
    return {**names, **states}


def in_copy(function, *args) -> str:
    """Call the function in a fork of this process, and return the text that it returns there."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        report = "the copy ended without a report"
        try:
            report = function(*args)
        finally:
            os.write(write_end, report.encode()[:60_000])
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        report = pipe.read().decode()
    os.waitpid(pid, 0)
    return report


def run_in_own_process(masters: list[Path]) -> Iterator[tuple[Path, float, dict[str, str]]]:
    """Run the chapters in forks of this process, WORKERS at a time: (master, seconds, report) of each as it ends."""
    waiting, running = list(masters), {}
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < WORKERS:
                master = waiting.pop(0)
                report = Path(folder, f"{master.stem}.json")
                if (pid := os.fork()) == 0:
                    write_report(master, report)
                running[pid] = master, time.perf_counter(), report
            pid, _ = os.wait()
            master, start, report = running.pop(pid)
            done = json.loads(report.read_text()) if report.exists() else {"half-filled": "the process died"}
            yield master, time.perf_counter() - start, done


def write_report(master: Path, report: Path) -> None:
    """Run one chapter in the folder of the chapters, write the report, and end the process."""
    try:
        os.chdir(ROOT / "chapters")
        found = run_chapter(read_master(master))
    except BaseException:
        found = {"half-filled": f"the run ended with an error\n{traceback.format_exc()}"}
    report.write_text(json.dumps(found))
    os._exit(0)


def prepare() -> None:
    """Once for all chapters: the settings that notebooks run under, and the imports that each of them makes anyway."""
    os.environ |= {"OMP_NUM_THREADS": "1", "MI_COURSE_STATIC": "1", "MPLBACKEND": "agg"}
    os.environ.pop("MI_COURSE_STRICT", None)
    sys.path.insert(0, str(ROOT))
    for name in ("IPython", "torch", "transformers.modeling_utils", "transformers.models.gpt2.modeling_gpt2"):
        importlib.import_module(name)
    gc.freeze()  # the forks share these modules


def main(names: list[str]) -> int:
    """Run the named chapters (default: all)."""
    masters = find_masters(ROOT, names)
    bad = total = 0
    prepare()
    for master, seconds, report in run_in_own_process(masters):
        for variant, failure in report.items():
            if failure:
                print(f"{master.stem}: {variant}: {failure}")
        failed = sum(map(bool, report.values()))
        print(f"{master.stem}: {seconds:.0f} s, {len(report)} variants, {failed or 'none'} failed", flush=True)
        total, bad = total + len(report), bad + failed
    print(f"{bad} failed, {total - bad} passed" if total else "no chapter to run")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
