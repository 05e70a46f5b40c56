"""From a master that has been read to the two notebooks: the empty chapter, and the solution before it is executed.

Both have the same cells with the same ids; they differ in the answers and, once executed, in the outputs.
"""

import re
import tomllib
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from mi_course.cli.citations import with_links, works_cited
from mi_course.cli.master import QUIZ_CALL, REGION, STUB, Chapter, Exercise, slug

# What these print differs between a learner's run and ours, or is a picture, which nbval cannot compare.
DISPLAYS = re.compile(r"^[^#\n]*\b(show|quiz|check|steering_slider|circuitsvis|papers|progress)\(", re.MULTILINE)
COMPARED, NOT_COMPARED = "nbval-check-output", "nbval-ignore-output"


def make_notebook(chapter: Chapter, kind: str, repository: str = "") -> NotebookNode:
    """The notebook without outputs. kind: "chapter" (exercises empty) or "solution" (answers in place).

    repository: "owner/name" on GitHub for the Colab badge and installation; both are left out while it is empty.
    """
    by_cell = {cell: ex for ex in chapter.exercises for cell in (ex.text, ex.answer, ex.check)}
    cells = [make_cell(cell, chapter, by_cell.get(cell.id), kind) for cell in chapter.cells]
    if chapter.citations:
        cells.append(new_markdown_cell(works_cited(chapter.citations, chapter.works), id="works-cited"))
    if repository:
        cells[:0] = colab_cells(chapter.stem, repository)
    notebook = new_notebook(cells=cells)
    notebook.nbformat_minor = 5
    notebook.metadata = notebook_metadata(chapter, kind)
    nbformat.validate(notebook)
    return notebook


def notebook_metadata(chapter: Chapter, kind: str) -> NotebookNode:
    return nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            "mi_course": {"chapter": chapter.stem, "kind": kind, "master_sha256": chapter.sha256},
        }
    )


def make_cell(cell: NotebookNode, chapter: Chapter, exercise: Exercise | None, kind: str) -> NotebookNode:
    """One cell of the notebook: text with links and hints, or code with its solution in place or taken out."""
    if cell.cell_type == "markdown":
        source = exercise_text(cell.source, exercise) if exercise else cell.source
        made = new_markdown_cell(with_links(source, chapter.works), id=cell.id)
    else:
        empty = kind == "chapter" and exercise and cell.id == exercise.answer
        made = new_code_cell(empty_answer(cell.source) if empty else cell.source, id=cell.id)
    made.metadata = nbformat.from_dict(cell_metadata(cell, exercise))
    return made


def exercise_text(source: str, exercise: Exercise) -> str:
    """The author's text with the labels under its heading; the expected result and the hints, folded, under it all."""
    heading, _, body = source.partition("\n")
    labels = f"*Difficulty {exercise.difficulty} of 5, about {exercise.minutes} minutes.*"
    folded = {"Expected result": exercise.expected}
    folded |= {f"Hint {number} of {len(exercise.hints)}": hint for number, hint in enumerate(exercise.hints, start=1)}
    parts = [f"<details><summary>{title}</summary>\n\n{text}\n\n</details>" for title, text in folded.items()]
    return "\n\n".join([heading, labels, body.strip("\n"), *parts])


def empty_answer(source: str) -> str:
    """Replace the solution region by a stub that raises, at the same indentation."""
    return REGION.sub(lambda region: region.group(1) + STUB, source)


def cell_metadata(cell: NotebookNode, exercise: Exercise | None) -> dict:
    """Tags, the names of our own, and what nbgrader needs (schema 3, which allows no keys of ours inside it)."""
    tags = list(cell.metadata.get("tags", []))
    if cell.cell_type == "code" and DISPLAYS.search(cell.source) and COMPARED not in tags and NOT_COMPARED not in tags:
        tags.append(NOT_COMPARED)
    metadata: dict = {"tags": tags} if tags else {}
    if cell.cell_type == "code" and QUIZ_CALL.search(cell.source):
        metadata["jupyter"] = {"source_hidden": True}  # the reasons are in the source
    if exercise is None:
        return metadata
    part = {exercise.text: "text", exercise.answer: "answer", exercise.check: "check"}[cell.id]
    metadata["mi_course"] = {"exercise": exercise.name, "part": part}
    if part == "text":
        metadata["mi_course"] |= {"difficulty": exercise.difficulty, "minutes": exercise.minutes}
    if part == "answer":
        metadata["nbgrader"] = nbgrader(f"{slug(exercise.name)}-answer", solution=True)
    if part == "check":
        metadata["nbgrader"] = nbgrader(f"{slug(exercise.name)}-check", grade=True, locked=True, points=exercise.points)
        metadata |= {"deletable": False, "editable": False}
    return metadata


def nbgrader(grade_id: str, grade=False, solution=False, locked=False, **points) -> dict:
    roles = {"grade": grade, "solution": solution, "locked": locked, "task": False}
    return {"schema_version": 3, "grade_id": grade_id, **roles, **points}


def colab_cells(stem: str, repository: str) -> list[NotebookNode]:
    """A badge that opens the chapter on Colab, and the one cell that installs the package there and nowhere else."""
    address = f"https://colab.research.google.com/github/{repository}/blob/main/chapters/{stem}.ipynb"
    badge = f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
    # The dependencies are left alone where Colab has them: changing its torch breaks more than it mends.
    install = (
        f'import sys\n\nif "google.colab" in sys.modules:\n    %pip install -q git+https://github.com/{repository}'
    )
    return [new_markdown_cell(badge, id="colab-badge"), new_code_cell(install, id="colab-install")]


def repository_setting(root: Path) -> str:
    """`owner/name` from `[tool.mi-course] repository` in pyproject.toml; empty while it is not set."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    repository = settings.get("tool", {}).get("mi-course", {}).get("repository", "")
    if repository and not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise ValueError(f'[tool.mi-course] repository is {repository!r}; write "owner/name", without an address')
    return repository


def to_text(notebook: NotebookNode) -> str:
    """The file as it is stored: byte-identical for identical notebooks."""
    return nbformat.writes(notebook, indent=1, sort_keys=True).rstrip("\n") + "\n"
