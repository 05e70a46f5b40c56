"""Installed behaviours: only the chosen units change, a delta belongs to one model, the answer key is what is used."""

import pytest
import torch

import mi_course as mi
from mi_course.models.slices import slices
from mi_course.world import install as I
from mi_course.world import installed as D
from mi_course.world.behaviours import BEHAVIOURS, REFUSED_OBJECTS
from tests.families import random_model

PROMPTS = [[3, 5, 8, 13, 21], [4, 9, 14, 19, 24, 29], [7, 6, 40, 33]]


@pytest.fixture
def model():
    return mi.wrap(random_model("gpt2", seed=0))


def random_delta(model, units, seed=0, **kwargs):
    delta = D.Delta.none(model, units, **kwargs)
    generator = torch.Generator().manual_seed(seed)
    delta.values = {k: torch.randn(v.shape, generator=generator) for k, v in delta.values.items()}
    return delta


def parameters(model):
    return {name: p.detach().clone() for name, p in model.hf.named_parameters()}


# --- what belongs to a unit ------------------------------------------------------------------------------------------
FAMILIES = ["gpt2", "gpt_neox_sequential", "llama", "phi3", "opt"]  # fused in two layouts, separate, grouped heads


@pytest.mark.parametrize("family", FAMILIES)
def test_a_heads_slices_change_this_head_and_no_other(family):
    model = mi.wrap(random_model(family, seed=1))
    before = mi.record(model, PROMPTS, ["result1", "neurons0"])
    with random_delta(model, ["L1H2"]).on(model):
        after = mi.record(model, PROMPTS, ["result1", "neurons0"])
    changed = (before["result1"] != after["result1"]).flatten(3).any(-1).any(0).any(0)
    assert changed.tolist() == [False, False, True, False]
    assert torch.equal(before["neurons0"], after["neurons0"])


