"""Contrasts of corpora (survey section 3.1, L1d): how an object differs between two kinds of prompts, and by chance.

    contrast          E[s | source] - E[s | target] of every site, its standardised form, or the AUROC of a detector
    permutation_test  what shuffled labels give: p-values by site and for the largest of all, rate of false ones
    reason_score      how much a feature belongs to a list of words (Galichin et al. 2025, arXiv 2503.18878)

The prompt is the unit: a site has one number per prompt (mean over its tokens, or one token), and labels are shuffled
between prompts. With thousands of sites some differ by luck; a contrast without its null says nothing (audit A14).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mi_course.objects import Scores, neurons

from .language_neurons import entropy_over
from .magnitude import _scores, prompt_values, token_values

STATISTICS = ("difference", "effect", "auroc")


def statistic_of(values: Tensor, labels: Tensor, statistic: str = "difference") -> Tensor:
    """values [n, m], one row per prompt; labels bool [n], True = source. Returns [m].

    "difference"  mean over source - mean over target
    "effect"      the same in units that do not depend on the site: the correlation with the label, -1 ... 1. It ranks
                  as Cohen's d = difference / s.d. within the kinds does, and stays finite where that s.d. is 0.
    "auroc"       share of pairs that are in the right order, minus 1/2: -1/2 ... 1/2 (objects.neurons.auroc)
    """
    return _many(values, labels[None], statistic)[0]


def _many(values: Tensor, labels: Tensor, statistic: str) -> Tensor:
    """labels bool [k, n], one labelling per row -> [k, m]. All three are linear in the labels, up to a constant."""
    if statistic not in STATISTICS:
        raise ValueError(f"statistic={statistic!r} is unknown; choose one of {', '.join(STATISTICS)}")
    n, positives = labels.shape[1], labels.sum(1, keepdim=True)
    if labels.dtype != torch.bool or n != len(values):
        raise ValueError(f"labels must be one truth value for each of the {len(values)} prompts")
    if (positives == 0).any() or (positives == n).any():
        raise ValueError("labels must hold both kinds: with one kind only there is nothing to contrast")
    if statistic == "auroc":
        return neurons._auroc(neurons._ranks(values), labels) - 0.5
    weights = torch.where(labels, 1 / positives, -1 / (n - positives)).to(values.dtype)  # [k, n]
    centred = values - values.mean(0)
    difference = weights @ centred
    if statistic == "difference":
        return difference
    spread = centred.square().mean(0).sqrt()
    varies = spread > 1e-6 * values.abs().amax(0)
    share = positives / n
    return torch.where(varies, difference * (share * (1 - share)).sqrt() / spread.clamp_min(1e-30), 0.0)


def contrast(model, source: Sequence, target: Sequence, sites, statistic: str = "difference", **options) -> Scores:
    """How every site differs between source and target prompts: E[s | source] - E[s | target] and its kin.

    statistic: see `statistic_of`. options: those of `magnitude.prompt_values` (norm, over, position, skip); norm="raw"
    keeps the sign of neurons and features.
    """
    started = time.perf_counter()
    values, labels = contrast_values(model, source, target, sites, **options)
    method = f"contrast, {statistic}"
    return _scores(model, [*source, *target], sites, statistic_of(values, labels, statistic), method, started)


def contrast_values(model, source: Sequence, target: Sequence, sites, **options) -> tuple[Tensor, Tensor]:
    """What `contrast` and `permutation_test` are computed from: values [n, m] by prompt, labels bool [n]."""
    if len(source) == 0 or len(target) == 0:
        raise ValueError("source and target need at least one prompt each")
    values = prompt_values(model, [*source, *target], sites, **options)
    return values, torch.arange(len(values)) < len(source)


@dataclass(frozen=True)
class PermutationTest:
    """A statistic of m sites against shuffled labels.

    observed [m]    the statistic under the true labels
    p [m]           two-sided p-value of each site by itself: uniform when labels mean nothing
    p_max [m]       p-value against the largest |statistic| of all sites: by luck, *any* site is below .05 in one of 20
                    tests. Needs sites on one scale, so it goes with "effect" or "auroc".
    q [m]           Benjamini and Hochberg: among sites with q <= .1, about a tenth are expected to be false
    largest [draws] the largest |statistic| of all sites under each shuffling
    """

    observed: Tensor
    p: Tensor
    p_max: Tensor
    q: Tensor
    largest: Tensor


def permutation_test(
    values: Tensor, labels: Tensor, statistic: str = "effect", draws: int = 999, seed: int = 0
) -> PermutationTest:
    """Shuffle the labels `draws` times and compare: the null of every contrast score.

    values [n, m], labels bool [n], as `contrast_values` gives them.
    p = (1 + #{|shuffled| >= |observed|}) / (1 + draws), never 0: the true labelling is one of the possible ones. So
    the smallest q of m sites is at least m / (1 + draws) over the number of sites that reach it: take draws > 20 m to
    find a single one, or look at p_max, which needs no more than 99.
    """
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1")
    observed = statistic_of(values, labels, statistic)
    size = observed.abs() * (1 - 1e-5) - 1e-12  # a shuffling that gives the same up to rounding is a tie
    generator = torch.Generator().manual_seed(seed)
    as_large, largest = torch.zeros(len(observed)), []
    for start in range(0, draws, 100):  # in pieces, so that the memory stays small
        k = min(100, draws - start)
        shuffled = torch.stack([labels[torch.randperm(len(labels), generator=generator)] for _ in range(k)])
        null = _many(values, shuffled, statistic).abs()
        as_large += (null >= size).sum(0)
        largest.append(null.amax(1))
    largest = torch.cat(largest)
    p = (1 + as_large) / (1 + draws)
    p_max = (1 + (largest[:, None] >= size).sum(0)) / (1 + draws)
    return PermutationTest(observed, p, p_max, false_discovery_rate(p), largest)


def false_discovery_rate(p: Tensor) -> Tensor:
    """Benjamini and Hochberg (1995): q_i = min over p_j >= p_i of p_j m / rank_j. p [m] -> q [m]."""
    m = len(p)
    order = p.argsort()
    scaled = p[order] * m / torch.arange(1, m + 1)
    q = torch.empty_like(p)
    q[order] = scaled.flip(0).cummin(0).values.flip(0).clamp_max(1)
    return q


def reason_score(
    model,
    prompts: Sequence,
    sites,
    words: Sequence[str],
    window: tuple[int, int] = (1, 2),
    alpha: float = 0.7,
    batch_size: int = 64,
) -> Scores:
    """ReasonScore of SAE features (or neurons, by |s|): large around a list of words, all of them, and not elsewhere.

        score_i = mu+_i / sum_k mu+_k  *  H_i^alpha  -  mu-_i / sum_k mu-_k

    mu+ and mu-: mean activation at tokens inside and outside the windows (`window` tokens before and after each
    occurrence of a word). H_i in 0 ... 1: entropy of the feature's mean activations around each word, over log(number
    of words); it punishes features of a single word. Galichin et al. 2025: formula, alpha = .7 and the window (1, 2)
    are those of the released code (extraction/compute_score.py and its script, in copies of AIRI-Institute/
    SAE-Reasoning). There a word may be several tokens and have several spellings; here it is one token. The sums run
    over the sites given, so give all features of a dictionary.

    Raises ValueError when no prompt has one of the words, or nothing lies outside the windows.
    """
    started = time.perf_counter()
    ids = torch.tensor([model.token_id(word) for word in words])
    near, outside = None, None
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        batch = model.tokenize(some)
        ((values, _),) = token_values(model, some, sites, "l2", batch_size=batch_size)
        real = batch.mask.bool().cpu()
        here = _around(batch.ids.cpu(), real, ids, window)[:, real].float()  # [W, tokens]
        rows = torch.cat([here, here.amax(0, keepdim=True)])  # by word, then by any word
        new = torch.cat([rows @ values, rows.sum(1, keepdim=True)], dim=1)
        out = torch.cat([values[rows[-1] == 0].sum(0), (rows[-1] == 0).sum()[None].float()])
        near, outside = (new, out) if near is None else (near + new, outside + out)
    absent = [word for word, count in zip(words, near[:-1, -1]) if count == 0]
    if len(absent) == len(words):
        raise ValueError(f"words: none of {', '.join(words)} is in the prompts; give words that occur")
    if outside[-1] == 0:
        raise ValueError("window covers every token of the prompts; take a smaller one, or longer prompts")
    means = near[:, :-1] / near[:, -1:].clamp_min(1)
    by_word, inside, elsewhere = means[:-1], means[-1], outside[:-1] / outside[-1]
    H = entropy_over(by_word) / np.log(len(words)) if len(words) > 1 else torch.ones(len(inside))
    share = [mean / mean.sum().clamp_min(1e-12) for mean in (inside, elsewhere)]
    return _scores(model, prompts, sites, share[0] * H**alpha - share[1], "ReasonScore", started)


def _around(ids: Tensor, real: Tensor, words: Tensor, window: tuple[int, int]) -> Tensor:
    """bool [W, B, T]: is a word at most window[0] tokens later or window[1] tokens earlier?"""
    at = (ids == words[:, None, None]) & real
    before, after = window
    around, T = torch.zeros_like(at), ids.shape[1]
    for shift in range(-before, after + 1):  # an occurrence at column c marks column c + shift
        lo, hi = max(0, shift), min(T, T + shift)
        if lo >= hi:
            continue  # the window reaches beyond the whole prompt
        around[..., lo:hi] |= at[..., lo - shift : hi - shift]
    return around & real
