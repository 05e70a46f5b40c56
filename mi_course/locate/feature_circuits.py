"""Sparse feature circuits (survey section 3.6, L6f; Marks et al. 2025): attribution patching over SAE features.

An SAE writes a state as x = sum_j a_j f_j + b_dec + e, with e its error. To first order, moving x to x' changes the
metric F by g . (x' - x), g = dF/dx at the clean run, and that splits over the dictionary without a remainder:

    effect(feature j) = sum over positions of (g . f_j) (a'_j - a_j)
    effect(error)     = sum over positions of g . (e' - e)
    all of them together = g . (x' - x)

Signs are those of noising: an estimate of F(feature moved) - F(clean), negative for a feature that helps. With `steps`
the gradient is averaged along the way from x to x' (integrated gradients); then all effects of a site sum to the exact
effect of patching it, as the number of steps grows.

An **edge** between two sites asks how much of a receiver's effect comes through a sender:

    edge(u -> d) = (dF/da_d) . (da_d/du) . (u' - u)

If everything between sender and output passes the receiver's site (x2 -> x3, say), the edges leaving u, those into the
error included, sum to the effect of u. What the error carries is what the dictionary does not explain:
`error_share` is part of every report (a circuit of features whose errors carry half of it explains half).
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mi_course.models import Site, intervene, patch, record
from mi_course.objects import Scores

BASELINES = {"corrupted": "noising", "zero": "ablation"}


def feature_effects(model, task, saes: Sequence[str], baseline: str = "corrupted", steps: int | None = None) -> Scores:
    """Effect of every feature, and of the error, of the named SAEs on the task's metric; mean over prompts.

    saes: names in `model.saes`.  baseline: "corrupted" moves to the values on the corrupted twins; "zero" sets features
    and error to zero, which leaves b_dec.  steps: None for one gradient at the clean run; n for integrated gradients
    with n points (midpoint rule), each SAE by itself.
    Returns Scores over "<sae>F0" ... and "<sae>.error".
    """
    started = time.perf_counter()
    batch, others = _runs(model, task, saes, baseline)
    clean = record(model, batch, _sites(model, saes), grad=True)
    metric = _metric(model, task, clean.logits, batch)
    at_clean = torch.autograd.grad(metric, [clean[site] for site in _sites(model, saes)])
    names, values, passes = [], [], 1
    for name, gradient in zip(saes, at_clean):
        site = model.saes[name].site
        if steps is not None:
            gradient = _mean_gradient(model, task, batch, site, clean[site].detach(), others[name][2], steps)
            passes += steps
        moved = _moves(model.saes[name], clean[site].detach().flatten(2), others[name])
        names += _names(model, name)
        values.append(_split(gradient.flatten(2), model.saes[name], *moved))
    n = len(batch)
    return Scores(names, torch.cat(values) / n, f"feature attribution{'' if steps is None else f', IG {steps}'}",
                  BASELINES[baseline], forwards=n * (passes + (baseline == "corrupted")), backwards=n * passes,
                  seconds=time.perf_counter() - started)


def feature_edges(model, task, sender: str, receivers: Sequence[str], baseline: str = "corrupted") -> Scores:
    """Edges from every feature, and the error, of the SAE `sender` to the receivers; mean over prompts.

    receivers: features ("x4F17") or the error ("x4.error") of one SAE whose site comes later. Everything that lies
    between the two sites is part of the edge. One backward pass for each receiver.
    Returns Scores over "<sender>F0->x4F17" ...
    """
    started = time.perf_counter()
    wanted = [_receiver(model, receiver) for receiver in receivers]
    name = wanted[0][0]
    if any(other != name for other, _ in wanted):
        raise ValueError(f"receivers {list(receivers)} belong to several SAEs; ask for one of them at a time")
    batch, others = _runs(model, task, [sender], baseline)
    first, second, sae = model.saes[sender].site, model.saes[name].site, model.saes[name]
    clean = record(model, batch, [first, second], grad=True)
    metric = _metric(model, task, clean.logits, batch)
    h = torch.autograd.grad(metric, clean[second], retain_graph=True)[0].flatten(2)
    x = clean[second].flatten(2)
    a = sae.encode(x)
    moved = _moves(model.saes[sender], clean[first].detach().flatten(2), others[sender])
    names, values = [], []
    for receiver, (_, index) in zip(receivers, wanted):
        what = (h * (x - sae.decode(a))).sum() if index is None else ((h @ sae.W_dec[index]) * a[..., index]).sum()
        gradient = torch.autograd.grad(what, clean[first], retain_graph=True, allow_unused=True)[0]
        if gradient is None:
            raise ValueError(f"sender {sender!r} at {first} does not come before {name!r} at {second}; swap them")
        names += [f"{node}->{receiver}" for node in _names(model, sender)]
        values.append(_split(gradient.flatten(2), model.saes[sender], *moved))
    n = len(batch)
    return Scores(names, torch.cat(values) / n, "feature edges", BASELINES[baseline],
                  forwards=n * (1 + (baseline == "corrupted")), backwards=n * (1 + len(receivers)),
                  seconds=time.perf_counter() - started)


def error_share(scores: Scores) -> dict[str, float]:
    """For each SAE in the scores of `feature_effects`: the share that its error carries, |error| / sum of all |effect|.

    0: the features carry everything; 1: the dictionary explains nothing of the effect.
    """
    total: dict[str, float] = {}
    error: dict[str, float] = {}
    for node, value in zip(scores.sites, scores.values):
        name = node.removesuffix(".error") if node.endswith(".error") else Site.parse(node).sae
        total[name] = total.get(name, 0.0) + abs(value)
        if node.endswith(".error"):
            error[name] = abs(value)
    return {name: float(error[name] / total[name]) if total[name] else 0.0 for name in total}


# ----------------------------------------------------------------------------------------------------------- the parts


def _runs(model, task, saes: Sequence[str], baseline: str):
    """The clean batch, and for each SAE (features, error, state) on the other side."""
    if baseline not in BASELINES:
        raise ValueError(f"baseline={baseline!r} is unknown; choose one of {', '.join(BASELINES)}")
    if isinstance(saes, str) or not saes:
        raise ValueError(f"saes={saes!r}: give a list of names of model.saes, for example ['x3-topk']")
    missing = [name for name in saes if name not in model.saes]
    if missing:
        raise ValueError(f"saes: {missing[0]!r} is not attached (model.saes has {', '.join(model.saes) or 'none'}); "
                         f"attach it with model.saes[{missing[0]!r}] = sae")
    if baseline == "corrupted" and task.corrupted is None:
        raise ValueError(f"task {task.name!r} has no corrupted prompts; use baseline='zero'")
    task.validate(model)
    batch, sites = model.tokenize(task.prompts), _sites(model, saes)
    if baseline == "corrupted":
        cache = record(model, task.corrupted, sites, logits=False)
        return batch, {name: (*_parts(model.saes[name], cache[site].flatten(2)), cache[site])
                       for name, site in zip(saes, sites)}
    cache = record(model, batch, sites, logits=False)
    others = {}
    for name, site in zip(saes, sites):
        zeros = torch.zeros_like(model.saes[name].encode(cache[site].flatten(2)))
        state = model.saes[name].decode(zeros)
        others[name] = (zeros, torch.zeros_like(state), state.view_as(cache[site]))
    return batch, others


def _parts(sae, x: Tensor) -> tuple[Tensor, Tensor]:
    """Features a [B, T, m] and error e [B, T, d] of states."""
    a = sae.encode(x)
    return a, x - sae.decode(a)


def _moves(sae, x: Tensor, other) -> tuple[Tensor, Tensor]:
    """How far features and error go: (a' - a, e' - e)."""
    a, e = _parts(sae, x)
    return other[0] - a, other[1] - e


def _split(gradient: Tensor, sae, moved_features: Tensor, moved_error: Tensor) -> Tensor:
    """[m + 1]: (g . f_j) (a'_j - a_j) for every feature, then g . (e' - e); sums over prompts and positions."""
    by_feature = ((gradient @ sae.W_dec.T) * moved_features).sum((0, 1))
    return torch.cat([by_feature, (gradient * moved_error).sum()[None]])


def _mean_gradient(model, task, batch, site: str, start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Gradient of the metric for the state at `site`, averaged over `steps` midpoints between start and end."""
    total = torch.zeros_like(start)
    for step in range(steps):
        x = torch.lerp(start, end, (step + 0.5) / steps).requires_grad_()
        with intervene(model, patch(site, x)):
            metric = _metric(model, task, model(batch, grad=True), batch)
        total += torch.autograd.grad(metric, x)[0]
    return total / steps


def _metric(model, task, logits: Tensor, batch) -> Tensor:
    """The metric summed over prompts, whose gradient for one prompt is not touched by the others."""
    return task.metric_of(logits[torch.arange(len(batch), device=logits.device), batch.last], model).sum()


def _sites(model, saes: Sequence[str]) -> list[str]:
    return [model.saes[name].site for name in saes]


def _names(model, name: str) -> list[str]:
    return [f"{name}F{j}" for j in range(len(model.saes[name].W_dec))] + [f"{name}.error"]


def _receiver(model, receiver: str) -> tuple[str, int | None]:
    """(name of the SAE, feature or None for its error)."""
    if receiver.endswith(".error"):
        name, index = receiver.removesuffix(".error"), None
    else:
        site = Site.parse(receiver)
        name, index = site.sae, site.index
    if name not in model.saes or (index is None and not receiver.endswith(".error")):
        raise ValueError(f"receivers: {receiver!r} is no feature or error of an attached SAE "
                         f"({', '.join(model.saes) or 'none'}); write for example 'x3-topkF17' or 'x3-topk.error'")
    return name, index
