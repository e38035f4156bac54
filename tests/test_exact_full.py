"""Mixtures with full covariances against torch's own Gaussians, linear algebra and autograd."""

import math

import pytest
import torch

import minidiff as md
from minidiff import exact

D = torch.float64
PATHS = {"VP": md.VP(), "Cosine": md.Cosine(), "LinearPath": md.LinearPath(), "VE": md.VE(0.01, 9)}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
each_event = pytest.mark.parametrize("event", [(2,), (2, 2), (1,), ()], ids=str)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(seed))


def moments(event, K=3):
    """Means, well-conditioned covariances with correlations, and weights."""
    size = math.prod(event)
    root = 0.6 * data(K, size, size, seed=1)
    covs = root @ root.mT + 0.1 * torch.eye(size, dtype=D)
    return data(K, *event), covs, torch.tensor([0.2, 0.5, 0.3], dtype=D)[:K]


def mixture(event, K=3):
    return md.GaussianMixture.full(*moments(event, K))


def normal(mean, cov):
    return torch.distributions.MultivariateNormal(mean, cov)


def conditioned(event, x, at):
    """r, means and covariances of q(x0 | x_t) by conditioning each joint Gaussian of (x0, x_t)."""
    means, covs, weights = moments(event)
    flat = x.reshape(len(x), -1)
    joint, mus, lefts = [], [], []
    for m, C, w in zip(means.reshape(3, -1), covs, weights, strict=True):
        total = at.signal**2 * C + at.noise**2 * torch.eye(len(C), dtype=D)
        joint.append(w.log() + normal(at.signal * m, total).log_prob(flat))
        gain = at.signal * C @ torch.linalg.inv(total)
        mus.append(m + (flat - at.signal * m) @ gain.T)
        lefts.append(C - at.signal * gain @ C)
    r = torch.stack(joint, 1).softmax(1)
    return r, torch.stack(mus, 1), torch.stack(lefts), torch.stack(joint, 1).logsumexp(1)


@each_event
@each_path
def test_density_is_torchs(event, path):
    """A sum of torch's multivariate normals with signal^2 C + noise^2 I; at t = 0 with C alone."""
    oracle, x = mixture(event), data(5, *event, seed=5)
    for t in (0.0, 0.3, 1.0):
        want = conditioned(event, x, path(t))[3]
        torch.testing.assert_close(oracle.log_prob(x, t, path), want, rtol=1e-10, atol=1e-10)


@each_event
@each_path
def test_score_is_the_gradient(event, path):
    oracle = mixture(event)
    for t in (0.0, 0.2, 1.0):
        x = data(4, *event, seed=5).requires_grad_()
        (want,) = torch.autograd.grad(oracle.log_prob(x, t, path).sum(), x)
        got = oracle.score(x.detach(), t, path)
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@each_event
@each_path
def test_posterior_is_conditioning(event, path):
    """Weights, means, covariances, denoiser and variances: each by inverting matrices, to 1e-9."""
    oracle, x = mixture(event), data(5, *event, seed=5)
    for t in (0.2, 0.7, 1.0):
        r, mus, lefts, _ = conditioned(event, x, path(t))
        got = oracle.posterior(x, t, path)
        assert isinstance(got, exact.FullPosterior)
        close = {"rtol": 1e-9, "atol": 1e-9}
        torch.testing.assert_close(got.weights, r, **close)
        torch.testing.assert_close(got.means, mus.reshape(5, 3, *event), **close)
        torch.testing.assert_close(got.covs, lefts[None], **close)
        mean = (r[..., None] * mus).sum(1)
        want = oracle.denoiser(path)(x, torch.tensor(t, dtype=D))
        torch.testing.assert_close(want, mean.reshape(x.shape), **close)
        spread = lefts.diagonal(dim1=1, dim2=2) + (mus - mean[:, None]) ** 2
        want = (r[..., None] * spread).sum(1).reshape(x.shape)
        torch.testing.assert_close(oracle.covariance(x, t, path), want, **close)


