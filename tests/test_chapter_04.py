"""Chapter 04, the bound that diffusion minimises: each line of its derivation against the last.

The example is a chain whose every density is Gaussian and linear, and a model that is wrong on
purpose. Then the logarithm of each factor is a quadratic of the path (x_0, ..., x_T), and its mean
under q has a closed form. All in float64: 1e-10 is room for sums of a few dozen terms of size 10.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import minidiff as md

D = torch.float64
T, X0 = 4, 0.7
BETA = torch.tensor([math.nan, 0.1, 0.25, 0.4, 0.6], dtype=D)  # entry t is step t
ALPHA = 1 - BETA
BAR = torch.cat([torch.ones(1, dtype=D), ALPHA[1:].cumprod(0)])
GAIN, SHIFT, STD = [0, 0.9, 0.7, 0.8, 0.5], [0, 0.1, -0.2, 0.05, 0.3], [0, 0.35, 0.5, 0.6, 0.9]
LONG = md.linear_betas(1000)


def unit(t):
    return torch.eye(T + 1, dtype=D)[t]


# A factor is (r, d, v): the density of r.x - d as a Gaussian of mean 0 and variance v.
STEP = {t: (unit(t) - ALPHA[t].sqrt() * unit(t - 1), 0.0, BETA[t]) for t in range(1, T + 1)}
MODEL = {
    t: (unit(t - 1) - GAIN[t] * unit(t), SHIFT[t], torch.tensor(STD[t] ** 2, dtype=D))
    for t in range(1, T + 1)
}
START = (unit(T), 0.0, torch.ones((), dtype=D))


def path_given_x0():
    """Mean and covariance of (x_0, ..., x_T) under q, x_0 known; by walking, not by a formula."""
    rows = [torch.zeros(T + 1, dtype=D)]  # factor of eps_1..eps_T in x_t, entry 0 that of x_0
    rows[0][0] = 1
    for t in range(1, T + 1):
        rows.append(ALPHA[t].sqrt() * rows[-1] + BETA[t].sqrt() * unit(t))
    rows = torch.stack(rows)
    return rows[:, 0] * X0, rows[:, 1:] @ rows[:, 1:].T


MEAN, COV = path_given_x0()


def conditioned(t, on):
    """q(x_t | x_s for s in on) as a factor, by linear algebra on the whole chain; x_0 is in on."""
    rest = [s for s in on if s != 0]
    r = unit(t).clone()
    if not rest:
        return r - MEAN[t] / X0 * unit(0), 0.0, COV[t, t]
    gain = torch.linalg.solve(COV[rest][:, rest], COV[rest, t])
    for weight, s in zip(gain, rest, strict=True):
        r = r - weight * (unit(s) - MEAN[s] / X0 * unit(0))
    return r - MEAN[t] / X0 * unit(0), 0.0, COV[t, t] - gain @ COV[rest, t]


JUMP = {t: conditioned(t, [0]) for t in range(1, T + 1)}
BACK = {t: conditioned(t - 1, [0, t]) for t in range(2, T + 1)}


def log_at(factor, path):
    r, d, v = factor
    return -((2 * math.pi * v).log() + (path @ r - d) ** 2 / v) / 2


def expected(factor):
    """The mean of ``log_at`` under q(x_{1:T} | x_0)."""
    r, d, v = factor
    return -((2 * math.pi * v).log() + ((r @ MEAN - d) ** 2 + r @ COV @ r) / v) / 2


def kl(mean_q, var_q, mean_p, var_p):
    return kl_divergence(Normal(mean_q, var_q**0.5), Normal(mean_p, var_p**0.5))


def model_joint():
    """Mean and covariance of (x_0, ..., x_T) under the model, by drawing it from x_T down."""
    mean, rows = [torch.zeros((), dtype=D)], [unit(T)]
    for t in range(T, 0, -1):
        mean.insert(0, GAIN[t] * mean[0] + SHIFT[t])
        rows.insert(0, GAIN[t] * rows[0] + STD[t] * unit(t - 1))
    rows = torch.stack(rows)
    return torch.stack(mean), rows @ rows.T


def model_evidence():
    """-log p(x_0), and p(x_{1:T} | x_0), from the joint Gaussian of the model."""
    mean, cov = model_joint()
    x0 = torch.tensor(X0, dtype=D)
    nll = -Normal(mean[0], cov[0, 0].sqrt()).log_prob(x0)
    gain = cov[1:, 0] / cov[0, 0]
    given = MultivariateNormal(
        mean[1:] + gain * (x0 - mean[0]), cov[1:, 1:] - torch.outer(gain, cov[0, 1:])
    )
    return nll, given


# The integrands of the labelled lines, each a list of (sign, factor).
steps, later = range(1, T + 1), range(2, T + 1)
LINES = {
    "insert": [*((1, STEP[t]) for t in steps), (-1, START), *((-1, MODEL[t]) for t in steps)],
    "logs": [(-1, START), *(pair for t in steps for pair in ((1, STEP[t]), (-1, MODEL[t])))],
    "split": [
        (-1, START),
        *(pair for t in later for pair in ((1, STEP[t]), (-1, MODEL[t]))),
        (1, STEP[1]),
        (-1, MODEL[1]),
    ],
    "bayes": [
        (-1, START),
        *(pair for t in later for pair in ((1, BACK[t]), (-1, MODEL[t]))),
        *(pair for t in later for pair in ((1, JUMP[t]), (-1, JUMP[t - 1]))),
        (1, STEP[1]),
        (-1, MODEL[1]),
    ],
    "telescope": [
        (-1, START),
        *(pair for t in later for pair in ((1, BACK[t]), (-1, MODEL[t]))),
        (1, JUMP[T]),
        (-1, JUMP[1]),
        (1, STEP[1]),
        (-1, MODEL[1]),
    ],
    "collect": [
        (1, JUMP[T]),
        (-1, START),
        *(pair for t in later for pair in ((1, BACK[t]), (-1, MODEL[t]))),
        (-1, MODEL[1]),
    ],
}


def value(line, path=None):
    return sum(s * (expected(f) if path is None else log_at(f, path)) for s, f in LINES[line])


def start_of_the_bound():
    """E_q[log q(x_{1:T}|x_0) - log p(x_{0:T})] from two joint Gaussians: no product, no chain."""
    mean, cov = model_joint()
    entropy = MultivariateNormal(MEAN[1:], COV[1:, 1:]).entropy()
    gap = MEAN - mean
    cross = (T + 1) * math.log(2 * math.pi) + cov.logdet()
    cross = cross + (torch.linalg.inv(cov) * (COV + torch.outer(gap, gap))).sum()
    return -entropy + cross / 2


def path_draws(n, seed=0):
    """Paths (x_0, ..., x_T) of the forward chain, shape (n, T + 1), by walking."""
    rng = torch.Generator().manual_seed(seed)
    x = [torch.full((n,), X0, dtype=D)]
    for t in steps:
        eps = torch.randn(n, generator=rng, dtype=D)
        x.append(ALPHA[t].sqrt() * x[-1] + BETA[t].sqrt() * eps)
    return torch.stack(x, 1)


# ---- the model and the bound ---------------------------------------------------------------------


def test_the_model_is_a_product():
    """eq:chain-model: the density of the joint Gaussian is the start times the T steps."""
    mean, cov = model_joint()
    path = path_draws(50)
    product = log_at(START, path) + sum(log_at(MODEL[t], path) for t in steps)
    want = MultivariateNormal(mean, cov).log_prob(path)
    torch.testing.assert_close(product, want, rtol=0, atol=1e-10)


def test_the_forward_chain_is_a_product():
    """eq:chain-joint: q(x_{1:T}|x_0), a Gaussian of T variables, is the product of steps."""
    path = path_draws(50)
    want = MultivariateNormal(MEAN[1:], COV[1:, 1:]).log_prob(path[:, 1:])
    product = sum(log_at(STEP[t], path) for t in steps)
    torch.testing.assert_close(product, want, rtol=0, atol=1e-10)


def test_the_gap_is_a_divergence():
    """eq:vlb-gap, eq:vlb-start: -log p(x_0) is the bound less KL(q(x_{1:T}|x_0) || p(x_{1:T}|x_0)).

    Left side and divergence come from the joint Gaussian of the model, conditioned by linear
    algebra; the bound from an entropy and a cross entropy.
    """
    nll, given = model_evidence()
    gap = kl_divergence(MultivariateNormal(MEAN[1:], COV[1:, 1:]), given)
    assert float(gap) > 0.1  # the model is wrong: the inequality is strict
    assert float(start_of_the_bound() - gap) == pytest.approx(float(nll), abs=1e-10)
    assert float(start_of_the_bound()) > float(nll)


def test_the_mean_bound_is_a_divergence_of_joints():
    """eq:joint-kl: averaged over Gaussian data the bound is KL(q(x_{0:T}) || p(x_{0:T})) + H(x_0).

    The bound is a quadratic of x_0: its mean over N(m, c^2) is taken from three values of x_0.
    """
    m, c = 0.4, 0.8
    spread = COV + c**2 * torch.outer(MEAN, MEAN) / X0**2
    q = MultivariateNormal(m * MEAN / X0, spread)
    mean, cov = model_joint()
    entropy = math.log(c) + (1 + math.log(2 * math.pi)) / 2
    want = kl_divergence(q, MultivariateNormal(mean, cov)) + entropy

    def bound_of(x0):
        at = MEAN * x0 / X0
        total = torch.zeros((), dtype=D)
        for sign, (r, d, v) in LINES["insert"]:
            square = (r @ at - d) ** 2 + r @ COV @ r
            total = total - sign * ((2 * math.pi * v).log() + square / v) / 2
        return float(total)

    low, mid, high = bound_of(m - c), bound_of(m), bound_of(m + c)
    average = mid + (high - 2 * mid + low) / 2  # E of a quadratic: f(m) + f''/2 c^2
    assert average == pytest.approx(float(want), abs=1e-10)


# ---- line by line --------------------------------------------------------------------------------


def test_insert_the_products():
    """eq:vlb-insert: the ratio of the joint densities is the ratio of products, on every path."""
    mean, cov = model_joint()
    path = path_draws(50)
    ratio = MultivariateNormal(MEAN[1:], COV[1:, 1:]).log_prob(path[:, 1:]).exp()
    ratio = ratio / MultivariateNormal(mean, cov).log_prob(path).exp()
    top, below = torch.ones(50, dtype=D), log_at(START, path).exp()
    for t in steps:
        top, below = top * log_at(STEP[t], path).exp(), below * log_at(MODEL[t], path).exp()
    torch.testing.assert_close(top / below, ratio, rtol=1e-9, atol=0)  # densities down to 1e-9
    torch.testing.assert_close((top / below).log(), value("logs", path), rtol=0, atol=1e-9)
    assert float(value("insert")) == pytest.approx(float(start_of_the_bound()), abs=1e-10)


ORDER = ["insert", "logs", "split", "bayes", "telescope", "collect"]


@pytest.mark.parametrize(("above", "line"), list(pairwise(ORDER)))
def test_line_equals_the_line_above(above, line):
    """eq:vlb-logs, eq:vlb-split, eq:vlb-bayes, eq:vlb-telescope, eq:vlb-collect.

    Equal on each of 50 paths, and so in the mean, which is known in closed form.
    """
    path = path_draws(50)
    torch.testing.assert_close(value(line, path), value(above, path), rtol=0, atol=1e-10)
    assert float(value(line)) == pytest.approx(float(value(above)), abs=1e-10)
    assert float(value(line)) == pytest.approx(float(start_of_the_bound()), abs=1e-10)


def test_the_chain_forgets_x0():
    """eq:bayes: given x_{t-1}, x_0 does not enter q(x_t|x_{t-1}); then Bayes' rule, on 50 paths.

    The left side is conditioned on two states by linear algebra. For t = 1 there is nothing to
    reverse.
    """
    path = path_draws(50)
    for t in later:
        r, d, v = conditioned(t, [0, t - 1])
        torch.testing.assert_close(r, STEP[t][0], rtol=0, atol=1e-12)
        assert (d, float(v)) == (0.0, pytest.approx(float(BETA[t]), abs=1e-12))
        right = log_at(STEP[t], path) + log_at(JUMP[t - 1], path) - log_at(JUMP[t], path)
        torch.testing.assert_close(log_at(BACK[t], path), right, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [2, 3, 4, 7])
def test_the_sum_telescopes(length):
    """eq:vlb-telescope for any numbers: only the last numerator and the first denominator stay."""
    f = torch.rand(length + 1, dtype=D, generator=torch.Generator().manual_seed(length)) + 0.1
    product = math.prod(float(f[t] / f[t - 1]) for t in range(2, length + 1))
    assert product == pytest.approx(float(f[length] / f[1]), rel=1e-13)
    total = sum(float((f[t] / f[t - 1]).log()) for t in range(2, length + 1))
    assert total == pytest.approx(float(f[length].log() - f[1].log()), abs=1e-13)


def test_each_mean_needs_its_own_states():
    """eq:vlb-means: the mean over paths of eq:vlb-collect is a sum of means over one or two
    states: two closed forms at the ends, quadratures over pairs drawn forwards in the middle.

    The trapezoid rule over 10 standard deviations is exact to 1e-9 here, as in the next test.
    """
    x0 = torch.tensor(X0, dtype=D)
    total = kl(BAR[T].sqrt() * x0, 1 - BAR[T], torch.zeros((), dtype=D), torch.ones((), dtype=D))
    grid = torch.linspace(-10, 10, 601, dtype=D)
    for t in later:
        first, second = (BAR[s].sqrt() * X0 + (1 - BAR[s]).sqrt() * grid for s in (t - 1, t))
        path = torch.zeros(601, 601, T + 1, dtype=D)
        path[..., 0], path[..., t - 1], path[..., t] = X0, first[:, None], second[None]
        jump = Normal(BAR[t - 1].sqrt() * x0, (1 - BAR[t - 1]).sqrt()).log_prob(first)
        step = Normal(ALPHA[t].sqrt() * first[:, None], BETA[t].sqrt()).log_prob(second[None])
        ratio = log_at(BACK[t], path) - log_at(MODEL[t], path)
        inner = torch.trapezoid((jump[:, None] + step).exp() * ratio, second, dim=1)
        total = total + torch.trapezoid(inner, first)
    path = torch.zeros(601, T + 1, dtype=D)
    path[:, 0], path[:, 1] = X0, BAR[1].sqrt() * X0 + (1 - BAR[1]).sqrt() * grid
    jump = Normal(BAR[1].sqrt() * x0, (1 - BAR[1]).sqrt()).log_prob(path[:, 1])
    total = total - torch.trapezoid(jump.exp() * log_at(MODEL[1], path), path[:, 1])
    assert float(total) == pytest.approx(float(value("collect")), abs=1e-9)


def test_tower_rule():
    """eq:vlb-tower for a model that is not linear: the mean over pairs is the mean of a divergence.

    Left: two-dimensional quadrature over x_{t-1} and x_t, drawn forwards. Right: one-dimensional
    quadrature over x_t of a closed form. The trapezoid rule on smooth functions that vanish at 10
    standard deviations is exact to 1e-9 here.
    """
    t, noise = 3, 0.6
    a, s = BAR[t - 1].sqrt() * X0, (1 - BAR[t - 1]).sqrt()
    prev = (a + s * torch.linspace(-10, 10, 601, dtype=D))[:, None]
    now = torch.linspace(-10, 10, 601, dtype=D)[None]
    model = 0.8 * torch.tanh(now) + 0.1
    back_mean = float(ALPHA[t].sqrt() * (1 - BAR[t - 1]) / (1 - BAR[t])) * now
    back_mean = back_mean + float(BAR[t - 1].sqrt() * BETA[t] / (1 - BAR[t])) * X0
    back_var = (1 - BAR[t - 1]) / (1 - BAR[t]) * BETA[t]
    step = Normal(ALPHA[t].sqrt() * prev, BETA[t].sqrt())
    pairs = (Normal(a, s).log_prob(prev) + step.log_prob(now)).exp()
    ratio = Normal(back_mean, back_var.sqrt()).log_prob(prev) - Normal(model, noise).log_prob(prev)
    left = torch.trapezoid(torch.trapezoid(pairs * ratio, now[0], dim=1), prev[:, 0])
    at_t = Normal(BAR[t].sqrt() * X0, (1 - BAR[t]).sqrt()).log_prob(now[0]).exp()
    inner = kl(back_mean[0], back_var, model[0], torch.tensor(noise**2, dtype=D))
    right = torch.trapezoid(at_t * inner, now[0])
    assert float(left) == pytest.approx(float(right), abs=1e-9)
    assert float(right) > 0.1


def terms():
    """L_T, the L_{t-1} for t = T..2, and L_0, each from the divergence of two Gaussians."""
    x0 = torch.tensor(X0, dtype=D)
    prior = kl(BAR[T].sqrt() * x0, 1 - BAR[T], torch.zeros((), dtype=D), torch.ones((), dtype=D))
    inner = []
    for t in reversed(later):
        r, _, v = BACK[t]
        # the mean of q less that of p is a line in x_t: its mean square, and the two variances
        line = MODEL[t][0] - r  # r_p.x - r_q.x = mean_q - (mean_p - shift)
        square = (line @ MEAN - SHIFT[t]) ** 2 + line @ COV @ line
        inner.append(((STD[t] ** 2 / v).log() + (v + square) / STD[t] ** 2 - 1) / 2)
    return prior, torch.stack(inner), -expected(MODEL[1])


def test_the_three_terms_add_up():
    """eq:vlb-terms, eq:bound: the sum of L_T, L_{t-1} and L_0 is the line above, a bound."""
    prior, inner, last = terms()
    got = md.bounds.Bound(prior[None], inner[:, None], last[None]).total
    assert float(got) == pytest.approx(float(value("collect")), abs=1e-10)
    assert float(got) > float(model_evidence()[0])
    assert float(inner.min()) > 0 and float(prior) > 0


# ---- the posterior -------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [2, 17, 500, 1000])
def test_completing_the_square(t):
    """eq:posterior-square: the two squares are A x^2 - 2 B x + C, at points x_{t-1}, x_t, x_0."""
    bar = (1 - LONG).cumprod(0)
    beta, alpha, before = LONG[t - 1], 1 - LONG[t - 1], bar[t - 2]
    rng = torch.Generator().manual_seed(t)
    x, x_t, x0 = torch.randn(3, 20, dtype=D, generator=rng)
    bracket = (x_t - alpha.sqrt() * x) ** 2 / beta + (x - before.sqrt() * x0) ** 2 / (1 - before)
    a = alpha / beta + 1 / (1 - before)
    b = alpha.sqrt() / beta * x_t + before.sqrt() / (1 - before) * x0
    c = x_t**2 / beta + before / (1 - before) * x0**2
    # terms of size 1 / beta = 1e4 cancel: 1e-10 of them
    torch.testing.assert_close(a * x**2 - 2 * b * x + c, bracket, rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(a * (x - b / a) ** 2 - b**2 / a + c, bracket, rtol=1e-10, atol=1e-8)
    got = md.posterior(md.BetaTable(LONG)(t / 1000), md.BetaTable(LONG)((t - 1) / 1000), x_t, x0)
    torch.testing.assert_close(got.mean, b / a, rtol=1e-8, atol=1e-8)
    assert float(got.var) == pytest.approx(float(1 / a), rel=1e-9)


@pytest.mark.parametrize("t", [2, 17, 500, 1000])
def test_what_is_left_is_the_denominator(t):
    """eq:posterior-rest: C - B^2/A is the square in q(x_t|x_0), and the constants agree: no
    "proportional to" is left over.
    """
    bar = (1 - LONG).cumprod(0)
    beta, alpha, before, now = LONG[t - 1], 1 - LONG[t - 1], bar[t - 2], bar[t - 1]
    x, x_t, x0 = torch.randn(3, 20, dtype=D, generator=torch.Generator().manual_seed(t))
    a = alpha / beta + 1 / (1 - before)
    b = alpha.sqrt() / beta * x_t + before.sqrt() / (1 - before) * x0
    c = x_t**2 / beta + before / (1 - before) * x0**2
    rest = (x_t - now.sqrt() * x0) ** 2 / (1 - now)
    torch.testing.assert_close(c - b**2 / a, rest, rtol=1e-9, atol=1e-7)
    assert float(beta * (1 - before)) == pytest.approx(float((1 - now) / a), rel=1e-10)
    top = Normal(alpha.sqrt() * x, beta.sqrt()).log_prob(x_t)
    top = top + Normal(before.sqrt() * x0, (1 - before).sqrt()).log_prob(x)
    back = Normal(b / a, a**-0.5).log_prob(x)
    jump = Normal(now.sqrt() * x0, (1 - now).sqrt()).log_prob(x_t)
    torch.testing.assert_close(back + jump, top, rtol=1e-9, atol=1e-7)


# ---- the loss of one step ------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_the_constant_of_a_step(ratio):
    """eq:step-kl: a step's divergence is the gap of the means over 2 sigma^2 and a constant."""
    t, size = 40, 3
    bar = (1 - LONG).cumprod(0)
    tilde = (1 - bar[t - 2]) / (1 - bar[t - 1]) * LONG[t - 1]
    mean, guess = torch.randn(2, size, dtype=D, generator=torch.Generator().manual_seed(1))
    sigma2 = ratio * tilde
    want = kl(mean, tilde, guess, sigma2).sum()
    constant = size / 2 * ((sigma2 / tilde).log() + tilde / sigma2 - 1)
    got = ((mean - guess) ** 2).sum() / (2 * sigma2) + constant
    assert float(got) == pytest.approx(float(want), rel=1e-12)
    assert float(constant) == pytest.approx(0, abs=1e-12) if ratio == 1 else float(constant) > 0.1


