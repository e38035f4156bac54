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
# # Lab: how data drown
#
# Noise is added in many small steps until nothing is left. No network and no training here, only the process that {ref}`sec-forward` derives. We look at it with our own eyes, and then ask it five questions. Is the jump really the walk? Which details drown first? What does a schedule change? What does the last step still know? And when is the way back a Gaussian?
#
# The lab takes about {number}`03_noise:minutes|.1f` minutes on one core. It needs no graphics card and no download.

# %% tags=["parameters"]
import os

PRESET = os.environ.get("PRESET", "cpu")  # "smoke" (seconds), "cpu" (as printed), "gpu"

# %%
import json
import math
import resource
import time

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

import minidiff as md

start = time.perf_counter()
md.plots.use_style()
torch.set_num_threads(1)
seeds, count, lengths, points = {
    "smoke": ([0, 1, 2], 1000, [25, 50, 100], 40),
    "cpu": ([0, 1, 2, 3, 4], 4000, [25, 50, 100, 200, 400, 800], 100),
    "gpu": ([0, 1, 2, 3, 4], 20_000, [25, 50, 100, 200, 400, 800, 1600], 100),
}[PRESET]
as_printed = PRESET != "smoke"
D = torch.float64
numbers = {}

# %% [markdown]
# ## Three kinds of data
#
# A handwritten digit, a board of dark squares in the plane, and a signal made of a slow and a fast wave. All three go through the same 1000 steps, the linear table {eq}`eq:betas-linear`. Before you look: at which of the five times is each of them lost? And what goes first, the slow wave or the fast one?

# %% mystnb={"image": {"alt": "Three rows of five panels. A handwritten digit, points on a checkerboard and a wave at times 0 to 1. The checkerboard is blurred at time 0.1, the fast wave lost at 0.2, the digit can be guessed until 0.4; at 1 all are noise."}, "figure": {"name": "fig-three-drown", "caption": "Three kinds of data at five times of the linear table. The same share of variance is left in each column, but not the same amount of meaning: the squares of the board have merged at 0.1 and are gone at 0.2, and so is the fast wave, while the digit can still be guessed at 0.4."}}
table = md.BetaTable(md.linear_betas(1000))
pictures, labels = md.data.mnist5k()
digit = pictures[(labels == 3).nonzero()[0, 0]][None]
board = md.data.checkerboard(700, rng=md.tensors.seeded(0))
place = torch.arange(128) / 128
wave = 1.2 * torch.sin(4 * math.pi * place) + 0.6 * torch.sin(40 * math.pi * place)
rng = md.tensors.seeded(1)
noises = [md.tensors.randn_like(x, rng) for x in (digit, board, wave[None])]
fig, axes = plt.subplots(3, 5, figsize=(7, 4.0))
for column, t in zip(axes.T, [0, 0.1, 0.2, 0.4, 1], strict=True):
    at = table(float(t))
    md.plots.images(column[0], md.diffuse(at, digit, noises[0]), columns=1)
    column[0].set_title(f"t = {t}\n{float(at.signal) ** 2:.1%} data")
    md.plots.scatter(column[1], md.diffuse(at, board, noises[1]), reach=3.2, size=3)
    column[2].plot(place, md.diffuse(at, wave[None], noises[2])[0], linewidth=0.9)
    column[2].set_ylim(-3.5, 3.5)
    for ax in column[1:]:
        ax.set_xticklabels([])
        ax.set_yticklabels([])

# %% [markdown]
# The percentage is $\bar\alpha_t$, the share of the variance that is still data. One number, three fates. What survives is what covers many pixels or many points of the signal: noise averages out over it. We come back to this.
#
# ## Is the jump the walk?
#
# {eq}`eq:jump` claims that one draw gives the same distribution as hundreds of steps. Take the board, walk it 30 of 200 steps with {py:func}`~minidiff.process.step_forward`, and compare with a single {py:func}`~minidiff.process.diffuse`. Two random sets of points are never equal. So the distance between walk and jump is compared with the distance between two jumps. We also repeat a mistake from a lecture's demonstration, which jumps again every five steps, from points that are noisy already. For all three we measure the factor of the clean points that is left, which should be $\sqrt{\bar\alpha_{30}}$.


# %%
def walk(x, path, last, rng):
    for i in range(1, last + 1):
        at_s, at_t = path((i - 1) / path.T), path(i / path.T)
        x = md.step_forward(at_s, at_t, x, md.tensors.randn_like(x, rng))
    return x


def jump(x, path, i, rng):
    return md.diffuse(path(i / path.T), x, md.tensors.randn_like(x, rng))


def swd(a, b, seed):
    return md.metrics.sliced_wasserstein(a, b, rng=md.tensors.seeded(9, seed))


