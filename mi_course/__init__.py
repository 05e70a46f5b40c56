"""A hands-on course on actionable mechanistic interpretability, on models whose answers are known.

    import mi_course as mi
    model = mi.load()                                        # the lab model; no download
    cache = mi.record(model, "...", ["x4", "L3H5.pattern"])  # read
    with mi.intervene(model, mi.zero("L3H5")):               # write
        model.generate("...")

Importing this package imports neither torch nor transformers; they come with the first thing that needs them.
"""

from importlib import import_module

_NAMES = {  # public name -> module that defines it
    name: "mi_course.models"
    for name in (
        "Batch Cache Edge Intervention Model Site "
        "add edit intervene load matrix mean patch project record scale wrap zero"
    ).split()
}
_NAMES |= {"Task": "mi_course.objects", "Scores": "mi_course.objects"}
_MODULES = ("assets", "evaluate", "improve", "locate", "models", "objects", "steer", "teach", "world")

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str):
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    if name in _MODULES:
        return import_module(f"mi_course.{name}")
    raise AttributeError(f"module 'mi_course' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)
