"""Causal attribution (survey section 3.2): change an object, run the rest of the model, see what the behaviour does.

Signs (audit A16). F is the task's metric; every score is F(intervened) - F(base).

    ablation    base = clean run,     object <- 0 or its mean        a helpful object scores below 0
    noising     base = clean run,     object <- corrupted run        a helpful object scores below 0
    denoising   base = corrupted run, object <- clean run            a helpful object scores above 0
    tracing     denoising, where the corruption is noise on the subject's embeddings (Meng et al. 2022)

Downstream parts compute again, so these are total effects of the object. Single ablations understate objects that have
a backup (audit A17): remove the set together with `ablate_together`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from mi_course.models import Site, edit, mean, patch, record, zero
from mi_course.models.batch import columns_of
from mi_course.objects import Scores, Task

from .sweep import Sweep

KINDS = ("zero", "mean")


def heads(model) -> list[str]:
    """Sites of the z of all heads, where a head is ablated."""
    return [f"L{layer}H{head}.z" for layer in range(model.n_layers) for head in range(model.n_heads)]


def ffns(model) -> list[str]:
    """Sites of all FFN outputs."""
    return [f"mlp{layer}" for layer in range(model.n_layers)]


def neurons(model, layer: int) -> list[str]:
    """Sites of all neurons of one layer."""
    return [f"L{layer}N{j}" for j in range(model.d_ffn)]


@torch.no_grad()
def site_means(model, prompts: Sequence, sites: Iterable[str], batch_size: int = 128) -> dict[str, torch.Tensor]:
    """Mean of every site over all real tokens of the prompts: site string -> [d] (or [] for a neuron).

    The reference of mean ablation: what the object writes when nothing is known about the prompt.
    """
    sites = [str(site) for site in sites]
    total, tokens = {}, 0
    for start in range(0, len(prompts), batch_size):
        cache = record(model, prompts[start : start + batch_size], sites)
        mask = cache.batch.mask.bool()
        tokens += int(mask.sum())
        for site in sites:
            total[site] = total.get(site, 0) + cache[site][mask].sum(0)
    return {site: value / tokens for site, value in total.items()}


def ablation(sites: Iterable[str], kind: str = "zero", means: dict[str, torch.Tensor] | None = None) -> list:
    """Edits that remove all these sites at once: to zero, or to `means` (from `site_means`)."""
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if kind == "zero":
        return [zero(site) for site in sites]
    if means is None:
        raise ValueError("means is missing: mean ablation needs means=site_means(model, prompts, sites)")
    return [mean(site, means[str(site)]) for site in sites]


def ablate_each(model, task: Task, sites: Sequence[str], kind: str = "zero", means: dict | None = None) -> Scores:
    """Ablate the sites one by one: mean over items of F(ablated) - F(clean). Helpful sites are negative.

    kind: "zero", or "mean" (over all tokens of the task's own prompts unless `means` is given).
    """
    sweep = Sweep(model, task)
    if kind == "mean" and means is None:
        means = site_means(model, task.prompts, sites)
        sweep.count_runs(1)
    effects = sweep.effects([ablation([site], kind, means) for site in sites])
    return sweep.scores(sites, effects, f"{kind} ablation", "ablation")


def ablate_together(model, task: Task, sites: Sequence[str], kind: str = "zero", means: dict | None = None):
    """Ablate all the sites at once. Returns [n], F(ablated) - F(clean) of every item."""
    if kind == "mean" and means is None:
        means = site_means(model, task.prompts, sites)
    return Sweep(model, task).effects([ablation(sites, kind, means)])[0]


def patch_each(model, task: Task, sites: Sequence[str], direction: str = "denoising") -> Scores:
    """Interchange patching between the aligned clean and corrupted prompts, one site at a time.

    Args:
        task: with corrupted twins of equal token length.
        sites: any activations, with or without a position: "x3@-1", "attn2@4", "L3H1.z".
        direction: "denoising" puts the clean value into the corrupted run, "noising" the reverse.
    Returns mean over items of F(patched) - F(run that was patched).
    """
    if direction not in ("noising", "denoising"):
        raise ValueError(f"direction={direction!r} is unknown; choose noising or denoising")
    if task.corrupted is None:
        raise ValueError(f"task {task.name!r} has no corrupted prompts: patching needs aligned twins")
    sites = [Site.parse(site) for site in sites]
    run, source = ("corrupted", task.prompts) if direction == "denoising" else ("clean", task.corrupted)
    sweep = Sweep(model, task, on=run)
    with torch.no_grad():
        values = record(model, source, sites)
    sweep.count_runs(1)
    # before the first changed token the twin's value is the one that is there already
    here = {None: sweep.changed}
    for position in {site.position for site in sites} - {None}:
        here[position] = sweep.changed & position_mask(sweep.batch, position)
    cells = [patch(site.at(None), values[site], positions=here[site.position]) for site in sites]
    return sweep.scores([str(site) for site in sites], sweep.effects(cells), "patching", direction)


def grid(model, positions: Sequence[int], kind: str = "x") -> list[str]:
    """Sites of a layer x position grid, such as x0@-3 ... x5@-1."""
    return [f"{kind}{layer}@{position}" for layer in range(model.n_layers) for position in positions]


@dataclass(frozen=True)
class Trace:
    """Causal tracing: how much of the answer each state carries (Meng et al. 2022; survey Eq. 12 and section 3.2).

    sites   the restored states by layer, "x0" ... or "mlp0" ...
    roles   names of the token positions
    effects [n_items, n_sites, n_roles], indirect effect F(restored) - F(corrupted); NaN where an item lacks the role
    clean, corrupted  [n_items], F of the clean run and of the noised run (mean over noise draws)
    window  number of neighbouring layers restored together; noise, in standard deviations of the embeddings
    """

    sites: list[str]
    roles: list[str]
    effects: torch.Tensor
    clean: torch.Tensor
    corrupted: torch.Tensor
    window: int
    noise: float

    @property
    def total(self) -> float:
        """Average total effect: mean of F(clean) - F(corrupted)."""
        return (self.clean - self.corrupted).mean().item()

    @property
    def average(self) -> torch.Tensor:
        """[n_sites, n_roles], average indirect effect over the items that have the role."""
        return self.effects.nanmean(0)

    def scores(self, role: str) -> Scores:
        """The average indirect effect by layer at one role, as Scores (sign: denoising)."""
        values = self.average[:, self.roles.index(role)]
        return Scores(self.sites, values, method=f"causal tracing at {role}, window {self.window}", sign="denoising")


def causal_trace(
    model,
    task: Task,
    spans: Sequence[tuple[int, int]],
    roles: dict[str, Sequence[int | None]],
    kind: str = "x",
    window: int = 1,
    noise: float = 3.0,
    draws: int = 1,
    seed: int = 0,
) -> Trace:
    """Corrupt the subject with noise, restore single states from the clean run, and see how much of F returns.

    Args:
        task: prompts and targets; the published metric is "prob".
        spans: per item the subject's tokens [start, end), real-token positions as `record` counts them (<bos> is 0).
        roles: name -> per item the position to restore, or None, for example {"last subject token": [3, 3, 5]}.
        kind: "x" restores residual states x^l, "mlp" or "attn" block outputs.
        window: restore this many neighbouring layers together, centred at the site (cut at both ends). The published
            figures use 1 for states and 10 of 48 layers for FFN and attention outputs.
        noise: standard deviation of the noise, in standard deviations of all entries of W_E (published: 3).
        draws: noise draws to average over (published: 10).
    The same noise is used for the corrupted run and for every restoration of a draw.
    """
    if window < 1 or draws < 1:
        raise ValueError(f"window={window} and draws={draws} must be at least 1")
    sites = [f"{kind}{layer}" for layer in range(model.n_layers + (kind == "x"))]
    sweep = Sweep(model, task)
    clean, corrupted = sweep.base, torch.zeros(len(task))
    with torch.no_grad():
        states = record(model, task.prompts, sites)
    subject = span_mask(sweep.batch, spans)
    places = [torch.tensor([p if p is not None else 0 for p in where]) for where in roles.values()]
    masks = [position_mask(sweep.batch, where) for where in places]
    around = [sites[max(0, layer - (window - 1) // 2) : layer + window // 2 + 1] for layer in range(len(sites))]
    cells = [[patch(s, states[s], positions=mask) for s in near] for near in around for mask in masks]
    effects = torch.zeros(len(task), len(sites), len(roles))
    sigma = noise * model.hf.get_input_embeddings().weight.float().std().item()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        shift = (sigma * torch.randn(*subject.shape, model.d_model, generator=generator)).to(model.device, model.dtype)
        corrupt = edit("embed", lambda value, shift=shift: value + shift, positions=subject)
        base, *restored = Sweep(model, task, under=[corrupt]).values([[], *cells])
        corrupted += base / draws
        effects += (torch.stack(restored) - base).unflatten(0, (len(sites), len(roles))).permute(2, 0, 1) / draws
    absent = torch.tensor([[p is None for p in where] for where in roles.values()]).T
    effects[absent[:, None].expand_as(effects)] = torch.nan
    return Trace(sites, list(roles), effects, clean, corrupted, window, noise)


def position_mask(batch, position) -> torch.Tensor:
    """[B, T] bool mask of one real-token position of every row (negative from the end); [B] for one per row."""
    return torch.zeros_like(batch.mask).scatter(1, columns_of(batch.mask, position), 1).bool()


def span_mask(batch, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    """[B, T] bool mask of the real tokens start <= position < end of every row, whatever the padding."""
    start, end = torch.tensor(spans, device=batch.mask.device).T[:, :, None]
    if (end[:, 0] > batch.lengths).any() or (start < 0).any() or (start >= end).any():
        raise ValueError("spans: every [start, end) must lie inside its prompt and hold at least one token")
    return batch.mask.bool() & (batch.position_ids >= start) & (batch.position_ids < end)