def left_of(x, x0):
    return float((x * x0).sum() / (x0 * x0).sum())


short, last = md.BetaTable(md.linear_betas(200)), 30
gaps, left = {"walk": [], "jump": []}, {"walk": [], "jump": [], "again": []}
for seed in seeds:
    rng = md.tensors.seeded(2, seed)
    one, two, three = (md.data.checkerboard(count, rng=rng).to(D) for _ in range(3))
    again = one
    for i in range(5, last + 1, 5):
        again = jump(again, short, i, rng)
    reference, walked, other = (
        jump(one, short, last, rng), walk(two, short, last, rng), jump(three, short, last, rng)
    )  # fmt: skip
    gaps["walk"].append(swd(walked, reference, seed))
    gaps["jump"].append(swd(other, reference, seed))
    for name, x, x0 in [("walk", walked, two), ("jump", other, three), ("again", again, one)]:
        left[name].append(left_of(x, x0))

# %% tags=["nbval-check-output"]
band = [0.01, 0.06] if as_printed else [0.01, 0.15]
for name, values in gaps.items():
    numbers[f"swd_{name}"] = {"value": sum(values) / len(values), "band": band, "seeds": seeds}
    assert all(band[0] < v < band[1] for v in values)
spread = torch.tensor(list(gaps.values()), dtype=D).std(1).mean()
numbers["swd_spread"] = {"value": float(spread), "band": [0.0, 0.03]}
assert abs(numbers["swd_walk"]["value"] - numbers["swd_jump"]["value"]) < 3 * float(spread)
want = float(short.alpha_bars[last - 1]) ** 0.5
numbers["left_want"] = {"value": want, "band": [0.88, 0.9]}
# the factor's error is noise / sqrt(2 count), .005 for 4,000 points in the plane
wide = 4 * 0.46 / (2 * count) ** 0.5
for name, values in left.items():
    low, high = (0.65, 0.8) if name == "again" else (want - wide, want + wide)
    numbers[f"left_{name}"] = {
        "value": sum(values) / len(values), "band": [low, high], "seeds": seeds,
    }  # fmt: skip
    assert all(low < v < high for v in values)
print("check passed: a walk is as near to a jump as another jump is")

# %% [markdown]
# Over {number}`03_noise:seeds|.0f` seeds, walk and jump lie {number}`03_noise:swd_walk|.3f` apart, two jumps {number}`03_noise:swd_jump|.3f`, and one seed differs from the next by about {number}`03_noise:swd_spread|.3f`. No difference can be seen. The walk has the factor {number}`03_noise:left_walk|.3f` of the clean points left, the jump {number}`03_noise:left_jump|.3f`, and {eq}`eq:jump` says {number}`03_noise:left_want|.3f`. Jumping again and again from noisy points leaves {number}`03_noise:left_again|.2f`: the jumps pile up ({ref}`slip-demo-renoise`). The points still look like noise being added, so nobody notices.
#
# ## Which details drown first?
#
# Noise spreads its power evenly over all frequencies ({eq}`eq:spectrum`). Data do not. In signals and pictures most of the power is in the slow waves, the coarse shapes. So a falling curve meets a flat one. Where the curve of the data dips under the noise, the detail is lost. The crossing must move to slower waves as time goes on.
#
# We make signals whose wave number $k$ has a power proportional to $1/k^2$, with random phases. For them the crossing is a formula: it is at $\mathrm{SNR}_t P_k = 1$, where $P_k$ is the power of wave $k$. To *measure* it we ask at which $k$ the squared correlation between clean and noisy coefficients falls to one half. A guess first: how many of the 63 waves are left at $t = 0.1$, and how many at $t = 0.4$?


# %%
waves = torch.arange(1, 64)
share = 1 / waves.to(D) ** 2 / (1 / waves.to(D) ** 2).sum()
power = 64 * share  # of one coefficient, where noise has 1


def signals(n, rng):
    phase = 2 * math.pi * torch.rand(n, 63, 1, generator=rng, dtype=D)
    angle = 2 * math.pi * waves[:, None] * place.to(D) + phase
    return (2 * share).sqrt() @ torch.cos(angle)


def crossing(clean, path, t, rng):
    noisy = md.diffuse(path(t), clean, md.tensors.randn_like(clean, rng))
    a, b = (torch.fft.fft(x, norm="ortho")[:, 1:64] for x in (clean, noisy))
    shared = (a.conj() * b).mean(0).abs() ** 2
    coherence = shared / (a.abs() ** 2).mean(0) / (b.abs() ** 2).mean(0)
    return int((coherence > 0.5).sum()), (b.abs() ** 2).mean(0)


