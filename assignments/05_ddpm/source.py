# %% [markdown]
# # Assignment 05: DDPM by hand, on a swiss roll
#
# You write the whole of DDPM in five short functions: the noise table, the jump to any step, the
# posterior of a step, the training loss, the sampler. Then a small network trains with *your* loss
# and *your* sampler draws a swiss roll, in under a minute on a laptop's CPU.
#
# You need chapter 5 (DDPM) and PyTorch. Plan three to four hours.
#
# | task | what you write | checks here | hidden checks | points |
# |---|---|---:|---:|---:|
# | (a) | `alpha_bars` | 1 | 1 | 2 |
# | (b) | `jump` | 2 | 1 | 3 |
# | (c) | `posterior` | 2 | 1 | 3 |
# | (d) | `simple_loss` | 3 | 2 | 5 |
# | (e) | `sample` | 5 | 2 | 7 |
# | (f) | three answers in words | | | 5 |
# | | | 13 | 7 | 25 |
#
# **Conventions.** Steps are $i = 1, \dots, T$, and entry `i - 1` of a table belongs to step $i$: `betas[0]`
# is $\beta_1$. Data have shape `(B, ...)`, most of the time `(B, 2)`. `step` holds one whole number a
# sample, shape `(B,)`. A network is called `net(x, t)` with $t = i/T$, shape `(B,)`, and
# returns its estimate of the noise, of the shape of `x`. Every random number comes from the `rng` that
# you are given (`generator=rng`), so that a run can be repeated.
#
# The checks tell you the symptom, not the line. They accept any correct way of writing a function.
# In this assignment you write the formulas yourself: do not call `md.diffuse`, `md.posterior`,
# `md.denoising_loss` or `md.ancestral`.

# %%
import checks
import torch

import minidiff as md

# %% tags=["instructor"]
import hidden_checks

# %% [markdown] tags=["instructor"]
# > **Teaching notes.** This is the instructor's version: solutions, hidden checks, published answers.
# > The hidden checks are hidden only from the stub. Four slips to expect: a forgotten root, $\alpha$ for
# > $\bar\alpha$, entry `i` for step `i`, and noise in the last step. The public checks name each of them, so that
# > students spend their time on (d) and (e).
# > Let students predict in words what a mistake would do to the samples *before* they run the check.

# %% [markdown]
# ## (a) How much of the data is left?
#
# A step keeps the share $\alpha_i = 1 - \beta_i$ of the variance. After $i$ steps the share that is left is the
# product
#
# $$\bar\alpha_i = \prod_{j \le i} (1 - \beta_j).$$

# %%
def alpha_bars(betas):
    """Return alpha-bar of the steps 1..T, shape (T,), from betas of shape (T,)."""
    ### BEGIN SOLUTION: the running product of 1 - beta, in one line
    return torch.cumprod(1 - betas, 0)
    ### END SOLUTION


# %%
checks.run(alpha_bars)

# %% tags=["instructor"]
hidden_checks.run(alpha_bars)

# %% [markdown] tags=["instructor"]
# > **Teaching note.** Ask for $\bar\alpha_T$ of `torch.linspace(1e-4, 0.02, 100)`: it is 0.36, so with Ho et al.'s
# > two numbers and only 100 steps a third of the data's variance is still there at the end. `md.linear_betas`
# > scales with $T$ for this reason.

# %% [markdown]
# ## (b) The jump
#
# From $x_0$ to step $i$ in one go:
#
# $$x_i = \sqrt{\bar\alpha_i}\,x_0 + \sqrt{1 - \bar\alpha_i}\,\epsilon .$$
#
# Every sample of the batch has its own step. A factor of shape `(B,)` does not multiply `(B, 2)` row by row:
# give it as many axes as `x0` has, also when `x0` is a batch of images.

# %%
def jump(x0, step, bars, eps):
    """Return x at the given steps.

    x0 and eps have shape (B, ...); step holds whole numbers 1..T, shape (B,); bars has shape (T,).
    """
    ### BEGIN SOLUTION: pick alpha-bar of each sample's step, give it the rank of x0, and mix
    bar = bars[step - 1].reshape(-1, *[1] * (x0.ndim - 1))
    return bar.sqrt() * x0 + (1 - bar).sqrt() * eps
    ### END SOLUTION


# %%
checks.run(jump)

# %% tags=["instructor"]
hidden_checks.run(jump)

