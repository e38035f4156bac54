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
# # Lab: four generators, one clock
#
# A GAN, a VAE, a normalising flow and a diffusion model learn the same data. Each gets about the same processor time for training, and each is trained three times. Then we ask all of them the same questions: do you reach every mode? How many of your samples lie where data lie? How likely is a new data point? And how long does a sample take? {ref}`sec-generative` says what each model optimises; here we see what each one gets.
#
# Everything is trained while you watch, in about {number}`01_four_generators:minutes|.0f` minutes on one processor core. Nothing is downloaded.

# %% tags=["parameters"]
import os

PRESET = os.environ.get("PRESET", "cpu")  # "smoke" (seconds), "cpu" (as printed), "gpu"

# %%
import json
import math
import resource
import statistics
import time
from functools import partial

import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

import minidiff as md
from minidiff import classics

start = time.perf_counter()
md.plots.use_style()
torch.set_num_threads(1)
seeds, budget, count, T = {
    "smoke": ([0], 0.03, 500, 100),
    "cpu": ([0, 1, 2], 1.0, 4000, 200),
    "gpu": ([0, 1, 2, 3, 4], 3.0, 10_000, 200),
}[PRESET]
as_printed = PRESET == "cpu"
numbers = {}


def note(key, values, printed, smoke=None):
    """Store the mean over seeds, and the least and the largest value."""
    band = printed if as_printed else smoke or printed
    assert all(band[0] <= v <= band[1] for v in values), f"{key}: {values} not in {band}"
    numbers[key] = {"value": statistics.fmean(values), "band": band, "seeds": seeds}
    numbers[key + "_min"] = {"value": min(values), "band": band}
    numbers[key + "_max"] = {"value": max(values), "band": band}


# %% [markdown]
# ## The data, and what could be known about them
#
# Eight Gaussians of standard deviation $\sigma = 0.1$ sit on a circle. The set is small enough to know everything about it: the best possible mean log-likelihood is {eq}`eq:true-likelihood`, and the share of true points within three standard deviations of a centre is {eq}`eq:inside-share`. We keep a second set aside and measure against that.

# %% tags=["nbval-check-output"]
points = md.data.eight_gaussians(20_000, rng=md.tensors.seeded(0))
held_out = md.data.eight_gaussians(count, rng=md.tensors.seeded(1))
angle = torch.arange(8) * (math.pi / 4)
centres = math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)


def distance(x):
    return md.metrics.sliced_wasserstein(x, held_out, rng=md.tensors.seeded(0))


fresh = [md.data.eight_gaussians(count, rng=md.tensors.seeded(2, i)) for i in range(5)]
truth = -math.log(8) - math.log(2 * math.pi * 0.1**2) - 1
note("true_likelihood", [truth], [-0.313, -0.311])
note("true_inside", [1 - math.exp(-4.5)], [0.988, 0.990])
note("floor", [distance(x) for x in fresh], [0.02, 0.13], [0.03, 0.3])
note(
    "ceiling",
    [distance(md.tensors.randn_like(x, md.tensors.seeded(3, i))) for i, x in enumerate(fresh)],
    [0.25, 0.5],
)
assert all(md.metrics.mode_coverage(x, centres, radius=0.3).covered == 8 for x in fresh)
print("check passed: another true set is near, noise is far")

# %% [markdown]
# The true density gives new points {number}`01_four_generators:true_likelihood|.3f` nats on average: no model can beat that but by luck. {number}`01_four_generators:true_inside|.1%` of true points lie *inside*, within three standard deviations of a centre. Five other true sets lie {number}`01_four_generators:floor|.3f` from the held-out set on average, in sliced Wasserstein distance, from {number}`01_four_generators:floor_min|.3f` to {number}`01_four_generators:floor_max|.3f`: that is the floor. It is not 0, because two random sets never have equally many points in each mode. Plain noise lies {number}`01_four_generators:ceiling|.2f` away.
#
# ## Four recipes
#
# Each recipe takes the data, a seed and a number of steps, and returns its model. The numbers of steps are fixed, so that the results do not depend on your machine. They were chosen so that the four take about equally long. For each of the four the learning rate was chosen among three or four, by the distance of the samples on another seed; for diffusion two sizes of the network were tried as well. The networks differ, because the models ask for different ones; the clock is what they share. The diffusion model is sampled with averaged weights ({eq}`eq:ema`), as is usual, and with $\beta_t$ as the variance of its steps ({eq}`eq:beta-choice`), which makes its bound tighter.


# %%
def built(seed, make):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def gan(data, seed, steps, latent=2, lr=1e-3):
    size, batch = data.shape[1], md.data.batches(data, 128, seed)
    g, d = built(seed, lambda: (classics.Generator(latent, size), classics.Discriminator(size)))
    for _ in classics.train_gan(g, d, batch, steps=steps, lr=lr, seed=seed):
        pass
    return g


def fit(model, loss, data, seed, steps, lr, size=128, **more):
    raw = md.data.batches(data, size, seed)

    def soft(k):  # pixels lie on a lattice, points do not
        x, rng = raw(k), md.tensors.seeded(seed, k)
        return classics.dequantise(x, 0.125, rng=rng) if x.shape[1] == 64 else x

    def rate(k):
        return lr * (1 - k / steps)

    for done in md.train(loss, model, soft, steps=steps, seed=seed, lr=rate, **more):
        yield done.index


def autoencoder(size, latent, depth):
    encoder = classics.Encoder(size, latent, depth=depth)
    return classics.VAE(encoder, classics.GaussianDecoder(latent, size, depth=depth))


