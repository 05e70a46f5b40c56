"""Closed-form editing (survey section 4.2): write a fact into the down projection of FFNs, and move little else.

W = W_out of an FFN is read as a memory that maps a key k (the neuron activations at the subject's last token) to a
value kW (what is written there). In row form, with C = E[k^T k] over ordinary text (not centred):

    rank_one_update   ROME   W <- W + C^-1 k^T (v* - kW) / (k C^-1 k^T)      kW = v* exactly, other keys move least
    ridge_update      MEMIT  W <- W + (lambda C + K^T K)^-1 K^T R            many facts at once, nearly

ROME (Meng et al. 2022, arXiv 2202.05262) edits one fact in one FFN. MEMIT (Meng et al. 2023, arXiv 2210.07229) edits
many and spreads them over the FFNs of several layers. Neither trains a weight: only v* is found by gradient descent.
The survey names both and gives no formula (audit A26).

    edit = rome(model, prompts, positions, target, layer=0)
    with edit.on(model): ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from mi_course import assets
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
    **options,
) -> torch.Tensor:
    """The values v*: what the FFN should write at each subject so that the model says the target. Returns [n, d].

    v* = v + delta; v is what the FFN writes there now, mean over the fact's prompts. Arguments: see `optimise_deltas`.
    """
    delta, v = optimise_deltas(model, prompts, positions, targets, f"mlp{layer}", **options)
    return v + delta


def optimise_deltas(
    model,
    prompts: Sequence[Sequence],
    positions: Sequence[Sequence[int]],
    targets: Sequence[int],
    site: str,
    essence: tuple[Sequence, Sequence[int]] | None = None,
    steps: int = 25,
    learning_rate: float = 0.5,
    decay: float = 0.5,
    clamp: float = 4.0,
    kl: float = 0.0625,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A change delta of one state at each subject that makes the model say the target. Returns (delta, state), [n, d].

    Adds delta to `site` at the subject's last token and minimises, with Adam, the mean over the fact's prompts of
    -log p(target), plus decay (|delta| / |v|)^2, plus kl KL(before || now) after the essence prompt; |delta| is kept
    at most clamp |v|. v is the mean of the site over the fact's prompts. The defaults are those published for ROME on
    GPT-2 XL, but for 25 steps instead of 20. Every fact is its own problem; all are optimised in one batch.

    The released code (kmeng01/rome, kmeng01/memit) differs in three places. Its decay is decay |delta| / |v|^2, with v
    from the first prompt; its KL is KL(now || before), as in Eq. 4 of the paper; it stops when the loss is below 0.05.

    Args:
        prompts: for each of n facts its prompts (the fact alone, the fact after other text ...), equally many for each.
        positions: in the same shape, the subject's last token in each prompt, counted in real tokens.
        targets: n token ids.
        essence: for each fact a prompt about the subject whose continuation should stay ("silver garden is a"), and
            the subject's last token in it: (n prompts, n positions). None leaves that term out.
    """
    flat, where, per_fact = _flatten(prompts, positions)
    n, m = len(prompts), len(flat)
    owner = torch.arange(n, device=model.device).repeat_interleave(per_fact)
    if essence is not None:
        if len(essence[0]) != n or len(essence[1]) != n:
            raise ValueError(f"essence: give one prompt and one position for each of the {n} facts")
        flat, where = [*flat, *essence[0]], torch.cat([where, torch.as_tensor(essence[1])])
        owner = torch.cat([owner, torch.arange(n, device=model.device)])
    batch = model.tokenize(flat)
    targets = torch.as_tensor(targets, device=model.device).repeat_interleave(per_fact)
    with torch.no_grad():
        cache = record(model, batch, [site])
        before = cache.logits[torch.arange(len(flat)), batch.last].float().log_softmax(-1)[m:]
        v = cache[site][torch.arange(len(flat)), batch.columns(where)][:m].unflatten(0, (-1, per_fact)).mean(1)
    size = v.norm(dim=-1, keepdim=True)
    delta = torch.zeros_like(v, requires_grad=True)
    optimiser = torch.optim.Adam([delta], lr=learning_rate)
    push = edit(site, lambda value: value + delta[owner][:, None], where)
    for step in range(steps):
        with intervene(model, push):
            log_p = model.last_logits(batch, grad=True).float().log_softmax(-1)
        nll = -log_p[:m].gather(-1, targets[:, None]).unflatten(0, (-1, per_fact)).mean(1)
        moved = (before.exp() * (before - log_p[m:])).sum()
        loss = nll.sum() + decay * (delta / size).square().sum() + kl * moved
        if step == 0 and (torch.autograd.grad(nll.sum(), delta, retain_graph=True)[0] == 0).all(-1).any():
            raise ValueError(f"site {site}: at the subject it does not reach the answer; choose a lower layer")
        (delta.grad,) = torch.autograd.grad(loss, delta)  # of delta alone: the weights collect no gradients
        optimiser.step()
        with torch.no_grad():
            delta.mul_((clamp * size / delta.norm(dim=-1, keepdim=True).clamp_min(1e-9)).clamp_max(1))
    return delta.detach(), v


