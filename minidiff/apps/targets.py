"""What to hide of a series so that a network can learn to fill gaps: strategies.

A strategy is a function ``(observed, rng) -> known``: of what was observed, some stays known and
the rest is what the network is scored on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Strategy = Callable[[Tensor, torch.Generator], Tensor]  # (observed, rng) -> known


def random_targets(observed: Tensor, rng: torch.Generator) -> Tensor:
    r"""Hide a random share of each example's observed values.

    .. math:: r\sim U[0,1), \qquad \text{hide } \operatorname{round}(r\,n)
        \text{ of the } n \text{ observed values, all choices equally likely}

    Args:
        observed: bool, shape ``(B, L, K)``.
        rng: Source of randomness.

    Returns:
        What stays known: bool, the shape of ``observed``.

    Source: Tashiro et al. (2021), algorithm 2 of appendix D.
    """
    flat = observed.reshape(len(observed), -1)
    draw = torch.rand(flat.shape, generator=rng, device=rng.device).to(flat.device)
    share = torch.rand(len(flat), 1, generator=rng, device=rng.device).to(flat.device)
    rank = torch.where(flat, draw, 2.0).argsort(1).argsort(1)  # the unobserved come last
    hidden = rank < (share * flat.sum(1, keepdim=True)).round()
    return (flat & ~hidden).reshape(observed.shape)


def historical_targets(observed: Tensor, rng: torch.Generator) -> Tensor:
    """Hide what is missing in another example of the batch, drawn at random.

    Gaps of real series are not uniform: a station is down for hours, a sensor for days. This
    strategy hides such patterns. The batch must be in random order and hold two examples or more.

    Args:
        observed: bool, shape ``(B, L, K)``.
        rng: Source of randomness.

    Raises:
        ValueError: if the batch holds one example only.

    Source: Tashiro et al. (2021), section 4.2; there the neighbour in the batch, not a random one.
    """
    if len(observed) < 2:
        raise ValueError("observed holds one example: its gaps must come from another one")
    n = len(observed)
    shift = torch.randint(1, n, (n,), generator=rng, device=rng.device).to(observed.device)
    return observed & observed[(torch.arange(n, device=observed.device) + shift) % n]


def block_targets(shortest: int, longest: int, groups: Tensor | None = None) -> Strategy:
    """Make a strategy that hides a run of hours of one group of channels, such as a station.

    Args:
        shortest: Fewest hours, at least 1.
        longest: Most hours; each length between is equally likely, and each place of the run.
        groups: Number of the group of each channel, shape ``(K,)``; None makes all channels one.

    Raises:
        ValueError: if not 1 <= shortest <= longest; when called, if a window is shorter than
            ``longest`` or the number of channels does not agree.
    """
    if not 1 <= shortest <= longest:
        raise ValueError(f"shortest={shortest}, longest={longest}: need 1 <= shortest <= longest")

    def targets(observed: Tensor, rng: torch.Generator) -> Tensor:
        n, length, k = observed.shape
        member = torch.zeros(k, dtype=torch.long) if groups is None else groups.cpu()
        if longest > length or member.shape != (k,):
            raise ValueError(
                f"observed has shape {tuple(observed.shape)}: give windows of {longest} hours or "
                f"more and {len(member)} channels"
            )

        def whole(low: int, high: Tensor) -> Tensor:  # uniform on low..high
            draw = torch.rand(n, generator=rng, device=rng.device, dtype=torch.float64).cpu()
            return low + (draw * (high - low + 1)).long()

        size = whole(shortest, torch.full((n,), longest))
        start = whole(0, length - size)
        names = member.unique()
        group = names[whole(0, torch.full((n,), len(names) - 1))]
        hour = torch.arange(length)
        inside = (hour >= start[:, None]) & (hour < (start + size)[:, None])
        hidden = inside[:, :, None] & (member == group[:, None])[:, None]
        return observed & ~hidden.to(observed.device)

    return targets


def mixed_targets(first: Strategy, second: Strategy) -> Strategy:
    """Make a strategy that follows one or the other of two, example by example, by a fair coin.

    Source: Tashiro et al. (2021), section 4.2, with random and historical targets.
    """

    def targets(observed: Tensor, rng: torch.Generator) -> Tensor:
        coin = torch.rand(len(observed), 1, 1, generator=rng, device=rng.device) < 0.5
        return torch.where(coin.to(observed.device), first(observed, rng), second(observed, rng))

    return targets
