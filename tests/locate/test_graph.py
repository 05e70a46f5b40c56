"""The graph of a model: who can reach whom, names, counts."""

import pytest
import torch

import mi_course as mi
from mi_course.locate.graph import Graph
from tests.locate.slow_edges import make


class Shape:
    """Just enough of a model for its graph."""

    def __init__(self, n_layers, n_heads, n_kv_heads, parallel=False):
        self.n_layers, self.n_heads, self.n_kv_heads, self.config = n_layers, n_heads, n_kv_heads, None
        self.family = self
        self.is_parallel = lambda config: parallel


def test_gpt2_small_has_the_published_number_of_edges():
    assert len(Graph(Shape(12, 12, 12))) == 32_491


@pytest.mark.parametrize("parallel", [False, True])
def test_counts_by_hand(parallel):
    # layer 0: 4 q, 2 k, 2 v read x0; mlp0 reads x0 (and 4 heads). layer 1: 8 inputs and mlp1 read 6 (and 4). logits 11
    graph = Graph(Shape(2, 4, 2, parallel))
    heads = 0 if parallel else 4
    assert len(graph) == 8 * 1 + (1 + heads) + 8 * 6 + (6 + heads) + 11
    assert ("L1H2->mlp1" in graph.edges) is not parallel
    assert len(set(graph.edges)) == len(graph) == len(graph.edges)
    assert graph.receivers[:4] == ["L0H0.q", "L0H1.q", "L0H2.q", "L0H3.q"]
    assert graph.receivers[4:8] == ["L0H0.k", "L0H2.k", "L0H0.v", "L0H2.v"]


def test_edges_go_forward_only_and_names_round_trip():
    graph = Graph(make("llama"))
    for edge in graph.edges:
        row, column = graph.index(edge)
        assert graph.names(graph.mask([edge])) == [edge]
        sender, receiver = mi.Site.parse(graph.senders[row]), mi.Site.parse(graph.receivers[column])
        if sender.kind != "x" and receiver.kind != "logits":
            same = sender.layer == receiver.layer
            assert sender.layer < receiver.layer or (same and sender.kind == "head" and receiver.kind == "mlp")
    assert torch.equal(graph.mask(graph.edges), graph.allowed)


def test_scores_and_matrices_are_inverse():
    graph = Graph(make("gpt2"))
    matrix = torch.randn(graph.allowed.shape) * graph.allowed
    scores = graph.scores(matrix, "m", "noising", forwards=3)
    assert len(scores) == len(graph) and scores.forwards == 3
    assert torch.allclose(graph.matrix(scores), matrix)
    few = graph.scores(matrix, "m", "noising", edges=["L0H1->logits", "x0->L1H0.k"])
    assert few["x0->L1H0.k"] == pytest.approx(matrix[graph.index("x0->L1H0.k")].item())


def test_node_circuit_keeps_the_edges_among_its_nodes():
    graph = Graph(make("llama"))  # heads 2 and 3 share keys and values
    edges = graph.names(graph.of_nodes(["L0H0", "L1H3", "mlp1"]))
    assert set(edges) == {
        "x0->L0H0.q", "x0->L0H0.k", "x0->L0H0.v", "x0->L1H3.q", "x0->L1H2.k", "x0->L1H2.v", "x0->mlp1", "x0->logits",
        "L0H0->L1H3.q", "L0H0->L1H2.k", "L0H0->L1H2.v", "L0H0->mlp1", "L0H0->logits",
        "L1H3->mlp1", "L1H3->logits", "mlp1->logits",
    }  # fmt: skip
    assert torch.equal(graph.of_nodes(graph.senders), graph.allowed)
    with pytest.raises(ValueError, match="L9H0"):
        graph.of_nodes(["L9H0"])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gptj"])
def test_shuffled_heads_keep_size_degrees_and_the_rest(family):
    graph = Graph(make(family))
    circuit = graph.allowed & (torch.rand(graph.allowed.shape, generator=torch.Generator().manual_seed(0)) < 0.3)
    other = graph.shuffle_heads(circuit, seed=1)
    assert not (other & ~graph.allowed).any() and not torch.equal(other, circuit)
    assert sorted(other.sum(0).tolist()) == sorted(circuit.sum(0).tolist())
    assert sorted(other.sum(1).tolist()) == sorted(circuit.sum(1).tolist())
    ffns = [i for i, name in enumerate(graph.senders) if name.startswith(("x0", "mlp"))]
    into = [i for i, name in enumerate(graph.receivers) if name.startswith(("mlp", "logits"))]
    assert torch.equal(other[ffns][:, into], circuit[ffns][:, into])
    head = graph.names(graph.shuffle_heads(graph.of_nodes(["L1H3"]), seed=2))  # one head stays one head
    owners = {owner for edge in head for owner in graph.owners(edge.split("->")[1]) if owner.startswith("L")}
    assert len({edge.split("->")[0] for edge in head} - {"x0"}) == 1
    assert len(owners) == graph.n_heads // graph.n_kv_heads


@pytest.mark.parametrize(
    "edge, message",
    [
        ("embed->mlp0", "called 'x0'"),
        ("pos->mlp0", "sends nothing"),
        ("L0H1->L1H3.k", "name the first of its group, 'L1H2.k'"),
        ("L0H1->L1H3", "receivers are"),
        ("L1H1->L1H2.q", "not computed before"),
        ("mlp1->L0H0.q", "not computed before"),
        ("L0H1", "no arrow"),
    ],
)
def test_errors_say_what_to_write(edge, message):
    with pytest.raises(ValueError, match=message):
        Graph(make("llama")).index(edge)
