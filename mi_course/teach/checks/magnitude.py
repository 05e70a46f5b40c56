"""Chapter 05, magnitude analysis: checks of its exercises.

Sizes over real tokens, z-scores within layers, p-values from shuffled labels, LAPE, matched random sets, block
influence and Ships. The functions without an underscore are the references that the chapter uses while an exercise is
open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _near(got, wanted, tolerance: float = 1e-4) -> bool:
    got, wanted = torch.as_tensor(got).float(), torch.as_tensor(wanted).float()
    return got.shape == wanted.shape and torch.allclose(got, wanted, atol=tolerance)


# --- 1. size ---------------------------------------------------------------------------------------------------------


def mean_norm(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over all real tokens of ||x||_2: x [B, T, d], mask bool [B, T] -> a tensor without dimensions."""
    return x.norm(dim=-1)[mask].mean()


@exercise(
    "magnitude.mean_norm",
    reference=mean_norm,
    hints=(
        "Each token has one vector, so the norm runs over one axis, and the mean over all tokens that are real. What "
        "stands at the padded places is noise.",
        "`x.norm(dim=-1)` is [B, T]. A bool mask of the same shape picks the real tokens: `values[mask]` is one long "
        "list.",
        "Sketch: norms over the last axis, then keep those where mask is True, then the mean.",
    ),
    expected="One number. Long prompts count more than short ones, since every token counts once.",
)
def _check_mean_norm() -> Iterator[Probe]:
    x = torch.tensor([[[9.0, 9.0], [3.0, 4.0]], [[0.0, -1.0], [0.0, 0.0]]])
    mask = torch.tensor([[False, True], [True, True]])
    yield Probe(
        tried="two prompts, the first with a padded place; the real vectors are [3, 4], [0, -1] and [0, 0]",
        args=(x, mask),
        expected=torch.tensor(2.0),
        means="(5 + 1 + 0) / 3 = 2",
        diagnose={
            "The padded place was counted.": torch.tensor((math.sqrt(162) + 6) / 4),
            "The padded place was set to 0 but still counted in the mean: divide by the number of real tokens.": (
                torch.tensor(1.5)
            ),
            "A mean was taken for each prompt first; every token counts once.": torch.tensor(2.75),
            "This is the sum of the sizes of the numbers (L1). The norm is the root of the sum of squares.": (
                torch.tensor(8 / 3)
            ),
            "The squares were not rooted.": torch.tensor(26 / 3),
            "This is the largest number of each vector (L-infinity).": torch.tensor(5 / 3),
            "The mean vector was taken first, and its norm then. Directions cancel in that.": torch.tensor(
                math.hypot(1, 1)
            ),
            "One norm of everything was taken; each token has its own.": torch.tensor(math.sqrt(26)),
        },
    )
    x, mask = _random(3, 3, 3), torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    norms = x.square().sum(-1).sqrt()
    yield Probe(
        tried="three prompts, three places and three coordinates, so that wrong axes fit as well",
        args=(x, mask),
        expected=norms[mask].mean(),
        diagnose={
            "The norm runs over the places, not over the coordinates.": x.norm(dim=1)[mask].mean(),
            "The norm runs over the prompts, not over the coordinates.": x.norm(dim=0)[mask].mean(),
        },
    )
    whole = torch.ones(1, 4, dtype=torch.bool)
    yield Probe(
        tried="one prompt of four real tokens, all [0, 0, -2]",
        args=(torch.tensor([0.0, 0.0, -2.0]).expand(1, 4, 3), whole),
        expected=torch.tensor(2.0),
    )


# --- 2. z-scores within a layer --------------------------------------------------------------------------------------


def within_layers(values: Tensor, layers: Tensor) -> Tensor:
    """(value - mean of its layer) / s.d. of its layer: values [n], layers int [n] -> [n]. s.d. over n, not n - 1."""
    z = torch.empty_like(values)
    for layer in layers.unique():
        own = values[layers == layer]
        z[layers == layer] = (own - own.mean()) / own.std(correction=0)
    return z


