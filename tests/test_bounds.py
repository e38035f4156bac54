"""The variational bound: every term written out from the text, its mean against closed forms.

A Gaussian under its exact denoiser has a reverse chain that is Gaussian too, so with the optimal
variance its bound is no bound but the likelihood itself, at any number of steps. Means of draws are
compared within 5 standard errors (SE); the seeds are fixed.
"""

import math
from itertools import pairwise

import mpmath
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.distributions import Normal, kl_divergence

import minidiff as md
from minidiff import bounds, variance

D = torch.float64
EXACT = {"rtol": 1e-12, "atol": 1e-12}
BETAS = [0.1, 0.2, 0.4, 0.7]
TABLE = md.BetaTable(torch.tensor(BETAS, dtype=D))
EVENTS = [(), (2,), (1, 2, 3)]
each_event = pytest.mark.parametrize("event", EVENTS, ids=str)


def seed(value):
    return torch.Generator().manual_seed(value)


def normal(*shape, at=0):
    return torch.randn(shape, generator=seed(at), dtype=D)


def standard_error(values):
    return float(values.std() / len(values) ** 0.5)


def summed(values):
    return values.reshape(len(values), -1).sum(1)


def wrong(x, t):
    """A denoiser of nothing in particular, so that no term is small."""
    return 0.5 * torch.tanh(x) + 0.3 * float(t)


# ---- decoders ------------------------------------------------------------------------------------


def test_gaussian_decoder_is_a_log_density():
    """eq:gaussian-decoder against torch's normal, with one variance and with one an entry."""
    x0, mean, var = normal(4, 3), normal(4, 3, at=1), normal(4, 3, at=2).exp()
    for v in (var, 0.3):
        want = Normal(mean, torch.as_tensor(v, dtype=D).sqrt()).log_prob(x0)
        torch.testing.assert_close(bounds.gaussian_decoder(x0, mean, v), want, **EXACT)
    far = bounds.gaussian_decoder(torch.zeros(1), torch.ones(1), 0.5)
    assert far.dtype == torch.float32
    assert float(far) == pytest.approx(-(math.log(math.pi) + 2) / 2, rel=1e-6)


GREYS = torch.arange(256, dtype=D)
LEVELS = 2 * GREYS / 255 - 1


