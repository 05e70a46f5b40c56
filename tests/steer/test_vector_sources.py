import pytest
import torch

import mi_course as mi
from mi_course.locate import probing
from mi_course.objects.sae import SAE
from mi_course.steer import Steer, saving, vectors
from mi_course.steer import vector_sources as sources
from tests.families import random_model

UP, DOWN = [[3, 4, 5, 6, 7, 8], [9, 8, 7], [4, 4, 5, 6]], [[1, 2, 3], [5, 5, 5, 5, 6]]


def states_of(model, prompts, site="x1"):
    """Without batching or padding: a list of [T, d]."""
    return [mi.record(model, [p], [site])[site][0] for p in prompts]


def many(n, seed):
    return torch.randint(1, 40, (n, 5), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_which_token_is_averaged(family):
    model = mi.wrap(random_model(family))
    up, down = states_of(model, UP), states_of(model, DOWN)
    every = torch.cat(up).mean(0) - torch.cat(down).mean(0)
    assert torch.allclose(sources.all_token_difference(model, UP, DOWN, "x1"), every, atol=1e-4)
    later = torch.cat([x[1:] for x in up]).mean(0) - torch.cat([x[1:] for x in down]).mean(0)
    assert torch.allclose(sources.all_token_difference(model, UP, DOWN, "x1", skip=1), later, atol=1e-4)
    last = torch.stack([x[-1] for x in up]).mean(0) - torch.stack([x[-1] for x in down]).mean(0)
    assert torch.allclose(vectors.mean_difference(model, UP, DOWN, "x1@-1"), last, atol=1e-4)
    assert (every - last).norm() > 0.1  # not the same vector
    with pytest.raises(ValueError, match="names a position"):
        sources.all_token_difference(model, UP, DOWN, "x1@-1")


def test_caa_reads_the_answer_token():
    model = mi.wrap(random_model("llama"))
    targets, foils = [10, 11, 12], [20, 21, 22]
    pairs = [(states_of(model, [[*p, t]])[0][-1], states_of(model, [[*p, f]])[0][-1])
             for p, t, f in zip(UP, targets, foils)]  # fmt: skip
    expected = torch.stack([a - b for a, b in pairs]).mean(0)
    assert torch.allclose(sources.answer_difference(model, UP, targets, foils, "x1"), expected, atol=1e-4)
    # at x0 what the questions say has cancelled: only the answers' embeddings are left
    E = model.hf.get_input_embeddings().weight.detach()
    at_zero = sources.answer_difference(model, UP, targets, foils, "x0")
    assert torch.allclose(at_zero, (E[targets] - E[foils]).mean(0), atol=1e-5)
    with pytest.raises(ValueError, match="one of each"):
        sources.answer_difference(model, UP, targets, foils[:2], "x1")


def test_act_add_is_one_pair_token_by_token():
    model = mi.wrap(random_model("gpt2"))
    plus, minus = [0, 3, 4], [0, 3, 9]
    v = sources.pair_difference(model, plus, minus, "x2")
    a, b = states_of(model, [plus, minus], "x2")
    assert torch.allclose(v, a - b, atol=1e-5)
    steer = sources.act_add(model, plus, minus, "x2")
    assert len(steer.edits) == 1  # the first two tokens have the same state in both
    before = mi.record(model, UP, ["x2"])
    with steer.scaled(2.0).on(model):
        after = mi.record(model, UP, ["x2"])["x2"]
    moved = after - before["x2"]
    columns = before.batch.columns(2)
    assert torch.allclose(moved[torch.arange(3), columns], 2 * v[2].expand(3, -1), atol=1e-5)
    assert (moved.norm(dim=-1) > 0).sum() == 3
    # added to the minus prompt itself, at strength 1, it gives the plus prompt's later computation
    positive = model.last_logits([plus])
    with steer.on(model):
        assert torch.allclose(model.last_logits([minus]), positive, atol=1e-4)
    with pytest.raises(ValueError, match="token by token"):
        sources.act_add(model, plus, [0, 3], "x2")
    with pytest.raises(ValueError, match="differ"):
        sources.act_add(model, plus, plus, "x2")


def test_probe_vectors_read_and_move():
    model = mi.wrap(random_model("gpt2"))
    up, down = many(150, 0), [[*row[:4], 41] for row in many(150, 1)]  # the kinds differ in the last token
    site = "x1@-1"
    difference = vectors.mean_difference(model, up, down, site)
    x_up, x_down = (mi.record(model, p, [site])[site] for p in (up, down))
    for kind in ("logistic", "lda", "mean difference"):
        v = sources.probe_vector(model, up, down, site, kind)
        # strength 1 moves the negative mean to the positive one along the direction
        assert (x_down.mean(0) + v - x_up.mean(0)) @ vectors.unit(v) == pytest.approx(0, abs=1e-3)
        w = probing.fit(torch.cat([x_down, x_up]), [0] * 150 + [1] * 150, kind).direction()
        assert torch.cosine_similarity(v, w, dim=0).abs() > 0.999
    same = sources.probe_vector(model, up, down, site, "mean difference")
    assert torch.allclose(same, difference, atol=1e-3)
    # the pattern of the corrected weight is the mean difference again: S S^-1 (mu+ - mu-)
    lda = sources.probe_vector(model, up, down, site, "lda")
    pattern = sources.probe_vector(model, up, down, site, "lda", pattern=True)
    cosine = [torch.cosine_similarity(v, difference, dim=0).item() for v in (lda, pattern)]
    assert cosine[0] < 0.9 < 0.99 < cosine[1]
    with pytest.raises(ValueError, match="no position"):
        sources.probe_vector(model, up, down, "x1")


@pytest.mark.parametrize("kind,k", [("relu", None), ("topk", 3), ("gated", None)])
def test_all_latents_give_the_mean_difference_of_reconstructions(kind, k):
    model = mi.wrap(random_model("gpt2"))
    sae = SAE(model.d_model, 80, kind, k, site="x1", seed=3)
    with torch.no_grad():
        sae.W_dec.mul_(torch.rand(80, 1) + 0.5)
        sae.b_dec.normal_()
    delta = sources.feature_difference(model, sae, UP, DOWN)
    everything = sources.sae_vector(sae, delta)
    up, down = (torch.stack([x[-1] for x in states_of(model, p)]) for p in (UP, DOWN))
    with torch.no_grad():
        reconstructed = sae(up).mean(0) - sae(down).mean(0)
        errors = (up - sae(up)).mean(0) - (down - sae(down)).mean(0)
    assert torch.allclose(everything, reconstructed, atol=1e-5)
    assert torch.allclose(everything + errors, vectors.mean_difference(model, UP, DOWN, "x1@-1"), atol=1e-5)
    assert torch.allclose(sources.sae_vector(sae, delta, 80), everything, atol=1e-5)
    assert torch.allclose(sources.sae_vector(sae, delta, [5, 7]),
                          (delta[5] * sae.W_dec[5] + delta[7] * sae.W_dec[7]).detach(), atol=1e-6)  # fmt: skip
    length = (delta.abs() * sae.W_dec.detach().norm(dim=1)).tolist()
    j = max(range(80), key=length.__getitem__)
    assert torch.allclose(sources.sae_vector(sae, delta, 1), delta[j] * sae.W_dec[j].detach(), atol=1e-6)
    for wrong in (0, 81, []):
        with pytest.raises(ValueError, match="latents"):
            sources.sae_vector(sae, delta, wrong)


def test_steers_of_vectors_are_saved_and_loaded(tmp_path):
    model = mi.wrap(random_model("gpt2"))
    v = vectors.mean_difference(model, UP, DOWN, "x2@-1")
    steer = Steer(
        [vectors.add_relative("x2", v, 0.5, "last"), *sources.act_add(model, [3, 4], [5, 6], "x1").edits], 0.7
    )
    saving.save(steer, tmp_path / "pushed", model)
    back = saving.load(tmp_path / "pushed", model)
    with steer.on(model):
        expected = model(UP)
    with back.on(model):
        assert torch.equal(model(UP), expected)
