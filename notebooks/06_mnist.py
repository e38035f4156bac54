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
# A lecture on diffusion models often ends with seven pieces of code: the noise schedule, the encoding of time, the network, the loss, one sampling step, training, and sampling. Here they are as they stand in `minidiff`, on real digits. The algorithms are in {ref}`sec-ddpm`; only the network is new.
#
# The network has been trained already: {number}`06_mnist:train_minutes|.0f` minutes on one processor core, on 4,000 digits. You load it, look inside each step, train it a little further, and measure what it makes. On two laptop cores this page takes about {number}`06_mnist:minutes|.0f` minutes.

# %% tags=["parameters"]
import os

PRESET = os.environ.get("PRESET", "cpu")  # "smoke" (seconds), "cpu" (as printed), "gpu"

# %%
import json
import resource
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import minidiff as md

start = time.perf_counter()
md.plots.use_style()
torch.set_num_threads(1)
device = "cuda" if torch.cuda.is_available() else "cpu"
count, steps, classifier_steps, chain = {
    "smoke": (20, 5, 30, 10),
    "cpu": (1000, 50, 1500, 1000),
    "gpu": (1000, 100, 3000, 1000),
}[PRESET]
as_printed = PRESET != "smoke"
numbers = {}

# %% [markdown]
# ## The data
#
# Five thousand MNIST digits, scaled to $[-1, 1]$. The network was trained on the first 4,000; the last 1,000 it has never seen.

# %% mystnb={"image": {"alt": "Forty handwritten digits, white on black, in four rows of ten."}, "figure": {"name": "fig-digits", "caption": "Forty of the 1,000 held-out digits. This is what samples should look like, variety and oddities included."}}
images, labels = md.data.mnist5k()
trained, held_out = images[:4000], images[4000:]
ax = md.plots.images(plt.figure(figsize=(6, 2.5)).gca(), held_out[:40])

# %% [markdown]
# ## Step 1: the noise schedule
#
# A table of a thousand betas ({eq}`eq:betas-linear`), and from it the share of signal and noise at each step ({eq}`eq:jump`). Before looking: guess at which of the ten panels you can no longer tell the digit.

# %% mystnb={"image": {"alt": "One handwritten digit at ten equally spaced times, from clean to pure noise, with the share of signal below each."}, "figure": {"name": "fig-drowning", "caption": "A digit at ten equally spaced times and its share of signal variance. With a third of the variance left the digit can still be made out, with a seventh hardly; from four per cent on the eye sees noise only, and that is half of the panels."}}
schedule = md.BetaTable(md.linear_betas(1000))
digit = held_out[3:4].expand(10, -1, -1, -1)
noise = md.tensors.randn_like(digit[:1], md.tensors.seeded(1))
at = schedule(torch.linspace(0, 1, 10, dtype=torch.float64))
frames = md.diffuse(at, digit, noise.expand_as(digit))
shares = [f"{s:.0%}" for s in (at.signal**2).tolist()]
ax = md.plots.film(plt.figure(figsize=(9, 1.3)).gca(), frames, labels=shares)

# %% tags=["nbval-check-output"]
half_life = int((schedule.alpha_bars > 0.5).sum()) + 1
numbers["half_life"] = {"value": half_life, "band": [260, 260]}
assert half_life == 260
print("check passed: half of the variance is noise from step", half_life)

# %% [markdown]
# Half of the variance is noise from step {number}`06_mnist:half_life|.0f`, a quarter of the way. With this table most of the chain works on pictures that are nearly all noise.
#
# ## Step 2: telling the network the time
#
# A time becomes a row of sines and cosines of many frequencies ({eq}`eq:sinusoidal`). Each row of the picture is one time. The left part changes fast from row to row and tells neighbours apart; the right part changes slowly and tells early from late.

# %% mystnb={"image": {"alt": "A heat map: time runs downwards, frequency to the right. Fast stripes on the left of each half, smooth gradients on the right."}, "figure": {"name": "fig-time", "caption": "The encoding of time: 64 numbers for each of 200 times. Fast waves on the left of each half, slow waves on the right, first sines, then cosines."}}
waves = md.nets.sinusoidal(torch.linspace(0, 0.2, 200), 64)
ax = plt.figure(figsize=(5, 2.6)).gca()
ax.imshow(waves, aspect="auto", cmap="coolwarm", extent=(0, 64, 0.2, 0))
ax.grid(False)
ax.set_xlabel("number in the code")
ax.set_ylabel("time t");