@pytest.mark.parametrize("mean", [-5.0, -1.0, -0.998, -0.3, 0.0, 1 / 255, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("std", [1e-6, 1e-3, 0.02, 0.3, 10.0])
def test_discretised_decoder_sums_to_one(mean, std):
    """eq:discretised-decoder: 256 bins without gap or overlap, wherever the mean is.

    Rounding moves an edge by 1e-16, which is 1e-10 of the smallest deviation here.
    """
    log_p = bounds.discretised_decoder(LEVELS, torch.full_like(LEVELS, mean), std**2)
    assert bool((log_p <= 0).all()) and not bool(log_p.isnan().any())
    assert float(log_p.exp().sum()) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("mean, std", [(0.1, 0.05), (-0.6, 0.3), (0.97, 0.02), (1.2, 1.0)])
def test_discretised_decoder_is_a_difference_of_cdfs(mean, std):
    """eq:discretised-decoder against scipy, wherever the difference keeps 9 digits."""
    low, high = (norm.cdf(((LEVELS + w / 255).numpy() - mean) / std) for w in (-1, 1))
    low[0], high[255] = 0.0, 1.0
    want = torch.as_tensor(high - low)
    got = bounds.discretised_decoder(LEVELS, torch.full_like(LEVELS, mean), std**2)
    kept = want > 1e-6
    assert int(kept.sum()) > 15
    torch.testing.assert_close(got[kept].exp(), want[kept], rtol=1e-9, atol=0)


@pytest.mark.parametrize("std", ["1e-8", "0.0001", "0.01", "0.5", "100"])
def test_discretised_decoder_far_from_the_mean(std):
    """Against mpmath with 60 digits and more: finite and right to 1e-9 out to 1e8 deviations."""
    greys, means = [0, 1, 40, 127, 128, 200, 254, 255], ["-1.5", "-1", "-0.25", "0.5", "1.01"]
    x0 = LEVELS[greys].repeat(len(means))
    mean = torch.tensor([float(m) for m in means], dtype=D).repeat_interleave(len(greys))
    got = bounds.discretised_decoder(x0, mean, float(std) ** 2)
    with mpmath.workdps(60):

        def tail(z):  # the mass above z
            return mpmath.erfc(z / mpmath.sqrt(2)) / 2

        for k, m, value in zip(greys * len(means), mean.tolist(), got.tolist(), strict=True):
            gap, root = mpmath.mpf(2 * k) / 255 - 1 - mpmath.mpf(m), mpmath.mpf(float(std))
            low, high = (gap - mpmath.mpf(1) / 255) / root, (gap + mpmath.mpf(1) / 255) / root
            low, high = (-mpmath.inf if k == 0 else low), (mpmath.inf if k == 255 else high)
            if gap > 0:
                low, high = -high, -low
            want = mpmath.log(tail(-high) - tail(-low))
            assert math.isfinite(value)
            # a rounding of gap by 1e-16 moves the exponent gap^2 / 2 var by that share of itself
            assert value == pytest.approx(float(want), rel=1e-9, abs=1e-12)


def test_discretised_decoder_in_float32():
    """Data and means of float32 are compared in float64 and come back as float32.

    The grid value is taken from the rounded data, so its rounding does not matter; that of the
    mean, 3e-8 in 5e-3 deviations, does: 1e-5 of the log-probability.
    """
    x0 = LEVELS.float().reshape(8, 32)
    mean = (LEVELS * 0.9).float().reshape(8, 32)
    got = bounds.discretised_decoder(x0, mean, torch.full((8, 1), 0.01))
    want = bounds.discretised_decoder(LEVELS.reshape(8, 32), mean.double(), 0.01)
    assert got.dtype == torch.float32 and got.shape == x0.shape
    torch.testing.assert_close(got, want.float(), rtol=1e-6, atol=1e-6)


def test_discretised_decoder_has_a_gradient_everywhere():
    """The variance of an open bin, too, gets a finite gradient: the difference quotient's."""
    var = torch.full((256,), 0.04, dtype=D, requires_grad=True)
    mean = torch.full((256,), 0.2, dtype=D)
    (slope,) = torch.autograd.grad(bounds.discretised_decoder(LEVELS, mean, var).sum(), var)
    up, down = (bounds.discretised_decoder(LEVELS, mean, 0.04 + h) for h in (1e-7, -1e-7))
    torch.testing.assert_close(slope, (up - down) / 2e-7, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [1 / 255, -1 - 2 / 255, 1 + 2 / 255, 0.0, 0.1 + 1e-4])
def test_discretised_decoder_refuses_values_off_the_grid(value):
    x0 = torch.tensor([[1.0, value]])
    for x in (x0, x0.double()):
        if value == 1 / 255:
            bounds.discretised_decoder(x, x, 1.0)  # 128: on the grid
        else:
            with pytest.raises(ValueError, match="8-bit values"):
                bounds.discretised_decoder(x, x, 1.0)


@pytest.mark.parametrize("decoder", [bounds.gaussian_decoder, bounds.discretised_decoder])
def test_decoders_refuse_bad_input(decoder):
    x0 = torch.ones(2, 3)
    with pytest.raises(ValueError, match="mean has shape"):
        decoder(x0, torch.ones(3), 1.0)
    for var in (0.0, -1.0, torch.tensor([[1.0, 0.0, 1.0]]), math.nan):
        with pytest.raises(ValueError, match="positive variance"):
            decoder(x0, x0, var)


# ---- the bound -----------------------------------------------------------------------------------


def test_total_is_the_sum_of_the_terms():
    """eq:bound: L_T + the sum over the steps + L_0, one number an example."""
    bound = bounds.Bound(
        torch.tensor([1.0, 2.0]),
        torch.tensor([[3.0, 5.0], [7.0, 11.0]]),
        torch.tensor([13.0, 17.0]),
    )
    assert bound.total.tolist() == [24.0, 35.0]
    assert bound._replace(steps=torch.zeros(0, 2)).total.tolist() == [14.0, 19.0]


@each_event
@pytest.mark.parametrize("kind", ["tilde", "beta"])
def test_vlb_on_a_table_written_out(event, kind):
    """eq:vlb from the text of Ho et al.: alpha-bars, mu-tilde, torch's KL of two Gaussians.

    The noise is drawn again, one set a step, from the noisiest on.
    """
    x0 = normal(3, *event, at=1)
    v = {"tilde": md.posterior_variance, "beta": md.forward_variance}[kind]
    got = bounds.vlb(wrong, TABLE, x0, md.ddpm_steps(4), variance=v, rng=seed(2))

    bar = [1.0]
    for beta in BETAS:
        bar.append(bar[-1] * (1 - beta))
    tilde = [0.0] + [(1 - bar[t - 1]) / (1 - bar[t]) * BETAS[t - 1] for t in (1, 2, 3, 4)]
    one = torch.ones_like(x0)
    start = Normal(bar[4] ** 0.5 * x0, (1 - bar[4]) ** 0.5 * one)
    torch.testing.assert_close(got.prior, summed(kl_divergence(start, Normal(0 * one, one))))
    g = seed(2)
    for i, t in enumerate((4, 3, 2, 1)):
        x = bar[t] ** 0.5 * x0
        x = x + (1 - bar[t]) ** 0.5 * torch.randn(x0.shape, generator=g, dtype=D)
        guess, beta = wrong(x, t / 4), BETAS[t - 1]
        if t == 1:
            std = (tilde[2] if kind == "tilde" else beta) ** 0.5  # tilde_1 is 0
            want = -summed(Normal(guess, std).log_prob(x0))
            torch.testing.assert_close(got.decoder, want, **EXACT)
            break

        def mu(clean, x=x, t=t, beta=beta):
            first = (1 - beta) ** 0.5 * (1 - bar[t - 1]) / (1 - bar[t]) * x
            return first + bar[t - 1] ** 0.5 * beta / (1 - bar[t]) * clean

        true = Normal(mu(x0), tilde[t] ** 0.5)
        model = Normal(mu(guess), (tilde[t] if kind == "tilde" else beta) ** 0.5)
        torch.testing.assert_close(got.steps[i], summed(kl_divergence(true, model)), **EXACT)
    assert got.steps.shape == (3, 3) and got.prior.shape == got.decoder.shape == (3,)
    torch.testing.assert_close(got.total, got.prior + got.steps.sum(0) + got.decoder)


@pytest.mark.parametrize("path", [md.VP(), md.Cosine(), md.LinearPath(), md.VE()])
def test_vlb_of_ddim_written_out(path):
    """eq:vlb at eta = .4 on every path, with a variance of each entry: moves from their formula."""
    eta, times, x0 = 0.4, [0.9, 0.5, 0.2, 0.0], normal(3, 2, at=3)
    sigma2 = normal(3, 2, at=4).exp()
    got = bounds.vlb(
        wrong,
        path,
        x0,
        torch.tensor(times, dtype=D),
        eta=eta,
        variance=lambda move: sigma2,
        rng=seed(5),
    )
    g = seed(5)
    levels = [(float(path(t).signal), float(path(t).noise)) for t in times]
    for i, ((st, nt), (ss, ns)) in enumerate(pairwise(levels)):
        x = st * x0 + nt * torch.randn(3, 2, generator=g, dtype=D)
        guess = wrong(x, times[i])
        if ns == 0:
            want = -summed(Normal(guess, sigma2.sqrt()).log_prob(x0))
            torch.testing.assert_close(got.decoder, want, **EXACT)
            break
        var = eta**2 * ns**2 / nt**2 * (nt**2 - st**2 / ss**2 * ns**2)
        add = ss - (ns**2 - var) ** 0.5 / nt * st
        kl = kl_divergence(Normal(add * x0, var**0.5), Normal(add * guess, sigma2.sqrt()))
        torch.testing.assert_close(got.steps[i], summed(kl), rtol=1e-9, atol=1e-9)
    wide = (levels[0][0] ** 2 + levels[0][1] ** 2) ** 0.5
    kl = kl_divergence(
        Normal(levels[0][0] * x0, levels[0][1]), Normal(torch.zeros((), dtype=D), wide)
    )
    torch.testing.assert_close(got.prior, summed(kl), **EXACT)


def test_vlb_where_the_last_variance_is_zero():
    """Entries of the last variance that are 0 take the one of the move before; others stay."""
    x0 = normal(2, 2, at=6)
    table, times = TABLE, md.ddpm_steps(4)

    def some(move):
        return torch.tensor([[0.3, 0.0]], dtype=D) if move.var == 0 else move.var

    got = bounds.vlb(wrong, table, x0, times, variance=some, rng=seed(7))
    g = seed(7)
    for _ in range(4):  # the noise of the last step is the last one drawn
        noise = torch.randn(2, 2, generator=g, dtype=D)
    x = 0.9**0.5 * x0 + 0.1**0.5 * noise
    tilde2 = (1 - 0.9) / (1 - 0.9 * 0.8) * 0.2
    std = torch.tensor([0.3, tilde2], dtype=D).sqrt()
    want = -summed(Normal(wrong(x, 0.25), std).log_prob(x0))
    torch.testing.assert_close(got.decoder, want, **EXACT)


def gaussian(std, mean=0.0):
    return md.Gaussian(torch.tensor([mean], dtype=D), torch.tensor(std, dtype=D))


def doubt_of(std):
    """Variance of x0 given x_t for Gaussian data, as a function of the level."""
    return lambda at: 1 / (1 / std**2 + float(at.signal / at.noise) ** 2)


def entropy(std):
    return math.log(2 * math.pi * math.e * std**2) / 2


def mean_prior_kl(at, std, mean=0.0):
    """E of the KL from N(signal x0, noise^2) to N(0, signal^2 + noise^2)."""
    signal2, noise2 = float(at.signal) ** 2, float(at.noise) ** 2
    total = signal2 + noise2
    share = (signal2 * (mean**2 + std**2) + noise2) / total
    return (share - 1 - math.log(noise2 / total)) / 2


@pytest.mark.parametrize("path", [md.VP(), md.Cosine(), md.VE()])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_vlb_of_a_gaussian_in_closed_form(path, eta):
    """eq:vlb: each term's mean over data N(.3, .6^2) under the exact denoiser, within 5 SE.

    E L_{t-1} = (log sigma^2/var + (var + add^2 doubt)/sigma^2 - 1)/2, with sigma^2 1.5 var.
    """
    std, times = 0.6, torch.tensor([0.9, 0.6, 0.3, 0.1, 0.0], dtype=D)
    data = gaussian(std, 0.3)
    x0 = data.sample(20_000, rng=seed(8))
    got = bounds.vlb(
        data.denoiser(path),
        path,
        x0,
        times,
        eta=eta,
        variance=lambda m: 1.5 * m.var if m.var else 0.02,
        rng=seed(9),
    )
    doubt = doubt_of(std)
    chain = [(path(t), path(s)) for t, s in pairwise(times[:-1])]
    for (at_t, at_s), step in zip(chain, got.steps, strict=True):
        st, nt, ss, ns = (float(f) for f in (at_t.signal, at_t.noise, at_s.signal, at_s.noise))
        var = eta**2 * ns**2 / nt**2 * (nt**2 - st**2 / ss**2 * ns**2)
        add = ss - (ns**2 - var) ** 0.5 / nt * st
        want = (math.log(1.5) + (1 + add**2 * doubt(at_t) / var) / 1.5 - 1) / 2
        assert abs(float(step.mean()) - want) < 5 * standard_error(step)
    want = mean_prior_kl(path(times[0]), std, 0.3)
    assert abs(float(got.prior.mean()) - want) < 5 * standard_error(got.prior)
    want = (math.log(2 * math.pi * 0.02) + doubt(path(0.1)) / 0.02) / 2
    assert abs(float(got.decoder.mean()) - want) < 5 * standard_error(got.decoder)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_optimal_bound_of_a_gaussian_is_its_entropy(steps):
    """With the analytic variance nothing is lost at any number of steps but what x_T still knows:

    the KL from the true marginal at the start to the prior. 10,000 points, 5 SE are .05 nats.
    Under the posterior variance .09 nats are lost at 2 steps and .30 at 5.
    """
    std, path = 0.6, md.VP()
    data = gaussian(std)
    x0 = data.sample(10_000, rng=seed(10))
    times = torch.linspace(0.5, 0, steps + 1, dtype=D)
    at = path(0.5)
    wide = float(at.signal) ** 2 * std**2 + float(at.noise) ** 2
    want = entropy(std) + (wide - 1 - math.log(wide)) / 2

    def total(v, eta=1.0):
        got = bounds.vlb(data.denoiser(path), path, x0, times, eta=eta, variance=v, rng=seed(11))
        assert got.steps.shape == (steps - 1, 10_000)
        return got.total

    best = total(variance.analytic(doubt_of(std)))
    assert abs(float(best.mean()) - want) < 5 * standard_error(best) < 0.06
    if steps > 1:
        assert float(total(md.posterior_variance).mean()) > want + 0.06
        # below eta = 1 the true reverse step depends on x0 too: right marginals, a looser bound
        looser = total(variance.analytic(doubt_of(std)), eta=0.3)
        assert float(looser.mean()) > want + 0.4


def test_many_steps_approach_the_entropy():
    """Beta tilde loses about 1/K nats; with 400 steps the bound is within .05 of the likelihood.

    Equal steps of log-SNR from -8 to 8, the optimal variance in the last move. 3000 points.
    """
    std, path = 0.6, md.Cosine()
    data = gaussian(std)
    x0 = data.sample(3000, rng=seed(12))
    losses = []
    for K in (10, 50, 400):
        times = md.grids.log_snr(path, K, low=-8, high=8)
        best = variance.analytic(doubt_of(std))
        total = bounds.vlb(
            data.denoiser(path),
            path,
            x0,
            times,
            variance=lambda m, best=best: m.var or best(m),
            rng=seed(13),
        ).total
        loss = total + data.log_prob(x0, 0.0, path)
        losses.append(float(loss.mean()))
        assert losses[-1] > -5 * standard_error(loss)
    assert losses[0] > 3 * losses[1] > 15 * losses[2]
    assert losses[2] < 0.05


def wide_denoiser(x, t):
    return 0.7 * x


VARIANCES = {
    "tilde": md.posterior_variance,
    "beta": md.forward_variance,
    "analytic": variance.analytic(doubt_of(0.6)),
    "wild": lambda move: 0.5 + move.var,
}


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("v", VARIANCES.values(), ids=VARIANCES.keys())
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "wrong"])
def test_vlb_is_a_bound(v, exact, eta):
    """Whatever the variance and the denoiser: the mean is not below the NLL by more than noise."""
    path, data = md.VP(), gaussian(0.6)
    x0 = data.sample(4000, rng=seed(14))
    denoise = data.denoiser(path) if exact else wide_denoiser
    times = torch.linspace(1, 0, 7, dtype=D)
    total = bounds.vlb(denoise, path, x0, times, eta=eta, variance=v, rng=seed(15)).total
    gap = total + data.log_prob(x0, 0.0, path)
    assert float(gap.mean()) > -4 * standard_error(gap)
    if not exact:
        assert float(gap.mean()) > 0.05


