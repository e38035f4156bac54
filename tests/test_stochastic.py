"""Samplers that draw noise in every step: written out with the same draws, and closed recursions.

float64 unless said. Draws are replayed from a generator with the same seed, so nothing but rounding
remains; tests by sampling say their standard errors.
"""

import math
from itertools import pairwise

import pytest
import torch
from paths import guess, level, times_of

import minidiff as md

D = torch.float64
SAMPLERS = {
    "reverse_sde": md.reverse_sde,
    "langevin": lambda *a, **k: md.langevin(*a, steps=3, **k),
    "predictor_corrector": md.predictor_corrector,
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(),
    "table": md.BetaTable(md.linear_betas(1000)),
}
each_name = pytest.mark.parametrize("name", ["VP", "Cosine", "LinearPath", "VE"])
TIMES = [0.9, 0.6, 0.35, 0.1, 0.0]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def draw(x, rng):
    return torch.randn(x.shape, generator=rng, dtype=x.dtype)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def sde(name, t):
    """Drift factor and squared diffusion of dx = f x dt + g dw, from the literature's closed forms.

    VP: f = -beta / 2, g^2 = beta. Cosine is variance preserving with s' / s = -(pi/2) tan(pi t/2),
    so g^2 = -2 f. Linear: f = -1/(1-t), g^2 = 2 t / (1-t). VE: f = 0, g^2 = d noise^2 / dt.
    """
    if name == "VP":
        beta = 0.1 + 19.9 * t
        return -beta / 2, beta
    if name == "Cosine":
        f = -math.pi / 2 * math.tan(math.pi * t / 2)
        return f, -2 * f
    if name == "LinearPath":
        return -1 / (1 - t), 2 * t / (1 - t)
    return 0.0, 2 * math.log(40000) * 0.002**2 * 40000 ** (2 * t)


def close(states, want, tolerance=1e-11):
    got = [s.x for s in states]
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def score(name, x, t):
    s, n = level(name, t)[:2]
    return (s * guess(x, t) - x) / n**2


def gaussian(path, std):
    truth = md.Gaussian(torch.zeros((), dtype=D), torch.tensor(std, dtype=D))
    return truth.denoiser(path)


# ---- the reverse equation -----------------------------------------------------------------------


@each_name
def test_reverse_sde_written_out(name):
    """eq:reverse-sde: a step of Euler and Maruyama with f, g^2 and the score written out."""
    x, want, rng = data(4, 2), [], seeded(5)
    states = md.reverse_sde(guess, PATHS[name], x, times_of(TIMES), rng=seeded(5))
    for t, s in pairwise(TIMES):
        if s == 0:
            x = guess(x, t)
        else:
            f, g2 = sde(name, t)
            mean = x + (s - t) * (f * x - g2 * score(name, x, t))
            x = mean + math.sqrt(g2 * (t - s)) * draw(x, rng)
        want.append(x)
    close(states, want, 1e-10)


STD = 0.5


def truth(name, t):
    """Variance of N(0, STD^2) data at time t."""
    s, n = level(name, t)[:2]
    return (s * STD) ** 2 + n**2


def grid(name, n):
    """Equal log-SNR from -4 to 0.

    It stops there: what is made early dies out later, and on the whole way down to 6 VE's errors of
    both signs nearly cancel, so that slopes of 1.75 and 1.47 are measured.
    """
    return md.grids.log_snr(PATHS[name], n, low=-4, high=0, land=False)


def chain(name, n):
    """Variance of the exact denoiser's chain over the true one at log-SNR 0, two ways.

    First V_s = gain^2 V_t + g^2 (t - s), gain = 1 + (s - t) (f + g^2 / truth_t), written out from
    the closed forms. Then gain and noise of each step as the sampler made them, read off from two
    points and the replayed draws: x_s = gain x_t + noise z is two equations, two unknowns.
    """
    path, times = PATHS[name], grid(name, n)
    want = got = truth(name, float(times[0]))
    for t, s in pairwise(times.tolist()):
        f, g2 = sde(name, t)
        want = (1 + (s - t) * (f + g2 / truth(name, t))) ** 2 * want + g2 * (t - s)
    x, rng = times_of([0.0, 1.0]), seeded(5)
    for state in md.reverse_sde(gaussian(path, STD), path, x, times, rng=seeded(5)):
        gain, noise = torch.linalg.solve(torch.stack([x, draw(x, rng)], 1), state.x).tolist()
        got, x = gain**2 * got + noise**2, state.x
    end = truth(name, float(times[-1]))
    return want / end, got / end


