"""Answers to the exercises of chapter 02: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import math

import torch

# --- heads.pattern ---------------------------------------------------------------------------------------------------


def pattern_with_mask(q, k):
    scores = q @ k.T / q.shape[1] ** 0.5
    later = torch.triu(torch.ones(len(q), len(k)), diagonal=1).bool()
    scores[later] = -torch.inf
    return torch.softmax(scores, dim=1)


def pattern_row_by_row(q, k):
    pattern = torch.zeros(len(q), len(k))
    for i in range(len(q)):
        pattern[i, : i + 1] = (k[: i + 1] @ q[i] / math.sqrt(k.shape[1])).softmax(0)
    return pattern


def pattern_by_torch(q, k):
    values = torch.eye(len(k))
    return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], values[None], is_causal=True)[0]


def pattern_with(scale=lambda q: q.shape[-1] ** 0.5, mask=lambda s: s.masked_fill(_later(s), -torch.inf), dim=-1):
    return lambda q, k: mask(q @ k.T / scale(q)).softmax(dim)


def _later(scores, diagonal=1):
    return torch.ones_like(scores, dtype=torch.bool).triu(diagonal)


def pattern_masked_afterwards(q, k):
    return (q @ k.T / q.shape[-1] ** 0.5).softmax(-1).tril()


def pattern_by_exp(q, k):
    weights = (q @ k.T / q.shape[-1] ** 0.5).exp().tril()
    return weights / weights.sum(-1, keepdim=True)


def pattern_renormalised(q, k):
    weights = (q @ k.T / q.shape[-1] ** 0.5).softmax(-1).tril()
    return weights / weights.sum(-1, keepdim=True)


# --- heads.qk_matrix -------------------------------------------------------------------------------------------------


def qk_by_cat(W_Q, b_Q, W_K, b_K):
    tall_q, tall_k = torch.cat([W_Q, b_Q[None]]), torch.cat([W_K, b_K[None]])
    return tall_q @ tall_k.T / W_Q.shape[1] ** 0.5


def qk_by_blocks(W_Q, b_Q, W_K, b_K):
    d, size = W_Q.shape
    form = torch.zeros(d + 1, d + 1)
    form[:d, :d] = W_Q @ W_K.T
    form[:d, d] = W_Q @ b_K
    form[d, :d] = W_K @ b_Q
    form[d, d] = b_Q @ b_K
    return form / math.sqrt(size)


def qk_with(order=(0, 1), scale=lambda W: W.shape[1] ** 0.5, drop=(), first=False):
    def answer(W_Q, b_Q, W_K, b_K):
        b_Q, b_K = b_Q * ("b_Q" not in drop), b_K * ("b_K" not in drop)
        tall = [torch.cat([b[None], W] if first else [W, b[None]]) for W, b in ((W_Q, b_Q), (W_K, b_K))]
        return tall[order[0]] @ tall[order[1]].T / scale(W_Q)

    return answer


def qk_with_biases_in_the_corner(W_Q, b_Q, W_K, b_K):
    M = torch.zeros(len(W_Q) + 1, len(W_K) + 1)
    M[:-1, :-1], M[-1, -1] = W_Q @ W_K.T, b_Q @ b_K
    return M / W_Q.shape[1] ** 0.5


def qk_without_corner(W_Q, b_Q, W_K, b_K):
    form = qk_by_cat(W_Q, b_Q, W_K, b_K)
    return form - torch.nn.functional.pad(form[-1:, -1:], (len(W_Q), 0, len(W_Q), 0))


# --- heads.result ----------------------------------------------------------------------------------------------------


def result_in_two_steps(pattern, x, W_V, b_V, W_O):
    values = x @ W_V + b_V
    z = pattern @ values
    return z, z @ W_O


def result_by_ov(pattern, x, W_V, b_V, W_O):
    mixed = pattern @ x
    total = pattern.sum(-1, keepdim=True)
    return mixed @ W_V + total * b_V, mixed @ (W_V @ W_O) + total * (b_V @ W_O)


def result_by_einsum(pattern, x, W_V, b_V, W_O):
    z = torch.einsum("ij,jh->ih", pattern, torch.einsum("jd,dh->jh", x, W_V) + b_V)
    return z, torch.einsum("ih,he->ie", z, W_O)


# --- heads.prefix_matching -------------------------------------------------------------------------------------------


def prefix_by_loops(pattern, tokens):
    masses = []
    for i in range(len(tokens)):
        keys = [j + 1 for j in range(i) if tokens[j] == tokens[i]]
        if keys:
            masses.append(float(pattern[i, keys].sum()))
    return sum(masses) / len(masses)


def prefix_by_shift(pattern, tokens):
    before = torch.nn.functional.pad(tokens[:-1], (1, 0), value=-1)
    wanted = (tokens[:, None] == before[None, :]) & torch.ones_like(pattern).tril().bool()
    rows = wanted.any(1)
    return (pattern * wanted).sum(1)[rows].mean().item()


def prefix_with(
    step=1, choose=lambda keys: keys, reduce=lambda p: p.sum(), over=lambda masses, T: sum(masses) / len(masses)
):
    def answer(pattern, tokens):
        masses = []
        for i in range(len(tokens)):
            copies = [j for j in range(i) if tokens[j] == tokens[i]]
            keys = [j + step for j in copies if j + step >= 0]
            if copies:
                masses.append(float(reduce(pattern[i, choose(keys)])) if keys else 0.0)
        return over(masses, len(tokens))

    return answer


def prefix_previous_token(pattern, tokens):
    repeated = [i for i in range(1, len(tokens)) if tokens[i] in tokens[:i]]
    return sum(float(pattern[i, i - 1]) for i in repeated) / len(repeated)


def prefix_over_pairs(pattern, tokens):
    pairs = [(i, j + 1) for i in range(len(tokens)) for j in range(i) if tokens[j] == tokens[i]]
    return sum(float(pattern[i, j]) for i, j in pairs) / len(pairs)


def prefix_rolled(pattern, tokens):
    wanted = (tokens[:, None] == tokens.roll(1)[None, :]).tril()
    return (pattern * wanted).sum(1)[wanted.any(1)].mean().item()


def prefix_after_any_copy(pattern, tokens):
    masses = [pattern[i, j + 1].item() for i, t in enumerate(tokens) for j, u in enumerate(tokens[:-1]) if t == u]
    return sum(masses) / len(masses)


# --- heads.copying ---------------------------------------------------------------------------------------------------


def copying_by_rows(writes, W_U, tokens):
    total = 0.0
    for write, token in zip(writes, tokens):
        logits = write @ W_U
        total += float((logits[token] - logits.mean()) / logits.std())
    return total / len(tokens)


def copying_by_gather(writes, W_U, tokens):
    logits = writes @ W_U
    z = (logits - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True, correction=0)
    return z.gather(1, tokens[:, None]).mean().item()


def copying_with(pick=None, centre=lambda x: x.mean(-1), spread=lambda x: x.std(-1), after=lambda z: z.mean()):
    pick = pick or (lambda logits, tokens: logits[torch.arange(len(tokens)), tokens])

    def answer(writes, W_U, tokens):
        logits = writes @ W_U
        return float(after((pick(logits, tokens) - centre(logits)) / spread(logits)))

    return answer


def copying_over_tokens(writes, W_U, tokens):
    logits = writes @ W_U
    z = (logits - logits.mean(0)) / logits.std(0).clamp(min=1e-9)
    return z[torch.arange(len(tokens)), tokens].mean().item()


def copying_all_pairs(writes, W_U, tokens):
    logits = writes @ W_U
    return ((logits[:, tokens] - logits.mean(1, keepdim=True)) / logits.std(1, keepdim=True)).mean().item()


def copying_among_own(writes, W_U, tokens):
    logits = writes @ W_U
    own = logits[torch.arange(len(tokens)), tokens]
    return ((own - own.mean()) / logits.std()).mean().item()


# --- heads.k_composition ---------------------------------------------------------------------------------------------


def composition_by_norms(W_OV, W_QK):
    return float(torch.linalg.norm(W_OV @ W_QK.T) / (torch.linalg.norm(W_OV) * torch.linalg.norm(W_QK)))


def composition_by_squares(W_OV, W_QK):
    both = torch.einsum("ac,bc->ab", W_OV, W_QK)
    return (both.pow(2).sum() / W_OV.pow(2).sum() / W_QK.pow(2).sum()).sqrt().item()


def composition_spectral(W_OV, W_QK):
    return float(torch.linalg.matrix_norm(W_OV @ W_QK.T, 2) / W_OV.norm() / W_QK.norm())


RIGHT = {
    "heads.pattern": [pattern_with_mask, pattern_row_by_row, pattern_by_torch],
    "heads.qk_matrix": [qk_by_cat, qk_by_blocks],
    "heads.result": [result_in_two_steps, result_by_ov, result_by_einsum],
    "heads.prefix_matching": [prefix_by_loops, prefix_by_shift],
    "heads.copying": [copying_by_rows, copying_by_gather],
    "heads.k_composition": [composition_by_norms, composition_by_squares],
}

WRONG = {
    "heads.pattern": {
        "softmax over queries": (pattern_with(dim=0), "The softmax runs over the queries"),
        "no scale": (pattern_with(scale=lambda q: 1), "not divided by sqrt(d_head)"),
        "divided by d_head": (pattern_with(scale=lambda q: q.shape[-1]), "it is its square root"),
        "divided by sqrt(T)": (pattern_with(scale=lambda q: len(q) ** 0.5), "divided by sqrt(T)"),
        "mask after the softmax": (pattern_masked_afterwards, "set to 0 after the softmax"),
        "score 0": (pattern_with(mask=lambda s: s.tril()), "exp(0) = 1"),
        "no mask": (pattern_with(mask=lambda s: s), "The mask is missing"),
        "wrong side": (pattern_with(mask=lambda s: s.masked_fill(_later(s).T, -torch.inf)), "hides the wrong side"),
        "diagonal hidden": (pattern_with(mask=lambda s: s.masked_fill(_later(s, 0), -torch.inf)), "hides the diagonal"),
        "swapped": (lambda q, k: pattern_with_mask(k, q), "Queries and keys are swapped"),
        "transposed": (lambda q, k: pattern_with_mask(q, k).T, "The result is transposed"),
        "scores": (lambda q, k: (q @ k.T / q.shape[-1] ** 0.5).tril(), "The softmax is missing"),
        "exp": (pattern_by_exp, "exp of a large score is infinite"),
        "renormalised": (pattern_renormalised, "came out as 0"),
        "small number": (pattern_with(mask=lambda s: s.masked_fill(_later(s), -1e4)), "Use -inf"),
    },
    "heads.qk_matrix": {
        "no scale": (qk_with(scale=lambda W: 1), "not divided by sqrt(d_head)"),
        "divided by d_head": (qk_with(scale=lambda W: W.shape[1]), "it is its square root"),
        "divided by sqrt(d)": (qk_with(scale=lambda W: len(W) ** 0.5), "square root of d, the size of the state"),
        "swapped": (qk_with(order=(1, 0)), "Queries and keys are swapped"),
        "no biases": (qk_with(drop=("b_Q", "b_K")), "The biases are missing"),
        "no b_K": (qk_with(drop=("b_K",)), "b_K is missing"),
        "no b_Q": (qk_with(drop=("b_Q",)), "b_Q is missing"),
        "no corner": (qk_without_corner, "The corner is missing"),
        "biases in the corner only": (qk_with_biases_in_the_corner, "meet each other but no state"),
        "ones first": (qk_with(first=True), "The biases stand first"),
        "weights only": (lambda W_Q, b_Q, W_K, b_K: W_Q @ W_K.T / W_Q.shape[1] ** 0.5, "Make room for the biases"),
        "wrong axis": (lambda W_Q, b_Q, W_K, b_K: W_Q.T @ W_K, "The product runs over d"),
    },
    "heads.result": {
        "swapped": (lambda A, x, W_V, b_V, W_O: result_by_ov(A, x, W_V, b_V, W_O)[::-1], "z and result are swapped"),
        "no bias": (lambda A, x, W_V, b_V, W_O: (A @ x @ W_V, A @ x @ W_V @ W_O), "b_V is missing"),
        "pattern transposed": (
            lambda A, x, W_V, b_V, W_O: result_by_ov(A.T, x, W_V, b_V, W_O),
            "The pattern is transposed",
        ),
        "not mixed": (lambda A, x, W_V, b_V, W_O: (x @ W_V + b_V, (x @ W_V + b_V) @ W_O), "not mixed by the pattern"),
        "W_V transposed": (lambda A, x, W_V, b_V, W_O: result_in_two_steps(A, x, W_V.T, b_V, W_O), "W_V is transposed"),
        "W_O transposed": (lambda A, x, W_V, b_V, W_O: result_in_two_steps(A, x, W_V, b_V, W_O.T), "W_O is transposed"),
        "pattern twice": (
            lambda A, x, W_V, b_V, W_O: (A @ (x @ W_V + b_V), A @ A @ (x @ W_V + b_V) @ W_O),
            "The pattern was applied twice",
        ),
        "result skips the pattern": (
            lambda A, x, W_V, b_V, W_O: (A @ (x @ W_V + b_V), (x @ W_V + b_V) @ W_O),
            "skips the pattern",
        ),
        "pattern on the right": (
            lambda A, x, W_V, b_V, W_O: ((x @ W_V + b_V) @ A, (x @ W_V + b_V) @ A @ W_O),
            "multiplies from the right",
        ),
        "result only": (lambda A, x, W_V, b_V, W_O: A @ (x @ W_V + b_V) @ W_O, "Return two"),
    },
    "heads.prefix_matching": {
        "earlier copy": (prefix_with(step=0), "the earlier copies themselves"),
        "before the copy": (prefix_with(step=-1), "the token before the earlier copy"),
        "previous token": (prefix_previous_token, "the token before the query"),
        "over all queries": (prefix_with(over=lambda masses, T: sum(masses) / T), "The mean runs over all queries"),
        "sum over queries": (prefix_with(over=lambda masses, T: sum(masses)), "sum over queries; take the mean"),
        "pattern transposed": (lambda pattern, tokens: prefix_by_loops(pattern.T, tokens), "rows are queries"),
        "latest copy": (prefix_with(choose=lambda keys: keys[-1:]), "only the latest counts"),
        "first copy": (prefix_with(choose=lambda keys: keys[:1]), "only the first counts"),
        "over pairs": (prefix_over_pairs, "runs over (query, key) pairs"),
        "mean over keys": (prefix_with(reduce=lambda p: p.mean()), "attention to several keys adds up"),
        "rolled": (prefix_rolled, "wraps round"),
        "any copy": (prefix_after_any_copy, "Only earlier positions do"),
    },
    "heads.copying": {
        "loud": (copying_with(spread=lambda x: 1.0), "The length of a write counts"),
        "variance": (copying_with(spread=lambda x: x.var(-1)), "The variance was used"),
        "not centred": (copying_with(centre=lambda x: 0.0), "The mean of the row was not taken away"),
        "sign": (copying_with(after=lambda z: -z.mean()), "The sign is turned round"),
        "over tokens": (copying_over_tokens, "must run over the vocabulary"),
        "largest logit": (
            copying_with(pick=lambda logits, tokens: logits.max(-1).values),
            "The largest logit was taken",
        ),
        "absolute": (copying_with(after=lambda z: z.abs().mean()), "The absolute value hides suppression"),
        "sum": (copying_with(after=lambda z: z.sum()), "take the mean"),
        "all tokens for each write": (copying_all_pairs, "takes every token's logit for every write"),
        "mean of the own logits": (copying_among_own, "comes out as 0 whatever"),
    },
    "heads.k_composition": {
        "not divided": (lambda W_OV, W_QK: (W_OV @ W_QK.T).norm().item(), "not divided by the two norms"),
        "queries": (lambda W_OV, W_QK: composition_by_norms(W_OV, W_QK.T), "W_QK is not transposed"),
        "column convention": (lambda W_OV, W_QK: composition_by_norms(W_OV.T, W_QK), "W_OV is transposed"),
        "spectral": (composition_spectral, "the largest singular value"),
        "squares": (lambda W_OV, W_QK: composition_by_norms(W_OV, W_QK) ** 2, "take the root"),
        "number by number": (
            lambda W_OV, W_QK: float((W_OV * W_QK.T).norm() / W_OV.norm() / W_QK.norm()),
            "multiplied number by number",
        ),
    },
}

# Changes that leave an answer right: a matrix has only two axes, no token has a negative id, and both kinds of
# standard deviation are welcome.
SAME = {
    "heads.result": {"result_by_ov, line 3: -1 -> +1"},
    "heads.prefix_matching": {"prefix_by_shift, line 2: 1 -> 2"},
    "heads.copying": {"copying_by_gather, line 3: 0 -> 1"},
}