def vae(data, seed, steps, latent=2, depth=3, lr=1e-2):
    model = built(seed, lambda: autoencoder(data.shape[1], latent, depth))

    def loss(x, rng):
        return -model.elbo(x, rng=rng).total.mean()

    list(fit(model, loss, data, seed, steps, lr))
    return model


def flow(data, seed, steps, width=64, lr=1e-2, watch=lambda model, index: None):
    model = built(seed, lambda: classics.Flow(data.shape[1], width=width))

    def loss(x, rng):
        return -model.log_prob(x).mean()

    for index in fit(model, loss, data, seed, steps, lr):
        watch(model, index)
    return model


schedule = md.BetaTable(md.linear_betas(T))


def diffusion(data, seed, steps, width=64, depth=2, lr=6e-3, size=256):
    net = built(seed, lambda: md.nets.MLP(data.shape[1], width=width, depth=depth))
    model = md.Denoiser(net, schedule, "eps")
    ema = md.EMA(model, 0.999)

    def loss(x, rng):
        return md.denoising_loss(model, x, rng=rng).mean()

    list(fit(model, loss, data, seed, steps, lr, size, ema=ema))
    return ema.model


# %%
RECIPES = {"GAN": (gan, 4000), "VAE": (vae, 4000), "flow": (flow, 2300),
           "diffusion": (diffusion, 2800)}  # fmt: skip


def trained(recipes, data, share, label):
    models, seconds = {}, {}
    for name, (recipe, steps) in recipes.items():
        for seed in tqdm(seeds, desc=f"{label}: {name}"):
            before = time.process_time()
            models[name, seed] = recipe(data, seed, max(20, round(share * budget * steps)))
            seconds[name, seed] = time.process_time() - before
    return models, seconds


if PRESET == "smoke":  # the first training loads libraries, which short runs must not count
    gan(points, 0, 20)
models, seconds = trained(RECIPES, points, 1.0, "plane")
quick, _ = trained(RECIPES, points, 0.25, "plane, a quarter of the time")

# %%
for name in RECIPES:
    note(f"cpu_{name}", [seconds[name, s] for s in seeds], [1, 100], [0.02, 30])
spent = [numbers[f"cpu_{name}"]["value"] for name in RECIPES]
note("cpu_ratio", [max(spent) / min(spent)], [1, 2.5], [1, 8])

# %% [markdown]
# On the machine that wrote this page the four took {number}`01_four_generators:cpu_GAN|.1f`, {number}`01_four_generators:cpu_VAE|.1f`, {number}`01_four_generators:cpu_flow|.1f` and {number}`01_four_generators:cpu_diffusion|.1f` seconds a training; the longest is {number}`01_four_generators:cpu_ratio|.2f` times the shortest.
#
# ## What they draw
#
# Before you look: which of the four will miss a mode? Which will leave bridges between neighbouring modes? The lectures say that GANs are less diverse. The theory of {ref}`sec-bridges` says that a continuous map must leave bridges.


# %% mystnb={"image": {"alt": "Five panels of density on a plane. Data: eight round spots on a circle. GAN: eight small dark spots joined by thin lines, narrower than the data. VAE and flow: eight spots joined by broad bridges. Diffusion: eight round spots with fainter bridges."}, "figure": {"name": "fig-four-densities", "caption": "Densities of the samples of one seed, on one scale; the shade follows the root of the density, so that bridges show. All four models reach all eight modes. The GAN's modes and bridges are thinner than the data; flow and VAE leave broad bridges; diffusion has the right shape and fainter bridges."}}
def walk(model, x, rng):
    return md.last(md.ancestral(model, schedule, x, md.ddpm_steps(T), rng=rng,
                                variance=md.forward_variance))  # fmt: skip


def draw(model, seed, n=count, size=2):
    if not isinstance(model, md.Denoiser):
        return model.sample(n, rng=md.tensors.seeded(seed, 1))
    x = md.prior(schedule, (n, size), rng=md.tensors.seeded(seed, 1))
    return walk(model, x, md.tensors.seeded(seed, 2))


samples = {key: draw(model, key[1]) for key, model in models.items()}
fig, axes = plt.subplots(1, 5, figsize=(10, 2.3), sharey=True)
panels = {"data": points[:count]} | {name: samples[name, 0] for name in RECIPES}
for ax, (name, x) in zip(axes, panels.items(), strict=True):
    color = md.plots.DATA if name == "data" else md.plots.PREDICTION
    md.plots.heat(ax, x, reach=2, bins=50, color=color, top=1.5).set_title(name)


# %% tags=["nbval-check-output"]
def width(x):
    inside = torch.cdist(x, centres).min(1).values <= 0.3
    return float(x[inside].norm(dim=1).std())  # across the circle, where no bridge runs


