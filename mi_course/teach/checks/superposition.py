"""Chapter 04, superposition and sparse autoencoders: checks of its exercises.

The functions without an underscore are the references that a chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise


def _draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- 1. how many dimensions a feature has ----------------------------------------------------------------------------


@exercise(
    "superposition.feature_dimensions",
    reference="mi_course.objects.superposition:feature_dimensions",
    hints=(
        "A feature that nobody crosses has a dimension of its own. Which numbers say how much the directions of the "
        "other features point along the direction of feature i?",
        "Only one side of the dot product is scaled to length 1: the direction of feature i, along which you measure. "
        "The others keep their length, since a feature that is hardly stored takes hardly any room. Feature i is "
        "itself one of the terms of the sum.",
        "Sketch: norms of the columns [n]; unit columns = W / norms; a matrix [n, n] of dot products, unit columns "
        "(transposed) with W; square it, sum over the last axis; return norms squared / that sum, and 0 where the norm "
        "is 0.",
    ),
    expected="A number from 0 to 1 for each feature: 1 for a dimension of its own, 1/2 in an antipodal pair, 0 when it "
    "is not stored.",
)
def _check_feature_dimensions() -> Iterator[Probe]:
    yield Probe(
        tried="two features on one line, W = [[2, -1]]",
        args=(torch.tensor([[2.0, -1.0]]),),
        expected=torch.tensor([0.8, 0.2]),
        means="[4 / (4 + 1), 1 / (4 + 1)] = [0.8, 0.2]: they share one dimension, the longer one has more of it",
        diagnose={
            "No direction was scaled to length 1. Divide column i by its length before taking its dot products.": (
                torch.tensor([0.2, 0.2])
            ),
            "Both sides of the dot product were scaled to length 1. Only column i is; the others count with their "
            "length.": torch.tensor([2.0, 0.5]),
            "The dot products were not squared, so that they are not in the units of |w_i|^2.": lambda got: any(
                torch.allclose(got, torch.tensor(wrong)) for wrong in ([4 / 3, 1 / 3], [4.0, -1.0])
            ),
            "The length above the line is not squared.": torch.tensor([0.4, 0.2]),
            "Feature i itself is missing from the sum over j. It belongs there: a feature alone has 4 / 4 = 1.": (
                torch.tensor([4.0, 0.25])
            ),
            "The sum runs over the wrong axis: fix feature i, whose direction has length 1, and sum over all j.": (
                torch.tensor([0.5, 0.5])
            ),
            "This is a single number; each feature has its own. Sum over j only.": lambda got: got.numel() == 1,
        },
    )
    pentagon = torch.arange(5) * 2 * math.pi / 5
    pentagon = 1.1 * torch.stack([pentagon.cos(), pentagon.sin()])
    yield Probe(
        tried="five features in two dimensions, W [2, 5] with its columns at the corners of a pentagon",
        args=(pentagon,),
        expected=torch.full((5,), 0.4),
        means="2/5 for each: five features share two dimensions equally",
        diagnose={
            "There are five features, the columns of W. You took its rows, the dimensions.": lambda got: (
                got.shape == (2,)
            ),
        },
    )
    yield Probe(
        tried="W = [[3, 0.5, 0], [0, 0.5, 0]]: a long feature, a short one near it, and one that is not stored",
        args=(torch.tensor([[3.0, 0.5, 0.0], [0.0, 0.5, 0.0]]),),
        expected=torch.tensor([9 / 9.25, 0.5 / 5.0, 0.0]),
        means="[0.973, 0.1, 0]",
        diagnose={
            "The feature that is not stored gives 0 / 0. Its share of a dimension is 0: keep the division away from "
            "zero (clamp_min), or use torch.where.": lambda got: bool(got.isnan().any()),
            "Only directions were compared. The short feature barely disturbs the long one: the others keep their "
            "length.": lambda got: got[0] < 0.8,
        },
    )
    yield Probe(
        tried="the two features from before, a hundred times shorter: W = [[0.02, -0.01]]",
        args=(torch.tensor([[0.02, -0.01]]),),
        expected=torch.tensor([0.8, 0.2]),
        means="[0.8, 0.2] again: the share of a dimension does not depend on a common scale",
        diagnose={
            "The number that keeps the division away from zero is too large: try 1e-9.": lambda got: bool(
                (got < torch.tensor([0.8, 0.2])).all()
            ),
        },
    )
    square = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    yield Probe(
        tried="W = [[1, 1], [0, 1]], as many features as dimensions",
        args=(square,),
        expected=torch.tensor([1 / 2, 4 / 5]),
        means="column 0 is [1, 0], column 1 is [1, 1]: 1 / (1 + 1) and 2 / (1/2 + 2)",
        diagnose={
            "You took the rows of W. The direction of feature i is column i.": torch.tensor([4 / 5, 1 / 2]),
        },
    )


# --- 2. encode and decode --------------------------------------------------------------------------------------------


def encode_decode(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 7 and 8 with a ReLU, b_dec subtracted first: states x [..., d] -> (a [..., m], x^ [..., d])."""
    a = torch.relu((x - b_dec) @ W_enc + b_enc)
    return a, a @ W_dec + b_dec


