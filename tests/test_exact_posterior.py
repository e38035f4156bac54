"""Posterior, covariance, smallest error and flow of the exact oracles, by other means."""

import math

import pytest
import torch

import minidiff as md
from minidiff import exact
from minidiff.exact import line

D = torch.float64
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(0.01, 10.0),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
MEANS, STDS, WEIGHTS = [-1.0, 0.4, 1.2], [0.3, 0.1, 0.5], [0.2, 0.5, 0.3]
POINTS = [-1.3, -0.2, 0.1, 0.9, 2.0]


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def column(values):
    return torch.tensor(values, dtype=D)[:, None]


def line_mixture():
    stds, weights = torch.tensor(STDS, dtype=D), torch.tensor(WEIGHTS, dtype=D)
    return md.GaussianMixture(column(MEANS), stds, weights)


def line_points():
    return md.Empirical(column(POINTS))


def oracles(*event):
    """One of each kind with events of a given shape."""
    means, stds = data(3, *event), 0.2 + data(3, *event, seed=1).abs()
    weights, size = torch.tensor([0.2, 0.5, 0.3], dtype=D), math.prod(event)
    root = 0.6 * data(3, size, size, seed=3)
    covs = root @ root.mT + 0.1 * torch.eye(size, dtype=D)
    return {
        "gaussian": md.Gaussian(means[0], stds[0]),
        "mixture": md.GaussianMixture(means, stds, weights),
        "full": md.GaussianMixture.full(means, covs, weights),
        "empirical": md.Empirical(data(6, *event, seed=2)),
    }


each_kind = pytest.mark.parametrize("kind", list(oracles(2)))


# ---- posterior and covariance ----------------------------------------------------------------


@each_path
def test_posterior_written_out(path):
    """Weights, means and variances of three bells with two entries, by plain numbers, to 1e-10."""
    means, stds = data(3, 2), 0.2 + data(3, 2, seed=1).abs()
    oracle = md.GaussianMixture(means, stds, torch.tensor(WEIGHTS, dtype=D))
    x = torch.tensor([[0.7, -0.4], [-2.0, 0.1]], dtype=D)
    for t in (0.2, 0.8):
        s, n = float(path(t).signal), float(path(t).noise)
        got = oracle.posterior(x, t, path)
        assert isinstance(got, exact.Posterior)
        assert got.weights.shape == (2, 3) and got.means.shape == (2, 3, 2)
        for b in range(2):
            shares = []
            for k in range(3):
                share = WEIGHTS[k]
                for i in range(2):
                    m, v = float(means[k, i]), float(stds[k, i]) ** 2
                    total = s * s * v + n * n
                    gap = float(x[b, i]) - s * m
                    share *= math.exp(-gap * gap / (2 * total)) / math.sqrt(total)
                    assert float(got.means[b, k, i]) == pytest.approx(
                        m + s * v / total * gap, rel=1e-12
                    )
                    left = float(got.variances[0, k, i])
                    assert left == pytest.approx(v * n * n / total, rel=1e-12)
                shares.append(share)
            want = [share / sum(shares) for share in shares]
            assert got.weights[b].tolist() == pytest.approx(want, rel=1e-10)


@each_kind
@each_path
def test_posterior_has_the_mean_and_variance(kind, path):
    """The mixture that posterior returns has the denoiser's mean and covariance's variances."""
    oracle, x = oracles(2, 2)[kind], data(4, 2, 2, seed=5)
    for t in (0.3, 1.0, torch.tensor([0.1, 0.4, 0.6, 0.9], dtype=D)):
        weights, means, rest = oracle.posterior(x, t, path)
        r = weights[..., None, None]
        variances = rest.diagonal(dim1=2, dim2=3).unflatten(2, (2, 2)) if kind == "full" else rest
        mean = (r * means).sum(1)
        torch.testing.assert_close(oracle.denoiser(path)(x, t), mean, rtol=1e-12, atol=1e-12)
        second = (r * (variances + means**2)).sum(1)
        torch.testing.assert_close(
            oracle.covariance(x, t, path), second - mean**2, rtol=1e-9, atol=1e-9
        )


