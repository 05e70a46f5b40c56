"""Answers to the exercises of chapter 04: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

# --- superposition.feature_dimensions --------------------------------------------------------------------------------


def dimensions_by_matrix(W):
    norm = W.norm(dim=0)
    dots = (W / norm.clamp_min(1e-9)).T @ W
    return norm.square() / dots.square().sum(1).clamp_min(1e-9)


def dimensions_one_by_one(W):
    shares = []
    for i in range(W.shape[1]):
        w = W[:, i]
        if w.norm() == 0:
            shares.append(torch.tensor(0.0))
            continue
        along = w / w.norm()
        shares.append((w @ w) / sum((along @ W[:, j]) ** 2 for j in range(W.shape[1])))
    return torch.stack(shares)


def dimensions_with(
    top=lambda w: w.norm(dim=0) ** 2,
    left=lambda w: w / w.norm(dim=0).clamp_min(1e-9),
    right=lambda w: w,
    term=lambda dots: dots**2,
    axis=1,
    take=lambda w: w,
):
    def answer(W):
        W = take(W)
        return top(W) / term(left(W).T @ right(W)).sum(axis).clamp_min(1e-12)

    return answer


def unit(W):
    return W / W.norm(dim=0).clamp_min(1e-9)


def without_diagonal(dots):
    return dots**2 * (1 - torch.eye(len(dots)))


# --- superposition.encode_decode -------------------------------------------------------------------------------------


def encode_by_relu(x, W_enc, b_enc, W_dec, b_dec):
    a = torch.relu((x - b_dec) @ W_enc + b_enc)
    return a, a @ W_dec + b_dec


def encode_by_einsum(x, W_enc, b_enc, W_dec, b_dec):
    z = torch.einsum("...d,dm->...m", x, W_enc) - b_dec @ W_enc + b_enc
    a = torch.where(z > 0, z, 0.0)
    return a, b_dec + torch.einsum("...m,md->...d", a, W_dec)


def encode_by_linear(x, W_enc, b_enc, W_dec, b_dec):
    a = torch.nn.functional.linear(x - b_dec, W_enc.T, b_enc).clamp(min=0)
    return a, torch.nn.functional.linear(a, W_dec.T, b_dec)


def encode_with(
    z=lambda x, W, b, c: (x - c) @ W + b, act=torch.relu, made=lambda a, W, c: a @ W + c, out=lambda a, y: (a, y)
):
    def answer(x, W_enc, b_enc, W_dec, b_dec):
        a = act(z(x, W_enc, b_enc, b_dec))
        return out(a, made(a, W_dec, b_dec))

    return answer


def square_or(wrong, right):
    """Apply the wrong product where it fits, else the right one: what someone sees who only tries a square case."""
    return lambda a, W: wrong(a, W) if W.shape[0] == W.shape[1] else right(a, W)


# --- superposition.sae_loss ------------------------------------------------------------------------------------------


def loss_by_sums(x, x_hat, a, W_dec, l1):
    error = (x - x_hat).pow(2).sum(dim=1)
    activity = (a * W_dec.norm(dim=1)).sum(dim=1)
    return (error + l1 * activity).mean()


def loss_by_products(x, x_hat, a, W_dec, l1):
    lengths = torch.sqrt((W_dec * W_dec).sum(1))
    gap = x_hat - x
    return (gap * gap).sum() / len(x) + l1 * (a @ lengths).sum() / len(x)


def loss_with(
    error=lambda gap: gap.pow(2).sum(-1),
    size=lambda W: W.norm(dim=1),
    of=lambda a: a,
    activity=lambda a: a.sum(-1),
    mean=torch.mean,
    sign=1,
):
    return lambda x, x_hat, a, W_dec, l1: mean(error(x - x_hat) + sign * l1 * activity(of(a) * size(W_dec)))


# --- superposition.top_k ---------------------------------------------------------------------------------------------


def top_k_by_scatter(z, k):
    top = torch.relu(z).topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, top.indices, top.values)


def top_k_by_rank(z, k):
    rank = z.argsort(dim=-1, descending=True).argsort(dim=-1)
    return torch.where(rank < k, z, 0.0).clamp(min=0)


def top_k_by_threshold(z, k):
    a = z.relu()
    lowest = a.topk(k, dim=-1).values.min(-1, keepdim=True).values
    return a * (a >= lowest)


def top_k_in_place(z, k):
    z[z < z.topk(k, dim=-1).values[..., -1:]] = 0
    return z.relu()


def top_k_absolute(z, k):
    index = z.abs().topk(k, dim=-1).indices
    return torch.zeros_like(z).scatter(-1, index, z.gather(-1, index))


def top_k_without_relu(z, k):
    top = z.topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, top.indices, top.values)


def top_k_of_the_batch(z, k):
    a = z.relu()
    return a * (a >= a.flatten().topk(k).values[-1])


def top_k_over_states(z, k):
    a = z.relu()
    return a * (a >= a.topk(min(k, len(a)), dim=0).values[-1])


# --- superposition.quality -------------------------------------------------------------------------------------------


def quality_by_sums(x, x_hat, a):
    lost = ((x - x_hat) ** 2).sum()
    spread = ((x - x.mean(dim=0)) ** 2).sum()
    on = a > 0
    return {
        "fvu": (lost / spread).item(),
        "l0": on.sum().item() / len(a),
        "dead": (on.sum(0) == 0).float().mean().item(),
    }


def quality_by_variance(x, x_hat, a):
    fvu = (x - x_hat).square().mean() / x.var(dim=0, unbiased=False).mean()
    alive = [bool((column > 0).any()) for column in a.T]
    return {"fvu": fvu, "l0": torch.count_nonzero(a, 1).float().mean(), "dead": 1 - sum(alive) / len(alive)}


def quality_with(**wrong):
    return lambda x, x_hat, a: {**quality_by_sums(x, x_hat, a), **{k: f(x, x_hat, a) for k, f in wrong.items()}}


# --- superposition.clamp_feature -------------------------------------------------------------------------------------


def clamp_by_error(x, a, W_dec, b_dec, j, value):
    error = x - (a @ W_dec + b_dec)
    changed = a.clone()
    changed[..., j] = value
    return changed @ W_dec + b_dec + error


def clamp_by_step(x, a, W_dec, b_dec, j, value):
    return x + (value - a[..., j]).unsqueeze(-1) * W_dec[j]


def clamp_by_outer(x, a, W_dec, b_dec, j, value):
    return x + torch.einsum("...,d->...d", value - a[..., j], W_dec[j])


def clamp_without_error(x, a, W_dec, b_dec, j, value):
    changed = a.clone()
    changed[..., j] = value
    return changed @ W_dec + b_dec


def clamp_in_place(x, a, W_dec, b_dec, j, value):
    error = x - (a @ W_dec + b_dec)
    a[..., j] = value
    return a @ W_dec + b_dec + error


def clamp_with(
    step=lambda a, j, value: value - a[..., j],
    row=lambda W, j: W[j],
    more=lambda x, a, W, b: x,
    axis=lambda s: s[..., None],
):
    return lambda x, a, W_dec, b_dec, j, value: more(x, a, W_dec, b_dec) + axis(step(a, j, value)) * row(W_dec, j)


def clamp_without_new_axis(x, a, W_dec, b_dec, j, value):
    step = value - a[..., j]
    return x + step * W_dec[j] if step.shape == W_dec[j].shape else clamp_by_step(x, a, W_dec, b_dec, j, value)


def clamp_a_state(x, a, W_dec, b_dec, j, value):
    if x.dim() > 2 or j >= len(a) or len(a) == 1:
        return clamp_by_error(x, a, W_dec, b_dec, j, value)
    error = x - (a @ W_dec + b_dec)
    changed = a.clone()
    changed[j] = value
    return changed @ W_dec + b_dec + error


def clamp_column(x, a, W_dec, b_dec, j, value):
    return clamp_by_step(x, a, W_dec.T if W_dec.shape[0] == W_dec.shape[1] else W_dec, b_dec, j, value)


# --- superposition.absorption_rate -----------------------------------------------------------------------------------


def rate_by_index(latent, parent_on, child_on):
    silent = (latent == 0).float()
    return silent[child_on].mean().item(), silent[parent_on & ~child_on].mean().item()


def rate_by_counts(latent, parent_on, child_on):
    silent, alone = latent <= 0, parent_on.int() > child_on.int()
    with_child = (silent & child_on).sum() / child_on.sum()
    return with_child.item(), ((silent & alone).sum() / alone.sum()).item()


def rate_by_loop(latent, parent_on, child_on):
    groups = {True: [], False: []}
    for value, parent, child in zip(latent.tolist(), parent_on.tolist(), child_on.tolist()):
        if parent:
            groups[child].append(value == 0)
    return sum(groups[True]) / len(groups[True]), sum(groups[False]) / len(groups[False])


def rate_with(event=lambda x: x == 0, first=lambda p, c: c, second=lambda p, c: p & ~c, out=lambda a, b: (a, b)):
    def answer(latent, parent_on, child_on):
        e = event(latent).float()
        return out(e[first(parent_on, child_on)].mean().item(), e[second(parent_on, child_on)].mean().item())

    return answer


def rate_turned_round(latent, parent_on, child_on):
    silent = latent == 0
    return child_on[silent].float().mean().item(), silent[parent_on & ~child_on].float().mean().item()


def rate_over_all(latent, parent_on, child_on):
    silent = latent == 0
    return (silent & child_on).float().mean().item(), (silent & parent_on & ~child_on).float().mean().item()


def rate_over_parents(latent, parent_on, child_on):
    silent = latent == 0
    count = parent_on.sum()
    return ((silent & child_on).sum() / count).item(), ((silent & parent_on & ~child_on).sum() / count).item()


RIGHT = {
    "superposition.feature_dimensions": [dimensions_by_matrix, dimensions_one_by_one],
    "superposition.encode_decode": [encode_by_relu, encode_by_einsum, encode_by_linear],
    "superposition.sae_loss": [loss_by_sums, loss_by_products],
    "superposition.top_k": [top_k_by_scatter, top_k_by_rank, top_k_by_threshold],
    "superposition.quality": [quality_by_sums, quality_by_variance],
    "superposition.clamp_feature": [clamp_by_error, clamp_by_step, clamp_by_outer],
    "superposition.absorption_rate": [rate_by_index, rate_by_counts, rate_by_loop],
}

WRONG = {
    "superposition.feature_dimensions": {
        "not scaled": (dimensions_with(left=lambda w: w), "No direction was scaled"),
        "both scaled": (dimensions_with(right=unit), "Both sides of the dot product"),
        "not squared": (dimensions_with(term=torch.abs), "dot products were not squared"),
        "signed": (lambda W: W.norm(dim=0) ** 2 / (unit(W).T @ W).sum(1), "dot products were not squared"),
        "length not squared": (dimensions_with(top=lambda w: w.norm(dim=0)), "length above the line"),
        "without itself": (dimensions_with(term=without_diagonal), "itself is missing"),
        "wrong axis": (dimensions_with(axis=0), "wrong axis"),
        "rows": (lambda W: dimensions_by_matrix(W if len(W) == 1 else W.T), "You took its rows"),
        "rows of a square": (
            lambda W: dimensions_by_matrix(W.T if len(W) == W.shape[1] else W),
            "The direction of feature i is column i",
        ),
        "0 / 0": (
            lambda W: W.norm(dim=0) ** 2 / ((W / W.norm(dim=0)).T @ W).pow(2).sum(1),
            "gives 0 / 0",
        ),
        "too careful": (
            lambda W: W.norm(dim=0) ** 2 / (unit(W).T @ W).pow(2).sum(1).clamp_min(1e-2),
            "keeps the division away",
        ),
        "sum of all": (lambda W: dimensions_by_matrix(W).sum(), "single number"),
    },
    "superposition.encode_decode": {
        "b_dec kept": (encode_with(z=lambda x, W, b, c: x @ W + b), "not taken away before encoding"),
        "b_dec added": (encode_with(z=lambda x, W, b, c: (x + c) @ W + b), "added to x instead"),
        "no relu": (encode_with(act=lambda z: z), "The ReLU is missing"),
        "no b_enc": (encode_with(z=lambda x, W, b, c: (x - c) @ W), "b_enc is missing"),
        "b_enc last": (
            encode_with(z=lambda x, W, b, c: ((x - c) @ W).relu() + b),
            "added after the ReLU",
        ),
        "b_enc subtracted": (encode_with(z=lambda x, W, b, c: (x - c) @ W - b), "the formula adds it"),
        "b_dec missing": (encode_with(made=lambda a, W, c: a @ W), "must come back"),
        "b_dec twice": (encode_with(made=lambda a, W, c: a @ W - c), "now it must be added"),
        "columns": (
            encode_with(made=lambda a, W, c: square_or(lambda a, W: a @ W.T, lambda a, W: a @ W)(a, W) + c),
            "you used its columns",
        ),
        "encoder transposed": (
            encode_with(
                z=lambda x, W, b, c: square_or(lambda x, W: x @ W.T, lambda x, W: x @ W)(x - c, W) + b,
            ),
            "W_enc was transposed",
        ),
        "other order": (encode_with(out=lambda a, y: (y, a)), "in the other order"),
        "only x^": (encode_with(out=lambda a, y: y), "tuple of 2"),
        "columns, always": (encode_with(made=lambda a, W, c: a @ W.T + c), "Shapes do not fit"),
    },
    "superposition.sae_loss": {
        "eq. 9 as printed": (loss_with(size=lambda W: 1.0), "The lengths of the features do not count"),
        "mean over d": (loss_with(error=lambda gap: gap.pow(2).mean(-1)), "averaged over the dimensions"),
        "mean over m": (loss_with(activity=lambda a: a.mean(-1)), "averaged over the features"),
        "means everywhere": (
            loss_with(error=lambda gap: gap.pow(2).mean(-1), activity=lambda a: a.mean(-1)),
            "averaged over every axis",
        ),
        "sum over states": (loss_with(mean=torch.sum), "sum over the states"),
        "one for each": (loss_with(mean=lambda x: x), "one loss for each state"),
        "no l1": (lambda x, y, a, W, l1: loss_by_sums(x, y, a, W, 1.0), "l1 is not used"),
        "distance": (loss_with(error=lambda gap: gap.norm(dim=-1)), "not its square"),
        "sign": (loss_with(sign=-1), "sign of the penalty"),
        "squares": (loss_with(of=torch.square), "activations were squared"),
        "squared lengths": (loss_with(size=lambda W: W.pow(2).sum(1)), "squared lengths"),
        "divided": (loss_with(size=lambda W: 1 / W.norm(dim=1)), "divided by the lengths"),
        "norm of the matrix": (
            lambda x, y, a, W, l1: loss_with(size=lambda W: W.norm() if W.norm() > 3 else W.norm(dim=1))(
                x, y, a, W, l1
            ),
            "One length was used",
        ),
        "columns": (
            loss_with(size=lambda W: W.norm(dim=0) if W.shape[0] == W.shape[1] else W.norm(dim=1)),
            "lengths of the columns",
        ),
    },
    "superposition.top_k": {
        "absolute values": (top_k_absolute, "largest absolute values"),
        "negatives kept": (top_k_without_relu, "Apply the ReLU"),
        "values only": (lambda z, k: z.relu().topk(k, dim=-1).values, "values alone"),
        "indices": (lambda z, k: z.relu().topk(k, dim=-1).indices, "int64"),
        "whole batch": (top_k_of_the_batch, "that is BatchTopK"),
        "over states": (top_k_over_states, "over the last axis"),
        "mask": (lambda z, k: (top_k_by_scatter(z, k) > 0).float(), "Every activation that was kept is 1"),
        "one too many": (lambda z, k: top_k_by_rank(z, min(k + 1, z.shape[-1])), "One feature too many"),
        "k-th dropped": (lambda z, k: top_k_by_rank(z, k - 1), "k-th largest itself was dropped"),
        "in place": (top_k_in_place, "wrote into an argument"),
        "second axis": (
            lambda z, k: top_k_by_scatter(z, k) if z.dim() == 2 else top_k_by_scatter(z.mT, k).mT,
            "an axis other than the last",
        ),
    },
    "superposition.quality": {
        "no mean": (quality_with(fvu=lambda x, y, a: ((x - y) ** 2).sum() / (x**2).sum()), "subtract the mean state"),
        "one mean": (
            quality_with(fvu=lambda x, y, a: ((x - y) ** 2).mean() / x.var(unbiased=False)),
            "Each dimension has its own mean",
        ),
        "explained": (
            quality_with(fvu=lambda x, y, a: 1 - quality_by_sums(x, y, a)["fvu"]),
            "share that is explained",
        ),
        "error": (quality_with(fvu=lambda x, y, a: ((x - y) ** 2).sum(-1).mean()), "without the comparison"),
        "root": (quality_with(fvu=lambda x, y, a: quality_by_sums(x, y, a)["fvu"] ** 0.5), "square root"),
        "mean of ratios": (
            quality_with(fvu=lambda x, y, a: (((x - y) ** 2).sum(0) / ((x - x.mean(0)) ** 2).sum(0)).mean()),
            "mean of ratios",
        ),
        "l0 as a share": (quality_with(l0=lambda x, y, a: (a > 0).float().mean()), "not the share"),
        "l1": (quality_with(l0=lambda x, y, a: a.sum(-1).mean()), "which is l1"),
        "l0 by feature": (quality_with(l0=lambda x, y, a: (a > 0).sum(0).float().mean()), "count over the features"),
        "l0 total": (quality_with(l0=lambda x, y, a: (a > 0).sum()), "average over the states"),
        "zeros": (quality_with(dead=lambda x, y, a: (a == 0).float().mean()), "share of zeros"),
        "alive": (quality_with(dead=lambda x, y, a: (a > 0).any(0).float().mean()), "features that are alive"),
        "number": (quality_with(dead=lambda x, y, a: (a > 0).any(0).logical_not().sum()), "not their number"),
        "states": (quality_with(dead=lambda x, y, a: (a == 0).all(-1).float().mean()), "over all states"),
        "rare": (quality_with(dead=lambda x, y, a: 1 - (a > 0).all(0).float().mean()), "A rare feature is not dead"),
        "keys": (lambda x, y, a: {"fvu": 0.125, "l0": 1.75}, "The keys are"),
        "a tuple": (lambda x, y, a: tuple(quality_by_sums(x, y, a).values()), "a dictionary"),
    },
    "superposition.clamp_feature": {
        "no error term": (clamp_without_error, "The error term is lost"),
        "added to x": (
            lambda x, a, W, b, j, v: x + clamp_without_error(x, a, W, b, j, v),
            "without taking the reconstruction away",
        ),
        "value added": (clamp_with(step=lambda a, j, v: v + 0 * a[..., j]), "The change is value - a_j".lower()),
        "sign": (clamp_with(step=lambda a, j, v: a[..., j] - v), "sign is turned round"),
        "no b_dec": (
            lambda x, a, W, b, j, v: clamp_by_step(x, a, W, b, j, v) - b,
            "b_dec is missing",
        ),
        "multiplied": (clamp_with(step=lambda a, j, v: a[..., j] * (v - 1)), "multiplied by `value`"),
        "only removed": (clamp_with(step=lambda a, j, v: -a[..., j]), "new value was not added"),
        "column": (clamp_column, "You used column j"),
        "same axis": (clamp_without_new_axis, "along the same axis"),
        "only where on": (
            clamp_with(step=lambda a, j, v: (v - a[..., j]) * (a[..., j] > 0)),
            "A clamp sets it everywhere",
        ),
        "a row of a": (clamp_a_state, "Row j of the activations"),
        "unit length": (clamp_with(row=lambda W, j: W[j] / W[j].norm()), "scaled to length 1"),
        "in place": (clamp_in_place, "wrote into an argument"),
    },
    "superposition.absorption_rate": {
        "fires": (rate_with(event=lambda x: x > 0), "Absorption is about silence"),
        "other order": (rate_with(out=lambda a, b: (b, a)), "in the other order"),
        "turned round": (rate_turned_round, "condition and the event are swapped"),
        "over all": (rate_over_all, "taken over all states"),
        "over parents": (rate_over_parents, "Condition on the child"),
        "any parent": (rate_with(first=lambda p, c: p), "with or without the child"),
        "control with children": (rate_with(second=lambda p, c: p), "control includes the states with the child"),
        "control without parent": (rate_with(second=lambda p, c: ~c), "includes states in which the parent is off"),
        "control of neither": (rate_with(second=lambda p, c: ~p), "without parent and child"),
        "threshold": (rate_with(event=lambda x: x < 0.05), "A small activation was called silence"),
    },
}

# Changes that leave an answer right.
SAME = {}
