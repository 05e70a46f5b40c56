"""Sweep: one task run again and again, each time with something else changed. The engine under causal attribution.

A sweep computes nothing twice. A **cell** is one set of edits; its run differs from the base run only above the lowest
layer that it edits, and only from the first position on. So a cell starts there, from the states, keys and values of
the base run; cells go through the model together, as rows of one batch; and of the output only the logits that the
metric reads are computed. All of this is exact: a cell's value is what a plain forward pass under `intervene` gives.

What an FFN writes reaches x^{l+1} by addition, so where no post-norm follows, an edit of `mlp{l}`, of a neuron or of a
feature of these needs no block of its layer: it starts at l + 1, from x^{l+1} + (new - old).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mi_course.models import Site, patch, record, weights
from mi_course.models.batch import Chosen
from mi_course.models.hooks import Rows, Where, resolve
from mi_course.models.partial import Past, run_from
from mi_course.objects import Scores, Task

# Edits that act on every position for itself, so that they can be given a part of the columns. `edit` may do anything.
_BY_POSITION = ("zero", "mean", "patch", "scale", "project", "add")
TOKENS_PER_RUN = 2048


@dataclass(frozen=True)
class _Plan:
    """How a cell is run: where it starts, what it adds to the base state there, and the taps that do the rest."""

    layer: int  # -1: from the embeddings
    column: int
    difference: Tensor | None  # [n, T, d]
    taps: list


class Sweep:
    """A task made ready to be measured many times with one model.

    task: its prompts are tokenized, and its answers looked up, once. on: "clean" or "corrupted", the base run.
    model: no weight may be changed through `.data` while the sweep is in use; other changes are noticed.
    forwards (prompt rows through the whole model; partial runs count as the share that they computed) and token_layers
    (real tokens times layers) are what was really computed so far.

    under: edits of `embed` or `pos` that hold in the base run and in every cell, such as noise on the subject.

    A cell is an Intervention, a list of them, or a dict site -> tensor [n, T, ...] to patch in. Interventions that are
    active around a call apply too; then every cell is run plainly.
    """

    def __init__(self, model, task: Task, on: str = "clean", under: Sequence = ()):
        if on not in ("clean", "corrupted"):
            raise ValueError(f"on={on!r} is unknown; choose 'clean' or 'corrupted'")
        if on == "corrupted" and task.corrupted is None:
            raise ValueError(f"task {task.name!r} has no corrupted prompts; give corrupted=, or use on='clean'")
        self._under = _taps(list(under))
        if any(site.kind not in ("embed", "pos") for site, _ in self._under):
            raise ValueError("under takes edits of embed and pos; give other edits as part of the cells")
        task.validate(model)
        foils = None if task.foils is None else task.foil_ids(model).tolist()
        self.model = model
        self.task = replace(task, targets=task.target_ids(model).tolist(), foils=foils)
        self.batch = model.tokenize(task.prompts if on == "clean" else task.corrupted)
        self.forwards = 0.0
        self.token_layers = 0.0
        self.started = time.perf_counter()
        self._past: Past | None = None
        self._weights = None
        self._chosen = Chosen(self.batch.mask, self.batch.mask)

    @property
    def changed(self) -> Tensor:
        """[n, T] bool, the columns at or after the first token in which the twins differ.

        Before it a value from the twin is the value that is there already: patch with `positions=sweep.changed`.
        """
        if self.task.corrupted is None:
            raise ValueError(f"task {self.task.name!r} has no corrupted prompts: patching needs aligned twins")
        twins = [self.model.tokenize(prompts).ids for prompts in (self.task.prompts, self.task.corrupted)]
        return ((twins[0] != twins[1]).cumsum(1) > 0) & self.batch.mask.bool()

    # -- measuring -----------------------------------------------------------------------------------------------

    @property
    def base(self) -> Tensor:
        """[n] metric of every item in the base run."""
        return self.values([[]])[0]

    def measure(self, edits: Sequence = ()) -> Tensor:
        """[n] metric of every item under these edits: the value of one cell."""
        return self.values([edits])[0]

    def values(self, cells: Sequence) -> Tensor:
        """[n_cells, n] metric of every item in every cell."""
        return self._run(cells, self._metric)

    def effects(self, cells: Sequence) -> Tensor:
        """[n_cells, n], F(cell) - F(base) of every item."""
        values = self.values([[], *cells])
        return values[1:] - values[0]

    def logits(self, cells: Sequence) -> Tensor:
        """[n_cells, n, V], all logits at the answer position."""
        return self._run(cells, self.model._head)

    def scores(self, sites, effects: Tensor, method: str, sign: str) -> Scores:
        """Scores from the effects [n_sites, n], with the cost of this sweep so far."""
        seconds = time.perf_counter() - self.started
        cost = {"forwards": round(self.forwards, 6), "token_layers": self.token_layers, "seconds": seconds}
        return Scores(list(sites), effects.mean(1), method=method, sign=sign, **cost, per_item=effects)

    def count_runs(self, runs: int) -> None:
        """Add full runs of the prompts that were made outside, such as one that recorded the twins, to the cost."""
        for _ in range(runs):
            self._count(0, self.model.n_layers)

    # -- how -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _run(self, cells: Sequence, read) -> Tensor:
        """`read` maps the normed states at the answer, [c, n, d], to [c, n, ...]. Returns it for every cell."""
        cells = [_taps(cell) for cell in cells]
        if self.model.taps._active:
            return torch.stack([self._plain(taps, read) for taps in cells])
        cells = [[(*tap, first) for tap in taps if (first := self._first_column(*tap)) is not None] for taps in cells]
        self._prepare(cells)
        plans = [self._plan(taps) for taps in cells]
        results: list[Tensor | None] = [None] * len(cells)
        unchanged = [i for i, plan in enumerate(plans) if plan is None]
        if unchanged:
            final = self.model.hf.get_submodule(self.model.family.final_norm)(self._answer(self._past.x[-1], 0))
            for i in unchanged:
                results[i] = read(final)[0]
        for chunk in self._chunks(plans):
            found = read(self._partial([plans[i] for i in chunk]))
            for i, result in zip(chunk, found):
                results[i] = result
        return torch.stack(results)

    def _plain(self, taps: list, read) -> Tensor:
        """One forward pass of the whole model under everything that is active."""
        with self.model.taps.active([*self._under, *taps]):
            batch = self.batch
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.position_ids}
            states = self.model.body(**inputs, use_cache=False).last_hidden_state
        self.count_runs(1)
        return read(self._answer(states, 0))[0]

    def _prepare(self, cells: list) -> None:
        """Make the base run, unless it is there already, with what the cells need of it."""
        state = [(p.data_ptr(), p._version) for p in self.model.hf.parameters()]
        if state != self._weights:
            self._past, self._weights = None, state
        wanted = {str(base) for taps in cells for base in [self._written_by_ffn(taps)] if base is not None}
        missing = sorted(wanted - self._past.also.keys()) if self._past else sorted(wanted)
        if self._past and not missing:
            return
        with self.model.taps.active(self._under):
            if self._past is None:
                self._past = Past.of(self.model, self.batch, missing)
            else:
                self._past.also.update(record(self.model, self.batch, missing))
        self.count_runs(1)

    def _written_by_ffn(self, taps: list) -> Site | None:
        """The site (mlp or neurons of a layer) through which all edits of the lowest layer act, or None."""
        layers = [self._layer(site) for site, *_ in taps]
        objects = {_base(self.model, site) for (site, *_), layer in zip(taps, layers) if layer == min(layers)}
        if len(objects) != 1 or self.model.family.mlp_post_norm:
            return None
        found = objects.pop()
        if found.kind == "mlp":
            return replace(found, part=None)
        return found if found.kind == "neuron" and found.part == "neurons" else None

    def _layer(self, site: Site) -> int:
        layer = _base(self.model, site).layer
        return -1 if layer is None else layer

    def _plan(self, taps: list) -> _Plan | None:
        """Where this cell starts; None when it changes nothing."""
        if not taps:
            return None
        column = min(int(self.batch.last.min()), *(first for *_, first in taps))
        layer = min(self._layer(site) for site, *_ in taps)
        written = self._written_by_ffn(taps)
        taps = [(site, tap) for site, tap, _ in taps]
        if layer < 0:
            taps = [*self._under, *taps]
        if written is None:
            return _Plan(layer, column, None, taps)
        below = [tap for tap in taps if self._layer(tap[0]) == layer]
        above = [tap for tap in taps if self._layer(tap[0]) > layer]
        return _Plan(layer + 1, column, self._difference(written, below, column), above)

    def _first_column(self, site: Site, tap) -> int | None:
        """First column that a tap can change: 0 when it is not known, None when it changes none."""
        resolve(self.model, site)  # SiteError for what the model does not have
        if getattr(getattr(tap, "intervention", None), "name", None) not in _BY_POSITION:
            return 0
        chosen = self._chosen.among(tap.positions, 0, self.batch.ids.shape[1])
        if chosen is None:
            return 0
        return None if chosen is False else int(chosen.any(0).long().argmax())

    def _difference(self, written: Site, taps: list, column: int) -> Tensor:
        """What the edits of one FFN add to x^{l+1} of the base run, [n, T - column, d]."""
        old = self._past.also[str(written)][:, column:]
        where = Where(self._chosen, 1, column, column + old.shape[1])
        W_out = None if written.kind == "mlp" else weights.ffn(self.model, written.layer).W_out
        neurons = [site.index for site, _ in taps if site.kind == "neuron"]
        if len(neurons) == len(taps) == len(set(neurons)) and None not in neurons:  # only their rows of W_out
            values = torch.stack([old[..., j] for j in neurons], -1)
            new = torch.stack([tap(old[..., j], where) for j, (_, tap) in zip(neurons, taps)], -1)
            return (new - values) @ W_out[neurons]
        new = old
        for site, tap in taps:
            slot = resolve(self.model, site)
            value = slot.read(new)
            changed = tap(value, where)
            new = new if changed is value else slot.write(new, changed)
        return new - old if W_out is None else (new - old) @ W_out

    def _chunks(self, plans: list) -> Iterable[list[int]]:
        """Cells that run together: one start column, ascending layers, a bounded number of tokens."""
        order = [i for i, plan in enumerate(plans) if plan is not None]
        order.sort(key=lambda i: (plans[i].column, plans[i].layer))
        chunk: list[int] = []
        for i in order:
            column = plans[i].column
            tokens = len(self.batch) * (self.batch.ids.shape[1] - column)
            if chunk and (plans[chunk[0]].column != column or (len(chunk) + 1) * tokens > TOKENS_PER_RUN):
                yield chunk
                chunk = []
            chunk.append(i)
        if chunk:
            yield chunk

    def _partial(self, plans: list[_Plan]) -> Tensor:
        """Run cells of one start column together. Returns their normed states at the answer, [c, n, d]."""
        past, column, n = self._past, plans[0].column, len(self.batch)
        starts, taps = [], []
        for i, plan in enumerate(plans):
            x = past.x[max(plan.layer, 0)][:, column:]
            starts.append(x if plan.difference is None else x + plan.difference)
            rows = Rows(slice(i * n, (i + 1) * n), self._chosen)
            taps += [(site, tap, rows) for site, tap in plan.taps]
            self._count(column, self.model.n_layers - max(plan.layer, 0))
        states = run_from(self.model, past, column, [plan.layer for plan in plans], torch.cat(starts), taps)
        return self._answer(states, column)

    def _answer(self, states: Tensor, column: int) -> Tensor:
        """States at the answer position, [c * n, T - column, d] -> [c, n, d]."""
        last = (self.batch.last - column).repeat(len(states) // len(self.batch))
        picked = states[torch.arange(len(states), device=states.device), last]
        return picked.unflatten(0, (-1, len(self.batch)))

    def _metric(self, normed: Tensor) -> Tensor:
        """[c, n, d] -> [c, n]. A difference of two logits needs two columns of W_U."""
        if self.task.metric != "logit_diff":
            logits = self.model._head(normed)
            return torch.stack([self.task.metric_of(one, self.model) for one in logits])
        read = weights.unembedding(self.model)

        def logit(ids):
            value = (normed * read.W_U.T[ids]).sum(-1) + read.b_U[ids]
            return value if read.softcap is None else read.softcap * torch.tanh(value / read.softcap)

        device = normed.device
        return logit(self.task.target_ids(self.model).to(device)) - logit(self.task.foil_ids(self.model).to(device))

    def _count(self, column: int, layers: int) -> None:
        """One copy of the prompts, from a column on, through so many layers."""
        mask = self.batch.mask
        token_layers = int(mask[:, column:].sum()) * layers
        self.token_layers += token_layers
        self.forwards += len(mask) * token_layers / (int(mask.sum()) * self.model.n_layers)


def _taps(cell) -> list:
    """The (site, function) pairs of a cell."""
    if isinstance(cell, dict):
        cell = [patch(site, value) for site, value in cell.items()]
    if isinstance(cell, (list, tuple)):
        return [tap for part in cell for tap in _taps(part)]
    if not hasattr(cell, "taps"):
        raise TypeError(f"cells: {cell!r} is a {type(cell).__name__}; give edits (zero, patch ...) or a dict of sites")
    return list(cell.taps())


def _base(model, site: Site) -> Site:
    """The site of the model that holds this one: for a feature what its SAE reads, for a neuron the layer's neurons."""
    if site.kind == "feature":
        return _base(model, Site.parse(model.saes[site.sae].site)) if site.sae in model.saes else site
    return replace(site, index=None) if site.kind in ("head", "neuron") else site
