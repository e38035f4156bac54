r"""Solvers of the probability flow: samplers without noise, of order one and two.

All of them follow the same curve, from each starting point to one sample; they differ in how they
bend between two times. A step onto t = 0 returns the prediction itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoise
from .grids import check_times
from .predictions import FAINT
from .samplers import State, predict
from .schedules import Schedule
from .tensors import check_data, generator, randn_like


def euler(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Iterator[State]:
    r"""Follow the tangent of the flow from each time to the next (:eq:`eq:euler`).

    .. math:: x_s = x_t + (s-t)\,v(x_t,t), \qquad
        v = \frac{\mathrm{noise}'}{\mathrm{noise}}\,x
        + \Bigl(\mathrm{signal}'-\frac{\mathrm{noise}'}{\mathrm{noise}}\,\mathrm{signal}\Bigr)
        \hat x_0

    Order 1. On the linear path it is :func:`~minidiff.samplers.ddim`, step by step.

    Args:
        denoise: ``(x, t) -> x0``.
        schedule: The path that the denoiser was made for.
        x: Start, at ``times[0]``, shape ``(B, *event)``.
        times: Strictly decreasing in [0, 1].

    Yields:
        A ``State`` a step.

    Raises:
        ValueError: at the call, for a bad grid or start.

    Source: Song et al. (2021), equation 13 (the flow).
    """
    times = check_times(times)
    return _euler(denoise, check_data("x", x), times, _velocities(schedule, times))


def _velocities(schedule: Schedule, times: Tensor) -> list[tuple[float, float]]:
    """Factors of x and x0 in the velocity, for the noisy times."""
    at = schedule(times[times > 0])
    of_x = at.d_noise / at.noise
    of_x0 = at.d_signal - of_x * at.signal
    return list(zip(of_x.tolist(), of_x0.tolist(), strict=True))


def _euler(
    denoise: Denoise, x: Tensor, times: Tensor, rows: list[tuple[float, float]]
) -> Iterator[State]:
    no_grad = torch.no_grad()  # left at every yield: the caller's mode is the caller's
    for (t, s), h, (a, b) in zip(pairwise(times), times.diff().tolist(), rows, strict=False):
        with no_grad:
            x0 = predict(denoise, x, t)
            x = x0 if s == 0 else torch.add((1 + h * a) * x, x0, alpha=h * b)
        yield State(s, x, x0)


def heun(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Iterator[State]:
    r"""Average the tangents at both ends of a step (:eq:`eq:heun`).

    .. math:: \tilde x_s = x_t + (s-t)\,v(x_t,t), \qquad
        x_s = x_t + \tfrac{s-t}{2}\bigl(v(x_t,t)+v(\tilde x_s,s)\bigr)

    Order 2, two calls a step, one for the step onto t = 0. On a ``BetaTable`` the slope of the
    path jumps from step to step and order 2 is lost; :func:`edm_heun` and :func:`dpmpp_2m`, which
    ask for no slopes, keep it.

    Arguments and errors are those of :func:`euler`.

    Source: Karras et al. (2022), algorithm 1, in the time of any path.
    """
    times = check_times(times)
    return _heun(denoise, check_data("x", x), times, _velocities(schedule, times))


def _heun(
    denoise: Denoise, x: Tensor, times: Tensor, rows: list[tuple[float, float]]
) -> Iterator[State]:
    no_grad = torch.no_grad()
    for i, ((t, s), h) in enumerate(zip(pairwise(times), times.diff().tolist(), strict=True)):
        with no_grad:
            x0 = predict(denoise, x, t)
            if s == 0:
                x = x0
            else:
                (a, b), (a_s, b_s) = rows[i], rows[i + 1]
                v = torch.add(a * x, x0, alpha=b)
                guess = torch.add(x, v, alpha=h)
                v_s = torch.add(a_s * guess, predict(denoise, guess, s), alpha=b_s)
                x = torch.add(x, v + v_s, alpha=h / 2)
        yield State(s, x, x0)


def dpmpp_2m(denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor) -> Iterator[State]:
    r"""Extrapolate the prediction from the last two calls (DPM-Solver++ 2M, :eq:`eq:dpmpp`).

    .. math:: x_s = \frac{\mathrm{noise}_s}{\mathrm{noise}_t}\,x_t
        - \mathrm{signal}_s\,(e^{-h}-1)\,D, \qquad
        D = \Bigl(1+\frac{h}{2h'}\Bigr)\hat x_0 - \frac{h}{2h'}\,\hat x_0'

    with h the step in half the log-SNR, and h' and x0' those of the step before. Order 2 at one
    call a step. The first step, and a step after signal 0, has no second prediction: D = x0.

    Arguments and errors are those of :func:`euler`.

    Source: Lu et al. (2022), DPM-Solver++, algorithm 2.
    """
    times = check_times(times)
    at = schedule(times)
    half = (at.log_snr / 2).tolist()  # inf at t = 0, -inf where signal is 0
    steps = [b - a for a, b in pairwise(half)]
    rows = []
    for i, h in enumerate(steps[: int((times[1:] > 0).sum())]):
        keep = float(at.noise[i + 1] / at.noise[i])
        before = steps[i - 1] if i else 0.0
        back = h / (2 * before) if before else 0.0  # 0 too after a step of infinite length
        rows.append((keep, -float(at.signal[i + 1]) * math.expm1(-h), back))
    return _dpmpp_2m(denoise, check_data("x", x), times, rows)


def _dpmpp_2m(
    denoise: Denoise, x: Tensor, times: Tensor, rows: list[tuple[float, float, float]]
) -> Iterator[State]:
    no_grad = torch.no_grad()
    before = x
    for i, (t, s) in enumerate(pairwise(times)):
        with no_grad:
            x0 = predict(denoise, x, t)
            if s == 0:
                x = x0
            else:
                keep, add, back = rows[i]
                d = torch.add(x0, x0 - before, alpha=back) if back else x0
                x = torch.add(keep * x, d, alpha=add)
            before = x0
        yield State(s, x, x0)


def edm_heun(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    inflate: float = 1.0,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    r"""Solve the flow in the noise-to-signal ratio, with churn if asked (:eq:`eq:edm-heun`).

    .. math::

        &\hat\sigma = (1+\gamma)\,\sigma_t, \qquad
        \hat z = z_t + \mathrm{inflate}\,\sqrt{\hat\sigma^2-\sigma_t^2}\;\epsilon \\
        &d = \frac{\hat z-\hat x_0}{\hat\sigma}, \qquad
        z' = \hat z + (\sigma_s-\hat\sigma)\,d \\
        &z_s = \hat z + \tfrac{\sigma_s-\hat\sigma}{2}\Bigl(d
        + \frac{z'-\hat x_0(z',\sigma_s)}{\sigma_s}\Bigr)

    with z = x / signal and sigma = noise / signal. Order 2, two calls a step, one for the step onto
    t = 0. A step from signal 0, where sigma is infinite, is one of DDIM.

    Args:
        churn: Fresh noise of the whole chain: gamma = min(churn / n, sqrt 2 - 1) in each of the n
            steps. 0 is deterministic.
        churn_min: No churn at ratios below this.
        churn_max: No churn at ratios above this. The noise is never raised above the path's own.
        inflate: Factor of the fresh noise's standard deviation.
        rng: Source of noise.

    The other arguments are those of :func:`euler`. In Karras et al. churn, churn_min, churn_max and
    inflate are S_churn, S_tmin, S_tmax and S_noise.

    Raises:
        ValueError: at the call, for a bad grid, start or churn.

    Source: Karras et al. (2022), algorithm 2.
    """
    times = check_times(times)
    if not (churn >= 0 and 0 < inflate < math.inf and 0 <= churn_min <= churn_max):
        raise ValueError(
            f"churn={churn}, inflate={inflate}, churn_min={churn_min}, churn_max={churn_max}: need "
            "churn >= 0, inflate > 0 and finite, and 0 <= churn_min <= churn_max"
        )
    at, end = schedule(times), schedule(1.0)
    sigma = at.noise / at.signal
    gamma = min(churn / (len(times) - 1), math.sqrt(2) - 1)
    inside = (sigma >= churn_min) & (sigma <= churn_max) & (at.signal >= FAINT) & (sigma > 0)
    raised = torch.where(inside, sigma * (1 + gamma), sigma).clamp(
        max=float(end.noise / end.signal)
    )
    hot = times.clone()
    if gamma > 0 and bool(inside.any()):
        hot[inside] = schedule.t_of(-2 * raised[inside].log())
    signal = schedule(hot).signal.tolist()
    fresh = (inflate * (raised**2 - sigma**2).clamp(min=0).sqrt()).nan_to_num().tolist()
    rows = list(
        zip(at.signal.tolist(), sigma.tolist(), raised.tolist(), signal, fresh, strict=True)
    )
    return _edm_heun(denoise, check_data("x", x), times, hot, rows, at.noise.tolist(), rng)


def _edm_heun(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    hot: Tensor,
    rows: list[tuple[float, float, float, float, float]],
    noise: list[float],
    rng: torch.Generator | None,
) -> Iterator[State]:
    no_grad, rng = torch.no_grad(), generator(rng)
    for i, s in enumerate(times[1:]):
        (signal_t, _, sigma, signal, fresh), (signal_s, sigma_s, *_) = rows[i], rows[i + 1]
        with no_grad:
            if signal_t < FAINT:
                x0 = predict(denoise, x, times[i])
                keep = noise[i + 1] / noise[i]
                x = x0 if s == 0 else keep * x + (signal_s - keep * signal_t) * x0
            else:
                z = x / signal_t
                if fresh > 0:
                    z = torch.add(z, randn_like(z, rng), alpha=fresh)
                x0 = predict(denoise, signal * z, hot[i])
                if s == 0:
                    x = x0
                else:
                    d, h = (z - x0) / sigma, sigma_s - sigma
                    guess = torch.add(z, d, alpha=h)
                    d_s = (guess - predict(denoise, signal_s * guess, s)) / sigma_s
                    x = signal_s * torch.add(z, d + d_s, alpha=h / 2)
        yield State(s, x, x0)
