"""The memory of TimeGrad: a recurrent network that reads a series, and the scale of its windows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..data.series import Windows, check_observed

DAY = 24.0  # hours


# ---- scaling -----------------------------------------------------------------------------------


def mean_scale(
    values: Tensor,
    observed: Tensor,
    *,
    usual: Tensor | None = None,
    weight: float = 0.0,
    least: float = 1e-10,
) -> Tensor:
    r"""Mean size of each channel over a window (:eq:`eq:mean-scale`).

    .. math:: s_k = \frac{w\,u_k + \sum_n m_{nk}\,\lvert x_{nk}\rvert}{w + \sum_n m_{nk}}

    With w = 0 this is the published scale. A channel of which the window shows nothing but zeros,
    or nothing at all, then takes the mean size over the whole batch. That makes a forecast depend
    on what else is in the batch, and a channel that hardly moved for a day gets a scale near 0: a
    usual size u with the weight of w hours mends both.

    Args:
        values: Shape ``(B, L, K)``; ignored where not observed.
        observed: bool, the shape of values.
        usual: u, the usual size of each channel, shape ``(K,)``; None takes the batch's mean.
        weight: w, at least 0.
        least: Smallest scale.

    Returns:
        Shape ``(B, 1, K)``.

    Raises:
        ValueError: if nothing of the batch is observed and no usual size is given, an observed
            value is not finite, or weight is negative.

    Source: Rasul et al. (2021), section 4.3; Salinas et al. (2020), section 3.3. Theirs is w = 0.
    """
    observed = check_observed(values, observed)
    if not weight >= 0:
        raise ValueError(f"weight={weight}: give a number of hours, at least 0")
    size = torch.where(observed, values, 0).abs().sum(1, keepdim=True)
    count = observed.sum(1, keepdim=True)
    if usual is None:
        if not bool(count.any()):
            raise ValueError("observed is False everywhere: a scale needs an observed value")
        usual = (size.sum() / count.sum()).expand(values.shape[2])
    size, count = size + weight * usual, count + weight
    scale = torch.where(size > 0, size / count.clamp(min=1e-30), usual)
    return scale.clamp(min=least)


def changes(values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
    """Return the changes from hour to hour, ``(B, L - 1, K)``, and where both ends were seen."""
    both = observed[:, 1:] & observed[:, :-1]
    return torch.where(both, values[:, 1:] - values[:, :-1], 0), both


def usual_change(batch: Windows) -> Tensor:
    r"""Root mean square of the hourly changes of each channel (:eq:`eq:usual-change`), ``(K,)``.

    .. math:: u_k = \Bigl(\frac{\sum_n m_n\,(x_{n,k}-x_{n-1,k})^2}{\sum_n m_n}\Bigr)^{1/2}

    over the hours of training windows of which both ends were observed. The square lets rare, large
    changes count: of a channel that stands still most of the time the mean size says little.

    Raises:
        ValueError: if a mask does not fit, or a channel has no two observed hours in a row, or
            never changes.
    """
    step, both = changes(batch.values, check_observed(batch.values, batch.observed))
    usual = (step.square().sum((0, 1)) / both.sum((0, 1))).sqrt()
    if not bool((usual > 0).all()):
        raise ValueError(f"values changes by {usual.tolist()} on average: give windows that move")
    return usual


# ---- the past -----------------------------------------------------------------------------------


class Moment(NamedTuple):
    """What is known before an hour: where its law starts from.

    Attributes:
        state: The encoder's state, shape ``(..., width)``.
        loc: Last observed values, shape ``(..., K)``.
        scale: Size of a change in this window, shape ``(..., K)``. The head's law is that of
            ``(x - loc) / scale``.
    """

    state: Tensor
    loc: Tensor
    scale: Tensor


class Memory(NamedTuple):
    """What the recurrent encoder carries from hour to hour."""

    hidden: Tensor  # of the GRU, (layers, N, width)
    recent: Tensor  # the last hours, as many as the longest lag, (N, longest, K)
    next: Tensor  # the hour that comes next, (N,)
    scale: Tensor  # (N, 1, K)


class Recurrent(nn.Module):
    r"""Read a series hour by hour with a GRU.

    .. math:: h_n = \mathrm{GRU}\bigl(h_{n-1},\; [x_{n-\ell}]_{\ell\in\mathrm{lags}},\;
        m_{n-1},\; \log(s/u),\; \text{phases of hour } n\bigr)

    The state for hour n has seen the values before n only. A value that is missing is replaced, in
    the input, by the last one that was observed (0 before the first), and m says so. The head's law
    is that of the change, in units of its size s over the history (:func:`mean_scale`).

    The paper scales the values themselves, by their mean size. Its series are counts and prices,
    which grow by factors; those here are standardised, and a mean size near 0 says nothing.

    Args:
        usual: u, the usual size of an hourly change of each of the K channels, from
            :func:`usual_change`.
        weight: Hours that the usual size counts for in the scale.
        lags: Hours back that the input shows; 1 first.
        width: Size of the state.
        layers: Layers of the GRU.
        periods: Hours of cycles that the input shows the phase of.
        dropout: Between layers, in training.

    Source: Rasul et al. (2021), section 4 and figure 1.
    """

    def __init__(
        self,
        usual: Tensor,
        *,
        weight: float = 2 * DAY,
        lags: Sequence[int] = (1, 24),
        width: int = 64,
        layers: int = 2,
        periods: Sequence[float] = (DAY,),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if not lags or lags[0] != 1 or list(lags) != sorted(set(lags)):
            raise ValueError(f"lags={tuple(lags)}: give rising whole numbers that begin with 1")
        self.usual: Tensor
        self.register_buffer("usual", usual.clone())
        self.channels, self.weight = len(usual), weight
        self.lags, self.periods = tuple(lags), tuple(periods)
        size = self.channels * (len(lags) + 2) + 2 * len(self.periods)
        self.gru = nn.GRU(
            size, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0
        )

    def unroll(self, batch: Windows, history: int) -> Moment:
        """Return the moments before the hours ``longest..L-1`` of whole windows, all at once.

        Args:
            batch: Windows of L hours.
            history: Hours from which the scale is taken, as in a forecast.

        Returns:
            Fields of shape ``(B, L - longest, ...)``, longest being the longest lag.

        Raises:
            ValueError: if a window is too short, or is missing as a whole.
        """
        self._check(batch, history)
        carried, scale = carry(batch.values, batch.observed), self._scale(batch, history)
        given = self._inputs(carried[:, :-1], batch.observed[:, :-1], batch.when[:, 1:], scale)
        state, _ = self.gru(given)
        loc = carried[:, self.lags[-1] - 1 : -1]
        return Moment(state, loc, scale.expand(loc.shape))

    def start(self, past: Windows) -> tuple[Moment, Memory]:
        """Read the history of N series, shape ``(N, C, K)``; return the moment that follows.

        Raises:
            ValueError: if the history is too short, or is missing as a whole.
        """
        self._check(past, past.values.shape[1])
        carried, scale = carry(past.values, past.observed), self._scale(past, past.values.shape[1])
        following = torch.cat([past.when[:, 1:], past.when[:, -1:] + 1], 1)
        state, hidden = self.gru(self._inputs(carried, past.observed, following, scale))
        recent = carried[:, -self.lags[-1] :]
        memory = Memory(hidden, recent, following[:, -1] + 1, scale)
        return Moment(state[:, -1], recent[:, -1], scale[:, 0]), memory

    def advance(self, memory: Memory, value: Tensor) -> tuple[Moment, Memory]:
        """Take in the value of the next hour, ``(N, K)``; return the moment that follows it."""
        recent = torch.cat([memory.recent[:, 1:], value[:, None]], 1)
        seen, hour = torch.ones_like(recent, dtype=torch.bool), memory.next[:, None]
        given = self._inputs(recent, seen, hour, memory.scale)
        state, hidden = self.gru(given, memory.hidden)
        moved = Memory(hidden, recent, memory.next + 1, memory.scale)
        return Moment(state[:, 0], value, memory.scale[:, 0]), moved

    def _inputs(self, carried: Tensor, seen: Tensor, when: Tensor, scale: Tensor) -> Tensor:
        """Show each hour of ``when`` from the longest lag on; carried ends an hour before it."""
        longest, n = self.lags[-1], carried.shape[1]
        lagged = [carried[:, longest - lag : n - lag + 1] for lag in self.lags]
        periods = torch.tensor(self.periods, dtype=torch.float64, device=when.device)
        angle = 2 * math.pi * when[:, when.shape[1] - n + longest - 1 :, None].double() / periods
        phases = torch.cat([angle.sin(), angle.cos()], 2).to(carried)
        seen, pace = seen[:, longest - 1 :].to(carried), (scale / self.usual).log()
        return torch.cat([*lagged, seen, pace.expand(seen.shape), phases], 2)

    def _scale(self, batch: Windows, history: int) -> Tensor:
        step, both = changes(batch.values[:, :history], batch.observed[:, :history])
        return mean_scale(step, both, usual=self.usual, weight=self.weight)

    def _check(self, batch: Windows, history: int) -> None:
        values, observed, when = batch
        length, longest = values.shape[1] if values.ndim == 3 else 0, self.lags[-1]
        if values.ndim != 3 or values.shape[2] != self.channels or when.shape != values.shape[:2]:
            raise ValueError(
                f"values has shape {tuple(values.shape)} and when {tuple(when.shape)}: give "
                f"(B, L, {self.channels}) and (B, L)"
            )
        if not max(longest, 2) <= history <= length:
            raise ValueError(
                f"history={history} of {length} hours: give at least {max(longest, 2)}, the "
                "longest lag, and no more than there are"
            )
        check_observed(values, observed)
        if not bool(observed[:, :history].flatten(1).any(1).all()):
            raise ValueError("observed is False for a whole history: leave such windows out")
        if bool((when.diff(dim=1) != 1).any()):
            raise ValueError("when does not rise by one hour a row: sort the rows, one an hour")


def carry(values: Tensor, observed: Tensor) -> Tensor:
    """Replace what was not observed by the last value that was, 0 before the first.

    It looks back only, so that no input of a forecast holds its future.

    Args:
        values: Shape ``(B, L, K)``; anything where not observed.
        observed: bool, shape ``(B, L, K)``.
    """
    hours = torch.arange(values.shape[1], device=values.device)[:, None]
    latest = torch.where(observed, hours, -1).cummax(1).values
    found = torch.where(observed, values, 0).gather(1, latest.clamp(min=0))
    return torch.where(latest >= 0, found, 0)
