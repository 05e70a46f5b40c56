"""Language neurons by LAPE (survey section 3.1, L1d; Tang et al. 2024, arXiv 2402.16438): on often, in few languages.

LAPE is the entropy over languages of how often a neuron is on. Nothing in it is about languages: any K kinds of
documents will do. It is part of `magnitude`, which gives its names too.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mi_course.models import record
from mi_course.objects import Scores


@torch.no_grad()
def activation_probability(model, documents: Sequence, batch_size: int = 64, position: int | None = None):
    """How often each neuron is on: P(s_j > 0) over the real tokens of the documents. Returns [n_layers, d_ffn].

    "On" needs a choice (audit A8). In a two-matrix FFN: activation > 0, which for GELU equals pre-activation > 0. In a
    gated FFN: gate > 0, as in LAPE's released code, since the sign of s = act(gate) * up also depends on `up`.
    `position` counts only that token of every document (negative counts real tokens from the end); None counts all.
    The beginning-of-text token is counted as any other, as it is the same in every language.
    """
    if len(documents) == 0:
        raise ValueError("documents is empty: give at least one document")
    kind = "gate" if model.family.gated else "neurons"
    at = "" if position is None else f"@{position}"
    names = [f"{kind}{layer}{at}" for layer in range(model.n_layers)]
    active = torch.zeros(model.n_layers, model.d_ffn)
    tokens = 0
    for start in range(0, len(documents), batch_size):
        cache = record(model, documents[start : start + batch_size], names, logits=False)
        on = torch.stack([cache[name] > 0 for name in names])  # [L, B, T, d_ffn], or [L, B, d_ffn] at one position
        counted = cache.batch.mask.bool() if position is None else cache.batch.lengths > 0
        active += on[:, counted].sum(1).cpu()
        tokens += int(counted.sum())
    return active / tokens


def entropy_over(probability: torch.Tensor) -> torch.Tensor:
    """Entropy (nats) over dim 0 of probability / its sum: [K, ...] -> [...], between 0 and log K.

    A neuron that is never on has no preference: it gets log K. (The released code gives it 0, the best score, and
    relies on a later filter to throw it out.)
    """
    total = probability.sum(0)
    share = torch.where(total > 0, probability / total.clamp_min(1e-12), 1 / probability.shape[0])
    return -torch.xlogy(share, share).sum(0)


@dataclass(frozen=True)
class LanguageNeurons:
    """Result of `lape`. probability [K, n_layers, d_ffn], entropy [n_layers, d_ffn], languages: K names.

    forwards, seconds: what it cost.
    """

    languages: list[str]
    probability: torch.Tensor
    entropy: torch.Tensor
    forwards: int = 0
    seconds: float = 0.0

    def select(self, top_rate: float = 0.05, bar: float = 0.95) -> dict[str, list[str]]:
        """The neurons of each language, as site strings, most selective (lowest entropy) first.

        As in the released code (RUCAIBox/Language-Specific-Neurons, identify.py): of the neurons that in some language
        are on more often than the `bar` quantile of all probabilities, keep the `top_rate` share (of all neurons) of
        lowest entropy; a neuron belongs to every language in which its probability is above that quantile. There the
        quantile is one of the probabilities; here it lies between two of them.
        """
        for name, value in (("top_rate", top_rate), ("bar", bar)):
            if not 0 < value < 1:
                raise ValueError(f"{name}={value} must lie strictly between 0 and 1")
        threshold = torch.quantile(self.probability.flatten(), bar)
        often = (self.probability > threshold).any(0)
        entropy = torch.where(often, self.entropy, torch.inf).flatten()
        keep = entropy.argsort(stable=True)[: round(top_rate * entropy.numel())]
        keep = [int(i) for i in keep if entropy[i].isfinite()]
        width = self.entropy.shape[1]
        return {
            language: [f"L{i // width}N{i % width}" for i in keep if p.flatten()[i] > threshold]
            for language, p in zip(self.languages, self.probability)
        }

    def scores(self, bar: float = 0.95) -> Scores:
        """Selectivity of every neuron, log K - LAPE in nats: 0 for no preference, log K for one language alone.

        Neurons that in no language are on more often than the `bar` quantile of all probabilities get 0, as they are
        never selected.
        """
        threshold = torch.quantile(self.probability.flatten(), bar)
        often = (self.probability > threshold).any(0)
        highest = torch.tensor(float(len(self.languages))).log()
        n_layers, width = self.entropy.shape
        return Scores(
            [f"L{layer}N{j}" for layer in range(n_layers) for j in range(width)],
            torch.where(often, highest - self.entropy, 0.0).flatten(),
            "log K - LAPE",
            "magnitude",
            forwards=self.forwards,
            seconds=self.seconds,
        )


def lape(
    model, documents: Mapping[str, Sequence], batch_size: int = 64, position: int | None = None
) -> LanguageNeurons:
    """Language Activation Probability Entropy of every neuron (survey section 3.1; Tang et al. 2024).

    p_k = P(neuron on | language k), q = p / sum(p), LAPE = -sum q log q. Low entropy: on in few languages.

    Args: documents: language -> documents in it (equal amounts are not needed). position: see `activation_probability`.
    """
    if len(documents) < 2:
        raise ValueError("documents needs two languages or more: an entropy over one is always 0")
    started = time.perf_counter()
    probability = torch.stack([activation_probability(model, d, batch_size, position) for d in documents.values()])
    forwards = sum(map(len, documents.values()))
    return LanguageNeurons(
        list(documents), probability, entropy_over(probability), forwards, time.perf_counter() - started
    )
