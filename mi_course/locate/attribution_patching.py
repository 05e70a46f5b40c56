"""Attribution patching (survey section 3.3; Nanda 2023): the first-order estimate of interchange patching.

    noising      (corrupted - clean) . grad at the clean run       estimates F(clean, o <- corrupted) - F(clean)
    denoising    (clean - corrupted) . grad at the corrupted run   estimates F(corrupted, o <- clean) - F(corrupted)

Two forward passes and one backward pass score every site at once; exact patching takes one forward per site. The two
directions are different quantities (audit A21): their gradients are taken at different points.

Where the estimate fails, and what AtP* (Kramar et al. 2024, arXiv 2403.00745) does about it:

    saturated attention    far from a tie the softmax is flat, so the gradient of a query or key is almost 0 although
                           patching it moves all the attention. `qk_fix`: recompute the softmax exactly with the patched
                           query or key, and take only what follows at first order: (pattern' - pattern) . grad pattern.
    cancellation           the direct effect of an object and the one through a later layer may cancel in the gradient
                           and not in truth. `grad_drop`: block by block, stop the gradient that flows through what the
                           block writes, and average the absolute estimates.

`rule="relevance"` is RelP (Jafari et al. 2025, arXiv 2508.21258): the gradient is replaced by one in which norms have a
fixed scale, attention a fixed pattern, activation functions a fixed slope act(x)/x and products of gate and up are
shared half and half. Left out of AtP*: its diagnostic bound on remaining false negatives, and its sub-quadratic
formula for keys (ours recomputes the softmax, which costs less than the layer at the lengths used here). Left out of
RelP: rules for the embedding and for SAE features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mi_course.locate.passes import (
    Cost,
    GradientScores,
    Pass,
    Target,
    gradients,
    index_in_layer,
    metric,
    observe,
    parts,
    per_site,
    position_mask,
    whole,
)
from mi_course.models import Batch, Site, edit, intervene, weights
from mi_course.models.sites import parse_sites
from mi_course.objects import Task

RULES = ("gradient", "relevance")


def attribution_patching(
    model,
    task: Task,
    sites,
    direction: str = "noising",
    qk_fix: bool = False,
    grad_drop: bool = False,
    rule: str = "gradient",
    reduce: str = "mean",
    target: Target = metric,
    batch_size: int = 64,
) -> GradientScores:
    """Estimate what `causal.patch_each` measures, for all sites at once: delta . gradient.

    Args:
        task: with corrupted twins of equal token length.
        sites: any activations, with or without a position ("x3@4", "L3H1.z", "L2N7", "L3H1.q").
        direction: "noising" or "denoising", which run is patched (see above).
        qk_fix: for queries and keys, recompute the attention softmax exactly.
        grad_drop: average |estimate| over n_layers backward passes, each without one block. The result is a size and
            has no sign ("magnitude"): mean over prompts of sum over dropped blocks / (n_layers - 1).
        rule: "gradient", or "relevance" for RelP.
    With qk_fix and grad_drop this follows AtP*, without its bound on false negatives. GradDrop is Eq. 11 of the paper,
    E[1 / (L - 1) sum_l |I_l|], as the re-implementation koayon/atp_star quotes it; L - 1, since dropping the block of a
    site leaves that site no gradient. Returns GradientScores with sign `direction`.
    """
    if direction not in ("noising", "denoising"):
        raise ValueError(f"direction={direction!r} is unknown; choose noising or denoising")
    if rule not in RULES:
        raise ValueError(f"rule={rule!r} is unknown; choose one of {', '.join(RULES)}")
    task.validate(model)
    run, source = ("clean", "corrupted") if direction == "noising" else ("corrupted", "clean")
    sites, cost = parse_sites(sites), Cost(model)
    fixed = [s for s in sites if qk_fix and s.part in ("q", "k")]
    read = [*sites, *(Site.head(s.layer, None, part) for s in fixed for part in ("q", "k", "pattern"))]
    items = []
    for part in parts(task, batch_size):
        other = observe(model, part, read, on=source, target=target)
        cost.count(other.batch)
        estimates = []
        for dropped in range(model.n_layers) if grad_drop else [None]:
            with linearised(model, rule == "relevance"):
                p = gradients(model, part, read, on=run, target=target, edits=_stop(model, dropped))
            cost.count(p.batch, backward=True)
            products = {name: g * (other.values[name] - p.values[name]) for name, g in p.grads.items()}
            estimate = per_site(products, sites, model, p.batch)
            for site in fixed:
                estimate[:, sites.index(site)] = _through_softmax(model, p, other, site)
            estimates.append(estimate)
        dropped_mean = torch.stack(estimates).abs().sum(0) / max(1, model.n_layers - 1)
        items.append(dropped_mean if grad_drop else estimates[0])
    names = [f"attribution patching{' (relevance)' * (rule == 'relevance')}"]
    names += ["QK fix"] * qk_fix + ["GradDrop"] * grad_drop
    return cost.scores(sites, torch.cat(items), ", ".join(names), "magnitude" if grad_drop else direction, reduce)


# -- QK fix ----------------------------------------------------------------------------------------------------------


def _through_softmax(model, p: Pass, other: Pass, site: Site) -> Tensor:
    """(pattern with the patched query or key - pattern) . gradient of the pattern, for one site: [n]."""
    layer = site.layer
    q, k, pattern = (p.values[f"{part}{layer}"] for part in ("q", "k", "pattern"))
    name = str(whole(site))
    patched = torch.where(position_mask(site, p.batch, p.values[name]), other.values[name], p.values[name])
    new = attention_pattern(model, layer, *((patched, k) if site.part == "q" else (q, patched)), p.batch)
    by_head = ((new - pattern) * p.grads[f"pattern{layer}"]).masked_fill(~_queries(p.batch), 0.0).sum((2, 3))  # [n, H]
    if site.part == "k":  # a key is shared by the query heads of its group
        by_head = by_head.unflatten(1, (model.n_kv_heads, -1)).sum(2)
    return by_head.sum(1) if site.index is None else by_head[:, index_in_layer(site, model)]


def attention_pattern(model, layer: int, q: Tensor, k: Tensor, batch: Batch) -> Tensor:
    """The pattern of layer `layer` from queries [B, T, H, d_head] and keys [B, T, H_kv, d_head]: [B, H, T, T].

    softmax(mask(softcap(scale q k))), with q and k as `record` returns them. Rows of padding are not meaningful.
    """
    attn = weights.attention(model, layer)
    k = k.repeat_interleave(attn.groups, dim=2)
    scores = torch.einsum("bthn,bshn->bhts", q.float(), k.float()) * attn.scale
    if attn.softcap is not None:
        scores = torch.tanh(scores / attn.softcap) * attn.softcap
    T = scores.shape[-1]
    distance = torch.arange(T, device=q.device)[:, None] - torch.arange(T, device=q.device)
    seen = (distance >= 0) & (distance < (attn.window or T))
    seen = seen & batch.mask.bool()[:, None, None, :]
    return scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1).to(q.dtype)


def _queries(batch: Batch) -> Tensor:
    return batch.mask.bool()[:, None, :, None]


# -- GradDrop and relevance ------------------------------------------------------------------------------------------


def _stop(model, layer: int | None) -> list:
    """Edits that let no gradient through what block `layer` writes; values stay."""
    return [] if layer is None else [edit([f"attn{layer}.write", f"mlp{layer}.write"], Tensor.detach)]


@contextmanager
def linearised(model, wanted: bool = True) -> Iterator[None]:
    """While active, values are unchanged and gradients follow the rules of RelP (see the head of this module)."""
    if not wanted:
        yield
        return
    replaced: list[nn.Module] = []

    def replace(module: nn.Module, rule: Callable[[Callable, Tensor], Tensor]) -> None:
        if module not in replaced:
            before = module.forward
            module.forward = lambda x, *args, **kwargs: _same_value(before(x, *args, **kwargs), rule(before, x))
            replaced.append(module)

    def half(product: Tensor) -> Tensor:
        return _same_value(product, product / 2)

    gated = model.family.gated
    edits = [edit(f"pattern{layer}", Tensor.detach) for layer in range(model.n_layers)]
    edits += [edit(f"neurons{layer}", half) for layer in range(model.n_layers) if gated]
    try:
        for module, norm in _norms(model):
            replace(module, lambda _, x, norm=norm: norm.centre(x) * norm.scale(x).detach().to(x.dtype) * norm.gain)
        for layer in range(model.n_layers):
            replace(model.block(layer).get_submodule(model.family.act), _fixed_slope)
        with intervene(model, *edits):
            yield
    finally:
        for module in replaced:
            del module.forward


def _norms(model) -> Sequence[tuple[nn.Module, weights.Norm]]:
    family, found = model.family, []
    found.append((model.hf.get_submodule(family.final_norm), weights.unembedding(model).norm))
    for layer in range(model.n_layers):
        block = model.block(layer)
        found.append((block.get_submodule(family.attn_norm), weights.attn_norm(model, layer)))
        if family.mlp_norm:
            found.append((block.get_submodule(family.mlp_norm), weights.mlp_norm(model, layer)))
        for branch, path in (("attn", family.attn_post_norm), ("mlp", family.mlp_post_norm)):
            if path:
                found.append((block.get_submodule(path), weights.post_norm(model, layer, branch)))
    return found


def _fixed_slope(act: Callable, x: Tensor) -> Tensor:
    """x * (act(x) / x) with the quotient held fixed; at 0 it is taken as 1/2, the slope of GELU and SiLU there."""
    with torch.no_grad():
        slope = torch.where(x.abs() > 1e-6, act(x) / torch.where(x.abs() > 1e-6, x, 1.0), 0.5)
    return x * slope


def _same_value(value: Tensor, gradient: Tensor) -> Tensor:
    """The first tensor's value, bit for bit, with the second one's gradient."""
    return value.detach() + (gradient - gradient.detach())
