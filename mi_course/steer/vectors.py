"""Vector arithmetic (survey section 4.3): a direction in activation space, added or taken away.

    mean difference       v = mean(x | positive) - mean(x | negative)                      (22)
    addition              x + alpha v                                                      (21)
    relative addition     x + s |x| r, r = v / |v|                                         (alpha with a scale, A24)
    directional ablation  x - (x . r) r, at every write to the stream                      (not in the survey, A25)
    orthogonalisation     W <- W - (W r) r for every weight that writes: the same thing in the weights
    removal of nuisances  v - its part in the span of other vectors

Where vectors come from (one pair, answer tokens, probes, SAEs) is in `vector_sources`, shifts of single heads in
`head_shifts`, contrasts of layers while decoding in `decoding`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from mi_course.models import Intervention, Site, add, project, record
from mi_course.models.edits import fit_feature, make

from .weights import WeightEdit


@torch.no_grad()
def mean_activations(model, prompts: Sequence, sites: Iterable[str], batch_size: int = 256) -> dict[str, torch.Tensor]:
    """Mean over prompts of sites that name a position, such as "x3@-1". Returns site string -> [d]."""
    sites = [Site.parse(site) for site in sites]
    for site in sites:
        if site.position is None:
            raise ValueError(f"site {site} names no position; say which token to average, for instance {site}@-1")
    names = [str(site) for site in sites]
    total = dict.fromkeys(names, 0)
    for start in range(0, len(prompts), batch_size):
        cache = record(model, prompts[start : start + batch_size], names)
        total = {name: total[name] + cache[name].sum(0) for name in names}
    return {name: value / len(prompts) for name, value in total.items()}


def mean_difference(model, positive: Sequence, negative: Sequence, site: str) -> torch.Tensor:
    """Mean state on the positive prompts minus mean state on the negative ones (Eq. 22). Returns [d].

    `site` names layer and position, such as "x3@-1": the state of the last token of each prompt as block 3 reads it.
    """
    return mean_differences(model, positive, negative, [site])[str(Site.parse(site))]


def mean_differences(model, positive: Sequence, negative: Sequence, sites: Iterable[str]) -> dict[str, torch.Tensor]:
    """`mean_difference` at many sites from one pass over the prompts. Returns site string -> [d]."""
    sites = list(sites)
    up, down = mean_activations(model, positive, sites), mean_activations(model, negative, sites)
    return {site: up[site] - down[site] for site in up}


def unit(direction: torch.Tensor) -> torch.Tensor:
    """The direction at length one. ValueError for the zero vector."""
    norm = direction.norm()
    if not norm > 0:
        raise ValueError("direction has length 0: the two prompt sets have the same mean there")
    return direction / norm


def writes(model) -> list[str]:
    """Every place where the residual stream is written: the embedding, and what each attention and FFN block adds."""
    blocks = [f"{kind}{layer}.write" for layer in range(model.n_layers) for kind in ("attn", "mlp")]
    return ["x0", *blocks]


def ablate_direction(model, direction: torch.Tensor) -> list:
    """Directional ablation everywhere (Arditi et al. 2024): edits after which no state has a part along the direction.

    Each write w becomes w - (w . r) r, at all positions, prompt and generated.
    """
    r = unit(direction)
    return [project(site, r) for site in writes(model)]


def add_vector(vector: torch.Tensor, site: str, alpha: float = 1.0, positions="all"):
    """Edit x + alpha v at a residual state such as "x3" (Eq. 21)."""
    return add(site, vector, alpha=alpha, positions=positions)


def add_relative(sites, direction: torch.Tensor, share: float = 1.0, positions="all") -> Intervention:
    """Edit x + share |x| r, r = direction / |direction|: the push is as long as `share` of each state. direction [d].

    So share means the same at every layer and in every model; 1 turns a state at right angles to r by 45 degrees.
    """
    r = unit(torch.as_tensor(direction).float())

    def transform(value, where):
        return value + share * value.norm(dim=-1, keepdim=True) * fit_feature(r, value, where)

    return make("add_relative", sites, transform, positions, direction=direction, share=share)


@torch.no_grad()
def mean_norm(model, site: str, prompts: Sequence, batch_size: int = 256) -> float:
    """Mean |x| at the site over all real tokens of the prompts (over the prompts, when the site names a position)."""
    total, count = 0.0, 0
    for start in range(0, len(prompts), batch_size):
        cache = record(model, prompts[start : start + batch_size], [site], logits=False)
        states = cache[site] if Site.parse(site).position is not None else cache[site][cache.batch.mask.bool()]
        total, count = total + states.norm(dim=-1).sum().item(), count + len(states)
    return total / count


def at_share(model, vector: torch.Tensor, site: str, prompts: Sequence, share: float = 1.0) -> torch.Tensor:
    """The vector at length share * mean |x|: alpha = share |x| / |v| with one |x| for all tokens (audit A24a)."""
    return unit(vector) * share * mean_norm(model, site, prompts)


def without(vector: torch.Tensor, nuisances: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """The vector [d] without its part in the span of the nuisances (k of [d]): at right angles to every one of them.

    One nuisance after the other would not do: unless they are at right angles, each projection brings back some of
    the last. So their span gets an orthonormal basis first (from an SVD, so that nuisances may depend on each other).
    """
    rows = torch.stack(list(nuisances)).float()
    if rows.dim() != 2 or rows.shape[1:] != vector.shape:
        raise ValueError(f"nuisances: shape {tuple(rows.shape)}; give k vectors of the shape {tuple(vector.shape)}")
    _, sizes, basis = torch.linalg.svd(rows, full_matrices=False)
    basis = basis[sizes > 1e-6 * sizes.max()].to(vector)
    return vector - (vector @ basis.T) @ basis


def random_like(vector: torch.Tensor, n: int, seed: int = 0) -> torch.Tensor:
    """n random directions as long as the vector, [n, d]: the control of everything here."""
    draws = torch.randn(n, *vector.shape, generator=torch.Generator().manual_seed(seed)).to(vector)
    return draws / draws.norm(dim=-1, keepdim=True) * vector.norm()


@torch.no_grad()
def relative_norm(model, vector: torch.Tensor, site: str, prompts: Sequence) -> float:
    """|v| over the mean |x| at the site's real tokens: the scale that alpha needs."""
    return vector.norm().item() / mean_norm(model, site, prompts)


