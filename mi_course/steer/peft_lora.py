"""LoRA with the `peft` library, in the training loop of this course: a check of `low_rank_finetune`, and a baseline.

Optional: pip install -e ".[lora]". Everything but the adapters is ours, so data, loss, optimizer and steps are those of
the other trained steers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from mi_course.models import Model

from .fit import train
from .training import lowest_layer, matrices
from .weights import WeightEdit


@contextmanager
def adapters(model: Model, names: Sequence[str], rank: int, alpha: float, seed: int = 0) -> Iterator[dict]:
    """While active, peft's LoRA layers wrap the named matrices of the model. Yields parameter name -> LoRA layer.

    Afterwards the very modules of before are back, also after an exception.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError(
            "lora needs the library peft: pip install -e '.[lora]', or use training.low_rank_finetune"
        ) from error
    paths = [name.removesuffix(".weight") for name in names]
    modules = {path: model.hf.get_submodule(path) for path in paths}
    asked = [(parameter, parameter.requires_grad) for parameter in model.hf.parameters()]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=paths,
        fan_in_fan_out=not isinstance(modules[paths[0]], torch.nn.Linear),  # GPT-2's Conv1D stores [in, out]
    )
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inject_adapter_in_model(config, model.hf)
        yield {name: model.hf.get_submodule(path) for name, path in zip(names, paths)}
    finally:
        for path, module in modules.items():
            parent, _, leaf = path.rpartition(".")
            setattr(model.hf.get_submodule(parent), leaf, module)
        for parameter, flag in asked:
            parameter.requires_grad_(flag)
        vars(model.hf).pop("peft_config", None)  # left there by peft, which would warn the next time


def lora(
    model: Model, task, names: Sequence[str] | None = None, rank: int = 4, alpha: float | None = None, **training
) -> WeightEdit:
    """`training.low_rank_finetune` with peft's adapters: same arguments, same loop, other code for the change.

    ImportError with what to do when peft is not installed.
    """
    names = matrices(model) if names is None else list(names)
    with adapters(model, names, rank, rank if alpha is None else alpha, training.get("seed", 0)) as layers:
        numbers = [p for layer in layers.values() for n, p in layer.named_parameters() if "lora_" in n]
        options = {"weight_decay": 0.01} | training
        train(model, task, numbers, nullcontext, lowest_layer(model, names), **options)
        return WeightEdit({name: layer.get_delta_weight("default").detach() for name, layer in layers.items()})
