"""Where a steering vector comes from (survey section 4.3): seven recipes that differ in what they average.

    act_add               x(plus) - x(minus) of one pair, token by token        ActAdd, Turner et al. 2023
    answer_difference     mean over questions at the answer token               CAA, Rimsky et al. 2024
    mean_difference       mean over prompts at one named token (`vectors`)      mass-mean, Marks and Tegmark 2024
    all_token_difference  mean over all tokens of all prompts
    probe_vector          weight of a linear probe, or the pattern behind it
    sae_vector            sum of chosen SAE features, weighted by their mean difference  (Eq. 23, 24)
    trained               a vector that is learned: `interventions.trained_vector`

Eq. 22 writes the mean over i and leaves open which token i is (audit A24b); here every function says it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mi_course.models import Site, add, record
from mi_course.objects.sae import SAE, states

from .steer import Steer
from .vectors import mean_difference, unit


def _residual(site: str) -> str:
    """The site without a position; ValueError when it names one."""
    parsed = Site.parse(site)
    if parsed.position is not None:
        raise ValueError(f"site {site!r} names a position, but here the tokens are fixed; give {parsed.at(None)}")
    return str(parsed)


# --- mean differences -----------------------------------------------------------------------------------------------
@torch.no_grad()
def pair_difference(model, plus, minus, site: str) -> Tensor:
    """x(plus) - x(minus) at every token of two prompts of equal length. Returns [T, d], where T counts <bos> too."""
    site = _residual(site)
    both = [model.tokenize([prompt]) for prompt in (plus, minus)]
    if both[0].ids.shape != both[1].ids.shape:
        raise ValueError(
            f"plus has {both[0].ids.shape[1]} tokens and minus {both[1].ids.shape[1]}; the pair is compared token by "
            "token, so fill up the shorter one with a neutral token"
        )
    up, down = (record(model, batch, [site], logits=False)[site][0] for batch in both)
    return up - down


def act_add(model, plus, minus, site: str) -> Steer:
    """ActAdd: the difference of one aligned pair, added to the first tokens of every prompt, token by token.

    Tokens where the pair has the same state so far (such as <bos>) get no edit. Prompts must be at least as long as the
    pair. ValueError when the two have the same states everywhere.
    """
    v = pair_difference(model, plus, minus, site)
    moved = [t for t in range(len(v)) if v[t].norm() > 0]
    if not moved:
        raise ValueError("plus and minus have the same states; give two prompts that differ")
    return Steer([add(site, v[t], positions=t) for t in moved])


def answer_difference(model, prompts: Sequence, targets: Sequence, foils: Sequence, site: str) -> Tensor:
    """CAA: each question is followed by the wanted and by the other answer, and states are taken at the answer token.

    targets, foils: one token each (text or id), as in a Task. Returns [d], mean over questions of x(q, target) -
    x(q, foil). What the questions have in common cancels within each pair. As in the released code (nrimsky/CAA), where
    the token is the letter of an answer in brackets; it adds the vector at all positions after the instruction.
    """
    site = _residual(site)
    if not len(prompts) == len(targets) == len(foils):
        raise ValueError(f"{len(prompts)} prompts, {len(targets)} targets and {len(foils)} foils: give one of each")
    batch = model.tokenize(prompts)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch.ids, batch.mask)]

    def answered(words) -> list[list[int]]:
        ids = [model.token_id(word) if isinstance(word, str) else int(word) for word in words]
        return [[*row, i] for row, i in zip(rows, ids, strict=True)]

    return mean_difference(model, answered(targets), answered(foils), f"{site}@-1")


def all_token_difference(model, positive: Sequence, negative: Sequence, site: str, skip: int = 0) -> Tensor:
    """Mean state over all real tokens of the positive texts minus that of the negative ones. Returns [d].

    Every token counts the same, so long texts count more. skip: leave out so many first tokens of each text; in many
    models (not in `lab`) the first token has a state far larger than any other.
    """
    up, down = (states(model, _residual(site), texts, skip).mean(0) for texts in (positive, negative))
    return up - down


# --- probes ---------------------------------------------------------------------------------------------------------
@torch.no_grad()
def probe_vector(
    model, positive: Sequence, negative: Sequence, site: str, kind: str = "logistic", pattern: bool = False
) -> Tensor:
    """The direction of a linear probe that tells the two kinds apart, as long as they are apart along it. Returns [d].

    site names a position, such as "x3@-1"; kind: one of `locate.probing.KINDS` but "mlp" ("lda" corrects the mean
    difference by the covariance, S^-1 (mu+ - mu-)).
    pattern: use S w in place of w, S the covariance within the kinds. A weight says how to *read* the label and avoids
    directions in which the states vary for other reasons; S w says how the states *move* with it (Haufe et al. 2014).
    For "lda" that undoes the correction: S S^-1 (mu+ - mu-) is the mean difference.
    The length is free; here strength 1 moves the negative mean as far as the positive one, along the direction.
    """
    from mi_course.locate import probing

    up, down = (record(model, texts, [site], logits=False)[site] for texts in (positive, negative))
    if Site.parse(site).position is None:
        raise ValueError(f"site {site} names no position; say which token to read, for instance {site}@-1")
    x = torch.cat([down, up])
    labels = torch.tensor([0] * len(down) + [1] * len(up))
    w = probing.fit(x, labels, kind).direction().to(x)
    if pattern:
        w = probing.within_covariance(x, labels.to(x.device), 2) @ w
    r = unit(w)
    return ((up.mean(0) - down.mean(0)) @ r) * r


# --- SAE features ---------------------------------------------------------------------------------------------------
@torch.no_grad()
def feature_difference(model, sae: SAE, positive: Sequence, negative: Sequence, position: int = -1) -> Tensor:
    """Eq. 23: delta_j = E+[a_j] - E-[a_j] of every feature of the SAE, at one token of each prompt. Returns [m]."""
    if sae.site is None:
        raise ValueError("sae.site is not set: say where this SAE reads, for example sae.site = 'x3'")
    site = f"{sae.site}@{position}"
    up, down = (
        sae.encode(record(model, texts, [site], logits=False)[site].flatten(1)).mean(0)
        for texts in (positive, negative)
    )
    return up - down


def sae_vector(sae: SAE, delta: Tensor, latents: int | Iterable[int] | None = None) -> Tensor:
    """Eq. 24: v = sum over latents of delta_j f_j. Returns [d]. f_j is row j of W_dec.

    latents: which, by number; an int k for the k with the largest |delta_j| |f_j|, so the longest parts of the sum;
    None for all. With all, v is exactly the mean difference of the reconstructions: the mean difference of states minus
    that of the error terms (audit A24c).
    """
    if latents is None:
        return delta @ sae.W_dec
    if isinstance(latents, int):
        if not 1 <= latents <= len(delta):
            raise ValueError(f"latents={latents}: choose 1 to {len(delta)} features")
        latents = (delta.abs() * sae.W_dec.norm(dim=1)).topk(latents).indices
    chosen = torch.as_tensor(list(latents), device=delta.device)
    if not len(chosen):
        raise ValueError("latents is empty: choose at least one feature")
    return delta[chosen] @ sae.W_dec[chosen]
