"""Gradient detection (survey section 3.3): how F would change, read off its derivative.

    first order      F(o + delta) - F(o) = grad . delta + O(|delta|^2)                       (Eq. 13)
    zero ablation    delta = -o, so the score is -(grad . o)
    in general       delta = o~ - o, with o~ zero, a mean, or the value on the corrupted twin

Signs (audit A18): as everywhere, a score predicts F(intervened) - F(base), so an object that helps scores below 0. The
survey's grad . o is minus that. One forward and one backward pass give the scores of all objects at once; they are
exact where F is linear in the object, and need a causal check (`locate.causal`) everywhere else. The norm of the
gradient depends on how the object is parametrised and on no baseline at all; it is here to be compared.

Here: first-order scores. The pass under them is in `passes`, paths (integrated gradients) are in
`integrated_gradients`, neurons for facts and contexts in `knowledge_neurons`, patching estimates in
`attribution_patching`, weights in `parameters`.
"""

from __future__ import annotations

import torch

from mi_course.locate.passes import (
    Cost,
    GradientScores,
    Target,
    baseline_means,
    baselines,
    counterfactual_gap,
    gradients,
    metric,
    parts,
    per_site,
)
from mi_course.models.sites import parse_sites
from mi_course.objects import Task

__all__ = ["GradientScores", "counterfactual_gap", "gradient_norm", "gradient_times_input", "gradients", "metric"]


def gradient_norm(
    model, task: Task, sites, order: float = 2, target: Target = metric, batch_size: int = 64
) -> GradientScores:
    """E |grad_o F|_p: how sensitive F is to the object, in the units in which the object happens to be stored.

    The norm runs over the object's coordinates and positions. Rescaling a neuron (s times c, value divided by c)
    changes this score and nothing that the model computes; see `gradient_times_input`. sign: "magnitude".
    """
    sites, cost = parse_sites(sites), Cost(model)
    items = []
    for part in parts(task, batch_size):
        p = gradients(model, part, sites, target=target)
        cost.count(p.batch, backward=True)
        powers = {name: g.abs() ** order for name, g in p.grads.items()}
        items.append(per_site(powers, sites, model, p.batch) ** (1 / order))
    return cost.scores(sites, torch.cat(items), f"gradient norm L{order:g}", "magnitude")


def gradient_times_input(
    model,
    task: Task,
    sites,
    baseline: str = "zero",
    reduce: str = "mean",
    target: Target = metric,
    batch_size: int = 64,
) -> GradientScores:
    """First-order estimate of F(o replaced by its baseline) - F(o): grad . (baseline - o), taken at the clean run.

    Args:
        sites: any activations of `models.sites`, also with a position; a site without one is replaced everywhere.
        baseline: "zero" (the classic gradient x input, with the sign of an ablation), "mean" over the tokens of the
            task's prompts, or "twin", the value on the corrupted prompt (then this is attribution patching).
        reduce: "mean" E[s], which lets prompts of opposite sign cancel, or "mean_abs" E|s| (audit A19b).
    Returns GradientScores with sign "ablation" ("noising" for "twin"; "magnitude" after mean_abs).
    """
    sites, cost = parse_sites(sites), Cost(model)
    means = baseline_means(model, task, sites, baseline, cost)
    items = []
    for part in parts(task, batch_size):
        p = gradients(model, part, sites, target=target)
        cost.count(p.batch, backward=True)
        start = baselines(model, part, p, baseline, means, cost)
        items.append(per_site({k: g * (start[k] - p.values[k]) for k, g in p.grads.items()}, sites, model, p.batch))
    sign = "noising" if baseline == "twin" else "ablation"
    return cost.scores(sites, torch.cat(items), f"gradient x input ({baseline})", sign, reduce)