@each_name
def test_reverse_sde_variance_recursion(name):
    """eq:sde-recursion: the sampler's chain is the recursion; its error falls like 1/n.

    Slope 1 within .02 from 200 to 800 steps. Two points nearly on a line cost digits: 1e-7.
    """
    error = []
    for n in (50, 200, 800):
        want, got = chain(name, n)
        assert got == pytest.approx(want, rel=1e-7)
        error.append(want - 1)
    assert error[0] > error[1] > error[2] > 0  # too wide, where ancestral is too narrow
    assert error[0] == pytest.approx(0.031, abs=0.004)
    assert math.log(error[1] / error[2]) / math.log(4) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["VP", "VE"])
def test_reverse_sde_by_sampling(name):
    """The recursion is what samples do: 100,000 chains of 50 steps, 4 standard errors."""
    path, n, times = PATHS[name], 100_000, grid(name, 50)
    x = math.sqrt(truth(name, float(times[0]))) * data(n)
    x = md.last(md.reverse_sde(gaussian(path, STD), path, x, times, rng=seeded(6)))
    ratio, error = chain(name, 50)[0], math.sqrt(2 / n)
    want = ratio * truth(name, float(times[-1]))
    assert float(x.var()) == pytest.approx(want, rel=4 * error)
    assert abs(float(x.mean())) < 4 * math.sqrt(want / n)
    assert ratio - 1 > 6 * error  # the bias can be seen


# ---- Langevin -----------------------------------------------------------------------------------


@each_name
def test_langevin_written_out(name):
    """eq:langevin at each level, x / signal kept between levels, one last call without noise."""
    x, want, rng = data(4, 2), [], seeded(5)
    start, step = x, 0.3
    for t, s in pairwise(TIMES):
        a, n = level(name, t)[:2]
        alpha = step * n**2
        for _ in range(3):
            x = x + alpha * score(name, x, t) + math.sqrt(2 * alpha) * draw(x, rng)
        x = guess(x, t) if s == 0 else level(name, s)[0] / a * x
        want.append(x)
    options = {"steps": 3, "step": step, "rng": seeded(5)}
    close(md.langevin(guess, PATHS[name], start, times_of(TIMES), **options), want)


def test_langevin_defaults():
    """100 updates a level of size .2, NCSN's; steps * levels + 1 calls."""
    x, times = data(3, 2), times_of([0.5, 0.2, 0.0])
    counted = md.count_calls(guess)
    default = md.last(md.langevin(counted, md.VE(), x, times, rng=seeded()))
    assert counted.calls == 201
    said = md.last(md.langevin(guess, md.VE(), x, times, steps=100, step=0.2, rng=seeded()))
    assert torch.equal(default, said)
    counted = md.count_calls(guess)
    md.last(md.langevin(counted, md.VE(), x, times[:-1], steps=7, rng=seeded()))
    assert counted.calls == 7  # arrival at .2 is the end: no update there


@pytest.mark.parametrize("step", [0.2, 1.0, 1.9])
@pytest.mark.parametrize("name", ["VP", "VE"])
def test_langevin_bias(name, step):
    """eq:langevin-bias: an update's gain and noise, read off, settle at V / (1 - alpha / (2 V)).

    One update by the sampler from two points with known draws; a stationary variance obeys
    v = gain^2 v + noise^2.
    """
    path, t = PATHS[name], 0.5
    a, n = level(name, t)[:2]
    v, alpha = a**2 + n**2, step * n**2
    x, rng = times_of([0.0, 1.0]), seeded(5)
    states = md.langevin(
        gaussian(path, 1.0), path, x, times_of([t, 0.2]), steps=1, step=step, rng=seeded(5)
    )
    after = md.last(states) * a / level(name, 0.2)[0]  # undo the move to the next level
    gain, noise = torch.linalg.solve(torch.stack([x, draw(x, rng)], 1), after).tolist()
    settled = noise**2 / (1 - gain**2)
    assert settled == pytest.approx(v / (1 - alpha / (2 * v)), rel=1e-10)
    assert settled > v


def test_langevin_bias_by_sampling():
    """40,000 chains after 60 updates with alpha = V: variance 2 V, not V; 4 standard errors.

    With alpha = V each update forgets where it was, so even the first is at the limit.
    """
    path = md.VE(0.5, 8.0)
    n2 = 4.0  # noise 2 at t = .5: .5 * 16^.5
    std = math.sqrt(12.0)  # V = 16, and alpha = step * 4 = 16
    states = md.langevin(
        gaussian(path, std), path, data(40_000), times_of([0.5, 0.2]), steps=60, step=4.0,
        rng=seeded(6),
    )  # fmt: skip
    v = std**2 + n2
    assert float(md.last(states).var()) == pytest.approx(2 * v, rel=4 * math.sqrt(2 / 40_000))


