"""The variational bound in its terms, its continuous limit, and the loss that trains on it.

Everything is in nats, one value an example. All names can be had from ``minidiff.likelihood``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise, Denoiser
from .grids import check_times, ddpm_steps
from .losses import Times, both_outputs, noisy, uniform_times
from .predictions import FAINT, to_x0
from .process import diffuse, moves, prior_kl
from .schedules import BetaTable, Schedule
from .tensors import bcast, check_data, check_same_shape, generator, randn_like, sum_entries
from .variance import Variance, posterior_variance

Decoder = Callable[[Tensor, Tensor, "Tensor | float"], Tensor]


def gaussian_decoder(x0: Tensor, mean: Tensor, var: Tensor | float) -> Tensor:
    r"""Return the log-density of continuous data, one value an entry (:eq:`eq:gaussian-decoder`).

    .. math:: \log p(x_0\mid x_1) = -\tfrac12\Bigl(\log(2\pi\sigma^2)
        + \frac{(x_0-\hat x_0)^2}{\sigma^2}\Bigr)

    Args:
        x0: Clean data, shape ``(B, *event)``.
        mean: Its prediction, the shape of ``x0``.
        var: Variance, a number or broadcastable to ``x0``.

    Raises:
        ValueError: if shapes differ or the variance is not positive.
    """
    var = _check_decoder(x0, mean, var)
    return -(math.log(2 * math.pi) + var.log() + (x0 - mean) ** 2 / var) / 2


def discretised_decoder(x0: Tensor, mean: Tensor, var: Tensor | float) -> Tensor:
    r"""Return the log-probability of 8-bit values in [-1, 1] (:eq:`eq:discretised-decoder`).

    .. math:: \log p(x_0\mid x_1) = \log\Bigl(\Phi\bigl(\tfrac{x_0+1/255-\hat x_0}{\sigma}\bigr)
        - \Phi\bigl(\tfrac{x_0-1/255-\hat x_0}{\sigma}\bigr)\Bigr)

    The bin of the darkest value reaches down to minus infinity, that of the brightest up to
    infinity, so the 256 probabilities sum to 1. The smaller tail is subtracted, in float64, so
    that nothing cancels far from the mean.

    Args:
        x0: Values ``2 k / 255 - 1`` with whole k from 0 to 255, shape ``(B, *event)``.
        mean: Their prediction, the shape of ``x0``.
        var: Variance, a number or broadcastable to ``x0``.

    Returns:
        The shape and dtype of ``x0``.

    Raises:
        ValueError: if shapes differ, the variance is not positive, or a value is not on the grid.

    Source: Ho, Jain and Abbeel (2020), equation 13.
    """
    var = _check_decoder(x0, mean, var).double()
    grey, std = grey_values(x0), var.sqrt()
    gap = grey / 127.5 - 1 - mean.double()
    low, high = (gap - 1 / 255) / std, (gap + 1 / 255) / std
    low = torch.where(grey == 0, torch.full_like(low, -math.inf), low)
    high = torch.where(grey == 255, torch.full_like(high, math.inf), high)
    upper = gap > 0  # mirror the bin into the lower tail, where the CDF is small and exact
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    big, small = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
    return (big + torch.log(-torch.expm1(small - big))).to(x0.dtype)


def _check_decoder(x0: Tensor, mean: Tensor, var: Tensor | float) -> Tensor:
    check_same_shape("mean", mean, "x0", x0)
    var = bcast(torch.as_tensor(var, dtype=x0.dtype, device=x0.device), x0)
    if not bool((var > 0).all()):
        raise ValueError(f"var reaches {float(var.min())}: give a positive variance")
    return var


def grey_values(x0: Tensor) -> Tensor:
    """Return the whole grey values 0..255 of data in [-1, 1] in float64, or raise."""
    grey = (x0.double() + 1) * 127.5
    whole = grey.round()
    if not bool((((grey - whole).abs() < 0.01) & (whole >= 0) & (whole <= 255)).all()):
        raise ValueError(
            f"x0 spans [{float(x0.min()):.4g}, {float(x0.max()):.4g}]: give 8-bit values as "
            "2 k / 255 - 1 with whole k from 0 to 255, or use gaussian_decoder"
        )
    return whole


# ---- the variational bound ----------------------------------------------------------------------


class Bound(NamedTuple):
    r"""The negative variational bound in its three terms (:eq:`eq:bound`), nats an example.

    .. math:: -\log p(x_0) \le L_T + \sum_{t>1} L_{t-1} + L_0

    Attributes:
        prior: L_T, shape ``(B,)``: how far the noisiest state is from where the model starts.
        steps: L_{t-1} for each step between two noisy times, noisiest first, ``(n - 1, B)``.
        decoder: L_0, shape ``(B,)``: the negative log-likelihood of the last step.
    """

    prior: Tensor
    steps: Tensor
    decoder: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on the negative log-likelihood, shape ``(B,)``."""
        return self.prior + self.steps.sum(0) + self.decoder


