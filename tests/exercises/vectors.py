"""Answers to the exercises of chapter 14: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import math

import torch

# --- vectors.mean_state ----------------------------------------------------------------------------------------------


def mean_by_columns(x, mask, token):
    if token is None:
        weight = mask.float()
        return (x * weight[..., None]).sum((0, 1)) / weight.sum()
    lengths, start = mask.sum(1), mask.long().argmax(1)
    columns = start + (token if token >= 0 else lengths + token)
    return x[torch.arange(len(x)), columns].mean(0)


def mean_prompt_by_prompt(x, mask, token):
    rows = [[x[i, t] for t in range(x.shape[1]) if mask[i, t]] for i in range(len(x))]
    chosen = [state for row in rows for state in row] if token is None else [row[token] for row in rows]
    return sum(chosen) / len(chosen)


def mean_with(none=mean_by_columns, one=mean_by_columns):
    return lambda x, mask, token: (none if token is None else one)(x, mask, token)


# --- vectors.push ----------------------------------------------------------------------------------------------------


def push_by_einsum(x, v, share):
    size = torch.einsum("...d,...d->...", x, x).sqrt()
    return x + torch.einsum("...,d->...d", share * size, v / v.norm())


def push_with_normalize(x, v, share):
    unit = torch.nn.functional.normalize(v, dim=0)
    return x.add(unit * torch.linalg.vector_norm(x, dim=-1).unsqueeze(-1), alpha=share)


# --- vectors.sae_vector ----------------------------------------------------------------------------------------------


def sae_by_parts(up, down, W_dec, k):
    parts = (up.mean(0) - down.mean(0))[:, None] * W_dec
    order = parts.norm(dim=1).argsort(descending=True)
    return parts[order[:k]].sum(0)


def sae_with_mask(up, down, W_dec, k):
    delta = torch.tensor([float(u.mean() - d.mean()) for u, d in zip(up.T, down.T)])
    length = [abs(float(delta[j])) * float(W_dec[j].norm()) for j in range(len(delta))]
    chosen = sorted(range(len(length)), key=lambda j: -length[j])[:k]
    mask = torch.zeros(len(delta))
    mask[chosen] = 1
    return (delta * mask) @ W_dec


def sae_with(rank=lambda delta, W: delta.abs() * W.norm(dim=1), delta_of=lambda u, d: u.mean(0) - d.mean(0),
             result=lambda delta, W: delta @ W):  # fmt: skip
    def answer(up, down, W_dec, k):
        delta = delta_of(up, down)
        chosen = rank(delta, W_dec).topk(k).indices
        return result(delta[chosen], W_dec[chosen])

    return answer


# --- vectors.orthogonalise -------------------------------------------------------------------------------------------


def orthogonal_by_moving(W, r, axis):
    r = r / r.norm()
    rows = W.movedim(axis, -1)
    return (rows - (rows @ r)[..., None] * r).movedim(-1, axis)


def orthogonal_by_projector(W, r, axis):
    P = torch.eye(len(r)) - torch.outer(r, r) / (r @ r)
    return torch.tensordot(W.movedim(axis, -1), P, dims=1).movedim(-1, axis)


def raw_orthogonal(W, r, axis):
    rows = W.movedim(axis, -1)
    return (rows - (rows @ r)[..., None] * r).movedim(-1, axis)


def part_along(W, r, axis):
    return W - orthogonal_by_moving(W, r, axis)


def zeroed(W, r, axis):
    keep = (r == 0).float()
    shape = [1] * W.dim()
    shape[axis] = -1
    return W * keep.view(shape)


# --- vectors.without -------------------------------------------------------------------------------------------------


def without_by_least_squares(v, nuisances):
    N = nuisances / nuisances.norm(dim=1, keepdim=True)
    return v - N.T @ torch.linalg.lstsq(N.T, v[:, None]).solution[:, 0]


def without_by_gram_schmidt(v, nuisances):
    basis = []
    for n in nuisances:
        for b in basis:
            n = n - (n @ b) * b
        basis.append(n / n.norm())
    for b in basis:
        v = v - (v @ b) * b
    return v


def one_by_one(v, nuisances):
    for n in nuisances:
        v = v - (v @ n) / (n @ n) * n
    return v


def all_from_v(v, nuisances):
    return v - sum((v @ n) / (n @ n) * n for n in nuisances)


def their_mean(v, nuisances):
    n = nuisances.mean(0)
    return v - (v @ n) / (n @ n) * n


# --- vectors.dola ----------------------------------------------------------------------------------------------------


def dola_in_probabilities(final, early, alpha):
    p = final.exp()
    best, most = None, -1.0
    for row in early:
        q = row.exp()
        m = (p + q) / 2
        js = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
        if js > most:
            best, most = q, js
    scores = (p / best).log()
    scores[p < alpha * p.max()] = -1000.0
    return scores


def dola_with_kl_div(final, early, alpha):
    m = ((final.exp() + early.exp()) / 2).log()
    kl = torch.nn.functional.kl_div
    js = [
        kl(m[i], final, log_target=True, reduction="sum") + kl(m[i], early[i], log_target=True, reduction="sum")
        for i in range(len(early))
    ]
    chosen = early[int(torch.tensor(js).argmax())]
    return (final - chosen).masked_fill(final - final.max() < math.log(alpha), -1000.0)


def dola_with(choose=None, scores=lambda f, e: f - e, bar=lambda f, a: f >= f.max() + math.log(a), out=-1000.0):
    def answer(final, early, alpha):
        if choose is None:
            m = ((final.exp() + early.exp()) / 2).log()
            js = (final.exp() * (final - m)).sum(-1) + (early.exp() * (early - m)).sum(-1)
            chosen = early[js.argmax()]
        else:
            chosen = choose(final, early)
        return torch.where(bar(final, alpha), scores(final, chosen), out)

    return answer


def nearest(final, early):
    m = ((final.exp() + early.exp()) / 2).log()
    js = (final.exp() * (final - m)).sum(-1) + (early.exp() * (early - m)).sum(-1)
    return early[js.argmin()]


def by_kl(final, early):
    return early[(final.exp() * (final - early)).sum(-1).argmax()]


# --- vectors.ties ----------------------------------------------------------------------------------------------------


def ties_with_topk(deltas, density):
    k = round(density * deltas.shape[1])
    index = deltas.abs().topk(k, dim=1).indices
    kept = torch.zeros_like(deltas).scatter(1, index, deltas.gather(1, index))
    sign = kept.sum(0).sign()
    winners = torch.where(kept * sign > 0, kept, torch.nan)
    return torch.nanmean(winners, dim=0).nan_to_num(0.0)


def ties_weight_by_weight(deltas, density):
    k, rows = round(density * deltas.shape[1]), []
    for row in deltas:
        bar = row.abs().sort().values[-k]
        rows.append(torch.where(row.abs() >= bar, row, torch.zeros_like(row)))
    merged = []
    for column in torch.stack(rows).T:
        up, down = column[column > 0], column[column < 0]
        side = up if up.sum() > -down.sum() else down
        merged.append(side.mean() if len(side) else torch.tensor(0.0))
    return torch.stack(merged)


def trim_rows(deltas, density):
    k = round(density * deltas.shape[1])
    return deltas * (deltas.abs() >= deltas.abs().topk(k, dim=1).values[:, -1:])


def ties_with(trim=trim_rows, sign=lambda t: t.sum(0).sign(), mean=None):
    def answer(deltas, density):
        t = trim(deltas, density)
        agree = (t.sign() == sign(t)) & (t != 0)
        total = (t * agree).sum(0)
        return total / agree.sum(0).clamp(min=1) if mean is None else mean(total, t)

    return answer


def one_bar(deltas, density):
    k = round(density * deltas.numel())
    return deltas * (deltas.abs() >= deltas.abs().flatten().topk(k).values[-1])


RIGHT = {
    "vectors.mean_state": [mean_by_columns, mean_prompt_by_prompt],
    "vectors.push": [push_by_einsum, push_with_normalize],
    "vectors.sae_vector": [sae_by_parts, sae_with_mask],
    "vectors.orthogonalise": [orthogonal_by_moving, orthogonal_by_projector],
    "vectors.without": [without_by_least_squares, without_by_gram_schmidt],
    "vectors.dola": [dola_in_probabilities, dola_with_kl_div],
    "vectors.ties": [ties_with_topk, ties_weight_by_weight],
}

WRONG = {
    "vectors.mean_state": {
        "column": (mean_with(one=lambda x, m, t: x[:, t].mean(0)), "Padding was read: column -1"),
        "always all": (lambda x, m, t: mean_by_columns(x, m, None), "asks for the last one"),
        "kept apart": (lambda x, m, t: x[torch.arange(len(x)), m.sum(1) + t], "kept apart"),
        "right padding only": (
            mean_with(one=lambda x, m, t: x[torch.arange(len(x)), t % m.sum(1)].mean(0)),
            "column 0 of the batch",
        ),
        "mean of means": (
            mean_with(none=lambda x, m, t: ((x * m[..., None]).sum(1) / m.sum(1)[:, None]).mean(0)),
            "one by one first",
        ),
        "padding averaged": (mean_with(none=lambda x, m, t: x.mean((0, 1))), "Padding was averaged in"),
        "always last": (lambda x, m, t: mean_by_columns(x, m, -1), "whatever `token` says"),
    },
    "vectors.push": {
        "raw v": (lambda x, v, s: x + s * x.norm(dim=-1, keepdim=True) * v, "not brought to length 1"),
        "no size": (lambda x, v, s: x + s * v / v.norm(), "The length of x is missing"),
        "eq 21": (lambda x, v, s: x + s * v, "Eq. 21"),
        "push only": (lambda x, v, s: s * x.norm(dim=-1, keepdim=True) * v / v.norm(), "Only the push came back"),
        "one length": (lambda x, v, s: x + s * x.norm(dim=-1).mean() * v / v.norm(), "One length was used"),
        "sign": (lambda x, v, s: x - s * x.norm(dim=-1, keepdim=True) * v / v.norm(), "goes against v"),
    },
    "vectors.sae_vector": {
        "by delta": (sae_with(rank=lambda delta, W: delta.abs()), "largest delta was chosen"),
        "sizes": (sae_with(result=lambda delta, W: delta.abs() @ W), "The sign of delta was lost"),
        "unweighted": (
            lambda u, d, W, k: (
                sae_by_parts(u, d, W, k) if k == 1 else sae_with(result=lambda delta, W: W.sum(0))(u, d, W, k)
            ),
            "added with weight 1",
        ),
        "mean": (
            lambda u, d, W, k: sae_by_parts(u, d, W, k) / k,
            "divided by the number of features",
        ),
        "summed": (sae_with(delta_of=lambda u, d: u.sum(0) - d.sum(0)), "summed over examples"),
    },
    "vectors.orthogonalise": {
        "raw r": (raw_orthogonal, "not brought to length 1"),
        "other axis": (lambda W, r, a: orthogonal_by_moving(W, r, W.dim() - 1 - a), "The other axis was treated"),
        "last axis": (lambda W, r, a: orthogonal_by_moving(W, r, -1), "axis was ignored"),
        "the part": (part_along, "This is the part along r"),
        "zeroed": (zeroed, "More than the part along r"),
    },
    "vectors.without": {
        "raw": (lambda v, N: v - sum((v @ n) * n for n in N), "not brought to length 1"),
        "one by one": (one_by_one, "one after the other"),
        "all from v": (all_from_v, "counts what they share twice"),
        "subtracted": (
            lambda v, N: v - (N / N.norm(dim=1, keepdim=True)).sum(0) * v[0].sign() * 2,
            "The nuisance itself was subtracted",
        ),  # fmt: skip
        "the part": (lambda v, N: v - without_by_least_squares(v, N), "This is the part along the nuisance"),
        "mean": (their_mean, "The whole span must go"),
    },
    "vectors.dola": {
        "nearest": (dola_with(choose=nearest), "The nearest candidate was taken"),
        "average": (dola_with(choose=lambda f, e: e.mean(0)), "averaged; M is one of them"),
        "sign": (dola_with(scores=lambda f, e: e - f), "The sign is turned round"),
        "probabilities": (dola_with(scores=lambda f, e: f.exp() - e.exp()), "The probabilities were subtracted"),
        "no bar": (dola_with(bar=lambda f, a: f > -torch.inf), "Nothing was thrown out"),
        "minus infinity": (dola_with(out=-torch.inf), "Implausible tokens get -1000"),
        "absolute bar": (dola_with(bar=lambda f, a: f >= math.log(a)), "The bar is relative"),
        "kl": (dola_with(choose=by_kl), "compares both with their mean"),
    },
    "vectors.ties": {
        "no trim": (ties_with(trim=lambda d, density: d), "Nothing was trimmed"),
        "divided by all": (ties_with(mean=lambda total, t: total / len(t)), "divided by the number of tasks"),
        "one bar": (ties_with(trim=one_bar), "One bar was used for all tasks"),
        "sizes": (lambda d, density: ties_with_topk(d, density).abs(), "The signs were lost"),
        "votes": (ties_with(sign=lambda t: t.sign().sum(0).sign()), "The side with more votes"),
        "summed": (ties_with(mean=lambda total, t: total), "The winners were added up"),
        "plain mean": (
            lambda d, density: trim_rows(d, density).mean(0) if density == 1 else ties_with_topk(d, density),
            "This is the plain mean",
        ),  # fmt: skip
    },
}

SAME = {
    "vectors.dola": {  # a constant factor in m adds the same to every divergence, and a divergence is never negative
        "dola_in_probabilities, line 3: 1.0 -> 2.0",
        "dola_in_probabilities, line 6: 2 -> 3",
        "dola_with_kl_div, line 2: 2 -> 3",
        "dola_with_kl_div, line 2: (final.exp() + early.exp()) / 2 -> (final.exp() + early.exp()) * 2",
    },
    "vectors.ties": {"ties_with_topk, line 6: kept * sign -> kept / sign"},  # a sign is 1 or -1
}
