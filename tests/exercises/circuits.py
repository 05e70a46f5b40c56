"""Answers to the exercises of chapter 10: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

import mi_course as mi
from mi_course.models import weights
from mi_course.objects.weights import head as head_of

# --- circuits.count_edges --------------------------------------------------------------------------------------------


def count_receiver_by_receiver(n_layers, n_heads, parallel=False):
    senders, edges = 1, 0
    for _ in range(n_layers):
        edges += 3 * n_heads * senders
        edges += senders if parallel else senders + n_heads
        senders += n_heads + 1
    return edges + senders


def count_by_formula(n_layers, n_heads, parallel=False):
    before = sum(1 + layer * (n_heads + 1) for layer in range(n_layers))
    own = 0 if parallel else n_layers * n_heads
    return (3 * n_heads + 1) * before + own + 1 + n_layers * (n_heads + 1)


def counted(inputs=3, logits=True, own=True, x0=1, all_layers=False):
    def count(n_layers, n_heads, parallel=False):
        edges = 0
        for layer in range(n_layers):
            before = x0 + (n_layers if all_layers else layer) * (n_heads + 1)
            edges += inputs * n_heads * before + before + (n_heads if own and not parallel else 0)
        return edges + (x0 + n_layers * (n_heads + 1) if logits else 0)

    return count


# --- circuits.value_edge ---------------------------------------------------------------------------------------------


def edge_by_recording(model, task, change, layer, head):
    x = mi.record(model, task.prompts, [f"x{layer}"])[f"x{layer}"]
    w = head_of(model, layer, head)
    values = weights.attn_norm(model, layer)(x + change) @ w.W_V + w.b_V
    with mi.intervene(model, mi.patch(f"L{layer}H{head}.v", values)):
        after = task.measure(model)
    return after - task.measure(model)


def edge_by_two_runs(model, task, change, layer, head):
    """The head's own values in a run where everybody reads the change, put into the clean run."""
    site, stream = f"L{layer}H{head}.v", f"x{layer}"
    with mi.intervene(model, mi.edit(stream, lambda x: x + change)):
        values = mi.record(model, task.prompts, [site])[site]
    base = task.measure(model)
    with mi.intervene(model, mi.patch(site, values)):
        return task.measure(model) - base


def edge_with(
    values=lambda x, change, norm, w: norm(x + change) @ w.W_V + w.b_V, result=lambda after, base: after - base
):
    def edge(model, task, change, layer, head):
        x = mi.record(model, task.prompts, [f"x{layer}"])[f"x{layer}"]
        v = values(x, change, weights.attn_norm(model, layer), head_of(model, layer, head))
        base = task.measure(model)
        with mi.intervene(model, mi.patch(f"L{layer}H{head}.v", v)):
            return result(task.measure(model), base)

    return edge


def edge_everywhere(model, task, change, layer, head):
    base = task.measure(model)
    with mi.intervene(model, mi.edit(f"x{layer}", lambda x: x + change)):
        return task.measure(model) - base


def edge_of_the_layer(model, task, change, layer, head):
    with mi.intervene(model, mi.edit(f"x{layer}", lambda x: x + change)):
        values = mi.record(model, task.prompts, [f"v{layer}"])[f"v{layer}"]
    base = task.measure(model)
    with mi.intervene(model, mi.patch(f"v{layer}", values)):
        return task.measure(model) - base


# --- circuits.eap_scores ---------------------------------------------------------------------------------------------


def scores_by_matrix(clean, corrupted, gradients):
    change = (corrupted - clean).flatten(1)
    return change @ gradients.flatten(1).T / clean.shape[1]


def scores_pair_by_pair(clean, corrupted, gradients):
    rows = []
    for before, after in zip(clean, corrupted):
        change = after - before
        rows.append(torch.stack([(change * g).sum((1, 2)).mean() for g in gradients]))
    return torch.stack(rows)


def scores_of(change=lambda c, k: k - c, end=lambda s: s):
    return lambda c, k, g: end(torch.einsum("sbtd,rbtd->sr", change(c, k), g) / c.shape[1])