true_width = statistics.fmean(map(width, fresh))
SWD = {"GAN": [0.04, 0.16], "VAE": [0.05, 0.14], "flow": [0.06, 0.14], "diffusion": [0.03, 0.1]}
INSIDE = {"GAN": [0.84, 0.95], "VAE": [0.65, 0.85], "flow": [0.6, 0.8], "diffusion": [0.8, 0.95]}
WIDTH = {
    "GAN": ([0.4, 0.92], [0, 3]), "VAE": ([0.85, 1.35], [0, 3]), "flow": ([0.85, 1.35], [0, 3]),
    "diffusion": ([0.85, 1.35], [0, 3]),
}  # fmt: skip
for name in RECIPES:
    seen = [md.metrics.mode_coverage(samples[name, s], centres, radius=0.3) for s in seeds]
    note(f"modes_{name}", [c.covered for c in seen], [8, 8], [0, 8])
    note(f"inside_{name}", [c.inside for c in seen], INSIDE[name], [0, 1])
    note(f"swd_{name}", [distance(samples[name, s]) for s in seeds], SWD[name], [0.02, 1.5])
    note(f"width_{name}", [width(samples[name, s]) / true_width for s in seeds], *WIDTH[name])
    early = [distance(draw(quick[name, s], s)) for s in seeds]
    note(f"swd_early_{name}", early, [0.06, 0.16], [0.02, 2.5])
mean = {key: entry["value"] for key, entry in numbers.items()}
if as_printed:
    assert mean["width_GAN"] < min(mean[f"width_{name}"] for name in ["VAE", "flow", "diffusion"])
    assert mean["swd_diffusion"] < min(mean[f"swd_{name}"] for name in ["GAN", "VAE", "flow"])
    assert mean["swd_early_diffusion"] > 0.95 * min(
        mean[f"swd_early_{name}"] for name in ["GAN", "VAE", "flow"]
    )
print("check passed: diffusion ends nearest to the data, and is not ahead at a quarter of the time")

# %% [markdown]
# All four reach {number}`01_four_generators:modes_GAN_min|.0f` of 8 modes at each of the {number}`01_four_generators:seeds|.0f` seeds, the GAN as well. The share of samples inside the modes is {number}`01_four_generators:inside_GAN|.2f` for the GAN ({number}`01_four_generators:inside_GAN_min|.2f` to {number}`01_four_generators:inside_GAN_max|.2f`), {number}`01_four_generators:inside_VAE|.2f` ({number}`01_four_generators:inside_VAE_min|.2f` to {number}`01_four_generators:inside_VAE_max|.2f`) for the VAE, {number}`01_four_generators:inside_flow|.2f` ({number}`01_four_generators:inside_flow_min|.2f` to {number}`01_four_generators:inside_flow_max|.2f`) for the flow, and {number}`01_four_generators:inside_diffusion|.2f` ({number}`01_four_generators:inside_diffusion_min|.2f` to {number}`01_four_generators:inside_diffusion_max|.2f`) for diffusion; for data it is {number}`01_four_generators:true_inside|.3f`. That share flatters the GAN. Look at the width of its modes across the circle, where no bridge runs: the standard deviation of the distance from the origin, over the samples inside. It is {number}`01_four_generators:width_GAN|.2f` times the true one ({number}`01_four_generators:width_GAN_min|.2f` to {number}`01_four_generators:width_GAN_max|.2f`). It visits every mode and makes each too thin: diversity is lost *inside* the modes, where a count of modes does not look. For the VAE the width is {number}`01_four_generators:width_VAE|.2f`, for the flow {number}`01_four_generators:width_flow|.2f`, for diffusion {number}`01_four_generators:width_diffusion|.2f` times the true one.
#
# The distances to held-out data are {number}`01_four_generators:swd_GAN|.3f`, {number}`01_four_generators:swd_VAE|.3f`, {number}`01_four_generators:swd_flow|.3f` and {number}`01_four_generators:swd_diffusion|.3f`, with diffusion from {number}`01_four_generators:swd_diffusion_min|.3f` to {number}`01_four_generators:swd_diffusion_max|.3f` nearest to the data, next to a floor of {number}`01_four_generators:floor|.3f`.
#
# Is diffusion the better model, then? Not at every budget. Trainings of a quarter of the length give the distances {number}`01_four_generators:swd_early_GAN|.3f`, {number}`01_four_generators:swd_early_VAE|.3f`, {number}`01_four_generators:swd_early_flow|.3f` and {number}`01_four_generators:swd_early_diffusion|.3f`: diffusion is not ahead. After the full length it is.
#
# ## Between the modes
#
# Walk round the circle and count samples. We fold the eight gaps onto each other: the angle runs from the middle of one gap, over a centre at 0, to the middle of the next. The true density falls by a factor of a million on the way. Guess how far the four models fall.


# %% mystnb={"image": {"alt": "Four curves and a thin black one on a logarithmic scale against the angle from the nearest centre. The black one, the truth, falls like a parabola to nearly nothing; those of the models fall by a factor of five to thirty and then stay level."}, "figure": {"name": "fig-bridges", "caption": "Density of the angle to the nearest centre, all gaps and seeds together. The truth falls off like a parabola. Each model levels off: what is left in the middle of a gap is its bridge."}}
def folded(x):
    turn = torch.atan2(x[:, 1], x[:, 0]) * 8 / (2 * math.pi)
    return (turn - turn.round()) * 45  # degrees from the nearest centre


hue = dict(zip(RECIPES, ["C4", "C5", "C8", md.plots.PREDICTION], strict=True))
ax = plt.figure(figsize=(5, 2.8)).gca()
edges = torch.linspace(-22.5, 22.5, 31)
middle = (edges[1:] + edges[:-1]) / 2
for name, style in zip(RECIPES, ["-", "--", "-.", ":"], strict=True):
    pooled = torch.cat([folded(samples[name, s]) for s in seeds])
    share = torch.histogram(pooled, edges)[0] / len(pooled) / 1.5
    ax.semilogy(middle, share.clamp(min=1e-5), label=name, linestyle=style, color=hue[name])
