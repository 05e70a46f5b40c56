import json

import pytest
import torch

import mi_course as mi
from mi_course.objects.sae import SAE
from mi_course.steer import amplitude, interventions, saving, vectors
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


def test_each_kind_of_edit_comes_back(tmp_path):
    model = mi.wrap(random_model("llama"))
    g = torch.Generator().manual_seed(1)
    v, (R, W) = torch.randn(model.d_model, generator=g), torch.randn(2, 2, model.d_model, generator=g)
    edits = [
        *every_kind(mi.wrap(random_model("gpt2"))).edits[:6],
        interventions.loreft("x1", R, W, torch.ones(2), positions="last"),
        interventions.direft("x1", R, W, torch.ones(2), positions=-1),
        interventions.affine("x1", v, v, positions=[0, 1]),
        amplitude.set_entries("neurons0", [1, 5], torch.tensor([2.0, -1.0]), positions="prompt"),
        amplitude.scale_entries("neurons1", [0, 3], 4.0, positions=torch.tensor([0, 1])),
        amplitude.cut("L1H2.pattern", [0, -2], renormalise=False, positions="last"),
        vectors.add_relative("x2", v, 0.3, positions=1),
    ]
    assert {edit.name for edit in edits} == set(saving.MAKERS)  # a new kind needs a line here
    for edit in edits:
        saving.save(Steer(edit), tmp_path / edit.name, model)
        back = saving.load(tmp_path / edit.name, model)
        assert torch.equal(logits(model, back), logits(model, Steer(edit)))
        assert not torch.equal(logits(model, back), model(PROMPTS)), edit.name


def test_features_of_another_sae_are_refused(tmp_path):
    model = mi.wrap(random_model("gpt2"))

    def attach(seed):
        model.saes["tiny"] = SAE(model.d_model, 40, "topk", k=4, site="x1", seed=seed).requires_grad_(False).eval()

    attach(0)
    clamped = amplitude.clamp({"tinyF3": 5.0})
    watched = Steer(mi.zero("L1H0"), when=Detector("tinyF3@-1", torch.tensor(1.0), -1.0))
    for name, steer in (("clamped", clamped), ("watched", watched)):
        attach(0)
        saving.save(steer, tmp_path / name, model)
        assert torch.equal(logits(model, saving.load(tmp_path / name, model)), logits(model, steer))
        attach(1)
        with pytest.raises(ValueError, match="attach that SAE first"):
            saving.load(tmp_path / name, model)
        del model.saes["tiny"]
        with pytest.raises(ValueError, match="attach that SAE first"):
            saving.load(tmp_path / name, model)


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
