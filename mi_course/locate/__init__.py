"""Locate: find the objects behind a behaviour (survey section 3). `from mi_course.locate import causal` and so on.

magnitude, 3.1      magnitude  contrast  language_neurons  outliers  layer_distance  attention_mass
causal, 3.2         causal  tracing  mediation  search               on the engine `sweep`
gradient, 3.3       gradient  integrated_gradients  knowledge_neurons  attribution_patching  parameters
probing, 3.4        probing  probe_sweep  probe_controls  erasure
projection, 3.5     projection  direct  token_lists  tuned_lens  patchscopes  backward_lens
circuits, 3.6       graph  edges  eap  acdc  circuit  head_report  feature_circuits  feature_graph
all of them         registry: every localizer under one signature, for the scoreboard

Modules are loaded when they are first asked for.
"""

from importlib import import_module

_NAMES = {  # public name -> module that defines it
    "ablate_each": "causal",
    "ablate_together": "causal",
    "patch_each": "causal",
    "causal_trace": "tracing",
    "lape": "language_neurons",
    "logit_lens": "projection",
}
_MODULES = (
    "acdc attention_mass attribution_patching backward_lens causal circuit contrast direct eap edges erasure "
    "feature_circuits feature_graph gradient graph head_report integrated_gradients knowledge_neurons "
    "language_neurons layer_distance magnitude mediation outliers parameters patchscopes probe_controls probe_sweep "
    "probing projection registry search sweep token_lists tracing tuned_lens"
).split()

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'mi_course.locate' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)
