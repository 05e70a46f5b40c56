"""Our gradients and integrated gradients are Captum's: the same weights, the same points, relative error below 1e-5."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import gradient, passes
from mi_course.locate import integrated_gradients as ig
from tests.families import random_model

captum = pytest.importorskip("captum.attr")
pytestmark = pytest.mark.parity

PROMPTS = [[0, 5, 6, 7, 8, 9], [0, 9, 10, 11, 3, 4]]
TWINS = [[0, 15, 6, 7, 8, 9], [0, 9, 20, 11, 3, 14]]
RULES = {"midpoint": "riemann_middle", "left": "riemann_left", "right": "riemann_right"}


def setting(family):
    """Our model and task, and a plain function from token ids to F for Captum."""
    model = mi.wrap(random_model(family))
    task = mi.Task("t", PROMPTS, targets=[1, 2], foils=[4, 5], corrupted=TWINS)

    def F(ids, targets, foils):
        last = model.hf(input_ids=ids, use_cache=False).logits[:, -1]
        return last.gather(1, targets[:, None])[:, 0] - last.gather(1, foils[:, None])[:, 0]

    return model, task, F, (task.target_ids(model), task.foil_ids(model))


def close(ours, theirs):
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_integrated_gradients_of_embeddings(family, rule):
    model, task, F, answers = setting(family)
    module = model.hf.get_submodule(model.family.embed)
    baseline = torch.zeros(1, dtype=torch.long) + 17
    theirs = captum.LayerIntegratedGradients(F, module).attribute(
        torch.tensor(PROMPTS), torch.full((2, 6), 17), additional_forward_args=answers, n_steps=8, method=RULES[rule]
    )
    start = module(baseline).detach()
    walk = ig.Walk(model, task, [mi.Site.parse("embed")], gradient.metric, passes.Cost(model))
    change, _ = walk.along(mi.Site.parse("embed"), start.expand(2, 6, -1), ig.path_points(8, rule))
    close(-change, theirs)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_integrated_gradients_of_neurons(family):
    """Captum interpolates between the activations of the two inputs: our joint path with the twin as baseline."""
    model, task, F, answers = setting(family)
    down = model.block(1).get_submodule(model.family.mlp_out)
    theirs = captum.LayerIntegratedGradients(F, down).attribute(
        torch.tensor(PROMPTS), torch.tensor(TWINS), additional_forward_args=answers, n_steps=8,
        method="riemann_middle", attribute_to_layer_input=True,
    )  # fmt: skip
    sites = [f"L1N{j}" for j in range(model.d_ffn)]
    ours = ig.integrated_gradients(model, task, sites, baseline="twin", steps=8)
    close(-torch.tensor(ours.per_item.T).float(), theirs.sum(1))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_gradient_times_input_of_neurons(family):
    model, task, F, answers = setting(family)
    down = model.block(0).get_submodule(model.family.mlp_out)
    theirs = captum.LayerGradientXActivation(F, down).attribute(
        torch.tensor(PROMPTS), additional_forward_args=answers, attribute_to_layer_input=True
    )
    ours = gradient.gradient_times_input(model, task, [f"L0N{j}" for j in range(model.d_ffn)])
    close(-torch.tensor(ours.per_item.T).float(), theirs.sum(1))
