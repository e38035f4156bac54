"""Samplers against the algorithm boxes, closed forms, and diffusers' schedulers.

float64 throughout; loops of up to 1000 steps with factors near 1 keep rounding below 1e-10.
"""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from paths import Counting
from torch import nn

import minidiff as md

D = torch.float64
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(),
    "linear table": md.BetaTable(md.linear_betas(1000)),
    "cosine table": md.BetaTable(md.cosine_betas(50)),
}
SAMPLERS = {
    "ancestral": md.ancestral,
    "ancestral, forward variance": lambda *a, **k: md.ancestral(
        *a, variance=md.forward_variance, **k
    ),
    "ddim": md.ddim,
    "ddim eta=.5": lambda *a, **k: md.ddim(*a, eta=0.5, **k),
    "ddim eta=1": lambda *a, **k: md.ddim(*a, eta=1.0, **k),
    "consistency": md.consistency,
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


class Net(nn.Module):
    """A bounded stand-in for a trained eps net: smooth in x and t."""

    def forward(self, x, t, cond=None):
        return torch.tanh(x) * (0.5 + t.reshape(-1, *(1,) * (x.ndim - 1)) / 2)


def eps_at(x, t):
    """What Net says at a scalar time, written out."""
    return torch.tanh(x) * (0.5 + t / 2)


def shrink(x, t):
    return 0.9 * torch.tanh(x)


# ---- the algorithm boxes ------------------------------------------------------------------------


def test_prior_variance():
    """eq:prior: sqrt(signal^2 + noise^2) times the generator's draw; variance by 10^6 draws.

    The standard error of a standard deviation is 1/sqrt(2 10^6) = 7e-4; 1.01 would be 14 of them.
    """
    want = torch.randn(4, 3, generator=seeded(), dtype=D)
    torch.testing.assert_close(
        md.prior(md.VP(), (4, 3), rng=seeded(), dtype=D), want, rtol=1e-12, atol=0
    )
    got = md.prior(md.VE(), (4, 3), rng=seeded(), dtype=D)
    torch.testing.assert_close(got, math.sqrt(1 + 6400) * want, rtol=1e-12, atol=0)
    got = md.prior(md.LinearPath(), (4, 3), at=0.25, rng=seeded(), dtype=D)
    torch.testing.assert_close(got, math.sqrt(0.5625 + 0.0625) * want, rtol=1e-12, atol=0)
    x = md.prior(md.BetaTable(md.linear_betas(1000)), (1_000_000,), rng=seeded())
    assert float(x.std()) == pytest.approx(1, abs=0.0035)
    assert x.dtype == torch.float32 and md.prior(md.VP(), (2, 3, 4, 5)).shape == (2, 3, 4, 5)


@pytest.mark.parametrize("betas", [md.linear_betas(1000), md.cosine_betas(50)], ids=["1000", "50"])
@pytest.mark.parametrize("choice", ["small", "large"])
def test_ancestral_is_algorithm_2(betas, choice):
    """eq:ancestral: Ho et al.'s algorithm 2 written out, with the same draws of the generator.

    x <- (x - beta / sqrt(1 - bar) eps) / sqrt(alpha) + sigma z, and z = 0 at t = 1.
    """
    T, shape = len(betas), (3, 2)
    alpha, bar = 1 - betas, (1 - betas).cumprod(0)
    rng = seeded()
    x = torch.randn(shape, generator=rng, dtype=D)
    for t in range(T, 0, -1):
        z = torch.randn(shape, generator=rng, dtype=D) if t > 1 else torch.zeros(shape, dtype=D)
        b, a, ab = betas[t - 1], alpha[t - 1], bar[t - 1]
        before = bar[t - 2] if t > 1 else torch.tensor(1.0, dtype=D)
        sigma2 = b if choice == "large" else (1 - before) / (1 - ab) * b
        x = (x - b / (1 - ab).sqrt() * eps_at(x, t / T)) / a.sqrt() + sigma2.sqrt() * z

    table = md.BetaTable(betas)
    variance = md.forward_variance if choice == "large" else md.posterior_variance
    rng = seeded()
    start = md.prior(table, shape, rng=rng, dtype=D)
    states = md.ancestral(
        md.Denoiser(Net(), table, "eps"), table, start, md.ddpm_steps(T), variance=variance, rng=rng
    )
    # a chain of T steps whose net is not contracting multiplies rounding by up to 1 / sqrt(bar_T)
    torch.testing.assert_close(md.last(states), x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_equation_12(eta):
    """eq:ddim: Song et al.'s equations 12 and 16 written out on a strided table."""
    betas, T, shape = md.linear_betas(1000), 1000, (3, 2)
    bar = torch.cat([torch.ones(1, dtype=D), (1 - betas).cumprod(0)])
    rng = seeded()
    x = torch.randn(shape, generator=rng, dtype=D)
    steps = list(range(1000, -1, -50))
    for t, s in pairwise(steps):
        eps = eps_at(x, t / T)
        x0 = (x - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt()
        sigma = eta * ((1 - bar[s]) / (1 - bar[t])).sqrt() * (1 - bar[t] / bar[s]).sqrt()
        x = bar[s].sqrt() * x0 + (1 - bar[s] - sigma**2).clamp(min=0).sqrt() * eps
        if s > 0 and eta > 0:
            x = x + sigma * torch.randn(shape, generator=rng, dtype=D)

    table = md.BetaTable(betas)
    rng = seeded()
    start = md.prior(table, shape, rng=rng, dtype=D)
    model = md.Denoiser(Net(), table, "eps")
    states = md.ddim(model, table, start, md.grids.strided(1000, 20), eta=eta, rng=rng)
    torch.testing.assert_close(md.last(states), x, rtol=1e-8, atol=1e-8)


def test_ddim_with_eta_one_has_the_textbook_coefficients():
    """x_s - sigma z = coef_t x_t + coef_0 x0 with Ho et al.'s coefficients, read off."""
    betas = md.cosine_betas(20)
    bar = torch.cat([torch.ones(1, dtype=D), (1 - betas).cumprod(0)])
    table = md.BetaTable(betas)

    def no_noise(move):
        return 0.0

    for x_start, x0 in [(1.0, 0.0), (0.0, 1.0)]:
        for t in range(20, 0, -1):
            coef0 = bar[t - 1].sqrt() * betas[t - 1] / (1 - bar[t])
            coeft = (1 - betas[t - 1]).sqrt() * (1 - bar[t - 1]) / (1 - bar[t])
            times = torch.tensor([t / 20, (t - 1) / 20], dtype=D)
            states = md.ddim(
                lambda x, _, x0=x0: torch.full_like(x, x0),
                table,
                torch.full((1,), x_start, dtype=D),
                times,
                eta=1.0,
                variance=no_noise,
            )
            want = float(coeft * x_start + coef0 * x0)
            assert float(md.last(states)) == pytest.approx(want, rel=1e-10, abs=1e-14)


# ---- closed forms -------------------------------------------------------------------------------

STD = 0.5  # of the one-dimensional Gaussian data


def chain_variance(n):
    """Variance at the end of an ancestral chain with the exact denoiser, two ways, and its deficit.

    The deficit is taken at the last noisy level, log-SNR 8, before the landing. First the
    recursion V_s = gain^2 V_t + sigma^2 is written out from cos and sin; then come the gains and
    variances that the sampler itself used, read off from a point without noise.
    """
    path, data_1d = md.Cosine(), md.Gaussian(torch.zeros((), dtype=D), torch.tensor(STD, dtype=D))
    lam = torch.linspace(-8, 8, n, dtype=D)
    angle = torch.atan(torch.exp(-lam / 2))
    s, v = torch.cos(angle).tolist(), (torch.sin(angle) ** 2).tolist()
    want = 1.0  # the prior
    for i in range(n - 1):
        a2 = (s[i] / s[i + 1]) ** 2
        fresh = v[i] - a2 * v[i + 1]
        line = s[i] * STD**2 / (s[i] ** 2 * STD**2 + v[i])  # E[x0 | x_t] = line x_t
        gain = math.sqrt(a2) * v[i + 1] / v[i] + s[i + 1] * fresh / v[i] * line
        want = gain**2 * want + v[i + 1] / v[i] * fresh
    deficit = 1 - want / (s[-1] ** 2 * STD**2 + v[-1])
    want *= (s[-1] * STD**2 / (s[-1] ** 2 * STD**2 + v[-1])) ** 2  # landing: x = E[x0 | x_t]

    used = []

    def spy(move):
        used.append(md.posterior_variance(move))
        return 0.0

    times = torch.cat([path.t_of(lam), torch.zeros(1, dtype=D)])
    x = torch.ones(1, dtype=D)
    got = 1.0
    states = md.ancestral(data_1d.denoiser(path), path, x, times, variance=spy)
    for state in states:
        got = float(state.x / x) ** 2 * got + (used[-1] if float(state.t) > 0 else 0.0)
        x = state.x
    assert len(used) == n - 1  # the landing asks for no variance
    return want, got, deficit


def test_ancestral_variance_recursion():
    """eq:variance-recursion: an exact denoiser still under-disperses, by an amount of order 1/N.

    Both computations agree to rounding. The deficit is 14.8 % at N = 50 and 1.1 % at 800 (the
    figures have three and two digits). Its slope is measured before the landing, which alone costs
    e^-8 / STD^2 = .13 % at every N: 1 within .01 from N = 800 on.
    """
    before = {}
    for n in (50, 200, 800, 3200):
        want, got, before[n] = chain_variance(n)
        assert got == pytest.approx(want, rel=1e-9)
        if n in (50, 800):
            quoted = {50: 0.148, 800: 0.011}[n]
            assert 1 - got / STD**2 == pytest.approx(quoted, abs=5e-4)
    assert before[50] > before[200] > before[800] > before[3200] > 0
    slope = math.log(before[800] / before[3200]) / math.log(4)
    assert slope == pytest.approx(1, abs=0.01)


def test_ancestral_variance_by_sampling():
    """The recursion is what samples do: 200,000 chains of 50 steps, 4 standard errors."""
    path = md.Cosine()
    truth = md.Gaussian(torch.zeros((), dtype=D), torch.tensor(STD, dtype=D))
    times = torch.cat([path.t_of(torch.linspace(-8, 8, 50, dtype=D)), torch.zeros(1, dtype=D)])
    x = torch.randn(200_000, generator=seeded(), dtype=D)
    x = md.last(md.ancestral(truth.denoiser(path), path, x, times, rng=seeded(4)))
    want = chain_variance(50)[0]
    assert float(x.var()) == pytest.approx(want, rel=4 * math.sqrt(2 / 200_000))


@pytest.mark.parametrize("path", list(PATHS.values())[:5], ids=list(PATHS)[:5])
def test_ddim_has_order_one(path):
    """On Gaussian data the flow is x_s = x_t std_s / std_t exactly; the error halves with the step.

    Grids of equal log-SNR from -4 to 6 (they stop there: a step onto t = 0 is not the flow's).
    Slope 1 within .05 from n = 80 on. The cosine table of 50 steps has too few levels for it.
    """
    truth = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor([STD], dtype=D))
    error = []
    for n in (80, 160, 320):
        times = md.grids.log_snr(path, n, low=-4, high=6, land=False)
        a, b = path(times[0]), path(times[-1])
        ratio = ((b.signal * STD) ** 2 + b.noise**2) / ((a.signal * STD) ** 2 + a.noise**2)
        x = torch.ones(1, 1, dtype=D)
        got = md.last(md.ddim(truth.denoiser(path), path, x, times))
        error.append(abs(float(got / ratio.sqrt()) - 1))
    for rough, fine in pairwise(error):
        assert math.log2(rough / fine) == pytest.approx(1, abs=0.05)


def test_encode_then_decode_returns_the_data():
    """eq:encode: the round trip's error falls like 1/K: slope 1 within .15 over K = 40..640."""
    path = md.Cosine()
    means = torch.tensor([[0.7, 0.0], [-0.7, 0.3]], dtype=D)
    denoise = md.GaussianMixture(means, 0.3).denoiser(path)
    x0 = md.GaussianMixture(means, 0.3).sample(64, rng=seeded())
    error = []
    for k in (40, 160, 640):
        down = md.grids.log_snr(path, k, low=-6, high=6, land=False)
        codes = md.last(md.encode(denoise, path, x0, down.flip(0)))
        back = md.last(md.ddim(denoise, path, codes, down))
        error.append(float((back - x0).square().mean().sqrt()))
    assert error[0] < 0.1
    for rough, fine in pairwise(error):
        assert math.log(rough / fine) / math.log(4) == pytest.approx(1, abs=0.15)


def test_encode_from_clean_data():
    """A grid that starts at 0 reads the first noise at the mean of its second level."""
    path, x0 = md.LinearPath(), data(5, 2)
    times = torch.tensor([0.0, 0.25, 0.5], dtype=D)
    states = list(md.encode(shrink, path, x0, times))
    mean = 0.75 * x0
    eps = (mean - 0.75 * shrink(mean, None)) / 0.25
    first = 0.75 * x0 + 0.25 * eps
    torch.testing.assert_close(states[0].x, first, rtol=1e-12, atol=1e-12)
    guess = shrink(first, None)
    second = 0.5 * guess + 0.5 * (first - 0.75 * guess) / 0.25
    torch.testing.assert_close(states[1].x, second, rtol=1e-12, atol=1e-12)
    assert [float(s.t) for s in states] == [0.25, 0.5]


def test_encode_codes_are_nearly_normal():
    """Exact flow to log-SNR -8: codes of mixture data have mean 0 and variance 1, 5 std errors."""
    path = md.VP()
    truth = md.GaussianMixture(torch.tensor([[1.0], [-1.0]], dtype=D), 0.3)
    x0 = truth.sample(4000, rng=seeded())
    up = md.grids.log_snr(path, 200, low=-8, high=7).flip(0)
    codes = md.last(md.encode(truth.denoiser(path), path, x0, up))
    assert abs(float(codes.mean())) < 5 / 4000**0.5
    assert float(codes.var()) == pytest.approx(1, abs=5 * math.sqrt(2 / 4000) + 0.02)  # 1/K bias


# ---- diffusers ----------------------------------------------------------------------------------


def double(scheduler, betas):
    """diffusers keeps float32 tables; with ours in float64 equality can be seen to rounding."""
    scheduler.betas = betas
    scheduler.alphas = 1 - betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    scheduler.one = torch.tensor(1.0, dtype=D)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = torch.tensor(1.0, dtype=D)
    return scheduler


KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


CHAINS = [(50, kind, variance) for kind in KINDS for variance in ("fixed_small", "fixed_large")]
COUNTS = [(n, "eps", "fixed_small") for n in (10, 25, 100, 1000)]


@pytest.mark.parametrize(("n", "prediction", "variance"), [*COUNTS, *CHAINS])
@pytest.mark.parametrize("clipped", [False, True])
def test_ancestral_equals_diffusers(n, prediction, variance, clipped):
    """DDPMScheduler, whole chains with the same noise; clip is its clip_sample."""
    betas = md.linear_betas(1000)
    scheduler = double(
        diffusers.DDPMScheduler(
            1000, trained_betas=betas.numpy(), variance_type=variance, clip_sample=clipped,
            prediction_type=KINDS[prediction], timestep_spacing="trailing",
        ), betas,
    )  # fmt: skip
    scheduler.set_timesteps(n)
    rng = seeded()
    start = torch.randn(2, 1, 4, 4, generator=rng, dtype=D)
    x, used = start, []
    for t in scheduler.timesteps:
        y = torch.tanh(x) * (0.5 + float(t + 1) / 2000)
        used.append(int(t) + 1)
        step = scheduler.step(y, int(t), x, generator=rng)
        x = step.prev_sample
    x = step.pred_original_sample  # on a strided grid diffusers adds noise to the last step too

    table = md.BetaTable(betas)
    times = md.grids.strided(1000, n)
    assert (times[:-1] * 1000).round().long().tolist() == used
    model = md.Denoiser(Net(), table, prediction)
    rng = seeded()
    torch.randn(2, 1, 4, 4, generator=rng, dtype=D)
    choice = md.forward_variance if variance == "fixed_large" else md.posterior_variance
    denoise = md.clip(model, -1, 1) if clipped else model
    got = md.last(md.ancestral(denoise, table, start, times, variance=choice, rng=rng))
    torch.testing.assert_close(got, x, rtol=1e-7, atol=1e-7)


SHORT = [(20, eta, kind) for eta in (0.0, 0.6, 1.0) for kind in KINDS]


@pytest.mark.parametrize(
    ("n", "eta", "prediction"), [*((n, 0.0, "eps") for n in (5, 10, 25, 100)), *SHORT]
)
@pytest.mark.parametrize("clipped", [False, True])
def test_ddim_equals_diffusers(n, eta, prediction, clipped):
    """DDIMScheduler with set_alpha_to_one, trailing steps, and use_clipped_model_output=True."""
    betas = md.linear_betas(1000)
    scheduler = double(
        diffusers.DDIMScheduler(
            1000, trained_betas=betas.numpy(), clip_sample=clipped, set_alpha_to_one=True,
            prediction_type=KINDS[prediction], timestep_spacing="trailing",
        ), betas,
    )  # fmt: skip
    scheduler.set_timesteps(n)
    rng = seeded()
    start = torch.randn(2, 1, 4, 4, generator=rng, dtype=D)
    x = start
    for t in scheduler.timesteps:
        y = torch.tanh(x) * (0.5 + float(t + 1) / 2000)
        x = scheduler.step(
            y, int(t), x, eta=eta, use_clipped_model_output=True, generator=rng
        ).prev_sample

    table = md.BetaTable(betas)
    model = md.Denoiser(Net(), table, prediction)
    rng = seeded()
    torch.randn(2, 1, 4, 4, generator=rng, dtype=D)
    denoise = md.clip(model, -1, 1) if clipped else model
    got = md.last(md.ddim(denoise, table, start, md.grids.strided(1000, n), eta=eta, rng=rng))
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("steps", [[0], [22, 0], [30, 11, 4, 0]], ids=["1", "2", "4"])
def test_consistency_equals_diffusers(steps):
    """CMStochasticIterativeScheduler: the same noise, end at its sigma_min, clipped to [-1, 1].

    One step, the two of the paper's models (22 and 0 of 40), and four. Its first sigma is the
    largest, and the sample starts as sigma_max times noise.
    """
    spread, low = 0.5, 0.002
    scheduler = diffusers.CMStochasticIterativeScheduler(40, sigma_min=low, sigma_data=spread)
    scheduler.set_timesteps(timesteps=steps)
    ramp = torch.tensor(steps[::-1], dtype=D) / 39
    sigmas = (80 ** (1 / 7) + ramp * (low ** (1 / 7) - 80 ** (1 / 7))) ** 7
    scheduler.sigmas = torch.cat([sigmas, torch.tensor([low], dtype=D)])
    rng = seeded()
    x = start = 80 * torch.randn(2, 1, 4, 4, generator=rng, dtype=D)
    for t, sigma in zip(scheduler.timesteps, sigmas.tolist(), strict=True):
        y = torch.tanh(scheduler.scale_model_input(x, t)) * (1 + math.log(sigma) / 9)
        x = scheduler.step(y, t, x, generator=rng).prev_sample

    path = md.VE(0.001, 80.0)  # .002 lies inside, so that its time is exact

    def f(x, t):  # boundary conditions of Song et al. (2023), appendix C
        sigma = float(path(t).noise)
        y = torch.tanh(x / math.sqrt(sigma**2 + spread**2)) * (1 + math.log(sigma) / 9)
        skip = spread**2 / ((sigma - low) ** 2 + spread**2)
        out = (sigma - low) * spread / math.sqrt(sigma**2 + spread**2)
        return (skip * x + out * y).clamp(-1, 1)

    times = torch.cat([path.t_of(-2 * sigmas.log()), torch.zeros(1, dtype=D)])
    rng = seeded()
    torch.randn(2, 1, 4, 4, generator=rng, dtype=D)
    end = path.t_of(-2 * math.log(low))
    got = md.last(md.consistency(f, path, start, times, end=end, rng=rng))
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


# ---- consistency models -------------------------------------------------------------------------


@pytest.mark.parametrize("end", [0.0, 0.05])
def test_consistency_written_out(end):
    """eq:consistency on LinearPath: f, then a f + noise of what is missing, with the same draws."""
    times, x, want, rng = [1.0, 0.6, 0.2, 0.0], data(4, 2), [], seeded(5)
    start = x
    for t, s in pairwise(times):
        x = shrink(x, t)
        if s > 0:
            a = (1 - s) / (1 - end)
            z = torch.randn(4, 2, generator=rng, dtype=D)
            x = a * x + math.sqrt(s**2 - (a * end) ** 2) * z
        want.append(x)
    counted = md.count_calls(shrink)
    grid = torch.tensor(times, dtype=D)
    states = list(md.consistency(counted, md.LinearPath(), start, grid, end=end, rng=seeded(5)))
    assert counted.calls == 3 and [float(s.t) for s in states] == times[1:]
    for state, x in zip(states, want, strict=True):
        torch.testing.assert_close(state.x, x, rtol=1e-12, atol=1e-12)
    assert states[-1].x is states[-1].x0  # landing


def test_consistency_with_the_exact_function_is_exact():
    """f(x, t) = x STD / std_t is the end of a Gaussian's flow: two calls keep the variance.

    With the denoiser in its place the chain is not a sampler: the first call returns next to
    nothing and the second STD^2 / (STD^2 + 1) = .2 times the fresh noise, variance .04 instead of
    .25. 100,000 samples, 4 standard errors; at the grid's second time noise / signal is 1.
    """
    path, n = md.VE(), 100_000
    half = path.t_of(0.0)
    times = torch.stack([torch.ones((), dtype=D), half, torch.zeros((), dtype=D)])
    x = math.sqrt(STD**2 + 6400) * torch.randn(n, generator=seeded(), dtype=D)

    def exact(x, t):
        return x * STD / (STD**2 + path(t).noise ** 2).sqrt()

    got = md.last(md.consistency(exact, path, x, times, rng=seeded(4)))
    assert float(got.var()) == pytest.approx(STD**2, rel=4 * math.sqrt(2 / n))
    truth = md.Gaussian(torch.zeros((), dtype=D), torch.tensor(STD, dtype=D)).denoiser(path)
    got = md.last(md.consistency(truth, path, x, times, rng=seeded(4)))
    assert float(got.var()) == pytest.approx(0.2**2, rel=4 * math.sqrt(2 / n))


@pytest.mark.parametrize(
    ("times", "end"),
    [
        ([1.0, 0.5, 0.0], 0.5),
        ([1.0, 0.5, 0.1], 0.2),
        ([0.5, 0.0], 0.7),
        ([0.5, 0.0], 0.5),
        ([1.0, 0.0], -0.1),
        ([1.0, 0.0], math.nan),
    ],
)
def test_consistency_refuses_an_end_above_a_time(times, end):
    grid = torch.tensor(times, dtype=D)
    with pytest.raises(ValueError, match=f"end={end}"):
        md.consistency(shrink, md.VP(), data(2, 2), grid, end=end)
    md.consistency(shrink, md.VP(), data(2, 2), grid, end=0.05)


# ---- contracts ----------------------------------------------------------------------------------


@each_path
@each_sampler
def test_landing_is_the_prediction(path, sampler):
    """A step onto t = 0 returns the prediction itself, bit for bit, and draws no noise."""
    times = md.grids.uniform(6) if path(1.0).signal > 0 else md.grids.uniform(6, start=0.98)
    seen = []

    def denoise(x, t):
        seen.append(shrink(x, t))
        return seen[-1]

    states = list(sampler(denoise, path, data(4, 2), times, rng=seeded()))
    assert states[-1].x is seen[-1] and states[-1].x0 is seen[-1]
    assert float(states[-1].t) == 0 and len(states) == len(seen) == 6
    assert [float(s.t) for s in states] == times[1:].tolist()


@each_path
@each_sampler
def test_start_may_lie_where_signal_is_zero(path, sampler):
    """From t = 1 itself, also where signal is exactly 0: everything stays finite."""
    states = sampler(shrink, path, data(4, 2), md.grids.uniform(5), rng=seeded())
    for state in states:
        assert bool(torch.isfinite(state.x).all())


@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 1, 4, 4), (3, 5, 2)])
@each_sampler
def test_any_event_shape(shape, sampler):
    """The same code on scalars, points, images and sequences; entries do not mix."""
    path, x = md.VP(), data(*shape)
    got = md.last(sampler(shrink, path, x, md.grids.uniform(8), rng=seeded()))
    flat = md.last(sampler(shrink, path, x.reshape(3, -1), md.grids.uniform(8), rng=seeded()))
    assert got.shape == shape
    torch.testing.assert_close(got.reshape(3, -1), flat, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, D])
