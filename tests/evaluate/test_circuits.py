"""Measures of circuits on runs whose values are known."""

import pytest
import torch

from mi_course.evaluate import circuits as ev

ALLOWED = torch.ones(4, 5, dtype=torch.bool).tril(2)  # 4 senders, 5 receivers, 17 edges
WEIGHTS = torch.arange(20.0).view(4, 5) * ALLOWED


def linear(circuit):
    """F = 3 + the sum of the weights of the edges, for two items of which one is twice the other."""
    value = (WEIGHTS * circuit).sum()
    return torch.stack([3 + value, 3 + 2 * value])


def test_faithfulness_of_a_linear_model_is_the_share_of_the_weight():
    circuit = ev.top_edges(WEIGHTS, ALLOWED, 3)
    assert circuit.sum() == 3 and circuit[3, 4] and circuit[3, 3] and circuit[3, 2]
    expected = float((WEIGHTS * circuit).sum() / WEIGHTS.sum())
    assert ev.faithfulness(linear, circuit, ALLOWED) == pytest.approx(expected)
    assert ev.faithfulness(linear, ALLOWED, ALLOWED) == 1 and ev.faithfulness(linear, ~ALLOWED & False, ALLOWED) == 0
    with pytest.raises(ValueError, match="same with all edges and with none"):
        ev.faithfulness(lambda c: torch.ones(2), circuit, ALLOWED)


def test_areas():
    curve = ev.Curve(
        torch.tensor([0.0, 0.5, 1.0]).numpy(), torch.tensor([0, 1, 2]).numpy(), torch.tensor([0.0, 1.5, 1.0]).numpy()
    )
    assert curve.cpr == pytest.approx(0.375 + 0.625)
    assert curve.cmd == pytest.approx((1 + 0.5) / 4 + 0.5 / 4)
    found = ev.faithfulness_curve(linear, WEIGHTS, ALLOWED, shares=(0.001, 0.5, 1.0))
    assert found.sizes.tolist() == [1, 8, 17] and found.faithfulness[-1] == pytest.approx(1)
    assert found.shares.tolist() == pytest.approx([1 / 17, 8 / 17, 1])  # of the edges, not of the entries
    worst = ev.faithfulness_curve(linear, WEIGHTS, ALLOWED, by="negative")
    best = ev.faithfulness_curve(linear, WEIGHTS, ALLOWED, by="positive")
    assert best.cpr > worst.cpr and best.cmd < worst.cmd


def test_signs_and_sizes_of_the_choice():
    scores = WEIGHTS.clone()
    scores[1, 1] = -100
    assert ev.top_edges(scores, ALLOWED, 1)[1, 1] and ev.top_edges(scores, ALLOWED, 1, "negative")[1, 1]
    assert ev.top_edges(scores, ALLOWED, 1, "positive")[3, 4]
    assert not (ev.top_edges(torch.zeros(4, 5), ALLOWED, 17) & ~ALLOWED).any()
    for k in (-1, 18):
        with pytest.raises(ValueError, match="between 0 and 17"):
            ev.top_edges(scores, ALLOWED, k)
    with pytest.raises(ValueError, match="by='best'"):
        ev.top_edges(scores, ALLOWED, 1, "best")


def either(circuit):
    """An or-gate: edge (3, 0) or edge (3, 1) is enough."""
    return torch.stack([(circuit[3, 0] | circuit[3, 1]).float()])


def test_a_missing_backup_shows_as_incompleteness():
    one = torch.zeros_like(ALLOWED)
    one[3, 0] = True
    assert ev.faithfulness(either, one, ALLOWED) == 1  # faithful, but
    assert ev.completeness(either, one, ALLOWED, [one]) == [(0.0, 1.0)]  # without it the model goes on, the circuit not
    both = one.clone()
    both[3, 1] = True
    assert ev.completeness(either, both, ALLOWED, [one, both]) == [(1.0, 1.0), (0.0, 0.0)]
    assert ev.minimality(either, one).tolist() == [-1] and ev.minimality(either, both).tolist() == [0, 0]


def test_minimality_of_a_linear_model_is_each_edge_s_weight():
    circuit = ev.top_edges(WEIGHTS, ALLOWED, 5)
    assert ev.minimality(linear, circuit).tolist() == pytest.approx((-1.5 * WEIGHTS[circuit]).tolist())


def test_random_circuits_keep_size_and_degrees():
    circuit = ev.random_circuit(ALLOWED, 6, seed=1)
    assert circuit.sum() == 6 and not (circuit & ~ALLOWED).any()
    assert not torch.equal(circuit, ev.random_circuit(ALLOWED, 6, seed=2))
    allowed = torch.ones(12, 15, dtype=torch.bool).tril(4)
    circuit = ev.random_circuit(allowed, 20)
    other = ev.rewire(circuit, allowed, seed=0)
    assert torch.equal(other.sum(0), circuit.sum(0)) and torch.equal(other.sum(1), circuit.sum(1))
    assert not (other & ~allowed).any() and ev.iou(other, circuit) < 0.7
    subsets = ev.random_subsets(ALLOWED, 40, 0.25)
    assert all(not (k & ~ALLOWED).any() for k in subsets)
    assert sum(int(k.sum()) for k in subsets) / (40 * 17) == pytest.approx(0.25, abs=0.05)


def test_overlap_and_its_stability():
    a, b = ev.top_edges(WEIGHTS, ALLOWED, 4), ev.top_edges(WEIGHTS, ALLOWED, 2)
    assert ev.iou(a, b) == 0.5 and ev.iou(a, a) == 1 and ev.iou(a & False, a & False) == 1
    same = WEIGHTS.expand(10, 4, 5)
    assert ev.bootstrap_iou(same, ALLOWED, 4) == 1
    noise = torch.randn(10, 4, 5, generator=torch.Generator().manual_seed(0))
    assert ev.bootstrap_iou(noise, ALLOWED, 4) < 0.9
