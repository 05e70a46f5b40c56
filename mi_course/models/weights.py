"""The weights of a model in one convention, whatever the storage: row vectors, y = x W + b.

`nn.Linear` stores W transposed (out x in), GPT-2's `Conv1D` stores it as is; q, k and v may be fused, in two layouts;
keys and values may be shared by groups of heads. Here every matrix is input x output, with heads as an own axis
(survey Eq. 4-6, Table 1; audit A5-A9). Tensors are views of the parameters where storage allows it, so they cost
nothing and gradients reach the parameters; do not write into them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Attention:
    """Weights of one attention block. H heads, H_kv key-value heads, H = groups * H_kv.

    W_Q [d, H, d_head], W_K and W_V [d, H_kv, d_head], W_O [H, d_head, d]; b_Q, b_K, b_V per head, b_O [d] (zeros
    where the model has no bias). score = scale * q k, then `softcap` if not None; q_norm and k_norm (Qwen3) act on
    each head before rotation. window: local attention reaches this many tokens back (itself included), or None.
    """

    W_Q: Tensor
    b_Q: Tensor
    W_K: Tensor
    b_K: Tensor
    W_V: Tensor
    b_V: Tensor
    W_O: Tensor
    b_O: Tensor
    scale: float
    softcap: float | None
    q_norm: "Norm | None"
    k_norm: "Norm | None"
    window: int | None

    @property
    def groups(self) -> int:
        """Query heads per key-value head (1 without grouped heads)."""
        return self.W_Q.shape[1] // self.W_K.shape[1]

    def kv_head(self, head: int) -> int:
        """The key-value head that query head `head` reads."""
        return head // self.groups


@dataclass(frozen=True)
class FFN:
    """Weights of one FFN. Ungated: s = act(x W_in + b_in). Gated: s = act(x W_gate + b_gate) * (x W_up + b_up).

    Output: s W_out + b_out. W_in, W_gate, W_up [d, d_ffn]; W_out [d_ffn, d]. The key of neuron j is **column** j of
    W_in (or W_gate and W_up), its value **row** j of W_out (audit A9). Absent matrices are None, absent biases zeros.
    """

    W_in: Tensor | None
    b_in: Tensor | None
    W_gate: Tensor | None
    b_gate: Tensor | None
    W_up: Tensor | None
    b_up: Tensor | None
    W_out: Tensor
    b_out: Tensor
    act: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Norm:
    """A normalisation: "layer" (x - mean) / std * gain + bias, or "rms" x / rms * gain (any offset of the gain added).

    Called on x [..., d] it computes in float32 or better and returns x's dtype, as the models do. `scale(x)` gives the
    divisor 1/std or 1/rms alone, [..., 1], which direct attribution freezes.
    """

    kind: str
    gain: Tensor
    bias: Tensor
    eps: float

    def centre(self, x: Tensor) -> Tensor:
        return x - x.mean(-1, keepdim=True) if self.kind == "layer" else x

    def scale(self, x: Tensor) -> Tensor:
        return (self.centre(_wide(x)).pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()

    def __call__(self, x: Tensor) -> Tensor:
        wide, shape = _wide(x), x.shape[-1:]
        gain, bias = self.gain.to(wide.dtype), self.bias.to(wide.dtype)
        if self.kind == "layer":  # centre(x) * scale(x) * gain + bias, in one kernel
            return nn.functional.layer_norm(wide, shape, gain, bias, self.eps).to(x.dtype)
        return (nn.functional.rms_norm(wide, shape, gain, self.eps) + bias).to(x.dtype)


@dataclass(frozen=True)
class Unembedding:
    """logits = softcap(norm(x^L) W_U + b_U). W_U [d, V]; b_U [V] (zeros if absent); softcap c: c tanh(y / c)."""

    norm: Norm
    W_U: Tensor
    b_U: Tensor
    softcap: float | None

    def __call__(self, x: Tensor) -> Tensor:
        """Residual state x^L [..., d] -> logits [..., V]. The norm is applied here: give the state before it."""
        logits = self.norm(x) @ self.W_U + self.b_U
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


@dataclass(frozen=True)
class Embedding:
    """x^0 = scale W_E[token] + W_pos[position]. W_E [V, d]; W_pos [n_ctx, d], None with RoPE; tied: W_U is W_E^T."""

    W_E: Tensor
    W_pos: Tensor | None
    scale: float
    tied: bool


def attention(model, layer: int) -> Attention:
    """Attention weights of block `layer`, in one convention for every family."""
    family, config, block = model.family, model.config, model.block(layer)
    H, K, n = model.n_heads, model.n_kv_heads, model.d_head
    if family.qkv is None:
        parts = [_linear(block.get_submodule(path)) for path in (family.q, family.k, family.v)]
        (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = parts
        split = [(W_Q, b_Q, H), (W_K, b_K, K), (W_V, b_V, K)]
    else:
        split = _split_fused(*_linear(block.get_submodule(family.qkv)), family.qkv_layout, H, K, n)
    (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = [(W.unflatten(1, (m, n)), b.unflatten(0, (m, n))) for W, b, m in split]
    W_O, b_O = attention_output(model, layer)
    module = block.get_submodule(family.attn)
    return Attention(
        W_Q, b_Q, W_K, b_K, W_V, b_V, W_O, b_O,
        scale=score_scale(model, layer),
        softcap=getattr(config, "attn_logit_softcapping", None),
        q_norm=_norm(module.q_norm, family) if family.qk_norm else None,
        k_norm=_norm(module.k_norm, family) if family.qk_norm else None,
        window=_window(module, config),
    )  # fmt: skip


def attention_output(model, layer: int) -> tuple[Tensor, Tensor]:
    """(W_O [H, d_head, d], b_O [d]) alone, where the rest of `attention` is not needed."""
    W_O, b_O = _linear(model.block(layer).get_submodule(model.family.o))
    return W_O.unflatten(0, (model.n_heads, model.d_head)), b_O


def ffn(model, layer: int) -> FFN:
    """FFN weights of block `layer`, in one convention for every family."""
    family, block = model.family, model.block(layer)
    W_in = b_in = W_gate = b_gate = W_up = b_up = None
    if family.mlp_in is not None:
        W_in, b_in = _linear(block.get_submodule(family.mlp_in))
    elif family.gate_up is not None:
        W, b = _linear(block.get_submodule(family.gate_up))
        (W_gate, W_up), (b_gate, b_up) = W.chunk(2, dim=1), b.chunk(2)
    else:
        W_gate, b_gate = _linear(block.get_submodule(family.gate))
        W_up, b_up = _linear(block.get_submodule(family.up))
    W_out, b_out = _linear(block.get_submodule(family.mlp_out))
    return FFN(W_in, b_in, W_gate, b_gate, W_up, b_up, W_out, b_out, act=block.get_submodule(family.act))


def attn_norm(model, layer: int) -> Norm:
    """The norm that attention reads through: its input is LN(x^l)."""
    return _norm(model.block(layer).get_submodule(model.family.attn_norm), model.family)


def mlp_norm(model, layer: int) -> Norm:
    """The norm that the FFN reads through: its input is LN(x^mid), or LN(x^l) in parallel blocks."""
    name = model.family.mlp_norm or model.family.attn_norm
    return _norm(model.block(layer).get_submodule(name), model.family)


def post_norm(model, layer: int, branch: str) -> Norm | None:
    """The norm between block output and stream (Gemma 2), or None. branch: "attn" or "mlp"."""
    if branch not in ("attn", "mlp"):
        raise ValueError(f"branch {branch!r} does not exist; choose 'attn' or 'mlp'")
    name = model.family.attn_post_norm if branch == "attn" else model.family.mlp_post_norm
    return None if name is None else _norm(model.block(layer).get_submodule(name), model.family)


def embedding(model) -> Embedding:
    """Token and position embeddings (O1)."""
    module = model.hf.get_submodule(model.family.embed)
    W_pos = None
    if model.family.pos is not None:
        W_pos = model.hf.get_submodule(model.family.pos).weight[model.family.pos_offset :]
    head = model.hf.get_submodule(model.family.unembed)
    scale = getattr(module, "embed_scale", None)
    return Embedding(
        module.weight,
        W_pos,
        scale=1.0 if scale is None else float(scale.to(module.weight.dtype)),
        tied=head.weight is module.weight,
    )


def unembedding(model) -> Unembedding:
    """Final norm, W_U [d, V], bias and soft-cap (O22)."""
    W_U, b_U = _linear(model.hf.get_submodule(model.family.unembed))
    norm = _norm(model.hf.get_submodule(model.family.final_norm), model.family)
    return Unembedding(norm, W_U, b_U, softcap=getattr(model.config, "final_logit_softcapping", None))


def score_scale(model, layer: int) -> float:
    """The factor on q k in the scores: 1/sqrt(d_head) in most families, 1 in gpt_neo, configured in gemma2."""
    module = model.block(layer).get_submodule(model.family.attn)
    if model.family.private_attention:
        return 1.0 / float(getattr(module, "scale_attn", 1.0))
    return float(module.scaling)


def rotate(model, x: Tensor, position_ids: Tensor) -> Tensor:
    """Rotary embedding of queries or keys x [B, T, H, d_head] at position_ids [B, T]; x itself without RoPE.

    The score of a rotated pair depends on the offset of their positions only (audit A5). Partial rotation leaves the
    last coordinates as they are.
    """
    if model.family.rotary is None:
        return x
    if model.family.rotary == "pairs":
        cos, sin = _cos_sin_pairs(model, position_ids)
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)  # (a, b) -> (-b, a) in each pair
        turned = turned[..., : cos.shape[-1]]
    else:
        cos, sin = model.hf.get_submodule(model.family.rotary_module)(x, position_ids)  # [B, T, n_rotated]
        first, second = x[..., : cos.shape[-1]].chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    cos, sin, n = cos[:, :, None].to(x.dtype), sin[:, :, None].to(x.dtype), cos.shape[-1]
    return torch.cat((x[..., :n] * cos + turned * sin, x[..., n:]), dim=-1)


def _cos_sin_pairs(model, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """GPT-J keeps one table of sines and cosines in every attention module: [position, sin | cos]."""
    table = model.block(0).get_submodule(model.family.attn).embed_positions.to(position_ids.device)
    sin, cos = table[position_ids].chunk(2, dim=-1)
    return cos.repeat_interleave(2, dim=-1), sin.repeat_interleave(2, dim=-1)


def _linear(module: nn.Module) -> tuple[Tensor, Tensor]:
    """(W [in, out], b [out]) of an `nn.Linear` or a GPT-2 `Conv1D`."""
    W = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
    b = getattr(module, "bias", None)
    return W, W.new_zeros(W.shape[1]) if b is None else b


def _split_fused(W: Tensor, b: Tensor, layout: str, H: int, K: int, n: int) -> list[tuple[Tensor, Tensor, int]]:
    """Fused projection -> [(W_Q, b_Q, H), (W_K, b_K, K), (W_V, b_V, K)], each W [d, heads * n]."""
    if layout == "blocks":
        sizes = [H * n, K * n, K * n]
        return list(zip(W.split(sizes, dim=1), b.split(sizes), (H, K, K)))
    W, b = W.unflatten(1, (H, 3, n)), b.unflatten(0, (H, 3, n))
    return [(W[:, :, i].flatten(1), b[:, i].flatten(), H) for i in range(3)]


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _norm(module: nn.Module, family) -> Norm:
    gain = module.weight if family.gain_offset == 0 else module.weight.float() + family.gain_offset
    bias = getattr(module, "bias", None)
    eps = getattr(module, "eps", None)
    return Norm(
        family.norm,
        gain,
        torch.zeros_like(gain) if bias is None else bias,
        float(module.variance_epsilon if eps is None else eps),
    )


def _window(module: nn.Module, config) -> int | None:
    """Tokens that local attention sees (itself included), or None."""
    if getattr(module, "attention_type", None) == "local":
        return config.window_size
    window = getattr(module, "sliding_window", None)
    if hasattr(module, "sliding_window"):
        return window
    return getattr(config, "sliding_window", None)