@each_sampler
def test_dtype_is_kept_and_t_is_scalar_float64(dtype, sampler):
    def denoise(x, t):
        assert t.ndim == 0 and t.dtype == D and t.device.type == "cpu" and x.dtype == dtype
        return shrink(x, t)

    for state in sampler(denoise, md.VP(), data(2, 2).to(dtype), md.grids.uniform(4)):
        assert state.x.dtype == dtype and state.t.dtype == D and state.t.ndim == 0


@each_sampler
def test_grad_mode_is_the_callers(sampler):
    """No graph is built under grad mode, and the caller's mode is its own between two steps."""
    weight = torch.tensor(0.9, requires_grad=True, dtype=D)
    x = data(2, 2).requires_grad_()
    assert torch.is_grad_enabled()
    for state in sampler(lambda x, t: weight * x, md.VP(), x, md.grids.uniform(4)):
        assert torch.is_grad_enabled()
        assert not state.x.requires_grad and not state.x0.requires_grad
    with torch.no_grad():
        for _ in sampler(lambda x, t: weight * x, md.VP(), x, md.grids.uniform(4)):
            assert not torch.is_grad_enabled()
    for state in md.encode(lambda x, t: weight * x, md.VP(), x, md.grids.uniform(4).flip(0)):
        assert torch.is_grad_enabled() and not state.x.requires_grad


