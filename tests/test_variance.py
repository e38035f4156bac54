"""Reverse variances: those of Ho et al. written out from betas; the optimal one against Gaussians
and a mixture, whose doubt about the clean data is known by Bayes' rule.

Where something is sampled the margin is given in standard errors (SE). The seeds are fixed, so a
bound of 5 SE is about the size of a mistake, not about luck.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

import minidiff as md
from minidiff import bounds, variance
from minidiff.process import moves

D = torch.float64
EXACT = {"rtol": 1e-12, "atol": 0}

TABLES = {"linear": md.linear_betas(1000), "cosine": md.cosine_betas(50)}
each_table = pytest.mark.parametrize("betas", TABLES.values(), ids=TABLES.keys())


@each_table
def test_posterior_variance_textbook(betas):
    """eq:beta-tilde: (1 - bar_{t-1}) / (1 - bar_t) beta_t. 1e-10: 1 - bar cancels four digits."""
    beta = [0.0, *betas.tolist()]
    bar = torch.tensor([1 - b for b in beta], dtype=torch.float64).cumprod(0).tolist()
    T = len(betas)
    steps = moves(md.BetaTable(betas), md.ddpm_steps(T), eta=1.0)
    for t, move in zip(range(T, 0, -1), steps, strict=True):
        want = (1 - bar[t - 1]) / (1 - bar[t]) * beta[t]
        assert md.posterior_variance(move) == pytest.approx(want, rel=1e-10, abs=1e-30)
    assert md.posterior_variance(steps[-1]) == 0


@each_table
def test_forward_variance_textbook(betas):
    """eq:beta-choice: the variance of the forward step is beta_t itself, for every t."""
    T = len(betas)
    steps = moves(md.BetaTable(betas), md.ddpm_steps(T), eta=1.0)
    for t, move in zip(range(T, 0, -1), steps, strict=True):
        assert md.forward_variance(move) == pytest.approx(float(betas[t - 1]), rel=1e-10)


def test_strided_variances_use_the_long_step():
    """Over a jump the betas are those of the jump, 1 - bar_t / bar_s, not the table's entries."""
    betas = md.linear_betas(1000)
    bar = (1 - betas).cumprod(0)
    steps = moves(md.BetaTable(betas), md.grids.strided(1000, 10), eta=1.0)
    for t, s, move in zip(range(1000, 100, -100), range(900, 0, -100), steps, strict=False):
        long = 1 - bar[t - 1] / bar[s - 1]
        assert move.forward == pytest.approx(float(long), rel=1e-10)
        want = (1 - bar[s - 1]) / (1 - bar[t - 1]) * long
        assert move.var == pytest.approx(float(want), rel=1e-10)


def test_eta_scales_the_posterior_variance():
    """The variance that ddim passes on is eta squared times beta tilde; the forward one is not."""
    table, times = md.BetaTable(md.cosine_betas(20)), md.ddpm_steps(20)
    for full, half, none in zip(
        *(moves(table, times, eta=eta) for eta in (1.0, 0.5, 0.0)), strict=True
    ):
        assert md.posterior_variance(half) == pytest.approx(full.var / 4, rel=1e-14)
        assert md.posterior_variance(none) == 0
        assert md.forward_variance(none) == full.forward


# ---- the ring: eight Gaussians in the plane ------------------------------------------------------

TABLE = md.BetaTable(md.linear_betas(1000))
ANGLES = torch.arange(8, dtype=D) * math.pi / 4
CENTRES, STD = 0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1), 0.05
RING = md.GaussianMixture(CENTRES, STD)
ANY = TABLE(0.5)


def seed(value):
    return torch.Generator().manual_seed(value)


def standard_error(values):
    return float(values.std() / len(values) ** 0.5)


def level(signal, noise):
    zero = torch.zeros((), dtype=D)
    return md.Level(torch.tensor(signal, dtype=D), torch.tensor(noise, dtype=D), zero, zero)


def move_of(*, signal=0.6, noise=0.8, add=0.5, var=0.1, forward=0.3, clipped=0.1):
    """Make up a move: the variances look at nothing but these numbers."""
    return md.Move(level(signal, noise), ANY, 0.7, add, var, forward, clipped)


