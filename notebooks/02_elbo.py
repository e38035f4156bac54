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
# # Lab: a bound you can look at
#
# {ref}`sec-variational` replaces an integral by a bound. Here the bound is drawn, first where the integral is known and the bound can be checked to the last digit, then on handwritten digits, where it is all we have. On the way you will see a model that stops using its latent variable, and two estimates of one gradient of which one scatters far more than the other.
#
# On one processor core the lab takes about {number}`02_elbo:minutes|.0f` minutes. No graphics card and no download are needed.

# %% tags=["parameters"]
import os

PRESET = os.environ.get("PRESET", "cpu")  # "smoke" (seconds), "cpu" (as printed), "gpu"

# %%
import copy
import itertools
import json
import math
import resource
import time

import matplotlib.pyplot as plt
import torch
from torch import distributions as td
from tqdm import tqdm

import minidiff as md
from minidiff import classics
from minidiff.classics.gaussians import gaussian_kl, log_normal, reparameterise

start = time.perf_counter()
md.plots.use_style()
torch.set_num_threads(1)
seeds, known_steps, digit_steps, ring_steps, draws = {
    "smoke": ([0], 100, 140, 100, [1, 5, 20]),
    "cpu": ([0, 1, 2], 1000, 4000, 2000, [1, 5, 50, 500]),
    "gpu": ([0, 1, 2, 3, 4], 1000, 4000, 2000, [1, 5, 50, 500, 5000]),
}[PRESET]
as_printed = PRESET != "smoke"
numbers = {"seeds": {"value": len(seeds), "band": [1, 5]}}
D, seeded = torch.float64, md.tensors.seeded


def note(key, value, band, smoke=None):
    """Keep a number for the text, and hold it to its band; `smoke` is the band of short runs."""
    low, high = band if as_printed or smoke is None else smoke
    numbers[key] = {"value": float(value), "band": [low, high], "seeds": seeds}
    assert low <= value <= high, f"{key} is {float(value)}, outside {low} to {high}"


# %% [markdown]
# ## The integral, by brute force
#
# A point $x$ with $d$ entries; each is one latent number plus noise of standard deviation 0.3. The likelihood is known, because a sum of Gaussians is a Gaussian. Pretend that it is not, and estimate $p(x) = \E_{p(z)}\,p(x\mid z)$ as the plain average over draws of $z$ from the prior. All entries of $x$ lie one standard deviation from their mean: a typical point, nothing exotic.
#
# Twenty repeats for one, four and sixteen entries. A guess before you look: with sixteen entries and a hundred thousand draws, how far is the estimate from the truth? Above or below it?


# %%
def running_estimate(entries, rng, draws=100_000, noise=0.3):
    """The logarithm of the mean of p(x|z) over the first k draws of the prior, less log p(x)."""
    x = torch.full((entries,), math.sqrt(1 + noise**2), dtype=D)
    z = torch.randn(draws, entries, generator=rng, dtype=D)
    log_p = log_normal(x.expand_as(z), z, torch.tensor(2 * math.log(noise), dtype=D))
    truth = td.Normal(0.0, math.sqrt(1 + noise**2)).log_prob(x).sum()
    return log_p.logcumsumexp(0)[counts - 1] - counts.log() - truth


counts = torch.logspace(1, 5, 17, dtype=D).round().long()
repeats = {d: [running_estimate(d, seeded(d, i)) for i in range(20)] for d in (1, 4, 16)}
a, c = 1 + 0.09, 1 + 0.045
r = a / math.sqrt(2 * c * 0.09) * math.exp(1 - a / (2 * c))
needed = {d: r**d - 1 for d in (1, 4, 16, 64)}

# %% mystnb={"image": {"alt": "Three panels of ten orange curves each against the number of draws, from ten to a hundred thousand. With one latent entry they meet the green line of the truth after a thousand draws, with four after ten thousand; with sixteen most start ninety nats below or more, and at the end most are still several nats below."}, "figure": {"name": "fig-prior-draws", "caption": "The likelihood as a plain average over draws from the prior: ten of twenty repeats, less the truth. With 16 latent entries, the typical repeat still misses by about ten nats after one hundred thousand draws, on the low side."}}
fig, axes = plt.subplots(1, 3, figsize=(8.5, 2.5))
for ax, (d, curves) in zip(axes, repeats.items(), strict=True):
    for curve in curves[:10]:
        ax.plot(counts, curve, color=md.plots.PREDICTION, alpha=0.4, linewidth=0.8)
    ax.axhline(0, color=md.plots.KNOWN)
    ax.set(xscale="log", xlabel="draws K", ylim=(-100, 8) if d == 16 else None)
    ax.set_title(f"{d} latent {'entry' if d == 1 else 'entries'}")
axes[0].set_ylabel("estimate - log p(x), nats");
# %% tags=["nbval-check-output"]
ends = {d: torch.stack(curves)[:, -1] for d, curves in repeats.items()}
for d, band in {1: [-0.02, 0.02], 4: [-0.1, 0.1], 16: [-14.0, -5.0]}.items():
    note(f"prior_error_{d}", ends[d].median(), band)
note("prior_below_16", (ends[16] < 0).sum(), [17, 20])
note("prior_needed_1", needed[1], [3.0, 3.1])
note("prior_needed_16", needed[16], [5.3e9, 5.4e9])
assert ends[16].median() < ends[4].median() - 5
print("check passed: the prior hardly ever proposes a z that explains x")

