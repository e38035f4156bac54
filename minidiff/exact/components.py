"""The components of a mixture of Gaussians: the axes along which their entries are independent.

For :mod:`minidiff.exact.mixtures`. A component with a full covariance is an independent one in
turned coordinates, and noise looks the same in all of them; so there is one arithmetic for both.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import Level
from ..tensors import check_data


class Posterior(NamedTuple):
    """The mixture ``q(x0 | x_t)`` with independent entries.

    Attributes:
        weights: Probability of each component, shape ``(B, K)``.
        means: Shape ``(B, K, *event)``.
        variances: Variance of each entry, broadcastable to ``means``.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor


class FullPosterior(NamedTuple):
    """The mixture ``q(x0 | x_t)`` with full covariances.

    Attributes:
        weights: Probability of each component, shape ``(B, K)``.
        means: Shape ``(B, K, *event)``.
        covs: Over the D entries of a flattened event, shape ``(B or 1, K, D, D)``.
    """

    weights: Tensor
    means: Tensor
    covs: Tensor


class Upright(NamedTuple):
    """Components whose entries are independent as they are; the event keeps its shape.

    Attributes:
        centres: Means, shape ``(K, *event)``.
        scale: Standard deviations, shape ``(K, *event)``.
    """

    centres: Tensor
    scale: Tensor

    @property
    def spread(self) -> Tensor:
        """Variances, the shape of ``scale``."""
        return self.scale**2

    def to(self, x: Tensor) -> Upright:
        """Change to the dtype and device of ``x``."""
        return Upright(*(f.to(x) for f in self))

    def level(self, at: Level, x: Tensor) -> Level:
        """Shape the fields so that they multiply ``into(x)``."""
        return Level(*(f if f.ndim == 0 else f.unsqueeze(1) for f in at.over(x)))

    def into(self, x: Tensor) -> Tensor:
        """Turn ``(B, *event)`` to the axes of every component, ``(B, K, ...)``."""
        return x.unsqueeze(1)

    def back(self, value: Tensor) -> Tensor:
        """Turn ``(B, K, ...)`` back to the axes of the event, ``(B, K, *event)``."""
        return value

    def entries(self, var: Tensor) -> Tensor:
        """Variances along the axes of the event, from those along the component's own."""
        return var

    def stretch(self, which: Tensor, noise: Tensor) -> Tensor:
        """Give standard noise ``(n, *event)`` the covariance of component ``which`` of each."""
        return self.scale[which] * noise


class Turned(NamedTuple):
    """Components with full covariances, in the eigenbasis of each; methods of :class:`Upright`.

    Attributes:
        centres: Means in the eigenbasis, shape ``(K, D)``.
        scale: Roots of the eigenvalues, shape ``(K, D)``.
        axes: Eigenvectors in columns, shape ``(K, D, D)``.
        event: Shape of an event, D entries.
    """

    centres: Tensor
    scale: Tensor
    axes: Tensor
    event: torch.Size

    @property
    def spread(self) -> Tensor:
        """Eigenvalues, the shape of ``scale``."""
        return self.scale**2

    @staticmethod
    def of(means: Tensor, covs: Tensor) -> Turned:
        """Diagonalise every covariance once, in float64."""
        spread, axes = torch.linalg.eigh(covs.double())
        centres = torch.einsum("kd,kde->ke", means.reshape(len(means), -1).double(), axes)
        parts = (f.to(means) for f in (centres, spread.sqrt(), axes))
        return Turned(*parts, event=means.shape[1:])

    def to(self, x: Tensor) -> Turned:
        """Change to the dtype and device of ``x``."""
        return Turned(self.centres.to(x), self.scale.to(x), self.axes.to(x), self.event)

    def level(self, at: Level, x: Tensor) -> Level:
        """Shape the fields so that they multiply ``into(x)``, or raise: one time a sample."""
        if at.noise.ndim > 1:
            raise ValueError(
                f"t has shape {tuple(at.noise.shape)}: full covariances mix positions, give one "
                f"time, or one a sample, shape ({len(x)},)"
            )
        at = at.over(x)  # refuses another number of samples
        return Level(*(f if f.ndim == 0 else f.reshape(-1, 1, 1) for f in at))

    def into(self, x: Tensor) -> Tensor:
        """Turn ``(B, *event)`` to the axes of every component, ``(B, K, D)``."""
        return torch.einsum("bd,kde->bke", x.reshape(len(x), -1), self.axes)

    def back(self, value: Tensor) -> Tensor:
        """Turn ``(B, K, D)`` back to the axes of the event, ``(B, K, *event)``."""
        value = torch.einsum("bke,kde->bkd", value, self.axes)
        return value.reshape(*value.shape[:2], *self.event)

    def entries(self, var: Tensor) -> Tensor:
        """Variances along the axes of the event, from those along the component's own."""
        value = torch.einsum("bke,kde->bkd", var, self.axes**2)
        return value.reshape(*value.shape[:2], *self.event)

    def stretch(self, which: Tensor, noise: Tensor) -> Tensor:
        """Give standard noise ``(n, *event)`` the covariance of component ``which`` of each."""
        wide = noise.reshape(len(noise), -1)
        out = torch.empty_like(wide)
        for k, (scale, axes) in enumerate(zip(self.scale, self.axes, strict=True)):
            out[which == k] = (wide[which == k] * scale) @ axes.T
        return out.reshape(noise.shape)


