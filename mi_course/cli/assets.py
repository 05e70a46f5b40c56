"""`mi-course assets`: what ships with the package, whether it is intact, and how well it was measured to work."""

import json

from mi_course import assets


def overview() -> list[dict]:
    """One dictionary per asset: name, bytes, intact, problems, and the facts of the manifest."""
    rows = []
    for name, entry in assets.manifest().items():
        problems = assets.check(name)
        sizes = [(assets.FOLDER / file).stat().st_size for file in entry["files"] if (assets.FOLDER / file).exists()]
        facts = {key: value for key, value in entry.items() if key != "files"}
        rows.append({"name": name, "bytes": sum(sizes), "intact": not problems, "problems": problems, **facts})
    return rows


def run(args) -> int:
    rows = overview()
    broken = [row for row in rows if not row["intact"]]
    if args.json:
        print(json.dumps({"assets": rows, "bytes": sum(row["bytes"] for row in rows)}, indent=1))
        return 1 if broken else 0
    if not rows:
        print("no assets are shipped with this copy")
    for row in rows:
        print(f"{row['name']:<24} {row['bytes'] / 1e6:7.2f} MB  {'intact' if row['intact'] else 'BROKEN'}")
        for problem in row["problems"]:
            print(f"    {problem}")
        for behaviour, value in row.get("measured", {}).items():
            print(f"    {behaviour:<28} {show(value)}")
    return 1 if broken else 0


def show(value) -> str:
    """A measured value as text: a number, or a dictionary with one under a name such as "accuracy"."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {show(inner)}" for key, inner in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
