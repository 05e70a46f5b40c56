"""Chapter 13, Targeted optimization: checks of its exercises.

The rank-one edit, the second moment of keys, scores of an edit, the batch edit, training behind a mask, the
preservation term, and gates that open and close. The functions without an underscore are the references that the
chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _moment(size: int, seed: int = 0) -> Tensor:
    """A second moment: symmetric, positive definite, not diagonal."""
    keys = _random(3 * size, size, seed=seed)
    return keys.T @ keys / len(keys) + 0.1 * torch.eye(size)


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4 * float(b.abs().max().clamp_min(1e-6)))


# --- 1. the rank-one edit --------------------------------------------------------------------------------------------


def rank_one(W: Tensor, C: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The change D of W [d_in, d_out] with key (W + D) = value that is least in the metric of C [d_in, d_in].

    key [d_in], value [d_out] -> D [d_in, d_out] = C^-1 k^T (v - kW) / (k C^-1 k^T) (Meng et al. 2022, row form).
    """
    direction = torch.linalg.solve(C, key)
    return torch.outer(direction, value - key @ W) / (key @ direction)


@exercise(
    "editing.rank_one",
    reference=rank_one,
    hints=(
        "The new answer to the key must be `value`. What is missing now, and which keys should notice the change?",
        "D = outer(C^-1 k, v - kW) / (k C^-1 k). The first factor says which keys notice, the second what is added for "
        "them. `torch.linalg.solve(C, key)` is C^-1 k without an inverse.",
        "Sketch: direction = solve(C, key); D = torch.outer(direction, what is missing), divided by the dot product of "
        "key and direction.",
    ),
    expected="A tensor of the shape of W and of rank 1. key @ (W + D) is the value, to rounding.",
)
def _check_rank_one() -> Iterator[Probe | Callable]:
    W, key, value = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([1.0, 1]), torch.tensor([3.0, 1])
    C = torch.diag(torch.tensor([1.0, 4]))
    yield Probe(
        tried="W = identity, C = diag(1, 4), key [1, 1], value [3, 1]",
        args=(W, C, key, value),
        expected=torch.tensor([[1.6, 0], [0.4, 0]]),
        means="[[1.6, 0], [0.4, 0]]: missing is [2, 0], and the rarely used coordinate 0 carries most of it",
        diagnose={
            "C has no effect here: C^-1 must stand in front of the key.": torch.tensor([[1.0, 0], [1, 0]]),
            "C was multiplied; its inverse is needed, so that keys that are used often notice least.": torch.tensor(
                [[0.4, 0], [1.6, 0]]
            ),
            "The division by k C^-1 k is missing, so the key gets more or less than the value.": torch.tensor(
                [[2.0, 0], [0.5, 0]]
            ),
            "The division is by k k; it must be by k C^-1 k.": torch.tensor([[1.0, 0], [0.25, 0]]),
            "The whole value was added. What the key gives already, kW, must be taken away first.": torch.tensor(
                [[2.4, 0.8], [0.6, 0.2]]
            ),
            "The sign is turned round: what is missing is value - key W.": torch.tensor([[-1.6, 0], [-0.4, 0]]),
            "This is the edited W. Return the change alone.": torch.tensor([[2.6, 0], [0.4, 1]]),
            "This is the transpose: keys are rows of length d_in, so D is [d_in, d_out].": torch.tensor(
                [[1.6, 0.4], [0, 0]]
            ),
        },
    )
    W, C, key, value = _random(6, 4), _moment(6), _random(6, seed=1), _random(4, seed=2)
    inverse = torch.linalg.inv(C)
    right = (inverse @ key)[:, None] * (value - key @ W)[None] / (key @ inverse @ key)
    yield Probe(
        tried="W [6, 4], a C that is not diagonal, a key of 6 and a value of 4 numbers",
        args=(W, C, key, value),
        expected=right,
        diagnose={
            "Only the diagonal of C was used.": torch.outer(key / C.diagonal(), value - key @ W)
            / (key @ (key / C.diagonal())),
            "This is the transpose: D has the shape of W.": lambda got: got.shape == (4, 6),
        },
        tolerance=1e-3,
    )

    def exact_and_least(answer: Callable) -> None:
        """the constraint, and 20 other changes that satisfy it too"""
        D = answer(W, C, key, value)
        off = float((key @ (W + D) - value).abs().max())
        if off > 1e-3:
            raise NotYet(answer.tried, "key @ (W + D) = value", f"off by {off:.2g}", likely="The constraint fails.")
        least = float(torch.trace(D.T @ C @ D))
        for seed in range(20):
            other = _random(6, 4, seed=10 + seed)
            other = D + other - torch.outer(key, key @ other) / (key @ key)  # gives the same for the key
            if torch.trace(other.T @ C @ other) < least * (1 - 1e-4):
                raise NotYet(answer.tried, "no other change is smaller", likely="The change is not least in C.")

    yield exact_and_least


