"""`mi-course build`: masters -> executed solutions and empty chapters. `--check` compares and executes nothing."""

import json
import os
import re
import time
from pathlib import Path

import jupytext
import nbformat
import psutil
from nbformat import NotebookNode

from mi_course.cli.chapters import find_root, markdown_table, overview, read_measured
from mi_course.cli.citations import cited_by_section
from mi_course.cli.master import Chapter, MasterError, images_without_alt, read_master
from mi_course.cli.notebooks import make_notebook, notebook_metadata, repository_setting, to_text

CELL_TIMEOUT = 300
WIDGETS = "application/vnd.jupyter.widget-view+json"
SECONDS = {"00_pipeline": 90, "04_superposition": 90, "11_which_localizer": 90}
SECONDS_DEFAULT = 45
COLOURS = re.compile(r"\x1b\[[0-9;]*m")
README_START, README_END = "<!-- chapters: written by mi-course build -->", "<!-- end of chapters -->"


class BuildError(ValueError):
    """A solution that does not run from top to bottom."""


def run(args) -> int:
    root = find_root(args.root)
    if root is None:
        raise ValueError("no repository around this folder (looked for solutions/ and pyproject.toml); use --root")
    masters = find_masters(root, args.chapter)
    problems, built = [], []
    for master in masters:
        if args.check:
            problems += check_chapter(master, root)
            continue
        try:
            built.append(build_chapter(master, root))
        except (MasterError, BuildError) as error:
            problems.append(str(error))
    if args.check and not args.chapter:
        problems += strays(root)
    problems += readme(root, write=not args.check) + course(root, write=not args.check)
    report(args, masters, built, problems)
    return 1 if problems else 0


def report(args, masters: list[Path], built: list[dict], problems: list[str]) -> None:
    if args.json:
        names = [master.stem for master in masters]
        print(json.dumps({"chapters": names, "built": built, "problems": problems}, indent=1))
        return
    for row in built:
        late = f" (more than the {row['budget']} s of its budget)" if row["seconds"] > row["budget"] else ""
        print(f"built {row['chapter']}: {row['seconds']:.1f} s{late}, {row['memory_mb']:.0f} MB, {row['words']} words")
    for problem in problems:
        print(problem)
    if args.check and not problems:
        print(f"{len(masters)} chapters are what their masters give")


def find_masters(root: Path, names: list[str]) -> list[Path]:
    """All masters, or those named; a name may leave out the ending. Raises ValueError for one that does not exist."""
    masters = sorted((root / "solutions").glob("[0-9]*.py"))
    if not names:
        return masters
    by_name = {master.stem: master for master in masters}
    wanted = [Path(name).stem for name in names]
    for name in wanted:
        if name not in by_name:
            raise ValueError(f"no master solutions/{name}.py; there are: {', '.join(by_name) or 'none'}")
    return [by_name[name] for name in wanted]


def build_chapter(master: Path, root: Path) -> dict:
    """Write the chapter, execute and write the solution, record what was measured. Returns that record.

    Raises MasterError or BuildError; then neither notebook has been touched.
    """
    chapter = read_master(master)
    repository = repository_setting(root)
    solution = make_notebook(chapter, "solution", repository)
    measured = execute(solution, master.name, cwd=root / "solutions")
    tidy(solution, chapter)
    problems = output_problems(solution, master.name)
    if problems:
        raise BuildError("\n".join(problems))
    (root / "chapters").mkdir(exist_ok=True)
    chapter_file(master, root).write_text(to_text(make_notebook(chapter, "chapter", repository)), encoding="utf-8")
    master.with_suffix(".ipynb").write_text(to_text(solution), encoding="utf-8")
    minutes = sum(exercise.minutes for exercise in chapter.exercises)
    row = {**measured, "exercises": len(chapter.exercises), "exercise_minutes": minutes, "words": chapter.words}
    table = {**read_measured(root), master.stem: row}
    (root / "chapters" / "measured.json").write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n")
    return {"chapter": master.stem, "budget": SECONDS.get(master.stem, SECONDS_DEFAULT), **row}


def chapter_file(master: Path, root: Path) -> Path:
    return root / "chapters" / f"{master.stem}.ipynb"


def execute(notebook: NotebookNode, name: str, cwd: Path) -> dict:
    """Run the notebook in place, strictly, on one thread. Returns {"seconds", "memory_mb"} after the start."""
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    env = {**os.environ, "MI_COURSE_STRICT": "1", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "HF_HUB_OFFLINE": "1"}
    memory, started, at = [0.0], [], [None]

    def before(cell, cell_index):
        at[0] = cell.id
        started.append(time.perf_counter())

    def after(cell, cell_index, execute_reply=None):
        process = psutil.Process(client.km.provisioner.process.pid)
        memory.append(process.memory_info().rss / 1e6)

    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(cwd)}},
        on_cell_execute=before,
        on_cell_executed=after,
    )
    try:
        client.execute(env=env)
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise BuildError(f"{name}: cell {at[0]!r} failed\n{COLOURS.sub('', str(error))}") from error
    seconds = time.perf_counter() - started[0] if started else 0.0
    return {"seconds": round(seconds, 1), "memory_mb": round(max(memory))}


def tidy(notebook: NotebookNode, chapter: Chapter) -> None:
    """Keep what a reader needs of an executed notebook: no widget state, progress bars, timing or kernel version."""
    notebook.metadata = notebook_metadata(chapter, "solution")
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        for output in cell.outputs:
            output.get("data", {}).pop(WIDGETS, None)
        cell.outputs = [output for output in cell.outputs if not is_noise(output)]


