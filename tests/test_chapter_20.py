"""Chapter 20: the conditional chain and its bound, two denoisers, what is hidden, and scores."""

import itertools
import math

import pytest
import torch
from paths import D, data, each_path, perturbed, seeded, vector

import minidiff as md
from minidiff import scoring
from minidiff.apps import csdi
from minidiff.data import Windows
from minidiff.nets import series
from minidiff.tensors import masked_mean

# ---- the conditional chain -----------------------------------------------------------------------

BETAS = vector(0.1, 0.25, 0.4, 0.7)
BAR = torch.cat([vector(1.0), (1 - BETAS).cumprod(0)])
T = len(BETAS)
# a model that is wrong on purpose: p(x_{t-1} | x_t, o) = N(a x_t + b o + c, v), for t = 1..T
MODEL = [(0.9, 0.2, 0.1, 0.05), (0.8, -0.1, 0.0, 0.2), (0.5, 0.4, -0.2, 0.3), (0.7, 0.3, 0.1, 0.6)]


def log_normal(gap2, var):
    return -0.5 * (math.log(2 * math.pi * var) + gap2 / var)


def noised(x0):
    """Mean and covariance of (x_0, .., x_T) under q, given x_0; the first entry is fixed."""
    mean = BAR.sqrt() * x0
    low, high = torch.minimum(BAR[:, None], BAR), torch.maximum(BAR[:, None], BAR)
    return mean, (low / high).sqrt() * (1 - high)


def modelled(o):
    """Mean and covariance of (x_0, .., x_T) under the model, given the known value o."""
    mean, cov = torch.zeros(T + 1, dtype=D), torch.zeros(T + 1, T + 1, dtype=D)
    cov[T, T] = 1.0
    for t in range(T, 0, -1):
        a, b, c, v = MODEL[t - 1]
        mean[t - 1] = a * mean[t] + b * o + c
        cov[t - 1, t:] = cov[t:, t - 1] = a * cov[t, t:]
        cov[t - 1, t - 1] = a * a * cov[t, t] + v
    return mean, cov


@pytest.mark.parametrize("x0, o", [(0.3, 1.2), (-1.5, 0.4), (2.0, -2.0)])
def test_the_bound_given_what_is_known(x0, o):
    """eq:conditional-bound: densities of whole paths against the sum of its terms, to 1e-10.

    All is Gaussian: means of quadratic forms under q are traces. The bound also lies above the
    model's own -log p(x_0 | o), and the gap is the divergence of the paths given both ends.
    """
    mean_q, cov_q = noised(x0)
    mean_p, cov_p = modelled(o)
    inverse, gap = torch.linalg.inv(cov_p), mean_q - mean_p
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * cov_q[1:, 1:]))
    cross = float(
        0.5 * torch.logdet(2 * math.pi * cov_p)
        + 0.5 * (inverse @ (cov_q + gap[:, None] * gap)).trace()
    )
    whole = cross - entropy

    last = 0.5 * (1 - BAR[T] - 1 - math.log(1 - BAR[T]) + BAR[T] * x0**2)
    a, b, c, v = MODEL[0]
    shift = a * mean_q[1] + b * o + c - x0
    total = float(last) - log_normal(float(shift) ** 2 + a * a * float(1 - BAR[1]), v)
    for t in range(2, T + 1):
        a, b, c, v = MODEL[t - 1]
        small = float((1 - BAR[t - 1]) / (1 - BAR[t]) * BETAS[t - 1])
        keep = float((1 - BETAS[t - 1]).sqrt() * (1 - BAR[t - 1]) / (1 - BAR[t]))
        add = float(BAR[t - 1].sqrt() * BETAS[t - 1] / (1 - BAR[t]))
        shift = (keep - a) * float(mean_q[t]) + add * x0 - b * o - c
        square = shift**2 + (keep - a) ** 2 * float(1 - BAR[t])
        total += 0.5 * (math.log(v / small) - 1 + (small + square) / v)
    assert whole == pytest.approx(total, abs=1e-10)

    truth = -log_normal(float(x0 - mean_p[0]) ** 2, float(cov_p[0, 0]))
    gain = cov_p[1:, 0] / cov_p[0, 0]
    back = mean_p[1:] + gain * (x0 - mean_p[0])
    left = cov_p[1:, 1:] - gain[:, None] * cov_p[0, 1:]
    inside, shift = torch.linalg.inv(left), mean_q[1:] - back
    divergence = 0.5 * (
        (inside @ (cov_q[1:, 1:] + shift[:, None] * shift)).trace()
        - T
        + torch.logdet(left)
        - torch.logdet(cov_q[1:, 1:])
    )
    assert divergence > 0.01
    assert whole - float(divergence) == pytest.approx(truth, abs=1e-9)