# --- 2. the second moment of the keys --------------------------------------------------------------------------------


def second_moment(keys: Tensor, ridge: float) -> Tensor:
    """C = E[k^T k] of keys [n, d], not centred, plus `ridge` times its mean diagonal: [d, d]."""
    C = keys.T @ keys / len(keys)
    return C + ridge * C.diagonal().mean() * torch.eye(len(C))


@exercise(
    "editing.second_moment",
    reference=second_moment,
    hints=(
        "C says how much ordinary keys would notice a change of W. It is an average over keys of a matrix [d, d]: "
        "which?",
        "The average of k^T k (an outer product), without taking the mean away, is keys.T @ keys / n. A neuron that "
        "never fires leaves a row of zeros, and C cannot be inverted; hence the ridge.",
        "Sketch: C = keys.T @ keys / number of keys; then add ridge * (mean of C's diagonal) * torch.eye(d).",
    ),
    expected="A symmetric tensor [d, d] that can be inverted.",
)
def _check_second_moment() -> Iterator[Probe]:
    keys = torch.tensor([[2.0, 0], [0, 2], [2, 2], [4, 0]])
    plain = torch.tensor([[6.0, 1], [1, 2]])
    yield Probe(
        tried="keys [2, 0], [0, 2], [2, 2], [4, 0], ridge 0",
        args=(keys, 0.0),
        expected=plain,
        diagnose={
            "The keys were centred. C is the second moment about zero: the edit must spare the mean key, too.": (
                lambda got: any(_near(got, torch.cov(keys.T, correction=c)) for c in (0, 1))
            ),
            "The outer products were summed; take their average over the keys.": plain * 4,
            "This is [n, n], products of keys with each other. C is over neurons: keys.T @ keys.": lambda got: (
                got.shape == (4, 4)
            ),
            "These are correlations: the scale was divided out, but it matters how loud a neuron is.": lambda got: bool(
                (got.diagonal() - 1).abs().max() < 1e-4
            ),
            "Only the diagonal was kept; neurons that fire together matter.": torch.diag(plain.diagonal()),
            "The sum was divided by n - 1. This is a mean about zero: divide by n.": plain * 4 / 3,
        },
    )
    yield Probe(
        tried="the same keys, ridge 0.5",
        args=(keys, 0.5),
        expected=plain + 2 * torch.eye(2),
        means="[[8, 1], [1, 4]]: half of the mean diagonal, 2, is added on the diagonal",
        diagnose={
            "The ridge was added as it is. Multiply it with the mean of the diagonal, so that it fits any scale.": (
                plain + 0.5 * torch.eye(2)
            ),
            "The ridge was forgotten.": plain,
            "The ridge was added to all entries; it belongs on the diagonal.": lambda got: any(
                _near(got, plain + x) for x in (0.5, 2.0)
            ),
            "The trace was used in place of the mean of the diagonal.": plain + 4 * torch.eye(2),
            "Each neuron got a share of its own diagonal; one that never fires would still be 0.": torch.tensor(
                [[9.0, 1], [1, 3]]
            ),
            "The mean of all of C was used, not that of its diagonal.": plain + 1.25 * torch.eye(2),
        },
    )
    keys = _random(50, 5) * torch.tensor([1.0, 2, 0.5, 0, 3])
    right = torch.einsum("ni,nj->ij", keys, keys) / 50
    yield Probe(
        tried="50 keys of five neurons, one of which never fires, ridge 0.01",
        args=(keys, 0.01),
        expected=right + 0.01 * right.diagonal().mean() * torch.eye(5),
    )


