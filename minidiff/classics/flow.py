"""A normalising flow of affine couplings: invertible layers whose log-determinant is a sum.

The flow maps data to noise, x -> z; sampling runs it backwards. The likelihood is exact.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tensors import check_data, generator, seeded
from .layers import check_points, latent_noise, perceptron

LARGEST = 2.0  # of a log-scale: a layer stretches an entry by at most e^2 = 7.4


class Mapped(NamedTuple):
    """Points after a map, ``(B, features)``, and its log-determinant there, ``(B,)``."""

    x: Tensor
    log_det: Tensor


class Coupling(nn.Module):
    r"""Scale and shift one part of the entries by functions of the others (:eq:`eq:coupling`).

    .. math:: y_A = x_A, \qquad y_B = x_B\,e^{s(x_A)} + b(x_A), \qquad
        \log\Bigl|\det\frac{\partial y}{\partial x}\Bigr| = \sum_{i\in B} s_i(x_A)

    The Jacobian is triangular, so its determinant is the product of the scales, and the networks
    s and b need not be invertible. s = 2 tanh(r / 2) of a raw output r lies between -2 and 2.

    Args:
        changed: bool, shape ``(features,)``: True = in B.
        width: Hidden units of a layer.
        depth: Hidden layers.

    Raises:
        ValueError: if ``changed`` is not a bool vector, or B is empty or everything.

    Source: Dinh et al. (2017), equations 4 to 8.
    """

    changed: Tensor

    def __init__(self, changed: Tensor, *, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        if changed.dtype != torch.bool or changed.ndim != 1:
            raise ValueError(
                f"changed has dtype {changed.dtype} and shape {tuple(changed.shape)}: give a bool "
                "vector, True = scaled and shifted"
            )
        if bool(changed.all()) or not bool(changed.any()):
            raise ValueError(
                f"changed selects {int(changed.sum())} of {len(changed)} entries: select some, "
                "not all"
            )
        self.register_buffer("changed", changed)
        self.net = perceptron(len(changed), 2 * len(changed), width=width, depth=depth)
        last = self.net[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)  # a new layer is the identity
        nn.init.zeros_(last.bias)

    def _scale_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """s and b of the entries in A, and 0 outside B."""
        zero = torch.zeros_like(x)
        raw, b = self.net(torch.where(self.changed, zero, x)).chunk(2, -1)
        s = LARGEST * (raw / LARGEST).tanh()
        return torch.where(self.changed, s, zero), torch.where(self.changed, b, zero)

    def forward(self, x: Tensor) -> Mapped:
        """Return y and the log-determinant of x -> y."""
        s, b = self._scale_shift(x)
        return Mapped(x * s.exp() + b, s.sum(-1))

    def inverse(self, y: Tensor) -> Mapped:
        """Return x and the log-determinant of y -> x: the networks see y_A = x_A."""
        s, b = self._scale_shift(y)
        return Mapped((y - b) * (-s).exp(), -s.sum(-1))


class Flow(nn.Module):
    """Couplings in a row; every pair of them changes each entry once.

    Args:
        features: Entries of a point, at least 2.
        layers: Number of couplings. Layer 2j changes half of the entries, chosen by a permutation
            seeded with j, and layer 2j + 1 the others.
        width: Hidden units of a coupling's network.
        depth: Hidden layers of it.

    Raises:
        ValueError: if features < 2 or layers < 1.
    """

    def __init__(self, features: int, *, layers: int = 8, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        if not isinstance(features, int) or features < 2:
            raise ValueError(f"features={features!r}: a coupling needs at least 2 entries")
        if not isinstance(layers, int) or layers < 1:
            raise ValueError(f"layers={layers!r}: give a whole number of couplings, at least 1")
        self.features = features
        self.layers = nn.ModuleList()
        for i in range(layers):
            first = torch.randperm(features, generator=seeded(i // 2)) < features // 2
            changed = first if i % 2 == 0 else ~first
            self.layers.append(Coupling(changed, width=width, depth=depth))

    def forward(self, x: Tensor) -> Mapped:
        """Map data to noise; the log-determinants of the layers add up."""
        z, log_det = check_points("x", x, self.features), x.new_zeros(len(x))
        for layer in self.layers:
            z, one = layer(z)
            log_det = log_det + one
        return Mapped(z, log_det)

    def inverse(self, z: Tensor) -> Mapped:
        """Map noise to data: the layers' inverses in reverse order."""
        x, log_det = check_points("z", z, self.features), z.new_zeros(len(z))
        for layer in reversed(self.layers):
            assert isinstance(layer, Coupling)
            x, one = layer.inverse(x)
            log_det = log_det + one
        return Mapped(x, log_det)

    def log_prob(self, x: Tensor) -> Tensor:
        r"""Return the exact log-density in nats, shape ``(B,)`` (:eq:`eq:change-of-variables`).

        .. math:: \log p(x) = \log\mathcal N\bigl(f(x);\,0, I\bigr)
            + \log\Bigl|\det\frac{\partial f}{\partial x}\Bigr|

        Train by ``-flow.log_prob(x).mean()``.

        Args:
            x: Points, shape ``(B, features)``.

        Raises:
            ValueError: if x has another shape or is not finite.

        Source: Rezende and Mohamed (2015), equation 5; Dinh et al. (2017), equation 3.
        """
        z, log_det = self(x)
        return -(z.square() + math.log(2 * math.pi)).sum(-1) / 2 + log_det

    @torch.no_grad()
    def sample(self, n: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points: the inverse of noise."""
        return self.inverse(latent_noise(n, self.features, self, rng)).x


def dequantise(x: Tensor, step: float, *, rng: torch.Generator | None = None) -> Tensor:
    r"""Spread values on a lattice evenly over their cells (:eq:`eq:lattice`).

    .. math:: \log P(x) = \log\int_{\mathrm{cell}} p(x+u)\,du
        \;\ge\; \mathrm E_u\log p(x+u) + D\log h, \qquad u\sim U[-\tfrac h2, \tfrac h2]^D

    Without it a density can rise without bound on the lattice, and its likelihood says nothing.

    Args:
        x: Values with spacing ``step``, any shape.
        step: The spacing h; 0.125 for the 17 grey levels of ``digits8x8`` in [-1, 1].
        rng: Source of u.

    Raises:
        ValueError: if step is not positive or x is not finite.

    Source: Theis et al. (2016), section 3.1.
    """
    if not 0 < step < math.inf:
        raise ValueError(f"step={step}: give the positive spacing of the values")
    check_data("x", x)
    rng = generator(rng)
    u = torch.rand(x.shape, generator=rng, dtype=x.dtype, device=rng.device) - 0.5
    return x + step * u.to(x.device)
