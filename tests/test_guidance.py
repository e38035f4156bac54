"""Guidance: each rule written out, right where the answer is exact, and wrong by a known amount."""

import math
from typing import NamedTuple

import pytest
import torch
from paths import D, data, each_path, seeded

import minidiff as md
from minidiff import guidance as G

T = torch.tensor(0.5, dtype=D)
PATH = md.LinearPath()  # at t = 1/2 and t = 3/4 the ratio noise/signal is exactly 1 and 3
TIMES = (0.03, 0.2, 0.5, 0.8, 0.97)


def num(value):
    return torch.tensor(value, dtype=D)


def a(x, t):
    return torch.sin(x) + md.tensors.bcast(t, x)


def b(x, t):
    return 2 * x - md.tensors.bcast(t, x)


# ---- clip and cfg -------------------------------------------------------------------------


def test_clip():
    """min(max(x0, low), high), entry by entry."""
    x = torch.tensor([[-3.0, -0.2, 0.1, 5.0]], dtype=D)
    got = md.clip(lambda x, t: 2 * x, -1, 0.5)(x, T)
    assert got.tolist() == [[-1, -0.4, 0.2, 0.5]]


def test_cfg_is_linear():
    """free + scale (cond - free): 0 and 1 are the two parts to the bit, and 3 is written out."""
    x = data(4, 2)
    assert torch.equal(md.cfg(a, b, 0.0)(x, T), b(x, T))
    assert torch.equal(md.cfg(a, b, 1.0)(x, T), a(x, T))
    got = md.cfg(a, b, 3.0)(x, T)
    torch.testing.assert_close(got, 3 * a(x, T) - 2 * b(x, T), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(md.cfg(a, b, 0.5)(x, T), (a(x, T) + b(x, T)) / 2)


@pytest.mark.parametrize(("scale", "calls"), [(0, (0, 1)), (1, (1, 0)), (2.5, (1, 1))])
def test_cfg_asks_no_more_than_it_needs(scale, calls):
    cond, free = md.count_calls(a), md.count_calls(b)
    md.cfg(cond, free, scale)(data(2, 2), T)
    assert (cond.calls, free.calls) == calls


def test_cfg_is_the_rule_of_ho_and_salimans():
    """In eps: (1 + w) eps_c - w eps, with w = scale - 1."""
    path, x, w = md.VP(), data(3, 2), 1.7
    at = path(0.5)
    eps = {f: md.eps_from_x0(f(x, T), x, at) for f in (a, b)}
    want = (1 + w) * eps[a] - w * eps[b]
    got = md.eps_from_x0(md.cfg(a, b, 1 + w)(x, T), x, at)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_cfg_sharpens_an_exact_conditional():
    """score = score_free + scale grad log p(c | x): its gradient by autograd, on a mixture."""
    path, x = md.Cosine(), data(5, 1).requires_grad_()
    both = md.GaussianMixture(torch.tensor([[1.0], [-1.0]], dtype=D), 0.5)
    one = md.Gaussian(torch.tensor([1.0], dtype=D), torch.tensor([0.5], dtype=D))
    log_c = one.log_prob(x, T, path) - both.log_prob(x, T, path)  # log p(c | x) - log p(c)
    (pull,) = torch.autograd.grad(log_c.sum(), x)
    x = x.detach()
    guided = md.cfg(one.denoiser(path), both.denoiser(path), 2.5)(x, T)
    want = both.score(x, T, path) + 2.5 * pull
    torch.testing.assert_close(md.score_from_x0(guided, x, path(T)), want, rtol=1e-9, atol=1e-9)


# ---- a classifier -------------------------------------------------------------------------


class Labelled(NamedTuple):
    """A mixture whose first two components are class c: all of it, c alone, and p(c)."""

    all: md.GaussianMixture
    one: md.GaussianMixture
    share: float

    def log_c(self, path):
        """The exact classifier: log p(c | x_t), by Bayes' rule from the two densities."""
        return lambda x, t: (
            self.one.log_prob(x, t, path) - self.all.log_prob(x, t, path) + math.log(self.share)
        )


def labelled(*event):
    means, stds = data(4, *event, seed=3), data(4, *event, seed=4).exp() / 2
    w = num([0.1, 0.3, 0.2, 0.4])
    return Labelled(
        md.GaussianMixture(means, stds, w), md.GaussianMixture(means[:2], stds[:2], w[:2]), 0.4
    )


@each_path
@pytest.mark.parametrize("event", [(), (1,), (3,), (2, 2, 2)], ids=str)
def test_exact_classifier_gives_the_exact_conditional(path, event):
    """eq:classifier at scale 1 is Bayes' rule: E[x0 | x_t, c], at every level and shape.

    Both sides are closed forms in double precision; the pull noise^2/signal is up to 6000, and so
    is the factor on rounding.
    """
    mix, x = labelled(*event), data(6, *event)
    guided = md.classifier(mix.all.denoiser(path), path, mix.log_c(path), 1.0)
    exact = mix.one.denoiser(path)
    for t in TIMES:
        at = path(t)
        x_t = float(at.noise) * x + float(at.signal) * data(6, *event, seed=1)
        torch.testing.assert_close(guided(x_t, num(t)), exact(x_t, num(t)), rtol=1e-10, atol=1e-10)


def test_exact_classifier_and_one_time_for_each_example():
    """Times of shape (B,), the clean one among them; float32 in, float32 out."""
    path, mix, x = md.VP(), labelled(2), data(5, 2)
    t = num([0.0, 0.1, 0.4, 0.7, 0.9])
    guided = md.classifier(mix.all.denoiser(path), path, mix.log_c(path), 1.0)
    want = mix.one.denoiser(path)(x, t)
    torch.testing.assert_close(guided(x, t), want, rtol=1e-10, atol=1e-10)
    got = guided(x.float(), t.float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want.float(), rtol=1e-3, atol=1e-3)


@each_path
@pytest.mark.parametrize("scale", [0, 0.5, 1, 2.5, 7])
def test_cfg_is_the_classifier_that_the_model_implies(path, scale):
    """eq:cfg-bayes: both rules at one scale are one function, for any scale."""
    mix, x = labelled(3), data(6, 3)
    free, cond = mix.all.denoiser(path), mix.one.denoiser(path)
    for t in TIMES:
        x_t = float((path(t).noise ** 2 + path(t).signal ** 2).sqrt()) * x
        got = md.classifier(free, path, mix.log_c(path), scale)(x_t, num(t))
        want = (1 - scale) * free(x_t, num(t)) + scale * cond(x_t, num(t))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(md.cfg(cond, free, scale)(x_t, num(t)), want)


def test_classifier_written_out():
    """eq:classifier for log p = -t |x|^3 / 3, whose gradient is -t x |x|: at x_t, at time t.

    On the linear path noise^2/signal is t^2 / (1 - t). Dhariwal and Nichol say the same of the
    noise: eps - noise * scale * gradient.
    """
    seen = []

    def log_prob(x, t):
        seen.append((x, t))
        return -(t * x.abs() ** 3 / 3).sum(1)

    x, t, scale = data(4, 3), num(0.3), 1.7
    x0 = md.classifier(a, PATH, log_prob, scale)(x, t)
    gradient = -0.3 * x * x.abs()
    torch.testing.assert_close(
        x0, torch.sin(x) + 0.3 + scale * 0.3**2 / 0.7 * gradient, rtol=1e-12, atol=1e-12
    )
    assert len(seen) == 1 and torch.equal(seen[0][0], x) and seen[0][1] is t
    eps = (x - 0.7 * (torch.sin(x) + 0.3)) / 0.3
    torch.testing.assert_close((x - 0.7 * x0) / 0.3, eps - 0.3 * scale * gradient)


def test_classifier_and_a_time_for_each_position():
    """t of shape (B, L, 1): each position is pulled by its own noise^2 / signal."""
    x, t = data(2, 3, 2), torch.rand(2, 3, 1, dtype=D, generator=seeded(1)) * 0.9
    got = md.classifier(a, PATH, lambda x, t: (x**2).sum((1, 2)), 0.5)(x, t)
    torch.testing.assert_close(got, torch.sin(x) + t + 0.5 * t**2 / (1 - t) * 2 * x)


def test_a_classifier_of_clean_data_misleads():
    """The exact classifier of x0, asked about x_t, errs by far more than rounding: .5 here."""
    path, mix, x = md.VP(), labelled(1), data(50, 1)
    clean = mix.log_c(path)
    guided = md.classifier(mix.all.denoiser(path), path, lambda x, t: clean(x, num(0.0)), 1.0)
    error = guided(x, T) - mix.one.denoiser(path)(x, T)
    assert float(error.abs().mean()) > 0.5


# ---- an energy ----------------------------------------------------------------------------


@each_path
def test_energy_written_out(path):
    """eq:energy with D = a x + b and E = |x0 - c|^2 / (2 tau^2): the gradient is
    a (D - c) / tau^2, through the denoiser.
    """
    x, c, tau, scale = data(4, 2, 3), data(4, 2, 3, seed=1), 0.7, 1.3
    for t in TIMES:
        at = path(t)
        guided = md.energy(
            lambda x, t: 0.6 * x - 0.2,
            path,
            lambda x0: ((x0 - c) ** 2).sum((1, 2)) / (2 * tau**2),
            scale,
        )
        x0 = 0.6 * x - 0.2
        pull = float(at.noise) ** 2 / float(at.signal)
        want = x0 - scale * pull * 0.6 * (x0 - c) / tau**2
        torch.testing.assert_close(guided(x, num(t)), want, rtol=1e-12, atol=1e-12)


def test_energy_moves_by_the_posterior_covariance():
    """eq:energy-cov: noise^2/signal dD/dx is Var[x0 | x_t], so the prediction moves by
    Var * E'(D). The variance is a ratio of integrals on 20001 points, good to 1e-9.
    """
    path, t, x = md.VP(), num(0.4), num([[-0.7], [0.1], [1.2]])
    at = path(t)
    means, stds, w = num([-1.0, 0.5]), num([0.3, 0.6]), num([0.3, 0.7])
    grid = torch.linspace(-8, 8, 20001, dtype=D)
    prior = sum(
        w[k] / stds[k] * torch.exp(-((grid - means[k]) ** 2) / (2 * stds[k] ** 2)) for k in (0, 1)
    )
    weights = prior * torch.exp(-((x - at.signal * grid) ** 2) / (2 * at.noise**2))
    weights = weights / weights.sum(1, keepdim=True)
    mean = (weights * grid).sum(1, keepdim=True)
    var = (weights * (grid - mean) ** 2).sum(1, keepdim=True)
    free = md.GaussianMixture(means[:, None], stds, w).denoiser(path)
    got = md.energy(free, path, lambda x0: torch.cosh(x0).sum(1), 0.8)(x, t)
    torch.testing.assert_close(got, mean - 0.8 * var * torch.sinh(mean), rtol=1e-8, atol=1e-8)


STD, TAU, AIM, MEAN = 1.3, 0.8, 0.9, -0.4  # data N(MEAN, STD^2), E = (x0 - AIM)^2 / (2 TAU^2)


def aimed(path):
    """Energy guidance over the exact denoiser of one Gaussian."""
    free = md.Gaussian(num([MEAN]), num([STD])).denoiser(path)
    return md.energy(free, path, lambda x0: ((x0 - AIM) ** 2).sum(1) / (2 * TAU**2), 1.0)


@each_path
def test_energy_overshoots_by_a_known_factor(path):
    """eq:energy-bias: the right move times 1 + V/tau^2, with V the posterior variance.

    Right is the exact posterior mean of the tilted Gaussian, a Gaussian itself: it is computed
    from its own mean and variance, not from the move. Both are closed forms, hence 1e-9. With
    little noise V vanishes and the rule is right; with much V is the variance of the data.
    """
    var = 1 / (1 / STD**2 + 1 / TAU**2)  # of the tilted data
    mean = var * (MEAN / STD**2 + AIM / TAU**2)
    factors = []
    for t in TIMES:
        at, t = path(t), num(t)
        s, n2 = float(at.signal), float(at.noise) ** 2
        x = math.sqrt(s**2 + n2) * data(5, 1)
        right = mean + s * var / (s**2 * var + n2) * (x - s * mean)
        free = MEAN + s * STD**2 / (s**2 * STD**2 + n2) * (x - s * MEAN)
        factors.append(1 + STD**2 * n2 / (s**2 * STD**2 + n2) / TAU**2)
        want = free + factors[-1] * (right - free)
        torch.testing.assert_close(aimed(path)(x, t), want, rtol=1e-9, atol=1e-9)
    assert factors == sorted(factors) and factors[-1] < 1 + STD**2 / TAU**2
    assert factors[0] < 1.03 and factors[-1] > 0.9 * (1 + STD**2 / TAU**2)


def dawson_like(r):
    """r exp(-r/2) times the integral of exp(r q^2 / 2) over [0, 1], by the trapezoid rule."""
    q = torch.linspace(0, 1, 20001, dtype=D)
    return r * math.exp(-r / 2) * float(torch.trapezoid(torch.exp(r * q**2 / 2), q))


@pytest.mark.parametrize("path", [md.Cosine(), md.LinearPath()], ids=["Cosine", "LinearPath"])
@pytest.mark.parametrize("tau", [2.0, 1.0, 0.5])
def test_energy_samples_where_it_should_not(path, tau):
    """eq:energy-samples: data N(0, 1), r = 1/tau^2; guided samples against the tilted N(r c/(1+r),
    1/(1+r)).

    The guided denoiser is a straight line, so the flow is one too and two starts say all. The flow
    ends at variance exp(-r) and the mean of an integral. Heun with 300 steps from log-SNR -16 on:
    what the start forgets is of order exp(-8), what the steps miss is measured as 4e-4.
    At r = 4 the mean passes c itself: 1.28 c, where .8 c is right.
    """
    c, r = 1.5, 1 / tau**2
    free = md.Gaussian(num([0.0]), num([1.0])).denoiser(path)
    denoise = md.energy(free, path, lambda x0: ((x0 - c) ** 2).sum(1) / (2 * tau**2), 1.0)
    times = md.grids.log_snr(path, 300, low=-16, high=12)
    at = path(times[0])
    ends = md.last(md.heun(denoise, path, num([[0.0], [1.0]]), times))
    mean, slope = float(ends[0]), float(ends[1] - ends[0])
    var = slope**2 * float(at.signal**2 + at.noise**2)
    assert mean == pytest.approx(c * dawson_like(r), rel=2e-3)
    assert var == pytest.approx(math.exp(-r), rel=4e-3)
    assert mean > 1.1 * c * r / (1 + r) and var < 0.98 / (1 + r)
    assert (mean > c) == (tau == 0.5)


@pytest.mark.parametrize("tau", [1.0, 0.5])
def test_energy_with_noise_in_the_sampler_is_less_wrong(tau):
    """eq:energy-samples for the chain with noise: mean c (1 - exp(-r)), variance
    (1 - exp(-2r)) / (2r).

    40,000 chains of 300 steps: 5 standard errors, and 2 % for the chain's deficit of order 1/N.
    """
    path, c, r, n = md.Cosine(), 1.5, 1 / tau**2, 40_000
    free = md.Gaussian(num([0.0]), num([1.0])).denoiser(path)

    def denoise(x, t):  # eq:energy with the gradient by hand: test_energy_written_out ties the two
        at = path(t)
        v = at.noise**2 / (at.signal**2 + at.noise**2)
        x0 = free(x, t)
        return x0 - v * (x0 - c) / tau**2

    times = md.grids.log_snr(path, 300, low=-12, high=8)
    x = md.prior(path, (n, 1), at=times[0], rng=seeded(1), dtype=D)
    probe = md.energy(free, path, lambda x0: ((x0 - c) ** 2).sum(1) / (2 * tau**2), 1.0)
    torch.testing.assert_close(probe(x[:9], times[99]), denoise(x[:9], times[99]))
    x = md.last(md.ancestral(denoise, path, x, times, rng=seeded(2)))
    mean, var = c * (1 - math.exp(-r)), (1 - math.exp(-2 * r)) / (2 * r)
    assert float(x.mean()) == pytest.approx(mean, rel=0.01, abs=5 * math.sqrt(var / n))
    assert float(x.var()) == pytest.approx(var, rel=5 * math.sqrt(2 / n) + 0.02)
    assert abs(mean - c * r / (1 + r)) < abs(c * dawson_like(r) - c * r / (1 + r))


# ---- what guidance does to samples ----------------------------------------------------------


def test_cfg_overshoots():
    """Two classes N(.5, .5^2) and N(-.5, .5^2), guided towards the first with w = scale - 1.

    Starts are 1001 equally likely points and the flow draws nothing, so there is no luck. Without
    guidance the samples are the class: p(c|x) .775 on average, mean .5, std .5. With it they
    crowd: surer and surer, narrower and narrower, and further and further beyond the class.
    Nor are they samples of p(x) p(c|x)^scale (by quadrature): they are narrower than that, too.
    """
    path, m, std = md.VP(), 0.5, 0.5
    both, one = md.GaussianMixture(num([[m], [-m]]), std), md.Gaussian(num([m]), num([std]))
    free, cond = both.denoiser(path), one.denoiser(path)
    times = md.grids.log_snr(path, 150, low=-9, high=9)
    share = (torch.arange(1001, dtype=D) + 0.5) / 1001
    start = torch.special.ndtri(share)[:, None]
    grid = torch.linspace(-5, 5, 4001, dtype=D)
    rows = []
    for w in (0, 0.5, 1, 2, 4):
        x = md.last(md.dpmpp_2m(md.cfg(cond, free, 1 + w), path, start, times))
        tilted = torch.exp(-((grid - m) ** 2) / (2 * std**2)) * torch.sigmoid(4 * grid) ** w
        tilted = tilted / tilted.sum()
        centre = (tilted * grid).sum()
        spread = float((tilted * (grid - centre) ** 2).sum().sqrt())
        p = torch.sigmoid(2 * m * x / std**2)  # p(c | x), equal shares
        rows.append((float(p.mean()), float(x.mean()), float(x.std()), spread))
    sure, mean, spread, target = zip(*rows, strict=True)
    assert sure == pytest.approx((0.775, 0.864, 0.919, 0.967, 0.991), abs=3e-3)
    assert mean == pytest.approx((0.50, 0.67, 0.80, 1.01, 1.30), abs=0.01)
    assert spread == pytest.approx((0.500, 0.428, 0.380, 0.326, 0.278), abs=4e-3)
    assert target == pytest.approx((0.500, 0.457, 0.431, 0.401, 0.372), abs=1e-3)


# ---- interval -----------------------------------------------------------------------------


def test_interval_is_open_below_and_closed_above():
    """eq:interval with low < ratio <= high; the linear path has ratio t / (1 - t)."""
    x, limited = data(2, 3), G.interval(a, b, PATH, low=1, high=3)
    for t, on in [(0, 0), (0.4, 0), (0.5, 0), (0.51, 1), (0.75, 1), (0.76, 0), (0.9, 0), (1, 0)]:
        want = torch.sin(x) + t if on else 2 * x - t
        assert torch.equal(limited(x, num(float(t))), want), t


def test_interval_at_the_ends_of_the_path():
    """No signal is a ratio of infinity, which only high = inf holds; clean data has ratio 0."""
    x = data(2, 3)
    for path in (PATH, md.Cosine()):
        assert torch.equal(G.interval(a, b, path, low=0, high=1e9)(x, num(1.0)), b(x, num(1.0)))
        ever = G.interval(a, b, path, low=0, high=math.inf)
        assert torch.equal(ever(x, num(1.0)), a(x, num(1.0)))
        assert torch.equal(ever(x, num(0.0)), b(x, num(0.0)))
        assert torch.equal(ever(x, num(1e-6)), a(x, num(1e-6)))


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 2, 2)])
def test_interval_mixes_examples(shape):
    """Times of shape (B,): each example by its own level. Positions, too: shape (B, L, 1)."""
    x, t = data(*shape), num([0.0, 0.5, 0.6, 0.75, 0.9])
    got = G.interval(a, b, PATH, low=1, high=3)(x, t.reshape(-1, *[1] * (len(shape) - 1)))
    if len(shape) < 3:
        assert torch.equal(got, G.interval(a, b, PATH, low=1, high=3)(x, t))
    for i, on in enumerate([0, 0, 1, 1, 0]):
        assert torch.equal(got[i], torch.sin(x[i]) + t[i] if on else 2 * x[i] - t[i])


