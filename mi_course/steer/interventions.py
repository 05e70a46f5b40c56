"""Learned edits of activations, with the model frozen (survey section 4.2, S2e, and 4.3, S3e).

    trained vector   x + v                        one vector at one site                                        (S3e)
    layer biases     x^l + b^l at every layer     reasoning by biases only (Sinii et al. 2025)                  (S2e)
    LoReFT           x + R^T (W x + b - R x)      R [r, d] with orthonormal rows   (Wu et al. 2024, arXiv 2404.03592)
    DiReFT           x + W2^T (W1 x + b)          the same without the constraint and without the difference

The survey files these under targeted optimization, although no weight changes (audit A25). All are trained by the loop
of `fit`, are neutral before the first step, and come back as a `Steer`: strength 0 is the identity, 1 what was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from mi_course.models import Intervention, Model, Site, SiteError, add, intervene
from mi_course.models.edits import fit_feature, make

from .fit import train
from .steer import Steer


# --- primitive edits ------------------------------------------------------------------------------------------------
def loreft(sites, R: Tensor, W: Tensor, b: Tensor, positions="all") -> Intervention:
    """x + R^T (W x + b - R x): in the subspace of R's rows, put W x + b in the place of x. The rest of x stays.

    R [r, d] with orthonormal rows, W [r, d], b [r]. The change has rank r or less.
    """
    _check_shapes(R=R, W=W, b=b)

    def transform(x, where):
        rows, read, bias = (t.to(x) for t in (R, W, b))
        return x + (x @ read.T + bias - x @ rows.T) @ rows

    return make("loreft", sites, transform, positions, R=R, W=W, b=b)


def direft(sites, W1: Tensor, W2: Tensor, b: Tensor, positions="all") -> Intervention:
    """x + W2^T (W1 x + b). W1, W2 [r, d], b [r]."""
    _check_shapes(W1=W1, W2=W2, b=b)

    def transform(x, where):
        read, write, bias = (t.to(x) for t in (W1, W2, b))
        return x + (x @ read.T + bias) @ write

    return make("direft", sites, transform, positions, W1=W1, W2=W2, b=b)


def affine(sites, scale: Tensor, bias: Tensor, positions="all") -> Intervention:
    """scale * x + bias, coordinate by coordinate. Both in the shape of one position: [d], or [H, d_head] for z3."""

    def transform(x, where):
        return x * fit_feature(scale, x, where) + fit_feature(bias, x, where)

    return make("affine", sites, transform, positions, scale=scale, bias=bias)


def _check_shapes(**tensors: Tensor) -> None:
    (first, A), (second, B), (_, b) = tensors.items()
    if A.dim() != 2 or A.shape != B.shape or b.shape != A.shape[:1]:
        raise ValueError(
            f"{first} {tuple(A.shape)}, {second} {tuple(B.shape)} and b {tuple(b.shape)} do not fit: "
            f"give {first} and {second} [rank, d] and b [rank]"
        )


# --- training -------------------------------------------------------------------------------------------------------
def train_edits(
    model: Model, task, numbers: Sequence[Tensor], edits: Callable[[], Sequence[Intervention]], **training
) -> list[float]:
    """Train numbers that enter edits of activations: `edits()` makes them from the numbers as they are.

    training: see `fit.train`. Returns the loss of every step.
    """
    sites = [site for edit in edits() for site in edit.sites]
    return train(
        model,
        task,
        numbers,
        lambda: intervene(model, *edits()),
        start_layer(sites),
        **{"weight_decay": 0.0, "learning_rate": 0.02} | training,
    )


def start_layer(sites: Iterable[Site | str]) -> int | None:
    """The last layer whose input no site can change: x4 is written by block 3. None: from the embedding on."""
    layers = []
    for site in map(Site.parse, sites):
        if site.kind in ("embed", "pos") or (site.kind == "x" and site.layer == 0):
            return None
        layers.append(site.layer - (site.kind == "x"))
    return min(layers)


def trained_vector(model: Model, task, site: str, positions="all", **training) -> Steer:
    """A vector v, trained so that x + v at `site` gives the answers of the task (S3e).

    The vector is `steer.edits[0].arguments["vector"]`, [d]. training: see `fit.train`; `documents` keep other text.
    """
    return _vectors(model, task, [site], positions, training)


def layer_biases(model: Model, task, layers: Iterable[int] | None = None, positions="all", **training) -> Steer:
    """One trained vector per layer, added to what leaves the block (x^{l+1}); default all layers (S2e)."""
    layers = range(model.n_layers) if layers is None else layers
    return _vectors(model, task, [f"x{layer + 1}" for layer in layers], positions, training)


def _vectors(model: Model, task, sites: Sequence[str], positions, training: dict) -> Steer:
    values = [torch.zeros(model.d_model, device=model.device, requires_grad=True) for _ in sites]

    def edits():
        return [add(site, value, positions=positions) for site, value in zip(sites, values)]

    train_edits(model, task, values, edits, **training)
    return Steer([add(site, value.detach(), positions=positions) for site, value in zip(sites, values)])


def orthonormal_rows(raw: Tensor) -> Tensor:
    """[r, d] with orthonormal rows that span those of `raw` [r, d]; differentiable (QR)."""
    return torch.linalg.qr(raw.T).Q.T


def reft(
    model: Model, task, sites: Sequence[str], rank: int = 4, positions="last", direct: bool = False, **training
) -> Steer:
    """LoReFT at each of the sites (states such as "x3"), or DiReFT if `direct`.

    Starts neutral: W = R, b = 0 (DiReFT: W2 = 0). The reference implementation (stanfordnlp/pyreft) starts from a
    random W. What it calls DiReFT keeps orthonormal rows; this is the paper's, there NodireftIntervention.
    positions: ReFT edits first and last tokens of the prompt: "last", -1, or a list such as [0, 1, -2, -1].
    training: see `fit.train`.
    """
    if not 1 <= rank <= model.d_model:
        raise ValueError(f"rank is {rank}; choose from 1 to {model.d_model}")
    for site in sites:
        if Site.parse(site).kind not in ("x", "mid", "attn", "mlp"):
            raise SiteError(f"site {site}: ReFT edits states and block outputs, such as x3 or mlp2")
    generator = torch.Generator().manual_seed(training.get("seed", 0))
    numbers = []
    for _ in sites:
        first = orthonormal_rows(torch.randn(rank, model.d_model, generator=generator))
        second = torch.zeros_like(first) if direct else first.clone()
        numbers += [t.to(model.device).requires_grad_(True) for t in (first, second, torch.zeros(rank))]

    def edits():
        for site, first, second, b in zip(sites, numbers[::3], numbers[1::3], numbers[2::3]):
            if direct:
                yield direft(site, first, second, b, positions)
            else:
                yield loreft(site, orthonormal_rows(first), second, b, positions)

    train_edits(model, task, numbers, edits, **training)
    with torch.no_grad():
        numbers = [number.detach() for number in numbers]
        return Steer(tuple(edits()))
