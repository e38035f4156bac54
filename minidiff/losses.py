"""Denoising losses: draw a time and noise, predict, compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser
from .process import diffuse
from .schedules import BetaTable, Level, Schedule
from .tensors import check_data, check_mask, generator, masked_mean, randn_like

Times = Callable[[Schedule, int, torch.Generator], Tensor]
Weight = Callable[[Level], Tensor]


def uniform_times(schedule: Schedule, n: int, rng: torch.Generator) -> Tensor:
    r"""Draw ``n`` training times: uniform in (0, 1], or DDPM's steps 1..T on a table.

    Args:
        schedule: A ``BetaTable`` gives ``i/T`` with i uniform on 1..T; any other path is
            continuous.
        n: Number of times.
        rng: Source of randomness; the draw happens on its device.

    Returns:
        float64, shape ``(n,)``.

    Source: Ho, Jain and Abbeel (2020), algorithm 1, line 3.
    """
    if isinstance(schedule, BetaTable):
        steps = torch.randint(1, schedule.T + 1, (n,), generator=rng, device=rng.device)
        return steps.double() / schedule.T
    return 1 - torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)


def denoising_error(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    cond: Any = None,
    known: Tensor | None = None,
    weight: Weight | None = None,
    times: Times = uniform_times,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Squared error of the denoiser at random times, one value an entry (:eq:`eq:simple`).

    .. math:: \bigl(y_\theta(x_t,t) - y\bigr)^2
        \quad\text{or}\quad w(t)\,\bigl(\hat x_0(x_t,t)-x_0\bigr)^2

    Without ``weight`` the network's native output is compared with its target (for an
    eps-prediction this is the integrand of L_simple).

    Args:
        denoiser: The model in training.
        x0: Clean data, shape ``(B, *event)``, finite.
        cond: Condition, passed to the network.
        known: bool, True = observed: these entries of ``x_t`` hold the clean value.
        weight: Function of the level that multiplies the squared error of x0.
        times: ``(schedule, B, rng) -> t``.
        rng: Source of times and noise, in this order.

    Returns:
        The shape of ``x0``.

    Raises:
        ValueError: if x0 is not finite and floating, or known is not a bool mask of its shape.

    Source: Ho, Jain and Abbeel (2020), equation 14.
    """
    check_data("x0", x0)
    rng = generator(rng)
    t = times(denoiser.schedule, len(x0), rng)
    at = denoiser.schedule(t).over(x0)
    eps = randn_like(x0, rng)
    x_t = diffuse(at, x0, eps)
    if known is not None:
        x_t = torch.where(check_mask("known", known, x0), x0, x_t)
    if weight is None:
        return (denoiser.raw(x_t, t, cond).y - denoiser.prediction.define(at, x0, eps)) ** 2
    return weight(at) * (denoiser(x_t, t, cond) - x0) ** 2


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    cond: Any = None,
    known: Tensor | None = None,
    scored: Tensor | None = None,
    weight: Weight | None = None,
    times: Times = uniform_times,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Average :func:`denoising_error` over the scored entries of each example.

    Its mean over the batch is DDPM's L_simple (divided by the number of entries).

    Args:
        scored: bool; entries that count. Default: those not ``known``.

    The other arguments are those of :func:`denoising_error`.

    Returns:
        One loss an example, shape ``(B,)``.

    Raises:
        ValueError: if an example has nothing to score.
    """
    error = denoising_error(
        denoiser, x0, cond=cond, known=known, weight=weight, times=times, rng=rng
    )
    if scored is None:
        scored = torch.ones_like(x0, dtype=torch.bool) if known is None else ~known
    return masked_mean(error, check_mask("scored", scored, x0), dim=tuple(range(1, x0.ndim)))