@pytest.mark.parametrize("t", [2, 3, 4])
def test_a_step_back_does_not_ask_what_is_known(t):
    """eq:step-given-known: Gaussian u and o with correlation .8; condition the joint of
    (u, o, x_{t-1}, x_t) on the other three. The factor of o is 0, those of the others are
    eq:posterior, the variance is beta-tilde: to 1e-12.
    """
    rho, alpha, now, before = 0.8, float(1 - BETAS[t - 1]), float(BAR[t]), float(BAR[t - 1])
    # rows: u, o, noise up to t - 1, fresh noise
    root = torch.tensor([[1, 0], [rho, math.sqrt(1 - rho**2)]], dtype=D)
    make = torch.zeros(4, 4, dtype=D)
    make[:2, :2] = root
    make[2] = vector(before**0.5, 0, (1 - before) ** 0.5, 0)
    make[3] = alpha**0.5 * make[2] + vector(0, 0, 0, (1 - alpha) ** 0.5)
    cov = make @ make.T
    given = [0, 1, 3]
    factors = torch.linalg.solve(cov[given][:, given], cov[given][:, 2])
    want = vector(before**0.5 * (1 - alpha) / (1 - now), 0, alpha**0.5 * (1 - before) / (1 - now))
    torch.testing.assert_close(factors, want, rtol=0, atol=1e-12)
    left = float(cov[2, 2] - factors @ cov[given][:, 2])
    assert left == pytest.approx((1 - before) / (1 - now) * (1 - alpha), abs=1e-12)


# ---- two denoisers -------------------------------------------------------------------------------

MEAN = vector(0.4, -0.7, 1.1, 0.2)
ROOT = data(4, 4, seed=3)
COV = ROOT @ ROOT.T / 4 + 0.3 * torch.eye(4, dtype=D)
SEEN = torch.tensor([True, False, True, False])


def at(path, t):
    level = path(torch.tensor(t, dtype=D))
    return float(level.signal), float(level.noise)


@each_path
@pytest.mark.parametrize("t", [0.2, 0.7])
def test_the_best_denoiser_given_what_is_known(path, t):
    """eq:conditional-optimum: least squares on (noisy unknown, clean known), solved from the joint
    covariance, is the oracle's denoiser, to 1e-9; eq:price-of-blindness: a denoiser that sees the
    known part noised as well pays the mean square between the two.
    """
    s, n = at(path, t)
    o, u = SEEN, ~SEEN
    eye = torch.eye(2, dtype=D)
    # the covariance of x_u with what is seen, and of what is seen, for clean known entries
    cross = torch.cat([s * COV[u][:, u], COV[u][:, o]], 1)
    seen = torch.cat(
        [
            torch.cat([s * s * COV[u][:, u] + n * n * eye, s * COV[u][:, o]], 1),
            torch.cat([s * COV[o][:, u], COV[o][:, o]], 1),
        ]
    )
    best = torch.linalg.solve(seen, cross.T).T
    values = MEAN + data(4, seed=5)
    law = md.exact.ConditionalGaussian(MEAN, COV, values, SEEN)
    x = data(6, 4, seed=6)
    got = law.denoiser(path)(x, torch.tensor(t, dtype=D))[:, u]
    what = torch.cat([x[:, u] - s * MEAN[u], (values[o] - MEAN[o]).expand(6, 2)], 1)
    torch.testing.assert_close(got, MEAN[u] + what @ best.T, rtol=0, atol=1e-9)
    sharp = (COV[u][:, u] - best @ cross.T).trace()

    # the same with known entries that are noised: x_t = s x_0 + n eps, for all four
    wide = s * s * COV + n * n * torch.eye(4, dtype=D)
    blind = torch.linalg.solve(wide, s * COV[:, u]).T
    blurred = (COV[u][:, u] - blind @ (s * COV[:, u])).trace()
    x0 = MEAN + data(3, 4, seed=7)
    mixture = md.GaussianMixture.full(MEAN[None], COV[None])
    noisy = s * x0 + n * data(3, 4, seed=8)
    got = mixture.denoiser(path)(noisy, torch.tensor(t, dtype=D))[:, u]
    torch.testing.assert_close(got, MEAN[u] + (noisy - s * MEAN) @ blind.T, rtol=0, atol=1e-9)
    # difference of the two as a linear function of (x_0, eps), all eight standardised
    sees = torch.zeros(4, 8, dtype=D)  # rows: noisy unknown, clean known
    sees[:2, :4], sees[:2, 4:] = s * torch.eye(4, dtype=D)[u], n * torch.eye(4, dtype=D)[u]
    sees[2:, :4] = torch.eye(4, dtype=D)[o]
    blurs = torch.cat([s * torch.eye(4, dtype=D), n * torch.eye(4, dtype=D)], 1)
    source = torch.block_diag(COV, torch.eye(4, dtype=D))
    gap = best @ sees - blind @ blurs
    price = (gap @ source @ gap.T).trace()
    assert float(blurred) == pytest.approx(float(sharp + price), rel=1e-9)
    assert price > 1e-5 * min(n, 1) ** 4


