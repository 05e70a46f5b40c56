"""Published formats: files written here as SAELens and Gemma Scope write them, read back, and compared with an encoder
and decoder computed straight from those files by the formulas of the two libraries."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import mi_course as mi
from mi_course.models import SiteError
from mi_course.objects.sae_formats import load_gemma_scope, load_saelens
from tests.families import random_model

M = 24
PROMPTS = torch.randint(3, 50, (2, 7), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def gpt2():
    return mi.wrap(random_model("gpt2"))


@pytest.fixture(scope="module")
def gemma2():
    return mi.wrap(random_model("gemma2"))


def weights(architecture: str, d: int) -> dict:
    """Random tensors under the names that SAELens gives them."""
    g = torch.Generator().manual_seed(7)
    shapes = {"W_enc": (d, M), "W_dec": (M, d), "b_dec": (d,)}
    shapes |= {"gated": {"b_gate": (M,), "b_mag": (M,), "r_mag": (M,)},
               "jumprelu": {"b_enc": (M,), "threshold": (M,)}}.get(architecture, {"b_enc": (M,)})
    w = {name: 0.4 * torch.randn(shape, generator=g) for name, shape in shapes.items()}
    return w | ({"threshold": w["threshold"] + 0.3} if "threshold" in w else {})


def published(w: dict, x, architecture: str, k=3, subtract=True, rescale=False, scale=1.0, centred=False):
    """Activations and reconstruction as the libraries compute them, from the raw tensors."""
    if centred:
        x = x - x.mean(-1, keepdim=True)
    x = x * scale - (w["b_dec"] if subtract else 0)
    if architecture == "gated":
        a = (x @ w["W_enc"] + w["b_gate"] > 0) * torch.relu(x @ (w["W_enc"] * w["r_mag"].exp()) + w["b_mag"])
    else:
        z = x @ w["W_enc"] + w["b_enc"]
        if rescale:
            z = z * w["W_dec"].norm(dim=-1)
        a = torch.relu(z)
        if architecture == "jumprelu":
            a = a * (z > w["threshold"])
        if architecture == "topk":
            a = torch.where(z >= z.sort(-1, descending=True).values[..., k - 1 : k], a, 0.0)
    out = (a / w["W_dec"].norm(dim=-1) if rescale else a) @ w["W_dec"] + w["b_dec"]
    return a, out / scale


def write(folder, w: dict, **config) -> None:
    folder.mkdir(exist_ok=True)
    save_file({name: t.contiguous() for name, t in w.items()}, folder / "sae_weights.safetensors")
    (folder / "cfg.json").write_text(json.dumps(config))


def new(architecture, d, hook="blocks.1.hook_resid_pre", metadata=None, **options) -> dict:
    """cfg.json of version 6."""
    return dict(d_in=d, d_sae=M, dtype="float32", device="cpu", apply_b_dec_to_input=True, normalize_activations="none",
                reshape_activations="none", architecture=architecture,
                metadata=dict(sae_lens_version="6.26.0", model_name="tiny", hook_name=hook, hook_head_index=None,
                              **(metadata or {}))) | options


def old(architecture, d, **options) -> dict:
    """cfg.json before version 6: one flat table."""
    return dict(architecture=architecture, d_in=d, d_sae=M, activation_fn_str="relu", apply_b_dec_to_input=True,
                finetuning_scaling_factor=False, context_size=128, model_name="tiny",
                hook_name="blocks.1.hook_resid_pre", hook_layer=1, hook_head_index=None, prepend_bos=True,
                dataset_path="x", normalize_activations="none", dtype="torch.float32", device="cpu",
                sae_lens_training_version="3.0.0") | options


def check(sae, w, model, site, **how):
    """The numbers, on the model's own states, and the features as sites of that model."""
    assert sae.site == site and not any(p.requires_grad for p in sae.parameters())
    x = mi.record(model, PROMPTS, [site])[site].flatten(2)
    a, out = published(w, x, **how)
    assert 0 < (a > 0).float().mean() < 1
    assert torch.allclose(sae.encode(x), a, atol=2e-4)
    assert torch.allclose(sae(x), out, atol=2e-4)

    model.saes["pub"] = sae
    cache = mi.record(model, PROMPTS, ["pubF*"])
    assert torch.allclose(cache["pubF*"], a, atol=2e-4)
    feature = int(a.flatten(0, 1).sum(0).argmax())
    with mi.intervene(model, mi.zero(f"pubF{feature}")):
        after = mi.record(model, PROMPTS, [site])[site].flatten(2)
    assert torch.allclose(x - after, cache["pubF*"][..., feature, None] * sae.W_dec[feature], atol=1e-3)
    with mi.intervene(model, mi.scale("pubF*", 1.0)):
        assert torch.allclose(model(PROMPTS), cache.logits, atol=1e-3)
    del model.saes["pub"]


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("subtract", [True, False])
def test_saelens_present_form(tmp_path, gpt2, architecture, subtract):
    w = weights(architecture, 32)
    k = {"k": 3} if architecture == "topk" else {}
    write(tmp_path, w, **new(architecture, 32, apply_b_dec_to_input=subtract, **k))
    check(load_saelens(tmp_path, gpt2), w, gpt2, "x1", architecture=architecture, subtract=subtract)


