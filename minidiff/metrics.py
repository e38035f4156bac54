"""Distances between samples and data. They compare sets of points, so counts matter: say them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .tensors import check_data, randn


def _pair(a: Tensor, b: Tensor, names: tuple[str, str] = ("a", "b")) -> tuple[Tensor, Tensor]:
    a, b = check_data(names[0], a).double(), check_data(names[1], b).double()
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"{names[0]} has {a.shape[1]} columns and {names[1]} {b.shape[1]}: they must be equal"
        )
    return a, b.to(a.device)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    r"""Squared Frechet distance between Gaussians fitted to two sets (:eq:`eq:frechet`).

    .. math:: \lVert m_a-m_b\rVert^2 + \operatorname{tr}\bigl(C_a+C_b
        - 2\,(C_a^{1/2}C_bC_a^{1/2})^{1/2}\bigr)

    With Inception features this number is called FID; with any other features it is not, so the
    course writes FD and names the features. It is biased upwards for small sets: compare only
    values at equal counts, beside the floor between two halves of real data.

    Args:
        a: Features, shape ``(N, D)``; other axes are flattened. N >= 2.
        b: Features, shape ``(M, D)``.

    Raises:
        ValueError: if the columns differ in number, a set has fewer than 2 rows, or a value is not
            finite.

    Source: Heusel et al. (2017), equation 6; Dowson and Landau (1982).
    """
    a, b = _pair(a, b)
    if min(len(a), len(b)) < 2:
        raise ValueError(f"a and b hold {len(a)} and {len(b)} rows: a covariance needs 2 or more")
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(a.shape[1], -1)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    gap = (a.mean(0) - b.mean(0)).square().sum()
    return max(float(gap + cov_a.trace() + cov_b.trace() - 2 * cross), 0.0)


def sliced_wasserstein(
    a: Tensor, b: Tensor, *, projections: int = 256, rng: torch.Generator | None = None
) -> float:
    r"""Root mean squared 2-Wasserstein distance of random one-dimensional shadows (:eq:`eq:swd`).

    .. math:: \Bigl(\mathrm E_{u}\,W_2^2(u^\top a,\,u^\top b)\Bigr)^{1/2},
        \qquad u \text{ uniform on the unit sphere}

    In one dimension the optimal plan pairs equal quantiles: the sorted points, or for sets of
    unequal size the steps of the two quantile functions.

    Args:
        a: Shape ``(N, D)``; other axes are flattened.
        b: Shape ``(M, D)``.
        projections: Number of directions.
        rng: Source of directions; pass a seeded one to compare several sets fairly.

    Raises:
        ValueError: if the columns differ in number, a value is not finite, or projections < 1.

    Source: Bonneel et al. (2015), section 4.
    """
    a, b = _pair(a, b)
    if not isinstance(projections, int) or projections < 1:
        raise ValueError(f"projections={projections!r}: give a whole number, at least 1")
    u = randn((a.shape[1], projections), rng, dtype=a.dtype, device=a.device)
    u = u / u.norm(dim=0)
    shadow_a, shadow_b = (a @ u).sort(0).values, (b @ u).sort(0).values
    if len(a) == len(b):
        return float((shadow_a - shadow_b).square().mean().sqrt())
    n, m = len(a), len(b)
    jumps = torch.cat([torch.arange(1, k + 1, dtype=a.dtype, device=a.device) / k for k in (n, m)])
    jumps = jumps.unique()  # sorted; between two of them both quantile functions are constant
    share = jumps.diff(prepend=jumps.new_zeros(1))
    inside = jumps - share / 2
    gap = shadow_a[(inside * n).long()] - shadow_b[(inside * m).long()]
    return float((share[:, None] * gap.square()).sum(0).mean().sqrt())


class Coverage(NamedTuple):
    """How samples fall on known modes.

    Attributes:
        shares: Share of the samples at each mode, shape ``(K,)``.
        inside: Their sum: the share of the samples at any mode.
        covered: Number of modes with at least the share ``least``.
    """

    shares: Tensor
    inside: float
    covered: int


def mode_coverage(
    samples: Tensor, modes: Tensor, *, radius: float, least: float = 0.02
) -> Coverage:
    r"""Count the samples near each of several known modes (:eq:`eq:mode-share`).

    .. math:: c_k = \frac1N\#\bigl\{n : \lVert x_n-m_k\rVert\le r
        \text{ and no mode is nearer}\bigr\}

    Between two modes far apart a sample counts for neither, so ``1 - inside`` holds the bridges.

    Args:
        samples: Shape ``(N, D)``; other axes are flattened.
        modes: Centres m_k, shape ``(K, D)``.
        radius: r, a distance; three standard deviations of a mode is a usual choice.
        least: Share from which on a mode counts as covered, above 0.

    Raises:
        ValueError: if the columns differ in number, a value is not finite, or radius or least is
            not positive.
    """
    samples, modes = _pair(samples, modes, ("samples", "modes"))
    if not radius > 0 or not least > 0:
        raise ValueError(f"radius={radius}, least={least}: give positive numbers")
    nearest = torch.cdist(samples, modes).min(1)
    here = nearest.indices[nearest.values <= radius]
    shares = here.bincount(minlength=len(modes)) / len(samples)
    return Coverage(shares, float(shares.sum()), int((shares >= least).sum()))