# --- 3. scores of an edit --------------------------------------------------------------------------------------------


def score_edit(
    fact: Tensor, paraphrases: Tensor, before: Tensor, after: Tensor, new: int, answers: Tensor
) -> tuple[float, float, float]:
    """(efficacy, paraphrase, neighbourhood) of one edit, each 0 ... 1.

    fact [V], paraphrases [p, V]: logits after the edit; new: id of the word that is wanted there.
    before, after [m, V]: logits at the neighbours before and after it; answers [m]: their right words.
    """
    right = before.argmax(-1) == answers
    kept = after.argmax(-1) == answers
    efficacy, paraphrase = (fact.argmax() == new).float(), (paraphrases.argmax(-1) == new).float().mean()
    return float(efficacy), float(paraphrase), float(kept[right].float().mean())


@exercise(
    "editing.score_edit",
    reference=score_edit,
    hints=(
        "Three questions: is the new word said for the edited prompt, is it said for other wordings, and do others' "
        "answers stay right? Which neighbours can the edit have spoilt?",
        "A word is said when its logit is the largest: argmax over the last axis. Of the neighbours only those count "
        "that were right before.",
        "Sketch: right = before.argmax(-1) == answers; the third score is the mean of (after.argmax(-1) == "
        "answers)[right]; the others compare argmax with `new`. Return three floats.",
    ),
    expected="Three numbers from 0 to 1, in the order efficacy, paraphrase, neighbourhood; 1 is best for each.",
)
def _check_score_edit() -> Iterator[Probe]:
    def said(*words: int) -> Tensor:
        return torch.nn.functional.one_hot(torch.tensor(words), 6).float() * 2 - 1

    before, after, answers = said(1, 2, 3, 4, 0), said(1, 5, 3, 2, 2), torch.tensor([1, 2, 3, 4, 2])
    arguments = (said(5)[0], said(5, 5, 1, 5), before, after, 5, answers)
    yield Probe(
        tried="new word 5. The prompt says 5; four wordings say 5, 5, 1, 5; five neighbours whose answers are 1, 2, 3, "
        "4, 2 said 1, 2, 3, 4, 0 before and 1, 5, 3, 2, 2 after",
        args=arguments,
        expected=(1.0, 0.75, 0.5),
        means="(1, 0.75, 0.5): four neighbours were right before, two of them still are",
        diagnose={
            "All neighbours were counted. One that was wrong before tells nothing about the edit: leave it out.": (
                lambda got: _is(got, 2, 0.6)
            ),
            "A neighbour counts as kept when its answer is right; you asked whether it does not say the new word.": (
                lambda got: _is(got, 2, 0.8) or _is(got, 2, 0.75)
            ),
            "You asked how many neighbours were right before, not whether they still are.": lambda got: _is(
                got, 2, 1.0
            ),
            "A neighbour that turned right was subtracted or left in; divide those kept by those right before.": (
                lambda got: _is(got, 2, 0.4)
            ),
            "The paraphrase score is the share of the wordings, not whether all (or any) of them say it.": lambda got: (
                _is(got, 1, 0.0) or _is(got, 1, 1.0)
            ),
            "The edited prompt was mixed into the paraphrases.": lambda got: _is(got, 1, 0.8),
            "The paraphrases were counted, not averaged.": lambda got: _is(got, 1, 3.0),
        },
    )
    yield Probe(
        tried="the same, but the prompt itself says 1",
        args=(said(1)[0], *arguments[1:]),
        expected=(0.0, 0.75, 0.5),
        means="(0, 0.75, 0.5)",
        diagnose={
            "The first score must be 0: the edited prompt does not say the new word.": lambda got: _is(got, 0, 1.0)
        },
    )
    logits = _random(7, 9, seed=4)
    answers = logits.argmax(-1)
    moved = logits + 0.3 * _random(7, 9, seed=5)
    kept = sum(float(moved[i].max() == moved[i, answers[i]]) for i in range(7)) / 7
    shifted = logits.clone()
    shifted[:, 8] = logits.max() + 1
    yield Probe(
        tried="random logits, where all neighbours were right before",
        args=(shifted[0], torch.cat([shifted[:2], logits[2:5]]), logits, moved, 8, answers),
        expected=(1.0, sum(float(x.argmax() == 8) for x in torch.cat([shifted[:2], logits[2:5]])) / 5, kept),
        diagnose={"Sizes of logits were averaged; compare the most likely word.": lambda got: not 0 <= got[1] <= 1},
    )


