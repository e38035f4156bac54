"""A number, the band that a healthy run keeps it in, and a report of many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import BetaTable, Schedule

SURE = 6.0  # standard errors: a healthy run leaves such a band about once in 10^8 looks


class Finding(NamedTuple):
    """One number and the band that a healthy run stays in.

    Attributes:
        name: What was measured.
        value: What it is; NaN is never healthy.
        low: Lower end of the band.
        high: Upper end of the band.
    """

    name: str
    value: float
    low: float
    high: float

    @property
    def healthy(self) -> bool:
        """True if the value lies in the band."""
        return self.low <= self.value <= self.high


def report(findings: Iterable[Finding]) -> str:
    """Write findings as lines of text; those outside their bands start with an exclamation mark."""
    return "\n".join(
        f"{' ' if f.healthy else '!'} {f.name:32} {f.value:10.4g}   healthy: "
        f"{f.low:.4g} to {f.high:.4g}"
        for f in findings
    )


def worst(name: str, values: Sequence[float], expected: float, error: float) -> Finding:
    """Keep the value that is farthest from what is expected; a NaN is farther than all."""
    value = max(values, key=lambda v: math.inf if math.isnan(v) else abs(v - expected))
    return Finding(name, value, expected - SURE * error, expected + SURE * error)


def spread(schedule: Schedule, count: int) -> Tensor:
    """Times from the first to the last; steps on a table."""
    if isinstance(schedule, BetaTable):
        return torch.linspace(1, schedule.T, count, dtype=torch.float64).round() / schedule.T
    return torch.linspace(0.01, 1, count, dtype=torch.float64)
