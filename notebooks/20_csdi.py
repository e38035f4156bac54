# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% tags=["remove-cell"]
# In Colab: installs minidiff and keeps Colab's own torch. In a checkout: finds the package.
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path

REPOSITORY, TAG = "https://github.com/OWNER/minidiff", "main"
root = next((p for p in [Path.cwd(), *Path.cwd().parents] if (p / "_toc.yml").exists()), None)
if root is not None and str(root) not in sys.path:
    sys.path.insert(0, str(root))
if "google.colab" in sys.modules and importlib.util.find_spec("minidiff") is None:
    if "/OWNER/" in REPOSITORY:
        print("minidiff has no home yet: set REPOSITORY in this cell to its address on GitHub")
    else:
        keep = [p for p in ("torch", "torchvision", "numpy") if importlib.util.find_spec(p)]
        pins = "".join(f"{p}=={importlib.metadata.version(p)}\n" for p in keep)
        Path("colab-pins.txt").write_text(pins)
        source = f"minidiff[labs,data] @ git+{REPOSITORY}@{TAG}"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "-c", "colab-pins.txt", source]
        subprocess.run(pip, check=True)
        importlib.invalidate_caches()
# %% [markdown]
# # Lab: the hours when the station was silent
#
# Real weather of three airports, with real gaps and with gaps that we make. A network that was trained once fills them, not with one guess but with as many as we ask for. {ref}`sec-imputation` derives how; here the masks are drawn, the guesses are scored against other ways to fill gaps, and the spread of the guesses is checked against what really happened.
#
# The full grid of tasks, methods and numbers of steps takes hours. A script, `scripts/weather.py`, has made it, and its results are committed beside this lab. We compute a corner of it again, check that it agrees, and read the rest. A small network is trained while you wait. On one core all of it takes {number}`20_csdi:minutes|.1f` minutes.

# %% tags=["parameters"]
import os

PRESET = os.environ.get("PRESET", "cpu")  # "smoke" (seconds), "cpu" (as printed), "gpu"
PHYSIONET = ""  # at "gpu": the folder set-a of the challenge of 2012, if you have it

# %%
import json
import math
import resource
import time
import urllib.request

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

import minidiff as md
from minidiff import baselines, scoring
from minidiff.apps import csdi, targets, weather
from minidiff.data import Series, Windows

start = time.perf_counter()
md.plots.use_style()
torch.set_num_threads(1)
as_printed = PRESET != "smoke"
device = "cuda" if PRESET == "gpu" and torch.cuda.is_available() else "cpu"
numbers = {}


def committed(name="20_csdi_weather.json"):
    """Read the grid that the script has made; from the repository if it is not beside this lab."""
    near = [p / name for p in (Path.cwd(), Path.cwd() / "notebooks") if (p / name).exists()]
    if near:
        return json.loads(near[0].read_text())
    with urllib.request.urlopen(f"{REPOSITORY}/raw/{TAG}/notebooks/{name}") as file:
        return json.load(file)


rows = committed()["rows"]


def find(**wanted):
    return [row for row in rows if all(row[k] == v for k, v in wanted.items())]


def note(key, value, room=0.1):
    """Record a score with a band: 111 windows scatter by about 4 %, and .1 is 2.5 times that."""
    wide = room * abs(value)
    numbers[key] = {"value": value, "band": [value - wide, value + wide]}


# %% [markdown]
# ## What is hidden
#
# A window is 24 hours of 15 channels: five quantities at three airports. To learn how to fill gaps one needs gaps whose content is known, so some of the observed values are hidden and the network is scored on those. *What* to hide is the choice of a strategy ({ref}`sec-imputation-targets`). Below, four strategies for three windows. Time runs to the right, channels run downwards. Before looking: in which of the four does a hidden value usually have a known neighbour in time? For which will a straight line be a bad guess?

# %%
parts = weather.split()
names, station = parts.series.names, torch.arange(15) // 5
days = parts.cut(parts.train, weather.DAY, stride=weather.DAY)
gappy = (~days.observed).flatten(1).sum(1).topk(40).indices
shown = Windows(*(part[gappy] for part in days))
block = targets.block_targets(6, 24, station)
STRATEGIES = {
    "random": targets.random_targets,
    "historical": targets.historical_targets,
    "block": block,
    "random or block": targets.mixed_targets(targets.random_targets, block),
}
masks = {
    name: hide(shown.observed, md.tensors.seeded(8, i))
    for i, (name, hide) in enumerate(STRATEGIES.items())
}

# %% mystnb={"image": {"alt": "Four columns of three windows, 15 channels by 24 hours, in three colours. Random: scattered orange cells, many in the first window and few in the second. Historical: few orange cells, in runs along single channels. Block: one orange rectangle, five channels high. Random or block: some windows of either kind. Grey cells, never observed, are the same in a row of panels."}, "figure": {"name": "fig-csdi-masks", "caption": "What four strategies hide in three of the training windows with the most gaps. Green: shown to the network. Orange: hidden, and scored. Grey: never observed, so neither shown nor scored. Random hides any share from none to all. Historical hides where another window has gaps. Block takes a whole airport away for hours. The shipped network learned from the last column."}}
fig, axes = plt.subplots(3, 4, figsize=(8.4, 4.2), sharex=True, sharey=True)
for column, (name, known) in zip(axes.T, masks.items(), strict=True):
    for ax, one, seen in zip(column, known, shown.observed, strict=False):
        md.plots.gaps(ax, seen, one)
        ax.set_yticks([2, 7, 12], ["EWR", "JFK", "LGA"])
    column[0].set_title(name)
    column[-1].set_xlabel("hour")

# %% tags=["nbval-check-output"]
many = parts.cut(parts.train, weather.DAY, stride=3)
hides = {
    name: float((many.observed & ~hide(many.observed, md.tensors.seeded(2, i))).sum())
    / float(many.observed.sum())
    for i, (name, hide) in enumerate(STRATEGIES.items())
}
for name, low, high in (("random", 0.45, 0.55), ("historical", 0.005, 0.06), ("block", 0.17, 0.25)):
    numbers[f"hides_{name}"] = {"value": hides[name], "band": [low, high]}
    assert low < hides[name] < high
