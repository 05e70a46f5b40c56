"""The exhaustive map: how it is computed and kept, and that what ships is what a fresh computation gives."""

import random

import pytest
import torch

import mi_course as mi
from mi_course.models import intervene, mean, patch, record, zero
from mi_course.world import exhaustive as ex
from mi_course.world import task as world_task


@pytest.fixture(scope="module")
def lab():
    return mi.load()


def test_every_task_is_mapped_or_left_out_with_a_reason():
    from mi_course.world import tasks

    assert sorted([*ex.TASKS, *ex.LEFT_OUT]) == sorted(tasks())
    assert all(len(world_task(name, "test", 32)) == 32 for name in ex.TASKS)


def test_each_kind_of_ablation_equals_a_plain_intervention(lab):
    task = world_task("facts", "test", 6)
    base = task.measure(lab)
    for site in ("L3H1.z", "mlp2", "L0N7"):
        value = record(lab, task.prompts, [site])[site]
        mask = lab.tokenize(task.prompts).mask.bool()
        edits = {
            "zero": zero(site),
            "mean": mean(site, value[mask].mean(0)),
            "resample": patch(site, ex.resampled(lab, task.prompts, [site])[site]),
        }
        for kind, edit in edits.items():
            with intervene(lab, edit):
                expected = task.measure(lab) - base
            assert ex.effects(lab, task, [site], kind)[0] == pytest.approx(expected, abs=1e-4)


def test_resampled_values_come_from_another_prompt_aligned_at_the_last_token(lab):
    prompts = world_task("facts", "test", 5).prompts
    found = ex.resampled(lab, prompts, ["x2", "L3H1.z"])
    own = {p: record(lab, [p], ["x2", "L3H1.z"]) for p in prompts}
    batch = lab.tokenize(prompts)
    for site, donors in ((site, []) for site in ("x2", "L3H1.z")):
        for row, prompt in enumerate(prompts):
            last = found[site][row, batch.last[row]]
            (donor,) = [p for p in prompts if torch.allclose(own[p][site][0, -1], last, atol=1e-4)]
            assert donor != prompt
            donors.append(donor)
            for back in range(int(batch.lengths[row])):  # a shorter donor gives its first token to what comes before
                place = max(0, own[donor][site].shape[1] - 1 - back)
                assert found[site][row, batch.last[row] - back] == pytest.approx(own[donor][site][0, place], abs=1e-4)
        assert sorted(donors) == sorted(prompts)  # each is used once
    with pytest.raises(ValueError, match="at least two prompts"):
        ex.resampled(lab, prompts[:1], ["x2"])


def test_an_interrupted_run_goes_on_to_the_same_file(lab, tmp_path, monkeypatch):
    tasks = ("capitals", "ioi")
    whole, parts = tmp_path / "a" / "map.safetensors", tmp_path / "b" / "map.safetensors"
    for file, pieces in ((whole, [tasks]), (parts, [tasks[1:], tasks])):
        for piece in pieces:
            for objects, kind in (("heads", "zero"), ("ffns", "resample")):
                ex.make(lab, file, piece, objects, kind, n=3)
    (a, facts), (b, again) = ex._open(whole), ex._open(parts)
    assert facts == again and a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert whole.read_bytes() == parts.read_bytes()
    monkeypatch.setattr(ex, "effects", None)  # nothing is computed twice
    ex.make(lab, whole, tasks, "heads", "zero", n=3)
    task = world_task("ioi", "test", 3)
    with intervene(lab, zero("L4H2.z")):
        effect = task.measure(lab)
    effect = effect - task.measure(lab)
    row = facts["sites"]["heads"].index("L4H2.z")
    assert a["ioi|heads|zero"][:, row].tolist() == pytest.approx(
        [effect.mean().item(), effect.std().item() / 3**0.5], abs=1e-4
    )


def test_a_map_of_another_model_is_refused(lab, tmp_path):
    file = tmp_path / "map.safetensors"
    ex.make(lab, file, ["capitals"], "ffns", "zero", n=2)
    other = mi.load("lab-llama")
    with pytest.raises(ValueError, match="fingerprint"):
        ex.make(other, file, ["facts"], "ffns", "zero", n=2)
    with pytest.raises(ValueError, match="fingerprint"):
        other.name = "lab"
        ex.exhaustive("facts", model=other)


def test_bad_arguments(lab):
    with pytest.raises(KeyError, match="no map 'facts|heads|gone' is stored"):
        ex.exhaustive("facts", "heads", "gone")
    with pytest.raises(KeyError, match="no exhaustive map of 'gpt2' is shipped"):
        ex.exhaustive("facts", model="gpt2")
    with pytest.raises(ValueError, match="objects='layers' is unknown"):
        ex.sites(lab, "layers")
    with pytest.raises(ValueError, match="kind='noise' is unknown"):
        ex.effects(lab, None, ["mlp0"], "noise")


# --- what ships -------------------------------------------------------------------------------------------------------
def test_the_shipped_map_holds_what_the_plan_says(lab):
    stored = ex.stored(lab)
    for objects, kind, tasks in ex.PLAN:
        for name in tasks:
            assert stored[f"{name}|{objects}|{kind}"]["prompts"] == ex.PROMPTS
    for objects, count in (("heads", 24), ("ffns", 6), ("neurons", 3072), ("edges", 1108)):
        assert len(ex.exhaustive("facts", objects, model=lab)) == count
    assert len(ex.exhaustive("facts", "heads", "resample", mi.load("lab-llama"))) == 24


SAMPLES = [
    ("facts", "heads", "mean"),
    ("ioi", "ffns", "resample"),
    ("capitals", "neurons", "zero"),
    ("ioi", "edges", "mean"),
]


@pytest.mark.parametrize(("name", "objects", "kind"), SAMPLES)
def test_the_shipped_map_equals_a_fresh_computation(lab, name, objects, kind):
    scores, errors = (read(name, objects, kind, lab) for read in (ex.exhaustive, ex.standard_errors))
    chosen = random.Random(name).sample(scores.sites, 3)
    found = ex.effects(lab, world_task(name, "test", ex.PROMPTS), chosen, kind)
    assert [scores[site] for site in chosen] == pytest.approx(found.mean(1).tolist(), abs=1e-3)
    error = found.std(1) / found.shape[1] ** 0.5
    assert [errors[site] for site in chosen] == pytest.approx(error.tolist(), abs=1e-3)
