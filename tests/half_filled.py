"""Half-filled notebooks run from top to bottom: `python -m tests.half_filled [00_pipeline ...]`.

For every exercise of a chapter: all the others solved and this one left empty; and for the first exercise also with a
wrong answer. (All empty and all solved are the notebooks themselves, which nbval runs.)

Running the whole chapter for every variant would take minutes. So one process runs the solved chapter, and where a
variant departs from it, at its answer, the process forks: the copy takes the other answer and runs the rest.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from mi_course.cli.build import find_masters
from mi_course.cli.master import REGION, STUB, Chapter, Exercise, read_master

ROOT = Path(__file__).parents[1]


def variants(chapter: Chapter, exercise: Exercise, source: str) -> dict[str, str]:
    """The other answers to one exercise: name of the variant -> source of the answer cell."""
    found = {f"{exercise.name} left empty": REGION.sub(rf"\1{STUB}", source)}
    if exercise is chapter.exercises[0]:
        found[f"{exercise.name} answered wrongly"] = wrong_answer(exercise, source)
    return found


def wrong_answer(exercise: Exercise, source: str) -> str:
    """The first wrong answer that tests/exercises has; where it has none, one that returns nothing."""
    module = exercise.name.partition(".")[0]
    if not (ROOT / "tests" / "exercises" / f"{module}.py").exists():
        return REGION.sub(r"\1return None", source)
    take = f'next(iter(WRONG["{exercise.name}"].values()))[0]'
    return f"from tests.exercises.{module} import WRONG\n\n{exercise.function} = {take}"


def run_chapter(chapter: Chapter) -> dict[str, str]:
    """Run the solved chapter and every variant in this process and its forks. Returns variant -> what failed, or ""."""
    shell = new_shell()
    cells = [cell for cell in chapter.cells if cell.cell_type == "code"]
    answers = {exercise.answer: exercise for exercise in chapter.exercises}
    failures: dict[str, str] = {}
    running: list[tuple[str, int, int]] = []
    for index, cell in enumerate(cells):
        exercise = answers.get(cell.id)
        for variant, source in (variants(chapter, exercise, cell.source) if exercise else {}).items():
            running.append((variant, *start_copy(shell, cells[index:], source, exercise)))
            # Two workers in all: two copies while this process waits, or one copy beside it.
            failures.update(collect(running, leave=1))
        failure = run_cell(shell, cell.id, cell.source)
        if failure:
            break
    failures.update(collect(running))
    return {"all solved": failure, **failures}


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


def start_copy(shell, cells: list, answer: str, exercise: Exercise) -> tuple[int, int]:
    """Fork: the copy runs `cells`, the first replaced by `answer`. Returns its pid and a pipe with its report."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write_end)
        return pid, read_end
    report = "the copy ended without a report"
    try:
        report = run_rest(shell, cells, answer, exercise)
    finally:
        os.write(write_end, report.encode()[:60_000])
        os._exit(0)


def run_rest(shell, cells: list, answer: str, exercise: Exercise) -> str:
    failure = run_cell(shell, exercise.answer, answer)
    given = shell.user_ns.get(exercise.function)
    for cell in cells[1:]:
        failure = failure or run_cell(shell, cell.id, cell.source)
        if cell.id == exercise.check and not failure and shell.user_ns[exercise.function] is given:
            failure = f"cell {cell.id!r}: check returned the unfinished answer, not the reference"
    return failure


def collect(running: list[tuple[str, int, int]], leave: int = 0) -> dict[str, str]:
    """Wait for the copies, oldest first, until `leave` are left, and read their reports."""
    found = {}
    while len(running) > leave:
        variant, pid, read_end = running.pop(0)
        with os.fdopen(read_end, "rb") as pipe:
            found[variant] = pipe.read().decode()
        os.waitpid(pid, 0)
    return found


def main(names: list[str]) -> int:
    """Run the named chapters (default: all), each in a fresh process in the folder of the chapters."""
    masters = find_masters(ROOT, names)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MI_COURSE_STATIC": "1", "MPLBACKEND": "agg", "PYTHONPATH": str(ROOT)}
    env.pop("MI_COURSE_STRICT", None)
    bad = total = 0
    for master in masters:
        start = time.perf_counter()
        command = [sys.executable, "-m", "tests.half_filled", "--one", str(master)]
        done = subprocess.run(command, cwd=ROOT / "chapters", env=env, capture_output=True, text=True)
        if done.returncode:
            print(done.stderr)
            report = {"the run itself": "ended with an error, see above"}
        else:
            report = json.loads(done.stdout.splitlines()[-1])
        for variant, failure in report.items():
            print(f"{master.stem}: {variant}: {failure or 'runs to the end'}")
        print(f"{master.stem}: {time.perf_counter() - start:.0f} s")
        total, bad = total + len(report), bad + sum(map(bool, report.values()))
    print(f"{bad} failed, {total - bad} passed" if total else "no chapter to run")
    return 1 if bad or not total else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(run_chapter(read_master(Path(sys.argv[2])))))
    else:
        raise SystemExit(main(sys.argv[1:]))
