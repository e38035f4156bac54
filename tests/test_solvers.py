"""Solvers of the flow: steps written out, orders on an exact flow, diffusers' schedulers.

float64 throughout: a few dozen operations at 1e-16 stay below 1e-11 where values are of order 1.
"""

import math
from itertools import pairwise

import diffusers
import pytest
import torch
from paths import Counting, guess, level, times_of
from torch import nn

import minidiff as md

D = torch.float64
# numpy 2 about diffusers' own np.array(tensor)
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SOLVERS = {
    "euler": md.euler,
    "heun": md.heun,
    "dpmpp_2m": md.dpmpp_2m,
    "edm_heun": md.edm_heun,
    "edm_heun, churn": lambda *a, rng=None: md.edm_heun(*a, churn=3.0, inflate=1.007, rng=rng),
}
each_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(),
    "table": md.BetaTable(md.linear_betas(1000)),
}
TIMES = [1.0, 0.8, 0.45, 0.3, 0.1, 0.0]


def seeded(seed=3):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def velocity(name, x, t):
    """signal' x0 + noise' eps, with eps = (x - signal x0) / noise."""
    s, n, ds, dn = level(name, t)
    x0 = guess(x, t)
    return ds * x0 + dn * (x - s * x0) / n


def follow(solver, name, start, times=TIMES, **options):
    states = solver(guess, PATHS[name], start, times_of(times), **options)
    return [state.x for state in states]


def close(got, want, tolerance=1e-11):
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


each_name = pytest.mark.parametrize("name", ["VP", "Cosine", "LinearPath", "VE"])


# ---- the steps, written out ---------------------------------------------------------------------


@each_name
def test_euler_written_out(name):
    """eq:euler on four paths, from t = 1, signal 0 included; VE's slopes of 848 leave 1e-10."""
    x, want = data(4, 2), []
    start = x
    for t, s in pairwise(TIMES):
        x = guess(x, t) if s == 0 else x + (s - t) * velocity(name, x, t)
        want.append(x)
    close(follow(md.euler, name, start), want, 1e-10)


def test_euler_is_ddim_on_the_linear_path():
    """Step by step: there the flow's tangent is the step of DDIM."""
    x, times = data(4, 2), md.grids.uniform(9)
    euler = md.euler(guess, md.LinearPath(), x, times)
    ddim = md.ddim(guess, md.LinearPath(), x, times)
    close([a.x for a in euler], [b.x for b in ddim], 1e-13)


@each_name
def test_heun_written_out(name):
    """eq:heun: the mean of the slopes at both ends; the step onto t = 0 is the prediction."""
    x, want = data(4, 2), []
    start = x
    for t, s in pairwise(TIMES):
        if s == 0:
            x = guess(x, t)
        else:
            v = velocity(name, x, t)
            x = x + (s - t) / 2 * (v + velocity(name, x + (s - t) * v, s))
        want.append(x)
    close(follow(md.heun, name, start), want, 1e-10)


@each_name
def test_dpmpp_2m_written_out(name):
    """eq:dpmpp with lambda = log(signal / noise); no second prediction after an infinite step."""
    x, want = data(4, 2), []
    start, before, last_h = x, None, math.inf
    for t, s in pairwise(TIMES):
        (a_t, n_t, *_), x0 = level(name, t), guess(x, t)
        if s == 0:
            x = x0
        else:
            a_s, n_s, *_ = level(name, s)
            if a_t == 0:  # h is infinite, e^-h is 0
                x, last_h = n_s / n_t * x + a_s * x0, math.inf
            else:
                h = math.log(a_s / n_s) - math.log(a_t / n_t)
                r = last_h / h
                d = (1 + 1 / (2 * r)) * x0 - (0 if before is None else before / (2 * r))
                x, last_h = n_s / n_t * x - a_s * (math.exp(-h) - 1) * d, h
        before = x0
        want.append(x)
    close(follow(md.dpmpp_2m, name, start), want)


def hot_time(name, ratio):
    """The time at which a path has this noise / signal."""
    if name == "Cosine":
        return math.atan(ratio) * 2 / math.pi
    if name == "LinearPath":
        return ratio / (1 + ratio)
    return math.log(ratio / 0.002) / math.log(40000)


