"""The experiments of chapters 19 and 20: which weather, which split, which models."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.series import Scaling, Series, Windows, on_days, standardise, weather, windows
from ..denoiser import Denoiser
from ..grids import ddpm_steps
from ..nets import ChannelConvolutions, SeriesTransformer
from ..schedules import BetaTable
from ..tables import quadratic_betas
from ..times import low_discrepancy_times
from .heads import DiagonalHead, DiffusionHead, FullHead
from .recurrent import Recurrent
from .timegrad import Forecaster

SMOOTH = ("temp", "dewp", "humid", "wind_speed", "pressure")  # 15 channels, near Gaussian
ROUGH = ("visib", "wind_speed", "humid")  # 9 channels; visibility stands at its ceiling
SETS = {"smooth": SMOOTH, "rough": ROUGH}
# root mean square of the hourly change of each channel, station by station, rounded
USUAL = {
    "smooth": (0.10, 0.09, 0.26, 0.62, 0.08, 0.11, 0.10, 0.26, 0.57, 0.08, 0.08, 0.09, 0.26, 0.61,
               0.08),
    "rough": (0.44, 0.62, 0.26, 0.47, 0.57, 0.26, 0.51, 0.61, 0.26),
}  # fmt: skip
STEPS, DAY, HISTORY, HORIZON, WIDTH = 50, 24, 48, 24, 64


class Weather(NamedTuple):
    """The weather in three parts by the day of the month, scaled by the first.

    Attributes:
        series: All of it, standardised by the training rows.
        scaling: Mean and standard deviation of each channel, in its unit.
        train: Rows of days 1 to 19, bool.
        choose: Rows of days 20 and 21.
        test: Rows of days 22 and later.
    """

    series: Series
    scaling: Scaling
    train: Tensor
    choose: Tensor
    test: Tensor

    def cut(self, rows: Tensor, length: int, *, stride: int = 1) -> Windows:
        """Cut windows out of a part; see :func:`~minidiff.data.series.windows`."""
        return windows(self.series, length, stride=stride, rows=rows)


def split(channels: tuple[str, ...] = SMOOTH) -> Weather:
    """Load the weather of three airports and split it, as both chapters do."""
    raw = weather(channels)
    train, choose, test = (on_days(raw, d) for d in (range(1, 20), (20, 21), range(22, 32)))
    series, scaling = standardise(raw, train)
    return Weather(series, scaling, train, choose, test)


def imputer() -> Denoiser:
    """Build CSDI for 15 channels, with fresh weights."""
    net = SeriesTransformer(15, width=WIDTH, blocks=3, heads=4)
    return Denoiser(net, BetaTable(quadratic_betas(STEPS)), "eps")


def forecaster(channels: str, head: str = "diffusion") -> Forecaster:
    """Build a forecaster with fresh weights: TimeGrad, or one of its Gaussian controls.

    Args:
        channels: ``"smooth"`` or ``"rough"``.
        head: A key of ``HEADS``.

    Raises:
        ValueError: if one of the two is unknown.
    """
    if channels not in SETS or head not in HEADS:
        raise ValueError(
            f"channels={channels!r}, head={head!r}: choose of {', '.join(SETS)} and of "
            f"{', '.join(HEADS)}"
        )
    usual = torch.tensor(USUAL[channels])
    return Forecaster(Recurrent(usual, width=WIDTH), HEADS[head](len(usual)))


def _diffusion(k: int) -> DiffusionHead:
    model = Denoiser(ChannelConvolutions(k, WIDTH), BetaTable(quadratic_betas(STEPS)), "eps")
    return DiffusionHead(model, k, ddpm_steps(STEPS), learns=low_discrepancy_times)


HEADS = {
    "diffusion": _diffusion,
    "diagonal": lambda k: DiagonalHead(k, WIDTH),
    "full": lambda k: FullHead(k, WIDTH),
}
