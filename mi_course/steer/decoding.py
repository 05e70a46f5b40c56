"""Layer contrast while decoding (survey section 4.3, S3g): DoLa (Chuang et al. 2024, arXiv 2309.03883).

    F(v) = log q_L(v) - log q_M(v)   for tokens with q_L(v) >= alpha max q_L,   all others are out

q_l is the logit lens at x^l, q_L the model's own distribution. M is the candidate layer farthest from q_L, chosen anew
for every token. The survey files it under Eq. 21, but nothing is added to a state: it is arithmetic on logits (A25).
`locate.projection.layer_contrast` gives the same numbers for reading; here they decide what is generated.

Farthest means the largest Jensen-Shannon divergence, as in the paper. The released code (voidism/DoLa; transformers'
`dola` is like it) differs: it averages KL(m | p) and KL(m | q) with the mean m first, takes one layer for a whole
batch, and unembeds early states without the final norm. Its candidates are every second layer of one half of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mi_course.locate.projection import jensen_shannon
from mi_course.models import Site

IMPLAUSIBLE = -1000.0  # the authors' value for tokens below the bar; finite, so that a loss stays finite


def contrast(final: Tensor, early: Tensor, alpha: float = 0.1, strength: float = 1.0) -> Tensor:
    """DoLa's scores [..., V] from log q_L [..., V] and log q of the candidate layers [n, ..., V].

    log q_L - strength * log q_M among the plausible tokens, IMPLAUSIBLE elsewhere.
    """
    farthest = jensen_shannon(final.exp()[None], early.exp()).argmax(0)  # [...]
    chosen = early.gather(0, farthest[None, ..., None].expand_as(early[:1]))[0]
    bar = final.amax(-1, keepdim=True) + torch.log(torch.tensor(float(alpha)))
    return (final - strength * chosen).masked_fill(final < bar, IMPLAUSIBLE)


@dataclass(frozen=True)
class DoLa:
    """Decode with `contrast`: `with DoLa().on(model): model.generate(prompts)`. Also changes `model(...)` and losses.

    candidates  layers l of x^l to contrast with; None: 1 ... n_layers - 1. One layer gives the static version
    alpha       0 ... 1: tokens below alpha times the largest probability are out; 1 keeps the top token only
    strength    0 leaves the logits as they are, bit-equal; 1 is DoLa. Above 0 the bar of alpha holds in full
    """

    candidates: Sequence[int] | None = None
    alpha: float = 0.1
    strength: float = 1.0

    def __post_init__(self):
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha={self.alpha} must lie above 0 and be at most 1: it is a share of the largest q")

    def scaled(self, strength: float) -> DoLa:
        """The same contrast at another strength."""
        return replace(self, strength=strength)

    @contextmanager
    def on(self, model):
        """Context manager: while active, logits of `model`, of its `last_logits` and of generation are contrasted.

        `model.resume(layer, ...)` raises ValueError unless it starts below all candidates, whose states it would lack.
        """
        layers = list(range(1, model.n_layers)) if self.candidates is None else list(self.candidates)
        if not layers or not all(0 <= layer < model.n_layers for layer in layers):
            raise ValueError(f"candidates={layers}: give layers from 0 to {model.n_layers - 1}, before the last")
        if self.strength == 0:
            yield model
            return
        seen: dict[int, Tensor] = {}

        def keep(layer: int):
            def tap(value, where):
                seen[layer] = value
                return value

            return Site.parse(f"x{layer}"), tap

        def contrasted(logits: Tensor, read) -> Tensor:
            early = torch.stack([model.unembed(read(seen[layer])).float().log_softmax(-1) for layer in layers])
            return contrast(logits.float().log_softmax(-1), early, self.alpha, self.strength).to(logits)

        def at_output(module, args, output):
            n = output.logits.shape[1]  # while generating, only the last column is unembedded
            output.logits = contrasted(output.logits, lambda x: x[:, -n:])
            return output

        plain, whole = model.last_logits, model.resume
        before = {name: model.__dict__.get(name) for name in ("last_logits", "resume")}

        def last_logits(prompts, grad: bool = False) -> Tensor:
            batch = model.tokenize(prompts)
            logits = plain(batch, grad)
            with torch.set_grad_enabled(grad):
                return contrasted(logits, lambda x: x[torch.arange(len(batch), device=x.device), batch.last])

        def resume(layer: int, *args, **kwargs) -> Tensor:
            if layer >= min(layers):
                raise ValueError(f"layer {layer}: DoLa reads x{min(layers)}, which this run does not compute")
            return whole(layer, *args, **kwargs)

        handle = model.hf.register_forward_hook(at_output)
        model.last_logits, model.resume = last_logits, resume
        try:
            with model.taps.active([keep(layer) for layer in layers]):
                yield model
        finally:
            handle.remove()
            for name, method in before.items():
                delattr(model, name)
                if method is not None:
                    setattr(model, name, method)
