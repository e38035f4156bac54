"""The vector autoregression, against AR1, brute linear algebra, autograd and simulation."""

import math

import pytest
import torch
from torch._subclasses import FakeTensorMode

import minidiff as md
from minidiff import exact

D = torch.float64
PATHS = {"VP": md.VP(), "Cosine": md.Cosine(), "LinearPath": md.LinearPath(), "VE": md.VE(0.01, 9)}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())

# three channels and two lags, with eigenvalues that oscillate; two channels whose first lag is
# nothing; one lag with a unit root and one that grows
SERIES = {
    "usual": (
        [[[0.5, 0.2, 0.0], [-0.3, 0.4, 0.1], [0.0, 0.6, -0.2]],
         [[0.1, 0.0, -0.2], [0.0, -0.3, 0.0], [0.2, 0.0, 0.3]]],
        [[1.0, 0.5, -0.2], [0.5, 0.8, 0.1], [-0.2, 0.1, 0.4]],
        [0.3, -1.0, 2.0],
    ),
    "second": ([[[0.0, 0.0], [0.0, 0.0]], [[0.6, 0.3], [-0.3, 0.6]]], [[0.5, 0.2], [0.2, 0.9]],
               [1.0, 0.0]),
    "walk": ([[[1.0, 0.0], [0.4, 0.5]]], [[0.09, -0.05], [-0.05, 0.2]], [0.1, -0.1]),
    "growing": ([[[1.1, 0.2], [0.0, 0.7]]], [[0.3, 0.0], [0.0, 0.1]], [0.0, 0.5]),
}  # fmt: skip
STATIONARY = ["usual", "second"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def parts(name):
    """Coefficients (p, K, K), covariance (K, K) and offset (K,) of a series, float64."""
    return tuple(torch.tensor(part, dtype=D) for part in SERIES[name])


def make(name):
    return exact.VAR(*parts(name))


def companion(A):
    """[A_1 .. A_p] over a shifted identity, written out block by block."""
    p, K = A.shape[:2]
    F = torch.zeros(p * K, p * K, dtype=D)
    for j in range(p):
        F[:K, j * K : (j + 1) * K] = A[j]
        if j:
            F[j * K : (j + 1) * K, (j - 1) * K : j * K] = torch.eye(K, dtype=D)
    return F


def stationary(name):
    """Mean of a value and covariance of (x_n, ..., x_{n-p+1}) by one linear system with Kronecker
    products: vec S = (I - F x F)^-1 vec Q.
    """
    A, C, b = parts(name)
    K, F = len(b), companion(A)
    Q = torch.zeros_like(F)
    Q[:K, :K] = C
    left = torch.eye(len(F) ** 2, dtype=D) - torch.kron(F, F)
    S = torch.linalg.solve(left, Q.flatten()).reshape(F.shape)
    return torch.linalg.inv(torch.eye(K, dtype=D) - A.sum(0)) @ b, S


def rollout(name, history, shocks, offsets=None):
    """The definition of the series, loop by loop: shocks (steps, n, K) after history (n, p, K)."""
    A, _, b = parts(name)
    rows = [*history.unbind(1)]
    for i, z in enumerate(shocks):
        value = z + (b if offsets is None else offsets[i])
        for j in range(1, len(A) + 1):
            value = value + rows[-j] @ A[j - 1].T
        rows.append(value)
    return torch.stack(rows[history.shape[1] :], 1)


def moments_agree(x, mean, cov, errors=5.0):
    """First and second moments of x (n, D) about the mean, each within so many standard errors."""
    gap = x - mean
    products = (gap[:, :, None] * gap[:, None]).reshape(len(x), -1)
    for sample, want in ((gap, torch.zeros_like(mean)), (products, cov.flatten())):
        assert bool(((sample.mean(0) - want).abs() < errors * sample.std(0) / len(x) ** 0.5).all())


# ---- forecasts -------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.8, -0.6, 1.0, 1.1])
def test_one_channel_and_one_lag_is_ar1(a):
    """b = (1 - a) m; all in double precision, to 1e-12."""
    std, m, last, x = 0.5, 0.4, data(3), data(3, 1, seed=5)
    one = exact.AR1(a, std, m)
    var = exact.VAR(
        torch.tensor([[[a]]], dtype=D),
        torch.tensor([[std**2]], dtype=D),
        torch.tensor([(1 - a) * m], dtype=D),
    )
    got, want = var.predictive(last[:, None, None], 6), one.predictive(last, 6)
    torch.testing.assert_close(got.mean[..., 0], want.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.cov[:, 0, :, 0], want.cov, rtol=1e-12, atol=1e-12)
    t = torch.tensor(0.4, dtype=D)
    got = var.denoiser(md.VP(), last[:, None, None])(x, t)
    torch.testing.assert_close(got, one.denoiser(md.VP(), last)(x, t), rtol=1e-12, atol=1e-12)
    assert var.radius == pytest.approx(abs(a), rel=1e-12)
    if abs(a) < 1:
        got, want = var.joint(5), one.joint(5)
        torch.testing.assert_close(got.means[0, :, 0], want.means[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(got.covs, want.covs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SERIES)
def test_responses_are_powers_of_the_companion(name):
    """eq:var-responses: Psi_i is the first block of F^i, to 1e-12 of the largest."""
    A, K, F = parts(name)[0], len(parts(name)[2]), companion(parts(name)[0])
    psi = make(name).responses(9)
    assert psi.shape == (9, K, K) and psi.dtype == D
    for i in range(9):
        want = torch.linalg.matrix_power(F, i)[:K, :K]
        torch.testing.assert_close(psi[i], want, rtol=1e-12, atol=1e-12)
    assert torch.equal(psi[0], torch.eye(K, dtype=D)) and torch.equal(psi[1], A[0])
    radius = float(torch.linalg.eigvals(F).abs().max())
    assert make(name).radius == pytest.approx(radius, rel=1e-12)


@pytest.mark.parametrize("name", SERIES)
def test_predictive_is_the_recursion_solved(name):
    """eq:var-predictive: all steps at once are M x = b + past + z, with M = I - shifted blocks, so
    the mean is M^-1 (b + past) and the covariance M^-1 (I x C) M^-T; to 1e-11.
    """
    H, (A, C, b) = 5, parts(name)
    p, K = A.shape[:2]
    history = data(4, p + 2, K, seed=1)
    M, past = torch.eye(H * K, dtype=D), torch.zeros(4, H, K, dtype=D)
    for i in range(H):
        for j in range(1, p + 1):
            if i - j >= 0:
                M[i * K : (i + 1) * K, (i - j) * K : (i - j + 1) * K] -= A[j - 1]
            else:
                past[:, i] += history[:, p + 2 + i - j] @ A[j - 1].T
    inverse = torch.linalg.inv(M)
    got = make(name).predictive(history, H)
    want = (b + past).reshape(4, H * K) @ inverse.T
    torch.testing.assert_close(got.mean, want.reshape(4, H, K), rtol=1e-11, atol=1e-11)
    want = inverse @ torch.kron(torch.eye(H, dtype=D), C) @ inverse.T
    assert got.cov.shape == (H, K, H, K)
    torch.testing.assert_close(got.cov.reshape(H * K, H * K), want, rtol=1e-11, atol=1e-11)
    again = make(name).predictive(history[:, 2:], H)  # older values add nothing
    assert torch.equal(got.mean, again.mean) and torch.equal(got.cov, again.cov)


@pytest.mark.parametrize("name", ["usual", "walk"])
def test_predictive_by_simulation(name):
    """100,000 futures of three steps, one shock at a time: two moments within 5 standard errors."""
    n, (A, C, _) = 100_000, parts(name)
    p, K = A.shape[:2]
    history = data(1, p, K, seed=1)
    shocks = data(3, n, K, seed=2) @ torch.linalg.cholesky(C).T
    path = rollout(name, history.expand(n, p, K), shocks)
    got = make(name).predictive(history, 3)
    moments_agree(path.reshape(n, -1), got.mean.flatten(), got.cov.reshape(3 * K, 3 * K))


def test_offsets_written_out():
    """x' = x / 2 + offset from 4: 2 + 1 = 3, then 1.5 - 1 = 0.5, then 0.25 + 10; exact halves."""
    var = exact.VAR(torch.tensor([[[0.5]]]), torch.tensor([[1.0]]), torch.tensor([99.0]))
    known = torch.tensor([[[1.0], [-1.0], [10.0]]])
    history = torch.tensor([[[4.0]], [[4.0]]])
    got = var.predictive(history, 3, offsets=known)
    assert got.mean[..., 0].tolist() == [[3.0, 0.5, 10.25]] * 2
    assert torch.equal(got.cov, var.predictive(history, 3).cov)  # known inputs have no doubt
    each = torch.cat([known, known + 1])
    got = var.predictive(history, 3, offsets=each)
    assert got.mean[..., 0].tolist() == [[3.0, 0.5, 10.25], [4.0, 2.0, 12.0]]
    plain = var.predictive(history, 2, offsets=torch.full((1, 2, 1), 99.0))
    assert torch.equal(plain.mean, var.predictive(history, 2).mean)
    x = torch.tensor([[0.0], [1.0]])
    at_noise = var.denoiser(md.Cosine(), history, offsets=each[:, :1])(x, torch.tensor(1.0))
    assert at_noise[:, 0].tolist() == pytest.approx([3.0, 4.0], abs=1e-6)  # all noise: the mean


@pytest.mark.parametrize("name", ["usual", "growing"])
def test_drawn_futures(name, global_state_untouched):
    """The moments of 60,000 futures of two histories within 5 standard errors of the forecast."""
    n, H, var = 60_000, 2, make(name)
    K, p = len(parts(name)[2]), len(parts(name)[0])
    history, offsets = data(2, p + 1, K, seed=1), data(1, H, K, seed=3)
    x = var.draw(history, H, n, offsets=offsets, rng=seeded(4))
    assert x.shape == (n, 2, H, K) and x.dtype == D
    assert torch.equal(x, var.draw(history, H, n, offsets=offsets, rng=seeded(4)))
    want = var.predictive(history, H, offsets=offsets)
    for b in (0, 1):
        flat = x[:, b].reshape(n, -1)
        moments_agree(flat, want.mean[b].flatten(), want.cov.reshape(H * K, H * K))
    assert abs(
        float((x[:, 0] - want.mean[0]).flatten().dot((x[:, 1] - want.mean[1]).flatten()))
    ) < (
        5 * float(want.cov.reshape(H * K, -1).norm()) * n**0.5
    )  # the two series are independent: a sum of n products, with variance |cov|^2 each
    small = var.draw(history.float(), H, 3, rng=seeded())
    assert small.dtype == torch.float32 and small.shape == (3, 2, H, K)


# ---- the stationary series -------------------------------------------------------------------


@pytest.mark.parametrize("name", STATIONARY)
def test_joint_window(name):
    """eq:var-joint: the covariance of p values solves the system with Kronecker products; a step
    multiplies by the companion; all times are alike; to 1e-12.
    """
    A, C, b = parts(name)
    p, K = A.shape[:2]
    mean, S = stationary(name)
    window = make(name).joint(p + 3)
    assert window.means.shape == (1, p + 3, K) and window.means.dtype == D
    torch.testing.assert_close(window.means[0], mean.expand(p + 3, K), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mean, b + (A @ mean).sum(0), rtol=1e-12, atol=1e-12)
    cov = window.covs[0].reshape(p + 3, K, p + 3, K)
    newest_first = cov[:p, :, :p].flip(0, 2).reshape(p * K, p * K)
    torch.testing.assert_close(newest_first, S, rtol=1e-12, atol=1e-12)
    F, Q = companion(A), torch.zeros(p * K, p * K, dtype=D)
    Q[:K, :K] = C
    torch.testing.assert_close(newest_first, F @ newest_first @ F.T + Q, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(cov[1:, :, 1:], cov[:-1, :, :-1], rtol=1e-12, atol=1e-12)
    for i in range(p, p + 3):  # Cov[x_i, x_0], by the recursion of the series
        want = sum(A[j - 1] @ cov[i - j, :, 0] for j in range(1, p + 1))
        torch.testing.assert_close(cov[i, :, 0], want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", STATIONARY)
def test_joint_given_its_start_is_the_forecast(name):
    """A window whose first values are known, filled by the imputer's oracle, is the forecast."""
    var, p, K = make(name), len(parts(name)[0]), len(parts(name)[2])
    L, H = p + 5, 4
    window, history = var.joint(L), data(p + 1, K, seed=1)
    values = torch.cat([history, torch.full((H, K), math.nan, dtype=D)])
    known = torch.zeros(L, K, dtype=torch.bool)
    known[: p + 1] = True
    want = exact.ConditionalGaussian(window.means[0], window.covs[0], values, known)
    got = var.predictive(history[None], H)
    torch.testing.assert_close(got.mean[0], want.mean[p + 1 :], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.cov.reshape(H * K, H * K), want.cov, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", STATIONARY)
def test_samples_have_the_joint_law(name, global_state_untouched):
    """40,000 series from the first value on, also shorter ones than the lags: within 5 standard
    errors of the covariance that the Kronecker system gives, and of one lag more.
    """
    n, var, (mean, S) = 40_000, make(name), stationary(name)
    A, p, K = parts(name)[0], *parts(name)[0].shape[:2]
    x = var.sample(n, p + 2, rng=seeded(1))
    assert x.shape == (n, p + 2, K) and torch.equal(x, var.sample(n, p + 2, rng=seeded(1)))
    for start in (0, 2):  # newest first, as the state
        state = x[:, start : start + p].flip(1).reshape(n, p * K)
        moments_agree(state, mean.repeat(p), S)
    wide = x[:, -p - 1 :].flip(1).reshape(n, -1)
    along = companion(A) @ S
    cov = torch.zeros((p + 1) * K, (p + 1) * K, dtype=D)
    cov[:-K, :-K] = cov[K:, K:] = S
    cov[:K, -K:] = along[:K, -K:]
    cov[-K:, :K] = cov[:K, -K:].T
    moments_agree(wide, mean.repeat(p + 1), cov)
    assert torch.equal(var.sample(5, 1, rng=seeded(1)), var.sample(5, p, rng=seeded(1))[:, :1])


def test_a_nearly_unit_root():
    """Doubling sums the slow series too: var 1 / (1 - a^2) at a = 1 - 1e-9; 1e-6 is rounding."""
    a = 1 - 1e-9
    var = exact.VAR(torch.tensor([[[a]]], dtype=D), torch.eye(1, dtype=D))
    got = float(var.joint(1).covs)
    assert got == pytest.approx(1 / (2e-9 - 1e-18), rel=1e-6)


def test_the_dtype_of_samples_is_that_of_the_coefficients():
    A, C, b = (part.float() for part in parts("usual"))
    var = exact.VAR(A, C, b)
    assert var.sample(2, 3).dtype == torch.float32 and make("usual").sample(2, 3).dtype == D
    assert var.joint(2).means.dtype == var.coefficients.dtype == var.cov.dtype == D
    assert exact.VAR(A, C).offset.tolist() == [0, 0, 0]


# ---- one step with noise ---------------------------------------------------------------------


@each_path
def test_denoiser_is_tweedie(path):
    """eq:var-denoiser: signal E[x0 | x] = x + noise^2 grad log p(x), with the density of
    N(signal mu, signal^2 C + noise^2 I) by torch and the gradient by autograd; to 1e-9.
    """
    (A, C, b), var = parts("usual"), make("usual")
    history, x = data(5, 4, 3, seed=1), data(5, 3, seed=5).requires_grad_()
    mu = b + history[:, -1] @ A[0].T + history[:, -2] @ A[1].T
    for t in (0.2, 0.7, 0.95):
        s, n = float(path(t).signal), float(path(t).noise)
        cov = s * s * C + n * n * torch.eye(3, dtype=D)
        density = torch.distributions.MultivariateNormal(s * mu, cov).log_prob(x).sum()
        (score,) = torch.autograd.grad(density, x)
        want = (x + n * n * score).detach() / s
        time = torch.tensor(t, dtype=D)
        got = var.denoiser(path, history)(x.detach(), time)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        left = C - s * s * C @ torch.linalg.inv(cov) @ C
        torch.testing.assert_close(var.covariance(path, time), left, rtol=1e-9, atol=1e-9)


def test_denoiser_is_the_windows():
    """In a stationary window whose past is clean, the imputer's denoiser; to 1e-10."""
    var, path, t = make("second"), md.Cosine(), torch.tensor(0.4, dtype=D)
    window, history, x = var.joint(3), data(2, 2, 2, seed=1), data(2, 2, seed=5)
    known = torch.tensor([[True], [True], [False]])
    rows = []
    for past, noisy in zip(history, x, strict=True):
        values = torch.cat([past, noisy[None]])
        one = exact.ConditionalGaussian(window.means[0], window.covs[0], values, known)
        rows.append(one.denoiser(path)(values[None], t)[0, 2])
    got = var.denoiser(path, history)(x, t)
    torch.testing.assert_close(got, torch.stack(rows), rtol=1e-10, atol=1e-10)


def test_denoiser_times_and_dtypes(monkeypatch):
    """One time a sample; t = 0 returns x; nothing is diagonalised in a call."""
    var, path = make("usual"), md.VP()
    history, x, t = (
        data(3, 2, 3, seed=1),
        data(3, 3, seed=5),
        torch.tensor([0.1, 0.5, 0.9], dtype=D),
    )
    monkeypatch.delattr(torch.linalg, "eigh")
    whole = var.denoiser(path, history)
    alone = [
        var.denoiser(path, history[i : i + 1])(x[i : i + 1], t[i]) for i in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(whole(x, t), torch.cat(alone), rtol=1e-12, atol=1e-12)
    covs = var.covariance(path, t)
    assert covs.shape == (3, 3, 3) and covs.dtype == D
    torch.testing.assert_close(covs[1], var.covariance(path, t[1]), rtol=1e-12, atol=1e-12)
    zero = torch.tensor(0.0, dtype=D)
    assert torch.equal(whole(x, zero), x) and torch.equal(whole(x, torch.zeros(3, dtype=D)), x)
    assert var.covariance(path, zero).abs().max() == 0
    mixed = whole(x, torch.tensor([0.0, 0.5, 0.9], dtype=D))
    torch.testing.assert_close(mixed[0], x[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(mixed[1:], whole(x, t)[1:], rtol=1e-12, atol=1e-12)
    small = whole(x.float(), torch.tensor(0.5))
    assert small.dtype == torch.float32
    torch.testing.assert_close(small.double(), whole(x, t[1]), rtol=1e-5, atol=1e-5)
    few = var.predictive(history.float(), 2)
    assert few.mean.dtype == few.cov.dtype == torch.float32


# ---- bad input -------------------------------------------------------------------------------

ZERO, EYE, PAST = torch.zeros(2, 2, 2), torch.eye(2), torch.zeros(3, 2, 2)
WHITE = exact.VAR(ZERO, EYE)
HALF = torch.tensor(0.5)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: exact.VAR(ZERO[0], EYE), r"coefficients has shape \(2, 2\)"),
        (lambda: exact.VAR(ZERO[:, :1], EYE), r"coefficients has shape \(2, 1, 2\)"),
        (lambda: exact.VAR(ZERO[:0], EYE), "coefficients has shape"),
        (lambda: exact.VAR(ZERO / 0, EYE), "coefficients holds NaN"),
        (lambda: exact.VAR(ZERO.long(), EYE), "coefficients has dtype"),
        (lambda: exact.VAR(ZERO, torch.eye(3)), "cov has shape"),
        (lambda: exact.VAR(ZERO, EYE[0]), "cov has shape"),
        (lambda: exact.VAR(ZERO, -EYE), "cov has an eigenvalue"),
        (lambda: exact.VAR(ZERO, torch.ones(2, 2)), "cov has an eigenvalue"),
        (lambda: exact.VAR(ZERO, torch.tensor([[1.0, 0.5], [0.2, 1.0]])), "cov differs from its"),
        (lambda: exact.VAR(ZERO, EYE / 0), "cov holds NaN"),
        (lambda: exact.VAR(ZERO, EYE, torch.zeros(3)), r"offset has shape \(3,\)"),
        (lambda: exact.VAR(ZERO, EYE, torch.zeros(())), "offset has shape"),
        (lambda: exact.VAR(ZERO, EYE, torch.full((2,), math.inf)), "offset holds NaN"),
        (lambda: WHITE.responses(0), "count=0"),
        (lambda: WHITE.predictive(PAST, 0), "horizon=0"),
        (lambda: WHITE.predictive(PAST, 2.0), "horizon=2.0"),
        (lambda: WHITE.predictive(PAST[0], 2), r"history has shape \(2, 2\)"),
        (lambda: WHITE.predictive(torch.zeros(3, 2, 1), 2), "history has shape"),
        (lambda: WHITE.predictive(PAST[:, :1], 2), "history has 1 values a series"),
        (lambda: WHITE.predictive(PAST / 0, 2), "history holds NaN"),
        (lambda: WHITE.predictive(PAST, 2, offsets=torch.zeros(2, 2, 2)), "offsets has shape"),
        (lambda: WHITE.predictive(PAST, 2, offsets=torch.zeros(1, 1, 2)), "offsets has shape"),
        (lambda: WHITE.predictive(PAST, 2, offsets=torch.zeros(1, 2, 1)), "offsets has shape"),
        (lambda: WHITE.predictive(PAST, 2, offsets=torch.zeros(2, 2)), "offsets has shape"),
        (lambda: WHITE.predictive(PAST, 2, offsets=PAST / 0), "offsets holds NaN"),
        (lambda: WHITE.draw(PAST, 0, 4), "horizon=0"),
        (lambda: WHITE.draw(PAST, 2, 0), "n=0"),
        (lambda: WHITE.draw(PAST / 0, 2, 4), "history holds NaN"),
        (lambda: WHITE.sample(0, 3), "n=0"),
        (lambda: WHITE.sample(3, 0), "length=0"),
        (lambda: WHITE.joint(0), "length=0"),
        (lambda: make("walk").sample(2, 3), "spectral radius 1"),
        (lambda: make("growing").sample(2, 3), r"spectral radius 1\.1"),
        (lambda: make("growing").joint(3), "predictive and draw work for any"),
        (lambda: WHITE.denoiser(md.VP(), PAST / 0), "history holds NaN"),
        (lambda: WHITE.denoiser(md.VP(), PAST, offsets=PAST), "offsets has shape"),
        (lambda: WHITE.denoiser(md.VP(), PAST)(torch.zeros(2, 2), HALF), r"x has shape \(2, 2\)"),
        (lambda: WHITE.denoiser(md.VP(), PAST)(torch.zeros(3, 1, 2), HALF), "x has shape"),
        (lambda: WHITE.denoiser(md.VP(), PAST)(torch.zeros(3), HALF), "x has shape"),
        (
            lambda: WHITE.denoiser(md.VP(), PAST)(torch.zeros(3, 2), torch.full((2,), 0.5)),
            "value has shape",
        ),
        (
            lambda: WHITE.denoiser(md.VP(), PAST)(torch.zeros(3, 2), torch.full((3, 1), 0.5)),
            "full covariances mix positions",
        ),
        (lambda: WHITE.covariance(md.VP(), torch.full((3, 1), 0.5)), "full covariances mix"),
    ],
)  # fmt: skip
def test_var_refuses(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_var_computes_where_history_is(monkeypatch):
    """On a GPU that torch only imagines: it knows shapes and devices and refuses to mix two."""
    var = make("usual")
    monkeypatch.setattr(torch.Tensor, "__bool__", lambda self: True)
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.0)
    with FakeTensorMode(allow_non_fake_inputs=True):
        history, x = torch.empty(4, 2, 3, device="cuda"), torch.empty(4, 3, device="cuda")
        offsets = torch.empty(1, 2, 3)
        for got in (
            *var.predictive(history, 2, offsets=offsets),
            var.draw(history, 2, 5),
            var.denoiser(md.VP(), history)(x, torch.tensor(0.5, dtype=D)),
        ):
            assert got.device.type == "cuda" and got.dtype == torch.float32
