r"""The game of a GAN: its losses, and what it measures where both densities are known.

A discriminator returns a logit l; the probability that it gives to "real" is D = sigmoid(l). All
logarithms of D are taken through the logit, so nothing overflows where D is near 0 or 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..tensors import check_same_shape


def value(logit_data: Tensor, logit_gen: Tensor) -> Tensor:
    r"""Estimate the value of the game, V(D, G), from two batches (:eq:`eq:gan-value`).

    .. math:: V(D,G) = \mathrm E_{x\sim p_r}\log D(x)
        + \mathrm E_{x\sim p_g}\log\bigl(1-D(x)\bigr)

    The discriminator maximises it, the generator minimises it. V/2 + log 2 is a lower bound of the
    Jensen-Shannon divergence for every D, up to the noise of the batches.

    Args:
        logit_data: Logits of real points, shape ``(B,)``.
        logit_gen: Logits of generated points, shape ``(M,)``.

    Source: Goodfellow et al. (2014), equation 1.
    """
    return logsigmoid(logit_data).mean() + logsigmoid(-logit_gen).mean()


def discriminator_loss(logit_data: Tensor, logit_gen: Tensor) -> Tensor:
    """Return -V(D, G): the cross-entropies of "real" and of "generated". Arguments are those of
    ``value``.
    """
    return -value(logit_data, logit_gen)


def saturating_loss(logit_gen: Tensor) -> Tensor:
    r"""Return the generator's half of the value, E log(1 - D(G(z))).

    Its gradient in the logit is -D: it vanishes where the discriminator is sure of a fake, which
    is where the generator has most to learn.

    Args:
        logit_gen: Logits of generated points, shape ``(B,)``.
    """
    return logsigmoid(-logit_gen).mean()


def generator_loss(logit_gen: Tensor) -> Tensor:
    r"""Return the non-saturating loss, - E log D(G(z)).

    The same fixed point as ``saturating_loss``, but its gradient in the logit is -(1 - D): largest
    where the discriminator is sure of a fake.

    Args:
        logit_gen: Logits of generated points, shape ``(B,)``.

    Source: Goodfellow et al. (2014), section 3.
    """
    return -logsigmoid(logit_gen).mean()


# ---- what the game measures, where both densities are known -------------------------------


def optimal_discriminator(log_p_data: Tensor, log_p_gen: Tensor) -> Tensor:
    r"""Return the logit of the best discriminator against a generator (:eq:`eq:gan-optimum`).

    .. math:: D^*(x) = \frac{p_r(x)}{p_r(x)+p_g(x)},
        \qquad \operatorname{logit} D^* = \log p_r - \log p_g

    Args:
        log_p_data: Log-density of the data at some points, any shape; -inf where it is 0.
        log_p_gen: Log-density of the generator at the same points.

    Returns:
        The logit, 0 where both densities are 0 (any D is optimal there).

    Raises:
        ValueError: if the shapes differ, or a log-density is NaN or +inf.

    Source: Goodfellow et al. (2014), proposition 1.
    """
    _check_densities(log_p_data, log_p_gen)
    nowhere = torch.isneginf(log_p_data) & torch.isneginf(log_p_gen)
    return torch.where(nowhere, torch.zeros_like(log_p_data), log_p_data - log_p_gen)


def exact_value(logit: Tensor, log_p_data: Tensor, log_p_gen: Tensor, cell: float) -> Tensor:
    r"""Integrate the value of the game on a grid, for any discriminator (:eq:`eq:gan-value`).

    .. math:: V(D,G) = \int p_r\log D + p_g\log(1-D)\;dx

    At D* it is 2 JSD - 2 log 2, and for no other D is it larger.

    Args:
        logit: The discriminator on the grid, any shape.
        log_p_data: Log-density of the data there; -inf where it is 0.
        log_p_gen: Log-density of the generator there.
        cell: Length, area or volume of a cell of the grid.

    Raises:
        ValueError: if the shapes differ, a log-density is NaN or +inf, or cell is not positive.
    """
    _check_densities(log_p_data, log_p_gen)
    check_same_shape("logit", logit, "log_p_data", log_p_data)
    real = _integral(log_p_data, logsigmoid(logit), cell)
    return real + _integral(log_p_gen, logsigmoid(-logit), cell)


def js_divergence(log_p: Tensor, log_q: Tensor, cell: float) -> Tensor:
    r"""Integrate the Jensen-Shannon divergence on a grid, 0 to log 2 (:eq:`eq:gan-jsd`).

    .. math:: \mathrm{JSD}(p, q) = \tfrac12\int p\log\frac pm + q\log\frac qm\;dx,
        \qquad m = \tfrac12(p+q)

    Args:
        log_p: Log-density on the grid, any shape; -inf where it is 0.
        log_q: The other log-density there.
        cell: Length, area or volume of a cell of the grid.

    Raises:
        ValueError: if the shapes differ, a log-density is NaN or +inf, or cell is not positive.

    Source: Lin (1991), with equal weights.
    """
    _check_densities(log_p, log_q)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    return (_integral(log_p, log_p - log_m, cell) + _integral(log_q, log_q - log_m, cell)) / 2


def _integral(log_p: Tensor, f: Tensor, cell: float) -> Tensor:
    """Sum p f over the cells where p > 0: 0 times an infinite f counts as 0."""
    if not cell > 0:
        raise ValueError(f"cell={cell}: give the positive size of a grid cell")
    return torch.where(log_p.exp() == 0, torch.zeros_like(f), log_p.exp() * f).sum() * cell


def _check_densities(a: Tensor, b: Tensor) -> None:
    check_same_shape("the first log-density", a, "the second", b)
    for log_p in (a, b):
        if bool((torch.isnan(log_p) | torch.isposinf(log_p)).any()):
            raise ValueError("a log-density is NaN or inf: give finite values, or -inf for 0")
