import torch

import mi_course as mi
from mi_course.locate.causal import site_means
from mi_course.steer import amplitude
from tests.families import random_model

PROMPTS = [[3, 4, 5, 6, 7], [9, 8, 7]]
SITES = ["L0H1.z", "L1N3", "mlp1", "attn0"]


def under(model, edits):
    with mi.intervene(model, *edits):
        return model(PROMPTS)


def test_strengths():
    model = mi.wrap(random_model("llama"))
    base = model(PROMPTS)
    assert torch.equal(under(model, amplitude.scale_all(SITES, 1.0)), base)
    off = under(model, amplitude.zero_all(SITES))
    assert torch.equal(under(model, amplitude.scale_all(SITES, 0.0)), off)
    assert (off - base).abs().max() > 1e-3
    assert torch.equal(model(PROMPTS), base)


def test_means():
    model = mi.wrap(random_model("gpt2"))
    means = site_means(model, PROMPTS, ["L0H1.z", "L1N3"])
    with mi.intervene(model, *amplitude.mean_all(means)):
        cache = mi.record(model, PROMPTS, ["L0H1.z", "L1N3"])
    assert torch.allclose(cache["L0H1.z"], means["L0H1.z"].expand_as(cache["L0H1.z"]))
    assert torch.allclose(cache["L1N3"], means["L1N3"].expand_as(cache["L1N3"]))
