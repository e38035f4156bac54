"""Likelihoods: the exact one of the probability flow, and bits per dimension.

The variational bound lives in ``minidiff.bounds`` and can be had from here too. Everything is in
nats, one value an example, unless a name says bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from .bounds import (
    Bound,
    continuous_vlb,
    discretised_decoder,
    gaussian_decoder,
    grey_values,
    hybrid_loss,
    vlb,
)
from .denoiser import Denoise
from .grids import check_times
from .predictions import FAINT
from .schedules import Schedule
from .tensors import check_data, generator, sum_entries

__all__ = [
    "Bound",
    "bits_per_dim",
    "continuous_vlb",
    "dequantise",
    "discretised_decoder",
    "exact_divergence",
    "gaussian_decoder",
    "hutchinson",
    "hybrid_loss",
    "ode_log_likelihood",
    "vlb",
]

Divergence = Callable[[Callable[[Tensor], Tensor], Tensor, torch.Generator], tuple[Tensor, Tensor]]


# ---- likelihood of the probability flow ---------------------------------------------------------


def exact_divergence(
    field: Callable[[Tensor], Tensor], x: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Return ``field(x)`` and its divergence, one backward pass an entry (:eq:`eq:divergence`).

    .. math:: \nabla\cdot f(x) = \sum_i \frac{\partial f_i}{\partial x_i}

    Returns:
        The field, shape of ``x``, and the divergence, shape ``(B,)``.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = field(x)
        columns = value.reshape(len(x), -1).unbind(1)
        total = x.new_zeros(len(x))
        for i, column in enumerate(columns):
            (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=i + 1 < len(columns))
            total = total + slope.reshape(len(x), -1)[:, i]
    return value.detach(), total


def hutchinson(probes: int = 1) -> Divergence:
    r"""Return an unbiased estimate of the divergence at the cost of ``probes`` backward passes.

    .. math:: \nabla\cdot f(x) = \mathrm E_v\bigl[v^\top \nabla f(x)\,v\bigr],
        \qquad v_i = \pm1 \text{ with equal probability}

    (:eq:`eq:hutchinson`). Its standard deviation falls as one over the root of ``probes``.

    Args:
        probes: Number of random vectors, at least 1.

    Raises:
        ValueError: if ``probes`` is less than 1.

    Source: Hutchinson (1989); Grathwohl et al. (2019), equation 7.
    """
    if not isinstance(probes, int) or probes < 1:
        raise ValueError(f"probes={probes!r}: give a whole number of random vectors, at least 1")

    def divergence(
        field: Callable[[Tensor], Tensor], x: Tensor, rng: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            value = field(x)
            total = x.new_zeros(len(x))
            for i in range(probes):
                coins = torch.randint(0, 2, x.shape, generator=rng, device=rng.device)
                v = (2 * coins - 1).to(x)
                (slope,) = torch.autograd.grad(value, x, v, retain_graph=i + 1 < probes)
                total = total + sum_entries(slope * v)
        return value.detach(), total / probes

    return divergence


def ode_log_likelihood(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    *,
    divergence: Divergence = exact_divergence,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Follow the probability flow from data to noise and count the change of volume, in nats.

    .. math:: \frac{dz}{d\lambda} = -\tfrac12\bigl(z-D(x,t)\bigr), \qquad
        \log p(x_0) = \log p_{\mathrm{end}}(z_{\mathrm{end}})
        + \int \nabla\!\cdot\frac{dz}{d\lambda}\,d\lambda

    with :math:`z = x/\mathrm{signal}` (:eq:`eq:ode-likelihood`), by the classical Runge-Kutta rule
    of order 4, four calls a step. The flow starts at the level of ``times[0]`` with z = x0, and
    ends in ``N(0, 1 + noise^2/signal^2)``, the marginal of data of variance 1. Both ends leave an
    error that no number of steps removes: the data's density is smoothed by the first level, and
    the last one still remembers the data.

    Args:
        denoise: ``(x, t) -> x0``, differentiable in x.
        schedule: The path that the denoiser was made for.
        x0: Data, shape ``(B, *event)``.
        times: Strictly increasing, n + 1 values for n steps, inside (0, 1] and where signal > 0;
            such as ``grids.log_snr(schedule, n, low=-9, high=9, land=False).flip(0)``.
        divergence: ``exact_divergence``, or ``hutchinson(probes)`` for large events.
        rng: Source of the probes; one set serves the whole flow.

    Returns:
        Shape ``(B,)``.

    Raises:
        ValueError: if the grid starts at 0 or ends where signal < 1e-6.

    Source: Song et al. (2021), equation 39; Chen et al. (2018), theorem 1.
    """
    times, rng = check_times(times, increasing=True), generator(rng)
    check_data("x0", x0)
    end = schedule(times[-1])
    if times[0] == 0 or float(end.signal) < FAINT:
        raise ValueError(
            f"times span [{float(times[0])}, {float(times[-1])}]: take 0 < t and signal > 0; see "
            "grids.log_snr(..., land=False)"
        )
    lam = schedule(times).log_snr.tolist()
    seed = int(torch.randint(2**62, (), generator=rng, device=rng.device))

    def slope(z: Tensor, at: float) -> tuple[Tensor, Tensor]:
        t = schedule.t_of(torch.tensor(at, dtype=torch.float64))
        signal = float(schedule(t).signal)
        probe = torch.Generator(rng.device).manual_seed(seed)
        return divergence(lambda z: (denoise(signal * z, t) - z) / 2, z, probe)

    z, volume = x0, x0.new_zeros(len(x0))
    for a, b in pairwise(lam):
        h = b - a
        k1, d1 = slope(z, a)
        k2, d2 = slope(z + h / 2 * k1, a + h / 2)
        k3, d3 = slope(z + h / 2 * k2, a + h / 2)
        k4, d4 = slope(z + h * k3, b)
        z = (z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)).detach()
        volume = volume + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    spread = 1 + float(end.noise / end.signal) ** 2
    return sum_entries(gaussian_decoder(z, torch.zeros_like(z), spread)) + volume