def test_vlb_of_grey_values_reaches_their_entropy():
    """Four grey values, equally likely, of one pixel: 2 bits. 20, 100, 400 steps: 3.7, 2.25, 2.06.

    The denoiser is exact and the last variance half a bin wide, so nothing is misread.
    """
    points = (2 * torch.tensor([3.0, 90.0, 91.0, 255.0], dtype=D) / 255 - 1)[:, None]
    data, path = md.Empirical(points), md.Cosine()
    x0 = data.sample(2000, rng=seed(16))
    bits = []
    for K in (20, 100, 400):
        times = md.grids.log_snr(path, K, low=-8, high=13)
        got = bounds.vlb(
            data.denoiser(path),
            path,
            x0,
            times,
            variance=lambda move: move.var or 1e-6,
            decoder=bounds.discretised_decoder,
            rng=seed(17),
        )
        assert bool((got.decoder >= 0).all())  # a probability, not a density
        bits.append(got.total / math.log(2))
    assert float(bits[2].mean()) > 2 - 4 * standard_error(bits[2])
    assert float(bits[2].mean()) < 2.12 < float(bits[1].mean()) < 2.4 < float(bits[0].mean())


def test_vlb_draws_from_its_rng():
    x0, times = normal(5, 2), md.ddpm_steps(4)
    a, b, c = (bounds.vlb(wrong, TABLE, x0, times, rng=seed(k)).total for k in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)
    low = bounds.vlb(wrong, TABLE, x0.float(), times, rng=seed(0))
    assert low.total.dtype == low.steps.dtype == torch.float32


