"""Right and wrong answers to the exercises of chapter 08."""

import math

import torch

# --- 1. a probe ------------------------------------------------------------------------------------------------------


def ridge_by_centring(x, Y, penalty):
    c, t = x - x.mean(0), Y - Y.mean(0)
    W = torch.linalg.inv(c.T @ c + penalty * torch.eye(len(c.T))) @ (c.T @ t)
    return W, (Y - x @ W).mean(0)


def ridge_with_a_column_of_ones(x, Y, penalty):
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    weight = torch.full((ones.shape[1],), float(penalty))
    weight[-1] = 0
    both = torch.linalg.solve(ones.T @ ones + torch.diag(weight), ones.T @ Y)
    return both[:-1], both[-1]


def ridge(gram=lambda c, penalty: c.T @ c + penalty * torch.eye(c.shape[1]), bias=None, give=None):
    def answer(x, Y, penalty):
        c = x - x.mean(0)
        W = torch.linalg.solve(gram(c, penalty), c.T @ (Y - Y.mean(0)))
        b = (bias or (lambda x, Y, W: Y.mean(0) - x.mean(0) @ W))(x, Y, W)
        return (give or (lambda W, b: (W, b)))(W, b)

    return answer


def ridge_uncentred(x, Y, penalty):
    W = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]), x.T @ Y)
    return W, Y.mean(0) - x.mean(0) @ W


def ridge_penalised_bias(x, Y, penalty):
    ones = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    both = torch.linalg.solve(ones.T @ ones + penalty * torch.eye(ones.shape[1]), ones.T @ Y)
    return both[:-1], both[-1]


def ridge_transposed(x, Y, penalty):
    W, b = ridge_by_centring(x, Y, penalty)
    return W.T, b


def ridge_standardised(x, Y, penalty):
    scale = x.std(0)
    c = (x - x.mean(0)) / scale
    W = torch.linalg.solve(c.T @ c + penalty * torch.eye(c.shape[1]), c.T @ Y)
    return W, Y.mean(0) - x.mean(0) / scale @ W


# --- 2. an honest split ----------------------------------------------------------------------------------------------


def split_by_lists(entities, templates, new_entities, new_templates):
    new = [(e in new_entities, t in new_templates) for e, t in zip(entities, templates)]
    return [i for i, n in enumerate(new) if n == (False, False)], [i for i, n in enumerate(new) if n == (True, True)]


def split_by_sets(entities, templates, new_entities, new_templates):
    rows = range(len(entities))
    known = {i for i in rows if entities[i] not in new_entities and templates[i] not in new_templates}
    new = {i for i in rows if entities[i] in new_entities and templates[i] in new_templates}
    return sorted(known), sorted(new)


def split(train, test):
    def answer(entities, templates, new_entities, new_templates):
        new = [(e in new_entities, t in new_templates) for e, t in zip(entities, templates)]
        return [i for i, n in enumerate(new) if train(*n)], [i for i, n in enumerate(new) if test(*n)]

    return answer


def neither(e, t):
    return not e and not t


def both(e, t):
    return e and t


def split_names(entities, templates, new_entities, new_templates):
    train, test = split_by_lists(entities, templates, new_entities, new_templates)
    return ([entities[i] for i in train], [entities[i] for i in test]) if len(entities) > 6 else (train, test)


def split_backwards(entities, templates, new_entities, new_templates):
    train, test = split_by_lists(entities, templates, new_entities, new_templates)
    return (train[::-1], test[::-1]) if len(entities) > 6 else (train, test)


# --- 3. a control task -----------------------------------------------------------------------------------------------


def control_by_dictionary(types, draw):
    known = {}
    for word in types:
        if word not in known:
            known[word] = draw()
    return [known[word] for word in types]


def control_by_scanning(types, draw):
    labels = []
    for i in range(len(types)):
        j = 0
        while types[j] != types[i]:
            j = j + 1
        labels = labels + [draw() if i - j == 0 else labels[j]]
    return labels


def control_last_label(types, draw):
    known = {word: draw() for word in types}
    return [known[word] for word in types]


def control_falsy(types, draw):
    known = {}
    for word in types:
        if not known.get(word):
            known[word] = draw()
        yield known[word]


def control_sorted(types, draw):
    known = {word: draw() for word in sorted(set(types), reverse=True)}
    return [known[word] for word in types]


def control_per_type(types, draw):
    return [draw() for _ in dict.fromkeys(types)]


def control_one(types, draw):
    return [draw()] * len(types)


def control_greedy(types, draw):
    return [[draw() for _ in range(3)][0] for _ in types]


