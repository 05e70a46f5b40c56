"""Task vectors: arithmetic, TIES by hand and against a flat implementation, DARE, weighting, installed behaviours."""

import numpy as np
import pytest
import torch

import mi_course as mi
from mi_course.objects import Task
from mi_course.steer import WeightEdit, fit, merging, training
from mi_course.steer import merging_weighted as weighted
from mi_course.world import generate, installed_tasks
from mi_course.world import lexicon as lx
from mi_course.world.installed import read
from tests.families import random_model


def edit(*values, name="w"):
    return WeightEdit({name: torch.tensor(values)})


def close(a: WeightEdit, b: WeightEdit, **tolerance):
    assert a.deltas.keys() == b.deltas.keys()
    for name in a.deltas:
        torch.testing.assert_close(a.strength * a.deltas[name], b.strength * b.deltas[name], **tolerance)


def random_edits(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (4, 6), "b": (5,)}
    return [WeightEdit({k: torch.randn(v, generator=generator) for k, v in shapes.items()}) for _ in range(n)]


# --- arithmetic -----------------------------------------------------------------------------------------------------
def test_arithmetic_by_hand():
    a, b, c = edit(1.0, 2.0), edit(3.0, 0.0), edit(0.5, 0.5, name="v")
    close(merging.add([a, b]), edit(4.0, 2.0))
    close(merging.add([a, b], [2.0, -1.0]), edit(-1.0, 4.0))
    close(merging.mean([a, b]), edit(2.0, 1.0))
    close(merging.negate(a.scaled(3.0)), edit(-3.0, -6.0))
    close(merging.analogy(a, b, b), edit(5.0, -2.0))
    assert merging.add([a, c]).deltas.keys() == {"w", "v"}
    close(merging.add([a.scaled(0.5)]), edit(0.5, 1.0))  # the strength is part of an edit
    with pytest.raises(ValueError, match="shapes"):
        merging.add([a, edit(1.0)])
    with pytest.raises(ValueError, match="empty"):
        merging.add([])
    with pytest.raises(ValueError, match="one for each"):
        merging.add([a, b], [1.0])


def test_a_task_vector_turns_the_base_into_the_tuned_model():
    base, tuned = (mi.wrap(random_model("llama", seed=s)) for s in (0, 0))
    with torch.no_grad():
        tuned.hf.model.layers[1].mlp.down_proj.weight.add_(0.1)
    vector = merging.task_vector(tuned, base)
    assert list(vector.deltas) == ["model.layers.1.mlp.down_proj.weight"]
    expected, plain = tuned([[3, 4, 5]]), base([[3, 4, 5]])
    with vector.on(base):
        torch.testing.assert_close(base([[3, 4, 5]]), expected, rtol=1e-4, atol=1e-4)
    with merging.negate(vector).on(tuned):
        torch.testing.assert_close(tuned([[3, 4, 5]]), plain, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="of one kind"):
        merging.task_vector(mi.wrap(random_model("gpt2")), base)


# --- TIES and DARE --------------------------------------------------------------------------------------------------
def test_ties_by_hand():
    # trimmed to the top half:    [ 3, 0, -2, 0]     [-1, 4, 0, 0]     [0, 0, 2.5, 5]
    edits = [edit(3.0, 0.1, -2.0, 0.2), edit(-1.0, 4.0, 0.3, -0.4), edit(0.1, 0.2, 2.5, 5.0)]
    # sums 2, 4, 0.5, 5: all elected signs are +; means over those that agree
    close(merging.ties(edits, density=0.5), edit(3.0, 4.0, 2.5, 5.0))
    close(merging.ties(edits, density=0.5, scale=0.4), edit(1.2, 1.6, 1.0, 2.0))
    # without trimming: sums 2.1, 4.3, 0.8, 4.8; agreeing values [3, 0.1], [0.1, 4, 0.2], [0.3, 2.5], [0.2, 5]
    close(merging.ties(edits, density=1.0), edit(1.55, 4.3 / 3, 1.4, 2.6))