@pytest.mark.parametrize("rho", [0.5, 0.8, -0.9])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_two_entries(rho, t):
    """eq:two-entries and eq:replace-shortfall, to 1e-9, with the exact denoisers of the package.

    The mean over z and over x_2 given v is a mean of a linear function: it is the function at the
    mean, s v for the shown entry and s rho v for the noisy one.
    """
    path, v = md.Cosine(), 1.7
    s, n = at(path, t)
    cov = torch.tensor([[1, rho], [rho, 1]], dtype=D)
    zero, time = torch.zeros(2, dtype=D), torch.tensor(t, dtype=D)
    known = torch.tensor([True, False])
    law = md.exact.ConditionalGaussian(zero, cov, vector(v, 0.0), known)
    x = vector(-2.0, 0.3, 1.9)
    got = law.denoiser(path)(torch.stack([torch.zeros(3, dtype=D), x], 1), time)[:, 1]
    k = s * (1 - rho**2) / (s**2 * (1 - rho**2) + n**2)
    torch.testing.assert_close(got, rho * v + k * (x - s * rho * v), rtol=0, atol=1e-9)
    blind = md.GaussianMixture.full(zero[None], cov[None]).denoiser(path)
    mean = float(blind(vector(s * v, s * rho * v)[None], time)[0, 1])
    assert mean == pytest.approx(rho * v * (1 - n**4 / (1 - s**4 * rho**2)), abs=1e-9)
    # and by drawing z and x_2: 200,000 draws, within 4.5 standard errors
    z = data(200_000, 2, seed=1)
    shown = s * v + n * z[:, 0]
    other = s * rho * v + math.sqrt(s**2 * (1 - rho**2) + n**2) * z[:, 1]
    drawn = blind(torch.stack([shown, other], 1), time)[:, 1]
    assert float(drawn.mean()) == pytest.approx(mean, abs=4.5 * float(drawn.std()) / 200_000**0.5)


# ---- what is hidden ------------------------------------------------------------------------------

TABLE = vector(0.20, 0.05, 0.05, 0.10, 0.20, 0.05, 0.05, 0.05, 0.25).reshape(3, 3)  # p(k, u)


def test_missing_at_random():
    """eq:missing-at-random: three values each of a known k and another u, which may be missing.

    The law of u given k among the rows in which u is missing. The odds that u is missing: one
    number; a function of k; a function of u. Only the third changes the law.
    """
    given = TABLE / TABLE.sum(1, keepdim=True)
    for odds, same in (
        (torch.full((3, 3), 0.3, dtype=D), True),
        (vector(0.1, 0.5, 0.9)[:, None].expand(3, 3), True),
        (vector(0.1, 0.5, 0.9).expand(3, 3), False),
    ):
        found = TABLE * odds
        found = found / found.sum(1, keepdim=True)
        assert torch.allclose(found, given, atol=1e-12) == same


@pytest.mark.parametrize("power", [0, 1, 3])
def test_one_ratio_or_a_mean_of_ratios(power):
    """eq:two-averages: windows with h = 1..n of n = 400 values hidden, the error of each r^power.

    One ratio tends to 2/(power + 2), the mean of ratios to 1/(power + 1); sums over h differ from
    the integrals by less than (power + 2)/n.
    """
    n = 400
    hidden = torch.arange(n) < torch.arange(1, n + 1)[:, None]
    error = ((torch.arange(1, n + 1, dtype=D) / n) ** power)[:, None].expand(n, n)
    error = torch.where(hidden, error, 99.0)
    whole = float(masked_mean(error, hidden))
    each = float(masked_mean(error, hidden, dim=(1,)).mean())
    assert whole == pytest.approx(2 / (power + 2), abs=(power + 2) / n if power else 1e-12)
    assert each == pytest.approx(1 / (power + 1), abs=(power + 2) / n if power else 1e-12)


