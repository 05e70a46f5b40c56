"""A padded batch of prompts, and which of its columns a position policy means.

Padding is only safe when the model is told about it: `mask` hides the padding, `position_ids` counts real tokens.
Without position_ids, GPT-2 and GPT-Neo number a left-padded row from its padding and give wrong logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import LongTensor, Tensor

POLICIES = ("all", "prompt", "last", "generated")


@dataclass(frozen=True)
class Batch:
    """Prompts as tensors [B, T]: ids of tokens; mask, 1 = real token; position_ids, which count real tokens."""

    ids: LongTensor
    mask: LongTensor
    position_ids: LongTensor

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]], pad: int, side: str = "left", device=None) -> "Batch":
        """Pad token-id lists to one width. side: "left" or "right"."""
        if side not in ("left", "right"):
            raise ValueError(f"side {side!r} is not a padding side; choose 'left' or 'right'")
        width = max(len(row) for row in rows)
        ids, mask = torch.full((len(rows), width), pad), torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            columns = slice(width - len(row), None) if side == "left" else slice(0, len(row))
            ids[i, columns] = torch.as_tensor(row)
            mask[i, columns] = 1
        return cls.from_mask(ids.to(device), mask.to(device))

    @classmethod
    def from_mask(cls, ids: LongTensor, mask: LongTensor) -> "Batch":
        return cls(ids, mask, (mask.cumsum(-1) - 1).clamp(min=0))

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def lengths(self) -> LongTensor:
        """Real tokens of every row, [B]."""
        return self.mask.sum(-1)

    @cached_property
    def last(self) -> LongTensor:
        """Column of the last real token of every row, [B]."""
        return columns_of(self.mask, -1)[:, 0]

    def columns(self, position: int) -> LongTensor:
        """Column of the `position`-th real token of every row (negative: from the end), [B]."""
        return columns_of(self.mask, position)[:, 0]

    def rows(self, index) -> "Batch":
        """The rows picked by a slice, list or index tensor."""
        return replace(self, ids=self.ids[index], mask=self.mask[index], position_ids=self.position_ids[index])

    def to(self, device) -> "Batch":
        return Batch(self.ids.to(device), self.mask.to(device), self.position_ids.to(device))


def columns_of(mask: Tensor, positions) -> LongTensor:
    """Columns of the given positions in a padded batch, [B, k].

    mask [B, T]; positions: an int, a list of ints (the same for every row) or an integer tensor [B] or [B, k] (own
    positions for each row). Positions count real tokens from 0, negative ones from the end.
    Raises ValueError naming the first row that is too short.
    """
    n_rows, lengths = mask.shape[0], mask.sum(-1)
    if isinstance(positions, Tensor):
        wanted = positions.to(mask.device)
        if wanted.shape[0] != n_rows or wanted.dim() > 2:
            raise ValueError(
                f"positions has shape {tuple(wanted.shape)}, but the batch has {n_rows} rows; give [rows] or [rows, k]"
            )
        wanted = wanted.view(n_rows, -1)
    else:
        wanted = torch.as_tensor(positions, device=mask.device).view(1, -1).expand(n_rows, -1)
    index = torch.where(wanted < 0, wanted + lengths[:, None], wanted)
    bad = (index < 0) | (index >= lengths[:, None])
    if bad.any():
        row, k = bad.nonzero()[0].tolist()
        raise ValueError(
            f"position {wanted[row, k].item()} is outside row {row}, which has {lengths[row].item()} tokens; "
            "positions count real tokens of the prompt from 0, or from -1 backwards"
        )
    return index + mask.long().argmax(-1)[:, None]


def check_positions(positions) -> None:
    """Raise ValueError for a `positions` argument that no batch could satisfy."""
    if isinstance(positions, str):
        good = positions in POLICIES
    elif isinstance(positions, Tensor):
        good = positions.dtype == torch.bool or not (positions.is_floating_point() or positions.is_complex())
    elif isinstance(positions, (list, tuple)):
        good = len(positions) > 0 and all(_is_int(p) for p in positions)
    else:
        good = _is_int(positions)
    if not good:
        raise ValueError(
            f"positions {positions!r} is not understood; choose one of {', '.join(POLICIES)}, an int, a list of ints, "
            "an integer tensor [B] (one position for each row) or a bool tensor [B, T] over the prompt"
        )


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Chosen:
    """Which columns of the running sequence a policy selects, for one forward pass of `n_new` tokens after `n_past`.

    prompt: mask [B, W] of the prompt; everything after column W is generated.
    """

    def __init__(self, prompt: Tensor, mask: Tensor):
        self.prompt, self.mask = prompt.bool(), mask.bool()
        self._known = {}

    def among(self, positions, start: int, end: int) -> Tensor | None:
        """Bool [B, end - start] over columns start..end; None when every column is chosen; False when none is."""
        if isinstance(positions, str) and positions == "all":
            return None
        key = (id(positions) if isinstance(positions, (Tensor, list)) else positions, start, end)
        if key not in self._known:
            chosen = self._everywhere(positions)[:, start:end]
            self._known[key] = chosen if chosen.any() else False
        return self._known[key]

    def _everywhere(self, positions) -> Tensor:
        width, total = self.prompt.shape[1], self.mask.shape[1]
        if isinstance(positions, str) and positions == "generated":
            chosen = self.mask.clone()
            chosen[:, :width] = False
            return chosen
        if isinstance(positions, Tensor) and positions.dtype == torch.bool:
            prompt = positions.to(self.prompt.device)
            if prompt.shape != self.prompt.shape:
                raise ValueError(
                    f"positions is a mask of shape {tuple(prompt.shape)}, but the prompts form a batch of shape "
                    f"{tuple(self.prompt.shape)}; make it from `model.tokenize(prompts).mask`"
                )
        elif isinstance(positions, str) and positions == "prompt":
            prompt = self.prompt
        else:
            columns = columns_of(self.prompt, -1 if isinstance(positions, str) else positions)
            prompt = torch.zeros_like(self.prompt).scatter(1, columns, True)
        return torch.nn.functional.pad(prompt, (0, total - width)) if total >= width else prompt[:, :total]