# %% [markdown]
# With sixteen entries the middle one of the twenty estimates less the truth is {number}`02_elbo:prior_error_16|.1f` nats after a hundred thousand draws, and {number}`02_elbo:prior_below_16|.0f` of the 20 lie below the truth. The average is dominated by draws that land near the right $z$, and such draws have not yet come. By {eq}`eq:prior-variance` a relative standard error of one takes {number}`02_elbo:prior_needed_1|.0f` draws with one entry and {number}`02_elbo:prior_needed_16|.1e` with sixteen. The repair is to draw $z$ from a distribution that has looked at $x$.
#
# ## Lines above a curve
#
# The logarithm is the lowest of its tangents ({eq}`eq:log-envelope`). The picture on the right turns that into Jensen's inequality: a weight $w$ is 0.4 or 4, with equal chances. Before you look: where does $\E\log w$ lie relative to $\log\E w$, and which tangent, of the kind on the left, proves it?

# %% mystnb={"image": {"alt": "Left: the logarithm in blue with five straight lines that touch it from above at five marked points. Right: the logarithm with a chord between the points at 0.4 and 4; at the mean 2.2 the chord lies half a nat below the curve, and the tangent at 2.2 touches the curve from above."}, "figure": {"name": "fig-tangents", "caption": "Left: every tangent lies above the logarithm; at each x the lowest of them is the logarithm itself. Right: averages stay on straight lines. The average of the logarithm is the point on the chord, the average of the tangent is the point on the curve, and the first lies below the second."}}
x = torch.linspace(0.08, 6, 400, dtype=D)
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.1), sharey=True)
for lam in (0.25, 0.5, 1.0, 2.0, 4.0):
    left.plot(x, lam * x - 1 - math.log(lam), color=md.plots.NOISE, linewidth=0.9)
    left.plot(1 / lam, -math.log(lam), "o", color=md.plots.PREDICTION, markersize=4)
for ax in (left, right):
    ax.plot(x, x.log(), color=md.plots.DATA, label="log x")
    ax.set(ylim=(-2.6, 2.4), xlabel="x")
pair, mid = torch.tensor([0.4, 4.0], dtype=D), 2.2
right.plot(pair, pair.log(), "o-", color=md.plots.PREDICTION, label="chord")
right.plot(
    x, x / mid - 1 + math.log(mid), color=md.plots.NOISE, linewidth=0.9, label="tangent at E w"
)
right.plot([mid, mid], [pair.log().mean(), math.log(mid)], "o:", color=md.plots.KNOWN, label="gap")
right.legend(loc="lower right")
left.set_ylabel("nats");
# %% tags=["nbval-check-output"]
lines = torch.logspace(-2, 2, 401, dtype=D)[:, None]
envelope = (lines * x - 1 - lines.log()).min(0).values
gap = math.log(mid) - float(pair.log().mean())
note("jensen_gap", gap, [0.55, 0.56])
assert (envelope - x.log() > -1e-12).all() and (envelope - x.log()).max() < 1e-3
print("check passed: the lowest line is the logarithm; the chord lies below it")

# %% [markdown]
# The vertical gap is {number}`02_elbo:jensen_gap|.2f` nats. It closes if the two values of $w$ are equal. Making the weights $w = p(x,z)/q(z\mid x)$ equal for all $z$ is what a variational autoencoder's encoder is trained for.
#
# ## A model with a known answer
#
# One latent number: $z\sim\Normal(0,1)$ and $x\mid z\sim\Normal(0.8\,z + 0.3,\ 0.5)$, seen at $x = 1.7$. Likelihood and posterior are Gaussians in closed form. We compute the bound in its second form ({eq}`eq:elbo`) for every mean and log-variance of $q$ on a grid. The chapter claims that bound and divergence to the posterior add up to $\log p(x)$ everywhere ({eq}`eq:elbo-gap`). Then we *train* the encoder of a linear model with two latent numbers and three observed ones, and watch the divergence. In one version the posterior's two entries are independent, in the other they are correlated, and our $q$ has independent entries. Before looking: which of the two gaps closes?

# %%
gain, shift, noise, seen = 0.8, 0.3, 0.5, 1.7
spread = gain**2 + noise
truth = -(math.log(2 * math.pi * spread) + (seen - shift) ** 2 / spread) / 2
post_mean, post_var = gain * (seen - shift) / spread, noise / spread
mean, log_var = torch.meshgrid(
    torch.linspace(-1, 3, 161, dtype=D), torch.linspace(-4, 2, 121, dtype=D), indexing="ij"
)
square = (seen - shift - gain * mean) ** 2 + gain**2 * log_var.exp()
reconstruction = -(math.log(2 * math.pi * noise) + square / noise) / 2
elbo = reconstruction - gaussian_kl(mean[..., None], log_var[..., None])
divergence = gaussian_kl(mean[..., None], log_var[..., None], post_mean, math.log(post_var))


