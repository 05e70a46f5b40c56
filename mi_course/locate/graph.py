"""The graph of a model (survey section 3.6): who writes to the residual stream, who reads it, and every edge between.

    senders    x0 (embedding plus position, the input of block 0), heads `L0H1`, FFNs `mlp2`
    receivers  `L3H5.q`, `L3H5.k`, `L3H5.v` (what a head reads to make its queries, keys, values), `mlp2`, `logits`

A sender is what reaches the stream: a head's result z W_O, an FFN's output, both through the post-norm where the family
has one, its scale frozen at that run's value. A receiver is its input before its norm. An edge u->v exists when u is
computed before v is read: in parallel blocks `mlp2` reads no head of layer 2. The biases b_O belong to no sender (they
are the same in every run and cancel in all differences); b_out stays with its FFN.

With grouped key-value heads, query heads of a group share their keys and values: there is one k and one v receiver for
each key-value head, named after the first query head of its group.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from mi_course.models import Site
from mi_course.models.sites import Edge
from mi_course.objects import Scores

PARTS = ("q", "k", "v")


class Graph:
    """Senders, receivers and edges of a model, in the order of the computation.

    senders, receivers  names (strings of the site grammar)
    allowed             bool [n_senders, n_receivers]: which edges exist. Every other matrix of the course over edges
                        (scores, circuits) has this shape, with False or 0 where no edge is.
    """

    def __init__(self, model):
        self.n_layers, self.n_heads, self.n_kv_heads = model.n_layers, model.n_heads, model.n_kv_heads
        self.parallel = model.family.is_parallel(model.config)
        groups = self.n_heads // self.n_kv_heads
        self.senders, self.receivers = ["x0"], []
        upstream = []  # number of senders that each receiver can read: they are the first ones
        self._inputs: dict[tuple[int, str], slice] = {}
        for layer in range(self.n_layers):
            before = len(self.senders)
            for part in PARTS:
                heads = range(0, self.n_heads, 1 if part == "q" else groups)
                self._add_inputs(layer, part, [f"L{layer}H{head}.{part}" for head in heads])
                upstream += [before] * len(heads)
            self.senders += [f"L{layer}H{head}" for head in range(self.n_heads)]
            self._add_inputs(layer, "mlp", [f"mlp{layer}"])
            upstream.append(before if self.parallel else len(self.senders))
            self.senders.append(f"mlp{layer}")
        self._add_inputs(self.n_layers, "logits", ["logits"])
        upstream.append(len(self.senders))
        self.allowed = torch.arange(len(self.senders))[:, None] < torch.tensor(upstream)[None]

    def _add_inputs(self, layer: int, part: str, names: list[str]) -> None:
        self._inputs[layer, part] = slice(len(self.receivers), len(self.receivers) + len(names))
        self.receivers += names

    def inputs(self, layer: int, part: str) -> slice:
        """Columns of the receivers of one layer; part is q, k, v, mlp, or (at layer L) logits."""
        return self._inputs[layer, part]

    def outputs(self, layer: int, part: str) -> slice:
        """Rows of the senders of one layer; part is heads or mlp."""
        first = 1 + layer * (self.n_heads + 1)
        return (
            slice(first, first + self.n_heads)
            if part == "heads"
            else slice(first + self.n_heads, first + self.n_heads + 1)
        )

    def before(self, layer: int) -> int:
        """How many senders are computed before block `layer`: they come first in `senders`."""
        return 1 + layer * (self.n_heads + 1)

    def layer_of(self, receiver: int) -> int:
        """The block that a receiver (its column) belongs to; L for the logits."""
        return next(layer for (layer, _), inputs in self._inputs.items() if inputs.start <= receiver < inputs.stop)

    @cached_property
    def edges(self) -> list[str]:
        """Names of all edges, sender by sender."""
        return self.names(self.allowed)

    def __len__(self) -> int:
        return int(self.allowed.sum())

    def __repr__(self) -> str:
        return f"Graph({len(self.senders)} senders, {len(self.receivers)} receivers, {len(self):,} edges)"

    # -- names and matrices ----------------------------------------------------------------------------------------

    def index(self, edge: str | Edge) -> tuple[int, int]:
        """(row, column) of an edge in every matrix. Raises ValueError that says why there is no such edge."""
        edge = Edge.parse(edge)
        row, column = self._rows.get(str(edge.sender)), self._columns.get(str(edge.receiver))
        if row is None:
            hint = "; the input is called 'x0' here" if edge.sender.kind == "embed" else ""
            raise ValueError(
                f"edge {str(edge)!r}: {edge.sender} sends nothing in this graph{hint}; senders are x0, heads "
                f"such as 'L0H1', and 'mlp0' ... 'mlp{self.n_layers - 1}'"
            )
        if column is None:
            raise ValueError(
                f"edge {str(edge)!r}: {edge.receiver} receives nothing in this graph; "
                f"{self._receiver_hint(edge.receiver)}"
            )
        if not self.allowed[row, column]:
            raise ValueError(
                f"edge {str(edge)!r} does not exist: {edge.sender} is not computed before {edge.receiver} is read"
            )
        return row, column

    def _receiver_hint(self, site: Site) -> str:
        groups = self.n_heads // self.n_kv_heads
        if site.kind == "head" and site.part in ("k", "v") and groups > 1 and site.index is not None:
            return (
                f"heads share keys and values in groups of {groups}; name the first of its group, "
                f"'L{site.layer}H{site.index // groups * groups}.{site.part}'"
            )
        return "receivers are a head's 'L1H0.q', 'L1H0.k', 'L1H0.v', 'mlp1' and so on, and 'logits'"

    def mask(self, edges: Iterable[str | Edge]) -> Tensor:
        """Bool [n_senders, n_receivers], True at the given edges."""
        mask = torch.zeros_like(self.allowed)
        for edge in edges:
            mask[self.index(edge)] = True
        return mask

    def names(self, mask: Tensor) -> list[str]:
        """The edges where `mask` is True, sender by sender."""
        return [f"{self.senders[row]}->{self.receivers[column]}" for row, column in mask.nonzero().tolist()]

    def scores(self, matrix: Tensor, method: str, sign: str, edges: Iterable[str] | None = None, **cost) -> Scores:
        """A matrix over edges as `Scores`: of all edges, or of the ones named."""
        if edges is None:
            return Scores(self.edges, matrix[self.allowed.to(matrix.device)], method, sign, **cost)
        edges = [str(edge) for edge in edges]
        return Scores(edges, torch.stack([matrix[self.index(edge)] for edge in edges]), method, sign, **cost)

    def matrix(self, scores: Scores) -> Tensor:
        """Scores over edges as a matrix [n_senders, n_receivers], 0 where none was scored."""
        matrix = torch.zeros(self.allowed.shape)
        for edge, value in zip(scores.sites, scores.values):
            matrix[self.index(edge)] = float(value)
        return matrix

    def of_nodes(self, nodes: Iterable[str]) -> Tensor:
        """The edges among some nodes (heads `L3H5`, FFNs `mlp2`): a node circuit. x0 and logits always belong to it."""
        nodes = {str(node) for node in nodes} | {"x0", "logits"}
        unknown = sorted(nodes - {*self.senders, "logits"})
        if unknown:
            raise ValueError(
                f"nodes names {unknown[0]}, which is no node of this graph; nodes are heads 'L0H1' and FFNs 'mlp0'"
            )
        sends = torch.tensor([name in nodes for name in self.senders])
        receives = torch.tensor([bool(nodes & set(self.owners(name))) for name in self.receivers])
        return sends[:, None] & receives[None] & self.allowed

    def shuffle_heads(self, circuit: Tensor, seed: int = 0) -> Tensor:
        """The same circuit with the heads of each layer dealt anew (with shared keys and values: groups, and heads
        within them): as many edges and the same degrees and layers, other heads. A control for `circuit`."""
        generator = torch.Generator().manual_seed(seed)
        groups = self.n_heads // self.n_kv_heads
        rows, columns = torch.arange(len(self.senders)), torch.arange(len(self.receivers))
        for layer in range(self.n_layers):
            kv = torch.randperm(self.n_kv_heads, generator=generator)
            inside = torch.stack([torch.randperm(groups, generator=generator) for _ in range(self.n_kv_heads)])
            heads = (kv[:, None] * groups + inside).flatten()
            rows[self.outputs(layer, "heads")] = self.outputs(layer, "heads").start + heads
            for part, order in (("q", heads), ("k", kv), ("v", kv)):
                columns[self.inputs(layer, part)] = self.inputs(layer, part).start + order
        return circuit[rows][:, columns]

    def owners(self, receiver: str) -> list[str]:
        """The nodes that read through a receiver: one, or the whole group for shared keys and values."""
        site = Site.parse(receiver)
        if site.kind != "head":
            return [receiver]
        groups = 1 if site.part == "q" else self.n_heads // self.n_kv_heads
        return [f"L{site.layer}H{head}" for head in range(site.index, site.index + groups)]

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.senders)}

    @cached_property
    def _columns(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.receivers)}
