"""Embeddings of time and of class labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

TICKS = 1000.0  # t in [0, 1] is spread over this many units, as if it counted DDPM's steps


def sinusoidal(t: Tensor, dim: int, *, longest: float = 10_000.0) -> Tensor:
    r"""Describe a time by sines and cosines of geometric frequencies (:eq:`eq:sinusoidal`).

    .. math:: \bigl(\sin(1000\,t\,\omega_j),\;\cos(1000\,t\,\omega_j)\bigr)_{j<d/2},
        \qquad \omega_j = 10000^{-j/(d/2-1)}

    Args:
        t: Times in [0, 1], any shape.
        dim: Even, at least 4.
        longest: Ratio of the longest to the shortest period.

    Returns:
        Shape ``(*t.shape, dim)``, all sines first.

    Raises:
        ValueError: if dim is odd or less than 4.

    Source: Vaswani et al. (2017), section 3.5; spacing of the released code of Ho et al. (2020).
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim={dim}: give an even number of at least 4")
    half = dim // 2
    steps = torch.arange(half, device=t.device, dtype=t.dtype) / (half - 1)
    angle = TICKS * t[..., None] * torch.exp(-math.log(longest) * steps)
    return torch.cat([angle.sin(), angle.cos()], -1)


class TimeEmbedding(nn.Module):
    """:func:`sinusoidal` followed by a small MLP: ``t (...) -> (..., dim)``."""

    def __init__(self, dim: int, frequencies: int = 64) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.mlp = nn.Sequential(nn.Linear(frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoidal(t, self.frequencies))


class LabelEmbedding(nn.Module):
    """One vector a class and one for "no class" (index ``classes``, the null label).

    ``cond`` is None (all null) or whole numbers of shape ``(B,)`` in 0..classes. The vectors start
    at 0, so that a net begins as one without classes.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        self.null = classes
        self.table = nn.Embedding(classes + 1, dim)
        nn.init.zeros_(self.table.weight)

    def forward(self, cond: Tensor | None, n: int) -> Tensor:
        if cond is None:
            cond = torch.full((n,), self.null, device=self.table.weight.device)
        outside = cond.device.type == "cpu" and bool(((cond < 0) | (cond > self.null)).any())
        if cond.shape != (n,) or cond.is_floating_point() or outside:
            raise ValueError(
                f"cond has shape {tuple(cond.shape)}, dtype {cond.dtype} and values from "
                f"{cond.min().item()} to {cond.max().item()}: give {n} whole numbers from 0 to "
                f"{self.null} (which stands for no class)"
            )
        return self.table(cond)


def refuse_unused(label: LabelEmbedding | None, cond: Tensor | None) -> None:
    """Raise if a net without classes is given a condition, which it would silently ignore."""
    if label is None and cond is not None:
        raise ValueError(
            "cond is given, but this net has no classes: build it with classes=N, or pass None"
        )
