"""One contract for every schedule, prediction, sampler, wrapper and event shape.

To add a method, add a row to its table here: everything below then holds it to the contract.
What a single method computes is proved in its own file; here stands what all of them promise.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import minidiff as md

D = torch.float64

# ---- the tables: add a row ------------------------------------------------------------------

SCHEDULES = {
    "vp": md.VP(),
    "cosine": md.Cosine(),
    "linear_path": md.LinearPath(),
    "ve": md.VE(),
    "linear_betas": md.BetaTable(md.linear_betas(1000)),
    "cosine_betas": md.BetaTable(md.cosine_betas(50)),
    "quadratic_betas": md.BetaTable(md.quadratic_betas(50)),
    "sqrt_betas": md.BetaTable(md.sqrt_betas(100)),
    "scaled_linear_betas": md.BetaTable(md.scaled_linear_betas(1000)),
    "sigmoid_betas": md.BetaTable(md.sigmoid_betas(100)),
    "zero_terminal_snr": md.BetaTable(md.zero_terminal_snr(md.linear_betas(100))),
    "one step": md.BetaTable(torch.tensor([0.9])),
}
PREDICTIONS = md.PREDICTIONS | {"edm of spread 2": md.predictions.edm(2.0)}


class Sampler(NamedTuple):
    """A row of the table: how to run it, and what it promises beyond the contract of all."""

    run: Callable[..., Any]  # (denoise, schedule, x, times, *, rng) -> Iterator[State]
    # calls of the denoiser in n steps that end at t = 0, and whether they start at signal 0
    calls: Callable[[int, bool], int] = lambda n, silent: n
    draws: bool = False  # whether it draws noise
    from_silence: bool = True  # whether it may start where signal is 0
    samples: bool = True  # whether an exact denoiser makes it a sampler of the data


def quiet(sampler):
    """A deterministic sampler, called like the others."""
    return lambda *args, rng: sampler(*args)


SAMPLERS = {
    "ancestral": Sampler(md.ancestral, draws=True),
    "ancestral, large": Sampler(partial(md.ancestral, variance=md.forward_variance), draws=True),
    "ddim": Sampler(md.ddim),
    "ddim, eta .5": Sampler(partial(md.ddim, eta=0.5), draws=True),
    "ddim, eta 1": Sampler(partial(md.ddim, eta=1.0), draws=True),
    "euler": Sampler(quiet(md.euler)),
    "heun": Sampler(quiet(md.heun), calls=lambda n, silent: 2 * n - 1),
    "dpmpp_2m": Sampler(quiet(md.dpmpp_2m)),
    "edm_heun": Sampler(md.edm_heun, calls=lambda n, silent: 2 * n - 1 - silent),
    "edm_heun, churn": Sampler(
        partial(md.edm_heun, churn=0.4), calls=lambda n, silent: 2 * n - 1 - silent, draws=True
    ),
    "reverse_sde": Sampler(md.reverse_sde, draws=True, from_silence=False),
    "langevin": Sampler(
        partial(md.langevin, steps=3, step=0.3),
        calls=lambda n, silent: 3 * n + 1,
        draws=True,
        from_silence=False,
    ),
    "predictor_corrector": Sampler(
        md.predictor_corrector, calls=lambda n, silent: 2 * n, draws=True
    ),
    "consistency": Sampler(md.consistency, draws=True, samples=False),
}


class Wrapper(NamedTuple):
    """A row of the table: a function from denoisers to a denoiser, and what it promises."""

    wrap: Callable[..., Any]  # (denoise, schedule, x) -> denoise
    calls: int = 1  # of the wrapped denoiser at each call
    from_silence: bool = True  # whether it works where signal is 0
    holds: Callable[[torch.Tensor, torch.Tensor], bool] = lambda x, start: True  # at the end


def half(denoise):
    return lambda x, t: 0.5 * denoise(x, t)


def flat(value):
    """One number an example."""
    return value.reshape(len(value), -1).sum(1)


VECTORS = torch.linspace(-1, 1, 5, dtype=D)
WRAPPERS = {
    "plain": Wrapper(lambda denoise, schedule, x: denoise),
    "clip": Wrapper(
        lambda denoise, schedule, x: md.clip(denoise, -1, 1),
        holds=lambda x, start: float(x.abs().max()) <= 1,
    ),
    "cfg": Wrapper(lambda denoise, schedule, x: md.cfg(denoise, half(denoise), 2.0), calls=2),
    "interval": Wrapper(
        lambda denoise, schedule, x: md.guidance.interval(
            denoise, denoise, schedule, low=0.5, high=2.0
        )
    ),
    "classifier": Wrapper(
        lambda denoise, schedule, x: md.classifier(
            denoise, schedule, lambda x, t: flat(torch.tanh(x)), 0.1
        ),
        from_silence=False,
    ),
    "energy": Wrapper(
        lambda denoise, schedule, x: md.energy(denoise, schedule, lambda x0: flat(x0**2), 0.01),
        from_silence=False,
    ),
    "dynamic_threshold": Wrapper(
        lambda denoise, schedule, x: md.guidance.dynamic_threshold(denoise, quantile=0.9),
        holds=lambda x, start: float(x.abs().max()) <= 1,
    ),
    "inpaint": Wrapper(
        lambda denoise, schedule, x: md.inpaint(denoise, torch.ones_like(x), x > 0),
        holds=lambda x, start: bool((x[start > 0] == 1).all()),
    ),
    "replace": Wrapper(
        lambda denoise, schedule, x: md.replace(
            denoise, schedule, torch.ones_like(x), x > 0, rng=seeded(5)
        ),
        holds=lambda x, start: bool((x[start > 0] == 1).all()),
    ),
    "rounded": Wrapper(
        lambda denoise, schedule, x: (
            md.guidance.rounded(denoise, VECTORS[:, None].expand(5, x.shape[-1]))
            if x.ndim > 1
            else denoise
        ),
        holds=lambda x, start: x.ndim == 1 or bool((x[..., None] == VECTORS).any(-1).all()),
    ),
    "count_calls": Wrapper(lambda denoise, schedule, x: md.count_calls(denoise)),
}
EVENTS = {"scalars": (), "points": (2,), "images": (1, 4, 4), "sequences": (5, 3)}
GRIDS = {  # (schedule, n) -> times
    "uniform": lambda schedule, n: md.grids.uniform(n),
    "log_snr": lambda schedule, n: md.grids.log_snr(
        schedule, n, high=min(6.0, float(schedule(1e-6).log_snr))
    ),
    "karras": lambda schedule, n: md.grids.karras(
        schedule,
        n,
        sigma_min=max(0.05, 1.001 * math.exp(-float(schedule(1e-6).log_snr) / 2)),
        sigma_max=min(20.0, 0.999 * math.exp(-float(schedule(1.0).log_snr) / 2)),
    ),
}


def each(name, table):
    return pytest.mark.parametrize(name, table.values(), ids=table.keys())


def noise(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def oracle(schedule, event):
    """An exact denoiser: two modes for each entry."""
    means = torch.stack([torch.full(event, 0.7, dtype=D), torch.full(event, -0.7, dtype=D)])
    return md.GaussianMixture(means, 0.2).denoiser(schedule)


# ---- schedules --------------------------------------------------------------------------------


@each("schedule", SCHEDULES)
def test_schedules_lead_from_data_to_noise(schedule):
    """Clean at 0, log-SNR strictly falling, signal in [0, 1], equal to t_of's inverse."""
    at = schedule(0.0)
    assert (float(at.signal), float(at.noise)) == (1, 0)
    t = torch.linspace(0.0037, 1, 200, dtype=D)
    at = schedule(t)
    assert bool((at.log_snr.diff() < 0).all())
    assert bool(((at.signal >= 0) & (at.signal <= 1) & (at.noise > 0)).all())
    total = at.signal**2 + at.noise**2
    if not isinstance(schedule, (md.VE, md.LinearPath)):
        torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-12, atol=0)
    inner = at.log_snr[:-1]  # log-SNR may be -inf at t = 1
    slack = 1.1e-3 / schedule.T if isinstance(schedule, md.BetaTable) else 1e-8
    torch.testing.assert_close(schedule.t_of(inner), t[:-1], rtol=0, atol=slack)


