"""Is a circuit any good? Faithfulness, completeness, minimality, random circuits, stability (survey 3.6, audit A23).

A circuit is a bool matrix [n_senders, n_receivers]; `allowed` marks all edges of the model. `run(circuit)` gives the
metric F of every item when only these edges are left and the rest carries something else (`locate.circuit`). The
survey leaves faithfulness undefined; here

    faithfulness(C) = (F(C) - F(none)) / (F(all) - F(none))       means over items

so that 1 is the whole model and 0 the model with every edge replaced. It can be above 1 and below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Run = Callable[[Tensor], Tensor]
# Shares of edges at which the MIB benchmark measures (Mueller et al. 2025).
MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
ENDS = {"abs": torch.abs, "positive": torch.Tensor.clone, "negative": torch.neg}


def top_edges(scores: Tensor, allowed: Tensor, k: int, by: str = "abs") -> Tensor:
    """The circuit of the k best edges. scores [n_senders, n_receivers]; by: "abs", "positive" or "negative"."""
    if by not in ENDS:
        raise ValueError(f"by={by!r} is unknown; choose one of {', '.join(ENDS)}")
    if not 0 <= k <= int(allowed.sum()):
        raise ValueError(f"k={k} must lie between 0 and {int(allowed.sum())}, the number of edges")
    importance = ENDS[by](scores.float()).masked_fill(~allowed, -torch.inf).flatten()
    circuit = torch.zeros(allowed.numel(), dtype=torch.bool)
    circuit[importance.argsort(descending=True, stable=True)[:k].cpu()] = True
    return circuit.view(allowed.shape)


@dataclass(frozen=True)
class Curve:
    """Faithfulness of circuits of growing size. shares: size as a share of all edges; sizes: number of edges.

    Both areas are those of the code of MIB's circuit track (`evaluate_area_under_curve`): trapezoids from the smallest
    share to 1. It puts the shares that were asked for on the axis; here it is what the circuits really have.
    """

    shares: np.ndarray
    sizes: np.ndarray
    faithfulness: np.ndarray

    @property
    def cpr(self) -> float:
        """Circuit performance ratio of MIB: area under the curve (trapezoids, linear in the share). High is good."""
        return float(np.trapezoid(self.faithfulness, self.shares))

    @property
    def cmd(self) -> float:
        """Circuit-model distance of MIB: area between the curve and 1. Low is good; 0 is the whole model at once."""
        return float(np.trapezoid(np.abs(1 - self.faithfulness), self.shares))


def faithfulness(run: Run, circuit: Tensor, allowed: Tensor) -> float:
    """(F(C) - F(none)) / (F(all) - F(none)) from means over items. ValueError when all and none do not differ."""
    none, all_edges = _ends(run, allowed)
    return (run(circuit).mean().item() - none) / (all_edges - none)


def faithfulness_curve(
    run: Run, scores: Tensor, allowed: Tensor, shares: Sequence[float] = MIB_SHARES, by: str = "abs"
) -> Curve:
    """Faithfulness of the best edges by `scores`, at several shares of all edges (at least one edge each)."""
    n = int(allowed.sum())
    return circuits_curve(run, [top_edges(scores, allowed, max(1, round(s * n)), by) for s in shares], allowed)


def circuits_curve(run: Run, circuits: Sequence[Tensor], allowed: Tensor) -> Curve:
    """Faithfulness of any circuits, in the order given: of nodes, or of random edges."""
    none, all_edges = _ends(run, allowed)
    sizes = np.array([int(circuit.sum()) for circuit in circuits])
    values = np.array([run(circuit).mean().item() for circuit in circuits])
    return Curve(sizes / int(allowed.sum()), sizes, (values - none) / (all_edges - none))


def _ends(run: Run, allowed: Tensor) -> tuple[float, float]:
    none, all_edges = run(torch.zeros_like(allowed)).mean().item(), run(allowed).mean().item()
    if none == all_edges:
        raise ValueError(
            "faithfulness is undefined: F is the same with all edges and with none; use another metric, "
            "or other prompts"
        )
    return none, all_edges


def completeness(run: Run, circuit: Tensor, allowed: Tensor, subsets: Sequence[Tensor]) -> list[tuple[float, float]]:
    """(F(C without K), F(all without K)) for each set K of edges of the circuit (Wang et al. 2023).

    A complete circuit holds all that the model has for the behaviour, so both fall alike. If the model keeps more, the
    rest took over: the circuit lacks a backup.
    """
    return [(run(circuit & ~k).mean().item(), run(allowed & ~k).mean().item()) for k in subsets]


def minimality(run: Run, circuit: Tensor) -> Tensor:
    """F(C without e) - F(C) for every edge e of the circuit, in the order of `circuit.nonzero()`: [n_edges].

    An edge near 0 is not needed, at least as long as all others are there (audit A17). One run for each edge.
    """
    whole, changes = run(circuit).mean(), []
    for row, column in circuit.nonzero().tolist():
        without = circuit.clone()
        without[row, column] = False
        changes.append(run(without).mean() - whole)
    return torch.stack(changes) if changes else torch.zeros(0)


def random_subsets(circuit: Tensor, n: int, share: float = 0.5, seed: int = 0) -> list[Tensor]:
    """n random sets of edges of the circuit, each edge in with probability `share`: the K of `completeness`."""
    generator = torch.Generator().manual_seed(seed)
    return [circuit & (torch.rand(circuit.shape, generator=generator) < share) for _ in range(n)]


def random_circuit(allowed: Tensor, k: int, seed: int = 0) -> Tensor:
    """k random edges: the first thing that a circuit must beat."""
    return top_edges(torch.rand(allowed.shape, generator=torch.Generator().manual_seed(seed)), allowed, k)


def rewire(circuit: Tensor, allowed: Tensor, seed: int = 0, swaps: int = 10) -> Tensor:
    """A random circuit in which every sender and every receiver has as many edges as in `circuit`.

    Pairs of edges u->v, w->x become u->x, w->v where those are edges of the model that are not yet in; `swaps` tries
    for each edge. A fairer control than random edges: it keeps which nodes take part, and how much.
    """
    rng, new = np.random.default_rng(seed), circuit.clone()
    edges = new.nonzero().tolist()
    for _ in range(swaps * len(edges)):
        i, j = rng.integers(len(edges), size=2)
        (u, v), (w, x) = edges[i], edges[j]
        if allowed[u, x] and allowed[w, v] and not new[u, x] and not new[w, v]:
            new[u, v], new[w, x], new[u, x], new[w, v] = False, False, True, True
            edges[i], edges[j] = [u, x], [w, v]
    return new


def iou(first: Tensor, second: Tensor) -> float:
    """Edges in both over edges in either (Jaccard), 0 ... 1."""
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0


def bootstrap_iou(
    item_scores: Tensor, allowed: Tensor, k: int, draws: int = 20, by: str = "abs", seed: int = 0
) -> float:
    """How much the k best edges depend on the prompts: mean IoU over pairs of bootstrap draws of the items.

    item_scores [n_items, n_senders, n_receivers], for instance `eap.eap_items`. Two unrelated random circuits have an
    IoU near k / (2 n_edges - k).
    """
    n, generator = len(item_scores), torch.Generator().manual_seed(seed)
    circuits = []
    for _ in range(draws):
        items = torch.randint(n, (n,), generator=generator)
        circuits.append(top_edges(item_scores[items].mean(0), allowed, k, by))
    return float(np.mean([iou(a, b) for i, a in enumerate(circuits) for b in circuits[:i]]))
