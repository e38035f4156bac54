"""A residual multilayer perceptron for points: small, and enough for every 2-D experiment."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .embed import LabelEmbedding, TimeEmbedding, refuse_unused


class MLP(nn.Module):
    """Map ``(x, t, cond)`` to the shape of x; acts on the last axis of ``(B, ..., features)``.

    Each block normalises, shifts by the embedded time (and class), and adds its output to its
    input. The last layer starts at zero.

    Args:
        features: Size of the last axis of x.
        width: Hidden units.
        depth: Residual blocks.
        classes: Number of classes of ``cond``, or None for an unconditional net.
        dropout: Share of hidden units dropped in training.
    """

    def __init__(
        self,
        features: int,
        *,
        width: int = 128,
        depth: int = 3,
        classes: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.time = TimeEmbedding(width)
        self.label = None if classes is None else LabelEmbedding(classes, width)
        self.first, self.last = nn.Linear(features, width), nn.Linear(width, features)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 2 * width),
                nn.SiLU(),
                nn.Dropout(dropout),
                nn.Linear(2 * width, width),
            )
            for _ in range(depth)
        )
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Return a prediction of the shape of ``x``; t has shape ``(B,)`` or ``(B, ..., 1)``.

        Raises:
            ValueError: if x or t has another shape, or an unconditional net is given a condition.
        """
        if x.ndim < 2 or x.shape[-1] != self.first.in_features:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: give (B, ..., {self.first.in_features})"
            )
        each = t.ndim == x.ndim and all(
            a in (1, b) for a, b in zip(t.shape, (*x.shape[:-1], 1), strict=True)
        )
        if t.shape != x.shape[:1] and not each:
            raise ValueError(
                f"t has shape {tuple(t.shape)} for x of shape {tuple(x.shape)}: give (B,), or the "
                "rank of x with a last axis of 1"
            )
        now = self.time(t if t.ndim == 1 else t.squeeze(-1))
        refuse_unused(self.label, cond)
        if self.label is not None:
            label = self.label(cond, len(x))
            now = now + label.reshape(len(x), *(1,) * (now.ndim - 2), -1)
        now = now.reshape(*now.shape[:1], *(1,) * (x.ndim - now.ndim), *now.shape[1:])
        h = self.first(x)
        for block in self.blocks:
            h = h + block(h + now)
        return self.last(h)
