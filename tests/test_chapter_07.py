"""Chapter 07, fewer steps: each equation of the family of steps, and of its best variance.

Most tests need nothing but a data set of two points or a Gaussian, whose posterior is a formula.
Where no tolerance is explained it is 1e-10 or less: rounding of a few operations in float64.
"""

import hashlib
import json
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from paths import D, data, each_path, guess, seeded
from torch import nn
from torch.distributions import Normal, kl_divergence

import minidiff as md
from minidiff import variance
from minidiff.process import moves

ROOT = Path(__file__).parents[1]
BETAS = md.linear_betas(1000)
BAR = [1.0, *(1 - BETAS).cumprod(0).tolist()]  # entry i is step i
TABLE = md.BetaTable(BETAS)
GRID = [(1000, 600), (600, 250), (250, 60), (60, 1)]  # long steps, from and to
NODES = torch.linspace(-9, 9, 4001, dtype=D)  # for sums over a standard normal
MASS = torch.exp(-(NODES**2) / 2) / math.sqrt(2 * math.pi) * (NODES[1] - NODES[0])


def level(i):
    """Signal and noise at step i of the table."""
    return math.sqrt(BAR[i]), math.sqrt(1 - BAR[i])


def step(t, s, var):
    """The two factors that keep the marginal, from the two conditions by hand."""
    (a, b), (a_s, b_s) = level(t), level(s)
    keep = math.sqrt(max(b_s**2 - var, 0)) / b
    return keep, a_s - keep * a


def tilde(t, s):
    """The variance of x_s given x_t and x_0 in the forward chain, by Bayes' rule in precisions."""
    ratio = BAR[t] / BAR[s]
    return 1 / (ratio / (1 - ratio) + 1 / (1 - BAR[s]))


# ---- a subset of the steps -----------------------------------------------------------------------


@pytest.mark.parametrize(("t", "s"), GRID)
def test_a_long_step_is_a_walk(t, s):
    """eq:respaced-step: gain and variance of all the small steps between s and t together."""
    gain, spread = 1.0, 0.0
    for beta in BETAS[s:t].tolist():
        gain, spread = math.sqrt(1 - beta) * gain, (1 - beta) * spread + beta
    assert gain == pytest.approx(math.sqrt(BAR[t] / BAR[s]), rel=1e-10)
    assert spread == pytest.approx(1 - BAR[t] / BAR[s], rel=1e-10)


@pytest.mark.parametrize("K", [2, 10, 50])
def test_the_betas_of_a_subset(K):
    """eq:respaced-beta: a table made of them has the old alpha-bar at each step that is left."""
    times = md.grids.linspaced(1000, K)
    chain = moves(TABLE, times, eta=1.0)
    steps = (times * 1000).round().long().tolist()
    betas = [1 - BAR[t] / BAR[s] for t, s in pairwise(steps)]
    got = [md.forward_variance(move) for move in chain]
    assert got == pytest.approx(betas, rel=1e-9)
    short = md.BetaTable(torch.tensor(betas[::-1], dtype=D))
    assert short.alpha_bars.tolist() == pytest.approx([BAR[i] for i in steps[-2::-1]], rel=1e-9)


@pytest.mark.parametrize("K", [3, 10, 50])
def test_the_posterior_variance_of_a_long_step(K):
    """eq:respaced-tilde: by precisions, which add up; 1e-8 because 1 - alpha-bar cancels digits."""
    times = md.grids.linspaced(1000, K)
    steps = (times * 1000).round().long().tolist()
    for (t, s), move in zip(pairwise(steps[:-1]), moves(TABLE, times, eta=1.0), strict=False):
        assert md.posterior_variance(move) == pytest.approx(tilde(t, s), rel=1e-8)


