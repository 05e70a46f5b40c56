import pytest
import torch

import mi_course as mi
from mi_course.steer import WeightEdit
from mi_course.world import edit_facts


@pytest.fixture(scope="module")
def lab():
    return mi.load("lab")


@pytest.fixture(scope="module")
def facts(lab):
    return edit_facts.known_facts(lab, "validation", 3)


def test_a_fact_is_known_and_its_questions_mean_what_they_say(lab, facts):
    world = edit_facts.world()
    assert len(facts) == 3
    for fact in facts:
        old, new = (lab.tokens([i])[-1] for i in (fact.old, fact.new))
        assert world.landmarks[fact.subject][fact.relation] == old != new
        assert (edit_facts.next_words(lab, fact.prompts[:1]) == fact.old).all()
        assert len(fact.neighbours) == edit_facts.NEIGHBOURS
        for prompt, answer in [*fact.neighbours, *fact.siblings]:
            assert edit_facts.next_words(lab, [prompt]).item() == answer
        assert all(fact.subject not in prompt for prompt, _ in fact.neighbours)
        assert all(fact.subject in prompt for prompt, _ in fact.siblings)
        # positions count real tokens, <bos> first: the subject's last word stands there
        for prompt, position in [*zip(fact.prompts, fact.positions), fact.essence]:
            words = lab.tokens(lab.tokenize([prompt]).ids[0].tolist())
            assert words[position] == fact.subject.split()[-1]


def test_no_edit_scores_as_the_model(lab, facts):
    score = edit_facts.score_each(lab, facts, [WeightEdit({})] * 3)
    assert score["efficacy"] == (0, 3)
    assert score["neighbours"] == (3 * edit_facts.NEIGHBOURS, 3 * edit_facts.NEIGHBOURS)
    # of facts that are edited together, none is the neighbour of another
    right, asked = edit_facts.score(lab, facts, WeightEdit({}))["neighbours"]
    edited = {fact.subject for fact in facts}
    assert right == asked == sum(not any(s in p for s in edited) for f in facts for p, _ in f.neighbours)


def test_edits_made_together_are_those_made_alone(lab, facts):
    together = edit_facts.solve(lab, facts[:2])
    (alone,) = edit_facts.solve(lab, facts[1:2])
    for name, delta in alone.deltas.items():
        assert torch.allclose(together[1].deltas[name], delta, atol=1e-3 * delta.abs().max().item())


def test_an_edit_changes_its_fact_and_leaves_the_model(lab, facts):
    before = {name: p.clone() for name, p in lab.hf.named_parameters()}
    (edit,) = edit_facts.solve(lab, facts[:1])
    assert edit_facts.score(lab, facts[:1], edit)["efficacy"] == (1, 1)
    assert edit_facts.score(lab, facts[:1], edit.scaled(0.0))["efficacy"] == (0, 1)
    assert all(torch.equal(before[name], p) for name, p in lab.hf.named_parameters())


def test_the_stored_edits_reach_the_bars():
    stored = edit_facts.stored()["sharp"]
    share = {name: right / asked for name, (right, asked) in stored["ROME"].items()}
    assert stored["facts"] == 100 and stored["CPU seconds an edit"] <= 2
    assert share["efficacy"] >= 0.99 and share["paraphrases"] >= 0.9 and share["neighbours"] >= 0.99
    # what stays lost has a word in common with the edited subject
    right, asked = stored["by shared word"]["none"]
    assert right == asked


def test_a_sharp_edit_gives_the_value_at_every_mention(lab, facts):
    fact, C = facts[0], edit_facts.editing.second_moments(lab)[0]
    texts, ends = edit_facts.mentions(fact)
    (edit,) = edit_facts.solve_sharply(lab, [fact], C)
    with edit.on(lab):
        written = [lab_state(lab, text, end) for text, end in zip(texts, ends)]
    for state in written[1:]:
        assert (state - written[0]).norm() < 0.02 * written[0].norm()


def lab_state(lab, text, end):
    """What FFN 0 writes at one token."""
    return mi.record(lab, [text], [f"mlp{edit_facts.LAYER}"])[f"mlp{edit_facts.LAYER}"][0, end]


def test_mentions_end_with_the_subject(lab, facts):
    for fact in [*facts, *edit_facts.known_facts(lab, "validation", 1, "attributes")]:
        texts, ends = edit_facts.mentions(fact)
        assert len(texts) >= 10 and len(set(texts)) == len(texts)
        assert all(text.endswith(fact.subject) for text in texts)
        assert [len(ids) - 1 for ids in map(lambda text: lab.tokenize([text]).ids[0], texts)] == ends
        fewer, _ = edit_facts.mentions(fact, unlike_questions=True)
        assert 5 <= len(fewer) and set(fewer) <= set(texts)
        assert not any(q.startswith(text) for text in fewer for q in [*fact.prompts, *fact.paraphrases])


@pytest.mark.slow
def test_edits_reach_the_bars(lab):
    facts = edit_facts.known_facts(lab, "test", 30)

    def shares(edits):
        return {name: right / asked for name, (right, asked) in edit_facts.score_each(lab, facts, edits).items()}

    plain = edit_facts.solve(lab, facts)
    wide = shares(plain)
    sharp = shares(edit_facts.solve_sharply(lab, facts, edit_facts.fact_moments(lab)))
    assert wide["efficacy"] >= 0.99 and wide["paraphrases"] >= 0.9
    assert sharp["efficacy"] >= 0.99 and sharp["paraphrases"] >= 0.9 and sharp["neighbours"] >= 0.99
    assert wide["neighbours"] < sharp["neighbours"]
    lost = {word: 1 - right / asked for word, (right, asked) in edit_facts.by_shared_word(lab, facts, plain).items()}
    assert lost["none"] < 0.01 < lost["last"]