@each_path
def test_diagonal_covariances_are_the_plain_mixture(path):
    means, stds = data(3, 2, 2), 0.2 + data(3, 2, 2, seed=1).abs()
    weights, x = torch.tensor([0.2, 0.5, 0.3], dtype=D), data(4, 2, 2, seed=5)
    plain = md.GaussianMixture(means, stds, weights)
    full = md.GaussianMixture.full(means, torch.diag_embed(stds.reshape(3, 4) ** 2), weights)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(full.stds, plain.stds, **close)
    torch.testing.assert_close(full.second_moment(), plain.second_moment(), **close)
    for t in (0.1, torch.tensor([0.1, 0.4, 0.7, 0.9], dtype=D)):
        for name in ("log_prob", "score", "covariance"):
            got, want = (getattr(o, name)(x, t, path) for o in (full, plain))
            torch.testing.assert_close(got, want, **close)
        a, b = full.posterior(x, t, path), plain.posterior(x, t, path)
        torch.testing.assert_close(a.weights, b.weights, **close)
        torch.testing.assert_close(a.means, b.means, **close)
        variances = a.covs.diagonal(dim1=2, dim2=3)
        assert a.covs.shape[0] == b.variances.shape[0] == (4 if isinstance(t, torch.Tensor) else 1)
        torch.testing.assert_close(variances, b.variances.flatten(2), **close)
    alone = md.GaussianMixture.full(means[:1], torch.diag_embed(stds[:1].reshape(1, 4) ** 2))
    other = md.Gaussian(means[0], stds[0])
    assert alone.mmse(0.4, path) == pytest.approx(other.mmse(0.4, path), rel=1e-12)
    torch.testing.assert_close(alone.flow(x, 0.7, 0.2, path), other.flow(x, 0.7, 0.2, path))


@each_path
def test_turning_the_data_turns_the_answers(path):
    """Means R m and covariances R C R': the denoiser turns along, the density stays."""
    means, covs, weights = moments((3,))
    R = torch.linalg.qr(data(3, 3, seed=7))[0]
    oracle = md.GaussianMixture.full(means, covs, weights)
    turned = md.GaussianMixture.full(means @ R.T, R @ covs @ R.T, weights)
    x, t = data(5, 3, seed=5), torch.tensor(0.4, dtype=D)
    for got, want in (
        (turned.denoiser(path)(x @ R.T, t), oracle.denoiser(path)(x, t) @ R.T),
        (turned.score(x @ R.T, t, path), oracle.score(x, t, path) @ R.T),
        (turned.log_prob(x @ R.T, t, path), oracle.log_prob(x, t, path)),
    ):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_one_time_a_sample():
    oracle, path, x = mixture((2, 2)), md.VP(), data(3, 2, 2, seed=5)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=D)
    for of in (oracle.score, oracle.covariance, oracle.log_prob):
        rows = torch.cat([of(x[i : i + 1], t[i], path) for i in range(3)])
        torch.testing.assert_close(of(x, t, path), rows, rtol=1e-11, atol=1e-11)
    rows = torch.cat([oracle.posterior(x[i : i + 1], t[i], path).covs for i in range(3)])
    torch.testing.assert_close(oracle.posterior(x, t, path).covs, rows, rtol=1e-11, atol=1e-11)


def test_clean_times_and_dtypes():
    """At t = 0 x comes back and nothing is in doubt; float32 in is float32 out."""
    oracle, path, x = mixture((2, 2)), md.Cosine(), data(3, 2, 2, seed=5)
    assert torch.equal(oracle.denoiser(path)(x, 0.0), x)
    assert torch.equal(oracle.covariance(x, 0.0, path), torch.zeros_like(x))
    small = md.GaussianMixture.full(*(v.float() for v in moments((2, 2))))
    for o in (small, oracle):
        y, t = x.float(), torch.tensor(0.4)
        post = o.posterior(y, t, path)
        values = (o.denoiser(path)(y, t), o.score(y, t, path), o.covariance(y, t, path), *post)
        assert all(v.dtype == torch.float32 for v in values)
        torch.testing.assert_close(
            values[0].double(), oracle.denoiser(path)(x, t), rtol=1e-4, atol=1e-4
        )
    assert small.sample(2).dtype == small.covs.dtype == torch.float32
    assert oracle.sample(2).dtype == D


def test_samples_have_the_moments(global_state_untouched):
    """Mean and every second moment of 40,000 points within 5 standard errors."""
    means, covs, weights = moments((2, 2))
    n, oracle = 40_000, mixture((2, 2))
    x = oracle.sample(n, rng=torch.Generator().manual_seed(3))
    assert x.shape == (n, 2, 2)
    assert torch.equal(x, oracle.sample(n, rng=torch.Generator().manual_seed(3)))
    x, means = x.reshape(n, 4), means.reshape(3, 4)
    outer = means[:, :, None] * means[:, None] + covs
    products = (x[:, :, None] * x[:, None]).reshape(n, 16)
    for got, want in ((x, weights @ means), (products, weights @ outer.reshape(3, 16))):
        assert bool(((got.mean(0) - want).abs() < 5 * got.std(0) / n**0.5).all())
    torch.testing.assert_close(
        oracle.second_moment().flatten(), (weights @ outer.reshape(3, 16))[::5]
    )


