"""Circuits run in one forward: against exact edges on all families, and against compiled circuits; ACDC."""

import pytest
import torch

from mi_course.locate.acdc import acdc
from mi_course.locate.circuit import CircuitRunner
from mi_course.locate.edges import edge_effects
from mi_course.locate.graph import Graph
from mi_course.world import compiled
from tests.families import FAMILIES
from tests.locate.slow_edges import TASK, make
from tests.locate.test_edges import some_edges


@pytest.mark.parametrize("family", FAMILIES)
def test_all_none_and_all_but_one(family):
    model = make(family)
    run = CircuitRunner(model, TASK)
    graph = run.graph
    assert torch.allclose(run(graph.allowed), TASK.measure(model), atol=2e-5)
    assert torch.allclose(run([]), TASK.measure(model, on="corrupted"), atol=2e-5)
    edges = some_edges(graph, 8)
    exact = edge_effects(model, TASK, edges)
    for edge, effect in zip(edges, exact):
        found = run(graph.allowed & ~graph.mask([edge])) - TASK.measure(model)
        assert torch.allclose(found, effect, atol=3e-5), edge


@pytest.mark.parametrize("kind", ["zero", "mean", "resample", "denoising"])
def test_other_fillings(kind):
    model = make("gemma2")
    run = CircuitRunner(model, TASK, kind)
    base = TASK.measure(model, on="corrupted" if kind == "denoising" else "clean")
    assert torch.allclose(run(run.graph.allowed), base, atol=2e-5)
    edges = some_edges(run.graph, 5, seed=3)
    for edge, effect in zip(edges, edge_effects(model, TASK, edges, kind)):
        assert torch.allclose(run(run.graph.allowed & ~run.graph.mask([edge])) - base, effect, atol=3e-5)


@pytest.mark.parametrize(
    "make_compiled", [compiled.induction, compiled.and_gate, compiled.saturated, compiled.mediation]
)
def test_the_answer_key_is_a_faithful_circuit(make_compiled):
    c = make_compiled()
    model = c.wrap()
    run = CircuitRunner(model, c.task)
    assert torch.allclose(run(c.edges), c.task.measure(model), atol=1e-3)
    assert (run(c.edges[:-1]).mean() - c.task.measure(model).mean()).abs() > 1  # the last edge goes to the logits


@pytest.mark.parametrize("make_compiled", [compiled.and_gate, compiled.saturated, compiled.mediation])
def test_acdc_finds_the_edges_that_differ_between_the_twins(make_compiled):
    c = make_compiled()
    model = c.wrap()
    found = acdc(model, c.task, threshold=1e-3, distance="metric")
    exact = edge_effects(model, c.task, found.scores.sites)
    # under noising an edge that carries nothing different is dropped, also when the key names it
    carries = {e for e, effect in zip(found.scores.sites, exact) if effect.mean().abs() > 1e-3}
    assert set(found.edges) == carries <= set(c.edges)
    assert CircuitRunner(model, c.task)(found.edges).mean().item() == pytest.approx(
        c.task.measure(model).mean().item(), abs=1e-2
    )


def test_acdc_tries_each_edge_once_but_those_of_nodes_that_nothing_reads():
    model = make("llama")
    none = acdc(model, TASK, threshold=-1.0)  # no change is small enough: every edge is tried, none goes
    assert none.tries == none.n_edges == len(Graph(model)) and len(none.edges) == none.n_edges
    assert none.forwards == len(TASK) * (none.tries + 2)
    everything = acdc(model, TASK, threshold=1e9)
    assert everything.edges == [] and everything.tries == 11  # the edges into the logits; then nothing is read
    some = acdc(model, TASK, threshold=0.3)
    assert 0 < len(some.edges) < some.n_edges and 11 < some.tries < some.n_edges
    with pytest.raises(ValueError, match="distance='l2'"):
        acdc(model, TASK, 0.1, distance="l2")


def slow_acdc(run, distance, threshold):
    """Conmy et al.: from the output back, drop an edge if that alone moves the output away by less than `threshold`."""
    graph, circuit, now = run.graph, run.graph.allowed.clone(), 0.0
    for column in reversed(range(len(graph.receivers))):
        name = graph.receivers[column]
        read = name == "logits" or any(circuit[graph.senders.index(node)].any() for node in graph.owners(name))
        for row in reversed(range(len(graph.senders))):
            if circuit[row, column]:
                without = circuit.clone()
                without[row, column] = False
                moved = distance(run.logits(without)) if read else now
                if not read or moved - now < threshold:
                    circuit, now = without, moved
    return graph.names(circuit)


def test_acdc_compares_each_edge_with_the_circuit_so_far():
    model = make("gpt2")
    run = CircuitRunner(model, TASK)
    whole = torch.distributions.Categorical(logits=run.clean_logits)

    def kl(logits):
        return torch.distributions.kl_divergence(whole, torch.distributions.Categorical(logits=logits)).mean().item()

    threshold = 0.01 * kl(run.logits([]))
    found = acdc(model, TASK, threshold)
    assert found.edges == slow_acdc(run, kl, threshold) and 0 < len(found.edges) < found.n_edges
    assert kl(run.logits(found.edges)) > threshold  # small steps add up: the limit is for each edge, not for all


def test_errors():
    run = CircuitRunner(make("gpt2"), TASK)
    with pytest.raises(ValueError, match="bool matrix"):
        run(torch.ones(3, 3))
    with pytest.raises(ValueError, match="which is no edge"):
        run(torch.ones_like(run.graph.allowed))
