"""Making, keeping and loading transcoders, on a tiny model; and the ones that ship, against what was written down."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import mi_course as mi
from mi_course import assets, world
from mi_course.locate.feature_graph import attribution_graph
from mi_course.models import intervene
from mi_course.objects.transcoder import Transcoder, states
from mi_course.world import transcoders
from mi_course.world.tokenizer import build_tokenizer, vocabulary

RECIPE = {"m": 24, "kind": "topk", "k": 4}


def tiny(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(vocabulary()), n_embd=16, n_layer=2, n_head=2, n_positions=96)
    return mi.wrap(GPT2LMHeadModel(config), build_tokenizer())


def test_what_is_measured_is_what_is_stored_and_what_is_there_is_kept(tmp_path, capsys):
    model = tiny()
    done = transcoders.make(model, tmp_path, n=2, recipe=RECIPE, steps=20)
    texts = [text for texts in world.documents("test", n=1, seed=17).values() for text in texts]
    for layer in range(2):
        kept = Transcoder.load(tmp_path / f"mlp{layer}.safetensors", model)
        assert (kept.layer, kept.kind, kept.k, len(kept.b_enc)) == (layer, "topk", 4, 24)
        for key, value in kept.quality(*states(model, layer, texts)).items():
            assert done[f"mlp{layer}"][key] == pytest.approx(value, abs=1e-5)
    assert json.loads((tmp_path / "measured.json").read_text()) == done
    assert transcoders.make(model, tmp_path, n=2, recipe=RECIPE, steps=20) == done
    assert capsys.readouterr().out.count("there already") == 2


# --- what ships ------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lab():
    return mi.load()


def test_what_ships_is_as_good_as_it_says(lab):
    assert not assets.check(transcoders.ASSET) and transcoders.names() == [f"mlp{i}" for i in range(lab.n_layers)]
    texts = [t for ts in world.documents("test", n=1, seed=5).values() for t in ts]
    for name, facts in transcoders.measured().items():
        assert facts["settings"]["fingerprint"] == lab.fingerprint()
        assert facts["fvu"] < 0.15 and facts["l0"] < 16.5 and facts["dead"] < 0.25 and facts["loss_recovered"] > 0.9
        t = world.transcoder(name, lab)
        now = t.quality(*states(lab, t.layer, texts))                          # documents nobody measured on
        assert now["fvu"] == pytest.approx(facts["fvu"], rel=0.25) and now["l0"] == pytest.approx(facts["l0"], rel=0.1)
    with pytest.raises(KeyError, match="there are: mlp0, mlp1"):
        world.transcoder("mlp9", lab)


def test_a_graph_on_lab_predicts_what_ablation_does_better_than_chance(lab):
    """Sign and rough size for the top features, and little for random ones of the same prompts."""
    made = transcoders.all_layers(lab)
    items = [world.task(name, n=3).subset([i]) for name in ("antonyms", "capitals") for i in range(3)]
    predicted, measured, at_random = [], [], []
    generator = torch.Generator().manual_seed(0)
    for one in items:
        base = one.measure(lab).item()
        graph = attribution_graph(lab, made, one.prompts[0], one.targets[0], one.foils[0])
        assert graph.replacement() > 0.6 and graph.completeness() > 0.8
        effects = graph.total_effects()
        features = sorted((n for n in effects.sites if "F" in n), key=lambda n: -abs(effects[n]))
        some = [features[j] for j in torch.randperm(len(features), generator=generator)[:6].tolist()]
        for node, found in [(n, measured) for n in features[:6]] + [(n, at_random) for n in some]:
            name, _, t = node.partition("@")
            layer, j = map(int, name.removeprefix("mlp").split("F"))
            with intervene(lab, made[layer].ablate(lab, [j], positions=int(t))):
                found.append(one.measure(lab).item() - base)
        predicted += [effects[n] for n in features[:6]]
    predicted, measured, at_random = map(torch.tensor, (predicted, measured, at_random))
    assert (predicted.sign() == measured.sign()).float().mean() > 0.8
    assert measured.abs().mean() > 5 * at_random.abs().mean()
    assert 0.5 < measured.abs().mean() / predicted.abs().mean() < 2
    assert torch.corrcoef(torch.stack([predicted, measured]))[0, 1] > 0.6
