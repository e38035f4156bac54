"""Samplers: each takes a denoiser and a decreasing grid of times and yields states.

A sampler knows nothing of guidance, masks, prediction types, images or series. It checks its
arguments when it is called, and computes when it is iterated. Here are the samplers that re-noise
a prediction; those that solve a differential equation stand in ``solvers`` and ``stochastic``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .denoiser import Denoise
from .grids import check_times
from .process import Move, moves
from .schedules import Schedule
from .tensors import bcast, check_data, generator, randn, randn_like
from .variance import Variance, posterior_variance


class State(NamedTuple):
    """A sampler's position after a step.

    Attributes:
        t: Time that was reached, a float64 scalar.
        x: The sample at that time, shape ``(B, *event)``.
        x0: The prediction of clean data that made the step.
    """

    t: Tensor
    x: Tensor
    x0: Tensor


def ancestral(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    variance: Variance = posterior_variance,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    r"""Walk the learned chain backwards (:eq:`eq:ancestral`).

    .. math:: x_s = \tilde\mu(x_t,\hat x_0) + \sigma z, \qquad z\sim\mathcal N(0,I)

    with the posterior mean at the predicted :math:`\hat x_0 = D(x_t,t)`. A step onto t = 0
    returns the prediction itself, without noise.

    Args:
        denoise: ``(x, t) -> x0``.
        schedule: The path that the denoiser was made for.
        x: Start, at ``times[0]``; see :func:`prior`. Shape ``(B, *event)``.
        times: Strictly decreasing in [0, 1]; ``ddpm_steps(T)`` for the full chain.
        variance: Variance of the step as a function of the move: a number, or a tensor of shape
            ``(B,)`` or the rank of x.
        rng: Source of noise.

    Yields:
        A ``State`` a step.

    Raises:
        ValueError: at the call, for a bad grid or start; in a step, if the denoiser changes
            the shape.

    Source: Ho, Jain and Abbeel (2020), algorithm 2.
    """
    times = check_times(times)
    steps = _moves(schedule, tuple(times.tolist()), 1.0)
    return _walk(denoise, check_data("x", x), times, steps, variance, generator(rng))


def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    variance: Variance = posterior_variance,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    r"""Step along the implied noise; deterministic at ``eta = 0`` (:eq:`eq:ddim`).

    .. math:: x_s = \mathrm{signal}_s\,\hat x_0
        + \sqrt{\mathrm{noise}_s^2-\sigma^2}\;\hat\epsilon + \sigma z,
        \qquad \sigma = \eta\,\sqrt{\tilde\beta}

    Args:
        eta: 0 is deterministic, 1 is :func:`ancestral`.

    The other arguments are those of :func:`ancestral`.

    Source: Song, Meng and Ermon (2021), equation 12.
    """
    times = check_times(times)
    steps = _moves(schedule, tuple(times.tolist()), eta)
    return _walk(denoise, check_data("x", x), times, steps, variance, generator(rng))


@lru_cache(maxsize=4)
def _moves(schedule: Schedule, times: tuple[float, ...], eta: float) -> list[Move]:
    """Remember the moves of the latest grids, so that the next batch on one starts at once."""
    return moves(schedule, torch.tensor(times, dtype=torch.float64), eta=eta)


def _walk(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    steps: list[Move],
    variance: Variance,
    rng: torch.Generator,
) -> Iterator[State]:
    points, clean = times.unbind(), (times == 0).tolist()
    no_grad = torch.no_grad()  # left at every yield: the caller's mode is the caller's
    for t, s, landing, move in zip(points[:-1], points[1:], clean[1:], steps, strict=True):
        with no_grad:
            x0 = predict(denoise, x, t)
            if landing:
                x = x0
            else:
                x = torch.add(move.keep * x, x0, alpha=move.add)  # keep x + add x0
                var = variance(move)
                if not (bool((var >= 0).all()) if isinstance(var, Tensor) else var >= 0):
                    raise ValueError(f"variance returned {var} at t={float(t)}: give at least 0")
                if isinstance(var, Tensor):
                    x = x + bcast(var.to(x), x) ** 0.5 * randn_like(x, rng)
                elif var > 0:
                    x = x + var**0.5 * randn_like(x, rng)
        yield State(s, x, x0)


def consistency(
    f: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    end: Tensor | float = 0.0,
    rng: torch.Generator | None = None,
) -> Iterator[State]:
    r"""Jump to clean data and back to a smaller noise, again and again (:eq:`eq:consistency`).

    .. math:: x_s = a f(x_t,t) + \sqrt{\mathrm{noise}_s^2-a^2\,\mathrm{noise}_e^2}\;z,
        \qquad a = \mathrm{signal}_s/\mathrm{signal}_e

    A consistency model f maps a point of a flow to the flow's clean end, so that one call makes a
    sample; each further call repairs some of what the first got wrong. With a denoiser in its place
    the chain is not a sampler of the data.

    Args:
        f: Consistency function ``(x, t) -> x0``.
        times: Strictly decreasing, one call each but for the last, which is 0.
        end: Time e whose level the outputs of f have: 0, or the smallest noise it was trained at.

    The other arguments are those of :func:`ancestral`.

    Raises:
        ValueError: if a noisy time of the grid is not above ``end``.

    Source: Song, Dhariwal, Chen and Sutskever (2023), algorithm 1.
    """
    times = check_times(times)
    if not float(times[times > 0][-1]) > float(end) >= 0:
        raise ValueError(f"end={float(end)}: every time but 0 must lie above it, {times.tolist()}")
    at, clean = schedule(times[1:]), schedule(torch.as_tensor(end, dtype=torch.float64))
    add = at.signal / clean.signal
    std = (at.noise**2 - (add * clean.noise) ** 2).clamp(min=0).sqrt()
    steps = list(zip(times[:-1], times[1:], add.tolist(), std.tolist(), strict=True))
    return _jump(f, check_data("x", x), steps, generator(rng))


def _jump(
    f: Denoise, x: Tensor, steps: list[tuple[Tensor, Tensor, float, float]], rng: torch.Generator
) -> Iterator[State]:
    no_grad = torch.no_grad()
    for t, s, add, std in steps:
        with no_grad:
            x0 = predict(f, x, t)
            x = x0 if s == 0 else torch.add(add * x0, randn_like(x, rng), alpha=std)
        yield State(s, x, x0)


def encode(denoise: Denoise, schedule: Schedule, x0: Tensor, times: Tensor) -> Iterator[State]:
    r"""Run :func:`ddim` backwards, from data to noise (:eq:`eq:encode`).

    .. math:: x_t = \frac{\mathrm{noise}_t}{\mathrm{noise}_s}\,x_s
        + \Bigl(\mathrm{signal}_t-\frac{\mathrm{noise}_t}{\mathrm{noise}_s}\mathrm{signal}_s\Bigr)
        \hat x_0

    Clean data holds no noise to read off, so a grid that starts at 0 reads the first noise at
    its second time, at the mean of that level. Decoding with the reversed grid returns x0 up to
    an error of the order of the step.

    Args:
        denoise: ``(x, t) -> x0``.
        schedule: The path that the denoiser was made for.
        x0: Data at ``times[0]``, shape ``(B, *event)``.
        times: Strictly increasing in [0, 1].

    Source: Song, Meng and Ermon (2021), section 4.3.
    """
    times = check_times(times, increasing=True)
    back = moves(schedule, times.flip(0), eta=0.0)[::-1]
    return _climb(denoise, check_data("x0", x0), times, back)


@torch.no_grad()
def _climb(denoise: Denoise, x: Tensor, times: Tensor, back: list[Move]) -> Iterator[State]:
    for s, t, move in zip(times[:-1], times[1:], back, strict=True):
        if s == 0:
            mean = float(move.at_t.signal) * x
            x0 = predict(denoise, mean, t)
            x = mean + float(move.at_t.signal) * (x - x0)
        else:
            x0 = predict(denoise, x, s)
            x = (x - move.add * x0) / move.keep
        yield State(t, x, x0)


def predict(denoise: Denoise, x: Tensor, t: Tensor) -> Tensor:
    """Ask a denoiser; raise a ``ValueError`` if it changes the shape."""
    x0 = denoise(x, t)
    if x0.shape != x.shape:
        raise ValueError(
            f"denoise returned shape {tuple(x0.shape)} for x of shape {tuple(x.shape)}: "
            "a denoiser keeps the shape"
        )
    return x0


def last(states: Iterable[State]) -> Tensor:
    """Run a sampler to its end and return the sample.

    Raises:
        ValueError: if the iterator is empty (a sampler can be consumed only once).
    """
    state = None
    for state in states:  # noqa: B007
        pass
    if state is None:
        raise ValueError("states is empty: a sampler can be consumed only once, call it again")
    return state.x


def trajectory(states: Iterable[State]) -> Tensor:
    """Run a sampler and return all its positions, shape ``(N, B, *event)``.

    Raises:
        ValueError: if the iterator is empty.
    """
    path = [state.x for state in states]
    if not path:
        raise ValueError("states is empty: a sampler can be consumed only once, call it again")
    return torch.stack(path)


def prior(
    schedule: Schedule,
    shape: tuple[int, ...] | torch.Size,
    *,
    at: Tensor | float = 1.0,
    rng: torch.Generator | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draw where a sampler starts: ``N(0, signal^2 + noise^2)`` (:eq:`eq:prior`).

    This is the marginal of data with mean 0 and variance 1; on a variance-preserving path it is
    N(0, I) at every t.

    Args:
        schedule: The path.
        shape: ``(B, *event)``.
        at: Time to start at.
        rng: Source of noise.
        device: Where the sample shall live.
        dtype: Its dtype; torch's default if None.

    Raises:
        ValueError: if shape is empty or holds a 0, or ``at`` lies outside [0, 1].

    Source: Ho, Jain and Abbeel (2020), algorithm 2, line 1.
    """
    if isinstance(shape, int) or len(shape) == 0 or any(n < 1 for n in shape):
        raise ValueError(f"shape={shape}: give (B, *event), each at least 1")
    level = schedule(torch.as_tensor(at, dtype=torch.float64))
    scale = float((level.signal**2 + level.noise**2).sqrt())
    return scale * randn(tuple(shape), rng, dtype=dtype, device=device)