@torch.no_grad()
def vlb(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    variance: Variance = posterior_variance,
    decoder: Decoder = gaussian_decoder,
    rng: torch.Generator | None = None,
) -> Bound:
    r"""Estimate the negative variational bound of a chain with one draw a step (:eq:`eq:vlb`).

    .. math::

        L_T = \mathrm{KL}\bigl(q(x_T|x_0)\,\|\,p(x_T)\bigr), \qquad
        L_{t-1} = \tfrac12\sum_i\Bigl(\log\frac{\sigma^2}{\mathrm{var}}
        + \frac{\mathrm{var}+\mathrm{add}^2(x_0-\hat x_0)_i^2}{\sigma^2} - 1\Bigr), \qquad
        L_0 = -\log p(x_0\mid x_1)

    The steps are the moves of :func:`~minidiff.samplers.ancestral` (or of ``ddim`` with eta > 0)
    on this grid, so this is a bound for what that sampler draws. The mean of L_0 is the prediction;
    where the variance of that move is 0, ``move.clipped`` is taken, as in the code of Ho et al.

    Args:
        denoise: ``(x, t) -> x0``.
        schedule: The path that the denoiser was made for.
        x0: Clean data, shape ``(B, *event)``.
        times: Strictly decreasing, last 0.
        eta: Share of the noise of the reverse step, above 0 and at most 1.
        variance: Variance of the step as a function of the move.
        decoder: ``gaussian_decoder``, or ``discretised_decoder`` for 8-bit images.
        rng: Source of noise.

    Returns:
        A ``Bound``; average it over examples, and over draws.

    Raises:
        ValueError: if the grid does not end at 0, eta is 0, or a variance is not positive.

    Source: Ho, Jain and Abbeel (2020), equation 5; Song, Meng and Ermon (2021), theorem 1.
    """
    times, rng = _to_clean(times), generator(rng)
    check_data("x0", x0)
    if not eta > 0:
        raise ValueError(f"eta={eta}: a step without noise has no finite bound, give eta above 0")
    chain = moves(schedule, times, eta=eta)
    steps = []
    for t, move in zip(times[:-1], chain, strict=True):
        x = diffuse(move.at_t, x0, randn_like(x0, rng))
        guess = denoise(x, t)
        var = variance(move)
        if move is chain[-1]:
            return Bound(
                prior_kl(chain[0].at_t, x0),
                torch.stack(steps) if steps else x0.new_zeros(0, len(x0)),
                -sum_entries(decoder(x0, guess, _positive(var, move.clipped, t))),
            )
        sigma2 = torch.as_tensor(_positive(var, 0.0, t), dtype=x0.dtype, device=x0.device)
        sigma2 = bcast(sigma2, x0)
        gap = move.var + move.add**2 * (x0 - guess) ** 2
        steps.append(sum_entries((torch.log(sigma2 / move.var) + gap / sigma2 - 1) / 2))
    raise AssertionError("the last move has returned")


@torch.no_grad()
def continuous_vlb(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    times: Tensor,
    *,
    variance: Variance,
    decoder: Decoder = gaussian_decoder,
    rng: torch.Generator | None = None,
) -> Bound:
    r"""Estimate the bound of infinitely many steps (:eq:`eq:continuous-vlb`).

    .. math:: L_\infty = \tfrac12\int_{\lambda_{\mathrm{start}}}^{\lambda_{\mathrm{end}}}
        e^{\lambda}\;\mathrm E\lVert x_0-\hat x_0(x_\lambda)\rVert^2\,d\lambda

    between the first and the last noisy time. In each interval of the grid one log-SNR is drawn
    uniformly for every example, so the estimate has no bias on any grid; a finer one has less
    spread. No schedule enters but through its two ends.

    Args:
        times: Strictly decreasing, at least two noisy times and then 0; signal > 0 at the first.
        variance: Variance of the last step, a function of its move.

    The other arguments are those of :func:`vlb`.

    Raises:
        ValueError: if the grid does not end at 0 or starts at signal 0.

    Source: Kingma et al. (2021), section 5.1.
    """
    times, rng = _to_clean(times), generator(rng)
    check_data("x0", x0)
    if len(times) < 3:
        raise ValueError(f"times has {len(times)} values: give at least two noisy times and 0")
    first, final = moves(schedule, times[[0, -2, -1]], eta=1.0)
    lam = schedule(times[:-1]).log_snr
    if float(first.at_t.signal) < FAINT:
        raise ValueError(f"times start at {float(times[0])}, where signal is 0: start below that")
    steps = []
    for low, high in pairwise(lam):
        share = torch.rand(len(x0), generator=rng, dtype=torch.float64, device=rng.device)
        where = low + (high - low) * share.to("cpu")
        t = schedule.t_of(where)
        x = diffuse(schedule(t), x0, randn_like(x0, rng))
        gap = sum_entries((x0 - denoise(x, t.to(x0.device))) ** 2)
        steps.append((high - low) / 2 * where.exp().to(gap) * gap)
    x = diffuse(final.at_t, x0, randn_like(x0, rng))
    guess = denoise(x, times[-2])
    nll = -sum_entries(decoder(x0, guess, _positive(variance(final), 0.0, times[-2])))
    return Bound(prior_kl(first.at_t, x0), torch.stack(steps), nll)


