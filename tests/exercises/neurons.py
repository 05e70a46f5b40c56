"""Answers to the exercises of chapter 03: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

import mi_course as mi

# --- neurons.key_and_value -------------------------------------------------------------------------------------------


def slices_by_type(mlp_in, mlp_out, j):
    key = mlp_in.weight[j] if isinstance(mlp_in, torch.nn.Linear) else mlp_in.weight[:, j]
    value = mlp_out.weight[:, j] if isinstance(mlp_out, torch.nn.Linear) else mlp_out.weight[j]
    return key, value


def slices_by_name(mlp_in, mlp_out, j):
    matrices = []
    for module in (mlp_in, mlp_out):
        stored = type(module).__name__
        matrices.append(module.weight if stored == "Conv1D" else module.weight.transpose(0, 1))
    return matrices[0].select(1, j), matrices[1].select(0, j)


def key_by_what_it_does(mlp_in, mlp_out, j):
    """Ask the modules: which state gives neuron j a pre-activation, and what does it write when it is alone on?"""
    with torch.no_grad():
        d = mlp_out(torch.zeros(1, _width(mlp_in))).shape[1]
        zero, unit = torch.zeros(1, d), torch.eye(d)
        key = (mlp_in(unit) - mlp_in(zero))[:, j]
        on = torch.zeros(2, _width(mlp_in))
        on[1, j] = 1
        written = mlp_out(on)
        return key, written[1] - written[0]


def _width(mlp_in):
    return mlp_in.weight.shape[0] if isinstance(mlp_in, torch.nn.Linear) else mlp_in.weight.shape[1]


def W(module):
    return module.weight.T if isinstance(module, torch.nn.Linear) else module.weight


def slices_by_shape(mlp_in, mlp_out, j):
    """Takes the longer side for d_ffn: right until d = d_ffn."""
    a, b = mlp_in.weight, mlp_out.weight
    return (a[:, j] if a.shape[0] < a.shape[1] else a[j]), (b[j] if b.shape[0] > b.shape[1] else b[:, j])


# --- neurons.partial_output ------------------------------------------------------------------------------------------


def output_masking_activations(x, ffn, keep):
    s = ffn.act(x @ ffn.W_in + ffn.b_in)
    return torch.where(keep, s, 0.0) @ ffn.W_out + ffn.b_out


def output_neuron_by_neuron(x, ffn, keep):
    total = ffn.b_out.expand(*x.shape[:-1], len(ffn.b_out))
    for j in keep.nonzero().flatten().tolist():
        s = ffn.act(x @ ffn.W_in[:, j] + ffn.b_in[j])
        total = total + s[..., None] * ffn.W_out[j]
    return total


def output_of_a_smaller_ffn(x, ffn, keep):
    s = ffn.act(torch.nn.functional.linear(x, ffn.W_in.T[keep], ffn.b_in[keep]))
    return torch.einsum("...j,jd->...d", s, ffn.W_out[keep]) + ffn.b_out


def state(x, ffn):
    return ffn.act(x @ ffn.W_in + ffn.b_in)


# --- neurons.gated_activation ----------------------------------------------------------------------------------------


def gated_by_parts(x, ffn):
    gate = x @ ffn.W_gate + ffn.b_gate
    up = x @ ffn.W_up + ffn.b_up
    return ffn.act(gate) * up


def gated_by_one_product(x, ffn):
    both = x @ torch.cat([ffn.W_gate, ffn.W_up], dim=1) + torch.cat([ffn.b_gate, ffn.b_up])
    gate, up = both.chunk(2, dim=-1)
    return torch.mul(ffn.act(gate), up)


def readings(x, ffn):
    return x @ ffn.W_gate + ffn.b_gate, x @ ffn.W_up + ffn.b_up


def gated(combine):
    return lambda x, ffn: combine(ffn.act, *readings(x, ffn))


# --- neurons.read_memory ---------------------------------------------------------------------------------------------


def memory_by_products(keys, values, E, U):
    answers, promotes = keys @ E.transpose(0, 1), values @ U
    return answers.argmax(1), promotes.argmax(1)


def memory_neuron_by_neuron(keys, values, E, U):
    pairs = []
    for key, value in zip(keys, values):
        pairs.append([(E @ key).topk(1).indices[0], (value @ U).topk(1).indices[0]])
    both = torch.tensor(pairs)
    return both[:, 0], both[:, 1]


def memory(inputs=lambda k, v, E, U: (k @ E.T).argmax(1), outputs=lambda k, v, E, U: (v @ U).argmax(1)):
    return lambda keys, values, E, U: (inputs(keys, values, E, U), outputs(keys, values, E, U))


def unit(x):
    return x / x.norm(dim=-1, keepdim=True)


# --- neurons.direct_contribution -------------------------------------------------------------------------------------


def contribution_by_einsum(s, V, u, scale):
    return torch.einsum("bm,md,bd->bm", s, V, u * scale)


def contribution_of_each_write(s, V, u, scale):
    writes = s[:, :, None] * V
    return (writes * u[:, None, :]).sum(-1) * scale


def contribution_row_by_row(s, V, u, scale):
    rows = []
    for i in range(len(s)):
        rows.append(s[i] * (V @ u[i]) * scale[i])
    return torch.stack(rows)


# --- neurons.ablation_effect -----------------------------------------------------------------------------------------


def effect_with_default_argument(model, task, chosen):
    base = task.measure(model)
    edits = []
    for layer in range(model.n_layers):
        off = chosen[:, layer].unsqueeze(1)
        edits.append(mi.edit(f"neurons{layer}", lambda s, off=off: s * ~off))
    with mi.intervene(model, *edits):
        after = task.measure(model)
    return after - base


def effect_item_by_item(model, task, chosen):
    effects = []
    for i in range(len(task)):
        item = task.subset([i])
        sites = [f"L{layer}N{j}" for layer, j in chosen[i].nonzero().tolist()]
        before = item.measure(model)
        with mi.intervene(model, mi.zero(sites)):
            effects.append(item.measure(model) - before)
    return torch.cat(effects)


def effects_with(
    result=lambda after, base: after - base,
    off=lambda chosen, layer: chosen[:, layer, None],
    layers=lambda model: range(model.n_layers),
    positions="all",
):
    """ablation_effect with one thing changed."""

    def effect(model, task, chosen):
        base = task.measure(model)
        masks = {layer: off(chosen, layer) for layer in layers(model)}
        edits = [
            mi.edit(f"neurons{layer}", lambda s, mask=mask: s.masked_fill(mask, 0.0), positions=positions)
            for layer, mask in masks.items()
        ]
        with mi.intervene(model, *edits):
            return result(task.measure(model), base)

    return effect


def effect_with_late_binding(model, task, chosen):
    base = task.measure(model)
    edits = []
    for layer in range(model.n_layers):
        edits.append(mi.edit(f"neurons{layer}", lambda s: s.masked_fill(chosen[:, layer, None], 0.0)))  # noqa: B023
    with mi.intervene(model, *edits):
        return task.measure(model) - base


def effect_erasing_weights(model, task, chosen):
    base = task.measure(model)
    for layer in range(model.n_layers):
        model.block(layer).mlp.c_proj.weight.data[chosen[:, layer].any(0)] = 0
    return task.measure(model) - base


# --- neurons.detector_auroc ------------------------------------------------------------------------------------------


def auroc_by_loop(values, labels):
    positives, negatives = values[labels], values[~labels]
    wins = torch.zeros(values.shape[1])
    for row in positives:
        wins = wins + (row > negatives).float().sum(0) + 0.5 * (row == negatives).float().sum(0)
    return wins / (len(positives) * len(negatives))


def auroc_by_sign(values, labels):
    gap = values[labels].unsqueeze(1) - values[~labels].unsqueeze(0)
    return (gap.sign().mean((0, 1)) + 1) / 2


def auroc_by_mean_ranks(values, labels):
    ranks = torch.stack([(values < row).float().sum(0) + (values <= row).float().sum(0) for row in values]) / 2
    p = labels.sum()
    return (ranks[labels].sum(0) - p**2 / 2) / (p * (len(labels) - p))


def auroc_by_plain_ranks(values, labels):
    ranks = values.argsort(dim=0, stable=True).argsort(0).float() + 1
    p = labels.sum()
    return (ranks[labels].sum(0) - p * (p + 1) / 2) / (p * (len(labels) - p))


def pairs(win):
    def answer(values, labels):
        return win(values[labels][:, None], values[~labels][None]).float().mean((0, 1))

    return answer


def correlation(values, labels):
    x, y = values - values.mean(0), labels.float() - labels.float().mean()
    return (x * y[:, None]).sum(0) / (x.norm(dim=0) * y.norm())


RIGHT = {
    "neurons.key_and_value": [slices_by_type, slices_by_name, key_by_what_it_does],
    "neurons.partial_output": [output_masking_activations, output_neuron_by_neuron, output_of_a_smaller_ffn],
    "neurons.gated_activation": [gated_by_parts, gated_by_one_product],
    "neurons.read_memory": [memory_by_products, memory_neuron_by_neuron],
    "neurons.direct_contribution": [
        contribution_by_einsum,
        contribution_of_each_write,
        contribution_row_by_row,
    ],
    "neurons.ablation_effect": [effect_with_default_argument, effect_item_by_item],
    "neurons.detector_auroc": [auroc_by_loop, auroc_by_sign, auroc_by_mean_ranks],
}

WRONG = {
    "neurons.key_and_value": {
        "the survey's words": (lambda a, b, j: (W(a)[j], W(b)[:, j]), "as the survey's text says"),
        "value column": (lambda a, b, j: (W(a)[:, j], W(b)[:, j]), "The value is a row of W_out"),
        "key row": (lambda a, b, j: (W(a)[j], W(b)[j]), "The key is a column of W_in"),
        "swapped": (lambda a, b, j: (W(b)[j], W(a)[:, j]), "Key and value are swapped"),
        "counts from one": (lambda a, b, j: (W(a)[:, j - 1], W(b)[j - 1]), "counted from 0"),
        "Conv1D only": (lambda a, b, j: (a.weight[:, j], b.weight[j]), "keeps its matrix transposed"),
        "by shape": (slices_by_shape, "ask for the type"),
        "key alone": (lambda a, b, j: W(a)[:, j], "tensor"),
    },
    "neurons.partial_output": {
        "no b_out": (lambda x, f, keep: (state(x, f) * keep) @ f.W_out, "b_out is missing"),
        "b_out each": (
            lambda x, f, keep: ((state(x, f) * keep)[..., None] * f.W_out + keep[:, None] * f.b_out).sum(-2),
            "added once for each neuron",
        ),
        "all neurons": (lambda x, f, keep: state(x, f) @ f.W_out + f.b_out, "All neurons were summed"),
        "the others": (lambda x, f, keep: (state(x, f) * ~keep) @ f.W_out + f.b_out, "The wrong ones were left out"),
        "pre-activation": (
            lambda x, f, keep: ((x @ f.W_in + f.b_in) * keep) @ f.W_out + f.b_out,
            "The pre-activation was used",
        ),
        "no b_in": (lambda x, f, keep: (f.act(x @ f.W_in) * keep) @ f.W_out + f.b_out, "b_in is missing"),
        "off before the activation": (
            lambda x, f, keep: f.act((x @ f.W_in + f.b_in) * keep) @ f.W_out + f.b_out,
            "switched off before the activation function",
        ),
        "mask on the output": (
            lambda x, f, keep: (
                output_masking_activations(x, f, keep)
                if len(keep) != x.shape[-1]
                else (state(x, f) @ f.W_out + f.b_out) * keep
            ),
            "it chooses neurons",
        ),
        "W_in transposed": (
            lambda x, f, keep: (
                output_masking_activations(x, f, keep)
                if f.W_in.shape[0] != f.W_in.shape[1]
                else (f.act(x @ f.W_in.T + f.b_in) * keep) @ f.W_out + f.b_out
            ),
            "W_in was transposed",
        ),
        "wrong axis": (
            lambda x, f, keep: (
                output_masking_activations(x, f, keep)
                if x.dim() < 3
                else ((state(x, f) * keep)[..., None] * f.W_out).sum((0, 1)) + f.b_out
            ),
            "The sum runs over the wrong axis",
        ),
        "empty set": (
            lambda x, f, keep: output_masking_activations(x, f, keep) if keep.any() else torch.zeros_like(x),
            "b_out is still written",
        ),
    },
    "neurons.gated_activation": {
        "swapped": (gated(lambda act, gate, up: gate * act(up)), "Gate and up are swapped"),
        "no activation function": (gated(lambda act, gate, up: gate * up), "activation function is missing"),
        "gate alone": (gated(lambda act, gate, up: act(gate)), "the gate alone"),
        "up alone": (gated(lambda act, gate, up: up), "the up reading alone"),
        "sum": (gated(lambda act, gate, up: act(gate) + up), "The two were added"),
        "unsigned": (gated(lambda act, gate, up: act(gate) * up.abs()), "The sign was lost"),
        "on both": (gated(lambda act, gate, up: act(gate) * act(up)), "No negative activation is left"),
        "on the product": (gated(lambda act, gate, up: act(gate * up)), "No negative activation is left"),
        "no biases": (lambda x, f: f.act(x @ f.W_gate) * (x @ f.W_up), "biases are missing"),
        "transposed": (
            lambda x, f: (
                gated_by_parts(x, f) if x.dim() < 3 else f.act(x @ f.W_gate.T + f.b_gate) * (x @ f.W_up.T + f.b_up)
            ),
            "transposed",
        ),
        "silu by hand": (
            gated(lambda act, gate, up: (gate * gate.sigmoid() if (act(gate) < 0).any() else act(gate)) * up),
            "The values differ",
        ),
    },
    "neurons.read_memory": {
        "swapped": (lambda k, v, E, U: memory_by_products(k, v, E, U)[::-1], "two lists are swapped"),
        "best neuron": (memory(lambda k, v, E, U: (k @ E.T).argmax(0)), "For each token the best neuron"),
        "absolute": (memory(lambda k, v, E, U: (k @ E.T).abs().argmax(1)), "large negative product"),
        "wrong reader": (memory(lambda k, v, E, U: (k @ U).argmax(1)), "Keys were read with U"),
        "layout": (memory(outputs=lambda k, v, E, U: (v @ U.T).argmax(1)), "different layouts"),
        "cosine": (memory(lambda k, v, E, U: (unit(k) @ unit(E).T).argmax(1)), "A cosine or a normalised vector"),
        "scores": (lambda k, v, E, U: ((k @ E.T).amax(1), (v @ U).amax(1)), "dtype"),
    },
    "neurons.direct_contribution": {
        "no activation": (lambda s, V, u, scale: (u @ V.T) * scale, "The activation is missing"),
        "no scale": (lambda s, V, u, scale: s * (u @ V.T), "scale of the final norm is missing"),
        "divided": (lambda s, V, u, scale: s * (u @ V.T) / scale, "It was divided by the scale"),
        "size of s": (lambda s, V, u, scale: s.abs() * (u @ V.T) * scale, "sign of the activation was lost"),
        "size": (lambda s, V, u, scale: (s * (u @ V.T) * scale).abs(), "All signs were lost"),
        "size of the write": (lambda s, V, u, scale: s.abs() * V.norm(dim=1), "how much each neuron writes"),
        "cosine": (lambda s, V, u, scale: s * (unit(u) @ unit(V).T) * scale, "A cosine was used"),
        "broadcast": (
            lambda s, V, u, scale: s * (V @ u.T) * scale if len(s) == len(V) else s * (u @ V.T) * scale,
            "torch does not complain",
        ),
        "V transposed": (
            lambda s, V, u, scale: s * (u @ V) * scale if len(V) == V.shape[1] else s * (u @ V.T) * scale,
            "V was transposed",
        ),
        "one answer": (lambda s, V, u, scale: s * (u[0] @ V.T) * scale, "One direction u was used for all items"),
        "summed": (lambda s, V, u, scale: (s * (u @ V.T) * scale).sum(1), "The shape is"),
    },
    "neurons.ablation_effect": {
        "sign": (effects_with(lambda after, base: base - after), "The sign is turned round"),
        "no base": (effects_with(lambda after, base: after), "The base was not taken away"),
        "mean": (effects_with(lambda after, base: (after - base).mean()), "The items were averaged"),
        "kept": (effects_with(off=lambda chosen, layer: ~chosen[:, layer, None]), "were kept and the others removed"),
        "first item": (effects_with(off=lambda chosen, layer: chosen[:1, layer, None]), "of the first item"),
        "any item": (effects_with(off=lambda chosen, layer: chosen[:, layer].any(0)), "chosen for any item"),
        "late binding": (effect_with_late_binding, "A lambda in a loop"),
        "one layer": (effects_with(layers=lambda model: range(1)), "Only one layer was changed"),
        "last position": (effects_with(positions="last"), "Only the last position"),
        "relative": (effects_with(lambda after, base: (after - base) / base), "divided by the base"),
        "erases weights": (effect_erasing_weights, "so that the model is left as it was"),
    },
    "neurons.detector_auroc": {
        "turned round": (pairs(lambda p, n: (p < n).float() + (p == n).float() / 2), "The label is turned round"),
        "accuracy": (lambda v, y: ((v > 0) == y[:, None]).float().mean(0), "accuracy at a threshold"),
        "all pairs": (
            lambda v, y: auroc_by_loop(v, y) * y.sum() * (~y).sum() / len(y) ** 2,
            "positives times negatives",
        ),
        "count": (lambda v, y: auroc_by_loop(v, y) * y.sum() * (~y).sum(), "number of pairs won"),
        "means": (lambda v, y: v[y].mean(0) - v[~y].mean(0), "difference of means"),
        "correlation": (correlation, "a correlation"),
        "ties lost": (pairs(lambda p, n: p > n), "counted as a lost pair"),
        "ties won": (pairs(lambda p, n: p >= n), "counted as a won pair"),
        "plain ranks": (auroc_by_plain_ranks, "share their mean rank"),
        "axes": (lambda v, y: auroc_by_loop(v.T if v.shape[0] == v.shape[1] else v, y), "The axes are swapped"),
        "pooled": (
            lambda v, y: (
                auroc_by_loop(v, y) if len(y) < 6 else auroc_by_loop(v.reshape(-1, 1), y.repeat_interleave(v.shape[1]))
            ),
            "each has its own number",
        ),
    },
}

# Changes that leave an answer right: more rows of zeros than are read, and the best two of which the first is taken.
SAME = {
    "neurons.key_and_value": {"key_by_what_it_does, line 4: 1 -> 2", "key_by_what_it_does, line 7: 2 -> 3"},
    "neurons.read_memory": {"memory_neuron_by_neuron, line 4: 1 -> 2"},
}
