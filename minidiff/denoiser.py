"""The one interface of the package: a denoiser is a function ``(x, t) -> E[x0 | x_t = x]``."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .predictions import Prediction, as_prediction
from .schedules import Level, Schedule, as_time

Condition = Any  # None, a Tensor or a NamedTuple of Tensors with leading axis B
MEMORY = 4096  # scalar times whose coefficients a Denoiser remembers


class Denoise(Protocol):
    """A function from noisy data and its time to the expected clean data."""

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor: ...


class Output(NamedTuple):
    """What a network returns: the prediction, and a second head where it has one."""

    y: Tensor
    second: Tensor | None = None


class Seen(NamedTuple):
    """The last call of a :class:`Branch`: its input, the level, and what came out."""

    x: Tensor
    at: Level
    x0: Tensor
    y: Tensor
    second: Tensor | None


class _Row(NamedTuple):
    at: Level
    skip: Tensor | float
    out: Tensor | float
    scale: Tensor | float | None  # c_in; None means 1

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Return ``skip x + out y``; with numbers, in one pass over the data less."""
        if isinstance(self.out, float):
            return torch.add(self.skip * x, y, alpha=self.out)
        return self.skip * x + self.out * y


class Denoiser(nn.Module):
    r"""Give a network's output its meaning (:eq:`eq:denoiser`).

    .. math:: D(x,t) = c_{\mathrm{skip}}(t)\,x
        + c_{\mathrm{out}}(t)\;\mathrm{net}\bigl(c_{\mathrm{in}}(t)\,x,\,t,\,\mathrm{cond}\bigr)

    Args:
        net: ``net(x, t, cond) -> y`` or ``Output(y, second)``; t is in [0, 1] in the dtype of x,
            of shape ``(B,)`` or broadcastable to x. A net scales t itself.
        schedule: The path that the network was or will be trained on.
        prediction: What y means: a name in ``PREDICTIONS`` or a ``Prediction``.
    """

    def __init__(self, net: nn.Module, schedule: Schedule, prediction: str | Prediction = "eps"):
        super().__init__()
        if not isinstance(schedule, Schedule):
            raise ValueError(
                f"schedule is a {type(schedule).__name__}: call Denoiser(net, schedule, prediction)"
            )
        self.net, self.schedule = net, schedule
        self.prediction = as_prediction(prediction)
        self._rows: dict[float, _Row] = {}

    def raw(self, x: Tensor, t: Tensor | float, cond: Condition = None) -> Output:
        """Return the network's native output; losses use this.

        Args:
            x: Noisy data, shape ``(B, *event)``.
            t: Time, shape ``()``, ``(B,)``, or the rank of x and broadcastable to it.
            cond: Passed to the network as it is.
        """
        c_in = self.prediction.c_in
        if c_in is None:  # the row itself, which eps does not have at signal 0, is not needed
            as_time(t)
            return self._net(x, t, cond, None)
        return self._net(x, t, cond, c_in(self.schedule(t).over(x)))

    def forward(self, x: Tensor, t: Tensor | float, cond: Condition = None) -> Tensor:
        """Return the expected clean data, the shape of ``x``."""
        return self._ask(x, t, cond).x0

    def given(self, cond: Condition) -> Branch:
        """Return the denoiser for one condition; ``given(None)`` is the unconditional one."""
        return Branch(self, cond)

    def _ask(self, x: Tensor, t: Tensor | float, cond: Condition) -> Seen:
        row = self._row(x, t)
        y, second = self._net(x, t, cond, row.scale)
        return Seen(x, row.at, row.join(x, y), y, second)

    def _row(self, x: Tensor, t: Tensor | float) -> _Row:
        if isinstance(t, Tensor) and t.ndim:
            at = self.schedule(t)
            return _Row(at, *self._factors(at.over(x)))
        key = float(t)  # a sampler comes back to the same few scalar times
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MEMORY:
                self._rows.clear()
            at = self.schedule(torch.tensor(key, dtype=torch.float64))
            skip, out, scale = self._factors(at)
            scale = None if scale is None else float(scale)
            row = self._rows[key] = _Row(at, float(skip), float(out), scale)
        return row

    def _factors(self, at: Level) -> tuple[Tensor, Tensor, Tensor | None]:
        c_in = self.prediction.c_in
        return *self.prediction.coefficients(at), None if c_in is None else c_in(at)

    def _net(
        self, x: Tensor, t: Tensor | float, cond: Condition, scale: Tensor | float | None
    ) -> Output:
        given = x if scale is None else scale * x
        if isinstance(t, Tensor) and t.ndim:
            t = t.to(x)
        else:
            t = x.new_full((x.shape[0],), float(t))
        out = self.net(given, t, cond)
        out = out if isinstance(out, Output) else Output(out)
        if out.y.shape != x.shape:
            raise ValueError(
                f"net returned shape {tuple(out.y.shape)} for x of shape {tuple(x.shape)}: "
                "a second head belongs into Output(y, second)"
            )
        return out


class Branch:
    """A :class:`Denoiser` for one condition, which remembers its last call in ``seen``.

    It serves one chain at a time: variances that need a second head read ``seen``.
    """

    def __init__(self, model: Denoiser, cond: Condition) -> None:
        self.model, self.cond = model, cond
        self.seen: Seen | None = None

    def __call__(self, x: Tensor, t: Tensor | float, /) -> Tensor:
        self.seen = self.model._ask(x, t, self.cond)
        return self.seen.x0


class Counted:
    """A denoiser that counts its calls in ``calls``."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, t: Tensor, /) -> Tensor:
        self.calls += 1
        return self.denoise(x, t)


def count_calls(denoise: Denoise) -> Counted:
    """Wrap a denoiser so that ``.calls`` tells how often it was asked (function evaluations)."""
    return Counted(denoise)
