"""Chapter 19, forecasts: the chain rule over hours, the bound given a state, an oracle, and scores.

Most tests need nothing but Gaussian series, whose laws are linear algebra. Where no tolerance is
explained it is 1e-9 or less: rounding in float64.
"""

import math

import pytest
import torch
from paths import D, data, perturbed, seeded, vector
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import minidiff as md
from minidiff import scoring
from minidiff.apps.heads import DiffusionHead
from minidiff.apps.recurrent import mean_scale
from minidiff.exact import AR1, VAR
from minidiff.nets import ChannelConvolutions

A = torch.tensor([[[0.6, 0.2], [-0.1, 0.5]], [[0.1, 0.0], [0.2, -0.3]]], dtype=D)
C = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=D)
B = vector(0.3, -0.2)
SERIES = VAR(A, C, B)
PAST = torch.tensor([[[1.0, -1.0], [0.5, 2.0]]], dtype=D)


def ar1(a, var, length, first):
    """Mean and covariance of the next values of x' = a x + z, z ~ N(0, var), by a product matrix.

    x = M z + a^i first, where M is lower triangular with a^(i - j); nothing of minidiff is used.
    """
    i = torch.arange(length, dtype=D)
    gap = i[:, None] - i
    M = torch.where(gap >= 0, a ** gap.clamp(min=0), torch.zeros(()).double())
    return a ** (i + 1) * first, var * M @ M.T


# ---- paths -----------------------------------------------------------------------------------


