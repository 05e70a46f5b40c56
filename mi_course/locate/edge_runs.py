"""The two runs behind every edge score: the base run, and what senders write instead.

kind         base run     the other write of a sender, at the same token
noising      clean        what it writes on the corrupted twin
denoising    corrupted    what it writes on the clean twin
zero         clean        nothing
mean         clean        its mean over all real tokens of the task's prompts
resample     clean        what it writes on another prompt of the task, drawn at random, aligned at the last token
                          (tokens before the other prompt's first one are given its first token's write)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.objects import Task

from .blocks import Blocks, States

KINDS = ("noising", "denoising", "zero", "mean", "resample")
RUNS = {"noising": 2, "denoising": 2, "zero": 1, "mean": 2, "resample": 2}  # forwards per item
SIGN = {"noising": "noising", "denoising": "denoising", "zero": "ablation", "mean": "ablation", "resample": "ablation"}


@dataclass
class Contrast:
    """Some items of a task: the base run's states, and delta [n_senders, B, T, d] = other write - base write."""

    task: Task
    blocks: Blocks
    base: States
    delta: Tensor

    def metric(self, logits: Tensor) -> Tensor:
        """The task's metric from logits [B, V] or [cells, B, V]: [B] or [cells, B]."""
        model = self.blocks.model
        if logits.dim() == 2:
            return self.task.metric_of(logits, model)
        return torch.stack([self.task.metric_of(cell, model) for cell in logits])


@torch.no_grad()
def contrasts(
    model, task: Task, kind: str, batch_size: int = 64, seed: int = 0, grad: bool = False
) -> Iterator[Contrast]:
    """The items of a task in batches, each with its two runs. ValueError for an unknown kind or missing twins.

    grad: keep the graph of the base run, for a backward pass through it.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if kind in ("noising", "denoising") and task.corrupted is None:
        raise ValueError(
            f"task {task.name!r} has no corrupted prompts for kind={kind!r}; give corrupted=, or use 'mean'"
        )
    task.validate(model)
    mean = mean_writes(model, task.prompts, batch_size) if kind == "mean" else None
    donors = _donors(len(task), seed) if kind == "resample" else None
    for start in range(0, len(task), batch_size):
        part = task.subset(slice(start, start + batch_size))
        blocks = Blocks(model, part.corrupted if kind == "denoising" else part.prompts)
        with torch.set_grad_enabled(grad):
            base = blocks.run(blocks.x0().requires_grad_(grad))
        delta = blocks.writes(base).neg_()
        if kind in ("noising", "denoising"):
            delta += _writes(Blocks(model, part.prompts if kind == "denoising" else part.corrupted))
        elif kind == "mean":
            delta += mean[:, None, None]
        elif kind == "resample":
            chosen = donors[start : start + batch_size]
            delta += _align(Blocks(model, [task.prompts[i] for i in chosen]), blocks.batch)
        yield Contrast(part, blocks, base, delta)


@torch.no_grad()
def mean_writes(model, prompts, batch_size: int = 64) -> Tensor:
    """Mean write of every sender over all real tokens of the prompts, [n_senders, d]."""
    total, tokens = 0, 0
    for start in range(0, len(prompts), batch_size):
        blocks = Blocks(model, prompts[start : start + batch_size])
        mask = blocks.batch.mask.bool()
        total = total + _writes(blocks)[:, mask].sum(1)
        tokens += int(mask.sum())
    return total / tokens


def _writes(blocks: Blocks) -> Tensor:
    return blocks.writes(blocks.run(blocks.x0()))


def _donors(n: int, seed: int) -> list[int]:
    """For every item another one, each used once: neighbours on a random circle."""
    if n < 2:
        raise ValueError("kind='resample' needs at least two prompts; give a larger task, or use kind='mean'")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    donors = torch.empty(n, dtype=torch.long)
    donors[order] = order.roll(1)
    return donors.tolist()


def _align(donor: Blocks, batch) -> Tensor:
    """The donors' writes at the columns of `batch`: same distance from the last token."""
    columns = (
        torch.arange(batch.ids.shape[1], device=batch.ids.device) - batch.last[:, None] + donor.batch.last[:, None]
    )
    first = donor.batch.mask.argmax(-1)
    columns = torch.minimum(columns.clamp(min=0), donor.batch.last[:, None]).maximum(first[:, None])
    rows = torch.arange(len(batch), device=columns.device)[:, None]
    return _writes(donor)[:, rows, columns]
