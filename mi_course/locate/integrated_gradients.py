"""Integrated gradients (survey section 3.3, Eq. 14; Sundararajan et al. 2017): the derivative averaged along a path.

    path         gamma(a) = o~ + a (o - o~),  a from 0 (baseline) to 1 (what the model computes)
    attribution  IG_k = (o - o~)_k * integral over a of dF / d gamma_k,   sum over k of IG_k = F(o) - F(o~)

The integral becomes a sum over m points: "midpoint" a = (t - 1/2)/m (default; its error falls with m squared), "left"
a = (t - 1)/m (what the knowledge-neurons code does) or "right" a = t/m (what the survey prints), t = 1 ... m.

Inside a network F(gamma(a)) means do(o <- gamma(a)): every point of the path is an intervention, so the method does
perturb the model, m times (audit A19). And it matters **what moves**:

    joint path  all objects of the layer move together (for neurons: the whole FFN; as in the knowledge-neurons code).
                One path for all; the attributions of the layer sum to the effect of removing all of it.
    own path    one object moves, the others stay (as the knowledge-neurons paper writes). One path for each object. By
                the fundamental theorem of calculus its attribution *is* the exact effect of ablating that object, at m
                times the cost of ablating it.

Sign: scores predict F(o~) - F(o), so they are minus the attributions above: an object that helps scores below 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from mi_course.locate.passes import (
    Cost,
    GradientScores,
    Target,
    baseline_means,
    baselines,
    frozen,
    gradients,
    metric,
    object_mask,
    observe,
    parts,
    per_site,
    position_mask,
    whole,
)
from mi_course.models import Site, intervene, patch
from mi_course.models.sites import parse_sites
from mi_course.objects import Task

RULES = {"midpoint": 0.5, "left": 0.0, "right": 1.0}
PATHS = ("joint", "own")


def path_points(steps: int, rule: str = "midpoint") -> list[float]:
    """The points a_1 ... a_m in 0 ... 1 at which the derivative is taken."""
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is unknown; choose one of {', '.join(RULES)}")
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    return [(t + RULES[rule]) / steps for t in range(steps)]


def integrated_gradients(
    model,
    task: Task,
    sites,
    baseline: str = "zero",
    rule: str = "midpoint",
    steps: int = 16,
    path: str = "joint",
    reduce: str = "mean",
    target: Target = metric,
    batch_size: int = 64,
    rows: int = 256,
) -> GradientScores:
    """Integrated gradients of F at any sites, with the completeness residual.

    Args:
        sites: as in `gradient_times_input`. Sites of one layer-wide tensor (and position) share a joint path.
        baseline: "zero", "mean" or "twin".  rule, steps: how the integral is summed.  path: "joint" or "own".
        reduce: "mean" E[s] or "mean_abs" E|s|; with |s| the scores no longer sum to a change of F (audit A19b).
        batch_size: prompts at a time; rows: prompts x steps in one pass.
    Returns GradientScores; `residual` maps each path (joint: "neurons2", "z3@-1"; own: the site) to, per prompt, the
    sum of its attributions minus the exact change of F. It goes to 0 as steps grow; print it.
    """
    sites, cost = parse_sites(sites), Cost(model)
    if path not in PATHS:
        raise ValueError(f"path={path!r} is unknown; choose one of {', '.join(PATHS)}")
    alphas, means = path_points(steps, rule), baseline_means(model, task, sites, baseline, cost)
    groups: dict[Site, list[Site]] = {}
    for site in sites:
        groups.setdefault(site if path == "own" else whole(site).at(site.position), []).append(site)
    items, residual = [], {str(group): [] for group in groups}
    for part in parts(task, batch_size):
        walk = Walk(model, part, groups, target, cost, rows)
        start = baselines(model, part, walk.clean, baseline, means, cost)
        columns: dict[Site, Tensor] = {}
        for group, members in groups.items():
            change, exact = walk.along(group, start[str(whole(group))], alphas)
            change = {str(whole(group)): change}
            residual[str(group)].append((per_site(change, [group], model, walk.batch)[:, 0] - exact).cpu())
            columns |= zip(members, per_site(change, members, model, walk.batch).T)
        items.append(torch.stack([columns[site] for site in sites], dim=1))
    sign = "noising" if baseline == "twin" else "ablation"
    return cost.scores(
        sites, torch.cat(items), f"integrated gradients ({path} path, {baseline}, {rule} {steps})", sign, reduce,
        {name: np.asarray(torch.cat(r).double()) for name, r in residual.items()},
    )  # fmt: skip


class Walk:
    """Paths through the activations of one batch of prompts: what is shared between them is computed once."""

    def __init__(self, model, task: Task, groups: Sequence[Site], target: Target, cost: Cost, rows: int = 256):
        self.model, self.cost, self.rows = model, cost, rows
        self.starts = {group: first_block(model, group) for group in groups}
        states = [f"x{start}" for start in set(self.starts.values()) if start > 0]
        read = list(dict.fromkeys([*(str(whole(group)) for group in groups), *states]))
        self.clean = observe(model, task, read, target=target)
        self.batch, self.F = self.clean.batch, target(model, task)
        cost.count(self.batch)

    def along(self, group: Site, baseline: Tensor, alphas: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Walk from `baseline` to the clean value at `group` (one object, or all of the layer; one position, or all).

        Returns the attributed change of F(o~) - F(o), shaped like the whole-layer tensor, and the exact change [n].
        """
        clean = self.clean.values[str(whole(group))]
        moves = position_mask(group, self.batch, clean) & object_mask(group, self.model, clean)
        delta = torch.where(moves, baseline - clean, 0.0)
        total = torch.zeros_like(clean)
        for chunk in self._chunks(alphas):
            a = chunk.view(-1, *[1] * clean.dim())
            point = (clean + (1 - a) * delta).flatten(0, 1).requires_grad_()
            with frozen(self.model), torch.enable_grad():
                F = self._measure(group, point, len(chunk), backward=True)
                (grad,) = torch.autograd.grad(F.sum(), point)
            total += grad.view(len(chunk), *clean.shape).sum(0)
        with torch.no_grad():
            removed = self._measure(group, clean + delta, 1)
        return total / len(alphas) * delta, removed - self.clean.F

    def _chunks(self, alphas: Sequence[float]) -> Iterator[Tensor]:
        return torch.tensor(alphas, device=self.model.device).split(max(1, self.rows // len(self.batch)))

    def _measure(self, group: Site, value: Tensor, copies: int, backward: bool = False) -> Tensor:
        """F of `copies` copies of the prompts, with `value` put in at the group. Blocks below it are not run."""
        n, start = len(self.batch), self.starts[group]
        batch = self.batch.rows(torch.arange(n, device=self.batch.ids.device).repeat(copies))
        self.cost.count(batch, start, backward)
        with intervene(self.model, patch(whole(group), value)):
            if start == 0:
                logits = self.model.last_logits(batch, grad=backward)
            else:
                state = self.clean.values[f"x{start}"].repeat(copies, 1, 1)
                logits = self.model.resume(start, state, batch, grad=backward, last=True)
        return torch.cat([self.F(part) for part in logits.split(n)])


def first_block(model, site: Site) -> int:
    """The block from which the model has to run when this site changes. x^l enters as the output of block l - 1."""
    if site.kind == "feature":
        site = Site.parse(model.saes[site.sae].site)
    if site.layer is None:
        return 0
    return max(0, site.layer - 1) if site.kind == "x" else site.layer


def token_attributions(
    model,
    task: Task,
    method: str = "integrated gradients",
    baseline: str = "zero",
    rule: str = "midpoint",
    steps: int = 32,
    target: Target = metric,
    site: str = "embed",
    rows: int = 256,
) -> Tensor:
    """Saliency of the input: one number per prompt and token, [n, T] over the columns of `model.tokenize`.

    method: "gradient norm" (not negative), "gradient x input" or "integrated gradients" (both: estimated change of F
    when the token's embedding is replaced by the baseline, so tokens that help are negative). site: "embed", or a state
    such as "x3". Padding gets 0. Under integrated gradients a row sums to F(all tokens at the baseline) - F.
    """
    group, cost = Site.parse(site), Cost(model)
    means = baseline_means(model, task, [group], baseline, cost)
    if method == "integrated gradients":
        walk = Walk(model, task, [group], target, cost, rows)
        start = baselines(model, task, walk.clean, baseline, means, cost)[site]
        return walk.along(group, start, path_points(steps, rule))[0].sum(-1)
    p = gradients(model, task, [group], target=target)
    mask = p.batch.mask
    if method == "gradient norm":
        return p.grads[site].norm(dim=-1) * mask
    if method == "gradient x input":
        start = baselines(model, task, p, baseline, means, cost)[site]
        return (p.grads[site] * (start - p.values[site])).sum(-1) * mask
    raise ValueError(
        f"method={method!r} is unknown; choose 'gradient norm', 'gradient x input' or 'integrated gradients'"
    )
