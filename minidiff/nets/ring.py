"""The network of TimeGrad: convolutions over the channels of one hour, given a state."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .embed import TimeEmbedding


class ChannelConvolutions(nn.Module):
    r"""Map the noisy values of one hour, their time t and a state to a prediction.

    The axis of the convolutions is that of the K channels, closed to a ring, not that of time.
    Residual blocks with kernel 3 and dilations 1, 2, 1, 2, .. open a gate to the sum of what they
    see and of the state, as in DiffWave. The last layer starts at zero.

    The paper squeezes the state into one number a channel; here it has ``width`` of them. The order
    of the channels is that of the data, and neighbours on the ring mean nothing.

    Args:
        channels: K.
        state: Size of the state.
        width: Numbers a channel.
        blocks: Number of blocks.

    Source: Rasul et al. (2021), figure 2 and section 4.
    """

    def __init__(self, channels: int, state: int, *, width: int = 8, blocks: int = 8) -> None:
        super().__init__()
        self.channels, self.width, self.size = channels, width, state
        self.step = nn.Sequential(TimeEmbedding(32), nn.SiLU())
        self.spread = nn.Sequential(
            nn.Linear(state, 2 * width * channels), nn.LeakyReLU(0.4),
            nn.Linear(2 * width * channels, width * channels),
        )  # fmt: skip
        self.first = nn.Conv1d(1, width, 1)
        self.blocks = nn.ModuleList(RingBlock(width, 2 ** (i % 2)) for i in range(blocks))
        self.mix, self.last = nn.Conv1d(width, width, 1), nn.Conv1d(width, 1, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return a prediction of the shape of ``x``, ``(N, K)``; cond is a state, ``(N, state)``.

        Raises:
            ValueError: if a shape does not fit.
        """
        if x.ndim != 2 or x.shape[1] != self.channels or t.shape != x.shape[:1]:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and t {tuple(t.shape)}: give (N, {self.channels}) "
                "and (N,)"
            )
        if not isinstance(cond, Tensor) or cond.shape != (len(x), self.size):
            kind = tuple(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
            raise ValueError(f"cond is {kind}: give a state of shape ({len(x)}, {self.size})")
        h, skips = F.leaky_relu(self.first(x[:, None]), 0.4), torch.zeros(())
        step, state = self.step(t), self.spread(cond).reshape(-1, self.width, self.channels)
        for block in self.blocks:
            h, skip = block(h, step, state)
            skips = skips + skip
        h = F.leaky_relu(self.mix(skips / math.sqrt(len(self.blocks))), 0.4)
        return self.last(h).squeeze(1)


class RingBlock(nn.Module):
    """One residual block on a ring of channels: ``(N, width, K)`` to the same, and a skip."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.step = nn.Linear(32, width)
        self.look = nn.Conv1d(
            width, 2 * width, 3, dilation=dilation, padding=dilation, padding_mode="circular"
        )
        self.state, self.out = nn.Conv1d(width, 2 * width, 1), nn.Conv1d(width, 2 * width, 1)

    def forward(self, h: Tensor, step: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        y = self.look(h + self.step(step)[:, :, None]) + self.state(state)
        a, b = y.chunk(2, 1)
        rest, skip = self.out(a.sigmoid() * b.tanh()).chunk(2, 1)
        return (h + rest) / math.sqrt(2), skip
