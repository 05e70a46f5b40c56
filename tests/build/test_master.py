"""Every rule of the format has a master that breaks it, and the message says what to mend."""

from types import SimpleNamespace

import pytest

from mi_course.cli.master import MasterError, read_master
from tests.build.conftest import HINTS, registered


def problems(master) -> str:
    with pytest.raises(MasterError) as error:
        read_master(master)
    return str(error.value)


def test_a_well_formed_master_is_read(master):
    chapter = read_master(master)
    (exercise,) = chapter.exercises
    assert (exercise.name, exercise.difficulty, exercise.minutes, exercise.points) == ("projection.double", 2, 8, 2)
    assert exercise.function == "double"
    assert chapter.citations == ["known2024"]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("# # 09 Vocabulary projection", "# # 9 Projection", "first line must be '# 09 Vocabulary projection'"),
        (' label="objectives"', "", "no objectives"),
        ("# - say where the lens misleads\n", "", "no objectives"),
        (" difficulty=2", "", "no difficulty"),
        (" difficulty=2", " difficulty=7", "no difficulty"),
        (" minutes=8", "", "no minutes"),
        (" minutes=8", ' minutes="8"', "no minutes"),
        ("### Exercise: double", "### Double", "must start with '### Exercise: '"),
        ("[@known2024]", "[@unknown2024]", "unknown paper key 'unknown2024'"),
        ("[@known2024]", "[@known2024; @unknown2024]", "unknown paper key 'unknown2024'"),
        ("[@known2024]", "[@knwon2024]", "did you mean known2024?"),
        ("[@known2024]", "[@known2024, @other2024]", "'[@known2024, @other2024]' is no citation; write [@key]"),
        ("[@known2024]", "[see @known2024]", "is no citation"),
        ("[@known2024]", "[@]", "is no citation"),
        ("[@known2024]", "[@no_address]", "'no_address' has no valid address"),
        ("[@known2024]", "[@no_year]", "'no_year' has no valid year"),
        ("![a plot of a line]", "![]", "no alt text"),
        ("![a plot of a line](plot.png)", "<img src='plot.png'>", "no alt text"),
        ("![a plot of a line](plot.png)", "<img alt='' src='plot.png'>", "no alt text"),
        ("    ### BEGIN SOLUTION\n", "", "one region"),
        ("    ### END SOLUTION\n", "", "one region"),
        ("def double(x):", "def twice(x):", "does not define 'double'"),
        ('double = check("projection.double", double)', 'check("projection.double", double)', "must be one line"),
        ('check("projection.double", double)', 'check("projection.other", double)', "must be one line"),
        ('    Question("three", [("a", "no"), ("b", "yes", True)]),\n', "", "2 quiz questions"),
        ('label="setup"', 'label="Set up"', "must be a slug"),
        ('# %% tags=["nbval-check-output"]', '# %% label="setup"', "two cells are called 'setup'"),
        (' exercise="projection.double" difficulty=2 minutes=8', "", "without a text cell"),
    ],
)
def test_each_fault_is_named(master, edit, old, new, message):
    edit(old, new)
    assert message in problems(master)


def test_all_faults_are_named_at_once(master, edit):
    edit(" difficulty=2 minutes=8", "")
    edit("[@known2024]", "[@unknown2024]")
    assert problems(master).count("09_vocabulary_projection.py:") == 3


def test_several_works_in_one_citation_and_an_at_sign_that_is_none(master, edit):
    edit("[@known2024]", "[@other2023; @known2024], `[@code]`, x4@-1, [an address](mailto:a@b.org)")
    assert read_master(master).citations == ["other2023", "known2024"]


def test_minutes_count_exercises_and_reading(master, edit):
    edit("minutes=8", "minutes=80")
    edit("# Write `double(x)`.", "# Write `double(x)`. " + "word " * 1000)
    assert 1000 < read_master(master).words < 1100 and read_master(master).minutes == 85
    edit("word ", "word word word ")
    with pytest.raises(MasterError, match="95 minutes .*at most 90"):
        read_master(master)


def test_code_lines_fit_into_a_cell_and_prose_may_be_longer(master, edit):
    edit("# Write `double(x)`.", "# Write `double(x)`. " + "word " * 50)
    edit("y = x + x", "y = x + x  # " + "x" * 93)
    assert max(len(line) for line in read_master(master).cells[4].source.splitlines()) == 110
    edit("y = x + x", "y = x + x ")
    assert "1 code line(s) too long, the first with 111 columns; at most 110" in problems(master)


def test_hints_must_be_three(master):
    with pytest.raises(MasterError, match="2 hints"):
        read_master(master, registered=lambda name: SimpleNamespace(hints=["one", "two"], expected="x"))


def test_an_expected_result_must_be_given(master):
    with pytest.raises(MasterError, match="no expected result"):
        read_master(master, registered=lambda name: SimpleNamespace(hints=HINTS, expected=" "))


def test_an_exercise_without_a_registered_check_is_refused(master, edit):
    edit("projection.double", "projection.triple")
    assert "no check is registered" in problems(master)


def test_at_most_eight_exercises(master):
    text = master.read_text()
    start, end = text.index("# %% [markdown] exercise"), text.index('# %% tags=["nbval')
    block = text[start:end]
    more = "".join(block.replace("projection.double", f"projection.double{n}") for n in range(8))
    master.write_text(text[:end] + more + text[end:])
    with pytest.raises(MasterError, match="9 exercises"):
        read_master(master, registered=lambda name: registered("projection.double"))


def test_at_most_five_thousand_words(master, edit):
    edit("# Write `double(x)`.", "# " + "word " * 5001)
    assert "words of prose; at most 5000" in problems(master)


def test_a_solution_outside_a_function_is_refused(master, edit):
    body = '''    """Twice x."""
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION
'''
    edit("def double(x):\n" + body, "### BEGIN SOLUTION\ndouble = lambda x: 2 * x\n### END SOLUTION\n")
    assert "inside a function" in problems(master)


def test_a_master_outside_the_table_is_refused(master):
    other = master.with_name("97_other.py")
    other.write_text(master.read_text())
    assert "not in the table" in problems(other)


def test_ids_survive_edits_elsewhere_and_repeated_cells_differ(master, edit):
    before = [cell.id for cell in read_master(master).cells]
    edit("# Write `double(x)`.", "# Write `double(x)`. It is short.")
    edit("\n# %%\nquiz([", "\n# %%\npass\n\n# %%\npass\n\n# %%\nquiz([")
    after = [cell.id for cell in read_master(master).cells]
    assert set(before) < set(after)
    assert len(after) == len(set(after)) == len(before) + 2


def test_the_answer_must_follow_its_text(master, edit):
    edit("# Write `double(x)`.\n", "# Write `double(x)`.\n\n# %% [markdown]\n# More.\n")
    assert "must follow its text" in problems(master)
