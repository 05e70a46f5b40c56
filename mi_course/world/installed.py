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
from ..models import Model, Site, load, wrap
from ..models.slices import replaced, slices, weight_in_force
from ..steer.weights import WeightEdit


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
                base = changed.get(s.parameter, weight_in_force(model, s.parameter))
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
        with replaced(model, self.weights(model, units)):
            yield model

    def applied(self, base: Model) -> Model:
        """A new model: a copy of `base` with the change written into its weights. `base` stays as it is."""
        self.check(base)
        hf = copy.deepcopy(base.hf)
        with torch.no_grad():
            for name, value in self.weights(base).items():
                hf.get_parameter(name).copy_(value)
        return wrap(hf, base.tokenizer, name=f"{base.name}+{self.facts.get('name', 'delta')}")

    def edit(self, base: Model, units: Sequence[str] | None = None) -> WeightEdit:
        """The change (of `units`; default all) as a WeightEdit of `base`: the task vector of this behaviour."""
        self.check(base)
        deltas: dict[str, Tensor] = {}
        for unit in self.units if units is None else units:
            for s in slices(base, unit, self.directions.get(unit)):
                whole = deltas.setdefault(s.parameter, torch.zeros_like(weight_in_force(base, s.parameter)))
                change = self.values[f"{unit}|{s.parameter}"].detach().to(whole)
                if s.direction is not None:
                    change = (change * s.direction.to(whole)).expand(whole.shape)
                whole.index_add_(s.dim, s.index.to(whole.device), change)
        return WeightEdit(deltas)

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
