"""Call an answer so that whatever it does becomes a diagnosis, and nothing that it does outlives the call.

Watched during each call: exceptions; tensors changed in place; hooks, replaced `forward` methods and changed weights
of every model that the answer was given or names; the package's own version called in place of the learner's. Put
back afterwards: inputs, hooks, weights (of models small enough to copy), gradient mode, default dtype, random state.
"""

from __future__ import annotations

import dis
import functools
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import CodeType, FrameType
from typing import Any

import torch

from .exercises import NotYet

__all__ = ["Guarded", "NotStarted", "code_of", "steady"]

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SMALL = 5_000_000  # parameters: a model up to this size is copied before each call, to find and undo changed weights


class NotStarted(Exception):
    """The answer is still the stub."""


class Guarded:
    """`answer`, called with care. `tried` is set by the check, so that a diagnosis can say what was tried."""

    def __init__(self, answer: Callable, forbidden: CodeType | None = None) -> None:
        self.answer, self.forbidden, self.tried, self.calls = answer, forbidden, "", 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        tensors = [(leaf, leaf.detach().clone()) for leaf in _leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        models = [_Kept(model) for model in _models((args, kwargs), self.answer)]
        try:
            with _modes_restored(), _watch_for(self.forbidden) as seen:
                result = self.answer(*args, **kwargs)
        except BaseException as error:
            for model in models:
                model.restore()
            if not isinstance(error, Exception):  # the learner stopped the cell
                raise
            self._explain(error)
        left = [complaint for model in models if (complaint := model.restore())]
        if seen:
            raise NotYet(
                self.tried, likely="Your answer calls the package's own version of this exercise. Write it yourself."
            )
        for tensor, before in tensors:
            if not _same(tensor, before):
                tensor.data.copy_(before)
                raise NotYet(
                    self.tried,
                    expected="the inputs are as they were before the call",
                    got=f"an input tensor of shape {list(before.shape)} was changed in place",
                    likely="An in-place operation (x -= ..., x[...] = ..., x.sub_()) wrote into an argument. The "
                    "caller still needs it: work on a new tensor.",
                )
        if left:
            raise NotYet(self.tried, expected="the model is as it was before the call", got=left[0], likely=ADVICE)
        return result

    def _explain(self, error: Exception) -> None:
        """Raise NotStarted or NotYet in place of `error`."""
        if isinstance(error, NotYet):
            raise error
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, NotImplementedError) and _is_stub(error):
            if self.calls == 1:
                raise NotStarted from error
            raise NotYet(
                self.tried, likely="This case still raises NotImplementedError: part of the stub is left."
            ) from error
        own = [frame for frame in frames if frame.filename == getattr(code_of(self.answer), "co_filename", None)]
        where = f", in your line {own[-1].lineno}: {own[-1].line}" if own and own[-1].line else ""
        raise NotYet(
            self.tried,
            expected="a result without an error",
            got=f"{type(error).__name__}: {str(error).strip() or 'without a message'}{where}",
            likely=_likely(error),
        ) from error


ADVICE = (
    "Use a `with` block (`with mi.intervene(model, ...):`) or remove the handle in `finally`, so that the model is "
    "left as it was."
)


def _likely(error: Exception) -> str:
    text = str(error)
    if isinstance(error, TypeError) and "argument" in text:
        return (
            "The function is called with the arguments shown in the exercise. Keep the names and the order of the stub."
        )
    if isinstance(error, (NameError, UnboundLocalError)):
        return "A name is used that is not defined inside the function. Is it spelled right, and is it an argument?"
    if isinstance(error, (RuntimeError, IndexError, ValueError)) and any(
        w in text for w in ("size", "shape", "dimension")
    ):
        return "Shapes do not fit. Print the shapes of both sides; `keepdim=True` or `[..., None]` often mends it."
    return "The function stops with this error. Call it by hand on the input above to see the whole traceback."


def _is_stub(error: NotImplementedError) -> bool:
    """Was it a `raise` of the learner's? torch and other libraries use the same exception for what they cannot do."""
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code
    raised_here = dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS"  # else: raised inside a compiled library
    return raised_here and "site-packages" not in code.co_filename


def code_of(answer: Any) -> CodeType | None:
    """The code object behind a function, method, partial or decorated function, or None."""
    return getattr(_bare(answer), "__code__", None)