def edm(name, x, times, *, churn=0.0, low=0.0, high=math.inf, inflate=1.0, top=math.inf, rng=None):
    """Karras et al., algorithm 2, on z = x / signal: all positions, and the raised sigmas.

    From signal 0 the first step is DDIM's. ``top`` is the path's largest noise / signal.
    """
    gamma = min(churn / (len(times) - 1), math.sqrt(2) - 1)
    seen, raised = [], []
    for t, s in pairwise(times):
        a_t, n_t, *_ = level(name, t)
        a_s, n_s = level(name, s)[:2] if s > 0 else (1.0, 0.0)
        if a_t == 0:
            x = a_s * guess(x, t) + n_s * x
        else:
            z, sigma = x / a_t, n_t / a_t
            hat = min(sigma * (1 + gamma), top) if low <= sigma <= high else sigma
            if hat > sigma:
                eps = torch.randn(x.shape, generator=rng, dtype=D)
                z = z + math.sqrt(hat**2 - sigma**2) * inflate * eps
            raised.append(hat)
            hot = hot_time(name, hat)
            x0 = guess(level(name, hot)[0] * z, hot)
            if s == 0:
                x = x0
            else:
                d, h = (z - x0) / hat, n_s / a_s - hat
                d_s = (z + h * d - guess(a_s * (z + h * d), s)) / (n_s / a_s)
                x = a_s * (z + h * (d + d_s) / 2)
        seen.append(x)
    return seen, raised


@pytest.mark.parametrize("name", ["Cosine", "LinearPath", "VE"])
def test_edm_heun_without_churn_written_out(name):
    """eq:edm-heun with gamma = 0: algorithm 1 in sigma on VE, and through x / signal elsewhere.

    Cosine and LinearPath start at signal 0, where the first step is DDIM's.
    """
    x = data(4, 2) * (80 if name == "VE" else 1)
    close(follow(md.edm_heun, name, x), edm(name, x, TIMES)[0])


@pytest.mark.parametrize("churn", [0.5, 1.5, 40.0])
@pytest.mark.parametrize("name", ["Cosine", "LinearPath", "VE"])
def test_edm_heun_with_churn_written_out(name, churn):
    """eq:edm-heun: the same draws; gamma = churn / 5 below the cap, sqrt 2 - 1 above it.

    From t = 1 VE is at its largest noise already, and Cosine and LinearPath have no signal: neither
    is churned there.
    """
    x = data(4, 2) * (80 if name == "VE" else 1)
    options = {"churn": churn, "inflate": 1.007}
    top = 80.0 if name == "VE" else math.inf
    want, _ = edm(name, x, TIMES, **options, top=top, rng=seeded(5))
    close(follow(md.edm_heun, name, x, **options, rng=seeded(5)), want)
    plain, _ = edm(name, x, TIMES)
    assert float((want[-1] - plain[-1]).abs().max()) > 1e-3  # churn does something


def test_churn_stays_in_its_range():
    """Both ends of [churn_min, churn_max] belong to it; outside nothing is drawn."""
    times = [0.9, 0.8, 0.6, 0.4, 0.2, 0.0]
    at = PATHS["VE"](times_of(times)).noise.tolist()
    x = 30 * data(4, 2)
    for low, high, count in [
        (at[3], at[1], 3),
        (at[3] * 1.001, at[1], 2),
        (at[3], at[1] * 0.999, 2),
        (0.0, at[4], 1),
        (at[0], math.inf, 1),
        (0.0, math.inf, 5),
        (at[0] * 1.01, math.inf, 0),
    ]:
        rng, replay = seeded(7), seeded(7)
        options = {"churn": 1.0, "churn_min": low, "churn_max": high}
        got = follow(md.edm_heun, "VE", x, times, **options, rng=rng)
        # ends of the range are computed by the path; one digit of slack for the written-out level
        want, _ = edm(
            "VE", x, times, churn=1.0, low=low * (1 - 1e-12), high=high * (1 + 1e-12), rng=replay
        )
        close(got, want)
        counter = seeded(7)
        for _ in range(count):
            torch.randn(x.shape, generator=counter, dtype=D)
        assert torch.equal(rng.get_state(), counter.get_state())