def test_a_path_is_a_product_of_hours():
    """eq:path-joint: the joint density of four hours is the product of one-step densities, each
    given the hours before, for 20 paths; one step by hand from A, b and C.
    """
    mean, cov = SERIES.predictive(PAST, 4)
    joint = MultivariateNormal(mean.flatten(), cov.reshape(8, 8))
    path = mean + data(20, 4, 2)
    whole = torch.cat([PAST.expand(20, 2, 2), path], 1)
    total = torch.zeros(20, dtype=D)
    for n in range(2, 6):
        step = MultivariateNormal(B + whole[:, n - 1] @ A[0].T + whole[:, n - 2] @ A[1].T, C)
        total += step.log_prob(whole[:, n])
    torch.testing.assert_close(joint.log_prob(path.flatten(1)), total, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("a", [0.0, 0.5, 0.95])
def test_the_mean_of_a_day(a):
    """eq:day-mean: hours add their variances and twice each covariance; by loops and by algebra."""
    H = 24
    _, cov = ar1(a, 1.0, H, 0.0)
    ours = AR1(a, 1.0).predictive(torch.zeros(1, dtype=D), H).cov
    pairs = sum(float(ours[i, j]) for i in range(H) for j in range(H) if i < j)
    want = (sum(float(ours[i, i]) for i in range(H)) + 2 * pairs) / H**2
    weights = torch.full((H,), 1 / H, dtype=D)
    assert float(weights @ cov @ weights) == pytest.approx(want, rel=1e-12)
    alone = float(ours.diagonal().sum()) / H**2  # hours as if they were independent
    assert (want > 2 * alone) == (a >= 0.5)
    if a == 0.95:  # the text: too sure by a factor of 3.7 in standard deviations
        assert 3.7 < math.sqrt(want / alone) < 3.8


@pytest.mark.parametrize("wrong", [(0.5, 1.0), (0.8, 0.7), (-0.3, 2.0)])
def test_surprises_of_the_hours_add_up(wrong):
    """eq:kl-chain: the divergence of two laws of six hours is the sum, over the hours, of the mean
    divergence of their next-hour laws, the mean taken over true pasts.
    """
    (a, v), (b, w), first, H = (0.8, 1.0), wrong, 1.5, 6
    true, model = (MultivariateNormal(*ar1(*p, H, first)) for p in ((a, v), (b, w)))
    mean, cov = ar1(a, v, H, first)
    total = 0.0
    for n in range(H):  # x_n before hour n + 1: given for n = 0
        square = first**2 if n == 0 else float(mean[n - 1] ** 2 + cov[n - 1, n - 1])
        total += 0.5 * (v / w - 1 - math.log(v / w)) + (a - b) ** 2 * square / (2 * w)
    assert float(kl_divergence(true, model)) == pytest.approx(total, rel=1e-10)
    assert total > 1e-3


# ---- the bound, given a state --------------------------------------------------------------------

BETAS = vector(0.1, 0.25, 0.4, 0.7)
BAR = torch.cat([vector(1.0), (1 - BETAS).cumprod(0)])
T = len(BETAS)
TILDE = (1 - BAR[:-1]) / (1 - BAR[1:]) * BETAS  # of step t at t - 1; the first is 0
SIGMA2 = torch.cat([vector(0.05), TILDE[1:]])  # the last step, onto the data, has its own


def guess(x, t, h):
    """A noise predictor that reads a state and is wrong on purpose: (slope in x, rest)."""
    slope = 0.9 - 0.15 * t
    return slope * x + (0.3 + 0.1 * t) * h


def mean_of_step(x, t, h):
    """Mean of the model's step from t, from the noise."""
    return (x - BETAS[t - 1] / (1 - BAR[t]).sqrt() * guess(x, t, h)) / (1 - BETAS[t - 1]).sqrt()


def model_paths(h):
    """Mean and covariance of (x_0 .. x_T) under the model, given the state h."""
    mean, cov = torch.zeros(T + 1, dtype=D), torch.zeros(T + 1, T + 1, dtype=D)
    cov[T, T] = 1.0
    for t in range(T, 0, -1):
        shift = mean_of_step(torch.zeros((), dtype=D), t, h)
        slope = mean_of_step(torch.ones((), dtype=D), t, h) - shift
        mean[t - 1] = slope * mean[t] + shift
        cov[t - 1, t:] = cov[t:, t - 1] = slope * cov[t, t:]
        cov[t - 1, t - 1] = slope**2 * cov[t, t] + SIGMA2[t - 1]
    return mean, cov


def noise_paths(x0):
    """Mean and covariance of (x_1 .. x_T) under q, given x_0; it does not ask for a state."""
    low, high = torch.minimum(BAR[1:, None], BAR[1:]), torch.maximum(BAR[1:, None], BAR[1:])
    return BAR[1:].sqrt() * x0, (low / high).sqrt() * (1 - high)


def bound(x0, h):
    """The mean of log q(x_1:T | x_0) - log p(x_0:T | h) over q, in closed form."""
    mu, S = noise_paths(x0)
    m, V = model_paths(h)
    gap = torch.cat([vector(x0), mu]) - m
    inner = gap @ torch.linalg.solve(V, gap) + torch.trace(torch.linalg.inv(V)[1:, 1:] @ S)
    cross = 0.5 * (torch.linalg.slogdet(2 * math.pi * V)[1] + inner)
    return float(cross - MultivariateNormal(mu, S).entropy())


@pytest.mark.parametrize(("x0", "h"), [(0.7, -1.0), (-1.2, 0.5), (0.0, 2.0)])
def test_the_bound_given_a_state(x0, h):
    """eq:hour-bound: it lies above -log p(x_0 | h) by the divergence of the two laws of paths."""
    m, V = model_paths(h)
    nll = -float(Normal(m[0], V[0, 0].sqrt()).log_prob(vector(x0)))
    given = V[1:, 1:] - V[1:, :1] @ V[:1, 1:] / V[0, 0]
    centre = m[1:] + V[1:, 0] / V[0, 0] * (x0 - m[0])
    gap = kl_divergence(MultivariateNormal(*noise_paths(x0)), MultivariateNormal(centre, given))
    assert bound(x0, h) == pytest.approx(nll + float(gap), rel=1e-10)
    assert float(gap) > 0.01


@pytest.mark.parametrize(("x0", "h"), [(0.7, -1.0), (-1.2, 0.5), (0.0, 2.0)])
def test_the_bound_is_errors_of_the_noise(x0, h):
    """eq:hour-noise: the two ends, and for each t the weight times the squared error of the noise;
    means over the noise by 64 nodes of Gauss and Hermite, exact for polynomials.
    """
    import numpy as np

    nodes, weights = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(64))
    weights = weights / math.sqrt(2 * math.pi)
    start = Normal(BAR[T].sqrt() * x0, (1 - BAR[T]).sqrt())
    total = float(kl_divergence(start, Normal(vector(0.0), vector(1.0))))
    for t in range(1, T + 1):
        x = BAR[t].sqrt() * x0 + (1 - BAR[t]).sqrt() * nodes
        if t == 1:
            last = -Normal(mean_of_step(x, 1, h), SIGMA2[0].sqrt()).log_prob(vector(x0))
            total += float(weights @ last)
            continue
        beta = float(BETAS[t - 1])
        weight = beta**2 / (2 * SIGMA2[t - 1] * (1 - beta) * (1 - BAR[t]))
        total += float(weight * (weights @ (nodes - guess(x, t, h)) ** 2))
    assert bound(x0, h) == pytest.approx(total, rel=1e-9)


