"""Transcoders: what they read and write in every family, planted truth, interventions, files."""

import pytest
import torch

import mi_course as mi
from mi_course.models import SiteError, intervene, record
from mi_course.models import weights as parts
from mi_course.objects import transcoder as tc
from mi_course.objects.sae import SAE
from mi_course.objects.transcoder import Transcoder
from tests.families import FAMILIES, random_model

PROMPTS = [[5, 6, 7, 8, 9], [9, 4, 11]]


def planted(n=3000, seed=0):
    """Inputs, and outputs of eight rectified units that each write their own direction: a transcoder is the truth."""
    g = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(12, 8, generator=g), torch.nn.functional.normalize(torch.randn(8, 10, generator=g))
    values = torch.nn.functional.normalize(torch.cat([values, values.new_zeros(8, 2)], 1), dim=1)
    x = torch.randn(n, 12, generator=g)
    return x, (x @ keys - 3).relu() @ values + 0.5, values


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_what_the_ffn_reads_and_writes(family):
    model = mi.wrap(random_model(family))
    for layer in range(model.n_layers):
        x, y = tc.states(model, layer, PROMPTS)
        w, post = parts.ffn(model, layer), parts.post_norm(model, layer, "mlp")
        s = w.act(x @ w.W_in + w.b_in) if w.W_in is not None else w.act(x @ w.W_gate + w.b_gate) * (x @ w.W_up + w.b_up)
        out = s @ w.W_out + w.b_out
        out = out if post is None else post(out)
        assert x.shape == (8, model.d_model) and torch.allclose(out, y, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "gpt_neox", "llama", "gemma2", "opt"])
def test_interventions_change_what_is_written_and_nothing_else(family):
    model = mi.wrap(random_model(family))
    t = Transcoder(model.d_model, 20, 1, k=4).eval().requires_grad_(False)
    before = model(PROMPTS)
    with intervene(model, t.edit(model, lambda a: a)):                        # identity, bit for bit
        assert torch.equal(model(PROMPTS), before)
    a, y = t.features(model, PROMPTS), record(model, PROMPTS, [t.writes])[t.writes]
    with t.splice(model).on(model):
        assert torch.allclose(record(model, PROMPTS, [t.writes])[t.writes], t.decode(a), atol=1e-5)
    j = int(a[0, -1].argmax())
    with t.ablate(model, [j], positions="last").on(model):
        now = record(model, PROMPTS, [t.writes])[t.writes]
    assert torch.equal(now[:, :-1], y[:, :-1])
    assert torch.allclose(now[:, -1], y[:, -1] - a[:, -1, j, None] * t.W_dec[j], atol=1e-5)
    with pytest.raises(RuntimeError, match="boom"), t.edit(model, boom).on(model):
        model(PROMPTS)
    assert torch.equal(model(PROMPTS), before)                                 # nothing is left behind


def boom(a):
    raise RuntimeError("boom")


@pytest.mark.parametrize("kind, options", [("topk", {"k": 4}), ("jumprelu", {"sparsity": 0.005})])
def test_training_finds_planted_units(kind, options):
    x, y, values = planted()
    t = tc.train(x[:2000], y[:2000], 16, 0, kind, steps=500, batch_size=256, lr=2e-2, **options)
    assert t.quality(x[2000:], y[2000:])["fvu"] < 0.01
    assert (t.W_dec @ values.T).max(0).values.min() > 0.95                     # every planted direction has its feature
    other = Transcoder(12, 16, 0, kind, options.get("k")).eval()
    assert other.quality(x[2000:], y[2000:])["fvu"] > 0.5                      # an untrained one does not


def test_scale_of_inputs_and_outputs_does_not_matter():
    x, y, _ = planted(600)
    first = tc.train(x, y, 8, 0, k=4, steps=50)
    second = tc.train(16 * x, 0.25 * y, 8, 0, k=4, steps=50)                   # powers of two: no rounding
    assert torch.allclose(second(16 * x), 0.25 * first(x), atol=1e-5)


def test_files(tmp_path):
    model, other = mi.wrap(random_model("gpt2")), mi.wrap(random_model("gpt2", seed=1))
    t = Transcoder(32, 20, 2, "jumprelu")
    t.save(tmp_path / "t.safetensors", model)
    again = Transcoder.load(tmp_path / "t.safetensors", model)
    assert (again.layer, again.kind, again.writes) == (2, "jumprelu", "mlp2.write")
    x = torch.randn(7, 32)
    assert torch.equal(again(x), t.eval()(x)) and not again.W_dec.requires_grad
    with pytest.raises(ValueError, match="another model"):
        Transcoder.load(tmp_path / "t.safetensors", other)
    SAE(32, 20, "topk", 2, "x1").save(tmp_path / "s.safetensors", model)
    with pytest.raises(ValueError, match="is an SAE of x1"):
        Transcoder.load(tmp_path / "s.safetensors", model)


def test_errors_say_what_to_do():
    model = mi.wrap(random_model("gpt2"))
    with pytest.raises(SiteError, match="layer 7 is out of range"):
        tc.states(model, 7, PROMPTS)
    with pytest.raises(ValueError, match="kind='gated'"):
        Transcoder(32, 20, 0, "gated")
    with pytest.raises(ValueError, match="y has 3 states for 5"):
        tc.train(torch.randn(5, 4), torch.randn(3, 4), 8, 0, k=2)
    with pytest.raises(ValueError, match="resample"):
        tc.train(torch.randn(5, 4), torch.randn(5, 4), 8, 0, k=2, remedy="resample")
    model.saes["t"] = Transcoder(32, 20, 0, k=2)                               # not a dictionary of one site
    with pytest.raises(SiteError, match="transcoder0"):
        record(model, PROMPTS, ["tF1"])


def test_loss_recovered():
    model = mi.wrap(random_model("gpt2"))
    exact = Transcoder(32, 64, 1, "relu").eval().requires_grad_(False)
    texts = [[5, 6, 7, 8, 9, 10], [11, 12, 13, 4]]
    y = tc.states(model, 1, texts)[1]
    exact.W_dec.zero_(), exact.b_dec.copy_(y.mean(0))                          # writes the mean: nothing recovered
    assert tc.loss_recovered(model, exact, texts) == pytest.approx(0, abs=1e-4)
