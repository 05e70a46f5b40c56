"""Transcoders: a sparse stand-in for an FFN, from what it reads to what it writes (Dunefsky et al. 2024).

    a    = act(z),  z = norm(x^mid) W_enc + b_enc       what FFN l reads (LN(x^l) in parallel blocks)
    y^   = a W_dec + b_dec                              approximates what FFN l adds to the stream
    loss = |y - y^|^2 + the penalty of the kind         as for an SAE (`objects/sae.py`), which it is but for y

An SAE splits a state into features and says nothing about how they came about. A transcoder replaces a computation:
feature j fires when the FFN's *input* has enough of column j of W_enc, and then writes row j of W_dec. Between
the features of two layers there is then nothing but attention and the residual stream, which are linear once attention
patterns and norm scales are frozen; `locate/feature_graph.py` rests on that (Ameisen et al. 2025).

The transcoder is not the FFN: y - y^ is its error. Interventions on features here keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mi_course.models import Site, SiteError, record
from mi_course.models import weights as parts
from mi_course.models.edits import Intervention, intervene, mean

from .sae import SAE, batches, fit, next_token_loss


class Transcoder(SAE):
    """An SAE whose input is what the FFN of `layer` reads and whose output is what that FFN writes.

    W_enc [d, m], b_enc [m], W_dec [m, d], b_dec [d]; kind and k as for `SAE`. Make a fitted one with `train`.
    Its features are no sites: change them with `edit` or `ablate`.
    """

    def __init__(self, d: int, m: int, layer: int, kind: str = "topk", k: int | None = None, seed: int = 0):
        if kind == "gated":
            raise ValueError("kind='gated': transcoders come as relu, topk, batchtopk and jumprelu")
        super().__init__(d, m, kind, k, f"transcoder{layer}", seed)  # no site: it reads at one place, writes at another
        self.layer, self.writes = layer, f"mlp{layer}.write"

    def _centred(self, x: Tensor) -> Tensor:
        return x  # b_dec belongs to the output, so nothing is taken off the input

    @torch.no_grad()
    def quality(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """fvu = |y - y^|^2 / |y - mean|^2, l0 and dead, on inputs x and outputs y, both [n, d]."""
        a = self.encode(x)
        return {
            "fvu": ((y - self.decode(a)).pow(2).sum() / (y - y.mean(0)).pow(2).sum()).item(),
            "l0": (a > 0).sum(-1).float().mean().item(),
            "dead": 1 - (a > 0).any(0).float().mean().item(),
        }

    # -- in the model --------------------------------------------------------------------------------------------

    def features(self, model, prompts) -> Tensor:
        """Activations [B, T, m] on prompts; active interventions apply."""
        site = read_site(model, self.layer)
        return self.encode(parts.mlp_norm(model, self.layer)(record(model, prompts, [site], logits=False)[site]))

    def splice(self, model, positions="all") -> ThroughFFN:
        """The intervention that replaces the FFN by the transcoder, without its error."""
        return ThroughFFN(self, model, lambda a, written: self.decode(a), positions)

    def edit(self, model, function: Callable[[Tensor], Tensor], positions="all") -> ThroughFFN:
        """Change the features to function(a), a [B, T, m]; the error is kept: y + decode(function(a)) - decode(a)."""
        return ThroughFFN(self, model, lambda a, y: y + (function(a) - a) @ self.W_dec, positions)

    def ablate(self, model, features: Sequence[int], positions="all") -> ThroughFFN:
        """Take these features out of what the FFN writes."""
        keep = torch.ones(len(self.b_enc), device=self.W_dec.device, dtype=self.W_dec.dtype)
        keep[list(features)] = 0.0
        return self.edit(model, lambda a: a * keep, positions)

    # -- files ---------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path, model) -> Transcoder:
        """Read a transcoder that `save` wrote, frozen, in the model's precision. ValueError for another model's."""
        sae = SAE.load(path, model)
        if not sae.site.startswith("transcoder"):
            raise ValueError(f"path {Path(path).name}: this is an SAE of {sae.site}; read it with SAE.load")
        m, d = sae.W_dec.shape
        new = cls(d, m, int(sae.site.removeprefix("transcoder")), sae.kind, sae.k)
        new.load_state_dict(sae.state_dict())
        return new.to(sae.W_dec).requires_grad_(False).eval()


class ThroughFFN:
    """An intervention that sees what an FFN reads and changes what it writes; use it as
    `with intervene(model, it)`.

    change(a [B, T, m], y [B, T, d]) -> new y, with a the transcoder's features of the input and y the FFN's write.
    """

    def __init__(self, transcoder: Transcoder, model, change: Callable[[Tensor, Tensor], Tensor], positions="all"):
        self.transcoder, self.change = transcoder, change
        self.norm = parts.mlp_norm(model, transcoder.layer)
        self.reads = Site.parse(read_site(model, transcoder.layer))
        self.read = None
        self.write = Intervention("transcoder", (Site.parse(transcoder.writes),), self._write, positions)

    def taps(self):
        yield self.reads, self._read
        yield from self.write.taps()

    def on(self, model):
        """Context manager: while active, every forward pass of `model` is intervened on."""
        return intervene(model, self)

    def _read(self, x: Tensor, where) -> Tensor:
        self.read = x
        return x

    def _write(self, y: Tensor, where) -> Tensor:
        a, self.read = self.transcoder.encode(self.norm(self.read)), None
        return self.change(a, y)


def read_site(model, layer: int) -> str:
    """The state that the FFN of `layer` reads, before its norm: "mid2", or "x2" in parallel blocks."""
    if not 0 <= layer < model.n_layers:
        raise SiteError(f"layer {layer} is out of range; {model.name} has 0 to {model.n_layers - 1}")
    return f"x{layer}" if model.family.is_parallel(model.config) else f"mid{layer}"


@torch.no_grad()
def states(model, layer: int, documents: Sequence, skip: int = 0, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """What the FFN of `layer` reads (normed) and what it writes at all real tokens, both [n_tokens, d].

    skip: leave out so many tokens at the beginning of each document, whose states are far larger in many models.
    """
    site, out, norm = read_site(model, layer), f"mlp{layer}.write", parts.mlp_norm(model, layer)
    read, written = [], []
    for batch in batches(model, documents, batch_size):
        keep = batch.mask.bool() & (batch.position_ids >= skip)
        cache = record(model, batch, [site, out], logits=False)
        read.append(norm(cache[site][keep]))
        written.append(cache[out][keep])
    return torch.cat(read), torch.cat(written)


def train(x: Tensor, y: Tensor, m: int, layer: int, kind: str = "topk", k: int | None = None, seed: int = 0,
          **options) -> Transcoder:
    """A new transcoder with m features, fitted so that y [n, d] follows from x [n, d] (see `states`).

    options: sparsity, steps, lr, remedy ... of `sae.fit`. Both sides are divided by one number each for training, so
    that settings mean the same for every layer, and the transcoder is scaled back afterwards.
    """
    new = Transcoder(x.shape[-1], m, layer, kind, k, seed).to(x)
    size_x, size_y = ((t - t.mean(0)).pow(2).sum(-1).mean().sqrt().item() or 1.0 for t in (x, y))
    with torch.no_grad():
        new.b_dec.copy_(y.mean(0) / size_y)
        new.b_enc.copy_(-(x.mean(0) / size_x) @ new.W_enc)  # start with pre-activations around zero
    fit(new, x / size_x, y=y / size_y, seed=seed, **options)
    with torch.no_grad():
        new.W_enc.mul_(size_y / size_x)
    return new._for_larger_states(size_y)


@torch.no_grad()
def loss_recovered(model, transcoder: Transcoder, documents: Sequence, skip: int = 0,
                   batch_size: int = 64) -> float:
    """Share of what the FFN does for the next-token loss that survives replacing it by the transcoder.

    (without - spliced) / (without - plain); without: the FFN writes its mean over these documents. 1 is as good as the
    FFN. ValueError when the mean serves as well as the FFN, so that nothing is there to recover.
    """
    average = states(model, transcoder.layer, documents, skip)[1].mean(0)

    def loss(make_edits) -> float:
        return next_token_loss(model, documents, make_edits, skip, batch_size)

    plain, spliced = loss(lambda positions: []), loss(lambda positions: transcoder.splice(model, positions))
    without = loss(lambda positions: mean(transcoder.writes, average, positions))
    if abs(without - plain) < 1e-6:
        raise ValueError(f"transcoder: the FFN of layer {transcoder.layer} can be replaced by its mean on these "
                         f"documents without any loss, so there is nothing to recover")
    return (without - spliced) / (without - plain)