def test_churn_never_exceeds_the_path():
    """At t = .97 VE's noise is 58.2; sqrt 2 times that would be 82.3, beyond the path's own 80."""
    times, seen = [0.97, 0.5, 0.0], []

    def spy(x, t):
        seen.append(float(t))
        return guess(x, t)

    x = 58.0 * data(4, 2)
    states = md.edm_heun(spy, PATHS["VE"], x, times_of(times), churn=9.0, rng=seeded(5))
    got = [state.x for state in states]
    want, raised = edm("VE", x, times, churn=9.0, top=80.0, rng=seeded(5))
    close(got, want)
    assert raised[0] == 80.0 and raised[1] == pytest.approx(0.4 * math.sqrt(2))
    hot = 0.5 + math.log(math.sqrt(2)) / math.log(40000)
    assert seen == pytest.approx([1.0, 0.5, hot], abs=1e-12)
    assert max(seen) <= 1


@pytest.mark.parametrize("name", ["Cosine", "LinearPath"])
@each_solver
def test_start_without_signal(name, solver):
    """From signal 0 all states are finite; the first step of edm_heun and dpmpp_2m is DDIM's."""
    x, times = data(4, 2), times_of(TIMES)
    states = list(solver(guess, PATHS[name], x, times))
    assert all(bool(torch.isfinite(s.x).all()) for s in states)
    if solver not in (md.euler, md.heun):
        s, n, *_ = level(name, TIMES[1])
        first = s * guess(x, 1.0) + n * x
        torch.testing.assert_close(states[0].x, first, rtol=1e-12, atol=1e-12)


def test_first_step_on_a_path_whose_noise_ends_at_two():
    """Signal 1 - t, noise 2 t: from t = 1 to .5 half of x is kept, and half of x0 is added."""

    class Twice(md.Schedule):
        def level(self, t):
            one = torch.ones_like(t)
            return md.Level(1 - t, 2 * t, -one, 2 * one)

        def time(self, log_snr):
            return 1 / (1 + 2 * torch.exp(log_snr / 2))

    x = data(4, 2)
    for solver in (md.ddim, md.dpmpp_2m, md.edm_heun):
        state = next(solver(guess, Twice(), x, times_of([1.0, 0.5, 0.0])))
        torch.testing.assert_close(state.x, x / 2 + guess(x, 1.0) / 2, rtol=1e-12, atol=1e-12)


@each_solver
def test_one_step_from_no_signal_to_the_data(solver):
    """[1, 0] asks once and returns the answer itself."""
    answer = data(4, 2)
    (state,) = solver(lambda x, t: answer, md.Cosine(), data(4, 2, seed=1), times_of([1.0, 0.0]))
    assert state.x is answer and state.x0 is answer


@pytest.mark.parametrize(
    ("solver", "name", "calls"),
    [
        (md.euler, "VP", 5),
        (md.heun, "VP", 9),
        (md.dpmpp_2m, "VP", 5),
        (md.edm_heun, "VP", 9),
        (md.edm_heun, "Cosine", 8),  # one call for the step from signal 0
    ],
)
def test_calls(solver, name, calls):
    """Five steps: one call each, or two but for the landing."""
    counted = md.count_calls(guess)
    md.last(solver(counted, PATHS[name], data(2, 2), times_of(TIMES)))
    assert counted.calls == calls
    counted = md.count_calls(guess)  # without the landing the last step has two calls again
    md.last(solver(counted, PATHS[name], data(2, 2), times_of(TIMES[:-1])))
    assert counted.calls == calls - 1


# ---- order --------------------------------------------------------------------------------------

MEAN, STD = 0.8, 2.0


def flow_error(solver, path, n):
    """Distance from the exact flow of a Gaussian at log-SNR 6, started at log-SNR -4.

    (x - signal mean) / std keeps its value along the flow, std^2 = signal^2 STD^2 + noise^2.
    """
    times = md.grids.log_snr(path, n, low=-4, high=6, land=False)
    (s_a, n_a, *_), (s_b, n_b, *_) = path(times[0]), path(times[-1])
    ratio = ((s_b * STD) ** 2 + n_b**2).sqrt() / ((s_a * STD) ** 2 + n_a**2).sqrt()
    x = torch.ones(1, 1, dtype=D)
    want = s_b * MEAN + (x - s_a * MEAN) * ratio
    truth = md.Gaussian(torch.full((1,), MEAN, dtype=D), torch.tensor([STD], dtype=D))
    return float((md.last(solver(truth.denoiser(path), path, x, times)) - want).abs())