gaps = 1 - float(parts.series.observed[parts.train].double().mean())
numbers["missing"] = {"value": gaps, "band": [0.01, 0.05]}
numbers["train_windows"] = {
    "value": len(parts.cut(parts.train, weather.DAY).values),
    "band": [5195, 5195],
}
print("check passed: each strategy hides its share")

# %% [markdown]
# In the training days {number}`20_csdi:missing|.1%` of all values are missing, most of them pressures. Random hides {number}`20_csdi:hides_random|.0%` of the observed values on average, and any share with equal chances; historical {number}`20_csdi:hides_historical|.1%`, because that is how much is missing elsewhere; block {number}`20_csdi:hides_block|.0%`.
#
# ## How far off is the network?
#
# The shipped network `weather-csdi` has seen days 1 to 19 of every month, cut into {number}`20_csdi:train_windows|.0f` overlapping windows. We will use it on test windows, from day 22 on, and hide the same things as the script: twelve hours of one airport (*block*), half of all values (*random*), or nine tenths of them (*sparse*).
#
# Before it may fill anything we ask it for what we know. The published sampler adds the noise of somebody who knows the answer, and its samples are too narrow even if the network is perfect ({ref}`sec-imputation-fifty`). The better variance needs the doubt that is left, and {eq}`eq:residual-covariance` measures it: hide blocks on days 20 and 21, which are not used for training, noise them to each of the 50 steps, and take the mean square error of the prediction, channel by channel. Guess before you look: how many times farther off is it for the wind than for the pressure, in standard deviations? Does it do better on the days that it was trained on? And at the noisiest step, where it sees nothing but its neighbours and the other airports: is the error near that of a good guess, so less than 1?

# %%
thin = 1 if as_printed else 24
choose = parts.cut(parts.choose, weather.DAY, stride=4)
choose = Windows(*(part[::thin] for part in choose))
test = parts.cut(parts.test, weather.DAY, stride=weather.DAY)
model = md.checkpoints.load("weather-csdi")
table = model.schedule


def hidden(task, batch):
    """Return what is hidden, drawn as the script draws it."""
    hide, draw = torch.zeros_like(batch.observed), md.tensors.seeded(0, 6)
    if task == "block":
        for i in range(len(hide)):
            hide[i, 6:18, 5 * (i % 3) : 5 * (i % 3) + 5] = True
    else:
        hide = torch.rand(hide.shape, generator=draw) < {"random": 0.5, "sparse": 0.9}[task]
    return batch.observed & hide


def measure(batch, times):
    """Measure the doubt about hidden blocks at each time, channel by channel, as the script."""
    shown = csdi.example(batch, batch.observed & ~hidden("block", batch))
    with torch.autocast("cpu", torch.bfloat16):
        return md.covariances.residual_covariance(
            model.given(shown.cond), table, shown.x0, times, known=shown.known,
            scored=shown.scored, keep=(2,), rng=md.tensors.seeded(0, 11),
        )  # fmt: skip


def by_kind(cov, times):
    """Return the mean doubt of each quantity over the three airports, a row for each time."""
    rows = torch.stack([cov(table(t)).flatten() for t in times[times > 0]])
    return rows.reshape(-1, 3, 5).mean(1)


every = md.grids.linspaced(weather.STEPS, weather.STEPS)
doubt = measure(choose, every)
some = every[[0, 10, 20, 30, 40, 50]]  # steps 50, 40, .., 10, and the end
others = {
    "trained": by_kind(measure(parts.cut(parts.train, weather.DAY, stride=62 * thin), some), some),
    "tested": by_kind(measure(Windows(*(part[:: 2 * thin] for part in test)), some), some),
}

# %% mystnb={"image": {"alt": "Root of the mean square error against the step of the table, 1 to 50, logarithmic axis, one line for each of five quantities. All rise from about 0.01 at step 1. In the middle the wind lies highest, near 0.5, humidity next, temperature and dew point near 0.1, pressure lowest. Beyond step 40 all rise steeply and end above 2. Dots and crosses at five steps lie near the lines, but for the crosses of the pressure, which lie higher."}, "figure": {"name": "fig-csdi-doubt", "caption": "How far off the network is about a hidden block, in standard deviations (root of the measured doubt), by the step of the noise. Lines: days 20 and 21. Dots: training days. Crosses: test days, looked at here only. In the middle the squares of the highest and the lowest line differ by a factor above sixteen, so one variance for all channels would be far too large for the pressure. At the noisy end the error of the noise is blown up by noise/signal, 173 at step 50, and matters little."}}
fig, ax = plt.subplots(figsize=(5.6, 3.1))
curves = by_kind(doubt, every).sqrt()
for k, name in enumerate(weather.SMOOTH):
    (line,) = ax.plot(range(50, 0, -1), curves[:, k], label=name.replace("_", " "))
    for marker, who in (("o", "trained"), ("x", "tested")):
        points = others[who][:, k].sqrt()
        ax.plot(range(50, 0, -10), points, marker, color=line.get_color(), markersize=4)
ax.set_xlabel("step of the table")
ax.set_ylabel("error, standard deviations")
ax.legend(ncols=2)
ax.set_yscale("log")

# %% tags=["nbval-check-output"]
for who, values in {"doubt": curves[::10] ** 2, **others}.items():
    for k, name in enumerate(weather.SMOOTH):
        value = float(values[2, k])  # step 30
        numbers[f"{who}_{name}"] = {"value": value, "band": [0.8 * value, 1.25 * value]}
