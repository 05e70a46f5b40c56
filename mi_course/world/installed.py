"""Installed behaviours (T1): behaviours that `lab` lacks, put into known components, so that the answer is known.

    installed()                          the names that ship
    load_installed("refusal-a")          the lab model with that behaviour
    read("refusal-a").facts["used"]      the answer key: the units that the behaviour needs

Each is a `Delta`: a small change of the weights of chosen units, and of nothing else. `install` makes them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .. import assets
from ..models import Model, Site, SiteError, load, wrap


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
        shape = list(_weight(model, self.parameter).shape)
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


def _weight(model: Model, name: str) -> Tensor:
    """The weight that is in force, also inside a context that has put another tensor in the parameter's place."""
    path, _, leaf = name.rpartition(".")
    return model.hf.get_submodule(path)._parameters[leaf].detach()


def _input_dim(model: Model, path: str) -> int:
    """GPT-2's Conv1D stores [in, out], nn.Linear [out, in]."""
    return 1 if isinstance(model.hf.get_submodule(path), torch.nn.Linear) else 0


@dataclass
class Delta:
    """A change of the weights of some units of one model, and of nothing else.

    values     "unit|parameter" -> the change of that slice, in the order of `slices`
    directions unit -> direction [d], for units such as `x4`
    facts      name, behaviour, fingerprint of the base, measured numbers, and three lists of units as site strings:
               allowed (what was trained), used (what the behaviour goes with: the answer key), sufficient (a smallest
               set that gives 90 % of it; smaller than `used` where units can stand in for each other)
    """

    values: dict[str, Tensor]
    directions: dict[str, Tensor]
    facts: dict
    _fits: Model | None = field(default=None, repr=False, compare=False)  # the model that was checked last

    @classmethod
    def none(cls, model: Model, units: Sequence[str | Site], directions: dict[str, Tensor] | None = None) -> Delta:
        """The delta that changes nothing, on these units. Raises ValueError where two units share weights."""
        units, directions = [str(Site.parse(u)) for u in units], directions or {}
        if not units:
            raise ValueError("units is empty; name at least one, for instance ['L3H1', 'L4H2']")
        values, taken = {}, set()
        for unit in units:
            for s in slices(model, unit, directions.get(unit)):
                entries = {(s.parameter, i) for i in s.index.tolist()}
                if taken & entries:
                    raise ValueError(f"units: {unit} shares weights ({s.parameter}) with another unit; name each once")
                taken |= entries
                values[f"{unit}|{s.parameter}"] = s.zeros(model)
        return cls(values, directions, {"allowed": units, "fingerprint": model.fingerprint()}, model)

    @property
    def units(self) -> list[str]:
        """The units that were trained."""
        return list(self.facts["allowed"])

    def weights(self, model: Model, units: Sequence[str] | None = None) -> dict[str, Tensor]:
        """parameter -> base + change, with the changes of `units` (default: all). Other entries are the base's own."""
        changed: dict[str, Tensor] = {}
        for unit in self.units if units is None else units:
            for s in slices(model, unit, self.directions.get(unit)):
                base = changed.get(s.parameter, _weight(model, s.parameter))
                change = self.values[f"{unit}|{s.parameter}"].to(base)
                if s.direction is not None:
                    change = (change * s.direction.to(base)).expand(base.shape)
                changed[s.parameter] = base.index_add(s.dim, s.index.to(base.device), change)
        return changed

    @contextmanager
    def on(self, model: Model, units: Sequence[str] | None = None) -> Iterator[Model]:
        """While active, `model` has the installed behaviour (or what `units` of it give). Gradients reach `values`.

        Raises ValueError when `model` is not the one it was installed on.
        """
        self.check(model)
        changed = self.weights(model, units)
        owners = [(model.hf.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], name) for name in changed]
        before = [module._parameters[leaf] for module, leaf, _ in owners]
        try:
            for module, leaf, name in owners:
                module._parameters[leaf] = changed[name]
            yield model
        finally:
            for (module, leaf, _), parameter in zip(owners, before, strict=True):
                module._parameters[leaf] = parameter

    def applied(self, base: Model) -> Model:
        """A new model: a copy of `base` with the change written into its weights. `base` stays as it is."""
        self.check(base)
        hf = copy.deepcopy(base.hf)
        with torch.no_grad():
            for name, value in self.weights(base).items():
                hf.get_parameter(name).copy_(value)
        return wrap(hf, base.tokenizer, name=f"{base.name}+{self.facts.get('name', 'delta')}")

    def check(self, base: Model) -> None:
        """Raise ValueError unless the delta was made on exactly this model."""
        if base is self._fits:  # contexts may nest: then its weights are changed already
            return
        wanted, got = self.facts["fingerprint"], base.fingerprint()
        if wanted != got:
            name = self.facts.get("name", "this delta")
            raise ValueError(
                f"base: {name!r} was installed on the model with fingerprint {wanted}, but {base.name!r} has {got}. "
                "Use base=None for the shipped lab model in float32, or install it anew: "
                "python -m mi_course.world.install --base FOLDER --out FOLDER"
            )
        self._fits = base

    def save(self, file: str | Path) -> Path:
        """Write one safetensors file: the changed slices, with the facts as metadata."""
        from safetensors.torch import save_file

        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        tensors = {k: v.detach().contiguous() for k, v in self.values.items()}
        tensors |= {f"{unit}|": direction.contiguous() for unit, direction in self.directions.items()}
        partial = file.with_suffix(".part")
        save_file(tensors, partial, metadata={"facts": json.dumps(self.facts)})
        partial.replace(file)  # an interruption never leaves half a file
        return file

    @classmethod
    def open(cls, file: str | Path) -> Delta:
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(file, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
            facts = json.loads(f.metadata()["facts"])
        values = {k: v for k, v in tensors.items() if not k.endswith("|")}
        return cls(values, {k[:-1]: v for k, v in tensors.items() if k.endswith("|")}, facts)


def folder() -> Path:
    """Where the shipped deltas lie, after a check of their checksums."""
    return assets.path("installed") if "installed" in assets.manifest() else assets.FOLDER / "installed"


def installed() -> list[str]:
    """The names of the shipped installed behaviours."""
    return sorted(file.stem for file in folder().glob("*.safetensors"))


def read(name: str) -> Delta:
    """One shipped delta with its facts. Raises KeyError for an unknown name."""
    file = folder() / f"{name}.safetensors"
    if not file.exists():
        raise KeyError(f"no installed behaviour is called {name!r}; there are: {', '.join(installed()) or 'none'}")
    return Delta.open(file)


def load_installed(name: str, base: Model | None = None) -> Model:
    """The lab model with an installed behaviour, as a new wrapped model.

    base: the model that the behaviour was installed on; None loads `lab`. It is copied, not changed.
    Raises KeyError for an unknown name, ValueError when `base` is another model.
    """
    return read(name).applied(base or load("lab"))