tight = math.degrees(0.1 / math.sqrt(2))
bell = torch.exp(-((middle / tight) ** 2) / 2) / tight / math.sqrt(2 * math.pi)
ax.semilogy(middle, bell, color="black", linewidth=1, label="truth (nearly)")
ax.set(xlabel="angle from the nearest centre, degrees", ylabel="density per degree")
ax.set_ylim(2e-5, 0.2)
ax.legend(ncols=2, loc="lower center");
# %% tags=["nbval-check-output"]
GAP = {"GAN": [0.03, 0.1], "VAE": [0.06, 0.16], "flow": [0.12, 0.24], "diffusion": [0.02, 0.1]}
for name in RECIPES:
    gap = [float((folded(samples[name, s]).abs() > 15).float().mean()) for s in seeds]
    note(f"gap_{name}", gap, GAP[name], [0, 1])
note(
    "gap_true",
    [float((folded(x).abs() > 15).float().mean()) for x in fresh],
    [0, 0.002],
    [0, 0.005],
)
assert all(numbers[f"gap_{name}"]["value"] > numbers["gap_true"]["value"] for name in RECIPES)
print("check passed: every model leaves more in the gaps than the data have there")

# %% [markdown]
# In the middle third of the gaps lie {number}`01_four_generators:gap_GAN|.1%` of the GAN's samples, {number}`01_four_generators:gap_VAE|.1%` of the VAE's, {number}`01_four_generators:gap_flow|.1%` of the flow's and {number}`01_four_generators:gap_diffusion|.1%` of the diffusion model's; of true points it is {number}`01_four_generators:gap_true|.2%`. No model tears its noise apart. The flow shows it most. Its layers are built to be gentle: each stretches an entry by at most $e^2$, and what is steeper must come from its shifts or from several layers together. The same topology binds the GAN's generator, the VAE's decoder and the deterministic sampler of a diffusion model. They differ in how steep they become.
#
# ## How likely is a new point?
#
# The flow computes its likelihood. The VAE bounds it from below, the tighter the more draws it takes ({eq}`eq:iw-bound`; here 500). A diffusion model has a bound as well ({eq}`eq:vlb`), and, through its deterministic sampler, an estimate without a bound's gap ({eq}`eq:ode-likelihood`). The GAN has nothing. Guess who comes closest to the truth of {number}`01_four_generators:true_likelihood|.3f` nats.


# %% tags=["nbval-check-output"]
def by_flow(model, x, seed):
    with torch.no_grad():
        return float(model.log_prob(x).mean())


def by_vae(model, x, seed, draws=500 if as_printed else 50):
    return float(model.log_likelihood(x, draws, rng=md.tensors.seeded(seed)).mean())


def by_bound(model, x, seed):
    bound = md.bounds.vlb(model, schedule, x, md.ddpm_steps(T), rng=md.tensors.seeded(seed),
                          variance=md.forward_variance)  # fmt: skip
    return -float(bound.total.mean())


def by_ode(model, x, seed):
    grid = md.grids.log_snr(schedule, 24, low=-9, high=9, land=False).flip(0)
    return float(md.likelihood.ode_log_likelihood(model, schedule, x, grid).mean())


probe = held_out[: 1000 if as_printed else 100]
LIKELIHOODS = {
    "flow": ("flow", by_flow, [-1.2, -0.7]), "elbo": ("VAE", partial(by_vae, draws=1), [-2, -0.8]),
    "vae": ("VAE", by_vae, [-0.95, -0.55]), "bound": ("diffusion", by_bound, [-0.9, -0.5]),
    "ode": ("diffusion", by_ode, [-0.75, -0.38]),
}  # fmt: skip
for key, (name, how, band) in LIKELIHOODS.items():
    values = [how(models[name, s], probe, s) for s in seeds]
    note(f"likelihood_{key}", values, band, [-60, 0])
exact = md.GaussianMixture(centres, torch.full((8,), 0.1)).denoiser(schedule)
note("likelihood_exact_bound", [by_bound(exact, probe, 0)], [-0.75, -0.35], [-2.5, 0.5])
assert all(numbers[f"likelihood_{key}_max"]["value"] < truth + 0.05 for key in LIKELIHOODS)
print("check passed: nobody beats the true density")

# %% [markdown]
# The flow gives new points {number}`01_four_generators:likelihood_flow|.2f` nats ({number}`01_four_generators:likelihood_flow_min|.2f` to {number}`01_four_generators:likelihood_flow_max|.2f`), the VAE at least {number}`01_four_generators:likelihood_elbo|.2f` by the bound it is trained on and {number}`01_four_generators:likelihood_vae|.2f` by the tighter one ({number}`01_four_generators:likelihood_vae_min|.2f` to {number}`01_four_generators:likelihood_vae_max|.2f`). For the diffusion model the bound says at least {number}`01_four_generators:likelihood_bound|.2f` ({number}`01_four_generators:likelihood_bound_min|.2f` to {number}`01_four_generators:likelihood_bound_max|.2f`), and the deterministic sampler {number}`01_four_generators:likelihood_ode|.2f` ({number}`01_four_generators:likelihood_ode_min|.2f` to {number}`01_four_generators:likelihood_ode_max|.2f`). The order is a surprise: the flow, the only one of the four that is trained for exactly this number, comes last. Its bridges cost it; probability spent between the modes is missing at the modes. Even the *exact* denoiser would reach only {number}`01_four_generators:likelihood_exact_bound|.2f` in the bound: with {number}`01_four_generators:T|.0f` steps that much is lost by taking each reverse step for a Gaussian.
#
# ## What a sample costs
#
# A GAN, a VAE and a flow draw a sample in one pass. The chain asks its network {number}`01_four_generators:T|.0f` times. The deterministic sampler DDIM asks it fewer times with the same weights; it is derived in a chapter to come. How much quality does that cost, and is diffusion then as fast as a GAN?


