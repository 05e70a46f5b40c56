"""Mediation: through which paths does a change reach the answer? Total, direct and indirect effects, path patching.

The survey's Eq. 12 says that all other causal factors are held constant. An ablation or patch does not do that: what
lies downstream computes again, so it measures a *total* effect (audit A16). Here the others are really held.

    total      object changed, the rest computes again
    direct     object changed, every mediator held at its value in the base run
    indirect   object as in the base run, every mediator set to the value that the changed object gave it

In a linear model total = direct + indirect; what is left over otherwise is their interaction. Vig et al. 2020
[vig2020gender] ask another question of the same words: there the *input* is changed and the object is the mediator
(`input_mediation`). Their indirect effect is a noising effect; the one of causal tracing is a denoising effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import Site, intervene, patch, record
from mi_course.objects import Scores, Task

from .sweep import Sweep


@dataclass(frozen=True)
class Effects:
    """Effects of objects on every item, [n_sites, n] each; all are F(changed) - F(base).

    scores   each of them as `Scores` (mean over items), by name; the cost is that of all three, which come together
    """

    sites: list[str]
    total: Tensor
    direct: Tensor
    indirect: Tensor
    scores: dict[str, Scores]

    @property
    def interaction(self) -> Tensor:
        """[n_sites, n], total - direct - indirect: 0 in a linear model."""
        return self.total - self.direct - self.indirect


def downstream(model, site: str | Site) -> list[str]:
    """The branches that read what this object writes: `attn{l}.write` and `mlp{l}.write` after it."""
    site = Site.parse(site)
    if site.kind in ("embed", "pos"):
        site = Site("x", 0)
    if site.kind == "feature":
        return downstream(model, model.saes[site.sae].site)
    first_attn = site.layer + (site.kind != "x")
    first_mlp = site.layer + (site.kind in ("mlp", "neuron"))
    later = [f"attn{layer}.write" for layer in range(first_attn, model.n_layers)]
    return later + [f"mlp{layer}.write" for layer in range(first_mlp, model.n_layers)]


@torch.no_grad()
def mediation(model, task: Task, sites: Sequence[str], mediators: Sequence[str] | None = None) -> Effects:
    """Total, direct and indirect effect of giving each object its value from the corrupted twin (noising).

    Args:
        sites: objects as in `causal.patch_each`, one at a time.
        mediators: the sites that carry the indirect effect; default: every branch after the object, so that the direct
            effect is what it writes straight into the final state (through the final norm, which computes again).
    """
    sweep, sites = Sweep(model, task), [str(site) for site in sites]
    chosen = {site: downstream(model, site) if mediators is None else list(mediators) for site in sites}
    base = record(model, task.prompts, sorted({m for some in chosen.values() for m in some} | {"x0"}), logits=False)
    twin = record(model, task.corrupted, sites, logits=False)
    cells = []
    for site in sites:
        change = patch(site, twin[site])
        with intervene(model, change):
            moved = record(model, task.prompts, [*chosen[site], "x0"], logits=False)
        held = [patch(m, base[m]) for m in chosen[site]]
        carried = [patch(m, moved[m]) for m in chosen[site]]
        cells += [[change], [change, *held], carried]
    sweep.count_runs(2 + len(sites))
    effects = dict(zip(("total", "direct", "indirect"), sweep.effects(cells).unflatten(0, (-1, 3)).unbind(1)))
    scores = {kind: sweep.scores(sites, effect, f"{kind} effect", "noising") for kind, effect in effects.items()}
    return Effects(sites, **effects, scores=scores)


@dataclass(frozen=True)
class InputEffects:
    """Effects of changing the input, and the part that goes through each object (Vig et al. 2020).

    total     [n]           F(corrupted) - F(clean)
    indirect  [n_sites, n]  F(clean run, object <- corrupted) - F(clean): noising
    direct    [n_sites, n]  F(corrupted run, object <- clean) - F(clean): the input's effect with the object held
    restored  [n_sites, n]  F(corrupted run, object <- clean) - F(corrupted) = direct - total: denoising, the indirect
                            effect of Meng et al. 2022
    scores    "indirect" and "restored" as `Scores` (mean over items), with what each cost
    """

    sites: list[str]
    total: Tensor
    indirect: Tensor
    direct: Tensor
    restored: Tensor
    scores: dict[str, Scores]


def input_mediation(model, task: Task, sites: Sequence[str]) -> InputEffects:
    """What of the difference between clean and corrupted input goes through each object."""
    from .causal import patch_each

    scores = {
        "indirect": patch_each(model, task, sites, "noising"),
        "restored": patch_each(model, task, sites, "denoising"),
    }
    noising, denoising = (torch.tensor(found.per_item) for found in scores.values())
    total = Sweep(model, task, on="corrupted").base - Sweep(model, task).base
    return InputEffects([str(site) for site in sites], total, noising, total + denoising, denoising, scores)


@torch.no_grad()
def path_patching(
    model, task: Task, senders: Sequence[str], receivers: Sequence[str] = ("logits",), freeze_ffns: bool = True
) -> Scores:
    """Path patching (Wang et al. 2023): the effect of a head on given inputs of later heads, or on the logits alone.

    For each sender: (1) in the clean run give it its value from the corrupted twin and hold all other heads at their
    clean values; (2) keep what the receivers get in that run; (3) give the receivers just that, in a clean run that is
    otherwise free. So only the direct paths from sender to receivers carry the change.

    Args:
        senders: heads as "L0H1.z".
        receivers: "L3H5.q", ".k" or ".v", all patched together; or ("logits",).
        freeze_ffns: also hold the FFNs in (1). Wang et al. let them compute, and count paths through FFNs as direct.
    Returns mean over items of F(patched) - F(clean), sign "noising".
    """
    senders, receivers = [Site.parse(s) for s in senders], [str(r) for r in receivers]
    if any(s.kind != "head" or s.part != "z" or s.index is None for s in senders):
        raise ValueError("senders must be heads written as L0H1.z")
    to_logits = receivers == ["logits"]
    if not to_logits and any(Site.parse(r).part not in ("q", "k", "v") for r in receivers):
        raise ValueError("receivers must be inputs of heads (L3H5.q, .k or .v), or ['logits']")
    layers = range(model.n_layers)
    frozen = [f"z{layer}" for layer in layers] + [f"mlp{layer}.write" for layer in layers if freeze_ffns]
    sweep = Sweep(model, task)
    clean = record(model, task.prompts, frozen, logits=False)
    twin = record(model, task.corrupted, [f"z{layer}" for layer in layers], logits=False)
    sweep.count_runs(2)
    cells = []
    for sender in senders:
        changed = clean[f"z{sender.layer}"].clone()
        changed[:, :, sender.index] = twin[f"z{sender.layer}"][:, :, sender.index]
        held = [patch(site, changed if site == f"z{sender.layer}" else clean[site]) for site in frozen]
        if to_logits:
            cells.append(held)
            continue
        with intervene(model, *held):
            got = record(model, task.prompts, receivers, logits=False)
        sweep.count_runs(1)
        cells.append({receiver: got[receiver] for receiver in receivers})
    method = f"path patching to {', '.join(receivers)}" + ("" if freeze_ffns else ", FFNs free")
    return sweep.scores([str(s) for s in senders], sweep.effects(cells), method, "noising")
