"""Scores of probabilistic forecasts and imputations: what was drawn against what came true."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .tensors import check_count, check_mask

LEVELS = tuple(k / 20 for k in range(1, 20))
DISTANCES = 2**22  # between pairs of samples, held at a time


def crps_quantile(
    samples: Tensor,
    target: Tensor,
    *,
    scored: Tensor | None = None,
    levels: Sequence[float] = LEVELS,
) -> float:
    r"""Weighted quantile loss, which papers report under the name CRPS (:eq:`eq:crps-quantile`).

    .. math:: \frac1{|A|}\sum_{a\in A}\frac{\sum_i 2\,\bigl|(y_i-q_{a,i})
        (1\{y_i\le q_{a,i}\}-a)\bigr|}{\sum_i|y_i|}

    with target y and :math:`q_{a,i}` the quantile of its samples at level a, linear between order
    statistics (GluonTS, behind TimeGrad's numbers, takes the nearest one). Know before comparing:
    it is a ratio to the mean size of the target, so moving the origin of the scale changes it
    (standardised against raw data); few samples raise it, a calibrated forecast's by about 1/S;
    and its 19 levels leave the tails out, which puts the mean loss of a calibrated Gaussian 4.8 %
    above the exact CRPS. Never put it into one table with :func:`crps_ensemble`.

    Args:
        samples: Shape ``(S, *shape)``.
        target: Shape ``shape``, in the unit of the samples.
        scored: bool, broadcastable to the target; True = scored (None: all). Others may be NaN.
        levels: The set A, each between 0 and 1.

    Raises:
        ValueError: if shapes or mask do not fit, a scored entry is not finite, every scored target
            is 0, or a level is out of range.

    Source: Salinas et al. (2019); Tashiro et al. (2021), appendix.
    """
    if len(levels) == 0 or not all(0 < a < 1 for a in levels):
        raise ValueError(f"levels={tuple(levels)}: give numbers between 0 and 1, at least one")
    samples, target = _entries(samples, target, scored)
    size = float(target.abs().sum())
    if size == 0:
        raise ValueError("target is 0 wherever it is scored: a ratio to its size has no meaning")
    loss = 0.0
    for a, q in zip(levels, _quantiles(samples, levels), strict=True):
        loss += float((2 * (target - q) * ((target <= q).double() - a)).abs().sum())
    return loss / len(levels) / size


def crps_sum(samples: Tensor, target: Tensor, *, levels: Sequence[float] = LEVELS) -> float:
    r"""Weighted quantile loss of the sum over channels, the last axis (:eq:`eq:crps-sum`).

    .. math:: \mathrm{crps\_quantile}\Bigl(\textstyle\sum_k X_k,\;\sum_k y_k\Bigr)

    Errors that cancel in the sum cost nothing: report :func:`energy_score` too. A sum needs all its
    channels: no mask. Other arguments and errors are those of :func:`crps_quantile`.

    Source: Salinas et al. (2019); Koochali et al. (2022) on what it cannot tell apart.
    """
    samples, target = _events(samples, target)
    return crps_quantile(samples.sum(-1), target.sum(-1), levels=levels)


def crps_ensemble(samples: Tensor, target: Tensor) -> Tensor:
    r"""CRPS of the empirical distribution of the samples, exactly (:eq:`eq:crps-ensemble`).

    .. math:: \frac1S\sum_i|X_i-y| - \frac1{2S^2}\sum_{i,j}|X_i-X_j|
        = \int\bigl(F_S(z)-1\{z\ge y\}\bigr)^2\,dz

    with the step function :math:`F_S` of the S samples; one sample scores its absolute error. For
    the forecast behind them it is too large, if calibrated by 1 + 1/S; :func:`crps_fair` is not.
    Arguments and errors are those of :func:`crps_quantile`; there is no mask.

    Returns:
        One score an entry, with unit, shape and dtype of the target. To leave entries out, fill
        them with any number and average by :func:`minidiff.tensors.masked_mean`.

    Source: Gneiting and Raftery (2007), section 4.2.
    """
    error, spread = _crps_parts(samples, target)
    return (error - spread / len(samples) ** 2).to(target.dtype)


def crps_fair(samples: Tensor, target: Tensor) -> Tensor:
    r"""Estimate the CRPS of the forecast behind the samples without bias (:eq:`eq:crps-fair`).

    .. math:: \frac1S\sum_i|X_i-y| - \frac1{2S(S-1)}\sum_{i,j}|X_i-X_j|

    Its expectation is the same for every S >= 2, and a single value can be negative. Arguments and
    errors are those of :func:`crps_ensemble`, and S = 1 is refused.

    Source: Ferro (2014).
    """
    error, spread = _crps_parts(samples, target)
    return (error - spread / _fair_pairs(samples)).to(target.dtype)


def energy_score(samples: Tensor, target: Tensor) -> Tensor:
    r"""Score whole vectors: the CRPS in several dimensions (:eq:`eq:energy-score`).

    .. math:: \frac1S\sum_i\lVert X_i-y\rVert - \frac1{2S^2}\sum_{i,j}\lVert X_i-X_j\rVert

    It sees dependence between entries too, if less well than means and widths. Bring channels of
    unlike units to one scale first. Errors are those of :func:`crps_quantile`.

    Args:
        samples: Shape ``(S, *batch, D)``; an event is the last axis, so flatten longer ones.
        target: Shape ``(*batch, D)``.

    Returns:
        One score an event, shape ``batch``, dtype of the target.

    Source: Gneiting and Raftery (2007), section 4.3.
    """
    error, spread = _energy_parts(samples, target)
    return (error - spread / len(samples) ** 2).to(target.dtype)


def energy_score_fair(samples: Tensor, target: Tensor) -> Tensor:
    r"""Estimate the energy score of the forecast without bias (:eq:`eq:energy-score-fair`).

    .. math:: \frac1S\sum_i\lVert X_i-y\rVert - \frac1{2S(S-1)}\sum_{i,j}\lVert X_i-X_j\rVert

    Arguments and errors are those of :func:`energy_score`, and S = 1 is refused.
    """
    error, spread = _energy_parts(samples, target)
    return (error - spread / _fair_pairs(samples)).to(target.dtype)


def interval_coverage(
    samples: Tensor, target: Tensor, level: float = 0.9, *, scored: Tensor | None = None
) -> float:
    r"""Share of targets inside the central interval of their samples (:eq:`eq:interval-coverage`).

    .. math:: \frac1N\#\bigl\{i : q_{(1-c)/2,i}\le y_i\le q_{(1+c)/2,i}\bigr\}

    with the level c, a nominal share. A calibrated forecast reaches :math:`c\,(S-1)/(S+1)`, not c:
    for c = .9 that is .882 with 100 samples and .831 with 25 (exactly if :math:`(S-1)(1-c)/2` is
    whole or the data are uniform). Quantiles, other arguments and errors are those of
    :func:`crps_quantile`; a level not between 0 and 1 is refused.
    """
    if not 0 < level < 1:
        raise ValueError(f"level={level}: give a share between 0 and 1, such as 0.9")
    samples, target = _entries(samples, target, scored)
    low, high = _quantiles(samples, ((1 - level) / 2, (1 + level) / 2))
    return float(((low <= target) & (target <= high)).double().mean())


def rank_histogram(
    samples: Tensor, target: Tensor, *, bins: int = 10, scored: Tensor | None = None
) -> Tensor:
    r"""Histogram of the target's rank among its samples (:eq:`eq:rank-histogram`).

    .. math:: h_j = \frac1N\sum_i\frac{\bigl|[\,l_i,\;l_i+e_i+1]\cap
        \tfrac{S+1}J[\,j-1,\;j]\bigr|}{e_i+1}, \qquad j = 1,\dots,J

    where l samples lie below the target and e equal it: rank r is the interval [r, r + 1], cut
    where a bin ends, and a tie spreads over the ranks it could have. Flat if target and samples
    are exchangeable, high at the ends if the forecast is too narrow, in the middle if too wide,
    sloped if biased. Other arguments and errors are those of :func:`crps_quantile`.

    Args:
        bins: J, a positive integer; S + 1 need not be a multiple of it.

    Returns:
        Shares, float64, shape ``(bins,)``, lowest ranks first; their sum is 1.

    Source: Hamill (2001).
    """
    check_count("bins", bins)
    samples, target = _entries(samples, target, scored)
    below, ranks = (samples < target).sum(0), (samples == target).sum(0).double() + 1
    ends = [j * (len(samples) + 1) / bins for j in range(bins + 1)]
    return torch.stack([((e - below) / ranks).clamp(0, 1).mean() for e in ends]).diff()


def _entries(samples: Tensor, target: Tensor, scored: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the scored samples, shape (S, N), and targets, (N,), in float64, or raise."""
    for name, x in (("samples", samples), ("target", target)):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise ValueError(f"{name} is {getattr(x, 'dtype', type(x))}: give a floating tensor")
    if samples.ndim < 1 or samples.shape[1:] != target.shape or samples.numel() == 0:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)} and target {tuple(target.shape)}: give "
            "samples of shape (S, *shape), S >= 1, and a target of shape shape"
        )
    target = target.to(samples.device)
    if scored is None:
        samples, target = samples.reshape(len(samples), -1), target.reshape(-1)
    else:
        scored = check_mask("scored", scored, target)
        if not bool(scored.any()):
            raise ValueError("scored counts no entry: mark at least one True")
        samples, target = samples[:, scored], target[scored]
    for name, x in (("samples", samples), ("target", target)):
        if not bool(torch.isfinite(x).all()):
            raise ValueError(f"{name} holds NaN or infinite values: leave those entries out")
    return samples.double(), target.double()


