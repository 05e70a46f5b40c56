"""Chapter 09, vocabulary projection: checks of its exercises.

The logit lens as a reading of one token, direct attribution of heads and of features, the purity of a list of tokens,
the loss of the tuned lens, contrasting layers, and a Patchscope. The functions without an underscore are the references
that the chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.objects.sae import SAE


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(a, b: Tensor) -> bool:
    return isinstance(a, Tensor) and a.shape == b.shape and torch.allclose(a.float(), b.float(), atol=1e-4)


# --- 1. the logit lens ------------------------------------------------------------------------------------------------


def lens_reading(x: Tensor, norm: Callable, W_U: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Probability and rank of one token per prompt in softmax(norm(x) W_U): x [L, B, d] -> two tensors [L, B].

    Rank: how many tokens have a larger logit, 0 for the top one (Eq. 16 with the final norm, audit A27).
    """
    logits = norm(x) @ W_U
    at = tokens.expand(len(x), -1)[..., None]
    own = logits.gather(-1, at)
    return logits.softmax(-1).gather(-1, at)[..., 0], (logits > own).sum(-1)


@exercise(
    "projection.lens_reading",
    reference=lens_reading,
    hints=(
        "Three steps turn a state into a prediction at the end of the model: the final norm, the unembedding, a "
        "softmax. "
        "The lens does the same to the state of any layer. The rank needs no softmax: it keeps the order.",
        "`norm(x) @ W_U` is [L, B, V]. Prompt i asks for its own token, tokens[i], in all layers: index with "
        "`logits[:, torch.arange(B), tokens]`. The rank counts the logits along the last axis that are larger.",
        "Sketch: logits = norm(x) times W_U; own = the logit of each prompt's token, [L, B]; prob = softmax over V, "
        "at the "
        "same places; rank = (logits > own with an axis added).sum over V; return prob, rank.",
    ),
    expected="Two tensors [L, B]: probabilities in 0 ... 1 and whole numbers, 0 where the token leads.",
)
def _check_lens_reading() -> Iterator[Probe | Callable]:
    x = torch.tensor([[[2.0, 4.0], [6.0, 0.0]]])  # after halving: [1, 2] and [3, 0]
    W_U = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    tokens = torch.tensor([1, 1])
    e = math.e
    prob = torch.tensor([[e / (1 + e + e**2), e**3 / (2 + e**3)]])
    rank = torch.tensor([[1, 0]])

    def reads(p: Tensor, r: Tensor) -> Callable:
        return lambda got: _pair(got) and _near(got[0], p) and _near(got[1], r)

    bare = torch.tensor([[e**2 / (1 + e**2 + e**4), e**6 / (2 + e**6)]])
    yield Probe(
        tried="one layer, two prompts with states [2, 4] and [6, 0], a norm that halves, three tokens whose logits "
        "are 0, "
        "the first and the second coordinate; both prompts ask for token 1",
        args=(x, lambda s: s / 2, W_U, tokens),
        expected=(prob, rank),
        means="logits [0, 1, 2] and [0, 3, 0]: probabilities 0.245 and 0.909, ranks 1 and 0",
        diagnose={
            "The final norm was left out, as in the survey's Eq. 16.": reads(bare, rank),
            "Log-probabilities came back; take the softmax itself.": lambda got: (
                _pair(got) and _near(got[0], prob.log())
            ),
            "These are logits; the softmax is missing.": lambda got: (
                _pair(got) and _near(got[0], torch.tensor([[1.0, 3.0]]))
            ),
            "A sigmoid was used. The tokens exclude each other: softmax over the vocabulary.": reads(
                torch.tensor([[1.0, 3.0]]).sigmoid(), rank
            ),
            "The token counted itself: a rank counts the logits that are strictly larger.": lambda got: (
                _pair(got) and _near(got[1], rank + 1)
            ),
            "The smaller logits were counted. Rank 0 is the top token.": lambda got: (
                _pair(got) and _near(got[1], torch.tensor([[1, 2]]))
            ),
            "Probability and rank are swapped.": lambda got: _pair(got) and _near(got[1], prob),
        },
    )
    x, W_U, tokens = _random(3, 4, 3), _random(3, 3, seed=1), torch.tensor([2, 0, 1, 1])
    logits = torch.tanh(x) @ W_U
    share = logits.exp() / logits.exp().sum(-1, keepdim=True)
    prob = torch.stack([share[:, i, t] for i, t in enumerate(tokens.tolist())], dim=1)
    rank = torch.stack([(logits[:, i] > logits[:, i, t : t + 1]).sum(1) for i, t in enumerate(tokens.tolist())], dim=1)
    axis, at = logits.exp() / logits.exp().sum(1, keepdim=True), tokens.expand(3, 4)[..., None]
    yield Probe(
        tried="three layers, four prompts, d = V = 3, each prompt with its own token",
        args=(x, torch.tanh, W_U, tokens),
        expected=(prob, rank),
        diagnose={
            "The softmax ran over the wrong axis; it runs over the vocabulary, the last one.": lambda got: (
                _pair(got)
                and any(
                    _near(got[0], torch.stack([s[:, i, t] for i, t in enumerate(tokens.tolist())], dim=1))
                    for s in (axis, logits.exp() / logits.exp().sum(0, keepdim=True))
                )
            ),
            "argsort says which token stands at a place, not at which place a token stands. Count the larger logits.": (
                lambda got: _pair(got) and _near(got[1], logits.argsort(-1, descending=True).gather(-1, at)[..., 0])
            ),
            "The norm was applied to the logits. It belongs before W_U: norm(x) W_U.": lambda got: (
                _pair(got) and _near(got[0], torch.tanh(x @ W_U).softmax(-1).gather(-1, at)[..., 0])
            ),
            "The token of the first prompt was used for all.": lambda got: _pair(got) and _near(got[0], share[..., 2]),
            "W_U was transposed. It is [d, V].": lambda got: (
                _pair(got)
                and _near(
                    got[0],
                    torch.stack(
                        [(torch.tanh(x) @ W_U.T).softmax(-1)[:, i, t] for i, t in enumerate(tokens.tolist())], dim=1
                    ),
                )
            ),
        },
    )


