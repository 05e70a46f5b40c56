"""Chapter 02, attention heads: checks of its exercises.

Where a head looks (pattern, QK matrix), what it moves (z and result), which kind of head it is (prefix matching,
copying), and which head it works with (K-composition). The functions without an underscore are the references that a
chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ..exercises import Probe, exercise

# --- 1. the pattern --------------------------------------------------------------------------------------------------


def attention_pattern(q: Tensor, k: Tensor) -> Tensor:
    """Pattern [T, T] of one head from its queries and keys [T, d_head]: causal softmax of q k^T / sqrt(d_head) (Eq. 4).

    Row i says how query i spreads one unit of attention over the keys 0 ... i.
    """
    scores = q @ k.T / k.shape[-1] ** 0.5
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)


@exercise(
    "heads.pattern",
    reference=attention_pattern,
    hints=(
        "Row i belongs to query i. It may only look at keys 0 to i, and its numbers must sum to 1. At which moment do "
        "you have to hide the later keys so that both hold?",
        "`q @ k.T` gives all dot products, query by key. Divide them by the square root of d_head. A score of minus "
        "infinity becomes a weight of exactly 0 in the softmax: `masked_fill` with a mask from `triu(1)`. Softmax over "
        "the keys, the last axis.",
        "Sketch: scores = q times k transposed / sqrt(d_head); later = ones of shape [T, T], upper triangle without "
        "the diagonal, as bool; fill scores with -inf where later; softmax over the last axis.",
    ),
    expected="A [T, T] matrix, 0 above the diagonal, whose rows sum to 1. The first row is 1, 0, 0, ...: the first "
    "token can only look at itself.",
)
def _check_pattern() -> Iterator[Probe]:
    weight = torch.tensor([1.0, 2.0, 5.0])
    q = torch.tensor([[2.0, 0, 0, 0]]).repeat(3, 1)
    k = torch.zeros(3, 4)
    k[:, 0] = weight.log()
    lower = torch.ones(3, 3).tril()

    def causal(w: Tensor) -> Tensor:
        """Rows of the weights w up to the diagonal, each divided by its sum."""
        return w * lower / (w * lower).sum(-1, keepdim=True)

    right = causal(weight.repeat(3, 1))
    yield Probe(
        tried="three equal queries; keys whose scores, after the division by sqrt(4), are log 1, log 2 and log 5",
        args=(q, k),
        expected=right,
        means="rows [1, 0, 0], [1/3, 2/3, 0] and [1/8, 2/8, 5/8]",
        diagnose={
            "The result is transposed: rows are queries, columns are keys.": right.T,
            "Queries and keys are swapped: row i must hold the scores of query i with every key.": causal(
                torch.ones(3, 3)
            ),
            "The softmax runs over the queries (axis 0). Each query spreads its own attention: rows must sum to 1, so "
            "take it over the keys, the last axis.": lambda got: (
                torch.allclose(got.nan_to_num(0).sum(0), torch.ones(3), atol=1e-4) and not _close(got, right)
            ),
            "The scores were not divided by sqrt(d_head). Without it they grow with the size of the head, and the "
            "softmax picks one key almost alone.": causal(weight.repeat(3, 1) ** 2),
            "The scores were divided by d_head; it is its square root.": causal(weight.repeat(3, 1) ** 0.5),
            "The scores were divided by sqrt(T). The size that counts is that of the head, d_head.": causal(
                weight.repeat(3, 1) ** (2 / 3**0.5)
            ),
            "The later keys were set to 0 after the softmax, so the rows no longer sum to 1. Hide them before it: a "
            "score of -inf.": weight.repeat(3, 1) / 8 * lower,
            "The later keys got score 0, and exp(0) = 1, so they still take a share. Their score must be -inf.": (
                lambda got: _close(got, torch.where(lower > 0, weight.repeat(3, 1), torch.ones(3, 3)), rows=True)
            ),
            "The mask is missing: queries see keys that come after them.": weight.repeat(3, 1) / 8,
            "The mask hides the wrong side: queries see only what comes after them.": lambda got: _close(
                got, weight.repeat(3, 1) * torch.ones(3, 3).triu(), rows=True
            ),
            "The mask hides the diagonal too, so the first query has no key left. A token may look at itself.": (
                lambda got: bool(got[0].isnan().any()) or got[1, 1].item() == 0
            ),
            "These are scores. The softmax is missing.": lambda got: bool((got[1:] < 0).any() or got[2, 2] > 1),
        },
    )
    g = torch.Generator().manual_seed(0)
    q, k = torch.randn(5, 3, generator=g), torch.randn(5, 3, generator=g)
    yield Probe(
        tried="random queries and keys, T = 5, d_head = 3",
        args=(q, k),
        expected=_pattern_by_loops(q, k),
        diagnose={
            "Queries and keys are swapped: row i must hold the scores of query i with every key.": _pattern_by_loops(
                k, q
            ),
            "The softmax runs over the queries (axis 0); take it over the keys, the last axis.": lambda got: bool(
                (got.sum(0) - 1).abs().max() < 1e-4
            ),
        },
    )
    q = torch.tensor([[1.0, 0.0], [300.0, 0.0], [300.0, 0.0]])
    k = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-300.0, 0.0]])
    yield Probe(
        tried="very large scores, of 212 and -63640: the second key takes all",
        args=(q, k),
        expected=torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]),
        diagnose={
            "exp of a large score is infinite. `torch.softmax` takes the largest score away first; do the same, or use "
            "it.": lambda got: bool((~got.isfinite()).any()),
            "The later keys were hidden with too small a number. Use -inf, which no score can beat.": lambda got: bool(
                got.triu(1).abs().max() > 0
            ),
        },
    )
    yield Probe(
        tried="a very low score, of -63640, for the only key that the first query may see",
        args=(torch.tensor([[300.0, 0.0], [1.0, 0.0]]), torch.tensor([[-300.0, 0.0], [0.0, 0.0]])),
        expected=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        diagnose={
            "The later keys were hidden with a finite number, and here a real score lies below it. Use -inf.": (
                lambda got: bool(got[0, 1] > 0)
            ),
            "The sum of the weights of a row came out as 0. Hide later keys before the softmax, not after.": (
                lambda got: bool(got.isnan().any()) or bool(got[0].sum() < 0.5)
            ),
        },
    )


def _pattern_by_loops(q: Tensor, k: Tensor) -> Tensor:
    """Number by number, in double precision."""
    pattern = torch.zeros(len(q), len(k))
    for i in range(len(q)):
        scores = [
            sum(a * b for a, b in zip(q[i].tolist(), k[j].tolist())) / math.sqrt(q.shape[1]) for j in range(i + 1)
        ]
        weights = [math.exp(s - max(scores)) for s in scores]
        pattern[i, : i + 1] = torch.tensor([w / sum(weights) for w in weights])
    return pattern


def _close(got: Tensor, wanted: Tensor, rows: bool = False) -> bool:
    wanted = wanted / wanted.sum(-1, keepdim=True) if rows else wanted
    return got.shape == wanted.shape and torch.allclose(got, wanted, atol=1e-4)


# --- 2. the QK matrix ------------------------------------------------------------------------------------------------


def qk_matrix(W_Q: Tensor, b_Q: Tensor, W_K: Tensor, b_K: Tensor) -> Tensor:
    """The QK circuit with scale and biases: W_Q, W_K [d, d_head], b_Q, b_K [d_head] -> [d + 1, d + 1] (O20, A5).

    With a 1 appended to the normed states, [x_i, 1] M [x_j, 1]^T is the attention score of query i and key j.
    """
    queries, keys = torch.cat([W_Q, b_Q[None]]), torch.cat([W_K, b_K[None]])
    return queries @ keys.T / W_Q.shape[1] ** 0.5


@exercise(
    "heads.qk_matrix",
    reference=qk_matrix,
    hints=(
        "The score is a product of two vectors, (x W_Q + b_Q) and (y W_K + b_K). A bias is a weight on an input that "
        "is always 1. So what happens if x and y each get a 1 at the end?",
        "Then W_Q gets one more row, and that row is b_Q: [x, 1] times the taller matrix is x W_Q + b_Q. Do the same "
        "to W_K. The product of the two, with one of them transposed, has shape [d + 1, d + 1].",
        "Sketch: tall_Q = W_Q with b_Q below it (`torch.cat` along axis 0, `b_Q[None]` makes a row); tall_K likewise; "
        "return tall_Q times tall_K transposed, divided by the square root of d_head = W_Q.shape[1].",
    ),
    expected="A matrix of [d + 1, d + 1]. Its last row scores keys whatever the query is, its last column scores "
    "queries whatever the key is, and the corner is the same for all pairs.",
)
def _check_qk_matrix() -> Iterator[Probe]:
    for d, size in ((2, 4), (5, 3)):
        yield _qk_probe(d, size)


def _qk_probe(d: int, size: int) -> Probe:
    g = torch.Generator().manual_seed(d)
    W_Q, W_K = torch.randn(d, size, generator=g), torch.randn(d, size, generator=g)
    b_Q, b_K = torch.randn(size, generator=g), torch.randn(size, generator=g)
    right = _qk_by_probing(W_Q, b_Q, W_K, b_K)
    without = {name: right.clone() for name in ("biases", "corner", "b_K", "b_Q")}
    without["biases"][-1], without["biases"][:, -1] = 0, 0
    without["corner"][-1, -1] = 0
    without["b_K"][:, -1], without["b_Q"][-1] = 0, 0
    without["mixed"] = without["biases"].clone()
    without["mixed"][-1, -1] = right[-1, -1]
    return Probe(
        tried=f"random weights with d = {d} and d_head = {size}; expected from scores of single states",
        args=(W_Q, b_Q, W_K, b_K),
        expected=right,
        diagnose={
            "The scores are not divided by sqrt(d_head).": right * size**0.5,
            "The scores are divided by d_head; it is its square root.": right / size**0.5,
            "The scores are divided by the square root of d, the size of the state. The size that counts is that of "
            "the head, d_head.": right * (size / d) ** 0.5,
            "Queries and keys are swapped: [x_i, 1] on the left is the query, so W_Q comes first.": right.T,
            "The biases are missing: the last row and column are 0.": without["biases"],
            "The corner is missing: b_Q meets b_K there, when both appended ones meet.": without["corner"],
            "The biases meet each other but no state. The last column is the query of each state times b_K, the last "
            "row is b_Q times the key of each state.": without["mixed"],
            "b_K is missing: the last column should score queries by it.": without["b_K"],
            "b_Q is missing: the last row should score keys by it.": without["b_Q"],
            "The biases stand first; the 1 is appended at the end of a state, so they belong last.": right.roll(
                (1, 1), (0, 1)
            ),
            "The shape is that of W_Q W_K^T alone. Make room for the biases: one more row and column.": lambda got: (
                got.shape == (d, d)
            ),
            "The product runs over d, the states. It must run over d_head, so that a [d + 1, d + 1] matrix remains.": (
                lambda got: got.shape in ((size, size), (size + 1, size + 1))
            ),
        },
    )


def _qk_by_probing(W_Q: Tensor, b_Q: Tensor, W_K: Tensor, b_K: Tensor) -> Tensor:
    """The same matrix from scores alone: a bilinear form is known once it is known on pairs of unit vectors."""
    d, size = W_Q.shape

    def score(x: Tensor, y: Tensor) -> float:
        return ((x @ W_Q + b_Q) @ (y @ W_K + b_K)).item() / math.sqrt(size)

    zero, unit = torch.zeros(d), torch.eye(d)
    form = torch.zeros(d + 1, d + 1)
    form[d, d] = score(zero, zero)
    for i in range(d):
        form[i, d] = score(unit[i], zero) - form[d, d]
        form[d, i] = score(zero, unit[i]) - form[d, d]
    for i in range(d):
        for j in range(d):
            form[i, j] = score(unit[i], unit[j]) - form[i, d] - form[d, j] - form[d, d]
    return form


# --- 3. z and result -------------------------------------------------------------------------------------------------


def head_result(pattern: Tensor, x: Tensor, W_V: Tensor, b_V: Tensor, W_O: Tensor) -> tuple[Tensor, Tensor]:
    """z = A (x W_V + b_V) [T, d_head] and result = z W_O [T, d] of one head (Eq. 5, A7).

    pattern [T, T]; normed states x [T, d]; W_V [d, d_head], b_V [d_head], W_O [d_head, d].
    """
    z = pattern @ (x @ W_V + b_V)
    return z, z @ W_O


@exercise(
    "heads.result",
    reference=head_result,
    hints=(
        "Follow the tokens. Each key token offers a value, a short vector. Each query gathers values, weighted by its "
        "row of the pattern. Then the short vector is written to the stream. Which of the two products mixes tokens?",
        "Values are x W_V + b_V, shape [T, d_head]. The pattern multiplies from the left, since it mixes rows "
        "(tokens); W_O multiplies from the right, since it mixes columns. The bias b_O belongs to the whole block, so "
        "it does not appear.",
        "Sketch: v = x @ W_V + b_V; z = pattern @ v; return z and z @ W_O, in this order.",
    ),
    expected="A pair: z of shape [T, d_head], what the head gathered, and result of shape [T, d], what it writes.",
)
def _check_result() -> Iterator[Probe]:
    pattern = torch.tensor([[1.0, 0.0], [0.25, 0.75]])
    x = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    W_V, W_O = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    b_V = torch.tensor([10.0, -4.0])
    v = torch.tensor([[11.0, 0.0], [13.0, 7.0]])
    z = torch.tensor([[11.0, 0.0], [12.5, 5.25]])
    right = (z, torch.tensor([[11.0, 0.0], [28.25, 5.25]]))

    def gives(a: Tensor, b: Tensor | None = None):
        return lambda got: _close(got[0], a) and (b is None or _close(got[1], b))

    yield Probe(
        tried="T = 2, d = 2, d_head = 2, small whole numbers; values x W_V + b_V are [11, 0] and [13, 7]",
        args=(pattern, x, W_V, b_V, W_O),
        expected=right,
        means="z = [[11, 0], [12.5, 5.25]] and result = [[11, 0], [28.25, 5.25]]",
        diagnose={
            "z and result are swapped: return z first.": right[::-1],
            "b_V is missing. Rows of a pattern sum to 1, so it adds b_V to every z.": gives(z - b_V),
            "The pattern is transposed: row i must gather for query i.": gives(pattern.T @ v),
            "The values were not mixed by the pattern: z_i is a weighted mean of the values of all tokens that i looks "
            "at.": gives(v),
            "W_V is transposed. States are rows here: multiply x @ W_V.": gives(pattern @ (x @ W_V.T + b_V)),
            "W_O is transposed. States are rows here: multiply z @ W_O.": gives(z, z @ W_O.T),
            "The pattern was applied twice.": gives(z, pattern @ z @ W_O),
            "The result skips the pattern: it is z, the gathered values, that goes through W_O.": gives(z, v @ W_O),
            "The pattern multiplies from the right, so it mixes coordinates. It must mix tokens: pattern @ values.": (
                gives(v @ pattern)
            ),
            "This is one tensor. Return two, z and result.": lambda got: isinstance(got, Tensor),
        },
    )
    g = torch.Generator().manual_seed(0)
    shapes = ((4, 4), (4, 5), (5, 3), (3,), (3, 5))
    pattern, x, W_V, b_V, W_O = (torch.randn(shape, generator=g) for shape in shapes)
    pattern = pattern.exp().tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    yield Probe(
        tried="random weights, T = 4, d = 5, d_head = 3",
        args=(pattern, x, W_V, b_V, W_O),
        expected=(
            torch.einsum("ij,jd,de->ie", pattern, x, W_V) + b_V,
            torch.einsum("ij,jd,de,ef->if", pattern, x, W_V, W_O) + b_V @ W_O,
        ),
    )


# --- 4. prefix matching ----------------------------------------------------------------------------------------------


def prefix_matching(pattern: Tensor, tokens: Tensor) -> float:
    """Mean attention to the tokens right after earlier copies of the current one: pattern [T, T], tokens [T] of ids.

    The mean is over the queries whose token occurred before (Olsson et al. 2022; audit A29).
    """
    copy = (tokens[:, None] == tokens[None, :]).tril(-1)  # copy[i, j]: j is an earlier copy of i
    after = torch.zeros_like(copy)
    after[:, 1:] = copy[:, :-1]
    return pattern[copy.any(-1)].mul(after[copy.any(-1)]).sum(-1).mean().item()


ROLLED = "Shifting with `roll` wraps round: the first key counts as coming after the last token."


@exercise(
    "heads.prefix_matching",
    reference=prefix_matching,
    hints=(
        "Write down a short sequence, such as a b c a, and point at the last a. Where is its earlier copy, and what "
        "came right after that? The second place is where an induction head looks.",
        "For every query i, the wanted keys are j + 1 for every j < i with tokens[j] == tokens[i]. Sum the pattern "
        "over them. A query whose token is new has no such key, and does not count in the mean.",
        "Sketch: masses = []; for i over positions: keys = [j + 1 for j < i if tokens[j] == tokens[i]]; if keys: "
        "append the sum of pattern[i, keys]; return the mean of masses as a float.",
    ),
    expected="One number from 0 to 1. An ideal induction head gets 1 on a repeated sequence; even attention gets about "
    "1 / (number of tokens so far).",
)
def _check_prefix_matching() -> Iterator[Probe]:
    tokens = torch.tensor([2, 0, 1, 2, 0, 1])
    pattern = torch.eye(6)
    for i in (3, 4, 5):
        pattern[i, i], pattern[i, i - 1], pattern[i, i - 2], pattern[i, i - 3] = 0.0, 0.125, 0.5, 0.25
        pattern[i, 0] += 0.125
    yield Probe(
        tried="tokens a b c a b c; from the second a on: 0.5 to the token after the earlier copy, 0.25 to the copy "
        "itself, 0.125 to the token before the query and 0.125 to the first token",
        args=(pattern, tokens),
        expected=0.5,
        diagnose={
            "This is the attention to the earlier copies themselves (a duplicate-token head). An induction head looks "
            "one token further, at what came after the copy.": (0.375 + 0.25 + 0.25) / 3,
            "One off in the other direction: this is the token before the earlier copy.": lambda got: any(
                _near(got, 0.125 / n) for n in (2, 3)
            ),
            "This is the attention to the token before the query (a previous-token head).": 0.125,
            "The mean runs over all queries, also over those whose token is new and that have nothing to match.": 0.25,
            "The token itself and later ones count as its copies. Only earlier positions do, j < i.": 0.15,
            "This is a sum over queries; take the mean.": 1.5,
            "The pattern is read as [key, query]: rows are queries.": 0.0,
            ROLLED: (0.5 + 0.5 + 0.625) / 4,
        },
    )
    tokens = torch.tensor([4, 5, 4, 6, 4])
    pattern = torch.tensor(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0, 0.0],
            [0.125, 0.5, 0.375, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0, 0.0],
            [0.0625, 0.25, 0.125, 0.5, 0.0625],
        ]
    )
    yield Probe(
        tried="tokens a b a c a: the third a has two earlier copies, and looks at b with 0.25 and at c with 0.5; the "
        "second a looks at b with 0.5",
        args=(pattern, tokens),
        expected=0.625,
        means="(0.5 + 0.75) / 2 = 0.625: what falls on several keys is added up",
        diagnose={
            "Of several earlier copies only the latest counts; add up the attention after all of them.": 0.5,
            "Of several earlier copies only the first counts; add up the attention after all of them.": 0.375,
            "The mean runs over (query, key) pairs. Sum over the keys of each query first, then take the mean over "
            "queries.": 1.25 / 3,
            "The mean over the keys was taken; attention to several keys adds up.": (0.5 + 0.375) / 2,
            ROLLED: lambda got: any(_near(got, value) for value in ((1 + 0.625 + 0.8125) / 3, (0.625 + 0.8125) / 2)),
        },
    )
    g = torch.Generator().manual_seed(0)
    half = torch.randperm(50, generator=g)[:9]
    tokens = torch.cat([torch.tensor([50]), half, half])
    pattern = torch.rand(19, 19, generator=g).tril()
    pattern = pattern / pattern.sum(-1, keepdim=True)
    planted = sum(pattern[i, i - 8].item() for i in range(10, 19)) / 9
    yield Probe(
        tried="a first token, then 9 random tokens twice, with a random pattern",
        args=(pattern, tokens),
        expected=planted,
        diagnose={
            "This is the attention to the earlier copies themselves. Look one token further.": sum(
                pattern[i, i - 9].item() for i in range(10, 19)
            )
            / 9,
        },
    )


# --- 5. copying ------------------------------------------------------------------------------------------------------


def copying_score(writes: Tensor, W_U: Tensor, tokens: Tensor) -> float:
    """How far each write raises the logit of its own token: mean of (own - mean) / s.d. of its row.

    writes [n, d], what a head writes from each of n tokens alone; W_U [d, V]; tokens [n], their ids.
    """
    logits = writes @ W_U
    own = logits[torch.arange(len(tokens)), tokens]
    return ((own - logits.mean(-1)) / logits.std(-1)).mean().item()


@exercise(
    "heads.copying",
    reference=copying_score,
    hints=(
        "A write is a vector in the residual stream, so the unembedding can read it: one number for each word of the "
        "vocabulary. Copying means that the word that was looked at gets a high number. High compared with what?",
        "logits = writes @ W_U, shape [n, V]. For row i pick column tokens[i]. Compare it with the mean of its row, in "
        "units of the standard deviation of its row; so a head that writes more loudly does not score higher for it.",
        "Sketch: logits = writes @ W_U; own = logits[arange(n), tokens]; z = (own - mean of the row) / std of the row; "
        "return the mean of z as a float.",
    ),
    expected="A number without unit. 0: the head has no preference for the token it looks at; above 2 or so it clearly "
    "copies; below 0 it suppresses.",
)
def _check_copying() -> Iterator[Probe]:
    V = 5
    loudness = torch.tensor([[1.0], [10.0], [100.0]])
    writes = loudness * torch.eye(V)[[0, 3, 4]]
    z = (1 - 0.2) / math.sqrt(0.16), (1 - 0.2) / math.sqrt(0.2)  # population and sample standard deviation

    def either(a: float, b: float):
        return lambda got: _near(got, a) or _near(got, b)

    yield Probe(
        tried="V = 5, W_U = identity; three writes of lengths 1, 10 and 100, each along its own token",
        args=(writes, torch.eye(V), torch.tensor([0, 3, 4])),
        expected=either(*z),
        means="2.0 (1.789 with the sample standard deviation), the same for each length",
        diagnose={
            "The length of a write counts. Divide by the standard deviation of its row.": lambda got: got > 10,
            "The variance was used in place of the standard deviation.": either(
                sum(0.8 / (0.16 * s) for s in (1, 10, 100)) / 3, sum(0.8 / (0.2 * s) for s in (1, 10, 100)) / 3
            ),
            "The mean of the row was not taken away.": either(1 / math.sqrt(0.16), 1 / math.sqrt(0.2)),
            "The sum over tokens was taken; take the mean.": either(3 * z[0], 3 * z[1]),
            "The sign is turned round: copying is positive.": either(-z[0], -z[1]),
            "`logits[:, tokens]` takes every token's logit for every write. Each write has one own token: "
            "`logits[torch.arange(n), tokens]`.": either((z[0] - 2 * 0.5) / 3, (z[1] - 2 * 0.2 / math.sqrt(0.2)) / 3),
            "This comes out as 0 whatever the head writes. For each write take the logit of its own token, minus the "
            "mean of its row.": lambda got: abs(got) < 1e-4,
            "Mean and standard deviation must run over the vocabulary (the last axis), not over the tokens.": (
                lambda got: 0 < got < 1.7
            ),
        },
    )
    writes = torch.eye(V)[[1, 2, 0]]
    yield Probe(
        tried="the same vocabulary, but each write points along another token than its own",
        args=(writes, torch.eye(V), torch.tensor([0, 3, 4])),
        expected=either(-0.2 / math.sqrt(0.16), -0.2 / math.sqrt(0.2)),
        means="-0.5 (-0.447 with the sample standard deviation)",
        diagnose={
            "The largest logit was taken. Take the logit of the token that was looked at, `tokens[i]`.": (
                lambda got: got > 1.5
            ),
            "The absolute value hides suppression: keep the sign.": lambda got: 0.4 < got < 0.55,
        },
    )
    g = torch.Generator().manual_seed(0)
    writes, W_U = torch.randn(6, 4, generator=g), torch.randn(4, 30, generator=g)
    tokens = torch.tensor([3, 29, 0, 11, 7, 3])
    values = [], []
    for write, token in zip(writes, tokens.tolist()):
        row = [(write @ W_U[:, word]).item() for word in range(30)]
        mean = sum(row) / 30
        squares = sum((value - mean) ** 2 for value in row)
        for kept, n in zip(values, (30, 29)):
            kept.append((row[token] - mean) / math.sqrt(squares / n))
    yield Probe(
        tried="random writes and a random unembedding, d = 4, V = 30, one token twice",
        args=(writes, W_U, tokens),
        expected=either(sum(values[0]) / 6, sum(values[1]) / 6),
        means=f"{sum(values[0]) / 6:.4f} (or {sum(values[1]) / 6:.4f} with the sample standard deviation)",
    )


def _near(got: object, wanted: float) -> bool:
    return abs(float(got) - wanted) <= 1e-3 * max(1.0, abs(wanted))


# --- 6. K-composition ------------------------------------------------------------------------------------------------


def k_composition(W_OV: Tensor, W_QK: Tensor) -> float:
    """How well an earlier head's writes are aligned with what a later head's keys read (Elhage et al. 2021).

    |W_OV W_QK^T| / (|W_OV| |W_QK|), Frobenius norms; W_OV [d, d] of the earlier and W_QK [d, d] of the later head, row
    vectors. In 0 ... 1; two random heads get about 1 / sqrt(d).
    """
    return ((W_OV @ W_QK.T).norm() / (W_OV.norm() * W_QK.norm())).item()


@exercise(
    "heads.k_composition",
    reference=k_composition,
    hints=(
        "The later head's score is x_i W_QK y_j^T: keys y stand on the right. The earlier head writes y_j = "
        "(something) W_OV. Put that into the score. Which product of the two matrices appears?",
        "y^T = W_OV^T (something)^T, so the score holds W_QK W_OV^T, which has the same norm as its transpose "
        "W_OV W_QK^T. `W.norm()` is the Frobenius norm. Divide by both norms, so that loud heads do not win by "
        "loudness.",
        "Sketch: both = W_OV @ W_QK transposed; return norm of both / (norm of W_OV times norm of W_QK), as a float.",
    ),
    expected="A number from 0 to 1. Random heads get about 1 / sqrt(d), here 0.09 for d = 128; only what lies clearly "
    "above that is alignment.",
)
def _check_k_composition() -> Iterator[Probe]:
    W_OV, W_QK = torch.zeros(3, 3), torch.zeros(3, 3)
    W_OV[0, 1] = 2.0
    W_QK[2, 1], W_QK[1, 2], W_QK[2, 0] = 6.0, 3.0, 2.0
    yield Probe(
        tried="a head that moves coordinate 0 to coordinate 1 (weight 2); a later head of norm 7 whose keys read "
        "coordinate 1 with 6 and coordinate 0 with 2, and whose queries read coordinate 1 with 3",
        args=(W_OV, W_QK),
        expected=6 / 7,
        means="2 * 6 / (2 * 7) = 0.857: of what the keys read, the first head writes this part",
        diagnose={
            "The product was not divided by the two norms.": lambda got: got > 1.5,
            "W_QK is not transposed. In W_OV W_QK the writes meet the side of the queries (Q-composition); keys stand "
            "on the right of W_QK.": 3 / 7,
            "W_OV is transposed. Papers with column vectors write W_OV for our transpose; with row vectors, rows of "
            "W_OV are what is read and columns what is written.": 2 / 7,
            "Squares of norms were divided; take the root.": 36 / 49,
            "These are matrices multiplied number by number. Use the matrix product @.": 0.0,
        },
    )
    g = torch.Generator().manual_seed(0)
    W_OV, W_QK = torch.randn(6, 6, generator=g), torch.randn(6, 6, generator=g)
    total = sum(sum(W_OV[a, c].item() * W_QK[b, c].item() for c in range(6)) ** 2 for a in range(6) for b in range(6))
    square = W_OV.pow(2).sum().item() * W_QK.pow(2).sum().item()
    spectral = torch.linalg.matrix_norm(W_OV @ W_QK.T, ord=2)
    yield Probe(
        tried="two random matrices of [6, 6]",
        args=(W_OV, W_QK),
        expected=math.sqrt(total / square),
        diagnose={
            "This is the largest singular value, not the Frobenius norm (the root of the sum of all squares).": (
                lambda got: (
                    _near(got, (spectral / square**0.5).item())
                    or _near(
                        got, (spectral / torch.linalg.matrix_norm(W_OV, 2) / torch.linalg.matrix_norm(W_QK, 2)).item()
                    )
                )
            ),
        },
    )