def test_one_full_gaussian_in_closed_form():
    """mmse is a trace, and the flow is V_s^(1/2) V_t^(-1/2): by matrix functions, to 1e-10."""
    mean, cov, _ = moments((2, 2), 1)
    oracle, path, x = md.GaussianMixture.full(mean, cov), md.Cosine(), data(3, 2, 2, seed=5)
    at_t, at_s = path(0.7), path(0.2)
    eye = torch.eye(4, dtype=D)
    V_t, V_s = (at.signal**2 * cov[0] + at.noise**2 * eye for at in (at_t, at_s))
    left = cov[0] - at_t.signal**2 * cov[0] @ torch.linalg.solve(V_t, cov[0])
    assert oracle.mmse(0.7, path) == pytest.approx(float(left.trace()) / 4, rel=1e-12)
    ratio = V_s @ torch.linalg.inv(V_t)  # they commute, so the root of the ratio will do
    values, vectors = torch.linalg.eig(ratio)
    root = (vectors * values.sqrt()) @ torch.linalg.inv(vectors)
    gap = (x - at_t.signal * mean).reshape(3, 4)
    want = at_s.signal * mean + (gap @ root.real.T).reshape(x.shape)
    torch.testing.assert_close(oracle.flow(x, 0.7, 0.2, path), want, rtol=1e-10, atol=1e-10)


def test_one_entry_is_the_plain_mixture():
    """With one entry there is nothing to turn: mmse and flow are those of the plain mixture."""
    means, covs, weights = moments((1,))
    full = md.GaussianMixture.full(means, covs, weights)
    plain = md.GaussianMixture(means, covs[:, 0].sqrt(), weights)
    assert full.mmse(0.4, md.VP()) == pytest.approx(plain.mmse(0.4, md.VP()), rel=1e-12)
    x = data(4, 1, seed=5)
    torch.testing.assert_close(
        full.flow(x, 0.9, 0.1, md.VP()), plain.flow(x, 0.9, 0.1, md.VP()), rtol=1e-11, atol=1e-11
    )


M, C = torch.zeros(2, 3, dtype=D), torch.eye(3, dtype=D).expand(2, 3, 3)
SKEW = C + torch.tensor([[0, 1e-3, 0], [0, 0, 0], [0, 0, 0]], dtype=D)
FLAT = torch.ones(2, 3, 3, dtype=D)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.GaussianMixture.full(M, C[0]), r"covs has shape \(3, 3\)"),
        (lambda: md.GaussianMixture.full(M, C[:1]), r"covs has shape \(1, 3, 3\)"),
        (lambda: md.GaussianMixture.full(M, C[:, :2, :2]), r"covs .* give \(2, 3, 3\)"),
        (lambda: md.GaussianMixture.full(M, SKEW), r"covs differs from its transpose by 0.001"),
        (lambda: md.GaussianMixture.full(M, -C), "covs has an eigenvalue of -1"),
        (lambda: md.GaussianMixture.full(M, 0 * C), "covs has an eigenvalue of 0"),
        (lambda: md.GaussianMixture.full(M, FLAT), "covs has an eigenvalue"),
        (lambda: md.GaussianMixture.full(M, C / 0), "covs holds NaN"),
        (lambda: md.GaussianMixture.full(M / 0, C), "means holds NaN"),
        (lambda: md.GaussianMixture.full(M, C.long()), "covs has dtype"),
        (lambda: md.GaussianMixture.full(M, C, torch.ones(3)), "weights has shape"),
        (lambda: md.GaussianMixture.full(M, C).sample(0), "n=0"),
        (lambda: md.GaussianMixture.full(M, C).score(M[:, :2], 0.5, md.VP()), "x has shape"),
        (
            lambda: md.GaussianMixture.full(M, C).score(M, torch.full((2, 3), 0.5), md.VP()),
            r"t has shape \(2, 3\): full covariances mix positions",
        ),
        (
            lambda: md.GaussianMixture.full(M, C).denoiser(md.VP())(M, torch.full((2, 1), 0.5)),
            r"shape \(2,\)",
        ),
        (lambda: md.GaussianMixture.full(M, C).score(M, torch.full((3,), 0.5), md.VP()), "shape"),
    ],
)  # fmt: skip
def test_full_refuses(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_rounding_is_no_asymmetry():
    """A float32 covariance computed as A A' may differ from its transpose in the last bit."""
    A = data(1, 5, 5).float()
    cov = A @ A.mT + torch.eye(5)
    cov[0, 0, 1] *= 1 + 1e-6
    oracle = md.GaussianMixture.full(torch.zeros(1, 5), cov)
    assert torch.equal(oracle.covs, oracle.covs.mT)
    torch.testing.assert_close(oracle.covs, (cov + cov.mT) / 2)
