"""Chapter 01, line by line: divergences, the game, changes of variables, bridges and costs.

Everything is in double precision. Integrals are sums over fine grids of smooth functions that
vanish at the ends, which are exact to about 1e-12; where something else limits a comparison, its
docstring says what.
"""

import math
from statistics import NormalDist

import pytest
import torch
from paths import D, data, perturbed, seeded
from torch.distributions import Normal
from torch.utils.flop_counter import FlopCounterMode

import minidiff as md
from minidiff.classics import Coupling, Discriminator, Flow, Generator, game
from minidiff.metrics import mode_coverage

LOG2 = math.log(2)
STANDARD = NormalDist()
CELL = 0.005
X = torch.arange(-16, 16, CELL, dtype=D) + CELL / 2


def number(value):
    return torch.tensor(value, dtype=D)


def log_normal(mean, std, x=X):
    return Normal(number(mean), number(std)).log_prob(x)


def log_mix(means, stds, weights, x=X):
    each = zip(means, stds, weights, strict=True)
    return torch.stack([math.log(w) + log_normal(m, d, x) for m, d, w in each]).logsumexp(0)


def integral(values, cell=CELL):
    return float(values.sum() * cell)


def kl(log_p, log_q):
    return integral(log_p.exp() * (log_p - log_q))


TWO = log_mix([-2.0, 2.0], [0.5, 0.5], [0.5, 0.5])  # the two bumps of the chapter


# ---- likelihood and divergence ------------------------------------------------------------


def test_divergence_is_cross_entropy_minus_entropy():
    """eq:kl-split for two Gaussians: the integral on the left, both closed forms on the right, and
    the mean of -log p_theta over 200,000 draws within four standard errors.
    """
    m, s, mu, sigma = 0.4, 0.8, -0.5, 1.3
    cross = math.log(2 * math.pi * sigma**2) / 2 + (s**2 + (m - mu) ** 2) / (2 * sigma**2)
    entropy = math.log(2 * math.pi * math.e * s**2) / 2
    left = kl(log_normal(m, s), log_normal(mu, sigma))
    assert left == pytest.approx(cross - entropy, abs=1e-12)
    cost = -log_normal(mu, sigma, m + s * data(200_000))
    assert abs(float(cost.mean()) - cross) < 4 * float(cost.std()) / math.sqrt(200_000)


def test_divergence_is_not_negative():
    """eq:kl-positive: log u <= u - 1 with equality at 1 only; then -KL <= E_p[q/p - 1] = 0 where p
    is positive everywhere, and < 0 for a uniform p, to which both sides are closed forms (midpoint
    sums, 1e-5); KL = 0 for equal densities.
    """
    u = torch.linspace(0.01, 5, 500, dtype=D)
    assert bool((u.log() <= u - 1).all()) and float((u.log() - (u - 1)).max()) > -1e-4
    p = log_mix([-1.0, 2.0], [0.7, 0.4], [0.6, 0.4])
    for q in (log_normal(0.3, 1.2), log_normal(0.0, 1.9), TWO):
        assert integral(p.exp() * ((q - p).exp() - 1)) == pytest.approx(0, abs=1e-12)
        assert -kl(p, q) < -0.05
    assert kl(p, p) == 0
    on, q = uniforms(0.0)[0].exp(), log_normal(0.5, 0.6)
    middle, minus_kl = integral(on * (q.exp() - 1)), integral(on * q)
    assert middle == pytest.approx(2 * STANDARD.cdf(0.5 / 0.6) - 2, abs=1e-5)
    want = -math.log(2 * math.pi * 0.36) / 2 - 1 / 12 / (2 * 0.36)
    assert minus_kl == pytest.approx(want, abs=1e-5)
    assert minus_kl < middle - 0.1 and middle < -0.4


def moments_matched():
    return log_normal(0.0, math.sqrt(4.25))


def test_forward_covers_and_reverse_seeks():
    """The table of the two bumps, and that the two Gaussians in it are the best of a grid. The
    best reverse one sits on one bump; both orders of KL are integrals, to the digits printed.
    """
    covers, seeks = moments_matched(), log_normal(2.0, 0.5)
    assert kl(TWO, covers) == pytest.approx(0.72, abs=0.005)
    assert kl(covers, TWO) == pytest.approx(2.10, abs=0.005)
    assert kl(TWO, seeks) == pytest.approx(15.31, abs=0.005)
    assert kl(seeks, TWO) == pytest.approx(0.69, abs=0.005)
    grid = [(m, s) for m in (0.0, 0.5, 1.0, 1.5, 2.0, 2.5) for s in (0.3, 0.4, 0.5, 0.6, 1.0, 2.0)]
    costs = {(m, s): kl(log_normal(m, s), TWO) for m, s in grid}
    assert min(costs, key=costs.__getitem__) == (2.0, 0.5)
    ahead = {(m, s): kl(TWO, log_normal(m, s)) for m, s in grid}
    assert min(ahead, key=ahead.__getitem__) == (0.0, 2.0)  # sqrt 4.25 = 2.06
    assert all(cost > kl(TWO, covers) for cost in ahead.values())