@each("schedule", SCHEDULES)
@given(t=st.floats(0.001, 0.999), dtype=st.sampled_from([torch.float32, D]))
def test_levels_are_what_they_are_alone(schedule, t, dtype):
    """A batch of times is the times one by one; the dtype is that of t; over() adds no values."""
    many = torch.tensor([t, 0.0, 0.5], dtype=dtype)
    at = schedule(many)
    for i, value in enumerate(many):
        one = schedule(value)
        for a, b in zip(at, one, strict=True):
            assert a.dtype == dtype
            torch.testing.assert_close(a[i], b, rtol=1e-5, atol=1e-6)  # float32 rounding
    wide = at.over(torch.zeros(3, 2, 2, dtype=dtype))
    assert torch.equal(wide.signal.flatten(), at.signal)


@each("schedule", SCHEDULES)
@given(s=st.floats(0.002, 0.99), gap=st.floats(0.004, 0.9))
def test_the_posterior_reverses_the_step(schedule, s, gap):
    """Drawing x_s forward and then x_t is drawing x_t and then x_s backward: joint moments agree.

    Given x0 = 1: the mean of x_s and the covariance with x_t, through the posterior's two factors.
    """
    t = min(s + gap, 1.0)
    at_s, at_t = schedule(s), schedule(t)
    if not float(at_s.log_snr - at_t.log_snr) > 1e-6:
        return  # the same step of a table
    one, none = torch.ones(1, dtype=D), torch.zeros(1, dtype=D)
    keep = md.posterior(at_t, at_s, one, none).mean
    add, var = md.posterior(at_t, at_s, none, one)
    mean = keep * at_t.signal + add
    torch.testing.assert_close(mean, at_s.signal.reshape(1), rtol=1e-8, atol=1e-10)
    spread = keep**2 * at_t.noise**2 + var
    torch.testing.assert_close(spread, (at_s.noise**2).reshape(1), rtol=1e-8, atol=1e-12)
    step = md.step_forward(at_s, at_t, one, none)
    covariance = step * at_s.noise**2  # cov(x_s, x_t) = a noise_s^2 = keep noise_t^2
    torch.testing.assert_close(keep * at_t.noise**2, covariance, rtol=1e-8, atol=1e-12)


