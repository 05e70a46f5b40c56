"""Reversible edits of weights: what the steering methods that change parameters return."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from mi_course.models.slices import place, replaced


@dataclass(frozen=True)
class WeightEdit:
    """Adds strength * delta to named parameters for as long as the context lasts.

    deltas: parameter name of the Hugging Face module (as in `model.hf.get_parameter`) -> change of the same shape.
    strength 0 is the identity. On leaving, the very parameters of before are back, also after an exception.

    The parameter is replaced in its own module only. An embedding that is tied to the unembedding is therefore untied
    while the edit lasts: editing the one leaves the other as it was.
    """

    deltas: Mapping[str, torch.Tensor]
    strength: float = 1.0

    @contextmanager
    def on(self, model):
        """`with edit.on(model):` runs the model with changed weights."""
        changed = {}
        for name, delta in self.deltas.items():
            _, _, old = place(model, name, delta.shape)
            new = old.detach() + self.strength * delta.to(old)
            changed[name] = nn.Parameter(new, requires_grad=old.requires_grad)
        with replaced(model, changed):
            yield model

    def scaled(self, strength: float) -> WeightEdit:
        """The same edit at another strength."""
        return WeightEdit(self.deltas, strength)
