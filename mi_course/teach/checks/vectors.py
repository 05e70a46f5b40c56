"""Chapter 14, Vector arithmetic: checks of its exercises.

The state that is averaged, a push with a scale, the vector of SAE features, orthogonal weights, a vector without its
nuisances, the contrast of layers, and the merge of task vectors. The functions without an underscore are the references
that the chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4 * float(b.abs().max().clamp_min(1e-6)))


# --- 1. the state that is averaged -----------------------------------------------------------------------------------


def mean_state(x: Tensor, mask: Tensor, token: int | None) -> Tensor:
    """Mean state [d] over prompts: at the `token`-th real token of each, or over all real tokens if None.

    x [n, T, d]; mask [n, T], 1 at real tokens. token counts real tokens from 0, or from -1 backwards.
    """
    if token is None:
        return x[mask.bool()].mean(0)
    return torch.stack([states[real.bool()][token] for states, real in zip(x, mask)]).mean(0)


@exercise(
    "vectors.mean_state",
    reference=mean_state,
    hints=(
        "Prompts differ in length, so a batch has padding, on the left or on the right. In which column does the last "
        "word of each prompt stand?",
        "x[i][mask[i].bool()] holds the real tokens of prompt i alone, in order: its entry -1 is the last word, "
        "wherever the padding is. For all tokens, every real token counts once.",
        "Sketch: if token is None, index x with the bool mask and average over the first axis; else take entry `token` "
        "of the real tokens of each prompt, stack, and average.",
    ),
    expected="A vector [d]. Padding never enters it.",
)
def _check_mean_state() -> Iterator[Probe]:
    x = torch.tensor([[[1.0], [2], [99]], [[3.0], [4], [5]]])
    right = torch.tensor([[1, 1, 0], [1, 1, 1]])
    yield Probe(
        tried="two prompts, padded on the right: states 1, 2, (99 is padding) and 3, 4, 5; token = -1",
        args=(x, right, -1),
        expected=torch.tensor([3.5]),
        means="(2 + 5) / 2 = 3.5",
        diagnose={
            "Padding was read: column -1 of the batch is not the last word of a shorter prompt.": torch.tensor([52.0]),
            "All real tokens were averaged, but token = -1 asks for the last one of each prompt.": torch.tensor([3.0]),
            "The prompts were kept apart; average over them.": lambda got: got.numel() == 2,
            "The states were added up; the mean divides by their number.": torch.tensor([7.0]),
        },
    )
    left = torch.tensor([[[99.0], [1], [2]], [[3.0], [4], [5]]])
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    yield Probe(
        tried="the same prompts, padded on the left; token = 0",
        args=(left, mask, 0),
        expected=torch.tensor([2.0]),
        means="(1 + 3) / 2 = 2",
        diagnose={
            "Padding was read: column 0 of the batch is not the first word of a shorter prompt.": torch.tensor([51.0]),
            "This is the last real token, whatever `token` says.": torch.tensor([3.5]),
        },
    )
    yield Probe(
        tried="the same; token = None",
        args=(left, mask, None),
        expected=torch.tensor([3.0]),
        means="(1 + 2 + 3 + 4 + 5) / 5 = 3",
        diagnose={
            "The prompts were averaged one by one first. Here every real token counts the same, so a long prompt "
            "counts more.": torch.tensor([2.75]),
            "Padding was averaged in.": torch.tensor([19.0]),
            "This is the last token of each prompt. None means all real tokens.": torch.tensor([3.5]),
        },
    )
    x, lengths = _random(4, 7, 3), (7, 3, 5, 2)
    for side in ("left", "right"):
        mask = torch.zeros(4, 7, dtype=torch.long)
        for row, n in enumerate(lengths):
            mask[row, slice(7 - n, 7) if side == "left" else slice(0, n)] = 1
        start = [7 - n if side == "left" else 0 for n in lengths]
        expected = sum(x[i, start[i] + lengths[i] - 2] for i in range(4)) / 4
        yield Probe(
            tried=f"four prompts of 7, 3, 5 and 2 tokens, padded on the {side}; token = -2",
            args=(x, mask, -2),
            expected=expected,
            diagnose={
                "The columns were counted from the end of the batch; count real tokens.": x[:, -2].mean(0),
                "The coordinates were averaged, too: keep the last axis.": lambda got: got.numel() == 1,
            },
        )


# --- 2. a push with a scale ------------------------------------------------------------------------------------------


def push(x: Tensor, v: Tensor, share: float) -> Tensor:
    """x + share |x| v / |v|: every state is pushed along v by a share of its own length. x [..., d], v [d]."""
    return x + share * x.norm(dim=-1, keepdim=True) * v / v.norm()


@exercise(
    "vectors.push",
    reference=push,
    hints=(
        "The push shall be as long as `share` of the state, whatever the length of v. Which two lengths enter?",
        "v / |v| has length 1. Each state has its own |x|: x.norm over the last axis, with keepdim=True so that it "
        "multiplies the right rows.",
        "Sketch: x plus the product of share, the norm of x over the last axis (kept as an axis), and v over its norm.",
    ),
    expected="States of the same shape. The difference from x is parallel to v and `share` times as long as x.",
)
def _check_push() -> Iterator[Probe | Callable]:
    x, v = torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 2.0])
    yield Probe(
        tried="x = [3, 4] (length 5), v = [0, 2], share = 0.5",
        args=(x, v, 0.5),
        expected=torch.tensor([[3.0, 6.5]]),
        means="[3, 4 + 0.5 * 5] = [3, 6.5]",
        diagnose={
            "v was not brought to length 1, so a longer v pushes further.": torch.tensor([[3.0, 9.0]]),
            "The length of x is missing: this is x + share v / |v|.": torch.tensor([[3.0, 4.5]]),
            "This is Eq. 21 with alpha = share: neither length enters.": torch.tensor([[3.0, 5.0]]),
            "Only the push came back; add it to x.": torch.tensor([[0.0, 2.5]]),
            "The push goes against v.": torch.tensor([[3.0, 1.5]]),
            "The square of |x| was used.": torch.tensor([[3.0, 16.5]]),
        },
    )
    x = torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    yield Probe(
        tried="two states, of length 5 and 10; v = [0, 2], share = 0.5",
        args=(x, v, 0.5),
        expected=torch.tensor([[3.0, 6.5], [6.0, 13.0]]),
        diagnose={
            "One length was used for all states. Each is pushed by a share of its own.": lambda got: (
                got.shape == x.shape and _near((got - x)[0], (got - x)[1])
            ),
        },
    )
    yield Probe(tried="the same states, share = -0.5", args=(x, v, -0.5), expected=torch.tensor([[3.0, 1.5], [6.0, 3]]))

    def any_shape(answer: Callable) -> None:
        """a batch [2, 5, 8], v of several lengths, share = 0 and 0.3"""
        x, v = _random(2, 5, 8), _random(8, seed=1)
        if not torch.equal(answer(x, v, 0.0), x):
            raise NotYet(answer.tried, "share 0 leaves x as it is", likely="Something is added at share 0, too.")
        for size in (1.0, 40.0):
            moved = answer(x, size * v, 0.3) - x
            if not torch.allclose(moved.norm(dim=-1), 0.3 * x.norm(dim=-1), rtol=1e-3):
                raise NotYet(
                    answer.tried,
                    "every state moves by 0.3 of its length",
                    likely="The push depends on the length of v, or on other states.",
                )

    yield any_shape


# --- 3. the vector of SAE features -----------------------------------------------------------------------------------


def sae_vector(up: Tensor, down: Tensor, W_dec: Tensor, k: int) -> Tensor:
    """Eq. 23 and 24: sum of delta_j f_j over the k features with the longest delta_j f_j.

    up [n, m], down [n', m]: feature activations; W_dec [m, d], row j is f_j. Returns [d].
    """
    delta = up.mean(0) - down.mean(0)
    longest = (delta.abs() * W_dec.norm(dim=1)).topk(k).indices
    return delta[longest] @ W_dec[longest]


@exercise(
    "vectors.sae_vector",
    reference=sae_vector,
    hints=(
        "First one number for each feature, then choose features, then add up their rows of the decoder, each with its "
        "number.",
        "delta_j is the mean of column j of `up` minus that of `down`; it may be negative. What feature j adds to the "
        "vector is delta_j f_j, which has length |delta_j| |f_j|: that is what to choose by.",
        "Sketch: delta from two means over rows; topk of delta.abs() times the norms of the rows of W_dec; delta of "
        "the chosen features times their rows, summed.",
    ),
    expected="A vector [d]. With k = m it is the mean difference of the reconstructions.",
)
def _check_sae_vector() -> Iterator[Probe | Callable]:
    up = torch.tensor([[3.0, 0.0, 0.5], [1.0, 0.0, 0.5]])
    down = torch.tensor([[0.0, 1.0, 0.0]])
    W = torch.tensor([[1.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    tried = "activations [3, 0, 0.5], [1, 0, 0.5] against [0, 1, 0]; features [1, 0], [0, 3], [1, 1]; k = "
    yield Probe(
        tried=tried + "1",
        args=(up, down, W, 1),
        expected=torch.tensor([0.0, -3.0]),
        means="delta = [2, -1, 0.5]; the parts have lengths 2, 3, 0.7; so -1 * [0, 3]",
        diagnose={
            "The feature with the largest delta was chosen. Its part is shorter than that of feature 1, whose row is "
            "three times as long.": torch.tensor([2.0, 0.0]),
            "The sign of delta was lost: feature 1 is *less* active on the positive side.": torch.tensor([0.0, 3.0]),
            "Activations were summed over examples, not averaged.": torch.tensor([4.0, 0.0]),
        },
    )
    yield Probe(
        tried=tried + "2",
        args=(up, down, W, 2),
        expected=torch.tensor([2.0, -3.0]),
        diagnose={
            "The features were added with weight 1. Each counts with its delta.": torch.tensor([1.0, 3.0]),
            "The sum was divided by the number of features.": torch.tensor([1.0, -1.5]),
        },
    )

    def all_features(answer: Callable) -> None:
        """random activations of 9 and 4 examples, six features, k = 6"""
        up, down, W = _random(9, 6).relu(), _random(4, 6, seed=1).relu(), _random(6, 5, seed=2)
        right = (up @ W).mean(0) - (down @ W).mean(0)
        got = answer(up, down, W, 6)
        if not _near(got, right):
            raise NotYet(
                answer.tried,
                "the mean difference of the reconstructions",
                likely="With all features, Eq. 24 is exactly mean(a W_dec) on one side minus that on the other.",
            )

    yield all_features

    def scale(answer: Callable) -> None:
        """the same SAE written differently: activations halved and rows doubled for half of the features; k = 2"""
        up, down, W = _random(9, 6).relu(), _random(4, 6, seed=1).relu(), _random(6, 5, seed=2)
        c = torch.tensor([8.0, 1, 8, 1, 8, 1])
        if not _near(answer(up / c, down / c, W * c[:, None], 2), answer(up, down, W, 2)):
            raise NotYet(
                answer.tried,
                "the same vector",
                likely="The choice depends on the scale in which the SAE is written: choose by |delta_j| |f_j|.",
            )

    yield scale


# --- 4. orthogonal weights -------------------------------------------------------------------------------------------


def orthogonalise(W: Tensor, r: Tensor, axis: int) -> Tensor:
    """W without its part along r [d], on the axis that holds the residual stream. Any shape, r of any length."""
    r = r / r.norm()
    along = torch.tensordot(W, r, dims=([axis], [0]))
    shape = [1] * W.dim()
    shape[axis] = len(r)
    return W - along.unsqueeze(axis) * r.view(shape)


@exercise(
    "vectors.orthogonalise",
    reference=orthogonalise,
    hints=(
        "Each vector along `axis` is something that can be written to the stream. Take its part along r away, as "
        "chapter 00 did for states.",
        "torch.movedim(W, axis, -1) puts the stream last: then it is x - (x . r) r for every vector x along the last "
        "axis, with r brought to length 1. Move the axis back at the end. A bias has only this one axis.",
        "Sketch: r over its norm; W with the axis moved to the end, minus (that @ r) with an axis added, times r; axis "
        "moved back.",
    ),
    expected="A tensor of the shape of W, in which nothing along `axis` has a part along r.",
)
def _check_orthogonalise() -> Iterator[Probe | Callable]:
    W, r = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([2.0, 0.0])
    tried = "W = [[1, 2], [3, 4]], r = [2, 0], axis = "
    yield Probe(
        tried=tried + "1 (rows write to the stream)",
        args=(W, r, 1),
        expected=torch.tensor([[0.0, 2.0], [0.0, 4.0]]),
        diagnose={
            "r was not brought to length 1, so too much was taken away.": torch.tensor([[-3.0, 2.0], [-9.0, 4.0]]),
            "The other axis was treated: here the rows are what is written.": torch.tensor([[0.0, 0.0], [3.0, 4.0]]),
            "This is the part along r; it must be subtracted from W.": torch.tensor([[1.0, 0.0], [3.0, 0.0]]),
        },
    )
    yield Probe(
        tried=tried + "0 (stored transposed, as nn.Linear does)",
        args=(W, r, 0),
        expected=torch.tensor([[0.0, 0.0], [3.0, 4.0]]),
        diagnose={
            "axis was ignored: the stream is on axis 0 here, so columns are what is written.": torch.tensor(
                [[0.0, 2.0], [0.0, 4.0]]
            ),
        },
    )
    yield Probe(
        tried="a bias [5, 6], the same r, axis = 0", args=(torch.tensor([5.0, 6.0]), r, 0),
        expected=torch.tensor([0.0, 6.0]),
    )  # fmt: skip

    def nothing_left(answer: Callable) -> None:
        """random W of shape [6, 4] (axis 0) and [3, 5, 6] (axis 2), and x W for random x"""
        r = _random(6, seed=5)
        for W, axis in ((_random(6, 4), 0), (_random(3, 5, 6, seed=1), 2)):
            got = answer(W, r, axis)
            if got.shape != W.shape:
                raise NotYet(answer.tried, f"the shape of W, {list(W.shape)}", str(list(got.shape)))
            left = got.movedim(axis, -1) @ r
            other = _random(6, seed=6)
            other = other - (other @ r) / (r @ r) * r
            kept = (got - W).movedim(axis, -1) @ other
            if left.abs().max() > 1e-4:
                raise NotYet(answer.tried, "what is written has no part along r",
                             f"a part of up to {float(left.abs().max()):.2g}")  # fmt: skip
            if kept.abs().max() > 1e-4:
                raise NotYet(answer.tried, "what is written at right angles to r stays as it was",
                             likely="More than the part along r was taken away.")  # fmt: skip

    yield nothing_left


# --- 5. without nuisances --------------------------------------------------------------------------------------------


def without(v: Tensor, nuisances: Tensor) -> Tensor:
    """v [d] without its part in the span of the rows of nuisances [k, d] (independent, of any length and angle)."""
    Q = torch.linalg.qr(nuisances.T).Q
    return v - Q @ (Q.T @ v)


@exercise(
    "vectors.without",
    reference=without,
    hints=(
        "One nuisance n is simple: v - (v . n) n with n at length 1. With two at an odd angle, taking away the second "
        "brings back some of the first. What do you need of the nuisances so that this cannot happen?",
        "An orthonormal basis of their span. torch.linalg.qr(nuisances.T).Q has one in its columns, [d, k]. (Least "
        "squares does it as well: v minus the combination of nuisances that comes closest to v.)",
        "Sketch: Q from qr of the transposed nuisances; v minus Q times (Q transposed times v).",
    ),
    expected="A vector [d] at right angles to every nuisance.",
)
def _check_without() -> Iterator[Probe | Callable]:
    v = torch.tensor([1.0, 2.0, 3.0])
    yield Probe(
        tried="v = [1, 2, 3], one nuisance [2, 0, 0]",
        args=(v, torch.tensor([[2.0, 0.0, 0.0]])),
        expected=torch.tensor([0.0, 2.0, 3.0]),
        diagnose={
            "The nuisance was not brought to length 1.": torch.tensor([-3.0, 2.0, 3.0]),
            "The nuisance itself was subtracted. Only v's part along it goes.": torch.tensor([-1.0, 2.0, 3.0]),
            "This is the part along the nuisance; subtract it from v.": torch.tensor([1.0, 0.0, 0.0]),
        },
    )
    yield Probe(
        tried="v = [1, 2, 3], nuisances [1, 0, 0] and [1, 1, 0], which are not at right angles",
        args=(v, torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])),
        expected=torch.tensor([0.0, 0.0, 3.0]),
        means="[0, 0, 3]: both lie in the plane of the first two coordinates",
        diagnose={
            "They were taken away one after the other, and the second brought back some of the first. Use an "
            "orthonormal basis of their span.": lambda got: any(
                _near(got, torch.tensor(x)) for x in ([-1.0, 1.0, 3.0], [0.0, 0.5, 3.0], [-0.5, 0.5, 3.0])
            ),
            "The parts along each were computed from v and added up, which counts what they share twice.": torch.tensor(
                [-1.5, 0.5, 3.0]
            ),
            "Their mean was taken away. The whole span must go.": lambda got: (
                got.shape == (3,) and abs(float(got @ torch.tensor([1.0, 0.5, 0]))) < 1e-4 and float(got.norm()) > 3.01
            ),
        },
    )

    def right_angles(answer: Callable) -> None:
        """a random vector of twelve coordinates, four nuisances of very different lengths"""
        v, N = _random(12), _random(4, 12, seed=1) * torch.tensor([0.01, 1.0, 30.0, 1.0])[:, None]
        N[3] = N[3] + N[1] * 3
        got = answer(v, N)
        cosines = (N / N.norm(dim=1, keepdim=True)) @ got / got.norm()
        if cosines.abs().max() > 1e-3:
            raise NotYet(answer.tried, "right angles to all four", f"a cosine of {float(cosines.abs().max()):.2f}")
        residual = torch.linalg.lstsq(N.T, (v - got)[:, None])
        if not torch.allclose(N.T @ residual.solution[:, 0], v - got, atol=1e-3):
            raise NotYet(answer.tried, "v minus a combination of the nuisances",
                         likely="More was taken away than the span of the nuisances.")  # fmt: skip

    yield right_angles


# --- 6. the contrast of layers ---------------------------------------------------------------------------------------


def dola(final: Tensor, early: Tensor, alpha: float) -> Tensor:
    """DoLa's scores [V]: log q_final - log q_M among plausible tokens, -1000 elsewhere.

    final [V], early [n, V]: log-probabilities of the last and of n candidate layers. M: the candidate with the largest
    Jensen-Shannon divergence from the last. Plausible: q_final >= alpha * max q_final.
    """
    log_m = torch.logaddexp(final, early) - math.log(2)
    divergence = ((final.exp() * (final - log_m)).sum(-1) + (early.exp() * (early - log_m)).sum(-1)) / 2
    scores = final - early[divergence.argmax()]
    return torch.where(final >= final.max() + math.log(alpha), scores, -1000.0)


@exercise(
    "vectors.dola",
    reference=dola,
    hints=(
        "Three steps: which candidate layer is farthest from the last; subtract its log-probabilities; throw out what "
        "the last layer finds implausible.",
        "JS(p, q) = (KL(p|m) + KL(q|m)) / 2 with m = (p + q) / 2 and KL(p|m) = sum of p (log p - log m). The bar "
        "alpha * max q becomes, in logarithms, max log q + log alpha.",
        "Sketch: m for each candidate, divergence [n], its argmax M; scores = final - early[M]; torch.where(final >= "
        "final.max() + log(alpha), scores, -1000).",
    ),
    expected="Scores [V]. Tokens that an early layer has already favoured fall back.",
)
def _check_dola() -> Iterator[Probe | Callable]:
    final = torch.tensor([0.5, 0.4, 0.06, 0.04]).log()
    near, far = torch.tensor([0.5, 0.3, 0.1, 0.1]).log(), torch.tensor([0.7, 0.1, 0.1, 0.1]).log()
    right = torch.tensor([math.log(0.5 / 0.7), math.log(4.0), math.log(0.6), -1000.0])

    def with_out(scores: Tensor) -> Callable:
        return lambda got: got.shape == scores.shape and torch.allclose(got[:3], scores[:3], atol=1e-3)

    yield Probe(
        tried="last layer (0.5, 0.4, 0.06, 0.04), candidates (0.5, 0.3, 0.1, 0.1) and (0.7, 0.1, 0.1, 0.1), alpha 0.1",
        args=(final, torch.stack([near, far]), 0.1),
        expected=right,
        means="log 0.5/0.7, log 0.4/0.1, log 0.06/0.1, -1000 (0.04 is less than a tenth of 0.5)",
        diagnose={
            "The nearest candidate was taken; M is the farthest from the last layer.": with_out(final - near),
            "The candidates were averaged; M is one of them.": lambda got: any(
                with_out(final - x)(got) for x in ((near + far) / 2, torch.logaddexp(near, far) - math.log(2))
            ),
            "The sign is turned round: late minus early.": with_out(far - final),
            "The probabilities were subtracted, not their logarithms.": with_out(final.exp() - far.exp()),
            "Nothing was thrown out: 0.04 is below a tenth of the largest probability.": final - far,
            "Implausible tokens get -1000; here their score is another low number.": lambda got: (
                got.shape == (4,) and torch.allclose(got[:3], right[:3], atol=1e-3) and got[3] < -10
            ),
            "The bar is relative: alpha times the largest probability, 0.05, and 0.06 is above it.": lambda got: (
                got.shape == (4,) and bool(got[2] < -100)
            ),
        },
        tolerance=1e-6,
    )
    # here every other weighting of the two halves, and KL in either direction, chooses another candidate
    final = torch.tensor([0.01, 0.32, 0.22, 0.45]).log()
    early = torch.tensor([[0.54, 0.1, 0.35, 0.01], [0.71, 0.08, 0.06, 0.15], [0.01, 0.01, 0.95, 0.03]]).log()
    yield Probe(
        tried="last layer (0.01, 0.32, 0.22, 0.45), candidates (0.54, 0.1, 0.35, 0.01), (0.71, 0.08, 0.06, 0.15), "
        "(0.01, 0.01, 0.95, 0.03), alpha 0.1",
        args=(final, early, 0.1),
        expected=torch.tensor([-1000.0, math.log(0.32 / 0.1), math.log(0.22 / 0.35), math.log(45.0)]),
        means="the first candidate: log 0.32/0.1, log 0.22/0.35, log 0.45/0.01",
        diagnose={
            "Another candidate was taken: Jensen-Shannon compares both with their mean m, with equal weight.": (
                lambda got: any(
                    got.shape == (4,) and torch.allclose(got[1:], (final - e)[1:], atol=1e-3) for e in early
                )
            ),
        },
        tolerance=1e-6,
    )

    def one_candidate(answer: Callable) -> None:
        """twenty random tokens, one candidate, alpha = 0.02 and 1"""
        final, early = _random(20).mul(2).log_softmax(-1), _random(1, 20, seed=1).log_softmax(-1)
        keep = final.exp() >= 0.02 * final.exp().max()
        got = answer(final, early, 0.02)
        if not torch.allclose(got[keep], (final - early[0])[keep], atol=1e-3) or (got[~keep] > -900).any():
            raise NotYet(answer.tried, "log q_final - log q_early where plausible, -1000 elsewhere")
        if (answer(final, early, 1.0) > -900).sum() != 1:
            raise NotYet(answer.tried, "alpha = 1 keeps the top token alone")

    yield one_candidate


# --- 7. the merge of task vectors ------------------------------------------------------------------------------------


def ties(deltas: Tensor, density: float) -> Tensor:
    """TIES merge of n task vectors [n, m] -> [m]: trim, elect a sign, mean over those that agree.

    density: the share of each task vector that is kept, its largest entries by size (rounded to a whole number).
    """
    keep = round(density * deltas.shape[1])
    bar = deltas.abs().sort(dim=1, descending=True).values[:, keep - 1 : keep]
    trimmed = deltas * (deltas.abs() >= bar)
    agree = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    return (trimmed * agree).sum(0) / agree.sum(0).clamp(min=1)


@exercise(
    "vectors.ties",
    reference=ties,
    hints=(
        "Three steps for every weight: small changes go, then the sides vote with their sizes, then the winners are "
        "averaged.",
        "Trim each row by itself: keep its largest entries by size. The elected sign is that of the sum over rows. "
        "The mean is over those rows that are not 0 and have that sign, so it divides by their number.",
        "Sketch: topk of |deltas| in each row gives a mask; sign of trimmed.sum(0); agree = same sign and not 0; sum "
        "of what agrees over its count, with at least 1 in the denominator.",
    ),
    expected="A vector [m]. A weight that only one task changed keeps its change whole.",
)
def _check_ties() -> Iterator[Probe | Callable]:
    deltas = torch.tensor([[4.0, 1.0, -3.0, 0.5], [-20.0, -25.0, 1.0, 60.0]])
    yield Probe(
        tried="[4, 1, -3, 0.5] and [-20, -25, 1, 60], density 0.5",
        args=(deltas, 0.5),
        expected=torch.tensor([4.0, -25.0, -3.0, 60.0]),
        means="trimmed: [4, 0, -3, 0] and [0, -25, 0, 60]; no conflict is left",
        diagnose={
            "Nothing was trimmed: the small changes of one task still vote and count.": torch.tensor(
                [-20.0, -25.0, -3.0, 30.25]
            ),
            "It was divided by the number of tasks. Divide by the number of those that agree.": torch.tensor(
                [2.0, -12.5, -1.5, 30.0]
            ),
            "One bar was used for all tasks together. Each is trimmed by itself.": torch.tensor(
                [-20.0, -25.0, 0.0, 60.0]
            ),
            "The signs were lost: choose by size, and keep the sign.": torch.tensor([4.0, 25.0, 3.0, 60.0]),
            "The largest entries were kept with their sign; size means |delta|.": torch.tensor([4.0, 1.0, 1.0, 60.0]),
        },
    )
    yield Probe(
        tried="[3, 2], [-1, 2] and [-1.5, 0], density 1",
        args=(torch.tensor([[3.0, 2.0], [-1.0, 2.0], [-1.5, 0.0]]), 1.0),
        expected=torch.tensor([3.0, 2.0]),
        means="3 outweighs 1 + 1.5, so plus is elected and 3 stays alone; zeros have no vote and no part in the mean",
        diagnose={
            "The side with more votes won. Votes count by their size: 3 against 2.5.": torch.tensor([-1.25, 2.0]),
            "This is the plain mean.": torch.tensor([0.5 / 3, 4 / 3]),
            "It was divided by the number of tasks.": torch.tensor([1.0, 4 / 3]),
            "The winners were added up; take their mean.": torch.tensor([3.0, 4.0]),
        },
    )

    def disjoint(answer: Callable) -> None:
        """three task vectors that change different weights, density 1"""
        whole = torch.tensor([1.0, -2, 3, -4, 5, -6])
        rows = torch.stack([whole * (torch.arange(6) % 3 == i) for i in range(3)])
        got = answer(rows, 1.0)
        if not _near(got, whole):
            raise NotYet(answer.tried, "their sum: without overlap nothing is lost",
                         likely="Zeros took part in the mean.")  # fmt: skip

    yield disjoint

    def by_loops(answer: Callable) -> None:
        """five random task vectors of forty weights, density 0.3"""
        deltas = _random(5, 40, seed=3)
        got, expected = answer(deltas, 0.3), []
        kept = [[x if sorted(map(abs, row))[-12] <= abs(x) else 0.0 for x in row] for row in deltas.tolist()]
        for column in zip(*kept):
            sign = math.copysign(1, sum(column))
            winners = [x for x in column if x * sign > 0]
            expected.append(sum(winners) / max(1, len(winners)))
        if not _near(got, torch.tensor(expected)):
            raise NotYet(
                answer.tried, "trim, elect, mean of those that agree", likely="One of the three steps differs."
            )

    yield by_loops
