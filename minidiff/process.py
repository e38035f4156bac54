"""The forward process and its exact reversal: what is known before any network is trained."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .schedules import Level, Schedule
from .tensors import check_same_shape, sum_entries


def diffuse(at: Level, x0: Tensor, eps: Tensor) -> Tensor:
    r"""Jump from clean data to the noise level ``at`` (:eq:`eq:jump`).

    .. math:: x_t = \mathrm{signal}(t)\, x_0 + \mathrm{noise}(t)\, \epsilon

    Args:
        at: Level of the path; scalar, one a sample, or broadcastable to ``x0``.
        x0: Clean data, shape ``(B, *event)``.
        eps: Standard normal noise, the shape of ``x0``.

    Returns:
        ``x_t``, the shape, dtype and device of ``x0``.

    Raises:
        ValueError: if ``eps`` and ``x0`` differ in shape, or the level does not broadcast.

    Source: Ho, Jain and Abbeel (2020), equation 4.
    """
    check_same_shape("eps", eps, "x0", x0)
    at = at.over(x0)
    return at.signal * x0 + at.noise * eps


def step_forward(at_s: Level, at_t: Level, x_s: Tensor, eps: Tensor) -> Tensor:
    r"""Walk one step of the chain, from level s to the noisier level t (:eq:`eq:step`).

    .. math:: x_t = a\,x_s + \sqrt{\mathrm{noise}_t^2 - a^2\,\mathrm{noise}_s^2}\;\epsilon,
        \qquad a = \mathrm{signal}_t/\mathrm{signal}_s

    For neighbouring steps of a table this is :math:`\sqrt{1-\beta_t}\,x_{t-1}+\sqrt{\beta_t}\,
    \epsilon`.

    Args:
        at_s: Level of ``x_s``.
        at_t: A noisier level.
        x_s: Shape ``(B, *event)``.
        eps: Standard normal noise, the shape of ``x_s``.

    Raises:
        ValueError: if shapes differ, or t is not noisier than s.

    Source: Ho, Jain and Abbeel (2020), equation 2; Kingma et al. (2021), equations 20 to 22.
    """
    check_same_shape("eps", eps, "x_s", x_s)
    at_s, at_t = at_s.over(x_s), at_t.over(x_s)
    fresh = _fresh_share(at_t, at_s)
    return at_t.signal / at_s.signal * x_s + at_t.noise * fresh.sqrt() * eps


class Transition(NamedTuple):
    """A Gaussian with independent entries.

    Attributes:
        mean: Shape ``(B, *event)``.
        var: Variance of each entry, broadcastable to ``mean``.
    """

    mean: Tensor
    var: Tensor


def posterior(at_t: Level, at_s: Level, x_t: Tensor, x0: Tensor) -> Transition:
    r"""Reverse a step when the clean data is known: ``q(x_s | x_t, x0)`` (:eq:`eq:posterior`).

    .. math::

        \text{mean} = \frac{a\,\mathrm{noise}_s^2}{\mathrm{noise}_t^2}\,x_t
            + \frac{\mathrm{signal}_s\,\beta_{t|s}}{\mathrm{noise}_t^2}\,x_0,
        \qquad
        \text{var} = \frac{\mathrm{noise}_s^2}{\mathrm{noise}_t^2}\,\beta_{t|s}

    with :math:`a = \mathrm{signal}_t/\mathrm{signal}_s` and
    :math:`\beta_{t|s} = \mathrm{noise}_t^2 - a^2\mathrm{noise}_s^2`. Holds for any s < t. At
    neighbouring steps of a table these are Ho et al.'s :math:`\tilde\mu_t` and
    :math:`\tilde\beta_t`.

    Args:
        at_t: Level of ``x_t``.
        at_s: A cleaner level.
        x_t: Shape ``(B, *event)``.
        x0: Clean data, the shape of ``x_t``.

    Raises:
        ValueError: if shapes differ, or s is not cleaner than t.

    Source: Ho, Jain and Abbeel (2020), equations 6 and 7.
    """
    check_same_shape("x0", x0, "x_t", x_t)
    at_t, at_s = at_t.over(x_t), at_s.over(x_t)
    fresh = _fresh_share(at_t, at_s)
    keep = at_t.signal / at_s.signal * (at_s.noise / at_t.noise) ** 2
    return Transition(keep * x_t + at_s.signal * fresh * x0, at_s.noise**2 * fresh)


def _fresh_share(at_t: Level, at_s: Level) -> Tensor:
    """Share of the noise variance at t that is younger than s: ``1 - exp(log_snr_t - log_snr_s)``.

    Through the log-SNR the small number is computed without cancellation.
    """
    fresh = -torch.expm1(at_t.log_snr - at_s.log_snr)
    if not bool((fresh > 0).all()):
        raise ValueError("at_t must be noisier than at_s everywhere: swap them, or choose s < t")
    return fresh


class Move(NamedTuple):
    r"""One step of a sampler of the DDPM/DDIM family (:eq:`eq:move`).

    .. math:: x_s = \mathrm{keep}\,x_t + \mathrm{add}\,\hat x_0 + \sqrt{\text{variance}}\;z

    Attributes:
        at_t: Level that is left, scalars in float64.
        at_s: Level that is reached, scalars in float64.
        keep: Factor of ``x_t``.
        add: Factor of the prediction of ``x0``.
        var: ``eta**2`` times the posterior variance (beta tilde for neighbouring steps).
        forward: Variance of the forward step from s to t (beta for neighbouring steps).
        clipped: ``var``; for the move onto clean data, where that is 0, ``var`` of the move
            before it, as in the code of Ho et al. (0 if there is none).
    """

    at_t: Level
    at_s: Level
    keep: float
    add: float
    var: float
    forward: float
    clipped: float


def moves(schedule: Schedule, times: Tensor, *, eta: float) -> list[Move]:
    r"""Compute all moves of a grid at once, in float64 (:eq:`eq:ddim`).

    .. math::

        \mathrm{var} = \eta^2\,\frac{\mathrm{noise}_s^2}{\mathrm{noise}_t^2}\,\beta_{t|s},
        \qquad
        \mathrm{keep} = \frac{\sqrt{\mathrm{noise}_s^2 - \mathrm{var}}}{\mathrm{noise}_t},
        \qquad
        \mathrm{add} = \mathrm{signal}_s - \mathrm{keep}\;\mathrm{signal}_t

    With eta = 1 the mean is that of :func:`posterior`. The move onto t = 0 has keep 0 and add 1.

    Args:
        schedule: The path.
        times: Strictly decreasing, ``n + 1`` values in [0, 1].
        eta: 0 is deterministic (DDIM), 1 is ancestral (DDPM).

    Raises:
        ValueError: if eta is not in [0, 1], or two times are one level.

    Source: Song, Meng and Ermon (2021), equations 12 and 16.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta}: give a number from 0 (deterministic) to 1 (ancestral)")
    at = schedule(times)
    if not bool((at.log_snr.diff() > 0).all()):
        raise ValueError(f"times: two of them are one level of {schedule!r}, take larger steps")
    at_t, at_s = Level(*(f[:-1] for f in at)), Level(*(f[1:] for f in at))
    fresh = _fresh_share(at_t, at_s)
    keep = at_s.noise / at_t.noise * (1 - eta**2 * fresh).clamp(min=0).sqrt()
    add = at_s.signal - keep * at_t.signal
    var, forward = eta**2 * at_s.noise**2 * fresh, at_t.noise**2 * fresh
    clipped = torch.where(var > 0, var, torch.cat([var.new_zeros(1), var[:-1]]))
    columns = (f.tolist() for f in (keep, add, var, forward, clipped))
    levels = [Level(*row) for row in zip(*(f.unbind() for f in at), strict=True)]
    return [Move(*row) for row in zip(levels[:-1], levels[1:], *columns, strict=True)]