# %%
def milliseconds(run, repeats=7):
    run()
    taken = []
    for _ in range(repeats):
        before = time.process_time()
        run()
        taken.append(time.process_time() - before)
    return 1000 * statistics.median(taken)


def hop(model, seed, steps, n=count):
    x = md.prior(schedule, (n, 2), rng=md.tensors.seeded(seed, 1))
    return md.last(md.ddim(model, schedule, x, md.grids.strided(T, steps)))


times, quality = {}, {}  # one value a seed
chains = {s: models["diffusion", s] for s in seeds}
with torch.no_grad():
    for name in ["GAN", "VAE", "flow"]:
        times[name] = [milliseconds(partial(models[name, s].sample, 1000)) for s in seeds]
    repeats = 1 if PRESET == "smoke" else 3
    times["chain"] = [milliseconds(partial(draw, chains[s], s, 1000), repeats) for s in seeds]
    for n in [5, 10, 20, 50]:
        times[n] = [milliseconds(partial(hop, chains[s], s, n, 1000), 3) for s in seeds]
        quality[n] = [distance(hop(chains[s], s, n)) for s in seeds]
cost = {key: statistics.fmean(value) for key, value in times.items()}

# %% mystnb={"image": {"alt": "Two panels. Left: distance to held-out data for a quarter of the training time and the whole; three fall a little, diffusion by nearly half. Right: distance against sampling time on a logarithmic axis: GAN, VAE and flow near one millisecond, diffusion a curve from tens to hundreds of milliseconds that falls from poor to best."}, "figure": {"name": "fig-quality-cost", "caption": "Left: distance to held-out data with a quarter of the training time and with all of it; dots are seeds. Only diffusion gains much. Right: the same distance against the time for 1,000 samples. The chain draws well, but costs hundreds of times what a one-pass model costs; with 50 deterministic steps it is faster and as good, with 5 faster still and far worse."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3), sharey=True, width_ratios=[2, 3])
marks = dict(zip(RECIPES, "osD^", strict=True))
for name in RECIPES:
    pair = [numbers[f"swd_early_{name}"]["value"], numbers[f"swd_{name}"]["value"]]
    left.plot([0.25, 1], pair, color=hue[name], marker=marks[name], label=name)
    dots = [distance(samples[name, s]) for s in seeds]
    left.plot([1] * len(seeds), dots, ".", color=hue[name], markersize=4)
    key = "chain" if name == "diffusion" else name
    right.semilogx(times[key], dots, marks[name], color=hue[name], alpha=0.8)
    words = f"{name}, {T} steps" if name == "diffusion" else name
    right.annotate(words, (cost[key], max(dots)), (0, 7), textcoords="offset points", ha="center")
average = {n: statistics.fmean(q) for n, q in quality.items()}
track = [*average.values(), numbers["swd_diffusion"]["value"]]
right.plot([*(cost[n] for n in average), cost["chain"]], track, color=hue["diffusion"], linewidth=1)
for n in average:
    right.plot(times[n], quality[n], ".", color=hue["diffusion"])
    right.annotate(f"{n} steps", (cost[n], max(quality[n])), (2, 4), textcoords="offset points")
floor = numbers["floor"]["value"]
for ax in (left, right):
    ax.axhline(floor, color=md.plots.DATA, linestyle="--", linewidth=1)
left.set(xlabel="share of the training time", ylabel="sliced Wasserstein distance", ylim=(0, None))
left.legend()
right.set_xlabel("milliseconds for 1,000 samples, one core")
right.text(cost["GAN"] / 1.2, floor / 2, "dashed: the floor, true data")
right.set_xlim(cost["GAN"] / 2, cost["chain"] * 3);
# %%
def slower(key):
    return [ours / gan for ours, gan in zip(times[key], times["GAN"], strict=True)]


for name in ["VAE", "flow"]:
    note(f"time_{name}", slower(name), [0.5, 20])
note("time_chain", slower("chain"), [50, 5000], [5, 5000])
note("time_10", slower(10), [2, 500])


# %% tags=["nbval-check-output"]
def size(model):
    return sum(p.numel() for p in model.parameters() if p.ndim == 2)


note("products_GAN", [size(models["GAN", 0])], [10_000, 30_000])
note("products_call", [size(chains[0])], [10_000, 100_000])
note("products_ratio", [T * size(chains[0]) / size(models["GAN", 0])], [100, 2000], [100, 400])
STEPS = {5: [0.15, 0.3], 10: [0.06, 0.13], 20: [0.04, 0.1], 50: [0.03, 0.09]}
for n, q in quality.items():
    note(f"swd_{n}_steps", q, STEPS[n], [0.02, 1.5])
if as_printed:
    best = min(mean[f"swd_{name}"] for name in ["GAN", "VAE", "flow"])
    assert numbers["swd_50_steps"]["value"] < numbers["swd_5_steps"]["value"]
    assert numbers["swd_20_steps"]["value"] < best < 1.1 * numbers["swd_10_steps"]["value"]
print("check passed: few steps are worse than many; the chain needs hundreds of passes")

