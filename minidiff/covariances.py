"""How much doubt about the clean data is left at each time: estimates for the optimal variance."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from .denoiser import Denoise
from .grids import check_times
from .predictions import FAINT, eps_from_x0
from .process import diffuse
from .schedules import Level, Schedule
from .tensors import check_data, check_mask, generator, masked_mean, randn_like

CLOSE = 1e-9  # two log-SNRs this close are one level, computed twice


def mean_covariance(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    *,
    rng: torch.Generator | None = None,
) -> Callable[[Level], float]:
    r"""Estimate, for every time of a grid, the doubt about x0 that is left (:eq:`eq:gamma`).

    .. math:: \mathrm{Cov}[x_0\mid x_t] \approx \frac{\mathrm{noise}^2}{\mathrm{signal}^2}
        (1-\Gamma_t), \qquad \Gamma_t = \frac1D\,\mathrm E\lVert\hat\epsilon(x_t,t)\rVert^2

    It needs no clean data at sampling time, and no head: one number a time, from the size of the
    predicted noise. The formula presumes an exact mean.

    Args:
        denoise: ``(x, t) -> x0``, the model that will be sampled from, without clipping.
        schedule: The path.
        x0: Clean data, shape ``(B, *event)``; each time sees all of it once.
        times: The grid that will be sampled on; its last time, if 0, is left out.
        rng: Source of noise.

    Returns:
        A function of the level, for :func:`~minidiff.variance.analytic`. It knows the levels of
        ``times`` only.

    Raises:
        ValueError: if signal < 1e-6 at a time; and from the returned function, at another level.

    Source: Bao, Li, Zhu and Zhang (2022), Analytic-DPM, equations 8 and 9, where Gamma is that of
    the score, ours divided by noise^2.
    """
    times, rng = check_times(times), generator(rng)
    check_data("x0", x0)
    known: list[tuple[float, float]] = []  # (log-SNR, covariance), log-SNR rising
    for t in times[times > 0]:
        at = schedule(t)
        if float(at.signal) < FAINT:
            raise ValueError(
                f"times start at signal={float(at.signal):.3g}: the noise says nothing about x0 "
                "there; start the grid below t = 1"
            )
        x = diffuse(at, x0, randn_like(x0, rng))
        with torch.no_grad():
            eps = eps_from_x0(denoise(x, t), x, at)
        gamma = float((eps**2).mean(dtype=torch.float64))
        known.append((float(at.log_snr), float(at.noise / at.signal) ** 2 * (1 - gamma)))

    return _by_level(known, "mean_covariance")


def residual_covariance(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    *,
    known: Tensor | None = None,
    scored: Tensor | None = None,
    keep: tuple[int, ...] = (),
    rng: torch.Generator | None = None,
) -> Callable[[Level], Tensor]:
    r"""Measure how far the prediction is off at each time (:eq:`eq:residual-covariance`).

    .. math:: c_k(t) = \frac{\sum_{i\in k} s_i\,\bigl(x_{0,i} - D(x_t,t)_i\bigr)^2}
        {\sum_{i\in k} s_i}

    For an exact denoiser its mean is :math:`\mathrm{Cov}[x_0\mid x_t]`, for another one that plus
    the squared error of the mean: what the step's noise has to make up for. Unlike
    :func:`mean_covariance` it needs clean data that the model was not trained on, takes a mask, and
    may tell channels apart.

    Args:
        denoise: ``(x, t) -> x0``, the model that will be sampled from.
        schedule: The path.
        x0: Clean data, shape ``(B, *event)``; each time sees all of it once.
        times: The grid that will be sampled on; its last time, if 0, is left out.
        known: bool; entries that hold their clean value in x_t.
        scored: bool; entries that count. Default: those not ``known``.
        keep: Axes of x0 that the result tells apart, such as ``(2,)`` for channels of
            ``(B, L, K)``.
        rng: Source of noise.

    Returns:
        A function of the level, for :func:`~minidiff.variance.analytic`; its value broadcasts to
        x0. It knows the levels of ``times`` only.

    Raises:
        ValueError: if a mask does not fit or nothing is scored; and from the returned function, at
            another level.

    Source: the residual of Bao et al. (2022), NPR-DPM, averaged over data instead of learnt.
    """
    times, rng = check_times(times), generator(rng)
    check_data("x0", x0)
    none = torch.zeros_like(x0, dtype=torch.bool)
    held = none if known is None else check_mask("known", known, x0)
    counted = ~held if scored is None else check_mask("scored", scored, x0)
    over = tuple(d for d in range(x0.ndim) if d not in keep)
    sizes = [x0.shape[d] if d in keep else 1 for d in range(x0.ndim)]
    found: list[tuple[float, Tensor]] = []
    for t in times[times > 0]:
        at = schedule(t)
        x = torch.where(held, x0, diffuse(at, x0, randn_like(x0, rng)))
        with torch.no_grad():
            error = (denoise(x, t) - x0).square()
        found.append((float(at.log_snr), masked_mean(error, counted, over).reshape(sizes)))
    return _by_level(found, "residual_covariance")


Covariance = TypeVar("Covariance", float, Tensor)


def _by_level(known: list[tuple[float, Covariance]], maker: str) -> Callable[[Level], Covariance]:
    """Look values up by the level; ``known`` holds pairs with the log-SNR, which rises."""

    def cov(at: Level) -> Covariance:
        lam = float(at.log_snr)
        near = bisect(known, lam - CLOSE, key=lambda pair: pair[0])
        if near == len(known) or known[near][0] > lam + CLOSE:
            raise ValueError(
                f"log_snr={lam:.6g} is not a level of the times it was estimated on: call "
                f"{maker} with the grid you sample on"
            )
        return known[near][1]

    return cov