def known_model(seed, w, noise=0.3):
    """A linear decoder with given weights, and a linear encoder that knows nothing yet."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        parts = classics.Encoder(3, 2, depth=0), classics.GaussianDecoder(2, 3, depth=0)
    vae = classics.VAE(*parts)
    vae.decoder.requires_grad_(False)
    vae.decoder.net[0].weight.copy_(w)
    vae.decoder.net[0].bias.zero_()
    vae.decoder.log_var.fill_(math.log(noise))
    return vae


@torch.no_grad()
def gap_to_posterior(vae, w, x, noise=0.3):
    """The mean of KL(q(z|x) || p(z|x)), both Gaussian and known."""
    q, cov = vae.encoder(x), torch.linalg.inv(torch.eye(2) + w.T @ w / noise)
    exact = td.MultivariateNormal(x @ w @ cov / noise, cov)
    ours = td.MultivariateNormal(q.mean, torch.diag_embed(q.log_var.exp()))
    return float(td.kl_divergence(ours, exact).mean())


def train_encoder(seed, w):
    vae = known_model(seed, w)
    x, gaps = vae.sample(2000, rng=seeded(5)), []
    gaps.append((0, gap_to_posterior(vae, w, x)))
    for step in md.train(lambda x, rng: -vae.elbo(x, rng=rng).total.mean(), vae.encoder,
                         md.data.batches(x, 128, seed), steps=known_steps, seed=seed,
                         lr=lambda k: 0.03 * (1 - k / known_steps)):  # fmt: skip
        if step.index in looks or step.index == known_steps:
            gaps.append((step.index, gap_to_posterior(vae, w, x)))
    return gaps


looks = {round(10 ** (k / 5)) for k in range(18)}
models = {
    "independent": torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.0, 0.8]]),
    "correlated": torch.tensor([[1.0, 0.8], [1.0, 0.6], [0.0, 0.5]]),
}
gaps = {name: [train_encoder(seed, w) for seed in seeds] for name, w in models.items()}
precision = torch.eye(2) + models["correlated"].T @ models["correlated"] / 0.3
rho = float(precision[0, 1] / (precision[0, 0] * precision[1, 1]).sqrt())
floor = -math.log(1 - rho**2) / 2

# %% mystnb={"image": {"alt": "Left: contour lines of the gap over mean and log-variance of q, closed curves around a marked point at mean 0.98 and log-variance minus 0.82. Right: gap against training steps on logarithmic axes; blue curves of the model with independent posterior fall to about a thousandth of a nat, orange curves of the correlated one settle on a dashed green line at 0.4."}, "figure": {"name": "fig-elbo-gap", "caption": "Left: how far the bound lies below the likelihood, for every Gaussian q of a one-number model; the gap is zero at the exact posterior only. Right: the gap while the encoder learns. It closes if q can be the posterior. If the posterior is correlated and q is not, it stops at the height that the formula gives."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(8, 2.8))
levels = [0.05, 0.2, 0.5, 1, 2, 4]
lines = left.contour(mean, log_var, truth - elbo, levels, colors="#4a4a4a", linewidths=1)
left.clabel(lines, fontsize=7, fmt="%g")
left.plot(post_mean, math.log(post_var), "*", color=md.plots.KNOWN, markersize=11)
left.set(xlabel="mean of q", ylabel="log-variance of q", title="log p(x) - ELBO, nats")
for (name, runs), color in zip(gaps.items(), (md.plots.DATA, md.plots.PREDICTION), strict=True):
    for i, run in enumerate(runs):
        steps, values = zip(*run[1:], strict=True)
        right.plot(steps, values, color=color, label=None if i else f"posterior {name}")
right.axhline(floor, color=md.plots.KNOWN, linestyle="--", label="floor of a diagonal q")
right.set(xscale="log", yscale="log", xlabel="training step", ylabel="gap, nats")
right.legend();
# %% tags=["nbval-check-output"]
last = {name: [run[-1][1] for run in runs] for name, runs in gaps.items()}
note("gap_independent", max(last["independent"]), [0.0, 0.01], [0.0, 0.2])
gap = sum(last["correlated"]) / len(seeds)
note("gap_correlated", gap, [floor, floor + 0.01], [floor, floor + 0.2])
note("gap_floor", floor, [0.39, 0.41])
note("posterior_correlation", -rho, [-0.76, -0.72])
assert (elbo + divergence - truth).abs().max() < 1e-12 and elbo.max() < truth
print("check passed: bound plus divergence is the likelihood, and one gap closes, one does not")

# %% [markdown]
# The sum of bound and divergence equals $\log p(x)$ on the whole grid, to rounding. With independent entries the worst of the seeds ends {number}`02_elbo:gap_independent|.4f` nats below the likelihood. With a posterior correlation of {number}`02_elbo:posterior_correlation|.2f` the gap ends at {number}`02_elbo:gap_correlated|.4f`, and no training can bring it below the {number}`02_elbo:gap_floor|.4f` of {eq}`eq:mean-field`. The encoder is not to blame there: the family of distributions is too small.
#
# ## Digits
#
# Now a model whose integral nobody knows. The pictures are the 8 x 8 digits of `scikit-learn`, with 17 levels of grey. We spread each level evenly over its cell ({eq}`eq:lattice`), so that a density makes sense, and give the decoder a Gaussian with one learned variance for all pixels. (A Bernoulli decoder would need black-and-white pictures and throw the greys away.) Eight latent numbers; {number}`02_elbo:seeds|.0f` seeds; 1,400 digits to train on, 397 held out.
#
# Expect the bound to rise on the training digits until the end. On the held-out ones? Make a guess. And guess how many nats the importance-weighted bound ({eq}`eq:iw-bound`) with {number}`02_elbo:most|.0f` draws gains over the ELBO.
#
# A last guess. The encoder is one network for all digits. Give each digit a Gaussian $q$ of its own instead, started at the encoder's answer and tuned on the ELBO while the decoder stays as it is. How much of the gap does that close? And does it still fall?

# %%
pixels, labels = md.data.digits8x8()
digits, held_out = pixels.flatten(1)[:1400], pixels.flatten(1)[1400:]
spread_out = [classics.dequantise(x, 0.125, rng=seeded(3, i)) for i, x in
              enumerate((digits[:397], held_out))]  # fmt: skip


def digit_vae(seed, latent, fixed=None):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        decoder = classics.GaussianDecoder(latent, 64, log_var=-4.0 if fixed is None else fixed)
        decoder.log_var.requires_grad_(fixed is None)
        return classics.VAE(classics.Encoder(64, latent), decoder)


def mean_elbo(vae, x, repeats=5):
    with torch.no_grad():
        return float(vae.elbo(x.repeat(repeats, 1), rng=seeded(9)).total.mean())


def train_digits(seed, latent, steps=digit_steps, fixed=None, early=None):
    vae, raw, curve = digit_vae(seed, latent, fixed), md.data.batches(digits, 128, seed), []
    run = md.train(lambda x, rng: -vae.elbo(x, rng=rng).total.mean(), vae,
                   lambda k: classics.dequantise(raw(k), 0.125, rng=seeded(seed, k)),
                   steps=steps, lr=lambda k: 2e-3 * (1 - k / steps), seed=seed)  # fmt: skip
    for step in tqdm(run, total=steps, desc=f"digits, seed {seed}"):
        if step.index % (steps // 20) == 0:
            curve.append((step.index, *(mean_elbo(vae, x) for x in spread_out)))
        if early is not None and step.index == 2 * steps // 5:
            early.append(copy.deepcopy(vae))
    return vae, curve


early = []  # each model as it was at two fifths of the training
trained = [train_digits(seed, 8, early=early) for seed in seeds]

# %%
bounds = torch.tensor(
    [[[float(vae.log_likelihood(x, k, rng=seeded(k)).mean()) for k in draws] for x in spread_out]
     for vae, _ in trained]
)  # fmt: skip


class OwnProposals(torch.nn.Module):
    """In place of an encoder: one Gaussian for each digit of a list, started at the encoder's."""

    def __init__(self, q):
        super().__init__()
        self.mean, self.log_var = (torch.nn.Parameter(part.clone()) for part in q)

    def forward(self, x):
        times = len(x) // len(self.mean)  # the list may come several times over
        return classics.vae.Gaussian(self.mean.repeat(times, 1), self.log_var.repeat(times, 1))


