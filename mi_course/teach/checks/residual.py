"""Chapter 01, tokens and the residual stream: checks of its exercises.

From token ids to x^0, through a block, to x^L as a sum of writes, through the final norm to logits, and back: which
write caused a logit, and what a write says. The functions without an underscore are the references that the chapter
uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise


def _close(a: Tensor, b: Tensor, tolerance: float = 1e-4) -> bool:
    """Same shape, and equal up to `tolerance` of the largest value of b."""
    return a.shape == b.shape and bool((a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item()))


# --- 1. embed --------------------------------------------------------------------------------------------------------


def embed(W_E: Tensor, W_pos: Tensor, ids: Tensor) -> Tensor:
    """x^0 = W_E[token] + W_pos[position] (Eq. 1): W_E [V, d], W_pos [n_ctx, d], ids [B, T] -> [B, T, d]."""
    return W_E[ids] + W_pos[: ids.shape[1]]


@exercise(
    "residual.embed",
    reference=embed,
    hints=(
        "Every token has a row in W_E, and every place in the prompt has a row in W_pos. Which index goes into which "
        "table? The first place is place 0.",
        "A table can be indexed with a whole tensor of ids: `W_E[ids]` has shape [B, T, d]. All prompts of the batch "
        "share the same places 0 ... T-1, so their vectors have shape [T, d], and adding repeats them for each prompt.",
        "Sketch: T is ids.shape[1]; add the rows of W_E at the ids to the first T rows of W_pos.",
    ),
    expected="A tensor [B, T, d]. The same word at two places gives two states, whose difference is that of the two "
    "position vectors.",
)
def _check_embed() -> Iterator[Probe]:
    W_E = torch.tensor([[1.0, 0.0], [2.0, 0.0], [5.0, 0.0], [7.0, 0.0]])
    W_pos = torch.tensor([[0.0, 10.0], [0.0, 20.0], [0.0, 40.0], [0.0, 80.0], [0.0, 160.0]])
    ids = torch.tensor([[3, 0, 2]])
    yield Probe(
        tried="one prompt of three tokens, ids [[3, 0, 2]]; W_E fills the first number, W_pos the second",
        args=(W_E, W_pos, ids),
        expected=torch.tensor([[[7.0, 10.0], [1.0, 20.0], [5.0, 40.0]]]),
        diagnose={
            "The position vectors are missing: x^0 = W_E[token] + W_pos[position].": W_E[ids],
            "The token vectors are missing.": W_pos[:3][None],
            "Places were counted from 1. Place 0 is the first token's.": W_E[ids] + W_pos[1:4],
            "W_pos was read at the token ids. It is a table of places: row 0 for the first token, row 1 for the "
            "second.": W_E[ids] + W_pos[ids],
            "All places got the vector of place 0.": W_E[ids] + W_pos[0],
            "The batch axis is gone: ids [B, T] give states [B, T, d].": lambda got: got.shape == (3, 2),
            "The two vectors were multiplied. They are added.": W_E[ids] * W_pos[:3],
            "The places were counted from the end.": W_E[ids] + W_pos[:3].flip(0),
            "Every token was added to every place: the axis of places stands where the batch is. Add position vectors "
            "of shape [T, d]; torch repeats them for each prompt.": lambda got: got.shape == (3, 3, 2),
        },
    )
    ids = torch.tensor([[3, 0, 2], [1, 1, 1], [0, 2, 3]])
    yield Probe(
        tried="three prompts of three tokens",
        args=(W_E, W_pos, ids),
        expected=torch.stack([torch.stack([W_E[i] + W_pos[t] for t, i in enumerate(row)]) for row in ids]),
    )
    ids = torch.tensor([[3, 0, 2, 1, 1], [1, 1, 1, 0, 0]])
    yield Probe(
        tried="two prompts of five tokens",
        args=(W_E, W_pos, ids),
        expected=torch.stack([torch.stack([W_E[i] + W_pos[t] for t, i in enumerate(row)]) for row in ids]),
    )


# --- 2. do embeddings know categories? -------------------------------------------------------------------------------


def category_margin(W: Tensor, labels: Tensor) -> Tensor:
    """Mean cosine of pairs of one category minus that of pairs of two: W [n, d], labels [n] -> one number."""
    unit = W / W.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    same = labels[:, None] == labels
    other_word = ~torch.eye(len(W), dtype=torch.bool, device=W.device)
    return cosine[same & other_word].mean() - cosine[~same].mean()


@exercise(
    "residual.category_margin",
    reference=category_margin,
    hints=(
        "Two kinds of pairs: both words from one category, or from two. You compare the mean cosine of the first kind "
        "with that of the second. Is a word a fair partner of itself?",
        "Divide every row by its length; then all cosines are in one matrix product [n, n]. `labels[:, None] == "
        "labels` says which pairs share a category. The diagonal holds every word with itself: leave it out.",
        "Sketch: unit rows; cosine = unit times its transpose; same = matrix of equal labels; mean over same without "
        "the diagonal, minus mean over not same.",
    ),
    expected="One number. Around 0 when labels are shuffled; clearly above it when words of one category point the "
    "same way.",
)
def _check_category_margin() -> Iterator[Probe]:
    directions = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])  # cosines 0.6, 0.6; 0, -0.8, 0.8, 0
    lengths = torch.tensor([[1.0], [2.0], [5.0], [3.0]])
    W, labels = directions * lengths, torch.tensor([0, 0, 1, 1])
    dot, same, off = W @ W.T, labels[:, None] == labels, ~torch.eye(4, dtype=torch.bool)
    cosine = directions @ directions.T
    centres = torch.stack([W[labels == k].mean(0) for k in (0, 1)])
    yield Probe(
        tried="two categories of two words; the two pairs inside have cosine 0.6, the four across 0.8, 0, 0 and -0.8",
        args=(W, labels),
        expected=0.6,
        means="0.6 - 0 = 0.6",
        diagnose={
            "These are dot products: divide every vector by its length first, or long vectors decide.": float(
                dot[same & off].mean() - dot[~same].mean()
            ),
            "Every word was paired with itself as well, with cosine 1. Leave the diagonal out.": float(
                cosine[same].mean() - cosine[~same].mean()
            ),
            "The sign is turned round: inside minus across.": -0.6,
            "Pairs inside were compared with all pairs. Compare them with the pairs across.": float(
                0.6 - cosine[off].mean()
            ),
            "These are sums over pairs; take the mean of each kind.": float(
                cosine[same & off].sum() - cosine[~same].sum()
            ),
            "This compares the category means, not pairs of words.": float(
                torch.cosine_similarity(centres[0], centres[1], dim=0)
            ),
            "The columns were scaled to length 1 (dim=0). A word is a row: use dim=1.": lambda got: (
                abs(float(got) - float(_margin_of(W / W.norm(dim=0), labels))) < 1e-4
            ),
            "All words were scaled by one common number. Each has a length of its own: norm over dim=1.": lambda got: (
                abs(float(got) - float(_margin_of(W / W.norm(), labels))) < 1e-4
            ),
        },
    )
    g = torch.Generator().manual_seed(0)
    W, labels = torch.randn(7, 4, generator=g), torch.tensor([2, 0, 0, 2, 0, 1, 0])
    inside, across = _pairs(W, labels)
    by_category = [
        sum(values) / len(values) for k in (0, 2) if (values := _pairs(W[labels == k], labels[labels == k])[0])
    ]
    yield Probe(
        tried="7 random words in categories of 4, 2 and 1",
        args=(W, labels),
        expected=sum(inside) / len(inside) - sum(across) / len(across),
        diagnose={
            "Categories were averaged first. Take one mean over all pairs inside, whichever category they are from.": (
                sum(by_category) / 2 - sum(across) / len(across)
            ),
            "The result is not a number: a category of one word has no pairs, so its mean is 0/0. Collect the pairs of "
            "all categories, then average.": lambda got: math.isnan(float(got)),
        },
    )


def _margin_of(unit: Tensor, labels: Tensor) -> Tensor:
    dot, same = unit @ unit.T, labels[:, None] == labels
    return dot[same & ~torch.eye(len(unit), dtype=torch.bool)].mean() - dot[~same].mean()


def _pairs(W: Tensor, labels: Tensor) -> tuple[list[float], list[float]]:
    """Cosines pair by pair: (inside a category, across two)."""
    inside, across = [], []
    for i in range(len(W)):
        for j in range(i):
            value = (W[i] @ W[j] / (W[i].norm() * W[j].norm())).item()
            (inside if labels[i] == labels[j] else across).append(value)
    return inside, across


# --- 3. one block ----------------------------------------------------------------------------------------------------


def block(x: Tensor, norm1: Callable, attention: Callable, norm2: Callable, ffn: Callable) -> tuple[Tensor, Tensor]:
    """x^mid = x + attention(norm1(x)) and x^{l+1} = x^mid + ffn(norm2(x^mid)) (Eq. 2, 3 with norms): two [..., d]."""
    mid = x + attention(norm1(x))
    return mid, mid + ffn(norm2(mid))


@exercise(
    "residual.block",
    reference=block,
    hints=(
        "The stream itself is never replaced, only added to. What does each of the two branches read, and what is "
        "its output added to?",
        "A branch reads a normed copy: attention reads norm1 of x, the FFN reads norm2 of the state *after* attention "
        "was added. The state that is added to is not normed.",
        "Sketch: mid is x plus attention of norm1 of x; return mid, and mid plus ffn of norm2 of mid.",
    ),
    expected="Two states shaped like x: between the branches, and after both. The difference of the second and the "
    "first is what the FFN wrote.",
)
def _check_block() -> Iterator[Probe | Callable]:
    x = torch.tensor([[1.0, 2.0]])

    def norm1(v):
        return 10 * v

    def attention(v):
        return v + 3

    def norm2(v):
        return v / 2

    def ffn(v):
        return v * v

    mid = torch.tensor([[14.0, 25.0]])
    right = (mid, torch.tensor([[63.0, 181.25]]))

    def wrong(middle: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        return middle, end

    bare = x + attention(x)
    no_first = x + attention(norm1(x))
    lost = attention(norm1(x))
    kept = norm1(x) + attention(norm1(x))
    after = norm1(x + attention(x))
    outside = x + norm1(attention(x))
    yield Probe(
        tried="x = [[1, 2]], norm1(v) = 10v, attention(v) = v + 3, norm2(v) = v/2, ffn(v) = v * v",
        args=(x, norm1, attention, norm2, ffn),
        expected=right,
        means="mid = x + (10x + 3) = [[14, 25]] and out = mid + (mid/2)^2 = [[63, 181.25]]",
        diagnose={
            "This is Eq. 2 and 3 as printed, without norms. Each branch reads a normed copy of the state.": wrong(
                bare, bare + ffn(bare)
            ),
            "The FFN read x. In these models it reads the state after attention has been added (reading x is what "
            "parallel blocks do).": wrong(no_first, no_first + ffn(norm2(x))),
            "What the FFN wrote was added to x, and the attention write got lost. Add it to mid.": wrong(
                no_first, x + ffn(norm2(no_first))
            ),
            "The norm was put on the sum (post-norm, as in the first transformers). Here only what a branch *reads* is "
            "normed.": wrong(after, norm2(after + ffn(after))),
            "The norm was put on the output of the branch. Here it stands before the branch.": wrong(
                outside, outside + norm2(ffn(outside))
            ),
            "The stream was replaced by its normed copy: x itself has to be added, not norm1(x).": lambda got: _close(
                got[0], kept
            ),
            "The residual connection is missing: attention(norm1(x)) has to be added to x.": lambda got: _close(
                got[0], lost
            ),
            "norm2 is missing: the FFN reads norm2(mid).": wrong(no_first, no_first + ffn(no_first)),
            "The FFN read through norm1. Each branch has a norm of its own.": wrong(
                no_first, no_first + ffn(norm1(no_first))
            ),
            "norm1 is missing: attention reads norm1(x).": lambda got: _close(got[0], bare),
            "mid is right, but x^{l+1} lacks mid itself: the FFN's write has to be added to it.": wrong(
                no_first, ffn(norm2(no_first))
            ),
            "mid was normed before the FFN's write was added to it. Only what the FFN reads is normed.": wrong(
                no_first, norm2(no_first) + ffn(norm2(no_first))
            ),
            "The two states are in the wrong order: first mid, then the state after the block.": (right[1], right[0]),
        },
    )

    def one_call_each(answer: Callable) -> None:
        """a random block on 2 prompts of 3 tokens, counting how often each part is called"""
        g = torch.Generator().manual_seed(0)
        W, V = torch.randn(4, 4, generator=g), torch.randn(4, 4, generator=g)
        calls: list[str] = []

        def part(name: str, f: Callable) -> Callable:
            def called(v: Tensor) -> Tensor:
                calls.append(name)
                return f(v)

            return called

        y = torch.randn(2, 3, 4, generator=g)
        parts = {
            "norm1": lambda v: v - v.mean(-1, keepdim=True),
            "attention": lambda v: v.cumsum(1) @ W,
            "norm2": lambda v: v / v.norm(dim=-1, keepdim=True),
            "ffn": lambda v: (v @ V).relu(),
        }
        got = answer(y, *(part(name, f) for name, f in parts.items()))
        middle = y + (y - y.mean(-1, keepdim=True)).cumsum(1) @ W
        end = middle + (middle / middle.norm(dim=-1, keepdim=True) @ V).relu()
        if not (isinstance(got, (tuple, list)) and _close(got[0], middle) and _close(got[1], end)):
            raise NotYet(answer.tried, "the states of the formula", likely="It works for one token only. Leave the "
                         "axes as they are, and apply the functions to the whole tensor.")  # fmt: skip
        if len(calls) > 4:
            raise NotYet(answer.tried, "each of the four functions is called once", ", ".join(calls),
                         "A branch is computed twice. Keep its result in a variable.")  # fmt: skip

    yield one_call_each


# --- 4. states are running sums of writes ----------------------------------------------------------------------------


def states(embedding: Tensor, heads: Tensor, b_O: Tensor, ffn: Tensor) -> Tensor:
    """x^0 ... x^L as running sums of writes.

    embedding [T, d] is x^0; heads [L, H, T, d]; b_O [L, d]; ffn [L, T, d] -> [L+1, T, d].
    """
    blocks = heads.sum(1) + b_O[:, None] + ffn
    return torch.cat([embedding[None], embedding + blocks.cumsum(0)])


@exercise(
    "residual.states",
    reference=states,
    hints=(
        "x^l is what block l reads, so it holds the embedding and the writes of the blocks *before* l. How many "
        "states are there for L blocks?",
        "A block adds three things to every token: the writes of its heads, its bias b_O (once, whatever the number of "
        "heads), and the write of its FFN. Start a list with x^0 and append one state per block.",
        "Sketch: x = embedding; keep it; for each layer add heads[layer] summed over its heads, b_O[layer] and "
        "ffn[layer], and keep the new x; stack the L+1 states.",
    ),
    expected="A tensor [L+1, T, d]: the first entry is the embedding, the last one is x^L, from which the prediction "
    "is read.",
)
def _check_states() -> Iterator[Probe]:
    embedding = torch.tensor([[1000.0]])
    heads = torch.tensor([[[[1.0]], [[2.0]], [[4.0]]], [[[10.0]], [[20.0]], [[40.0]]]])  # L = 2, H = 3, T = d = 1
    b_O, ffn = torch.tensor([[0.1], [0.2]]), torch.tensor([[[100.0]], [[300.0]]])
    right = torch.tensor([1000.0, 1107.1, 1477.3])[:, None, None]

    def column(*numbers: float) -> Tensor:
        return torch.tensor(numbers, dtype=torch.float32)[:, None, None]

    yield Probe(
        tried="2 layers of 3 heads, one token, d = 1; x^0 = 1000, heads write 1, 2, 4 and 10, 20, 40, b_O 0.1 and 0.2, "
        "FFNs 100 and 300",
        args=(embedding, heads, b_O, ffn),
        expected=right,
        tolerance=1e-6,
        means="[1000, 1107.1, 1477.3]: x^0, then + 1+2+4 + 0.1 + 100, then + 10+20+40 + 0.2 + 300",
        diagnose={
            "x^0 is missing. x^l is the *input* of block l, so x^0, the embedding, comes first: L+1 states.": column(
                1107.1, 1477.3
            ),
            "x^L is missing. After the last block there is one more state: L+1 states.": column(1000, 1107.1),
            "The bias b_O is missing. It belongs to no head, and every token gets it once per layer.": column(
                1000, 1107, 1477
            ),
            "b_O was added once for every head. It belongs to the block: add it once per layer.": column(
                1000, 1107.3, 1477.9
            ),
            "b_O was added for one layer only.": lambda got: (
                _close(got, column(1000, 1107.1, 1477.1), 1e-6) or _close(got, column(1000, 1107, 1477.2), 1e-6)
            ),
            "The FFN writes are missing.": column(1000, 1007.1, 1077.3),
            "The head writes are missing.": column(1000, 1100.1, 1400.3),
            "Heads were averaged; their writes add up.": lambda got: _close(
                got, column(1000, 1000 + 7 / 3 + 100.1, 1000 + 77 / 3 + 400.3), 1e-6
            ),
            "The embedding is missing from the later states: every x^l still holds x^0.": column(1000, 107.1, 477.3),
            "Each state holds the writes of its own block only. The stream keeps everything written before.": column(
                1000, 1107.1, 1370.2
            ),
            "This is off by one: x^l must not hold what block l itself writes.": lambda got: (
                got.shape == right.shape and bool(got[0] != 1000)
            ),
        },
    )
    g = torch.Generator().manual_seed(0)
    for n_layers, n_heads, T, d in ((3, 2, 2, 2), (2, 3, 5, 4)):
        embedding, heads = (torch.randn(*shape, generator=g) for shape in ((T, d), (n_layers, n_heads, T, d)))
        b_O, ffn = (torch.randn(*shape, generator=g) for shape in ((n_layers, d), (n_layers, T, d)))
        x = [embedding]
        for layer in range(n_layers):
            x.append(x[-1] + b_O[layer] + ffn[layer] + sum(heads[layer, h] for h in range(n_heads)))
        square = torch.stack([x[k] + (b_O[:k, :, None].expand(-1, -1, d) - b_O[:k, None]).sum(0) for k in
                              range(n_layers + 1)]) if T == d else torch.empty(0)  # fmt: skip
        yield Probe(
            tried=f"random writes: {n_layers} layers, {n_heads} heads, {T} tokens, d = {d}",
            args=(embedding, heads, b_O, ffn),
            expected=torch.stack(x),
            diagnose={
                "b_O was added along the tokens instead of along d. It is one vector [d] for all tokens.": square,
            },
        )


# --- 5. the final norm -----------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, gain: Tensor, bias: Tensor, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * gain + bias over the last axis: x [..., d], gain and bias [d] -> [..., d]."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt() * gain + bias


@exercise(
    "residual.layer_norm",
    reference=layer_norm,
    hints=(
        "Each token is treated by itself: its d numbers get mean 0 and standard deviation 1, then a gain and a bias "
        "per coordinate. Over which axis are mean and variance taken?",
        "Use keepdim=True, so that mean and variance keep an axis of size 1. The variance is the *mean* of the squared "
        "differences (divide by d, not d - 1), and eps is added to it before the square root.",
        "Sketch: subtract the mean over the last axis; divide by the square root of (mean of squares + eps); multiply "
        "by gain; add bias.",
    ),
    expected="A tensor shaped like x. Before gain and bias every token has mean 0 and mean square 1 (up to eps).",
)
def _check_layer_norm() -> Iterator[Probe]:
    one, zero = torch.ones(4), torch.zeros(4)
    x = torch.tensor([[1.0, 3.0, 5.0, 7.0]])  # mean 4, variance 5
    centred = torch.tensor([[-3.0, -1.0, 1.0, 3.0]])
    yield Probe(
        tried="x = [[1, 3, 5, 7]] (mean 4, variance 5), gain 1, bias 0, eps = 1e-5",
        args=(x, one, zero),
        expected=centred / math.sqrt(5),
        diagnose={
            "The variance was divided by d - 1 (torch's default). A LayerNorm divides by d: unbiased=False, or the "
            "mean of the squares.": centred / math.sqrt(20 / 3),
            "The mean was not subtracted. This is an RMSNorm, as Llama has it; a LayerNorm centres first.": x
            / math.sqrt(21),
            "x was divided by the standard deviation, but not centred.": x / math.sqrt(5),
            "The division is by the variance; take its square root.": centred / 5,
            "x was centred, but not divided by its standard deviation.": centred,
            "x was scaled to length 1. A LayerNorm gives mean square 1, so length sqrt(d).": centred / centred.norm(),
            "Statistics were taken over the tokens (axis 0). Use the last axis: each token by itself.": lambda got: (
                bool((got.abs() < 1e-3).all() | ~got.isfinite().all())
            ),
        },
    )
    gain, bias = torch.tensor([1.0, 2.0, 0.5, -1.0]), torch.tensor([0.0, 10.0, 0.0, 5.0])
    right = centred / math.sqrt(5) * gain + bias
    yield Probe(
        tried="the same x with gain [1, 2, 0.5, -1] and bias [0, 10, 0, 5]",
        args=(x, gain, bias),
        expected=right,
        diagnose={
            "The bias is missing.": right - bias,
            "The gain is missing.": centred / math.sqrt(5) + bias,
            "The bias was multiplied by the gain: first the gain, then the bias.": (centred / math.sqrt(5) + bias)
            * gain,
            "The gain was put on x before its mean and variance were taken.": lambda got: _close(
                got, _standard(x * gain) + bias
            ),
            "1 was added to the gain. Gemma's norms do that, these do not.": right + centred / math.sqrt(5),
            "The gain was applied before the mean was taken away.": lambda got: _close(
                got, (x * gain - (x * gain).mean()) / math.sqrt(5) + bias
            ),
        },
    )
    yield Probe(
        tried="x = [[1, 3, 5, 7]] with a large eps = 4",
        args=(x, one, zero, 4.0),
        expected=centred / 3,
        means="centred x divided by sqrt(5 + 4) = 3",
        diagnose={
            "eps was added outside the square root. It belongs to the variance.": centred / (math.sqrt(5) + 4),
            "eps was not used, or is fixed inside the function.": lambda got: _close(got, centred / math.sqrt(5), 1e-3),
            "eps was squared, or its root was taken.": lambda got: (
                _close(got, centred / math.sqrt(21)) or _close(got, centred / math.sqrt(7))
            ),
        },
    )
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, generator=g) * 3 + 1
    yield Probe(
        tried="2 prompts of 3 tokens, random",
        args=(x, gain, bias),
        expected=torch.stack([torch.stack([_standard(token) * gain + bias for token in row]) for row in x]),
        diagnose={
            "One mean and variance were used for all tokens. Each token has its own: the last axis only.": lambda got: (
                _close(got, (x - x.mean()) / x.var(unbiased=False).sqrt() * gain + bias)
            ),
            "The statistics were taken over axis 1, the tokens. Use the last axis.": lambda got: _close(
                got, (x - x.mean(1, True)) / x.var(1, False, keepdim=True).sqrt() * gain + bias
            ),
            "The statistics were taken over axis 0, the prompts. Use the last axis.": lambda got: _close(
                got, (x - x.mean(0)) / x.var(0, False).sqrt() * gain + bias
            ),
        },
    )


def _standard(v: Tensor) -> Tensor:
    """All numbers of v together to mean 0 and variance 1."""
    return (v - v.mean()) / (v.var(unbiased=False) + 1e-5).sqrt()


# --- 6. direct attribution -------------------------------------------------------------------------------------------


def attribution(writes: Tensor, gain: Tensor, bias: Tensor, direction: Tensor, eps: float = 1e-5) -> Tensor:
    """What each write adds to layer_norm(x) . direction, where x is the sum of the writes.

    writes [n, B, d]; gain, bias [d]; direction [B, d] -> [n + 1, B], the last row from the norm's bias.
    """
    x = writes.sum(0)
    scale = (x.var(-1, unbiased=False, keepdim=True) + eps).rsqrt()  # of the whole state, frozen
    centred = writes - writes.mean(-1, keepdim=True)
    values = (centred * scale * gain * direction).sum(-1)
    return torch.cat([values, (bias * direction).sum(-1)[None]])


@exercise(
    "residual.attribution",
    reference=attribution,
    hints=(
        "The norm does four things to x: subtract the mean, divide by a number, multiply by the gain, add the bias. "
        "Three of them can be done to each write by itself and still add up. Which one cannot, and what has to be "
        "shared?",
        "Compute the divisor sqrt(variance + eps) once, from x = the sum of all writes, one number for each prompt, "
        "and use it for every write. Centre each write by its own mean over d. The bias goes through no write: it "
        "makes a row of its own.",
        "Sketch: x = writes summed over axis 0; scale [B, 1] from the variance of x; (writes minus their mean) * scale "
        "* gain * direction, summed over the last axis, gives [n, B]; append the row bias . direction.",
    ),
    expected="A tensor [n + 1, B] whose sum over the first axis is exactly what the norm and the direction give for "
    "the whole state.",
)
def _check_attribution() -> Iterator[Probe | Callable]:
    writes = torch.tensor([[[4.0, 0.0, 0.0, 0.0]], [[0.0, 2.0, 4.0, 6.0]], [[-3.0, 1.0, 1.0, 1.0]]])
    # the sum is [1, 3, 5, 7]: mean 4, variance 5. With eps = 4 the divisor is 3.
    gain, bias = torch.tensor([1.0, 2.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 0.0, 2.0])
    direction = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    right = torch.tensor([[1 / 3], [1.0], [-1 / 3], [3.0]])
    x = writes.sum(0)
    centred = writes - writes.mean(-1, keepdim=True)

    def with_bias(values: Tensor) -> Tensor:
        return torch.cat([values, torch.tensor([[3.0]])])

    def dot(values: Tensor) -> Tensor:
        return (values * direction).sum(-1)

    own = centred / (writes.var(-1, unbiased=False, keepdim=True) + 4).sqrt() * gain
    rms = (x.pow(2).mean(-1, keepdim=True) + 4).rsqrt()
    yield Probe(
        tried="three writes with the sum [1, 3, 5, 7] (mean 4, variance 5), eps = 4, so that the divisor is 3; gain "
        "[1, 2, 1, 2], bias [1, 0, 0, 2], direction [1, 0, 0, 1]",
        args=(writes, gain, bias, direction, 4.0),
        expected=right,
        means="[[1/3], [1], [-1/3], [3]]: (write - its mean) / 3 * gain, times the direction; then bias . direction",
        diagnose={
            "Each write was divided by its own standard deviation. Then they do not add up to the logit. Take the "
            "scale of the whole state x once, and use it for all.": with_bias(dot(own)),
            "The norm was applied to each write as a whole (own scale, and the bias every time). Freeze the scale of "
            "x, and give the bias one row of its own.": lambda got: _close(got[:3], dot(own + bias)),
            "The row of the bias is missing: n writes give n + 1 rows.": right[:3],
            "The writes were not divided by the scale of x.": with_bias(dot(centred * gain)),
            "The writes were multiplied by the standard deviation. Divide by it.": with_bias(dot(centred * gain) * 3),
            "The writes were not centred. The norm subtracts the mean of x, and each write has its share in it.": (
                with_bias(dot(writes * gain) / 3)
            ),
            "The mean of the whole state was taken from every write. Centre each write by its own mean over d; these "
            "means add up to the mean of x.": with_bias(dot((writes - x.mean(-1, keepdim=True)) * gain) / 3),
            "The mean was taken over the writes (axis 0) instead of over d (the last axis).": with_bias(
                dot((writes - writes.mean(0)) * gain) / 3
            ),
            "The gain is missing.": with_bias(dot(centred) / 3),
            "The bias was scaled or multiplied by the gain. It is added after both.": lambda got: (
                _close(got[:3], right[:3]) and bool(got[3] != 3)
            ),
            "The scale is that of an RMSNorm: centre x before you take the mean of its squares.": with_bias(
                dot(centred * gain * rms)
            ),
            "The variance was divided by d - 1. A LayerNorm divides by d.": with_bias(
                dot(centred * gain) / math.sqrt(20 / 3 + 4)
            ),
            "eps was left out of the scale, or is fixed inside the function.": lambda got: _close(
                got, with_bias(dot(centred * gain) / math.sqrt(5)), 1e-3
            ),
        },
    )

    def random(n: int, B: int, d: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(n)
        return tuple(torch.randn(*shape, generator=g) for shape in ((n, B, d), (d,), (d,), (B, d)))

    writes, gain, bias, direction = random(4, 3, 5)
    normed = torch.nn.functional.layer_norm(writes.sum(0), (5,), gain, bias)
    total = (normed * direction).sum(-1)
    yield Probe(
        tried="4 random writes, 3 prompts, d = 5: the rows summed, against torch's own layer_norm of the whole state",
        run=lambda answer: answer(writes, gain, bias, direction).sum(0),
        expected=total,
        tolerance=1e-3,
        diagnose={
            "One scale was used for all prompts. Every prompt has a state, and a scale, of its own: keepdim=True over "
            "the last axis.": lambda got: got.shape == total.shape,
        },
    )

    def adding_up(answer: Callable) -> None:
        """one write split into two halves"""
        writes, gain, bias, direction = random(3, 2, 6)
        halves = torch.cat([writes[:1] / 2, writes[:1] / 2, writes[1:]])
        whole, split = answer(writes, gain, bias, direction), answer(halves, gain, bias, direction)
        if not (_close(split[0] + split[1], whole[0], 1e-3) and _close(split[2:], whole[1:], 1e-3)):
            raise NotYet(
                answer.tried,
                expected="the halves get half each, and the other rows stay: how writes are cut must not matter",
                likely="The scale depends on how the state is cut into writes. Take it from their sum.",
            )

    yield adding_up


# --- 7. read one component's message ---------------------------------------------------------------------------------


def read_message(states: Tensor, mean_state: Tensor, codes: Tensor) -> Tensor:
    """Which of K messages each state holds: states [B, d], mean_state [d], codes [K, d] -> ids [B].

    The code nearest to the state, after the mean state and the mean code have been taken away.
    """
    return torch.cdist(states - mean_state, codes - codes.mean(0)).argmin(-1)


@exercise(
    "residual.read_message",
    reference=read_message,
    hints=(
        "A head writes one vector per message, its code. What all its codes share says only that the head wrote, and "
        "what all states share comes from everybody. Which part tells two messages apart?",
        "Take the mean state away from each state, and the mean code from each code. Then ask which code is nearest: "
        "`torch.cdist(a, b)` gives all distances between the rows of a [B, d] and b [K, d].",
        "Sketch: centre states with mean_state, and codes with their mean over axis 0; distances [B, K]; argmin over "
        "the last axis.",
    ),
    expected="A tensor of B integers, from 0 to K-1.",
)
def _check_read_message() -> Iterator[Probe]:
    codes = torch.tensor([[10.0, 12.0, 10.0], [20.0, 6.0, 8.0], [22.0, 6.0, 6.0]])
    mean_state, message = torch.tensor([30.0, -20.0, 10.0]), torch.tensor([2, 2, 2, 0, 1])
    x = mean_state + codes[message] - codes.mean(0)
    near = torch.cdist(x - mean_state, codes - codes.mean(0))
    yield Probe(
        tried="3 codes, and 5 states that hold the messages 2, 2, 2, 0, 1 on top of a mean state",
        args=(x, mean_state, codes),
        expected=message,
        diagnose={
            "The mean state was not taken away. What all states share then decides.": lambda got: (
                bool((got == torch.cdist(x, codes - codes.mean(0)).argmin(-1)).all())
                or bool((got == torch.cdist(x, codes).argmin(-1)).all())
            ),
            "The codes were not centred. Their common part, the mean code, is no message.": torch.cdist(
                x - mean_state, codes
            ).argmin(-1),
            "Each code was centred by its own mean over d. Take the mean over the codes (axis 0).": torch.cdist(
                x - mean_state, codes - codes.mean(1, keepdim=True)
            ).argmin(-1),
            "This is the code farthest away.": near.argmax(-1),
            "The dot product prefers loud codes. Take the nearest code.": (
                (x - mean_state) @ (codes - codes.mean(0)).T
            ).argmax(-1),
            "The distances came back; return the index of the smallest.": lambda got: got.dim() == 2,
            "The nearest *state* for each code was taken (axis 0). For each state, take the nearest code: the last "
            "axis.": lambda got: got.shape == (3,),
            "The states were centred by their own mean. Use mean_state, which comes from other prompts.": torch.cdist(
                x - x.mean(0), codes - codes.mean(0)
            ).argmin(-1),
        },
    )
    codes, states = torch.tensor([[-4.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), torch.tensor([[0.8, 0.1], [2.9, 0.1]])
    yield Probe(
        tried="two codes in one direction, one short and one long: codes [-4, 0], [1, 0], [3, 0], mean state 0, "
        "states [0.8, 0.1] and [2.9, 0.1]",
        args=(states, torch.zeros(2), codes),
        expected=torch.tensor([1, 2]),
        diagnose={
            "The cosine sees directions only, so it cannot tell a short code from a long one. Take the smallest "
            "distance.": lambda got: bool(got[0] == got[1]),
        },
    )
    g = torch.Generator().manual_seed(0)
    K, d, B = 6, 64, 50
    codes = torch.randn(K, d, generator=g) * torch.arange(1, K + 1)[:, None] + 5 * torch.randn(d, generator=g)
    mean_state, message = 8 * torch.randn(d, generator=g), torch.arange(B) % K
    states = mean_state + codes[message] - codes.mean(0) + 0.2 * torch.randn(B, d, generator=g)
    yield Probe(
        tried="50 states of size 64 with a little noise from other writers; 6 codes, some quiet and some loud",
        args=(states, mean_state, codes),
        expected=message,
        diagnose={
            "The codes or the states were not centred.": lambda got: got.shape == (B,) and len(set(got.tolist())) < 3,
        },
    )