def drift_diffusion(at: Level) -> tuple[Tensor, Tensor]:
    r"""Drift and squared diffusion of the SDE with the same marginals (:eq:`eq:sde`).

    .. math:: dx = f\,x\,dt + g\,dw, \qquad f = \frac{\mathrm{signal}'}{\mathrm{signal}},
        \qquad g^2 = 2\,\mathrm{noise}\,\mathrm{noise}' - 2 f\,\mathrm{noise}^2

    Returns:
        ``(f, g2)``, the shape of the level's fields.

    Raises:
        ValueError: where the drift is infinite (signal 0) or undefined (VP at t = 0).

    Source: Song et al. (2021), appendix B; Karras et al. (2022), appendix B.2.
    """
    f = at.d_signal / at.signal
    g2 = 2 * at.noise * at.d_noise - 2 * f * at.noise**2
    if not bool((torch.isfinite(f) & torch.isfinite(g2)).all()):
        raise ValueError(
            f"at has signal {float(at.signal.min()):.3g} and noise {float(at.noise.min()):.3g}: "
            "the SDE is singular there, stay inside 0 < t < 1"
        )
    return f, g2


def prior_kl(at: Level, x0: Tensor) -> Tensor:
    r"""KL divergence from ``q(x_t | x0)`` to the prior, in nats (:eq:`eq:prior-kl`).

    .. math:: \frac12\sum_i\Bigl(\frac{\mathrm{signal}^2x_{0,i}^2+\mathrm{noise}^2}{s^2}
        - 1 - \log\frac{\mathrm{noise}^2}{s^2}\Bigr),
        \qquad s^2 = \mathrm{signal}^2+\mathrm{noise}^2

    Returns:
        One value a sample, shape ``(B,)``.

    Source: Ho, Jain and Abbeel (2020), the term L_T of equation 5.
    """
    at = at.over(x0)
    total = at.signal**2 + at.noise**2
    share = at.noise**2 / total
    terms = (at.signal**2 * x0**2 / total + share - 1 - share.log()) / 2
    return sum_entries(terms.expand(x0.shape))