clean = signals(count // 2, md.tensors.seeded(3))
times = [0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6]
measured = [crossing(clean, table, t, md.tensors.seeded(4, i)) for i, t in enumerate(times)]
snr = table(torch.tensor(times, dtype=D)).log_snr.exp()
predicted = (snr * power[0]).sqrt()


def radial(images):
    spectrum = (torch.fft.fft2(images[:, 0], norm="ortho").abs() ** 2).mean(0)
    k = torch.fft.fftfreq(28) * 28
    radius = (k[:, None] ** 2 + k**2).sqrt().round().long()
    return torch.stack([spectrum[radius == r].mean() for r in range(1, 15)])


digits_power = radial(pictures - pictures.mean(0))

# %% mystnb={"image": {"alt": "Left: power against wave number for signals at three times; falling curves end on flat noise floors, ever further left. Middle: the power of handwritten digits falls steeply with the frequency. Right: the number of waves above the noise falls with time; dots lie on the predicted curve."}, "figure": {"name": "fig-spectrum", "caption": "Left: the power of noisy signals (lines) follows the data (dashed) down to the flat floor of the noise. Middle: pictures of digits have a falling spectrum, too. Right: the number of waves that rise above the noise, measured (dots, whole numbers) and predicted (line). Fast waves drown first, the slowest last."}}
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(8.4, 2.6))
for i, color in zip([1, 3, 6], ["#0072B2", "#009E73", "#D55E00"], strict=True):
    at = table(times[i])
    left.loglog(waves, measured[i][1], color=color, label=f"t = {times[i]}")
    left.loglog(waves, float(at.signal) ** 2 * power, color=color, linestyle="--", linewidth=0.9)
left.set(xlabel="wave number k", ylabel="power", title="signals with noise", ylim=(1e-3, 100))
left.legend()
middle.loglog(range(1, 15), digits_power, color=md.plots.DATA, label="digits")
middle.axhline(1.0, color=md.plots.NOISE, label="noise")
middle.set(xlabel="frequency, waves per width", title="digits, clean", ylabel="power")
middle.legend()
fine = torch.linspace(0.03, 0.62, 60, dtype=D)
curve = (table(fine).log_snr.exp() * power[0]).sqrt().clamp(max=63)
right.semilogy(fine, curve, color=md.plots.NOISE, label="predicted")
right.semilogy(times, [k for k, _ in measured], "o", color=md.plots.DATA, label="measured")
right.set(xlabel="time t", title="waves above the noise", ylabel="number of waves")
right.legend();
# %% tags=["nbval-check-output"]
for i in range(len(times)):
    want = min(float(predicted[i]), 63)
    assert abs(measured[i][0] - want) < 1 + 0.1 * want
numbers["waves_10"] = {"value": measured[1][0], "band": [16, 22]}
numbers["waves_40"] = {"value": measured[5][0], "band": [2, 4]}
fall = float(digits_power[0] / digits_power[-1])
numbers["digit_fall"] = {"value": fall, "band": [100, 200]}
assert 16 <= measured[1][0] <= 22 and 2 <= measured[5][0] <= 4 and 100 < fall < 200
print("check passed: the waves drown in the predicted order")

# %% [markdown]
# At $t = 0.1$ there are {number}`03_noise:waves_10|.0f` waves above the noise, at $t = 0.4$ only {number}`03_noise:waves_40|.0f`. Digits have {number}`03_noise:digit_fall|,.0f` times more power in their slowest waves than in their fastest. That is why fine strokes are lost early and the coarse shape late, and why the way back will first decide on the shape and then on the strokes.
#
# ## Schedules
#
# All schedules share one clock, the log-SNR {eq}`eq:log-snr`. A schedule only says how fast the clock runs. The figure shows eight. Which of them do not reach noise? And which spend most of their steps where nothing happens any more?

# %% mystnb={"image": {"alt": "Log signal-to-noise ratio against the fraction of steps for eight tables. The linear table in 100 unscaled steps stops near minus 0.6; latent diffusion near minus 5.4; the others fall to minus 10 or lower. The table that is too big leaves the picture after a quarter of the steps."}, "figure": {"name": "fig-log-snr", "caption": "Schedules as log-SNR against the fraction of steps. Above the upper grey line, data outweigh noise a hundred to one; below the lower one, noise outweighs data a hundred to one. The table of Ho et al. without scaling (100 steps) never comes near the lower line. The table that is too big is past it after a seventh of its steps."}}
tables = {
    "linear, 1000": md.linear_betas(1000),
    "cosine, 1000": md.cosine_betas(1000),
    "sigmoid, 1000": md.sigmoid_betas(1000),
    "square root, 1000": md.sqrt_betas(1000),
    "quadratic, 50 (CSDI)": md.quadratic_betas(50),
    "latent diffusion, 1000": md.scaled_linear_betas(1000),
    "unscaled, 100": torch.linspace(1e-4, 0.02, 100, dtype=D),
    "too big, 1000": md.linear_betas(1000, beta_max=500.0),
}
tables = {name: md.BetaTable(betas) for name, betas in tables.items()}
colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#000000", "#8a8a8a"]
ax = plt.figure(figsize=(5.8, 3.0)).gca()
for (name, path), color in zip(tables.items(), colors, strict=True):
    steps = torch.arange(1, path.T + 1, dtype=D) / path.T
    style = "--" if name.startswith(("unscaled", "too big")) else "-"
    ax.plot(steps, path(steps).log_snr, style, color=color, label=name)
