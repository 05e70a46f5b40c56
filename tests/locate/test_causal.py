"""Localizers against compiled models, where every effect is known, and against identities on random ones."""

from dataclasses import replace

import pytest
import torch

import mi_course as mi
from mi_course.locate import causal
from mi_course.models import weights
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


EVEN = Task(
    "even", [[0, 5, 6, 7], [0, 9, 10, 11], [0, 3, 4, 8], [0, 7, 7]], targets=[1, 2, 3, 4], foils=[4, 5, 6, 7]
).subset(3)  # three prompts of equal length


def test_resample_and_position_mean_keep_to_their_length():
    model, task = mi.wrap(random_model("gpt2")), EVEN
    z = mi.record(model, task.prompts, ["L1H2.z"])["L1H2.z"]
    other = causal.references(model, task, ["L1H2.z"], "resample", seed=1)["L1H2.z"]
    donor = [next(j for j in range(3) if torch.equal(other[i], z[j])) for i in range(3)]
    assert sorted(donor) == [0, 1, 2] and all(i != j for i, j in enumerate(donor))
    at_position = causal.references(model, task, ["L1H2.z"], "position mean")["L1H2.z"]
    assert torch.allclose(at_position, z.mean(0).expand_as(z), atol=1e-6)
    for kind in ("resample", "position mean"):
        means = causal.references(model, task, ["L1H2.z"], kind)
        with mi.intervene(model, mi.patch("L1H2.z", means["L1H2.z"])):
            expected = task.measure(model)
        found = causal.ablate_each(model, task, ["L1H2.z"], kind)
        assert found.per_item[0] == pytest.approx((expected - task.measure(model)).numpy(), abs=1e-5)
    alone = Task("t", [[0, 5, 6, 7], [0, 9, 10]], targets=[1, 2], metric="prob")
    with pytest.raises(ValueError, match="only one with"):
        causal.references(model, alone, ["mlp0"], "resample")


def test_a_constant_head_is_only_missed_by_zero():
    c = compiled.constant_bias()
    model = c.wrap()
    effects = {kind: causal.ablate_each(model, c.task, ["L0H0.z"], kind).values[0] for kind in causal.KINDS}
    assert effects.pop("zero") == pytest.approx(c.expected["zero L0H0"], abs=1e-3)
    assert list(effects.values()) == pytest.approx([0, 0, 0], abs=1e-3)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neo", "gemma2", "opt"])
def test_knock_out_blocks_exactly_the_pairs(family):
    model, task = random_task(family)
    batch = model.tokenize(task.prompts)
    queries, keys = causal.position_mask(batch, -1), causal.span_mask(batch, SPANS)
    with mi.intervene(model, *causal.knock_out(batch, [1], queries, keys)):
        pattern = mi.record(model, batch, ["pattern0", "pattern1"])
    pairs = (queries[:, :, None] & keys[:, None, :])[:, None].expand_as(pattern["pattern1"])
    plain = mi.record(model, batch, ["pattern0", "pattern1"])
    assert pattern["pattern1"][pairs].abs().max() == 0 and plain["pattern1"][pairs].abs().max() > 0
    assert torch.allclose(pattern["pattern1"].sum(-1), plain["pattern1"].sum(-1), atol=1e-5)
    rows = ~queries[:, None, :, None].expand_as(pattern["pattern1"])
    assert torch.allclose(pattern["pattern1"][rows], plain["pattern1"][rows])
    assert torch.equal(pattern["pattern0"], plain["pattern0"])
    sweep = causal.knock_out_sweep(model, task, queries, keys, window=99)
    with mi.intervene(model, *causal.knock_out(batch, range(model.n_layers), queries, keys)):
        blocked = task.measure(model)
    assert sweep.per_item[0] == pytest.approx((blocked - task.measure(model)).numpy(), abs=1e-5)
    with pytest.raises(ValueError, match="no position at all"):
        causal.knock_out(batch, [0], batch.mask.bool(), batch.mask.bool())


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "phi3"])
def test_pruning_all_of_a_unit_is_its_zero_ablation(family):
    model, task = random_task(family)
    weights = {name: p.clone() for name, p in model.hf.named_parameters()}
    for unit, site in (("L1H2", "L1H2.z"), ("L0N3", "L0N3"), ("mlp1", "mlp1")):
        with mi.intervene(model, mi.zero(site)):
            expected = task.measure(model)
        with causal.pruned(model, [unit]):
            assert torch.allclose(task.measure(model), expected, atol=1e-6)
        with causal.pruned(model, [unit], "reading"):
            reading = task.measure(model)
        assert not torch.allclose(reading, task.measure(model), atol=1e-7)
    if family == "gpt2":  # its FFN has a bias, which pruning of matrices leaves
        with causal.pruned(model, ["mlp1"], "matrices"):
            mlp = mi.record(model, task.prompts, ["mlp1"])["mlp1"]
        assert torch.allclose(mlp, model.block(1).mlp.c_proj.bias.expand_as(mlp), atol=1e-6)
        assert not torch.allclose(reading, expected, atol=1e-6)
    with pytest.raises(RuntimeError, match="stop"), causal.pruned(model, ["mlp0"]):
        raise RuntimeError("stop")
    assert all(torch.equal(p, weights[name]) for name, p in model.hf.named_parameters())
    with pytest.raises(ValueError, match="what='some'"), causal.pruned(model, ["mlp0"], "some"):
        pass


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_pruning_the_reading_matrices_leaves_a_constant(family):
    """A neuron that reads nothing writes act(b_in) times its value, a head b_V W_O; what they write with stays."""
    model, task = random_task(family)
    w = weights.ffn(model, 1)
    constant = torch.zeros(model.d_model) if model.family.gated else (w.act(w.b_in) @ w.W_out + w.b_out).detach()
    value = w.W_out.detach().clone()
    with causal.pruned(model, ["mlp1", "L0H2"], "reading"):
        assert torch.equal(weights.ffn(model, 1).W_out, value)
        cache = mi.record(model, task.prompts, ["mlp1", "L0H2"])
    assert torch.allclose(cache["mlp1"], constant.expand_as(cache["mlp1"]), atol=1e-5)
    if family == "gpt2":  # llama's heads share their keys and values: those matrices are not a head's own
        head = cache["L0H2"][:, -1]
        bias = model.block(0).attn.c_attn.bias[2 * model.d_model :].view(model.n_heads, -1)[2]
        rows = model.block(0).attn.c_proj.weight.view(model.n_heads, -1, model.d_model)[2]
        assert torch.allclose(head, (bias @ rows).expand_as(head), atol=1e-5)
        assert constant.norm() > 0.01 and head.norm() > 0.01


