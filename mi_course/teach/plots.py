"""Figures of the course: static, small, told in words as well, and readable without colour vision.

Each drawing function returns a matplotlib figure; `show` puts it into the notebook::

    show(heatmap(effects, xlabel="head", ylabel="layer"), alt="Effect of each head: L3H1 stands out.", reading="...")

`show` writes an `<img>` with the alt text (JupyterLab drops the alt text of plain image outputs) and refuses a figure
without one. No colour carries a meaning alone: numbers stand in the cells, lines differ in dash and marker, what lies
outside the null band is hatched and marked with a star.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from .cards import Rich, display, with_code

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Picture", "Table", "bars", "curves", "heatmap", "lens_table", "show", "side_effects"]

# Okabe-Ito, without the yellow that is too faint on white; order: blue, vermilion, green, purple, sky, orange, black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SIGNED, UNSIGNED = "PuOr_r", "cividis"
LARGEST_PNG = 60_000  # bytes
MOST_NUMBERS = 144  # cells of a heatmap that still get their number written in


class Picture(Rich):
    """A figure as PNG with its alt text and a one-line reading."""

    def __init__(self, png: bytes, alt: str, reading: str = "") -> None:
        self.png, self.alt, self.reading = png, alt, reading

    def html(self) -> str:
        data = base64.b64encode(self.png).decode("ascii")
        caption = f"<figcaption>{with_code(self.reading)}</figcaption>" if self.reading else ""
        image = (
            f'<img alt="{escape(self.alt)}" src="data:image/png;base64,{data}" style="max-width:100%;background:#fff">'
        )
        return f'<figure style="margin:.5em 0">{image}{caption}</figure>'

    def text(self) -> str:
        return f"[Figure: {self.alt}]" + (f"\n{self.reading}" if self.reading else "")


class Table(Rich):
    """Cells of text as an HTML table with a caption; `shade` in 0 ... 1 tints a cell, `strong` sets it in bold."""

    def __init__(
        self,
        cells: Sequence[Sequence[str]],
        rows: Sequence[str],
        columns: Sequence[str],
        caption: str,
        shade: Sequence[Sequence[float]] | None = None,
        strong: Sequence[Sequence[bool]] | None = None,
    ) -> None:
        if len(cells) != len(rows) or any(len(row) != len(columns) for row in cells):
            raise ValueError(f"cells must be {len(rows)} rows of {len(columns)} columns, as their labels are")
        if not caption.strip():
            raise ValueError("caption is empty: say in a sentence what the table shows")
        self.cells, self.rows, self.columns, self.caption = cells, list(rows), list(columns), caption
        self.shade, self.strong = shade, strong

    def html(self) -> str:
        head = "".join(f'<th scope="col" style="text-align:left">{escape(c)}</th>' for c in self.columns)
        body = "".join(
            f'<tr><th scope="row" style="text-align:left">{escape(name)}</th>'
            + "".join(self._cell(i, j) for j in range(len(self.columns)))
            + "</tr>"
            for i, name in enumerate(self.rows)
        )
        return (
            '<div style="overflow-x:auto"><table style="border-collapse:collapse">'
            f'<caption style="text-align:left">{with_code(self.caption)}</caption>'
            f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table></div>"
        )

    def _cell(self, i: int, j: int) -> str:
        style = "text-align:left;padding:.2em .6em"
        if len(self.cells[i][j]) <= 16:  # "0.86 ± 0.06" stays on one line
            style += ";white-space:nowrap"
        if self.shade is not None:
            # a tint of blue under the theme's own text colour: readable on light and on dark ground
            style += f";background:rgba(0,114,178,{0.45 * min(1.0, max(0.0, float(self.shade[i][j]))):.2f})"
        text = escape(self.cells[i][j]).replace("\n", "<br>")
        if self.strong is not None and self.strong[i][j]:
            text = f"<b>{text}</b>"
        return f'<td style="{style}">{text}</td>'

    def text(self) -> str:
        grid = [["", *self.columns]]
        for i, name in enumerate(self.rows):
            marked = [
                f"*{cell}*" if self.strong is not None and self.strong[i][j] else cell
                for j, cell in enumerate(self.cells[i])
            ]
            grid.append([name, *(cell.replace("\n", " ") for cell in marked)])
        widths = [max(len(row[j]) for row in grid) for j in range(len(grid[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in grid]
        return "\n".join([self.caption, *lines])


def show(figure: Any, alt: str = "", reading: str = "") -> None:
    """Show a matplotlib figure (or axes) with its alt text, and a line under it that says how to read it.

    alt: what one would tell someone who cannot see the figure: the kind of plot and what stands out. Raises
    ValueError without it.
    """
    display(picture(figure, alt, reading))


def picture(figure: Any, alt: str, reading: str = "") -> Picture:
    """The figure as a `Picture`; `show` displays it at once."""
    if not alt.strip():
        raise ValueError("alt is missing: say in a sentence or two what the figure shows to someone who cannot see it")
    figure = getattr(figure, "figure", None) or figure  # axes know their figure
    if not hasattr(figure, "savefig"):
        raise TypeError(f"figure must be a matplotlib figure or axes, not {type(figure).__name__}")
    png = _png(figure)
    _close(figure)
    return Picture(png, alt.strip(), reading.strip())


def _png(figure: Figure) -> bytes:
    """PNG of at most `LARGEST_PNG` bytes where fewer colours and then a lower resolution can reach that."""
    from PIL import Image

    for dpi in (100, 80, 60, 45):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dpi, facecolor="white")
        if buffer.tell() > LARGEST_PNG:
            full, buffer = Image.open(buffer).convert("RGB"), io.BytesIO()
            full.quantize(256, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST_PNG:
            break
    return buffer.getvalue()


def _close(figure: Figure) -> None:
    """Forget figures made with pyplot, so that the notebook does not show them a second time without alt text."""
    import sys

    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close(figure)


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    """A figure outside pyplot: it is shown only by `show`, never by itself."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure, axes


