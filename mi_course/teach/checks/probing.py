"""Chapter 08, probing: checks of its exercises.

A ridge probe, a split by entity and template, a control task, the online code, sparse selection, and two directions:
the one that reads best and the one that LEACE erases. The functions without an underscore are the references that the
chapter uses while an exercise is open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count

import torch
from torch import Tensor

from ..exercises import NotYet, Probe, exercise


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- 1. a probe ------------------------------------------------------------------------------------------------------


def ridge_probe(x: Tensor, Y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """W [d, K] and b [K] that minimise |x W + b - Y|^2 + penalty |W|^2, for x [n, d] and one-hot labels Y [n, K]."""
    centred = x - x.mean(0)
    gram = centred.T @ centred + penalty * torch.eye(x.shape[1])
    W = torch.linalg.solve(gram, centred.T @ (Y - Y.mean(0)))
    return W, Y.mean(0) - x.mean(0) @ W


@exercise(
    "probing.ridge_probe",
    reference=ridge_probe,
    hints=(
        "Without b this is textbook ridge regression: W = (x^T x + penalty I)^-1 x^T Y. The bias is not penalised. "
        "What "
        "happens to the best b when W is fixed?",
        "For every W the best b makes the mean of the predictions the mean of Y. So subtract the mean from x and "
        "from Y, "
        "solve for W without a bias, and get b from the two means at the end.",
        "Sketch: c = x minus its mean over rows; W = solve(c^T c + penalty * eye, c^T (Y minus its mean)); b = mean "
        "of Y - "
        "mean of x times W.",
    ),
    expected="W [d, K] and b [K]. With penalty 0 no other W and b has a smaller squared error; with a huge penalty W "
    "is 0 "
    "and b holds the class shares.",
)
def _check_ridge_probe() -> Iterator[Probe | Callable]:
    x, Y = torch.tensor([[4.0], [6.0]]), torch.tensor([[0.0], [1.0]])
    yield Probe(
        tried="x = 4 and 6, Y = 0 and 1, penalty 2 (one dimension, one column)",
        args=(x, Y, 2.0),
        expected=(torch.tensor([[0.25]]), torch.tensor([-0.75])),
        means="around the means x is -1 and 1, Y is -1/2 and 1/2: W = 1 / (2 + 2), b = 1/2 - 5 W",
        diagnose={
            "The states were not centred: the bias has to take up the means before W is solved for. Subtract the "
            "mean of "
            "x and the mean of Y first.": lambda got: math.isclose(float(got[0].reshape(-1)[0]), 6 / 54, rel_tol=1e-3),
            "The bias was penalised like W. It is free: centre instead of adding a column of ones.": lambda got: (
                math.isclose(float(got[0].reshape(-1)[0]), 14 / 116, rel_tol=1e-3)
            ),
            "The penalty is missing.": lambda got: math.isclose(float(got[0].reshape(-1)[0]), 0.5, rel_tol=1e-3),
            "The penalty was multiplied by the number of rows; here it is used as it is.": lambda got: math.isclose(
                float(got[0].reshape(-1)[0]), 1 / 6, rel_tol=1e-3
            ),
            "The penalty was divided by the number of rows; here it is used as it is.": lambda got: math.isclose(
                float(got[0].reshape(-1)[0]), 1 / 3, rel_tol=1e-3
            ),
            "The states were divided by their standard deviation. The penalty is on the W of the states as they are.": (
                lambda got: math.isclose(float(got[0].reshape(-1)[0]), 1 / (3 * 2**0.5), rel_tol=1e-3)
            ),
            "W is right. The bias is not: b = mean of Y - (mean of x) W.": lambda got: math.isclose(
                float(got[0].reshape(-1)[0]), 0.25, rel_tol=1e-3
            ),
            "Return the pair (W, b), in this order.": lambda got: got[0].dim() == 1,
        },
    )
    x, y = _random(40, 5) + 3, torch.arange(40) % 3
    Y = torch.nn.functional.one_hot(y, 3).float()
    ones = torch.cat([x, torch.ones(40, 1)], dim=1)
    joint = torch.linalg.solve(ones.T @ ones + 4 * torch.diag(torch.tensor([1.0] * 5 + [0.0])), ones.T @ Y)
    penalised = torch.linalg.solve(ones.T @ ones + 4 * torch.eye(6), ones.T @ Y)
    centred = x - x.mean(0)
    everywhere = torch.linalg.solve(centred.T @ centred + 4, centred.T @ Y)
    yield Probe(
        tried="40 states of 5 dimensions with a mean near 3, three classes, penalty 4",
        args=(x, Y, 4.0),
        expected=(joint[:5], joint[5]),
        tolerance=1e-3,
        diagnose={
            "The bias was penalised like W. It is free: centre instead of adding a column of ones.": lambda got: (
                torch.allclose(got[0], penalised[:5], atol=1e-3)
            ),
            "The penalty was added to every entry of the matrix. It belongs on the diagonal: penalty * torch.eye(d).": (
                lambda got: torch.allclose(got[0], everywhere, atol=1e-3)
            ),
            "W has the shape [K, d]; the course multiplies from the right, x W, so it is [d, K].": lambda got: (
                got[0].shape == (3, 5)
            ),
            "W is right. The bias is not: b = mean of Y - (mean of x) W.": lambda got: torch.allclose(
                got[0], joint[:5], atol=1e-3
            ),
        },
    )

    def no_better_pair(answer: Callable) -> None:
        """with penalty 0, moving W or b a little in any direction must not lower the squared error"""
        x, Y = _random(30, 4, seed=3) + 1, _random(30, 2, seed=4)
        W, b = answer(x, Y, 0.0)
        error = (x @ W + b - Y).square().sum()
        for seed in range(10):
            near = (
                (x @ (W + 1e-2 * _random(4, 2, seed=seed)) + b + 1e-2 * _random(2, seed=seed + 50) - Y).square().sum()
            )
            if near < error:
                raise NotYet(
                    answer.tried,
                    "the smallest squared error of all W and b",
                    f"{error:.4f}, and {near:.4f} next to it",
                    "This is not the least-squares solution.",
                )

    yield no_better_pair


# --- 2. an honest split ----------------------------------------------------------------------------------------------


def honest_split(entities: Sequence, templates: Sequence, new_entities: set, new_templates: set) -> tuple[list, list]:
    """Rows to train on (known entity and known template) and to test on (new entity and new template)."""
    train, test = [], []
    for row, (entity, template) in enumerate(zip(entities, templates)):
        new = (entity in new_entities) + (template in new_templates)
        if new == 0:
            train.append(row)
        elif new == 2:
            test.append(row)
    return train, test


@exercise(
    "probing.honest_split",
    reference=honest_split,
    hints=(
        "A row can be new in both respects, in none, or in one. Which of these may the probe be trained on, so that "
        "it has "
        "seen no test entity and no test template?",
        "A row with a new entity in a known template must not be trained on (the probe would meet the entity), and "
        "testing "
        "on it would not be a test of templates. It is left out.",
        "Sketch: go through the rows with enumerate(zip(entities, templates)); both in their `new` set: test; neither: "
        "train; one of them: nowhere.",
    ),
    expected="Two lists of row numbers. No entity and no template has rows in both.",
)
def _check_honest_split() -> Iterator[Probe | Callable]:
    entities = ["ann", "ann", "bob", "bob", "cy", "cy"]
    templates = ["home", "job", "home", "job", "home", "job"]
    yield Probe(
        tried="ann, bob and cy, each in the templates 'home' and 'job' (rows 0 to 5); cy and 'job' are new",
        args=(entities, templates, {"cy"}, {"job"}),
        expected=([0, 2], [5]),
        means="train: ann and bob at home; test: cy in 'job'; ann and bob in 'job' and cy at home are left out",
        diagnose={
            "Rows that are new in one respect only were put into the test part. There the probe can still know the "
            "entity "
            "or the template from training.": ([0, 2], [1, 3, 4, 5]),
            "Known entities in new templates were trained on: the template is then on both sides.": ([0, 1, 2, 3], [5]),
            "New entities were trained on, in known templates: the entity is then on both sides.": ([0, 2, 4], [5]),
            "All rows that are not for testing went into training. Those with a new entity or a new template must be "
            "left out.": ([0, 1, 2, 3, 4], [5]),
            "This splits by entity and forgets the templates.": ([0, 1, 2, 3], [4, 5]),
            "This splits by template and forgets the entities.": ([0, 2, 4], [1, 3, 5]),
            "Train and test are swapped.": ([5], [0, 2]),
        },
    )
    who = ["cat", "dog", "cow", "dog", "cat", "cow", "owl"]
    frame = [2, 1, 2, 2, 1, 1, 2]
    yield Probe(
        tried="seven rows in mixed order; the new entities are dog and owl, the new template is number 2",
        args=(who, frame, {"dog", "owl"}, {2}),
        expected=([4, 5], [3, 6]),
        diagnose={
            "The order of the rows was lost: return row numbers, in order.": lambda got: (
                sorted(got[0]) == [4, 5] and sorted(got[1]) == [3, 6]
            ),
            "These are entities or templates. Return the numbers of the rows.": lambda got: any(
                isinstance(row, str) for row in [*got[0], *got[1]]
            ),
        },
    )
    yield Probe(
        tried="nothing is new",
        args=(entities, templates, set(), set()),
        expected=([0, 1, 2, 3, 4, 5], []),
        means="all rows for training, none for testing",
    )


# --- 3. a control task -----------------------------------------------------------------------------------------------


def control_labels(types: Sequence, draw: Callable) -> list:
    """One random label per word type, for all its occurrences; draw() gives the next random label."""
    known: dict = {}
    labels = []
    for word in types:
        if word not in known:
            known[word] = draw()
        labels.append(known[word])
    return labels


@exercise(
    "probing.control_labels",
    reference=control_labels,
    hints=(
        "The label must be random, and yet the same whenever the word comes again: only then can a probe learn it, "
        "and only "
        "by heart. What has to be remembered while you go through the rows?",
        "Keep a dictionary from word type to its label. Call draw() only when a word is met for the first time.",
        "Sketch: known = {}; for each word: if it is not in known, known[word] = draw(); append known[word]; return "
        "the list.",
    ),
    expected="A list as long as `types`. Equal words have equal labels, and draw() was called once per different word.",
)
def _check_control_labels() -> Iterator[Probe | Callable]:
    yield Probe(
        tried="the words a b a c b, with draw() giving 10, 20, 30, ... in turn",
        run=lambda answer: _with_deck(answer, ["a", "b", "a", "c", "b"], [10, 20, 30, 40, 50, 60]),
        expected=[10, 20, 10, 30, 20],
        means="10 for a, 20 for b, 30 for c, each time they occur",
        diagnose={
            "Every row got its own label. Then nothing can be learned, not even by heart, and the control accuracy "
            "is that "
            "of guessing: the label belongs to the word type.": [10, 20, 30, 40, 50],
            "Every row got the same label.": lambda got: len(set(got)) == 1,
            "draw() was called again for words that were known: the last label replaced the first.": lambda got: (
                list(got) == [30, 50, 30, 40, 50]
            ),
            "There is one label per word type here, not one per row.": lambda got: len(got) == 3,
            "draw() was called more often than there are words.": lambda got: any(label >= 100 for label in got),
            "Equal words have equal labels, as they must. But the labels were dealt in another order than that in "
            "which the "
            "words first appear.": lambda got: len(got) == 5 and got[0] == got[2] and got[1] == got[4],
        },
    )
    yield Probe(
        tried="the words 7 7 9 7 9, with draw() giving True, True: two words may have the same label",
        run=lambda answer: _with_deck(answer, [7, 7, 9, 7, 9], [True, True]),
        expected=[True] * 5,
    )
    yield Probe(
        tried="the words u v u, with draw() giving 0 and 1: the label 0 counts as a label",
        run=lambda answer: _with_deck(answer, ["u", "v", "u"], [0, 1, 2, 3]),
        expected=[0, 1, 0],
        diagnose={
            "The label 0 was taken for 'no label yet'. Ask whether the word is known, not whether its label is true.": [
                0,
                1,
                2,
            ]
        },  # fmt: skip
    )


def _with_deck(answer: Callable, types: Sequence, labels: Sequence):
    """The answer with a draw() that gives these labels in turn, and 100, 101, ... when it is called more often."""
    deck = chain(labels, count(100))
    return answer(types, lambda: next(deck))


# --- 4. the online code ----------------------------------------------------------------------------------------------


def online_code(x: Tensor, y: Tensor, ends: Sequence[int], probabilities: Callable, n_classes: int) -> float:
    """Bits of the labels y by the online code; `ends` are the ends of the blocks.

    probabilities(x_train, y_train, x_new) fits a probe and returns p [m, K] for the new rows.
    """
    bits = ends[0] * math.log2(n_classes)
    for start, end in zip(ends, ends[1:]):
        p = probabilities(x[:start], y[:start], x[start:end])
        bits -= p.gather(1, y[start:end, None]).log2().sum().item()
    return bits


@exercise(
    "probing.online_code",
    reference=online_code,
    hints=(
        "Before anything is sent, the receiver knows nothing: a label out of K costs log2 K bits. Later it knows all "
        "labels "
        "that were sent, and can fit the same probe as the sender. What does a label cost then?",
        "A label that the probe gave probability p costs -log2 p bits. For the block from start to end, the probe is "
        "fitted "
        "on the rows before start, all of them, and on none of the block itself.",
        "Sketch: bits = ends[0] * log2(K); for start, end in zip(ends, ends[1:]): p = probabilities(x[:start], "
        "y[:start], "
        "x[start:end]); add -log2 of the entries of p that belong to y[start:end].",
    ),
    expected="A number of bits. Labels that the probe knows for certain cost nothing, so only the first block is "
    "paid for; a "
    "probe that guesses costs as much as the uniform code, n log2 K.",
)
def _check_online_code() -> Iterator[Probe | Callable]:
    x, y = torch.arange(8.0)[:, None], torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])

    def learns(x_train, y_train, x_new):
        """True label: 1/2 after 2 rows, 3/4 after 4; the rest goes to the other class."""
        own = 0.5 if len(x_train) == 2 else 0.75
        odd = (x_new[:, 0] % 2).long()
        return torch.full((len(x_new), 2), 1 - own).scatter(1, odd[:, None], own)

    late = -4 * math.log2(0.75)
    yield Probe(
        tried="8 labels of two classes, blocks that end at 2, 4 and 8; a probe that gives the true label 1/2 when it "
        "has "
        "seen 2 rows, and 3/4 when it has seen 4",
        args=(x, y, [2, 4, 8], learns, 2),
        expected=2 + 2 + late,
        means="2 labels at 1 bit, 2 at -log2 1/2 = 1 bit, 4 at -log2 3/4 bits",
        diagnose={
            "The probe was fitted on the block that it encodes, whose labels the receiver lacks.": 2 + 1.5 * late,
            "The first block is missing. Nothing is known there, so each of its labels costs log2 K bits.": 2 + late,
            "Natural logarithms were used; bits are logarithms to the base 2.": lambda got: any(
                math.isclose(got, value, rel_tol=1e-4)
                for value in (4 * math.log(2) - 4 * math.log(0.75), 2 - 2 * math.log(0.5) - 4 * math.log(0.75))
            ),
            "The sign is turned round: -log2 p is a positive number of bits.": lambda got: any(
                math.isclose(got, value, rel_tol=1e-4) for value in (-4 - late, 2 - 2 - late)
            ),
            "The mean over the labels was taken. The code pays for each of them.": lambda got: any(
                math.isclose(got, value, rel_tol=1e-4) for value in ((4 + late) / 8, 2 + 1 + late / 4, 1 + 1 + late / 4)
            ),
            "The last block is missing.": 4.0,
            "This is the compression. Return the number of bits.": 8 / (4 + late),
        },
    )
    sure = {}

    def remembers(x_train, y_train, x_new):
        """Certain of rows that it was fitted on, 1/3 for all classes elsewhere."""
        sure["trained on"] = x_train[:, 0].tolist()
        p = torch.full((len(x_new), 3), 1 / 3)
        for i, row in enumerate(x_new[:, 0].tolist()):
            if row in sure["trained on"]:
                p[i] = torch.nn.functional.one_hot(y_train[sure["trained on"].index(row)], 3) * 0.98 + 0.01
        return p

    y3 = torch.tensor([0, 2, 1, 1, 2, 0])
    yield Probe(
        tried="6 labels of three classes, blocks that end at 1, 3 and 6; a probe that knows by heart what it was "
        "fitted on and "
        "guesses everything else",
        args=(torch.arange(6.0)[:, None], y3, [1, 3, 6], remembers, 3),
        expected=6 * math.log2(3),
        means="no block may be used to fit the probe that encodes it, so this is the uniform code",
        diagnose={
            "The probe was fitted on the block that it encodes, whose labels the receiver lacks.": lambda got: (
                got < 6 * math.log2(3) - 0.1
            ),
            "More was paid than the uniform code costs: some labels were paid for twice.": lambda got: (
                got > 6 * math.log2(3) + 0.1
            ),
        },
    )

    seen = []

    def counts(x_train, y_train, x_new):
        seen.append((len(x_train), len(y_train), len(x_new)))
        return torch.full((len(x_new), 4), 0.25)

    def fitted_on_all_that_was_sent(answer: Callable) -> None:
        """every block is encoded by a probe that was fitted on all rows before it"""
        seen.clear()
        answer(_random(10, 3), torch.arange(10) % 4, [2, 5, 10], counts, 4)
        if seen != [(2, 2, 3), (5, 5, 5)]:
            raise NotYet(
                answer.tried,
                "the probe is fitted on the first 2 rows for the next 3, then on the first 5 for the last 5",
                ", ".join(f"{n} rows ({m} labels) for {k}" for n, m, k in seen) or "it was never fitted",
                "Each probe must be fitted on all rows that were sent, and asked for the next block alone.",
            )

    yield fitted_on_all_that_was_sent


# --- 5. sparse selection ---------------------------------------------------------------------------------------------


def top_features(a: Tensor, y: Tensor, k: int) -> Tensor:
    """The k columns of a [n, m] whose class means lie furthest apart (y bool [n]), the furthest first: [k]."""
    difference = a[y].mean(0) - a[~y].mean(0)
    return difference.abs().topk(k).indices


@exercise(
    "probing.top_features",
    reference=top_features,
    hints=(
        "For each feature compare its mean activation on the positive rows with its mean on the negative ones. Can a "
        "feature "
        "that is large on the negative rows be as telling?",
        "a[y] are the positive rows, a[~y] the negative ones. Take the difference of their means, per column, and "
        "its size.",
        "Sketch: difference = mean of a[y] over rows - mean of a[~y] over rows; the indices of the k largest "
        "absolute values.",
    ),
    expected="k column numbers, the most telling first. Features that fire on the negative rows count as well.",
)
def _check_top_features() -> Iterator[Probe]:
    y = torch.tensor([True, True, False, False, False])
    a = torch.tensor(
        [[3.0, 1, 5, 1, 0], [1, 1, 5, 3, 0], [0, 0, 5, 2, 4], [0, 0, 6, 2, 4], [0, 1, 7, 2, 4]]
    )  # means on y: 2 1 5 2 0; elsewhere 0 1/3 6 2 4
    yield Probe(
        tried="5 rows (2 positive) of 5 features with means 2 1 5 2 0 on the positive and 0 1/3 6 2 4 on the negative "
        "rows; k = 3",
        args=(a, y, 3),
        expected=torch.tensor([4, 0, 2]),
        means="the differences are 2, 2/3, -1, 0, -4",
        diagnose={
            "Feature 4, which fires on the negative rows, is missing: take the size of the difference.": torch.tensor(
                [0, 1, 3]
            ),
            "These are features that are large on the positive rows, not those that differ.": lambda got: (
                got.tolist()[0] == 2
            ),
            "Sums were compared instead of means; the two groups are not equally large.": torch.tensor([4, 2, 0]),
            "The most telling feature comes first.": lambda got: sorted(got.tolist()) == [0, 2, 4],
            "These are the least telling features.": lambda got: got.tolist()[0] == 3,
            "Feature 2 differs by 1 and feature 1 by 2/3. The difference counts as it is: not divided by the spread, "
            "and not how often a feature fires.": lambda got: sorted(got.tolist()) == [0, 1, 4],
        },
    )
    a = _random(40, 12)
    y = torch.arange(40) % 3 == 0
    order = torch.stack([a[y][:, j].mean() - a[~y][:, j].mean() for j in range(12)]).abs().argsort(descending=True)
    for k in (1, 12):
        yield Probe(
            tried=f"40 rows, 12 random features of both signs, k = {k}",
            args=(a, y, k),
            expected=order[:k],
            diagnose={
                "The number of columns is not k.": lambda got, k=k: got.shape != (k,),
                "Sums were compared instead of means; the two groups are not equally large.": (
                    a[y].sum(0) - a[~y].sum(0)
                )
                .abs()
                .argsort(descending=True)[:k],  # fmt: skip
                "The sign counted. A feature that goes down is as telling as one that goes up.": lambda got, k=k: (
                    torch.equal(got, (a[y].mean(0) - a[~y].mean(0)).argsort(descending=True)[:k])
                ),
            },
        )


# --- 6. the direction that reads best --------------------------------------------------------------------------------


def lda_direction(x: Tensor, y: Tensor, penalty: float) -> Tensor:
    """(S + penalty I)^-1 (mu_1 - mu_0), [d]: S is the covariance of the states around the mean of their own class."""
    mu_1, mu_0 = x[y].mean(0), x[~y].mean(0)
    rest = x - torch.where(y[:, None], mu_1, mu_0)
    S = rest.T @ rest / len(x)
    return torch.linalg.solve(S + penalty * torch.eye(len(S)), mu_1 - mu_0)


@exercise(
    "probing.lda_direction",
    reference=lda_direction,
    hints=(
        "A reader wants a direction along which the two classes lie far apart and each class by itself is narrow. The "
        "difference of the means takes care of the first half only. What takes care of the second?",
        "Subtract from each state the mean of its own class; the covariance of what remains is S. Dividing by S "
        "turns the "
        "difference away from the directions that are noisy.",
        "Sketch: mu_1, mu_0 = means of x[y], x[~y]; rest = x - the mean of each row's class; S = rest^T rest / n; "
        "return "
        "solve(S + penalty * eye, mu_1 - mu_0).",
    ),
    expected="A vector [d]. Where all directions are equally noisy it is a multiple of the mean difference; a noisy "
    "direction "
    "counts less.",
)
def _check_lda_direction() -> Iterator[Probe]:
    x = torch.tensor([[3.0, 1], [1, 1], [3, 2], [1, 2], [1.0, 0], [-1, 0], [1, 1], [-1, 1]])
    y = torch.tensor([True] * 4 + [False] * 4)  # means (2, 1.5) and (0, .5); within: variance 1 and 1/4
    yield Probe(
        tried="8 states in the plane: class means (2, 1.5) and (0, 0.5); within a class the variance is 1 along the "
        "first "
        "axis and 0.25 along the second; penalty 0",
        args=(x, y, 0.0),
        expected=torch.tensor([2.0, 4.0]),
        means="difference (2, 1) divided by the variances 1 and 0.25",
        diagnose={
            "This is the mean difference. It has to be divided by the covariance within the classes.": torch.tensor(
                [2.0, 1]
            ),
            "The covariance is that of all states around the common mean. It holds the difference of the classes as "
            "well; "
            "take the states around the mean of their own class.": lambda got: torch.allclose(
                got, _total(x, y), atol=1e-3
            ),
            "The difference is turned round: mu_1 - mu_0.": torch.tensor([-2.0, -4.0]),
            "It was multiplied by the covariance instead of its inverse.": torch.tensor([2.0, 0.25]),
            "The covariance is a mean over the rows: divide by n.": torch.tensor([0.25, 0.5]),
            "The vector was normalised; return it as it is.": torch.tensor([2.0, 4.0]) / 20**0.5,
        },
    )
    x, y = _random(60, 4) @ _random(4, 4, seed=1), torch.arange(60) % 3 == 0
    x = x + y[:, None] * torch.tensor([1.0, -2.0, 0.5, 0.0])
    means = [x[side].mean(0) for side in (y, ~y)]
    S = sum(torch.cov(x[side].T, correction=0) * side.sum() / 60 for side in (y, ~y))
    both = sum(torch.cov(x[side].T, correction=0) / 2 for side in (y, ~y))
    right = torch.linalg.inv(S + 0.5 * torch.eye(4)) @ (means[0] - means[1])
    yield Probe(
        tried="60 states of 4 dimensions, 20 of them positive, with correlated noise; penalty 0.5",
        args=(x, y, 0.5),
        expected=right,
        tolerance=1e-3,
        diagnose={
            "The penalty is missing.": lambda got: torch.allclose(
                got, torch.linalg.inv(S) @ (means[0] - means[1]), atol=1e-3
            ),
            "Both classes count the same in your covariance. Every state counts once, so the larger class counts "
            "more.": (
                lambda got: torch.allclose(
                    got, torch.linalg.inv(both + 0.5 * torch.eye(4)) @ (means[0] - means[1]), atol=1e-3
                )
            ),
            "The penalty goes on the diagonal: penalty * I, not a number added to all entries.": lambda got: (
                torch.allclose(got, torch.linalg.inv(S + 0.5) @ (means[0] - means[1]), atol=1e-3)
            ),
            "Only the variances were used. The noise is correlated, so that the whole matrix is needed.": lambda got: (
                torch.allclose(got, (means[0] - means[1]) / (S.diag() + 0.5), atol=1e-3)
            ),
        },
    )


def _total(x: Tensor, y: Tensor) -> Tensor:
    return torch.linalg.solve(torch.cov(x.T, correction=0), x[y].mean(0) - x[~y].mean(0))


# --- 7. the smallest erasure -----------------------------------------------------------------------------------------


def leace(x: Tensor, y: Tensor) -> Tensor:
    """The states [n, d] after LEACE for two classes (y bool [n]): x - delta (x - mu) . w / (delta . w).

    delta = mu_1 - mu_0, w = S^-1 delta, with S the covariance of all states around their mean mu.
    """
    centred = x - x.mean(0)
    delta = x[y].mean(0) - x[~y].mean(0)
    w = torch.linalg.solve(centred.T @ centred / len(x), delta)
    return x - torch.outer(centred @ w, delta) / (delta @ w)


@exercise(
    "probing.leace",
    reference=leace,
    hints=(
        "Two vectors with two jobs: w reads how much of the label a state carries, delta says along which direction "
        "it is "
        "taken away. What has to hold for the class means afterwards?",
        "(x - mu) . w is one number per state. Divide it by delta . w and take that many times delta away: the two "
        "class "
        "means then fall together. S is the covariance of all states, around the common mean.",
        "Sketch: c = x - mean; delta = difference of class means; w = solve(c^T c / n, delta); return x - outer(c @ "
        "w, delta) "
        "/ (delta . w).",
    ),
    expected="States of the same shape whose two class means are equal, which is why no linear probe can do better "
    "than a "
    "constant, and which moved less than with any other such change.",
)
def _check_leace() -> Iterator[Probe | Callable]:
    x = torch.tensor([[3.0, 1], [1, 1], [3, 2], [1, 2], [1.0, 0], [-1, 0], [1, 1], [-1, 1]])
    y = torch.tensor([True] * 4 + [False] * 4)
    # S = [[2, .5], [.5, .5]], delta = (2, 1); w = (2/3, 4/3), delta . w = 8/3
    c = x - torch.tensor([1.0, 1.0])
    delta, w = torch.tensor([2.0, 1.0]), torch.tensor([2 / 3, 4 / 3])
    right = x - torch.outer(c @ w, delta) / (8 / 3)
    orthogonal = x - torch.outer(c @ delta, delta) / 5
    yield Probe(
        tried="8 states in the plane with class means (2, 1.5) and (0, 0.5), covariance [[2, 0.5], [0.5, 0.5]]",
        args=(x, y),
        expected=right,
        means="w = (2/3, 4/3), delta . w = 8/3; both class means become (1, 1)",
        diagnose={
            "This is the orthogonal projection along delta. It too makes the class means equal, but it moves the "
            "states "
            "further: read with w, take away along delta.": orthogonal,
            "The states were not centred before they were read: use (x - mu) . w.": x
            - torch.outer(x @ w, delta) / (8 / 3),
            "w was taken away, not delta: the class means still differ.": x - torch.outer(c @ w, w) / (w @ w),
            "The division by delta . w is missing.": x - torch.outer(c @ w, delta),
            "The sign is turned round: the classes were moved apart.": x + torch.outer(c @ w, delta) / (8 / 3),
            "The mean was taken away as well.": right - torch.tensor([1.0, 1.0]),
            "This is what was taken away. Return the states without it.": x - right,
        },
    )

    def laws(answer: Callable) -> None:
        """on random states with correlated noise: equal class means, the mean stays, least change"""
        x, y = _random(200, 6, seed=5) @ _random(6, 6, seed=6), torch.arange(200) % 4 == 0
        x = x + y[:, None] * _random(6, seed=7) * 2 + 5
        clean = answer(x.clone(), y)
        if not torch.allclose(clean[y].mean(0), clean[~y].mean(0), atol=1e-2):
            raise NotYet(
                answer.tried,
                "the two class means are equal afterwards",
                f"they differ by {(clean[y].mean(0) - clean[~y].mean(0)).norm():.3f}",
                "What is taken away must carry the whole difference of the class means: divide by delta . w.",
            )
        if not torch.allclose(clean.mean(0), x.mean(0), atol=1e-2):
            raise NotYet(
                answer.tried,
                "the mean of all states stays",
                f"it moved by {(clean.mean(0) - x.mean(0)).norm():.3f}",
                "The states were read without subtracting the mean of all of them.",
            )
        moved, best = (clean - x).square().sum(), (leace(x, y) - x).square().sum()
        if moved > 1.001 * best:
            raise NotYet(
                answer.tried,
                f"the smallest change, {best:.1f} in squared length",
                f"{moved:.1f}",
                "The class means are equal, but another w would move the states less: w = S^-1 delta with S the "
                "covariance "
                "of all states.",
            )

    yield laws