def test_what_a_poor_state_learns():
    """eq:poor-state: with a state that holds only the sign of the past, the best guess of the noise
    is that of the mixture of the true laws, E[eps | x_t, sign]; here by grids, to 1e-8.

    The past y is one of four numbers, and the next value is N(y, .09).
    """
    ys, v, bar = vector(-2.0, -0.5, 0.5, 2.0), 0.09, 0.4
    x = torch.linspace(-2, 2, 9, dtype=D)
    eps = torch.linspace(-9, 9, 6001, dtype=D)
    x0 = (x[:, None] - math.sqrt(1 - bar) * eps) / math.sqrt(bar)
    weight = torch.exp(-(eps**2) / 2) * sum(
        torch.exp(-((x0 - y) ** 2) / (2 * v)) for y in ys[2:]
    )  # over both pasts with that sign
    grid = (weight * eps).sum(1) / weight.sum(1)
    mixture = md.GaussianMixture(ys[2:, None], torch.full((2,), v**0.5, dtype=D))
    table = md.BetaTable(torch.tensor([1 - bar], dtype=D))
    clean = mixture.denoiser(table)(x[:, None], torch.ones((), dtype=D))[:, 0]
    want = (x - math.sqrt(bar) * clean) / math.sqrt(1 - bar)
    torch.testing.assert_close(grid, want, rtol=1e-8, atol=1e-8)
    s2 = bar * v + 1 - bar  # of the noisy value, if the past were known to be 0.5
    single = (x - math.sqrt(bar) * 0.5) * math.sqrt(1 - bar) / s2
    assert float((grid - single).abs().max()) > 0.1


def test_an_averaged_loss_forgets_its_mask():
    """eq:mask-cancels: written out, and with the errors of a network; the mask of elements does
    not cancel.
    """
    net = perturbed(ChannelConvolutions(3, 4, width=4, blocks=2))
    head = DiffusionHead(md.Denoiser(net, md.BetaTable(md.quadratic_betas(50)), "eps"), 3, None)
    state, target = data(30, 4), data(30, 3, seed=1)
    everything = torch.ones(30, 3, dtype=torch.bool)
    whole = head.loss(state, target, everything, rng=seeded(2)).detach()
    for seed in range(3):
        observed = torch.rand(30, 3, generator=seeded(seed)) < 0.6
        w = observed.all(1).double()
        assert float((whole * w).sum() / w.sum()) == pytest.approx(float(whole), rel=1e-12)
        ours = head.loss(state, target, observed, rng=seeded(2)).detach()
        assert abs(float(ours / whole) - 1) > 1e-3


