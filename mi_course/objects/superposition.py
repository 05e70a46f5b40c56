"""Toy models of superposition (survey section 2.5; Elhage et al. 2022), small enough to know the best solution.

    h = x W^T,  x' = ReLU(h W + b)        n features pressed through m < n dimensions, and back

A feature is *in superposition* when its direction is not at a right angle to those of the others. Models are trained
many at a time, one per density and importance. Data with known features, to score SAEs against, is in
`world.compiled.planted_features`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ToyModels:
    """I trained toy models. W [I, m, n]: column i of W[k] is the direction of feature i in model k; b [I, n]."""

    W: Tensor
    b: Tensor
    relu: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """x [I, B, n] -> what comes back from the m dimensions, [I, B, n]."""
        out = x @ self.W.mT @ self.W + self.b[:, None]
        return torch.relu(out) if self.relu else out

    def loss(self, x: Tensor, importance: Tensor) -> Tensor:
        """Mean over the inputs x [I, B, n] of sum_i importance_i (x_i - x'_i)^2: [I]. importance [n] or [I, n]."""
        return ((x - self(x)).pow(2) * importance.expand(len(self.W), -1)[:, None]).sum(-1).mean(-1)


def sparse_inputs(density: Tensor, n: int, count: int, generator: torch.Generator) -> Tensor:
    """Inputs [I, count, n]: each feature is on with probability density[k] in model k, then uniform in 0 ... 1."""
    size = torch.rand(len(density), count, n, generator=generator)
    on = torch.rand(len(density), count, n, generator=generator) < density[:, None, None]
    return size * on


def train_toys(
    density: Tensor,
    importance: Tensor,
    m: int,
    relu: bool = True,
    restarts: int = 1,
    steps: int = 800,
    batch_size: int = 256,
    lr: float = 3e-2,
    seed: int = 0,
) -> ToyModels:
    """Toy models with m dimensions, one for each entry of density [I], trained side by side with Adam.

    density     probability that a feature is on, in (0, 1]
    importance  weight of each feature in the loss, [n] or [I, n]
    relu        False trains the linear model, which can do no better than the first m principal components
    restarts    train each so many times and keep the best: small models get stuck
    """
    density, importance = torch.as_tensor(density).float(), torch.as_tensor(importance).float()
    if density.dim() != 1 or not ((density > 0) & (density <= 1)).all():
        raise ValueError("density must be a list of numbers in (0, 1], one for each model")
    if (importance < 0).any() or importance.dim() not in (1, 2):
        raise ValueError("importance must hold numbers >= 0, [n] or one row of n for each density")
    if importance.dim() == 2 and len(importance) != len(density):
        raise ValueError(f"importance has {len(importance)} rows for {len(density)} densities: give one row for each")
    count, n = len(density), importance.shape[-1]
    importance = importance.expand(count, n).repeat(restarts, 1)
    repeated = density.repeat(restarts)
    generator = torch.Generator().manual_seed(seed)
    W = (torch.randn(len(repeated), m, n, generator=generator) / m**0.5).requires_grad_()
    b = torch.zeros(len(repeated), n, requires_grad=True)
    toys = ToyModels(W, b, relu)
    optimizer = torch.optim.Adam([W, b], lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    for _ in range(steps):
        optimizer.zero_grad()
        toys.loss(sparse_inputs(repeated, n, batch_size, generator), importance).sum().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        loss = toys.loss(sparse_inputs(repeated, n, 4096, generator), importance)
        best = loss.view(restarts, count).argmin(0) * count + torch.arange(count)
        return ToyModels(W[best].clone(), b[best].clone(), relu)


def pair_losses(density: Tensor, importance: Tensor) -> dict[str, Tensor]:
    """Exact losses of the three ways to put two features into one dimension; the importance of the first is 1.

    With density p and relative importance r of the second, x uniform in 0 ... 1 when on:
    a feature that is dropped costs its variance p/3 - p^2/4 (the bias returns its mean); an antipodal pair W = [1, -1]
    fails only when both are on, and then loses the smaller of them twice: p^2 E[min^2] = p^2 / 6 for each.
    """
    p, r = torch.as_tensor(density), torch.as_tensor(importance)
    variance = p / 3 - p**2 / 4
    return {"only the first": r * variance, "only the second": variance + 0 * r, "antipodal pair": (1 + r) * p**2 / 6}


def pair_boundary(importance: Tensor) -> Tensor:
    """Density below which the antipodal pair of `pair_losses` is best: 4q / (2 + 2r + 3q) with q = min(1, r)."""
    r = torch.as_tensor(importance)
    q = r.clamp(max=1)
    return 4 * q / (2 + 2 * r + 3 * q)


def feature_dimensions(W: Tensor) -> Tensor:
    """Share of a dimension that each feature has: |w_i|^2 / sum_j (w_i/|w_i| . w_j)^2, for W [..., m, n] -> [..., n].

    1: a dimension of its own; 1/2: one of an antipodal pair; 0: not stored. They add up to at most m (the rank of W).
    """
    norm = W.norm(dim=-2)
    unit = W / norm.clamp_min(1e-12)[..., None, :]
    overlap = (unit.mT @ W).pow(2).sum(-1)
    return torch.where(norm > 1e-6, norm**2 / overlap.clamp_min(1e-12), 0.0)
