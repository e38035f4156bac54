"""Sampling: the loop without a network, and what the chain of a trained one looks like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..samplers import State
from ..schedules import Level, Schedule
from ..tensors import check_data, generator, randn
from .finding import Finding, worst

Sample = Callable[[Denoise, Tensor, torch.Generator], Tensor]


def sampler(
    sample: Sample,
    schedule: Schedule,
    *,
    point: float = 0.5,
    std: float = 0.0,
    count: int = 20_000,
    rng: torch.Generator | None = None,
) -> list[Finding]:
    r"""Test a sampling loop without a network, on data that it must reproduce (:eq:`eq:one-point`).

    .. math:: D(x,t) = a + \frac{\mathrm{signal}\,c^2}{\mathrm{signal}^2c^2+\mathrm{noise}^2}\,
        (x-\mathrm{signal}\,a), \qquad
        x_t \sim \mathcal N(\mathrm{signal}\,a,\;\mathrm{signal}^2c^2+\mathrm{noise}^2)

    This is the exact denoiser of data around one point a. It looks at what it is handed: at each
    call the mean and the variance of x must be those of the time that it is told. Steps of
    ``ancestral`` with the posterior variance, of ``ddim`` and of ``dpmpp_2m`` are exact for c = 0;
    those with variance beta for c = 1 on a variance-preserving path.

    Args:
        sample: ``(denoise, x, rng) -> samples``, your loop; it starts at t = 1 from x. One that
            works with noise takes ``eps_from_x0(denoise(x, t), x, schedule(t))``.
        schedule: The path.
        point: a.
        std: c; 0 for the posterior variance and for deterministic samplers, 1 for variance beta.
        count: Number of chains, of one entry each.
        rng: Source of the start, then handed to ``sample``.

    Raises:
        ValueError: if count is below 1,000, or the loop never asks the denoiser.
    """
    if count < 1000:
        raise ValueError(f"count={count}: give at least 1,000 chains, or the bands are wide")
    rng = generator(rng)
    means: list[float] = []
    squares: list[float] = []
    last = torch.zeros(())

    def spread(at: Level) -> Tensor:
        return (at.signal**2 * std**2 + at.noise**2).sqrt()

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        nonlocal last
        at = schedule(t).over(x)
        gap = x.double() - at.signal * point
        if bool((at.noise > 0).all()):
            r = gap / spread(at)
            means.append(float(r.mean()))
            squares.append(float((r**2).mean()))
        share = at.signal * std**2 / (at.signal**2 * std**2 + at.noise**2) if std else 0.0
        last = (point + share * gap).to(x)
        return last

    end = schedule(1.0)
    start = end.signal * point + spread(end) * randn((count, 1), rng, dtype=torch.float64)
    x = sample(denoise, start, rng)
    if not means:
        raise ValueError(
            "sample never called its denoiser at a noisy time: let it ask denoise(x, t)"
        )
    gap = float((x - last).double().square().mean().sqrt())
    return [
        worst("mean of what is handed on", means, 0, count**-0.5),
        worst("variance of what is handed on", squares, 1, (2 / count) ** 0.5),
        Finding("end is not the last prediction", gap, 0, 0.001),
    ]


def chain(states: Iterable[State], schedule: Schedule, x0: Tensor) -> list[Finding]:
    r"""Look at the states of a sampler with a trained model (:eq:`eq:second-moment`).

    .. math:: \mathrm E\,x_t^2 = \mathrm{signal}^2\,\mathrm E\,x_0^2 + \mathrm{noise}^2

    The ratio of the two sides that is farthest from 1 is reported, and three numbers of the
    samples: the shift of their mean in standard deviations of the data, their standard deviation
    and their largest value, both over the data's.

    Args:
        states: What a sampler yields, of 100 examples or more; ``State(t, x, x0)`` of a loop of
            your own.
        schedule: The path.
        x0: Data, shape ``(B, *event)``.

    Raises:
        ValueError: if there is no state.
    """
    clean, ratios, x = check_data("x0", x0).double(), [], None
    square, mean, std = (float(f) for f in ((clean**2).mean(), clean.mean(), clean.std()))
    for state in states:
        at, x = schedule(state.t), state.x.detach().double()
        whole = float(at.signal) ** 2 * square + float(at.noise) ** 2
        ratios.append(max(float((x**2).mean()) / whole, 1e-12))
    if x is None:
        raise ValueError("states is empty: give what a sampler yields")
    worst_ratio = max(ratios, key=lambda r: math.inf if math.isnan(r) else abs(math.log(r)))
    return [
        Finding("second moment along the chain", worst_ratio, 0.85, 1.15),
        Finding("shift of the samples' mean", (float(x.mean()) - mean) / std, -0.15, 0.15),
        Finding("spread of the samples", float(x.std()) / std, 0.85, 1.15),
        Finding("largest value of the samples", float(x.abs().max() / clean.abs().max()), 0, 1.5),
    ]