# ---- the family ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [(0, 0, 0, 0), (0.2, 0.9, 0.5, 0.7), (1, 1, 1, 1)])
def test_the_marginals_of_the_family(shares):
    """eq:two-conditions, eq:family-marginal: walk down with any variances up to noise^2.

    Follow mean and variance of x_s given x0 = 1.3 from step to step, keep and add from the two
    conditions: each time they are those of the jump.
    """
    x0, (a, b) = 1.3, level(1000)
    mean, var = a * x0, b**2
    for (t, s), share in zip(GRID, shares, strict=True):
        extra = share * (1 - BAR[s])
        keep, add = step(t, s, extra)
        mean, var = keep * mean + add * x0, keep**2 * var + extra
        assert mean == pytest.approx(math.sqrt(BAR[s]) * x0, rel=1e-12)
        assert var == pytest.approx(1 - BAR[s], rel=1e-10)


@pytest.mark.parametrize(("t", "s"), GRID)
def test_eta_one_is_the_step_of_ddpm(t, s):
    """eq:eta-one: with var = beta-tilde the factors are those of q(x_s | x_t, x0)."""
    beta = 1 - BAR[t] / BAR[s]
    keep, add = step(t, s, tilde(t, s))
    assert keep == pytest.approx(
        math.sqrt(BAR[t] / BAR[s]) * (1 - BAR[s]) / (1 - BAR[t]), rel=1e-10
    )
    assert add == pytest.approx(math.sqrt(BAR[s]) * beta / (1 - BAR[t]), rel=1e-10)
    (move,) = moves(TABLE, torch.tensor([t, s], dtype=D) / 1000, eta=1.0)
    assert (move.keep, move.add) == pytest.approx((keep, add), rel=1e-8)


def joint_given_x0(x0, shares):
    """Mean and covariance of (x_1000, x_600, x_250, x_60, x_1) in the family, x0 known."""
    a, b = level(1000)
    mean, rows = [a * x0], [torch.tensor([b, 0, 0, 0, 0], dtype=D)]
    for k, ((t, s), share) in enumerate(zip(GRID, shares, strict=True)):
        extra = share * tilde(t, s)
        keep, add = step(t, s, extra)
        mean.append(keep * mean[-1] + add * x0)
        row = keep * rows[-1]
        row[k + 1] = math.sqrt(extra)
        rows.append(row)
    rows = torch.stack(rows)
    return torch.tensor(mean, dtype=D), rows @ rows.T


def test_the_bound_of_the_family():
    """eq:family-bound: whole-path densities on one side, one term a step on the other.

    The model guesses x0 = .6 x_t + .1 at every step, with variances of its own, and ends in a
    Gaussian decoder. Everything is linear, so both sides are sums over means and covariances.
    """
    x0, shares, widths = 0.8, (0.3, 1.0, 0.6, 0.8), (0.5, 0.3, 0.2, 0.05)
    mean, cov = joint_given_x0(x0, shares)

    def expected_log(row, shift, var):  # E log N(row.x + shift; 0, var) under the path
        square = (row @ mean + shift) ** 2 + row @ cov @ row
        return -0.5 * (math.log(2 * math.pi * var) + square / var)

    unit = torch.eye(5, dtype=D)
    path = -0.5 * torch.logdet(2 * math.pi * math.e * cov)  # E log q(path | x0)
    model = expected_log(unit[0], 0.0, 1.0) + expected_log(-0.6 * unit[4], x0 - 0.1, 0.01)
    terms = float(kl_divergence(Normal(mean[0], cov[0, 0].sqrt()), Normal(0.0, 1.0)))
    terms -= float(expected_log(-0.6 * unit[4], x0 - 0.1, 0.01))
    for k, ((t, s), share, width) in enumerate(zip(GRID, shares, widths, strict=True)):
        extra = share * tilde(t, s)
        keep, add = step(t, s, extra)
        row = unit[k + 1] - (keep + add * 0.6) * unit[k]
        model += expected_log(row, -0.1 * add, width)
        gap = (add * (x0 - 0.1 - 0.6 * mean[k])) ** 2 + (0.6 * add) ** 2 * cov[k, k]
        terms += float(0.5 * (math.log(width / extra) + (extra + gap) / width - 1))
    assert float(path - model) == pytest.approx(terms, rel=1e-10)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_weight_of_the_family(eta):
    """eq:family-weight: the divergence of the two steps, from torch, is a weighted noise error."""
    times = torch.tensor([1.0, 0.6, 0.25, 0.06], dtype=D)
    for move in moves(TABLE, times, eta=eta):
        a, b = float(move.at_t.signal), float(move.at_t.noise)
        x0, eps, eps_hat = 0.4, -0.7, 0.2
        x = a * x0 + b * eps
        x0_hat = (x - b * eps_hat) / a
        std = math.sqrt(move.var)
        steps = [
            Normal(torch.tensor(move.keep * x + move.add * v, dtype=D), std) for v in (x0, x0_hat)
        ]
        weight = move.add**2 * b**2 / (2 * move.var * a**2)
        assert float(kl_divergence(*steps)) == pytest.approx(
            weight * (eps - eps_hat) ** 2, rel=1e-9
        )


