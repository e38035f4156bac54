"""Measure imputation and forecasts of the weather: every method, task and seed.

    python scripts/weather.py impute
    python scripts/weather.py forecast --seeds 0 1 2

writes `notebooks/20_csdi_weather.json` and `notebooks/19_timegrad_weather.json` after each cell of
the grid, and a second call goes on where the first one stopped. A cell whose shipped weights are
not there yet waits for the next call. Forecasting trains its models first, each kept in `--models`.

Imputation: 24-hour windows of 15 channels from day 22 on, one after the other. Of what was
observed, `random` hides one half, `sparse` nine tenths, and `block` twelve hours of one station. A
window gets 100 samples, and 50 in the controls and in `sparse`. The network is asked in bfloat16
under autocast, as it was trained; the state is float32.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import minidiff as md
from minidiff import baselines, scoring
from minidiff.apps import csdi, weather
from minidiff.apps.recurrent import carry
from minidiff.data import Windows

ROOT = Path(__file__).resolve().parents[1]
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CORNER = 8  # windows of the small task
Cell = tuple[str, str, int, int]  # task, method, steps, seed


class Task(NamedTuple):
    """Windows to fill: what is there, what the method may see, and what it is scored on."""

    batch: Windows
    known: Tensor
    scored: Tensor


def hidden(name: str, batch: Windows, seed: int = 0) -> Task:
    """Hide a part of what was observed, the same for every method."""
    values, observed, _ = batch
    rng = md.tensors.seeded(seed, 6)
    if name == "block":  # hours 6 to 17 of one station, in turn
        hide = torch.zeros_like(observed)
        for i in range(len(values)):
            station = i % 3
            hide[i, 6:18, 5 * station : 5 * station + 5] = True
    else:
        share = {"random": 0.5, "sparse": 0.9}[name]
        hide = torch.rand(values.shape, generator=rng) < share
    return Task(batch, observed & ~hide, observed & hide)


Fill = Callable[[str, int, int, int], Tensor]  # (task, steps, seed, n) -> samples (S, B, L, K)


class Imputation:
    """Fill gaps in every way and score the samples."""

    SAMPLES = 100
    FEW = (5, 10, 20, 50)

    def __init__(self, windows: int | None, untrained: bool, compile: bool = False) -> None:
        self.data, self.untrained, self.compile = weather.split(), untrained, compile
        batch = self.data.cut(self.data.test, weather.DAY, stride=weather.DAY)
        self.batch = Windows(*(part[:windows] for part in batch))
        self.ways: dict[str, Fill] = {
            "last": lambda name, *_: self.point(baselines.last_value, name),
            "linear": lambda name, *_: self.point(baselines.interpolate, name),
            "gaussian": self.gaussian,
            "csdi": self.csdi,
            "published": self.published,
            "replacement": self.replacement,
        }
        blind, shown = "weather-blind", "weather-csdi"
        self.needs = {"csdi": shown, "published": shown, "replacement": blind}
        self.kept: dict[str, Any] = {}

    def cells(self, seeds: list[int]) -> list[Cell]:
        """List the grid, what matters first; what is not drawn has neither steps nor seeds."""
        tasks, all_, seed = ("random", "block", "sparse"), weather.STEPS, seeds[0]
        networks = ("csdi", "published", "replacement")
        return [
            *((t, w, 0, 0) for t in tasks for w in ("last", "linear", "gaussian")),
            *(("corner", w, all_, seed) for w in networks),
            *((t, "csdi", all_, seed) for t in tasks[:2]),
            *(("random", "csdi", steps, seed) for steps in (10, 25, 5)),
            ("random", "published", 10, seed),
            *((t, "replacement", all_, seed) for t in tasks[:2]),
            *((t, "published", all_, seed) for t in tasks[:2]),
            ("sparse", "csdi", all_, seed),
        ]

    def task(self, name: str) -> Task:
        """Hide a part of the windows; the corner is small, for a lab to repeat."""
        if name == "corner":
            return hidden("block", Windows(*(part[:CORNER] for part in self.batch)))
        return hidden(name, self.batch)

    def count(self, name: str, way: str) -> int:
        """Return the number of samples: all for the main results, half for the controls."""
        if name == "corner":
            return min(20, self.SAMPLES)
        half = name == "sparse" or way in ("published", "replacement")
        return self.SAMPLES // 2 if half else self.SAMPLES

    def seen(self, task: Task) -> tuple[Tensor, Tensor]:
        """Return values with NaN where hidden, so that no method can look, and what is known."""
        return torch.where(task.known, task.batch.values, float("nan")), task.known

    def model(self, name: str) -> Any:
        """Load a network once."""
        if name not in self.kept:
            torch.manual_seed(0)
            fresh = md.recipes.RECIPES[name].build().eval().requires_grad_(False)
            self.kept[name] = fresh if self.untrained else md.checkpoints.load(name)
            if self.compile:
                self.kept[name].net.compile(dynamic=False)
        return self.kept[name]

    def point(self, fill: Callable[..., Tensor], name: str) -> Tensor:
        """Fill with one value each; 0, the mean, where a channel shows nothing."""
        return fill(*self.seen(self.task(name)), 0.0)[None]

    def gaussian(self, name: str, steps: int, seed: int, n: int) -> Tensor:
        """Draw from the exact conditional law of a Gaussian fitted to the training windows."""
        if "gaussian" not in self.kept:
            train = self.data.cut(self.data.train, weather.DAY)
            self.kept["gaussian"] = baselines.GaussianWindows.fit(train.values, train.observed)
        rng = md.tensors.seeded(seed, 7)
        return self.kept["gaussian"].sample(*self.seen(self.task(name)), n, rng=rng)

    def csdi(self, name: str, steps: int, seed: int, n: int) -> Tensor:
        """Draw with the network that is shown what is known, and the variance measured for it."""
        model, times = self.model("weather-csdi"), md.grids.linspaced(weather.STEPS, steps)
        choose = self.data.cut(self.data.choose, weather.DAY, stride=4)
        hide = hidden("block" if name == "corner" else name, choose)
        shown = csdi.example(choose, hide.known)
        with torch.autocast("cpu", torch.bfloat16):
            doubt = md.covariances.residual_covariance(
                model.given(shown.cond), model.schedule, shown.x0, times,
                known=shown.known, scored=shown.scored, keep=(2,), rng=md.tensors.seeded(seed, 11),
            )  # fmt: skip
        variance = md.variance.analytic(doubt)
        return self.draw(csdi.impute, "weather-csdi", name, steps, seed, n, variance)

    def published(self, name: str, steps: int, seed: int, n: int) -> Tensor:
        """Draw with the same network and the posterior variance, as the paper does."""
        variance = md.posterior_variance
        return self.draw(csdi.impute, "weather-csdi", name, steps, seed, n, variance)

    def replacement(self, name: str, steps: int, seed: int, n: int) -> Tensor:
        """Draw with the network that was never shown anything, and overwrite what is known."""
        way, variance = csdi.impute_by_replacement, md.posterior_variance
        return self.draw(way, "weather-blind", name, steps, seed, n, variance)

    def draw(
        self, way: Any, model: str, name: str, steps: int, seed: int, n: int, variance: Any
    ) -> Tensor:
        """Draw all samples, the network in bfloat16."""
        task = self.task(name)
        values, known = self.seen(task)
        times = md.grids.linspaced(weather.STEPS, steps)
        with torch.autocast("cpu", torch.bfloat16):
            return way(
                self.model(model), values, known, task.batch.when, times, n=n, variance=variance,
                rng=md.tensors.seeded(seed, 8),
            )  # fmt: skip

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Fill the gaps of a task in one way, and score."""
        name, way, steps, seed = cell
        begin = time.process_time()
        samples = self.ways[way](name, steps, seed, self.count(name, way))
        row = {"seconds": round(time.process_time() - begin, 1)}
        row |= {"task": name, "method": way, "steps": steps, "seed": seed}
        return row | imputation_scores(samples, self.task(name), self.data.series.names, self.FEW)


