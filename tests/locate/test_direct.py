"""Direct logit attribution: sums are exact on every family, equal the definition, and see only what is direct."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import causal, direct
from mi_course.models import SiteError
from mi_course.objects import Task
from mi_course.objects.decompose import direct_logit_attribution
from mi_course.objects.sae import SAE
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

ROWS = [[5, 9, 30, 12], [8, 41, 6, 6, 17, 3], [4, 4]]  # left padding
TOKENS, FOILS = [7, 8, 9], [20, 21, 22]
TASK = Task("random", ROWS, TOKENS, foils=FOILS)


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return mi.wrap(random_model(request.param))


def close(a, b, tolerance=2e-5):
    return (a - b).abs().max() <= tolerance * b.abs().max()


def before_softcap(model, logits):
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.atanh(logits / cap)


def attach(model, site):
    width = {"z1": model.n_heads * model.d_head, "neurons1": model.d_ffn}.get(site, model.d_model)
    sae = SAE(width, 24, "relu", site=site, seed=3).requires_grad_(False)
    sae.b_dec.copy_(torch.randn(width, generator=torch.Generator().manual_seed(4)))
    sae.b_enc.fill_(-0.2)
    model.saes["mine"] = sae
    return sae


@pytest.mark.parametrize("units", direct.UNITS)
def test_every_split_sums_to_the_logit(model, units):
    logits = before_softcap(model, model.last_logits(ROWS))
    rows = torch.arange(3)
    single, pair = (direct.split_logit(model, ROWS, TOKENS, *foils, units=units) for foils in ([], [FOILS]))
    assert close(single.logits, logits[rows, TOKENS], 2e-4)  # atanh near the cap loses digits
    assert close(pair.logits, logits[rows, TOKENS] - logits[rows, FOILS], 2e-4)
    for split in (single, pair):
        assert close(split.values.sum(0), split.logits)
        assert len(set(split.names)) == len(split.names) == len(split.values)


def test_heads_are_those_of_the_definition(model):
    slow, fast = direct_logit_attribution(model, ROWS, TOKENS, FOILS), direct.split_logit(model, ROWS, TOKENS, FOILS)
    assert slow.names == fast.names and close(fast.values, slow.values)


def test_finer_splits_add_up_to_the_blocks(model):
    blocks, heads, neurons = (direct.split_logit(model, ROWS, TOKENS, FOILS, units) for units in direct.UNITS)
    for layer in range(model.n_layers):
        own = [heads[f"L{layer}H{h}"] for h in range(model.n_heads)] + [heads[f"attn{layer}.bias"]]
        assert close(sum(own), blocks[f"attn{layer}"], 1e-4)
        own = [neurons[f"L{layer}N{j}"] for j in range(model.d_ffn)] + [neurons[f"mlp{layer}.bias"]]
        assert close(sum(own), blocks[f"mlp{layer}"], 1e-4)


@pytest.mark.parametrize("site", ["x1", "attn1", "mlp1", "mlp1.write", "z1", "neurons1", "x2"])
def test_features_with_their_error_sum_to_the_logit(model, site):
    sae = attach(model, site)
    split = direct.split_logit(model, ROWS, TOKENS, FOILS, units="mine")
    assert close(split.values.sum(0), split.logits)
    assert split["mine.error"].abs().max() > 0  # a random SAE reconstructs badly, and the sum holds all the same
    fires = mi.record(model, ROWS, [f"{site}@-1"])[f"{site}@-1"].flatten(1)
    features = torch.stack([split[f"mineF{j}"] for j in range(24)], dim=1)
    assert torch.equal(features != 0, sae.encode(fires) > 0)


def test_features_between_the_branches():
    model = mi.wrap(random_model("llama"))
    attach(model, "mid1")
    split = direct.split_logit(model, ROWS, TOKENS, FOILS, units="mine")
    assert close(split.values.sum(0), split.logits)
    assert "mlp1" in split.names and "attn1" not in split.names


def test_removing_a_late_feature_takes_away_its_score():
    """Nothing reads the last FFN but the logits; with the final norm's scale held, its effect is its score."""
    model = mi.wrap(random_model("gpt2"))
    sae = attach(model, "mlp2")
    split, site = direct.split_logit(model, ROWS, TOKENS, FOILS, units="mine"), f"x{model.n_layers}@-1"
    before = mi.record(model, ROWS, [site])[site]
    with mi.intervene(model, mi.zero("mineF5")):
        after = mi.record(model, ROWS, [site])[site]
    reader, _ = direct.answer_reader(model, before, TOKENS, FOILS, 3)
    assert sae.b_enc[0] < 0 and close(((before - after) * reader).sum(-1), split["mineF5"], 1e-4)


