"""The true reverse step ``q(x_s | x_t)`` of a mixture, and how far it is from a Gaussian.

A sampler draws ``x_s`` from a Gaussian. The true distribution of ``x_s``, given nothing but
``x_t``, is Gaussian only in the limit of small steps. For a mixture it is known exactly. Public
through ``minidiff.exact``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..schedules import Level, Schedule
from .components import Posterior, Upright, check_events, moments, parts_of
from .line import nodes
from .mixtures import FullMixture, GaussianMixture

CHUNK = 1 << 21  # points times components that a quadrature looks at at once


def reverse_step(
    data: GaussianMixture,
    x: Tensor,
    t: Tensor | float,
    s: Tensor | float,
    schedule: Schedule,
) -> Posterior:
    r"""Return all of ``q(x_s | x_t)`` of a mixture, a mixture again (:eq:`eq:reverse-mixture`).

    With :math:`v_k = \mathrm{signal}_s^2s_k^2+\mathrm{noise}_s^2`, the variance of ``x_s`` in
    component k, :math:`a = \mathrm{signal}_t/\mathrm{signal}_s` and :math:`b^2 =
    \mathrm{noise}_t^2-a^2\mathrm{noise}_s^2`, the variance of the step:

    .. math:: \sum_k r_k(x)\,\mathcal N\Bigl(x_s;\;\mathrm{signal}_sm_k + \frac{a\,v_k}{a^2v_k+b^2}
        (x-\mathrm{signal}_tm_k),\;\frac{v_k\,b^2}{a^2v_k+b^2}\Bigr)

    At s = 0 it is :meth:`~minidiff.exact.mixtures.GaussianMixture.posterior`. For neighbouring
    steps of a table :math:`a^2 = 1-\beta_t` and :math:`b^2 = \beta_t`.

    Args:
        data: A mixture with independent entries, or a finite data set.
        x: ``x_t``, shape ``(B, *event)``.
        t: One time, where x is.
        s: One earlier time.
        schedule: The path.

    Returns:
        Weights ``(B, K)``, means ``(B, K, *event)`` and variances of ``x_s``.

    Raises:
        ValueError: if the data has full covariances, a time is not one number, t is not noisier
            than s, or x has events of another shape.

    Source: Bishop (2006), equation 2.116, for each component of ``x_s``.
    """
    if isinstance(data, FullMixture):
        raise ValueError(f"data is a {type(data).__name__}: give one with independent entries")
    check_events(x, data.means)
    at_t, at_s = (schedule(torch.as_tensor(time, dtype=torch.float64)) for time in (t, s))
    if at_t.noise.ndim or at_s.noise.ndim:
        raise ValueError(f"t={t}, s={s}: give one number each")
    fresh = -torch.expm1(at_t.log_snr - at_s.log_snr)
    if not float(fresh) > 0:
        raise ValueError(f"t={float(t)}, s={float(s)}: t must be noisier than s, swap them")
    width = (at_s.signal.to(x) ** 2 * data.stds.to(x) ** 2 + at_s.noise.to(x) ** 2).sqrt()
    earlier = Upright(at_s.signal.to(x) * data.means.to(x), width)
    slopes = (fresh, fresh)  # a level has derivatives in time; here they are not used
    one_step = Level(at_t.signal / at_s.signal, at_t.noise * fresh.sqrt(), *slopes)
    parts = parts_of(earlier, data.weights, x, one_step, "t and s are one level")
    return Posterior(parts.joint.softmax(1), parts.mean, parts.var)


def best_gaussian(step: Posterior) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of every entry: the closest Gaussian there is (:eq:`eq:moment-match`).

    .. math:: \mu = \sum_k r_k\mu_k, \qquad V = \sum_k r_k\bigl(V_k + (\mu_k-\mu)^2\bigr)

    Among all Gaussians with independent entries this one has the smallest KL divergence from the
    mixture.

    Args:
        step: A mixture with independent entries for each of B values.

    Returns:
        Mean and variance, both of shape ``(B, *event)``.

    Source: Bishop (2006), section 10.7.
    """
    return moments(step.weights, step.means, step.variances)


def non_gaussianity(step: Posterior) -> Tensor:
    r"""KL divergence from a mixture to its best Gaussian, in nats (:eq:`eq:non-gaussianity`).

    .. math:: D_{\mathrm{KL}}\bigl(q\,\|\,g\bigr) = \int q\log\frac qg\,dx_s
        = \int q\,(d + e^{-d} - 1)\,dx_s, \qquad d = \log\frac qg

    where g is the density of :func:`best_gaussian`. The last integrand is nowhere negative, so
    small divergences keep their digits: 1e-9 relative down to 1e-14 nats. The points of the
    integral are those of :mod:`minidiff.exact.line`; memory grows with the square of the number of
    components, a hundred at the most.

    Args:
        step: A mixture in one entry, as from :func:`reverse_step`; every variance positive.

    Returns:
        float64, shape ``(B,)``.

    Raises:
        ValueError: if an event has several entries, or a variance is not positive.

    Source: Comon (1994), who calls it negentropy.
    """
    if step.means[0, 0].numel() != 1:
        raise ValueError(f"step has events of {step.means[0, 0].numel()} entries: give one entry")
    rows = step.weights.shape
    weights, means = step.weights.double(), step.means.double().reshape(rows)
    variances = step.variances.double().reshape(-1, rows[1]).expand(rows)
    if not bool((variances > 0).all()):
        raise ValueError("step has a variance of 0: points have no density, take s > 0")
    centre, spread = best_gaussian(Posterior(weights, means, variances))
    size = max(1, CHUNK // (1500 * rows[1] ** 2))  # 740 points for each component and for g
    parts = (f.split(size) for f in (weights, means, variances, centre[:, None], spread[:, None]))
    return torch.cat([_divergence(*chunk) for chunk in zip(*parts, strict=True)])


def _divergence(
    weights: Tensor, means: Tensor, variances: Tensor, centre: Tensor, spread: Tensor
) -> Tensor:
    """Integrate q (d + e^-d - 1); each argument has shape ``(B, K)`` or ``(B, 1)``."""
    places, widths = torch.cat([means, centre], 1), torch.cat([variances, spread], 1).sqrt()
    points, shares = torch.vmap(nodes)(places, widths)
    gap = (points[:, None] - places[..., None]) / widths[..., None]
    log_each = -(gap**2) / 2 - widths.log()[..., None]
    log_q = (weights.log()[..., None] + log_each[:, :-1]).logsumexp(1)
    d = (log_q - log_each[:, -1]).clamp(min=-1e300)  # a share of 0 times minus infinity is 0
    q, g = log_q.exp(), log_each[:, -1].exp()
    # with expm1 no digit is lost where q is almost g; far below g, e^-d would overflow
    terms = torch.where(d > -1, q * (d + torch.expm1(-d)), q * (d - 1) + g)
    return (shares * terms).sum(1).clamp(min=0) / math.sqrt(2 * math.pi)