for level in (math.log(100), -math.log(100)):
    ax.axhline(level, color=md.plots.NOISE, linewidth=0.8)
ax.set(xlabel="fraction of the steps", ylabel="log-SNR", ylim=(-16, 12))
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5));
# %% tags=["nbval-check-output"]
bars = {name: float(path.alpha_bars[-1]) for name, path in tables.items()}
wasted = {
    name: float((path.alpha_bars / (1 - path.alpha_bars) < 0.01).to(D).mean())
    for name, path in tables.items()
}
numbers["bar_linear"] = {"value": bars["linear, 1000"], "band": [4.0e-5, 4.1e-5]}
numbers["bar_unscaled"] = {"value": bars["unscaled, 100"], "band": [0.36, 0.37]}
numbers["bar_latent"] = {"value": bars["latent diffusion, 1000"], "band": [0.0046, 0.0048]}
for key, name in [("linear", "linear, 1000"), ("cosine", "cosine, 1000"), ("big", "too big, 1000")]:
    low, high = {"linear": (0.3, 0.35), "cosine": (0.05, 0.08), "big": (0.85, 0.9)}[key]
    numbers[f"wasted_{key}"] = {"value": wasted[name], "band": [low, high]}
    assert low < wasted[name] < high
assert 0.36 < bars["unscaled, 100"] < 0.37 and 4.0e-5 < bars["linear, 1000"] < 4.1e-5
print("check passed: alpha-bar at the end, and the share of steps in nearly pure noise")

# %% [markdown]
# Ho et al.'s two numbers leave $\bar\alpha_T$ = {number}`03_noise:bar_linear|.1e` after 1000 steps and {number}`03_noise:bar_unscaled|.2f` after 100: too small. If the betas are too big, {number}`03_noise:wasted_big|.0%` of the steps work at a signal-to-noise ratio below one hundredth. For the linear table it is {number}`03_noise:wasted_linear|.0%`, for the cosine {number}`03_noise:wasted_cosine|.0%`. The same on a digit:

# %% mystnb={"image": {"alt": "Four strips of a handwritten digit at seven equal fractions of the steps. Linear: hardly to be told from the fourth on. Cosine: to be told up to the fifth. Unscaled: still to be seen in the last. Too big: gone in the second."}, "figure": {"name": "fig-strips", "caption": "One digit and one noise at seven equal fractions of the steps. The linear table loses the digit in the first half, the cosine table spreads the loss over all steps. Unscaled betas never lose it, and betas that are too big lose it at once."}}
digit_noise = md.tensors.randn_like(digit, md.tensors.seeded(5))
names = ["linear, 1000", "cosine, 1000", "unscaled, 100", "too big, 1000"]
fig, axes = plt.subplots(4, 1, figsize=(5, 3.7))
for ax, name in zip(axes, names, strict=True):
    frames = [md.diffuse(tables[name](i / 6), digit, digit_noise) for i in range(7)]
    md.plots.images(ax, torch.cat(frames).clamp(-1.5, 1.5) / 1.5, columns=7)
    ax.set_title(name)

# %% [markdown]
# ## What does the last step still know?
#
# The eye is one judge. Here is a stricter one: take the mean picture of each class from one half of the digits, and ask for each noisy picture of the other half which shrunk mean it is nearest to. In heavy noise that is close to the best that anyone can do. Guessing is right in 10 % of the cases. A schedule that reaches noise must end there. What about 100 unscaled steps? And latent diffusion's table, which ends at $\bar\alpha_T$ = {number}`03_noise:bar_latent|.4f`?


# %%
half = len(pictures) // 2
flat = pictures.reshape(len(pictures), -1)
means = torch.stack([flat[:half][labels[:half] == c].mean(0) for c in range(10)])


