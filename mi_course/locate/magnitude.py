"""Magnitude analysis (survey section 3.1): objects that are large, or often on, where the behaviour is.

    activation_norms    how large an object is on these prompts (Eq. 10): ||o||_2, max |o_k|, |s_j|, or |s_j| ||v_j||
    firing_frequency    how often a neuron or feature is on: P(s_j > threshold)
    lape                entropy over languages of how often a neuron is on (Tang et al. 2024, arXiv 2402.16438)
    within_layers       the same scores as z-scores inside each layer, since sizes grow with depth (audit A14)
    matched_sets        the null of whatever comes next: random other objects, as many in every layer

Differences between two kinds of prompts, with their label-permutation null, are in `contrast`.
A large activation shows presence, not necessity: an ablation has to follow (locate/causal.py).
"""

from __future__ import annotations

import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mi_course.models import Site, record
from mi_course.models.sites import parse_sites
from mi_course.objects import Scores
from mi_course.objects.weights import neuron_values

from .language_neurons import LanguageNeurons, activation_probability, entropy_over, lape

__all__ = [
    "LanguageNeurons",
    "activation_norms",
    "activation_probability",
    "all_neurons",
    "entropy_over",
    "firing_frequency",
    "lape",
    "matched_sets",
    "prompt_values",
    "token_values",
    "within_layers",
]

NORMS = ("l2", "linf", "raw", "write")


def all_neurons(model, position: int | None = None) -> list[str]:
    """Sites of all neurons of the model, at all positions or at one of them: "L2N117" or "L2N117@-1"."""
    at = "" if position is None else f"@{position}"
    return [f"L{layer}N{j}{at}" for layer in range(model.n_layers) for j in range(model.d_ffn)]


# --- reading sizes ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def token_values(
    model, prompts: Sequence, sites, norm: str = "l2", position: int | None = None, skip: int = 0, batch_size: int = 64
) -> Iterator[tuple[Tensor, Tensor]]:
    """The size of every site at every real token, in batches: pairs of values [n, n_sites] and prompt index [n].

    norm      "l2"     ||o||_2 of a vector, |s_j| of a neuron or feature
              "linf"   max_k |o_k| of a vector, |s_j| of a neuron or feature
              "raw"    s_j with its sign; neurons and features only
              "write"  |s_j| ||v_j||, the length of what is written; neurons and features only. Unlike |s_j| it does not
                       change when an activation is scaled by c and its value by 1/c (audit A14)
    position  that token alone (negative counts real tokens from the end); None: all, without the first `skip`
    """
    if len(prompts) == 0:
        raise ValueError("prompts is empty: give at least one prompt")
    if norm not in NORMS:
        raise ValueError(f"norm={norm!r} is unknown; choose one of {', '.join(NORMS)}")
    groups = _groups(parse_sites(sites), norm)
    lengths = {whole: _written(model, whole) for whole in groups} if norm == "write" else {}
    for start in range(0, len(prompts), batch_size):
        batch = model.tokenize(prompts[start : start + batch_size])
        cache = record(model, batch, list(groups), logits=False)
        counted = batch.mask.bool()
        if position is None:
            counted = counted & (batch.position_ids >= skip)
        else:
            at = torch.arange(batch.ids.shape[1], device=counted.device) == batch.columns(position)[:, None]
            counted = counted & at
        values = torch.empty(int(counted.sum()), sum(map(len, groups.values())))
        for whole, members in groups.items():
            own = cache[whole][counted].float()  # [n, d], [n, H, d] or [n, number of neurons or features]
            if norm == "write":
                own = own.abs() * lengths[whole]
            elif Site.parse(whole).kind not in ("neuron", "feature"):
                own = own.norm(dim=-1) if norm == "l2" else own.abs().amax(-1)
            elif norm != "raw":
                own = own.abs()
            for column, index in members:
                values[:, column] = (own if index is None else own[:, _shared(model, whole, index)]).cpu()
        yield values, start + counted.nonzero()[:, 0].cpu()


def prompt_values(model, prompts: Sequence, sites, over: str = "mean", **options) -> Tensor:
    """One number per prompt and site, [n_prompts, n_sites]: mean (or "max") over the prompt's tokens.

    options: those of `token_values`. The prompt is the unit of statistics: tokens of one prompt depend on each other.
    """
    _check_over(over)
    found = [torch.empty(0)] * len(prompts)
    for values, index in token_values(model, prompts, sites, **options):
        for i in index.unique().tolist():
            own = values[index == i]
            found[i] = own.mean(0) if over == "mean" else own.amax(0)
    if any(row.numel() == 0 for row in found):
        raise ValueError("skip leaves no token of some prompt; take a smaller one")
    return torch.stack(found)