def test_interval_per_position():
    x, t = data(2, 2, 3), num([[0.2, 0.6], [0.7, 0.95]])[..., None]
    got = G.interval(a, b, PATH, low=1, high=3)(x, t)
    want = torch.stack([2 * x[0, 0] - 0.2, torch.sin(x[0, 1]) + 0.6, torch.sin(x[1, 0]) + 0.7])
    assert torch.equal(torch.stack([got[0, 0], got[0, 1], got[1, 0]]), want)
    assert torch.equal(got[1, 1], 2 * x[1, 1] - 0.95)


def test_interval_asks_no_more_than_it_needs():
    """Outside the guided denoiser is not called, inside the plain one is not; a mixed batch needs
    both.
    """
    guided, plain = md.count_calls(a), md.count_calls(b)
    limited = G.interval(guided, plain, PATH, low=1, high=3)
    for t, calls in [
        (num(0.2), (0, 1)),
        (num(0.6), (1, 1)),
        (num([0.6, 0.7]), (2, 1)),
        (num([0.1, 0.9]), (2, 2)),
        (num([0.1, 0.6]), (3, 3)),
    ]:
        limited(data(2, 3), t)
        assert (guided.calls, plain.calls) == calls


# ---- dynamic threshold --------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 7), (4, 2, 3, 3), (4,)])
@pytest.mark.parametrize(("quantile", "floor"), [(0.5, 1.0), (0.9, 0.3), (1.0, 2.0), (0.37, 0.7)])
def test_dynamic_threshold_written_out(shape, quantile, floor):
    """eq:threshold, an example at a time in plain Python: sort, interpolate, clip, shrink."""
    x = 2 * data(*shape) * torch.arange(4, dtype=D).reshape(4, *[1] * (len(shape) - 1))
    got = G.dynamic_threshold(lambda x, t: x, quantile=quantile, floor=floor)(x, T)
    for row, back in zip(x.reshape(4, -1).tolist(), got.reshape(4, -1).tolist(), strict=True):
        sizes = sorted(abs(v) for v in row)
        place = quantile * (len(sizes) - 1)
        k = min(int(place), max(len(sizes) - 2, 0))
        above = sizes[min(k + 1, len(sizes) - 1)]
        s = max(floor, sizes[k] + (place - k) * (above - sizes[k]))
        want = [min(max(v, -s), s) * floor / s for v in row]
        assert back == pytest.approx(want, rel=1e-12, abs=1e-12)
    assert got.shape == x.shape