def _flatten(prompts, positions) -> tuple[list, torch.Tensor, int]:
    """Prompts of all facts in one list, their positions, and how many prompts a fact has."""
    counts = {len(p) for p in prompts} | {len(p) for p in positions}
    if len(counts) != 1 or len(prompts) != len(positions) or 0 in counts:
        raise ValueError("prompts and positions: give every fact the same number of prompts, and one position for each")
    flat = [prompt for own in prompts for prompt in own]
    return flat, torch.tensor([p for own in positions for p in own]), counts.pop()


@torch.no_grad()
def rank_one_edit(model, layer: int, key: torch.Tensor, value: torch.Tensor, C: torch.Tensor) -> WeightEdit:
    """The edit of FFN `layer` after which the key gives the value: ROME as a reversible change of its down projection.

    Args: key [d_ffn] from `keys_at`, value [d] from `optimise_values`, C
    [d_ffn, d_ffn] from `key_covariance`. Use it as `with edit.on(model):`.
    """
    ffn = weights.ffn(model, layer)
    return _as_edit(
        model, layer, rank_one_update(ffn.W_out.detach().float(), C, key.float(), value - ffn.b_out.float())
    )


def _as_edit(model, layer: int, delta: torch.Tensor) -> WeightEdit:
    """delta [d_ffn, d] of W_out in row form, as a change of the parameter (nn.Linear stores it transposed)."""
    path = f"{model.family.blocks}.{layer}.{model.family.mlp_out}"
    transposed = isinstance(model.hf.get_submodule(path), torch.nn.Linear)
    return WeightEdit({f"{path}.weight": delta.T if transposed else delta})


def rome(
    model,
    prompts: Sequence,
    positions: Sequence[int],
    target: int,
    layer: int,
    C: torch.Tensor | None = None,
    **options,
) -> WeightEdit:
    """ROME: the rank-one edit after which the model answers `target` to a fact's prompts.

    Key and v are means over the prompts, so v* is met for the mean key. The released code takes C^-1 k from the mean
    key, too, but scales the change so that v* is met for the key of the fact alone.

    Args:
        prompts, positions: the fact alone and after other text, and the subject's last token in each, in real tokens.
        C: [d_ffn, d_ffn]; None takes what ships with the model (`second_moments`).
        options: of `optimise_deltas`; an `essence` of one prompt is the one of this fact.
    """
    C = second_moments(model)[layer] if C is None else C
    key = keys_at(model, [prompts], [positions], layer)[0]
    value = optimise_values(model, [prompts], [positions], [target], layer, **options)[0]
    return rank_one_edit(model, layer, key, value, C)


def ridge_update(K: torch.Tensor, R: torch.Tensor, C: torch.Tensor, lam: float) -> torch.Tensor:
    """MEMIT's change of W: D = (lam C + K^T K)^-1 K^T R, which minimises |K D - R|^2 + lam trace(D^T C D).

    So n facts are nearly written, K D = R, and keys of second moment C move little. lam -> 0 with one fact is ROME.
    K [n, d_in] keys; R [n, d_out] what is lacking, value - key W; C [d_in, d_in]. Returns D [d_in, d_out].
    """
    if K.dim() != 2 or R.dim() != 2 or len(K) != len(R) or C.shape != (K.shape[1], K.shape[1]):
        raise ValueError(
            f"K {tuple(K.shape)}, R {tuple(R.shape)}, C {tuple(C.shape)}: give [n, d_in], [n, d_out], [d_in, d_in]"
        )
    if not lam > 0:
        raise ValueError(f"lam is {lam}; give a positive number, the weight of ordinary text against the facts")
    G = torch.linalg.solve(C, K.T)  # C^-1 K^T; the same D as above by the matrix inversion lemma, stable for small lam
    return G @ torch.linalg.solve(lam * torch.eye(len(K)).to(G) + K @ G, R)


