"""The derivations of the chapter on the forward process, both sides of each evaluated.

All in float64. What is a finite sum or linear algebra agrees to rounding, 1e-12 for a chain of 50
steps. What is an integral is a sum over a grid of a smooth function that vanishes at both ends,
which is exact to rounding as well.
"""

import math

import pytest
import torch
from paths import D, data

import minidiff as md
from minidiff import exact

TABLES = {
    "linear": md.linear_betas(50),
    "cosine": md.cosine_betas(50),
    "quadratic": md.quadratic_betas(50),
}
each_table = pytest.mark.parametrize("betas", TABLES.values(), ids=TABLES.keys())
MEANS, STD, WEIGHTS = [-1.2, 0.8], 0.2, [0.4, 0.6]  # mean 0 and variance 1
GRID = torch.linspace(-8, 8, 16_001, dtype=D)
STEP = float(GRID[1] - GRID[0])


def bells(std=STD):
    means, weights = torch.tensor(MEANS, dtype=D)[:, None], torch.tensor(WEIGHTS, dtype=D)
    return md.GaussianMixture(means, torch.tensor(std, dtype=D), weights)


def normal(u, mean, var):
    return torch.exp(-((u - mean) ** 2) / (2 * var)) / (2 * math.pi * var) ** 0.5


def density(u, bar, std=STD):
    """q(x_t) of the two bells at a given alpha-bar, written out."""
    var = bar * std**2 + 1 - bar
    return sum(w * normal(u, bar**0.5 * m, var) for m, w in zip(MEANS, WEIGHTS, strict=True))


