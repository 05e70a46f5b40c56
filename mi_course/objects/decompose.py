"""The residual stream as a sum of writes, and logits as a sum over the same writes (survey section 2.2, Eq. 1-6).

    x^L = embedding (+ position) + sum over heads of their writes + b_O of each layer + FFN writes

This is exact for the state *before* the final norm. Logits lie behind the norm; they split only after its scale is
frozen at the value of the actual run (audit A2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import weights as parts
from mi_course.models.record import record
from mi_course.objects.weights import folded_unembedding


@dataclass(frozen=True)
class Decomposition:
    """Writes to the residual stream. names: n labels; writes [n, B, T, d]; total [B, T, d], the recorded x^L.

    The labels are sites ("embed", "pos", "L3H5", "mlp2") and "attn2.bias" for the b_O of a layer.
    """

    names: list[str]
    writes: Tensor
    total: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """The write of one component, [B, T, d]."""
        if name not in self.names:
            raise KeyError(f"{name!r} writes nothing here; writers are {', '.join(self.names)}")
        return self.writes[self.names.index(name)]


@dataclass(frozen=True)
class LogitAttribution:
    """Direct contributions to a logit, or to a difference of two. names: n labels; values [n, B]; logits [B].

    values sum to logits, which are those before any soft-cap. The label "bias" is what the final norm's bias and the
    unembedding's bias add.
    "Direct" means along the residual stream alone: what later layers make of a write counts for those layers.
    """

    names: list[str]
    values: Tensor
    logits: Tensor

    def __getitem__(self, name: str) -> Tensor:
        """The contribution of one component, [B]."""
        if name not in self.names:
            raise KeyError(f"{name!r} contributes nothing here; contributors are {', '.join(self.names)}")
        return self.values[self.names.index(name)]


def decompose_residual(model, prompts) -> Decomposition:
    """Every write to the residual stream on `prompts`; their sum is x^L up to float error.

    In families with post-norms (Gemma 2) a write is the component's part of the post-norm's output, with the scale of
    the post-norm frozen at the actual run, so that writes still add up (audit A1). Active interventions apply.
    Memory: (layers * (heads + 2) + 2) * B * T * d numbers; give few prompts at a time.
    """
    L, has_pos = model.n_layers, model.family.pos is not None
    final = f"x{L}"
    sites = ["embed", final] + ["pos"] * has_pos
    sites += [f"{kind}{layer}" for layer in range(L) for kind in ("result", "attn")]
    sites += [f"mlp{layer}.write" for layer in range(L)]
    cache = record(model, prompts, sites, logits=False)

    names, writes = ["embed"], [cache["embed"]]
    if has_pos:
        names, writes = names + ["pos"], writes + [cache["pos"].expand_as(cache["embed"])]
    for layer in range(L):
        through = _through_post_norm(model, layer, cache[f"attn{layer}"])
        for head in range(model.n_heads):
            names.append(f"L{layer}H{head}")
            writes.append(through(cache[f"result{layer}"][:, :, head]))
        names.append(f"attn{layer}.bias")
        writes.append(through(parts.attention(model, layer).b_O.detach()).expand_as(cache["embed"]))
        names.append(f"mlp{layer}")
        writes.append(cache[f"mlp{layer}.write"])
    return Decomposition(names, torch.stack(writes), cache[final])


def _through_post_norm(model, layer: int, block_output: Tensor):
    """What a part of the block output becomes in the stream: itself, or itself * frozen scale * gain."""
    norm = parts.post_norm(model, layer, "attn")
    if norm is None:
        return lambda part: part
    scale = norm.scale(block_output)
    return lambda part: (part * scale * norm.gain).detach()


def direct_logit_attribution(model, prompts, tokens, foils=None) -> LogitAttribution:
    """What each component adds directly to the logit of `tokens` (minus that of `foils`) at each prompt's last token.

    tokens, foils: one token per prompt, text or ids. value = (write, centred) * frozen scale * gain . W_U[:, token].
    The values, with "bias", sum to the logit before any soft-cap (Gemma 2 caps afterwards: the order of logits is kept,
    their sizes shrink). What is the same for all inputs (b_O, the final bias) has entries of its own.
    """
    parts_of_stream = decompose_residual(model, prompts)
    batch = model.tokenize(prompts)
    rows = torch.arange(len(batch), device=parts_of_stream.total.device)
    last = batch.last.to(rows.device)
    x = parts_of_stream.total[rows, last]                                       # [B, d]
    writes = parts_of_stream.writes[:, rows, last]                              # [n, B, d]

    W, b = (tensor.detach() for tensor in folded_unembedding(model))            # centring is folded into W
    token = _ids(tokens, "tokens", len(batch), model)
    direction, bias = W.T[token], b[token]                                      # [B, d], [B]
    if foils is not None:
        foil = _ids(foils, "foils", len(batch), model)
        direction, bias = direction - W.T[foil], bias - b[foil]

    scale = parts.unembedding(model).norm.scale(x)                              # [B, 1], frozen
    values = (writes * scale * direction).sum(-1)
    logits = (x * scale * direction).sum(-1) + bias
    return LogitAttribution([*parts_of_stream.names, "bias"], torch.cat([values, bias[None]]), logits)


def neuron_writes(model, prompts, layer: int, position: int = -1) -> Tensor:
    """s_j v_j for every neuron of a layer at one position, [B, d_ffn, d]; they sum to the block output - b_out (A9)."""
    activation = record(model, prompts, [f"neurons{layer}@{position}"], logits=False)[f"neurons{layer}@{position}"]
    return activation[..., None] * parts.ffn(model, layer).W_out.detach()


def _ids(tokens, argument: str, n: int, model) -> Tensor:
    if isinstance(tokens, str) or len(tokens) != n:
        raise ValueError(f"{argument} must have one token per prompt, {n} in all; got {tokens!r}")
    ids = [model.token_id(token) if isinstance(token, str) else int(token) for token in tokens]
    return torch.tensor(ids, device=model.device)
