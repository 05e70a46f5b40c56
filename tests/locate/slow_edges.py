"""Edges the slow way, independent of `locate`: one edge at a time, with hooks on the Hugging Face model."""

from functools import cache

import torch

import mi_course as mi
from mi_course.models import weights
from mi_course.objects import Task
from tests.families import random_model

PROMPTS = [[0, 5, 6, 7, 8], [0, 9, 10, 11], [0, 3, 4, 5, 6, 7, 8]]
TWINS = [[0, 15, 6, 7, 8], [0, 9, 20, 11], [0, 3, 14, 5, 6, 7, 8]]
TASK = Task("t", prompts=PROMPTS, corrupted=TWINS, targets=[1, 2, 3], foils=[4, 5, 6])


@cache
def make(family: str) -> mi.Model:
    return mi.wrap(random_model(family))


@torch.no_grad()
def write(model, prompts, sender: str) -> torch.Tensor:
    """What a sender adds to the stream, [B, T, d]."""
    site = mi.Site.parse(sender)
    if site.kind == "x":
        return mi.record(model, prompts, "x0")["x0"]
    if site.kind == "mlp":
        return mi.record(model, prompts, f"{sender}.write")[f"{sender}.write"]
    cache = mi.record(model, prompts, [sender, f"attn{site.layer}"])
    norm = weights.post_norm(model, site.layer, "attn")
    return cache[sender] if norm is None else cache[sender] * norm.scale(cache[f"attn{site.layer}"]) * norm.gain


@torch.no_grad()
def effect(model, task: Task, edge: str, change: torch.Tensor) -> torch.Tensor:
    """[n] F(the receiver reads its sender plus `change`) - F(clean): run the receiver on the changed stream, put back
    its own output alone."""
    batch, receiver = model.tokenize(task.prompts), edge.split("->")[1]
    base = task.metric_of(model.last_logits(batch), model)
    if receiver == "logits":
        last = f"x{model.n_layers}"
        x = mi.record(model, batch, last)[last] + change
        logits = model.unembed(x)[torch.arange(len(task)), batch.last]
        return task.metric_of(logits, model) - base
    site = mi.Site.parse(receiver)
    sequential_ffn = site.kind == "mlp" and not model.family.is_parallel(model.config)
    stream = f"{'mid' if sequential_ffn else 'x'}{site.layer}"
    with mi.intervene(model, mi.edit(stream, lambda x: x + change)):
        changed = mi.record(model, batch, receiver)[receiver]
    with mi.intervene(model, mi.patch(receiver, changed)):
        return task.metric_of(model.last_logits(batch), model) - base