def test_annealing_finds_the_weights():
    """The toy of Song and Ermon: .2 N((5,5), I) + .8 N((-5,-5), I), start uniform in [-8, 8]^2.

    1000 updates at one small noise (alpha = .05, stable for modes of width 1) leave half of the
    points in the small mode, where half of them started; 50 updates at each of 20 noises from 20 to
    .1 bring its weight near .2. Measured over 40,000 points: .489 and .212, standard error .002; a
    start from 20 times normal noise gives .211. Here 3 seeds of 2000 points: the standard error of
    a seed is .011 and .009. The .012 that remain are annealing too fast, not chance.
    """
    means = torch.tensor([[5.0, 5.0], [-5.0, -5.0]])
    path = md.VE(0.1, 20.0)
    toy = md.GaussianMixture(means, 1.0, torch.tensor([0.2, 0.8])).denoiser(path)
    cooling = torch.cat([torch.linspace(1, 1e-6, 20, dtype=D), torch.zeros(1, dtype=D)])
    plain, annealed = [], []
    for seed in range(3):
        rng = seeded(seed)
        x = torch.rand(2000, 2, generator=rng) * 16 - 8
        options = {"steps": 1000, "step": 5.0, "rng": rng}
        for weights, states in [
            (plain, md.langevin(toy, path, x, times_of([1e-6, 0.0]), **options)),
            (annealed, md.langevin(toy, path, x, cooling, steps=50, step=0.2, rng=rng)),
        ]:
            weights.append(float((md.last(states).sum(1) > 0).float().mean()))
    assert all(w == pytest.approx(0.489, abs=0.045) for w in plain)  # 4 standard errors
    assert all(w == pytest.approx(0.212, abs=0.037) for w in annealed)
    assert sum(annealed) / 3 == pytest.approx(0.2, abs=0.02)


# ---- predictor and corrector --------------------------------------------------------------------


@pytest.mark.parametrize("corrections", [0, 1, 3])
@each_name
def test_predictor_corrector_written_out(name, corrections):
    """eq:pc: Langevin with alpha = 2 (snr noise)^2, then q(x_s | x_t, x0) at the prediction.

    Without corrections this is the ancestral step, here from b = n_t^2 - (s_t/s_s)^2 n_s^2.
    """
    times, snr = [1.0, *TIMES[1:]], 0.25
    x, want, rng = data(4, 2), [], seeded(5)
    start = x
    for t, s in pairwise(times):
        a_t, n_t = level(name, t)[:2]
        alpha = 2 * (snr * n_t) ** 2
        for _ in range(corrections):
            x = x + alpha * score(name, x, t) + math.sqrt(2 * alpha) * draw(x, rng)
        x0 = guess(x, t)
        if s == 0:
            x = x0
        else:
            a_s, n_s = level(name, s)[:2]
            b = n_t**2 - (a_t / a_s) ** 2 * n_s**2
            mean = a_t / a_s * (n_s / n_t) ** 2 * x + a_s * b / n_t**2 * x0
            x = mean + n_s / n_t * math.sqrt(b) * draw(x, rng)
        want.append(x)
    counted = md.count_calls(guess)
    options = {"corrections": corrections, "snr": snr, "rng": seeded(5)}
    states = md.predictor_corrector(counted, PATHS[name], start, times_of(times), **options)
    # Cosine starts at signal 0, of which the written-out cos(pi/2) leaves 6e-17
    close(states, want, 1e-10)
    assert counted.calls == 4 * (corrections + 1)


def test_predictor_corrector_defaults():
    """One correction a level at snr .16."""
    x, times = data(3, 2), times_of(TIMES)
    default = md.last(md.predictor_corrector(guess, md.VP(), x, times, rng=seeded()))
    options = {"corrections": 1, "snr": 0.16, "rng": seeded()}
    assert torch.equal(
        default, md.last(md.predictor_corrector(guess, md.VP(), x, times, **options))
    )


def test_corrections_reduce_the_bias_of_few_steps():
    """Exact mixture .3 N(1, .2^2) + .7 N(-1, .2^2): the weight of the small mode after few steps.

    8 steps leave it at .242; one correction a level at snr .4 brings .260, so the bias falls by a
    third at equal steps. The same 16 calls spent on 16 steps without corrections bring .270: at
    equal cost the corrections do not pay here. Standard error of the mean of 3 seeds: .002.
    """
    truth = md.GaussianMixture(
        torch.tensor([[1.0], [-1.0]]), 0.2, torch.tensor([0.3, 0.7])
    )  # fmt: skip
    path = md.VP()
    denoise = truth.denoiser(path)

    def weight(steps, corrections):
        times, found = md.grids.log_snr(path, steps, low=-6, high=7), []
        for seed in range(3):
            x = torch.randn(20_000, 1, generator=seeded(seed))
            options = {"corrections": corrections, "snr": 0.4, "rng": seeded(10 + seed)}
            x = md.last(md.predictor_corrector(denoise, path, x, times, **options))
            found.append(float((x > 0).float().mean()))
        return sum(found) / 3

    few, corrected, many = weight(8, 0), weight(8, 1), weight(16, 0)
    assert few == pytest.approx(0.242, abs=0.008)
    assert corrected == pytest.approx(0.260, abs=0.008)
    assert many == pytest.approx(0.270, abs=0.008)
    assert few + 0.01 < corrected < many < 0.3


