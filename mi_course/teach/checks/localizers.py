"""Chapter 11, Which localizer to trust: checks of its exercises.

AUROC and recall of a ranking, what luck reaches, rank correlation, a localizer of one's own on models whose mechanism
is known, consensus, and what a sweep costs. Functions without an underscore are the references that the chapter uses
while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise

if TYPE_CHECKING:
    from mi_course.models import Model
    from mi_course.objects import Task


def _numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _truth(text: str) -> Tensor:
    """ "x..x" -> [True, False, False, True]"""
    return torch.tensor([c == "x" for c in text])


def _shuffled(n: int, seed: int = 0) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


# --- 1. AUROC --------------------------------------------------------------------------------------------------------


def auroc(importance: Tensor, is_true: Tensor) -> float:
    """Share of (true, false) pairs in which the true site has the larger importance; a tie counts half."""
    true, false = importance[is_true][:, None], importance[~is_true][None]
    return float(((true > false).float() + 0.5 * (true == false).float()).mean())


@exercise(
    "localizers.auroc",
    reference=auroc,
    hints=(
        "Forget curves: AUROC is a share of pairs. Which pairs, and when is a pair in the right order?",
        "Compare every true site with every false one at once: a column against a row gives a table of all pairs.",
        "Sketch: true = importance[is_true][:, None]; false = importance[~is_true][None]; the mean of (true > false) "
        "plus half the mean of (true == false).",
    ),
    expected="1 when every true site is above every false one, 0 when below, 0.5 for a ranking that knows nothing, "
    "including one that gives all sites the same number.",
)
def _check_auroc() -> Iterator[Probe | Callable]:
    yield Probe(
        tried="importance [3, 1, 2, 0], sites 0 and 2 are true",
        args=(_numbers(3, 1, 2, 0), _truth("x.x.")),
        expected=1.0,
        diagnose={
            "Turned round: higher importance must mean more likely true.": 0.0,
            "This is a number of pairs. Divide by how many there are.": 4.0,
        },
    )
    yield Probe(
        tried="importance [4, 3, 2, 1, 0], sites 1 and 4 are true: 2 of 6 pairs are in order",
        args=(_numbers(4, 3, 2, 1, 0), _truth(".x..x")),
        expected=2 / 6,
        diagnose={
            "Turned round: higher importance must mean more likely true.": 4 / 6,
            "Pairs are one true and one false site. Dividing by all pairs of sites counts too many.": 2 / 10,
        },
    )
    yield Probe(
        tried="importance [2, 1, 1, 0], sites 1 and 3 are true: one pair is tied, the others are in the wrong order",
        args=(_numbers(2, 1, 1, 0), _truth(".x.x")),
        expected=0.125,
        diagnose={
            "A tie must count half. Here it counted nothing, so a method that gives everything the same number would "
            "get 0.": 0.0,
            "A tie must count half. Here it counted whole, so a method that gives everything the same number would be "
            "perfect.": 0.25,
            "Sorting breaks ties by the order of the list, which means nothing. Count tied pairs half.": lambda got: (
                abs(float(got) - 0.125) > 1e-6 and float(got) in (0.0, 0.25)
            ),
        },
    )
    yield Probe(
        tried="importance [7, 7, 7], site 2 is true: a method that knows nothing",
        args=(_numbers(7, 7, 7), _truth("..x")),
        expected=0.5,
        diagnose={"A method that says the same of every site must get one half.": lambda got: float(got) != 0.5},
    )

    def only_the_order_counts(answer: Callable) -> None:
        """40 random numbers with ties: any increasing function of them, and any order of the list, gives the same"""
        x = torch.randint(-5, 6, (40,), generator=torch.Generator().manual_seed(1)).float()
        true = torch.rand(40, generator=torch.Generator().manual_seed(2)) < 0.2
        value = float(answer(x, true))
        if abs(value - auroc(x, true)) > 1e-5:
            raise NotYet(answer.tried, expected=f"{auroc(x, true):.4f}", got=f"{value:.4f}", likely=_SIZE)
        order = _shuffled(40)
        for name, other, sign in (
            ("x to the power 3", (x**3, true), 1),
            ("-x", (-x, true), -1),
            ("the same in another order", (x[order], true[order]), 1),
        ):
            wanted = value if sign > 0 else 1 - value
            if abs(float(answer(*other)) - wanted) > 1e-5:
                raise NotYet(answer.tried, expected=f"{wanted:.4f} for {name}", got=f"{float(answer(*other)):.4f}")

    yield only_the_order_counts


_SIZE = (
    "Compare the numbers as they are: no absolute value, and no difference of sizes, only which of the two is larger."
)


# --- 2. recall -------------------------------------------------------------------------------------------------------


def recall_at_k(importance: Tensor, is_true: Tensor) -> tuple[float, float]:
    """(recall, chance) with k = number of true sites: share of them among the k most important; k / n.

    Sites tied at the k-th place share the places that are left.
    """
    k = int(is_true.sum())
    bar = importance.sort(descending=True).values[k - 1]
    above, tied = importance > bar, importance == bar
    places = k - above.sum()
    found = (above & is_true).sum() + (tied & is_true).sum() * places / tied.sum()
    return float(found / k), k / len(importance)


@exercise(
    "localizers.recall_at_k",
    reference=recall_at_k,
    hints=(
        "Let k be the number of true sites. Take the k most important ones; how many of them are true? And how many "
        "would a shuffled list find?",
        "Ties: everything above the k-th largest number is surely in. The places that are left are shared evenly by "
        "all sites that have exactly that number.",
        "Sketch: bar = k-th largest; sure = true sites above it; places = k - (sites above it); add (true sites equal "
        "to bar) * places / (sites equal to bar); divide by k. Chance: k / n.",
    ),
    expected="A pair: recall in 0 ... 1, and k / n, the mean recall of random rankings.",
)
def _check_recall() -> Iterator[Probe | Callable]:
    yield Probe(
        tried="importance [5, 4, 3, 2, 1], sites 0 and 2 are true",
        args=(_numbers(5, 4, 3, 2, 1), _truth("x.x..")),
        expected=(0.5, 0.4),
        diagnose={
            "Recall is right. Chance is k / n: a random list of k of n sites holds a true one with probability k / n "
            "at each place.": lambda got: abs(got[0] - 0.5) < 1e-6 and abs(got[1] - 0.4) > 1e-6,
            "These are the least important sites: sort in descending order.": lambda got: abs(got[0]) < 1e-6,
            "The number of true sites found was divided by n. Divide by k.": lambda got: abs(got[0] - 0.2) < 1e-6,
            "This is a number of sites. Divide by k.": lambda got: abs(got[0] - 1) < 1e-6,
        },
    )
    yield Probe(
        tried="importance [5, 1, 1, 1, 0], sites 0 and 1 are true: three sites share the second place",
        args=(_numbers(5, 1, 1, 1, 0), _truth("xx...")),
        expected=(2 / 3, 0.4),
        diagnose={
            "The tie was broken by the order of the list, for the true site. It has one chance in three.": lambda got: (
                abs(got[0] - 1) < 1e-6
            ),
            "The tied sites were all left out. One of the three has a place: a third of a true site.": lambda got: (
                abs(got[0] - 0.5) < 1e-6
            ),
        },
    )
    yield Probe(
        tried="the same with sites 0 and 3 true: the order of tied sites in the list must not matter",
        args=(_numbers(5, 1, 1, 1, 0), _truth("x..x.")),
        expected=(2 / 3, 0.4),
        diagnose={
            "The tie was broken by the order of the list.": lambda got: abs(got[0] - 2 / 3) > 1e-6,
        },
    )
    yield Probe(
        tried="importance [2, 2, 2, 2], sites 1, 2 and 3 are true: three places for four tied sites",
        args=(_numbers(2, 2, 2, 2), _truth(".xxx")),
        expected=(0.75, 0.75),
    )

    def mean_over_broken_ties(answer: Callable) -> None:
        """30 sites with many ties against the mean over 3,000 random ways to break them"""
        generator = torch.Generator().manual_seed(0)
        x = torch.randint(-3, 3, (30,), generator=generator).float()
        true = torch.rand(30, generator=generator) < 0.3
        k, found = int(true.sum()), 0.0
        for _ in range(3000):
            noisy = x + 0.5 * torch.rand(30, generator=generator)
            found += float(true[noisy.topk(k).indices].sum()) / k / 3000
        recall, chance = answer(x, true)
        if abs(float(recall) - found) > 0.02 or abs(float(chance) - k / 30) > 1e-6:
            raise NotYet(answer.tried, f"about ({found:.2f}, {k / 30:.2f})", f"({recall:.2f}, {chance:.2f})", _SIZE)

    yield mean_over_broken_ties


# --- 3. the null band ------------------------------------------------------------------------------------------------


def null_band(n: int, k: int, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Mean - 2 s.d. and mean + 2 s.d. of the AUROC of random rankings of n sites, k of them true."""
    generator = torch.Generator().manual_seed(seed)
    is_true = torch.arange(n) < k
    values = torch.tensor([auroc(torch.rand(n, generator=generator), is_true) for _ in range(draws)])
    return float(values.mean() - 2 * values.std()), float(values.mean() + 2 * values.std())