def _to_clean(times: Tensor) -> Tensor:
    times = check_times(times)
    if times[-1] != 0:
        raise ValueError(f"times end at {float(times[-1])}: a likelihood of the data ends at 0")
    return times


def _positive(var: Tensor | float, instead: float, t: Tensor) -> Tensor | float:
    if isinstance(var, Tensor):
        var = torch.where(var == 0, torch.full_like(var, instead), var) if instead > 0 else var
        fine = bool((var > 0).all())
    else:
        var = instead if var == 0 else var
        fine = var > 0
    if not fine:
        raise ValueError(
            f"variance is not positive at t={float(t):.4g}: the bound is infinite there; take "
            "another variance, or a grid of more steps"
        )
    return var


# ---- training on the bound ----------------------------------------------------------------------


@lru_cache(maxsize=4)
def _columns(table: BetaTable) -> Tensor:
    """Rows ``(add, clipped, forward)`` of the moves from step i to i - 1; row i, row 0 unused."""
    chain = moves(table, ddpm_steps(table.T), eta=1.0)[::-1]
    rows = [(m.add, m.clipped, m.forward) for m in chain]
    return torch.tensor([(1.0, 1.0, 1.0), *rows], dtype=torch.float64)


def hybrid_loss(
    denoiser: Denoiser,
    x0: Tensor,
    *,
    cond: Any = None,
    weight: float = 0.001,
    decoder: Decoder = gaussian_decoder,
    times: Times = uniform_times,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Train a mean and a learned-range variance together, L_hybrid (:eq:`eq:hybrid`).

    .. math:: L_{\mathrm{hybrid}} = L_{\mathrm{simple}} + w\,L_{\mathrm{vlb}}, \qquad
        L_{\mathrm{vlb}} \approx T\,L_{t-1}/D

    In the second term the mean is held fixed, so that it trains the variance only: the net's second
    output v, which :func:`~minidiff.variance.learned_range` reads. Both terms are averages over the
    D entries of an example, L_vlb in nats (the released code counts bits, a factor 1.44).

    Args:
        denoiser: A model on a ``BetaTable`` whose net returns ``Output(y, v)``.
        x0: Clean data, shape ``(B, *event)``.
        cond: Condition, passed to the network.
        weight: w.
        decoder: ``gaussian_decoder``, or ``discretised_decoder`` for 8-bit images.
        times: ``(schedule, B, rng) -> t``, steps of the table.
        rng: Source of times and noise, in this order.

    Returns:
        One loss an example, shape ``(B,)``.

    Raises:
        ValueError: if the schedule is not a table of at least two steps, a time is not one of its
            steps 1..T, or the net has no second output, or one of another shape than x0.

    Source: Nichol and Dhariwal (2021), equations 15 and 16.
    """
    table = denoiser.schedule
    if not isinstance(table, BetaTable) or table.T < 2:
        raise ValueError(f"denoiser.schedule is {table!r}: L_hybrid needs a BetaTable of T >= 2")
    t, at, eps, x = noisy(table, x0, times, rng)
    step = (t * table.T).round().long()
    if not bool((((t * table.T - step).abs() < 1e-6) & (step > 0)).all()):
        raise ValueError("times are not steps 1..T of the table: use uniform_times, or round them")
    y, second = both_outputs(denoiser, x, t, cond)
    simple = (y - denoiser.prediction.define(at, x0, eps)) ** 2
    guess = to_x0(denoiser.prediction, y, x, at).detach()

    shape = (-1, *(1,) * (x0.ndim - 1))
    rows = _columns(table)[step.cpu()].to(x0)
    add, small, large = (column.reshape(shape) for column in rows.unbind(1))
    share = (second + 1) / 2
    log_var = share * large.log() + (1 - share) * small.log()
    var = log_var.exp()
    kl = (log_var - small.log() + (small + add**2 * (x0 - guess) ** 2) / var - 1) / 2
    first = (step == 1).to(x0.device).reshape(shape)
    # only examples at step 1 are decoded; elsewhere a safe variance keeps the gradient finite
    nll = -decoder(x0, guess, torch.where(first, var, torch.ones_like(var)))
    bound = torch.where(first, nll, kl)
    return sum_entries(simple + weight * table.T * bound) / max(1, x0[0].numel())