def _is(got, place: int, value: float) -> bool:
    return abs(float(got[place]) - value) < 1e-4


# --- 4. many edits at once -------------------------------------------------------------------------------------------


def ridge_update(K: Tensor, R: Tensor, C: Tensor, lam: float) -> Tensor:
    """The change D [d_in, d_out] that minimises |K D - R|^2 + lam trace(D^T C D): (lam C + K^T K)^-1 K^T R.

    K [n, d_in] keys, R [n, d_out] what is missing to the value of each (MEMIT, one layer; Meng et al. 2023).
    """
    return torch.linalg.solve(lam * C + K.T @ K, K.T @ R)


@exercise(
    "editing.ridge_update",
    reference=ridge_update,
    hints=(
        "Ridge regression: from the keys predict what is missing, and pay for what ordinary keys would notice. Set the "
        "derivative of |K D - R|^2 + lam trace(D^T C D) to zero.",
        "The derivative gives (lam C + K^T K) D = K^T R: a linear system for D.",
        "Sketch: torch.linalg.solve(lam times C plus K.T @ K, K.T @ R).",
    ),
    expected="A tensor [d_in, d_out]. With lam close to 0, K @ D is R; with a large lam D shrinks to 0.",
)
def _check_ridge_update() -> Iterator[Probe | Callable]:
    K, R, C = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[4.0], [8.0]]), torch.diag(torch.tensor([1.0, 4]))
    yield Probe(
        tried="keys [1, 0] and [0, 2], missing [4] and [8], C = diag(1, 4), lam 1",
        args=(K, R, C, 1.0),
        expected=torch.tensor([[2.0], [2.0]]),
        means="[[4 / (1 + 1)], [16 / (4 + 4)]]",
        diagnose={
            "C is missing: this is ridge regression with the identity in its place.": torch.tensor([[2.0], [3.2]]),
            "lam C is missing: this is least squares without a price.": torch.tensor([[4.0], [4.0]]),
            "K^T K is missing from the matrix.": torch.tensor([[4.0], [4.0]]),
            "The inverse is missing; the matrix was multiplied.": torch.tensor([[8.0], [128.0]]),
        },
    )
    K, R, C = _random(3, 5), _random(3, 2, seed=1), _moment(5)
    for lam, what in ((0.3, "three keys of five numbers, lam 0.3"), (4.0, "the same, lam 4")):
        right = torch.linalg.inv(lam * C + sum(torch.outer(k, k) for k in K)) @ K.T @ R
        yield Probe(
            tried=what,
            args=(K, R, C, lam),
            expected=right,
            diagnose={
                "C is missing: this is ridge regression with the identity in its place.": torch.linalg.solve(
                    lam * torch.eye(5) + K.T @ K, K.T @ R
                ),
                "lam is missing in front of C.": torch.linalg.solve(C + K.T @ K, K.T @ R),
                "lam multiplies K^T K; it is the price of C.": torch.linalg.solve(C + lam * K.T @ K, K.T @ R),
                "lam C is missing: this is least squares without a price.": torch.linalg.pinv(K) @ R,
                "K^T K is missing from the matrix: this spares nothing and overshoots.": torch.linalg.solve(
                    lam * C, K.T @ R
                ),
                "These are rank-one updates added up. They do not know of each other.": sum(
                    torch.outer(torch.linalg.solve(C, k), r) / (k @ torch.linalg.solve(C, k)) for k, r in zip(K, R)
                ),
                "The sign is turned round.": -right,
                "This is the transpose: D is [d_in, d_out].": lambda got: got.shape == (2, 5),
            },
            tolerance=1e-3,
        )

    def one_key_is_rank_one(answer: Callable) -> None:
        """one key and almost no price: it must be the rank-one edit"""
        D = answer(K[:1], R[:1], C, 1e-3)
        one = rank_one(torch.zeros(5, 2), C, K[0], R[0])
        if not torch.allclose(D, one, atol=0.02 * float(one.abs().max())):
            raise NotYet(answer.tried, "the rank-one edit of that key", likely="With lam near 0 the key must get R.")

    yield one_key_is_rank_one


