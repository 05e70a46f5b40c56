"""Things to play with. Each has a static form that is always shown; the live form is an extra that no build stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from .cards import Rich, display
from .plots import Table, heatmap, picture
from .settings import interactive

__all__ = ["Views", "circuitsvis", "steering_slider"]


def steering_slider(
    model: Any,
    prompts: Sequence[str],
    edit: Callable[[float], AbstractContextManager],
    *,
    strengths: Sequence[float] = (0.0, 0.5, 1.0, 2.0),
    neutral: float = 0.0,
    max_new_tokens: int = 8,
    caption: str = "",
) -> dict[float, list[str]]:
    """What the model writes at each strength of an intervention: a grid, and a slider below it where someone can slide.

    edit: strength -> a fresh context manager, such as `lambda a: mi.intervene(model, mi.add("x3", direction, a))`.
    neutral: the strength that does nothing; its text is the baseline, and words that differ from it are set in bold.
    All strengths are computed once, so the slider answers at once and runs no code of yours later.
    Returns strength -> the texts that `model.generate` gave, in the order of the prompts.
    """
    strengths = sorted({float(s) for s in strengths} | {float(neutral)})
    if isinstance(prompts, str) or not prompts:
        raise ValueError("prompts must be a non-empty list of strings")
    texts: dict[float, list[str]] = {}
    for strength in strengths:
        with edit(strength):
            texts[strength] = list(model.generate(list(prompts), max_new_tokens=max_new_tokens))
    caption = (
        caption or f"What the model writes at each strength; bold: differs from strength {neutral:g} (nothing done)."
    )
    display(_grid(prompts, texts, float(neutral), caption))
    if interactive():
        _slide(prompts, texts, float(neutral))
    return texts


def _grid(prompts: Sequence[str], texts: dict[float, list[str]], neutral: float, caption: str) -> Table:
    cells = [[_continuation(prompt, texts[s][i]) for s in texts] for i, prompt in enumerate(prompts)]
    strong = [[texts[s][i] != texts[neutral][i] for s in texts] for i in range(len(prompts))]
    return Table(cells, [str(prompt) for prompt in prompts], [f"strength {s:g}" for s in texts], caption, strong=strong)


def _continuation(prompt: str, text: str) -> str:
    """The text without the prompt, whether `generate` repeats the prompt or not."""
    return text.removeprefix(prompt).strip() or "(nothing)"


def _slide(prompts: Sequence[str], texts: dict[float, list[str]], neutral: float) -> None:
    try:
        import ipywidgets
        from IPython.display import display as show_widget
    except ImportError:
        return
    slider = ipywidgets.SelectionSlider(
        options=[(f"{s:g}", s) for s in texts], value=neutral, description="strength", continuous_update=True
    )
    output = ipywidgets.HTML()

    def update(change: Any = None) -> None:
        chosen = {slider.value: texts[slider.value], neutral: texts[neutral]}
        output.value = _grid(
            prompts, dict(sorted(chosen.items())), neutral, "At the chosen strength, beside the baseline."
        ).html()

    slider.observe(update, names="value")
    update()
    show_widget(ipywidgets.VBox([slider, output]))


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
