"""Ship a trained model: measure it, copy its files to the package's assets, record both in the manifest.

Measured are the accuracy of every behaviour and the dials (`measured.json`), whether there are mechanisms to find
(`teachable.json`), and, of the model as it was after its first stage, refusal, facts and languages (`text_alone.json`).

python -m mi_course.world.ship FOLDER --name lab
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import mi_course as mi
from mi_course import assets

from . import measure, teachable
from .train import TEXT_ALONE

FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def ship(folder: Path, name: str, n: int = 1000) -> dict:
    """Copy the checkpoint in `folder` to the assets as `name`, with what training recorded and what tests measure."""
    training = json.loads((folder / "training.json").read_text())
    model = mi.load(str(folder))
    measured = measure.measure(model, n=n)
    out = assets.FOLDER / name
    out.mkdir(exist_ok=True)
    for file in FILES:
        if (folder / file).exists():
            shutil.copyfile(folder / file, out / file)
    (out / "training.json").write_text(json.dumps(training, indent=1) + "\n")
    (out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    (out / "teachable.json").write_text(json.dumps(teachable.measure(model), indent=1) + "\n")
    before = teachable.measure(mi.load(str(folder / TEXT_ALONE)), ("ii", "iii", "iv"))
    (out / "text_alone.json").write_text(json.dumps(before, indent=1) + "\n")
    facts = {
        "parameters": sum(p.numel() for p in model.hf.parameters()),
        "tokens_seen": training["tokens_seen"],
        "seconds": training["seconds"],
        "seed": training["seed"],
        "fingerprint": model.fingerprint(),
        "measured": {task: round(r["accuracy"], 4) for task, r in measured["accuracy"].items()},
    }
    assets.register(name, [f for f in out.iterdir() if f.is_file()], **facts)
    return facts


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", required=True, choices=["lab", "lab-llama"])
    args = parser.parse_args(argv)
    print(json.dumps(ship(args.folder, args.name), indent=1))


if __name__ == "__main__":
    main()
