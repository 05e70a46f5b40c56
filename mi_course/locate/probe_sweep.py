"""Probes over many sites: extraction, honest splits, sweeps over layers, heads, FFNs, neurons, SAE features (L4a-c).

    features      activations of named sites, one row per prompt (or per token), in batches
    split_by      train and test with no entity, or no template, in both
    sweep         one probe per site, scored on the test part: Scores
    contrast      the same for a Task with twins: which sites tell a prompt from its twin?
    k_sparse      a probe on k chosen features or neurons against the dense one (Gurnee et al. 2023)

Which site decodes best is a shortlist for interventions, no more (`erasure`, `causal`).
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mi_course.models import Site, SiteError, record
from mi_course.models.batch import columns_of
from mi_course.models.sites import parse_sites
from mi_course.objects import Scores
from mi_course.objects.neurons import auroc

from .probing import Probe, class_means, fit

METRICS = ("accuracy", "auroc")
POOLS = ("mean", "tokens")


# --- extraction ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def features(model, prompts: Sequence, sites, positions="last", batch_size: int = 128) -> dict[str, Tensor]:
    """Activations as rows for a probe: site string -> [n, d], in the order of the prompts. d is 1 for one neuron.

    positions, for sites that name none of their own (as "x4@-1" does):
        "last", or an int    that token of every prompt (counted as everywhere: -1 is the last real token)
        [n] ints             a token of its own for every prompt
        "mean"               the mean over the real tokens: pooled
        "tokens"             every real token is a row, prompt after prompt (`token_types` gives the rows' words)
    Padding changes nothing. Raises SiteError for attention scores and patterns, whose width depends on the prompt.
    """
    sites = parse_sites(sites)
    for site in sites:
        if site.part in ("scores", "pattern"):
            raise SiteError(f"site {site}: a row of attention is as long as its prompt; probe its z or its result")
    parents = {site: _parent(site) for site in sites}
    own = None if isinstance(positions, (str, int)) else torch.as_tensor(positions)
    if own is not None and own.shape != (len(prompts),):
        raise ValueError(f"positions has shape {tuple(own.shape)} for {len(prompts)} prompts; give one int per prompt")
    if isinstance(positions, str) and positions not in ("last", *POOLS):
        raise ValueError(f"positions={positions!r} is unknown; choose 'last', 'mean', 'tokens', or ints")
    found: dict[str, list[Tensor]] = {str(site): [] for site in sites}
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        cache = record(model, prompts[rows], list(dict.fromkeys(parents.values())), logits=False)
        where = positions if own is None else own[rows]
        for site, parent in parents.items():
            value = cache[parent]
            if parent.index is None and site.index is not None:  # one head, neuron or feature of its layer
                value = value.select(-2 if site.kind == "head" else -1, site.index)
            found[str(site)].append(_rows(value, cache.batch.mask, where if site.position is None else None))
    return {site: torch.cat(parts) for site, parts in found.items()}


def token_types(model, prompts: Sequence) -> list[int]:
    """Token id of every row of `features(..., positions="tokens")`: the word types of control tasks."""
    batch = model.tokenize(prompts)
    return batch.ids[batch.mask.bool()].tolist()


def _parent(site: Site) -> Site:
    """The whole layer that holds a head's z or result, a neuron or a feature: one recording serves all of them."""
    shared = site.kind in ("neuron", "feature") or (site.kind == "head" and site.part in ("z", "result"))
    return replace(site, index=None) if shared and site.index is not None else site


def _rows(value: Tensor, mask: Tensor, where) -> Tensor:
    """[B, T, ...] (or [B, ...] at a position of its own, where None) -> rows [n, d]."""
    if where is not None:
        value = value.reshape(*mask.shape, -1).float()
        if isinstance(where, str) and where == "mean":
            weight = mask[..., None].to(value)
            return ((value * weight).sum(1) / weight.sum(1)).cpu()
        if isinstance(where, str) and where == "tokens":
            return value[mask.bool()].cpu()
        columns = columns_of(mask, -1 if isinstance(where, str) else where)[:, 0]
        value = value[torch.arange(len(value)), columns]
    return value.reshape(len(value), -1).float().cpu()


# --- splits ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Split:
    """Row numbers to fit on and to test on."""

    train: list[int]
    test: list[int]

    def check(self, labels: Sequence[dict], *keys: str) -> Split:
        """Raise ValueError when a value of one of these labels (an entity, a template) is on both sides; else self."""
        for key in keys:
            sides = [{_value(labels[i], key) for i in rows} for rows in (self.train, self.test)]
            both = sorted(map(str, sides[0] & sides[1]))
            if both:
                raise ValueError(
                    f"{key} {both[0]!r} is in train and in test ({len(both)} such): the probe could know it by heart; "
                    f"split with split_by(labels, {key!r})"
                )
        return self


def split_by(labels: Sequence[dict], *keys: str, test: float = 0.3, seed: int = 0) -> Split:
    """A split in which no value of these labels is on both sides: by entity, by template, or by both.

    labels: as in `Task.labels`. test: share of the values of every key that is held out. With several keys, items that
    are new in one and known in another belong to neither side and are left out.
    """
    if not keys:
        raise ValueError("keys is missing: name the labels that must not be on both sides, or use split_rows")
    held_out = {}
    for key in keys:
        values = sorted({_value(label, key) for label in labels}, key=str)
        if len(values) < 2:
            raise ValueError(f"label {key!r} has {len(values)} value(s): nothing to hold out")
        random.Random(seed).shuffle(values)
        held_out[key] = set(values[: min(max(1, round(test * len(values))), len(values) - 1)])
    new = [[_value(label, key) in held_out[key] for key in keys] for label in labels]
    split = Split([i for i, n in enumerate(new) if not any(n)], [i for i, n in enumerate(new) if all(n)])
    if not split.train or not split.test:
        side = "new" if split.train else "known"
        raise ValueError(f"no item is {side} in all of {', '.join(keys)}; change test= or seed=")
    return split.check(labels, *keys)


def split_rows(n: int, test: float = 0.3, seed: int = 0) -> Split:
    """A split by row: the same entity and template can be on both sides. For the comparison only."""
    rows = list(range(n))
    random.Random(seed).shuffle(rows)
    cut = n - max(1, round(test * n))
    return Split(rows[:cut], rows[cut:])


def _value(label: dict, key: str) -> Hashable:
    if key not in label:
        raise ValueError(f"label {key!r} is missing in an item; its labels are {sorted(label)}")
    return label[key]


# --- sweeps ----------------------------------------------------------------------------------------------------------


def sweep(model, task, sites: Iterable, label, split: Split, kind: str = "logistic", positions="last",
          metric: str = "accuracy", penalty: float | None = None, batch_size: int = 128) -> Scores:  # fmt: skip
    """One probe per site, fitted on split.train and scored on split.test.

    Args:
        task: a Task, or prompts.  label: name of one of the task's labels, or n labels.
        sites, positions: see `features`.  kind, penalty: see `probing.fit`.
        metric: "accuracy", or "auroc" of the probe's score, for two classes (not bound to a threshold).
    Returns Scores, sign "magnitude": decodability intervenes on nothing. Chance is not 0 but the majority share
    (accuracy) or 0.5 (AUROC).
    """
    started = time.perf_counter()
    prompts = getattr(task, "prompts", task)
    y = [_value(row, label) for row in task.labels] if isinstance(label, str) else list(label)
    if len(y) != len(prompts):
        raise ValueError(f"label has {len(y)} values for {len(prompts)} prompts; give one per prompt")
    rows = features(model, prompts, sites, positions, batch_size)
    values = [evaluate(x, y, split, kind, metric, penalty) for x in rows.values()]
    tokens = int(model.tokenize(prompts).mask.sum())
    return Scores(list(rows), values, f"{kind} probe, {metric}", "magnitude", forwards=len(prompts),
                  token_layers=tokens * model.n_layers, seconds=time.perf_counter() - started)  # fmt: skip


def contrast(model, task, sites: Iterable, label: str = "answer", by: str | None = None, kind: str = "logistic",
             positions="last", metric: str = "accuracy", test: float = 0.3, seed: int = 0,
             penalty: float | None = None) -> Scores:  # fmt: skip
    """Probing as a localizer of a Task with corrupted twins: which sites tell a prompt from its twin?

    label: "answer", the right answer (the target of a prompt, the foil of its twin), or "twin", which of the two it is.
        "twin" says nothing where twins go both ways, as when the twin of every "loud" is a "quiet" and the reverse.
    by: a label of the task (template, subject) that must not be on both sides of the split; None splits at random. A
        prompt and its twin always stay together. The rest is as in `sweep`.
    """
    if task.corrupted is None:
        raise ValueError(f"task {task.name!r} has no corrupted prompts to tell from the others; use sweep with a label")
    if label not in ("answer", "twin"):
        raise ValueError(f"label={label!r} is unknown; choose 'answer' or 'twin'")
    n = len(task)
    pairs = split_rows(n, test, seed) if by is None else split_by(task.labels, by, test=test, seed=seed)
    split = Split(*([*rows, *(i + n for i in rows)] for rows in (pairs.train, pairs.test)))
    y = [True] * n + [False] * n if label == "twin" else task.target_ids(model).tolist() + task.foil_ids(model).tolist()
    return sweep(model, [*task.prompts, *task.corrupted], sites, y, split, kind, positions, metric, penalty)


def evaluate(x: Tensor, y: Sequence, split: Split, kind: str = "logistic", metric: str = "accuracy",
             penalty: float | None = None, seed: int = 0) -> float:  # fmt: skip
    """Accuracy (or AUROC) on split.test of a probe fitted on split.train. x [n, d], n labels."""
    if metric not in METRICS:
        raise ValueError(f"metric={metric!r} is unknown; choose one of {', '.join(METRICS)}")
    probe = fit(x[split.train], [y[i] for i in split.train], kind, penalty, seed)
    answers = [y[i] for i in split.test]
    if metric == "accuracy":
        return probe.accuracy(x[split.test], answers)
    if len(probe.classes) != 2:
        raise ValueError(f"metric 'auroc' needs two classes, y has {len(probe.classes)}; use 'accuracy'")
    scores = probe.scores(x[split.test])
    positive = torch.tensor([answer == probe.classes[1] for answer in answers])
    return auroc(scores[:, 1] - scores[:, 0], positive).item()


# --- sparse probes ---------------------------------------------------------------------------------------------------

RANKINGS = ("mean difference", "standardised difference", "l1")


def rank_columns(x: Tensor, y: Sequence, by: str = "mean difference") -> list[int]:
    """Columns of x [n, m] (features or neurons), the most telling first.

    mean difference: the largest distance between two class means (Gurnee et al. 2023; Kantamneni et al. 2025). Columns
        of large variance win it easily.
    standardised difference: the same divided by the standard deviation within the classes.
    l1: size of the weights of a logistic probe with an L1 penalty, on columns of variance 1.
    """
    if by in ("mean difference", "standardised difference"):
        classes = sorted(set(y), key=str)
        index = torch.tensor([classes.index(label) for label in y])
        means = class_means(x, index, len(classes))
        spread = means.amax(0) - means.amin(0)
        if by == "standardised difference":
            within = (x - means[index]).square().mean(0).sqrt()
            spread = spread / within.clamp_min(1e-6 * within.max().clamp_min(1e-12))
        return spread.argsort(descending=True, stable=True).tolist()
    if by == "l1":
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        spread = x.std(0, correction=0)
        z = (x - x.mean(0)) / torch.where(spread > 0, spread, 1.0)
        model = LogisticRegression(l1_ratio=1, C=0.1, solver="saga", max_iter=200, tol=1e-3, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the ranking has settled long before the last digits
            model.fit(z.numpy(), [str(label) for label in y])
        return torch.from_numpy(abs(model.coef_)).amax(0).argsort(descending=True, stable=True).tolist()
    raise ValueError(f"by={by!r} is unknown; choose one of {', '.join(RANKINGS)}")


def k_sparse(x: Tensor, y: Sequence, k: int, by: str = "mean difference", kind: str = "logistic",
             penalty: float | None = None) -> Probe:  # fmt: skip
    """A probe that reads only the k most telling columns of x [n, m]. Its W has zero rows everywhere else."""
    if not 1 <= k <= x.shape[1]:
        raise ValueError(f"k={k} is outside 1 ... {x.shape[1]}, the number of columns")
    chosen = rank_columns(x, y, by)[:k]
    probe = fit(x[:, chosen], y, kind, penalty)
    W = torch.zeros(x.shape[1], probe.W.shape[1])
    W[chosen] = probe.W
    return replace(probe, W=W)