# ---- bits ---------------------------------------------------------------------------------------


def bits_per_dim(log_prob: Tensor, dims: int, *, cell: float = 2 / 256) -> Tensor:
    r"""Turn a log-likelihood in nats into bits per dimension of 8-bit data (:eq:`eq:bits`).

    .. math:: \mathrm{bits} = -\frac{\log p}{D\log 2} - \log_2 \mathrm{cell}

    Args:
        log_prob: Log-density or log-probability in nats, any shape.
        dims: D, entries of an example.
        cell: Width of one value in units of the data: 2/256 for a density of dequantised data in
            [-1, 1] (an offset of 7 bits), 1/256 for [0, 1] (8 bits), 1 for a log-probability of
            discrete values, as from ``discretised_decoder`` (none).

    Raises:
        ValueError: if ``dims`` or ``cell`` is not positive.

    Source: Theis, van den Oord and Bethge (2016), section 3.1.
    """
    if not isinstance(dims, int) or dims < 1 or not cell > 0:
        raise ValueError(f"dims={dims!r}, cell={cell}: give the entries of an example and a width")
    return -log_prob / (dims * math.log(2)) - math.log2(cell)


def dequantise(x0: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
    r"""Spread 8-bit values evenly over [-1, 1], for likelihoods by density (:eq:`eq:dequantise`).

    .. math:: 2\,\frac{k+u}{256}-1, \qquad k = \tfrac{255}{2}(x_0+1), \quad u\sim U[0,1)

    The mean of the log-density of the result, in bits with cell 2/256, is a bound on the
    log-probability of the values.

    Args:
        x0: Values ``2 k / 255 - 1`` with whole k from 0 to 255.
        rng: Source of u.

    Raises:
        ValueError: if a value is not on the grid.

    Source: Theis, van den Oord and Bethge (2016), section 3.1.
    """
    grey = grey_values(check_data("x0", x0))
    rng = generator(rng)
    u = torch.rand(x0.shape, generator=rng, dtype=torch.float64, device=rng.device)
    return (2 * (grey + u.to(grey.device)) / 256 - 1).to(x0.dtype)