def accuracy(path, t, seed):
    signal, noise = (float(f) for f in path(t)[:2])
    eps = md.tensors.randn_like(flat[half:], md.tensors.seeded(6, seed))
    noisy = signal * flat[half:] + noise * eps
    nearest = (
        noisy @ means.T - signal * means.square().sum(1) / 2
    )  # -|x - signal m|^2 but for |x|^2
    return float((nearest.argmax(1) == labels[half:]).float().mean())


probed = ["linear, 1000", "cosine, 1000", "latent diffusion, 1000", "unscaled, 100"]
fractions = [0.02, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
found = {
    name: torch.tensor([[accuracy(tables[name], t, s) for t in fractions] for s in seeds])
    for name in tqdm(probed, desc="probe")
}

# %% mystnb={"image": {"alt": "Accuracy of the nearest class mean against the fraction of steps for four tables. Linear and cosine fall to ten percent; latent diffusion ends above it; the unscaled table stays near eighty percent."}, "figure": {"name": "fig-probe", "caption": "How often the nearest class mean is the right one. Linear and cosine tables end at guessing, or nearly. Latent diffusion's table ends a little above it, and 100 unscaled steps hardly hide the digit at all. Bands: all seeds."}}
ax = plt.figure(figsize=(5.2, 2.7)).gca()
for name, color in zip(probed, ["#0072B2", "#D55E00", "#B8860B", "#000000"], strict=True):
    values = found[name]
    ax.plot(fractions, values.mean(0), color=color, label=name)
    ax.fill_between(fractions, values.amin(0), values.amax(0), color=color, alpha=0.3)
ax.axhline(0.1, color=md.plots.NOISE, linestyle="--", label="guessing")
ax.set(xlabel="fraction of the steps", ylabel="right class", ylim=(0, 1))
ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5));
# %% tags=["nbval-check-output"]
bands = {"linear, 1000": [0.08, 0.13], "cosine, 1000": [0.08, 0.12]}
bands |= {"latent diffusion, 1000": [0.15, 0.3], "unscaled, 100": [0.7, 0.85]}
for name, band in bands.items():
    key = "probe_" + name.split(",")[0].split()[0]
    final = found[name][:, -1]
    numbers[key] = {"value": float(final.mean()), "band": band, "seeds": seeds}
    assert all(band[0] < a < band[1] for a in final.tolist())
numbers["probe_clean"] = {"value": float(found["linear, 1000"][:, 0].mean()), "band": [0.7, 0.85]}
trace = torch.pdist(means).square().mean() * table(1.0).log_snr.exp()
numbers["trace"] = {"value": float(trace.sqrt()), "band": [0.03, 0.1]}
numbers["probe_error"] = {"value": (0.09 / half / len(seeds)) ** 0.5, "band": [0.002, 0.004]}
print("check passed: unscaled steps leak the class, scaled ones hardly a trace")

# %% [markdown]
# Nearly clean digits are classified right in {number}`03_noise:probe_clean|.0%` of the cases. At the end of the cosine table it is {number}`03_noise:probe_cosine|.1%`: guessing, with a standard error of {number}`03_noise:probe_error|.1%`. The linear table ends at {number}`03_noise:probe_linear|.1%`. That little more is no accident. Multiply the mean squared distance of two class means by the signal-to-noise ratio at the end, and take the root: {number}`03_noise:trace|.2f`. That far, in standard deviations of the noise, the classes still lie apart. It is a trace that nobody will miss. After 100 unscaled steps it is {number}`03_noise:probe_unscaled|.0%`. A sampler that starts there from pure noise starts from something that no training picture ever became. With latent diffusion's betas it is {number}`03_noise:probe_latent|.0%`. That is not guessing either, and it is a table in wide use; {eq}`eq:zero-snr` is one remedy.
#
# ## The way back, exactly
#
# Why so many steps? Because the way back is modelled by Gaussians. Take data for which the true way back is known: two bells on a line, of standard deviation 0.2, at $-1.2$ and $0.8$, with weights 0.4 and 0.6. So the mean is 0 and the variance 1. For a mixture $q(x_{t-1}\mid x_t)$ is again a mixture ({eq}`eq:reverse-mixture`).
#
# Fix the level of $x_{t-1}$ at $\bar\alpha_{t-1} = 0.7$ and one value of $x_t$. Now take a small step, a larger and a huge one. What will the distribution of $x_{t-1}$ look like in each case?


# %%
def bells(std, places=(-1.2, 0.8), weights=(0.4, 0.6)):
    means = torch.tensor(places, dtype=D)[:, None]
    return md.GaussianMixture(means, torch.tensor(std, dtype=D), torch.tensor(weights, dtype=D))


def two_steps(bar, beta):
    return md.BetaTable(torch.tensor([1 - bar, beta], dtype=D))


