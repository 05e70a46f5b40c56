"""What the build writes: the two notebooks, their metadata, what is stored and what is not."""

import json
import re
import shutil

import nbformat
import pytest

from mi_course.cli import main
from mi_course.cli.build import BuildError, build_chapter, course, execute, output_problems
from mi_course.cli.master import read_master
from mi_course.cli.notebooks import DISPLAYS, make_notebook, to_text
from tests.build.conftest import EXPECTED, HINTS, STEM

# nbgrader's own schema, version 3: these keys and no others.
NBGRADER_KEYS = {"schema_version", "grade", "solution", "locked", "task", "grade_id"}


def by_id(notebook):
    return {cell.id: cell for cell in notebook.cells}


@pytest.fixture
def chapter(master):
    return by_id(make_notebook(read_master(master), "chapter"))


@pytest.fixture
def solution(master):
    return by_id(make_notebook(read_master(master), "solution"))


def test_both_notebooks_have_the_same_cells_and_differ_only_in_the_answer(chapter, solution):
    assert list(chapter) == list(solution)
    assert [name for name in chapter if chapter[name].source != solution[name].source] == ["projection-double-answer"]


def test_the_answer_is_a_stub_that_keeps_signature_and_docstring(chapter, solution):
    stub = chapter["projection-double-answer"].source
    namespace = {}
    exec(stub, namespace)
    assert namespace["double"].__doc__ == "Twice x."
    with pytest.raises(NotImplementedError):
        namespace["double"](2)
    assert "SOLUTION" not in stub and "x + x" not in stub
    assert "### BEGIN SOLUTION" in solution["projection-double-answer"].source


def test_code_around_the_region_stays(master, edit):
    edit("    ### BEGIN SOLUTION", "    if x:\n        pass\n    ### BEGIN SOLUTION")
    edit("    ### END SOLUTION", "    ### END SOLUTION\n\n\nLATER = 1")
    stub = by_id(make_notebook(read_master(master), "chapter"))["projection-double-answer"].source
    assert '        pass\n    raise NotImplementedError("your turn")\n\n\nLATER = 1' in stub


def test_labels_expected_result_and_hints_are_written_under_the_exercise(chapter):
    text = chapter["projection-double"].source
    assert text.startswith("### Exercise: double a number\n\n*Difficulty 2 of 5, about 8 minutes.*")
    assert f"<details><summary>Expected result</summary>\n\n{EXPECTED}\n\n</details>" in text
    hints = re.findall(r"<details><summary>Hint (\d) of 3</summary>\n\n(.*?)\n\n</details>", text)
    assert hints == [(str(number), hint) for number, hint in enumerate(HINTS, start=1)]


def test_nbgrader_metadata_is_valid_and_unique(chapter):
    graded = {name: cell.metadata.nbgrader for name, cell in chapter.items() if "nbgrader" in cell.metadata}
    assert set(graded) == {"projection-double-answer", "projection-double-check"}
    answer, check = graded["projection-double-answer"], graded["projection-double-check"]
    assert set(answer) == NBGRADER_KEYS and set(check) == NBGRADER_KEYS | {"points"}
    assert answer["solution"] and not answer["grade"] and not answer["locked"]
    assert check["grade"] and check["locked"] and not check["solution"] and check["points"] == 2
    ids = [entry["grade_id"] for entry in graded.values()]
    assert len(set(ids)) == 2 and all(re.fullmatch(r"[A-Za-z0-9_-]+", grade_id) for grade_id in ids)
    assert chapter["projection-double-check"].metadata.editable is False


def test_citations_become_links_and_a_list(chapter):
    first = next(iter(chapter.values())).source
    assert "[Known 2024](https://example.org/known)" in first and "[@" not in first
    assert "- Known (2024). [A known paper](https://example.org/known)." in chapter["works-cited"].source


def test_several_works_become_several_links_and_code_stays(master, edit):
    edit("[@known2024]", "[@known2024; @other2023], `[@known2024]`")
    cells = make_notebook(read_master(master), "chapter").cells
    assert (
        "[Known 2024](https://example.org/known); [Other 2023](https://example.org/other), `[@known2024]`"
        in cells[0].source
    )
    assert cells[-1].source.count("\n- ") == 2


def test_cells_with_displays_are_not_compared_and_quiz_sources_are_hidden(chapter):
    tags = {name: cell.metadata.get("tags", []) for name, cell in chapter.items() if cell.cell_type == "code"}
    assert tags["projection-double-check"] == ["nbval-ignore-output"]
    assert ["nbval-check-output"] in tags.values()
    assert DISPLAYS.search("texts = steering_slider(model)") and not DISPLAYS.search("# show(\nshowing(x)")
    (quiz,) = [cell for cell in chapter.values() if cell.source.startswith("quiz(")]
    assert quiz.metadata.jupyter.source_hidden is True


