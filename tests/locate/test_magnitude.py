import copy
import math

import pytest
import torch

import mi_course as mi
from mi_course.locate import causal, magnitude
from mi_course.locate.magnitude import LanguageNeurons, activation_probability, entropy_over, lape
from mi_course.objects.sae import SAE
from mi_course.objects.weights import neuron_values
from mi_course.world import compiled
from tests.families import FAMILIES, random_model
from tests.models.common import hooks_left


def test_entropy_over_languages():
    p = torch.tensor([[0.8, 0.2, 0.0, 0.3], [0.0, 0.2, 0.0, 0.1]])
    expected = [0.0, math.log(2), math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert entropy_over(p).tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(entropy_over(p), entropy_over(p * torch.tensor([1, 0.1, 1, 3])), atol=1e-6)  # rates only


def test_a_dead_neuron_is_not_selective():
    assert entropy_over(torch.zeros(3, 2)).tolist() == pytest.approx([math.log(3)] * 2)


def planted():
    """3 languages, 2 layers of 50 neurons; L1N7 speaks language 0 only, L0N3 languages 1 and 2, the rest all."""
    probability = 0.3 + 0.1 * torch.rand(3, 2, 50, generator=torch.Generator().manual_seed(0))
    probability[:, 1, 7] = torch.tensor([0.9, 0.0, 0.0])
    probability[:, 0, 3] = torch.tensor([0.0, 0.8, 0.8])
    probability[:, 0, 9] = torch.tensor([0.01, 0.0, 0.0])  # selective, but almost never on
    return LanguageNeurons(["a", "b", "c"], probability, entropy_over(probability))


def test_select_finds_the_planted_neurons():
    chosen = planted().select(top_rate=0.02, bar=0.95)
    assert chosen == {"a": ["L1N7"], "b": ["L0N3"], "c": ["L0N3"]}


def test_select_never_takes_rare_neurons_and_orders_by_entropy():
    result = planted()
    chosen = result.select(top_rate=0.5, bar=0.95)
    everything = [site for sites in chosen.values() for site in sites]
    assert "L0N9" not in everything
    assert chosen["a"][0] == "L1N7"
    with pytest.raises(ValueError, match="top_rate"):
        result.select(top_rate=0)


def test_activation_probability_counts_real_tokens():
    documents = [[0, 5, 6, 7], [0, 9]]
    for family, kind in (("gpt2", "neurons"), ("llama", "gate")):
        model = mi.wrap(random_model(family))
        counted = [mi.record(model, [d], [f"{kind}1"])[f"{kind}1"][0] > 0 for d in documents]
        p = activation_probability(model, documents, batch_size=2)
        assert p.shape == (model.n_layers, model.d_ffn)
        assert torch.allclose(p[1], torch.cat(counted).float().mean(0))
        assert torch.allclose(activation_probability(model, documents, batch_size=1), p)
        at_end = torch.stack([c[-1] for c in counted]).float().mean(0)
        assert torch.allclose(activation_probability(model, documents, position=-1)[1], at_end)
    with pytest.raises(ValueError, match="empty"):
        activation_probability(model, [])


def test_lape_finds_the_neurons_of_a_compiled_look_up():
    c = compiled.lookup()
    by_subject = {}
    for prompt, label in zip(c.task.prompts, c.task.labels):
        by_subject.setdefault(label["subject"], []).append(prompt)
    result = lape(c.wrap(), by_subject)
    assert result.languages == list(by_subject)
    assert result.entropy[0, : len(by_subject)].max() < 1e-6  # neuron j fires for subject j only
    assert result.entropy[0, len(by_subject) :] == pytest.approx(math.log(len(by_subject)))  # the decoys fire for all
    chosen = result.select(top_rate=6 / 16, bar=0.5)
    assert chosen == {subject: [f"L0N{j}"] for j, subject in enumerate(by_subject)}
    with pytest.raises(ValueError, match="two languages"):
        lape(c.wrap(), {"one": ["the capital of peru is"]})


# --- sizes -----------------------------------------------------------------------------------------------------------

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [4, 4, 5, 6, 7]]  # unequal: the batch is padded


def sites_of(model):
    """Vectors and numbers, whole layers of them and single ones, in a mixed order."""
    return ["x1", "L0N3", "L1H2", "mlp1", "L0H1.k", "L0H3.z", "L0N0"] + ["L1N2.gate"] * model.family.gated


def slowly(model, sites, measure, keep=slice(None)):
    """[tokens, sites]: prompt by prompt without padding, site by site."""
    rows = []
    for prompt in PROMPTS:
        cache = mi.record(model, [prompt], sites)
        for t in range(len(prompt))[keep]:
            rows.append([measure(cache[site][0, t]) for site in sites])
    return torch.tensor(rows)


