"""Reading a master, `solutions/NN_name.py`, and telling its author what is missing. CONTRIBUTING.md has the format."""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import jupytext
from nbformat import NotebookNode

from mi_course.cli.chapters import TABLE
from mi_course.cli.citations import citation_problems, cited_keys

MAX_EXERCISES = 8
MAX_WORDS = 5_000
MAX_MINUTES = 90
WORDS_PER_MINUTE = 200  # slow reading, for prose that is studied
MAX_CODE_COLUMNS = 110  # longer lines run off a notebook cell
MIN_QUESTIONS = 3
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = 'raise NotImplementedError("your turn")'

LABEL = re.compile(r"[a-z0-9_-]{1,60}")
CHECK_LINE = re.compile(r'(\w+) = check\("([^"]+)", (\w+)\)')
CHECK_CALL = re.compile(r"\bcheck\([\"']")
QUIZ_CALL = re.compile(r"^quiz\(", re.MULTILINE)
QUESTION = re.compile(r"\bQuestion\(")
REGION = re.compile(rf"^([ \t]*){BEGIN}\n.*?^[ \t]*{END}", re.MULTILINE | re.DOTALL)
MARKDOWN_IMAGE = re.compile(r"!\[\s*\]\(")
HTML_IMAGE = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
ALT = re.compile(r"\balt\s*=\s*(\"\s*[^\"\s][^\"]*\"|'\s*[^'\s][^']*')", re.IGNORECASE)


class MasterError(ValueError):
    """A master that cannot be built. `problems` holds one sentence for each thing to mend."""

    def __init__(self, problems: list[str]):
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass
class Exercise:
    """One exercise: its labels, its hints, the expected result in words, and the ids of its three cells."""

    name: str
    difficulty: int
    minutes: int
    points: int
    function: str
    hints: list[str]
    expected: str
    text: str
    answer: str
    check: str


@dataclass
class Chapter:
    """A master that has been read: its cells with their final ids, as the solution has them."""

    stem: str
    sha256: str
    cells: list[NotebookNode]
    exercises: list[Exercise] = field(default_factory=list)
    works: dict = field(default_factory=dict)

    @property
    def words(self) -> int:
        return sum(len(cell.source.split()) for cell in self.cells if cell.cell_type == "markdown")

    @property
    def minutes(self) -> int:
        """A learner's time: the exercises, as labelled, and slow reading of the prose."""
        return sum(exercise.minutes for exercise in self.exercises) + round(self.words / WORDS_PER_MINUTE)

    @property
    def prose(self) -> str:
        return "\n\n".join(cell.source for cell in self.cells if cell.cell_type == "markdown")

    @property
    def citations(self) -> list[str]:
        return cited_keys(self.prose)


def registered_exercise(name: str):
    """The exercise as the teaching layer knows it, with `hints` and `expected`; KeyError when it does not."""
    from mi_course.teach import exercises

    return exercises.get(name)


def registered_works() -> dict:
    """The papers that a chapter may cite, by key."""
    from mi_course.teach.library import library

    return library()


def read_master(path: Path, registered=None, works: dict | None = None) -> Chapter:
    """Read and validate a master.

    `registered(name)` gives an exercise with its hints and expected result, `works` the papers that may be cited; the
    teaching layer's by default.

    Raises MasterError with every problem found, not just the first.
    """
    text = path.read_text(encoding="utf-8")
    cells = jupytext.reads(text, fmt="py:percent").cells
    problems = set_ids(cells)
    chapter = Chapter(path.stem, hashlib.sha256(text.encode()).hexdigest(), cells)
    chapter.works = registered_works() if works is None else works
    problems += heading_problems(chapter) + prose_problems(chapter) + code_problems(chapter)
    chapter.exercises, exercise_problems = find_exercises(cells, registered or registered_exercise)
    problems += exercise_problems + length_problems(chapter)
    if problems:
        raise MasterError([f"{path.name}: {problem}" for problem in problems])
    return chapter


