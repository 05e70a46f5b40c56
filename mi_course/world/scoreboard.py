"""The scoreboard of localizers: accuracy against known answers, beside cost.

    rows = [*t1(localizer, seeds=(0,)), *t2(localizer, seeds=(0,))]
    summary(rows)                      one line per localizer and kind of object
    stored()                           the rows that ship: every localizer of `locate.registry`, three prompt seeds
    python -m mi_course.world.scoreboard       computes the rows that are missing

T1  the installed behaviours, against the answer key, twice: by |score in the installed model - score in lab| (auroc,
    recall) and by |score in the installed model| (auroc_alone, recall_alone). Only the second can be had where there is
    no model from before; and in the first, whatever compares the two models' weights is perfect without locating.
T2  freely trained behaviours: rank correlation and top-k overlap with the exhaustive map (zero ablation, other prompts)
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from .. import assets
from ..evaluate.localizers import agreement, scored
from ..locate.graph import Graph
from ..locate.registry import EDGE_LOCALIZERS, LOCALIZERS
from ..models import Model, Site, load
from ..objects import Scores
from . import exhaustive as maps
from .installed_tasks import against_key, answer_key, behaving, candidates, installed, installed_task
from .tasks import task as world_task

SEEDS = (0, 1, 2)
T1_PROMPTS = 32
T1_EXACT_EDGES = 8  # prompts, for methods that run the model once for each of 1,108 edges
T2_TASKS = ("facts", "translation", "capitals", "antonyms", "refusal_harmful", "ioi")
T2_PROMPTS = 32
T2_TOP = {"heads": 5, "ffns": 2, "neurons": 50}
ASSET = "lab/scoreboard.json"
MEASURES = {
    "T1": ("auroc", "recall", "auroc_alone", "recall_alone"),
    "T1 edges": ("auroc", "recall", "auroc_alone", "recall_alone", "auroc_base", "recall_base"),
    "T2": ("spearman", "overlap"),
}
COST = ("forwards", "backwards", "token_layers", "seconds")


def kind_of(name: str) -> str:
    """What a behaviour was installed in: heads, neurons, ffns or states."""
    return {"head": "heads", "neuron": "neurons", "mlp": "ffns", "x": "states"}[Site.parse(answer_key(name)[0]).kind]


def with_edges() -> list[str]:
    """The behaviours that were installed in nodes of the graph, so that edges of theirs are known."""
    return [name for name in installed() if kind_of(name) != "states"]


def t1(
    localizer: Callable, name: str = "", seeds: Sequence[int] = SEEDS, behaviours: Iterable[str] | None = None,
    base: Model | None = None, n: int = T1_PROMPTS, edges: bool = False,
) -> Iterator[dict]:  # fmt: skip
    """One row per behaviour and prompt seed: localizer, objects, task, seed, the measures, cost of one run.

    edges: rank all edges of the graph, such as "L0H1->L3H5.q", in place of units of the kind that was installed.

    A localizer that returns an array says "higher = more important", so it is the rise of its numbers that counts; of
    Scores, which are signed effects, the size of the change counts.
    """
    base = base or load("lab")
    for behaviour in (with_edges() if edges else installed()) if behaviours is None else behaviours:
        sites = Graph(base).edges if edges else candidates(behaviour, base)
        for seed in seeds:
            task = installed_task(behaviour, n=n, seed=seed)
            with behaving(behaviour, base):
                with_it = scored(localizer, base, task, sites, name or None)
            without = scored(localizer, base, task, sites, name or None)
            change = Scores(sites, with_it.values - without.values, with_it.method, with_it.sign)
            by = "positive" if change.sign == "importance" else "abs"
            row = {
                "tier": "T1 edges" if edges else "T1", "localizer": with_it.method,
                "objects": "edges" if edges else kind_of(behaviour), "task": behaviour, "seed": seed,
            }  # fmt: skip
            for end, scores in (("", change), ("_alone", with_it), *([("_base", without)] if edges else ())):
                marks = against_key(scores, behaviour, by)
                row |= {f"auroc{end}": marks["auroc"], f"recall{end}": marks["recall_at_k"]}
            # the cost in the installed model: some methods search longer where there is more to find
            yield row | {"prompts": len(task), **{cost: getattr(with_it, cost) for cost in COST}}


def t2(
    localizer: Callable, name: str = "", seeds: Sequence[int] = SEEDS, objects: Iterable[str] = tuple(T2_TOP),
    tasks: Iterable[str] = T2_TASKS, base: Model | None = None, kind: str = "zero", n: int = T2_PROMPTS,
) -> Iterator[dict]:  # fmt: skip
    """One row per task, kind of object and prompt seed: spearman and overlap with the exhaustive map, cost.

    The map was made on the prompts of seed 0; the localizers get others, so that not even ablation can be perfect.
    """
    base = base or load("lab")
    for task in tasks:
        for what in objects:
            reference = maps.exhaustive(task, what, kind)
            for seed in seeds:
                prompts = world_task(task, "test", n, seed=seed + 1)
                found = scored(localizer, base, prompts, reference.sites, name or None)
                by = "positive" if found.sign == "importance" else "abs"
                judged = agreement(found, reference, T2_TOP[what], by)
                # one value for all sites is no ranking: it agrees with nothing
                spearman = 0.0 if math.isnan(judged["spearman"]) else judged["spearman"]
                yield {
                    "tier": "T2", "localizer": found.method, "objects": what, "task": task, "seed": seed,
                    "spearman": spearman, "overlap": judged["overlap"], "prompts": len(prompts),
                    **{cost: getattr(found, cost) for cost in COST},
                }  # fmt: skip


def summary(rows: Iterable[dict]) -> list[dict]:
    """Mean and standard error of every measure by tier, localizer and kind of object.

    The unit is the placement (T1) or the task (T2): prompt seeds are averaged first, and `spread` is what the seeds
    differ by (their mean standard deviation). With one placement there is no error over placements: NaN.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["tier"], row["localizer"], row["objects"]), []).append(row)
    table = []
    for (tier, localizer, objects), members in groups.items():
        line = {"tier": tier, "localizer": localizer, "objects": objects, "rows": len(members)}
        for measure in MEASURES[tier]:
            by_task: dict[str, list[float]] = {}
            for row in members:
                by_task.setdefault(row["task"], []).append(row[measure])
            means = torch.tensor([sum(v) / len(v) for v in by_task.values()], dtype=torch.float64)
            seeds = [torch.tensor(v, dtype=torch.float64).std().item() for v in by_task.values() if len(v) > 1]
            line[measure] = means.mean().item()
            line[f"{measure}_error"] = means.std().item() / len(means) ** 0.5 if len(means) > 1 else math.nan
            line[f"{measure}_spread"] = sum(seeds) / len(seeds) if seeds else math.nan
        for cost in COST:  # per prompt, so that tasks of different size compare
            line[cost] = sum(row[cost] / row["prompts"] for row in members) / len(members)
        table.append(line)
    return table


