"""Making, keeping and loading SAEs, on a tiny model; and the ones that ship, against what was written down."""

import json

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import mi_course as mi
from mi_course import assets, world
from mi_course.objects.sae import SAE, loss_recovered, states
from mi_course.world import saes
from mi_course.world.tokenizer import build_tokenizer, vocabulary

TWO = {"x1-topk": {"kind": "topk", "k": 4}, "x1-matryoshka": {"kind": "batchtopk", "k": 4, "prefixes": (8, 512)}}


def tiny(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(vocabulary()), n_embd=16, n_layer=2, n_head=2, n_positions=96)
    return mi.wrap(GPT2LMHeadModel(config), build_tokenizer())


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def made(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("assets") / "lab" / "saes"
    return out, saes.make(model, out, TWO, n=2, steps=20)


@pytest.fixture
def shelf(made, monkeypatch):
    """The tiny model's SAEs in the place of the shipped ones."""
    folder = made[0].parent.parent
    monkeypatch.setattr(assets, "FOLDER", folder)
    assets.register(saes.ASSET, [*made[0].glob("*.safetensors"), made[0] / "measured.json"])
    return folder


def test_what_is_measured_is_what_is_stored(model, made):
    out, done = made
    texts = [text for texts in world.documents("test", n=1, seed=17).values() for text in texts]
    x = states(model, "x1", texts)
    for name in TWO:
        sae = SAE.load(out / f"{name}.safetensors", model)
        assert (sae.site, sae.kind, len(sae.b_enc)) == ("x1", TWO[name]["kind"], saes.FEATURES)
        for key, value in sae.quality(x).items():
            assert done[name][key] == pytest.approx(value, abs=1e-5)
        assert done[name]["loss_recovered_mean"] == pytest.approx(loss_recovered(model, sae, texts, "mean"), abs=1e-4)
    assert json.loads((out / "measured.json").read_text()) == done


def test_making_again_keeps_what_fits_and_remakes_what_does_not(model, made, tmp_path, capsys):
    out, done = made
    for name in ("measured.json", *(f"{n}.safetensors" for n in TWO)):
        (tmp_path / name).write_bytes((out / name).read_bytes())
    (tmp_path / "x1-topk.safetensors").unlink()                                # as if interrupted
    stamp = (tmp_path / "x1-matryoshka.safetensors").stat().st_mtime_ns
    again = saes.make(model, tmp_path, TWO, n=2, steps=20)
    assert "x1-matryoshka: there already" in capsys.readouterr().out
    assert (tmp_path / "x1-matryoshka.safetensors").stat().st_mtime_ns == stamp
    assert {k: v for k, v in again["x1-topk"].items() if k != "seconds"} == {
        k: v for k, v in done["x1-topk"].items() if k != "seconds"}            # same seed, same SAE
    other = saes.make(tiny(1), tmp_path, {"x1-topk": TWO["x1-topk"]}, n=2, steps=5)
    assert other["x1-topk"]["settings"]["fingerprint"] != done["x1-topk"]["settings"]["fingerprint"]


def test_loading_by_name(model, shelf):
    assert saes.names() == sorted(TWO) and set(saes.measured()) == set(TWO)
    model.saes["x1-topk"] = world.sae("x1-topk", model)
    cache = mi.record(model, ["the opposite of hot is"], ["x1-topkF7", "x1-topkF*"])
    assert torch.equal(cache["x1-topkF7"], cache["x1-topkF*"][..., 7])
    with pytest.raises(KeyError, match="there are: x1-matryoshka, x1-topk"):
        world.sae("x9-topk", model)
    with pytest.raises(ValueError, match="another model"):
        world.sae("x1-topk", tiny(1))
    file = shelf / "lab" / "saes" / "x1-topk.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + b"!")
    with pytest.raises(assets.AssetError, match="not the file that was shipped"):
        world.sae("x1-topk", model)
    file.write_bytes(whole)


# --- what ships ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", saes.RECIPES)
def test_what_ships_is_as_good_as_it_says(name):
    assert not assets.check(saes.ASSET) and saes.names() == sorted(saes.RECIPES)
    facts, lab = saes.measured()[name], mi.load()
    assert facts["settings"]["fingerprint"] == lab.fingerprint()
    assert facts["fvu"] < 0.12 and 12 < facts["l0"] < 20 and facts["dead"] < 0.15
    assert facts["loss_recovered_mean"] > 0.99 and facts["loss_recovered_zero"] > 0.99
    sae, texts = world.sae(name, lab), [t for ts in world.documents("test", n=3, seed=5).values() for t in ts]
    now = sae.quality(states(lab, sae.site, texts))                            # documents nobody measured on
    assert now["fvu"] == pytest.approx(facts["fvu"], rel=0.2) and now["l0"] == pytest.approx(facts["l0"], rel=0.1)
    assert ("relu" == sae.kind) == (now["shrinkage"] > 0.05)                   # the L1 penalty alone shrinks
    assert SAE(128, saes.FEATURES).quality(states(lab, sae.site, texts[:9]))["fvu"] > 5 * now["fvu"]
