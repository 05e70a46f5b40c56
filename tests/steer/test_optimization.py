import pytest
import torch

from mi_course.steer.optimization import rank_one_update


def problem(seed=0, d_in=6, d_out=4):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(200, d_in, generator=g, dtype=torch.float64) * torch.arange(1, d_in + 1)
    return (
        torch.randn(d_in, d_out, generator=g, dtype=torch.float64),
        keys,
        keys.T @ keys / len(keys),
        torch.randn(d_in, generator=g, dtype=torch.float64),
        torch.randn(d_out, generator=g, dtype=torch.float64),
    )


def test_the_edit_is_exact_and_of_rank_one():
    W, _, C, key, value = problem()
    delta = rank_one_update(W, C, key, value)
    assert torch.allclose(key @ (W + delta), value, atol=1e-12)
    assert torch.linalg.matrix_rank(delta) == 1


def test_the_edit_moves_other_keys_least():
    # Independent solution of the constrained least squares: any solution is delta + N with key @ N = 0.
    W, keys, C, key, value = problem()
    delta = rank_one_update(W, C, key, value)
    moved = (keys @ delta).square().sum()
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        other = torch.randn(W.shape, generator=g, dtype=torch.float64)
        free = other - torch.outer(key, key @ other) / (key @ key)  # key @ free = 0
        for step in (1e-3, 1e-1, 1.0):
            assert (keys @ (delta + step * free)).square().sum() > moved
    # and it is not the minimum-norm edit, unless C is the identity
    plain = rank_one_update(W, torch.eye(6, dtype=torch.float64), key, value)
    assert plain.norm() < delta.norm() and (keys @ plain).square().sum() > moved


def test_shapes_are_checked():
    W, _, C, key, value = problem()
    with pytest.raises(ValueError, match="key"):
        rank_one_update(W, C, key[:-1], value)
    with pytest.raises(ValueError, match="value"):
        rank_one_update(W, C, key, key)
