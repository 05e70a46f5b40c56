"""Everything that `make test` runs: each step runs even when an earlier one failed, and one table sums them up.

    python tests/run.py              all steps
    python tests/run.py ruff build   some steps

Exit status 1 when any step failed. Tests and notebooks run on two workers of one thread each.
"""

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=3"]
PARALLEL = ["-n", "2", "--dist", "loadfile"]
BY_TEST = ["-n", "2", "--dist", "worksteal"]  # the tests of all exercises stand in one file
NBVAL = [*PYTEST, *PARALLEL, "--nbval-lax", "--nbval-current-env", "--nbval-cell-timeout=300"]
ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
OFFLINE = {"HF_HUB_OFFLINE": "1", "MI_COURSE_PROGRESS": "off", "MPLBACKEND": "agg", "PYTHONHASHSEED": "0"}


@dataclass
class Step:
    """One row of the summary: a command, with variables of its own."""

    name: str
    command: list[str]
    env: dict[str, str] = field(default_factory=dict)


STEPS = [
    Step("ruff", [sys.executable, "-m", "ruff", "check", "."]),
    Step("build", [sys.executable, "-m", "mi_course", "build", "--check"]),
    Step("unit", [*PYTEST, *PARALLEL, "tests", "--ignore=tests/exercises"]),
    Step("exercises", [*PYTEST, *BY_TEST, "tests/exercises"]),
    Step("chapters", [*NBVAL, "chapters"]),
    Step("solutions", [*NBVAL, "solutions"], {"MI_COURSE_STRICT": "1"}),
    Step("half-filled", [sys.executable, "-m", "tests.half_filled"]),
]


def run(step: Step) -> tuple[bool, float, str]:
    """Run one step, showing its output as it comes. Returns passed, seconds and the last line that says something."""
    print(f"\n=== {step.name} ===", flush=True)
    env = {**os.environ, **ONE_THREAD, **OFFLINE, **step.env}
    if "MI_COURSE_STRICT" not in step.env:
        env.pop("MI_COURSE_STRICT", None)
    start, last = time.perf_counter(), ""
    process = subprocess.Popen(
        step.command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    passed = process.wait() == 0
    return passed, time.perf_counter() - start, re.sub(r"[=\s]+", " ", last).strip()


def main(names: list[str]) -> int:
    unknown = set(names) - {step.name for step in STEPS}
    if unknown:
        print(f"no step {', '.join(sorted(unknown))}; there are: {', '.join(step.name for step in STEPS)}")
        return 2
    results = [(step.name, *run(step)) for step in STEPS if not names or step.name in names]
    print("\n=== summary ===")
    for name, passed, seconds, last in results:
        print(f"{name:<12} {'passed' if passed else 'FAILED':<7} {seconds:6.0f} s  {last[:80]}")
    failed = [name for name, passed, _, _ in results if not passed]
    total = sum(seconds for _, _, seconds, _ in results)
    print(f"{'all':<12} {'FAILED' if failed else 'passed':<7} {total:6.0f} s  {', '.join(failed)}".rstrip())
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