# ---- DDIM as a differential equation -------------------------------------------------------------


@each_path
def test_ddim_is_eulers_step(path):
    """eq:ddim-euler: x over signal moves along the implied noise, as the ratio of levels falls."""
    times = torch.tensor([0.9, 0.7, 0.4, 0.2, 0.05], dtype=D)
    x = data(4, 3)
    for t, s, state in zip(times, times[1:], md.ddim(guess, path, x, times), strict=False):
        at, to = path(t), path(s)
        eps = (x - float(at.signal) * guess(x, t)) / float(at.noise)
        ratio = float(to.noise / to.signal - at.noise / at.signal)
        torch.testing.assert_close(
            state.x / float(to.signal), x / float(at.signal) + ratio * eps, rtol=1e-10, atol=1e-10
        )
        x = state.x


def test_the_flow_follows_the_implied_noise():
    """eq:ddim-ode: on the exact flow of two bells the slope of x/signal in noise/signal is eps.

    Central differences of the flow, whose points are found by bisection: 1e-6.
    """
    bells = md.GaussianMixture(torch.tensor([[-1.0], [0.8]], dtype=D), torch.tensor(0.3, dtype=D))
    path, t, h = md.Cosine(), 0.5, 1e-4
    at = path(t)
    x = torch.linspace(-1.5, 1.5, 7, dtype=D)[:, None]
    eps = (x - at.signal * bells.denoiser(path)(x, torch.tensor(t, dtype=D))) / at.noise
    ends = []
    for s in (t + h, t - h):
        to = path(s)
        ends.append((bells.flow(x, t, s, path) / to.signal, to.noise / to.signal))
    slope = (ends[0][0] - ends[1][0]) / (ends[0][1] - ends[1][1])
    torch.testing.assert_close(slope, eps, rtol=1e-6, atol=1e-6)


def ratios(K, path):
    """Times of K equal steps of log(noise / signal) from 3 to 1/3, and these ratios."""
    r = torch.exp(torch.linspace(math.log(3), -math.log(3), K + 1, dtype=D))
    return path.t_of(-2 * r.log()), r


@pytest.mark.parametrize("K", [4, 16])
def test_ddim_on_a_gaussian(K):
    """eq:ddim-gaussian: the product of the steps' gains, against the sampler."""
    c, path = 0.5, md.Cosine()
    times, r = ratios(K, path)
    denoise = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor(c, dtype=D)).denoiser(path)
    end = md.last(md.ddim(denoise, path, torch.ones(1, 1, dtype=D), times))
    want = 1.0
    for near, far in pairwise(r.tolist()):
        want *= 1 - (near - far) * near / (c**2 + near**2)
    start, stop = path(times[0]), path(times[-1])
    assert float(end / stop.signal * start.signal) == pytest.approx(want, rel=1e-9)


def test_the_error_of_ddim_falls_like_one_over_K():
    """The exact gain is sqrt((c^2 + r_s^2) / (c^2 + r_t^2)); twice the steps, half the error."""
    c, errors = 0.5, []
    for K in (100, 200, 400):
        r = ratios(K, md.Cosine())[1].tolist()
        gain = math.prod(1 - (n - f) * n / (c**2 + n**2) for n, f in pairwise(r))
        errors.append(abs(gain - math.sqrt((c**2 + r[-1] ** 2) / (c**2 + r[0] ** 2))))
    for before, after in pairwise(errors):
        assert before / after == pytest.approx(2, abs=0.04)  # the next order is about 1/K


