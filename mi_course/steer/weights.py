"""Reversible edits of weights: what the steering methods that change parameters return."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn


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
        owners = []
        for name, delta in self.deltas.items():
            path, _, parameter = name.rpartition(".")
            try:
                module = model.hf.get_submodule(path)
                old = module._parameters[parameter]
            except (AttributeError, KeyError):
                raise KeyError(
                    f"deltas: the model has no parameter {name!r}; names are those of hf.named_parameters()"
                ) from None
            if old is None or old.shape != delta.shape:
                raise ValueError(
                    f"deltas[{name!r}] has shape {tuple(delta.shape)}; the parameter has "
                    f"{None if old is None else tuple(old.shape)}: this edit is for another model"
                )
            owners.append((module, parameter, old, delta))
        try:
            for module, parameter, old, delta in owners:
                changed = old.detach() + self.strength * delta.to(old)
                module._parameters[parameter] = nn.Parameter(changed, requires_grad=old.requires_grad)
            yield model
        finally:
            for module, parameter, old, _ in reversed(owners):
                module._parameters[parameter] = old

    def scaled(self, strength: float) -> WeightEdit:
        """The same edit at another strength."""
        return WeightEdit(self.deltas, strength)
