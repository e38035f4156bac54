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
# # Lab: handwritten digits, in seven steps
#
# A lecture on diffusion models often ends with seven pieces of code: the noise schedule, the encoding of time, the network, the loss, one sampling step, training, and sampling. Here they are as they stand in `minidiff`, on real digits. The algorithms are in {ref}`sec-ddpm`, the network and the measures in {ref}`sec-unet`.
#
# The network has been trained already: {number}`06_mnist:train_minutes|.0f` minutes on one processor core, on 4,000 digits. You load it, look inside each step, watch a smaller one learn from nothing, draw {number}`06_mnist:count|,.0f` digits, and ask of what use they are. Then you choose which digit to draw. On one laptop core this page takes about {number}`06_mnist:minutes|.0f` minutes; with `PRESET=gpu` it trains the whole network from nothing on all of MNIST or Fashion-MNIST.

# %% tags=["parameters"]
import os

PRESET = os.environ.get("PRESET", "cpu")  # "smoke" (seconds), "cpu" (as printed), "gpu"
DATASET = "mnist"  # what "gpu" trains on: "mnist" or "fashion"
FOLDER = "data"  # where torchvision keeps its files

# %%
import json
import resource
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from tqdm import tqdm

import minidiff as md

start = time.perf_counter()
md.plots.use_style()
torch.set_num_threads(1)
device = "cuda" if torch.cuda.is_available() else "cpu"
count, few, short, chain, updates = {
    "smoke": (20, 10, 3, 10, 3),
    "cpu": (1000, 150, 50, 1000, 400),
    "gpu": (1000, 1000, 50, 1000, 20_000),
}[PRESET]
as_printed = PRESET != "smoke"
numbers = {}

# %% [markdown]
# ## The data
#
# Five thousand MNIST digits, scaled to $[-1, 1]$, cut in two by a fixed rule: 4,000 to train on, and 1,000 that no network of this page has seen. Every chapter uses this cut.

# %%
digits = md.data.split(*md.data.mnist5k(), 1000)
power = float(digits.x.square().mean())
spread = float(digits.x.var(0).mean())

# %% tags=["nbval-check-output"]
numbers["power"] = {"value": power, "band": [0.8, 1.0]}
numbers["pixel_variance"] = {"value": spread, "band": [0.2, 0.35]}
assert 0.8 < power < 1 and 0.2 < spread < 0.35
print("check passed: the mean square of a pixel is mostly the black background")

# %% [markdown]
# The mean square of a pixel is {number}`06_mnist:power|.2f`, but most of that is the black background, $-1$ in every picture. What varies from picture to picture, the mean variance of a pixel, is {number}`06_mnist:pixel_variance|.2f`. We shall meet both numbers again.
#
# ## Step 1: the noise schedule
#
# A table of a thousand betas and from it the share of signal and noise at each step ({eq}`eq:jump`). The chapter before took the linear table; small pictures do better with the cosine table {eq}`eq:betas-cosine`. Before looking: in which of the ten panels can you no longer tell the digit, above, and below?

# %% mystnb={"image": {"alt": "Two rows of one handwritten digit at ten equally spaced times from clean to pure noise, with the share of signal below each. In the upper row the digit is lost after five panels, in the lower after seven."}, "figure": {"name": "fig-drowning", "caption": "One digit, the same noise, two tables, ten equally spaced times, and the share of variance that is still signal. Above, the linear table: from the sixth panel on the eye sees noise only, and nearly half of all training examples would look like that. Below, the cosine table loses the digit only in the last three."}}
schedule = md.BetaTable(md.cosine_betas(1000))
linear = md.BetaTable(md.linear_betas(1000))
digit = digits.held_x[3:4]
noise = md.tensors.randn_like(digit, md.tensors.seeded(1))
fig, axes = plt.subplots(2, 1, figsize=(7.4, 2.2))
for ax, table in zip(axes, [linear, schedule], strict=True):
    at = table(torch.linspace(0, 1, 10, dtype=torch.float64))
    frames = md.diffuse(at, digit.expand(10, -1, -1, -1), noise.expand(10, -1, -1, -1))
    md.plots.film(ax, frames, labels=[f"{s:.1%}" for s in (at.signal**2).tolist()])

# %% tags=["nbval-check-output"]
tables = {"linear": linear, "cosine": schedule}
for name, table in tables.items():
    lost = float((table.alpha_bars < 0.05).double().mean())
    numbers[f"lost_{name}"] = {"value": lost, "band": [0.13, 0.47]}
    numbers[f"half_{name}"] = {"value": int((table.alpha_bars > 0.5).sum()) + 1, "band": [200, 600]}
assert numbers["lost_linear"]["value"] > 3 * numbers["lost_cosine"]["value"]
assert numbers["half_linear"]["value"] == 260
print("check passed: the linear table spends three times as many steps on pure noise")

