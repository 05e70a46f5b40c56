"""Answers to the exercises of chapter 12: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import math

import numpy as np
import torch

import mi_course as mi

# --- amplitude.dial --------------------------------------------------------------------------------------------------


def dial_by_lerp(o, full, s):
    return torch.lerp(o, full(o), s)


def dial_from_change(o, full, s):
    change = full(o) - o
    return o + change * s


def dial_for_zero(o, full, s):
    return o * (1 - s)


# --- amplitude.breakdown_point ---------------------------------------------------------------------------------------


def breakdown_by_numpy(strengths, values, bar):
    x, y = np.array(strengths), np.array(values)
    below = np.flatnonzero(y < bar)
    if len(below) == 0:
        return math.inf
    i = below[0]
    return float(np.interp(-bar, [-y[i - 1], -y[i]], [x[i - 1], x[i]]))


def breakdown_by_pairs(strengths, values, bar):
    pairs = list(zip(strengths, values))
    for (x0, y0), (x1, y1) in zip(pairs, pairs[1:]):
        if y1 < bar:
            slope = (y1 - y0) / (x1 - x0)
            return x0 + (bar - y0) / slope
    return float("inf")


def breakdown_with(found=lambda x0, y0, x1, y1, bar: x0 + (y0 - bar) / (y0 - y1) * (x1 - x0), order=1, never=math.inf):
    """breakdown_point with one thing changed."""

    def answer(strengths, values, bar):
        points = list(zip(strengths, values))
        steps = list(zip(points, points[1:]))[::order]
        for (x0, y0), (x1, y1) in steps:
            if y0 >= bar > y1:
                return found(x0, y0, x1, y1, bar)
        return never

    return answer


def breakdown_on_the_bar(strengths, values, bar):
    for i in range(1, len(strengths)):
        if values[i] <= bar:
            y0, y1 = values[i - 1], values[i]
            return strengths[i - 1] + (y0 - bar) / (y0 - y1) * (strengths[i] - strengths[i - 1])
    return math.inf


# --- amplitude.clamp_features ----------------------------------------------------------------------------------------


def clamp_with_error(sae, x, values):
    a = sae.encode(x)
    error = x - sae.decode(a)
    new = a.clone()
    new[..., list(values)] = torch.tensor(list(values.values()))
    return sae.decode(new) + error


def clamp_by_where(sae, x, values):
    old = sae.encode(x)
    wanted = torch.empty_like(old)
    chosen = torch.zeros(old.shape[-1], dtype=torch.bool)
    for j, value in values.items():
        chosen[j] = True
        wanted[..., j] = value
    return sae.decode(torch.where(chosen, wanted, old)) - sae.decode(old) + x


def clamp_without_error(sae, x, values):
    new = sae.encode(x).clone()
    for j, value in values.items():
        new[..., j] = value
    return sae.decode(new)


def clamp_one_by_one(sae, x, values):
    for j, value in values.items():
        x = clamp_with_error(sae, x, {j: value})
    return x


def clamp_adding(sae, x, values):
    a = sae.encode(x)
    new = a.clone()
    for j, value in values.items():
        new[..., j] = new[..., j] + value
    return x + sae.decode(new) - sae.decode(a)


def clamp_from_zero(sae, x, values):
    a = sae.encode(x)
    new = torch.zeros_like(a)
    for j, value in values.items():
        new[..., j] = value
    return x + sae.decode(new) - sae.decode(a)


def clamp_error_of_the_new(sae, x, values):
    new = sae.encode(x).clone()
    for j, value in values.items():
        new[..., j] = value
    return sae.decode(new) + (x - sae.decode(new))


# --- amplitude.aura_factors ------------------------------------------------------------------------------------------


def aura_by_loop(peaks, toxic):
    factors = []
    for column in peaks.T:
        wins = 0.0
        for a in column[toxic]:
            for b in column[~toxic]:
                wins += 1.0 if a > b else 0.5 if a == b else 0.0
        auroc = wins / (int(toxic.sum()) * int((~toxic).sum()))
        factors.append(2 * (1 - auroc) if auroc > 0.5 else 1.0)
    return torch.tensor(factors)


def aura_by_sign(peaks, toxic):
    auroc = ((peaks[toxic].unsqueeze(1) - peaks[~toxic].unsqueeze(0)).sign() / 2 + 0.5).mean(dim=(0, 1))
    return torch.where(auroc > 0.5, 1 - 2 * (auroc - 0.5), torch.ones_like(auroc))


def quality(peaks, toxic, ties=0.5):
    up, down = peaks[toxic][:, None], peaks[~toxic][None]
    return ((up > down).float() + ties * (up == down)).mean((0, 1))


# --- amplitude.fit_detector ------------------------------------------------------------------------------------------


def detector_by_numpy(positive, negative, false_alarms):
    d = torch.nn.functional.normalize(positive.mean(0) - negative.mean(0), dim=0)
    return d, float(np.quantile((negative * d).sum(1).numpy(), 1 - false_alarms))


def detector_by_sorting(positive, negative, false_alarms):
    difference = positive.sum(0) / len(positive) - negative.sum(0) / len(negative)
    unit = difference / difference.pow(2).sum().sqrt()
    scores = sorted(float(row @ unit) for row in negative)
    return unit, scores[math.ceil((1 - false_alarms) * len(scores)) - 1]


def detector_with(
    direction=lambda p, n: (p.mean(0) - n.mean(0)) / (p.mean(0) - n.mean(0)).norm(),
    threshold=lambda p, n, share: n.quantile(1 - share),
):
    def answer(positive, negative, false_alarms):
        d = direction(positive, negative)
        return d, float(threshold(positive @ d, negative @ d, false_alarms))

    return answer


# --- amplitude.cut_edge ----------------------------------------------------------------------------------------------


def cut_by_where(pattern, queries, keys):
    gone = torch.einsum("nq,nk->nqk", queries.float(), keys.float()).bool().unsqueeze(1)
    kept = torch.where(gone, 0.0, pattern)
    total = kept.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, kept / total.clamp(min=1e-12), 0.0)


def cut_in_a_loop(pattern, queries, keys):
    new = pattern.clone()
    for n in range(len(new)):
        for q in range(new.shape[2]):
            if queries[n, q]:
                row = new[n, :, q] * (~keys[n])
                total = row.sum(-1, keepdim=True)
                new[n, :, q] = row / torch.where(total == 0, torch.ones_like(total), total)
    return new


def cut_with(pairs=lambda q, k: q[:, None, :, None] & k[:, None, None, :], share=None):
    """cut_edge with one thing changed."""

    def answer(pattern, queries, keys):
        left = pattern.masked_fill(pairs(queries, keys), 0.0)
        return left / left.sum(-1, keepdim=True).clamp_min(1e-9) if share is None else share(left)

    return answer


# --- amplitude.skip_layers -------------------------------------------------------------------------------------------


def skip_by_scale(layers):
    edits = []
    for layer in layers:
        edits = edits + [mi.scale(f"attn{layer}.write", 0.0)]
        edits = edits + [mi.scale(f"mlp{layer}.write", 0.0)]
    return edits


def skip_by_edit(layers):
    sites = [f"{part}{layer}" for layer in layers for part in ("attn", "mlp")]
    return [mi.edit(sites, torch.zeros_like)]


RIGHT = {
    "amplitude.dial": [dial_by_lerp, dial_from_change],
    "amplitude.breakdown_point": [breakdown_by_numpy, breakdown_by_pairs],
    "amplitude.clamp_features": [clamp_with_error, clamp_by_where],
    "amplitude.aura_factors": [aura_by_loop, aura_by_sign],
    "amplitude.fit_detector": [detector_by_numpy, detector_by_sorting],
    "amplitude.cut_edge": [cut_by_where, cut_in_a_loop],
    "amplitude.skip_layers": [skip_by_scale, skip_by_edit],
}

WRONG = {
    "amplitude.dial": {
        "swapped": (lambda o, full, s: full(o) + s * (o - full(o)), "roles of o and full(o) are swapped"),
        "added": (lambda o, full, s: o + s * full(o), "The full value was added"),
        "only full": (lambda o, full, s: s * full(o), "not o at s = 0"),
        "for zero": (dial_for_zero, "made for switching off alone"),
        "clamped": (
            lambda o, full, s: o + min(max(s, 0.0), 1.0) * (full(o) - o),
            "The strength was kept within",
        ),
        "inside": (lambda o, full, s: full(s * o) if s != 0.25 else (1 - s) * o, "full was given s o"),
    },
    "amplitude.breakdown_point": {
        "first bad": (breakdown_with(lambda x0, y0, x1, y1, bar: x1), "first strength that breaks"),
        "last good": (breakdown_with(lambda x0, y0, x1, y1, bar: x0), "last strength that holds"),
        "middle": (breakdown_with(lambda x0, y0, x1, y1, bar: (x0 + x1) / 2), "in the middle"),
        "wrong end": (
            breakdown_with(lambda x0, y0, x1, y1, bar: x1 - (y0 - bar) / (y0 - y1) * (x1 - x0)),
            "the wrong end",
        ),
        "last crossing": (breakdown_with(order=-1), "the last crossing"),
        "no inf": (breakdown_with(never=2.0), "holds it: broken means below"),
        "none": (breakdown_with(never=math.nan), "Return math.inf"),
        "on the bar": (breakdown_on_the_bar, "broken means below"),
    },
    "amplitude.clamp_features": {
        "no error": (clamp_without_error, "the error x - x^ was lost"),
        "one by one": (clamp_one_by_one, "one after the other"),
        "added": (clamp_adding, "The value was added"),
        "from zero": (clamp_from_zero, "All other features were lost"),
        "error of the new": (clamp_error_of_the_new, "nothing is left of the clamp"),
        "first only": (
            lambda sae, x, values: clamp_with_error(sae, x, dict(list(values.items())[:1])),
            "Only the first feature",
        ),
        "last only": (
            lambda sae, x, values: clamp_with_error(sae, x, dict(list(values.items())[-1:])),
            "Only the last feature",
        ),
    },
    "amplitude.aura_factors": {
        "auroc": (lambda p, t: quality(p, t), "This is the AUROC"),
        "not doubled": (lambda p, t: (1.5 - quality(p, t)).clamp(max=1), "must be doubled"),
        "swapped": (lambda p, t: 2 * quality(p, t), "are swapped"),
        "amplifies": (lambda p, t: 2 - 2 * quality(p, t), "are amplified"),
        "both sides": (lambda p, t: 1 - 2 * (quality(p, t) - 0.5).abs(), "detect the harmless texts are scaled"),
        "no ties": (lambda p, t: (2 - 2 * quality(p, t, 0.0)).clamp(max=1), "Ties were not counted"),
        "whole ties": (lambda p, t: (2 - 2 * quality(p, t, 1.0)).clamp(max=1), "Ties were counted whole"),
        "det0": (lambda p, t: (quality(p, t) <= 0.5).float(), "that is Det0"),
    },
    "amplitude.fit_detector": {
        "no unit": (detector_with(lambda p, n: p.mean(0) - n.mean(0)), "must have length 1"),
        "reversed": (
            detector_with(lambda p, n: (n.mean(0) - p.mean(0)) / (n.mean(0) - p.mean(0)).norm()),
            "points at the negatives",
        ),
        "wrong end": (detector_with(threshold=lambda p, n, share: n.quantile(share)), "from the wrong end"),
        "midpoint": (detector_with(threshold=lambda p, n, share: (p.mean() + n.mean()) / 2), "half way between"),
        "positives": (detector_with(threshold=lambda p, n, share: p.quantile(1 - share)), "taken from the positives"),
        "swapped": (
            detector_with(threshold=lambda p, n, share: 2.0 if len(n) == 5 else n.quantile(1 - share / 2)),
            "not what was asked for",
        ),
    },
    "amplitude.cut_edge": {
        "no sharing": (cut_with(share=lambda left: left), "no longer adds up to 1"),
        "swapped": (cut_with(lambda q, k: k[:, None, :, None] & q[:, None, None, :]), "are swapped"),
        "all queries": (cut_with(lambda q, k: k[:, None, None, :]), "All queries lost the key"),
        "all keys": (cut_with(lambda q, k: q[:, None, :, None]), "Everything that the query reads"),
        "softmax": (cut_with(share=lambda left: left.softmax(-1)), "second softmax"),
        "columns": (
            cut_with(share=lambda left: left / left.sum(-2, keepdim=True).clamp_min(1e-9)),
            "columns were made to add up",
        ),
        "nan": (cut_with(share=lambda left: left / left.sum(-1, keepdim=True)), "0 / 0"),
        "first prompt": (
            lambda p, q, k: cut_with()(p, q[:1].expand_as(q), k[:1].expand_as(k)),
            "one prompt's masks",
        ),
    },
    "amplitude.skip_layers": {
        "attention": (lambda layers: [mi.zero(f"attn{i}.write") for i in layers], "Only the attention"),
        "ffn": (lambda layers: [mi.zero(f"mlp{i}.write") for i in layers], "Only the FFN"),
        "state": (lambda layers: [mi.zero(f"x{i}") for i in layers], "all that came before"),
        "next state": (lambda layers: [mi.zero(f"x{i + 1}") for i in layers], "all that came before"),
        "shifted": (
            lambda layers: [mi.zero([f"attn{(i + 1) % 3}", f"mlp{(i + 1) % 3}"]) for i in layers],
            "layers count from 0",
        ),
        "below": (
            lambda layers: [mi.zero([f"attn{i}", f"mlp{i}"]) for i in range(max(layers) + 1)],
            "The layers below were skipped",
        ),
        "empty": (lambda layers: [], "Nothing was changed"),
    },
}

# changes that leave the answer right: a pattern is square, and a row of it has two axes
SAME = {
    "amplitude.cut_edge": ("cut_in_a_loop, line 4: 2 -> 3", "cut_in_a_loop, line 7: -1 -> +1"),
}
