"""The transcoders that ship with `lab`, one for the FFN of each layer.

    world.transcoder("mlp3")   one of them          transcoders.all_layers(model)   all, in the order of the layers
    transcoders.measured()     quality of each on documents that training never showed

    python -m mi_course.world.transcoders      # train them all on the shipped lab, about ten minutes of one core

They are made like the SAEs (`world/saes.py`): all tokens of documents of every domain, float16, measured as loaded.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from .. import assets
from ..models import load
from ..objects.transcoder import Transcoder, loss_recovered, states, train
from .saes import flat
from .tasks import documents

ASSET = "lab/transcoders"
RECIPE = {"m": 512, "kind": "topk", "k": 16}
TRAINING = {"steps": 4000, "batch_size": 256, "lr": 1e-3, "remedy": "auxk", "dead_after": 200, "seed": 0}


def names() -> list[str]:
    """The transcoders that ship, by the FFN they stand for."""
    return sorted(measured())


def measured() -> dict[str, dict]:
    """By name: layer, settings, and fvu, l0, dead, loss recovered (against the FFN's mean), on held-out documents."""
    return json.loads((assets.path(ASSET) / "measured.json").read_text())


def transcoder(name: str, model=None) -> Transcoder:
    """A shipped transcoder by name ("mlp0" ...). model: the lab model it is for (None loads `lab` to check).

    Raises KeyError for an unknown name, ValueError when `model` is another one than it was trained on.
    """
    if name not in names():
        raise KeyError(f"no shipped transcoder is called {name!r}; there are: {', '.join(names())}")
    return Transcoder.load(assets.path(ASSET) / f"{name}.safetensors", model or load("lab"))


def all_layers(model) -> list[Transcoder]:
    """The shipped transcoders of every layer, layer 0 first: what `locate.feature_graph.attribution_graph` takes."""
    return [transcoder(f"mlp{layer}", model) for layer in range(model.n_layers)]


def make(model, out: Path, n: int = 300, recipe: dict | None = None, **training) -> dict[str, dict]:
    """Train a transcoder for each FFN of `model`, write them and `measured.json` to `out`; returns the latter.

    n: training documents of each domain; a fifteenth as many are held out to measure.
    One that is there already, for this model and recipe, is kept: an interrupted run goes on where it stopped.
    """
    recipe, training = recipe or RECIPE, TRAINING | training
    out.mkdir(parents=True, exist_ok=True)
    file = out / "measured.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    train_texts, test_texts = (flat(documents(split, count, seed=17))
                               for split, count in (("train", n), ("test", max(1, n // 15))))
    settings = recipe | training | {"n": n, "fingerprint": model.fingerprint()}
    for layer in range(model.n_layers):
        name = f"mlp{layer}"
        if done.get(name, {}).get("settings") == settings and (out / f"{name}.safetensors").exists():
            print(f"{name}: there already, for this model")
            continue
        started = time.time()
        fitted = train(*states(model, layer, train_texts), layer=layer, progress=True, **recipe, **training)
        partial = out / f"{name}.part"
        fitted.save(partial, model, torch.float16)
        partial.replace(out / f"{name}.safetensors")  # an interruption never leaves half a file
        kept = Transcoder.load(out / f"{name}.safetensors", model)
        quality = kept.quality(*states(model, layer, test_texts))
        done[name] = {"layer": layer, "settings": settings, **quality,
                      "loss_recovered": loss_recovered(model, kept, test_texts),
                      "seconds": round(time.time() - started)}
        file.write_text(json.dumps(done, indent=1) + "\n")
        print(summary(name, done[name]), flush=True)
    return done


def summary(name: str, facts: dict) -> str:
    """One line for a person."""
    return (f"{name}: FVU {facts['fvu']:.3f}, L0 {facts['l0']:.1f}, dead {facts['dead']:.2f}, loss recovered "
            f"{facts['loss_recovered']:.3f} (against the mean), {facts['seconds']} s")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="lab", help="folder of the model, or 'lab' for the shipped one")
    parser.add_argument("--out", type=Path, default=assets.FOLDER / ASSET)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    done = make(load(args.base), args.out)
    if args.out.resolve() == (assets.FOLDER / ASSET).resolve():
        files = [*args.out.glob("*.safetensors"), args.out / "measured.json"]
        facts = {"fingerprint": next(iter(done.values()))["settings"]["fingerprint"], "seed": TRAINING["seed"]}
        assets.register(ASSET, files, **facts, seconds=sum(entry["seconds"] for entry in done.values()))


if __name__ == "__main__":
    main()