def test_vlb_refuses_bad_input():
    x0, times = normal(2, 2), md.ddpm_steps(4)
    with pytest.raises(ValueError, match=r"times end at 0\.25"):
        bounds.vlb(wrong, TABLE, x0, times[:-1])
    for eta in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(ValueError, match="eta="):
            bounds.vlb(wrong, TABLE, x0, times, eta=eta)
    with pytest.raises(ValueError, match="NaN"):
        bounds.vlb(wrong, TABLE, x0 * math.nan, times)
    with pytest.raises(ValueError, match=r"not positive at t=1"):
        bounds.vlb(wrong, TABLE, x0, times, variance=lambda move: 0.0)
    with pytest.raises(ValueError, match=r"not positive at t=1"):
        bounds.vlb(wrong, TABLE, x0, times, variance=lambda move: torch.tensor([[1.0, -0.1]]))
    with pytest.raises(ValueError, match="grid of more steps"):  # one step: no move before it
        bounds.vlb(wrong, TABLE, x0, torch.tensor([1.0, 0.0]))


# ---- infinitely many steps -----------------------------------------------------------------------


@each_event
def test_continuous_vlb_written_out(event):
    """eq:continuous-vlb: the draws repeated; (high - low)/2 e^lambda |x0 - guess|^2 a interval."""
    x0, times, path = normal(3, *event, at=1), [0.9, 0.4, 0.1, 0.0], md.LinearPath()

    def denoise(x, t):
        t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t
        return 0.5 * torch.tanh(x) + 0.3 * t

    got = bounds.continuous_vlb(
        denoise, path, x0, torch.tensor(times, dtype=D), variance=lambda m: 0.2, rng=seed(2)
    )
    g = seed(2)
    lam = [2 * math.log((1 - t) / t) for t in times[:-1]]
    for step, low, high in zip(got.steps, lam[:-1], lam[1:], strict=True):
        where = low + (high - low) * torch.rand(3, generator=g, dtype=D)
        t = 1 / (1 + torch.exp(where / 2))
        wide = t.reshape(3, *(1,) * len(event))
        x = (1 - wide) * x0 + wide * torch.randn(x0.shape, generator=g, dtype=D)
        error = summed((x0 - denoise(x, t)) ** 2)
        want = (high - low) / 2 * where.exp() * error
        torch.testing.assert_close(step, want, rtol=1e-9, atol=1e-9)
    x = 0.9 * x0 + 0.1 * torch.randn(x0.shape, generator=g, dtype=D)
    want = -summed(Normal(denoise(x, torch.tensor(0.1, dtype=D)), 0.2**0.5).log_prob(x0))
    torch.testing.assert_close(got.decoder, want, **EXACT)
    one = torch.ones_like(x0)
    kl = kl_divergence(Normal(0.1 * x0, 0.9 * one), Normal(0 * one, 0.82**0.5 * one))
    torch.testing.assert_close(got.prior, summed(kl), **EXACT)
    assert got.steps.shape == (2, 3)