def imputation_scores(
    samples: Tensor, task: Task, names: tuple[str, ...], few: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Score samples of hidden values; of a single one, what makes sense for a point."""
    target, scored = task.batch.values, task.scored
    row = spread_scores(samples, target, scored)
    kinds = sorted({name.split()[1] for name in names})
    own = {k: scored & torch.tensor([name.split()[1] == k for name in names]) for k in kinds}
    quantile = scoring.crps_quantile
    return row | {
        "windows": len(target),
        "hidden": int(scored.sum()),
        "channels": {k: quantile(samples, target, scored=m) for k, m in own.items() if m.any()},
        "few": {
            str(s): quantile(samples[:s], target, scored=scored) for s in few if s < len(samples)
        },
    }


def spread_scores(samples: Tensor, target: Tensor, scored: Tensor) -> dict[str, Any]:
    """Score samples entry by entry; a single sample is a point, without a spread."""
    y, drawn = torch.where(scored, target, 0), len(samples) > 1
    exact = scoring.crps_fair if drawn else scoring.crps_ensemble
    row: dict[str, Any] = {
        "samples": len(samples),
        "crps19": scoring.crps_quantile(samples, target, scored=scored),
        "crps": float(exact(samples, y)[scored].mean()),
        "mae": float((samples.median(0).values - y).abs()[scored].mean()),
    }
    if not drawn:
        return row | {"coverage90": None, "coverage": None, "ranks": None}
    shares = [[a, scoring.interval_coverage(samples, target, a, scored=scored)] for a in LEVELS]
    ranks = scoring.rank_histogram(samples, target, scored=scored).tolist()
    return row | {"coverage90": shares[-1][1], "coverage": shares, "ranks": ranks}


class Record:
    """A JSON file of measured cells, written after each of them."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.file = json.loads(path.read_text()) if path.exists() else {}
        self.file.setdefault("checkpoints", {})
        self.file.setdefault("rows", [])
        self.file |= about | {"torch": torch.__version__}

    def sum_of(self, name: str) -> None:
        """Note the checksum of a checkpoint; refuse to mix two versions of it in one file."""
        now = json.loads((md.checkpoints.WEIGHTS / f"{name}.json").read_text())["sha256"]
        if self.file["checkpoints"].setdefault(name, now) != now:
            raise SystemExit(f"{name} changed since {self.path} was begun: delete that file first")

    def done(self) -> set[tuple[Any, ...]]:
        """Cells that are measured."""
        return {tuple(row["cell"]) for row in self.file["rows"]}

    def add(self, cell: Cell, row: dict[str, Any]) -> None:
        """Add a row and write the file, under another name first."""
        self.file["rows"].append({"cell": cell} | row)
        draft = self.path.with_suffix(".draft")
        rows = ",\n  ".join(json.dumps(r) for r in self.file["rows"])
        rest = json.dumps({k: v for k, v in self.file.items() if k != "rows"}, indent=1)
        draft.write_text(f'{rest[:-2]},\n "rows": [\n  {rows}\n ]\n}}\n')
        os.replace(draft, self.path)
        words = " ".join(f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float))
        print(*cell, words, flush=True)