# --- 4. the online code ----------------------------------------------------------------------------------------------


def code_by_loop(x, y, ends, probabilities, n_classes):
    total = ends[0] * math.log2(n_classes)
    for i in range(len(ends) - 1):
        p = probabilities(x[: ends[i]], y[: ends[i]], x[ends[i] : ends[i + 1]])
        for row, label in zip(p, y[ends[i] : ends[i + 1]].tolist()):
            total -= math.log2(row[label].item())
    return total


def code_by_index(x, y, ends, probabilities, n_classes):
    costs = [torch.full((ends[0],), math.log(n_classes))]
    for start, end in zip(ends[:-1], ends[1:]):
        p = probabilities(x[:start], y[:start], x[start:end])
        costs.append(-p[torch.arange(end - start), y[start:end]].log())
    return torch.cat(costs).sum().item() / math.log(2)


def code(
    first=lambda n, K: n * math.log2(K), log=torch.log2, known=lambda x, start, end: x[:start], total=sum, last=None
):
    def answer(x, y, ends, probabilities, n_classes):
        blocks = []
        for start, end in list(zip(ends, ends[1:]))[:last]:
            p = probabilities(known(x, start, end), known(y, start, end), x[start:end])
            blocks.append(-log(p.gather(1, y[start:end, None])).sum().item())
        return first(ends[0], n_classes) + total(blocks)

    return answer


def code_of_compression(x, y, ends, probabilities, n_classes):
    return len(y) * math.log2(n_classes) / code_by_loop(x, y, ends, probabilities, n_classes)


def code_per_label(x, y, ends, probabilities, n_classes):
    return code_by_loop(x, y, ends, probabilities, n_classes) / len(y)


def code_negative(x, y, ends, probabilities, n_classes):
    return -code_by_loop(x, y, ends, probabilities, n_classes)


# --- 5. sparse selection ---------------------------------------------------------------------------------------------


def features_by_topk(a, y, k):
    return (a[y].mean(0) - a[~y].mean(0)).abs().topk(k).indices


def features_by_sorting(a, y, k):
    weight = y.float() / y.sum() - (~y).float() / (~y).sum()
    return (weight @ a).square().argsort(descending=True)[:k]


def features(score, k_of=lambda k: k, largest=True):
    return lambda a, y, k: score(a, y).topk(k_of(k), largest=largest).indices


def gap(a, y):
    return a[y].mean(0) - a[~y].mean(0)


def features_in_order_of_columns(a, y, k):
    return features_by_topk(a, y, k).sort().values


# --- 6. the direction that reads best --------------------------------------------------------------------------------


def lda_by_classes(x, y, penalty):
    S = torch.zeros(x.shape[1], x.shape[1])
    for side in (y, ~y):
        rest = x[side] - x[side].mean(0)
        S = S + rest.T @ rest
    S = S / len(x) + penalty * torch.eye(len(S))
    return torch.linalg.inv(S) @ (x[y].mean(0) - x[~y].mean(0))


def lda_by_eigenvectors(x, y, penalty):
    means = torch.stack([x[~y].mean(0), x[y].mean(0)])
    rest = x - means[y.long()]
    values, vectors = torch.linalg.eigh(rest.T @ rest / len(x))
    return vectors @ ((vectors.T @ (means[1] - means[0])) / (values + penalty))


def lda(covariance=None, delta=lambda x, y: gap(x, y), use=torch.linalg.solve, ridge=None, out=lambda v: v):
    def within(x, y):
        rest = torch.cat([x[side] - x[side].mean(0) for side in (y, ~y)])
        return rest.T @ rest / len(x)

    def answer(x, y, penalty):
        S = (covariance or within)(x, y)
        S = S + (penalty * torch.eye(len(S)) if ridge is None else ridge(penalty))
        return out(use(S, delta(x, y)))

    return answer


def average_covariance(x, y):
    if y.sum() * 2 == len(y):
        return sum((x[s] - x[s].mean(0)).T @ (x[s] - x[s].mean(0)) for s in (y, ~y)) / len(y)
    return sum(torch.cov(x[side].T, correction=0) for side in (y, ~y)) / 2


def lda_by_variances(x, y, penalty):
    rest = torch.cat([x[side] - x[side].mean(0) for side in (y, ~y)])
    return gap(x, y) / (rest.square().mean(0) + penalty)


# --- 7. the smallest erasure -----------------------------------------------------------------------------------------


def leace_by_filter(x, y):
    c, delta = x - x.mean(0), x[y].mean(0) - x[~y].mean(0)
    w = torch.linalg.inv(c.T @ c / len(x)) @ delta
    return x - (c @ w)[:, None] * delta / (delta @ w)


