"""Measure results: intervals, null bands, what else an intervention moved, and one report of all that for a steer."""

from .dose_response import DoseResponse, breakdown_point, dose_response
from .fluency import Fluency, fluency
from .side_effects import SideEffects, document_loss, identity, kl_to_base, side_effect_matrix
from .statistics import Effect, NullBand, effect, null_band, rank_correlation, shuffled_correlation, wilson
from .steering import SteeringReport, harmonic_mean, matched_null, steering_report, steering_score

__all__ = [
    "DoseResponse",
    "Effect",
    "Fluency",
    "NullBand",
    "SideEffects",
    "SteeringReport",
    "breakdown_point",
    "document_loss",
    "dose_response",
    "effect",
    "fluency",
    "harmonic_mean",
    "identity",
    "kl_to_base",
    "matched_null",
    "null_band",
    "rank_correlation",
    "shuffled_correlation",
    "side_effect_matrix",
    "steering_report",
    "steering_score",
    "wilson",
]
