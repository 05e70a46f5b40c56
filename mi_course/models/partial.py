"""Run a part of the model: each row of a batch joins at its own layer, and all rows at one column.

What lies before, the states of the layers below and the keys and values of the columns to the left, comes from a
finished run (`Past`). Used by sweeps, which run the same prompts many times with one thing changed each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from . import weights
from .batch import Batch
from .record import record
from .sites import Site


@dataclass(frozen=True)
class Past:
    """A finished run of `batch`: x[l] [B, T, d] for l = 0 ... L, keys[l] and values[l] [B, T, H_kv, d_head].

    also: the values of other recorded sites, by their strings.
    """

    batch: Batch
    x: list[Tensor]
    keys: list[Tensor]
    values: list[Tensor]
    also: dict[str, Tensor]

    @classmethod
    @torch.no_grad()
    def of(cls, model, batch: Batch, also: Sequence[str] = ()) -> Past:
        """Run the prompts once and keep what later partial runs start from."""
        layers = range(model.n_layers)
        sites = [f"{kind}{layer}" for kind in "kv" for layer in layers]
        sites += [f"x{layer}" for layer in range(model.n_layers + 1)]
        cache = record(model, batch, [*sites, *also], logits=False)
        x = [cache[f"x{layer}"] for layer in range(model.n_layers + 1)]
        keys, values = [cache[f"k{layer}"] for layer in layers], [cache[f"v{layer}"] for layer in layers]
        return cls(batch, x, keys, values, {site: cache[site] for site in also})


@torch.no_grad()
def run_from(
    model, past: Past, column: int, layers: Sequence[int], x: Tensor, taps: Sequence, to_last_block: bool = False
) -> Tensor:
    """Run copies of the prompts of `past` from `column` on; copy i joins at layer `layers[i]`, which never falls.

    Args:
        layers: one per copy, ascending: 0 ... L, or -1 for a copy whose embeddings are computed (and can be tapped).
        x: [copies * B, T - column, d], x^l of every row at the layer where it joins; rows of copies at -1 are ignored.
        taps: (site, function, Rows) at or above the layer where their rows join.
        to_last_block: stop before the last block, on which there must be no tap; `last_block` goes on from there.
    Returns x^L, or x^{L-1} if to_last_block, [copies * B, T - column, d].
    """
    batch, copies = past.batch, len(layers)
    n, width = batch.ids.shape
    if list(layers) != sorted(layers):
        raise ValueError(f"layers {list(layers)} must ascend")
    mask = batch.mask.repeat(copies, 1)
    inputs = {
        "input_ids": batch.ids[:, column:].repeat(copies, 1),
        "attention_mask": mask,
        "position_ids": batch.position_ids[:, column:].repeat(copies, 1),
        "use_cache": False,
    }
    running = [n * sum(joined <= layer for joined in layers) for layer in range(model.n_layers)]
    if column:
        inputs["past_key_values"] = _filled_cache(past, column, running)
    computed = n * sum(joined < 0 for joined in layers)  # rows with their own embeddings
    if to_last_block:
        running[-1] = 0  # every row passes through it unchanged
    kept = []
    leaves = (Site("x", model.n_layers), lambda value, where: kept.append(value) or value)
    joins = (Site("x", 0), lambda value, where: torch.cat([value[:computed], x[computed:]]))
    with _only_rows(model, running, n * copies), model.taps.active([joins, *taps, leaves]):
        model.body(**inputs)
    return kept[0]


@torch.no_grad()
def last_block(model, past: Past, column: int, x: Tensor) -> Tensor:
    """The last block where it is read, at the answer: one query and one FFN input for each row.

    x: x^{L-1} of copies of the prompts from `column` on, [copies * B, T - column, d]. Returns x^L at the last real
    token of each row, [copies * B, d].
    """
    layer, batch = model.n_layers - 1, past.batch
    copies = len(x) // len(batch)
    w, rows = weights.attention(model, layer), torch.arange(len(x), device=x.device)
    last = batch.last.repeat(copies)
    positions = batch.position_ids.repeat(copies, 1)
    here = x[rows, last - column]
    normed = weights.attn_norm(model, layer)(x)
    k, v = _project(normed, w.W_K, w.b_K), _project(normed, w.W_V, w.b_V)
    q = _project(normed[rows, last - column][:, None], w.W_Q, w.b_Q)
    q, k = (norm(y) if norm else y for norm, y in ((w.q_norm, q), (w.k_norm, k)))
    q = weights.rotate(model, q, positions[rows, last][:, None])[:, 0].unflatten(1, (-1, w.groups))
    k = weights.rotate(model, k, positions[:, column:])
    k, v = (
        torch.cat([before[layer][:, :column].repeat(copies, 1, 1, 1), new], 1)
        for before, new in ((past.keys, k), (past.values, v))
    )
    scores = w.scale * torch.einsum("bkgn,btkn->bkgt", q.float(), k.float())
    scores = scores if w.softcap is None else w.softcap * torch.tanh(scores / w.softcap)
    back = last[:, None] - torch.arange(batch.ids.shape[1], device=x.device)  # columns from the answer back to a key
    seen = batch.mask.bool().repeat(copies, 1) & (back >= 0) & (back < (w.window or batch.ids.shape[1]))
    pattern = scores.masked_fill(~seen[:, None, None], -torch.inf).softmax(-1).to(v.dtype)
    z = torch.einsum("bkgt,btkn->bkgn", pattern, v).flatten(1)
    attn = z @ w.W_O.flatten(0, 1) + w.b_O
    norm = weights.post_norm(model, layer, "attn")
    after = here + (norm(attn) if norm else attn)
    return after + ffn_write(model, layer, here if model.family.is_parallel(model.config) else after)


def ffn_write(model, layer: int, x: Tensor) -> Tensor:
    """What the FFN of `layer` adds to the stream when it reads x [..., d]: x^mid, or x^l in parallel blocks."""
    w = weights.ffn(model, layer)
    x = weights.mlp_norm(model, layer)(x)
    if model.family.gated:
        s = w.act(x @ w.W_gate + w.b_gate) * (x @ w.W_up + w.b_up)
    else:
        s = w.act(x @ w.W_in + w.b_in)
    norm = weights.post_norm(model, layer, "mlp")
    out = s @ w.W_out + w.b_out
    return norm(out) if norm else out


def _project(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """x [B, T, d], W [d, H, n], b [H, n] -> [B, T, H, n]."""
    return (x @ W.flatten(1)).unflatten(-1, W.shape[1:]) + b


def _filled_cache(past: Past, column: int, running: Sequence[int]):
    """A Hugging Face cache with the keys and values left of `column`, for the rows that each layer runs."""
    from transformers import DynamicCache

    cache, n = DynamicCache(), len(past.batch)
    for layer, (keys, values) in enumerate(zip(past.keys, past.values)):
        copies = max(1, running[layer] // n)  # a layer that runs no row still tells how long the past is
        parts = [tensor[:, :column].transpose(1, 2).repeat(copies, 1, 1, 1) for tensor in (keys, values)]
        cache.update(*parts, layer)
    return cache


@contextmanager
def _only_rows(model, running: Sequence[int], rows: int):
    """Block l computes its first running[l] rows; the others pass through it."""
    returns_tuple = model.family.name in ("gptj", "gpt_neo")
    changed = []
    try:
        for block, count in zip(model.blocks, running):
            if count < rows:
                block.forward = _first_rows(block.forward, count, rows, returns_tuple)
                changed.append(block)
        yield
    finally:
        for block in changed:
            del block.forward


def _first_rows(forward, count: int, rows: int, returns_tuple: bool):
    def first(value):
        """The part of an argument that belongs to the first rows. Vectors are columns, never rows."""
        if isinstance(value, tuple):
            return tuple(first(part) for part in value)
        batched = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == rows > 1
        return value[:count] if batched else value

    def run(x, *args, **kwargs):
        if count == 0:
            return (x, None) if returns_tuple else x
        out = forward(x[:count], *map(first, args), **{name: first(value) for name, value in kwargs.items()})
        if isinstance(out, tuple):
            return (torch.cat([out[0], x[count:]]), *out[1:])
        return torch.cat([out, x[count:]])

    return run
