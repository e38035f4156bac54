"""Batches as a pure function of the step, so that a resumed run needs no fast-forward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from ..tensors import seeded


def batches(data: Any, size: int, seed: int = 0, *, workers: int = 0) -> Callable[[int], Any]:
    """Return ``step -> batch``: epochs of random order, decided by ``(seed, epoch)`` alone.

    Args:
        data: A tensor, a tuple of tensors of equal length, or any map-style dataset
            (``len(data)`` and ``data[i]``); the items of a dataset are collated as torch does.
        size: Examples a batch. The rest of an epoch that does not fill a batch is left out.
        seed: Seed of the order.
        workers: Threads that fetch the items of a dataset; tensors are sliced directly.

    Raises:
        ValueError: if ``size`` is not between 1 and the number of examples, lengths differ, or
            ``seed`` or ``workers`` is negative.
    """
    parts: Sequence[Tensor] = ()
    if isinstance(data, Tensor):
        parts = (data,)
    elif isinstance(data, tuple) and all(isinstance(p, Tensor) for p in data):
        parts = data
        if len({len(p) for p in parts}) != 1:
            raise ValueError(f"data has lengths {[len(p) for p in parts]}: they must be equal")
    n = len(parts[0]) if parts else len(data)
    if not isinstance(size, int) or not 1 <= size <= n:
        raise ValueError(
            f"size={size!r}: give a whole number from 1 to {n}, the examples there are"
        )
    if not isinstance(workers, int) or workers < 0:
        raise ValueError(f"workers={workers!r}: give a number of threads, or 0")
    seeded(seed)  # refuses a bad seed now
    per_epoch = n // size
    pool = ThreadPoolExecutor(workers) if workers and not parts else None
    order: dict[int, Tensor] = {}

    def batch(step: int) -> Any:
        epoch, place = divmod(step, per_epoch)
        if epoch not in order:
            order.clear()
            order[epoch] = torch.randperm(n, generator=seeded(seed, epoch))
        index = order[epoch][place * size : (place + 1) * size]
        if isinstance(data, Tensor):
            return data[index.to(data.device)]
        if parts:
            return tuple(p[index.to(p.device)] for p in parts)
        fetch = pool.map if pool is not None else map
        return default_collate(list(fetch(data.__getitem__, index.tolist())))

    return batch
