"""Reading a vector by its tokens (survey section 3.5, L5d and L5e), and asking whether the list means anything.

    top_tokens          the k tokens that a vector raises most when it is written to the last state
    purity, cohesion    how alike the tokens of a list are: by known labels, or by their unembedding rows
    random_directions, frequency_lists   the two nulls that a list has to beat

Any vector has a top 10, and people find a theme in any ten words. So a list counts as evidence only if it is more alike
than the lists of random directions, and than lists drawn by word frequency alone, since frequent tokens have large
unembedding columns in many models and turn up everywhere (audit A27).

Two measures, since neither is enough. `purity` is the share of the commonest label: it is what a reader means by "these
are all cities", but it needs labels. `cohesion` is the mean cosine between the tokens' own directions: it needs none,
but it is above 0 for random vectors too, whose tokens share at least the vector. Both mean nothing without their null.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mi_course.objects.neurons import mixtures
from mi_course.objects.weights import folded_unembedding


@torch.no_grad()
def top_tokens(model, vectors: Tensor, k: int = 10, lowest: bool = False) -> Tensor:
    """Ids of the k tokens whose logits each vector [n, d] raises most, best first: [n, k].

    lowest: those that it lowers most. The product is v W_U with the final norm's gain and centring folded in; the
    length of v plays no part. softmax(v W_U) would be the probability of nothing: v is never alone in the stream.
    """
    if not 1 <= k <= model.n_vocab:
        raise ValueError(f"k={k} is outside 1 ... {model.n_vocab}, the size of the vocabulary")
    logits = vectors @ folded_unembedding(model)[0]
    return logits.topk(k, largest=not lowest).indices


def words(model, ids: Tensor) -> list[list[str]]:
    """Lists of token ids [n, k] as texts."""
    return [[model.tokenizer.decode([i]) for i in row] for row in ids.tolist()]


@torch.no_grad()
def cohesion(model, ids: Tensor) -> Tensor:
    """Mean cosine between the tokens of each list [n, k], pair by pair: [n], in -1 ... 1. Needs no labels.

    Each token is its column of the folded unembedding, minus the mean over the vocabulary, which softmax ignores.
    """
    if ids.shape[1] < 2:
        raise ValueError(f"ids has lists of {ids.shape[1]} token; give at least two, there are no pairs otherwise")
    W = folded_unembedding(model)[0].T
    rows = torch.nn.functional.normalize(W - W.mean(0), dim=-1)[ids]  # [n, k, d]
    k = ids.shape[1]
    return (rows.sum(1).pow(2).sum(-1) - k) / (k * (k - 1))  # |sum|^2 = k + sum over pairs


def purity(ids: Tensor, labels: Tensor) -> Tensor:
    """Share of the commonest label in each list: ids [n, k], labels [V] of ints -> [n], in 1/k ... 1.

    A label below 0 means none; such a token agrees with no other.
    """
    found = labels.to(ids.device)[ids]  # [n, k]
    same = (found[:, :, None] == found[:, None, :]) & (found >= 0)[:, None, :]
    return same.sum(1).amax(1).clamp_min(1) / ids.shape[1]


def label_tokens(model, groups: Mapping[str, Sequence[str]]) -> Tensor:
    """Labels [V] for `purity`: token i gets the number of the group that lists its word, -1 without one.

    Words that are not one token are left out. ValueError when a word is in two groups.
    """
    labels = torch.full((model.n_vocab,), -1)
    for number, (name, group) in enumerate(groups.items()):
        for word in dict.fromkeys(group):
            try:
                token = model.token_id(word)
            except ValueError:
                continue
            if labels[token] >= 0:
                other = list(groups)[labels[token]]
                raise ValueError(f"groups: {word!r} is in {other!r} and in {name!r}; give every word one label")
            labels[token] = number
    return labels


def random_directions(n: int, like: Tensor, mixed: bool = True, seed: int = 0) -> Tensor:
    """n random vectors [n, d] with the mean length of `like` [m, d]: the null of a list of tokens.

    mixed: random mixtures of the rows, which share their covariance ("any direction that this layer can write"). Else
    directions alike in all dimensions, an easier null to beat.
    """
    if mixed:
        drawn = mixtures(like, n, seed)
    else:
        drawn = torch.randn(n, like.shape[1], generator=torch.Generator().manual_seed(seed)).to(like)
    return drawn / drawn.norm(dim=1, keepdim=True) * like.norm(dim=1).mean()


def frequency_lists(counts: Tensor, k: int, n: int, seed: int = 0) -> Tensor:
    """n lists of k different tokens drawn by frequency alone: counts [V] -> ids [n, k]. The frequency-only baseline."""
    if int((counts > 0).sum()) < k:
        raise ValueError(f"k={k} is more than the {int((counts > 0).sum())} tokens with a count above 0")
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(counts.float().cpu().expand(n, -1), k, generator=generator).to(counts.device)
