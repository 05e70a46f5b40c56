"""Locate: find the objects behind a behaviour (survey section 3).

magnitude   large or often active where the behaviour is       causal      ablation, patching, causal tracing
projection  read states with the model's own unembedding       attention_mass  where heads look, what they copy
"""

from . import attention_mass, causal, magnitude, projection
from .causal import ablate_each, ablate_together, causal_trace, patch_each
from .magnitude import lape
from .projection import logit_lens

__all__ = [
    "ablate_each",
    "ablate_together",
    "attention_mass",
    "causal",
    "causal_trace",
    "lape",
    "logit_lens",
    "magnitude",
    "patch_each",
    "projection",
]
