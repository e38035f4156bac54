"""The appendix of formulas, each against its own text: values are written out here, never
computed through the package.

Everything is in double precision and nothing is sampled unless a test says so, so 1e-12 leaves
only rounding.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

import minidiff as md
from minidiff import metrics, predictions
from minidiff.nets import attention, unet
from minidiff.process import moves

TIMES = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
EXACT = {"rtol": 1e-12, "atol": 1e-12}
PATHS = [md.VP(), md.Cosine(), md.LinearPath(), md.VE()]
path = pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def level(signal: float, noise: float) -> md.Level:
    values = (torch.tensor(v, dtype=torch.float64) for v in (signal, noise, -0.5, 0.7))
    return md.Level(*values)


def written_levels(schedule: md.Schedule, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if isinstance(schedule, md.VP):
        signal = torch.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2)
        return signal, torch.sqrt(1 - signal**2)
    if isinstance(schedule, md.Cosine):
        return torch.cos(math.pi * t / 2), torch.sin(math.pi * t / 2)
    if isinstance(schedule, md.LinearPath):
        return 1 - t, t
    return torch.ones_like(t), 0.002 * 40_000.0**t


# ---- paths ---------------------------------------------------------------------------------------


def test_log_snr_written_out():
    """eq:log-snr: a tenth of the variance is noise, so the ratio is 9."""
    at = level(math.sqrt(0.9), math.sqrt(0.1))
    assert float(at.log_snr) == pytest.approx(math.log(9), rel=1e-12)


def test_levels_written_out():
    """eq:level-vp, eq:level-cosine, eq:level-linear, eq:level-ve: both factors and both slopes.

    The slopes are compared with central differences at h = 1e-5, whose error is of the order of
    h^2 = 1e-10.
    """
    for schedule in PATHS:
        at, h = schedule(TIMES), 1e-5
        for got, want in zip(at[:2], written_levels(schedule, TIMES), strict=True):
            torch.testing.assert_close(got, want, **EXACT)
        after, before = written_levels(schedule, TIMES + h), written_levels(schedule, TIMES - h)
        for got, b, a in zip(at[2:], after, before, strict=True):
            torch.testing.assert_close(got, (b - a) / (2 * h), rtol=1e-7, atol=1e-7)


def test_table_is_the_cumulative_product():
    """eq:table: step i of the chain is the product of what i steps keep."""
    betas = [0.1, 0.2, 0.4]
    at = md.BetaTable(torch.tensor(betas))(torch.tensor([1 / 3, 2 / 3, 1.0], dtype=torch.float64))
    shares = torch.tensor([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.6], dtype=torch.float64)
    # the betas arrive in float32 here, as tables often do: 6e-8 relative
    torch.testing.assert_close(at.signal**2, shares, rtol=1e-7, atol=0)
    torch.testing.assert_close(at.noise**2, 1 - shares, rtol=1e-6, atol=0)


def test_cosine_betas_written_out():
    """eq:betas-cosine: ratios of squared cosines; the last one hits the ceiling."""
    T = 20
    c = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
    want = [min(1 - c[i] / c[i - 1], 0.999) for i in range(1, T + 1)]
    assert want[-1] == 0.999
    torch.testing.assert_close(md.cosine_betas(T), torch.tensor(want, dtype=torch.float64), **EXACT)


def test_time_of_written_out():
    """eq:time-of: each path solved for t, at log-SNRs from 4 to -4."""
    lam = torch.linspace(4, -4, 9, dtype=torch.float64)
    log_signal = -torch.log1p(torch.exp(-lam)) / 2
    wanted = {
        md.VP(): -2 * log_signal / (0.05 + torch.sqrt(0.05**2 - 19.9 * log_signal)),
        md.Cosine(): torch.atan(torch.exp(-lam / 2)) * 2 / math.pi,
        md.LinearPath(): 1 / (1 + torch.exp(lam / 2)),
        md.VE(): (-lam / 2 - math.log(0.002)) / math.log(40_000),
    }
    for schedule, want in wanted.items():
        torch.testing.assert_close(schedule.t_of(lam), want, **EXACT)
        signal, noise = written_levels(schedule, want)
        torch.testing.assert_close(2 * torch.log(signal / noise), lam, rtol=1e-9, atol=1e-9)


@path
def test_sde_moments(schedule):
    """eq:sde: mean and variance obey m' = f m and V' = 2 f V + g^2; slopes by central differences
    (error 1e-8).
    """
    h = 1e-5
    f, g2 = md.drift_diffusion(schedule(TIMES))
    signal, noise = written_levels(schedule, TIMES)
    (s1, n1), (s0, n0) = written_levels(schedule, TIMES + h), written_levels(schedule, TIMES - h)
    torch.testing.assert_close((s1 - s0) / (2 * h), f * signal, rtol=1e-7, atol=1e-8)
    torch.testing.assert_close(
        (n1**2 - n0**2) / (2 * h), 2 * f * noise**2 + g2, rtol=1e-7, atol=1e-8
    )


def test_prior_kl_against_torch():
    """eq:prior-kl: torch's divergence between the two Gaussians, summed."""
    x0, at = normal(3, 2, 2), level(0.3, 0.8)
    start = torch.distributions.Normal(0.3 * x0, 0.8 * torch.ones_like(x0))
    end = torch.distributions.Normal(
        torch.zeros_like(x0), math.sqrt(0.3**2 + 0.8**2) * torch.ones_like(x0)
    )
    want = torch.distributions.kl_divergence(start, end).sum((1, 2))
    torch.testing.assert_close(md.prior_kl(at, x0), want, **EXACT)