# ---- the scale -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("w", "u"), [(3.0, 0.5), (48.0, 2.0)])
def test_the_scale_is_a_posterior_mean(w, u):
    """eq:scale-posterior: sizes are exponential with mean s, and 1/s is gamma beforehand, with the
    shape w + 1 and the rate w u. By quadrature over log s; and the ridge form by its minimum.
    """
    sizes = data(20).abs() * 0.7
    got = float(
        mean_scale(sizes[None, :, None], torch.ones(1, 20, 1, dtype=torch.bool),
                   usual=vector(u), weight=w)
    )  # fmt: skip
    log_s = torch.linspace(-8, 8, 40_001, dtype=D)
    s = log_s.exp()
    log_post = -(w + 2) * log_s - w * u / s - 20 * log_s - sizes.sum() / s  # prior, likelihood
    mass = (log_post + log_s - (log_post + log_s).max()).exp()  # ds = s d(log s)
    assert got == pytest.approx(float((mass * s).sum() / mass.sum()), rel=1e-9)
    before = (-(w + 2) * log_s - w * u / s + log_s).exp()
    assert float((before * s).sum() / before.sum()) == pytest.approx(u, rel=1e-6)
    slope = 2 * (20 * got - float(sizes.sum())) + 2 * w * (got - u)  # of the ridge's squares
    assert slope == pytest.approx(0, abs=1e-9)


def test_no_change_is_larger_than_twice_its_usual_size():
    """eq:scale-reach: a change d in units of s is at most (w + n)/w times d/u; equality for a
    channel that stood still. Without w it has no bound.
    """
    seen, u = torch.ones(1, 48, 1, dtype=torch.bool), 0.4
    for k in range(20):
        x = data(1, 48, 1, seed=k) * 10.0 ** (k - 15)
        s = float(mean_scale(x, seen, usual=vector(u), weight=48.0))
        assert 3.0 / s <= (48 + 48) / 48 * 3.0 / u * (1 + 1e-12)
    still = float(mean_scale(torch.zeros(1, 48, 1, dtype=D), seen, usual=vector(u), weight=48.0))
    assert 3.0 / still == pytest.approx(2 * 3.0 / u, rel=1e-12)
    bare = torch.zeros(1, 48, 1, dtype=D)
    bare[0, 5] = 0.01
    assert 3.0 / float(mean_scale(bare, seen)) == pytest.approx(3 * 48 / 0.01)


# ---- the oracle ----------------------------------------------------------------------------------