def set_ids(cells: list[NotebookNode]) -> list[str]:
    """Give every cell a stable id: its label, its exercise, or a hash of its text with a counter for repeated texts."""
    problems, seen, exercise = [], Counter(), None
    for cell in cells:
        label = cell.metadata.get("label")
        if label is not None and not LABEL.fullmatch(str(label)):
            problems.append(f"label {label!r} must be a slug of lower-case letters, digits, _ and -")
        if "exercise" in cell.metadata:
            exercise = slug(cell.metadata["exercise"])
            cell.id = exercise
        elif exercise and cell.cell_type == "code" and BEGIN in cell.source:
            cell.id = f"{exercise}-answer"
        elif exercise and cell.cell_type == "code" and CHECK_LINE.fullmatch(cell.source.strip()):
            cell.id, exercise = f"{exercise}-check", None
        else:
            cell.id = str(label or hashlib.sha256(cell.source.encode()).hexdigest()[:12])
        seen[cell.id] += 1
        if seen[cell.id] > 1 and (label or "exercise" in cell.metadata):
            problems.append(f"two cells are called {cell.id!r}; labels and exercises must be unique in a chapter")
        if seen[cell.id] > 1:
            cell.id = f"{cell.id}-{seen[cell.id]}"
    return problems


def slug(name: str) -> str:
    """An exercise name as nbformat and nbgrader allow it in ids: letters, digits, _ and -."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", str(name))


def heading_problems(chapter: Chapter) -> list[str]:
    entry = next((entry for entry in TABLE if entry.stem == chapter.stem), None)
    if entry is None:
        return ["the chapter is not in the table of mi_course/cli/chapters.py; add it there or rename the master"]
    problems = []
    first = chapter.cells[0].source.split("\n")[0] if chapter.cells else ""
    if first != f"# {entry.heading}":
        problems.append(f"the first line must be '# {entry.heading}' as in the table of chapters, not {first!r}")
    objectives = [cell for cell in chapter.cells if cell.metadata.get("label") == "objectives"]
    bullets = re.findall(r"^[-*] ", objectives[0].source, re.MULTILINE) if objectives else []
    if len(bullets) < 2:
        problems.append('no objectives: add a markdown cell with label="objectives" and at least two bullets')
    quizzes = [cell.source for cell in chapter.cells if cell.cell_type == "code" and QUIZ_CALL.search(cell.source)]
    questions = len(QUESTION.findall("\n".join(quizzes)))
    if questions < MIN_QUESTIONS:
        problems.append(f"{questions} quiz questions; a chapter has at least {MIN_QUESTIONS}")
    return problems


def length_problems(chapter: Chapter) -> list[str]:
    """A chapter that takes too long: too many exercises, words or minutes."""
    problems = []
    if len(chapter.exercises) > MAX_EXERCISES:
        problems.append(f"{len(chapter.exercises)} exercises; at most {MAX_EXERCISES}, so split the chapter")
    if chapter.words > MAX_WORDS:
        problems.append(f"{chapter.words} words of prose; at most {MAX_WORDS}")
    if chapter.minutes > MAX_MINUTES:
        reading = f"{chapter.words} words of prose at {WORDS_PER_MINUTE} a minute"
        problems.append(f"{chapter.minutes} minutes (exercises, and {reading}); at most {MAX_MINUTES}")
    return problems


def code_problems(chapter: Chapter) -> list[str]:
    """Code lines that run off their cell. The source of a quiz is hidden, so its lines may be long."""
    problems = []
    for cell in chapter.cells:
        if cell.cell_type != "code" or QUIZ_CALL.search(cell.source):
            continue
        long = [line for line in cell.source.splitlines() if len(line) > MAX_CODE_COLUMNS]
        if long:
            shown = f"{len(long[0])} columns; at most {MAX_CODE_COLUMNS}: {long[0].strip()[:50]}..."
            problems.append(f"cell {cell.id!r}: {len(long)} code line(s) too long, the first with {shown}")
    return problems


def prose_problems(chapter: Chapter) -> list[str]:
    problems = citation_problems(chapter.prose, chapter.works)
    for cell in chapter.cells:
        if cell.cell_type == "markdown" and images_without_alt(cell.source):
            problems.append(f"cell {cell.id!r}: an image has no alt text; say what one sees in it")
    return problems


def images_without_alt(text: str) -> int:
    """How many images in Markdown or HTML have no alt text, or an empty one."""
    html = [tag for tag in HTML_IMAGE.findall(text) if not ALT.search(tag)]
    return len(MARKDOWN_IMAGE.findall(text)) + len(html)


def find_exercises(cells: list[NotebookNode], registered) -> tuple[list[Exercise], list[str]]:
    """The exercises in order, and what is wrong with those that are not well formed."""
    exercises, problems = [], []
    owned = set()
    for index, cell in enumerate(cells):
        if "exercise" not in cell.metadata:
            continue
        name = cell.metadata["exercise"]
        owned.update(following.id for following in cells[index + 1 : index + 3])
        faults = label_faults(cell) + answer_faults(name, cells[index + 1 : index + 3])
        known, faults_of_check = find_check(name, registered)
        faults += faults_of_check
        problems += [f"exercise {name!r}: {fault}" for fault in faults]
        if not faults:
            answer, check = cells[index + 1 : index + 3]
            difficulty, minutes = cell.metadata["difficulty"], cell.metadata["minutes"]
            points, function = cell.metadata.get("points", difficulty), CHECK_LINE.fullmatch(check.source.strip())[1]
            ids = {"text": cell.id, "answer": answer.id, "check": check.id}
            told = {"hints": list(known.hints), "expected": known.expected}
            exercises.append(Exercise(name, difficulty, minutes, points, function, **told, **ids))
    for cell in cells:
        is_code = cell.cell_type == "code"
        if is_code and cell.id not in owned and (BEGIN in cell.source or CHECK_CALL.search(cell.source)):
            problems.append(f"cell {cell.id!r}: a solution or a check without a text cell that names its exercise")
    return exercises, problems


def label_faults(cell: NotebookNode) -> list[str]:
    faults = []
    if not cell.source.startswith("### Exercise: "):
        faults.append("its text must start with '### Exercise: ' and a title")
    if cell.metadata.get("difficulty") not in (1, 2, 3, 4, 5):
        faults.append("no difficulty; write difficulty=1 to difficulty=5 on its text cell")
    minutes = cell.metadata.get("minutes")
    if not isinstance(minutes, int) or minutes < 1:
        faults.append("no minutes; write minutes=8, say, on its text cell")
    return faults


def answer_faults(name: str, following: list[NotebookNode]) -> list[str]:
    """The two cells after the text must be the answer, with one solution region in a function, and the check line."""
    if len(following) < 2 or any(cell.cell_type != "code" for cell in following):
        return ["an answer cell and a check cell must follow its text"]
    answer, check = following
    match = CHECK_LINE.fullmatch(check.source.strip())
    if match is None or match[2] != name or match[1] != match[3]:
        return [f'its check cell must be one line, `name = check("{name}", name)`']
    regions = REGION.findall(answer.source)
    if len(regions) != 1 or answer.source.count(BEGIN) != 1:
        return [f"its answer needs one region between `{BEGIN}` and `{END}`"]
    if regions[0] == "":
        return ["its solution region must stand inside a function; for a number, ask for a function that returns it"]
    if not re.search(rf"^(def|class) {match[1]}\b", answer.source, re.MULTILINE):
        return [f"its answer cell does not define {match[1]!r}, the name that is checked"]
    return []


def find_check(name: str, registered) -> tuple[object, list[str]]:
    """The registered exercise, and what it lacks."""
    try:
        known = registered(name)
    except KeyError:
        return None, ["no check is registered under this name in mi_course/teach"]
    faults = []
    if len(known.hints) != 3 or not all(hint.strip() for hint in known.hints):
        faults.append(f"{len(known.hints)} hints; give three, the last a sketch")
    if not known.expected.strip():
        faults.append("no expected result; its check must say what a right answer shows")
    return known, faults
