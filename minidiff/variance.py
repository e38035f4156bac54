"""Variances of the reverse step: each is a function of a :class:`~minidiff.process.Move`."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .process import Move

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