@exercise(
    "superposition.encode_decode",
    reference=encode_decode,
    hints=(
        "Two lines, one for each formula. Write the shapes under every symbol: which product takes [..., d] to "
        "[..., m], and which takes it back?",
        "`b_dec` appears twice: it is taken away before encoding and put back after decoding. The ReLU comes last in "
        "the first line. States are rows here, so the matrix stands on the right.",
        "Sketch: z = (x - b_dec) times W_enc, plus b_enc; a = z with negative numbers set to 0; x^ = a times W_dec, "
        "plus b_dec; return the pair (a, x^).",
    ),
    expected="A pair: activations [..., m], none below 0, and reconstructions [..., d].",
)
def _check_encode_decode() -> Iterator[Probe]:
    x, b_dec = torch.tensor([[3.0, 1.0]]), torch.tensor([1.0, 2.0])
    W_enc, b_enc = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 2.0]]), torch.tensor([-0.5, 3.0, 0.0])
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    a = torch.tensor([[1.5, 2.0, 0.0]])

    def wrong_activations(wrong: Tensor) -> Callable:
        return lambda got: torch.allclose(got[0], wrong)

    yield Probe(
        tried="one state, d = 2, m = 3: x - b_dec = [2, -1], so z = [1.5, 2, -4]",
        args=(x, W_enc, b_enc, W_dec, b_dec),
        expected=(a, torch.tensor([[2.5, 4.0]])),
        means="a = [1.5, 2, 0] and x^ = 1.5 f_0 + 2 f_1 + b_dec = [2.5, 4]",
        diagnose={
            "b_dec was not taken away before encoding.": wrong_activations((x @ W_enc + b_enc).relu()),
            "The ReLU is missing: an activation came out below 0.": lambda got: bool((got[0] < 0).any()),
            "b_enc is missing, or it was added after the ReLU.": lambda got: (
                torch.allclose(got[0], torch.tensor([[2.0, 0.0, 0.0]]))
                or torch.allclose(got[0], torch.tensor([[1.5, 3.0, 0.0]]))
            ),
            "b_dec was added to x instead of taken away.": wrong_activations(((x + b_dec) @ W_enc + b_enc).relu()),
            "b_enc was subtracted; the formula adds it.": wrong_activations(((x - b_dec) @ W_enc - b_enc).relu()),
            "b_dec is missing in the reconstruction: what was taken away at the start must come back.": (
                a,
                torch.tensor([[1.5, 2.0]]),
            ),
            "b_dec was subtracted at the end. It was taken away before encoding, so now it must be added.": (
                a,
                torch.tensor([[0.5, 0.0]]),
            ),
            "The pair is in the other order: first the activations, then the reconstruction.": lambda got: (
                got[0].shape == (1, 2) and got[1].shape == (1, 3)
            ),
        },
    )
    square = (_draw(3, 3, seed=1), _draw(3, 3, seed=2), _draw(3, seed=3), _draw(3, 3, seed=4), _draw(3, seed=5))
    x, W_enc, b_enc, W_dec, b_dec = square
    right = _by_loops(*square)
    yield Probe(
        tried="three states, d = m = 3: every product fits, also the wrong ones",
        args=square,
        expected=right,
        means="x^ as the sum of a_j times row j of W_dec, plus b_dec",
        diagnose={
            "W_dec was transposed: you used its columns. Feature f_j is row j of W_dec.": lambda got: torch.allclose(
                got[1], right[0] @ W_dec.T + b_dec, atol=1e-4
            ),
            "W_enc was transposed. Its shape is [d, m]: column j reads feature j.": lambda got: torch.allclose(
                got[0], _by_loops(x, W_enc.T, b_enc, W_dec, b_dec)[0], atol=1e-4
            ),
        },
    )
    batch = (_draw(2, 5, 4, seed=6), _draw(4, 7, seed=7), _draw(7, seed=8), _draw(7, 4, seed=9), _draw(4, seed=10))
    yield Probe(
        tried="x of shape [2, 5, 4]: two prompts of five tokens, m = 7",
        args=batch,
        expected=_by_loops(*batch),
        diagnose={},
    )


