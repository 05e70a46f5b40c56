"""Bad input: each error names the argument and says what to do. Sites: grammar and round trip."""

import pytest
import torch

import mi_course as mi
from mi_course.models import SiteError, weights
from tests.models.common import FAMILIES, PROMPTS, hooks_left, make, sites

GOOD = "x0 x12 mid2 attn2 mlp0 attn1.write mlp3.write embed pos logits L3H5 L3H5.z L3H5.q L3H5.k L3H5.v L3H5.scores"
GOOD += " L3H5.pattern L2N117 L2N117.gate L2N117.up z3 q3 k3 v3 result3 scores3 pattern3 neurons2 gate2 up2 toyF123"
GOOD += " resid-3F* x4@-1 L3H5.pattern@0 neurons2@-2 toyF3@1"


@pytest.mark.parametrize("text", GOOD.split())
def test_sites_round_trip(text):
    site = mi.Site.parse(text)
    assert str(site) == text and mi.Site.parse(site) is site and mi.Site.parse(str(site)) == site


def test_the_long_form_of_a_result_reads_as_the_short_one():
    assert str(mi.Site.parse("L3H5.result")) == "L3H5" == str(mi.Site.head(3, 5))
    assert mi.Site.parse("x4@-1") == mi.Site.parse("x4").at(-1)
    assert str(mi.Site.head(3, None, "z")) == "z3" and str(mi.Site.neuron(2, 7, "up")) == "L2N7.up"


@pytest.mark.parametrize("family", FAMILIES)
def test_all_sites_of_a_model_round_trip(family):
    for name in sites(make(family)):
        assert str(mi.Site.parse(name)) == name


def test_edges_round_trip():
    edge = mi.Edge.parse("L0H1->L3H5.q")
    assert str(edge) == "L0H1->L3H5.q" and edge.receiver == mi.Site.parse("L3H5.q")
    with pytest.raises(SiteError, match="sender->receiver"):
        mi.Edge.parse("L0H1 L3H5")


@pytest.mark.parametrize("text", "x y4 L3 L3H L3H5.w x4@ x4@last mid-1 F12 x4.5 L2N7.z".split() + [""])
def test_bad_site_strings_show_the_grammar(text):
    with pytest.raises(SiteError, match="x4@-1"):
        mi.Site.parse(text)


@pytest.mark.parametrize(
    "site, message",
    [
        ("x9", "layer 9 is out of range; .* 0 to 3"),
        ("attn3", "layer 3 is out of range; .* 0 to 2"),
        ("L0H4", "heads 0 to 3"),
        ("L0N128", "neurons 0 to 127"),
        ("gate0", "not gated"),
        ("L0N5.up", "not gated"),
        ("logits", "cache.logits"),
        ("x1@9", "outside row 0, which has 7 tokens"),
        ("x1@-4", "outside row 1, which has 3 tokens"),
    ],
)
def test_sites_that_the_model_lacks(site, message):
    model = make("gpt2")
    with pytest.raises(ValueError, match=message):
        mi.record(model, PROMPTS, site)
    with pytest.raises(ValueError, match=message):
        with mi.intervene(model, mi.zero(site)):
            model(PROMPTS)
    assert not hooks_left(model)


def test_a_site_that_was_not_recorded_is_named():
    cache = mi.record(make("gpt2"), PROMPTS, ["x1", "mlp0"])
    with pytest.raises(KeyError, match="'x2' was not recorded.*x1, mlp0"):
        cache["x2"]
    with pytest.raises(SiteError, match="sites is empty"):
        mi.record(make("gpt2"), PROMPTS, [])