@pytest.mark.parametrize("t", [2, 3, 30, 999, 1000])
def test_two_weights_of_the_bound(t):
    """eq:weight-tilde, eq:bound-weight-x0: with sigma^2 = beta tilde the weight of the noise is
    beta / (2 alpha (1 - bar before)), that of the data half the fall of the SNR.

    Both against the divergence of the two reverse Gaussians at a wrong guess of x_0. The SNRs of
    steps 999 and 1000 agree to two digits: 1e-9 is left of their difference.
    """
    bar = (1 - LONG).cumprod(0)
    beta, alpha, before, now = LONG[t - 1], 1 - LONG[t - 1], bar[t - 2], bar[t - 1]
    x0, guess, eps = (torch.tensor(v, dtype=D) for v in (0.8, -0.3, 1.1))
    x_t = now.sqrt() * x0 + (1 - now).sqrt() * eps
    eps_guess = (x_t - now.sqrt() * guess) / (1 - now).sqrt()
    tilde = (1 - before) / (1 - now) * beta

    def mean(data):
        ours = before.sqrt() * beta / (1 - now) * data
        return ours + alpha.sqrt() * (1 - before) / (1 - now) * x_t

    want = float(kl(mean(x0), tilde, mean(guess), tilde))
    by_noise = beta / (2 * alpha * (1 - before)) * (eps - eps_guess) ** 2
    by_data = (before / (1 - before) - now / (1 - now)) / 2 * (x0 - guess) ** 2
    assert float(by_noise) == pytest.approx(want, rel=1e-9)
    assert float(by_data) == pytest.approx(want, rel=1e-9)


