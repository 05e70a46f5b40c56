"""What the gradient methods share: one pass that gives activations and derivatives, whole layers cut into sites, costs.

gradients(model, task, sites)   F, activations and total derivatives: one forward and one backward pass
observe(model, task, sites)     the same without derivatives
metric, counterfactual_gap      targets F to differentiate
per_site(tensors, sites, ...)   whole-layer tensors summed over the coordinates and positions of each site
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mi_course.locate.causal import site_means
from mi_course.models import Batch, Site, edit, intervene
from mi_course.models.batch import columns_of
from mi_course.models.sites import parse_sites
from mi_course.objects import Scores, Task

BASELINES = ("zero", "mean", "twin")
REDUCTIONS = ("mean", "mean_abs")
Target = Callable[[object, Task], Callable[[Tensor], Tensor]]


@dataclass(frozen=True, repr=False, eq=False)
class GradientScores(Scores):
    """Scores whose `per_item` [n_sites, n_prompts] is always there (sizes, if the values are E|s|), and for paths:

    residual  path -> [n_prompts], sum of its attributions - exact change of F: how far completeness is off
    """

    residual: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Pass:
    """One forward and one backward pass. F [n]; values and grads: whole-layer site -> tensor, shapes as `record`."""

    F: Tensor
    values: dict[str, Tensor]
    grads: dict[str, Tensor]
    batch: Batch


def metric(model, task: Task) -> Callable[[Tensor], Tensor]:
    """The default target F: the task's own metric, from logits [n, V] to [n]."""
    return lambda logits: task.metric_of(logits, model)


def counterfactual_gap(model, task: Task) -> Callable[[Tensor], Tensor]:
    """The target |logit_y(x) - logit_y(x_cf)| of the survey: how far the answer's logit is from that of the twin.

    The twin is a constant here: derivatives are with respect to the objects of x.
    """
    y = task.target_ids(model)
    with torch.no_grad():
        reference = _pick(model.last_logits(_prompts(task, "corrupted")), y)
    return lambda logits: (_pick(logits, y) - reference).abs()


def gradients(model, task: Task, sites, on: str = "clean", target: Target = metric, edits: Sequence = ()) -> Pass:
    """Activations and total derivatives of F at `sites`, in one forward and one backward pass. Returns a Pass.

    Sites of one head, neuron, feature or position are read as the whole layer: keys are such as "z3", "neurons2".
    on: "clean" or "corrupted", the run in which the derivative is taken. edits: interventions that act after the sites
    are read (those that are active already act before). Weights are frozen meanwhile, so that no derivative with
    respect to a weight is computed.
    """
    names, values = _whole_names(sites), {}
    batch, F = model.tokenize(_prompts(task, on)), target(model, task)
    with frozen(model), intervene(model, *_keep(names, values), *edits), torch.enable_grad():
        logits = model.last_logits(batch, grad=True)
        result = F(logits)
        if logits.requires_grad and not result.requires_grad:
            raise ValueError(
                f"metric {task.metric!r} of task {task.name!r} has no gradient; use logit_diff, logprob or prob"
            )
        read = [values[name] for name in names]
        cut = not logits.requires_grad  # edits let no gradient through
        found = [None] * len(read) if cut else torch.autograd.grad(result.sum(), read, allow_unused=True)
    grads = {name: torch.zeros_like(values[name]) if g is None else g for name, g in zip(names, found)}
    return Pass(result.detach(), {name: values[name].detach() for name in names}, grads, batch)


@torch.no_grad()
def observe(model, task: Task, sites, on: str = "clean", target: Target = metric) -> Pass:
    """The same without the backward pass: F and the activations of `sites`; `grads` is empty."""
    names, values = _whole_names(sites), {}
    batch = model.tokenize(_prompts(task, on))
    with intervene(model, *_keep(names, values)):
        F = target(model, task)(model.last_logits(batch))
    return Pass(F, {name: value.detach() for name, value in values.items()}, {}, batch)


def _whole_names(sites) -> list[str]:
    return [str(site) for site in dict.fromkeys(whole(site) for site in parse_sites(sites))]


def _keep(names: Sequence[str], values: dict[str, Tensor]) -> list:
    """Edits that change nothing and put the value of each site into `values`, as a point where gradients arrive."""

    def keeper(name: str) -> Callable[[Tensor], Tensor]:
        def kept(value: Tensor) -> Tensor:
            first = torch.is_grad_enabled() and not value.requires_grad  # nothing below it has a gradient
            values[name] = value.clone().requires_grad_() if first else value.clone()
            return values[name]

        return kept

    return [edit(name, keeper(name)) for name in names]


# -- sites -----------------------------------------------------------------------------------------------------------


