"""Steer: change the objects, and with them the behaviour (survey section 4).

amplitude   off, to the mean, up and down                      vectors     add or remove a direction
optimization  change chosen weights (rank-one edit)            weights     reversible edits of weights
"""

from . import amplitude, optimization, vectors
from .optimization import rank_one_edit
from .vectors import ablate_direction, add_vector, mean_difference, orthogonalise
from .weights import WeightEdit

__all__ = [
    "WeightEdit",
    "ablate_direction",
    "add_vector",
    "amplitude",
    "mean_difference",
    "optimization",
    "orthogonalise",
    "rank_one_edit",
    "vectors",
]
