"""The exhaustive map (T2): what ablating each head, FFN, neuron and edge of a lab model does to each behaviour.

    exhaustive("facts")                                    Scores over all heads, zero ablation
    exhaustive("facts", "neurons", "mean")                 Scores over all 3,072 neurons
    standard_errors("facts")                               the error of each of these means, over prompts
    python -m mi_course.world.exhaustive                   computes what is missing

A freely trained model has no answer key, but `lab` is small enough to try everything. The map is the reference for
every cheaper score: gradients, attribution patching, EAP, probes, norms. It is no more than that: single ablations miss
parts that stand in for each other (audit A17), and the kinds of ablation disagree, so three of them are kept.

    zero       the object writes nothing
    mean       it writes its mean over all real tokens of the prompts
    resample   it writes what it writes on another prompt of the task, drawn at random, aligned at the last token
               (a shorter prompt gives its first token's value to what comes before)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from .. import assets
from ..models import Model, Site, load, mean, patch, record, zero
from ..objects import Scores, Task
from .tasks import task as world_task

MAIN = (  # the behaviours that chapters rest on, short prompts first
    "facts", "translation", "capitals", "antonyms", "refusal_harmful", "ioi", "verdict", "sentiment", "retrieval",
    "copying",
)  # fmt: skip
OTHERS = (
    "attributes", "pronoun", "addition", "multiple_choice", "greater_than", "refusal_harmless", "known", "unknown",
    "chain",
)  # fmt: skip
TASKS = MAIN + OTHERS
LEFT_OUT = {
    **dict.fromkeys(("two_hop", "persona", "toxicity", "instruction"), "fewer than 32 test prompts"),
    **dict.fromkeys(("chain_direct", "verdict_fresh"), "the model fails on half of them: nothing to map"),
    **dict.fromkeys(("context", "sycophancy", "guess"), "a dial deals the target: F is no measure of success"),
    "language": "many verbs are right, the target is one of them",
    "foreign_facts": "no foil, and log p is saturated at 0",
    "requests": "a mixture of kinds that refusal_harmful and refusal_harmless have apart",
}
OBJECTS = ("heads", "ffns", "neurons", "edges")
KINDS = ("zero", "mean", "resample")
PROMPTS = 64  # from the test split, seed 0


# --- reading --------------------------------------------------------------------------------------------------------
def exhaustive(task: str, objects: str = "heads", kind: str = "zero", model: Model | str = "lab") -> Scores:
    """The stored map: mean over prompts of F(object ablated) - F(clean), for every object. Helpful ones are negative.

    task: one of `TASKS`. objects: heads (`L3H5.z`), ffns (`mlp2`), neurons (`L2N117`) or edges (`L0H1->L3H5.q`).
    kind: zero, mean or resample. model: "lab" or "lab-llama", or a Model, which must then be the one of the map.
    Raises KeyError for a map that is not stored, with what is; ValueError for another model.
    """
    return _scores(_read(model), f"{task}|{objects}|{kind}", row=0)


def standard_errors(task: str, objects: str = "heads", kind: str = "zero", model: Model | str = "lab") -> Scores:
    """Standard error over prompts, s / sqrt(n), of every value of `exhaustive` with these arguments."""
    return _scores(_read(model), f"{task}|{objects}|{kind}", row=1)


def stored(model: Model | str = "lab") -> dict[str, dict]:
    """What there is: "task|objects|kind" -> {"prompts": n, "clean": mean of F without ablation}."""
    return _read(model)[1]["maps"]


def _read(model: Model | str) -> tuple[dict[str, Tensor], dict]:
    name = model if isinstance(model, str) else model.name
    key = f"{name}/exhaustive.safetensors"
    if key not in assets.manifest():
        raise KeyError(f"no exhaustive map of {name!r} is shipped; choose 'lab' or 'lab-llama', or make one: "
                       f"python -m mi_course.world.exhaustive --base FOLDER --out FILE")  # fmt: skip
    tensors, facts = _open(assets.path(key))
    if not isinstance(model, str):
        check(facts, model)
    return tensors, facts


def check(facts: dict, model: Model) -> None:
    """Raise ValueError unless a map with these facts was made on exactly this model."""
    if facts["fingerprint"] != model.fingerprint():
        raise ValueError(
            f"model: the map was made on the model with fingerprint {facts['fingerprint']}, but {model.name!r} has "
            f"{model.fingerprint()}. Use the shipped model in float32, or make a map of yours: "
            "python -m mi_course.world.exhaustive --base FOLDER --out FILE"
        )


@lru_cache
def _open(file: Path) -> tuple[dict[str, Tensor], dict]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as f:
        return {k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["facts"])  # noqa: SIM118


def _scores(opened: tuple[dict[str, Tensor], dict], key: str, row: int) -> Scores:
    tensors, facts = opened
    if key not in tensors:
        near = sorted(k for k in tensors if set(k.split("|")[:2]) & set(key.split("|")[:2]))
        raise KeyError(f"no map {key!r} is stored; there are {', '.join(near[:12]) or 'others'} ... see stored()")
    _, objects, kind = key.split("|")
    what = f"{kind} ablation of {facts['maps'][key]['prompts']} prompts" + (", standard error" if row else "")
    return Scores(facts["sites"][objects], tensors[key][row], method=f"exhaustive, {what}", sign="ablation")


# --- computing ------------------------------------------------------------------------------------------------------
def sites(model: Model, objects: str) -> list[str]:
    """All objects of one kind, in the order of the map."""
    layers = range(model.n_layers)
    if objects == "heads":
        return [f"L{layer}H{head}.z" for layer in layers for head in range(model.n_heads)]
    if objects == "ffns":
        return [f"mlp{layer}" for layer in layers]
    if objects == "neurons":
        return [f"L{layer}N{i}" for layer in layers for i in range(model.d_ffn)]
    if objects == "edges":
        from ..locate.graph import Graph

        return Graph(model).edges
    raise ValueError(f"objects={objects!r} is unknown; choose one of {', '.join(OBJECTS)}")


def effects(model: Model, task: Task, chosen: Sequence[str], kind: str, progress: str | None = None) -> Tensor:
    """[n_sites, n_prompts], F(ablated) - F(clean) for each of the sites or edges, one at a time."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if "->" in chosen[0]:
        from ..locate.edges import edge_effects

        return edge_effects(model, task, chosen, kind)
    parts = [chosen[i : i + 128] for i in range(0, len(chosen), 128)]
    bar = tqdm(parts, desc=progress, disable=progress is None, mininterval=1)
    return torch.cat([_site_effects(model, task, part, kind) for part in bar])