def tuned_elbo(vae, x, steps=digit_steps // 10):
    """The mean ELBO with q tuned for each digit; the decoder stays as it is."""
    with torch.no_grad():
        own = classics.VAE(OwnProposals(vae.encoder(x)), vae.decoder)
    for _ in md.train(lambda x, rng: -own.elbo(x, rng=rng).total.mean(), own.encoder,
                      lambda k: x.repeat(4, 1), steps=steps,
                      lr=lambda k: 0.03 * (1 - k / steps)):  # fmt: skip
        pass
    return mean_elbo(own, x, repeats=50)


tuned = torch.tensor([[tuned_elbo(vae, x) for x in spread_out] for vae, _ in trained])
tuned_early = torch.tensor([tuned_elbo(vae, spread_out[1]) for vae in early])

# %% mystnb={"image": {"alt": "Left: the bound against training steps; on training digits the blue curves rise to the end, on held-out digits the orange curves rise, turn and fall by a few nats. Right: the bound against the number of draws on a logarithmic axis; all curves rise with the number of draws, and flatten. Stars at one draw: on training digits a little below the upper end of the curves, on held-out digits above it."}, "figure": {"name": "fig-vae-bound", "caption": "Three seeds of a variational autoencoder on digits. Left: on held-out digits the bound peaks before half of the training and falls afterwards, while it rises on training digits. It is the encoder that overfits, see the text. Right: more importance weights give a tighter bound on the same trained models. A single draw from a q tuned for each digit (stars) gives a better bound on held-out digits than 500 draws from the encoder's."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.0))
colors = (md.plots.DATA, md.plots.PREDICTION)
for (_, curve), values, own in zip(trained, bounds, tuned, strict=True):
    steps, *pair = zip(*curve, strict=True)
    for y, line, star, color in zip(pair, values, own, colors, strict=True):
        left.plot(steps, y, color=color)
        right.plot(draws, line, "o-", color=color, markersize=4)
        right.plot(1, star, "*", color=color, markersize=9)
right.plot([], [], color=md.plots.DATA, label="training digits")
right.plot([], [], color=md.plots.PREDICTION, label="held-out digits")
right.plot([], [], "*", color="#4a4a4a", markersize=9, label="q tuned for each digit")
left.set(xlabel="training step", ylabel="ELBO, nats", ylim=(-40, None) if as_printed else None)
right.set(xscale="log", xlabel="importance weights K", ylabel="bound, nats")
right.legend(loc="center right");
# %% tags=["nbval-check-output"]
best = [max(row[2] for row in curve) for _, curve in trained]
fall = [max(row[2] for row in curve) - curve[-1][2] for _, curve in trained]
# the seeds spread over 1.6 nats, and another order of the sums may move each by as much
middle_of = {1: (6.7, -13.8), 5: (8.0, -10.7), 50: (8.6, -8.6), 500: (8.9, -7.5), 5000: (9, -7)}
for (i, name), k in itertools.product(enumerate(("train", "test")), draws):
    value, guess = bounds[:, i, draws.index(k)].mean(), middle_of.get(k, (0, 0))[i]
    note(f"bound_{name}_{k}", value, [guess - 2, guess + 2], [-300, 0])
note("most", draws[-1], [500, 5000], [20, 20])
note("bound_gain", (bounds[:, 1, -1] - bounds[:, 1, 0]).mean(), [5, 8], [0, 60])
note("bound_gain_train", (bounds[:, 0, -1] - bounds[:, 0, 0]).mean(), [1, 3], [0, 60])
note("bound_spread", bounds[:, 1, -1].max() - bounds[:, 1, -1].min(), [0, 3])
note("tuned_test", tuned[:, 1].mean(), [-7.5, -4], [-200, 0])
note("tuned_early", tuned_early.mean(), [-7.5, -4], [-2000, 0])
note("tuned_gain", (tuned[:, 1] - bounds[:, 1, 0]).mean(), [6, 10], [-5, 60])
note("tuned_gain_train", (tuned[:, 0] - bounds[:, 0, 0]).mean(), [1, 2.5], [-5, 60])
note("elbo_best", sum(best) / len(best), [-12.5, -9.5], [-300, 0])
note("elbo_fall", sum(fall) / len(fall), [1.5, 4], [0, 50])
assert (bounds.diff(dim=-1) > 0).all()
gain = numbers["bound_gain"]["value"]
assert not as_printed or min(fall) > 0
assert not as_printed or gain > 2 * numbers["bound_gain_train"]["value"]
assert not as_printed or gain > 2 * numbers["bound_spread"]["value"]
assert not as_printed or (tuned[:, 1] - tuned_early).abs().max() < 0.5
assert not as_printed or (tuned[:, 1] > bounds[:, 1, draws.index(500)]).all()
assert not as_printed or (tuned[:, 1] - tuned[:, 0] > bounds[:, 1, 0] - bounds[:, 0, 0] + 4).all()
print("check passed: more weights tighten the bound, and so does a q tuned for each digit")

# %% [markdown]
# On held-out digits the ELBO peaks at {number}`02_elbo:elbo_best|.1f` nats and ends {number}`02_elbo:elbo_fall|.1f` nats lower. At the end it is {number}`02_elbo:bound_test_1|.1f` held out against {number}`02_elbo:bound_train_1|.1f` on training digits. (These are log-densities; subtract $64\log 8 \approx 133$ nats for a bound on the probability of a picture.) With 5, 50 and 500 weights the held-out bound is {number}`02_elbo:bound_test_5|.1f`, {number}`02_elbo:bound_test_50|.1f` and {number}`02_elbo:bound_test_500|.1f`. So the ELBO's gap is at least the gain of {number}`02_elbo:bound_gain|.1f` nats. On training digits the same step gains only {number}`02_elbo:bound_gain_train|.1f`.
#
# Is that the encoder's fault, or can no Gaussian with independent entries do better? The tuned $q$ answers. On held-out digits the ELBO with a $q$ of its own for each digit is {number}`02_elbo:tuned_test|.1f`: {number}`02_elbo:tuned_gain|.1f` nats more than with the encoder's, and more than with 500 of the encoder's draws. On training digits the tuning gains {number}`02_elbo:tuned_gain_train|.1f`. So on digits that it has never seen the encoder proposes badly: its part of the gap, the amortisation gap of {ref}`sec-gaps`, is at least that large. (We did not expect one draw from a better proposal to beat 500.)
#
# And the fall of the held-out ELBO? Tuned in the same way, the models of two fifths of the training, near the peak, reach {number}`02_elbo:tuned_early|.1f` on held-out digits, and the final ones {number}`02_elbo:tuned_test|.1f`. The decoder has not become worse on new digits; it is the encoder that overfits. Two models compared by their ELBO alone are compared by their encoders as well.
#
# ## What it draws
#
# A second model with only two latent numbers, so that its whole latent space fits on a page. The grid of the right picture is even in *probability*: the 12 x 12 points are quantiles of the prior. Left: held-out digits, their reconstructions, and new samples of the model with eight latent numbers. Before looking: will the samples be sharp? A pixel's distribution given $z$ is a Gaussian, and we draw its mean.

# %%
flat, _ = train_digits(seeds[0], 2, steps=digit_steps // 2)
vae, pictures = trained[0][0], lambda x: x.reshape(-1, 1, 8, 8)
with torch.no_grad():
    q = vae.encoder(spread_out[1][:10])
    redrawn = vae.decoder.mean(reparameterise(q.mean, q.log_var, rng=seeded(1)))
    z = torch.randn(20, 8, generator=seeded(2))
    sheet = torch.cat([held_out[:10], redrawn, vae.decoder.mean(z), vae.sample(10, rng=seeded(2))])
    axis = td.Normal(0.0, 1.0).icdf((torch.arange(12) + 0.5) / 12)
    grid = torch.stack(torch.meshgrid(-axis, axis, indexing="ij")[::-1], -1).reshape(-1, 2)
    where = flat.encoder(held_out).mean

# %% mystnb={"image": {"alt": "Left: a sheet of fifty small digits in five rows: originals, slightly blurred reconstructions of the same digits, two rows of samples of which many are readable digits, and the first of these rows again with grain. Middle: held-out digits as coloured points in the plane of two latent numbers; classes form patches that partly overlap. Right: a 12 by 12 map of decoded digits that change smoothly from one shape to the next."}, "figure": {"name": "fig-vae-digits", "caption": "Left, from the top: held-out digits, their reconstructions, two rows of samples (means), the first of them again with the decoder's noise. Many samples can be read, all are soft, and some lie between two digits. Middle and right: two latent numbers arrange the digits on a map without having seen a label; between the patches lie shapes that are no digit."}}
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 2.9), width_ratios=[1.35, 1.2, 1.1])
md.plots.images(left, pictures(sheet), columns=10)
left.set_title("held out / redrawn / samples / with noise")
dots = middle.scatter(where[:, 0], where[:, 1], c=labels[1400:], cmap="tab10", s=7, linewidths=0)
middle.set(xlabel="$z_1$", ylabel="$z_2$", xlim=(-3, 3), ylim=(-3, 3), aspect="equal")
middle.set_title("2 latent numbers: where digits go")
bar = fig.colorbar(
    dots, ax=middle, shrink=0.9, label="digit", ticks=[0.45 + 0.9 * k for k in range(10)]
)
bar.set_ticklabels(range(10))
with torch.no_grad():
    md.plots.images(right, pictures(flat.decoder.mean(grid)), columns=12)