def test_one_round_trip():
    """eq:round-trip: encode one step and decode it again; to leading order h^2 times the slope.

    Gaussian data, where eps = r y / (c^2 + r^2) and its slope along the flow is, by the product
    rule, c^2 y / (c^2 + r^2)^2. Half the step leaves half of the relative difference.
    """
    c, path, y = 0.5, md.Cosine(), 0.9
    denoise = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor(c, dtype=D)).denoiser(path)
    r, off = 0.6, []
    for h in (0.02, 0.01, 0.005):
        times = path.t_of(-2 * torch.log(torch.tensor([r, r + h], dtype=D)))
        at = path(times[0])
        x = torch.full((1, 1), y, dtype=D) * at.signal
        up = md.last(md.encode(denoise, path, x, times))
        back = md.last(md.ddim(denoise, path, up, times.flip(0)))
        error = float((back - x) / at.signal)
        off.append(error / (-(h**2) * c**2 * y / (c**2 + r**2) ** 2) - 1)
    assert abs(off[-1]) < 0.02
    for before, after in pairwise(off):
        assert before / after == pytest.approx(2, rel=0.05)


# ---- the best variance ---------------------------------------------------------------------------


def two_points(x, a, b):
    """Mean of x0 given x_t if x0 is 1 or -1 with equal odds: log-odds 2 a x / b^2."""
    return torch.tanh(a * x / b**2)


def test_the_best_mean_and_the_best_variance_of_a_pair():
    """eq:pair-cost: among all Gaussians the cost is least at the conditional mean, and there at
    the mean squared error, where it is half a log of 2 pi e sigma^2.
    """
    rng = seeded(5)
    odds = torch.rand(3, 4, generator=rng, dtype=D)
    odds = odds / odds.sum()  # of (x_t, x_s)
    x_s = torch.tensor([-1.0, 0.2, 0.7, 2.0], dtype=D)
    best = (odds * x_s).sum(1) / odds.sum(1)
    least = float((odds * (x_s - best[:, None]) ** 2).sum())

    def cost(mean, var):
        return (odds * (torch.log(2 * math.pi * var) + (x_s - mean[:, None]) ** 2 / var)).sum() / 2

    mean = best.clone().requires_grad_()
    var = torch.tensor(least, dtype=D, requires_grad=True)
    here = cost(mean, var)
    slopes = torch.autograd.grad(here, (mean, var))
    assert max(float(s.abs().max()) for s in slopes) < 1e-12
    assert float(here.detach()) == pytest.approx(
        0.5 * math.log(2 * math.pi * math.e * least), rel=1e-12
    )
    for shift in (-0.1, 0.1):
        assert cost(best + shift, torch.tensor(least, dtype=D)) > here + 1e-4
        assert cost(best, torch.tensor(least * (1 + shift), dtype=D)) > here + 1e-4


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("t", "s"), [(600, 250), (250, 60)])
def test_mean_and_variance_of_the_way_back(t, s, share):
    """eq:optimal-mean, eq:total-variance: q(x_s | x_t) of two points, moments by a sum on a grid.

    Given x_t the point before it is one of two bells, around keep x_t + add and keep x_t - add.
    """
    (a, b), extra = level(t), share * tilde(t, s) + 1e-6
    keep, add = step(t, s, extra)
    for x in (-0.4, 0.1, 1.2):
        mean0 = math.tanh(a * x / b**2)
        odds = {1.0: (1 + mean0) / 2, -1.0: (1 - mean0) / 2}
        first = second = 0.0
        for x0, share0 in odds.items():
            points = keep * x + add * x0 + math.sqrt(extra) * NODES
            first += share0 * float((MASS * points).sum())
            second += share0 * float((MASS * points**2).sum())
        assert first == pytest.approx(keep * x + add * mean0, abs=1e-9)
        assert second - first**2 == pytest.approx(extra + add**2 * (1 - mean0**2), abs=1e-9)


def mean_doubt(t):
    """E Var[x0 | x_t] of two points, by a sum over x_t."""
    a, b = level(t)
    total = 0.0
    for x0 in (-1.0, 1.0):
        x = a * x0 + b * NODES
        total += 0.5 * float((MASS * (1 - two_points(x, a, b) ** 2)).sum())
    return total


