"""What the three models share: a plain perceptron, latent noise, and two checks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..tensors import check_data, randn


def perceptron(
    inputs: int,
    outputs: int,
    *,
    width: int,
    depth: int,
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> nn.Sequential:
    """Make a multilayer perceptron: ``depth`` hidden layers of ``width`` units, then a linear map.

    Args:
        inputs: Size of the last axis that goes in.
        outputs: Size of the last axis that comes out.
        width: Hidden units of a layer.
        depth: Hidden layers; 0 makes one linear map.
        activation: Makes the nonlinearity behind a hidden layer.

    Raises:
        ValueError: if a size is not a whole number of at least 1, or depth of at least 0.
    """
    for name, size, least in (
        ("inputs", inputs, 1),
        ("outputs", outputs, 1),
        ("width", width, 1),
        ("depth", depth, 0),
    ):
        if not isinstance(size, int) or size < least:
            raise ValueError(f"{name}={size!r}: give a whole number, at least {least}")
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Linear(width if i else inputs, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width if depth else inputs, outputs))


def latent_noise(n: int, features: int, like: nn.Module, rng: torch.Generator | None) -> Tensor:
    """Draw ``(n, features)`` standard normals of the dtype and device of a module's weights.

    Raises:
        ValueError: if n is not a whole number of at least 1.
    """
    if not isinstance(n, int) or n < 1:
        raise ValueError(f"n={n!r}: give a whole number of samples, at least 1")
    weight = next(like.parameters())
    return randn((n, features), rng, dtype=weight.dtype, device=weight.device)


def check_points(name: str, x: Tensor, features: int) -> Tensor:
    """Return ``x`` if it is finite and of shape ``(B, features)``, or raise a ``ValueError``."""
    check_data(name, x)
    if x.ndim != 2 or x.shape[1] != features:
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}: give (B, {features}); flatten images first"
        )
    return x
