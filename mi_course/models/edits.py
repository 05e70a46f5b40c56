"""intervene and the primitive edits: zero, mean, patch, scale, project, add, and edit for any function.

Every edit is the identity at its neutral strength (scale 1, add 0, patch with the value itself), composes with others
from left to right, works in generation with the KV cache, and leaves nothing behind.

`positions` says where an edit applies. Positions count real tokens of the prompt, whatever the padding:
    "all" | "prompt" | "last" (last prompt token) | "generated" (tokens after the prompt) | 3 | -1 | [0, 3]
    integer tensor [B] or [B, k] (own positions for each row) | bool tensor [B, T] over the columns of the batch
For scores and pattern the position is that of the query. A position in the site's own name ("x4@-1") goes before
`positions`.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .batch import check_positions
from .hooks import Where
from .sites import Site, SiteError, parse_sites


@dataclass(frozen=True)
class Intervention:
    """A change of activations: `transform(value, where)` applied at `sites` and `positions`.

    `name` and `arguments` say how it was made, so that it can be saved and made again (steer/saving.py).
    Use it as `with intervention.on(model): ...` or, with others, `with intervene(model, first, second): ...`.
    """

    name: str
    sites: tuple[Site, ...]
    transform: Callable[[Tensor, Where], Tensor]
    positions: object = "all"
    arguments: Mapping[str, object] = field(default_factory=dict, compare=False)

    def __post_init__(self):
        check_positions(self.positions)

    def on(self, model):
        """Context manager: while active, every forward pass of `model` is intervened on."""
        return intervene(model, self)

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.sites))})"

    def taps(self):
        """(site, function) pairs for the model's taps."""
        for site in self.sites:
            positions = self.positions if site.position is None else site.position
            yield site.at(None), _Applier(self, site, positions)


@contextmanager
def intervene(model, *edits):
    """While active, the edits apply to every forward pass and generation of `model`; contexts nest. Yields the model.

    edits: Interventions, or lists of them. Edits of one site act from left to right; those of different sites in the
    order of the computation. Raises SiteError before anything is changed.
    """
    with model.taps.active([tap for edit in _flatten(edits) for tap in edit.taps()]):
        yield model


def edit(sites, function: Callable[[Tensor], Tensor], positions="all") -> Intervention:
    """Replace the value of each site by `function(value)`, which must keep shape and dtype. Shapes: `models.sites`."""
    return make("edit", sites, lambda value, where: function(value), positions, function=function)


def zero(sites, positions="all") -> Intervention:
    """Set to zero (zero ablation)."""
    return make("zero", sites, lambda value, where: torch.zeros_like(value), positions)


def mean(sites, value, positions="all") -> Intervention:
    """Set to a mean, the same for every prompt (mean ablation; not to be confused with centring, audit A30).

    value: mean activation over a data set, without batch axis: [d] for x4, [] for L2N117, [H, d_head] for z3.
    """
    value = _as_tensor("value", value)
    return make("mean", sites, lambda now, where: fit_feature(value, now, where).expand_as(now), positions, value=value)


def patch(sites, value, positions="all") -> Intervention:
    """Set to a value taken from elsewhere, as `record` returns it: [B, T, ...] for all prompt columns.

    Also [B, ...] where a single position is patched (`positions="last"`, an int, or a site such as "x4@-1"), and
    anything that broadcasts over batch and positions, such as a vector [d].
    Generated tokens have no counterpart in a recorded prompt and keep their value.
    """
    value = _as_tensor("value", value)
    return make("patch", sites, lambda now, where: _fit_patch(value, now, where), positions, value=value)


def scale(sites, alpha: float | Tensor, positions="all") -> Intervention:
    """Multiply by alpha: 0 ablates, 1 is the identity, above 1 amplifies. A tensor [d] has one for each entry."""

    def transform(value, where):
        return value * (fit_feature(alpha, value, where) if isinstance(alpha, Tensor) else alpha)

    return make("scale", sites, transform, positions, alpha=alpha)


def project(sites, direction, positions="all") -> Intervention:
    """Remove a direction r: x - (x . r) r with r of unit norm (directional ablation, audit A25). direction [d]."""
    direction = _as_tensor("direction", direction).float()
    norm = direction.norm()
    if direction.dim() != 1 or not norm > 0:
        raise ValueError(f"direction: shape {tuple(direction.shape)}, norm {norm:.3g}; give one non-zero vector [d]")

    def transform(value, where):
        r = fit_feature(direction / norm, value, where)
        return value - (value * r).sum(-1, keepdim=True) * r

    return make("project", sites, transform, positions, direction=direction)


