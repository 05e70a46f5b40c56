"""Outliers as scores (survey section 3.1, L1c): sizes that stick out, in the weights and in the activations.

    from weights alone
        neuron_norms, weight_kurtosis   length of keys and values, and how heavy their tails are
    from one forward pass
        super_weights         the one weight behind a spike of an FFN (Yu et al. 2024)
        massive_activations   single numbers of the residual stream that dwarf the rest (Sun et al. 2024)
        outlier_dimensions    coordinates that are large at most tokens (Dettmers et al. 2022)
        qk_concentration      a few coordinates that dominate queries and keys (Jin et al. 2025)

Thresholds below are those of the papers and meant for models of billions of weights. What an outlier does has to be
measured: set it to zero or to its mean (`zeroed_weight`, `mi_course.intervene`) and look at the loss.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import record
from mi_course.models import weights as parts
from mi_course.objects import Scores
from mi_course.objects.weights import neuron_keys, neuron_values

from .magnitude import all_neurons

# --- weights ---------------------------------------------------------------------------------------------------------


def kurtosis(x: Tensor, dim: int = -1) -> Tensor:
    """Fourth central moment over squared variance along `dim`: 3 for a normal distribution, about n where one number of
    n alone differs, 0 where all are equal."""
    centred = x.float() - x.float().mean(dim, keepdim=True)
    variance = centred.square().mean(dim)
    return torch.where(variance > 0, centred.pow(4).mean(dim) / variance.square().clamp_min(1e-30), 0.0)


def neuron_vectors(model, which: str) -> list[Tensor]:
    """[d_ffn, d] for every layer: the neurons' "value", or their key "in" (ungated), "gate" or "up" (gated FFN)."""
    if which == "value":
        return [neuron_values(model, layer) for layer in range(model.n_layers)]
    return [neuron_keys(model, layer, which) for layer in range(model.n_layers)]


@torch.no_grad()
def neuron_norms(model, which: str = "value") -> Scores:
    """Static score of every neuron: the length of its value or of a key. No data, no forward pass.

    The survey writes ||W_in[j, :]||. In its own shapes row j of W_in belongs to input dimension j; the key of neuron j
    is column j (audit A9). which: see `neuron_vectors`.
    """
    started = time.perf_counter()
    norms = torch.cat([vectors.float().norm(dim=1) for vectors in neuron_vectors(model, which)])
    return Scores(all_neurons(model), norms, f"norm of {which}", "magnitude", seconds=time.perf_counter() - started)


@torch.no_grad()
def weight_kurtosis(model, which: str = "value") -> Scores:
    """Static score of every neuron: kurtosis of the numbers of its value or key. Large: a few coordinates carry it."""
    started = time.perf_counter()
    values = torch.cat([kurtosis(vectors) for vectors in neuron_vectors(model, which)])
    return Scores(
        all_neurons(model), values, f"kurtosis of {which}", "magnitude", seconds=time.perf_counter() - started
    )


# --- super weights ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SuperWeight:
    """A candidate: the weight W_out[neuron, dimension] of layer `layer`, where a spike enters and a spike leaves.

    weight      its value
    activation  s_j, the largest |input| of W_out at that token (with its sign)
    output      the number of the FFN's output at that token and dimension (b_out included)
    spike       how far |output| stands out: over the median |output| of the layer, all tokens and dimensions
    share       activation * weight / output: how much of the spike this one weight makes (1: all of it)
    position    real token of the prompt, from 0
    """

    layer: int
    neuron: int
    dimension: int
    weight: float
    activation: float
    output: float
    spike: float
    share: float
    prompt: int
    position: int


@torch.no_grad()
def super_weights(model, prompts: Sequence) -> list[SuperWeight]:
    """One candidate for each layer, largest spike first: found by spikes of W_out's input and output (Yu et al. 2024).

    One forward pass. The dimension is where the FFN writes its largest |output|, the neuron the one of largest |input|
    of W_out at that token. In a large model one candidate stands far above the rest, with a share near 1; where none
    does, there is no super weight.
    """
    names = [f"{kind}{layer}" for layer in range(model.n_layers) for kind in ("neurons", "mlp")]
    cache = record(model, prompts, names, logits=False)
    real = cache.batch.mask.bool()
    row, column = real.nonzero(as_tuple=True)
    found = []
    for layer in range(model.n_layers):
        out, s = cache[f"mlp{layer}"][real].float(), cache[f"neurons{layer}"][real].float()
        token, dimension = divmod(int(out.abs().argmax()), out.shape[1])
        neuron = int(s[token].abs().argmax())
        weight = parts.ffn(model, layer).W_out[neuron, dimension].item()
        activation, output = s[token, neuron].item(), out[token, dimension].item()
        where = int(cache.batch.position_ids[row[token], column[token]])
        spike = abs(output) / out.abs().median().clamp_min(1e-12).item()
        share = activation * weight / output if output else 0.0
        found.append(
            SuperWeight(layer, neuron, dimension, weight, activation, output, spike, share, int(row[token]), where)
        )
    return sorted(found, key=lambda candidate: -candidate.spike)