# %% [markdown]
# With the linear table half of the variance is noise from step {number}`06_mnist:half_linear|.0f` of 1,000 and {number}`06_mnist:lost_linear|.0%` of the steps have less than a twentieth of signal; with the cosine table these numbers are {number}`06_mnist:half_cosine|.0f` and {number}`06_mnist:lost_cosine|.0%`. A small network should not spend its time on pictures in which there is nothing to see.
#
# ## Step 2: telling the network the time
#
# A time becomes a row of sines and cosines of many frequencies ({eq}`eq:sinusoidal`). How alike are the encodings of two times? {eq}`eq:time-inner` says that only their difference counts, and {eq}`eq:time-log` that similarity falls by the same amount each time the difference doubles. What would evenly spaced frequencies do instead?

# %% mystnb={"image": {"alt": "Left: heat map of the encoding, time downwards; fast stripes on the left of each half, smooth gradients on the right. Right: similarity against time difference on a logarithmic axis; geometric frequencies fall about a straight line from 1 to about 0.2, even frequencies drop to 0 within three steps and jump up to 0.9 near 195."}, "figure": {"name": "fig-time", "caption": "Left: the encoding of 50 times, 64 numbers each, first sines, then cosines. Right: the similarity of two encodings against the difference of their times. With geometric frequencies it falls about a straight line over three decades. With evenly spaced ones everything more than three steps away is equally strange, until the pattern repeats near 195 steps and strangers look alike."}}
gaps = torch.logspace(0, 3, 200, dtype=torch.float64)
zero = md.nets.sinusoidal(torch.zeros(1, dtype=torch.float64), 64)
alike = md.nets.sinusoidal(gaps / 1000, 64) @ zero[0] / 32
even = torch.cos(gaps[:, None] * torch.linspace(1e-4, 1, 32, dtype=torch.float64)).mean(1)
line = 1 - (gaps.log() + 0.5772) / torch.tensor(1e4).log()
fig, (left, right) = plt.subplots(1, 2, figsize=(7.5, 2.4))
times = torch.linspace(0, 0.2, 50)
left.imshow(md.nets.sinusoidal(times, 64), aspect="auto", cmap="coolwarm", extent=(0, 64, 0.2, 0))
left.grid(False)
left.set(xlabel="number in the code", ylabel="time t")
right.semilogx(gaps, alike, color=md.plots.PREDICTION, label="geometric")
right.semilogx(gaps, line, color="black", linewidth=1, linestyle=":", label="straight line")
right.semilogx(gaps, even, color=md.plots.NOISE, label="evenly spaced")
right.set(xlabel="difference in steps", ylabel="similarity", ylim=(-0.3, 1.35))
right.legend(ncol=3, fontsize=7, loc="upper center");

# %% tags=["nbval-check-output"]
slip = (alike - line)[gaps > 20].abs()
again = float(even[gaps > 10].max())
numbers["similarity_slip"] = {"value": float(slip.mean()), "band": [0, 0.08]}
numbers["similarity_worst"] = {"value": float(slip.max()), "band": [0, 0.25]}
numbers["similarity_even"] = {
    "value": float(even[(gaps > 4) & (gaps < 150)].max()), "band": [0, 0.2],
}  # fmt: skip
numbers["similarity_again"] = {"value": again, "band": [0.7, 1]}
assert slip.mean() < 0.08 and numbers["similarity_even"]["value"] < 0.2 and again > 0.7
print("check passed: similarity falls with the logarithm; with even frequencies it is lost and returns")

# %% [markdown]
# With 32 frequencies the sum in {eq}`eq:time-inner` scatters about the line, by {number}`06_mnist:similarity_slip|.2f` in the mean over differences of more than 20 steps and by {number}`06_mnist:similarity_worst|.2f` at worst. Evenly spaced frequencies leave a similarity of at most {number}`06_mnist:similarity_even|.2f` between 4 and 150 steps, and then it comes back: all hands are multiples of one slow hand, so after one of its turns, about 195 steps, two times look alike again, with a similarity of {number}`06_mnist:similarity_again|.2f`.
#
# ## Step 3: the network
#
# A U-Net: down to a few coarse pixels, where it can see the whole digit at once, and up again, with shortcuts that carry the detail across. It takes a noisy picture and a time and returns $v$, a mixture of noise and picture ({eq}`eq:prediction-rows`). {ref}`sec-unet` goes through it line by line.

# %%
model = md.checkpoints.load("mnist-ddpm").to(device)
card = json.loads((md.checkpoints.WEIGHTS / "mnist-ddpm.json").read_text())


def weights(*modules):
    return sum(p.numel() for m in modules for p in m.parameters())


net = model.net
parts = {
    "time": weights(net.time), "down": weights(net.first, net.down, net.shrink),
    "middle": weights(net.enter, net.leave), "up": weights(net.up, net.grow, net.norm, net.last),
}  # fmt: skip
numbers["parameters"] = {"value": weights(model), "band": [1_000_000, 1_500_000]}
numbers["train_minutes"] = {"value": card["seconds"] / 60, "band": [1, 600]}
for name, value in parts.items():
    numbers[f"weights_{name}"] = {"value": value, "band": [10_000, 1_000_000]}
assert sum(parts.values()) == weights(model)
print(f"{weights(model):,} weights;", card["about"])

