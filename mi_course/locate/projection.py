"""Vocabulary projection (survey section 3.5, L5a and L5f): read a state with the model's own unembedding.

    logit_lens       next-token probabilities by layer, at one position
    read_tokens      probability and rank of given tokens at any sites: states, block outputs, head results
    layer_contrast   DoLa: log p_final - log p_layer among plausible tokens
    top_overlap      Jaccard overlap of the top-k tokens before and after each block (LSAQ)

A lens is lens(z) = norm_f(z) W_U + b_U, with any soft-cap: `model.unembed`. It needs no training and no labels, and it
assumes that z is written in the output's basis. Where that fails, so does the lens (compiled.rotated_basis); a
translator per layer is in `tuned_lens`. Sums of direct effects are in `direct`, lists of tokens in `token_lists`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import Site, SiteError, record, weights
from mi_course.objects import Scores
from mi_course.objects.decompose import _ids

Lens = Callable[[Tensor, int], Tensor]  # (states x^l [..., d], layer l) -> logits [..., V], such as a TunedLens
DENSE = ("x", "mid", "attn", "mlp", "embed", "pos")


@torch.no_grad()
def logit_lens(model, prompts: Sequence, position: int = -1, normalise: bool = True) -> torch.Tensor:
    """Next-token probabilities read from every residual state: softmax(norm_f(x^l) W_U). Eq. 16 with the final norm.

    Eq. 16 as printed leaves the final norm out; its mean subtraction and gain change the ranking (audit A27), so the
    lens then disagrees with the model even at the last layer. `normalise=False` shows that.
    `position`: which real token of each prompt (negative from the end).
    Returns [n_layers + 1, n_prompts, n_vocab]; the last row is the model's own output distribution.
    """
    names = [f"x{layer}@{position}" for layer in range(model.n_layers + 1)]
    cache = record(model, prompts, names, logits=False)
    read = model.unembed if normalise else lambda x: x @ weights.unembedding(model).W_U
    return torch.stack([read(cache[name]).float().softmax(-1) for name in names])


def settling(curve: Sequence[float], start: float = 0.1, end: float = 0.9) -> tuple[int, int]:
    """Over which layers a lens curve settles: (first layer >= start, first layer from which it stays >= end x final).

    curve: a mean probability by layer, such as `logit_lens(...)[:, rows, targets].mean(1)`. ValueError if it never
    reaches `start`.
    """
    reached = [layer for layer, p in enumerate(curve) if p >= start]
    if not reached:
        raise ValueError(
            f"the curve never reaches start={start} (largest value {max(curve):.3f}): nothing settles here"
        )
    below = [layer for layer, p in enumerate(curve) if p < end * curve[-1]]
    return reached[0], (below[-1] + 1 if below else 0)


@dataclass(frozen=True)
class Reading:
    """What a lens says about one token per prompt, at n sites. Result of `read_tokens`.

    sites   n strings, each with a position: "x3@-1", "attn2@4", "L3H5@-1"
    prob    [n, B] probability of the token; rank [n, B]: how many tokens have a larger logit, ties counting half, so 0
            is the top and a reading that tells nothing apart gives the middle
    forwards, seconds   cost
    """

    sites: list[str]
    prob: Tensor
    rank: Tensor
    forwards: int
    seconds: float

    def scores(self, what: str = "prob") -> Scores:
        """The mean over prompts by site: of "prob", or of "rank" (then small is good)."""
        if what not in ("prob", "rank"):
            raise ValueError(f"what={what!r} is unknown; choose 'prob' or 'rank'")
        values = getattr(self, what).float().mean(1)
        return Scores(self.sites, values, f"lens, {what}", "magnitude", forwards=self.forwards, seconds=self.seconds)


@torch.no_grad()
def read_tokens(model, prompts: Sequence, tokens, sites: Sequence, lens: Lens | None = None) -> Reading:
    """Probability and rank of one token per prompt, read at states, block outputs or head results.

    Args:
        tokens: one per prompt, text or ids, such as `task.targets`.
        sites: with a position each: "x3@-1", "mid2@-1", "attn2@4", "mlp2@-1", "L3H5@-1" (z W_O).
        lens: reads x sites in place of the logit lens, for example a `TunedLens`.
    A block output or head result is a small part of the stream; norm_f blows it up to full length. Its ranking is that
    of its direct effect on logits, up to the final norm's bias; its probabilities are not comparable to those of a
    state, so compare ranks, with those of other tokens as control.
    """
    started = time.perf_counter()
    sites = [Site.parse(site) for site in sites]
    for site in sites:
        whole_state = site.kind in DENSE or (site.kind == "head" and site.part == "result" and site.index is not None)
        if site.position is None or not whole_state:
            raise SiteError(f"site '{site}': a lens reads [d] numbers at one position, as in 'x3@-1' or 'L3H5@-1'")
    batch = model.tokenize(prompts)
    wanted = _ids(tokens, "tokens", len(batch), model)[:, None]
    cache = record(model, batch, sites, logits=False)
    prob, rank = [], []
    for site in sites:
        use_lens = lens is not None and site.kind == "x" and site.layer < model.n_layers
        logits = (lens(cache[site], site.layer) if use_lens else model.unembed(cache[site])).float()
        prob.append(logits.softmax(-1).gather(1, wanted)[:, 0])
        rank.append(rank_of(logits, wanted))
    seconds = time.perf_counter() - started
    return Reading([str(s) for s in sites], torch.stack(prob), torch.stack(rank), len(batch), seconds)


def rank_of(logits: Tensor, tokens: Tensor) -> Tensor:
    """How many of the logits [B, V] are larger than that of each row's token [B, 1]; ties count half: [B]."""
    own = logits.gather(1, tokens)
    return (logits > own).sum(1) + ((logits == own).sum(1) - 1) / 2


