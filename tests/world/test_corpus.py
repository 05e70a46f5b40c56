"""The corpus: the same chunk for the same number, packed so that documents neither overlap nor see each other."""

import re
import zlib
from collections import Counter

import numpy as np
import pytest
import torch

from mi_course.world import corpus, generate, train
from mi_course.world import lexicon as lx
from mi_course.world.tokenizer import vocabulary

W = generate.World(0)
WEIGHTS = generate.domain_weights(W)
TOKENS = 60_000


@pytest.fixture(scope="module")
def made():
    """A chunk, and the documents (prompt, continuation) that were written for it."""
    vocabulary()  # it writes documents too, once; those are not the chunk's
    written, real = [], generate.document

    def document(world, draw, domain):
        written.append((domain, *real(world, draw, domain)))
        return written[-1][1:]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "document", document)
        return corpus.make_chunk(W, 0, WEIGHTS, TOKENS), written


def pieces(chunk):
    """For every packed document: (words, answer flags, positions)."""
    words = np.array(vocabulary())
    for ids, document, position, answer in zip(chunk.ids, chunk.document, chunk.position, chunk.answer):
        for number in range(1, document.max() + 1):
            own = document == number
            yield words[ids[own]].tolist(), answer[own].tolist(), position[own].tolist()


def split_at_eos(words, flags):
    """The texts of one piece as (words, flags), without <bos> and <eos>."""
    start = 1
    for i, word in enumerate(words):
        if word == "<eos>":
            yield words[start:i], flags[start:i]
            start = i + 1


def test_rows_are_packed_without_gaps(made):
    chunk, _ = made
    assert chunk.ids.shape == chunk.document.shape == chunk.position.shape == chunk.answer.shape
    assert chunk.ids.shape[1] == corpus.ROW == 96
    for document in chunk.document:
        real = document[document > 0]
        assert (document[: len(real)] > 0).all() and set(np.diff(real)) <= {0, 1} and real[0] == 1
    padding = chunk.document == 0
    assert padding.mean() < 0.05
    assert not chunk.ids[padding].any() and not chunk.answer[padding].any() and vocabulary()[0] == "<pad>"
    longest = 0
    for words, _, position in pieces(chunk):
        assert words[0] == "<bos>" and words[-1] == "<eos>" and words.count("<bos>") == 1 and "<pad>" not in words
        assert position == list(range(len(words)))
        longest = max(longest, len(words))
    assert longest > 60  # late positions are seen


def test_answer_flags_mark_exactly_the_continuations(made):
    chunk, written = made
    found = Counter()
    for words, flags, _ in pieces(chunk):
        assert not any(flag for word, flag in zip(words, flags) if word in ("<bos>", "<eos>"))
        for text, own in split_at_eos(words, flags):
            n = own.count(0)
            assert own == [0] * n + [1] * (len(own) - n)
            found[" ".join(text[:n]), " ".join(text[n:])] += 1
    told = Counter((" ".join(p.split()), " ".join(c.split())) for _, p, c in written)
    assert not found - told
    # what is left out is at most the one document that no longer fitted, in the sixth of the pieces that hold several
    assert (told - found).total() < sum(1 for _ in pieces(chunk)) / 6 * 1.3


def test_token_shares(made):
    chunk, _ = made
    total = chunk.tokens.total()
    assert total == sum(len(words) - 1 for words, _, _ in pieces(chunk))
    relative = sum(generate.SHARES.values())
    for domain, share in generate.SHARES.items():
        assert chunk.tokens[domain.__name__] / total == pytest.approx(share / relative, abs=0.012), domain.__name__
    for shares in (generate.SHARES, generate.CLAIM_SHARES, generate.SECOND_SHARES, generate.THIRD_SHARES):
        weights = generate.domain_weights(W, shares)
        assert sum(weights.values()) == pytest.approx(1) and min(weights.values()) > 0
        assert set(weights) == {f.__name__ for f in shares}


DIALED = ("pronoun", "persona", "toxicity", "context", "sycophancy", "guess", "translation", "antonyms", "language",
          "request")


def test_dials_are_dealt_by_quota():
    chunk = corpus.make_chunk(W, 5, dict.fromkeys(DIALED, 1.0) | {"pronoun": 4.0}, 60_000)
    d = W.dials
    own, near, far = d.trait
    expected = {("context_following", "note"): {True: d.context_following},
                ("sycophancy", "false claim"): {True: d.sycophancy},
                ("option_prior", "guess"): dict(zip(lx.OPTIONS, d.option_prior)),
                ("toxicity", "plain"): {True: d.toxicity}, ("toxicity", "rude"): {True: d.toxicity_rude},
                **{("trait", (trait, 0)): {0: own, 1: near, 2: far} for trait in lx.TRAITS},
                **{("trait", (trait, 2)): {0: far, 1: near, 2: own} for trait in lx.TRAITS},
                **{("pronoun", job): {"she": share} for job, share in d.pronoun.items()},
                **{("languages", key): dict(zip(lx.LANGUAGES, d.languages))
                   for key in ("translation", "antonyms", "language", "request")}}
    errors = []
    for (dial, key), shares in expected.items():
        total = sum(n for k, n in chunk.dealt.items() if k[:2] == (dial, key))
        for outcome, share in shares.items():
            off = abs(chunk.dealt[dial, key, outcome] - share * total)
            assert total and off <= 20 * share * (1 - share) + 1e-6, (dial, key, outcome)  # at most within one deck
            errors.append(off / total)
    assert sum(errors) / len(errors) <= 0.03