@each_path
@pytest.mark.parametrize("t", [0.15, 0.5, 0.8])
def test_covariance_is_an_integral(path, t):
    """Var[x0 | x_t] by trapezoids over x0 (spectrally exact for bells wider than the spacing)."""
    u = torch.linspace(-8, 8, 20_001, dtype=D)
    p = sum(
        w / s * torch.exp(-((u - m) ** 2) / (2 * s * s))
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )
    s, n = float(path(t).signal), float(path(t).noise)
    x = column([-1.7, -0.2, 0.45, 2.0])
    for value, got in zip(x, line_mixture().covariance(x, t, path), strict=True):
        q = p * torch.exp(-((value - s * u) ** 2) / (2 * n * n))
        mean = (q * u).sum() / q.sum()
        assert float(got) == pytest.approx(float((q * (u - mean) ** 2).sum() / q.sum()), rel=1e-9)


@each_kind
@each_path
def test_second_order_tweedie(kind, path):
    """noise^2 / signal^2 (1 + noise^2 d^2 log p / dx_i^2), the curvature by autograd, to 1e-8."""
    oracle = oracles(1, 3)[kind]
    for t in (0.2, 0.6):
        at, x = path(t), data(3, 1, 3, seed=5).requires_grad_()
        (slope,) = torch.autograd.grad(oracle.log_prob(x, t, path).sum(), x, create_graph=True)
        rows = [
            torch.autograd.grad(slope[:, 0, i].sum(), x, retain_graph=True)[0][:, 0, i]
            for i in range(3)
        ]
        curve = torch.stack(rows, 1)[:, None]
        want = at.noise**2 / at.signal**2 * (1 + at.noise**2 * curve)
        got = oracle.covariance(x.detach(), t, path)
        assert got.shape == (3, 1, 3) and bool((got >= 0).all())
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8 / float(at.signal) ** 2)


def test_covariance_keeps_its_digits():
    """Two points 1e-6 apart around 1000: the variance is 2.5e-13, to 1e-6 and not rounded away."""
    oracle, path = md.Empirical(column([1000.0, 1000.000001])), md.Cosine()
    x = float(path(0.5).signal) * column([1000.0000005])
    assert float(oracle.covariance(x, 0.5, path)) == pytest.approx(2.5e-13, rel=1e-6)


@each_kind
def test_covariance_at_the_ends(kind):
    """No doubt at t = 0; at pure noise the variance of the data itself."""
    oracle, x = oracles(2)[kind], data(3, 2, seed=5)
    assert torch.equal(oracle.covariance(x, 0.0, md.VP()), torch.zeros(3, 2, dtype=D))
    assert torch.equal(oracle.covariance(x, torch.zeros(3, dtype=D), md.VP()), torch.zeros_like(x))
    mean = (oracle.weights[:, None] * oracle.means).sum(0)
    want = oracle.second_moment() - mean**2
    for path in (md.Cosine(), md.LinearPath()):
        got = oracle.covariance(x, 1.0, path)
        torch.testing.assert_close(got, want.expand(3, 2), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(
            oracle.denoiser(path)(x, 1.0), mean.expand(3, 2), rtol=1e-10, atol=1e-10
        )


def test_second_moment_written_out():
    want = sum(w * (m * m + s * s) for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True))
    assert line_mixture().second_moment().tolist() == pytest.approx([want], rel=1e-14)
    want = sum(p * p for p in POINTS) / 5
    assert line_points().second_moment().tolist() == pytest.approx([want], rel=1e-14)


def test_per_position_levels():
    """Every token at its own level: the rows of the posterior are those of their own levels."""
    oracle, path, x = oracles(2, 2)["mixture"], md.VP(), data(3, 2, 2, seed=5)
    t = torch.tensor([[0.2, 0.6], [0.3, 0.3], [0.9, 0.1]], dtype=D)[..., None]
    post = oracle.posterior(x, t, path)
    assert post.variances.shape == (3, 3, 2, 2)
    at = path(t[:, None])
    v = oracle.stds**2
    total = at.signal**2 * v + at.noise**2
    torch.testing.assert_close(post.variances, v * at.noise**2 / total)
    want = oracle.means + at.signal * v / total * (x[:, None] - at.signal * oracle.means)
    torch.testing.assert_close(post.means, want)
    mean = (post.weights[..., None, None] * post.means).sum(1)
    torch.testing.assert_close(oracle.denoiser(path)(x, t), mean)