def test_the_loss_is_the_ratio_and_not_the_mean_of_ratios():
    """The loss of CSDI weighs every hidden value alike: a net that errs by 1 in a window with one
    hidden value, and not at all in one with nine, has a tenth, not a half.
    """
    values = torch.zeros(2, 5, 2, dtype=D)
    batch = Windows(values, torch.ones(2, 5, 2, dtype=torch.bool), torch.arange(5).expand(2, 5))
    known = torch.ones(2, 5, 2, dtype=torch.bool)
    known[0, 0, 0] = False
    known[1] = False
    known[1, 0, 0] = True
    table = md.BetaTable(md.quadratic_betas(50))

    class Wrong(torch.nn.Module):
        """Knows the noise (x0 is 0), and is off by 1 in the first window."""

        def forward(self, x, t, cond):
            noise = table(t).noise.reshape(-1, 1, 1)
            return x / noise + torch.tensor([1.0, 0.0], dtype=D).reshape(2, 1, 1)

    got = csdi.loss(md.Denoiser(Wrong(), table), batch, lambda o, rng: known, rng=seeded())
    assert float(got) == pytest.approx(0.1, rel=1e-9)


# ---- the network ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length, k", [(24, 15), (7, 3), (1, 4), (6, 1)])
def test_the_cost_of_two_attentions(length, k, monkeypatch):
    """eq:two-attentions: count the scores q k that every call of attention computes."""
    counted = []

    def counting(q, keys, v, heads):
        counted.append(q.shape[0] * q.shape[1] * keys.shape[1])
        return v

    monkeypatch.setattr(series, "attend", counting)
    net = series.SeriesTransformer(k, width=8, blocks=2, heads=2)
    shape, n = (3, length, k), 3
    shown = series.Observed(
        torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), torch.zeros(n, length)
    )
    net(torch.zeros(shape), torch.zeros(n), shown)
    over_time, over_channels = k * length**2, length * k**2
    want = (over_time if length > 1 else 0) + (over_channels if k > 1 else 0)
    assert sum(counted) == 2 * n * want
    if length > 1 and k > 1:
        assert (length * k) ** 2 / want == pytest.approx(length * k / (length + k))


def block(width=4, seed=0):
    return perturbed(series.SeriesBlock(width, 6, 2, 0.0), seed)


def test_one_block_passes_on_what_it_cannot_look_at():
    """Along time, then across channels: after one block the last token depends on each token, of
    any hour and any channel, though no attention pairs it with most of them.
    """
    h = data(1, 5, 3, 4).requires_grad_()
    hours, known = data(1, 5, 6, seed=1), torch.zeros(1, 5, 3, 1, dtype=D)
    out, _ = block()(h, data(1, 4, seed=2), hours, data(3, series.NAMES, seed=3), known)
    (pull,) = torch.autograd.grad(out[0, -1, -1].sum(), h)
    assert float(pull.abs().amax(3).min()) > 1e-9


def test_the_block_written_out():
    """eq:series-block for one hour and one channel, where both attentions are left out, to 1e-12;
    then for a window, with the block's own two attention layers, channel by channel, hour by hour.
    """
    b, n, width = block(), 2, 4
    names = data(3, series.NAMES, seed=4)
    for length, k in ((1, 1), (5, 3)):
        h, step, hours = data(n, length, k, width), data(n, width, seed=1), data(n, length, 6)
        known = (data(n, length, k, 1, seed=2) > 0).to(D)
        got_h, got_skip = b(h, step, hours, names[:k], known)
        y = h + (step @ b.step.weight.T + b.step.bias)[:, None, None]
        if length > 1:
            y = torch.stack([b.time(y[:, :, j]) for j in range(k)], 2)
            y = torch.stack([b.channel(y[:, i]) for i in range(length)], 1)
        gate = y @ b.gates.weight.T + b.gates.bias
        gate = gate + (hours @ b.hours.weight.T)[:, :, None] + names[:k] @ b.name.weight.T
        gate = gate + known @ b.known.weight.T
        opened = torch.tanh(gate[..., width:]) / (1 + torch.exp(-gate[..., :width]))
        out = opened @ b.out.weight.T + b.out.bias
        torch.testing.assert_close(got_h, (h + out[..., :width]) / math.sqrt(2), rtol=0, atol=1e-12)
        torch.testing.assert_close(got_skip, out[..., width:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 4])