def normal(u, mean, var):
    return torch.exp(-((u - mean) ** 2) / (2 * var)) / (2 * math.pi * var) ** 0.5


def look(bar, beta, x, data):
    path, at = two_steps(bar, beta), torch.tensor([[x]], dtype=D)
    step = md.exact.reverse_step(data, at, 1.0, 0.5, path)
    mean, var = md.exact.best_gaussian(step)
    return step, float(mean), float(var), float(md.exact.non_gaussianity(step))


data = bells(0.2)
x_t, bar = -0.1, 0.7

# %% mystnb={"image": {"alt": "Three panels with the density of the earlier point. Small step: a narrow bell, and its best Gaussian lies on it. Larger step: a wider, lopsided bell. Huge step: two humps, over which the best Gaussian is one broad bell."}, "figure": {"name": "fig-way-back", "caption": "The true distribution of $x_{t-1}$ given one $x_t$ (green), its best Gaussian (orange, dashed) and the prior $q(x_{t-1})$ (blue, height scaled) for three sizes of one step. The dotted line is $x_t$ divided by the root of alpha. A small step looks at so little of the prior that it cannot see it bend. A huge step sees both bells."}}
u = torch.linspace(-2.2, 2.2, 400, dtype=D)
fig, axes = plt.subplots(1, 3, figsize=(7.4, 2.4))
for ax, beta in zip(axes, [0.01, 0.2, 0.8], strict=True):
    step, mean, var, gap = look(bar, beta, x_t, data)
    spread = step.variances.expand(step.means.shape)
    parts = zip(step.weights[0], step.means[0, :, 0], spread[0, :, 0], strict=True)
    true = sum(float(w) * normal(u, m, v) for w, m, v in parts)
    before = data.log_prob(u[:, None], 0.5, two_steps(bar, beta)).exp()
    ax.fill_between(u, before / before.max() * true.max() * 0.5, color=md.plots.DATA, alpha=0.25)
    ax.plot(u, true, color=md.plots.KNOWN, label="true")
    ax.plot(u, normal(u, mean, var), "--", color=md.plots.PREDICTION, label="best Gaussian")
    ax.axvline(x_t / (1 - beta) ** 0.5, color=md.plots.NOISE, linestyle=":")
    ax.set(title=f"$\\beta$ = {beta}: {gap:.1e} nats", xlabel="$x_{t-1}$", yticks=[])
axes[0].legend(loc="upper right", handlelength=1.2);

# %% [markdown]
# The number in each title is the KL divergence from the true distribution to its best Gaussian ({eq}`eq:non-gaussianity`). How does it depend on $\beta$? The chapter predicts the third power, {eq}`eq:cubic-gap`, for small steps. And what do *all* steps of a chain lose together? If $T$ steps lose $(1/T)^3$ each, the sum should fall like $1/T^2$. But the samplers of DDPM do not take the best Gaussian at each $x_t$: their variance is one number a step. We also add up what that costs, with $\sigma_t^2 = \beta_t$ and with the best single number, the mean of the true variance.


# %%
def crowd(at, data, n):
    wide = (at.signal**2 * data.stds.max() ** 2 + at.noise**2).sqrt()
    ends = at.signal * data.means.min() - 6 * wide, at.signal * data.means.max() + 6 * wide
    return torch.linspace(float(ends[0]), float(ends[1]), n, dtype=D)[:, None]


def one_step(path, i, n=points):
    t, s = i / path.T, (i - 1) / path.T
    x = crowd(path(t), data, n)
    q = data.log_prob(x, t, path).exp() * (x[1] - x[0])
    step = md.exact.reverse_step(data, x, t, s, path)
    return q, md.exact.non_gaussianity(step), md.exact.best_gaussian(step)[1][:, 0]


