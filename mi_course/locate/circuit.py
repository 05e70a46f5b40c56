"""Run a circuit alone (survey section 3.6): its edges carry what this run computes, all other edges the other write.

    what receiver v reads = x' + sum over edges u -> v of the circuit of (a_u - a_u')

x' is the stream of the other run (the twin's, or all writes zeroed, averaged or resampled: `locate.edge_runs`), a_u the
write of u in this very run and a_u' its other write. With all edges this is the clean run, with none the other one; in
between it is one forward pass, whatever the set. A circuit of all edges but one is the exact patch of that edge.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mi_course.objects import Task

from .edge_runs import Contrast, contrasts
from .graph import Graph


class CircuitRunner:
    """A task made ready to be run with many circuits: `runner(circuit)` is the metric of every item, [n].

    circuit: bool matrix [n_senders, n_receivers] as of `graph.mask(edges)`, or a list of edges.
    kind: what edges outside the circuit carry: "noising" (the twin's write), "zero", "mean" or "resample"; with
        "denoising" the prompts are the corrupted ones and the rest carries the clean write.
    forwards counts prompt rows, one per item and call, and those of the two runs at the start.
    """

    def __init__(self, model, task: Task, kind: str = "noising", seed: int = 0, batch_size: int = 64):
        self.graph, self.task = Graph(model), task
        self._parts = [_Other(self.graph, c) for c in contrasts(model, task, kind, batch_size, seed)]
        self.forwards = 2 * len(task)
        self.clean_logits = torch.cat([part.c.base.logits for part in self._parts])

    @torch.no_grad()
    def logits(self, circuit) -> Tensor:
        """Logits [n, V] at the last token of every item when only the circuit runs."""
        mask = self._mask(circuit)
        self.forwards += len(self.task)
        return torch.cat([_run(self.graph, part, mask) for part in self._parts])

    def metric(self, logits: Tensor) -> Tensor:
        """The task's metric of every item from logits [n, V]."""
        return self.task.metric_of(logits, self._parts[0].c.blocks.model)

    def __call__(self, circuit) -> Tensor:
        return self.metric(self.logits(circuit))

    def _mask(self, circuit) -> Tensor:
        mask = circuit if isinstance(circuit, Tensor) else self.graph.mask(circuit)
        if mask.shape != self.graph.allowed.shape or mask.dtype != torch.bool:
            raise ValueError(
                f"circuit is a {mask.dtype} tensor of shape {tuple(mask.shape)}; give a bool matrix "
                f"{tuple(self.graph.allowed.shape)} such as graph.mask(edges), or a list of edges"
            )
        if (mask & ~self.graph.allowed).any():
            raise ValueError(f"circuit holds {self.graph.names(mask & ~self.graph.allowed)[0]}, which is no edge")
        return mask


class _Other:
    """One batch: its base run, every sender's other write, and the other run's stream at every receiver."""

    def __init__(self, graph: Graph, c: Contrast):
        self.c = c
        self.writes = c.blocks.writes(c.base) + c.delta
        self.x, self.mid = [c.base.x[0] + c.delta[0]], []
        for layer in range(graph.n_layers):
            attn = c.delta[graph.outputs(layer, "heads")].sum(0)
            shift = self.x[layer] - c.base.x[layer]
            seen = c.base.x[layer] if graph.parallel else c.base.x[layer] + c.base.attn_write[layer]
            self.mid.append(seen + shift + (0 if graph.parallel else attn))
            self.x.append(c.base.x[layer + 1] + shift + attn + c.delta[graph.outputs(layer, "mlp")][0])


def _run(graph: Graph, other: _Other, mask: Tensor) -> Tensor:
    """Logits [B, V] of the circuit `mask`. Layers below the first missing edge are those of the base run."""
    c, blocks = other.c, other.c.blocks
    missing = (graph.allowed & ~mask).any(0).nonzero().flatten()
    start = graph.layer_of(int(missing[0])) if len(missing) else graph.n_layers
    gap = torch.empty_like(c.delta)  # a_u - a_u' of every sender
    gap[: graph.before(start)] = -c.delta[: graph.before(start)]
    kept = mask.to(gap)

    def inputs(stream: Tensor, layer: int, part: str, upstream: int) -> Tensor:
        """What these receivers read, [receivers, B, T, d]."""
        edges = kept[:upstream, graph.inputs(layer, part)]
        return stream + (edges.T @ gap[:upstream].flatten(1)).unflatten(1, stream.shape)

    def project(part: str, layer: int, stream: Tensor, last: bool) -> Tensor:
        """Queries, keys or values of these heads, each from what it reads."""
        w, normed = blocks.attention[layer], blocks.attn_norm[layer](inputs(stream, layer, part, graph.before(layer)))
        own = torch.einsum("rbtd,drn->btrn", normed, getattr(w, f"W_{part.upper()}"))
        return blocks.finish(layer, part, own + getattr(w, f"b_{part.upper()}"), last)

    for layer in range(start, graph.n_layers):
        x, mid, writes, last = other.x[layer], other.mid[layer], other.writes, layer == graph.n_layers - 1
        k, v = (project(part, layer, x, False) for part in "kv")
        if last:  # nothing but the answer is read from here on
            x, mid, writes, gap = (blocks.at_last(each) for each in (x, mid, writes, gap))
        z = blocks.attend(layer, project("q", layer, x, last), k, v, last)
        heads, mlp = graph.outputs(layer, "heads"), graph.outputs(layer, "mlp")
        gap[heads] = blocks.head_writes(layer, z) - writes[heads]
        read = inputs(mid, layer, "mlp", graph.before(layer) if graph.parallel else heads.stop)
        gap[mlp] = blocks.mlp_write(layer, read) - writes[mlp]
    gap = blocks.at_last(gap) if start == graph.n_layers else gap
    edges = kept[:, graph.inputs(graph.n_layers, "logits")]
    return blocks.unembedding((blocks.at_last(other.x[-1]) + torch.einsum("sr,sbtd->btd", edges, gap))[:, 0])
