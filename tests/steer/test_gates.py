"""Hard-concrete gates: the distribution, the penalty, and planted units that they must find."""

import math
from dataclasses import replace

import pytest
import torch

import mi_course as mi
from mi_course.objects import Task
from mi_course.steer import WeightEdit, gates, training
from mi_course.world import installed_tasks
from mi_course.world.installed import read
from tests.families import random_model

PROMPTS = [[3, 5, 8, 13, 21], [4, 9, 14, 19, 24, 29], [7, 6, 40, 33]]
TASK = Task("t", PROMPTS, [11, 11, 12], metric="logprob")


def test_samples_have_the_stated_probability_of_being_open():
    u = torch.rand(200_000, generator=torch.Generator().manual_seed(0)).clamp(1e-6, 1 - 1e-6)
    for value in (-3.0, -1.0, 0.0, 2.0):
        sample = gates.hard_concrete(torch.tensor(value).expand(len(u)), u)
        assert sample.min() >= 0 and sample.max() <= 1
        assert (sample > 0).float().mean().item() == pytest.approx(
            gates.open_probability(torch.tensor(value)).item(), abs=0.005
        )
    # closed form: s < -gamma / (zeta - gamma) = 1/12, that is logit(u) < beta log(1/11) - log_alpha
    assert gates.open_probability(torch.tensor(0.0)).item() == pytest.approx(
        1 / (1 + math.exp(2 / 3 * math.log(1 / 11)))
    )


def test_gates_at_test_are_exactly_open_and_closed():
    values = gates.hard_concrete(torch.tensor([-5.0, 0.0, 5.0]))
    assert values.tolist() == [0.0, 0.5, 1.0]


def test_the_gradient_of_the_penalty_closes_gates():
    log_alpha = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(gates.open_probability(log_alpha).sum(), log_alpha)
    assert (gradient > 0).all()


def test_a_learned_mask_keeps_the_edit_inside_open_gates():
    model = mi.wrap(random_model("llama"))
    units = ["L0H1", "L1H2", "L1N5", "L0N3"]
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    edit, scores = gates.learned_mask(model, TASK, units, sparsity=0.05, steps=30, learning_rate=0.05)
    assert [str(s) for s in scores.sites] == units and ((scores.values > 0) & (scores.values < 1)).all()
    mask = training.unit_mask(model, units)
    for name, delta in edit.deltas.items():
        assert not delta[~mask[name]].any()
    assert all(torch.equal(before[n], p) and p.grad is None for n, p in model.hf.named_parameters())
    # an enormous price closes all gates: the edit is nothing
    closed, scores = gates.learned_mask(model, TASK, units, sparsity=50.0, steps=20, learning_rate=0.1)
    assert scores.values.max() < 0.2 and not any(delta.any() for delta in closed.deltas.values())
    with pytest.raises(ValueError, match="shares weights"):
        gates.learned_mask(model, TASK, ["mlp1", "L1N5"])
    elsewhere = WeightEdit({"model.norm.weight": torch.ones(32)})
    with pytest.raises(ValueError, match="changes none"):
        gates.learned_mask(model, TASK, units, elsewhere)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_jola_is_neutral_with_all_gates_closed_and_teaches(family):
    model = mi.wrap(random_model(family))
    base = model(PROMPTS)
    steer, scores = gates.jola(model, TASK, sparsity=50.0, steps=20, learning_rate=0.1)
    assert len(scores) == model.n_layers * model.n_heads and scores.values.max() < 0.3
    with steer.on(model):
        assert torch.equal(model(PROMPTS), base)
    steer, _ = gates.jola(model, TASK, sparsity=0.0, steps=20, learning_rate=0.1)
    before = TASK.measure(model).mean()
    with steer.on(model):
        assert TASK.measure(model).mean() > before
    assert torch.equal(model(PROMPTS), base)


def test_gates_find_the_planted_heads_among_decoys():
    """refusal-a sits in two heads; four others are changed by as much, at random. Only the key's gates stay open."""
    lab, name = mi.load(), "refusal-a"
    planted, key = read(name).edit(lab), read(name).facts["used"]
    decoys = ["L1H2", "L2H3", "L3H0", "L4H1"]
    generator, deltas = torch.Generator().manual_seed(0), {n: d.clone() for n, d in planted.deltas.items()}
    size = torch.cat([d[d != 0] for d in planted.deltas.values()]).std()
    for parameter, mask in training.unit_mask(lab, decoys).items():
        whole = deltas.setdefault(parameter, torch.zeros(mask.shape))
        whole[mask] += size * torch.randn(int(mask.sum()), generator=generator)
    task = installed_tasks.installed_task(name, "train", n=16)
    edit, scores = gates.learned_mask(
        lab, task, key + decoys, WeightEdit(deltas), sparsity=0.05, steps=25, learning_rate=0.1
    )
    values = dict(zip(map(str, scores.sites), scores.values))
    assert min(values[unit] for unit in key) > 2 * max(values[unit] for unit in decoys)
    with edit.on(lab):
        assert installed_tasks.installed_task(name, "test", n=48).accuracy(lab) > 0.95


def test_the_removal_mask_finds_the_head_of_an_installed_behaviour():
    """refusal-b is carried by one head of 24: that gate opens, no other, and the old answer is back."""
    lab, name = mi.load(), "refusal-b"

    def old_answers(split, n):
        task = installed_tasks.installed_task(name, split, n=n)
        return replace(task, targets=task.foils, foils=task.targets)

    with read(name).on(lab):
        steer, scores = gates.removal_mask(lab, old_answers("train", 16), steps=30, learning_rate=0.1)
        with steer.on(lab):
            assert old_answers("test", 48).accuracy(lab) > 0.95
    (key,) = installed_tasks.answer_key(name, "z")
    values = dict(zip(map(str, scores.sites), scores.values))
    assert values.pop(key) > 0.9 and max(values.values()) < 0.5
