"""Side effects foretold: exact cases, and the order of what is then measured."""

import math

import pytest
import torch

import mi_course as mi
from mi_course import world
from mi_course.evaluate import side_effect_matrix
from mi_course.evaluate.statistics import rank_correlation, shuffled_correlation
from mi_course.models import weights
from mi_course.steer import prediction
from mi_course.steer.steer import Steer
from mi_course.steer.weights import WeightEdit
from tests.families import FAMILIES, random_model


@pytest.fixture(scope="module")
def lab():
    return mi.load()


@pytest.fixture(scope="module")
def documents():
    return {d: texts for d, texts in world.documents("test", 4).items() if d not in ("biography", "profile")}


def test_fisher_kl_is_the_kl_of_a_small_step():
    generator = torch.Generator().manual_seed(0)
    logits, slope = torch.randn(5, 7, generator=generator), torch.randn(5, 7, generator=generator)
    base, step = logits.log_softmax(-1), 1e-2
    moved = (logits.double() + step * slope).log_softmax(-1)
    kl = (base.double().exp() * (base - moved)).sum(-1)
    centred = slope - (base.exp() * slope).sum(-1, keepdim=True)  # the slope of log p, not of the logits
    assert torch.allclose(prediction.fisher_kl(base, step * centred).double(), kl, rtol=0.03, atol=1e-9)


def test_small_doses_cause_what_was_foretold_and_the_order_holds(lab, documents):
    v = torch.randn(lab.d_model, generator=torch.Generator().manual_seed(1))
    steer = Steer(mi.add("x4", v))
    predicted = prediction.fisher_overlap(lab, steer, documents)
    kl = side_effect_matrix(lab, {"s": lambda: steer.scaled(0.1).on(lab)}, documents).kl[0]
    measured = dict(zip(documents, kl / 0.1**2))
    assert rank_correlation(predicted.values(), measured.values()) > 0.9
    # documents are averaged by token in the one and by document in the other
    assert 0.8 < sum(predicted.values()) / sum(measured.values()) < 1.25


def test_directions_are_centred_and_their_overlap_is_a_cosine(lab, documents):
    directions = prediction.domain_directions(lab, documents, "x4")
    assert torch.stack(list(directions.values())).sum(0).abs().max() < 1e-3
    overlap = prediction.cosine_overlap(-3 * directions["ioi"], directions)
    assert overlap["ioi"] == pytest.approx(1, abs=1e-5) and max(overlap.values()) == overlap["ioi"]


@pytest.mark.parametrize("family", FAMILIES)
def test_key_overlap_of_halving_a_matrix_is_one_half(family):
    model = mi.wrap(random_model(family))
    name = f"{model.family.blocks}.1.{model.family.mlp_out}.weight"
    half = WeightEdit({name: -0.5 * model.hf.get_parameter(name).detach()})
    ids = [[1, 2, 3, 4], [5, 6, 7]]
    assert prediction.key_overlap(model, half, {"a": ids})["a"] == pytest.approx(0.5, rel=1e-4)
    # a change that reads only a direction no key has
    keys = mi.record(model, ids, ["neurons1"])
    keys = keys["neurons1"][keys.batch.mask.bool()]
    unseen = torch.linalg.svd(keys).Vh[-1]
    delta = torch.outer(unseen, torch.ones(weights.ffn(model, 1).W_out.shape[1]))
    transposed = isinstance(model.block(1).get_submodule(model.family.mlp_out), torch.nn.Linear)
    edit = WeightEdit({name: delta.T if transposed else delta})
    assert prediction.key_overlap(model, edit, {"a": ids})["a"] < 1e-4
    with pytest.raises(ValueError, match="none of its parameters"):
        prediction.key_overlap(model, WeightEdit({"x.weight": delta}), {"a": ids})


def test_rank_correlation_with_its_band():
    assert rank_correlation([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 2, 3], [1, 1, 5, 9]) == pytest.approx(1)
    assert math.isnan(rank_correlation([1, 1], [1, 2]))
    band = shuffled_correlation(range(30), range(30), draws=300)
    assert abs(band.mean) < 0.05 and band.sd == pytest.approx(1 / math.sqrt(29), rel=0.15)
    with pytest.raises(ValueError, match="the same things twice"):
        rank_correlation([1, 2], [1])
