"""Amplitude manipulation (survey section 4.1, Eq. 19): switch objects off, to their mean, or up and down.

Each function returns a list of edits for `mi.intervene(model, *edits)`; alpha = 1 is the identity, alpha = 0 zeroing.
It is the same operation as an ablation in locate/causal.py, with another purpose: to change behaviour, not to explain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from mi_course.models import mean, scale, zero


def zero_all(sites: Iterable[str], positions="all") -> list:
    """Set every site to zero. For GELU and SiLU neurons zero is a value like others, not "off" (audit A8)."""
    return [zero(site, positions=positions) for site in sites]


def mean_all(values: Mapping[str, torch.Tensor], positions="all") -> list:
    """Set every site to its given mean: site -> value, as from `mi.locate.causal.site_means`."""
    return [mean(site, value, positions=positions) for site, value in values.items()]


def scale_all(sites: Iterable[str], alpha: float, positions="all") -> list:
    """Multiply every site by alpha: above 1 amplifies, between 0 and 1 attenuates, below 0 reverses."""
    return [scale(site, alpha, positions=positions) for site in sites]
