"""Attention patterns as scores (survey section 3.1, L1e): how much of its attention a head gives to chosen tokens.

Row i of a pattern says how query i spreads one unit of attention over the tokens up to itself. A score asks what share
falls on the keys of one kind, and averages that over all queries that have such a key:

    previous_token    the token before
    duplicate_token   earlier copies of the current token
    prefix_matching   the tokens that came right after those copies, which is what an induction head looks at (A29)
    current_token     the token itself           first_token   the first one, often a sink that nothing is read from
    span_mass         tokens that you name, as seen from one position

    uniform_mass      the control: what a head gets that spreads its attention evenly

These say where a head looks. What it makes of what it sees is the other half of a head: `copying` and
`copying_weights` ask whether it raises the logits of the tokens it looks at. Neither half shows that the model needs
the head: attention to a sink can be large and idle (audit A14, A17). An ablation has to follow (locate/causal.py).

Prompts in which tokens repeat at random, so that no meaning gives away the next one, are the usual test bed
(Olsson et al. 2022): `repeated_sequences`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mi_course.models import Batch, record
from mi_course.models import weights as parts
from mi_course.objects import Scores, weights

from .causal import span_mask

Keys = Callable[[Batch], Tensor]  # batch -> bool [B, T, T]: is this key of the wanted kind for this query?


def repeated_sequences(model, words: Sequence, length: int, n: int, seed: int = 0) -> list[list[int]]:
    """n prompts of token ids: <bos> if the tokenizer has one, then `length` different words at random, twice.

    words: texts that are one token each, or token ids, at least `length` of them.
    """
    if not 2 <= length <= len(words):
        raise ValueError(f"length={length}: give at least 2, and at least as many words ({len(words)} were given)")
    ids = [model.token_id(word) if isinstance(word, str) else int(word) for word in words]
    bos = getattr(model.tokenizer, "bos_token_id", None)
    rng, rows = random.Random(seed), []
    for _ in range(n):
        half = rng.sample(ids, length)
        rows.append(([] if bos is None else [bos]) + half + half)
    return rows


# --- which keys ------------------------------------------------------------------------------------------------------


def causal_pairs(batch: Batch) -> Tensor:
    """[B, T, T]: query and key are real tokens, and the key is not later than the query."""
    real = batch.mask.bool()
    T = real.shape[1]
    return real[:, :, None] & real[:, None, :] & torch.ones(T, T, dtype=torch.bool, device=real.device).tril()


def previous_keys(batch: Batch) -> Tensor:
    """[B, T, T]: the key is the token before the query."""
    return causal_pairs(batch) & (_step(batch) == 1)


def current_keys(batch: Batch) -> Tensor:
    """[B, T, T]: the key is the query's own token."""
    return causal_pairs(batch) & (_step(batch) == 0)


def first_keys(batch: Batch) -> Tensor:
    """[B, T, T]: the key is the first token. The first query has no choice and is left out."""
    return causal_pairs(batch) & (batch.position_ids == 0)[:, None, :] & (_step(batch) > 0)


def duplicate_keys(batch: Batch) -> Tensor:
    """[B, T, T]: the key is an earlier copy of the query's token."""
    same = batch.ids[:, :, None] == batch.ids[:, None, :]
    return causal_pairs(batch) & same & (_step(batch) > 0)


def induction_keys(batch: Batch) -> Tensor:
    """[B, T, T]: the token before the key is an earlier copy of the query's token."""
    after = torch.zeros_like(duplicate_keys(batch))
    after[:, :, 1:] = duplicate_keys(batch)[:, :, :-1]
    return after & causal_pairs(batch)


def _step(batch: Batch) -> Tensor:
    """[B, T, T]: position of the query minus position of the key."""
    return batch.position_ids[:, :, None] - batch.position_ids[:, None, :]


# --- the scores ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def attention_mass(model, prompts, keys: Keys, method: str = "attention mass", batch_size: int = 64) -> Scores:
    """Share of each head's attention that falls on `keys`, in 0 ... 1: mean over all queries that have such a key.

    keys: a function such as `previous_keys`, from the padded batch to bool [B, T, T]. Raises ValueError when no query
    of these prompts has such a key. Returns Scores over "L0H0" ...
    """
    started = time.perf_counter()
    batch = model.tokenize(prompts)
    wanted = _wanted(batch, keys, method)
    mass = torch.zeros(model.n_layers, model.n_heads)
    for start in range(0, len(batch), batch_size):
        some, pairs = batch.rows(slice(start, start + batch_size)), wanted[start : start + batch_size]
        cache = record(model, some, [f"pattern{layer}" for layer in range(model.n_layers)], logits=False)
        for layer in range(model.n_layers):
            mass[layer] += (cache[f"pattern{layer}"].float() * pairs[:, None]).sum((0, 2, 3)).cpu()
    mass /= wanted.any(-1).sum().cpu()
    return _over_heads(model, mass, method, forwards=len(batch), seconds=time.perf_counter() - started)


def uniform_mass(model, prompts, keys: Keys) -> float:
    """The control of `attention_mass`: the score of a head that looks at all tokens up to the query alike."""
    batch = model.tokenize(prompts)
    wanted = _wanted(batch, keys, "uniform_mass")
    share = wanted.sum(-1) / causal_pairs(batch).sum(-1).clamp(min=1)
    return share[wanted.any(-1)].mean().item()


def previous_token(model, prompts) -> Scores:
    """Attention to the token before: high for previous-token heads."""
    return attention_mass(model, prompts, previous_keys, "previous token")


