"""The U-Net: an image goes down to a few coarse pixels and up again, with shortcuts across."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import CrossAttention, SelfAttention, as_context
from .embed import LabelEmbedding, TimeEmbedding, refuse_unused

GROUP = 16  # channels a group of GroupNorm, at most


def act(h: Tensor) -> Tensor:
    """Apply GELU to a feature map.

    It does what the SiLU of the papers does. In channels-last order, the fast one for
    convolutions, torch needs ten times as long for SiLU and its gradient on a CPU; GELU is quick
    on the view whose order is that of the memory.
    """
    return F.gelu(h.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


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
        new = self.conv1(act(self.norm1(h)))
        new = act(self.norm2(new) * (1 + scale) + shift)
        return self.skip(h) + self.conv2(self.dropout(new))


class Stage(nn.Module):
    """A residual block, then attention where it is asked for: to itself, and to a context."""

    def __init__(
        self, inner: int, outer: int, emb: int, dropout: float, attend: bool, context: int | None
    ) -> None:
        super().__init__()
        self.block = ResBlock(inner, outer, emb, dropout)
        self.attend = SelfAttention(outer) if attend else None
        self.look = CrossAttention(outer, context) if attend and context is not None else None

    def forward(self, h: Tensor, emb: Tensor, context: Any) -> Tensor:
        h = self.block(h, emb)
        if self.attend is not None:
            h = self.attend(h)
        return h if self.look is None else self.look(h, context)


class UNet(nn.Module):
    """Predict an image from a noisy image, its time, and a condition where there is one.

    ``cond`` is None, a class for each image (with ``classes``), or tokens (with ``context``): a
    Tensor ``(B, L, context)`` or a :class:`~minidiff.nets.attention.Context`. None, the null
    class and a token of zeros are "no condition"; see :func:`~minidiff.conditions.drop`. Height
    and width may be any.

    Args:
        channels: Channels of the image.
        out: Channels of the output; as many as go in if not given.
        width: Channels of the finest level.
        mults: Channels of each level as a multiple of ``width``; each further level halves
            height and width, rounded up.
        blocks: Residual blocks a level on the way down (one more on the way up).
        attention: Levels (0 = finest) with self-attention after each block; the middle always
            has it.
        classes: Number of classes of ``cond``, or None.
        context: Width of the tokens of ``cond``, or None. They are looked at wherever there is
            self-attention.
        dropout: Share of features dropped in training.
        patch: Side of the squares of pixels that are stacked into channels at the door; 2 makes
            the net about four times cheaper.

    Source: Ho, Jain and Abbeel (2020), appendix B; Ronneberger, Fischer and Brox (2015).
    """

    def __init__(
        self,
        channels: int = 1,
        *,
        out: int | None = None,
        width: int = 32,
        mults: tuple[int, ...] = (1, 2, 2),
        blocks: int = 1,
        attention: tuple[int, ...] = (),
        classes: int | None = None,
        context: int | None = None,
        dropout: float = 0.0,
        patch: int = 1,
    ) -> None:
        super().__init__()
        if not mults:
            raise ValueError("mults is empty: give a multiple of width for each level")
        if classes is not None and context is not None:
            raise ValueError(
                f"classes={classes} and context={context}: give one (a class can be a token)"
            )
        emb = 4 * width
        self.channels, self.patch, self.context = channels, patch, context
        self.time = TimeEmbedding(emb)
        self.label = None if classes is None else LabelEmbedding(classes, emb)
        self.first = nn.Conv2d(channels * patch**2, width, 3, padding=1)

        def stage(inner: int, outer: int, attend: bool) -> Stage:
            return Stage(inner, outer, emb, dropout, attend, context)

        now, shortcuts = width, [width]
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        for level, mult in enumerate(mults):
            if level:
                self.shrink.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                shortcuts.append(now)
            self.down.append(stages := nn.ModuleList())
            for _ in range(blocks):
                stages.append(stage(now, width * mult, level in attention))
                now = width * mult
                shortcuts.append(now)
        self.enter, self.leave = stage(now, now, True), stage(now, now, False)
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, mult in reversed(list(enumerate(mults))):
            self.up.append(stages := nn.ModuleList())
            for _ in range(blocks + 1):
                stages.append(stage(now + shortcuts.pop(), width * mult, level in attention))
                now = width * mult
            if level:
                self.grow.append(nn.Conv2d(now, now, 3, padding=1))
        out = channels if out is None else out
        self.norm, self.last = _norm(now), nn.Conv2d(now, out * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Map ``(B, channels, H, W)`` to ``(B, out, H, W)``; t has shape ``(B,)``.

        Raises:
            ValueError: if x, t or cond has another shape, or a net without classes and context
                is given a condition.
        """
        return self.image(self.last, self.features(x, t, cond), x)

    def features(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """Return the last feature map, shape ``(B, width * mults[0], H / patch, W / patch)``."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: give (B, C, H, W) with {self.channels} channel(s)"
            )
        if t.shape != x.shape[:1]:
            raise ValueError(f"t has shape {tuple(t.shape)}: give one time an image, ({len(x)},)")
        emb, tokens = self.time(t), None
        if self.context is not None:
            tokens = as_context(cond, len(x), self.context, x)
        elif self.label is not None:
            emb = emb + self.label(cond, len(x))
        else:
            refuse_unused(self.label, cond)
        h = F.pad(x, (0, -x.shape[3] % self.patch, 0, -x.shape[2] % self.patch))
        h = F.pixel_unshuffle(h, self.patch).contiguous(memory_format=torch.channels_last)
        h = self.first(h)
        shortcuts = [h]
        for level, stages in enumerate(self.down):
            if level:
                h = self.shrink[level - 1](h)
                shortcuts.append(h)
            for stage in stages:  # type: ignore[attr-defined]
                h = stage(h, emb, tokens)
                shortcuts.append(h)
        h = self.leave(self.enter(h, emb, tokens), emb, tokens)
        for level, stages in enumerate(self.up):
            for stage in stages:  # type: ignore[attr-defined]
                h = stage(torch.cat([h, shortcuts.pop()], 1), emb, tokens)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, shortcuts[-1].shape[2:]))
        return act(self.norm(h))

    def image(self, layer: nn.Module, h: Tensor, x: Tensor) -> Tensor:
        """Turn features into an image of the height and width of x by a layer at the end."""
        y = F.pixel_shuffle(layer(h), self.patch)
        return y[:, :, : x.shape[2], : x.shape[3]].contiguous()
