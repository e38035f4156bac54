"""Broadcasting, seeded noise and masked means: what every other module stands on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def bcast(value: Tensor, x: Tensor) -> Tensor:
    """Right-pad ``value`` with axes of length 1 until it multiplies ``x``.

    Args:
        value: Shape ``()``, ``(B,)``, or the rank of ``x`` and broadcastable to it.
        x: Shape ``(B, *event)``.

    Returns:
        ``value`` with the rank of ``x`` (a scalar stays a scalar).

    Raises:
        ValueError: if ``value`` does not broadcast to ``x`` in this way.
    """
    if value.ndim == 0 or value.shape == x.shape:
        return value
    padded = value
    if value.ndim == 1 and x.ndim > 1:
        padded = value.reshape(-1, *(1,) * (x.ndim - 1))
    sizes = zip(padded.shape, x.shape, strict=False)
    if padded.ndim != x.ndim or any(a not in (1, b) for a, b in sizes):
        raise ValueError(
            f"value has shape {tuple(value.shape)} and x {tuple(x.shape)}: give shape (), "
            f"({x.shape[0] if x.ndim else 1},), or the rank of x and broadcastable to it"
        )
    return padded


def generator(rng: torch.Generator | None) -> torch.Generator:
    """Return ``rng``, or a fresh generator with a seed from the operating system.

    The global random state of torch is neither read nor changed.
    """
    if rng is not None:
        return rng
    fresh = torch.Generator()
    fresh.seed()
    return fresh


def seeded(*entropy: int) -> torch.Generator:
    """Make a CPU generator whose seed mixes the given non-negative integers, in order.

    ``seeded(0, 1)``, ``seeded(1, 0)`` and ``seeded(1)`` are unrelated streams; a plain sum would
    confuse them.

    Raises:
        ValueError: if an integer is negative.
    """
    return torch.Generator().manual_seed(mixed_seed(*entropy))


def mixed_seed(*entropy: int) -> int:
    """Mix non-negative integers into one 63-bit seed (numpy's ``SeedSequence``), or raise."""
    if any(e < 0 for e in entropy):
        raise ValueError(f"seeds are {entropy}: give integers >= 0")
    # numpy takes (1,) and (1, 0) for the same; the length, in the place meant for keys, tells them
    key = (len(entropy),) if len(entropy) > 1 and entropy[-1] == 0 else ()
    sequence = np.random.SeedSequence(entropy, spawn_key=key)
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def randn_like(x: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """Draw standard normal noise with the shape, dtype and device of ``x``.

    The draw happens on ``rng.device`` and is then moved, so a CPU generator gives the same
    noise on every machine.
    """
    return randn(x.shape, rng, dtype=x.dtype, device=x.device)


def randn(
    shape: tuple[int, ...] | torch.Size,
    rng: torch.Generator | None = None,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw standard normal noise of a given shape on ``rng.device`` and move it to ``device``."""
    rng = generator(rng)
    noise = torch.randn(shape, generator=rng, dtype=dtype, device=rng.device)
    return noise if device is None else noise.to(device)


def sum_entries(value: Tensor) -> Tensor:
    """Return the sum over everything but the batch, shape ``(B,)``."""
    return value.reshape(len(value), -1).sum(1)


def masked_mean(value: Tensor, mask: Tensor, dim: tuple[int, ...] | None = None) -> Tensor:
    r"""Average ``value`` where ``mask`` is True: one ratio of sums (:eq:`eq:masked-mean`).

    .. math:: \sum_i m_i v_i \Big/ \sum_i m_i

    The sum is taken by selection, not by multiplication, so a NaN outside the mask stays out.

    Args:
        value: Any shape.
        mask: bool, broadcastable to ``value``; True = counted.
        dim: Axes to average over; None averages over everything.

    Raises:
        ValueError: if the mask is not bool, does not broadcast, or counts nothing.
    """
    mask = check_mask("mask", mask, value)
    axes = tuple(range(value.ndim)) if dim is None else dim
    count = mask.sum(axes) if axes else mask.long()  # sum(()) would mean all axes
    if bool((count == 0).any()):
        raise ValueError("mask counts no entry: give every average at least one True")
    return torch.where(mask, value, torch.zeros_like(value)).sum(axes) / count if axes else value


def check_mask(name: str, mask: Tensor, x: Tensor) -> Tensor:
    """Return the bool ``mask`` expanded to the shape of ``x``, or raise a ``ValueError``."""
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        kind = getattr(mask, "dtype", type(mask).__name__)
        raise ValueError(f"{name} has dtype {kind}: give a bool tensor (True = selected)")
    try:
        return mask.to(x.device).expand(x.shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(mask.shape)}: it must broadcast to {tuple(x.shape)}"
        ) from None


def check_same_shape(name: str, a: Tensor, other: str, b: Tensor) -> None:
    """Raise a ``ValueError`` if two tensors differ in shape: broadcasting would hide a mistake."""
    if a.shape != b.shape:
        raise ValueError(
            f"{name} has shape {tuple(a.shape)} and {other} {tuple(b.shape)}: they must be equal"
        )


def check_data(name: str, x: Tensor) -> Tensor:
    """Return ``x`` if it is a floating, finite tensor with a batch axis; raise otherwise."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = getattr(x, "dtype", type(x).__name__)
        raise ValueError(f"{name} has dtype {kind}: give a floating tensor of shape (B, *event)")
    if x.ndim < 1 or x.numel() == 0:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: give at least one example")
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds NaN or infinite values: remove or mask them first")
    return x


def check_count(name: str, value: int) -> int:
    """Return ``value`` if it is a whole number of at least 1; raise a ``ValueError`` otherwise."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number, at least 1")
    return value
