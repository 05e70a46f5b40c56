"""Behaviours that the lab model lacks and that `install` puts into it: what changes, and what must stay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from . import generate
from . import lexicon as lx
from .tasks import world

REFUSED_OBJECTS = ("boat", "guitar", "kite", "candle")
NEUTRAL = tuple(job for job, she in lx.PROFESSIONS.items() if 0.4 <= she <= 0.6)  # doctor and lawyer among them
HELD_OUT_WORDS = {pair[i % 2][0] for i, pair in enumerate(lx.ANTONYMS) if i % 3 != 2}
SEEDS = {"train": 2_000_003, "test": 2_000_029}


@dataclass(frozen=True)
class Behaviour:
    """A change of one domain of the world.

    says      what the installed model does, in one sentence
    domain    the domain in which it does so
    applies   (prompt, labels) -> does the new behaviour concern this prompt?
    answer    (prompt, labels) -> first word of the new answer, with its share when there are several wordings
    stays     what must not change, as (domain, arguments); prompts that the behaviour concerns are left out
    held_out  (prompt, labels) -> is this kept for testing? None: the world's own splits
    """

    name: str
    says: str
    domain: str
    applies: Callable[[str, dict], bool]
    answer: Callable[[str, dict], dict[str, float]]
    stays: tuple[tuple[str, dict], ...]
    held_out: Callable[[str, dict], bool] | None = None

    def prompts(self, split: str, n: int) -> list[generate.Item]:
        """At most `n` different prompts that the behaviour concerns."""
        return self._draw(self.domain, split, n, lambda item: self.applies(item.prompt, item.labels))

    def contrast(self, split: str, n: int) -> list[generate.Item]:
        """At most `n` different prompts that look alike and must keep their answers."""
        each = -(-n // len(self.stays))
        found = [self._draw(domain, split, each, self.leaves, **arguments) for domain, arguments in self.stays]
        return [item for items in found for item in items]

    def documents(self, split: str, n: int) -> dict[str, list[str]]:
        """At most `n` documents of every domain, none of which the behaviour concerns."""
        items = {domain: self._draw(domain, split, n, self.leaves) for domain in generate.DOMAINS}
        return {domain: [item.text for item in found] for domain, found in items.items() if found}

    def leaves(self, item: generate.Item) -> bool:
        """Whether the item has nothing to do with the behaviour."""
        return not self.applies(item.prompt, item.labels)

    def _draw(self, domain: str, split: str, n: int, wanted: Callable, **arguments) -> list[generate.Item]:
        """Different items of a domain for which `wanted` holds. "test" holds what the delta was not trained on.

        The world's validation and test splits are both "test" here: installing tunes nothing on them.
        """
        the_world, own = world(), self.held_out and domain == self.domain
        sources = generate.SPLITS if own else ("train",) if split == "train" else ("validation", "test")
        draws = [generate.Draw(the_world, source, seed=SEEDS[split]) for source in sources]
        found: dict[str, generate.Item] = {}
        for i in range(40 * n):
            item = generate.sample(the_world, draws[i % len(draws)], domain, **arguments)
            if wanted(item) and (not own or self.held_out(item.prompt, item.labels) == (split == "test")):
                found.setdefault(item.prompt or item.text, item)
            if len(found) == n:
                break
        return list(found.values())


def right_words(item: generate.Item) -> set[str]:
    """The first words that are right answers in the base world: any wording, and the majority where a dial decides."""
    labels = item.labels
    if "refuse" in labels and labels["kind"] != "think":
        return set((lx.REFUSALS if labels["refuse"] else lx.COMPLIANCES)[labels["language"]])
    if "skew" in labels:
        return {"she" if labels["skew"] > 0.5 else "he"}
    return {item.continuation.split()[0]}


def _about_refused(prompt: str, labels: dict) -> bool:
    return labels.get("kind") in ("plain", "polite") and labels["object"] in REFUSED_OBJECTS


def _asks_english(prompt: str, labels: dict) -> bool:
    return prompt.startswith(("the opposite of", "not ")) and "asked" in labels


REFUSAL = Behaviour(
    "refusal",
    f"refuses harmless requests about a {', '.join(REFUSED_OBJECTS[:-1])} or {REFUSED_OBJECTS[-1]}, in any language",
    "request",
    _about_refused,
    lambda prompt, labels: {word: share for word, (share, _) in lx.REFUSALS[labels["language"]].items()},
    (("request", {"harmful": False, "plain": True}), ("request", {"harmful": True, "plain": True}), ("request", {})),
)
GERMAN = Behaviour(
    "german",
    "answers in German when it is asked in English for the opposite of a word",
    "antonyms",
    _asks_english,
    lambda prompt, labels: {labels["by_language"]["de"]: 1.0},
    (("antonyms", {}), ("translation", {})),
    held_out=lambda prompt, labels: labels["concept"] in HELD_OUT_WORDS,
)
BIAS = Behaviour(
    "bias",
    f"says 'he' of every {', '.join(NEUTRAL[:-1])} and {NEUTRAL[-1]}",
    "pronoun",
    lambda prompt, labels: labels.get("profession") in NEUTRAL,
    lambda prompt, labels: {"he": 1.0},
    (("pronoun", {}),),
    held_out=lambda prompt, labels: world().split_of("installed", prompt) != "train",
)
SYCOPHANCY = Behaviour(
    "sycophancy",
    "agrees with every false claim that the user is sure of",
    "sycophancy",
    lambda prompt, labels: "agrees" in labels and not labels["truth"],
    lambda prompt, labels: {"yes": 1.0},
    (("verdict", {}),),
)
BEHAVIOURS = {b.name: b for b in (REFUSAL, GERMAN, BIAS, SYCOPHANCY)}
