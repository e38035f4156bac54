"""The forward process and its reversal, against Bayes' rule, linear algebra and Ho et al.'s text.

All in float64. 1e-12 is rounding: a dozen operations at 1e-16 each, or a chain of 1000 at most.
"""

import math

import pytest
import torch
from paths import D, each_path

import minidiff as md
from minidiff.process import moves

TABLES = {
    "linear": md.linear_betas(1000),
    "cosine": md.cosine_betas(50),
    "quadratic": md.quadratic_betas(50),
    "one step": torch.tensor([0.3]),
}
each_table = pytest.mark.parametrize("betas", TABLES.values(), ids=TABLES.keys())


def levels(table):
    """Levels of all steps 0..T, and the betas and alpha-bars with entry 0 for clean data."""
    steps = torch.arange(table.T + 1, dtype=D) / table.T
    at = [table(t) for t in steps]
    betas = torch.cat([torch.zeros(1, dtype=D), table.betas])
    return at, betas, (1 - betas).cumprod(0)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


@each_table
def test_step_moments(betas):
    """eq:step: on neighbouring steps sqrt(1 - beta) x + sqrt(beta) eps; else Kingma et al. (19)."""
    table = md.BetaTable(betas)
    at, beta, bar = levels(table)
    x, eps = normal(3, 4), normal(3, 4, seed=1)
    for i in range(1, table.T + 1):
        want = (1 - beta[i]).sqrt() * x + beta[i].sqrt() * eps
        # beta = 1e-4 is a difference of log-SNRs near 9 with rounding 2e-15: 1e-11 of its root
        torch.testing.assert_close(
            md.step_forward(at[i - 1], at[i], x, eps), want, rtol=1e-10, atol=1e-12
        )
    s, t = table.T // 3, table.T
    ratio = (bar[t] / bar[s]).sqrt()
    want = ratio * x + (1 - bar[t] - ratio**2 * (1 - bar[s])).sqrt() * eps
    torch.testing.assert_close(md.step_forward(at[s], at[t], x, eps), want, rtol=1e-10, atol=1e-12)


@each_path
def test_two_steps_are_one(path):
    """eq:two-steps, eq:variance-sum: r -> s -> t has the mean and variance of r -> t.

    x -> a x + b eps is read off by x = 1, eps = 0 and x = 0, eps = 1.
    """
    one, none = torch.ones(1, dtype=D), torch.zeros(1, dtype=D)
    for r, s, t in [(0.1, 0.4, 0.9), (0.0, 0.3, 0.5), (0.0, 0.01, 0.02)]:
        at_r, at_s, at_t = path(r), path(s), path(t)
        first = md.step_forward(at_r, at_s, one, none), md.step_forward(at_r, at_s, none, one)
        then = md.step_forward(at_s, at_t, one, none), md.step_forward(at_s, at_t, none, one)
        whole = md.step_forward(at_r, at_t, one, none), md.step_forward(at_r, at_t, none, one)
        torch.testing.assert_close(then[0] * first[0], whole[0], rtol=1e-12, atol=0)
        variance = (then[0] * first[1]) ** 2 + then[1] ** 2
        torch.testing.assert_close(variance, whole[1] ** 2, rtol=1e-11, atol=0)


def test_diffuse_written_out():
    """eq:jump with numbers: alpha-bar .64 gives .8 x0 + .6 eps; scalar and (B,) levels."""
    x0 = torch.tensor([[1.0, -2.0], [0.5, 4.0]], dtype=D)
    eps = torch.tensor([[0.3, 1.0], [-1.0, 0.0]], dtype=D)
    at = md.BetaTable(torch.tensor([0.36]))(1.0)
    want = torch.tensor([[0.8 + 0.18, -1.6 + 0.6], [0.4 - 0.6, 3.2]], dtype=D)
    torch.testing.assert_close(md.diffuse(at, x0, eps), want, rtol=1e-7, atol=0)  # .36 is float32
    line = md.LinearPath()(torch.tensor([0.25, 1.0], dtype=D))
    want = torch.tensor([[0.75 + 0.075, -1.5 + 0.25], [-1.0, 0.0]], dtype=D)
    torch.testing.assert_close(md.diffuse(line, x0, eps), want, rtol=1e-12, atol=1e-15)
    place = md.LinearPath()(torch.tensor([[0.25], [1.0]], dtype=D))
    torch.testing.assert_close(md.diffuse(place, x0, eps), want, rtol=1e-12, atol=1e-15)
    clean = md.VP()(0.0)
    assert torch.equal(md.diffuse(clean, x0, eps), x0)
    assert md.diffuse(at, x0.float(), eps.float()).dtype == torch.float32


