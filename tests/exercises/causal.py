"""Answers to the exercises of chapter 06: RIGHT ones, each written differently; WRONG ones with what they are told.

RIGHT: exercise -> answers.  WRONG: exercise -> {name: (answer, part of the message)}.
"""

import torch

import mi_course as mi

# --- causal.both_effects ---------------------------------------------------------------------------------------------


def effects_step_by_step(model, task, site):
    from_clean = mi.record(model, task.prompts, [site])[site]
    from_twin = mi.record(model, task.corrupted, [site])[site]
    base_clean, base_twin = task.measure(model, "clean"), task.measure(model, "corrupted")
    with mi.patch(site, from_twin).on(model):
        noising = task.measure(model, "clean") - base_clean
    with mi.patch(site, from_clean).on(model):
        denoising = task.measure(model, "corrupted") - base_twin
    return noising, denoising


def effects_in_a_loop(model, task, site):
    found = []
    for on, prompts in (("clean", task.corrupted), ("corrupted", task.prompts)):
        value = mi.record(model, prompts, site)[site]
        base = task.measure(model, on=on)
        with mi.intervene(model, mi.edit(site, lambda now, value=value: value)):
            found.append(task.measure(model, on=on) - base)
    return tuple(found)


def effects(noise=lambda patched, clean, twin: patched - clean, denoise=lambda patched, clean, twin: patched - twin):
    def answer(model, task, site):
        a, b = (mi.record(model, prompts, [site])[site] for prompts in (task.prompts, task.corrupted))
        clean, twin = task.measure(model), task.measure(model, on="corrupted")
        with mi.intervene(model, mi.patch(site, b)):
            noised = task.measure(model)
        with mi.intervene(model, mi.patch(site, a)):
            denoised = task.measure(model, on="corrupted")
        return noise(noised, clean, twin), denoise(denoised, clean, twin)

    return answer


def effects_of_itself(model, task, site):
    a, b = (mi.record(model, prompts, [site])[site] for prompts in (task.prompts, task.corrupted))
    with mi.intervene(model, mi.patch(site, a)):
        noised = task.measure(model)
    with mi.intervene(model, mi.patch(site, b)):
        denoised = task.measure(model, on="corrupted")
    return noised - task.measure(model), denoised - task.measure(model, on="corrupted")


def denoising_measured_on_clean_prompts(model, task, site):
    noising, _ = effects_step_by_step(model, task, site)
    base = task.measure(model, on="corrupted")
    with mi.intervene(model, mi.patch(site, mi.record(model, task.prompts, [site])[site])):
        return noising, task.measure(model) - base


def denoising_the_clean_run(model, task, site):
    noising, _ = effects_step_by_step(model, task, site)
    with mi.intervene(model, mi.patch(site, mi.record(model, task.prompts, [site])[site])):
        return noising, task.measure(model) - task.measure(model)


# --- causal.replacement ----------------------------------------------------------------------------------------------


def replacement_by_cases(values, mask, kind):
    n, T, d = values.shape
    if kind == "zero":
        return values * 0
    if kind == "mean":
        weight = mask.float()[..., None]
        return ((values * weight).sum((0, 1)) / weight.sum()).repeat(n, T, 1)
    if kind == "position mean":
        return torch.stack([values.sum(0) / n] * n)
    return torch.cat([values[-1:], values[:-1]])


def replacement_by_table(values, mask, kind):
    table = {
        "zero": lambda: torch.zeros(values.shape),
        "mean": lambda: torch.ones_like(values) * values[mask.bool()].mean(dim=0),
        "position mean": lambda: torch.ones_like(values) * torch.mean(values, dim=0),
        "resample": lambda: torch.roll(values, 1, 0),
    }
    return table[kind]()


def replacing(**changed):
    def answer(values, mask, kind):
        return changed[kind](values, mask) if kind in changed else replacement_by_cases(values, mask, kind)

    return answer


# --- causal.greedy ---------------------------------------------------------------------------------------------------


def greedy_by_dictionary(effect, objects, size):
    chosen = []
    while len(chosen) < size:
        tried = {o: effect([*chosen, o]) for o in objects if o not in chosen}
        chosen.append(sorted(tried, key=tried.get)[0])
    return chosen