def doubt(x, at):
    """Mean and variance of every entry of x0 given x_t, by Bayes' rule over the eight Gaussians."""
    signal, noise = float(at.signal), float(at.noise)
    spread = signal**2 * STD**2 + noise**2
    gap = x[:, None] - signal * CENTRES
    share = (-(gap**2).sum(2) / (2 * spread)).softmax(1)[..., None]
    mean = CENTRES + signal * STD**2 / spread * gap
    centre = (share * mean).sum(1)
    between = (share * (mean - centre[:, None]) ** 2).sum(1)
    return centre, between + STD**2 * noise**2 / spread


class Heads(nn.Module):
    """An exact net: its mean is scaled by ``share``, its second head is exact for what it is."""

    def __init__(self, head, prediction="eps", share=1.0):
        super().__init__()
        self.head, self.prediction, self.share = head, prediction, share

    def forward(self, x, t, cond=None):
        at = TABLE(t[0])
        signal, noise = float(at.signal), float(at.noise)
        mean, var = doubt(x, at)
        eps = (x - signal * mean) / noise
        guess = self.share * eps
        x0 = (x - noise * guess) / signal
        var = (signal / noise) ** 2 * var  # of the noise
        second = {"sn": var + eps**2, "npr": var + (eps - guess) ** 2}[self.head]
        y = {"eps": guess, "x0": x0, "v": signal * guess - noise * x0}[self.prediction]
        return md.Output(y, second)


READ = {"sn": variance.sn, "npr": variance.npr}


def branch_of(head, prediction="eps", share=1.0):
    return md.Denoiser(Heads(head, prediction, share), TABLE, prediction).given(None)


def fixed(y, second):
    """Make a branch whose net always returns these two tensors, and call it once."""

    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            return md.Output(torch.as_tensor(y, dtype=D), torch.as_tensor(second, dtype=D))

    branch = md.Denoiser(Net(), TABLE).given(None)
    branch(torch.zeros(torch.as_tensor(y).shape, dtype=D), torch.tensor(0.5))
    return branch


def heard(branch, move):
    """Let a branch's last call have been at the level that a move leaves; return the move."""
    branch.seen = branch.seen._replace(at=move.at_t)
    return move


def test_bounds_on_the_ring_are_ordered():
    """On a few steps the variance decides: analytic < beta < beta tilde, down to the true NLL.

    Nats per dimension on 2000 points, their true value -.556 (expected -.533): with K = 10, 25, 50,
    100 steps 398, 45, 8.2, 4.1 for beta tilde, .76, .40, .07, -.18 for beta and .64, .21, -.25,
    -.40 for analytic. The draws are shared, so the differences have small SE: the least of the
    eight margins is 15 SE.
    """
    x0, others = RING.sample(2000, rng=seed(1)), RING.sample(2000, rng=seed(2))
    denoise = RING.denoiser(TABLE)
    nll = -RING.log_prob(x0, 0.0, TABLE) / 2
    gaps = []
    for K in (10, 25, 50, 100):
        times = md.grids.linspaced(1000, K)
        cov = variance.mean_covariance(denoise, TABLE, others, times, rng=seed(3))
        small, large, best = (
            bounds.vlb(denoise, TABLE, x0, times, variance=v, rng=seed(4)).total / 2
            for v in (md.posterior_variance, md.forward_variance, variance.analytic(cov))
        )
        for worse, better in ((small, large), (large, best)):
            gain = worse - better
            assert float(gain.mean()) > 10 * standard_error(gain)
        gaps.append([float((total - nll).mean()) for total in (small, large, best)])
        assert gaps[-1][2] > 5 * standard_error(best - nll)  # still a bound
    for before, after in pairwise(gaps):
        assert all(a < 0.8 * b for b, a in zip(before, after, strict=True))
    # measured on 20,000 other points: .633, .227, -.262, -.406 less the true -.533
    for gap, want in zip(gaps, (1.166, 0.760, 0.271, 0.127), strict=True):
        assert gap[2] == pytest.approx(want, abs=0.08)