def flat_ties(vectors: np.ndarray, density: float) -> np.ndarray:
    """Independent: one row per task, loops over weights."""
    kept = vectors.copy()
    for row in kept:
        order = sorted(range(len(row)), key=lambda i: -abs(row[i]))
        row[order[round(density * len(row)) :]] = 0
    merged = np.zeros(vectors.shape[1])
    for i, column in enumerate(kept.T):
        sign = np.sign(column.sum())
        agree = [v for v in column if v * sign > 0]
        merged[i] = sum(agree) / len(agree) if agree else 0
    return merged


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_ties_equals_a_flat_implementation(density):
    edits = random_edits(4)
    flat = np.stack([torch.cat([d.flatten() for d in e.deltas.values()]).numpy() for e in edits])
    merged = torch.cat([d.flatten() for d in merging.ties(edits, density).deltas.values()])
    np.testing.assert_allclose(merged.numpy(), flat_ties(flat, density), rtol=1e-5, atol=1e-6)


def test_ties_of_one_edit_and_of_disjoint_edits_is_lossless():
    (one,) = random_edits(1)
    close(merging.ties([one], density=1.0), one)
    disjoint = [edit(1.0, 0.0, -2.0), edit(0.0, 5.0, 0.0), edit(7.0, name="v")]
    close(merging.ties(disjoint, density=1.0), merging.add(disjoint))
    with pytest.raises(ValueError, match="density"):
        merging.ties(disjoint, density=0.0)


def test_dare_drops_the_share_and_keeps_the_expectation():
    one = WeightEdit({"w": torch.randn(40, 50, generator=torch.Generator().manual_seed(1))}, strength=2.0)
    dropped = merging.dare(one, drop=0.75, seed=0)
    kept = dropped.deltas["w"] != 0
    assert 0.2 < kept.float().mean() < 0.3
    torch.testing.assert_close(dropped.deltas["w"][kept], 8 * one.deltas["w"][kept])
    mean = merging.mean([merging.dare(one, drop=0.75, seed=s) for s in range(400)]).deltas["w"]
    # the standard error of a weight w is 2 |w| sqrt(p / (1 - p) / 400) = 0.087 * 2 |w|
    z = (mean - 2 * one.deltas["w"]) / (2 * one.deltas["w"].abs() * (3 / 400) ** 0.5)
    assert abs(z.mean()) < 0.1 and 0.9 < z.std() < 1.1
    close(merging.dare(one, drop=0.0), one)
    with pytest.raises(ValueError, match="drop"):
        merging.dare(one, drop=1.0)


# --- weighting by sensitivity and activation ------------------------------------------------------------------------
PROMPTS = [[3, 5, 8, 13], [7, 6, 40, 33, 2]]


def fine_tuned(model, name, seed):
    shape = model.hf.get_parameter(name).shape
    return WeightEdit({name: 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))})


def losses(model, tokens):
    wanted = [fit.Examples(PROMPTS, torch.eye(model.n_vocab)[[token, token]]) for token in tokens]
    return [examples.cross_entropy for examples in wanted]


def test_sensitivity_is_the_first_order_cost_of_zeroing():
    model, name = mi.wrap(random_model("llama")), "model.layers.1.mlp.down_proj.weight"
    tau, (loss,) = fine_tuned(model, name, 0).scaled(10.0), losses(model, [11])  # far from the base
    found = weighted.sensitivity(model, tau, loss)[name]
    i = divmod(int(found.argmax()), found.shape[1])
    small = torch.zeros_like(tau.deltas[name])
    small[i] = 1e-3 * (model.hf.get_parameter(name).detach() + 10.0 * tau.deltas[name])[i]
    with tau.on(model), torch.no_grad():
        before = loss(model)
        with WeightEdit({name: -small}).on(model):
            after = loss(model)
    assert abs(after - before).item() == pytest.approx(1e-3 * found[i].item(), rel=0.05)


