r"""Samplers of the reverse stochastic differential equation and Langevin dynamics.

They draw fresh noise in every step. A step onto t = 0 returns the prediction itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from .denoiser import Denoise
from .grids import check_times
from .predictions import FAINT
from .process import drift_diffusion, moves
from .samplers import State, predict
from .schedules import Schedule
from .tensors import check_data, generator, randn_like


def reverse_sde(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    r"""Walk the reverse equation by steps of Euler and Maruyama (:eq:`eq:reverse-sde`).

    .. math:: x_s = x_t + (s-t)\bigl(f\,x_t - g^2\,\hat\nabla\log p_t(x_t)\bigr)
        + g\sqrt{t-s}\;z

    with f and g^2 of :func:`~minidiff.process.drift_diffusion` at t, and the score that the
    denoiser implies.

    Args:
        denoise: ``(x, t) -> x0``.
        schedule: The path that the denoiser was made for.
        x: Start, at ``times[0]``, shape ``(B, *event)``.
        times: Strictly decreasing in [0, 1], starting where signal is not 0.
        rng: Source of noise.

    Yields:
        A ``State`` a step.

    Raises:
        ValueError: at the call, for a bad grid or start, or a grid that starts at signal 0.

    Source: Song et al. (2021), equation 6; Anderson (1982).
    """
    times = _audible(schedule, times)
    at, h = schedule(times[:-1]), times.diff()
    f, g2 = drift_diffusion(at)
    pull = g2 / at.noise**2
    columns = (1 + h * (f + pull), -h * pull * at.signal, (g2 * -h).sqrt())
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    return _maruyama(denoise, check_data("x", x), times, rows, generator(rng))


def _maruyama(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    rows: list[tuple[float, float, float]],
    rng: torch.Generator,
) -> Iterator[State]:
    no_grad = torch.no_grad()  # left at every yield: the caller's mode is the caller's
    for (t, s), row in zip(pairwise(times), rows, strict=True):
        with no_grad:
            x, x0 = _step(denoise, x, t, s, row, rng)
        yield State(s, x, x0)


def _step(
    denoise: Denoise,
    x: Tensor,
    t: Tensor,
    s: Tensor,
    row: tuple[float, float, float],
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Ask at t and move to s: ``keep x + add x0 + std z``, or the prediction itself at s = 0."""
    x0, (keep, add, std) = predict(denoise, x, t), row
    if s == 0:
        return x0, x0
    x = torch.add(keep * x, x0, alpha=add)
    return torch.add(x, randn_like(x, rng), alpha=std), x0


