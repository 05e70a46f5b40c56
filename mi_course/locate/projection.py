"""Vocabulary projection (survey section 3.5): read a state with the model's own unembedding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mi_course.models import record, weights


@torch.no_grad()
def logit_lens(model, prompts: Sequence, position: int = -1, normalise: bool = True) -> torch.Tensor:
    """Next-token probabilities read from every residual state: softmax(norm_f(x^l) W_U). Eq. 16 with the final norm.

    Eq. 16 as printed leaves the final norm out; its mean subtraction and gain change the ranking (audit A27), so the
    lens then disagrees with the model even at the last layer. `normalise=False` shows that.
    `position`: which real token of each prompt (negative from the end).
    Returns [n_layers + 1, n_prompts, n_vocab]; the last row is the model's own output distribution.
    """
    names = [f"x{layer}@{position}" for layer in range(model.n_layers + 1)]
    cache = record(model, prompts, names)
    read = model.unembed if normalise else lambda x: x @ weights.unembedding(model).W_U
    return torch.stack([read(cache[name]).float().softmax(-1) for name in names])


def settling(curve: Sequence[float], start: float = 0.1, end: float = 0.9) -> tuple[int, int]:
    """Over which layers a lens curve settles: (first layer >= start, first layer from which it stays >= end x final).

    curve: a mean probability by layer, such as `logit_lens(...)[:, rows, targets].mean(1)`. ValueError if it never
    reaches `start`.
    """
    reached = [layer for layer, p in enumerate(curve) if p >= start]
    if not reached:
        raise ValueError(
            f"the curve never reaches start={start} (largest value {max(curve):.3f}): nothing settles here"
        )
    below = [layer for layer, p in enumerate(curve) if p < end * curve[-1]]
    return reached[0], (below[-1] + 1 if below else 0)