# %% [markdown]
# The GAN's generator has {number}`01_four_generators:products_GAN|,.0f` weights in its matrices, the diffusion network {number}`01_four_generators:products_call|,.0f`, and it is called {number}`01_four_generators:T|.0f` times: {number}`01_four_generators:products_ratio|.0f` times the multiplications ({eq}`eq:sampling-cost`). By the clock of the machine that wrote this page the chain takes {number}`01_four_generators:time_chain|.0f` times as long as the GAN ({number}`01_four_generators:time_chain_min|.0f` to {number}`01_four_generators:time_chain_max|.0f`), the VAE {number}`01_four_generators:time_VAE|.1f` and the flow {number}`01_four_generators:time_flow|.1f` times as long.
#
# Fewer deterministic steps with the same weights: with 50 the distance is {number}`01_four_generators:swd_50_steps|.3f`, as good as the whole chain; with 20 it is {number}`01_four_generators:swd_20_steps|.3f`, with 10 {number}`01_four_generators:swd_10_steps|.3f`, with 5 {number}`01_four_generators:swd_5_steps|.3f`. So ten steps end about as far from the data as the one-pass models, and still take {number}`01_four_generators:time_10|.0f` times as long as the GAN. To buy speed is possible; to beat one pass at its own price is not, here.
#
# ## Can we make the GAN drop modes?
#
# With the defaults of this package, which are the usual precautions, the GAN covered everything. Take them away in two ways. *Momentum*: Adam with its usual first beta of 0.9 where we use 0.5. *Kinks*: plain ReLU in place of the leaky one, sixteen latent dimensions and half the learning rate. Guess which one loses modes, and whether it finds them again.


# %%
def plain(net):
    for i, layer in enumerate(net.net):
        if isinstance(layer, torch.nn.LeakyReLU):
            net.net[i] = torch.nn.ReLU()


def look(g):
    x = g.sample(count, rng=md.tensors.seeded(7))
    return md.metrics.mode_coverage(x, centres, radius=0.3).covered


pace = round(250 * budget)


def history(seed, latent=2, lr=1e-3, beta=0.5, relu=False):
    g, d = built(seed, lambda: (classics.Generator(latent, 2), classics.Discriminator(2)))
    if relu:
        plain(g), plain(d)
    adam = partial(torch.optim.Adam, betas=(beta, 0.999))
    batch = md.data.batches(points, 128, seed)
    run = classics.train_gan(g, d, batch, lr=lr, seed=seed, steps=12 * pace, optimizer=adam)
    return [look(g) for step in run if step.index % pace == 0], g


SETTINGS = {"as above": {}, "usual betas": {"beta": 0.9},
            "plain ReLU": {"latent": 16, "lr": 5e-4, "relu": True}}  # fmt: skip
curves = {name: [history(s, **how) for s in tqdm(seeds, desc=name)]
          for name, how in SETTINGS.items()}  # fmt: skip

# %% mystnb={"image": {"alt": "Three panels of modes covered against training steps, three seeds each, and a fourth of samples. As above: eight soon and for good. Usual betas: uneven at first, then eight. Plain ReLU: one or none throughout; in the fourth panel its samples are one blob among the eight modes of the data."}, "figure": {"name": "fig-collapse", "caption": "Modes covered during training, one line a seed, drawn slightly apart. With the precautions: all eight, soon. With more momentum: later. With plain ReLU, more latents and a smaller rate: most modes are missing to the end, and the samples of one seed (right) crowd into one place."}}
fig, axes = plt.subplots(1, 4, figsize=(10, 2.3), width_ratios=[1, 1, 1, 0.9])
for ax, (name, runs) in zip(axes, curves.items(), strict=False):
    for shift, (seen, _) in enumerate(runs):
        steps = [pace * (k + 1) for k in range(len(seen))]
        ax.plot(
            steps,
            [v + 0.08 * shift for v in seen],
            color=md.plots.PREDICTION,
            marker="osD^v"[shift],
            markersize=3,
            linewidth=1,
        )
    ax.set(title=name, ylim=(-0.4, 8.6), xlabel="step")
axes[0].set_ylabel("modes covered")
lost = curves["plain ReLU"][0][1].sample(2000, rng=md.tensors.seeded(7))
md.plots.scatter(axes[3], held_out[:800], size=2)
md.plots.scatter(axes[3], lost, color=md.plots.PREDICTION, size=4, reach=2.4).set_title(
    "plain ReLU"
);
# %% tags=["nbval-check-output"]
EXPECTED = {"above": ([7, 8], [7, 8]), "betas": ([1, 8], [7, 8]), "relu": ([0, 4], [0, 4])}
for name, runs in curves.items():
    key = name.split()[-1].lower()
    early, late = EXPECTED[key]
    note(f"modes_early_{key}", [seen[3] for seen, _ in runs], early, [0, 8])
    note(f"modes_late_{key}", [seen[-1] for seen, _ in runs], late, [0, 8])
if as_printed:
    assert numbers["modes_late_above"]["value"] > 7.5
    assert numbers["modes_late_relu"]["value"] < 3
    assert numbers["modes_early_betas"]["value"] < 8
print("check passed: the precautions matter")

