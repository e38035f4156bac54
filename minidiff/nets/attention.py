"""Attention over the pixels of a feature map: to each other, and to the tokens of a condition."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Context(NamedTuple):
    """Tokens that a net looks at, such as the words of a caption.

    Attributes:
        tokens: Shape ``(B, L, width)``.
        valid: Which of them count, bool, shape ``(B, L)``; at least one an example.
    """

    tokens: Tensor
    valid: Tensor


class SelfAttention(nn.Module):
    r"""Let every pixel look at every other, and add what it found (:eq:`eq:attention`).

    .. math:: h + W\,\mathrm{softmax}\bigl(QK^\top/\sqrt d\bigr)V

    The output projection starts at zero, so the block starts as the identity.

    Args:
        channels: Channels of the map, a multiple of ``heads``.
        heads: Number of heads.

    Source: Vaswani et al. (2017), equation 1.
    """

    def __init__(self, channels: int, heads: int = 4) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.norm = nn.GroupNorm(1, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), _zero(channels)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).chunk(3, 2)
        found = attend(q, k, v, self.heads)
        return h + self.out(found).transpose(1, 2).reshape(h.shape)


class CrossAttention(nn.Module):
    r"""Let every pixel look at the tokens of a condition (:eq:`eq:cross-attention`).

    .. math:: h + W\,\mathrm{softmax}\bigl(QK^\top/\sqrt d + M\bigr)V, \qquad
        Q = h\,W_Q,\quad K = c\,W_K,\quad V = c\,W_V

    M is 0 where a token counts and minus infinity where it does not. Tokens that are all zero
    have one key and one value, so their number does not matter: one zero token is "no condition".

    Args:
        channels: Channels of the map, a multiple of ``heads``.
        context: Width of a token.
        heads: Number of heads.

    Source: Rombach et al. (2022), section 3.3.
    """

    def __init__(self, channels: int, context: int, heads: int = 4) -> None:
        super().__init__()
        check_heads(channels, heads)
        self.heads = heads
        self.norm = nn.GroupNorm(1, channels)
        self.query, self.out = nn.Linear(channels, channels), _zero(channels)
        self.key_value = nn.Linear(context, 2 * channels)

    def forward(self, h: Tensor, context: Context) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        query = self.query(self.norm(h).flatten(2).transpose(1, 2))
        key, value = self.key_value(context.tokens).chunk(2, 2)
        found = attend(query, key, value, self.heads, context.valid[:, None, None])
        return h + self.out(found).transpose(1, 2).reshape(h.shape)


def as_context(cond: Tensor | Context | None, n: int, width: int, like: Tensor) -> Context:
    """Return a condition in its full form: None is one zero token, a Tensor has no gaps.

    Raises:
        ValueError: if a shape, a dtype or a device does not fit, or an example has no token that
            counts.
    """
    if cond is None:
        cond = torch.zeros(n, 1, width, dtype=like.dtype, device=like.device)
    if isinstance(cond, Tensor):
        cond = Context(cond, torch.ones(cond.shape[:2], dtype=torch.bool, device=cond.device))
    tokens, valid = cond
    if tokens.ndim != 3 or tokens.shape[0] != n or tokens.shape[2] != width:
        raise ValueError(
            f"cond has tokens of shape {tuple(tokens.shape)}: give ({n}, L, {width}), L tokens an "
            "example"
        )
    if valid.dtype != torch.bool or valid.shape != tokens.shape[:2]:
        raise ValueError(
            f"cond.valid has dtype {valid.dtype} and shape {tuple(valid.shape)}: give bool, "
            f"{tuple(tokens.shape[:2])}, True where a token counts"
        )
    if valid.device.type == "cpu" and not bool(valid.any(1).all()):
        raise ValueError(
            "cond.valid is False everywhere for an example: leave one zero token, which stands "
            "for no condition"
        )
    return Context(tokens, valid)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, valid: Tensor | None = None) -> Tensor:
    """Return softmax(q k / sqrt(d)) v, head by head: ``(N, S, C) -> (N, S, C)``."""
    q, k, v = (p.unflatten(2, (heads, -1)).transpose(1, 2) for p in (q, k, v))
    if q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16):
        # torch's fused kernel is several times slower here than the formula written out
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
        if valid is not None:
            scores = scores.masked_fill(~valid, float("-inf"))
        found = scores.softmax(-1).to(v.dtype) @ v
    else:
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=valid)
    return found.transpose(1, 2).flatten(2)


def check_heads(channels: int, heads: int) -> None:
    """Raise a ``ValueError`` if the heads do not divide the channels."""
    if channels % heads:
        raise ValueError(f"channels={channels} is no multiple of heads={heads}")


def _zero(channels: int) -> nn.Linear:
    layer = nn.Linear(channels, channels)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