def test_the_variance_is_kept(blocks):
    """eq:kept-variance: blocks that return a constant each; its factor in the last state, found by
    setting one constant to 1. The squares of all factors add up to 1.
    """
    zeros = torch.zeros(1, 1, 1, 4, dtype=D)
    hours, names = torch.zeros(1, 1, 6, dtype=D), torch.zeros(1, series.NAMES, dtype=D)
    factors = []
    for j in range(blocks + 1):
        h = zeros + (1.0 if j == 0 else 0.0)
        for i in range(1, blocks + 1):
            b = block()
            with torch.no_grad():
                b.out.weight.zero_()
                b.out.bias.fill_(1.0 if i == j else 0.0)
            h, _ = b(h, zeros[0, 0], hours, names, zeros[..., :1])
        factors.append(h[0, 0, 0, 0].item())
    want = [2 ** (-blocks / 2)] + [2 ** (-(blocks + 1 - j) / 2) for j in range(1, blocks + 1)]
    assert factors == pytest.approx(want, abs=1e-12)
    assert sum(f * f for f in factors) == pytest.approx(1, abs=1e-12)


def test_the_levels_of_csdi():
    """eq:csdi-levels: products of 1 - beta in plain Python, to the digits printed; the package's
    table the same to 1e-12.
    """
    first, last, bar, bars = 1e-4**0.5, 0.5**0.5, 1.0, []
    for i in range(50):
        bar *= 1 - (first + i / 49 * (last - first)) ** 2
        bars.append(bar)
    printed = {1: 0.9999, 2: 0.999313, 10: 0.930586, 25: 0.324990}
    assert all(round(bars[i - 1], 6) == value for i, value in printed.items())
    assert bars[49] == pytest.approx(3.354e-5, abs=5e-9)
    got = md.BetaTable(md.quadratic_betas(50)).alpha_bars
    torch.testing.assert_close(got.to(D), torch.tensor(bars, dtype=D), rtol=1e-12, atol=0)


# ---- the spread of a chain -----------------------------------------------------------------------

KINDS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # variances given what is known
BARS = [1.0]
for _i in range(50):
    BARS.append(BARS[-1] * (1 - (1e-2 + _i / 49 * (0.5**0.5 - 1e-2)) ** 2))
GRIDS = {
    50: list(range(50, -1, -1)),
    25: [50, 48, 46, 44, 42, 40, 38, 36, 34, 32, 30, 28, 26, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3,
         1, 0],
    10: [50, 45, 39, 34, 28, 23, 17, 12, 6, 1, 0],
}  # fmt: skip


def doubt(c2, t):
    """Variance of the clean value given x_t, for conditional variance c2."""
    return c2 * (1 - BARS[t]) / (BARS[t] * c2 + 1 - BARS[t])


def kept(c2, steps, fresh, own=None, start=1.0):
    """Variance at the end of a chain over c2: v <- (keep + add k)^2 v + fresh, in plain Python.

    ``fresh`` names the variance; ``own`` is the doubt that ``best`` uses, default the exact one.
    """
    v = start
    for t, s in itertools.pairwise(GRIDS[steps]):
        now, before = BARS[t], BARS[s]
        alpha = now / before
        keep, add = alpha**0.5 * (1 - before) / (1 - now), before**0.5 * (1 - alpha) / (1 - now)
        small = (1 - alpha) * (1 - before) / (1 - now)
        noise = {"small": small, "large": 1 - alpha}.get(fresh)
        if noise is None:
            noise = small + add**2 * (own(t) if own else doubt(c2, t))
        slope = now**0.5 * c2 / (now * c2 + 1 - now)
        v = (keep + add * slope) ** 2 * v + (noise if s > 0 else 0.0)
    return v / c2


def six(x, t, table):
    """The exact denoiser of six centred Gaussian values with the variances KINDS."""
    at, c2 = table(t), vector(*KINDS)
    return at.signal * c2 / (at.signal**2 * c2 + at.noise**2) * x


@pytest.mark.parametrize("steps, fresh, printed", [
    (50, "small", (0.606, 0.696, 0.764, 0.824, 0.862, 0.887)),
    (25, "small", (0.434, 0.536, 0.621, 0.701, 0.756, 0.786)),
    (10, "small", (0.169, 0.285, 0.371, 0.448, 0.520, 0.564)),
    (50, "large", (1.378, 1.244, 1.160, 1.093, 1.045, 1.000)),
    (10, "large", (5.832, 3.217, 2.358, 1.651, 1.275, 1.000)),
    (50, "best", (0.968, 0.990, 0.997, 0.999, 1.000, 1.000)),
    (25, "best", (0.968, 0.990, 0.997, 0.999, 1.000, 1.000)),
    (10, "best", (0.968, 0.990, 0.997, 0.999, 1.000, 1.000)),
])  # fmt: skip
def test_what_a_chain_keeps(steps, fresh, printed):
    """The table of the page, to its digits, and 20,000 chains of the package's sampler.

    A variance has a relative standard error of sqrt(2 / 20,000) = .01.
    """
    found = [kept(c2, steps, fresh) for c2 in KINDS]
    assert found == pytest.approx(printed, abs=5.001e-4)
    if fresh == "best":
        return  # run with a measured doubt below
    table = md.BetaTable(md.quadratic_betas(50))
    times = md.grids.linspaced(50, steps)
    assert [round(50 * float(t)) for t in times] == GRIDS[steps]
    variance = md.posterior_variance if fresh == "small" else md.forward_variance
    walk = md.ancestral(
        lambda x, t: six(x, t, table), table, data(20_000, 6, seed=9), times,
        variance=variance, rng=seeded(1),
    )  # fmt: skip
    ratio = md.last(walk).var(0) / vector(*KINDS)
    torch.testing.assert_close(ratio, vector(*found), rtol=4.5 * 0.01, atol=0)


