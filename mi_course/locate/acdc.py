"""ACDC (survey section 3.6, L6b): prune the graph edge by edge, from the logits back (Conmy et al. 2023)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from mi_course.objects import Scores, Task

from .circuit import CircuitRunner
from .graph import Graph


@dataclass(frozen=True)
class Pruned:
    """What ACDC leaves.

    circuit   bool matrix of the edges that stayed; edges their names
    scores    how much the distance grew when the edge was tried; 0 for edges dropped without a try
    tries     circuits that were run, against n_edges of the whole graph; forwards counts prompt rows
    """

    circuit: Tensor
    edges: list[str]
    scores: Scores
    tries: int
    n_edges: int
    forwards: int


def acdc(
    model,
    task: Task,
    threshold: float,
    kind: str = "noising",
    distance: str = "kl",
    seed: int = 0,
    progress: bool = False,
) -> Pruned:
    """Drop edges one by one, from the logits back, as long as little changes.

    Start with all edges. For each receiver from last to first, and each sender into it from last to first: run the
    circuit without the edge; if the distance to the whole model grows by less than `threshold`, the edge is gone. A
    node that nothing reads any more loses its edges without a try. That is one forward for every edge but those:
    linear in the number of edges (what ACDC avoids are the 2^edges subgraphs, audit A23).

    distance: "kl", KL(whole model || circuit) of the next token at the answer, in nats, mean over items; or "metric",
        the absolute change of the mean metric.
    progress: show a bar over the receivers.
    """
    if distance not in ("kl", "metric"):
        raise ValueError(f"distance={distance!r} is unknown; choose 'kl' or 'metric'")
    started, runner = time.perf_counter(), CircuitRunner(model, task, kind, seed)
    graph, whole = runner.graph, runner.clean_logits
    log_whole = whole.log_softmax(-1)

    def far(circuit: Tensor) -> float:
        logits = runner.logits(circuit)
        if distance == "metric":
            return (runner.metric(logits) - runner.metric(whole)).mean().abs().item()
        return (log_whole.exp() * (log_whole - logits.log_softmax(-1))).sum(-1).mean().item()

    circuit, now, tries = graph.allowed.clone(), 0.0, 0
    changes = torch.zeros(circuit.shape)
    backwards = range(len(graph.receivers) - 1, -1, -1)
    for column in tqdm(backwards, desc="ACDC, receivers", disable=not progress, mininterval=1):
        senders = graph.allowed[:, column].nonzero().flatten().tolist()
        if not _is_read(graph, circuit, column):
            circuit[senders, column] = False
            continue
        for row in reversed(senders):
            circuit[row, column] = False
            new = far(circuit)
            tries += 1
            changes[row, column] = new - now
            if new - now < threshold:
                now = new
            else:
                circuit[row, column] = True
    cost = dict(forwards=runner.forwards, seconds=time.perf_counter() - started)
    scores = graph.scores(changes, f"ACDC, threshold {threshold:g}, {kind}", "magnitude", **cost)
    return Pruned(circuit, graph.names(circuit), scores, tries, len(graph), runner.forwards)


def _is_read(graph: Graph, circuit: Tensor, column: int) -> bool:
    """Whether any node that reads through this receiver still sends along an edge of the circuit."""
    if graph.receivers[column] == "logits":
        return True
    owners = graph.owners(graph.receivers[column])
    return any(bool(circuit[graph.senders.index(owner)].any()) for owner in owners)