# %% [markdown]
# {number}`06_mnist:parameters|,.0f` weights: {number}`06_mnist:weights_down|,.0f` on the way down, {number}`06_mnist:weights_middle|,.0f` in the middle, {number}`06_mnist:weights_up|,.0f` on the way up, where every block also receives a shortcut, and {number}`06_mnist:weights_time|,.0f` for the time. The formulas {eq}`eq:weights-block` and {eq}`eq:weights-attention` give these numbers.
#
# ## Step 4: the loss
#
# Noise a digit, ask the network, compare ({eq}`eq:simple`). The network answers with $v$, but by {eq}`eq:v-error` one and the same answer has an error in $v$, in the noise and in the picture, and at each time they differ by factors that the table fixes. Two things can be known before looking. A network that always answers 0 has the error $\bar\alpha_t + (1-\bar\alpha_t)\,p$, where $p$ is the mean square of a pixel. And at $t=1$ nothing can be seen, so the best answer is the mean picture, and what remains is the variance of a pixel, {number}`06_mnist:pixel_variance|.2f`. In which of the three units is the loss largest near the data, and in which near the noise?


# %%
def v_error(x0, t):
    at, rng = schedule(t), md.tensors.seeded(7, round(1000 * float(t)))
    eps = md.tensors.randn_like(x0, rng)
    x = md.diffuse(at, x0, eps)
    with torch.no_grad():
        guess = model.raw(x.to(device), t.to(x0)).y.cpu()
    return float((guess - (at.signal * eps - at.noise * x0)).square().mean())


times = torch.tensor([0.001, 0.005, 0.02, 0.05, *torch.arange(0.1, 1.01, 0.1), 0.97])
times = times.double().sort().values
seen, unseen = ([v_error(x[:few], t) for t in times] for x in (digits.x, digits.held_x))

# %% mystnb={"image": {"alt": "Left: error in v against time; it starts near 0.4, falls below a tenth in the middle and rises to the variance of a pixel at time 1, far below the error of a network that answers 0; the curves for training and held-out digits lie together. Right, logarithmic: the error of the noise falls to 0 towards time 1, the error of the picture towards time 0."}, "figure": {"name": "fig-digit-loss", "caption": "The loss at each time. Left, in v: large at both ends, where v is noise that hides in the picture or a picture that hides in noise, and small between. At time 1 it ends at the variance of the pixels, the least that anyone can reach. Training and held-out digits differ little. Right: the same answers in two other units, each blind at one end."}}
at = schedule(times)
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.7))
nothing = (at.signal**2 + at.noise**2 * power).tolist()
left.plot(times, nothing, color=md.plots.NOISE, label="a network that answers 0")
left.plot(times, seen, "o-", color=md.plots.PREDICTION, label="training digits", markersize=4)
left.plot(times, unseen, "o--", color=md.plots.DATA, label="held-out digits", markersize=4)
left.axhline(spread, color="black", linewidth=1, linestyle=":", label="variance of a pixel")
left.set(xlabel="time t", ylabel="squared error of v", ylim=(0, 1.1))
left.legend(loc="upper center", ncol=2, fontsize=7, bbox_to_anchor=(0.5, 0.88))
units = {"v": 1.0, "noise": at.signal**2, "picture": at.noise**2}
colors = [md.plots.PREDICTION, md.plots.NOISE, md.plots.DATA]
for color, (name, factor) in zip(colors, units.items(), strict=True):
    right.semilogy(times, factor * torch.tensor(unseen), "o-", color=color, label=name, markersize=4)
right.set(xlabel="time t", ylabel="squared error", ylim=(1e-5, 3))
right.legend(title="held-out, error of", title_fontsize=8);

