"""Targeted optimization (survey section 4.2): change weights, only where it matters, to change one behaviour.

Here: the rank-one edit of one FFN (ROME; Meng et al. 2022, arXiv 2202.05262). The FFN's down projection W is read as a
memory that maps a key k (the neuron activations at the subject's last token) to a value kW (what is written there). The
edit makes W answer the subject's key with a new value v* and changes as little as possible for the other keys:

    W <- W + C^-1 k^T (v* - kW) / (k C^-1 k^T),    C = E[k^T k] over ordinary text      (row form; survey-map S2a)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mi_course.models import edit, intervene, record, weights

from .weights import WeightEdit


def rank_one_update(W: torch.Tensor, C: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """The change of W [d_in, d_out] that gives key @ W_new = value with the least change in the metric of C.

    Among all changes D with key @ D = value - key @ W it minimises trace(D^T C D) = E |k D|^2: the mean squared change
    of the output over keys of covariance C [d_in, d_in]. key [d_in], value [d_out]. Returns D [d_in, d_out], of rank 1.
    """
    for name, vector, size in (("key", key, W.shape[0]), ("value", value, W.shape[1])):
        if vector.shape != (size,):
            raise ValueError(f"{name} has shape {tuple(vector.shape)}; W {tuple(W.shape)} needs ({size},)")
    direction = torch.linalg.solve(C, key)  # C^-1 k^T
    return torch.outer(direction, value - key @ W) / (key @ direction)


@torch.no_grad()
def key_covariance(model, documents: Sequence, layer: int, ridge: float = 1e-2, batch_size: int = 64) -> torch.Tensor:
    """C = E[k^T k] of the FFN's keys over all real tokens of the documents. Returns [d_ffn, d_ffn].

    Not centred, as published. `ridge` times the mean diagonal is added to the diagonal, so that C can be inverted when
    some neurons never fire in the documents.
    """
    C, tokens = torch.zeros(model.d_ffn, model.d_ffn), 0
    for start in range(0, len(documents), batch_size):
        cache = record(model, documents[start : start + batch_size], [f"neurons{layer}"])
        keys = cache[f"neurons{layer}"][cache.batch.mask.bool()].float().cpu()
        C += keys.T @ keys
        tokens += len(keys)
    C /= tokens
    return C + ridge * C.diagonal().mean() * torch.eye(len(C))


def optimise_values(
    model,
    prompts: Sequence[Sequence],
    positions: Sequence[Sequence[int]],
    targets: Sequence[int],
    layer: int,
    steps: int = 25,
    learning_rate: float = 0.5,
    decay: float = 0.5,
    clamp: float = 4.0,
) -> torch.Tensor:
    """The values v*: what the FFN should write at each subject so that the model says the target. Returns [n, d].

    Adds a vector delta to the FFN output at the subject's last token and minimises, with Adam, the mean over the fact's
    prompts of -log p(target), plus decay (|delta| / |v|)^2, with |delta| <= clamp |v|; v is what the FFN writes there
    now (published: 20 steps, 0.5, 0.5, 4; the KL term to the subject's essence is left out). Every fact is its own
    problem; all are optimised in one batch.

    Args:
        prompts: for each of n facts its prompts (the fact alone, the fact after other text ...), equally many for each.
        positions: in the same shape, the subject's last token in each prompt, counted in real tokens.
        targets: n token ids.
    """
    flat, where, per_fact = _flatten(prompts, positions)
    site, batch = f"mlp{layer}", model.tokenize(flat)
    targets = torch.as_tensor(targets, device=model.device).repeat_interleave(per_fact)
    with torch.no_grad():
        v = record(model, batch, [site])[site][torch.arange(len(batch)), batch.columns(where)]
        v = v.unflatten(0, (-1, per_fact)).mean(1)
    size = v.norm(dim=-1, keepdim=True)
    delta = torch.zeros_like(v, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=learning_rate)
    push = edit(site, lambda value: value + delta.repeat_interleave(per_fact, 0)[:, None], where)
    for _ in range(steps):
        with intervene(model, push):
            log_p = model.last_logits(batch, grad=True).float().log_softmax(-1)
        nll = -log_p.gather(-1, targets[:, None]).unflatten(0, (-1, per_fact)).mean(1)
        loss = nll.sum() + decay * (delta / size).square().sum()
        (delta.grad,) = torch.autograd.grad(loss, delta)  # of delta alone: the weights collect no gradients
        optimiser.step()
        with torch.no_grad():
            delta.mul_((clamp * size / delta.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1))
    return v + delta.detach()


def _flatten(prompts, positions) -> tuple[list, torch.Tensor, int]:
    """Prompts of all facts in one list, their positions, and how many prompts a fact has."""
    counts = {len(p) for p in prompts} | {len(p) for p in positions}
    if len(counts) != 1 or len(prompts) != len(positions) or 0 in counts:
        raise ValueError("prompts and positions: give every fact the same number of prompts, and one position for each")
    flat = [prompt for own in prompts for prompt in own]
    return flat, torch.tensor([p for own in positions for p in own]), counts.pop()


@torch.no_grad()
def keys_at(model, prompts: Sequence[Sequence], positions: Sequence[Sequence[int]], layer: int) -> torch.Tensor:
    """The FFN's key (neuron activations) at each subject, averaged over the fact's prompts. Returns [n, d_ffn].

    Arguments as for `optimise_values`.
    """
    flat, where, per_fact = _flatten(prompts, positions)
    site = f"neurons{layer}"
    cache = record(model, flat, [site])
    keys = cache[site][torch.arange(len(flat)), cache.batch.columns(where)]
    return keys.unflatten(0, (-1, per_fact)).mean(1)


@torch.no_grad()
def rank_one_edit(model, layer: int, key: torch.Tensor, value: torch.Tensor, C: torch.Tensor) -> WeightEdit:
    """The edit of FFN `layer` after which the key gives the value: ROME as a reversible change of its down projection.

    Args: key [d_ffn] from `keys_at`, value [d] from `optimise_values`, C
    [d_ffn, d_ffn] from `key_covariance`. Use it as `with edit.on(model):`.
    """
    ffn = weights.ffn(model, layer)
    delta = rank_one_update(ffn.W_out.detach().float(), C, key.float(), value.float() - ffn.b_out.float())
    family = model.family
    path = f"{family.blocks}.{layer}.{family.mlp_out}"
    transposed = isinstance(model.hf.get_submodule(path), torch.nn.Linear)
    return WeightEdit({f"{path}.weight": delta.T if transposed else delta})
