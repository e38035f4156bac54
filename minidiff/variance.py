r"""Variances of the reverse step: each is a function of a :class:`~minidiff.process.Move`.

The best one under an exact denoiser has two parts: the noise that the step would need if the clean
data were known, and the doubt about the clean data that is left. Analytic-DPM, SN and NPR are three
ways to measure the doubt.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .covariances import CLOSE
from .covariances import mean_covariance as mean_covariance
from .covariances import residual_covariance as residual_covariance
from .denoiser import Branch, Seen
from .grids import check_times
from .predictions import FAINT, eps_from_x0
from .process import Move
from .schedules import Level, Schedule

Variance = Callable[[Move], "Tensor | float"]


def posterior_variance(move: Move) -> float:
    r"""Return the posterior variance, :math:`\tilde\beta_t` of Ho et al. (:eq:`eq:beta-tilde`).

    .. math:: \tilde\beta_t = \frac{1-\bar\alpha_{t-1}}{1-\bar\alpha_t}\,\beta_t

    The right choice if the data were one known point. Under ``ddim`` it is scaled by eta squared.

    Source: Ho, Jain and Abbeel (2020), equation 7.
    """
    return move.var


def forward_variance(move: Move) -> float:
    r"""Return the variance of the forward step, Ho et al.'s :math:`\beta_t` (:eq:`eq:beta-choice`).

    The right choice if the data were standard normal.

    Source: Ho, Jain and Abbeel (2020), section 3.2.
    """
    return move.forward


# ---- the optimal variance, measured in three ways -----------------------------------------------


def analytic(
    cov: Callable[[Level], float] | Callable[[Level], Tensor], *, most: float | None = None
) -> Variance:
    r"""Return the optimal variance of a step for a mean doubt about x0 (:eq:`eq:optimal-variance`).

    .. math:: \sigma^2 = \mathrm{var} + \mathrm{add}^2\;\mathrm{Cov}[x_0\mid x_t]

    with ``var`` and ``add`` of the move; it holds for :func:`~minidiff.samplers.ancestral` and for
    :func:`~minidiff.samplers.ddim` at any eta.

    Args:
        cov: Mean variance of an entry of x0 given x_t, as a function of the level; see
            :func:`~minidiff.covariances.mean_covariance` and
            :func:`~minidiff.covariances.residual_covariance`. Values below 0, which an
            estimate may have, count as 0.
        most: Upper bound of ``cov``. Data in [a, b] cannot have more than ((b - a) / 2)**2, which
            is 1 for images in [-1, 1]; the released code clips there. None does not clip.

    Raises:
        ValueError: if ``most`` is not positive.

    Source: Bao, Li, Zhu and Zhang (2022), Analytic-DPM, theorems 1 and 2.
    """
    _check_most(most)

    def variance(move: Move) -> Tensor | float:
        doubt = cov(move.at_t)
        if isinstance(doubt, Tensor):
            return move.var + move.add**2 * doubt.clamp(0, most)
        doubt = max(doubt, 0.0)
        return move.var + move.add**2 * (doubt if most is None else min(doubt, most))

    return variance


def sn(branch: Branch, *, most: float | None = None) -> Variance:
    r"""Return the optimal variance by a head for the squared noise (:eq:`eq:sn`).

    .. math:: \mathrm{Cov}[x_0\mid x_t] = \frac{\mathrm{noise}^2}{\mathrm{signal}^2}
        \bigl(h - \hat\epsilon^2\bigr), \qquad h \approx \mathrm E[\epsilon^2\mid x_t]

    One value an entry, read from the second output of the branch's last call.

    Args:
        branch: ``model.given(cond)`` whose net was trained with ``losses.sn_loss``; the sampler
            must call this very branch, wrapped or not.
        most: Upper bound of the covariance, as in :func:`analytic`.

    Raises:
        ValueError: if ``most`` is not positive; in a step, if the branch was not called, its net
            has no second head, or signal < 1e-6.

    Source: Bao et al. (2022), Estimating the optimal covariance with imperfect mean, section 4.
    """
    return _by_head(branch, most, lambda second, eps: second - eps**2)


def npr(branch: Branch, *, most: float | None = None) -> Variance:
    r"""Return the optimal variance by a head for the squared residual (:eq:`eq:npr`).

    .. math:: \mathrm E\bigl[(x_0-\hat x_0)^2\mid x_t\bigr] =
        \frac{\mathrm{noise}^2}{\mathrm{signal}^2}\;g,
        \qquad g \approx \mathrm E\bigl[(\epsilon-\hat\epsilon)^2\mid x_t\bigr]

    which stands in the place of the covariance. With the exact mean this is :func:`sn`. With an
    imperfect one it also holds the squared error of the mean, which the best variance then needs.

    Arguments and errors are those of :func:`sn`; the head is trained with ``losses.npr_loss``.

    Source: Bao et al. (2022), Estimating the optimal covariance with imperfect mean, section 4.
    """
    return _by_head(branch, most, lambda second, eps: second)


def learned_range(branch: Branch) -> Variance:
    r"""Return a learned variance between the two fixed ones (:eq:`eq:learned-range`).

    .. math:: \log\sigma^2 = f\log\beta + (1-f)\log\tilde\beta, \qquad f = \frac{v+1}{2}

    where v is the second output of the branch's last call. Nothing holds v inside [-1, 1].

    Args:
        branch: ``model.given(cond)`` whose net was trained with ``likelihood.hybrid_loss``.

    Raises:
        ValueError: in a step, if the branch was not called, its net has no second head, or the
            posterior variance is 0 (eta = 0).

    Source: Nichol and Dhariwal (2021), equation 15.
    """

    def variance(move: Move) -> Tensor:
        if not move.clipped > 0:
            raise ValueError(
                "eta=0 leaves no posterior variance to interpolate from: use ancestral, or "
                "ddim with eta above 0, on a grid of at least two steps"
            )
        share = (_second(branch, move)[1] + 1) / 2
        return torch.exp(share * math.log(move.forward) + (1 - share) * math.log(move.clipped))

    return variance


def _by_head(
    branch: Branch, most: float | None, doubt: Callable[[Tensor, Tensor], Tensor]
) -> Variance:
    _check_most(most)

    def variance(move: Move) -> Tensor:
        seen, second = _second(branch, move)
        signal, noise = float(move.at_t.signal), float(move.at_t.noise)
        if signal < FAINT:
            raise ValueError(
                f"signal={signal:.3g} is below {FAINT}: the noise says nothing about x0 there; "
                "start the grid below t = 1"
            )
        eps = eps_from_x0(seen.x0, seen.x, move.at_t)
        cov = (noise / signal) ** 2 * doubt(second, eps)
        return move.var + move.add**2 * cov.clamp(0, most)

    return variance


def _second(branch: Branch, move: Move) -> tuple[Seen, Tensor]:
    if branch.seen is None:
        raise ValueError(
            "branch was never called: give the sampler the very branch that the variance reads"
        )
    if branch.seen.second is None:
        raise ValueError("branch has no second output: its net must return Output(y, second)")
    last, now = branch.seen.at.log_snr, move.at_t.log_snr
    if bool((last != now).any()) and not bool(((last - now).abs() <= CLOSE).all()):
        raise ValueError(
            f"branch was last called at log_snr={float(last.max()):.6g}, the move leaves from "
            f"{float(now):.6g}: give the sampler the very branch that the variance reads"
        )
    return branch.seen, branch.seen.second


def _check_most(most: float | None) -> None:
    if most is not None and not most > 0:
        raise ValueError(f"most={most}: give a positive bound, such as 1 for data in [-1, 1]")


# ---- helpers ------------------------------------------------------------------------------------


def cap_last(
    variance: Variance, schedule: Schedule, times: Tensor, *, pixels: float = 1.0
) -> Variance:
    r"""Limit the noise of the move onto the last noisy time (:eq:`eq:cap`).

    .. math:: \sigma \sqrt{2/\pi} \le \mathrm{pixels}\cdot\tfrac{2}{255}

    The mean absolute value of the noise then stays below so many grey values of an image in
    [-1, 1]. The last step, which is a denoising step, cannot remove more.

    Args:
        variance: The variance to limit.
        schedule: The path.
        times: The grid that will be sampled on.
        pixels: Grey values: 2 and 1 in the paper, by data set.

    Raises:
        ValueError: if ``pixels`` is not positive, or the grid has a single step.

    Source: Bao, Li, Zhu and Zhang (2022), Analytic-DPM, appendix F.2 (clipping of sigma_2).
    """
    times = check_times(times)
    if not pixels > 0:
        raise ValueError(f"pixels={pixels}: give a positive number of grey values, such as 1")
    noisy = times[times > 0]
    if len(noisy) < 2:
        raise ValueError(f"times has {len(noisy)} noisy time: the cap needs a step between two")
    finest = float(schedule(noisy[-1]).log_snr)
    most = (2 * pixels / 255) ** 2 * math.pi / 2

    def capped(move: Move) -> Tensor | float:
        var = variance(move)
        if abs(float(move.at_s.log_snr) - finest) > CLOSE:
            return var
        return var.clamp(max=most) if isinstance(var, Tensor) else min(var, most)

    return capped
