"""Learned edits of activations: neutral, of the stated rank, at the stated positions, trained, saved."""

import pytest
import torch

import mi_course as mi
from mi_course.objects import Task
from mi_course.steer import fit, interventions, saving
from mi_course.steer.interventions import affine, direft, layer_biases, loreft, orthonormal_rows, reft, trained_vector
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 5, 8, 13, 21], [4, 9, 14, 19, 24, 29], [7, 6, 40, 33]]
TASK = Task("t", PROMPTS, [11, 11, 12], metric="logprob")
FAST = {"steps": 8, "learning_rate": 0.1}


def wrapped(family, seed=0):
    return mi.wrap(random_model(family, seed=seed))


def tensors(d, rank=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    R, W = (torch.randn(rank, d, generator=generator) for _ in range(2))
    return orthonormal_rows(R), W, torch.randn(rank, generator=generator)


def loss(model):
    with torch.no_grad():
        return float(fit.examples(model, TASK).cross_entropy(model))


def test_rows_are_orthonormal_and_span_the_same_space():
    raw = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    R = orthonormal_rows(raw)
    torch.testing.assert_close(R @ R.T, torch.eye(3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(raw @ R.T @ R, raw, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_loreft_sets_its_subspace_and_nothing_else(family):
    model = wrapped(family)
    R, W, b = tensors(model.d_model)
    before = mi.record(model, PROMPTS, ["x1"])["x1"]
    with mi.intervene(model, loreft("x1", R, W, b)):
        after = mi.record(model, PROMPTS, ["x1"])["x1"]
    tolerance = {"rtol": 1e-3, "atol": 1e-3 * float(after.abs().max())}
    torch.testing.assert_close(after @ R.T, before @ W.T + b, **tolerance)  # inside: W x + b
    away = torch.eye(model.d_model) - R.T @ R
    torch.testing.assert_close(after @ away, before @ away, **tolerance)  # outside: as before
    change = (after - before)[model.tokenize(PROMPTS).mask.bool()]
    singular = torch.linalg.svdvals(change)
    assert singular[1] > 1e-2 and singular[2] < 1e-4 * singular[0]


def test_neutral_strengths_are_the_identity():
    model = wrapped("llama")
    R, W, b = tensors(model.d_model)
    base = model(PROMPTS)
    for edit in (loreft("x1", R, W, b), direft("x1", W, R, b), affine("z1", torch.ones(4, 8) * 3, torch.ones(4, 8))):
        with mi.steer.steer.Steer(edit, strength=0.0).on(model):
            assert torch.equal(model(PROMPTS), base)
        with edit.on(model):
            assert not torch.equal(model(PROMPTS), base)
        assert torch.equal(model(PROMPTS), base)
    with loreft("x1", R, R, torch.zeros(2)).on(model):
        torch.testing.assert_close(model(PROMPTS), base, rtol=1e-4, atol=1e-4)


def test_affine_by_hand_on_heads():
    model = wrapped("gpt2")
    scale, bias = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
    z = mi.record(model, PROMPTS, ["z1"])["z1"]
    with affine("z1", scale, bias).on(model):
        torch.testing.assert_close(mi.record(model, PROMPTS, ["z1"])["z1"], z * scale + bias)


def test_where_training_starts():
    assert interventions.start_layer(["x3", "mlp2", "z4"]) == 2
    assert interventions.start_layer(["attn1", "x4"]) == 1
    assert interventions.start_layer(["x0", "x3"]) is None


MAKERS = {
    "vector": lambda m, **o: trained_vector(m, TASK, "x1", **o),
    "biases": lambda m, **o: layer_biases(m, TASK, **o),
    "loreft": lambda m, **o: reft(m, TASK, ["x1", "x2"], rank=2, **o),
    "direft": lambda m, **o: reft(m, TASK, ["mlp1"], rank=2, direct=True, **o),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("family", ["gpt_neox", "gemma2"])
def test_training_teaches_and_leaves_the_model_alone(family, kind, tmp_path):
    model = wrapped(family)
    before, logits, base = dict(model.hf.named_parameters()), model(PROMPTS), loss(model)
    steer = MAKERS[kind](model, **FAST)
    assert all(p is before[name] and p.grad is None for name, p in model.hf.named_parameters())
    assert torch.equal(model(PROMPTS), logits)
    with steer.on(model):
        taught, steered = loss(model), model(PROMPTS)
    assert taught < base
    with steer.scaled(0.0).on(model):
        assert torch.equal(model(PROMPTS), logits)
    saving.save(steer, tmp_path / "steer", model)
    with saving.load(tmp_path / "steer", model).on(model):
        assert torch.equal(model(PROMPTS), steered)


@pytest.mark.parametrize("kind", MAKERS)
def test_training_starts_neutral(kind):
    model = wrapped("llama")
    steer = MAKERS[kind](model, steps=1, learning_rate=0.0)
    with steer.on(model):
        torch.testing.assert_close(model(PROMPTS), wrapped("llama")(PROMPTS), rtol=1e-4, atol=1e-4)


def test_layer_biases_are_added_to_what_leaves_each_block():
    model = wrapped("gpt2")
    steer = layer_biases(model, TASK, steps=1)
    assert [str(site) for edit in steer.edits for site in edit.sites] == [f"x{i + 1}" for i in range(model.n_layers)]


def test_a_trained_vector_equals_a_slow_independent_training():
    model = wrapped("gpt2")
    options = {"steps": 5, "learning_rate": 0.1}
    found = trained_vector(model, TASK, "x2", positions="last", **options).edits[0].arguments["vector"]
    v = torch.zeros(model.d_model, requires_grad=True)
    optimizer = torch.optim.AdamW([v], lr=0.1, weight_decay=0.0)

    def add_last(module, args):
        x = args[0].clone()
        x[:, -1] = x[:, -1] + v
        return (x, *args[1:])

    for step in range(5):
        optimizer.zero_grad()
        handle = model.block(2).register_forward_pre_hook(add_last)
        total = sum(
            -model.hf(torch.tensor([p])).logits[0, -1].log_softmax(-1)[t] for p, t in zip(TASK.prompts, TASK.targets)
        )
        (v.grad,) = torch.autograd.grad(total / 3, v)
        handle.remove()
        torch.nn.utils.clip_grad_norm_([v], 1.0)
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 5)
        optimizer.step()
    torch.testing.assert_close(found, v.detach(), rtol=1e-3, atol=1e-4)


def test_last_and_generated_mean_the_prompt_while_training_on_whole_answers():
    model = wrapped("llama")
    answers = fit.Answers([[3, 5, 8], [7, 6]], [[11, 12], [9]])
    v = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    for positions, rows in (("last", [[2], [1]]), ("generated", [[3, 4], [2]])):
        with mi.intervene(model, mi.add("x1", v, positions=positions)):
            found = answers.cross_entropy(model).item()
            started = answers.starting_at(model, 0).cross_entropy(model).item()
        expected = []
        for prompt, answer, where in zip(answers.prompts, answers.answers, rows):
            with mi.intervene(model, mi.add("x1", v, positions=where)):
                log_p = model([prompt + answer]).log_softmax(-1)[0]
            expected += [-log_p[len(prompt) - 1 + i, token].item() for i, token in enumerate(answer)]
        assert found == pytest.approx(sum(expected) / 3, rel=1e-4)
        assert started == pytest.approx(found, rel=1e-4)


def test_wrong_arguments_say_what_to_do():
    model = wrapped("llama")
    R, W, b = tensors(model.d_model)
    with pytest.raises(ValueError, match=r"give R and W \[rank, d\]"):
        loreft("x1", R, W[:1], b)
    with pytest.raises(ValueError, match="rank is 0"):
        reft(model, TASK, ["x1"], rank=0)
    with pytest.raises(ValueError, match="ReFT edits states"):
        reft(model, TASK, ["L1H1.z"])
