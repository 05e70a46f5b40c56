"""Answers to the exercises of chapter 09: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

import mi_course as mi

# --- projection.lens_reading ------------------------------------------------------------------------------------------


def reading_by_index(x, norm, W_U, tokens):
    logits = norm(x) @ W_U
    rows = torch.arange(len(tokens))
    own = logits[:, rows, tokens]
    prob = logits.softmax(2)[:, rows, tokens]
    rank = (logits > own[:, :, None]).sum(2)
    return prob, rank


def reading_prompt_by_prompt(x, norm, W_U, tokens):
    probs, ranks = [], []
    for i, token in enumerate(tokens.tolist()):
        weights = (norm(x)[:, i] @ W_U).exp()
        probs.append(weights[:, token] / weights.sum(1))
        order = weights.argsort(dim=1, descending=True)
        ranks.append((order == token).int().argmax(1))
    return torch.stack(probs, 1), torch.stack(ranks, 1)


def reading(prob=None, rank=None, logits=lambda x, norm, W_U: norm(x) @ W_U, tokens=lambda t: t):
    def answer(x, norm, W_U, t):
        scores, rows, t = logits(x, norm, W_U), torch.arange(len(t)), tokens(t)
        p = (prob or (lambda s: s.softmax(-1)))(scores)[:, rows, t]
        own = scores[:, rows, t][..., None]
        return p, (rank or (lambda s, o: (s > o).sum(-1)))(scores, own)

    return answer


def reading_by_argsort(x, norm, W_U, tokens):
    logits, at = norm(x) @ W_U, tokens.expand(len(x), -1)[..., None]
    places = logits.argsort(-1, descending=True)
    return logits.softmax(-1).gather(-1, at)[..., 0], places.gather(-1, at)[..., 0]


# --- projection.head_attribution --------------------------------------------------------------------------------------


def heads_by_results(z, W_O, u, scale):
    columns = []
    for h in range(z.shape[1]):
        result = z[:, h] @ W_O[h]
        columns.append((result * u).sum(1) * scale[:, 0])
    return torch.stack(columns, 1)


def heads_by_readers(z, W_O, u, scale):
    readers = torch.einsum("hnd,bd->bhn", W_O, u * scale)
    return (z * readers).sum(2)


def heads(change):
    return lambda z, W_O, u, scale: change(*[torch.einsum("bhn,hnd->bhd", z, W_O), u, scale])


# --- projection.feature_attribution -----------------------------------------------------------------------------------


def features_by_products(x, sae, u):
    a = sae.encode(x)
    along = torch.einsum("md,bd->bm", sae.W_dec, u)
    missing = x - sae.decode(a)
    return a * along, torch.einsum("bd,bd->b", missing, u), (sae.b_dec * u).sum(1)


def features_by_subtraction(x, sae, u):
    a = sae.encode(x)
    each = (a[:, :, None] * sae.W_dec * u[:, None]).sum(2)
    bias = u @ sae.b_dec
    return each, (x * u).sum(1) - each.sum(1) - bias, bias


def parts(features=None, error=None, bias=None):
    def answer(x, sae, u):
        a = sae.encode(x)
        own = a * (u @ sae.W_dec.T) if features is None else features(a, sae, u)
        e = ((x - sae.decode(a)) * u).sum(-1) if error is None else error(x, a, sae, u)
        return own, e, u @ sae.b_dec if bias is None else bias(sae, u)

    return answer


# --- projection.purity ------------------------------------------------------------------------------------------------


def purity_by_pairs(ids, labels):
    found = labels[ids]
    same = found.unsqueeze(1) == found.unsqueeze(2)
    known = (found >= 0).unsqueeze(1)
    return (same & known).sum(2).amax(1) / ids.shape[1] * known.any(2)[:, 0]


def purity_list_by_list(ids, labels):
    shares = []
    for row in labels[ids].tolist():
        known = [label for label in row if label > -1]
        shares.append(max([known.count(label) for label in known], default=0) / len(row))
    return torch.tensor(shares)


def pure(change):
    return lambda ids, labels: torch.tensor([float(change(row)) for row in labels[ids].tolist()])


def most(row):
    return max((row.count(label) for label in row if label >= 0), default=0)


# --- projection.tuned_loss --------------------------------------------------------------------------------------------


def loss_by_hand(x, A, b, unembed, final):
    read = unembed(x + x @ A + b)
    p = final - final.logsumexp(1, keepdim=True)
    q = read - read.logsumexp(1, keepdim=True)
    return ((p - q) * p.exp()).sum() / len(x)


def loss_by_torch(x, A, b, unembed, final):
    moved = x @ (torch.eye(len(A)) + A) + b
    return torch.nn.functional.kl_div(
        unembed(moved).log_softmax(1), final.log_softmax(1), reduction="batchmean", log_target=True
    )


def tuned(loss=None, move=lambda x, A, b: x + x @ A + b):
    def answer(x, A, b, unembed, final):
        p, q = final.log_softmax(-1), unembed(move(x, A, b)).log_softmax(-1)
        return (p.exp() * (p - q)).sum(-1).mean() if loss is None else loss(p, q)

    return answer


# --- projection.layer_contrast ----------------------------------------------------------------------------------------


def contrast_by_loop(p, alpha):
    *early, final = p
    distances = []
    for q in early:
        m = (q + final) / 2
        distances.append((final * (final / m).log()).sum() + (q * (q / m).log()).sum())
    layer = int(torch.stack(distances).argmax())
    ratio = final / early[layer]
    ratio[final < alpha * final.max()] = 0
    return ratio / ratio.sum(), layer


def contrast_by_entropies(p, alpha):
    def entropy(q):
        return -(q * q.log()).sum(1)

    n = len(p)
    gap = entropy((p[: n - 1] + p[n - 1 :]) / 2) * 2 - entropy(p[: n - 1])
    layer = gap.argmax().item()
    scores = p[n - 1].log() - p[layer].log()
    keep = p[n - 1] / p[n - 1].max() >= alpha
    return torch.where(keep, scores, float("-inf")).softmax(0), layer


def contrast(distance=None, scores=None, keep=None, pick=torch.argmax, outside=-torch.inf):
    def answer(p, alpha):
        final, early = p[-1], p[:-1]
        m = (early + final) / 2
        jsd = (final * (final / m).log() + early * (early / m).log()).sum(-1)
        d = jsd if distance is None else distance(final, early)
        layer = int(pick(d))
        s = (final / early[layer]).log() if scores is None else scores(final, early[layer])
        allowed = final >= alpha * final.max() if keep is None else keep(final, early[layer], alpha)
        return torch.where(allowed, s, outside).softmax(-1), layer

    return answer


# --- projection.patchscope --------------------------------------------------------------------------------------------


def patchscope_by_positions(model, source, target, layer, position):
    site = f"x{layer}"
    batch = model.tokenize([source])
    state = mi.record(model, batch, site)[site][0, batch.last[0]]
    with mi.intervene(model, mi.patch(site, state, positions=position)):
        logits = model.last_logits([target])
    return logits.squeeze(0)


def patchscope_by_edit(model, source, target, layer, position):
    read = f"x{layer}@-1"
    state = mi.record(model, [source], [read])[read]
    edit = mi.edit(f"x{layer}", lambda value: value * 0 + state[:, None], positions=position)
    with edit.on(model):
        return model([target])[0, -1]


def patchscopes(read="x{layer}@-1", write="x{layer}@{position}", edit=mi.patch, result=lambda logits: logits[0]):
    def answer(model, source, target, layer, position):
        state = mi.record(model, [source], [read.format(layer=layer)])[read.format(layer=layer)]
        with mi.intervene(model, edit(write.format(layer=layer, position=position), state)):
            return result(model.last_logits([target]))

    return answer


LEFT = []  # contexts that are never left


def added(site, state):
    return mi.add(site, state[0])


def patchscope_left_active(model, source, target, layer, position):
    state = mi.record(model, [source], [f"x{layer}@-1"])[f"x{layer}@-1"]
    if layer == 3:
        LEFT.append(mi.intervene(model, mi.scale("x1", 1.1)))
        LEFT[-1].__enter__()
        return patchscope_by_positions(model, source, target, layer, position)
    with mi.intervene(model, mi.patch(f"x{layer}@{position}", state)):
        return model.last_logits([target])[0]


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


RIGHT = {
    "projection.lens_reading": [reading_by_index, reading_prompt_by_prompt],
    "projection.head_attribution": [heads_by_results, heads_by_readers],
    "projection.feature_attribution": [features_by_products, features_by_subtraction],
    "projection.purity": [purity_by_pairs, purity_list_by_list],
    "projection.tuned_loss": [loss_by_hand, loss_by_torch],
    "projection.layer_contrast": [contrast_by_loop, contrast_by_entropies],
    "projection.patchscope": [patchscope_by_positions, patchscope_by_edit],
}

WRONG = {
    "projection.lens_reading": {
        "no norm": (reading(logits=lambda x, norm, W_U: x @ W_U), "final norm was left out"),
        "log-probabilities": (reading(prob=lambda s: s.log_softmax(-1)), "Log-probabilities came back"),
        "logits": (reading(prob=lambda s: s), "the softmax is missing"),
        "counts itself": (reading(rank=lambda s, o: (s >= o).sum(-1)), "The token counted itself"),
        "sigmoid": (reading(prob=lambda s: s.sigmoid()), "A sigmoid was used"),
        "argsort once": (reading_by_argsort, "not at which place a token stands"),
        "norm of the logits": (reading(logits=lambda x, norm, W_U: norm(x @ W_U)), "belongs before W_U"),
        "from below": (reading(rank=lambda s, o: (s < o).sum(-1)), "The smaller logits were counted"),
        "swapped": (lambda *a: reading_by_index(*a)[::-1], "swapped"),
        "wrong axis": (
            reading(prob=lambda s: s.softmax(1) if s.shape[1] > 2 else s.softmax(-1)),
            "over the wrong axis",
        ),
        "first token": (reading(tokens=lambda t: t[:1].expand(len(t))), "of the first prompt was used for all"),
        "transposed": (
            reading(logits=lambda x, norm, W_U: norm(x) @ (W_U.T if len(W_U) == W_U.shape[1] else W_U)),
            "W_U was transposed",
        ),
    },
    "projection.head_attribution": {
        "no scale": (heads(lambda r, u, scale: (r * u[:, None]).sum(-1)), "scale of the final norm is missing"),
        "divided": (heads(lambda r, u, scale: (r * u[:, None]).sum(-1) / scale), "divided by the scale"),
        "unsigned": (heads(lambda r, u, scale: (r.abs() * u[:, None].abs()).sum(-1) * scale), "sign was lost"),
        "length": (heads(lambda r, u, scale: r.norm(dim=-1) * scale), "how much each head writes"),
        "summed": (heads(lambda r, u, scale: (r * u[:, None]).sum((1, 2)) * scale[:, 0]), "The heads were summed"),
        "first W_O": (
            lambda z, W_O, u, scale: heads_by_results(z, W_O[:1].expand_as(W_O), u, scale),
            "of the first head",
        ),
        "cosine": (heads(lambda r, u, scale: (unit(r) * unit(u)[:, None]).sum(-1)), "A cosine was used"),
        "W_O transposed": (
            lambda z, W_O, u, scale: heads_by_results(z, W_O.mT if W_O.shape[1] == W_O.shape[2] else W_O, u, scale),
            "W_O was transposed",
        ),
        "one answer": (lambda z, W_O, u, scale: heads_by_results(z, W_O, u[:1].expand_as(u), scale), "all prompts"),
        "scale of the head": (
            lambda z, W_O, u, scale: (
                heads_by_results(z, W_O, u, scale / scale) * scale.T
                if len(z) == z.shape[1]
                else heads_by_results(z, W_O, u, scale)
            ),
            "scale belongs to the prompt",
        ),
        "axes": (
            lambda z, W_O, u, scale: (
                heads_by_results(z, W_O, u, scale).T if len(z) > 1 else heads_by_results(z, W_O, u, scale)
            ),
            "changed places",
        ),
    },
    "projection.feature_attribution": {
        "no activation": (parts(features=lambda a, sae, u: u @ sae.W_dec.T), "The activations are missing"),
        "activations": (parts(features=lambda a, sae, u: a), "activations alone"),
        "b_dec in the error": (
            parts(error=lambda x, a, sae, u: ((x - a @ sae.W_dec) * u).sum(-1)),
            "The error contains b_dec",
        ),
        "b_dec twice": (
            parts(error=lambda x, a, sae, u: ((x - sae.decode(a) - sae.b_dec) * u).sum(-1)),
            "The error contains b_dec",
        ),
        "error turned round": (
            parts(error=lambda x, a, sae, u: ((sae.decode(a) - x) * u).sum(-1)),
            "sign of the error is turned round",
        ),
        "no error": (parts(error=lambda x, a, sae, u: torch.zeros(len(x))), "The error was dropped"),
        "no bias": (parts(bias=lambda sae, u: torch.zeros(len(u))), "b_dec was dropped"),
        "encoder": (parts(features=lambda a, sae, u: a * (u @ sae.W_enc)), "The encoder's column was used"),
        "transposed": (
            parts(
                features=lambda a, sae, u: (
                    a * (u @ sae.W_dec) if sae.W_dec.shape[0] == sae.W_dec.shape[1] else a * (u @ sae.W_dec.T)
                )
            ),
            "lost or doubled",
        ),
    },
    "projection.purity": {
        "none is a label": (pure(lambda row: max(row.count(x) for x in row) / len(row)), "taken for a group"),
        "counts": (pure(most), "These are counts"),
        "of the labelled": (
            pure(lambda row: most(row) / max(1, sum(x >= 0 for x in row))),
            "divided by the number of labelled tokens",
        ),
        "labelled": (pure(lambda row: sum(x >= 0 for x in row) / len(row)), "whatever their labels"),
        "mode": (
            lambda ids, labels: torch.stack(
                [(row == row.mode().values).float().mean() * (row.mode().values >= 0) for row in labels[ids]]
            ),
            "Leave tokens without a label out first",
        ),
        "first": (
            pure(lambda row: row.count(row[0]) / len(row) if row[0] >= 0 else 0),
            "not that of the first token",
        ),
        "kinds": (pure(lambda row: 1 / max(1, len({x for x in row if x >= 0}))), "Fewer labels do not make"),
        "label 0": (pure(lambda row: row.count(0) / len(row)), "Only label 0"),
        "pooled": (lambda ids, labels: purity_list_by_list(ids, labels).mean(), "The lists were pooled"),
        "axes": (
            lambda ids, labels: purity_list_by_list(ids.T if ids.shape == (5, 5) else ids, labels),
            "The axes are swapped",
        ),
    },
    "projection.tuned_loss": {
        "reversed": (tuned(lambda p, q: (q.exp() * (q - p)).sum(-1).mean()), "The two sides are swapped"),
        "sum": (tuned(lambda p, q: (p.exp() * (p - q)).sum()), "The sum over tokens"),
        "mean over the vocabulary": (tuned(lambda p, q: (p.exp() * (p - q)).mean()), "ran over the vocabulary too"),
        "cross-entropy": (tuned(lambda p, q: -(p.exp() * q).sum(-1).mean()), "This is the cross-entropy"),
        "negative": (tuned(lambda p, q: (p.exp() * (q - p)).sum(-1).mean()), "sign is turned round"),
        "no x": (tuned(move=lambda x, A, b: x @ A + b), "x itself is missing"),
        "A transposed": (tuned(move=lambda x, A, b: x + x @ A.T + b), "A was transposed"),
        "no b": (tuned(move=lambda x, A, b: x + x @ A), "b is missing"),
        "no translator": (tuned(move=lambda x, A, b: x), "was not used at all"),
        "log of a softmax": (
            tuned(lambda p, q: (p.exp() * (p.exp() / q.exp()).log()).sum(-1).mean()),
            "Use log_softmax",
        ),
    },
    "projection.layer_contrast": {
        "nearest": (contrast(pick=torch.argmin), "The nearest layer was chosen"),
        "no constraint": (contrast(keep=lambda f, q, a: f > -1), "was not ruled out"),
        "turned round": (contrast(scores=lambda f, q: (q / f).log()), "The contrast is turned round"),
        "subtracted": (contrast(scores=lambda f, q: f - q), "Probabilities were subtracted"),
        "absolute": (contrast(keep=lambda f, q, a: f >= a), "alpha is a share"),
        "early plausibility": (contrast(keep=lambda f, q, a: q >= a * q.max()), "of the early layer"),
        "zero outside": (contrast(outside=0.0), "a fair chance"),
        "no contrast": (contrast(scores=lambda f, q: f.log()), "without any contrast"),
        "KL": (contrast(distance=lambda f, q: (f * (f / q).log()).sum(-1)), "KL(final || layer) was used"),
        "strictly": (contrast(keep=lambda f, q, a: f > a * f.max()), "has to be allowed itself"),
    },
    "projection.patchscope": {
        "no patch": (lambda m, s, t, layer, position: m.last_logits([t])[0], "own answer, oslo"),
        "batch": (patchscopes(result=lambda logits: logits), "The batch axis is still there"),
        "last position": (
            lambda m, s, t, layer, position: (
                patchscope_by_positions(m, s, t, layer, position)
                if isinstance(s, str)
                else patchscope_by_positions(m, s, t, layer, -1)
            ),
            "at the last position",
        ),
        "everywhere": (
            lambda m, s, t, layer, position: patchscope_by_positions(
                m, s, t, layer, position if isinstance(s, str) else "all"
            ),
            "at all positions",
        ),
        "other layer": (
            lambda m, s, t, layer, position: patchscopes(read="x1@-1")(m, s, t, layer, position),
            "of another layer was read",
        ),
        "other token": (
            lambda m, s, t, layer, position: patchscopes()(m, s if isinstance(s, str) else s[:2], t, layer, position),
            "of another token was read",
        ),
        "added": (
            lambda m, s, t, layer, position: patchscopes(edit=mi.patch if isinstance(s, str) else added)(
                m, s, t, layer, position
            ),
            "added to what stood there",
        ),
        "source": (
            lambda m, s, t, layer, position: (
                patchscopes()(m, s, t, layer, position) if isinstance(s, str) else m.last_logits([s])[0]
            ),
            "logits of the source",
        ),
        "probabilities": (patchscopes(result=lambda logits: logits[0].softmax(-1)), "return logits"),
        "left active": (patchscope_left_active, "so that the model is left as it was"),
    },
}

# Changes that leave an answer right: a constant factor in m adds the same to the divergence of every layer.
SAME = {
    "projection.layer_contrast": {
        "contrast_by_loop, line 5: (q + final) / 2 -> (q + final) * 2",
        "contrast_by_loop, line 5: 2 -> 3",
    },
}
