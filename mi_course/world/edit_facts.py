"""How well can facts of a lab model be edited? One edit, a hundred, in which layer; with paraphrases and neighbours.

    facts = known_facts(model, "test", 100)       what the model knows: new answer, paraphrases, neighbours
    edits = solve(model, facts)                   a ROME edit for each
    score(model, facts[:1], edits[0])             what one edit does

    python -m mi_course.world.edit_facts          measures all that is stored; stored() reads it; 15 minutes of one core

A fact is edited towards another subject's answer to the same question. Settings were chosen on validation facts.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from .. import assets
from ..evaluate import document_loss, rank_correlation
from ..locate.tracing import causal_trace
from ..models import Model, load
from ..objects import Task
from ..steer import WeightEdit, editing, merging
from . import generate, lexicon
from .tasks import documents, world
from .tasks import task as world_task

ASSET = "lab/edit_facts.json"
NEIGHBOURS = 12
LAYER, DECAY = 0, 1.0  # chosen on 24 validation facts among layers 0-3 and decays .5-2.5
# Of `solve_sharply`, chosen on 40 validation facts, none of them a test fact: decay among .5, 1, 2, 3, lambda among
# .01 to 300. From .01 to 30 lambda makes no difference.
SHARP_DECAY, SHARP_LAMBDA = 2.0, 1.0
TELLING = ("facts", "foreign_facts", "profile")  # domains whose documents are about landmarks
MEMIT_LAYERS, LAMBDA = (0, 1), 300.0  # chosen on 20 validation facts edited together
# Text before the fact, for a key and a value that do not depend on it.
CONTEXTS = ("", *(f"{filler} " for filler in lexicon.FILLER[:2]))
SUBJECTS = {"facts": ("landmarks", "guide"), "attributes": ("people", "person")}  # task -> table, word before a subject
OTHER_DOMAINS = ("capitals", "translation", "antonyms", "ioi", "sentiment", "retrieval", "verdict", "refusal_harmful")
COUNTS = (1, 3, 10, 30, 100)


@dataclass(frozen=True)
class Fact:
    """One thing the model knows, and what it shall say instead.

    prompts, positions  the question after each of `CONTEXTS`, and the subject's last token in it
    old, new            token ids of the two answers
    paraphrases         the question in other words, and before other words
    neighbours          (question, token id of its answer): the same about other subjects, answered rightly
    siblings            the same for other questions about this subject
    essence             a prompt about the subject that asks nothing, and the subject's last token in it
    """

    subject: str
    relation: str
    prompts: list[str]
    positions: list[int]
    old: int
    new: int
    paraphrases: list[str]
    neighbours: list[tuple[str, int]]
    siblings: list[tuple[str, int]]
    essence: tuple[str, int]


def next_words(model: Model, prompts: Sequence[str]) -> torch.Tensor:
    """[n], the most likely next token of each prompt."""
    return torch.cat([model.last_logits(prompts[i : i + 256]).argmax(-1) for i in range(0, len(prompts), 256)])


def known_facts(
    model: Model, split: str, n: int, name: str = "facts", neighbours: int = NEIGHBOURS, distinct: bool = False
) -> list[Fact]:
    """At most n facts that the model knows, each with that many neighbours that it knows, too.

    name: "facts" (about landmarks) or "attributes" (of people). distinct: no subject twice.
    """
    table, kind = SUBJECTS[name]
    table, task = getattr(world(), table), world_task(name, split, 6 * n)
    known, found = next_words(model, task.prompts) == task.target_ids(model), []
    for i in known.nonzero()[:, 0].tolist():
        prompt, label = task.prompts[i], task.labels[i]
        subject, relation, (start, end) = label["subject_text"], label["relation"], label["subject"]
        if distinct and any(fact.subject == subject for fact in found):
            continue
        others = [s for s in table if s != subject and table[s][relation] != task.foils[i]]
        random.Random(i).shuffle(others)
        about = [(prompt.replace(subject, s), table[s][relation]) for s in others[: 2 * neighbours]]
        near = _right(model, about)[:neighbours]
        if len(near) < neighbours:
            continue
        own = [
            (p, t)
            for p, t, other in zip(task.prompts, task.targets, task.labels)
            if other["subject_text"] == subject and other["relation"] != relation
        ]
        found.append(
            Fact(
                subject=subject,
                relation=relation,
                prompts=[context + prompt for context in CONTEXTS],
                positions=[len(context.split()) + end for context in CONTEXTS],  # <bos> comes first
                old=int(task.target_ids(model)[i]),
                new=int(task.foil_ids(model)[i]),
                paraphrases=list(label["paraphrases"]),
                neighbours=near,
                siblings=_right(model, own),
                essence=(f"{kind} : {subject}", 2 + end - start),
            )
        )
        if len(found) == n:
            break
    return found


def _right(model: Model, asked: Sequence[tuple[str, str]]) -> list[tuple[str, int]]:
    """The (prompt, answer) pairs that the model gets right, with the answer as a token id."""
    if not asked:
        return []
    prompts, answers = zip(*asked)
    ids = torch.tensor([model.token_id(answer) for answer in answers])
    keep = (next_words(model, prompts) == ids).tolist()
    return [(p, i) for p, i, right in zip(prompts, ids.tolist(), keep) if right]


# --- editing --------------------------------------------------------------------------------------------------------
def _asked(facts: Sequence[Fact]) -> dict:
    """Arguments of `editing.optimise_deltas` for these facts."""
    essence = ([fact.essence[0] for fact in facts], [fact.essence[1] for fact in facts])
    return {"prompts": [f.prompts for f in facts], "positions": [f.positions for f in facts], "essence": essence}


def solve(model: Model, facts: Sequence[Fact], layer: int = LAYER, C: torch.Tensor | None = None) -> list[WeightEdit]:
    """One ROME edit for each fact, each for the unedited model; the values are optimised together."""
    C = editing.second_moments(model)[layer] if C is None else C
    asked = _asked(facts)
    values = editing.optimise_values(model, targets=[f.new for f in facts], layer=layer, decay=DECAY, **asked)
    keys = editing.keys_at(model, asked["prompts"], asked["positions"], layer)
    return [editing.rank_one_edit(model, layer, key, value, C) for key, value in zip(keys, values)]


def mentions(fact: Fact, unlike_questions: bool = False) -> tuple[list[str], list[int]]:
    """Texts that end with the subject, and its last token in each: what precedes it in general and in other relations.

    unlike_questions: leave out those with which a question about the fact begins. Questions start like other sentences
    ("we read that silver garden ..."), and there the key is the same.
    """
    landmark = fact.subject in world().landmarks
    kind, bodies = ("guide", generate.LANDMARK_BODIES) if landmark else ("person", generate.PEOPLE_BODIES)
    before = {body.split("{s}")[0] for relation in bodies if relation != fact.relation for body in bodies[relation]}
    texts = [left + fact.subject for left in sorted(before | {f"{kind} : ", *generate.PREFIXES})]
    if unlike_questions:
        texts = [text for text in texts if not any(q.startswith(text) for q in (*fact.prompts, *fact.paraphrases))]
    return texts, [len(text.split()) for text in texts]  # <bos> comes first


def fact_moments(model: Model, layer: int = LAYER, n: int = 100) -> torch.Tensor:
    """C = E[k^T k], a quarter over all text, as shipped, the rest over n documents of each domain about landmarks."""
    told = documents("train", n)
    own = editing.key_covariance(model, [text for domain in TELLING for text in told[domain]], layer, ridge=0.0)
    return 0.25 * editing.second_moments(model)[layer] + 0.75 * own


def solve_sharply(
    model: Model, facts: Sequence[Fact], C: torch.Tensor, unlike_questions: bool = False
) -> list[WeightEdit]:
    """One fact, several keys: its value is written at each of its `mentions`, with the C of `fact_moments`.

    With the shipped C, the neighbours that are lost are those that share a word with the subject: their keys are
    close to its own and rare in ordinary text, so moving them costs that C little. The other C holds them; then the
    value written at one key reaches the other mentions less surely, so each of them is asked for.
    """
    values = editing.optimise_values(
        model, targets=[f.new for f in facts], layer=LAYER, decay=SHARP_DECAY, **_asked(facts)
    )
    edits = []
    for fact, value in zip(facts, values):
        texts, ends = mentions(fact, unlike_questions)
        keys = editing.keys_at(model, [[text] for text in texts], [[end] for end in ends], LAYER)
        edits.append(editing.ridge_edit(model, LAYER, keys, value, C, SHARP_LAMBDA))
    return edits


def in_turn(model: Model, facts: Sequence[Fact]) -> Iterable[WeightEdit]:
    """ROME again and again, each edit on top of those before. Yields the sum of the edits after each fact."""
    total, C = WeightEdit({}), editing.second_moments(model)[LAYER]  # of the unedited model, as usual
    for fact in facts:
        with total.on(model):
            (edit,) = solve(model, [fact], C=C)
        total = merging.add([total, edit])
        yield total


def at_once(model: Model, facts: Sequence[Fact], layers=MEMIT_LAYERS, lam: float = LAMBDA) -> WeightEdit:
    """One MEMIT edit for all facts."""
    targets = [fact.new for fact in facts]
    return editing.memit(model, targets=targets, layers=layers, lam=lam, decay=DECAY, **_asked(facts))


# --- asking ---------------------------------------------------------------------------------------------------------
def score(model: Model, facts: Sequence[Fact], edit: WeightEdit) -> dict[str, tuple[int, int]]:
    """(right, asked) under one edit: efficacy, paraphrases say the new answer; neighbours, siblings keep theirs.

    Neighbours that are subjects of an edited fact themselves are not asked.
    """
    edited = {fact.subject for fact in facts}
    questions = {
        "efficacy": [(f.prompts[0], f.new) for f in facts],
        "paraphrases": [(p, f.new) for f in facts for p in f.paraphrases],
        "neighbours": [(p, a) for f in facts for p, a in f.neighbours if not any(s in p for s in edited)],
        "siblings": [pair for f in facts for pair in f.siblings],
    }
    asked = [pair for pairs in questions.values() for pair in pairs]
    with edit.on(model):
        right = (next_words(model, [p for p, _ in asked]) == torch.tensor([a for _, a in asked])).tolist()
    result = {}
    for name, pairs in questions.items():
        result[name], right = (sum(right[: len(pairs)]), len(pairs)), right[len(pairs) :]
    return result


def score_each(model: Model, facts: Sequence[Fact], edits: Sequence[WeightEdit]) -> dict[str, tuple[int, int]]:
    """`score` of each edit on its own fact, summed."""
    rows = [score(model, [fact], edit) for fact, edit in zip(facts, edits)]
    return {name: tuple(map(sum, zip(*(row[name] for row in rows)))) for name in rows[0]}


# --- what is stored -------------------------------------------------------------------------------------------------
def single(model: Model, n: int = 100) -> dict:
    """n edits, one at a time, with three controls: another fact's key, C = 1, no edit.

    by shared word: neighbours kept under ROME, by the word that their subject shares with the edited one.
    """
    facts = known_facts(model, "test", n)
    started = time.process_time()
    edits = [solve(model, [fact])[0] for fact in facts]
    seconds = (time.process_time() - started) / len(facts)
    layer, asked = LAYER, _asked(facts)
    values = editing.optimise_values(model, targets=[f.new for f in facts], layer=layer, decay=DECAY, **asked)
    keys = editing.keys_at(model, asked["prompts"], asked["positions"], layer).roll(1, 0)
    C = editing.second_moments(model)[layer]
    wrong = [editing.rank_one_edit(model, layer, key, value, C) for key, value in zip(keys, values)]
    return {
        "facts": len(facts),
        "CPU seconds an edit": round(seconds, 2),
        "ROME": score_each(model, facts, edits),
        "by shared word": by_shared_word(model, facts, edits),
        "key of another fact": score_each(model, facts, wrong),
        "C = 1": score_each(model, facts, solve(model, facts, C=torch.eye(len(C)))),
        "no edit": score_each(model, facts, [WeightEdit({})] * len(facts)),
    }


def by_shared_word(model: Model, facts: Sequence[Fact], edits: Sequence[WeightEdit]) -> dict[str, tuple[int, int]]:
    """(kept, asked) of the neighbours whose subject has the first word, the last word or no word of the edited one."""
    counts = {"first": [0, 0], "last": [0, 0], "none": [0, 0]}
    for fact, edit in zip(facts, edits):
        first, last = fact.subject.split()
        prompts, answers = zip(*fact.neighbours)
        with edit.on(model):
            kept = (next_words(model, prompts) == torch.tensor(answers)).tolist()
        for prompt, right in zip(prompts, kept):
            words = prompt.split()
            group = counts["last" if last in words else "first" if first in words else "none"]
            group[0] += right
            group[1] += 1
    return {name: tuple(count) for name, count in counts.items()}


def sharp(model: Model, n: int = 100) -> dict:
    """The facts of `single`, edited by `solve_sharply`; as a control, without the keys that its questions have."""
    facts, C = known_facts(model, "test", n), fact_moments(model)
    started = time.process_time()
    edits = [solve_sharply(model, [fact], C)[0] for fact in facts]
    seconds = (time.process_time() - started) / len(facts)
    return {
        "facts": len(facts),
        "CPU seconds an edit": round(seconds, 2),
        "ROME": score_each(model, facts, edits),
        "mentions unlike questions": score_each(model, facts, solve_sharply(model, facts, C, unlike_questions=True)),
        "by shared word": by_shared_word(model, facts, edits),
    }


def layers(model: Model, n: int = 40) -> dict:
    """Causal tracing of the FFN writes at the subject's last token, against the success of an edit there (audit A26).

    effect, success: by layer, mean over facts of what restoring the write gives back, and of p(new) after an edit
    over facts: their Spearman correlation over the facts, layer by layer; over layers: that of the two means;
    within facts: mean over facts of the correlation over layers.
    """
    facts = known_facts(model, "test", n)
    words = [model.tokens([i])[-1] for f in facts for i in (f.old, f.new)]
    task = Task("facts", [f.prompts[0] for f in facts], words[::2], foils=words[1::2], metric="prob")
    last = [f.positions[0] for f in facts]
    spans = [(end + 1 - len(f.subject.split()), end + 1) for f, end in zip(facts, last)]
    trace = causal_trace(model, task, spans, {"subject": last}, kind="mlp", draws=3)
    effects = trace.effects[:, :, 0].T  # [layers, facts]
    success = torch.zeros_like(effects)
    for layer in range(model.n_layers - 1):  # in the last one, what the subject writes does not reach the answer: 0
        edits = solve(model, facts, layer)
        success[layer] = torch.stack([_says(model, fact, edit) for fact, edit in zip(facts, edits)])

    within = torch.tensor([rank_correlation(effects[:, i], success[:, i]) for i in range(len(facts))])
    return {
        "effect": effects.mean(1).tolist(),
        "success": success.mean(1).tolist(),
        "over facts": [rank_correlation(a, b) for a, b in zip(effects[:-1], success[:-1])],
        "over layers": rank_correlation(effects.mean(1), success.mean(1)),
        "within facts": float(within.nanmean()),
    }


def _says(model: Model, fact: Fact, edit: WeightEdit) -> torch.Tensor:
    """p(new answer) under the edit."""
    with edit.on(model):
        return model.last_logits(fact.prompts[:1]).softmax(-1)[0, fact.new]


def many(model: Model, counts: Sequence[int] = COUNTS) -> list[dict]:
    """ROME one after another against one MEMIT edit of the same facts: all facts so far, other domains, loss.

    Facts of different landmarks and people in turn: two edits of one subject would write over each other.
    """
    half = -(-max(counts) // 2)
    pairs = zip(*(known_facts(model, "test", half, name, distinct=True) for name in SUBJECTS))
    facts = [fact for pair in pairs for fact in pair][: max(counts)]
    texts = [text for own in documents("test", 8).values() for text in own]
    tasks = [world_task(name, "test", 60) for name in OTHER_DOMAINS]

    def row(method: str, some: Sequence[Fact], edit: WeightEdit) -> dict:
        with edit.on(model):
            accuracy = {task.name: task.accuracy(model) for task in tasks}
            loss = document_loss(model, texts).mean().item()
        return {"method": method, "edits": len(some), **score(model, some, edit), "accuracy": accuracy, "loss": loss}

    rows = [row("no edit", facts, WeightEdit({}))]
    for i, edit in enumerate(tqdm(in_turn(model, facts), total=len(facts), desc="ROME in turn"), 1):
        if i in counts:
            rows.append(row("ROME in turn", facts[:i], edit))
    return rows + [row("MEMIT at once", facts[:n], at_once(model, facts[:n])) for n in counts if n <= len(facts)]


def stored() -> dict:
    """What `python -m mi_course.world.edit_facts` measured: single, sharp, layers, many."""
    return json.loads(assets.path(ASSET).read_text())


PARTS = {"single": single, "sharp": sharp, "layers": layers, "many": many}


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="measure these, keep the others")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model, file = load("lab"), assets.FOLDER / ASSET
    found = json.loads(file.read_text()) if file.exists() else {}
    for part in args.parts:
        found[part] = PARTS[part](model)
        file.write_text(json.dumps(found, indent=1) + "\n")
    assets.register(ASSET, [file], fingerprint=model.fingerprint())


if __name__ == "__main__":
    main()
