"""Causal attribution (survey section 3.2): change an object, run the rest of the model, see what the behaviour does.

Signs (audit A16). F is the task's metric; every score is F(intervened) - F(base).

    ablation    base = clean run,     object <- 0, a mean, or another prompt's   a helpful object scores below 0
    noising     base = clean run,     object <- corrupted run                    a helpful object scores below 0
    denoising   base = corrupted run, object <- clean run                        a helpful object scores above 0
    tracing     denoising, where the corruption is noise on the subject's embeddings (locate/tracing.py)

Downstream parts compute again, so these are total effects of the object (direct effects: locate/mediation.py). Single
ablations understate objects that have a backup (audit A17): remove the set together with `ablate_together`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mi_course.models import Site, edit, mean, patch, record, zero
from mi_course.models.slices import slices, weight_in_force
from mi_course.objects import Scores, Task

from .spans import position_mask, span_mask
from .sweep import Sweep
from .tracing import Trace, causal_trace

# What an ablated object is set to. The last two need prompts of equal length and give one value per prompt.
KINDS = ("zero", "mean", "position mean", "resample")

__all__ = [
    "KINDS", "Sweep", "Trace", "ablate_each", "ablate_together", "ablation", "causal_trace", "features", "ffns", "grid",
    "heads", "knock_out", "knock_out_sweep", "neurons", "patch_each", "position_mask", "pruned", "references", "ships",
    "site_means", "span_mask",
]  # fmt: skip


def heads(model) -> list[str]:
    """Sites of the z of all heads, where a head is ablated."""
    return [f"L{layer}H{head}.z" for layer in range(model.n_layers) for head in range(model.n_heads)]


def ffns(model) -> list[str]:
    """Sites of all FFN outputs."""
    return [f"mlp{layer}" for layer in range(model.n_layers)]


def neurons(model, layer: int) -> list[str]:
    """Sites of all neurons of one layer."""
    return [f"L{layer}N{j}" for j in range(model.d_ffn)]


def features(model, sae: str) -> list[str]:
    """Sites of all features of an attached SAE, model.saes[sae]."""
    with torch.no_grad():
        width = record(model, [[0]], [f"{sae}F*"], logits=False)[f"{sae}F*"].shape[-1]
    return [f"{sae}F{j}" for j in range(width)]


def grid(model, positions: Sequence[int], kind: str = "x") -> list[str]:
    """Sites of a layer x position grid, such as x0@-3 ... x5@-1."""
    return [f"{kind}{layer}@{position}" for layer in range(model.n_layers) for position in positions]


# --- ablation -------------------------------------------------------------------------------------------------------
@torch.no_grad()
def site_means(model, prompts: Sequence, sites: Iterable[str], batch_size: int = 128) -> dict[str, Tensor]:
    """Mean of every site over all real tokens of the prompts: site string -> [d] (or [] for a neuron).

    The reference of mean ablation: what the object writes when nothing is known about the prompt.
    """
    sites = [str(site) for site in sites]
    total, tokens = {}, 0
    for start in range(0, len(prompts), batch_size):
        cache = record(model, prompts[start : start + batch_size], sites, logits=False)
        mask = cache.batch.mask.bool()
        tokens += int(mask.sum())
        for site in sites:
            total[site] = total.get(site, 0) + cache[site][mask].sum(0)
    return {site: value / tokens for site, value in total.items()}


@torch.no_grad()
def references(model, task: Task, sites: Iterable[str], kind: str, seed: int = 0) -> dict[str, Tensor]:
    """What an ablation of this kind puts in the place of each site: site string -> tensor. Empty for "zero".

    "mean"           mean over all real tokens of the task's prompts, [d]
    "position mean"  for every prompt and position the mean there over the prompts of its length, [n, T, d]
    "resample"       what the object does on another prompt of equal length, [n, T, d]; a permutation of the prompts
                     that leaves none in place (drawn from `seed`)
    Raises ValueError for the last two when a prompt is the only one of its length.
    """
    sites = [str(site) for site in sites]
    if kind == "zero":
        return {}
    if kind == "mean":
        return site_means(model, task.prompts, sites)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    cache = record(model, task.prompts, sites, logits=False)
    lengths, result = cache.batch.lengths, {site: torch.empty_like(cache[site]) for site in sites}
    generator = torch.Generator().manual_seed(seed)
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero().flatten().cpu()
        if len(rows) < 2:
            raise ValueError(
                f"kind={kind!r}: prompt {rows.item()} of task {task.name!r} is the only one with {length} tokens; "
                "take prompts that share their length, or kind='mean'"
            )
        circle = rows[torch.randperm(len(rows), generator=generator)]
        for site in sites:
            value = cache[site]
            result[site][circle] = value[circle.roll(1)] if kind == "resample" else value[rows].mean(0)
    return result


def ablation(sites: Iterable[str], kind: str = "zero", means: dict[str, Tensor] | None = None) -> list:
    """Edits that remove all these sites at once: to zero, or to `means` (from `references` or `site_means`)."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if kind == "zero":
        return [zero(site) for site in sites]
    if means is None:
        raise ValueError(f"means is missing: {kind} ablation needs means=references(model, task, sites, {kind!r})")
    put = mean if kind == "mean" else patch
    return [put(site, means[str(site)]) for site in sites]