# %% [markdown]
# ## (c) The posterior of a step
#
# If $x_0$ were known, the step back from $i$ to $i - 1$ would be a Gaussian with
#
# $$
# \tilde\mu = \frac{\sqrt{\alpha_i}\,(1-\bar\alpha_{i-1})}{1-\bar\alpha_i}\,x_i
#   + \frac{\sqrt{\bar\alpha_{i-1}}\,\beta_i}{1-\bar\alpha_i}\,x_0,
# \qquad
# \tilde\beta_i = \frac{1-\bar\alpha_{i-1}}{1-\bar\alpha_i}\,\beta_i .
# $$
#
# Nothing was done before step 1, so $\bar\alpha_0 = 1$. The table has no entry for it.

# %%
def posterior(x_t, x0, step, betas, bars):
    """Return (mean, var) of q(x_{i-1} | x_i, x_0) at the given steps.

    x_t and x0 have shape (B, ...), step has shape (B,). The mean has the shape of x_t; the variance
    broadcasts to it.
    """
    ### BEGIN SOLUTION: alpha-bar of the step before needs care at step 1
    before = torch.cat([torch.ones_like(bars[:1]), bars[:-1]])
    beta, bar, before = (
        table[step - 1].reshape(-1, *[1] * (x_t.ndim - 1)) for table in (betas, bars, before)
    )
    keep = (1 - beta).sqrt() * (1 - before) / (1 - bar)
    add = before.sqrt() * beta / (1 - bar)
    return keep * x_t + add * x0, (1 - before) / (1 - bar) * beta
    ### END SOLUTION


# %%
checks.run(posterior)

# %% tags=["instructor"]
hidden_checks.run(posterior)

# %% [markdown] tags=["instructor"]
# > **Teaching note.** `bars[step - 2]` is right at every step but the first, where the index -1 reads the
# > *last* entry and nothing complains. The public checks stay away from step 1 so that the hidden one can
# > find this; it is worth five minutes in class.

# %% [markdown]
# ## (d) The training loss
#
# For each sample of the batch draw a step $i$ uniformly from $1, \dots, T$ and noise $\epsilon$, jump, ask the network at
# $t = i/T$, and compare its answer with the noise:
#
# $$L_\mathrm{simple} = \mathrm{E}\,\bigl(\epsilon - \mathrm{net}(x_i, i/T)\bigr)^2,$$
#
# averaged over all entries of the batch.

# %%
def simple_loss(net, x0, bars, rng):
    """Return the loss of a network on a batch x0 of shape (B, ...), as a tensor without axes."""
    ### BEGIN SOLUTION: steps and noise from rng; then jump, net, mean square
    T = len(bars)
    step = torch.randint(1, T + 1, (len(x0),), generator=rng)
    eps = torch.randn(x0.shape, generator=rng)
    return (eps - net(jump(x0, step, bars, eps), step / T)).square().mean()
    ### END SOLUTION


# %%
checks.run(simple_loss)

# %% tags=["instructor"]
hidden_checks.run(simple_loss)

# %% [markdown]
# ## (e) The sampler
#
# Algorithm 2 of Ho, Jain and Abbeel (2020). Start from $x_T \sim \mathcal{N}(0, I)$; for $i = T, \dots, 1$
#
# $$
# x_{i-1} = \frac{1}{\sqrt{\alpha_i}}\Bigl(x_i - \frac{\beta_i}{\sqrt{1-\bar\alpha_i}}\,\mathrm{net}(x_i, i/T)\Bigr)
#   + \sqrt{v_i}\;z,
# \qquad z \sim \mathcal{N}(0, I),
# $$
#
# and $z = 0$ in the last step, $i = 1$. The variances $v_i$ are an argument: task (f) tries two choices.

