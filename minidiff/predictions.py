"""What a network may predict: each choice is one row ``x0 = c_skip x_t + c_out y``."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .schedules import Level
from .tensors import check_same_shape

FAINT = 1e-6  # below this signal an eps or score prediction says nothing about x0


class Prediction(NamedTuple):
    """One meaning of a network output ``y``.

    Attributes:
        define: ``(level, x0, eps) -> y``, the target.
        coefficients: ``level -> (c_skip, c_out)`` with ``x0 = c_skip x_t + c_out y``.
        c_in: ``level -> factor`` of the network's input, or None for 1.
    """

    define: Callable[[Level, Tensor, Tensor], Tensor]
    coefficients: Callable[[Level], tuple[Tensor, Tensor]]
    c_in: Callable[[Level], Tensor] | None = None


def _audible(at: Level) -> Level:
    if bool((at.signal < FAINT).any()):
        raise ValueError(
            f"signal={float(at.signal.min()):.3g} is below {FAINT}: an eps or score prediction "
            'cannot give x0 there; predict "v", "x0" or "flow", or start the grid below t = 1'
        )
    return at


def _eps_row(at: Level) -> tuple[Tensor, Tensor]:
    return 1 / _audible(at).signal, -at.noise / at.signal


def _x0_row(at: Level) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(at.signal), torch.ones_like(at.signal)


def _v_row(at: Level) -> tuple[Tensor, Tensor]:
    total = at.signal**2 + at.noise**2  # 1 on a variance-preserving path
    return at.signal / total, -at.noise / total


def _score_row(at: Level) -> tuple[Tensor, Tensor]:
    return 1 / _audible(at).signal, at.noise**2 / at.signal


def _flow_row(at: Level) -> tuple[Tensor, Tensor]:
    turn = at.signal * at.d_noise - at.noise * at.d_signal
    clean = at.noise == 0  # there x_t is x0 up to the factor signal, also where d_noise is infinite
    skip = torch.where(clean, 1 / at.signal, at.d_noise / turn)
    return skip, torch.where(clean, torch.zeros_like(turn), -at.noise / turn)


def edm(sigma_data: float = 0.5) -> Prediction:
    r"""Preconditioned prediction of Karras et al. for data of a given spread (:eq:`eq:edm-row`).

    With :math:`s=\mathrm{signal}`, :math:`n=\mathrm{noise}` and
    :math:`r=\sqrt{n^2+\sigma_d^2s^2}`:

    .. math:: x_0 = \frac{\sigma_d^2 s}{r^2}\,x_t + \frac{n\,\sigma_d}{r}\,y,
        \qquad c_{\mathrm{in}} = \frac1r

    Args:
        sigma_data: Standard deviation of the data, measured, more than 0.

    Raises:
        ValueError: if sigma_data is not positive.

    Source: Karras et al. (2022), table 1, with :math:`\sigma=n/s` and input :math:`x_t/s`.
    """
    if not sigma_data > 0:
        raise ValueError(f"sigma_data={sigma_data}: give the standard deviation of your data")
    row = _Edm(sigma_data)
    return Prediction(row.define, row.coefficients, row.c_in)


class _Edm(NamedTuple):
    """The functions of :func:`edm` for one spread; methods can be pickled, closures cannot."""

    sigma_data: float

    def spread(self, at: Level) -> Tensor:
        return (at.noise**2 + self.sigma_data**2 * at.signal**2).sqrt()

    def define(self, at: Level, x0: Tensor, eps: Tensor) -> Tensor:
        return (at.noise * x0 / self.sigma_data - self.sigma_data * at.signal * eps) / self.spread(
            at
        )

    def coefficients(self, at: Level) -> tuple[Tensor, Tensor]:
        r = self.spread(at)
        return self.sigma_data**2 * at.signal / r**2, at.noise * self.sigma_data / r

    def c_in(self, at: Level) -> Tensor:
        return 1 / self.spread(at)


def _eps(at: Level, x0: Tensor, eps: Tensor) -> Tensor:
    return eps


def _x0(at: Level, x0: Tensor, eps: Tensor) -> Tensor:
    return x0


def _v(at: Level, x0: Tensor, eps: Tensor) -> Tensor:
    return at.signal * eps - at.noise * x0


def _score(at: Level, x0: Tensor, eps: Tensor) -> Tensor:
    return -eps / at.noise


def _flow(at: Level, x0: Tensor, eps: Tensor) -> Tensor:
    return at.d_signal * x0 + at.d_noise * eps


PREDICTIONS: dict[str, Prediction] = {
    "eps": Prediction(_eps, _eps_row),
    "x0": Prediction(_x0, _x0_row),
    "v": Prediction(_v, _v_row),
    "score": Prediction(_score, _score_row),
    "flow": Prediction(_flow, _flow_row),
    "edm": edm(),
}


def as_prediction(prediction: str | Prediction) -> Prediction:
    """Look a name up in ``PREDICTIONS``, or raise; a ``Prediction`` passes through."""
    if isinstance(prediction, Prediction):
        return prediction
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction={prediction!r}: choose one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[prediction]


def to_x0(prediction: str | Prediction, y: Tensor, x: Tensor, at: Level) -> Tensor:
    r"""Turn a network output into the clean data it implies (:eq:`eq:prediction-row`).

    .. math:: x_0 = c_{\mathrm{skip}}\,x_t + c_{\mathrm{out}}\,y

    Args:
        prediction: A name in ``PREDICTIONS`` or a ``Prediction``.
        y: Network output, the shape of ``x``.
        x: Noisy data, shape ``(B, *event)``.
        at: Level of ``x``.

    Raises:
        ValueError: if the name is unknown, shapes differ, or eps/score is asked for where
            signal < 1e-6.
    """
    check_same_shape("y", y, "x", x)
    skip, out = as_prediction(prediction).coefficients(at.over(x))
    return skip * x + out * y


def from_x0(prediction: str | Prediction, x0: Tensor, x: Tensor, at: Level) -> Tensor:
    """Turn clean data into the network output that implies it; inverse of :func:`to_x0`.

    Raises:
        ValueError: if the name is unknown, shapes differ, or the level has no noise.
    """
    return as_prediction(prediction).define(at.over(x), x0, eps_from_x0(x0, x, at))


def eps_from_x0(x0: Tensor, x: Tensor, at: Level) -> Tensor:
    r"""Return the noise in ``x``: :math:`(x_t-\mathrm{signal}\,x_0)/\mathrm{noise}`."""
    check_same_shape("x0", x0, "x", x)
    at = _noisy(at).over(x)
    return (x - at.signal * x0) / at.noise


def score_from_x0(x0: Tensor, x: Tensor, at: Level) -> Tensor:
    r"""Return the score :math:`\nabla\log p_t(x)` that a denoiser implies (:eq:`eq:tweedie`).

    .. math:: \nabla\log p_t(x) = \frac{\mathrm{signal}\,\mathrm E[x_0\mid x_t=x]-x}
        {\mathrm{noise}^2}

    Source: Efron (2011), equation 1.4 (Tweedie's formula).
    """
    check_same_shape("x0", x0, "x", x)
    at = _noisy(at).over(x)
    return (at.signal * x0 - x) / at.noise**2


def velocity_from_x0(x0: Tensor, x: Tensor, at: Level) -> Tensor:
    r"""Return the velocity :math:`dx/dt=\mathrm{signal}'x_0+\mathrm{noise}'\epsilon`."""
    eps = eps_from_x0(x0, x, at)
    at = at.over(x)
    return at.d_signal * x0 + at.d_noise * eps


def _noisy(at: Level) -> Level:
    if bool((at.noise <= 0).any()):
        raise ValueError("at has noise 0: clean data holds no noise to read off, use t > 0")
    return at
