"""The world's tokenizer: one word is one token, and it is a real `PreTrainedTokenizerFast`."""

from __future__ import annotations

from functools import lru_cache

from . import generate, lexicon

VOCABULARY_SAMPLE = 600  # items per domain from which the words of the templates are collected


def _strings(value) -> list[str]:
    if isinstance(value, str):
        return value.split()
    if isinstance(value, dict):
        return [w for k, v in value.items() for w in _strings(k) + _strings(v)]
    if isinstance(value, (list, tuple)):
        return [w for v in value for w in _strings(v)]
    return []


@lru_cache
def vocabulary() -> tuple[str, ...]:
    """Every word of the world, in a fixed order: special tokens, punctuation, digits, then all others by alphabet."""
    first = lexicon.SPECIAL + lexicon.PUNCTUATION + lexicon.DIGITS
    world = generate.World(0)
    draw = generate.Draw(world, "train", seed=0)
    words = {
        w
        for domain in generate.DOMAINS
        for _ in range(VOCABULARY_SAMPLE)
        for w in " ".join(generate.document(world, draw, domain)).split()
    }
    lists = (
        lexicon.FIRST,
        lexicon.LAST,
        lexicon.YEARS,
        lexicon.FILLER,
        lexicon.NOUNS,
        lexicon.VERBS,
        lexicon.ANTONYMS,
        lexicon.COUNTRIES,
    )
    words.update(w for group in lists for w in _strings(group))
    return tuple(first + sorted(words - set(first)))


def build_tokenizer():
    """A fast tokenizer: `<bos>` in front, one token per word, words joined by spaces; unknown words become `<unk>`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {w: i for i, w in enumerate(vocabulary())}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