@pytest.mark.parametrize("K", [5, 20])
def test_between_the_two_fixed_choices(K):
    """eq:optimal-between: beta-tilde <= sigma^2 <= beta for data of variance 1, here two points.

    With variance 4 the upper bound fails: it is no theorem for data of any scale.
    """
    times = md.grids.linspaced(1000, K)
    steps = (times * 1000).round().long().tolist()
    chain, shares = moves(TABLE, times, eta=1.0)[:-1], []
    for (t, s), move in zip(pairwise(steps), chain, strict=False):
        best = variance.analytic(lambda at, t=t: mean_doubt(t))(move)
        beta = 1 - BAR[t] / BAR[s]
        assert tilde(t, s) < best < beta * (1 + 1e-8)  # nearly equal while all is noise
        shares.append((best - tilde(t, s)) / (beta - tilde(t, s)))
    assert max(shares) > 0.99 and min(shares) < 0.9  # it does lie between
    wide = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor(2.0, dtype=D))
    over = [
        variance.analytic(lambda at, t=t: wide.mmse(t / 1000, TABLE))(move) / move.forward
        for t, move in zip(steps, chain, strict=False)
    ]
    assert max(over) > 1.1
    unit = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor(1.0, dtype=D))
    for t, move in zip(steps, chain, strict=False):  # equality, eq:beta-choice
        best = variance.analytic(lambda at, t=t: unit.mmse(t / 1000, TABLE))(move)
        assert best == pytest.approx(move.forward, rel=1e-9)


def test_the_doubt_of_bounded_data():
    """eq:variance-range: no distribution on [a, b] is wider than half its mass at either end."""
    odds = torch.rand(500, 6, generator=seeded(1), dtype=D)
    odds = odds / odds.sum(1, keepdim=True)
    points = torch.cat([torch.tensor([-1.0, 3.0], dtype=D), data(4, seed=2).clamp(-1, 3)])
    mean = (odds * points).sum(1)
    var = (odds * points**2).sum(1) - mean**2
    assert float(var.max()) < 4 == ((3 + 1) / 2) ** 2
    torch.testing.assert_close(var <= (3 - mean) * (mean + 1), torch.ones(500, dtype=torch.bool))
    ends = torch.tensor([-1.0, 3.0], dtype=D)
    assert float(ends.var(unbiased=False)) == 4.0


@pytest.mark.parametrize(("t", "s"), GRID[:3])
def test_the_score_form_of_the_best_variance(t, s):
    """eq:optimal-score: beta/alpha (1 - beta E|score|^2), the form of the theorem, at eta = 1.

    The score of the noisy two points is (a tanh(a x / b^2) - x) / b^2; sums over x_t.
    """
    (a, b), beta, alpha = level(t), 1 - BAR[t] / BAR[s], BAR[t] / BAR[s]
    size = 0.0
    for x0 in (-1.0, 1.0):
        x = a * x0 + b * NODES
        size += 0.5 * float((MASS * ((a * two_points(x, a, b) - x) / b**2) ** 2).sum())
    (move,) = moves(TABLE, torch.tensor([t, s], dtype=D) / 1000, eta=1.0)
    want = beta / alpha * (1 - beta * size)
    assert variance.analytic(lambda at: mean_doubt(t))(move) == pytest.approx(want, rel=1e-8)
    gamma = b**2 * size  # eq:gamma with the exact noise
    assert (b / a) ** 2 * (1 - gamma) == pytest.approx(mean_doubt(t), rel=1e-7, abs=1e-9)


def test_a_wrong_mean_wants_more_variance():
    """eq:imperfect: the mean square around a wrong mean; three kinds of wrong, two points."""
    (t, s), x = (600, 250), 0.3
    (a, b), extra = level(t), 0.5 * tilde(600, 250)
    keep, add = step(t, s, extra)
    mean0 = math.tanh(a * x / b**2)
    for guessed in (mean0, mean0 + 0.3, 0.0):
        square = error = 0.0
        for x0, odds in ((1.0, (1 + mean0) / 2), (-1.0, (1 - mean0) / 2)):
            points = keep * x + add * x0 + math.sqrt(extra) * NODES
            square += odds * float((MASS * (points - keep * x - add * guessed) ** 2).sum())
            error += odds * (x0 - guessed) ** 2
        assert square == pytest.approx(extra + add**2 * error, abs=1e-9)
        assert error == pytest.approx(1 - mean0**2 + (mean0 - guessed) ** 2, rel=1e-12)