n = len(choose.values)
numbers["choose_windows"] = {"value": n, "band": [84, 84] if as_printed else [1, 84]}
value = float(curves[0].square().mean().sqrt())
numbers["doubt_start"] = {"value": value, "band": [0.7 * value, 1.4 * value]}
now, before = (float(table(t).signal) ** 2 for t in every[:2])
weight = before * (1 - now / before) / (1 - now) / (1 - before)  # add^2 / var of the first step
value = weight * float(curves[0].square().max())
numbers["start_weight"] = {"value": value, "band": [0.0, 0.01]}
assert value < 0.01 and float(curves[20, 3]) > 4 * float(curves[20, 4])
if as_printed:
    easy = numbers["doubt_pressure"]["value"]
    assert (
        easy < numbers["trained_pressure"]["value"] and easy < numbers["tested_pressure"]["value"]
    )
print("check passed: the wind is harder than the pressure, and the first step does not care")

# %% [markdown]
# At step 30 the mean square error is {number}`20_csdi:doubt_pressure|.4f` for the pressure and {number}`20_csdi:doubt_wind_speed|.3f` for the wind. On training days it is {number}`20_csdi:trained_pressure|.4f` and {number}`20_csdi:trained_wind_speed|.3f`, on test days {number}`20_csdi:tested_pressure|.4f` and {number}`20_csdi:tested_wind_speed|.3f`. So having seen the days helps little, and for the pressure days 20 and 21 happen to be the easiest. At step 50 the network is off by {number}`20_csdi:doubt_start|.1f` standard deviations, more than if it always said 0. It predicts the noise, and to get from there to the value the error is multiplied by noise/signal, 173. The sampler knows: it gives this prediction a weight so small that the doubt adds {number}`20_csdi:start_weight|.2%` to the variance of the first step.
#
# ## One gap, filled many times
#
# Now one block at Kennedy, with the measured variance. The other two airports are within 35 kilometres. Which of the five quantities will the network be sure of? Which not?


# %%
def draw(way, net, batch, scored, n, variance=md.posterior_variance):
    """Draw n samples of a batch, the network in bfloat16 as in the script."""
    known = batch.observed & ~scored
    values = torch.where(known, batch.values, float("nan"))  # so that nobody can look
    with torch.autocast("cpu", torch.bfloat16):
        return way(
            net, values, known, batch.when, every, n=n, variance=variance,
            rng=md.tensors.seeded(0, 8),
        )  # fmt: skip


own = md.variance.analytic(doubt)
size = sum(p.numel() for p in model.parameters())
numbers["parameters"] = {"value": size, "band": [size, size]}
kennedy = Windows(*(part[31:32] for part in test))
hole = hidden("block", Windows(*(part[:32] for part in test)))[31:]
filled = draw(csdi.impute, model, kennedy, hole, 100 if as_printed else 4, own)

# %% mystnb={"image": {"alt": "Five panels, one quantity of Kennedy airport each, over 24 hours. Green dots before hour 6 and from hour 18 on. Between them an orange fan of imputations, in a dark and a light band, with its median and three thin sample paths, and the true values as blue dots. The fan is very narrow for the pressure, wider for temperature, dew point and humidity, and widest for the wind."}, "figure": {"name": "fig-csdi-fan", "caption": "Kennedy airport is silent for twelve hours. Green: what the network was shown of Kennedy; it also saw the other two airports. Orange: the middle 50 % and 90 % of a hundred imputations with the measured variance, their median, and three of them. Blue: what really happened. The answer is not a line but a distribution, wide where the neighbours do not help."}}
fig, axes = plt.subplots(1, 5, figsize=(11, 2.5))
hour = torch.arange(24)
real = parts.scaling.undo(kennedy.values)[0]
paths = parts.scaling.undo(filled)[:, 0]
for ax, k in zip(axes, range(5, 10), strict=True):
    md.plots.fan(ax, hour[6:18], paths[:, 6:18, k], paths=3)
    ax.plot(hour[6:18], real[6:18, k], "o", color=md.plots.DATA, markersize=3)
    outside = (hour < 6) | (hour > 17)
    ax.plot(hour[outside], real[outside, k], "o", color=md.plots.KNOWN, markersize=3)
    unit = dict(zip(weather.SMOOTH, ("°F", "°F", "%", "mph", "hPa"), strict=True))
    ax.set_title(names[k].replace("_", " "))
    ax.set_ylabel(unit[names[k].split()[1]])
    ax.set_xlabel("hour")

# %% tags=["nbval-check-output"]
wide = (torch.quantile(filled, 0.95, dim=0) - torch.quantile(filled, 0.05, dim=0))[0, 6:18, 5:10]
for k, name in enumerate(weather.SMOOTH):
    numbers[f"wide_{name}"] = {"value": float(wide[:, k].mean()), "band": [0.0, 6.0]}
same = filled[:, kennedy.observed & ~hole]
assert bool((same == kennedy.values[kennedy.observed & ~hole]).all())
print("check passed: what was known came back bit for bit")

# %% [markdown]
# In units of each channel's standard deviation, the 90 % band is {number}`20_csdi:wide_temp|.2f` wide for the temperature, {number}`20_csdi:wide_dewp|.2f` for the dew point, {number}`20_csdi:wide_pressure|.2f` for the pressure, {number}`20_csdi:wide_humid|.2f` for the humidity and {number}`20_csdi:wide_wind_speed|.2f` for the wind. Pressure is the same all over the city; a gust is not.
#
# ## A corner of the grid, and why a mean is no answer
#
# Does this lab compute what the script computed? The conditional Gaussian, the straight line and the last value are computed in full for *random*, and the network draws a small corner of *block*: the first eight windows, 20 samples, with `weather-csdi` and the measured variance, with the same network and the published variance, and with `weather-blind`, its twin without a condition, under replacement. They should agree but for the rounding of another processor.


# %%
def scores(samples, batch, scored):
    """Return the published score, and the share of targets inside 90 %."""
    crps19 = scoring.crps_quantile(samples, batch.values, scored=scored)
    return crps19, scoring.interval_coverage(samples, batch.values, 0.9, scored=scored)


