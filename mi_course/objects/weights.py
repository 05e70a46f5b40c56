"""Weights as interpretable objects (survey section 2.3 and 2.4): what one head attends by and copies, what one neuron
reads and writes, and what the unembedding reads.

`mi_course.models.weights` brings the matrices of every architecture into one convention; here they are cut into the
objects of Table 1 and multiplied into the two circuits of a head. Row vectors throughout: y = x W.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import weights as parts


@dataclass(frozen=True)
class Head:
    """The weights of one query head: W_Q, W_K, W_V [d, d_head], W_O [d_head, d], biases b_Q, b_K, b_V [d_head].

    With grouped key-value heads (GQA), W_K and W_V belong to key-value head `kv_head` and are shared by its group, so
    an edit of them changes several heads (audit A6). The model's b_O belongs to the block, to no head.
    """

    layer: int
    head: int
    kv_head: int
    W_Q: Tensor
    W_K: Tensor
    W_V: Tensor
    W_O: Tensor
    b_Q: Tensor
    b_K: Tensor
    b_V: Tensor
    scale: float
    softcap: float | None
    q_norm: parts.Norm | None
    k_norm: parts.Norm | None
    rotation: Callable[[int], Tensor]

    @property
    def W_OV(self) -> Tensor:
        """OV circuit (O21): W_V W_O, [d, d] of rank at most d_head. What is copied from where the head looks.

        result_i = sum_j A_ij (x_j W_OV + b_V W_O), with x the normed states and A the pattern; exact given A.
        Column-vector papers (Elhage et al. 2021) write the transpose, W_O W_V (audit A5).
        """
        return self.W_V @ self.W_O

    def qk_matrix(self, offset: int = 0, with_bias: bool = False) -> Tensor:
        """QK circuit (O20): W_Q R W_K^T, [d, d] of rank at most d_head. By what the head chooses where to look.

        offset = position of the query minus position of the key. Without RoPE, R is the identity and one matrix serves
        all pairs; with RoPE there is one matrix per offset (audit A5).

        with_bias adds one row and column, for states with a 1 appended: a bias is an input that is always on. Then
        x_i qk_matrix x_j^T times `scale` is the score before soft-cap, mask and softmax. Under QK-norm (Qwen3) the
        gains are included, and the score is this times the two frozen scales 1/rms(q_i) and 1/rms(k_j).
        """
        W_Q, W_K = self.W_Q, self.W_K
        if with_bias:
            W_Q, W_K = torch.cat([W_Q, self.b_Q[None]]), torch.cat([W_K, self.b_K[None]])
        if self.q_norm is not None:
            W_Q, W_K = W_Q * self.q_norm.gain, W_K * self.k_norm.gain
        return W_Q @ self.rotation(offset) @ W_K.T

    def scores(self, x: Tensor) -> Tensor:
        """Attention scores from the QK circuit alone: normed states x [T, d] -> [T, T], before mask and softmax.

        Slow, one matrix per offset: it is here to be compared with `record(model, prompt, "L3H5.scores")`.
        """
        T = len(x)
        if self.q_norm is not None:
            q_scale = self.q_norm.scale(x @ self.W_Q + self.b_Q)
            k_scale = self.k_norm.scale(x @ self.W_K + self.b_K)
        ones = torch.cat([x, x.new_ones(T, 1)], dim=1)
        scores = x.new_empty(T, T)
        for offset in range(1 - T, T):
            i = torch.arange(max(0, offset), min(T, T + offset), device=x.device)
            j = i - offset
            scores[i, j] = ((ones[i] @ self.qk_matrix(offset, with_bias=True)) * ones[j]).sum(-1)
        if self.q_norm is not None:
            scores = q_scale * scores * k_scale.T
        scores = self.scale * scores
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def head(model, layer: int, head: int) -> Head:
    """The weights of head `head` in layer `layer`. Raises ValueError when the model has no such head."""
    _check(layer, model.n_layers, "layer", model)
    _check(head, model.n_heads, "head", model)
    w = parts.attention(model, layer)
    kv = w.kv_head(head)
    return Head(layer, head, kv, w.W_Q[:, head], w.W_K[:, kv], w.W_V[:, kv], w.W_O[head], w.b_Q[head], w.b_K[kv],
                w.b_V[kv], w.scale, w.softcap, w.q_norm, w.k_norm, lambda offset: rotation(model, offset))


def rotation(model, offset: int) -> Tensor:
    """R [d_head, d_head] with (q rotated at i) (k rotated at j)^T = q R k^T, offset = i - j; identity without RoPE."""
    unit = torch.eye(model.d_head, device=model.device, dtype=model.dtype)

    def rotate_at(position):
        positions = torch.full((1, model.d_head), position, device=model.device)
        return parts.rotate(model, unit[None, :, None], positions)[0, :, 0]

    return rotate_at(max(offset, 0)) @ rotate_at(max(-offset, 0)).T


def unembed_embed(model) -> Tensor:
    """W_U W_E, [d, d]: the folded unembedding times the embedding, centred as the norms do. The same for every head."""
    W_E = parts.attn_norm(model, 0).centre(parts.embedding(model).W_E.float())
    return folded_unembedding(model)[0].float() @ W_E


def ov_eigenvalues(model, layer: int, head_index: int, between: Tensor | None = None) -> Tensor:
    """The d_head eigenvalues, complex, of what the head makes of tokens: W_E W_OV W_U restricted to its rank.

    The norms' gains and centring are folded into W_E and W_U, so only a positive factor per token is left out. The
    [V, V] matrix is never formed: A B and B A have the same non-zero eigenvalues.
    between: `unembed_embed(model)`, to compute it once for many heads.
    """
    h = head(model, layer, head_index)
    norm, post = parts.attn_norm(model, layer), parts.post_norm(model, layer, "attn")
    between = unembed_embed(model) if between is None else between
    W_O = h.W_O.float() if post is None else h.W_O.float() * post.gain
    small = W_O @ (between * norm.gain) @ h.W_V.float()
    return torch.linalg.eigvals(small.detach().cpu())


def copying_score(model, layer: int, head_index: int, between: Tensor | None = None) -> float:
    """How far a head copies the tokens it looks at: sum of eigenvalues / sum of their sizes, in -1 ... 1.

    1: every direction of token space is mapped to itself (copying); -1: to its opposite (copy suppression); near 0:
    neither. Elhage et al. 2021. It says nothing about where the head looks. A head without eigenvalues (compiled ones
    that write where nothing reads) scores 0.
    """
    eigenvalues = ov_eigenvalues(model, layer, head_index, between)
    size = eigenvalues.abs().sum().item()
    return eigenvalues.real.sum().item() / size if size > 0 else 0.0


def neuron_keys(model, layer: int, part: str | None = None) -> Tensor:
    """Keys of all neurons of a layer, [d_ffn, d]: row j is k_j, **column** j of W_in (O14; the survey says row, A9).

    A gated FFN has two keys per neuron: part="gate" (is the neuron on?) or part="up" (with which sign and size?).
    """
    _check(layer, model.n_layers, "layer", model)
    ffn = parts.ffn(model, layer)
    have = {"in": ffn.W_in} if ffn.W_in is not None else {"gate": ffn.W_gate, "up": ffn.W_up}
    if part is None and "in" in have:
        part = "in"
    if part not in have:
        raise ValueError(f"part={part!r}: neurons of {model.family.name} have the keys {', '.join(map(repr, have))}; "
                         f"choose one")
    return have[part].T


def neuron_values(model, layer: int) -> Tensor:
    """Values of all neurons of a layer, [d_ffn, d]: row j is v_j, **row** j of W_out (O15; the survey says column, A9).

    h_ffn = sum_j s_j v_j + b_out, with s_j the activation `L<layer>N<j>`.
    """
    _check(layer, model.n_layers, "layer", model)
    return parts.ffn(model, layer).W_out


def folded_unembedding(model) -> tuple[Tensor, Tensor]:
    """(W [d, V], b [V]) with logits = frozen scale * (x^L W) + b, before any soft-cap (O22).

    The final norm's gain and, for LayerNorm, its centring and bias are folded in. Project weight vectors (neuron
    values, SAE features) with this W, not with the bare W_U: gain and centring change which token comes first (A27).
    """
    u = parts.unembedding(model)
    W = u.norm.gain[:, None] * u.W_U
    if u.norm.kind == "layer":
        W = W - W.mean(0, keepdim=True)
    return W, u.norm.bias @ u.W_U + u.b_U


def fold_norms(model):
    """A copy of the model with the gains and biases of its norms folded into the matrices that read them.

    Same logits; each norm now only centres (LayerNorm) and rescales, so reading matrices can be compared across layers.
    Tied embeddings are untied. Post-norms (Gemma 2) and QK-norms keep their gains: no matrix follows them directly.
    Norms are per layer, so this costs one copy of the model's memory. Returns a wrapped model.
    """
    import mi_course

    hf = copy.deepcopy(model.hf)
    copied = mi_course.wrap(hf, tokenizer=model.tokenizer)
    family = model.family
    attention_readers = [p for p in (family.q, family.k, family.v, family.qkv) if p]
    ffn_readers = [p for p in (family.mlp_in, family.gate, family.up, family.gate_up) if p]
    head_module = hf.get_submodule(family.unembed)
    head_module.weight = torch.nn.Parameter(head_module.weight.detach().clone())
    hf.config.tie_word_embeddings = False
    with torch.no_grad():
        for layer in range(model.n_layers):
            block = copied.block(layer)
            if family.mlp_norm is None:                      # one norm serves both branches
                _fold(block, family.attn_norm, attention_readers + ffn_readers, family)
            else:
                _fold(block, family.attn_norm, attention_readers, family)
                _fold(block, family.mlp_norm, ffn_readers, family)
        _fold(hf, family.final_norm, [family.unembed], family)
    return copied


def _fold(root, norm_path: str, readers: list[str], family) -> None:
    """norm(x) W + b = (x_hat * gain + bias) W + b = x_hat (gain * W) + (bias W + b)."""
    norm = root.get_submodule(norm_path)
    gain, bias = norm.weight + family.gain_offset, getattr(norm, "bias", None)
    for path in readers:
        module = root.get_submodule(path)
        conv1d = type(module).__name__ == "Conv1D"           # stores [in, out]; nn.Linear stores [out, in]
        W = module.weight if conv1d else module.weight.T
        if bias is not None:
            if module.bias is None:
                module.bias = torch.nn.Parameter(W.new_zeros(W.shape[1]))
            module.bias += bias @ W
        W *= gain[:, None]
    norm.weight.fill_(1.0 - family.gain_offset)
    if bias is not None:
        bias.zero_()


def _check(index: int, count: int, what: str, model) -> None:
    if not 0 <= index < count:
        raise ValueError(f"{what} {index} is out of range: {model.name} has {what}s 0 to {count - 1}")