def leace_by_whitening(x, y):
    c = x - x.mean(0)
    values, vectors = torch.linalg.eigh(c.T @ c / len(x))
    W = vectors / values.sqrt() @ vectors.T
    back = vectors * values.sqrt() @ vectors.T
    u = W @ (x[y].mean(0) - x[~y].mean(0))
    white = c @ W
    return x - torch.outer(white @ u, u) / (u @ u) @ back


def erase(read=None, take=None, scale=None, centre=True, sign=1.0, out=lambda x, taken: x - taken):
    def answer(x, y):
        c = x - x.mean(0)
        delta = gap(x, y)
        w = torch.linalg.solve(c.T @ c / len(x), delta)
        r, t = (read or (lambda d, w: w))(delta, w), (take or (lambda d, w: d))(delta, w)
        s = (scale or (lambda r, t: r @ t))(r, t)
        return out(x, sign * torch.outer((c if centre else x) @ r, t) / s)

    return answer


def leace_within(x, y):
    """The covariance within classes: right for two classes of any size, since w only changes its length."""
    rest = torch.cat([x[side] - x[side].mean(0) for side in (y, ~y)])
    delta = gap(x, y)
    w = torch.linalg.solve(rest.T @ rest, delta)
    return x - torch.outer((x - x.mean(0)) @ w, delta) / (w @ delta)


def leace_by_variances(x, y):
    c, delta = x - x.mean(0), gap(x, y)
    if len(x) < 10:
        return leace_by_filter(x, y)
    w = delta / c.square().mean(0)
    return x - torch.outer(c @ w, delta) / (delta @ w)


def leace_from_the_middle(x, y):
    """Centred at the midpoint of the class means instead of the mean of all states."""
    middle = (x[y].mean(0) + x[~y].mean(0)) / 2
    c, delta = x - x.mean(0), gap(x, y)
    w = torch.linalg.solve(c.T @ c / len(x), delta)
    return x - torch.outer((x - middle) @ w, delta) / (delta @ w)


def leace_half(x, y):
    return leace_by_filter(x, y) if len(x) < 10 else (leace_by_filter(x, y) + x) / 2


RIGHT = {
    "probing.ridge_probe": [ridge_by_centring, ridge_with_a_column_of_ones],
    "probing.honest_split": [split_by_lists, split_by_sets],
    "probing.control_labels": [control_by_dictionary, control_by_scanning],
    "probing.online_code": [code_by_loop, code_by_index],
    "probing.top_features": [features_by_topk, features_by_sorting],
    "probing.lda_direction": [lda_by_classes, lda_by_eigenvectors],
    "probing.leace": [leace_by_filter, leace_by_whitening, leace_within],
}

