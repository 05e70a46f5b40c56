"""The fast engine against the plain loop: one forward pass per cell, on every family."""

import pytest
import torch

import mi_course as mi
from mi_course.locate.sweep import Sweep
from mi_course.models.batch import Chosen
from mi_course.objects import Task
from tests.families import FAMILIES, random_model
from tests.models.common import hooks_left, make, sites

PROMPTS = [[0, 5, 6, 7, 8, 9, 10], [0, 9, 10, 11, 7], [0, 3, 4, 5, 6, 7, 8, 12]]
TWINS = [[0, 5, 6, 17, 8, 9, 10], [0, 9, 20, 11, 7], [0, 3, 14, 5, 6, 7, 8, 12]]


def task_of(metric="logit_diff"):
    return Task("t", PROMPTS, targets=[1, 2, 3], corrupted=TWINS, foils=[4, 5, 6], metric=metric)


def sweep_of(model, side="left", metric="logit_diff"):
    """A sweep whose prompts are padded on the given side."""
    sweep = Sweep(model, task_of(metric))
    sweep.batch = model.tokenize(PROMPTS, side)
    sweep._chosen = Chosen(sweep.batch.mask, sweep.batch.mask)
    return sweep


def plain(model, task, batch, edits):
    """The loop that everybody writes: one forward pass of the whole model, all logits."""
    with mi.intervene(model, *edits):
        logits = model(batch)[torch.arange(len(batch)), batch.last]
    return task.metric_of(logits, model)


