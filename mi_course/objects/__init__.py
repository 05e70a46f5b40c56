"""The objects of interpretability (survey section 2) and the nouns shared by every method: `Task` and `Scores`."""

from .scores import Scores
from .task import Task

__all__ = ["Scores", "Task"]