def integral(path, times, std):
    """Trapezoids of 1/2 e^lambda mmse over the log-SNR of the noisy times, and its closed form."""
    ends = [float(path(times[i]).log_snr) for i in (0, -2)]
    lam = torch.linspace(*ends, 20_001, dtype=D)
    mmse = std**2 / (1 + std**2 * lam.exp())
    exact = math.log((1 + std**2 * math.exp(ends[1])) / (1 + std**2 * math.exp(ends[0]))) / 2
    return float(torch.trapezoid(lam.exp() * mmse / 2, lam)), exact


GRIDS = {
    "one interval": [0.95, 0.05, 0.0],
    "uneven": [0.95, 0.9, 0.3, 0.05, 0.0],
    "20": [*torch.linspace(0.95, 0.05, 20).tolist(), 0.0],
}


@pytest.mark.parametrize("path", [md.VP(), md.Cosine(), md.VE()])
def test_continuous_vlb_has_no_bias_on_any_grid(path):
    """eq:continuous-vlb: the integral by quadrature, 1e-6; three grids within 5 SE of it.

    The spread over draws falls with a finer grid: 20 intervals have less than half of one's.
    """
    std, data = 0.6, gaussian(0.6)
    x0 = data.sample(20_000, rng=seed(18))
    spread = []
    for grid in GRIDS.values():
        times = torch.tensor(grid, dtype=D)
        want, exact = integral(path, times, std)
        assert want == pytest.approx(exact, rel=1e-6)
        got = bounds.continuous_vlb(
            data.denoiser(path), path, x0, times, variance=lambda m: 0.1, rng=seed(19)
        )
        steps = got.steps.sum(0)
        assert abs(float(steps.mean()) - want) < 5 * standard_error(steps)
        spread.append(standard_error(steps))
    assert spread[2] < spread[0] / 2


