"""Every method runs on a model of about 160 million parameters, on at most 256 sites or edges, and leaves it as it was.

Seconds and memory of each are printed (`-s`), and `python -m tests.scale.methods --json FILE` stores them.
"""

import pkgutil

import pytest
import torch

import mi_course.locate
from tests.scale import methods

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bench():
    made = methods.make()
    made.logits = made.model.last_logits(made.task.prompts)
    return made


def test_the_model_is_of_that_size_and_no_list_is_longer_than_allowed(bench):
    parameters = sum(p.numel() for p in bench.model.hf.parameters())
    assert 150e6 < parameters < 170e6 and bench.model.n_kv_heads < bench.model.n_heads
    assert all(0 < len(sites) <= methods.MOST for sites in bench.sites.values())
    assert len(methods.some_edges(bench)) <= methods.MOST


@pytest.mark.parametrize("name", methods.METHODS)
def test_runs_and_leaves_nothing_behind(name, bench, capsys):
    result = methods.measure(bench, name)
    with capsys.disabled():
        print(f"\n{name:<26} {result['seconds']:7.2f} s  {result['peak_mb']:6} MB", end=" ")
    assert not bench.model.taps._handles and result["peak_mb"] < 3000
    assert all(p.grad is None for p in bench.model.hf.parameters())


def test_the_model_is_as_it_was(bench):
    assert torch.equal(bench.model.last_logits(bench.task.prompts), bench.logits)


def test_every_module_of_locate_is_here():
    """A method that is added has to be run at this size, too."""
    text = open(methods.__file__, encoding="utf-8").read()
    helpers = {"blocks", "edge_runs", "graph", "passes", "registry", "sweep", "probing"}  # used by the others
    modules = {module.name for module in pkgutil.iter_modules(mi_course.locate.__path__)} - helpers
    assert [name for name in sorted(modules) if name not in text] == []
