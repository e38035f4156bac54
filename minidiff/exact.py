"""Exact oracles: data whose denoiser, score and density are known in closed form at every level.

All three are mixtures of Gaussians with independent entries: one component, K components, or
one component of width 0 for each point of a data set. Diffusing a mixture gives a mixture, so
nothing here is an approximation.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .schedules import Level, Schedule
from .tensors import check_data, generator, randn


class GaussianMixture:
    r"""A mixture of Gaussians with independent entries (:eq:`eq:mixture`).

    .. math:: p(x_0) = \sum_k w_k\,\mathcal N(x_0;\,m_k,\,s_k^2)

    Args:
        means: Shape ``(K, *event)``.
        stds: Positive; shape ``()``, ``(K,)`` or ``(K, *event)``.
        weights: Positive, shape ``(K,)``; normalised to sum 1. Equal if None.

    Raises:
        ValueError: if shapes disagree or a value is not positive.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        means = check_data("means", torch.as_tensor(means))
        stds = torch.as_tensor(stds, dtype=means.dtype)  # a Python number in full precision
        if weights is None:
            weights = torch.ones(len(means))
        weights = torch.as_tensor(weights, dtype=means.dtype)
        if weights.shape != (len(means),) or not _positive(weights):
            raise ValueError(
                f"weights has shape {tuple(weights.shape)} and values from {float(weights.min())}: "
                f"give {len(means)} positive numbers"
            )
        if not _positive(stds):
            raise ValueError(f"stds reaches {float(stds.min())}: give positive, finite numbers")
        self.means, self.weights = means, weights / weights.sum()
        self.stds = _expand("stds", stds, means)

    def sample(self, n: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points, shape ``(n, *event)``."""
        return _draw(self.means, self.stds, self.weights, n, rng)

    def log_prob(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        r"""Log-density of ``x_t`` in nats (:eq:`eq:mixture-density`).

        .. math:: \log\sum_k w_k\,\mathcal N(x;\,\mathrm{signal}\,m_k,\,
            \mathrm{signal}^2s_k^2+\mathrm{noise}^2)

        Args:
            x: Shape ``(B, *event)``.
            t: Time; 0 is the density of the data.
            schedule: The path.

        Returns:
            Shape ``(B,)``.
        """
        return _parts(self, x, schedule(t))[0].logsumexp(1)

    def score(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        """Gradient of :meth:`log_prob` in ``x``, the shape of ``x``."""
        joint, pull, _ = _parts(self, x, schedule(t))
        return _average(joint, -pull)

    def denoiser(self, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
        r"""Return the exact ``E[x0 | x_t]`` (:eq:`eq:mixture-denoiser`).

        .. math:: \sum_k r_k(x)\Bigl(m_k + \frac{\mathrm{signal}\,s_k^2}
            {\mathrm{signal}^2s_k^2+\mathrm{noise}^2}(x-\mathrm{signal}\,m_k)\Bigr)

        where :math:`r_k` is the posterior weight of component k.
        """

        def denoise(x: Tensor, t: Tensor | float) -> Tensor:
            at = schedule(t)
            if not bool((at.noise > 0).any()):
                return x / at.over(x).signal
            joint, _, mean = _parts(self, x, at)
            return _average(joint, mean)

        return denoise


class Gaussian(GaussianMixture):
    r"""One Gaussian with independent entries: its denoiser is a straight line (:eq:`eq:gaussian`).

    .. math:: \mathrm E[x_0\mid x_t] = m + \frac{\mathrm{signal}\,s^2}
        {\mathrm{signal}^2s^2+\mathrm{noise}^2}\,(x_t-\mathrm{signal}\,m)

    Args:
        mean: Shape ``event``.
        std: Positive, broadcastable to ``mean``.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        mean = torch.as_tensor(mean)
        std = _expand("std", torch.as_tensor(std, dtype=mean.dtype), mean)
        super().__init__(mean[None], std[None])


class Empirical:
    r"""A finite data set: the mixture with one component of width 0 a point (:eq:`eq:empirical`).

    .. math:: \mathrm E[x_0\mid x_t=x] = \sum_i r_i\,x^{(i)}, \qquad
        r \propto \exp\Bigl(-\frac{\lVert x-\mathrm{signal}\,x^{(i)}\rVert^2}
        {2\,\mathrm{noise}^2}\Bigr)

    A perfectly trained network that has seen only these points is this denoiser: it reproduces
    the data set and nothing else.

    Args:
        points: Shape ``(N, *event)``.
    """

    def __init__(self, points: Tensor) -> None:
        self.means = check_data("points", torch.as_tensor(points))
        self.stds = torch.zeros_like(self.means)
        self.weights = torch.full((len(points),), 1 / len(points), dtype=self.means.dtype)

    def sample(self, n: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` of the points with replacement."""
        return _draw(self.means, self.stds, self.weights, n, rng)

    def log_prob(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        """Log-density of ``x_t`` in nats, shape ``(B,)``; needs t > 0."""
        return _parts(self, x, self._noisy(schedule, t))[0].logsumexp(1)

    def score(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        """Gradient of :meth:`log_prob` in ``x``; needs t > 0."""
        joint, pull, _ = _parts(self, x, self._noisy(schedule, t))
        return _average(joint, -pull)

    def denoiser(self, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the exact ``E[x0 | x_t]``: a softmax-weighted mean of the points."""

        def denoise(x: Tensor, t: Tensor | float) -> Tensor:
            at = schedule(t)
            if not bool((at.noise > 0).any()):
                return x / at.over(x).signal
            if not bool((at.noise > 0).all()):
                raise ValueError("t mixes 0 and noisy times: give a finite set all clean or none")
            joint, _, mean = _parts(self, x, at)
            return _average(joint, mean)

        return denoise

    @staticmethod
    def _noisy(schedule: Schedule, t: Tensor | float) -> Level:
        at = schedule(t)
        if not bool((at.noise > 0).all()):
            raise ValueError("t=0: a finite data set has no density without noise, use t > 0")
        return at


def _positive(value: Tensor) -> bool:
    return bool(((value > 0) & torch.isfinite(value)).all())


def _expand(name: str, value: Tensor, means: Tensor) -> Tensor:
    if value.ndim == 1 and means.ndim > 1:
        value = value.reshape(-1, *(1,) * (means.ndim - 1))
    try:
        return value.to(means).expand(means.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: it must broadcast to {tuple(means.shape)}"
        ) from None


def _draw(
    means: Tensor, stds: Tensor, weights: Tensor, n: int, rng: torch.Generator | None
) -> Tensor:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of points, at least 1")
    rng = generator(rng)
    which = torch.multinomial(
        weights.to(rng.device).float(), n, replacement=True, generator=rng
    ).to(means.device)
    noise = randn((n, *means.shape[1:]), rng, dtype=means.dtype, device=means.device)
    return means[which] + stds[which] * noise


def _parts(data: GaussianMixture | Empirical, x: Tensor, at: Level) -> tuple[Tensor, ...]:
    """Log joint ``(B, K)``; pull ``(x - signal m) / var`` and ``E[x0|x,k]``, ``(B, K, *event)``."""
    if x.shape[1:] != data.means.shape[1:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: this data has events of shape "
            f"{tuple(data.means.shape[1:])}"
        )
    at = Level(*(f if f.ndim == 0 else f.unsqueeze(1) for f in at.over(x)))
    means, spread = data.means.to(x), data.stds.to(x) ** 2
    var = at.signal**2 * spread + at.noise**2
    gap = x.unsqueeze(1) - at.signal * means
    pull = gap / var
    terms = gap * pull + var.log() + math.log(2 * math.pi)
    log_k = -terms.reshape(*gap.shape[:2], -1).sum(2) / 2
    return data.weights.to(x).log() + log_k, pull, means + at.signal * spread * pull


def _average(joint: Tensor, value: Tensor) -> Tensor:
    weights = joint.softmax(1).reshape(*joint.shape, *(1,) * (value.ndim - 2))
    return (weights * value).sum(1)
