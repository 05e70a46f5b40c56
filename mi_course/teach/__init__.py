"""What a chapter needs to teach: checks with a diagnosis, hints, quizzes, figures, a steering slider, citations.

from mi_course.teach import check, hint, quiz, show, heatmap, bars, curves, steering_slider, cite, progress
"""

from .checking import CheckFailed, check, hint
from .journal import progress
from .library import cite
from .plots import bars, curves, heatmap, lens_table, show, side_effects
from .quizzes import Question, quiz
from .widgets import circuitsvis, steering_slider

__all__ = [
    "CheckFailed",
    "Question",
    "bars",
    "check",
    "circuitsvis",
    "cite",
    "curves",
    "heatmap",
    "hint",
    "lens_table",
    "progress",
    "quiz",
    "show",
    "side_effects",
    "steering_slider",
]