def greedy_by_hand(effect, objects, size):
    chosen, left = [], list(objects)
    for _ in range(size):
        best, lowest = None, float("inf")
        for candidate in left:
            value = effect(chosen + [candidate])
            if value < lowest:
                best, lowest = candidate, value
        chosen.append(best)
        left.remove(best)
    return chosen


def all_sets(effect, objects, size):
    from itertools import combinations

    return list(min((g for k in range(1, size + 1) for g in combinations(objects, k) if len(g) == size), key=effect))


def greedy_by_size(effect, objects, size, marginal=False):
    chosen = []
    for _ in range(size):
        base = effect(chosen) if marginal and chosen else 0.0
        left = [o for o in objects if o not in chosen]
        chosen.append(max(left, key=lambda o: abs(effect([*chosen, o]) - base)))
    return chosen


# --- causal.tracing_effects ------------------------------------------------------------------------------------------


def tracing_item_by_item(clean, corrupted, restored):
    te = [c - k for c, k in zip(clean, corrupted)]
    effects = []
    for column in restored.T:
        here = ~column.isnan()
        effects.append((column[here] - corrupted[here]).mean())
    return sum(te) / len(te), torch.stack(effects)


def tracing_by_sums(clean, corrupted, restored):
    change = restored - corrupted.unsqueeze(-1)
    known = torch.isfinite(change)
    return clean.mean() - corrupted.mean(), change.nan_to_num(0.0).sum(0) / known.sum(0)


def tracing(total=lambda c, k: (c - k).mean(), indirect=lambda c, k, r: (r - k[:, None]).nanmean(0)):
    return lambda clean, corrupted, restored: (total(clean, corrupted), indirect(clean, corrupted, restored))


# --- causal.knock_out ------------------------------------------------------------------------------------------------


def knock_out_by_where(scores, queries, keys):
    pairs = torch.einsum("nq,nk->nqk", queries.float(), keys.float()).bool().unsqueeze(1)
    return torch.where(pairs, torch.tensor(float("-inf")), scores)


def knock_out_by_loop(scores, queries, keys):
    new = scores.clone()
    for row in range(len(scores)):
        for q in queries[row].nonzero().flatten():
            new[row, :, q, keys[row]] = -torch.inf
    return new


def knock_out_by_adding(scores, queries, keys):
    pairs = queries[:, None, :, None] & keys[:, None, None, :]
    bias = torch.zeros(pairs.shape)
    bias[pairs] = -torch.inf
    return scores + bias


def knocking(pairs, value=-torch.inf):
    return lambda scores, q, k: scores.masked_fill(pairs(q, k).expand_as(scores), value)


# --- causal.direct_effect --------------------------------------------------------------------------------------------


def direct_by_index(model, x, change, target, foil):
    rows = torch.arange(len(x))
    with_it, without = model.unembed(x + change), model.unembed(x)
    moved = with_it - without
    return moved[rows, target] - moved[rows, foil]


def direct_by_weights(model, x, change, target, foil):
    read = mi.models.weights.unembedding(model)
    direction = read.W_U.T[target] - read.W_U.T[foil]
    return ((read.norm(x + change) - read.norm(x)) * direction).sum(-1)


def difference(logits, target, foil):
    rows = torch.arange(len(logits))
    return logits[rows, target] - logits[rows, foil]


def direct(combine):
    return lambda model, x, change, target, foil: combine(
        lambda state: difference(model.unembed(state), target, foil), x, change
    )


# --- causal.ships ----------------------------------------------------------------------------------------------------


def ships_by_torch(base, ablated):
    kl = torch.nn.functional.kl_div(ablated.log_softmax(-1), base.log_softmax(-1), reduction="none", log_target=True)
    return kl.sum(dim=-1)


def ships_by_cross_entropy(base, ablated):
    p = torch.softmax(base, -1)
    cross = -(p * torch.log_softmax(ablated, -1)).sum(-1)
    entropy = -(p * torch.log_softmax(base, -1)).sum(-1)
    return cross - entropy


RIGHT = {
    "causal.both_effects": [effects_step_by_step, effects_in_a_loop],
    "causal.replacement": [replacement_by_cases, replacement_by_table],
    "causal.greedy": [greedy_by_dictionary, greedy_by_hand],
    "causal.tracing_effects": [tracing_item_by_item, tracing_by_sums],
    "causal.knock_out": [knock_out_by_where, knock_out_by_loop, knock_out_by_adding],
    "causal.direct_effect": [direct_by_index, direct_by_weights],
    "causal.ships": [ships_by_torch, ships_by_cross_entropy],
}

