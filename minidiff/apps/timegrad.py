"""TimeGrad: forecast a series hour by hour; each hour's values are drawn by diffusion.

A recurrent encoder turns the past into a state. A head turns the state into a law of the next
values: ``heads.DiffusionHead`` makes TimeGrad; the Gaussian heads are its controls, with the same
encoder, the same loop and another law.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..data.series import Windows
from ..tensors import check_count, generator
from .heads import DiagonalHead, DiffusionHead, FullHead
from .recurrent import Moment, Recurrent


class Encoder(Protocol):
    """What can remember a series: the recurrent network below, or an oracle's plain history."""

    def start(self, past: Windows, /) -> tuple[Moment, Any]:
        """Read the history; return the moment before the next hour, and a memory."""
        ...

    def advance(self, memory: Any, value: Tensor, /) -> tuple[Moment, Any]:
        """Take in the value of the next hour, shape ``(N, K)``."""
        ...


class Head(Protocol):
    """What can turn a state into a law of ``(x - loc) / scale``."""

    def draw(self, state: Tensor, /, *, rng: torch.Generator) -> Tensor:
        """Draw one value for each state: ``(N, width) -> (N, K)``."""
        ...


class Forecaster(nn.Module):
    """An encoder and a head: with a ``DiffusionHead`` this is TimeGrad.

    Args:
        encoder: Reads the past; see :class:`~minidiff.apps.recurrent.Recurrent`.
        head: The law of the next values; see ``minidiff.apps.heads``.
    """

    def __init__(self, encoder: Recurrent, head: DiffusionHead | DiagonalHead | FullHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def loss(self, batch: Windows, history: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Loss of the head over all hours of whole windows that the encoder can predict.

        Args:
            batch: Windows of history and horizon together.
            history: Hours of the history, from which the scale is taken.
            rng: Source of times and noise.

        Raises:
            ValueError: if a shape or mask does not fit, an observed value is not finite, a history
                is missing as a whole, or times are unsorted or double.

        Source: Rasul et al. (2021), section 3.2.
        """
        moment = self.encoder.unroll(batch, history)
        first = batch.values.shape[1] - moment.loc.shape[1]
        observed = batch.observed[:, first:]
        target = (torch.where(observed, batch.values[:, first:], 0) - moment.loc) / moment.scale
        return self.head.loss(
            moment.state.flatten(0, 1), target.flatten(0, 1), observed.flatten(0, 1), rng=rng
        )

    @torch.no_grad()
    def forecast(
        self,
        past: Windows,
        horizon: int,
        *,
        n: int = 100,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        """Draw n paths of the next hours; the arguments are those of :func:`rollout`."""
        return rollout(self.encoder, self.head, past, horizon, n=n, rng=rng)


def rollout(
    encoder: Encoder,
    head: Head,
    past: Windows,
    horizon: int,
    *,
    n: int = 100,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Draw paths of a series hour by hour, all paths at once (:eq:`eq:rollout`).

    .. math:: x_m \sim p(\,\cdot\mid x_1..x_{m-1}) = \mathrm{head}(h_m), \qquad
        h_{m+1} = \mathrm{encoder}(h_m, x_m)

    Args:
        encoder: Reads the past; its moments hold state, shift and scale.
        head: Draws ``(x - loc) / scale`` given a state.
        past: History, shape ``(B, C, K)``; a NaN is legal where nothing was observed.
        horizon: Hours to draw, at least 1.
        n: Paths a series.
        rng: Source of noise.

    Returns:
        Shape ``(n, B, horizon, K)``.

    Raises:
        ValueError: if horizon or n is not a whole number above 0, or the history does not fit.

    Source: Rasul et al. (2021), section 3.3.
    """
    check_count("horizon", horizon)
    check_count("n", n)
    rng = generator(rng)
    many = Windows(*(part.repeat(n, *(1,) * (part.ndim - 1)) for part in past))
    moment, memory = encoder.start(many)
    path: list[Tensor] = []
    for _ in range(horizon):
        if path:
            moment, memory = encoder.advance(memory, path[-1])
        path.append(moment.loc + moment.scale * head.draw(moment.state, rng=rng))
    return torch.stack(path, 1).reshape(n, len(past.values), horizon, -1)
