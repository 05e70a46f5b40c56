"""Things to play with. Each has a static form that is always shown; the live form is an extra that no build stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from .cards import Rich, display
from .plots import Table, bars, heatmap, picture
from .settings import interactive

__all__ = ["Views", "circuitsvis", "layer_strength_map", "steering_slider"]


def steering_slider(
    model: Any,
    prompts: Sequence[str],
    edit: Callable[[float], AbstractContextManager],
    *,
    strengths: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    neutral: float = 0.0,
    max_new_tokens: int = 8,
    caption: str = "",
    measures: Callable[[], Mapping[str, float]] | None = None,
) -> dict[float, list[str]]:
    """What the model writes at each strength of an intervention, and what else it moves.

    A grid of texts always; with `measures` a map of numbers, one row each; and below, where someone can slide, a slider
    with the text at that strength beside the bars of what moved.
    edit: strength -> a fresh context manager, such as `lambda a: mi.intervene(model, mi.add("x3", direction, a))`.
    neutral: the strength that does nothing; its text is the baseline, and words that differ from it are set in bold.
    measures: called once inside each context, domain -> number (accuracy of other tasks, say); what is drawn is the
    change since the neutral strength.
    All strengths are computed once, so the slider answers at once and runs no code of yours later.
    Returns strength -> the texts that `model.generate` gave, in the order of the prompts.
    """
    strengths = sorted({float(s) for s in strengths} | {float(neutral)})
    if isinstance(prompts, str) or not prompts:
        raise ValueError("prompts must be a non-empty list of strings")
    texts: dict[float, list[str]] = {}
    measured: dict[float, dict[str, float]] = {}
    for strength in strengths:
        with edit(strength):
            texts[strength] = list(model.generate(list(prompts), max_new_tokens=max_new_tokens))
            measured[strength] = {} if measures is None else dict(measures())
    caption = (
        caption or f"What the model writes at each strength; bold: differs from strength {neutral:g} (nothing done)."
    )
    display(_grid(prompts, texts, float(neutral), caption))
    changes = {s: {name: v - measured[neutral][name] for name, v in now.items()} for s, now in measured.items()}
    if measures is not None:
        display(_changes(changes))
    if interactive():
        _slide(prompts, texts, float(neutral), changes)
    return texts


def _grid(prompts: Sequence[str], texts: dict[float, list[str]], neutral: float, caption: str) -> Table:
    cells = [[_continuation(prompt, texts[s][i]) for s in texts] for i, prompt in enumerate(prompts)]
    strong = [[texts[s][i] != texts[neutral][i] for s in texts] for i in range(len(prompts))]
    return Table(cells, [str(prompt) for prompt in prompts], [f"strength {s:g}" for s in texts], caption, strong=strong)


def _continuation(prompt: str, text: str) -> str:
    """The text without the prompt, whether `generate` repeats the prompt or not."""
    return text.removeprefix(prompt).strip() or "(nothing)"


def _changes(changes: dict[float, dict[str, float]]) -> Rich:
    """Measures x strengths as a map of changes."""
    strengths = list(changes)
    names = list(changes[strengths[0]])
    values = [[changes[s][name] for s in strengths] for name in names]
    figure = heatmap(values, names, [f"{s:g}" for s in strengths], xlabel="strength", unit="change")
    largest = max(((abs(v), n, s) for n, row in zip(names, values) for s, v in zip(strengths, row)), default=None)
    alt = f"Change of {', '.join(names)} at strengths {', '.join(f'{s:g}' for s in strengths)}."
    if largest:
        alt += f" The largest, {largest[0]:.2f} in size, is in {largest[1]} at strength {largest[2]:g}."
    return picture(figure, alt, "What else moved, beside what the model writes. 0: as without the steer.")


def _slide(
    prompts: Sequence[str], texts: dict[float, list[str]], neutral: float, changes: dict[float, dict[str, float]]
) -> None:
    def at(strength: float) -> str:
        chosen = dict(sorted({strength: texts[strength], neutral: texts[neutral]}.items()))
        parts = [_grid(prompts, chosen, neutral, "At the chosen strength, beside the baseline.").html()]
        if changes[strength]:
            figure = bars(changes[strength], xlabel="change", title=f"What else moved at strength {strength:g}")
            parts.append(picture(figure, f"Bars of the change in {len(changes[strength])} measures.").html())
        return f'<div style="display:flex;flex-wrap:wrap;gap:1em">{"".join(parts)}</div>'

    _selectors({"strength": [(f"{s:g}", s) for s in texts]}, {"strength": neutral}, at)


def layer_strength_map(
    model: Any,
    edit: Callable[[int, float], AbstractContextManager],
    layers: Sequence[int],
    strengths: Sequence[float],
    measure: Callable[[], float],
    *,
    prompts: Sequence[str] = (),
    max_new_tokens: int = 8,
    unit: str = "",
    title: str = "Layer and strength",
    alt: str = "",
) -> Any:
    """One number for every layer and strength of a steer, as a map; with `prompts`, and where someone can choose, the
    text at any cell of it.

    edit: (layer, strength) -> a fresh context manager. measure: called once inside each.
    Returns an array [len(layers), len(strengths)].
    """
    layers, strengths = list(layers), [float(s) for s in strengths]
    if not layers or not strengths:
        raise ValueError("layers and strengths: give at least one of each")
    values, texts = np.zeros((len(layers), len(strengths))), {}
    for i, layer in enumerate(layers):
        for j, strength in enumerate(strengths):
            with edit(layer, strength):
                values[i, j] = float(measure())
                if prompts and interactive():
                    texts[layer, strength] = list(model.generate(list(prompts), max_new_tokens=max_new_tokens))
    figure = heatmap(
        values, layers, [f"{s:g}" for s in strengths], xlabel="strength", ylabel="layer", unit=unit, title=title
    )
    i, j = np.unravel_index(values.argmax(), values.shape)
    found = f"The largest value, {values[i, j]:.2f}, is at layer {layers[i]}, strength {strengths[j]:g}."
    display(picture(figure, f"{alt or title + '.'} {found}", found))
    if texts:

        def at(layer: int, strength: float) -> str:
            cells = [[_continuation(p, t)] for p, t in zip(prompts, texts[layer, strength])]
            value = values[layers.index(layer), strengths.index(strength)]
            caption = f"Layer {layer}, strength {strength:g}: {value:.3g} {unit}".rstrip()
            return Table(cells, [str(p) for p in prompts], ["the model writes"], caption).html()

        choices = {"layer": [(str(x), x) for x in layers], "strength": [(f"{s:g}", s) for s in strengths]}
        _selectors(choices, {"layer": layers[i], "strength": strengths[j]}, at)
    return values


def _selectors(choices: Mapping[str, Sequence[tuple]], start: Mapping[str, Any], html: Callable[..., str]) -> None:
    """Sliders, and below them `html(**values)`; nothing where ipywidgets is not installed."""
    try:
        import ipywidgets
        from IPython.display import display as show_widget
    except ImportError:
        return
    sliders = {
        name: ipywidgets.SelectionSlider(options=options, value=start[name], description=name, continuous_update=True)
        for name, options in choices.items()
    }
    output = ipywidgets.HTML()

    def update(change: Any = None) -> None:
        output.value = html(**{name: slider.value for name, slider in sliders.items()})

    for slider in sliders.values():
        slider.observe(update, names="value")
    update()
    show_widget(ipywidgets.VBox([*sliders.values(), output]))


class Views(Rich):
    """Several figures in a row."""

    def __init__(self, pictures: Sequence[Rich]) -> None:
        self.pictures = list(pictures)

    def html(self) -> str:
        return f'<div style="display:flex;flex-wrap:wrap;gap:1em">{"".join(p.html() for p in self.pictures)}</div>'

    def text(self) -> str:
        return "\n".join(p.text() for p in self.pictures)


def circuitsvis(
    tokens: Sequence[str], pattern: Any, *, alt: str, heads: Sequence[str] | None = None, live: bool = False
) -> None:
    """Attention patterns [H, T, T] of one prompt: static grids, or with `live=True` the view of the CircuitsVis
    package.

    tokens: T strings. alt: what the patterns show, in words. The live view needs `pip install circuitsvis` and a
    browser; it brings 1.3 MB of script into the notebook for each call (from the installed package: nothing is
    fetched), so clear its output before you save. Builds always show the static form.
    """
    if getattr(pattern, "ndim", 0) != 3 or tuple(pattern.shape[1:]) != (len(tokens), len(tokens)):
        raise ValueError(
            f"pattern has shape {list(getattr(pattern, 'shape', []))}; give [heads, {len(tokens)}, {len(tokens)}]"
        )
    heads = [f"head {h}" for h in range(len(pattern))] if heads is None else list(heads)
    if len(heads) != len(pattern):
        raise ValueError(f"heads has {len(heads)} names for {len(pattern)} patterns: give one for each")
    if live and interactive():
        _live(tokens, pattern, heads)
        return
    pictures = []
    for name, grid in zip(heads, pattern):
        figure = heatmap(grid, tokens, tokens, xlabel="attends to", ylabel="from", title=name)
        figure.axes[0].invert_yaxis()
        pictures.append(picture(figure, f"Attention pattern of {name}. {alt}"))
    display(Views(pictures))


def _live(tokens: Sequence[str], pattern: Any, heads: Sequence[str]) -> None:
    try:
        from circuitsvis.attention import attention_heads
    except ImportError as error:
        raise ImportError(
            "live=True needs the package circuitsvis: pip install circuitsvis, or leave live out"
        ) from error
    from IPython.display import HTML
    from IPython.display import display as show_view

    view = attention_heads(tokens=list(tokens), attention=pattern, attention_head_names=list(heads))
    show_view(HTML(view.local_src))  # local_src: its default first tries to reach the network