def test_dynamic_threshold_never_leaves_the_range():
    """To the last bit, in every dtype; what lies inside passes bit for bit."""
    for dtype in (D, torch.float32, torch.float16):
        x = 30 * data(200, 9).to(dtype)
        for floor in (0.75, 1.0, 1.25):
            limited = G.dynamic_threshold(lambda x, t: x, quantile=0.6, floor=floor)
            got = limited(x, T)
            top = torch.tensor(floor, dtype=dtype)
            assert got.dtype == dtype and bool((got.abs() <= top).all())
            assert bool((got.abs() == top).any(1).all())  # each example uses its whole range
            inside = x.clamp(-floor, floor)
            assert torch.equal(limited(inside, T), inside)


def test_dynamic_threshold_of_the_paper():
    """Defaults: the 99.5 % quantile and the range [-1, 1]; one wild pixel is cut, not followed."""
    x = torch.full((1, 401), 0.5, dtype=D)
    x[0, 7] = 50.0  # 400 * .995 = 398: the two largest do not move the quantile
    assert G.dynamic_threshold(lambda x, t: x)(x, T).unique().tolist() == [0.5, 1.0]
    x[0, :3] = 4.0
    assert G.dynamic_threshold(lambda x, t: x)(x, T).unique().tolist() == [0.125, 1.0]


