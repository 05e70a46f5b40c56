"""`mi-course doctor`: is this machine ready for the course? Every failed check comes with what to do about it."""

import importlib.metadata
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from packaging.version import Version

from mi_course import assets

PYTHON = (3, 11)
MINIMUM = {"torch": "2.9", "transformers": "5", "jupyterlab": "4.2", "ipykernel": "6.29", "ipywidgets": "8.1"}
MEMORY_GB = 2.0
MORE_MEMORY = "close other programs, or run on a machine with more memory; the chapters need about 1 GB each"


@dataclass(frozen=True)
class Finding:
    """One check: what was looked at, whether it is fine, what was found, and the remedy when it is not."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Run every check."""
    return [
        python(),
        *(package(name, least) for name, least in MINIMUM.items()),
        shipped(),
        kernel(),
        threads(),
        memory(),
    ]


def python() -> Finding:
    remedy = "install Python 3.11 or newer and make a virtual environment with it: python3.12 -m venv .venv"
    return finding("python", sys.version_info >= PYTHON, platform.python_version(), remedy)


def package(name: str, least: str) -> Finding:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return finding(name, False, "not installed", f"pip install '{name}>={least}', or `make lab` in a clone")
    remedy = f"pip install --upgrade '{name}>={least}'"
    return finding(name, Version(version) >= Version(least), version, remedy)


def shipped() -> Finding:
    """All assets of the manifest, with their checksums."""
    names = list(assets.manifest())
    problems = [problem for name in names for problem in assets.check(name)]
    if not names:
        remedy = "this copy was made without its weights; install the package again, or clone the repository"
        return finding("assets", False, "no asset is shipped", remedy)
    return finding(
        "assets", not problems, "; ".join(problems) or f"{len(names)} intact", "see above: each names its remedy"
    )


def kernel() -> Finding:
    """The Jupyter kernel that runs the notebooks must be this very Python, or they import another mi_course."""
    remedy = "python -m ipykernel install --sys-prefix --name python3"
    try:
        from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel
    except ImportError:
        return finding("kernel", False, "Jupyter is not installed", "pip install jupyterlab, or `make lab` in a clone")
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return finding("kernel", False, "no kernel called python3", remedy)
    # jupyter_client runs a plain "python" with the Python it runs in itself. Links are not followed: all environments
    # made from one Python link to the same file.
    ours = command in ("python", "python3") or Path(command).is_relative_to(sys.prefix)
    return finding("kernel", ours, command, remedy)


def threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = int((os.environ.get("OMP_NUM_THREADS") or str(cores)).split(",")[0])
    found = f"{asked} threads on {cores} cores"
    return finding(
        "threads", 1 <= asked <= cores, found, f"set OMP_NUM_THREADS={cores}; more threads than cores slow torch"
    )


def memory() -> Finding:
    free = psutil.virtual_memory().available / 1e9
    return finding("memory", free >= MEMORY_GB, f"{free:.1f} GB free", MORE_MEMORY)


def finding(name: str, ok: bool, found: str, remedy: str) -> Finding:
    return Finding(name, bool(ok), found, "" if ok else remedy)


def run(args) -> int:
    findings = examine()
    failed = [item for item in findings if not item.ok]
    if args.json:
        print(json.dumps({"ok": not failed, "checks": [asdict(item) for item in findings]}, indent=1))
        return 1 if failed else 0
    for item in findings:
        print(f"{'ok ' if item.ok else 'NO '} {item.name:<13} {item.found}")
        if item.remedy:
            print(f"    {item.remedy}")
    print("\nready" if not failed else f"\n{len(failed)} thing{'s' * (len(failed) > 1)} to mend")
    return 1 if failed else 0
