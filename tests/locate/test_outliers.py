"""Outliers against plain arithmetic, and planted ones: a super weight, a massive activation, a coordinate."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import outliers as O
from mi_course.models import weights as parts
from tests.families import FAMILIES, random_model

PROMPTS = [[3, 4, 5, 6, 7, 8, 9], [9, 8, 7]]


def test_kurtosis():
    generator = torch.Generator().manual_seed(0)
    normal, flat = torch.randn(200_000, generator=generator), torch.rand(200_000, generator=generator)
    assert O.kurtosis(normal).item() == pytest.approx(3, abs=0.05)
    assert O.kurtosis(5 * flat + 2).item() == pytest.approx(1.8, abs=0.05)  # free of scale and shift
    one = torch.zeros(1000)
    one[3] = 7
    assert O.kurtosis(one).item() == pytest.approx(1000, rel=0.01) and O.kurtosis(torch.ones(5)).item() == 0


def test_static_neuron_scores_take_the_right_axis():
    """Audit A9: the key of neuron j is column j of W_in, in the storage of both kinds of modules."""
    gpt2, llama = mi.wrap(random_model("gpt2")), mi.wrap(random_model("llama"))
    block = gpt2.block(1).mlp
    assert O.neuron_norms(gpt2, "in")["L1N5"] == pytest.approx(block.c_fc.weight[:, 5].norm().item(), rel=1e-5)
    assert O.neuron_norms(gpt2)["L1N5"] == pytest.approx(block.c_proj.weight[5].norm().item(), rel=1e-5)
    block = llama.block(1).mlp
    assert O.neuron_norms(llama, "gate")["L1N5"] == pytest.approx(block.gate_proj.weight[5].norm().item(), rel=1e-5)
    assert O.neuron_norms(llama)["L1N5"] == pytest.approx(block.down_proj.weight[:, 5].norm().item(), rel=1e-5)
    value = block.down_proj.weight[:, 5].detach()
    assert O.weight_kurtosis(llama)["L1N5"] == pytest.approx(O.kurtosis(value).item(), rel=1e-5)
    with pytest.raises(ValueError, match="part='in'"):
        O.neuron_norms(llama, "in")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_planted_super_weight_is_found_in_every_family(family):
    model = mi.wrap(random_model(family))
    weight = model.block(1).get_submodule(model.family.mlp_out).weight
    loud = int(mi.record(model, PROMPTS, ["neurons1"])["neurons1"].abs().amax((0, 1)).argmax())
    with torch.no_grad():
        weight[(loud, 11) if type(model.block(1).get_submodule(model.family.mlp_out)).__name__ == "Conv1D"
               else (11, loud)] = 500.0  # fmt: skip
    first = O.super_weights(model, PROMPTS)[0]
    assert (first.layer, first.neuron, first.dimension, first.weight) == (1, loud, 11, 500.0)
    assert first.share == pytest.approx(1, abs=0.05) and first.spike > 50
    alone = mi.record(model, [PROMPTS[first.prompt]], ["neurons1", "mlp1"])
    assert alone["neurons1"][0, first.position, loud].item() == pytest.approx(first.activation, rel=1e-3)
    assert alone["mlp1"][0, first.position, 11].item() == pytest.approx(first.output, rel=1e-3)
    with pytest.raises(RuntimeError), O.zeroed_weight(model, 1, loud, 11):
        assert parts.ffn(model, 1).W_out[loud, 11] == 0
        assert O.super_weights(model, PROMPTS)[0].spike < first.spike / 3
        raise RuntimeError
    assert parts.ffn(model, 1).W_out[loud, 11] == 500


def test_a_planted_massive_activation():
    hf = random_model("gpt2")
    with torch.no_grad():
        hf.transformer.wte.weight[8, 20] = -9000.0  # token 8 has one huge coordinate
    found = O.massive_activations(mi.wrap(hf), PROMPTS)
    assert {(m.prompt, m.position, m.dimension) for m in found} == {(0, 5, 20), (1, 1, 20)}
    assert {m.layer for m in found} == {0, 1, 2, 3} and all(m.value < -8000 for m in found)
    assert O.massive_activations(mi.wrap(random_model("gpt2")), PROMPTS) == []


def test_outlier_dimensions_and_their_batches():
    hf = random_model("gpt2")
    with torch.no_grad():
        hf.transformer.wpe.weight[:, 7] += 40
    model = mi.wrap(hf)
    ratio = O.outlier_dimensions(model, PROMPTS)
    assert ratio.shape == (4, 32) and ratio.argmax(1).tolist() == [7] * 4 and ratio[0, 7] > 20
    assert ratio.median(1).values.tolist() == pytest.approx([1] * 4)
    assert torch.allclose(O.outlier_dimensions(model, PROMPTS, batch_size=1), ratio, rtol=1e-4)
    state = mi.record(model, [PROMPTS[0]], ["x2"])["x2"][0, 2:].abs().mean(0)
    assert torch.allclose(O.outlier_dimensions(model, PROMPTS[:1], skip=2)[2], state / state.median(), rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_concentrated_keys(family):
    model = mi.wrap(random_model(family))
    for part in "qk":
        read = mi.record(model, PROMPTS, [f"L1H3.{part}"])
        M = read[f"L1H3.{part}"][read.batch.mask.bool()].norm(dim=0)
        assert O.qk_concentration(model, PROMPTS, part)["L1H3"] == pytest.approx((M.max() / M.mean()).item(), rel=1e-4)
        assert O.qk_concentration(model, PROMPTS, part, batch_size=1)["L1H3"] == pytest.approx(
            (M.max() / M.mean()).item(), rel=1e-4
        )
    with pytest.raises(ValueError, match="part='v'"):
        O.qk_concentration(model, PROMPTS, "v")