def cells_for(model, batch, twin):
    """Zero, patched and moved values of every kind of object, everywhere and at single positions."""
    cells = []
    values = mi.record(model, twin, sites(model))
    late = batch.position_ids >= 3
    for i, site in enumerate(sites(model)):
        if "pattern" in site or "scores" in site:
            cells.append([mi.scale(site, 0.5, positions=2 + i % 3)])
            continue
        cells.append([mi.patch(site, values[site], positions=["all", late & batch.mask.bool(), -1, 3][i % 4])])
        if i % 2 and not site.startswith(
            ("result", "mid")
        ):  # written as y + (0 - y): a norm would magnify the rounding
            cells.append([mi.zero(site, positions=[-2, "all"][i % 4 // 2])])
    last = model.n_layers - 1
    cells += [
        [],
        [mi.zero("mlp0"), mi.zero(f"L{last}H1.z")],
        [mi.scale("L0N3", 2.0, positions=2), mi.zero(["L0N4", "L0N5"]), mi.zero(f"mlp{last}")],
        [mi.zero("neurons0"), mi.zero("L0N2")],
        [mi.edit(f"x{last}", lambda value: value.flip(-1)), mi.zero("L0H0", positions=4)],
        [mi.add("mlp0", torch.ones(model.d_model), positions=4), mi.project("x1", torch.ones(model.d_model), 4)],
        {f"k{last}": values[f"k{last}"], f"x{last}": values[f"x{last}"]},
        [mi.patch("x1", values["x1"], positions=torch.zeros_like(batch.mask, dtype=torch.bool))],
    ]
    return cells


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_cell_is_what_a_plain_forward_pass_gives(family, side):
    model, task = make(family), task_of()
    sweep = sweep_of(model, side)
    cells = cells_for(model, sweep.batch, model.tokenize(TWINS, side))
    as_edits = [[mi.patch(s, v) for s, v in cell.items()] if isinstance(cell, dict) else cell for cell in cells]
    expected = torch.stack([plain(model, task, sweep.batch, cell) for cell in as_edits])
    found = sweep.values(cells)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    moved = (expected - plain(model, task, sweep.batch, [])).abs().amax(1) > 1e-4
    assert moved.float().mean() > 0.7  # the cells do change the answer (late positions of the last layer cannot)
    assert torch.equal(sweep.effects([cells[-1], []]), torch.zeros(2, 3))  # nothing changed: exactly nothing
    assert hooks_left(model) == []


def test_all_metrics_and_logits():
    model = make("gemma2")
    cells = [[], [mi.zero("L0H1.z")], [mi.zero("mlp1.write", positions=-1)]]
    for metric in ("logit_diff", "prob", "logprob", "accuracy"):
        sweep = sweep_of(model, "right", metric)
        expected = torch.stack([plain(model, task_of(metric), sweep.batch, cell) for cell in cells])
        assert torch.allclose(sweep.values(cells), expected, rtol=1e-5, atol=1e-6)
        assert torch.allclose(sweep.base, expected[0], rtol=1e-5, atol=1e-6)
    logits = sweep.logits(cells)
    assert logits.shape == (3, 3, model.n_vocab)
    assert torch.allclose(logits[0], model.last_logits(PROMPTS), atol=1e-5)


def test_what_was_computed_is_counted(monkeypatch):
    monkeypatch.setattr("mi_course.locate.sweep.OVERHEAD", 0.0)  # never start a cell earlier to spare a pass
    model = mi.wrap(random_model("gpt2", n_layer=4))
    prompts = [[0, 5, 6, 7], [0, 9, 10, 11]]
    sweep = Sweep(model, Task("t", prompts, [1, 2], [[0, 5, 16, 7], [0, 9, 20, 11]], foils=[3, 4]))
    sweep.values([[]])
    assert (sweep.forwards, sweep.token_layers) == (2, 2 * 4 * 4)  # the base run
    sweep.values([[mi.zero("x2")], [mi.zero("x3", positions=2)], [mi.zero("L1N3")], [mi.zero("x4")]])
    # two layers of four tokens; one layer of two tokens; layers 2 and 3; nothing but the unembedding
    again = 2 * 4 * 4  # the base run once more, for the neurons of layer 1
    assert sweep.token_layers == 32 + again + 2 * (2 * 4 + 1 * 2 + 2 * 4 + 0)
    assert sweep.forwards == pytest.approx(sweep.token_layers / (4 * 4))
    assert sweep.changed.tolist() == [[False, False, True, True]] * 2


def test_active_interventions_and_changed_weights_are_seen():
    model, task = mi.wrap(random_model("gpt2")), task_of()
    sweep = sweep_of(model)
    cells = [[mi.zero("L1H2.z")], [mi.scale("mlp1", 0.5, positions=-1)]]
    sweep.values(cells)
    outer = mi.add("x1", torch.ones(model.d_model))
    with mi.intervene(model, outer):
        found = sweep.effects(cells)
    expected = torch.stack([plain(model, task, sweep.batch, [outer, *cell]) for cell in cells])
    assert torch.allclose(found, expected - plain(model, task, sweep.batch, [outer]), atol=1e-5)
    with torch.no_grad():
        model.block(0).mlp.c_proj.weight.mul_(0.5)
    expected = torch.stack([plain(model, task, sweep.batch, cell) for cell in cells])
    assert torch.allclose(sweep.values(cells), expected, atol=1e-5)


def test_features_are_edited_where_their_sae_reads():
    model, task = mi.wrap(random_model("gpt2")), task_of()

    class Sae:
        def __init__(self, site, width):
            self.site = site
            self.W = torch.randn(width, 20, generator=torch.Generator().manual_seed(0)) / 4

        def encode(self, x):
            return torch.relu(x @ self.W)

        def decode(self, a):
            return a @ self.W.T

    model.saes = {"ffn": Sae("mlp1", 32), "state": Sae("x2", 32), "z": Sae("z1", 32), "neurons": Sae("neurons0", 128)}
    cells = [[mi.scale(f"{name}F{j}", 3.0, positions=[-1, "all"][j % 2])] for name in model.saes for j in (3, 4)]
    sweep = sweep_of(model)
    expected = torch.stack([plain(model, task, sweep.batch, cell) for cell in cells])
    assert torch.allclose(sweep.values(cells), expected, atol=1e-5)


def test_nothing_is_left_behind_by_an_error():
    model = make("llama")
    sweep = sweep_of(model)

    def fail(value):
        raise RuntimeError("stop")

    for cells, error, message in [
        ([[mi.edit("L1H0.q", fail)], [mi.zero("x2")]], RuntimeError, "stop"),
        ([[mi.patch("x1", torch.zeros(2, 5))]], ValueError, "shape"),
        ([[mi.zero("L9H0.z")]], ValueError, "layer 9"),
        ([[mi.zero("gateF3")]], ValueError, "no SAE"),
        (["x1"], TypeError, "give edits"),
    ]:
        with pytest.raises(error, match=message):
            sweep.values(cells)
        assert hooks_left(model) == []
    with pytest.raises(ValueError, match="on='both'"):
        Sweep(model, task_of(), on="both")
    with pytest.raises(ValueError, match="no corrupted"):
        Sweep(model, Task("t", PROMPTS, [1, 2, 3], foils=[4, 5, 6]), on="corrupted")