# %% tags=["nbval-check-output"]
middle = unseen[len(unseen) // 2]
numbers["loss_gap"] = {
    "value": sum(unseen) / sum(seen), "band": [0.95, 1.3] if as_printed else [0.5, 2.0],
}  # fmt: skip
numbers["v_near_data"] = {"value": unseen[0], "band": [0.2, 1.1]}
numbers["v_middle"] = {"value": middle, "band": [0.01, 0.3]}
numbers["v_near_noise"] = {"value": unseen[-1], "band": [0.2, 0.4]}
numbers["end_ratio"] = {
    "value": unseen[-1] / spread, "band": [0.9, 1.2] if as_printed else [0.5, 2],
}  # fmt: skip
for name in ("loss_gap", "end_ratio"):
    low, high = numbers[name]["band"]
    assert low < numbers[name]["value"] < high, name
assert middle < unseen[0] and middle < unseen[-1]
print("check passed: v is hard at both ends; at time 1 the loss is the variance of a pixel")

# %% [markdown]
# In $v$ the error is {number}`06_mnist:v_near_data|.2f` at the first step, {number}`06_mnist:v_middle|.2f` in the middle and {number}`06_mnist:v_near_noise|.2f` at the last, which is {number}`06_mnist:end_ratio|.2f` times the variance of a pixel: there the network does as well as can be done. On held-out digits the loss is {number}`06_mnist:loss_gap|.2f` times that on training digits: it has not learnt the training set by heart. One number for the whole loss hides all this, so look at it by time.
#
# ## Step 5: one sampling step
#
# {eq}`eq:ancestral`, written out with the table: ask for the picture, clip it to the range of pixels, mix, add noise. The package does the same, to rounding.


# %%
def step_back(x, i, z):
    x0 = clipped(x, torch.tensor(i / 1000))
    bar, before = schedule.alpha_bars[i - 1], schedule.alpha_bars[i - 2]
    alpha, beta = schedule.alphas[i - 1], schedule.betas[i - 1]
    keep, add = alpha.sqrt() * (1 - before) / (1 - bar), before.sqrt() * beta / (1 - bar)
    return keep * x + add * x0 + ((1 - before) / (1 - bar) * beta).sqrt() * z


clipped = md.clip(model, -1, 1)
i, x = 600, md.prior(schedule, (4, 1, 28, 28), rng=md.tensors.seeded(2), device=device)
with torch.no_grad():
    mine = step_back(x, i, md.tensors.randn_like(x, md.tensors.seeded(3)))
rest = torch.arange(i, -1, -1, dtype=torch.float64) / 1000
theirs = next(md.ancestral(clipped, schedule, x, rest, rng=md.tensors.seeded(3))).x

# %% tags=["nbval-check-output"]
assert (mine - theirs).abs().max() < 1e-4  # float32
print("check passed: one step written out is one step of md.ancestral")

# %% [markdown]
# ## Step 6: training, and what its curve should look like
#
# The loop is `md.train`. At this preset a smaller network of the same kind learns for {number}`06_mnist:updates|.0f` updates with the recipe of the shipped one; at `gpu` it is the full network on the full data set. It is given the class of each digit, and in one case of ten the class "unknown" ({eq}`eq:null-class`).
#
# What to expect? At first the network answers 0, and its loss is the average over $t$ of the upper line in the last figure. Then the loss should fall steeply, and soon seem to stand still. And it will scatter: each batch draws other digits, other noise and other times, and {numref}`fig-digit-loss` says how much the loss depends on the time. How much of the scatter goes away if the times of a batch are spread evenly over $[0, 1]$, as the recipe does, instead of drawn one by one?

# %%
full = {"mnist": md.data.mnist, "fashion": md.data.fashion_mnist}
x, y = full[DATASET](FOLDER) if PRESET == "gpu" else digits[:2]
batch, width = (128, 40) if PRESET == "gpu" else (64, 16)
recipe = md.checkpoints.RECIPES["mnist-ddpm-conditional"]
recipe = replace(recipe, steps=updates, warmup=max(updates // 20, 1))
with torch.random.fork_rng([]):
    torch.manual_seed(0)
    net = md.nets.UNet(1, width=width, mults=(1, 2), attention=(1,), patch=2, classes=10)
student = md.Denoiser(net, schedule, "v").to(device)
ema = md.EMA(student, recipe.decay if PRESET == "gpu" else 0.98)
run = md.train(
    lambda batch, rng: recipe.loss(student, tuple(b.to(device) for b in batch), rng),
    student, md.data.batches((x, y), batch, seed=0), steps=updates, lr=recipe.rate, ema=ema,
    autocast=recipe.autocast if device == "cuda" else None,
)  # fmt: skip
losses = [step.loss for step in tqdm(run, total=updates, desc="training")]


# %%
def batch_losses(times, n=24 if as_printed else 2):
    found = []
    for k in range(n):
        x0 = digits.x[100 * k : 100 * k + (100 if as_printed else 10)].to(device)
        with torch.no_grad():
            loss = md.denoising_loss(model, x0, times=times, rng=md.tensors.seeded(8, k))
        found.append(float(loss.mean()))
    return torch.tensor(found)


drawn, evenly = batch_losses(md.uniform_times), batch_losses(md.losses.low_discrepancy_times)
at = schedule(torch.linspace(0.001, 1, 1000, dtype=torch.float64))
first = float((at.signal**2 + at.noise**2 * x.square().mean()).mean())
classes = torch.arange(10, device=device).repeat(2)
x = md.prior(schedule, (20, 1, 28, 28), rng=md.tensors.seeded(9), device=device)
taught = md.clip(ema.model.given(classes), -1, 1)
sheet = md.last(md.ddim(taught, schedule, x, md.grids.strided(1000, 20 if as_printed else 2)))

# %% mystnb={"image": {"alt": "Left: training loss against step; it starts near 0.96, falls to about 0.3 within 200 steps and then creeps. Middle: 24 batch losses of the shipped model for two ways of drawing times, a wide column and a narrower one. Right: twenty rough samples of the new network."}, "figure": {"name": "fig-digit-curve", "caption": "Left: a small network learns from nothing. The curve starts where the answer 0 puts it (grey), falls for two hundred steps, and creeps from then on; the shipped model (dotted) has seen fifty times as many examples. Middle: the losses of 24 batches of 100 digits, of the shipped network, which does not change: all the scatter is noise of the estimate. Evenly spread times take a good part of it away. Right: what the small network draws when asked for 0 to 9, twice."}}
fig, axes = plt.subplots(1, 3, figsize=(8.4, 2.4), width_ratios=[4, 2, 4])
md.plots.loss_curve(axes[0], losses, label="new network")
axes[0].axhline(first, color=md.plots.NOISE, label="answer 0")
axes[0].axhline(float(evenly.mean()), color="black", linewidth=1, linestyle=":", label="shipped")
axes[0].set_ylim(0, 1.1)
axes[0].legend()
for place, values in enumerate([drawn, evenly]):
    axes[1].plot([place] * len(values), values, "o", color=md.plots.PREDICTION, alpha=0.4)
axes[1].set(xticks=[0, 1], xticklabels=["drawn", "spread"], xlim=(-0.5, 1.5), ylabel="batch loss")
md.plots.images(axes[2], sheet.clamp(-1, 1).cpu(), columns=5);

# %% tags=["nbval-check-output"]
tail = losses[-max(updates // 8, 1) :]
numbers["updates"] = {"value": updates, "band": [1, 100_000]}
numbers["first_loss"] = {"value": losses[0], "band": [0.94 * first, 1.06 * first]}
numbers["first_expected"] = {"value": first, "band": [0.7, 1.0]}
numbers["last_loss"] = {
    "value": sum(tail) / len(tail), "band": [0.05, 0.3] if as_printed else [0.05, 1.1],
}  # fmt: skip
numbers["shipped_loss"] = {"value": float(evenly.mean()), "band": [0.05, 0.3]}
numbers["noise_ratio"] = {
    "value": float(drawn.std() / evenly.std()), "band": [1.2, 4] if as_printed else [0.01, 100],
}  # fmt: skip
for name in ("first_loss", "last_loss", "shipped_loss", "noise_ratio"):
    low, high = numbers[name]["band"]
    assert low < numbers[name]["value"] < high, name
print("check passed: the curve starts where it must, and falls; even times make it smoother")

# %% [markdown]
# The first loss is {number}`06_mnist:first_loss|.2f`; the answer 0 should cost {number}`06_mnist:first_expected|.2f`. If your own curve starts elsewhere, the data are scaled wrongly or the last layer does not start at zero. After {number}`06_mnist:updates|.0f` updates it is {number}`06_mnist:last_loss|.2f`, and the shipped network, after many times as many, has {number}`06_mnist:shipped_loss|.2f`. The curve stands nearly still from the middle on, and yet the strokes of the right panel are no digits. Almost all of what the eye sees in samples happens while the curve hardly moves. Times that are spread evenly make the loss of a batch {number}`06_mnist:noise_ratio|.1f` times less noisy, at no cost ({eq}`eq:low-discrepancy`).
#
# ## Step 7: sampling
#
# From random numbers to digits, {number}`06_mnist:chain|,.0f` steps of {eq}`eq:ancestral`, with the guess clipped to $[-1,1]$ at each step. Watch when the shape is decided: when does the network know which digit it will be?

# %% mystnb={"image": {"alt": "Four rows of ten frames in two pairs. In each pair the upper row goes from noise to a digit, the lower row shows the guess of the network: a grey blur, then a blurred digit, then the digit."}, "figure": {"name": "fig-film", "caption": "Two digits being made. The upper row of each pair is the state, the lower row what the network takes the clean digit to be at that moment: first the mean of all digits, then of those that still fit, then one digit. The guess knows the digit long before the eye does."}}
begin = md.prior(schedule, (2, 1, 28, 28), rng=md.tensors.seeded(14), device=device)
grid = md.grids.strided(1000, chain)
states = md.ancestral(clipped, schedule, begin, grid, rng=md.tensors.seeded(15))
pick = set(torch.linspace(0, chain - 1, 10).round().long().tolist())
track = [s for k, s in enumerate(tqdm(states, total=chain, desc="sampling")) if k in pick]
film = [getattr(s, name)[i : i + 1] for i in range(2) for name in ("x", "x0") for s in track]
film = torch.cat(film).clamp(-1, 1).cpu()
ax = md.plots.images(plt.figure(figsize=(5.6, 2.4)).gca(), film, columns=10)

# %% [markdown]
# A thousand steps for each of many digits would take long. {py:func}`~minidiff.samplers.ddim` takes the same network and needs fewer steps ({eq}`eq:ddim`); {ref}`sec-fewer-steps` derives it. Here {number}`06_mnist:short|.0f` steps make {number}`06_mnist:count|,.0f` digits.


# %%
def draw(ask, seed, n):
    """Draw n digits in parts of 100; ask(part) is the denoiser for those of a slice."""
    parts, times = [], md.grids.strided(1000, short)
    for i in tqdm(range(0, n, 100), desc="digits"):
        shape = (min(100, n - i), 1, 28, 28)
        x = md.prior(schedule, shape, rng=md.tensors.seeded(seed, i), device=device)
        states = md.ddim(md.clip(ask(slice(i, i + 100)), -1, 1), schedule, x, times)
        parts.append(md.last(states).cpu())
    return torch.cat(parts)


samples = draw(lambda part: model, 4, count)

# %% mystnb={"image": {"alt": "Two sheets of forty digits: held-out digits on the left, samples on the right. Both are handwriting of many kinds; on the right a few are not quite a digit."}, "figure": {"name": "fig-samples", "caption": "Forty held-out digits (left) and the first forty samples (right), not selected. From a distance they can't be told apart; look at the samples one by one to find those that are not quite a digit."}}
fig, axes = plt.subplots(1, 2, figsize=(7.2, 1.75))
titles = ["held-out digits", "samples"]
for ax, pictures, title in zip(axes, [digits.held_x, samples], titles, strict=True):
    md.plots.images(ax, pictures[:40])
    ax.set_title(title)

# %% [markdown]
# ## How good are they?
#
# Looking is necessary and not enough. Five numbers, each blind to something that another one sees ({ref}`sec-unet-quality`): the Fréchet distance FD in the 64 features of a small classifier ({eq}`eq:frechet`); precision and recall ({eq}`eq:precision-recall`); the share of samples of which that classifier is sure; and the distance to the nearest training digit, relative to that of held-out digits ({eq}`eq:memorisation`). Beside them stand what {number}`06_mnist:count|,.0f` *training digits* get, the floor, and blurred digits, a failure that everybody can see. The aims, set before the training: FD at most 2.5 times the floor, confidence at least .9 times that of held-out digits, memorisation at least .9.

# %%
classifier = md.checkpoints.load("mnist-classifier")
near = (digits.x, digits.held_x) if as_printed else (digits.x[:400], digits.held_x[:200])
judge = md.evaluation.Evaluation(classifier.features, classifier, *near)  # md.evaluation.mnist5k()
found, floor = judge.quality(samples), judge.floor(count)
held_sure = classifier(digits.held_x).softmax(1).max(1).values > md.evaluation.SURE
blurred = F.avg_pool2d(F.pad(digits.x[:count], (2, 2, 2, 2), value=-1.0), 5, stride=1)
features = judge.features(digits.held_x)
blur = md.metrics.frechet_distance(judge.features(blurred), features)
for field, ours, theirs in zip(found._fields, found, floor, strict=True):
    print(f"{field:>13}: samples {ours:8.3f}, training digits {theirs:8.3f}")

# %% tags=["nbval-check-output"]
sure = float(held_sure.double().mean())
line = 2.5 * floor.fd
numbers["count"] = {"value": count, "band": [10, 10_000]}
numbers["short"] = {"value": short, "band": [1, 1000]}
numbers["chain"] = {"value": chain, "band": [1, 1000]}
numbers["fd"] = {"value": found.fd, "band": [floor.fd / 2, line] if as_printed else [0, 1e4]}
numbers["fd_floor"] = {"value": floor.fd, "band": [8, 16] if as_printed else [0, 1e4]}
numbers["fd_ratio"] = {"value": found.fd / floor.fd, "band": [0.5, 2.5] if as_printed else [0, 1e3]}
numbers["fd_blur"] = {"value": blur, "band": [50, 5000] if as_printed else [0, 1e4]}
numbers["precision"] = {"value": found.precision, "band": [0.6, 1] if as_printed else [0, 1]}
numbers["recall"] = {"value": found.recall, "band": [0.6, 1] if as_printed else [0, 1]}
numbers["precision_floor"] = {"value": floor.precision, "band": [0.8, 1] if as_printed else [0, 1]}
numbers["recall_floor"] = {"value": floor.recall, "band": [0.8, 1] if as_printed else [0, 1]}
numbers["confident"] = {"value": found.confident, "band": [0.8, 1] if as_printed else [0, 1]}
numbers["confident_held_out"] = {"value": sure, "band": [0.9, 1]}
numbers["nearest_ratio"] = {
    "value": found.memorisation, "band": [0.9, 1.3] if as_printed else [0.3, 3],
}  # fmt: skip
for name in ("fd", "fd_blur", "precision", "recall", "confident", "nearest_ratio"):
    low, high = numbers[name]["band"]
    assert low <= numbers[name]["value"] <= high, name
if as_printed:
    assert found.fd <= 2.5 * floor.fd and blur > line
    assert found.confident >= 0.9 * sure and found.memorisation >= 0.9
print("check passed: FD, confidence and distance to the training set are where they should be")

# %% [markdown]
# FD is {number}`06_mnist:fd|.1f`, {number}`06_mnist:fd_ratio|.2f` times the floor of {number}`06_mnist:fd_floor|.1f`; blurred digits get {number}`06_mnist:fd_blur|.0f`. Precision is {number}`06_mnist:precision|.2f` and recall {number}`06_mnist:recall|.2f`; training digits reach {number}`06_mnist:precision_floor|.2f` and {number}`06_mnist:recall_floor|.2f`, not 1. The classifier is sure of itself on {number}`06_mnist:confident|.0%` of the samples and on {number}`06_mnist:confident_held_out|.0%` of the held-out digits.
#
# Are they copies? Each sample is set beside its nearest training digit. Guess first: will it be the same digit?

# %% mystnb={"image": {"alt": "Two rows of twelve digits. Above, samples; below, the nearest training digit of each: mostly the same class, in another hand."}, "figure": {"name": "fig-nearest", "caption": "Twelve samples (above) and the nearest of the 4,000 training digits for each (below). Mostly the same digit, in another hand: relatives, not copies."}}
which = md.metrics.nearest(samples[:12], digits.x)[1]
sheet = torch.cat([samples[:12], digits.x[which]])
ax = md.plots.images(plt.figure(figsize=(7, 1.4)).gca(), sheet, columns=12)

# %% [markdown]
# The median distance of a sample to its nearest training digit is {number}`06_mnist:nearest_ratio|.2f` times that of a held-out digit. A model that copies would have a ratio near 0.
#
# ## FD of few pictures
#
# FD of two sets from the *same* distribution is not 0. {eq}`eq:fd-bias` says that it falls like one over the count, and how large it is for Gaussian features: only the eigenvalues of their covariance are needed. Our features are outputs of a ReLU, so not Gaussian at all. Before looking: if 1,000 training digits have an FD of {number}`06_mnist:fd_floor|.0f` to 1,000 held-out ones, what do 125 have to 125? And will the formula be of any use?

# %% mystnb={"image": {"alt": "Frechet distance of training digits to held-out digits against one over the count, for counts 1000, 500, 250 and 125, with bars; the four points lie on a straight line through 0 that comes from a formula."}, "figure": {"name": "fig-fd-bias", "caption": "FD between real digits, training against held-out, against one over the count of each set: mean and spread over pairs of sets. Nothing gets worse from left to right; this is bias. The line is the formula for Gaussian features, not a fit."}}
sizes, share = [1000, 500, 250, 125], torch.tensor([0.001, 0.002, 0.004, 0.008])
trained = judge.features(digits.x if as_printed else digits.x[:2000])


def pairs(n):
    ours, theirs = trained.split(n)[:4], features.split(n)
    found = [md.metrics.frechet_distance(a, b) for a in ours for b in theirs]
    return torch.tensor(found, dtype=torch.float64)


measured = [pairs(n) for n in sizes]
mean = [float(m.mean()) for m in measured]
roots = torch.linalg.eigvalsh(torch.cov(features.double().T)).clamp(min=1e-9)
each = roots[:, None] * roots / (roots[:, None] + roots)
slope = float(1.25 * roots.sum() + 0.5 * each.sum())
ax = plt.figure(figsize=(4.5, 2.8)).gca()
bars = [float(m.std()) for m in measured]
ax.errorbar(share, mean, bars, fmt="o", color=md.plots.DATA, label="real digits", capsize=3)
ends = torch.tensor([0, 0.0088])
ax.plot(ends, 2 * slope * ends, color="black", linewidth=1, linestyle=":", label="formula")
ax.set(xlabel="1 / count", ylabel="FD", xlim=(0, None), ylim=(0, None))
ax.set_xticks(share, [f"1/{n}" for n in sizes])
ax.legend(loc="upper left");

# %% tags=["nbval-check-output"]
numbers["fd_125"] = {"value": mean[3], "band": [70, 120]}
numbers["fd_1000"] = {"value": mean[0], "band": [9, 17]}
numbers["fd_1000_spread"] = {"value": bars[0], "band": [0.5, 5]}
numbers["fd_growth"] = {"value": mean[3] / mean[0], "band": [5, 9]}
numbers["fd_formula"] = {"value": 2 * slope / 1000, "band": [10, 14]}
numbers["fd_formula_slip"] = {
    "value": max(abs(m / (2 * slope * float(s)) - 1) for m, s in zip(mean, share, strict=True)),
    "band": [0, 0.25],
}  # fmt: skip
assert 5 < numbers["fd_growth"]["value"] < 9 and numbers["fd_formula_slip"]["value"] < 0.25
print("check passed: an eighth of the pictures, several times the distance, as the formula says")

# %% [markdown]
# With 125 digits in place of 1,000 the FD of real digits grows from {number}`06_mnist:fd_1000|.1f` to {number}`06_mnist:fd_125|.1f`, a factor of {number}`06_mnist:fd_growth|.1f`. So an FD without its count says nothing, and two FDs may be compared at equal counts only. The formula says {number}`06_mnist:fd_formula|.1f` for 1,000 and is never off by more than {number}`06_mnist:fd_formula_slip|.0%`, although it was made for Gaussians: almost all of the floor is the price of counting. Between four sets of a thousand training digits it scatters by {number}`06_mnist:fd_1000_spread|.1f` (standard deviation): two models whose FDs differ by no more than that are equally good, as far as FD can tell.
#
# ## Which digit?
#
# A second network starts from the weights of the first and is trained further, with one thing more: it is told the class, and in one case of ten the class "unknown" in its place. So it can be asked twice about one noisy picture, with the class and without. *Guidance* starts from the answer without the class and goes in the direction of the answer with it, and further ({eq}`eq:cfg`; a later part derives it). Scale 1 is the answer with the class, as it is; we also take the scale {number}`06_mnist:guidance_scale|.1f`. A guided step asks the network twice, so we draw only {number}`06_mnist:asked|.0f` digits each way, equally many of each class.
#
# To check the answers we need someone who had no part in the training, nor in the FD: a classifier of another architecture, a transformer on patches. The aim, set before the training: it agrees on at least 95 %. Both sheets start from the same noise. Before looking: in which one do you expect fewer wrong digits, and in which one the larger variety?


# %%
def ask(scale):
    def guided(part):
        return md.cfg(given.given(wanted[part].to(device)), given.given(None), scale)

    return guided


given = md.checkpoints.load("mnist-ddpm-conditional").to(device)
half, scale = count // 2, 1.5
wanted = torch.arange(half) % 10
asked, guided = draw(ask(1.0), 5, half), draw(ask(scale), 5, half)
other = md.checkpoints.load("mnist-judge")
agree, sharp = (md.evaluation.accuracy(other, x, wanted) for x in (asked, guided))
own = md.evaluation.accuracy(other, digits.held_x, digits.held_y)
even = torch.cat([digits.x[digits.y == c][: half // 10] for c in range(10)])
told, led, fair, mixed = (
    md.metrics.frechet_distance(judge.features(x), features)
    for x in (asked, guided, even, digits.x[:half])
)

# %% mystnb={"image": {"alt": "Two sheets of ten rows of twelve digits, a row for each class from 0 to 9. The same place in both sheets mostly shows the same hand; on the right doubtful digits have become clear ones, often in bolder strokes."}, "figure": {"name": "fig-classes", "caption": "Twelve samples of each class, not selected, a row a class: without guidance (left) and with it (right), from the same noise. Mostly the same hand stands at the same place. Where a digit on the left could be another one, guidance makes it one of its row."}}
fig, axes = plt.subplots(1, 2, figsize=(7.4, 3.3))
sheets = {"scale 1": asked, f"scale {scale}": guided}
for ax, (title, pictures) in zip(axes, sheets.items(), strict=True):
    rows = torch.cat([pictures[wanted == c][:12] for c in range(10)])
    md.plots.images(ax, rows, columns=len(rows) // 10)
    ax.set_title(title)

# %% tags=["nbval-check-output"]
numbers["asked"] = {"value": half, "band": [10, 1000]}
numbers["guidance_scale"] = {"value": scale, "band": [1, 3]}
numbers["agreement"] = {"value": agree, "band": [0.9, 1] if as_printed else [0, 1]}
numbers["agreement_guided"] = {"value": sharp, "band": [0.95, 1] if as_printed else [0, 1]}
numbers["judge_accuracy"] = {"value": own, "band": [0.95, 1]}
for name, value in {"conditional": told, "guided": led}.items():
    low, high = fair / 2, 2.5 * fair
    numbers[f"fd_{name}"] = {"value": value, "band": [low, high] if as_printed else [0, 1e4]}
numbers["fd_balanced"] = {"value": fair, "band": [8, 16] if as_printed else [0, 1e4]}
numbers["fd_unbalanced"] = {"value": mixed, "band": [13, 30] if as_printed else [0, 1e4]}
for name in ("agreement", "agreement_guided", "judge_accuracy", "fd_conditional", "fd_guided"):
    low, high = numbers[name]["band"]
    assert low <= numbers[name]["value"] <= high, name
if as_printed:
    assert sharp > agree and sharp > own and led > told and mixed > fair
print("check passed: another classifier reads the digit that was asked for")

# %% [markdown]
# As the digit that was asked for the independent classifier reads {number}`06_mnist:agreement|.1%` without guidance and {number}`06_mnist:agreement_guided|.1%` with it. On held-out digits it is right in {number}`06_mnist:judge_accuracy|.1%` of the cases: guided samples are easier to read than real digits. That is no praise alone. Guidance moves away from what is doubtful, and real handwriting is doubtful at times.
#
# FD sees that price: {number}`06_mnist:fd_conditional|.1f` without guidance, {number}`06_mnist:fd_guided|.1f` with it. What is the floor? The first {number}`06_mnist:asked|.0f` training digits have {number}`06_mnist:fd_unbalanced|.1f`. But in them the classes come as they come, and part of that number is the chance in the classes' shares. Our samples have equally many of each class, so their floor is that of training digits with equally many of each: {number}`06_mnist:fd_balanced|.1f`.
#
# ## Exercises
#
# 1. Sample without `md.clip`. What changes, and at which times does clipping act?
# 2. Draw from `given.given(None)`. Which classes come, and how often?
# 3. Start the chain at $t = 0.5$ from a noised held-out digit. How much of the digit survives?
# 4. Give the sampler {number}`06_mnist:short|.0f` steps of `md.ancestral` in place of `md.ddim`. What happens to FD?
# 5. Raise the guidance scale to 3. What happens to agreement, and what to FD?
# 6. Set `PRESET = "gpu"` and `DATASET = "fashion"`. How does the curve of step 6 differ, and where does it start?
#
# ## What it cost

# %% tags=["nbval-ignore-output"]
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
numbers["minutes"] = {"value": seconds / 60, "band": [0, 30]}
print(f"{seconds:.0f} s, peak memory {memory:.0f} MB, on {device}")

# %% tags=["remove-cell"]
if "NUMBERS" in os.environ:
    with open(os.environ["NUMBERS"], "w") as file:
        json.dump(numbers, file)