@exercise(
    "magnitude.within_layers",
    reference=within_layers,
    hints=(
        "Two numbers belong to each layer: the mean and the standard deviation of its sites. Sites may come in any "
        "order.",
        "Loop over `layers.unique()`. `layers == layer` says which sites belong; a bool index reads and writes just "
        "them.",
        "Sketch: z = empty like values; for each layer: own = values where layers is this layer; put "
        "(own - mean) / own.std(correction=0) into the same places of z.",
    ),
    expected="Within each layer the mean is 0 and the standard deviation 1, and the order of its sites is as before.",
)
def _check_within_layers() -> Iterator[Probe | Callable]:
    values, layers = torch.tensor([1.0, 10, 3, 30, 20]), torch.tensor([0, 1, 0, 1, 1])
    r = math.sqrt(1.5)
    right = torch.tensor([-1.0, -r, 1.0, r, 0.0])
    yield Probe(
        tried="layer 0 has the sizes 1 and 3, layer 1 has 10, 30 and 20, in mixed order",
        args=(values, layers),
        expected=right,
        means="-1 and 1 in layer 0; -1.22, 1.22 and 0 in layer 1",
        diagnose={
            "Mean and standard deviation of all sites were used; take those of the layer.": (
                (values - values.mean()) / values.std(correction=0)
            ),
            "All sites were used, with n - 1: take those of the layer, and divide by n (correction=0).": (
                (values - values.mean()) / values.std()
            ),
            "The standard deviation divides by n here: std(correction=0).": torch.tensor(
                [-1 / math.sqrt(2), -1.0, 1 / math.sqrt(2), 1.0, 0.0]
            ),
            "Only the mean was taken away. Layers still differ in spread.": torch.tensor([-1.0, -10, 1, 10, 0]),
            "Only the spread was divided out. Layers still differ in their mean.": torch.tensor(
                [1.0, 10 / (10 / r), 3.0, 30 / (10 / r), 20 / (10 / r)]
            ),
            "It was divided by the variance; divide by its root.": torch.tensor(
                [-1.0, -10 / (200 / 3), 1.0, 10 / (200 / 3), 0.0]
            ),
            "The values are right but in the order of the layers. Put each back where it came from.": right[
                layers.argsort(stable=True)
            ],
            "It was divided by the mean of the layer.": torch.tensor([-0.5, -0.5, 0.5, 0.5, 0.0]),
        },
    )

    def a_layer_made_loud(answer: Callable) -> None:
        """40 sites in 4 layers; then layer 2 is stretched by 7 and shifted by 100"""
        values, layers = _random(40, seed=1), torch.arange(40) % 4
        loud = torch.where(layers == 2, 7 * values + 100, values)
        if not torch.allclose(answer(values, layers), answer(loud, layers), atol=1e-3):
            raise NotYet(
                answer.tried,
                "the same z-scores: size and spread of a layer do not count",
                likely="A layer that is louder as a whole gets other z-scores.",
            )

    yield a_layer_made_loud
    values, layers = _random(12, seed=2), torch.tensor([5, 5, 7, 7, 7, 5, 9, 9, 9, 9, 7, 5])
    yield Probe(
        tried="12 sites in the layers 5, 7 and 9",
        args=(values, layers),
        expected=within_layers(values, layers),
        diagnose={
            "The layers are not always 0, 1, 2 ...: loop over the layers that occur.": lambda got: (
                not torch.isfinite(got).all() or not _near(got, within_layers(values, layers))
            )
        },
    )


# --- 3. shuffled labels ----------------------------------------------------------------------------------------------


def permutation_p(values: Tensor, labels: Tensor, shuffled: Tensor) -> Tensor:
    """p [m] = (1 + number of shufflings with |difference of means| >= the true one) / (1 + number of shufflings)."""

    def size(some: Tensor) -> Tensor:
        return (values[some].mean(0) - values[~some].mean(0)).abs()

    observed = size(labels) - 1e-6
    as_large = torch.stack([size(some) >= observed for some in shuffled])
    return (1 + as_large.sum(0)) / (1 + len(shuffled))


