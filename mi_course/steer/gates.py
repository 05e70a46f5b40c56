"""Soft and learned masks (survey section 4.2, S2d and S2e): gates between 0 and 1 that training opens and closes.

A gate is a random variable with the hard-concrete distribution (Louizos et al. 2018, arXiv 1712.01312): a logistic
sample, squeezed into (0, 1), stretched to (gamma, zeta) and cut to [0, 1], so that it is exactly 0 or 1 with positive
probability and still has a gradient:

    s = sigmoid((log u - log(1 - u) + log_alpha) / beta),  u uniform;   gate = clip(s (zeta - gamma) + gamma, 0, 1)
    P(gate > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))          the expected L0 norm, summed over gates
    at test       clip(sigmoid(log_alpha) (zeta - gamma) + gamma, 0, 1)

    learned_mask   theta + sum_u gate_u delta_u: which units' changes are needed, with delta given or trained along
    removal_mask   z <- (1 - gate) z for every head: which heads must go?
    jola           z <- (1 + g_m m) * z + g_a a for every head, two gates each (JoLA; Lai et al. 2025, arXiv 2502.01179)
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mi_course.models import Model, Site
from mi_course.models.slices import replaced, slices, weight_in_force
from mi_course.objects import Scores

from .fit import train
from .interventions import affine, train_edits
from .steer import Steer
from .training import lowest_layer
from .weights import WeightEdit

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # as in the code of Louizos et al. (AMLab-Amsterdam/L0_regularization)
PACE = 10.0  # AdamW moves every number about as far; log_alpha has a longer way to go than a weight


def hard_concrete(log_alpha: Tensor, u: Tensor | None = None) -> Tensor:
    """Gates in [0, 1]: a sample for uniform noise u in (0, 1) of the same shape; without it the value at test."""
    if u is None:
        s = torch.sigmoid(log_alpha)
    else:
        s = torch.sigmoid((u.log() - (1 - u).log() + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(gate > 0). The sum over gates is the expected number of open ones, which the penalty counts."""
    return torch.sigmoid(log_alpha - BETA * math.log(-GAMMA / ZETA))


class Gates:
    """n gates in training: sampled while gradients are on, as at test otherwise. All start half open."""

    def __init__(self, n: int, device, seed: int = 0):
        self.raw = torch.zeros(n, device=device, requires_grad=True)
        self.generator = torch.Generator().manual_seed(seed)

    @property
    def log_alpha(self) -> Tensor:
        return PACE * self.raw

    def __call__(self) -> Tensor:
        """[n] gates."""
        if not torch.is_grad_enabled():
            return hard_concrete(self.log_alpha)
        u = torch.rand(len(self.raw), generator=self.generator).clamp(1e-6, 1 - 1e-6)
        return hard_concrete(self.log_alpha, u.to(self.raw))


def learned_mask(
    model: Model, task, units: Sequence[str], edit: WeightEdit | None = None, sparsity: float = 0.02, **training
) -> tuple[WeightEdit, Scores]:
    """theta + sum_u gate_u delta_u, trained on loss + sparsity * expected number of open gates.

    With `edit` its change is taken as it is and only the gates learn: which units of it does the task need? Without it,
    the change of the units is trained along with the gates (a soft mask, S2d).

    Args:
        units: heads, neurons or FFNs, no two of which share weights. What `edit` changes elsewhere is left out.
        sparsity: the price of one open gate in nats.
        training: see `fit.train`.
    Returns the edit with the gates as at test, and P(gate > 0) of every unit as Scores.
    """
    seed = training.get("seed", 0)
    owner: dict[str, Tensor] = {}  # parameter -> for every weight the number of its unit, or -1
    for number, unit in enumerate(units):
        for s in slices(model, unit):
            shape = weight_in_force(model, s.parameter).shape
            place = owner.setdefault(s.parameter, torch.full(shape, -1))
            if (place.index_select(s.dim, s.index) >= 0).any():
                raise ValueError(f"units: {unit} shares weights ({s.parameter}) with another unit; name each once")
            place.index_fill_(s.dim, s.index, number)
    if not owner:
        raise ValueError("units is empty; name at least two, for instance ['L2H1', 'L3H2']")
    owner = {name: place.to(model.device) for name, place in owner.items()}
    if edit is None:
        deltas = {name: torch.zeros_like(weight_in_force(model, name)).requires_grad_(True) for name in owner}
        numbers = list(deltas.values())
    else:
        owner = {name: place for name, place in owner.items() if name in edit.deltas}
        deltas, numbers = {name: edit.strength * edit.deltas[name] for name in owner}, []
        if not owner:
            raise ValueError("units: the edit changes none of them")
    gates = Gates(len(units), model.device, seed)

    def masked() -> dict[str, Tensor]:
        values = torch.cat([gates(), torch.zeros(1, device=model.device)])  # index -1 is the closed one
        return {name: values[place].to(deltas[name]) * deltas[name] for name, place in owner.items()}

    def active():
        return replaced(model, {name: weight_in_force(model, name) + change for name, change in masked().items()})

    train(
        model,
        task,
        [*numbers, gates.raw],
        active,
        lowest_layer(model, owner),
        penalty=lambda: sparsity * open_probability(gates.log_alpha).sum(),
        **{"weight_decay": 0.0} | training,
    )
    with torch.no_grad():
        return WeightEdit(masked()), _scores(units, open_probability(gates.log_alpha), "learned mask")


