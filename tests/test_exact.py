"""Exact oracles against numerical integration, automatic differentiation and each other."""

import math

import pytest
import torch

import minidiff as md
from minidiff import exact

D = torch.float64
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(0.01, 10.0),
    "BetaTable": md.BetaTable(md.linear_betas(1000)),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def oracles(*event):
    """One of each kind with events of a given shape."""
    means, stds = data(3, *event), 0.2 + data(3, *event, seed=1).abs()
    return {
        "gaussian": md.Gaussian(means[0], stds[0]),
        "mixture": md.GaussianMixture(means, stds, torch.tensor([0.2, 0.5, 0.3], dtype=D)),
        "empirical": md.Empirical(data(6, *event, seed=2)),
    }


KINDS = list(oracles(2))
each_kind = pytest.mark.parametrize("kind", KINDS)


# ---- one dimension, by integration --------------------------------------------------------

MEANS, STDS, WEIGHTS = [-1.0, 0.4, 1.2], [0.3, 0.1, 0.5], [0.2, 0.5, 0.3]


def line():
    """The mixture in one dimension and its density of x0, written out, on a fine grid."""
    u = torch.linspace(-8, 8, 64_001, dtype=D)
    p = sum(
        w * torch.exp(-((u - m) ** 2) / (2 * s * s)) / math.sqrt(2 * math.pi * s * s)
        for m, s, w in zip(MEANS, STDS, WEIGHTS, strict=True)
    )
    means, stds, weights = (torch.tensor(v, dtype=D) for v in (MEANS, STDS, WEIGHTS))
    return md.GaussianMixture(means[:, None], stds, weights), u, p


@each_path
@pytest.mark.parametrize("t", [0.1, 0.4, 0.8])
def test_mixture_is_an_integral(path, t):
    """Density and denoiser at x_t are integrals over x0 of q(x_t | x0) p(x0).

    Trapezoids of width 2.5e-4 on functions of width .01 and more: exact to rounding, 1e-9.
    """
    mixture, u, p = line()
    at = path(t)
    s, n = float(at.signal), float(at.noise)
    x = torch.tensor([-1.7, -0.2, 0.45, 2.0], dtype=D)
    for value in x:
        q = torch.exp(-((value - s * u) ** 2) / (2 * n * n)) / math.sqrt(2 * math.pi * n * n)
        density = torch.trapezoid(q * p, u)
        mean = torch.trapezoid(q * p * u, u) / density
        got = mixture.log_prob(value.reshape(1, 1), t, path)
        assert float(got) == pytest.approx(float(density.log()), rel=1e-9, abs=1e-9)
        got = mixture.denoiser(path)(value.reshape(1, 1), torch.tensor(t, dtype=D))
        assert float(got) == pytest.approx(float(mean), rel=1e-9, abs=1e-9)


@each_path
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_densities_integrate_to_one(path, t):
    """At every level, t = 0 included: trapezoids over 40 of the widest standard deviations."""
    mixture, _, _ = line()
    u = (
        torch.linspace(-200, 200, 400_001, dtype=D)
        if t == 1
        else torch.linspace(-40, 40, 400_001, dtype=D)
    )
    total = torch.trapezoid(mixture.log_prob(u[:, None], t, path).exp(), u)
    assert float(total) == pytest.approx(1, rel=1e-8)


def test_density_of_the_data_written_out():
    mixture, u, p = line()
    got = mixture.log_prob(u[30_000:34_000, None], 0.0, md.VP())
    torch.testing.assert_close(got, p[30_000:34_000].log(), rtol=1e-12, atol=1e-12)


# ---- any dimension ------------------------------------------------------------------------


@each_kind
@each_path
def test_score_is_the_gradient_of_log_prob(kind, path):
    """By automatic differentiation, for points and for images."""
    for event in ((2,), (1, 3, 3)):
        oracle = oracles(*event)[kind]
        for t in (0.2, 0.9):
            x = data(4, *event, seed=5).requires_grad_()
            (want,) = torch.autograd.grad(oracle.log_prob(x, t, path).sum(), x)
            got = oracle.score(x.detach(), t, path)
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@each_kind
@each_path
def test_tweedie(kind, path):
    """(x + noise^2 score) / signal is the denoiser: the two formulas are computed apart."""
    oracle, x = oracles(2)[kind], data(5, 2, seed=5)
    for t in (0.2, 0.9):
        at = path(t)
        got = oracle.denoiser(path)(x, torch.tensor(t, dtype=D))
        want = (x + at.noise**2 * oracle.score(x, t, path)) / at.signal
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)  # signal is .02 at VP's .9
        torch.testing.assert_close(
            md.score_from_x0(got, x, at), oracle.score(x, t, path), rtol=1e-8, atol=1e-8
        )