# %% [markdown]
# ## Step 3: the network
#
# A U-Net: down to a few coarse pixels, where it can see the whole digit at once, and up again, with shortcuts that carry the detail across. It takes a noisy picture and a time, and returns a guess of the noise.

# %%
model = md.checkpoints.load("mnist-ddpm").to(device)
card = json.loads((md.checkpoints.WEIGHTS / "mnist-ddpm.json").read_text())
parameters = sum(p.numel() for p in model.parameters())
numbers["parameters"] = {"value": parameters, "band": [1_000_000, 1_500_000]}
numbers["train_minutes"] = {"value": card["seconds"] / 60, "band": [1, 600]}
print(f"{parameters:,} weights;", card["about"])

# %% [markdown]
# ## Step 4: the loss
#
# Noise a digit, ask the network for the noise, compare ({eq}`eq:simple`). A network that always answers 0 has loss 1. Where do you expect the loss to be largest: at the noisy end, or near the data?


# %%
def eps_error(x0, t):
    rng = md.tensors.seeded(7, int(1000 * t))
    at, eps = schedule(t), md.tensors.randn_like(x0, rng)
    x = md.diffuse(at, x0, eps)
    with torch.no_grad():
        guess = model.raw(x.to(device), torch.tensor(t)).y.cpu()
    return float((guess - eps).square().mean())


few = 200 if as_printed else 10
times = [0.001, 0.01, 0.03, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0]
seen = [eps_error(trained[:few], t) for t in times]
unseen = [eps_error(held_out[:few], t) for t in times]

# %% mystnb={"image": {"alt": "Error of the noise against time on logarithmic axes: near 1 at the smallest time, falling by more than two orders of magnitude towards time 1; the curves for training and held-out digits lie close together."}, "figure": {"name": "fig-digit-loss", "caption": "The loss at each time. Near the data the noise is tiny and hard to see, so the error is large; near time 1 almost everything is noise, and guessing it is easy. Training and held-out digits differ little."}}
ax = plt.figure(figsize=(5, 2.8)).gca()
ax.loglog(times, seen, "o-", color=md.plots.PREDICTION, label="training digits")
ax.loglog(times, unseen, "o--", color=md.plots.DATA, label="held-out digits")
ax.set_xlabel("time t")
ax.set_ylabel("squared error of the noise")
ax.legend();

# %% tags=["nbval-check-output"]
gap = sum(unseen) / sum(seen)
numbers["loss_gap"] = {"value": gap, "band": [0.9, 1.25] if as_printed else [0.5, 2.0]}
numbers["loss_near_data"] = {"value": unseen[0], "band": [0.2, 1.1]}
numbers["loss_near_noise"] = {"value": unseen[-1], "band": [0.0, 0.05]}
low, high = numbers["loss_gap"]["band"]
assert low < gap < high and unseen[0] > 10 * unseen[-1]
print("check passed: the loss is largest near the data, and held-out digits cost little more")

# %% [markdown]
# Near the data the error is {number}`06_mnist:loss_near_data|.2f`, near pure noise {number}`06_mnist:loss_near_noise|.4f`. On held-out digits the loss is {number}`06_mnist:loss_gap|.2f` times that on training digits: the network has not learnt the training set by heart. One number for the whole loss hides all this, so look at it by time.
#
# ## Step 5: one step, seen from many places
#
# At any time the network can say what it believes the clean digit is: $\hat x_0 = D(x_t, t)$. From mostly noise it sees only a blurred average of all digits that fit. That blur is not a fault. It is the conditional mean ({eq}`eq:optimum`), and the reason why sampling needs many steps.

