"""Answers to the exercises of chapter 05: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

# --- magnitude.mean_norm ---------------------------------------------------------------------------------------------


def norm_by_squares(x, mask):
    sizes = (x * x).sum(-1) ** 0.5
    return (sizes * mask).sum() / mask.sum()


def norm_of_real_tokens(x, mask):
    real = x[mask]
    return torch.linalg.vector_norm(real, dim=1).mean()


def norm_by_loop(x, mask):
    sizes = []
    for row, real in zip(x, mask):
        sizes += [state.norm() for state, keep in zip(row, real) if keep]
    return torch.stack(sizes).mean()


# --- magnitude.within_layers -----------------------------------------------------------------------------------------


def z_by_loop(values, layers):
    z = torch.zeros(len(values))
    for layer in sorted(set(layers.tolist())):
        own = [i for i, of in enumerate(layers.tolist()) if of == layer]
        z[own] = (values[own] - values[own].mean()) / values[own].std(correction=0)
    return z


def z_by_sums(values, layers):
    same = (layers[:, None] == layers[None]).float()
    n = same.sum(1)
    mean = same @ values / n
    variance = same @ values**2 / n - mean**2
    return (values - mean) / variance**0.5


def z(combine):
    def answer(values, layers):
        out = torch.empty_like(values)
        for layer in layers.unique():
            own = values[layers == layer]
            out[layers == layer] = combine(own)
        return out

    return answer


def z_by_number(values, layers):
    """Takes the layers for 0, 1, 2 ..."""
    out = torch.zeros_like(values)
    for layer in range(len(layers.unique())):
        own = values[layers == layer]
        out[layers == layer] = (own - own.mean()) / own.std(correction=0)
    return out


# --- magnitude.permutation_p -----------------------------------------------------------------------------------------


def gap(values, some):
    return (values[some].mean(0) - values[~some].mean(0)).abs()


def p_by_loop(values, labels, shuffled):
    true = gap(values, labels) - 1e-6
    count = torch.ones(values.shape[1])
    for some in shuffled:
        count = count + (gap(values, some) >= true).float()
    return count / (len(shuffled) + 1)


def p_by_matrix(values, labels, shuffled):
    every = torch.cat([labels[None], shuffled]).float()
    inside, outside = every.sum(1, keepdim=True), (1 - every).sum(1, keepdim=True)
    sizes = (every @ values / inside - (1 - every) @ values / outside).abs()
    return (sizes >= sizes[:1] - 1e-5).float().mean(0)


def p_with(size=gap, compare=lambda null, true: null >= true - 1e-6, above=1, below=1):
    def answer(values, labels, shuffled):
        true = size(values, labels)
        count = sum(compare(size(values, some), true).float() for some in shuffled)
        return (above + count) / (below + len(shuffled))

    return answer


def p_of_the_largest(values, labels, shuffled):
    null = torch.stack([gap(values, some) for some in shuffled]).amax(1)
    return (1 + (null[:, None] >= gap(values, labels) - 1e-6).sum(0)) / (1 + len(shuffled))


# --- magnitude.lape --------------------------------------------------------------------------------------------------


def lape_by_xlogy(on, tokens):
    p = on / tokens.unsqueeze(1)
    total = p.sum(0)
    q = torch.where(total > 0, p / total, torch.full_like(p, 1 / p.shape[0]))
    return -torch.special.xlogy(q, q).sum(0)


def lape_neuron_by_neuron(on, tokens):
    K, entropies = len(tokens), []
    for counts in on.T:
        p = counts / tokens
        q = p / p.sum() if p.sum() > 0 else torch.ones(K) / K
        q = q[q > 0]
        entropies.append(-(q * q.log()).sum())
    return torch.stack(entropies)


def shares(on, tokens):
    p = on / tokens[:, None]
    return torch.where(p.sum(0) > 0, p / p.sum(0).clamp_min(1e-12), 1 / len(p))


def entropy(q):
    return -torch.xlogy(q, q).sum(0)


# --- magnitude.matched_set -------------------------------------------------------------------------------------------


def matched_by_randperm(chosen, generator):
    new = torch.zeros_like(chosen)
    for layer, row in enumerate(chosen):
        others = (~row).nonzero().flatten()
        k = int(row.sum())
        new[layer, others[torch.randperm(len(others), generator=generator)[:k]]] = True
    return new


def matched_by_weights(chosen, generator):
    new = torch.zeros(chosen.shape, dtype=torch.bool)
    for layer in range(len(chosen)):
        k = int(chosen[layer].sum())
        if k > 0:
            pick = torch.multinomial((~chosen[layer]).float(), k, replacement=False, generator=generator)
            new[layer, pick] = True
    return new


def matched_by_lots(chosen, generator):
    lots = torch.rand(chosen.shape, generator=generator)
    lots[chosen] = -1.0
    place = lots.argsort(dim=1, descending=True).argsort(dim=1)
    return place < chosen.sum(1, keepdim=True)


def matched_with(candidates=lambda row: (~row).nonzero().flatten(), replacement=False):
    def answer(chosen, generator):
        new = torch.zeros_like(chosen)
        for layer, row in enumerate(chosen):
            others, k = candidates(row), int(row.sum())
            if replacement:
                pick = torch.randint(len(others), (k,), generator=generator)
            else:
                pick = torch.randperm(len(others), generator=generator)[:k]
            new[layer, others[pick]] = True
        return new

    return answer


def matched_anywhere(chosen, generator):
    flat = chosen.flatten()
    others = (~flat).nonzero().flatten()
    new = torch.zeros_like(flat)
    new[others[torch.randperm(len(others), generator=generator)[: int(flat.sum())]]] = True
    return new.view_as(chosen)


def matched_without_generator(chosen, generator):
    return matched_by_randperm(chosen, None)


def matched_seeded(chosen, generator):
    return matched_by_randperm(chosen, torch.Generator().manual_seed(0))


def matched_first(chosen, generator):
    new = torch.zeros_like(chosen)
    for layer, row in enumerate(chosen):
        new[layer, (~row).nonzero().flatten()[: int(row.sum())]] = True
    return new


def matched_alike(chosen, generator):
    """One order of the others for all layers."""
    lots = torch.rand(chosen.shape[1], generator=generator)
    new = torch.zeros_like(chosen)
    for layer, row in enumerate(chosen):
        others = (~row).nonzero().flatten()
        new[layer, others[lots[: len(others)].argsort()[: int(row.sum())]]] = True
    return new


# --- magnitude.block_influence ---------------------------------------------------------------------------------------


def influence_by_hand(x, y, mask):
    cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    return 1 - (cosine * mask).sum() / mask.sum()


def influence_of_unit_vectors(x, y, mask):
    a, b = (torch.nn.functional.normalize(v[mask], dim=1) for v in (x, y))
    return (1 - torch.einsum("td,td->t", a, b)).mean()


def cosines(x, y, dim=-1):
    return torch.cosine_similarity(x, y, dim=dim)


# --- magnitude.ships -------------------------------------------------------------------------------------------------


def ships_by_kl_div(base, ablated):
    p, q = base.log_softmax(1), ablated.log_softmax(1)
    return torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")


def ships_prompt_by_prompt(base, ablated):
    total = 0.0
    for b, a in zip(base, ablated):
        p = b - b.logsumexp(0)
        q = a - a.logsumexp(0)
        total = total + torch.dot(p.exp(), p - q)
    return total / len(base)


def kl(p, q):
    return (p.exp() * (p - q)).sum(-1)


def logs(base, ablated):
    return base.log_softmax(-1), ablated.log_softmax(-1)


RIGHT = {
    "magnitude.mean_norm": [norm_by_squares, norm_of_real_tokens, norm_by_loop],
    "magnitude.within_layers": [z_by_loop, z_by_sums],
    "magnitude.permutation_p": [p_by_loop, p_by_matrix],
    "magnitude.lape": [lape_by_xlogy, lape_neuron_by_neuron],
    "magnitude.matched_set": [matched_by_randperm, matched_by_weights, matched_by_lots],
    "magnitude.block_influence": [influence_by_hand, influence_of_unit_vectors],
    "magnitude.ships": [ships_by_kl_div, ships_prompt_by_prompt],
}

WRONG = {
    "magnitude.mean_norm": {
        "padding counted": (lambda x, m: x.norm(dim=-1).mean(), "The padded place was counted"),
        "zeros counted": (lambda x, m: (x.norm(dim=-1) * m).mean(), "still counted in the mean"),
        "mean of means": (
            lambda x, m: torch.stack([row.norm(dim=-1)[keep].mean() for row, keep in zip(x, m)]).mean(),
            "every token counts once",
        ),
        "L1": (lambda x, m: x.abs().sum(-1)[m].mean(), "(L1)"),
        "squared": (lambda x, m: x.square().sum(-1)[m].mean(), "not rooted"),
        "peak": (lambda x, m: x.abs().amax(-1)[m].mean(), "L-infinity"),
        "norm of the mean": (lambda x, m: x[m].mean(0).norm(), "Directions cancel"),
        "one norm": (lambda x, m: x[m].norm(), "One norm of everything"),
        "over places": (
            lambda x, m: norm_by_squares(x, m) if x.shape[1] != x.shape[2] or len(x) == 2 else x.norm(dim=1)[m].mean(),
            "runs over the places",
        ),
        "over prompts": (
            lambda x, m: norm_by_squares(x, m) if len(x) != 3 else x.norm(dim=0)[m].mean(),
            "runs over the prompts",
        ),
        "one per prompt": (lambda x, m: (x.norm(dim=-1) * m).sum(1) / m.sum(1), "The shape is [2]"),
    },
    "magnitude.within_layers": {
        "all sites": (lambda v, of: (v - v.mean()) / v.std(correction=0), "of all sites were used"),
        "all sites, n - 1": (lambda v, of: (v - v.mean()) / v.std(), "take those of the layer"),
        "n - 1": (z(lambda own: (own - own.mean()) / own.std()), "divides by n here"),
        "mean only": (z(lambda own: own - own.mean()), "Only the mean was taken away"),
        "spread only": (z(lambda own: own / own.std(correction=0)), "Only the spread was divided out"),
        "variance": (z(lambda own: (own - own.mean()) / own.var(correction=0)), "divided by the variance"),
        "by the mean": (z(lambda own: (own - own.mean()) / own.mean()), "divided by the mean"),
        "sorted": (
            lambda v, of: z_by_loop(v, of)[of.argsort(stable=True)] if len(v) == 5 else z_by_loop(v, of),
            "in the order of the layers",
        ),
        "layer numbers": (z_by_number, "loop over the layers that occur"),
        "loud layers": (
            lambda v, of: z_by_loop(v, of) + (v.abs().amax() > 50) * 0.1,
            "gets other z-scores",
        ),
    },
    "magnitude.permutation_p": {
        "no 1": (p_with(above=0, below=0), "1 + above and below"),
        "1 above": (p_with(below=0), "above the line but not below"),
        "1 below": (p_with(above=0), "below the line but not above"),
        "one-sided": (
            p_with(size=lambda v, s: v[s].mean(0) - v[~s].mean(0)),
            "Only one side was counted",
        ),
        "one-sided, turned round": (
            p_with(size=lambda v, s: v[~s].mean(0) - v[s].mean(0)),
            "Only one side was counted: take the absolute",
        ),
        "true one signed": (
            p_with(
                size=lambda v, s: v[s].mean(0) - v[~s].mean(0), compare=lambda null, true: null.abs() >= true - 1e-6
            ),
            "true one, too",
        ),
        "strictly larger": (p_with(compare=lambda null, true: null > true + 1e-6), "at least as large"),
        "strictly larger, no 1": (
            p_with(compare=lambda null, true: null > true + 1e-6, above=0, below=0),
            "both lines",
        ),
        "smaller": (p_with(compare=lambda null, true: null < true - 1e-6), "turn it round"),
        "sums": (p_with(size=lambda v, s: (v[s].sum(0) - v[~s].sum(0)).abs()), "compare means"),
        "axes": (
            lambda v, y, s: p_by_loop(v.T, y, s) if v.shape[0] == v.shape[1] else p_by_loop(v, y, s),
            "axes are swapped",
        ),
        "largest": (
            lambda v, y, s: p_of_the_largest(v, y, s) if v.shape[1] > 2 else p_by_loop(v, y, s),
            "here each site has its own",
        ),
        "negative sites": (
            lambda v, y, s: (
                p_by_loop(v, y, s) if len(y) < 10 else p_with(size=lambda u, t: u[t].mean(0) - u[~t].mean(0))(v, y, s)
            ),
            "smaller* in the first group",
        ),
    },
    "magnitude.lape": {
        "counts": (lambda on, t: entropy(shares(on, torch.ones(len(t)))), "divide by them first"),
        "never on": (
            lambda on, t: entropy((on / t[:, None]) / (on / t[:, None]).sum(0).clamp_min(1e-12)),
            "the best score of all",
        ),
        "never on, nan": (
            lambda on, t: entropy((on / t[:, None]) / (on / t[:, None]).sum(0)),
            "nan",
        ),
        "0 log 0": (lambda on, t: -(shares(on, t) * shares(on, t).log()).sum(0), "0 log 0 counts 0"),
        "bits": (lambda on, t: entropy(shares(on, t)) / torch.tensor(2.0).log(), "base 2"),
        "sign": (lambda on, t: -entropy(shares(on, t)), "sign is turned round"),
        "no shares": (lambda on, t: entropy(on / t[:, None]), "not turned into shares"),
        "over neurons": (
            lambda on, t: entropy(shares(on, t)) if len(t) == 2 else entropy(shares(on.T, t)),
            "run over neurons",
        ),
        "wrong tokens": (
            lambda on, t: entropy(shares(on, t)) if len(t) == 2 else entropy(shares(on / t, torch.ones(3))),
            "tokens of another language",
        ),
    },
    "magnitude.matched_set": {
        "chosen too": (matched_with(lambda row: torch.arange(len(row))), "Chosen neurons were drawn again"),
        "the same": (lambda chosen, g: chosen, "Chosen neurons were drawn again"),
        "any layer": (matched_anywhere, "not layer by layer"),
        "put back": (matched_with(replacement=True), "drawn twice"),
        "seeded": (matched_seeded, "do not seed it again"),
        "first others": (matched_first, "always the same"),
        "own generator": (matched_without_generator, "cannot be repeated"),
        "alike": (matched_alike, "same draw"),
        "never the last": (
            matched_with(lambda row: (~row).nonzero().flatten()[: max(int(row.sum()), 3)]),
            "Some neurons are drawn more often",
        ),
        "numbers": (lambda chosen, g: matched_by_randperm(chosen, g).nonzero(), "should be bool"),
    },
    "magnitude.block_influence": {
        "cosine": (lambda x, y, m: cosines(x, y)[m].mean(), "mean cosine"),
        "padding counted": (lambda x, y, m: 1 - cosines(x, y).mean(), "The padded place was counted"),
        "zeros counted": (lambda x, y, m: 1 - (cosines(x, y) * m).mean(), "still counted"),
        "dot product": (lambda x, y, m: 1 - (x * y).sum(-1)[m].mean(), "not a cosine"),
        "distance": (lambda x, y, m: (x - y).norm(dim=-1)[m].mean(), "This is a distance"),
        "one cosine": (lambda x, y, m: 1 - cosines(x[m].flatten(), y[m].flatten()), "of all states together"),
        "angle": (lambda x, y, m: cosines(x, y)[m].clamp(-1, 1).arccos().mean(), "This is the angle"),
        "over places": (
            lambda x, y, m: influence_by_hand(x, y, m) if len(x) == 1 else 1 - cosines(x, y, 1)[m].mean(),
            "runs over the places",
        ),
        "mean of means": (
            lambda x, y, m: 1 - torch.stack([c[k].mean() for c, k in zip(cosines(x, y), m)]).mean(),
            "every token counts once",
        ),
    },
    "magnitude.ships": {
        "swapped": (lambda b, a: kl(*logs(a, b)).mean(), "The two are swapped"),
        "summed": (lambda b, a: kl(*logs(b, a)).sum(), "prompts were summed"),
        "mean over words": (lambda b, a: kl(*logs(b, a)).mean() / b.shape[-1], "mean ran over the vocabulary"),
        "sign": (lambda b, a: -kl(*logs(b, a)).mean(), "sign is turned round"),
        "bits": (lambda b, a: kl(*logs(b, a)).mean() / torch.tensor(2.0).log(), "base 2"),
        "logits": (lambda b, a: (b.softmax(-1) * (b - a)).sum(-1).mean(), "Logits were taken"),
        "cross-entropy": (
            lambda b, a: -(b.softmax(-1) * a.log_softmax(-1)).sum(-1).mean(),
            "This is the cross-entropy",
        ),
        "per prompt": (lambda b, a: kl(*logs(b, a)), "One number per prompt"),
        "over prompts": (
            lambda b, a: kl(*logs(b, a)).mean() if len(b) != 3 else kl(b.log_softmax(0), a.log_softmax(0)).mean(),
            "runs over the prompts",
        ),
        "log of softmax": (lambda b, a: kl(b.softmax(-1).log(), a.softmax(-1).log()).mean(), "Use log_softmax"),
        "cut off": (
            lambda b, a: kl(*(v.softmax(-1).clamp_min(1e-9).log() for v in (b, a))).mean(),
            "needs no such guard",
        ),
    },
}

# Changes that leave an answer right: any lot below 0 comes last.
SAME = {"magnitude.matched_set": {"matched_by_lots, line 3: 1.0 -> 2.0"}}