def test_colab_cells_appear_only_when_the_repository_is_set(master):
    plain = make_notebook(read_master(master), "chapter")
    assert "colab" not in to_text(plain)
    cells = make_notebook(read_master(master), "chapter", "owner/course").cells
    assert "github/owner/course/blob/main/chapters/" + STEM in cells[0].source
    assert "google.colab" in cells[1].source and "git+https://github.com/owner/course" in cells[1].source
    assert [cell.id for cell in cells[2:]] == [cell.id for cell in plain.cells]


def test_one_setting_adds_the_colab_cells_to_both_notebooks(root, master, built_once, capsys):
    shutil.copytree(built_once, root, dirs_exist_ok=True)
    (root / "pyproject.toml").write_text('[tool.mi-course]\nrepository = "owner/course"\n')
    assert main(["build", "--check", "--root", str(root)]) == 1
    build_chapter(master, root)
    assert main(["build", "--check", "--root", str(root)]) == 0
    for folder in ("chapters", "solutions"):
        notebook = nbformat.read(root / folder / f"{STEM}.ipynb", as_version=4)
        assert [cell.id for cell in notebook.cells[:2]] == ["colab-badge", "colab-install"]
    (root / "pyproject.toml").write_text('[tool.mi-course]\nrepository = "https://example.org/owner/course"\n')
    assert main(["build", "--check", "--root", str(root)]) == 1
    assert 'write "owner/name"' in capsys.readouterr().err


def test_build_stores_outputs_in_the_solution_only(root, master):
    assert main(["build", "--root", str(root)]) == 0
    chapter = nbformat.read(root / "chapters" / f"{STEM}.ipynb", as_version=4)
    solution = nbformat.read(root / "solutions" / f"{STEM}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in chapter.cells)
    assert any("double of 21: 42" in str(cell.get("outputs")) for cell in solution.cells)
    assert all("execution" not in cell.metadata for cell in solution.cells)
    measured = json.loads((root / "chapters" / "measured.json").read_text())[STEM]
    assert measured["seconds"] > 0 and measured["memory_mb"] > 10
    assert measured["exercises"] == 1 and measured["exercise_minutes"] == 8


def test_building_twice_gives_the_same_bytes(root, master):
    def files():
        return [(root / folder / f"{STEM}.ipynb").read_bytes() for folder in ("chapters", "solutions")]

    build_chapter(master, root)
    once = files()
    build_chapter(master, root)
    assert files() == once


def test_solutions_are_executed_in_strict_mode_on_one_thread(master, edit):
    edit(
        'print("double of 21:", double(21))',
        'import os\nprint(os.environ["MI_COURSE_STRICT"], os.environ["OMP_NUM_THREADS"])',
    )
    notebook = make_notebook(read_master(master), "solution")
    execute(notebook, master.name, cwd=master.parent)
    assert any("1 1" in str(cell.get("outputs")) for cell in notebook.cells)


def test_a_wrong_solution_fails_names_the_cell_and_writes_nothing(root, master, edit):
    edit("y = x + x", "y = x + 3")
    with pytest.raises(BuildError, match="projection-double-check"):
        build_chapter(master, root)
    assert not list(root.glob("*/*.ipynb"))


def test_a_figure_without_alt_text_is_refused(root, master, edit):
    edit('show(None, alt="a line going up")', "HTML(\"<img src='data:,'>\")")
    with pytest.raises(BuildError, match="without alt text"):
        build_chapter(master, root)


def test_widgets_and_progress_bars_are_not_stored(root, master, edit):
    edit(
        'show(None, alt="a line going up")',
        "import sys\nimport ipywidgets\nprint('50%', file=sys.stderr)\ndisplay(ipywidgets.IntSlider())",
    )
    build_chapter(master, root)
    text = (root / "solutions" / f"{STEM}.ipynb").read_text()
    assert "widget-view" not in text and "50%" not in json.dumps([c.get("outputs") for c in json.loads(text)["cells"]])
    assert "widgets" not in json.loads(text)["metadata"]


def test_output_problems_sees_a_stored_error_and_unexecuted_cells(master):
    notebook = make_notebook(read_master(master), "solution")
    assert any("never executed" in problem for problem in output_problems(notebook, "x"))
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.outputs = [nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])]
    assert any("stored error, ValueError" in problem for problem in output_problems(notebook, "x"))