@exercise(
    "localizers.null_band",
    reference=null_band,
    hints=(
        "A random ranking gives every site a random number. Do that many times and look at the AUROCs that luck gets.",
        "The band is about single rankings, so its width is the standard deviation of the draws, not of their mean.",
        "Sketch: make a generator from the seed; in a loop over draws, auroc(torch.rand(n, generator=...), "
        "torch.arange(n) < k); return mean - 2 std, mean + 2 std.",
    ),
    expected="Two numbers around 0.5. Few true sites among few give a wide band, even one that reaches beyond 1: then "
    "no single ranking can prove anything.",
)
def _check_null_band() -> Iterator[Probe | Callable]:
    def near(low: float, high: float) -> Callable:
        return lambda got: abs(got[0] - low) < 0.035 and abs(got[1] - high) < 0.035

    def band(n: int, k: int) -> tuple[float, float]:
        sd = math.sqrt((n + 1) / (12 * k * (n - k)))  # of the Mann-Whitney statistic
        return 0.5 - 2 * sd, 0.5 + 2 * sd

    for n, k in ((6, 1), (24, 2), (60, 20)):
        low, high = band(n, k)
        sd = (high - low) / 4
        yield Probe(
            tried=f"{n} sites, {k} true, 2,000 draws, seed 3",
            args=(n, k, 2000, 3),
            expected=near(low, high),
            means=f"about ({low:.2f}, {high:.2f})",
            diagnose={
                "This is the error of the mean. The band is about single rankings: the standard deviation of the "
                "draws.": lambda got: abs(got[1] - got[0]) < 0.05,
                "Only one standard deviation on each side; the course's bands have two.": near(0.5 - sd, 0.5 + sd),
                "These are the lowest and highest draw, or percentiles. Give mean minus and plus two standard "
                "deviations.": lambda got: 0 <= got[0] < 0.1 and 0.9 < got[1] <= 1,
                "The lower end comes first.": near(high, low),
                "The centre is not at one half. Draw a new random number for every site in every draw.": lambda got: (
                    abs((got[0] + got[1]) / 2 - 0.5) > 0.04
                ),
            },
        )

    def the_seed_decides(answer: Callable) -> None:
        """the same seed twice, and another one"""
        first, again, other = (answer(24, 2, 300, seed) for seed in (5, 5, 6))
        if first != again:
            raise NotYet(
                answer.tried, "the same numbers for the same seed", likely="Draw from a generator with the seed."
            )
        if first == other:
            raise NotYet(answer.tried, "other numbers for another seed", likely="The seed is not used.")

    yield the_seed_decides

    def more_draws_more_exact(answer: Callable) -> None:
        """the number of draws: with 3 of them the band differs much between seeds, with 1,000 little"""

        def spread(draws: int) -> float:
            return torch.tensor([answer(24, 2, draws, seed)[1] for seed in range(8)]).std().item()

        if not spread(3) > 2 * spread(1000):
            raise NotYet(answer.tried, "a band that settles with more draws", likely="`draws` is not used.")

    yield more_draws_more_exact


