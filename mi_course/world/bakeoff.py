"""The bake-off of steerers: the same five behaviours, the same prompts, the same training budget, one table.

    rows = list(bakeoff(steerer, seeds=(0,)))     one row per behaviour and seed
    summary(rows)                                 one line per steerer
    stored()                                      the rows that ship: all steerers of `steer.registry`, two seeds
    python -m mi_course.world.bakeoff             computes the rows that are missing

A steerer is g(model, task, strength) -> context manager. It is made from the training split; its strength is the one of
`STRENGTHS` with the best score on the validation split; what is reported is the test split. The score is that of
AxBench (Wu et al. 2025) with measured parts: harmonic mean of the gain, of what the worst domain keeps, and of fluency.
The gain is the share of what was missing: (success - success before) / (1 - success before), so doing nothing scores 0.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from tqdm import tqdm

from .. import assets
from ..evaluate.fluency import Fluency, generation_loss, judge, write
from ..evaluate.localizers import metered
from ..evaluate.steering import kept, steering_score
from ..models import Model, load
from ..steer.registry import STEERERS, Steerer, bytes_of
from .saes import sae
from .steering_tasks import Panel, SteeringTask, behaviours, panel, steering_task

SEEDS = (0, 1)
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
ASSET = "lab/bakeoff.json"
# split -> prompts per domain, documents, prompts to write about, new tokens
SIZES = {"validation": (6, 16, 12, 6), "test": (16, 48, 24, 8)}
MEASURES = ("score", "gain", "success", "kept", "fluency", "drop", "loss_rise")


@dataclass(frozen=True)
class Exam:
    """What a steered model is asked on one split, with the answers of the unsteered one."""

    task: SteeringTask
    panel: Panel
    documents: list[str]
    writing: list[str]
    tokens: int
    before: float
    base_loss: float
    plain: Fluency

    def mark(self, model: Model, context=None) -> dict:
        """All measures of the model under a context manager (None: of the model as it is)."""
        with nullcontext() if context is None else context:
            success = self.task.success(model)
            accuracy = self.panel.accuracy(model)
            loss = mean_loss(model, self.documents)
            answers = write(model, self.writing, self.tokens)
        steered = judge(model, self.writing, answers)
        worst = min(accuracy, key=accuracy.get)
        drop, rise = 1 - accuracy[worst], loss - self.base_loss
        fluent, left = steered.relative_to(self.plain), kept(drop, rise)
        gain = min(1.0, max(0.0, (success - self.before) / (1 - self.before)))
        return {
            "score": steering_score(gain, left, fluent), "gain": gain, "success": success, "kept": left,
            "fluency": fluent,
            "drop": drop, "worst": worst if drop > 0 else "", "loss_rise": rise, "repetition": steered.repetition,
        }  # fmt: skip


def mean_loss(model: Model, documents: Sequence[str]) -> float:
    """Mean loss of documents, nats per token after the first word; a prefix put before the prompts does not count."""
    starts = [text.partition(" ")[0] for text in documents]
    rests = [model.tokenizer(text.partition(" ")[2], add_special_tokens=False)["input_ids"] for text in documents]
    losses = generation_loss(model, starts, rests)
    return sum(sum(own) / len(own) for own in losses) / len(losses)


@lru_cache(maxsize=32)
def exam(model: Model, behaviour: str, split: str, seed: int) -> Exam:
    """The exam of a behaviour. Made once for each model (which must be unsteered), split and seed."""
    per_domain, n_documents, n_writing, tokens = SIZES[split]
    task = steering_task(behaviour, split, seed)
    texts, writing = task.documents[:n_documents], task.prompts[:n_writing]
    plain = judge(model, writing, write(model, writing, tokens))
    tested = panel(model, behaviour, split, seed, per_domain)
    return Exam(task, tested, texts, writing, tokens, task.success(model), mean_loss(model, texts), plain)


def bakeoff(
    steerer: Callable,
    name: str = "",
    seeds: Sequence[int] = SEEDS,
    tasks: Iterable[str] | None = None,
    base: Model | None = None,
    strengths: Sequence[float] | None = None,
) -> Iterator[dict]:
    """One row per behaviour and seed: steerer, family, behaviour, seed, strength, the measures on test, and the cost.

    steerer: g(model, task, strength) -> context manager. seconds: of making (CPU seconds on a CPU); forwards,
    backwards: full passes of one prompt of 10 tokens that making took; bytes: None when unknown.
    """
    base = base or load_base()
    name = name or getattr(steerer, "name", "") or getattr(steerer, "__name__", "steerer")
    for behaviour in behaviours() if tasks is None else tasks:
        for seed in seeds:
            task = steering_task(behaviour, "train", seed)
            if isinstance(steerer, Steerer) and not steerer.suits(task):
                continue
            validation, test = exam(base, behaviour, "validation", seed), exam(base, behaviour, "test", seed)
            clock = time.process_time if base.device.type == "cpu" else time.perf_counter
            started = clock()
            with metered(base) as meter:
                made = steerer.made(base, task) if isinstance(steerer, Steerer) else _entered(steerer, base, task)
            seconds = clock() - started
            tried = {s: validation.mark(base, steerer(base, task, s))["score"] for s in strengths or STRENGTHS}
            strength = max(tried, key=lambda s: (tried[s], -abs(s)))
            row = test.mark(base, steerer(base, task, strength))
            passes = 10 * base.n_layers
            yield {
                "steerer": name, "family": getattr(steerer, "family", "yours"), "behaviour": behaviour, "seed": seed,
                "strength": strength, **row, "seconds": seconds, "forwards": meter.forward / passes,
                "backwards": meter.backward / passes, "bytes": bytes_of(made),
            }  # fmt: skip


def _entered(steerer: Callable, model: Model, task: SteeringTask) -> None:
    """Enter and leave the context once, so that its making is timed; errors of a steerer come up here."""
    context = steerer(model, task, 1.0)
    if not hasattr(context, "__enter__"):
        raise ValueError(
            f"{getattr(steerer, '__name__', 'the steerer')} returned {type(context).__name__}; return a context "
            "manager, for instance mi.intervene(model, mi.add('x3', strength * v))"
        )
    with context:
        pass


def load_base() -> Model:
    """`lab` with the SAE that the steerer "SAE features" reads."""
    base = load("lab")
    base.saes["x3-topk"] = sae("x3-topk", base)
    return base


def nothing(model: Model, task, strength: float):
    """The steerer that does nothing: the line that every other one must beat."""
    return nullcontext(model)


def summary(rows: Iterable[dict]) -> list[dict]:
    """Mean of every measure by steerer, best score first: seeds are averaged within a behaviour, then behaviours.

    What a steerer cannot do at all, it scores 0 on; its other measures are means over what it can do (`behaviours`).
    score_error: standard error over behaviours; worst_score: the lowest mean score of a behaviour; wins: behaviours in
    which no other steerer has a higher mean score.
    """
    rows = list(rows)
    means: dict[tuple[str, str], dict] = {}
    for row in rows:
        means.setdefault((row["steerer"], row["behaviour"]), []).append(row)
    numbers = (*MEASURES, "seconds", "forwards", "backwards", "bytes")
    by = {key: {m: _mean(row[m] for row in members) for m in numbers} for key, members in means.items()}
    best = {b: max(v["score"] for (_, other), v in by.items() if other == b) for _, b in by}
    table = []
    for steerer in dict.fromkeys(row["steerer"] for row in rows):
        own = {b: v for (s, b), v in by.items() if s == steerer}
        scores = torch.tensor([own[b]["score"] if b in own else 0.0 for b in best], dtype=torch.float64)
        line = {"steerer": steerer, "family": next(r["family"] for r in rows if r["steerer"] == steerer)}
        line |= {m: _mean(v[m] for v in own.values()) for m in numbers}
        line["score"] = scores.mean().item()
        line["score_error"] = scores.std().item() / len(scores) ** 0.5 if len(scores) > 1 else None
        line |= {"worst_score": scores.min().item(), "wins": sum(v["score"] == best[b] for b, v in own.items())}
        table.append(line | {"behaviours": len(own)})
    return sorted(table, key=lambda line: -line["score"])


def _mean(values: Iterable) -> float | None:
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else None


# --- the rows that ship ---------------------------------------------------------------------------------------------
def all_steerers() -> dict[str, Callable]:
    """Doing nothing, and the registry."""
    return {"nothing": nothing} | STEERERS


def stored() -> list[dict]:
    """The rows of every steerer in the registry, as computed by `make`."""
    content = json.loads(assets.path(ASSET).read_text())
    return [dict(zip(content["columns"], row, strict=True)) for row in content["rows"]]


def make(file: Path, base: Model, steerers: dict[str, Callable] | None = None) -> None:
    """Add the rows that `file` lacks, stored after every behaviour, so that an interrupted run goes on."""
    steerers, fingerprint = steerers or all_steerers(), base.fingerprint()
    done = json.loads(file.read_text()) if file.exists() else {"fingerprint": fingerprint, "columns": [], "rows": []}
    if done["fingerprint"] != fingerprint:
        raise ValueError(f"{file} holds rows of another model ({done['fingerprint']}); delete it or name another file")
    have = {(row[0], row[2], row[3]) for row in done["rows"]}
    missing = [(b, s, name) for s in SEEDS for b in behaviours() for name in steerers if (name, b, s) not in have]
    for behaviour, seed, name in tqdm(missing, desc="bake-off", mininterval=5):
        row = next(bakeoff(steerers[name], name, (seed,), (behaviour,), base), None)
        if row is None:
            continue
        row["family"] = "none" if name == "nothing" else row["family"]
        done["columns"] = list(row)
        done["rows"].append([round(v, 4) if isinstance(v, float) else v for v in row.values()])
        done["rows"].sort(key=lambda row: (row[0], row[2], row[3]))
        text = ",\n ".join(json.dumps(row, separators=(",", ":")) for row in done["rows"])
        head = json.dumps({k: done[k] for k in ("fingerprint", "columns")})
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".part")
        partial.write_text(f'{head[:-1]}, "rows": [\n {text}\n]}}\n')
        partial.replace(file)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=assets.FOLDER / ASSET)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    base = load_base()
    make(args.out, base)
    if args.out.resolve() == (assets.FOLDER / ASSET).resolve():
        assets.register(ASSET, [args.out], fingerprint=base.fingerprint())


if __name__ == "__main__":
    main()