# %% [markdown]
# After 1,000 steps the GAN with its precautions covers {number}`01_four_generators:modes_early_above|.1f` modes on average, with the usual betas {number}`01_four_generators:modes_early_betas|.1f` ({number}`01_four_generators:modes_early_betas_min|.0f` to {number}`01_four_generators:modes_early_betas_max|.0f`). It catches up: at the end it covers {number}`01_four_generators:modes_late_betas|.1f`. With plain ReLU it ends at {number}`01_four_generators:modes_late_relu|.1f` ({number}`01_four_generators:modes_late_relu_min|.0f` to {number}`01_four_generators:modes_late_relu_max|.0f`). So "GANs drop modes" is a sentence about settings. The other three have traps of their own ({ref}`sec-generative-wrong`), but none of them lost a mode in our trials.
#
# ## Digits
#
# The same four on 1,400 handwritten digits of 8 x 8 pixels, kept as vectors of 64 numbers; 397 others are held out. The pixels have 17 grey values on a lattice of width $h = 0.125$. A density on a lattice can be driven up without end, so VAE, flow and diffusion are trained on pixels spread over their cells ({eq}`eq:lattice`); all samples are rounded back to the lattice before they are compared.

# %%
pictures = md.data.digits8x8()[0].flatten(1)
train_set, test_set = pictures[:1400], pictures[1400:]
soft = partial(classics.dequantise, step=0.125)
test_soft, train_soft = (
    soft(x, rng=md.tensors.seeded(9)) for x in (test_set, train_set[: len(test_set)])
)
curve = {seed: [] for seed in seeds}
pause = max(1, round(50 * budget))


def watched(data, seed, steps):
    def watch(model, k):
        if k % pause == 0:
            row = by_flow(model, train_soft, seed), by_flow(model, test_soft, seed)
            curve[seed].append((k, *row))

    return flow(data, seed, steps, 128, 2e-3, watch)


DIGITS = {"GAN": (partial(gan, latent=16), 2800),
          "VAE": (partial(vae, latent=8, depth=2, lr=8e-3), 2900), "flow": (watched, 780),
          "diffusion": (partial(diffusion, width=128, depth=3, size=128), 1150)}  # fmt: skip
writers, writing = trained(DIGITS, train_set, 1.0, "digits")
for name in DIGITS:
    note(f"cpu_digits_{name}", [writing[name, s] for s in seeds], [1, 100], [0.02, 30])

# %% [markdown]
# Which of the four sheets will look most like the first? Look for three things: strokes that break off, grey fog, and pictures that are no digit at all.


# %% mystnb={"image": {"alt": "Five sheets of small handwritten digits: data, GAN, VAE, flow and diffusion, thirty-two each. The models' digits are recognisable in part; all have grey specks and less contrast than the data, the GAN most."}, "figure": {"name": "fig-four-digits", "caption": "Held-out digits and samples after equal training time, one seed, nothing picked by hand. After so little training none of the four writes well: broken strokes, grey specks, shapes that are no digit."}}
def snapped(x):
    return ((x * 8).round() / 8).clamp(-1, 1)


n = len(test_set)
drawn = {key: snapped(draw(model, key[1], n, 64)) for key, model in writers.items()}
fig, axes = plt.subplots(1, 5, figsize=(10, 4))
sheets = {"data": test_set} | {name: drawn[name, 0] for name in DIGITS}
for ax, (name, x) in zip(axes, sheets.items(), strict=True):
    md.plots.images(ax, x[:32].reshape(-1, 1, 8, 8), columns=4).set_title(name)


# %% tags=["nbval-check-output"]
def spread(x):
    return float(x.var(0).sum() / test_set.var(0).sum())


def near(x):
    return float(torch.cdist(x, train_set).min(1).values.median())


def away(x):
    return md.metrics.sliced_wasserstein(x, test_set, rng=md.tensors.seeded(0))


DIGIT_SWD = {
    "GAN": [0.13, 0.2], "VAE": [0.1, 0.16], "flow": [0.09, 0.14], "diffusion": [0.09, 0.15],
}  # fmt: skip
halves = [train_set[torch.randperm(1400, generator=md.tensors.seeded(i))[:n]] for i in range(5)]
note("digits_floor", [away(x) for x in halves], [0.03, 0.09])
note(
    "digits_noise",
    [away(torch.randn(n, 64, generator=md.tensors.seeded(6)).clamp(-1, 1))],
    [0.3, 1],
)
for name in DIGITS:
    note(f"digits_{name}", [away(drawn[name, s]) for s in seeds], DIGIT_SWD[name], [0.05, 0.9])
    note(
        f"copy_{name}", [near(drawn[name, s]) / near(test_set) for s in seeds], [1.1, 1.5], [0.5, 4]
    )
    note(f"spread_{name}", [spread(drawn[name, s]) for s in seeds], [0.55, 0.9], [0, 5])
smooth = [
    snapped(writers["VAE", s].decoder.mean(torch.randn(n, 8, generator=md.tensors.seeded(s))))
    for s in seeds
]
note("spread_means", [spread(x.detach()) for x in smooth], [0.4, 0.9], [0, 5])
assert all(numbers[f"copy_{name}_min"]["value"] > 0.5 for name in DIGITS)
print("check passed: nobody copies")

