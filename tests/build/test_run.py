"""`make test` must fail when anything is broken: its steps, its summary, and the comparison of key numbers by nbval."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from tests import run
from tests.build.conftest import STEM


def step(name, code):
    return run.Step(name, [sys.executable, "-c", code])


@pytest.fixture
def steps(monkeypatch):
    made = [
        step("first", "print('== 3 passed in 1s ==')"),
        step("second", "raise SystemExit(3)"),
        step("third", "print('still here')"),
    ]
    monkeypatch.setattr(run, "STEPS", made)


def test_every_step_runs_and_one_failure_fails_it_all(steps, capfd):
    assert run.main([]) == 1
    summary = capfd.readouterr().out.split("=== summary ===")[1]
    assert "first        passed" in summary and "3 passed in 1s" in summary
    assert "second       FAILED" in summary and "third        passed" in summary
    assert summary.strip().splitlines()[-1].startswith("all          FAILED")


def test_passes_when_all_pass(steps, capfd):
    assert run.main(["first", "third"]) == 0
    assert "FAILED" not in capfd.readouterr().out


def test_a_step_that_does_not_exist_is_an_error(steps, capfd):
    assert run.main(["fourth"]) == 2


def test_strict_mode_reaches_the_solutions_only():
    strict = [item.name for item in run.STEPS if item.env.get("MI_COURSE_STRICT") == "1"]
    assert strict == ["solutions"]


@pytest.mark.slow
def test_nbval_passes_a_fresh_solution_and_refuses_a_changed_key_number_and_an_error(root, built_once):
    shutil.copytree(built_once, root, dirs_exist_ok=True)
    fresh, changed, broken = (root / "solutions" / f"{name}.ipynb" for name in (STEM, "changed", "broken"))
    assert "double of 21: 42" in (text := fresh.read_text())
    changed.write_text(text.replace("double of 21: 42", "double of 21: 43"))
    notebook = json.loads(text)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    code[0]["source"] += "\n1 / 0"
    broken.write_text(json.dumps(notebook))
    command = [part for part in run.NBVAL if part not in run.PARALLEL]
    done = subprocess.run([*command, fresh, changed, broken], cwd=root, capture_output=True, text=True)
    assert done.returncode == 1
    failed = re.findall(r"^FAILED solutions/(\w+)\.ipynb", done.stdout, re.MULTILINE)
    assert failed == ["changed", "broken"], done.stdout
