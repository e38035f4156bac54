"""Denoising losses: draw a time and noise, predict, compare; and how much each time counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoiser
from .predictions import FAINT, Prediction
from .process import diffuse
from .schedules import Level, Schedule
from .tensors import (
    check_data,
    check_mask,
    check_same_shape,
    generator,
    masked_mean,
    randn_like,
)
from .times import Importance as Importance
from .times import Times as Times
from .times import log_normal_times as log_normal_times
from .times import low_discrepancy_times as low_discrepancy_times
from .times import uniform_times as uniform_times

Weight = Callable[[Level], Tensor]


# ---- weights: factors of |x0 - prediction|^2 ---------------------------------------------------


def snr(at: Level) -> Tensor:
    r"""Weigh by the signal-to-noise ratio: the loss of the noise (:eq:`eq:weight-snr`).

    .. math:: w = \frac{\mathrm{signal}^2}{\mathrm{noise}^2}

    Not finite at clean data, like :func:`p2`, :func:`edm` and :func:`elbo`: do not score those
    entries.

    Source: Ho, Jain and Abbeel (2020), equation 14, written for x0.
    """
    return (at.signal / at.noise) ** 2


def min_snr(gamma: float = 5.0) -> Weight:
    r"""Weigh by the signal-to-noise ratio up to a ceiling (:eq:`eq:weight-min-snr`).

    .. math:: w = \min(\mathrm{SNR}, \gamma)

    Args:
        gamma: The ceiling, above 0.

    Raises:
        ValueError: if gamma is not above 0.

    Source: Hang et al. (2023), section 3.4.
    """
    if not gamma > 0:
        raise ValueError(f"gamma={gamma}: give a ceiling above 0, such as 5")
    return lambda at: snr(at).clamp(max=gamma)


def p2(gamma: float = 1.0, k: float = 1.0) -> Weight:
    r"""Weigh down the steps with little noise (:eq:`eq:weight-p2`).

    .. math:: w = \frac{\mathrm{SNR}}{(k+\mathrm{SNR})^\gamma}

    As a factor of the squared error of the noise it is :math:`1/(k+\mathrm{SNR})^\gamma`: its
    numerator is 1, because L_simple is where it starts from. The weights are not normalised, so a
    larger gamma also means a smaller learning rate.

    Args:
        gamma: Strength; 0 is :func:`snr`.
        k: Above 0; bounds the factor by ``1 / k**gamma``.

    Raises:
        ValueError: if gamma is below 0 or k is not above 0.

    Source: Choi et al. (2022), perception prioritized weighting.
    """
    if not (gamma >= 0 and k > 0):
        raise ValueError(f"gamma={gamma}, k={k}: need gamma >= 0 and k > 0")
    return lambda at: snr(at) / (k + snr(at)) ** gamma


def edm(sigma_data: float = 0.5) -> Weight:
    r"""Weigh so that EDM's network has targets of variance 1 everywhere (:eq:`eq:weight-edm`).

    .. math:: w = \frac{\sigma^2+\sigma_d^2}{(\sigma\,\sigma_d)^2} = \frac1{c_{\mathrm{out}}^2},
        \qquad \sigma = \frac{\mathrm{noise}}{\mathrm{signal}}

    Args:
        sigma_data: Standard deviation of the data, above 0.

    Raises:
        ValueError: if sigma_data is not above 0.

    Source: Karras et al. (2022), table 1.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data={sigma_data}: give the standard deviation of the data")
    return lambda at: snr(at) + 1 / sigma_data**2


def elbo(at: Level) -> Tensor:
    r"""Weigh as the variational bound does in continuous time (:eq:`eq:weight-elbo`).

    .. math:: w = -\frac12\frac{\mathrm d\,\mathrm{SNR}}{\mathrm dt}
        = \frac{\mathrm{signal}\,(\mathrm{signal}\;\mathrm{noise}'
        - \mathrm{noise}\;\mathrm{signal}')}{\mathrm{noise}^3}

    With it the expected sum of squared errors over uniform times is the bound's diffusion term in
    nats. On a ``BetaTable`` the derivative is that of its interpolated path.

    Source: Kingma et al. (2021), equation 16.
    """
    return at.signal * (at.signal * at.d_noise - at.noise * at.d_signal) / at.noise**3


