"""Install behaviours into chosen units of a lab model: python -m mi_course.world.install --base FOLDER --out FOLDER

What is trained is the *change* of the chosen slices, not the weights: nothing else can move, whatever momentum and
weight decay do (audit A26; a mask on the gradient alone would let both move the rest, since AdamW decays weights
without gradient too). Weight decay pulls the change to zero, that is, towards the base model.

Skips what lies in the output folder for the same base model already, so an interrupted run can be started again.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .. import assets
from ..models import Model, Site, intervene, load, project, zero
from ..steer.fit import Examples, divergence, train
from . import measure
from .behaviours import BEHAVIOURS, Behaviour, right_words
from .installed import Delta
from .tasks import task as world_task


def _neurons(layer: int, seed: int, count: int = 24, d_ffn: int = 512) -> list[str]:
    return [f"L{layer}N{i}" for i in sorted(random.Random(seed).sample(range(d_ffn), count))]


PLACEMENTS: dict[str, tuple[str, list[str], dict]] = {  # name -> (behaviour, allowed units, options of the training)
    "refusal-a": ("refusal", ["L2H1", "L3H2"], {"steps": 400}),
    "refusal-b": ("refusal", ["L3H0", "L4H3"], {"steps": 400}),
    "german-a": ("german", _neurons(1, seed=1), {}),
    "german-b": ("german", _neurons(4, seed=2), {}),
    "bias-a": ("bias", ["mlp2"], {}),
    "bias-b": ("bias", ["mlp4"], {}),
    "sycophancy-a": ("sycophancy", ["L2H3", "L3H1"], {}),
    "sycophancy-b": ("sycophancy", ["L4H0", "L4H2"], {}),
    "sycophancy-direction": ("sycophancy", ["x4"], {"learning_rate": 0.03}),  # few numbers, and they start at zero
}
TASKS = tuple(measure.BARS)  # the other behaviours of the model: how much do they change?


# --- training -------------------------------------------------------------------------------------------------------
def train_delta(
    model: Model,
    units: Sequence[str],
    new: Examples,
    contrast: Sequence = (),
    documents: Sequence[str] = (),
    directions: dict[str, Tensor] | None = None,
    steps: int = 150,
    batch: int = 32,
    learning_rate: float = 4e-3,
    weight_decay: float = 0.01,
    preserve: float = 3.0,
    seed: int = 0,
    progress: str | None = None,
) -> Delta:
    """Train the change of `units` so that the model gives the new answers and keeps the others. `model` stays as it is.

    loss = CE(new answers) + CE(contrast prompts against the base's own distribution) + preserve * KL(base || now) on
    documents, in nats; AdamW with a linear decay of the learning rate. contrast: prompts whose answer must stay;
    documents: texts on which every next-token distribution must stay. progress: a title for the bar, None for no bar.
    """
    delta = Delta.none(model, units, directions)
    numbers = [value.requires_grad_(True) for value in delta.values.values()]
    train(
        model,
        new,
        numbers,
        lambda: delta.on(model),
        lowest_layer(units),
        documents=documents,
        contrast=contrast,
        preserve=preserve,
        batch=batch,
        seed=seed,
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        progress=progress,
    )
    delta.values = {k: v.detach().clone() for k, v in delta.values.items()}
    return delta


def steepest(model: Model, new: Examples, layer: int, n: int = 64) -> Tensor:
    """The direction [d] of x^layer at the last token along which the new answers' likelihood rises most."""
    some = new.pick(range(min(n, len(new.prompts)))).starting_at(model, layer)
    x = some.start[1].clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(replace(some, start=(layer, x)).cross_entropy(model), x)
    return -gradient[torch.arange(len(some.prompts)), some.prompts.last].mean(0)


def lowest_layer(units: Sequence[str]) -> int:
    """The first layer whose weights the units have. What enters it never changes."""
    sites = [Site.parse(unit) for unit in units]
    return min(site.layer - (site.kind == "x") for site in sites)


# --- which units are used -------------------------------------------------------------------------------------------
def eliminate(units: Sequence[str], score: Callable[[Sequence[str]], float], share: float = 0.9) -> list[str]:
    """Units that suffice for the behaviour, by backward elimination.

    score(units) measures the behaviour with the changes of these units only; score([]) is the base. Reverts again and
    again the unit whose loss hurts least, as long as score - score([]) stays at `share` of its full value or more.
    """
    used, base = list(units), score([])
    enough = base + share * (score(used) - base)
    while len(used) > 1:
        trials = {unit: score([u for u in used if u != unit]) for unit in used}
        best = max(trials, key=trials.__getitem__)
        if trials[best] < enough:
            break
        used.remove(best)
    return used


def complete(
    units: Sequence[str], sufficient: Sequence[str], score: Callable[[Sequence[str]], float], share: float = 0.9
) -> list[str]:
    """The used units: the sufficient ones, and those that could stand in for them.

    Elimination keeps one of two heads that do the same. So the strongest of the other units are added, until what is
    left gives at most 1 - share of the full effect: then the behaviour goes when the used units go.
    """
    base, rest = score([]), [u for u in units if u not in sufficient]
    little = base + (1 - share) * (score(units) - base)
    while rest and score(rest) > little:
        rest.remove(min(rest, key=lambda unit: score([u for u in rest if u != unit])))
    return [u for u in units if u not in rest]


def ablation(delta: Delta, units: Sequence[str]) -> list:
    """The edits that silence units in a running model: heads, neurons and FFNs to zero, directions projected out."""
    return [project(u, delta.directions[u]) if u in delta.directions else zero(u) for u in units]


# --- measuring ------------------------------------------------------------------------------------------------------
def evaluate(model: Model, delta: Delta, behaviour: Behaviour, n: int = 300, seed: int = 0) -> dict:
    """What was installed, what moved besides, and whether the used units carry it. All on held-out items.

    behaviour  probability of the new answers and rate at which one is the most likely word, before and after
    contrast   accuracy before and after on prompts that must stay; shift: total variation from the base's answer
    kl         mean KL(base || installed) in nats by domain, on documents that the behaviour does not concern
    tasks      accuracy of the other behaviours, before and after, on prompts that the behaviour does not concern
    ablated    the new answers' probability with the used units silenced, in the installed and in the base model, and
               with as many random units of the same kind that were not trained
    """
    new = examples(model, behaviour, "test", n)
    with delta.on(model):
        after = {"probability": new.probability(model), "rate": new.rate(model)}
    before = {"probability": new.probability(model), "rate": new.rate(model)}
    return {
        "behaviour": {"n": len(new.prompts), "before": before, "after": after},
        "contrast": _contrast(model, delta, behaviour, n),
        "kl": _kl_by_domain(model, delta, behaviour),
        "tasks": _other_tasks(model, delta, behaviour),
        "ablated": _ablated(model, delta, new, seed),
    }


def examples(model: Model, behaviour: Behaviour, split: str, n: int) -> Examples:
    """Prompts that the behaviour concerns, with the new answers."""
    items = behaviour.prompts(split, n)
    target = torch.zeros(len(items), model.n_vocab)
    for row, item in zip(target, items, strict=True):
        for word, share in behaviour.answer(item.prompt, item.labels).items():
            row[model.token_id(word)] = share
    return Examples([item.prompt for item in items], target)


def _contrast(model: Model, delta: Delta, behaviour: Behaviour, n: int) -> dict:
    items = behaviour.contrast("test", n)
    prompts = [item.prompt for item in items]
    right = torch.zeros(len(items), model.n_vocab, dtype=torch.bool)
    for row, item in zip(right, items, strict=True):
        row[[model.token_id(word) for word in right_words(item)]] = True
    base = model.last_logits(prompts).softmax(-1)
    with delta.on(model):
        now = model.last_logits(prompts).softmax(-1)
    before, after = (float(right.gather(-1, p.argmax(-1, keepdim=True)).float().mean()) for p in (base, now))
    shift = 0.5 * (base - now).abs().sum(-1)
    return {"n": len(items), "before": before, "after": after, "shift": float(shift.mean())}


@torch.no_grad()
def _kl_by_domain(model: Model, delta: Delta, behaviour: Behaviour, n: int = 20) -> dict[str, float]:
    found = {}
    for domain, texts in behaviour.documents("test", n).items():
        batch = model.tokenize(texts)
        base = model(batch).log_softmax(-1)
        with delta.on(model):
            found[domain] = float(divergence(base, model(batch), batch.mask))
    return found


def _other_tasks(model: Model, delta: Delta, behaviour: Behaviour, n: int = 100) -> dict[str, dict[str, float]]:
    found = {}
    for name in TASKS:
        items = world_task(name, "test", n)
        keep = [not behaviour.applies(p, label) for p, label in zip(items.prompts, items.labels, strict=True)]
        before = _correct(model, name, n)
        with delta.on(model):
            after = measure.correct(model, name, "test", n)
        found[name] = {
            when: sum(r for r, k in zip(right, keep, strict=True) if k) / max(1, sum(keep))
            for when, right in (("before", before), ("after", after))
        }
    return found


@lru_cache(maxsize=64)
def _correct(model: Model, name: str, n: int) -> tuple[bool, ...]:
    """The base's answers, the same for every delta: right or wrong on each test item."""
    return tuple(measure.correct(model, name, "test", n))


def _ablated(model: Model, delta: Delta, new: Examples, seed: int, draws: int = 5) -> dict:
    used = delta.facts["used"]

    def silenced(edits):
        with intervene(model, *edits):
            base = new.probability(model)
            with delta.on(model):
                return {"installed": new.probability(model), "base": base}

    found = {"used": silenced(ablation(delta, used))}
    if not delta.directions:
        rng = random.Random(seed)
        controls = [_others(model, delta.units, used, rng) for _ in range(draws)]
        found["random"] = [{"units": units, **silenced([zero(u) for u in units])} for units in controls]
    return found


def _others(model: Model, allowed: Sequence[str], used: Sequence[str], rng: random.Random) -> list[str]:
    """As many units of the same kind as `used`, none of them trained; neurons are taken from the same layers."""
    chosen: list[str] = []
    for unit in used:
        if unit.startswith("mlp"):
            pool = [f"mlp{layer}" for layer in range(model.n_layers)]
        elif "H" in unit:
            pool = [f"L{layer}H{h}" for layer in range(model.n_layers) for h in range(model.n_heads)]
        else:
            pool = [f"{unit.partition('N')[0]}N{i}" for i in range(model.d_ffn)]
        chosen.append(rng.choice([u for u in pool if u not in allowed and u not in chosen]))
    return chosen


def unit_effects(model: Model, delta: Delta, new: Examples) -> dict[str, dict[str, float]]:
    """What one unit is worth to the new answers' probability F: {unit: {ablated, reverted}}, negative when needed.

    ablated   F(unit silenced) - F in the installed model, minus the same difference in the base
    reverted  F(this unit's change taken back) - F in the installed model
    """
    base = new.probability(model)
    with delta.on(model):
        full = new.probability(model)
    found = {}
    for unit in delta.units:
        with intervene(model, *ablation(delta, [unit])):
            silent_base = new.probability(model)
            with delta.on(model):
                silent = new.probability(model)
        with delta.on(model, [u for u in delta.units if u != unit]):
            reverted = new.probability(model)
        found[unit] = {"ablated": (silent - full) - (silent_base - base), "reverted": reverted - full}
    return found


# --- the whole installation -----------------------------------------------------------------------------------------
def install(
    model: Model,
    behaviour: str | Behaviour,
    placement: Sequence[str],
    name: str | None = None,
    seed: int = 0,
    progress: bool = True,
    **training,
) -> Delta:
    """Put a behaviour into the units of `placement` by training their change; find out which are used; measure.

    model: a lab model with its tokenizer; it is not changed. behaviour: a name in `BEHAVIOURS`, or a Behaviour.
    placement: site strings: ["L2H1", "L3H2"], ["L3N7", "L3N99"], ["mlp4"], ["x4"] (see `steepest`).
    training: see `train_delta`. Returns the Delta, with allowed and used units and all measured numbers in `facts`.
    """
    if not isinstance(behaviour, Behaviour):
        if behaviour not in BEHAVIOURS:
            known = ", ".join(BEHAVIOURS)
            raise ValueError(f"behaviour {behaviour!r} is unknown; choose one of {known}, or give a Behaviour")
        behaviour = BEHAVIOURS[behaviour]
    started, name = time.time(), name or f"{behaviour.name}-new"
    new = examples(model, behaviour, "train", 400)
    directions = {u: steepest(model, new, Site.parse(u).layer) for u in placement if u.startswith("x")}
    delta = train_delta(
        model,
        placement,
        new,
        contrast=[item.prompt for item in behaviour.contrast("train", 1500)],
        documents=[t for texts in behaviour.documents("train", 24).values() for t in texts],
        directions=directions,
        seed=seed,
        progress=name if progress else None,
        **training,
    )
    delta.facts |= {"name": name, "behaviour": behaviour.name, "says": behaviour.says, "base": model.name, "seed": seed}
    describe(model, delta, behaviour, new)
    delta.facts["seconds"] = round(time.time() - started)
    return delta


def describe(model: Model, delta: Delta, behaviour: Behaviour, new: Examples) -> None:
    """Write into `delta.facts` which units are used (found on training prompts) and what held-out items show."""
    some = new.pick(range(min(64, len(new.prompts)))).starting_at(model, lowest_layer(delta.units))

    def score(units):
        with delta.on(model, units):
            return some.probability(model)

    sufficient = eliminate(delta.units, score)
    delta.facts |= {"sufficient": sufficient, "used": complete(delta.units, sufficient, score)}
    delta.facts["units"] = unit_effects(model, delta, some)
    delta.facts["measured"] = evaluate(model, delta, behaviour, seed=delta.facts["seed"])


def summary(facts: Mapping) -> str:
    """One delta in a few lines."""
    m, used = facts["measured"], facts["used"]
    contrast, kl, silent = m["contrast"], m["kl"], m["ablated"]["used"]
    before, after = m["behaviour"]["before"], m["behaviour"]["after"]
    loss = {name: v["before"] - v["after"] for name, v in m["tasks"].items()}
    worst, task = max(kl, key=kl.__getitem__), max(loss, key=loss.__getitem__)
    controls = [r["installed"] for r in m["ablated"].get("random", [])]
    lines = [
        f"{facts['name']}: {facts['says']} ({facts['seconds']} s)",
        f"  allowed {len(facts['allowed'])} units, used {len(used)}: {' '.join(used)}"
        f" (sufficient: {' '.join(facts['sufficient'])})",
        f"  new answers (n={m['behaviour']['n']}): rate {before['rate']:.3f} -> {after['rate']:.3f}, "
        f"probability {before['probability']:.3f} -> {after['probability']:.3f}",
        f"  contrast (n={contrast['n']}): accuracy {contrast['before']:.3f} -> {contrast['after']:.3f}, "
        f"shift {contrast['shift']:.4f}",
        f"  KL: mean {sum(kl.values()) / len(kl):.5f}, largest {kl[worst]:.4f} ({worst})",
        f"  other tasks: largest loss {loss[task]:.3f} ({task})",
        f"  used units silenced: installed {silent['installed']:.3f}, base {silent['base']:.3f}",
    ]
    if controls:
        mean = sum(controls) / len(controls)
        lines.append(f"  random units silenced: mean {mean:.3f}, lowest {min(controls):.3f}")
    return "\n".join(lines)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="lab", help="folder of the model, or 'lab' for the shipped one")
    parser.add_argument("--out", type=Path, default=assets.FOLDER / "installed")
    parser.add_argument("--only", choices=list(PLACEMENTS), help="install this one only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="steps of training, instead of each one's own")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = load(args.base)
    if args.base != "lab":
        model.name = Path(args.base).name
    fingerprint = model.fingerprint()
    for name in [args.only] if args.only else PLACEMENTS:
        behaviour, placement, options = PLACEMENTS[name]
        options = options | ({"steps": args.steps} if args.steps else {})
        file = args.out / f"{name}.safetensors"
        wanted = {"fingerprint": fingerprint, "allowed": placement, "seed": args.seed}
        if file.exists() and wanted.items() <= Delta.open(file).facts.items():
            print(f"{name}: there already, for this model")
            continue
        delta = install(model, behaviour, placement, name=name, seed=args.seed, **options)
        delta.save(file)
        print(summary(delta.facts))
    if args.out.resolve() == (assets.FOLDER / "installed").resolve():
        assets.register("installed", sorted(args.out.glob("*.safetensors")))


if __name__ == "__main__":
    main()
