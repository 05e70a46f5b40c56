"""Targeted optimization by training (survey section 4.2, Eq. 20): theta' = theta + M * delta, with M chosen beforehand.

    masked_finetune     M picks single weights: of heads, neurons, layers, biases, everything          (S2c)
    low_rank_finetune   delta = A B for chosen matrices: LoRA (Hu et al. 2021, arXiv 2106.09685)       (S2d)

Both return a WeightEdit. The mask acts on the *update*: only the numbers inside it are trained, as a change that starts
at zero. A mask on the gradient would not do, since AdamW shrinks weights whose gradient is zero (audit A26).

A mask is a dictionary: parameter name -> bool tensor of its shape. Make it with `unit_mask`, `layer_mask`, `bias_mask`,
`top_mask`, `everything`, or by hand; a list of units such as ["L2H1", "L3N7", "mlp4"] is a mask, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mi_course.models import Model
from mi_course.models.slices import replaced, slices, weight_in_force

from .fit import train
from .weights import WeightEdit

Mask = Mapping[str, Tensor]
ATTENTION, FFN = ("q", "k", "v", "qkv", "o"), ("mlp_in", "gate", "up", "gate_up", "mlp_out")  # parts of a family's row


# --- masks ----------------------------------------------------------------------------------------------------------
def unit_mask(model: Model, units: Sequence[str]) -> dict[str, Tensor]:
    """The weights that belong to heads ("L3H5"), neurons ("L2N117") and FFNs ("mlp3"), as `models.slices` cuts them."""
    mask: dict[str, Tensor] = {}
    for unit in units:
        for s in slices(model, unit):
            chosen = mask.setdefault(s.parameter, torch.zeros(weight_in_force(model, s.parameter).shape, dtype=bool))
            chosen.index_fill_(s.dim, s.index, True)
    if not mask:
        raise ValueError("units is empty; name at least one, for instance ['L3H1', 'L4N7', 'mlp2']")
    return mask


def layer_mask(model: Model, layers: Iterable[int], part: str | None = None) -> dict[str, Tensor]:
    """All weights of blocks, norms included. part: None, or "attn" or "mlp" for the projections of that module."""
    if part not in (None, "attn", "mlp"):
        raise ValueError(f"part {part!r} does not exist; choose 'attn', 'mlp' or None for the whole block")
    layers = list(layers)
    for layer in layers:
        if not 0 <= layer < model.n_layers:
            raise ValueError(f"layers: {layer} is out of range; {model.name} has 0 to {model.n_layers - 1}")
    paths = [""] if part is None else _projections(model, ATTENTION if part == "attn" else FFN).values()
    prefixes = tuple(f"{model.family.blocks}.{layer}.{path}" for layer in layers for path in paths)
    return {name: mask for name, mask in everything(model).items() if name.startswith(prefixes)}


def bias_mask(model: Model) -> dict[str, Tensor]:
    """All bias vectors of the blocks (BitFit; Ben Zaken et al. 2022). ValueError for families without biases."""
    mask = {n: m for n, m in everything(model).items() if n.endswith(".bias") and n.startswith(model.family.blocks)}
    if not mask:
        raise ValueError(f"{model.family.name} has no biases; train vectors instead (interventions.layer_biases)")
    return mask


def everything(model: Model) -> dict[str, Tensor]:
    """The mask of full fine-tuning. An unembedding that is tied to the embedding is trained as a matrix of its own."""
    named = model.hf.named_parameters(remove_duplicate=False)
    return {name: torch.ones(parameter.shape, dtype=bool) for name, parameter in named}


def top_mask(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The k single weights of the highest score. scores: parameter name -> tensor of its shape."""
    if not 0 < k <= sum(score.numel() for score in scores.values()):
        raise ValueError(f"k is {k}; choose from 1 to the number of scores")
    least = torch.cat([score.flatten() for score in scores.values()]).topk(k).values[-1]
    mask, left = {}, k - sum(int((score > least).sum()) for score in scores.values())
    for name, score in scores.items():
        chosen = (score > least).contiguous()
        ties = (score.flatten() == least).nonzero()[:left, 0]  # exactly k, also where scores are equal
        chosen.view(-1)[ties] = True
        left -= len(ties)
        if chosen.any():
            mask[name] = chosen
    return mask


def random_mask(mask: Mask, seed: int = 0) -> dict[str, Tensor]:
    """As many weights of the same parameters, drawn at random: the control for a mask of single weights."""
    generator, drawn = torch.Generator().manual_seed(seed), {}
    for name, chosen in mask.items():
        order = torch.randperm(chosen.numel(), generator=generator)[: int(chosen.sum())]
        drawn[name] = torch.zeros(chosen.numel(), dtype=bool).index_fill(0, order, True).view(chosen.shape)
    return drawn


def size(mask: Mask) -> int:
    """How many weights a mask lets training move."""
    return sum(int(chosen.sum()) for chosen in mask.values())


def _as_mask(model: Model, mask) -> Mask:
    if not isinstance(mask, Mapping):
        return unit_mask(model, [mask] if isinstance(mask, str) else mask)
    parameters = dict(model.hf.named_parameters(remove_duplicate=False))
    for name, chosen in mask.items():
        if name not in parameters:
            raise KeyError(f"mask: {model.name} has no parameter {name!r}; names are those of hf.named_parameters()")
        if chosen.shape != parameters[name].shape or chosen.dtype != torch.bool:
            raise ValueError(
                f"mask[{name!r}] is {chosen.dtype} of shape {tuple(chosen.shape)}; "
                f"give a bool tensor of shape {tuple(parameters[name].shape)}"
            )
    mask = {name: chosen for name, chosen in mask.items() if chosen.any()}
    if not mask:
        raise ValueError("mask chooses no weight; choose at least one")
    return mask


