"""The logit lens and its relatives: equal to the model at the last layer, fooled by a rotated basis, DoLa by hand."""

import pytest
import torch

import mi_course as mi
from mi_course.locate import causal, projection
from mi_course.models import SiteError
from mi_course.world import compiled
from tests.families import FAMILIES, random_model

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


@pytest.mark.parametrize("family", FAMILIES)
def test_readings_of_states_and_parts(family):
    """Against norm, unembedding and ranks written out; each row read at its own last token under left padding."""
    model = mi.wrap(random_model(family))
    sites = [f"x{model.n_layers}@-1", "attn0@-1", "mlp1@1", "L1H2@-1"]
    reading = projection.read_tokens(model, PROMPTS, [7, 11], sites)
    assert reading.sites == sites and reading.prob.shape == reading.rank.shape == (4, 2)
    for i, (row, token) in enumerate(zip(PROMPTS, [7, 11])):
        whole = mi.record(model, [row], ["attn0", "mlp1", "z1", f"x{model.n_layers}"])
        result = whole["z1"][0, -1, 2] @ mi.models.weights.attention(model, 1).W_O[2].detach()
        states = [whole[f"x{model.n_layers}"][0, -1], whole["attn0"][0, -1], whole["mlp1"][0, 1], result]
        for j, state in enumerate(states):
            logits = mi.models.weights.unembedding(model)(state).detach()
            assert torch.isclose(reading.prob[j, i], logits.softmax(-1)[token], atol=1e-5)
            assert reading.rank[j, i] == logits.argsort(descending=True).tolist().index(token)
    assert torch.allclose(reading.prob[0], model.last_logits(PROMPTS).softmax(-1)[[0, 1], [7, 11]], atol=1e-5)


def test_a_reading_is_a_score_by_layer_and_position():
    c = compiled.rotated_basis()
    model, task = c.wrap(), c.task
    sites = causal.grid(model, [-2, -1]) + ["x4@-2", "x4@-1"]
    reading = projection.read_tokens(model, task.prompts, task.targets, sites)
    scores = reading.scores("rank")
    assert scores["x4@-1"] == 0 and scores["x2@-1"] > 0 and reading.scores()["x4@-1"] > 0.99
    assert scores.forwards == len(task)
    coded = [label["lens_reads"] for label in task.labels]
    assert projection.read_tokens(model, task.prompts, coded, ["x2@-1"]).scores("rank").values[0] == 0
    with pytest.raises(ValueError, match="choose 'prob' or 'rank'"):
        reading.scores("logit")


def test_a_reading_that_tells_nothing_apart_gets_the_middle():
    ranks = projection.rank_of(torch.tensor([[1.0, 1, 1, 1, 1], [0, 3, 2, 2, 1]]), torch.tensor([[0], [2]]))
    assert ranks.tolist() == [2, 1.5]


def test_dola_by_hand():
    model = mi.wrap(random_model("gpt2"))
    q = projection.logit_lens(model, PROMPTS)
    contrast = projection.layer_contrast(model, PROMPTS, candidates=[0, 1, 2], alpha=0.3)
    for i in range(2):
        far = []
        for layer in range(3):
            m = (q[3, i] + q[layer, i]) / 2
            far.append(sum((p * (p / m).log()).sum().item() for p in (q[3, i], q[layer, i])) / 2)
        chosen = far.index(max(far))
        assert contrast.layer[i] == chosen and contrast.divergence[:, i].tolist() == pytest.approx(far, abs=1e-5)
        keep = q[3, i] >= 0.3 * q[3, i].max()
        assert torch.equal(contrast.scores[i] > -torch.inf, keep)
        assert torch.allclose(contrast.scores[i][keep], (q[3, i] / q[chosen, i]).log()[keep], atol=1e-4)
    alone = projection.layer_contrast(model, PROMPTS, alpha=1.0)
    assert torch.equal(alone.scores.argmax(-1), q[-1].argmax(-1))  # only the top token is left
    assert (alone.layer > 0).all()


def test_divergence_is_bounded_and_symmetric():
    p, q = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert projection.jensen_shannon(p, q).item() == pytest.approx(torch.log(torch.tensor(2.0)).item())
    assert projection.jensen_shannon(p, p).item() == 0 and torch.equal(
        projection.jensen_shannon(p, q), projection.jensen_shannon(q, p)
    )


def test_top_overlap():
    model = compiled.rotated_basis().wrap()
    overlap = projection.top_overlap(model, ["a b c", "b a"], k=1)
    # blocks 1 and 2 write nothing; block 0 puts the code in, block 3 takes it out again
    assert overlap[1:3].eq(1).all() and overlap[0].eq(0).all() and overlap[3].eq(0).all()
    random = mi.wrap(random_model("llama"))
    p = projection.logit_lens(random, PROMPTS)
    a, b = (set(p[layer, 1].topk(5).indices.tolist()) for layer in (0, 1))
    assert projection.top_overlap(random, PROMPTS, k=5)[0, 1].item() == pytest.approx(len(a & b) / len(a | b))


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda m: projection.read_tokens(m, PROMPTS, [7, 8], ["x1"]), "a lens reads"),
        (lambda m: projection.read_tokens(m, PROMPTS, [7, 8], ["L0N3@-1"]), "a lens reads"),
        (lambda m: projection.read_tokens(m, PROMPTS, [7], ["x1@-1"]), "tokens must have one token per prompt, 2"),
        (lambda m: projection.layer_contrast(m, PROMPTS, candidates=[3]), "give layers between 0 and 2"),
        (lambda m: projection.layer_contrast(m, PROMPTS, alpha=1.5), "must lie in 0 ... 1"),
        (lambda m: projection.top_overlap(m, PROMPTS, k=0), "k=0 is outside"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises((ValueError, SiteError), match=message):
        call(mi.wrap(random_model("gpt2")))