def ablate_each(model, task: Task, sites: Sequence[str], kind: str = "zero", means: dict | None = None) -> Scores:
    """Ablate the sites one by one: mean over items of F(ablated) - F(clean). Helpful sites are negative.

    sites: heads, FFNs, attention outputs, neurons, features or states. kind: one of `KINDS`; `means` as `references`
    gives them, by default from the task's own prompts. `Scores.per_item` has the effect on every item.
    """
    sweep = Sweep(model, task)
    if kind != "zero" and means is None:
        means = references(model, task, sites, kind)
        sweep.count_runs(1)
    effects = sweep.effects([ablation([site], kind, means) for site in sites])
    return sweep.scores(sites, effects, f"{kind} ablation", "ablation")


def ablate_together(model, task: Task, sites: Sequence[str], kind: str = "zero", means: dict | None = None) -> Tensor:
    """Ablate all the sites at once. Returns [n], F(ablated) - F(clean) of every item."""
    if kind != "zero" and means is None:
        means = references(model, task, sites, kind)
    return Sweep(model, task).effects([ablation(sites, kind, means)])[0]


def ships(model, task: Task, sites: Sequence[str], kind: str = "zero", means: dict | None = None) -> Scores:
    """Ships: KL(p || p without the object) of the next-token distributions, mean over prompts, in nats.

    The safety-head score of Zhou et al. 2025 [zhou2025on]. The survey files it under magnitude analysis as attention
    weights on refusal tokens; it is an ablation (audit A15). It needs no answer, so it is never negative: it says that
    an object matters on these prompts, not for what.
    """
    sweep = Sweep(model, task)
    if kind != "zero" and means is None:
        means = references(model, task, sites, kind)
        sweep.count_runs(1)
    logits = sweep.logits([[], *(ablation([site], kind, means) for site in sites)]).float().log_softmax(-1)
    divergence = (logits[0].exp() * (logits[0] - logits[1:])).sum(-1)
    return sweep.scores(sites, divergence, f"Ships, {kind} ablation", "ablation")


# --- interchange patching -------------------------------------------------------------------------------------------
def patch_each(model, task: Task, sites: Sequence[str], direction: str = "denoising") -> Scores:
    """Interchange patching between the aligned clean and corrupted prompts, one site at a time.

    Args:
        task: with corrupted twins of equal token length.
        sites: any activations, with or without a position: "x3@-1", "attn2@4", "L3H1.z", "<sae>F12".
        direction: "denoising" puts the clean value into the corrupted run, "noising" the reverse.
    Returns mean over items of F(patched) - F(run that was patched), with the effect on every item in `per_item`.
    """
    if direction not in ("noising", "denoising"):
        raise ValueError(f"direction={direction!r} is unknown; choose noising or denoising")
    if task.corrupted is None:
        raise ValueError(f"task {task.name!r} has no corrupted prompts: patching needs aligned twins")
    sites = [Site.parse(site) for site in sites]
    run, source = ("corrupted", task.prompts) if direction == "denoising" else ("clean", task.corrupted)
    sweep = Sweep(model, task, on=run)
    with torch.no_grad():
        values = record(model, source, sites, logits=False)
    sweep.count_runs(1)
    # before the first changed token the twin's value is the one that is there already
    here = {None: sweep.changed}
    for position in {site.position for site in sites} - {None}:
        here[position] = sweep.changed & position_mask(sweep.batch, position)
    cells = [patch(site.at(None), values[site], positions=here[site.position]) for site in sites]
    return sweep.scores([str(site) for site in sites], sweep.effects(cells), "patching", direction)


