"""Patchscopes (survey section 3.5, L5f; Ghandeharioun et al. 2024): let the model itself read a hidden state.

Take the state x^l of one prompt, put it into another prompt that asks for what we want to know, at layer l* and
position i*, and look at what the model says. With a target prompt such as `cat : cat ; sun : sun ; x` and the state
put in place of x, the model is asked to name what it was given. The logit lens is the special case l* = L, where
nothing is computed any more.

    patchscope           next-token logits of the target prompt with the states patched in
    patchscope_generate  its continuation
    recovery             how often the wanted token comes first, by layer, beside random states

What the target prompt computes is done by the layers above l*, which were not there in the source run: an answer shows
that the state *can* be turned into it, not that the source run does so. And a target prompt may answer by itself. So
the null is a state of the same kind without the information: that of another prompt.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mi_course.models import intervene, patch, record
from mi_course.objects import Scores
from mi_course.objects.decompose import _ids


def identity_prompt(words: Sequence[str], template: str = "{w} : {w}", separator: str = " ; ", place: str = "x") -> str:
    """A few-shot prompt for "say what you see": `cat : cat ; sun : sun ; x`. The state replaces the last token.

    Which template works depends on what the model has seen; try it first with real words in place of a state.
    """
    if not words:
        raise ValueError("words is empty; give a few, each one token for this model")
    return separator.join([template.format(w=word) for word in words] + [place])


def _patched(model, states: Tensor, layer: int, target, position: int):
    """The batch of target prompts and the edit that puts states [n, d] in, one per row."""
    if states.dim() != 2 or states.shape[1] != model.d_model:
        raise ValueError(f"states has shape {tuple(states.shape)}; give [n, {model.d_model}], one state per reading")
    if not 0 <= layer <= model.n_layers:
        raise ValueError(f"layer {layer} is out of range: {model.name} has states x0 to x{model.n_layers}")
    prompts = [target] * len(states) if isinstance(target, str) or isinstance(target[0], int) else list(target)
    if len(prompts) != len(states):
        raise ValueError(f"target has {len(prompts)} prompts for {len(states)} states; give one, or one for each")
    return model.tokenize(prompts), patch(f"x{layer}", states, positions=position)


def source_states(model, prompts, layer: int, position: int = -1) -> Tensor:
    """x^layer at one position of each source prompt, [B, d]."""
    site = f"x{layer}@{position}"
    return record(model, prompts, [site], logits=False)[site]


@torch.no_grad()
def patchscope(model, states: Tensor, layer: int, target, position: int = -1) -> Tensor:
    """Next-token logits [n, V] of the target prompt when states [n, d] stand at x^layer and `position`.

    states: from `source_states`, of any layer. target: one prompt, or one per state. Patching a prompt's own state back
    in changes no bit.
    """
    batch, edit = _patched(model, states, layer, target, position)
    with intervene(model, edit):
        return model.last_logits(batch)


def patchscope_generate(
    model, states: Tensor, layer: int, target, position: int = -1, max_new_tokens: int = 5
) -> list[str]:
    """Greedy continuations of the target prompt with states [n, d] patched in at x^layer and `position`."""
    batch, edit = _patched(model, states, layer, target, position)
    with intervene(model, edit):
        return model.generate(batch, max_new_tokens)


@torch.no_grad()
def recovery(
    model,
    prompts: Sequence,
    tokens: Sequence,
    target,
    position: int = -1,
    target_position: int = -1,
    target_layer: int | None = None,
    null: bool = False,
    seed: int = 0,
) -> Scores:
    """Share of prompts whose token comes first when their state x^l is read by a Patchscope: Scores over x0 ... xL.

    Args:
        tokens: one per prompt, text or ids: the source word itself (token identity), or the model's own next token.
        target: the target prompt, such as `identity_prompt(...)`; target_position: where the state goes.
        target_layer: l*; None puts each state at its own layer, as published.
        null: give every prompt the state of a random *other* prompt: what the target prompt says by itself, and chance.
    """
    started = time.perf_counter()
    batch = model.tokenize(prompts)
    wanted = _ids(tokens, "tokens", len(batch), model)
    layers = range(model.n_layers + 1)
    names = [f"x{layer}@{position}" for layer in layers]
    cache = record(model, batch, names, logits=False)
    order = torch.arange(len(batch), device=model.device)
    if null:
        if len(set(wanted.tolist())) < 2:
            raise ValueError("null=True needs prompts with at least two different tokens to be mixed up")
        order = _derangement(wanted, seed)
    values = []
    for layer, name in zip(layers, names, strict=True):
        into = layer if target_layer is None else target_layer
        said = patchscope(model, cache[name][order], into, target, target_position).argmax(-1)
        values.append((said == wanted).float().mean().item())
    method = "patchscope, another prompt's state" if null else "patchscope"
    return Scores([f"x{layer}" for layer in layers], values, method, "magnitude",
                  forwards=len(batch) * (len(layers) + 1), seconds=time.perf_counter() - started)


def _derangement(tokens: Tensor, seed: int) -> Tensor:
    """For every prompt a random other one, with another token wherever there is one."""
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for token in tokens.tolist():
        others = (tokens != token).nonzero()[:, 0]
        chosen.append(others[torch.randint(len(others), (1,), generator=generator).item()])
    return torch.stack(chosen)