def add(sites, vector, alpha: float = 1.0, positions="all") -> Intervention:
    """Add alpha * vector (activation steering, Eq. 21). vector [d] for x4, no batch axis; alpha 0 is the identity."""
    vector = _as_tensor("vector", vector)

    def transform(value, where):
        return value + alpha * fit_feature(vector, value, where)

    return make("add", sites, transform, positions, vector=vector, alpha=alpha)


def make(name: str, sites, transform, positions, **arguments) -> Intervention:
    """A primitive edit. `transform(value, where)` keeps shape and dtype; `arguments` are those of `name`'s function."""
    return Intervention(name, tuple(parse_sites(sites)), transform, positions, arguments)


def _flatten(edits) -> Iterable[Intervention]:
    for item in edits:
        if isinstance(item, (list, tuple)):
            yield from _flatten(item)
        elif hasattr(item, "taps"):
            yield item
        else:
            raise TypeError(f"edits: {item!r} is a {type(item).__name__}, not an edit; make one with zero, patch, add")


class _Applier:
    """One intervention at one site: computes the new value and keeps the old one at positions that are not chosen."""

    def __init__(self, intervention: Intervention, site: Site, positions):
        self.intervention, self.site, self.positions = intervention, site, positions

    def __call__(self, value: Tensor, where: Where) -> Tensor:
        mask = where.mask(self.positions, value)
        if mask is False:
            return value
        try:
            new = self.intervention.transform(value, where)
        except SiteError as error:
            raise SiteError(f"{self.intervention.name} at '{self.site}': {error}") from None
        if not isinstance(new, Tensor) or new.shape != value.shape or new.dtype != value.dtype:
            got = f"{tuple(new.shape)} {new.dtype}" if isinstance(new, Tensor) else type(new).__name__
            raise SiteError(
                f"{self.intervention.name} at '{self.site}' returned {got}, but the value there is "
                f"{tuple(value.shape)} {value.dtype}; keep shape and dtype"
            )
        return new if mask is None else torch.where(mask, new, value)


def _as_tensor(name: str, value) -> Tensor:
    tensor = torch.as_tensor(value)
    if not tensor.is_floating_point():
        tensor = tensor.float() if tensor.dim() == 0 else tensor
    if not tensor.is_floating_point():
        raise TypeError(f"{name} has dtype {tensor.dtype}; activations are floating point, convert it with .float()")
    return tensor


def fit_feature(vector: Tensor, value: Tensor, where: Where) -> Tensor:
    """`vector` ready to broadcast over `value`. It must match one position of it, or the last axes of one position."""
    one = value.shape[1:2] + value.shape[3:] if where.axis == 2 else value.shape[2:]
    if vector.dim() > len(one) or vector.shape != one[len(one) - vector.dim() :]:
        raise SiteError(f"the vector has shape {tuple(vector.shape)}, but one position there has {tuple(one)}")
    vector = vector.to(value.device, value.dtype)
    return vector.unsqueeze(-2) if where.axis == 2 and vector.dim() == len(one) else vector


def _fit_patch(patch: Tensor, value: Tensor, where: Where) -> Tensor:
    """`patch` shaped like `value`, cut to the columns that are being computed; columns after the prompt keep theirs."""
    new, axis = patch.to(value.device, value.dtype), where.axis
    if new.dim() == value.dim() - 1 and new.dim() > 0:
        new = new.unsqueeze(axis)  # [B, ...]: one position
    if new.dim() == value.dim() and new.shape[axis] == where.chosen.prompt.shape[1] > 1:
        start, end = (min(column, new.shape[axis]) for column in (where.start, where.end))
        beyond = where.end - max(where.start, end)
        new = new.narrow(axis, start, end - start)
        if beyond:
            new = torch.cat([new, value.narrow(axis, value.shape[axis] - beyond, beyond)], dim=axis)
    try:
        return new.expand_as(value)
    except RuntimeError:
        raise SiteError(
            f"the value has shape {tuple(patch.shape)}, but {tuple(value.shape)} is there; record it on prompts of the "
            "same number and length, or give a value for one position"
        ) from None