class Parts(NamedTuple):
    """What the components say of ``x_t``; all but ``joint`` along their own axes.

    Attributes:
        joint: Log of weight times density, shape ``(B, K)``.
        pull: ``(x - signal m) / Var[x_t | k]``, shape ``(B, K, ...)``.
        mean: ``E[x0 | x_t, k]``, shape ``(B, K, ...)``.
        var: ``Var[x0 | x_t, k]``, shape ``(B or 1, K, ...)``.
    """

    joint: Tensor
    pull: Tensor
    mean: Tensor
    var: Tensor


def parts_of(
    components: Upright | Turned, weights: Tensor, x: Tensor, at: Level, no_width: str
) -> Parts:
    """Compare ``x`` with every component at one level; raise ``no_width`` where it has none."""
    at, turned = components.level(at, x), components.to(x)
    var = at.signal**2 * turned.spread + at.noise**2
    if not bool((var > 0).all()):
        raise ValueError(no_width)
    gap = turned.into(x) - at.signal * turned.centres
    pull = gap / var
    terms = gap * pull + var.log() + math.log(2 * math.pi)
    log_k = -terms.reshape(*gap.shape[:2], -1).sum(2) / 2
    mean = turned.centres + at.signal * turned.spread * pull
    left = turned.spread * at.noise**2 / var
    return Parts(
        weights.to(x).log() + log_k, pull, mean, left if var.ndim == gap.ndim else left[None]
    )


# ---- arguments --------------------------------------------------------------------------------


def check_covs(name: str, covs: Tensor, count: int, entries: int) -> Tensor:
    """Return symmetric, positive definite matrices ``(count, entries, entries)``, or raise."""
    covs = check_data(name, torch.as_tensor(covs))
    if covs.shape != (count, entries, entries):
        raise ValueError(
            f"{name} has shape {tuple(covs.shape)}: give {(count, entries, entries)}, a matrix a "
            "component over the entries of a flattened event"
        )
    gap, size = float((covs - covs.mT).abs().max()), float(covs.abs().max())
    if gap > torch.finfo(covs.dtype).eps ** 0.5 * size:
        raise ValueError(f"{name} differs from its transpose by {gap:.3g}: give symmetric matrices")
    covs = (covs + covs.mT) / 2
    values = torch.linalg.eigvalsh(covs.double())
    floor = entries * torch.finfo(covs.dtype).eps * values[:, -1]
    if not bool((values[:, 0] > floor).all()):
        raise ValueError(
            f"{name} has an eigenvalue of {float(values.min()):.3g}: give positive definite "
            "matrices, for instance by adding a little to the diagonal"
        )
    return covs


def positive(value: Tensor) -> bool:
    """Whether all values are positive and finite."""
    return bool(((value > 0) & torch.isfinite(value)).all())


def normalised(weights: Tensor | None, means: Tensor) -> Tensor:
    """Return one weight a component with sum 1, equal if None, or raise a ``ValueError``."""
    if weights is None:
        weights = torch.ones(len(means))
    weights = torch.as_tensor(weights, dtype=means.dtype, device=means.device)
    if weights.shape != (len(means),) or not positive(weights):
        raise ValueError(
            f"weights has shape {tuple(weights.shape)} and values from {float(weights.min())}: "
            f"give {len(means)} positive numbers"
        )
    return weights / weights.sum()


def expanded(name: str, value: Tensor, means: Tensor) -> Tensor:
    """Return ``value`` with the shape of ``means``, or raise a ``ValueError``.

    A vector is one value a component.
    """
    if value.ndim == 1 and means.ndim > 1:
        value = value.reshape(-1, *(1,) * (means.ndim - 1))
    try:
        return value.to(means).expand(means.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: it must broadcast to {tuple(means.shape)}"
        ) from None


def choose(weights: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """Draw ``n`` components on ``rng.device``, or raise if n is not a positive integer."""
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of points, at least 1")
    return torch.multinomial(weights.to(rng.device).float(), n, replacement=True, generator=rng)


def over(weights: Tensor, value: Tensor) -> Tensor:
    """Right-pad weights with axes of length 1 to the rank of ``value``."""
    return weights.reshape(*weights.shape, *(1,) * (value.ndim - weights.ndim))


def moments(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every entry of mixtures, by the law of total variance.

    Weights ``(B, K)``, the others ``(B, K, *event)`` or broadcastable to it.
    """
    weights = over(weights, means)
    mean = (weights * means).sum(1)
    return mean, (weights * (variances + (means - mean.unsqueeze(1)) ** 2)).sum(1)


def check_events(x: Tensor, means: Tensor) -> None:
    """Raise if the events of x have not the shape of those of the data."""
    if x.shape[1:] != means.shape[1:]:
        raise ValueError(
            f"x has shape {tuple(x.shape)}: this data has events of shape {tuple(means.shape[1:])}"
        )


def average(joint: Tensor, value: Tensor) -> Tensor:
    """Average ``(B, K, *event)`` over components by the softmax of ``(B, K)``."""
    return (over(joint.softmax(1), value) * value).sum(1)
