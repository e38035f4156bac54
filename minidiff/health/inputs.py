"""Before training: the data and the noising function."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..schedules import Schedule
from ..tensors import check_data, check_same_shape, generator
from .finding import Finding, spread, worst

Noising = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def data(x0: Tensor, *, low: float = -1.0, high: float = 1.0) -> list[Finding]:
    """Look at the range of a batch of data.

    A band reaches a tenth of the range to both sides of its end. Data in [0, 1] have their
    smallest value far above -1, data in 0..255 their largest far above 1.

    Args:
        x0: Clean data, shape ``(B, *event)``, at least a hundred entries.
        low: Smallest value that the data are meant to reach.
        high: Largest value.

    Raises:
        ValueError: if x0 is not finite and floating, or low is not below high.
    """
    check_data("x0", x0)
    if not low < high:
        raise ValueError(f"low={low}, high={high}: need low < high, such as -1 and 1")
    slack = (high - low) / 10
    return [
        Finding("smallest value of the data", float(x0.min()), low - slack, low + slack),
        Finding("largest value of the data", float(x0.max()), high - slack, high + slack),
    ]


def noising(
    noising: Noising, schedule: Schedule, x0: Tensor, *, rng: torch.Generator | None = None
) -> list[Finding]:
    r"""Test a noising function by the noise that its result implies (:eq:`eq:noise-moments`).

    .. math:: r = \frac{x_t-\mathrm{signal}(t)\,x_0}{\mathrm{noise}(t)}, \qquad
        \mathrm E\,r = 0, \quad \mathrm E\,r^2 = 1, \quad \mathrm E\,r^4 = 3, \quad
        \mathrm E\,r x_0 = 0

    Ten times are tried, the first and the last among them, and the value farthest from what is
    expected is reported. Bands are six standard errors wide to both sides.

    Args:
        noising: ``(x0, t, rng) -> (x_t, eps)`` as training uses it; t has shape ``(B,)``.
        schedule: The path that is meant.
        x0: Clean data, shape ``(B, *event)``, at least 2,000 entries.
        rng: Handed to ``noising``.

    Raises:
        ValueError: if x0 is not finite, has fewer entries, or a result has another shape.
    """
    check_data("x0", x0)
    if x0.numel() < 2000 or len(x0) < 2:
        raise ValueError(f"x0 has {x0.numel()} entries: repeat it to at least 2,000 in 2 examples")
    rng, n = generator(rng), x0.numel()
    rows = []
    for t in spread(schedule, 10).tolist():
        x_t, eps = noising(x0, torch.full((len(x0),), t, dtype=torch.float64), rng)
        check_same_shape("x_t", x_t, "x0", x0)
        check_same_shape("eps", eps, "x0", x0)
        at, clean = schedule(t), x0.double()
        r = (x_t.double() - at.signal * clean) / at.noise
        shared = len(x0) * (r.mean(0) ** 2).mean()
        along = (r * clean).mean() / (clean**2).mean().sqrt()
        gap = ((r - eps.double()) ** 2).mean().sqrt()
        rows.append(
            [float(v) for v in (r.mean(), (r**2).mean(), (r**4).mean(), along, shared, gap)]
        )
    mean, square, fourth, along, shared, gap = zip(*rows, strict=True)
    end = schedule(1.0)
    root = n**-0.5
    return [
        worst("mean of the noise", mean, 0, root),
        worst("mean square of the noise", square, 1, math.sqrt(2) * root),
        worst("mean fourth power of the noise", fourth, 3, math.sqrt(96) * root),
        worst("noise along the data", along, 0, root),
        worst("noise shared in the batch", shared, 1, math.sqrt(2 * len(x0)) * root),
        Finding("target is not this noise", max(gap), 0, 0.01),
        Finding("signal left at the end", float(end.signal / end.noise), 0, 0.1),
    ]