def langevin(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    steps: int = 100,
    step: float = 0.2,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    r"""Shake at each noise level until the sample fits, then cool (annealed, :eq:`eq:langevin`).

    .. math:: x \leftarrow x + \alpha\,\hat\nabla\log p_t(x) + \sqrt{2\alpha}\;z,
        \qquad \alpha = \mathrm{step}\cdot\mathrm{noise}_t^2

    ``steps`` times at every noisy time of the grid. Between two levels x / signal is kept. After
    the last level one call of the denoiser removes the noise that is left; a grid that does not end
    at 0 stops on arrival at its last level. A grid with one noisy time is plain Langevin dynamics.
    On Gaussian data whose variance at a level is V the updates settle at
    :math:`V/(1-\alpha/(2V))`, a little too wide (:eq:`eq:langevin-bias`).

    Args:
        steps: Updates a level, one call each.
        step: Size of an update relative to the variance of the noise, between 0 and 2. NCSN's 2e-5
            at noise .01 is .2; NCSNv2's 6.2e-6 is .062. Where the data are wider than the noise,
            larger steps may be stable.

    The other arguments and errors are those of :func:`reverse_sde`.

    Source: Song and Ermon (2019), algorithm 1, with the step of the released code (the paper's
    alpha is twice ours); final denoising of Jolicoeur-Martineau et al. (2021).
    """
    times = _audible(schedule, times)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: give a whole number of updates a level, at least 1")
    if not 0 < step < math.inf:
        raise ValueError(f"step={step}: give a positive number, such as 0.2")
    at = schedule(times)
    levels = list(zip(at.signal.tolist(), at.noise.tolist(), strict=True))
    return _anneal(denoise, check_data("x", x), times, levels, steps, step, generator(rng))


def _anneal(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    levels: list[tuple[float, float]],
    steps: int,
    step: float,
    rng: torch.Generator,
) -> Iterator[State]:
    no_grad = torch.no_grad()
    for (t, s), (at_t, at_s) in zip(pairwise(times), pairwise(levels), strict=True):
        with no_grad:
            x0 = x
            for _ in range(steps):
                x0 = predict(denoise, x, t)
                x = _shake(x, x0, *at_t, step, rng)
            if s == 0:
                x = x0 = predict(denoise, x, t)
            else:
                x = at_s[0] / at_t[0] * x
        yield State(s, x, x0)


def _shake(
    x: Tensor, x0: Tensor, signal: float, noise: float, step: float, rng: torch.Generator
) -> Tensor:
    """One Langevin update; noise^2 score = signal x0 - x."""
    x = torch.add((1 - step) * x, x0, alpha=step * signal)
    return torch.add(x, randn_like(x, rng), alpha=noise * math.sqrt(2 * step))


def predictor_corrector(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    corrections: int = 1,
    snr: float = 0.16,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    r"""Correct at each level by Langevin dynamics, then step to the next (:eq:`eq:pc`).

    .. math:: x \leftarrow x + \alpha\,\hat\nabla\log p_t(x) + \sqrt{2\alpha}\;z,
        \quad \alpha = 2\,(\mathrm{snr}\cdot\mathrm{noise}_t)^2; \qquad
        x_s = \tilde\mu(x_t,\hat x_0) + \sqrt{\tilde\beta}\;z

    The predictor is the step of :func:`~minidiff.samplers.ancestral`. Song et al. take
    :math:`\alpha = 2(\mathrm{snr}\,\lVert z\rVert/\lVert\nabla\rVert)^2`, averaged over the batch,
    which makes each sample depend on the others; for the score of pure noise the ratio of the two
    norms is the noise level, which stands here.

    Args:
        corrections: Langevin updates a level, one call each; 0 is ``ancestral``.
        snr: Ratio of the pull to the noise of an update; .16 in the paper.

    The other arguments and errors are those of :func:`~minidiff.samplers.ancestral`.

    Source: Song et al. (2021), algorithms 1 to 5; the order, correct and then predict, is that of
    the released code.
    """
    times = check_times(times)
    if not isinstance(corrections, int) or corrections < 0:
        raise ValueError(f"corrections={corrections!r}: give a whole number of updates, or 0")
    if not 0 < snr < 1:
        raise ValueError(f"snr={snr}: give a number between 0 and 1, such as 0.16")
    chain = moves(schedule, times, eta=1.0)
    rows = [
        (float(m.at_t.signal), float(m.at_t.noise), m.keep, m.add, math.sqrt(m.var)) for m in chain
    ]
    return _correct(
        denoise, check_data("x", x), times, rows, corrections, 2 * snr**2, generator(rng)
    )


def _correct(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    rows: list[tuple[float, float, float, float, float]],
    corrections: int,
    step: float,
    rng: torch.Generator,
) -> Iterator[State]:
    no_grad = torch.no_grad()
    for (t, s), (signal, noise, keep, add, std) in zip(pairwise(times), rows, strict=True):
        with no_grad:
            for _ in range(corrections):
                x = _shake(x, predict(denoise, x, t), signal, noise, step, rng)
            x, x0 = _step(denoise, x, t, s, (keep, add, std), rng)
        yield State(s, x, x0)


def _audible(schedule: Schedule, times: Tensor) -> Tensor:
    times = check_times(times)
    if float(schedule(times[0]).signal) < FAINT:
        raise ValueError(
            f"times start at {float(times[0])}, where signal is 0 and the equation is singular: "
            "start below that, such as at 0.98"
        )
    return times