# --- 5. training behind a mask ---------------------------------------------------------------------------------------


def masked_train(
    W: Tensor, mask: Tensor, loss: Callable[[Tensor], Tensor], steps: int, lr: float, decay: float
) -> Tensor:
    """W + mask * delta, where delta starts at 0 and is trained with AdamW (learning rate lr, weight decay `decay`).

    W and mask (bool) of one shape; loss takes weights of that shape and gives a number to minimise. W stays as it is.
    """
    delta = torch.zeros_like(W, requires_grad=True)
    optimizer = torch.optim.AdamW([delta], lr=lr, weight_decay=decay)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(W + mask * delta).backward()
        optimizer.step()
    return (W + mask * delta).detach()


def _masked_by_hand(W, mask, gradient, steps, lr, decay, start=None, pull=True):
    """AdamW written out. gradient(weights); start: what is decayed, the change (None) or the weights themselves."""
    x = torch.zeros_like(W) if start is None else start.clone()
    m = v = torch.zeros_like(W)
    for t in range(1, steps + 1):
        g = gradient(W + mask * x if start is None else x) * mask
        x = x * (1 - lr * decay) if pull else x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return W + mask * x if start is None else x


@exercise(
    "editing.masked_train",
    reference=masked_train,
    hints=(
        "If the weights themselves are given to AdamW, weight decay shrinks every one of them, also where the "
        "gradient is zero. What else could be the parameter that is trained?",
        "Train a change: delta of zeros with requires_grad=True, alone in torch.optim.AdamW. The loss is taken at W + "
        "mask * delta, so that outside the mask nothing is added at all.",
        "Sketch: delta = zeros_like(W), requires_grad; AdamW([delta], lr=lr, weight_decay=decay); steps times: "
        "zero_grad, loss(W + mask * delta).backward(), step. Return W + mask * delta, detached.",
    ),
    expected="A tensor like W, bit-equal to W outside the mask. Weight decay pulls the change, not W, to zero.",
)
def _check_masked_train() -> Iterator[Probe | Callable]:
    W, mask = torch.tensor([2.0, 2, 2, 2]), torch.tensor([True, True, False, False])
    goal = torch.tensor([0.0, 3, 0, 3])

    def loss(w: Tensor) -> Tensor:
        return ((w - goal) ** 2).sum() + w.sum() * w[2]

    def gradient(w: Tensor) -> Tensor:
        extra = torch.zeros(4)
        extra[2] = w.sum()
        return 2 * (w - goal) + w[2] + extra

    def seen(x: Tensor) -> Tensor:
        return gradient(torch.where(mask, x, W))

    put_back = torch.where(mask, _masked_by_hand(W, mask, seen, 20, 0.05, 0.5, start=W), W)
    free = _masked_by_hand(W, torch.ones(4), gradient, 20, 0.05, 0.5)
    yield Probe(
        tried="four weights of 2, a mask on the first two, 20 steps with learning rate 0.05 and weight decay 0.5",
        args=(W, mask, loss, 20, 0.05, 0.5),
        expected=_masked_by_hand(W, mask, gradient, 20, 0.05, 0.5),
        diagnose={
            "The change alone was returned; return W + mask * delta.": lambda got: bool((got[~mask] == 0).all()),
            "The mask was ignored: all weights were trained.": lambda got: _near(got, free),
            "Weights outside the mask moved, although their gradient is zero: AdamW decays whatever it is given. Train "
            "a change that starts at 0.": lambda got: not torch.equal(got[~mask], W[~mask]),
            "Weight decay pulled the weights to zero, not the change. So the result drifts away from W even without a "
            "loss.": lambda got: _near(got, put_back),
            "The change was trained without the mask and cut afterwards, so the loss saw more.": lambda got: _near(
                got, torch.where(mask, free, W)
            ),
            "There was no weight decay.": lambda got: _near(
                got, _masked_by_hand(W, mask, gradient, 20, 0.05, 0.5, pull=False)
            ),
            "Nothing was trained.": W,
        },
        tolerance=1e-3,
        next="Train a change that starts at 0 with AdamW; gradients must be set to zero before each step.",
    )
    big, where = _random(6, 5), _random(6, 5, seed=1) > 0
    target = _random(6, 5, seed=2)
    before = big.clone()
    yield Probe(
        tried="30 weights, half of them in the mask, 15 steps, learning rate 0.1, weight decay 0.1",
        args=(big, where, lambda w: ((w - target) ** 2).sum(), 15, 0.1, 0.1),
        expected=_masked_by_hand(big, where, lambda w: 2 * (w - target), 15, 0.1, 0.1),
        tolerance=1e-3,
        next="Gradients must be set to zero before each step, and only the change is trained.",
    )

    def bit_equal(answer: Callable) -> None:
        """30 weights: outside the mask bit for bit, and W itself as it was"""
        got = answer(big, where, lambda w: ((w - target) ** 2).sum(), 5, 0.1, 0.9)
        if not torch.equal(big, before):
            raise NotYet(answer.tried, "W as it was", likely="W itself was changed in place. Return a new tensor.")
        if not torch.equal(got[~where], big[~where]) or torch.equal(got[where], big[where]):
            raise NotYet(answer.tried, "bit-equal outside the mask, changed inside", likely="The mask leaks.")

    yield bit_equal


