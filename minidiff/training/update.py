"""One update of the weights: the gradients of a batch's parts, averaged, then the optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..tensors import mixed_seed, seeded
from .distributed import Processes, share

NO_FLOAT16 = {"cpu"}  # float16 is slower than float32 there
SMALLEST_SCALE = 2.0**-24  # of a loss in float16: if gradients overflow below it, they always do


@dataclass(frozen=True)
class Update:
    """What stays the same from step to step; calling it with the step's index makes one update.

    The batch is cut into N = processes times ``accumulate`` parts. Part j draws its noise from
    ``(seed, k, 2 j)`` and its dropout from ``(seed, k, 2 j + 1)``, whichever process works on it.
    """

    loss: Callable[[Any, torch.Generator], Tensor]
    batches: Callable[[int], Any]
    params: list[nn.Parameter]
    opt: torch.optim.Optimizer
    clip: float | None
    seed: int
    accumulate: int
    autocast: torch.dtype | None
    scaler: GradScaler | None
    here: Processes

    @property
    def parts(self) -> int:
        """Number of parts of a batch, over all processes."""
        return self.here.count * self.accumulate

    def __call__(self, k: int) -> tuple[float, float]:
        """Make update k and return the loss and the gradient's norm, the same on all processes.

        Raises:
            ValueError: if the loss is not a finite scalar or its gradient is not finite.
        """
        devices = sorted({p.device.index or 0 for p in self.params if p.device.type == "cuda"})
        with torch.random.fork_rng(devices):  # dropout draws from the global state
            _seed_global(devices, self.seed, k, 1)
            self.opt.zero_grad(set_to_none=True)
            losses = self.here.each(partial(self._backward, devices, k))
            self.here.average_gradients(self.params)
            if self.scaler is not None:
                self.scaler.unscale_(self.opt)
            norm = nn.utils.clip_grad_norm_(
                self.params, math.inf if self.clip is None else self.clip
            )
            if self.parts > 1:  # an optimiser that draws noise draws the same on all processes
                _seed_global(devices, self.seed, k, 2 * self.parts + 1)
            self._step(k, float(norm))
        return sum(losses) / self.here.count, float(norm)

    def _backward(self, devices: list[int], k: int) -> float:
        """Add up the gradients of this process's parts and return their mean loss."""
        batch, total = self.batches(k), 0.0
        for i in range(self.accumulate):
            j = self.here.rank * self.accumulate + i
            if j:
                _seed_global(devices, self.seed, k, 2 * j + 1)
            with (
                nullcontext()
                if self.autocast is None
                else torch.autocast(self.params[0].device.type, self.autocast)
            ):
                value = self.loss(share(batch, j, self.parts), seeded(self.seed, k, 2 * j))
            if value.ndim != 0:
                raise ValueError(
                    f"loss has shape {tuple(value.shape)}: return a scalar, e.g. .mean()"
                )
            if not bool(torch.isfinite(value)):
                raise ValueError(
                    f"loss is {value.item()} at step {k}: lower lr, or check data and dtype"
                )
            total += float(value.detach())
            mean = value / self.accumulate
            (mean if self.scaler is None else self.scaler.scale(mean)).backward()
        return total / self.accumulate

    def _step(self, k: int, norm: float) -> None:
        """Let the optimiser go on, unless the gradient is not finite."""
        if self.scaler is not None:
            self.scaler.step(self.opt)  # skips where a gradient overflowed
            self.scaler.update()  # and halves the scale then
            if self.scaler.get_scale() >= SMALLEST_SCALE:
                return
        elif math.isfinite(norm):
            self.opt.step()
            return
        raise ValueError(
            f"the gradient of loss has norm {norm} at step {k}: lower lr, or keep roots and "
            "logarithms in the loss away from 0"
        )


def check_autocast(autocast: torch.dtype | None, params: list[nn.Parameter]) -> GradScaler | None:
    """Return what scales the loss in float16, None for other types.

    Raises:
        ValueError: if the type, the device or the weights do not suit mixed precision.
    """
    if autocast is None:
        return None
    if autocast not in (torch.bfloat16, torch.float16):
        raise ValueError(f"autocast={autocast!r}: give torch.bfloat16, torch.float16 or None")
    other = next((p.dtype for p in params if p.dtype != torch.float32), None)
    if other is not None:
        raise ValueError(f"autocast={autocast} needs float32 weights, not {other}: model.float()")
    kind = params[0].device.type
    if autocast == torch.bfloat16:
        return None
    if kind in NO_FLOAT16:
        raise ValueError(f"autocast={autocast} with a model on {kind}: use torch.bfloat16 there")
    return GradScaler(kind)


def _seed_global(devices: list[int], *entropy: int) -> None:
    """Seed torch's global state on the CPU and on the given GPUs."""
    states = (torch.default_generator, *(torch.cuda.default_generators[d] for d in devices))
    for state in states:
        state.manual_seed(mixed_seed(*entropy))