@pytest.mark.parametrize("steps, share, covered", [
    (50, 0.606, 0.80), (50, 0.887, 0.88), (10, 0.169, 0.50), (10, 0.564, 0.78),
])  # fmt: skip
def test_a_narrow_interval_covers_less(steps, share, covered):
    """What a 90 % interval of a Gaussian covers with this share of the variance."""
    assert share in {round(kept(c2, steps, "small"), 3) for c2 in KINDS}
    reach = 1.6448536 * share**0.5
    assert math.erf(reach / math.sqrt(2)) == pytest.approx(covered, abs=0.005)


@pytest.mark.parametrize("steps", GRIDS)
@pytest.mark.parametrize("c2", KINDS)
def test_what_the_last_stop_takes(steps, c2):
    """eq:last-stop: the recursion from the exact variance at the start, to 1e-12."""
    signal2, noise2 = 1 - 1e-4, 1e-4
    start = BARS[50] * c2 + 1 - BARS[50]
    got = kept(c2, steps, "best", start=start)
    assert got == pytest.approx(signal2 * c2 / (signal2 * c2 + noise2), abs=1e-12)


@pytest.mark.parametrize("steps", [50, 10])
def test_a_measured_variance_keeps_the_spread(steps):
    """The doubt of six channels measured with the exact denoiser, then 20,000 chains with it.

    Each measured doubt, and the variance at the end, has a relative standard error of .01; the
    first weighs less than it would alone, because its errors at different stops are independent.
    """
    table, times = md.BetaTable(md.quadratic_betas(50)), md.grids.linspaced(50, steps)
    x0 = data(20_000, 6, seed=11) * vector(*KINDS).sqrt()
    cov = md.covariances.residual_covariance(
        lambda x, t: six(x, t, table), table, x0, times, keep=(1,), rng=seeded(12)
    )
    walk = md.ancestral(
        lambda x, t: six(x, t, table), table, data(20_000, 6, seed=13), times,
        variance=md.variance.analytic(cov), rng=seeded(14),
    )  # fmt: skip
    ratio = md.last(walk).var(0) / vector(*KINDS)
    want = vector(0.968, 0.990, 0.997, 0.999, 1.0, 1.0)
    torch.testing.assert_close(ratio, want, rtol=4.5 * 0.01 * 2**0.5, atol=0)


@pytest.mark.parametrize("kind", ["exact", "off", "blind"])
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_error_is_doubt_plus_own_error(kind, t):
    """eq:residual-parts: two values with correlation .8, the first known; the error for the second.

    x, D and m are linear in independent (v, e, eps): x = .8 v + .6 e, x_t = s x + n eps. Both sides
    are then sums of squares of coefficients (and of a shift), to 1e-12. And
    eq:residual-covariance on 40,000 pairs: x - D is Gaussian with mean -b and variance V, so its
    square has the variance 2 V^2 + 4 V b^2; within 4.5 standard errors.
    """
    path, N = md.Cosine(), 40_000
    s, n = at(path, t)
    gain = s * 0.36 / (s**2 * 0.36 + n**2)
    on_v, on_x, b = {
        "exact": (0.8 - gain * s * 0.8, gain, 0.0),
        "off": (0.9 * (0.8 - gain * s * 0.8), 1.2 * gain, 0.3),
        "blind": (0.0, s, 0.0),  # the best guess from x_t alone, whose variance is 1
    }[kind]
    x, noisy = vector(0.8, 0.6, 0.0), vector(0.8 * s, 0.6 * s, n)
    first = vector(1.0, 0.0, 0.0)
    guess = on_v * first + on_x * noisy
    best = (0.8 - gain * s * 0.8) * first + gain * noisy
    spread = float((x - guess).square().sum())
    own = float((guess - best).square().sum()) + b**2
    assert spread + b**2 == pytest.approx(doubt_given(0.36, s, n) + own, abs=1e-12)
    assert (own == 0.0) == (kind == "exact")

    pairs = data(N, 2, seed=21)
    x0 = torch.stack([pairs[:, 0], pairs @ vector(0.8, 0.6)], 1)
    known = torch.tensor([True, False]).expand(N, 2)

    def denoise(x, t):
        second = on_v * x[:, 0] + on_x * x[:, 1] + b
        return torch.stack([torch.full_like(second, math.nan), second], 1).where(~known, x)

    times = torch.tensor([t, 0.0], dtype=D)
    cov = md.covariances.residual_covariance(denoise, path, x0, times, known=known, rng=seeded(22))
    room = 4.5 * ((2 * spread**2 + 4 * spread * b**2) / N) ** 0.5
    assert float(cov(path(times[0]))) == pytest.approx(spread + b**2, abs=room)


