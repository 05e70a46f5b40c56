import numpy as np
import pytest
import torch

import mi_course as mi
from mi_course import world
from mi_course.steer import WeightEdit, editing
from mi_course.steer.editing import rank_one_update
from mi_course.world import compiled
from tests.families import FAMILIES, random_model


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


@pytest.mark.parametrize("family", FAMILIES)
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


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_ridge_edit_writes_the_value_at_every_key(family):
    model = mi.wrap(random_model(family))
    prompts, layer = [[3, 4, 5, 6], [9, 8, 7], [2, 6, 1]], 0
    C = editing.key_covariance(model, [*prompts, [1, 2, 3, 4, 5]], layer)
    keys = editing.keys_at(model, [[p] for p in prompts], [[1], [2], [0]], layer)
    value = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    with editing.ridge_edit(model, layer, keys, value, C, 1e-6).on(model):
        for prompt, end in zip(prompts, (1, 2, 0)):
            written = mi.record(model, [prompt], ["mlp0"])["mlp0"][0, end]
            assert torch.allclose(written, value, atol=1e-3)
    one = editing.ridge_edit(model, layer, keys[:1], value, C, 1e-6).deltas  # of one key it is ROME
    rome = editing.rank_one_edit(model, layer, keys[0], value, C).deltas
    assert all(torch.allclose(one[name], delta, atol=1e-3) for name, delta in rome.items())


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


# --- MEMIT -----------------------------------------------------------------------------------------------------------


def test_the_ridge_update_is_the_least_squares_solution_of_the_stacked_system():
    W, _, C, _, _ = problem()
    g = torch.Generator().manual_seed(1)
    K, R = (torch.randn(3, n, generator=g, dtype=torch.float64) for n in W.shape)
    for lam in (0.1, 10.0):
        # |K D - R|^2 + lam tr(D^T C D) = |[K; sqrt(lam) L^T] D - [R; 0]|^2 with C = L L^T
        root = np.sqrt(lam) * np.linalg.cholesky(C.numpy()).T
        stacked, wanted = np.vstack([K.numpy(), root]), np.vstack([R.numpy(), np.zeros((len(root), R.shape[1]))])
        expected = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
        assert np.allclose(editing.ridge_update(K, R, C, lam).numpy(), expected, atol=1e-10)


def test_one_fact_and_no_ridge_is_the_rank_one_update():
    W, _, C, key, value = problem()
    expected = rank_one_update(W, C, key, value)
    distances = [
        (editing.ridge_update(key[None], (value - key @ W)[None], C, lam) - expected).abs().max().item()
        for lam in (1.0, 1e-3, 1e-9)
    ]
    assert distances[0] > distances[1] > distances[2] and distances[2] < 1e-8


def test_the_ridge_update_says_what_it_needs():
    W, _, C, key, value = problem()
    with pytest.raises(ValueError, match=r"give \[n, d_in\]"):
        editing.ridge_update(key, value, C, 1.0)
    with pytest.raises(ValueError, match="positive"):
        editing.ridge_update(key[None], value[None], C, 0.0)


FACTS = [[[3, 4, 5, 6]], [[9, 8, 7]]], [[3], [2]]


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
def test_memit_writes_what_is_lacking_and_touches_nothing_else(family):
    model = mi.wrap(random_model(family))
    (prompts, positions), layers = FACTS, [0, 1]
    documents = [[3, 4, 5, 6], [9, 8, 7], [1, 2, 3, 4, 5]]
    C = {layer: editing.key_covariance(model, documents, layer) for layer in layers}
    before = {name: p.clone() for name, p in model.hf.named_parameters()}
    delta, state = editing.optimise_deltas(model, prompts, positions, [17, 23], "x2")
    edit = editing.memit(model, prompts, positions, [17, 23], layers, C, lam=1e-6)
    assert len(edit.deltas) == 2
    assert all(torch.equal(before[name], p) for name, p in model.hf.named_parameters())
    with edit.on(model):
        now = torch.stack([mi.record(model, p, ["x2"])["x2"][0, w[0]] for p, w in zip(prompts, positions)])
        changed = [n for n, p in model.hf.named_parameters() if not torch.equal(before[n], p)]
    assert set(changed) == set(edit.deltas)  # every weight outside the edited matrices keeps its bits
    lacking = (state + delta - now).norm(dim=-1) / delta.norm(dim=-1)
    assert (lacking < 0.35).all()  # the last layer writes the rest; the norm before its FFN makes it nearly exact


