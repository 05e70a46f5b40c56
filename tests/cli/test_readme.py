"""The README names what there is: every command, every family, the exact pins that the Makefile installs."""

import re
from pathlib import Path

from mi_course.cli import COMMANDS
from mi_course.models.families import FAMILIES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_command_is_listed():
    assert {name for name in COMMANDS if f"`mi-course {name}" in README} == set(COMMANDS)


def test_every_family_is_listed_and_no_other():
    sentence = re.search(r"Supported are the families ([^.]*)\.", README).group(1)
    assert set(re.split(r",\s*|\s+and\s+", sentence)) == set(FAMILIES)


def test_the_plain_lines_install_what_make_installs():
    makefile = (ROOT / "Makefile").read_text()
    for line in ["pip install torch==2.13.0", "pip install -r requirements-", "pip install --no-deps"]:
        assert line in README and line in makefile


def test_links_to_files_lead_somewhere():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert [link for link in links if link != "path" and not (ROOT / link).exists()] == []