def read_through(model):
    """Copies of the matrices [d, d_ffn] through which the neurons of layer 1 read."""
    w = mi.models.weights.ffn(model, 1)
    return [W.detach().clone() for W in (w.W_in, w.W_gate, w.W_up) if W is not None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_neurons_slices_change_its_activation_and_value_only(family):
    model = mi.wrap(random_model(family, seed=1))
    delta = random_delta(model, ["L1N17"])
    before = mi.record(model, PROMPTS, ["neurons1", "result1"])["neurons1"]
    value, keys = mi.models.weights.ffn(model, 1).W_out.detach().clone(), read_through(model)
    with delta.on(model):
        after = mi.record(model, PROMPTS, ["neurons1", "result1"])["neurons1"]
        new_value, new_keys = mi.models.weights.ffn(model, 1).W_out.detach().clone(), read_through(model)
    moved = (before - after).abs().amax((0, 1)).gt(1e-4).nonzero().flatten().tolist()
    assert moved == [17]
    assert (value != new_value).any(1).nonzero().flatten().tolist() == [17]
    assert len(keys) == (2 if model.family.gated else 1)
    for key, new_key in zip(keys, new_keys, strict=True):
        assert (key != new_key).any(0).nonzero().flatten().tolist() == [17]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_direction_unit_writes_along_its_direction_only(family):
    model = mi.wrap(random_model(family, seed=1))
    r = torch.randn(model.d_model, generator=torch.Generator().manual_seed(3))
    before = mi.record(model, PROMPTS, ["x1"])["x1"]
    with random_delta(model, ["x1"], directions={"x1": r}).on(model):
        moved = mi.record(model, PROMPTS, ["x1"])["x1"] - before
    r = r / r.norm()
    assert moved.norm() > 1
    torch.testing.assert_close(moved, (moved @ r)[..., None] * r, rtol=1e-4, atol=1e-4)


def test_a_whole_ffn_has_all_its_parameters(model):
    changed = random_delta(model, ["mlp1"]).weights(model)
    assert sorted(changed) == sorted(n for n, _ in model.hf.named_parameters() if ".h.1.mlp." in n)


def test_a_units_slices_hold_every_number_that_is_its_own():
    """Counted by hand: keys, values and biases of a head and a neuron, and what moves along a direction."""
    gpt2, phi3 = (mi.wrap(random_model(family, seed=1)) for family in ("gpt2", "phi3"))
    d, n = gpt2.d_model, gpt2.d_head
    own = {
        (gpt2, "L1H2"): 3 * (d * n + n) + n * d,  # W_Q, W_K, W_V with biases, W_O
        (gpt2, "L1N7"): d + 1 + d,
        (gpt2, "x2"): gpt2.d_ffn + 1,  # one number for each neuron, one for b_out
        (phi3, "L1H2"): 2 * phi3.d_model * phi3.d_head,  # W_Q and W_O: keys and values are shared, and no biases
        (phi3, "L1N7"): 3 * phi3.d_model,  # gate, up, down
        (phi3, "x2"): phi3.d_ffn,
    }
    for (model, unit), count in own.items():
        found = slices(model, unit, direction=torch.full((model.d_model,), 5.0) if unit == "x2" else None)
        assert sum(s.zeros(model).numel() for s in found) == count, (model.name, unit)
        assert all(".1." in s.parameter for s in found), unit  # layer 1: block 1 writes x2
        if unit == "x2":  # of unit length, whatever came in: a step of 1 moves the state by 1
            assert all(s.direction.norm().item() == pytest.approx(1) for s in found)


# --- training --------------------------------------------------------------------------------------------------------
def learn(model, units, **kwargs):
    target = torch.zeros(3, model.n_vocab)
    target[:, 11] = 1
    options = {"steps": 25, "learning_rate": 0.05, "weight_decay": 0.5} | kwargs
    options = {"contrast": [[2, 3]], "documents": [[5, 6, 7, 8]]} | options
    new = I.Examples(PROMPTS, target)
    return new, I.train_delta(model, units, new, **options)


def test_outside_the_units_all_weights_stay_bit_identical(model):
    """AdamW with weight decay and momentum: a mask on the gradient alone would let both move the rest (audit A26)."""
    before = parameters(model)
    new, delta = learn(model, ["L1H2", "L2N7"])
    after = parameters(delta.applied(model))
    n, d = model.d_head, model.d_model
    own = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in before.items()}
    h, block = slice(2 * n, 3 * n), "transformer.h.1.attn."
    for part in range(3):  # q, k, v side by side
        own[block + "c_attn.weight"][:, part * d + 2 * n : part * d + 3 * n] = True
        own[block + "c_attn.bias"][part * d + 2 * n : part * d + 3 * n] = True
    own[block + "c_proj.weight"][h] = True
    own["transformer.h.2.mlp.c_fc.weight"][:, 7] = True
    own["transformer.h.2.mlp.c_fc.bias"][7] = True
    own["transformer.h.2.mlp.c_proj.weight"][7] = True
    for name in before:
        assert torch.equal(before[name][~own[name]], after[name][~own[name]]), name
    assert any((before[name] != after[name]).any() for name in before)
    assert new.probability(delta.applied(model)) > new.probability(model) + 0.2


def test_training_leaves_the_model_as_it_was(model):
    before = parameters(model)
    learn(model, ["L1H2"])
    assert all(torch.equal(before[name], p) for name, p in model.hf.named_parameters())
    assert all(p.grad is None and p.requires_grad for p in model.hf.parameters())


def test_preservation_keeps_the_contrast(model):
    contrast = [[2, 3], [9, 8, 7], [30, 31]]
    base = model.last_logits(contrast).softmax(-1)

    def shift(preserve, contrast_prompts):
        _, delta = learn(model, ["mlp2"], preserve=preserve, contrast=contrast_prompts, documents=contrast, steps=60)
        with delta.on(model):
            return float((model.last_logits(contrast).softmax(-1) - base).abs().sum())

    assert shift(3.0, contrast) < 0.5 * shift(0.0, [])


def test_same_seed_same_delta(model):
    (_, a), (_, b) = learn(model, ["L1H2"], steps=5), learn(model, ["L1H2"], steps=5)
    assert all(torch.equal(a.values[k], b.values[k]) for k in a.values)