def test_a_shock_moves_on_by_its_responses():
    """eq:var-shocks: the path with shocks is the path without, plus each shock by its response."""
    z = data(5, 2)
    rows, quiet = list(PAST[0]), list(PAST[0])
    for n in range(5):
        rows.append(B + A[0] @ rows[-1] + A[1] @ rows[-2] + z[n])
        quiet.append(B + A[0] @ quiet[-1] + A[1] @ quiet[-2])
    psi = SERIES.responses(5)
    for i in range(1, 6):
        added = torch.stack([psi[i - 1 - k] @ z[k] for k in range(i)]).sum(0)
        torch.testing.assert_close(rows[1 + i] - quiet[1 + i], added, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kept", [(0.8, 0.8), (0.7, 0.95)])
def test_narrow_hours_stay_narrow_by_the_same_share(kept):
    """eq:narrow-rollout: innovations that keep shares of their variances give a forecast whose
    variance, along each of 200 directions over hours and channels, keeps a share between them.
    """
    values, basis = torch.linalg.eigh(C)
    less = basis @ torch.diag(values * vector(*kept)) @ basis.T
    right = SERIES.predictive(PAST, 6).cov.reshape(12, 12)
    narrow = VAR(A, less, B).predictive(PAST, 6).cov.reshape(12, 12)
    along = data(200, 12)
    share = (along @ narrow * along).sum(1) / (along @ right * along).sum(1)
    assert min(kept) - 1e-12 <= float(share.min()) and float(share.max()) <= max(kept) + 1e-12
    if kept[0] == kept[1]:
        torch.testing.assert_close(narrow, 0.8 * right, rtol=1e-12, atol=1e-12)
    missing = (right - narrow).reshape(6, 2, 6, 2).diagonal(dim1=0, dim2=2)  # (2, 2, hours)
    assert bool((missing[0, 0].diff() >= 0).all())  # what is missing adds up


@pytest.mark.parametrize(("a", "b"), [(0.9, 0.8), (0.95, 0.99), (0.6, -0.2)])
def test_a_wrong_coefficient(a, b):
    """eq:wrong-coefficient: mean square error i hours on, from the joint law of x_n and x_{n+i};
    and its excess is largest near i = -1 / log a for a small error.
    """
    v = 1 / (1 - a**2)  # of the stationary series with innovations of variance 1
    excess = []
    for i in range(1, 40):
        cov = float(AR1(a, 1.0).joint(i + 1).covs[0, 0, i])
        error = v + b ** (2 * i) * v - 2 * b**i * cov  # of guessing b^i x_n
        want = (1 - a ** (2 * i)) / (1 - a**2) + (a**i - b**i) ** 2 * v
        assert error == pytest.approx(want, rel=1e-9)
        excess.append((a**i - b**i) ** 2 * v)
    top = 1 + max(range(39), key=excess.__getitem__)
    if (a, b) == (0.9, 0.8):
        assert top == 6  # the text; -1 / log .85 = 6.2
        assert excess[5] / excess[0] == pytest.approx(((0.9**6 - 0.8**6) / 0.1) ** 2)
        assert 7.2 < excess[5] / excess[0] < 7.4


# ---- scores --------------------------------------------------------------------------------------


def test_a_length_as_a_mean_of_waves():
    """eq:norm-of-waves on the line, where the constant is pi: for three numbers, to 1e-6, which is
    what is left beyond 2e6 after averaging over the last waves.
    """
    w = torch.linspace(0, 2000, 4_000_001, dtype=D)[1:]
    step = float(w[1] - w[0])
    for v in (0.3, 1.0, 2.5):
        inner = (1 - torch.cos(w * v)) / w**2
        area = 2 * (float(inner.sum()) * step + (v**2 / 2) * step / 2)  # both sides; and at 0
        area += 2 / 2000  # beyond: the mean of 1 - cos is 1
        assert area / math.pi == pytest.approx(v, abs=2e-6)


@pytest.mark.parametrize(("mean", "std"), [(1.0, 1.0), (0.0, 2.0), (-0.5, 0.4)])
def test_the_energy_score_is_proper(mean, std):
    """eq:energy-proper: what a wrong law loses is half of 2 E|X - y| - E|X - X'| - E|y - y'|, and
    that is an integral of |phi_X - phi_y|^2 over w^2. Two Gaussians on the line, in closed form
    (the mean size of a Gaussian) and by quadrature, to 1e-8.
    """

    def size(m, s):  # E|N(m, s^2)|
        return s * math.sqrt(2 / math.pi) * math.exp(-(m**2) / (2 * s**2)) + m * math.erf(
            m / (s * math.sqrt(2))
        )

    both = math.hypot(std, 1)
    loses = size(mean, both) - size(0, std * 2**0.5) / 2 - size(0, 2**0.5) / 2
    w = torch.linspace(-60, 60, 2_400_002, dtype=D)  # no node at 0
    phi = torch.exp(-((std * w) ** 2) / 2 + 1j * mean * w) - torch.exp(-(w**2) / 2)
    area = float((phi.abs() ** 2 / w**2).sum() * (w[1] - w[0]))
    assert loses == pytest.approx(area / (2 * math.pi), abs=1e-8)
    assert loses > 0.01


def test_the_energy_score_is_proper_in_the_plane():
    """The same with two entries: N(0, s^2 I) against N(0, I); the constant is 2 pi, and lengths of
    Gaussians in the plane have the mean s sqrt(pi/2).
    """
    for s in (0.5, 2.0):
        loses = math.sqrt(math.pi / 2) * (math.hypot(s, 1) - (s + 1) * 2**0.5 / 2)
        r = torch.linspace(0, 40, 800_001, dtype=D)[1:]
        gap = torch.exp(-((s * r) ** 2) / 2) - torch.exp(-(r**2) / 2)
        area = float((gap**2 / r**3 * 2 * math.pi * r).sum() * (r[1] - r[0]))
        assert loses == pytest.approx(area / (2 * 2 * math.pi), abs=1e-8)


def test_the_energy_score_of_samples_prefers_the_truth():
    """energy_score_fair, on 4,000 targets: the law of the data beats a shifted, a wide and a narrow
    one and one with the wrong correlation, each by over 5 standard errors of the paired scores.
    """
    n, S = 4000, 40
    root = torch.linalg.cholesky(torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=D))
    y, z = data(n, 2) @ root.T, data(S, n, 2, seed=1)
    right = scoring.energy_score_fair(z @ root.T, y)
    flipped = root * torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=D)
    for wrong in (z @ root.T + 0.3, 1.4 * z @ root.T, 0.6 * z @ root.T, z @ flipped.T):
        gap = scoring.energy_score_fair(wrong, y) - right
        assert float(gap.mean() / gap.std()) * n**0.5 > 5


