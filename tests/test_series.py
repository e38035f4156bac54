"""Series with gaps: weather, windows, splits by date, scaling, and what is refused."""

import datetime
import re

import numpy as np
import pytest
import torch

import minidiff as md
from minidiff.data.series import Series, check_series, day_of_month

STANDARD = datetime.timezone(datetime.timedelta(hours=-5))


@pytest.fixture(scope="module")
def wind():
    """All channels of the weather."""
    return md.data.weather(("temp", "dewp", "humid", "wind_speed", "pressure", "visib"))


def toy(n=10, k=2, start=0):
    values = torch.arange(n * k, dtype=torch.float32).reshape(n, k)
    return Series(
        values, torch.ones(n, k, dtype=torch.bool), torch.arange(start, start + n), ("a", "b")[:k]
    )


# ---- the weather -------------------------------------------------------------------------------


def test_weather_is_a_whole_time_line(wind):
    """8,730 hours in a row from the first hour of 2013 to the end of 30 December, none double."""
    assert wind.values.shape == wind.observed.shape == (8730, 18)
    assert bool((wind.when.diff() == 1).all())
    first, last = (
        datetime.datetime.fromtimestamp((int(wind.when[i]) + 5) * 3600, STANDARD) for i in (0, -1)
    )
    assert (first.isoformat()[:13], last.isoformat()[:13]) == ("2013-01-01T01", "2013-12-30T18")
    assert wind.names[:2] + wind.names[-1:] == ("EWR temp", "EWR dewp", "LGA visib")


def test_weather_keeps_its_gaps(wind):
    """Gaps are NaN and unobserved; their shares are those of the file (see the counts)."""
    assert bool((wind.values.isnan() == ~wind.observed).all())
    rows = {"EWR": 8703, "JFK": 8706, "LGA": 8706}  # rows of the file a station
    for s, n in zip(("EWR", "JFK", "LGA"), rows.values(), strict=True):
        at = [i for i, name in enumerate(wind.names) if name in (f"{s} dewp", f"{s} humid")]
        assert wind.observed[:, at].sum(0).tolist() in ([n, n], [n - 1, n - 1])
    pressure = wind.observed[:, [i for i, n in enumerate(wind.names) if "pressure" in n]]
    assert 0.10 < 1 - float(pressure.float().mean()) < 0.12  # one in ten of the rows, and the hours


def test_weather_has_no_impossible_wind(wind):
    """The file's 1048 mph is gone; the next largest wind, 42.6, is there."""
    speed = wind.values[:, [i for i, n in enumerate(wind.names) if "wind_speed" in n]]
    seen = speed[~speed.isnan()]
    assert 42 < float(seen.max()) < 43 and float(seen.min()) == 0


def test_weather_columns_follow_the_names(wind):
    """A smaller choice holds the same columns, in the order that was asked for."""
    some = md.data.weather(("visib", "temp"), ("LGA", "EWR"))
    assert some.names == ("LGA visib", "LGA temp", "EWR visib", "EWR temp")
    for k, name in enumerate(some.names):
        same = wind.values[:, wind.names.index(name)]
        assert torch.equal(some.values[:, k].nan_to_num(-99), same.nan_to_num(-99))


@pytest.mark.parametrize("bad", [{"channels": ("rain",)}, {"channels": ("temp", "temp")},
                                 {"stations": ()}, {"stations": ("SFO",)}])  # fmt: skip
def test_weather_refuses_unknown_names(bad):
    with pytest.raises(ValueError, match="choose different ones of"):
        md.data.weather(**bad)


# ---- dates -------------------------------------------------------------------------------------


def test_days_are_those_of_the_calendar(wind):
    """Against datetime, every 97th hour of the year."""
    days = day_of_month(wind.when)
    for i in range(0, 8730, 97):
        stamp = datetime.datetime.fromtimestamp((int(wind.when[i]) + 5) * 3600, STANDARD)
        assert int(days[i]) == stamp.day


def test_the_split_covers_every_hour_once(wind):
    parts = [md.data.on_days(wind, d) for d in (range(1, 20), (20, 21), range(22, 32))]
    assert bool((sum(p.long() for p in parts) == 1).all())
    assert [len(md.data.windows(wind, 24, rows=p).values) for p in parts[:2]] == [5195, 300]


@pytest.mark.parametrize("days", [(), (0,), (32,)])
def test_days_are_checked(days):
    with pytest.raises(ValueError, match=re.escape(f"days={sorted(days)}")):
        md.data.on_days(toy(), days)


# ---- windows -----------------------------------------------------------------------------------