# --- 4. rank correlation ---------------------------------------------------------------------------------------------


def mean_ranks(values: Tensor) -> Tensor:
    """Rank of every value from 0 (smallest); ties share the mean of their ranks."""
    below = (values[None] < values[:, None]).sum(1)
    ties = (values[None] == values[:, None]).sum(1)
    return below + (ties - 1) / 2


def spearman(a: Tensor, b: Tensor) -> float:
    """Correlation of the ranks of a and b, -1 ... 1; ties share their mean rank."""
    return float(torch.corrcoef(torch.stack([mean_ranks(a), mean_ranks(b)]))[0, 1])


@exercise(
    "localizers.spearman",
    reference=spearman,
    hints=(
        "Two steps: replace every number by its rank, then take the ordinary correlation of the ranks.",
        "argsort().argsort() ranks without ties. With ties, equal numbers must get equal ranks: the mean of the ranks "
        "that they take up together.",
        "Sketch: rank = (numbers below) + (numbers equal, without itself) / 2, by comparing values[None] with "
        "values[:, None]; then torch.corrcoef(torch.stack([ranks of a, ranks of b]))[0, 1].",
    ),
    expected="1 for the same order, -1 for the reverse, near 0 for unrelated ones.",
)
def _check_spearman() -> Iterator[Probe | Callable]:
    yield Probe(
        tried="a = [1, 2, 3, 4], b = [1, 10, 100, 1000]: the same order",
        args=(_numbers(1, 2, 3, 4), _numbers(1, 10, 100, 1000)),
        expected=1.0,
        diagnose={
            "This is the correlation of the numbers. Replace them by their ranks first.": lambda got: 0.7 < got < 0.95
        },
    )
    yield Probe(
        tried="a = [2, 0, 1, 3], b = [1, 2, 3, 0]",
        args=(_numbers(2, 0, 1, 3), _numbers(1, 2, 3, 0)),
        expected=-0.8,
        diagnose={
            "argsort() gives the order of the sites, not their ranks. Apply it twice.": 0.0,
            "The absolute value hides that the orders are opposed.": 0.8,
            "This is Kendall's tau, which counts pairs. Take the correlation of the ranks.": -2 / 3,
        },
    )
    yield Probe(
        tried="a = [1, 1, 2], b = [1, 2, 3]: sites 0 and 1 are tied in a",
        args=(_numbers(1, 1, 2), _numbers(1, 2, 3)),
        expected=math.sqrt(3) / 2,
        diagnose={
            "Tied numbers got different ranks, by their place in the list. Give both the mean of their ranks.": 1.0,
            "1 - 6 sum d^2 / (n (n^2 - 1)) is right without ties only. Take the correlation of the ranks.": 0.875,
            "Tied numbers both got the lowest (or highest) of their ranks. Give both the mean.": lambda got: (
                0.8 < got < 0.86
            ),
        },
    )
    yield Probe(
        tried="a = [2, 1, 1, 1, 0], b = [5, 1, 3, 3, 0]: ties in both",
        args=(_numbers(2, 1, 1, 1, 0), _numbers(5, 1, 3, 3, 0)),
        expected=spearman(_numbers(2, 1, 1, 1, 0), _numbers(5, 1, 3, 3, 0)),
        diagnose={
            "Ties are still ranked one after the other, or all with their lowest rank.": lambda got: abs(got) <= 1.001
        },
    )

    def laws(answer: Callable) -> None:
        """30 random numbers with ties: symmetric, the order of the sites means nothing, minus sign turns it round"""
        generator = torch.Generator().manual_seed(0)
        a, b = (torch.randint(0, 9, (30,), generator=generator).float() for _ in range(2))
        value, order = float(answer(a, b)), _shuffled(30)
        for name, other in (
            ("a and b exchanged", answer(b, a)),
            ("another order of the sites", answer(a[order], b[order])),
            ("exp(a) in place of a", answer(a.exp(), b)),
            ("-a, with the sign turned", -answer(-a, b)),
            ("what ranks by hand give", spearman(a, b)),
        ):
            if abs(float(other) - value) > 1e-4:
                raise NotYet(
                    answer.tried, f"{value:.4f} for {name}", f"{float(other):.4f}", "Look at the ranks of ties."
                )

    yield laws


