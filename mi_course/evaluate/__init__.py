"""Measure results: intervals, null bands, and what else an intervention moved."""

from .side_effects import SideEffects, document_loss, identity, kl_to_base, side_effect_matrix
from .statistics import Effect, NullBand, effect, null_band, wilson

__all__ = [
    "Effect",
    "NullBand",
    "SideEffects",
    "document_loss",
    "effect",
    "identity",
    "kl_to_base",
    "null_band",
    "side_effect_matrix",
    "wilson",
]