def test_costs_of_leaving_a_mode_out():
    """eq:reverse-cost: at most log K, and short of it by no more than the overlap of neighbours
    (modes 8 standard deviations apart: a share of 6e-5 beyond the middle on each side).
    eq:forward-cost: d^2 / (4 s^2) - log 2, up to the same overlap.
    """
    for count in (2, 3, 4):
        means = [4.0 * k - 2.0 * (count - 1) for k in range(count)]
        p = log_mix(means, [0.5] * count, [1 / count] * count)
        got = kl(log_normal(means[0], 0.5), p)
        assert math.log(count) - 3e-4 < got <= math.log(count)
        assert kl(p, log_normal(means[0], 0.5)) > 15
    assert kl(TWO, log_normal(2.0, 0.5)) == pytest.approx(4**2 / (4 * 0.25) - LOG2, abs=3e-4)


def test_mostly_rubbish_keeps_its_likelihood():
    """eq:rubbish at every point: log(.01 p + .99 n) >= log p - log 100, and no constant below
    log 100 would do where n is absent. In 64 dimensions 4.6 nats are 0.104 bits an entry.
    """
    p, n = log_normal(0.0, 0.3), log_normal(9.0, 0.2)
    both = torch.logaddexp(math.log(0.01) + p, math.log(0.99) + n)
    assert bool((both >= p - math.log(100)).all())
    assert float((both - p).min()) == pytest.approx(-math.log(100), abs=1e-9)
    assert math.log(100) == pytest.approx(4.6, abs=0.01)
    assert math.log(100) / 64 / LOG2 == pytest.approx(0.104, abs=5e-4)


# ---- the game -----------------------------------------------------------------------------


def test_value_at_the_best_discriminator_line_by_line():
    """eq:gan-jsd: each line of its proof is the same number; the pointwise derivative is zero at
    a / (a + b), by central differences of step 1e-5 (error 1e-9).
    """
    log_p, log_q = TWO, log_normal(1.0, 1.5)
    p, q = log_p.exp(), log_q.exp()
    m = (p + q) / 2
    first = integral(torch.xlogy(p, p / (p + q)) + torch.xlogy(q, q / (p + q)))
    second = integral(torch.xlogy(p, p / m) + torch.xlogy(q, q / m)) - 2 * LOG2
    third = kl(log_p, m.log()) + kl(log_q, m.log()) - 2 * LOG2
    fourth = 2 * float(game.js_divergence(log_p, log_q, CELL)) - 2 * LOG2
    best = game.optimal_discriminator(log_p, log_q)
    value = float(game.exact_value(best, log_p, log_q, CELL))
    for line in (second, third, fourth, value):
        assert line == pytest.approx(first, abs=1e-12)
    assert -2 * LOG2 < first < 0
    for a, b in ((0.3, 0.9), (2.0, 0.1)):

        def gain(d, a=a, b=b):
            return a * math.log(d) + b * math.log(1 - d)

        at, h = a / (a + b), 1e-5
        assert (gain(at + h) - gain(at - h)) / (2 * h) == pytest.approx(0, abs=1e-6)
        assert gain(at) > max(gain(at * 0.9), gain(at + 0.1 * (1 - at)))


def test_gradients_where_the_discriminator_is_sure():
    """eq:gan-gradients at D*: the data are N(0, 1), the generator N(6, 1). At x = 6 the best logit
    is -18, so D = 1.5e-8; the original loss has this gradient, the other one nearly -1.
    """
    logit = game.optimal_discriminator(
        log_normal(0.0, 1.0, number([6.0])), log_normal(6.0, 1.0, number([6.0]))
    )
    assert float(logit) == pytest.approx(-18, rel=1e-12)
    d = 1 / (1 + math.exp(18))
    assert d == pytest.approx(1.5e-8, rel=0.02)
    for loss, want in ((game.saturating_loss, -d), (game.generator_loss, -(1 - d))):
        leaf = logit.clone().requires_grad_()
        (slope,) = torch.autograd.grad(loss(leaf), leaf)
        assert float(slope) == pytest.approx(want, rel=1e-9)