def test_forward_variance_has_one_weight_for_all_steps():
    """eq:weight-forward: with sigma^2 = beta the weight also holds for the decoder at t = 1.

    The negative log-density of the last step, minus its part without the prediction.
    """
    beta = LONG[0]
    x0, guess, eps = (torch.tensor(v, dtype=D) for v in (0.8, 0.79, 1.1))
    x_1 = (1 - beta).sqrt() * x0 + beta.sqrt() * eps
    eps_guess = (x_1 - (1 - beta).sqrt() * guess) / beta.sqrt()
    cost = -Normal(guess, beta.sqrt()).log_prob(x0) + Normal(x0, beta.sqrt()).log_prob(x0)
    weight = beta / (2 * (1 - beta) * (1 - (1 - beta)))
    assert float(weight * (eps - eps_guess) ** 2) == pytest.approx(float(cost), rel=1e-9)


def test_simple_is_a_reweighted_bound():
    """eq:simple-reweights: L_simple is the mean of L_{t-1}, less its constant, over its weight.

    A guess of the noise that is a line, g_t x_t, in the chain of four steps with sigma^2 = beta.
    Left: the squared error of the noise. Right: divergences of the two reverse Gaussians, and for
    t = 1 a log-density, in the mean over x_t.
    """
    left = right = 0.0
    for t, g in zip(steps, [0.3, 0.6, 0.5, 0.8], strict=True):
        noise = (1 - BAR[t]).sqrt()
        left += (1 - g * noise) ** 2 + g**2 * BAR[t] * X0**2
        model = unit(t - 1) - (1 - BETA[t] / noise * g) / ALPHA[t].sqrt() * unit(t)
        if t == 1:
            excess = -expected((model, 0.0, BETA[1])) - (2 * math.pi * BETA[1]).log() / 2
        else:
            line, v = model - BACK[t][0], BACK[t][2]
            mean, spread = line @ MEAN, line @ COV @ line
            divergence = kl(mean, v, torch.zeros((), dtype=D), BETA[t]) + spread / BETA[t] / 2
            excess = divergence - kl(torch.zeros((), dtype=D), v, torch.zeros((), dtype=D), BETA[t])
        right += excess / (BETA[t] / (2 * ALPHA[t] * (1 - BAR[t])))
    assert float(left / T) == pytest.approx(float(right / T), rel=1e-10)


