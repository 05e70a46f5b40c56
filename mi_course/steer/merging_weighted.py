"""Merging by what the weights do on examples: sensitivity (gradients) or activations (survey section 4.3, S3h).

    Sens-Merging   a coefficient for every task and layer, from sensitivity x transfer   (Liu et al. 2025)
    AIM            smaller changes where the base reads strong activations   (Nobari et al. 2025, arXiv 2502.02421)
    ACM            a coefficient for every task and layer, from mutual information of activations   (Yao et al. 2025)

Sens-Merging is arXiv 2502.12420, ACM (activation-guided consensus merging) arXiv 2505.14009; the code of neither paper
was at hand. Sens-Merging follows a re-implementation (the repository ZeroNLP/RCP-Merging, baselines/sensmerge), but for
the transfer; ACM follows summaries of the paper, which do not give the coefficient. The docstrings say what is ours.
AIM follows its code (the repository ahnobari/ActivationInformedMerging, `relax_on_merged`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mi_course.models import Model, record, weights
from mi_course.models.slices import replaced, weight_in_force

from .merging import add
from .weights import WeightEdit

Loss = Callable[[Model], Tensor]


# --- one coefficient for every task and layer -----------------------------------------------------------------------
def layer_of(model: Model, name: str) -> int:
    """The block that a parameter belongs to: -1 for embeddings, n_layers for what comes after the blocks."""
    family, prefix = model.family, model.family.blocks + "."
    if name.startswith(prefix):
        return int(name.removeprefix(prefix).partition(".")[0])
    return model.n_layers if name.startswith((family.final_norm, family.unembed)) else -1


def balanced(
    model: Model, edits: Sequence[WeightEdit], scores: Sequence[dict[int, float]], temperature: float
) -> WeightEdit:
    """sum_i sigma_i^l tau_i^l with sigma_i^l = n_l softmax_i(score_i^l / temperature) over the n_l edits of layer l.

    Equal scores give the plain sum. A layer that only one task has changed keeps its change whole.
    """
    layers = [{layer_of(model, name) for name in edit.deltas} for edit in edits]
    scaled = [{} for _ in edits]
    for layer in sorted(set().union(*layers)):
        owners = [i for i in range(len(edits)) if layer in layers[i]]
        sigma = torch.tensor([scores[i][layer] for i in owners]).div(temperature).softmax(0) * len(owners)
        for i, factor in zip(owners, sigma.tolist()):
            for name, delta in edits[i].deltas.items():
                if layer_of(model, name) == layer:
                    scaled[i][name] = factor * edits[i].strength * delta
    return add([WeightEdit(deltas) for deltas in scaled])


def sensitivity(model: Model, edit: WeightEdit, loss: Loss) -> dict[str, Tensor]:
    """|theta * dL/dtheta| of every weight that `edit` names, in the edited model: first-order cost of zeroing it.

    loss: model -> scalar with its graph on calibration examples of the task, such as `Examples.cross_entropy`.
    """
    theta = {name: weight_in_force(model, name) for name in edit.deltas}
    theta = {name: (w + edit.strength * edit.deltas[name].to(w)).requires_grad_(True) for name, w in theta.items()}
    with replaced(model, theta):
        gradients = torch.autograd.grad(loss(model), list(theta.values()))
    return {name: (theta[name] * gradient).detach().abs() for name, gradient in zip(theta, gradients)}


def sensitivity_weighted(
    model: Model,
    edits: Sequence[WeightEdit],
    losses: Sequence[Loss],
    prompts: Sequence[Sequence],
    temperature: float = 0.2,
) -> WeightEdit:
    """Sens-Merging: coefficients sigma_i^l = n_l softmax_i(alpha_i^l t_i / temperature) for tasks i and layers l.

        alpha_i^l   sum of |theta dL_i/dtheta| over layer l of tuned model i, divided by the L2 norm over its layers
        t_i         transfer: exp(-RMS distance of the log-probabilities of model i and model j) on prompts of task j,
                    mean over the other tasks j

    The re-implementation has the same sensitivity, alpha, softmax over tasks and factor n_l. Its t_i is the sum over j
    of the L2 distances of logits, as a share of that of all tasks: a model that is far from the others gets more
    weight. The abstract speaks of transferability, so ours falls with the distance. The authors' temperatures are 2 to
    6 (Wu et al. 2025, arXiv 2503.20641), where coefficients hardly differ; 0.2 is ours.

    losses, prompts: for each edit the calibration loss of its task (see `sensitivity`) and prompts of its task.
    """
    if not len(edits) == len(losses) == len(prompts):
        raise ValueError(f"losses and prompts: {len(edits)} edits need one of each, got {len(losses)}, {len(prompts)}")
    scores = []
    for i, (edit, loss) in enumerate(zip(edits, losses)):
        alpha: dict[int, float] = {}
        for name, value in sensitivity(model, edit, loss).items():
            alpha[layer_of(model, name)] = alpha.get(layer_of(model, name), 0.0) + value.sum().item()
        factor = _transfer(model, edits, prompts, i) / max(math.hypot(*alpha.values()), 1e-12)
        scores.append({layer: value * factor for layer, value in alpha.items()})
    return balanced(model, edits, scores, temperature)


def _transfer(model: Model, edits, prompts, i: int) -> float:
    found = []
    for j, other in enumerate(edits):
        if j != i:
            with edits[i].on(model):
                ours = model.last_logits(prompts[j]).log_softmax(-1)
            with other.on(model):
                theirs = model.last_logits(prompts[j]).log_softmax(-1)
            found.append((ours - theirs).square().mean().sqrt().neg().exp().item())
    return sum(found) / len(found) if found else 1.0


def consensus_weighted(
    model: Model, edits: Sequence[WeightEdit], documents: Sequence, temperature: float = 1.0
) -> WeightEdit:
    """ACM: a task gets more weight in the layers whose output it changes more, measured by mutual information.

        I_i^l = mean over coordinates of -1/2 log(1 - rho^2), rho the correlation over tokens of a coordinate of
                x^{l+1} in the base and in tuned model i (mutual information of two Gaussians, in nats)
        sigma_i^l = n_l softmax_i(-I_i^l / temperature)

    As summaries of the paper have it: one coefficient for each layer, smaller where the mutual information of the
    activations of base and tuned model on calibration texts is larger, and no gradients. Ours: the Gaussian estimate,
    for each coordinate, and the softmax over tasks with n_l.
    """
    sites = [f"x{layer + 1}" for layer in range(model.n_layers)]

    def states():
        cache = record(model, documents, sites)
        return [cache[site][cache.batch.mask.bool()] for site in sites]

    base, scores = states(), []
    for edit in edits:
        with edit.on(model):
            information = [_information(x, y) for x, y in zip(base, states())]
        scores.append({-1: -information[0], model.n_layers: -information[-1]} | {
            layer: -value for layer, value in enumerate(information)
        })  # fmt: skip
    return balanced(model, edits, scores, temperature)


def _information(x: Tensor, y: Tensor) -> float:
    """Mean over coordinates of the Gaussian mutual information of x and y [tokens, d], in nats; at most 8."""
    x, y = x - x.mean(0), y - y.mean(0)
    rho = (x * y).sum(0) / (x.norm(dim=0) * y.norm(dim=0)).clamp(min=1e-12)
    return (-0.5 * (1 - rho.square()).clamp(min=1e-7).log()).mean().item()


# --- one factor for every input of every matrix ---------------------------------------------------------------------
@torch.no_grad()
def input_strength(model: Model, documents: Sequence) -> dict[str, Tensor]:
    """Mean |activation| that each matrix of the blocks reads, over real tokens: parameter name -> [d_in]."""
    family, found = model.family, {}
    for layer in range(model.n_layers):
        middle = f"x{layer}" if family.is_parallel(model.config) else f"mid{layer}"
        cache = record(model, documents, [f"x{layer}", middle, f"z{layer}", f"neurons{layer}"])
        inputs = {
            ("q", "k", "v", "qkv"): weights.attn_norm(model, layer)(cache[f"x{layer}"]),
            ("o",): cache[f"z{layer}"].flatten(2),
            ("mlp_in", "gate", "up", "gate_up"): weights.mlp_norm(model, layer)(cache[middle]),
            ("mlp_out",): cache[f"neurons{layer}"],
        }
        for parts, value in inputs.items():
            strength = value[cache.batch.mask.bool()].abs().mean(0)
            for path in filter(None, (getattr(family, part) for part in parts)):
                found[f"{family.blocks}.{layer}.{path}.weight"] = strength
    return found


def activation_weighted(model: Model, edit: WeightEdit, documents: Sequence, omega: float = 0.4) -> WeightEdit:
    """AIM: delta_jk <- delta_jk (1 - (1 - omega) a_j / max a), a_j = mean |activation| that the base has at input j.

    Weights that read strong activations of the base are moved less; it is applied to the result of any merge. omega 1
    changes nothing; 0.4 is the default of the authors' command. Biases, norms, embeddings and the unembedding are left
    as they are; the authors' code relaxes norms and unembedding, too.
    documents: calibration texts, for no task in particular.
    """
    if not 0 <= omega <= 1:
        raise ValueError(f"omega is {omega}; give a share from 0 (strongest protection) to 1 (none)")
    strength, relaxed = input_strength(model, documents), {}
    for name, delta in edit.deltas.items():
        relaxed[name] = edit.strength * delta
        if name in strength:
            factor = 1 - (1 - omega) * strength[name] / strength[name].max()
            linear = isinstance(model.hf.get_submodule(name.rpartition(".")[0]), torch.nn.Linear)  # stores W transposed
            relaxed[name] = relaxed[name] * (factor if linear else factor[:, None])
    return WeightEdit(relaxed)
