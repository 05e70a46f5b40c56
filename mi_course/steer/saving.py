"""Save a steer and load it again: NAME.safetensors with the tensors, NAME.json with everything else.

The JSON is small and meant to be read: base model and its fingerprint, sites, positions, strength, and the facts that
you give (how it was made, what it was measured to do). A steer fits one model only, and `load` refuses every other;
a steer of SAE features also fits one SAE only, since feature 17 of another one is something else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mi_course import models
from mi_course.models import Site
from mi_course.models.model import add_to_digest

from . import amplitude, interventions, vectors
from .decoding import DoLa
from .steer import Detector, Steer
from .weights import WeightEdit

# Primitive edit -> the function that makes it: f(sites, **arguments, positions=...). New kinds are added here.
MAKERS = {
    "zero": models.zero,
    "mean": models.mean,
    "patch": models.patch,
    "scale": models.scale,
    "project": models.project,
    "add": models.add,
    "loreft": interventions.loreft,
    "direft": interventions.direft,
    "affine": interventions.affine,
    "set_entries": amplitude.set_entries,
    "scale_entries": amplitude.scale_entries,
    "cut": amplitude.cut,
    "add_relative": vectors.add_relative,
}


def save(steer: Steer | WeightEdit | DoLa, file: str | Path, model, **facts) -> Path:
    """Write a steer of `model` to two files of this name, .safetensors and .json. Returns the path of the JSON.

    facts: anything JSON can hold that a later reader should know, for instance task="refusal_harmful", accuracy=0.99.
    TypeError for edits that hold a Python function.
    """
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, value):
        """JSON's form of an argument; tensors go to the other file and leave their key."""
        if isinstance(value, torch.Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()
            return {"tensor": name}
        return list(value) if isinstance(value, tuple) else value

    if isinstance(steer, WeightEdit):
        record = {"kind": "weights", "parameters": sorted(steer.deltas)}
        for name, delta in steer.deltas.items():
            keep(name, delta)
    elif isinstance(steer, DoLa):
        candidates = None if steer.candidates is None else list(steer.candidates)
        record = {"kind": "decoding", "candidates": candidates, "alpha": steer.alpha}
    elif isinstance(steer, Steer):
        unknown = [edit.name for edit in steer.edits if edit.name not in MAKERS]
        if unknown:
            raise TypeError(
                f"steer: '{unknown[0]}' cannot be saved; only {', '.join(MAKERS)} can, since they are made of numbers. "
                "Write your function as one of them, or add its maker to steer.saving.MAKERS"
            )
        record = {
            "kind": "activations",
            "schedule": steer.schedule,
            "edits": [
                {
                    "name": edit.name,
                    "sites": [str(site) for site in edit.sites],
                    "positions": keep(f"{i}.positions", edit.positions),
                    "arguments": {k: keep(f"{i}.{k}", v) for k, v in edit.arguments.items()},
                }
                for i, edit in enumerate(steer.edits)
            ],
        }
        if steer.when is not None:
            record["when"] = {
                "site": steer.when.site,
                "direction": keep("when", steer.when.direction),
                "threshold": steer.when.threshold,
            }
    else:
        raise TypeError(f"steer: {type(steer).__name__} cannot be saved; give a Steer, a WeightEdit or DoLa")
    base = {"name": model.name, "fingerprint": model.fingerprint()}
    if isinstance(steer, Steer):
        base["saes"] = _saes(model, [site for edit in steer.edits for site in edit.sites], steer.when)
    record = {"base": base, "strength": steer.strength, **record, "facts": facts}
    text = json.dumps(record, indent=1)
    tensor_file, json_file = _files(file)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    for target, write in (
        (tensor_file, lambda f: save_file(tensors, f)),
        (json_file, lambda f: f.write_text(text + "\n")),
    ):
        partial = target.with_name(target.name + ".part")
        write(partial)
        partial.replace(target)  # an interruption never leaves half a file
    return json_file


def load(file: str | Path, model) -> Steer | WeightEdit | DoLa:
    """Read what `save` wrote, for the same model. ValueError when `model` or an SAE that the steer uses is another."""
    record = read(file)
    wanted, got = record["base"]["fingerprint"], model.fingerprint()
    if wanted != got:
        raise ValueError(
            f"model: the steer was made on {record['base']['name']!r} with fingerprint {wanted}, but {model.name!r} "
            f"has {got}. Load that model, or make the steer again on this one"
        )
    for name, wanted in record["base"].get("saes", {}).items():
        if name not in model.saes or _fingerprint(model.saes[name]) != wanted:
            raise ValueError(
                f"model: the steer uses features of the SAE {name!r} with fingerprint {wanted}; attach that SAE first: "
                f"model.saes[{name!r}] = sae"
            )
    tensors = load_file(_files(file)[0])
    if record["kind"] == "weights":
        return WeightEdit({name: tensors[name] for name in record["parameters"]}, record["strength"])
    if record["kind"] == "decoding":
        return DoLa(record["candidates"], record["alpha"], record["strength"])

    def back(value):
        return tensors[value["tensor"]] if isinstance(value, dict) else value

    edits = tuple(
        MAKERS[edit["name"]](
            edit["sites"],
            positions=back(edit["positions"]),
            **{name: back(value) for name, value in edit["arguments"].items()},
        )
        for edit in record["edits"]
    )
    when = record.get("when")
    when = when and Detector(when["site"], back(when["direction"]), when["threshold"])
    return Steer(edits, record["strength"], record["schedule"], when)


def read(file: str | Path) -> dict:
    """The JSON of a saved steer: base, strength, edits, facts. FileNotFoundError says what is missing."""
    for part in _files(file):
        if not part.exists():
            raise FileNotFoundError(f"file: {part} is missing; a saved steer is a .safetensors and a .json of one name")
    return json.loads(_files(file)[1].read_text())


def _saes(model, sites: Iterable[Site], when: Detector | None) -> dict[str, str]:
    """The SAEs whose features a steer reads or sets: name -> fingerprint."""
    sites = [*sites] if when is None else [*sites, Site.parse(when.site)]
    names = {site.sae for site in sites if site.kind == "feature"}
    return {name: _fingerprint(model.saes[name]) for name in sorted(names) if name in model.saes}


def _fingerprint(sae) -> str:
    """12 hex digits that change with any number of the SAE; the same for all that are no torch module."""
    digest = hashlib.blake2b(digest_size=6)
    if isinstance(sae, torch.nn.Module):
        add_to_digest(digest, sae.state_dict().items())
    return digest.hexdigest()


def _files(file: str | Path) -> tuple[Path, Path]:
    file = Path(file)
    stem = file.with_suffix("") if file.suffix in (".json", ".safetensors") else file
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
