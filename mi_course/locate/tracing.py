"""Causal tracing (Meng et al. 2022, arXiv 2202.05262; survey 3.2, L2b): where a fact is carried."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mi_course.models import edit, intervene, patch, record
from mi_course.objects import Scores, Task

from .spans import position_mask, span_mask
from .sweep import Sweep


@dataclass(frozen=True)
class Trace:
    """Causal tracing: how much of the answer each state carries (Meng et al. 2022; survey Eq. 12 and section 3.2).

    sites   the restored states by layer, "x0" ... or "mlp0" ...
    roles   names of the token positions
    effects [n_items, n_sites, n_roles], indirect effect F(restored) - F(corrupted); NaN where an item lacks the role
    clean, corrupted  [n_items], F of the clean run and of the noised run (mean over noise draws)
    window  number of neighbouring layers restored together; noise, in standard deviations of the embeddings
    severed what was held at its corrupted value above the restored state: None, "mlp" or "attn"
    """

    sites: list[str]
    roles: list[str]
    effects: torch.Tensor
    clean: torch.Tensor
    corrupted: torch.Tensor
    window: int
    noise: float
    severed: str | None = None

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
    severed: str | None = None,
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
        severed: "mlp" or "attn" holds the outputs of these branches, from the restored layer on and at the restored
            position, at their values in the corrupted run. What a restored state then still achieves, it achieves
            without them (Meng et al. 2022, figure 3: without FFNs the early site loses its effect). kind "x" only.
    The same noise is used for the corrupted run and for every restoration of a draw.
    """
    if window < 1 or draws < 1:
        raise ValueError(f"window={window} and draws={draws} must be at least 1")
    if severed not in (None, "mlp", "attn") or (severed and kind != "x"):
        raise ValueError(f"severed={severed!r} with kind={kind!r}: choose 'mlp' or 'attn', with kind='x', or None")
    sites = [f"{kind}{layer}" for layer in range(model.n_layers + (kind == "x"))]
    sweep = Sweep(model, task)
    clean, corrupted = sweep.base, torch.zeros(len(task))
    with torch.no_grad():
        states = record(model, task.prompts, sites, logits=False)
    subject = span_mask(sweep.batch, spans)
    places = [torch.tensor([p if p is not None else 0 for p in where]) for where in roles.values()]
    masks = [position_mask(sweep.batch, where) for where in places]
    around = [sites[max(0, layer - (window - 1) // 2) : layer + window // 2 + 1] for layer in range(len(sites))]
    cells = [[patch(s, states[s], positions=mask) for s in near] for near in around for mask in masks]
    branch = [f"{severed}{layer}" for layer in range(model.n_layers)]
    effects = torch.zeros(len(task), len(sites), len(roles))
    sigma = noise * model.hf.get_input_embeddings().weight.float().std().item()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(draws):
        shift = (sigma * torch.randn(*subject.shape, model.d_model, generator=generator)).to(model.device, model.dtype)
        corrupt = edit("embed", lambda value, shift=shift: value + shift, positions=subject)
        run = cells
        if severed:
            with torch.no_grad(), intervene(model, corrupt):
                frozen = record(model, task.prompts, branch, logits=False)
            held = [[patch(s, frozen[s], positions=m) for s in branch[i:]] for i in range(len(sites)) for m in masks]
            run = [cell + hold for cell, hold in zip(cells, held)]
        base, *restored = Sweep(model, task, under=[corrupt]).values([[], *run])
        corrupted += base / draws
        effects += (torch.stack(restored) - base).unflatten(0, (len(sites), len(roles))).permute(2, 0, 1) / draws
    absent = torch.tensor([[p is None for p in where] for where in roles.values()]).T
    effects[absent[:, None].expand_as(effects)] = torch.nan
    return Trace(sites, list(roles), effects, clean, corrupted, window, noise, severed)
