import numpy as np
import pytest
import torch

from mi_course.objects.scores import Scores

HEADS = ["L0H0", "L0H1", "L1H0", "L1H1"]


def make(values=(0.1, -3.0, 2.0, 0.5), sites=HEADS, **more):
    return Scores(sites, torch.tensor(values), **(dict(method="m", sign="ablation") | more))


def test_top_ranks_by_the_end_asked_for():
    assert make().top(2) == ["L0H1", "L1H0"]
    assert make().top(2, by="positive") == ["L1H0", "L1H1"]
    assert make().top(1, by="negative") == ["L0H1"]
    assert make()["L1H0"] == 2.0


def test_against_a_known_answer():
    assert make().against(["L0H1", "L1H0"]) == {"auroc": 1.0, "recall_at_k": 1.0, "k": 2, "chance_recall": 0.5}
    assert make().against(["L0H0"])["auroc"] == 0.0
    mixed = make().against(["L0H1", "L0H0"])
    assert mixed["auroc"] == 0.5 and mixed["recall_at_k"] == 0.5


def test_a_constant_score_is_worth_chance_wherever_the_truth_stands():
    for truth in (["L0H0"], ["L1H1"], ["L0H0", "L1H1"]):
        result = make((1.0, 1.0, 1.0, 1.0)).against(truth)
        assert result["auroc"] == 0.5 and result["recall_at_k"] == result["chance_recall"]


def test_auroc_equals_the_counting_definition_of_sklearn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    values = rng.integers(-3, 4, 40).astype(float)
    truth = rng.random(40) < 0.3
    sites = [f"L0N{i}" for i in range(40)]
    scores = Scores(sites, values, "m", "ablation")
    expected = roc_auc_score(truth, np.abs(values))
    assert scores.against([s for s, t in zip(sites, truth) if t])["auroc"] == pytest.approx(expected)


def test_frame_and_plots():
    assert make().to_frame()["site"].tolist() == ["L0H1", "L1H0", "L1H1", "L0H0"]
    import matplotlib

    matplotlib.use("Agg")
    grid = make().plot()
    assert grid.images[0].get_array()[0, 1] == -3.0
    line = make(sites=["x1", "x0", "x3", "x2"]).plot()
    assert line.lines[0].get_ydata().tolist() == pytest.approx([-3.0, 0.1, 0.5, 2.0])
    bars = make(sites=["L0N1", "L0N2", "L1N1", "L0H0"]).plot(top=2)
    assert [p.get_width() for p in bars.patches] == [2.0, -3.0]
    matplotlib.pyplot.close("all")


@pytest.mark.parametrize("act, says", [
    (lambda: make((1.0, 2.0)), "one number per site"),
    (lambda: make(sites=["L0H0", "L0H0", "L1H0", "L1H1"]), "L0H0 twice"),
    (lambda: make((1.0, float("nan"), 0.0, 0.0)), "not finite at L0H1"),
    (lambda: make().top(5), "k=5 is outside 1 ... 4"),
    (lambda: make().top(1, by="size"), "by='size'"),
    (lambda: make().against(["L7H0"]), "L7H0, which was not scored"),
    (lambda: make().against(HEADS), "at least one true and one false"),
    (lambda: make().against([]), "at least one true and one false"),
])
def test_bad_input_is_named(act, says):
    with pytest.raises(ValueError, match=says):
        act()


def test_an_unscored_site_is_a_key_error():
    with pytest.raises(KeyError, match="x3 was not scored"):
        make()["x3"]


@pytest.mark.parametrize("by", ["abs", "positive", "negative"])
def test_spearman_is_scipys_and_takes_sites_in_any_order(by):
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    a, b = rng.integers(-4, 5, 40), rng.integers(-4, 5, 40)  # many ties
    sites = [f"L0N{i}" for i in range(40)]
    order = rng.permutation(40)
    mine, other = make(a.astype(float), sites), make(b[order].astype(float), [sites[i] for i in order])
    end = {"abs": np.abs, "positive": np.positive, "negative": np.negative}[by]
    assert mine.spearman(other, by) == pytest.approx(spearmanr(end(a), end(b)).statistic)
    assert mine.spearman(mine, by) == pytest.approx(1)


def test_spearman_asks_for_the_same_sites_and_has_no_value_for_a_constant():
    with pytest.raises(ValueError, match="score the same sites"):
        make().spearman(make((1.0, 2.0), HEADS[:2]))
    assert np.isnan(make((1.0,) * 4).spearman(make()))