@each_path
def test_gaussian_denoiser_is_a_line(path):
    """m + s std^2 / (s^2 std^2 + n^2) (x - s m), written out."""
    mean, std = torch.tensor([0.3, -1.0], dtype=D), torch.tensor([0.5, 2.0], dtype=D)
    x = data(4, 2)
    for t in (0.1, 0.6):
        at = path(t)
        s, n2 = at.signal, at.noise**2
        want = mean + s * std**2 / (s**2 * std**2 + n2) * (x - s * mean)
        got = md.Gaussian(mean, std).denoiser(path)(x, torch.tensor(t, dtype=D))
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_empirical_denoiser_is_a_softmax():
    """Written out with explicit weights; close to the data it returns the nearest point."""
    points, path = data(6, 2), md.Cosine()
    x, t = data(3, 2, seed=1), torch.tensor(0.5, dtype=D)
    s, n = math.cos(math.pi / 4), math.sin(math.pi / 4)
    for row, got in zip(x, md.Empirical(points).denoiser(path)(x, t), strict=True):
        w = torch.exp(-((row - s * points) ** 2).sum(1) / (2 * n * n))
        torch.testing.assert_close(got, (w[:, None] * points).sum(0) / w.sum())
    near = md.Empirical(points).denoiser(path)(points + 1e-6, torch.tensor(1e-3, dtype=D))
    torch.testing.assert_close(near, points)


def test_empirical_is_the_limit_of_narrow_mixtures():
    points, path = data(6, 2), md.VP()
    x, t = data(3, 2, seed=1), torch.tensor(0.5, dtype=D)
    narrow = md.GaussianMixture(points, 1e-5)
    torch.testing.assert_close(
        narrow.denoiser(path)(x, t), md.Empirical(points).denoiser(path)(x, t), rtol=1e-8, atol=1e-8
    )
    torch.testing.assert_close(
        narrow.log_prob(x, t, path), md.Empirical(points).log_prob(x, t, path), rtol=1e-8, atol=1e-8
    )


@each_kind
def test_times_per_sample_and_per_position(kind):
    """t of shape (B,) is row by row; t of shape (B, L, 1) is one level a token."""
    oracle, path, x = oracles(4, 2)[kind], md.VP(), data(3, 4, 2, seed=5)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=D)
    rows = torch.cat([oracle.denoiser(path)(x[i : i + 1], t[i]) for i in range(3)])
    torch.testing.assert_close(oracle.denoiser(path)(x, t), rows, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        oracle.denoiser(path)(x, t[:, None, None].expand(3, 4, 1)), rows, rtol=1e-12, atol=1e-12
    )
    torch.testing.assert_close(
        oracle.log_prob(x, t, path),
        torch.cat([oracle.log_prob(x[i : i + 1], t[i], path) for i in range(3)]),
    )
    mixed = t[:, None, None].expand(3, 4, 1).clone()
    mixed[:, 2] = 0.3
    xs = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(oracle.log_prob(xs, mixed, path).sum(), xs)
    torch.testing.assert_close(oracle.score(x, mixed, path), want, rtol=1e-9, atol=1e-9)


def test_known_tokens_inform_the_others():
    """Per-position times with some at 0: the exact conditional mean of a correlated mixture.

    Two equal components at +-1; token 0 is seen clean, so token 1's mean is a logistic of it.
    """
    mixture = md.GaussianMixture(torch.tensor([[[1.0], [1.0]], [[-1.0], [-1.0]]], dtype=D), 0.5)
    path, x = md.Cosine(), torch.tensor([[[0.3], [0.0]]], dtype=D)
    t = torch.tensor([[[0.0], [1.0]]], dtype=D)  # token 1 is pure noise
    got = mixture.denoiser(path)(x, t)
    odds = 1 / (1 + math.exp(-2 * 0.3 / 0.25))  # log ratio of N(.3; +-1, .25) is 2 x / s^2
    assert float(got[0, 1]) == pytest.approx(2 * odds - 1, rel=1e-9)
    assert float(got[0, 0]) == pytest.approx(0.3, rel=1e-12)


@each_kind
@each_path
def test_clean_times(kind, path):
    """At t = 0 the denoiser returns x itself."""
    oracle, x = oracles(2)[kind], data(3, 2, seed=5)
    assert torch.equal(oracle.denoiser(path)(x, torch.tensor(0.0, dtype=D)), x)
    assert torch.equal(oracle.denoiser(path)(x, torch.zeros(3, dtype=D)), x)


@each_kind
def test_samples(kind, global_state_untouched):
    """Seeded; mean and second moment within 5 standard errors of the mixture's own."""
    oracle, n = oracles(2)[kind], 40_000
    x = oracle.sample(n, rng=seeded())
    assert x.shape == (n, 2) and x.dtype == D
    assert torch.equal(x, oracle.sample(n, rng=seeded()))
    assert not torch.equal(oracle.sample(3), oracle.sample(3))
    mean = (oracle.weights[:, None] * oracle.means).sum(0)
    second = (oracle.weights[:, None] * (oracle.means**2 + oracle.stds**2)).sum(0)
    for got, want in ((x, mean), (x**2, second)):
        error = got.std(0) / n**0.5
        assert bool(((got.mean(0) - want).abs() < 5 * error).all())