right.set_title("the map, decoded");

# %% tags=["nbval-check-output"]
sd = [float((vae.decoder.log_var / 2).exp().detach()) for vae, _ in trained]
note("digit_sd", sum(sd) / len(sd), [0.14, 0.2], [0.12, 0.3])
near = torch.cdist(vae.decoder.mean(z).detach(), held_out).min(1).values.mean()
floor_near = torch.cdist(digits, held_out).min(1).values.mean()
noise_near = torch.cdist(torch.randn(100, 64, generator=seeded(4)), held_out).min(1).values.mean()
note("near", near, [2.4, 3.5], [1.8, 4.5])
note("near_floor", floor_near, [2.4, 2.55])
note("near_noise", noise_near, [8.5, 10])
assert near < noise_near / 2
print("check passed: samples are far nearer to digits than noise is")

# %% [markdown]
# The mean distance of a sampled picture to its nearest held-out digit is {number}`02_elbo:near|.2f`; a true digit has {number}`02_elbo:near_floor|.2f` and random pixels {number}`02_elbo:near_noise|.1f`. The decoder's noise has learned a standard deviation of {number}`02_elbo:digit_sd|.2f`, on a scale where black is -1 and white is 1: what the eight numbers cannot say is left to independent grain. It is in the last row of the sheet, and it is part of the model, although pictures in papers leave it out.
#
# ## A latent that goes unused
#
# Eight Gaussians on a ring in the plane, with variance 1 in each direction. The decoder's variance is learned. Start it at $e^{-4}$, or start it at 1, the variance of the data. Everything else is the same. A third version starts at 1 and lets the weight of the divergence grow from 0 to 1 over the first half of the training. Before looking: which of the three curves of the divergence do you expect to lie at 0? Should a good optimiser not find its way from any start?