ORDERS = {"ddim": 1, "euler": 1, "heun": 2, "edm_heun": 2, "dpmpp_2m": 2}
SLOPES = [
    (solver, path)
    for solver in ORDERS
    for path in PATHS
    if path != "table" or solver not in ("euler", "heun")
]


@pytest.mark.parametrize(("solver", "path"), SLOPES)
def test_order(solver, path):
    """Halving the step divides the error by 2 or by 4: slope within .05 from 80 to 160 steps.

    Data N(.8, 2^2). With N(0, .5^2) the leading error of Euler on Cosine changes its sign in this
    range, and slopes of 1.95 and -.30 are measured; such a crossing says nothing of the order.
    Grids stop at log-SNR 6, as a step onto t = 0 is not the flow's. Solvers that read the slopes of
    the path are not held to their order on a table, whose slopes jump (next test).
    """
    rough, fine = (flow_error(getattr(md, solver), PATHS[path], n) for n in (80, 160))
    assert math.log2(rough / fine) == pytest.approx(ORDERS[solver], abs=0.05)


@each_name
def test_flow_integral(name):
    """eq:flow-integral on the exact flow of N(.8, 2^2), by quadrature over l = log(signal / noise).

    On the flow the prediction is E[x0 | x_t] at x_t = signal MEAN + k std_t, k constant. Everything
    is a function of r = e^l = signal / noise; the factor signal itself differs from path to path.
    Simpson's rule on 2000 intervals of a smooth integrand: 1e-9.
    """
    (s_a, n_a, *_), (s_b, n_b, *_), k = level(name, 0.8), level(name, 0.45), 0.7
    ell = torch.linspace(math.log(s_a / n_a), math.log(s_b / n_b), 2001, dtype=D)
    r = ell.exp()
    std = (STD**2 + 1 / r**2).sqrt()  # of x_t / signal
    x0 = MEAN + STD**2 / std**2 * (k * std)
    weights = torch.full((2001,), 2.0, dtype=D)
    weights[1::2] = 4
    weights[[0, -1]] = 1
    integral = float((weights * r * x0).sum() * (ell[1] - ell[0]) / 3)
    x_a, x_b = (
        s * MEAN + k * math.sqrt((s * STD) ** 2 + n**2) for s, n in ((s_a, n_a), (s_b, n_b))
    )
    assert x_b / n_b == pytest.approx(x_a / n_a + integral, rel=1e-9)


def test_heun_loses_its_order_on_a_table():
    """The log-SNR of a table is a broken line: from 160 to 320 steps heun gains less than 2^1.5.

    On VP, the smooth path of the same betas, it gains 2^2, and is more exact than edm_heun.
    """
    error = {name: flow_error(md.heun, PATHS[name], 320) for name in ("VP", "table")}
    assert flow_error(md.heun, PATHS["table"], 160) < 2**1.5 * error["table"]
    assert error["VP"] < flow_error(md.edm_heun, PATHS["table"], 320) < error["table"]


# ---- diffusers ----------------------------------------------------------------------------------

SHAPE = (2, 1, 4, 4)
KINDS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


class Net(nn.Module):
    """A bounded stand-in for a trained net: smooth in x and t."""

    def forward(self, x, t, cond=None):
        return torch.tanh(x) * (0.5 + t.reshape(-1, *(1,) * (x.ndim - 1)) / 2)


def said(x, t):
    """What Net says at a scalar time."""
    return torch.tanh(x) * (0.5 + t / 2)


def table_of(scheduler):
    """Give a scheduler of a table our betas in float64, and return the table."""
    betas = md.linear_betas(1000)
    scheduler.alphas_cumprod = (1 - betas).cumprod(0)
    return md.BetaTable(betas)


def ratios(scheduler):
    """Noise-to-signal ratios of a table at the scheduler's steps, then 0, in float64."""
    bar = scheduler.alphas_cumprod[scheduler.timesteps.long()]
    return torch.cat([((1 - bar) / bar).sqrt(), torch.zeros(1, dtype=D)])


