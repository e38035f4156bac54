"""The derivations of chapter 02: every line evaluated, on models whose integrals are known."""

import itertools
import math

import pytest
import torch
from paths import D, seeded, vector
from torch import distributions as td

from minidiff.classics import VAE, Encoder, GaussianDecoder
from minidiff.classics.gaussians import gaussian_kl, reparameterise


def random(*shape, seed=0):
    return torch.rand(*shape, dtype=D, generator=seeded(seed))


# One latent number and one observed number: z ~ N(0, 1), x | z ~ N(GAIN z + SHIFT, NOISE).
# Sums of smooth, fast-decaying functions on an even grid are exact to rounding (trapezoid rule).
GAIN, SHIFT, NOISE, X = 0.8, 0.3, 0.5, 1.7
MEAN, STD = 0.4, 0.7  # a proposal q(z | x) that is not the posterior
STEP = 0.004
Z = torch.arange(-6000, 6001, dtype=D) * STEP  # from -24 to 24


def integral(values):
    return values.sum() * STEP


def normal(x, mean, std):
    """Log-density, written out."""
    return -((x - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(2 * math.pi) / 2


PRIOR = normal(Z, 0.0, 1.0)
LIKELIHOOD = normal(X, GAIN * Z + SHIFT, math.sqrt(NOISE))
JOINT = PRIOR + LIKELIHOOD
LOG_Q = normal(Z, MEAN, STD)
Q = LOG_Q.exp()
EVIDENCE = float(normal(X, SHIFT, math.sqrt(GAIN**2 + NOISE)))  # x is a sum of two Gaussians
POST_VAR = 1 / (1 + GAIN**2 / NOISE)
POST_MEAN = POST_VAR * GAIN * (X - SHIFT) / NOISE
LOG_POST = normal(Z, POST_MEAN, math.sqrt(POST_VAR))


def plain_kl(m1, s1, m2, s2):
    """The form of the lecture, in standard deviations."""
    return math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5


GAP = plain_kl(MEAN, STD, POST_MEAN, math.sqrt(POST_VAR))


# ---- the integral out of reach --------------------------------------------------------------


def test_evidence_is_the_integral():
    """eq:latent-integral on the grid, and by closed form: a sum of independent Gaussians."""
    assert float(integral(JOINT.exp()).log()) == pytest.approx(EVIDENCE, abs=1e-12)
    posterior = (JOINT - EVIDENCE).exp()  # Bayes' rule gives the density that the chapter states
    torch.testing.assert_close(posterior, LOG_POST.exp(), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("delta", "noise"), [(1.4, 0.5), (0.0, 0.09), (2.5, 0.2)])
def test_variance_of_plain_monte_carlo(delta, noise):
    """eq:prior-variance: E p(x|z)^2 / p(x)^2 on the grid, and the power for independent entries."""
    likelihood = normal(delta, GAIN * Z, math.sqrt(noise)).exp()
    first, second = (float(integral(PRIOR.exp() * likelihood**k)) for k in (1, 2))
    a, c = GAIN**2 + noise, GAIN**2 + noise / 2
    r = a / math.sqrt(2 * c * noise) * math.exp(delta**2 / a - delta**2 / (2 * c))
    assert second / first**2 == pytest.approx(r, rel=1e-11)
    # two entries, on a grid of pairs, and K = 3 draws: exact moments of the mean of draws
    coarse = slice(None, None, 40)
    weight = PRIOR[coarse].exp() * STEP * 40
    pair = (likelihood[coarse][:, None] * likelihood[coarse]).flatten()
    p = (weight[:, None] * weight).flatten()
    mean, square = float((p * pair).sum()), float((p * pair**2).sum())
    variance = (3 * square + 6 * mean**2) / 9 - mean**2  # of (y1 + y2 + y3) / 3
    assert variance / mean**2 == pytest.approx((r**2 - 1) / 3, rel=1e-9)


# ---- tangents, Jensen, divergence -----------------------------------------------------------

POINTS = torch.logspace(-3, 3, 601, dtype=D)


def test_conjugate_of_the_logarithm():
    """eq:conjugate: the least of lambda x - log x on a grid that is fine around 1/lambda.

    On a grid of relative spacing h the least value lies at most h^2 / 8 above the minimum.
    """
    x = torch.logspace(-5, 5, 100_001, dtype=D)
    h = math.log(10) / 10_000
    for lam in POINTS[::50].tolist():
        lowest = float((lam * x - x.log()).min())
        assert 1 + math.log(lam) - 1e-12 <= lowest <= 1 + math.log(lam) + h**2 / 8 + 1e-12


def test_the_logarithm_is_the_lowest_of_its_tangents():
    """eq:log-envelope: each line lies above, the one with lambda = 1/x touches; a grid of pairs."""
    lam, x = POINTS[:, None], POINTS
    line = lam * x - (1 + lam.log())
    above = line - x.log()
    assert float(above.min()) > -1e-12
    assert float(above.max()) > 100  # most lines are far off: the minimum matters
    lowest, index = line.min(0)
    torch.testing.assert_close(lowest, x.log(), rtol=0, atol=1e-12)
    # the grid holds 1/x for every x, so the lowest line is found exactly
    torch.testing.assert_close(POINTS[index], 1 / x, rtol=1e-12, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_jensen_from_a_tangent(seed):
    """eq:jensen, and its proof: the average of the tangent at the mean is log E w, nothing else."""
    p = random(9, seed=seed) + 0.01
    p = p / p.sum()
    w = (3 * random(9, seed=seed + 10) - 1).exp()
    mean = (p * w).sum()
    tangent = w / mean - 1 + mean.log()  # lambda w - 1 - log lambda at lambda = 1 / mean
    assert (tangent - w.log() > 0).all()  # no w is the mean itself
    assert float((p * tangent).sum()) == pytest.approx(float(mean.log()), abs=1e-13)
    gap = float(mean.log() - (p * w.log()).sum())
    assert gap > 1e-2
    # to second order the gap is half the relative variance: a wrong factor would show here
    near = 1 + 1e-3 * (w - mean)
    small = float((p * near).sum().log() - (p * near.log()).sum())
    assert small / 1e-6 == pytest.approx(float((p * (w - mean) ** 2).sum()) / 2, rel=2e-2)
    same = torch.full_like(w, 2.5)
    assert abs(float((p * same).sum().log() - (p * same.log()).sum())) < 1e-15


@pytest.mark.parametrize("seed", range(5))
def test_divergence_is_not_negative(seed):
    """eq:kl-jensen for tables, also where p has mass that q lacks; 0 for equal tables only."""
    q, p = random(2, 8, seed=seed) + 0.01
    q, p = q / q.sum(), p / p.sum()
    kl = (q * (q / p).log()).sum()
    assert float(kl) > 1e-2
    assert float((p * (p / q).log()).sum()) != pytest.approx(float(kl), rel=1e-3)  # not symmetric
    assert float((q * (q / q).log()).sum()) == 0
    part = torch.cat([q[:5], torch.zeros(3, dtype=D)])
    part = part / part.sum()
    kl = torch.xlogy(part, part / p).sum()
    assert float(kl) >= -math.log(float(p[:5].sum())) > 0  # the ratio's mean is below 1 here


def test_divergence_of_the_proposal():
    """eq:kl-jensen for two Gaussians, by quadrature: the gap that the other tests use."""
    assert float(integral(Q * (LOG_Q - LOG_POST))) == pytest.approx(GAP, abs=1e-12)
    assert GAP > 0.05
    back = float(integral(LOG_POST.exp() * (LOG_POST - LOG_Q)))
    assert back == pytest.approx(plain_kl(POST_MEAN, math.sqrt(POST_VAR), MEAN, STD), abs=1e-12)


# ---- the bound, twice -----------------------------------------------------------------------


def test_bound_by_jensen():
    """eq:elbo-jensen: E_q w is p(x), and E_q log w lies below log p(x) by the divergence."""
    log_w = JOINT - LOG_Q
    assert float(integral((LOG_Q + log_w).exp()).log()) == pytest.approx(EVIDENCE, abs=1e-12)
    assert float(integral(Q * log_w)) == pytest.approx(EVIDENCE - GAP, abs=1e-11)


LINES = {
    "insert 1": lambda: EVIDENCE * integral(Q),
    "insert 2": lambda: integral(EVIDENCE * Q),
    "insert 3": lambda: integral((JOINT - LOG_POST) * Q),
    "insert 4": lambda: integral((JOINT + LOG_Q - LOG_Q - LOG_POST) * Q),
    "split": lambda: integral((JOINT - LOG_Q) * Q) + integral((LOG_Q - LOG_POST) * Q),
}
BOUNDS = {
    "bound 1": lambda: integral((JOINT - LOG_Q) * Q),
    "bound 2": lambda: integral((LIKELIHOOD + PRIOR - LOG_Q) * Q),
    "bound 3": lambda: integral(LIKELIHOOD * Q) + integral((PRIOR - LOG_Q) * Q),
    "bound 4": lambda: integral(LIKELIHOOD * Q) - plain_kl(MEAN, STD, 0.0, 1.0),
}


@pytest.mark.parametrize("name", LINES)
def test_each_line_equals_the_evidence(name):
    """eq:nll-insert, eq:nll-split: every line is log p(x) (the chapter prints its negative)."""
    assert float(LINES[name]()) == pytest.approx(EVIDENCE, abs=1e-11)


@pytest.mark.parametrize("name", BOUNDS)
def test_each_line_of_the_bound(name):
    """eq:nll-bound: every line lies below log p(x), by the divergence to the posterior."""
    assert float(BOUNDS[name]()) == pytest.approx(EVIDENCE - GAP, abs=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_one_divergence_between_joints(seed):
    """eq:pairs-kl for finite tables: three values of x, four of z."""
    data, p = random(3, seed=seed) + 0.1, random(3, 4, seed=seed + 10) + 0.1
    q = random(3, 4, seed=seed + 20) + 0.1
    data, p, q = data / data.sum(), p / p.sum(), q / q.sum(1, keepdim=True)
    left = (data[:, None] * q * (data[:, None] * q / p).log()).sum()
    elbo = (q * (p / q).log()).sum(1)
    assert float(left) == pytest.approx(float((data * (data.log() - elbo)).sum()), abs=1e-13)
    # and it splits into the divergence of x and the mean gap
    evidence = p.sum(1)
    gap = (q * (q / (p / evidence[:, None])).log()).sum(1)
    split = float((data * ((data / evidence).log() + gap)).sum())
    assert float(left) == pytest.approx(split, abs=1e-13)
    assert float((data * gap).sum()) > 0.01


def test_slope_of_the_bound_is_not_that_of_the_likelihood():
    """The gap moves with the decoder: d ELBO / d gain = d log p / d gain - d gap / d gain."""

    def both(gain):
        likelihood = normal(X, gain * Z + SHIFT, math.sqrt(NOISE))
        elbo = integral(Q * (likelihood + PRIOR - LOG_Q))
        return float(elbo), float(normal(X, SHIFT, math.sqrt(gain**2 + NOISE)))

    h = 1e-4
    (low, p_low), (high, p_high) = both(GAIN - h), both(GAIN + h)
    elbo, truth = (high - low) / (2 * h), (p_high - p_low) / (2 * h)
    # by hand: E_q[(x - b - w z) z] / v, and w (delta^2 / a - 1) / a
    a, delta = GAIN**2 + NOISE, X - SHIFT
    by_hand = (delta * MEAN - GAIN * (MEAN**2 + STD**2)) / NOISE
    assert elbo == pytest.approx(by_hand, rel=1e-6)
    assert truth == pytest.approx(GAIN * (delta**2 / a - 1) / a, rel=1e-6)
    assert abs(elbo - truth) > 0.1


# ---- Gaussians ------------------------------------------------------------------------------

PAIRS = [(0.4, 0.7, -0.3, 1.2), (0.0, 1.0, 0.0, 1.0), (-1.5, 2.0, 0.5, 0.9)]


@pytest.mark.parametrize(("m1", "s1", "m2", "s2"), PAIRS)
def test_divergence_of_gaussians_line_by_line(m1, s1, m2, s2):
    """eq:mean-square, eq:kl-1d and gaussian_kl: quadrature of each mean, 1e-11 by rounding."""
    q = normal(Z, m1, s1)
    square = float(integral(q.exp() * (Z - m2) ** 2))
    assert square == pytest.approx(s1**2 + (m1 - m2) ** 2, rel=1e-12)
    own = -math.log(s1) - math.log(2 * math.pi) / 2 - 0.5
    other = -math.log(s2) - math.log(2 * math.pi) / 2 - square / (2 * s2**2)
    assert float(integral(q.exp() * q)) == pytest.approx(own, abs=1e-12)
    assert float(integral(q.exp() * normal(Z, m2, s2))) == pytest.approx(other, abs=1e-11)
    want = math.log(s2 / s1) + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5
    assert own - other == pytest.approx(want, abs=1e-12)
    parts = (m1, 2 * math.log(s1), m2, 2 * math.log(s2))
    got = gaussian_kl(*(vector(part)[None] for part in parts))
    assert float(got) == pytest.approx(want, rel=1e-12, abs=1e-15)


def test_divergence_of_independent_entries_is_a_sum():
    """A grid of pairs: KL of the product is the sum of the two entries' KL, eq:gaussian-kl."""
    coarse = slice(None, None, 10)
    (a, b), cell = PAIRS[::2], STEP * 10
    q = [normal(Z[coarse], m, s) for m, s, *_ in (a, b)]
    p = [normal(Z[coarse], m, s) for *_, m, s in (a, b)]
    joint_q, joint_p = q[0][:, None] + q[1], p[0][:, None] + p[1]
    kl = float((joint_q.exp() * (joint_q - joint_p)).sum()) * cell**2
    assert kl == pytest.approx(plain_kl(*a) + plain_kl(*b), rel=1e-10)
    table = [vector(x, y)[None] for x, y in zip(a, b, strict=True)]
    got = gaussian_kl(table[0], 2 * table[1].log(), table[2], 2 * table[3].log())
    assert kl == pytest.approx(float(got), rel=1e-10)


@pytest.mark.parametrize("v", [0.5, 2.0, 32.0])
def test_squared_error_is_a_gaussian_decoder(v):
    """eq:mse-decoder: the factor D / 2v and the constant, with the package's decoder; D = 64."""
    decoder = GaussianDecoder(2, 64, depth=0, log_var=math.log(v)).double()
    with torch.no_grad():
        decoder.log_var.fill_(math.log(v))
    x, z = random(5, 64), random(5, 2, seed=1)
    mse = (x - decoder.mean(z)).square().mean(1)
    want = 32 / v * mse + 32 * math.log(2 * math.pi * v)
    torch.testing.assert_close(-decoder.log_prob(x, z), want, rtol=1e-12, atol=1e-12)
    if v == 32.0:  # "mean of the squares plus KL" is the bound of a decoder with variance D / 2
        shift = -decoder.log_prob(x, z) - mse
        torch.testing.assert_close(shift, shift[:1].expand(5), rtol=0, atol=1e-11)


@pytest.mark.parametrize("lam", [0.2, 0.5, 0.9, 3.0])
def test_collapse_threshold(lam):
    """eq:collapse: the best gain for one direction of variance lam and noise 0.5, on a grid.

    The mean log-likelihood depends on the gain through w^2 + v only; the grid is fine to 1e-3.
    """
    w = torch.linspace(0, 3, 3001, dtype=D)
    total = w**2 + NOISE
    score = -(total.log() + lam / total) / 2
    assert float(w[score.argmax()]) == pytest.approx(math.sqrt(max(lam - NOISE, 0)), abs=6e-4)
    # the ELBO at its best q is the likelihood, so it has the same best gain: one more grid, x = one
    # standard deviation of the data stands for the mean square, since x enters as x^2 only
    best = []
    for gain in w[::100].tolist():
        s2 = 1 / (1 + gain**2 / NOISE)
        m = s2 * gain * math.sqrt(lam) / NOISE
        square = (math.sqrt(lam) - gain * m) ** 2 + gain**2 * s2
        elbo = -(math.log(2 * math.pi * NOISE) + square / NOISE) / 2
        best.append(elbo - plain_kl(m, math.sqrt(s2), 0.0, 1.0))
    want = score[::100] - math.log(2 * math.pi) / 2
    torch.testing.assert_close(vector(*best), want, rtol=1e-12, atol=1e-12)


# ---- gradients ------------------------------------------------------------------------------

FUNCTIONS = {
    "square": (lambda z: z**2, lambda z: 2 * z),
    "cosine": (torch.cos, lambda z: -torch.sin(z)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_two_gradients_of_one_mean(name):
    """eq:score-function and eq:pathwise: both integrals against finite differences of E f.

    Central differences of step 1e-4 err by about 1e-8.
    """
    f, slope = FUNCTIONS[name]

    def mean(m, s):
        return float(integral(normal(Z, m, s).exp() * f(Z)))

    h, eps = 1e-4, (Z - MEAN) / STD
    wrt = {
        "m": ((mean(MEAN + h, STD) - mean(MEAN - h, STD)) / (2 * h), eps / STD, 1),
        "s": ((mean(MEAN, STD + h) - mean(MEAN, STD - h)) / (2 * h), (eps**2 - 1) / STD, eps),
    }
    for want, score, move in wrt.values():
        assert abs(want) > 0.05
        assert float(integral(Q * f(Z) * score)) == pytest.approx(want, abs=1e-7)
        assert float(integral(Q * slope(Z) * move)) == pytest.approx(want, abs=1e-7)
        assert float(integral(Q * score)) == pytest.approx(0, abs=1e-12)  # a baseline costs nothing


@pytest.mark.parametrize(("m", "s"), [(0.0, 1.0), (1.0, 0.5), (-2.0, 0.3)])
def test_variances_of_the_two_estimators(m, s):
    """eq:gradient-variances for f = z^2: quadrature; draws of the package within 4 errors."""
    q = normal(Z, m, s).exp()
    score, path = Z**2 * (Z - m) / s**2, 2 * Z
    want = {"score": m**4 / s**2 + 14 * m**2 + 15 * s**2, "path": 4 * s**2}
    for name, g in (("score", score), ("path", path)):
        mean = float(integral(q * g))
        assert mean == pytest.approx(2 * m, abs=1e-11)
        variance = float(integral(q * (g - mean) ** 2))
        assert variance == pytest.approx(want[name], rel=1e-10)
    n = 100_000
    mean = torch.full((n,), m, dtype=D, requires_grad=True)
    z = reparameterise(mean, vector(2 * math.log(s)).expand(n), rng=seeded())
    (g,) = torch.autograd.grad((z**2).sum(), mean)
    spread = (g - 2 * m) ** 2  # squares of a Gaussian: the standard error is variance sqrt(2 / n)
    assert abs(float(spread.mean()) - 4 * s**2) < 4 * 4 * s**2 * math.sqrt(2 / n)


# ---- gaps -----------------------------------------------------------------------------------


def diagonal_gap(cov, mean, variances, centre):
    q = td.MultivariateNormal(mean, torch.diag(variances))
    return float(td.kl_divergence(q, td.MultivariateNormal(centre, cov)))


@pytest.mark.parametrize("seed", range(3))
def test_mean_field_gap(seed):
    """eq:mean-field: torch's KL at the stated optimum, and larger at every change from it."""
    a = torch.randn(4, 4, dtype=D, generator=seeded(seed))
    precision = a @ a.T + torch.eye(4, dtype=D)
    cov, centre = torch.linalg.inv(precision), random(4, seed=seed)
    best = 1 / precision.diagonal()
    want = float(precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    assert want > 0.1
    assert diagonal_gap(cov, centre, best, centre) == pytest.approx(want, rel=1e-10)
    for i in range(4):
        for step in (-0.05, 0.05):
            factor = torch.ones(4, dtype=D)
            factor[i] += step
            assert diagonal_gap(cov, centre, best * factor, centre) > want + 1e-4
            assert diagonal_gap(cov, centre + (factor - 1), best, centre) > want + 1e-4
    for rho in (0.0, 0.5, -0.9):
        two = torch.tensor([[2.0, rho * 2.0 * 0.6], [rho * 2.0 * 0.6, 0.72]], dtype=D)
        # standard deviations sqrt 2 and 0.6 sqrt 2: correlation rho
        best = 1 / torch.linalg.inv(two).diagonal()
        zero = torch.zeros(2, dtype=D)
        want = -math.log(1 - rho**2) / 2
        assert diagonal_gap(two, zero, best, zero) == pytest.approx(want, abs=1e-12)
        torch.testing.assert_close(best, two.diagonal() * (1 - rho**2))


WEIGHTS, CHANCES = vector(0.2, 1.0, 5.0), vector(0.5, 0.3, 0.2)


def exact_bound(k):
    """E log of the mean of k weights: a sum over all 3^k outcomes."""
    total = 0.0
    for draw in itertools.product(range(3), repeat=k):
        index = torch.tensor(draw)
        total += float(CHANCES[index].prod() * WEIGHTS[index].mean().log())
    return total


def test_more_weights_tighten_the_bound():
    """eq:iw-tighter: exact values for K = 1 to 6, rising, and below log E w."""
    values = [exact_bound(k) for k in range(1, 7)]
    assert values[0] == pytest.approx(float((CHANCES * WEIGHTS.log()).sum()), abs=1e-12)
    for low, high in itertools.pairwise(values):
        assert high > low + 5e-3
    assert values[-1] < math.log(float((CHANCES * WEIGHTS).sum())) - 5e-3


def test_leaving_one_out_averages_to_the_whole():
    """The step of the proof, draw by draw: the mean of the leave-one-out means is the mean."""
    w = random(7, 5, seed=3) + 0.01
    rest = (w.sum(1, keepdim=True) - w) / 4
    torch.testing.assert_close(rest.mean(1), w.mean(1), rtol=1e-13, atol=0)
    assert (rest.mean(1).log() > rest.log().mean(1)).all()  # eq:jensen for the five


def test_bounds_of_the_package_on_the_model():
    """The VAE of the package, set to this model and this q, finds the bound by draws: 4 errors."""
    vae = VAE(Encoder(1, 1, depth=0), GaussianDecoder(1, 1, depth=0)).double()
    with torch.no_grad():
        for part, value in (
            (vae.encoder.net[0].weight, [[0.0], [0.0]]),
            (vae.encoder.net[0].bias, [MEAN, 2 * math.log(STD)]),
            (vae.decoder.net[0].weight, [[GAIN]]),
            (vae.decoder.net[0].bias, [SHIFT]),
            (vae.decoder.log_var, math.log(NOISE)),
        ):
            part.copy_(torch.tensor(value, dtype=D))
    x, n = torch.full((40_000, 1), X, dtype=D), 40_000
    for draws in (vae.elbo(x, rng=seeded()).total, vae.log_weight(x, rng=seeded(1))):
        values = draws.detach()
        assert abs(float(values.mean()) - (EVIDENCE - GAP)) < 4 * float(values.std()) / n**0.5
    few = vae.log_likelihood(x, 20, rng=seeded(2))
    assert EVIDENCE - GAP / 4 < float(few.mean()) < EVIDENCE + 4 * float(few.std()) / n**0.5
