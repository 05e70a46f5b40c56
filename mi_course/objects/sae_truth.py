"""How well a sparse autoencoder finds features that are known, because they were planted in the data.

On the states of a real model nobody knows the features, so nobody can say whether an SAE found them. With planted ones
(`world.compiled.planted_features`: known directions, known codes) recovery and absorption become numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sae import SAE


@dataclass(frozen=True)
class Recovery:
    """Which latent stands for which planted feature. latent, cosine, best: one entry per planted feature, [n].

    latent  the latent matched to it, each latent at most once (-1 when none was left)
    cosine  between the feature and the row of its latent (0 for -1)
    best    the largest cosine with any row, shared or not
    """

    latent: Tensor
    cosine: Tensor
    best: Tensor

    @property
    def score(self) -> float:
        """Mean cosine of the matching: 1 when every feature has a latent of its own."""
        return self.cosine.mean().item()


@torch.no_grad()
def recovery(sae: SAE, directions: Tensor) -> Recovery:
    """Match planted directions [n, d] to the rows of W_dec: again and again, the most similar pair that is left.

    Random rows have sizeable cosines too when there are many of them: report `recovery(SAE(d, m), directions)` beside.
    """
    similar = cosines(directions, sae.W_dec)
    latent, cosine = torch.full((len(directions),), -1), torch.zeros(len(directions))
    left = similar.clone()
    for _ in range(min(left.shape)):
        feature, row = divmod(int(left.argmax()), left.shape[1])
        latent[feature], cosine[feature] = row, similar[feature, row]
        left[feature], left[:, row] = -torch.inf, -torch.inf
    return Recovery(latent, cosine, similar.max(1).values)


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of every row of a [n, d] with every row of b [m, d]: [n, m]."""
    return torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T


@dataclass(frozen=True)
class Absorption:
    """Does the general feature's latent fall silent when a specific feature is on? (audit A12)

    latent             the parent's latent: the row most similar to the parent's direction; parent_cosine says how much
    silent_with_child  P(this latent is silent | child on; so the parent is on too)
    silent_alone       P(this latent is silent | parent on, child off): what it misses anyway, the control
    heir               the other latent that is largest, on average, while the child is on
    heir_cosine        its cosine with the parent's direction: it carries the parent along when this is well above 0
    """

    latent: int
    parent_cosine: float
    silent_with_child: float
    silent_alone: float
    heir: int
    heir_cosine: float

    @property
    def difference(self) -> float:
        """silent_with_child - silent_alone: 0 without absorption, 1 when it is complete."""
        return self.silent_with_child - self.silent_alone


@torch.no_grad()
def absorption(sae: SAE, x: Tensor, codes: Tensor, directions: Tensor, parent: int, child: int) -> Absorption:
    """Measure absorption on states x [N, d] whose true codes [N, n] are known, for a child that implies its parent.

    directions [n, d]; parent, child: which of them. ValueError when the child ever occurs without the parent.
    """
    on, both = codes[:, parent] > 0, codes[:, child] > 0
    if (both & ~on).any():
        raise ValueError(f"child={child} is on where parent={parent} is off: this pair has no hierarchy to absorb")
    if not both.any() or not (on & ~both).any():
        raise ValueError("codes: need states with the child and states with the parent alone; sample more of them")
    a, similar = sae.encode(x), cosines(directions[[parent]], sae.W_dec)[0]
    latent = int(similar.argmax())
    silent, with_child = a[:, latent] == 0, a[both].mean(0)
    with_child[latent] = -1.0
    heir = int(with_child.argmax())
    return Absorption(latent, similar[latent].item(), silent[both].float().mean().item(),
                      silent[on & ~both].float().mean().item(), heir, similar[heir].item())