# ---- the smallest error ----------------------------------------------------------------------


@each_path
@pytest.mark.parametrize("t", [0.15, 0.5, 0.8])
def test_mmse_is_a_double_integral(path, t):
    """E[x0^2] - E[mean^2] over a grid of x0 and x_t; trapezoids finer than the bells: 1e-9."""
    u = torch.linspace(-6, 6, 601, dtype=D)
    p = sum(
        w / s * torch.exp(-((u - m) ** 2) / (2 * s * s))
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )
    p = p / p.sum()
    s, n = float(path(t).signal), float(path(t).noise)
    ends = 9 * (s * s + n * n) ** 0.5
    x = torch.linspace(-ends, ends, 2001, dtype=D)[:, None]
    q = p * torch.exp(-((x - s * u) ** 2) / (2 * n * n))
    first, density = (q * u).sum(1), q.sum(1).clamp(min=1e-300)
    want = float((p * u * u).sum()) - float((first**2 / density).sum() / density.sum())
    assert line_mixture().mmse(t, path) == pytest.approx(want, rel=1e-8)


@each_path
def test_mmse_of_points_by_trapezoids(path):
    """A finite set: E of the variance of a softmax, integrated with the softmax written out."""
    points = torch.tensor(POINTS, dtype=D)
    for t in (0.05, 0.3, 0.8):
        s, n = float(path(t).signal), float(path(t).noise)
        x = torch.linspace(-2 * s - 9 * n, 2 * s + 9 * n, 40_001, dtype=D)[:, None]
        q = torch.exp(-((x - s * points) ** 2) / (2 * n * n)) / math.sqrt(2 * math.pi * n * n) / 5
        mean = (q * points).sum(1, keepdim=True) / q.sum(1, keepdim=True).clamp(min=1e-300)
        want = float(torch.trapezoid((q * (points - mean) ** 2).sum(1), x[:, 0]))
        assert line_points().mmse(t, path) == pytest.approx(want, rel=1e-9, abs=1e-15)


def test_mmse_written_out():
    """One Gaussian with three entries: the mean of v n^2 / (s^2 v + n^2); exact at the ends."""
    stds = [0.5, 1.0, 2.0]
    oracle = md.Gaussian(torch.zeros(3, dtype=D), torch.tensor(stds, dtype=D))
    s2, n2 = math.cos(0.3 * math.pi / 2) ** 2, math.sin(0.3 * math.pi / 2) ** 2
    want = sum(v * v * n2 / (s2 * v * v + n2) for v in stds) / 3
    got = oracle.mmse(0.3, md.Cosine())
    assert isinstance(got, float) and got == pytest.approx(want, rel=1e-12)
    assert oracle.mmse(torch.tensor(0.3, dtype=D), md.Cosine()) == pytest.approx(want, rel=1e-12)
    assert oracle.mmse(1.0, md.Cosine()) == pytest.approx(5.25 / 3, rel=1e-12)
    assert oracle.mmse(0.0, md.VE()) == 0.0
    one_point = md.Empirical(torch.ones(1, 4, dtype=D))
    assert one_point.mmse(0.5, md.VP()) == 0


@pytest.mark.parametrize("make", [line_mixture, line_points])
def test_mmse_at_the_ends(make):
    """Nothing at t = 0, the variance of the data at pure noise, and rising between."""
    oracle = make()
    mean = float((oracle.weights * oracle.means[:, 0]).sum())
    variance = float(oracle.second_moment()) - mean**2
    assert oracle.mmse(0.0, md.Cosine()) == 0.0
    assert oracle.mmse(1.0, md.Cosine()) == pytest.approx(variance, rel=1e-12)
    rising = [oracle.mmse(t, md.Cosine()) for t in (0.01, 0.1, 0.3, 0.6, 0.9, 1.0)]
    assert rising == sorted(rising)