# %%
def ring_vae(seed, log_var):
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        decoder = classics.GaussianDecoder(2, 2, depth=3, log_var=log_var)
        return classics.VAE(classics.Encoder(2, 2, depth=3), decoder)


@torch.no_grad()
def ring_kl(vae):
    return float(vae.elbo(ring[:1000], rng=seeded(9)).kl.mean())


def train_ring(seed, log_var, warm_up):
    vae, clock, curve = ring_vae(seed, log_var), itertools.count(), []
    weight = lambda: min(1.0, next(clock) / (ring_steps / 2)) if warm_up else 1.0  # noqa: E731
    run = md.train(lambda x, rng: -vae.elbo(x, beta=weight(), rng=rng).total.mean(), vae,
                   md.data.batches(ring, 128, seed), steps=ring_steps, seed=seed,
                   lr=lambda k: 2e-3 * (1 - k / ring_steps))  # fmt: skip
    for step in tqdm(run, total=ring_steps, desc=f"ring, seed {seed}"):
        if step.index % (ring_steps // 50) == 0:
            curve.append((step.index, ring_kl(vae)))
    return vae, curve


ring = md.data.eight_gaussians(20_000, rng=seeded(0))
starts = {"start $e^{-4}$": (-4, False), "start 1": (0, False), "start 1, KL grows": (0, True)}
rings = {name: [train_ring(seed, *how) for seed in seeds] for name, how in starts.items()}

# %% mystnb={"image": {"alt": "Left: divergence against training step; blue curves settle at three nats, green curves of the growing weight at one and a half, orange curves of the start at 1 lie at zero throughout. Right: two scatter plots of samples; from the narrow start eight clusters on a ring with bridges between them, from the wide start one round cloud."}, "figure": {"name": "fig-unused-latent", "caption": "Posterior collapse. Started with a decoder as wide as the data, the encoder's distribution stays equal to the prior, the divergence is zero, and the samples are one round cloud (right). Started with a narrow decoder the same network uses its latent numbers (middle)."}}
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(9.5, 2.7), width_ratios=[1.5, 1, 1])
colors = (md.plots.DATA, md.plots.PREDICTION, md.plots.KNOWN)
for (name, runs), color in zip(rings.items(), colors, strict=True):
    for i, (_, curve) in enumerate(runs):
        left.plot(*zip(*curve, strict=True), color=color, label=None if i else name)
