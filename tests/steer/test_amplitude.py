import pytest
import torch

import mi_course as mi
from mi_course import world
from mi_course.locate import causal
from mi_course.locate.magnitude import matched_sets
from mi_course.models import SiteError
from mi_course.models.weights import attention
from mi_course.objects.sae import SAE
from mi_course.steer import amplitude, saving
from mi_course.steer.steer import Steer
from mi_course.world import compiled
from mi_course.world.installed_tasks import answer_key, behaving, candidates, installed_task
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [4, 4, 5, 6, 7]]
SITES = ["x1", "L0H1.z", "L1H2", "L1N3", "L1N5", "mlp1", "attn0", "tinyF3", "tinyF5"]


def wrapped(family, seed=0):
    """A random model with a small random SAE at x1."""
    model = mi.wrap(random_model(family, seed=seed))
    model.saes["tiny"] = SAE(model.d_model, 40, "topk", k=4, site="x1").requires_grad_(False).eval()
    return model


def under(model, *steers):
    with mi.intervene(model, *steers):
        return model(PROMPTS)


def generated(model, *steers):
    with mi.intervene(model, *steers):
        return model.generate_ids(PROMPTS, 6)


# --- neutral, zero, and nothing left behind --------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_1_is_the_identity_and_alpha_0_is_zero_ablation(family):
    model = wrapped(family)
    base, base_ids = model(PROMPTS), generated(model)
    neutral = amplitude.scale(SITES, 1.0)
    assert torch.equal(under(model, neutral), base) and torch.equal(generated(model, neutral), base_ids)
    for steer in (amplitude.switch_off(SITES), amplitude.clamp({"L1N3": 2.0, "tinyF3": 5.0})):
        assert torch.equal(under(model, steer.scaled(0.0)), base)
    for site in SITES:
        zeroed = under(model, mi.zero(site))
        for off in (amplitude.switch_off([site]), amplitude.scale([site], 0.0)):
            assert torch.equal(under(model, off), zeroed)
    inner = ["L0H1.z", "L1N3", "L1N5"]  # not what a norm reads next, which would blow rounding up
    halfway = amplitude.scale(inner, 3.0).scaled(-0.5)  # 1 - 0.5 (3 - 1) = 0
    assert torch.allclose(under(model, halfway), under(model, amplitude.switch_off(inner)), atol=1e-4)
    assert (under(model, amplitude.switch_off(SITES)) - base).abs().max() > 1e-2
    assert torch.equal(model(PROMPTS), base) and not model.taps._handles


def test_many_neurons_at_once_equal_one_after_the_other():
    model = wrapped("llama")
    sites = ["L0N1", "L1N3", "L1N7", "L1N8@-1"]
    assert torch.equal(under(model, amplitude.switch_off(sites)), under(model, *[mi.zero(s) for s in sites]))
    assert torch.equal(under(model, amplitude.scale(sites, 2.0)), under(model, *[mi.scale(s, 2.0) for s in sites]))
    values = {site: float(i) for i, site in enumerate(sites)}
    one_by_one = [mi.mean(site, value) for site, value in values.items()]
    assert torch.equal(under(model, amplitude.clamp(values)), under(model, *one_by_one))
    assert len(amplitude.switch_off(sites).edits) == 3  # two whole layers, and one layer at one position


def test_mean_and_target_state():
    model = wrapped("gpt2")
    means = causal.site_means(model, PROMPTS, ["L0H1.z", "L1N3", "x2"])
    with amplitude.set_to(means).on(model):
        cache = mi.record(model, PROMPTS, list(means))
    for site, value in means.items():
        assert torch.allclose(cache[site], value.expand_as(cache[site]))
    other = mi.record(model, [row[::-1] for row in PROMPTS], ["x2"])
    assert torch.allclose(under(model, amplitude.set_to({"x2": other["x2"]})), other.logits, atol=1e-5)
    target = other["x2"][0, -1]  # one state, for every token that is generated
    keep = []
    with mi.intervene(
        model, amplitude.set_to({"x2": target}, "generated"), mi.edit("x2", lambda x: keep.append(x) or x)
    ):
        model.generate_ids(PROMPTS, 4, min_new_tokens=4)
    assert all(torch.equal(x, target.expand_as(x)) for x in keep[1:])
    assert not torch.equal(keep[0][0, -1], target)


