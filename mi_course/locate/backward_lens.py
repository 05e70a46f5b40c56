"""Backward lens (survey section 3.5, L5f; Katz et al. 2024): read a gradient through the unembedding.

The gradient of an FFN's W_out on a prompt is a sum of rank-one matrices, one per token, of what came in and what comes
back:

    dLoss/dW_out = sum over tokens of  s^T delta       s [d_ffn] activations (forward), delta [d] = dLoss/d(FFN output)

A gradient step subtracts it, so wherever this FFN meets the activations s again it will write, in addition, a multiple
of -delta. Being a vector of the stream, -delta can be read as tokens: those that the step "shifts" the output towards.
For W_in the roles are reversed: the inputs x^ are "imprinted" into the keys of the neurons.

    vjps                  delta of every FFN at every token
    backward_lens         rank of the target among the tokens of -delta, by layer and position
    ffn_gradient          the gradients of W_out and W_in, row by row in the neuron convention [d_ffn, d]
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mi_course.models import record
from mi_course.models import weights as parts
from mi_course.objects import Task
from mi_course.objects.weights import folded_unembedding

from .projection import Reading, rank_of


def vjps(model, task: Task, sites: Sequence[str] | None = None) -> dict[str, Tensor]:
    """dLoss/dsite with Loss = minus the sum of the task's metric over items: site -> [B, T, d], zero at padding.

    sites: default all FFN outputs, "mlp0" ... . Raises ValueError for the metric "accuracy", which has no gradient.
    """
    sites = [f"mlp{layer}" for layer in range(model.n_layers)] if sites is None else [str(site) for site in sites]
    return _gradients(model, task, sites)[1]


def _gradients(model, task: Task, sites: Sequence[str]):
    if task.metric == "accuracy":
        raise ValueError(f"metric 'accuracy' of task {task.name!r} has no gradient; use 'logprob' or 'logit_diff'")
    with torch.enable_grad():
        cache = record(model, task.prompts, sites, grad=True)
        last = cache.logits[torch.arange(len(task)), cache.batch.last]
        loss = -task.metric_of(last, model).sum()
        found = torch.autograd.grad(loss, [cache[site] for site in sites])
    return cache, {site: gradient.detach() for site, gradient in zip(sites, found, strict=True)}


def backward_lens(model, task: Task, positions: Sequence[int] = (-1,)) -> Reading:
    """Where in the list of tokens does the target stand, when -delta of each FFN is read by the unembedding?

    positions: real-token positions, -1 is the last. Sites are "mlp2@-1", all layers of the first position first. Rank
    0: a gradient step makes this FFN push the target most of all tokens, wherever the same activations come back. Where
    no gradient arrives (the last layers at earlier tokens) the rank is the middle.
    `prob` is softmax(-delta W_U) with delta scaled to norm sqrt(d), as a state after the final norm would be; it is no
    probability of anything (audit A27), only a comparison between layers. Cost: one forward and one backward.
    """
    started = time.perf_counter()
    deltas, batch = vjps(model, task), model.tokenize(task.prompts)
    W, target = folded_unembedding(model)[0].detach(), task.target_ids(model).to(model.device)[:, None]
    sites, prob, rank = [], [], []
    for position in positions:
        rows, columns = torch.arange(len(batch), device=model.device), batch.columns(position)
        for site, delta in deltas.items():
            step = -delta[rows, columns]
            logits = torch.nn.functional.normalize(step, dim=-1) * model.d_model**0.5 @ W
            sites.append(f"{site}@{position}")
            prob.append(logits.softmax(-1).gather(1, target)[:, 0])
            rank.append(rank_of(logits, target))
    return Reading(sites, torch.stack(prob), torch.stack(rank), len(batch), time.perf_counter() - started)


def ffn_gradient(model, task: Task, layer: int) -> dict[str, Tensor]:
    """Gradients of the loss (see `vjps`) with respect to one FFN's matrices, one row per neuron: name -> [d_ffn, d].

    "out": row j is dLoss/dv_j = sum over tokens of s_j delta. "in" (or "gate" and "up" in a gated FFN): row j is
    dLoss/dk_j = sum over tokens of (dLoss/dpre_j) x^, the inputs of the FFN. Weights stay as they are.
    """
    w, norm = parts.ffn(model, layer), parts.mlp_norm(model, layer)
    reads = f"x{layer}" if model.family.is_parallel(model.config) else f"mid{layer}"
    cache, found = _gradients(model, task, [f"mlp{layer}"])
    delta = found[f"mlp{layer}"]
    with torch.no_grad():
        cache = record(model, cache.batch, [reads, f"neurons{layer}"], logits=False)
        x, s = norm(cache[reads]), cache[f"neurons{layer}"]
        back = delta @ w.W_out.T  # dLoss/ds
    matrices = {"in": w.W_in} if w.W_in is not None else {"gate": w.W_gate, "up": w.W_up}
    biases = {"in": w.b_in, "gate": w.b_gate, "up": w.b_up}
    pre = {name: (x @ W.detach() + biases[name].detach()).requires_grad_() for name, W in matrices.items()}
    with torch.enable_grad():
        again = w.act(pre["in"]) if "in" in pre else w.act(pre["gate"]) * pre["up"]
        at_pre = dict(zip(pre, torch.autograd.grad(again, list(pre.values()), back), strict=True))
    rows = {name: torch.einsum("btn,btd->nd", g, x) for name, g in at_pre.items()}
    return {"out": torch.einsum("btn,btd->nd", s, delta), **rows}
