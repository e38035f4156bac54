"""Hidden checks of the assignment 05_ddpm: the subtle mistakes, and the whole against an oracle.

They are hidden only from the student's notebook: the course publishes its solutions, and this file
with them. The grader runs them after the public ones.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from checks import (
    BARS,
    BATCH,
    BETAS,
    SIX,
    VARIANCES,
    Check,
    T,
    Wrong,
    bayes,
    check,
    compare,
    must_be_tensor,
    near,
    step_means,
    watch_loss,
    watch_sample,
)
from checks import run as run_checks

import minidiff as md

HIDDEN: list[Check] = []


def run(function: Callable[..., Any]) -> None:
    """Run every hidden check of a function, by its name."""
    run_checks(function, HIDDEN)


class Untouched:
    """A context that fails if torch's global random state changes inside."""

    def __enter__(self) -> None:
        self.before = torch.get_rng_state()

    def __exit__(self, kind: object, *_: object) -> None:
        after = torch.get_rng_state()
        torch.set_rng_state(self.before)
        if kind is None and not torch.equal(self.before, after):
            raise Wrong(
                "the global random state changed: draw from rng (generator=rng), and never call "
                "torch.manual_seed inside a function"
            )


# ---- (a), (b), (c): shapes, types, ends of the table ---------------------------------------------


@check("alpha_bars", 1, HIDDEN)
def alpha_bars_of_other_tables(alpha_bars: Callable[..., Any]) -> None:
    betas = BETAS.float()
    kept = betas.clone()
    got = must_be_tensor(alpha_bars(betas), (T,), "what alpha_bars returns")
    if not torch.equal(betas, kept):
        raise Wrong("alpha_bars changed its argument: the caller's betas are not yours to change")
    if got.dtype != torch.float32:
        raise Wrong(f"float32 betas gave {got.dtype}: keep the dtype")
    one = must_be_tensor(alpha_bars(torch.tensor([0.3])), (1,), "alpha_bars of one step")
    compare(one, torch.tensor([0.7]), f"alpha-bar of the table [0.3] is {float(one[0]):.2f}", {})
    table = md.BetaTable(md.cosine_betas(50))
    got = alpha_bars(table.betas.clone())
    if not torch.allclose(got, table.alpha_bars, rtol=1e-9, atol=0):
        raise Wrong("on the cosine table of 50 steps the result is not that of md.BetaTable")


@check("jump", 1, HIDDEN)
def jump_of_images(jump: Callable[..., Any]) -> None:
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, T, 3, 4, 4, generator=rng)
    steps = torch.randperm(T, generator=rng) + 1  # as many samples as steps: a trap for broadcasting
    kept = x0.clone(), eps.clone(), steps.clone()
    x_t = must_be_tensor(jump(x0, steps, BARS.float(), eps), tuple(x0.shape), "x_t of images")
    if not all(torch.equal(a, b) for a, b in zip((x0, eps, steps), kept, strict=True)):
        raise Wrong("jump changed one of its arguments")
    if x_t.dtype != torch.float32:
        raise Wrong(f"float32 data gave {x_t.dtype}: keep the dtype")
    at = md.BetaTable(BETAS)(steps.double() / T)
    if not torch.allclose(x_t, md.diffuse(at, x0, eps), atol=1e-5):
        raise Wrong(
            "on a batch of images with different steps x_t is wrong: give the factors the shape "
            "(B, 1, 1, 1), one a sample"
        )
    square = torch.ones(T, T)  # (B, features) with B = features: (B,) would multiply the features
    x_t = jump(square, steps, BARS.float(), torch.zeros_like(square))
    if not near(x_t[:, 0], BARS.float()[steps - 1].sqrt()):
        raise Wrong("with as many features as samples the factors multiply the wrong axis")


@check("posterior", 1, HIDDEN)
def posterior_at_the_ends(posterior: Callable[..., Any]) -> None:
    rng = torch.Generator().manual_seed(0)
    x_t, x0 = torch.randn(2, 3, 2, generator=rng, dtype=torch.float64)
    mean, var = posterior(x_t, x0, torch.ones(3, dtype=torch.long), BETAS, BARS)
    var = torch.as_tensor(var).expand(3, 2)
    if not torch.allclose(mean, x0, atol=1e-6) or float(var.abs().max()) > 1e-9:
        raise Wrong(
            f"at step 1 your variance is {float(var.max()):.4f} and your mean is off x0 by "
            f"{float((mean - x0).abs().max()):.3f}; alpha-bar of step 0 is 1, so the variance is 0 "
            "and the mean x0 (an index of -1 reads the end of the table)"
        )
    steps = torch.tensor([T, 2, 5])
    images = torch.randn(2, 3, 1, 4, 4, generator=rng, dtype=torch.float64)
    mean, var = posterior(images[0], images[1], steps, BETAS, BARS)
    mean = must_be_tensor(mean, (3, 1, 4, 4), "the mean for images")
    for k, i in enumerate(steps.tolist()):
        keep, add, want = bayes(BETAS[i - 1], BARS[i - 1], BARS[i - 2])
        if not torch.allclose(mean[k], keep * images[0, k] + add * images[1, k], atol=1e-6):
            raise Wrong(f"in a batch with steps {steps.tolist()} the mean at step {i} is wrong")
        if abs(float(torch.as_tensor(var).expand(3, 1, 4, 4)[k].mean() - want)) > 1e-6:
            raise Wrong(f"in a batch with steps {steps.tolist()} the variance at step {i} is wrong")


