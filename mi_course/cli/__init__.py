"""The command `mi-course`. Each subcommand lives in a module of its own and is imported only when it is called."""

import argparse
import importlib
import sys

COMMANDS = {
    "doctor": "check this machine: versions, assets, Jupyter, threads, memory",
    "assets": "list the shipped models and data, with checksums and measured accuracy",
    "chapters": "show the table of chapters",
    "build": "make the notebooks from their masters, or compare them with --check",
    "bench": "measure import, load, caching, steering, and the speed of localizers and SAE training",
    "benchmark": "score methods against known answers, yours too",
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand and return its exit code: 0 well, 1 a problem was found, 2 wrong usage."""
    parser = argparse.ArgumentParser(prog="mi-course", description="Tools of the mechanistic interpretability course.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, description in COMMANDS.items():
        sub = subparsers.add_parser(name, help=description, description=description.capitalize() + ".")
        sub.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_options(subparsers.choices)
    args = parser.parse_args(argv)
    command = importlib.import_module(f"mi_course.cli.{args.command}")
    try:
        return command.run(args)
    except ValueError as error:
        print(f"mi-course {args.command}: {error}", file=sys.stderr)
        return 1


def add_options(choices: dict[str, argparse.ArgumentParser]) -> None:
    """Options beyond --json; kept here so that --help needs no import of the heavy modules."""
    build = choices["build"]
    build.add_argument("chapter", nargs="*", help="masters to build, such as 00_pipeline (default: all)")
    build.add_argument("--check", action="store_true", help="compare the notebooks with their masters; execute nothing")
    for name in ("build", "chapters"):
        choices[name].add_argument("--root", help="the repository (default: the one around the current folder)")
    bench = choices["bench"]
    bench.add_argument("--model", choices=["lab", "gpt2-small-shape", "all"], default="all", help="what to measure on")
    bench.add_argument("--pairs", type=int, default=20, help="alternating pairs of runs per ratio of the core part")
    parts = ["core", "patching", "edges", "direct", "saes"]
    bench.add_argument("--parts", nargs="+", metavar="PART", default=parts, help=f"what to measure: {', '.join(parts)}")
    benchmark = choices["benchmark"]
    benchmark.add_argument("what", choices=["localizers", "steerers"], help="which kind of method")
    benchmark.add_argument(
        "--fn",
        metavar="FILE.py:NAME",
        help="run yours, too: localizers f(model, task, sites) -> one number per site, "
        "steerers g(model, task, strength) -> context manager",
    )
    benchmark.add_argument("--edges", action="store_true", help="rank edges ('L0H1->L3H5.q'), not heads and neurons")
    benchmark.add_argument("--quick", action="store_true", help="one seed and fewer tasks")