def activation_norms(model, prompts: Sequence, sites, norm: str = "l2", over: str = "mean", **options) -> Scores:
    """How large every site is: mean (or "max") over all real tokens of the prompts of its size (survey Eq. 10).

    norm and options: see `token_values`. Keep {o : s >= tau} or `scores.top(k)` (Eq. 11).
    """
    _check_over(over)
    started, n, total = time.perf_counter(), 0, None
    for values, _ in token_values(model, prompts, sites, norm, **options):
        n += len(values)
        own = values.sum(0) if over == "mean" else values.amax(0)
        total = own if total is None else total + own if over == "mean" else torch.maximum(total, own)
    return _scores(model, prompts, sites, total / n if over == "mean" else total, f"{over} {norm} norm", started)


def firing_frequency(model, prompts: Sequence, sites, threshold: float = 0.0, **options) -> Scores:
    """How often a neuron or feature is on: share of real tokens with s_j > threshold, in 0 ... 1.

    A choice hides in it (audit A8): the sites of a gated FFN may be "L2N7" (s_j) or "L2N7.gate", and the two rank the
    neurons in unrelated ways. GELU and SiLU are never exactly 0, so "not 0" would be no meaning of "on".
    """
    started, n, on = time.perf_counter(), 0, 0.0
    for values, _ in token_values(model, prompts, sites, "raw", **options):
        n, on = n + len(values), on + (values > threshold).sum(0)
    return _scores(model, prompts, sites, on / n, f"frequency of s > {threshold:g}", started)


def _groups(sites: list[Site], norm: str) -> dict[str, list[tuple[int, int | None]]]:
    """Which recording serves which sites: whole layer -> (column, index in it). One tap for thousands of neurons."""
    groups = defaultdict(list)
    for column, site in enumerate(sites):
        if site.position is not None:
            raise ValueError(f"site {site}: leave its position out and give position={site.position} instead")
        if site.part in ("scores", "pattern"):
            raise ValueError(f"site {site}: for attention patterns use locate.attention_mass")
        scalar = site.kind in ("neuron", "feature")
        if (scalar or site.kind == "head") and site.index is None:
            raise ValueError(f"site {site} is a whole layer; name single objects, such as L2N117 or L3H5")
        if norm in ("raw", "write") and not scalar:
            raise ValueError(f"norm={norm!r} is for neurons and features; for site {site} choose 'l2' or 'linf'")
        groups[str(replace(site, index=None))].append((column, site.index))
    return groups


def _written(model, whole: str) -> Tensor:
    """Length of what one unit of activation writes, for all neurons of a layer or all features of an SAE."""
    site = Site.parse(whole)
    if site.kind == "feature":
        return model.saes[site.sae].W_dec.float().norm(dim=1)
    if site.part != "neurons":
        raise ValueError(f"norm='write' needs activations, not the {site.part} state; name sites such as L2N117")
    return neuron_values(model, site.layer).float().norm(dim=1)


def _shared(model, whole: str, index: int) -> int:
    """Keys and values belong to a group of query heads."""
    shared = Site.parse(whole).part in ("k", "v")
    return index // (model.n_heads // model.n_kv_heads) if shared else index


def _check_over(over: str) -> None:
    if over not in ("mean", "max"):
        raise ValueError(f"over={over!r} is unknown; choose 'mean' or 'max'")


def _scores(model, prompts, sites, values, method: str, started: float) -> Scores:
    return Scores(
        [str(site) for site in parse_sites(sites)], values, method, "magnitude", forwards=len(prompts),
        token_layers=int(model.tokenize(prompts).mask.sum()) * model.n_layers, seconds=time.perf_counter() - started,
    )  # fmt: skip


# --- comparing across layers, and the null ---------------------------------------------------------------------------


def within_layers(scores: Scores) -> Scores:
    """The same ranking inside every layer, made comparable between layers: (s - mean) / s.d. over the layer's sites.

    What is left out is the layer itself: a layer that is important as a whole no longer stands out. Sites of a layer
    that are all equal get 0.
    """
    layers = [Site.parse(site).layer for site in scores.sites]
    values = scores.values.copy()
    for layer in set(layers):
        own = [i for i, of in enumerate(layers) if of == layer]
        if len(own) == 1:
            raise ValueError(f"scores: {scores.sites[own[0]]} is alone in its layer; give two sites or more per layer")
        spread = values[own].std()
        values[own] = (values[own] - values[own].mean()) / spread if spread > 1e-12 * abs(values[own]).max() else 0.0
    return replace(scores, values=values, method=f"{scores.method}, z in its layer")


def matched_sets(chosen: Sequence, among: Sequence, draws: int = 20, seed: int = 0) -> list[list[str]]:
    """The null of an ablation: `draws` random sets of other sites, with as many in every layer as `chosen` has.

    among: the sites to draw from; those of `chosen` are left out. Raises ValueError when a layer has too few.
    """
    names, rng = {str(site) for site in chosen}, random.Random(seed)
    others = defaultdict(list)
    for site in among:
        if str(site) not in names:
            others[Site.parse(site).layer].append(str(site))
    wanted = Counter(Site.parse(site).layer for site in names)
    for layer, k in wanted.items():
        if len(others[layer]) < k:
            raise ValueError(f"among: layer {layer} has {len(others[layer])} other sites for the {k} that are chosen")
    return [[s for layer, k in sorted(wanted.items()) for s in rng.sample(others[layer], k)] for _ in range(draws)]
