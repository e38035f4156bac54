"""The U-Net: an image goes down to a few coarse pixels and up again, with shortcuts across."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import SelfAttention
from .embed import LabelEmbedding, TimeEmbedding, refuse_unused

GROUP = 16  # channels a group of GroupNorm, at most


def _norm(channels: int) -> nn.GroupNorm:
    groups = max(1, channels // GROUP)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


class ResBlock(nn.Module):
    r"""Two convolutions with time in between, added to the input (:eq:`eq:resblock`).

    .. math:: h' = \mathrm{skip}(h) + \mathrm{conv}_2\bigl((1+a)\odot
        \mathrm{norm}(\mathrm{conv}_1(\cdot)) + b\bigr), \qquad (a,b) = W\,\mathrm{emb}(t)

    The second convolution starts at zero, so a block starts as its shortcut.

    Source: Dhariwal and Nichol (2021), section 3 (adaptive group normalisation).
    """

    def __init__(self, inner: int, outer: int, emb: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(inner), _norm(outer)
        self.conv1 = nn.Conv2d(inner, outer, 3, padding=1)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1)
        self.emb, self.dropout = nn.Linear(emb, 2 * outer), nn.Dropout(dropout)
        self.skip = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, 1)
        new = self.conv1(F.silu(self.norm1(h)))
        new = F.silu(self.norm2(new) * (1 + scale) + shift)
        return self.skip(h) + self.conv2(self.dropout(new))


class UNet(nn.Module):
    """Predict an image from a noisy image, its time, and a class where there is one.

    Args:
        channels: Channels of the image.
        width: Channels of the finest level.
        mults: Channels of each level as a multiple of ``width``; each further level halves
            height and width.
        blocks: Residual blocks a level on the way down (one more on the way up).
        attention: Levels (0 = finest) with self-attention after each block; the middle always
            has it.
        classes: Number of classes of ``cond``, or None for an unconditional net.
        dropout: Share of features dropped in training.
        patch: Side of the squares of pixels that are stacked into channels at the door; 2 makes
            the net about four times cheaper.

    Source: Ho, Jain and Abbeel (2020), appendix B; Ronneberger, Fischer and Brox (2015).
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        width: int = 32,
        mults: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        attention: tuple[int, ...] = (),
        classes: int | None = None,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if not mults:
            raise ValueError("mults is empty: give a multiple of width for each level")
        emb = 4 * width
        self.channels, self.patch, self.depth = channels, patch, len(mults)
        self.time = TimeEmbedding(emb)
        self.label = None if classes is None else LabelEmbedding(classes, emb)
        self.first = nn.Conv2d(channels * patch**2, width, 3, padding=1)

        def stage(inner: int, outer: int, level: int) -> nn.ModuleList:
            attend = SelfAttention(outer) if level in attention else nn.Identity()
            return nn.ModuleList([ResBlock(inner, outer, emb, dropout), attend])

        now, shortcuts = width, [width]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for level, mult in enumerate(mults):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(now, width * mult, level))
                now = width * mult
                shortcuts.append(now)
            self.down.append(stages)
            if level < len(mults) - 1:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                shortcuts.append(now)
        self.middle = nn.ModuleList(
            [ResBlock(now, now, emb, dropout), SelfAttention(now), ResBlock(now, now, emb, dropout)]
        )
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, mult in reversed(list(enumerate(mults))):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(now + shortcuts.pop(), width * mult, level))
                now = width * mult
            self.up.append(stages)
            if level:
                self.grow.append(nn.Conv2d(now, now, 3, padding=1))
        self.norm, self.last = _norm(now), nn.Conv2d(now, channels * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Map ``(B, channels, H, W)`` to the same shape; t has shape ``(B,)``.

        Raises:
            ValueError: if H or W is no multiple of ``patch`` times 2 to the number of halvings, x
                or t has another shape, or an unconditional net is given a condition.
        """
        unit = self.patch * 2 ** (self.depth - 1)
        if x.ndim != 4 or x.shape[1] != self.channels or x.shape[2] % unit or x.shape[3] % unit:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: give (B, C, H, W) with {self.channels} channel(s), "
                f"height and width multiples of {unit} (pad the images, or use fewer mults)"
            )
        if t.shape != x.shape[:1]:
            raise ValueError(f"t has shape {tuple(t.shape)}: give one time an image, ({len(x)},)")
        emb = self.time(t)
        refuse_unused(self.label, cond)
        if self.label is not None:
            emb = emb + self.label(cond, len(x))
        h = F.pixel_unshuffle(x, self.patch).contiguous(memory_format=torch.channels_last)
        h = self.first(h)
        shortcuts = [h]
        for level, stages in enumerate(self.down):
            for block, attend in stages:  # type: ignore[misc]
                h = attend(block(h, emb))
                shortcuts.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
                shortcuts.append(h)
        enter, attend, leave = self.middle
        h = leave(attend(enter(h, emb)), emb)
        for level, stages in enumerate(self.up):
            for block, attend in stages:  # type: ignore[misc]
                h = attend(block(torch.cat([h, shortcuts.pop()], 1), emb))
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        h = self.last(F.silu(self.norm(h)))
        return F.pixel_shuffle(h, self.patch).contiguous()