# ---- predictions ---------------------------------------------------------------------------------


@path
def test_noise_and_velocity(schedule):
    """eq:noise-of and eq:velocity give back the noise that was put in, and its motion along the
    path.
    """
    x0, eps, t = normal(4, 3), normal(4, 3, seed=1), torch.tensor(0.4, dtype=torch.float64)
    signal, noise = (float(v) for v in written_levels(schedule, t))
    x, at = signal * x0 + noise * eps, schedule(t)
    torch.testing.assert_close(md.eps_from_x0(x0, x, at), eps, rtol=1e-9, atol=1e-9)
    want = float(at.d_signal) * x0 + float(at.d_noise) * eps
    torch.testing.assert_close(md.velocity_from_x0(x0, x, at), want, rtol=1e-9, atol=1e-9)


def test_prediction_rows_solve_two_equations():
    """eq:prediction-row and eq:prediction-rows: from x_t and y, written out, each row finds x0."""
    x0, eps, t = normal(4, 3), normal(4, 3, seed=1), torch.tensor(0.4, dtype=torch.float64)
    for schedule in PATHS:
        at = schedule(t)
        signal, noise = (float(v) for v in written_levels(schedule, t))
        x = signal * x0 + noise * eps
        targets = {
            "eps": eps,
            "x0": x0,
            "v": signal * eps - noise * x0,
            "score": -eps / noise,
            "flow": float(at.d_signal) * x0 + float(at.d_noise) * eps,
        }
        for name, y in targets.items():
            torch.testing.assert_close(md.to_x0(name, y, x, at), x0, rtol=1e-9, atol=1e-9)


def test_edm_row_written_out():
    """eq:edm-row at signal .6, noise .8 and data of spread .5: r^2 = .64 + .25 .36 = .73."""
    row, r = predictions.edm(0.5), math.sqrt(0.73)
    skip, out = row.coefficients(level(0.6, 0.8))
    assert float(skip) == pytest.approx(0.25 * 0.6 / 0.73, rel=1e-12)
    assert float(out) == pytest.approx(0.8 * 0.5 / r, rel=1e-12)
    assert row.c_in is not None and float(row.c_in(level(0.6, 0.8))) == pytest.approx(
        1 / r, rel=1e-12
    )


