"""Noise schedules: one path ``x_t = signal(t) x0 + noise(t) eps`` from data (t=0) to noise (t=1).

Every schedule answers two questions: what is the level at time ``t`` (call it), and at which
time is a given log-SNR reached (``t_of``). At ``t == 0`` each returns signal 1 and noise 0.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .tables import betas_from as betas_from
from .tables import check_betas, check_range
from .tables import cosine_betas as cosine_betas
from .tables import linear_betas as linear_betas
from .tables import quadratic_betas as quadratic_betas
from .tables import scaled_linear_betas as scaled_linear_betas
from .tables import sigmoid_betas as sigmoid_betas
from .tables import sqrt_betas as sqrt_betas
from .tables import zero_terminal_snr as zero_terminal_snr
from .tensors import bcast

FIRST = 1e-6  # the earliest time that t_of gives to a finite log-SNR
SNAP = 1e-3  # t T this close to an integer is that step of a table


class Level(NamedTuple):
    r"""One point of the path: two factors and their derivatives in ``t``.

    Attributes:
        signal: Factor of the data; :math:`\sqrt{\bar\alpha_t}` of Ho et al.
        noise: Factor of the noise; :math:`\sqrt{1-\bar\alpha_t}` of Ho et al.
        d_signal: Derivative of ``signal`` in ``t``.
        d_noise: Derivative of ``noise`` in ``t``.
    """

    signal: Tensor
    noise: Tensor
    d_signal: Tensor
    d_noise: Tensor

    @property
    def log_snr(self) -> Tensor:
        r"""Log signal-to-noise ratio :math:`2(\log\mathrm{signal}-\log\mathrm{noise})`."""
        return 2 * (self.signal.log() - self.noise.log())

    def over(self, x: Tensor) -> Level:
        """Right-pad every field so that it multiplies ``x``, in the dtype and on the device of x.

        Scalars stay as they are (torch multiplies them into any dtype). Doing it twice changes
        nothing.

        Raises:
            ValueError: if the level does not broadcast to ``x``.
        """
        return Level(*(bcast(f, x) if f.ndim == 0 else bcast(f, x).to(x) for f in self))


class Schedule(ABC):
    """A path from data to noise. Subclasses are frozen, hashable and final."""

    @abstractmethod
    def level(self, t: Tensor) -> Level:
        """Return the level at times ``t`` in (0, 1]; ``t == 0`` never arrives here."""

    @abstractmethod
    def time(self, log_snr: Tensor) -> Tensor:
        """Invert a finite log-SNR; may leave [0, 1], which ``t_of`` then refuses or clips."""

    def __call__(self, t: Tensor | float) -> Level:
        """Return the level at time ``t``, computed in the dtype and on the device of ``t``.

        Args:
            t: Time in [0, 1], any shape. A Python number becomes a float64 scalar.

        Raises:
            ValueError: if a time lies outside [0, 1] or is not a number.
        """
        t = as_time(t)
        clean = t == 0
        at = self.level(torch.where(clean, torch.full_like(t, FIRST), t))
        if not bool(clean.any()):
            return at
        zero = self.derivatives_at_zero(t)
        return Level(
            torch.where(clean, torch.ones_like(t), at.signal),
            torch.where(clean, torch.zeros_like(t), at.noise),
            torch.where(clean, zero[0], at.d_signal),
            torch.where(clean, zero[1], at.d_noise),
        )

    def derivatives_at_zero(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the one-sided derivatives of signal and noise at ``t = 0``."""
        at = self.level(torch.zeros_like(t))
        return at.d_signal, at.d_noise

    def t_of(self, log_snr: Tensor | float) -> Tensor:
        """Return the time at which the path has this log-SNR; two schedules meet there.

        Args:
            log_snr: Any shape. ``inf`` is clean data and gives exactly 0; a finite value that
                lies above the schedule's first level gives 1e-6.

        Raises:
            ValueError: if the path never becomes that noisy, or a value is NaN, or whole numbers
                come as a tensor of integers.
        """
        lam = torch.as_tensor(log_snr, dtype=None if isinstance(log_snr, Tensor) else torch.float64)
        if not lam.is_floating_point():
            raise ValueError(f"log_snr has dtype {lam.dtype}: give a floating tensor or a number")
        if bool(lam.isnan().any()):
            raise ValueError("log_snr holds NaN: give numbers, or inf for clean data")
        clean = lam == math.inf
        t = self.time(torch.where(clean, torch.zeros_like(lam), lam))
        t = torch.where(clean, torch.zeros_like(t), t.clamp(min=FIRST))
        if not bool((t <= 1 + 1e-6).all()):  # NaN too, where the log-SNR is -inf
            least = float(self(torch.ones((), dtype=torch.float64)).log_snr)
            raise ValueError(
                f"log_snr reaches {float(lam.min()):.4g}, but {self!r} ends at {least:.4g}: "
                "ask for a log-SNR at or above that"
            )
        return t.clamp(max=1.0)


