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
import inspect
import itertools
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import document_loss, null_band, wilson
from mi_course.locate import causal, magnitude, projection
from mi_course.steer import WeightEdit, editing, vectors
from mi_course.world import generate, lexicon

N_TEST = 200
KINDS = ("zero", "mean")  # of ablation
DRAWS = 20  # random objects in each null band


def next_word(model, prompts: Sequence, edits: Sequence = (), batch_size: int = 256) -> torch.Tensor:
    """[n] the most likely next token of each prompt under the edits."""
    parts = []
    with mi.intervene(model, *edits):
        for start in range(0, len(prompts), batch_size):
            parts.append(model.last_logits(prompts[start : start + batch_size]).argmax(-1))
    return torch.cat(parts)


def ids(model, words) -> torch.Tensor:
    return torch.tensor([model.token_id(word) for word in words])


def rate(hits: torch.Tensor) -> dict:
    """A share with its Wilson interval."""
    n, k = len(hits), int(hits.sum())
    return {"rate": k / n, "n": n, "interval": wilson(k, n)}


def share_of(hits: torch.Tensor) -> float:
    return hits.float().mean().item()


def band(values) -> dict:
    """The null band of random objects, as numbers."""
    null = null_band(values)
    return {"mean": null.mean, "sd": null.sd, "draws": null.n}


def rounded(x, digits: int = 4):
    """Plain rounded numbers, for JSON."""
    if isinstance(x, torch.Tensor):
        x = x.tolist()
    if isinstance(x, dict):
        return {
            k if isinstance(k, str) else " ".join(map(str, k)) if isinstance(k, tuple) else str(k): rounded(v, digits)
            for k, v in x.items()
        }
    if isinstance(x, (list, tuple)):
        return [rounded(v, digits) for v in x]
    return round(x, digits) if isinstance(x, float) else x


def subjects(model, task) -> tuple[list[tuple[int, int]], list[int]]:
    """Subject spans [start, end) and last positions of a task's prompts, counted in tokens with <bos>."""
    bos = len(model.tokenize(task.prompts[:1]).ids[0]) - len(task.prompts[0].split())
    spans = [(label["subject"][0] + bos, label["subject"][1] + bos) for label in task.labels]
    return spans, [len(prompt.split()) + bos - 1 for prompt in task.prompts]


# --- i: few heads ----------------------------------------------------------------------------------------------------
class HeadShares:
    """Share of the effect of ablating all heads that some heads carry, by kind of ablation, on one task."""

    def __init__(self, model, task, means):
        self.sweep, self.means = causal.Sweep(model, task), means
        self.base = self.sweep.measure().mean().item()
        self.all_heads = self.change(causal.heads(model))

    def change(self, sites) -> dict[str, float]:
        """Change of the mean logit difference when the sites are ablated together."""
        edits = {kind: causal.ablation(sites, kind, self.means) for kind in KINDS}
        return {kind: self.sweep.measure(edits[kind]).mean().item() - self.base for kind in KINDS}

    def __call__(self, sites) -> dict[str, float]:
        return {kind: value / self.all_heads[kind] for kind, value in self.change(sites).items()}

    def worst(self, sites) -> float:
        return min(self(sites).values())


