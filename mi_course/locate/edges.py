"""Exact edge effects (survey section 3.6, L6a): one receiver alone reads another value of one sender.

The receiver v reads x - a_u + a_u' instead of x, where a_u is the sender's write in the base run and a_u' its other
write; every other reader of x still reads x. Everything after v computes again, so this is the total effect of the
edge. It is what EAP estimates and ACDC searches over, and path patching with the path u -> v (Wang et al. 2023).

    L0H1->L3H5.q   q of head 5 in layer 3 from norm(x^3 - a_u + a_u'), then attention, FFN and all later blocks
    L0H1->mlp2     FFN 2 from norm(mid2 - a_u + a_u'), then all later blocks
    L0H1->logits   the unembedding of x^L - a_u + a_u'
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mi_course.objects import Scores, Task

from .edge_runs import RUNS, SIGN, Contrast, contrasts
from .graph import Graph

# Cells of this many tokens are computed together: enough to fill the matrix products, few enough to stay in the cache.
CHUNK_TOKENS = 4096


def ablate_edges(
    model,
    task: Task,
    edges: Iterable[str] | None = None,
    kind: str = "noising",
    seed: int = 0,
    progress: bool = False,
) -> Scores:
    """Change edges one by one: mean over items of F(edge changed) - F(base).

    Args:
        edges: names such as "L0H1->L3H5.q"; None takes every edge of the model.
        kind: "noising" or "denoising" (the twin's write), "zero", "mean" or "resample"; see `locate.edge_runs`.
        seed: of the random prompts of "resample".
        progress: show a bar; all edges of a model of the size of GPT-2 take hours on a CPU.
    Helpful edges are negative, under denoising positive. The cost counts as forwards the runs that give the two writes,
    and for every edge the share of a run that is computed again; as token-layers only the latter.
    """
    started, graph = time.perf_counter(), Graph(model)
    edges = graph.edges if edges is None else [str(edge) for edge in edges]
    effects = edge_effects(model, task, edges, kind, seed, progress)
    starts = torch.tensor([graph.layer_of(graph.index(edge)[1]) for edge in edges])
    tokens = int(model.tokenize(task.prompts).mask.sum())
    layers = int((model.n_layers - starts).sum())
    return Scores(
        edges,
        effects.mean(1),
        method=f"exact edges, {kind}",
        sign=SIGN[kind],
        forwards=len(task) * (RUNS[kind] + layers / model.n_layers),
        token_layers=tokens * layers,
        seconds=time.perf_counter() - started,
    )


@torch.no_grad()
def edge_effects(
    model, task: Task, edges: Iterable[str], kind: str = "noising", seed: int = 0, progress: bool = False
) -> Tensor:
    """[n_edges, n_items]: F(edge changed) - F(base) of every item. Arguments as in `ablate_edges`."""
    graph = Graph(model)
    index = [graph.index(edge) for edge in edges]
    if not index:
        raise ValueError("edges is empty; name at least one, or leave it out for all edges")
    wanted = graph.mask(())
    rows, columns = (torch.tensor(axis) for axis in zip(*index))
    wanted[rows, columns] = True
    found = [_effects(graph, wanted, contrast, progress) for contrast in contrasts(model, task, kind, seed=seed)]
    return torch.cat(found, dim=-1)[rows, columns]


def _effects(graph: Graph, wanted: Tensor, c: Contrast, progress: bool) -> Tensor:
    """[n_senders, n_receivers, B], zero where no edge is wanted."""
    base = c.metric(c.base.logits)
    effects = base.new_zeros(*wanted.shape, len(base))
    with tqdm(total=int(wanted.sum()), desc=f"edges, {len(base)} prompts", disable=not progress, mininterval=1) as bar:
        for cells, column, logits in _changed(graph, wanted, c):
            effects[cells, column] = c.metric(logits) - base
            bar.update(len(cells))
    return effects


def _changed(graph: Graph, wanted: Tensor, c: Contrast):
    """(senders [E], receiver, logits [E, B, V]) for chunks of the wanted edges that end at one receiver."""
    size = max(1, CHUNK_TOKENS // c.blocks.batch.ids.numel())
    for layer in range(graph.n_layers):
        last = layer == graph.n_layers - 1
        attention = slice(graph.inputs(layer, "q").start, graph.inputs(layer, "v").stop)
        for cells in _chunks(wanted[:, attention].any(1), size):
            normed = c.blocks.attn_norm[layer](c.base.x[layer] + c.delta[cells])  # what attention reads, per sender
            for part in ("q", "k", "v"):
                inputs = graph.inputs(layer, part)
                for head, column in enumerate(range(inputs.start, inputs.stop)):
                    chosen = wanted[cells, column]
                    if chosen.any():
                        x = _after_head(c, layer, part, head, normed if chosen.all() else normed[chosen], last)
                        yield cells[chosen], column, c.blocks.logits(x, layer + 1)
        column = graph.inputs(layer, "mlp").start
        for cells in _chunks(wanted[:, column], size):
            yield cells, column, c.blocks.logits(_after_mlp(c, layer, cells, last), layer + 1)
    column = graph.inputs(graph.n_layers, "logits").start
    for cells in _chunks(wanted[:, column], size):
        x = c.blocks.at_last(c.base.x[-1]) + c.blocks.at_last(c.delta[cells])
        yield cells, column, c.blocks.logits(x, graph.n_layers)


def _chunks(senders: Tensor, size: int) -> list[Tensor]:
    """The indices of the chosen senders, `size` at a time."""
    cells = senders.nonzero().flatten()
    return list(cells.split(size)) if len(cells) else []


def _after_head(c: Contrast, layer: int, part: str, head: int, normed: Tensor, last: bool) -> Tensor:
    """x^{layer+1} [E, B, T or 1, d] when one q, k or v reads `normed` [E, B, T, d].

    head: the query head, or for k and v the key-value head.
    """
    blocks, s = c.blocks, c.base
    groups = blocks.attention[layer].groups
    readers = (
        slice(head, head + 1) if part == "q" else slice(head * groups, (head + 1) * groups)
    )  # query heads it changes
    shared = head // groups if part == "q" else head
    values = {
        "q": s.q[layer][..., readers, :],
        "k": s.k[layer][..., shared, None, :],
        "v": s.v[layer][..., shared, None, :],
    }
    z, x, attn = s.z[layer][..., readers, :], s.x[layer], s.attn[layer]
    if last:
        values["q"], z = (blocks.at_last(y.flatten(-2)).unflatten(-1, y.shape[-2:]) for y in (values["q"], z))
        x, attn = blocks.at_last(x), blocks.at_last(attn)
        normed = blocks.at_last(normed) if part == "q" else normed
    new = blocks.raw(layer, part, normed, slice(head, head + 1))
    values[part] = blocks.finish(layer, part, new, last and part == "q")
    change = blocks.attend(layer, **values, last=last) - z
    attn = attn + change.flatten(-2) @ blocks.attention[layer].W_O[readers].flatten(0, 1)
    return blocks.after_attention(layer, x, blocks.attn_to_stream(layer, attn))


def _after_mlp(c: Contrast, layer: int, cells: Tensor, last: bool) -> Tensor:
    """x^{layer+1} [E, B, T or 1, d] when the FFN of `layer` reads other writes of the senders `cells`."""
    blocks, s = c.blocks, c.base
    mid = s.x[layer] + s.attn_write[layer]
    seen = (s.x[layer] if blocks.parallel else mid) + c.delta[cells]
    if last:
        mid, seen = blocks.at_last(mid), blocks.at_last(seen)
    return mid + blocks.mlp_write(layer, seen)