def _bare(answer: Any) -> Any:
    """The function inside partials, decorators (`@torch.no_grad()`, say) and methods."""
    while True:
        inner = answer.func if isinstance(answer, functools.partial) else getattr(answer, "__wrapped__", None)
        inner = inner or getattr(answer, "__func__", None)
        if inner is None:
            return answer
        answer = inner


@contextmanager
def _watch_for(code: CodeType | None) -> Iterator[list]:
    """List the calls of `code` made from outside the package while the block runs."""
    seen: list[str] = []
    if code is None:
        yield seen
        return
    before = sys.getprofile()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is code and frame.f_back is not None:
            caller = frame.f_back.f_globals.get("__name__", "")
            if not caller.startswith("mi_course."):
                seen.append(caller)

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(before)


@contextmanager
def _modes_restored() -> Iterator[None]:
    grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)


@contextmanager
def steady(seed: int = 0) -> Iterator[None]:
    """Run a block with seeded random numbers and leave the random state of the session as it was."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            random.setstate(state)


class _Kept:
    """What must not change in a model: its hooks, its forward methods and, where it is small, its weights.

    `model` is a torch module, or the course's wrapper, whose taps are then closed too.
    """

    def __init__(self, model: Any) -> None:
        self.taps = model.taps.active([]) if hasattr(model, "taps") else nullcontext()
        self.taps.__enter__()  # leaving this context takes away the edits that the answer left active
        model = getattr(model, "hf", model)
        self.modules = list(model.modules())
        self.hooks = [{name: dict(getattr(m, name)) for name in HOOKS} for m in self.modules]
        self.forwards = [m.__dict__.get("forward") for m in self.modules]
        self.parameters = list(model.parameters())
        small = sum(p.numel() for p in self.parameters) <= SMALL
        self.weights = [p.detach().clone() for p in self.parameters] if small else []

    def restore(self) -> str:
        """Put everything back. Returns a complaint, or "" when nothing had changed."""
        left = [
            (module, name)
            for module, kept in zip(self.modules, self.hooks)
            for name in HOOKS
            if self._more(module, name, kept)
        ]
        self.taps.__exit__(None, None, None)
        for module, kept in zip(self.modules, self.hooks):
            for name in HOOKS:
                now = getattr(module, name)
                if dict(now) != kept[name]:
                    now.clear()
                    now.update(kept[name])
        replaced = [m for m, forward in zip(self.modules, self.forwards) if m.__dict__.get("forward") is not forward]
        for module, forward in zip(self.modules, self.forwards):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.__dict__["forward"] = forward
        changed = [(p, before) for p, before in zip(self.parameters, self.weights) if not _same(p, before)]
        for parameter, before in changed:
            parameter.data.copy_(before)
        found = [
            (left, "place(s) with hooks left on the model"),
            (replaced, "replaced forward method(s)"),
            (changed, "changed weight tensor(s)"),
        ]
        return ", ".join(f"{len(things)} {what}" for things, what in found if things)

    @staticmethod
    def _more(module: torch.nn.Module, name: str, kept: dict) -> bool:
        return bool(set(getattr(module, name)) - set(kept[name]))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _models(arguments: Any, answer: Callable) -> list:
    """Models among the arguments, and among the variables that the answer's code names."""
    function = _bare(answer)
    code, named = code_of(answer), getattr(function, "__globals__", {})
    candidates = list(_leaves(arguments)) + [named[n] for n in (code.co_names if code else ()) if n in named]
    candidates += [cell.cell_contents for cell in getattr(function, "__closure__", None) or () if _filled(cell)]
    found: dict[int, Any] = {}
    for each in candidates:
        module = getattr(each, "hf", each)
        if isinstance(module, torch.nn.Module) and (each is not module or id(module) not in found):
            found[id(module)] = each  # of a module and its wrapper, keep the wrapper
    return list(found.values())


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - an empty cell raises
    except ValueError:
        return False
    return True


def _same(tensor: torch.Tensor, before: torch.Tensor) -> bool:
    if tensor.shape != before.shape or tensor.dtype != before.dtype:
        return False
    now = tensor.detach()
    return torch.equal(now, before) or bool(((now == before) | (now != now) & (before != before)).all())