left.set(xlabel="training step", ylabel="KL(q || prior), nats")
left.legend()
shown = {"start $e^{-4}$": middle, "start 1": right}
kls = {name: [curve[-1][1] for _, curve in runs] for name, runs in rings.items()}
for name, ax in shown.items():
    lowest = min(range(len(seeds)), key=lambda i: kls[name][i])
    points = rings[name][lowest][0].sample(600, rng=seeded(1))
    md.plots.scatter(ax, points, color=md.plots.PREDICTION, reach=3)
    ax.set(title=f"samples, {name}", xlabel="$x_1$", ylabel="$x_2$")
fig.get_layout_engine().set(wspace=0.05)

# %% tags=["nbval-check-output"]
scores = {}
for key, name in zip(("narrow", "wide", "warm"), starts, strict=True):
    runs = rings[name]
    scores[key] = [float(v.log_likelihood(ring[:1000], 50, rng=seeded(1)).mean()) for v, _ in runs]
    idle = sum(kl < 0.1 for kl in kls[name])
    note(f"{key}_collapsed", idle, {"narrow": [0, 0], "wide": [1, 5], "warm": [0, 1]}[key], [0, 5])
note("narrow_score_lowest", min(scores["narrow"]), [-1.4, -0.8], [-3.2, -0.5])
note("wide_score_lowest", min(scores["wide"]), [-2.9, -2.8], [-3.2, -0.5])
note("warm_score_highest", max(scores["warm"]), [-2.7, -1.5], [-3.2, -0.5])
note("ring_eigenvalue", torch.linalg.eigvalsh(torch.cov(ring.T))[-1], [1.01, 1.03])
assert min(kls["start 1"]) < 0.1
assert min(scores["narrow"]) > min(scores["wide"]) or not as_printed
print("check passed: the start decides whether the latent is used")

# %% [markdown]
# With the narrow start {number}`02_elbo:narrow_collapsed|.0f` of {number}`02_elbo:seeds|.0f` seeds collapse; with the wide start {number}`02_elbo:wide_collapsed|.0f` do, and the lowest log-likelihood among them is {number}`02_elbo:wide_score_lowest|.2f` nats, which is that of one round Gaussian. The narrow starts reach {number}`02_elbo:narrow_score_lowest|.2f` or more. Nothing was wrong with the code: by {eq}`eq:collapse` a linear decoder gains from a latent only in directions whose variance exceeds the decoder's, and here the largest variance is {number}`02_elbo:ring_eigenvalue|.2f` against a start of 1, so that next to nothing is to be gained (0.0001 nats in each direction, by the formula above {eq}`eq:collapse`). Any use of the latent costs divergence at once and pays later.
#
# Letting the weight of the divergence grow is the remedy of {cite:t}`bowman2016`. It works in so far as {number}`02_elbo:warm_collapsed|.0f` seeds collapse. But in the same number of steps it does not reach the same place: the best of its seeds ends at {number}`02_elbo:warm_score_highest|.2f` nats, far below the narrow start. On this problem a good start is worth more than this schedule.
#
# The same threshold explains a common slip: to add the *mean* of the squared errors over pixels to the *sum* of the divergence over latents. By {eq}`eq:mse-decoder` that is the bound of a decoder with the fixed variance $64/2 = 32$. The digits' variance in their best direction is far below that. Guess what such a model does with its eight numbers.