@each_table
def test_jump_equals_walk(betas):
    """eq:alpha-bar: the closed form is what t steps of eq:step do to mean and variance.

    A linear-Gaussian chain stays Gaussian, so mean and variance are iterated exactly: the only
    error is rounding, hence 1e-12.
    """
    table = md.BetaTable(betas)
    mean, variance = torch.tensor(1.0, dtype=D), torch.tensor(0.0, dtype=D)
    one, none = torch.ones(1, dtype=D), torch.zeros(1, dtype=D)
    for i, beta in enumerate(betas.double(), start=1):
        mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        at = table(torch.tensor(i / len(betas), dtype=D))
        assert torch.allclose(md.diffuse(at, one, none), mean, rtol=1e-12, atol=0)
        assert torch.allclose(md.diffuse(at, none, one) ** 2, variance, rtol=1e-12, atol=0)


@each_table
def test_posterior_is_bayes(betas):
    """eq:bayes: q(x_s | x_t, x0) is q(x_t | x_s) q(x_s | x0) / q(x_t | x0), by quadrature.

    Both densities are multiplied on a grid of 4001 points over 12 standard deviations; the
    trapezoid rule on a Gaussian that decays at both ends is exact to rounding, so 1e-9.
    """
    table = md.BetaTable(betas)
    at, beta, bar = levels(table)
    x0, x_t = 0.7, -0.4
    for t in {2, (table.T + 1) // 2, table.T} & set(range(2, table.T + 1)):
        s = t - 1
        one = torch.ones(1, dtype=D)
        got = md.posterior(at[t], at[s], x_t * one, x0 * one)
        std = float(got.var) ** 0.5
        u = torch.linspace(-12, 12, 4001, dtype=D) * std + float(got.mean)
        log_q = -((x_t - (1 - beta[t]).sqrt() * u) ** 2) / (2 * beta[t])
        log_q = log_q - (u - bar[s].sqrt() * x0) ** 2 / (2 * (1 - bar[s]))
        q = (log_q - log_q.max()).exp()
        q = q / q.sum()
        mean = (q * u).sum()
        assert abs(float(mean - got.mean)) < 1e-9 * (1 + abs(float(mean)))
        assert float((q * (u - mean) ** 2).sum()) == pytest.approx(float(got.var), rel=1e-9)


@each_table
def test_posterior_textbook(betas):
    """eq:posterior at neighbouring steps: Ho et al.'s (6) and (7), written out from betas."""
    table = md.BetaTable(betas)
    at, beta, bar = levels(table)
    x_t, x0 = normal(2, 3), normal(2, 3, seed=1)
    for t in range(1, table.T + 1):
        got = md.posterior(at[t], at[t - 1], x_t, x0)
        coef0 = bar[t - 1].sqrt() * beta[t] / (1 - bar[t])
        coeft = (1 - beta[t]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t])
        tilde = (1 - bar[t - 1]) / (1 - bar[t]) * beta[t]
        # 1 - bar near 1e-4 is written out here with rounding 1e-12: hence 1e-10
        torch.testing.assert_close(got.mean, coef0 * x0 + coeft * x_t, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got.var, tilde, rtol=1e-10, atol=0)
    assert torch.equal(md.posterior(at[1], at[0], x_t, x0).mean, x0)  # a step onto clean data