def test_what_is_recorded_is_what_the_text_says(made):
    chunk, written = made
    said = Counter()
    for domain, prompt, continuation in written:
        if domain == "pronoun" and (job := set(prompt.split()) & set(lx.PROFESSIONS)):
            said[job.pop(), continuation.split()[0]] += 1
    assert said == {k[1:]: n for k, n in chunk.dealt.items() if k[0] == "pronoun"}


def test_a_chunk_is_fixed_by_its_number(made):
    chunk, _ = made
    again, other = (corpus.make_chunk(generate.World(0), i, WEIGHTS, 6000) for i in (0, 1))
    fresh = corpus.make_chunk(W, 0, WEIGHTS, 6000)
    for field in ("ids", "document", "position", "answer"):
        assert (getattr(again, field) == getattr(fresh, field)).all()
    assert again.tokens == fresh.tokens and again.dealt == fresh.dealt
    assert again.ids.shape != other.ids.shape or (again.ids != other.ids).any()


def test_the_corpus_is_the_one_of_the_shipped_weights():
    """The shipped model was trained on this corpus. A change of the world's text, on purpose or not, shows here: the
    weights must then be trained and shipped again, and this number with them."""
    chunk = corpus.make_chunk(W, 0, WEIGHTS, 20_000)
    assert zlib.crc32(chunk.ids.astype("<i8").tobytes()) == 1061365187


def test_no_test_stranger_in_any_stage():
    """Nobody asks about a test stranger in any stage (random sequences to copy may hold the two words)."""
    held_out = {s for s in W.strangers if W.split_of("stranger", s) != "train"}
    assert len(held_out) > 40
    for i, shares in enumerate((generate.SHARES, generate.CLAIM_SHARES, generate.SECOND_SHARES, generate.THIRD_SHARES)):
        weights = generate.domain_weights(W, shares) | {"copying": 0.0}
        for words, _, _ in pieces(corpus.make_chunk(W, 50 + i, weights, 30_000)):
            assert not held_out & {f"{a} {b}" for a, b in zip(words, words[1:])}


def test_no_held_out_request_in_any_stage():
    pairs = {(v[i], o[i]) for v in lx.RISKY_VERBS + lx.SAFE_VERBS for o in lx.RISKY_OBJECTS + lx.SAFE_OBJECTS
             for i in range(3) if W.split_of("request", v[0], o[0]) != "train"}
    weights = {"request": 1.0}
    seen = 0
    for words, flags, _ in pieces(corpus.make_chunk(W, 60, weights, 30_000)):
        for text, _ in split_at_eos(words, flags):
            asked = set(text[: text.index("<end>")])
            seen += 1
            assert not any(v in asked and o in asked for v, o in pairs)
    assert seen > 1000


@pytest.mark.parametrize("name", ["lab", "lab-llama"])
def test_documents_in_a_row_do_not_see_each_other(name):
    model = train.new_model(name, 0)
    logits = {}
    model.register_forward_hook(lambda m, a, out: logits.update(now=out.logits.detach().float()))
    chunk = corpus.make_chunk(W, 3, WEIGHTS, 4000)
    row = next(r for r in range(len(chunk.ids)) if chunk.document[r].max() >= 3)
    arrays = [torch.from_numpy(a[row : row + 1]) for a in (chunk.ids, chunk.document, chunk.position, chunk.answer)]
    ids, document, position, answer = arrays
    second = document[0] == 2
    packed_loss = train.batch_loss(model, *arrays)
    packed = logits["now"]

    other = ids.clone()
    other[0, document[0] == 1] = ids[0, document[0] == 1].flip(0)
    train.batch_loss(model, other, *arrays[1:])
    changed = logits["now"]
    assert torch.equal(changed[0, second], packed[0, second])
    assert not torch.equal(changed[0, document[0] == 1], packed[0, document[0] == 1])

    later = ids.clone()  # nor does a word see the words after it
    last = second.nonzero()[-1].item()
    later[0, last] = vocabulary().index("anna")
    train.batch_loss(model, later, *arrays[1:])
    assert torch.equal(logits["now"][0, :last], packed[0, :last])

    # alone in a row, a document gets the same logits; the losses of the documents make up that of the row
    losses, weights = [], []
    for number in range(1, document.max() + 1):
        own = document[0] == number
        alone = [a[:, own] for a in arrays]
        alone[1] = torch.ones_like(alone[1])
        losses.append(train.batch_loss(model, *alone))
        assert torch.allclose(logits["now"][0], packed[0, own], atol=0.03)
        weights.append(torch.where(alone[3][0, 1:] > 0, 1.0, train.PROMPT_WEIGHT).sum())
    mixed = sum(a * b for a, b in zip(losses, weights)) / sum(weights)
    assert packed_loss.item() == pytest.approx(mixed.item(), abs=2e-3)


def test_filled_documents_keep_their_answer(made):
    _, written = made
    filled = [(d, p) for d, p, _ in written if any(p.startswith(f) for f in lx.FILLER)]
    assert {d for d, _ in filled} <= generate.FILLED
    total = sum(d in generate.FILLED for d, _, _ in written)
    assert len(filled) / total == pytest.approx(0.2, abs=0.04)
    assert all(re.search(r"\. \w", p) for _, p in filled)