def doubt_given(c2, s, n):
    """Variance of a Gaussian value of variance c2, looked at through signal s and noise n."""
    return 1 / (1 / c2 + s * s / (n * n))


@pytest.mark.parametrize("steps, narrow, wide, difference, total, each", [
    (50, 1.17, 0.94, 1.10, 0.94, 0.95), (10, 3.23, 0.77, 1.81, 0.78, 0.84),
])  # fmt: skip
def test_one_doubt_for_two(steps, narrow, wide, difference, total, each):
    """Conditional variances .003 and .3 that share their mean doubt; then .1 twice, correlation .9,
    whose sum and difference (variances .19 and .01 on unit vectors) get the doubt of an entry.
    """
    both = lambda t: (doubt(0.003, t) + doubt(0.3, t)) / 2  # noqa: E731
    assert kept(0.003, steps, "best", both) == pytest.approx(narrow, abs=0.005)
    assert kept(0.3, steps, "best", both) == pytest.approx(wide, abs=0.005)
    entry = lambda t: (doubt(0.01, t) + doubt(0.19, t)) / 2  # noqa: E731
    down, up = kept(0.01, steps, "best", entry), kept(0.19, steps, "best", entry)
    assert (down, up) == pytest.approx((difference, total), abs=0.005)
    assert (0.01 * down + 0.19 * up) / 0.2 == pytest.approx(each, abs=0.005)


# ---- scores --------------------------------------------------------------------------------------


def integral(f, low, high, n=200_000):
    """Midpoint rule."""
    z = low + (high - low) * (torch.arange(n, dtype=D) + 0.5) / n
    return float(f(z).mean() * (high - low))


@pytest.mark.parametrize("y", [-0.5, 0.3, 2.5])
def test_three_forms_of_the_crps(y):
    """eq:crps-distances and eq:crps-pinball for an exponential law, F = 1 - e^-z.

    E|X - y| = y + 2 e^-y - 1 for y > 0, else 1 - y, and E|X - X'| = 1 by hand. The midpoint rule
    over 200,000 pieces errs by at most one piece where the integrand jumps: 3e-4.
    """
    cdf = lambda z: 1 - torch.exp(-z.clamp(min=0))  # noqa: E731
    whole = integral(lambda z: (cdf(z) - (z >= y).to(D)) ** 2, -1.0, 40.0)
    error = y + 2 * math.exp(-y) - 1 if y > 0 else 1 - y
    assert whole == pytest.approx(error - 0.5, abs=3e-4)

    def pinball(a):
        q = -torch.log1p(-a)
        return 2 * torch.maximum(a * (y - q), (a - 1) * (y - q))

    assert integral(pinball, 0.0, 1.0) == pytest.approx(error - 0.5, abs=3e-4)


@pytest.mark.parametrize("S", [1, 2, 4])
def test_the_bias_of_few_samples(S):
    """eq:crps-bias: X takes 0, 1, 4 with odds .5, .3, .2; all 3^S samples are enumerated, 1e-12."""
    points, odds = (0.0, 1.0, 4.0), (0.5, 0.3, 0.2)
    law = list(zip(points, odds, strict=True))
    spread = sum(p * q * abs(a - b) for a, p in law for b, q in law)
    for y in (-1.0, 0.5, 3.0):
        exact = sum(p * abs(a - y) for a, p in law) - spread / 2
        mean = 0.0
        for draw in itertools.product(law, repeat=S):
            samples = torch.tensor([[a] for a, _ in draw], dtype=D)
            score = float(scoring.crps_ensemble(samples, vector(y)))
            mean += math.prod(p for _, p in draw) * score
        assert mean == pytest.approx(exact + spread / (2 * S), abs=1e-12)