class Forecasting:
    """Forecast a day of weather in every way and score the paths."""

    PATHS = 100
    HEADS = ("diffusion", "full", "diagonal")

    def __init__(self, models: Path, windows: int | None, steps: int | None) -> None:
        self.models, self.windows, self.steps = models, windows, steps
        self.parts: dict[str, weather.Weather] = {}

    def cells(self, seeds: list[int]) -> list[Cell]:
        """List the grid: what needs no training, then a seed at a time."""
        plain = ("persistence", "seasonal", "residuals", "var")
        sets = ("rough", "smooth")
        learnt = [(s, h, weather.STEPS, seed) for seed in seeds for s in sets for h in self.HEADS]
        return [*((s, p, 0, 0) for s in sets for p in plain), *learnt]

    def part(self, name: str) -> weather.Weather:
        """Load a set of channels once."""
        if name not in self.parts:
            self.parts[name] = weather.split(weather.SETS[name])
        return self.parts[name]

    def plain(self, way: str, part: weather.Weather, past: Windows, ahead: Tensor) -> Tensor:
        """Forecast without a network; gaps of the history take the last value that was there."""
        filled, H = carry(past.values, past.observed), weather.HORIZON
        rng = md.tensors.seeded(0, 9)
        if way == "seasonal":
            return baselines.seasonal_naive(filled, H)[None]
        still = baselines.persistence(filled, H)
        if way == "persistence":
            return still[None]
        if way == "var":
            series = part.series
            rows = series.observed & part.train[:, None]
            values = torch.where(rows, series.values, 0)
            fitted = baselines.fit_var(
                values[part.train], rows[part.train], series.when[part.train]
            )
            return fitted.draw(filled, ahead, self.PATHS, rng=rng)
        train = part.cut(part.train, weather.HISTORY + H, stride=6)
        whole = train.observed.flatten(1).float().mean(1) > 0.9
        values = carry(train.values[whole], train.observed[whole])
        errors = values[:, weather.HISTORY :] - values[:, weather.HISTORY - 1, None]
        return baselines.with_residuals(still, errors, self.PATHS, rng=rng)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Forecast one set of channels in one way, and score."""
        name, way, _, seed = cell
        part = self.part(name)
        batch = part.cut(part.test, weather.HISTORY + weather.HORIZON, stride=weather.DAY)
        batch = Windows(*(b[: self.windows] for b in batch))
        past, later = (Windows(*(b[:, i] for b in batch)) for i in (
            slice(None, weather.HISTORY), slice(weather.HISTORY, None)
        ))  # fmt: skip
        row: dict[str, Any] = {"set": name, "method": way, "seed": seed, "windows": len(batch.when)}
        begin = time.process_time()
        if way in self.HEADS:
            recipe, file = md.recipes.forecasting(name, way), f"{name}-{way}-{seed}"
            if self.steps is not None:
                recipe = replace(recipe, steps=self.steps)
            if not (self.models / f"{file}.json").exists():
                self.models.mkdir(parents=True, exist_ok=True)
                md.checkpoints.fit(recipe, file, self.models, seed=seed)
            card = json.loads((self.models / f"{file}.json").read_text())
            row |= {
                "training": {k: card[k] for k in ("steps", "cpu_seconds", "parameters", "loss")}
            }
            model = recipe.build().eval()
            md.checkpoints.restore(model, self.models / f"{file}.safetensors")
            begin = time.process_time()
            rng = md.tensors.seeded(seed, 10)
            samples = model.forecast(past, weather.HORIZON, n=self.PATHS, rng=rng)
        else:
            samples = self.plain(way, part, past, later.when)
        row["seconds"] = round(time.process_time() - begin, 1)
        return (
            row
            | spread_scores(samples, later.values, later.observed)
            | joint_scores(samples, later)
        )


def joint_scores(samples: Tensor, later: Windows) -> dict[str, Any]:
    """Score what belongs together: the channels of an hour, and all of a day.

    The energy scores take, of each hour or day, the values that were observed; the sum takes the
    hours in which all were.
    """
    seen, whole = later.observed, later.observed.all(2)
    y = torch.where(seen, later.values, 0)
    X = torch.where(seen, samples, 0)
    energy = scoring.energy_score_fair if len(samples) > 1 else scoring.energy_score
    by_hour = energy(X, y)
    total = scoring.crps_sum(samples[:, whole], later.values[whole])
    return {
        "energy": float(by_hour[seen.any(2)].mean()),
        "energy_day": float(energy(X.flatten(2), y.flatten(1)).mean()),
        "energy_by_hour": [float(v) for v in by_hour.mean(0)],
        "crps_sum": total,
        "whole_hours": int(whole.sum()),
    }


def run(record: Record, cells: list[Cell], measure: Callable[[Cell], dict[str, Any] | None]) -> int:
    """Measure what is missing; return how many cells wait for weights."""
    left = 0
    for cell in cells:
        if cell not in record.done():
            row = measure(cell)
            left += row is None
            if row is not None:
                record.add(cell, row)
    return left


def impute(args: argparse.Namespace) -> int:
    """Walk through the grid of imputation."""
    out = args.out or ROOT / "notebooks" / "20_csdi_weather.json"
    job = Imputation(args.windows, args.untrained, args.compile)
    job.SAMPLES = args.samples or job.SAMPLES
    record = Record(
        out, {"length": weather.DAY, "stride": weather.DAY, "data": "weather, 15 channels"}
    )

    def measure(cell: Cell) -> dict[str, Any] | None:
        name = job.needs.get(cell[1])
        if name is not None and not args.untrained:
            if not (md.checkpoints.WEIGHTS / f"{name}.json").exists():
                return None
            record.sum_of(name)
        return job.measure(cell)

    cells = [c for c in job.cells(args.seeds) if args.only in (None, c[1])]
    return run(record, cells, measure)


def forecast(args: argparse.Namespace) -> int:
    """Walk through the grid of forecasting."""
    out = args.out or ROOT / "notebooks" / "19_timegrad_weather.json"
    job = Forecasting(args.models, args.windows, args.train)
    job.PATHS = args.samples or job.PATHS
    about = {"history": weather.HISTORY, "horizon": weather.HORIZON, "stride": weather.DAY}
    record = Record(out, about | {"sets": {k: list(v) for k, v in weather.SETS.items()}})
    return run(record, [c for c in job.cells(args.seeds) if args.only in (None, c[1])], job.measure)


def main(argv: list[str] | None = None) -> int:
    """Run one of the grids; the exit status says whether cells still wait for weights."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("job", choices=["impute", "forecast"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--models", type=Path, default=Path("_build/weather"))
    parser.add_argument("--only", help="one method only")
    parser.add_argument("--windows", type=int, help="so many windows, for a trial")
    parser.add_argument("--samples", type=int, help="so many samples, for a trial")
    parser.add_argument("--train", type=int, help="so many steps of training, for a trial")
    parser.add_argument("--untrained", action="store_true", help="random weights, for a trial")
    parser.add_argument("--compile", action="store_true", help="a third faster; needs a compiler")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    left = {"impute": impute, "forecast": forecast}[args.job](args)
    print(f"{left} cells wait for weights")
    return 1 if left else 0


if __name__ == "__main__":
    raise SystemExit(main())
