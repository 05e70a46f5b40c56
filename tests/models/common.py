"""What the tests of `models` share: one wrapped random model per family, prompts of unequal length, all its sites."""

from functools import cache

import mi_course as mi
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [4, 4, 5, 6, 7]]

__all__ = ["FAMILIES", "PROMPTS", "hooks_left", "make", "random_model", "single_sites", "sites", "whole_sites"]


@cache
def make(family: str) -> mi.Model:
    """The random model of a family, shared by all tests of a process; tests must leave it as it was."""
    return mi.wrap(random_model(family))


def whole_sites(model) -> list[str]:
    """Every object that covers a whole layer, on every layer where it exists."""
    kinds = ["x", "attn", "mlp", "z", "q", "k", "v", "scores", "pattern", "result", "neurons"]
    kinds += ["mid"] * (not model.family.is_parallel(model.config)) + ["gate", "up"] * model.family.gated
    names = [f"{kind}{layer}" for layer in range(model.n_layers) for kind in kinds]
    names += [f"{kind}{layer}.write" for layer in range(model.n_layers) for kind in ("attn", "mlp")]
    return [*names, f"x{model.n_layers}", "embed"] + ["pos"] * (model.family.pos is not None)


def single_sites(model) -> list[str]:
    """One head and one neuron, in all their states."""
    parts = ["", ".z", ".q", ".k", ".v", ".scores", ".pattern"]
    return [f"L1H2{part}" for part in parts] + [f"L0N5{p}" for p in [""] + [".gate", ".up"] * model.family.gated]


def sites(model) -> list[str]:
    return whole_sites(model) + single_sites(model)


def hooks_left(model) -> list[str]:
    """Everything that reading or writing could leave behind on the Hugging Face module."""
    from mi_course.models import attention

    left = [
        name
        for name, module in model.hf.named_modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if hooks
    ]
    left += [name for name, module in model.hf.named_modules() if {"forward", "_attn"} & set(vars(module))]
    left += ["listener"] * len(attention._LISTENERS)
    left += [] if model.config._attn_implementation == "eager" else [model.config._attn_implementation]
    return left + list(model.taps._by_port) + list(model.taps._kept)