# ---- the loss of a denoiser --------------------------------------------------------------------


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
        weight: Function of the level that multiplies the squared error of x0. Times at which
            signal is below 1e-6, where eps says nothing about x0, move to where it is just above.
        times: ``(schedule, B, rng) -> t``.
        rng: Source of times and noise, in this order.

    Returns:
        The shape of ``x0``.

    Raises:
        ValueError: if x0 is not finite and floating, or known is not a bool mask of its shape.

    Source: Ho, Jain and Abbeel (2020), equation 14.
    """
    if weight is not None:
        times = _audible(times)
    t, at, eps, x_t = noisy(denoiser.schedule, x0, times, rng)
    if known is not None:
        x_t = torch.where(check_mask("known", known, x0), x0, x_t)
    if weight is None:
        return (denoiser.raw(x_t, t, cond).y - denoiser.prediction.define(at, x0, eps)) ** 2
    return weight(at) * (denoiser(x_t, t, cond) - x0) ** 2


def _audible(times: Times) -> Times:
    """Move times at which the signal is too faint to the last one at which it is not."""

    def moved(schedule: Schedule, n: int, rng: torch.Generator) -> Tensor:
        t = times(schedule, n, rng)
        faint = schedule(t).signal < FAINT
        if not bool(faint.any()):
            return t
        return torch.where(faint, schedule.t_of(torch.full_like(t, 2 * math.log(1.01 * FAINT))), t)

    return moved


def noisy(
    schedule: Schedule, x0: Tensor, times: Times, rng: torch.Generator | None
) -> tuple[Tensor, Level, Tensor, Tensor]:
    """Draw times, then noise; return ``(t, at, eps, x_t)``."""
    check_data("x0", x0)
    rng = generator(rng)
    t = times(schedule, len(x0), rng)
    at = schedule(t).over(x0)
    eps = randn_like(x0, rng)
    return t, at, eps, diffuse(at, x0, eps)


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


# ---- losses of a second head -------------------------------------------------------------------


def sn_loss(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    cond: Any = None,
    times: Times = uniform_times,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Teach the second head the squared noise (:eq:`eq:sn-loss`).

    .. math:: \frac1D\sum_{i=1}^D\bigl(h_\theta(x_t,t)_i - \epsilon_i^2\bigr)^2

    Its minimum is :math:`\mathrm E[\epsilon^2\mid x_t]`; minus the squared mean that is the
    variance of the noise, which ``variance.sn`` uses. The first output gets no gradient.

    Args:
        denoiser: A model whose net returns ``Output(y, second)``.
        x0: Clean data, shape ``(B, *event)``, finite.
        cond: Condition, passed to the network.
        times: ``(schedule, B, rng) -> t``.
        rng: Source of times and noise, in this order.

    Returns:
        One loss an example, shape ``(B,)``.

    Raises:
        ValueError: if the net has no second output, or one of another shape than x0.

    Source: Bao et al. (2022), optimal covariance with imperfect mean: SN-DPM.
    """
    t, _, eps, x_t = noisy(denoiser.schedule, x0, times, rng)
    _, second = both_outputs(denoiser, x_t, t, cond)
    return ((second - eps**2) ** 2).reshape(len(x0), -1).mean(1)


def npr_loss(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    cond: Any = None,
    times: Times = uniform_times,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Teach the second head the squared error of the predicted noise (:eq:`eq:npr-loss`).

    .. math:: \frac1D\sum_{i=1}^D
        \bigl(g_\theta(x_t,t)_i - (\epsilon_i - \hat\epsilon_i)^2\bigr)^2

    The prediction :math:`\hat\epsilon` is what the net's first output implies, without gradient.
    Unlike :func:`sn_loss` it accounts for a mean that is wrong.

    The arguments, the result and the errors are those of :func:`sn_loss`.

    Source: Bao et al. (2022), optimal covariance with imperfect mean: NPR-DPM.
    """
    t, at, eps, x_t = noisy(denoiser.schedule, x0, times, rng)
    y, second = both_outputs(denoiser, x_t, t, cond)
    eps_hat = _implied_noise(denoiser.prediction, y.detach(), x_t, at)
    return ((second - (eps - eps_hat) ** 2) ** 2).reshape(len(x0), -1).mean(1)


def both_outputs(denoiser: Denoiser, x_t: Tensor, t: Tensor, cond: Any) -> tuple[Tensor, Tensor]:
    """Return ``(y, second)``, or raise if the net has no second output of the shape of x."""
    y, second = denoiser.raw(x_t, t, cond)
    if second is None:
        raise ValueError("denoiser has no second output: let its net return Output(y, second)")
    check_same_shape("second", second, "x0", x_t)
    return y, second


def _implied_noise(prediction: Prediction, y: Tensor, x: Tensor, at: Level) -> Tensor:
    """Solve ``y = a x0 + b eps`` and ``x = signal x0 + noise eps`` for eps.

    The way round over x0 would fail where no signal is left, which training times reach.
    """
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    a, b = prediction.define(at, one, zero), prediction.define(at, zero, one)
    both = (at.signal * y - a * x) / (at.signal * b - at.noise * a)
    return torch.where(a == 0, y / b, both)