@exercise(
    "magnitude.permutation_p",
    reference=permutation_p,
    hints=(
        "If the labels mean nothing, the true labelling is one of many equally likely ones. How often does a shuffled "
        "one give a difference at least as large, whatever its sign?",
        "Write the difference of means as a small function of a labelling: values[some].mean(0) - "
        "values[~some].mean(0). The absolute value, for each column. Compare the shuffled ones with the true one; take "
        "1e-6 off the true one, so that equal sizes count as at least as large in spite of rounding.",
        "Sketch: observed = |difference| of labels; count = for each row of shuffled, is its |difference| >= observed "
        "- 1e-6, summed; return (1 + count) / (1 + number of rows).",
    ),
    expected="One p-value per site, between 1 / (1 + k) and 1. A site that differs gets a small one.",
)
def _check_permutation_p() -> Iterator[Probe | Callable]:
    values = torch.tensor([[3.0, 0.0], [3.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    labels = torch.tensor([True, True, False, False])
    shuffled = torch.tensor([[False, True, False, True], [False, False, True, True], [True, False, False, True]])
    yield Probe(
        tried="4 prompts, 2 sites, 3 shufflings; site 0 is 3, 3 | 1, 1 and site 1 is 0, 1 | 0, 1",
        args=(values, labels, shuffled),
        expected=torch.tensor([2 / 4, 1.0]),
        means="site 0: one of three shufflings (the mirrored one) is as large, (1 + 1) / (1 + 3); site 1: all, 1",
        diagnose={
            "The true labelling counts as one of the possible ones: 1 + above and below the line, so p is never 0.": (
                torch.tensor([1 / 3, 1.0])
            ),
            "Only one side was counted. A site that is smaller in the first group differs as much.": torch.tensor(
                [1 / 4, 1.0]
            ),
            "Only one side was counted: take the absolute value of the difference, shuffled and true.": torch.tensor(
                [1.0, 3 / 4]
            ),
            "Equal sizes must count: at least as large, >=.": torch.tensor([1 / 4, 2 / 4]),
            "Equal sizes must count: at least as large, >= (and both lines need the 1).": torch.tensor([0.0, 1 / 3]),
            "This is the share of *smaller* differences: turn it round.": torch.tensor([3 / 4, 1 / 4]),
            "1 was added above the line but not below.": torch.tensor([2 / 3, 4 / 3]),
            "1 was added below the line but not above.": torch.tensor([1 / 4, 3 / 4]),
        },
    )
    values = _random(6, 6, seed=3)
    labels = torch.arange(6) < 2
    shuffled = torch.stack([labels[torch.randperm(6, generator=torch.Generator().manual_seed(s))] for s in range(40)])
    yield Probe(
        tried="6 prompts and 6 sites, two prompts with the label, 40 shufflings",
        args=(values, labels, shuffled),
        expected=_by_counting(values, labels, shuffled),
        diagnose={
            "Sums were compared. The groups differ in size, so compare means.": lambda got: _near(
                got, _by_counting(values, labels, shuffled, torch.sum)
            ),
            "Only the shuffled differences lost their sign. Take the absolute value of the true one, too.": (
                lambda got: _near(got, _by_counting(values, labels, shuffled, true=lambda gap: gap))
            ),
            "The axes are swapped: prompts are rows, sites are columns.": _by_counting(values.T, labels, shuffled),
            "Each site was compared with the largest shuffled difference of all sites. That is another test (which "
            "guards against choosing the best site); here each site has its own.": lambda got: _near(
                got, _against_the_largest(values, labels, shuffled)
            ),
        },
    )

    def a_site_that_differs(answer: Callable) -> None:
        """a label that site 0 follows and 200 other sites do not; 199 shufflings"""
        labels = torch.arange(40) % 2 == 0
        values = _random(40, 201, seed=4)
        values[:, 0] -= 3.0 * labels
        generator = torch.Generator().manual_seed(5)
        shuffled = torch.stack([labels[torch.randperm(40, generator=generator)] for _ in range(199)])
        p = answer(values, labels, shuffled)
        if p.shape != (201,):
            raise NotYet(answer.tried, "one p-value for each of the 201 sites", f"shape {list(p.shape)}")
        if abs(p[0].item() - 1 / 200) > 1e-4:
            raise NotYet(
                answer.tried,
                "p of site 0 is 1/200: no shuffling is as large",
                f"{p[0].item():.4f}",
                "A site that is *smaller* in the first group must get a small p-value, too.",
            )
        if not 0.4 < p[1:].mean().item() < 0.6:
            raise NotYet(answer.tried, "p-values of the others around 1/2", f"mean {p[1:].mean().item():.2f}")

    yield a_site_that_differs


def _by_counting(
    values: Tensor, labels: Tensor, shuffled: Tensor, centre: Callable = torch.mean, true: Callable = abs
) -> Tensor:
    p = []
    for column in values.T:
        gaps = [float(centre(column[s]) - centre(column[~s])) for s in (labels, *shuffled)]
        p.append((1 + sum(abs(gap) >= true(gaps[0]) - 1e-6 for gap in gaps[1:])) / len(gaps))
    return torch.tensor(p)


def _against_the_largest(values: Tensor, labels: Tensor, shuffled: Tensor) -> Tensor:
    sizes = torch.stack([(values[s].mean(0) - values[~s].mean(0)).abs() for s in (labels, *shuffled)])
    return (1 + (sizes[1:].amax(1)[:, None] >= sizes[0] - 1e-6).sum(0)) / len(sizes)


# --- 4. LAPE ---------------------------------------------------------------------------------------------------------


def lape(on: Tensor, tokens: Tensor) -> Tensor:
    """Entropy over languages of how often each neuron is on, in nats: on [K, m] counts, tokens [K] -> [m].

    p = on / tokens, q = p / sum over languages, entropy = -sum q log q. A neuron that is never on gets log K.
    """
    p = on / tokens[:, None]
    total = p.sum(0)
    q = torch.where(total > 0, p / total.clamp_min(1e-12), 1 / len(p))
    return -torch.xlogy(q, q).sum(0)


@exercise(
    "magnitude.lape",
    reference=lape,
    hints=(
        "Three steps: counts to frequencies, each by the tokens of its language; frequencies to shares over "
        "languages; shares to an entropy. Two traps: 0 log 0, which counts 0, and a neuron that is never on, 0 / 0.",
        "`torch.xlogy(q, q)` is q log q with 0 log 0 = 0. For a neuron that is never on all shares are equal: it "
        "prefers no language.",
        "Sketch: p = on / tokens[:, None]; q = p / p.sum(0), or 1 / K where that sum is 0; return minus the sum over "
        "languages of xlogy(q, q).",
    ),
    expected="One number per neuron: 0 when it is on in one language alone, log K when it has no preference.",
)
def _check_lape() -> Iterator[Probe]:
    on = torch.tensor([[6.0, 4.0, 4.0, 0.0, 1.0], [0.0, 8.0, 2.0, 0.0, 6.0]])
    tokens = torch.tensor([10.0, 20.0])
    q = torch.tensor([0.8, 0.2])
    h, last = float(-(q * q.log()).sum()), _entropy(0.25)
    yield Probe(
        tried="2 languages of 10 and 20 tokens; 5 neurons that are on 6, 4, 4, 0, 1 times in the first and 0, 8, 2, 0, "
        "6 in the second",
        args=(on, tokens),
        expected=torch.tensor([0.0, math.log(2), h, math.log(2), last]),
        means="0 (one language alone), log 2 (as often in both), 0.5004 (shares .8 and .2), log 2 (never on), 0.5623",
        diagnose={
            "0 log 0 counts 0; here it gave nan (not a number). torch.xlogy knows that.": lambda got: bool(
                got[0].isnan()
            ),
            "A neuron that is never on gave 0 / 0, nan (not a number). Give it log K.": lambda got: bool(
                got[3].isnan()
            ),
            "Counts were compared. The languages have different numbers of tokens: divide by them first.": lambda got: (
                _near(got[1:3], torch.tensor([_entropy(1 / 3), _entropy(2 / 3)]))
            ),
            "A neuron that is never on got entropy 0, the best score of all (the released code does this, and relies "
            "on a later filter). It has no preference: log K.": torch.tensor([0.0, math.log(2), h, 0.0, last]),
            "The logarithm is to base 2, or the entropy was divided by log K; nats are wanted.": torch.tensor(
                [0.0, 1.0, h / math.log(2), 1.0, last / math.log(2)]
            ),
            "The sign is turned round: entropy is minus the sum of q log q.": -torch.tensor(
                [0.0, math.log(2), h, math.log(2), last]
            ),
            "The frequencies were not turned into shares: divide by their sum over languages.": lambda got: _near(
                got[1:3], torch.tensor([-0.8 * math.log(0.4), -0.4 * math.log(0.4) - 0.1 * math.log(0.1)])
            ),
        },
    )
    on = torch.tensor([[6.0, 1.0, 2.0], [2.0, 2.0, 2.0], [1.0, 7.0, 2.0]])
    tokens = torch.tensor([10.0, 10.0, 20.0])
    yield Probe(
        tried="3 languages and 3 neurons, so that wrong axes fit as well",
        args=(on, tokens),
        expected=_lape_by_hand(on, tokens),
        diagnose={
            "The shares run over neurons, not over languages: sum over the first axis.": _lape_by_hand(on.T, tokens),
            "Each neuron's counts were divided by the tokens of another language: `tokens` belongs to the rows, "
            "tokens[:, None].": _lape_by_hand(on / tokens, torch.ones(3)),
            "The frequencies were not turned into shares: divide by their sum over languages.": -torch.xlogy(
                on / tokens[:, None], on / tokens[:, None]
            ).sum(0),
            "Counts were compared. The languages have different numbers of tokens: divide by them first.": (
                _lape_by_hand(on, torch.ones(3))
            ),
        },
    )


def _entropy(p: float) -> float:
    return -sum(x * math.log(x) for x in (p, 1 - p))


def _lape_by_hand(on: Tensor, tokens: Tensor) -> Tensor:
    entropies = []
    for column in (on / tokens[:, None]).T.tolist():
        shares = [x / sum(column) for x in column]
        entropies.append(-sum(q * math.log(q) for q in shares if q > 0))
    return torch.tensor(entropies)


# --- 5. matched random sets ------------------------------------------------------------------------------------------


def matched_set(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """As many random other neurons in every layer: chosen bool [L, M] -> bool [L, M], none of them chosen."""
    lots = torch.rand(chosen.shape, generator=generator).masked_fill(chosen, -1.0)
    place = lots.argsort(dim=1, descending=True).argsort(dim=1)  # 0: the highest lot of the layer
    return place < chosen.sum(1, keepdim=True)


@exercise(
    "magnitude.matched_set",
    reference=matched_set,
    hints=(
        "Layer by layer: how many are chosen there, and which are not? Draw that many from the second group, each at "
        "most once.",
        "`torch.randperm(n, generator=generator)[:k]` are k different numbers below n. "
        "`(~chosen[layer]).nonzero().flatten()` are the candidates.",
        "Sketch: new = all False; for each layer: others = where chosen is False; k = how many are chosen; pick = "
        "others[randperm(len(others), generator=generator)[:k]]; new[layer, pick] = True.",
    ),
    expected="As many True in every row as in `chosen`, in other places, and others on the next call.",
)
def _check_matched_set() -> Iterator[Callable]:
    def drawn(answer: Callable, chosen: Tensor, generator: torch.Generator) -> Tensor:
        new = answer(chosen.clone(), generator)
        if not isinstance(new, Tensor) or new.dtype != torch.bool:
            got = str(new.dtype) if isinstance(new, Tensor) else type(new).__name__
            likely = f"The dtype is {got.removeprefix('torch.')}; it should be bool, [L, M] like `chosen`."
            raise NotYet(answer.tried, "a bool tensor", got, likely)
        if new.shape != chosen.shape:
            raise NotYet(answer.tried, f"shape {list(chosen.shape)}", f"shape {list(new.shape)}", "The shape differs.")
        return new

    def counts(answer: Callable) -> None:
        """4 layers of 10 neurons, of which 2, 0, 5 and 1 are chosen"""
        chosen = torch.zeros(4, 10, dtype=torch.bool)
        chosen[0, :2], chosen[2, 3:8], chosen[3, 6] = True, True, True
        generator = torch.Generator().manual_seed(0)
        for _ in range(20):
            new = drawn(answer, chosen, generator)
            rows = new.sum(1).tolist()
            if (new & chosen).any():
                raise NotYet(
                    answer.tried,
                    "none of the chosen neurons",
                    f"{int((new & chosen).sum())} of them",
                    "Chosen neurons were drawn again, so the null shares what it is to be compared with.",
                )
            if rows != [2, 0, 5, 1]:
                likely = "The number in a layer differs from that of `chosen`."
                if sum(rows) == 8:
                    likely = "The number is right in all, but not layer by layer; late layers act differently."
                elif sum(rows) < 8:
                    likely = "Too few in a layer: the same neuron may have been drawn twice. Draw without putting back."
                raise NotYet(answer.tried, "2, 0, 5 and 1 in the four layers", f"{rows}", likely)

    yield counts

    def chance(answer: Callable) -> None:
        """2 layers of 6 neurons, two of them chosen in each, drawn 300 times"""
        chosen = torch.zeros(2, 6, dtype=torch.bool)
        chosen[0, [1, 4]], chosen[1, [0, 5]] = True, True
        generator = torch.Generator().manual_seed(1)
        draws = torch.stack([drawn(answer, chosen, generator) for _ in range(300)])
        if (draws == draws[0]).all():
            raise NotYet(
                answer.tried,
                "another set on each call",
                "always the same set",
                "The draw is always the same. Draw with the generator that is given, and do not seed it again.",
            )
        often = draws.float().mean(0)
        if not torch.allclose(often[~chosen], torch.tensor(0.5), atol=0.15):
            raise NotYet(
                answer.tried,
                "each of the others in about half of the draws",
                ", ".join(f"{x:.2f}" for x in often[~chosen].tolist()),
                "Some neurons are drawn more often than others, or never.",
            )
        rows = draws[:, 0, [0, 2, 3, 5]].float().argmax(1), draws[:, 1, [1, 2, 3, 4]].float().argmax(1)
        if torch.equal(*rows):
            raise NotYet(answer.tried, "layers that are drawn independently", likely="All layers got the same draw.")
        again = torch.stack([drawn(answer, chosen, g) for g in [torch.Generator().manual_seed(1)] for _ in range(300)])
        if not torch.equal(again, draws):
            raise NotYet(
                answer.tried,
                "the same sets from a generator with the same seed",
                likely="The generator that is given was not used, so the draw cannot be repeated.",
            )

    yield chance


# --- 6. block influence ----------------------------------------------------------------------------------------------


def block_influence(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """1 - mean over real tokens of cos(x, y): states before and after a block [B, T, d], mask bool [B, T]."""
    return 1 - torch.cosine_similarity(x, y, dim=-1)[mask].mean()


@exercise(
    "magnitude.block_influence",
    reference=block_influence,
    hints=(
        "The cosine of two vectors is their dot product over the product of their lengths. Each token has its own.",
        "`torch.cosine_similarity(x, y, dim=-1)` is [B, T]. Real tokens only, then the mean.",
        "Sketch: cosines over the last axis, keep those where mask is True; return 1 - their mean.",
    ),
    expected="0 for a block that leaves the direction of every state as it is, 1 when it turns them by a right angle.",
)
def _check_block_influence() -> Iterator[Probe]:
    x = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]]])
    y = torch.tensor([[[-1.0, 0.0], [6.0, 0.0], [3.0, 3.0]]])
    mask = torch.tensor([[False, True, True]])
    c = math.sqrt(0.5)
    yield Probe(
        tried="two real tokens: [2, 0] becomes [6, 0], [0, 3] becomes [3, 3]; a padded place is turned round",
        args=(x, y, mask),
        expected=torch.tensor(1 - (1 + c) / 2),
        means="1 - (1 + 0.7071) / 2 = 0.1464",
        diagnose={
            "This is the mean cosine; influence is 1 minus it.": torch.tensor((1 + c) / 2),
            "The padded place was counted.": torch.tensor(1 - c / 3),
            "The padded place was set to 0 but still counted in the mean.": torch.tensor(1 - (1 + c) / 3),
            "The lengths were not divided out: this is a dot product, not a cosine.": torch.tensor(1 - 21 / 2),
            "This is a distance. A state that grows in its own direction has influence 0.": lambda got: any(
                _near(got, wrong) for wrong in (3.5, 1.5, 10.5 / 3)
            ),
            "One cosine of all states together was taken; each token has its own.": lambda got: _near(
                got, 1 - 21 / math.sqrt(13 * 54)
            ),
            "This is the angle. Block influence takes 1 - cos.": lambda got: any(
                _near(got, wrong) for wrong in (math.pi / 8, 0.125)
            ),
        },
    )
    x, y = _random(3, 3, 3, seed=6), _random(3, 3, 3, seed=7)
    mask = torch.tensor([[True, True, True], [False, True, True], [False, False, True]])
    dots = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    yield Probe(
        tried="three prompts, three places and three coordinates, so that wrong axes fit as well",
        args=(x, y, mask),
        expected=1 - dots[mask].mean(),
        diagnose={
            "The cosine runs over the places, not over the coordinates.": (
                1 - torch.cosine_similarity(x, y, dim=1)[mask].mean()
            ),
            "A mean was taken for each prompt first; every token counts once.": (
                1 - torch.stack([row[m].mean() for row, m in zip(dots, mask)]).mean()
            ),
        },
    )
    ones = torch.ones(3, 3, dtype=torch.bool)
    yield Probe(
        tried="a block that makes every state 3 times as long",
        args=(x, 3 * x, ones),
        expected=torch.tensor(0.0),
        means="0: no direction has changed",
    )


# --- 7. Ships --------------------------------------------------------------------------------------------------------


def ships(base: Tensor, ablated: Tensor) -> Tensor:
    """Mean over prompts of KL(base || ablated), in nats: logits [n, V] each -> a tensor without dimensions."""
    p, q = base.log_softmax(-1), ablated.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean()


@exercise(
    "magnitude.ships",
    reference=ships,
    hints=(
        "A divergence compares two distributions, so logits become probabilities first. Each prompt has its own; the "
        "score is their mean.",
        "KL(p || q) = sum p (log p - log q), with p of the unchanged model. Take log_softmax, not the log of a "
        "softmax: that stays finite where a probability is tiny.",
        "Sketch: p, q = log_softmax of base and of ablated over the vocabulary; sum over the vocabulary of "
        "exp(p) (p - q), then the mean over prompts.",
    ),
    expected="0 or more: 0 when removing the head changes nothing, large when the model answers otherwise.",
)
def _check_ships() -> Iterator[Probe]:
    p, q = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    kl = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    back = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    base, ablated = p.log() + 3.0, q.log() - torch.tensor([[1.0], [2.0]])
    yield Probe(
        tried="2 prompts, 2 words; probabilities (.5, .5) stay for the first and become (.9, .1) for the second",
        args=(base, ablated),
        expected=torch.tensor(kl / 2),
        means="(0 + 0.5108) / 2 = 0.2554 nats",
        diagnose={
            "The two are swapped: the unchanged model's distribution weighs the logs, KL(base || ablated).": (
                torch.tensor(back / 2)
            ),
            "The prompts were summed; take the mean.": torch.tensor(kl),
            "The mean ran over the vocabulary, too: sum over words, mean over prompts.": torch.tensor(kl / 4),
            "The sign is turned round.": torch.tensor(-kl / 2),
            "The logarithm is to base 2; nats are wanted.": torch.tensor(kl / 2 / math.log(2)),
            "This is the cross-entropy; KL takes the entropy of the base away.": torch.tensor(
                (math.log(2) + math.log(2) + kl) / 2
            ),
            "Logits were taken for log-probabilities. Use log_softmax.": lambda got: bool(got.abs() > 0.6),
            "One number per prompt came out; take the mean.": lambda got: got.shape == (2,),
        },
    )
    square, other = 4 * _random(3, 3, seed=8), 4 * _random(3, 3, seed=9)
    a, b = square.softmax(1), other.softmax(1)
    yield Probe(
        tried="three prompts and three words",
        args=(square, other),
        expected=(a * (a.log() - b.log())).sum(1).mean(),
        diagnose={
            "The softmax runs over the prompts; it belongs to the words.": (
                (square.softmax(0) * (square.log_softmax(0) - other.log_softmax(0))).sum(-1).mean()
            ),
        },
    )
    tiny = torch.tensor([[0.0, -200.0, 0.0]])
    yield Probe(
        tried="a word that is almost impossible in both, and another that becomes so",
        args=(tiny, torch.tensor([[0.0, -200.0, -150.0]])),
        expected=torch.tensor(0.5 * math.log(0.5) + 0.5 * (math.log(0.5) + 150.0)),
        diagnose={
            "A probability became 0 and its logarithm infinite. Use log_softmax.": lambda got: (
                not bool(torch.isfinite(got).all())
            ),
            "Probabilities were cut off at a small number. log_softmax needs no such guard.": lambda got: bool(
                got < 70
            ),
        },
    )
