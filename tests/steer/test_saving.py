import json

import pytest
import torch

import mi_course as mi
from mi_course.steer import saving
from mi_course.steer.decoding import DoLa
from mi_course.steer.steer import Detector, Steer
from mi_course.steer.weights import WeightEdit
from tests.families import random_model

PROMPTS = [[3, 4, 5, 6, 7], [9, 8, 7]]


def every_kind(model):
    g = torch.Generator().manual_seed(0)
    v = torch.randn(model.d_model, generator=g)
    return Steer(
        (
            mi.add("x1", v, 2.0, positions=torch.tensor([1, 2])),
            mi.scale(["L0H1", "L1N3"], -0.5),
            mi.zero("L1H0.z", positions=[0, -1]),
            mi.mean("mlp0", v, positions="prompt"),
            mi.patch("attn0", v, positions=-1),
            mi.project("x2", v),
        ),
        0.6,
        (1.0, 0.5),
        Detector("x0@-1", v, -100.0),
    )


def logits(model, steer):
    with steer.on(model):
        return model(PROMPTS)


def test_a_steer_comes_back_as_it_was(tmp_path):
    model = mi.wrap(random_model("gpt2"))
    steer = every_kind(model)
    file = saving.save(steer, tmp_path / "deep" / "my.steer", model, task="none", accuracy=0.5)
    back = saving.load(tmp_path / "deep" / "my.steer", model)
    assert torch.equal(logits(model, back), logits(model, steer))
    assert (logits(model, back) - model(PROMPTS)).abs().max() > 1e-2
    assert back.strength == 0.6 and back.schedule == (1.0, 0.5) and back.when.threshold == -100
    record = json.loads(file.read_text())
    assert record["facts"] == {"task": "none", "accuracy": 0.5} and record["base"]["fingerprint"] == model.fingerprint()
    assert record["edits"][1]["sites"] == ["L0H1", "L1N3"]
    assert saving.read(file) == record
    assert sorted(f.name for f in file.parent.iterdir()) == ["my.steer.json", "my.steer.safetensors"]


def test_a_weight_edit_comes_back_as_it_was(tmp_path):
    model = mi.wrap(random_model("llama"))
    name = "model.layers.0.mlp.down_proj.weight"
    delta = torch.randn(model.hf.get_parameter(name).T.shape, generator=torch.Generator().manual_seed(0)).T
    edit = WeightEdit({name: delta}, 0.5)
    saving.save(edit, tmp_path / "edit.safetensors", model)
    back = saving.load(tmp_path / "edit.json", model)
    assert back.strength == 0.5 and torch.equal(logits(model, back), logits(model, edit))


@pytest.mark.parametrize("candidates", [None, (2,)])
def test_a_contrast_of_layers_comes_back_as_it_was(tmp_path, candidates):
    model = mi.wrap(random_model("gpt2"))
    dola = DoLa(candidates, alpha=0.3, strength=0.5)
    file = saving.save(dola, tmp_path / "dola", model)
    back = saving.load(tmp_path / "dola", model)
    assert torch.equal(logits(model, back), logits(model, dola)) and back.strength == 0.5
    assert (logits(model, back) - logits(model, DoLa())).abs().max() > 1e-2
    assert saving.read(file)["alpha"] == 0.3


def test_another_model_is_refused(tmp_path):
    model, other = (mi.wrap(random_model("gpt2", seed=seed)) for seed in (0, 1))
    for i, steer in enumerate((Steer(mi.zero("L0H1")), WeightEdit({"lm_head.weight": torch.zeros(1)}), DoLa())):
        saving.save(steer, tmp_path / str(i), model)
        with pytest.raises(ValueError, match=model.fingerprint()):
            saving.load(tmp_path / str(i), other)


def test_what_cannot_be_saved_is_said_before_anything_is_written(tmp_path):
    model = mi.wrap(random_model("gpt2"))
    with pytest.raises(TypeError, match="'edit' cannot be saved"):
        saving.save(Steer(mi.edit("x1", lambda x: x)), tmp_path / "f", model)
    with pytest.raises(TypeError, match="Intervention cannot be saved"):
        saving.save(mi.zero("x1"), tmp_path / "f", model)
    with pytest.raises(TypeError, match="JSON"):
        saving.save(Steer(mi.zero("x1")), tmp_path / "f", model, when=object())
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileNotFoundError, match="is missing"):
        saving.load(tmp_path / "f", model)
