"""Judge a steer: one call measures what it gains, what it breaks, and what random objects of its size would do.

    report = steering_report(model, steer, task, documents=..., tasks=..., null=lambda seed: random_steer(seed))
    print(report); report.to_frame(); report.to_json()        drawn by mi_course.teach.show_report(report)

A steer is anything with `scaled(strength)` and `on(model)`, or a dial: strength -> fresh context manager. Strength 0
does nothing, 1 is the full operation.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from .dose_response import Dial, DoseResponse, dose_response
from .fluency import Fluency, fluency
from .side_effects import SideEffects, document_loss, side_effect_matrix
from .statistics import Effect, NullBand, effect, null_band

STRENGTHS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 4.0)


def as_dial(model, steer) -> Dial:
    """strength -> fresh context manager, from a steer (`scaled` and `on`) or from a function that is one already."""
    if hasattr(steer, "scaled") and hasattr(steer, "on"):
        return lambda strength: steer.scaled(strength).on(model)
    if callable(steer):
        return steer
    raise TypeError(f"steer is a {type(steer).__name__}: give a Steer, a WeightEdit, or strength -> context manager")


# --- one number for all: as AxBench does it ---------------------------------------------------------------------------
def harmonic_mean(values: Iterable[float]) -> float:
    """n / sum(1 / v): near the smallest value, 0 when any is 0. ValueError for negative values, or none."""
    values = [float(v) for v in values]
    if not values or not all(v >= 0 for v in values):
        raise ValueError(f"values are {values}: give at least one number, none negative")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / v for v in values)


def steering_score(target: float, kept: float, fluent: float) -> float:
    """Harmonic mean of target success, what is kept elsewhere, and fluency, each in 0 ... 1.

    AxBench (Wu et al. 2025, arXiv 2501.17148) takes the harmonic mean of three scores of 0, 1 or 2 that a language
    model gives: concept, instruction, fluency. Here the three are measured, and 1 is the best.
    """
    for name, value in (("target", target), ("kept", kept), ("fluent", fluent)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value!r} must lie in 0 ... 1")
    return harmonic_mean((target, kept, fluent))


def kept(accuracy_drop: float, loss_rise: float) -> float:
    """What is left of the worst domain, 0 ... 1: the smaller of 1 - accuracy_drop and exp(-loss_rise)."""
    return max(0.0, min(1.0, 1 - accuracy_drop, math.exp(-loss_rise)))


# --- chance -----------------------------------------------------------------------------------------------------------
def matched_null(
    measure: Callable[[], float], null: Callable[[int], AbstractContextManager], draws: int = 10
) -> NullBand:
    """The null band of a measure: `measure()` under `null(seed)` for seeds 0 ... draws - 1.

    null: seed -> context manager with a random object that matches the steer in count, norm and layer. What matches is
    for the caller to see to; the band is worth what the match is.
    """
    values = []
    for seed in range(draws):
        with null(seed):
            values.append(measure())
    return null_band(values)


# --- the report -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SteeringReport:
    """What one steer did at `strength`, beside doing nothing and beside chance.

    before, after   target accuracy, 0 ... 1
    gain            paired change of the task's metric over its prompts
    dose            target and domains over all strengths
    side            the side-effect matrix, one row
    other           name -> (accuracy before, after) on other tasks of the behaviour: paraphrases, held-out entities
    null_after, null_gain   bands of target accuracy and of the gain over matched random steers; None without `null`
    null_side       side-effect matrix of those random steers; None without `null`
    plain, steered  fluency without and with the steer
    slowdown        seconds of a steered pass over the task's prompts, over seconds of a plain one
    bytes_changed, made_in   size of what is added or changed, and seconds of making it; None when not given
    """

    name: str
    task: str
    strength: float
    before: float
    after: float
    gain: Effect
    dose: DoseResponse
    side: SideEffects
    other: dict[str, tuple[float, float]]
    null_after: NullBand | None
    null_gain: NullBand | None
    null_side: SideEffects | None
    plain: Fluency
    steered: Fluency
    slowdown: float
    bytes_changed: int | None = None
    made_in: float | None = None

    @property
    def accuracy_drop(self) -> float:
        """Largest fall of accuracy in a domain, 0 ... 1; 0 when there is none."""
        return _worst(-self.side.accuracy_change)

    @property
    def loss_rise(self) -> float:
        """Largest rise of a domain's loss, nats per token; 0 when there is none."""
        return _worst(self.side.loss_change)

    @property
    def worst_domain(self) -> str:
        """The domain that loses most, by the smaller of 1 - drop and exp(-rise)."""
        drop, rise = np.nan_to_num(-self.side.accuracy_change[0]), np.nan_to_num(self.side.loss_change[0])
        return self.side.domains[int(np.argmin([kept(max(0, a), max(0, b)) for a, b in zip(drop, rise)]))]

    @property
    def score(self) -> float:
        """`steering_score` of target accuracy, what the worst domain keeps, and fluency."""
        return steering_score(
            self.after, kept(self.accuracy_drop, self.loss_rise), self.steered.relative_to(self.plain)
        )

    def breakdown(self, accuracy_drop: float = 0.05, loss_rise: float = 0.05, side: int = 1) -> float:
        """The strength from which a domain leaves its bar: see `DoseResponse.breakdown`."""
        return self.dose.breakdown(accuracy_drop, loss_rise, side)

    def to_dict(self) -> dict:
        """Everything as plain numbers, lists and dicts; NaN and infinities become None."""
        row = asdict(self) | {
            "score": self.score, "accuracy_drop": self.accuracy_drop, "loss_rise": self.loss_rise,
            "worst_domain": self.worst_domain, "breakdown": self.breakdown(),
            "fluency": self.steered.relative_to(self.plain),
        }  # fmt: skip
        return _plain(row)

    def to_json(self, **options) -> str:
        """`to_dict` as JSON text. options go to `json.dumps`."""
        return json.dumps(self.to_dict(), **options)

    def to_frame(self):
        """A pandas frame with one row per measure: measure, before, after, null_low, null_high."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=["measure", "before", "after", "null_low", "null_high"])

    def rows(self) -> list[tuple[str, float, float, float, float]]:
        """(measure, before, after, low and high end of the null band); NaN where there is no such number."""
        none, band = math.nan, self.null_after
        low, high = (band.low, band.high) if band else (none, none)
        rows = [("target accuracy", self.before, self.after, low, high)]
        rows += [(f"target accuracy, {name}", b, a, none, none) for name, (b, a) in self.other.items()]
        for measure in ("accuracy_change", "loss_change", "kl"):
            values = getattr(self.side, measure)[0]
            draws = None if self.null_side is None else getattr(self.null_side, measure)
            for j, domain in enumerate(self.side.domains):
                if np.isfinite(values[j]):
                    band = null_band(draws[:, j]) if draws is not None else None
                    ends = (band.low, band.high) if band else (none, none)
                    rows.append((f"{measure.replace('_', ' ')}, {domain}", 0.0, float(values[j]), *ends))
        rows += [
            ("loss of generations", self.plain.loss, self.steered.loss, none, none),
            ("loss after the first token", self.plain.later_loss, self.steered.later_loss, none, none),
            ("repetition", self.plain.repetition, self.steered.repetition, none, none),
        ]
        return rows

    def by_domain(self) -> list[tuple[str, tuple[float, float, float], tuple[bool, bool, bool]]]:
        """(domain, (accuracy change, loss change, KL), is each outside its null band?); NaN where not measured."""
        lines = []
        for j, domain in enumerate(self.side.domains):
            values, outside = [], []
            for measure in ("accuracy_change", "loss_change", "kl"):
                value = float(getattr(self.side, measure)[0, j])
                draws = None if self.null_side is None else getattr(self.null_side, measure)[:, j]
                values.append(value)
                outside.append(math.isfinite(value) and draws is not None and not null_band(draws).contains(value))
            lines.append((domain, tuple(values), tuple(outside)))
        return lines

    def __str__(self) -> str:
        lines = [f"{self.name} at strength {self.strength:g} on {self.task}: score {self.score:.2f}"]
        lines.append(f"  {'':34} {'before':>8} {'after':>8}")
        for measure, before, after, low, high in self.rows():
            if "change, " in measure or measure.startswith("kl, "):
                continue
            null = f"   null band [{low:.3f}, {high:.3f}]" if math.isfinite(low) else ""
            lines.append(f"  {measure:34} {before:8.3f} {after:8.3f}{null}")
        star = "   (* outside the null band)" if self.null_side is not None else ""
        lines.append(f"  {'domain':34} {'accuracy':>9} {'loss':>9} {'KL':>9}{star}")
        for domain, values, outside in self.by_domain():
            cells = [f"{v:+.3f}" + "* "[not out] if math.isfinite(v) else "" for v, out in zip(values, outside)]
            lines.append(f"  {domain:34} {cells[0]:>9} {cells[1]:>9} {cells[2]:>9}".rstrip())
        lines.append(f"  gain in the metric {self.gain}; a domain leaves its bar from strength {self.breakdown():.2f}")
        cost = [f"a pass takes {self.slowdown:.2f} x a plain one"]
        cost += [f"made in {self.made_in:.2f} s"] if self.made_in is not None else []
        cost += [f"{self.bytes_changed:,} bytes"] if self.bytes_changed is not None else []
        return "\n".join([*lines, "  " + "; ".join(cost)])


def _worst(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return max(0.0, float(finite.max())) if finite.size else 0.0


def _plain(value):
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def steering_report(
    model,
    steer,
    task,
    *,
    name: str = "steer",
    strength: float = 1.0,
    strengths: Sequence[float] = STRENGTHS,
    documents: Mapping[str, Sequence] | None = None,
    tasks: Mapping[str, object] | None = None,
    other: Mapping[str, object] | None = None,
    null: Callable[[int], object] | None = None,
    draws: int = 10,
    prompts: Sequence | None = None,
    max_new_tokens: int = 12,
    bytes_changed: int | None = None,
    made_in: float | None = None,
) -> SteeringReport:
    """Everything that should be said of one steer, from one call.

    Args:
        steer: a steer or a dial (see the head of this module), made without these prompts.
        task: the behaviour, test split; `accuracy(model)` and `measure(model)`.
        strength: what is reported; choose it on validation prompts. strengths: for the dose-response.
        documents, tasks: domain -> documents (loss, KL), domain -> task (accuracy), none of which should move.
        other: name -> task of the same behaviour in other words or about other things: does it carry over?
        null: seed -> steer or dial of a random object of equal count, norm and layer; `draws` of them.
        prompts: what to write about, for fluency; default the task's prompts, at most 64.
    Raises ValueError where there is neither a document nor a task of another domain: a gain alone is half a result.
    """
    dial = as_dial(model, steer)
    documents, tasks = documents or {}, tasks or {}
    now = partial(dial, strength)
    dose = dose_response(
        dial, {*strengths, strength}, lambda: task.accuracy(model),
        {d: partial(t.accuracy, model) for d, t in tasks.items()},
        {d: partial(_mean_loss, model, texts) for d, texts in documents.items()},
    )  # fmt: skip
    base_metric, plain_seconds = _timed(lambda: task.measure(model))
    with now():
        metric, steered_seconds = _timed(lambda: task.measure(model))
    gain = effect(metric.tolist(), base_metric.tolist())
    randoms = [partial(as_dial(model, null(seed)), strength) for seed in range(draws)] if null else []
    null_accuracy, null_gain = [], []
    for random in randoms:
        with random():
            null_accuracy.append(float(task.accuracy(model)))
            null_gain.append(float((task.measure(model) - base_metric).mean()))
    matrix = partial(side_effect_matrix, model, documents=documents, tasks=tasks)
    writing = list(task.prompts[:64] if prompts is None else prompts)
    accuracies = {}
    for key, one in (other or {}).items():
        before = float(one.accuracy(model))
        with now():
            accuracies[key] = (before, float(one.accuracy(model)))
    at = int(np.flatnonzero(dose.strengths == strength)[0])
    return SteeringReport(
        name=name, task=getattr(task, "name", "task"), strength=float(strength),
        before=float(dose.target[dose.neutral]), after=float(dose.target[at]), gain=gain, dose=dose,
        side=matrix({name: now}), other=accuracies,
        null_after=null_band(null_accuracy) if randoms else None, null_gain=null_band(null_gain) if randoms else None,
        null_side=matrix({f"random {i}": r for i, r in enumerate(randoms)}) if randoms else None,
        plain=fluency(model, writing, None, max_new_tokens), steered=fluency(model, writing, now, max_new_tokens),
        slowdown=steered_seconds / plain_seconds, bytes_changed=bytes_changed, made_in=made_in,
    )  # fmt: skip


def _mean_loss(model, documents) -> float:
    return document_loss(model, documents).mean().item()


def _timed(run: Callable, repeats: int = 3):
    """The result of `run()` and the shortest of `repeats` times, in seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        result = run()
        times.append(time.perf_counter() - started)
    return result, min(times)