def test_scores_average_the_split_over_items(model):
    attach(model, "x1")
    sites = ["L1H2", "L0H3.z", "mlp1", "attn0", "embed", "L1N7", "mineF3"]
    scores = direct.direct_effects(model, TASK, sites)
    assert scores.sites == sites and scores.sign == "magnitude" and scores.forwards == 4 * len(TASK)
    heads, neurons = (direct.split_logit(model, ROWS, TOKENS, FOILS, units) for units in ("heads", "neurons"))
    assert scores["L1H2"] == pytest.approx(heads["L1H2"].mean().item(), abs=1e-6)
    assert scores["L0H3.z"] == pytest.approx(heads["L0H3"].mean().item(), abs=1e-6)
    assert scores["L1N7"] == pytest.approx(neurons["L1N7"].mean().item(), abs=1e-6)
    assert len(direct.direct_effects(model, TASK)) == model.n_layers * model.n_heads


def test_without_the_rest_the_parts_are_the_same(model):
    attach(model, "mlp1")
    for units in ("heads", "neurons", "mine"):
        whole = direct.split_logit(model, ROWS, TOKENS, FOILS, units)
        some = direct.split_logit(model, ROWS, TOKENS, FOILS, units, rest=False)
        assert torch.equal(some.values, torch.stack([whole[name] for name in some.names]))
        assert len(some.names) < len(whole.names) and torch.equal(some.logits, whole.logits)


def test_the_bench_reports_what_it_limits():
    from mi_course.cli.benches import direct as bench

    found = bench.measure(mi.wrap(random_model("gpt2")), pairs=1)
    assert set(bench.LIMITS) <= set(found) and found["heads"] == 12 and found["direct_logit_attribution"] > 0


def test_the_copying_head_of_compiled_induction_and_nothing_else():
    c = compiled.induction()
    scores = direct.direct_effects(c.wrap(), c.task)
    assert scores["L1H0"] == pytest.approx(10, abs=1e-3)
    assert scores["L0H0"] == pytest.approx(0, abs=1e-4)  # needed, but what it writes is read by L1H0: indirect


def test_a_large_write_that_is_erased_is_credited_and_debited():
    c = compiled.cancelling()
    scores = direct.direct_effects(c.wrap(), c.task)
    assert scores["L0H0"] == pytest.approx(2, abs=1e-3) and scores["L1H0"] == pytest.approx(-2, abs=1e-3)
    exact = causal.ablate_each(c.wrap(), c.task, ["L0H0.z"])
    assert exact["L0H0.z"] == pytest.approx(0, abs=1e-3)  # the score predicts -2


def test_split_sees_interventions_and_leaves_none(model):
    with mi.intervene(model, mi.zero("L1H0.z")):
        off = direct.split_logit(model, ROWS, TOKENS, FOILS)
    assert not off["L1H0"].any() and direct.split_logit(model, ROWS, TOKENS, FOILS)["L1H0"].any()
    assert not model.taps._handles


@pytest.mark.parametrize(
    "sites, message",
    [
        (["x2"], "writes nothing by itself"),
        (["L0H0.q"], "writes nothing by itself"),
        (["mlp1@-1"], "leave the position out"),
        (["otherF3"], "units='other' is unknown"),
    ],
)
def test_bad_sites_are_named(sites, message):
    with pytest.raises((ValueError, SiteError), match=message):
        direct.direct_effects(mi.wrap(random_model("gpt2")), TASK, sites)


def test_no_position_embedding_is_said():
    with pytest.raises(SiteError, match="has no direct effect of its own"):
        direct.direct_effects(mi.wrap(random_model("llama")), TASK, ["pos"])
