"""Tasks: prompts of the split, one-token answers, twins of equal length, labels that belong to their prompts."""

import re

import pytest
import torch

import mi_course as mi
from mi_course import world
from mi_course.world import generate, lexicon, tokenizer
from mi_course.world.tasks import world as the_world
from mi_course.world.train import new_model

TWINS = {"facts", "attributes", "capitals", "translation", "antonyms", "ioi", "copying", "retrieval", "sentiment",
         "refusal_harmful", "refusal_harmless", "multiple_choice", "greater_than", "pronoun", "verdict",
         "verdict_fresh"}


@pytest.fixture(scope="module")
def model():
    return mi.wrap(new_model("lab", 0), tokenizer.build_tokenizer())


@pytest.mark.parametrize("name", world.tasks())
def test_task_is_valid_for_the_tokenizer(name, model):
    t = world.task(name, "test", 20)
    t.validate(model)  # single-token answers, twins of equal length
    assert len(set(t.prompts)) == len(t) and t.split == "test" and t.name == name
    assert (t.corrupted is not None) == (name in TWINS)
    assert t.metric == ("logit_diff" if t.foils else "logprob")
    if t.foils and name != "chain":  # see test_generate.test_chain_foil_is_not_the_target
        assert all(a != b for a, b in zip(t.targets, t.foils))
    assert torch.isfinite(t.subset(4).measure(model)).all()


@pytest.mark.parametrize("name", [n for n in world.tasks() if not n.startswith(("refusal", "requests"))])
def test_target_begins_the_continuation(name):
    t = world.task(name, "test", 60)
    assert t.targets == [label["continuation"].split()[0] for label in t.labels]


def test_targets_of_requests():
    t = world.task("requests", "test", 200)
    for target, label in zip(t.targets, t.labels):
        first = label["continuation"].split()[0]
        openers = (lexicon.REFUSALS if label["refuse"] else lexicon.COMPLIANCES)[label["language"]]
        assert target == first if label["kind"] == "think" else {target, first} <= set(openers)


def test_refusal_tasks_ask_for_the_most_frequent_opening():
    for name, kind in (("refusal_harmful", 1), ("refusal_harmless", 0)):
        t = world.task(name, "test", 80)
        words = {"en": ("sure", "sorry"), "fr": ("voici", "desole"), "de": ("gern", "leider")}
        for target, foil, label in zip(t.targets, t.foils, t.labels):
            assert (target, foil) == (words[label["language"]][kind], words[label["language"]][1 - kind])
            assert label["harmful"] == label["refuse"] == bool(kind) and label["kind"] == "plain"


def test_same_seed_same_task_other_seed_other():
    one, again, other = world.task("ioi", seed=1), world.task("ioi", seed=1), world.task("ioi", seed=2)
    assert one.prompts == again.prompts and one.labels == again.labels and one.prompts != other.prompts
    assert world.task("ioi", n=50).prompts == world.task("ioi", n=200).prompts[:50]


@pytest.mark.parametrize("name", ["facts", "ioi", "addition", "refusal_harmful", "unknown", "sentiment", "verdict"])
def test_splits_do_not_meet(name):
    parts = [set(world.task(name, split, 150).prompts) for split in generate.SPLITS]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]


def test_arguments_reach_the_domain():
    assert all(label["known"] for label in world.task("known", n=20).labels)
    assert not any(label["known"] for label in world.task("unknown", n=20).labels)
    assert all(p.endswith(":") for p in world.task("chain", n=20).prompts)
    assert all(p.endswith("=") for p in world.task("chain_direct", n=20).prompts)
    assert all(p.endswith("=") for p in world.task("chain", n=20, scratchpad=False).prompts)


def test_a_small_split_gives_what_there_is():
    t = world.task("instruction", "test", 500)
    assert len(t) < 100 and len(set(t.prompts)) == len(t)


def test_where_finds_items_by_label():
    t = world.task("context", "test", 100).where(conflict=False)
    assert len(t) > 5
    for prompt, target in zip(t.prompts, t.targets):
        moved, asked = re.search(r"note : (.+) moved", prompt)[1], re.search(r"so (.+) is in", prompt)[1]
        assert moved != asked and target == the_world().landmarks[asked]["place"]


def test_documents_per_domain():
    texts = world.documents("test", 5)
    assert set(texts) == set(generate.DOMAINS) and all(len(own) == 5 for own in texts.values())
    assert texts == world.documents("test", 5) != world.documents("test", 5, seed=1)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="task 'weather' is unknown"):
        world.task("weather")
    with pytest.raises(ValueError, match="n is 0"):
        world.task("ioi", n=0)
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        world.task("ioi", "dev")
