"""Searches for groups, on models where the answer is known."""

from dataclasses import replace

import pytest
import torch

from mi_course.locate import causal, search
from mi_course.world import compiled


def test_greedy_finds_what_single_ablations_miss():
    c = compiled.backup()
    model = c.wrap()
    assert causal.ablate_each(model, c.task, ["L0H0.z", "L1H0.z"]).values == pytest.approx([0, 0], abs=1e-3)
    heads = causal.heads(model)
    group = search.greedy_group(model, c.task, heads, len(heads))
    assert group.effects[-1] == pytest.approx(c.expected["zero L0H0 L1H0"], abs=1e-3)
    pruned = search.prune_group(model, c.task, heads)
    assert set(pruned.sites) == {"L0H0.z", "L1H0.z"}
    assert pruned.effects[-1] == pytest.approx(pruned.effects[0], abs=1e-3)
    assert group.forwards > 0 and group.token_layers > 0
    with pytest.raises(ValueError, match="size=0"):
        search.greedy_group(model, c.task, heads, 0)
    with pytest.raises(ValueError, match="keep=2"):
        search.prune_group(model, c.task, heads, keep=2)


def test_greedy_by_size_takes_what_hinders_too():
    c = compiled.mediation()  # L0H0 is worth 5 and L1H0 2
    hindering = replace(c.task, targets=c.task.foils, foils=c.task.targets)  # now removing either *raises* F
    model = c.wrap()
    heads = causal.heads(model)
    by_size = search.greedy_group(model, hindering, heads, 1, by="abs")
    assert by_size.sites == ["L0H0.z"] and by_size.effects[0] > 4
    assert search.greedy_group(model, hindering, heads, 1).effects[0] < 1  # the strongest fall: nothing falls


def test_a_hierarchical_search_finds_planted_neurons_and_counts_its_rows():
    c = compiled.polysemantic()
    model = c.wrap()
    found = search.hierarchical_search(model, c.task, threshold=1.0)
    exact = causal.ablate_each(model, c.task, [*causal.heads(model), *causal.neurons(model, 0)])
    strong = {site for site, value in zip(exact.sites, exact.values) if abs(value) >= 1.0}
    assert set(found.sites) == strong
    for site, effect in found.sites.items():
        assert effect == pytest.approx(exact[site], abs=1e-3)
    objects = model.n_layers * (model.n_heads + model.d_ffn)
    assert found.exhaustive_rows == objects * len(c.task)


def test_a_hierarchical_search_misses_what_cancels():
    c = compiled.backup()
    found = search.hierarchical_search(c.wrap(), c.task, threshold=1.0)
    assert "L0H0.z" not in found.sites and "L1H0.z" not in found.sites
    with pytest.raises(ValueError, match="threshold"):
        search.hierarchical_search(c.wrap(), c.task, threshold=0)
    assert torch.is_grad_enabled()