def test_ships_is_the_divergence():
    model, task = random_task("gemma2")
    found = causal.ships(model, task, ["L0H1.z", "mlp1"])
    base = torch.distributions.Categorical(logits=model.last_logits(task.prompts))
    with mi.intervene(model, mi.zero("L0H1.z")):
        gone = torch.distributions.Categorical(logits=model.last_logits(task.prompts))
    expected = torch.distributions.kl_divergence(base, gone)
    assert found.per_item[0] == pytest.approx(expected.numpy(), abs=1e-5)
    assert (found.values > 0).all() and found.sign == "ablation"


def test_the_metric_changes_the_order():
    """Two neurons, each for a prompt of its own, lose half: 10 of 20 logits, where P is saturated, and 2 of 4."""
    c = compiled.lookup()
    model = c.wrap()
    with torch.no_grad():
        model.hf.transformer.h[0].mlp.c_proj.weight[0] *= 2
        model.hf.transformer.h[0].mlp.c_proj.weight[1] *= 0.4
    two, sites = c.task.subset([0, 1]), ["L0N0", "L0N1"]
    cells = [[mi.scale(site, 0.5)] for site in sites]
    by_logit = causal.Sweep(model, two).effects(cells).mean(1).tolist()
    by_prob = causal.Sweep(model, replace(two, metric="prob")).effects(cells).mean(1).tolist()
    assert by_logit[0] < 2 * by_logit[1] < -0.5
    assert by_prob[1] < -0.1 < -0.01 < by_prob[0] < 0


def test_severing_ffns_takes_the_early_site_away():
    """In `lookup` the FFN of layer 0 writes what the subject means: restoring x0 works through it alone."""
    c = compiled.lookup()
    model = c.wrap()
    task = Task("t", c.task.prompts, c.task.targets, metric="prob")
    spans, roles = [(4, 5)] * len(task), {"subject": [4] * len(task)}
    free, without_ffn, without_attention = (
        causal.causal_trace(model, task, spans, roles, noise=20.0, seed=1, severed=severed)
        for severed in (None, "mlp", "attn")
    )
    x0, x1, _ = free.average[:, 0]
    assert x0 > 0.5 and x1 > 0.5
    assert without_ffn.average[0, 0] < 1e-3  # nothing is looked up
    # the subject is one token: restoring x0 undoes the noise, so this is the clean run with the corrupted FFN outputs
    batch = model.tokenize(task.prompts)
    subject = causal.span_mask(batch, spans)
    sigma = 20.0 * model.hf.get_input_embeddings().weight.std()
    noise = sigma * torch.randn(*subject.shape, model.d_model, generator=torch.Generator().manual_seed(1))
    ffns = causal.ffns(model)
    with mi.intervene(model, mi.edit("embed", lambda value: value + noise, positions=subject)):
        corrupted, frozen = task.measure(model), mi.record(model, batch, ffns)
    with mi.intervene(model, *(mi.patch(site, frozen[site], positions=subject) for site in ffns)):
        expected = task.measure(model) - corrupted
    assert torch.allclose(without_ffn.effects[:, 0, 0], expected, atol=1e-4)
    assert without_ffn.average[1, 0] == pytest.approx(x1.item(), abs=1e-3)  # it was looked up already
    assert without_attention.average[0, 0] == pytest.approx(x0.item(), abs=1e-3)
    with pytest.raises(ValueError, match="severed"):
        causal.causal_trace(model, task, spans, roles, kind="mlp", severed="mlp")


def test_more_noise_corrupts_more():
    c = compiled.lookup()
    model, task = c.wrap(), Task("t", c.task.prompts, c.task.targets, metric="prob")
    totals = [
        causal.causal_trace(model, task, [(4, 5)] * len(task), {"s": [4] * len(task)}, noise=noise).total
        for noise in (0.0, 0.3, 3.0)
    ]
    assert totals[0] == pytest.approx(0, abs=1e-6) and totals[0] < totals[1] < totals[2]