def test_weighted_merges_keep_disjoint_layers_and_equal_tasks():
    model = mi.wrap(random_model("gpt2"))
    names = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in range(3)]
    apart = [fine_tuned(model, name, 0) for name in names[1:]]
    same = [fine_tuned(model, names[1], 0)] * 2
    for edits in (apart, same):
        both = losses(model, [11, 11])
        close(weighted.sensitivity_weighted(model, edits, both, [PROMPTS] * 2), merging.add(edits))
        close(weighted.consensus_weighted(model, edits, PROMPTS), merging.add(edits))


def test_the_task_that_is_more_sensitive_or_changes_more_weighs_more():
    model, name = mi.wrap(random_model("gpt2")), "transformer.h.1.mlp.c_proj.weight"
    strong, weak = fine_tuned(model, name, 0), fine_tuned(model, name, 1).scaled(0.01)
    weak_first = weighted.consensus_weighted(model, [weak, strong], PROMPTS, temperature=0.1)
    plain = merging.add([weak, strong])
    assert weak_first.deltas[name].norm() > 1.3 * plain.deltas[name].norm()  # close to 2 x strong
    # the same layer is all of task 0's sensitivity, and half of that of task 1, which has changed another layer too
    other = fine_tuned(model, "transformer.h.2.mlp.c_proj.weight", 2)
    edits = [strong, merging.add([fine_tuned(model, name, 1), other])]
    merged = weighted.sensitivity_weighted(model, edits, losses(model, [11, 12]), [PROMPTS] * 2, temperature=0.1)
    parts = torch.stack([e.deltas[name].flatten() for e in edits], 1)
    sigma = torch.linalg.lstsq(parts, merged.deltas[name].flatten()[:, None]).solution[:, 0]
    assert sigma[0] > sigma[1] and sigma.sum().item() == pytest.approx(2.0, rel=1e-4)


def test_sens_merging_is_sensitivity_by_its_l2_norm_times_transfer():
    model = mi.wrap(random_model("gpt2"))
    names = [f"transformer.h.{layer}.mlp.c_proj.weight" for layer in (1, 2)]
    edits = [merging.add([fine_tuned(model, name, 2 * i + j) for j, name in enumerate(names)]) for i in (0, 1)]
    own, prompts = losses(model, [11, 12]), [PROMPTS, [[9, 8, 7, 6]]]
    scores = []
    for i in (0, 1):
        found = weighted.sensitivity(model, edits[i], own[i])
        alpha = torch.stack([found[name].sum() for name in names])
        alpha = alpha / alpha.square().sum().sqrt()
        log_p = []
        for edit in (edits[i], edits[1 - i]):
            with edit.on(model):
                log_p.append(model.last_logits(prompts[1 - i]).log_softmax(-1))
        distance = (log_p[0] - log_p[1]).square().mean().sqrt()
        scores.append(alpha * torch.exp(-distance))
    sigma = 2 * torch.stack(scores).div(0.2).softmax(0)  # [task, layer]
    assert (sigma - 1).abs().max() > 0.02
    merged = weighted.sensitivity_weighted(model, edits, own, prompts)
    for layer, name in enumerate(names):
        expected = sum(sigma[i, layer] * edits[i].deltas[name] for i in (0, 1))
        torch.testing.assert_close(merged.deltas[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "opt", "qwen3", "gemma2", "phi3"])
def test_aim_shrinks_what_reads_strong_activations(family):
    model = mi.wrap(random_model(family))
    strength = weighted.input_strength(model, PROMPTS)
    # independent: what the modules really read
    read_by, handles = {}, []
    for name in strength:
        module = model.hf.get_submodule(name.removesuffix(".weight"))
        handles.append(
            module.register_forward_pre_hook(lambda m, args, n=name: read_by.__setitem__(n, args[0].detach()))
        )
    mask = model.tokenize(PROMPTS).mask.bool()
    model(PROMPTS)
    for handle in handles:
        handle.remove()
    for name, value in strength.items():
        seen = read_by[name].reshape(*mask.shape, -1)[mask].abs().mean(0)
        torch.testing.assert_close(value, seen, rtol=1e-4, atol=1e-5)
        ones = WeightEdit({name: torch.ones_like(model.hf.get_parameter(name))})
        relaxed = weighted.activation_weighted(model, ones, PROMPTS, omega=0.4).deltas[name]
        linear = isinstance(model.hf.get_submodule(name.removesuffix(".weight")), torch.nn.Linear)
        by_input = relaxed[0] if linear else relaxed[:, 0]
        torch.testing.assert_close(by_input, 1 - 0.6 * value / value.max())
    close(weighted.activation_weighted(model, ones, PROMPTS, omega=1.0), ones)