def _by_loops(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> tuple[Tensor, Tensor]:
    """The same, feature by feature: a second way to the same numbers."""
    a = [((x - b_dec) * W_enc[:, j]).sum(-1) + b_enc[j] for j in range(len(b_enc))]
    a = [torch.where(z > 0, z, torch.zeros_like(z)) for z in a]
    made = b_dec + sum(z[..., None] * W_dec[j] for j, z in enumerate(a))
    return torch.stack(a, -1), made


# --- 3. the loss -----------------------------------------------------------------------------------------------------


def sae_loss(x: Tensor, x_hat: Tensor, a: Tensor, W_dec: Tensor, l1: float) -> Tensor:
    """Mean over states of |x - x^|^2 + l1 * sum_j a_j |f_j|: Eq. 9 with the lengths of the features in it."""
    return (x - x_hat).pow(2).sum(-1).mean() + l1 * (a * W_dec.norm(dim=1)).sum(-1).mean()


@exercise(
    "superposition.sae_loss",
    reference=sae_loss,
    hints=(
        "Two terms for each state: how far off the reconstruction is, and how much activity it took. What would an SAE "
        "do to the second term if it could make features longer for free?",
        "Squared error: sum over the d numbers of a state, mean over the states. Activity: each a_j times the length "
        "of its feature, row j of W_dec; sum over the m features, mean over the states. `l1` weighs the second.",
        "Sketch: error = (x - x^) squared, summed over the last axis; lengths = norms of the rows of W_dec, [m]; "
        "activity = (a * lengths) summed over the last axis; return the mean of error + l1 * activity.",
    ),
    expected="One number. It stays the same when features are made longer and activations smaller in proportion.",
)
def _check_sae_loss() -> Iterator[Probe | Callable]:
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    x_hat = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    a = torch.tensor([[2.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    unit = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    yield Probe(
        tried="two states with squared errors 4 and 9, activity 3 and 1, rows of length 1, l1 = 0.5",
        args=(x, x_hat, a, unit, 0.5),
        expected=torch.tensor(7.5),
        means="mean of 4 + 0.5 * 3 and 9 + 0.5 * 1 = 7.5",
        diagnose={
            "The squared error was averaged over the dimensions as well. Sum over the d numbers of a state, and take "
            "the mean over the states.": torch.tensor(13 / 4 + 1.0),
            "The activity was averaged over the features. Sum over the m features: what counts is the total.": (
                torch.tensor(6.5 + 0.5 * 4 / 6)
            ),
            "All is averaged over every axis. Sum within a state (over d, over m) and average over the states.": (
                torch.tensor(13 / 4 + 0.5 * 4 / 6)
            ),
            "This is the sum over the states; take the mean, so that the loss does not depend on the batch size.": (
                torch.tensor(15.0)
            ),
            "l1 is not used.": torch.tensor(6.5 + 2.0),
            "The error is a distance here, not its square.": torch.tensor(2.5 + 1.0),
            "The sign of the penalty is turned round: activity must cost.": torch.tensor(5.5),
            "There is one loss for each state here; take the mean over the states.": lambda got: got.shape == (2,),
            "The activations were squared. The penalty is the sum of a_j itself: squares would spread activity over "
            "many small features.": torch.tensor(6.5 + 0.5 * 3.0),
        },
    )
    long = unit * torch.tensor([[3.0], [1.0], [2.0]])
    yield Probe(
        tried="the same, with rows of W_dec of length 3, 1 and 2: activity 3*2 + 2*1 = 8 and 3*1 = 3",
        args=(x, x_hat, a, long, 0.5),
        expected=torch.tensor(6.5 + 0.5 * 5.5),
        diagnose={
            "The lengths of the features do not count. Then the penalty can be made as small as you like by long "
            "features and small activations: multiply a_j by |f_j|.": torch.tensor(7.5),
            "The squared lengths were used. Scaled activations a_j / c and features c f_j leave a_j |f_j| unchanged, "
            "not a_j |f_j|^2.": torch.tensor(6.5 + 0.5 * (9 * 2 + 4 + 9) / 2),
            "The activations were divided by the lengths. A long feature makes activations small: multiply.": (
                torch.tensor(6.5 + 0.5 * (2 / 3 + 1 / 2 + 1 / 3) / 2)
            ),
            "One length was used for all features (the norm of the whole matrix, or a mean).": lambda got: any(
                torch.allclose(got, 6.5 + 0.5 * 2 * size) for size in (long.norm(), long.norm(dim=1).mean())
            ),
        },
    )
    square = torch.tensor([[1.0, 2.0], [0.0, 1.0]])
    yield Probe(
        tried="as many features as dimensions: W_dec = [[1, 2], [0, 1]], rows of length 2.236 and 1, a perfect "
        "reconstruction and a = [1, 0]",
        args=(x, x, torch.tensor([[1.0, 0.0]]).expand(2, 2), square, 1.0),
        expected=torch.tensor(math.sqrt(5)),
        diagnose={
            "These are the lengths of the columns of W_dec. Features are its rows.": torch.tensor(1.0),
        },
    )

    def longer_features(answer: Callable) -> None:
        """features made 7 times longer and activations 7 times smaller: the same function"""
        x, a, W_dec = _draw(6, 4, seed=1), _draw(6, 5, seed=2).relu(), _draw(5, 4, seed=3)
        x_hat = a @ W_dec
        plain, scaled = answer(x, x_hat, a, W_dec, 0.3), answer(x, x_hat, a / 7, W_dec * 7, 0.3)
        if not torch.allclose(plain, scaled, rtol=1e-4):
            raise NotYet(
                answer.tried,
                expected=f"the same loss, {plain.item():.4f}",
                got=f"{scaled.item():.4f}",
                likely="The penalty depends on how a feature's size is split between a_j and f_j. Multiply a_j by "
                "|f_j|.",
            )

    yield longer_features


# --- 4. TopK ---------------------------------------------------------------------------------------------------------


def top_k(z: Tensor, k: int) -> Tensor:
    """The k largest of relu(z) in each state, the others set to 0: [..., m] -> [..., m]."""
    top = z.relu().topk(k, dim=-1)
    return torch.zeros_like(z).scatter(-1, top.indices, top.values)


@exercise(
    "superposition.top_k",
    reference=top_k,
    hints=(
        "Each state may have k active features, and these must stay in their own places. What should happen to a state "
        "with fewer than k numbers above 0?",
        "`z.topk(k, dim=-1)` gives values and indices for each state. `torch.zeros_like(z).scatter(-1, indices, "
        "values)` writes values into zeros at these indices. A negative activation is never allowed.",
        "Sketch: apply the ReLU; take the k largest over the last axis, values and indices; scatter the values into "
        "zeros of the shape of z; return that.",
    ),
    expected="A tensor like z with at most k numbers above 0 in each state, and 0 elsewhere.",
)
def _check_top_k() -> Iterator[Probe]:
    z = torch.tensor([[1.0, 5.0, -7.0, 2.0], [0.5, -1.0, 0.25, -2.0], [3.0, 0.9, 1.5, 0.1]])
    right = torch.tensor([[0.0, 5.0, 0.0, 2.0], [0.5, 0.0, 0.25, 0.0], [3.0, 0.0, 1.5, 0.0]])
    yield Probe(
        tried="k = 2, z = [[1, 5, -7, 2], [0.5, -1, 0.25, -2], [3, 0.9, 1.5, 0.1]]",
        args=(z, 2),
        expected=right,
        diagnose={
            "The largest absolute values were kept, also a negative one. Features are on or off: only positive numbers "
            "count.": lambda got: bool((got[0, 2] != 0).item()),
            "These are the k values alone. Put them back in their places among m numbers: a feature is known by its "
            "index.": lambda got: got.shape == (3, 2),
            "These are the indices of the features, not their activations.": lambda got: not got.is_floating_point(),
            "The largest of the whole batch were kept (that is BatchTopK). Each state has its own k.": lambda got: bool(
                (got[1] == 0).all()
            ),
            "The k largest over the states were kept. Take the largest over the last axis, the features.": (
                lambda got: bool(got[1, 0] == 0)
            ),
            "Every activation that was kept is 1. The activation itself is needed for decoding.": (right > 0).float(),
            "One feature too many was kept: the k-th largest is the last that stays.": lambda got: bool(
                ((got > 0).sum(-1) > 2).any()
            ),
            "The k-th largest itself was dropped: keep what is at least as large as it, not only what is larger.": (
                lambda got: bool((got[0] > 0).sum() < 2)
            ),
            "The k smallest were kept.": lambda got: bool((got[0] < 0).any()),
        },
    )
    yield Probe(
        tried="k = 3 and a state with a single positive number, z = [[-1, 4, -3, -2]]",
        args=(torch.tensor([[-1.0, 4.0, -3.0, -2.0]]), 3),
        expected=torch.tensor([[0.0, 4.0, 0.0, 0.0]]),
        diagnose={
            "Negative numbers were kept because there were not k positive ones. Apply the ReLU.": lambda got: bool(
                (got < 0).any()
            ),
        },
    )
    batch = _draw(2, 5, 8)
    order = batch.argsort(-1, descending=True).argsort(-1)
    yield Probe(
        tried="z of shape [2, 5, 8], k = 3",
        args=(batch, 3),
        expected=torch.where((order < 3) & (batch > 0), batch, torch.zeros(())),
        diagnose={
            "The k largest were taken over an axis other than the last.": lambda got: bool(
                ((got > 0).sum(-1) > 3).any()
            ),
        },
    )


# --- 5. what every report must say -----------------------------------------------------------------------------------


def quality(x: Tensor, x_hat: Tensor, a: Tensor) -> dict[str, float]:
    """fvu, l0 and dead of an SAE on states x [N, d], with reconstructions x^ [N, d] and activations a [N, m]."""
    fvu = (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    l0 = (a > 0).sum(-1).float().mean()
    dead = 1 - (a > 0).any(0).float().mean()
    return {"fvu": fvu.item(), "l0": l0.item(), "dead": dead.item()}


@exercise(
    "superposition.quality",
    reference=quality,
    hints=(
        "Three questions. How much of what varies is lost? How many features does a state use? How many features does "
        "no state use? The first compares with the simplest guess: the mean state for everything.",
        "fvu divides the summed squared error by the summed squared distance from the mean state (`x.mean(0)`, one "
        "number per dimension). l0 counts over the features of a state, then averages over states. dead looks at "
        "each feature over all states.",
        "Sketch: on = a > 0. fvu = sum of (x - x^)^2 divided by sum of (x - mean state)^2; l0 = mean over states of "
        "the sum of `on` over features; dead = share of features for which `on` is never true. A dictionary of three "
        "numbers.",
    ),
    expected="Three numbers: fvu is 0 for a perfect reconstruction and 1 for the mean state; l0 is a count; dead is a "
    "share.",
)
def _check_quality() -> Iterator[Probe | Callable]:
    x = torch.tensor([[10.0, 0.0], [10.0, 4.0], [14.0, 0.0], [14.0, 4.0]])
    x_hat = x + torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    a = torch.tensor(
        [[0.5, 0.0, 0.0, 2.0, 0.0], [3.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.5, 1.0, 0.0]]
    )
    right = {"fvu": 4 / 32, "l0": 7 / 4, "dead": 2 / 5}

    def with_(**wrong: float) -> Callable:
        return lambda got: all(abs(float(got[key]) - value) < 1e-4 for key, value in wrong.items())

    yield Probe(
        tried="4 states around [12, 2] with squared error 1 each, and m = 5 features of which 2 never fire",
        args=(x, x_hat, a),
        expected=right,
        means="fvu = 4/32 = 0.125, l0 = 7/4 = 1.75, dead = 2/5 = 0.4",
        diagnose={
            "fvu: the squared size of x was taken, not its spread. States far from 0 then look well explained whatever "
            "the SAE does: subtract the mean state.": with_(fvu=4 / x.pow(2).sum().item()),
            "fvu: the mean over all numbers was subtracted. Each dimension has its own mean: x.mean(0).": with_(
                fvu=4 / (x - x.mean()).pow(2).sum().item()
            ),
            "fvu: this is the share that is explained; unexplained is 1 minus that.": with_(fvu=1 - 4 / 32),
            "fvu: this is the squared error without the comparison to the spread of x.": lambda got: any(
                abs(float(got["fvu"]) - wrong) < 1e-4 for wrong in (4.0, 1.0, 0.5)
            ),
            "fvu: the square root was taken. It is a share of variance, so squares stay squares.": with_(
                fvu=math.sqrt(1 / 8)
            ),
            "l0 is a count of active features in a state, not the share of them.": with_(l0=7 / 20),
            "l0 counts features above 0; you summed their activations, which is l1.": with_(l0=9 / 4),
            "l0: count over the features of a state (last axis) and average over the states.": with_(l0=7 / 5),
            "l0 is the total over all states; average over the states.": with_(l0=7),
            "dead: this is the share of zeros. A feature is dead when it is 0 in every state.": with_(dead=13 / 20),
            "dead: this is the share of features that are alive.": with_(dead=3 / 5),
            "dead is a share of the m features, not their number.": with_(dead=2),
            "dead: the test runs over the features of a state. Look at each feature (column) over all states.": with_(
                dead=0
            ),
            "dead: features that do not fire in every state were called dead. A rare feature is not dead.": with_(
                dead=1
            ),
        },
    )

    def the_mean_state(answer: Callable) -> None:
        """every state reconstructed as the mean state"""
        x = _draw(50, 6) * torch.tensor([1.0, 5.0, 0.1, 1.0, 1.0, 2.0]) + 3
        got = float(answer(x, x.mean(0).expand_as(x), torch.zeros(50, 4))["fvu"])
        if abs(got - 1) > 1e-3:
            raise NotYet(
                answer.tried,
                expected="fvu = 1: nothing of what varies is explained",
                got=f"fvu = {got:.4g}",
                likely="Sum over all states and dimensions first, and divide then: a mean of ratios lets quiet "
                "dimensions or small states count as much as loud ones.",
            )

    yield the_mean_state
    g = torch.Generator().manual_seed(1)
    x = torch.randn(40, 3, generator=g) * torch.tensor([1.0, 10.0, 0.1])
    x_hat = x + 0.3 * torch.randn(40, 3, generator=g)
    a = (torch.rand(40, 9, generator=g) < 0.05).float()
    variance = sum((x[:, i] - x[:, i].mean()).pow(2).sum() for i in range(3))
    yield Probe(
        tried="40 random states in 3 dimensions, one of them 100 times louder than another",
        args=(x, x_hat, a),
        expected={
            "fvu": ((x - x_hat) ** 2).sum().item() / variance.item(),
            "l0": a.sum().item() / 40,
            "dead": sum(not any(column) for column in a.T.tolist()) / 9,
        },
        diagnose={
            "fvu: a mean of ratios lets the quiet dimension count as much as the loud one. Sum first, then divide.": (
                lambda got: float(got["fvu"]) > 0.1
            ),
        },
    )


# --- 6. clamp a feature, keep the error ------------------------------------------------------------------------------


def clamp_feature(x: Tensor, a: Tensor, W_dec: Tensor, b_dec: Tensor, j: int, value: float) -> Tensor:
    """The state with feature j set to `value` and all else as it was, the SAE's error included: [..., d]."""
    return x + (value - a[..., j, None]) * W_dec[j]


@exercise(
    "superposition.clamp_feature",
    reference=clamp_feature,
    hints=(
        "A state is its reconstruction plus an error: x = x^ + e. Which of the two does the clamp change, and what "
        "should happen to the other?",
        "Make a copy of the activations with feature j set to `value`. Decode it, and add the error that the SAE made "
        "on the unchanged state. (Or work out what is left when you subtract: only feature j moves.)",
        "Sketch: error = x - (a times W_dec + b_dec); changed = a.clone(), with changed[..., j] = value; return "
        "changed times W_dec + b_dec + error.",
    ),
    expected="A tensor like x that differs from x along f_j only, and not at all where a_j was `value` already.",
)
def _check_clamp_feature() -> Iterator[Probe | Callable]:
    W_dec, b_dec = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8]]), torch.tensor([0.0, 1.0, 0.0])
    a = torch.tensor([[2.0, 5.0]])
    x = torch.tensor([[2.5, 4.0, 4.0]])  # reconstruction [2, 4, 4], error [0.5, 0, 0]
    right = torch.tensor([[2.5, 4.0 + 0.6, 4.0 + 0.8]])
    yield Probe(
        tried="x = [2.5, 4, 4], whose reconstruction is [2, 4, 4]; feature 1 = [0, 0.6, 0.8] from 5 to 6",
        args=(x, a, W_dec, b_dec, 1, 6.0),
        expected=right,
        means="[2.5, 4.6, 4.8]: one more unit of f_1, and the error [0.5, 0, 0] still there",
        diagnose={
            "The error term is lost: this is the reconstruction with the clamp. Whatever the SAE misses disappears "
            "too, and would be taken for an effect of the feature.": right - torch.tensor([[0.5, 0.0, 0.0]]),
            "The error was counted twice, or the new value was added to x without taking the reconstruction away.": (
                lambda got: (
                    torch.allclose(got, right + torch.tensor([[0.5, 0.0, 0.0]]))
                    or torch.allclose(got, right + torch.tensor([[2.0, 4.0, 4.0]]))
                )
            ),
            "`value` was added to the activation. To clamp is to set: the change is value - a_j.": torch.tensor(
                [[2.5, 4.0 + 3.6, 4.0 + 4.8]]
            ),
            "The sign is turned round: from 5 up to 6 is a step along + f_j.": torch.tensor([[2.5, 3.4, 3.2]]),
            "b_dec is missing in the reconstruction, so that it is counted as error or lost.": lambda got: (
                torch.allclose((got - right).abs(), torch.tensor([[0.0, 1.0, 0.0]]))
            ),
            "The activation was multiplied by `value`; a clamp sets it.": torch.tensor(
                [[2.5, 4.0 + 0.6 * 25, 4.0 + 0.8 * 25]]
            ),
            "Feature j was removed, but its new value was not added.": torch.tensor([[2.5, 1.0, 0.0]]),
        },
    )
    square, three = torch.nn.functional.normalize(_draw(3, 3, seed=1)), _draw(3, 3, seed=2)
    codes = _draw(3, 3, seed=3).relu()
    step = 1.5 - codes[:, 2]
    right = torch.stack([state + size * square[2] for state, size in zip(three, step)])
    yield Probe(
        tried="three states, d = m = 3, feature 2 set to 1.5",
        args=(three, codes, square, torch.zeros(3), 2, 1.5),
        expected=right,
        diagnose={
            "You used column j of W_dec. Feature f_j is row j.": torch.stack(
                [state + size * square[:, 2] for state, size in zip(three, step)]
            ),
            "The steps of the states [T] were multiplied with f_j [d] along the same axis; with T = d torch does not "
            "complain. Give them an axis of size 1 at the end.": three + step * square[2],
            "Only states where the feature was on were changed. A clamp sets it everywhere.": (
                lambda got: torch.allclose(got[codes[:, 2] == 0], three[codes[:, 2] == 0])
            ),
            "Row j of the activations (a state) was changed instead of column j (a feature).": lambda got: (
                torch.allclose(got[:2], three[:2])
            ),
        },
    )
    long = 3 * _draw(6, 4, seed=4)
    x, a = _draw(2, 5, 4, seed=5), _draw(2, 5, 6, seed=6).relu()
    yield Probe(
        tried="x of shape [2, 5, 4], m = 6, features that are not of length 1",
        args=(x, a, long, _draw(4, seed=7), 3, 0.0),
        expected=x - torch.einsum("bt,d->btd", a[..., 3], long[3]),
        diagnose={
            "f_j was scaled to length 1. The activation belongs to the feature at the length that it has.": (
                lambda got: torch.allclose(
                    got, x - torch.einsum("bt,d->btd", a[..., 3], long[3] / long[3].norm()), atol=1e-4
                )
            ),
        },
    )

    def nothing_to_do(answer: Callable) -> None:
        """a feature that already has this value everywhere"""
        a = _draw(3, 6, seed=8).relu()
        a[:, 1] = 2.0
        x = _draw(3, 4, seed=9)
        got = answer(x, a, long, _draw(4, seed=10), 1, 2.0)
        if not torch.allclose(got, x, atol=1e-4):
            raise NotYet(answer.tried, "x itself", likely="Something else than feature j changes.")

    yield nothing_to_do


# --- 7. absorption ---------------------------------------------------------------------------------------------------


def absorption_rate(latent: Tensor, parent_on: Tensor, child_on: Tensor) -> tuple[float, float]:
    """(P(latent silent | child on), P(latent silent | parent on, child off)), for the activation [N] of one latent."""
    silent = latent == 0
    alone = parent_on & ~child_on
    return silent[child_on].float().mean().item(), silent[alone].float().mean().item()


@exercise(
    "superposition.absorption_rate",
    reference=absorption_rate,
    hints=(
        "Two conditional probabilities, both about the same event: the latent is silent although the parent is on. "
        "Which states go into the denominator of each? A child that is on implies its parent.",
        "To condition on something is to keep only the states where it holds: `silent[child_on]`. The control must be "
        "states in which the parent is on and the child is off.",
        "Sketch: silent = latent == 0; first number = mean of silent over the states where child_on; second = mean of "
        "silent over the states where parent_on and not child_on; return both as numbers.",
    ),
    expected="Two shares. The first is far above the second when the child's latent has taken over the parent.",
)
def _check_absorption_rate() -> Iterator[Probe]:
    parent_on = torch.tensor([True] * 7 + [False] * 6)
    child_on = torch.tensor([True] * 3 + [False] * 10)
    latent = torch.tensor([0.0, 0.0, 0.7, 1.0, 1.2, 0.0, 0.9, 0.0, 0.0, 0.0, 0.3, 0.0, 0.0])

    def first(value: float) -> Callable:
        return lambda got: abs(float(got[0]) - value) < 1e-4

    def second(value: float) -> Callable:
        return lambda got: abs(float(got[1]) - value) < 1e-4

    yield Probe(
        tried="13 states: 3 with child and parent (latent silent in 2), 4 with the parent alone (silent in 1), 6 with "
        "neither (silent in 5)",
        args=(latent, parent_on, child_on),
        expected=(2 / 3, 1 / 4),
        means="(2/3, 1/4)",
        diagnose={
            "These are the shares of states in which the latent fires. Absorption is about silence.": (1 / 3, 3 / 4),
            "The two numbers are in the other order: first with the child, then alone.": (1 / 4, 2 / 3),
            "The condition and the event are swapped: P(child on | latent silent). Keep the states with the child, and "
            "ask how often the latent is silent.": first(2 / 8),
            "The first share was taken over all states. Divide by the number of states in which the child is on.": (
                first(2 / 13)
            ),
            "The first share was taken over the states with the parent on. Condition on the child.": first(2 / 7),
            "The first number looks at all states where the parent is on, with or without the child.": first(3 / 7),
            "The control includes the states with the child, where the latent is silent for the very reason that you "
            "measure. Take parent on and child off.": second(3 / 7),
            "The control includes states in which the parent is off: there the latent is right to be silent.": second(
                6 / 10
            ),
            "The control looks at states without parent and child. There silence is right.": second(5 / 6),
            "The second share was taken over all states. Divide by the number of states with the parent alone.": second(
                1 / 13
            ),
        },
    )
    g = torch.Generator().manual_seed(0)
    parent_on = torch.rand(400, generator=g) < 0.5
    child_on = parent_on & (torch.rand(400, generator=g) < 0.4)
    absorbed = parent_on & (torch.rand(400, generator=g) < torch.where(child_on, 0.9, 0.1))
    latent = (parent_on & ~absorbed) * (1e-3 + torch.rand(400, generator=g))
    pairs = list(zip(latent.tolist(), parent_on.tolist(), child_on.tolist()))
    with_child = [value == 0 for value, _, child in pairs if child]
    alone = [value == 0 for value, parent, child in pairs if parent and not child]
    yield Probe(
        tried="400 states with planted absorption: silent with the child at a rate of 0.9, without it at 0.1; some "
        "activations are small",
        args=(latent, parent_on, child_on),
        expected=(sum(with_child) / len(with_child), sum(alone) / len(alone)),
        diagnose={
            "A small activation was called silence. Silent means exactly 0.": lambda got: (
                got[0] > sum(with_child) / len(with_child)
            ),
        },
    )