def is_noise(output: NotebookNode) -> bool:
    if output.output_type == "stream":
        return output.name == "stderr"
    return output.output_type in ("display_data", "execute_result") and not output.data


def check_chapter(master: Path, root: Path) -> list[str]:
    """What differs between a master and its two notebooks, and what is wrong with the stored outputs."""
    try:
        chapter = read_master(master)
    except MasterError as error:
        return error.problems
    repository = repository_setting(root)
    problems = []
    for kind, file in [("chapter", chapter_file(master, root)), ("solution", master.with_suffix(".ipynb"))]:
        name = file.relative_to(root).as_posix()
        if not file.exists():
            problems.append(f"{name} is missing; run `mi-course build {master.stem}`")
            continue
        expected, text = make_notebook(chapter, kind, repository), file.read_text(encoding="utf-8")
        stored = nbformat.reads(text, as_version=4)
        problems += [f"{name}: {difference}" for difference in differences(stored, expected, kind)]
        if text != to_text(stored):
            problems.append(f"{name}: has another layout than the build writes; run `mi-course build`")
        if kind == "solution":
            problems += output_problems(stored, name)
    if master.stem not in read_measured(root):
        problems.append(f"chapters/measured.json has no entry for {master.stem}; run `mi-course build {master.stem}`")
    return problems


def differences(stored: NotebookNode, expected: NotebookNode, kind: str) -> list[str]:
    """Where a stored notebook departs from its master; the first differing cell is named."""
    if stored.metadata != expected.metadata:
        stale = stored.metadata.get("mi_course", {}).get("master_sha256") != expected.metadata.mi_course.master_sha256
        return ["its master has changed since; run `mi-course build`" if stale else "its metadata was edited by hand"]
    found = []
    for old, new in zip(stored.cells, expected.cells):
        for key in ("id", "cell_type", "source", "metadata"):
            if old.get(key) != new.get(key):
                return [f"cell {new.id!r} has another {key} than its master gives; run `mi-course build`"]
        if kind == "chapter" and (old.get("outputs") or old.get("execution_count")):
            found.append(f"cell {new.id!r} has stored outputs; chapters have none")
    if len(stored.cells) != len(expected.cells):
        found.append(f"{len(stored.cells)} cells where its master gives {len(expected.cells)}; run `mi-course build`")
    return found


def output_problems(notebook: NotebookNode, name: str) -> list[str]:
    """Errors, unexecuted cells, widget state and images without alt text in an executed notebook."""
    problems = ["widget state is stored"] if "widgets" in notebook.metadata else []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        if cell.execution_count is None and cell.source.strip():
            problems.append(f"cell {cell.id!r} was never executed")
        for output in cell.outputs:
            data = output.get("data", {})
            if output.output_type == "error":
                problems.append(f"cell {cell.id!r} has a stored error, {output.ename}")
            if WIDGETS in data:
                problems.append(f"cell {cell.id!r} has widget state")
            if any(kind.startswith("image/") for kind in data) or images_without_alt(data.get("text/html", "")):
                problems.append(f"cell {cell.id!r} shows an image without alt text; use show(fig, alt=...)")
    return [f"{name}: {problem}" for problem in problems]


def readme(root: Path, write: bool) -> list[str]:
    """Keep the table of chapters in README.md up to date, between its marks; without `write`, say if it is not."""
    file = root / "README.md"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    if README_START not in text:
        return []
    head, _, rest = text.partition(README_START)
    current = f"{head}{README_START}\n\n{markdown_table(overview(root))}\n\n{README_END}{rest.partition(README_END)[2]}"
    if write and current != text:
        file.write_text(current, encoding="utf-8")
    return (
        ["README.md: its table of chapters is out of date; run `mi-course build`"]
        if current != text and not write
        else []
    )


def course(root: Path, write: bool) -> list[str]:
    """Keep course.json, where the teaching layer looks up what cites a paper and which chapter has an exercise; without
    `write`, say if it is out of date."""
    file = root / "mi_course" / "teach" / "course.json"
    if not file.parent.is_dir():
        return []
    citations: dict[str, list] = {}
    exercises: dict[str, list] = {}
    for master in find_masters(root, []):
        cells = jupytext.reads(master.read_text(encoding="utf-8"), fmt="py:percent").cells
        for key, headings in cited_by_section(cells).items():
            citations.setdefault(key, []).extend([master.stem, heading] for heading in headings)
        labels = [cell.metadata for cell in cells if "exercise" in cell.metadata]
        exercises |= {label["exercise"]: [master.stem, label.get("minutes", 0)] for label in labels}
    parts = {"citations": dict(sorted(citations.items())), "exercises": exercises}
    rows = {name: [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in part.items()] for name, part in parts.items()}
    blocks = [f" {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n }" for name, lines in rows.items()]
    current = "{\n" + ",\n".join(blocks) + "\n}\n"  # one line for each key
    stale = not file.exists() or file.read_text(encoding="utf-8") != current
    if stale and write:
        file.write_text(current, encoding="utf-8")
    return ["mi_course/teach/course.json is out of date; run `mi-course build`"] if stale and not write else []


def strays(root: Path) -> list[str]:
    """Notebooks that no master gives."""
    masters = {master.stem for master in find_masters(root, [])}
    files = [file for folder in ("chapters", "solutions") for file in sorted((root / folder).glob("*.ipynb"))]
    return [f"{file.relative_to(root).as_posix()} has no master" for file in files if file.stem not in masters]