def test_the_expected_crps_is_least_at_the_truth():
    """eq:crps-proper: the truth N(0, 1), forecasts N(m, s^2); its two parts by the midpoint rule,
    against the mean of the closed form over 20,000 equal shares of the truth, to 2e-4.
    """
    phi = torch.special.ndtr
    y = torch.special.ndtri((torch.arange(20_000, dtype=D) + 0.5) / 20_000)
    floor = integral(lambda z: phi(z) * (1 - phi(z)), -12, 12)
    assert floor == pytest.approx(1 / math.sqrt(math.pi), abs=1e-9)
    for m, s in ((0.0, 1.0), (0.5, 1.0), (0.0, 0.6), (-0.3, 2.0)):
        gap = integral(lambda z, m=m, s=s: (phi((z - m) / s) - phi(z)) ** 2, -20, 20)
        w = (y - m) / s
        density = torch.exp(-w * w / 2) / math.sqrt(2 * math.pi)
        crps = s * (w * (2 * phi(w) - 1) + 2 * density - 1 / math.sqrt(math.pi))
        assert float(crps.mean()) == pytest.approx(floor + gap, abs=2e-4)
        assert gap == 0.0 if (m, s) == (0.0, 1.0) else gap > 0.01


def test_nineteen_levels():
    """eq:nineteen-levels: the mean loss of a right forecast, from 19 densities and from samples.

    21 samples have the 19 quantiles and two ends that no level reads; targets stand at 20,000
    equal shares, whose mean is good to 1e-5. Times the mean size of the target: no ratio is left.
    """
    z = torch.special.ndtri(torch.arange(1, 20, dtype=D) / 20)
    want = float((2 * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)).mean())
    assert want == pytest.approx(0.5914, abs=5e-5)
    assert 1 / math.sqrt(math.pi) == pytest.approx(0.5642, abs=5e-5)
    assert want * math.sqrt(math.pi) == pytest.approx(1.048, abs=5e-4)
    y = torch.special.ndtri((torch.arange(20_000, dtype=D) + 0.5) / 20_000)
    samples = torch.cat([vector(-9.0), z, vector(9.0)])[:, None].expand(21, 20_000)
    got = scoring.crps_quantile(samples, y) * float(y.abs().mean())
    assert got == pytest.approx(want, abs=2e-5)


@pytest.mark.parametrize("S, printed", [(25, 0.831), (50, 0.865), (100, 0.882)])
def test_coverage_between_samples(S, printed):
    """90 % of a right Gaussian forecast, where .05 (S - 1) is not whole: above eq:coverage-ranks,
    by .004 or less. The chance of a target, averaged over 40,000 sets of samples, and 4 standard
    errors for what is claimed of its mean (one is .0003 with 25 samples).
    """
    samples = data(S, 40_000, seed=S).sort(0).values
    place = 0.05 * (S - 1)
    k, part = int(place), place % 1
    low = torch.lerp(samples[k], samples[k + 1], part)
    high = torch.lerp(samples[S - 1 - k], samples[S - 2 - k], part)
    inside = torch.special.ndtr(high) - torch.special.ndtr(low)
    above, error = float(inside.mean()) - 0.9 * (S - 1) / (S + 1), float(inside.std()) / 200
    assert -4 * error < above < 0.004 and (S > 50 or above > 4 * error)
    assert 0.9 * (S - 1) / (S + 1) == pytest.approx(printed, abs=5e-4)


def test_a_turned_indicator_rewards_narrow_forecasts():
    """The bug of ex-bug-indicator for a standard normal truth and forecasts of spread s.

    The quantile s z_a then pays (1 - a) for each unit that it is too low and a for each that it is
    too high; the mean over z is (1 - a)(-q) + phi(q) + q Phi(q) with q = s z_a, by the lines above
    eq:nineteen-levels. Increasing in s; the right loss is least at 1.
    """
    a = torch.arange(1, 100, dtype=D) / 100
    z = torch.special.ndtri(a)

    def mean(s, level):
        q = s * z
        density = torch.exp(-q * q / 2) / math.sqrt(2 * math.pi)
        return float(2 * (density + q * torch.special.ndtr(q) - level * q).mean())

    wrong = [mean(s, 1 - a) for s in (0.0, 0.25, 0.5, 1.0, 2.0)]
    right = [mean(s, a) for s in (0.0, 0.25, 0.5, 1.0, 2.0)]
    assert wrong == sorted(wrong) and right.index(min(right)) == 3
    drawn = data(20_000, seed=3)  # the loss as the exercise writes it, to 4.5 standard errors
    loss = (2 * (drawn - z[:, None]) * ((drawn >= z[:, None]).to(D) - a[:, None])).abs().mean(0)
    assert float(loss.mean()) == pytest.approx(wrong[3], abs=4.5 * float(loss.std()) / 20_000**0.5)
