"""Mixtures of Gaussians with one entry: integrals over the line, and maps that keep the order."""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 9.0  # standard deviations: outside a Gaussian has 2e-19 of its mass
NODES = 20  # of Gauss and Legendre in each panel
HALVINGS = 100  # of an interval: from any width down to two neighbouring floats
DEEP = -600.0  # log of the smallest probability that stays exact between two modes


def nodes(centres: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    r"""Choose points and weights that integrate a mixture's smooth functions over the line.

    The line is cut at ``centre + j width / 2`` for every component, ``|j| <= 18``, so within 9
    standard deviations of a component no panel is longer than half of one. In a panel stand 20
    points of Gauss and Legendre. The functions integrated here are ratios whose denominator is
    the density, which has no zero nearer than about 0.3 standard deviations to the real line
    where it is above 1e-6; the error of the rule is then below 1e-12 of the integral.

    Args:
        centres: float64, shape ``(K,)``.
        widths: Positive standard deviations, shape ``(K,)``.

    Returns:
        Points and weights, two vectors.
    """
    steps = torch.arange(-2 * REACH, 2 * REACH + 1, dtype=torch.float64, device=centres.device) / 2
    cuts = (centres[:, None] + widths[:, None] * steps).flatten().sort().values
    half, middle = cuts.diff() / 2, (cuts[1:] + cuts[:-1]) / 2
    inner, weights = _legendre(cuts)
    return (middle[:, None] + half[:, None] * inner).flatten(), (half[:, None] * weights).flatten()


def _legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """Points and weights on [-1, 1]: eigenvalues of the recurrence of Legendre's polynomials."""
    k = torch.arange(1, NODES, dtype=torch.float64)
    side = torch.diag(k / (4 * k**2 - 1).sqrt(), 1)
    points, vectors = torch.linalg.eigh(side + side.T)
    return points.to(like), (2 * vectors[0] ** 2).to(like)


def rearrange(z: Tensor, centres: Tensor, widths: Tensor, weights: Tensor) -> Tensor:
    r"""Find the point y with the same share of the mass below it, ``F_s(y) = F_t(x)``.

    .. math:: \sum_k w_k\bigl(\Phi(z_k) - \Phi((y-c_k)/d_k)\bigr) = 0

    with centres c, widths d and weights w (:eq:`eq:flow-cdf`). Each difference is taken between
    the smaller tails, so it keeps its digits where the two shares agree in their first twenty: far
    outside, and in the empty space between two modes. The root lies between the smallest and the
    largest of ``c_k + d_k z_k`` and is bisected.

    Args:
        z: Standardised x in each component of the first mixture, float64, shape ``(B, K)``.
        centres: Of the second mixture, broadcastable to ``z``.
        widths: Of the second mixture; 0 is a point mass.
        weights: Shape ``(K,)``.

    Returns:
        y, shape ``(B,)``; where a space between modes holds less than e^-600 of the mass, any y in
        it.
    """
    tail = torch.special.log_ndtr(-z.abs())
    outside = (z > 0).all(1) | (z < 0).all(1)
    unit = (weights.log() + tail).amax(1, keepdim=True)  # measure probabilities in e^unit
    unit = torch.where(outside[:, None], unit.clamp(min=-1e300), unit.clamp(min=DEEP))
    whole = (-unit).clamp(max=700).exp()

    def share(z: Tensor) -> tuple[Tensor, Tensor]:
        """1 above the centre and 0 below it, and what the smaller tail adds to that."""
        small = (torch.special.log_ndtr(-z.abs()) - unit).clamp(max=700).exp()
        return (z > 0).to(z), torch.where(z > 0, -small, small)

    above, rest = share(z)
    ends = centres + widths * z
    low, high = ends.amin(1), ends.amax(1)
    safe = widths.clamp(min=torch.finfo(z.dtype).tiny)
    for _ in range(HALVINGS):
        y = (low + high) / 2
        mine, more = share((y[:, None] - centres) / safe)
        ahead = (weights * ((above - mine) * whole + (rest - more))).sum(1)
        low, high = torch.where(ahead > 0, y, low), torch.where(ahead > 0, high, y)
    return (low + high) / 2