def as_time(t: Tensor | float) -> Tensor:
    """Return ``t`` as a floating tensor, or raise if a value lies outside [0, 1]."""
    if not isinstance(t, Tensor):
        t = torch.tensor(t, dtype=torch.float64)
    if not t.is_floating_point():
        raise ValueError(f"t has dtype {t.dtype}: give a floating time in [0, 1], such as step / T")
    if not bool(((t >= 0) & (t <= 1)).all()):
        raise ValueError(f"t spans [{float(t.min())}, {float(t.max())}]: give times in [0, 1]")
    return t


@dataclass(frozen=True)
class VP(Schedule):
    r"""Variance-preserving path of the continuous-time DDPM (:eq:`eq:level-vp`).

    .. math::

        \log\mathrm{signal}(t) = -\tfrac14 t^2(\beta_{\max}-\beta_{\min}) - \tfrac12 t\beta_{\min},
        \qquad \mathrm{signal}^2+\mathrm{noise}^2 = 1

    Args:
        beta_min: Noise rate at t = 0, per unit of time.
        beta_max: Noise rate at t = 1, per unit of time.

    Source: Song et al. (2021), equation 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        check_range("beta", self.beta_min, self.beta_max)

    def level(self, t: Tensor) -> Level:
        log_signal = -(t**2) * (self.beta_max - self.beta_min) / 4 - t * self.beta_min / 2
        rate = -(self.beta_min + t * (self.beta_max - self.beta_min)) / 2
        signal, noise = log_signal.exp(), (-torch.expm1(2 * log_signal)).sqrt()
        return Level(signal, noise, rate * signal, -rate * signal**2 / noise)

    def time(self, log_snr: Tensor) -> Tensor:
        log_signal = F.logsigmoid(log_snr) / 2
        root = (self.beta_min**2 / 4 - (self.beta_max - self.beta_min) * log_signal).sqrt()
        return -2 * log_signal / (self.beta_min / 2 + root)

    def derivatives_at_zero(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``signal' = -beta_min / 2``; ``noise`` grows like sqrt(t), so its slope is infinite."""
        return torch.full_like(t, -self.beta_min / 2), torch.full_like(t, math.inf)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Quarter circle from data to noise (:eq:`eq:level-cosine`).

    .. math:: \mathrm{signal} = \cos(\pi t/2), \qquad \mathrm{noise} = \sin(\pi t/2)

    At t = 1 the signal is exactly 0 (it is computed as a sine of 1 - t).

    Source: Salimans and Ho (2022), section 2; Nichol and Dhariwal (2021) without the offset.
    """

    def level(self, t: Tensor) -> Level:
        turn = math.pi / 2
        signal, noise = torch.sin(turn * (1 - t)), torch.sin(turn * t)
        return Level(signal, noise, -turn * noise, turn * signal)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.atan(torch.exp(-log_snr / 2)) * 2 / math.pi


@dataclass(frozen=True)
class LinearPath(Schedule):
    r"""Straight path of flow matching and rectified flow (:eq:`eq:level-linear`).

    .. math:: \mathrm{signal} = 1-t, \qquad \mathrm{noise} = t

    Source: Liu, Gong and Liu (2023); Lipman et al. (2023) with time reversed.
    """

    def level(self, t: Tensor) -> Level:
        one = torch.ones_like(t)
        return Level(1 - t, t, -one, one)

    def time(self, log_snr: Tensor) -> Tensor:
        return torch.sigmoid(-log_snr / 2)


@dataclass(frozen=True)
class VE(Schedule):
    r"""Variance-exploding path (:eq:`eq:level-ve`).

    .. math:: \mathrm{signal} = 1, \qquad
        \mathrm{noise} = \sigma_{\min}(\sigma_{\max}/\sigma_{\min})^t \text{ for } t>0

    The noise jumps from 0 to ``sigma_min`` just after t = 0.

    Args:
        sigma_min: Standard deviation of the noise just after t = 0, in units of the data.
        sigma_max: Standard deviation of the noise at t = 1, in units of the data.

    Source: Song et al. (2021), equation 31; default range of Karras et al. (2022).
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        check_range("sigma", self.sigma_min, self.sigma_max)

    def level(self, t: Tensor) -> Level:
        ratio = math.log(self.sigma_max / self.sigma_min)
        noise = self.sigma_min * torch.exp(ratio * t)
        return Level(torch.ones_like(t), noise, torch.zeros_like(t), ratio * noise)

    def time(self, log_snr: Tensor) -> Tensor:
        ratio = math.log(self.sigma_max / self.sigma_min)
        return (-log_snr / 2 - math.log(self.sigma_min)) / ratio