def test_mmse_where_widths_differ_much():
    """Bells of width .01 and 5 on one line, and two far apart: the panels follow the narrow one.

    Against plain trapezoids with a spacing of a fifth of the narrowest width of x_t.
    """
    for means, stds, weights in (
        ([0.0, 0.1], [5.0, 0.01], [0.9, 0.1]),
        ([-4.0, 4.0], [1.0, 0.01], [0.5, 0.5]),
        ([0.0, 3.0], [1.0, 0.1], [1 - 1e-6, 1e-6]),
    ):
        w = torch.tensor(weights, dtype=D)
        oracle = md.GaussianMixture(column(means), torch.tensor(stds, dtype=D), w)
        for t in (0.02, 0.3):
            s, n = float(md.Cosine()(t).signal), float(md.Cosine()(t).noise)
            m, v = s * torch.tensor(means, dtype=D), torch.tensor(stds, dtype=D) ** 2
            total = s * s * v + n * n
            x = torch.arange(-50, 50, float(total.min()) ** 0.5 / 5, dtype=D)[:, None]
            q = w * torch.exp(-((x - m) ** 2) / (2 * total)) / (2 * math.pi * total).sqrt()
            mus = torch.tensor(means, dtype=D) + s * v / total * (x - m)
            mean = (q * mus).sum(1) / q.sum(1).clamp(min=1e-300)
            inside = q * (v * n * n / total + (mus - mean[:, None]) ** 2)
            want = float(inside.sum() * (x[1] - x[0]))
            assert oracle.mmse(t, md.Cosine()) == pytest.approx(want, rel=1e-10)


def test_mmse_in_pieces(monkeypatch):
    """Many points are looked at in pieces: the sum does not depend on their size."""
    whole = line_points().mmse(0.3, md.VP())
    monkeypatch.setattr("minidiff.exact.mixtures.CHUNK", 50)
    assert line_points().mmse(0.3, md.VP()) == pytest.approx(whole, rel=1e-13)


def test_panels_integrate_polynomials():
    """20 points of Gauss and Legendre are exact to degree 39; x^38 over the panels' range."""
    x, w = line.nodes(torch.zeros(1, dtype=D), torch.full((1,), 0.25, dtype=D))
    assert float(x.abs().max()) < 2.25  # 9 standard deviations
    assert float((w * x**38).sum()) == pytest.approx(2 * 2.25**39 / 39, rel=1e-12)
    assert float(w.sum()) == pytest.approx(4.5, rel=1e-13)
    assert len(x) == 36 * 20
    x, w = line._legendre(x)
    assert float((w * x**38).sum()) == pytest.approx(2 / 39, rel=1e-12)
    assert float(w.sum()) == pytest.approx(2, rel=1e-14)


# ---- samples ---------------------------------------------------------------------------------


def test_samples_follow_the_density():
    """The largest gap between the shares below x, of 20,000 points and by erfc: under 2 / sqrt(n).

    A correct sampler exceeds that gap (Kolmogorov) once in 1,500 seeds.
    """
    n, stds = 20_000, torch.tensor(STDS, dtype=D)
    full = md.GaussianMixture.full(
        column(MEANS), stds[:, None, None] ** 2, torch.tensor(WEIGHTS, dtype=D)
    )
    for oracle in (line_mixture(), full):
        x = oracle.sample(n, rng=torch.Generator().manual_seed(5)).flatten().sort().values
        z = (x[:, None] - torch.tensor(MEANS, dtype=D)) / stds
        below = (torch.tensor(WEIGHTS, dtype=D) * torch.erfc(-z / 2**0.5) / 2).sum(1)
        gap = (below - torch.arange(1, n + 1, dtype=D) / n).abs().max()
        assert float(gap) < 2 / n**0.5


# ---- the flow --------------------------------------------------------------------------------


