"""Models: one simple layer over every architecture.

    families    where each architecture keeps its parts: one declarative row each
    sites       Site, the address of an object, and its grammar
    model       load, wrap, Model
    record      read activations            edits    intervene and the primitive edits
    weights     all weights in one convention
    selfcheck   proves the family's row on every load
"""

from .batch import Batch
from .edits import Intervention, add, edit, intervene, mean, patch, project, scale, zero
from .families import FAMILIES, Family, UnknownFamily, matrix
from .model import Model, load, wrap
from .record import Cache, record
from .selfcheck import SelfCheckError
from .sites import Edge, Site, SiteError

__all__ = [
    "Batch",
    "Cache",
    "Edge",
    "FAMILIES",
    "Family",
    "Intervention",
    "Model",
    "SelfCheckError",
    "Site",
    "SiteError",
    "UnknownFamily",
    "add",
    "edit",
    "intervene",
    "load",
    "matrix",
    "mean",
    "patch",
    "project",
    "record",
    "scale",
    "wrap",
    "zero",
]