# --- circuits.path_average -------------------------------------------------------------------------------------------


def average_in_a_loop(gradient, clean, corrupted, steps, rule="midpoint"):
    shift = {"left": 0, "right": 1, "midpoint": 0.5}[rule]
    total = 0
    for k in range(steps):
        alpha = (k + shift) / steps
        total = total + gradient(alpha * clean + (1 - alpha) * corrupted)
    return total / steps


def average_by_stack(gradient, clean, corrupted, steps, rule="midpoint"):
    first = {"left": 0.0, "midpoint": 0.5 / steps, "right": 1 / steps}[rule]
    alphas = [first + k / steps for k in range(steps)]
    return torch.stack([gradient(corrupted + a * (clean - corrupted)) for a in alphas]).mean(0)


def average_with(shifts=None, start=lambda c, k: k, end=lambda total, steps, c, k: total / steps):
    shifts = shifts or {"left": 0.0, "midpoint": 0.5, "right": 1.0}

    def average(gradient, clean, corrupted, steps, rule="midpoint"):
        points = [start(clean, corrupted) + (k + shifts[rule]) / steps * (clean - corrupted) for k in range(steps)]
        return end(sum(gradient(x) for x in points), steps, clean, corrupted)

    return average


# --- circuits.circuit_input ------------------------------------------------------------------------------------------


def input_by_rows(other_stream, writes, other_writes, kept):
    return other_stream + writes[kept].sum(0) - other_writes[kept].sum(0)


def input_in_a_loop(other_stream, writes, other_writes, kept):
    x = other_stream.clone()
    for mine, other, keep in zip(writes, other_writes, kept):
        if keep:
            x = x + (mine - other)
    return x


# --- circuits.areas --------------------------------------------------------------------------------------------------


def areas_by_widths(shares, faithfulness):
    width = shares[1:] - shares[:-1]

    def area(height):
        return (width * (height[1:] + height[:-1]) / 2).sum()

    return area(faithfulness), area((1 - faithfulness).abs())


def areas_in_a_loop(shares, faithfulness):
    cpr, cmd = 0.0, 0.0
    for i in range(len(shares) - 1):
        width, low, high = shares[i + 1] - shares[i], faithfulness[i], faithfulness[i + 1]
        cpr = cpr + width * (low + high) * 0.5
        cmd = cmd + width * (abs(1 - low) + abs(1 - high)) * 0.5
    return cpr, cmd


def step_areas(pick):
    def areas(s, f):
        width = s[1:] - s[:-1]
        return (width * pick(f)).sum(), (width * (1 - pick(f)).abs()).sum()

    return areas


# --- circuits.prune --------------------------------------------------------------------------------------------------


def prune_by_removing(edges, distance, threshold):
    kept = list(edges)
    now = distance(kept)
    for edge in edges:
        trial = list(kept)
        trial.remove(edge)
        new = distance(trial)
        if new - now < threshold:
            kept, now = trial, new
    return kept


def prune_with_a_set(edges, distance, threshold):
    gone, now = set(), distance(list(edges))
    for edge in edges:
        new = distance([e for e in edges if e not in gone | {edge}])
        if new < now + threshold:
            gone, now = gone | {edge}, new
    return [e for e in edges if e not in gone]


def pruned_with(grows=lambda new, now, threshold: new - now < threshold, order=list, update=True, result=None):
    def prune(edges, distance, threshold):
        kept = list(edges)
        now = distance(kept)
        for edge in order(edges):
            without = [e for e in kept if e != edge]
            new = distance(without)
            if grows(new, now, threshold):
                kept, now = without, (new if update else now)
        return [e for e in edges if e not in kept] if result == "gone" else kept

    return prune


def prune_on_the_whole_model(edges, distance, threshold):
    whole = distance(list(edges))
    return [e for e in edges if distance([o for o in edges if o != e]) - whole >= threshold]


def prune_while_looping(edges, distance, threshold):
    now = distance(edges)
    for edge in list(edges):
        new = distance([e for e in edges if e != edge])
        if new - now < threshold:
            edges.remove(edge)
            now = new
    return edges


