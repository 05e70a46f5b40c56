"""Second moments C = E[k^T k] of the FFN keys of the shipped lab models, which ROME and MEMIT need.

    steer.editing.second_moments(model)          reads them
    python -m mi_course.world.moments            makes them, for lab and lab-llama: a minute of one core

Over all real tokens of training documents of every domain, not centred. The upper triangle is stored, in float32.
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from .. import assets
from ..models import load
from ..steer.editing import key_covariance
from .tasks import documents

DOCUMENTS = 100  # of each domain
MODELS = ("lab", "lab-llama")


def main() -> None:
    torch.set_num_threads(1)
    texts = [text for own in documents("train", DOCUMENTS).values() for text in own]
    for name in MODELS:
        model, file = load(name), assets.FOLDER / name / "moments.safetensors"
        triangle = tuple(torch.triu_indices(model.d_ffn, model.d_ffn))
        packed = {f"mlp{layer}": key_covariance(model, texts, layer)[triangle] for layer in range(model.n_layers)}
        save_file(packed, file)
        assets.register(f"{name}/moments.safetensors", [file], fingerprint=model.fingerprint(), documents=len(texts))


if __name__ == "__main__":
    main()
