"""Localizers against compiled models, where every effect is known, and against identities on random ones."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import causal
from mi_course.objects import Task
from mi_course.world import compiled
from tests.families import random_model

COMPILED = [
    compiled.induction,
    compiled.lookup,
    compiled.cancelling,
    compiled.and_gate,
    compiled.or_gate,
    compiled.backup,
    compiled.saturated,
    compiled.rotated_basis,
    compiled.constant_bias,
    compiled.polysemantic,
    compiled.mediation,
]
# patch_each patches one site at a time; the keys with several sites are for ablations only
CASES = [(make, k) for make in COMPILED for k in make().expected if len(k.split()) == 2 or k.split()[0] in causal.KINDS]


@pytest.mark.parametrize("make, key", CASES, ids=[f"{m.__name__}: {k}" for m, k in CASES])
def test_effects_are_those_of_the_answer_key(make, key):
    c = make()
    model = c.wrap()
    kind, *sites = key.split()
    if kind in causal.KINDS:
        found = causal.ablate_together(model, c.task, sites, kind).mean().item()
        if len(sites) == 1:
            assert causal.ablate_each(model, c.task, sites, kind)[sites[0]] == pytest.approx(found, abs=1e-4)
    else:
        found = causal.patch_each(model, c.task, sites, kind)[sites[0]]
    assert found == pytest.approx(c.expected[key], abs=1e-3)


def test_tracing_finds_the_look_up_at_the_subject():
    c = compiled.lookup()
    model = c.wrap()
    task = Task("t", c.task.prompts, c.task.targets, metric="prob")
    spans = [(4, 5)] * len(task)  # <bos> the capital of SUBJECT is
    roles = {"subject": [4] * len(task), "after": [5] * len(task), "before": [3] * len(task)}
    trace = causal.causal_trace(model, task, spans, roles, noise=20.0, seed=1)
    assert trace.total > 0.5
    subject, after, before = trace.average.unbind(1)
    # x1 at the subject holds what the FFN of layer 0 looked up; the last token fetches it in layer 1
    assert subject.tolist() == pytest.approx([trace.total, trace.total, 0.0], abs=1e-4)
    assert after.tolist() == pytest.approx([0.0, 0.0, trace.total], abs=1e-4)
    assert before.abs().max() < 1e-4


def random_task(family="gpt2", metric="prob"):
    model = mi.wrap(random_model(family))
    prompts = [[0, 5, 6, 7, 8], [0, 9, 10, 11], [0, 3, 4, 5, 6, 7, 8]]
    twins = [[0, 15, 6, 7, 8], [0, 9, 20, 11], [0, 3, 14, 5, 6, 7, 8]]
    task = Task("t", prompts=prompts, corrupted=twins, targets=[1, 2, 3], foils=[4, 5, 6], metric=metric)
    return model, task


def test_patching_with_the_same_input_does_nothing_and_patching_everything_swaps():
    model, task = random_task(metric="logit_diff")
    same = Task("t", prompts=task.prompts, corrupted=task.prompts, targets=task.targets, foils=task.foils)
    sites = ["x1", "L0H1.z", "attn1@-1", "L1N3@1", "mlp2"]
    assert causal.patch_each(model, same, sites, "noising").values.tolist() == [0.0] * 5
    swap = (task.measure(model, on="clean") - task.measure(model, on="corrupted")).mean().item()
    last = f"x{model.n_layers}"
    assert causal.patch_each(model, task, ["x0", last, f"{last}@-1"], "denoising").values == pytest.approx(
        swap, abs=1e-5
    )
    assert causal.patch_each(model, task, ["x0", last], "noising").values == pytest.approx(-swap, abs=1e-5)


def test_signs_costs_and_errors():
    model, task = random_task()
    scores = causal.ablate_each(model, task, causal.heads(model), "mean")
    assert scores.sign == "ablation" and len(scores) == model.n_layers * model.n_heads
    # three prompts: the base run, the means, and for four heads in each layer the layers from theirs on
    assert scores.forwards == 3 * (1 + 1 + 4 * (3 + 2 + 1) / 3)
    assert scores.per_item.shape == (12, 3) and scores.per_item.mean(1) == pytest.approx(scores.values)
    assert causal.patch_each(model, task, ["x1"]).sign == "denoising"
    with pytest.raises(ValueError, match="kind='blur'"):
        causal.ablate_each(model, task, ["mlp0"], "blur")
    with pytest.raises(ValueError, match="direction"):
        causal.patch_each(model, task, ["mlp0"], "sideways")
    with pytest.raises(ValueError, match="no corrupted"):
        causal.patch_each(model, Task("t", task.prompts, task.targets, metric="prob"), ["x1"])
    with pytest.raises(ValueError, match="means is missing"):
        causal.ablation(["mlp0"], "mean")


def test_site_means_leave_padding_out():
    model, task = random_task()
    means = causal.site_means(model, task.prompts, ["L1H2.z", "L0N3"], batch_size=2)
    rows = [mi.record(model, [p], ["L1H2.z", "L0N3"]) for p in task.prompts]
    for site in means:
        assert torch.allclose(means[site], torch.cat([r[site][0] for r in rows]).mean(0), atol=1e-5)


SPANS = [(1, 3), (1, 2), (2, 5)]
ROLES = {
    "before": [0, 0, 1],
    "last subject": [2, 1, 4],
    "last": [4, 3, 6],
    "some": [None, 1, None],
}


def test_tracing_identities():
    model, task = random_task()
    trace = causal.causal_trace(model, task, SPANS, ROLES, draws=2)
    te = trace.clean - trace.corrupted
    assert te.abs().min() > 1e-5
    assert trace.sites == ["x0", "x1", "x2", "x3"]
    before, subject, last, some = trace.effects.unbind(-1)
    assert before.abs().max() < 1e-6  # those tokens cannot see the noise
    assert torch.allclose(last[:, -1], te, atol=1e-5)  # x^L at the last token is all that the answer sees
    assert torch.allclose(last[:, 0], torch.zeros(3), atol=1e-6)  # its embedding is clean anyway
    assert torch.allclose(
        subject[1, 0], te[1], atol=1e-5
    )  # the whole subject is one token: restoring it undoes the noise
    assert (subject[0, 0] - te[0]).abs() > 1e-6  # the other subject has a second noised token
    assert some.isnan().all(1).tolist() == [True, False, True]
    assert torch.allclose(some[1], subject[1])
    assert trace.scores("last").values[-1] == pytest.approx(trace.total, abs=1e-5)


def test_tracing_is_null_without_noise_and_independent_of_the_batch():
    model, task = random_task()
    assert causal.causal_trace(model, task, SPANS, ROLES, noise=0.0).effects.nan_to_num().abs().max() < 1e-6
    # the window of all layers at the last token restores everything that reaches the answer
    whole = causal.causal_trace(model, task, SPANS, ROLES, window=7)
    assert torch.allclose(whole.effects[:, 1, 2], whole.clean - whole.corrupted, atol=1e-5)


def test_window_restores_neighbours():
    # mlp0..mlp2 restored at every token of a parallel-free model: window 3 at the middle equals patching all three
    model, task = random_task()
    trace = causal.causal_trace(model, task, SPANS, ROLES, kind="mlp", window=3)
    assert trace.sites == ["mlp0", "mlp1", "mlp2"]
    sweep = causal.Sweep(model, task)
    subject = causal.span_mask(sweep.batch, SPANS)
    sigma = 3.0 * model.hf.get_input_embeddings().weight.std()
    noise = sigma * torch.randn(*subject.shape, model.d_model, generator=torch.Generator().manual_seed(0))
    corrupt = mi.edit("embed", lambda value: value + noise, positions=subject)
    states = mi.record(model, task.prompts, trace.sites)
    where = torch.tensor(ROLES["last subject"])
    restored = sweep.measure([corrupt, *(mi.patch(s, states[s], positions=where) for s in trace.sites)])
    assert torch.allclose(trace.effects[:, 1, 1], restored - sweep.measure([corrupt]), atol=1e-5)


def test_span_mask_counts_real_tokens():
    model, task = random_task()
    for side in ("left", "right"):
        batch = model.tokenize(task.prompts, side=side)
        mask = causal.span_mask(batch, SPANS)
        assert [batch.ids[i][mask[i]].tolist() for i in range(3)] == [[5, 6], [9], [4, 5, 6]]
    with pytest.raises(ValueError, match="spans"):
        causal.span_mask(batch, [(1, 3), (1, 9), (2, 5)])