scored = hidden("random", test)
known = test.observed & ~scored
blanked = torch.where(known, test.values, float("nan"))
history = parts.cut(parts.train, weather.DAY, stride=1 if as_printed else 8)
law = baselines.GaussianWindows.fit(history.values, history.observed)
again = {
    "last": baselines.last_value(blanked, known, 0.0)[None],
    "linear": baselines.interpolate(blanked, known, 0.0)[None],
}
if as_printed:
    again["gaussian"] = law.sample(blanked, known, 100, rng=md.tensors.seeded(0, 7))

first = Windows(*(part[: 8 if as_printed else 2] for part in test))
gap = hidden("block", first)
few = 20 if as_printed else 2
drawn = {"csdi": draw(csdi.impute, model, first, gap, few, own)}
if as_printed:
    drawn["published"] = draw(csdi.impute, model, first, gap, few)
    blind = md.checkpoints.load("weather-blind")
    drawn["replacement"] = draw(csdi.impute_by_replacement, blind, first, gap, few)

# %% tags=["nbval-check-output"]
away = []
for way, samples in again.items():
    (row,) = find(task="random", method=way)
    away.append(abs(scores(samples, test, scored)[0] / row["crps19"] - 1))
if as_printed:
    for way, samples in drawn.items():
        (row,) = find(task="corner", method=way)
        away.append(abs(scores(samples, first, gap)[0] / row["crps19"] - 1))
numbers["corner_cells"] = {"value": len(away), "band": [1, 10]}
numbers["corner_away"] = {"value": max(away), "band": [0.0, 0.02]}
assert max(away) < 0.02
print("check passed: the corner agrees with the committed grid")

# %% [markdown]
# {number}`20_csdi:corner_cells|.0f` cells agree; the largest relative difference is {number}`20_csdi:corner_away|.0e`. We allow 2 %: the network runs in bfloat16, with three digits, and another processor may round in another order.
#
# The corner also shows what a mean hides. Of each series we take the root mean square of the change from one hour to the next, inside the gap: of what really happened, of single imputations, and of the mean of the twenty. What do you expect of the mean?


# %% tags=["nbval-check-output"]
def roughness(x):
    """Root mean square of the hourly change of scored values, over the last three axes."""
    both = gap[:, 1:] & gap[:, :-1]
    return float((x[..., 1:, :] - x[..., :-1, :])[..., both].square().mean().sqrt())


for key, x in (
    ("truth", first.values),
    ("sample", drawn["csdi"]),
    ("published", drawn.get("published", drawn["csdi"])),
    ("mean", drawn["csdi"].mean(0)),
):
    numbers[f"rough_{key}"] = {"value": roughness(x), "band": [0.0, 2.0]}
assert roughness(drawn["csdi"].mean(0)) < roughness(drawn["csdi"])
print("check passed: the mean is smoother than what it is the mean of")

# %% [markdown]
# The weather changes by {number}`20_csdi:rough_truth|.3f` an hour, a sample by {number}`20_csdi:rough_sample|.3f` (with the published variance by {number}`20_csdi:rough_published|.3f`), the mean by {number}`20_csdi:rough_mean|.3f`. Whoever fills a series with means makes a world without gusts, and whoever then counts storms counts too few.
#
# ## What replacement loses, exactly
#
# For two Gaussian values with correlation $\rho$ the loss of {eq}`eq:replace-shortfall` is a formula: the share of the right answer that an exact, unconditional denoiser leaves out, because it is shown the known value under noise. Guess: is it worse at the noisy end of the chain or at the clean one? For strong or for weak correlation?

# %% mystnb={"image": {"alt": "Share of the answer that is missing against the step of the table, 1 to 50, for correlations 0.5, 0.8 and 0.95. All curves rise from 0 at step 1 to 1 at step 50. The one for 0.95 lies highest in between; all three meet at both ends."}, "figure": {"name": "fig-csdi-shortfall", "caption": "How much of the right answer an exact unconditional denoiser leaves out when the known value is shown under noise, on the table of CSDI. At the noisy end it leaves out all of it, and it comes to use most of it only where little is left to decide. What is missing early is drawn at random, and later steps do not take all of that back."}}
at = table(torch.arange(1, 51, dtype=torch.float64) / 50)
missing = {
    rho: at.noise**4 / (1 - at.signal**4 * rho**2)  # eq:replace-shortfall
    for rho in (0.5, 0.8, 0.95)
}
fig, ax = plt.subplots(figsize=(4.8, 2.7))
for rho, share in missing.items():
    ax.plot(range(1, 51), share, label=rf"$\rho = {rho}$")
ax.legend()
for put, name in ((ax.set_xlabel, "step of the table"), (ax.set_ylabel, "share that is missing")):
    put(name)
# %% tags=["nbval-check-output"]
for rho, share in missing.items():
    value = float(share[24])
    numbers[f"missing_{round(100 * rho)}"] = {"value": value, "band": [value - 1e-6, value + 1e-6]}
    assert bool((share.diff() > 0).all()) and share[0] < 1e-6 and share[-1] > 0.9999
assert missing[0.5][24] < missing[0.8][24] < missing[0.95][24]
print("check passed: the shortfall falls from all to nothing along the chain")

# %% [markdown]
# In the middle of the chain, at step 25, {number}`20_csdi:missing_50|.0%` of the answer is missing for $\rho=.5$ and {number}`20_csdi:missing_95|.0%` for $\rho=.95$.
#
# ## The grid
#
# Five ways to fill the gaps of 111 test windows, CSDI with two variances. The published score, CRPS over 19 levels ({eq}`eq:crps-quantile`), is a ratio to the size of the data, in standardised units. The smaller the better; a point forecast scores its absolute error. The one to beat is not the straight line. Fit one Gaussian to whole windows, 360 numbers with mean and covariance, and condition it on what is known ({eq}`eq:conditional-gaussian`): no network, seconds to fit. Temperature, dew point and pressure are nearly Gaussian. Wind is not. Where do you expect the network to gain?

