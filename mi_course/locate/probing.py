"""Probes: small classifiers that read a label off frozen activations (survey section 3.4, Eq. 15, audit A20).

    p(y | z) = softmax(z W_P + b)        z [n, d], W_P [d, K], b [K]

In the row convention of the course, with the bias that Eq. 15 leaves out. z is any recorded object: a state, a head,
an FFN output, SAE features. Kinds, all with one linear map at the end, so that they share one class `Probe`:

    logistic          maximum likelihood with an L2 penalty (scikit-learn)
    linear, ridge     least squares to one-hot targets, without and with an L2 penalty
    mean difference   nearest class mean; for two classes the direction is mu_1 - mu_0
    lda               nearest class mean after whitening: the direction is S^-1 (mu_1 - mu_0), S within classes
    mlp               one hidden layer; has no direction. For the question how much a probe itself can learn

A probe measures what can be decoded, not what the model uses. `probe_controls` holds the controls, `erasure` the
interventions that go on from there, `probe_sweep` probes many sites.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

KINDS = ("logistic", "linear", "ridge", "mean difference", "lda", "mlp")


@dataclass(frozen=True)
class Probe:
    """A fitted linear probe: scores = z W + b.

    kind, classes   how it was fitted; the K labels, in the order of the columns
    W [d, K], b [K] in the units of the activations, float32 on the CPU
    """

    kind: str
    classes: list
    W: Tensor
    b: Tensor

    def scores(self, x: Tensor) -> Tensor:
        """[n, K]: the larger, the likelier the class. For "logistic" these are log-odds, so softmax gives p."""
        return x.float().cpu() @ self.W + self.b

    def predict(self, x: Tensor) -> list:
        """The likeliest class of every row of x [n, d]."""
        return [self.classes[i] for i in self.scores(x).argmax(1).tolist()]

    def accuracy(self, x: Tensor, y: Sequence[Hashable]) -> float:
        """Share of rows whose predicted class is y, 0 ... 1. A class that was not there in training counts as wrong."""
        return sum(a == b for a, b in zip(self.predict(x), y, strict=True)) / len(y)

    def log_probs(self, x: Tensor) -> Tensor:
        """[n, K], natural logarithms of p(class | x). Meaningful for kinds fitted by likelihood (logistic, mlp)."""
        return self.scores(x).log_softmax(1)

    def direction(self, toward: Hashable = None, away: Hashable = None) -> Tensor:
        """[d]: along it, the score of `toward` grows against that of `away`. The vector to steer or to erase with.

        Two classes need no arguments: from the first to the second. `away` None means the mean of all other classes.
        """
        if toward is None and len(self.classes) != 2:
            raise ValueError(f"toward is missing: this probe has {len(self.classes)} classes ({_some(self.classes)})")
        i = 1 if toward is None else self._index("toward", toward)
        others = [j for j in range(len(self.classes)) if j != i] if away is None else [self._index("away", away)]
        return self.W[:, i] - self.W[:, others].mean(1)

    def _index(self, argument: str, label: Hashable) -> int:
        if label not in self.classes:
            raise ValueError(f"{argument}={label!r} is none of the classes {_some(self.classes)}")
        return self.classes.index(label)

    def __repr__(self) -> str:
        return f"Probe({self.kind}: {self.W.shape[0]} dimensions -> {_some(self.classes)})"


@dataclass(frozen=True, repr=False)
class MLPProbe(Probe):
    """scores = relu(z W_in + b_in) W + b. It reads what is not linear, and so has no direction."""

    W_in: Tensor = None
    b_in: Tensor = None

    def scores(self, x: Tensor) -> Tensor:
        return (x.float().cpu() @ self.W_in + self.b_in).relu() @ self.W + self.b

    def direction(self, toward: Hashable = None, away: Hashable = None) -> Tensor:
        raise ValueError("an mlp probe has no direction: it is not linear; fit kind='logistic' or 'mean difference'")


def fit(x: Tensor, y: Sequence[Hashable], kind: str = "logistic", penalty: float | None = None, seed: int = 0) -> Probe:
    """Fit a probe that reads label y from activations.

    Args:
        x: activations [n, d].  y: n labels, at least two different ones (strings, bools, numbers).
        kind: one of KINDS.
        penalty: strength of the regularisation, on activations centred and scaled to a mean square of 1. logistic: 1/C
            of scikit-learn, default 1. ridge: default 1 per row. lda: share of the mean variance that is added to every
            variance, default 0.01. mlp: L2 on all weights, default 1. The other kinds have none.
    The scale is one number for all coordinates, so that a rotation of the space changes no accuracy.
    Raises ValueError for unknown kinds, unequal lengths, or a single class.
    """
    x, y = _checked(x, y)
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is unknown; choose one of {', '.join(KINDS)}")
    if penalty is not None and kind in ("linear", "mean difference"):
        raise ValueError(f"penalty={penalty}: kind {kind!r} has no penalty; use 'ridge', 'lda' or 'logistic'")
    classes = sorted(set(y), key=lambda label: (str(type(label)), label))
    index = torch.tensor([classes.index(label) for label in y])
    centre = x.mean(0)
    # class means are taken as they are, so that their difference is a vector to steer with (Eq. 22)
    scale = 1.0 if kind == "mean difference" else (x - centre).square().mean().sqrt().clamp_min(1e-12)
    z = (x - centre) / scale
    if kind == "mlp":
        return _mlp(z, index, classes, 1.0 if penalty is None else penalty, seed, centre, scale)
    W, b = {"logistic": _logistic, "linear": _least_squares, "ridge": _least_squares, "lda": _lda,
            "mean difference": _nearest_mean}[kind](z, index, len(classes), kind, penalty)  # fmt: skip
    W = W / scale  # back to the units of x
    return Probe(kind, classes, W.float(), (b - centre @ W).float())


# --- the kinds: standardised z [n, d] in float64, class numbers [n] -> W [d, K], b [K] -------------------------------


def _logistic(z, index, n_classes, kind, penalty):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # separable classes: the accuracy has long settled
        model = LogisticRegression(C=1 / (1.0 if penalty is None else penalty), max_iter=300)
        model.fit(z.numpy(), index.numpy())
    coef, bias = torch.from_numpy(model.coef_), torch.from_numpy(np.atleast_1d(model.intercept_))
    if n_classes == 2:  # one row of log-odds: share it between the two columns
        coef, bias = torch.cat([-coef, coef]) / 2, torch.cat([-bias, bias]) / 2
    return coef.T, bias


def _least_squares(z, index, n_classes, kind, penalty):
    """min |z W + b - one_hot|^2 + penalty * n |W|^2. z is centred, so that b is the mean of the targets."""
    targets = torch.nn.functional.one_hot(index, n_classes).double()
    b = targets.mean(0)
    if kind == "linear":
        # below the rounding of float32, which activations come in, a direction holds nothing but noise
        return torch.linalg.lstsq(z, targets - b, rcond=1e-6, driver="gelsd").solution, b
    ridge = (1.0 if penalty is None else penalty) * len(z)
    return torch.linalg.solve(z.T @ z + ridge * torch.eye(z.shape[1], dtype=z.dtype), z.T @ (targets - b)), b


def class_means(x: Tensor, index: Tensor, n_classes: int) -> Tensor:
    """Mean of the rows of every class: x [n, d], class numbers [n] -> [K, d]."""
    return torch.stack([x[index == k].mean(0) for k in range(n_classes)])


def _nearest_mean(z, index, n_classes, kind, penalty):
    """|z - mu_k|^2 = |z|^2 - 2 (z mu_k - |mu_k|^2 / 2): the nearest mean has the largest z mu_k - |mu_k|^2 / 2."""
    means = class_means(z, index, n_classes)
    return means.T, -means.square().sum(1) / 2


def _lda(z, index, n_classes, kind, penalty):
    """The same in the metric of the covariance within classes S: z S^-1 mu_k - mu_k S^-1 mu_k / 2."""
    means = class_means(z, index, n_classes)
    S = within_covariance(z, index, n_classes)
    ridge = (0.01 if penalty is None else penalty) * S.trace() / len(S) + 1e-9  # constant states have no S to invert
    W = torch.linalg.solve(S + ridge * torch.eye(len(S), dtype=S.dtype), means.T)
    return W, -(means.T * W).sum(0) / 2


def within_covariance(x: Tensor, index: Tensor, n_classes: int) -> Tensor:
    """Covariance of the rows around the mean of their class, [d, d]."""
    rest = x - class_means(x, index, n_classes)[index]
    return rest.T @ rest / len(x)


def _mlp(z, index, classes, decay, seed, centre, scale):
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        net = MLPClassifier((128,), solver="lbfgs", alpha=decay, max_iter=100, random_state=seed)
        net.fit(z.numpy(), index.numpy())
    (W_in, W), (b_in, b) = ([torch.from_numpy(part) for part in parts] for parts in (net.coefs_, net.intercepts_))
    if len(classes) == 2:  # one column of log-odds: share it between the two classes
        W, b = torch.cat([-W, W], dim=1) / 2, torch.cat([-b, b]) / 2
    W_in = W_in / scale  # back to the units of x
    return MLPProbe("mlp", classes, W.float(), b.float(), W_in.float(), (b_in - centre @ W_in).float())


def _checked(x: Tensor, y: Sequence) -> tuple[Tensor, list]:
    y = y.tolist() if isinstance(y, (Tensor, np.ndarray)) else list(y)
    if x.dim() != 2 or len(x) != len(y):
        raise ValueError(f"x has shape {tuple(x.shape)} for {len(y)} labels; give [n, d] with one row per label")
    if len(set(y)) < 2:
        raise ValueError(f"y has the one class {y[0]!r}: a probe needs at least two; draw other items or another split"
                         if y else "y is empty: give one label per row")  # fmt: skip
    if not torch.isfinite(x).all():
        raise ValueError("x holds values that are not finite; look where the activations come from")
    return x.detach().cpu().double(), y


def _some(labels: list) -> str:
    return ", ".join(map(str, labels[:4])) + (f", ... ({len(labels)} in all)" if len(labels) > 4 else "")
