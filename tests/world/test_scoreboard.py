"""The scoreboard: rows against known answers, their summary, and the command that shows them."""

import json
import math
import re

import numpy as np
import pytest

import mi_course as mi
from mi_course import cli
from mi_course.cli import benchmark
from mi_course.locate import registry
from mi_course.locate.edges import ablate_edges
from mi_course.locate.graph import Graph
from mi_course.objects import Scores
from mi_course.world import compiled
from mi_course.world import scoreboard as sb
from mi_course.world.installed_tasks import answer_key, candidates, installed_task, used_edges


@pytest.fixture(scope="module")
def lab():
    return mi.load()


def test_one_who_knows_the_key_is_perfect_and_one_who_inverts_it_is_not(lab):
    """The change counts: a constant in both models cancels, and only its rise counts for an array."""
    key = answer_key("refusal-a")
    before = installed_task("refusal-a", n=4).measure(lab).mean()

    def knows(model, task, sites, sign=1):
        installed = task.measure(model).mean() > before + 1
        decoy = np.array([5.0 * (site == "L0H0.z") for site in sites])
        return decoy + sign * np.array([float(installed and site in key) for site in sites])

    options = {"seeds": (0,), "behaviours": ("refusal-a",), "base": lab, "n": 4}
    (row,) = sb.t1(knows, "mine", **options)
    assert row["auroc"] == row["recall"] == 1 and row["recall_alone"] == 0.5 and row["auroc_alone"] > 0.95
    assert (row["tier"], row["localizer"], row["objects"], row["prompts"]) == ("T1", "mine", "heads", 4)
    assert row["forwards"] == pytest.approx(4)
    (row,) = sb.t1(lambda *a: knows(*a, sign=-1), "mine", **options)
    assert row["auroc"] == 0 and row["recall"] == 0
    (row,) = sb.t1(lambda m, t, s: Scores(s, knows(m, t, s, sign=-1), "signed", "ablation"), "mine", **options)
    assert row["auroc"] == 1  # of signed effects the size of the change counts


def test_edges_are_scored_against_the_used_ones(lab):
    def knows(model, task, sites):
        return [float(site in used_edges("refusal-b")) for site in sites]

    def knows_the_model(model, task, sites):  # the same in both models: nothing is left of it in the difference
        return [float(site == "mlp5->logits") for site in sites]

    options = {"seeds": (0,), "behaviours": ("refusal-b",), "base": lab, "n": 2, "edges": True}
    (row,) = sb.t1(knows_the_model, "fixed", **options)
    assert row["auroc"] == 0.5 and row["recall_base"] < 0.01 and (row["tier"], row["objects"]) == ("T1 edges", "edges")
    (row,) = sb.t1(knows, "knows", **options)
    assert row["auroc_alone"] == row["recall_alone"] == row["recall_base"] == 1  # it knows the key, not the model
    assert list(row)[:5] == ["tier", "localizer", "objects", "task", "seed"]
    assert "sycophancy-direction" not in sb.with_edges() and len(sb.with_edges()) == 8


def test_edge_localizers_find_a_known_circuit():
    c = compiled.mediation()  # linear: estimates are exact; means also move what both twins share
    model = c.wrap()
    edges = Graph(model).edges[::-1]  # in the order that is asked for
    truth = [edge for edge in c.edges if abs(ablate_edges(model, c.task, [edge]).values[0]) > 1e-3]
    for name, one in registry.EDGE_LOCALIZERS.items():
        found = one.run(model, c.task, edges)
        assert [str(site) for site in found.sites] == edges and found.forwards > 0, name
        assert found.against(truth)["auroc"] >= (0.95 if "mean" in name else 1), name
    exact = registry.EDGE_LOCALIZERS["exact noising"].run(model, c.task, edges[:5])
    assert exact.forwards > 2 * len(c.task)  # the layers that were computed again count


def test_ablation_agrees_with_the_map_and_noise_does_not(lab):
    def noise(model, task, sites):
        return np.random.default_rng(0).random(len(sites))

    options = {"seeds": (0,), "objects": ("heads",), "tasks": ("capitals", "ioi"), "base": lab, "n": 32}
    exact = list(sb.t2(registry.LOCALIZERS["zero ablation"].run, "zero", **options))
    chance = list(sb.t2(noise, **options))
    # other prompts than the map's: many heads do next to nothing, and their order is noise
    assert all(row["spearman"] > 0.7 and row["overlap"] >= 0.8 for row in exact)
    assert all(abs(row["spearman"]) < 0.5 for row in chance)
    assert chance[0]["localizer"] == "noise" and exact[0]["prompts"] == 32


def test_a_constant_agrees_with_nothing(lab):
    (row,) = sb.t2(lambda m, t, s: [1.0] * len(s), "same", (0,), ("ffns",), ("facts",), lab, n=2)
    assert row["spearman"] == 0


def row(task, seed, auroc, **more):
    cost = {"forwards": 2.0, "backwards": 0.0, "token_layers": 4.0, "seconds": 1.0}
    rest = {"tier": "T1", "localizer": "a", "objects": "heads", "recall": 1.0, "auroc_alone": 0.5, "recall_alone": 0}
    return rest | {"task": task, "seed": seed, "auroc": auroc, "prompts": 2} | cost | more