def test_memit_in_one_layer_is_rome_to_the_same_value():
    model = mi.wrap(random_model("gpt2"))
    prompts, positions = [FACTS[0][0]], [FACTS[1][0]]
    C = {1: editing.key_covariance(model, [[3, 4, 5, 6], [9, 8, 7], [1, 2, 3, 4, 5]], 1)}
    delta, _ = editing.optimise_deltas(model, prompts, positions, [17], "x2")
    written = mi.record(model, prompts[0], ["mlp1"])["mlp1"][0, positions[0][0]]
    key = editing.keys_at(model, prompts, positions, 1)[0]
    rome = editing.rank_one_edit(model, 1, key, written + delta[0], C[1])
    memit = editing.memit(model, prompts, positions, [17], [1], C, lam=1e-7)
    (name,) = rome.deltas
    assert torch.allclose(memit.deltas[name], rome.deltas[name], atol=1e-3 * rome.deltas[name].abs().max().item())


def test_memit_refuses_a_norm_after_the_ffn_and_rome_does_not_mind():
    model = mi.wrap(random_model("gemma2"))
    C = editing.key_covariance(model, [[3, 4, 5, 6], [9, 8, 7]], 0)
    with pytest.raises(ValueError, match="use rome"):
        editing.memit(model, *FACTS, [17, 23], [0], {0: C})
    edit = editing.rome(model, FACTS[0][0], FACTS[1][0], 17, 0, C)
    prompt = FACTS[0][0][0]
    with edit.on(model):
        after = model.last_logits([prompt]).log_softmax(-1)[0, 17]
    assert after > model.last_logits([prompt]).log_softmax(-1)[0, 17]


def test_the_essence_term_holds_the_continuation_of_its_prompt():
    model = mi.wrap(random_model("gpt2"))
    prompts, positions, essence = [[[3, 4, 5, 6]]], [[1]], ([[3, 4, 11]], [1])

    def moved(kl):
        delta, _ = editing.optimise_deltas(
            model, prompts, positions, [17], "mlp0", essence=essence, kl=kl, decay=0.0, steps=40
        )
        base = model.last_logits([[3, 4, 11]]).log_softmax(-1)
        with mi.intervene(model, mi.edit("mlp0", lambda v: v + delta[0], positions=1)):
            now = model.last_logits([[3, 4, 11]]).log_softmax(-1)
        return (base.exp() * (base - now)).sum().item()

    assert moved(10.0) < 0.5 * moved(0.0)
    with pytest.raises(ValueError, match="essence"):
        editing.optimise_deltas(model, prompts, positions, [17], "mlp0", essence=([], []))


def test_a_state_that_cannot_reach_the_answer_is_refused():
    model = mi.wrap(random_model("llama"))
    with pytest.raises(ValueError, match="choose a lower layer"):
        editing.optimise_deltas(model, [[[3, 4, 5, 6]]], [[1]], [17], f"x{model.n_layers}", essence=([[3, 4]], [1]))


def test_shipped_moments_are_those_of_the_documents_and_of_no_other_model():
    model = mi.load("lab")
    C = editing.second_moments(model)
    assert len(C) == model.n_layers and all(torch.equal(c, c.T) for c in C)
    assert all(torch.linalg.eigvalsh(c)[0] > 0 for c in C)
    few = [text for own in world.documents("train", 4).values() for text in own]
    own = editing.key_covariance(model, few, 0)
    assert torch.nn.functional.cosine_similarity(own.flatten(), C[0].flatten(), dim=0) > 0.95
    with pytest.raises(ValueError, match="key_covariance"):
        editing.second_moments(mi.wrap(random_model("gpt2")))
    name = "transformer.h.0.mlp.c_proj.weight"
    with WeightEdit({name: torch.ones_like(model.hf.get_parameter(name))}).on(model):
        with pytest.raises(ValueError, match="While an edit is active"):
            editing.second_moments(model)