# --- relatives that contrast layers ----------------------------------------------------------------------------------


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence of two distributions [..., V], in nats: (KL(p|m) + KL(q|m)) / 2, m their mean."""
    m = (p + q) / 2
    return (torch.xlogy(p, p / m).nan_to_num() + torch.xlogy(q, q / m).nan_to_num()).sum(-1) / 2


@dataclass(frozen=True)
class Contrast:
    """Result of `layer_contrast`. scores [B, V], -inf where implausible; layer [B]: the layer it was contrasted with;
    final [B, V], the model's own log-probabilities; divergence [n_candidates, B], Jensen-Shannon, in nats."""

    scores: Tensor
    layer: Tensor
    final: Tensor
    divergence: Tensor


@torch.no_grad()
def layer_contrast(model, prompts, candidates: Sequence[int] | None = None, alpha: float = 0.1) -> Contrast:
    """DoLa (Chuang et al. 2024): F(v) = log q_final(v) - log q_M(v) for tokens with q_final(v) >= alpha max q_final.

    q_l is the logit lens at x^l and the last token. M is, for each prompt, the candidate layer whose distribution is
    farthest from the final one by Jensen-Shannon divergence ("dynamic"). softmax(scores) is the decoding distribution.
    candidates: layers l of x^l, default 1 ... n_layers - 1. Layer 0 is left out since tied embeddings read back the
    word that is already there. One candidate: static contrast. alpha in 0 ... 1: 1 keeps the top token only.
    """
    candidates = list(range(1, model.n_layers)) if candidates is None else list(candidates)
    if not candidates or not all(0 <= layer < model.n_layers for layer in candidates):
        raise ValueError(f"candidates={candidates}: give layers between 0 and {model.n_layers - 1}, before the last")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} must lie in 0 ... 1: it is a share of the largest probability")
    q = logit_lens(model, prompts)
    divergence = torch.stack([jensen_shannon(q[-1], q[layer]) for layer in candidates])
    layer = torch.tensor(candidates, device=q.device)[divergence.argmax(0)]  # [B]
    early = q[layer, torch.arange(q.shape[1], device=q.device)]
    final, plausible = q[-1].log(), q[-1] >= alpha * q[-1].amax(-1, keepdim=True)
    smallest = torch.finfo(early.dtype).tiny
    scores = (final - early.clamp_min(smallest).log()).masked_fill(~plausible, -torch.inf)
    return Contrast(scores, layer, final, divergence)


@torch.no_grad()
def top_overlap(model, prompts, k: int = 10, position: int = -1) -> Tensor:
    """Jaccard overlap |A & B| / |A | B| of the k likeliest tokens before and after each block: [n_layers, B].

    LSAQ (Zeng et al. 2024) calls a layer important when it changes the list: importance = 1 - overlap.
    """
    if not 1 <= k <= model.n_vocab:
        raise ValueError(f"k={k} is outside 1 ... {model.n_vocab}, the size of the vocabulary")
    p = logit_lens(model, prompts, position)
    top = torch.zeros_like(p, dtype=torch.bool).scatter_(-1, p.topk(k).indices, True)
    return (top[:-1] & top[1:]).sum(-1) / (top[:-1] | top[1:]).sum(-1)