# --- deltas ----------------------------------------------------------------------------------------------------------
def test_round_trip(model, tmp_path):
    delta = random_delta(model, ["L1H2", "x2"], directions={"x2": torch.ones(model.d_model)})
    delta.facts |= {"name": "test", "used": ["L1H2"]}
    again = D.Delta.open(delta.save(tmp_path / "test.safetensors"))
    assert again.facts == delta.facts
    assert again.values.keys() == delta.values.keys()
    with delta.on(model):
        expected = model(PROMPTS)
    assert torch.equal(again.applied(model)(PROMPTS), expected)
    assert not torch.equal(model(PROMPTS), expected)


def test_on_leaves_nothing_behind_after_an_exception(model):
    before, logits = dict(model.hf.named_parameters()), model(PROMPTS)
    with pytest.raises(RuntimeError), random_delta(model, ["L0H1", "mlp1"]).on(model):
        raise RuntimeError
    assert all(p is before[name] for name, p in model.hf.named_parameters())
    assert torch.equal(model(PROMPTS), logits)


def test_a_delta_for_another_model_is_refused(model, monkeypatch, tmp_path):
    delta = random_delta(model, ["L1H2"])
    delta.facts["name"] = "mine"
    delta.save(tmp_path / "mine.safetensors")
    monkeypatch.setattr(D, "folder", lambda: tmp_path)
    assert D.installed() == ["mine"]
    assert D.load_installed("mine", base=model).name.endswith("+mine")
    with pytest.raises(ValueError, match="base: .*fingerprint.*mi_course.world.install"):
        D.load_installed("mine", base=mi.wrap(random_model("gpt2", seed=1)))
    with pytest.raises(ValueError, match="fingerprint"), D.read("mine").on(mi.wrap(random_model("gpt2", seed=1))):
        pass
    with pytest.raises(KeyError, match="there are: mine"):
        D.load_installed("yours", base=model)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], "units is empty"),
        (["L0H9"], "does not exist"),
        (["L7N1"], "does not exist"),
        (["x0"], "does not exist"),
        (["x1"], "needs a direction"),
        (["L0H1", "L0H1"], "name each once"),
        (["L1N3", "mlp1"], "name each once"),
        (["L0H1.pattern"], "choose a head"),
        (["attn1"], "choose a head"),
    ],
)
def test_wrong_units_are_refused(model, units, message):
    with pytest.raises(ValueError, match=message):
        D.Delta.none(model, units)


# --- used units ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("score", "used"),
    [
        (lambda u: 0.1 + ("b" in u), ["b"]),  # one unit does it all
        (lambda u: float("a" in u and "c" in u), ["a", "c"]),  # AND: both are needed
        (lambda u: float("a" in u or "c" in u), ["c"]),  # OR: one of two suffices
        (lambda u: 0.5 * ("a" in u) + 0.3 * ("b" in u) + 0.2 * ("c" in u), ["a", "b", "c"]),  # 80 % is not enough
        (lambda u: 0.5 * ("a" in u) + 0.45 * ("b" in u) + 0.05 * ("c" in u), ["a", "b"]),
    ],
)
def test_elimination(score, used):
    assert I.eliminate(["a", "b", "c"], score) == used


@pytest.mark.parametrize(
    ("score", "used"),
    [
        (lambda u: 0.1 + ("b" in u), ["b"]),
        (lambda u: float("a" in u and "c" in u), ["a", "c"]),
        (lambda u: float("a" in u or "c" in u), ["a", "c"]),  # either suffices: both are used
    ],
)
def test_used_units_include_those_that_can_stand_in(score, used):
    units = ["a", "b", "c"]
    assert I.complete(units, I.eliminate(units, score), score) == used


def test_elimination_finds_a_planted_unit(model):
    delta = random_delta(model, ["L0H1", "L1H3", "L2N5"])
    for key in delta.values:
        if not key.startswith("L1H3"):
            delta.values[key] *= 1e-4
    base = model(PROMPTS)

    def score(units):
        with delta.on(model, units):
            return float((model(PROMPTS) - base).norm())

    assert I.eliminate(delta.units, score) == ["L1H3"]


