"""Is the family's row true of this model? Every load recomputes each block from the weights the row points at.

One forward pass of two short rows (one of them padded), then, layer by layer:

    q, k, v  = norm(x) W + b, normed and rotated       z       = pattern v
    scores   = scale q k, soft-capped                  attn    = sum over heads of z W_O, + b_O
    pattern  rows sum to one                           s       = act(...) from the input norm;  mlp = s W_out + b_out
    x^{l+1}  = x^l + attn.write + mlp.write            logits  = softcap(norm(x^L) W_U + b_U)
    logits with all taps active = logits without any

A row that is wrong in any part fails one of these, so it is an error and never a wrong number.
"""

import torch
from torch import Tensor

from . import weights
from .batch import Batch
from .record import Cache, record

# relative to the largest value
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.06, torch.float16: 0.02}


class SelfCheckError(ValueError):
    """The family's row does not describe this model; the message names the identity that fails."""


def check(model) -> None:
    """Raise SelfCheckError unless every identity above holds on a short padded batch."""
    batch = _batch(model)
    plain = model(batch)
    try:
        _check_all(model, batch, plain)
    except (AttributeError, KeyError, IndexError, RuntimeError, TypeError) as error:
        raise SelfCheckError(
            f"{model.name}: the row of {model.family.name!r} in mi_course.models.families points at a part that this "
            f"model does not have or use as the row says ({type(error).__name__}: {error})"
        ) from error


def _check_all(model, batch: Batch, plain: Tensor) -> None:
    layers = range(model.n_layers)
    parts = ["z", "q", "k", "v", "scores", "pattern", "neurons", "attn", "mlp"] + ["gate", "up"] * model.family.gated
    sites = [f"{part}{layer}" for layer in layers for part in parts]
    sites += [f"{branch}{layer}.write" for layer in layers for branch in ("attn", "mlp")]
    sites += [f"x{layer}" for layer in range(model.n_layers + 1)] + ["embed"] + ["pos"] * (model.family.pos is not None)
    with torch.no_grad():
        cache = record(model, batch, sites)
        _same(model, "logits under taps = logits", "private_attention, softmax_float32", cache.logits, plain)
        _check_ends(model, cache)
        for layer in layers:
            _check_attention(model, cache, layer)
            _check_ffn(model, cache, layer)