# ---- predictions ------------------------------------------------------------------------------


@each("prediction", PREDICTIONS)
@each("schedule", SCHEDULES)
@settings(max_examples=10)
@given(t=st.floats(0.05, 0.9), seed=st.integers(0, 1000))
def test_predictions_round_trip(prediction, schedule, t, seed):
    """to_x0 and from_x0 invert each other to 2e-12, relative to what stands in the sum.

    The row x0 = c_skip x + c_out y cannot know x0 better than the rounding of its two terms.
    """
    at = schedule(t)
    if float(at.signal) < 1e-3:
        return  # eps and score say nothing about x0 there
    x0, eps = noise(3, 2, seed=seed), noise(3, 2, seed=seed + 1)
    x = md.diffuse(at, x0, eps)
    y = md.from_x0(prediction, x0, x, at)
    skip, out = md.predictions.as_prediction(prediction).coefficients(at)
    size = float((skip * x).abs().max() + (out * y).abs().max() + x0.abs().max())
    error = (md.to_x0(prediction, y, x, at) - x0).abs().max()
    # eps is read off x by dividing by noise: its rounding is that of x / noise
    assert float(error) <= 2e-12 * size * max(1.0, float(1 / at.noise))
    back = md.from_x0(prediction, md.to_x0(prediction, eps, x, at), x, at)
    scale = max(1.0, float(1 / at.noise), float((skip / out).abs()), float(1 / out.abs()))
    assert float((back - eps).abs().max()) <= 2e-11 * scale * (1 + float(x.abs().max()))


class Teller(nn.Module):
    """A perfect net for one known x0: it returns the target of its prediction."""

    def __init__(self, schedule, prediction, x0):
        super().__init__()
        self.schedule, self.prediction, self.x0 = schedule, prediction, x0

    def forward(self, x, t, cond=None):
        at = self.schedule(t).over(x)
        c_in = md.predictions.as_prediction(self.prediction).c_in
        x = x if c_in is None else x / c_in(at)
        return md.from_x0(self.prediction, self.x0, x, at)