def test_continuous_vlb_is_the_limit_of_vlb():
    """Same ends, beta tilde: vlb's steps come closer as K grows, 1/K, and at 400 agree in 5 SE.

    The miss is of first order, so four times the steps leave about a quarter.
    """
    path, data = md.Cosine(), gaussian(0.6)
    x0 = data.sample(5000, rng=seed(20))
    denoise = data.denoiser(path)
    limit = bounds.continuous_vlb(
        denoise,
        path,
        x0,
        md.grids.log_snr(path, 50, low=-6, high=6),
        variance=lambda m: 0.1,
        rng=seed(21),
    )
    misses = []
    for K in (25, 100, 400):
        times = md.grids.log_snr(path, K, low=-6, high=6)
        got = bounds.vlb(denoise, path, x0, times, variance=lambda m: m.var or 0.1, rng=seed(22))
        misses.append(float((got.steps.sum(0) - limit.steps.sum(0)).mean()))
    gap = got.steps.sum(0) - limit.steps.sum(0)
    assert misses[0] > 2.5 * misses[1] > 0
    assert abs(misses[2]) < 5 * standard_error(gap)
    torch.testing.assert_close(got.prior, limit.prior, **EXACT)
    both = got.decoder - limit.decoder
    assert abs(float(both.mean())) < 5 * standard_error(both)


def test_continuous_total_is_the_entropy_of_a_gaussian():
    """With the exact doubt in the decoder the last level does not matter: E total is the entropy
    and what the start still knows.
    """
    std, path, data = 0.6, md.Cosine(), gaussian(0.6)
    x0 = data.sample(10_000, rng=seed(23))
    for high in (2, 6):
        times = md.grids.log_snr(path, 30, low=-7, high=high)
        best = variance.analytic(doubt_of(std))
        total = bounds.continuous_vlb(
            data.denoiser(path), path, x0, times, variance=best, rng=seed(24)
        ).total
        at = path(times[0])
        wide = float(at.signal) ** 2 * std**2 + float(at.noise) ** 2
        want = entropy(std) + (wide - 1 - math.log(wide)) / 2
        assert abs(float(total.mean()) - want) < 5 * standard_error(total)


def test_continuous_vlb_hands_over_the_last_move():
    """Its variance sees the move from the last noisy time onto clean data; times come one each."""
    seen, asked = [], []
    times = torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=D)

    def denoise(x, t):
        asked.append(tuple(t.shape))
        return x

    def v(move):
        seen.append(move)
        return move.forward

    x0 = normal(3, 2)
    got = bounds.continuous_vlb(denoise, md.VP(), x0, times, variance=v, rng=seed(0))
    (move,) = seen
    assert float(move.at_t.log_snr) == float(md.VP()(0.2).log_snr) and float(move.at_s.noise) == 0
    assert (move.keep, move.add, move.var) == (0, 1, 0)
    assert asked == [(3,), (3,), ()]
    again = bounds.continuous_vlb(denoise, md.VP(), x0, times, variance=v, rng=seed(0))
    assert torch.equal(got.total, again.total)


