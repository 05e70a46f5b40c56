"""Amplitude manipulation (survey section 4.1, Eq. 19): switch objects off, set them to a value, turn them up or down.

    switch_off      T(o) = 0                          S1a      clamp           a neuron or SAE feature to a value   S1e
    set_to          T(o) = E[o], or a target state    S1b, c   remove_layers   skip blocks                          S1f
    scale           T(o) = alpha o                    S1d      cut_edges       what one token reads from another

Each makes a `Steer`, so strength s blends o + s (T(o) - o), with a schedule and a detector if you like. Graded
scaling by detector quality (AurA) is in `detectors`. The operations are those of an ablation in locate/causal.py; the
purpose differs: there they explain the behaviour, here they change it, so what else they change belongs to the result.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from mi_course import models
from mi_course.locate.layer_distance import without_blocks
from mi_course.models import Intervention, Site, SiteError
from mi_course.models.batch import check_positions
from mi_course.models.edits import fit_feature, make
from mi_course.models.sites import parse_sites

from .steer import Steer


# --- off, to a value, up and down -----------------------------------------------------------------------------------
def switch_off(sites: Iterable[str], positions="all") -> Steer:
    """T(o) = 0. For GELU and SiLU neurons zero is a value like others, not "off" (audit A8)."""
    single, grouped = _by_layer(sites)
    edits = [models.zero(single, positions)] if single else []
    return Steer(edits + [set_entries(whole, index, torch.zeros(len(index)), positions) for whole, index in grouped])


def scale(sites: Iterable[str], alpha: float, positions="all") -> Steer:
    """T(o) = alpha o: above 1 amplifies, 0 ... 1 attenuates, below 0 turns round.

    At strength s the factor is 1 + s (alpha - 1).
    """
    single, grouped = _by_layer(sites)
    edits = [models.scale(single, alpha, positions)] if single else []
    return Steer(edits + [scale_entries(whole, index, alpha, positions) for whole, index in grouped])


def set_to(values: Mapping[str, Tensor], positions="all") -> Steer:
    """T(o) = value, for each site its own: its mean over data (S1b), or its value in a state that is wanted (S1c).

    values: site -> tensor. Shaped like one position of the site ([d] for x4, [] for L2N117) it is set at every chosen
    position; as `record` gives it ([B, T, ...]) each prompt and position gets its own, and new tokens keep theirs.
    Survey section 4.1 calls setting to the mean "mean centering". Centring subtracts the mean: another operation (A30).
    """
    if not values:
        raise ValueError("values is empty: give site -> tensor, such as those of mi.locate.causal.site_means")
    return Steer([models.patch(site, value, positions) for site, value in values.items()])


def clamp(values: Mapping[str, float], positions="all") -> Steer:
    """T(o) = a number, for neurons ("L2N117") and SAE features ("<sae>F17"); the SAE's error term is kept.

    All features of one SAE are set in the same encoding: x + sum_j (value_j - a_j) f_j. One after the other would not
    do, since an SAE that reads its own output does not find the values that were written.
    """
    single, grouped = _by_layer(values)
    if single or not grouped:
        raise SiteError("values: only neurons (L2N117) and SAE features (<sae>F17) have one number; use set_to")
    number = {str(Site.parse(site)): float(value) for site, value in values.items()}
    return Steer(
        [
            set_entries(whole, index, torch.tensor([number[str(replace(whole, index=j))] for j in index]), positions)
            for whole, index in grouped
        ]
    )


def clamp_without_error(model, values: Mapping[str, float], positions="all") -> Steer:
    """The same clamp of SAE features with the state replaced by its reconstruction: what is in x - x^ is lost.

    For comparison: even with values as they are it changes the model as much as splicing the SAE in. Cannot be saved.
    """
    (edit, *more) = clamp(values).edits
    site = edit.sites[0]
    if more or site.kind != "feature":
        raise SiteError("values: give features of one SAE, such as {'x3-topkF17': 4.0}")
    if site.sae not in model.saes:
        raise SiteError(f"no SAE is called {site.sae!r}; attach one with model.saes[{site.sae!r}] = sae")
    sae = model.saes[site.sae]

    def reconstruct(x: Tensor) -> Tensor:
        # z has an axis of heads, which an SAE has not
        return sae.decode(edit.transform(sae.encode(x.flatten(2)), None)).view_as(x)

    return Steer(models.edit(sae.site, reconstruct, positions))


def set_entries(site, index: Iterable[int], value: Tensor, positions="all") -> Intervention:
    """Set entries [..., index] of a whole site (neurons2, <sae>F*) to value [n]; the others stay."""
    index, value = torch.as_tensor(index), torch.as_tensor(value).float()

    def transform(now, where):
        new = now.clone()
        new[..., index.to(now.device)] = value.to(now)
        return new

    return make("set_entries", site, transform, positions, index=index, value=value)


def scale_entries(site, index: Iterable[int], alpha, positions="all") -> Intervention:
    """Multiply entries [..., index] of a whole site (neurons2, <sae>F*) by alpha, one number or [n]."""
    index = torch.as_tensor(index)
    alpha = torch.as_tensor(alpha).float().expand(len(index)).contiguous()

    def transform(now, where):
        factors = torch.ones(now.shape[-1]).index_put((index,), alpha)
        return now * fit_feature(factors, now, where)

    return make("scale_entries", site, transform, positions, index=index, alpha=alpha)


def _by_layer(sites) -> tuple[list[Site], list[tuple[Site, list[int]]]]:
    """Sites that stand alone, and single neurons and features as (whole layer or SAE, indices): one edit for many."""
    single, grouped = [], {}
    for site in parse_sites(list(sites) if not isinstance(sites, (str, Site)) else sites):
        if site.kind in ("neuron", "feature") and site.index is not None:
            grouped.setdefault(replace(site, index=None), []).append(site.index)
        else:
            single.append(site)
    return single, list(grouped.items())


# --- attention edges ------------------------------------------------------------------------------------------------
def cut_edges(heads: Iterable[str], keys, queries="all", renormalise: bool = True) -> Steer:
    """What the queries read from the keys through these heads is switched off.

    heads        patterns: "L3H5.pattern" for one head, "pattern3" for all heads of a layer
    keys         positions that are read, queries: positions that read; both like the `positions` of every edit, so
                 keys=2, queries="last" is one entry of the pattern, and queries="generated" acts while generating
    renormalise  True: the other keys share the attention, as in a knock-out of the score. False: it is lost
    A query with no key left reads nothing. Strength s leaves 1 - s of the entry.
    """
    sites = parse_sites(list(heads) if not isinstance(heads, (str, Site)) else heads)
    if any(site.part != "pattern" for site in sites):
        raise SiteError(f"heads: '{sites[0]}' is no attention pattern; write L3H5.pattern or pattern3")
    return Steer(cut(sites, keys, renormalise, queries))


def cut(sites, keys, renormalise: bool = True, positions="all") -> Intervention:
    """The primitive edit of `cut_edges`; `positions` are those of the queries."""
    check_positions(keys)

    def transform(pattern, where):
        """pattern [B, queries, keys] or [B, H, queries, keys]."""
        gone = where.chosen.among(keys, where.end - pattern.shape[-1], where.end)
        if gone is False:
            return pattern
        if gone is None:
            return torch.zeros_like(pattern)
        gone = gone.view(len(gone), *[1] * (pattern.dim() - 2), -1)
        left = pattern.masked_fill(gone, 0.0)
        return left / left.sum(-1, keepdim=True).clamp_min(1e-9) if renormalise else left

    return make("cut", sites, transform, positions, keys=keys, renormalise=renormalise)


# --- layers ---------------------------------------------------------------------------------------------------------
def remove_layers(layers: int | Iterable[int]) -> Steer:
    """Skip these blocks (S1f): what they write to the stream is zero, so x^(l+1) = x^l. Saves no time.

    To choose them, see `locate.layer_distance.block_influence`; for a model that is really shorter, `without_layers`.
    """
    return Steer(without_blocks(layers))


def without_layers(model, layers: Iterable[int]) -> models.Model:
    """A new model without these blocks, as ShortGPT makes it (Men et al. 2025): fewer layers, less time and memory.

    It shares its weights with `model`, which stays as it is. Layers are counted anew. Equal to `remove_layers`.
    """
    layers = {layers} if isinstance(layers, int) else set(layers)
    kept = [layer for layer in range(model.n_layers) if layer not in layers]
    if not kept or not layers <= set(range(model.n_layers)):
        raise ValueError(f"layers={sorted(layers)}: choose some, not all, of 0 to {model.n_layers - 1}")
    hf = copy.deepcopy(model.hf, {id(p): p for p in model.hf.parameters()})
    parent, _, name = model.family.blocks.rpartition(".")
    blocks = nn.ModuleList(hf.get_submodule(model.family.blocks)[layer] for layer in kept)
    setattr(hf.get_submodule(parent), name, blocks)
    for number, block in enumerate(blocks):
        for module in block.modules():  # where a layer finds its part of the KV cache
            for attribute in ("layer_idx", "layer_id"):
                if hasattr(module, attribute):
                    setattr(module, attribute, number)
    for setting in ("layer_types", "attention_layers"):
        if getattr(hf.config, setting, None) is not None:
            setattr(hf.config, setting, [getattr(hf.config, setting)[layer] for layer in kept])
    hf.config.num_hidden_layers = len(kept)
    return models.wrap(hf, model.tokenizer, f"{model.name} without {', '.join(map(str, sorted(layers)))}")