def test_score_is_the_gradient():
    """eq:tweedie: the score implied by the exact denoiser is the gradient of the exact log-
    density, by autograd.
    """
    weights, means, stds = [0.3, 0.7], [-1.0, 2.0], [0.5, 0.2]
    signal, noise = 0.6, 0.8
    x = torch.linspace(-3, 3, 7, dtype=torch.float64).reshape(-1, 1).requires_grad_()
    parts = [
        w * torch.exp(-((x - signal * m) ** 2) / (2 * v)) / math.sqrt(v)
        for w, m, v in zip(
            weights, means, [(signal * s) ** 2 + noise**2 for s in stds], strict=True
        )
    ]
    (gradient,) = torch.autograd.grad(torch.log(parts[0] + parts[1]).sum(), x)
    mean = sum(
        p * (m + signal * s**2 / ((signal * s) ** 2 + noise**2) * (x - signal * m))
        for p, m, s in zip(parts, means, stds, strict=True)
    ) / (parts[0] + parts[1])
    score = md.score_from_x0(mean.detach(), x.detach(), level(signal, noise))
    torch.testing.assert_close(score, gradient, **EXACT)


# ---- exact denoisers -----------------------------------------------------------------------------


def mean_by_quadrature(density, x: float, signal: float, noise: float) -> float:
    """E[x0 | x_t = x] as a ratio of two integrals over a grid; the trapezoid rule is exact to
    1e-9 here.
    """
    grid = torch.linspace(-8, 8, 40_001, dtype=torch.float64)
    joint = density(grid) * torch.exp(-((x - signal * grid) ** 2) / (2 * noise**2))
    return float((joint * grid).sum() / joint.sum())


def bell(x: torch.Tensor, mean: float, std: float) -> torch.Tensor:
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / std


def test_denoisers_by_quadrature():
    """eq:gaussian, eq:mixture-denoiser, eq:empirical against integrals and a sum that know no
    closed form.
    """
    signal, noise, t = (
        math.cos(math.pi / 5),
        math.sin(math.pi / 5),
        torch.tensor(0.4, dtype=torch.float64),
    )
    xs = torch.tensor([[-1.5], [0.2], [1.0]], dtype=torch.float64)

    def column(values) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64).reshape(-1, 1)

    one = md.Gaussian(
        torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
    )
    want = [mean_by_quadrature(lambda g: bell(g, 0.5, 0.7), float(x), signal, noise) for x in xs]
    torch.testing.assert_close(one.denoiser(md.Cosine())(xs, t), column(want), rtol=1e-8, atol=1e-8)

    two = md.GaussianMixture(
        column([-1.0, 2.0]), torch.tensor([0.5, 0.3]).double(), torch.tensor([0.3, 0.7]).double()
    )

    def density(g: torch.Tensor) -> torch.Tensor:
        return 0.3 * bell(g, -1.0, float(torch.tensor(0.5))) + 0.7 * bell(
            g, 2.0, float(torch.tensor(0.3))
        )

    want = [mean_by_quadrature(density, float(x), signal, noise) for x in xs]
    # the mixture was given in float32: 4e-8 relative in a width or a weight
    torch.testing.assert_close(two.denoiser(md.Cosine())(xs, t), column(want), rtol=1e-6, atol=1e-6)

    points = [-1.0, 0.3, 0.9, 2.0]
    want = []
    for x in xs[:, 0].tolist():
        pull = [math.exp(-((x - signal * p) ** 2) / (2 * noise**2)) for p in points]
        want.append(sum(w * p for w, p in zip(pull, points, strict=True)) / sum(pull))
    torch.testing.assert_close(
        md.Empirical(column(points)).denoiser(md.Cosine())(xs, t), column(want), **EXACT
    )


