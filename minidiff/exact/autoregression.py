"""The vector autoregression: the oracle of forecasting for several channels and several lags.

Public through ``minidiff.exact``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..schedules import Schedule
from ..tensors import check_count, check_data, generator, randn
from .components import check_covs
from .mixtures import FullMixture, GaussianMixture


class VarForecast(NamedTuple):
    """A Gaussian over the next values of all channels.

    Attributes:
        mean: Shape ``(B, horizon, K)``.
        cov: The same for every series, shape ``(horizon, K, horizon, K)``.
    """

    mean: Tensor
    cov: Tensor


class VAR:
    r"""The autoregressive series with p lags and K channels (:eq:`eq:var`).

    .. math:: x_n = b + \sum_{j=1}^p A_j\,x_{n-j} + z_n, \qquad z_n\sim\mathcal N(0, C)

    With one channel and one lag it is :class:`~minidiff.exact.oracles.AR1`, with b = (1 - a) m.
    It computes in float64.

    Args:
        coefficients: :math:`A_1,\dots,A_p`, shape ``(p, K, K)``; row k of :math:`A_j` is what
            channel k takes from all channels j steps ago.
        cov: C, symmetric and positive definite, shape ``(K, K)``.
        offset: b, shape ``(K,)``; 0 if None.

    Attributes:
        coefficients: Shape ``(p, K, K)``, float64.
        cov: Shape ``(K, K)``, float64.
        offset: Shape ``(K,)``, float64.

    Raises:
        ValueError: if a shape is wrong, a number is not finite, or ``cov`` is not a covariance.

    Source: Hamilton (1994), section 10.1.
    """

    def __init__(self, coefficients: Tensor, cov: Tensor, offset: Tensor | None = None) -> None:
        coefficients = check_data("coefficients", torch.as_tensor(coefficients))
        if coefficients.ndim != 3 or coefficients.shape[1] != coefficients.shape[2]:
            raise ValueError(
                f"coefficients has shape {tuple(coefficients.shape)}: give (p, K, K), a square "
                "matrix a lag"
            )
        self._dtype, self.coefficients = coefficients.dtype, coefficients.double()
        self._lags, self._channels = coefficients.shape[:2]
        cov = check_covs("cov", torch.as_tensor(cov)[None], 1, self._channels)
        self.cov = cov[0].to(self.coefficients)
        if offset is None:
            offset = coefficients.new_zeros(self._channels)
        offset = check_data("offset", torch.as_tensor(offset))
        if offset.shape != (self._channels,):
            raise ValueError(
                f"offset has shape {tuple(offset.shape)}: give ({self._channels},), one a channel"
            )
        self.offset = offset.to(self.coefficients)
        self._root = torch.linalg.cholesky(self.cov)
        self._shock = FullMixture(self.cov.new_zeros(1, self._channels), self.cov[None])

    @property
    def radius(self) -> float:
        """Largest modulus of an eigenvalue of the companion matrix; below 1 it is stationary."""
        return float(torch.linalg.eigvals(self._companion()).abs().max())

    def responses(self, count: int) -> Tensor:
        r"""What a shock of now adds to the values of now and later (:eq:`eq:var-responses`).

        .. math:: \Psi_0 = I, \qquad \Psi_i = \sum_{j=1}^{\min(i,p)} A_j\,\Psi_{i-j}

        Args:
            count: How many, at least 1.

        Returns:
            :math:`\Psi_0,\dots,\Psi_{count-1}`, shape ``(count, K, K)``, float64.

        Raises:
            ValueError: if the count is not a positive integer.

        Source: Hamilton (1994), section 10.1.
        """
        psi = [torch.eye(self._channels).to(self.coefficients)]
        for i in range(1, check_count("count", count)):
            terms = [A @ psi[i - j] for j, A in enumerate(self.coefficients[:i], 1)]
            psi.append(torch.stack(terms).sum(0))
        return torch.stack(psi)

    def predictive(
        self, history: Tensor, horizon: int, *, offsets: Tensor | None = None
    ) -> VarForecast:
        r"""Distribution of the next values given the last p ones (:eq:`eq:var-predictive`).

        .. math:: \mathrm E[x_{n+i}] = b + \sum_{j=1}^p A_j\,\mathrm E[x_{n+i-j}], \qquad
            \mathrm{Cov}[x_{n+i},x_{n+j}] = \sum_{k=0}^{\min(i,j)-1}
            \Psi_{i-1-k}\,C\,\Psi_{j-1-k}^\top

        All of it given :math:`x_n, x_{n-1},\dots`, whose means are the values themselves; with
        :math:`\Psi` of :meth:`responses`. Values before the last p add nothing.

        Args:
            history: Shape ``(B, p or more, K)``, the oldest first.
            horizon: How many values to predict, at least 1.
            offsets: Takes the place of b, where it is known to change with time, such as with the
                hour of the day; shape ``(B or 1, horizon, K)``.

        Returns:
            Mean and covariance in the dtype of ``history``.

        Raises:
            ValueError: if a shape is wrong, a value is not finite, or the horizon is not a
                positive integer.

        Source: Hamilton (1994), sections 4.2 and 10.1.
        """
        mean = self._expected(history, horizon, offsets)
        factor = self._factor(horizon)
        cov = (factor @ factor.T).reshape(horizon, self._channels, horizon, self._channels)
        return VarForecast(mean.to(history), cov.to(history))

    def draw(
        self,
        history: Tensor,
        horizon: int,
        n: int,
        *,
        offsets: Tensor | None = None,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Draw futures from :meth:`predictive`, exactly and without a loop over time.

        Args:
            history: Shape ``(B, p or more, K)``, the oldest first.
            horizon: How many values to predict, at least 1.
            n: How many futures of each series.
            offsets: As in :meth:`predictive`.
            rng: Source of the noise.

        Returns:
            Shape ``(n, B, horizon, K)``, in the dtype of ``history``.

        Raises:
            ValueError: as :meth:`predictive`, or if n is not a positive integer.
        """
        mean = self._expected(history, horizon, offsets)
        shape = check_count("n", n), len(history), horizon * self._channels
        noise = randn(shape, rng, dtype=history.dtype, device=history.device)
        spread = noise.double() @ self._factor(horizon).to(mean.device).T
        return (mean + spread.reshape(n, *mean.shape)).to(history)

    def sample(self, n: int, length: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw series that start in the stationary law, so that none of them has to warm up.

        Args:
            n: How many series.
            length: How many values each.
            rng: Source of the noise.

        Returns:
            Shape ``(n, length, K)``, in the dtype of the coefficients as they were given.

        Raises:
            ValueError: if the series is not stationary, or a count is not a positive integer.
        """
        mean, state = self._stationary()
        n, length, rng, like = (
            check_count("n", n),
            check_count("length", length),
            generator(rng),
            self.cov,
        )
        start = randn((n, len(state)), rng, dtype=like.dtype, device=like.device)
        start = start @ torch.linalg.cholesky(state).T
        rows = [*start.reshape(n, self._lags, -1).flip(1).unbind(1)]  # a state is newest first
        later = max(length - self._lags, 0), n, self._channels
        for z in randn(later, rng, dtype=like.dtype, device=like.device):
            rows.append(self._carry(rows) + z @ self._root.T)
        return (mean + torch.stack(rows[:length], 1)).to(self._dtype)

    def joint(self, length: int) -> FullMixture:
        r"""Distribution of a window of the stationary series, float64 (:eq:`eq:var-joint`).

        .. math:: \mathrm E[x_n] = \Bigl(I-\sum_jA_j\Bigr)^{-1}b, \qquad
            \mathrm{Cov}[x_{n+h},x_n] = \bigl[F^hS\bigr]_{11}, \qquad
            S = FSF^\top + \begin{pmatrix}C&0\\0&0\end{pmatrix}

        F is the companion matrix, which takes the state :math:`(x_n,\dots,x_{n-p+1})` one step
        on, S the covariance of the state, and the index 11 means the first K rows and columns.

        Args:
            length: Values in the window: events have shape ``(length, K)``.

        Returns:
            One component, so that denoiser, score, flow and mmse are there, and
            :class:`~minidiff.exact.oracles.ConditionalGaussian` of its mean and covariance fills
            gaps.

        Raises:
            ValueError: if the series is not stationary, or the length not a positive integer.

        Source: Hamilton (1994), section 10.2.
        """
        mean, state = self._stationary()
        L, K, F = check_count("length", length), self._channels, self._companion()
        along, lagged = state[:, :K], []
        for _ in range(L):
            lagged.append(along[:K])
            along = F @ along
        gamma, h = torch.stack(lagged), torch.arange(L)[:, None] - torch.arange(L)
        blocks = torch.where((h >= 0)[..., None, None], gamma[h.abs()], gamma.mT[h.abs()])
        cov = blocks.transpose(1, 2).reshape(1, L * K, L * K)
        return GaussianMixture.full(mean.expand(1, L, K), (cov + cov.mT) / 2)

    def denoiser(
        self, schedule: Schedule, history: Tensor, *, offsets: Tensor | None = None
    ) -> Callable[[Tensor, Tensor], Tensor]:
        r"""Return the exact mean of the next value, given its noisy version and the past.

        With :math:`\mu`, the mean of the next value by :meth:`predictive`
        (:eq:`eq:var-denoiser`):

        .. math:: \mathrm E[x_{n+1,0}\mid x_{n+1,t}, x_n, x_{n-1},\dots] = \mu
            + \mathrm{signal}\,C\,\bigl(\mathrm{signal}^2C+\mathrm{noise}^2I\bigr)^{-1}
            (x_{n+1,t}-\mathrm{signal}\,\mu)

        At t = 0 it returns x itself. C is diagonalised once, when the series is made.

        Args:
            schedule: The path.
            history: Shape ``(B, p or more, K)``; the x of the denoiser has shape ``(B, K)`` and
                its t shape ``()`` or ``(B,)``.
            offsets: As in :meth:`predictive`, for one value: shape ``(B or 1, 1, K)``.
        """
        centre = self._expected(history, 1, offsets)[:, 0]
        denoise_shock = self._shock.denoiser(schedule)

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            if x.shape != centre.shape:
                raise ValueError(
                    f"x has shape {tuple(x.shape)}: give {tuple(centre.shape)}, one next value "
                    "for each history"
                )
            at, mu = schedule(t).over(x.double()), centre.to(x.device)
            if not bool((at.noise > 0).any()):
                return x / at.signal.to(x)
            return (mu + denoise_shock(x - at.signal * mu, t)).to(x)

        return denoise

    def covariance(self, schedule: Schedule, t: Tensor | float) -> Tensor:
        """Covariance of the next clean value, given its noisy version and the past.

        It is that of :eq:`eq:mixture-full-posterior` with C for the covariance; neither the noisy
        value nor the past changes it.

        Args:
            schedule: The path.
            t: Time, shape ``()`` or ``(B,)``.

        Returns:
            Shape ``(K, K)``, or ``(B, K, K)``; float64.
        """
        at = schedule(t)
        x = self.cov.new_zeros(max(at.noise.numel(), 1), self._channels)
        covs = self._shock.posterior(x, t, schedule).covs[:, 0]
        return covs if at.noise.ndim else covs[0]

    # ---- shared arithmetic ----------------------------------------------------------------------

    def _companion(self) -> Tensor:
        """Matrix that takes the last p values, the newest first, one step on: (pK, pK)."""
        K, size = self._channels, self._lags * self._channels
        shift = torch.eye(size).to(self.cov)[: size - K]
        return torch.cat([self.coefficients.transpose(0, 1).reshape(K, size), shift])

    def _carry(self, rows: list[Tensor]) -> Tensor:
        """What the last p values, (B, K) each and the newest last, leave to the next one."""
        newest = torch.cat(rows[: -self._lags - 1 : -1], 1)
        return newest @ self._companion()[: self._channels].T.to(newest.device)

    def _expected(self, history: Tensor, horizon: int, offsets: Tensor | None) -> Tensor:
        """Mean of the next values, (B, horizon, K), float64 and where history is."""
        history = check_data("history", history)
        if history.ndim != 3 or history.shape[2] != self._channels:
            raise ValueError(
                f"history has shape {tuple(history.shape)}: give (B, length, {self._channels})"
            )
        if history.shape[1] < self._lags:
            raise ValueError(
                f"history has {history.shape[1]} values a series: give at least {self._lags}, one "
                "for each lag"
            )
        added = self.offset.expand(1, check_count("horizon", horizon), -1)
        if offsets is not None:
            added = check_data("offsets", offsets)
            if added.shape[0] not in (1, len(history)) or added.shape[1:] != (
                horizon,
                self._channels,
            ):
                raise ValueError(
                    f"offsets has shape {tuple(added.shape)}: give ({len(history)} or 1, "
                    f"{horizon}, {self._channels}), one for every value to predict"
                )
        rows = [*history.double().unbind(1)]
        for b in added.to(rows[0]).unbind(1):
            rows.append(b + self._carry(rows))
        return torch.stack(rows[-horizon:], 1)

    def _factor(self, horizon: int) -> Tensor:
        r"""Cholesky factor of the predictive covariance: blocks Psi_{i-j} root(C), j <= i."""
        moved = self.responses(horizon) @ self._root
        h = torch.arange(horizon)[:, None] - torch.arange(horizon)
        blocks = torch.where((h >= 0)[..., None, None], moved[h.clamp(min=0)], 0.0)
        return blocks.transpose(1, 2).reshape(horizon * self._channels, -1)

    def _stationary(self) -> tuple[Tensor, Tensor]:
        """Mean (K,) of a value and covariance (pK, pK) of a state, by doubling, or raise."""
        radius, K, F = self.radius, self._channels, self._companion()
        S = torch.zeros_like(F)
        S[:K, :K] = self.cov
        for _ in range(60):  # S holds the first 1, 2, 4, ... terms of the sum of F^k Q F^kT
            S, F = S + F @ S @ F.T, F @ F
        if not radius < 1 or not bool(torch.isfinite(S).all()):
            raise ValueError(
                f"coefficients have a companion matrix of spectral radius {radius:.6g}: a "
                "stationary series needs less than 1; predictive and draw work for any"
            )
        left = torch.eye(K).to(self.cov) - self.coefficients.sum(0)
        return torch.linalg.solve(left, self.offset), (S + S.T) / 2
