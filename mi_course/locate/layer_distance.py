"""Layers by distance (survey section 3.1, L1f): where two kinds of inputs part, and what a block changes at all.

    twin_distance       ||x^l - x'^l|| between clean and corrupted twins, by layer or for any sites
    layer_change        ||x^(l+1) - x^l|| and its kin: how much block l moves the state
    block_influence     1 - cos(x^l, x^(l+1)) (Men et al. 2025, ShortGPT)
    layer_similarity    cosine between the states of any two layers; `angular_distance` follows from it
    without_blocks      the edits that skip blocks, to see what all this predicts

A distance shows where information about the difference is, or how far a state moves; not what is done with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mi_course.models import record, zero
from mi_course.objects import Scores, Task

from .magnitude import token_values

MEASURES = ("l2", "relative", "cosine")


def _distance(a: Tensor, b: Tensor, measure: str) -> Tensor:
    """a, b [..., d] -> [...]. "l2": ||a - b||; "relative": ||a - b|| / ||a||; "cosine": 1 - cos."""
    if measure == "cosine":
        return 1 - _cosine(a, b)
    distance = (a - b).norm(dim=-1)
    return distance if measure == "l2" else distance / a.norm(dim=-1).clamp_min(1e-12)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return torch.cosine_similarity(a.double(), b.double(), dim=-1).float()  # 1 - cos of near-equal states is tiny


@torch.no_grad()
def twin_distance(
    model, task: Task, sites: Sequence[str] | None = None, measure: str = "l2", position: int = -1
) -> Scores:
    """How far apart every site is on clean and corrupted prompts: mean over items, at one real token of the prompts.

    sites: vectors (x3, attn2, mlp4, L3H1.z ...) or neurons; default: all residual states x0 ... xL. measure: "l2",
    "relative" (to the clean value) or "cosine" (1 - cos). Survey: ||x^l - x'^l|| over contrast inputs.
    Grouped over whole layers as `magnitude.token_values` does when all sites are neurons ("l2" only).
    """
    _check(measure)
    if task.corrupted is None:
        raise ValueError(f"task {task.name!r} has no corrupted prompts: a distance needs twins")
    started = time.perf_counter()
    sites = [f"x{layer}" for layer in range(model.n_layers + 1)] if sites is None else [str(site) for site in sites]
    task.validate(model)
    if all("N" in site for site in sites):  # thousands of neurons: read whole layers
        if measure != "l2":
            raise ValueError(f"measure={measure!r} of a single number is not defined; choose 'l2' for neurons")
        clean, corrupted = (
            torch.cat([v for v, _ in token_values(model, prompts, sites, "raw", position=position)])
            for prompts in (task.prompts, task.corrupted)
        )
        values = (clean - corrupted).abs().mean(0)
    else:
        named = [f"{site}@{position}" for site in sites]
        clean, corrupted = (record(model, prompts, named, logits=False) for prompts in (task.prompts, task.corrupted))
        values = torch.stack([_distance(clean[n].float(), corrupted[n].float(), measure).mean() for n in named])
    seconds = time.perf_counter() - started
    return Scores(sites, values, f"twin distance, {measure}", "magnitude", forwards=2 * len(task), seconds=seconds)


@torch.no_grad()
def layer_change(
    model, prompts: Sequence, measure: str = "l2", position: int | None = None, skip: int = 0, batch_size: int = 64
) -> Scores:
    """How much every block moves the state: mean over tokens of the distance between x^l and x^(l+1).

    The site "x3" of the result stands for block 3, which turns x3 into x4. position: that real token alone; None: all
    but the first `skip`. measure: see `twin_distance`.
    """
    _check(measure)
    started, total, tokens = time.perf_counter(), 0.0, 0
    for start in range(0, len(prompts), batch_size):
        batch = model.tokenize(prompts[start : start + batch_size])
        states, counted = _states(model, batch, position, skip)
        moved = torch.stack([_distance(a[counted], b[counted], measure).sum() for a, b in zip(states, states[1:])])
        total, tokens = total + moved.cpu(), tokens + int(counted.sum())
    sites, seconds = [f"x{layer}" for layer in range(model.n_layers)], time.perf_counter() - started
    return Scores(
        sites, total / tokens, f"layer change, {measure}", "magnitude", forwards=len(prompts), seconds=seconds
    )


def block_influence(model, prompts: Sequence, **options) -> Scores:
    """BI_l = 1 - E[cos(x^l, x^(l+1))] over all tokens (Men et al. 2025): 0 for a block that changes no direction.

    ShortGPT removes the blocks of lowest influence. The site "x3" stands for block 3. options: those of `layer_change`.
    """
    return layer_change(model, prompts, "cosine", **options)


@torch.no_grad()
def layer_similarity(
    model, prompts: Sequence, position: int | None = None, skip: int = 0, batch_size: int = 64
) -> Tensor:
    """Mean cosine between the states of any two layers at the same token: [L + 1, L + 1], 1 on the diagonal."""
    total, tokens = 0.0, 0
    for start in range(0, len(prompts), batch_size):
        batch = model.tokenize(prompts[start : start + batch_size])
        states, counted = _states(model, batch, position, skip)
        unit = torch.stack([torch.nn.functional.normalize(state[counted].double(), dim=-1) for state in states])
        total, tokens = total + torch.einsum("atd,btd->ab", unit, unit).cpu(), tokens + int(counted.sum())
    return (total / tokens).float()


def angular_distance(similarity: Tensor, n: int) -> Tensor:
    """arccos(cos(x^l, x^(l+n))) / pi for every l, small where n blocks turn the state little (Gromov et al. 2024).

    similarity [L + 1, L + 1] from `layer_similarity` -> [L + 1 - n]. The mean is taken before the arccos.
    """
    if not 1 <= n < len(similarity):
        raise ValueError(f"n={n} must be between 1 and the number of blocks, {len(similarity) - 1}")
    return similarity.diagonal(n).clamp(-1, 1).arccos() / math.pi


def without_blocks(blocks: int | Iterable[int]) -> list:
    """Edits that skip these blocks: both writes to the stream are zero, so x^(l+1) = x^l.

    `with mi.intervene(model, *without_blocks([2, 3])): ...` works for sequential and parallel blocks alike.
    """
    blocks = [blocks] if isinstance(blocks, int) else list(blocks)
    return [zero([f"attn{block}.write", f"mlp{block}.write"]) for block in blocks]


def _states(model, batch, position: int | None, skip: int) -> tuple[list[Tensor], Tensor]:
    """The residual states x0 ... xL [B, T, d], and which tokens count, bool [B, T]."""
    names = [f"x{layer}" for layer in range(model.n_layers + 1)]
    cache = record(model, batch, names, logits=False)
    counted = batch.mask.bool() & (batch.position_ids >= skip)
    if position is not None:
        columns = torch.arange(batch.ids.shape[1], device=counted.device)
        counted = batch.mask.bool() & (columns == batch.columns(position)[:, None])
    if not counted.any():
        raise ValueError("skip leaves no token; take a smaller one, or longer prompts")
    return [cache[name].float() for name in names], counted


def _check(measure: str) -> None:
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r} is unknown; choose one of {', '.join(MEASURES)}")
