"""One word is one token, nothing is unknown, and the shipped tokenizer is the one that the code builds."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from mi_course import assets
from mi_course.world import generate, lexicon
from mi_course.world.tokenizer import build_tokenizer, vocabulary


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@pytest.mark.parametrize("split", generate.SPLITS)
def test_documents_go_through_and_back(tokenizer, split):
    world = generate.World(0)
    draw = generate.Draw(world, split, seed=77)
    for domain in generate.ALL_DOMAINS:
        for _ in range(60):
            text = " ".join(generate.document(world, draw, domain)).strip()
            ids = tokenizer(text)["input_ids"]
            assert ids[0] == tokenizer.bos_token_id and len(ids) == len(text.split()) + 1, text
            assert tokenizer.unk_token_id not in ids, text
            assert tokenizer.decode(ids[1:]) == text
            assert tokenizer.decode(ids, skip_special_tokens=True).split()[-1] == text.split()[-1]


def test_special_tokens(tokenizer):
    assert isinstance(tokenizer, PreTrainedTokenizerFast) and tokenizer.is_fast
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert tokenizer("anna xyzzy")["input_ids"][1:] == [
        tokenizer.convert_tokens_to_ids("anna"), tokenizer.unk_token_id
    ]
    assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    assert len({tokenizer.convert_tokens_to_ids(w) for w in lexicon.SPECIAL}) == len(lexicon.SPECIAL)


def words_in(value):
    """All single words of the lexicon's lists, whatever their nesting."""
    if isinstance(value, str):
        return set(value.replace("{v}", "").replace("{o}", "").split())
    if isinstance(value, dict):  # language codes are keys, not words
        return words_in([k for k in value if k not in lexicon.LANGUAGES]) | words_in(list(value.values()))
    if isinstance(value, (list, tuple, set)):
        return set().union(*map(words_in, value))
    return set()


def test_every_word_of_the_lexicon_is_a_token():
    lists = {name: value for name, value in vars(lexicon).items() if name.isupper() and name != "LANGUAGES"}
    missing = {name: words_in(value) - set(vocabulary()) for name, value in lists.items()}
    assert not {name: words for name, words in missing.items() if words}


def test_vocabulary_is_the_shipped_one(tokenizer):
    shipped = json.loads((assets.FOLDER / "lab" / "tokenizer.json").read_text())["model"]["vocab"]
    assert [w for w, _ in sorted(shipped.items(), key=lambda pair: pair[1])] == list(vocabulary())
    assert tokenizer.get_vocab() == shipped and len(set(vocabulary())) == len(vocabulary())