@each_path
def test_posterior_for_any_two_times(path):
    """eq:posterior for any s < t: conditioning of the joint Gaussian (x_s, x_t) given x0.

    Written out by linear algebra: mean_s + C_st C_tt^-1 (x_t - mean_t). 1e-9 because VE's noise
    spans nine decades in variance.
    """
    x_t, x0 = normal(2, 3), normal(2, 3, seed=1)
    for s, t in [(0.1, 0.2), (0.3, 0.95), (0.5, 0.501), (0.002, 0.9)]:
        at_s, at_t = path(s), path(t)
        ratio = at_t.signal / at_s.signal
        joint = torch.stack(  # covariance of (x_s, x_t) given x0
            [
                torch.stack([at_s.noise**2, ratio * at_s.noise**2]),
                torch.stack([ratio * at_s.noise**2, at_t.noise**2]),
            ]
        )
        gain = joint[0, 1] / joint[1, 1]
        mean = at_s.signal * x0 + gain * (x_t - at_t.signal * x0)
        got = md.posterior(at_t, at_s, x_t, x0)
        torch.testing.assert_close(got.mean, mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(got.var, joint.det() / joint[1, 1], rtol=1e-9, atol=0)


def test_posterior_with_one_level_a_sample():
    """Levels of shape (B,) give each row what its scalar levels give; bits agree."""
    table = md.BetaTable(md.linear_betas(1000))
    x_t, x0 = normal(3, 2, 2), normal(3, 2, 2, seed=1)
    t = torch.tensor([1.0, 0.5, 0.002], dtype=D)
    s = torch.tensor([0.7, 0.499, 0.0], dtype=D)
    got = md.posterior(table(t), table(s), x_t, x0)
    for i in range(3):
        row = md.posterior(table(t[i]), table(s[i]), x_t[i : i + 1], x0[i : i + 1])
        torch.testing.assert_close(got.mean[i : i + 1], row.mean, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(got.var[i].flatten()[0], row.var, rtol=1e-13, atol=0)


@each_table
def test_mean_in_eps_form(betas):
    """eq:eps-mean: with x0 replaced, mu is (x_t - beta / sqrt(1 - bar) eps) / sqrt(alpha)."""
    table = md.BetaTable(betas)
    at, beta, bar = levels(table)
    x0, eps = normal(2, 3), normal(2, 3, seed=1)
    for t in range(1, table.T + 1):
        x_t = md.diffuse(at[t], x0, eps)
        want = (x_t - beta[t] / (1 - bar[t]).sqrt() * eps) / (1 - beta[t]).sqrt()
        got = md.posterior(at[t], at[t - 1], x_t, x0).mean
        # 1 / sqrt(alpha) is 31.6 at cosine's last step: rounding grows to 1e-10
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@each_path
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_moves_written_out(path, eta):
    """eq:ddim, eq:move: sigma^2 = eta^2 n_s^2 / n_t^2 (n_t^2 - a^2 n_s^2), Song et al. (16)."""
    times = torch.tensor([1.0, 0.7, 0.3, 0.05, 0.0], dtype=D)
    at = path(times)
    for i, move in enumerate(moves(path, times, eta=eta)):
        s_t, n_t, s_s, n_s = at.signal[i], at.noise[i], at.signal[i + 1], at.noise[i + 1]
        forward = n_t**2 - (s_t / s_s) ** 2 * n_s**2
        sigma2 = eta**2 * n_s**2 / n_t**2 * forward
        keep = (n_s**2 - sigma2).clamp(min=0).sqrt() / n_t
        close = {"rel": 1e-9, "abs": 1e-12}
        assert move.forward == pytest.approx(float(forward), **close)
        assert move.var == pytest.approx(float(sigma2), **close)
        # the root of a difference that vanishes at eta = 1 where signal_t = 0: 1e-8
        assert move.keep == pytest.approx(float(keep), rel=1e-7, abs=2e-8)
        assert move.add == pytest.approx(float(s_s - keep * s_t), rel=1e-7, abs=2e-8)
        assert all(isinstance(v, float) for v in move[2:])
    assert (move.keep, move.add, move.var) == (0.0, 1.0, 0.0)  # landing


def test_moves_at_eta_one_have_the_posterior_mean():
    """keep and add are the factors of posterior: x_t = 1, x0 = 0 and the reverse."""
    table = md.BetaTable(md.cosine_betas(50))
    one, none = torch.ones(1, dtype=D), torch.zeros(1, dtype=D)
    times = md.ddpm_steps(50)
    for t, s, move in zip(times[:-1], times[1:], moves(table, times, eta=1.0), strict=True):
        keep = md.posterior(table(t), table(s), one, none)
        add = md.posterior(table(t), table(s), none, one)
        assert move.keep == pytest.approx(float(keep.mean), rel=1e-9, abs=1e-14)
        assert move.add == pytest.approx(float(add.mean), rel=1e-9)
        assert move.var == pytest.approx(float(keep.var), rel=1e-9)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_clipped_variance_of_moves(eta):
    """clipped is var, and on the landing var of the move before, as in the code of Ho et al.

    They replace beta-tilde_1 = 0 by beta-tilde_2, which is written out here from betas.
    """
    betas = md.cosine_betas(10)
    bar = torch.cat([torch.ones(1, dtype=D), (1 - betas).cumprod(0)])
    tilde = betas * (1 - bar[:-1]) / (1 - bar[1:])
    assert float(tilde[0]) == 0
    tilde[0] = tilde[1]
    got = [move.clipped for move in moves(md.BetaTable(betas), md.ddpm_steps(10), eta=eta)]
    assert got == pytest.approx((eta**2 * tilde.flip(0)).tolist(), rel=1e-9)


def test_clipped_variance_without_a_move_before():
    """0 for one step, for a deterministic chain, and var itself where the grid does not land."""
    path = md.VP()
    (alone,) = moves(path, torch.tensor([1.0, 0.0], dtype=D), eta=1.0)
    assert alone.clipped == 0 and isinstance(alone.clipped, float)
    assert [m.clipped for m in moves(path, torch.tensor([1.0, 0.5, 0.0], dtype=D), eta=0.0)] == [
        0.0, 0.0
    ]  # fmt: skip
    aloft = moves(path, torch.tensor([1.0, 0.5, 0.2], dtype=D), eta=1.0)
    assert all(m.clipped == m.var > 0 for m in aloft)


@each_path
def test_sde_moves_the_variance(path):
    """eq:sde: dm = f m dt, dV = (2 f V + g^2) dt, integrated from t = .2 to .8, is the level at .8.

    Midpoint rule, two steps a segment of the table: local errors of h^3 with h = 5e-4 and rates
    up to 20 leave 1e-5 at most.
    """
    n, low, high = 1200, 0.2, 0.8

    def rate(t, m, v):
        f, g2 = md.drift_diffusion(path(t))
        return f * m, 2 * f * v + g2

    at = path(low)
    m, v, h = at.signal, at.noise**2, (high - low) / n
    for k in range(n):
        t = low + k * h
        dm, dv = rate(t, m, v)
        dm, dv = rate(t + h / 2, m + h / 2 * dm, v + h / 2 * dv)
        m, v = m + h * dm, v + h * dv
    assert float(m) == pytest.approx(float(path(high).signal), rel=2e-5)
    assert float(v) == pytest.approx(float(path(high).noise ** 2), rel=2e-5)


def test_prior_kl_written_out():
    """KL between N(a, n^2) and N(0, 1), and its integral by quadrature on one entry."""
    at = md.BetaTable(torch.tensor([0.5], dtype=D))(1.0)
    x0 = torch.tensor([[1.0, -2.0], [0.0, 0.5]], dtype=D)
    a, n2 = math.sqrt(0.5), 0.5
    want = [sum((a * a * v * v + n2 - 1 - math.log(n2)) / 2 for v in row) for row in x0.tolist()]
    torch.testing.assert_close(md.prior_kl(at, x0), torch.tensor(want, dtype=D), rtol=1e-12, atol=0)
    u = torch.linspace(-12, 12, 20001, dtype=D)
    log_q = -((u - a) ** 2) / (2 * n2) - 0.5 * math.log(2 * math.pi * n2)
    log_p = -(u**2) / 2 - 0.5 * math.log(2 * math.pi)
    kl = torch.trapezoid(log_q.exp() * (log_q - log_p), u)
    got = md.prior_kl(at, torch.ones(1, 1, dtype=D))
    torch.testing.assert_close(got, kl.reshape(1), rtol=1e-9, atol=0)
    # the prior of a path that is not variance-preserving has variance signal^2 + noise^2
    at = md.VE()(1.0)
    want = (4 + 6400 - 6401 - 6401 * math.log(6400 / 6401)) / (2 * 6401)
    got = float(md.prior_kl(at, torch.tensor([[2.0]], dtype=D)))
    assert got == pytest.approx(want, rel=1e-6)  # a small difference of 1 and 1
    assert md.prior_kl(at, torch.zeros(3, dtype=D)).shape == (3,)  # events may be scalars


@pytest.mark.parametrize("call", [md.posterior, lambda t, s, x, y: md.step_forward(s, t, x, y)])
def test_one_swapped_example_among_good_ones_is_refused(call):
    """The check is of every example: one with s above t does not hide behind the others."""
    path, x = md.VP(), torch.zeros(3, 2, dtype=torch.float64)
    at_t = path(torch.tensor([0.9, 0.5, 0.9], dtype=torch.float64))
    at_s = path(torch.tensor([0.4, 0.6, 0.4], dtype=torch.float64))
    with pytest.raises(ValueError, match="noisier than at_s everywhere"):
        call(at_t, at_s, x, x)
