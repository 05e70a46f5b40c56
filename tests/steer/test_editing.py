import pytest
import torch

import mi_course as mi
from mi_course.steer import editing
from mi_course.steer.editing import rank_one_update
from mi_course.world import compiled
from tests.families import random_model


def problem(seed=0, d_in=6, d_out=4):
    g = torch.Generator().manual_seed(seed)
    keys = torch.randn(200, d_in, generator=g, dtype=torch.float64) * torch.arange(1, d_in + 1)
    return (
        torch.randn(d_in, d_out, generator=g, dtype=torch.float64),
        keys,
        keys.T @ keys / len(keys),
        torch.randn(d_in, generator=g, dtype=torch.float64),
        torch.randn(d_out, generator=g, dtype=torch.float64),
    )


def test_the_edit_is_exact_and_of_rank_one():
    W, _, C, key, value = problem()
    delta = rank_one_update(W, C, key, value)
    assert torch.allclose(key @ (W + delta), value, atol=1e-12)
    assert torch.linalg.matrix_rank(delta) == 1


def test_the_edit_moves_other_keys_least():
    # Independent solution of the constrained least squares: any solution is delta + N with key @ N = 0.
    W, keys, C, key, value = problem()
    delta = rank_one_update(W, C, key, value)
    moved = (keys @ delta).square().sum()
    for seed in range(20):
        g = torch.Generator().manual_seed(seed)
        other = torch.randn(W.shape, generator=g, dtype=torch.float64)
        free = other - torch.outer(key, key @ other) / (key @ key)  # key @ free = 0
        for step in (1e-3, 1e-1, 1.0):
            assert (keys @ (delta + step * free)).square().sum() > moved
    # and it is not the minimum-norm edit, unless C is the identity
    plain = rank_one_update(W, torch.eye(6, dtype=torch.float64), key, value)
    assert plain.norm() < delta.norm() and (keys @ plain).square().sum() > moved


def test_shapes_are_checked():
    W, _, C, key, value = problem()
    with pytest.raises(ValueError, match="key"):
        rank_one_update(W, C, key[:-1], value)
    with pytest.raises(ValueError, match="value"):
        rank_one_update(W, C, key, key)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_the_edited_ffn_writes_the_value_at_its_key(family):
    model = mi.wrap(random_model(family))
    prompts, positions, layer = [[[3, 4, 5, 6]], [[9, 8, 7]]], [[2], [1]], 0
    C = editing.key_covariance(model, [[3, 4, 5, 6], [9, 8, 7], [1, 2, 3, 4, 5]], layer)
    key = editing.keys_at(model, prompts, positions, layer)
    assert torch.allclose(key[1], mi.record(model, [[9, 8, 7]], ["neurons0"])["neurons0"][0, 1], atol=1e-5)
    value = editing.optimise_values(model, prompts, positions, [17, 23], layer)
    base = [model(p[0:1]) for p in prompts]
    for i in range(2):
        with editing.rank_one_edit(model, layer, key[i], value[i], C).on(model):
            written = mi.record(model, prompts[i], ["mlp0"])["mlp0"][0, positions[i][0]]
        assert torch.allclose(written, value[i], atol=1e-3)
        assert torch.equal(model(prompts[i][0:1]), base[i])


def test_optimised_values_raise_the_target():
    model = mi.wrap(random_model("gpt2"))
    prompts, positions = [[[3, 4, 5, 6], [7, 3, 4, 5, 6]], [[9, 8, 7], [1, 9, 8, 7]]], [[2, 3], [1, 2]]
    value = editing.optimise_values(model, prompts, positions, [17, 23], 1, decay=0.0)
    assert value.shape == (2, model.d_model) and not value.requires_grad
    assert all(p.grad is None for p in model.hf.parameters())
    for i, target in enumerate((17, 23)):
        for prompt, position in zip(prompts[i], positions[i]):
            before = model.last_logits([prompt]).softmax(-1)[0, target]
            with mi.intervene(model, mi.patch("mlp1", value[i][None], positions=position)):
                assert model.last_logits([prompt]).softmax(-1)[0, target] > before
    limited = editing.optimise_values(model, prompts, positions, [17, 23], 1, clamp=0.1)
    sites = [mi.record(model, [p], ["mlp1"])["mlp1"][0, where] for p, where in zip(prompts[0], positions[0])]
    now = torch.stack(sites).mean(0)
    assert (limited[0] - now).norm() <= 0.1 * now.norm() * 1.001
    with pytest.raises(ValueError, match="same number"):
        editing.optimise_values(model, [[[1, 2]], [[1, 2], [2, 3]]], [[0], [0, 1]], [3, 4], 0)


def test_a_rank_one_edit_changes_one_fact_of_the_look_up_and_no_other():
    c = compiled.lookup()
    model = c.wrap()
    peru, norway = "the capital of peru is", "the capital of norway is"
    C = editing.key_covariance(model, c.task.prompts, 0)
    key = editing.keys_at(model, [[peru]], [[4]], 0)[0]
    value = mi.record(model, [norway], ["mlp0@4"])["mlp0@4"][0]  # peru's FFN shall write what norway's writes
    before = model.last_logits(c.task.prompts).argmax(-1)
    with editing.rank_one_edit(model, 0, key, value, C).on(model):
        after = model.last_logits(c.task.prompts).argmax(-1)
    is_peru = torch.tensor([label["subject"] == "peru" for label in c.task.labels])
    assert (after[is_peru] == model.token_id("oslo")).all()  # in all three phrasings
    assert torch.equal(after[~is_peru], before[~is_peru])
    assert torch.equal(model.last_logits(c.task.prompts).argmax(-1), before)


def test_covariance_is_that_of_the_real_tokens():
    model = mi.wrap(random_model("llama"))
    documents = [[3, 4, 5, 6], [9, 8]]
    keys = torch.cat([mi.record(model, [d], ["neurons1"])["neurons1"][0] for d in documents])
    C = editing.key_covariance(model, documents, 1, ridge=0.0)
    assert torch.allclose(C, keys.T @ keys / 6, atol=1e-5)
    ridged = editing.key_covariance(model, documents, 1, ridge=0.5)
    assert torch.allclose((ridged - C).diagonal(), 0.5 * C.diagonal().mean().expand(len(C)), atol=1e-5)
