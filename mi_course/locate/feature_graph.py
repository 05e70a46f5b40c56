"""Attribution graphs over transcoder features (survey section 3.6, L6f; Ameisen et al. 2025).

Put a transcoder in the place of every FFN, add its error as a constant, and freeze the attention patterns and norm
scales of one prompt. What is left between two features is linear, so one of them contributes an exact amount to the
other's pre-activation:

    edge(s -> t) = a_s  f_s . J . e_t        f_s: row of W_dec, what s writes; e_t: column of W_enc, what t reads;
                                             J: residual stream and frozen attention between them, no FFN
    sum over senders s of edge(s -> t) = pre-activation of t

Senders are the token embeddings, the features and errors of lower layers, and "bias", all that depends on no input
(biases of attention, norms and transcoders). The same holds for the output node, "logits": a logit, or a difference.

This model is *local*: it equals the real one on this prompt only, and says nothing about why attention goes where it
goes. What the graph predicts is put to the test with `Transcoder.ablate` in the real model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mi_course.models import record
from mi_course.models import weights as parts
from mi_course.objects import Scores
from mi_course.objects.transcoder import Transcoder, read_site


@dataclass(frozen=True)
class FeatureGraph:
    """Nodes and edges of one prompt. edges [n, n]: edges[t, s] = what s contributes to the pre-activation of t.

    nodes   "bias", "embed@0" ..., then layer by layer "mlp0F17@3" (feature 17 of layer 0 at position 3) and
            "mlp0.error@3", and at the end "logits". Senders always stand before receivers.
    values  [n] activation of a feature, pre-activation of the output, 1 for the rest
    """

    nodes: list[str]
    edges: Tensor
    values: Tensor
    tokens: list[str]

    def __getitem__(self, edge: str) -> float:
        """One edge, written "mlp0F17@3->logits"."""
        sender, _, receiver = edge.partition("->")
        return self.edges[self.nodes.index(receiver), self.nodes.index(sender)].item()

    def of(self, kind: str) -> Tensor:
        """Bool [n]: the nodes of one kind, "feature", "error", "embed", "bias" or "logits"."""
        return torch.tensor([_kind(node) == kind for node in self.nodes])

    def total_effects(self) -> Scores:
        """Estimate of F(node removed) - F for every node but the output: minus the sum over all its paths.

        A path's weight is the product of its edges, each divided by the value of its sender. Features are taken to
        stay active and linear, so this is an approximation where one is switched off on the way.
        """
        weights = self.edges / self.values
        paths = _solve(weights, self._output())  # sum over paths of every length from node to output
        return Scores(self.nodes[:-1], -(paths * self.values)[:-1], "attribution graph", "ablation", forwards=1)

    def influence(self) -> Tensor:
        """[n] How much each node matters for the output, signs ignored (Ameisen et al. 2025).

        A = |edges|, the rows scaled to sum 1 ("bias" left out, since it explains nothing): shares of responsibility.
        A node's influence is the sum over all paths to the output of the product of shares.
        """
        return _solve(self._shares(), self._output()) - self._output()

    def replacement(self) -> float:
        """Share of the influence entering the graph that comes from tokens and not from errors, 0 ... 1.

        1 - replacement is the share of the error nodes.
        """
        influence = self.influence()
        tokens, errors = influence[self.of("embed")].sum(), influence[self.of("error")].sum()
        return (tokens / (tokens + errors)).item()

    def completeness(self) -> float:
        """Share of what enters a node that comes from features and tokens, averaged over nodes by their influence."""
        explained = 1 - self._shares()[:, self.of("error")].sum(1)
        weight = (self.influence() + self._output()) * (self.of("feature") | self.of("logits"))
        return ((explained * weight).sum() / weight.sum()).item()

    def prune(self, nodes: float = 0.8, edges: float = 0.98) -> FeatureGraph:
        """The smallest part with these shares of the influence: first of features and errors, then of edges.

        Tokens, bias and output stay. Features that reach the output by no path that is left, or have no input, go too.
        """
        influence, inner = self.influence(), self.of("feature") | self.of("error")
        keep = ~inner
        keep[_largest(influence * inner, nodes)] = True
        graph = self._only(keep)
        strength = graph._shares() * (graph.influence() + graph._output())[:, None]
        kept = torch.zeros_like(strength, dtype=torch.bool).flatten()
        kept[_largest(strength.flatten(), edges)] = True
        kept = kept.view_as(strength) | graph.of("bias")[None]
        graph = FeatureGraph(graph.nodes, graph.edges * kept, graph.values, graph.tokens)
        while True:
            used = (graph.edges != 0).any(0) & (~graph.of("feature") | (graph.edges != 0).any(1))
            keep = used | ~(graph.of("feature") | graph.of("error"))
            if keep.all():
                return graph
            graph = graph._only(keep)

    def top_edges(self, k: int) -> list[tuple[str, float]]:
        """The k largest edges by size, without those of "bias"."""
        edges = self.edges * ~self.of("bias")
        best = edges.abs().flatten().topk(min(k, edges.numel())).indices.tolist()
        n = len(self.nodes)
        return [(f"{self.nodes[i % n]}->{self.nodes[i // n]}", edges.flatten()[i].item()) for i in best]

    def _output(self) -> Tensor:
        return self.of("logits").to(self.edges)

    def _shares(self) -> Tensor:
        size = self.edges.abs() * ~self.of("bias")
        return size / size.sum(1, keepdim=True).clamp_min(1e-12)

    def _only(self, keep: Tensor) -> FeatureGraph:
        index = keep.nonzero()[:, 0]
        return FeatureGraph([self.nodes[i] for i in index.tolist()], self.edges[index][:, index], self.values[index],
                            self.tokens)


@torch.no_grad()
def attribution_graph(model, transcoders: Sequence[Transcoder], prompt, target, foil=None,
                      max_features: int | None = None, chunk: int = 64) -> FeatureGraph:
    """The attribution graph of one prompt, with the logit of `target` as output.

    transcoders: one for each layer, layer 0 first.  target, foil: text that is one token, or a token id; the output is
    logit(target) - logit(foil), without foil logit(target) - the mean logit (before any soft-cap, final norm's scale
    frozen).  max_features: keep as nodes the features with the largest total effect, and count all others as error;
    None keeps every active one.  chunk: receivers taken at a time.
    """
    if len(transcoders) != model.n_layers or any(t.layer != i for i, t in enumerate(transcoders)):
        raise ValueError(f"transcoders: give one for each of the {model.n_layers} layers, in their order; got layers "
                         f"{[t.layer for t in transcoders]}")
    run = FrozenRun(model, transcoders, prompt)
    direction, constant = _output_direction(model, run, target, foil)
    features = run.features if max_features is None else run.most_effective(direction, max_features)
    nodes, columns = ["bias"] + [f"embed@{t}" for t in range(run.T)], {}
    values = [1.0] * len(nodes)
    for layer, (t, j) in enumerate(features):
        columns[layer] = len(nodes)
        nodes += [f"mlp{layer}F{b}@{a}" for a, b in zip(t.tolist(), j.tolist())]
        values += run.activations[layer][t, j].tolist()
        nodes += [f"mlp{layer}.error@{position}" for position in range(run.T)]
        values += [1.0] * run.T
    edges = torch.zeros(len(nodes) + 1, len(nodes) + 1)
    errors = run.errors(features)

    def fill(rows, g, layer: int, constants) -> None:
        """Rows of the matrix for receivers with gradient g [R, T, d] for the state they read, in `layer`."""
        for kind, i, value in run.contributions(g, layer, features, errors):
            start = 1 if kind == "embed" else 0 if kind == "bias" else columns[i]
            edges[rows, start : start + value.shape[1]] += value.cpu()
        edges[rows, 0] += constants.cpu()

    for layer, (t, j) in enumerate(features):
        for start in range(0, len(t), chunk):
            some = slice(start, start + chunk)
            g, constants = run.read_by_features(layer, t[some], j[some])
            fill(torch.arange(len(t))[some] + columns[layer], g, layer, constants)
    fill(torch.tensor([len(nodes)]), direction, model.n_layers, constant)
    output = edges[-1].sum().item()
    return FeatureGraph([*nodes, "logits"], edges, torch.tensor([*values, output]), model.tokens(prompt))


class FrozenRun:
    """One prompt's run with attention patterns and norm scales held fixed: the maps that are linear then.

    features[l] = (positions, indices) of active features; activations[l] [T, m]; writes[l] [T, d], what FFN l writes.
    Gradients g are [R, T, d], for R receivers at a time.
    """

    def __init__(self, model, transcoders: Sequence[Transcoder], prompt):
        batch = model.tokenize(prompt if isinstance(prompt, str) else [prompt])
        L = model.n_layers
        self.model, self.transcoders, self.T = model, transcoders, batch.ids.shape[1]
        sites = [f"x{layer}" for layer in range(L + 1)] + [read_site(model, layer) for layer in range(L)]
        sites += [f"{kind}{layer}" for layer in range(L) for kind in ("pattern", "attn")]
        self.cache = record(model, batch, sites + [f"mlp{layer}.write" for layer in range(L)], logits=False)
        self.activations, self.features, self.writes = [], [], []
        for layer, transcoder in enumerate(transcoders):
            a = transcoder.encode(parts.mlp_norm(model, layer)(self._state(read_site(model, layer))))
            self.activations.append(a)
            self.features.append(tuple(a.nonzero().T))
            self.writes.append(self._state(f"mlp{layer}.write"))

    def _state(self, site: str) -> Tensor:
        return self.cache[site][0]

    def errors(self, features) -> list[Tensor]:
        """What FFN l writes and the given features do not: [T, d] for every layer."""
        found = []
        for layer, (t, j) in enumerate(features):
            a = torch.zeros_like(self.activations[layer])
            a[t, j] = self.activations[layer][t, j]
            found.append(self.writes[layer] - self.transcoders[layer].decode(a))
        return found

    # -- gradients, from a receiver down -------------------------------------------------------------------------

    def read_by_features(self, layer: int, t: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
        """Features j at positions t read the state below FFN `layer`: (gradient [R, T, d], constants [R])."""
        transcoder, norm = self.transcoders[layer], parts.mlp_norm(self.model, layer)
        e = transcoder.W_enc[:, j].T  # [R, d]
        g = torch.zeros(len(t), self.T, e.shape[1], dtype=e.dtype, device=e.device)
        g[torch.arange(len(t)), t] = e
        through = _through_norm(norm, g, self._state(read_site(self.model, layer)))
        return through, e @ norm.bias + transcoder.b_enc[j]

    def contributions(self, g: Tensor, layer: int, features, errors):
        """Yields (kind, layer, [R, ...]) for all senders to receivers with gradient g for the state read in `layer`.

        kind "layer": features of a layer, then its errors; "embed"; "bias". Layer L: receivers read x^L.
        """
        bias = torch.zeros(len(g), device=g.device, dtype=g.dtype)
        if layer < self.model.n_layers and not self.model.family.is_parallel(self.model.config):
            bias = bias + (g * self._attention_constant(layer)).sum((1, 2))
            g = g + self._through_attention(g, layer)
        for i in reversed(range(layer)):
            t, j = features[i]
            transcoder = self.transcoders[i]
            by_feature = (g @ transcoder.W_dec.T)[:, t, j] * self.activations[i][t, j]
            yield "layer", i, torch.cat([by_feature, (g * errors[i]).sum(-1)], dim=1)
            bias = bias + g.sum(1) @ transcoder.b_dec + (g * self._attention_constant(i)).sum((1, 2))
            g = g + self._through_attention(g, i)
        yield "embed", None, (g * self._state("x0")).sum(-1)
        yield "bias", None, bias[:, None]

    def most_effective(self, direction: Tensor, k: int) -> list[tuple[Tensor, Tensor]]:
        """The k features with the largest total effect on the output, in the form of `features`.

        One sweep down, in which the gradient also goes back through every active feature.
        """
        g, effects = direction, [None] * self.model.n_layers
        for i in reversed(range(self.model.n_layers)):
            t, j = self.features[i]
            to_features = g @ self.transcoders[i].W_dec.T * (self.activations[i] != 0)
            effects[i] = (to_features * self.activations[i])[0, t, j].abs()
            norm, site = parts.mlp_norm(self.model, i), read_site(self.model, i)
            through = _through_norm(norm, to_features @ self.transcoders[i].W_enc.T, self._state(site))
            if self.model.family.is_parallel(self.model.config):
                g = g + through + self._through_attention(g, i)
            else:
                g = g + through
                g = g + self._through_attention(g, i)
        every = torch.cat(effects)
        bar = every.topk(min(k, len(every))).values[-1]
        return [(t[e >= bar], j[e >= bar]) for (t, j), e in zip(self.features, effects)]

    def _through_attention(self, g: Tensor, layer: int) -> Tensor:
        """Gradient for the attention's input, x^layer, from one for its write to the stream."""
        w, post = parts.attention(self.model, layer), parts.post_norm(self.model, layer, "attn")
        if post is not None:
            g = _through_norm(post, g, self._state(f"attn{layer}"))
        z = torch.einsum("rtd,hnd->rthn", g, w.W_O)
        v = torch.einsum("hts,rthn->rshn", self._state(f"pattern{layer}"), z)
        v = v.unflatten(2, (-1, w.groups)).sum(3)  # query heads of a group read the same values
        return _through_norm(parts.attn_norm(self.model, layer), torch.einsum("rshn,dhn->rsd", v, w.W_V),
                             self._state(f"x{layer}"))

    def _attention_constant(self, layer: int) -> Tensor:
        """[T, d] What attention writes whatever it reads: biases of norm, values and output."""
        w, post = parts.attention(self.model, layer), parts.post_norm(self.model, layer, "attn")
        v = torch.einsum("d,dhn->hn", parts.attn_norm(self.model, layer).bias, w.W_V) + w.b_V
        v = v.repeat_interleave(w.groups, dim=0)
        seen = self._state(f"pattern{layer}").sum(-1)  # [H, T], 1 where a query sees anything
        written = torch.einsum("ht,hn,hnd->td", seen, v, w.W_O) + w.b_O
        if post is None:
            return written
        return post.centre(written) * post.scale(self._state(f"attn{layer}")) * post.gain + post.bias