def test_a_thousand_steps_reach_the_true_likelihood():
    """With all steps and the analytic variance the bound is within .01 nats of the true NLL.

    Per dimension, on the same points: .004 was measured on 20,000; 5 SE are about .08 with 1000.
    """
    x0, denoise, times = RING.sample(1000, rng=seed(5)), RING.denoiser(TABLE), md.ddpm_steps(1000)
    cov = variance.mean_covariance(
        denoise, TABLE, RING.sample(500, rng=seed(6)), times, rng=seed(7)
    )
    total = bounds.vlb(
        denoise, TABLE, x0, times, variance=variance.analytic(cov), rng=seed(8)
    ).total
    gap = (total + RING.log_prob(x0, 0.0, TABLE)) / 2
    assert abs(float(gap.mean()) - 0.004) < 5 * standard_error(gap) < 0.12


# ---- SN and NPR ----------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("head", ["sn", "npr"])
def test_heads_are_the_exact_variance(head, prediction):
    """eq:sn, eq:npr: with an exact net both are var + add^2 Var[x0 | x_t] of every entry.

    At the noisiest level the difference of the two second moments of the noise, each about 1, is
    1e-5: 1e-10 relative is rounding. The two cleanest levels have almost no doubt left to read.
    """
    branch = branch_of(head, prediction)
    read, x0 = READ[head](branch), RING.sample(50, rng=seed(9))
    for move in moves(TABLE, md.grids.linspaced(1000, 25), eta=1.0):
        x = md.diffuse(move.at_t, x0, torch.randn(50, 2, generator=seed(10), dtype=D))
        branch(x, TABLE.t_of(move.at_t.log_snr))
        want = move.var + move.add**2 * doubt(x, move.at_t)[1]
        torch.testing.assert_close(read(move), want, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("head", ["sn", "npr"])
def test_heads_written_out(head):
    """eq:sn, eq:npr with numbers: level (.6, .8), h = 2 and eps = 1 or g = 1: doubt (4/3)^2."""
    second = 2.0 if head == "sn" else 1.0
    branch = fixed(torch.zeros(1, 2), [[second, second]])
    x = torch.tensor([[0.8, -0.8]], dtype=D)  # x0 = 0, so that eps is 1 and -1
    branch.seen = branch.seen._replace(x=x, x0=torch.zeros_like(x))
    got = READ[head](branch)(heard(branch, move_of(signal=0.6, noise=0.8, add=0.5, var=0.1)))
    torch.testing.assert_close(got, torch.full((1, 2), 0.1 + 0.25 * 16 / 9, dtype=D), **EXACT)
    got = READ[head](branch, most=1.5)(
        heard(branch, move_of(signal=0.6, noise=0.8, add=0.5, var=0.1))
    )
    torch.testing.assert_close(got, torch.full((1, 2), 0.1 + 0.25 * 1.5, dtype=D), **EXACT)


@pytest.mark.parametrize("head", ["sn", "npr"])
def test_doubt_below_zero_counts_as_none(head):
    """A head may say less than the squared mean; the step then keeps the posterior variance."""
    branch = fixed(torch.ones(1, 2), [[-0.5, -0.1]])
    assert READ[head](branch)(heard(branch, move_of(var=0.1))).tolist() == [[0.1, 0.1]]


QUOTED = {0.8: (0.66, 0.27), 1.2: (7.8, 0.26)}


@pytest.mark.parametrize("share, least", [(0.8, 0.2), (1.2, 2.0)])
def test_npr_forgives_a_wrong_mean(share, least):
    """With eps off by 20 % the bound under NPR is lower than under SN by far.

    Nats per dimension, 25 steps, 1000 points: .66 against .27 where the noise is predicted too
    small (the difference is .39, SE .01), 7.8 against .26 where it is too large (7.5, SE 1),
    because SN then subtracts more than there is. With the right mean they are one number.
    """
    x0, times = RING.sample(1000, rng=seed(11)), md.grids.linspaced(1000, 25)

    def total(head, share):
        branch = branch_of(head, share=share)
        return bounds.vlb(branch, TABLE, x0, times, variance=READ[head](branch), rng=seed(12)).total

    sn, npr = total("sn", share) / 2, total("npr", share) / 2
    for quoted, each in zip(QUOTED[share], (sn, npr), strict=True):  # the numbers of the page
        assert float(each.mean()) == pytest.approx(quoted, abs=4 * standard_error(each))
    loss = sn - npr
    assert float(loss.mean()) > least
    assert float(loss.mean()) > 5 * standard_error(loss)
    torch.testing.assert_close(total("sn", 1.0), total("npr", 1.0), rtol=1e-6, atol=1e-6)


# ---- the optimal variance of a step --------------------------------------------------------------


def test_analytic_written_out():
    """eq:optimal-variance: .1 + .5^2 .8 = .3; a bound of .4 leaves .2; less than 0 counts as 0."""
    asked = []

    def cov(at):
        asked.append(at)
        return 0.8

    move = move_of(add=0.5, var=0.1)
    assert variance.analytic(cov)(move) == pytest.approx(0.3, rel=1e-14)
    assert asked == [move.at_t]
    assert variance.analytic(cov, most=0.4)(move) == pytest.approx(0.2, rel=1e-14)
    assert variance.analytic(cov, most=1.0)(move) == pytest.approx(0.3, rel=1e-14)
    assert variance.analytic(lambda at: -0.8)(move) == 0.1
    assert variance.analytic(lambda at: -0.8, most=1.0)(move) == 0.1


PATHS = [md.VP(), md.Cosine(), md.LinearPath(), md.VE(), TABLE]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda s: type(s).__name__)


