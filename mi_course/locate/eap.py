"""Edge attribution patching (survey Eq. 17 and 18, L6c-e): estimates for all edges at once.

    S(u -> v) = (a_u' - a_u) . grad of F with respect to what v reads

a_u is the sender's write in the base run, a_u' its other write (its twin's), and the gradient goes through v alone.
With the gradient at the base run this is the first-order estimate of F(edge changed) - F(base), which `locate.edges`
measures. The survey's Eq. 17 writes the difference the other way round; then S > 0 means that the edge helps (audit
A21). Syed et al. 2024 (EAP), Hanna et al. 2024 (EAP-IG).

    eap              the gradient at the base run: two forwards and one backward for all edges
    clean_corrupted  the mean of the gradients at both runs
    eap_ig           the mean gradient on the path between them: of the input (Eq. 18), or of one sender's own write

Only the gradient is averaged on the path, the difference is the whole one. So the edges that leave the input sum to
F(corrupted) - F(clean) as steps grow, and other sets of edges do not (audit A22); with path="activations" all edges
that leave a sender sum to the effect of patching that sender.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from mi_course.models.batch import columns_of
from mi_course.objects import Scores, Task

from . import integrated_gradients
from .blocks import Blocks, States
from .edge_runs import RUNS, SIGN, Contrast, contrasts
from .graph import PARTS, Graph


def eap(model, task: Task, kind: str = "noising", batch_size: int = 32) -> Scores:
    """EAP: every edge's estimated F(edge changed) - F(base), mean over items.

    kind: what the sender writes instead, as in `locate.edge_runs`: "noising" (its twin's, gradient at the clean run),
    "denoising" (gradient at the corrupted run), "zero", "mean" or "resample". The metric must have a gradient.
    """
    return _as_scores(model, task, kind, [0.0], f"EAP, {kind}", batch_size)


def clean_corrupted(model, task: Task, kind: str = "noising", batch_size: int = 32) -> Scores:
    """EAP with the mean of the gradients at the two inputs (in MIB and the EAP-IG library: "clean-corrupted")."""
    return _as_scores(model, task, kind, [0.0, 1.0], f"clean-corrupted EAP, {kind}", batch_size)


def eap_ig(
    model,
    task: Task,
    steps: int = 5,
    rule: str = "midpoint",
    path: str = "inputs",
    kind: str = "noising",
    batch_size: int = 32,
) -> Scores:
    """EAP-IG: as EAP, with the gradient averaged over `steps` points between the two runs.

    rule: "midpoint", or "right" (k/steps for k = 1 ... steps of the way from corrupted to clean: Eq. 18) or "left"
        (k = 0 ... steps - 1: the released code, and so the published numbers).
    path: "inputs" moves x0 from one run's to the other's; "activations" moves the write of one sender at a time, the
        heads of a layer together, and scores the edges that leave it. (The released variant of that name averages the
        gradients over the paths of all senders.)
    """
    if path not in ("inputs", "activations"):
        raise ValueError(f"path={path!r} is unknown; choose 'inputs' or 'activations'")
    points = path_points(steps, rule, from_clean=kind != "denoising")
    name = f"EAP-IG {path}, {steps} steps, {rule}, {kind}"
    return _as_scores(model, task, kind, points, name, batch_size, own_path=path == "activations")


def path_points(steps: int, rule: str, from_clean: bool = True) -> list[float]:
    """Where gradients are taken: fractions of the way from the base run to the other one, 0 ... 1.

    The rules count from the corrupted end; from_clean: the base run is the clean one.
    """
    clean = integrated_gradients.path_points(steps, rule)
    return [1 - c for c in clean] if from_clean else clean


def eap_spans(
    model,
    task: Task,
    spans: dict[str, Sequence] | str = "each",
    points: Sequence[float] = (0.0,),
    kind: str = "noising",
    batch_size: int = 32,
) -> dict[str, Scores]:
    """Position-aware edges (L6e): the score of every edge at some tokens, where it is written and read.

    spans: name -> per item its positions, an int or a list of ints, counted as in `record` ({"subject": [3, [3, 4]]});
        "each" makes one span of every position counted from the end, "-1", "-2" and so on.
    points: where the gradient is taken, [0.0] for EAP or `path_points(steps, rule)` for EAP-IG.
    Spans that hold every token once sum to the plain scores.
    """
    if spans == "each":
        lengths = model.tokenize(task.prompts).lengths.tolist()
        spans = {f"-{i}": [-i if i <= n else [] for n in lengths] for i in range(1, max(lengths) + 1)}
    for name, where in spans.items():
        if len(where) != len(task):
            raise ValueError(f"spans[{name!r}] has {len(where)} entries for {len(task)} items; give one per item")
    started, graph = time.perf_counter(), Graph(model)
    total = torch.zeros(len(spans), *graph.allowed.shape)

    def add(rows, columns, delta, reads, items, blocks):
        masks = torch.stack([_span_mask(blocks.batch, where[items]) for where in spans.values()]).to(delta)
        by_token = torch.einsum("sbtd,rbtd->btsr", delta, reads)
        total[:, rows, columns] += torch.einsum("pbt,btsr->psr", masks, by_token).cpu() / len(points)

    _each_product(model, graph, task, kind, points, batch_size, add)
    cost = _cost(task, kind, len(points), started)
    return {
        name: graph.scores(matrix / len(task), f"EAP at {name}, {kind}", SIGN[kind], **cost)
        for name, matrix in zip(spans, total)
    }


def eap_items(
    model, task: Task, points: Sequence[float] = (0.0,), kind: str = "noising", batch_size: int = 32
) -> Tensor:
    """EAP scores of every item, [n_items, n_senders, n_receivers]: their mean is the plain score. For bootstraps."""
    graph = Graph(model)
    total = torch.zeros(len(task), *graph.allowed.shape)

    def add(rows, columns, delta, reads, items, blocks):
        products = torch.einsum("sbtd,rbtd->bsr", delta, reads).cpu()
        total[items, rows, columns] += products / len(points)

    _each_product(model, graph, task, kind, points, batch_size, add)
    return total * graph.allowed


def _as_scores(model, task, kind, points, method, batch_size, own_path=False) -> Scores:
    started, graph = time.perf_counter(), Graph(model)
    total = torch.zeros(graph.allowed.shape, device=model.device)

    def add(rows, columns, delta, reads, items, blocks):
        total[rows, columns] += delta.flatten(1) @ reads.flatten(1).T / len(points)  # sum over b, t, d

    _each_product(model, graph, task, kind, points, batch_size, add, own_path)
    passes = len(points) * (2 * model.n_layers + 1 if own_path else 1)
    return graph.scores(total / len(task), method, SIGN[kind], **_cost(task, kind, passes, started, points == [0.0]))


def _cost(task: Task, kind: str, passes: int, started: float, at_base: bool = False) -> dict:
    """A gradient at the base run needs no forward of its own."""
    n = len(task)
    forwards = n * (RUNS[kind] + (0 if at_base else passes))
    return dict(forwards=forwards, backwards=n * passes, seconds=time.perf_counter() - started)


# ------------------------------------------------------------------------------------------------- the computation


def _each_product(model, graph, task, kind, points, batch_size, add, own_path=False) -> None:
    """Call add(rows, columns, delta [s, B, T, d], reads [r, B, T, d], items, blocks) for each part of the matrix."""
    start = 0
    for c in contrasts(model, task, kind, batch_size, grad=0.0 in points and not own_path):
        items = slice(start, start + len(c.task))
        start = items.stop
        for rows, states in _own_paths(graph, c, points) if own_path else _input_path(c, points):
            for columns, reads in _reads(graph, c, states):
                up = int(graph.allowed[:, columns.start].sum())  # the senders before this receiver
                chosen = slice(rows.start, min(rows.stop or up, up))
                if chosen.start < chosen.stop:
                    add(chosen, columns, c.delta[chosen], reads, items, c.blocks)


def _input_path(c: Contrast, points):
    """Runs at points between the two inputs; they score all senders."""
    for point in points:
        if point == 0:
            yield slice(0, None), c.base
        else:
            with torch.enable_grad():
                yield slice(0, None), c.blocks.run((c.base.x[0].detach() + point * c.delta[0]).requires_grad_())


def _own_paths(graph: Graph, c: Contrast, points):
    """Runs in which only the write of one sender (or of the heads of one layer) moves; they score that sender."""
    x0 = c.base.x[0]
    for point in points:
        with torch.enable_grad():
            yield slice(0, 1), c.blocks.run((x0 + point * c.delta[0]).requires_grad_())
        for layer in range(graph.n_layers):
            for part in ("heads", "mlp"):
                rows = graph.outputs(layer, part)
                with torch.enable_grad():
                    add = {(layer, part): point * c.delta[rows].sum(0)}
                    yield rows, c.blocks.run(x0.clone().requires_grad_(), add)


def _reads(graph: Graph, c: Contrast, s: States):
    """(columns, gradient of F with respect to what these receivers read [r, B, T, d]), from one backward pass.

    The FFN needs no pass of its own: what reaches mid but not x^{l+1} directly came through it.
    """
    n = graph.n_layers
    inside = [state for layer in range(n) for state in (s.q[layer], s.k[layer], s.v[layer], s.attn_write[layer])]
    with torch.enable_grad():
        objective = c.metric(s.logits).sum()
    (*grads,) = torch.autograd.grad(objective, [*inside, *s.x])
    streams = grads[4 * n :]
    yield graph.inputs(n, "logits"), streams[n][None]
    for layer in reversed(range(n)):
        *qkv, mid = grads[4 * layer : 4 * layer + 4]
        reads = _head_reads(c.blocks, layer, s, qkv)
        yield slice(graph.inputs(layer, "q").start, graph.inputs(layer, "v").stop), reads
        ffn = streams[layer] - streams[layer + 1] - reads.sum(0) if graph.parallel else mid - streams[layer + 1]
        yield graph.inputs(layer, "mlp"), ffn[None]


@torch.no_grad()
def _head_reads(blocks: Blocks, layer: int, s: States, qkv: list[Tensor]) -> Tensor:
    """Gradient with respect to what each q, k and v of a layer reads, [receivers, B, T, d].

    From that of its output g, back through y = xhat W + b with xhat = centred x * scale and the norm's gain in W:
    scale * (g W^T - xhat * mean(xhat * g W^T)), with the columns of W centred where the norm centres.
    """
    norm, w, x = blocks.attn_norm[layer], blocks.attention[layer], s.x[layer].detach()
    scale = norm.scale(x)
    xhat = norm.centre(x) * scale
    W = torch.cat([getattr(w, f"W_{part.upper()}") for part in PARTS], dim=1) * norm.gain[:, None, None]
    W = W - W.mean(0) if norm.kind == "layer" else W
    normed = norm(x)
    g = torch.cat([_through_rotation(blocks, layer, part, normed, grad) for part, grad in zip(PARTS, qkv)], dim=-2)
    along = (g * (xhat @ W.flatten(1)).unflatten(-1, W.shape[1:])).sum(-1) / x.shape[-1]  # mean(xhat * g W^T)
    reads = torch.einsum("btrn,drn->rbtd", g * scale[..., None], W)
    return reads.addcmul_((along * scale).movedim(-1, 0)[..., None], xhat, value=-1)


def _through_rotation(blocks: Blocks, layer: int, part: str, normed: Tensor, grad: Tensor) -> Tensor:
    """Gradient before the norm of queries and keys and before rotation, [B, T, heads, d_head]."""
    if blocks.model.family.rotary is None and getattr(blocks.attention[layer], f"{part}_norm", None) is None:
        return grad
    with torch.enable_grad():
        y = blocks.raw(layer, part, normed).requires_grad_()
        return torch.autograd.grad(blocks.finish(layer, part, y), y, grad)[0]


def _span_mask(batch, where: Sequence) -> Tensor:
    """[B, T], True at the positions of every item."""
    mask = torch.zeros_like(batch.mask, dtype=torch.bool)
    for row, positions in enumerate(where):
        positions = [positions] if isinstance(positions, int) else list(positions)
        if positions:
            mask[row, columns_of(batch.mask[row : row + 1], positions)[0]] = True
    return mask
