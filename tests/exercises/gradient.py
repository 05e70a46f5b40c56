"""Answers to the exercises of chapter 07: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

import mi_course as mi

# --- gradient.zero_effect --------------------------------------------------------------------------------------------


def zero_by_einsum(value, grad, mask):
    return torch.einsum("bthd,bthd,bt->bh", -value, grad, mask.float())


def zero_item_by_item(value, grad, mask):
    effects = []
    for v, g, real in zip(value, grad, mask.bool()):
        products = v[real] * g[real]
        effects.append(-products.sum(dim=(0, 2)))
    return torch.stack(effects)


def zero_by_where(value, grad, mask):
    delta = torch.where(mask.bool()[:, :, None, None], 0 - value, 0.0)
    return (grad * delta).sum(-1).sum(1)


def kept(value, grad, mask):
    return value * grad * mask[:, :, None, None]


# --- gradient.token_saliency -----------------------------------------------------------------------------------------


def saliency_by_backward(model, task):
    cache = mi.record(model, task.prompts, ["embed"], grad=True)
    e = cache["embed"]
    logits = cache.logits[:, -1]
    e.retain_grad()
    task.metric_of(logits, model).sum().backward()
    other = mi.record(model, task.corrupted, ["embed"])["embed"]
    with torch.no_grad():
        return torch.einsum("btd,btd->bt", e.grad, other - e)


def saliency_row_by_row(model, task):
    rows = []
    for i in range(len(task)):
        item = task.subset([i])
        cache = mi.record(model, item.prompts, ["embed"], grad=True)
        F = item.metric_of(cache.logits[:, -1], model)[0]
        grad = torch.autograd.grad(F, cache["embed"])[0][0]
        change = mi.record(model, item.corrupted, ["embed"])["embed"][0] - cache["embed"][0].detach()
        rows.append((grad * change).sum(1))
    return torch.stack(rows)


def saliency_with(
    combine=lambda g, o, t: g * (t - o),
    result=lambda p: p.sum(-1),
    at="prompts",
    total=lambda F: F.sum(),
):
    """token_saliency with one thing changed."""

    def answer(model, task):
        run = mi.record(model, getattr(task, at), ["embed"], grad=True)
        own, twin = (mi.record(model, p, ["embed"])["embed"] for p in (task.prompts, task.corrupted))
        F = task.metric_of(run.logits[:, -1], model)
        (grad,) = torch.autograd.grad(total(F), run["embed"])
        return result(combine(grad, own, twin)).detach()

    return answer


# --- gradient.integrate ----------------------------------------------------------------------------------------------


def integrate_in_a_loop(f, start, end, steps):
    total = torch.zeros_like(end)
    for t in range(steps):
        a = (t + 0.5) / steps
        x = (start + a * (end - start)).detach().requires_grad_()
        total = total + torch.autograd.grad(f(x), x)[0]
    return (end - start) * total / steps


def integrate_from_the_end(f, start, end, steps):
    width = 1 / steps
    back = torch.linspace(width / 2, 1 - width / 2, steps)
    path = torch.stack([end - b * (end - start) for b in back]).requires_grad_()
    f(path).sum().backward()
    return path.grad.mean(0) * (end - start)


def integrate_with_func(f, start, end, steps):
    delta = end - start
    points = [start + delta * (2 * t + 1) / (2 * steps) for t in range(steps)]
    return sum(torch.func.grad(f)(x) for x in points) * delta / steps


def integrate_with(
    alphas=lambda m: (torch.arange(m) + 0.5) / m,
    result=lambda g, a, b: (b - a) * g.mean(0),
):
    def answer(f, start, end, steps):
        points = (start + alphas(steps)[:, None] * (end - start)).requires_grad_()
        (grad,) = torch.autograd.grad(f(points).sum(), points)
        return result(grad, start, end)

    return answer


# --- gradient.select_neurons -----------------------------------------------------------------------------------------


def select_by_counting(attributions, threshold, share):
    count = torch.zeros(attributions.shape[1])
    for row in attributions:
        count = count + (row > threshold * row.max()).float()
    return count > share * len(attributions)


def select_with_max(attributions, threshold, share):
    bars = attributions.max(dim=1).values * threshold
    return (attributions > bars.unsqueeze(1)).sum(0) / attributions.shape[0] > share


def shares(kept_of):
    return lambda a, threshold, share: kept_of(a, threshold).float().mean(0) > share


def own_bar(a, threshold):
    return a > threshold * a.amax(1, keepdim=True)


# --- gradient.attribution_patch --------------------------------------------------------------------------------------


def patch_site_by_site(model, task, sites, direction):
    here, there = task.prompts, task.corrupted
    if direction == "denoising":
        here, there = there, here
    other = mi.record(model, there, sites)
    found = []
    for site in sites:
        run = mi.record(model, here, [site], grad=True)
        F = task.metric_of(run.logits[:, -1], model).mean()
        grad = torch.autograd.grad(F, run[site])[0]
        found.append(((other[site] - run[site]) * grad).sum().detach())
    return torch.stack(found)


def patch_by_backward(model, task, sites, direction):
    both = {
        "noising": [task.prompts, task.corrupted],
        "denoising": [task.corrupted, task.prompts],
    }[direction]
    run = mi.record(model, both[0], sites, grad=True)
    for site in sites:
        run[site].retain_grad()
    task.metric_of(run.logits[:, -1], model).sum().backward()
    with torch.no_grad():
        other = mi.record(model, both[1], sites)
        per_item = [(run[site].grad * (other[site] - run[site])).flatten(1).sum(1) for site in sites]
        return torch.stack(per_item).mean(1)


def patch_with(
    runs=lambda task, direction: (
        (task.prompts, task.corrupted) if direction == "noising" else (task.corrupted, task.prompts)
    ),
    delta=lambda o, other: other - o,
    result=lambda p: p.flatten(1).sum(1).mean(),
    gradient_at="here",
):
    """attribution_patch with one thing changed."""

    def answer(model, task, sites, direction):
        here, there = runs(task, direction)
        a, b = (mi.record(model, p, sites, grad=True) for p in (here, there))
        at = a if gradient_at == "here" else b
        F = task.metric_of(at.logits[:, -1], model)
        grads = torch.autograd.grad(F.sum(), [at[site] for site in sites])
        return torch.stack([result(g * delta(a[s], b[s])) for g, s in zip(grads, sites)]).detach()

    return answer


# --- gradient.qk_fix -------------------------------------------------------------------------------------------------


def fix_by_rows(q, new_q, k, grad_pattern):
    total = torch.tensor(0.0)
    for i in range(len(q)):
        seen = k[: i + 1]
        before, after = ((x[i] @ seen.T / k.shape[1] ** 0.5).softmax(0) for x in (q, new_q))
        total = total + (after - before) @ grad_pattern[i, : i + 1]
    return total


def fix_with_tril(q, new_q, k, grad_pattern):
    seen = torch.ones_like(grad_pattern).tril().bool()
    change = 0
    for queries, sign in ((new_q, 1), (q, -1)):
        scores = torch.einsum("id,jd->ij", queries, k) / torch.tensor(k.shape[1]).sqrt()
        change = change + sign * torch.where(seen, scores, -float("inf")).softmax(dim=1)
    return torch.einsum("ij,ij->", change, grad_pattern)


def attend(q, k, scale=None, causal=True, axis=-1):
    scores = q @ k.T / (k.shape[1] ** 0.5 if scale is None else scale)
    return (scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -1e30) if causal else scores).softmax(axis)


def fix_with(**how):
    return lambda q, new, k, g: ((attend(new, k, **how) - attend(q, k, **how)) * g).sum()


def fix_first_order(q, new, k, g):
    point = q.clone().requires_grad_()
    (grad,) = torch.autograd.grad((attend(point, k) * g).sum(), point)
    return (grad * (new - q)).sum()


# --- gradient.precision_at_k -----------------------------------------------------------------------------------------


def precision_by_isin(estimate, exact, k):
    a, b = (v.abs().argsort(descending=True)[:k] for v in (estimate, exact))
    return torch.isin(a, b).sum().item() / k


def precision_by_sorting(estimate, exact, k):
    def best(values):
        return sorted(range(len(values)), key=lambda i: abs(float(values[i])), reverse=True)[:k]

    return sum(i in best(exact) for i in best(estimate)) / k


def hits(a, b, k, size=torch.abs):
    return len(set(size(a).topk(k).indices.tolist()) & set(size(b).topk(k).indices.tolist()))


RIGHT = {
    "gradient.zero_effect": [zero_by_einsum, zero_item_by_item, zero_by_where],
    "gradient.token_saliency": [saliency_by_backward, saliency_row_by_row],
    "gradient.integrate": [integrate_in_a_loop, integrate_from_the_end, integrate_with_func],
    "gradient.select_neurons": [select_by_counting, select_with_max],
    "gradient.attribution_patch": [patch_site_by_site, patch_by_backward],
    "gradient.qk_fix": [fix_by_rows, fix_with_tril],
    "gradient.precision_at_k": [precision_by_isin, precision_by_sorting],
}

WRONG = {
    "gradient.zero_effect": {
        "sign": (lambda v, g, m: kept(v, g, m).sum((1, 3)), "sign turned round"),
        "size": (lambda v, g, m: -kept(v, g, m).abs().sum((1, 3)), "The size was taken"),
        "mean": (lambda v, g, m: -kept(v, g, m).mean((1, 3)), "The products were averaged"),
        "gradient alone": (lambda v, g, m: -(g * m[:, :, None, None]).sum((1, 3)), "the gradient alone"),
        "norm": (lambda v, g, m: g.flatten(2).norm(dim=(1, 2))[:, None], "a norm"),
        "padding": (lambda v, g, m: -(v * g).sum((1, 3)), "Padding was counted"),
        "all heads": (lambda v, g, m: -kept(v, g, m).sum((1, 2, 3), keepdim=True)[..., 0, 0], "The heads were added"),
        "last token": (
            lambda v, g, m: zero_by_einsum(v, g, m) if len(v) == 1 else -kept(v, g, m)[:, -1].sum(-1),
            "Only the last token",
        ),
        "items averaged": (
            lambda v, g, m: zero_by_einsum(v, g, m) if len(v) == 1 else -kept(v, g, m).sum((1, 3)).mean(0),
            "The items were averaged",
        ),
    },
    "gradient.token_saliency": {
        "sign": (saliency_with(lambda g, o, t: g * (o - t)), "The sign is turned round"),
        "gradient x input": (saliency_with(lambda g, o, t: g * o), "an embedding of zeros"),
        "zero ablation": (saliency_with(lambda g, o, t: -g * o), "an embedding of zeros"),
        "at the twin": (saliency_with(at="corrupted"), "taken at the twin"),
        "mean of F": (saliency_with(total=lambda F: F.mean()), "The mean of F"),
        "mean of coordinates": (saliency_with(result=lambda p: p.mean(-1)), "coordinates were averaged"),
        "norm": (saliency_with(lambda g, o, t: g, lambda p: p.norm(dim=-1)), "Sizes were taken"),
        "no sum": (saliency_with(result=lambda p: p), "one number per token"),
    },
    "gradient.integrate": {
        "left": (integrate_with(lambda m: torch.arange(m) / m), "left ends"),
        "right": (integrate_with(lambda m: (torch.arange(m) + 1) / m), "right ends"),
        "no factor": (integrate_with(result=lambda g, a, b: g.mean(0)), "multiply it with end - start"),
        "times end": (integrate_with(result=lambda g, a, b: b * g.mean(0)), "multiply with end - start"),
        "summed": (integrate_with(result=lambda g, a, b: (b - a) * g.sum(0)), "were summed over the steps"),
        "backwards": (integrate_with(result=lambda g, a, b: (a - b) * g.mean(0)), "the factor is end - start"),
        "end alone": (integrate_with(lambda m: torch.ones(m)), "gradient at the end"),
        "start alone": (integrate_with(lambda m: torch.zeros(m)), "gradient at the start"),
        "one number": (integrate_with(result=lambda g, a, b: ((b - a) * g.mean(0)).sum()), "keeps its own"),
        "steps apart": (integrate_with(result=lambda g, a, b: (b - a) * g / 4), "kept apart"),
        "evenly from end to end": (
            integrate_with(lambda m: torch.linspace(0, 1, m)),
            "not in the middle of their pieces",
        ),
    },
    "gradient.select_neurons": {
        "one bar": (shares(lambda a, t: a > t * a.max()), "One bar was used"),
        "sizes": (shares(lambda a, t: a.abs() > t * a.abs().amax(1, keepdim=True)), "Sizes were compared"),
        "any": (lambda a, t, s: own_bar(a, t).any(0), "if any prompt has it"),
        "all": (lambda a, t, s: own_bar(a, t).all(0), "Only neurons of all prompts"),
        "averaged": (lambda a, t, s: a.mean(0) > t * a.mean(0).max(), "The prompts were averaged first"),
        "at least the share": (lambda a, t, s: own_bar(a, t).float().mean(0) >= s, "exactly `share`"),
        "at least the bar": (
            shares(lambda a, t: a >= t * a.amax(1, keepdim=True)),
            "exactly on the threshold was kept",
        ),
        "columns": (
            lambda a, t, s: select_with_max(a, t, s) if len(a) < 5 else (a > t * a.amax(0)).float().mean(0) > s,
            "taken over the prompts",
        ),
    },
    "gradient.attribution_patch": {
        "sign": (patch_with(delta=lambda o, other: o - other), "The sign is turned round"),
        "noising only": (patch_with(runs=lambda task, d: (task.prompts, task.corrupted)), "direction was ignored"),
        "summed": (patch_with(result=lambda p: p.sum()), "The prompts were added up"),
        "kept apart": (patch_with(result=lambda p: p.flatten(1).sum(1)), "kept apart"),
        "other gradient": (patch_with(gradient_at="there"), "taken in the other run"),
        "last position": (
            lambda model, task, sites, d: (
                patch_site_by_site if "neurons1" not in sites else patch_with(result=lambda p: p[:, -1].sum() / 3)
            )(model, task, sites, d),
            "Only the last position",
        ),
        "gradient x value": (
            lambda model, task, sites, d: (
                patch_site_by_site if "neurons1" not in sites else patch_with(delta=lambda o, other: -o)
            )(model, task, sites, d),
            "gradient x value",
        ),
    },
    "gradient.qk_fix": {
        "first order": (fix_first_order, "the first order through the softmax"),
        "sign": (lambda q, new, k, g: ((attend(q, k) - attend(new, k)) * g).sum(), "The sign is turned round"),
        "no old pattern": (lambda q, new, k, g: (attend(new, k) * g).sum(), "was not taken away"),
        "scores": (lambda q, new, k, g: (((new - q) @ k.T).tril() * g).sum(), "The scores were compared"),
        "axis": (fix_with(axis=0), "over the keys"),
        "no mask": (fix_with(causal=False), "causal mask is missing"),
        "no scale": (fix_with(scale=1.0), "not divided by sqrt"),
        "d_head": (
            lambda q, new, k, g: fix_with(scale=float(k.shape[1]))(q, new, k, g),
            "in place of its root",
        ),
        "transposed": (
            lambda q, new, k, g: fix_with()(q, new, k, g if len(q) == 2 else g.T),
            "it was transposed",
        ),
    },
    "gradient.precision_at_k": {
        "signed": (lambda a, b, k: hits(a, b, k, lambda v: v) / k, "taken with their sign"),
        "count": (lambda a, b, k: float(hits(a, b, k)), "the number of hits"),
        "jaccard": (lambda a, b, k: hits(a, b, k) / (2 * k - hits(a, b, k)), "Jaccard"),
        "of all": (lambda a, b, k: hits(a, b, k) / len(a), "the number of all objects"),
    },
}
