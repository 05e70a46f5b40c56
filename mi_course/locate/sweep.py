"""Sweep: one task run again and again, each time with something else changed. The engine under causal attribution.

A sweep computes nothing twice. A **cell** is one set of edits; its run differs from the base run only above the lowest
layer that it edits, and only from the first position on. So a cell starts there, from the states, keys and values of
the base run; cells go through the model together, as rows of one batch; and of the output only the logits that the
metric reads are computed. All of this is exact: a cell's value is what a plain forward pass under `intervene` gives.

Three savings inside a block. What an FFN writes reaches x^{l+1} by addition, so where no post-norm follows, an edit of
`mlp{l}`, of a neuron or of a feature of these starts at l + 1, from x^{l+1} + (new - old). An edit of z, `attn{l}` or
`mid{l}` changes x^mid by a known difference: of its block only the FFN is computed. And of the last block only the
answer is read, so one query and one FFN input of each row do, unless an edit is in that block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from mi_course.models import Site, patch, record, weights
from mi_course.models.batch import Chosen
from mi_course.models.hooks import Rows, Where, resolve
from mi_course.models.partial import Past, ffn_write, last_block, run_from
from mi_course.objects import Scores, Task

# Edits that act on every position for itself, so that they can be given a part of the columns. `edit` may do anything.
_BY_POSITION = ("zero", "mean", "patch", "scale", "project", "add")
BRANCH = {"attn": "attn", "head": "attn", "mlp": "mlp", "neuron": "mlp"}
TOKENS_PER_RUN = 2048
# What starting one pass through one layer costs beside its arithmetic, in floating-point operations (measured).
OVERHEAD = 4e7


@dataclass
class _Plan:
    """How a cell is run: where it starts, the state that it starts from, and the taps that do the rest."""

    layer: int  # -1: from the embeddings
    column: int
    state: Tensor | None  # x^layer [n, T - column, d]; at the answer alone, [n, d], when layer = L; None at -1
    taps: list
    is_mid: bool = False  # whether `state` is still x^mid of the layer below, the FFN of which has to be added

    def ends_early(self, model) -> bool:
        """Whether nothing is tapped in the last block or after it."""
        last = model.n_layers - 1
        return 0 <= self.layer <= last and all(_layer(model, site) < last for site, _ in self.taps)


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
        self._writers: dict[Site, Tensor] = {}
        self._chosen = Chosen(self.batch.mask, self.batch.mask)

    @cached_property
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
        self._add_ffns(plans)
        results: list[Tensor | None] = [None] * len(cells)
        for chunk, run in self._chunks(plans):
            normed = self.model.hf.get_submodule(self.model.family.final_norm)(run([plans[i] for i in chunk]))
            for i, result in zip(chunk, read(normed.unflatten(0, (-1, len(self.batch))))):
                results[i] = result
        return torch.stack(results)

    def _plain(self, taps: list, read) -> Tensor:
        """One forward pass of the whole model under everything that is active."""
        with self.model.taps.active([*self._under, *taps]):
            batch = self.batch
            inputs = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.position_ids}
            normed = self.model.body(**inputs, use_cache=False).last_hidden_state
        self.count_runs(1)
        return read(self._answer(normed, 0)[None])[0]

    def _prepare(self, cells: list) -> None:
        """Make the base run, unless it is there already, with what the cells need of it."""
        state = [(p.data_ptr(), p._version) for p in self.model.hf.parameters()]
        if state != self._weights:
            self._past, self._weights = None, state
            self._writers.clear()
        wanted = {str(site) for taps in cells for site in self._needed(self._lifted(taps))}
        missing = sorted(wanted - self._past.also.keys()) if self._past else sorted(wanted)
        if self._past and not missing:
            return
        with self.model.taps.active(self._under):
            if self._past is None:
                self._past = Past.of(self.model, self.batch, missing)
            else:
                self._past.also.update(record(self.model, self.batch, missing, logits=False))
        self.count_runs(1)

    def _lifted(self, taps: list) -> Site | None:
        """The one tensor through which all edits of the lowest layer act, if the next state follows from it simply."""
        layers = [_layer(self.model, site) for site, *_ in taps]
        objects = {_base(self.model, site) for (site, *_), layer in zip(taps, layers) if layer == min(layers)}
        if len(objects) != 1:
            return None
        found, family = objects.pop(), self.model.family
        if found.kind in ("x", "mid"):
            return found
        if found.kind not in BRANCH or {"attn": family.attn_post_norm, "mlp": family.mlp_post_norm}[BRANCH[found.kind]]:
            return None
        if found.kind in ("attn", "mlp"):
            return Site(found.kind, found.layer)  # its write is the same without a post-norm
        return found if found.part in ("z", "neurons") else None

    def _needed(self, lifted: Site | None) -> list[Site]:
        """What of the base run an edit of this tensor starts from, beside the states."""
        if lifted is None or lifted.kind == "x":
            return []
        return list({lifted, Site("mid", lifted.layer)}) if self._passes_ffn(lifted) else [lifted]

    def _passes_ffn(self, lifted: Site) -> bool:
        """Whether the FFN of its layer reads what an edit of this tensor changes."""
        sequential = not self.model.family.is_parallel(self.model.config)
        return lifted.kind in ("mid", "attn", "head") and sequential

    def _plan(self, taps: list) -> _Plan:
        """Where this cell starts."""
        if not taps:
            return _Plan(self.model.n_layers, 0, self._answer(self._past.x[-1], 0), [])
        column = min(int(self.batch.last.min()), *(first for *_, first in taps))
        layer = min(_layer(self.model, site) for site, *_ in taps)
        lifted = self._lifted(taps)
        taps = [(site, tap) for site, tap, _ in taps]
        if layer < 0:
            return _Plan(layer, column, None, [*self._under, *taps])
        if lifted is None:
            return _Plan(layer, column, self._past.x[layer][:, column:], taps)
        below = [tap for tap in taps if _layer(self.model, tap[0]) == layer]
        above = [tap for tap in taps if _layer(self.model, tap[0]) > layer]
        layer = layer if lifted.kind == "x" else layer + 1
        return _Plan(layer, column, self._start(lifted, below, column), above, self._passes_ffn(lifted))

    def _first_column(self, site: Site, tap) -> int | None:
        """First column that a tap can change: 0 when it is not known, None when it changes none."""
        resolve(self.model, site)  # SiteError for what the model does not have
        if getattr(getattr(tap, "intervention", None), "name", None) not in _BY_POSITION:
            return 0
        chosen = self._chosen.among(tap.positions, 0, self.batch.ids.shape[1])
        if chosen is None:
            return 0
        return None if chosen is False else int(chosen.any(0).long().argmax())

    def _start(self, lifted: Site, taps: list, column: int) -> Tensor:
        """The state that follows from edits of one tensor of the base run, as `_Plan.state`."""
        model, layer, past = self.model, lifted.layer, self._past
        old = past.x[layer] if lifted.kind == "x" else past.also[str(lifted)]
        old = old[:, column:].flatten(2)  # z as it enters W_O, all heads side by side
        where = Where(self._chosen, 1, column, self.batch.ids.shape[1])
        new = _edited(model, old, taps, where)
        at_answer = layer + (lifted.kind != "x") == model.n_layers
        if at_answer:  # nothing else is read
            new, old = self._answer(new, column), self._answer(old, column)

        def of_base(state):
            return self._answer(state, 0) if at_answer else state[:, column:]

        if lifted.kind in ("x", "mid"):
            return new
        difference = new - old
        indices = {site.index for site, _ in taps} if lifted.kind in ("neuron", "head") else {None}
        if any(site.kind == "feature" for site, _ in taps):
            indices = {None}
        rows = slice(None) if None in indices else sorted(indices)  # only the neurons or heads that changed
        if lifted.kind == "neuron":
            difference = difference[..., rows] @ self._writer(lifted)[rows]
        elif lifted.kind == "head":
            per_head = difference.unflatten(-1, (model.n_heads, -1))[..., rows, :]
            difference = per_head.flatten(-2) @ self._writer(lifted)[rows].flatten(0, 1)
        after = past.also[f"mid{layer}"] if self._passes_ffn(lifted) else past.x[layer + 1]
        return of_base(after) + difference

    def _writer(self, lifted: Site) -> Tensor:
        """W_out of the neurons, or W_O of the heads, of a layer; looked up once for all cells."""
        if lifted not in self._writers:
            of_head = lifted.kind == "head"
            read = weights.attention if of_head else weights.ffn
            found = read(self.model, lifted.layer)
            self._writers[lifted] = found.W_O if of_head else found.W_out
        return self._writers[lifted]

    def _add_ffns(self, plans: list[_Plan]) -> None:
        """Where a cell starts from x^mid, add what the FFN writes: for all cells of a layer at once."""
        by_layer: dict[int, list[_Plan]] = {}
        for plan in plans:
            if plan.is_mid:
                by_layer.setdefault(plan.layer - 1, []).append(plan)
        for layer, some in by_layer.items():
            mids = torch.cat([plan.state.flatten(0, -2) for plan in some])
            states = mids + ffn_write(self.model, layer, mids)
            for plan, state in zip(some, states.split([plan.state[..., 0].numel() for plan in some])):
                plan.state, plan.is_mid = state.view(plan.state.shape), False
                self._count(plan.column, 1)  # of the block only the FFN was computed; counted as a whole one

    def _chunks(self, plans: list[_Plan]) -> Iterable[tuple[list[int], Callable]]:
        """Cells that run together, and how: one start column, ascending layers, a bounded number of tokens."""
        model, n, width = self.model, len(self.batch), self.batch.ids.shape[1]
        done = [i for i, plan in enumerate(plans) if plan.layer == model.n_layers and not plan.taps]
        if done:
            yield done, lambda plans: torch.cat([plan.state for plan in plans])
        early = [i for i, plan in enumerate(plans) if plan.ends_early(model)]
        late = sorted(set(range(len(plans))) - set(done) - set(early))
        for group, run in ((early, partial(self._partial, to_last_block=True)), (late, self._partial)):
            group.sort(key=lambda i: (-plans[i].column, plans[i].layer))
            chunk, wasted = [], 0
            for i in group:
                # starting the cells of a later column a little earlier costs less than a pass of their own
                more = n * len(chunk) * (plans[chunk[-1]].column - plans[i].column) if chunk else 0
                tokens = n * (len(chunk) + 1) * (width - plans[i].column)
                if chunk and ((wasted + more) * 24 * model.d_model**2 > OVERHEAD or tokens > TOKENS_PER_RUN):
                    yield sorted(chunk, key=lambda i: plans[i].layer), run
                    chunk, wasted, more = [], 0, 0
                chunk.append(i)
                wasted += more
            if chunk:
                yield sorted(chunk, key=lambda i: plans[i].layer), run

    def _partial(self, plans: list[_Plan], to_last_block: bool = False) -> Tensor:
        """Run cells together, in the order of their layers. Returns x^L at the answer, [c * n, d]."""
        past, column, n = self._past, min(plan.column for plan in plans), len(self.batch)
        starts, taps = [], []
        for i, plan in enumerate(plans):
            base = past.x[max(plan.layer, 0)][:, column:]
            if plan.state is None:
                starts.append(base)
            else:
                starts.append(torch.cat([base[:, : plan.column - column], plan.state], 1))
            rows = Rows(slice(i * n, (i + 1) * n), self._chosen)
            taps += [(site, tap, rows) for site, tap in plan.taps]
            self._count(column, self.model.n_layers - max(plan.layer, 0))
        layers, x = [plan.layer for plan in plans], torch.cat(starts)
        if to_last_block and min(layers) < self.model.n_layers - 1:
            x = run_from(self.model, past, column, layers, x, taps, to_last_block)
        if to_last_block:
            return last_block(self.model, past, column, x)
        return self._answer(run_from(self.model, past, column, layers, x, taps), column)

    def _answer(self, states: Tensor, column: int) -> Tensor:
        """States at the answer position, [c * n, T - column, d] -> [c * n, d]."""
        last = (self.batch.last - column).repeat(len(states) // len(self.batch))
        return states[torch.arange(len(states), device=states.device), last]

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


def _edited(model, tensor: Tensor, taps: list, where: Where) -> Tensor:
    """The tensor of one port after these taps."""
    neurons = [site.index for site, _ in taps if site.kind == "neuron"]
    if len(neurons) == len(taps) and None not in neurons:  # many single neurons: one copy for all
        new = tensor.clone()
        for j, (_, tap) in zip(neurons, taps):
            new[..., j] = tap(new[..., j], where)
        return new
    for site, tap in taps:
        slot = resolve(model, site)
        value = slot.read(tensor)
        changed = tap(value, where)
        tensor = tensor if changed is value else slot.write(tensor, changed)
    return tensor


def _layer(model, site: Site) -> int:
    """The layer that a site belongs to; -1 for embeddings."""
    layer = _base(model, site).layer
    return -1 if layer is None else layer


def _base(model, site: Site) -> Site:
    """The site of the model that holds this one: for a feature what its SAE reads, for a neuron the layer's neurons."""
    if site.kind == "feature":
        return _base(model, Site.parse(model.saes[site.sae].site)) if site.sae in model.saes else site
    return replace(site, index=None) if site.kind in ("head", "neuron") else site