# --- knock-out of attention edges -----------------------------------------------------------------------------------
def knock_out(batch, layers: Iterable[int], queries: Tensor, keys: Tensor) -> list:
    """Edits that forbid attention from some positions to others in these layers, in all heads (Geva et al. 2023).

    batch: `model.tokenize(prompts)`. queries, keys: [n, T] bool masks over its columns, as `position_mask` and
    `span_mask` give them. The score of every such pair is set so low that the softmax gives it nothing; the other keys
    share its attention. Raises ValueError where a query would have no key left.
    """
    pairs = queries[:, :, None] & keys[:, None, :]
    width = batch.ids.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=batch.ids.device).tril()
    left = (earlier & batch.mask.bool()[:, None, :] & ~pairs).any(-1)
    if (queries & ~left).any():
        raise ValueError("keys: a query would see no position at all, not even itself; leave one out of keys")
    lowest = torch.finfo(torch.float16).min  # far below any score, in every dtype
    return [edit(f"scores{layer}", lambda s: s.masked_fill(pairs[:, None], lowest)) for layer in layers]


def knock_out_sweep(model, task: Task, queries: Tensor, keys: Tensor, window: int = 1) -> Scores:
    """Attention knock-out in a window of layers that slides over the model: which layers carry information from keys?

    queries, keys: as for `knock_out`. window: neighbouring layers, centred (published: 9 of 48). Scores over `attn0`,
    `attn1` ..., the centre of the window; mean over items of F(knocked out) - F(clean), negative where it is needed.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1")
    layers = range(model.n_layers)
    around = [layers[max(0, layer - (window - 1) // 2) : layer + window // 2 + 1] for layer in layers]
    sweep = Sweep(model, task)
    effects = sweep.effects([knock_out(sweep.batch, near, queries, keys) for near in around])
    return sweep.scores(
        [f"attn{layer}" for layer in layers], effects, f"attention knock-out, window {window}", "ablation"
    )


# --- pruning of weights ---------------------------------------------------------------------------------------------
@contextmanager
def pruned(model, units: Sequence[str], what: str = "all") -> Iterator:
    """While active, weights of these units are zero: heads (L3H5), neurons (L2N117), FFNs (mlp3). L2d.

    what  "all"       all that the unit owns. Its output is then zero: the same as zero ablation of z, s or `mlp`
          "matrices"  the same but biases, as magnitude pruning does: an FFN then still writes b_out
          "reading"   only the matrices that it reads through: a head then writes b_V W_O, a neuron act(b_in): constants
                      (a head that shares its keys and values with others has W_Q only: it still writes, see `slices`)
    The weights are put back, bit for bit, at the end.
    """
    if what not in ("all", "matrices", "reading"):
        raise ValueError(f"what={what!r} is unknown; choose all, matrices or reading")
    writers = (model.family.o, model.family.mlp_out)
    saved = []
    try:
        with torch.no_grad():
            for part in [part for unit in units for part in slices(model, unit)]:
                module, _, leaf = part.parameter.rpartition(".")
                if what != "all" and leaf == "bias" or what == "reading" and module.endswith(writers):
                    continue
                weight, index = weight_in_force(model, part.parameter), part.index.to(model.device)
                saved.append((weight, part.dim, index, weight.index_select(part.dim, index)))
                weight.index_fill_(part.dim, index, 0.0)
        yield model
    finally:
        with torch.no_grad():
            for weight, dim, index, value in reversed(saved):
                weight.index_copy_(dim, index, value)