def slopes(x, order, bar, std=STD):
    """Derivatives 1 .. order of log q(x_t) at x, by autograd of the density written out."""
    x = x.clone().requires_grad_()
    out, found = density(x, bar, std).log(), []
    for _ in range(order):
        (out,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        found.append(out.detach())
    return found


def two_steps(bar, beta):
    """A table whose first step leaves alpha-bar = bar and whose second adds beta."""
    return md.BetaTable(torch.tensor([1 - bar, beta], dtype=D))


def products(betas):
    """Plain lists of alphas and alpha-bars with entry 0 for clean data."""
    alphas, bars = [1.0], [1.0]
    for beta in betas.tolist():
        alphas.append(1 - beta)
        bars.append(bars[-1] * (1 - beta))
    return alphas, bars


def unrolled(betas):
    """Rows t = 1..T: the factors of x_0 and of eps_1 .. eps_T in x_t, by walking the chain."""
    row, rows = [1.0] + [0.0] * len(betas), []
    for t, beta in enumerate(betas.tolist(), start=1):
        row = [math.sqrt(1 - beta) * f for f in row]
        row[t] += math.sqrt(beta)
        rows.append(row)
    return torch.tensor(rows, dtype=D)


# ---- the chain -----------------------------------------------------------------------------------


@each_table
def test_covariance_of_a_walk(betas):
    """eq:variance-walk: V <- alpha V + beta I, started at any covariance, is alpha-bar C + ..."""
    root = data(3, 3)
    start = walked = root @ root.mT
    eye = torch.eye(3, dtype=D)
    for beta, bar in zip(betas.tolist(), products(betas)[1][1:], strict=True):
        walked = (1 - beta) * walked + beta * eye
        torch.testing.assert_close(walked, bar * start + (1 - bar) * eye, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(walked, eye, rtol=0, atol=1e-3)  # and what is left is noise


@each_table
def test_joint_is_a_product(betas):
    """eq:chain-joint: the density of all x_1..x_T at once, from their covariance, is the product.

    The covariance is A A^T with the unrolled factors A of the noises; log-densities near 50, and
    a matrix with condition 1e6: 1e-8.
    """
    betas, x0 = betas[::10], 0.7
    factors = unrolled(betas)
    joint = torch.distributions.MultivariateNormal(
        factors[:, 0] * x0, factors[:, 1:] @ factors[:, 1:].mT
    )
    walked = factors @ torch.cat([torch.tensor([x0], dtype=D), data(len(betas))])
    x = torch.cat([torch.tensor([x0], dtype=D), walked])
    each = normal(x[1:], (1 - betas).sqrt() * x[:-1], betas).log().sum()
    assert float(joint.log_prob(x[1:])) == pytest.approx(float(each), rel=1e-8)


@each_table
def test_walk_is_a_sum(betas):
    """eq:walk-sum, eq:telescope: every eps_s arrives at x_t with sqrt(bar_t / bar_s beta_s)."""
    factors, (_, bars) = unrolled(betas), products(betas)
    for t in range(1, len(betas) + 1):
        want = [math.sqrt(bars[t])] + [
            math.sqrt(bars[t] / bars[s] * float(betas[s - 1])) for s in range(1, t + 1)
        ]
        torch.testing.assert_close(
            factors[t - 1, : t + 1], torch.tensor(want, dtype=D), rtol=1e-12, atol=0
        )
        assert sum(f * f for f in want[1:]) == pytest.approx(1 - bars[t], rel=1e-12)


@each_table
def test_covariance_of_two_times(betas):
    """eq:chain-covariance: shared noise only, sqrt(bar_t / bar_s) times the variance at s."""
    factors, (_, bars) = unrolled(betas), products(betas)
    given = factors[:, 1:] @ factors[:, 1:].mT  # x_0 known
    c2 = 2.5
    free = given + c2 * torch.outer(factors[:, 0], factors[:, 0])  # x_0 of variance 2.5
    for s, t in [(1, 2), (3, 40), (20, 20), (10, 50)]:
        ratio = math.sqrt(bars[t] / bars[s])
        assert float(given[s - 1, t - 1]) == pytest.approx(ratio * (1 - bars[s]), rel=1e-11)
        var_s = bars[s] * c2 + 1 - bars[s]
        assert float(free[s - 1, t - 1]) == pytest.approx(ratio * var_s, rel=1e-11)


# ---- the distribution of noisy data ----------------------------------------------------------


@pytest.mark.parametrize("bar", [0.95, 0.5, 0.02])
def test_marginal_is_a_convolution(bar):
    """eq:marginal-convolution: average over x_0, convolution of the shrunk data, and the oracle.

    The shrunk data sqrt(bar) x_0 have density q(u / sqrt(bar)) / sqrt(bar).
    """
    table = md.BetaTable(torch.tensor([1 - bar], dtype=D))
    for x in (-1.3, 0.1, 2.0):
        average = (density(GRID, 1.0) * normal(x, bar**0.5 * GRID, 1 - bar)).sum() * STEP
        shrunk = density(GRID / bar**0.5, 1.0) / bar**0.5
        convolved = (shrunk * normal(x - GRID, 0.0, 1 - bar)).sum() * STEP
        point = torch.tensor([[x]], dtype=D)
        closed = float(bells().log_prob(point, 1.0, table).exp())
        assert float(average) == pytest.approx(closed, rel=1e-10)
        assert float(convolved) == pytest.approx(closed, rel=1e-10)
    plain = (density(GRID, 1.0) * normal(0.1 - GRID, 0.0, 1 - bar)).sum() * STEP
    oracle = float(bells().log_prob(torch.tensor([[0.1]], dtype=D), 1.0, table).exp())
    assert abs(float(plain) / oracle - 1) > 0.02  # without the shrinking it is another density


@pytest.mark.parametrize("c", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("bar", [0.9, 0.36, 4e-3])
def test_what_x_still_knows(bar, c):
    """eq:mutual-information: the mean over x_0 of KL(q(x_t | x_0) || q(x_t)), by two sums."""
    x0 = torch.linspace(-9 * c, 9 * c, 241, dtype=D)
    u = torch.linspace(-24, 24, 2401, dtype=D)
    total = bar * c * c + 1 - bar
    ratio = -((u - bar**0.5 * x0[:, None]) ** 2) / (2 * (1 - bar)) + u**2 / (2 * total)
    ratio = ratio + math.log(total / (1 - bar)) / 2
    inner = (normal(u, bar**0.5 * x0[:, None], 1 - bar) * ratio).sum(1) * (u[1] - u[0])
    found = float((normal(x0, 0.0, c * c) * inner).sum() * (x0[1] - x0[0]))
    snr = bar / (1 - bar)
    assert found == pytest.approx(math.log(1 + snr * c * c) / 2, rel=1e-9)


def test_power_of_each_frequency():
    """eq:spectrum: in the rows of an orthonormal Fourier matrix noise is as white as before.

    The data: 16 values with any covariance. Both sides are the diagonal of a matrix.
    """
    n, bar = 16, 0.3
    k = torch.arange(n, dtype=D)
    waves = torch.exp(-2j * math.pi * torch.outer(k, k) / n) / n**0.5
    root = data(n, n, seed=2)
    cov = (root @ root.mT).to(waves)
    noisy = bar * cov + (1 - bar) * torch.eye(n).to(waves)
    power = (waves @ cov @ waves.mH).diagonal().real
    got = (waves @ noisy @ waves.mH).diagonal().real
    torch.testing.assert_close(got, bar * power + 1 - bar, rtol=1e-12, atol=0)


# ---- tables ----------------------------------------------------------------------------------


@pytest.mark.parametrize("T", [25, 100, 1000])
def test_linear_tables_end_alike(T):
    """eq:linear-end: the betas add up to (.1 + 20) / 2 whatever T, and bar_T is below exp(-10.05).

    -log(1 - b) lies between b and b + b^2 / (2 (1 - b)), term by term of its series.
    """
    betas = md.linear_betas(T).tolist()
    assert sum(betas) == pytest.approx((0.1 + 20.0) / 2, rel=1e-12)
    unscaled = [1e-4 + (0.02 - 1e-4) * i / (T - 1) for i in range(T)]
    assert sum(unscaled) == pytest.approx(0.01005 * T, rel=1e-12)
    for table in (betas, unscaled):
        bar = math.prod(1 - b for b in table)
        low = sum(b + b * b / (2 * (1 - b)) for b in table)
        assert math.exp(-low) < bar < math.exp(-sum(table))


# ---- the way back ----------------------------------------------------------------------------


def test_reverse_is_prior_times_a_narrow_bell():
    """eq:reverse-tilt: Bayes' rule with the step seen from x_s, centre x_t / sqrt(alpha)."""
    bar, x = 0.7, 0.3
    for beta in (0.01, 0.3, 0.9):
        now = (1 - beta) * bar
        prior = density(GRID, bar)
        step = normal(torch.tensor(x, dtype=D), (1 - beta) ** 0.5 * GRID, beta)
        bayes = step * prior / density(torch.tensor(x, dtype=D), now)
        bell = normal(GRID, x / (1 - beta) ** 0.5, beta / (1 - beta))
        tilt = prior * bell / ((prior * bell).sum() * STEP)
        torch.testing.assert_close(bayes, tilt, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("beta", [0.01, 0.3, 0.9])
def test_mean_and_variance_of_the_way_back(beta):
    """eq:reverse-mean, eq:reverse-variance: score and curvature of q(x_t), no approximation."""
    bar = 0.7
    x = torch.tensor([-1.4, -0.1, 0.3, 2.0], dtype=D)
    first, second = slopes(x, 2, (1 - beta) * bar)
    for i, value in enumerate(x.tolist()):
        q = density(GRID, bar) * normal(
            torch.tensor(value, dtype=D), (1 - beta) ** 0.5 * GRID, beta
        )
        q = q / q.sum()
        mean = float((q * GRID).sum())
        var = float((q * (GRID - mean) ** 2).sum())
        want = (value + beta * float(first[i])) / (1 - beta) ** 0.5
        assert mean == pytest.approx(want, rel=1e-9, abs=1e-11)
        want = beta / (1 - beta) * (1 + beta * float(second[i]))
        assert var == pytest.approx(want, rel=1e-9)


def test_any_other_gaussian_pays_for_the_difference():
    """eq:pythagoras: KL to N(m, v) is that to the best Gaussian, plus from the best to N(m, v)."""
    q = density(GRID, 0.8)
    mean = float((q * GRID).sum() * STEP)
    var = float((q * (GRID - mean) ** 2).sum() * STEP)

    def gap(m, v):
        return float((q * (q / normal(GRID, m, v)).log()).sum() * STEP)

    for m, v in [(0.0, 0.5), (1.0, 1.0), (-0.3, 4.0)]:
        between = (math.log(v / var) + (var + (mean - m) ** 2) / v - 1) / 2
        assert gap(m, v) == pytest.approx(gap(mean, var) + between, rel=1e-9)


def test_second_order_of_the_way_back():
    """eq:reverse-expansion: exact for Gaussian data; for the bells its errors fall fast.

    A ten times smaller beta: the mean's error falls 100 times, the variance's 1000 times, but for
    a few percent of the next order.
    """
    bar, c2, x, beta = 0.6, 2.0, 0.9, 0.2
    v = bar * c2 + 1 - bar
    tau, y = beta / (1 - beta), x / (1 - beta) ** 0.5
    q = normal(GRID, 0.0, v) * normal(torch.tensor(x, dtype=D), (1 - beta) ** 0.5 * GRID, beta)
    q = q / q.sum()
    mean = float((q * GRID).sum())
    assert mean == pytest.approx(y + tau * (-y / v) / (1 + tau / v), rel=1e-10)
    assert float((q * (GRID - mean) ** 2).sum()) == pytest.approx(tau / (1 + tau / v), rel=1e-10)
    misses = []
    for beta in (1e-3, 1e-4):
        tau, y = beta / (1 - beta), torch.tensor([x / (1 - beta) ** 0.5], dtype=D)
        first, second = slopes(y, 2, bar)
        step = exact.reverse_step(
            bells(), torch.tensor([[x]], dtype=D), 1.0, 0.5, two_steps(bar, beta)
        )
        mean, var = exact.best_gaussian(step)
        near, wide = y + tau * first / (1 - tau * second), tau / (1 - tau * second)
        misses.append((abs(float(mean - near)), abs(float(var - wide))))
    (mean_1, var_1), (mean_2, var_2) = misses
    assert 90 < mean_1 / mean_2 < 110 and 900 < var_1 / var_2 < 1100


def test_third_order_of_the_way_back():
    """eq:cubic-gap: tau^3 f'''^2 / 12, with a relative error that falls in proportion to tau."""
    bar, x, errors = 0.7, 0.35, []
    for beta in (1e-3, 1e-4):
        tau = beta / (1 - beta)
        third = slopes(torch.tensor([x / (1 - beta) ** 0.5], dtype=D), 3, bar)[2]
        step = exact.reverse_step(
            bells(), torch.tensor([[x]], dtype=D), 1.0, 0.5, two_steps(bar, beta)
        )
        errors.append(float(exact.non_gaussianity(step)) / (tau**3 * float(third) ** 2 / 12) - 1)
    assert abs(errors[1]) < 0.01 and 7 < errors[0] / errors[1] < 13


def joint_gaussian(mean_last, var_last, steps):
    """Mean and covariance of (x_T, .., x_0) of a chain x_{t-1} = g x_t + h + sqrt(v) z."""
    rows, mean = [torch.tensor([math.sqrt(var_last)] + [0.0] * len(steps), dtype=D)], [mean_last]
    for i, (g, h, v) in enumerate(steps, start=1):
        row = g * rows[-1]
        row[i] += math.sqrt(v)
        rows.append(row)
        mean.append(g * mean[-1] + h)
    factors = torch.stack(rows)
    return torch.tensor(mean, dtype=D), factors @ factors.mT


def test_gap_of_whole_paths():
    """eq:path-gap: KL of two joint Gaussians, by linear algebra, is the start's plus the steps'."""
    true, model = (0.2, 1.1, [(0.9, 0.1, 0.2), (0.7, -0.2, 0.3), (0.95, 0.0, 0.05)]), (
        0.0, 1.0, [(0.8, 0.0, 0.25), (0.75, 0.1, 0.3), (0.9, 0.05, 0.1)]
    )  # fmt: skip
    (m_q, c_q), (m_p, c_p) = joint_gaussian(*true), joint_gaussian(*model)
    gap, inverse = m_p - m_q, torch.linalg.inv(c_p)
    whole = (inverse @ c_q).trace() + gap @ inverse @ gap - 4 + c_p.logdet() - c_q.logdet()

    def kl(m, v, n, w):
        return (math.log(w / v) + (v + (m - n) ** 2) / w - 1) / 2

    total = kl(true[0], true[1], model[0], model[1])
    for i, ((g, h, v), (a, b, w)) in enumerate(zip(true[2], model[2], strict=True)):
        # the mean over x_t of a square of the linear function (g - a) x + h - b
        square = ((g - a) * float(m_q[i]) + h - b) ** 2 + (g - a) ** 2 * float(c_q[i, i])
        total += (math.log(w / v) + (v + square) / w - 1) / 2
    assert float(whole) / 2 == pytest.approx(total, rel=1e-10)


def averages(table, i, std, n=30):
    """Means over x_t of step i: KL to the best Gaussian, cost of beta, f'''^2, (1 + f'')^2."""
    bar, beta = products(table.betas)[1][i], float(table.betas[i - 1])
    x = torch.linspace(-5, 5, n, dtype=D)
    q = density(x, bar, std) * (x[1] - x[0])
    step = exact.reverse_step(bells(std), x[:, None], i / table.T, (i - 1) / table.T, table)
    ratio = exact.best_gaussian(step)[1][:, 0] / beta
    _, second, third = slopes(x, 3, bar, std)
    terms = (
        exact.non_gaussianity(step),
        (ratio - 1 - ratio.log()) / 2,
        third**2,
        (1 + second) ** 2,
    )
    return [float((q * f).sum()) for f in terms]


def test_what_all_steps_lose():
    """eq:total-gap: T^2 and T times the two sums, against the integrals of their leading orders.

    At T = 200 bells of width .5 are within 4.1 % and 5.1 %; the next order is a few parts in T. The
    integrals are sums over the same 200 times. A wrong 12 or 4 would be off by more than 10 %.
    """
    T = 200
    table = md.BetaTable(md.linear_betas(T))
    best = fixed = cube = square = 0.0
    for i in range(1, T + 1):
        kl, extra, third, second = averages(table, i, 0.5)
        rate = T * float(table.betas[i - 1])
        best, fixed = best + kl, fixed + kl + extra
        cube, square = cube + rate**3 / 12 * third / T, square + rate**2 / 4 * second / T
    assert T**2 * best == pytest.approx(cube, rel=0.1)
    assert T * fixed == pytest.approx(square, rel=0.1)