def current_token(model, prompts) -> Scores:
    """Attention of a token to itself."""
    return attention_mass(model, prompts, current_keys, "current token")


def first_token(model, prompts) -> Scores:
    """Attention to the first token: high for heads that rest there (attention sink, Xiao et al. 2023)."""
    return attention_mass(model, prompts, first_keys, "first token")


def duplicate_token(model, prompts) -> Scores:
    """Attention to earlier copies of the current token (duplicate-token heads, Wang et al. 2022)."""
    return attention_mass(model, prompts, duplicate_keys, "duplicate token")


def prefix_matching(model, prompts) -> Scores:
    """Attention to the tokens right after earlier copies of the current token: high for induction heads.

    Olsson et al. 2022. One step off, at the copies themselves, is `duplicate_token`, another kind of head.
    """
    return attention_mass(model, prompts, induction_keys, "prefix matching")


def span_mass(model, prompts, spans: Sequence[tuple[int, int]], query: int = -1) -> Scores:
    """Attention from one position to the tokens start <= position < end, one span for each prompt.

    Positions count real tokens, with <bos> at 0; query: -1 is the last token. Raises ValueError for a span that starts
    after its query, since attention cannot reach it.
    """

    def keys(batch: Batch) -> Tensor:
        at_query = torch.zeros_like(batch.mask, dtype=torch.bool)
        at_query[torch.arange(len(batch), device=at_query.device), batch.columns(query)] = True
        pairs = causal_pairs(batch) & at_query[:, :, None] & span_mask(batch, spans)[:, None, :]
        unreached = (~pairs.any(-1).any(-1)).nonzero().flatten().tolist()
        if unreached:
            raise ValueError(f"spans[{unreached[0]}] starts after the query; attention only reaches back")
        return pairs

    return attention_mass(model, prompts, keys, f"attention to a span from {query}")


@torch.no_grad()
def copying(model, prompts, batch_size: int = 64) -> Scores:
    """Does a head raise the logit of the tokens it looks at? Measured on the states that it really reads.

    For every token j but the first, the head's write from j alone, v_j W_O, goes through the unembedding (final norm's
    gain and centring folded in). Its own logit's distance from the mean over the vocabulary, in standard deviations
    over the vocabulary, is averaged over tokens: above 0 it copies, below 0 it suppresses, and a write that changes no
    logit counts 0. The pattern plays no part.

    `copying_weights` asks the same of raw embeddings. From layer 1 on heads read states that earlier layers have
    rewritten, so the two can differ in sign.
    """
    started = time.perf_counter()
    batch = model.tokenize(prompts)
    W_U = weights.folded_unembedding(model)[0].float()
    mean = W_U.mean(1)
    spread = torch.cov(W_U, correction=0)  # w spread w^T: the variance over the vocabulary of the logits w W_U
    total = torch.zeros(model.n_layers, model.n_heads)
    counted = batch.mask.bool() & (batch.position_ids > 0)
    for start in range(0, len(batch), batch_size):
        rows = slice(start, start + batch_size)
        cache = record(model, batch.rows(rows), [f"v{layer}" for layer in range(model.n_layers)], logits=False)
        own = W_U.T[batch.ids[rows][counted[rows]]]  # [n, d]
        for layer in range(model.n_layers):
            w, post = parts.attention(model, layer), parts.post_norm(model, layer, "attn")
            v = cache[f"v{layer}"][counted[rows]].float()  # [n, H_kv, d_head]
            for head in range(model.n_heads):
                write = v[:, w.kv_head(head)] @ w.W_O[head].float()
                write = write if post is None else write * post.gain
                above_mean = (write * own).sum(-1) - write @ mean
                sd = ((write @ spread) * write).sum(-1).clamp(min=0).sqrt()
                unread = 1e-5 * write.norm(dim=-1) * spread.trace().sqrt()  # below it the write changes no logit
                total[layer, head] += torch.where(sd > unread, above_mean / sd, 0.0).sum().cpu()
    seconds = time.perf_counter() - started
    return _over_heads(model, total / counted.sum().cpu(), "copying", forwards=len(batch), seconds=seconds)


def copying_weights(model) -> Scores:
    """The copying score of every head from weights alone (`objects.weights.copying_score`), in -1 ... 1. No data."""
    started = time.perf_counter()
    between = weights.unembed_embed(model)
    values = [
        [weights.copying_score(model, layer, h, between) for h in range(model.n_heads)]
        for layer in range(model.n_layers)
    ]
    return _over_heads(model, torch.tensor(values), "copying, weights", 0, time.perf_counter() - started)


def _wanted(batch: Batch, keys: Keys, method: str) -> Tensor:
    wanted = keys(batch)
    if wanted.shape != (*batch.ids.shape, batch.ids.shape[1]) or wanted.dtype != torch.bool:
        raise ValueError(f"keys gave {wanted.dtype} {tuple(wanted.shape)}; return bool [B, T, T], as `previous_keys`")
    if not wanted.any():
        raise ValueError(
            f"prompts: no query has a key that {method!r} asks about; for duplicates and induction give "
            f"prompts in which tokens repeat, such as repeated_sequences(...)"
        )
    return wanted


def _over_heads(model, values: Tensor, method: str, forwards: int, seconds: float) -> Scores:
    sites = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    return Scores(sites, values.flatten(), method, "magnitude", forwards=forwards, seconds=seconds)
