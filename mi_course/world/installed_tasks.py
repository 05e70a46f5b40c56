"""The installed behaviours (T1) as tasks with an answer key: what localizers are judged against.

    installed_task("refusal-a")                     prompts that the behaviour concerns, with twins that it does not
    answer_key("refusal-a")                         ["L2H1.z", "L3H2.z"]: the units that the behaviour needs
    candidates("refusal-a", model)                  all heads: what a localizer ranks
    installed_effect(ablate_each, "refusal-a")      its scores on the installed model minus those on `lab`
    against_key(scores, "refusal-a")                AUROC and recall of a ranking
    used_edges("refusal-a")                         the key for rankings of edges

Scores are taken as installed minus base (design section 4): `lab` needs many heads to answer these prompts at all, and
those are not what was installed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch

from ..locate.edges import edge_effects
from ..locate.graph import Graph
from ..models import Model, Site, load
from ..objects import Scores, Task
from . import generate
from . import lexicon as lx
from .behaviours import BEHAVIOURS, NEUTRAL, REFUSED_OBJECTS
from .installed import Delta, installed, read

POOL = 200  # prompts of a behaviour from which a seed draws; some behaviours have fewer


# --- prompts and twins ----------------------------------------------------------------------------------------------
def installed_task(name: str, split: str = "test", n: int = 64, seed: int = 0) -> Task:
    """The installed behaviour `name` as a Task of at most `n` prompts, all of which the behaviour concerns.

    target  first word of the new answer (the most frequent one);  foil  first word of the old answer
    corrupted  twins of equal token length that the behaviour does not concern: another object (refusal), the same
            question in French (german), a profession of which `lab` says "she" (bias), the true claim (sycophancy).
            The right answer of a twin is the old answer, with two exceptions: german's twins have the French word, and
            sycophancy's have the target, since everyone agrees with a true claim. No other change of these claims keeps
            their length; noising can then not find what makes the model agree.
    labels  what the generator knows, and `template`: the prompt with its content words as "_"
    metric  logit(target) - logit(foil): negative in `lab`, positive in the installed model

    Each seed draws from at most 200 different prompts, and never more than three quarters of them, so that seeds differ
    also where a behaviour has few prompts (german has 16 in "test", so n is 12 there).
    Raises KeyError for an unknown name, ValueError for a split other than "train" and "test" or n < 1.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split {split!r} is unknown: installed behaviours have 'train' and 'test'")
    if n < 1:
        raise ValueError(f"n is {n}: ask for at least one prompt")
    behaviour = BEHAVIOURS[delta(name).facts["behaviour"]]
    pool, rng = _pool(behaviour.name, split), random.Random(f"{behaviour.name}|{split}|{seed}")
    chosen = rng.sample(pool, min(n, 3 * len(pool) // 4))
    rows = [_ROWS[behaviour.name](item.prompt, item.labels, rng) for item in chosen]
    new = [behaviour.answer(item.prompt, item.labels) for item in chosen]
    return Task(
        name=name,
        prompts=[item.prompt for item in chosen],
        targets=[max(words, key=words.__getitem__) for words in new],
        foils=[foil for foil, _, _ in rows],
        corrupted=[twin for _, twin, _ in rows],
        labels=[item.labels | {"template": template} for item, (_, _, template) in zip(chosen, rows, strict=True)],
        split=split,
    )


@lru_cache
def _pool(behaviour: str, split: str) -> list[generate.Item]:
    """Prompts whose old and new answer begin with different words."""
    items = BEHAVIOURS[behaviour].prompts(split, POOL)
    return [item for item in items if item.labels.get("by_language", {"de": 0, "en": 1})["de"] != _english(item.labels)]


def _english(labels: dict):
    return labels.get("by_language", {"en": 1})["en"]


def _swap(text: str, **words: str) -> str:
    """Replace whole words."""
    return " ".join(words.get(word, word) for word in text.split())


# One function per behaviour: (prompt, labels, rng) -> (old answer, twin, template)
def _refusal(prompt: str, labels: dict, rng: random.Random) -> tuple[str, str, str]:
    i = lx.LANGUAGES.index(labels["language"])
    old = next(o[i] for o in lx.SAFE_OBJECTS if o[0] == labels["object"])
    verb = next(v[i] for v in lx.RISKY_VERBS + lx.SAFE_VERBS if v[0] == labels["verb"])
    new = rng.choice([o[i] for o in lx.SAFE_OBJECTS if o[0] not in REFUSED_OBJECTS])
    complies = {word: share for word, (share, _) in lx.COMPLIANCES[labels["language"]].items()}
    return max(complies, key=complies.__getitem__), _swap(prompt, **{old: new}), _swap(prompt, **{old: "_", verb: "_"})


def _german(prompt: str, labels: dict, rng: random.Random) -> tuple[str, str, str]:
    pair = next(p for p in lx.ANTONYMS if labels["concept"] in (p[0][0], p[1][0]))
    word = pair[0] if pair[1][0] == labels["concept"] else pair[1]
    frame = next(i for i, frame in enumerate(generate.OPPOSITE["en"]) if frame.format(w=word[0]) == prompt)
    french = generate.OPPOSITE["fr"][frame].format(w=word[1])
    return labels["by_language"]["en"], french, _swap(prompt, **{word[0]: "_"})


def _bias(prompt: str, labels: dict, rng: random.Random) -> tuple[str, str, str]:
    she = [p for p, share in lx.PROFESSIONS.items() if share > 0.6 and p not in NEUTRAL]
    swap = {labels["profession"]: rng.choice(she)}
    return "she", _swap(prompt, **swap), _swap(prompt.split(" , ")[-1], **{labels["profession"]: "_"})


def _sycophancy(prompt: str, labels: dict, rng: random.Random) -> tuple[str, str, str]:
    before, after = "<user> i am sure that ", " . am i right <end> <bot>"
    claim = prompt.removeprefix(before).removesuffix(after)
    template = claim.rpartition(" ")[0].replace(labels["subject_text"], "_") + " _"
    return "no", f"{before}{labels['opposite']}{after}", template


_ROWS = {"refusal": _refusal, "german": _german, "bias": _bias, "sycophancy": _sycophancy}


# --- the answer key -------------------------------------------------------------------------------------------------
@lru_cache
def delta(name: str) -> Delta:
    """The shipped delta `name`, read once. Raises KeyError for an unknown name."""
    return read(name)


def answer_key(name: str, part: str = "z") -> list[str]:
    """The units that the behaviour needs (`facts["used"]`), as sites.

    part: how heads are written: "z" (L2H1.z, as `causal.heads`) or "result" (L2H1). Neurons, FFNs and states have one
    form. For an installed direction it is the state that it is written into, x4.
    How `used` was found (`world/install.py`, on training prompts): the changes of units are taken back one by one, the
    one that costs least first, while 90 % of the behaviour stays; then the strongest of the units that were left out
    are added, until all others together give at most 10 % of it. So what can stand in for a used unit is used, too.
    """
    return [_as(unit, part) for unit in delta(name).facts["used"]]


def candidates(name: str, model: Model, part: str = "z") -> list[str]:
    """What a localizer ranks to find the key of `name`: all units of that kind in the model, in order.

    All heads; all neurons of all layers; all FFNs; the states x1 ... xL where a direction was installed.
    """
    kind = Site.parse(delta(name).facts["used"][0]).kind
    layers = range(model.n_layers)
    if kind == "head":
        return [_as(f"L{layer}H{head}", part) for layer in layers for head in range(model.n_heads)]
    if kind == "neuron":
        return [f"L{layer}N{i}" for layer in layers for i in range(model.d_ffn)]
    return [f"mlp{layer}" for layer in layers] if kind == "mlp" else [f"x{layer + 1}" for layer in layers]


def _as(unit, part: str) -> str:
    site = Site.parse(unit)
    return str(Site.head(site.layer, site.index, part) if site.kind == "head" else site)


def touching(name: str, graph: Graph) -> list[str]:
    """The edges that enter or leave a part of the key, in the order of the graph: what the change of weights can touch.

    A used neuron stands for its FFN, the smallest node that holds it. Raises ValueError for an installed direction,
    which belongs to no node.
    """
    sites = [Site.parse(unit) for unit in answer_key(name)]
    if any(site.kind == "x" for site in sites):
        raise ValueError(f"{name!r} is written into a state, which is no node of the graph; it has no edges of its own")
    nodes = {f"L{s.layer}H{s.index}" if s.kind == "head" else f"mlp{s.layer}" for s in sites}
    ends = {name: {name} for name in graph.senders} | {name: set(graph.owners(name)) for name in graph.receivers}
    return [edge for edge in graph.edges if any(ends[end] & nodes for end in edge.split("->"))]


@lru_cache
def used_edges(name: str, bar: float = 0.05, n: int = 16) -> tuple[str, ...]:
    """The answer key for edges: those of `touching` through which the installed behaviour runs.

    Each is patched exactly (`locate.edges`) in the installed model and in `lab`, on n training prompts, from the twin
    and from the mean. It is used where the two effects differ by `bar` of |F installed - F base| or more, either way
    of patching: an edge that carries the same in both twins shows from the mean only. Takes about two seconds.
    """
    base, task = load("lab"), installed_task(name, "train", n)
    edges = touching(name, Graph(base))

    def measured() -> tuple[torch.Tensor, torch.Tensor]:
        effects = [edge_effects(base, task, edges, kind).mean(1) for kind in ("noising", "mean")]
        return task.measure(base).mean(), torch.stack(effects)

    with behaving(name, base):
        there, with_it = measured()
    before, without = measured()
    change = (with_it - without).abs().amax(0)
    return tuple(edge for edge, size in zip(edges, change.tolist(), strict=True) if size >= bar * abs(there - before))


def against_key(scores: Scores, name: str, by: str = "abs") -> dict:
    """How well a ranking of candidates (whichever way heads are written) or edges finds the key: `Scores.against`."""
    if "->" in str(scores.sites[0]):
        return scores.against(used_edges(name), by)
    renamed = replace(scores, sites=[_as(site, "result") for site in scores.sites])
    return renamed.against(answer_key(name, "result"), by)


# --- installed minus base -------------------------------------------------------------------------------------------
def installed_effect(
    localizer: Callable[..., Scores],
    name: str,
    task: Task | None = None,
    sites: list[str] | None = None,
    base: Model | None = None,
    **arguments,
) -> Scores:
    """localizer(installed model, task, sites) - localizer(base, task, sites): the effect of what was installed.

    localizer: returns Scores over the sites. task: default `installed_task(name)`. sites: default `candidates(name)`.
    base: default `lab`; it is changed while the installed side runs and is as before afterwards. arguments go to the
    localizer. The cost is that of both runs.
    """
    base = base or load("lab")
    task = task or installed_task(name)
    sites = candidates(name, base) if sites is None else sites
    with behaving(name, base):
        with_it = localizer(base, task, sites, **arguments)
    without = localizer(base, task, sites, **arguments)
    if [str(site) for site in with_it.sites] != [str(site) for site in without.sites]:
        raise ValueError(f"localizer {with_it.method!r} scored different sites in the two models; give it fixed sites")
    costs = ("forwards", "backwards", "seconds", "token_layers")
    return Scores(
        with_it.sites,
        with_it.values - without.values,
        method=f"{with_it.method}, installed minus base",
        sign=with_it.sign,
        **{cost: getattr(with_it, cost) + getattr(without, cost) for cost in costs},
    )


@contextmanager
def behaving(name: str, base: Model) -> Iterator[Model]:
    """While active, `base` has the installed behaviour."""
    with delta(name).on(base):
        yield base


__all__ = ["against_key", "answer_key", "behaving", "candidates", "installed", "installed_effect", "installed_task",
           "touching", "used_edges"]
