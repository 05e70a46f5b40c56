"""Controls without which a probe's accuracy says little (survey section 3.4 demands them, audit A20 defines them).

    majority, random_model                   what a probe reaches without the trained model
    permutation_null                         what it reaches on shuffled labels
    control_labels, selectivity              what it can learn by heart (Hewitt & Liang 2019)
    online_code                              how many bits the labels cost, given the activations (Voita & Titov 2020)
    v_information                            how many bits a probe of this family gains (Xu et al. 2020)

The embedding-only baseline needs no function: probe the site "embed" with the same split, at the same position, or with
positions="mean" for the bag of words, which knows every word of the prompt and no order.
"""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import wrap

from .probe_sweep import Split, evaluate
from .probing import Probe, fit

# --- baselines -------------------------------------------------------------------------------------------------------


def majority(y: Sequence[Hashable], split: Split) -> float:
    """Accuracy on split.test of always saying the commonest label of split.train: what every probe must beat."""
    best = Counter(y[i] for i in split.train).most_common(1)[0][0]
    return sum(y[i] == best for i in split.test) / len(split.test)


def random_model(model, seed: int = 0):
    """A model of the same architecture and tokenizer with freshly initialised weights, in the same wrapper.

    What a probe decodes here was in the words and in the wiring, not in anything that was learned.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hf = type(model.hf)(copy.deepcopy(model.hf.config)).to(model.device, model.dtype)
    return wrap(hf, tokenizer=model.tokenizer, name=f"{model.name}, random weights")


def permutation_null(x: Tensor, y: Sequence, split: Split, kind: str = "logistic", draws: int = 20, seed: int = 0,
                     groups: Sequence | None = None, penalty: float | None = None) -> list[float]:  # fmt: skip
    """Accuracies on split.test with shuffled labels, one per draw: the null of "this is decodable".

    groups: n entities. When the label belongs to the entity, whole entities must swap labels; shuffling rows would
    tear apart what the probe can learn by heart, and give too easy a null. Raises ValueError when a group has two
    labels.
    """
    rng, accuracies = random.Random(seed), []
    for _ in range(draws):
        shuffled = _shuffle(list(y), groups, rng)
        if len({shuffled[i] for i in split.train}) < 2:
            continue
        accuracies.append(evaluate(x, shuffled, split, kind, penalty=penalty))
    return accuracies


def _shuffle(y: list, groups: Sequence | None, rng: random.Random) -> list:
    if groups is None:
        return rng.sample(y, len(y))
    label_of: dict = {}
    for group, label in zip(groups, y, strict=True):
        first = label_of.setdefault(group, label)
        if first != label:
            raise ValueError(f"groups: {group!r} has two labels ({first!r}, {label!r}); then shuffle rows, groups=None")
    dealt = dict(zip(label_of, rng.sample(list(label_of.values()), len(label_of))))
    return [dealt[group] for group in groups]


# --- selectivity (Hewitt & Liang 2019) -------------------------------------------------------------------------------


def control_labels(types: Sequence[Hashable], y: Sequence[Hashable], seed: int = 0) -> list:
    """A control task: every word type gets one random label for all its occurrences, drawn as often as in y.

    Its labels say nothing about the context, so a probe can only know them by heart, type by type.
    """
    if len(types) != len(y):
        raise ValueError(f"types has {len(types)} entries for {len(y)} labels; give the word type of every row")
    rng = random.Random(seed)
    pool = list(y)
    drawn = {word: rng.choice(pool) for word in sorted(set(types), key=str)}
    return [drawn[word] for word in types]


@dataclass(frozen=True)
class Selectivity:
    """accuracy on the real labels, on the control task (mean over draws), and the difference."""

    accuracy: float
    control: float

    @property
    def selectivity(self) -> float:
        return self.accuracy - self.control


def selectivity(x: Tensor, y: Sequence, types: Sequence, split: Split, kind: str = "logistic", draws: int = 3,
                seed: int = 0, penalty: float | None = None) -> Selectivity:  # fmt: skip
    """accuracy(y) - accuracy(control task) of the same probe on the same split: high when the probe cannot do it alone.

    types: the word type of each row (`token_types`). Types of the test part must occur in training, or nobody could
    know their random label: split by sentence, not by word. Raises ValueError when less than half of them do.
    """
    known = {types[i] for i in split.train}
    seen = sum(types[i] in known for i in split.test) / len(split.test)
    if seen < 0.5:
        raise ValueError(
            f"types: only {seen:.0%} of the test rows have a word type of the training part, so nobody could know its "
            "random label and selectivity says nothing; split by sentence"
        )
    controls = [evaluate(x, control_labels(types, y, seed + i), split, kind, penalty=penalty) for i in range(draws)]
    return Selectivity(evaluate(x, y, split, kind, penalty=penalty), sum(controls) / draws)


# --- information -----------------------------------------------------------------------------------------------------

FRACTIONS = (0.0625, 0.125, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Description:
    """Length of the labels in bits: online code, uniform code (n log2 K), and compression = uniform / online."""

    bits: float
    uniform: float

    @property
    def compression(self) -> float:
        return self.uniform / self.bits


def online_code(x: Tensor, y: Sequence, kind: str = "logistic", fractions: Sequence[float] = FRACTIONS, seed: int = 0,
                penalty: float | None = None) -> Description:  # fmt: skip
    """Minimum description length of y given x by the online (prequential) code (Voita & Titov 2020).

    The labels are sent in blocks. The first block costs log2 K bits a label. For every later one both sides fit the
    probe on all blocks so far, and a label costs -log2 p(label). A probe that learns fast gives a short code, so the
    length counts accuracy and effort together: no control task is needed. The order is shuffled first (seed).
    fractions: ends of the blocks as shares of n, rising to 1. kind: "logistic" or "mlp", which give probabilities.
    """
    if kind not in ("logistic", "mlp"):
        raise ValueError(f"kind={kind!r} gives no probabilities; choose 'logistic' or 'mlp'")
    if list(fractions) != sorted(set(fractions)) or fractions[-1] != 1 or fractions[0] <= 0:
        raise ValueError(f"fractions={fractions} must rise to 1, for instance {FRACTIONS}")
    order = random.Random(seed).sample(range(len(y)), len(y))
    x, y = x[order], [y[i] for i in order]
    classes = sorted(set(y), key=str)
    ends = [max(1, round(f * len(y))) for f in fractions]
    bits = ends[0] * math.log2(len(classes))
    for start, end in zip(ends, ends[1:]):
        if len(set(y[:start])) < 2:  # nothing to fit yet
            bits += (end - start) * math.log2(len(classes))
        else:
            probe = fit(x[:start], y[:start], kind, penalty)
            bits -= _log2_probs(probe, x[start:end], y[start:end], classes).sum().item()
    return Description(bits, len(y) * math.log2(len(classes)))


def v_information(x: Tensor, y: Sequence, split: Split, kind: str = "logistic", penalty: float | None = None) -> float:
    """Bits per label that a probe of this family gains on split.test over the class shares of split.train.

    I_V = H_V(y) - H_V(y | x), both as held-out log-loss (Xu et al. 2020). At most the entropy of y; below 0 when the
    probe is worse than knowing nothing, which over-fitted probes are.
    """
    known, asked = [y[i] for i in split.train], [y[i] for i in split.test]
    classes = sorted(set(y), key=str)
    counts = Counter(known)
    without = -sum(math.log2((counts[label] + 1) / (len(known) + len(classes))) for label in asked)
    probe = fit(x[split.train], known, kind, penalty)
    return (without + _log2_probs(probe, x[split.test], asked, classes).sum().item()) / len(asked)


def _log2_probs(probe: Probe, x: Tensor, y: Sequence, classes: list, floor: float = 1e-3) -> Tensor:
    """log2 p(y | x), [n]. A share of `floor` goes to the uniform code, so that no label costs endless bits."""
    p = probe.log_probs(x).double().exp()
    own = torch.tensor([p[i, probe.classes.index(label)].item() if label in probe.classes else 0.0
                        for i, label in enumerate(y)])  # fmt: skip
    return ((1 - floor) * own + floor / len(classes)).log2()
