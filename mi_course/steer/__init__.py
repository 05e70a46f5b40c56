"""Steer: change the objects, and with them the behaviour (survey section 4).

steer         Steer: edits under one dial, a schedule over time, a detector; together(model, ...)
weights       WeightEdit: reversible edits of weights       saving      save and load both; refuses the wrong model
amplitude     off, to the mean, up and down                 vectors     add or remove a direction
editing       ROME and MEMIT: facts, in closed form
"""

from . import amplitude, editing, saving, vectors
from .editing import memit, rank_one_edit, rome
from .steer import Detector, Steer, together
from .vectors import ablate_direction, add_vector, mean_difference, orthogonalise
from .weights import WeightEdit

__all__ = [
    "Detector",
    "Steer",
    "WeightEdit",
    "ablate_direction",
    "add_vector",
    "amplitude",
    "editing",
    "mean_difference",
    "memit",
    "orthogonalise",
    "rank_one_edit",
    "rome",
    "saving",
    "together",
    "vectors",
]