@each("prediction", PREDICTIONS)
@each("schedule", SCHEDULES)
def test_a_perfect_net_denoises_perfectly(schedule, prediction):
    """Whatever it predicts, a Denoiser over the true target returns x0, and its loss is 0."""
    x0 = noise(4, 3)
    model = md.Denoiser(Teller(schedule, prediction, x0), schedule, prediction)
    for t in (0.2, 0.6):
        at = schedule(t)
        if float(at.signal) < 1e-4:
            continue
        x = md.diffuse(at, x0, noise(4, 3, seed=1))
        # rounding of x / noise times the row's factors, as in the round trip
        for time in (torch.tensor(t, dtype=D), torch.full((4,), t, dtype=D)):
            torch.testing.assert_close(model(x, time), x0, rtol=1e-6, atol=1e-6)

    def times(schedule, n, rng):
        return torch.full((n,), 0.3, dtype=D)

    loss = md.denoising_loss(model, x0, times=times, rng=seeded())
    assert loss.shape == (4,) and float(loss.max()) < 1e-12


@each("event", EVENTS)
@each("prediction", PREDICTIONS)
def test_losses_take_every_event(prediction, event):
    """One finite, non-negative loss an example, with gradients, masks and a weight."""
    net = Teller(md.VP(), prediction, torch.zeros(4, *event, dtype=D))
    net.bias = nn.Parameter(torch.tensor(0.1, dtype=D))

    class Biased(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, t, cond=None):
            return self.net(x, t) + self.net.bias

    model, x0 = md.Denoiser(Biased(), md.VP(), prediction), noise(4, *event)
    rows = [md.denoising_loss(model, x0, rng=seeded())]
    rows.append(md.denoising_loss(model, x0, weight=lambda at: at.signal, rng=seeded()))
    if event:
        known = torch.zeros(4, *event, dtype=torch.bool)
        known.reshape(4, -1)[:, 0] = True
        rows.append(md.denoising_loss(model, x0, known=known, rng=seeded()))
    for row in rows:
        assert row.shape == (4,) and bool((row >= 0).all()) and bool(torch.isfinite(row).all())
    sum(row.sum() for row in rows).backward()
    assert bool(torch.isfinite(net.bias.grad))


# ---- grids ------------------------------------------------------------------------------------


@each("grid", GRIDS)
@each("schedule", SCHEDULES)
def test_grids_are_grids(schedule, grid):
    """float64 on the CPU, n + 1 times, strictly decreasing, last 0."""
    if schedule == SCHEDULES["one step"] and grid is not GRIDS["uniform"]:
        n = 1  # its levels span one unit of log-SNR
    else:
        n = 6
    times = grid(schedule, n)
    assert times.shape == (n + 1,) and times.dtype == D and times.device.type == "cpu"
    assert bool((times.diff() < 0).all()) and float(times[-1]) == 0 and float(times[0]) <= 1


# ---- samplers ---------------------------------------------------------------------------------


def silent(schedule, times):
    """Whether a grid starts where the signal is 0."""
    return float(schedule(times[0]).signal) < 1e-6


def grid(schedule, *rows):
    """Four equal steps of time; from .98 if the path is silent at 1 and a row cannot start so."""
    times = md.grids.uniform(4)
    if silent(schedule, times) and not all(row.from_silence for row in rows):
        return md.grids.uniform(4, start=0.98)
    return times


@each("sampler", SAMPLERS)
@each("schedule", SCHEDULES)
def test_samplers_take_every_prediction_and_event(schedule, sampler):
    """Every schedule, prediction, sampler and event shape: one exact net, seven languages.

    A net that says what the exact denoiser says, as eps, x0, v, score, flow or edm, makes the same
    chain with the same noise. The rows divide by signal and noise: at t = .98 the smallest signal
    of the tables is 1e-3, so that rounding grows to 1e-12, and the steps may double it.
    """
    times = md.grids.uniform(4, start=0.98)
    for name, event in EVENTS.items():
        denoise, start = oracle(schedule, event), noise(3, *event)
        want = [s.x for s in sampler.run(denoise, schedule, start, times, rng=seeded(1))]
        size = max(float(x.abs().max()) for x in want)
        for kind, prediction in PREDICTIONS.items():
            model = md.Denoiser(Translator(denoise, schedule, prediction), schedule, prediction)
            got = [s.x for s in sampler.run(model, schedule, start, times, rng=seeded(1))]
            for x, y in zip(got, want, strict=True):
                assert float((x - y).abs().max()) <= 1e-8 * size, (kind, name)