@contextmanager
def frozen(model) -> Iterator[None]:
    """While active no weight asks for a gradient: the graph starts at the first site that is kept."""
    asked = [p for p in model.hf.parameters() if p.is_leaf and p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


def parts(task: Task, batch_size: int) -> Iterator[Task]:
    """The task in pieces of at most `batch_size` prompts."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    for start in range(0, len(task), batch_size):
        yield task.subset(slice(start, start + batch_size))


@lru_cache(maxsize=100_000)  # asked again and again for all neurons of a model
def whole(site: Site | str) -> Site:
    """The site that holds all objects of this kind in the layer, at all positions: L3H5.z@-1 -> z3."""
    return replace(Site.parse(site), index=None, position=None)


def position_mask(site: Site, batch: Batch, like: Tensor) -> Tensor:
    """Bool mask, broadcasting over the whole-layer tensor `like`: the real tokens, or the site's one position.

    For scores and pattern the position is that of the query.
    """
    mask = batch.mask.bool()
    if site.position is not None:
        mask = torch.zeros_like(mask).scatter(1, columns_of(batch.mask, site.position), True)
    shape = [mask.shape[0]] + [1] * (like.dim() - 1)
    shape[2 if site.part in ("scores", "pattern") else 1] = mask.shape[1]
    return mask.view(shape)


def object_mask(site: Site, model, like: Tensor) -> Tensor:
    """Bool mask, broadcasting over `like`: the coordinates that belong to this head, neuron or feature."""
    if site.index is None:
        return like.new_ones(1, dtype=torch.bool)
    axis = {"head": 1 if site.part in ("scores", "pattern") else 2}.get(site.kind, like.dim() - 1)
    shape = [1] * like.dim()
    shape[axis] = like.shape[axis]
    return (torch.arange(like.shape[axis], device=like.device) == index_in_layer(site, model)).view(shape)


def index_in_layer(site: Site, model) -> int:
    """Place of the object in the whole-layer tensor; keys and values are stored once per group of heads."""
    shared = site.kind == "head" and site.part in ("k", "v")
    return site.index // (model.n_heads // model.n_kv_heads) if shared else site.index


def per_site(tensors: dict[str, Tensor], sites: Sequence[Site], model, batch: Batch) -> Tensor:
    """Whole-layer tensors summed over the coordinates and positions of every site: [n_prompts, n_sites]."""
    members: dict[tuple, list[int]] = {}  # the sites that are summed together, by their places in `sites`
    for i, site in enumerate(sites):
        members.setdefault((whole(site), site.position, site.index is None), []).append(i)
    columns = []
    for (layer, _, is_whole), places in members.items():
        found = _by_object(tensors[str(layer)], sites[places[0]], batch)
        own = [index_in_layer(sites[i], model) for i in places if not is_whole]
        columns.append(found.sum(1, keepdim=True).expand(-1, len(places)) if is_whole else found[:, own])
    order = torch.tensor([i for places in members.values() for i in places]).argsort()
    return torch.cat(columns, dim=1)[:, order]


def _by_object(tensor: Tensor, site: Site, batch: Batch) -> Tensor:
    """Sum over the site's positions and over the coordinates of each object of the layer: [n, objects]."""
    axis = 2 if site.part in ("scores", "pattern") else 1
    summed = tensor.masked_fill(~position_mask(site, batch, tensor), 0.0).sum(axis)
    if site.kind in ("neuron", "feature"):
        return summed
    return summed.sum(-1) if site.kind == "head" else summed.sum(-1, keepdim=True)


def baseline_means(model, task: Task, sites, baseline: str, cost: Cost) -> dict[str, Tensor]:
    """Means for baseline "mean" (else nothing), after a look at the arguments that every method shares."""
    if baseline not in BASELINES:
        raise ValueError(f"baseline={baseline!r} is unknown; choose one of {', '.join(BASELINES)}")
    if baseline == "twin":
        _prompts(task, "corrupted")
        task.validate(model)
    if baseline != "mean":
        return {}
    if any(whole(site).part in ("scores", "pattern") for site in sites):
        raise ValueError("baseline='mean' does not exist for scores and patterns, whose shape depends on the prompt; "
                         "choose 'zero' or 'twin'")  # fmt: skip
    for part in parts(task, 128):
        cost.count(model.tokenize(part.prompts))
    return site_means(model, task.prompts, _whole_names(sites))


def baselines(model, part: Task, p: Pass, baseline: str, means: dict, cost: Cost) -> dict[str, Tensor]:
    """The value that every whole-layer site of the pass is compared with, shaped like the recorded one."""
    if baseline == "zero":
        return {name: torch.zeros_like(value) for name, value in p.values.items()}
    if baseline == "mean":
        return {name: means[name].expand_as(value) for name, value in p.values.items()}
    twin = observe(model, part, list(p.values), on="corrupted")
    cost.count(twin.batch)
    return twin.values


class Cost:
    """Counts what a method sends through the model (see `Scores`); makes the Scores in the end.

    A pass that starts at block l counts as (L - l) / L of a forward: so forwards and token_layers tell one story.
    """

    def __init__(self, model):
        self.model, self.started = model, time.perf_counter()
        self.forwards = self.backwards = self.token_layers = 0.0

    def count(self, batch: Batch, start: int = 0, backward: bool = False) -> None:
        """One pass of `batch` through the blocks from `start` on, and back if `backward`."""
        L = self.model.n_layers
        self.forwards += len(batch) * (L - start) / L
        self.backwards += len(batch) * (L - start) / L * backward
        self.token_layers += int(batch.mask.sum()) * (L - start)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def scores(self, sites, items: Tensor, method: str, sign: str, reduce: str = "mean", residual=None):
        """GradientScores from the score of every prompt, items [n, n_sites]."""
        if reduce not in REDUCTIONS:
            raise ValueError(f"reduce={reduce!r} is unknown; choose one of {', '.join(REDUCTIONS)}")
        per_item = items.detach().double().cpu().numpy().T
        if reduce == "mean_abs":
            per_item, sign = np.abs(per_item), "magnitude"
        return GradientScores(
            [str(site) for site in sites], per_item.mean(1), method, sign, self.forwards, self.backwards, self.seconds,
            self.token_layers, per_item, residual,
        )  # fmt: skip


def _pick(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.gather(-1, ids.to(logits.device)[:, None])[:, 0]


def _prompts(task: Task, on: str) -> list:
    if on not in ("clean", "corrupted"):
        raise ValueError(f"on={on!r} is unknown; choose 'clean' or 'corrupted'")
    prompts = task.prompts if on == "clean" else task.corrupted
    if prompts is None:
        raise ValueError(f"task {task.name!r} has no corrupted prompts; give twins of equal token length in corrupted=")
    return prompts