# ---- one draw ------------------------------------------------------------------------------------


def one_draw(n, odds, seed):
    """Draw a step, then x_t, and weigh the step's term by one over its probability."""
    rng = torch.Generator().manual_seed(seed)
    which = torch.multinomial(odds, n, replacement=True, generator=rng) + 1
    path = path_draws(n, seed + 1)
    out = torch.zeros(n, dtype=D)
    for t in steps:
        here, r = which == t, MODEL[t][0]
        if t == 1:
            cost = -log_at(MODEL[1], path[here])
        else:
            gap = path[here] @ (r - BACK[t][0]) - SHIFT[t]
            v = BACK[t][2]
            cost = ((STD[t] ** 2 / v).log() + (v + gap**2) / STD[t] ** 2 - 1) / 2
        out[here] = cost / odds[t - 1]
    return out


@pytest.mark.parametrize("odds", [[0.25, 0.25, 0.25, 0.25], [0.4, 0.3, 0.2, 0.1]])
def test_one_draw_has_no_bias(odds):
    """eq:one-draw: T times the term of one random step is right in the mean; so is 1/p_t for any
    odds. 100,000 draws against the closed form, within 4 standard errors, which are below 1 %.
    """
    _, inner, last = terms()
    want = float(inner.sum() + last)
    got = one_draw(100_000, torch.tensor(odds, dtype=D), 5)
    error = float(got.std() / len(got) ** 0.5)
    assert error < 0.01 * abs(want)
    assert abs(float(got.mean()) - want) < 4 * error