# --- 5. a localizer of one's own -------------------------------------------------------------------------------------


def my_localizer(model: Model, task: Task, sites: Sequence[str]) -> list[float]:
    """How much the metric falls when a site is set to its mean over the prompts: higher = more important."""
    import mi_course as mi

    cache = mi.record(model, task.prompts, sites)
    mask, base = cache.batch.mask.bool(), task.measure(model)
    effects = []
    for site in sites:
        with mi.intervene(model, mi.mean(site, cache[site][mask].mean(0))):
            effects.append(float((task.measure(model) - base).mean().abs()))
    return effects


@exercise(
    "localizers.my_localizer",
    reference=my_localizer,
    hints=(
        "What would convince you that a head matters? What happens to the answer without it.",
        "For every site: the metric with the site removed, minus the metric as it is, `task.measure(model)`, averaged "
        "over the prompts. Removed can be zero, `mi.zero(site)`, or its mean. Higher must mean more important.",
        "Sketch: base = task.measure(model); for each site: with mi.intervene(model, mi.zero(site)): effect = "
        "(task.measure(model) - base).mean(); collect abs(effect), in the order of sites.",
    ),
    expected="One number per site, higher = more important, that puts the heads of the known mechanism first and the "
    "decoys, which write much and do nothing, last.",
)
def _check_my_localizer() -> Iterator[Probe | Callable]:
    from mi_course.world import compiled

    def on(name: str, why: dict[str, str]) -> Callable:
        def probe(answer: Callable) -> None:
            known = getattr(compiled, name)()
            model, task = known.wrap(), known.task.subset(8)
            sites = [f"L{layer}H{head}.z" for layer in range(model.n_layers) for head in range(model.n_heads)]
            values = _as_numbers(answer(model, task, list(sites)), len(sites), answer.tried)
            true = torch.tensor([site.removesuffix(".z") in known.answer for site in sites])
            found = auroc(values.round(decimals=5), true)
            if found < 1:
                first = sites[int(values.argmax())].removesuffix(".z")
                turned = auroc(-values.round(decimals=5), true) == 1
                likely = _TURNED if turned else why.get(first, why[""])
                heads = ", ".join(site for site in known.answer if "H" in site)
                raise NotYet(
                    answer.tried, f"{heads} above all other heads", f"AUROC {found:.2f}; first is {first}", likely
                )
            back = _as_numbers(answer(model, task, sites[::-1]), len(sites), answer.tried).flip(0)
            if not torch.allclose(back, values, atol=1e-3 * float(values.abs().max())):
                wanted = "the same number for each site when `sites` comes in another order"
                raise NotYet(answer.tried, wanted, likely="Score each site by itself, in the order of `sites`.")

        probe.__doc__ = {
            "cancelling": "compiled.cancelling: L0H0 and L1H0 write much and cancel, only L0H1 matters",
            "induction": "compiled.induction: L0H0 and L1H0 do the work together, L0H1 and L1H1 are decoys",
            "lookup": "compiled.lookup: L1H0 fetches the answer; all other heads do nothing",
        }[name]
        return probe

    size = "Sizes find decoys: this head writes a lot, and nobody reads it. Take it away and see whether F changes."
    yield on("lookup", {"": "The head that fetches the answer must come first."})
    yield on("cancelling", {"": size, "L0H0": size, "L1H0": size})
    yield on(
        "induction",
        {
            "": "L0H0 matters although patching it from the twin changes nothing, as the twin has the same order of "
            "words; and what it writes never reaches the logits directly. Remove it.",
            "L0H1": size,
            "L1H1": size,
        },
    )


