"""Two oracles with a condition: a Gaussian with known entries, and a series with a known past.

The first answers for imputation, the second for forecasting. Public through ``minidiff.exact``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import LinearPath, Schedule
from ..tensors import check_count, check_data, check_mask
from .components import check_covs
from .mixtures import FullMixture, GaussianMixture


class ConditionalGaussian:
    r"""A Gaussian some of whose entries are known: the oracle of imputation.

    With o for the known entries and u for the others (:eq:`eq:conditional-gaussian`):

    .. math:: x_u\mid x_o \sim \mathcal N\bigl(m_u + C_{uo}C_{oo}^{-1}(x_o-m_o),\;
        C_{uu} - C_{uo}C_{oo}^{-1}C_{ou}\bigr)

    Args:
        mean: Shape ``event``.
        cov: Symmetric and positive definite, shape ``(D, D)`` over the flattened event.
        values: The known values, shape ``event``; ignored where not known (NaN is fine).
        known: bool, True = observed, shape ``event`` or broadcastable to it.

    Attributes:
        mean: Mean of every entry given the known ones, shape ``event``; known ones as they are.
        var: Variance of every entry given the known ones, shape ``event``; 0 where known.
        cov: Covariance of the unknown entries, in the order of the flattened event.

    Raises:
        ValueError: if shapes disagree, the matrix is not a covariance, a known value is not
            finite, or nothing is unknown.

    Source: Bishop (2006), equations 2.81 and 2.82.
    """

    def __init__(self, mean: Tensor, cov: Tensor, values: Tensor, known: Tensor) -> None:
        mean = check_data("mean", torch.as_tensor(mean)[None])[0]
        wide = check_covs("cov", torch.as_tensor(cov)[None], 1, mean.numel())[0].double()
        if values.shape != mean.shape:
            raise ValueError(
                f"values has shape {tuple(values.shape)}: give {tuple(mean.shape)}, that of mean"
            )
        self.known = check_mask("known", known, mean)
        seen = self.known.flatten()
        if bool(seen.all()):
            raise ValueError("known marks every entry: leave at least one unknown")
        flat, given = mean.flatten().double(), values.flatten()[seen].double()
        if not bool(torch.isfinite(given).all()):
            raise ValueError("values holds NaN or infinite entries where known: mark them unknown")
        gain = torch.linalg.solve(wide[seen][:, seen], wide[seen][:, ~seen]).T
        centre = flat[~seen] + gain @ (given - flat[seen])
        left = wide[~seen][:, ~seen] - gain @ wide[seen][:, ~seen]
        left = (left + left.T) / 2
        self._rest = GaussianMixture.full(centre.to(mean)[None], left.to(mean)[None])
        self.cov = self._rest.covs[0]
        self.mean = self._filled(values.to(mean)[None], self._rest.means)[0]
        self.var = self._filled(torch.zeros_like(mean)[None], self.cov.diagonal()[None])[0]

    def sample(self, n: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` events, shape ``(n, *event)``; known entries as they are."""
        rest = self._rest.sample(n, rng=rng)
        return self._filled(self.mean.expand(n, *self.mean.shape), rest)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of the unknown entries of clean ``x``, given the known values.

        Args:
            x: Shape ``(B, *event)``; what stands at known entries is ignored.

        Returns:
            Nats, shape ``(B,)``.
        """
        rest = self._unknown(x)
        return self._rest.log_prob(rest, 0.0, LinearPath())  # at t = 0 all paths are the data

    def denoiser(self, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
        r"""Return the exact mean of x0, given the known values and the noisy other entries.

        With the conditional mean and covariance of the class (:eq:`eq:conditional-denoiser`),
        and :math:`x_u` the noisy unknown entries:

        .. math:: \mathrm E[x_{0,u}\mid x_u, x_o] = m_{u|o} + \mathrm{signal}\,C_{u|o}
            \bigl(\mathrm{signal}^2C_{u|o}+\mathrm{noise}^2I\bigr)^{-1}
            (x_u-\mathrm{signal}\,m_{u|o})

        Known entries come back as their values, whatever stands there in x. Under
        :func:`minidiff.guidance.inpaint` with the same values and mask it stays as it is.
        """
        denoise_rest = self._rest.denoiser(schedule)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            rest = denoise_rest(self._unknown(x), t)
            return self._filled(self.mean.to(x).expand(x.shape), rest)

        return denoise

    def _unknown(self, x: Tensor) -> Tensor:
        if x.shape[1:] != self.mean.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}: this data has events of shape "
                f"{tuple(self.mean.shape)}"
            )
        return x.reshape(len(x), -1)[:, ~self.known.flatten().to(x.device)]

    def _filled(self, events: Tensor, unknown: Tensor) -> Tensor:
        """Copy ``events``, shape ``(B, *event)``, with other values in the unknown entries."""
        out = events.reshape(len(events), -1).clone()
        out[:, ~self.known.flatten().to(out.device)] = unknown
        return out.reshape(events.shape)


class Forecast(NamedTuple):
    """A Gaussian over the next values of a series.

    Attributes:
        mean: Shape ``(B, horizon)``.
        cov: The same for every series, shape ``(horizon, horizon)``.
    """

    mean: Tensor
    cov: Tensor


class AR1:
    r"""The autoregressive series of order one: the oracle of forecasting (:eq:`eq:ar1`).

    .. math:: x_{n+1} = m + a\,(x_n - m) + \sigma\,z_n, \qquad z_n\sim\mathcal N(0, 1)

    Args:
        coefficient: a; the series is stationary if it lies between -1 and 1.
        noise_std: :math:`\sigma`, positive.
        mean: m.

    Raises:
        ValueError: if a number is not finite, or ``noise_std`` is not positive.

    Source: Hamilton (1994), section 3.4.
    """

    def __init__(self, coefficient: float, noise_std: float, mean: float = 0.0) -> None:
        if not (math.isfinite(coefficient) and math.isfinite(mean)):
            raise ValueError(f"coefficient={coefficient}, mean={mean}: give finite numbers")
        if not 0 < noise_std < math.inf:
            raise ValueError(f"noise_std={noise_std}: give a positive, finite number")
        self.coefficient, self.noise_std, self.mean = coefficient, noise_std, mean

    def predictive(self, last: Tensor, horizon: int) -> Forecast:
        r"""Distribution of the next values given the last one (:eq:`eq:ar1-predictive`).

        .. math:: \mathrm E[x_{n+i}\mid x_n] = m + a^i(x_n-m), \qquad
            \mathrm{Cov}[x_{n+i},x_{n+j}\mid x_n]
            = \sigma^2\,a^{|i-j|}\sum_{k=0}^{\min(i,j)-1}a^{2k}

        The values before the last one add nothing.

        Args:
            last: The last value of each series, shape ``(B,)`` or ``(B, 1)``.
            horizon: How many values to predict, at least 1.

        Raises:
            ValueError: if ``last`` has another shape, or the horizon is not a positive integer.
        """
        last = check_data("last", last)
        if last.ndim > 2 or last[0].numel() != 1:
            raise ValueError(f"last has shape {tuple(last.shape)}: give (B,) or (B, 1)")
        ahead = torch.arange(1, check_count("horizon", horizon) + 1, device=last.device)
        mean = self.mean + self._power(ahead) * (last.double().reshape(-1, 1) - self.mean)
        grown = self._power(2 * (ahead - 1)).cumsum(0)  # of 1, 2, ... steps, in sigma^2
        fewer = torch.minimum(ahead[:, None], ahead) - 1
        cov = self.noise_std**2 * self._power((ahead[:, None] - ahead).abs()) * grown[fewer]
        return Forecast(mean.to(last), cov.to(last))

    def joint(self, length: int) -> FullMixture:
        r"""Distribution of a window of the stationary series, float64 (:eq:`eq:ar1-joint`).

        .. math:: \mathrm E[x_n] = m, \qquad
            \mathrm{Cov}[x_n, x_{n+h}] = \frac{\sigma^2}{1-a^2}\,a^{|h|}

        Args:
            length: Values in the window: events have shape ``(length,)``.

        Returns:
            One component, so that denoiser, score, flow and mmse are there.

        Raises:
            ValueError: if the series is not stationary.
        """
        if not abs(self.coefficient) < 1:
            raise ValueError(
                f"coefficient={self.coefficient}: a stationary window needs one between -1 and 1; "
                "predictive works for any"
            )
        n = torch.arange(check_count("length", length))
        cov = self._power((n[:, None] - n).abs()) * self.noise_std**2 / (1 - self.coefficient**2)
        mean = torch.full((1, length), self.mean, dtype=torch.float64)
        return GaussianMixture.full(mean, cov[None])

    def denoiser(self, schedule: Schedule, last: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        r"""Return the exact mean of the next value, given its noisy version and the last value.

        With :math:`\mu = m + a\,(x_n-m)` (:eq:`eq:ar1-denoiser`):

        .. math:: \mathrm E[x_{n+1,0}\mid x_{n+1,t}, x_n] = \mu
            + \frac{\mathrm{signal}\,\sigma^2}{\mathrm{signal}^2\sigma^2+\mathrm{noise}^2}
            (x_{n+1,t}-\mathrm{signal}\,\mu)

        Args:
            schedule: The path.
            last: The last value of each series, shape ``(B,)`` or ``(B, 1)``; the x of the
                denoiser has one of these two shapes.
        """
        centre = self.predictive(last, 1).mean

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            if x.ndim not in (1, 2) or x.numel() != len(centre) or len(x) != len(centre):
                raise ValueError(
                    f"x has shape {tuple(x.shape)}: give ({len(centre)},) or ({len(centre)}, 1), "
                    "one next value for each last one"
                )
            mean, at = centre.to(x).reshape(x.shape), schedule(t).over(x)
            if not bool((at.noise > 0).any()):
                return x / at.signal
            gain = at.signal * self.noise_std**2
            gain = gain / (at.signal**2 * self.noise_std**2 + at.noise**2)
            return mean + gain * (x - at.signal * mean)

        return denoise

    def _power(self, exponent: Tensor) -> Tensor:
        return torch.as_tensor(self.coefficient, dtype=torch.float64) ** exponent