class Translator(nn.Module):
    """A net that says, in the language of a prediction, what a denoiser says."""

    def __init__(self, denoise, schedule, prediction):
        super().__init__()
        self.denoise, self.schedule = denoise, schedule
        self.prediction = md.predictions.as_prediction(prediction)

    def forward(self, x, t, cond=None):
        at = self.schedule(t).over(x)
        if self.prediction.c_in is not None:
            x = x / self.prediction.c_in(at)
        return md.from_x0(self.prediction, self.denoise(x, t), x, at)


@each("sampler", SAMPLERS)
@each("schedule", SCHEDULES)
def test_samplers_keep_the_contract(schedule, sampler):
    """States of the right shape and times; the promised calls; landing bit for bit on the
    prediction; the generator alone decides; inputs, grad mode and the global state stay.
    """
    times = grid(schedule, sampler)
    for event in EVENTS.values():
        start = noise(3, *event)
        before, state_of_torch = start.clone(), torch.get_rng_state()
        calls = md.count_calls(oracle(schedule, event))

        def run(seed, start=start, calls=calls):
            return list(sampler.run(calls, schedule, start, times, rng=seeded(seed)))

        states = run(1)
        assert calls.calls == sampler.calls(4, silent(schedule, times))
        assert [float(s.t) for s in states] == times[1:].tolist()
        for s in states:
            assert s.x.shape == s.x0.shape == start.shape and s.x.dtype == s.t.dtype == D
            assert bool(torch.isfinite(s.x).all()) and not s.x.requires_grad
        assert torch.equal(states[-1].x, states[-1].x0)
        again, other = run(1), run(2)
        assert all(torch.equal(a.x, b.x) for a, b in zip(states, again, strict=True))
        assert torch.equal(states[-1].x, other[-1].x) != sampler.draws
        assert torch.equal(start, before) and torch.is_grad_enabled()
        assert torch.equal(torch.get_rng_state(), state_of_torch)


@each("wrapper", WRAPPERS)
@each("sampler", SAMPLERS)
def test_wrappers_keep_the_contract(sampler, wrapper):
    """Under every sampler a wrapper keeps shape, dtype, grad mode and the promise of its row."""
    for schedule in (SCHEDULES["vp"], SCHEDULES["linear_path"], SCHEDULES["cosine_betas"]):
        times = grid(schedule, sampler, wrapper)
        for event in EVENTS.values():
            start = noise(3, *event)
            before, state_of_torch = start.clone(), torch.get_rng_state()
            calls = md.count_calls(oracle(schedule, event))

            def run(start=start, calls=calls, schedule=schedule, times=times):
                denoise = wrapper.wrap(calls, schedule, start)
                return list(sampler.run(denoise, schedule, start, times, rng=seeded(1)))

            states = run()
            assert calls.calls == sampler.calls(4, silent(schedule, times)) * wrapper.calls
            assert wrapper.holds(states[-1].x, start)
            for s in states:
                assert s.x.shape == start.shape and s.x.dtype == D
                assert bool(torch.isfinite(s.x).all()) and not s.x.requires_grad
            assert all(torch.equal(a.x, b.x) for a, b in zip(states, run(), strict=True))
            assert torch.equal(start, before) and torch.is_grad_enabled()
            assert torch.equal(torch.get_rng_state(), state_of_torch)