def test_windows_written_out():
    """Starts of runs of chosen rows, counted anew in each run."""
    rows = torch.tensor([1, 1, 1, 1, 1, 0, 0, 1, 1, 1], dtype=torch.bool)
    some = md.data.windows(toy(), 2, stride=2, rows=rows)
    assert some.when.tolist() == [[0, 1], [2, 3], [7, 8]]
    assert some.values[2].tolist() == [[14.0, 15.0], [16.0, 17.0]]
    assert md.data.windows(toy(), 3).when[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("bad, words", [
    ({"when": torch.tensor([0, 1, 3, 4])}, "jumps by 2 hours after row 1"),
    ({"when": torch.tensor([0, 1, 1, 2])}, "double"),
    ({"when": torch.tensor([0, 2, 1, 3])}, "unsorted"),
    ({"when": torch.arange(4.0)}, "whole hours"),
    ({"when": torch.arange(3)}, "N times"),
    ({"names": ("a",)}, "K names"),
    ({"observed": torch.ones(4, 1, dtype=torch.bool)}, "one mark a value"),
    ({"observed": torch.ones(4, 2)}, "bool"),
    ({"values": torch.full((4, 2), float("nan"))}, "mark them unobserved"),
])  # fmt: skip
def test_windows_refuse_a_bad_series(bad, words):
    with pytest.raises(ValueError, match=words):
        md.data.windows(toy(4)._replace(**bad), 2)


@pytest.mark.parametrize(
    "bad",
    [
        {"length": 0},
        {"length": 2.0},
        {"length": 2, "stride": 0},
        {"length": 11},
        {"length": 2, "rows": torch.ones(10)},
    ],
)
def test_windows_refuse_bad_arguments(bad):
    with pytest.raises(ValueError, match=r"length=|stride=|rows"):
        md.data.windows(toy(), **bad)


# ---- scaling -----------------------------------------------------------------------------------


def test_scaling_reads_the_training_rows_only():
    """Other rows and unobserved entries may hold anything; numpy gives mean and deviation."""
    one = toy(8)
    rows, seen = torch.arange(8) < 5, torch.ones(8, 2, dtype=torch.bool)
    seen[1, 0] = False
    values = one.values.clone()
    values[1, 0], values[6] = float("nan"), 1e6
    scaled, scaling = md.data.standardise(one._replace(values=values, observed=seen), rows)
    a, b = np.array([0.0, 4, 6, 8]), np.array([1.0, 3, 5, 7, 9])
    assert torch.allclose(scaling.mean, torch.tensor([a.mean(), b.mean()]).float())
    assert torch.allclose(scaling.std, torch.tensor([a.std(), b.std()]).float())
    assert torch.allclose(scaling.undo(scaled.values)[seen], values[seen], rtol=1e-5)


def test_scaling_refuses_what_has_no_spread():
    constant = toy(4)._replace(values=torch.ones(4, 2))
    with pytest.raises(ValueError, match="no two different values of a, b"):
        md.data.standardise(constant, torch.ones(4, dtype=torch.bool))
    with pytest.raises(ValueError, match="no two different values of a, b"):
        md.data.standardise(toy(4), torch.arange(4) == 0)
    with pytest.raises(ValueError, match="rows"):
        md.data.standardise(toy(4), torch.arange(4))


def test_check_series_takes_a_good_one(wind):
    check_series(wind)


# ---- intensive care ----------------------------------------------------------------------------


def record(*lines):
    return "\n".join(["Time,Parameter,Value", "00:00,RecordID,1", "00:00,Age,54", *lines]) + "\n"


def test_physionet_reads_records(tmp_path):
    """The last value of an hour counts, hour 48 is outside, a record with nothing is left out."""
    (tmp_path / "132539.txt").write_text(record("00:07,HR,73", "00:37,HR,77", "47:59,pH,7.5"))
    (tmp_path / "132540.txt").write_text(record())
    (tmp_path / "132541.txt").write_text(record("48:00,HR,80", "05:00,Temp,36.6"))
    found = md.data.physionet2012(tmp_path)
    hr, ph, temp = (md.data.ICU_CHANNELS.index(n) for n in ("HR", "pH", "Temp"))
    assert found.values.shape == (2, 48, 35) and found.observed.sum((1, 2)).tolist() == [2, 1]
    assert [float(found.values[0, 0, hr]), float(found.values[0, 47, ph])] == [77.0, 7.5]
    assert float(found.values[1, 5, temp]) == pytest.approx(36.6)
    assert found.when[1].tolist() == list(range(48))


def test_physionet_says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"download set-a\.zip from"):
        md.data.physionet2012(tmp_path)
    path = tmp_path / "1.txt"
    path.write_text("something else\n")
    with pytest.raises(ValueError, match="no record of the challenge"):
        md.data.physionet2012(tmp_path)
    path.write_text(record("00:07,HR"))
    with pytest.raises(ValueError, match="damaged"):
        md.data.physionet2012(tmp_path)
    path.write_text(record())
    with pytest.raises(ValueError, match="not one value of the 35"):
        md.data.physionet2012(tmp_path)