def test_scaling_a_state_is_no_change_where_the_next_thing_is_a_norm():
    """The last state is only read by the final norm: doubling it changes nothing but epsilon. Scale writes instead."""
    model = wrapped("gpt2")
    louder = under(model, amplitude.scale([f"x{model.n_layers}"], 2.0))
    assert torch.allclose(louder, model(PROMPTS), atol=1e-3)


# --- SAE features ----------------------------------------------------------------------------------------------------
def test_clamp_with_the_error_term_moves_the_state_along_the_features_alone():
    model = wrapped("gpt2")
    sae = model.saes["tiny"]
    x = mi.record(model, PROMPTS, ["x1"])["x1"]
    a = sae.encode(x)
    with amplitude.clamp({"tinyF3": 2.0, "tinyF5": 0.0}).on(model):
        now = mi.record(model, PROMPTS, ["x1"])["x1"]
    expected = x + (2.0 - a[..., 3:4]) * sae.W_dec[3] - a[..., 5:6] * sae.W_dec[5]
    assert torch.allclose(now, expected, atol=1e-5)
    # one after the other is something else: the SAE reads its own output, and other features win
    with mi.intervene(model, mi.mean("tinyF3", torch.tensor(2.0)), mi.mean("tinyF5", torch.tensor(0.0))):
        one_by_one = mi.record(model, PROMPTS, ["x1"])["x1"]
    assert not torch.allclose(one_by_one, expected, atol=1e-3)


def test_clamp_without_the_error_term_is_the_splice_with_a_change():
    model = wrapped("gpt2")
    sae = model.saes["tiny"]
    x = mi.record(model, PROMPTS, ["x1"])["x1"]
    a = sae.encode(x)
    steer = amplitude.clamp_without_error(model, {"tinyF3": 2.0, "tinyF5": 0.0})
    a[..., 3], a[..., 5] = 2.0, 0.0
    with steer.on(model):
        assert torch.allclose(mi.record(model, PROMPTS, ["x1"])["x1"], sae.decode(a), atol=1e-5)
    silent = next(j for j in range(40) if not (sae.encode(x)[..., j] > 0).any())
    assert torch.allclose(under(model, amplitude.clamp({f"tinyF{silent}": 0.0})), model(PROMPTS), atol=1e-5)
    nothing = under(model, amplitude.clamp_without_error(model, {f"tinyF{silent}": 0.0}))
    assert torch.allclose(nothing, under(model, sae.splice()), atol=1e-5)
    assert (nothing - model(PROMPTS)).abs().max() > 0.1
    assert torch.equal(under(model, steer.scaled(0.0)), model(PROMPTS))


# --- edges -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cut_edge_equals_a_knocked_out_score(family):
    model = wrapped(family)
    batch = model.tokenize(PROMPTS)
    queries, keys = causal.position_mask(batch, -1), causal.position_mask(batch, 1)
    with mi.intervene(model, *causal.knock_out(batch, [0, 1], queries, keys)):
        expected = model.last_logits(PROMPTS)
    with amplitude.cut_edges(["pattern0", "pattern1"], keys=1, queries="last").on(model):
        assert torch.allclose(model.last_logits(PROMPTS), expected, atol=1e-4)
    with amplitude.cut_edges(["pattern0"], keys=1, queries="last").scaled(0.0).on(model):
        assert torch.equal(model.last_logits(PROMPTS), model.last_logits(batch))