# ---- (d) the loss ---------------------------------------------------------------------------------


@check("simple_loss", 1, HIDDEN)
def loss_draws_from_rng_alone(simple_loss: Callable[..., Any]) -> None:
    with Untouched():
        first = watch_loss(simple_loss, seed=0)
    again, other = watch_loss(simple_loss, seed=0), watch_loss(simple_loss, seed=1)
    if not (torch.equal(first.x_t, again.x_t) and torch.equal(first.step, again.step)):
        raise Wrong("two calls with the same rng differ: draw steps and noise with generator=rng")
    if torch.equal(first.step, other.step):
        raise Wrong("two calls with different rng draw the same steps: a seed is set inside")
    count = torch.bincount(first.step - 1, minlength=T).double()
    expected = BATCH / T
    chi2 = float(((count - expected) ** 2 / expected).sum())
    if chi2 > T - 1 + 6 * math.sqrt(2 * (T - 1)):
        raise Wrong(f"the steps are not uniform: counts {count.int().tolist()} of {BATCH}")


@check("simple_loss", 1, HIDDEN)
def loss_has_the_right_gradient(simple_loss: Callable[..., Any]) -> None:
    scale = torch.zeros((), requires_grad=True)
    seen = []

    def net(x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        bar = BARS.float()[(t * T).round().long() - 1][:, None]
        seen.append((x, bar))
        return scale * x

    x0 = torch.zeros(512, 2)  # then x_t is the noise times a known factor
    loss = simple_loss(net, x0, BARS.float(), torch.Generator().manual_seed(0))
    if not (isinstance(loss, torch.Tensor) and loss.requires_grad):
        raise Wrong("no gradient reaches the net: return the loss as a tensor, without .item()")
    loss.backward()
    x, bar = seen[0]
    want = float((-2 * x * x / (1 - bar).sqrt()).mean())
    if scale.grad is None or abs(float(scale.grad) / want - 1) > 1e-3:
        raise Wrong(f"the gradient is {float(scale.grad or 0):.4f}, it must be {want:.4f}")


# ---- (e) the sampler --------------------------------------------------------------------------------


@check("sample", 1, HIDDEN)
def sample_draws_fresh_noise_from_rng(sample: Callable[..., Any]) -> None:
    with Untouched():
        states, answers = watch_sample(sample, VARIANCES, seed=0)
    again = watch_sample(sample, VARIANCES, seed=0)[0]
    other = watch_sample(sample, VARIANCES, seed=1)[0]
    if not torch.equal(states[-1], again[-1]):
        raise Wrong("two runs with the same rng differ: draw every noise with generator=rng")
    if torch.equal(states[0], other[0]) or torch.equal(states[-1], other[-1]):
        raise Wrong("two runs with different rng agree: a seed is set inside")
    noise = [s - m for s, m in zip(states[1:], step_means(states, answers), strict=True)][:-1]
    for name, rows in {"two steps": noise, "x_T and a step": [states[0], *noise]}.items():
        for a, b in itertools.pairwise(rows):
            tie = float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])
            if abs(tie) > SIX:
                raise Wrong(
                    f"the noise of {name} has correlation {tie:.2f}: draw new noise at every step"
                )


@check("sample", 1, HIDDEN)
def sample_has_the_exact_moments(sample: Callable[..., Any]) -> None:
    """Gaussian data, whose best net is known: the mean and variance of the chain are a recursion."""
    mean, std = torch.tensor([1.0, -0.5]), torch.tensor([0.5, 0.2])
    table = md.BetaTable(md.cosine_betas(40))
    betas, bars = table.betas.float(), table.alpha_bars.float()
    denoise = md.Gaussian(mean, std).denoiser(table)
    weight = torch.ones((), requires_grad=True)  # as a network has

    def net(x: torch.Tensor, t: torch.Tensor, cond: Any = None) -> torch.Tensor:
        return weight * md.eps_from_x0(denoise(x, t), x, table(t))

    with Untouched():
        x = sample(net, (BATCH, 2), betas, bars, betas, torch.Generator().manual_seed(0))
    if x.requires_grad:
        raise Wrong("the sample carries a gradient: sampling needs torch.no_grad()")
    m, v = torch.zeros(2).double(), torch.ones(2).double()
    for i in range(table.T, 0, -1):
        beta, bar = table.betas[i - 1], table.alpha_bars[i - 1]
        spread = bar * std.double() ** 2 + 1 - bar  # variance of x_t of the data
        slope = (1 - bar).sqrt() / spread  # eps = slope (x_t - sqrt(bar) mean)
        keep = (1 - beta / (1 - bar).sqrt() * slope) / (1 - beta).sqrt()
        shift = beta / (1 - bar).sqrt() * slope * bar.sqrt() * mean / (1 - beta).sqrt()
        m, v = keep * m + shift, keep**2 * v + (beta if i > 1 else 0.0)
    error = float(((x.double().mean(0) - m).abs() / (v / BATCH).sqrt()).max())
    ratio = x.double().var(0) / v
    if error > 6 or float((ratio - 1).abs().max()) > 6 * math.sqrt(2 / BATCH):
        raise Wrong(
            f"with the exact net of Gaussian data the sample has mean {x.mean(0).tolist()} and "
            f"variance {x.var(0).tolist()}, they must be {m.tolist()} and {v.tolist()}"
        )