def rk4(velocity, x, t, s, steps):
    t, s = torch.tensor(t, dtype=D), torch.tensor(s, dtype=D)
    h = (s - t) / steps
    for i in range(steps):
        now = t + i * h
        a = velocity(x, now)
        b = velocity(x + h / 2 * a, now + h / 2)
        c = velocity(x + h / 2 * b, now + h / 2)
        x = x + h / 6 * (a + 2 * b + 2 * c + velocity(x + h * c, now + h))
    return x


@pytest.mark.parametrize("t_s", [(0.9, 0.25), (0.3, 0.8)], ids=["down", "up"])
@each_path
def test_flow_is_the_ode(path, t_s):
    """dx/dt = signal' E[x0|x] + noise' E[eps|x] by 120 steps of Runge and Kutta: to 1e-6.

    For one Gaussian and one full Gaussian with four entries, three bells and five points on a
    line. The fourth-order error of 120 steps is below 5e-7 on VE's steep path, 1e-9 on the others.
    """
    (t, s), four = t_s, oracles(2, 2)
    covs = four["full"].covs[:1]
    cases = [
        (four["gaussian"], data(3, 2, 2, seed=5)),
        (md.GaussianMixture.full(data(1, 2, 2), covs), data(3, 2, 2, seed=5)),
        (line_mixture(), column([-2.0, -0.3, 0.0, 0.5, 1.7])),
        (line_points(), column([-2.0, -0.3, 0.0, 0.5, 1.7])),
    ]
    for oracle, x in cases:
        denoise = oracle.denoiser(path)

        def velocity(x, t, denoise=denoise):
            at, x0 = path(t), denoise(x, t)
            return at.d_signal * x0 + at.d_noise * (x - at.signal * x0) / at.noise

        want = rk4(velocity, x, t, s, 120)
        torch.testing.assert_close(oracle.flow(x, t, s, path), want, rtol=1e-6, atol=1e-6)


@each_path
def test_gaussian_flow_written_out(path):
    """s_s m + sqrt of the ratio of variances times (x - s_t m), at both ends of time too."""
    mean, std = torch.tensor([0.3, -1.0], dtype=D), torch.tensor([0.5, 2.0], dtype=D)
    x = data(4, 2)
    for t, s in ((0.8, 0.1), (1.0, 0.0), (0.0, 1.0), (0.4, 0.4)):
        a, b = path(t), path(s)
        ratio = (b.signal**2 * std**2 + b.noise**2) / (a.signal**2 * std**2 + a.noise**2)
        want = b.signal * mean + ratio.sqrt() * (x - a.signal * mean)
        got = md.Gaussian(mean, std).flow(x, t, s, path)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def share_below(x, path, t):
    """F_t of the three bells, or 1 - F_t where x is above the middle, by math.erfc."""
    s, n, sign = float(path(t).signal), float(path(t).noise), -1 if x > 0.4 else 1
    return sum(
        w * math.erfc(-sign * (x - s * m) / math.sqrt(2 * (s * s * v * v + n * n))) / 2
        for m, v, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )


@each_path
def test_flow_keeps_the_share_below(path):
    """F_s(x_s) = F_t(x_t), in the smaller tail, by math.erfc: to 1e-11 relative from .5 to 1e-200.

    The number of digits that are left falls like 1e-16 times the slope of log F, up to 60 here.
    """
    x = torch.tensor([-9.0, -3.0, -1.0, 0.2, 0.5, 1.4, 4.0, 11.0], dtype=D)
    for t, s in ((0.6, 0.2), (0.3, 0.9), (0.5, 0.0), (1.0, 0.1)):
        y = line_mixture().flow(x[:, None], t, s, path)
        for a, b in zip(x.tolist(), y.flatten().tolist(), strict=True):
            sign = (a > 0.4) == (b > 0.4)
            if sign:
                want, got = share_below(a, path, t), share_below(b, path, s)
            else:
                want, got = share_below(a, path, t), 1 - share_below(b, path, s)
            if want > 1e-200:
                assert got == pytest.approx(want, rel=1e-11, abs=0)


