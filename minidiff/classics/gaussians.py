"""Gaussians with independent entries: a draw with gradients, the log-density, the KL divergence."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..tensors import check_same_shape, randn_like


class Gaussian(NamedTuple):
    """A Gaussian with independent entries; each field ``(B, D)``, ``log_var`` may broadcast."""

    mean: Tensor
    log_var: Tensor


def reparameterise(mean: Tensor, log_var: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
    r"""Draw from a Gaussian, with gradients in its two parameters (:eq:`eq:reparameterise`).

    .. math:: z = \mu + e^{\ell/2}\,\varepsilon, \qquad \varepsilon\sim\mathcal N(0, I),
        \quad \ell = \log\sigma^2

    Args:
        mean: Any shape.
        log_var: Broadcasts to ``mean``.
        rng: Source of the noise.

    Source: Kingma and Welling (2014), section 2.4.
    """
    return mean + (log_var / 2).exp() * randn_like(mean, rng)


def log_normal(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    r"""Return the log-density of a Gaussian, shape ``(B,)`` (:eq:`eq:log-normal`).

    .. math:: \log\mathcal N(x;\mu,e^{\ell}) = -\tfrac12\sum_i\Bigl(\log 2\pi + \ell_i
        + (x_i-\mu_i)^2 e^{-\ell_i}\Bigr)

    Args:
        x: Shape ``(B, D)``.
        mean: Shape ``(B, D)``.
        log_var: Broadcasts to ``x``.

    Raises:
        ValueError: if x and mean differ in shape.
    """
    check_same_shape("x", x, "mean", mean)
    square = (x - mean).square() * (-log_var).exp()
    return -(math.log(2 * math.pi) + log_var + square).sum(-1) / 2


def gaussian_kl(
    mean: Tensor,
    log_var: Tensor,
    other_mean: Tensor | float = 0.0,
    other_log_var: Tensor | float = 0.0,
) -> Tensor:
    r"""Return KL(q || p) of two Gaussians; p = N(0, I) unless given (:eq:`eq:gaussian-kl`).

    .. math:: \tfrac12\sum_i\Bigl(\ell^p_i - \ell^q_i - 1
        + \bigl(e^{\ell^q_i} + (\mu^q_i-\mu^p_i)^2\bigr)e^{-\ell^p_i}\Bigr)

    With p = N(0, I) the summand is :math:`e^{\ell_i}+\mu_i^2-1-\ell_i`.

    Args:
        mean: Mean of q, shape ``(B, D)``.
        log_var: Log-variance of q, of the same shape.
        other_mean: Mean of p; a number or of the same shape.
        other_log_var: Log-variance of p; a number or of the same shape.

    Returns:
        Nats, shape ``(B,)``; at least 0.

    Raises:
        ValueError: if shapes differ.

    Source: Kingma and Welling (2014), appendix B, for p = N(0, I).
    """
    for name, part in (
        ("log_var", log_var),
        ("other_mean", other_mean),
        ("other_log_var", other_log_var),
    ):
        if isinstance(part, Tensor) and part.ndim:
            check_same_shape(name, part, "mean", mean)
    to = torch.as_tensor(other_log_var, dtype=mean.dtype, device=mean.device)
    square = log_var.exp() + (mean - other_mean).square()
    return (to - log_var - 1 + square * (-to).exp()).sum(-1) / 2