def lowest_layer(model: Model, parameters: Iterable[str]) -> int | None:
    """The first block whose computation depends on these parameters; None when the embedding is among them."""
    lowest, blocks = model.n_layers, model.family.blocks + "."
    for name in parameters:
        if name.startswith(blocks):
            lowest = min(lowest, int(name.removeprefix(blocks).partition(".")[0]))
        elif not name.startswith((model.family.unembed + ".", model.family.final_norm + ".")):
            return None
    return lowest


# --- training -------------------------------------------------------------------------------------------------------
def masked_finetune(model: Model, task, mask: Mask | Sequence[str], **training) -> WeightEdit:
    """Fine-tune the weights that `mask` chooses, and no other: theta' = theta + M * delta (Eq. 20; S2c).

    Every weight outside the mask stays bit-identical, under weight decay and momentum too. Weight decay (default 0.01)
    pulls delta to zero: it is the L2 preservation term.

    Args:
        task: a Task (its targets are what the model should say), or `fit.Examples` with distributions.
        mask: see the module; `everything(model)` is full fine-tuning.
        training: documents, replay, contrast, preserve (lambda), validation, whole_answers, steps, batch,
            learning_rate, weight_decay, seed ... of `fit.train`.
    Trains on top of what is active: inside `with edit.on(model):` it starts from the edited weights.
    """
    mask = _as_mask(model, mask)
    index = {name: chosen.flatten().nonzero()[:, 0].to(model.device) for name, chosen in mask.items()}
    numbers = {
        name: torch.zeros(len(i), device=model.device, dtype=model.dtype, requires_grad=True)
        for name, i in index.items()
    }

    def plus(base: Tensor, name: str) -> Tensor:
        if len(index[name]) == base.numel():
            return base + numbers[name].view_as(base)
        return base.flatten().index_add(0, index[name], numbers[name]).view_as(base)

    def active():
        return replaced(model, {name: plus(weight_in_force(model, name), name) for name in numbers})

    train(
        model,
        task,
        list(numbers.values()),
        active,
        lowest_layer(model, mask),
        **{"weight_decay": 0.01} | training,
    )
    return WeightEdit({name: plus(torch.zeros_like(weight_in_force(model, name)), name).detach() for name in numbers})


def matrices(model: Model, parts: Sequence[str] | None = None, layers: Iterable[int] | None = None) -> list[str]:
    """Names of the blocks' weight matrices. parts: among q, k, v, qkv, o, mlp_in, gate, up, gate_up, mlp_out.

    Default: all that the family has, in all layers.
    """
    have = _projections(model, ATTENTION + FFN)
    missing = [part for part in parts or () if part not in have]
    if missing:
        raise ValueError(f"parts: {model.family.name} has no {', '.join(missing)}; choose among {', '.join(have)}")
    layers = range(model.n_layers) if layers is None else layers
    return [f"{model.family.blocks}.{layer}.{have[part]}.weight" for layer in layers for part in parts or have]


def _projections(model: Model, parts: Sequence[str]) -> dict[str, str]:
    """part -> path in a block, for the parts that the family has."""
    return {part: path for part in parts if (path := getattr(model.family, part))}


def low_rank_finetune(
    model: Model, task, names: Sequence[str] | None = None, rank: int = 4, alpha: float | None = None, **training
) -> WeightEdit:
    """LoRA: W' = W + (alpha / rank) A B for chosen matrices, A [d_in, rank] random and B [rank, d_out] zero at first.

    Row form, y = x W + (alpha / rank) x A B. A is uniform in +-1/sqrt(d_in), as in the reference implementation.

    Args:
        names: parameter names of matrices, from `matrices`; default all of them.
        alpha: the usual LoRA scale; default `rank`, so that the factor is 1.
        training: see `masked_finetune`.
    """
    names = matrices(model) if names is None else list(names)
    if rank < 1:
        raise ValueError(f"rank is {rank}; give at least 1")
    factor = 1.0 if alpha is None else alpha / rank
    generator = torch.Generator().manual_seed(training.get("seed", 0))
    pairs, transposed = {}, {}
    for name in names:
        W = weight_in_force(model, name)
        if W.dim() != 2:
            raise ValueError(f"names: {name} has shape {tuple(W.shape)}; low rank needs a matrix")
        # nn.Linear stores W transposed
        transposed[name] = isinstance(model.hf.get_submodule(name.rpartition(".")[0]), torch.nn.Linear)
        d_in, d_out = reversed(W.shape) if transposed[name] else W.shape
        A = (2 * torch.rand(d_in, rank, generator=generator) - 1) / math.sqrt(d_in)
        pairs[name] = (A.to(W).requires_grad_(True), torch.zeros(rank, d_out).to(W).requires_grad_(True))

    def change(name: str) -> Tensor:
        A, B = pairs[name]
        delta = factor * (A @ B)
        return delta.T if transposed[name] else delta

    def active():
        return replaced(model, {name: weight_in_force(model, name) + change(name) for name in names})

    numbers = [number for pair in pairs.values() for number in pair]
    train(model, task, numbers, active, lowest_layer(model, names), **{"weight_decay": 0.01} | training)
    return WeightEdit({name: change(name).detach() for name in names})
