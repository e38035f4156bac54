"""The oracles with a condition, against conditioning by linear algebra, torch and simulation."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

import minidiff as md
from minidiff import exact

D = torch.float64
PATHS = {"VP": md.VP(), "Cosine": md.Cosine(), "LinearPath": md.LinearPath(), "VE": md.VE(0.01, 9)}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def condition(mean, cov, wanted, seen, values):
    """Mean (B, wanted) and covariance of some entries of a Gaussian given values (B, seen)."""
    inverse = torch.linalg.inv(cov[seen][:, seen])
    cross = cov[wanted][:, seen]
    return (
        mean[wanted] + (values - mean[seen]) @ inverse @ cross.T,
        cov[wanted][:, wanted] - cross @ inverse @ cross.T,
    )


# ---- imputation ------------------------------------------------------------------------------

KNOWN = torch.tensor([[True, False, False], [False, True, False]])
SEEN, REST = [0, 4], [1, 2, 3, 5]


def imputation():
    """Mean, covariance and values of a Gaussian with events (2, 3), NaN where unknown."""
    root = 0.5 * data(6, 6, seed=1)
    values = torch.where(KNOWN, data(2, 3, seed=2), torch.full((2, 3), math.nan, dtype=D))
    return data(2, 3), root @ root.T + 0.1 * torch.eye(6, dtype=D), values


def oracle():
    mean, cov, values = imputation()
    return exact.ConditionalGaussian(mean, cov, values, KNOWN)


def test_conditional_moments():
    """By inverting the block of the known entries, to 1e-10; known entries have no variance."""
    mean, cov, values = imputation()
    centre, left = condition(mean.flatten(), cov, REST, SEEN, values[KNOWN])
    got = oracle()
    torch.testing.assert_close(got.mean[~KNOWN], centre, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.cov, left, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.var[~KNOWN], left.diagonal(), rtol=1e-10, atol=1e-10)
    assert torch.equal(got.mean[KNOWN], values[KNOWN])
    assert torch.equal(got.var[KNOWN], torch.zeros(2, dtype=D))


def test_log_prob_is_the_joint_less_the_marginal():
    """log p(unknown | known) = log p(all) - log p(known), both by torch, to 1e-10."""
    mean, cov, values = imputation()
    x = data(4, 2, 3, seed=5)
    x[:, KNOWN] = values[KNOWN]
    flat, normal = mean.flatten(), torch.distributions.MultivariateNormal
    joint = normal(flat, cov).log_prob(x.reshape(4, 6))
    want = joint - normal(flat[SEEN], cov[SEEN][:, SEEN]).log_prob(values[KNOWN])
    torch.testing.assert_close(oracle().log_prob(x), want, rtol=1e-10, atol=1e-10)
    x[:, KNOWN] = math.nan
    torch.testing.assert_close(oracle().log_prob(x), want, rtol=1e-10, atol=1e-10)


def test_conditional_samples(global_state_untouched):
    """Known entries bit for bit; the moments of the others within 5 standard errors of 40,000."""
    n, got, values = 40_000, oracle(), imputation()[2]
    x = got.sample(n, rng=seeded(3))
    assert x.shape == (n, 2, 3) and torch.equal(x, got.sample(n, rng=seeded(3)))
    assert bool((x[:, KNOWN] == values[KNOWN]).all())
    gap = x[:, ~KNOWN] - got.mean[~KNOWN]
    products = (gap[:, :, None] * gap[:, None]).reshape(n, 16)
    for sample, want in ((gap, torch.zeros(4, dtype=D)), (products, got.cov.flatten())):
        assert bool(((sample.mean(0) - want).abs() < 5 * sample.std(0) / n**0.5).all())


@each_path
def test_conditional_denoiser_is_conditioning(path):
    """One joint Gaussian of clean known, clean unknown and noisy unknown entries; to 1e-9."""
    mean, cov, values = imputation()
    x = data(5, 2, 3, seed=5)
    for t in (0.2, 0.7, 1.0):
        s, n = float(path(t).signal), float(path(t).noise)
        joint = torch.zeros(10, 10, dtype=D)  # six clean entries, then the four noisy ones
        joint[:6, :6] = cov
        joint[6:, :6], joint[:6, 6:] = s * cov[REST], s * cov[:, REST]
        joint[6:, 6:] = s * s * cov[REST][:, REST] + n * n * torch.eye(4, dtype=D)
        centre = torch.cat([mean.flatten(), s * mean.flatten()[REST]])
        given = torch.cat([values[KNOWN].expand(5, 2), x[:, ~KNOWN]], 1)
        want, _ = condition(centre, joint, REST, [*SEEN, 6, 7, 8, 9], given)
        got = oracle().denoiser(path)(x, torch.tensor(t, dtype=D))
        assert got.shape == (5, 2, 3)
        torch.testing.assert_close(got[:, ~KNOWN], want, rtol=1e-9, atol=1e-9)
        assert bool((got[:, KNOWN] == values[KNOWN]).all())


def test_conditional_denoiser_and_inpaint():
    """Inpaint with the same values changes nothing, and its samples have the right moments.

    4,000 chains of 60 ancestral steps; means within 5 standard errors, widths within a tenth (an
    ancestral chain is a little too narrow).
    """
    path, got, values = md.VP(), oracle(), imputation()[2]
    denoise = got.denoiser(path)
    held = md.inpaint(denoise, values.expand(4000, 2, 3), KNOWN)
    x, t = data(4000, 2, 3, seed=5), torch.tensor(0.4, dtype=D)
    assert torch.equal(held(x, t), denoise(x, t))
    times = md.grids.log_snr(path, 60, low=-9, high=8)
    out = md.last(md.ancestral(held, path, x, times, rng=seeded(1)))
    assert bool((out[:, KNOWN] == values[KNOWN]).all())
    error = got.var.sqrt() / 4000**0.5 + 1e-12  # rounding of a mean of equal numbers
    assert bool(((out.mean(0) - got.mean).abs() <= 5 * error).all())
    torch.testing.assert_close(out.std(0), got.var.sqrt(), rtol=0.1, atol=0)


def test_conditional_times_and_dtypes():
    got, path, x = oracle(), md.VP(), data(3, 2, 3, seed=5)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=D)
    rows = torch.cat([got.denoiser(path)(x[i : i + 1], t[i]) for i in range(3)])
    torch.testing.assert_close(got.denoiser(path)(x, t), rows, rtol=1e-11, atol=1e-11)
    clean = got.denoiser(path)(x, torch.tensor(0.0, dtype=D))
    assert torch.equal(clean[:, ~KNOWN], x[:, ~KNOWN])
    assert got.denoiser(path)(x.float(), torch.tensor(0.4)).dtype == torch.float32
    small = exact.ConditionalGaussian(*(v.float() for v in imputation()), KNOWN)
    assert small.sample(2).dtype == small.mean.dtype == small.var.dtype == torch.float32
    torch.testing.assert_close(small.mean.double(), got.mean, rtol=1e-4, atol=1e-4)


def test_nothing_known_is_the_plain_gaussian():
    mean, cov, values = imputation()
    free = exact.ConditionalGaussian(mean, cov, values, torch.zeros(2, 3, dtype=torch.bool))
    plain, x = md.GaussianMixture.full(mean[None], cov[None]), data(3, 2, 3, seed=5)
    torch.testing.assert_close(free.mean, mean)
    torch.testing.assert_close(free.log_prob(x), plain.log_prob(x, 0.0, md.VP()))
    t = torch.tensor(0.3, dtype=D)
    torch.testing.assert_close(free.denoiser(md.VP())(x, t), plain.denoiser(md.VP())(x, t))


def test_a_mask_may_broadcast():
    mean, cov, _ = imputation()
    row = torch.tensor([True, False, False])
    got = exact.ConditionalGaussian(mean, cov, torch.ones(2, 3, dtype=D), row)
    assert got.known.shape == (2, 3) and got.var[:, 0].tolist() == [0, 0]
    assert bool((got.var[:, 1:] > 0).all())


MEAN, COV, VALUES = torch.zeros(3), torch.eye(3), torch.ones(3)
FIRST = torch.tensor([True, False, False])


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: exact.ConditionalGaussian(MEAN, COV[:2, :2], VALUES, FIRST), "cov has shape"),
        (lambda: exact.ConditionalGaussian(MEAN, -COV, VALUES, FIRST), "cov has an eigenvalue"),
        (lambda: exact.ConditionalGaussian(MEAN / 0, COV, VALUES, FIRST), "mean holds NaN"),
        (lambda: exact.ConditionalGaussian(MEAN, COV, VALUES[:2], FIRST), r"values has shape \(2"),
        (lambda: exact.ConditionalGaussian(MEAN, COV, VALUES / 0, FIRST), "values holds NaN"),
        (lambda: exact.ConditionalGaussian(MEAN, COV, VALUES, FIRST.float()), "known has dtype"),
        (lambda: exact.ConditionalGaussian(MEAN, COV, VALUES, FIRST[:2]), "known has shape"),
        (lambda: exact.ConditionalGaussian(MEAN, COV, VALUES, FIRST | True), "known marks every"),
        (lambda: exact.ConditionalGaussian(MEAN, COV, VALUES, FIRST).log_prob(MEAN), "x has shape"),
        (lambda: exact.ConditionalGaussian(MEAN, COV, VALUES, FIRST).sample(0), "n=0"),
        (
            lambda: exact.ConditionalGaussian(MEAN, COV, VALUES, FIRST).denoiser(md.VP())(
                COV, torch.full((3, 1), 0.5)
            ),
            "full covariances mix positions",
        ),
    ],
)  # fmt: skip
def test_conditional_refuses(call, word):
    with pytest.raises(ValueError, match=word):
        call()


# ---- forecasting -----------------------------------------------------------------------------

SERIES = {"usual": (0.8, 0.5), "swinging": (-0.6, 1.2), "walk": (1.0, 0.3), "growing": (1.1, 0.2),
          "white": (0.0, 0.7), "flip": (-1.0, 0.4)}  # fmt: skip
each_series = pytest.mark.parametrize(("a", "std"), SERIES.values(), ids=SERIES.keys())


@each_series
def test_predictive_is_the_recursion_solved(a, std):
    """x = L^-1 (a (last - m) e1 + std z) with L = I - a shift, in coordinates from the mean."""
    H, m, last = 5, 0.4, torch.tensor([1.5, -2.0], dtype=D)
    lower = torch.eye(H, dtype=D) - a * torch.diag(torch.ones(H - 1, dtype=D), -1)
    inverse = torch.linalg.inv(lower)
    got = exact.AR1(a, std, m).predictive(last, H)
    assert isinstance(got, exact.Forecast)
    want = m + a * (last[:, None] - m) * inverse[:, 0]
    torch.testing.assert_close(got.mean, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.cov, std**2 * inverse @ inverse.T, rtol=1e-12, atol=1e-12)
    first = exact.AR1(a, std, m).predictive(last[:, None], 1)
    assert first.mean.shape == (2, 1) and first.cov.shape == (1, 1)
    assert float(first.cov) == pytest.approx(std**2, rel=1e-12)


@pytest.mark.parametrize("a", [0.8, 1.0, -0.6])
def test_predictive_by_simulation(a):
    """200,000 futures of three steps from one value: first two moments within 5 standard errors."""
    n, std, m = 200_000, 0.5, 0.4
    x, path = torch.full((n,), 1.5, dtype=D), []
    noise = data(3, n, seed=4)
    for z in noise:
        x = m + a * (x - m) + std * z
        path.append(x)
    got = exact.AR1(a, std, m).predictive(torch.tensor([1.5], dtype=D), 3)
    gap = torch.stack(path, 1) - got.mean
    products = (gap[:, :, None] * gap[:, None]).reshape(n, 9)
    for sample, want in ((gap, torch.zeros(3, dtype=D)), (products, got.cov.flatten())):
        assert bool(((sample.mean(0) - want).abs() < 5 * sample.std(0) / n**0.5).all())


@pytest.mark.parametrize("a", [0.8, -0.6, 0.0])
def test_joint_window(a):
    """A step multiplies the covariance by a, all times are alike; given its first value it is the
    forecast.
    """
    std, m, L = 0.5, 0.4, 5
    series = exact.AR1(a, std, m)
    window = series.joint(L)
    cov, mean = window.covs[0], window.means[0]
    assert mean.tolist() == [m] * L and window.means.dtype == D and len(window.weights) == 1
    assert cov.diagonal().tolist() == pytest.approx([std**2 / (1 - a * a)] * L, rel=1e-12)
    torch.testing.assert_close(cov[1:, 0], a * cov[:-1, 0], rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(cov[1:, 1:], cov[:-1, :-1], rtol=1e-12, atol=1e-15)
    for first in (1.5, -0.2):
        last = torch.tensor([first], dtype=D)
        rest = list(range(1, L))
        want_mean, want_cov = condition(mean, cov, rest, [0], last[:, None])
        got = series.predictive(last, L - 1)
        torch.testing.assert_close(got.mean, want_mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(got.cov, want_cov, rtol=1e-10, atol=1e-10)


def test_joint_window_by_simulation():
    """20,000 windows from a series run for 60 steps: lagged products within 5 standard errors."""
    n, a, std = 20_000, 0.7, 0.5
    x, rows = torch.zeros(n, dtype=D), []
    for z in data(63, n, seed=4):
        x = a * x + std * z
        rows.append(x)
    tail = torch.stack(rows[-3:], 1)
    products = (tail[:, :, None] * tail[:, None]).reshape(n, 9)
    want = exact.AR1(a, std).joint(3).covs[0].flatten()
    assert bool(((products.mean(0) - want).abs() < 5 * products.std(0) / n**0.5).all())


@each_series
@each_path
def test_one_step_denoiser(path, a, std):
    """E[x_next | noisy x_next, last] by conditioning a 2 x 2 covariance, written out; to 1e-10."""
    m, last = 0.4, torch.tensor([1.5, -2.0, 0.3], dtype=D)
    x, series = data(3, 1, seed=5), exact.AR1(a, std, m)
    for t in (0.2, 0.7, 1.0):
        s, n = float(path(t).signal), float(path(t).noise)
        mu = m + a * (last[:, None] - m)
        want = mu + s * std**2 / (s * s * std**2 + n * n) * (x - s * mu)
        time = torch.tensor(t, dtype=D)
        for seen in (last, last[:, None]):
            got = series.denoiser(path, seen)(x, time)
            torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
            got = series.denoiser(path, seen)(x[:, 0], time)
            torch.testing.assert_close(got, want[:, 0], rtol=1e-10, atol=1e-10)


def test_one_step_denoiser_is_the_windows():
    """In a stationary window of two with a clean first token: the plain mixture's conditional."""
    series, path, last = exact.AR1(0.8, 0.5, 0.4), md.Cosine(), torch.tensor([1.5, -2.0], dtype=D)
    window = series.joint(2)
    fixed = [
        exact.ConditionalGaussian(
            window.means[0], window.covs[0], torch.stack([v, v]), torch.tensor([True, False])
        )
        for v in last
    ]
    x, t = data(2, 1, seed=5), torch.tensor(0.4, dtype=D)
    rows = [
        f.denoiser(path)(torch.cat([row, row])[None], t)[0, 1:]
        for f, row in zip(fixed, x, strict=True)
    ]
    torch.testing.assert_close(series.denoiser(path, last)(x, t), torch.stack(rows))


