"""Cards, figures, tables, quizzes, citations, progress and widgets."""

import base64
import json
import os
import re
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from mi_course.evaluate import null_band
from mi_course.teach import bars, check, curves, heatmap, lens_table, progress, quiz, show, widgets
from mi_course.teach import side_effects as side_effect_figure
from mi_course.teach.cards import Card
from mi_course.teach.plots import LARGEST_PNG, Table, picture
from mi_course.teach.quizzes import Question


class Balanced(HTMLParser):
    """Fails when tags are not closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.images = [], []

    def handle_starttag(self, tag, attributes):
        if tag == "img":
            self.images.append(dict(attributes))
        elif tag not in ("br", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return parser


def data_of(figure):
    """The image as an array, to see that something is drawn."""
    figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())


# --- cards -----------------------------------------------------------------------------------------------------------


def test_a_card_says_the_same_in_html_and_text_and_escapes():
    card = Card("toy.x", "not yet", [("Got", "<b> & 1\nsecond line")], [("Expected result", "0")], banner="REFERENCE")
    bundle = card._repr_mimebundle_()
    parsed(bundle["text/html"])
    assert "NOT YET: toy.x" in bundle["text/html"] and "NOT YET: toy.x" in bundle["text/plain"]
    assert "&lt;b&gt; &amp; 1" in bundle["text/html"]
    assert "REFERENCE" in bundle["text/html"] and "*** REFERENCE ***" in bundle["text/plain"]
    code = Card("toy.x", rows=[("Got", "`a < b` and a lone ` mark")])
    assert "<code>a &lt; b</code> and a lone ` mark" in code.html() and "`a < b`" in code.text()
    assert "background" not in bundle["text/html"]  # inherits the theme: readable on dark and light


# --- figures ---------------------------------------------------------------------------------------------------------

TOKENS = ["<bos>", "how", "to", "poison", "the", "well", "?"]


def figures():
    g = np.random.default_rng(0)
    x = np.linspace(-2, 2, 9)
    return {
        "heads": heatmap(g.normal(size=(6, 4)), xlabel="head", ylabel="layer", marked=np.eye(6, 4) > 0),
        "tokens": heatmap(torch.rand(6, 7), columns=TOKENS, unit="effect"),
        "large": heatmap(g.normal(size=(60, 256))),
        "with nan": heatmap([[1.0, float("nan")], [0.0, 2.0]]),
        "bars": bars({"direction": -9.0, "L3H1": 0.2}, null=g.normal(size=20), xlabel="effect"),
        "curves": curves(x, {"a": x, "b": x**2}, null=g.normal(size=(9, 9)), bands={"a": (x - 1, x + 1)}, neutral=0),
        "side effects": side_effect_figure(g.normal(size=(3, 9)), null=g.normal(size=(20, 9))),
    }


@pytest.mark.parametrize("name", figures())
def test_figures_are_small_and_carry_their_alt_text(name):
    shown = picture(figures()[name], alt='What "one" sees', reading="How to read it.")
    assert len(shown.png) <= LARGEST_PNG
    (image,) = parsed(shown.html()).images
    assert image["alt"] == 'What "one" sees'
    assert base64.b64decode(image["src"].partition(",")[2]) == shown.png
    assert "How to read it." in shown.html()
    assert shown.text() == '[Figure: What "one" sees]\nHow to read it.'
    assert set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}  # no bare image/png without alt text


def test_figures_are_the_same_on_every_run():
    first, second = (picture(figures()["bars"], alt="bars").png for _ in range(2))
    assert first == second


@pytest.mark.parametrize("alt", ["", "  "])
def test_missing_alt_text_raises(alt):
    with pytest.raises(ValueError, match="alt is missing"):
        show(heatmap([[1.0]]), alt=alt)
    with pytest.raises(TypeError, match="matplotlib"):
        show([1, 2], alt="numbers")


def test_show_takes_axes_of_pyplot_and_closes_their_figure(capsys):
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    _, axes = plt.subplots()
    show(axes, alt="empty axes")
    assert plt.get_fignums() == []
    assert "[Figure: empty axes]" in capsys.readouterr().out


def test_numbers_are_written_into_small_grids_only():
    def written(figure):
        return [text.get_text() for text in figure.axes[0].texts]

    assert written(heatmap([[1.234, -0.001]])) == ["1.23", "0.00"]
    assert written(heatmap(np.zeros((20, 20)))) == []
    assert written(heatmap([[1.0, 2.0]], marked=[[False, True]])) == ["1.00", "2.00*"]


def test_bars_outside_the_null_band_are_marked_without_colour():
    for null in (null_band([0.0, 1.0, -1.0]), (-2.0, 2.0), [0.0, 1.0, -1.0]):
        axes = bars({"in": 1.9, "out": -2.1}, null=null).axes[0]
        assert [text.get_text() for text in axes.texts] == ["1.9", "-2.1*"]
        assert [bar.get_hatch() for bar in axes.containers[0]] == [None, "///"]
    assert bars({"a": 5.0}).axes[0].texts[0].get_text() == "5"  # without a band nothing is marked


def test_bars_that_are_all_zero_have_room_for_their_numbers():
    axes = bars({"a": 0.0, "b": 0.0}).axes[0]
    low, high = axes.get_xlim()
    assert low < -0.5 and high > 0.5 and [text.get_text() for text in axes.texts] == ["0", "0"]


def test_lines_differ_in_more_than_colour():
    lines = curves([0, 1], {name: [0, 1] for name in "abcde"}).axes[0].get_lines()
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == 5


def test_side_effects_marks_what_leaves_its_own_null_band():
    null = np.array([[0.0, 0.0], [1.0, 0.1], [-1.0, -0.1]])  # bands +-2 and +-0.2
    axes = side_effect_figure([[1.9, 0.19], [2.1, 0.21]], null=null).axes[0]
    assert [text.get_text() for text in axes.texts] == ["1.90", "0.19", "2.10*", "0.21*"]


@pytest.mark.parametrize(
    "call, part",
    [
        (lambda: heatmap([1.0]), "2 dimension"),
        (lambda: heatmap([[1.0, 2.0]], columns=["a"]), "1 labels for 2"),
        (lambda: heatmap([[1.0, 2.0]], marked=[[True]]), "marked"),
        (lambda: bars([1.0], null=[1.0, 2.0]), "at least three"),
        (lambda: curves([0, 1], {"a": [1.0]}), "1 values for 2 points"),
        (lambda: lens_table([["a"]], [[0.1, 0.2]], ["x"]), "probabilities has shape"),
        (lambda: Table([["a"]], ["r"], ["c"], ""), "caption is empty"),
    ],
)
def test_bad_input_is_named(call, part):
    with pytest.raises(ValueError, match=part):
        call()


def test_lens_table_has_the_last_layer_on_top_and_real_text():
    table = lens_table([["a", "<x>"], ["paris", "rome"]], [[0.1, 0.2], [0.9, 0.8]], ["p0", "p1"], target=" paris")
    parsed(table.html())
    assert "&lt;x&gt; 0.20" in table.html() and "<caption" in table.html()
    lines = table.text().splitlines()
    assert lines[2].split() == ["1", "*paris", "0.90*", "rome", "0.80"]
    assert table.html().count("<b>") == 1


# --- quizzes ---------------------------------------------------------------------------------------------------------

ASKED = [
    Question("Why?", [("because", "yes, it is"), ("<no>", "no, it is not", True)]),
    Question("Who?", [("I", "r1", True), ("you", "r2")]),
]


def test_quiz_gives_a_reason_for_every_option_in_both_forms():
    shown = quiz(ASKED)
    parsed(shown.html())
    for reason in ("Not right: yes, it is", "Right: no, it is not", "Right: r1", "Not right: r2"):
        assert reason in shown.text() and reason in shown.html()
    assert "&lt;no&gt;" in shown.html()
    assert "<script" not in shown.html() and set(shown._repr_mimebundle_()) == {"text/html", "text/plain"}


def test_quiz_answers_are_judged():
    shown = quiz(ASKED, "b, b")
    assert shown.right == 1
    assert "You chose b. Right: no, it is not" in shown.text() and "1 of 2 right" in shown.text()
    assert shown.html().count("<details style='margin:.2em 0 .2em 1em' open>") == 2
    for answers, part in (("b", "one letter per question"), ("bz", "no option")):
        with pytest.raises(ValueError, match=part):
            quiz(ASKED, answers)
    with pytest.raises(ValueError, match="non-empty list of Question"):
        quiz([])


@pytest.mark.parametrize(
    "options", [[("a", "r", True)], [("a", "r"), ("b", "r")], [("a", "", True), ("b", "r")], [("a", "r", True)] * 2]
)
def test_malformed_questions_are_refused(options):
    with pytest.raises(ValueError, match="question"):
        Question("?", tuple(options))


# --- progress --------------------------------------------------------------------------------------------------------


def test_progress_is_kept_and_done_stays_done(double, own_progress, capsys):
    check("toy.double", lambda x: x)
    check("toy.double", lambda x: 2 * x)
    check("toy.double", lambda x: x)
    kept = json.loads(own_progress.read_text())["entries"]["toy.double"]
    assert kept == {"state": "done", "tries": 2}
    assert "pipeline.refusal_score" in progress().text()
    parsed(progress().html())


def test_strict_mode_writes_no_progress(double, own_progress, monkeypatch):
    monkeypatch.setenv("MI_COURSE_STRICT", "1")
    check("toy.double", lambda x: 2 * x)
    assert not own_progress.exists()


def test_progress_shows_every_chapter_in_the_order_of_the_course(double, own_progress, monkeypatch):
    places = {"pipeline.null_band": ["09_vocabulary_projection", 7], "pipeline.head_effects": ["10_circuits", 12]}
    monkeypatch.setattr("mi_course.teach.course._course", lambda: {"exercises": places})
    entries = {
        "pipeline.null_band": {"state": "done", "tries": 2, "hints": 1},
        "pipeline.head_effects": {"state": "not yet", "tries": 1},
    }
    own_progress.parent.mkdir()
    own_progress.write_text(json.dumps({"entries": entries}))
    shown = progress()
    assert list(shown.chapters)[:2] == ["09 Vocabulary projection", "10 Circuits"]
    assert "pipeline (in no chapter yet)" in shown.chapters  # the other exercises of the group
    for part in ("09 Vocabulary projection: 1 of 1 done", "10 Circuits: 0 of 1 done", "done (2 tries, 1 of 3 hints)"):
        assert part in shown.text() and part in shown.html()
    assert "not yet (1 try)" in shown.text()
    assert (
        f"1 of {len(shown.rows)} exercises done; about 12 minutes left; next: pipeline.head_effects" in shown.summary()
    )
    parsed(shown.html())


@pytest.mark.parametrize("entry", [{}, {"state": 3, "tries": "x", "hints": [1]}, {"state": "<b>", "tries": -1}])
def test_an_entry_that_someone_edited_does_no_harm(double, own_progress, entry):
    own_progress.parent.mkdir()
    own_progress.write_text(json.dumps({"entries": {"pipeline.null_band": entry, "toy.double": entry}}))
    (row,) = [row for row in progress().rows if row.name == "pipeline.null_band"]
    assert (row.state, row.tries, row.hints) == ("not started", 0, 0)
    check("toy.double", lambda x: x)
    assert json.loads(own_progress.read_text())["entries"]["toy.double"]["tries"] == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"entries": 3}', '{"entries": {"toy.double": 1}}', "\x00"])
def test_a_broken_file_is_set_aside(double, own_progress, content):
    own_progress.parent.mkdir()
    own_progress.write_text(content)
    check("toy.double", lambda x: 2 * x)
    assert json.loads(own_progress.read_text())["entries"]["toy.double"]["state"] == "done"
    assert own_progress.with_name("progress.json.broken").read_text() == content


def test_where_nothing_can_be_written_the_chapter_goes_on(double, tmp_path, monkeypatch):
    blocked = tmp_path / "a file, no folder"
    blocked.write_text("x")
    for place in (blocked / "progress.json", tmp_path, "off", "\0"):
        monkeypatch.setenv("MI_COURSE_PROGRESS", str(place)) if "\0" not in str(place) else None
        answer = lambda x: 2 * x  # noqa: E731
        assert check("toy.double", answer) is answer
    assert "exercises done" in progress().summary()


def test_default_place_is_the_state_folder(monkeypatch, tmp_path):
    from mi_course.teach import journal

    monkeypatch.delenv("MI_COURSE_PROGRESS")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert journal.path() == tmp_path / "mi_course" / "progress.json"


# --- widgets ---------------------------------------------------------------------------------------------------------


class Parrot:
    """A model that repeats the prompt and adds a word that depends on the strength in force."""

    strength = 0.0

    def generate(self, prompts, max_new_tokens):
        word = "no" if self.strength > 1 else "yes"
        return [f"{prompt} {word}" for prompt in prompts]

    def at(self, strength):
        from contextlib import contextmanager

        @contextmanager
        def edit():
            self.strength = strength
            try:
                yield
            finally:
                self.strength = 0.0

        return edit()


def test_slider_always_shows_the_grid_and_adds_the_neutral_strength(capsys):
    model = Parrot()
    texts = widgets.steering_slider(model, ["may i"], model.at, strengths=(2.0, 1.0))
    assert texts == {0.0: ["may i yes"], 1.0: ["may i yes"], 2.0: ["may i no"]}
    out = capsys.readouterr().out
    assert re.search(r"may i +yes +yes +\*no\*", out)
    with pytest.raises(ValueError, match="prompts"):
        widgets.steering_slider(model, "may i", model.at)


def test_slider_maps_what_else_moved_and_the_layer_map_every_cell(capsys, monkeypatch):
    model, shown = Parrot(), []
    monkeypatch.setattr(widgets, "interactive", lambda: True)
    monkeypatch.setattr(widgets, "_selectors", lambda choices, start, html: shown.append((choices, start, html)))
    widgets.steering_slider(model, ["may i"], model.at, strengths=(1, 2), measures=lambda: {"ioi": 1 - model.strength})
    out = capsys.readouterr().out
    assert "The largest, 2.00 in size, is in ioi at strength 2." in out
    (choices, start, html), *_ = shown
    assert start == {"strength": 0.0} and [v for _, v in choices["strength"]] == [0.0, 1.0, 2.0]
    assert "<img" in html(2.0) and "<b>no</b>" in html(2.0)
    seen = []

    def edit(layer, strength):
        seen.append((layer, strength))
        return model.at(strength)

    values = widgets.layer_strength_map(model, edit, (1, 3), (0, 2), lambda: model.strength, prompts=["may i"])
    assert values.tolist() == [[0, 2], [0, 2]] and seen == [(1, 0), (1, 2), (3, 0), (3, 2)]
    assert "The largest value, 2.00, is at layer 1, strength 2." in capsys.readouterr().out
    _, start, html = shown[-1]
    assert start == {"layer": 1, "strength": 2} and "no" in html(layer=3, strength=2.0)
    with pytest.raises(ValueError, match="layers and strengths"):
        widgets.layer_strength_map(model, edit, (), (1,), lambda: 0.0)


def test_circuitsvis_is_static_unless_asked(capsys):
    pattern = torch.tril(torch.ones(2, 3, 3))
    widgets.circuitsvis(["a", "b", "c"], pattern, alt="Each token sees those before it.", live=True)
    assert "[Figure: Attention pattern of head 0. Each token sees those before it.]" in capsys.readouterr().out
    with pytest.raises(ValueError, match="pattern has shape"):
        widgets.circuitsvis(["a"], pattern, alt="x")


HAS_VIEWS = find_spec("circuitsvis") is not None  # an optional extra: without it only the static view can be asked for
CELL = """
import os
os.environ["MI_COURSE_STATIC"] = "ASKED_FOR"
from mi_course.teach import check, hint, quiz, show, heatmap, steering_slider, circuitsvis, layer_strength_map
from tests.teach.test_show import Parrot, ASKED
import torch
def refusal_score(logits, ids):
    raise NotImplementedError
