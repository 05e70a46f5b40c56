"""Backward lens: gradients equal autograd's on every family, and a step does what the lens says, to first order."""

import copy

import pytest
import torch

import mi_course as mi
from mi_course.locate import backward_lens
from mi_course.objects import Task
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

ROWS = [[5, 9, 30, 12], [8, 41, 6, 6, 17, 3]]
TASK = Task("random", ROWS, [7, 8], foils=[20, 21], metric="logprob")


def true_gradient(model, layer, path):
    module = model.block(layer).get_submodule(path)
    return module.weight.grad if type(module).__name__ == "Conv1D" else module.weight.grad.T


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_the_gradients_of_the_weights(family):
    model = mi.wrap(random_model(family))
    row = model.family
    (-TASK.measure(model, grad=True).sum()).backward()
    for layer in range(model.n_layers):
        if row.mlp_in:
            true = {"in": true_gradient(model, layer, row.mlp_in)}
        elif row.gate_up:
            true = dict(zip(("gate", "up"), true_gradient(model, layer, row.gate_up).chunk(2, 1)))
        else:
            true = {part: true_gradient(model, layer, getattr(row, part)) for part in ("gate", "up")}
        true = {"out": true_gradient(model, layer, row.mlp_out)} | {k: v.T for k, v in true.items()}
        found = backward_lens.ffn_gradient(model, TASK, layer)
        assert found.keys() == true.keys()
        for name, gradient in true.items():
            assert (found[name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


def test_one_token_gives_a_gradient_of_rank_one():
    model = mi.wrap(random_model("gpt2"))
    one = Task("one", [[5]], [7], metric="logprob")
    assert torch.linalg.matrix_rank(backward_lens.ffn_gradient(model, one, 1)["out"], rtol=1e-4) == 1
    four = Task("four", [[5, 9, 30, 12]], [7], metric="logprob")
    assert torch.linalg.matrix_rank(backward_lens.ffn_gradient(model, four, 0)["out"], rtol=1e-5) == 4
    # the last FFN acts at the last token alone, so all other tokens send nothing back
    assert torch.linalg.matrix_rank(backward_lens.ffn_gradient(model, four, 2)["out"], rtol=1e-4) == 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_gradient_step_has_the_predicted_first_order_effect(family):
    """Loss changes by -lr |gradient|^2, and -delta at the last token is what the FFN then adds, times lr |s|^2."""
    model, layer, lr = mi.wrap(random_model(family)), 1, 1e-5
    task = Task("one", ROWS[:1], [7], metric="logprob")
    gradient = backward_lens.ffn_gradient(model, task, layer)["out"]
    stepped = mi.wrap(copy.deepcopy(model.hf))
    module = stepped.block(layer).get_submodule(model.family.mlp_out)
    step = lr * gradient if type(module).__name__ == "Conv1D" else lr * gradient.T
    with torch.no_grad():
        module.weight -= step
    rise = (task.measure(stepped) - task.measure(model)).item()
    assert rise == pytest.approx(lr * gradient.pow(2).sum().item(), rel=0.05) and rise > 0
    sites = [f"mlp{layer}", f"neurons{layer}"]
    before, after = (mi.record(m, ROWS[:1], sites) for m in (model, stepped))
    delta, s = backward_lens.vjps(model, task)[f"mlp{layer}"], before[f"neurons{layer}"]
    predicted = -lr * (s[0, -1] @ s[0].T) @ delta[0]  # its own token, and all tokens with similar activations
    moved = (after[f"mlp{layer}"] - before[f"mlp{layer}"])[0, -1]
    assert torch.allclose(moved, predicted, atol=0.02 * predicted.abs().max().item() + 1e-6)


def test_the_target_is_on_top_of_the_last_gradient():
    c = compiled.rotated_basis()
    model = c.wrap()
    task = Task("b", ["a a b", "c d e"], ["h", "a"], metric="logprob")  # the model says c and f: it has to learn these
    reading = backward_lens.backward_lens(model, task)
    assert reading.sites == ["mlp0@-1", "mlp1@-1", "mlp2@-1", "mlp3@-1"]
    assert reading.scores("rank")["mlp3@-1"] == 0 and reading.scores("prob")["mlp3@-1"] > 0.2


def test_where_no_gradient_arrives_nothing_is_read():
    model = mi.wrap(random_model("gpt2"))
    last = model.n_layers - 1
    reading = backward_lens.backward_lens(model, TASK, positions=[-1, 0])
    assert not backward_lens.vjps(model, TASK)[f"mlp{last}"][:, :-1].any()
    assert reading.rank[reading.sites.index(f"mlp{last}@0")].tolist() == [(model.n_vocab - 1) / 2] * 2


def test_it_works_inside_no_grad_and_leaves_the_weights_alone():
    model = mi.wrap(random_model("llama"))
    before = model.fingerprint()
    with torch.no_grad():
        assert backward_lens.vjps(model, TASK)["mlp0"].any()
        assert backward_lens.ffn_gradient(model, TASK, 0)["up"].any()
    assert model.fingerprint() == before and all(p.grad is None for p in model.hf.parameters())
    with pytest.raises(ValueError, match="'accuracy'"):
        backward_lens.vjps(model, Task("t", ROWS, [7, 8], metric="accuracy"))