class BetaTable(Schedule):
    r"""The discrete chain of DDPM as a path: ``t = i/T`` is exactly step ``i`` (:eq:`eq:table`).

    .. math:: \mathrm{signal}(i/T)^2 = \bar\alpha_i = \prod_{j\le i}(1-\beta_j)

    Between two steps the log-SNR is linear in t; below step 1 its first segment is continued
    (where there is no second step with signal, with slope -1 in t T), and at t = 0 the path jumps
    to clean data.

    If the last beta is 1 the signal is exactly 0 at t = 1. No straight line leads to a log-SNR of
    minus infinity, so in the last segment the signal falls linearly (:eq:`eq:zero-snr-level`):

    .. math:: \mathrm{signal}(t) = \sqrt{\bar\alpha_{T-1}}\;(T - t\,T),
        \qquad \mathrm{noise} = \sqrt{1-\mathrm{signal}^2}

    Args:
        betas: Noise variances of the T steps, shape ``(T,)``, each in (0, 1). The last of several
            may be exactly 1.

    Attributes:
        T: Number of steps.
        betas: float64, ``betas[i-1]`` belongs to step i.
        alphas: ``1 - betas``.
        alpha_bars: Cumulative product of ``alphas``.

    Raises:
        ValueError: if betas is not a vector of such numbers.

    Source: Ho, Jain and Abbeel (2020), section 2.
    """

    T: int
    betas: Tensor
    alphas: Tensor
    alpha_bars: Tensor
    _knots: Tensor
    _last: float | None  # signal at step T - 1, if it is 0 at step T

    def __init__(self, betas: Tensor) -> None:
        betas = check_betas(betas)
        alphas, log_bar = 1 - betas, torch.log1p(-betas).cumsum(0)
        knots = log_bar - torch.log(-torch.expm1(log_bar))  # log-SNR at steps 1..T
        slopes = knots[knots > -math.inf].diff()
        slope = slopes[:1] if len(slopes) else knots.new_tensor([-1.0])
        vars(self).update(
            T=len(betas),
            betas=betas.clone(),
            alphas=alphas,
            alpha_bars=alphas.cumprod(0),
            _knots=torch.cat([knots[:1] - slope, knots]),  # entry 0 continues the first segment
            _last=None if knots[-1] > -math.inf else float(alphas[:-1].prod().sqrt()),
        )
        if self._last is not None:
            self._knots[-1] = self._knots[-2] - 1  # finite, so that no gradient is NaN; not used

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a BetaTable is frozen: make a new one instead of setting {name}")

    def __repr__(self) -> str:
        return f"BetaTable(T={self.T}, betas {self.betas[0]:.3g}..{self.betas[-1]:.3g})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BetaTable) and torch.equal(self.betas, other.betas)

    def __hash__(self) -> int:
        return hash(tuple(self.betas.tolist()))

    def level(self, t: Tensor) -> Level:
        u = t * self.T
        step = u + (u.round() - u).detach()  # the whole step, with the gradient of u
        u = torch.where(((u - step).abs() <= SNAP) & (step > 0), step, u)  # only t = 0 is clean
        knots = self._knots.to(t)
        left = (u.ceil() - 1).clamp(0, self.T - 1).long()
        slope = knots[left + 1] - knots[left]
        log_snr = knots[left] + (u - left) * slope
        signal, noise = torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
        rate = self.T * slope / 2  # d log(signal/noise) / dt
        at = Level(signal, noise, rate * signal * noise**2, -rate * noise * signal**2)
        if self._last is None:
            return at
        signal = self._last * (self.T - u).clamp(max=1)
        noise = ((1 - signal) * (1 + signal)).sqrt()
        d_signal = torch.full_like(u, -self.T * self._last)
        fall = Level(signal, noise, d_signal, -signal * d_signal / noise)
        last = u > self.T - 1
        return Level(*(torch.where(last, a, b) for a, b in zip(fall, at, strict=True)))

    def time(self, log_snr: Tensor) -> Tensor:
        knots = self._knots.to(log_snr)
        right = torch.searchsorted(-knots, -log_snr.contiguous()).clamp(1, self.T)
        share = (log_snr - knots[right - 1]) / (knots[right] - knots[right - 1])
        if self._last is not None:
            fall = 1 - torch.sigmoid(log_snr).sqrt() / self._last
            share = torch.where(log_snr < knots[-2], fall, share)
        return (right - 1 + share) / self.T

    def derivatives_at_zero(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The path jumps at 0; both factors rest there."""
        return torch.zeros_like(t), torch.zeros_like(t)


def check_reaches_noise(schedule: Schedule, *, most: float = 0.1) -> None:
    """Raise if a path still holds much of the data at t = 1, where a sampler starts from noise.

    Args:
        schedule: The path.
        most: Largest signal/noise at t = 1 that passes; data have unit scale.

    Raises:
        ValueError: if signal/noise at t = 1 exceeds ``most``.

    Source: Lin et al. (2024), section 3.1.
    """
    at = schedule(1.0)
    ratio = float(at.signal / at.noise)
    if not ratio <= most:
        raise ValueError(
            f"schedule={schedule!r} ends at signal/noise {ratio:.4g}, above most={most}: samples "
            "would start from another noise than training saw. Use linear_betas(T), which scales "
            "with T, or cosine_betas(T), or zero_terminal_snr(betas)"
        )
