"""Make a function wrong on purpose: its output times 1.01, wherever the function was imported to.

The code inside the function object is replaced, so a name that was bound before is reached as well.
"""

from __future__ import annotations

import dataclasses
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "book" / "_ext"))
import course_source as source

FACTOR = 1.01
CLOCKS = {"t", "times"}  # fields that say when, not what: State.t


class Scaled:
    """A callable whose output is scaled; everything else is passed through."""

    def __init__(self, inner: Callable, factor: float):
        self.inner, self.factor = inner, factor

    def __call__(self, *args, **kwargs):
        return scaled(self.inner(*args, **kwargs), self.factor)

    def __getattr__(self, name):
        return getattr(self.inner, name)


def scaled(value: Any, factor: float = FACTOR) -> Any:
    """Scale whatever is a floating quantity in a returned value."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value * factor if value.is_floating_point() or value.is_complex() else value
    if isinstance(value, (np.ndarray, np.floating)):
        return value * factor if np.issubdtype(value.dtype, np.inexact) else value
    if isinstance(value, float):
        return value * factor
    fields = getattr(value, "_fields", None)
    if isinstance(value, tuple) and fields is not None:
        pairs = zip(fields, value, strict=True)
        return type(value)(*(v if name in CLOCKS else scaled(v, factor) for name, v in pairs))
    if isinstance(value, (tuple, list)):
        return type(value)(scaled(v, factor) for v in value)
    if isinstance(value, dict):
        return {k: scaled(v, factor) for k, v in value.items()}
    if isinstance(value, Iterator):
        return (scaled(v, factor) for v in value)
    if isinstance(value, torch.nn.Module):
        value.register_forward_hook(lambda module, inputs, output: scaled(output, factor))
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            object.__setattr__(value, field.name, scaled(getattr(value, field.name), factor))
        return value
    return Scaled(value, factor) if callable(value) else value


def target(dotted: str) -> Callable:
    """Import the plain function behind a dotted name: of a method, a property, a table entry, a
    cached function.
    """
    _, module, inner = source.split(dotted)
    holder: Any = importlib.import_module(module)
    for part in inner:
        if part.startswith("["):
            holder = holder[part[1:-1].strip("'\"")]
        elif isinstance(holder, type):
            holder = next(c.__dict__[part] for c in holder.__mro__ if part in c.__dict__)
        else:
            holder = getattr(holder, part)
    if isinstance(holder, type):
        for name in ("forward", "__call__", "step"):
            if isinstance(holder.__dict__.get(name), types.FunctionType):
                return holder.__dict__[name]
        raise TypeError(f"{dotted} is a class: name its method")
    holder = getattr(holder, "fget", None) or getattr(holder, "func", None) or holder
    holder = getattr(holder, "__func__", holder)
    if hasattr(holder, "cache_clear"):
        holder.cache_clear()
        holder = holder.__wrapped__
    if not isinstance(holder, types.FunctionType):
        raise TypeError(f"{dotted} is {type(holder).__name__}, not a function written in Python")
    return holder


HOOKS: list[Callable] = []


def sabotage(
    function: types.FunctionType, change: Callable[[Any], Any] = scaled
) -> Callable[[], None]:
    """Make a function return a changed result everywhere it is bound; return the way back."""
    code, known = function.__code__, dict(function.__dict__)
    healthy = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    healthy.__kwdefaults__ = function.__kwdefaults__
    healthy.__annotations__, healthy.__doc__ = function.__annotations__, function.__doc__
    HOOKS.append(lambda args, kwargs: change(healthy(*args, **kwargs)))
    text = (
        f"def {function.__name__}(*args, **kwargs):\n"
        f"    import sys\n"
        f"    return sys.modules[{__name__!r}].HOOKS[{len(HOOKS) - 1}](args, kwargs)\n"
    )
    scope: dict[str, Any] = {}
    exec(compile(text, "<sabotage>", "exec"), scope)
    function.__code__ = scope[function.__name__].__code__.replace(co_freevars=code.co_freevars)
    if "__wrapped__" not in function.__dict__:
        function.__dict__["__wrapped__"] = healthy  # signatures stay readable

    def restore() -> None:
        function.__code__ = code
        function.__dict__.clear()
        function.__dict__.update(known)

    return restore