@each("sampler", {k: v for k, v in SAMPLERS.items() if v.samples})
@each("schedule", {k: v for k, v in SCHEDULES.items() if k != "one step"})  # no path to walk
def test_samplers_find_the_data(schedule, sampler):
    """Two modes at +-.7 of width .2: 100 exact steps put mass near both, whatever the path.

    2,000 points; half in each mode within 5 standard errors (.056), and a width within a third.
    """
    n = 2000
    truth = md.GaussianMixture(torch.tensor([[0.7], [-0.7]], dtype=D), 0.2)
    high = min(6.0, float(schedule(1e-6).log_snr) - 0.5)
    times = md.grids.log_snr(schedule, 100, low=-8, high=high)
    x = md.prior(schedule, (n, 1), at=times[0], rng=seeded(), dtype=D)
    x = md.last(sampler.run(truth.denoiser(schedule), schedule, x, times, rng=seeded(1)))
    assert float((x > 0).double().mean()) == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)
    assert float(x[x > 0].mean()) == pytest.approx(0.7, abs=0.06)
    assert float(x[x > 0].std()) == pytest.approx(0.2, rel=0.33)


@each("sampler", SAMPLERS)
def test_samplers_do_not_mix_examples(sampler):
    """The batch is a set of chains: another start of one of them leaves the others as they were."""
    schedule, times = md.VP(), md.grids.uniform(5)
    denoise, x = oracle(schedule, (2,)), noise(4, 2)
    other = x.clone()
    other[1] += 3
    one, two = (
        md.last(sampler.run(denoise, schedule, start, times, rng=seeded(1))) for start in (x, other)
    )
    keep = [0, 2, 3]
    torch.testing.assert_close(one[keep], two[keep], rtol=1e-12, atol=1e-12)
    assert float((one[1] - two[1]).abs().max()) > 1e-9


@each("sampler", SAMPLERS)
def test_samplers_keep_float32_and_no_graph(sampler):
    """Data in float32 stay so, times come as float64 scalars on the CPU; no graph is built, and
    the caller's grad mode is the caller's between two steps.
    """
    truth, weight = oracle(md.VP(), (2,)), torch.tensor(1.0, requires_grad=True)

    def denoise(x, t):
        assert x.dtype == torch.float32 and t.dtype == D and t.ndim == 0
        return weight * truth(x.double(), t).float()

    start, times = noise(3, 2).float().requires_grad_(), md.grids.uniform(4)
    for state in sampler.run(denoise, md.VP(), start, times, rng=seeded()):
        assert state.x.dtype == torch.float32 and state.t.dtype == D
        assert torch.is_grad_enabled()
        assert not state.x.requires_grad and not state.x0.requires_grad
    with torch.no_grad():
        for _ in sampler.run(denoise, md.VP(), start, times, rng=seeded()):
            assert not torch.is_grad_enabled()


@each("sampler", SAMPLERS)
def test_samplers_refuse_at_the_call(sampler):
    """A bad grid or start raises before anything is consumed: no next() here."""
    good, keep = torch.zeros(2, 2), lambda x, t: x
    for x, times, word in [
        (good, torch.tensor([0.0, 1.0]), "decrease strictly"),
        (good, torch.tensor([1.0]), "times has shape"),
        (good, torch.tensor([2.0, 0.0]), "not in"),
        (torch.zeros(2, 2, dtype=torch.long), md.grids.uniform(3), "x has dtype"),
        (torch.full((2, 2), math.nan), md.grids.uniform(3), "x holds NaN"),
    ]:
        with pytest.raises(ValueError, match=word):
            sampler.run(keep, md.VP(), x, times, rng=seeded())
    if not sampler.from_silence:
        with pytest.raises(ValueError, match="signal"):
            sampler.run(keep, md.Cosine(), good, md.grids.uniform(3), rng=seeded())


# ---- oracles ----------------------------------------------------------------------------------


@each("event", EVENTS)
@each("schedule", SCHEDULES)
def test_oracles_agree_with_their_scores(schedule, event):
    """Denoiser and score of a mixture satisfy Tweedie's formula at every level and event shape."""
    means = torch.stack([torch.full(event, 0.7, dtype=D), torch.full(event, -0.7, dtype=D)])
    truth, x = md.GaussianMixture(means, 0.2), noise(3, *event)
    for t in (0.2, 0.7):
        at = schedule(t)
        if float(at.signal) < 1e-4:
            continue
        x0 = truth.denoiser(schedule)(x, torch.tensor(t, dtype=D))
        torch.testing.assert_close(
            md.score_from_x0(x0, x, at), truth.score(x, t, schedule), rtol=1e-7, atol=1e-7
        )