class Fixed(nn.Module):
    """A net with two outputs that are parameters."""

    def __init__(self, y, second):
        super().__init__()
        self.y, self.second = nn.Parameter(y), nn.Parameter(second)

    def forward(self, x, t, cond=None):
        return md.Output(self.y, self.second)


@pytest.mark.parametrize("t", [2, 40, 99])
def test_the_slope_of_the_learned_range(t):
    """eq:range-slope: what L_hybrid does to v; zero where sigma^2 is the squared error's mean.

    The second term of the loss has weight w T / D; v moves log sigma^2 by half the log of
    beta / beta-tilde. The first term has no slope in v, the second none in the mean.
    """
    table = md.BetaTable(md.linear_betas(100))
    betas = table.betas.tolist()
    bar = [1.0, *table.alpha_bars.tolist()]
    beta, small = betas[t - 1], (1 - bar[t - 1]) / (1 - bar[t]) * betas[t - 1]
    add = math.sqrt(bar[t - 1]) * beta / (1 - bar[t])
    x0, y, v = data(1, 3), data(1, 3, seed=1), torch.tensor([[-0.6, 0.2, 1.4]], dtype=D)
    net = Fixed(y, v)
    model = md.Denoiser(net, table, "x0")

    def times(schedule, n, rng):
        return torch.full((n,), t / 100, dtype=D)

    loss = md.likelihood.hybrid_loss(model, x0, weight=0.01, times=times, rng=seeded(3)).sum()
    slope_y, slope_v = torch.autograd.grad(loss, (net.y, net.second))
    torch.testing.assert_close(slope_y, 2 * (y - x0) / 3, rtol=1e-10, atol=1e-12)
    wide = (beta ** ((v + 1) / 2)) * (small ** ((1 - v) / 2))
    want = 0.5 * (1 - (small + add**2 * (x0 - y) ** 2) / wide)
    want = want * 0.5 * math.log(beta / small) * 0.01 * 100 / 3
    torch.testing.assert_close(slope_v, want, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 3.0, 10.0])
def test_the_price_of_a_wrong_variance(ratio):
    """eq:variance-price: the cost of a step with sigma^2 = A / ratio, less that with A."""
    var, gap = 0.3, 0.7
    best = var + gap

    def cost(sigma2):  # mean of a divergence whose mean squared gap of means is `gap`
        return 0.5 * (math.log(sigma2 / var) + (var + gap) / sigma2 - 1)

    price = cost(best / ratio) - cost(best)
    assert price == pytest.approx(0.5 * (ratio - 1 - math.log(ratio)), abs=1e-12)
    wrong, right = Normal(0.0, math.sqrt(best / ratio)), Normal(0.0, math.sqrt(best))
    assert price == pytest.approx(float(kl_divergence(right, wrong)), abs=1e-6)


# ---- the committed grids -------------------------------------------------------------------------

sys.path.insert(0, str(ROOT / "scripts"))
import fewer_steps  # noqa: E402

sys.path.pop(0)
GRIDS = {"digits": 500, "mnist": 1000}
each_grid = pytest.mark.parametrize("name", GRIDS)


def committed(name):
    path = ROOT / "notebooks" / f"07_fewer_steps_{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


@each_grid
def test_the_grid_is_whole(name):
    """Every cell that the script plans was measured once, with the counts that the page names."""
    rows = committed(name)["rows"]
    cells = fewer_steps.cells_of(name, [0, 1, 2])
    assert {tuple(row["cell"]) for row in rows} == set(cells)
    single = [tuple(row["cell"]) for row in rows if row["kind"] != "bound"]
    assert len(single) == len(set(single))
    assert all(row["samples"] == GRIDS[name] for row in rows if row["kind"] == "sample")
    arms = {a for a in fewer_steps.BOUNDED if name == "digits" or a != "hybrid"}
    for cell in (c for c in cells if c[0] == "bound"):
        assert {row["arm"] for row in rows if tuple(row["cell"]) == cell} == arms
    assert all(math.isfinite(v) for row in rows for v in row.values() if isinstance(v, float))