@pytest.mark.parametrize("config, architecture", [
    (dict(), "standard"), (dict(architecture="gated"), "gated"), (dict(architecture="jumprelu"), "jumprelu"),
    (dict(activation_fn_str="topk", activation_fn_kwargs={"k": 3}), "topk"),
    (dict(architecture="topk", activation_fn_str="topk", activation_fn_kwargs={"k": 3}), "topk"),
    (dict(normalize_activations=False), "standard"), (dict(normalize_activations=None), "standard"),
])
def test_saelens_older_form(tmp_path, gpt2, config, architecture):
    w = weights(architecture, 32)
    write(tmp_path, w, **(old("standard", 32) | config))
    check(load_saelens(tmp_path, gpt2), w, gpt2, "x1", architecture=architecture)


def test_saelens_oldest_names(tmp_path, gpt2):
    """hook_point instead of hook_name, no architecture, thresholds as logarithms."""
    w, config = weights("standard", 32), old("standard", 32)
    config["hook_point"] = config.pop("hook_name").replace("pre", "post")
    del config["architecture"], config["apply_b_dec_to_input"]
    write(tmp_path / "a", w, **config)
    check(load_saelens(tmp_path / "a", gpt2), w, gpt2, "x2", architecture="standard")
    w = weights("jumprelu", 32)
    w["threshold"] = w["threshold"].abs()
    stored = {"log_threshold": w["threshold"].log()} | {n: t for n, t in w.items() if n != "threshold"}
    write(tmp_path / "b", stored, **old("jumprelu", 32))
    check(load_saelens(tmp_path / "b", gpt2), w, gpt2, "x1", architecture="jumprelu")


@pytest.mark.parametrize("hook, site", [
    ("blocks.1.hook_resid_mid", "mid1"), ("blocks.0.hook_mlp_out", "mlp0.write"),
    ("blocks.0.hook_attn_out", "attn0.write"), ("blocks.1.attn.hook_z", "z1"), ("blocks.1.mlp.hook_post", "neurons1"),
])
def test_hooks_become_sites(tmp_path, gpt2, gemma2, hook, site):
    for model in (gpt2, gemma2):
        d = mi.record(model, PROMPTS, [site])[site].flatten(2).shape[-1]
        w = weights("standard", d)
        write(tmp_path, w, **new("standard", d, hook))
        check(load_saelens(tmp_path, model), w, model, site, architecture="standard")


def test_conventions_that_are_folded_in(tmp_path, gpt2):
    w = weights("topk", 32)
    write(tmp_path, w, **new("topk", 32, k=3, rescale_acts_by_decoder_norm=True))
    sae = load_saelens(tmp_path, gpt2)
    assert torch.allclose(sae.W_dec.norm(dim=1), torch.ones(M), atol=1e-5)
    check(sae, w, gpt2, "x1", architecture="topk", rescale=True)

    w = weights("standard", 32)
    factor = torch.rand(M, generator=torch.Generator().manual_seed(2)) + 0.5
    write(tmp_path, w | {"scaling_factor": factor}, **old("standard", 32, finetuning_scaling_factor=True))
    tuned = load_saelens(tmp_path, gpt2)
    x = mi.record(gpt2, PROMPTS, ["x1"])["x1"]
    a, _ = published(w, x, "standard")
    assert torch.allclose(tuned.encode(x), a, atol=2e-4)
    assert torch.allclose(tuned(x), (a * factor) @ w["W_dec"] + w["b_dec"], atol=2e-4)

    for architecture in ("standard", "jumprelu", "gated"):
        w = weights(architecture, 32)
        write(tmp_path, w, **new(architecture, 32, normalize_activations="expected_average_only_in"))
        check(load_saelens(tmp_path, gpt2, scale=1.7), w, gpt2, "x1", architecture=architecture, scale=1.7)
        for subtract in (True, False):
            write(tmp_path, w, **new(architecture, 32, apply_b_dec_to_input=subtract,
                                     metadata={"model_from_pretrained_kwargs": {"center_writing_weights": True}}))
            check(load_saelens(tmp_path, gpt2), w, gpt2, "x1", architecture=architecture, subtract=subtract,
                  centred=True)


