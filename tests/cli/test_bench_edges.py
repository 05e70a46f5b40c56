"""The bench of edge scores compares like with like; the limits themselves are a matter of the machine."""

import subprocess
import sys

import torch

from mi_course.cli.benches import edges
from tests.locate.slow_edges import make


def test_measure_runs_and_leaves_the_weights_trainable(monkeypatch):
    model = make("gpt2")
    monkeypatch.setattr(edges, "peak_memory_mb", lambda name: 1)
    found = edges.measure(model, pairs=1)
    assert set(edges.LIMITS) <= set(found) and found["edges"] == 262
    assert all(p.requires_grad for p in model.hf.parameters())


def test_plain_passes_go_back_to_the_input():
    model, calls = make("gpt2"), []
    handle = model.hf.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    try:
        edges.plain_passes(model, edges.task_for(model), 0)()
        edges.plain_passes(model, edges.task_for(model), 2)()
    finally:
        handle.remove()
    assert calls == [False, True] + [False, False, True, True]


def test_peak_is_above_the_start():
    """In a process of its own, as the bench does it: one that has run many tests may still hold freed memory, and a
    tensor that fits into that raises nothing."""
    code = """if True:
        import torch
        from mi_course.cli.benches.edges import peak_mb
        with peak_mb() as peak:
            torch.ones(20_000_000).sum()
        print(peak[0])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 70 < float(done.stdout) < 200  # 76 MB
