"""Which numbers of the weights belong to one unit: the address of a head, neuron, FFN or direction in the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from .model import Model
from .sites import Site, SiteError


@dataclass(frozen=True)
class Slice:
    """What a unit owns of one parameter: the entries `index` along axis `dim`.

    direction: None, or a unit vector that broadcasts against the parameter; then the change is free numbers times this
    vector (rank one).
    """

    parameter: str
    dim: int
    index: Tensor
    direction: Tensor | None = None

    def zeros(self, model: Model) -> Tensor:
        """The change that changes nothing: the numbers that training may move."""
        shape = list(weight_in_force(model, self.parameter).shape)
        shape[self.dim] = len(self.index)
        if self.direction is not None:
            shape = [1 if width > 1 else n for n, width in zip(shape, self.direction.shape, strict=True)]
        return torch.zeros(shape)


def slices(model: Model, unit: str | Site, direction: Tensor | None = None) -> list[Slice]:
    """The weights that belong to one unit, as slices of the Hugging Face parameters.

    `L3H5`   a head: its columns of W_Q, W_K, W_V with their biases, and its rows of W_O. Where key-value heads are
             shared by a group (audit A6), W_K and W_V belong to no single head and are left out.
    `L2N117` a neuron: its key, the bias of its key, and its value.
    `mlp3`   a whole FFN.
    `x4`     a direction: what FFN 3 writes along `direction` [d] into x^4. The change of W_out has rank one.
    Raises SiteError for any other site, ValueError for an index that the model does not have.
    """
    site, family = Site.parse(unit), model.family
    if site.kind not in ("head", "neuron", "mlp", "x") or site.part not in (None, "", "result", "neurons"):
        raise SiteError(f"unit {site}: choose a head (L3H5), a neuron (L2N117), an FFN (mlp3) or a direction (x4)")
    layer = site.layer - 1 if site.kind == "x" else site.layer
    count = {"head": model.n_heads, "neuron": model.d_ffn}.get(site.kind)
    if not 0 <= layer < model.n_layers or (count and (site.index is None or not 0 <= site.index < count)):
        raise ValueError(
            f"unit {site} does not exist in {model.name}: choose among {model.n_layers} layers with {model.n_heads} "
            f"heads and {model.d_ffn} neurons each, counted from 0, and directions of x1 ... x{model.n_layers}"
        )
    block = f"{family.blocks}.{layer}."
    if site.kind == "head":
        return _head_slices(model, block, site.index)
    if site.kind == "x":
        if direction is None or direction.shape != (model.d_model,):
            raise ValueError(f"unit {site} needs a direction of {model.d_model} numbers; give one, for instance random")
        return _direction_slices(model, block, direction / direction.norm())
    neurons = torch.tensor([site.index]) if site.kind == "neuron" else torch.arange(model.d_ffn)
    found = _neuron_slices(model, block, neurons)
    if site.kind == "mlp":
        found += _bias(model, block + family.mlp_out, torch.arange(model.d_model))
    return found


def _head_slices(model: Model, block: str, head: int) -> list[Slice]:
    family, n, H, K = model.family, model.d_head, model.n_heads, model.n_kv_heads
    own = torch.arange(head * n, (head + 1) * n)
    if family.qkv is None:
        readers = [(path, own) for path in ((family.q, family.k, family.v) if H == K else (family.q,))]
    elif family.qkv_layout == "heads":  # q, k, v of head 0, then of head 1, ...
        readers = [(family.qkv, torch.arange(3 * head * n, 3 * (head + 1) * n))]
    else:  # all q, all k, all v
        readers = [(family.qkv, torch.cat([own + start * n for start in ((0, H, H + K) if H == K else (0,))]))]
    found = [s for path, index in readers for s in _outputs(model, block + path, index)]
    return found + _inputs(model, block + family.o, own)


def _neuron_slices(model: Model, block: str, neurons: Tensor) -> list[Slice]:
    family = model.family
    if family.mlp_in is not None:
        readers = [(family.mlp_in, neurons)]
    elif family.gate_up is not None:
        readers = [(family.gate_up, torch.cat([neurons, neurons + model.d_ffn]))]
    else:
        readers = [(family.gate, neurons), (family.up, neurons)]
    found = [s for path, index in readers for s in _outputs(model, block + path, index)]
    return found + _inputs(model, block + family.mlp_out, neurons)


def _direction_slices(model: Model, block: str, direction: Tensor) -> list[Slice]:
    path = block + model.family.mlp_out
    (weight,) = _inputs(model, path, torch.arange(model.d_ffn))
    found = [Slice(weight.parameter, weight.dim, weight.index, direction.unsqueeze(weight.dim))]
    return found + [Slice(s.parameter, 0, s.index, direction) for s in _bias(model, path, torch.arange(model.d_model))]


def _outputs(model: Model, path: str, index: Tensor) -> list[Slice]:
    """Output units `index` of a projection, with their biases."""
    return [Slice(f"{path}.weight", 1 - _input_dim(model, path), index), *_bias(model, path, index)]


def _inputs(model: Model, path: str, index: Tensor) -> list[Slice]:
    return [Slice(f"{path}.weight", _input_dim(model, path), index)]


def _bias(model: Model, path: str, index: Tensor) -> list[Slice]:
    return [] if getattr(model.hf.get_submodule(path), "bias", None) is None else [Slice(f"{path}.bias", 0, index)]


def weight_in_force(model: Model, name: str) -> Tensor:
    """The weight that is in force, also inside a context that has put another tensor in the parameter's place."""
    path, _, leaf = name.rpartition(".")
    return model.hf.get_submodule(path)._parameters[leaf].detach()


def place(model: Model, name: str, shape: torch.Size) -> tuple[torch.nn.Module, str, Tensor]:
    """(module, name in it, tensor in force) of a parameter. KeyError: no such name; ValueError: another shape."""
    path, _, leaf = name.rpartition(".")
    try:
        module = model.hf.get_submodule(path)
        old = module._parameters[leaf]
    except (AttributeError, KeyError):
        raise KeyError(f"the model has no parameter {name!r}; names are those of model.hf.named_parameters()") from None
    if old is None or old.shape != shape:
        raise ValueError(
            f"{name!r}: the new tensor has shape {tuple(shape)}, the parameter "
            f"{None if old is None else tuple(old.shape)}: this change is for another model"
        )
    return module, leaf, old


@contextmanager
def replaced(model: Model, tensors: Mapping[str, Tensor]) -> Iterator[Model]:
    """While active, these tensors stand in the place of the named parameters. Gradients reach what they are made of.

    The parameters themselves are not touched, and are back afterwards, also after an exception. A tensor is replaced
    in its own module only: an unembedding that is tied to a replaced embedding stays as it was.
    """
    places = [(*place(model, name, tensor.shape), tensor) for name, tensor in tensors.items()]
    try:
        for module, leaf, _, tensor in places:
            module._parameters[leaf] = tensor
        yield model
    finally:
        for module, leaf, old, _ in places:
            module._parameters[leaf] = old


def _input_dim(model: Model, path: str) -> int:
    """GPT-2's Conv1D stores [in, out], nn.Linear [out, in]."""
    return 1 if isinstance(model.hf.get_submodule(path), torch.nn.Linear) else 0
