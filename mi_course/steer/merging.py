"""Arithmetic of task vectors (survey section 4.3, S3h): what fine-tuning changed, added, negated and merged.

    task vector   tau = W_ft - W_base                                       (Ilharco et al. 2023, arXiv 2212.04089)
    add, negate   W_base + sum_i lambda_i tau_i;   W_base - tau
    analogy       "a is to b as c is to ...":  tau_c + (tau_b - tau_a)
    mean          1/n sum_i tau_i
    TIES          trim, elect a sign for every weight, mean over those that agree  (Yadav et al. 2023, arXiv 2306.01708)
    DARE          drop a share p at random, rescale the rest by 1 / (1 - p)        (Yu et al. 2024, arXiv 2311.03099)

All take and give `WeightEdit`s; one that does not name a parameter leaves it alone, and its strength is part of it.
Merging by what the weights do on examples is in `merging_weighted`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mi_course.models import Model

from .weights import WeightEdit

Deltas = dict[str, Tensor]


# --- arithmetic -----------------------------------------------------------------------------------------------------
def task_vector(tuned: Model, base: Model) -> WeightEdit:
    """tau = W_tuned - W_base: what fine-tuning changed. Parameters that are equal are left out.

    ValueError when the two are not the same architecture and size.
    """
    after, before = (dict(m.hf.named_parameters()) for m in (tuned, base))
    if {n: p.shape for n, p in after.items()} != {n: p.shape for n, p in before.items()}:
        raise ValueError(f"tuned: {tuned.name!r} does not have the parameters of {base.name!r}; give two of one kind")
    return WeightEdit({n: (after[n] - before[n]).detach() for n in before if not torch.equal(after[n], before[n])})


def add(edits: Sequence[WeightEdit], weights: Sequence[float] | None = None) -> WeightEdit:
    """sum_i lambda_i tau_i; all lambda_i = 1 if `weights` is None."""
    vectors = _deltas(edits)
    weights = [1.0] * len(vectors) if weights is None else list(weights)
    if len(weights) != len(vectors):
        raise ValueError(f"weights has {len(weights)} numbers for {len(vectors)} edits; give one for each")
    total: Deltas = {}
    for weight, deltas in zip(weights, vectors):
        for name, delta in deltas.items():
            total[name] = total[name] + weight * delta if name in total else weight * delta
    return WeightEdit(total)


def mean(edits: Sequence[WeightEdit]) -> WeightEdit:
    """1/n sum_i tau_i: the plain average of the fine-tuned models."""
    return add(edits, [1 / len(edits)] * len(edits))


def negate(edit: WeightEdit) -> WeightEdit:
    """-tau: unlearn what was trained."""
    return edit.scaled(-edit.strength)


def analogy(a: WeightEdit, b: WeightEdit, c: WeightEdit) -> WeightEdit:
    """tau_c + (tau_b - tau_a): "a is to b as c is to" the result."""
    return add([c, b, a], [1.0, 1.0, -1.0])


# --- TIES and DARE --------------------------------------------------------------------------------------------------
def trim(edit: WeightEdit, density: float) -> WeightEdit:
    """Keep the share `density` of the weights with the largest |tau|, over all its parameters; the rest becomes 0."""
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; give the share of weights to keep, above 0 and at most 1")
    (deltas,) = _deltas([edit])
    sizes = torch.cat([delta.abs().flatten() for delta in deltas.values()])
    least = sizes.kthvalue(len(sizes) - max(1, round(density * len(sizes))) + 1).values
    return WeightEdit({name: delta * (delta.abs() >= least) for name, delta in deltas.items()})


def elect(edits: Sequence[WeightEdit]) -> Deltas:
    """The sign of every weight, -1, 0 or 1: that of sum_i tau_i, so the side with the larger total size wins.

    Where the sum is exactly 0, nothing is merged; the released code (prateeky2806/ties-merging) takes the sign that
    most weights have.
    """
    return {name: delta.sign() for name, delta in add(edits).deltas.items()}


def disjoint_mean(edits: Sequence[WeightEdit], signs: Mapping[str, Tensor]) -> WeightEdit:
    """For every weight the mean over those tau_i that are not 0 and have the elected sign."""
    vectors, merged = _deltas(edits), {}
    for name, sign in signs.items():
        stack = torch.stack([deltas[name] for deltas in vectors if name in deltas])
        agree = (stack.sign() == sign) & (stack != 0)
        merged[name] = (stack * agree).sum(0) / agree.sum(0).clamp(min=1)
    return WeightEdit(merged)


def ties(edits: Sequence[WeightEdit], density: float = 0.2, scale: float = 1.0) -> WeightEdit:
    """TIES: trim each task vector, elect signs, take the mean of those that agree, times `scale`.

    density: the share of each task vector that is kept; the paper keeps the top 20 %. It counts the entries of all
    parameters that the edit names, also zeros: for a sparse edit, 1.0 is the natural choice.
    """
    trimmed = [trim(edit, density) for edit in edits]
    merged = disjoint_mean(trimmed, elect(trimmed))
    return WeightEdit({name: scale * delta for name, delta in merged.deltas.items()})


def dare(edit: WeightEdit, drop: float = 0.9, seed: int = 0) -> WeightEdit:
    """DARE: set each weight of tau to 0 with probability `drop`, divide the others by 1 - drop. Expectation: tau."""
    if not 0 <= drop < 1:
        raise ValueError(f"drop is {drop}; give the share of weights to drop, from 0 to below 1")
    (deltas,) = _deltas([edit])
    generator = torch.Generator().manual_seed(seed)
    kept = {name: (torch.rand(delta.shape, generator=generator) >= drop).to(delta) for name, delta in deltas.items()}
    return WeightEdit({name: delta * kept[name] / (1 - drop) for name, delta in deltas.items()})


def _deltas(edits: Sequence[WeightEdit]) -> list[Deltas]:
    """The changes with their strengths multiplied in. ValueError when there is none or shapes do not fit."""
    if not edits:
        raise ValueError("edits is empty; give at least one WeightEdit")
    found = [{name: edit.strength * delta for name, delta in edit.deltas.items()} for edit in edits]
    shapes: dict[str, torch.Size] = {}
    for deltas in found:
        for name, delta in deltas.items():
            if shapes.setdefault(name, delta.shape) != delta.shape:
                raise ValueError(f"edits: {name!r} has shapes {tuple(shapes[name])} and {tuple(delta.shape)}")
    return found
