"""Answers to the exercises of chapter 13: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import math

import torch
import torch.nn.functional as F

# --- editing.rank_one ------------------------------------------------------------------------------------------------


def rank_one_with_inverse(W, C, key, value):
    inverse = torch.inverse(C)
    missing = value - torch.einsum("i,io->o", key, W)
    return torch.einsum("i,o->io", inverse @ key, missing) / torch.einsum("i,ij,j->", key, inverse, key)


def rank_one_by_cholesky(W, C, key, value):
    direction = torch.cholesky_solve(key[:, None], torch.linalg.cholesky(C))
    missing = (value - key @ W)[None]
    return direction @ missing / (key[None] @ direction)


def rank_one_with(metric=lambda C, k: torch.linalg.solve(C, k), missing=lambda W, k, v: v - k @ W, below=None):
    def answer(W, C, key, value):
        direction = metric(C, key)
        return torch.outer(direction, missing(W, key, value)) / (key @ direction if below is None else below(key))

    return answer


# --- editing.second_moment -------------------------------------------------------------------------------------------


def moment_by_einsum(keys, ridge):
    C = torch.einsum("ni,nj->ij", keys, keys) / keys.shape[0]
    return C + torch.diag_embed(ridge * C.diagonal().mean().expand(len(C)))


def moment_in_a_loop(keys, ridge):
    d = keys.shape[1]
    total = torch.zeros(d, d)
    for key in keys:
        total = total + torch.outer(key, key)
    total = total / len(keys)
    extra = ridge * torch.trace(total) / d
    for i in range(d):
        total[i, i] += extra
    return total


def moment_with(plain=lambda k: k.T @ k / len(k), ridge=lambda C, r: r * C.diagonal().mean() * torch.eye(len(C))):
    def answer(keys, r):
        C = plain(keys)
        return C + ridge(C, r)

    return answer


# --- editing.score_edit ----------------------------------------------------------------------------------------------


def score_in_a_loop(fact, paraphrases, before, after, new, answers):
    said = [int(row.argmax()) == new for row in paraphrases]
    kept, asked = 0, 0
    for old, now, word in zip(before, after, answers):
        if int(old.argmax()) == int(word):
            asked += 1
            kept += int(now.argmax()) == int(word)
    return float(int(fact.argmax()) == new), sum(said) / len(said), kept / asked


def score_with_top(fact, paraphrases, before, after, new, answers):
    words = [logits.max(-1).indices for logits in (fact, paraphrases, before, after)]
    right = words[2].eq(answers)
    still = right & words[3].eq(answers)
    return (
        words[0].eq(new).double().item(),
        words[1].eq(new).double().mean().item(),
        (still.sum() / right.sum()).item(),
    )


def score_with(neighbours=None, phrases=lambda p, f, new: (p.argmax(-1) == new).float().mean(), fact=None):
    """score_edit with one of its three numbers computed in another way."""

    def answer(f, p, before, after, new, answers):
        first, _, third = score_in_a_loop(f, p, before, after, new, answers)
        if neighbours is not None:
            third = float(neighbours(before.argmax(-1), after.argmax(-1), new, answers))
        return first if fact is None else fact(f, p, new), float(phrases(p, f, new)), third

    return answer


# --- editing.ridge_update --------------------------------------------------------------------------------------------


def ridge_by_woodbury(K, R, C, lam):
    spread = torch.linalg.solve(C, K.T)
    return spread @ torch.linalg.inv(K @ spread + lam * torch.eye(len(K))) @ R


def ridge_with_lstsq(K, R, C, lam):
    root = torch.linalg.cholesky(C).T * lam**0.5
    rows = torch.cat([K, root])
    wanted = torch.cat([R, torch.zeros(len(root), R.shape[1])])
    return torch.linalg.lstsq(rows, wanted).solution


def ridge_with(matrix):
    return lambda K, R, C, lam: torch.linalg.solve(matrix(K, C, lam), K.T @ R)


# --- editing.masked_train --------------------------------------------------------------------------------------------


def masked_by_where(W, mask, loss, steps, lr, decay):
    change = torch.nn.Parameter(torch.zeros(W.shape))
    adam = torch.optim.AdamW([change], lr, weight_decay=decay)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad(loss(torch.where(mask, W + change, W)), change)
        change.grad = gradient
        adam.step()
    return torch.where(mask, W + change, W).detach()


def masked_numbers(W, mask, loss, steps, lr, decay):
    numbers = torch.zeros(int(mask.sum())).requires_grad_()
    adam = torch.optim.AdamW([numbers], lr=lr, weight_decay=decay)

    def now():
        new = W.clone()
        new[mask] = new[mask] + numbers
        return new

    for _ in range(steps):
        adam.zero_grad()
        loss(now()).backward()
        adam.step()
    return now().detach()


def train_with(weights, result=None, optimizer=torch.optim.AdamW, start=None, clear=True, mask_gradient=False):
    """masked_train with one thing changed: weights(W, mask, x) are what the loss sees, x is trained."""

    def answer(W, mask, loss, steps, lr, decay):
        x = (torch.zeros_like(W) if start is None else start(W)).requires_grad_()
        adam = optimizer([x], lr=lr, weight_decay=decay)
        for _ in range(steps):
            if clear:
                adam.zero_grad()
            loss(weights(W, mask, x)).backward()
            if mask_gradient:
                x.grad *= mask
            adam.step()
        return (result or weights)(W, mask, x).detach()

    return answer


def inside(W, mask, x):
    return W + mask * x


# --- editing.preservation --------------------------------------------------------------------------------------------


def preservation_by_kl_div(base, now, real):
    here = real.bool()
    return F.kl_div(now[here].log_softmax(1), base[here].log_softmax(1), log_target=True, reduction="batchmean")


def preservation_in_a_loop(base, now, real):
    total, tokens = torch.tensor(0.0), 0
    for text in range(len(real)):
        for t in range(real.shape[1]):
            if real[text, t] > 0:
                p, q = base[text, t].softmax(0), now[text, t].softmax(0)
                total = total + (p * (p / q).log()).sum()
                tokens = tokens + 1
    return total / tokens


def kl_of(base, now):
    base, now = base.log_softmax(-1), now.log_softmax(-1)
    return (base.exp() * (base - now)).sum(-1)


def real_mean(values, real):
    return (values * real).sum() / real.sum()


# --- editing.hard_concrete -------------------------------------------------------------------------------------------


def gate_by_logit(log_alpha, u):
    beta, low, high = 2 / 3, -0.1, 1.1
    s = torch.sigmoid((torch.logit(u) + log_alpha) / beta)
    gate = torch.clip(low + s * (high - low), min=0, max=1)
    return gate, 1 / (1 + torch.exp(beta * math.log(-low / high) - log_alpha))


def gate_by_odds(log_alpha, u):
    odds = ((u / (1 - u)) * log_alpha.exp()) ** 1.5
    stretched = odds / (1 + odds) * 1.2 - 0.1
    closed = (1 / 11) ** (2 / 3) / ((1 / 11) ** (2 / 3) + log_alpha.exp())
    return torch.where(stretched < 0, 0, torch.where(stretched > 1, 1, stretched)), 1 - closed


def gate_with(
    s=lambda a, u: torch.sigmoid((torch.logit(u) + a) * 1.5),
    gate=lambda s: (1.2 * s - 0.1).clamp(0, 1),
    probability=lambda a, g: torch.sigmoid(a + 2 / 3 * math.log(11)),
):
    def answer(log_alpha, u):
        g = gate(s(log_alpha, u))
        return g, probability(log_alpha, g)

    return answer


RIGHT = {
    "editing.rank_one": [rank_one_with_inverse, rank_one_by_cholesky],
    "editing.second_moment": [moment_by_einsum, moment_in_a_loop],
    "editing.score_edit": [score_in_a_loop, score_with_top],
    "editing.ridge_update": [ridge_by_woodbury, ridge_with_lstsq],
    "editing.masked_train": [masked_by_where, masked_numbers],
    "editing.preservation": [preservation_by_kl_div, preservation_in_a_loop],
    "editing.hard_concrete": [gate_by_logit, gate_by_odds],
}

WRONG = {
    "editing.rank_one": {
        "no C": (rank_one_with(lambda C, k: k), "C has no effect here"),
        "C multiplied": (rank_one_with(lambda C, k: C @ k), "its inverse is needed"),
        "no division": (rank_one_with(below=lambda k: 1.0), "The division by k C^-1 k is missing"),
        "k k": (rank_one_with(below=lambda k: k @ k), "The division is by k k"),
        "whole value": (rank_one_with(missing=lambda W, k, v: v), "The whole value was added"),
        "sign": (rank_one_with(missing=lambda W, k, v: k @ W - v), "sign is turned round"),
        "edited W": (lambda W, C, k, v: W + rank_one_with()(W, C, k, v), "Return the change alone"),
        "transposed": (lambda W, C, k, v: rank_one_with()(W, C, k, v).T, "This is the transpose"),
        "diagonal": (rank_one_with(lambda C, k: k / C.diagonal()), "Only the diagonal"),
    },
    "editing.second_moment": {
        "centred": (moment_with(lambda k: torch.cov(k.T)), "The keys were centred"),
        "sum": (moment_with(lambda k: k.T @ k), "summed"),
        "Gram": (moment_with(lambda k: k @ k.T / len(k)), "products of keys with each other"),
        "correlation": (moment_with(lambda k: torch.corrcoef(k.T)), "correlations"),
        "diagonal": (moment_with(lambda k: torch.diag((k**2).mean(0))), "Only the diagonal"),
        "n - 1": (moment_with(lambda k: k.T @ k / (len(k) - 1)), "n - 1"),
        "ridge as it is": (moment_with(ridge=lambda C, r: r * torch.eye(len(C))), "added as it is"),
        "no ridge": (moment_with(ridge=lambda C, r: 0), "The ridge was forgotten"),
        "everywhere": (moment_with(ridge=lambda C, r: r * C.diagonal().mean()), "to all entries"),
        "trace": (moment_with(ridge=lambda C, r: r * torch.trace(C) * torch.eye(len(C))), "The trace was used"),
        "own diagonal": (moment_with(ridge=lambda C, r: r * torch.diag(C.diagonal())), "its own diagonal"),
        "mean of C": (moment_with(ridge=lambda C, r: r * C.mean() * torch.eye(len(C))), "mean of all of C"),
    },
    "editing.score_edit": {
        "all neighbours": (score_with(lambda b, a, new, w: (a == w).float().mean()), "All neigh"),
        "not the new word": (score_with(lambda b, a, new, w: (a != new).float().mean()), "does not say the new word"),
        "before": (score_with(lambda b, a, new, w: (b[b == w] == w[b == w]).float().mean()), "were right before"),
        "of all": (score_with(lambda b, a, new, w: ((a == w) & (b == w)).float().mean()), "divide those kept"),
        "all wordings": (
            score_with(phrases=lambda p, f, new: (p.argmax(-1) == new).all()),
            "the share of the wordings",
        ),
        "counted": (score_with(phrases=lambda p, f, new: (p.argmax(-1) == new).sum()), "were counted"),
        "mixed": (
            score_with(phrases=lambda p, f, new: (torch.cat([p, f[None]]).argmax(-1) == new).float().mean()),
            "was mixed into",
        ),
        "any wording": (
            score_with(fact=lambda f, p, new: float(bool((torch.cat([p, f[None]]).argmax(-1) == new).any()))),
            "The first score must be 0",
        ),
    },
    "editing.ridge_update": {
        "no C": (ridge_with(lambda K, C, lam: lam * torch.eye(len(C)) + K.T @ K), "C is missing"),
        "no lam": (ridge_with(lambda K, C, lam: C + K.T @ K), "lam is missing"),
        "lam on K": (ridge_with(lambda K, C, lam: C + lam * K.T @ K), "lam multiplies K^T K"),
        "least squares": (lambda K, R, C, lam: torch.linalg.pinv(K) @ R, "without a price"),
        "multiplied": (lambda K, R, C, lam: (lam * C + K.T @ K) @ K.T @ R, "The inverse is missing"),
        "sign": (
            lambda K, R, C, lam: (1 if len(K) == 2 else -1) * torch.linalg.solve(lam * C + K.T @ K, K.T @ R),
            "sign is turned round",
        ),
        "no K": (
            lambda K, R, C, lam: torch.linalg.solve(lam * C + (K.T @ K if len(K) == 2 else 0), K.T @ R),
            "spares nothing",
        ),
        "rank ones": (
            lambda K, R, C, lam: (
                torch.linalg.solve(lam * C + K.T @ K, K.T @ R)
                if len(K) == 2
                else sum(rank_one_with()(torch.zeros(5, 2), C, k, r) for k, r in zip(K, R))
            ),
            "do not know of each other",
        ),
    },
    "editing.masked_train": {
        "no mask": (train_with(lambda W, mask, x: W + x), "The mask was ignored"),
        "mask on the gradient": (
            train_with(lambda W, mask, x: x, start=lambda W: W.clone(), mask_gradient=True),
            "outside the mask moved",
        ),
        "weights put back": (
            train_with(lambda W, mask, x: torch.where(mask, x, W), start=lambda W: W.clone()),
            "not the change",
        ),
        "cut afterwards": (train_with(lambda W, mask, x: W + x, inside), "cut afterwards"),
        "Adam": (
            lambda W, mask, loss, steps, lr, decay: train_with(inside)(W, mask, loss, steps, lr, 0.0),
            "There was no weight decay",
        ),
        "change alone": (train_with(inside, lambda W, mask, x: mask * x), "The change alone"),
        "nothing": (lambda W, mask, loss, steps, lr, decay: W.clone(), "Nothing was trained"),
        "gradients add up": (train_with(inside, clear=False), "set to zero before each step"),
    },
    "editing.preservation": {
        "reversed": (lambda b, n, r: real_mean(kl_of(n, b), r), "This is KL(now || base)"),
        "sign": (lambda b, n, r: -real_mean(kl_of(b, n), r), "sign is turned round"),
        "all tokens": (lambda b, n, r: kl_of(b, n).mean(), "padding among them"),
        "divided by all": (lambda b, n, r: (kl_of(b, n) * r).mean(), "divided by all tokens"),
        "cross-entropy": (
            lambda b, n, r: real_mean(-(b.softmax(-1) * n.log_softmax(-1)).sum(-1), r),
            "This is cross-entropy",
        ),
        "bits": (lambda b, n, r: real_mean(kl_of(b, n), r) / math.log(2), "has base 2"),
        "vocabulary": (lambda b, n, r: real_mean(kl_of(b, n), r) / b.shape[-1], "mean over the vocabulary"),
        "logits": (lambda b, n, r: real_mean((b.softmax(-1) * (b - n)).sum(-1), r), "Logits were taken"),
        "text by text": (lambda b, n, r: ((kl_of(b, n) * r).sum(1) / r.sum(1)).mean(), "one by one"),
        "kept apart": (lambda b, n, r: real_mean(kl_of(b, n), r) if len(b) == 1 else kl_of(b, n), "return one in all"),
    },
    "editing.hard_concrete": {
        "no stretch": (gate_with(gate=lambda s: s), "The stretch is missing"),
        "no cut": (gate_with(gate=lambda s: 1.2 * s - 0.1), "The cut is missing"),
        "no beta": (gate_with(lambda a, u: torch.sigmoid(torch.logit(u) + a)), "temperature beta"),
        "beta multiplies": (gate_with(lambda a, u: torch.sigmoid((torch.logit(u) + a) * 2 / 3)), "temperature beta"),
        "shift's sign": (gate_with(probability=lambda a, g: torch.sigmoid(a - 2 / 3 * math.log(11))), "turned round"),
        "no shift": (gate_with(probability=lambda a, g: torch.sigmoid(a)), "lacks its shift"),
        "shift without beta": (gate_with(probability=lambda a, g: torch.sigmoid(a + math.log(11))), "lacks beta"),
        "open": (gate_with(probability=lambda a, g: (g > 0).float()), "which knows no u"),
        "gate alone": (lambda a, u: gate_with()(a, u)[0], "Return two tensors"),
        "noise's sign": (gate_with(lambda a, u: torch.sigmoid((a - torch.logit(u)) * 1.5)), "has its sign turned"),
        "u itself": (
            lambda a, u: gate_with(lambda a, u: torch.sigmoid((u - 0.5 * (u[0] == 0.5) + a) * 1.5))(a, u),
            "added as it is",
        ),
        "no noise": (gate_with(lambda a, u: torch.sigmoid(a * 1.5)), "There is no noise"),
        "noise not divided": (gate_with(lambda a, u: torch.sigmoid(torch.logit(u) + a * 1.5)), "must be, too"),
    },
}

SAME = {  # the sign is only a matter of names
    "editing.masked_train": ["masked_numbers, line 7: new[mask] + numbers -> new[mask] - numbers"],
}