def uniforms(shift):
    """Log-densities of U(0, 1) and U(shift, 1 + shift) on X; edges fall between grid points."""

    def inside(low):
        return torch.where((low < X) & (low + 1 > X), 0.0, -math.inf).to(D)

    return inside(0.0), inside(shift)


def test_divergence_of_shifted_uniforms():
    """eq:jsd-disjoint: |shift| log 2, and log 2 from a shift of 1 on, where the slope is 0."""
    for shift in (0.0, 0.1, 0.5, -0.75, 1.0, 1.5, -4.0):
        got = float(game.js_divergence(*uniforms(shift), CELL))
        assert got == pytest.approx(min(abs(shift), 1) * LOG2, abs=1e-9)


def test_divergence_of_narrow_gaussians_is_flat():
    """Standard deviation .1: at a distance of 1 the divergence is log 2 to 1e-5 and its slope below
    1e-4; at .1 the slope is over 1.9. The Gaussians overlap there by 2 Phi(-5) = 6e-7. The
    best logit is (1 - 2 x) / (2 .1^2), so the non-saturating loss has the slope 100 (1 - D) at 1.
    """
    x = X[X.abs() < 3]
    still = log_normal(0.0, 0.1, x)

    def jsd(shift):
        return float(game.js_divergence(still, log_normal(shift, 0.1, x), CELL))

    def slope(shift):
        return (jsd(shift + 1e-3) - jsd(shift - 1e-3)) / 2e-3

    assert 0 < LOG2 - jsd(1.0) < 1e-5
    assert 0 <= slope(1.0) < 1e-4 and slope(0.1) > 1.9
    at = number([1.0]).requires_grad_()
    logit = game.optimal_discriminator(log_normal(0.0, 0.1, at), log_normal(1.0, 0.1, at))
    (pull,) = torch.autograd.grad(game.generator_loss(logit), at)
    assert float(pull) == pytest.approx(100, rel=1e-9)


@pytest.mark.parametrize("kept", range(1, 9))
def test_divergence_of_dropped_modes(kept):
    """eq:jsd-dropped on eight cells, and on eight narrow Gaussians (24 standard deviations apart,
    no overlap in double precision). The prices in the text: .045 for one mode lost, .497 for seven.
    """
    a = kept / 8
    want = LOG2 + (a * math.log(a) - (1 + a) * math.log1p(a)) / 2
    p = torch.full((8,), 1 / 8, dtype=D).log()
    q = number([1 / kept] * kept + [0.0] * (8 - kept)).log()
    assert float(game.js_divergence(p, q, 1.0)) == pytest.approx(want, abs=1e-12)
    means, stds = [3.6 * k - 12.6 for k in range(8)], [0.15] * 8
    full = log_mix(means, stds, [1 / 8] * 8)
    part = log_mix(means[:kept], stds[:kept], [1 / kept] * kept)
    assert float(game.js_divergence(full, part, CELL)) == pytest.approx(want, abs=1e-9)
    back = float(game.js_divergence(q, p, 1.0))  # the same share of strange samples
    assert back == pytest.approx(want, abs=1e-12)
    if kept in (1, 7):
        assert want == pytest.approx({7: 0.045, 1: 0.497}[kept], abs=5e-4)


# ---- maps ---------------------------------------------------------------------------------


def test_change_of_variables_in_one_dimension():
    """eq:change-1d: x = sinh z rises, x = -(z + z^3 / 3) inverted falls. The density's running sum
    is P(X <= x) = P(Z <= f) or P(Z >= f); midpoint sums of cells .005 are good to 1e-6.
    """
    for f, slope, cdf in (
        (torch.asinh(X), 1 / (1 + X**2).sqrt(), torch.special.ndtr(torch.asinh(X + CELL / 2))),
        (
            -(X + X**3 / 3),
            -(1 + X**2),
            torch.special.ndtr(X + CELL / 2 + (X + CELL / 2) ** 3 / 3),
        ),
    ):
        density = log_normal(0.0, 1.0, f).exp() * slope.abs()
        mass = density.cumsum(0) * CELL + (cdf[0] - density[0] * CELL)
        torch.testing.assert_close(mass, cdf, rtol=0, atol=2e-6)


