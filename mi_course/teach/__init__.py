"""What a chapter needs to teach: checks with a diagnosis, hints, quizzes, figures, widgets, papers, progress.

from mi_course.teach import Question, bars, check, cite, curves, heatmap, hint, papers, progress, quiz, show
"""

from .checking import CheckFailed, check, hint
from .explorer import papers
from .journal import progress
from .library import cite
from .plots import bars, curves, heatmap, lens_table, show, side_effects
from .quizzes import Question, quiz
from .reports import dose_figure, report_table, show_report, side_effect_bars
from .widgets import circuitsvis, layer_strength_map, steering_slider

__all__ = [
    "CheckFailed",
    "Question",
    "bars",
    "check",
    "circuitsvis",
    "cite",
    "curves",
    "dose_figure",
    "heatmap",
    "hint",
    "layer_strength_map",
    "lens_table",
    "papers",
    "progress",
    "quiz",
    "report_table",
    "show",
    "show_report",
    "side_effect_bars",
    "side_effects",
    "steering_slider",
]
