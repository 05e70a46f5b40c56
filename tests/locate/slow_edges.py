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


def eap(model, task: Task, edge: str, points=(0.0,)) -> float:
    """EAP of one edge with plain autograd: the receiver reads x + e (a_u' - a_u), and dF/de at e = 0 is wanted,
    averaged over inputs at these fractions of the way from clean to corrupted."""
    sender, receiver = edge.split("->")
    change = write(model, task.corrupted, sender) - write(model, task.prompts, sender)
    clean, corrupted = write(model, task.prompts, "x0"), write(model, task.corrupted, "x0")
    total = 0.0
    for point in points:
        e = torch.zeros((), requires_grad=True)
        with mi.intervene(model, mi.patch("x0", clean + point * (corrupted - clean))):
            mean = _metric_with(model, task, receiver, e * change)
        total += torch.autograd.grad(mean, e)[0].item() / len(points)
    return total


def _metric_with(model, task: Task, receiver: str, change: torch.Tensor) -> torch.Tensor:
    batch = model.tokenize(task.prompts)
    if receiver == "logits":
        last = f"x{model.n_layers}"
        x = mi.record(model, batch, last)[last].detach() + change
        return task.metric_of(model.unembed(x)[torch.arange(len(task)), batch.last], model).mean()
    site = mi.Site.parse(receiver)
    sequential_ffn = site.kind == "mlp" and not model.family.is_parallel(model.config)
    stream = f"{'mid' if sequential_ffn else 'x'}{site.layer}"
    x = mi.record(model, batch, stream)[stream] + change
    output = _ffn(model, site.layer, x) if site.kind == "mlp" else _head_state(model, site, x, batch)
    with mi.intervene(model, mi.patch(receiver, output)):
        return task.metric_of(model.last_logits(batch, grad=True), model).mean()


def _ffn(model, layer: int, x: torch.Tensor) -> torch.Tensor:
    w, x = weights.ffn(model, layer), weights.mlp_norm(model, layer)(x)
    gated = w.W_in is None
    neurons = w.act(x @ w.W_gate + w.b_gate) * (x @ w.W_up + w.b_up) if gated else w.act(x @ w.W_in + w.b_in)
    return neurons @ w.W_out + w.b_out


def _head_state(model, site, x: torch.Tensor, batch) -> torch.Tensor:
    w, x, part = weights.attention(model, site.layer), weights.attn_norm(model, site.layer)(x), site.part
    head = site.index if part == "q" else w.kv_head(site.index)
    y = x @ getattr(w, f"W_{part.upper()}")[:, head] + getattr(w, f"b_{part.upper()}")[head]
    if part == "v":
        return y
    norm = getattr(w, f"{part}_norm")
    return weights.rotate(model, (y if norm is None else norm(y))[:, :, None], batch.position_ids)[:, :, 0]
