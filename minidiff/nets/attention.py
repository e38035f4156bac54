"""Self-attention over the pixels of a feature map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


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
        if channels % heads:
            raise ValueError(f"channels={channels} is no multiple of heads={heads}")
        self.heads = heads
        self.norm = nn.GroupNorm(1, channels)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor) -> Tensor:
        """Map ``(B, C, H, W)`` to the same shape."""
        tokens = self.norm(h).flatten(2).transpose(1, 2)
        q, k, v = (
            p.unflatten(2, (self.heads, -1)).transpose(1, 2) for p in self.qkv(tokens).chunk(3, 2)
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return h + self.out(found).transpose(1, 2).reshape(h.shape)
