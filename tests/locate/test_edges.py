"""Exact edges against hooks on the Hugging Face model, on all families, and against compiled circuits."""

import pytest
import torch

import mi_course as mi
from mi_course.locate.blocks import Blocks
from mi_course.locate.edge_runs import contrasts, mean_writes
from mi_course.locate.edges import ablate_edges, edge_effects
from mi_course.locate.graph import Graph
from mi_course.objects import Task
from mi_course.world import compiled
from tests.families import FAMILIES
from tests.locate.slow_edges import PROMPTS, TASK, TWINS, effect, make, write
from tests.models.common import hooks_left


def some_edges(graph: Graph, n: int, seed: int = 0) -> list[str]:
    """n random edges, with one of every kind of receiver among them."""
    order = torch.randperm(len(graph.edges), generator=torch.Generator().manual_seed(seed)).tolist()
    edges = [graph.edges[i] for i in order]
    kinds = [".q", ".k", ".v", "->mlp1", "->logits", "x0->"]
    firsts = [next(e for e in edges if kind in e) for kind in kinds]
    return list(dict.fromkeys(firsts + edges))[:n]


@pytest.mark.parametrize("family", FAMILIES)
def test_open_form_equals_the_model(family):
    model = make(family)
    layers = range(model.n_layers)
    with torch.no_grad():
        blocks = Blocks(model, PROMPTS)
        states = blocks.run(blocks.x0())
        cache = mi.record(
            model, blocks.batch, [f"{p}{i}" for i in layers for p in "xqkvz"] + [f"mlp{i}.write" for i in layers]
        )
        real, logits = blocks.batch.mask.bool(), model.last_logits(blocks.batch)
        for i in layers:
            for part in "xqkvz":
                assert torch.allclose(getattr(states, part)[i][real], cache[f"{part}{i}"][real], atol=1e-4)
            assert torch.allclose(states.mlp_write[i][real], cache[f"mlp{i}.write"][real], atol=1e-4)
            assert torch.allclose(blocks.logits(states.x[i][None], i)[0], logits, atol=1e-4)
        for name, found in zip(Graph(model).senders, blocks.writes(states)):
            assert torch.allclose(found[real], write(model, blocks.batch, name)[real], atol=1e-4), name


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_edges_equal_hooks(family):
    model = make(family)
    edges = some_edges(Graph(model), 8)
    found = edge_effects(model, TASK, edges)
    for edge, values in zip(edges, found):
        sender = edge.split("->")[0]
        change = write(model, TWINS, sender) - write(model, PROMPTS, sender)
        assert torch.allclose(values, effect(model, TASK, edge, change), atol=2e-5), edge
    assert found.abs().max() > 1e-2


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_other_kinds_of_change(family):
    model = make(family)
    edges = some_edges(Graph(model), 6, seed=1)
    senders = [edge.split("->")[0] for edge in edges]
    own = [write(model, PROMPTS, sender) for sender in senders]
    mask = model.tokenize(PROMPTS).mask.bool()
    changes = {
        "zero": [-w for w in own],
        "mean": [w[mask].mean(0) - w for w in own],
    }
    for kind, all_changes in changes.items():
        expected = torch.stack([effect(model, TASK, edge, change) for edge, change in zip(edges, all_changes)])
        assert torch.allclose(edge_effects(model, TASK, edges, kind), expected, atol=2e-5)
    swapped = Task("t", prompts=TWINS, corrupted=PROMPTS, targets=TASK.targets, foils=TASK.foils)
    noising = edge_effects(model, swapped, edges, "noising")
    assert torch.equal(edge_effects(model, TASK, edges, "denoising"), noising)


def test_resample_takes_another_prompt_aligned_at_the_end():
    model = make("gpt2")
    task = Task("t", prompts=PROMPTS[:2], targets=[1, 2], foils=[4, 5])  # 5 and 4 tokens: each gets the other
    (c,) = contrasts(model, task, "resample")
    other = c.delta + c.blocks.writes(c.base)
    mlp = Graph(model).senders.index("mlp0")
    first, second = (write(model, [p], "mlp0")[0] for p in task.prompts)
    assert torch.allclose(other[mlp, 0], torch.cat([second[:1], second]), atol=1e-5)  # one token short: its first again
    assert torch.allclose(other[mlp, 1, 1:], first[1:], atol=1e-5)  # column 0 is padding
    with pytest.raises(ValueError, match="at least two prompts"):
        next(contrasts(model, task.subset(1), "resample"))


def test_batches_do_not_change_results():
    model = make("qwen3")
    same_length = TASK.subset([0, 0, 2])
    whole, parts = (
        torch.cat([c.delta[:, :, -5:] for c in contrasts(model, same_length, "mean", batch_size=n)], dim=1)
        for n in (3, 1)
    )
    assert torch.allclose(whole, parts, atol=1e-5)
    assert torch.allclose(mean_writes(model, PROMPTS, 3), mean_writes(model, PROMPTS, 1), atol=1e-5)


@pytest.mark.parametrize(
    "make_compiled", [compiled.induction, compiled.and_gate, compiled.saturated, compiled.mediation]
)
def test_compiled_circuits(make_compiled):
    """Zeroing finds the edges of the answer key. What it finds beside them leaves x0: constants that queries, keys and
    logits read, which are the same in the twin and therefore not in the key."""
    c = make_compiled()
    scores = ablate_edges(c.wrap(), c.task, kind="zero")
    important = {str(edge) for edge, value in zip(scores.sites, scores.values) if abs(value) > 1e-3}
    assert set(c.edges) <= important
    assert all(edge.startswith("x0->") for edge in important - set(c.edges))


def test_noising_edges_of_compiled_models():
    c = compiled.mediation()
    found = ablate_edges(c.wrap(), c.task)
    assert found["L0H0->logits"] == pytest.approx(-3, abs=1e-4)  # the direct path, and
    assert found["L0H0->L1H0.v"] == pytest.approx(-2, abs=1e-4)  # the indirect one
    assert found["x0->L0H0.v"] == pytest.approx(-5, abs=1e-4)
    c = compiled.or_gate()
    edges = ["L0H0->mlp0", "L0H1->mlp0", "mlp0->logits"]
    assert ablate_edges(c.wrap(), c.task, edges).values == pytest.approx([0, 0, -10], abs=1e-4)
    assert ablate_edges(c.wrap(), c.task, edges, "denoising").values == pytest.approx([10, 10, 10], abs=1e-4)


def test_costs_and_errors():
    model = make("gpt2")
    scores = ablate_edges(model, TASK, ["x0->L1H0.q", "mlp2->logits"])
    assert scores.sign == "noising" and scores.token_layers == 16 * 2  # layers 1 and 2; the logits need no layer
    assert scores.forwards == pytest.approx(6 + 3 * 2 / 3)  # three prompts twice, and then two of three layers
    with pytest.raises(ValueError, match="kind='noise'"):
        ablate_edges(model, TASK, ["x0->mlp0"], "noise")
    with pytest.raises(ValueError, match="no corrupted prompts"):
        ablate_edges(model, Task("t", PROMPTS, [1, 2, 3], foils=[4, 5, 6]), ["x0->mlp0"])
    with pytest.raises(ValueError, match="edges is empty"):
        edge_effects(model, TASK, [])
    assert not hooks_left(model)