@each_sampler
def test_randomness_is_the_generators(sampler, global_state_untouched):
    """Equal seeds, equal samples; None is fresh each time; the global state is never touched."""

    def run(rng):
        return md.last(sampler(shrink, md.VP(), data(4, 2), md.grids.uniform(6), rng=rng))

    assert torch.equal(run(seeded()), run(seeded()))
    stochastic = sampler is not md.ddim
    assert torch.equal(run(None), run(None)) != stochastic
    assert torch.equal(run(seeded(1)), run(seeded(2))) != stochastic


def test_the_start_is_not_changed():
    x = data(3, 2)
    before = x.clone()
    md.last(md.ancestral(shrink, md.VP(), x, md.grids.uniform(3)))
    md.last(md.encode(shrink, md.VP(), x, md.grids.uniform(3).flip(0)))
    assert torch.equal(x, before)


def test_one_schedule_call_serves_the_whole_grid():
    """All moves come from one call; the loop asks the schedule nothing."""

    path = Counting()
    states = md.ddim(shrink, path, data(2, 2), md.grids.uniform(20))
    assert path.calls <= 2  # the level, and its slope at 0
    md.last(states)
    assert path.calls <= 2


def test_trajectory_and_last():
    x, times = data(3, 2), md.grids.uniform(5)
    path = md.trajectory(md.ddim(shrink, md.VP(), x, times))
    assert path.shape == (5, 3, 2)
    assert torch.equal(path[-1], md.last(md.ddim(shrink, md.VP(), x, times)))


