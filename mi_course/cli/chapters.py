"""The table of chapters, and `mi-course chapters`, which shows it with what is measured about those that exist."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Entry:
    """One row of the table: the notebook is called `<number>_<name>`."""

    number: str
    name: str
    part: str
    title: str

    @property
    def stem(self) -> str:
        return f"{self.number}_{self.name}"

    @property
    def heading(self) -> str:
        """First line of the chapter, without the hash."""
        return f"{self.number} {self.title}"


TABLE = [
    Entry("00", "pipeline", "Start", "The whole pipeline in one hour"),
    Entry("01", "residual_stream", "Objects", "Tokens and the residual stream"),
    Entry("02", "attention_heads", "Objects", "Attention heads: QK and OV"),
    Entry("03", "ffn_memories", "Objects", "FFN neurons as memories"),
    Entry("04", "superposition", "Objects", "Superposition and sparse autoencoders"),
    Entry("05", "magnitude", "Locate", "Magnitude analysis"),
    Entry("06", "causal_attribution", "Locate", "Causal attribution"),
    Entry("07", "gradient_detection", "Locate", "Gradient detection"),
    Entry("08", "probing", "Locate", "Probing"),
    Entry("09", "vocabulary_projection", "Locate", "Vocabulary projection"),
    Entry("10", "circuits", "Locate", "Circuits"),
    Entry("11", "which_localizer", "Locate", "Which localizer to trust"),
    Entry("12", "amplitude", "Steer", "Amplitude manipulation"),
    Entry("13", "targeted_optimization", "Steer", "Targeted optimization"),
    Entry("14", "vector_arithmetic", "Steer", "Vector arithmetic"),
    Entry("15", "side_effects", "Steer", "Side effects and the choice of a method"),
    Entry("16", "safety", "Improve", "Safety"),
    Entry("17", "fairness", "Improve", "Fairness"),
    Entry("18", "persona", "Improve", "Persona"),
    Entry("19", "multilingual", "Improve", "Multilingual models"),
    Entry("20", "knowledge", "Improve", "Knowledge"),
    Entry("21", "reasoning", "Improve", "Reasoning"),
    Entry("22", "efficient_training", "Improve", "Efficient training"),
    Entry("23", "efficient_inference", "Improve", "Efficient inference"),
    Entry("24", "open_problems", "Beyond", "Open problems, measured"),
    Entry("25", "your_own_model", "Beyond", "Your own model: scaling up"),
    Entry("26", "capstones", "Beyond", "Capstones"),
]


def find_root(start: Path | str | None = None) -> Path | None:
    """The repository around `start` (default: the current folder): nearest with solutions/ and pyproject.toml."""
    start = Path(start or ".").resolve()
    for folder in [start, *start.parents]:
        if (folder / "solutions").is_dir() and (folder / "pyproject.toml").exists():
            return folder
    return None


def overview(root: Path | None) -> list[dict]:
    """One dictionary per chapter; `status` is "ready" when its notebook exists under `root`, else "planned"."""
    measured = read_measured(root) if root else {}
    rows = []
    for entry in TABLE:
        ready = root is not None and (root / "chapters" / f"{entry.stem}.ipynb").exists()
        row = {**asdict(entry), "notebook": f"{entry.stem}.ipynb", "status": "ready" if ready else "planned"}
        rows.append({**row, **measured.get(entry.stem, {})})
    return rows


def read_measured(root: Path) -> dict:
    """What the last build measured, by chapter: seconds, memory in MB, exercises, minutes, words."""
    file = root / "chapters" / "measured.json"
    return json.loads(file.read_text()) if file.exists() else {}


def markdown_table(rows: list[dict]) -> str:
    """The table of the README: chapters that exist are links."""
    lines = ["| part | chapter | |", "|---|---|---|"]
    for row in rows:
        name = f"{row['number']} {row['title']}"
        if row["status"] == "ready":
            name = f"[{name}](chapters/{row['notebook']})"
        lines.append(f"| {row['part']} | {name} | {row['status']} |")
    return "\n".join(lines)


def run(args) -> int:
    rows = overview(find_root(args.root))
    if args.json:
        print(json.dumps({"chapters": rows}, indent=1))
        return 0
    part = None
    for row in rows:
        if row["part"] != part:
            part = row["part"]
            print(f"\n{part}")
        extra = f"  {row['exercises']} exercises, runs in {row['seconds']:.0f} s" if "seconds" in row else ""
        print(f"  {row['number']}  {row['title']:<42} {row['status']:<8}{extra}".rstrip())
    return 0
