"""Judge localizers: against an answer key, against an exhaustive map, against chance, and by what they cost.

    scored(f, model, task, sites)       call anyone's `f(model, task, sites) -> array` and check what comes back
    random_rankings(n, k)               AUROC and recall of random rankings: the null band
    agreement(scores, reference, k)     rank correlation and overlap of the top k with a reference
    consensus([scores, ...])            several methods as one, by mean rank

A localizer is any function of a model, a task and sites that returns one number per site, higher = more important; or
`Scores`, whose signed effects then count by their size. AUROC and recall@k are in `Scores.against`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from ..objects import Scores
from .statistics import NullBand, null_band


@dataclass
class Meter:
    """What ran through a model's FFNs: tokens times layers, forward and back (padding included)."""

    forward: float = 0
    backward: float = 0


@contextmanager
def metered(model) -> Iterator[Meter]:
    """Count the work of everything that runs through the layers of `model`, whoever calls them.

    Counted at the FFNs' output projections, so passes that start half way count as far as they go. Work that bypasses
    the layers (such as arithmetic on weights) is not seen.
    """
    meter = Meter()
    modules = [model.block(layer).get_submodule(model.family.mlp_out) for layer in range(model.n_layers)]
    before = [module.__dict__.get("forward") for module in modules]  # someone outside may be counting, too

    def counted(forward):
        def call(x):
            y = forward(x)
            tokens = y.numel() / y.shape[-1]
            meter.forward += tokens
            if y.requires_grad:
                y.register_hook(lambda gradient: setattr(meter, "backward", meter.backward + tokens))
            return y

        return call

    try:
        for module in modules:
            module.forward = counted(module.forward)
        yield meter
    finally:
        for module, own in zip(modules, before, strict=True):
            del module.forward
            if own is not None:
                module.forward = own


def scored(localizer: Callable, model, task, sites: Sequence[str], name: str | None = None) -> Scores:
    """Call a localizer and return its result as Scores, with the seconds it took and the work it made the model do.

    On a CPU these are seconds of computing, whatever else the machine does meanwhile; else seconds of the clock.

    The localizer may return Scores over these sites (in any order), or one number per site as list, array or tensor,
    higher = more important (sign "importance"). Costs that Scores state are kept. Raises ValueError for a
    result that is no such thing: its length, NaN, no numbers, other sites. An exception of the localizer itself is
    passed on as it is.
    """
    if not callable(localizer):
        raise ValueError(f"localizer {localizer!r} is not callable; give a function f(model, task, sites) -> array")
    name = name or getattr(localizer, "__name__", "localizer")
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    started = clock()
    with metered(model) as meter:
        result = localizer(model, task, list(sites))
    seconds = clock() - started
    ids = model.tokenize(task.prompts).ids
    rows = 1 / (ids.shape[1] * model.n_layers)  # prompt rows through the whole model, per token-layer
    cost = {"forwards": meter.forward * rows, "backwards": meter.backward * rows, "token_layers": meter.forward}
    if isinstance(result, Scores):
        return _in_order(result, sites, name, cost | {"seconds": seconds})
    return Scores(list(sites), _numbers(result, len(sites), name), name, "importance", seconds=seconds, **cost)


def _numbers(result, n: int, name: str) -> np.ndarray:
    detach = getattr(result, "detach", None)
    result = detach().float().cpu().numpy() if detach else result
    try:
        values = np.asarray(result, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} returned {type(result).__name__}, not numbers; return one number per site") from error
    if values.shape != (n,):
        raise ValueError(f"{name} returned an array of shape {values.shape} for {n} sites; return one number per site, "
                         "in the order of `sites`")  # fmt: skip
    if not np.isfinite(values).all():
        raise ValueError(f"{name} returned {int((~np.isfinite(values)).sum())} numbers that are NaN or infinite; give "
                         "sites without evidence 0")  # fmt: skip
    return values