def test_density_written_out():
    """eq:mixture-density: two bells written out, at t = 0.4 on the straight path."""
    means, stds = torch.tensor([[-1.0], [2.0]]).double(), torch.tensor([0.5, 0.25]).double()
    data = md.GaussianMixture(means, stds, torch.tensor([0.25, 0.75]).double())
    want = []
    for x in (-1.0, 0.0, 1.3):
        parts = []
        for w, m, s in ((0.25, -1.0, 0.5), (0.75, 2.0, 0.25)):
            var = 0.6**2 * s**2 + 0.4**2
            parts.append(
                w * math.exp(-((x - 0.6 * m) ** 2) / (2 * var)) / math.sqrt(2 * math.pi * var)
            )
        want.append(math.log(sum(parts)))
    xs = torch.tensor([[-1.0], [0.0], [1.3]]).double()
    got = data.log_prob(xs, torch.tensor(0.4).double(), md.LinearPath())
    # t = 0.4 was rounded to float32 on its way
    torch.testing.assert_close(got, torch.tensor(want).double(), rtol=1e-6, atol=1e-6)


# ---- samplers ------------------------------------------------------------------------------------

GRID = torch.tensor([1.0, 0.7, 0.3, 0.1], dtype=torch.float64)


def written_move(t: float, s: float, eta: float) -> tuple[float, float, float]:
    signal_t, signal_s, noise_t, noise_s = 1 - t, 1 - s, t, s
    fresh = noise_t**2 - signal_t**2 / signal_s**2 * noise_s**2
    var = eta**2 * noise_s**2 / noise_t**2 * fresh
    keep = math.sqrt(noise_s**2 - var) / noise_t
    return keep, signal_s - keep * signal_t, var


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moves_written_out(eta):
    """eq:move-coefficients on the straight path, step by step."""
    steps = moves(md.LinearPath(), GRID, eta=eta)
    for move, t, s in zip(steps, GRID[:-1].tolist(), GRID[1:].tolist(), strict=True):
        want = written_move(t, s, eta)
        assert (move.keep, move.add, move.var) == pytest.approx(want, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moves_keep_the_marginals(eta):
    """eq:move: with the true x0 a step lands on the mean s_s x0 and the variance n_s^2."""
    for move, t, s in zip(
        moves(md.LinearPath(), GRID, eta=eta), GRID[:-1].tolist(), GRID[1:].tolist(), strict=True
    ):
        assert move.keep * (1 - t) + move.add == pytest.approx(1 - s, rel=1e-12)
        assert move.keep**2 * t**2 + move.var == pytest.approx(s**2, rel=1e-12)


def test_ddim_written_out():
    """eq:ddim at eta = 0 with a denoiser that always answers the same."""
    x, guess = normal(2, 3), normal(2, 3, seed=1)
    states = list(md.ddim(lambda x, t: guess, md.LinearPath(), x, GRID))
    for state, t, s in zip(states, GRID[:-1].tolist(), GRID[1:].tolist(), strict=True):
        eps = (x - (1 - t) * guess) / t
        x = (1 - s) * guess + s * eps
        torch.testing.assert_close(state.x, x, **EXACT)
        assert float(state.t) == s


def test_encode_written_out():
    """eq:encode: the same steps in the other direction."""
    x, guess, times = normal(2, 3), normal(2, 3, seed=1), GRID.flip(0)
    states = list(md.encode(lambda x, t: guess, md.LinearPath(), x, times))
    for state, s, t in zip(states, times[:-1].tolist(), times[1:].tolist(), strict=True):
        x = t / s * x + ((1 - t) - t / s * (1 - s)) * guess
        torch.testing.assert_close(state.x, x, **EXACT)


# ---- guidance ------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_cfg_written_out(scale):
    """eq:cfg: on the line through both answers; 0 and 1 are the answers themselves."""
    x, t, cond, free = normal(2, 3), torch.tensor(0.5), normal(2, 3, seed=1), normal(2, 3, seed=2)
    guided = md.cfg(lambda x, t: cond, lambda x, t: free, scale)
    torch.testing.assert_close(guided(x, t), (1 - scale) * free + scale * cond, **EXACT)


def test_inpaint_written_out():
    """eq:inpaint with the denoiser 0.5 x: known entries bit for bit, and the denoiser saw them
    clean.
    """
    x, values = normal(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    known = torch.tensor([[True, False], [False, True]])
    seen = []

    def half(x, t):
        seen.append(x)
        return 0.5 * x

    got = md.inpaint(half, values, known)(x, torch.tensor(0.5))
    assert torch.equal(got[known], values[known])
    torch.testing.assert_close(got[~known], 0.5 * x[~known], **EXACT)
    assert torch.equal(seen[0], torch.where(known, values, x))


# ---- networks ------------------------------------------------------------------------------------


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Give every weight a random value, also those that start at zero."""
    module = module.double().eval()
    for i, p in enumerate(module.parameters()):
        p.data = 0.3 * torch.randn(p.shape, generator=rng(i), dtype=torch.float64)
    return module


def test_resblock_written_out():
    """eq:resblock line by line; the norms are the block's own."""
    block = shaken(unet.ResBlock(8, 16, 6, 0.0))
    h, e = normal(2, 8, 4, 4), normal(2, 6, seed=1)
    a, b = F.linear(F.silu(e), block.emb.weight, block.emb.bias).split(16, dim=1)
    u = F.conv2d(F.gelu(block.norm1(h)), block.conv1.weight, block.conv1.bias, padding=1)
    inner = F.gelu((1 + a[..., None, None]) * block.norm2(u) + b[..., None, None])
    want = block.skip(h) + F.conv2d(inner, block.conv2.weight, block.conv2.bias, padding=1)
    torch.testing.assert_close(block(h, e), want, **EXACT)


def test_attention_written_out():
    """eq:attention with loops over images, heads and pairs of pixels."""
    block, heads, d = shaken(attention.SelfAttention(8, heads=2)), 2, 4
    h = normal(2, 8, 2, 3)
    got = block(h)
    for n in range(2):
        normed = F.group_norm(h[n : n + 1], 1, block.norm.weight, block.norm.bias, block.norm.eps)[
            0
        ]
        pixels = normed.reshape(8, 6).T
        q, k, v = (pixels @ block.qkv.weight.T + block.qkv.bias).split(8, dim=1)
        found = torch.zeros(6, 8, dtype=torch.float64)
        for j in range(heads):
            part = slice(j * d, (j + 1) * d)
            for i in range(6):
                fit = torch.exp(
                    torch.stack([q[i, part] @ k[l, part] for l in range(6)]) / math.sqrt(d)
                )
                found[i, part] = (fit / fit.sum()) @ v[:, part]
        want = h[n] + (found @ block.out.weight.T + block.out.bias).T.reshape(8, 2, 3)
        torch.testing.assert_close(got[n], want, rtol=1e-10, atol=1e-10)


# ---- metrics -------------------------------------------------------------------------------------


def test_frechet_closed_form():
    """eq:frechet: four points on each of two crosses have diagonal covariance, so the trace is
    (sd_a - sd_b)^2 summed.

    The points (+-p, 0), (0, +-q) have variances 2 p^2 / 3 and 2 q^2 / 3 with the N - 1 of a sample.
    """

    def cross(p: float, q: float, centre: tuple[float, float]) -> torch.Tensor:
        return torch.tensor([[p, 0], [-p, 0], [0, q], [0, -q]], dtype=torch.float64) + torch.tensor(
            centre
        )

    a, b = cross(1.0, 2.0, (0.0, 0.0)), cross(3.0, 2.5, (1.0, 2.0))
    want = 5.0 + (2 / 3) * ((3.0 - 1.0) ** 2 + (2.5 - 2.0) ** 2)
    assert metrics.frechet_distance(a, b) == pytest.approx(want, rel=1e-9)


def test_swd_of_a_shift():
    """eq:swd: a shift by d gives |d| / sqrt 2 in the plane.

    The mean of cos^2 over K random directions has standard deviation sqrt(1/8/K); with K = 200000
    its relative error is 0.0016, of the root 0.0008, so 0.004 is five of them and far below the
    0.01 of the sabotage.
    """
    points = normal(20, 2)
    got = metrics.sliced_wasserstein(
        points, points + torch.tensor([3.0, 4.0]), projections=200_000, rng=rng()
    )
    assert got == pytest.approx(5 / math.sqrt(2), rel=0.004)
