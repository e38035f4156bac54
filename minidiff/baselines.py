"""What a model of series has to beat: simple ways to fill gaps and to forecast.

Series have shape ``(B, L, K)``, time before channels; draws have a leading axis. ``known`` is bool
and True means observed: what stands elsewhere, NaN or not, is never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from .exact import VAR
from .exact.components import check_covs
from .tensors import check_count, check_data, check_mask, generator, randn


def last_value(values: Tensor, known: Tensor, otherwise: Tensor | float) -> Tensor:
    """Fill each gap with the last known value of its channel; before the first, with the first.

    Args:
        values: Shape ``(B, L, K)``.
        known: bool, shape ``(B, L, K)``; what is known comes back as it is.
        otherwise: What a channel takes of which the window knows nothing: a number or shape
            ``(K,)``; 0 for standardised data.

    Raises:
        ValueError: if a shape or the mask is wrong, or a known value is not finite.
    """
    a, _, spare = _neighbours(values, known, otherwise)
    return torch.where(known.any(1, keepdim=True), values.gather(1, a), spare)


def interpolate(values: Tensor, known: Tensor, otherwise: Tensor | float) -> Tensor:
    r"""Fill each gap by a straight line in time (:eq:`eq:interpolation`).

    .. math:: \hat x_n = x_a + \frac{n-a}{b-a}\,(x_b-x_a), \qquad a < n < b

    where a and b are the known hours next to n; outside of all known hours the line is flat.
    Arguments and errors are those of :func:`last_value`.
    """
    a, b, spare = _neighbours(values, known, otherwise)
    n = torch.arange(values.shape[1], device=values.device)[:, None]
    share = (n - a).to(values) / (b - a).clamp(min=1)
    x_a, x_b = values.gather(1, a), values.gather(1, b)
    filled = torch.where(a == b, x_a, x_a + share * (x_b - x_a))  # a = b: known, or an end
    return torch.where(known.any(1, keepdim=True), filled, spare)


def _neighbours(values: Tensor, known: Tensor, otherwise: Tensor | float) -> tuple[Tensor, ...]:
    """The known places next to each (before or at it, at it or after), or the one that there is."""
    _check_known("known", values, known)
    L, K = values.shape[1:]
    spare = torch.as_tensor(otherwise).to(values)
    if spare.shape not in ((), (K,)) or not bool(torch.isfinite(spare).all()):
        raise ValueError(f"otherwise={otherwise}: give a finite number, or {K}, one a channel")
    n = torch.arange(L, device=values.device)[:, None]
    before = torch.where(known, n, -1).cummax(1).values
    after = torch.where(known, n, L).flip(1).cummin(1).values.flip(1)
    a, b = torch.where(before < 0, after, before), torch.where(after == L, before, after)
    return a.clamp(max=L - 1), b.clamp(min=0), spare  # clamped where nothing is known


class GaussianWindows:
    r"""Whole windows as one Gaussian, and its exact answer to every gap.

    The unknown entries of a window, given the known ones, follow :eq:`eq:conditional-gaussian`.

    Args:
        centre: Mean of a window, shape ``(L, K)``; kept in float64, as cov.
        cov: Symmetric and positive definite, shape ``(L K, L K)``, over the flattened window.
    """

    def __init__(self, centre: Tensor, cov: Tensor) -> None:
        centre = check_data("centre", centre)
        if centre.ndim != 2:
            raise ValueError(f"centre has shape {tuple(centre.shape)}: give (L, K), one window")
        self.centre = centre.double()
        self.cov = check_covs("cov", cov[None], 1, centre.numel())[0].to(self.centre)

    @classmethod
    def fit(cls, values: Tensor, observed: Tensor, *, ridge: float = 1e-3, rounds: int = 3) -> Self:
        r"""Estimate mean and covariance of windows with gaps.

        The start are pairs that are observed together, m = 1 (:eq:`eq:pairwise-covariance`):

        .. math:: \bar x_i = \frac{\sum_w m_{wi}x_{wi}}{\sum_w m_{wi}}, \qquad
            C_{ij} = \frac{\sum_w m_{wi}m_{wj}(x_{wi}-\bar x_i)(x_{wj}-\bar x_j)}
            {\sum_w m_{wi}m_{wj}}

        Pairs from different windows need not fit together, and where channels are nearly equal they
        do not. So rounds of expectation-maximisation follow (:eq:`eq:em-covariance`): gaps take
        their mean given the rest of the window, which makes it :math:`\hat x_w`, and count with
        their covariance :math:`V_w` given the rest, 0 where observed.

        .. math:: \bar x = \frac1W\sum_w\hat x_w, \qquad C = \frac1W\sum_w
            \bigl((\hat x_w-\bar x)(\hat x_w-\bar x)^\top + V_w\bigr)

        Args:
            values: Training windows, shape ``(B, L, K)``.
            observed: bool, shape ``(B, L, K)``.
            ridge: Positive; each time, eigenvalues are raised to this share of their mean or more.
            rounds: How many rounds follow the start; 0 keeps it.

        Raises:
            ValueError: as :func:`last_value`, or if two entries are in no window observed together,
                nothing varies, or ridge or rounds is out of range.

        Source: Dempster, Laird and Rubin (1977), section 4.1.
        """
        _check_known("observed", values, observed)
        if not isinstance(rounds, int) or rounds < 0:
            raise ValueError(f"rounds={rounds!r}: give a whole number, at least 0")
        seen, shape = observed.flatten(1).double(), values.shape[1:]
        pairs = seen.T @ seen
        if not bool((pairs > 0).all()):
            i, j = (divmod(int(k), shape[1]) for k in (pairs == 0).nonzero()[0])
            raise ValueError(f"observed has no window with both (hour, channel) {i} and {j}")
        x = torch.where(observed, values, 0).flatten(1).double()
        mean = x.sum(0) / seen.sum(0)
        gap = seen * (x - mean)  # x is finite everywhere by now
        model = cls(mean.reshape(shape), _raised(gap.T @ gap / pairs, ridge))
        for _ in range(rounds):
            left = torch.zeros_like(model.cov)
            for rows, u, mean, root in model._given(values, observed):
                x[rows[:, None], u] = mean
                left[u[:, None], u] += len(rows) * torch.cholesky_inverse(root)
            gap = x - x.mean(0)
            model = cls(x.mean(0).reshape(shape), _raised((gap.T @ gap + left) / len(x), ridge))
        return model

    def mean(self, values: Tensor, known: Tensor) -> Tensor:
        """Fill gaps with their mean given the known entries.

        Arguments and errors are those of :func:`last_value`; nothing needs to be known.
        """
        _check_known("known", values, known)
        out = values.flatten(1).clone()
        for rows, u, mean, _ in self._given(values, known):
            out[rows[:, None], u] = mean.to(out)
        return out.reshape(values.shape)

    def sample(
        self, values: Tensor, known: Tensor, n: int, *, rng: torch.Generator | None = None
    ) -> Tensor:
        """Draw the gaps ``n`` times, given the known entries: shape ``(n, B, L, K)``.

        Arguments and errors are those of :func:`last_value`; n is at least 1.
        """
        _check_known("known", values, known)
        shape = check_count("n", n), *values.shape
        noise = randn(shape, rng, dtype=values.dtype, device=values.device).flatten(2)
        out = values.expand(shape).flatten(2).clone()
        for rows, u, mean, root in self._given(values, known):
            z = noise[:, rows[:, None], u].double().flatten(0, 1)
            spread = torch.linalg.solve_triangular(root, z, upper=False, left=False)
            out[:, rows[:, None], u] = (mean + spread.reshape(n, *mean.shape)).to(out)
        return out.reshape(shape)

    def _given(self, values: Tensor, known: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """For each mask: its windows, unknown entries u, their means, the Cholesky factor of P_uu.

        With P the inverse of C the mean is m_u - P_uu^-1 P_uo (x_o - m_o), the covariance P_uu^-1.
        """
        if values.shape[1:] != (event := tuple(self.centre.shape)):
            raise ValueError(f"values has shape {tuple(values.shape)}: give (B, *{event})")
        wide, centre = values.flatten(1).double(), self.centre.flatten().to(values.device)
        P = torch.linalg.inv(self.cov).to(wide)
        masks, which = known.flatten(1).unique(dim=0, return_inverse=True)
        for i, seen in enumerate(masks):
            rows, o, u = (m.nonzero()[:, 0] for m in (which == i, seen, ~seen))
            root = torch.linalg.cholesky(P[u][:, u])
            pull = P[u][:, o] @ (wide[rows[:, None], o] - centre[o]).T
            yield rows, u, centre[u] - torch.cholesky_solve(pull, root).T, root


def _raised(cov: Tensor, ridge: float) -> Tensor:
    spread, axes = torch.linalg.eigh(cov)
    floor = ridge * float(spread.mean())  # the mean eigenvalue is the mean of the diagonal
    if not 0 < floor < float("inf"):
        raise ValueError(f"ridge={ridge}, mean variance {float(spread.mean())}: not positive")
    return axes * spread.clamp(min=floor) @ axes.T


# ---- forecasting -------------------------------------------------------------------------------


def persistence(history: Tensor, horizon: int) -> Tensor:
    """Forecast that nothing changes any more: shape ``(B, horizon, K)``.

    Args:
        history: Shape ``(B, C, K)``, the oldest first.
        horizon: How many values to predict, at least 1.

    Raises:
        ValueError: if the shape is wrong, a value is not finite, or the horizon is not positive.
    """
    return seasonal_naive(history, horizon, period=1)


def seasonal_naive(history: Tensor, horizon: int, *, period: int = 24) -> Tensor:
    r"""Forecast that the last period repeats (:eq:`eq:seasonal-naive`).

    .. math:: \hat x_{n+i} = x_{n-P+1+(i-1)\bmod P}

    Arguments and errors are those of :func:`persistence`, which is a period P of 1; history has at
    least ``period`` values.
    """
    _check_series("history", history)
    if history.shape[1] < check_count("period", period):
        raise ValueError(f"history has {history.shape[1]} values: period={period} needs as many")
    ahead = torch.arange(check_count("horizon", horizon), device=history.device)
    return history[:, -period:][:, ahead % period]


def with_residuals(
    point: Tensor, residuals: Tensor, n: int, *, rng: torch.Generator | None = None
) -> Tensor:
    """Turn point forecasts into draws, by errors that such forecasts made before.

    Each draw, ``(n, B, horizon, K)``, adds one whole trajectory of errors, all hours and channels
    of it, so that the draw hangs together in time and between channels.

    Args:
        point: Shape ``(B, horizon, K)``.
        residuals: Truth minus forecast on training data, shape ``(R, horizon, K)``.
        n: How many draws for each forecast; each takes any of the R with equal chances.
        rng: Source of the choices.

    Raises:
        ValueError: if a shape is wrong, a value is not finite, or n is not positive.
    """
    _check_series("point", point)
    _check_series("residuals", residuals)
    if residuals.shape[1:] != point.shape[1:]:
        raise ValueError(f"residuals has shape {tuple(residuals.shape)}: give those of point")
    rng, shape = generator(rng), (check_count("n", n), len(point))
    which = torch.randint(len(residuals), shape, generator=rng, device=rng.device)
    return point + residuals.to(point)[which.to(point.device)]


class FittedVAR(NamedTuple):
    """A VAR and its constant at each hour, ``profile``, shape ``(period, K)``."""

    var: VAR
    profile: Tensor

    def offsets(self, when: Tensor) -> Tensor:
        """Constants at some hours: whole numbers ``(B, H)`` to ``(B, H, K)``."""
        return self.profile[_check_hours(when, 2).to(self.profile.device) % len(self.profile)]

    def draw(
        self, history: Tensor, when_next: Tensor, n: int, *, rng: torch.Generator | None = None
    ) -> Tensor:
        """Draw futures for the hours ``when_next``, whole numbers of shape ``(B, horizon)``.

        Other arguments and errors are those of :meth:`minidiff.exact.autoregression.VAR.draw`.
        """
        offsets = self.offsets(when_next)
        return self.var.draw(history, offsets.shape[1], n, offsets=offsets, rng=rng)


def fit_var(
    values: Tensor,
    observed: Tensor,
    when: Tensor,
    *,
    lags: int = 3,
    period: int = 24,
    ridge: float = 1e-6,
) -> FittedVAR:
    r"""Fit an autoregression with a constant for each hour, by least squares (:eq:`eq:fit-var`).

    .. math:: \min_{A,b}\;\sum_n\Bigl\lVert x_n - b_{h(n)} - \sum_{j=1}^p A_jx_{n-j}\Bigr\rVert^2
        + \lambda\sum_j\lVert A_j\rVert^2, \qquad h(n) = \mathrm{when}_n \bmod P

    The sum is over the R rows that are whole: all channels observed, there and in the p hours
    before. C is the sum of outer products of the residuals over R - p K - P, and the penalty R
    ``ridge`` times the mean variance of the regressors within an hour. The offset of the VAR
    itself is the mean of the constants.

    Args:
        values: Shape ``(N, K)``, in order of time.
        observed: bool, shape ``(N, K)``.
        when: Whole hours, increasing, shape ``(N,)``; where they jump no row is used.
        lags: p, at least 1.
        period: P, at least 1.
        ridge: Small; 0 is plain least squares.

    Raises:
        ValueError: if an argument is wrong, a channel has no value, or whole rows are too few.
    """
    _check_known("observed", values, observed, axes="NK")
    p, P, (N, K) = check_count("lags", lags), check_count("period", period), values.shape
    if len(_check_hours(when, 1)) != N or bool((when.diff() <= 0).any()):
        raise ValueError(f"when has {len(when)} hours: give {N}, one a row and increasing")
    if empty := (~observed.any(0)).nonzero()[:, 0].tolist():
        raise ValueError(f"observed has no value of channels {empty}: leave them out")
    when = when.to(values.device)
    rows = (torch.arange(p, max(N, p))[:, None] - torch.arange(p + 1)).to(values.device)
    unbroken = when[rows[:, 0]] - when[rows[:, -1]] == p  # the hours increase
    rows = rows[unbroken & observed.all(1)[rows].all(1)]
    hour = when[rows[:, 0]] % P
    freedom, count = len(rows) - p * K - P, hour.bincount(minlength=P)
    if freedom < K or not bool((count > 0).all()):
        raise ValueError(f"values has {len(rows)} whole rows, by hour {count.tolist()}: give more")
    joined = values.double()[rows]  # (rows, 1 + p, K): a value, then those before it
    means = joined.new_zeros(P, p + 1, K).index_add(0, hour, joined) / count[:, None, None]
    gap = joined - means[hour]  # about the mean of its hour: the constants drop out
    y, lagged = gap[:, 0], gap[:, 1:].flatten(1)
    square = lagged.T @ lagged
    square += ridge * square.diagonal().mean() * torch.eye(len(square)).to(square)
    root, failed = torch.linalg.cholesky_ex(square)
    if not ridge >= 0 or bool(failed):
        raise ValueError(f"ridge={ridge}: give 0 or more, and more if lags determine each other")
    A = torch.cholesky_solve(lagged.T @ y, root).T  # (K, pK)
    error = y - lagged @ A.T
    profile = means[:, 0] - means[:, 1:].flatten(1) @ A.T
    var = VAR(A.reshape(K, p, K).transpose(0, 1), error.T @ error / freedom, profile.mean(0))
    return FittedVAR(var, profile)


def _check_known(name: str, values: Tensor, known: Tensor, axes: str = "BLK") -> None:
    if values.ndim != len(axes):
        raise ValueError(f"values has shape {tuple(values.shape)}: give ({', '.join(axes)})")
    if check_mask(name, known, values).shape != known.shape:
        raise ValueError(f"{name} has shape {tuple(known.shape)}: give {tuple(values.shape)}")
    check_data("values", torch.where(known, values, 0))  # what is not known may be NaN


def _check_series(name: str, x: Tensor) -> None:
    if check_data(name, x).ndim != 3:
        raise ValueError(f"{name} has shape {tuple(x.shape)}: give (B, length, K)")


def _check_hours(when: Tensor, axes: int) -> Tensor:
    if when.is_floating_point() or when.dtype == torch.bool or when.ndim != axes:
        raise ValueError(
            f"when has {when.dtype} {tuple(when.shape)}: give whole hours, {axes} axes"
        )
    return when
