"""Write requirements-lab.lock and requirements-test.lock: exact pins of all that the package needs.

The pins are what is installed in the environment that runs this. PyTorch is left out: it is installed in a step of its
own, and a local build tag in a pin would fit one machine only. Its dependencies are pinned with the rest.
"""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
HEADER = "# Written by .ci/lock.py from a tested environment (Python {python}). Install torch==2.13.0 first.\n"
APART = {"torch"}
LEAST_PYTHON = "3.11.0"  # pins must install on it: whoever has an older patch release reads the same lock
NOT_PINNED = {"mi-course", "pip"}


def closure(names: list[str], extras: tuple[str, ...] = ()) -> dict[str, str]:
    """Name -> version of the distributions and all that they need on this machine."""
    pins: dict[str, str] = {}
    pending = [(name, extras) for name in names]
    while pending:
        name, wanted = pending.pop()
        installed = distribution(name)
        key = canonicalize_name(name)
        if key in pins and not wanted:
            continue
        asks = installed.metadata["Requires-Python"]
        if asks and LEAST_PYTHON not in SpecifierSet(asks):
            sys.exit(f"{name} {installed.version} asks for Python {asks}: install an older version, for {LEAST_PYTHON}")
        pins[key] = re.sub(r"\+.*", "", installed.version)
        for line in installed.requires or []:
            requirement = Requirement(line)
            environments = [{"extra": extra} for extra in wanted] or [{"extra": ""}]
            if requirement.marker is None or any(requirement.marker.evaluate(env) for env in environments):
                pending.append((requirement.name, tuple(requirement.extras)))
    return pins


def main() -> None:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    for name, extras in [("lab", ()), ("test", ("test",))]:
        pins = closure(["mi-course"], extras)
        lines = [f"{key}=={version}" for key, version in sorted(pins.items()) if key not in APART | NOT_PINNED]
        (ROOT / f"requirements-{name}.lock").write_text(HEADER.format(python=python) + "\n".join(lines) + "\n")
        print(f"requirements-{name}.lock: {len(lines)} pins")


if __name__ == "__main__":
    main()
