"""Gradients of weights (survey section 3.3, L3d): which parameters would change F if they changed?

    norm               |grad_W F|              how steep F is in the unit's weights; depends on their parametrisation
    weight x gradient  sum over w |w dF/dw|    first-order size of the change if single weights were set to zero

One backward pass gives both for every weight of the model. A gradient shows where F *can* be changed, which is not
where the behaviour sits: a weight of exactly 0 has a gradient and no weight x gradient.

F is averaged over the prompts before it is differentiated, so prompts that pull in opposite directions cancel (A19b).
Per-weight scores of the whole model take as much memory as the model; they are returned for the parameters you name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mi_course.locate.passes import Cost, Target, metric, parts
from mi_course.models import Site
from mi_course.models.slices import slices, weight_in_force
from mi_course.objects import Scores, Task

SCORES = ("norm", "weight x gradient")


def parameter_gradients(
    model,
    task: Task,
    parameters: Sequence[str],
    target: Target = metric,
    batch_size: int = 64,
    cost: Cost | None = None,
) -> dict[str, Tensor]:
    """d mean(F) / d W for the named Hugging Face parameters (names as in `model.hf.named_parameters()`).

    Only these are differentiated. Returns name -> tensor of the parameter's shape.
    """
    known = dict(model.hf.named_parameters())
    for name in parameters:
        if name not in known:
            raise ValueError(f"parameters: {name!r} is not in {model.name}; it has for instance {next(iter(known))!r}")
    wanted = {name: known[name] for name in parameters}
    asked = {name: parameter.requires_grad for name, parameter in known.items()}
    total = {name: torch.zeros_like(weight) for name, weight in wanted.items()}
    try:
        for name, parameter in known.items():
            parameter.requires_grad_(name in wanted)
        for part in parts(task, batch_size):
            batch = model.tokenize(part.prompts)
            F = target(model, part)(model.last_logits(batch, grad=True))
            found = torch.autograd.grad(F.sum() / len(task), list(wanted.values()), allow_unused=True)
            for name, gradient in zip(wanted, found):
                if gradient is not None:
                    total[name] += gradient
            if cost is not None:
                cost.count(batch, backward=True)
    finally:
        for name, parameter in known.items():
            parameter.requires_grad_(asked[name])
    return total


def parameter_saliency(
    model, task: Task, units, score: str = "norm", target: Target = metric, batch_size: int = 64
) -> Scores:
    """Score units by the gradients of the weights that belong to them.

    Args:
        units: heads ("L3H5": its columns of W_Q, W_K, W_V and rows of W_O), neurons ("L2N117": key, bias, value) or
            FFNs ("mlp3"), see `models.slices`. Under grouped keys and values a head has no W_K and W_V of its own.
        score: "norm", the L2 norm of the gradient over all of the unit's weights, or "weight x gradient", the sum of
            |w dF/dw| over them. Both grow with the number of weights: compare units of one kind.
    Returns Scores with sign "magnitude".
    """
    if score not in SCORES:
        raise ValueError(f"score={score!r} is unknown; choose one of {', '.join(SCORES)}")
    units, cost = [str(Site.parse(unit)) for unit in ([units] if isinstance(units, str) else units)], Cost(model)
    owned = {unit: slices(model, unit) for unit in units}
    names = list(dict.fromkeys(s.parameter for unit in units for s in owned[unit]))
    grads = parameter_gradients(model, task, names, target, batch_size, cost)
    power = 2 if score == "norm" else 1
    along: dict[tuple, Tensor] = {}  # (parameter, axis) -> summed over the other axes, so that units only pick entries
    for unit in units:
        for s in owned[unit]:
            if (s.parameter, s.dim) not in along:
                g = grads[s.parameter]
                sizes = g.abs() ** 2 if score == "norm" else (g * weight_in_force(model, s.parameter)).abs()
                along[s.parameter, s.dim] = sizes.movedim(s.dim, 0).flatten(1).sum(1) if g.dim() > 1 else sizes
    values = [
        sum(float(along[s.parameter, s.dim][s.index].sum()) for s in owned[unit]) ** (1 / power) for unit in units
    ]
    return Scores(
        units, values, f"parameter {score}", "magnitude",
        cost.forwards, cost.backwards, cost.seconds, cost.token_layers,
    )  # fmt: skip


def weight_scores(model, task: Task, parameter: str, target: Target = metric, batch_size: int = 64) -> Tensor:
    """|w dF/dw| of every single weight of one parameter, in the shape in which it is stored."""
    gradient = parameter_gradients(model, task, [parameter], target, batch_size)[parameter]
    return (gradient * weight_in_force(model, parameter)).abs()
