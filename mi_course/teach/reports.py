"""A steering report as a learner sees it: its numbers, the curves over strength, and the bars of what else moved."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .cards import display
from .plots import Table, bars, curves, show

__all__ = ["dose_figure", "report_table", "show_report", "side_effect_bars"]


def dose_figure(dose: Any, *, title: str = "", bar: float | None = None) -> Any:
    """Target, worst fall of accuracy and worst rise of loss over the strength: a figure from a `DoseResponse`.

    bar: accuracy drop and loss rise that are still accepted; drawn as the shaded band below it, and the breakdown
    point that follows is written into the title.
    """
    lines = {"target": dose.target}
    if dose.accuracy:
        lines["worst accuracy loss"] = dose.accuracy_drop
    if dose.loss:
        lines["worst rise of the loss"] = np.minimum(dose.loss_rise, 1.0)
    if bar is not None:
        point = dose.breakdown(bar, bar)
        where = f"breaks at {point:.2f}" if math.isfinite(point) else "does not break within the strengths tried"
        title = f"{title}: {where}" if title else where
    return curves(
        dose.strengths, lines, null=None if bar is None else (0.0, bar), neutral=0.0, xlabel="strength", title=title,
        band_label="accepted",
    )  # fmt: skip


def side_effect_bars(side: Any, steer: int = 0, *, null: Any = None, title: str = "") -> Any:
    """What one steer moved in every domain: change in accuracy, or in loss where a domain has no task; a figure.

    side: `SideEffects`; steer: its row. null: `SideEffects` of random steers; the widest band of any domain is drawn,
    so that a starred bar lies outside all of them.
    """
    by_loss = ~np.isfinite(side.accuracy_change[steer])
    values = np.where(by_loss, side.loss_change[steer], side.accuracy_change[steer])
    labels = [f"{domain} (loss)" if loss else domain for domain, loss in zip(side.domains, by_loss)]
    band = None
    if null is not None:
        draws = np.where(by_loss, null.loss_change, null.accuracy_change)
        mean, sd = draws.mean(0), draws.std(0, ddof=1)
        band = (float((mean - 2 * sd).min()), float((mean + 2 * sd).max()))
    return bars(values, labels, null=band, xlabel="change in accuracy (or in loss, nats)", title=title)


def report_table(report: Any) -> Table:
    """A `SteeringReport` as a table: target and fluency first, then one row per domain; bold: outside the null band."""
    names, cells, strong = [], [], []
    for measure, before, after, low, high in report.rows():
        if "change, " in measure or measure.startswith("kl, "):
            continue
        names.append(measure)
        band = f"null band {low:.2f} to {high:.2f}" if math.isfinite(low) else ""
        cells.append([f"{before:.3f}", f"{after:.3f}", band])
        strong.append([False, math.isfinite(low) and not low <= after <= high, False])
    for domain, values, outside in report.by_domain():
        names.append(f"moved: {domain}")
        words = (f"accuracy {values[0]:+.3f}", f"loss {values[1]:+.3f}", f"KL {values[2]:.3f}")
        cells.append([word if math.isfinite(value) else "" for word, value in zip(words, values)])
        strong.append(list(outside))
    caption = f"{report.name} at strength {report.strength:g} on {report.task}: score {report.score:.2f}."
    if report.null_side is not None:
        caption += " Bold: outside the null band of matched random steers."
    return Table(cells, names, ["before", "after", ""], caption, strong=strong)


def show_report(report: Any, bar: float = 0.05) -> None:
    """Show a `SteeringReport`: table, dose-response with its breakdown point, and side-effect bars."""
    display(report_table(report))
    show(
        dose_figure(report.dose, title=report.name, bar=bar),
        alt=f"Target and side effects of {report.name} over strengths {report.dose.strengths[0]:g} to "
        f"{report.dose.strengths[-1]:g}. Target {report.before:.2f} at 0, {report.after:.2f} at {report.strength:g}.",
        reading="The strength is right where the first line is high and the others still lie in the grey band.",
    )
    show(
        side_effect_bars(report.side, null=report.null_side, title=f"What else {report.name} moved"),
        alt=f"Bars of the change in every domain under {report.name} at strength {report.strength:g}. The worst domain "
        f"is {report.worst_domain}.",
        reading="0 is what should be there. Starred bars lie outside of what matched random steers do."
        if report.null_side is not None
        else "0 is what should be there.",
    )
