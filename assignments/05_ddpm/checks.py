"""Public checks of the assignment 05_ddpm: `checks.run(your_function)`.

Each check looks at one function and names the symptom of what it finds. They use no trained
network: formulas are compared with values worked out here in another way, and your loss and your
sampler are given a network that writes down what it was asked. So a check is exact, or has a
statistical tolerance of six standard errors, and all of them together take seconds.

This file needs nothing but torch, so that it can be handed out with the notebook alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

WRITTEN = {"f1": 2, "f2": 1, "f3": 2}  # points of the questions that a person reads
TASKS = {"alpha_bars": "a", "jump": "b", "posterior": "c", "simple_loss": "d", "sample": "e"}


class Wrong(AssertionError):
    """An answer is wrong; the message says what was seen."""


class Check(NamedTuple):
    """One check: the student's function that it looks at, what passing it is worth, and itself."""

    function: str
    points: int
    test: Callable[[Callable[..., Any]], None]

    @property
    def name(self) -> str:
        return self.test.__name__


CHECKS: list[Check] = []


def check(function: str, points: int, into: list[Check] = CHECKS) -> Callable[..., Any]:
    """Register a check of the student's function of this name."""

    def register(test: Callable[..., None]) -> Callable[..., None]:
        into.append(Check(function, points, test))
        return test

    return register


def explain(error: Exception) -> str:
    """Say what a check, or the student's function inside it, raised."""
    if isinstance(error, Wrong):
        return str(error)
    text = f"your function raised {type(error).__name__}: {error}"
    if isinstance(error, IndexError):
        text += " (step i is entry i - 1 of a table: the steps are 1..T, the entries 0..T-1)"
    return text


def run(function: Callable[..., Any], checks: list[Check] = CHECKS) -> None:
    """Run every check of a function, by its name; raise ``Wrong`` if one fails."""
    mine = [c for c in checks if c.function == function.__name__]
    if not mine:
        names = sorted({c.function for c in checks})
        raise ValueError(f"no check for {function.__name__!r}: the functions are {names}")
    found = []
    for c in mine:
        try:
            c.test(function)
        except NotImplementedError:
            raise
        except Exception as error:
            found.append(f"{c.name}: {explain(error)}")
    task = TASKS[function.__name__]
    if found:
        raise Wrong(f"task ({task})\n  - " + "\n  - ".join(found)) from None
    print(f"task ({task}): {len(mine)} of {len(mine)} checks passed")


# ---- what the checks compare with --------------------------------------------------------------

T = 10
BETAS = torch.linspace(0.02, 0.4, T, dtype=torch.float64)  # neighbouring steps differ clearly


def bars_of(betas: Tensor) -> Tensor:
    """Multiply up, one step at a time."""
    bars, bar = [], 1.0
    for beta in betas.tolist():
        bar *= 1 - beta
        bars.append(bar)
    return torch.tensor(bars, dtype=betas.dtype)


BARS = bars_of(BETAS)