def _through_norm(norm, g: Tensor, x: Tensor) -> Tensor:
    """Gradient for a norm's input x from one for its output, the scale frozen: centre(g * gain) * scale(x)."""
    return norm.centre(g * norm.gain) * norm.scale(x)


def _output_direction(model, run: FrozenRun, target, foil) -> tuple[Tensor, Tensor]:
    """(gradient [1, T, d] for x^L, constant [1]) of logit(target) - logit(foil), or minus the mean logit."""
    u = parts.unembedding(model)

    def column(token):
        i = model.token_id(token) if isinstance(token, str) else int(token)
        return u.W_U[:, i], u.b_U[i]

    (w, b), (w_foil, b_foil) = column(target), column(foil) if foil is not None else (u.W_U.mean(1), u.b_U.mean())
    w, b = w - w_foil, b - b_foil
    g = torch.zeros(1, run.T, len(w), dtype=w.dtype, device=w.device)
    g[0, -1] = w
    return _through_norm(u.norm, g, run._state(f"x{model.n_layers}")), (w @ u.norm.bias + b)[None]


def _solve(A: Tensor, output: Tensor) -> Tensor:
    """[n]: the row of the output in I + A + A^2 + ... = (I - A)^-1. Senders stand before receivers: A is triangular."""
    return torch.linalg.solve_triangular((torch.eye(len(A)) - A).T, output[:, None], upper=True)[:, 0]


def _largest(values: Tensor, share: float) -> Tensor:
    """Indices of the fewest values that have this share of the sum."""
    if not 0 < share <= 1:
        raise ValueError(f"share {share} must lie in (0, 1]")
    order = values.argsort(descending=True)
    reached = values[order].cumsum(0) >= share * values.sum() * (1 - 1e-6)
    return order[: int(reached.long().argmax()) + 1]


def _kind(node: str) -> str:
    name = node.partition("@")[0]
    return name if name in ("bias", "embed", "logits") else "error" if name.endswith(".error") else "feature"