def doubt_of(std, at):
    """Variance of x0 given x_t if the data is Gaussian: one over the sum of the precisions."""
    return 1 / (1 / std**2 + float(at.signal / at.noise) ** 2)


@each_path
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_optimal_step_keeps_the_marginal(path, eta):
    """eq:optimal-variance: from the marginal at t one step leads to the marginal at s, at any eta.

    The variance of x_s is (keep + add slope)^2 Var[x_t] + sigma^2, with the slope of E[x0 | x_t].
    Its true value is signal^2 std^2 + noise^2. 1e-11: the doubt is multiplied by 6400 on VE.
    """
    std = 0.6
    best = variance.analytic(lambda at: doubt_of(std, at))
    for move in moves(path, torch.tensor([0.9, 0.6, 0.3, 0.05, 0.0], dtype=D), eta=eta):
        wide = float(move.at_t.signal) ** 2 * std**2 + float(move.at_t.noise) ** 2
        slope = float(move.at_t.signal) * std**2 / wide
        got = (move.keep + move.add * slope) ** 2 * wide + best(move)
        if float(move.at_s.noise) == 0:  # the decoder: the law of total variance
            want = std**2
        else:
            want = float(move.at_s.signal) ** 2 * std**2 + float(move.at_s.noise) ** 2
        assert got == pytest.approx(want, rel=1e-11)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_optimal_chain_ends_right(eta):
    """Six steps of ddim with the analytic variance end at the true variance; without it far off.

    20,000 draws have a relative SE of 1 % of the variance: 5 of them, and the posterior variance
    misses by more than 10.
    """
    std, path = 0.6, md.Cosine()
    denoise = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor(std)).denoiser(path)
    times = torch.linspace(0.95, 0.1, 7, dtype=D)
    start = path(times[0])
    wide = float(start.signal) ** 2 * std**2 + float(start.noise) ** 2
    x = wide**0.5 * torch.randn(20_000, 1, generator=seed(13), dtype=D)
    end = path(times[-1])
    want = float(end.signal) ** 2 * std**2 + float(end.noise) ** 2

    def miss(v):
        x_s = md.last(md.ddim(denoise, path, x, times, eta=eta, variance=v, rng=seed(14)))
        return float(x_s.var()) / want - 1

    assert abs(miss(variance.analytic(lambda at: doubt_of(std, at)))) < 0.05
    if eta > 0:
        assert miss(md.posterior_variance) < -0.1


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_optimal_variance_minimises_the_step(eta):
    """eq:optimal-variance: scanned over variances, the expected KL of a step is least at sigma^2.

    The expectation over x0 and the noise is a Gauss-Hermite sum, exact for these quadratics; the
    divergence is torch's. Just above and below the optimum it is larger, and its slope there is 0.
    """
    std, path = 0.6, md.VP()
    nodes, weights = torch.as_tensor(_hermite()[0], dtype=D), torch.as_tensor(_hermite()[1])
    x0, eps = std * nodes[:, None], nodes[None, :]
    chance = weights[:, None] * weights[None, :]
    for move in moves(path, torch.tensor([0.9, 0.5, 0.2], dtype=D), eta=eta):
        signal, noise = float(move.at_t.signal), float(move.at_t.noise)
        x = signal * x0 + noise * eps
        guess = signal * std**2 / (signal**2 * std**2 + noise**2) * x
        true = torch.distributions.Normal(move.keep * x + move.add * x0, move.var**0.5)

        def loss(sigma2, move=move, x=x, guess=guess, true=true):
            model = torch.distributions.Normal(move.keep * x + move.add * guess, sigma2**0.5)
            return float((chance * torch.distributions.kl_divergence(true, model)).sum())

        best = variance.analytic(lambda at: doubt_of(std, at))(move)
        here = loss(best)
        for factor in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0):
            assert loss(factor * best) > here + 1e-6
        assert abs(loss(1.0001 * best) - loss(0.9999 * best)) < 1e-9