def near(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether two tensors agree in shape and value."""
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=tolerance, atol=1e-7)


def must_be_tensor(value: Any, shape: tuple[int, ...], what: str) -> Tensor:
    """Refuse what is no tensor of this shape with finite entries."""
    if not isinstance(value, Tensor):
        raise Wrong(f"{what} is {type(value).__name__}: return a tensor")
    if tuple(value.shape) != shape:
        raise Wrong(f"{what} has shape {tuple(value.shape)}, it must be {shape}")
    if not bool(torch.isfinite(value).all()):
        raise Wrong(f"{what} holds NaN or infinite values")
    return value


def compare(got: Tensor, want: Tensor, symptom: str, known: dict[str, Tensor]) -> None:
    """Accept ``want``; else name the known mistake that gives ``got``, or the symptom."""
    if near(got, want):
        return
    for text, value in known.items():
        if near(got, value):
            raise Wrong(f"{symptom}: {text}")
    raise Wrong(symptom)


# ---- (a) alpha_bars -----------------------------------------------------------------------------


@check("alpha_bars", 1)
def alpha_bars_are_running_products(alpha_bars: Callable[..., Any]) -> None:
    got = must_be_tensor(alpha_bars(BETAS.clone()), (T,), "what alpha_bars returns")
    known = {
        "these are the alphas; multiply them up": 1 - BETAS,
        "this multiplies the betas up; multiply the alphas, 1 - beta": BETAS.cumprod(0),
        "the sum of the betas is only the first order of the product": 1 - BETAS.cumsum(0),
        "exp(-sum of betas) only approaches the product for small betas": (-BETAS.cumsum(0)).exp(),
        "the product starts a step late; entry 0 belongs to step 1 and is 1 - beta_1": torch.cat(
            [torch.ones(1, dtype=BARS.dtype), BARS[:-1]]
        ),
        "a root too many; alpha-bar is a share of variance": BARS.sqrt(),
    }
    symptom = (
        f"your alpha-bar runs from {float(got[0]):.3f} to {float(got[-1]):.3f} over the {T} steps, "
        f"it must run from {float(BARS[0]):.3f} to {float(BARS[-1]):.3f}"
    )
    compare(got, BARS, symptom, known)


# ---- (b) jump -----------------------------------------------------------------------------------


def jump_factors(jump: Callable[..., Any], bars: Tensor) -> tuple[Tensor, Tensor]:
    """Read both factors off: the jump of ones without noise, and of zeros with noise one."""
    n = len(bars)
    one, zero = torch.ones(n, 2, dtype=bars.dtype), torch.zeros(n, 2, dtype=bars.dtype)
    steps = torch.arange(1, n + 1)
    signal = must_be_tensor(jump(one, steps, bars, zero), (n, 2), "x_t")
    noise = must_be_tensor(jump(zero, steps, bars, one), (n, 2), "x_t")
    return signal[:, 0], noise[:, 0]


@check("jump", 1)
def jump_scales_the_data(jump: Callable[..., Any]) -> None:
    signal = jump_factors(jump, BARS)[0]
    symptom = (
        f"at the last step you multiply x0 by {float(signal[-1]):.3f}, "
        f"it must be {float(BARS[-1].sqrt()):.3f}"
    )
    first = torch.ones(1, dtype=BARS.dtype)
    known = {
        "did you forget the root of alpha-bar?": BARS,
        "that is alpha of one step in place of alpha-bar": (1 - BETAS).sqrt(),
        "that is alpha-bar of the step before": torch.cat([first, BARS[:-1]]).sqrt(),
        "the factors of x0 and of the noise are swapped": (1 - BARS).sqrt(),
    }
    compare(signal, BARS.sqrt(), symptom, known)


@check("jump", 1)
def jump_adds_the_right_noise(jump: Callable[..., Any]) -> None:
    signal, noise = jump_factors(jump, BARS)
    variance = signal**2 + noise**2  # of x_t, for data of variance 1
    worst = int((variance - 1).abs().argmax())
    symptom = (
        f"for data of variance 1 your x_t has variance {float(variance[worst]):.2f} at step "
        f"{worst + 1} of {T}; it must be 1 at every step"
    )
    first = torch.ones(1, dtype=BARS.dtype)
    known = {
        "did you forget the root of 1 - alpha-bar?": 1 - BARS,
        "the noise of one step, root of beta, in place of all the noise since x0": BETAS.sqrt(),
        "beta is the variance of one step; the factor is the root of 1 - alpha-bar": BETAS,
        "that is alpha-bar of the step before": (1 - torch.cat([first, BARS[:-1]])).sqrt(),
        "the factors of x0 and of the noise are swapped": BARS.sqrt(),
        "1 minus the root is not the root of 1 minus": 1 - BARS.sqrt(),
    }
    compare(noise, (1 - BARS).sqrt(), symptom, known)


# ---- (c) posterior ------------------------------------------------------------------------------


def bayes(beta: Tensor, bar: Tensor, before: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of x_t, factor of x0, and variance of q(x_s | x_t, x0), by adding precisions.

    Seen from x_s, x_t is a measurement of root(alpha) x_s with variance beta, and x0 says that
    x_s is root(bar_s) x0 with variance 1 - bar_s. Precisions add.
    """
    var = 1 / ((1 - beta) / beta + 1 / (1 - before))
    return var * (1 - beta).sqrt() / beta, var * before.sqrt() / (1 - before), var


def posterior_parts(posterior: Callable[..., Any], steps: Tensor) -> tuple[Tensor, ...]:
    """Read off the factor of x_t, the factor of x0 and the variance at the given steps."""
    n = len(steps)
    one, zero = torch.ones(n, 2, dtype=BARS.dtype), torch.zeros(n, 2, dtype=BARS.dtype)
    parts = []
    for x_t, x0 in ((one, zero), (zero, one)):
        pair = posterior(x_t, x0, steps, BETAS, BARS)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise Wrong(f"posterior returns {type(pair).__name__}: return (mean, var)")
        mean = must_be_tensor(pair[0], (n, 2), "the mean")
        try:
            var = torch.as_tensor(pair[1]).expand(n, 2)[:, 0]
        except RuntimeError:
            raise Wrong(
                f"the variance has shape {tuple(pair[1].shape)}: it must broadcast to {(n, 2)}, "
                f"so give it shape {(n, 1)}"
            ) from None
        if not bool(torch.isfinite(var).all()):
            raise Wrong("the variance holds NaN or infinite values")
        parts.append(mean[:, 0])
    return (*parts, var)


LATER = torch.arange(2, T + 1)  # step 1 is a case of its own


@check("posterior", 1)
def posterior_mean(posterior: Callable[..., Any]) -> None:
    of_x_t, of_x0, _ = posterior_parts(posterior, LATER)
    beta, alpha, bar, before = BETAS[1:], 1 - BETAS[1:], BARS[1:], BARS[:-1]
    keep, add, _ = bayes(beta, bar, before)
    known = {
        "the factors of x_t and x0 are swapped": add,
        "did you forget the root of alpha?": alpha * (1 - before) / (1 - bar),
        "alpha-bar in place of alpha": bar.sqrt() * (1 - before) / (1 - bar),
        "alpha in place of alpha-bar": alpha.sqrt() * BETAS[:-1] / beta,
        "the bars of t and of the step before are swapped": alpha.sqrt()
        * (1 - bar)
        / (1 - before),
    }
    symptom = (
        f"at step {T} your mean takes {float(of_x_t[-1]):.3f} of x_t, it must take "
        f"{float(keep[-1]):.3f}"
    )
    compare(of_x_t, keep, symptom, known)
    known = {
        "did you forget the root of alpha-bar of the step before?": before * beta / (1 - bar),
        "alpha-bar of t in place of that of the step before": bar.sqrt() * beta / (1 - bar),
        "root of beta in place of beta": before.sqrt() * beta.sqrt() / (1 - bar),
    }
    symptom = (
        f"at step {T} your mean takes {float(of_x0[-1]):.3f} of x0, it must take "
        f"{float(add[-1]):.3f}"
    )
    compare(of_x0, add, symptom, known)


@check("posterior", 1)
def posterior_variance(posterior: Callable[..., Any]) -> None:
    var = posterior_parts(posterior, LATER)[2]
    beta, bar, before = BETAS[1:], BARS[1:], BARS[:-1]
    want = bayes(beta, bar, before)[2]
    if bool((var > beta * 1.00001).any()) and near(var, (1 - bar) / (1 - before) * beta):
        raise Wrong(
            f"at step 2 your variance is {float(var[0]):.3f}, more than beta = {float(beta[0]):.3f}"
            ": knowing x0 cannot make x_s less certain; the two bars are swapped"
        )
    known = {
        "that is beta, the variance of the forward step": beta,
        "that is the standard deviation; return the variance": want.sqrt(),
        "alpha in place of alpha-bar": BETAS[:-1],  # (1 - alpha_s) / (1 - alpha_t) beta_t
    }
    symptom = f"at step 2 your variance is {float(var[0]):.4f}, it must be {float(want[0]):.4f}"
    compare(var, want, symptom, known)


# ---- (d) simple_loss ----------------------------------------------------------------------------

BATCH = 4096
SIX = 6 / math.sqrt(2 * BATCH)  # six standard errors of a correlation of 2 x BATCH numbers


class Spy:
    """A network that answers by a fixed rule and writes down what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []
        self.answers: list[Tensor] = []

    def __call__(self, x: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        if not isinstance(t, Tensor) or tuple(t.shape) != (len(x),):
            shape = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise Wrong(f"the net got a time of shape {shape}: give one a sample, ({len(x)},)")
        self.asked.append((x.detach().clone(), t.detach().clone().double()))
        self.answers.append(torch.sin(3 * x.detach()) + 0.1)
        return self.answers[-1].clone()


class LossRun(NamedTuple):
    """One call of simple_loss as the spy saw it."""

    x0: Tensor
    x_t: Tensor
    step: Tensor  # as the times say, 1..T
    answer: Tensor
    loss: Tensor


def watch_loss(simple_loss: Callable[..., Any], seed: int = 0) -> LossRun:
    """Call the loss on data of standard deviation 2 and refuse times that are no steps."""
    rng = torch.Generator().manual_seed(100 + seed)
    x0 = 2 * torch.randn(BATCH, 2, generator=torch.Generator().manual_seed(seed))
    net = Spy()
    loss = simple_loss(net, x0.clone(), BARS.float(), rng)
    if len(net.asked) != 1:
        raise Wrong(f"the net was called {len(net.asked)} times: call it once, with the batch")
    x_t, t = net.asked[0]
    if x_t.shape != x0.shape:
        raise Wrong(f"the net got x of shape {tuple(x_t.shape)}, it must be {tuple(x0.shape)}")
    if float(t.max()) > 1 + 1e-6:
        raise Wrong(f"the net got times up to {float(t.max()):g}: it expects i / T, at most 1")
    if float(t.min()) < 0.5 / T:
        raise Wrong("the net got the time 0, which is clean data: the steps are 1..T, not 0..T-1")
    step = (t * T).round()
    if bool((t * T - step).abs().max() > 1e-3):
        raise Wrong(f"the net got the time {float(t[0]):.4f}, which is no step i / T")
    return LossRun(x0, x_t, step.long(), net.answers[0], loss)


def implied_noise(run: LossRun) -> Tensor:
    """Solve the jump for the noise, at the steps that the net was told."""
    bar = BARS.float()[run.step - 1][:, None]
    return (run.x_t - bar.sqrt() * run.x0) / (1 - bar).sqrt()


@check("simple_loss", 1)
def loss_draws_a_step_for_each_sample(simple_loss: Callable[..., Any]) -> None:
    step = watch_loss(simple_loss).step
    if int(step.min()) == int(step.max()):
        raise Wrong(f"all {BATCH} samples got step {int(step[0])}: draw one step for each sample")
    if int(step.max()) < T:
        raise Wrong(f"step {T} never came in {BATCH} draws: randint leaves its upper end out")
    if int(step.min()) > 1:
        raise Wrong(f"step 1 never came in {BATCH} draws: the steps are 1..T")


@check("simple_loss", 1)
def loss_diffuses_with_normal_noise(simple_loss: Callable[..., Any]) -> None:
    run = watch_loss(simple_loss)
    eps = implied_noise(run)
    if bool((eps - eps[:1]).abs().max() < 1e-3):
        raise Wrong("all samples got the same noise: draw noise of the shape of x0")
    mean, var = float(eps.mean()), float(eps.var())
    tie = float(torch.corrcoef(torch.stack([eps.flatten(), run.x0.flatten()]))[0, 1])
    early = bool(eps.min() > -1e-3)
    if early and abs(mean - 0.5) < 0.05:
        raise Wrong(
            f"the noise in your x_t lies between 0 and 1, with mean {mean:.2f}: "
            "torch.rand is uniform, torch.randn is normal"
        )
    if abs(tie) > SIX or abs(var - 1) > 2 * SIX:
        other = {
            "x_t belongs to the step after the one that the net is told": run.step + 1,
            "x_t belongs to the step before the one that the net is told": run.step - 1,
        }
        for text, step in other.items():
            bar = torch.cat([torch.ones(1), BARS.float(), BARS[-1:].float()])[step][:, None]
            noise = (run.x_t - bar.sqrt() * run.x0) / (1 - bar).sqrt().clamp(min=1e-6)
            inner = (step >= 1) & (step <= T)
            if abs(float(noise[inner].var()) - 1) < 2 * SIX:
                raise Wrong(text)
        raise Wrong(
            f"the noise in your x_t has variance {var:.2f} and correlation {tie:.2f} with x0, they "
            "must be 1 and 0: x_t is not the jump of task (b) to the step that the net is told"
        )
    if abs(mean) > SIX:
        raise Wrong(f"the noise in your x_t has mean {mean:.2f}, it must be 0")
    far = float((eps.abs() > 2).float().mean())  # 4.6 % of a normal draw
    if not 0.03 < far < 0.06:
        raise Wrong(f"{far:.1%} of your noise lies beyond 2, of normal noise it is 4.6 %")


@check("simple_loss", 1)
def loss_compares_with_the_noise(simple_loss: Callable[..., Any]) -> None:
    run = watch_loss(simple_loss)
    loss = must_be_tensor(run.loss, (), "the loss").detach()
    eps, y = implied_noise(run), run.answer
    want = (eps - y).square().mean()
    known = {
        "the net's output is compared with x0; L_simple compares it with the noise": (
            (run.x0 - y).square().mean()
        ),
        "the net's output is compared with x_t; L_simple compares it with the noise": (
            (run.x_t - y).square().mean()
        ),
        "that is the sum over the coordinates; average over all entries": 2 * want,
        "that is the sum over the batch; average over all entries": 2 * BATCH * want,
        "that is the root of the mean square": want.sqrt(),
        "that is the mean absolute error": (eps - y).abs().mean(),
        "the sign of the net's output is wrong": (eps + y).square().mean(),
    }
    if abs(float(loss - want)) < 1e-3 * float(want):
        return
    for text, value in known.items():
        if abs(float(loss - value)) < 1e-3 * float(value):
            raise Wrong(f"your loss is {float(loss):.4f}, it must be {float(want):.4f}: {text}")
    raise Wrong(f"your loss is {float(loss):.4f}, it must be {float(want):.4f}")


# ---- (e) sample ---------------------------------------------------------------------------------

VARIANCES = torch.linspace(0.3, 0.05, T)  # neither beta nor beta tilde: yours must be the ones given


def watch_sample(
    sample: Callable[..., Any], variances: Tensor, *, seed: int = 0, n: int = BATCH
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the states x_T, .., x_1, x_0 of a run, and the net's answers."""
    net = Spy()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        x0 = sample(net, (n, 2), BETAS.float(), BARS.float(), variances.clone(), rng)
    x0 = must_be_tensor(x0, (n, 2), "what sample returns")
    if len(net.asked) != T:
        raise Wrong(f"the net was called {len(net.asked)} times for {T} steps: once a step")
    for i, (_, t) in zip(range(T, 0, -1), net.asked, strict=True):
        if bool((t - i / T).abs().max() > 1e-3):
            said = f"call {T - i + 1} of the net got the time {float(t[0]):.3f}, "
            if float(t[0]) > 1 + 1e-3:
                raise Wrong(said + "it expects i / T, at most 1")
            raise Wrong(
                said + f"it must be {i}/{T} = {i / T:.3f}: the steps run from T down to 1, "
                "and the net is told i / T"
            )
    return [x for x, _ in net.asked] + [x0.float()], net.answers


def step_means(states: list[Tensor], answers: list[Tensor]) -> list[Tensor]:
    """Mean of every step by algorithm 2, for i = T..1."""
    means = []
    for i, x, eps in zip(range(T, 0, -1), states, answers, strict=False):
        beta, bar = BETAS[i - 1].float(), BARS[i - 1].float()
        means.append((x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt())
    return means


@check("sample", 1)
def sample_walks_from_noise_down_the_steps(sample: Callable[..., Any]) -> None:
    start = watch_sample(sample, VARIANCES)[0][0]
    mean, var = float(start.mean()), float(start.var())
    if bool((start - start[:1]).abs().max() < 1e-6):
        raise Wrong("all samples start at the same point: draw x_T of the given shape")
    if bool(start.min() >= 0) and bool(start.max() <= 1):
        raise Wrong(
            f"your x_T lies between 0 and 1, with mean {mean:.2f}: torch.rand is uniform, "
            "torch.randn is normal"
        )
    if abs(mean) > SIX or abs(var - 1) > 2 * SIX:
        raise Wrong(f"your x_T has mean {mean:.2f} and variance {var:.2f}, they must be 0 and 1")


@check("sample", 2)
def sample_moves_to_the_mean(sample: Callable[..., Any]) -> None:
    # with variances of zero a step is a straight line in x_t and the net's answer: read it off
    states, answers = watch_sample(sample, torch.zeros(T), n=256)
    for i in range(T, 0, -1):
        x, eps, after = states[T - i], answers[T - i], states[T - i + 1]
        design = torch.stack([x.flatten(), eps.flatten()], 1).double()
        fit = torch.linalg.lstsq(design, after.flatten().double()[:, None]).solution
        rest = float((after.flatten().double()[:, None] - design @ fit).abs().max())
        if rest > 1e-3 * float(after.abs().max()):
            raise Wrong(
                f"with all variances 0, step {i} is still random or no straight line in x_t and "
                "the net's output: use the argument variances, and nothing else, for the noise"
            )
        beta, alpha, bar = BETAS[i - 1], 1 - BETAS[i - 1], BARS[i - 1]
        keep, add = float(fit[0]), float(fit[1])
        want = float(1 / alpha.sqrt())
        if abs(keep - want) > 1e-3:
            known = {
                "the factor 1 / sqrt(alpha) is missing": 1.0,
                "did you forget the root of alpha?": float(1 / alpha),
                "multiplied by the root of alpha, not divided": float(alpha.sqrt()),
                "alpha-bar in place of alpha": float(1 / bar.sqrt()),
            }
            why = [f": {text}" for text, value in known.items() if abs(keep - value) < 1e-3]
            raise Wrong(
                f"step {i} multiplies x_t by {keep:.3f}, it must be {want:.3f}" + "".join(why[:1])
            )
        want = float(-beta / (1 - bar).sqrt() / alpha.sqrt())
        if abs(add - want) > 1e-3:
            known = {
                "the sign is wrong, noise is to be taken away": -want,
                "the factor 1 / sqrt(alpha) must hold for both terms": want * float(alpha.sqrt()),
                "did you forget the root of 1 - alpha-bar?": float(-beta / (1 - bar) / alpha.sqrt()),
                "root of beta in place of beta": float(-(beta / (1 - bar) / alpha).sqrt()),
                "alpha in place of alpha-bar under the root": float(-(beta / alpha).sqrt()),
            }
            why = [f": {text}" for text, value in known.items() if abs(add - value) < 1e-3]
            raise Wrong(
                f"step {i} multiplies the net's output by {add:.3f}, it must be {want:.3f}"
                + "".join(why[:1])
            )


@check("sample", 1)
def sample_adds_the_given_variance(sample: Callable[..., Any]) -> None:
    states, answers = watch_sample(sample, VARIANCES)
    means = step_means(states, answers)
    for i in range(T, 1, -1):
        noise = states[T - i + 1] - means[T - i]
        mean, var, want = float(noise.mean()), float(noise.var()), float(VARIANCES[i - 1])
        if bool((noise - noise[:1]).abs().max() < 1e-3):
            if var < 1e-6:
                raise Wrong(f"step {i} adds no noise; only the last step, i = 1, adds none")
            raise Wrong(f"at step {i} all samples get the same noise: draw it with the shape of x")
        if mean > want**0.5 / 4 and bool(noise.min() > -1e-3):
            raise Wrong(
                f"the noise of step {i} is never negative, with mean {mean:.2f}: torch.rand is "
                "uniform, torch.randn is normal"
            )
        if abs(var / want - 1) > 2 * SIX:
            known = {
                "did you forget the root? The standard deviation multiplies z": want**2,
                "that is beta; use the argument variances": float(BETAS[i - 1]),
                "that is the variance of the step before": float(VARIANCES[i - 2]),
                "that is the variance of the step after": float(VARIANCES[min(i, T - 1)]),
            }
            why = [f": {text}" for text, v in known.items() if abs(var / v - 1) < 2 * SIX]
            raise Wrong(
                f"the noise of step {i} has variance {var:.4f}, it must be {want:.4f}"
                + "".join(why[:1])
            )


@check("sample", 1)
def sample_ends_without_noise(sample: Callable[..., Any]) -> None:
    states, answers = watch_sample(sample, VARIANCES)
    noise = states[-1] - step_means(states, answers)[-1]
    if float(noise.std()) > 1e-3:
        raise Wrong(
            f"the last step, i = 1, adds noise of variance {float(noise.var()):.3f}: x_0 is the "
            "mean itself, without noise"
        )
    if float(noise.abs().max()) > 1e-3:
        raise Wrong("the last step does not land on its mean")