@pytest.fixture
def wide(monkeypatch):
    """Run a step whose code casts to torch.float32 in float64, so that equality can be seen."""

    def run(step, *args):
        with monkeypatch.context() as m:
            m.setattr(torch, "float32", D)
            return step(*args).prev_sample

    return run


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("n", [5, 10, 20, 50])
@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_dpmpp_2m_equals_diffusers(spacing, n, prediction, wide):
    """DPMSolverMultistepScheduler, dpmsolver++ of order 2, midpoint, final sigma zero.

    Trailing steps are grids.strided; for the other spacings the grid is made of its steps.
    """
    scheduler = diffusers.DPMSolverMultistepScheduler(
        1000, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        lower_order_final=True, final_sigmas_type="zero", prediction_type=KINDS[prediction],
        timestep_spacing=spacing,
    )  # fmt: skip
    table = table_of(scheduler)
    scheduler.set_timesteps(n)
    scheduler.sigmas = ratios(scheduler)
    start = data(*SHAPE)
    x = start
    for t in scheduler.timesteps:
        x = wide(scheduler.step, said(x, float(t + 1) / 1000), t, x)
    assert x.dtype == D
    times = torch.cat([scheduler.timesteps.to(D) + 1, torch.zeros(1, dtype=D)]) / 1000
    if spacing == "trailing":
        assert torch.equal(times, md.grids.strided(1000, n))
    got = md.last(md.dpmpp_2m(md.Denoiser(Net(), table, prediction), table, start, times))
    torch.testing.assert_close(got, x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("n", [5, 10, 20, 50])
def test_edm_heun_equals_diffusers(n, prediction):
    """HeunDiscreteScheduler: trailing steps, z = x / signal, its start scaled by sqrt(1 + sigma^2).

    It takes two calls of step for one of ours, and gives the net z / sqrt(1 + sigma^2) = x.
    """
    scheduler = diffusers.HeunDiscreteScheduler(
        1000, prediction_type=KINDS[prediction], timestep_spacing="trailing"
    )
    table = table_of(scheduler)
    scheduler.set_timesteps(n)
    used = scheduler.timesteps.long()
    bar = scheduler.alphas_cumprod[used]
    scheduler.sigmas = torch.cat([((1 - bar) / bar).sqrt(), torch.zeros(1, dtype=D)])
    start = data(*SHAPE)
    z = start / bar[0].sqrt()
    for i, t in enumerate(scheduler.timesteps):
        y = said(bar[i].sqrt() * z, float(t + 1) / 1000)
        z = scheduler.step(y, t, z).prev_sample
    times = md.grids.strided(1000, n)
    got = md.last(md.edm_heun(md.Denoiser(Net(), table, prediction), table, start, times))
    torch.testing.assert_close(got, z, rtol=1e-9, atol=1e-9)


SPREAD = 0.7  # sigma_data
EXPLODING = md.VE(0.001, 80.0)  # .002 lies inside, so that its time is exact


def edm_case(make, n, kind):
    """A scheduler of the EDM family with sigmas in float64, our denoiser, and the scaled start."""
    scheduler = make(sigma_data=SPREAD, prediction_type=kind)
    scheduler.set_timesteps(n)
    sigmas = scheduler._compute_karras_sigmas(torch.linspace(0, 1, n, dtype=D))
    scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=D)])
    times = md.grids.karras(EXPLODING, n)
    torch.testing.assert_close(EXPLODING(times).noise, scheduler.sigmas, rtol=1e-10, atol=0)
    sign = -1 if kind == "v_prediction" else 1  # its c_out has the other sign

    class Signed(Net):
        def forward(self, x, t, cond=None):
            return sign * super().forward(x, t)

    model = md.Denoiser(Signed(), EXPLODING, md.predictions.edm(SPREAD))
    return scheduler, model, times, 80 * data(*SHAPE)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("n", [2, 5, 18, 50])
@pytest.mark.parametrize(
    ("make", "solver"),
    [
        (diffusers.EDMEulerScheduler, md.ddim),
        (diffusers.EDMDPMSolverMultistepScheduler, md.dpmpp_2m),
    ],
    ids=["euler", "dpmpp_2m"],
)
def test_edm_schedulers_of_diffusers(make, solver, n, kind, wide):
    """On VE with a Karras grid, started from 80 times noise: ddim is EDM's Euler step in sigma."""
    scheduler, model, times, start = edm_case(make, n, kind)
    x = start
    for t, time in zip(scheduler.timesteps, times, strict=False):
        y = said(scheduler.scale_model_input(x, t), float(time))
        x = wide(scheduler.step, y, t, x)
    assert x.dtype == D
    got = md.last(solver(model, EXPLODING, start, times))
    torch.testing.assert_close(got, x, rtol=1e-8, atol=1e-8)


