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
# # Lab: a diffusion model that rolls up a spiral
#
# Ten thousand points lie on a spiral in the plane. We drown them in noise, train a network to look through the noise, and walk back: from nothing but random numbers to a spiral. What {ref}`sec-ddpm` builds happens here on points you can see; {ref}`sec-forward` and {ref}`sec-diffusion-elbo` derive it. The same code draws digits in the next lab; only the network changes.
#
# Here the network is trained while you watch, three times with different seeds. On two laptop cores that takes about {number}`05_swiss_roll:minutes|.0f` minutes. No graphics card and no download are needed.

# %% tags=["parameters"]
import os

PRESET = os.environ.get("PRESET", "cpu")  # "smoke" (seconds), "cpu" (as printed), "gpu"

# %%
import json
import resource
import time

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

import minidiff as md

start = time.perf_counter()
md.plots.use_style()
torch.set_num_threads(1)
seeds, T, steps, count = {
    "smoke": ([0], 100, 300, 500),
    "cpu": ([0, 1, 2], 200, 4000, 4000),
    "gpu": ([0, 1, 2, 3, 4], 1000, 10_000, 10_000),
}[PRESET]
as_printed = PRESET != "smoke"
numbers = {}

# %% [markdown]
# ## The data
#
# A swiss roll: one and a half turns of a spiral, slightly blurred. Draw an angle, go that far from the centre, and add a little noise:
#
# $$
# x = \frac{\theta\,(\cos\theta,\,\sin\theta) - m}{c} + 0.05\,z,
# \qquad \theta \sim U(1.5\pi,\,4.5\pi), \quad z \sim \mathcal N(0, I).
# $$ (eq:swiss-roll)
#
# Here $m$ is the mean of the spiral and $2c^2$ the mean of $\theta^2$. So the points have mean 0 and a variance near 1 an axis, as every data set in this course. Keep another set aside: we will ask how close the samples are to data the network has never seen.

# %% mystnb={"image": {"alt": "Blue points on a spiral of one and a half turns around the origin."}, "figure": {"name": "fig-roll", "caption": "The training set, 4,000 of its 10,000 points: a blurred spiral. The arms are nearly one unit apart; the blur has a standard deviation of 0.05."}}
rng = md.tensors.seeded(0)
data = md.data.swiss_roll(10_000, rng=rng)
held_out = md.data.swiss_roll(count, rng=rng)
ax = md.plots.scatter(plt.figure(figsize=(3.2, 3.2)).gca(), data[:4000], reach=2.5)

# %% [markdown]
# ## Drowning it
#
# Before looking: the chain has many small steps, and each shrinks the points a little and shakes them a little. Guess in which of the five panels the spiral can no longer be seen.

# %% mystnb={"image": {"alt": "Five panels of the same points at five times: a sharp spiral at time 0, a lopsided ring at 0.1, round clouds at 0.25, 0.5 and 1."}, "figure": {"name": "fig-drown", "caption": "The forward process at five times. At a tenth of the way the arms have merged into a ring. From a quarter on, the eye can't tell the cloud from pure noise, although half of the variance is still data."}}
schedule = md.BetaTable(md.linear_betas(T))
noise = md.tensors.randn_like(held_out, rng)
fig, axes = plt.subplots(1, 5, figsize=(9, 2.1), sharey=True)
for ax, t in zip(axes, [0, 0.1, 0.25, 0.5, 1], strict=True):
    at = schedule(float(t))
    md.plots.scatter(ax, md.diffuse(at, held_out, noise)[:1000], reach=3, size=3)
    ax.set_title(f"t = {t}, signal {float(at.signal) ** 2:.0%}")

# %% [markdown]
# The percentage is the share of the variance that still comes from the data, $\bar\alpha_t$. At the end it is nearly nothing, and the variance of $x_T$ is 1: that is what makes it safe to start from random numbers. Forget the root in {eq}`eq:step`, add $\beta_t\epsilon$ in place of $\sqrt{\beta_t}\,\epsilon$, and no error is raised. But look at the variance of $x_T$ after the thousand steps of Ho et al.: it should be 1.

# %% tags=["nbval-check-output"]
x, wrong = held_out, held_out
for beta in md.linear_betas(1000).tolist():
    z = md.tensors.randn_like(held_out, rng)
    x = (1 - beta) ** 0.5 * x + beta**0.5 * z
    wrong = (1 - beta) ** 0.5 * wrong + beta * z
