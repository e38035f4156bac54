"""Points in the plane, made in code. Every set has mean 0 and variance near 1 an axis."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..tensors import generator


def _refuse(n: int) -> None:
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of points, at least 1")


def swiss_roll(n: int, *, noise: float = 0.05, rng: torch.Generator | None = None) -> Tensor:
    r"""A spiral of one and a half turns, shape ``(n, 2)`` (:eq:`eq:swiss-roll`).

    .. math:: x = \frac{\theta\,(\cos\theta,\,\sin\theta) - m}{c} + \text{noise}\cdot z,
        \qquad \theta \sim U(1.5\pi,\,4.5\pi)

    with :math:`m = (2, \tfrac{2}{3\pi})`, the mean of the spiral, and :math:`2c^2=\mathrm
    E\,\theta^2`, so that the mean is 0 and the variance of an axis near 1.

    Args:
        n: Number of points.
        noise: Standard deviation of the Gaussian blur.
        rng: Source of randomness.
    """
    _refuse(n)
    rng = generator(rng)
    low, high = 1.5 * math.pi, 4.5 * math.pi
    angle = low + (high - low) * torch.rand(n, generator=rng)
    scale = math.sqrt((high**3 - low**3) / (3 * (high - low)) / 2)  # root of E[angle^2] / 2
    spiral = torch.stack([angle.cos(), angle.sin()], 1) * angle[:, None]
    mean = torch.tensor([2.0, 2 / (3 * math.pi)])
    return (spiral - mean) / scale + noise * torch.randn(n, 2, generator=rng)


def eight_gaussians(n: int, *, noise: float = 0.1, rng: torch.Generator | None = None) -> Tensor:
    """Eight equal Gaussians of standard deviation ``noise`` on a circle of radius sqrt 2."""
    _refuse(n)
    rng = generator(rng)
    angle = torch.randint(8, (n,), generator=rng) * (math.pi / 4)
    centre = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    return centre + noise * torch.randn(n, 2, generator=rng)


def ring(n: int, *, noise: float = 0.05, rng: torch.Generator | None = None) -> Tensor:
    """A circle of radius sqrt 2, blurred by ``noise``."""
    _refuse(n)
    rng = generator(rng)
    angle = 2 * math.pi * torch.rand(n, generator=rng)
    circle = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)
    return circle + noise * torch.randn(n, 2, generator=rng)


def moons(n: int, *, noise: float = 0.08, rng: torch.Generator | None = None) -> Tensor:
    """Two interleaved half circles, blurred by ``noise``."""
    _refuse(n)
    rng = generator(rng)
    angle = math.pi * torch.rand(n, generator=rng)
    upper = torch.rand(n, generator=rng) < 0.5
    x = torch.where(upper, angle.cos(), 1 - angle.cos()) - 0.5
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin()) - 0.25
    spread = torch.tensor([0.866, 0.498])  # standard deviations of the clean half circles
    return torch.stack([x, y], 1) / spread + noise * torch.randn(n, 2, generator=rng)


def checkerboard(n: int, *, noise: float = 0.0, rng: torch.Generator | None = None) -> Tensor:
    """The eight dark squares of a 4 x 4 board, each filled evenly."""
    _refuse(n)
    rng = generator(rng)
    row = torch.randint(4, (n,), generator=rng)
    column = 2 * torch.randint(2, (n,), generator=rng) + row % 2
    corner = torch.stack([column, row], 1).float() + torch.rand(n, 2, generator=rng)
    return (corner - 2) * (math.sqrt(12) / 4) + noise * torch.randn(n, 2, generator=rng)


TOYS: dict[str, Callable[..., Tensor]] = {
    "swiss_roll": swiss_roll,
    "eight_gaussians": eight_gaussians,
    "ring": ring,
    "moons": moons,
    "checkerboard": checkerboard,
}