# --- the rows that ship ---------------------------------------------------------------------------------------------
def stored(edges: bool = False) -> list[dict]:
    """The rows of every localizer in the registry, as computed by `make`: of T1 and T2, or those of edges."""
    content = json.loads(assets.path(ASSET).read_text())
    rows = [row for row in content["rows"] if (row[0] == "T1 edges") == edges]
    return [dict(zip(content["columns"][row[0]], row, strict=True)) for row in rows]


def wanted() -> Iterator[tuple[str, str, str, str, int]]:
    """Every (tier, localizer, objects, task, seed) of the board.

    On neurons, of the methods that run the model once for every site only two are tried, with one seed, in T1, and none
    in T2, where zero ablation is the reference. On edges they get one seed and fewer prompts.
    """
    for name, one in LOCALIZERS.items():
        for task in installed():
            kind = kind_of(task)
            if kind in one.objects:
                slow = one.exact and kind == "neurons"
                for seed in SEEDS if not slow else SEEDS[:1] if name in ("zero ablation", "noising") else ():
                    yield "T1", name, kind, task, seed
        for task in T2_TASKS:
            for kind in T2_TOP:
                if kind in one.objects and not (one.exact and kind == "neurons"):
                    for seed in SEEDS:
                        yield "T2", name, kind, task, seed
    for name, one in EDGE_LOCALIZERS.items():
        for task in with_edges():
            for seed in SEEDS[:1] if one.exact else SEEDS:
                yield "T1 edges", name, "edges", task, seed


def make(file: Path, fingerprint: str, base: Model) -> None:
    """Add the rows that `file` lacks. Stored after every localizer and task."""
    done = json.loads(file.read_text()) if file.exists() else {"fingerprint": fingerprint, "columns": {}, "rows": []}
    if done["fingerprint"] != fingerprint:
        raise ValueError(f"{file} holds rows of another model ({done['fingerprint']}); delete it or name another file")
    have = {tuple(row[:5]) for row in done["rows"]}
    missing = [key for key in wanted() if key not in have]
    for i, (tier, name, kind, task, seed) in enumerate(tqdm(missing, desc="scoreboard", mininterval=5)):
        if tier == "T1 edges":
            one = EDGE_LOCALIZERS[name]
            n = T1_EXACT_EDGES if one.exact else T1_PROMPTS
            (row,) = t1(one.run, name, (seed,), (task,), base, n, edges=True)
        elif tier == "T1":
            (row,) = t1(LOCALIZERS[name].run, name, (seed,), (task,), base)
        else:
            (row,) = t2(LOCALIZERS[name].run, name, (seed,), (kind,), (task,), base)
        done["columns"].setdefault(tier, list(row))
        done["rows"].append([round(v, 4) if isinstance(v, float) else v for v in row.values()])
        if i % 20 == 0 or i == len(missing) - 1:
            done["rows"].sort(key=lambda row: row[:5])
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".part")
            text = ",\n ".join(json.dumps(row, separators=(",", ":")) for row in done["rows"])
            head = json.dumps({k: done[k] for k in ("fingerprint", "columns")})
            partial.write_text(f'{head[:-1]}, "rows": [\n {text}\n]}}\n')
            partial.replace(file)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=assets.FOLDER / ASSET)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    base = load("lab")
    make(args.out, base.fingerprint(), base)
    if args.out.resolve() == (assets.FOLDER / ASSET).resolve():
        assets.register(ASSET, [args.out], fingerprint=base.fingerprint())


if __name__ == "__main__":
    main()