# --- 6. the preservation term ----------------------------------------------------------------------------------------


def preservation(base: Tensor, now: Tensor, real: Tensor) -> Tensor:
    """Mean of KL(base || now) over real tokens, in nats: logits base, now [B, T, V], mask real [B, T] -> a number."""
    base, now = base.log_softmax(-1), now.log_softmax(-1)
    return ((base.exp() * (base - now)).sum(-1) * real).sum() / real.sum()


@exercise(
    "editing.preservation",
    reference=preservation,
    hints=(
        "Two distributions over the next word stand at every token: of the base and of the model now. KL(base "
        "|| now) is the mean, under the base, of log base - log now.",
        "Both come as logits, so log_softmax first. Sum p_base * (log p_base - log p_now) over the vocabulary, then "
        "average over real tokens: multiply with the mask, sum, divide by the number of real tokens.",
        "Sketch: base = base.log_softmax(-1), the same for now; kl = (base.exp() * (base - now)).sum(-1); return (kl * "
        "real).sum() / real.sum().",
    ),
    expected="One number, 0 when both are the same and positive otherwise.",
)
def _check_preservation() -> Iterator[Probe | Callable]:
    base = torch.tensor([[[0.5, 0.5]] * 3]).log()
    now = torch.tensor([[[0.75, 0.25], [0.9, 0.1], [0.9, 0.1]]]).log()
    first = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    back = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    padded = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    yield Probe(
        tried="one text: base [0.5, 0.5], now [0.75, 0.25], and two more tokens that are padding",
        args=(base, now, torch.tensor([[1, 0, 0]])),
        expected=torch.tensor(first),
        means=f"0.5 log(0.5/0.75) + 0.5 log(0.5/0.25) = {first:.3f}",
        diagnose={
            "This is KL(now || base). What the base finds likely must stay likely, so it is the base that is averaged "
            "over.": torch.tensor(back),
            "The sign is turned round.": torch.tensor(-first),
            "Padding was counted.": lambda got: any(_near(got, torch.tensor(x)) for x in (first + 2 * padded, padded)),
            "The sum was divided by all tokens; divide by the real ones.": torch.tensor(first / 3),
            "This is the mean over all tokens, padding among them.": torch.tensor((first + 2 * padded) / 3),
            "This is cross-entropy; subtract the entropy of the base, so that nothing lost is 0.": torch.tensor(
                first + math.log(2)
            ),
            "The logarithm has base 2; use nats.": torch.tensor(first / math.log(2)),
            "The mean over the vocabulary was taken; KL is a sum over it.": lambda got: any(
                _near(got, torch.tensor(x)) for x in (first / 2, first / 6)
            ),
        },
    )
    a, b = 2 * _random(3, 4, 5), 2 * _random(3, 4, 5, seed=1)
    real = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])
    p, q = a.softmax(-1), b.softmax(-1)
    each = (p * (p / q).log()).sum(-1)
    right = each[real.bool()].mean()
    yield Probe(
        tried="three texts of 4, 2 and 3 tokens, logits that are not normalised",
        args=(a, b, real),
        expected=right,
        diagnose={
            "Logits were taken for log-probabilities; log_softmax comes first.": lambda got: (
                _near(got, ((a.exp() * (a - b)).sum(-1) * real).sum() / real.sum())
                or _near(got, ((p * (a - b)).sum(-1) * real).sum() / real.sum())
            ),
            "Texts were averaged one by one, so tokens of short texts weigh more. Average over all real tokens.": (
                (each * real).sum(1) / real.sum(1)
            ).mean(),
            "It was summed over tokens; take the mean.": (each * real).sum(),
            "It was divided by the number of texts; divide by that of real tokens.": (each * real).sum() / 3,
            "Padding was counted.": each.mean(),
            "This is KL(now || base).": ((q * (q / p).log()).sum(-1))[real.bool()].mean(),
            "One number for each text or token came out; return one in all.": lambda got: got.dim() > 0,
        },
    )

    def nothing_lost(answer: Callable) -> None:
        """the same logits, shifted by a constant"""
        got = float(answer(a, a + 3, real))
        if abs(got) > 1e-5:
            raise NotYet(answer.tried, "0: the distributions are equal", f"{got:.3g}", likely="log_softmax is missing.")

    yield nothing_lost


