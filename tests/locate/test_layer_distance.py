"""Distances by layer against plain arithmetic, an identity block, and the place where twins part."""

import math

import pytest
import torch

import mi_course as mi
from mi_course.locate import layer_distance as D
from mi_course.world import compiled
from tests.families import FAMILIES, random_model
from tests.models.common import hooks_left

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7], [4, 4, 5, 6, 7]]


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_blocks_have_no_influence_in_every_family(family):
    model = mi.wrap(random_model(family))
    usual = D.block_influence(model, PROMPTS)
    with mi.intervene(model, *D.without_blocks(1)):
        cache = mi.record(model, PROMPTS, ["x1", "x2"])
        assert torch.equal(cache["x1"], cache["x2"])
        skipped = D.block_influence(model, PROMPTS)
        assert D.layer_change(model, PROMPTS)["x1"] == 0
    assert abs(skipped["x1"]) < 1e-6 < usual["x1"] and skipped["x0"] == pytest.approx(usual["x0"])
    assert not hooks_left(model)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_changes_equal_a_slow_loop_and_ignore_padding(family):
    model = mi.wrap(random_model(family))
    rows = {measure: [[] for _ in range(model.n_layers)] for measure in D.MEASURES}
    for prompt in PROMPTS:
        cache = mi.record(model, [prompt], [f"x{layer}" for layer in range(model.n_layers + 1)])
        for layer in range(model.n_layers):
            for t in range(1, len(prompt)):
                a, b = cache[f"x{layer}"][0, t], cache[f"x{layer + 1}"][0, t]
                rows["l2"][layer].append((a - b).norm().item())
                rows["relative"][layer].append(((a - b).norm() / a.norm()).item())
                rows["cosine"][layer].append(1 - (a @ b / a.norm() / b.norm()).item())
    for measure, layers in rows.items():
        wanted = [sum(layer) / len(layer) for layer in layers]
        for options in ({}, {"batch_size": 1}):
            got = D.layer_change(model, PROMPTS, measure, skip=1, **options)
            assert got.values == pytest.approx(wanted, rel=1e-4)
    assert got.sites == [f"x{layer}" for layer in range(model.n_layers)] and got.forwards == 3
    assert D.block_influence(model, PROMPTS, skip=1).values == pytest.approx(wanted, rel=1e-4)
    last = D.layer_change(model, PROMPTS, position=-1)
    ends = mi.record(model, PROMPTS, ["x0@-1", "x1@-1"])
    assert last["x0"] == pytest.approx((ends["x1@-1"] - ends["x0@-1"]).norm(dim=-1).mean().item(), rel=1e-4)


def test_similarity_and_angles():
    model = mi.wrap(random_model("gpt2"))
    similarity = D.layer_similarity(model, PROMPTS)
    assert torch.allclose(similarity, similarity.T) and torch.allclose(similarity.diagonal(), torch.ones(4))
    influence = torch.tensor(D.block_influence(model, PROMPTS).values).float()
    assert torch.allclose(1 - similarity.diagonal(1), influence, atol=1e-5)
    angles = D.angular_distance(torch.tensor([[1, 0.5, -1], [0.5, 1, 0], [-1, 0, 1.0]]), 1)
    assert angles.tolist() == pytest.approx([1 / 3, 1 / 2])
    assert D.angular_distance(similarity, 3).shape == (1,)
    with pytest.raises(ValueError, match="n=4"):
        D.angular_distance(similarity, 4)


def test_twins_part_where_the_circuit_brings_them():
    """In the compiled look-up the subject differs at its token, and its answer reaches the last word in layer 1."""
    c = compiled.lookup()
    model = c.wrap()
    at_end = D.twin_distance(model, c.task)
    assert at_end.values.tolist() == pytest.approx([0, 0, math.sqrt(2)], abs=1e-4)  # one feature off, one on
    at_subject = D.twin_distance(model, c.task, position=-2)
    assert at_subject["x0"] > 1 and at_subject["x1"] > at_subject["x0"]
    by_neuron = D.twin_distance(model, c.task, [f"L0N{j}" for j in range(8)], position=-2)
    assert by_neuron.values.tolist() == pytest.approx([1 / 3] * 6 + [0, 0], abs=1e-5)  # in 2 of 6 pairs of subjects
    with pytest.raises(ValueError, match="measure='cosine' of a single number"):
        D.twin_distance(model, c.task, ["L0N1"], "cosine")
    with pytest.raises(ValueError, match="twins"):
        D.twin_distance(model, mi.Task("t", ["peru is"], ["lima"], metric="logprob"))


@pytest.mark.parametrize("measure", D.MEASURES)
def test_twin_distance_of_vectors(measure):
    model = mi.wrap(random_model("llama"))
    twins = [[3, 4, 5, 6, 7, 8, 10], [9, 8, 6], [4, 4, 5, 5, 7]]
    task = mi.Task("t", PROMPTS, [3, 4, 5], twins, metric="logprob")
    got = D.twin_distance(model, task, ["x1", "L1H2.z", "mlp0"], measure)
    a, b = (mi.record(model, p, ["L1H2.z@-1"])["L1H2.z@-1"] for p in (PROMPTS, twins))
    wanted = {"l2": (a - b).norm(dim=-1), "relative": (a - b).norm(dim=-1) / a.norm(dim=-1),
              "cosine": 1 - (a * b).sum(-1) / a.norm(dim=-1) / b.norm(dim=-1)}[measure]  # fmt: skip
    assert got["L1H2.z"] == pytest.approx(wanted.mean().item(), rel=1e-4)
    same = mi.Task("t", PROMPTS, [3, 4, 5], PROMPTS, metric="logprob")
    assert D.twin_distance(model, same, ["x1"], measure)["x1"] == pytest.approx(0, abs=1e-6)


def test_unknown_measures_are_named():
    model = mi.wrap(random_model("gpt2"))
    with pytest.raises(ValueError, match="measure='l1'"):
        D.layer_change(model, PROMPTS, "l1")
    with pytest.raises(ValueError, match="skip leaves no token"):
        D.block_influence(model, PROMPTS, skip=20)