def slopes_of(path, i, n=points):
    x = crowd(path(i / path.T), data, n).requires_grad_()
    out = data.log_prob(x, i / path.T, path)
    q, found = out.detach().exp() * (x[1] - x[0]).detach(), []
    for _ in range(3):
        (out,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        found.append(out.detach()[:, 0])
    return q, found[1], found[2]


def mean_gap(bar, beta):
    q, gap, _ = one_step(two_steps(bar, beta), 2, 3 * points)
    return float((q * gap).sum())


def cubic(bar, beta):
    q, _, third = slopes_of(two_steps(bar, beta), 1, 3 * points)
    return float((q * third**2).sum()) * (beta / (1 - beta)) ** 3 / 12


betas = torch.logspace(-4, -0.1, 14 if as_printed else 7, dtype=D).tolist()
levels = [0.9, 0.7, 0.3]
curves = {b: [mean_gap(b, beta) for beta in betas] for b in levels}
leads = {b: [cubic(b, beta) for beta in betas] for b in levels}


# %%
def losses_of(path, i):
    q, gap, var = one_step(path, i)
    best, beta = float((q * gap).sum()), float(path.betas[i - 1])
    single = float((q * var).sum())
    extra = [float((q * (var / v - 1 - (var / v).log()) / 2).sum()) for v in (single, beta)]
    return best, best + extra[0], best + extra[1]


def totals(T):
    path = md.BetaTable(md.linear_betas(T))
    return torch.tensor([losses_of(path, i) for i in range(1, T + 1)], dtype=D)


runs = {T: totals(T) for T in tqdm(lengths, desc="chains")}
sums = torch.stack([runs[T].sum(0) for T in lengths])
path = md.BetaTable(md.linear_betas(lengths[-1]))
limit = torch.zeros(2, dtype=D)
for i in range(1, path.T + 1):
    q, second, third = slopes_of(path, i)
    rate = path.T * path.betas[i - 1]
    cube, square = rate**3 / 12 * third**2, rate**2 / 4 * (1 + second) ** 2
    limit += torch.stack([(q * cube).sum(), (q * square).sum()]) / path.T

# %% mystnb={"image": {"alt": "Left: mean divergence against beta on logarithmic axes for three levels; for small beta the dots lie on straight lines of slope 3, for large ones they bend and stay below. Middle: the divergence of each of 100 steps against time has a peak near 0.12. Right: the sums over all steps against the number of steps; the best Gaussian falls with slope 2, the two single variances with slope 1."}, "figure": {"name": "fig-gap", "caption": "Left: what one step loses to its best Gaussian. For small beta it is beta to the third (dashed: prediction), for large beta less. Middle: where in a chain of 100 steps the loss occurs: while the two bells part. Right: the loss of all steps. With the best Gaussian at each point it falls like $1/T^2$; with one variance a step, as in DDPM, like $1/T$. Dotted: the limits that the chapter derives."}}
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(8.6, 2.7))
for b, color in zip(levels, ["#0072B2", "#009E73", "#CC79A7"], strict=True):
    left.loglog(betas, curves[b], "o-", markersize=3, color=color, label=f"{b}")
    left.loglog(betas, leads[b], "--", color=color, linewidth=0.9)
left.set(xlabel="beta", ylabel="nats", ylim=(1e-15, 10), title="one step")
left.legend(title="alpha-bar before", loc="upper left")
middle.plot([i / 100 for i in range(1, 101)], runs[100][:, 0], color=md.plots.PREDICTION)
middle.set(xlabel="time t", ylabel="nats", title="each of 100 steps", xlim=(0, 0.6))
kinds = {"variance $\\beta_t$": 2, "best one variance": 1, "best Gaussian": 0}
for (name, k), color in zip(kinds.items(), ["#8a8a8a", "#0072B2", "#D55E00"], strict=True):
    right.loglog(lengths, sums[:, k], "o-", markersize=3, color=color, label=name)
ends = torch.tensor([lengths[0], lengths[-1]], dtype=D)
right.loglog(ends, float(limit[0]) / ends**2, ":", color="#D55E00")
right.loglog(ends, float(limit[1]) / ends, ":", color="#8a8a8a")
right.set(xlabel="number of steps T", ylabel="nats", title="all steps")
right.set_xticks(lengths, labels=lengths)
right.minorticks_off()
right.legend(loc="lower left");


# %% tags=["nbval-check-output"]
def slope(x, y):
    x, y = (torch.tensor(v, dtype=D).log() for v in (x, y))
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


small = [k for k, beta in enumerate(betas) if beta < 0.003]
steep = {b: slope([betas[k] for k in small], [curves[b][k] for k in small]) for b in levels}
tail = {k: slope(lengths[-2:], sums[-2:, k].tolist()) for k in range(3)}
numbers["slope_beta"] = {"value": steep[0.7], "band": [2.97, 3.01]}
numbers["slope_best"] = {"value": tail[0], "band": [-2.0, -1.85] if as_printed else [-2, -1.6]}
numbers["slope_single"] = {"value": tail[1], "band": [-1.1, -0.98]}
numbers["slope_fixed"] = {"value": tail[2], "band": [-1.05, -0.93]}
assert 2.97 < steep[0.7] < 3.01 and 2.9 < steep[0.9] < 3.01 and 2.97 < steep[0.3] < 3.01
assert -2.0 < tail[0] < (-1.85 if as_printed else -1.6)
assert -1.1 < tail[1] < -0.98 and -1.05 < tail[2] < -0.93
print(
    "check passed: one step loses beta cubed; a chain loses 1/T^2, or 1/T with one variance a step"
)