def test_continuous_vlb_refuses_bad_input():
    x0 = normal(2, 2)

    def run(times, path=None, v=md.forward_variance, x0=x0):
        path = path or md.VP()
        return bounds.continuous_vlb(wrong_each, path, x0, torch.tensor(times, dtype=D), variance=v)

    with pytest.raises(ValueError, match="times has 2 values"):
        run([0.5, 0.0])
    with pytest.raises(ValueError, match=r"times end at 0\.1"):
        run([0.5, 0.2, 0.1])
    with pytest.raises(ValueError, match="signal is 0"):
        run([1.0, 0.2, 0.0], md.Cosine())
    with pytest.raises(ValueError, match=r"not positive at t=0.2"):
        run([0.5, 0.2, 0.0], v=md.posterior_variance)
    with pytest.raises(ValueError, match="NaN"):
        run([0.5, 0.2, 0.0], x0=x0 * math.nan)


def wrong_each(x, t):
    return 0.5 * x


# ---- training on the bound -----------------------------------------------------------------------


class TwoHeads(nn.Module):
    """Returns ``a x + .1 t`` and a second head with one parameter for each step of the table."""

    def __init__(self, steps=4, v=0.3):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.4, dtype=D))
        self.v = nn.Parameter(torch.linspace(v, v + 0.5, steps, dtype=D))

    def forward(self, x, t, cond=None):
        t = t.reshape(-1, *(1,) * (x.ndim - 1))
        step = (t * len(self.v)).round().long() - 1
        bias = 0.0 if cond is None else cond
        return md.Output(self.a * x + 0.1 * t + bias, self.v[step].expand(x.shape))


def at_steps(*steps):
    return lambda schedule, n, rng: torch.tensor(steps, dtype=D) / 4


def textbook(step):
    """Return alpha-bar, the factor of x0 in mu-tilde, beta tilde (of step 2 for 1) and beta."""
    bars = [1.0, 0.9, 0.72, 0.432, 0.1296]
    bar, before, beta = bars[step], bars[step - 1], BETAS[step - 1]
    add = before**0.5 * beta / (1 - bar)
    tilde = (1 - before) / (1 - bar) * beta if step > 1 else (1 - 0.9) / (1 - 0.72) * 0.2
    return bar, add, tilde, beta


@each_event
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("decoder", ["gaussian", "discretised"])
def test_hybrid_loss_written_out(event, prediction, decoder):
    """eq:hybrid: L_simple + w T L_{t-1} / D at steps 1, 2, 4 and 1, the noise drawn again."""
    x0 = 2 * torch.tensor([0.0, 255.0, 100.0, 31.0], dtype=D) / 255 - 1
    x0 = x0.reshape(4, *(1,) * len(event)).expand(4, *event).contiguous()
    net, weight, steps = TwoHeads(), 0.02, (1, 2, 4, 1)
    model = md.Denoiser(net, TABLE, prediction)
    decode = {"gaussian": bounds.gaussian_decoder, "discretised": bounds.discretised_decoder}
    got = bounds.hybrid_loss(
        model, x0, weight=weight, decoder=decode[decoder], times=at_steps(*steps), rng=seed(1)
    )
    eps = torch.randn(x0.shape, generator=seed(1), dtype=D)
    for i, step in enumerate(steps):
        bar, add, tilde, beta = textbook(step)
        signal, noise = bar**0.5, (1 - bar) ** 0.5
        x = signal * x0[i] + noise * eps[i]
        y, v = 0.4 * x + 0.1 * step / 4, 0.3 + 0.5 * (step - 1) / 3
        target, guess = {
            "eps": (eps[i], (x - noise * y) / signal),
            "v": (signal * eps[i] - noise * x0[i], signal * x - noise * y),
            "x0": (x0[i], y),
        }[prediction]
        std = math.exp((v + 1) / 4 * math.log(beta) + (1 - v) / 4 * math.log(tilde))
        if step > 1:
            true, fit = Normal(add * x0[i], tilde**0.5), Normal(add * guess, std)
            bound = kl_divergence(true, fit)
        elif decoder == "gaussian":
            bound = -Normal(guess, std).log_prob(x0[i])
        else:
            model_cdf = Normal(guess, std).cdf
            low, high = model_cdf(x0[i] - 1 / 255), model_cdf(x0[i] + 1 / 255)
            low, high = (0 * low if i == 0 else low), (0 * high + 1 if x0[i].max() == 1 else high)
            bound = -torch.log(high - low)
        want = ((y - target) ** 2 + weight * 4 * bound).mean()
        assert float(got[i].detach()) == pytest.approx(float(want), rel=1e-8)
    assert got.shape == (4,)