numbers["final_variance"] = {"value": float(x.var()), "band": [0.9, 1.1]}
numbers["final_variance_without_root"] = {"value": float(wrong.var()), "band": [0.0, 0.1]}
assert 0.9 < x.var() < 1.1 and wrong.var() < 0.1
print("check passed: the walk ends at variance 1; without the root it does not")

# %% [markdown]
# Walked correctly, the chain ends at variance {number}`05_swiss_roll:final_variance|.2f`. Without the root it ends at {number}`05_swiss_roll:final_variance_without_root|.3f`. This one number finds the commonest bug of hand-written diffusion code.
#
# ## Training
#
# The network sees a noisy point and the time, and predicts the noise that was added ({eq}`eq:simple`). It starts by predicting zero, so the loss starts at 1, the variance of the noise. It will not go to 0. Where two arms of the spiral overlap in noise, nobody can tell which noise was added. How far down can it go? We know exactly: for a finite set of points the best denoiser is a formula ({eq}`eq:empirical`). We compute its loss on the held-out points, with many other points to stand for the true density.


# %%
def fit(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = md.nets.MLP(2, width=128, depth=3)
    model = md.Denoiser(net, schedule, "eps")
    ema = md.EMA(model, 0.999)
    run = md.train(
        lambda x, rng: md.denoising_loss(model, x, rng=rng).mean(),
        model, md.data.batches(data, 256, seed), steps=steps, seed=seed, ema=ema,
        lr=lambda k: 2e-3 * (1 - k / steps),
    )  # fmt: skip
    return ema.model, [step.loss for step in tqdm(run, total=steps, desc=f"seed {seed}")]


runs = [fit(seed) for seed in seeds]
models = [model for model, _ in runs]

# %%
bins = torch.linspace(0.05, 1, 20, dtype=torch.float64)
crowd = 20_000 if as_printed else 2000
sea = md.Empirical(md.data.swiss_roll(crowd, rng=rng)).denoiser(schedule)
probe = held_out[: 250 if as_printed else 100]


def eps_error(denoise, t):
    draws = md.tensors.seeded(7, int(t * 1000))
    at, eps = schedule(t), md.tensors.randn_like(probe, draws)
    x = md.diffuse(at, probe, eps)
    with torch.no_grad():
        guess = md.eps_from_x0(denoise(x, t), x, at)
    return float((guess - eps).square().mean())


floor = [eps_error(sea, t) for t in bins]
reached = [[eps_error(model, t) for t in bins] for model in models]

# %% mystnb={"image": {"alt": "Left: training losses fall from 1 to about a quarter within a few hundred steps and stay there. Right: error against time; the curves of the networks lie on the curve of the exact denoiser, which is highest near time 0.1 and near zero at time 1."}, "figure": {"name": "fig-roll-loss", "caption": "Left: the loss falls from 1 to about a quarter within a few hundred steps, then seems to stand still. Right: the reason. At each time the network's error lies on that of the exact denoiser, which nothing can beat. It is largest where the arms just begin to merge."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
for _, losses in runs:
    md.plots.loss_curve(left, losses)
left.set_ylim(0, 1.2)
for curve in reached:
    right.plot(bins, curve, color=md.plots.PREDICTION, label="network")
right.plot(bins, floor, color=md.plots.DATA, linestyle="--", label="exact denoiser")
right.set_xlabel("time t")
right.set_ylabel("squared error of the noise")
handles = dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
right.legend(handles.values(), handles.keys());

# %% tags=["nbval-check-output"]
best = sum(floor) / len(floor)
losses = [sum(curve) / len(curve) for curve in reached]
excess = [loss / best - 1 for loss in losses]
numbers["best_loss"] = {"value": best, "band": [0.1, 0.35]}
numbers["loss"] = {"value": sum(losses) / len(losses), "band": [0.1, 0.4], "seeds": seeds}
numbers["excess"] = {
    "value": max(excess), "band": [-0.02, 0.1] if as_printed else [-0.1, 1.0], "seeds": seeds,
}  # fmt: skip
low, high = numbers["excess"]["band"]
assert all(low < e < high for e in excess)
print("check passed: the network comes close to the exact denoiser")

# %% [markdown]
# Averaged over the twenty times of the right panel, the exact denoiser has an error of {number}`05_swiss_roll:best_loss|.3f` and the networks reach {number}`05_swiss_roll:loss|.3f`; the worst of the seeds lies {number}`05_swiss_roll:excess|.1%` above the best possible. A loss that stands still near a quarter is not a broken training. It is a finished one. Read a diffusion loss against the error nobody can avoid, never against 0.
#
# ## Walking back
#
# Now algorithm 2: start from random numbers, and step by step replace noise by prediction ({eq}`eq:ancestral`). Expect clouds for most of the time, then a ring, and then, late and fast, the arms.

# %% mystnb={"image": {"alt": "Five panels of samples from time 1 to time 0: round clouds at 1, 0.5 and 0.25, a lopsided ring at 0.1 and a sharp spiral at 0."}, "figure": {"name": "fig-roll-back", "caption": "Samples on their way back from time 1 to 0. The spiral appears in the last tenth of the time, where the forward process destroyed it."}}
count_start = md.prior(schedule, (count, 2), rng=md.tensors.seeded(1))
track = md.trajectory(
    md.ancestral(models[0], schedule, count_start, md.ddpm_steps(T), rng=md.tensors.seeded(2))
)
fig, axes = plt.subplots(1, 5, figsize=(9, 2.1), sharey=True)
for ax, t in zip(axes, [1, 0.5, 0.25, 0.1, 0], strict=True):
    done = round(T * (1 - t))
    frame = count_start if done == 0 else track[done - 1]
    md.plots.scatter(ax, frame[:1000], color=md.plots.PREDICTION, reach=3, size=3)
    ax.set_title(f"t = {t}")

# %% [markdown]
# It looks right. How right is it? The sliced Wasserstein distance ({eq}`eq:swd`) says how far points have to move, on average over directions, to turn one set into the other. Three numbers belong together: the distance of our samples to held-out data, the distance of further true data (the floor; the mean of five sets), and the distance of plain noise (the ceiling).


# %%
def sample(model, grid, seed, **options):
    x = md.prior(schedule, (count, 2), rng=md.tensors.seeded(seed, 1))
    states = md.ancestral(model, schedule, x, grid, rng=md.tensors.seeded(seed, 2), **options)
    return md.last(states)


def distance(a):
    return md.metrics.sliced_wasserstein(a, held_out, rng=md.tensors.seeded(0))


full = [
    distance(sample(model, md.ddpm_steps(T), seed))
    for seed, model in zip(seeds, models, strict=True)
]
others = [md.data.swiss_roll(count, rng=md.tensors.seeded(5, i)) for i in range(5)]
floor_swd, ceiling = sum(map(distance, others)) / 5, distance(count_start)

# %% tags=["nbval-check-output"]
numbers["swd"] = {
    "value": sum(full) / len(full), "band": [0.02, 0.07] if as_printed else [0.02, 0.2],
    "seeds": seeds,
}  # fmt: skip
numbers["swd_worst"] = {"value": max(full), "band": [0.02, 0.08] if as_printed else [0.02, 0.2]}
numbers["swd_floor"] = {"value": floor_swd, "band": [0.01, 0.05] if as_printed else [0.01, 0.2]}
numbers["swd_noise"] = {"value": ceiling, "band": [0.15, 0.3]}
low, high = numbers["swd"]["band"]
assert all(low < d < high for d in full) and max(full) < ceiling / (3 if as_printed else 1)
print("check passed: the samples are much closer to the data than noise is")

# %% [markdown]
# Averaged over {number}`05_swiss_roll:seeds|.0f` training seeds, the samples lie {number}`05_swiss_roll:swd|.3f` from held-out data (worst seed {number}`05_swiss_roll:swd_worst|.3f`). Fresh true data lie {number}`05_swiss_roll:swd_floor|.3f` away, and noise {number}`05_swiss_roll:swd_noise|.3f`. By this measure the samples can hardly be told from data.
#
# ## Which variance?
#
# The bound allows two extreme choices for the noise of a reverse step: $\tilde\beta_t$ ({eq}`eq:beta-tilde`), right if the data were one known point, and $\beta_t$ ({eq}`eq:beta-choice`), right if the data were standard normal. With all steps the two are nearly equal. What if we can afford only ten? A guess before you look: is it better to add too little noise or too much?

# %% mystnb={"image": {"alt": "Two panels of samples made with ten steps. Both show the spiral with many stray points between the arms; with the posterior variance the outer arm is thin and its tip is missing."}, "figure": {"name": "fig-roll-variance", "caption": "Ten steps of the same network. Both variances leave stray points between the arms. The posterior variance (left) also loses the tip of the outer arm: it keeps too little spread."}}
short = md.grids.strided(T, 10)
choices = {"posterior": md.posterior_variance, "forward": md.forward_variance}
few = {name: sample(models[0], short, 0, variance=v) for name, v in choices.items()}
fig, axes = plt.subplots(1, 2, figsize=(5, 2.5), sharey=True)
for ax, (name, points) in zip(axes, few.items(), strict=True):
    md.plots.scatter(ax, points[:2000], color=md.plots.PREDICTION, reach=2.5)
    ax.set_title(f"{name} variance, 10 steps")

# %% tags=["nbval-check-output"]
for name, variance in choices.items():
    many = [
        distance(sample(m, short, s, variance=variance)) for s, m in zip(seeds, models, strict=True)
    ]
    numbers[f"swd_10_{name}"] = {
        "value": sum(many) / len(many), "band": [0.03, 0.25], "seeds": seeds,
    }  # fmt: skip
assert all(0.03 < numbers[f"swd_10_{name}"]["value"] < 0.25 for name in choices)
assert numbers["swd_10_forward"]["value"] < numbers["swd_10_posterior"]["value"]
print("check passed: ten steps cost quality, and here the larger variance costs less")

# %% [markdown]
# With ten steps the distance rises from {number}`05_swiss_roll:swd|.3f` to {number}`05_swiss_roll:swd_10_posterior|.3f` with $\tilde\beta_t$ and to {number}`05_swiss_roll:swd_10_forward|.3f` with $\beta_t$. Too much noise does less harm here than too little. The reason is worth a small experiment of its own.
#
# ## A perfect denoiser, and still too narrow
#
# Let the data be one Gaussian with standard deviation one half. Its denoiser is known exactly, so nothing is left to learn. The variance of the samples follows the recursion {eq}`eq:variance-recursion`, without any randomness. Expect it to end below the true variance: each step adds the posterior variance for a *known* $x_0$, and the spread of $x_0$ itself is left out.


# %% tags=["nbval-check-output"]
def deficit(n, c=0.5):
    path = md.Cosine()
    grid = torch.cat([path.t_of(torch.linspace(-8, 8, n, dtype=torch.float64)), torch.zeros(1)])
    at = path(grid[0])
    v = float(at.signal**2 * c**2 + at.noise**2)
    for move in md.process.moves(path, grid, eta=1.0):
        s, noise = float(move.at_t.signal), float(move.at_t.noise)
        k = s * c**2 / (s**2 * c**2 + noise**2)
        v = (move.keep + move.add * k) ** 2 * v + move.var
    return 1 - v / c**2


for n, band in {50: [0.140, 0.156], 800: [0.010, 0.012]}.items():
    numbers[f"deficit_{n}"] = {"value": deficit(n), "band": band}
    assert band[0] < deficit(n) < band[1]
print("check passed: the deficit falls like one over the number of steps")

# %% [markdown]
# With 50 steps the samples have {number}`05_swiss_roll:deficit_50|.1%` too little variance, with 800 steps {number}`05_swiss_roll:deficit_800|.1%`. No training can repair that. Better variances can, and they get a chapter of their own.
#
# ## Exercises
#
# 1. Train with `prediction="x0"` in place of `"eps"`. Which of the two has the better samples after 500 steps?
# 2. Take `md.data.checkerboard`. Why is its loss lower or higher than that of the spiral?
# 3. Wrap the network in `md.inpaint` with the first coordinate held at 0.5. What do you get, and why is it *not* a sample of the second coordinate given the first?
#
# ## What it cost

# %% tags=["nbval-ignore-output"]
seconds = time.perf_counter() - start
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
numbers["seeds"] = {"value": len(seeds), "band": [1, 5]}
numbers["T"] = {"value": T, "band": [100, 1000]}
numbers["minutes"] = {"value": seconds / 60, "band": [0, 30]}
print(f"{seconds:.0f} s, peak memory {memory:.0f} MB")

# %% tags=["remove-cell"]
if "NUMBERS" in os.environ:
    with open(os.environ["NUMBERS"], "w") as file:
        json.dump(numbers, file)
