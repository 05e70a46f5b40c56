"""Steer: edits of activations under one dial, the strength.

    x <- x + s (T(x) - x)        s = 0: the identity, bit-equal;  s = 1: the full edit T;  s > 1 and s < 0 extrapolate

T is what the primitive edits of `mi_course.models` do: zero, mean, patch, scale, add, project. So s times a vector is
x + s v, and zeroing at strength s is scaling by 1 - s. A `WeightEdit` has the same dial: W + s delta.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mi_course.models import Intervention, Site, SiteError, intervene


@dataclass(frozen=True)
class Detector:
    """Says for every prompt whether to steer: fires when (state at `site`) . direction > threshold.

    site       names a position of the prompt, such as "x3@-1", and comes before the steered sites in the forward pass
    direction  shape of that state: [d] for x3@-1, [] for a neuron or a feature
    """

    site: str
    direction: Tensor
    threshold: float = 0.0

    def __post_init__(self):
        if Site.parse(self.site).position is None:
            raise ValueError(f"site {self.site!r} names no position; say which token to read, such as {self.site}@-1")

    def score(self, state: Tensor) -> Tensor:
        """state [B, ...] -> its component along the direction, [B]."""
        if state.shape[1:] != self.direction.shape:
            wanted, got = tuple(state.shape[1:]), tuple(self.direction.shape)
            raise SiteError(f"detector at '{self.site}': direction has shape {got}, but the state there has {wanted}")
        return (state * self.direction.to(state)).reshape(len(state), -1).sum(-1)


@dataclass(frozen=True)
class Steer:
    """Edits with a strength. Use it as `with steer.on(model): ...`, or with others in `mi.intervene(model, ...)`.

    edits     primitive edits (`mi.zero`, `mi.add` ...), each with its own sites and positions
    strength  0 is the identity, 1 the edits themselves
    schedule  factor on the strength at the first, second ... generated token; the last one stays. Prompt: factor 1
    when      detector; prompts for which it does not fire stay as they are, also while generating
    """

    edits: tuple[Intervention, ...]
    strength: float = 1.0
    schedule: tuple[float, ...] | None = None
    when: Detector | None = None

    def __post_init__(self):
        edits = (self.edits,) if isinstance(self.edits, Intervention) else tuple(self.edits)
        if not edits or not all(isinstance(edit, Intervention) for edit in edits):
            raise TypeError("edits: give one or more primitive edits, made with mi.zero, mi.scale, mi.add and the like")
        object.__setattr__(self, "edits", edits)
        if self.schedule is not None:
            if len(self.schedule) == 0:
                raise ValueError("schedule is empty; give one factor for each generated token, such as (1.0, 0.5, 0.0)")
            object.__setattr__(self, "schedule", tuple(float(factor) for factor in self.schedule))

    def on(self, model):
        """Context manager: while active, every forward pass and generation of `model` is steered. Yields the model."""
        return intervene(model, self)

    def scaled(self, strength: float) -> Steer:
        """The same steer at another strength."""
        return replace(self, strength=strength)

    def taps(self) -> Iterable[tuple]:
        """(site, function) pairs for `mi.intervene`: the detector reads first."""
        decision = None if self.when is None else _Decision(self.when)
        if decision is not None:
            yield decision.site.at(None), decision
        for edit in self.edits:
            for site, edited in edit.taps():
                yield site, _Blend(self, site, edited, decision)


class _Decision:
    """A tap that changes nothing and keeps, for every row, whether the detector fired on its prompt."""

    def __init__(self, detector: Detector):
        self.detector, self.site = detector, Site.parse(detector.site)
        self.fired, self.pass_of = None, None

    def __call__(self, value: Tensor, where) -> Tensor:
        read = where.chosen.among(self.site.position, where.start, where.end)
        if read is not False:  # the pass holds the prompt; later passes generate
            self.fired = self.detector.score(value[read]) > self.detector.threshold
            self.pass_of = where.chosen
        return value

    def rows(self, site: Site, where) -> Tensor:
        """[B] bool. SiteError when this pass reaches the steered site before the detector."""
        is_prompt = where.end <= where.chosen.prompt.shape[1]
        if self.fired is None or (is_prompt and self.pass_of is not where.chosen):
            raise SiteError(
                f"when: the detector reads '{self.site}', which the forward pass computes after the steered '{site}'; "
                "read an earlier site"
            )
        return self.fired


class _Blend:
    """One edit at one site: x + s (T(x) - x), with s from strength, schedule and detector."""

    def __init__(self, steer: Steer, site: Site, edited, decision: _Decision | None):
        self.steer, self.site, self.edited, self.decision = steer, site, edited, decision

    def __call__(self, value: Tensor, where) -> Tensor:
        new = self.edited(value, where)
        if new is value:
            return value
        return torch.lerp(value, new, self._strength(value, where))  # exact at 0 and at 1

    def _strength(self, value: Tensor, where) -> Tensor | float:
        strength, axes = self.steer.strength, value.dim()
        if self.steer.schedule is not None:
            width, factors = where.chosen.prompt.shape[1], torch.tensor([1.0, *self.steer.schedule])
            index = (torch.arange(where.start, where.end) - width + 1).clamp(0, len(factors) - 1)
            shape = [1] * axes
            shape[where.axis] = where.end - where.start
            strength = strength * factors[index].view(shape).to(value)
        if self.decision is not None:
            strength = strength * self.decision.rows(self.site, where).view(-1, *[1] * (axes - 1)).to(value)
        return strength


@contextmanager
def together(model, *steers):
    """`with together(model, vector, weight_edit): ...` applies several steers, of activations or weights, in order."""
    with ExitStack() as stack:
        for steer in steers:
            stack.enter_context(steer.on(model))
        yield model