# %%
slipped = [train_digits(seed, 8, steps=digit_steps // 5, fixed=math.log(32.0)) for seed in seeds]

# %% tags=["nbval-check-output"]
with torch.no_grad():
    used = [float(vae.elbo(held_out, rng=seeded(9)).kl.mean()) for vae, _ in trained]
    idle = [float(vae.elbo(held_out, rng=seeded(9)).kl.mean()) for vae, _ in slipped]
note("digit_eigenvalue", torch.linalg.eigvalsh(torch.cov(digits.T))[-1], [2.7, 2.9])
note("digit_kl", sum(used) / len(used), [15, 35], [0.1, 60])
note("slip_kl", max(idle), [0.0, 0.05], [0.0, 5.0])
assert max(idle) < min(used)
with torch.no_grad():
    redrawn = torch.stack([vae.decoder.mean(vae.encoder(held_out).mean) for vae, _ in slipped])
assert not as_printed or (redrawn - digits.mean(0)).abs().max() < 0.1
print("check passed: a mean in the place of a sum switches the latent off")

# %% [markdown]
# The variance in the digits' best direction is {number}`02_elbo:digit_eigenvalue|.1f`, and 32 is more. The slipped model's divergence ends at {number}`02_elbo:slip_kl|.3f` nats, the honest one's at {number}`02_elbo:digit_kl|.1f`. Its reconstructions are all the same picture, the mean digit.
#
# ## Two estimates of one gradient
#
# The encoder is trained through a draw. There are two ways to get a gradient of $\E_q f(z)$ in the mean of $q$ from a draw: through the score of $q$ ({eq}`eq:score-function`), or along the path $z = \mu + \sigma\varepsilon$ ({eq}`eq:pathwise`). Both have the right mean. For $f(z) = z^2$ the variances are known ({eq}`eq:gradient-variances`). Expect the score's variance to grow where $q$ is narrow: it divides by $\sigma^2$. Then we ask the trained model on digits.


# %%
def two_estimates(mean, sd, n, rng):
    """Draws of both gradients of E z^2 in the mean: by the score, along the path."""
    z = reparameterise(torch.full((n,), mean, dtype=D), torch.tensor(2 * math.log(sd)), rng=rng)
    return z**2 * (z - mean) / sd**2, 2 * z


def digit_estimates(vae, x, n, rng):
    """The same for the reconstruction of one digit, in all latent means; also with a baseline."""
    q = classics.vae.Gaussian(*(part.detach().repeat(n, 1) for part in vae.encoder(x[None])))
    mean = q.mean.requires_grad_()
    z = reparameterise(mean, q.log_var, rng=rng)
    f = vae.decoder.log_prob(x.repeat(n, 1), z)
    (path,) = torch.autograd.grad(f.sum(), mean)
    score = ((z - mean) / q.log_var.exp()).detach()
    f = f.detach()[:, None]
    return [float(g.var(0).mean()) for g in (f * score, (f - f.mean()) * score, path)]


widths = torch.logspace(-1.5, 0.5, 9, dtype=D)
measured = [
    [float(g.var()) for g in two_estimates(1.0, float(s), 20_000, seeded(4))] for s in widths
]
by_hand = 1 / widths**2 + 14 + 15 * widths**2, 4 * widths**2
score, path = two_estimates(1.0, 0.5, 20_000, seeded(5))
each = torch.tensor([[digit_estimates(vae, x, 1000, seeded(6)) for x in spread_out[1][: 30 if as_printed else 5]]
                     for vae, _ in trained])  # fmt: skip

# %% mystnb={"image": {"alt": "Left: variance of the two gradient estimates against the standard deviation of q on logarithmic axes; dots of measurements lie on two lines; the score's line is never below 20 and rises for narrow q, the path's falls with the square of the standard deviation. Right: histograms of both estimates around the true gradient 2; the score's is wide and skewed, the path's narrow."}, "figure": {"name": "fig-gradients", "caption": "The gradient of the mean of a square, estimated from one draw. Left: for a narrow q the variance along the path vanishes and that of the score explodes. Dots are measured, lines are the formulas. Right: twenty thousand estimates at a standard deviation of one half; both have the mean 2, marked in green."}}
fig, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.0))
colors = (md.plots.NOISE, md.plots.PREDICTION)
for line, dots, color, name in zip(by_hand, zip(*measured, strict=True), colors,
                                   ("score function", "along the path"), strict=True):  # fmt: skip
    left.plot(widths, line, color=color, label=name)
    left.plot(widths, dots, "o", color=color, markersize=4)
left.set(
    xscale="log", yscale="log", xlabel="standard deviation of q", ylabel="variance of the estimate"
)
left.legend()
for draws_, color in zip((score, path), colors, strict=True):
    right.hist(
        draws_, bins=torch.linspace(-15, 25, 121).tolist(), color=color, density=True, alpha=0.7
    )
right.axvline(2, color=md.plots.KNOWN, linestyle="--")
right.set(xlabel="one estimate of the gradient", ylabel="density", xlim=(-4, 16));
# %% tags=["nbval-check-output"]
ratio = (each[..., 0] / each[..., 2]).median(1).values
centred = (each[..., 1] / each[..., 2]).median(1).values
note("square_ratio_half", score.var() / path.var(), [20, 24])
note("digit_ratio", ratio.mean(), [200, 1200], [1, 1e6])
note("digit_ratio_centred", centred.mean(), [8, 50], [0.1, 1e5])
for line, dots in zip(by_hand, zip(*measured, strict=True), strict=True):
    assert (torch.tensor(dots, dtype=D) / line - 1).abs().max() < 0.15
assert abs(float(score.mean()) - 2) < 4 * float((score.var() / 20_000).sqrt())
assert ratio.mean() > centred.mean() > (1 if as_printed else 0)
print("check passed: same mean, and very different variances")

# %% [markdown]
# At $\mu = 1$ and $\sigma = \tfrac12$ the score's estimate has {number}`02_elbo:square_ratio_half|.0f` times the variance of the other, so it takes that many times the draws for the same error. For the reconstruction term of the trained digit model, half of the digits have a ratio above {number}`02_elbo:digit_ratio|.0f`; with the mean of $f$ subtracted as a baseline it is still {number}`02_elbo:digit_ratio_centred|.0f`. The path needs $f$ to be differentiable in $z$. Where it is not, for discrete $z$ say, the score is what remains.
#
# ## Exercises
#
# 1. Give the linear model of {numref}`fig-elbo-gap` a decoder variance of 0.03. Does the floor of the correlated model rise or fall? Compute it before you run it.
# 2. Train the digit model with 2, 4, 8, 16 and 32 latent numbers. How many does it use? Count the entries whose divergence, averaged over digits, exceeds 0.1 nats.
# 3. Train a fourth version of the ring with the importance-weighted bound of ten draws as the objective: a `logsumexp` over `vae.log_weight`. Does it collapse?
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
