"""LoRA by peft: the same change as our own low rank, and the model comes back."""

import pytest
import torch

import mi_course as mi
from mi_course.objects import Task
from mi_course.steer import WeightEdit, fit, peft_lora, training
from tests.families import random_model

PROMPTS = [[3, 5, 8, 13, 21], [4, 9, 14, 19, 24, 29], [7, 6, 40, 33]]
TASK = Task("t", PROMPTS, [11, 11, 12], metric="logprob")


@pytest.mark.parity
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_change_is_alpha_over_rank_a_b(family):
    pytest.importorskip("peft")
    model = mi.wrap(random_model(family))
    modules, base = dict(model.hf.named_modules()), model(PROMPTS)
    names = training.matrices(model)
    with peft_lora.adapters(model, names, rank=2, alpha=6) as layers:
        assert torch.equal(model(PROMPTS), base)
        deltas = {}
        for name, layer in layers.items():
            A, B = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # [rank, in], [out, rank]
            with torch.no_grad():
                B.copy_(torch.randn(B.shape, generator=torch.Generator().manual_seed(1)) / 4)
            change = 3 * (A.T @ B.T).detach()  # row form, [in, out]
            linear = isinstance(modules[name.removesuffix(".weight")], torch.nn.Linear)
            deltas[name] = change.T if linear else change
        by_peft = model(PROMPTS)
    with WeightEdit(deltas).on(model):
        torch.testing.assert_close(model(PROMPTS), by_peft, rtol=1e-3, atol=1e-3)
    assert (by_peft - base).abs().max() > 1e-2
    assert dict(model.hf.named_modules()) == modules and torch.equal(model(PROMPTS), base)


@pytest.mark.parity
def test_trained_from_the_same_start_it_equals_ours():
    pytest.importorskip("peft")
    model = mi.wrap(random_model("llama"))
    names, options = training.matrices(model, ["o", "up"]), {"steps": 6, "learning_rate": 0.02}
    ours = training.low_rank_finetune(model, TASK, names, rank=2, **options)
    generator = torch.Generator().manual_seed(0)
    with peft_lora.adapters(model, names, rank=2, alpha=2) as layers:
        for layer in layers.values():
            A = layer.lora_A["default"].weight
            start = (2 * torch.rand(A.shape[1], 2, generator=generator) - 1) / A.shape[1] ** 0.5
            A.data.copy_(start.T)
        numbers = [p for layer in layers.values() for n, p in layer.named_parameters() if "lora_" in n]
        fit.train(model, TASK, numbers, torch.enable_grad, 0, weight_decay=0.01, **options)
        theirs = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    for name in names:
        torch.testing.assert_close(theirs[name], ours.deltas[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parity
def test_lora_teaches_and_leaves_the_model_as_it_was():
    pytest.importorskip("peft")
    model = mi.wrap(random_model("gpt2"))
    parameters, base = dict(model.hf.named_parameters()), TASK.measure(model).mean()
    edit = peft_lora.lora(model, TASK, rank=2, steps=10, learning_rate=0.05, documents=[[5, 6, 7]])
    assert all(p is parameters[n] and p.requires_grad and p.grad is None for n, p in model.hf.named_parameters())
    assert all(torch.linalg.svdvals(d)[2] < 1e-4 * torch.linalg.svdvals(d)[0] for d in edit.deltas.values())
    with edit.on(model):
        assert TASK.measure(model).mean() > base


def test_without_peft_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    model = mi.wrap(random_model("gpt2"))
    with pytest.raises(ImportError, match="pip install -e"):
        peft_lora.lora(model, TASK)
