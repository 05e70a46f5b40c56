"""The runs of half-filled notebooks find a chapter that stops where an answer is missing or wrong."""

import json

import pytest

from mi_course.cli.master import read_master
from tests.half_filled import in_copy, pattern, run_chapter


def report(master) -> dict[str, str]:
    """What the run says, in a fork: the session that the cells leave behind is not ours."""
    return json.loads(in_copy(lambda: json.dumps(run_chapter(read_master(master)))))


def test_a_sound_chapter_runs_to_the_end_in_every_variant(master):
    assert report(master) == {
        "half-filled": "",
        "projection.double solved": "",
        "projection.double left empty": "",
    }


def test_the_run_has_a_wrong_answer_and_every_other_exercise_solved():
    assert [pattern(number) for number in range(5)] == [
        "answered wrongly",
        "solved",
        "left empty",
        "solved",
        "left empty",
    ]


@pytest.mark.parametrize(
    "old, new, variant, part",
    [
        ("except NotImplementedError:", "except KeyError:", "left empty", "'projection-double-check': NotImplementedE"),
        ("return answer if right else lambda x: 2 * x", "return answer", "half-filled", "not the reference"),
        ("return answer if right else lambda", "return lambda", "solved", "check refused the solution"),
        ('print("double of 21:", double(21))', 'assert double.__doc__ == "Twice x."', "half-filled", "AssertionError"),
        ('print("double of 21:", double(21))', "1 / 0", "half-filled", "ZeroDivisionError"),
        ("    right = answer(2) == 4", "    HTML, right = 0, answer(2) == 4", "", ""),
        ("    try:\n        right", "    globals()['HTML'] = 0\n    try:\n        right", "solved", "changed HTML"),
        (
            "    try:\n        right",
            "    import random\n    random.random()\n    try:\n        right",
            "solved",
            "random",
        ),
    ],
)
def test_what_stops_or_changes_a_chapter_is_found(master, edit, old, new, variant, part):
    edit(old, new)
    found = report(master)
    failed = {name for name, failure in found.items() if failure}
    assert (failed == set()) if not variant else any(name.endswith(variant) for name in failed)
    assert any(part in failure for failure in found.values())