refusal_score = check("pipeline.refusal_score", refusal_score)
assert refusal_score(torch.zeros(1, 4), [0]).shape == (1,)
hint("pipeline.refusal_score")
show(heatmap([[1.0, 2.0]]), alt="two numbers", reading="read me")
model = Parrot()
steering_slider(model, ["may i"], model.at, measures=lambda: {"a": model.strength, "b": 1.0})
layer_strength_map(model, lambda layer, s: model.at(s), (0, 1), (0, 1), lambda: model.strength, prompts=["may i"])
circuitsvis(["a", "b"], torch.eye(2)[None], alt="x", live=LIVE)
quiz(ASKED)
"""


@pytest.mark.slow
def test_in_a_notebook_static_runs_store_no_widget_and_no_script():
    import nbformat
    from nbclient import NotebookClient

    sources = [CELL.replace("LIVE", str(HAS_VIEWS)).replace("ASKED_FOR", static) for static in "10"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    root = Path(__file__).parents[2]
    variables = {"MI_COURSE_PROGRESS": "off", "PYTHONPATH": str(root)}
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(root)}})
    client.execute(env=os.environ | variables)
    for cell, static in zip(notebook.cells, (True, False)):
        bundles = [output["data"] for output in cell.outputs if "data" in output]
        text = json.dumps(bundles)
        assert "NOT STARTED: pipeline.refusal_score" in text and "of 3 for pipeline.refusal_score" in text
        assert 'alt=\\"two numbers\\"' in text
        assert not any("image/png" in bundle for bundle in bundles)
        live = any("application/vnd.jupyter.widget-view+json" in bundle for bundle in bundles)
        assert live is not static
        assert (len(text) < 200_000) or not static