# ---- all of them --------------------------------------------------------------------------

KNOWN, VALUES = torch.tensor([True, False]), torch.full((3, 2), 0.25, dtype=D)
WRAPPED = {
    "clip": lambda d: md.clip(d, -0.5, 0.5),
    "cfg": lambda d: md.cfg(d, b, 2.0),
    "interval": lambda d: G.interval(d, b, PATH, low=0.5, high=2),
    "classifier": lambda d: md.classifier(d, PATH, lambda x, t: (x**2).sum(1), 0.3),
    "energy": lambda d: md.energy(d, PATH, lambda x0: (x0**2).sum(1), 0.3),
    "threshold": lambda d: G.dynamic_threshold(d, quantile=0.5, floor=0.6),
    "rounded": lambda d: G.rounded(d, num([[0.0, 1.0], [1.0, 0.0]])),
    "inpaint": lambda d: md.inpaint(d, VALUES, KNOWN),
    "replace": lambda d: md.replace(d, PATH, VALUES, KNOWN, rng=seeded()),
}
each_wrapper = pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())


@each_wrapper
@pytest.mark.parametrize("t", [T, num([0.2, 0.5, 0.8])], ids=["one time", "times"])
def test_wrappers_leave_no_trace(wrap, t, global_state_untouched):
    """One call of the denoiser; no graph on the result; the inputs as they were; the same inside
    no_grad.
    """
    x, counted = data(3, 2), md.count_calls(a)
    before, time = x.clone(), t.clone()
    got = wrap(counted)(x, t)
    assert counted.calls == 1
    assert got.grad_fn is None and not got.requires_grad
    assert torch.equal(x, before) and not x.requires_grad and x.grad is None
    assert torch.equal(t, time)
    assert got.shape == x.shape and got.dtype == x.dtype and got.data_ptr() != x.data_ptr()
    with torch.no_grad():
        assert torch.equal(wrap(a)(x, t), got)
        assert not torch.is_grad_enabled()