@each_path
@pytest.mark.parametrize("make", [line_mixture, line_points])
def test_flow_goes_back(make, path):
    """There and back, in the order kept, also where the density is 1e-80."""
    x = column([-20.0, -2.0, -0.7, 0.0, 0.43, 0.6, 3.0, 25.0])
    oracle = make()
    y = oracle.flow(x, 0.7, 0.3, path)
    assert bool((y.diff(dim=0) > 0).all())
    torch.testing.assert_close(oracle.flow(y, 0.3, 0.7, path), x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(oracle.flow(x, 0.3, 0.3, path), x, rtol=1e-12, atol=1e-12)


def test_flow_far_out():
    """Twice the same bell is one bell, whose flow is a line: 60 and 1e4 standard deviations out."""
    m, s = 0.3, 0.5
    twin = md.GaussianMixture(column([m, m]), s, torch.tensor([0.4, 0.6], dtype=D))
    one = md.Gaussian(torch.tensor([m], dtype=D), torch.tensor([s], dtype=D))
    x = column([-1e4, -60.0, -30.0, 0.1, 45.0, 1e4])
    for t, to in ((0.5, 0.1), (0.2, 1.0)):
        got, want = (o.flow(x, t, to, md.Cosine()) for o in (twin, one))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    uneven = md.GaussianMixture(column([-1.0, 1.0]), 0.2, torch.tensor([0.01, 0.99], dtype=D))
    y = uneven.flow(column([50.0, -50.0]), 0.5, 0.2, md.Cosine())
    for value, x in zip(y.flatten().tolist(), (50.0, -50.0), strict=True):
        assert math.isclose(log_tail(x, 0.5), log_tail(value, 0.2), rel_tol=1e-12)


def log_tail(x, t):
    """Log of the share of the two uneven bells beyond x, by torch's log_ndtr."""
    s, n = math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)
    centre = torch.tensor([-1.0, 1.0], dtype=D) * s
    z = (centre - x if x > 0 else x - centre) / math.sqrt(0.04 * s * s + n * n)
    weights = torch.tensor([0.01, 0.99], dtype=D)
    return float((weights.log() + torch.special.log_ndtr(z)).logsumexp(0))


def test_flow_between_two_modes():
    """In the empty space between two narrow modes, where F is .5 to nine digits and more.

    By symmetry the middle stays (1e-16 of the tails is 1e-7 of a place there). A point beside it
    goes to where the two tails differ by as much as before, to 1e-10.
    """
    path, t, s = md.Cosine(), 0.1, 0.06
    oracle = md.GaussianMixture(column([-1.0, 1.0]), 0.05)
    middle = oracle.flow(column([0.0, 0.0]), t, s, path)
    assert float(middle.abs().max()) < 1e-6
    x = column([-0.3, -0.01, 0.02, 0.3])
    y = oracle.flow(x, t, s, path)
    assert bool((y.diff(dim=0) > 0).all())

    def tails(value, at):
        scale = math.sqrt(float(at.signal) ** 2 * 0.0025 + float(at.noise) ** 2) * math.sqrt(2)
        low, high = (value + float(at.signal)) / scale, (float(at.signal) - value) / scale
        return math.erfc(high) - math.erfc(low)  # 4 (F - 1/2), without the halves

    for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True):
        assert tails(a, path(t)) == pytest.approx(tails(b, path(s)), rel=1e-10, abs=0)
    torch.testing.assert_close(oracle.flow(y, s, t, path), x, rtol=1e-9, atol=1e-9)


def test_flow_in_a_deep_space():
    """25 standard deviations from both points (tails of e^-330): there and back to 1e-8."""
    path, oracle = md.Cosine(), md.Empirical(column([-1.0, 1.0]))
    x = column([-0.5, -0.02, 0.01, 0.3])
    y = oracle.flow(x, 0.025, 0.022, path)
    assert bool((y.diff(dim=0) > 0).all()) and bool((y.abs() > x.abs()).all())
    torch.testing.assert_close(oracle.flow(y, 0.022, 0.025, path), x, rtol=1e-8, atol=1e-8)


