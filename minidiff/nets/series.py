"""The network of CSDI: attention over the times of a series, and over its channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..tensors import check_mask
from .attention import attend, check_heads
from .embed import TimeEmbedding

DAY = 24.0  # hours
POSITIONS, NAMES = 64, 16  # numbers that describe a place in the window, and a channel


class Observed(NamedTuple):
    """What a network that imputes is shown: its condition.

    Attributes:
        values: Shape ``(B, L, K)``, time first; read only where known.
        known: bool, shape ``(B, L, K)``, True = observed.
        when: Hours, shape ``(B, L)``.
    """

    values: Tensor
    known: Tensor
    when: Tensor


class SeriesTransformer(nn.Module):
    r"""Map noisy values, their time t and what is known of the series to a prediction.

    Every value is a token of ``width`` numbers. Its input is a pair: the known value or 0, and the
    noisy value or 0 where it is known. Blocks of :class:`SeriesBlock` let it look along its channel
    and across its hour. The last layer starts at zero.

    Side information of a token, added in every block: the place in the window, the phase of each
    period, the channel, and whether it is known.

    Args:
        channels: K.
        width: Size of a token, a multiple of ``heads``.
        blocks: Number of blocks.
        heads: Heads of each attention.
        periods: Hours of cycles that the net is told the phase of.
        dropout: Share of units dropped in training.

    Source: Tashiro et al. (2021), section 4.3 and appendix E; the phases are ours.
    """

    def __init__(
        self,
        channels: int,
        *,
        width: int = 64,
        blocks: int = 4,
        heads: int = 8,
        periods: Sequence[float] = (DAY,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        check_heads(width, heads)
        self.channels, self.periods = channels, tuple(periods)
        self.step = nn.Sequential(TimeEmbedding(width), nn.SiLU())
        self.names = nn.Parameter(torch.randn(channels, NAMES))
        self.first = nn.Linear(2, width)
        hours = POSITIONS + 2 * len(self.periods)
        self.blocks = nn.ModuleList(
            SeriesBlock(width, hours, heads, dropout) for _ in range(blocks)
        )
        self.mix, self.last = nn.Linear(width, width), nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, t: Tensor, cond: Any) -> Tensor:
        """Return a prediction of the shape of ``x``, ``(B, L, K)``; t has shape ``(B,)``.

        Raises:
            ValueError: if a shape or the kind of ``cond`` or its mask does not fit.
        """
        self._check(x, t, cond)
        known, zero = cond.known, torch.zeros_like(x)
        pair = torch.where(known, cond.values.to(x), zero), torch.where(known, zero, x)
        h, skips = F.relu(self.first(torch.stack(pair, 3))), torch.zeros(())
        step, hours = self.step(t), self._hours(cond.when).to(x)
        for block in self.blocks:
            h, skip = block(h, step, hours, self.names, known[..., None].to(x))
            skips = skips + skip
        h = F.relu(self.mix(skips / math.sqrt(len(self.blocks))))
        return self.last(h).squeeze(3)

    def _hours(self, when: Tensor) -> Tensor:
        """Describe hours by their place in the window and the phases of the periods."""
        when = when.double()
        place = when - when[:, :1]
        rates = torch.logspace(0, -4, POSITIONS // 2, dtype=torch.float64, device=when.device)
        phases = torch.tensor(self.periods, dtype=torch.float64, device=when.device)
        angle = torch.cat([place[..., None] * rates, 2 * math.pi * when[..., None] / phases], -1)
        return torch.cat([angle.sin(), angle.cos()], -1)

    def _check(self, x: Tensor, t: Tensor, cond: Any) -> None:
        if x.ndim != 3 or x.shape[2] != self.channels or t.shape != x.shape[:1]:
            raise ValueError(
                f"x has shape {tuple(x.shape)} and t {tuple(t.shape)}: give (B, L, "
                f"{self.channels}) and (B,)"
            )
        if not isinstance(cond, Observed):
            raise ValueError(f"cond is a {type(cond).__name__}: give Observed(values, known, when)")
        known = check_mask("cond.known", cond.known, x)
        if cond.values.shape != x.shape or known.shape != cond.known.shape:
            raise ValueError(
                f"cond.values has shape {tuple(cond.values.shape)} and cond.known "
                f"{tuple(cond.known.shape)}: give that of x, {tuple(x.shape)}"
            )
        if cond.when.shape != x.shape[:2]:
            raise ValueError(
                f"cond.when has shape {tuple(cond.when.shape)}: give {tuple(x.shape[:2])}"
            )


class SeriesBlock(nn.Module):
    r"""One residual block of CSDI's network: look, open a gate, pass on and put aside.

    .. math:: \mathrm{rest},\,\mathrm{skip} = W\bigl(\sigma(a)\odot\tanh(b)\bigr),\qquad
        h \leftarrow (h + \mathrm{rest})/\sqrt2

    where a and b come from attention along time, then across channels, and from the side
    information. A window of one hour, or a series of one channel, skips that attention.

    Source: Tashiro et al. (2021), figure 7; the gate is that of DiffWave.
    """

    def __init__(self, width: int, hours: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.time = SequenceLayer(width, heads, dropout)
        self.channel = SequenceLayer(width, heads, dropout)
        self.step = nn.Linear(width, width)
        self.gates = nn.Linear(width, 2 * width)
        self.hours = nn.Linear(hours, 2 * width, bias=False)
        self.name = nn.Linear(NAMES, 2 * width, bias=False)
        self.known = nn.Linear(1, 2 * width, bias=False)
        self.out = nn.Linear(width, 2 * width)

    def forward(
        self, h: Tensor, step: Tensor, hours: Tensor, names: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        n, length, k, width = h.shape
        y = h + self.step(step)[:, None, None]
        if length > 1:
            y = self.time(y.transpose(1, 2).reshape(n * k, length, width))
            y = y.reshape(n, k, length, width).transpose(1, 2)
        if k > 1:
            y = self.channel(y.reshape(n * length, k, width)).reshape(h.shape)
        side = self.hours(hours)[:, :, None] + self.name(names) + self.known(known)
        a, b = (self.gates(y) + side).chunk(2, 3)
        rest, skip = self.out(a.sigmoid() * b.tanh()).chunk(2, 3)
        return (h + rest) / math.sqrt(2), skip


class SequenceLayer(nn.Module):
    """One layer of a transformer, its norms behind the sums: ``(N, S, width)`` to the same.

    Source: Vaswani et al. (2017), section 3; with SiLU.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.after_look, self.after_think = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        q, k, v = self.qkv(h).chunk(3, 2)
        h = self.after_look(h + self.drop(self.out(attend(q, k, v, self.heads))))
        return self.after_think(h + self.drop(self.narrow(F.silu(self.wide(h)))))
