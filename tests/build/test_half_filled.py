"""The runs of half-filled notebooks find a chapter that stops where an answer is missing or wrong."""

import json
import subprocess
import sys

from tests.half_filled import ROOT

RUN = """
import json, sys
from pathlib import Path
from mi_course.cli.master import read_master
from tests.build.conftest import WORKS, registered
from tests.half_filled import run_chapter
chapter = read_master(Path(sys.argv[1]), registered=registered, works=WORKS)
print(json.dumps(run_chapter(chapter)))
"""


def report(master) -> dict[str, str]:
    command = [sys.executable, "-c", RUN, str(master)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_sound_chapter_runs_to_the_end_in_every_variant(master):
    assert report(master) == {
        "all solved": "",
        "projection.double left empty": "",
        "projection.double answered wrongly": "",
    }


def test_a_check_that_raises_is_found(master, edit):
    edit("except NotImplementedError:", "except KeyError:")
    found = report(master)
    assert found["all solved"] == found["projection.double answered wrongly"] == ""
    assert "projection-double-check" in (empty := found["projection.double left empty"])
    assert "NotImplementedError" in empty


def test_a_check_that_hands_back_the_wrong_answer_is_found(master, edit):
    edit("return answer if right else lambda x: 2 * x", "return answer")
    edit('print("double of 21:", double(21))', "pass")
    found = report(master)
    assert "not the reference" in found["projection.double answered wrongly"]


def test_a_later_cell_that_needs_the_learners_own_code_is_found(master, edit):
    edit('print("double of 21:", double(21))', 'assert double.__doc__ == "Twice x."')
    found = report(master)
    assert found["all solved"] == "" and "AssertionError" in found["projection.double left empty"]


def test_an_error_in_the_solved_chapter_is_found(master, edit):
    edit('print("double of 21:", double(21))', "1 / 0")
    assert "ZeroDivisionError" in report(master)["all solved"]
