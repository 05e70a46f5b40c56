"""Side effects foretold: which domains will a steer disturb, judged without applying it? (survey section 6; map C7)

    cosine_overlap    |cos| of a steering vector with the direction in which a domain's states differ from all others
    key_overlap       how much a changed weight matrix changes the output on a domain's activations
    fisher_overlap    the KL that must follow from how log p begins to move: 1/2 E_y[(d log p(y) / d strength)^2]

Each returns domain -> number, larger = more disturbance expected. The numbers are good for an order, not for a size;
`evaluate.rank_correlation` says how good the order is, beside shuffled domains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mi_course.models import Model, record

from .weights import WeightEdit

Documents = Mapping[str, Sequence[str]]


@torch.no_grad()
def domain_directions(model: Model, documents: Documents, site: str) -> dict[str, Tensor]:
    """domain -> its mean state minus the mean of all domains' means, over all real tokens. Vectors [d]."""
    means = {}
    for domain, texts in documents.items():
        cache = record(model, list(texts), [site])
        means[domain] = cache[site][cache.batch.mask.bool()].mean(0)
    centre = torch.stack(list(means.values())).mean(0)
    return {domain: mean - centre for domain, mean in means.items()}


def cosine_overlap(vector: Tensor, directions: Mapping[str, Tensor]) -> dict[str, float]:
    """|cos(vector, direction)| for every domain, 0 ... 1."""
    return {d: abs(float(torch.cosine_similarity(vector, direction, dim=0))) for d, direction in directions.items()}


def fisher_kl(log_p: Tensor, slope: Tensor) -> Tensor:
    """KL(p || p moved by s = 1) to second order, from the slope of log p along the dial: 1/2 sum_y p(y) slope(y)^2.

    log_p, slope [..., V]; returns [...], nats. The sum is the Fisher information along the dial. For s times the dose
    it grows with s^2.
    """
    return (log_p.exp() * slope.square()).sum(-1) / 2


@torch.no_grad()
def fisher_overlap(model: Model, steer, documents: Documents, step: float = 0.02) -> dict[str, float]:
    """domain -> the KL to be expected at strength 1, nats per token: `fisher_kl` with the slope at strength 0.

    steer: a Steer or a WeightEdit. The slope is taken numerically, from the model and from the model at strength
    `step`: two passes, neither of them at a strength that does anything much. Right for small doses; a large one leaves
    the parabola, and then this is only an order.
    """
    predicted = {}
    for domain, texts in documents.items():
        batch = model.tokenize(list(texts))
        base = model(batch).float().log_softmax(-1)
        with steer.scaled(step).on(model):
            slope = (model(batch).float().log_softmax(-1) - base) / step
        predicted[domain] = float(fisher_kl(base, slope)[batch.mask.bool()].mean())
    return predicted


@torch.no_grad()
def key_overlap(model: Model, change: WeightEdit, documents: Documents) -> dict[str, float]:
    """E|k delta| / E|k W| over a domain's tokens, averaged over the changed FFN down projections.

    k is what the down projection reads (the neurons' activations). 0 where the change writes nothing on this domain.
    ValueError for a change that touches no down projection.
    """
    family = model.family
    names = {f"{family.blocks}.{layer}.{family.mlp_out}.weight": layer for layer in range(model.n_layers)}
    changed = {names[name]: delta for name, delta in change.deltas.items() if name in names}
    if not changed:
        raise ValueError("change: none of its parameters is an FFN down projection, whose input could be compared")
    overlap = {}
    for domain, texts in documents.items():
        cache = record(model, list(texts), [f"neurons{layer}" for layer in changed])
        mask, ratios = cache.batch.mask.bool(), []
        for layer, delta in changed.items():
            module = model.block(layer).get_submodule(family.mlp_out)
            rows = [W.T if isinstance(module, torch.nn.Linear) else W for W in (delta, module.weight)]
            keys = cache[f"neurons{layer}"][mask]
            moved, whole = ((keys @ W.to(keys)).norm(dim=-1).mean() for W in rows)
            ratios.append(float(moved / whole))
        overlap[domain] = sum(ratios) / len(ratios)
    return overlap