OFFSET = vector(3.0, -5.0, 2.0)


def test_offsets_that_cancel_are_not_seen():
    """eq:sum-offsets: not a fixed one, nor one that is drawn anew for each sample and target with
    a thousand times the width; the energy score sees both.
    """
    y, x = 20 + data(300, 3), 20 + data(50, 300, 3, seed=1)
    base, energy = scoring.crps_sum(x, y), float(scoring.energy_score(x, y).mean())
    noise = 1000 * data(50, 300, 3, seed=2)
    for d in (OFFSET, noise - noise.mean(2, keepdim=True)):
        assert scoring.crps_sum(x + d, y) == pytest.approx(base, rel=1e-9)
        assert float(scoring.energy_score(x + d, y).mean()) > 3 * energy
    assert abs(scoring.crps_sum(x + vector(3.0, -5.0, 5.0), y) / base - 1) > 0.5


def test_which_wrong_signs_the_sum_sees():
    """eq:sum-signs: flipping the channels of a set changes the variance of the sum by -4 times the
    covariances across its border. A forecast with two wrong signs that balance has the same law of
    the sum and, shown the same normal draws, the same CRPS-sum.
    """
    root = data(4, 4)
    cov = root @ root.T
    for flips in ((1, -1, 1, 1), (-1, -1, 1, 1), (1, -1, -1, 1), (-1, -1, -1, -1)):
        d = vector(*flips)
        across = sum(float(cov[i, j]) for i in range(4) for j in range(4) if d[i] < 0 < d[j])
        got = float(d @ cov @ d) - float(cov.sum())
        assert got == pytest.approx(-4 * across, rel=1e-9, abs=1e-12)

    def law(r):  # the correlation r between 1 and 2, -r between 3 and 4
        return torch.block_diag(*(torch.tensor([[1, s], [s, 1]], dtype=D) for s in (r, -r)))

    right, wrong = law(0.9), law(-0.9)
    assert float(right.sum()) == pytest.approx(4) == pytest.approx(float(wrong.sum()))
    y = data(3000, 4) @ torch.linalg.cholesky(right).T
    z = data(60, 3000, 4, seed=1)
    x, bad = (z @ torch.linalg.cholesky(c).T for c in (right, wrong))
    gap = scoring.energy_score_fair(bad, y) - scoring.energy_score_fair(x, y)
    assert float(gap.mean() / gap.std()) * 3000**0.5 > 20
    one, two = (scoring.crps_sum(s, y) for s in (x, bad))  # both draw N(0, 4) for the sum
    assert one == pytest.approx(two, rel=0.01)  # 3,000 targets, 60 draws: about .3 % apart
    only = torch.block_diag(right[:2, :2], right[:2, :2])  # two signs that do not balance
    flipped = z @ torch.linalg.cholesky(torch.block_diag(wrong[:2, :2], wrong[:2, :2])).T
    y = data(3000, 4) @ torch.linalg.cholesky(only).T
    base = scoring.crps_sum(z @ torch.linalg.cholesky(only).T, y)
    assert scoring.crps_sum(flipped, y) > 1.1 * base  # the sum is N(0, .4), not N(0, 7.6)