L2, LINF = (lambda o: float(o.norm())), (lambda o: float(o.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_equal_a_slow_loop_in_every_family(family):
    model = mi.wrap(random_model(family))
    sites = sites_of(model)
    for norm, over, measure in (("l2", "mean", L2), ("linf", "max", LINF)):
        got = magnitude.activation_norms(model, PROMPTS, sites, norm, over)
        slow = slowly(model, sites, measure)
        assert got.sites == sites and got.sign == "magnitude" and got.forwards == 3
        assert got.token_layers == 15 * model.n_layers
        wanted = slow.mean(0) if over == "mean" else slow.amax(0)
        assert torch.allclose(torch.tensor(got.values).float(), wanted, rtol=1e-4, atol=1e-5)


def test_tokens_counted_and_batches():
    model = mi.wrap(random_model("llama"))
    sites = sites_of(model)
    last = magnitude.activation_norms(model, PROMPTS, sites, position=-1)
    assert last.values == pytest.approx(slowly(model, sites, L2, slice(-1, None)).mean(0).tolist(), rel=1e-4)
    late = magnitude.activation_norms(model, PROMPTS, sites, skip=2)
    assert late.values == pytest.approx(slowly(model, sites, L2, slice(2, None)).mean(0).tolist(), rel=1e-4)
    whole, single = (magnitude.prompt_values(model, PROMPTS, sites, batch_size=b) for b in (64, 1))
    assert torch.allclose(whole, single, atol=1e-4) and whole.shape == (3, len(sites))
    assert torch.allclose(whole[1], slowly(model, sites, L2)[7:10].mean(0), rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_written_length_frequency_and_sign(family):
    model = mi.wrap(random_model(family))
    sites = ["L0N3", "L1N7", "L1N0"]
    s = slowly(model, sites, float)
    norms = [neuron_values(model, layer)[j].norm().item() for layer, j in ((0, 3), (1, 7), (1, 0))]
    write = magnitude.activation_norms(model, PROMPTS, sites, "write")
    assert write.values == pytest.approx((s.abs().mean(0) * torch.tensor(norms)).tolist(), rel=1e-4)
    assert magnitude.activation_norms(model, PROMPTS, sites, "raw").values == pytest.approx(
        s.mean(0).tolist(), abs=1e-5
    )
    often = magnitude.firing_frequency(model, PROMPTS, sites, threshold=0.1)
    assert often.values == pytest.approx((s > 0.1).float().mean(0).tolist())


def test_scaling_activation_against_value_changes_s_alone():
    """Gated: u_j times c and v_j over c is the same model. Ungated with ReLU: k_j, b_j times c > 0."""
    relu = random_model("gpt2", activation_function="relu")
    twin = copy.deepcopy(relu)
    twin.transformer.h[0].mlp.c_fc.weight.data[:, 3] *= 5
    twin.transformer.h[0].mlp.c_fc.bias.data[3] *= 5
    twin.transformer.h[0].mlp.c_proj.weight.data[3] /= 5
    gated = random_model("llama")
    other = copy.deepcopy(gated)
    other.model.layers[0].mlp.up_proj.weight.data[3] *= -5
    other.model.layers[0].mlp.down_proj.weight.data[:, 3] /= -5
    for one, two in ((relu, twin), (gated, other)):
        one, two = mi.wrap(one), mi.wrap(two)
        assert torch.allclose(one(PROMPTS), two(PROMPTS), atol=1e-4)
        raw = [magnitude.activation_norms(m, PROMPTS, ["L0N3"]).values[0] for m in (one, two)]
        write = [magnitude.activation_norms(m, PROMPTS, ["L0N3"], "write").values[0] for m in (one, two)]
        assert raw[1] == pytest.approx(5 * raw[0], rel=1e-4) and write[1] == pytest.approx(write[0], rel=1e-4)


def test_features_of_an_sae():
    model = mi.wrap(random_model("gpt2"))
    model.saes["d"] = sae = SAE(32, 10, site="x1", seed=1)
    read = mi.record(model, PROMPTS, ["x1"])
    a = sae.encode(read["x1"][read.batch.mask.bool()]).detach()[:, [4, 0]]
    size = magnitude.activation_norms(model, PROMPTS, ["dF4", "dF0"])
    assert size.values == pytest.approx(a.mean(0).tolist(), rel=1e-4)
    write = magnitude.activation_norms(model, PROMPTS, ["dF4", "dF0"], "write")
    assert write.values == pytest.approx((a * sae.W_dec[[4, 0]].norm(dim=1).detach()).mean(0).tolist(), rel=1e-4)


@pytest.mark.parametrize(
    "sites, options, message",
    [
        (["x1"], {"norm": "write"}, "neurons and features"),
        (["L0N1"], {"norm": "l3"}, "choose one of"),
        (["neurons0"], {}, "whole layer"),
        (["x1@-1"], {}, "position=-1"),
        (["L0H1.pattern"], {}, "attention_mass"),
        (["L0N1"], {"over": "sum"}, "over="),
    ],
)
def test_bad_input_is_named_and_leaves_nothing(sites, options, message):
    model = mi.wrap(random_model("gpt2"))
    with pytest.raises(ValueError, match=message):
        magnitude.activation_norms(model, PROMPTS, sites, **options)
    with pytest.raises(ValueError, match="prompts is empty"):
        magnitude.activation_norms(model, [], ["x1"])
    assert not hooks_left(model)


# --- what size does not say: the compiled counter-examples -----------------------------------------------------------


def test_cancelling_heads_lead_by_norm_and_do_nothing():
    c = compiled.cancelling()
    model = c.wrap()
    heads = [f"L{layer}H{head}" for layer in range(2) for head in range(3)]
    size = magnitude.activation_norms(model, c.task.prompts, heads, position=-1)
    assert set(size.top(2)) == {"L0H0", "L1H0"}
    assert size.against(c.answer)["recall_at_k"] == 0
    assert causal.ablate_together(model, c.task, ["L0H0.z", "L1H0.z"]).abs().max() < 1e-4
    assert causal.ablate_each(model, c.task, ["L0H1.z"]).values[0] == pytest.approx(-10, abs=1e-3)


def test_dormant_on_the_wrong_corpus_and_decoys_on_top():
    c = compiled.lookup()
    model, sites = c.wrap(), [f"L0N{j}" for j in range(8)]
    on_france = magnitude.activation_norms(model, c.others["france"].prompts, sites)
    assert on_france["L0N0"] > 0 and [on_france[f"L0N{j}"] for j in range(1, 6)] == [0] * 5
    truth = [site for site in c.answer if site in sites]
    for norm in ("l2", "write"):
        everything = magnitude.activation_norms(model, c.task.prompts, sites, norm)
        assert set(everything.top(2)) == set(c.decoys)
        assert everything.against(truth)["auroc"] == 0


# --- layers, null sets, LAPE -----------------------------------------------------------------------------------------


def test_within_layers():
    sites = ["L0H0", "L0H1", "L0H2", "L1H0", "L1H1", "L1H2", "L2H0", "L2H1"]
    scores = mi.Scores(sites, [1, 2, 3, 30, 10, 20, 5, 5], "size", "magnitude", forwards=4)
    z = magnitude.within_layers(scores)
    one = math.sqrt(1.5)
    assert z.values.tolist() == pytest.approx([-one, 0, one, one, -one, 0, 0, 0])
    assert z.forwards == 4 and "layer" in z.method
    with pytest.raises(ValueError, match="x0 is alone"):
        magnitude.within_layers(mi.Scores(["x0", "x1"], [1, 2], "size", "magnitude"))


def test_matched_sets_keep_the_layers_and_leave_the_chosen_out():
    among = [f"L{layer}N{j}" for layer in range(3) for j in range(6)]
    chosen = ["L0N0", "L2N1", "L2N4"]
    sets = magnitude.matched_sets(chosen, among, draws=50)
    assert all(not set(own) & set(chosen) and len(set(own)) == 3 for own in sets)
    assert all(sorted(site[:2] for site in own) == ["L0", "L2", "L2"] for own in sets)
    assert sets == magnitude.matched_sets(chosen, among, draws=50) != magnitude.matched_sets(chosen, among, 50, seed=1)
    assert {site for own in sets for site in own} == set(among[:6] + among[12:]) - set(chosen)
    with pytest.raises(ValueError, match="layer 0 has 1 other"):
        magnitude.matched_sets(["L0N0", "L0N1"], ["L0N0", "L0N1", "L0N2"])


@pytest.mark.parametrize("family, kind", [("gpt2", "neurons"), ("llama", "gate"), ("phi3", "gate")])
def test_lape_agrees_with_an_independent_slow_implementation(family, kind):
    """Token by token, neuron by neuron, in plain Python, written from the paper."""
    model = mi.wrap(random_model(family))
    languages = {"a": PROMPTS, "b": [[10, 11, 12, 13], [14, 15]], "c": [[20, 21, 22], [5, 6, 20, 23, 24]]}
    result = lape(model, languages)
    for layer, j in [(0, 0), (0, 7), (1, 3), (1, 12), (1, 39)]:
        p = []
        for documents in languages.values():
            values = [mi.record(model, [d], [f"{kind}{layer}"])[f"{kind}{layer}"][0, :, j] for d in documents]
            values = [float(v) for row in values for v in row]
            p.append(sum(v > 0 for v in values) / len(values))
        entropy = -sum(x / sum(p) * math.log(x / sum(p)) for x in p if x > 0) if sum(p) else math.log(3)
        assert result.entropy[layer, j].item() == pytest.approx(entropy, abs=1e-5)
    assert result.forwards == 7


def test_lape_scores_rank_as_the_selection_does():
    result = planted()
    scores = result.scores(bar=0.95)
    assert set(scores.top(2)) == {"L1N7", "L0N3"} and scores["L0N9"] == 0
    assert scores["L1N7"] == pytest.approx(math.log(3)) and scores["L0N3"] == pytest.approx(math.log(3) - math.log(2))