def _pair(got) -> bool:
    return isinstance(got, (tuple, list)) and len(got) == 2 and all(isinstance(g, Tensor) for g in got)


# --- 2. heads ---------------------------------------------------------------------------------------------------------


def head_attribution(z: Tensor, W_O: Tensor, u: Tensor, scale: Tensor) -> Tensor:
    """What each head adds directly to an answer: z [B, H, d_head], W_O [H, d_head, d], u [B, d], scale [B, 1] -> "
    "[B, H].

    (z_h W_O,h) . u * scale, without forming the results: z_h . (W_O,h u).
    """
    return torch.einsum("bhn,hnd,bd->bh", z, W_O, u) * scale


@exercise(
    "projection.head_attribution",
    reference=head_attribution,
    hints=(
        "What does head h write, given its z? And how much of that write points along u? Each of the two steps is a "
        "product you know from chapters 01 and 02.",
        "The result of head h is z[:, h] @ W_O[h], [B, d]. Its dot product with u, row by row, is [B]; times the "
        "frozen "
        "scale of the row. You can multiply W_O[h] with u first: then no result of length d is ever formed.",
        "Sketch: for each head: result = z[:, h] @ W_O[h]; value = (result * u).sum over d, times scale[:, 0]; stack "
        "the "
        "heads along axis 1.",
    ),
    expected="A tensor [B, H]. Summed over the heads it is what the attention block adds, up to its bias.",
)
def _check_head_attribution() -> Iterator[Probe | Callable]:
    z = torch.tensor([[[1.0, 2.0], [3.0, -1.0]]])  # [1, 2 heads, 2]
    W_O = torch.tensor([[[1.0, 0, 1], [0, 1, 0]], [[0.0, 2, 0], [1, 0, 0]]])
    u, scale = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[0.5]])
    # head 0 writes [1, 2, 1]: 2 + 2 - 1 = 3; head 1 writes [-1, 6, 0]: -2 + 6 = 4
    yield Probe(
        tried="one prompt, two heads that write [1, 2, 1] and [-1, 6, 0]; u = [2, 1, -1]; scale 0.5",
        args=(z, W_O, u, scale),
        expected=torch.tensor([[1.5, 2.0]]),
        means="0.5 * 3 and 0.5 * 4",
        diagnose={
            "The scale of the final norm is missing.": torch.tensor([[3.0, 4.0]]),
            "It was divided by the scale: `scale` is the factor 1/std.": torch.tensor([[6.0, 8.0]]),
            "The sign was lost: a head may push against the answer.": lambda got: _near(
                got, torch.tensor([[2.5, 4.0]])
            ),
            "This is how much each head writes, its length, not how much of it points along u.": lambda got: any(
                _near(got, torch.tensor([[6**0.5, 37**0.5]]) * c) for c in (1, 0.5)
            ),
            "The heads were summed. Keep one number for each.": lambda got: got.numel() == 1,
            "The output matrix of the first head was used for all heads.": torch.tensor([[1.5, 3 * 0.5 - 1 * 0.5]]),
            "A cosine was used. Lengths count here: the logit is a dot product.": lambda got: bool(
                (got.abs() <= 1).all()
            ),
        },
    )
    z, W_O, u, scale = (
        _random(2, 2, 2),
        _random(2, 2, 2, seed=1),
        _random(2, 2, seed=2),
        _random(2, 1, seed=3).abs() + 0.1,
    )
    right = torch.tensor([[float((z[b, h] @ W_O[h]) @ u[b] * scale[b, 0]) for h in range(2)] for b in range(2)])

    def each(value: Callable) -> Tensor:
        return torch.stack([torch.stack([value(b, h) for h in range(2)]) for b in range(2)])

    yield Probe(
        tried="two prompts, two heads, d_head = d = 2, so that wrong axes fit as well",
        args=(z, W_O, u, scale),
        expected=right,
        diagnose={
            "W_O was transposed. A row vector z meets W_O from the left: z W_O.": each(
                lambda b, h: (W_O[h] @ z[b, h]) @ u[b] * scale[b, 0]
            ),
            "One direction u was used for all prompts; each has its own answer.": lambda got: any(
                _near(got, each(lambda b, h, i=i: (z[b, h] @ W_O[h]) @ u[i] * scale[b, 0])) for i in range(2)
            ),
            "The scale belongs to the prompt (row), not to the head.": each(
                lambda b, h: (z[b, h] @ W_O[h]) @ u[b] * scale[h, 0]
            ),
            "Prompts and heads changed places: the result is [B, H].": right.T,
        },
    )

    def the_sum_over_heads(answer: Callable) -> None:
        """4 prompts, 3 heads of size 5, d = 7: the sum over heads against all heads side by side times one big W_O"""
        z, W_O, u, scale = _random(4, 3, 5), _random(3, 5, 7, seed=1), _random(4, 7, seed=2), torch.full((4, 1), 0.3)
        got = answer(z, W_O, u, scale)
        if got.shape != (4, 3):
            raise NotYet(answer.tried, "a tensor [4, 3]", f"shape {list(got.shape)}", "Keep both axes: prompt, head.")
        whole = ((z.reshape(4, 15) @ W_O.reshape(15, 7)) * u).sum(1) * 0.3
        if not torch.allclose(got.sum(1), whole, atol=1e-4):
            raise NotYet(answer.tried, "the heads add up to what the block adds", likely="A part is lost or doubled.")

    yield the_sum_over_heads


