"""Parameter saliency against finite differences and against autograd on the whole model."""

import numpy as np
import pytest
import torch

from mi_course.locate.parameters import parameter_gradients, parameter_saliency, weight_scores
from mi_course.models.slices import slices
from tests.locate.test_gradient import task
from tests.models.common import FAMILIES, hooks_left, make


@pytest.mark.parametrize("family", FAMILIES)
def test_against_backward_on_everything(family):
    """Slow and plain: backward through the whole model, then pick the unit's entries by hand."""
    model = make(family)
    units = ["L0H1", "L1H3", "L1N7", "mlp0"]
    norm, product = (parameter_saliency(model, task(), units, score) for score in ("norm", "weight x gradient"))
    task().measure(model, grad=True).mean().backward()
    try:
        for unit in units:
            pieces = []
            for s in slices(model, unit):
                weight = model.hf.get_parameter(s.parameter)
                pieces.append([t.index_select(s.dim, s.index).flatten() for t in (weight.grad, weight.detach())])
            g, w = (torch.cat(column) for column in zip(*pieces))
            assert norm[unit] == pytest.approx(g.norm().item(), rel=1e-4)
            assert product[unit] == pytest.approx((g * w).abs().sum().item(), rel=1e-4)
    finally:
        model.hf.zero_grad(set_to_none=True)
    assert norm.sign == "magnitude" and norm.forwards == norm.backwards == 3
    assert not hooks_left(model)


def test_a_weight_score_is_the_first_order_effect_of_a_zero():
    model = make("llama")
    name = "model.layers.1.mlp.down_proj.weight"
    scores, weight = weight_scores(model, task(), name), model.hf.get_parameter(name)
    assert scores.shape == weight.shape
    i, j = divmod(int(scores.argmax()), scores.shape[1])
    e, F = 1e-2, []
    with torch.no_grad():
        before = weight[i, j].clone()
        for share in (1 - e, 1 + e):
            weight[i, j] = before * share
            F.append(task().measure(model).mean().item())
        weight[i, j] = before
    assert scores[i, j].item() == pytest.approx(abs(F[1] - F[0]) / (2 * e), rel=2e-2)


def test_batches_and_what_is_differentiated():
    model = make("gpt2")
    name = "transformer.h.1.mlp.c_fc.weight"
    whole, pieces = (parameter_gradients(model, task(), [name], batch_size=b)[name] for b in (8, 1))
    assert torch.allclose(whole, pieces, atol=1e-5)
    assert all(p.grad is None and p.requires_grad for p in model.hf.parameters())


def test_a_unit_whose_weights_are_zero_has_a_gradient_and_no_product():
    import mi_course as mi
    from tests.families import random_model

    model = mi.wrap(random_model("gpt2"))
    with torch.no_grad():
        model.block(1).mlp.c_proj.weight[7] = 0  # the neuron writes nothing
    norm, product = (
        parameter_saliency(model, task(), ["L1N7", "L1N8"], s).values for s in ("norm", "weight x gradient")
    )
    assert norm[0] > 0.1 * norm[1] and product[0] == 0 and np.all(product[1] > 0)


def test_errors():
    model = make("gpt2")
    with pytest.raises(ValueError, match="score='l2'"):
        parameter_saliency(model, task(), ["L0H1"], "l2")
    with pytest.raises(ValueError, match="not in"):
        parameter_gradients(model, task(), ["h.0.weight"])
    with pytest.raises(ValueError, match="does not exist"):
        parameter_saliency(model, task(), ["L9H1"])