# %% mystnb={"image": {"alt": "Left: bars of the published score for last value, line, Gaussian, replacement and CSDI with two variances on three tasks. Last value and line are highest in each group. Right: score of CSDI with the measured variance divided by that of the Gaussian for five quantities, on the random and the block task, with a line at 1."}, "figure": {"name": "fig-csdi-scores", "caption": "Left: the score that papers print, of five ways to fill gaps, CSDI with the published and with the measured variance, 111 test windows; 100 samples, and 50 for replacement, for the published variance (neither was run on sparse) and for all of sparse. The ways that use all channels at once leave the line far behind. Right: CSDI (measured) against the conditional Gaussian, by quantity; below 1 the network is better."}}
WAYS = {
    "last": "0.75",
    "linear": "0.5",
    "gaussian": "C0",
    "replacement": "C2",
    "published": "#e9a36f",
    "csdi": md.plots.PREDICTION,
}
TASKS = ("random", "block", "sparse")
LABELS = {"gaussian": "Gaussian", "last": "last value", "linear": "line"}
LABELS |= {"published": "CSDI, published", "csdi": "CSDI, measured"}


def cell(task, way):
    """Return the row of a way on a task, at 50 steps where there are steps, or None."""
    found = [row for row in find(task=task, method=way) if row["steps"] in (0, weather.STEPS)]
    return found[0] if found else None


grid = {(task, way): cell(task, way) for task in TASKS for way in WAYS if cell(task, way)}
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3), width_ratios=[3, 2])
for i, (way, colour) in enumerate(WAYS.items()):
    here = [(j, grid[task, way]["crps19"]) for j, task in enumerate(TASKS) if (task, way) in grid]
    places, heights = zip(*here, strict=True)
    left.bar(
        [p + 0.14 * (i - 2.5) for p in places],
        heights,
        0.13,
        color=colour,
        label=LABELS.get(way, way),
    )
left.set_xticks(range(3), TASKS)
left.set_ylabel("CRPS, 19 levels")
left.set_ylim(0, 1.35 * max(row["crps19"] for row in grid.values()))
for j, task in enumerate(TASKS[:2]):
    own, theirs = (grid[task, way]["channels"] for way in ("csdi", "gaussian"))
    ratio = [own[k] / theirs[k] for k in weather.SMOOTH]
    right.plot(ratio, range(5), "os"[j], color=("0.15", "0.55")[j], label=task)
right.axvline(1, color="0.6", linewidth=1)
right.set_yticks(range(5), [k.replace("_speed", "") for k in weather.SMOOTH])
right.set_xlabel("CSDI / Gaussian")
for ax, columns in ((left, 2), (right, 1)):
    ax.legend(ncols=columns)
# %% tags=["nbval-check-output"]
for (task, way), row in grid.items():
    drawn_half = task == "sparse" or way in ("replacement", "published")
    assert row["samples"] == (1 if way in ("last", "linear") else 50 if drawn_half else 100)
    note(f"crps19_{task}_{way}", row["crps19"])
    note(f"crps_{task}_{way}", row["crps"])
    note(f"mae_{task}_{way}", row["mae"])
    note(f"seconds_{task}_{way}", row["seconds"], room=3.0)  # of another machine
    if row["coverage90"] is not None:
        note(f"coverage_{task}_{way}", row["coverage90"])
for task in TASKS:
    best = grid[task, "csdi"]
    for way in set(WAYS) - {"csdi"}:
        if (task, way) in grid:
            note(f"ratio_{task}_{way}", best["crps19"] / grid[task, way]["crps19"])
    for k in weather.SMOOTH:
        note(f"channel_{task}_{k}", best["channels"][k] / grid[task, "gaussian"]["channels"][k])
for task in TASKS[:2]:
    alike = [grid[task, way]["crps19"] for way in ("published", "replacement")]
    note(f"alike_{task}", alike[0] / alike[1])
    word = "reached" if numbers[f"ratio_{task}_linear"]["value"] <= 0.7 else "missed"
    print(f"CSDI 30 % below the line: {word} on {task}")
    for way, name in (("published", "published"), ("csdi", "measured")):
        word = "reached" if 0.85 <= grid[task, way]["coverage90"] <= 0.95 else "missed"
        print(f"90 % intervals cover 85 to 95 %, {name} variance: {word} on {task}")
numbers["windows"] = {"value": grid["random", "csdi"]["windows"], "band": [111, 111]}
numbers["hidden_random"] = {"value": grid["random", "csdi"]["hidden"], "band": [18_000, 20_500]}
for task in TASKS[:2]:  # what the chapter says in words
    ratio = {k: numbers[f"channel_{task}_{k}"]["value"] for k in weather.SMOOTH}
    assert max(ratio["dewp"], ratio["humid"]) < 1 < 1.1 < ratio["pressure"]
    assert all(abs(ratio[k] - 1) < 0.031 for k in ("temp", "wind_speed"))
    exact = [grid[task, way]["crps"] for way in ("csdi", "published")]
    assert 0.98 < exact[0] / exact[1] < 1
    assert grid[task, "published"]["coverage90"] < 0.85
assert 0.84 < grid["block", "csdi"]["coverage90"] < 0.85 < grid["random", "csdi"]["coverage90"] < 0.95
easy = grid["random", "gaussian"]["channels"]["pressure"]
numbers["gaussian_random_pressure"] = {"value": easy, "band": [0.015, 0.025]}
assert all(grid[t, "linear"]["crps19"] < grid[t, "last"]["crps19"] for t in TASKS)
assert all(grid[t, "gaussian"]["crps19"] < grid[t, "linear"]["crps19"] for t in TASKS)