@contextmanager
def zeroed_weight(model, layer: int, neuron: int, dimension: int) -> Iterator[None]:
    """While active, W_out[neuron, dimension] of the layer is 0; it comes back in any case."""
    weight = model.block(layer).get_submodule(model.family.mlp_out).weight
    stored_in_out = type(model.block(layer).get_submodule(model.family.mlp_out)).__name__ == "Conv1D"
    index = (neuron, dimension) if stored_in_out else (dimension, neuron)  # nn.Linear stores [out, in]
    before = weight.data[index].clone()
    try:
        weight.data[index] = 0
        yield
    finally:
        weight.data[index] = before


# --- the residual stream ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Massive:
    """One number of the residual stream x^layer: its value, and its size over the median |number| of that state."""

    layer: int
    prompt: int
    position: int
    dimension: int
    value: float
    ratio: float


@torch.no_grad()
def massive_activations(model, prompts: Sequence, at_least: float = 100.0, ratio: float = 1000.0) -> list[Massive]:
    """Numbers of the residual stream with |x_k| > at_least and |x_k| > ratio * median |x|, largest first.

    Sun et al. (2024). The median is over the coordinates of the same state, x^l at one token. The published bars are
    for large models; lower them for a small one, and say so.
    """
    names = [f"x{layer}" for layer in range(model.n_layers + 1)]
    cache = record(model, prompts, names, logits=False)
    real, found = cache.batch.mask.bool(), []
    for layer, name in enumerate(names):
        size = cache[name].float().abs()
        times = size / size.median(-1, keepdim=True).values.clamp_min(1e-12)
        for row, column, k in ((size > at_least) & (times > ratio) & real[..., None]).nonzero().tolist():
            value, position = cache[name][row, column, k].item(), int(cache.batch.position_ids[row, column])
            found.append(Massive(layer, row, position, k, value, times[row, column, k].item()))
    return sorted(found, key=lambda massive: -abs(massive.value))


@torch.no_grad()
def outlier_dimensions(model, prompts: Sequence, skip: int = 0, batch_size: int = 64) -> Tensor:
    """How far each coordinate of the residual stream stands out: mean |x_k| over tokens, over its median over k.

    Returns [n_layers + 1, d]; 1 is an ordinary coordinate. skip: leave out that many first tokens, which are often
    massive themselves. Dettmers et al. (2022) call a coordinate an outlier when it is above 6 in absolute size at many
    tokens in at least a quarter of the layers; a ratio needs no such scale.
    """
    total = 0.0
    for start in range(0, len(prompts), batch_size):
        states = [f"x{layer}" for layer in range(model.n_layers + 1)]
        cache = record(model, prompts[start : start + batch_size], states, logits=False)
        counted = cache.batch.mask.bool() & (cache.batch.position_ids >= skip)
        total = total + torch.stack([value[counted].float().abs().sum(0) for value in cache.values()])
    return (total / total.median(-1, keepdim=True).values.clamp_min(1e-12)).cpu()


# --- queries and keys ------------------------------------------------------------------------------------------------


@torch.no_grad()
def qk_concentration(model, prompts: Sequence, part: str = "k", batch_size: int = 64) -> Scores:
    """How much a few coordinates dominate a head's queries or keys: max over coordinates of M_k, over its mean.

    M_k = ||(q or k)_{., k}||_2 over all tokens (Jin et al. 2025, who call M_k > 5 x mean massive). 1: all coordinates
    alike; d_head: a single one. Rotary embedding is part of what is read, as the scores multiply it. part: "q" or "k";
    query heads that share a key have the same number.
    """
    if part not in ("q", "k"):
        raise ValueError(f"part={part!r} is unknown; choose 'q' or 'k'")
    started, squares = time.perf_counter(), 0.0
    names = [f"{part}{layer}" for layer in range(model.n_layers)]
    for start in range(0, len(prompts), batch_size):
        cache = record(model, prompts[start : start + batch_size], names, logits=False)
        real = cache.batch.mask.bool()
        squares = squares + torch.stack([cache[name][real].float().square().sum(0) for name in names])  # [L, H, d_head]
    M = squares.sqrt().cpu()
    ratio = M.amax(-1) / M.mean(-1).clamp_min(1e-12)
    if part == "k":
        ratio = ratio.repeat_interleave(model.n_heads // model.n_kv_heads, dim=1)
    sites = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    return Scores(
        sites, ratio.flatten(), f"largest coordinate of {part} / mean", "magnitude", forwards=len(prompts),
        seconds=time.perf_counter() - started,
    )  # fmt: skip
