"""The experiments of chapters 19 and 20: their split, models and tasks, and that their records are
whole and made with the shipped weights."""

import json
import math
from pathlib import Path

import pytest
import torch
import weather as script

import minidiff as md
from minidiff.apps import weather
from minidiff.apps.recurrent import usual_change
from minidiff.checkpoints import WEIGHTS

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.fixture(scope="module", params=weather.SETS)
def part(request):
    """The name of a set of channels, and the set."""
    return request.param, weather.split(weather.SETS[request.param])


def test_the_three_parts_share_no_hour(part):
    """Every hour is in one part; a window of one part has no hour of another."""
    _, data = part
    parts = [data.train, data.choose, data.test]
    assert bool((sum(p.long() for p in parts) == 1).all())
    hours = [set(data.cut(p, 24).when.flatten().tolist()) for p in parts]
    assert not (hours[0] & hours[1] or hours[0] & hours[2] or hours[1] & hours[2])


def test_scaling_is_that_of_the_training_days(part):
    """Mean 0 and deviation 1 over the observed training rows, to the precision of float32."""
    _, data = part
    seen, values = data.series.observed[data.train], data.series.values[data.train]
    for k in range(values.shape[1]):
        here = values[:, k][seen[:, k]].double()
        assert float(here.mean()) == pytest.approx(0, abs=1e-4)
        assert float(here.std(correction=0)) == pytest.approx(1, abs=1e-4)


def test_usual_changes_are_those_of_the_training_days(part):
    """The printed constants are the root mean squares, rounded to two places."""
    name, data = part
    got = usual_change(data.cut(data.train, weather.HISTORY + weather.HORIZON))
    assert got.tolist() == pytest.approx(list(weather.USUAL[name]), abs=0.0075)


def test_visibility_stands_at_its_ceiling():
    """What makes the rough set rough: four of five hours have the largest value there is."""
    raw = md.data.weather(("visib",))
    seen = raw.values[raw.observed]
    assert float(seen.max()) == 10 and 0.78 < float((seen == 10).float().mean()) < 0.88


@pytest.mark.parametrize("head", weather.HEADS)
def test_all_heads_fit_both_sets(head, part):
    """A forecaster of each kind draws paths of the set's channels."""
    name, data = part
    torch.manual_seed(0)
    model = weather.forecaster(name, head).eval()
    batch = data.cut(data.test, weather.HISTORY, stride=24 * 40)
    got = model.forecast(batch, 2, n=3, rng=torch.Generator().manual_seed(0))
    assert got.shape == (3, len(batch.when), 2, len(weather.USUAL[name]))
    assert bool(torch.isfinite(got).all())


def test_unknown_parts_are_named():
    for bad in (("wet", "diffusion"), ("rough", "cauchy")):
        with pytest.raises(ValueError, match="choose of smooth, rough and of diffusion"):
            weather.forecaster(*bad)


# ---- the tasks of imputation ---------------------------------------------------------------------


def test_hidden_values_are_observed_ones():
    """known and scored share nothing and make up what was observed; shares and blocks as said."""
    data = weather.split()
    batch = data.cut(data.test, 24, stride=24)
    assert len(batch.when) == 111
    for name, share in (("random", 0.5), ("sparse", 0.9)):
        task = script.hidden(name, batch)
        assert torch.equal(task.known ^ task.scored, batch.observed)
        assert not bool((task.known & task.scored).any())
        count = int(batch.observed.sum())
        room = 4.5 * (share * (1 - share) / count) ** 0.5
        assert int(task.scored.sum()) / count == pytest.approx(share, abs=room)
    task = script.hidden("block", batch)
    for i in range(6):
        columns = slice(5 * (i % 3), 5 * (i % 3) + 5)
        inside = torch.zeros(24, 15, dtype=torch.bool)
        inside[6:18, columns] = True
        assert torch.equal(task.scored[i], batch.observed[i] & inside)
        assert torch.equal(task.known[i], batch.observed[i] & ~inside)


@pytest.mark.parametrize("job, way", [
    ("impute", "linear"), ("impute", "published"), ("forecast", "var"), ("forecast", "residuals")
])  # fmt: skip
def test_a_grid_is_written_and_not_done_twice(job, way, tmp_path, capsys):
    """Two windows and samples: rows are added once, and a second call finds nothing to do."""
    out = tmp_path / "grid.json"
    few = ["--windows", "2", "--samples", "2", "--untrained"]
    call = [job, *few, "--out", str(out), "--only", way, "--models", str(tmp_path)]
    assert script.main(call) == 0
    rows = json.loads(out.read_text())["rows"]
    assert rows and {r["method"] for r in rows} == {way}
    assert all(math.isfinite(r["crps19"]) and r["windows"] == 2 for r in rows)
    before = out.read_bytes()
    assert script.main(call) == 0 and out.read_bytes() == before
    assert capsys.readouterr().out.count("0 cells wait") == 2


def record(name):
    return json.loads((NOTEBOOKS / name).read_text())


def test_the_record_of_imputation_is_whole():
    """Every cell of the list and no other, on all windows, with the weights that ship."""
    found = record("20_csdi_weather.json")
    job = script.Imputation(None, True)
    assert sorted(tuple(r["cell"]) for r in found["rows"]) == sorted(job.cells([0]))
    for name, sha in found["checkpoints"].items():
        assert json.loads((WEIGHTS / f"{name}.json").read_text())["sha256"] == sha
    assert set(found["checkpoints"]) == set(job.needs.values())
    for row in found["rows"]:
        corner = row["task"] == "corner"
        assert row["windows"] == (script.CORNER if corner else 111)
        drawn = row["method"] not in ("last", "linear")
        half = row["task"] == "sparse" or row["method"] in ("published", "replacement")
        assert row["samples"] == ((20 if corner else 50 if half else 100) if drawn else 1)


def test_the_record_of_forecasting_is_whole():
    """Every cell for three seeds, 100 paths, equal steps; seed 0 of diffusion is what ships."""
    found = record("19_timegrad_weather.json")
    job = script.Forecasting(Path("nowhere"), None, None)
    cells = sorted(tuple(r["cell"]) for r in found["rows"])
    assert cells == sorted(job.cells([0, 1, 2]))
    learnt = [r for r in found["rows"] if "training" in r]
    assert len({r["training"]["steps"] for r in learnt}) == 1 and len(learnt) == 18
    assert {r["samples"] for r in learnt} == {100}
    for name, kind in (("weather-timegrad", "smooth"), ("weather-timegrad-rough", "rough")):
        card = json.loads((WEIGHTS / f"{name}.json").read_text())
        row = next(r for r in learnt if r["cell"] == [kind, "diffusion", 50, 0])
        assert row["training"]["loss"] == card["loss"]
        assert row["training"]["parameters"] == card["parameters"]