# %% [markdown]
# With half of the values hidden: last value {number}`20_csdi:crps19_random_last|.3f`, straight line {number}`20_csdi:crps19_random_linear|.3f`, conditional Gaussian {number}`20_csdi:crps19_random_gaussian|.3f`, CSDI {number}`20_csdi:crps19_random_published|.3f` with the published and {number}`20_csdi:crps19_random_csdi|.3f` with the measured variance. With twelve hours of an airport gone: {number}`20_csdi:crps19_block_last|.3f`, {number}`20_csdi:crps19_block_linear|.3f`, {number}`20_csdi:crps19_block_gaussian|.3f`, {number}`20_csdi:crps19_block_published|.3f` and {number}`20_csdi:crps19_block_csdi|.3f`. The published variance has 50 samples and the measured one 100: by {eq}`eq:crps-bias` that alone is a difference of about 1 %. The marks that we had set ourselves are printed above. {ref}`sec-imputation-measured` has the whole table.
#
# ## Is the spread right?
#
# A method that says "90 %" should be right nine times in ten, and one that says "50 %" every other time. Left and middle: promised against kept, on two tasks. Right: where the truth ranks among its samples, in ten bins. A flat histogram is right; high ends mean that the truth falls outside too often, a hump that the method is too modest.
#
# The orange curves are one and the same network, sampled with two variances, and nothing else differs. Guess: which of the two lies below the grey line, and by how much? The closed forms of {ref}`sec-imputation-fifty` say that 50 steps with the published variance cover 80 to 88 in place of 90 %, if the network is perfect and the samples are without number. Ours is not. Which way do you expect a network to err that was trained on {number}`20_csdi:train_windows|.0f` windows, most of which overlap? And will the measured variance, which knows of such errors only what days 20 and 21 show, be too modest or still too sure?

# %% mystnb={"image": {"alt": "Left and middle: share of targets inside the interval against its nominal level, on the random and on the block task, for CSDI with published and measured variance, the Gaussian and replacement, with two grey lines just below the diagonal. The measured variance lies above the published one. Right: histograms of ranks on the random task in ten bins with a grey line at one tenth."}, "figure": {"name": "fig-csdi-calibration", "caption": "Left and middle: promised and kept; a perfect forecast keeps the grey line with 100 samples (Gaussian, CSDI measured) and the dotted one with 50 (replacement, CSDI published). Right: ranks of the truth among its samples, half of the values hidden. The same network keeps more of what it promises when its steps are given the variance that was measured for it."}}
probabilistic = ("gaussian", "replacement", "published", "csdi")
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3))
levels = torch.linspace(0, 1, 11)
for ax, task in ((left, "random"), (middle, "block")):
    for S, style in ((100, "-"), (50, ":")):
        ax.plot(levels, levels * (S - 1) / (S + 1), style, color="0.6", linewidth=1)
    for way in probabilistic:
        kept = zip(*grid[task, way]["coverage"], strict=True)
        ax.plot(*kept, "o-", color=WAYS[way], markersize=3, label=LABELS.get(way, way))
    ax.set_title(task)
    ax.set_xlabel("promised")
for way in probabilistic:
    places = [i / 10 for i in range(11)]
    right.stairs(grid["random", way]["ranks"], places, color=WAYS[way], linewidth=1.6)
right.axhline(0.1, color="0.6", linewidth=1)
right.set_ylim(0)
left.legend(fontsize=8)
right.set_xlabel("rank of the truth, 0 to 1")
for ax, name in ((left, "kept"), (right, "share")):
    ax.set_ylabel(name)
# %% tags=["nbval-check-output"]
for task in TASKS[:2]:
    for way in probabilistic:
        ranks, coverage = grid[task, way]["ranks"], dict(grid[task, way]["coverage"])
        note(f"ends_{task}_{way}", ranks[0] + ranks[-1], room=0.2)
        note(f"half_{task}_{way}", coverage[0.5])
        assert abs(sum(ranks) - 1) < 1e-9
    assert grid[task, "csdi"]["coverage90"] > grid[task, "published"]["coverage90"]
print("check passed: each target has one rank, and the measured variance keeps more")

# %% [markdown]
# Where 90 % are promised, a perfect forecast keeps 88.2 % with a hundred samples and 86.5 % with 50 ({eq}`eq:coverage-ranks`); the published variance and replacement have 50. On *random* CSDI keeps {number}`20_csdi:coverage_random_published|.1%` with the published and {number}`20_csdi:coverage_random_csdi|.1%` with the measured variance, the Gaussian {number}`20_csdi:coverage_random_gaussian|.1%`, replacement {number}`20_csdi:coverage_random_replacement|.1%`; on *block* {number}`20_csdi:coverage_block_published|.1%`, {number}`20_csdi:coverage_block_csdi|.1%`, {number}`20_csdi:coverage_block_gaussian|.1%` and {number}`20_csdi:coverage_block_replacement|.1%`. The two end bins of the ranks should hold 20 %; on *random* they hold {number}`20_csdi:ends_random_published|.0%` and, measured, {number}`20_csdi:ends_random_csdi|.0%`.
#
# ## How many samples, how many steps?
#
# Fewer samples make a worse score of the *same* forecast: {eq}`eq:crps-bias` says by about $1/S$ of it. Fewer steps make a worse forecast. Both cost time in proportion. Which would you rather save on? With the published variance ten steps leave between 50 and 78 % inside a 90 % interval, if the network is perfect ({ref}`sec-imputation-fifty`). What do you expect with the measured one?

# %% mystnb={"image": {"alt": "Left: score against number of samples, 5 to 100, falling and flattening, points of CSDI close to a grey curve. Middle: score against number of steps, 5 to 50, in two colours. Right: coverage of 90 % intervals against the number of steps, with the published variance far lower at 10 steps than at 50, with the measured one nearly level, and grey lines at 88 and 86 %."}, "figure": {"name": "fig-csdi-few", "caption": "Left: the score of one and the same set of forecasts, by how many of the hundred samples are looked at; the grey curve is the one with 100 samples times (1 + 1/S)/(1 + 1/100). Middle and right: score and coverage by the number of steps, with 100 samples for the measured variance and 50 for the published one; grey is what a perfect forecast keeps with 100, dotted with 50. With few steps the variance decides."}}
best = grid["random", "csdi"]
by_count = {int(s): value for s, value in best["few"].items()} | {best["samples"]: best["crps19"]}
by_steps = {
    way: {row["steps"]: row for row in find(task="random", method=way)}
    for way in ("published", "csdi")
}
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 2.7))
left.plot(*zip(*sorted(by_count.items()), strict=True), "o", color=WAYS["csdi"])
counts = torch.arange(4, 101)
left.plot(counts, best["crps19"] * (1 + 1 / counts) / 1.01, color="0.6", linewidth=1)
for way, found in by_steps.items():
    stops = sorted(found)
    for ax, key in ((middle, "crps19"), (right, "coverage90")):
        values = [found[n][key] for n in stops]
        ax.plot(stops, values, "o-", color=WAYS[way], label=LABELS[way])
