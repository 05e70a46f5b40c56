import pytest
import torch

import mi_course as mi
from mi_course.locate import projection
from mi_course.world import compiled
from tests.families import random_model

PROMPTS = [[0, 5, 6, 7, 8], [0, 9, 10]]


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gptj"])
def test_the_last_layer_is_the_model_only_with_the_final_norm(family):
    model = mi.wrap(random_model(family))
    output = model.last_logits(PROMPTS).softmax(-1)
    lens = projection.logit_lens(model, PROMPTS)
    assert lens.shape == (model.n_layers + 1, 2, model.n_vocab)
    assert torch.allclose(lens[-1], output, atol=1e-5)
    assert torch.allclose(lens.sum(-1), torch.ones(lens.shape[:2]), atol=1e-5)
    assert (projection.logit_lens(model, PROMPTS, normalise=False)[-1] - output).abs().max() > 0.01
    second = projection.logit_lens(model, PROMPTS, position=1)
    assert torch.allclose(second[-1], projection.logit_lens(model, [p[:2] for p in PROMPTS])[-1], atol=1e-5)


def test_the_lens_is_fooled_by_a_rotated_basis():
    c = compiled.rotated_basis()
    model = c.wrap()
    lens = projection.logit_lens(model, c.task.prompts)
    right = lens.argmax(-1) == c.task.target_ids(model)
    assert right[-1].all() and not right[1].any()


def test_settling():
    assert projection.settling([0, 0.05, 0.2, 0.5, 0.95, 1.0]) == (2, 4)
    assert projection.settling([0.5, 0.95, 0.1, 1.0]) == (0, 3)  # it has to stay there
    assert projection.settling([1.0, 1.0]) == (0, 0)
    with pytest.raises(ValueError, match="never reaches"):
        projection.settling([0.0, 0.05])