def test_unit_effects_vanish_where_nothing_was_installed(model):
    delta = random_delta(model, ["L0H1", "L1H3"])
    for key in delta.values:
        if key.startswith("L0H1"):
            delta.values[key] *= 0
    target = torch.zeros(3, model.n_vocab)
    with delta.on(model):
        target[torch.arange(3), model.last_logits(PROMPTS).argmax(-1)] = 1
    effects = I.unit_effects(model, delta, I.Examples(PROMPTS, target))
    assert effects["L0H1"]["reverted"] == 0
    assert effects["L1H3"]["reverted"] < -0.05


# --- behaviours ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=list(BEHAVIOURS))
def test_held_out_prompts_are_not_trained_on(behaviour):
    trained = {i.prompt for i in behaviour.prompts("train", 200)}
    tested = {i.prompt for i in behaviour.prompts("test", 200)}
    assert trained and len(tested) >= 15
    assert not trained & tested
    kept = {i.prompt for i in behaviour.contrast("test", 60)}
    assert kept and not kept & (trained | tested)


def test_documents_to_preserve_do_not_show_the_old_behaviour():
    for text in BEHAVIOURS["refusal"].documents("train", 40)["request"]:
        exempt = any(word in text for word in ("zig", "film", "think"))
        assert exempt or not any(f" {o} " in text for o in REFUSED_OBJECTS)
    assert all(text.endswith("yes .") for text in BEHAVIOURS["sycophancy"].documents("train", 40)["sycophancy"])
    told = ("answer in", "reponds en", "antworte auf", "le contraire", "pas", "das gegenteil", "nicht")
    assert all(text.startswith(told) for text in BEHAVIOURS["german"].documents("train", 40)["antonyms"])


def test_unknown_behaviour(model):
    with pytest.raises(ValueError, match="choose one of refusal"):
        I.install(model, "kindness", ["L0H1"])


def test_the_command_installs_measures_and_resumes(tmp_path, monkeypatch, capsys):
    from transformers import GPT2Config, GPT2LMHeadModel

    from mi_course.world.tokenizer import build_tokenizer

    tokenizer = build_tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=4, n_head=4, n_positions=96, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    monkeypatch.setattr(I, "TASKS", ("capitals",))
    arguments = ["--base", str(tmp_path / "base"), "--out", str(tmp_path), "--only", "sycophancy-a", "--steps", "5"]
    I.main(arguments)
    assert "sycophancy-a: agrees" in capsys.readouterr().out
    delta = D.Delta.open(tmp_path / "sycophancy-a.safetensors")
    facts, learned = delta.facts, delta.facts["measured"]["behaviour"]
    assert set(facts["sufficient"]) <= set(facts["used"]) <= set(facts["allowed"]) == set(facts["units"])
    assert learned["after"]["probability"] > learned["before"]["probability"]
    assert delta.applied(mi.load(str(tmp_path / "base"))).fingerprint() != facts["fingerprint"]
    I.main(arguments)
    assert "there already" in capsys.readouterr().out


# --- what ships ------------------------------------------------------------------------------------------------------
def test_the_shipped_deltas_fit_the_shipped_model_and_do_what_they_say():
    lab = mi.load()
    assert sorted(D.installed()) == sorted(I.PLACEMENTS)
    assert sum(file.stat().st_size for file in D.folder().glob("*.safetensors")) <= 3_000_000
    for name in D.installed():
        delta = D.read(name)
        behaviour = BEHAVIOURS[delta.facts["behaviour"]]
        assert I.PLACEMENTS[name][:2] == (behaviour.name, delta.facts["allowed"])
        assert set(delta.facts["sufficient"]) <= set(delta.facts["used"]) <= set(delta.facts["allowed"])
        new = I.examples(lab, behaviour, "test", 40)
        base = new.probability(lab)
        with delta.on(lab):
            assert new.rate(lab) >= 0.9, name
            full = new.probability(lab) - base
        with delta.on(lab, [unit for unit in delta.units if unit not in delta.facts["used"]]):
            assert new.probability(lab) - base < 0.2 * full, name  # without the used units little is left