for S, style in ((100, "-"), (50, ":")):
    right.axhline(0.9 * (S - 1) / (S + 1), color="0.6", linewidth=1, linestyle=style)
for ax, name in ((left, "samples"), (middle, "steps"), (right, "steps")):
    ax.set_xlabel(name)
    ax.set_xscale("log")
    ax.set_xticks([5, 10, 20, 50, 100], [5, 10, 20, 50, 100])
    ax.minorticks_off()
middle.legend(fontsize=8)
for ax, name in ((left, "CRPS, 19 levels"), (middle, "CRPS, 19 levels"), (right, "inside 90 %")):
    ax.set_ylabel(name)
# %% tags=["nbval-check-output"]
for s, value in by_count.items():
    note(f"few_{s}", value)
    note(f"few_expected_{s}", best["crps19"] * (1 + 1 / s) / 1.01)
    assert 0.9 < value / (best["crps19"] * (1 + 1 / s) / 1.01) < 1.1
for steps, row in by_steps["csdi"].items():
    note(f"steps_{steps}", row["crps19"])
    note(f"kept_{steps}", row["coverage90"])
for steps, row in by_steps["published"].items():
    note(f"published_{steps}", row["crps19"])
    note(f"published_kept_{steps}", row["coverage90"])
loss = {way: found[50]["coverage90"] - found[10]["coverage90"] for way, found in by_steps.items()}
cost = by_steps["csdi"][10]["crps19"] / by_steps["csdi"][50]["crps19"]
assert 0.14 < loss["published"] < 0.16 and abs(loss["csdi"]) < 0.01 and 1.02 < cost < 1.03
sparse = [numbers[f"channel_sparse_{k}"]["value"] for k in weather.SMOOTH]
assert min(sparse) > 1 and abs(numbers["ratio_random_gaussian"]["value"] - 1) < 0.025
assert abs(numbers["ratio_block_gaussian"]["value"] - 1) < 0.025
print("check passed: few samples cost about 1/S, few steps the published variance its coverage")

# %% [markdown]
# With 5 samples the score is {number}`20_csdi:few_5|.3f` (the rule says {number}`20_csdi:few_expected_5|.3f`), with 20 it is {number}`20_csdi:few_20|.3f`, with 100 {number}`20_csdi:few_100|.3f`. A number of 5 samples must not stand beside one of 100. With 5, 10, 25 and 50 steps and the measured variance it is {number}`20_csdi:steps_5|.3f`, {number}`20_csdi:steps_10|.3f`, {number}`20_csdi:steps_25|.3f` and {number}`20_csdi:steps_50|.3f`; with the published one, of 50 samples, {number}`20_csdi:published_10|.3f` at 10 and {number}`20_csdi:published_50|.3f` at 50. From 50 steps to 10 the coverage goes from {number}`20_csdi:published_kept_50|.1%` to {number}`20_csdi:published_kept_10|.1%` with the published variance, and from {number}`20_csdi:kept_50|.1%` to {number}`20_csdi:kept_10|.1%` with the measured one.
#
# ## Training, while you wait
#
# A small network of the same kind, five channels of Kennedy only, learns from nothing. It starts with the answer 0, and its loss at 1. It is scored on test windows with half of the values hidden, by the exact CRPS without bias ({eq}`eq:crps-fair`), because ten samples of 25 steps have to do, with the published variance; the straight line scores its mean absolute error. How many updates until it beats the line? (One run, one seed: this shows a training, it proves nothing about trainings. At `gpu` it is the full network on all channels, and for longer than the shipped one.)