def test_hybrid_loss_defaults():
    """Weight .001, the Gaussian decoder, uniform steps; the condition reaches the net."""
    x0, model = normal(50, 2), md.Denoiser(TwoHeads(), TABLE)
    got = bounds.hybrid_loss(model, x0, rng=seed(2))
    same = bounds.hybrid_loss(
        model,
        x0,
        cond=None,
        weight=0.001,
        decoder=bounds.gaussian_decoder,
        times=md.uniform_times,
        rng=seed(2),
    )
    assert torch.equal(got, same)
    none = bounds.hybrid_loss(model, x0, weight=0.0, rng=seed(2))
    torch.testing.assert_close(none, md.denoising_loss(model, x0, rng=seed(2)), **EXACT)
    moved = bounds.hybrid_loss(model, x0, cond=1.0, rng=seed(2))
    assert not torch.equal(moved, got)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_hybrid_loss_holds_the_mean_fixed(prediction):
    """The gradient of the first head is that of the simple loss alone; that of v comes from w."""
    x0, net = normal(40, 2), TwoHeads()
    model = md.Denoiser(net, TABLE, prediction)
    loss = bounds.hybrid_loss(model, x0, weight=10.0, rng=seed(3)).mean()
    simple = md.denoising_loss(model, x0, rng=seed(3)).mean()
    a, v = torch.autograd.grad(loss, [net.a, net.v])
    (want,) = torch.autograd.grad(simple, [net.a])
    torch.testing.assert_close(a, want, **EXACT)
    assert float(v.abs().min()) > 0


@pytest.mark.parametrize("step", [1, 2, 4])
def test_hybrid_gradient_vanishes_at_the_optimal_variance(step):
    """At sigma^2 = tilde + add^2 (x0 - guess)^2, in step 1 (x0 - guess)^2, v has no gradient."""
    x0 = torch.tensor([[0.8]], dtype=D)
    bar, add, tilde, beta = textbook(step)
    eps = torch.randn(1, 1, generator=seed(4), dtype=D)
    x = bar**0.5 * x0 + (1 - bar) ** 0.5 * eps
    guess = (x - (1 - bar) ** 0.5 * (0.4 * x + 0.1 * step / 4)) / bar**0.5
    gap = float(x0 - guess) ** 2
    best = gap if step == 1 else tilde + add**2 * gap
    v = 2 * math.log(best / tilde) / math.log(beta / tilde) - 1

    def slope(v):
        net = TwoHeads(v=v)
        with torch.no_grad():
            net.v.fill_(v)
        loss = bounds.hybrid_loss(
            md.Denoiser(net, TABLE), x0, times=at_steps(step), rng=seed(4)
        ).sum()
        return float(torch.autograd.grad(loss, net.v)[0][step - 1])

    assert abs(slope(v)) < 1e-12
    sign = math.copysign(1, math.log(beta / tilde))
    assert sign * slope(v + 0.1) > 1e-6 and sign * slope(v - 0.1) < -1e-6


def test_hybrid_loss_refuses_bad_input():
    x0, net = normal(3, 2), TwoHeads()

    def run(net=net, table=TABLE, x0=x0, times=md.uniform_times):
        return bounds.hybrid_loss(md.Denoiser(net, table), x0, times=times, rng=seed(0))

    with pytest.raises(ValueError, match="BetaTable"):
        run(table=md.VP())
    with pytest.raises(ValueError, match="BetaTable"):
        run(table=md.BetaTable(torch.tensor([0.5])))
    with pytest.raises(ValueError, match="NaN"):
        run(x0=x0 * math.nan)
    for t in (0.1, 0.0, 0.25 + 1e-5):
        with pytest.raises(ValueError, match=r"steps 1\.\.T"):
            run(times=lambda schedule, n, rng, t=t: torch.full((n,), t, dtype=D))
    with pytest.raises(ValueError, match=r"steps 1\.\.T"):
        run(times=at_steps(1, 2.5, 4))  # one is enough

    class Plain(nn.Module):
        def forward(self, x, t, cond=None):
            return x

    class Narrow(nn.Module):
        def forward(self, x, t, cond=None):
            return md.Output(x, x[:, :1])

    with pytest.raises(ValueError, match="no second output"):
        run(net=Plain())
    with pytest.raises(ValueError, match="second has shape"):
        run(net=Narrow())


def test_a_variance_an_example_is_not_one_an_entry():
    """A variance of shape (B,) belongs to examples, also where B equals the last axis."""
    x0, mean = torch.zeros(3, 3, dtype=torch.float64), torch.ones(3, 3, dtype=torch.float64)
    var = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    got = bounds.gaussian_decoder(x0, mean, var)
    for i, v in enumerate(var.tolist()):
        want = -0.5 * (math.log(2 * math.pi * v) + 1 / v)
        assert got[i].tolist() == pytest.approx([want] * 3, rel=1e-12)
    with pytest.raises(ValueError, match="give shape"):
        bounds.gaussian_decoder(x0, mean, torch.ones(2))
    times = md.grids.uniform(3)
    each = md.likelihood.vlb(
        lambda x, t: 0 * x, md.VP(), x0, times, variance=lambda move: var,
        rng=torch.Generator().manual_seed(0),
    )  # fmt: skip
    for i, v in enumerate(var.tolist()):
        one = md.likelihood.vlb(
            lambda x, t: 0 * x, md.VP(), x0, times, variance=lambda move, v=v: v,
            rng=torch.Generator().manual_seed(0),
        )  # fmt: skip
        torch.testing.assert_close(each.total[i], one.total[i])
