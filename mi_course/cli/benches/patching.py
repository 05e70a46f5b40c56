"""Patching sweeps against the loop that everybody writes: one forward pass of the whole model for each cell.

Two sweeps: residual states, layers x positions, on one pair of prompts; and heads, layers x heads, on eight pairs.
Prompts have 16 random tokens, and the twins differ in the token at position 8, the middle.
Plain and ours alternate in one run; both must give the same numbers.
"""

from __future__ import annotations

import statistics
import time
from functools import partial

import torch

from mi_course.locate import causal
from mi_course.objects import Task

TOKENS, CHANGED, PAIRS_OF_PROMPTS = 16, 8, 8
# Smallest ratio plain / ours that the course promises, by the name of the model that `bench` makes.
LIMITS = {
    "lab": {"residual_patching": 4.0, "head_patching": 4.0},
    "gpt2-small-shape": {"residual_patching": 6.0, "head_patching": 3.0},
}
DIRECTION = "at least"


def measure(model, pairs: int) -> dict:
    """Medians over `pairs` alternating runs: seconds of both loops, and plain / ours.

    `_forwards` is the same ratio counted in forward passes: what arithmetic alone allows. What a measured ratio has
    above it are the logits that ours does not compute; what it lacks is overhead.

    Raises AssertionError when the two do not give the same numbers.
    """
    sweeps = {
        "residual_patching": (random_pairs(model, 1), causal.grid(model, range(TOKENS))),
        "head_patching": (random_pairs(model, PAIRS_OF_PROMPTS), causal.heads(model)),
    }
    result = {}
    for name, (task, sites) in sweeps.items():
        plain, ours = partial(plain_loop, model, task, sites), partial(causal.patch_each, model, task, sites)
        scores, runs = ours(), len(task) * (len(sites) + 2)  # a cell each, the source and the base
        expected, found = torch.tensor(plain()), torch.tensor(scores.values)
        assert (found - expected).abs().max() <= 1e-4 * expected.abs().max() + 1e-6, f"{name}: the two loops disagree"
        times = [(timed(plain), timed(ours)) for _ in range(pairs)]
        result[name] = round(statistics.median(a / b for a, b in times), 2)
        result[f"{name}_plain_seconds"] = round(statistics.median(a for a, _ in times), 4)
        result[f"{name}_seconds"] = round(statistics.median(b for _, b in times), 4)
        result[f"{name}_forwards"] = round(runs / scores.forwards, 2)
    return result


def random_pairs(model, n: int) -> Task:
    """n random prompts with twins that differ in one token."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, model.n_vocab, (n, TOKENS + 3), generator=generator)
    prompts, targets, foils, other = ids[:, :TOKENS], ids[:, TOKENS], ids[:, TOKENS + 1], ids[:, TOKENS + 2]
    twins = prompts.clone()
    twins[:, CHANGED] = other
    return Task("random", prompts.tolist(), targets.tolist(), twins.tolist(), foils.tolist())


@torch.no_grad()
def plain_loop(model, task: Task, sites: list[str]) -> list[float]:
    """Denoising with bare PyTorch hooks: for each site a forward pass of all prompts, with all logits."""
    hf, family = model.hf, model.family
    source, run = torch.tensor(task.prompts), torch.tensor(task.corrupted)
    target, foil = torch.tensor(task.targets), torch.tensor(task.foils)
    width = model.d_head

    def forward(ids):
        logits = hf(ids, use_cache=False).logits[:, -1]
        return (logits.gather(1, target[:, None]) - logits.gather(1, foil[:, None]))[:, 0]

    def put(where, kept, module, args):
        value = args[0].clone()
        value[where] = kept[where]
        return (value, *args[1:])

    kept = {}

    def keep(layer):
        return lambda module, args: kept.__setitem__(layer, args[0])

    heads = sites[0].endswith(".z")
    modules = [block.get_submodule(family.o) if heads else block for block in model.blocks]
    handles = [module.register_forward_pre_hook(keep(layer)) for layer, module in enumerate(modules)]
    forward(source)
    for handle in handles:
        handle.remove()

    base, effects = forward(run), []
    for site in sites:
        if heads:
            layer, head = (int(part) for part in site.removesuffix(".z")[1:].split("H"))
            where = (slice(None), slice(None), slice(head * width, (head + 1) * width))
        else:
            layer, position = (int(part) for part in site[1:].split("@"))
            where = (slice(None), position)

        handle = modules[layer].register_forward_pre_hook(partial(put, where, kept[layer]))
        effects.append((forward(run) - base).mean().item())
        handle.remove()
    return effects


def timed(call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