def _hermite():
    """Nodes and weights of a mean over a standard normal, exact up to degree 15."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    return nodes, weights / math.sqrt(2 * math.pi)


# ---- the doubt, measured -------------------------------------------------------------------------


def test_mean_covariance_written_out():
    """eq:gamma: a denoiser that always reads the noise .6 and .2 has Gamma = (.36 + .04) / 2."""
    times = torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=D)
    path = md.VP()

    def denoise(x, t):
        assert t.ndim == 0  # as from a sampler
        at = path(t)
        return (x - at.noise * torch.tensor([0.6, 0.2], dtype=D)) / at.signal

    cov = variance.mean_covariance(denoise, path, torch.ones(5, 2, dtype=D), times, rng=seed(0))
    for t in times[:-1]:
        signal2 = math.exp(-(float(t) ** 2) * 19.9 / 2 - float(t) * 0.1)
        want = (1 - signal2) / signal2 * 0.8
        assert cov(path(t)) == pytest.approx(want, rel=1e-9)


@each_path
def test_mean_covariance_of_a_gaussian(path):
    """eq:gamma: the closed form of a Gaussian, within 5 SE of a mean of squares of N entries."""
    N, std = 20_000, 0.6
    data = md.Gaussian(torch.tensor([0.2], dtype=D), torch.tensor(std))
    times = torch.tensor([0.9, 0.5, 0.3, 0.1, 0.0], dtype=D)
    x0 = data.sample(N, rng=seed(15))
    cov = variance.mean_covariance(data.denoiser(path), path, x0, times, rng=seed(16))
    for t in times[:-1]:
        at = path(t)
        ratio = float(at.noise / at.signal) ** 2
        gamma = 1 - doubt_of(std, at) / ratio  # E eps_hat^2
        assert abs(cov(at) - doubt_of(std, at)) < 5 * ratio * gamma * (2 / N) ** 0.5


def test_mean_covariance_uses_its_rng():
    """The same seed gives the same numbers, another seed others; the data enters."""
    times, path = torch.tensor([0.5, 0.0], dtype=D), md.VP()
    data = md.Gaussian(torch.zeros(2, dtype=D), torch.tensor(0.6))
    x0, at = data.sample(20, rng=seed(1)), path(0.5)

    def number(x0, value):
        cov = variance.mean_covariance(data.denoiser(path), path, x0, times, rng=seed(value))
        return cov(at)

    assert number(x0, 0) == number(x0, 0)
    assert number(x0, 0) != number(x0, 1)
    assert number(x0, 0) != number(2 * x0, 0)


def test_mean_covariance_knows_its_levels_only():
    times, path = torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=D), md.VP()
    data = md.Gaussian(torch.zeros(2, dtype=D), torch.tensor(0.6))
    x0 = data.sample(20, rng=seed(1))
    cov = variance.mean_covariance(data.denoiser(path), path, x0, times, rng=seed(0))
    found = [cov(move.at_t) for move in moves(path, times, eta=0.3)]
    assert found == [cov(path(t)) for t in (0.8, 0.5, 0.2)]
    assert len(set(found)) == 3
    assert cov(path(0.5 + 1e-12)) == found[1]  # a level computed twice
    for t in (0.9, 0.79, 0.51, 0.49, 0.1, 0.0, 0.5 + 1e-8, 0.5 - 1e-8):
        with pytest.raises(ValueError, match=r"log_snr=.*mean_covariance with the grid"):
            cov(path(t))


@each_path
def test_residual_covariance_written_out(path):
    """eq:residual-covariance: squared errors of half of x, where they count, channel by channel.

    Times in the order of the grid, noise from one generator; known entries stay clean in x_t.
    """
    times = torch.tensor([0.8, 0.3, 0.0], dtype=D)
    x0 = torch.randn(6, 4, 3, dtype=D, generator=seed(1))
    known = torch.rand(6, 4, 3, generator=seed(2)) < 0.4
    scored = ~known & (torch.rand(6, 4, 3, generator=seed(3)) < 0.7)

    def half(x, t):
        assert t.ndim == 0 and torch.equal(x[known], x0[known])
        return x / 2

    rng = seed(4)
    cov = variance.residual_covariance(
        half, path, x0, times, known=known, scored=scored, keep=(2,), rng=seed(4)
    )
    for t in times[:-1]:
        at = path(t)
        x = at.signal * x0 + at.noise * torch.randn(6, 4, 3, dtype=D, generator=rng)
        got = cov(at)
        assert got.shape == (1, 1, 3)
        for k in range(3):
            here = scored[..., k]
            error = [
                (a / 2 - b) ** 2 for a, b in zip(x[..., k][here], x0[..., k][here], strict=True)
            ]
            assert float(got[0, 0, k]) == pytest.approx(float(sum(error)) / len(error), rel=1e-9)
    with pytest.raises(ValueError, match=r"log_snr=.*residual_covariance with the grid"):
        cov(path(0.5))
    whole = variance.residual_covariance(half, path, x0, times, known=known, rng=seed(4))
    assert whole(path(0.8)).shape == (1, 1, 1)  # all that is not known counts


def test_residual_covariance_is_the_doubt_of_an_exact_denoiser():
    """Within 5 standard errors of the closed form; a mean that is off by .5 adds .25."""
    N, path = 20_000, md.Cosine()
    data = md.Gaussian(torch.tensor([0.2], dtype=D), torch.tensor(0.6))
    times = torch.tensor([0.9, 0.5, 0.1, 0.0], dtype=D)
    x0, exact = data.sample(N, rng=seed(15)), data.denoiser(path)
    cov = variance.residual_covariance(exact, path, x0, times, rng=seed(16))
    off = variance.residual_covariance(
        lambda x, t: exact(x, t) + 0.5, path, x0, times, rng=seed(16)
    )
    for t in times[:-1]:
        want = doubt_of(0.6, path(t))
        assert abs(float(cov(path(t))) - want) < 5 * want * (2 / N) ** 0.5
        room = 5 * (2 * want**2 / N + want / N) ** 0.5
        assert abs(float(off(path(t))) - want - 0.25) < room


def test_residual_covariance_refuses():
    x0, times = torch.zeros(3, 2, dtype=D), torch.tensor([0.5, 0.0], dtype=D)
    ask = variance.residual_covariance
    everything = torch.ones(3, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="counts no entry"):
        ask(lambda x, t: x, md.Cosine(), x0, times, known=everything)
    with pytest.raises(ValueError, match="scored has dtype"):
        ask(lambda x, t: x, md.Cosine(), x0, times, scored=torch.ones(3, 2))
    with pytest.raises(ValueError, match="known has shape"):
        ask(lambda x, t: x, md.Cosine(), x0, times, known=everything[:, :1].expand(3, 3))
    with pytest.raises(ValueError, match="decrease strictly"):
        ask(lambda x, t: x, md.Cosine(), x0, times.flip(0))


def test_analytic_takes_a_doubt_for_each_channel():
    """eq:optimal-variance with a tensor: clamped below at 0 and above at most."""
    doubt = torch.tensor([[-1.0, 0.2, 3.0]], dtype=D)
    for move in moves(TABLE, torch.tensor([1.0, 0.5, 0.0], dtype=D), eta=1.0)[:1]:
        got = variance.analytic(lambda at: doubt, most=1.0)(move)
        want = [move.var + move.add**2 * c for c in (0.0, 0.2, 1.0)]
        assert got[0].tolist() == pytest.approx(want, rel=1e-12)


# ---- caps and ranges -----------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", [1.0, 2.0])
def test_cap_last_written_out(pixels):
    """eq:cap: only the move onto the last noisy time, to (2 pixels / 255)^2 pi / 2."""
    times = torch.tensor([1.0, 0.5, 0.25, 0.1, 0.0], dtype=D)
    capped = variance.cap_last(lambda m: 0.5, TABLE, times, pixels=pixels)
    most = {1.0: 9.662723e-5, 2.0: 3.865089e-4}[pixels]
    got = [capped(move) for move in moves(TABLE, times, eta=1.0)]
    assert got == [0.5, 0.5, pytest.approx(most, rel=1e-6), 0.5]
    # E |sigma z| is so many grey values, 2/255 each
    assert (got[2] * 2 / math.pi) ** 0.5 == pytest.approx(pixels * 2 / 255, rel=1e-14)
    low = variance.cap_last(lambda m: 5e-5, TABLE, times, pixels=pixels)
    assert [low(move) for move in moves(TABLE, times, eta=1.0)] == [5e-5] * 4


def test_cap_last_is_per_entry_and_one_grey_value_by_default():
    times = md.grids.linspaced(1000, 10)
    whole = torch.tensor([[1.0, 1e-5]], dtype=D)
    capped = variance.cap_last(lambda m: whole, TABLE, times)
    *early, onto_last, landing = (capped(move) for move in moves(TABLE, times, eta=1.0))
    assert all(torch.equal(v, whole) for v in [*early, landing])
    want = torch.tensor([[(2 / 255) ** 2 * math.pi / 2, 1e-5]], dtype=D)
    torch.testing.assert_close(onto_last, want, **EXACT)


def test_cap_last_of_a_grid_that_does_not_land():
    """The last time itself is then the last noisy one; two noisy times are enough."""
    for times, want in (([0.8, 0.5, 0.2], [False, True]), ([0.5, 0.2, 0.0], [True, False])):
        times = torch.tensor(times, dtype=D)
        capped = variance.cap_last(lambda m: 0.5, md.VP(), times)
        assert [capped(m) < 0.5 for m in moves(md.VP(), times, eta=1.0)] == want


def test_learned_range_written_out():
    """eq:learned-range: v = 1 is beta, -1 beta tilde, 0 their geometric mean, 2 goes beyond."""
    betas = [0.1, 0.3, 0.6]
    bar = [1.0, 0.9, 0.63, 0.252]
    tilde = [(1 - bar[t - 1]) / (1 - bar[t]) * betas[t - 1] for t in (3, 2)]
    small = [*tilde, tilde[1]]  # the move onto clean data takes that of the move before
    v = [[1.0, -1.0, 0.0, 2.0]]
    branch = fixed(torch.zeros(1, 4), v)
    got = variance.learned_range(branch)
    chain = moves(md.BetaTable(torch.tensor(betas)), md.ddpm_steps(3), eta=1.0)
    for move, beta, low in zip(chain, (0.6, 0.3, 0.1), small, strict=True):
        want = [[beta, low, (beta * low) ** 0.5, beta**1.5 / low**0.5]]
        torch.testing.assert_close(
            got(heard(branch, move)), torch.tensor(want, dtype=D), rtol=1e-6, atol=0
        )
    torch.testing.assert_close(
        got(heard(branch, move_of(forward=0.3, clipped=0.1))),
        torch.tensor([[0.3, 0.1, 0.03**0.5, 0.3**1.5 / 0.1**0.5]], dtype=D),
        **EXACT,
    )


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [variance.sn, variance.npr, variance.learned_range])
def test_a_branch_that_cannot_say(make):
    silent = md.Denoiser(nn.Identity(), TABLE).given(None)
    with pytest.raises(ValueError, match="branch was never called"):
        make(silent)(move_of())

    class Plain(nn.Module):
        def forward(self, x, t, cond=None):
            return x

    plain = md.Denoiser(Plain(), TABLE).given(None)
    plain(torch.zeros(1, 2), torch.tensor(0.5))
    with pytest.raises(ValueError, match="no second output"):
        make(plain)(move_of())


def test_learned_range_needs_a_posterior_variance():
    branch = fixed(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="eta=0"):
        variance.learned_range(branch)(moves(TABLE, md.ddpm_steps(10), eta=0.0)[3])
    one_step = moves(TABLE, torch.tensor([1.0, 0.0], dtype=D), eta=1.0)[0]
    with pytest.raises(ValueError, match="two steps"):
        variance.learned_range(branch)(one_step)


@pytest.mark.parametrize("make", [variance.sn, variance.npr])
def test_heads_need_signal(make):
    branch = fixed(torch.zeros(1, 2), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"signal=9.9e-07 is below"):
        make(branch)(heard(branch, move_of(signal=9.9e-7, noise=1.0)))
    make(branch)(heard(branch, move_of(signal=1.01e-6, noise=1.0)))


@pytest.mark.parametrize("most", [0.0, -1.0, math.nan])
def test_bounds_of_the_doubt_are_positive(most):
    branch = fixed(torch.zeros(1, 2), torch.zeros(1, 2))
    for make in (variance.sn, variance.npr):
        with pytest.raises(ValueError, match="most="):
            make(branch, most=most)
    with pytest.raises(ValueError, match="most="):
        variance.analytic(lambda at: 1.0, most=most)


def test_mean_covariance_and_cap_refuse_bad_input():
    x0, denoise = torch.zeros(3, 2, dtype=D), RING.denoiser(md.Cosine())
    with pytest.raises(ValueError, match="start the grid below t = 1"):
        variance.mean_covariance(denoise, md.Cosine(), x0, md.grids.uniform(4))
    with pytest.raises(ValueError, match="decrease strictly"):
        variance.mean_covariance(denoise, md.Cosine(), x0, torch.tensor([0.2, 0.5, 0.0]))
    with pytest.raises(ValueError, match="NaN"):
        variance.mean_covariance(denoise, md.Cosine(), x0 * math.nan, torch.tensor([0.5, 0.0]))
    times = torch.tensor([0.5, 0.2, 0.0])
    for pixels in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="pixels="):
            variance.cap_last(md.posterior_variance, TABLE, times, pixels=pixels)
    with pytest.raises(ValueError, match="1 noisy time"):
        variance.cap_last(md.posterior_variance, TABLE, torch.tensor([0.5, 0.0]))
    with pytest.raises(ValueError, match="decrease strictly"):
        variance.cap_last(md.posterior_variance, TABLE, torch.tensor([0.2, 0.5, 0.0]))


def test_a_branch_of_another_time_is_refused():
    """A variance that would read another call than that of its move raises."""

    class Two(torch.nn.Module):
        def forward(self, x, t, cond=None):
            return md.Output(x, torch.ones_like(x))

    branch = md.Denoiser(Two(), md.VP(), "eps").given(None)
    steps = moves(md.VP(), md.grids.uniform(4, start=0.9), eta=1.0)
    x = torch.ones(2, 3, dtype=torch.float64)
    for make in (md.variance.sn, md.variance.npr, md.variance.learned_range):
        branch(x, 0.9)
        make(branch)(steps[0])
        with pytest.raises(ValueError, match="very branch"):
            make(branch)(steps[1])
