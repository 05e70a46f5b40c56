"""Toy models of superposition: closed forms, bounds, and what training finds."""

import math

import pytest
import torch

from mi_course.objects import superposition as sup


def test_dimensions_of_known_layouts():
    angles = torch.arange(5) * 2 * math.pi / 5
    pentagon = 1.1 * torch.stack([angles.cos(), angles.sin()])
    assert torch.allclose(sup.feature_dimensions(pentagon), torch.full((5,), 2 / 5), atol=1e-5)
    assert torch.allclose(sup.feature_dimensions(torch.tensor([[2.0, -2.0]])), torch.tensor([0.5, 0.5]))
    alone = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert torch.allclose(sup.feature_dimensions(alone), torch.tensor([1.0, 1.0, 0.0]))


def test_dimensions_add_up_to_at_most_the_rank_and_follow_their_formula():
    W = torch.randn(6, 3, 7, generator=torch.Generator().manual_seed(0))
    D = sup.feature_dimensions(W)
    assert (D.sum(-1) <= 3 + 1e-4).all()
    slow = torch.stack(
        [
            torch.stack(
                [
                    (w[:, i] @ w[:, i]) / sum((w[:, i] @ w[:, j] / w[:, i].norm()) ** 2 for j in range(7))
                    for i in range(7)
                ]
            )
            for w in W
        ]
    )
    assert torch.allclose(D, slow, atol=1e-5)


def test_closed_form_losses_are_what_integration_gives():
    p, r = 0.3, 0.6
    layouts = {
        "only the first": ([[1.0, 0.0]], [0.0, p / 2]),
        "only the second": ([[0.0, 1.0]], [p / 2, 0.0]),
        "antipodal pair": ([[1.0, -1.0]], [0.0, 0.0]),
    }
    size = (torch.arange(400) + 0.5) / 400
    grid = torch.cartesian_prod(size, size)
    chance = {(0, 0): (1 - p) ** 2, (0, 1): p * (1 - p), (1, 0): p * (1 - p), (1, 1): p * p}
    exact = sup.pair_losses(p, r)
    for name, (W, b) in layouts.items():
        toy = sup.ToyModels(torch.tensor([W]), torch.tensor([b]))
        loss = sum(
            weight * toy.loss((grid * torch.tensor(on))[None], torch.tensor([1.0, r])) for on, weight in chance.items()
        )
        assert loss.item() == pytest.approx(float(exact[name]), rel=1e-3), name


def test_the_boundary_is_where_the_losses_cross():
    for r in (0.1, 0.5, 1.0, 3.0):
        p = sup.pair_boundary(torch.tensor(r)).item()
        for density, pair_wins in ((0.99 * p, True), (1.01 * p, False)):
            losses = sup.pair_losses(torch.tensor(density), torch.tensor(r))
            assert (min(losses, key=losses.get) == "antipodal pair") is pair_wins
    assert sup.pair_boundary(torch.tensor(1.0)).item() == pytest.approx(4 / 7)


def test_trained_pairs_are_on_the_predicted_side():
    density = torch.tensor([0.05, 0.95])
    toys = sup.train_toys(density, torch.tensor([1.0, 0.5]), m=1, restarts=2, steps=300, batch_size=128)
    sparse, dense = toys.W[:, 0]
    assert sparse.abs().min() > 0.7 and sparse.prod() < 0, "sparse: an antipodal pair"
    assert dense[0].abs() > 0.7 and dense[1].abs() < 0.2, "dense: the more important feature alone"
    best = torch.stack(list(sup.pair_losses(density, torch.tensor([0.5, 0.5])).values())).min(0).values
    x = sup.sparse_inputs(density, 2, 50_000, torch.Generator().manual_seed(1))
    assert torch.allclose(toys.loss(x, torch.tensor([1.0, 0.5])), best, rtol=0.25)


def test_sparse_inputs_are_as_dense_as_asked():
    x = sup.sparse_inputs(torch.tensor([0.1, 1.0]), 4, 5000, torch.Generator().manual_seed(0))
    assert (x > 0).float().mean((1, 2)).tolist() == pytest.approx([0.1, 1.0], abs=0.01)
    assert 0 <= x.min() and x.max() < 1


def test_bad_toys_are_refused():
    with pytest.raises(ValueError, match="density"):
        sup.train_toys(torch.tensor([0.0]), torch.ones(2), 1)
    with pytest.raises(ValueError, match="importance has 3 rows"):
        sup.train_toys(torch.tensor([0.5, 0.5]), torch.ones(3, 2), 1)
