"""Head-level shifts (survey section 4.3, S3f): a direction for each of a few heads, in the space of its own z.

    z_h  <-  z_h + alpha sigma_h theta_h          inference-time intervention, ITI (Li et al. 2023, arXiv 2306.03341)

theta_h is a unit vector [d_head] from one kind of prompts to the other, sigma_h the standard deviation of z_h .
theta_h: so alpha counts standard deviations of what the head does anyway. Heads are chosen by how well z_h tells the
kinds apart.

In the residual stream the shift is one constant vector per layer, sum_h alpha sigma_h theta_h W_O[h]: a vector of
Eq. 21 that is confined to what these heads can write (`as_writes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mi_course.models import Site, add, record, weights

from .steer import Steer
from .vectors import unit


@torch.no_grad()
def head_states(model, prompts: Sequence, heads: Iterable[str] | None = None) -> dict[str, Tensor]:
    """z of every head at the last prompt token: "L3H1.z" -> [n, d_head]. heads: default all."""
    if heads is None:
        heads = [f"L{layer}H{head}" for layer in range(model.n_layers) for head in range(model.n_heads)]
    sites = [Site.head(Site.parse(h).layer, Site.parse(h).index, "z") for h in heads]
    cache = record(model, prompts, [site.at(-1) for site in sites], logits=False)
    return {str(site): cache[site.at(-1)] for site in sites}


def separation(positive: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, float]:
    """Accuracy, 0 ... 1, with which the nearer class mean tells the two kinds apart, by head.

    Means from the first half of the prompts, accuracy on the second half, so that chance stays at one half.
    """
    found = {}
    for site in positive:
        (up, up_test), (down, down_test) = (z[site].tensor_split(2) for z in (positive, negative))
        theta, middle = up.mean(0) - down.mean(0), (up.mean(0) + down.mean(0)) / 2
        right = [(up_test - middle) @ theta > 0, (down_test - middle) @ theta < 0]
        found[site] = sum(r.float().mean().item() for r in right) / 2
    return found


def head_shifts(positive: Mapping[str, Tensor], negative: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """sigma theta by head, [d_head]: one standard deviation of z along the mean difference, toward `positive`."""
    shifts = {}
    for site in positive:
        theta = unit(positive[site].mean(0) - negative[site].mean(0))
        sigma = (torch.cat([positive[site], negative[site]]) @ theta).std()
        shifts[site] = sigma * theta
    return shifts


def iti(model, positive: Sequence, negative: Sequence, k: int = 4, positions="all") -> Steer:
    """The k heads that tell the two kinds of prompts apart best, each shifted toward `positive`. Strength is alpha.

    Published: 48 heads of Llama-7B, alpha = 15. The released code (likenneth/honest_llama) ranks heads by the accuracy
    of a logistic probe on prompts held out; here the nearer mean decides (`separation`). theta, the unit mean
    difference, and sigma are the same. positions: the paper shifts every token that is generated and the last of the
    prompt; with "all" the rest of the prompt is shifted, too.
    """
    if not 1 <= k <= model.n_layers * model.n_heads:
        raise ValueError(f"k={k}: choose 1 to {model.n_layers * model.n_heads} heads")
    up, down = head_states(model, positive), head_states(model, negative)
    accuracy = separation(up, down)
    chosen = sorted(accuracy, key=accuracy.get, reverse=True)[:k]
    shifts = head_shifts({s: up[s] for s in chosen}, {s: down[s] for s in chosen})
    return Steer([add(site, v, positions=positions) for site, v in shifts.items()])


def as_writes(model, shifts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What shifts of z [d_head] add to the attention output of their layer: "attn3" -> sum_h shift_h W_O[h], [d]."""
    total: dict[str, Tensor] = {}
    for site, shift in shifts.items():
        head = Site.parse(site)
        write = shift @ weights.attention_output(model, head.layer)[0][head.index]
        name = f"attn{head.layer}"
        total[name] = total[name] + write if name in total else write
    return {name: write.detach() for name, write in total.items()}