@torch.no_grad()
def ridge_edit(model, layer: int, keys: torch.Tensor, value: torch.Tensor, C: torch.Tensor, lam: float) -> WeightEdit:
    """The edit of FFN `layer` after which each of several keys nearly gives the value: `ridge_update` for one fact.

    A fact has a key for every text that mentions its subject. `rank_one_edit` writes the value at one of them, or at
    their mean; this writes it at all. keys [n, d_ffn]; value [d] from `optimise_values`; C [d_ffn, d_ffn].
    """
    ffn = weights.ffn(model, layer)
    lacking = value.float() - ffn.b_out.float() - keys.float() @ ffn.W_out.detach().float()
    return _as_edit(model, layer, ridge_update(keys.float(), lacking, C.to(keys.device), lam))


def memit(
    model,
    prompts: Sequence[Sequence],
    positions: Sequence[Sequence[int]],
    targets: Sequence[int],
    layers: Sequence[int],
    C: Mapping[int, torch.Tensor] | None = None,
    lam: float = 1.0,
    **options,
) -> WeightEdit:
    """MEMIT: edit n facts at once, spread over the FFNs of `layers`.

    Finds what has to be added to the state after the last of the layers, x^{L+1} at each subject, and lets every layer
    write its share of what is still lacking: the second of three layers half of the rest, the third all of it.

    Args:
        prompts, positions, targets, options: as for `optimise_deltas`.
        C: layer -> [d_ffn, d_ffn]; None takes what ships with the model.
        lam: weight of C against the facts (published for GPT-J: 15,000, with clamp 0.75).
    ValueError for families with a norm after the FFN.
    """
    if model.family.mlp_post_norm:
        raise ValueError(
            f"{model.family.name} has a norm between FFN and stream; MEMIT needs writes that add: use rome"
        )
    layers = sorted(layers)
    C = second_moments(model) if C is None else C
    after = f"x{layers[-1] + 1}"
    delta, state = optimise_deltas(model, prompts, positions, targets, after, **options)
    deltas: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(layers):
        with torch.no_grad(), WeightEdit(deltas).on(model):  # what the layers before have written counts
            lacking = state + delta - _at_subjects(model, prompts, positions, after)
            K = keys_at(model, prompts, positions, layer)
        update = ridge_update(K.float(), lacking.float() / (len(layers) - i), C[layer].to(K.device), lam)
        deltas |= _as_edit(model, layer, update).deltas
    return WeightEdit(deltas)


@torch.no_grad()
def keys_at(model, prompts: Sequence[Sequence], positions: Sequence[Sequence[int]], layer: int) -> torch.Tensor:
    """The FFN's key (neuron activations) at each subject, averaged over the fact's prompts. Returns [n, d_ffn].

    Arguments as for `optimise_deltas`.
    """
    return _at_subjects(model, prompts, positions, f"neurons{layer}")


def _at_subjects(model, prompts, positions, site: str) -> torch.Tensor:
    """A site at each subject, averaged over the fact's prompts, [n, ...]."""
    flat, where, per_fact = _flatten(prompts, positions)
    cache = record(model, flat, [site])
    return cache[site][torch.arange(len(flat)), cache.batch.columns(where)].unflatten(0, (-1, per_fact)).mean(1)


def second_moments(model) -> list[torch.Tensor]:
    """C = E[k^T k] of every FFN, [d_ffn, d_ffn] each, as shipped with a lab model (`mi_course.world.moments`).

    ValueError for other models: compute theirs with `key_covariance` on documents of yours.
    """
    name = f"{model.name}/moments.safetensors"
    if name not in assets.manifest():
        raise ValueError(
            f"C: no second moments are shipped for {model.name!r}; give C=key_covariance(model, documents, layer)"
        )
    if assets.manifest()[name]["fingerprint"] != model.fingerprint():
        raise ValueError(
            f"C: the shipped second moments are those of the unedited {model.name!r}, and these weights are others. "
            "While an edit is active, fetch them before it: C = second_moments(model)"
        )
    return [unpacked(packed) for _, packed in sorted(load_file(assets.path(name)).items())]


def unpacked(packed: torch.Tensor) -> torch.Tensor:
    """The symmetric matrix [n, n] whose upper triangle, row by row, is `packed` [n (n + 1) / 2]."""
    n = int((2 * len(packed)) ** 0.5)
    C = torch.zeros(n, n)
    C[tuple(torch.triu_indices(n, n))] = packed.float()
    return C + C.triu(1).T
