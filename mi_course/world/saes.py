"""The sparse autoencoders that ship with `lab`: several kinds at one site, so that they can be compared.

    world.sae("x3-topk")       the SAE; attach it with model.saes["x3-topk"] = sae, then "x3-topkF17" is a site
    saes.names()               what ships
    saes.measured()            quality of each on documents that training never showed

    python -m mi_course.world.saes      # train them all on the shipped lab, about two minutes of one core

States come from all tokens of documents of every domain, in equal amounts. Files hold float16; what is measured is
what a reader loads from them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from .. import assets
from ..models import load
from ..objects.sae import SAE, loss_recovered, states, train
from .tasks import documents

ASSET = "lab/saes"
FEATURES = 512  # 4 x the width of lab
RECIPES = {
    "x3-relu": {"kind": "relu", "sparsity": 0.1},
    "x3-topk": {"kind": "topk", "k": 16},
    "x3-batchtopk": {"kind": "batchtopk", "k": 16},
    "x3-jumprelu": {"kind": "jumprelu", "sparsity": 0.002},
    "x3-matryoshka": {"kind": "batchtopk", "k": 16, "prefixes": (32, 128, 512)},
    "mlp3-topk": {"kind": "topk", "k": 16},
}
TRAINING = {"steps": 2000, "batch_size": 512, "lr": 4e-3, "seed": 0}


def names() -> list[str]:
    """The SAEs that ship."""
    return sorted(measured())


def measured() -> dict[str, dict]:
    """By name: site, kind, settings, and fvu, l0, dead, shrinkage, loss recovered, on held-out documents."""
    return json.loads((assets.path(ASSET) / "measured.json").read_text())


def sae(name: str, model=None) -> SAE:
    """A shipped SAE by name. model: the lab model it is for (None loads `lab` to check).

    Raises KeyError for an unknown name, ValueError when `model` is another one than it was trained on.
    """
    if name not in names():
        raise KeyError(f"no shipped SAE is called {name!r}; there are: {', '.join(names()) or 'none'}")
    return SAE.load(assets.path(ASSET) / f"{name}.safetensors", model or load("lab"))


def make(model, out: Path, recipes: dict[str, dict] | None = None, n: int = 300, **training) -> dict[str, dict]:
    """Train the SAEs of `recipes` on `model`, write them and `measured.json` to the folder `out`; returns the latter.

    n: training documents of each domain; a fifteenth as many are held out to measure.
    training: overrides of `TRAINING`.
    An SAE that is there already, for this model and recipe, is kept: an interrupted run goes on where it stopped.
    """
    recipes, training = recipes or RECIPES, TRAINING | training
    out.mkdir(parents=True, exist_ok=True)
    file = out / "measured.json"
    done = json.loads(file.read_text()) if file.exists() else {}
    train_texts = flat(documents("train", n=n, seed=17))
    test_texts = flat(documents("test", n=max(1, n // 15), seed=17))
    fingerprint, x = model.fingerprint(), {}
    for name, recipe in recipes.items():
        site = name.partition("-")[0]
        settings = json.loads(json.dumps(recipe | training | {"n": n, "fingerprint": fingerprint}))
        if done.get(name, {}).get("settings") == settings and (out / f"{name}.safetensors").exists():
            print(f"{name}: there already, for this model")
            continue
        started = time.time()
        if site not in x:
            x = {site: (states(model, site, train_texts), states(model, site, test_texts))}
        fitted = train(x[site][0], FEATURES, site=site, progress=True, **recipe, **training)
        partial = out / f"{name}.part"
        fitted.save(partial, model, torch.float16)
        partial.replace(out / f"{name}.safetensors")  # an interruption never leaves half a file
        kept = SAE.load(out / f"{name}.safetensors", model)
        done[name] = {"site": site, "features": FEATURES, "settings": settings, **kept.quality(x[site][1])} | {
            f"loss_recovered_{baseline}": loss_recovered(model, kept, test_texts, baseline)
            for baseline in ("zero", "mean")
        }
        done[name]["seconds"] = round(time.time() - started)
        file.write_text(json.dumps(done, indent=1) + "\n")
        print(summary(name, done[name]))
    return done


def flat(by_domain: dict[str, Sequence[str]]) -> list[str]:
    """All texts of `documents`, domain after domain."""
    return [text for texts in by_domain.values() for text in texts]


def summary(name: str, facts: dict) -> str:
    """One line for a person."""
    return (f"{name}: FVU {facts['fvu']:.3f}, L0 {facts['l0']:.1f}, dead {facts['dead']:.2f}, shrinkage "
            f"{facts['shrinkage']:.3f}, loss recovered {facts['loss_recovered_zero']:.3f} (against zeros), "
            f"{facts['loss_recovered_mean']:.3f} (against the mean), {facts['seconds']} s")


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="lab", help="folder of the model, or 'lab' for the shipped one")
    parser.add_argument("--out", type=Path, default=assets.FOLDER / ASSET)
    parser.add_argument("--only", choices=list(RECIPES), help="train this one only")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    done = make(load(args.base), args.out, {args.only: RECIPES[args.only]} if args.only else RECIPES)
    for name in sorted(set(done) - set(RECIPES)):
        print(f"{name}: no recipe makes this one; delete it")
    if args.out.resolve() == (assets.FOLDER / ASSET).resolve():
        files = [*args.out.glob("*.safetensors"), args.out / "measured.json"]
        facts = {"fingerprint": next(iter(done.values()))["settings"]["fingerprint"], "seed": TRAINING["seed"]}
        assets.register(ASSET, files, **facts, seconds=sum(entry["seconds"] for entry in done.values()))


if __name__ == "__main__":
    main()
