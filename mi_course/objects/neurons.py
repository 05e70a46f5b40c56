"""Reading neurons (survey section 2.4): what each adds to an answer, where it fires, what its value promotes, and how
well it detects a label. Each reading comes with the null that it has to beat.

The weights of a neuron are in `objects.weights` (`neuron_keys`, `neuron_values`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import Site, record
from mi_course.models import weights as parts
from mi_course.objects.decompose import _ids
from mi_course.objects.weights import folded_unembedding, neuron_values


@torch.no_grad()
def direct_contributions(model, prompts, tokens, foils=None) -> Tensor:
    """What every neuron adds directly to the logit of `tokens` (minus that of `foils`): [B, n_layers, d_ffn].

    s_j (v_j . u) * frozen scale of the final norm, at each prompt's last token, with u a column of the unembedding with
    the final norm folded in. Over the neurons of a layer these sum, up to the share of b_out, to the entry `mlp<layer>`
    of `direct_logit_attribution`. "Direct": a neuron that acts through later layers, or at an earlier token, gets 0.

    tokens, foils: one token per prompt, text or ids.
    """
    batch, L = model.tokenize(prompts), model.n_layers
    posts = [parts.post_norm(model, layer, "mlp") for layer in range(L)]
    sites = [f"neurons{layer}@-1" for layer in range(L)] + [f"x{L}@-1"]
    sites += [f"mlp{layer}@-1" for layer, post in enumerate(posts) if post is not None]
    cache = record(model, batch, sites, logits=False)
    W = folded_unembedding(model)[0].T
    u = W[_ids(tokens, "tokens", len(batch), model)]  # [B, d]
    if foils is not None:
        u = u - W[_ids(foils, "foils", len(batch), model)]
    u = u * parts.unembedding(model).norm.scale(cache[f"x{L}@-1"])
    layers = []
    for layer, post in enumerate(posts):
        reader = u if post is None else u * post.gain * post.scale(cache[f"mlp{layer}@-1"])  # frozen, as in decompose
        layers.append(cache[f"neurons{layer}@-1"] * (reader @ neuron_values(model, layer).T))
    return torch.stack(layers, dim=1)


def promoted(model, vectors: Tensor, k: int = 8) -> list[list[str]]:
    """The k tokens that each vector [n, d] raises most when it is written to the last state, best first.

    Read with the final norm folded in (audit A27). Any vector promotes some tokens: compare with `mixtures`.
    """
    top = (vectors @ folded_unembedding(model)[0]).topk(k).indices
    return [[model.tokenizer.decode([i]) for i in row] for row in top.tolist()]


def mixtures(values: Tensor, n: int, seed: int = 0) -> Tensor:
    """n random mixtures of the rows of `values` [m, d]: vectors [n, d] of the same covariance, without a meaning.

    The null for whatever is read off a single row.
    """
    weights = torch.randn(n, len(values), generator=torch.Generator().manual_seed(seed))
    return weights.to(values) @ values / len(values) ** 0.5


@dataclass(frozen=True)
class Context:
    """One place where a neuron fires: its activation, the tokens up to there, and which document it is from."""

    activation: float
    tokens: list[str]
    document: int

    def __str__(self) -> str:
        *before, here = self.tokens
        return f"{self.activation:+.2f}  {' '.join([*before, f'[{here}]'])}"


@torch.no_grad()
def top_contexts(model, documents: Sequence[str], site, k: int = 6, width: int = 8, batch_size: int = 64):
    """Where a neuron fires most: its k largest activations over documents, one per document at most. Returns Contexts.

    site: a neuron, "L2N117" (or its gate or up state). width: how many tokens to keep, the one in question included.
    The top of a distribution says nothing about its middle: look at an ablation too before you name a neuron.
    """
    site = Site.parse(site)
    if site.kind != "neuron" or site.index is None or site.position is not None:
        raise ValueError(f"site={str(site)!r} must be one neuron at all positions, such as 'L2N117'")
    documents = list(dict.fromkeys(documents))
    found = []
    for start in range(0, len(documents), batch_size):
        batch = model.tokenize(documents[start : start + batch_size])
        values = record(model, batch, [site], logits=False)[str(site)].masked_fill(~batch.mask.bool(), -torch.inf)
        best, where = values.max(1)
        for row, (value, column) in enumerate(zip(best.tolist(), where.tolist(), strict=True)):
            ids = batch.ids[row, : column + 1][batch.mask[row, : column + 1].bool()].tolist()[-width:]
            found.append(Context(value, [model.tokenizer.decode([i]) for i in ids], start + row))
    return sorted(found, key=lambda context: -context.activation)[:k]


def _ranks(values: Tensor) -> Tensor:
    """Ranks 1 ... n of each column of values [n, m]; equal values share their mean rank."""
    columns = values.T.contiguous()
    order = columns.sort(1).values
    below, up_to = torch.searchsorted(order, columns), torch.searchsorted(order, columns, right=True)
    return ((below + up_to + 1) / 2).T


def auroc(values: Tensor, labels: Tensor) -> Tensor:
    """How well each column of values [n, m] tells the items with label 1 (bool [n]) from the others: [m], in 0 ... 1.

    values [n] is one detector, and gives one number. It is the chance that a positive item has the larger value than a
    negative one; ties count half. 0.5 is guessing; 0 is a perfect detector of the opposite. Computed from ranks (Mann
    and Whitney).
    """
    return _auroc(_ranks(values.reshape(len(values), -1)), labels[None])[0].reshape(values.shape[1:])


def best_by_luck(values: Tensor, labels: Tensor, draws: int = 200, seed: int = 0) -> Tensor:
    """The largest AUROC of the m columns under shuffled labels: [draws]. What "the best of m detectors" must beat.

    A single neuron under shuffled labels is near 0.5; the best of thousands is not. This null has the maximum built in.
    """
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.stack([labels.cpu()[torch.randperm(len(labels), generator=generator)] for _ in range(draws)])
    return _auroc(_ranks(values), shuffled.to(labels.device)).max(1).values


def _auroc(ranks: Tensor, labels: Tensor) -> Tensor:
    """ranks [n, m], labels bool [k, n] -> [k, m]."""
    if labels.dtype != torch.bool or labels.shape[1] != len(ranks):
        raise ValueError(f"labels must be one truth value for each of the {len(ranks)} items")
    positives = labels.sum(1, keepdim=True)
    negatives = labels.shape[1] - positives
    if (positives * negatives == 0).any():
        raise ValueError("labels must hold both kinds: with one kind only there is nothing to tell apart")
    wins = labels.to(ranks.dtype) @ ranks - positives * (positives + 1) / 2
    return wins / (positives * negatives)