# --- 7. gates --------------------------------------------------------------------------------------------------------


def hard_concrete(log_alpha: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(gates in [0, 1], P(gate > 0)), each like log_alpha; u uniform noise of that shape (Louizos et al. 2018).

    beta = 2/3, stretched to (-0.1, 1.1).
    """
    s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / (2 / 3))
    return (1.2 * s - 0.1).clamp(0, 1), torch.sigmoid(log_alpha - 2 / 3 * math.log(0.1 / 1.1))


@exercise(
    "editing.hard_concrete",
    reference=hard_concrete,
    hints=(
        "A number between 0 and 1 that is random, can be exactly 0 or exactly 1, and still has a derivative: squeeze, "
        "stretch, cut.",
        "s = sigmoid((log u - log(1 - u) + log_alpha) / beta), stretched to s * 1.2 - 0.1 and cut with clamp(0, 1). "
        "P(gate > 0) = sigmoid(log_alpha - beta * log(0.1 / 1.1)): it does not depend on u.",
        "Sketch: s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / beta); return ((s * 1.2 - 0.1).clamp(0, 1), "
        "torch.sigmoid(log_alpha - beta * math.log(0.1 / 1.1))).",
    ),
    expected="Two tensors like log_alpha: sampled gates, some exactly 0 or 1, and probabilities of being open.",
)
def _check_hard_concrete() -> Iterator[Probe | Callable]:
    half = torch.tensor([0.5, 0.5, 0.5])
    log_alpha = torch.tensor([0.0, 0.4, -4.0])
    s = [1 / (1 + math.exp(-1.5 * x)) for x in log_alpha.tolist()]
    gates = torch.tensor([min(1.0, max(0.0, 1.2 * x - 0.1)) for x in s])
    shift = 2 / 3 * math.log(11)
    p = torch.tensor([1 / (1 + math.exp(-(x + shift))) for x in log_alpha.tolist()])
    unstretched, uncut = torch.tensor(s), torch.tensor([1.2 * x - 0.1 for x in s])
    yield Probe(
        tried="log_alpha 0, 0.4, -4 and u = 0.5, which adds no noise",
        args=(log_alpha, half),
        expected=(gates, p),
        diagnose={
            "The stretch is missing: gates never reach 0 or 1. Use s * 1.2 - 0.1, then clamp.": lambda got: (
                _pair(got) and _near(got[0], unstretched)
            ),
            "The cut is missing: a gate must lie in [0, 1].": lambda got: _pair(got) and _near(got[0], uncut),
            "The temperature beta is missing in the gate, or it multiplies.": lambda got: (
                _pair(got)
                and any(_near(got[0], (1.2 * torch.sigmoid(log_alpha * x) - 0.1).clamp(0, 1)) for x in (1.0, 2 / 3))
            ),
            "The probability has the sign of its shift turned round: a stretched gate is open more often, not less.": (
                lambda got: _pair(got) and _near(got[1], torch.sigmoid(log_alpha - shift))
            ),
            "The probability lacks its shift, -beta log(0.1 / 1.1).": lambda got: (
                _pair(got) and _near(got[1], torch.sigmoid(log_alpha))
            ),
            "The shift of the probability lacks beta.": lambda got: (
                _pair(got) and _near(got[1], torch.sigmoid(log_alpha + math.log(11)))
            ),
            "The second value is the gate's own (or whether it is open); return the probability, which knows no u.": (
                lambda got: _pair(got) and (_near(got[1], gates) or _near(got[1], (gates > 0).float()))
            ),
            "Return two tensors: gates and probabilities.": lambda got: not _pair(got),
        },
    )
    u = torch.tensor([0.9, 0.2, 0.05])
    noisy = torch.tensor(
        [
            min(1.0, max(0.0, 1.2 / (1 + math.exp(-1.5 * (math.log(x / (1 - x)) + a))) - 0.1))
            for x, a in zip(u.tolist(), [0.0, 0.4, 1.0])
        ]
    )
    other = torch.tensor([0.0, 0.4, 1.0])
    flipped = hard_concrete(other, 1 - u)[0]
    added = (1.2 * torch.sigmoid((u + other) * 1.5) - 0.1).clamp(0, 1)
    yield Probe(
        tried="log_alpha 0, 0.4, 1 and u = 0.9, 0.2, 0.05",
        args=(other, u),
        expected=(noisy, torch.sigmoid(other + shift)),
        diagnose={
            "The noise has its sign turned round: log u - log(1 - u), so that a large u opens.": lambda got: _near(
                got[0], flipped
            ),
            "u was added as it is; the noise is log u - log(1 - u).": lambda got: _near(got[0], added),
            "There is no noise: u was not used.": lambda got: _near(
                got[0], (1.2 * torch.sigmoid(other * 1.5) - 0.1).clamp(0, 1)
            ),
            "Only log_alpha is divided by beta; the noise must be, too.": lambda got: _near(
                got[0], (1.2 * torch.sigmoid((u / (1 - u)).log() + other * 1.5) - 0.1).clamp(0, 1)
            ),
        },
    )

    def share_of_open(answer: Callable) -> None:
        """20,000 samples each for log_alpha -2, 0 and 1"""
        noise = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
        gates, probability = answer(torch.tensor([-2.0, 0, 1]).expand(20_000, 3), noise)
        off = float(((gates > 0).float().mean(0) - probability.mean(0)).abs().max())
        if off > 0.02:
            raise NotYet(
                answer.tried, "the share of open gates is P(gate > 0)", f"off by {off:.2f}", likely="They differ."
            )

    yield share_of_open


def _pair(got) -> bool:
    return isinstance(got, (tuple, list)) and len(got) == 2