_TURNED = (
    "Turned round: F(ablated) - F(clean) is negative for a head that helps, and higher must mean more important. "
    "Return the size of the effect, or minus the effect."
)


def _as_numbers(result: object, n: int, tried: str) -> Tensor:
    if isinstance(result, (list, tuple)):
        result = torch.tensor([float(value) for value in result])
    if not isinstance(result, Tensor):
        result = torch.as_tensor(result)
    if result.shape != (n,):
        raise NotYet(tried, f"one number for each of the {n} sites", f"shape {list(result.shape)}",
                     "Average over the prompts, and keep one number per site.")  # fmt: skip
    if not result.float().isfinite().all():
        raise NotYet(tried, "finite numbers", "NaN or infinity", "Look for a division by zero.")
    return result.detach().float()


# --- 6. consensus ----------------------------------------------------------------------------------------------------


def consensus(scores: Sequence[Tensor]) -> Tensor:
    """Mean over methods of each site's rank among the n sites, from 0 (last) to 1 (first). m tensors [n] -> [n]."""
    return torch.stack([mean_ranks(one) / (len(one) - 1) for one in scores]).mean(0)


@exercise(
    "localizers.consensus",
    reference=consensus,
    hints=(
        "The numbers of different methods have different units, so they cannot be averaged. What do all methods have?",
        "Ranks have one unit. Ties share their mean rank, so that a method that says nothing moves nobody.",
        "Sketch: for each method the ranks of its numbers, 0 for the smallest, divided by n - 1; then the mean over "
        "methods.",
    ),
    expected="One number per site in 0 ... 1: 1 if every method has it first.",
)
def _check_consensus() -> Iterator[Probe | Callable]:
    a, b = _numbers(100, 3, 2, 1), _numbers(0.1, 0.2, 0.3, 0.0)
    yield Probe(
        tried="two methods: [100, 3, 2, 1] and [0.1, 0.2, 0.3, 0.0]",
        args=([a, b],),
        expected=_numbers(4, 4, 4, 0) / 6,
        diagnose={
            "The numbers themselves were averaged: the method with the larger unit decides alone.": (a + b) / 2,
            "The numbers were brought to 0 ... 1, but their gaps still count (100 against 3). Replace them by ranks.": (
                (a / 99 - 1 / 99 + b / 0.3) / 2
            ),
            "The median of the ranks was taken. Take the mean.": _numbers(1, 2, 1, 0) / 3,
            "Right up to the scale: divide each rank by n - 1, so that it runs from 0 to 1.": lambda got: (
                torch.allclose(got / got.max(), _numbers(1, 1, 1, 0))
            ),
            "Turned round: the most important site must get the largest number.": 1 - _numbers(4, 4, 4, 0) / 6,
        },
    )
    yield Probe(
        tried="the same and a third method that gives every site 7",
        args=([a, b, _numbers(7, 7, 7, 7)],),
        expected=_numbers(5.5, 5.5, 5.5, 1.5) / 9,
        diagnose={
            "The third method knows nothing, but its ties were ranked by the order of the list, so it pushes sites. "
            "Give tied sites the mean of their ranks.": lambda got: not torch.allclose(got[0], got[2]),
            "Tied sites all got the lowest or the highest of their ranks. Give them the mean.": lambda got: (
                torch.allclose(got[0], got[2])
            ),
        },
    )

    def of_many(answer: Callable) -> None:
        """five methods of 12 sites with ties, in any order of methods and sites"""
        generator = torch.Generator().manual_seed(0)
        scores = [torch.randint(-4, 5, (12,), generator=generator).float() * 10.0**i for i in range(5)]
        wanted, order = consensus(scores), _shuffled(12)
        for name, got, right in (
            ("as they come", answer(scores), wanted),
            ("methods the other way round", answer(scores[::-1]), wanted),
            ("sites shuffled", answer([one[order] for one in scores]), wanted[order]),
        ):
            if (
                not isinstance(got, Tensor)
                or got.shape != right.shape
                or not torch.allclose(got.float(), right, atol=1e-4)
            ):
                raise NotYet(
                    answer.tried, f"mean ranks ({name})", likely="Rank by the numbers as they are, not by size."
                )

    yield of_many