def shoelace(corners):
    """Area of a polygon from its corners in order."""
    after = corners.roll(-1, 0)
    return float((corners[:, 0] * after[:, 1] - after[:, 0] * corners[:, 1]).sum().abs() / 2)


def test_a_map_scales_boxes_by_its_determinant():
    """eq:box: the image of a box of sides .01 under a curved map is a curved box; its area over
    1e-4 is |det| up to the curvature, which shrinks with the side: below 1 % and 0.1 %.
    """

    def f(v):
        return torch.stack([v[..., 0] + 0.3 * torch.sin(2 * v[..., 1]),
                                   0.7 * v[..., 1] + 0.4 * v[..., 0] ** 2], -1)  # fmt: skip

    at = number([0.6, -0.3])
    want = abs(float(torch.linalg.det(torch.autograd.functional.jacobian(f, at))))
    unit = number([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    for side, error in ((1e-2, 1e-2), (1e-3, 1e-3)):
        got = shoelace(f(at + side * unit)) / side**2
        assert got == pytest.approx(want, rel=error)
    assert abs(want - 1) > 0.2  # a rule without the determinant would be seen


def jacobian(f, x):
    return torch.autograd.functional.jacobian(lambda v: f(v[None]).x[0], x)


def test_log_determinants_add_up():
    """eq:flow-sum: the whole map's Jacobian by autograd against the sum over its layers, each from
    autograd too, and against what the flow says.
    """
    flow = perturbed(Flow(4, layers=3, width=8))
    for x in data(3, 4, seed=1):
        total, at = 0.0, x
        for layer in flow.layers:
            total += float(torch.linalg.slogdet(jacobian(layer, at)).logabsdet)
            at = layer(at[None]).x[0].detach()
        whole = float(torch.linalg.slogdet(jacobian(flow, x)).logabsdet)
        mapped = flow(x[None])
        assert whole == pytest.approx(total, abs=1e-12) and abs(whole) > 0.05
        assert float(mapped.log_det.detach()) == pytest.approx(whole, abs=1e-12)
        torch.testing.assert_close(mapped.x[0].detach(), at, rtol=0, atol=1e-14)


CHANGED = torch.tensor([False, True, True, False, True])


def scale_and_shift(layer, x):
    """s and b of a coupling from its network: s = 2 tanh(raw / 2) on B, the network sees A only."""
    raw, b = layer.net(torch.where(CHANGED, 0.0, x)).detach().chunk(2, -1)
    return 2 * (raw / 2).tanh(), b


def test_coupling_has_a_triangular_jacobian():
    """eq:triangular, with the entries in the order A, B: identity, zeros, exp(s) on a diagonal."""
    layer = perturbed(Coupling(CHANGED, width=8))
    a, b = (~CHANGED).nonzero()[:, 0], CHANGED.nonzero()[:, 0]
    for x in data(3, 5, seed=2):
        j, (s, _) = jacobian(layer, x), scale_and_shift(layer, x[None])
        assert torch.equal(j[a][:, a], torch.eye(2, dtype=D))
        assert torch.equal(j[a][:, b], torch.zeros(2, 3, dtype=D))
        torch.testing.assert_close(j[b][:, b], s[0, b].exp().diag(), rtol=1e-12, atol=1e-14)
        assert float(j[b][:, a].abs().max()) > 0.05  # the block below is arbitrary
        assert float(torch.linalg.slogdet(j).logabsdet) == pytest.approx(float(s[0, b].sum()))
        assert float(s[0, b].sum().abs()) > 0.01


def test_coupling_inverse_written_out():
    """eq:coupling-inverse with the network's own s and b, which are not inverted."""
    layer, y = perturbed(Coupling(CHANGED, width=8)), data(6, 5, seed=3)
    s, b = scale_and_shift(layer, y)  # y_A = x_A
    want = torch.where(CHANGED, (y - b) * (-s).exp(), y)
    torch.testing.assert_close(layer.inverse(y).x.detach(), want, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(layer(want).x.detach(), y, rtol=1e-12, atol=1e-14)


def test_bridge_of_a_continuous_map():
    """eq:bridge: mass in the gap (-1, 1) of x = g(z) with half of the rest on each side. The ramp
    of slope L attains the bound; the smooth maps exceed it. Masses by bisection of g = 1.
    """

    def mass(g):
        low, high = 0.0, 8.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if g(middle) < 1 else (low, middle)
        return 2 * STANDARD.cdf(low) - 1

    def bound(steep):
        return 2 * STANDARD.cdf(2 / (2 * steep)) - 1  # gap of width w = 2

    ramp = mass(lambda z: max(-1.0, min(1.0, 5 * z)) + 1e-9 * z)
    assert ramp == pytest.approx(bound(5), abs=1e-7)
    for g, steep in (
        (lambda z: 0.5 * z + 1.5 * math.tanh(3 * z), 5.0),
        (lambda z: 2 * math.tanh(10 * z) + 0.1 * z, 20.1),
        (lambda z: z + z**3, 10.0),  # slope 10 at z = 1.73; the gap ends before it
    ):
        assert mass(g) > bound(steep)
    assert bound(5) == pytest.approx(0.159, abs=5e-4)
    assert bound(80) == pytest.approx(0.010, abs=5e-4)


# ---- what is measured ---------------------------------------------------------------------


def circle():
    angle = torch.arange(8, dtype=D) * (math.pi / 4)
    return math.sqrt(2) * torch.stack([angle.cos(), angle.sin()], 1)


def test_true_likelihood_of_eight_gaussians():
    """eq:true-likelihood: -log 8 - log(2 pi s^2) - 1 by a sum over the plane. Neighbours are 10.8
    standard deviations apart; what they lend each other is 2e-7.
    """
    s, h = 0.1, 0.01
    mixture = md.GaussianMixture(circle(), torch.full((8,), s, dtype=D))
    axis = torch.arange(-2.3, 2.3, h, dtype=D) + h / 2
    log_p = mixture.log_prob(torch.cartesian_prod(axis, axis), 0.0, md.Cosine())
    want = -math.log(8) - math.log(2 * math.pi * s**2) - 1
    assert integral(log_p.exp() * log_p, h**2) == pytest.approx(want, abs=2e-6)
    assert integral(log_p.exp(), h**2) == pytest.approx(1, abs=1e-9)
    assert want == pytest.approx(-0.312, abs=5e-4)


@pytest.mark.parametrize("radius", [0.1, 0.2, 0.3])
def test_share_of_true_points_inside(radius):
    """eq:inside-share: 1 - exp(-r^2 / 2 s^2), .989 at three standard deviations; 200,000 points,
    four standard errors of a share.
    """
    points = md.data.eight_gaussians(200_000, noise=0.1, rng=seeded(4)).to(D)
    got = mode_coverage(points, circle(), radius=radius)
    want = 1 - math.exp(-(radius**2) / (2 * 0.1**2))
    assert abs(got.inside - want) < 4 * math.sqrt(want * (1 - want) / 200_000)
    assert got.covered == 8
    if radius == 0.3:
        assert want == pytest.approx(0.989, abs=5e-4)


def products(run):
    """Multiplications of matrix products, from torch's own counter (it counts 2 a product)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def test_sampling_cost():
    """eq:sampling-cost: calls times points times weights in matrices. The GAN's counted by hand;
    the sampler's calls by a wrapper; the total by torch's counter.
    """
    n, width, steps = 50, 16, 24
    g = Generator(2, 2, width=width)
    assert products(lambda: g.sample(n, rng=seeded())) == n * (2 * 16 + 16 * 16 + 16 * 2)
    schedule = md.BetaTable(md.linear_betas(steps))
    net = md.nets.MLP(2, width=width, depth=1)
    weights = sum(p.numel() for p in net.parameters() if p.ndim == 2)
    model = md.denoiser.count_calls(md.Denoiser(net, schedule, "eps"))
    start = md.prior(schedule, (n, 2), rng=seeded())

    def walk():
        return md.last(md.ancestral(model, schedule, start, md.ddpm_steps(steps), rng=seeded(1)))

    assert products(walk) == steps * n * weights
    assert model.calls == steps

    def few():
        return md.last(md.ddim(model, schedule, start, md.grids.strided(steps, 4)))

    assert products(few) == 4 * n * weights
    flow = Flow(2, layers=3, width=width)
    each = 2 * width + width * width + width * 4
    assert products(lambda: flow.sample(n, rng=seeded())) == 3 * n * each


def test_a_trained_discriminator_bounds_the_divergence():
    """V / 2 + log 2 <= JSD for any discriminator: here for networks with random weights."""
    log_p, log_q = TWO, log_normal(1.0, 1.5)
    top = float(game.js_divergence(log_p, log_q, CELL))
    for seed in range(5):
        d = perturbed(Discriminator(1, width=8), seed)
        logit = d(X[:, None]).detach()
        value = float(game.exact_value(logit, log_p, log_q, CELL))
        assert value / 2 + LOG2 < top