@torch.no_grad()
def orthogonalise(model, direction: torch.Tensor) -> WeightEdit:
    """Directional ablation in the weights: W <- W - (W r) r for every weight and bias that writes to the stream.

    That is W_E, learned positions, W_O, b_O, W_out and b_out (audit A25). Equal to `ablate_direction` to float error.
    An unembedding that is tied to W_E stays as it was. ValueError for families with a norm between block and stream.
    """
    family = model.family
    if family.attn_post_norm or family.mlp_post_norm:
        raise ValueError(
            f"{family.name} has a norm between block and stream, so no weight writes there; use ablate_direction"
        )
    r = unit(direction)
    blocks = [
        f"{family.blocks}.{layer}.{part}" for layer in range(model.n_layers) for part in (family.o, family.mlp_out)
    ]
    deltas = {}
    for path in [family.embed, *([family.pos] if family.pos else []), *blocks]:
        module = model.hf.get_submodule(path)
        for name in ("weight", "bias"):
            parameter = getattr(module, name, None)
            if parameter is None:
                continue
            # rows write to the stream, except that nn.Linear stores W transposed
            transposed = isinstance(module, torch.nn.Linear) and name == "weight"
            W = parameter.T if transposed else parameter
            delta = -(W @ r)[..., None] * r
            deltas[f"{path}.{name}"] = delta.T if transposed else delta
    return WeightEdit(deltas)
