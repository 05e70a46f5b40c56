"""The weights and data that ship with the package: where they lie, and whether they are intact.

`manifest.json` beside this file says what is shipped: for every asset its files with SHA-256 checksums and the facts
recorded when it was made (parameters, tokens seen, seconds of training, measured accuracy of every behaviour):

    {"assets": {"lab": {"files": {"lab/model.safetensors": "<sha256>", ...}, "parameters": ..., "measured": {...}}}}

File names are relative to this folder. `register` writes an entry, `path` gives a verified folder or file.
"""

import hashlib
import json
from pathlib import Path

FOLDER = Path(__file__).parent


class AssetError(ValueError):
    """A shipped file is missing or is not what was shipped. The message names the file and says how to restore it."""


def manifest(folder: Path | None = None) -> dict:
    """The recorded assets by name, `{}` when nothing has been registered yet."""
    file = (folder or FOLDER) / "manifest.json"
    return json.loads(file.read_text())["assets"] if file.exists() else {}


def path(name: str, folder: Path | None = None) -> Path:
    """Folder (or single file) of the asset `name`, after comparing every file with its checksum.

    Raises KeyError for an unknown name and AssetError for a missing or changed file.
    """
    folder = folder or FOLDER
    entries = manifest(folder)
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise KeyError(f"no asset is called {name!r}; shipped are: {known}. `mi-course assets` lists them.")
    problems = check(name, folder)
    if problems:
        raise AssetError("; ".join(problems))
    files = list(entries[name]["files"])
    return folder / (files[0] if files == [name] else name)


def check(name: str, folder: Path | None = None) -> list[str]:
    """What is wrong with the files of one asset, one sentence each; an empty list when all is well."""
    folder = folder or FOLDER
    problems = []
    for file, expected in manifest(folder)[name]["files"].items():
        if not (folder / file).exists():
            problems.append(f"asset {name!r}: {file} is missing; {_remedy(file)}")
        elif sha256(folder / file) != expected:
            problems.append(f"asset {name!r}: {file} is not the file that was shipped; {_remedy(file)}")
    return problems


def register(name: str, files: list[Path], folder: Path | None = None, **facts) -> None:
    """Record the files of an asset in the manifest, with checksums and facts: parameters, tokens_seen, measured..."""
    folder = folder or FOLDER
    entries = manifest(folder)
    entries[name] = {"files": {f.relative_to(folder).as_posix(): sha256(f) for f in sorted(files)}, **facts}
    text = json.dumps({"assets": dict(sorted(entries.items()))}, indent=1)
    (folder / "manifest.json").write_text(text + "\n")


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _remedy(file: str) -> str:
    return (
        f"restore it with `git checkout -- mi_course/assets/{file}` in a clone, "
        "or `pip install --force-reinstall --no-deps mi-course`"
    )