@pytest.mark.parametrize("renormalise", [True, False])
def test_one_edge_of_one_head(renormalise):
    model = wrapped("llama")
    plain = mi.record(model, PROMPTS, ["pattern1", "L1H2.z", "v1"])
    steer = amplitude.cut_edges("L1H2.pattern", keys=0, queries=2, renormalise=renormalise)
    with steer.on(model):
        now = mi.record(model, PROMPTS, ["pattern1", "L1H2.z"])
    columns = plain.batch.columns(0), plain.batch.columns(2)
    rows = torch.arange(3)
    expected = plain["pattern1"].clone()
    expected[rows, 2, columns[1], columns[0]] = 0.0
    if renormalise:
        expected[rows, 2, columns[1]] /= expected[rows, 2, columns[1]].sum(-1, keepdim=True)
    assert torch.allclose(now["pattern1"], expected, atol=1e-6)
    group = 2 // (model.n_heads // model.n_kv_heads)
    z = torch.einsum("bqk,bkd->bqd", expected[:, 2], plain["v1"][:, :, group])
    assert torch.allclose(now["L1H2.z"], z, atol=1e-5)
    with steer.scaled(0.25).on(model):
        quarter = mi.record(model, PROMPTS, ["pattern1"])["pattern1"]
    assert torch.allclose(quarter, 0.75 * plain["pattern1"] + 0.25 * expected, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_edges_are_cut_while_generating(family):
    """New tokens that must not see prompt token 0: the same as a full pass over prompt and reply, without a cache."""
    model = wrapped(family)
    steer = amplitude.cut_edges([f"pattern{layer}" for layer in range(model.n_layers)], keys=0, queries="generated")
    with steer.on(model):
        ids = model.generate_ids([PROMPTS[0]], 5, min_new_tokens=5)
        assert torch.equal(model.generate_ids([PROMPTS[0]], 5, min_new_tokens=5, use_cache=False), ids)
    whole = torch.cat([torch.tensor([PROMPTS[0]]), ids], 1)
    later = torch.zeros(whole.shape, dtype=torch.bool)
    later[:, len(PROMPTS[0]) :] = True
    sites = [f"pattern{layer}" for layer in range(model.n_layers)]
    with amplitude.cut_edges(sites, keys=0, queries=later).on(model):
        logits = model(whole)[0, len(PROMPTS[0]) - 1 : -1]
    assert (logits.argmax(-1) == ids[0]).sum() >= 4  # min_new_tokens forbids the end token, which may be the largest
    with pytest.raises(ValueError, match="positions"):
        amplitude.cut_edges("pattern0", keys="first")
    with pytest.raises(SiteError, match="no attention pattern"):
        amplitude.cut_edges("L0H1", keys=0)


# --- layers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_layer_equals_a_model_without_it(family):
    model = wrapped(family)
    for layer in range(model.n_layers):
        short = amplitude.without_layers(model, [layer])
        assert short.n_layers == model.n_layers - 1
        steer = amplitude.remove_layers([layer])
        assert torch.allclose(under(model, steer), short(PROMPTS), atol=1e-5)
        assert torch.equal(generated(model, steer), short.generate_ids(PROMPTS, 6))
    old, new = (
        model.hf.get_parameter(name := next(n for n, _ in model.hf.named_parameters())),
        short.hf.get_parameter(name),
    )
    assert old is new  # weights are shared
    assert model.hf.config.num_hidden_layers == model.n_layers == len(model.blocks)
    with pytest.raises(ValueError, match="choose some, not all"):
        amplitude.without_layers(model, range(model.n_layers))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_removed_head_equals_weights_of_zero(family):
    model = wrapped(family)
    off = under(model, amplitude.switch_off(["L1H2.z"]))
    assert torch.allclose(off, under(model, amplitude.switch_off(["L1H2"])), atol=1e-4)
    assert attention(model, 1).W_O[2].abs().max() > 0
    with causal.pruned(model, ["L1H2"]):
        assert torch.allclose(model(PROMPTS), off, atol=1e-4)


# --- conditions, position policies, schedules ------------------------------------------------------------------------
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_position_policies_and_schedule_with_the_cache(family):
    model = wrapped(family)
    factors = []
    for positions, schedule in (("prompt", None), ("generated", None), ("all", (0.5, 0.0))):
        before, after = [], []
        steer = Steer(amplitude.scale(["L0N1"], 3.0, positions).edits, schedule=schedule)
        watch = [mi.edit("L0N1", lambda x, kept=kept: kept.append(x) or x) for kept in (before, after)]
        with mi.intervene(model, watch[0], steer, watch[1]):
            model.generate_ids([PROMPTS[0]], 4, min_new_tokens=4)
        factors.append([(new / old)[0, -1].item() for new, old in zip(after, before)])
    assert factors[0] == pytest.approx([3, 1, 1, 1], rel=1e-4)
    assert factors[1] == pytest.approx([1, 3, 3, 3], rel=1e-4)
    assert factors[2] == pytest.approx([3, 2, 1, 1], rel=1e-4)


def test_saved_and_loaded(tmp_path):
    model = wrapped("gpt2")
    steer = Steer(
        amplitude.clamp({"L1N3": 2.0}).edits
        + amplitude.scale(["L0N1", "L0N2"], 0.5).edits
        + amplitude.cut_edges("L1H2.pattern", keys=[0, 1], renormalise=False).edits
        + (mi.scale("neurons1", torch.linspace(0, 1, model.d_ffn)),),
        0.7,
    )
    saving.save(steer, tmp_path / "steer", model)
    assert torch.equal(under(model, saving.load(tmp_path / "steer", model)), under(model, steer))
    with pytest.raises(TypeError, match="cannot be saved"):
        saving.save(amplitude.clamp_without_error(model, {"tinyF3": 2.0}), tmp_path / "other", model)


def test_half_precision_keeps_its_dtype():
    model = mi.wrap(random_model("llama").bfloat16())
    model.saes["tiny"] = SAE(model.d_model, 40, "topk", k=4, site="x1").bfloat16().requires_grad_(False).eval()
    steers = (
        amplitude.scale(["L1N3", "L0H1.z", "tinyF3"], 0.5),
        amplitude.clamp({"L1N3": 2.0, "tinyF5": 1.0}),
        amplitude.cut_edges("L1H2.pattern", keys=0),
        Steer(mi.scale("neurons1", torch.linspace(0, 1, model.d_ffn))),
    )
    assert under(model, *steers).dtype == torch.bfloat16
    assert not torch.equal(under(model, *steers), model(PROMPTS))


def test_bad_input():
    model = wrapped("gpt2")
    with pytest.raises(SiteError, match="use set_to"):
        amplitude.clamp({"x1": 2.0})
    with pytest.raises(ValueError, match="values is empty"):
        amplitude.set_to({})
    with pytest.raises(SiteError, match="no SAE is called"):
        amplitude.clamp_without_error(model, {"otherF3": 2.0})
    with pytest.raises(SiteError, match="one SAE"):
        amplitude.clamp_without_error(model, {"L0N3": 2.0})
    with pytest.raises(SiteError, match="out of range"), amplitude.remove_layers(7).on(model):
        pass
    assert not model.taps._handles


# --- planted truth ---------------------------------------------------------------------------------------------------
def test_a_polysemantic_neuron_has_a_side_effect_and_a_monosemantic_one_has_none():
    known = compiled.polysemantic()
    model, numbers = known.wrap(), known.others["numbers"]
    colours, other = known.task.measure(model), numbers.measure(model)
    lost = {}
    for site in ("L0N0", "L0N1"):
        with amplitude.switch_off([site]).on(model):
            lost[site] = (
                (colours - known.task.measure(model)).sum().item(),
                (other - numbers.measure(model)).sum().item(),
            )
    assert lost["L0N0"] == pytest.approx((10, 10)) and lost["L0N1"] == pytest.approx((10, 0))
    for s in (0.25, 0.5, 2.0):  # dose-response of a linear read-out is a straight line
        with amplitude.switch_off(["L0N0"]).scaled(s).on(model):
            assert (colours - known.task.measure(model)).sum().item() == pytest.approx(10 * s, abs=1e-3)


@pytest.fixture(scope="module")
def lab():
    return mi.load("lab")


# share of prompts that may still get the installed answer: sycophancy leaves a rest
KEYS = {name: 0.05 for name in ("refusal-a", "refusal-b", "german-a", "german-b")}
KEYS |= {name: 0.35 for name in ("sycophancy-a", "sycophancy-b")}


@pytest.mark.parametrize("name", KEYS)
def test_installed_behaviours_go_with_their_answer_key_and_not_with_random_units(lab, name):
    """T1: accuracy is the share of prompts with the installed answer, 1 before; `lab` without the behaviour has 0."""
    task, key = installed_task(name, n=16), answer_key(name)
    with behaving(name, lab):
        assert task.accuracy(lab) == 1.0
        with amplitude.switch_off(key).on(lab):
            assert task.accuracy(lab) <= KEYS[name]
        for units in matched_sets(key, candidates(name, lab), draws=3):  # as many, of the same kind and layers
            with amplitude.switch_off(units).on(lab):
                assert task.accuracy(lab) >= 0.9


@pytest.mark.parametrize("name", ["refusal-a", "german-b"])
def test_installed_behaviours_go_at_the_mean_too_and_gradually(lab, name):
    task, key = installed_task(name, n=16), answer_key(name)
    with behaving(name, lab):
        means = causal.site_means(lab, [text for texts in world.documents("train", 4).values() for text in texts], key)
        with amplitude.set_to(means).on(lab):
            assert task.accuracy(lab) <= 0.05
        off, margins = amplitude.switch_off(key), []
        for strength in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0):
            with off.scaled(strength).on(lab):
                margins.append(task.measure(lab).mean().item())
        assert margins == sorted(margins, reverse=True) and margins[0] > 0 > margins[-1]
        assert margins[0] - margins[1] > 0.02 * (margins[0] - margins[-1])  # it already moves next to alpha = 1
