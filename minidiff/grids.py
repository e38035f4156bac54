"""Decreasing grids of times for the samplers: float64 on the CPU, n + 1 times for n steps.

The last time is 0 (clean data) unless ``end`` or ``land`` says otherwise.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .schedules import FIRST, Schedule


def check_times(times: Tensor, *, increasing: bool = False) -> Tensor:
    """Return ``times`` as a float64 CPU vector, or raise if it is not a strict grid in [0, 1]."""
    times = torch.as_tensor(times).detach().to("cpu", torch.float64)
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"times has shape {tuple(times.shape)}: give a vector of n + 1 >= 2 times")
    if not bool(((times >= 0) & (times <= 1)).all()):
        raise ValueError(f"times span [{float(times.min())}, {float(times.max())}], not in [0, 1]")
    steps = times.diff() if increasing else -times.diff()
    if not bool((steps > 0).all()):
        where, way = int((steps <= 0).nonzero()[0]), "increase" if increasing else "decrease"
        raise ValueError(
            f"times must {way} strictly, but times[{where}]={float(times[where])} is followed by "
            f"{float(times[where + 1])}: build the grid with minidiff.grids"
        )
    return times


def _refuse_steps(n: int) -> None:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of steps, at least 1")


def uniform(n: int, *, start: float = 1.0, end: float = 0.0) -> Tensor:
    """``n`` equal steps of time from ``start`` down to ``end``."""
    _refuse_steps(n)
    return check_times(torch.linspace(start, end, n + 1, dtype=torch.float64))


def ddpm_steps(T: int) -> Tensor:
    r"""All steps of a table: ``T/T, (T-1)/T, .., 1/T, 0`` (:eq:`eq:ddpm-grid`).

    Source: Ho, Jain and Abbeel (2020), algorithm 2.
    """
    _refuse_steps(T)
    return torch.arange(T, -1, -1, dtype=torch.float64) / T


def strided(T: int, n: int) -> Tensor:
    """``n`` of the ``T`` steps of a table, as evenly spaced as whole steps allow.

    Starts at step T, where the prior lives ("trailing" in diffusers).

    Raises:
        ValueError: if ``n`` exceeds ``T``.

    Source: Lin et al. (2024), section 3.3 (start at the last step).
    """
    _refuse_steps(T)
    _refuse_steps(n)
    if n > T:
        raise ValueError(f"n={n} exceeds T={T}: a table of {T} steps has no more than {T}")
    return torch.linspace(T, 0, n + 1, dtype=torch.float64).round() / T


def linspaced(T: int, n: int) -> Tensor:
    r"""``n`` steps of a table, evenly from T to 1, and then 0 (:eq:`eq:linspaced`).

    .. math:: i_k = \mathrm{round}\Bigl(1 + k\,\frac{T-1}{n-1}\Bigr), \quad k = n-1, .., 0

    The last move leaves from step 1, where the noise is least ("linspace" in diffusers). The
    bounds of Bao et al. are on this grid.

    Raises:
        ValueError: if ``n`` is less than 2 or exceeds ``T``.

    Source: Bao, Li, Zhu and Zhang (2022), Analytic-DPM, appendix F.4 (even trajectory).
    """
    _refuse_steps(T)
    _refuse_steps(n)
    if not 2 <= n <= T:
        raise ValueError(f"n={n} with T={T}: give from 2 to T steps, both ends are among them")
    steps = torch.linspace(T, 1, n, dtype=torch.float64).round()
    return torch.cat([steps, steps.new_zeros(1)]) / T


def log_snr(
    schedule: Schedule, n: int, *, low: float = -10.0, high: float = 9.0, land: bool = True
) -> Tensor:
    """Levels equally spaced in log-SNR, then clean data.

    Args:
        schedule: The path.
        n: Number of steps, the last one to t = 0 included if ``land``.
        low: Log-SNR to start at; a path that ends above it starts at t = 1.
        high: Log-SNR of the last noisy level.
        land: Whether the grid ends with t = 0.

    Raises:
        ValueError: if ``high`` lies below the start, or so far above the schedule's first level
            that times coincide.
    """
    _refuse_steps(n)
    least = float(schedule(1.0).log_snr)
    start = max(low, least)
    if not start < high:
        raise ValueError(f"high={high} must lie above the start of the grid, log-SNR {start:.4g}")
    lam = torch.linspace(start, high, n if land else n + 1, dtype=torch.float64)
    return _at_levels(schedule, lam, land, f"high={high}")


def karras(
    schedule: Schedule,
    n: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    r"""Ratios of noise to signal, evenly spaced in their ``rho``-th root, then 0 (:eq:`eq:karras`).

    .. math:: \sigma_i = \Bigl(\sigma_{\max}^{1/\rho}
        + \tfrac{i}{n-1}(\sigma_{\min}^{1/\rho}-\sigma_{\max}^{1/\rho})\Bigr)^\rho,
        \quad i = 0..n-1, \qquad \sigma_n = 0

    Raises:
        ValueError: if a number is out of range, or the path does not have these levels.

    Source: Karras et al. (2022), equation 5.
    """
    _refuse_steps(n)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < min < max")
    if not rho > 0:
        raise ValueError(f"rho={rho}: give a number above 0, such as 7")
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    most = math.exp(-float(schedule(1.0).log_snr) / 2)  # inf where the signal ends at 0
    if sigma_max > most * (1 + 1e-9):
        raise ValueError(
            f"sigma_max={sigma_max}: {schedule!r} reaches noise/signal {most:.4g}, "
            "give at most that"
        )
    sigma = torch.linspace(*ends, n, dtype=torch.float64) ** rho
    return _at_levels(schedule, -2 * sigma.log(), True, f"sigma_min={sigma_min}")


def _at_levels(schedule: Schedule, lam: Tensor, land: bool, finest: str) -> Tensor:
    times = schedule.t_of(lam)
    if bool((times.diff() >= 0).any()):
        top = float(schedule(FIRST).log_snr)
        raise ValueError(
            f"{finest}: {schedule!r} starts at log-SNR {top:.4g}, noise/signal "
            f"{math.exp(-top / 2):.3g}, and several levels lie above that; take noisier ones"
        )
    return check_times(torch.cat([times, times.new_zeros(1)]) if land else times)
