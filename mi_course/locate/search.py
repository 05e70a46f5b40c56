"""Finding the set: greedy groups (Sahara) and a search from layers down to neurons that spends few forwards.

Single ablations rank objects one at a time and so miss what acts together: backups (an OR) and cancelling pairs
(audit A17). A greedy search asks each time what matters *given* the ones already chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mi_course.objects import Task

from .causal import ablation, ffns, heads, references
from .sweep import Sweep


@dataclass(frozen=True)
class Group:
    """A set of objects, in the order in which a search chose them.

    effects[i]: mean of F(the first i + 1 ablated) - F(clean). forwards, token_layers: the cost of the whole search.
    """

    sites: list[str]
    effects: list[float]
    forwards: float
    token_layers: float


def greedy_group(
    model, task: Task, sites: Sequence[str], size: int, kind: str = "zero", means: dict | None = None, by="negative"
) -> Group:
    """Add, `size` times, the object whose ablation together with those already chosen changes F most.

    This is how Sahara (Zhou et al. 2025) finds groups of safety heads, there with a score of its own in place of F.
    by: "negative" looks for the strongest fall of F, "abs" for the strongest change.
    """
    sites = [str(site) for site in sites]
    if not 1 <= size <= len(sites):
        raise ValueError(f"size={size} is outside 1 ... {len(sites)}, the number of sites")
    if by not in ("negative", "abs"):
        raise ValueError(f"by={by!r} is unknown; choose negative or abs")
    sweep, means = Sweep(model, task), means or references(model, task, sites, kind)
    chosen, effects = [], []
    while len(chosen) < size:
        left = [site for site in sites if site not in chosen]
        found = sweep.effects([ablation([*chosen, site], kind, means) for site in left]).mean(1)
        best = int((found.abs() if by == "abs" else -found).argmax())
        chosen.append(left[best])
        effects.append(found[best].item())
    return Group(chosen, effects, sweep.forwards, sweep.token_layers)


def prune_group(
    model, task: Task, sites: Sequence[str], keep: float = 0.9, kind: str = "zero", means: dict | None = None
) -> Group:
    """Backward search: of a group that matters together, leave out what it does not need.

    Takes out of the ablated group, again and again, the object whose absence from it costs least, as long as the effect
    of the group stays at least `keep` times that of the whole. Returns what is left, with the effect of the remaining
    group after every step in `effects` (the first is that of the whole group).
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie in (0, 1]")
    group = [str(site) for site in sites]
    sweep, means = Sweep(model, task), means or references(model, task, group, kind)
    whole = sweep.effects([ablation(group, kind, means)]).mean().item()
    effects = [whole]
    while len(group) > 1:
        without = [[s for s in group if s != site] for site in group]
        found = sweep.effects([ablation(rest, kind, means) for rest in without]).mean(1)
        best = int((found / whole).argmax())
        if found[best] / whole < keep:
            break
        group = without[best]
        effects.append(found[best].item())
    return Group(group, effects, sweep.forwards, sweep.token_layers)


@dataclass(frozen=True)
class Found:
    """What a hierarchical search found: site -> mean effect; its cost and that of ablating every object alone.

    The costs are prompt rows (cells x prompts), without the savings of a sweep, so that they can be compared.
    """

    sites: dict[str, float]
    rows: int
    exhaustive_rows: int


def hierarchical_search(
    model, task: Task, threshold: float, kind: str = "zero", means: dict | None = None, neurons: bool = True
) -> Found:
    """From whole branches down: a layer's attention to its heads, an FFN to halves of its neurons, and so on.

    Goes into an object only where ablating it changes mean F by at least `threshold`. It finds few strong objects with
    few forwards. It misses what is hidden at a higher level: two neurons of one FFN that cancel, a backup.
    """
    if not threshold > 0:
        raise ValueError(f"threshold={threshold} must be positive")
    sweep, rows, found = Sweep(model, task), 0, {}
    layers = range(model.n_layers)
    everything = [*heads(model), *(f"L{layer}N{j}" for layer in layers for j in range(model.d_ffn) if neurons)]
    if kind != "zero" and means is None:
        means = references(model, task, [*everything, *(ffns(model) if not neurons else [])], kind)

    def strong(groups: list[list[str]]) -> list[tuple[list[str], float]]:
        nonlocal rows
        rows += len(groups) * len(task)
        effects = sweep.effects([ablation(group, kind, means) for group in groups]).mean(1)
        return [(group, e.item()) for group, e in zip(groups, effects) if abs(e) >= threshold]

    attention = [[f"L{layer}H{head}.z" for head in range(model.n_heads)] for layer in layers]
    single = [[site] for group, _ in strong(attention) for site in group]
    found |= {group[0]: effect for group, effect in (strong(single) if single else [])}
    if neurons:
        open_groups = [group for group, _ in strong([[f"L{x}N{j}" for j in range(model.d_ffn)] for x in layers])]
    else:
        open_groups = []
        found |= {group[0]: effect for group, effect in strong([[site] for site in ffns(model)])}
    while open_groups:
        halves = [half for g in open_groups for half in (g[: len(g) // 2], g[len(g) // 2 :]) if half]
        passing = strong(halves)
        found |= {group[0]: effect for group, effect in passing if len(group) == 1}
        open_groups = [group for group, _ in passing if len(group) > 1]
    return Found(found, rows, (len(everything) + (0 if neurons else model.n_layers)) * len(task))