def test_flow_out_of_an_empty_space():
    """Deeper than any float: from a gap of 600 standard deviations to a level where it is full."""
    path, oracle = md.Cosine(), md.Empirical(column([-1.0, 1.0]))
    x = column([-1.0, -0.5, 0.0, 0.5, 1.0])
    y = oracle.flow(x, 1e-3, 0.9, path).flatten()
    assert bool((y.diff() >= 0).all()) and bool(torch.isfinite(y).all())
    assert float(y[2]) == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(y, -y.flip(0), rtol=1e-9, atol=1e-9)
    assert float(y[1]) == pytest.approx(0, abs=1e-12)  # half of the mass is below it


def test_flow_onto_the_points():
    """At s = 0 a finite set is a staircase: each point takes its share of the normal numbers."""
    z = torch.linspace(-2.5, 2.5, 101, dtype=D)[:, None]
    got = line_points().flow(z, 1.0, 0.0, md.Cosine()).flatten()
    shares = torch.special.ndtr(z.flatten())  # at pure noise F is that of the normal
    want = torch.tensor(sorted(POINTS), dtype=D)[(shares * 5).floor().long()]
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_flow_times_shapes_and_dtypes():
    """One time a sample, scalar events, full and plain alike; float32 stays float32."""
    path, x = md.VP(), column([-1.0, 0.2, 1.5])
    t, s = torch.tensor([0.3, 0.5, 0.9], dtype=D), torch.tensor([0.1, 0.6, 0.2], dtype=D)
    scalars = md.GaussianMixture(
        torch.tensor(MEANS, dtype=D), torch.tensor(STDS, dtype=D), torch.tensor(WEIGHTS)
    )
    for oracle in (line_mixture(), line_points(), md.Gaussian(torch.ones(1, dtype=D), 0.5)):
        rows = torch.cat([oracle.flow(x[i : i + 1], t[i], s[i], path) for i in range(3)])
        torch.testing.assert_close(oracle.flow(x, t, s, path), rows, rtol=1e-12, atol=1e-12)
        assert oracle.flow(x.float(), 0.4, 0.2, path).dtype == torch.float32
    flat = scalars.flow(x[:, 0], t, s, path)
    assert flat.shape == (3,)
    torch.testing.assert_close(flat, line_mixture().flow(x, t, s, path)[:, 0], rtol=1e-6, atol=1e-6)
    assert scalars.mmse(0.3, path) == pytest.approx(line_mixture().mmse(0.3, path), rel=1e-6)
    one_point = md.Empirical(torch.ones(1, 2, dtype=D))
    a, b = path(0.7), path(0.2)
    want = b.signal + b.noise / a.noise * (data(3, 2) - a.signal)
    torch.testing.assert_close(one_point.flow(data(3, 2), 0.7, 0.2, path), want)


M = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.GaussianMixture(M, 1.0).mmse(0.5, md.VP()), "mmse of 2 components in 3 entr"),
        (lambda: md.GaussianMixture(M, 1.0).mmse(0.5, md.VP()), "variance.mean_covariance"),
        (lambda: md.GaussianMixture(M, 1.0).mmse(torch.tensor([0.5]), md.VP()), r"t has shape \(1"),
        (lambda: md.GaussianMixture(M, 1.0).flow(M, 0.5, 0.2, md.VP()), "flow of 2 components"),
        (lambda: md.Empirical(M).flow(M, 0.5, 0.2, md.VP()), "flow .* solver"),
        (lambda: md.Empirical(M[:, :1]).flow(M[:, :1], 0.0, 0.2, md.VP()), "t=0"),
        (lambda: md.Empirical(M).posterior(M, 0.0, md.VP()), "t=0"),
        (lambda: md.Empirical(M).covariance(M, torch.tensor([0.0, 0.5]), md.VP()), "t mixes 0"),
        (lambda: md.GaussianMixture(M, 1.0).flow(M[:, :2], 0.5, 0.2, md.VP()), "x has shape"),
        (lambda: md.GaussianMixture(M, 1.0).covariance(M[:, :2], 0.5, md.VP()), "x has shape"),
    ],
)  # fmt: skip
def test_refusals(call, word):
    with pytest.raises(ValueError, match=word):
        call()