# ---- contracts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@each_solver
def test_states(path, solver):
    """Times of the grid, the prediction that made the step, and the landing bit for bit."""
    times, seen = times_of([0.98, 0.7, 0.4, 0.0]), []

    def spy(x, t):
        assert t.ndim == 0 and t.dtype == D
        seen.append((float(t), guess(x, t)))
        return seen[-1][1]

    states = list(solver(spy, path, data(4, 2), times))
    assert [float(s.t) for s in states] == [0.7, 0.4, 0.0]
    assert states[-1].x is seen[-1][1] and states[-1].x0 is seen[-1][1]
    per_step = (len(seen) + 1) // 3
    for i, state in enumerate(states):  # the first call of each step
        assert state.x0 is seen[i * per_step][1]
        assert state.t.dtype == D and state.t.ndim == 0


@each_solver
def test_randomness_is_the_generators(solver, global_state_untouched):
    """Without churn nothing is drawn; with churn equal seeds give equal samples."""
    x, times, path = data(4, 2), md.grids.uniform(6, start=0.9), md.VP()
    if solver is not SOLVERS["edm_heun, churn"]:
        runs = [md.last(solver(guess, path, x, times)) for _ in range(2)]
        assert torch.equal(*runs)
    else:
        a, b = (md.last(solver(guess, path, x, times, rng=seeded(1))) for _ in range(2))
        assert torch.equal(a, b)
        assert not torch.equal(a, md.last(solver(guess, path, x, times, rng=seeded(2))))
        assert not torch.equal(a, md.last(solver(guess, path, x, times)))


@each_solver
def test_the_loop_asks_the_schedule_nothing(solver):
    """What is known before the first call of the denoiser is computed at the call."""

    path = Counting()
    states = solver(guess, path, data(2, 2), md.grids.uniform(20))
    before = path.calls
    md.last(states)
    assert path.calls == before <= 5


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ({"times": times_of([0.0, 1.0])}, "decrease strictly"),
        ({"times": times_of([1.0, 0.5, 0.5])}, "decrease strictly"),
        ({"times": times_of([1.0])}, "times has shape"),
        ({"times": times_of([2.0, 0.0])}, "not in"),
        ({"x": torch.zeros(2, 2, dtype=torch.long)}, "x has dtype"),
        ({"x": torch.full((2, 2), math.nan)}, "x holds NaN"),
    ],
)
@each_solver
def test_bad_input_is_refused_at_the_call(solver, bad, word):
    good = {"x": torch.zeros(2, 2), "times": md.grids.uniform(3)} | bad
    with pytest.raises(ValueError, match=word):
        solver(guess, md.VP(), good["x"], good["times"])


@pytest.mark.parametrize(
    "bad",
    [
        {"churn": -0.1},
        {"churn": math.nan},
        {"churn_min": -1.0},
        {"churn_min": 2.0, "churn_max": 1.0},
        {"churn_max": -1.0},
        {"inflate": 0.0},
        {"inflate": -1.0},
        {"inflate": math.inf},
    ],
)
def test_bad_churn_is_refused_at_the_call(bad):
    with pytest.raises(ValueError, match=f"{next(reversed(bad))}={next(reversed(bad.values()))}"):
        md.edm_heun(guess, md.VP(), data(2, 2), md.grids.uniform(3), **bad)
    md.edm_heun(guess, md.VP(), data(2, 2), md.grids.uniform(3), churn_min=1.0, churn_max=1.0)


@each_solver
def test_a_denoiser_that_changes_the_shape_is_refused(solver):
    states = solver(lambda x, t: x[:, :1], md.VP(), data(2, 2), md.grids.uniform(3))
    with pytest.raises(ValueError, match=r"\(2, 1\).*\(2, 2\)"):
        next(states)


def test_dpmpp_2m_after_a_step_of_no_length():
    """A table takes times within a thousandth of a step for the step: nothing to extrapolate from,
    so the next step is of order one, as if the chain had started there.
    """
    path, x = md.BetaTable(md.linear_betas(100)), data(2, 2)
    twice, once = ([0.5 + 1e-6, 0.5, 0.3, 0.0], [0.5, 0.3, 0.0])
    got, want = (md.last(md.dpmpp_2m(guess, path, x, times_of(t))) for t in (twice, once))
    torch.testing.assert_close(got, want)
