"""The bench measures what it says; the promised limits themselves are a matter of the machine and not tested here."""

import json
from argparse import Namespace

import pytest
import torch

from mi_course import models
from mi_course.cli import bench, main


@pytest.fixture(scope="module")
def tiny():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_positions=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    return models.wrap(GPT2LMHeadModel(config))


def test_all_sites_can_be_recorded(tiny):
    sites = bench.all_sites(tiny)
    cache = models.record(tiny, [[1, 2, 3]], sites)
    assert len(sites) == len(set(sites)) == 2 * 11 + 1
    assert cache["x2"].shape == (1, 3, 16) and cache["scores1"].shape == (1, 2, 3, 3)


def test_ratio_is_ours_over_plain(monkeypatch):
    clock = iter([0, 2, 0, 3] * 5)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    calls = []
    found = bench.alternate(lambda: calls.append("plain"), lambda: calls.append("ours"), pairs=5)
    assert found == {"plain": 2, "ratio": 1.5}
    assert calls == ["plain", "ours"] * 6


def test_measure_runs_and_leaves_the_model_as_it_was(tiny):
    before = tiny([[1, 2, 3]])
    found = bench.measure(tiny, pairs=2)
    assert torch.equal(tiny([[1, 2, 3]]), before)
    assert found["caching"] > 0 and found["steered_generation"] > 0 and found["parameters"] > 1000


def test_json_names_the_limits(monkeypatch, capsys, tiny):
    threads = torch.get_num_threads()
    monkeypatch.setattr(bench, "make_model", lambda name: tiny)
    monkeypatch.setattr(bench, "measure", lambda model, pairs: {"caching": 1.1})
    assert bench.run(Namespace(pairs=20, model="gpt2-small-shape", json=True)) == 0
    torch.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out)
    assert result["limits"]["caching"] == 1.3 and result["models"]["gpt2-small-shape"] == {"caching": 1.1}


def test_few_pairs_are_refused(capsys):
    assert main(["bench", "--pairs", "3"]) == 1
    assert "fewer than 20 pairs" in capsys.readouterr().err