@each_wrapper
@each_path
def test_wrappers_run_in_samplers_and_inside_each_other(wrap, path):
    """Under inpainting, over clipping: known entries to the bit, no graph in any state."""
    denoise = md.inpaint(wrap(md.clip(a, -1, 1)), VALUES, KNOWN)
    times = md.grids.uniform(6, start=0.9)
    for sampler in (md.ddim, md.heun):
        for state in sampler(denoise, path, data(3, 2), times):
            assert not state.x.requires_grad and bool(torch.isfinite(state.x).all())
        assert torch.equal(state.x[:, 0], VALUES[:, 0])


def test_wrappers_compose_written_out():
    """threshold(interval(energy(classifier(.)))): four rules by hand, at t = 1/2 with pull 1/2."""
    x = data(3, 2)
    inner = md.classifier(lambda x, t: 0.5 * x, PATH, lambda x, t: (x**2).sum(1) / 2, 0.2)
    outer = md.energy(inner, PATH, lambda x0: (x0**2).sum(1) / 2, 0.4)
    outer = G.dynamic_threshold(G.interval(outer, b, PATH, low=0.9, high=1.0), quantile=1)
    x0 = 0.5 * x + 0.2 * 0.5 * x  # the classifier's gradient is x
    x0 = x0 - 0.4 * 0.5 * (0.5 + 0.2 * 0.5) * x0  # the energy's runs through both
    want = x0 / x0.abs().amax(1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(outer(x, T), want, rtol=1e-12, atol=1e-12)


def test_a_guided_denoiser_has_the_right_slope():
    """Who differentiates through guidance gets the exact conditional's slope, not a part of it."""
    path, mix, x = md.VP(), labelled(3), data(1, 3)
    guided = md.classifier(mix.all.denoiser(path), path, mix.log_c(path), 1.0)
    slope = torch.autograd.functional.jacobian(lambda x: guided(x, T), x)
    want = torch.autograd.functional.jacobian(lambda x: mix.one.denoiser(path)(x, T), x)
    torch.testing.assert_close(slope, want, rtol=1e-9, atol=1e-9)
    at, x = path(T), data(1, 1)
    v = float(STD**2 * at.noise**2 / (at.signal**2 * STD**2 + at.noise**2))
    line = float(at.signal / at.noise**2) * v * (1 - v / TAU**2)
    slope = torch.autograd.functional.jacobian(lambda x: aimed(path)(x, T), x)
    assert float(slope) == pytest.approx(line, rel=1e-9)


def test_likelihood_of_a_class_through_guidance():
    """The flow of the guided denoiser has the density of the class, by its exact log_prob.

    40 Runge-Kutta steps between log-SNR 12 and -10: 1e-3 covers both ends.
    """
    path, mix = md.Cosine(), labelled(1)
    guided = md.classifier(mix.all.denoiser(path), path, mix.log_c(path), 1.0)
    x0 = mix.one.sample(4, rng=seeded())
    times = md.grids.log_snr(path, 40, low=-14, high=11, land=False).flip(0)
    got = md.likelihood.ode_log_likelihood(guided, path, x0, times)
    torch.testing.assert_close(got, mix.one.log_prob(x0, 0.0, path), rtol=0, atol=2e-3)


# ---- refusals -----------------------------------------------------------------------------

GUIDED = {
    "log_prob": lambda f, path=PATH: md.classifier(a, path, lambda x, t: f(x), 1.0),
    "energy": lambda f, path=PATH: md.energy(a, path, f, 1.0),
}


@pytest.mark.parametrize(("name", "guided"), GUIDED.items(), ids=GUIDED.keys())
def test_gradients_refuse_when_asked(name, guided):
    """One value an example, and one that has a gradient."""
    x = data(2, 3)
    for f in (torch.sum, lambda x: x, lambda x: x.sum(1, keepdim=True), lambda x: x.sum(0)):
        with pytest.raises(ValueError, match=f"{name} returned shape .* for 2 examples"):
            guided(f)(x, T)
    with pytest.raises(ValueError, match=f"{name} returned a value without a gradient"):
        guided(lambda x: x.detach().sum(1))(x, T)
    weight = num(1.0).requires_grad_()  # a network's weights have a gradient, x has none
    with pytest.raises(ValueError, match=f"{name} returned a value without a gradient in x"):
        guided(lambda x: weight * x.detach().sum(1))(x, T)
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode"):
        guided(total)(x, T)


@pytest.mark.parametrize(("name", "guided"), GUIDED.items(), ids=GUIDED.keys())
def test_gradients_need_signal(name, guided):
    """Signal below 1e-6 is refused, 1e-6 itself is not; one such example is enough."""

    def faint(signal):
        return lambda t: md.Level(num(signal), num(0.5), num(0.0), num(0.0))

    x = data(2, 3)
    for path, t in [(md.Cosine(), num(1.0)), (PATH, num(1.0)), (PATH, num([0.5, 1.0]))]:
        with pytest.raises(ValueError, match="signal=0 is below 1e-06"):
            guided(total, path)(x, t)
    with pytest.raises(ValueError, match="start the grid below t = 1"):
        guided(total, faint(0.99e-6))(x, T)
    assert bool(torch.isfinite(guided(total, faint(1e-6))(x, T)).all())


def test_wrappers_compose():
    """Clip inside, guidance, inpainting outside: a plain nest of calls."""
    values, known = torch.full((2, 2), 5.0, dtype=D), torch.tensor([True, False])
    denoise = md.inpaint(md.clip(md.cfg(a, b, 2.0), -1, 1), values, known)
    got = denoise(data(2, 2), T)
    assert bool((got[:, 0] == 5).all()) and float(got[:, 1].abs().max()) <= 1


def total(x, t=None):
    return x.reshape(len(x), -1).sum(1)


def test_the_ends_of_the_ranges_are_allowed():
    """Scale 0 and below, low 0, high infinity, quantile 1: none of them raises when built."""
    x = data(2, 3)
    assert torch.equal(md.classifier(a, PATH, total, 0.0)(x, T), a(x, T))
    assert torch.equal(md.energy(a, PATH, total, 0.0)(x, T), a(x, T))
    up, down = (md.classifier(a, PATH, total, s)(x, T) - a(x, T) for s in (1, -1))
    torch.testing.assert_close(up, -down, rtol=1e-12, atol=1e-12)
    assert torch.equal(G.interval(a, b, PATH, low=0, high=math.inf)(x, T), a(x, T))


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.clip(a, 1, -1), "low=1, high=-1"),
        (lambda: md.clip(a, 0, 0), "low=0"),
        (lambda: md.clip(a, math.nan, 1), "low=nan"),
        (lambda: md.cfg(a, b, -0.5), "scale=-0.5"),
        (lambda: md.cfg(a, b, math.nan), "scale=nan"),
        (lambda: md.cfg(a, b, math.inf), "scale=inf"),
        (lambda: G.interval(a, b, PATH, low=-0.1, high=1), "low=-0.1, high=1"),
        (lambda: G.interval(a, b, PATH, low=1, high=1), "low=1, high=1"),
        (lambda: G.interval(a, b, PATH, low=2, high=1), "low=2, high=1"),
        (lambda: G.interval(a, b, PATH, low=0, high=math.nan), "high=nan"),
        (lambda: md.classifier(a, PATH, total, math.nan), "scale=nan"),
        (lambda: md.classifier(a, PATH, total, math.inf), "scale=inf"),
        (lambda: md.energy(a, PATH, total, math.nan), "scale=nan"),
        (lambda: G.dynamic_threshold(a, quantile=0), "quantile=0"),
        (lambda: G.dynamic_threshold(a, quantile=1.01), "quantile=1.01"),
        (lambda: G.dynamic_threshold(a, quantile=math.nan), "quantile=nan"),
        (lambda: G.dynamic_threshold(a, floor=0), "floor=0"),
        (lambda: G.dynamic_threshold(a, floor=math.inf), "floor=inf"),
        (lambda: G.dynamic_threshold(a, floor=math.nan), "floor=nan"),
    ],
)
def test_wrappers_refuse_at_the_call(call, word):
    """When they are built, not when they are first asked."""
    with pytest.raises(ValueError, match=word):
        call()


def test_energy_in_numbers():
    """eq:energy-samples at r = 4, as the page quotes it: means in units of a, and variances."""
    r, q = 4.0, torch.linspace(0, 1, 100_001, dtype=D)
    flow = r * math.exp(-r / 2) * float(torch.trapezoid(torch.exp(r * q**2 / 2), q))
    got = (r / (1 + r), flow, 1 - math.exp(-r), 1 / (1 + r), math.exp(-r))
    assert got == pytest.approx((0.80, 1.28, 0.98, 0.2, 0.018), abs=5e-3)
    assert (1 - math.exp(-2 * r)) / (2 * r) == pytest.approx(0.125, abs=5e-4)