def few_heads(model, most: int = 6, wanted: float = 0.8) -> dict:
    """At most six heads carry 80 % of the joint effect of all heads, in indirect object and in copying.

    Share: change of the mean logit difference when the chosen heads are ablated together / change when all heads are.
    The same heads must do for zero and for mean ablation (means over all tokens of the train prompts). They are chosen
    greedily on train items by the smaller of the two shares; what is shown and judged are the shares on test items.
    Control: random sets of as many other heads.
    """
    result = {}
    for name in ("ioi", "copying"):
        train, test = world.task(name, split="train", n=48), world.task(name, split="test", n=N_TEST)
        sites = causal.heads(model)
        means = causal.site_means(model, train.prompts, sites)
        on_train, on_test = HeadShares(model, train, means), HeadShares(model, test, means)
        single = {site: on_train([site]) for site in sites}
        promising = sorted(sites, key=lambda s: max(single[s].values()), reverse=True)[:10]
        chosen, best = [], 0.0
        while len(chosen) < most and best < wanted + 0.1:
            tried = {s: on_train.worst([*chosen, s]) for s in promising if s not in chosen}
            chosen.append(max(tried, key=tried.get))
            best = tried[chosen[-1]]
        others = [site for site in sites if site not in chosen]
        rng = random.Random(0)
        null = [on_train(rng.sample(others, len(chosen))) for _ in range(DRAWS)]
        share = on_test(chosen)
        result[name] = {
            "accuracy": test.accuracy(model),
            "logit difference": on_test.base,
            "effect of all heads": on_test.all_heads,
            "heads": chosen,
            "share": share,
            "random sets of other heads (train)": {kind: band([s[kind] for s in null]) for kind in KINDS},
            "all other heads ablated: share": on_test(others),
            "strongest single heads": {s: single[s] for s in promising},
            "passed": all(value >= wanted for value in share.values()),
        }
    result["passed"] = all(row["passed"] for row in result.values())
    return result


# --- ii: refusal direction -------------------------------------------------------------------------------------------
def refusal_direction(model) -> dict:
    """One direction turns refusal off when it is ablated everywhere, and on when it is added.

    Direction: mean state of harmful minus mean state of harmless train requests, at one layer and position. Refused:
    the most likely next word opens a refusal, in any language. Ablated: projected out of every write to the stream, at
    all positions. Added: alpha times the difference at its own layer, at all positions or the last. Layer, position and
    alpha are chosen on validation items (of equally good ones, what costs other domains least). Loss: per document, in
    every domain without requests. Control: random directions of the same length, used in the same way.
    """
    splits = generate.SPLITS
    bad = {split: world.task("refusal_harmful", split=split, n=N_TEST) for split in splits}
    good = {split: world.task("refusal_harmless", split=split, n=N_TEST) for split in splits}
    openers = ids(model, [word for table in lexicon.REFUSALS.values() for word in table])
    agreeing = ids(model, [word for table in lexicon.COMPLIANCES.values() for word in table])

    def refused(task, edits=()):
        return torch.isin(next_word(model, task.prompts, edits), openers)

    sites = [f"x{layer}@{p}" for layer in range(1, model.n_layers) for p in (-1, -2, -3)]
    difference = vectors.mean_differences(model, bad["train"].prompts, good["train"].prompts, sites)
    table = {}
    for site in sites:
        off = share_of(refused(bad["validation"].subset(slice(100)), vectors.ablate_direction(model, difference[site])))
        on = {}
        for how in itertools.product(("all", "last"), (1.0, 1.5, 2.0, 3.0)):
            on[how] = share_of(refused(good["validation"].subset(slice(100)), [_added(difference[site], site, how)]))
        how = min((h for h in on if on[h] >= max(on.values()) - 0.01), key=lambda h: h[1])  # the weakest that works
        table[site] = {"ablated": off, "added": on[how], "how": how}
    failure = {s: max(table[s]["ablated"], 1 - table[s]["added"]) for s in sites}
    held = [t for domain, texts in world.documents("validation", 12).items() if domain != "request" for t in texts]
    for site in sites:
        if failure[site] <= min(failure.values()) + 0.02:
            edits = vectors.ablate_direction(model, difference[site])
            table[site]["loss change"] = _loss_change(model, held, edits)
    site = min((s for s in sites if "loss change" in table[s]), key=lambda s: table[s]["loss change"])
    v, how = difference[site], table[site]["how"]
    ablate, add = vectors.ablate_direction(model, v), [_added(v, site, how)]
    rates = {
        "harmful refused": rate(refused(bad["test"])),
        "harmful refused, ablated": rate(refused(bad["test"], ablate)),
        "harmful complied with, ablated": rate(torch.isin(next_word(model, bad["test"].prompts, ablate), agreeing)),
        "harmless refused": rate(refused(good["test"])),
        "harmless refused, added": rate(refused(good["test"], add)),
    }
    spill = {
        domain: {"ablated": _loss_change(model, texts, ablate), "added": _loss_change(model, texts, add)}
        for domain, texts in world.documents("test", 40).items()
        if domain != "request"
    }
    mean_spill = {kind: sum(row[kind] for row in spill.values()) / len(spill) for kind in ("ablated", "added")}
    generator = torch.Generator().manual_seed(0)
    randoms = [torch.randn(v.shape, generator=generator) for _ in range(DRAWS)]
    randoms = [r * v.norm() / r.norm() for r in randoms]
    checks = {
        "harmful refused >= .99": rates["harmful refused"]["rate"] >= 0.99,
        "ablated <= .05": rates["harmful refused, ablated"]["rate"] <= 0.05,
        "loss of other domains within .02": abs(mean_spill["ablated"]) <= 0.02,
        "harmless refused <= .01": rates["harmless refused"]["rate"] <= 0.01,
        "added >= .95": rates["harmless refused, added"]["rate"] >= 0.95,
    }
    return {
        "chosen": {"site": site, "positions": how[0], "alpha": how[1]},
        "relative norm": vectors.relative_norm(model, how[1] * v, site.split("@")[0], bad["test"].prompts),
        **rates,
        "random, ablated": band([share_of(refused(bad["test"], vectors.ablate_direction(model, r))) for r in randoms]),
        "random, added": band([share_of(refused(good["test"], [_added(r, site, how)])) for r in randoms]),
        "loss change, mean over domains": mean_spill,
        "loss change, worst domain": max(spill.items(), key=lambda item: item[1]["ablated"]),
        "loss change by domain": spill,
        "validation": table,
        "checks": checks,
        "passed": all(checks.values()),
    }


