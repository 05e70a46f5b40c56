"""Masks over the columns of a padded batch, from positions that count real tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mi_course.models.batch import columns_of


def position_mask(batch, position) -> torch.Tensor:
    """[B, T] bool mask of one real-token position of every row (negative from the end); [B] for one per row."""
    return torch.zeros_like(batch.mask).scatter(1, columns_of(batch.mask, position), 1).bool()


def span_mask(batch, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """[B, T] bool mask of the real tokens start <= position < end of every row, whatever the padding."""
    start, end = torch.tensor(spans, device=batch.mask.device).T[:, :, None]
    if (end[:, 0] > batch.lengths).any() or (start < 0).any() or (start >= end).any():
        raise ValueError("spans: every [start, end) must lie inside its prompt and hold at least one token")
    return batch.mask.bool() & (batch.position_ids >= start) & (batch.position_ids < end)
