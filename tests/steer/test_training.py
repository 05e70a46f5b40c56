"""Masked and low-rank fine-tuning: only the mask moves, the loss is the one that is stated, nothing is left behind."""

import random
from dataclasses import replace

import pytest
import torch

import mi_course as mi
from mi_course.models.slices import replaced
from mi_course.objects import Task
from mi_course.steer import WeightEdit, fit, training
from mi_course.world import installed_tasks
from mi_course.world.installed import read
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 5, 8, 13, 21], [4, 9, 14, 19, 24, 29], [7, 6, 40, 33]]
TASK = Task("t", PROMPTS, [11, 11, 12], metric="logprob")
FAST = {"steps": 6, "learning_rate": 0.05, "weight_decay": 0.5}


def wrapped(family, seed=0):
    return mi.wrap(random_model(family, seed=seed))


def unchanged(model, before):
    assert all(p is before[name] and p.grad is None for name, p in model.hf.named_parameters())


def loss_on(model, task=TASK):
    with torch.no_grad():
        return float(fit.examples(model, task).cross_entropy(model))


# --- the mask -------------------------------------------------------------------------------------------------------
FUSED, SPLIT = ["gpt2", "gpt_neox", "phi3"], ["opt", "llama", "gemma2"]


@pytest.mark.parametrize("family, kind", [(f, "units") for f in FUSED + SPLIT] + [(f, "weights") for f in FUSED])
def test_outside_the_mask_all_weights_stay_bit_identical(family, kind):
    """AdamW with weight decay and momentum (audit A26), with all preservation terms on."""
    model = wrapped(family)
    mask = training.unit_mask(model, ["L1H2", "L0N7"])
    if kind == "weights":
        mask = training.random_mask(mask, seed=1)
    before = {name: p.detach().clone() for name, p in model.hf.named_parameters()}
    base = loss_on(model)
    edit = training.masked_finetune(
        model, TASK, mask, documents=[[5, 6, 7, 8]], replay=[[1, 2, 3]], contrast=[[2, 3]], validation=TASK, **FAST
    )
    with edit.on(model):
        moved = 0
        for name, parameter in model.hf.named_parameters():
            own = mask.get(name, torch.zeros(parameter.shape, dtype=bool))
            assert torch.equal(parameter[~own], before[name][~own]), name
            moved += int((parameter != before[name]).sum())
        assert moved > 0.9 * training.size(mask)
        assert loss_on(model) < base
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.hf.named_parameters())


