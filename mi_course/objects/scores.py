"""What a localizer returns: one number per site, with its sign convention and its cost."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch

_HEAD = re.compile(r"^L(\d+)H(\d+)")
_LAYER = re.compile(r"^(x|mid|attn|mlp)(\d+)$")


@dataclass(frozen=True)
class Scores:
    """Scores of a localizing method over sites.

    sites      n addresses (`Site`, or their strings)
    values     n numbers; tensors and arrays are stored as a float64 array
    method     name of the method, for tables
    sign       what "intervened" means in F(intervened) - F(base): "noising" (clean run, corrupted value), "denoising"
               (corrupted run, clean value), "ablation", or "magnitude" for scores that intervene on nothing. A helpful
               site is negative under noising and ablation, positive under denoising (survey Eq. 12, audit A16).
    forwards, backwards   prompt rows sent through the whole model, and back
    token_layers          tokens times layers really computed: the honest unit when passes start half way
    seconds               wall time
    per_item              [n, items] the effect on every item, of which the value is the mean; None where there is none
    """

    sites: list
    values: np.ndarray
    method: str
    sign: str
    forwards: float = 0
    backwards: float = 0
    seconds: float = 0.0
    token_layers: float = 0
    per_item: np.ndarray | None = None

    def __post_init__(self):
        values = self.values
        if isinstance(values, torch.Tensor):
            values = values.detach().float().cpu().numpy()
        values = np.asarray(values, dtype=np.float64)
        object.__setattr__(self, "values", values)
        object.__setattr__(self, "sites", list(self.sites))
        if isinstance(self.per_item, torch.Tensor):
            object.__setattr__(self, "per_item", self.per_item.detach().double().cpu().numpy())
        if values.shape != (len(self.sites),):
            raise ValueError(f"values has shape {values.shape} for {len(self.sites)} sites; give one number per site")
        names = [str(site) for site in self.sites]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"sites names {twice} twice; give each site once")
        if not np.isfinite(values).all():
            bad = names[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise ValueError(f"values has a number that is not finite at {bad}; look for a division by zero or an "
                             f"overflow in {self.method!r}")

    def __len__(self) -> int:
        return len(self.sites)

    def __getitem__(self, site) -> float:
        """The score of one site, given as `Site` or string."""
        for known, value in zip(self.sites, self.values):
            if str(known) == str(site):
                return float(value)
        raise KeyError(f"site {site} was not scored by {self.method!r}; scored were {_some(self.sites)}")

    def top(self, k: int, by: str = "abs") -> list:
        """The k most important sites, best first.

        `by` says which end counts: "abs" (largest magnitude), "positive" or "negative" (most positive, most negative).
        """
        if not 1 <= k <= len(self):
            raise ValueError(f"k={k} is outside 1 ... {len(self)}, the number of scored sites")
        order = np.argsort(-self._importance(by), kind="stable")
        return [self.sites[i] for i in order[:k]]

    def against(self, truth, by: str = "abs") -> dict:
        """How well the ranking finds the known answer.

        truth: the sites that matter (an answer key), all among the scored ones and not all of them.
        Returns auroc (chance .5; probability that a true site outranks a false one, ties count half), recall_at_k with
        k = number of true sites (which then equals precision), and chance_recall = k / n, what a random ranking gets.
        """
        true_names = {str(site) for site in truth}
        names = [str(site) for site in self.sites]
        unknown = sorted(true_names - set(names))
        if unknown:
            raise ValueError(f"truth names {unknown[0]}, which was not scored; score it, or leave it out. "
                             f"Scored: {_some(names)}")
        k = len(true_names)
        if not 0 < k < len(names):
            raise ValueError(f"truth has {k} of {len(names)} sites; a ranking can only be judged with at least one "
                             f"true and one false site")
        is_true = np.array([name in true_names for name in names])
        importance = self._importance(by)
        true_values, false_values = importance[is_true], importance[~is_true]
        wins = (true_values[:, None] > false_values[None]).mean()
        ties = (true_values[:, None] == false_values[None]).mean()
        # Sites tied at the k-th place share the places that are left, so that their order in the list cannot matter.
        bar = np.sort(importance)[-k]
        above, tied = importance > bar, importance == bar
        found = (is_true & above).sum() + (is_true & tied).sum() * (k - above.sum()) / tied.sum()
        return {"auroc": float(wins + ties / 2), "recall_at_k": float(found / k), "k": k,
                "chance_recall": k / len(names)}

    def spearman(self, other: Scores, by: str = "abs") -> float:
        """Rank correlation with other scores of the same sites, -1 ... 1 (ties share their mean rank).

        by: what is ranked, as in `top`. Sites may come in any order. NaN when one of them gives all sites one value.
        """
        names, others = [str(site) for site in self.sites], [str(site) for site in other.sites]
        if set(names) != set(others):
            only = sorted(set(names) ^ set(others))
            raise ValueError(f"other scores other sites: {_some(only)} is in one of them only; score the same sites")
        place = {name: i for i, name in enumerate(others)}
        mine, theirs = self._importance(by), other._importance(by)[[place[name] for name in names]]
        ranks = np.stack([_ranks(mine), _ranks(theirs)])
        if (ranks.std(axis=1) == 0).any():
            return float("nan")
        return float(np.corrcoef(ranks)[0, 1])

    def to_frame(self):
        """A pandas data frame with columns site and score, most important first."""
        import pandas as pd

        order = np.argsort(-np.abs(self.values), kind="stable")
        return pd.DataFrame({"site": [str(self.sites[i]) for i in order], "score": self.values[order]})

    def plot(self, ax=None, top: int = 20):
        """Draw the scores: layers x heads as a grid, one object per layer as a line over depth, else the top bars.

        Blue is negative and orange positive, both for a colour-blind reader. Returns the matplotlib axes.
        """
        import matplotlib.pyplot as plt

        ax = ax or plt.subplots(figsize=(5, 3.2), layout="constrained")[1]
        names = [str(site) for site in self.sites]
        heads = [_HEAD.match(name) for name in names]
        layers = [_LAYER.match(name) for name in names]
        if all(heads) and len({(m[1], m[2]) for m in heads}) == len(names):
            _draw_grid(ax, [(int(m[1]), int(m[2])) for m in heads], self.values)
        elif all(layers) and len({m[1] for m in layers}) == 1:
            order = np.argsort([int(m[2]) for m in layers])
            ax.plot([names[i] for i in order], self.values[order], marker="o", color="#0072B2")
            ax.axhline(0, color="grey", lw=0.8)
            ax.set_ylabel("score")
        else:
            best = self.top(min(top, len(self)))[::-1]
            values = [self[site] for site in best]
            ax.barh([str(s) for s in best], values, color=["#D55E00" if v > 0 else "#0072B2" for v in values])
            ax.set_xlabel("score")
        ax.set_title(f"{self.method} ({self.sign})")
        return ax

    def _importance(self, by: str) -> np.ndarray:
        ends = {"abs": np.abs, "positive": np.positive, "negative": np.negative}
        if by not in ends:
            raise ValueError(f"by={by!r} is unknown; choose one of {', '.join(ends)}")
        return ends[by](self.values)

    def __repr__(self) -> str:
        best = ", ".join(f"{site} {self[site]:+.3g}" for site in self.top(min(3, len(self)))) if len(self) else "none"
        return (f"Scores({self.method}, {self.sign}: {len(self)} sites, top {best}; {self.forwards:g} forwards, "
                f"{self.backwards:g} backwards, {self.seconds:.2f} s)")


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0; equal values share the mean of their places."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[inverse]


def _draw_grid(ax, cells, values):
    n_layers, n_heads = max(c[0] for c in cells) + 1, max(c[1] for c in cells) + 1
    grid = np.full((n_layers, n_heads), np.nan)
    for (layer, head), value in zip(cells, values):
        grid[layer, head] = value
    limit = np.abs(values).max() or 1.0
    image = ax.imshow(grid, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    ax.set(xlabel="head", ylabel="layer", xticks=range(n_heads), yticks=range(n_layers))
    ax.figure.colorbar(image, ax=ax, label="score")


def _some(sites) -> str:
    names = [str(site) for site in sites]
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")
