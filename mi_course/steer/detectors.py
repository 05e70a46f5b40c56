"""How well an object detects a concept, and steers that are made from it.

    expertise       AUROC of every neuron as a detector of the positive prompts
    aura            every expert is scaled down by how good a detector it is (AurA; Suau et al. 2024, arXiv 2407.12824)
    fit_detector    a `Detector` for conditional steering: `Steer(edits, when=detector)` acts on prompts where it fires

A good detector is not a cause. AurA bets that it is; the control is the same with shuffled labels, which also finds
"experts", since half of all neurons are above 0.5 by luck.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mi_course import models
from mi_course.models import Site, record
from mi_course.objects.neurons import auroc

from .steer import Detector, Steer


@torch.no_grad()
def peaks(model, prompts: Sequence, sites: Iterable[str], skip: int = 0, batch_size: int = 64) -> dict[str, Tensor]:
    """The largest value over each prompt's tokens at whole sites (neurons2, <sae>F*): site -> [n_prompts, width].

    skip: leave out so many tokens at the beginning. Where <bos> has the largest value, it would be the same for all.
    """
    found: dict[str, list] = {str(Site.parse(site)): [] for site in sites}
    for start in range(0, len(prompts), batch_size):
        batch = model.tokenize(prompts[start : start + batch_size])
        cache = record(model, batch, list(found), logits=False)
        counted = batch.mask.bool() & (batch.position_ids >= skip)
        if not counted.any(1).all():
            raise ValueError(f"skip={skip} leaves no token of some prompt; take a smaller one")
        for site in found:
            found[site].append(cache[site].float().masked_fill(~counted[..., None], -torch.inf).amax(1).cpu())
    return {site: torch.cat(parts) for site, parts in found.items()}


def expertise(model, positive: Sequence, negative: Sequence, sites: Iterable[str] | None = None, skip: int = 0):
    """AUROC of every neuron, read by its largest value in the prompt, for positive against negative prompts.

    sites: whole layers (default all: neurons0, neurons1 ...) or an SAE ("<sae>F*"). Returns site -> [width], 0 ... 1.
    """
    sites = [f"neurons{layer}" for layer in range(model.n_layers)] if sites is None else list(sites)
    values = peaks(model, [*positive, *negative], sites, skip)
    labels = torch.arange(len(positive) + len(negative)) < len(positive)
    return {site: auroc(value, labels) for site, value in values.items()}


def aura_factors(quality: Tensor) -> Tensor:
    """AurA: alpha = 1 - 2 (AUROC - 0.5) for experts, AUROC > 0.5, else 1. A perfect detector goes to 0."""
    return (2 * (1 - quality)).clamp(max=1.0)


def aura(
    model,
    positive: Sequence,
    negative: Sequence,
    sites: Iterable[str] | None = None,
    positions="all",
    skip: int = 0,
) -> Steer:
    """Scale every expert neuron by `aura_factors` of its AUROC. No top k and no strength to choose.

    Factors and largest values are those of the released code (apple/ml-aura). It scales what both linear layers of
    the FFN give out, before the activation function and in the stream; here the neurons are scaled, between the two.
    positive, negative: texts with and without what shall go. Strength s: factor 1 + s (alpha - 1).
    """
    found = expertise(model, positive, negative, sites, skip)
    return Steer([models.scale(site, aura_factors(quality), positions) for site, quality in found.items()])


@torch.no_grad()
def fit_detector(
    model, positive: Sequence, negative: Sequence, site: str, false_alarms: float | None = None
) -> Detector:
    """A detector at `site` (such as "x2@-1", or one neuron or feature at a position): mean difference, and a threshold.

    threshold: half way between the two means; with `false_alarms` = 0.01 so high that 1 % of the negatives fire.
    CAST (Lee et al. 2024, arXiv 2409.05907) compares the cosine with a principal component instead of a projection.
    """
    up, down = (record(model, prompts, [site], logits=False)[site].float() for prompts in (positive, negative))
    direction = up.mean(0) - down.mean(0)
    size = direction.norm()
    if not size > 0:
        raise ValueError(f"site {site}: positive and negative prompts have the same mean there; read a later one")
    detector = Detector(str(Site.parse(site)), direction / size)
    high, low = detector.score(up), detector.score(down)
    threshold = (high.mean() + low.mean()) / 2 if false_alarms is None else low.quantile(1 - false_alarms)
    return Detector(detector.site, detector.direction, threshold.item())


@torch.no_grad()
def fires(model, detector: Detector, prompts: Sequence) -> Tensor:
    """For each prompt, whether the detector fires: bool [n]."""
    state = record(model, prompts, [detector.site], logits=False)[detector.site]
    return detector.score(state) > detector.threshold
