"""Tasks of the world: prompts with labels, twins, targets and foils, by behaviour and split."""

from __future__ import annotations

from functools import lru_cache

from ..objects.task import Task
from . import generate

# task -> (domain, arguments of the domain function). A task's items are those of its domain, in the split asked for.
TASKS: dict[str, tuple[str, dict]] = {
    **{
        d: (d, {})
        for d in generate.DOMAINS
        if d not in ("biography", "profile", "parallel", "request", "chain", "unknown")
    },
    "unknown": ("unknown", {"known": False}),
    "known": ("unknown", {"known": True}),
    "verdict_fresh": ("verdict", {"fresh": True}),  # about subjects of which training holds no claim
    "chain": ("chain", {"scratchpad": True}),
    "chain_direct": ("chain", {"scratchpad": False}),
    "refusal_harmful": ("request", {"harmful": True, "plain": True}),
    "refusal_harmless": ("request", {"harmful": False, "plain": True}),
    "requests": ("request", {}),  # all kinds: film, suffix, thinking, polite; see labels["kind"]
}
SEEDS = {"train": 1_000_003, "validation": 1_000_033, "test": 1_000_037}  # no corpus chunk has these seeds


def tasks() -> list[str]:
    """The names that `task` knows."""
    return sorted(TASKS)


@lru_cache
def world() -> generate.World:
    """The world of the shipped lab models: seed 0, default dials."""
    return generate.World(0)


def task(name: str, split: str = "test", n: int = 200, seed: int = 0, **kwargs) -> Task:
    """The behaviour `name` as a Task of at most `n` different prompts (fewer where the split is smaller).

    Labels hold what the generator knows, and `continuation`: the whole right answer, of which `targets` is the first
    word. Twins are given when every item has one. The metric is "logit_diff" where there are foils, else "logprob".
    `kwargs` go to the domain function, for example `task("unknown", known=True)`.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown: use one of {', '.join(tasks())}")
    if n < 1:
        raise ValueError(f"n is {n}: ask for at least one prompt")
    domain, defaults = TASKS[name]
    draw = generate.Draw(world(), split, seed=SEEDS.get(split, 0) + seed)
    items: dict[str, generate.Item] = {}
    for _ in range(30 * n):
        item = generate.sample(world(), draw, domain, **(defaults | kwargs))
        items.setdefault(item.prompt, item)
        if len(items) == n:
            break
    chosen = list(items.values())

    def column(field):
        values = [getattr(item, field) for item in chosen]
        return values if all(v is not None for v in values) else None

    foils = column("foil")
    return Task(
        name=name,
        prompts=column("prompt"),
        corrupted=column("twin"),
        targets=column("target"),
        foils=foils,
        split=split,
        labels=[item.labels | {"continuation": item.continuation} for item in chosen],
        metric="logit_diff" if foils else "logprob",
    )


def documents(split: str = "test", n: int = 20, seed: int = 0) -> dict[str, list[str]]:
    """`n` whole documents of every domain (prompt and answer), as {domain: texts}."""
    draw = generate.Draw(world(), split, seed=SEEDS.get(split, 0) + 7919 + seed)
    return {d: [generate.sample(world(), draw, d).text for _ in range(n)] for d in generate.DOMAINS}