# --- 7. cost ---------------------------------------------------------------------------------------------------------


def sweep_forwards(n_layers: int, per_layer: int) -> float:
    """Full forwards per prompt to ablate `per_layer` objects in each layer one by one, each run from its block on."""
    return 1 + sum(per_layer * (n_layers - layer) / n_layers for layer in range(n_layers))


@exercise(
    "localizers.sweep_forwards",
    reference=sweep_forwards,
    hints=(
        "A run that starts at block l computes the blocks l, l + 1, ..., L - 1. What share of a full pass is that?",
        "Sum that share over the layers, times the objects in each, and add the base run, which is a full pass.",
        "Sketch: 1 + per_layer * sum over l = 0 ... L - 1 of (L - l) / L.",
    ),
    expected="For L layers and m objects in each: 1 + m (L + 1) / 2, about half of the plain 1 + m L.",
)
def _check_sweep_forwards() -> Iterator[Probe | Callable]:
    known = {
        "The runs are counted as full passes. One that starts at block l computes only L - l of L blocks.": (
            lambda L, m: 1 + L * m
        ),
        "The base run is missing: one full pass, which also gives the states where the others start.": (
            lambda L, m: m * (L + 1) / 2
        ),
        "A run from block l computes block l itself, too: L - l blocks.": lambda L, m: 1 + m * (L - 1) / 2,
        "These are blocks. A full pass has L of them: divide.": lambda L, m: 1 + m * L * (L + 1) / 2,
        "This is the cost of one object per layer. There are per_layer of them.": lambda L, m: 1 + (L + 1) / 2,
    }
    for L, m in ((4, 3), (6, 4), (32, 32), (5, 1)):
        yield Probe(
            tried=f"{L} layers, {m} object(s) in each",
            args=(L, m),
            expected=1 + m * (L + 1) / 2,
            diagnose={
                mistake: formula(L, m) for mistake, formula in known.items() if formula(L, m) != 1 + m * (L + 1) / 2
            },
        )