@each_grid
def test_the_grid_was_made_with_the_shipped_weights(name):
    """The checksums in the file are those of the files in the wheel."""
    sums = committed(name)["checkpoints"]
    assert {f"{name}-{part}" for part in ("ddpm", "range", "sn", "npr", "classifier")} <= set(sums)
    for model, noted in sums.items():
        path = md.checkpoints.WEIGHTS / f"{model}.safetensors"
        assert hashlib.sha256(path.read_bytes()).hexdigest() == noted, model


VERDICTS = {  # what section 7.7 says of each claim: (loser, winner, steps) on digits and on MNIST
    ("beta-tilde", "ddim", 10): ("open", "open"),
    ("beta-tilde", "ddim", 20): ("holds", "fails"),
    ("beta-uncapped", "beta-tilde", 10): ("holds", "holds"),
    ("beta", "beta-tilde", 10): ("holds", "holds"),
    ("beta-tilde", "analytic", 10): ("open", "fails"),
    ("beta", "analytic", 10): ("holds", "holds"),
    ("ddim", "analytic-ddim", 10): ("holds", "open"),
    ("analytic", "npr", 10): ("open", "fails"),
    ("sn", "npr", 10): ("open", "holds"),
}


def fd_ratios(name, above, below):
    """Return FD of one cell (arm, K) over that of another, for each seed that both have."""
    fd = {tuple(r["cell"]): r["fd"] for r in committed(name)["rows"] if r["kind"] == "sample"}
    pairs = [(fd.get(("sample", *above, s)), fd.get(("sample", *below, s))) for s in range(3)]
    return [a / b for a, b in pairs if a is not None and b is not None]


@pytest.mark.parametrize(("claim", "verdicts"), VERDICTS.items(), ids=str)
def test_the_claims_of_the_page(claim, verdicts):
    """Right with each of three seeds, wrong with each, or open."""
    loser, winner, K = claim
    for name, verdict in zip(GRIDS, verdicts, strict=True):
        found = fd_ratios(name, (loser, K), (winner, K))
        assert len(found) == 3
        assert verdict == ("holds" if min(found) > 1 else "fails" if max(found) < 1 else "open")


def test_twenty_steps_for_a_thousand():
    """The mark of 1.5: kept on small digits, on both sides of it on MNIST, above it in the mean."""
    assert (
        len(small := fd_ratios("digits", ("ddim", 20), ("beta-tilde", 1000))) == 1
        and small[0] < 1.5
    )
    low, high = sorted(fd_ratios("mnist", ("ddim", 20), ("beta-tilde", 1000)))
    assert low < 1.5 < (low + high) / 2 < high
    at_fifty = fd_ratios("mnist", ("ddim", 50), ("beta-tilde", 50))
    assert min(at_fifty) < 1 < sum(at_fifty) / 3


def test_the_script_goes_on_where_it_stopped(tmp_path):
    """A second call measures what is missing and leaves the rest as it was."""
    out = tmp_path / "grid.json"

    def call(most):
        main = ["--data", "digits", "--untrained", "--count", "4", "--seeds", "0"]
        assert fewer_steps.main([*main, "--most", str(most), "--out", str(out)]) == 0
        return json.loads(out.read_text())["rows"]

    before = call(5)
    assert {row["K"] for row in before} == {0, 5}
    after = call(10)
    assert after[: len(before)] == before
    assert {row["K"] for row in after} == {0, 5, 10}
    by = {tuple(row["cell"]): row for row in after if row["kind"] == "sample"}
    # random weights have heads of 0: SN and NPR then see no doubt, and are beta-tilde
    assert by["sample", "npr", 5, 0]["fd"] == by["sample", "beta-tilde", 5, 0]["fd"]
    assert by["sample", "analytic", 5, 0]["fd"] != by["sample", "beta-tilde", 5, 0]["fd"]