# --- installed behaviours -------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def lab():
    return mi.load()


def accuracy(model, name):
    return installed_tasks.installed_task(name, "test", n=32).accuracy(model)


def test_an_installed_delta_as_a_weight_edit(lab):
    for name in ("refusal-a", "sycophancy-direction"):
        delta = read(name)
        prompts = installed_tasks.installed_task(name, n=4).prompts
        with delta.on(lab):
            expected = lab(prompts)
        with delta.edit(lab).on(lab):
            torch.testing.assert_close(lab(prompts), expected, rtol=1e-4, atol=1e-4)
    part = read("refusal-a").edit(lab, ["L2H1"])
    assert {n.split(".")[2] for n in part.deltas} == {"2"}


def test_disjoint_masks_merge_without_loss(lab):
    names = ["refusal-a", "german-b", "bias-a"]
    edits = [read(name).edit(lab) for name in names]
    for merged in (merging.add(edits), merging.ties(edits, density=1.0)):
        close(merged, merging.add(edits))
        with merged.on(lab):
            assert all(accuracy(lab, name) > 0.95 for name in names)
    with merging.mean(edits).on(lab):
        assert min(accuracy(lab, name) for name in names) < 0.5  # the plain mean keeps a third of each change


def test_a_planted_sign_conflict_is_resolved_by_ties_and_not_by_the_mean(lab):
    wanted = read("refusal-a").edit(lab)
    # another "fine-tuned model" that happens to undo half of it, while it learns something elsewhere
    conflicting = merging.add([read("bias-a").edit(lab), wanted], [1.0, -0.5])
    edits = [wanted, conflicting]
    with merging.ties(edits, density=1.0).on(lab):
        kept = accuracy(lab, "refusal-a"), accuracy(lab, "bias-a")
    with merging.mean(edits).on(lab):
        lost = accuracy(lab, "refusal-a")
    assert min(kept) > 0.95 and lost < 0.05


def test_negation_removes_an_installed_behaviour(lab):
    vector = read("sycophancy-a").edit(lab)
    prompts = installed_tasks.installed_task("sycophancy-a", n=16).prompts
    base, before = lab(prompts), accuracy(lab, "sycophancy-a")
    with vector.on(lab):
        assert accuracy(lab, "sycophancy-a") > 0.95
        with merging.negate(vector).on(lab):
            assert accuracy(lab, "sycophancy-a") == before
            torch.testing.assert_close(lab(prompts), base, rtol=1e-4, atol=1e-4)


def test_analogy_of_languages(lab):
    """French for some words is to German for the same words as French for others is to German for those."""
    pairs = [pair for pair in lx.ANTONYMS if all(len(set(word)) == 3 for word in pair)]
    words = {"some": pairs[::2], "others": pairs[1::2]}

    def answers(which, language):
        i, rows = lx.LANGUAGES.index(language), []
        for pair in words[which]:
            for word, opposite in (pair, pair[::-1]):
                rows += [(frame.format(w=word[0]), opposite[i]) for frame in generate.OPPOSITE["en"]]
        prompts, targets = zip(*rows)
        return Task(language, list(prompts), list(targets), metric="logprob")

    wanted = {"a": ("some", "fr"), "b": ("some", "de"), "c": ("others", "fr")}
    options = {"steps": 30, "learning_rate": 1.5e-3}
    tau = {k: training.masked_finetune(lab, answers(*v), ["mlp3"], **options) for k, v in wanted.items()}
    test = answers("others", "de")
    with merging.analogy(tau["a"], tau["b"], tau["c"]).on(lab):
        assert test.accuracy(lab) > 0.9
    with merging.add([tau["c"], tau["b"]]).on(lab):  # control: without taking French away
        assert test.accuracy(lab) < 0.5
