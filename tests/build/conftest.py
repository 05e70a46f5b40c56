"""A small chapter that exercises every part of the format, and a repository in a temporary folder to build it in."""

from types import SimpleNamespace

import pytest

from mi_course.cli.build import build_chapter

MASTER = '''\
# %% [markdown]
# # 09 Vocabulary projection
# What a layer would say if it were the last one [@known2024]. ![a plot of a line](plot.png)

# %% [markdown] label="objectives"
# ## What you will be able to do
# - read a prediction off any layer
# - say where the lens misleads

# %% label="setup"
import os

from IPython.display import HTML

class Question:
    def __init__(self, text, options):
        self.text = text

def quiz(questions):
    print("asked", len(questions))

def show(figure, alt):
    return HTML(f'<img alt="{alt}" src="data:,">')

def check(name, answer):
    """Like the real one: the answer when it is right; else an error when strict, the reference when not."""
    try:
        right = answer(2) == 4
    except NotImplementedError:
        right = False
    if not right and os.environ.get("MI_COURSE_STRICT"):
        raise AssertionError(name)
    return answer if right else lambda x: 2 * x

# %% [markdown] exercise="projection.double" difficulty=2 minutes=8
# ### Exercise: double a number
# Write `double(x)`.

# %%
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    y = x + x
    return y
    ### END SOLUTION

# %%
double = check("projection.double", double)

# %% tags=["nbval-check-output"]
print("double of 21:", double(21))

# %%
show(None, alt="a line going up")

# %%
quiz([
    Question("one", [("a", "no"), ("b", "yes", True)]),
    Question("two", [("a", "no"), ("b", "yes", True)]),
    Question("three", [("a", "no"), ("b", "yes", True)]),
])
'''
STEM = "09_vocabulary_projection"
KNOWN = {"authors": "Known", "year": 2024, "title": "A known paper", "url": "https://example.org/known"}
WORKS = {
    "known2024": SimpleNamespace(**KNOWN),
    "other2023": SimpleNamespace(**KNOWN | {"authors": "Other", "year": 2023, "url": "https://example.org/other"}),
    "no_address": SimpleNamespace(**KNOWN | {"url": ""}),
    "no_year": SimpleNamespace(**KNOWN | {"year": None}),
}
HINTS = ("think", "add", "y = x + ...")
EXPECTED = "Twice the number."


def registered(name):
    """The one exercise that exists, as the teaching layer would give it."""
    return {"projection.double": SimpleNamespace(hints=HINTS, expected=EXPECTED)}[name]


def stand_in(monkeypatch):
    """Replace the registered exercises and papers, so that these tests do not depend on any real chapter."""
    monkeypatch.setattr("mi_course.cli.master.registered_exercise", registered)
    monkeypatch.setattr("mi_course.cli.master.registered_works", lambda: WORKS)


@pytest.fixture(autouse=True)
def teaching_layer(monkeypatch):
    stand_in(monkeypatch)


def make_root(folder):
    """A repository with one master, nothing built."""
    (folder / "solutions").mkdir()
    (folder / "chapters").mkdir()
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "solutions" / f"{STEM}.py").write_text(MASTER)
    return folder


@pytest.fixture
def root(tmp_path):
    return make_root(tmp_path)


@pytest.fixture(scope="session")
def built_once(tmp_path_factory):
    """The same repository, built; tests work on copies of it."""
    folder = make_root(tmp_path_factory.mktemp("built"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        stand_in(monkeypatch)
        build_chapter(folder / "solutions" / f"{STEM}.py", folder)
    return folder


@pytest.fixture
def master(root):
    return root / "solutions" / f"{STEM}.py"


@pytest.fixture
def edit(master):
    """edit(old, new): replace text in the master; the old text must be there."""

    def replace(old, new):
        text = master.read_text()
        assert old in text
        master.write_text(text.replace(old, new))

    return replace
