"""Compare what an answer gave with what was expected, and say in words how they differ."""

from __future__ import annotations

import math
from numbers import Number
from typing import Any

import torch

__all__ = ["describe", "difference", "wrong_kind"]


def describe(value: Any, most: int = 8) -> str:
    """`value` in a line: type, shape and dtype, and up to `most` numbers."""
    if isinstance(value, torch.Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        if value.dim() == 0:
            return f"{_number(value.item())} ({kind} tensor without dimensions)"
        numbers = [_number(x) for x in value.detach().flatten()[:most].tolist()]
        dots = ", ..." if value.numel() > most else ""
        return f"{kind} tensor of shape {list(value.shape)}: {', '.join(numbers)}{dots}"
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, Number):
        return _number(value)
    if isinstance(value, (list, tuple)):
        inside = ", ".join(describe(item, most) for item in value[:most]) + (", ..." if len(value) > most else "")
        return f"({inside})" if isinstance(value, tuple) else f"[{inside}]"
    if isinstance(value, str):
        return repr(value)
    if type(value).__module__ == "numpy":
        return f"numpy {type(value).__name__} of shape {list(getattr(value, 'shape', []))}"
    text = repr(value)
    return f"{type(value).__name__}: {text if len(text) <= 80 else text[:77] + '...'}"


def _number(x: Any) -> str:
    return f"{x:.4g}" if isinstance(x, float) else str(x)


def difference(got: Any, expected: Any, tolerance: float = 1e-4) -> str:
    """ "" when `got` is `expected` within the tolerance, else one sentence on the first thing that differs.

    Order: type, shape, dtype, device, not-a-number or infinite values, values.
    """
    if isinstance(expected, torch.Tensor):
        return _tensors_differ(got, expected, tolerance)
    if isinstance(expected, bool):
        same = _is_scalar(got) and not isinstance(got, float) and bool(got) == expected
        return "" if same else "The truth value differs." if _is_scalar(got) else _wrong_type(got, "True or False")
    if isinstance(expected, Number):
        return _numbers_differ(got, expected, tolerance)
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)):
            return _wrong_type(got, f"a {type(expected).__name__} of {len(expected)}")
        if len(got) != len(expected):
            return f"The length is {len(got)}; it should be {len(expected)}."
        pairs = zip(got, expected, strict=True)
        return next((f"Item {i}: {d}" for i, (g, e) in enumerate(pairs) if (d := difference(g, e, tolerance))), "")
    if isinstance(expected, dict):
        if not isinstance(got, dict):
            return _wrong_type(got, "a dictionary")
        if set(got) != set(expected):
            return f"The keys are {sorted(map(str, got))}; they should be {sorted(map(str, expected))}."
        return next((f"Key {k!r}: {d}" for k, e in expected.items() if (d := difference(got[k], e, tolerance))), "")
    if type(got) is not type(expected):
        return _wrong_type(got, f"a {type(expected).__name__}")
    return "" if got == expected else "The value differs."


def wrong_kind(got: Any, expected: Any) -> str:
    """ "" unless `got` is of another type or dtype than `expected`: then a sentence that says so."""
    if got is None:
        return _wrong_type(got, "a result")
    if callable(expected):
        return ""
    if isinstance(expected, torch.Tensor) and isinstance(got, torch.Tensor):
        return "" if got.dtype == expected.dtype else difference(got.reshape(-1)[:0], expected.reshape(-1)[:0])
    if isinstance(expected, torch.Tensor) or type(got) in (str, dict):
        return "" if type(got) is type(expected) else difference(got, expected)
    return ""


def _tensors_differ(got: Any, expected: torch.Tensor, tolerance: float) -> str:
    if not isinstance(got, torch.Tensor):
        return _wrong_type(got, "a torch tensor")
    if got.shape != expected.shape:
        return f"The shape is {list(got.shape)}; it should be {list(expected.shape)}."
    if got.dtype != expected.dtype:
        return f"The dtype is {_name(got.dtype)}; it should be {_name(expected.dtype)}."
    if got.device != expected.device:
        return f"The tensor is on {got.device}; it should be on {expected.device}."
    if not expected.is_floating_point():
        return "" if torch.equal(got, expected) else "The values differ."
    got, expected = got.detach().float(), expected.detach().float()
    if expected.isfinite().all() and not got.isfinite().all():
        what = "nan (not a number)" if got.isnan().any() else "infinite values"
        return f"The result holds {what}."
    largest = expected.abs().max().item() if expected.numel() else 0.0
    if torch.allclose(got, expected, rtol=0.0, atol=tolerance * (largest or 1.0), equal_nan=True):
        return ""
    where = (got - expected).abs().argmax().item()
    index = [int(i) for i in torch.unravel_index(torch.tensor(where), expected.shape)]
    wrong, right = got.flatten()[where].item(), expected.flatten()[where].item()
    at = f" (largest difference at index {index}: {_number(wrong)}, should be {_number(right)})" if index else ""
    return f"The values differ{at}."


def _numbers_differ(got: Any, expected: Number, tolerance: float) -> str:
    if not _is_scalar(got) or isinstance(got, bool):
        return _wrong_type(got, "a single number")
    value = float(got)
    if math.isnan(value) or math.isinf(value) and math.isfinite(expected):
        return f"The result is {value}."
    near = value == expected or abs(value - expected) <= tolerance * (abs(expected) or 1.0)
    return "" if near else f"The value is {_number(value)}; it should be {_number(float(expected))}."


def _is_scalar(value: Any) -> bool:
    """A Python or numpy number, or a tensor without dimensions."""
    if isinstance(value, torch.Tensor):
        return value.dim() == 0
    return isinstance(value, Number) or (type(value).__module__ == "numpy" and getattr(value, "shape", None) == ())


def _wrong_type(got: Any, wanted: str) -> str:
    if got is None:
        return f"The result is None instead of {wanted}: is a `return` missing?"
    if isinstance(got, torch.Tensor):
        return f"The result is a tensor of shape {list(got.shape)}; it should be {wanted}."
    return f"The result is of type {type(got).__name__}; it should be {wanted}."


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