def _array(values: Any, name: str, dimensions: int) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().float().cpu()
    array = np.asarray(values, dtype=float)
    if array.ndim != dimensions or array.size == 0:
        raise ValueError(
            f"{name} has shape {list(array.shape)}; give {dimensions} dimension(s) and at least one number"
        )
    return array


def _labels(labels: Sequence | None, count: int, name: str) -> list[str]:
    if labels is None:
        return [str(i) for i in range(count)]
    if len(labels) != count:
        raise ValueError(f"{name} has {len(labels)} labels for {count} values: give one for each")
    return [str(label) for label in labels]


def heatmap(
    values: Any,
    rows: Sequence | None = None,
    columns: Sequence | None = None,
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    unit: str = "",
    marked: Any = None,
) -> Figure:
    """A grid of numbers [R, C], layer x head say; row 0 is at the bottom, so that depth grows upwards.

    rows, columns: labels (tokens, say). unit: label of the colour bar. marked: bool [R, C], cells that get a star and
    a frame. Values of both signs get a diverging scale around 0, others a sequential one. Small grids carry their
    numbers.
    """
    values = _array(values, "values", 2)
    n_rows, n_columns = values.shape
    rows, columns = _labels(rows, n_rows, "rows"), _labels(columns, n_columns, "columns")
    marked = np.zeros(values.shape, bool) if marked is None else np.asarray(marked, dtype=bool)
    if marked.shape != values.shape:
        raise ValueError(
            f"marked has shape {list(marked.shape)}; give one truth value for each of {list(values.shape)}"
        )
    finite = values[np.isfinite(values)]
    signed = finite.size > 0 and finite.min() < 0 < finite.max()
    limit = np.abs(finite).max() if finite.size else 1.0
    bounds = {"vmin": -limit, "vmax": limit, "cmap": SIGNED} if signed else {"cmap": UNSIGNED}
    longest = max(map(len, columns))
    figure, axes = _axes(min(9.0, 1.8 + 0.55 * n_columns), min(6.5, 1.3 + 0.34 * n_rows + 0.06 * longest))
    image = axes.imshow(values, aspect="auto", origin="lower", **bounds)
    turned = longest > 4
    every_x, every_y = -(-n_columns // 25), -(-n_rows // 30)  # label every n-th line of a large grid
    axes.set_xticks(range(0, n_columns, every_x), columns[::every_x], rotation=60 if turned else 0)
    if turned:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(0, n_rows, every_y), rows[::every_y])
    for side in axes.spines.values():
        side.set_visible(False)
    if values.size <= MOST_NUMBERS:
        _write_numbers(axes, image, values, marked)
    for row, column in np.argwhere(marked):
        _frame(axes, row, column)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.colorbar(image, ax=axes, label=unit, fraction=0.05, pad=0.02)
    return figure