# %% [markdown]
# Three measures, over all seeds. *Distance to held-out digits*, over pixels: {number}`01_four_generators:digits_GAN|.3f` for the GAN ({number}`01_four_generators:digits_GAN_min|.3f` to {number}`01_four_generators:digits_GAN_max|.3f`), {number}`01_four_generators:digits_VAE|.3f` for the VAE ({number}`01_four_generators:digits_VAE_min|.3f` to {number}`01_four_generators:digits_VAE_max|.3f`), {number}`01_four_generators:digits_flow|.3f` for the flow ({number}`01_four_generators:digits_flow_min|.3f` to {number}`01_four_generators:digits_flow_max|.3f`) and {number}`01_four_generators:digits_diffusion|.3f` for diffusion ({number}`01_four_generators:digits_diffusion_min|.3f` to {number}`01_four_generators:digits_diffusion_max|.3f`). As many training digits have {number}`01_four_generators:digits_floor|.3f`, noise {number}`01_four_generators:digits_noise|.2f`. So little training is not enough for any of them.
#
# *Copying*: the median distance from a sample to the nearest training digit is {number}`01_four_generators:copy_GAN|.2f`, {number}`01_four_generators:copy_VAE|.2f`, {number}`01_four_generators:copy_flow|.2f` and {number}`01_four_generators:copy_diffusion|.2f` times that of a held-out digit. A copy would have 0: nobody copies.
#
# *Fading*: summed over pixels the samples have {number}`01_four_generators:spread_GAN|.0%`, {number}`01_four_generators:spread_VAE|.0%`, {number}`01_four_generators:spread_flow|.0%` and {number}`01_four_generators:spread_diffusion|.0%` of the variance of real digits. It is often said that VAEs blur. Here all four lack contrast, about equally; the means of the VAE's decoder, which is what one usually shows, have {number}`01_four_generators:spread_means|.0%`.
#
# ## A likelihood can be overfitted
#
# Fourteen hundred pictures are few. The flow maximises the likelihood of just these. Guess what happens to the likelihood of the others while it does.

# %% mystnb={"image": {"alt": "Training and held-out log-likelihood of the flow against training steps for each seed. The training curves rise throughout; the held-out curves rise, flatten and fall a little."}, "figure": {"name": "fig-flow-overfit", "caption": "The flow on digits: log-density of training digits (dashed) and of held-out digits (solid), one line a seed. The gap opens after a few hundred steps; then only the training digits gain."}}
ax = plt.figure(figsize=(4.6, 2.8)).gca()
for seed in seeds:
    steps, known, new = zip(*curve[seed], strict=True)
    ax.plot(steps, known, color="C5", linestyle="--", label="training digits")
    ax.plot(steps, new, color=md.plots.DATA, label="held-out digits")
ax.set(xlabel="step", ylabel="log-density, nats a digit", ylim=(-10 if as_printed else None, None))
handles = dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
ax.legend(handles.values(), handles.keys());
# %% tags=["nbval-check-output"]
RULES = {
    "flow": (by_flow, [10, 27], [12, 32]), "VAE": (by_vae, [-20, -5], [15, 35]),
    "diffusion": (by_bound, [0, 14], [2, 10]),
}  # fmt: skip
for name, (how, band, gap_band) in RULES.items():
    new = [how(writers[name, s], test_soft, s) for s in seeds]
    known = [how(writers[name, s], train_soft, s) for s in seeds]
    note(f"digits_likelihood_{name}", new, band, [-300, 60])
    gap = [a - b for a, b in zip(known, new, strict=True)]
    note(f"digits_gap_{name}", gap, gap_band, [-20, 60])
peak = [max(row[2] for row in curve[s]) for s in seeds]
note("flow_peak", peak, [20, 28], [-200, 50])
mean = {key: entry["value"] for key, entry in numbers.items()}
if as_printed:
    assert mean["digits_gap_flow"] > 5 and mean["flow_peak"] > mean["digits_likelihood_flow"]
    assert mean["digits_likelihood_flow"] > mean["digits_likelihood_diffusion"]
    assert mean["digits_gap_flow"] > mean["digits_gap_diffusion"]
print("check passed: the flow knows its training digits better than other digits")

# %% [markdown]
# At the end the flow gives training digits {number}`01_four_generators:digits_gap_flow|.1f` nats more than held-out ones ({number}`01_four_generators:digits_gap_flow_min|.1f` to {number}`01_four_generators:digits_gap_flow_max|.1f`). Held-out digits reached {number}`01_four_generators:flow_peak|.1f` nats on the way and end at {number}`01_four_generators:digits_likelihood_flow|.1f`. The VAE gives them {number}`01_four_generators:digits_likelihood_VAE|.1f` and the diffusion model's bound {number}`01_four_generators:digits_likelihood_diffusion|.1f`, with gaps of {number}`01_four_generators:digits_gap_VAE|.1f` and {number}`01_four_generators:digits_gap_diffusion|.1f` between training and held-out digits. So on digits the flow has by far the highest likelihood, and the diffusion model the smallest gap; the VAE overfits as much as the flow. The rate of the flow was chosen by its samples; by its likelihood one would have stopped earlier. The two aims part.
#
# ## Exercises
#
# 1. Give the GAN four times the steps. Does the share inside the modes rise? Does the distance?
# 2. Replace the eight Gaussians by `md.data.moons`, which hang together. Which model gains most? Why?
# 3. Let the flow stop at the peak of its held-out curve. What happens to the distance of its samples?
# 4. Sample the GAN with `z` of half the standard deviation. Which of the measures notices?
#
# ## What it cost

# %% tags=["nbval-ignore-output"]
minutes = (time.perf_counter() - start) / 60
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
numbers["seeds"] = {"value": len(seeds), "band": [1, 5]}
numbers["T"] = {"value": T, "band": [50, 200]}
numbers["minutes"] = {"value": minutes, "band": [0, 30]}
print(f"{minutes:.1f} min, peak memory {memory:.0f} MB")

# %% tags=["remove-cell"]
if "NUMBERS" in os.environ:
    with open(os.environ["NUMBERS"], "w") as file:
        json.dump(numbers, file)
