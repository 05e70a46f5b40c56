"""Tuned lens: identity at the start, right where the logit lens is fooled, better by depth on text it has not seen."""

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

import mi_course as mi
from mi_course import world
from mi_course.locate import projection
from mi_course.locate.tuned_lens import TunedLens, lens_kl, train_tuned_lens
from mi_course.world import compiled
from tests.families import random_model

ROWS = torch.randint(3, 50, (6, 8), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama"])
def test_an_untrained_lens_is_the_logit_lens(family):
    model = mi.wrap(random_model(family))
    lens = TunedLens(model)
    x = mi.record(model, ROWS, ["x1"])["x1"]
    assert torch.equal(lens(x, 1), model.unembed(x))
    assert lens_kl(model, ROWS, lens).values == pytest.approx(lens_kl(model, ROWS).values)
    for layer in range(model.n_layers):  # KL(model || lens), over the tokens after the first of each row
        pairs = []
        for row in ROWS:
            cache = mi.record(model, [row], [f"x{layer}"])
            read, final = (Categorical(logits=z[0, 1:]) for z in (model.unembed(cache[f"x{layer}"]), cache.logits))
            pairs.append(kl_divergence(final, read))
        assert lens_kl(model, ROWS, lens).values[layer] == pytest.approx(torch.cat(pairs).mean().item(), rel=1e-4)
    last = mi.record(model, ROWS, [f"x{model.n_layers}"])
    assert torch.allclose(lens(last[f"x{model.n_layers}"], model.n_layers), last.logits, atol=1e-5)


def test_it_reads_a_rotated_basis_where_the_logit_lens_is_confidently_wrong():
    c = compiled.rotated_basis()
    model, task = c.wrap(), c.task
    lens = train_tuned_lens(model, task.prompts[:40], steps=150, batch=128, lr=0.02)
    held_out = task.subset(range(40, 64))
    sites = [f"x{layer}@-1" for layer in (1, 2, 3)]
    plain = projection.read_tokens(model, held_out.prompts, held_out.targets, sites)
    wrong = projection.read_tokens(model, held_out.prompts, [x["lens_reads"] for x in held_out.labels], sites)
    tuned = projection.read_tokens(model, held_out.prompts, held_out.targets, sites, lens=lens)
    assert wrong.prob.min() > 0.99 and plain.prob.max() < 0.01
    assert (tuned.rank == 0).all()


def test_held_out_kl_falls_with_depth_and_below_the_logit_lens():
    model = mi.load()
    documents = [text for texts in world.documents("train", n=4).values() for text in texts]
    held_out = [text for texts in world.documents("test", n=2).values() for text in texts]
    lens = train_tuned_lens(model, documents, steps=40, batch=128, lr=5e-3)
    plain, tuned = lens_kl(model, held_out), lens_kl(model, held_out, lens)
    assert (tuned.values < plain.values).all()
    assert (tuned.values[1:] < tuned.values[:-1]).all() and (plain.values[1:] < plain.values[:-1]).all()


def test_training_is_deterministic_and_leaves_the_model_alone(tmp_path):
    model = mi.wrap(random_model("llama"))
    before = model.fingerprint()
    a, b = (train_tuned_lens(model, ROWS, steps=5, batch=16) for _ in range(2))
    assert torch.equal(a.A, b.A) and torch.equal(a.b, b.b) and a.A.any()
    assert model.fingerprint() == before and all(p.requires_grad for p in model.hf.parameters())
    other = train_tuned_lens(model, ROWS, steps=5, batch=16, seed=1)
    assert not torch.equal(a.A, other.A)
    with torch.no_grad():
        assert torch.equal(train_tuned_lens(model, ROWS, steps=5, batch=16).A, a.A)

    path = tmp_path / "lens.safetensors"
    a.save(path)
    loaded = TunedLens.load(path, model)
    x = torch.randn(2, model.d_model, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded(x, 1), a(x, 1))
    with pytest.raises(ValueError, match="was trained on the model with fingerprint"):
        TunedLens.load(path, mi.wrap(random_model("llama", seed=1)))
    from safetensors.torch import save_file

    save_file({"A": a.A.contiguous()}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a tuned lens"):
        TunedLens.load(tmp_path / "other.safetensors", model)


def test_bad_input_is_named():
    model = mi.wrap(random_model("gpt2"))
    with pytest.raises(ValueError, match="steps=0"):
        train_tuned_lens(model, ROWS, steps=0)
    with pytest.raises(ValueError, match="layer 9 is out of range"):
        TunedLens(model)(torch.zeros(1, model.d_model), 9)