# %% mystnb={"image": {"alt": "Two rows of seven pictures. Above, one digit with less and less noise; below, the network's guess: a grey blur at first, then a shape, then the digit."}, "figure": {"name": "fig-guess", "caption": "Above: a held-out digit at seven times. Below: what the network believes the clean digit to be. The guess starts as a blur of many digits and gets sharp as the noise falls."}}
places = torch.tensor([0.9, 0.7, 0.5, 0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
noisy = md.diffuse(schedule(places), digit[:7], noise.expand(7, -1, -1, -1))
with torch.no_grad():
    guess = model(noisy.to(device), places.to(device)).cpu()
sheet = torch.cat([noisy, guess]).clamp(-1, 1)
ax = md.plots.images(plt.figure(figsize=(6.5, 2)).gca(), sheet, columns=7)

# %% [markdown]
# ## Step 6: training
#
# The loop is `md.train`. It made the checkpoint, and it goes on from there: {number}`06_mnist:steps|.0f` steps more, on a copy. The loss should neither jump nor fall. Had you forgotten to scale the images, or swapped $\alpha_t$ and $\bar\alpha_t$, it would jump at once.

# %%
student = md.checkpoints.RECIPES["mnist-ddpm"].build().to(device)
student.load_state_dict(model.state_dict())
run = md.train(
    lambda x, rng: md.denoising_loss(student, x.to(device), rng=rng).mean(),
    student, md.data.batches(trained, 32, seed=1), steps=steps, lr=2e-5, seed=1,
)  # fmt: skip
losses = [step.loss for step in tqdm(run, total=steps, desc="training")]

# %% tags=["nbval-check-output"]
numbers["steps"] = {"value": steps, "band": [1, 1000]}
numbers["train_loss"] = {"value": sum(losses) / steps, "band": [0.015, 0.06]}
low, high = numbers["train_loss"]["band"]
assert low < numbers["train_loss"]["value"] < high
print("check passed: training goes on where the checkpoint left off")

# %% [markdown]
# The mean loss is {number}`06_mnist:train_loss|.3f`. A few hundredths is what a healthy model of MNIST digits with this table has.
#
# ## Step 7: sampling
#
# From random numbers to digits, {number}`06_mnist:chain|.0f` steps of {eq}`eq:ancestral`, with the guess clipped to $[-1,1]$ at each step. Watch when the shape is decided.

# %% mystnb={"image": {"alt": "Four rows of ten frames: each row starts as noise; a shape appears around the middle and sharpens into a digit at the right."}, "figure": {"name": "fig-film", "caption": "Four digits being made. For more than half of the chain nothing can be seen; then the shape is decided within a few frames, and the rest is cleaning."}}
chain_times = md.grids.strided(1000, chain)
begin = md.prior(schedule, (4, 1, 28, 28), rng=md.tensors.seeded(2), device=device)
clipped = md.clip(model, -1, 1)
states = md.ancestral(clipped, schedule, begin, chain_times, rng=md.tensors.seeded(3))
track = md.trajectory(tqdm(states, total=chain, desc="sampling")).cpu()
pick = torch.linspace(0, chain - 1, 10).round().long()
film = track[pick].transpose(0, 1).flatten(0, 1)
ax = md.plots.images(plt.figure(figsize=(7, 3)).gca(), film.clamp(-1, 1), columns=10)

# %% [markdown]
# A thousand steps for each of many digits would take long. {py:func}`~minidiff.samplers.ddim` takes the same network and needs fewer ({eq}`eq:ddim`); a chapter to come derives it. Here {number}`06_mnist:short|.0f` steps make {number}`06_mnist:count|.0f` digits.

# %%
short = 50 if as_printed else 5
grid = md.grids.strided(1000, short)
parts = []
for i in tqdm(range(0, count, 50), desc="digits"):
    size = min(50, count - i)
    x = md.prior(schedule, (size, 1, 28, 28), rng=md.tensors.seeded(4, i), device=device)
    parts.append(md.last(md.ddim(clipped, schedule, x, grid)).cpu())
samples = torch.cat(parts)

# %% mystnb={"image": {"alt": "Sixty generated digits in six rows of ten; most are clear digits, a few are malformed."}, "figure": {"name": "fig-samples", "caption": "The first sixty samples, not selected. Most are digits that a person reads without doubt; some are not quite anything."}}
ax = md.plots.images(plt.figure(figsize=(6, 3.8)).gca(), samples[:60])

# %% [markdown]
# ## How good are they?
#
# Looking is necessary and not enough. We train a small classifier on the training digits and compare samples with held-out digits in its features by the Fréchet distance ({eq}`eq:frechet`). It is not FID, whose features come from another network, so we call it FD. The number depends on the count of pictures, so it stands beside two others at the same count: training digits (the floor) and blurred digits (a failure that is easy to see).


# %%
def judge_net():
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.SiLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 49, 64), nn.SiLU(), nn.Linear(64, 10),
    )  # fmt: skip


with torch.random.fork_rng([]):
    torch.manual_seed(0)
    judge = judge_net()
