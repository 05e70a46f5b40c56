"""The one place where attention is computed by us: so that queries, keys, values, scores and pattern can be tapped.

These five are no module's input or output, so no hook sees them. transformers lets a model be pointed at a registered
attention function; GPT-J and GPT-Neo compute attention in a private method `_attn` instead. Both are replaced only
while somebody listens, and both do what the family's eager attention does, operation for operation: untouched
values give bit-equal logits.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

NAME = "mi_course"  # our entry in transformers' table of attention functions


@dataclass(frozen=True)
class Listener:
    """Who taps the attention of one module. tap(name, tensor) returns the tensor to go on with; name is one of five."""

    tap: Callable[[str, Tensor], Tensor]
    softmax_float32: bool
    q_factor: float = 1.0  # OPT: q arrives multiplied by this


_LISTENERS: dict[nn.Module, list[Listener]] = {}  # filled only while tapped


@contextmanager
def tapped(model, tap: Callable[[int, str, Tensor], Tensor]):
    """While active, `tap(layer, name, tensor)` sees and may replace q, k, v, scores and pattern of every layer.

    Shapes: q [B, T, H, d_head]; k, v [B, S, H_kv, d_head] with the cached past; scores, pattern [B, H, T, S].
    """
    family, modules = model.family, [block.get_submodule(model.family.attn) for block in model.blocks]
    listeners = [
        Listener(
            lambda name, tensor, layer=layer: tap(layer, name, tensor),
            family.softmax_float32,
            float(module.scaling) if family.q_prescaled else 1.0,
        )
        for layer, module in enumerate(modules)
    ]
    before = model.config._attn_implementation
    for module, listener in zip(modules, listeners):
        _LISTENERS.setdefault(module, []).append(listener)
        if family.private_attention:
            module._attn = _Private(module)
    if not family.private_attention:
        _register()
        model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = before
        for module, listener in zip(modules, listeners):
            _LISTENERS[module].remove(listener)
            if not _LISTENERS[module]:
                del _LISTENERS[module]
                vars(module).pop("_attn", None)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention_function)
    AttentionMaskInterface.register(NAME, eager_mask)


def attention_function(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_,
) -> tuple[Tensor, Tensor]:
    """Eager attention with taps. query [B, H, T, n], key and value [B, H_kv, S, n] -> (z [B, T, H, n], pattern)."""
    listeners = _LISTENERS.get(module, [])
    query, key, value = _tap_qkv(listeners, query, key, value)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = torch.matmul(query, key.transpose(-1, -2)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores = _tap(listeners, "scores", scores)
    if attention_mask is not None:
        scores = scores + attention_mask
    float32 = all(listener.softmax_float32 for listener in listeners)
    pattern = torch.softmax(scores, dim=-1, dtype=torch.float32 if float32 else None).to(value.dtype)
    pattern = nn.functional.dropout(_tap(listeners, "pattern", pattern), p=dropout, training=module.training)
    return torch.matmul(pattern, value).transpose(1, 2).contiguous(), pattern


class _Private:
    """`_attn` of GPT-J and GPT-Neo: scores in float32, no scale in GPT-Neo, whose local layers mask by a window."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __call__(self, query, key, value, attention_mask=None):
        module, listeners = self.module, _LISTENERS.get(self.module, [])
        query, key, value = _tap_qkv(listeners, query, key, value)
        scores = torch.matmul(query.float(), key.float().transpose(-1, -2))
        if hasattr(module, "scale_attn"):
            scores = scores / module.scale_attn
        scores = _tap(listeners, "scores", scores)
        if hasattr(module, "bias"):
            n_query, n_key = query.shape[-2], key.shape[-2]
            seen = module.bias[:, :, n_key - n_query : n_key, :n_key]
            scores = torch.where(seen, scores, torch.full_like(scores[:1, :1, :1, :1], torch.finfo(scores.dtype).min))
        if attention_mask is not None:
            scores = scores + attention_mask
        pattern = torch.softmax(scores, dim=-1).to(value.dtype)
        pattern = module.attn_dropout(_tap(listeners, "pattern", pattern))
        return torch.matmul(pattern, value), pattern


def _tap(listeners: list[Listener], name: str, tensor: Tensor) -> Tensor:
    for listener in listeners:
        tensor = listener.tap(name, tensor)
    return tensor


def _tap_qkv(listeners, query, key, value):
    """Heads come second in the models and third in our shapes; a prescaled query is shown unscaled."""
    for listener in listeners:
        seen = query.transpose(1, 2) / listener.q_factor if listener.q_factor != 1.0 else query.transpose(1, 2)
        new = listener.tap("q", seen)
        if new is not seen:
            # x + (new - old): an untouched query stays bit-equal although it was divided for reading
            change = (new - seen) * listener.q_factor
            query = query + change.transpose(1, 2) if listener.q_factor != 1.0 else new.transpose(1, 2)
        key = listener.tap("k", key.transpose(1, 2)).transpose(1, 2)
        value = listener.tap("v", value.transpose(1, 2)).transpose(1, 2)
    return query, key, value
