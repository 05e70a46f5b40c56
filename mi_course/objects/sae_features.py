"""Reading the features of a sparse autoencoder: what turns one on, what it writes, what it detects.

    top_examples   the contexts in which a feature is largest
    by_token       the tokens it fires on, with how often
    logit_effect   what it adds to the logits along the residual stream
    auroc          how well its activation tells two groups apart (the same as for neurons)

All four are correlations or direct effects. What a feature *does* takes an intervention on `<sae>F17`, beside the
splice baseline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import Site, SiteError, record
from mi_course.models import weights as parts

from .neurons import auroc
from .sae import SAE, batches
from .weights import folded_unembedding

__all__ = ["Example", "TokenUse", "auroc", "by_token", "logit_effect", "stream_directions", "top_examples"]


@dataclass(frozen=True)
class Example:
    """Where a feature is largest in one document: tokens and values run over the whole document, without padding.

    document, position: which document and which of its tokens; token, value: what stands there, activation there.
    """

    document: int
    position: int
    token: str
    value: float
    tokens: list[str]
    values: list[float]

    def context(self, before: int = 8, after: int = 2) -> str:
        """The words around the token, which stands in [brackets]."""
        start, at = max(0, self.position - before), self.position
        return " ".join([*self.tokens[start:at], f"[{self.token}]", *self.tokens[at + 1 : at + 1 + after]])


@dataclass(frozen=True)
class TokenUse:
    """How a feature treats one token. count: its occurrences; rate: share on which it fires; mean activation on all."""

    token: str
    count: int
    rate: float
    mean: float


def top_examples(model, sae: SAE, documents: Sequence, feature: int, k: int = 10) -> list[Example]:
    """The k documents in which feature `feature` reaches its largest values, largest first; fewer if it fires in fewer.

    documents: texts or lists of token ids. Each document counts once, with its largest token; documents that are the
    same up to that token count as one.
    """
    found, seen = [], set()
    for number, (ids, values) in enumerate(_activations(model, sae, documents, feature)):
        at = int(values.argmax())
        context = tuple(ids[: at + 1].tolist())
        if values[at] > 0 and context not in seen:
            seen.add(context)
            found.append((values[at].item(), number, at, ids, values))
    found.sort(key=lambda entry: (-entry[0], entry[1]))
    examples = []
    for value, number, at, ids, values in found[:k]:
        tokens = _words(model, ids)
        examples.append(Example(number, at, tokens[at], value, tokens, values.tolist()))
    return examples


def by_token(model, sae: SAE, documents: Sequence, feature: int, min_count: int = 2) -> list[TokenUse]:
    """The tokens that feature `feature` fires on, largest mean activation first.

    Tokens with fewer than `min_count` occurrences are left out: one lucky occurrence says little.
    """
    pairs = list(_activations(model, sae, documents, feature))
    ids, values = torch.cat([i for i, _ in pairs]), torch.cat([v for _, v in pairs])
    count = torch.bincount(ids, minlength=model.n_vocab)
    fired = torch.bincount(ids, weights=(values > 0).double(), minlength=model.n_vocab)
    total = torch.bincount(ids, weights=values.double(), minlength=model.n_vocab)
    chosen = ((fired > 0) & (count >= min_count)).nonzero()[:, 0]
    words = _words(model, chosen)
    uses = [TokenUse(word, int(count[i]), (fired[i] / count[i]).item(), (total[i] / count[i]).item())
            for word, i in zip(words, chosen.tolist(), strict=True)]
    return sorted(uses, key=lambda use: -use.mean)


@torch.no_grad()
def _activations(model, sae: SAE, documents: Sequence, feature: int):
    """(ids [T], activation [T]) of one feature for every document, real tokens only, on the CPU."""
    if not 0 <= feature < len(sae.b_enc):
        raise ValueError(f"feature {feature} does not exist: this SAE has features 0 to {len(sae.b_enc) - 1}")
    if sae.site is None:
        raise ValueError("sae.site is not set: say where this SAE reads, for example sae.site = 'x3'")
    for batch in batches(model, documents):
        a = sae.encode(record(model, batch, [sae.site], logits=False)[sae.site].flatten(2))[..., feature]
        for ids, values, mask in zip(batch.ids.cpu(), a.float().cpu(), batch.mask.bool().cpu(), strict=True):
            yield ids[mask], values[mask]


def _words(model, ids: Tensor) -> list[str]:
    return [model.tokenizer.decode([i]) if model.tokenizer else str(i) for i in ids.tolist()]


@torch.no_grad()
def stream_directions(model, sae: SAE) -> Tensor:
    """What each feature writes to the residual stream per unit of activation, [m, d].

    Features of the stream and of block outputs are directions of it. Features of neurons go through W_out, those of z
    through W_O. A post-norm (Gemma 2) contributes its gain; its scale, which depends on the input, is left out.
    """
    site, rows = Site.parse(sae.site), sae.W_dec
    if site.kind == "head" and site.part == "z" and site.index is None:
        rows, branch = rows @ parts.attention(model, site.layer).W_O.flatten(0, 1), "attn"
    elif site.kind == "neuron" and site.part == "neurons" and site.index is None:
        rows, branch = rows @ parts.ffn(model, site.layer).W_out, "mlp"
    elif site.kind in ("x", "mid", "embed", "pos") or site.part == "write":
        return rows
    elif site.kind in ("attn", "mlp"):
        branch = site.kind
    else:
        raise SiteError(f"features at '{site}' write nothing to the stream by themselves; use x, mid, attn, mlp, "
                        "neurons or z")
    norm = parts.post_norm(model, site.layer, branch)
    return rows if norm is None else rows * norm.gain


@torch.no_grad()
def logit_effect(model, sae: SAE, feature: int | None = None) -> Tensor:
    """Direct effect of a feature on the logits, [V] or [m, V]: its direction in the stream times the folded W_U.

    Times the activation and the final norm's scale, this is what the feature adds along the residual stream; layers in
    between that read it are left out. Compare logits within a feature: each has a common part that softmax ignores.
    """
    rows = stream_directions(model, sae)
    return (rows if feature is None else rows[feature]) @ folded_unembedding(model)[0]
