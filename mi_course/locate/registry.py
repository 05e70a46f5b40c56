"""Every localizer of the course under one signature, `f(model, task, sites) -> Scores`, so that they can be compared.

    LOCALIZERS["zero ablation"].run(model, task, sites)
    suited("neurons")                     the names of those that can score neurons
    EDGE_LOCALIZERS["EAP"].run(model, task, edges)      the same for edges of the graph

Settings are the common ones; a chapter that studies a method calls it by its own function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mi_course.models import Site
from mi_course.objects import Scores, Task

from . import (
    acdc,
    attention_mass,
    causal,
    contrast,
    direct,
    eap,
    edges,
    gradient,
    integrated_gradients,
    layer_distance,
    magnitude,
    parameters,
    probe_sweep,
    projection,
)
from . import attribution_patching as patching_by_gradient

ALL = ("heads", "ffns", "neurons", "states")


@dataclass(frozen=True)
class Localizer:
    """One method. family: the survey's six. objects: what it can score. run: (model, task, sites) -> Scores.

    exact: whether it runs the model once for every site, so that its cost grows with their number.
    """

    family: str
    run: Callable[..., Scores]
    objects: tuple[str, ...] = ALL
    exact: bool = False


def suited(objects: str, exact: bool | None = None) -> list[str]:
    """Names of the localizers that can score these objects; exact=False leaves out those with one run per site."""
    if objects not in ALL:
        raise ValueError(f"objects={objects!r} is unknown; choose one of {', '.join(ALL)}")
    return [n for n, one in LOCALIZERS.items() if objects in one.objects and exact in (None, one.exact)]


def _renamed(scores: Scores, sites) -> Scores:
    """The same numbers under the names that were asked for (L3H5 for L3H5.z)."""
    return replace(scores, sites=list(sites))


def norm(model, task: Task, sites) -> Scores:
    """Mean size on the task's prompts."""
    return magnitude.activation_norms(model, task.prompts, sites)


def mean_difference(model, task: Task, sites) -> Scores:
    """Mean size on the prompts minus mean size on their twins."""
    return contrast.contrast(model, task.prompts, task.corrupted, sites, "difference")


def detector(model, task: Task, sites) -> Scores:
    """AUROC - 1/2 of the size at the last token as a detector of prompts against twins."""
    return contrast.contrast(model, task.prompts, task.corrupted, sites, "auroc", position=-1)


def twin_distance(model, task: Task, sites) -> Scores:
    """Distance between prompts and twins at the last token."""
    return layer_distance.twin_distance(model, task, sites)


def mass_on_change(model, task: Task, sites) -> Scores:
    """Attention of each head from the last token to the tokens in which prompt and twin differ."""
    clean, twins = (model.tokenize(prompts) for prompts in (task.prompts, task.corrupted))
    differs = clean.ids != twins.ids
    spans = []
    for row in range(len(task)):
        where = clean.position_ids[row][differs[row]]
        spans.append((int(where.min()), int(where.max()) + 1))
    found = attention_mass.span_mass(model, task.prompts, spans)
    wanted = [str(replace(Site.parse(site), part="result")) for site in sites]
    return Scores(sites, [found[site] for site in wanted], found.method, "magnitude", forwards=found.forwards,
                  seconds=found.seconds)  # fmt: skip


def parameter_saliency(model, task: Task, sites) -> Scores:
    """Sum of |w dF/dw| over the weights of each unit."""
    units = [str(replace(p, part="result") if p.kind == "head" else p) for p in map(Site.parse, sites)]
    return _renamed(parameters.parameter_saliency(model, task, units, "weight x gradient"), sites)


def probe_accuracy(model, task: Task, sites) -> Scores:
    """AUROC - 1/2 of a probe at the last token that tells held-out prompts from their twins. Pairs stay together."""
    cut = max(1, round(0.3 * len(task)))
    rows = np.random.default_rng(0).permutation(len(task))
    both = [int(i) for i in rows], [int(i) + len(task) for i in rows]
    split = probe_sweep.Split([*both[0][cut:], *both[1][cut:]], [*both[0][:cut], *both[1][:cut]])
    label = [True] * len(task) + [False] * len(task)
    found = probe_sweep.sweep(
        model, [*task.prompts, *task.corrupted], sites, label, split, kind="ridge", metric="auroc"
    )  # fmt: skip
    return replace(found, values=found.values - 0.5)


def ablation(kind: str) -> Callable[..., Scores]:
    return lambda model, task, sites: causal.ablate_each(model, task, sites, kind)


def patching(direction: str) -> Callable[..., Scores]:
    return lambda model, task, sites: causal.patch_each(model, task, sites, direction)


def attribution(direction: str) -> Callable[..., Scores]:
    return lambda model, task, sites: patching_by_gradient.attribution_patching(model, task, sites, direction)


def gradient_norm(model, task: Task, sites) -> Scores:
    return gradient.gradient_norm(model, task, sites)


def gradient_times_input(model, task: Task, sites) -> Scores:
    return gradient.gradient_times_input(model, task, sites)


