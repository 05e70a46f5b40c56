"""The forward pass of every family written out, from the weights: what edges need and no hook gives.

Hooks read and write whole activations. An edge is less: what one receiver alone reads. So here each head's q, k and v,
each FFN and the logits can be given an input of their own. All weights are detached (frozen), so a backward pass
computes gradients of activations only. Tests compare every step with the Hugging Face model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from mi_course.models import weights


@dataclass
class States:
    """What one run leaves, by layer: x (L + 1 of them), attn (before any post-norm), attn_write, mlp_write [B, T, d];
    q, k, v, z [B, T, heads, d_head]; and the logits [B, V] at the last token."""

    x: list[Tensor]
    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    z: list[Tensor]
    attn: list[Tensor]
    attn_write: list[Tensor]
    mlp_write: list[Tensor]
    logits: Tensor | None = None


class Blocks:
    """The blocks of a model on one batch of prompts. Axes before [B, T] are free: states may be [cells, B, T, d].

    `last=True` computes a step for the last real token of each prompt alone ([..., B, 1, d]): all that the last block
    is needed for, since the metric is read there.
    """

    def __init__(self, model, prompts):
        layers = range(model.n_layers)
        self.model, self.batch, self.n_layers = model, model.tokenize(prompts), model.n_layers
        self.parallel = model.family.is_parallel(model.config)
        self.attention = [_frozen(weights.attention(model, layer)) for layer in layers]
        self.ffn = [_frozen(weights.ffn(model, layer)) for layer in layers]
        self.attn_norm = [_frozen(weights.attn_norm(model, layer)) for layer in layers]
        self.mlp_norm = [_frozen(weights.mlp_norm(model, layer)) for layer in layers]
        self.attn_post = [_frozen(weights.post_norm(model, layer, "attn")) for layer in layers]
        self.mlp_post = [_frozen(weights.post_norm(model, layer, "mlp")) for layer in layers]
        self.unembedding = _frozen(weights.unembedding(model))
        self._masks: dict = {}

    def at_last(self, x: Tensor) -> Tensor:
        """[..., B, T, d] -> [..., B, 1, d] at the last real tokens."""
        rows = torch.arange(len(self.batch), device=x.device)
        return x[..., rows, self.batch.last, :].unsqueeze(-2)

    def x0(self) -> Tensor:
        """The input of block 0, [B, T, d]: token embedding plus position embedding where there is one."""
        e = weights.embedding(self.model)
        x = e.W_E.detach()[self.batch.ids] * e.scale
        return x if e.W_pos is None else x + e.W_pos.detach()[self.batch.position_ids]

    # -- attention -------------------------------------------------------------------------------------------------

    def raw(self, layer: int, part: str, normed: Tensor, heads=slice(None)) -> Tensor:
        """normed W + b by head: q, k or v before the norm of queries and keys and before rotation."""
        w = self.attention[layer]
        W, b = getattr(w, f"W_{part.upper()}")[:, heads], getattr(w, f"b_{part.upper()}")[heads]
        return (normed @ W.flatten(1)).unflatten(-1, W.shape[1:]) + b

    def finish(self, layer: int, part: str, y: Tensor, last: bool = False) -> Tensor:
        """The norm of queries and keys (Qwen3) and the rotation (RoPE); values stay as they are."""
        if part == "v":
            return y
        norm = getattr(self.attention[layer], f"{part}_norm")
        positions = self.batch.position_ids
        if last:
            positions = self.at_last(positions[..., None])[..., 0]
        return weights.rotate(self.model, y if norm is None else norm(y), positions)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, last: bool = False) -> Tensor:
        """z = pattern v: q [..., B, T or 1, H, n], k and v [..., B, T, H or fewer, n] -> like q."""
        w = self.attention[layer]
        groups = q.shape[-2] // k.shape[-2]
        if groups > 1:
            k, v = k.repeat_interleave(groups, dim=-2), v.repeat_interleave(groups, dim=-2)
        q, k, v = (y.transpose(-3, -2) for y in (q, k, v))
        scores = (q @ k.transpose(-1, -2)) * w.scale
        if w.softcap is not None:
            scores = w.softcap * torch.tanh(scores / w.softcap)
        pattern = torch.softmax(scores.float() + self._mask(w.window, last), dim=-1).to(v.dtype)
        return (pattern @ v).transpose(-3, -2)

    def _mask(self, window: int | None, last: bool) -> Tensor:
        """[B, 1, T, T], 0 where a query may look and a very large negative number elsewhere."""
        if (window, last) not in self._masks:
            real = self.batch.mask.bool()
            column = torch.arange(real.shape[1], device=real.device)
            back = column[:, None] - column[None]
            seen = (back >= 0) & (back < (window or real.shape[1])) & real[:, None]
            seen = self.at_last(seen) if last else seen
            hidden = torch.finfo(torch.float32).min
            self._masks[window, last] = torch.zeros(seen.shape, device=real.device).masked_fill(~seen, hidden)[:, None]
        return self._masks[window, last]

    def attn(self, layer: int, z: Tensor) -> Tensor:
        """Sum of the heads' results z W_O, plus b_O: [..., B, T, H, n] -> [..., B, T, d]."""
        w = self.attention[layer]
        return z.flatten(-2) @ w.W_O.flatten(0, 1) + w.b_O

    def attn_to_stream(self, layer: int, attn: Tensor) -> Tensor:
        """What the block output of attention becomes on its way to the stream: itself, or its post-norm."""
        return attn if self.attn_post[layer] is None else self.attn_post[layer](attn)

    def head_writes(self, layer: int, z: Tensor) -> Tensor:
        """What each head adds to the stream, [H, ..., B, T, d]; a post-norm's scale is that of this run."""
        writes = torch.einsum("...hn,hnd->h...d", z, self.attention[layer].W_O)
        norm = self.attn_post[layer]
        return writes if norm is None else norm.centre(writes) * norm.scale(self.attn(layer, z)) * norm.gain

    # -- FFN and output --------------------------------------------------------------------------------------------

    def mlp_write(self, layer: int, x: Tensor) -> Tensor:
        """What the FFN adds to the stream when it reads x [..., B, T, d]."""
        w, normed = self.ffn[layer], self.mlp_norm[layer](x)
        if w.W_in is not None:
            neurons = w.act(normed @ w.W_in + w.b_in)
        else:
            neurons = w.act(normed @ w.W_gate + w.b_gate) * (normed @ w.W_up + w.b_up)
        out = neurons @ w.W_out + w.b_out
        return out if self.mlp_post[layer] is None else self.mlp_post[layer](out)

    def after_attention(self, layer: int, x: Tensor, attn_write: Tensor) -> Tensor:
        """x^{l+1} from x^l and what attention writes."""
        mid = x + attn_write
        return mid + self.mlp_write(layer, x if self.parallel else mid)

    def block(self, layer: int, x: Tensor, last: bool = False) -> Tensor:
        """x^{l+1} from x^l."""
        normed = self.attn_norm[layer](x)
        here = self.at_last(normed) if last else normed
        q = self.finish(layer, "q", self.raw(layer, "q", here), last)
        k, v = (self.finish(layer, part, self.raw(layer, part, normed)) for part in "kv")
        attn = self.attn(layer, self.attend(layer, q, k, v, last))
        return self.after_attention(layer, self.at_last(x) if last else x, self.attn_to_stream(layer, attn))

    def logits(self, x: Tensor, layer: int) -> Tensor:
        """Logits [..., B, V] at the last real tokens, from x as x^layer. x^L may be given at the last tokens alone."""
        for current in range(layer, self.n_layers):
            x = self.block(current, x, last=current == self.n_layers - 1)
        return self.unembedding((x if x.shape[-2] == 1 else self.at_last(x)).squeeze(-2))

    def run(self, x0: Tensor, add: dict[tuple[int, str], Tensor] | None = None) -> States:
        """A whole run from x0 [B, T, d] that keeps its states.

        add: what to add to the write of a block, (layer, "heads" or "mlp") -> [B, T, d].
        """
        add = add or {}
        s = States([x0], [], [], [], [], [], [], [])
        for layer in range(self.n_layers):
            x = s.x[-1]
            normed = self.attn_norm[layer](x)
            q, k, v = (self.finish(layer, part, self.raw(layer, part, normed)) for part in "qkv")
            s.q.append(q), s.k.append(k), s.v.append(v)
            s.z.append(self.attend(layer, q, k, v))
            s.attn.append(self.attn(layer, s.z[-1]))
            s.attn_write.append(self.attn_to_stream(layer, s.attn[-1]) + add.get((layer, "heads"), 0))
            mid = x + s.attn_write[-1]
            s.mlp_write.append(self.mlp_write(layer, x if self.parallel else mid) + add.get((layer, "mlp"), 0))
            s.x.append(mid + s.mlp_write[-1])
        s.logits = self.logits(s.x[-1], self.n_layers)
        return s

    def writes(self, s: States) -> Tensor:
        """Every sender's write in a run, [n_senders, B, T, d], in the order of `Graph.senders`."""
        heads = self.model.n_heads
        writes = s.x[0].new_empty(1 + self.n_layers * (heads + 1), *s.x[0].shape)
        writes[0] = s.x[0]
        for layer, parts in enumerate(writes[1:].split(heads + 1)):
            parts[:heads], parts[heads] = self.head_writes(layer, s.z[layer]), s.mlp_write[layer]
        return writes


def _frozen(part):
    """The weights of a part without their gradients. None stays None."""
    if part is None:
        return None
    changed = {}
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, Tensor):
            changed[field.name] = value.detach()
        elif isinstance(value, weights.Norm):
            changed[field.name] = _frozen(value)
    return replace(part, **changed)
