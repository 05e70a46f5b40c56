"""Citations, the known errors of Table 2, and the paper explorer."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from mi_course.cli.chapters import TABLE
from mi_course.cli.citations import well_formed
from mi_course.teach import cite, papers
from mi_course.teach.explorer import AXES, CHAPTERS, entries
from mi_course.teach.library import TAGS, Correction, _from_bib, library
from tests.teach.test_show import parsed

FOLDER = files("mi_course.teach")
ROWS = {row["n"]: row for row in json.loads((FOLDER / "papers.json").read_text(encoding="utf-8"))}
WRONG = json.loads((FOLDER / "corrections.json").read_text(encoding="utf-8"))


# --- citations -------------------------------------------------------------------------------------------------------


def test_cite_knows_table_2_and_the_bibliography():
    text = str(cite("arditi2024refusal", "zhang2026locate"))
    assert "Refusal in Language Models Is Mediated by a Single Direction" in text
    assert "Zhang et al. (2026). Locate, Steer, and Improve" in text
    parsed(cite("arditi2024refusal")._repr_mimebundle_()["text/html"])


def test_unknown_keys_are_errors():
    with pytest.raises(KeyError, match="arditi2024refusal"):
        cite("arditi2024refusals")
    with pytest.raises(ValueError, match="at least one key"):
        cite()


def test_every_work_is_whole_and_can_be_linked():
    assert len(ROWS) == 216
    assert sum(len(paper.rows) for paper in library().values()) == 216
    bib = (FOLDER / "references.bib").read_text(encoding="utf-8")
    assert len(list(_from_bib(bib))) == len(re.findall(r"^@", bib, flags=re.MULTILINE))
    assert {key: well_formed(paper) for key, paper in library().items() if not all(well_formed(paper).values())} == {}


def test_a_bibliography_with_a_fault_is_refused():
    entry = (
        "@misc{a2020,\n  author = {A, B},\n  year = {2020},\n  title = {T},\n  venue = {V},\n  url = {http://x.y},\n}\n"
    )
    (paper,) = _from_bib(entry)
    assert (paper.key, paper.authors, paper.year) == ("a2020", "A", 2020)
    with pytest.raises(ValueError, match="twice"):
        list(_from_bib(entry + entry))
    with pytest.raises(ValueError, match="lacks url"):
        list(_from_bib(entry.replace("  url = {http://x.y},\n", "")))


# --- known errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entry", WRONG["corrections"], ids=lambda entry: f"{entry['row']}-{entry['field']}")
def test_each_correction_is_of_a_row_that_says_what_it_corrects(entry):
    row = ROWS[entry["row"]]
    if entry["field"] == "key":
        assert entry["key"] == entry["correct"] and row["key"] == entry["survey"]
    else:
        assert entry["key"] == row["key"]
    if entry["field"] != "text":
        assert row[entry["field"]] == entry["survey"] != entry["correct"]
    if entry["field"] in TAGS and entry["correct"] is not None:
        assert entry["correct"] in {row[entry["field"]] for row in ROWS.values()}
    assert entry["basis"] in {"prose", "authors' list", "paper", "recollection"} and len(entry["why"]) > 7
    assert Correction(**entry) in library()[entry["key"]].corrections


def test_what_the_authors_list_says_otherwise_is_among_the_corrections():
    known = {(entry["row"], entry["field"]): entry["correct"] for entry in WRONG["corrections"]}
    for row in ROWS.values():
        for field, value in row.get("repo_differs", {}).items():
            assert sorted(known[row["n"], field].split(" & ")) == sorted(value.split(" & "))


def test_a_second_key_leads_to_the_same_paper():
    for alias, key in WRONG["aliases"].items():
        assert library()[alias] is library()[key] and alias in library() and alias not in list(library())
    assert cite("zhou2025roleattentionheadslarge").cited == cite("zhou2025on").cited


def test_a_row_with_the_key_of_another_paper_has_its_own():
    assert library()["du2024tst"].title.startswith("Towards Secure Tuning")
    assert library()["grains2507"].title.startswith("GrAInS")
    assert [row["n"] for row in library()["grains2507"].rows] == [32]
    assert library()["ashkboos2024quarot"].year == 2024


# --- the explorer ----------------------------------------------------------------------------------------------------


def test_filters_agree_with_the_file():
    found = papers(object="Neuron", localizer="gradient")
    wanted = [n for n, row in ROWS.items() if row["object"] == "Neuron" and row["localizing"] == "Gradient Detection"]
    assert [entry.row["n"] for entry in found.entries] == wanted != []
    assert len(papers()) == 216 and len(papers(object="MHA")) == 32  # not those of "FFN & MHA"
    assert len(papers(localizer="-")) == len(papers(localizer="none named")) == 3
    assert "arditi2024refusal" in papers(section="5.1.1", steerer="vector").keys
    assert papers(words="mediated REFUSAL").keys == ["arditi2024refusal"]


def test_counts_add_up_and_agree_with_the_survey():
    for corrected in (False, True):
        for rows in AXES:
            for columns in AXES:
                table = papers(corrected=corrected).counts(rows, columns)
                cells = [[int(cell.replace(".", "0")) for cell in line] for line in table.cells]
                assert all(sum(line[:-1]) == line[-1] for line in cells)
                assert all(sum(column[:-1]) == column[-1] for column in zip(*cells))
                assert cells[-1][-1] == 216
    table = papers().counts("localizer", "steerer")
    assert table.rows[0] == "Magnitude Analysis" and table.columns[0] == "Amplitude Manipulation"
    assert table.cells[0][0] == "48" and table.cells[0][-1] == "95"
    assert "." in table.cells[-2]  # an empty pair


def test_corrected_tags_move_rows_and_leave_the_survey_s_own_in_sight():
    (entry,) = papers(words="chen2024qrnca").entries
    assert entry.tag("localizer") == "Gradient Detection"
    assert entry.tag("localizer", corrected=True) == "Causal Attribution"
    assert "chen2024qrnca" in papers(localizer="Gradient").keys
    assert "chen2024qrnca" not in papers(localizer="Gradient", corrected=True).keys
    shown = papers(words="chen2024qrnca")
    for form in (shown.text(), shown.html()):
        assert "Gradient Detection -" in form and "Causal Attribution. The survey" in form
    moved = Counter(e.row["n"] for e in entries() for f in AXES if e.tag(f) != e.tag(f, corrected=True))
    assert set(moved) == {c["row"] for c in WRONG["corrections"] if c["field"] in TAGS and c["correct"] is not None}


def test_every_paper_is_linked_to_chapters_that_teach_its_method():
    stems = {entry.stem for entry in TABLE}
    assert {stem for taught in CHAPTERS.values() for stem in taught} <= stems
    assert set(CHAPTERS) >= {row[f] for row in ROWS.values() for f in (*TAGS, "scenario")} - {"-"}
    for entry in entries():
        places = [stem for stem, _ in entry.taught()]
        assert set(places) <= stems
        for field in AXES:
            assert set(CHAPTERS.get(entry.tag(field, corrected=True), [])) <= set(places)


def test_a_cited_paper_is_linked_to_the_sections_that_cite_it(monkeypatch, tmp_path):
    places = {"arditi2024refusal": [["00_pipeline", "4. Locate: a direction"]]}
    monkeypatch.setattr("mi_course.teach.course._course", lambda: {"citations": places})
    shown = papers(words="arditi2024refusal")
    assert shown.entries[0].taught()[0] == ("00_pipeline", "4. Locate: a direction")
    assert 'href="00_pipeline.ipynb#4.-Locate%3A-a-direction"' in shown.html()
    monkeypatch.chdir(tmp_path)  # no chapter here, and none in the repository around
    assert "00_pipeline.ipynb" not in shown.html() and "(planned)" in shown.html()


def test_the_table_is_well_formed_in_both_forms_and_folds_when_long():
    for shown in (papers(), papers(object="SAE"), papers(words="no such words")):
        parsed(shown.html())
        assert shown.summary() in shown.text()
    assert "<details>" in papers().html() and "<details>" not in papers(object="SAE").html()
    assert papers().html().count("<tr>") > 216
    assert "191 more rows" in papers().text()
    assert "0 of 216" in papers(words="no such words").text()


@pytest.mark.parametrize(
    "where, part",
    [
        ({"sektion": "5.1.1"}, "no field 'sektion'"),
        ({"object": "brain"}, "is not in the table; use one of .*Neuron"),
        ({"object": ""}, "is not in the table"),
    ],
)
def test_unknown_fields_and_values_are_errors(where, part):
    with pytest.raises(ValueError, match=part):
        papers(**where)
    with pytest.raises(ValueError, match="rows='year'"):
        papers().counts("year", "object")


def test_in_a_notebook_the_static_table_comes_first_and_menus_filter_it(monkeypatch):
    import ipywidgets

    shown = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data: shown.append(data))
    monkeypatch.setattr("IPython.display.display", lambda widget: shown.append(widget))
    papers(object="SAE")._ipython_display_()
    assert [set(data) for data in shown] == [{"text/html", "text/plain"}]  # nobody to click: no menus
    monkeypatch.setattr("mi_course.teach.explorer.interactive", lambda: True)
    papers(object="SAE Feature")._ipython_display_()
    box = shown[-1]
    assert isinstance(box, ipywidgets.VBox)
    menus, output = box.children
    assert [menu.value for menu in menus.children] == ["SAE Feature", "", "", ""]
    assert output.outputs == ()  # what it would say stands above
    menus.children[2].value = "Vector Arithmetic"
    assert papers(object="SAE Feature", steerer="Vector Arithmetic").text() == output.outputs[0]["data"]["text/plain"]
