"""Distances between samples and data. They compare sets of points, so counts matter: say them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .scoring import crps_ensemble as crps_ensemble
from .scoring import crps_fair as crps_fair
from .scoring import crps_quantile as crps_quantile
from .scoring import crps_sum as crps_sum
from .scoring import energy_score as energy_score
from .scoring import energy_score_fair as energy_score_fair
from .scoring import interval_coverage as interval_coverage
from .scoring import rank_histogram as rank_histogram
from .tensors import check_count, check_data, randn

EXACT = "donot_use_mm_for_euclid_dist"  # torch's default rounds small distances badly


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
    check_count("projections", projections)
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


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of the samples that lie among the data, and of the data among samples."""

    precision: float
    recall: float


def precision_recall(real: Tensor, fake: Tensor, *, k: int = 3) -> PrecisionRecall:
    r"""Estimate fidelity and variety apart, by nearest neighbours (:eq:`eq:precision-recall`).

    .. math:: \mathrm{precision} = \frac1M\#\bigl\{m : \exists n\;
        \lVert f_m-r_n\rVert\le d_k(r_n)\bigr\}, \qquad
        \mathrm{recall} = \frac1N\#\bigl\{n : \exists m\;
        \lVert r_n-f_m\rVert\le d_k(f_m)\bigr\}

    where :math:`d_k` is the distance of a point to the k-th nearest of its own set. Two halves of
    one data set do not reach 1; say beside a number what they reach at the same counts.

    Args:
        real: Features of data, shape ``(N, D)``; other axes are flattened.
        fake: Features of samples, shape ``(M, D)``.
        k: Which neighbour sets the radius, less than both counts.

    Raises:
        ValueError: if the columns differ in number, a value is not finite, or k is out of range.

    Source: Kynkaanniemi et al. (2019), equations 1 and 2.
    """
    real, fake = _pair(real, fake, ("real", "fake"))
    if not isinstance(k, int) or not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f"k={k!r}: give a whole number from 1 to below {min(len(real), len(fake))}, the "
            "smaller count"
        )

    def radius(points: Tensor) -> Tensor:
        gaps = torch.cdist(points, points, compute_mode=EXACT).fill_diagonal_(0)
        return gaps.kthvalue(k + 1, 1).values  # the smallest is the point itself

    gaps = torch.cdist(real, fake, compute_mode=EXACT)
    precision = (gaps <= radius(real)[:, None]).any(0).double().mean()
    recall = (gaps <= radius(fake)).any(1).double().mean()
    return PrecisionRecall(float(precision), float(recall))


def nearest(points: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Find for each point the nearest of a set.

    Args:
        points: Shape ``(N, D)``; other axes are flattened.
        others: Shape ``(M, D)``.

    Returns:
        Distances, float64, and indices into ``others``, each of shape ``(N,)``.

    Raises:
        ValueError: if the columns differ in number or a value is not finite.
    """
    points, others = _pair(points, others, ("points", "others"))
    found = [torch.cdist(part, others, compute_mode=EXACT).min(1) for part in points.split(256)]
    return torch.cat([f.values for f in found]), torch.cat([f.indices for f in found])


def memorisation(samples: Tensor, held_out: Tensor, train: Tensor) -> float:
    r"""Compare how near samples and unseen data lie to the training set (:eq:`eq:memorisation`).

    .. math:: \frac{\mathrm{median}_n\,\min_j\lVert x_n-y_j\rVert}
        {\mathrm{median}_m\,\min_j\lVert h_m-y_j\rVert}

    with samples x, held-out data h and training data y. Near 0 the samples are copies; from about
    1 on they are no nearer than data that the model has not seen. A blur is near to everything,
    so read it beside a distance between sets.

    Raises:
        ValueError: if the columns differ in number, a value is not finite, or a held-out point is
            in the training set so often that the median is 0.
    """
    return float(nearest(samples, train)[0].median()) / usual_distance(held_out, train)


def usual_distance(held_out: Tensor, train: Tensor) -> float:
    """Median distance of held-out data to the nearest training example.

    Raises:
        ValueError: as :func:`memorisation`.
    """
    usual = float(nearest(held_out, train)[0].median())
    if usual == 0:
        raise ValueError("held_out overlaps train: half of it is in there; split them first")
    return usual