# %%
WIDTH, BLOCKS, HEADS, BATCH, RATE = (
    (64, 4, 8, 64, 2e-3) if PRESET == "gpu" else (16, 2, 2, 32, 8e-3)
)
updates = {"smoke": 2, "cpu": 1500, "gpu": 20_000}[PRESET]
stops = sorted({max(updates // 6, 1), max(updates // 2, 1), updates})


def prepare(channels):
    """Pick channels of the windows for training and for the test."""
    learn = parts.cut(parts.train, weather.DAY)
    return [Windows(b.values[..., channels], b.observed[..., channels], b.when)
            for b in (learn, test)]  # fmt: skip


def fresh(channels, dropout=0.1 if PRESET == "gpu" else 0.0):
    """Make a network with new weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = md.nets.SeriesTransformer(
            channels, width=WIDTH, blocks=BLOCKS, heads=HEADS, dropout=dropout
        )
    return md.Denoiser(net, table, "eps").to(device)


def teach(student, ema, batch, hide=targets.random_targets):
    """Yield after each update; the rate falls like a cosine."""

    def loss(part, rng):
        part = Windows(*(p.to(device) for p in part))
        return csdi.loss(student, part, hide, times=md.losses.low_discrepancy_times, rng=rng)

    def rate(k):
        return RATE * min(1, (k + 1) / 50) * (1 + math.cos(math.pi * k / updates)) / 2

    feed = md.data.batches(tuple(batch), BATCH, seed=0)
    return md.train(loss, student, feed, steps=updates, lr=rate, ema=ema)


def judge(student, batch, scored, n=10):
    """Score ten samples of each window by the exact CRPS, without bias."""
    known = batch.observed & ~scored
    given = [p.to(device) for p in (batch.values, known, batch.when)]
    times, rng = md.grids.linspaced(50, 25 if as_printed else 2), md.tensors.seeded(3)
    samples = csdi.impute(student, *given, times, n=n, rng=rng).cpu()
    y = torch.where(scored, batch.values, 0)
    return float(scoring.crps_fair(samples, y)[scored].mean())


learn, probe = prepare(list(range(15) if PRESET == "gpu" else range(5, 10)))
probe = Windows(*(part[:: 1 if PRESET == "gpu" else 6 if as_printed else 60] for part in probe))
half = hidden("random", probe)
student = fresh(learn.values.shape[2])
ema = md.EMA(student, 0.98 if PRESET != "gpu" else 0.999)
losses, reached = [], {}
for step in tqdm(teach(student, ema, learn), total=updates, desc="training"):
    losses.append(step.loss)
    if step.index in stops:
        reached[step.index] = judge(ema.model.eval(), probe, half)
line = baselines.interpolate(probe.values, probe.observed & ~half, 0.0)
line = float((line - torch.where(half, probe.values, 0)).abs()[half].mean())

# %% mystnb={"image": {"alt": "Left: training loss of a small network, from 1 down to about 0.2, with much scatter. Right: its score at three points of the training; the first lies above the grey line of the straight line between neighbours, the last below it."}, "figure": {"name": "fig-csdi-small", "caption": "A small network learns to fill gaps of five channels. Left: the loss starts at 1, the score of the answer 0, and scatters because each batch hides another share and draws other times. Right: the score on test windows. Early on a straight line (grey) is better; at the end the network is."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.6))
md.plots.loss_curve(left, losses)
left.set_ylim(0, 1.2)
right.plot(*zip(*reached.items(), strict=True), "o-", color=md.plots.PREDICTION, label="small CSDI")
right.axhline(line, color=md.plots.NOISE, label="straight line")
right.set_ylim(0)
right.legend()
for put, name in ((right.set_xlabel, "updates"), (right.set_ylabel, "CRPS, standard deviations")):
    put(name)
# %% tags=["nbval-check-output"]
numbers["updates"] = {"value": updates, "band": [1, 100_000]}
numbers["small_line"] = {"value": line, "band": [0.5 * line, 1.5 * line]}
numbers["small_first_loss"] = {"value": losses[0], "band": [0.8, 1.2]}
for name, at_stop in zip(("early", "middle", "end"), stops, strict=False):
    value = reached[at_stop]
    numbers[f"small_{name}"] = {"value": value, "band": [0.8 * value, 1.2 * value]}
if as_printed:
    tail = sum(losses[-50:]) / 50
    numbers["small_last_loss"] = {"value": tail, "band": [0.7 * tail, 1.3 * tail]}
    assert reached[updates] < line < reached[stops[0]] and tail < 0.4 * losses[0]
print("check passed: the small network learns")

# %% [markdown]
# The loss falls from {number}`20_csdi:small_first_loss|.2f` to {number}`20_csdi:small_last_loss|.2f` (mean of the last 50 updates). The score goes from {number}`20_csdi:small_early|.3f` after a sixth of the {number}`20_csdi:updates|.0f` updates to {number}`20_csdi:small_middle|.3f` after one half and {number}`20_csdi:small_end|.3f` at the end; the straight line has {number}`20_csdi:small_line|.3f`.
#
# ## Intensive care
#
# The paper's own data are 4,000 patients, 48 hours, 35 measurements, of which four in five are missing. They are free, but not part of any package: download `set-a.zip` from physionet.org/content/challenge-2012/1.0.0, unpack it, and run this lab with `PRESET = "gpu"` and `PHYSIONET` set to the folder. A tenth of the observed values of the test patients, drawn at random, is hidden, as in the paper's first column.


# %%
def patients(folder):
    """Read, and scale by the first four fifths of the patients: training and test windows."""
    icu = md.data.physionet2012(folder)
    n, hours, k = icu.values.shape
    flat = Series(icu.values.flatten(0, 1), icu.observed.flatten(0, 1), torch.arange(n * hours),
                  tuple(md.data.physionet.ICU_CHANNELS))  # fmt: skip
    rows = torch.arange(n * hours) < (4 * n // 5) * hours
    z = md.data.standardise(flat, rows)[0].values.reshape(n, hours, k)
    icu = icu._replace(values=z)
    return (Windows(*(p[: 4 * n // 5] for p in icu)), Windows(*(p[4 * n // 5 :] for p in icu)))


if PRESET == "gpu" and PHYSIONET:
    learn, probe = patients(PHYSIONET)
    student = fresh(35)
    ema = md.EMA(student, 0.999)
    losses = [s.loss for s in tqdm(teach(student, ema, learn), total=updates, desc="patients")]
    tenth = probe.observed & (torch.rand(probe.values.shape, generator=md.tensors.seeded(4)) < 0.1)
    shown_part = probe.observed & ~tenth
    samples = csdi.impute(
        ema.model.eval(), probe.values.to(device), shown_part.to(device), probe.when.to(device),
        md.ddpm_steps(50), n=100, rng=md.tensors.seeded(5),
    ).cpu()  # fmt: skip
    print(f"CRPS, 19 levels: {scores(samples, probe, tenth)[0]:.3f} (the paper: 0.238)")
else:
    print("PHYSIONET is not set, or the preset is not gpu: see the text above")

# %% [markdown]
# ## Exercises
#
# 1. Measure the doubt as one number for all channels (leave `keep` out) and fill the Kennedy gap with it. What happens to the pressure?
# 2. Fill the Kennedy gap again with `csdi.impute_by_replacement` and `weather-blind`. Where does the fan differ, at its edges or in its middle?
# 3. Show the network nothing at all (`known` all False). What does it draw? Compare the spread of its samples with that of the data.
# 4. Train the small network with `targets.historical_targets` and score it on *random*. Then the other way round. Which of the two generalises?
#
# ## What it cost

# %% tags=["nbval-ignore-output"]
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
numbers["minutes"] = {"value": seconds / 60, "band": [0, 30]}
print(f"{seconds:.0f} s, peak memory {memory:.0f} MB")

# %% tags=["remove-cell"]
if "NUMBERS" in os.environ:
    with open(os.environ["NUMBERS"], "w") as file:
        json.dump(numbers, file)
