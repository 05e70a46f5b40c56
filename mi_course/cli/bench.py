"""`mi-course bench`: what the course costs on this machine, on one core.

Import and loading are timed in fresh processes. All else are ratios to a plain run: medians over alternating pairs
(plain, ours, plain, ours, ...), so that whatever else the machine does falls on both alike. Parts:

    core      caching all sites, steered generation      edges   EAP and EAP-IG against the passes they need; memory
    patching  sweeps against one forward pass a cell     direct  direct logit attribution against one forward pass
    saes      TopK SAE training against dense PyTorch

Each part is a module of `cli/benches` (core: this one) with `measure(model, pairs) -> dict`, `LIMITS` (by the keys of
that dict, or by model and then key) and `DIRECTION`, "at most" unless it says "at least".
"""

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

ROWS, TOKENS = 32, 24
GENERATE_ROWS, NEW_TOKENS = 8, 24
MIN_PAIRS = 20
# The other parts take minutes for a pair at the larger model, and their ratios are far from 1.
PAIRS_OF_PARTS = {"lab": 7, "gpt2-small-shape": 3}
PARTS = ("core", "patching", "edges", "direct", "saes")
FRESH_RUNS = 3
# What the course promises, in seconds and as ratios to the plain run.
LIMITS = {"import": 3.0, "import_and_first_load": 8.0, "second_load": 1.0, "caching": 1.3, "steered_generation": 1.15,
          "dialled_generation": 1.15}  # fmt: skip

FRESH_LOAD = """
import json, time
start = time.perf_counter()
import mi_course as mi
imported = time.perf_counter()
import torch
torch.set_num_threads(1)
mi.load()
first = time.perf_counter()
mi.load()
print(json.dumps({"import": imported - start, "import_and_first_load": first - start,
                  "second_load": time.perf_counter() - first}))
"""


def run(args) -> int:
    if args.pairs < MIN_PAIRS:
        raise ValueError(f"--pairs {args.pairs}: medians of fewer than {MIN_PAIRS} pairs mean little")
    unknown = sorted(set(args.parts) - set(PARTS))
    if unknown:
        raise ValueError(f"--parts {unknown[0]}: there is no such part; choose among {', '.join(PARTS)}")
    import torch

    torch.set_num_threads(1)
    results: dict = {"threads": 1, "pairs": args.pairs, "pairs_of_parts": PAIRS_OF_PARTS, "models": {}}
    if args.model in ("lab", "all") and "core" in args.parts:
        results["seconds"] = loading()
    for name in ["lab", "gpt2-small-shape"] if args.model == "all" else [args.model]:
        model = make_model(name)
        found = results["models"][name] = {}
        for part in [part for part in PARTS if part in args.parts]:
            found[part] = _module(part).measure(model, args.pairs if part == "core" else PAIRS_OF_PARTS[name])
            print(f"{name}, {part}: {json.dumps(found[part])}", file=sys.stderr, flush=True)  # a long wait: say how far
    results["verdicts"] = verdicts(results)
    print(json.dumps(results, indent=1) if args.json else as_text(results))
    return 0


def _module(part: str):
    return sys.modules[__name__] if part == "core" else importlib.import_module(f"mi_course.cli.benches.{part}")


def verdicts(results: dict) -> list[dict]:
    """Every measured number that has a limit: model, part, name, value, direction, limit, and whether it is within."""
    rows = [("lab", "core", key, value, "at most", LIMITS[key]) for key, value in results.get("seconds", {}).items()]
    for name, measured in results["models"].items():
        for part, found in measured.items():
            module = _module(part)
            limits, direction = module.LIMITS.get(name, module.LIMITS), getattr(module, "DIRECTION", "at most")
            rows += [(name, part, key, found[key], direction, limit) for key, limit in limits.items() if key in found]
    return [
        dict(zip(("model", "part", "name", "value", "direction", "limit"), row))
        | {"within": row[3] <= row[5] if row[4] == "at most" else row[3] >= row[5]}
        for row in rows
    ]


def make_model(name: str):
    """`lab`, or a model of the shape of GPT-2 small (124 M parameters) with random weights."""
    import mi_course as mi

    if name == "lab":
        return mi.load()
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return mi.wrap(GPT2LMHeadModel(GPT2Config()), name=name)