# ---- contracts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@each_sampler
def test_states(path, sampler):
    """Times of the grid, the prediction that made the step, and the landing bit for bit."""
    times, seen = times_of([0.98, 0.7, 0.4, 0.0]), []

    def spy(x, t):
        assert t.ndim == 0 and t.dtype == D
        seen.append(guess(x, t))
        return seen[-1]

    states = list(sampler(spy, path, data(4, 2), times, rng=seeded()))
    assert [float(s.t) for s in states] == [0.7, 0.4, 0.0]
    assert states[-1].x is seen[-1] and states[-1].x0 is seen[-1]
    per_step = len(seen) // 3
    for i, state in enumerate(states[:-1]):  # the last call of each step
        assert state.x0 is seen[(i + 1) * per_step - 1]
        assert bool(torch.isfinite(state.x).all()) and state.t.dtype == D and state.t.ndim == 0


@each_sampler
def test_randomness_is_the_generators(sampler, global_state_untouched):
    """Equal seeds, equal samples; None is fresh each time; the global state is never touched."""

    def run(rng):
        return md.last(sampler(guess, md.VP(), data(4, 2), md.grids.uniform(6), rng=rng))

    assert torch.equal(run(seeded()), run(seeded()))
    assert not torch.equal(run(None), run(None))
    assert not torch.equal(run(seeded(1)), run(seeded(2)))


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"times": times_of([0.0, 0.9])}, "decrease strictly"),
        ({"times": times_of([0.9, 0.5, 0.5])}, "decrease strictly"),
        ({"times": times_of([0.9])}, "times has shape"),
        ({"times": times_of([2.0, 0.0])}, "not in"),
        ({"x": torch.zeros(2, 2, dtype=torch.long)}, "x has dtype"),
        ({"x": torch.full((2, 2), math.nan)}, "x holds NaN"),
    ],
)
@each_sampler
def test_bad_input_is_refused_at_the_call(sampler, bad, word):
    good = {"x": torch.zeros(2, 2), "times": md.grids.uniform(3)} | bad
    with pytest.raises(ValueError, match=word):
        sampler(guess, md.VP(), good["x"], good["times"])


@pytest.mark.parametrize("path", [md.Cosine(), md.LinearPath()])
def test_a_start_without_signal_is_refused(path):
    """The equation is singular at signal 0; predictor_corrector has steps of DDPM and may start."""
    x, times = data(2, 2), md.grids.uniform(3)
    for sampler in (md.reverse_sde, md.langevin):
        with pytest.raises(ValueError, match=r"times start at 1\.0, where signal is 0"):
            sampler(guess, path, x, times)
    for state in md.predictor_corrector(guess, path, x, times):
        assert bool(torch.isfinite(state.x).all())


@pytest.mark.parametrize(
    ("sampler", "bad"),
    [
        (md.langevin, {"steps": 0}),
        (md.langevin, {"steps": -1}),
        (md.langevin, {"steps": 1.5}),
        (md.langevin, {"step": 0.0}),
        (md.langevin, {"step": -0.2}),
        (md.langevin, {"step": math.nan}),
        (md.langevin, {"step": math.inf}),
        (md.predictor_corrector, {"corrections": -1}),
        (md.predictor_corrector, {"corrections": 0.5}),
        (md.predictor_corrector, {"snr": 0.0}),
        (md.predictor_corrector, {"snr": 1.0}),
        (md.predictor_corrector, {"snr": -0.16}),
        (md.predictor_corrector, {"snr": math.nan}),
    ],
)
def test_bad_numbers_are_refused_at_the_call(sampler, bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"{name}={value}:"):
        sampler(guess, md.VP(), data(2, 2), md.grids.uniform(3), **bad)


@each_sampler
def test_a_denoiser_that_changes_the_shape_is_refused(sampler):
    states = sampler(lambda x, t: x[:, :1], md.VP(), data(2, 2), md.grids.uniform(3))
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 2\)"):
        next(states)
