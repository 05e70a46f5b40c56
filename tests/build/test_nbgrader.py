"""A chapter goes through nbgrader: its validation of the metadata, and one round from assignment to points.

Optional: needs `pip install -e '.[grading]'`, and is skipped without it.
"""

import os
import sys
from pathlib import Path

import nbformat
import pytest

from mi_course.cli.master import read_master
from mi_course.cli.notebooks import make_notebook, to_text
from mi_course.teach.library import library

ROOT = Path(__file__).parents[2]
GENERATED = sorted(file for folder in ("chapters", "solutions") for file in (ROOT / folder).glob("*.ipynb"))

MASTER = '''\
# %% [markdown]
# # 00 The whole pipeline in one hour
# A short chapter on real exercises.

# %% [markdown] label="objectives"
# - solve
# - be graded

# %% label="setup"
import sys

import torch

from mi_course.teach import Question, check, quiz

# %% [markdown] exercise="pipeline.mean_difference" difficulty=1 minutes=5
# ### Exercise: a direction
# Write it.

# %%
def mean_difference(harmful, harmless):
    """Mean harmful state minus mean harmless state."""
    ### BEGIN SOLUTION
    print("a warning that nbgrader would take for a failure", file=sys.stderr)
    return harmful.mean(0) - harmless.mean(0)
    ### END SOLUTION

# %%
mean_difference = check("pipeline.mean_difference", mean_difference)

# %%
direction = mean_difference(torch.ones(2, 3), torch.zeros(4, 3))

# %% [markdown] exercise="pipeline.refusal_score" difficulty=2 minutes=5
# ### Exercise: a score
# Write it.

# %%
def refusal_score(logits, refusal_ids):
    """Log-odds of refusing."""
    ### BEGIN SOLUTION
    others = [token for token in range(logits.shape[-1]) if token not in refusal_ids]
    return logits[:, refusal_ids].logsumexp(-1) - logits[:, others].logsumexp(-1)
    ### END SOLUTION

# %%
refusal_score = check("pipeline.refusal_score", refusal_score)

# %% [markdown] exercise="pipeline.ablate_direction" difficulty=3 minutes=5
# ### Exercise: without it
# Write it. It uses the direction that the first exercise gave.

# %%
def ablate_direction(x, r):
    """x without its part along r."""
    ### BEGIN SOLUTION
    assert direction.tolist() == [1, 1, 1]
    return x - (x @ r / (r @ r))[..., None] * r
    ### END SOLUTION

# %%
ablate_direction = check("pipeline.ablate_direction", ablate_direction)

# %%
quiz([Question(text, [("a", "no"), ("b", "yes", True)]) for text in "123"])  # Question( Question( Question(
'''
POINTS = {"pipeline-mean_difference-check": 1, "pipeline-refusal_score-check": 2, "pipeline-ablate_direction-check": 3}


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """The chapter and its solution, from real exercises."""
    from mi_course.teach import exercises

    monkeypatch.setattr("mi_course.cli.master.registered_exercise", exercises.get)
    monkeypatch.setattr("mi_course.cli.master.registered_works", library)
    file = tmp_path / "00_pipeline.py"
    file.write_text(MASTER)
    return {kind: make_notebook(read_master(file), kind) for kind in ("chapter", "solution")}


def validate(text):
    """nbgrader's own validation of a notebook."""
    pytest.importorskip("nbgrader")
    from nbgrader.nbgraderformat import reads
    from nbgrader.preprocessors import CheckCellMetadata

    notebook = reads(text, as_version=4)  # checks each cell against nbgrader's schema
    CheckCellMetadata().preprocess(notebook, {})  # ids are there, well formed and unique
    assert to_text(notebook) == text  # nothing had to be upgraded


@pytest.mark.parametrize("kind", ["chapter", "solution"])
def test_nbgrader_accepts_the_metadata(notebooks, kind):
    validate(to_text(notebooks[kind]))


@pytest.mark.parametrize("file", GENERATED, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_nbgrader_accepts_every_notebook_of_the_course(file):
    validate(file.read_text(encoding="utf-8"))


def test_nbgrader_refuses_metadata_that_is_not_its_own(notebooks):
    pytest.importorskip("nbgrader")
    from nbgrader.nbgraderformat import ValidationError, reads

    cell = next(cell for cell in notebooks["chapter"].cells if "nbgrader" in cell.metadata)
    cell.metadata.nbgrader["exercise"] = "a key of ours"
    with pytest.raises(ValidationError):
        reads(to_text(notebooks["chapter"]), as_version=4)


@pytest.fixture
def course(tmp_path, notebooks, monkeypatch):
    """A course folder with the solution as the source of assignment `one`, released."""
    pytest.importorskip("nbgrader")
    from nbgrader.apps import NbGraderAPI
    from nbgrader.coursedir import CourseDirectory

    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)  # nbgrader calls alembic by name
    for name in ("MI_COURSE_STRICT", "MI_COURSE_STATIC"):
        monkeypatch.delenv(name, raising=False)
    source = tmp_path / "course" / "source" / "one"
    source.mkdir(parents=True)
    (source / "00_pipeline.ipynb").write_text(to_text(notebooks["solution"]))
    api = NbGraderAPI(CourseDirectory(root=str(tmp_path / "course")))
    made = api.generate_assignment("one")
    assert made["success"], made["log"]
    return tmp_path / "course", api


def hand_in(folder, student, answers):
    """The released notebook with these answers, each from the line after its docstring on."""
    notebook = nbformat.read(folder / "release" / "one" / "00_pipeline.ipynb", as_version=4)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id", "").removesuffix("-answer")
        if name in answers:
            assert "raise NotImplementedError" in cell.source and "SOLUTION" not in cell.source
            cell.source = cell.source.replace("raise NotImplementedError()", answers[name])
    place = folder / "submitted" / student / "one"
    place.mkdir(parents=True)
    nbformat.write(notebook, place / "00_pipeline.ipynb")


SOLVED = {
    "pipeline-mean_difference": 'print("warning", file=sys.stderr); return harmful.mean(0) - harmless.mean(0)',
    "pipeline-refusal_score": "ids = set(refusal_ids); "
    "others = [i for i in range(logits.shape[-1]) if i not in ids]; "
    "return logits[:, refusal_ids].logsumexp(-1) - logits[:, others].logsumexp(-1)",
    "pipeline-ablate_direction": "assert direction.sum() == 3; return x - (x @ r / (r @ r))[..., None] * r",
}


@pytest.mark.slow
def test_a_half_filled_notebook_gets_the_points_of_what_is_solved(course):
    """One missing, one wrong, one right that builds on the missing one; checks raise without being told to."""
    from nbgrader.api import Gradebook

    folder, api = course
    last = "pipeline-ablate_direction"
    hand_in(folder, "half", {"pipeline-refusal_score": "return logits.sum(-1)", last: SOLVED[last]})
    hand_in(folder, "full", SOLVED)
    hand_in(folder, "none", {})
    for student in ("half", "full", "none"):
        graded = api.autograde("one", student)
        assert graded["success"], graded["log"]
    with Gradebook(f"sqlite:///{folder}/gradebook.db") as book:
        got = {}
        for student in ("half", "full", "none"):
            grades = book.find_submission_notebook("00_pipeline", "one", student).grades
            got[student] = {grade.name: grade.score for grade in grades}
    assert got["full"] == POINTS
    assert got["half"] == {name: 3 if "ablate" in name else 0 for name in POINTS}
    assert got["none"] == dict.fromkeys(POINTS, 0)
