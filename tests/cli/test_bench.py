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
    assert found["caching"] > 0 and found["steered_generation"] > 0 and found["dialled_generation"] > 0
    assert found["parameters"] > 1000


def part(value, limits, **direction):
    return Namespace(measure=lambda model, pairs: {"speed": value, "other": pairs}, LIMITS=limits, **direction)


@pytest.fixture
def stubs(monkeypatch, tiny):
    """Parts that measure nothing, so that the command itself is tested."""
    made = {
        "core": part(1.2, {"speed": 1.3}),
        "patching": part(5.0, {"gpt2-small-shape": {"speed": 6.0}, "lab": {"speed": 4.0}}, DIRECTION="at least"),
        "edges": part(1.6, {"speed": 1.5}),
        "direct": part(1.2, {"speed": 1.2, "absent": 1.0}),
        "saes": part(1.5, {"speed": 1.5}, DIRECTION="at least"),
    }
    monkeypatch.setattr(bench, "make_model", lambda name: tiny)
    monkeypatch.setattr(bench, "_module", made.get)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(capsys, **options):
    args = {"pairs": 20, "model": "gpt2-small-shape", "json": True, "parts": list(bench.PARTS)} | options
    assert bench.run(Namespace(**args)) == 0
    return capsys.readouterr().out


def test_every_limit_is_judged_in_its_direction(stubs, capsys):
    result = json.loads(run(capsys))
    assert {row["part"]: row["within"] for row in result["verdicts"]} == {
        "core": True, "patching": False, "edges": False, "direct": True, "saes": True}
    assert result["models"]["gpt2-small-shape"]["core"] == {"speed": 1.2, "other": 20}
    assert result["models"]["gpt2-small-shape"]["saes"]["other"] == bench.PAIRS_OF_PARTS["gpt2-small-shape"]
    assert "seconds" not in result                                             # loading is measured with lab


def test_parts_can_be_chosen_and_the_table_says_within_or_over(stubs, capsys):
    text = run(capsys, json=False, parts=["patching", "saes"])
    assert [line.split()[1:5] for line in text.splitlines()] == [
        ["speed", "5.00", "x", "OVER"], ["speed", "1.50", "x", "within"]]
    assert main(["bench", "--parts", "patching", "nothing"]) == 1
    assert "choose among core, patching" in capsys.readouterr().err


@pytest.mark.parametrize("name", [part for part in bench.PARTS if part != "core"])
def test_every_part_measures_what_it_has_limits_for(name, tiny, monkeypatch):
    module = bench._module(name)
    if name == "saes":
        monkeypatch.setattr(module, "measure", lambda model, pairs, measure=module.measure: measure(model, pairs, 64))
    if name == "edges":
        monkeypatch.setattr(module, "peak_memory_mb", lambda name: 1)
    found = module.measure(tiny, 1)
    limits = module.LIMITS.get("lab", module.LIMITS)
    assert set(limits) <= set(found) and all(found[key] > 0 for key in limits)
    assert getattr(module, "DIRECTION", "at most") == ("at least" if name in ("patching", "saes") else "at most")


def test_few_pairs_are_refused(capsys):
    assert main(["bench", "--pairs", "3"]) == 1
    assert "fewer than 20 pairs" in capsys.readouterr().err