def test_samples_of_a_data_set_are_its_points():
    points = data(4, 2)
    x = md.Empirical(points).sample(200, rng=seeded())
    assert len(x.unique(dim=0)) == 4
    assert all(any(torch.equal(row, p) for p in points) for row in x[:20])


def test_denoised_samples_have_the_right_error():
    """E|x0 - D(x_t)|^2 by 100,000 draws equals the posterior variance of a Gaussian, 5 sigma."""
    oracle, path, n = (
        md.Gaussian(torch.zeros(1, dtype=D), torch.tensor([0.7], dtype=D)),
        md.VP(),
        100_000,
    )
    x0 = oracle.sample(n, rng=seeded())
    at = path(0.3)
    x = md.diffuse(at, x0, data(n, 1, seed=1))
    error = (oracle.denoiser(path)(x, torch.tensor(0.3, dtype=D)) - x0) ** 2
    want = 0.49 * float(at.noise) ** 2 / (0.49 * float(at.signal) ** 2 + float(at.noise) ** 2)
    assert float(error.mean()) == pytest.approx(want, abs=5 * float(error.std()) / n**0.5)


def test_numbers_are_taken_in_the_precision_of_the_means():
    """A std of .3 is .3 in float64, not its float32 rounding; lists and ints are weights too."""
    a = md.GaussianMixture(torch.zeros(2, 1, dtype=D), 0.3, [1, 2])
    assert float(a.stds[0, 0]) == 0.3
    assert a.weights.tolist() == pytest.approx([1 / 3, 2 / 3], rel=1e-15)
    assert float(md.Gaussian(torch.zeros(2, dtype=D), 0.1).stds[0, 1]) == 0.1
    assert a.weights.dtype == D


def test_events_may_be_scalars():
    oracle = md.Gaussian(torch.tensor(0.5, dtype=D), torch.tensor(2.0, dtype=D))
    x = data(4)
    assert oracle.log_prob(x, 0.3, md.VP()).shape == (4,)
    want = torch.distributions.Normal(0.5, 2.0).log_prob(x)
    torch.testing.assert_close(oracle.log_prob(x, 0.0, md.VP()), want, rtol=1e-6, atol=1e-6)
    assert oracle.sample(3).shape == (3,)


M = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.GaussianMixture(M, 0.0), "stds"),
        (lambda: md.GaussianMixture(M, -1.0), "stds"),
        (lambda: md.GaussianMixture(M, math.nan), "stds"),
        (lambda: md.GaussianMixture(M, torch.ones(3)), "stds has shape"),
        (lambda: md.GaussianMixture(M, 1.0, torch.ones(3)), "weights has shape"),
        (lambda: md.GaussianMixture(M, 1.0, torch.tensor([1.0, 0.0])), "weights"),
        (lambda: md.GaussianMixture(M, 1.0, torch.tensor([1.0, math.inf])), "weights"),
        (lambda: md.GaussianMixture(M / 0, 1.0), "means holds NaN"),
        (lambda: md.GaussianMixture(torch.zeros(2, 3, dtype=torch.long), 1.0), "means has dtype"),
        (lambda: md.Gaussian(torch.zeros(3), torch.ones(2)), "std has shape"),
        (lambda: md.Gaussian(torch.zeros(3), 0.0), "std"),
        (lambda: md.Empirical(torch.zeros(0, 3)), "points has shape"),
        (lambda: md.Empirical(torch.tensor([[math.nan]])), "points holds NaN"),
        (lambda: md.Empirical(M).log_prob(M, 0.0, md.VP()), "t=0"),
        (lambda: md.Empirical(M).score(M, torch.tensor([0.0, 0.5]), md.VP()), "t=0"),
        (lambda: md.Empirical(M).denoiser(md.VP())(M, torch.tensor([0.0, 0.5])), "t mixes 0"),
        (lambda: md.GaussianMixture(M, 1.0).log_prob(M[:, :2], 0.5, md.VP()), "x has shape"),
        (lambda: md.GaussianMixture(M, 1.0).sample(0), "n=0"),
        (lambda: md.Empirical(M).sample(-2), "n=-2"),
        (lambda: md.Gaussian(M[0], 1.0).score(M, 2.0, md.VP()), "2.0"),
    ],
)  # fmt: skip
def test_oracles_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_all_three_are_flat_names():
    assert (md.Gaussian, md.GaussianMixture, md.Empirical) == (
        exact.Gaussian, exact.GaussianMixture, exact.Empirical,
    )  # fmt: skip