def _batch(model) -> Batch:
    width = min(6, model.n_ctx)
    ids = torch.arange(2 * width, device=model.device).view(2, width) * 7 % model.n_vocab
    mask = torch.ones_like(ids)
    mask[0, : width // 3] = 0
    return Batch.from_mask(ids, mask)


def _check_ends(model, cache: Cache) -> None:
    table, ids = weights.embedding(model), cache.batch.ids
    _same(model, "embed = scale W_E", "embed", cache["embed"], table.W_E[ids] * table.scale)
    start = cache["embed"]
    if table.W_pos is not None:
        _same(model, "pos = W_pos", "pos, pos_offset", cache["pos"], table.W_pos[cache.batch.position_ids])
        start = start + cache["pos"]
    _same(model, "x0 = embed + pos", "embed, pos", cache["x0"], start)
    lens = weights.unembedding(model)(cache[f"x{model.n_layers}"])
    _same(model, "logits = softcap(norm(xL) W_U + b_U)", "final_norm, unembed, norm, gain_offset", cache.logits, lens)


def _check_attention(model, cache: Cache, layer: int) -> None:
    w, positions = weights.attention(model, layer), cache.batch.position_ids
    x = weights.attn_norm(model, layer)(cache[f"x{layer}"])
    q, k = _project(x, w.W_Q, w.b_Q), _project(x, w.W_K, w.b_K)
    q, k = (norm(y) if norm else y for norm, y in ((w.q_norm, q), (w.k_norm, k)))
    q, k = weights.rotate(model, q, positions), weights.rotate(model, k, positions)
    fields = "attn_norm, norm, rotary, qk_norm, q/k/v or qkv, qkv_layout"
    _same(model, f"layer {layer}: q from norm(x) W_Q", fields, cache[f"q{layer}"], q)
    _same(model, f"layer {layer}: k from norm(x) W_K", fields, cache[f"k{layer}"], k)
    _same(model, f"layer {layer}: v = norm(x) W_V + b_V", fields, cache[f"v{layer}"], _project(x, w.W_V, w.b_V))

    k, v = (cache[f"{name}{layer}"].repeat_interleave(w.groups, dim=2) for name in "kv")
    scores = w.scale * torch.einsum("bqhn,bkhn->bhqk", cache[f"q{layer}"].float(), k.float())
    scores = scores if w.softcap is None else w.softcap * torch.tanh(scores / w.softcap)
    _same(model, f"layer {layer}: scores = scale q k", "q_prescaled", cache[f"scores{layer}"].float(), scores)
    pattern = cache[f"pattern{layer}"]
    rows = pattern.float().sum(-1)
    _same(model, f"layer {layer}: pattern rows sum to one", "attn", rows, torch.ones_like(rows))
    z = torch.einsum("bhqk,bkhn->bqhn", pattern, v)
    _same(model, f"layer {layer}: z = pattern v", "attn, o", cache[f"z{layer}"], z)
    results = torch.einsum("bthn,hnd->btd", cache[f"z{layer}"], w.W_O) + w.b_O
    _same(model, f"layer {layer}: attn = sum of results + b_O", "o", cache[f"attn{layer}"], results)


def _check_ffn(model, cache: Cache, layer: int) -> None:
    w, x, attn = weights.ffn(model, layer), cache[f"x{layer}"], cache[f"attn{layer}.write"]
    for branch in ("attn", "mlp"):
        norm = weights.post_norm(model, layer, branch)
        write = cache[f"{branch}{layer}"] if norm is None else norm(cache[f"{branch}{layer}"])
        _same(model, f"layer {layer}: {branch}.write", f"{branch}_post_norm", cache[f"{branch}{layer}.write"], write)
    seen = x if model.family.is_parallel(model.config) else x + attn
    seen = weights.mlp_norm(model, layer)(seen)
    if model.family.gated:
        gate, up = seen @ w.W_gate + w.b_gate, seen @ w.W_up + w.b_up
        _same(model, f"layer {layer}: gate from norm(x)", "parallel, mlp_norm, gate", cache[f"gate{layer}"], gate)
        _same(model, f"layer {layer}: up from norm(x)", "parallel, mlp_norm, up", cache[f"up{layer}"], up)
        neurons = w.act(cache[f"gate{layer}"]) * cache[f"up{layer}"]
    else:
        neurons = w.act(seen @ w.W_in + w.b_in)
    _same(model, f"layer {layer}: s = act(...)", "parallel, mlp_norm, mlp_in, act", cache[f"neurons{layer}"], neurons)
    out = cache[f"neurons{layer}"] @ w.W_out + w.b_out
    _same(model, f"layer {layer}: mlp = s W_out + b_out", "mlp_out", cache[f"mlp{layer}"], out)
    total = x + attn + cache[f"mlp{layer}.write"]
    _same(model, f"layer {layer}: writes sum to the next state", "parallel, post norms", cache[f"x{layer + 1}"], total)


def _project(x: Tensor, W: Tensor, b: Tensor) -> Tensor:
    """x [B, T, d], W [d, H, n], b [H, n] -> [B, T, H, n]."""
    return torch.einsum("btd,dhn->bthn", x, W) + b


def _same(model, identity: str, fields: str, got: Tensor, expected: Tensor) -> None:
    error = (got - expected).abs().max().item()
    largest = max(expected.abs().max().item(), 1e-6)
    if not error <= TOLERANCE[model.dtype] * largest:
        raise SelfCheckError(
            f"{model.name}: '{identity}' fails (off by {error:.2g}, largest value {largest:.2g}). The row of "
            f"{model.family.name!r} in mi_course.models.families does not describe this model; look at {fields}"
        )