def integrated(baseline: str) -> Callable[..., Scores]:
    return lambda model, task, sites: integrated_gradients.integrated_gradients(model, task, sites, baseline, steps=4)


def lens_rank(model, task: Task, sites) -> Scores:
    """Where the lens of each write or state at the last token ranks the target: mean of 1 / (1 + rank)."""
    parsed = [Site.parse(site).at(-1) for site in sites]
    written = [replace(site, part="result") if site.kind == "head" else site for site in parsed]
    found = projection.read_tokens(model, task.prompts, task.targets, written)
    values = (1 / (1 + found.rank.float())).mean(1)
    return Scores(sites, values, "lens rank", "magnitude", forwards=found.forwards, seconds=found.seconds)


def direct_effect(model, task: Task, sites) -> Scores:
    """What each write adds directly to the logit difference at the last token."""
    return direct.direct_effects(model, task, sites)


def by_sender(run: Callable[..., Scores]) -> Callable[..., Scores]:
    """An edge method as a score of nodes: the sum of |score| over the edges that leave a head or an FFN."""

    def score(model, task, sites) -> Scores:
        found = run(model, task)
        total: dict[str, float] = {}
        for edge, value in zip(found.sites, found.values, strict=True):
            sender = edge.partition("->")[0]
            total[sender] = total.get(sender, 0.0) + abs(float(value))
        values = [total[str(site).removesuffix(".z")] for site in sites]
        return Scores(sites, values, f"{found.method}, by sender", "magnitude", forwards=found.forwards,
                      backwards=found.backwards, seconds=found.seconds)  # fmt: skip

    return score


UNITS = ("heads", "ffns", "neurons")
LOCALIZERS: dict[str, Localizer] = {
    "norm": Localizer("magnitude", norm),
    "mean difference": Localizer("magnitude", mean_difference),
    "detector AUROC": Localizer("magnitude", detector),
    "twin distance": Localizer("magnitude", twin_distance),
    "attention mass": Localizer("magnitude", mass_on_change, ("heads",)),
    "zero ablation": Localizer("causal", ablation("zero"), exact=True),
    "mean ablation": Localizer("causal", ablation("mean"), exact=True),
    "noising": Localizer("causal", patching("noising"), exact=True),
    "denoising": Localizer("causal", patching("denoising"), exact=True),
    "gradient norm": Localizer("gradient", gradient_norm),
    "gradient x input": Localizer("gradient", gradient_times_input),
    "integrated gradients": Localizer("gradient", integrated("zero")),
    "attribution patching": Localizer("gradient", attribution("noising")),
    "attribution patching back": Localizer("gradient", attribution("denoising")),
    "IG of patching": Localizer("gradient", integrated("twin")),
    "parameter saliency": Localizer("gradient", parameter_saliency, UNITS),
    "probe": Localizer("probing", probe_accuracy, ("heads", "ffns", "states")),  # of one neuron: detector AUROC
    "direct effect": Localizer("projection", direct_effect, UNITS),
    "EAP": Localizer("circuits", by_sender(eap.eap), ("heads", "ffns")),
    "EAP-IG": Localizer("circuits", by_sender(eap.eap_ig), ("heads", "ffns")),
    "lens rank": Localizer("projection", lens_rank, ("heads", "ffns", "states")),
}


# --- edges ----------------------------------------------------------------------------------------------------------
def over_edges(run: Callable[..., Scores]) -> Callable[..., Scores]:
    """A method that scores all edges, as a localizer of the ones that are asked for."""

    def score(model, task, sites) -> Scores:
        found = run(model, task)
        of = dict(zip(found.sites, found.values, strict=True))
        return replace(found, sites=list(sites), values=np.array([of[str(site)] for site in sites]))

    return score


def by_position(model, task: Task) -> Scores:
    """EAP with the sizes of an edge's scores at single tokens added up, so that tokens cannot cancel."""
    spans = list(eap.eap_spans(model, task).values())
    return replace(spans[0], values=sum(abs(s.values) for s in spans), method="EAP by position", sign="magnitude")


EDGE_LOCALIZERS: dict[str, Localizer] = {
    "exact noising": Localizer("circuits", edges.ablate_edges, ("edges",), exact=True),
    "exact mean": Localizer("circuits", lambda m, t, s: edges.ablate_edges(m, t, s, "mean"), ("edges",), exact=True),
    "ACDC": Localizer(
        "circuits", over_edges(lambda m, t: acdc.acdc(m, t, 0.2, distance="metric").scores), ("edges",), exact=True
    ),
    "EAP": Localizer("circuits", over_edges(eap.eap), ("edges",)),
    "EAP mean": Localizer("circuits", over_edges(lambda m, t: eap.eap(m, t, "mean")), ("edges",)),
    "clean-corrupted EAP": Localizer("circuits", over_edges(eap.clean_corrupted), ("edges",)),
    "EAP by position": Localizer("circuits", over_edges(by_position), ("edges",)),
    "EAP-IG": Localizer("circuits", over_edges(eap.eap_ig), ("edges",)),
    "EAP-IG mean": Localizer("circuits", over_edges(lambda m, t: eap.eap_ig(m, t, kind="mean")), ("edges",)),
}