# %% tags=["nbval-check-output"]
for key, beta in [("small", 0.01), ("middle", 0.2), ("huge", 0.8)]:
    low, high = {"small": (7e-6, 8e-6), "middle": (0.008, 0.01), "huge": (0.04, 0.06)}[key]
    gap = look(bar, beta, x_t, data)[3]
    numbers[f"gap_{key}"] = {"value": gap, "band": [low, high]}
    assert low < gap < high
numbers["sum_100_best"] = {"value": float(runs[100][:, 0].sum()), "band": [0.0043, 0.0045]}
numbers["sum_100_fixed"] = {"value": float(runs[100][:, 2].sum()), "band": [0.075, 0.079]}
numbers["peak_time"] = {"value": (int(runs[100][:, 0].argmax()) + 1) / 100, "band": [0.1, 0.14]}
numbers["sum_25_best"] = {"value": float(runs[25][:, 0].sum()), "band": [0.04, 0.05]}
numbers["limit_best"] = {"value": float(limit[0]), "band": [55, 70]}
numbers["limit_fixed"] = {
    "value": float(limit[1]), "band": [7.5, 8.5] if as_printed else [6.5, 8.5],
}  # fmt: skip
assert 0.1 < numbers["peak_time"]["value"] < 0.14 and 0.0043 < runs[100][:, 0].sum() < 0.0045
print("check passed: the sums of a chain of 100 steps")

# %% [markdown]
# At $\bar\alpha_{t-1} = 0.7$ the slope for small betas is {number}`03_noise:slope_beta|.2f`. The three steps of {numref}`fig-way-back` lose {number}`03_noise:gap_small|.1e`, {number}`03_noise:gap_middle|.1e` and {number}`03_noise:gap_huge|.1e` nats. A chain of 100 steps loses {number}`03_noise:sum_100_best|.4f` nats with the best Gaussians, most of it near $t$ = {number}`03_noise:peak_time|.2f`, while the two bells part, and {number}`03_noise:sum_100_fixed|.3f` nats with $\sigma_t^2=\beta_t$. Between the two longest chains the slopes are {number}`03_noise:slope_best|.2f` for the best Gaussian, {number}`03_noise:slope_single|.2f` for the best single variance and {number}`03_noise:slope_fixed|.2f` for $\beta_t$. So it is not the shape that costs most in a long chain. It is the variance, which ought to depend on $x_t$ and does not.
#
# ## "It comes from a region close to $x_t$"
#
# A lecture gives this reason for the Gaussian: if $\beta_t$ is small, $x_{t-1}$ comes from a region close to $x_t$. Is closeness the reason? Take two bells that are very narrow and very near to each other, and a tenth of the step. Before you read on: closer, or farther from a Gaussian?

# %% tags=["nbval-check-output"]
far = look(0.7, 0.01, -0.1, data)
near = look(0.9999, 0.001, 0.001, bells(0.004, (-0.03, 0.03), (0.5, 0.5)))
for key, case in [("far", far), ("near", near)]:
    numbers[f"std_{key}"] = {"value": case[2] ** 0.5, "band": [0.01, 0.12]}
    numbers[f"lost_{key}"] = {"value": case[3], "band": [1e-6, 0.5]}
assert near[2] < far[2] and near[3] > 1000 * far[3]
print("check passed: closer, and much less Gaussian")

# %% [markdown]
# In the first case $x_{t-1}$ has the standard deviation {number}`03_noise:std_far|.3f`, and the best Gaussian misses by {number}`03_noise:lost_far|.1e` nats. In the second it has {number}`03_noise:std_near|.3f`, and the best Gaussian misses by {number}`03_noise:lost_near|.2f`. Closeness alone proves nothing. What counts is whether the prior $q(x_{t-1})$ bends *within* that region: the width of the step must be small beside the details of the data at that noise level.
#
# ## Exercises
#
# 1. Give `crossing` the cosine table. At which fraction of its steps are 3 waves left, and at which with the linear table?
# 2. Replace the two bells by `md.Empirical` with two points. Where does `non_gaussianity` raise an error, and why must it?
# 3. Draw the middle panel of {numref}`fig-gap` for `md.cosine_betas(100)`. Does its sum come out smaller or larger than that of the linear table?
#
# ## What it cost

# %% tags=["nbval-ignore-output"]
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
numbers["seeds"] = {"value": len(seeds), "band": [1, 5]}
numbers["minutes"] = {"value": seconds / 60, "band": [0, 30]}
print(f"{seconds:.0f} s, peak memory {memory:.0f} MB")

# %% tags=["remove-cell"]
if "NUMBERS" in os.environ:
    with open(os.environ["NUMBERS"], "w") as file:
        json.dump(numbers, file)
