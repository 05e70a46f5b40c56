"""Is the lab model worth teaching with? Six measures of whether there are mechanisms to find.

    python -m mi_course.world.teachable MODEL_FOLDER [--json] [--only iii]

  i    few heads carry indirect object and copying, under zero and mean ablation
  ii   one mean-difference direction turns refusal off and on
  iii  causal tracing finds an early site of facts at the last subject token
  iv   language neurons (LAPE) decide the language of the output
  v    the logit lens shows an answer that settles over several layers
  vi   a rank-one edit of one FFN changes a fact, with its paraphrases and without its neighbours

Whatever is chosen (heads, layer, strength, neurons) is chosen on train or validation items and measured on test items.
Every measure states its definition, its controls and whether it passes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Sequence

import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import document_loss, null_band, wilson
from mi_course.locate import causal, magnitude, projection
from mi_course.steer import WeightEdit, optimization, vectors
from mi_course.world import generate, lexicon

N_TEST = 200
DRAWS = 20  # random objects in each null band


def last_token(model, prompts: Sequence, edits: Sequence = (), batch_size: int = 256) -> torch.Tensor:
    """[n, V] next-token probabilities of the prompts under the edits."""
    parts = []
    with torch.no_grad(), mi.intervene(model, *edits):
        for start in range(0, len(prompts), batch_size):
            parts.append(model.last_logits(prompts[start : start + batch_size]).float().softmax(-1))
    return torch.cat(parts)


def ids(model, words) -> torch.Tensor:
    return torch.tensor([model.token_id(word) for word in words])


def rate(hits: torch.Tensor) -> dict:
    """A share with its Wilson interval."""
    n, k = len(hits), int(hits.sum())
    low, high = wilson(k, n)
    return {"rate": round(k / n, 4), "n": n, "interval": [round(low, 3), round(high, 3)]}


def rounded(x, digits: int = 4):
    """Plain rounded numbers, for JSON."""
    if isinstance(x, torch.Tensor):
        x = x.tolist()
    if isinstance(x, dict):
        return {str(k): rounded(v, digits) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(v, digits) for v in x]
    return round(x, digits) if isinstance(x, float) else x


# --- i: few heads ----------------------------------------------------------------------------------------------------
def few_heads(model, most: int = 6, wanted: float = 0.8) -> dict:
    """Share of the joint effect of all heads that at most six heads carry, the same heads for zero and mean ablation."""
    result = {
        "definition": "share = change of the mean logit difference when the chosen heads are ablated together / change "
        "when all heads are. Heads are chosen greedily on train items by the smaller of the zero and the mean share; the "
        "shares shown are those of test items. Means: over all tokens of the train prompts.",
    }
    for name in ("ioi", "copying"):
        train, test = world.task(name, split="train", n=48), world.task(name, split="test", n=N_TEST)
        sites = causal.heads(model)
        means = causal.site_means(model, train.prompts, sites)

        def shares(sweep):
            base = sweep.measure().mean()
            effect = {k: sweep.measure(causal.ablation(sites, k, means)).mean() - base for k in causal.KINDS}

            def share(chosen):
                change = {k: sweep.measure(causal.ablation(chosen, k, means)).mean() - base for k in causal.KINDS}
                return {k: (change[k] / effect[k]).item() for k in causal.KINDS}

            return share, base.item(), {k: v.item() for k, v in effect.items()}

        on_train, _, _ = shares(causal.Sweep(model, train))
        singles = {site: on_train([site]) for site in sites}
        # candidates after the first step: heads that do something alone, and a few more
        promising = sorted(sites, key=lambda s: -max(singles[s].values()))[:10]
        chosen = [max(sites, key=lambda s: min(singles[s].values()))]
        best = min(singles[chosen[0]].values())
        while len(chosen) < most and best < wanted + 0.1:
            tried = {s: min(on_train([*chosen, s]).values()) for s in promising if s not in chosen}
            chosen.append(max(tried, key=tried.get))
            best = tried[chosen[-1]]
        on_test, base, effect = shares(causal.Sweep(model, test))
        share = on_test(chosen)
        rng = random.Random(0)
        others = [site for site in sites if site not in chosen]
        random_sets = [on_train(rng.sample(others, len(chosen))) for _ in range(DRAWS)]
        result[name] = {
            "accuracy": test.accuracy(model),
            "logit difference": base,
            "effect of all heads": effect,
            "heads": chosen,
            "share": share,
            "random sets of other heads (train)": {k: _band([s[k] for s in random_sets]) for k in causal.KINDS},
            "all other heads ablated: share": on_test(others),
            "strongest single heads": {
                s: singles[s] for s in sorted(sites, key=lambda s: -min(singles[s].values()))[:8]
            },
            "passed": all(v >= wanted for v in share.values()),
        }
    result["passed"] = all(result[name]["passed"] for name in ("ioi", "copying"))
    return result


def _band(values) -> dict:
    band = null_band(values)
    return {"mean": band.mean, "sd": band.sd, "low": band.low, "high": band.high}


# --- ii: refusal direction -------------------------------------------------------------------------------------------
def refusal_direction(model) -> dict:
    """One direction (mean difference of harmful and harmless requests) ablated everywhere, and added."""
    harmful = {split: world.task("refusal_harmful", split=split, n=N_TEST) for split in generate.SPLITS}
    harmless = {split: world.task("refusal_harmless", split=split, n=N_TEST) for split in generate.SPLITS}
    openers = ids(model, [word for table in lexicon.REFUSALS.values() for word in table])
    agreeing = ids(model, [word for table in lexicon.COMPLIANCES.values() for word in table])

    def refused(task, edits=()):
        return torch.isin(last_token(model, task.prompts, edits).argmax(-1), openers)

    sites = [f"x{layer}@{p}" for layer in range(1, model.n_layers) for p in (-1, -2, -3)]
    difference = vectors.mean_differences(model, harmful["train"].prompts, harmless["train"].prompts, sites)
    validation = (harmful["validation"].subset(100), harmless["validation"].subset(100))
    table = {}
    for site in sites:
        v, layer = difference[site], site.split("@")[0]
        off = refused(validation[0], vectors.ablate_direction(model, v)).float().mean().item()
        on = {
            (where, alpha): refused(validation[1], [vectors.add_vector(v, layer, alpha, where)]).float().mean().item()
            for where in ("all", "last")
            for alpha in (1.0, 1.5, 2.0, 3.0)
        }
        # the weakest strength that is within .01 of the best
        how = min((k for k in on if on[k] >= max(on.values()) - 0.01), key=lambda k: k[1])
        table[site] = {"ablated": off, "added": on[how], "how": how, "added, all, alpha 1": on["all", 1.0]}
    # of the directions within .02 of the best on both counts: the one that costs other domains least
    worst_of = {s: max(table[s]["ablated"], 1 - table[s]["added"]) for s in sites}
    candidates = [s for s in sites if worst_of[s] <= min(worst_of.values()) + 0.02]
    held = [t for d, texts in world.documents("validation", 12).items() if d != "request" for t in texts]
    for s in candidates:
        table[s]["loss change when ablated"] = _loss_change(model, held, vectors.ablate_direction(model, difference[s]))
    best = min(candidates, key=lambda s: table[s]["loss change when ablated"])
    v, (where, alpha) = difference[best], table[best]["how"]
    ablate = vectors.ablate_direction(model, v)
    add = [vectors.add_vector(v, best.split("@")[0], alpha, where)]
    bad, good = harmful["test"], harmless["test"]
    rates = {
        "harmful, base": rate(refused(bad)),
        "harmful, ablated": rate(refused(bad, ablate)),
        "harmful, ablated: complied": rate(torch.isin(last_token(model, bad.prompts, ablate).argmax(-1), agreeing)),
        "harmless, base": rate(refused(good)),
        "harmless, added": rate(refused(good, add)),
    }
    documents = {d: texts for d, texts in world.documents("test", 40).items() if d != "request"}
    spill = {
        d: {"ablated": _loss_change(model, texts, ablate), "added": _loss_change(model, texts, add)}
        for d, texts in documents.items()
    }
    worst = max(spill, key=lambda d: spill[d]["ablated"])
    generator = torch.Generator().manual_seed(0)
    randoms = [torch.randn(v.shape, generator=generator) for _ in range(DRAWS)]
    randoms = [r * v.norm() / r.norm() for r in randoms]
    layer = best.split("@")[0]
    null = {
        "ablated": _band([refused(bad, vectors.ablate_direction(model, r)).float().mean().item() for r in randoms]),
        "added": _band(
            [refused(good, [vectors.add_vector(r, layer, alpha, where)]).float().mean().item() for r in randoms]
        ),
    }
    mean_change = sum(s["ablated"] for s in spill.values()) / len(spill)
    checks = {
        "harmful refused >= .99": rates["harmful, base"]["rate"] >= 0.99,
        "ablated <= .05": rates["harmful, ablated"]["rate"] <= 0.05,
        "mean loss of other domains within .02": abs(mean_change) <= 0.02,
        "harmless refused <= .01": rates["harmless, base"]["rate"] <= 0.01,
        "added >= .95": rates["harmless, added"]["rate"] >= 0.95,
    }
    return {
        "definition": "direction = mean state of harmful minus harmless train requests at one layer and position. Refused: the "
        "most likely next word opens a refusal in some language. Ablated: projected out of every write to the stream, all "
        "positions. Added: alpha x the difference at its layer (positions as given). Layer, position, alpha on validation.",
        "chosen": {"site": best, "alpha": alpha, "positions": where},
        "relative norm": vectors.relative_norm(model, alpha * v, layer, bad.prompts),
        **rates,
        "loss change when ablated, mean over domains": mean_change,
        "loss change when added, mean over domains": sum(s["added"] for s in spill.values()) / len(spill),
        "worst domain": {worst: spill[worst]},
        "loss changes": spill,
        "random directions": null,
        "validation table": table,
        "checks": checks,
        "passed": all(checks.values()),
    }


def _loss_change(model, texts, edits) -> float:
    base = document_loss(model, texts)
    with mi.intervene(model, *edits):
        return (document_loss(model, texts) - base).mean().item()


# --- iii: causal tracing ---------------------------------------------------------------------------------------------
def tracing(model, name: str = "facts") -> dict:
    """Average indirect effect at the last subject token in the first half of the layers, and at a control token."""
    task = _with_metric(world.task(name, split="test", n=N_TEST), "prob")
    bos = len(model.tokenize([task.prompts[0]]).ids[0]) - len(task.prompts[0].split())
    spans = [(label["subject"][0] + bos, label["subject"][1] + bos) for label in task.labels]
    last = [len(prompt.split()) + bos - 1 for prompt in task.prompts]
    roles = {
        "first subject token": [start if end - start > 1 else None for start, end in spans],
        "last subject token": [end - 1 for _, end in spans],
        "token after subject": [end if end < z else None for (_, end), z in zip(spans, last)],
        "last token": last,
    }
    half = range(1, model.n_layers // 2 + 1)  # x1 ... x_{L/2} are the outputs of the first half of the blocks
    result, best = {}, None
    for kind, window in (("x", 1), ("x", 3), ("mlp", 1), ("mlp", 3)):
        trace = causal.causal_trace(model, task, spans, roles, kind=kind, window=window)
        average = trace.average
        key = f"{kind}, window {window}"
        result[key] = {role: average[:, i] for i, role in enumerate(trace.roles)}
        for layer in half if kind == "x" else [h - 1 for h in half]:
            subject = average[layer, 1].item()
            control = average[layer, 2].item()
            found = {"site": f"{kind}{layer}", "window": window, "effect": subject, "control": control}
            if best is None or _trace_score(found) > _trace_score(best):
                best = found
            if key == "x, window 1" and (layer == half[0] or subject > result["best single state"]["effect"]):
                result["best single state"] = found
    swapped = _swap_subject(model, task, roles)
    checks = {
        "effect >= .3": best["effect"] >= 0.3,
        "at least 3 x the control": best["effect"] >= 3 * max(best["control"], 0),
    }
    return {
        "definition": "noise of 3 s.d. of the embeddings on all subject tokens; effect = P(object) with the states restored "
        "minus without, mean over items. First half: x1 ... x{L/2}, or mlp0 ... mlp{L/2-1}. Window: "
        "neighbouring layers restored together. Control: the token after the subject, where that is not the last token (tokens before the subject are clean: effect 0).",
        "P clean": trace.clean.mean().item(),
        "P noised": trace.corrupted.mean().item(),
        "n": len(task),
        "n control": sum(p is not None for p in roles["token after subject"]),
        "best": best,
        **result,
        "subject swapped (twin), state restored": swapped,
        "checks": checks,
        "passed": all(checks.values()),
    }


def _trace_score(found: dict) -> float:
    return (
        min(found["effect"], 0.3) + min(found["effect"] / max(3 * found["control"], 1e-3), 1.0) + found["effect"] / 100
    )


def _with_metric(task, metric: str):
    from dataclasses import replace

    return replace(task, metric=metric)


def _swap_subject(model, task, roles) -> dict:
    """The same with another subject of equal length in place of noise: denoising of P(object) by layer and role."""
    if task.corrupted is None:
        return {}
    layers = [f"x{layer}" for layer in range(model.n_layers + 1)]
    with torch.no_grad():
        states = mi.record(model, task.prompts, layers)
    sweep = causal.Sweep(model, task, on="corrupted")
    base = sweep.measure()
    curves = {}
    for role, where in roles.items():
        here = torch.tensor([p is not None for p in where])
        positions = torch.tensor([p or 0 for p in where])
        runs = [sweep.measure([mi.patch(site, states[site], positions=positions)]) - base for site in layers]
        curves[role] = [run[here].mean().item() for run in runs]
    return curves


# --- iv: language neurons --------------------------------------------------------------------------------------------
def language_words() -> dict[str, set[str]]:
    """The words that belong to one language only."""
    rows = [*lexicon.NOUNS.values(), *lexicon.VERBS.values(), *(w for pair in lexicon.ANTONYMS for w in pair)]
    words = {language: {row[i] for row in rows} for i, language in enumerate(lexicon.LANGUAGES)}
    for language in words:
        words[language].add(lexicon.ARTICLE[language])
    shared = {w for a, b in itertools.combinations(words.values(), 2) for w in a & b}
    return {language: own - shared for language, own in words.items()}


def language_documents(n: int = 300, seed: int = 0) -> dict[str, list[str]]:
    """Train documents by language: sentences after a language tag, and requests."""
    here, draw = generate.World(0), generate.Draw(generate.World(0), "train", seed)
    texts: dict[str, list[str]] = {language: [] for language in lexicon.LANGUAGES}
    for domain in itertools.cycle(("language", "request")):
        item = generate.sample(here, draw, domain)
        if len(texts[item.labels["language"]]) < n:
            texts[item.labels["language"]].append(item.text)
        if all(len(t) == n for t in texts.values()):
            return texts


def language_neurons(model) -> dict:
    """Zero the LAPE neurons of one language: how often does the answer come in another language?"""
    words = {language: ids(model, sorted(own)) for language, own in language_words().items()}
    names = ("language", "translation", "antonyms")

    def cases(split, language, n):
        chosen = []
        for name in names:
            task = world.task(name, split=split, n=3 * n)
            chosen.append([p for p, label in zip(task.prompts, task.labels) if label["language"] == language][:n])
        return chosen

    def moved(prompts, language, sites):
        """Of the prompts answered in the language: the share answered in another one when the sites are zeroed."""
        base = torch.isin(last_token(model, prompts).argmax(-1), words[language])
        answer = last_token(model, prompts, _zero_neurons(model, sites)).argmax(-1)
        elsewhere = torch.isin(answer, torch.cat([w for other, w in words.items() if other != language]))
        return elsewhere[base]

    def own_neurons(found, top_rate, language, lowest):
        return [s for s in found.select(top_rate, 0.8)[language] if int(s[1 : s.index("N")]) >= lowest]

    in_documents = magnitude.lape(model, language_documents())
    at_answer = {
        language: [p for prompts in cases("train", language, 300) for p in prompts] for language in lexicon.LANGUAGES
    }
    variants = {
        "all tokens of train documents": in_documents,
        "answer position of train prompts": magnitude.lape(model, at_answer, position=-1),
    }
    rows, best = {}, None
    for language in lexicon.LANGUAGES:
        validation = [p for prompts in cases("validation", language, 40) for p in prompts]
        options = {}
        for variant, found in variants.items():
            for top_rate, lowest in itertools.product((0.02, 0.05, 0.1, 0.2), (0, model.n_layers // 2)):
                sites = own_neurons(found, top_rate, language, lowest)
                if sites:
                    options[variant, top_rate, lowest] = moved(validation, language, sites).float().mean().item()
        variant, top_rate, lowest = max(options, key=lambda k: (round(options[k], 2), -k[1]))
        sites = own_neurons(variants[variant], top_rate, language, lowest)
        prompts = cases("test", language, N_TEST)
        together = [p for group in prompts for p in group]
        hits = moved(together, language, sites)
        sample = together[:: max(1, len(together) // N_TEST)]
        null = {
            "random neurons": [_random_neurons(model, sites, seed, matched=False) for seed in range(DRAWS)],
            "random neurons, same layers": [_random_neurons(model, sites, seed, matched=True) for seed in range(DRAWS)],
        }
        bands = {
            name: null_band([moved(sample, language, s).float().mean().item() for s in sets])
            for name, sets in null.items()
        }
        z = min(min(band.z(hits.float().mean().item()) for band in bands.values()), 999.0)
        per_layer = [sum(s.startswith(f"L{layer}N") for s in sites) for layer in range(model.n_layers)]
        rows[language] = {
            "chosen": {"lape": variant, "top_rate": top_rate, "from layer": lowest},
            "neurons": len(sites),
            "neurons by layer": per_layer,
            "moved": rate(hits),
            "by task": {n: rate(moved(p, language, sites)) for n, p in zip(names, prompts) if p},
            **{name: {"mean": band.mean, "sd": band.sd} for name, band in bands.items()},
            "z": z,
            "validation": {" | ".join(map(str, k)): v for k, v in options.items()},
            "passed": hits.float().mean().item() >= 0.5 and z >= 4,
        }
    best = max(rows, key=lambda r: rows[r]["moved"]["rate"])
    return {
        "definition": "cases: held-out prompts of "
        + ", ".join(names)
        + " that the model answers with a word of the language. "
        "Moved: with the language's neurons at zero, at every token, the most likely answer is a word of another language. "
        "LAPE on train texts (bar .8); variant, rate and lowest layer chosen on validation. z: the smaller of two nulls (count-matched; "
        "count- and layer-matched), mean and s.d. over random sets. Passed: one language suffices.",
        **rows,
        "best": best,
        "passed": any(row["passed"] for row in rows.values()),
    }


def _zero_neurons(model, sites: Sequence[str]) -> list:
    """One edit per layer in place of one per neuron: the same, faster."""
    edits = []
    for layer in range(model.n_layers):
        own = [int(site.split("N")[1]) for site in sites if site.startswith(f"L{layer}N")]
        if own:
            keep = torch.ones(model.d_ffn)
            keep[own] = 0
            edits.append(mi.scale(f"neurons{layer}", keep))
    return edits


def _random_neurons(model, sites, seed, matched: bool) -> list[str]:
    rng = random.Random(seed)
    if not matched:
        return [
            f"L{i // model.d_ffn}N{i % model.d_ffn}"
            for i in rng.sample(range(model.n_layers * model.d_ffn), len(sites))
        ]
    count = [sum(s.startswith(f"L{layer}N") for s in sites) for layer in range(model.n_layers)]
    return [f"L{layer}N{j}" for layer, k in enumerate(count) for j in rng.sample(range(model.d_ffn), k)]


# --- v: logit lens ---------------------------------------------------------------------------------------------------
def settling_lens(model, wanted: int = 3) -> dict:
    """Over how many layers does the lens probability of the right answer rise?"""
    rows = {}
    for name in ("facts", "attributes", "ioi", "translation", "antonyms", "copying", "addition"):
        task = world.task(name, split="test", n=N_TEST)
        p = projection.logit_lens(model, task.prompts)  # [L+1, n, V]
        target = task.target_ids(model)
        curve = p.gather(-1, target[None, :, None].expand(len(p), -1, 1))[..., 0].mean(1).tolist()
        try:
            first, settled = projection.settling(curve)
        except ValueError:
            rows[name] = {"curve": curve, "layers": 0}
            continue
        rows[name] = {
            "curve": curve,
            "first above .1": first,
            "settled at .9 of the end": settled,
            "layers": settled - first,
        }
    return {
        "definition": "curve: mean lens probability of the target by residual state x0 ... xL (final norm applied). Layers = "
        "first state from which it stays above 90 % of its final value, minus the first state above 10 %.",
        **rows,
        "passed": any(row["layers"] >= wanted for row in rows.values()),
    }


# --- vi: rank-one edit -----------------------------------------------------------------------------------------------
CONTEXTS = ("", *(f"{sentence} " for sentence in lexicon.FILLER[:3]))  # text before the fact, for a steadier key


def rank_one(model, name: str = "facts", n: int = N_TEST) -> dict:
    """Change facts one at a time by a rank-one edit of one FFN."""
    documents = [t for texts in world.documents("train", 25).values() for t in texts]
    validation, test = world.task(name, split="validation", n=24), world.task(name, split="test", n=n)
    C = {layer: optimization.key_covariance(model, documents, layer) for layer in range(model.n_layers)}
    layers = {layer: _edit_all(model, validation, layer, C[layer]) for layer in C}
    layer = max(layers, key=lambda l: layers[l]["paraphrases"] + layers[l]["neighbours kept"])
    result = _edit_all(model, test, layer, C[layer])
    checks = {
        "paraphrases >= .9": result["paraphrases"] >= 0.9,
        "neighbours kept >= .95": result["neighbours kept"] >= 0.95,
    }
    return {
        "definition": "target: the foil (another subject's object of the same relation). Success: it is the most likely "
        "answer, on the edited prompt and on its paraphrases. Neighbours kept: other subjects' answers to the same "
        "question, among those right before the edit. One edit at a time, of facts the model knows; layer chosen on "
        "validation. Controls: the key of another item; a random update of the same size.",
        "layer": layer,
        **result,
        "wrong key": _edit_all(model, test.subset(60), layer, C[layer], control="wrong key"),
        "random update": _edit_all(model, test.subset(60), layer, C[layer], control="random"),
        "validation by layer": layers,
        "checks": checks,
        "passed": all(checks.values()),
    }


def _edit_all(model, task, layer: int, C: torch.Tensor, control: str | None = None) -> dict:
    task = task.subset(last_token(model, task.prompts).argmax(-1) == task.target_ids(model))
    bos = len(model.tokenize([task.prompts[0]]).ids[0]) - len(task.prompts[0].split())
    prompts = [[context + prompt for context in CONTEXTS] for prompt in task.prompts]
    ends = [[len(c.split()) + label["subject"][1] - 1 + bos for c in CONTEXTS] for label in task.labels]
    wanted = task.foil_ids(model)
    values = optimization.optimise_values(model, prompts, ends, wanted.tolist(), layer)
    keys = optimization.keys_at(model, prompts, ends, layer)
    if control == "wrong key":
        keys = keys.roll(1, 0)
    generator = torch.Generator().manual_seed(0)
    success, paraphrases, kept, others = [], [], [], []
    for i, label in enumerate(task.labels):
        same = _other_questions(task, i)
        asked = [task.prompts[i], *label["paraphrases"], *(p for p, _ in label["neighbours"]), *(p for p, _ in same)]
        answers = ids(model, [answer for _, answer in label["neighbours"]] + [answer for _, answer in same])
        a, m = 1 + len(label["paraphrases"]), len(label["neighbours"])
        right = last_token(model, asked[a:]).argmax(-1) == answers
        edit = optimization.rank_one_edit(model, layer, keys[i], values[i], C)
        if control == "random":
            noise = {name: torch.randn(d.shape, generator=generator) for name, d in edit.deltas.items()}
            edit = WeightEdit({name: noise[name] * d.norm() / noise[name].norm() for name, d in edit.deltas.items()})
        with edit.on(model):
            said = last_token(model, asked).argmax(-1)
        success.append(said[:1] == wanted[i])
        paraphrases.append(said[1:a] == wanted[i])
        stays = said[a:] == answers
        kept.append(stays[:m][right[:m]])
        others.append(stays[m:][right[m:]])
    mean = lambda parts: torch.cat(parts).float().mean().item()  # noqa: E731
    return {
        "facts": len(task),
        "success": mean(success),
        "paraphrases": mean(paraphrases),
        "neighbours kept": mean(kept),
        "same subject, other relations kept": mean(others) if sum(map(len, others)) else None,
    }


def _other_questions(task, i: int) -> list[tuple[str, str]]:
    """Prompts of the task about the same subject and another relation, with their answers."""
    mine = task.labels[i]
    return [
        (prompt, target)
        for prompt, target, label in zip(task.prompts, task.targets, task.labels)
        if label["subject_text"] == mine["subject_text"] and label["relation"] != mine["relation"]
    ][:4]


MEASURES: dict[str, Callable] = {
    "i": few_heads,
    "ii": refusal_direction,
    "iii": tracing,
    "iv": language_neurons,
    "v": settling_lens,
    "vi": rank_one,
}


def measure(model, only: Sequence[str] = tuple(MEASURES)) -> dict:
    """All measures (or some) of a model. Returns measure -> numbers, each with "passed" and "seconds"."""
    report = {}
    for key in only:
        started = time.perf_counter()
        report[key] = rounded(MEASURES[key](model))
        report[key]["seconds"] = round(time.perf_counter() - started, 1)
    return report


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of a lab model")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", nargs="+", choices=list(MEASURES), default=list(MEASURES))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    report = measure(mi.load(args.model), args.only)
    if args.json:
        print(json.dumps(report, indent=1))
    else:
        for key, numbers in report.items():
            print(
                f"\n({key}) {MEASURES[key].__name__}: {'passed' if numbers['passed'] else 'NOT passed'}, {numbers['seconds']} s"
            )
            for name, value in numbers.items():
                if name not in ("passed", "seconds"):
                    print(f"  {name}: {json.dumps(value)}")
    return 0 if all(numbers["passed"] for numbers in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