@pytest.mark.parametrize("end", [md.last, md.trajectory])
def test_a_spent_sampler_is_refused(end):
    states = md.ddim(shrink, md.VP(), data(2, 2), md.grids.uniform(3))
    end(states)
    with pytest.raises(ValueError, match="only once"):
        end(states)
    with pytest.raises(ValueError, match="empty"):
        end([])


BAD = [
    ({"times": torch.tensor([0.0, 1.0])}, "decrease strictly"),
    ({"times": torch.tensor([1.0])}, "times has shape"),
    ({"times": torch.tensor([2.0, 0.0])}, "not in"),
    ({"x": torch.zeros(2, 2, dtype=torch.long)}, "x has dtype"),
    ({"x": torch.full((2, 2), math.nan)}, "x holds NaN"),
    ({"x": torch.zeros(())}, "x has shape"),
]


@pytest.mark.parametrize("sampler", [md.ancestral, md.ddim, md.consistency])
@pytest.mark.parametrize(("bad", "word"), BAD)
def test_bad_input_is_refused_at_the_call(sampler, bad, word):
    """Before anything is consumed: no next() here."""
    good = {"x": torch.zeros(2, 2), "times": md.grids.uniform(3)} | bad
    with pytest.raises(ValueError, match=word):
        sampler(shrink, md.VP(), good["x"], good["times"])
    if "x" in bad:
        with pytest.raises(ValueError, match=word.replace("x ", "x0 ")):
            md.encode(shrink, md.VP(), good["x"], good["times"].flip(0))


