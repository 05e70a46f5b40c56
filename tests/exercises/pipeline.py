"""Answers to the exercises of chapter 00: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import math

import torch

import mi_course as mi

# --- pipeline.refusal_score ------------------------------------------------------------------------------------------


def score_by_logsumexp(logits, ids):
    rest = [i for i in range(logits.shape[1]) if i not in ids]
    return torch.logsumexp(logits[:, ids], dim=1) - torch.logsumexp(logits[:, rest], dim=1)


def score_by_log_softmax(logits, ids):
    logp = torch.log_softmax(logits, dim=-1)
    refuse = torch.logsumexp(logp[:, ids], -1)
    others = logp.clone()
    others[:, ids] = -torch.inf
    return refuse - torch.logsumexp(others, -1)


def score_row_by_row(logits, ids):
    scores = []
    for row in logits:
        top = row.max()
        up = sum(math.exp(row[i] - top) for i in range(len(row)) if i in ids)
        down = sum(math.exp(row[i] - top) for i in range(len(row)) if i not in ids)
        scores.append(math.log(up) - math.log(down))
    return torch.tensor(scores)


def score_masks_in_place(logits, ids):
    up = logits[:, ids].logsumexp(-1)
    logits[:, ids] = -torch.inf
    return up - logits.logsumexp(-1)


def score_clamped(logits, ids):
    p = logits.softmax(-1)[:, ids].sum(-1).clamp(1e-9, 1 - 1e-6)
    return p.log() - (1 - p).log()


def score_infinite(logits, ids):
    p = logits.softmax(-1)[:, ids].sum(-1)
    return p.log() - (1 - p).log()


def score_over_the_batch(logits, ids):
    p = logits.softmax(0)[:, ids].sum(-1)
    return p.log() - (1 - p).log()


# --- pipeline.mean_difference ----------------------------------------------------------------------------------------


def difference_by_sums(harmful, harmless):
    return harmful.sum(dim=0) / len(harmful) - harmless.sum(dim=0) / len(harmless)


def difference_by_weights(harmful, harmless):
    states = torch.cat([harmful, harmless])
    weights = torch.cat(
        [torch.full((len(harmful),), 1 / len(harmful)), torch.full((len(harmless),), -1 / len(harmless))]
    )
    return weights @ states


def difference_in_place(harmful, harmless):
    harmful -= harmless.mean(0)
    return harmful.mean(0)


def first_principal_component(harmful, harmless):
    states = torch.cat([harmful, harmless])
    states = states - states.mean(0)
    direction = torch.linalg.svd(states, full_matrices=False).Vh[0]
    size = (harmful.mean(0) - harmless.mean(0)).norm()
    return direction * size * torch.sign(direction @ (harmful.mean(0) - harmless.mean(0)))


# --- pipeline.ablate_direction ---------------------------------------------------------------------------------------


def ablate_by_einsum(x, r):
    r = torch.nn.functional.normalize(r, dim=0)
    return x - torch.einsum("...d,d,e->...e", x, r, r)


def ablate_by_matrix(x, r):
    return x @ (torch.eye(r.numel()) - r[:, None] * r / (r * r).sum())


def ablate_by_keepdim(x, r):
    return x - (x * r).sum(-1, keepdim=True) / r.pow(2).sum() * r


def ablate_without_new_axis(x, r):
    r = r / r.norm()
    return x - (x @ r) * r if x.dim() != 1 and len(x) == len(r) else x - (x @ r).unsqueeze(-1) * r


def ablate_in_place(x, r):
    r = r / r.norm()
    x -= (x @ r)[..., None] * r
    return x


def ablate_in_numpy(x, r):
    x, r = x.numpy(), (r / r.norm()).numpy()
    return x - (x @ r)[..., None] * r


# --- pipeline.head_effects -------------------------------------------------------------------------------------------


def effects_with_loops(model, task):
    base = task.measure(model).mean()
    effects = torch.zeros(model.n_layers, model.n_heads)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            with mi.intervene(model, mi.zero(f"L{layer}H{head}.z")):
                effects[layer, head] = task.measure(model).mean() - base
    return effects.detach()


def effects_by_scaling_results(model, task):
    def measure(*edits):
        with torch.no_grad(), mi.intervene(model, *edits):
            return task.measure(model)

    rows = [
        [(measure(mi.scale(f"L{layer}H{head}", 0.0)) - measure()).mean() for head in range(model.n_heads)]
        for layer in range(model.n_layers)
    ]
    return torch.stack([torch.stack(row) for row in rows])


def effects_with(change=lambda ablated, base: (ablated - base).mean(), site="L{layer}H{head}.z", positions="all"):
    def answer(model, task):
        base = task.measure(model).detach()
        effects = torch.zeros(model.n_layers, model.n_heads)
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                with mi.intervene(model, mi.zero(site.format(layer=layer, head=head), positions)):
                    effects[layer, head] = change(task.measure(model).detach(), base)
        return effects

    return answer


def effects_piling_up(model, task):
    effects, opened = torch.zeros(model.n_layers, model.n_heads), []
    base = task.measure(model).mean().detach()
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            opened.append(mi.zero(f"L{layer}H{head}.z"))
            with mi.intervene(model, *opened):
                effects[layer, head] = task.measure(model).mean().detach() - base
    return effects


def effects_leaving_hooks(model, task):
    base = task.measure(model).mean().detach()
    effects = torch.zeros(model.n_layers, model.n_heads)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            block = mi.intervene(model, mi.zero(f"L{layer}H{head}.z"))
            block.__enter__()
            effects[layer, head] = task.measure(model).mean().detach() - base
            effects_leaving_hooks.kept.append(block)  # never closed
    return effects


effects_leaving_hooks.kept = []


def effects_erasing_weights(model, task):
    base = task.measure(model).mean().detach()
    effects = torch.zeros(model.n_layers, model.n_heads)
    for layer in range(model.n_layers):
        for head in range(model.n_heads):
            with torch.no_grad():
                weight = model.block(layer).attn.c_proj.weight
                weight[head * model.d_head : (head + 1) * model.d_head] = 0
            effects[layer, head] = task.measure(model).mean().detach() - base
    return effects


# --- pipeline.null_band ----------------------------------------------------------------------------------------------


def band_with_loop(effect, direction, n=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(n):
        v = torch.randn(direction.shape, generator=generator)
        values.append(float(effect(v / v.norm() * direction.norm())))
    values = torch.tensor(values)
    return (values.mean() - 2 * values.std()).item(), (values.mean() + 2 * values.std()).item()


def band_in_numpy(effect, direction, n=20, seed=0):
    import numpy as np

    draws = np.random.default_rng(seed).normal(size=(n, len(direction)))
    draws *= direction.norm().item() / np.linalg.norm(draws, axis=1, keepdims=True)
    values = [effect(torch.tensor(v, dtype=torch.float32)) for v in draws]
    return np.mean(values) - 2 * np.std(values), np.mean(values) + 2 * np.std(values)


def band_with(
    draw=lambda d, g: torch.randn(len(d), generator=g),
    scale=lambda v, d: v / v.norm() * d.norm(),
    edges=lambda x: (x.mean() - 2 * x.std(), x.mean() + 2 * x.std()),
    generator=lambda seed: torch.Generator().manual_seed(seed),
):
    def answer(effect, direction, n=20, seed=0):
        g = generator(seed)
        values = torch.tensor([float(effect(scale(draw(direction, g), direction))) for _ in range(n)])
        low, high = edges(values)
        return float(low), float(high)

    return answer


RIGHT = {
    "pipeline.refusal_score": [score_by_logsumexp, score_by_log_softmax, score_row_by_row],
    "pipeline.mean_difference": [
        difference_by_sums,
        difference_by_weights,
        lambda harmful, harmless: torch.mean(harmful, 0) - torch.mean(harmless, 0),
    ],
    "pipeline.ablate_direction": [ablate_by_einsum, ablate_by_matrix, ablate_by_keepdim],
    "pipeline.head_effects": [effects_with_loops, effects_by_scaling_results],
    "pipeline.null_band": [band_with_loop, band_in_numpy],
}

WRONG = {
    "pipeline.refusal_score": {
        "log P only": (lambda x, ids: x.softmax(-1)[:, ids].sum(-1).log(), "This is log P."),
        "P": (lambda x, ids: x.softmax(-1)[:, ids].sum(-1), "the probability P itself"),
        "odds": (lambda x, ids: (lambda p: p / (1 - p))(x.softmax(-1)[:, ids].sum(-1)), "without the logarithm"),
        "sign": (lambda x, ids: -score_by_logsumexp(x, ids), "sign is turned round"),
        "mean logits": (
            lambda x, ids: x[:, ids].mean(-1) - x[:, [i for i in range(x.shape[1]) if i not in ids]].mean(-1),
            "Probabilities add up",
        ),
        "against all tokens": (
            lambda x, ids: x[:, ids[0]] - x.logsumexp(-1),
            "One of the two sums runs over all tokens",
        ),
        "first token only": (lambda x, ids: score_by_logsumexp(x, ids[:1]), "Only one of the refusal tokens"),
        "batch axis": (score_over_the_batch, "P came out above 1"),
        "infinite": (score_infinite, "its logarithm is infinite"),
        "clamped": (score_clamped, "the score stops growing"),
        "in place": (score_masks_in_place, "wrote into an argument"),
        "one number": (lambda x, ids: score_by_logsumexp(x, ids).mean(), "it should be [1]"),
        "raw logits": (lambda x, ids: x[:, ids].sum(-1) + math.log(0.5), "constant added to all logits"),
    },
    "pipeline.mean_difference": {
        "sign": (lambda a, b: b.mean(0) - a.mean(0), "sign is turned round"),
        "unit": (lambda a, b: (a.mean(0) - b.mean(0)) / (a.mean(0) - b.mean(0)).norm(), "scaled to length 1"),
        "sums": (lambda a, b: a.sum(0) - b.sum(0), "These are sums"),
        "all numbers": (lambda a, b: a.mean() - b.mean(), "mean of all numbers"),
        "pairs": (lambda a, b: (a - b).mean(0), "Shapes do not fit"),
        "medians": (lambda a, b: a.median(0).values - b.median(0).values, "Medians or single prompts"),
        "in place": (difference_in_place, "wrote into an argument"),
        "principal component": (first_principal_component, "follows the loudest dimension"),
        "no return": (lambda a, b: None, "is a `return` missing"),
    },
    "pipeline.ablate_direction": {
        "part along r": (lambda x, r: (x @ r / (r @ r))[..., None] * r, "the one that should go"),
        "added": (lambda x, r: x + (x @ r / (r @ r))[..., None] * r, "added instead of taken away"),
        "subtracts r": (lambda x, r: x - r / r.norm(), "How much of r is in x"),
        "reflects": (lambda x, r: x - 2 * (x @ r / (r @ r))[..., None] * r, "taken away twice"),
        "not scaled": (lambda x, r: x - (x @ r)[..., None] * r, "25 times too much"),
        "scaled once": (lambda x, r: x - (x @ r / r.norm())[..., None] * r, "in one of its two places only"),
        "elementwise": (lambda x, r: x - x * (r / r.norm()) ** 2, "number by number"),
        "erases dimensions": (lambda x, r: x * (r == 0), "dimensions in which r is not 0"),
        "broadcasts": (ablate_without_new_axis, "along the same axis"),
        "one dot product": (
            lambda x, r: ablate_by_matrix(x, r) if x.dim() < 3 else x - (x * r).sum() / (r @ r) * r,
            "One dot product was used for all positions",
        ),
        "in place": (ablate_in_place, "wrote into an argument"),
        "numpy": (ablate_in_numpy, "of type ndarray"),
        "flattened": (lambda x, r: ablate_by_matrix(x, r).reshape(-1, len(r)), "The shape is"),
    },
    "pipeline.head_effects": {
        "sign": (effects_with(lambda ablated, base: (base - ablated).mean()), "sign is turned round"),
        "no base": (effects_with(lambda ablated, base: ablated.mean()), "base was not taken away"),
        "sizes": (effects_with(lambda ablated, base: (ablated - base).mean().abs()), "sizes without signs"),
        "sums": (effects_with(lambda ablated, base: (ablated - base).sum()), "take the mean"),
        "first item": (effects_with(lambda ablated, base: (ablated - base)[0]), "first item only"),
        "relative": (effects_with(lambda ablated, base: (ablated - base).mean() / base.mean()), "rescaled"),
        "whole layer": (effects_with(site="attn{layer}"), "whole layer was ablated"),
        "transposed": (lambda model, task: effects_with()(model, task).T, "Rows and columns are swapped"),
        "last position": (effects_with(positions="last"), "Only the last position was ablated"),
        "piling up": (effects_piling_up, "on top of each other"),
        "leaves hooks": (effects_leaving_hooks, "Use a `with` block"),
        "erases weights": (effects_erasing_weights, "so that the model is left as it was"),
    },
    "pipeline.null_band": {
        "unit length": (band_with(scale=lambda v, d: v / v.norm()), "have length 1"),
        "any length": (band_with(scale=lambda v, d: v), "lengths differ from draw to draw"),
        "twice the norm": (band_with(scale=lambda v, d: v / v.norm() * d.norm() ** 2), "but not that of `direction`"),
        "one s.d.": (band_with(edges=lambda x: (x.mean() - x.std(), x.mean() + x.std())), "take two"),
        "standard error": (
            band_with(edges=lambda x: (x.mean() - 2 * x.std() / len(x) ** 0.5, x.mean() + 2 * x.std() / len(x) ** 0.5)),
            "error of the mean",
        ),
        "range": (band_with(edges=lambda x: (x.min(), x.max())), "smallest and the largest draw"),
        "variance": (band_with(edges=lambda x: (x.mean() - 2 * x.var(), x.mean() + 2 * x.var())), "variance was used"),
        "around zero": (band_with(edges=lambda x: (-2 * x.std(), 2 * x.std())), "centred on 0"),
        "swapped": (band_with(edges=lambda x: (x.mean() + 2 * x.std(), x.mean() - 2 * x.std())), "swapped"),
        "positive numbers": (band_with(draw=lambda d, g: torch.rand(len(d), generator=g)), "point to one side"),
        "shuffled": (
            band_with(
                draw=lambda d, g: d[torch.randperm(len(d), generator=g)] + 1e-6 * torch.randn(len(d), generator=g)
            ),
            "Shuffled or sign-flipped",
        ),
        "no seed": (band_with(generator=lambda seed: None), "do not depend on `seed`"),
        "fixed seed": (band_with(generator=lambda seed: torch.Generator().manual_seed(0)), "fixed inside the function"),
        "same draw": (
            lambda effect, d, n=20, seed=0: band_with(
                draw=lambda d, g: torch.randn(len(d), generator=g.manual_seed(seed))
            )(effect, d, n, seed),
            "same direction is used for every draw",
        ),
    },
}

# Changes that leave an answer right: logits are [B, V], so the last axis is axis 1.
SAME = {"pipeline.refusal_score": {f"score_by_log_softmax, line {line}: -1 -> +1" for line in (2, 3, 6)}}