# --- 3. SAE features --------------------------------------------------------------------------------------------------


def feature_attribution(x: Tensor, sae: SAE, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x . u as an exact sum over SAE features, the SAE's error and its bias: (features [B, m], error [B], bias [B])."""
    a = sae.encode(x)
    features = a * (u @ sae.W_dec.T)
    return features, ((x - sae.decode(a)) * u).sum(-1), u @ sae.b_dec


@exercise(
    "projection.feature_attribution",
    reference=feature_attribution,
    hints=(
        "An SAE splits a state into features, a bias and what it could not explain: x = sum a_j f_j + b_dec + (x - "
        "x^). "
        "Take the dot product of each part with u.",
        "Feature j contributes a_j (f_j . u), with f_j row j of W_dec. `sae.decode(a)` contains b_dec already, so the "
        "error is x - sae.decode(a), and b_dec . u is its own part.",
        "Sketch: a = sae.encode(x); features = a times (u @ W_dec transposed); error = ((x - sae.decode(a)) * "
        "u).sum(-1); "
        "bias = u @ b_dec; return the three.",
    ),
    expected="Three tensors, [B, m], [B] and [B], whose total is x . u for any SAE, however bad.",
)
def _check_feature_attribution() -> Iterator[Probe | Callable]:
    from mi_course.objects.sae import SAE

    sae = SAE(2, 3).requires_grad_(False)
    sae.W_dec.copy_(torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    sae.W_enc.copy_(torch.tensor([[1.0, 0, -1], [0, 2, 0]]))
    sae.b_dec.copy_(torch.tensor([1.0, 1.0]))
    x, u = torch.tensor([[4.0, 2.0]]), torch.tensor([[1.0, 3.0]])
    # x - b = [3, 1]: a = [3, 2, 0]; decoded [4, 3]; error [0, -1]; x . u = 10 = 3 + 6 + 0 - 3 + 4
    features, error, bias = torch.tensor([[3.0, 6.0, 0.0]]), torch.tensor([-3.0]), torch.tensor([4.0])

    def gives(f: Tensor = features, e: Tensor = error, b: Tensor = bias) -> Callable:
        return lambda got: len(got) == 3 and all(_near(g, w) for g, w in zip(got, (f, e, b)))

    yield Probe(
        tried="x = [4, 2], activations 3, 2 and 0, features [1, 0], [0, 1] and [1, 1], b_dec = [1, 1], u = [1, 3]",
        args=(x, sae, u),
        expected=(features, error, bias),
        means="features 3, 6, 0; error -3; bias 4; together x . u = 10",
        diagnose={
            "The activations are missing: a feature that is off adds nothing.": lambda got: _near(
                got[0], torch.tensor([[1.0, 3.0, 4.0]])
            ),
            "These are the activations alone; take each feature's part along u.": lambda got: _near(
                got[0], torch.tensor([[3.0, 2.0, 0.0]])
            ),
            "The error contains b_dec. `decode` adds it: neither take it away again nor leave it out.": lambda got: (
                len(got) == 3 and (_near(got[1], torch.tensor([1.0])) or _near(got[1], torch.tensor([-7.0])))
            ),
            "The sign of the error is turned round: it is x minus the reconstruction.": gives(e=-error),
            "The error was dropped, so the parts no longer add up to x . u.": gives(e=torch.zeros(1)),
            "b_dec was dropped, so the parts no longer add up to x . u.": gives(b=torch.zeros(1)),
            "The encoder's column was used. What a feature writes is its row of W_dec.": lambda got: _near(
                got[0], torch.tensor([[3.0, 12.0, 0.0]])
            ),
        },
    )

    def the_parts_add_up(answer: Callable) -> None:
        """a random, untrained SAE, 5 states: the sum of all parts against x . u"""
        sae = SAE(4, 4, seed=3).requires_grad_(False)  # d = m: wrong axes fit
        sae.b_dec.copy_(_random(4, seed=1))
        x, u = _random(5, 4, seed=2), _random(5, 4, seed=4)
        features, error, bias = answer(x, sae, u)
        if features.shape != (5, 4) or error.shape != (5,) or bias.shape != (5,):
            shapes = ", ".join(str(list(part.shape)) for part in (features, error, bias))
            raise NotYet(answer.tried, "shapes [5, 4], [5] and [5]", shapes, "Keep one row for each state.")
        if not torch.allclose(features.sum(1) + error + bias, (x * u).sum(1), atol=1e-4):
            raise NotYet(answer.tried, "features, error and bias add up to x . u", likely="A part is lost or doubled.")
        a = sae.encode(x)
        if not torch.allclose(features, torch.stack([a[:, j] * (u @ sae.W_dec[j]) for j in range(4)], 1), atol=1e-4):
            raise NotYet(
                answer.tried, "column j belongs to feature j", likely="W_dec was transposed: feature j is row j."
            )

    yield the_parts_add_up


# --- 4. a list of tokens ----------------------------------------------------------------------------------------------


def purity(ids: Tensor, labels: Tensor) -> Tensor:
    """Share of the commonest label in each list of tokens: ids [n, k], labels [V] (below 0: none) -> [n]."""
    found = labels[ids]
    counts = torch.stack([(found == label).sum(1) for label in labels[labels >= 0].unique()])
    return counts.amax(0) / ids.shape[1]


@exercise(
    "projection.purity",
    reference=purity,
    hints=(
        "Look up the label of every token in a list. Which label is the commonest, and how many of the k tokens have "
        "it? "
        "Tokens without a label may not make up a group of their own.",
        "`labels[ids]` is [n, k]. For each label, (found == label).sum(1) counts it in every list; take the largest "
        "count "
        "over the labels, and divide by k, the length of the list.",
        "Sketch: found = labels[ids]; for each label >= 0 that exists: count per list; the largest count / "
        "ids.shape[1].",
    ),
    expected="A float tensor [n] in 0 ... 1: 1 when all k tokens have the same label, 0 when none has one.",
)
def _check_purity() -> Iterator[Probe]:
    labels = torch.tensor([0, 0, 1, 1, 1, -1, -1, -1])
    ids = torch.tensor([[0, 1, 2, 5], [2, 3, 4, 0], [5, 6, 7, 2], [5, 6, 7, 7]])
    yield Probe(
        tried="eight tokens with labels 0 0 1 1 1 and three without; lists with labels 0 0 1 -, 1 1 1 0, - - - 1 and "
        "- - - -",
        args=(ids, labels),
        expected=torch.tensor([0.5, 0.75, 0.25, 0.0]),
        means="2 of 4, 3 of 4, 1 of 4, none",
        diagnose={
            "Tokens without a label were taken for a group. -1 means: no label.": torch.tensor([0.5, 0.75, 0.75, 1.0]),
            "These are counts; divide by the length of the list.": torch.tensor([2.0, 3.0, 1.0, 0.0]),
            "It was divided by the number of labelled tokens, so one labelled token alone would be pure.": lambda got: (
                got.shape == (4,) and _near(got[:3], torch.tensor([2 / 3, 0.75, 1.0]))
            ),
            "This is the share of labelled tokens, whatever their labels.": torch.tensor([0.75, 1.0, 0.25, 0.0]),
            "The third list has one labelled token and got 0. Leave tokens without a label out first; then look for "
            "the commonest label (not that of the first token).": torch.tensor([0.5, 0.75, 0.0, 0.0]),
            "Fewer labels do not make a list pure. Count how many tokens have the commonest one.": lambda got: (
                got.shape == (4,) and _near(got[:3], torch.tensor([0.5, 0.5, 1.0]))
            ),
            "Only label 0 was counted.": torch.tensor([0.5, 0.25, 0.0, 0.0]),
            "The lists were pooled; each has its own number.": lambda got: got.numel() == 1,
        },
    )
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(-1, 4, (12,), generator=generator)
    ids = torch.stack([torch.randperm(12, generator=generator)[:5] for _ in range(5)])
    right = torch.tensor([max((row.count(label) for label in range(4)), default=0) / 5 for row in labels[ids].tolist()])
    yield Probe(
        tried="five lists of five tokens, four labels",
        args=(ids, labels),
        expected=right,
        diagnose={
            "The axes are swapped: a list is a row.": torch.tensor(
                [max(row.count(label) for label in range(4)) / 5 for row in labels[ids].T.tolist()]
            ),
        },
    )
    yield Probe(
        tried="labels need not be small or without gaps: 7 and 40, lists of three",
        args=(torch.tensor([[0, 1, 2], [2, 3, 3]]), torch.tensor([40, 7, 40, -1])),
        expected=torch.tensor([2 / 3, 1 / 3]),
    )


# --- 5. the loss of the tuned lens ------------------------------------------------------------------------------------


def tuned_loss(x: Tensor, A: Tensor, b: Tensor, unembed: Callable, final: Tensor) -> Tensor:
    """Mean over tokens of KL(softmax(final) || softmax(unembed(x + x A + b))), nats: x [n, d], final [n, V] logits."""
    p = final.log_softmax(-1)
    q = unembed(x + x @ A + b).log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


@exercise(
    "projection.tuned_loss",
    reference=tuned_loss,
    hints=(
        "The translator starts as the identity, so what is learned is added to x. Which of the two distributions is "
        "the "
        "teacher? KL(teacher || reading) = sum of teacher * (log teacher - log reading).",
        "`final` are logits: p = final.log_softmax(-1). The reading is unembed(x + x @ A + b).log_softmax(-1). Sum "
        "over the "
        "vocabulary first, then take the mean over the tokens.",
        "Sketch: p, q = log-softmaxes of the model and of the reading; return (p.exp() * (p - q)).sum over V, mean "
        "over n.",
    ),
    expected="One number >= 0; 0 exactly when the reading is the model's own prediction.",
)
def _check_tuned_loss() -> Iterator[Probe | Callable]:
    def logits(*rows) -> Tensor:
        return torch.tensor(rows).log()

    x, A, b = torch.zeros(2, 2), torch.zeros(2, 2), torch.zeros(2)
    final = logits([0.5, 0.25, 0.25], [0.5, 0.5, 1e-30])
    reading = logits([0.25, 0.25, 0.5], [0.25, 0.25, 0.5])
    log2 = math.log(2)
    forward = (0.5 * log2 - 0.25 * log2 + log2) / 2  # 0.25 log 2 and log 2
    yield Probe(
        tried="two tokens; the model says 1/2 1/4 1/4 and 1/2 1/2 0, the reading 1/4 1/4 1/2 both times",
        args=(x, A, b, lambda s: reading + 0 * s.sum(), final),
        expected=torch.tensor(forward),
        means="(0.25 log 2 + log 2) / 2 = 0.433",
        diagnose={
            "The two sides are swapped. The model's distribution is the teacher: KL(model || reading).": lambda got: (
                got.numel() == 1 and bool(got > 10)
            ),
            "The sum over tokens came back; take their mean.": torch.tensor(2 * forward),
            "The mean ran over the vocabulary too. KL is a sum over tokens of the vocabulary.": torch.tensor(
                forward / 3
            ),
            "This is the cross-entropy, which is not 0 for a perfect reading. Subtract the entropy.": torch.tensor(
                (0.5 * 2 * log2 + 0.25 * 2 * log2 + 0.25 * log2 + 2 * log2) / 2
            ),
            "The sign is turned round: a KL is never negative.": torch.tensor(-forward),
        },
    )
    x, A, b, W, final = (
        _random(4, 3),
        _random(3, 3, seed=1),
        _random(3, seed=2),
        _random(3, 5, seed=3),
        _random(4, 5, seed=4),
    )

    def loss(state: Tensor) -> Tensor:
        p, q = final.softmax(-1), (torch.tanh(state) @ W).softmax(-1)
        return (p * (p / q).log()).sum() / 4

    yield Probe(
        tried="four random states, with an unembedding that is not linear",
        args=(x, A, b, lambda s: torch.tanh(s) @ W, final),
        expected=loss(x + x @ A + b),
        diagnose={
            "x itself is missing: the translator adds to the state, so that A = 0 is the logit lens.": loss(x @ A + b),
            "A was transposed. States are row vectors: x A.": loss(x + x @ A.T + b),
            "b is missing.": loss(x + x @ A),
            "The translator was not used at all.": loss(x),
        },
    )

    def a_perfect_reading(answer: Callable) -> None:
        """A = 0, b = 0 and final = unembed(x), from logits of size 50: no loss"""
        x = 50 * _random(6, 4)
        got = answer(x, torch.zeros(4, 4), torch.zeros(4), lambda s: s, x)
        if not torch.allclose(got, torch.zeros(()), atol=1e-5):
            raise NotYet(
                answer.tried, "0", f"{float(got):.4g}",
                "Use log_softmax: the logarithm of a softmax that has become 0 is infinite.",
            )  # fmt: skip

    yield a_perfect_reading


# --- 6. contrasting layers --------------------------------------------------------------------------------------------


def layer_contrast(p: Tensor, alpha: float) -> tuple[Tensor, int]:
    """DoLa for one prompt: p [L, V], the distributions by layer, the last one final -> (distribution [V], layer).

    The layer farthest from the final one by Jensen-Shannon divergence is contrasted: softmax of log p_final - log
    p_layer over the tokens with p_final >= alpha * max p_final; 0 for all others.
    """
    final, early = p[-1], p[:-1]
    middle = (early + final) / 2
    divergence = (torch.xlogy(final, final / middle) + torch.xlogy(early, early / middle)).sum(-1)
    layer = int(divergence.argmax())
    scores = (final / early[layer]).log()
    return scores.masked_fill(final < alpha * final.max(), -torch.inf).softmax(-1), layer


@exercise(
    "projection.layer_contrast",
    reference=layer_contrast,
    hints=(
        "Three decisions: which early layer to contrast with, how to contrast, and which tokens are allowed at all. "
        "The "
        "last one prevents that an absurd token wins because the early layer found it even more absurd.",
        "JSD(p, q) = (KL(p||m) + KL(q||m)) / 2 with m = (p + q) / 2; argmax over the early layers. Contrast: log "
        "p_final - "
        "log p_layer. Allowed: p_final >= alpha * p_final.max(); others get -inf before the softmax.",
        "Sketch: final = p[-1]; for each earlier q: m = (final + q) / 2, jsd = sum of final * log(final / m) and of "
        "q * "
        "log(q / m); layer = the largest; scores = log(final / p[layer]) with -inf where not allowed; softmax.",
    ),
    expected="A distribution [V] that is 0 for implausible tokens, and the number of the contrasted layer.",
)
def _check_layer_contrast() -> Iterator[Probe | Callable]:
    p = torch.tensor([[0.40, 0.20, 0.20, 0.20], [0.05, 0.15, 0.30, 0.50], [0.50, 0.30, 0.15, 0.05]])
    ratio = p[2] / p[1]  # 10, 2, 0.5, 0.1
    right = torch.tensor([10.0, 2.0, 0.5, 0.0]) / 12.5

    def gives(q: Tensor) -> Callable:
        return lambda got: _near(got[0], q / q.sum())

    yield Probe(
        tried="two early layers, [0.4 0.2 0.2 0.2] and [0.05 0.15 0.3 0.5]; final [0.5 0.3 0.15 0.05]; alpha = 0.2",
        args=(p, 0.2),
        expected=(right, 1),
        means="layer 1 is farther; ratios 10, 2, 0.5 of the three tokens with at least 0.1, as shares: 0.8, 0.16, "
        "0.04, 0",
        diagnose={
            "The nearest layer was chosen; DoLa contrasts with the farthest one.": lambda got: got[1] == 0,
            "The layer is the final one. It is contrasted with the earlier ones.": lambda got: got[1] == 2,
            "The implausible token was not ruled out.": gives(ratio),
            "The contrast is turned round: log p_final - log p_layer.": gives(torch.tensor([1 / 10, 1 / 2, 2.0, 0.0])),
            "Probabilities were subtracted; the contrast is one of logarithms.": gives(
                torch.where(torch.tensor([1, 1, 1, 0]) > 0, (p[2] - p[1]).exp(), 0.0)
            ),
            "alpha is a share of the largest final probability, not a probability itself.": gives(
                torch.tensor([10.0, 2.0, 0.0, 0.0])
            ),
            "Plausibility was asked of the early layer. It is the final layer that decides.": gives(
                ratio * (p[1] >= 0.2 * p[1].max())
            ),
            "Implausible tokens got the score 0, which is a fair chance. They need -inf before the softmax.": gives(
                torch.tensor([10.0, 2.0, 0.5, 1.0])
            ),
            "The final distribution itself came back, without any contrast.": gives(p[2] * (p[2] >= 0.1)),
        },
    )
    # by KL(final || layer) the first layer is farther, by the Jensen-Shannon divergence the second
    p = torch.tensor([[0.5497, 0.45, 0.0003], [0.10, 0.10, 0.80], [0.55, 0.25, 0.20]])
    yield Probe(
        tried="three tokens; an early layer that gives one of them 0.0003 where the final one gives 0.2",
        args=(p, 0.1),
        expected=((p[2] / p[1]) / (p[2] / p[1]).sum(), 1),
        diagnose={
            "KL(final || layer) was used. It blows up where the early layer is sure that a token will not come; the "
            "Jensen-Shannon divergence does not.": lambda got: got[1] == 0,
        },
    )

    def alpha_one_keeps_the_top(answer: Callable) -> None:
        """alpha = 1, 12 random distributions over 9 tokens: only the top token is left"""
        p = (3 * _random(12, 9)).softmax(-1)
        got, _ = answer(p, 1.0)
        if int(got.argmax()) != int(p[-1].argmax()) or not torch.isclose(got.max(), torch.tensor(1.0)):
            raise NotYet(
                answer.tried, "probability 1 for the model's own top token",
                likely="With alpha = 1 only the top token reaches alpha times the largest; it has to be allowed "
                "itself.",
            )  # fmt: skip

    def many_distributions(answer: Callable) -> None:
        """40 random cases of 6 layers and 7 tokens, alpha = 0.3, some with peaked layers"""
        for seed in range(40):
            p = ((1 + seed % 4) * _random(6, 7, seed=seed)).softmax(-1)
            jsd = [
                float((p[-1] * (p[-1] / m).log() + q * (q / m).log()).sum()) for q in p[:-1] for m in [(q + p[-1]) / 2]
            ]
            right = jsd.index(max(jsd))
            got, layer = answer(p.clone(), 0.3)
            if layer != right:
                raise NotYet(
                    answer.tried, f"layer {right}", str(layer), "Choose the largest Jensen-Shannon divergence."
                )
            wanted = p[-1] / p[right] * (p[-1] >= 0.3 * p[-1].max())
            if not torch.allclose(got, wanted / wanted.sum(), atol=1e-4):
                raise NotYet(answer.tried, "softmax of log p_final - log p_layer over the plausible tokens")

    yield alpha_one_keeps_the_top
    yield many_distributions


# --- 7. Patchscopes ---------------------------------------------------------------------------------------------------


def patchscope(model: Model, source, target, layer: int, position: int) -> Tensor:
    """Next-token logits [V] of the prompt `target` when x^layer of the last token of `source` stands at `position`."""
    import mi_course as mi

    state = mi.record(model, [source], [f"x{layer}@-1"])[f"x{layer}@-1"]
    with mi.intervene(model, mi.patch(f"x{layer}@{position}", state)):
        return model.last_logits([target])[0]


@exercise(
    "projection.patchscope",
    reference=patchscope,
    hints=(
        "Two runs. In the first, on `source`, you read one state. In the second, on `target`, you put it in and look "
        "at "
        "the prediction after the last token. Where does the state come from, and where does it go?",
        '`mi.record(model, [source], ["x3@-1"])["x3@-1"]` is the state of the last token, [1, d]. Inside `with '
        'mi.intervene(model, mi.patch("x3", state, positions=2)):` the target\'s state at position 2 is replaced; '
        "`model.last_logits([target])` is [1, V].",
        'Sketch: site = f"x{layer}"; state = record on the source at site@-1; with intervene(patch(site, state, '
        "positions=position)): return last_logits([target])[0].",
    ),
    expected="Logits [V]. Patching a prompt's own state back in gives exactly its own logits.",
)
def _check_patchscope() -> Iterator[Probe | Callable]:
    from mi_course.world import compiled

    known = compiled.lookup().wrap()
    lima, oslo = known.token_id("lima"), known.token_id("oslo")

    def leads(token: int) -> Callable:
        return lambda got: isinstance(got, Tensor) and got.dim() == 1 and int(got.argmax()) == token

    yield Probe(
        tried="compiled.lookup: the state x^1 of `peru` in `the city of peru`, put in place of `norway` (position 4) "
        "in `the "
        "capital of norway is`; <bos> is position 0",
        args=(known, "the city of peru", "the capital of norway is", 1, 4),
        expected=leads(lima),
        means="logits [V] with `lima` on top",
        diagnose={
            "The target's own answer, oslo, came out: nothing was put in, or not where it is read.": leads(oslo),
            "The batch axis is still there: return the logits of the one prompt, [V].": lambda got: got.dim() == 2,
        },
    )
    model = _tiny_model()
    source, target = [3, 4, 5, 6], [7, 8, 9, 10, 11]
    right = _by_hand(model, source, target, 2, 1)
    others = {
        "The state was put in at all positions.": _by_hand(model, source, target, 2, None),
        "The state was put in at the last position; use `position`.": _by_hand(model, source, target, 2, -1),
        "The state of another layer was read, or it was put in at another layer.": _by_hand(
            model, source, target, 2, 1, 1
        ),
        "The state of another token was read; take the last token of the source.": _by_hand(
            model, source[:2], target, 2, 1
        ),
        "Nothing was put in: these are the target's own logits.": model.last_logits([target])[0],
        "The state was added to what stood there; replace it.": _by_hand(model, source, target, 2, 1, plus=True),
        "These are the logits of the source.": model.last_logits([source])[0],
    }
    yield Probe(
        tried="a random model of 3 layers; x^2 of the last token of a source, put in at position 1 of a target of 5 "
        "tokens",
        args=(model, source, target, 2, 1),
        expected=right,
        tolerance=1e-3,
        diagnose=others
        | {
            "These are probabilities; return logits.": right.softmax(-1),
            "These are log-probabilities; return logits.": right.log_softmax(-1),
        },
    )

    def the_identity(answer: Callable) -> None:
        """a prompt's own last state put back in, at every layer: no bit may change"""
        # one row or all rows through the unembedding: the last bits may differ
        plain, whole = model.last_logits([target])[0], model([target])[0, -1]
        for layer in range(4):
            got = answer(model, target, target, layer, -1)
            if not (torch.equal(got, plain) or torch.equal(got, whole)):
                raise NotYet(answer.tried, "exactly the prompt's own logits", likely="Something else was changed too.")

    yield the_identity
    yield Probe(
        tried="the same, x^0 put in at position 3",
        args=(model, source, target, 0, 3),
        expected=_by_hand(model, source, target, 0, 3),
        tolerance=1e-3,
    )


def _tiny_model() -> Model:
    """A random GPT-2 of three layers, loud enough that every change shows."""
    import transformers

    import mi_course as mi

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=12, n_layer=3, n_head=2, n_inner=10, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    g = torch.Generator().manual_seed(0)
    hf = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            if "ln_" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=g) * 0.4)
    return mi.wrap(hf)


@torch.no_grad()
def _by_hand(
    model: Model, source: list, target: list, layer: int, position: int | None, read: int | None = None,
    plus: bool = False,
) -> Tensor:  # fmt: skip
    """The Patchscope with the Hugging Face model alone: blocks are called one after the other."""
    body = model.hf.transformer

    def run(ids: list, until: int, x: Tensor | None = None, start: int = 0) -> Tensor:
        x = body.wte(torch.tensor([ids])) + body.wpe(torch.arange(len(ids)))[None] if x is None else x
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
        for block in body.h[start:until]:
            out = block(x, attention_mask=mask)
            x = out[0] if isinstance(out, tuple) else out
        return x

    state = run(source, layer if read is None else read)[0, -1]
    x = run(target, layer).clone()
    at = slice(None) if position is None else position
    x[0, at] = x[0, at] + state if plus else state
    return model.hf.lm_head(body.ln_f(run(target, 3, x, layer)))[0, -1]