def loading() -> dict[str, float]:
    """Seconds of import, import with the first load, and second load of `lab`: medians over fresh processes."""
    runs = []
    for _ in range(FRESH_RUNS):
        done = subprocess.run([sys.executable, "-c", FRESH_LOAD], capture_output=True, text=True)
        if done.returncode:
            raise ValueError(f"loading the lab model failed: {done.stderr.strip().splitlines()[-1]}")
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]}


def all_sites(model) -> list[str]:
    """Every activation that flows through the model: streams, block outputs, and all states of heads and neurons.

    Left out are head results and embeddings, which are computed or copied beside the pass.
    """
    kinds = ["x{}", "attn{}", "mlp{}", "q{}", "k{}", "v{}", "scores{}", "pattern{}", "z{}", "neurons{}"]
    if not model.family.is_parallel(model.config):
        kinds.append("mid{}")
    if model.family.gated:
        kinds += ["gate{}", "up{}"]
    return [kind.format(layer) for layer in range(model.n_layers) for kind in kinds] + [f"x{model.n_layers}"]


def measure(model, pairs: int) -> dict:
    """Caching all sites against a plain forward, steered against plain generation; plain means Hugging Face alone."""
    import torch

    import mi_course as mi
    from mi_course.steer import Steer

    generator = torch.Generator().manual_seed(0)

    def prompts(rows: int):
        return model.tokenize(torch.randint(5, model.n_vocab, (rows, TOKENS), generator=generator))

    batch, sites = prompts(ROWS), all_sites(model)
    arguments = {"attention_mask": batch.mask, "position_ids": batch.position_ids, "use_cache": False}

    def plain():
        with torch.no_grad():
            model.hf(batch.ids, **arguments)

    caching = alternate(plain, lambda: mi.record(model, batch, sites), pairs)

    start = prompts(GENERATE_ROWS)
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS}
    fixed = {"do_sample": False, "pad_token_id": 0, "attention_mask": start.mask}
    direction = torch.randn(model.d_model, generator=generator)
    site = f"x{model.n_layers // 2}"
    plain_add = mi.add(site, direction)
    # all that a Steer can hold: own positions, a strength, a schedule over generated tokens
    dialled = Steer(mi.add(site, direction, positions="generated"), 0.5, schedule=(1.0, 0.5, 0.0))

    def generate():
        with torch.no_grad():
            model.hf.generate(start.ids, **fixed, **options)

    def steered(edit):
        with mi.intervene(model, edit):
            model.generate_ids(start, **options)

    steering = alternate(generate, lambda: steered(plain_add), pairs)
    dial = alternate(generate, lambda: steered(dialled), pairs)
    return {
        "parameters": sum(parameter.numel() for parameter in model.hf.parameters()),
        "sites": len(sites),
        "forward_seconds": caching["plain"],
        "caching": caching["ratio"],
        "generate_seconds": steering["plain"],
        "steered_generation": steering["ratio"],
        "dialled_generation": dial["ratio"],
    }


def alternate(plain: Callable, ours: Callable, pairs: int) -> dict[str, float]:
    """Time both in turn, `pairs` times after a warm-up each. Returns the medians of plain and ratio."""
    plain(), ours()
    times = [(timed(plain), timed(ours)) for _ in range(pairs)]
    ratio = statistics.median(other / base for base, other in times)
    return {"plain": round(statistics.median(base for base, _ in times), 4), "ratio": round(ratio, 3)}


def timed(call: Callable) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def as_text(results: dict) -> str:
    """A table: what was measured, on which model, and whether it keeps its promise."""
    lines = []
    for row in results["verdicts"]:
        unit = " s" if row["name"] in results.get("seconds", {}) else " MB" if row["name"].endswith("_mb") else " x"
        lines.append(
            f"{row['model']:<17} {row['name'].replace('_', ' '):<26} {row['value']:8.2f}{unit:<3} "
            f"{'within' if row['within'] else 'OVER  '} {row['direction']} {row['limit']:g}{unit}"
        )
    for name, measured in results["models"].items():
        if "core" in measured:
            core = measured["core"]
            lines.append(
                f"{name}: {core['parameters']:,} parameters, {core['sites']} sites; plain forward {ROWS} x {TOKENS}: "
                f"{core['forward_seconds']:.3f} s, plain generation: {core['generate_seconds']:.3f} s"
            )
    return "\n".join(lines)
