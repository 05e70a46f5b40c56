"""Concept erasure: take what is linearly decodable out of a state, and see whether the model misses it.

    r(x) = x - (x - mu) A         mu the mean, A [d, d] the part that is taken away

    erase_direction   A = u^T u for one unit direction u (a probe's, say)
    erase_means       A projects on the span of the class means around mu: after it all classes have one mean
    inlp              the directions of probes fitted one after another, each on what the last one left
                      (iterative nullspace projection, Ravfogel et al. 2020)
    leace             the smallest change, in mean square, after which no linear probe beats the majority
                      (Belrose et al. 2023)

That no linear probe beats a constant is the same as equal class means, that is Cov(x, y) = 0 (Belrose et al., theorem
3.1). Mean projection and LEACE reach it exactly on the data they were fitted on; one probe direction does not.
An erasure as an intervention (`Eraser.at`) answers the question of amnesic probing (Elazar et al. 2021): not whether
the label can be read, but whether the behaviour needs it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import edit

from .probing import _checked, class_means, fit


@dataclass(frozen=True)
class Eraser:
    """r(x) = x - (x - mean) A, for states x [..., d]; mean [d], A [d, d], rank: dimensions that are taken away."""

    name: str
    mean: Tensor
    A: Tensor
    rank: int

    def __call__(self, x: Tensor) -> Tensor:
        mean, A = self.mean.to(x.device, x.dtype), self.A.to(x.device, x.dtype)
        return x - (x - mean) @ A

    def at(self, sites, positions="all"):
        """The erasure as an Intervention at these sites (`mi_course.models.edit`)."""
        return edit(sites, self, positions)

    def __repr__(self) -> str:
        return f"Eraser({self.name}: {self.rank} of {len(self.mean)} dimensions)"


def erase_direction(x: Tensor, direction: Tensor) -> Eraser:
    """Set every state to the mean of x [n, d] along one direction [d]."""
    norm = direction.norm()
    if direction.shape != x.shape[1:] or not norm > 0:
        raise ValueError(f"direction has shape {tuple(direction.shape)}, norm {norm:.3g}; give one non-zero vector [d]")
    u = direction.double().cpu() / norm.double().cpu()
    return Eraser("direction", x.double().mean(0).float().cpu(), torch.outer(u, u).float(), 1)


def erase_means(x: Tensor, y: Sequence[Hashable]) -> Eraser:
    """Project out the span of the K class means around the mean: at most K - 1 dimensions. x [n, d], n labels."""
    x, index, n_classes = _numbered(x, y)
    Q = _basis(class_means(x, index, n_classes) - x.mean(0))
    return Eraser("class means", x.mean(0).float(), (Q @ Q.T).float(), Q.shape[1])


def inlp(x: Tensor, y: Sequence[Hashable], rounds: int = 8, kind: str = "logistic") -> Eraser:
    """Fit a probe, project its directions out, and again, `rounds` times (each takes K - 1 dimensions, 1 if K = 2)."""
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: give at least 1")
    x, index, n_classes = _numbered(x, y)
    mean, Q = x.mean(0), torch.zeros(x.shape[1], 0, dtype=x.dtype)
    for _ in range(rounds):
        left = x - (x - mean) @ Q @ Q.T
        W = fit(left, index.tolist(), kind).W.double()
        W = W - W.mean(1, keepdim=True)  # what all classes share decides nothing
        new = _basis((W - Q @ (Q.T @ W)).T)
        if Q.shape[1] + new.shape[1] > x.shape[1]:
            break
        Q = torch.linalg.qr(torch.cat([Q, new], dim=1)).Q
    return Eraser(f"inlp, {rounds} rounds", mean.float(), (Q @ Q.T).float(), Q.shape[1])


def leace(x: Tensor, y: Sequence[Hashable]) -> Eraser:
    """Least-squares concept erasure in closed form: r(x) = x - W^+ P W (x - mu) for column vectors x.

    W = (Cov(x)^1/2)^+ whitens, P projects on the column space of W Cov(x, y) with y one-hot. In rows: A = W P W^+,
    since W and P are symmetric. Of all affine maps after which Cov(r(x), y) = 0, it moves the states least in mean
    square.
    """
    x, index, n_classes = _numbered(x, y)
    centred = x - x.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / len(x))
    real = values > values.max() * 1e-10  # directions in which the states vary at all
    root = values[real].sqrt()
    W = vectors[:, real] / root @ vectors[:, real].T
    W_inverse = vectors[:, real] * root @ vectors[:, real].T
    one_hot = torch.nn.functional.one_hot(index, n_classes).to(x)
    Q = _basis((W @ (centred.T @ (one_hot - one_hot.mean(0)) / len(x))).T)
    return Eraser("leace", x.mean(0).float(), (W @ Q @ Q.T @ W_inverse).float(), Q.shape[1])


def _numbered(x: Tensor, y: Sequence) -> tuple[Tensor, Tensor, int]:
    x, y = _checked(x, y)
    classes = sorted(set(y), key=str)
    return x, torch.tensor([classes.index(label) for label in y]), len(classes)


def _basis(rows: Tensor) -> Tensor:
    """Orthonormal basis of the span of the rows [k, d], as columns [d, r]."""
    _, size, vectors = torch.linalg.svd(rows, full_matrices=False)
    return vectors[size > size.max().clamp_min(1e-12) * 1e-8].T