@pytest.mark.parametrize("site", ["x1", "mlp0.write", "z1"])
def test_gemma_scope(tmp_path, gemma2, site):
    """No b_dec before encoding, max(z, 0) where z > threshold: also where a threshold is negative."""
    d = mi.record(gemma2, PROMPTS, [site])[site].flatten(2).shape[-1]
    w = weights("jumprelu", d)
    assert (w["threshold"] < 0).any()
    np.savez(tmp_path / "params.npz", **{name: t.numpy() for name, t in w.items()})
    for path in (tmp_path, tmp_path / "params.npz"):
        check(load_gemma_scope(path, site, gemma2), w, gemma2, site, architecture="jumprelu", subtract=False)


def test_an_sae_follows_its_model_to_bfloat16(tmp_path):
    model = mi.wrap(random_model("gemma2").to(torch.bfloat16))
    np.savez(tmp_path / "params.npz", **{name: t.numpy() for name, t in weights("jumprelu", 32).items()})
    model.saes["s"] = load_gemma_scope(tmp_path, "x1", model)
    with mi.intervene(model, mi.scale("sF3", 2.0)):
        assert model(PROMPTS).isfinite().all()


def test_npz_files_cannot_carry_code(tmp_path):
    np.savez(tmp_path / "params.npz", W_enc=np.array([object()], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        load_gemma_scope(tmp_path, "x1")


@pytest.mark.parametrize("change, error, says", [
    (dict(architecture="temporal"), ValueError, "architecture='temporal'"),
    (dict(activation_fn="tanh-relu"), ValueError, "activation_fn='tanh-relu'"),
    (dict(normalize_activations="layer_norm"), ValueError, "normalize_activations='layer_norm'"),
    (dict(normalize_activations="expected_average_only_in"), ValueError, "give scale = sqrt"),
    (dict(architecture="gated"), ValueError, "lacks b_gate, b_mag, r_mag"),
    (dict(architecture="topk"), ValueError, "names no k"),
    (dict(metadata={"hook_name": "blocks.0.ln2.hook_normalized"}), SiteError, "hook_normalized"),
])
def test_what_cannot_be_read_says_why(tmp_path, change, error, says):
    write(tmp_path, weights("standard", 32), **(new("standard", 32) | change))
    with pytest.raises(error, match=says):
        load_saelens(tmp_path)


def test_wrong_files_and_widths(tmp_path, gpt2):
    with pytest.raises(ValueError, match="cfg.json is not in nowhere"):
        load_saelens(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="params.npz is not in"):
        load_gemma_scope(tmp_path, "x1")
    write(tmp_path, weights("standard", 20), **new("standard", 20))
    with pytest.raises(ValueError, match="width 20, but 'x1' of .* has width 32"):
        load_saelens(tmp_path, gpt2)
    (tmp_path / "sae_weights.safetensors").unlink()
    with pytest.raises(ValueError, match="sae_weights.safetensors is not in"):
        load_saelens(tmp_path, gpt2)
    write(tmp_path, weights("standard", 32) | {"W_dec": torch.zeros(3, 32)}, **new("standard", 32))
    with pytest.raises(ValueError, match="do not belong together"):
        load_saelens(tmp_path)
    write(tmp_path, weights("standard", 32), **new("standard", 32))
    with pytest.raises(ValueError, match="scale=2.0, but"):
        load_saelens(tmp_path, scale=2.0)
    assert load_saelens(tmp_path, gpt2, site="x2").site == "x2"                # the reader may know better
    np.savez(tmp_path / "params.npz", W_enc=np.zeros((4, 8)))
    with pytest.raises(ValueError, match="lacks W_dec, b_dec, b_enc, threshold"):
        load_gemma_scope(tmp_path, "x1")