def _events(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return vectors along the last axis: samples (S, N, D) and targets (N, D), float64."""
    x, y = _entries(samples, target, None)
    if target.ndim < 1:
        raise ValueError("target has shape (): give (*batch, D), where the last axis is an event")
    return x.reshape(len(x), -1, target.shape[-1]), y.reshape(-1, target.shape[-1])


def _quantiles(samples: Tensor, levels: Sequence[float]) -> Iterator[Tensor]:
    """Yield quantiles of (S, N) samples, one level at a time; torch.quantile takes 16 M entries."""
    ordered = samples.sort(0).values
    for level in levels:
        place = round(level * (len(samples) - 1), 10)  # (1 - 0.9) / 2 is not quite 0.05
        yield torch.lerp(ordered[math.floor(place)], ordered[math.ceil(place)], place % 1)


def _crps_parts(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean distance to the target and the sum of distances over unordered pairs."""
    x, y = _entries(samples, target, None)
    gap, S = (x - y).sort(0).values, len(x)
    # the k-th smallest is the larger one in k - 1 pairs and the smaller one in S - k
    times = torch.arange(1 - S, S, 2, dtype=gap.dtype, device=gap.device)
    return gap.abs().mean(0).reshape(target.shape), (times @ gap).reshape(target.shape)


def _energy_parts(samples: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the same for vectors, computed for as many events at a time as DISTANCES allows."""
    x, y = _events(samples, target)
    size, batch = max(1, DISTANCES // len(x) ** 2), target.shape[:-1]
    exact = "donot_use_mm_for_euclid_dist"  # torch's default rounds small distances badly
    gaps = (torch.cdist(z, z, compute_mode=exact) for z in x.transpose(0, 1).split(size))
    spread = torch.cat([gap.sum((1, 2)) / 2 for gap in gaps])
    return (x - y).norm(dim=-1).mean(0).reshape(batch), spread.reshape(batch)


def _fair_pairs(samples: Tensor) -> int:
    if (S := len(samples)) < 2:
        raise ValueError(f"samples holds {S} draw: the fair score needs 2 or more")
    return S * (S - 1)