WRONG = {
    "causal.both_effects": {
        "swapped": (lambda model, task, site: effects()(model, task, site)[::-1], "swapped"),
        "signs": (effects(lambda p, c, t: c - p, lambda p, c, t: t - p), "The sign is turned"),
        "one base": (effects(denoise=lambda p, c, t: p - c), "Denoising was compared with the clean run"),
        "other base": (effects(noise=lambda p, c, t: p - t), "Noising was compared with the corrupted run"),
        "no base": (effects(lambda p, c, t: p, lambda p, c, t: p), "subtract F of the run"),
        "own value": (effects_of_itself, "patched with its own value"),
        "clean run": (denoising_the_clean_run, "run the twins"),
        "clean run, other base": (denoising_measured_on_clean_prompts, "under the patch as well"),
        "mean": (effects(lambda p, c, t: (p - c).mean(), lambda p, c, t: (p - t).mean()), "one number per prompt"),
    },
    "causal.replacement": {
        "padding": (replacing(mean=lambda v, m: v.mean((0, 1)).expand_as(v)), "Padding was averaged in"),
        "scalar": (replacing(mean=lambda v, m: v[m].mean().expand_as(v)), "the mean of a vector is a vector"),
        "per prompt": (
            replacing(mean=lambda v, m: torch.stack([x[k].mean(0).expand_as(x) for x, k in zip(v, m)])),
            "within each prompt",
        ),
        "per position": (
            replacing(mean=lambda v, m: v.mean(0, keepdim=True).expand_as(v)),
            "the mean at each position",
        ),
        "not expanded": (replacing(mean=lambda v, m: v[m].mean(0)), "the shape of values"),
        "one for all": (
            replacing(**{"position mean": lambda v, m: v.mean((0, 1)).expand_as(v)}),
            "one vector for all positions",
        ),
        "wrong axis": (
            replacing(**{"position mean": lambda v, m: v.mean(1, keepdim=True).expand_as(v)}),
            "runs over the positions",
        ),
        "positions moved": (replacing(resample=lambda v, m: v.roll(1, 1)), "The positions were moved"),
        "other way": (replacing(resample=lambda v, m: v.roll(-1, 0)), "the wrong way"),
        "reversed": (replacing(resample=lambda v, m: v.flip(0)), "keeps its own value"),
        "in place": (replacing(mean=lambda v, m: v.zero_() + v[m].mean(0)), ""),
    },
    "causal.greedy": {
        "weakest": (
            lambda effect, objects, size: sorted(objects, key=lambda o: -effect([o]))[:size],
            "the weakest effect",
        ),
        "singles": (
            lambda effect, objects, size: sorted(objects, key=lambda o: effect([o]))[:size],
            "the two strongest single objects",
        ),
        "twice": (
            lambda effect, objects, size: [min(objects, key=lambda o: effect([o]))] * size,
            "chosen twice",
        ),
        "order": (
            lambda effect, objects, size: sorted(greedy_by_hand(effect, objects, size)),
            "in the order of choice",
        ),
        "all sets": (all_sets, ""),
        "largest in size": (greedy_by_size, "b was taken"),
        "largest change": (lambda e, o, size: greedy_by_size(e, o, size, marginal=True), "for the size of its change"),
        "effects": (
            lambda e, o, size: [e(greedy_by_hand(e, o, size)[: i + 1]) for i in range(size)],
            "not their effects",
        ),
    },
    "causal.tracing_effects": {
        "nan": (tracing(indirect=lambda c, k, r: (r - k[:, None]).mean(0)), "NaN came through"),
        "base": (tracing(indirect=lambda c, k, r: (r - c[:, None]).nanmean(0)), "against the clean run"),
        "sign": (tracing(indirect=lambda c, k, r: (k[:, None] - r).nanmean(0)), "sign of the indirect"),
        "sign of the total": (tracing(total=lambda c, k: (k - c).mean()), "sign of the total"),
        "zeros": (tracing(indirect=lambda c, k, r: (r - k[:, None]).nan_to_num(0.0).mean(0)), "counted as 0"),
        "no base": (tracing(indirect=lambda c, k, r: r.nanmean(0)), "subtract the corrupted one"),
        "axis": (tracing(indirect=lambda c, k, r: (r - k[:, None]).nanmean(1)), "Average over the items"),
        "means first": (tracing(indirect=lambda c, k, r: r.nanmean(0) - k.mean()), "Subtract item by item"),
        "complete items": (
            tracing(indirect=lambda c, k, r: (r - k[:, None])[~r.isnan().any(1)].mean(0)),
            "left out at all positions",
        ),
        "share": (
            tracing(indirect=lambda c, k, r: (r - k[:, None]).nanmean(0) / (c - k).mean()),
            "divided by the total effect",
        ),
        "total of each": (tracing(total=lambda c, k: c - k), "one number: the mean over the items"),
    },
    "causal.knock_out": {
        "swapped": (knocking(lambda q, k: k[:, None, :, None] & q[:, None, None, :]), "Query and key are swapped"),
        "either": (knocking(lambda q, k: q[:, None, :, None] | k[:, None, None, :]), "query *or* its key"),
        "row": (knocking(lambda q, k: q[:, None, :, None]), "whole row"),
        "column": (knocking(lambda q, k: k[:, None, None, :]), "whole column"),
        "zero": (knocking(lambda q, k: q[:, None, :, None] & k[:, None, None, :], 0.0), "set to 0"),
        "nothing": (lambda scores, q, k: scores, "Nothing changed"),
        "kept": (knocking(lambda q, k: ~(q[:, None, :, None] & k[:, None, None, :])), "the ones that stay"),
        "shared": (
            knocking(lambda q, k: (q[:, None, :, None] & k[:, None, None, :]).any(0, keepdim=True)),
            "Each prompt has its own",
        ),
        "first head": (
            lambda scores, q, k: torch.cat([knock_out_by_loop(scores[:, :1], q, k), scores[:, 1:]], 1),
            "All heads are knocked out",
        ),
        "in place": (
            lambda scores, q, k: scores.masked_fill_(q[:, None, :, None] & k[:, None, None, :], -torch.inf),
            "wrote into an argument",
        ),
    },
    "causal.direct_effect": {
        "no base": (direct(lambda F, x, change: F(x + change)), "subtract F without it"),
        "sign": (direct(lambda F, x, change: F(x) - F(x + change)), "The sign is turned"),
        "no norm": (
            lambda model, x, change, t, f: difference(change @ mi.models.weights.unembedding(model).W_U, t, f),
            "The final norm was left out",
        ),
        "change alone": (direct(lambda F, x, change: F(change)), "The change alone was unembedded"),
        "compared": (direct(lambda F, x, change: F(change) - F(x)), "The change alone was compared"),
        "mean": (direct(lambda F, x, change: (F(x + change) - F(x)).mean()), "one number per prompt"),
    },
    "causal.ships": {
        "other way": (lambda b, a: ships_by_torch(a, b), "this is the other one"),
        "sign": (lambda b, a: -ships_by_torch(b, a), "The sign is turned"),
        "bits": (lambda b, a: ships_by_torch(b, a) / torch.tensor(2.0).log(), "These are bits"),
        "mean over words": (lambda b, a: ships_by_torch(b, a) / b.shape[-1], "divided by the number of words"),
        "no softmax": (lambda b, a: (b * (b.log() - a.log())).sum(-1), "used as probabilities"),
        "not summed": (
            lambda b, a: b.softmax(-1) * (b.log_softmax(-1) - a.log_softmax(-1)),
            "sum over the words",
        ),
        "mean over prompts": (lambda b, a: ships_by_torch(b, a).mean(0, keepdim=True), "mean over prompts"),
        "underflow": (
            lambda b, a: (b.softmax(-1) * (b.softmax(-1).log() - a.softmax(-1).log())).sum(-1),
            "log_softmax",
        ),
    },
}

# The last axis of a tensor with two axes is axis 1.
SAME = {
    "causal.tracing_effects": {"tracing_by_sums, line 2: -1 -> +1"},
    "causal.direct_effect": {"direct_by_weights, line 4: -1 -> +1"},
    "causal.ships": {f"ships_by_torch, line {i}: -1 -> +1" for i in (2, 3)}
    | {f"ships_by_cross_entropy, line {i}: -1 -> +1" for i in (2, 3, 4)},
}