# %%
@torch.no_grad()
def sample(net, shape, betas, bars, variances, rng):
    """Return samples of the given shape (B, ...); betas, bars and variances have shape (T,)."""
    ### BEGIN SOLUTION: start from noise; for i = T..1 move to the mean, and add noise unless i is 1
    T = len(betas)
    x = torch.randn(shape, generator=rng)
    for i in range(T, 0, -1):
        beta, bar = betas[i - 1], bars[i - 1]
        eps = net(x, torch.full((len(x),), i / T))
        x = (x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
        if i > 1:
            x = x + variances[i - 1].sqrt() * torch.randn(shape, generator=rng)
    return x
    ### END SOLUTION


# %%
checks.run(sample)

# %% tags=["instructor"]
hidden_checks.run(sample)

# %% [markdown]
# ## All together
#
# Train on the swiss roll with your loss, draw with your sampler. Before you run it: which parts of the
# roll do you expect to be the hardest? Two numbers stand below the picture. The sliced Wasserstein distance
# to fresh data looks at the cloud as a whole; two fresh sets of this size lie 0.04 to 0.07 apart. The
# mean distance of a sample to its nearest point of the training data looks at the width of the band.

# %%
# experiment: not graded
import matplotlib.pyplot as plt

md.plots.use_style()
T = 100
betas = md.linear_betas(T).float()
bars = alpha_bars(betas)
data = md.data.swiss_roll(10_000, rng=torch.Generator().manual_seed(0))

torch.manual_seed(0)  # the network's first weights
net = md.nets.MLP(2, width=64, depth=2)
average = md.EMA(net, decay=0.995)
training = md.train(
    lambda x0, rng: simple_loss(net, x0, bars, rng),
    net,
    md.data.batches(data, 256),
    steps=2000,
    lr=lambda k: 4e-3 * (1 - k / 2000),
    ema=average,
)
losses = [step.loss for step in training]
drawn = sample(average.model, (2000, 2), betas, bars, betas, torch.Generator().manual_seed(1))

fresh = md.data.swiss_roll(2000, rng=torch.Generator().manual_seed(2))
distance = md.metrics.sliced_wasserstein(drawn, fresh, rng=torch.Generator().manual_seed(3))
near_drawn, near_fresh = (torch.cdist(x, data).amin(1).mean() for x in (drawn, fresh))
figure, axes = plt.subplots(1, 3, figsize=(9, 3))
md.plots.loss_curve(axes[0], losses)
md.plots.scatter(axes[1], fresh, reach=2.5).set_title("data")
md.plots.scatter(axes[2], drawn, reach=2.5, color=md.plots.PREDICTION).set_title("your samples")
plt.show()
late = sum(losses[-500:]) / 500
print(f"loss of the last 500 steps {late:.3f}, distance to the data {distance:.3f}")
print(f"mean distance to the nearest data: samples {near_drawn:.3f}, fresh data {near_fresh:.3f}")

# %% tags=["instructor"]
# experiment: not graded
assert 0.2 < late < 0.3, "the loss of a correct solution"
assert distance < 0.1, "the distance of a correct solution"
assert 0.015 < near_drawn < 0.045 and near_fresh < 0.012

# %% [markdown] tags=["instructor"]
# > **Teaching note.** With a correct solution the loss ends near 0.23 and does not go to zero: much of the noise
# > cannot be guessed. The cloud as a whole is as near to the data as a fresh set is (0.03 to 0.054 over four seeds),
# > but a sample lies 0.026 from its nearest data point and fresh data 0.008: the band is too wide.
# > Ask which of the two numbers they would have reported. A wider net and longer training narrow the band.

# %% [markdown]
# ## (f) Three questions
#
# The cell below needs no training. The data are Gaussian with standard deviation 0.5, whose best network is
# known exactly, so all that is left is the sampler. It prints the standard deviation of what your sampler
# draws with two choices of the variance: $v_i = \beta_i$, and $v_i = \tilde\beta_i$ of task (c).

# %%
# experiment: not graded
def drawn_std(T, choice, n=20_000):
    """Return the standard deviation that the sampler reaches on Gaussian data of 0.5."""
    table = md.BetaTable(md.cosine_betas(T))
    betas, bars = table.betas.float(), table.alpha_bars.float()
    denoise = md.Gaussian(torch.zeros(2), torch.tensor(0.5)).denoiser(table)

    def exact(x, t):
        return md.eps_from_x0(denoise(x, t), x, table(t))

    zeros = torch.zeros(T, 2)
    tilde = posterior(zeros, zeros, torch.arange(1, T + 1), betas, bars)[1].flatten()
    variances = {"beta": betas, "beta tilde": tilde}[choice]
    rng = torch.Generator().manual_seed(0)
    return float(sample(exact, (n, 2), betas, bars, variances, rng).std())


counts, choices = (10, 50, 250), ("beta", "beta tilde")
spread = {(T, choice): drawn_std(T, choice) for T in counts for choice in choices}
for T in counts:
    wide, narrow = (spread[T, choice] for choice in choices)
    print(f"T = {T:3d}: beta {wide:.3f}, beta tilde {narrow:.3f}, data 0.500")

# %% [markdown]
# **(f1)** (2 points) For which data would $\beta_i$ be the right variance of a reverse step, and for which $\tilde\beta_i$?
# At which steps do the two differ most? What does the table above say about when the choice matters?
#
# <!-- BEGIN ANSWER -->
# $\beta_i$ is right if the data are themselves $\mathcal{N}(0, I)$: then every $x_i$ is $\mathcal{N}(0, I)$, the
# chain looks the same in both directions, and the reverse step has the variance of the forward step. $\tilde\beta_i$ is
# right if the data are one known point: then $x_0$ is known, and the reverse step *is* the posterior of
# task (c). Other data lie between: their reverse step has the variance $\tilde\beta_i$ plus what is not known about
# $x_0$. The ratio $\tilde\beta_i/\beta_i = (1-\bar\alpha_{i-1})/(1-\bar\alpha_i)$ is 0 at step 1 and close to 1 where the picture
# is already noise, so the two differ most at the first few steps (the last ones of the sampler). In the table
# $\beta$ makes the samples too wide and $\tilde\beta$ too narrow: 0.52 and 0.39 with 10 steps, where the data have 0.50.
# With 250 steps both are within 0.015. With few steps the choice matters, with many it does not.
# <!-- END ANSWER -->

# %% [markdown]
# **(f2)** (1 point) Why is no noise added in the last step? What would you see in the samples of the swiss roll
# if you added $\sqrt{\beta_1}\,z$ there, with the table of 100 steps used above?
#
# <!-- BEGIN ANSWER -->
# The last step lands on data. Its mean is the network's best guess of $x_0$, and $\tilde\beta_1 = 0$ says that
# given $x_0$ there is nothing left to draw. Noise added here is never taken away by a later step. The roll
# would be blurred: $\beta_1 = 0.1/100 = 0.001$, so the added standard deviation is 0.03, beside the 0.05 of the
# roll's own width: the band would be a sixth wider. On images it is a visible grain.
# <!-- END ANSWER -->

# %% [markdown]
# **(f3)** (2 points) The sampler's mean looks unlike $\tilde\mu$ of task (c). Solve the jump for $x_0$, insert it for
# $x_0$ in $\tilde\mu$, and show that the mean of algorithm 2 comes out.
#
# <!-- BEGIN ANSWER -->
# The jump gives $x_0 = (x_i - \sqrt{1-\bar\alpha_i}\,\epsilon)/\sqrt{\bar\alpha_i}$. With
# $\sqrt{\bar\alpha_{i-1}}/\sqrt{\bar\alpha_i} = 1/\sqrt{\alpha_i}$ the factor of $x_i$ in $\tilde\mu$ becomes
#
# $$
# \frac{\sqrt{\alpha_i}(1-\bar\alpha_{i-1})}{1-\bar\alpha_i} + \frac{\beta_i}{(1-\bar\alpha_i)\sqrt{\alpha_i}}
# = \frac{\alpha_i - \bar\alpha_i + 1 - \alpha_i}{(1-\bar\alpha_i)\sqrt{\alpha_i}} = \frac{1}{\sqrt{\alpha_i}},
# $$
#
# because $\alpha_i\bar\alpha_{i-1} = \bar\alpha_i$ and $\beta_i = 1 - \alpha_i$. The factor of $\epsilon$ is
#
# $$
# -\frac{\sqrt{\bar\alpha_{i-1}}\,\beta_i}{1-\bar\alpha_i}\cdot\frac{\sqrt{1-\bar\alpha_i}}{\sqrt{\bar\alpha_i}}
# = -\frac{1}{\sqrt{\alpha_i}}\cdot\frac{\beta_i}{\sqrt{1-\bar\alpha_i}} .
# $$
#
# Together this is the mean of algorithm 2.
# <!-- END ANSWER -->

# %% tags=["instructor"]
# experiment: not graded
# The numbers that the answers quote.
assert abs(spread[10, "beta"] - 0.52) < 0.007 and abs(spread[10, "beta tilde"] - 0.39) < 0.007
assert all(abs(spread[250, choice] - 0.5) < 0.015 for choice in choices)
assert abs(float(md.linear_betas(100)[0]) - 0.001) < 1e-9
assert abs((0.05**2 + 0.001) ** 0.5 / 0.05 - 7 / 6) < 0.03

# (f3) in numbers: the two means agree at every step
table = md.BetaTable(md.linear_betas(50))
x, eps = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
i = torch.arange(1, 51)
beta, bar = table.betas[:, None], table.alpha_bars[:, None]
x0 = (x - (1 - bar).sqrt() * eps) / bar.sqrt()
mean = (x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
assert torch.allclose(posterior(x, x0, i, table.betas, table.alpha_bars)[0], mean, atol=1e-9)

# %% [markdown] tags=["instructor"]
# > **Teaching note, rubric of (f).** f1: half a point each for the two kinds of data, the first steps, and "few
# > steps" (any measured number will do). f2: "never taken away again" or "$\tilde\beta_1 = 0$", with a number. f3: one
# > point for the insertion, one for $\alpha_i\bar\alpha_{i-1} = \bar\alpha_i$ used where it is needed.