def jola(
    model: Model, task, layers: Sequence[int] | None = None, sparsity: float = 0.02, positions="all", **training
) -> tuple[Steer, Scores]:
    """JoLA: z <- (1 + g_m m) * z + g_a a for every head of the layers, where vectors and gates are learned together.

    m, a [d_head] for each head start at 0 and g_m, g_a are two gates for each head, so that training decides where to
    edit and whether to scale or to shift. The loss is that of the task plus sparsity times the expected number of open
    gates (price of one, in nats).

    The edit is that of the authors' code (wenlai-lavine/jola). There beta is 0.33, and gates of shifts and of scales
    have the prices lambda and 1 - lambda over the number of heads, where lambda falls from 0.1 as exp(-0.01 step). Here
    both have one price, which stays.

    Returns the Steer with the gates as at test, and for every head the probability that one of its gates is open.
    """
    layers = list(range(model.n_layers) if layers is None else layers)
    H, n = model.n_heads, model.d_head
    vectors = torch.zeros(2, len(layers), H, n, device=model.device, requires_grad=True)
    gates = Gates(2 * len(layers) * H, model.device, training.get("seed", 0))

    def edits():
        m, a = gates().view(2, len(layers), H, 1) * vectors
        return [affine(f"z{layer}", 1 + m[i], a[i], positions) for i, layer in enumerate(layers)]

    def penalty():
        return sparsity * open_probability(gates.log_alpha).sum()

    train_edits(model, task, [vectors, gates.raw], edits, penalty=penalty, **training)
    with torch.no_grad():
        closed = (1 - open_probability(gates.log_alpha)).view(2, -1).prod(0)
        sites = [Site.head(layer, head, "z") for layer in layers for head in range(H)]
        return Steer(tuple(edits())), _scores(sites, 1 - closed, "JoLA gates")


def removal_mask(
    model: Model, task, layers: Sequence[int] | None = None, sparsity: float = 0.3, positions="all", **training
) -> tuple[Steer, Scores]:
    """z <- (1 - gate) z: switch off as few heads as possible so that the model gives the answers of the task.

    One gate for each head and nothing else to learn, so the behaviour cannot be built anew elsewhere, as a shift can
    (`jola`). sparsity: the price of one head in nats. Returns as `jola`.
    """
    layers = list(range(model.n_layers) if layers is None else layers)
    H, n = model.n_heads, model.d_head
    gates = Gates(len(layers) * H, model.device, training.get("seed", 0))

    def edits():
        kept = (1 - gates()).view(len(layers), H, 1).expand(-1, -1, n)
        return [affine(f"z{layer}", kept[i], torch.zeros_like(kept[i]), positions) for i, layer in enumerate(layers)]

    def penalty():
        return sparsity * open_probability(gates.log_alpha).sum()

    train_edits(model, task, [gates.raw], edits, penalty=penalty, **training)
    with torch.no_grad():
        sites = [Site.head(layer, head, "z") for layer in layers for head in range(H)]
        return Steer(tuple(edits())), _scores(sites, open_probability(gates.log_alpha), "removal mask")


def _scores(sites, probabilities: Tensor, method: str) -> Scores:
    return Scores(sites, probabilities.detach().cpu(), method=method, sign="probability that the gate is open")