def test_the_summary_averages_seeds_before_placements():
    rows = [row("x", 0, 0.4), row("x", 1, 0.6), row("y", 0, 1.0), row("y", 1, 1.0)]
    (line,) = sb.summary(rows)
    assert line["auroc"] == pytest.approx(0.75) and line["rows"] == 4
    assert line["auroc_error"] == pytest.approx(np.std([0.5, 1.0], ddof=1) / 2**0.5)
    assert line["auroc_spread"] == pytest.approx((np.std([0.4, 0.6], ddof=1) + 0) / 2)
    assert line["forwards"] == 1 and line["seconds"] == 0.5  # of one prompt
    (one,) = sb.summary([row("x", 0, 0.4)])
    assert math.isnan(one["auroc_error"]) and math.isnan(one["auroc_spread"])


def test_every_localizer_returns_one_number_per_site(lab):
    task = installed_task("sycophancy-a", n=6)
    sites = {
        "heads": candidates("refusal-a", lab)[:6],
        "ffns": candidates("bias-a", lab),
        "neurons": candidates("german-a", lab)[:8],
        "states": candidates("sycophancy-direction", lab),
    }
    for name, one in registry.LOCALIZERS.items():
        for objects in one.objects:
            found = one.run(lab, task, sites[objects])
            assert [str(site) for site in found.sites] == sites[objects], name
            assert found.forwards > 0 and found.seconds > 0, name
    with pytest.raises(ValueError, match="objects='layers' is unknown"):
        registry.suited("layers")
    assert "zero ablation" in registry.suited("neurons") and "zero ablation" not in registry.suited("neurons", False)
    assert "attention mass" not in registry.suited("neurons")


# --- the command ------------------------------------------------------------------------------------------------------
@pytest.fixture
def quick(monkeypatch, lab):
    """The command on one installed behaviour and one task, so that a test takes a second."""
    monkeypatch.setattr(sb, "installed", lambda: ["refusal-b"])
    monkeypatch.setattr(sb, "T1_PROMPTS", 4)
    monkeypatch.setattr(benchmark, "QUICK", {"seeds": (0,), "tasks": ("facts",), "objects": ("heads",)})
    here = [row("refusal-b", 0, 0.9, localizer="stored one"), row("bias-a", 2, 0.1)]
    monkeypatch.setattr(sb, "stored", lambda edges: [] if edges else here)


def write(tmp_path, text):
    file = tmp_path / "mine.py"
    file.write_text(text)
    return file


def test_your_function_stands_beside_the_stored_rows(quick, tmp_path, capsys):
    file = write(tmp_path, "def last_first(model, task, sites):\n    return range(len(sites))\n")
    assert cli.main(["benchmark", "localizers", "--fn", f"{file}:last_first", "--quick", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = {line["localizer"] for line in found["summary"]}
    assert names == {"last_first", "stored one"}  # the row of seed 2 is not in --quick
    assert {r["tier"] for r in found["rows"] if r["localizer"] == "last_first"} == {"T1", "T2"}
    assert cli.main(["benchmark", "localizers", "--quick"]) == 0
    out = capsys.readouterr().out
    assert "stored one" in out and "0.900" in out and "auroc" in out


def test_edges_have_a_table_of_their_own(quick, monkeypatch, tmp_path, capsys):
    stored = row("refusal-b", 0, 0.9, localizer="EAP", tier="T1 edges", objects="edges", auroc_base=0.7, recall_base=0)
    monkeypatch.setattr(sb, "stored", lambda edges: [stored] if edges else [])
    file = write(tmp_path, "def into_logits(model, task, sites):\n    return [float('logits' in s) for s in sites]\n")
    assert cli.main(["benchmark", "localizers", "--fn", f"{file}:into_logits", "--quick", "--edges"]) == 0
    out = capsys.readouterr().out
    assert "into_logits" in out and "EAP" in out and "recall_base" in out and "T2" not in out


def test_the_rows_of_edges_are_stored_apart():
    assert {r["tier"] for r in sb.stored()} == {"T1", "T2"} and {r["tier"] for r in sb.stored(True)} == {"T1 edges"}
    have = {(r["tier"], r["localizer"], r["objects"], r["task"], r["seed"]) for r in sb.stored() + sb.stored(True)}
    assert have == set(sb.wanted())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("mine.py", "is not FILE.py:NAME"),
        ("{folder}/none.py:f", "there is no file"),
        ("{file}:gone", "'gone' is not there .* functions there: short, nans, fails"),
        ("{file}:number", "'number' is not callable"),
        ("{file}:short", r"short returned an array of shape \(1,\) for 24 sites"),
        ("{file}:nans", "nans returned 24 numbers that are NaN"),
        ("{broken}:f", "cannot be imported: SyntaxError"),
        ("{text}:f", "is no Python file"),
    ],
)
def test_what_cannot_be_used_is_said_clearly(quick, tmp_path, capsys, where, message):
    file = write(
        tmp_path,
        "def short(m, t, s): return [1.0]\n"
        "def nans(m, t, s): return [float('nan')] * len(s)\n"
        "def fails(m, t, s): raise KeyError('mine')\n"
        "number = 3\n",
    )
    broken, text = tmp_path / "broken.py", tmp_path / "mine.txt"
    broken.write_text("def f(:\n")
    text.write_text("x")
    where = where.format(folder=tmp_path, file=file, broken=broken, text=text)
    assert cli.main(["benchmark", "localizers", "--fn", where, "--quick"]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_an_unknown_kind_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["benchmark", "probes"])