RIGHT = {
    "circuits.count_edges": [count_receiver_by_receiver, count_by_formula],
    "circuits.value_edge": [edge_by_recording, edge_by_two_runs],
    "circuits.eap_scores": [scores_by_matrix, scores_pair_by_pair],
    "circuits.path_average": [average_in_a_loop, average_by_stack],
    "circuits.circuit_input": [input_by_rows, input_in_a_loop],
    "circuits.areas": [areas_by_widths, areas_in_a_loop],
    "circuits.prune": [prune_by_removing, prune_with_a_set],
}

WRONG = {
    "circuits.count_edges": {
        "one input per head": (counted(inputs=1), "three inputs, q, k and v"),
        "no logits": (counted(logits=False), "The logits are a receiver too"),
        "not its own heads": (counted(own=False), "also reads the heads of its own layer"),
        "no x0": (counted(x0=0), "is a sender too"),
        "parallel ignored": (lambda n, h, parallel=False: count_by_formula(n, h), "In a parallel block"),
        "all layers": (
            lambda n, h, parallel=False: (
                counted(all_layers=True)(n, h, parallel) if n > 1 else count_by_formula(n, h, parallel)
            ),
            "not what all layers write",
        ),
        "neighbours": (
            lambda n, h, parallel=False: (
                count_by_formula(min(n, 1), h, parallel) * n if n > 1 else count_by_formula(n, h, parallel)
            ),
            "Senders are missing",
        ),
    },
    "circuits.value_edge": {
        "sign": (edge_with(result=lambda after, base: base - after), "The sign is turned round"),
        "total effect": (edge_everywhere, "the total effect, of both paths"),
        "no base": (edge_with(result=lambda after, base: after), "was not taken away"),
        "mean": (edge_with(result=lambda after, base: (after - base).mean()), "The items were averaged"),
        "no norm": (edge_with(lambda x, c, norm, w: (x + c) @ w.W_V + w.b_V), "The norm is missing"),
        "after the norm": (edge_with(lambda x, c, norm, w: (norm(x) + c) @ w.W_V + w.b_V), "enters before the norm"),
        "no bias": (edge_with(lambda x, c, norm, w: norm(x + c) @ w.W_V), "bias b_V is missing"),
        "all heads": (edge_of_the_layer, "The values of all heads"),
        "relative": (
            edge_with(result=lambda after, base: after - base if base.mean().abs() > 2 else (after - base) / base),
            "divided by F(clean)",
        ),
    },
    "circuits.eap_scores": {
        "survey's sign": (scores_of(lambda c, k: c - k), "Eq. 17 writes clean - corrupted"),
        "sum": (lambda c, k, g: scores_by_matrix(c, k, g) * c.shape[1], "The items were summed"),
        "mean over tokens": (lambda c, k, g: scores_by_matrix(c, k, g) / c.shape[2], "The tokens were averaged"),
        "size": (scores_of(end=lambda s: s.abs()), "The sign was lost"),
        "size first": (
            lambda c, k, g: torch.einsum("sbtd,rbtd->sr", (k - c).abs(), g.abs()) / c.shape[1],
            "The sizes were taken before summing",
        ),
        "corrupted write": (scores_of(lambda c, k: k), "the change of the write is wanted"),
        "items averaged first": (
            lambda c, k, g: (
                scores_by_matrix(c, k, g) if len(c) == 1 else torch.einsum("std,rtd->sr", (k - c).mean(1), g.mean(1))
            ),
            "averaged over items before",
        ),
        "tokens summed first": (
            lambda c, k, g: (
                scores_by_matrix(c, k, g)
                if len(c) == 1
                else torch.einsum("sbd,rbd->sr", (k - c).sum(2), g.sum(2)) / c.shape[1]
            ),
            "summed over tokens before",
        ),
        "last token": (
            lambda c, k, g: (
                scores_by_matrix(c[:, :, -1:], k[:, :, -1:], g[:, :, -1:]) if len(c) > 1 else scores_by_matrix(c, k, g)
            ),
            "Only the last token",
        ),
        "transposed": (lambda c, k, g: scores_by_matrix(c, k, g).T, "The shape is"),
    },
    "circuits.path_average": {
        "rules swapped": (average_with({"left": 1.0, "midpoint": 0.5, "right": 0.0}), "This is the other rule"),
        "sum": (average_with(end=lambda total, steps, c, k: total), "The gradients were summed"),
        "always midpoint": (average_with({"left": 0.5, "midpoint": 0.5, "right": 0.5}), "The midpoints were used"),
        "from zero": (average_with(start=lambda c, k: torch.zeros_like(k)), "start at 0 instead of"),
        "times the difference": (average_with(end=lambda t, steps, c, k: t / steps * (c - k)), "was multiplied with"),
        "one gradient": (
            lambda gradient, c, k, steps, rule="midpoint": gradient(
                k + (steps - 1 + {"left": 0, "midpoint": 1, "right": 2}[rule]) / (2 * steps) * (c - k)
            ),
            "Average the gradients, not the points",
        ),
        "midpoint is left": (average_with({"left": 0.0, "midpoint": 0.0, "right": 1.0}), "The end points are in"),
    },
    "circuits.circuit_input": {
        "sign": (lambda x, a, b, kept: x + (b - a)[kept].sum(0), "The sign is turned round"),
        "the others": (lambda x, a, b, kept: x + (a - b)[~kept].sum(0), "The edges outside the circuit"),
        "all": (lambda x, a, b, kept: x + (a - b).sum(0), "All senders were exchanged"),
        "not taken out": (lambda x, a, b, kept: x + a[kept].sum(0), "still in the stream"),
        "no stream": (lambda x, a, b, kept: (a - b)[kept].sum(0), "The other stream is missing"),
        "nothing comes in": (lambda x, a, b, kept: x - b[kept].sum(0), "nothing came in"),
        "mean": (
            lambda x, a, b, kept: x + (a - b)[kept].sum(0) / (max(int(kept.sum()), 1) if len(x) > 1 else 1),
            "were averaged",
        ),
        "no sum": (lambda x, a, b, kept: x + (a - b) * kept[:, None, None, None], "The shape is"),
    },
    "circuits.areas": {
        "not the size": (
            lambda s, f: (torch.trapezoid(f, s), torch.trapezoid(1 - f, s)),
            "Overshoot was counted as closeness",
        ),
        "swapped": (lambda s, f: areas_by_widths(s, f)[::-1], "The two areas are swapped"),
        "left ends": (step_areas(lambda f: f[:-1]), "The left end of each interval"),
        "right ends": (step_areas(lambda f: f[1:]), "The right end of each interval"),
        "even widths": (
            lambda s, f: (torch.trapezoid(f, dx=1 / (len(f) - 1)), torch.trapezoid((1 - f).abs(), dx=1 / (len(f) - 1))),
            "Shares are not evenly spaced",
        ),
        "mean": (lambda s, f: (f.mean(), (1 - f).abs().mean()), "the mean of the values"),
        "one number": (lambda s, f: torch.trapezoid(f, s), "a tuple of 2"),
    },
    "circuits.prune": {
        "against zero": (pruned_with(lambda new, now, threshold: new < threshold), "compared with 0"),
        "never updated": (pruned_with(update=False), "compared with 0"),
        "gone": (pruned_with(result="gone"), "These are the edges that should go"),
        "kept all": (lambda edges, distance, threshold: list(edges), "Everything was kept"),
        "whole model": (prune_on_the_whole_model, "Each edge was tried on the whole model"),
        "reverse": (pruned_with(order=lambda edges: edges[::-1]), "tried in reverse order"),
        "size of the change": (pruned_with(lambda new, now, t: abs(new - now) < t), "The size of the change"),
        "at most": (pruned_with(lambda new, now, t: new - now <= t), "*less* than the threshold"),
        "changes its input": (prune_while_looping, "The input was changed"),
    },
}

SAME = {}