def test_encode_refuses_a_decreasing_grid():
    with pytest.raises(ValueError, match="increase strictly"):
        md.encode(shrink, md.VP(), data(2, 2), md.grids.uniform(3))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_eta_is_refused_at_the_call(eta):
    with pytest.raises(ValueError, match="eta="):
        md.ddim(shrink, md.VP(), data(2, 2), md.grids.uniform(3), eta=eta)


@each_sampler
def test_a_denoiser_that_changes_the_shape_is_refused(sampler):
    states = sampler(lambda x, t: x[:, :1], md.VP(), data(2, 2), md.grids.uniform(3))
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 2\)"):
        next(states)


@pytest.mark.parametrize(
    "variance",
    [lambda m: -1.0, lambda m: math.nan, lambda m: torch.tensor([[1.0, -1.0]])],
)
def test_a_variance_that_is_none_is_refused(variance):
    states = md.ancestral(shrink, md.VP(), data(2, 2), md.grids.uniform(3), variance=variance)
    with pytest.raises(ValueError, match="variance"):
        next(states)


def test_a_variance_may_be_a_tensor():
    """One variance an entry: noise is scaled entry by entry."""
    scale = torch.tensor([[0.0, 4.0]], dtype=D)
    states = md.ancestral(
        lambda x, t: x, md.VP(), torch.zeros(50_000, 2, dtype=D),
        torch.tensor([0.5, 0.4], dtype=D), variance=lambda m: scale, rng=seeded(),
    )  # fmt: skip
    x = md.last(states)
    assert float(x[:, 0].abs().max()) == 0
    assert float(x[:, 1].std()) == pytest.approx(2, rel=5 / math.sqrt(100_000))


@pytest.mark.parametrize("shape", [(3, 3), (3, 2, 3), (3,)])
def test_a_variance_of_shape_b_is_one_an_example(shape):
    """As in the bound: also where the last axis is as long as the batch. The dtype stays x's."""
    x = torch.zeros(shape)
    scale = torch.tensor([0.0, 1.0, 4.0], dtype=D)
    times = torch.tensor([0.5, 0.4], dtype=D)
    got = md.last(
        md.ancestral(lambda x, t: x, md.VP(), x, times, variance=lambda m: scale, rng=seeded())
    )
    noise = torch.randn(shape, generator=seeded())
    want = torch.stack([0 * noise[0], noise[1], 2 * noise[2]])
    assert got.dtype == x.dtype
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("sampler", [md.ancestral, md.ddim, md.predictor_corrector])
def test_two_times_of_one_level_are_refused(sampler):
    """A table takes times within a thousandth of a step for the step."""
    times = torch.tensor([0.5 + 1e-6, 0.5, 0.0], dtype=D)
    with pytest.raises(ValueError, match="times: two of them are one level of BetaTable"):
        sampler(shrink, md.BetaTable(md.linear_betas(100)), torch.zeros(2, 2), times)