@pytest.mark.parametrize(
    "prompts, message",
    [
        ([], "prompts is empty"),
        ([[3, 4], []], r"prompts\[1\] has no token"),
        ([[3, 50]], r"prompts\[0\] has an id outside 0 to 49"),
        ([[3] * 65], "prompts: 65 tokens are more than the model's 64"),
        (torch.zeros(2, 3), "2-D LongTensor"),
        (torch.tensor([1, 2]), "2-D LongTensor"),
        ("a text", "no tokenizer.*token-id lists"),
        ([[1.5, 2.0]], "token ids"),
    ],
)
def test_bad_prompts(prompts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make("gpt2")(prompts)


def test_bad_sides_positions_and_edits():
    model = make("gpt2")
    with pytest.raises(ValueError, match="side 'top'.*'left' or 'right'"):
        model.tokenize(PROMPTS, side="top")
    for positions in ("first", 1.5, [], [0.5], True, torch.zeros(3)):
        with pytest.raises(ValueError, match="positions .* is not understood.*generated"):
            mi.zero("x1", positions=positions)
    misfits = [(torch.tensor([0, 1]), "batch has 3 rows"), (torch.ones(3, 5).bool(), r"shape \(3, 5\)")]
    for positions, message in misfits:
        with pytest.raises(ValueError, match=message):
            with mi.intervene(model, mi.zero("x1", positions=positions)):
                model(PROMPTS)
    with pytest.raises(TypeError, match="edits: 'x1' is a str, not an edit"):
        with mi.intervene(model, "x1"):
            pass
    assert not hooks_left(model)


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda: mi.add("x1", torch.ones(31)), r"add at 'x1': the vector has shape \(31,\).*\(32,\)"),
        (lambda: mi.mean("z1", torch.ones(3, 8)), r"mean at 'z1'.*\(3, 8\).*\(4, 8\)"),
        (lambda: mi.patch("x1", torch.ones(3, 6, 32)), r"patch at 'x1'.*\(3, 6, 32\).*\(3, 7, 32\)"),
        (lambda: mi.patch("x1", torch.ones(2, 7, 32)), r"patch at 'x1'.*\(2, 7, 32\)"),
        (lambda: mi.edit("x1", lambda value: value[..., :3]), r"edit at 'x1' returned \(3, 7, 3\)"),
        (lambda: mi.edit("x1", lambda value: value.double()), "float64.*keep shape and dtype"),
        (lambda: mi.edit("x1", lambda value: None), "returned NoneType"),
        (lambda: mi.add("x1", torch.ones(32, dtype=torch.long)), "vector has dtype torch.int64.*float"),
        (lambda: mi.project("x1", torch.zeros(32)), "direction.*non-zero vector"),
        (lambda: mi.project("x1", torch.ones(2, 32)), "direction.*non-zero vector"),
    ],
)
def test_values_that_do_not_fit(edit, message):
    model = make("gpt2")
    with pytest.raises((ValueError, TypeError), match=message):
        with mi.intervene(model, edit()):
            model(PROMPTS)
    assert not hooks_left(model)


def test_bad_arguments_of_load():
    with pytest.raises(ValueError, match="dtype 'int8'.*float32, bfloat16, float16"):
        mi.load("lab", dtype="int8")
    with pytest.raises(ValueError, match="device 'warp' is not available"):
        mi.load("lab", device="warp")
    with pytest.raises(TypeError, match="give a Hugging Face causal LM"):
        mi.wrap(torch.nn.Linear(2, 2))


def test_a_model_that_cannot_be_found_is_named(monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="model 'no-such/model' could not be read.*config.json"):
        mi.load("no-such/model")


def test_bad_arguments_of_generation_and_resume():
    model = make("gpt2")
    with pytest.raises(ValueError, match="max_new_tokens is 0"):
        model.generate_ids(PROMPTS, 0)
    with pytest.raises(ValueError, match="padded on the right.*side='left'"):
        model.generate_ids(model.tokenize(PROMPTS, side="right"), 2)
    with pytest.raises(TypeError, match="generate needs a tokenizer"):
        model.generate(PROMPTS, 2)
    with pytest.raises(ValueError, match=r"x has shape \(1, 32\)"):
        model.resume(1, torch.zeros(1, 32), PROMPTS)
    with pytest.raises(ValueError, match="layer 9 is out of range"):
        model.resume(9, torch.zeros(3, 7, 32), PROMPTS)
    with pytest.raises(ValueError, match="branch 'ffn'"):
        weights.post_norm(model, 0, "ffn")