def test_one_step_denoiser_times_and_dtypes():
    series, path = exact.AR1(0.8, 0.5), md.VP()
    last, x = torch.tensor([1.5, -2.0], dtype=D), data(2, 1, seed=5)
    t = torch.tensor([0.2, 0.9], dtype=D)
    whole = series.denoiser(path, last)
    rows = torch.cat([series.denoiser(path, last[i : i + 1])(x[i : i + 1], t[i]) for i in range(2)])
    torch.testing.assert_close(whole(x, t), rows, rtol=1e-12, atol=1e-12)
    assert torch.equal(whole(x, torch.tensor(0.0, dtype=D)), x)
    assert whole(x.float(), torch.tensor(0.4)).dtype == torch.float32
    small = series.predictive(last.float(), 3)
    assert small.mean.dtype == small.cov.dtype == torch.float32
    assert (series.coefficient, series.noise_std, series.mean) == (0.8, 0.5, 0.0)


TWO = torch.zeros(2)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: exact.AR1(math.nan, 1.0), "coefficient=nan"),
        (lambda: exact.AR1(0.5, 1.0, math.inf), "mean=inf"),
        (lambda: exact.AR1(0.5, 0.0), "noise_std=0"),
        (lambda: exact.AR1(0.5, -1.0), "noise_std=-1"),
        (lambda: exact.AR1(0.5, math.inf), "noise_std=inf"),
        (lambda: exact.AR1(0.5, 1.0).predictive(TWO, 0), "horizon=0"),
        (lambda: exact.AR1(0.5, 1.0).predictive(TWO, 2.0), "horizon=2.0"),
        (lambda: exact.AR1(0.5, 1.0).predictive(torch.zeros(2, 3), 2), r"last has shape \(2, 3\)"),
        (lambda: exact.AR1(0.5, 1.0).predictive(torch.zeros(2, 1, 1), 2), "last has shape"),
        (lambda: exact.AR1(0.5, 1.0).predictive(TWO / 0, 2), "last holds NaN"),
        (lambda: exact.AR1(0.5, 1.0).joint(0), "length=0"),
        (lambda: exact.AR1(1.0, 1.0).joint(3), "coefficient=1.0"),
        (lambda: exact.AR1(-1.5, 1.0).joint(3), "predictive works for any"),
        (
            lambda: exact.AR1(0.5, 1.0).denoiser(md.VP(), TWO)(torch.zeros(3), 0.5),
            r"x has shape \(3,\)",
        ),
        (
            lambda: exact.AR1(0.5, 1.0).denoiser(md.VP(), TWO)(torch.zeros(2, 2), 0.5),
            "x has shape",
        ),
        (
            lambda: exact.AR1(0.5, 1.0).denoiser(md.VP(), TWO)(torch.zeros(1, 2), 0.5),
            "x has shape",
        ),
        (
            lambda: exact.AR1(0.5, 1.0).denoiser(md.VP(), TWO)(torch.zeros(2, 1, 1), 0.5),
            "x has shape",
        ),
        (lambda: exact.AR1(0.5, 1.0).denoiser(md.VP(), torch.zeros(2, 3)), "last has shape"),
    ],
)  # fmt: skip
def test_ar1_refuses(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_exact_is_the_address_of_all():
    """Every name of exact.__all__ is there, whichever file it is written in."""
    assert len(exact.__all__) == 15
    assert all(hasattr(exact, name) for name in exact.__all__)


def test_oracles_compute_where_x_is(monkeypatch):
    """On a GPU that torch only imagines: it knows shapes and devices and refuses to mix two. It
    cannot compare numbers, so every check of values passes.
    """
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.0)
    path, t = md.Cosine(), torch.tensor(0.5, dtype=D)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(4, 1, device="cuda")
        for home in ("cuda", "cpu"):
            means = torch.empty(3, 1, device=home)
            full = md.GaussianMixture.full(means, torch.empty(3, 1, 1, device=home))
            for data in (md.GaussianMixture(means, torch.ones(())), md.Empirical(means), full):
                assert data.second_moment().device.type == home
                assert data.covariance(x, t, path).device.type == "cuda"
                assert data.flow(x, t, 0.25, path).device.type == "cuda"
        series = exact.AR1(0.5, 1.0)
        assert series.predictive(x, 2).mean.device.type == "cuda"
        assert series.denoiser(path, x)(x, t).device.type == "cuda"
