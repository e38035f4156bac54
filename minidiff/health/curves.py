"""While training: what a loss should be, before it starts and after it ends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..predictions import Prediction, as_prediction
from ..schedules import Level, Schedule
from ..tensors import check_data
from .finding import Finding, spread


def start_loss(prediction: str | Prediction, schedule: Schedule, x0: Tensor) -> float:
    r"""Return the loss of a network that outputs 0, averaged over time (:eq:`eq:start-loss`).

    .. math:: \mathrm E\,y^2 = a(t)^2\,\mathrm E\,x_0^2 + b(t)^2 \quad\text{for a target }
        y = a(t)\,x_0 + b(t)\,\epsilon

    Args:
        prediction: A name in ``PREDICTIONS`` or a ``Prediction``.
        schedule: The path.
        x0: Clean data, shape ``(B, *event)``.
    """
    at, one = schedule(spread(schedule, 100)), torch.ones(100, dtype=torch.float64)
    define = as_prediction(prediction).define
    a, b = define(at, one, 0 * one), define(at, 0 * one, one)
    return float((a**2 * (check_data("x0", x0).double() ** 2).mean() + b**2).mean())


def native_factor(prediction: str | Prediction, at: Level) -> Tensor:
    r"""Return what turns a squared error of x0 into the native loss (:eq:`eq:native-loss`).

    .. math:: \lVert\hat y-y\rVert^2
        = \frac{1}{c_{\mathrm{out}}(t)^2}\,\lVert\hat x_0-x_0\rVert^2
    """
    return as_prediction(prediction).coefficients(at)[1] ** -2


def linear_error(x0: Tensor, at: Level) -> Tensor:
    r"""Return the squared error, an entry, of the best line (:eq:`eq:linear-error`).

    .. math:: \frac1D\sum_{i=1}^D
        \frac{\lambda_i\,\mathrm{noise}^2}{\mathrm{signal}^2\lambda_i+\mathrm{noise}^2}

    with the eigenvalues of the covariance of the data. The conditional mean is no worse, whatever
    the data are: a trained network has to come below.

    Args:
        x0: Data to take the covariance of, shape ``(B, *event)``; several times more examples
            than entries, or the number is too small.
        at: Level; any shape.

    Returns:
        float64, the shape of the level.
    """
    rows = check_data("x0", x0).reshape(len(x0), -1).double()
    lam = torch.linalg.svdvals(rows - rows.mean(0)) ** 2 / len(rows)
    signal, noise = (f.double()[..., None] for f in (at.signal, at.noise))
    return (lam * noise**2 / (signal**2 * lam + noise**2)).sum(-1) / rows.shape[1]


def curve(
    losses: Sequence[float], prediction: str | Prediction, schedule: Schedule, x0: Tensor
) -> list[Finding]:
    """Look at a loss curve: where it starts, where it ends, and whether it leaps.

    The start is compared with a network that outputs 0 (:eq:`eq:start-loss`), the end with the best
    straight line (:eq:`eq:linear-error`), the largest loss of the second half with its median.

    Args:
        losses: Native losses of all steps, averaged over entries, unweighted, at least 50.
        prediction: What the network predicts.
        schedule: The path, with times drawn uniformly.
        x0: Training data.

    Raises:
        ValueError: if there are fewer than 50 losses.
    """
    values = torch.as_tensor(losses, dtype=torch.float64)
    if values.ndim != 1 or len(values) < 50:
        raise ValueError(f"losses has shape {tuple(values.shape)}: give one a step, at least 50")
    at = schedule(spread(schedule, 100))
    line = float((native_factor(prediction, at) * linear_error(x0, at)).mean())
    later = values[len(values) // 2 :]
    start = float(values[0]) / start_loss(prediction, schedule, x0)
    return [
        Finding("first loss over that of 0", start, 0.75, 1.25),
        Finding("end over the best line", float(values[-len(values) // 5 :].mean()) / line, 0, 1.1),
        Finding("largest loss over the median", float(later.max() / later.median()), 1, 3),
    ]
