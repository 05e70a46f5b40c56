import math

import pytest
import torch

import mi_course as mi
from mi_course.locate.magnitude import LanguageNeurons, activation_probability, entropy_over, lape
from mi_course.world import compiled
from tests.families import random_model


def test_entropy_over_languages():
    p = torch.tensor([[0.8, 0.2, 0.0, 0.3], [0.0, 0.2, 0.0, 0.1]])
    expected = [0.0, math.log(2), math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert entropy_over(p).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(entropy_over(p), entropy_over(p * torch.tensor([1, 0.1, 1, 3])), atol=1e-6)  # rates only


def test_a_dead_neuron_is_not_selective():
    assert entropy_over(torch.zeros(3, 2)).tolist() == pytest.approx([math.log(3)] * 2)


def planted():
    """3 languages, 2 layers of 50 neurons; L1N7 speaks language 0 only, L0N3 languages 1 and 2, the rest all."""
    probability = 0.3 + 0.1 * torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0))
    probability[:, 1, 7] = torch.tensor([0.9, 0.0, 0.0])
    probability[:, 0, 3] = torch.tensor([0.0, 0.8, 0.8])
    probability[:, 0, 9] = torch.tensor([0.01, 0.0, 0.0])  # selective, but almost never on
    return LanguageNeurons(["a", "b", "c"], probability, entropy_over(probability))


def test_select_finds_the_planted_neurons():
    chosen = planted().select(top_rate=0.02, bar=0.95)
    assert chosen == {"a": ["L1N7"], "b": ["L0N3"], "c": ["L0N3"]}


def test_select_never_takes_rare_neurons_and_orders_by_entropy():
    result = planted()
    chosen = result.select(top_rate=0.5, bar=0.95)
    everything = [site for sites in chosen.values() for site in sites]
    assert "L0N9" not in everything
    assert chosen["a"][0] == "L1N7"
    with pytest.raises(ValueError, match="top_rate"):
        result.select(top_rate=0)


def test_activation_probability_counts_real_tokens():
    documents = [[0, 5, 6, 7], [0, 9]]
    for family, kind in (("gpt2", "neurons"), ("llama", "gate")):
        model = mi.wrap(random_model(family))
        counted = [mi.record(model, [d], [f"{kind}1"])[f"{kind}1"][0] > 0 for d in documents]
        p = activation_probability(model, documents, batch_size=2)
        assert p.shape == (model.n_layers, model.d_ffn)
        assert torch.allclose(p[1], torch.cat(counted).float().mean(0))
        assert torch.allclose(activation_probability(model, documents, batch_size=1), p)
        at_end = torch.stack([c[-1] for c in counted]).float().mean(0)
        assert torch.allclose(activation_probability(model, documents, position=-1)[1], at_end)
    with pytest.raises(ValueError, match="empty"):
        activation_probability(model, [])


def test_lape_finds_the_neurons_of_a_compiled_look_up():
    c = compiled.lookup()
    by_subject = {}
    for prompt, label in zip(c.task.prompts, c.task.labels):
        by_subject.setdefault(label["subject"], []).append(prompt)
    result = lape(c.wrap(), by_subject)
    assert result.languages == list(by_subject)
    assert result.entropy[0, : len(by_subject)].max() < 1e-6  # neuron j fires for subject j only
    assert result.entropy[0, len(by_subject) :] == pytest.approx(math.log(len(by_subject)))  # the decoys fire for all
    chosen = result.select(top_rate=6 / 16, bar=0.5)
    assert chosen == {subject: [f"L0N{j}"] for j, subject in enumerate(by_subject)}
    with pytest.raises(ValueError, match="two languages"):
        lape(c.wrap(), {"one": ["the capital of peru is"]})