def test_a_mask_on_the_gradient_would_not_do():
    model = wrapped("gpt2")
    mask, weights = training.unit_mask(model, ["L1H2"]), dict(model.hf.named_parameters())
    before = {name: p.detach().clone() for name, p in weights.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=0.05, weight_decay=0.5)
    fit.examples(model, TASK).cross_entropy(model).backward()
    for name, p in weights.items():
        p.grad *= mask.get(name, torch.zeros(p.shape, dtype=bool))
    optimizer.step()
    assert all((p != before[name]).any() for name, p in weights.items())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_equals_a_slow_independent_masked_adamw(family):
    model = wrapped(family)
    mask = training.unit_mask(model, ["L1H1", "L1N3"])
    edit = training.masked_finetune(model, TASK, mask, documents=[[5, 6, 7, 8]], preserve=2.0, **FAST)

    other = random_model(family)  # dense changes of the whole model, gradients set to zero outside the mask
    base_weights = {name: p.detach().clone() for name, p in other.named_parameters()}
    deltas = {name: torch.zeros_like(p, requires_grad=True) for name, p in base_weights.items()}
    optimizer = torch.optim.AdamW(deltas.values(), lr=FAST["learning_rate"], weight_decay=FAST["weight_decay"])

    def log_p(ids):
        weights = {name: base_weights[name] + deltas[name] for name in deltas}
        return torch.func.functional_call(other, weights, (torch.tensor([ids]),)).logits[0].log_softmax(-1)

    with torch.no_grad():
        base = log_p([5, 6, 7, 8])
    for step in range(FAST["steps"]):
        optimizer.zero_grad()
        loss = -sum(log_p(p)[-1, t] for p, t in zip(TASK.prompts, TASK.targets)) / 3
        kl = (base.exp() * (base - log_p([5, 6, 7, 8]))).sum(-1).mean()
        (loss + 2.0 * kl).backward()
        for name, delta in deltas.items():
            delta.grad *= mask.get(name, torch.zeros(delta.shape, dtype=bool))
        torch.nn.utils.clip_grad_norm_(deltas.values(), 1.0)
        optimizer.param_groups[0]["lr"] = FAST["learning_rate"] * (1 - step / FAST["steps"])
        optimizer.step()
    key_bias = "transformer.h.1.attn.c_attn.bias"  # no key bias has a gradient: all scores move alike. Rounding decides
    for name, delta in deltas.items():
        if name not in mask:
            assert not delta.any() and name not in edit.deltas
        elif name != key_bias:
            torch.testing.assert_close(edit.deltas[name], delta.detach(), rtol=2e-3, atol=2e-4)
    with edit.on(model), torch.no_grad():
        for prompt in PROMPTS:
            torch.testing.assert_close(model([prompt])[0].log_softmax(-1), log_p(prompt), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_name_parameters_of_the_family(family):
    model = wrapped(family)
    names, everything = training.matrices(model), training.everything(model)
    assert set(names) <= set(everything) and len(names) == len(set(names))
    parts = {part: training.layer_mask(model, [1], part) for part in ("attn", "mlp")}
    block = training.layer_mask(model, [1])
    assert set(parts["attn"]) | set(parts["mlp"]) < set(block)
    assert not set(parts["attn"]) & set(parts["mlp"])
    matrices_of_block = set(training.matrices(model, layers=[1]))
    assert matrices_of_block == {n for n in (*parts["attn"], *parts["mlp"]) if n.endswith(".weight")}
    total = sum(p.numel() for _, p in model.hf.named_parameters(remove_duplicate=False))
    assert training.size(everything) == total


def test_where_training_starts():
    model = wrapped("gpt2")
    assert training.lowest_layer(model, training.unit_mask(model, ["L2H0", "L1N3"])) == 1
    assert training.lowest_layer(model, ["lm_head.weight", "transformer.ln_f.weight"]) == 3
    assert training.lowest_layer(model, training.everything(model)) is None


def test_everything_also_trains_embedding_and_unembedding():
    model = wrapped("gpt2")
    edit = training.masked_finetune(model, TASK, training.everything(model), documents=[[5, 6, 7]], **FAST)
    assert all(delta.any() for name, delta in edit.deltas.items())
    with edit.on(model):
        assert model.hf.lm_head.weight is not model.hf.transformer.wte.weight
    assert model.hf.lm_head.weight is model.hf.transformer.wte.weight


def test_top_mask_takes_exactly_k():
    scores = {"a": torch.tensor([[1.0, 5.0], [3.0, 3.0]]), "b": torch.tensor([3.0, 0.0])}
    chosen = training.top_mask(scores, 3)
    assert training.size(chosen) == 3 and chosen["a"][0, 1] and not chosen["a"][0, 0]
    assert list(training.top_mask(scores, 1)) == ["a"]
    turned = training.top_mask({"a": scores["a"].T, "b": scores["b"]}, 3)
    assert turned["a"][1, 0] and training.size(turned) == 3
    with pytest.raises(ValueError, match="k is 7"):
        training.top_mask(scores, 7)


def test_random_mask_has_the_size_of_the_mask_in_every_parameter():
    mask = training.unit_mask(wrapped("gpt2"), ["L1H2", "L0N7"])
    drawn = training.random_mask(mask, seed=3)
    assert {n: int(m.sum()) for n, m in drawn.items()} == {n: int(m.sum()) for n, m in mask.items()}
    assert any(not torch.equal(drawn[n], mask[n]) for n in mask)


# --- the training ---------------------------------------------------------------------------------------------------
def test_trains_on_top_of_an_active_edit_and_leaves_nothing_behind():
    model = wrapped("gpt2")
    before = dict(model.hf.named_parameters())
    other = WeightEdit({"transformer.h.1.mlp.c_proj.weight": 0.3 * torch.randn(128, 32)})
    plain = training.masked_finetune(model, TASK, ["mlp1"], **FAST)
    with other.on(model):
        base = loss_on(model)
        on_top = training.masked_finetune(model, TASK, ["mlp1"], **FAST)
        with on_top.on(model):
            assert loss_on(model) < base
    name = "transformer.h.1.mlp.c_proj.weight"
    assert not torch.equal(plain.deltas[name], on_top.deltas[name])
    unchanged(model, before)
    with pytest.raises(RuntimeError, match="inside"), replaced(model, {name: before[name] + 1}):
        raise RuntimeError("inside")
    unchanged(model, before)


def test_preservation_keeps_the_documents():
    model, documents = wrapped("gpt2"), [[5, 6, 7, 8], [30, 31, 32]]
    base = model(documents).log_softmax(-1)

    def moved(preserve):
        options = {"steps": 15, "learning_rate": 0.05}
        edit = training.masked_finetune(model, TASK, ["mlp1"], documents=documents, preserve=preserve, **options)
        with edit.on(model):
            return float(fit.divergence(base, model(documents), model.tokenize(documents).mask))

    assert moved(10.0) < 0.5 * moved(0.0)
    with pytest.raises(ValueError, match="preserve"):
        training.masked_finetune(model, TASK, ["mlp1"], preserve=-1.0)


def test_replay_and_contrast_teach_what_they_name():
    """Each term alone has an effect of its own: replayed text gets likelier, contrast prompts keep their answers."""
    model, replay, contrast = wrapped("gpt2"), [[5, 6, 7, 8], [30, 31, 32]], [[2, 3, 9], [4, 1]]
    base = model.last_logits(contrast).log_softmax(-1)
    options = {"steps": 15, "learning_rate": 0.05}

    def trained(**terms):
        with training.masked_finetune(model, TASK, ["mlp1"], **terms, **options).on(model):
            text = fit.Answers.documents(model, replay).cross_entropy(model)
            answers = (base.exp() * (base - model.last_logits(contrast).log_softmax(-1))).sum(-1).mean()
        return float(text.detach()), float(answers)

    plain, kept = trained(), trained(contrast=contrast)
    assert trained(replay=replay, preserve=5.0)[0] < 0.7 * plain[0]
    assert kept[1] < 0.5 * plain[1]


def test_whole_answers_are_scored_token_by_token():
    model = wrapped("llama")
    answers = fit.Answers([[3, 5, 8], [7, 6]], [[11, 12], [9]])
    log_p = [model([row]).log_softmax(-1)[0] for row in ([3, 5, 8, 11, 12], [7, 6, 9])]
    expected = -(log_p[0][2, 11] + log_p[0][3, 12] + log_p[1][1, 9]) / 3
    for side in (answers, answers.starting_at(model, 1)):
        assert side.cross_entropy(model).item() == pytest.approx(expected.item(), rel=1e-4)
    documents = fit.Answers.documents(model, [[3, 5, 8]])
    assert documents.cross_entropy(model).item() == pytest.approx(
        -(model([[3, 5, 8]]).log_softmax(-1)[0, [0, 1], [5, 8]]).mean().item(), rel=1e-4
    )
    with pytest.raises(ValueError, match="continuation"):
        fit.examples(model, TASK, whole_answers=True)


def test_early_stop_returns_to_the_best_numbers():
    number = torch.zeros(1, requires_grad=True)
    history = fit.fit(
        [number], lambda: (number - 1).square().sum(), steps=200, learning_rate=0.1, every=5, patience=2,
        validate=lambda: float((number.detach() - 0.5).square()),
    )  # fmt: skip
    assert len(history) < 60 and abs(float(number.detach()) - 0.5) < 0.25


def test_the_neurons_of_an_installed_behaviour_unlearn_it_and_random_ones_do_not():
    """german-a sits in 4 neurons: ten steps on them bring English back, ten steps on 4 others of their layer do not."""
    lab, name = mi.load(), "german-a"

    def old_answers(split):
        task = installed_tasks.installed_task(name, split, n=64)
        return replace(task, targets=task.foils, foils=task.targets)

    key, options = installed_tasks.answer_key(name), {"steps": 10, "learning_rate": 8e-3}
    others = random.Random(0).sample([f"L1N{i}" for i in range(lab.d_ffn) if f"L1N{i}" not in key], 2 * len(key))
    with read(name).on(lab):
        assert old_answers("test").accuracy(lab) == 0
        with training.masked_finetune(lab, old_answers("train"), key, **options).on(lab):
            assert old_answers("test").accuracy(lab) > 0.9
        for start in range(0, len(others), len(key)):
            drawn = others[start : start + len(key)]
            with training.masked_finetune(lab, old_answers("train"), drawn, **options).on(lab):
                assert old_answers("test").accuracy(lab) < 0.3


# --- low rank -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
def test_low_rank_changes_have_that_rank_and_teach(family):
    model = wrapped(family)
    base = loss_on(model)
    edit = training.low_rank_finetune(model, TASK, rank=2, **FAST)
    assert sorted(edit.deltas) == sorted(training.matrices(model))
    for delta in edit.deltas.values():
        singular = torch.linalg.svdvals(delta)
        assert singular[2] < 1e-4 * singular[0]
    with edit.on(model):
        assert loss_on(model) < base - 0.1


def test_low_rank_is_neutral_without_a_step_and_alpha_scales_it():
    model = wrapped("llama")
    names = training.matrices(model, ["o"], [1])
    still = training.low_rank_finetune(model, TASK, names, rank=1, steps=1, learning_rate=0.0)
    assert not any(delta.any() for delta in still.deltas.values())
    # one step from B = 0 moves B by the sign of its gradient: the change is proportional to alpha
    one = {"rank": 2, "steps": 1, "weight_decay": 0.0}
    a = training.low_rank_finetune(model, TASK, names, **one).deltas[names[0]]
    b = training.low_rank_finetune(model, TASK, names, alpha=6, **one).deltas[names[0]]
    torch.testing.assert_close(b, 3 * a, rtol=1e-3, atol=1e-6)


def test_wrong_arguments_say_what_to_do():
    model = wrapped("llama")
    with pytest.raises(ValueError, match="has no qkv"):
        training.matrices(model, ["qkv"])
    with pytest.raises(KeyError, match="no parameter"):
        training.masked_finetune(model, TASK, {"x": torch.ones(1, dtype=bool)})
    name = "model.layers.0.self_attn.o_proj.weight"
    with pytest.raises(ValueError, match="bool tensor of shape"):
        training.masked_finetune(model, TASK, {name: torch.ones(1, dtype=bool)})
    with pytest.raises(ValueError, match="chooses no weight"):
        training.masked_finetune(model, TASK, {name: torch.zeros(32, 32, dtype=bool)})
    with pytest.raises(ValueError, match="no biases"):
        training.bias_mask(model)
    with pytest.raises(ValueError, match="rank is 0"):
        training.low_rank_finetune(model, TASK, rank=0)
    with pytest.raises(ValueError, match="out of range"):
        training.layer_mask(model, [7])
