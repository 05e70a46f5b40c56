"""Neurons behind a fact, and neurons that read a context: two selections on top of integrated gradients (L3b).

    knowledge neurons (Dai et al. 2022)        path from 0 to the activations; F = p(answer); shared by the wordings
    context-aware neurons (IRCAN, Shi et al. 2024)   path from the activations without the context to those with it

Both move a whole FFN at once, at the last token of the prompt, one layer after the other: the joint path of
`integrated_gradients` (audit A19c). Both are estimates; remove the neurons to see what they do (`locate.causal`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from mi_course.locate.integrated_gradients import Walk, integrated_gradients, path_points
from mi_course.locate.magnitude import all_neurons
from mi_course.locate.passes import Cost, GradientScores, Target, metric, observe, parts, per_site
from mi_course.models import Site
from mi_course.objects import Task


def knowledge_neurons(
    model, task: Task, steps: int = 20, rule: str = "left", position: int | None = -1, metric: str = "prob"
) -> GradientScores:
    """Knowledge attribution of every neuron (Dai et al. 2022): integrated gradients from 0, one joint path per layer.

    Args:
        task: prompts that ask for one fact in several wordings, or for several facts; targets are the answers.
        steps, rule: as published 20 points and the left rule; "midpoint" is closer to the integral.
        position: where activations are moved; -1 as published. None moves them at every token.
        metric: F; as published the probability of the answer.
    Returns GradientScores (sign "ablation": minus the published attribution). `select` takes the neurons from it.
    """
    sites = all_neurons(model, position)
    return integrated_gradients(model, replace(task, metric=metric), sites, rule=rule, steps=steps)


def context_neurons(
    model,
    task: Task,
    without: Sequence[str],
    steps: int = 20,
    rule: str = "midpoint",
    target: Target = metric,
    batch_size: int = 64,
    rows: int = 256,
) -> GradientScores:
    """Context-aware attribution of every neuron (IRCAN, Shi et al. 2024, arXiv 2406.18406).

    In the run with the context, the neurons of one layer at the last token move from what they are when the question
    stands alone to what they are with the context. A neuron scores below 0 if taking the context's part out of it
    lowers F, the answer that the context calls for.

    Args:
        task: prompts with the context in front of the question.  without: the same questions alone, any length.
    Returns GradientScores over "L2N117@-1", sign "ablation" (the context's contribution is removed).
    """
    if len(without) != len(task):
        raise ValueError(f"without has {len(without)} prompts for the {len(task)} of the task; give one for each")
    alone = replace(task, prompts=list(without), corrupted=None)
    groups = [Site.neuron(layer, None).at(-1) for layer in range(model.n_layers)]
    sites, alphas, cost = all_neurons(model, -1), path_points(steps, rule), Cost(model)
    items, residual = [], {str(group): [] for group in groups}
    for part, bare in zip(parts(task, batch_size), parts(alone, batch_size)):
        walk = Walk(model, part, groups, target, cost, rows)
        before = observe(model, bare, groups, target=_nothing)
        cost.count(before.batch)
        columns = []
        for group in groups:
            name = f"neurons{group.layer}"
            start = walk.clean.values[name].clone()
            last = (torch.arange(len(part)), walk.batch.last), (torch.arange(len(part)), before.batch.last)
            start[last[0]] = before.values[name][last[1]]
            change, exact = walk.along(group, start, alphas)
            own = [site for site in sites if site.startswith(f"L{group.layer}N")]
            columns.append(per_site({name: change}, [Site.parse(site) for site in own], model, walk.batch))
            residual[str(group)].append((columns[-1].sum(1) - exact).cpu())
        items.append(torch.cat(columns, dim=1))
    return cost.scores(
        sites, torch.cat(items), f"context-aware attribution ({rule} {steps})", "ablation",
        residual={name: np.asarray(torch.cat(r).double()) for name, r in residual.items()},
    )  # fmt: skip


def select(scores: GradientScores, threshold: float = 0.2, share: float = 0.7) -> list[str]:
    """The neurons that matter in most prompts, most often chosen first (Dai et al. 2022, section 3.2; IRCAN likewise).

    For each prompt keep the neurons whose attribution (minus the score: F falls without them) is above `threshold`
    times the prompt's largest; of these keep the ones kept in more than `share` of the prompts. share 0 is the union.
    The released code (Hunter-DDM/knowledge-neurons) also keeps what is equal to a bar, asks for three prompts at least,
    and moves `share` in steps of .05 until a fact has 2 to 5 neurons on average; here both bars are as given.
    """
    for name, value in (("threshold", threshold), ("share", share)):
        if not 0 <= value < 1:
            raise ValueError(f"{name}={value} must be at least 0 and below 1")
    attributions = -scores.per_item
    kept = attributions > threshold * np.maximum(attributions.max(0), 0)
    often = kept.mean(1)
    order = np.lexsort((-attributions.mean(1), -often))
    return [str(scores.sites[i]) for i in order if often[i] > share]


def _nothing(model, task: Task):
    """A target for passes of which only the activations are wanted."""
    return lambda logits: logits[:, 0]