run = md.train(
    lambda batch, rng: F.cross_entropy(judge(batch[0]), batch[1]),
    judge, md.data.batches((trained, labels[:4000]), 64), steps=classifier_steps, lr=1e-3,
)  # fmt: skip
for _ in tqdm(run, total=classifier_steps, desc="classifier"):
    pass
judge.eval().requires_grad_(False)
accuracy = float((judge(held_out).argmax(1) == labels[4000:]).float().mean())


# %%
def fd(pictures):
    return md.metrics.frechet_distance(judge[:-2](pictures), judge[:-2](held_out))


def confident(pictures):
    return float((judge(pictures).softmax(1).max(1).values > 0.9).float().mean())


blurred = F.avg_pool2d(F.pad(trained[:count], (2, 2, 2, 2), value=-1.0), 5, stride=1)
distances = {"samples": fd(samples), "training": fd(trained[:count]), "blurred": fd(blurred)}
sure = {"samples": confident(samples), "held-out": confident(held_out)}
nearest = torch.cdist(samples.flatten(1), trained.flatten(1)).min(1).values
reference = torch.cdist(held_out[:count].flatten(1), trained.flatten(1)).min(1).values
ratio = float(nearest.median() / reference.median())

# %% tags=["nbval-check-output"]
wide = [0, 1e6]
numbers["count"] = {"value": count, "band": [10, 10_000]}
numbers["short"] = {"value": short, "band": [1, 1000]}
numbers["chain"] = {"value": chain, "band": [1, 1000]}
numbers["accuracy"] = {"value": accuracy, "band": [0.94, 1] if as_printed else [0.2, 1]}
numbers["fd"] = {"value": distances["samples"], "band": [1, 60] if as_printed else wide}
numbers["fd_floor"] = {"value": distances["training"], "band": [1, 30] if as_printed else wide}
numbers["fd_blur"] = {"value": distances["blurred"], "band": [20, 5000] if as_printed else wide}
numbers["confident"] = {"value": sure["samples"], "band": [0.6, 1] if as_printed else [0, 1]}
numbers["confident_held_out"] = {"value": sure["held-out"], "band": [0.8, 1] if as_printed else [0, 1]}
numbers["nearest_ratio"] = {"value": ratio, "band": [0.8, 1.4] if as_printed else [0.3, 3]}
for name in ("accuracy", "fd", "fd_floor", "fd_blur", "confident", "nearest_ratio"):
    low, high = numbers[name]["band"]
    assert low <= numbers[name]["value"] <= high, name
assert not as_printed or distances["samples"] < distances["blurred"]
print("check passed: samples, floor and blur lie in their bands")

# %% [markdown]
# The classifier is right on {number}`06_mnist:accuracy|.1%` of the held-out digits. In its features {number}`06_mnist:count|.0f` samples have an FD of {number}`06_mnist:fd|.1f`, as many training digits {number}`06_mnist:fd_floor|.1f`, and blurred digits {number}`06_mnist:fd_blur|.1f`. The classifier is sure of itself (above 0.9) on {number}`06_mnist:confident|.0%` of the samples and on {number}`06_mnist:confident_held_out|.0%` of the held-out digits. So the samples are closer to digits than blurred digits are, and they are not yet digits: the distance to the floor is what an hour of training on one core leaves. A later chapter does better.
#
# Are they copies? Each sample is set beside its nearest training digit.

# %% mystnb={"image": {"alt": "Two rows of ten digits. Above, samples; below, the nearest training digit of each: the same class, a different hand."}, "figure": {"name": "fig-nearest", "caption": "Ten samples (above) and the nearest of 4,000 training digits for each (below). They are mostly the same class and never the same picture."}}
match = torch.cdist(samples[:10].flatten(1), trained.flatten(1)).argmin(1)
pairs = torch.cat([samples[:10], trained[match]])
ax = md.plots.images(plt.figure(figsize=(6.5, 1.6)).gca(), pairs)

# %% [markdown]
# The median distance of a sample to its nearest training digit is {number}`06_mnist:nearest_ratio|.2f` times that of a held-out digit. A model that copies would have a ratio near 0.
#
# ## Exercises
#
# 1. Sample without `md.clip`. What changes, and at which times does clipping act?
# 2. Give the sampler `md.forward_variance`, with 50 steps and with 1,000. Explain the difference with {ref}`sec-ancestral`.
# 3. Start the chain at $t = 0.5$ from a noised held-out digit. How much of the digit survives?
# 4. Train the same U-Net on `md.data.digits8x8` from scratch ({ref}`sec-recipe` has the lines).
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
