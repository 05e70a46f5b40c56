"""Answers to the exercises of chapter 01: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch
from torch.nn.functional import layer_norm, normalize

# --- residual.embed --------------------------------------------------------------------------------------------------


def embed_by_tables(W_E, W_pos, ids):
    return torch.nn.functional.embedding(ids, W_E) + W_pos[torch.arange(ids.shape[1])]


def embed_by_one_hot(W_E, W_pos, ids):
    words = torch.nn.functional.one_hot(ids, len(W_E)).float() @ W_E
    return words + torch.stack([W_pos[t] for t in range(ids.shape[1])])


def embed_with_loops(W_E, W_pos, ids):
    rows = [[W_E[i] + W_pos[t] for t, i in enumerate(row)] for row in ids.tolist()]
    return torch.stack([torch.stack(row) for row in rows])


# --- residual.category_margin ----------------------------------------------------------------------------------------


def margin_with_loops(W, labels):
    inside, across = [], []
    for i in range(len(W)):
        for j in range(i):
            cosine = torch.cosine_similarity(W[i], W[j], dim=0).item()
            (inside if labels[i] == labels[j] else across).append(cosine)
    return sum(inside) / len(inside) - sum(across) / len(across)


def margin_by_masks(W, labels):
    cosine = torch.cosine_similarity(W[:, None], W[None], dim=-1)
    same = (labels[:, None] == labels[None]).float()
    inside = same - torch.eye(len(W))
    return (cosine * inside).sum() / inside.sum() - (cosine * (1 - same)).sum() / (1 - same).sum()


def margin(unit=lambda W: normalize(W, dim=1), diagonal=False, rest=lambda same: ~same, how=torch.mean):
    def answer(W, labels):
        V = unit(W)
        cosine, same = V @ V.T, labels[:, None] == labels
        keep = same if diagonal else same & ~torch.eye(len(W), dtype=torch.bool)
        return how(cosine[keep]) - how(cosine[rest(same)])

    return answer


def margin_of_centres(W, labels):
    centres = torch.stack([W[labels == k].mean(0) for k in labels.unique()])
    return torch.cosine_similarity(centres[0], centres[1], dim=0)


def margin_by_category(W, labels):
    cosine = normalize(W, dim=1) @ normalize(W, dim=1).T
    off = ~torch.eye(len(W), dtype=torch.bool)
    means = []
    for k in labels.unique():
        pairs = cosine[labels == k][:, labels == k][off[: (labels == k).sum(), : (labels == k).sum()]]
        if len(pairs):
            means.append(pairs.mean())
    return torch.stack(means).mean() - cosine[labels[:, None] != labels].mean()


def margin_category_by_category(W, labels):
    cosine = normalize(W, dim=1) @ normalize(W, dim=1).T
    off = ~torch.eye(len(W), dtype=torch.bool)
    masks = [(labels[:, None] == k) & (labels == k) & off for k in labels.unique()]
    return torch.stack([cosine[mask].mean() for mask in masks]).mean() - cosine[labels[:, None] != labels].mean()


# --- residual.block --------------------------------------------------------------------------------------------------


def block_in_steps(x, norm1, attention, norm2, ffn):
    read = norm1(x)
    written = attention(read)
    mid = x + written
    read = norm2(mid)
    written = ffn(read)
    return mid, mid + written


def block_in_a_loop(x, norm1, attention, norm2, ffn):
    states = []
    for norm, branch in ((norm1, attention), (norm2, ffn)):
        x = torch.add(x, branch(norm(x)))
        states.append(x)
    return states[0], states[1]


def block_in_place(x, norm1, attention, norm2, ffn):
    x += attention(norm1(x))
    return x, x + ffn(norm2(x))


def block_parallel(x, norm1, attention, norm2, ffn):
    mid = x + attention(norm1(x))
    return mid, mid + ffn(norm2(x))


def block_post_norm(x, norm1, attention, norm2, ffn):
    mid = norm1(x + attention(x))
    return mid, norm2(mid + ffn(mid))


def block_norm_of_branch(x, norm1, attention, norm2, ffn):
    mid = x + norm1(attention(x))
    return mid, mid + norm2(ffn(mid))


def block_replaces_the_stream(x, norm1, attention, norm2, ffn):
    x = norm1(x)
    x = x + attention(x)
    mid = x
    x = norm2(x)
    return mid, x + ffn(x)


def block_norms_mid(x, norm1, attention, norm2, ffn):
    mid = x + attention(norm1(x))
    seen = norm2(mid)
    return mid, seen + ffn(seen)


def block_loses_attention(x, norm1, attention, norm2, ffn):
    mid = x + attention(norm1(x))
    return mid, x + ffn(norm2(mid))


def block_token_by_token(x, norm1, attention, norm2, ffn):
    if x.dim() == 2:
        return block_in_steps(x, norm1, attention, norm2, ffn)
    x = x.reshape(1, -1, x.shape[-1])
    mid = x + attention(norm1(x))
    return mid, mid + ffn(norm2(mid))


def block_computes_twice(x, norm1, attention, norm2, ffn):
    return x + attention(norm1(x)), x + attention(norm1(x)) + ffn(norm2(x + attention(norm1(x))))


# --- residual.states -------------------------------------------------------------------------------------------------


def states_in_a_loop(embedding, heads, b_O, ffn):
    found = [embedding]
    for layer in range(len(ffn)):
        found.append(found[-1] + heads[layer].sum(0) + b_O[layer] + ffn[layer])
    return torch.stack(found)


def states_by_cumsum(embedding, heads, b_O, ffn):
    blocks = torch.einsum("lhtd->ltd", heads) + b_O.unsqueeze(1) + ffn
    return torch.cat([embedding[None], blocks]).cumsum(0)


def states_head_by_head(embedding, heads, b_O, ffn):
    n_layers, n_heads = heads.shape[:2]
    result = embedding.repeat(n_layers + 1, 1, 1)
    for layer in range(n_layers):
        for head in range(n_heads):
            result[layer + 1 :] += heads[layer, head]
        result[layer + 1 :] += b_O[layer] + ffn[layer]
    return result


def states_with(head=lambda w: w.sum(1), bias=lambda b, H: b[:, None], ffn_weight=1.0):
    def answer(embedding, heads, b_O, ffn):
        blocks = head(heads) + bias(b_O, heads.shape[1]) + ffn_weight * ffn
        return torch.cat([embedding[None], embedding + blocks.cumsum(0)])

    return answer


def states_not_cumulative(embedding, heads, b_O, ffn):
    blocks = heads.sum(1) + b_O[:, None] + ffn
    return torch.cat([embedding[None], embedding + blocks])


def states_without_embedding(embedding, heads, b_O, ffn):
    blocks = heads.sum(1) + b_O[:, None] + ffn
    return torch.cat([embedding[None], blocks.cumsum(0)])


def states_shifted(embedding, heads, b_O, ffn):
    found = states_in_a_loop(embedding, heads, b_O, ffn)
    return torch.cat([found[1:], found[-1:]])


def states_in_place(embedding, heads, b_O, ffn):
    found = [embedding.clone()]
    for layer in range(len(ffn)):
        embedding += heads[layer].sum(0) + b_O[layer] + ffn[layer]
        found.append(embedding.clone())
    return torch.stack(found)


def states_same_tensor(embedding, heads, b_O, ffn):
    x = embedding.clone()
    found = [x]
    for layer in range(len(ffn)):
        x += heads[layer].sum(0) + b_O[layer] + ffn[layer]
        found.append(x)
    return torch.stack(found)


def states_bias_along_tokens(embedding, heads, b_O, ffn):
    blocks = heads.sum(1) + (b_O[:, :, None] if ffn.shape[1] == ffn.shape[2] else b_O[:, None]) + ffn
    return torch.cat([embedding[None], embedding + blocks.cumsum(0)])


# --- residual.layer_norm ---------------------------------------------------------------------------------------------


def norm_by_var(x, gain, bias, eps=1e-5):
    variance, mean = torch.var_mean(x, dim=-1, unbiased=False, keepdim=True)
    return gain * (x - mean) * (variance + eps).rsqrt() + bias


def norm_by_moments(x, gain, bias, eps=1e-5):
    d = x.shape[-1]
    mean = x.sum(-1)[..., None] / d
    variance = ((x - mean) ** 2).sum(-1)[..., None] / d
    return (x - mean) / torch.sqrt(variance + eps) * gain + bias


def norm_with(
    centre=lambda x: x - x.mean(-1, keepdim=True),
    divisor=lambda x, eps: (x.var(-1, unbiased=False, keepdim=True) + eps).sqrt(),
    end=lambda y, gain, bias: y * gain + bias,
):
    return lambda x, gain, bias, eps=1e-5: end(centre(x) / divisor(x, eps), gain, bias)


def norm_over(dim):
    def answer(x, gain, bias, eps=1e-5):
        centred = x - x.mean(dim, keepdim=True)
        return centred / (centred.pow(2).mean(dim, keepdim=True) + eps).sqrt() * gain + bias

    return answer


# --- residual.attribution --------------------------------------------------------------------------------------------


def attribution_in_a_loop(writes, gain, bias, direction, eps=1e-5):
    x = writes.sum(0)
    centred = x - x.mean(-1, keepdim=True)
    divisor = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    rows = [((w - w.mean(-1, keepdim=True)) / divisor * gain * direction).sum(-1) for w in writes]
    return torch.stack([*rows, direction @ bias])


def attribution_by_folding(writes, gain, bias, direction, eps=1e-5):
    """Centring moved into the direction: (w - mean w) . u = w . (u - mean u)."""
    read = gain * direction
    read = read - read.mean(-1, keepdim=True)
    deviation = (writes.sum(0).var(-1, unbiased=False) + eps).sqrt()
    values = torch.einsum("nbd,bd->nb", writes, read) / deviation
    return torch.cat([values, torch.einsum("d,bd->b", bias, direction)[None]])


def attribution_with(
    centre=lambda w: w - w.mean(-1, keepdim=True),
    scale=lambda w, eps: (w.sum(0).var(-1, unbiased=False, keepdim=True) + eps).rsqrt(),
    gain_power=1,
    last=lambda gain, bias, direction: direction @ bias,
):
    def answer(writes, gain, bias, direction, eps=1e-5):
        values = (centre(writes) * scale(writes, eps) * gain**gain_power * direction).sum(-1)
        return torch.cat([values, last(gain, bias, direction)[None]])

    return answer


def attribution_norm_of_each(writes, gain, bias, direction, eps=1e-5):
    values = (layer_norm(writes, (writes.shape[-1],), gain, bias, eps) * direction).sum(-1)
    return torch.cat([values, (direction @ bias)[None]])


def attribution_one_scale(writes, gain, bias, direction, eps=1e-5):
    x = writes.sum(0)
    scale = (x.var(-1, unbiased=False).mean() + eps).rsqrt()
    values = ((writes - writes.mean(-1, keepdim=True)) * scale * gain * direction).sum(-1)
    return torch.cat([values, (direction @ bias)[None]])


def attribution_split_dependent(writes, gain, bias, direction, eps=1e-5):
    """Right for the sum, but spread evenly: every write gets the same share."""
    if len(writes) == 3 and writes.shape[1] == 1:
        return attribution_in_a_loop(writes, gain, bias, direction, eps)
    values = attribution_in_a_loop(writes, gain, bias, direction, eps)
    return torch.cat([values[:-1].mean(0).expand(len(writes), -1), values[-1:]])


# --- residual.read_message -------------------------------------------------------------------------------------------


def message_by_sums(states, mean_state, codes):
    difference = (states - mean_state)[:, None] - (codes - codes.sum(0) / len(codes))
    return (difference * difference).sum(-1).min(1).indices


def message_one_by_one(states, mean_state, codes):
    centre = torch.mean(codes, dim=0)
    found = []
    for x in states:
        distances = [float((x - mean_state - code + centre).norm()) for code in codes]
        found.append(distances.index(min(distances)))
    return torch.tensor(found)


def message_with(x=lambda x, m: x - m, codes=lambda c: c - c.mean(0), choose=lambda distance: distance.argmin(-1)):
    return lambda states, mean_state, c: choose(torch.cdist(x(states, mean_state), codes(c)))


def message_loudest(states, mean_state, codes):
    return ((states - mean_state) @ (codes - codes.mean(0)).T).argmax(-1)


def message_by_cosine(states, mean_state, codes):
    return torch.cosine_similarity((states - mean_state)[:, None], (codes - codes.mean(0))[None], dim=-1).argmax(-1)


def message_centres_in_place(states, mean_state, codes):
    codes -= codes.mean(0)
    return torch.cdist(states - mean_state, codes).argmin(-1)


RIGHT = {
    "residual.embed": [embed_by_tables, embed_by_one_hot, embed_with_loops],
    "residual.category_margin": [margin_with_loops, margin_by_masks],
    "residual.block": [block_in_steps, block_in_a_loop],
    "residual.states": [states_in_a_loop, states_by_cumsum, states_head_by_head],
    "residual.layer_norm": [
        norm_by_var,
        norm_by_moments,
        lambda x, gain, bias, eps=1e-5: layer_norm(x, gain.shape, gain, bias, eps),
    ],
    "residual.attribution": [attribution_in_a_loop, attribution_by_folding],
    "residual.read_message": [message_by_sums, message_one_by_one],
}

WRONG = {
    "residual.embed": {
        "no position": (lambda W_E, W_pos, ids: W_E[ids], "The position vectors are missing"),
        "no token": (lambda W_E, W_pos, ids: W_pos[: ids.shape[1]].expand(len(ids), -1, -1), "token vectors are"),
        "from one": (lambda W_E, W_pos, ids: W_E[ids] + W_pos[1 : ids.shape[1] + 1], "counted from 1"),
        "at the ids": (lambda W_E, W_pos, ids: W_E[ids] + W_pos[ids], "W_pos was read at the token ids"),
        "place 0": (lambda W_E, W_pos, ids: W_E[ids] + W_pos[0], "vector of place 0"),
        "first prompt": (lambda W_E, W_pos, ids: W_E[ids[0]] + W_pos[: ids.shape[1]], "The batch axis is gone"),
        "product": (lambda W_E, W_pos, ids: W_E[ids] * W_pos[: ids.shape[1]], "They are added"),
        "from the end": (lambda W_E, W_pos, ids: W_E[ids] + W_pos[: ids.shape[1]].flip(0), "counted from the end"),
        "axis of places": (
            lambda W_E, W_pos, ids: W_E[ids] + W_pos[: ids.shape[1], None],
            "Every token was added to every place",
        ),
        "whole table": (lambda W_E, W_pos, ids: W_E[ids] + W_pos, "Shapes do not fit"),
        "numpy": (lambda W_E, W_pos, ids: (W_E[ids] + W_pos[: ids.shape[1]]).numpy(), "of type ndarray"),
    },
    "residual.category_margin": {
        "dot products": (margin(unit=lambda W: W), "These are dot products"),
        "diagonal": (margin(diagonal=True), "Leave the diagonal out"),
        "sign": (lambda W, labels: -margin()(W, labels), "sign is turned round"),
        "all pairs": (margin(rest=lambda same: ~torch.eye(len(same), dtype=torch.bool)), "with all pairs"),
        "sums": (margin(how=torch.sum), "sums over pairs"),
        "columns": (margin(unit=lambda W: W / W.norm(dim=0)), "columns were scaled"),
        "one norm": (margin(unit=lambda W: W / W.norm()), "one common number"),
        "centres": (margin_of_centres, "compares the category means"),
        "by category": (margin_by_category, "Categories were averaged first"),
        "nan": (margin_category_by_category, "a category of one word has no pairs"),
        "matrix": (lambda W, labels: normalize(W, dim=1) @ normalize(W, dim=1).T, "it should be a single number"),
    },
    "residual.block": {
        "as printed": (
            lambda x, norm1, attention, norm2, ffn: block_in_steps(x, lambda v: v, attention, lambda v: v, ffn),
            "as printed, without norms",
        ),
        "parallel": (block_parallel, "what parallel blocks do"),
        "attention lost": (block_loses_attention, "the attention write got lost"),
        "post-norm": (block_post_norm, "The norm was put on the sum"),
        "norm of the branch": (block_norm_of_branch, "on the output of the branch"),
        "stream replaced": (block_replaces_the_stream, "replaced by its normed copy"),
        "no residual": (
            lambda x, norm1, attention, norm2, ffn: (lambda mid: (mid, mid + ffn(norm2(mid))))(attention(norm1(x))),
            "residual connection is missing",
        ),
        "no norm2": (lambda x, n1, a, n2, f: block_in_steps(x, n1, a, lambda v: v, f), "norm2 is missing"),
        "norm1 twice": (lambda x, n1, a, n2, f: block_in_steps(x, n1, a, n1, f), "through norm1"),
        "no norm1": (lambda x, n1, a, n2, f: block_in_steps(x, lambda v: v, a, n2, f), "norm1 is missing"),
        "mid lost": (
            lambda x, n1, a, n2, f: (x + a(n1(x)), f(n2(x + a(n1(x))))),
            "lacks mid itself",
        ),
        "mid normed": (block_norms_mid, "mid was normed before"),
        "order": (lambda x, *parts: block_in_steps(x, *parts)[::-1], "in the wrong order"),
        "only the end": (lambda x, *parts: block_in_steps(x, *parts)[1], "should be a tuple"),
        "in place": (block_in_place, "wrote into an argument"),
        "axes": (block_token_by_token, "Leave the axes as they are"),
        "twice": (block_computes_twice, "computed twice"),
    },
    "residual.states": {
        "no x0": (lambda *writes: states_in_a_loop(*writes)[1:], "x^0 is missing"),
        "no xL": (lambda *writes: states_in_a_loop(*writes)[:-1], "x^L is missing"),
        "no b_O": (states_with(bias=lambda b, H: 0 * b[:, None]), "The bias b_O is missing"),
        "b_O per head": (states_with(bias=lambda b, H: H * b[:, None]), "once for every head"),
        "b_O once": (states_with(bias=lambda b, H: torch.cat([b[:1], 0 * b[1:]])[:, None]), "for one layer only"),
        "no FFN": (states_with(ffn_weight=0.0), "The FFN writes are missing"),
        "no heads": (states_with(head=lambda w: 0 * w.sum(1)), "The head writes are missing"),
        "mean of heads": (states_with(head=lambda w: w.mean(1)), "Heads were averaged"),
        "no embedding": (states_without_embedding, "The embedding is missing from the later states"),
        "not cumulative": (states_not_cumulative, "its own block only"),
        "shifted": (states_shifted, "off by one"),
        "one tensor": (states_same_tensor, "off by one"),
        "in place": (states_in_place, "wrote into an argument"),
        "along tokens": (states_bias_along_tokens, "along the tokens instead of along d"),
        "wrong axis": (states_with(head=lambda w: w.sum(2)), "Shapes do not fit"),
    },
    "residual.layer_norm": {
        "unbiased": (norm_with(divisor=lambda x, eps: (x.var(-1, keepdim=True) + eps).sqrt()), "divided by d - 1"),
        "rms": (
            norm_with(lambda x: x, lambda x, eps: (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()),
            "This is an RMSNorm",
        ),
        "not centred": (norm_with(centre=lambda x: x), "but not centred"),
        "variance": (norm_with(divisor=lambda x, eps: x.var(-1, unbiased=False, keepdim=True) + eps), "square root"),
        "only centred": (norm_with(divisor=lambda x, eps: 1.0), "not divided by its standard deviation"),
        "length 1": (lambda x, gain, bias, eps=1e-5: normalize(x - x.mean(-1, True), dim=-1) * gain + bias, "length 1"),
        "axis 0": (norm_over(0), "over the tokens (axis 0)"),
        "middle axis": (
            lambda x, *rest: norm_over(-2 if x.dim() == 3 else -1)(x, *rest),
            "taken over axis 1",
        ),
        "all axes": (lambda x, *rest: norm_over(tuple(range(x.dim())))(x, *rest), "for all tokens"),
        "no bias": (norm_with(end=lambda y, gain, bias: y * gain), "The bias is missing"),
        "no gain": (norm_with(end=lambda y, gain, bias: y + bias), "The gain is missing"),
        "gain last": (norm_with(end=lambda y, gain, bias: (y + bias) * gain), "first the gain, then the bias"),
        "gain plus one": (
            lambda x, gain, bias, eps=1e-5: norm_by_var(x, gain + (1 if not bool((gain == 1).all()) else 0), bias, eps),
            "1 was added to the gain",
        ),
        "gain first": (lambda x, gain, bias, eps=1e-5: norm_by_var(x * gain, 1.0, bias, eps), "gain was put on x"),
        "eps outside": (
            norm_with(divisor=lambda x, eps: x.var(-1, unbiased=False, keepdim=True).sqrt() + eps),
            "outside the square root",
        ),
        "fixed eps": (lambda x, gain, bias, eps=1e-5: norm_by_var(x, gain, bias), "eps was not used"),
    },
    "residual.attribution": {
        "own scale": (
            attribution_with(scale=lambda w, eps: (w.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()),
            "its own standard deviation",
        ),
        "norm of each": (attribution_norm_of_each, "applied to each write as a whole"),
        "no bias row": (lambda *args: attribution_in_a_loop(*args)[:-1], "The row of the bias is missing"),
        "no scale": (attribution_with(scale=lambda w, eps: 1.0), "not divided by the scale"),
        "times": (
            attribution_with(scale=lambda w, eps: (w.sum(0).var(-1, unbiased=False, keepdim=True) + eps).sqrt()),
            "Divide by it",
        ),
        "not centred": (attribution_with(centre=lambda w: w), "were not centred"),
        "mean of x": (attribution_with(centre=lambda w: w - w.sum(0).mean(-1, True)), "The mean of the whole state"),
        "centred over writes": (attribution_with(centre=lambda w: w - w.mean(0)), "over the writes (axis 0)"),
        "no gain": (attribution_with(gain_power=0), "The gain is missing"),
        "gain on the bias": (
            attribution_with(last=lambda gain, bias, direction: direction @ (gain * bias)),
            "added after both",
        ),
        "rms": (
            attribution_with(scale=lambda w, eps: (w.sum(0).pow(2).mean(-1, keepdim=True) + eps).rsqrt()),
            "that of an RMSNorm",
        ),
        "unbiased": (
            attribution_with(scale=lambda w, eps: (w.sum(0).var(-1, keepdim=True) + eps).rsqrt()),
            "divided by d - 1",
        ),
        "fixed eps": (lambda w, g, b, u, eps=1e-5: attribution_in_a_loop(w, g, b, u), "eps was left out"),
        "one scale": (attribution_one_scale, "One scale was used for all prompts"),
        "evenly": (attribution_split_dependent, "how the state is cut"),
    },
    "residual.read_message": {
        "raw states": (message_with(x=lambda x, m: x), "The mean state was not taken away"),
        "raw codes": (message_with(codes=lambda c: c), "The codes were not centred"),
        "both raw": (message_with(x=lambda x, m: x, codes=lambda c: c), "The mean state was not taken away"),
        "farthest": (message_with(choose=lambda distance: distance.argmax(-1)), "farthest away"),
        "dot product": (message_loudest, "prefers loud codes"),
        "cosine": (message_by_cosine, "The cosine sees directions only"),
        "distances": (message_with(choose=lambda distance: distance), "it should be int64"),
        "axis 0": (message_with(choose=lambda distance: distance.argmin(0)), "For each state, take the nearest"),
        "own batch": (message_with(x=lambda x, m: x - x.mean(0)), "centred by their own mean"),
        "mean over d": (message_with(codes=lambda c: c - c.mean(1, keepdim=True)), "over the codes (axis 0)"),
        "code itself": (lambda x, m, codes: codes[message_by_sums(x, m, codes)], "The dtype is float32"),
        "in place": (message_centres_in_place, "wrote into an argument"),
        "list": (lambda *args: message_by_sums(*args).tolist(), "of type list"),
    },
}

# Changes that leave an answer right: the state is [B, d], so the last axis is axis 1.
SAME = {
    "residual.attribution": {
        *(f"attribution_in_a_loop, line {line}: -1 -> +1" for line in (3, 4, 5)),
        *(f"attribution_by_folding, line {line}: -1 -> +1" for line in (4, 5)),
    }
}
