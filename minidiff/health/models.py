"""After training: a denoiser against the best straight line, and against another denoiser."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..denoiser import Denoise
from ..process import diffuse
from ..schedules import Schedule
from ..tensors import check_data, check_same_shape, generator, randn_like
from ..times import low_discrepancy_times
from .curves import linear_error
from .finding import Finding


class Errors(NamedTuple):
    """Errors of a denoiser, each example seen once in each third of the time.

    Attributes:
        t: Times, float64, shape ``(3 B,)``.
        third: 0, 1 or 2: the third of the time, from data to noise.
        error: Signal error of each, averaged over entries, float64.
    """

    t: Tensor
    third: Tensor
    error: Tensor


@torch.no_grad()
def errors(
    denoise: Denoise, schedule: Schedule, x0: Tensor, *, rng: torch.Generator | None = None
) -> Errors:
    r"""Measure a denoiser at evenly spread times by its signal error (:eq:`eq:signal-error`).

    .. math:: e = \mathrm{signal}^2\,\frac1D\lVert\hat x_0-x_0\rVert^2
        = \mathrm{noise}^2\,\frac1D\lVert\hat\epsilon-\epsilon\rVert^2

    It means the same for every prediction, and is finite at both ends.

    Args:
        denoise: ``(x, t) -> x0``; of a ``Denoiser`` the average of its weights, in eval mode.
        schedule: The path.
        x0: Clean data, shape ``(B, *event)``.
        rng: Source of times and noise, in this order; one seed gives two denoisers the same noise.
    """
    rng, x0 = generator(rng), check_data("x0", x0).repeat(3, *(1,) * (x0.ndim - 1))
    t = low_discrepancy_times(schedule, len(x0), rng)
    at = schedule(t)
    x_t = diffuse(at, x0, randn_like(x0, rng))
    guess = denoise(x_t, t.to(x0.device))
    check_same_shape("guess", guess, "x0", x0)
    gap = ((guess.double() - x0.double()) ** 2).reshape(len(x0), -1).mean(1).cpu()
    return Errors(t, (3 * t - 1e-9).long().clamp(0, 2), at.signal**2 * gap)


def denoiser(
    denoise: Denoise,
    schedule: Schedule,
    x0: Tensor,
    train: Tensor,
    *,
    rng: torch.Generator | None = None,
) -> list[Finding]:
    r"""Compare a trained denoiser with the best line (:eq:`eq:linear-error`), and ask it twice.

    - Its signal error over that of the line, over all times and in the first third: below 1.
    - Its excess over the line in the last third, where a line is nearly perfect.
    - Held-out data over training data: above 1.1 and four standard errors it has learned examples
      by heart.
    - The change of its answer when it is asked again, for half of the batch: dropout that was left
      on, or statistics of the batch.

    Args:
        denoise: ``(x, t) -> x0``; of a ``Denoiser`` the average of its weights, in eval mode.
        schedule: The path that samples will be drawn with.
        x0: Held-out data, shape ``(B, *event)``, at least 100 examples.
        train: Training data, at least as many.
        rng: Source of times and noise.

    Raises:
        ValueError: if there are fewer than 100 held-out or fewer training examples.
    """
    if not 100 <= len(check_data("x0", x0)) <= len(check_data("train", train)):
        raise ValueError(
            f"x0 has {len(x0)} examples and train {len(train)}: give at least 100 held-out ones, "
            "and at least as many of the training set"
        )
    rng = generator(rng)
    state = rng.get_state()
    held = errors(denoise, schedule, x0, rng=rng)
    rng.set_state(state)
    seen = errors(denoise, schedule, train[: len(x0)], rng=rng)
    at = schedule(held.t)
    line = at.signal**2 * linear_error(train, at)
    first, last = held.third == 0, held.third == 2
    excess = float(held.error[last].mean() - line[last].mean())
    x, half, t = randn_like(x0, rng), len(x0) // 2, torch.tensor(0.5, dtype=torch.float64)
    with torch.no_grad():
        once, again = denoise(x, t)[:half], denoise(x[:half], t)
    change = float((once - again).double().square().mean().sqrt() / once.double().std())
    ratio = float(held.error.sum() / line.sum())
    slack = 4 * math.hypot(_relative(held), _relative(seen))
    early = float(held.error[first].sum() / line[first].sum())
    return [
        Finding("error over the best line", ratio, 0, 1),
        Finding("the same, first third of time", early, 0, 1),
        Finding("excess in the last third", excess, -0.01, 0.01),
        Finding("held-out over training error", _ratio(held, seen), 0.9 - slack, 1.1 + slack),
        Finding("change when asked again", change, 0, 0.001),
    ]


def versus(
    denoise: Denoise,
    other: Denoise,
    schedule: Schedule,
    x0: Tensor,
    *,
    most: float = 1.0,
    rng: torch.Generator | None = None,
) -> Finding:
    r"""Divide the error of a denoiser by that of another, on the same noise (:eq:`eq:error-ratio`).

    .. math:: \frac{\sum_i e_i}{\sum_i e_i'}

    The weights that you sample with over their average; true labels over shuffled ones.

    Args:
        denoise: The one that should not be worse, ``(x, t) -> x0``.
        other: What it is compared with.
        schedule: The path.
        x0: Held-out data, shape ``(B, *event)``.
        most: Largest healthy ratio.
        rng: Source of times and noise.
    """
    rng = generator(rng)
    state = rng.get_state()
    one = errors(denoise, schedule, x0, rng=rng)
    rng.set_state(state)
    return Finding(
        "error over the other's", _ratio(one, errors(other, schedule, x0, rng=rng)), 0, most
    )


def _relative(seen: Errors) -> float:
    """Standard error of the mean error over its value; the three looks at an example are one."""
    each = seen.error.reshape(3, -1).mean(0)
    return float(each.std() / each.mean()) / math.sqrt(len(each))


def _ratio(one: Errors, two: Errors) -> float:
    return float(one.error.sum() / two.error.sum())