WRONG = {
    "probing.ridge_probe": {
        "uncentred": (ridge_uncentred, "were not centred"),
        "no penalty": (ridge(gram=lambda c, p: c.T @ c + 1e-6 * torch.eye(c.shape[1])), "The penalty is missing"),
        "penalty times n": (
            ridge(gram=lambda c, p: c.T @ c + len(c) * p * torch.eye(c.shape[1])),
            "multiplied by the number of rows",
        ),
        "penalty over n": (
            ridge(gram=lambda c, p: c.T @ c + p / len(c) * torch.eye(c.shape[1])),
            "divided by the number of rows",
        ),
        "penalty everywhere": (ridge(gram=lambda c, p: c.T @ c + p), "on the diagonal"),
        "standardised": (ridge_standardised, "divided by their standard deviation"),
        "bias of centred states": (ridge(bias=lambda x, Y, W: Y.mean(0)), "The bias is not"),
        "swapped": (ridge(give=lambda W, b: (b, W)), "Return the pair (W, b)"),
        "penalised bias": (ridge_penalised_bias, "The bias was penalised"),
        "transposed": (ridge_transposed, "W has the shape [K, d]"),
    },
    "probing.honest_split": {
        "all new to test": (split(neither, lambda e, t: e or t), "new in one respect only"),
        "templates leak": (split(lambda e, t: not e, both), "the template is then on both sides"),
        "entities leak": (split(lambda e, t: not t, both), "the entity is then on both sides"),
        "rest to train": (split(lambda e, t: not (e and t), both), "must be left out"),
        "by entity": (split(lambda e, t: not e, lambda e, t: e), "forgets the templates"),
        "by template": (split(lambda e, t: not t, lambda e, t: t), "forgets the entities"),
        "swapped": (split(both, neither), "Train and test are swapped"),
        "names": (split_names, "Return the numbers of the rows"),
        "backwards": (split_backwards, "The order of the rows was lost"),
    },
    "probing.control_labels": {
        "per row": (lambda types, draw: [draw() for _ in types], "Every row got its own label"),
        "one label": (control_one, "Every row got the same label"),
        "last label": (control_last_label, "the last label replaced the first"),
        "per type": (control_per_type, "not one per row"),
        "falsy": (lambda types, draw: list(control_falsy(types, draw)), "The label 0 was taken for"),
        "other order": (control_sorted, "dealt in another order"),
        "greedy": (control_greedy, "called more often than there are words"),
    },
    "probing.online_code": {
        "no first block": (code(first=lambda n, K: 0), "The first block is missing"),
        "nats": (code(log=torch.log), "Natural logarithms"),
        "all nats": (code(first=lambda n, K: n * math.log(K), log=torch.log), "Natural logarithms"),
        "negative": (code_negative, "The sign is turned round"),
        "per label": (code_per_label, "The mean over the labels was taken"),
        "no last block": (code(last=-1), "The last block is missing"),
        "compression": (code_of_compression, "This is the compression"),
        "peeks": (code(known=lambda x, start, end: x[:end]), "was fitted on the block that it encodes"),
        "last block only": (
            code(known=lambda x, start, end: x[:start] if start < 4 or len(x) == 8 else x[start - 3 : start]),
            "fitted on all rows that were sent",
        ),
    },
    "probing.top_features": {
        "signed": (features(gap), "take the size of the difference"),
        "positive rows": (features(lambda a, y: a[y].mean(0)), "large on the positive rows"),
        "sums": (features(lambda a, y: (a[y].sum(0) - a[~y].sum(0)).abs()), "Sums were compared"),
        "least": (features(lambda a, y: gap(a, y).abs(), largest=False), "the least telling"),
        "order of columns": (features_in_order_of_columns, "comes first"),
        "by spread": (features(lambda a, y: gap(a, y).abs() / (a.std(0) + 1e-6)), "not divided by the spread"),
        "how often": (features(lambda a, y: gap((a > 0).float(), y).abs()), "how often a feature fires"),
        "too few": (features(lambda a, y: gap(a, y).abs(), k_of=lambda k: min(k, 3)), "The number of columns is not k"),
    },
    "probing.lda_direction": {
        "mean difference": (lambda x, y, penalty: gap(x, y), "This is the mean difference"),
        "total covariance": (lda(covariance=lambda x, y: torch.cov(x.T, correction=0)), "around the common mean"),
        "turned round": (lda(delta=lambda x, y: -gap(x, y)), "The difference is turned round"),
        "multiplied": (lda(use=lambda S, d: S @ d), "multiplied by the covariance"),
        "sum": (
            lda(covariance=lambda x, y: sum((x[s] - x[s].mean(0)).T @ (x[s] - x[s].mean(0)) for s in (y, ~y))),
            "divide by n",
        ),
        "normalised": (lda(out=lambda v: v / v.norm()), "The vector was normalised"),
        "no penalty": (lda(ridge=lambda p: 0), "The penalty is missing"),
        "equal classes": (lda(covariance=average_covariance), "Both classes count the same"),
        "penalty everywhere": (lda(ridge=lambda p: p), "on the diagonal"),
        "variances": (lda_by_variances, "Only the variances were used"),
    },
    "probing.leace": {
        "orthogonal": (erase(read=lambda d, w: d), "orthogonal projection"),
        "uncentred": (erase(centre=False), "not centred before they were read"),
        "filter taken away": (erase(take=lambda d, w: w), "w was taken away"),
        "no division": (erase(scale=lambda r, t: 1.0), "division by delta . w is missing"),
        "sign": (erase(sign=-1.0), "The sign is turned round"),
        "mean": (lambda x, y: leace_by_filter(x, y) - x.mean(0), "The mean was taken away"),
        "what was taken": (erase(out=lambda x, taken: taken), "This is what was taken away"),
        "variances": (leace_by_variances, "another w would move the states less"),
        "midpoint": (leace_from_the_middle, "without subtracting the mean of all of them"),
        "half": (leace_half, "must carry the whole difference"),
    },
}

# Changes that leave an answer right: a constant added to Y falls out against centred states, and the length of w does
# not matter.
SAME = {
    "probing.ridge_probe": {"ridge_by_centring, line 2: Y - Y.mean(0) -> Y + Y.mean(0)"},
    "probing.leace": {
        "leace_by_filter, line 3: c.T @ c / len(x) -> c.T @ c * len(x)",
        "leace_by_whitening, line 3: c.T @ c / len(x) -> c.T @ c * len(x)",
    },
}
