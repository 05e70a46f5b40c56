"""What ships: the wheel works outside the repository, the pins fit the ranges, and all that is used is declared."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mi_course import assets

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
TEST = [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
# Distributions whose import name differs from their own.
IMPORT_NAMES = {"ipython": "IPython", "scikit-learn": "sklearn", "pillow": "PIL"}
OPTIONAL_IMPORTS = {"circuitsvis", "transformer_lens", "captum", "nbgrader", "peft"}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / f"requirements-{name}.lock").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("name", ["lab", "test"])
def test_every_line_of_a_lock_is_one_exact_public_pin(name):
    lines = (ROOT / f"requirements-{name}.lock").read_text().splitlines()[1:]
    assert lines and all(re.fullmatch(r"[a-z0-9-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    assert "torch" not in pins(name), "PyTorch is installed in a step of its own"


@pytest.mark.parametrize("name, requirements", [("lab", RUNTIME), ("test", RUNTIME + TEST)])
def test_the_pins_satisfy_the_declared_ranges(name, requirements):
    pinned = pins(name)
    for requirement in requirements:
        if requirement.name != "torch":
            assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_the_test_lock_holds_the_lab_lock():
    assert pins("lab").items() <= pins("test").items()


def imported(folder: Path) -> set[str]:
    """Top-level names of all absolute imports under a folder."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - OPTIONAL_IMPORTS


def declared(requirements: list[Requirement]) -> set[str]:
    return {IMPORT_NAMES.get(item.name, item.name.replace("-", "_")) for item in requirements}


def test_the_package_imports_only_what_it_declares():
    # jupyter_client comes with ipykernel and is asked about by doctor only.
    assert imported(ROOT / "mi_course") - {"mi_course", "jupyter_client"} <= declared(RUNTIME)


def test_the_tests_import_only_what_is_declared():
    assert imported(ROOT / "tests") - {"mi_course", "tests", "jupyter_client"} <= declared(RUNTIME + TEST)


def tracked() -> list[Path]:
    try:
        done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git clone")
    return [ROOT / name for name in done.stdout.splitlines()]


def test_no_tracked_text_names_a_path_of_the_machine_it_was_made_on():
    pattern = re.compile(r"(?<![\w.])/(home|root|work|opt|Users|tmp)/\w")
    for file in tracked():
        if file.suffix in {".py", ".ipynb", ".md", ".toml", ".json", ".lock", ".yml", ".cff"} and file.exists():
            found = pattern.search(file.read_text(encoding="utf-8"))
            assert found is None or file == Path(__file__), f"{file.name}: {found.group()}"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources so that no build folder is left in the repository."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ["pyproject.toml", "README.md", "LICENSE", "LICENSE-prose"]:
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "mi_course", source / "mi_course", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(pip, check=True)
    return next(out.glob("*.whl"))


@pytest.mark.slow
def test_the_wheel_holds_assets_papers_and_licences(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    data = ["papers.json", "corrections.json", "course.json", "references.bib"]
    wanted = [f"mi_course/teach/{file}" for file in data] + ["mi_course/cli/build.py"]
    wanted += [f"mi_course/assets/{file}" for entry in assets.manifest().values() for file in entry["files"]]
    if assets.manifest():
        wanted.append("mi_course/assets/manifest.json")
    assert [name for name in wanted if name not in names] == []
    assert any(name.endswith("licenses/LICENSE-prose") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "solutions/", "chapters/"))]


ELSEWHERE = """
import json, sys
from pathlib import Path
import mi_course as mi
from mi_course import assets
from mi_course.cli import main
model = mi.load(sys.argv[1])
logits = model([[1, 2, 3]])
code = main(["chapters", "--json"])
print(json.dumps({"from": str(Path(mi.__file__)), "shape": list(logits.shape), "code": code}))
"""


@pytest.mark.slow
def test_the_wheel_works_in_a_folder_of_its_own(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", target, wheel]
    subprocess.run(install, check=True)
    name = "lab" if "lab" in assets.manifest() else str(tiny_model(tmp_path / "tiny"))
    # -P and PYTHONPATH: the wheel comes before any editable install, and the current folder counts for nothing.
    env = {**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", ELSEWHERE, name]
    done = subprocess.run(command, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert Path(result["from"]).is_relative_to(target)
    assert result["shape"][:2] == [1, 3] and result["code"] == 0


def tiny_model(folder: Path) -> Path:
    """A model folder for copies of the repository that ship no weights."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    config = GPT2Config(vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    words = Tokenizer(WordLevel({f"w{n}": n for n in range(8)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0").save_pretrained(folder)
    return folder