def _write_numbers(axes: Any, image: Any, values: np.ndarray, marked: np.ndarray) -> None:
    digits = 2 if np.nanmax(np.abs(values)) < 10 else 1 if np.nanmax(np.abs(values)) < 100 else 0
    for (row, column), value in np.ndenumerate(values):
        if not np.isfinite(value):
            continue
        red, green, blue, _ = image.cmap(image.norm(value))
        ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "white"
        star = "*" if marked[row, column] else ""
        number = f"{round(value, digits) + 0.0:.{digits}f}"  # + 0.0 turns -0.0 into 0.0
        axes.text(column, row, number + star, ha="center", va="center", fontsize=8, color=ink)


def _frame(axes: Any, row: int, column: int) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((column - 0.47, row - 0.47), 0.94, 0.94, fill=False, edgecolor="black", linewidth=1.6))


def bars(
    values: Mapping[str, float] | Any,
    labels: Sequence | None = None,
    *,
    null: Any = None,
    errors: Any = None,
    xlabel: str = "",
    title: str = "",
) -> Figure:
    """Horizontal bars, the first on top, each with its number; with the null band behind them.

    values: name -> number, or numbers with `labels`. null: a `NullBand` (with `low` and `high`), a pair (low, high),
    or the values of the random objects, from which mean +- 2 s.d. is taken. Bars outside it are hatched and starred.
    errors: half-widths.
    """
    if isinstance(values, Mapping):
        values, labels = list(values.values()), list(values)
    values = _array(values, "values", 1)
    labels = _labels(labels, len(values), "labels")
    low, high = (-np.inf, np.inf) if null is None else _band(null)
    figure, axes = _axes(6.2, 1.1 + 0.32 * len(values))
    if null is not None:
        axes.axvspan(low, high, color="#999999", alpha=0.35, lw=0, label="null band (mean ± 2 s.d.)")
    outside = (values < low) | (values > high)
    drawn = axes.barh(range(len(values)), values, color=PALETTE[0], height=0.66, xerr=errors, ecolor="black", capsize=3)
    reach = max(np.abs(values).max(), *(abs(x) for x in (low, high) if np.isfinite(x)), 1e-12)
    ends = values if errors is None else values + np.sign(values) * _array(errors, "errors", 1)
    for bar, value, end, out in zip(drawn, values, ends, outside):
        if null is not None and out:
            bar.set(facecolor=PALETTE[1], edgecolor="white", hatch="///")
        side = 1 if value >= 0 else -1
        text = f"{value:.3g}" + ("*" if null is not None and out else "")
        axes.text(
            end + side * 0.015 * reach,
            bar.get_y() + bar.get_height() / 2,
            text,
            va="center",
            ha="left" if side > 0 else "right",
            fontsize=8,
        )
    axes.axvline(0, color="black", lw=0.8)
    axes.margins(x=0.14)
    if reach == 1e-12:  # nothing but zeros: there is no scale to choose
        axes.set_xlim(-1, 1)
    axes.set_yticks(range(len(values)), labels)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel, title=title)
    if null is not None:
        figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return figure


def _band(null: Any) -> tuple[float, float]:
    if hasattr(null, "low") and hasattr(null, "high"):
        return float(null.low), float(null.high)
    if isinstance(null, tuple) and len(null) == 2:
        return float(null[0]), float(null[1])
    draws = _array(null, "null", 1)
    if len(draws) < 3:
        raise ValueError(f"null has {len(draws)} values: give at least three random draws, or a pair (low, high)")
    return draws.mean() - 2 * draws.std(ddof=1), draws.mean() + 2 * draws.std(ddof=1)