def _in_order(scores: Scores, sites: Sequence[str], name: str, cost: dict) -> Scores:
    place = {str(site): i for i, site in enumerate(scores.sites)}
    if set(place) != {str(site) for site in sites}:
        raise ValueError(f"{name} scored other sites than it was asked for; return one number for each of `sites`")
    values = scores.values[[place[str(site)] for site in sites]]
    for key in ("forwards", "backwards", "token_layers"):
        cost[key] = getattr(scores, key) or cost[key]
    return Scores(list(sites), values, method=name, sign=scores.sign, **cost)


# --- against chance and against a reference -------------------------------------------------------------------------
def random_rankings(n: int, k: int, draws: int = 1000, seed: int = 0) -> dict[str, NullBand]:
    """AUROC and recall@k of random rankings of n sites, k of them true: {"auroc": NullBand, "recall_at_k": NullBand}.

    Their means are 1/2 and k/n; how far luck alone goes is what the band says. With one true site among six, a random
    ranking is perfect once in six times.
    """
    if not 0 < k < n:
        raise ValueError(f"k={k} of n={n}: a ranking is judged with at least one true and one false site")
    rng, sites = np.random.default_rng(seed), [str(i) for i in range(n)]
    found = [Scores(sites, rng.permutation(n) + 1.0, "random", "magnitude").against(sites[:k]) for _ in range(draws)]
    return {key: null_band(one[key] for one in found) for key in ("auroc", "recall_at_k")}


def agreement(scores: Scores, reference: Scores, k: int, by: str = "abs") -> dict:
    """How far a ranking agrees with a reference over the same sites, such as the exhaustive map.

    Returns spearman (rank correlation of importances; NaN where all are equal), overlap (share of the reference's top
    k among the top k) and chance_overlap = k / n.
    """
    top = {str(site) for site in reference.top(k)} & {str(site) for site in scores.top(k, by)}
    others = replace(reference, values=np.abs(reference.values)) if by != "abs" else reference
    return {
        "spearman": scores.spearman(others, by),
        "overlap": len(top) / k,
        "chance_overlap": k / len(scores),
    }


def consensus(scores: Sequence[Scores], by: str = "abs") -> Scores:
    """Several rankings of the same sites as one: the mean over methods of a site's rank, in 0 (last) ... 1 (first).

    Ties share their mean rank, so a method that knows nothing moves nobody. Its cost is the sum of theirs.
    """
    if len(scores) < 2:
        raise ValueError("scores: a consensus needs two methods or more")
    names = [str(site) for site in scores[0].sites]
    ranks = []
    for one in scores:
        place = {str(site): i for i, site in enumerate(one.sites)}
        if set(place) != set(names):
            raise ValueError(f"scores of {one.method!r} are over other sites; score the same ones with every method")
        ranks.append(relative_ranks(one._importance(by)[[place[name] for name in names]]))
    total = {c: sum(getattr(one, c) for one in scores) for c in ("forwards", "backwards", "seconds", "token_layers")}
    return Scores(names, np.mean(ranks, axis=0), f"consensus of {len(scores)}", "magnitude", **total)


def relative_ranks(values: Sequence[float]) -> np.ndarray:
    """Rank of every value among all, from 0 (smallest) to 1 (largest); ties share their mean rank."""
    values = np.asarray(values, dtype=float)
    below = (values[None] < values[:, None]).sum(1)
    ties = (values[None] == values[:, None]).sum(1) - 1
    return (below + ties / 2) / max(1, len(values) - 1)


# --- what it would cost elsewhere -----------------------------------------------------------------------------------
def flops(parameters: float, tokens: float, forwards: float, backwards: float = 0) -> float:
    """Floating point operations of so many passes of `tokens` tokens each: 2 per parameter and token forward, 4 back.

    The usual estimate: every weight takes part in one multiplication and one addition per token; the backward pass
    does that twice. Attention over the tokens themselves is left out, which is small where they are few.
    """
    if min(parameters, tokens) <= 0 or min(forwards, backwards) < 0:
        raise ValueError("parameters and tokens must be positive, forwards and backwards not negative")
    return parameters * tokens * (2 * forwards + 4 * backwards)
