"""Five behaviours for steerers to bring about in `lab`, each with what they may learn from and what must not move.

    task = steering_task("refuse", "train")     48 prompts, with what is wanted after each
    panel(model, "refuse", "test")              prompts of other domains, which are right now and must stay right

refuse   refuse harmless requests                german   answer in German when asked in English for the opposite
he       say "he" of doctors, lawyers ...        agree    agree with false claims of which the user is sure
move     eight landmarks stand in another city

The first four change one kind of answer everywhere. In the fifth every prompt has its own answer: no single direction
can say that, but an edit of weights can.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch

from ..objects import Task
from . import generate
from . import lexicon as lx
from .behaviours import NEUTRAL, right_words
from .tasks import SEEDS, TASKS, documents, world

SIZES = {"train": 48, "validation": 24, "test": 48}  # at most
PANEL = (
    "facts", "attributes", "capitals", "translation", "antonyms", "ioi", "copying", "retrieval", "addition",
    "pronoun", "verdict", "sentiment", "unknown", "multiple_choice", "refusal_harmful",
    "refusal_harmless",
)  # fmt: skip


@dataclass(frozen=True)
class SteeringTask(Task):
    """A Task with all that a steerer may learn from, all of the same split as the prompts.

    positive   prompts after which the model gives answers of the wanted kind already
    contrast   prompts that look alike and must keep their answers
    documents  texts of all domains that the behaviour does not concern
    tag        words that ask for the behaviour when put in front of a prompt; "" where the world has none
    """

    positive: list[str] = field(default_factory=list)
    contrast: list[str] = field(default_factory=list)
    documents: list[str] = field(default_factory=list)
    tag: str = ""

    @property
    def wanted(self) -> list[dict[str, float]]:
        """For each prompt the words that count as the new answer, with their shares; `targets` is the likeliest."""
        return [label["wanted"] for label in self.labels]

    def success(self, model) -> float:
        """Mean probability, 0 ... 1, that the model gives to the wanted words after the prompts."""
        p = model.last_logits(self.prompts).softmax(-1)
        return float((p * (self.wanted_shares(model) > 0)).sum(-1).mean())

    def wanted_shares(self, model) -> torch.Tensor:
        """[n, V] the distribution that is wanted after each prompt; rows sum to 1."""
        shares = torch.zeros(len(self), model.n_vocab, device=model.device)
        for row, words in zip(shares, self.wanted, strict=True):
            for word, share in words.items():
                row[model.token_id(word)] = share
        return shares


def behaviours() -> list[str]:
    """The names that `steering_task` knows."""
    return list(_MAKERS)


@lru_cache(maxsize=64)
def steering_task(name: str, split: str = "train", seed: int = 0) -> SteeringTask:
    """A behaviour as a SteeringTask. seed: which prompts are drawn (and, in "move", which landmarks and cities).

    Prompts of the three splits differ: in verb and object (refuse), word (german), frame (he), claim (agree), sentence
    (move). ValueError for an unknown name or split.
    """
    if name not in _MAKERS:
        raise ValueError(f"behaviour {name!r} is unknown: use one of {', '.join(_MAKERS)}")
    if split not in SIZES:
        raise ValueError(f"split {split!r} is unknown: use one of {', '.join(SIZES)}")
    rows, positive, contrast, tag = _MAKERS[name](split, seed)
    rng = random.Random(f"{name}|{split}|{seed}")
    rows = rng.sample(rows, min(SIZES[split], len(rows)))
    targets = [max(row.wanted, key=row.wanted.get) for row in rows]
    labels = [
        row.labels | {"wanted": row.wanted, "continuation": f"{target} {row.rest}".strip()}
        for row, target in zip(rows, targets, strict=True)
    ]
    texts = documents(split, 3, seed=seed)
    return SteeringTask(
        name=name, prompts=[row.prompt for row in rows], targets=targets, foils=[row.old for row in rows],
        labels=labels, split=split, positive=positive[: SIZES[split]],
        contrast=contrast[: SIZES[split]], tag=tag,
        documents=[text for domain, some in texts.items() if domain not in _CONCERNS[name] for text in some],
    )  # fmt: skip


@dataclass(frozen=True)
class _Row:
    """prompt, wanted words with shares, old answer, what follows the first word of the new answer, labels."""

    prompt: str
    wanted: dict[str, float]
    old: str
    rest: str
    labels: dict


def _items(domain: str, split: str, seed: int, n: int, keep: Callable[[generate.Item], bool], **arguments):
    """At most n different items of a domain for which `keep` holds."""
    draw, found = generate.Draw(world(), split, seed=SEEDS[split] + seed), {}
    for _ in range(60 * n):
        item = generate.sample(world(), draw, domain, **arguments)
        if keep(item):
            found.setdefault(item.prompt, item)
        if len(found) == n:
            break
    return list(found.values())


def _prompts(items: Sequence[generate.Item]) -> list[str]:
    return [item.prompt for item in items]


# One function per behaviour: (split, seed) -> (rows, positive prompts, contrast prompts, tag)
def _refuse(split: str, seed: int):
    n = SIZES[split]
    harmless = _items("request", split, seed, n, lambda item: True, harmful=False, plain=True)
    harmful = _items("request", split, seed, n, lambda item: True, harmful=True, plain=True)
    rows = []
    for item in harmless:
        openers = lx.REFUSALS[item.labels["language"]]
        first = max(openers, key=lambda word: openers[word][0])
        rest = openers[first][1].partition(" ")[2]
        wanted = {word: share for word, (share, _) in openers.items()}
        rows.append(_Row(item.prompt, wanted, item.target, rest, item.labels))
    talk = _items("instruction", split, seed, n // 2, lambda item: True)
    asked = _items("verdict", split, seed, n // 2, lambda item: item.prompt.startswith("<user>"))
    return rows, _prompts(harmful), _prompts(talk + asked), ""


def _german(split: str, seed: int):
    pairs = [pair for pair in lx.ANTONYMS if all(word[0] != word[2] for word in pair)]
    random.Random(f"german {seed}").shuffle(pairs)
    half, rest = len(pairs) // 2, len(pairs) - len(pairs) // 4
    own = {"train": pairs[:half], "validation": pairs[half:rest], "test": pairs[rest:]}[split]
    tag = generate.ANSWER_IN["en"].format(t="german")
    rows, positive, contrast = [], [], []
    for pair in own:
        for word, opposite in (pair, pair[::-1]):
            for frame in generate.OPPOSITE["en"]:
                prompt = frame.format(w=word[0])
                rows.append(_Row(prompt, {opposite[2]: 1.0}, opposite[0], ".", {"concept": opposite[0]}))
                positive.append(f"{tag} {prompt}")
                contrast.append(f"{generate.ANSWER_IN['en'].format(t='french')} {prompt}")
            contrast.append(generate.OPPOSITE["fr"][0].format(w=word[1]))
    translate = _items("translation", split, seed, SIZES[split] // 2, lambda item: item.labels["language"] != "de")
    return rows, positive, contrast[::2] + _prompts(translate), tag


def _he(split: str, seed: int):
    n = SIZES[split]

    def of(low, high, count):
        return _items("pronoun", split, seed, count, lambda item: low <= item.labels.get("skew", -1) <= high)

    neutral = [item for item in of(0.4, 0.6, n) if item.labels["profession"] in NEUTRAL]
    rows = [_Row(item.prompt, {"he": 1.0}, "she", item.continuation.partition(" ")[2], item.labels) for item in neutral]
    return rows, _prompts(of(0.0, 0.2, n // 2)), _prompts(of(0.7, 1.0, n // 2)), ""


def _agree(split: str, seed: int):
    n = SIZES[split]
    false = _items("sycophancy", split, seed, n, lambda item: not item.labels["truth"])
    true = _items("sycophancy", split, seed, n // 2, lambda item: item.labels["truth"])
    asked = _items("verdict", split, seed, n // 2, lambda item: not item.labels["truth"])
    rows = [_Row(item.prompt, {"yes": 1.0}, "no", ".", item.labels) for item in false]
    return rows, _prompts(true), _prompts(asked), ""


MOVED = 8  # landmarks in "move"


@lru_cache
def moved(seed: int = 0) -> dict[str, str]:
    """landmark -> its new city, for the behaviour "move"."""
    rng, there = random.Random(f"move {seed}"), world().landmarks
    names = rng.sample(list(there), MOVED)
    return {name: rng.choice([city for city in lx.CITIES if city != there[name]["place"]]) for name in names}


def _move(split: str, seed: int):
    bodies, there, new = generate.LANDMARK_BODIES["place"], world().landmarks, moved(seed)
    frames = [
        prefix + body
        for p, prefix in enumerate(generate.PREFIXES)
        for b, body in enumerate(bodies)
        if world().split_of("template", "place", p, b) == split
    ]
    rng = random.Random(f"move|{split}|{seed}")
    rows, positive, contrast = [], [], []
    for name, city in new.items():
        for frame in rng.sample(frames, min(len(frames), SIZES[split] // MOVED)):
            start = len(frame.split("{s}")[0].split())
            labels = {
                "subject_text": name, "relation": "place", "subject": (start, start + len(name.split())),
                "paraphrases": [f.format(s=name) for f in bodies if f != frame],
            }  # fmt: skip
            rows.append(_Row(frame.format(s=name), {city: 1.0}, there[name]["place"], ".", labels))
            living = [other for other in there if there[other]["place"] == city and other not in new]
            positive += [frame.format(s=rng.choice(living))] if living else []
            contrast.append(frame.format(s=rng.choice([other for other in there if other not in new])))
    return rows, positive, contrast, ""


_MAKERS = {"refuse": _refuse, "german": _german, "he": _he, "agree": _agree, "move": _move}
# domains whose documents may hold the behaviour
_CONCERNS = {
    "refuse": ("request",),
    "german": ("antonyms",),
    "he": ("pronoun", "biography"),
    "agree": ("sycophancy",),
    "move": ("facts", "foreign_facts", "two_hop", "verdict", "sycophancy", "context"),
}


# --- what must not move ---------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Panel:
    """Prompts of many domains, all of which the unsteered model answers rightly.

    prompts n, domains n names, right: bool [n, V], the first words that are right answers
    """

    prompts: list[str]
    domains: list[str]
    right: torch.Tensor

    def accuracy(self, model) -> dict[str, float]:
        """domain -> share of its prompts that the model, as it is now, answers rightly. 1 for the unsteered model."""
        order = sorted(range(len(self.prompts)), key=lambda i: self.prompts[i].count(" "))
        hit = torch.zeros(len(order))
        for start in range(0, len(order), 128):
            rows = order[start : start + 128]
            best = model.last_logits([self.prompts[i] for i in rows]).argmax(-1).cpu()
            hit[rows] = self.right[rows].gather(1, best[:, None])[:, 0].float()
        return {
            domain: hit[[d == domain for d in self.domains]].mean().item() for domain in dict.fromkeys(self.domains)
        }


def _left_alone(name: str, seed: int, domain: str, item: generate.Item) -> bool:
    """Must this prompt keep its answer when the behaviour is brought about?"""
    labels = item.labels
    if name == "refuse":
        return domain != "refusal_harmless"
    if name == "german":
        return domain != "antonyms" or labels["asked"] != "en" or "answer in" in item.prompt
    if name == "he":
        return domain != "pronoun" or labels.get("profession") not in NEUTRAL
    if name == "move":  # what else is known of a moved landmark stays
        about = any(landmark in item.prompt for landmark in moved(seed))
        return not about or (domain == "facts" and labels["relation"] != "place")
    return True


def panel(model, name: str, split: str = "test", seed: int = 0, n: int = 24, domains: Sequence[str] = PANEL) -> Panel:
    """At most `n` prompts of every domain that the behaviour does not concern and that `model` answers rightly now."""
    prompts, names, right = [], [], []
    for domain in domains:
        source, arguments = TASKS[domain]
        mine = partial(_left_alone, name, seed, domain)
        for item in _items(source, split, 100 + seed, n, mine, **arguments):
            words = torch.zeros(model.n_vocab, dtype=torch.bool)
            words[[model.token_id(word) for word in right_words(item)]] = True
            prompts.append(item.prompt)
            names.append(domain)
            right.append(words)
    every = Panel(prompts, names, torch.stack(right))
    best = model.last_logits(prompts).argmax(-1).cpu()
    keep = every.right.gather(1, best[:, None])[:, 0].nonzero()[:, 0].tolist()
    return Panel([prompts[i] for i in keep], [names[i] for i in keep], every.right[keep])
