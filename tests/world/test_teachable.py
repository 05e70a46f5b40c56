"""The parts of the measures that can be checked without a trained model."""

from types import SimpleNamespace

import pytest
import torch

from mi_course.locate import causal
from mi_course.world import compiled, lexicon, teachable


def test_head_shares_on_a_compiled_model():
    c = compiled.induction()
    model = c.wrap()
    shares = teachable.HeadShares(model, c.task, causal.site_means(model, c.task.prompts, causal.heads(model)))
    assert shares(["L0H0.z", "L1H0.z"])["zero"] == pytest.approx(1.0)
    assert shares(["L0H1.z", "L1H1.z"])["zero"] == pytest.approx(0.0, abs=1e-6)  # the decoys
    assert shares.worst(["L0H1.z"]) <= 1e-6


def test_language_words_belong_to_one_language():
    words = teachable.language_words()
    assert set(words) == set(lexicon.LANGUAGES)
    sets = list(words.values())
    assert not (sets[0] & sets[1] or sets[0] & sets[2] or sets[1] & sets[2])
    assert min(map(len, sets)) > 50 and {"dog", "chien", "hund"} <= set.union(*sets)


def test_random_neurons_match_count_and_layers():
    class Model:
        n_layers, d_ffn = 3, 40

    sites = ["L0N1", "L2N4", "L2N5", "L2N6"]
    for matched in (False, True):
        drawn = teachable._random_neurons(Model, sites, 0, matched)
        assert (
            len(set(drawn)) == 4
            and not set(drawn) & set(sites)
            and drawn != teachable._random_neurons(Model, sites, 1, matched)
        )
    assert teachable._by_layer(Model, drawn) == [1, 0, 3]
    (first, second) = teachable._zero_neurons(Model, sites)
    assert [str(s) for s in first.sites + second.sites] == ["neurons0", "neurons2"]
    kept = second.transform(torch.ones(1, 1, 40), SimpleNamespace(axis=1))  # positions on axis 1
    assert (kept == 0).nonzero()[:, -1].tolist() == [4, 5, 6]


def test_language_documents_are_in_their_language():
    documents = teachable.language_documents(n=20)
    words = teachable.language_words()
    for language, texts in documents.items():
        assert len(texts) == 20
        said = [word for text in texts for word in text.split()]
        own, other = (
            sum(word in group for word in said)
            for group in (words[language], set.union(*(words[o] for o in words if o != language)))
        )
        assert own > 10 * other


def test_rounding_for_json():
    numbers = {("all", 1.0): torch.tensor([0.123456]), 3: (1, 2.00001), "x": None}
    assert teachable.rounded(numbers) == {"all 1.0": [0.1235], "3": [1, 2.0], "x": None}
