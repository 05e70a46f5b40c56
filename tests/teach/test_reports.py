"""Figures and tables of a steering report: what they say is what the report holds."""

import math

import numpy as np
import pytest

from mi_course.evaluate import Effect, NullBand, SideEffects
from mi_course.evaluate.dose_response import DoseResponse
from mi_course.evaluate.fluency import Fluency
from mi_course.evaluate.steering import SteeringReport
from mi_course.teach.reports import dose_figure, report_table, side_effect_bars


def side(*rows):
    rows = np.array(rows, dtype=float)
    loss = np.abs(rows) / 2
    accuracy = rows.copy()
    accuracy[:, 1] = math.nan
    return SideEffects([f"s{i}" for i in range(len(rows))], ["a", "b"], loss, loss, accuracy)


@pytest.fixture
def report():
    dose = DoseResponse(
        np.array([0.0, 1.0, 2.0]), np.array([0.0, 1.0, 1.0]), {"a": np.array([1.0, 0.9, 0.5])},
        {"b": np.array([0.5, 0.6, 3.5])},
    )  # fmt: skip
    return SteeringReport(
        "mine", "refusal", 1.0, 0.0, 1.0, Effect(2.0, 0.1, 9), dose, side([-0.5, 0.2]), {"paraphrase": (0.0, 0.9)},
        NullBand(0.0, 0.05, 5), NullBand(0.0, 0.1, 5), side([0.01, 0.0], [-0.01, 0.0], [0.0, 0.0]),
        Fluency(0.1, 0.0, 0.0), Fluency(1.0, 0.7, 0.1), 1.1,
    )  # fmt: skip


def test_the_table_marks_what_leaves_the_band(report):
    table = report_table(report)
    cells = {row: dict(zip(table.columns, zip(c, s))) for row, c, s in zip(table.rows, table.cells, table.strong)}
    assert cells["target accuracy"]["after"] == ("1.000", True)
    assert cells["moved: a"]["before"] == ("accuracy -0.500", True)
    assert cells["moved: b"]["before"] == ("", False) and cells["moved: b"]["after"][0] == "loss +0.100"
    assert f"score {report.score:.2f}" in table.caption


def test_figures_draw_the_report(report):
    axes = dose_figure(report.dose, title="mine", bar=0.05).axes[0]
    assert axes.get_title() == "mine: breaks at 0.50"
    assert [line.get_label() for line in axes.lines[:2]] == ["target", "worst accuracy loss"]
    assert np.allclose(axes.lines[1].get_ydata(), [0, 0.1, 0.5]) and max(axes.lines[2].get_ydata()) == 1
    bars = side_effect_bars(report.side, null=report.null_side).axes[0]
    assert [t.get_text() for t in bars.get_yticklabels()] == ["a", "b (loss)"]
    assert [b.get_width() for b in bars.patches if b.get_hatch()] == [-0.5, 0.1]