def curves(
    x: Any,
    lines: Mapping[str, Any],
    *,
    null: Any = None,
    bands: Mapping[str, tuple[Any, Any]] | None = None,
    neutral: float | None = None,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    band_label: str = "null band (mean ± 2 s.d.)",
) -> Figure:
    """Lines over x (a dose-response curve, say): name -> values [len(x)], with bands behind them.

    null: values [draws, len(x)] of matched random objects, drawn as their mean +- 2 s.d., or a pair (low, high) of
    numbers or arrays; band_label says what it is. bands: name -> (low, high), arrays [len(x)]. neutral: the strength
    that does nothing, marked by a vertical line.
    """
    x = _array(x, "x", 1)
    figure, axes = _axes(6.2, 3.4)
    if null is not None:
        if isinstance(null, tuple):
            low, high = (np.broadcast_to(_cpu(edge), x.shape) for edge in null)
        else:
            draws = _array(null, "null", 2)
            low, high = (draws.mean(0) + sign * 2 * draws.std(0, ddof=1) for sign in (-1, 1))
        axes.fill_between(x, low, high, color="#999999", alpha=0.35, lw=0, label=band_label)
    for i, (name, values) in enumerate(lines.items()):
        values = _array(values, f"lines[{name!r}]", 1)
        if len(values) != len(x):
            raise ValueError(f"lines[{name!r}] has {len(values)} values for {len(x)} points on the x axis")
        look = {"color": PALETTE[i % len(PALETTE)], "ls": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)]}
        axes.plot(x, values, label=name, ms=4.5, lw=1.6, **look)
        if bands and name in bands:
            low, high = (_cpu(edge) for edge in bands[name])
            axes.fill_between(x, low, high, color=look["color"], alpha=0.18, lw=0)
    if neutral is not None:
        axes.axvline(neutral, color="black", lw=0.8, ls=":")
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    return figure


def _cpu(values: Any) -> np.ndarray:
    return np.asarray(values.detach().float().cpu() if hasattr(values, "detach") else values, dtype=float)


def side_effects(
    values: Any,
    steers: Sequence[str] | None = None,
    domains: Sequence[str] | None = None,
    *,
    null: Any = None,
    unit: str = "change in accuracy",
    title: str = "",
) -> Figure:
    """Side-effect matrix: steers (rows, the first on top) x behaviours (columns); starred: outside the null band.

    null: (low, high), numbers or arrays that broadcast against values [S, D]; or random draws [draws, D], from which
    mean +- 2 s.d. is taken for each behaviour.
    """
    values = _array(values, "values", 2)
    marked = None
    if null is not None:
        if isinstance(null, tuple):
            low, high = (_cpu(edge) for edge in null)
        else:
            draws = _array(null, "null", 2)
            low, high = (draws.mean(0) + sign * 2 * draws.std(0, ddof=1) for sign in (-1, 1))
        marked = (values < low) | (values > high)
    figure = heatmap(values, steers, domains, title=title, unit=unit, marked=marked)
    figure.axes[0].invert_yaxis()
    if marked is not None:
        figure.supxlabel("* and frame: outside the null band", fontsize=8)
    return figure


def lens_table(
    tokens: Sequence[Sequence[str]],
    probabilities: Any,
    positions: Sequence[str],
    *,
    layers: Sequence[str] | None = None,
    target: str | None = None,
    caption: str = "",
) -> Table:
    """Logit-lens table: the most likely token at each layer (rows, the last layer on top) and position (columns).

    tokens: [L][T] strings. probabilities: [L, T] in 0 ... 1, printed and used for the tint. target: this token is set
    in bold.
    """
    probabilities = _array(probabilities, "probabilities", 2)
    layers = _labels(layers, len(tokens), "layers")
    if probabilities.shape != (len(tokens), len(positions)):
        raise ValueError(f"probabilities has shape {list(probabilities.shape)}; give [{len(tokens)}, {len(positions)}]")
    cells = [[f"{token} {p:.2f}" for token, p in zip(row, ps)] for row, ps in zip(tokens, probabilities)]
    strong = [[target is not None and token.strip() == target.strip() for token in row] for row in tokens]
    caption = caption or "Most likely next token and its probability, read at each layer; the last layer is on top."
    up = slice(None, None, -1)
    return Table(cells[up], layers[up], list(positions), caption, probabilities[up], strong[up])