def _site_effects(model: Model, task: Task, chosen: Sequence[str], kind: str) -> Tensor:
    from ..locate.causal import site_means
    from ..locate.sweep import Sweep

    if kind == "mean":
        means = site_means(model, task.prompts, chosen)
    if kind == "resample":
        values = resampled(model, task.prompts, chosen)
    edit = {
        "zero": zero,
        "mean": lambda site: mean(site, means[site]),
        "resample": lambda site: patch(site, values[site]),
    }[kind]
    return Sweep(model, task).effects([edit(site) for site in chosen])


@torch.no_grad()
def resampled(model: Model, prompts: Sequence, chosen: Sequence[str], seed: int = 0) -> dict[str, Tensor]:
    """Site -> its values [n, T, ...] on other prompts: each prompt is given another one's, aligned at the last token.

    Neighbours on a random circle are exchanged, so that every prompt is used once and none meets itself.
    """
    if len(prompts) < 2:
        raise ValueError("prompts: resample ablation needs at least two prompts")
    circle = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed))
    donor = torch.empty_like(circle)
    donor[circle] = circle.roll(1)
    cache = record(model, prompts, list(dict.fromkeys(_whole(site) for site in chosen)), logits=False)
    last, first = cache.batch.last, cache.batch.mask.argmax(-1)
    columns = torch.arange(cache.batch.ids.shape[1]) - last[:, None] + last[donor][:, None]
    columns = columns.clamp(max=cache.batch.ids.shape[1] - 1).maximum(first[donor][:, None])
    other = {site: value[donor[:, None], columns] for site, value in cache.items()}
    index = {site: Site.parse(site).index for site in chosen}
    return {
        site: other[_whole(site)] if index[site] is None else other[_whole(site)][:, :, index[site]] for site in chosen
    }


def _whole(site: str) -> str:
    """All heads or neurons of the site's layer, recorded at once: z3 for L3H5.z."""
    parsed = Site.parse(site)
    return str(parsed if parsed.index is None else Site(parsed.kind, parsed.layer, None, parsed.part))


def make(model: Model, file: Path, tasks: Sequence[str], objects: str, kind: str, n: int = PROMPTS) -> None:
    """Add the maps that `file` lacks: every task with these objects and this kind of ablation. Each is stored at once.

    n: prompts. Raises ValueError when `file` holds maps of another model.
    """
    tensors, facts = {}, {"fingerprint": model.fingerprint(), "sites": {}, "maps": {}}
    if file.exists():
        _open.cache_clear()
        tensors, facts = _open(file)
        check(facts, model)
    for name in tasks:
        key, task = f"{name}|{objects}|{kind}", world_task(name, "test", n)
        if facts["maps"].get(key, {}).get("prompts") == len(task):
            continue
        chosen = sites(model, objects)
        found = effects(model, task, chosen, kind, progress=key)
        tensors[key] = torch.stack([found.mean(1), found.std(1) / len(task) ** 0.5]).contiguous()
        facts["sites"][objects] = chosen
        facts["maps"][key] = {"prompts": len(task), "clean": round(float(task.measure(model).mean()), 4)}
        save(file, tensors, facts)


def save(file: Path, tensors: dict[str, Tensor], facts: dict) -> None:
    """Write a map; an interruption never leaves half a file."""
    from safetensors.torch import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    facts["maps"] = dict(sorted(facts["maps"].items()))
    partial = file.with_suffix(".part")
    save_file(tensors, partial, metadata={"facts": json.dumps(facts, sort_keys=True)})
    partial.replace(file)


PLAN = [  # cheap and most used first
    *(("heads", kind, TASKS) for kind in KINDS),
    *(("ffns", kind, TASKS) for kind in KINDS),
    ("neurons", "zero", MAIN),
    *(("edges", kind, MAIN) for kind in KINDS),
    ("neurons", "zero", OTHERS),
    ("neurons", "mean", MAIN),
    *(("edges", kind, OTHERS) for kind in KINDS),
    ("neurons", "resample", MAIN),
    ("neurons", "mean", OTHERS),
    ("neurons", "resample", OTHERS),
]  # lab-llama has heads and FFNs


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="lab", help="folder of the model, or the name of a shipped one")
    parser.add_argument("--out", type=Path, help="file to write; default: where the map of the shipped model lies")
    parser.add_argument("--objects", nargs="+", choices=OBJECTS, default=list(OBJECTS))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, shipped = load(args.base), assets.FOLDER / args.base / "exhaustive.safetensors"
    file = args.out or shipped
    for objects, kind, tasks in PLAN:
        if objects in args.objects:
            make(model, file, tasks, objects, kind)
    if file.resolve() == shipped.resolve():
        assets.register(f"{args.base}/exhaustive.safetensors", [file], fingerprint=model.fingerprint())


if __name__ == "__main__":
    main()