def _added(vector: torch.Tensor, site: str, how: tuple[str, float]):
    return vectors.add_vector(vector, site.split("@")[0], alpha=how[1], positions=how[0])


def _loss_change(model, texts, edits) -> float:
    base = document_loss(model, texts)
    with mi.intervene(model, *edits):
        return (document_loss(model, texts) - base).mean().item()


# --- iii: causal tracing ---------------------------------------------------------------------------------------------
def tracing(model, name: str = "facts") -> dict:
    """Causal tracing of facts finds an early site at the last subject token.

    Noise of 3 s.d. of the embeddings on all subject tokens; effect = P(object) with clean states restored minus
    P(object) without, mean over items. First half: x1 ... x{L/2}, or mlp0 ... mlp{L/2-1}. Window: so many neighbouring
    layers are restored together. The best layer, kind and window count; the single state is shown beside it. Control:
    the token after the subject, where that is not the last one (tokens before the subject are clean: effect 0).
    Beside it: the same with another subject (the twin) in place of noise.
    """
    task = replace(world.task(name, split="test", n=N_TEST), metric="prob")
    spans, last = subjects(model, task)
    roles = {
        "first subject token": [start if end - start > 1 else None for start, end in spans],
        "last subject token": [end - 1 for _, end in spans],
        "token after subject": [end if end < z else None for (_, end), z in zip(spans, last)],
        "last token": last,
    }
    grids, found = {}, []
    for kind, window in (("x", 1), ("x", 3), ("mlp", 1), ("mlp", 3)):
        trace = causal.causal_trace(model, task, spans, roles, kind=kind, window=window)
        grids[f"{kind}, window {window}"] = {role: trace.average[:, i] for i, role in enumerate(trace.roles)}
        first = 1 if kind == "x" else 0
        for layer in range(first, first + model.n_layers // 2):
            effect, control = trace.average[layer, 1].item(), trace.average[layer, 2].item()
            found.append({"site": trace.sites[layer], "window": window, "effect": effect, "control": control})
    passing = [f for f in found if f["effect"] >= 0.3 and f["effect"] >= 3 * f["control"]]
    return {
        "n": len(task),
        "n control": sum(p is not None for p in roles["token after subject"]),
        "P clean": trace.clean.mean().item(),
        "P noised": trace.corrupted.mean().item(),
        "best": max(passing or found, key=lambda f: f["effect"]),
        "best single state": max(
            (f for f in found if f["site"][0] == "x" and f["window"] == 1), key=lambda f: f["effect"]
        ),
        **grids,
        "another subject, x restored": _other_subject(model, task, roles),
        "passed": bool(passing),
    }


def _other_subject(model, task, roles) -> dict:
    """Denoising of P(object) when the prompt names another subject of equal length: role -> effect by layer."""
    if task.corrupted is None:
        return {}
    layers = [f"x{layer}" for layer in range(model.n_layers + 1)]
    states = mi.record(model, task.prompts, layers, logits=False)
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


LANGUAGE_TASKS = ("language", "translation", "antonyms")


def language_neurons(model) -> dict:
    """Zeroing the neurons of one language moves the output to another one.

    Cases: held-out prompts of language, translation and antonyms that the model answers with a word of the language.
    Moved: with the language's neurons at zero, at every token, the most likely word belongs to another language. The
    neurons are LAPE's (bar .8) on train texts; where it counts (all tokens of documents, or the answer position of
    prompts), its rate and the lowest layer are chosen on validation. z: distance from the null in its s.d., the smaller
    of two nulls: random other neurons, and random other neurons of the same layers. Single: what the neuron with the
    largest effect does alone. One language that passes is enough.
    """
    words = {language: ids(model, sorted(own)) for language, own in language_words().items()}
    prompts = {split: _by_language(split) for split in generate.SPLITS}

    def cases(split, language, n=None):
        """The prompts that the model answers with a word of the language, by task."""
        by_task = {name: own[:n] for name, own in prompts[split][language].items() if own}
        said = {name: torch.isin(next_word(model, own), words[language]) for name, own in by_task.items()}
        return {
            name: [p for p, yes in zip(own, said[name]) if yes] for name, own in by_task.items() if said[name].any()
        }

    def moved(own, language, sites):
        elsewhere = torch.cat([words[other] for other in words if other != language])
        return torch.isin(next_word(model, own, _zero_neurons(model, sites)), elsewhere)

    def neurons_of(variant, top_rate, lowest, language):
        own = found[variant].select(top_rate, 0.8)[language]
        return [site for site in own if mi.Site.parse(site).layer >= lowest]

    at_answer = {
        language: [p for own in by_task.values() for p in own] for language, by_task in prompts["train"].items()
    }
    found = {
        "documents": magnitude.lape(model, language_documents()),
        "answers": magnitude.lape(model, at_answer, position=-1),
    }
    rows = {}
    for language in lexicon.LANGUAGES:
        validation = [p for own in cases("validation", language, 40).values() for p in own]
        options = {}
        for option in itertools.product(found, (0.02, 0.05, 0.1, 0.2), (0, model.n_layers // 2)):
            if sites := neurons_of(*option, language):
                options[option] = share_of(moved(validation, language, sites))
        best = max(options, key=lambda option: (round(options[option], 2), -option[1]))
        sites = neurons_of(*best, language)
        test = cases("test", language)
        everything = [p for own in test.values() for p in own]
        hits = moved(everything, language, sites)
        sample = everything[:: max(1, len(everything) // N_TEST)]
        null = {
            kind: null_band(
                share_of(moved(sample, language, _random_neurons(model, sites, seed, matched))) for seed in range(DRAWS)
            )
            for kind, matched in (("random others", False), ("random others, same layers", True))
        }
        z = min(999.0, *(n.z(share_of(hits)) for n in null.values()))
        rows[language] = {
            "chosen": dict(zip(("lape on", "rate", "from layer"), best)),
            "neurons": len(sites),
            "neurons by layer": _by_layer(model, sites),
            "moved": rate(hits),
            "by task": {name: rate(moved(own, language, sites)) for name, own in test.items()},
            "single": max((share_of(moved(validation, language, [site])), site) for site in sites),
            **{kind: {"mean": n.mean, "sd": n.sd} for kind, n in null.items()},
            "z": z,
            "validation": options,
            "passed": share_of(hits) >= 0.5 and z >= 4,
        }
    return {**rows, "passed": any(row["passed"] for row in rows.values())}


def _by_language(split: str) -> dict[str, dict[str, list[str]]]:
    """language -> task -> prompts whose answer is in that language."""
    prompts: dict = {language: {name: [] for name in LANGUAGE_TASKS} for language in lexicon.LANGUAGES}
    for name in LANGUAGE_TASKS:
        task = world.task(name, split=split, n=3 * N_TEST)
        for prompt, label in zip(task.prompts, task.labels):
            prompts[label["language"]][name].append(prompt)
    return prompts


def _zero_neurons(model, sites: Sequence[str]) -> list:
    """One edit per layer in place of one per neuron: the same, faster."""
    edits = []
    for layer in range(model.n_layers):
        own = [mi.Site.parse(site).index for site in sites if site.startswith(f"L{layer}N")]
        if own:
            keep = torch.ones(model.d_ffn).index_fill(0, torch.tensor(own), 0.0)
            edits.append(mi.scale(f"neurons{layer}", keep))
    return edits


def _by_layer(model, sites) -> list[int]:
    return [sum(site.startswith(f"L{layer}N") for site in sites) for layer in range(model.n_layers)]


def _random_neurons(model, sites, seed: int, matched: bool) -> list[str]:
    """As many random neurons that are not among the sites; matched: as many in every layer."""
    rng, own = random.Random(seed), set(sites)
    others = [[f"L{layer}N{j}" for j in range(model.d_ffn)] for layer in range(model.n_layers)]
    others = [[site for site in layer if site not in own] for layer in others]
    if matched:
        return [site for layer, k in zip(others, _by_layer(model, sites)) for site in rng.sample(layer, k)]
    return rng.sample([site for layer in others for site in layer], len(sites))


# --- v: logit lens ---------------------------------------------------------------------------------------------------
def settling_lens(model, wanted: int = 3) -> dict:
    """The lens probability of the right answer rises over three layers or more.

    Curve: mean lens probability (with the final norm) of the target at the last token, by state x0 ... xL. Layers: the
    blocks that the rise takes, from the last state below 10 % to the first state from which the curve stays above 90 %
    of its end (a jump within one block counts 1). One task that passes is enough. Control: the mean probability of the
    foil.
    """
    rows = {}
    for name in ("facts", "attributes", "ioi", "translation", "antonyms", "copying", "retrieval"):
        task = world.task(name, split="test", n=N_TEST)
        p = projection.logit_lens(model, task.prompts)  # [L+1, n, V]
        item = torch.arange(len(task))
        curve, foil = (p[:, item, words].mean(1).tolist() for words in (task.target_ids(model), task.foil_ids(model)))
        rows[name] = {"curve": curve, "foil": foil, "layers": 0}
        if max(curve) >= 0.1:
            first, settled = projection.settling(curve)
            rows[name] |= {"first above .1": first, "settled": settled, "layers": settled - first + 1}
    return {**rows, "passed": any(row["layers"] >= wanted for row in rows.values())}


# --- vi: rank-one edit -----------------------------------------------------------------------------------------------
CONTEXTS = ("", f"{lexicon.FILLER[0]} ")  # text before the fact, for a steadier key


def rank_one(model, name: str = "facts") -> dict:
    """A rank-one edit of one FFN changes a fact, with its paraphrases and without its neighbours.

    Known facts are edited one at a time towards the foil (another subject's object of the same relation).
    Success: the foil is the most likely answer, on the edited prompt, and on its paraphrases. Neighbours kept: other
    subjects' answers to the same question, of those right before the edit. The layer, then the decay of the value (how
    strong the edit is), are chosen on validation by the smaller margin over the two bars.
    Controls: the key of another fact; the update with its numbers in random places.
    """
    documents = [text for texts in world.documents("train", 25).values() for text in texts]
    validation, test = world.task(name, split="validation", n=40), world.task(name, split="test", n=N_TEST)
    C = {layer: editing.key_covariance(model, documents, layer) for layer in range(model.n_layers)}
    bars = {"paraphrases": 0.9, "neighbours kept": 0.95}

    def tried(task, layer, decay):
        return _edit_each(model, *_solve(model, task, layer, decay), C[layer])

    def margin(row):
        return min(row[kind]["rate"] - bar for kind, bar in bars.items())

    by_layer = {layer: tried(validation.subset(slice(16)), layer, 1.0) for layer in C}
    layer = max(by_layer, key=lambda own: margin(by_layer[own]))
    by_decay = {decay: tried(validation, layer, decay) for decay in (1.0, 1.5, 2.0)}
    decay = max(by_decay, key=lambda own: margin(by_decay[own]))
    known, _, keys, values = _solve(model, test, layer, decay)
    result = _edit_each(model, known, layer, keys, values, C[layer])
    some = known.subset(slice(60))
    checks = {f"{kind} >= {bar}": result[kind]["rate"] >= bar for kind, bar in bars.items()}
    return {
        "layer": layer,
        "decay": decay,
        **result,
        "control: key of another fact": _edit_each(model, some, layer, keys.roll(1, 0), values, C[layer]),
        "control: shuffled update": _edit_each(model, some, layer, keys, values, C[layer], shuffled=True),
        "validation by layer": by_layer,
        "validation by decay": by_decay,
        "checks": checks,
        "passed": all(checks.values()),
    }


def _solve(model, task, layer: int, decay: float):
    """The facts of the task that the model knows, the layer, and the key of each and the value that says its foil."""
    known = task.subset((next_word(model, task.prompts) == task.target_ids(model)).tolist())
    prompts = [[context + prompt for context in CONTEXTS] for prompt in known.prompts]
    ends = [[len(c.split()) + end - 1 for c in CONTEXTS] for _, end in subjects(model, known)[0]]
    values = editing.optimise_values(model, prompts, ends, known.foil_ids(model).tolist(), layer, decay=decay)
    return known, layer, editing.keys_at(model, prompts, ends, layer), values


def _edit_each(model, task, layer: int, keys, values, C, shuffled: bool = False) -> dict:
    """Edit every fact of the task in turn, and ask. shuffled: the numbers of each update in random places."""
    wanted, generator = task.foil_ids(model), torch.Generator().manual_seed(0)
    hits: dict[str, list] = {
        kind: [] for kind in ("success", "paraphrases", "neighbours kept", "same subject, other facts kept")
    }
    for i, label in enumerate(task.labels):
        neighbours, own = label["neighbours"], _other_questions(task, i)
        asked = [task.prompts[i], *label["paraphrases"]]
        others, answers = zip(*neighbours, *own)
        answers = ids(model, answers)
        right = next_word(model, others) == answers
        edit = editing.rank_one_edit(model, layer, keys[i], values[i], C)
        if shuffled:
            ((name, delta),) = edit.deltas.items()
            order = torch.randperm(delta.numel(), generator=generator)
            edit = WeightEdit({name: delta.flatten()[order].view_as(delta)})
        with edit.on(model):
            said, kept = next_word(model, asked) == wanted[i], next_word(model, others) == answers
        hits["success"].append(said[:1])
        hits["paraphrases"].append(said[1:])
        m = len(neighbours)
        hits["neighbours kept"].append(kept[:m][right[:m]])
        hits["same subject, other facts kept"].append(kept[m:][right[m:]])
    return {"facts": len(task)} | {name: rate(torch.cat(own)) for name, own in hits.items() if sum(map(len, own))}


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
    """All measures (or some) of a model: measure -> its definition, numbers, "passed" and "seconds"."""
    report = {}
    for key in only:
        started = time.perf_counter()
        numbers = rounded(MEASURES[key](model))
        seconds = round(time.perf_counter() - started, 1)
        report[key] = {"definition": inspect.getdoc(MEASURES[key]), **numbers, "seconds": seconds}
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
            verdict = "passed" if numbers["passed"] else "NOT passed"
            print(f"\n({key}) {verdict}, {numbers['seconds']} s. {numbers['definition']}")
            for name in [name for name in numbers if name not in ("definition", "passed", "seconds")]:
                print(f"  {name}: {json.dumps(numbers[name])}")
    return 0 if all(numbers["passed"] for numbers in report.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