class TestCheck:
    """`build --check` never executes, and fails for every way in which files can drift from the master."""

    @pytest.fixture(autouse=True)
    def built(self, root, built_once, capsys):
        shutil.copytree(built_once, root, dirs_exist_ok=True)
        self.root, self.capsys = root, capsys
        self.files = {kind: root / kind / f"{STEM}.ipynb" for kind in ("chapters", "solutions")}

    def check(self, monkeypatch) -> tuple[int, list[str]]:
        monkeypatch.setattr("mi_course.cli.build.execute", lambda *a, **k: pytest.fail("--check must not execute"))
        code = main(["build", "--check", "--json", "--root", str(self.root)])
        return code, json.loads(self.capsys.readouterr().out)["problems"]

    def test_passes_on_a_fresh_build(self, monkeypatch):
        assert self.check(monkeypatch) == (0, [])

    def test_fails_when_the_master_changed(self, monkeypatch, edit):
        edit("# Write `double(x)`.", "# Write `double(x)`, please.")
        code, problems = self.check(monkeypatch)
        assert code == 1 and len(problems) == 2 and all("master has changed" in problem for problem in problems)

    @pytest.mark.parametrize("kind", ["chapters", "solutions"])
    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda cells: cells[2].update(source="pass"), "another source"),
            (lambda cells: cells[2].update(id="other"), "another id"),
            (lambda cells: cells[4]["metadata"].pop("nbgrader"), "another metadata"),
            (lambda cells: cells.pop(), "cells where its master gives"),
            (lambda cells: cells[2]["metadata"].update(execution={"iopub": "2026-01-01"}), "another metadata"),
        ],
    )
    def test_fails_when_a_notebook_was_edited(self, monkeypatch, kind, change, message):
        notebook = json.loads(self.files[kind].read_text())
        change(notebook["cells"])
        self.files[kind].write_text(to_text(nbformat.from_dict(notebook)))
        code, problems = self.check(monkeypatch)
        assert code == 1 and any(message in problem for problem in problems)

    def test_fails_when_a_chapter_has_outputs(self, monkeypatch):
        notebook = nbformat.read(self.files["chapters"], as_version=4)
        notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="seen")]
        self.files["chapters"].write_text(to_text(notebook))
        assert "stored outputs" in str(self.check(monkeypatch)[1])

    def test_fails_when_a_file_is_missing_or_has_no_master(self, monkeypatch):
        self.files["chapters"].rename(self.root / "chapters" / "08_probing.ipynb")
        problems = "\n".join(self.check(monkeypatch)[1])
        assert "is missing" in problems and "08_probing.ipynb has no master" in problems

    def test_fails_when_the_layout_was_changed_by_another_tool(self, monkeypatch):
        text = self.files["solutions"].read_text()
        self.files["solutions"].write_text(json.dumps(json.loads(text), indent=2))
        assert "layout" in str(self.check(monkeypatch)[1])

    def test_names_a_master_that_does_not_exist(self, monkeypatch):
        assert main(["build", "--check", "08_probing", "--root", str(self.root)]) == 1
        assert "no master solutions/08_probing.py" in self.capsys.readouterr().err


def test_the_table_in_the_readme_is_written_and_checked(root, built_once, capsys):
    shutil.copytree(built_once, root, dirs_exist_ok=True)
    marks = "<!-- chapters: written by mi-course build -->\nold\n<!-- end of chapters -->"
    (root / "README.md").write_text(f"before\n{marks}\nafter\n")
    assert main(["build", "--check", "--root", str(root)]) == 1
    assert "README.md" in capsys.readouterr().out
    assert main(["build", STEM, "--root", str(root)]) == 0
    text = (root / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert f"[09 Vocabulary projection](chapters/{STEM}.ipynb) | ready |" in text and "| 08 Probing | planned |" in text
    assert main(["build", "--check", "--root", str(root)]) == 0


def test_what_the_teaching_layer_looks_up_is_written_and_checked(root, built_once, edit):
    shutil.copytree(built_once, root, dirs_exist_ok=True)
    (root / "mi_course" / "teach").mkdir(parents=True)
    file = root / "mi_course" / "teach" / "course.json"
    cites = "[@other2023].\n# ## Later\n# `[@no_year]` [@known2024; @known2024]"
    edit("# Write `double(x)`.", f"# Write `double(x)` {cites}")
    assert course(root, write=False) != [] and not file.exists()
    assert course(root, write=True) == [] == course(root, write=False)
    kept = json.loads(file.read_text())
    assert kept["citations"] == {
        "known2024": [[STEM, "09 Vocabulary projection"], [STEM, "Later"]],
        "other2023": [[STEM, "What you will be able to do"]],
    }
    assert kept["exercises"] == {"projection.double": [STEM, 8]}
    edit("[@other2023]", "")
    assert "out of date" in course(root, write=False)[0]
