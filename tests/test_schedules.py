"""Schedules: formulas written out, derivatives by autograd, and the edges t = 0 and t = 1."""

import math
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

import minidiff as md
from minidiff import schedules

D = torch.float64
PATHS = {
    "VP": md.VP(),
    "VP fast": md.VP(0.5, 30.0),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(),
    "VE narrow": md.VE(0.1, 5.0),
    "linear table": md.BetaTable(md.linear_betas(1000)),
    "cosine table": md.BetaTable(md.cosine_betas(50)),
    "quadratic table": md.BetaTable(md.quadratic_betas(50)),
    "sqrt table": md.BetaTable(md.sqrt_betas(100)),
    "sigmoid table": md.BetaTable(schedules.sigmoid_betas(100)),
    "scaled linear table": md.BetaTable(md.scaled_linear_betas(1000)),
    "one step": md.BetaTable(torch.tensor([0.3])),
    "zero terminal": md.BetaTable(schedules.zero_terminal_snr(md.linear_betas(50))),
    "zero terminal of two": md.BetaTable(torch.tensor([0.3, 1.0], dtype=D)),
}
TABLES = {k: v for k, v in PATHS.items() if isinstance(v, md.BetaTable)}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
times = st.floats(1e-4, 0.9999)


# ---- formulas ------------------------------------------------------------------------------


@given(times)
def test_vp_written_out(t):
    """eq:level-vp: signal^2 = exp(-integral of beta), by Simpson's rule (exact for a line)."""
    low, high = 0.1, 20.0
    integral = t / 6 * (low + 4 * (low + (high - low) * t / 2) + low + (high - low) * t)
    at = md.VP()(t)
    assert float(at.signal) == pytest.approx(math.exp(-integral / 2), rel=1e-12)
    # 1 - exp(-small) by expm1 here and there; its root halves the relative error
    assert float(at.noise) == pytest.approx(math.sqrt(-math.expm1(-integral)), rel=1e-12)


@given(times)
def test_cosine_written_out(t):
    """eq:level-cosine."""
    at = md.Cosine()(t)
    assert float(at.signal) == pytest.approx(math.cos(math.pi * t / 2), rel=1e-11)
    assert float(at.noise) == pytest.approx(math.sin(math.pi * t / 2), rel=1e-12)


@given(times)
def test_linear_path_written_out(t):
    """eq:level-linear: 1 - t and t, to the bit."""
    at = md.LinearPath()(t)
    assert (float(at.signal), float(at.noise)) == (1 - t, t)
    assert (float(at.d_signal), float(at.d_noise)) == (-1, 1)


@given(times)
def test_ve_written_out(t):
    """eq:level-ve."""
    at = md.VE()(t)
    assert float(at.signal) == 1
    assert float(at.noise) == pytest.approx(0.002 * (80 / 0.002) ** t, rel=1e-12)


@each_path
def test_derivatives_are_autograd(path):
    """d_signal and d_noise against automatic differentiation, at 80 times and at t = 1.

    0.1 and 0.5 are whole steps of most tables: there the slope is that of the segment before.
    """
    t = torch.cat([torch.linspace(0.0123, 0.9987, 80, dtype=D), torch.tensor([0.1, 0.5, 1.0])])
    t = t.requires_grad_()
    at = path(t)
    for value, slope in ((at.signal, at.d_signal), (at.noise, at.d_noise)):
        want = torch.zeros_like(t)
        if value.requires_grad:
            grad = torch.autograd.grad(value.sum(), t, retain_graph=True, allow_unused=True)[0]
            want = want if grad is None else grad
        torch.testing.assert_close(slope.detach(), want, rtol=1e-9, atol=1e-12)
        assert slope.shape == t.shape


def test_derivatives_at_zero():
    """One-sided: VP's noise grows like sqrt(t); a table jumps and rests; the rest are smooth."""
    at = md.VP()(0.0)
    assert float(at.d_signal) == pytest.approx(-0.05) and math.isinf(float(at.d_noise))
    at = md.Cosine()(0.0)
    assert float(at.d_signal) == 0 and float(at.d_noise) == pytest.approx(math.pi / 2)
    at = md.BetaTable(md.linear_betas(100))(0.0)
    assert (float(at.d_signal), float(at.d_noise)) == (0, 0)
    at = md.VE()(0.0)
    assert float(at.d_noise) == pytest.approx(0.002 * math.log(40000), rel=1e-12)


# ---- edges -----------------------------------------------------------------------------------


@each_path
def test_zero_is_clean(path):
    """Signal 1 and noise 0 exactly at t = 0, alone and inside a batch, in every dtype."""
    for dtype in (torch.float32, D):
        at = path(torch.tensor([0.0, 0.5, 0.0], dtype=dtype))
        assert at.signal[0] == 1 and at.noise[0] == 0 and at.noise[1] > 0
        assert at.signal.dtype == dtype
    assert float(path(0.0).log_snr) == math.inf
    for t in (1e-12, 1e-7, 1e-6):  # close to 0 is not 0
        assert 0 < float(path(t).noise) < 0.6


@each_path
def test_log_snr_decreases(path):
    """Strictly, over 501 times that are whole steps of no table."""
    t = torch.linspace(0.003, 1, 501, dtype=D)
    lam = path(t).log_snr
    assert bool((lam.diff() < 0).all())
    assert float(path(0.003).log_snr) > float(path(1.0).log_snr)


def test_ends_at_one():
    """Cosine and LinearPath lose all signal; VP and tables nearly; VE none."""
    for path in (md.Cosine(), md.LinearPath()):
        assert float(path(1.0).signal) == 0 and float(path(1.0).noise) == 1
    assert float(md.VP()(1.0).signal ** 2) == pytest.approx(math.exp(-10.05), rel=1e-12)
    assert float(md.VE()(1.0).noise) == pytest.approx(80, rel=1e-12)
    assert float(md.VE()(1e-9).noise) == pytest.approx(0.002, rel=1e-6)


@each_path
@given(lam=st.floats(-6, 9))
def test_t_of_inverts_log_snr(path, lam):
    """log_snr(t_of(lam)) = lam, but for a table's snapping and for levels it does not have."""
    ends = float(path(1.0).log_snr), float(path(1e-6).log_snr)
    if lam < ends[0]:
        with pytest.raises(ValueError, match="log_snr"):
            path.t_of(lam)
        return
    t = path.t_of(lam)
    assert 0 < float(t) <= 1 and t.dtype == D
    # a time within 1e-3 of a step is that step: 1e-3 of the largest segment, 5.4 in cosine(50)
    slack = 0.01 if isinstance(path, md.BetaTable) else 1e-9
    assert float(path(t).log_snr) == pytest.approx(min(lam, ends[1]), abs=slack)


@each_path
@given(t=st.floats(0.01, 0.999))
def test_t_of_returns_the_time(path, t):
    lam = path(torch.tensor(t, dtype=D)).log_snr
    slack = 1.1e-3 / path.T if isinstance(path, md.BetaTable) else 1e-9
    assert float(path.t_of(lam)) == pytest.approx(t, abs=slack)


@each_path
def test_t_of_edges(path):
    """inf is clean data and exactly 0; a finite level is at least 1e-6; NaN is refused."""
    assert float(path.t_of(math.inf)) == 0
    assert float(path.t_of(1000.0)) == 1e-6
    mixed = path.t_of(torch.tensor([math.inf, 2.0, 500.0], dtype=D)) if path.__class__ else None
    assert mixed[0] == 0 and 0 < mixed[1] < 1 and mixed[2] == 1e-6
    for bad in (math.nan, torch.tensor([0.5, math.nan], dtype=D)):
        with pytest.raises(ValueError, match="NaN"):
            path.t_of(bad)


@each_path
def test_t_of_below_the_path(path):
    """-inf is t = 1 where signal vanishes, and refused where it does not; never NaN."""
    if float(path(1.0).signal) == 0:
        assert float(path.t_of(-math.inf)) == 1
    else:
        for lam in (-math.inf, float(path(1.0).log_snr) - 0.1):
            with pytest.raises(ValueError, match=f"ends at {float(path(1.0).log_snr):.4g}:"):
                path.t_of(lam)
        assert float(path.t_of(path(1.0).log_snr)) == pytest.approx(1, abs=1e-9)


@each_path
@pytest.mark.parametrize(
    ("t", "word"),
    [
        (1.01, "1.01"),
        (-0.01, "-0.01"),
        (math.nan, "nan"),
        (torch.tensor([5, 10]), "int64"),
        (torch.tensor([0.5, 2.0]), "2.0"),
    ],
)
def test_times_outside_are_refused(path, t, word):
    with pytest.raises(ValueError, match=word):
        path(t)


@each_path
def test_shape_and_dtype_follow_t(path):
    t = torch.rand(2, 3, 1, generator=torch.Generator().manual_seed(0))
    assert all(f.shape == (2, 3, 1) and f.dtype == torch.float32 for f in path(t))
    assert path(t.double()).signal.dtype == D
    assert path(0.5).signal.dtype == D and path(0.5).signal.ndim == 0
    exact, rough = path(t.double()), path(t)
    # float32 through logs and exponentials of up to 10: 1e-5
    torch.testing.assert_close(rough.signal.double(), exact.signal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rough.noise.double(), exact.noise, rtol=1e-4, atol=1e-5)


@each_path
def test_schedules_are_values(path):
    """Equal arguments make equal, hashable, picklable schedules, and nothing can be reassigned."""
    same = pickle.loads(pickle.dumps(path))
    assert same == path and hash(same) == hash(path) and len({same, path}) == 1
    assert path != md.VP(0.3, 17.0) and path != md.BetaTable(md.linear_betas(77))
    assert type(path).__name__ in repr(path)
    with pytest.raises(AttributeError):
        path.beta_min = 3.0


def test_level_over():
    """Right-pads (B,) levels, keeps scalars, changes nothing the second time."""
    x = torch.zeros(2, 3, 4)
    at = md.LinearPath()(torch.tensor([0.25, 0.5], dtype=D)).over(x)
    assert at.noise.shape == (2, 1, 1) and at.noise.dtype == torch.float32
    assert all(a is b or torch.equal(a, b) for a, b in zip(at.over(x), at, strict=True))
    assert md.LinearPath()(0.5).over(x).noise.ndim == 0
    with pytest.raises(ValueError, match=r"\(3,\).*\(2, 3, 4\)"):
        md.LinearPath()(torch.full((3,), 0.5)).over(x)


# ---- tables ----------------------------------------------------------------------------------


@each_table
def test_table_levels_are_the_cumulative_product(table):
    """eq:table: 1e-12, a thousand multiplications of rounding 1e-16 each."""
    bar = 1.0
    for i, beta in enumerate(table.betas.tolist(), start=1):
        bar *= 1 - beta
        at = table(i / table.T)
        assert float(at.signal) ** 2 == pytest.approx(bar, rel=1e-12)
        assert float(at.noise) ** 2 == pytest.approx(1 - bar, rel=1e-11)  # 1 - bar cancels here
        assert float(table.alpha_bars[i - 1]) == pytest.approx(bar, rel=1e-12)
    assert torch.equal(table.alphas, 1 - table.betas)


@each_table
def test_table_snaps_to_its_steps(table):
    """t T within 1e-3 of a step is that step, to the bit; beyond it is not."""
    for i in {1, (table.T + 1) // 2, table.T}:
        step = table(i / table.T)
        for d in (-9e-4, 9e-4):
            if (i + d) / table.T <= 1:
                near = table((i + d) / table.T)
                assert torch.equal(near.signal, step.signal)
        far = table((i - 2e-3) / table.T)
        assert float(far.log_snr) > float(step.log_snr)


@pytest.mark.parametrize("T", [10, 1000, 4000])
def test_float32_times_are_whole_steps(T):
    """i/T rounded to float32 still means step i: levels agree to float32's own precision."""
    table = md.BetaTable(md.cosine_betas(T))
    i = torch.arange(1, T + 1)
    rough = table((i.float() / T).double())  # a float32 time, computed with in float64
    bars = table.alpha_bars
    torch.testing.assert_close(rough.signal**2, bars, rtol=1e-10, atol=0)


@each_table
def test_table_does_not_snap_to_zero(table):
    """Only t = 0 is step 0: times far below the first step still differ from one another."""
    lam = [float(table(u / table.T).log_snr) for u in (1e-5, 1e-4, 9e-4, 0.5)]
    assert math.isfinite(lam[0]) and lam[0] > lam[1] > lam[2] > lam[3]


@each_table
def test_table_between_steps_is_linear_in_log_snr(table):
    """Half way between two steps lies the mean log-SNR; below step 1 the first segment goes on.

    The last segment of a table that ends without signal has a test of its own.
    """
    steps = table((torch.arange(1, table.T + 1, dtype=D)) / table.T).log_snr
    steps = steps[steps > -math.inf]
    if len(steps) > 1:
        half = table((torch.arange(1, len(steps), dtype=D) + 0.5) / table.T).log_snr
        torch.testing.assert_close(half, (steps[1:] + steps[:-1]) / 2, rtol=0, atol=1e-10)
    slope = steps[1] - steps[0] if len(steps) > 1 else torch.tensor(-1.0, dtype=D)
    for u in (0.1, 0.5, 0.9):
        want = steps[0] - (1 - u) * slope
        torch.testing.assert_close(table(u / table.T).log_snr, want, rtol=0, atol=1e-10)


# ---- tables that end without signal ----------------------------------------------------------

ENDING = {
    "two steps": torch.tensor([0.3, 1.0], dtype=D),
    "three": torch.tensor([0.1, 0.2, 1.0], dtype=D),
    "nearly clean before the end": torch.tensor([1e-4, 1.0], dtype=D),
    "fifty": schedules.zero_terminal_snr(md.linear_betas(50)),
}
each_ending = pytest.mark.parametrize("betas", ENDING.values(), ids=ENDING.keys())


@each_ending
def test_the_last_segment_falls_linearly(betas):
    """eq:zero-snr-level: signal goes straight from its value at step T-1 to exactly 0."""
    table, T = md.BetaTable(betas), len(betas)
    first = math.prod((1 - betas[:-1]).sqrt().tolist())
    for share in (1e-9, 0.002, 0.25, 0.5, 0.9, 0.998):  # of the segment's length
        at = table((T - 1 + share) / T)
        if share == 1e-9:
            share = 0  # less than 1e-3 of a step: that is step T - 1
        signal = first * (1 - share)
        noise = math.sqrt(1 - signal**2)
        # noise^2 is 1e-4 at the least: 1 - signal^2 cancels four digits of sixteen
        assert float(at.signal) == pytest.approx(signal, rel=1e-12)
        assert float(at.noise) == pytest.approx(noise, rel=1e-10)
        if share:
            assert float(at.d_signal) == pytest.approx(-T * first, rel=1e-12)
            assert float(at.d_noise) == pytest.approx(T * first * signal / noise, rel=1e-10)
            assert float(at.log_snr) == pytest.approx(2 * math.log(signal / noise), abs=1e-9)
            lam = 2 * math.log(signal / noise)
            assert float(table.t_of(lam)) == pytest.approx((T - 1 + share) / T, abs=1e-10)


@each_ending
def test_no_signal_at_the_end(betas):
    """At t = 1: 0, 1, and their slopes, exactly, in both dtypes; the way back is t = 1."""
    table, T = md.BetaTable(betas), len(betas)
    first = math.prod((1 - betas[:-1]).sqrt().tolist())
    for dtype, slack in ((D, 1e-12), (torch.float32, 1e-6)):
        at = table(torch.tensor([1.0, 0.5, 1 - 0.9e-3 / T], dtype=dtype))
        assert at.signal.dtype == dtype
        for i in (0, 2):  # within 1e-3 of a step is the step
            assert (float(at.signal[i]), float(at.noise[i])) == (0, 1)
            assert float(at.d_signal[i]) == pytest.approx(-T * first, rel=slack)
            assert float(at.d_noise[i]) == 0
    assert float(table(1.0).log_snr) == -math.inf and float(table.t_of(-math.inf)) == 1
    assert float(table.alpha_bars[-1]) == float(table.alphas[-1]) == 0
    lam = torch.tensor([-math.inf, -60.0, math.inf], dtype=D)
    t = table.t_of(lam)
    # e^-30 of the signal is left: that part of the last segment
    assert t[0] == 1 and t[2] == 0 and 0 < float(1 - t[1]) < 1.01 * math.exp(-30) / first / T


@each_ending
def test_no_gradient_is_lost_at_the_end(betas):
    """Gradients are finite at every time, in a batch that has all of them."""
    t = torch.linspace(0.01, 1, 100, dtype=D, requires_grad=True)
    at = md.BetaTable(betas)(t)
    (at.signal.sum() + at.noise.sum()).backward()
    torch.testing.assert_close(t.grad, (at.d_signal + at.d_noise).detach(), rtol=1e-9, atol=1e-11)


def test_it_meets_the_segment_before():
    """Just before and just after step T-1 the levels agree: 4e-3 of a step apart."""
    for betas in ENDING.values():
        table, T = md.BetaTable(betas), len(betas)
        before, at, after = (table((T - 1 + d) / T) for d in (-2e-3, 0, 2e-3))
        bar = float((1 - betas[:-1]).prod())
        assert float(at.signal) ** 2 == pytest.approx(bar, rel=1e-12)
        assert float(before.signal) > float(at.signal) > float(after.signal)
        assert float(before.signal) == pytest.approx(float(after.signal), rel=0.02)
        # at the step itself the slope is that of the segment before: T/2 d log-SNR per step
        slope = -1.0
        if T > 2:
            last = bar / (1 - betas[-2])  # alpha-bar one step earlier
            slope = math.log(bar / (1 - bar)) - math.log(last / (1 - last))
        want = T * slope / 2 * math.sqrt(bar) * (1 - bar)
        assert float(at.d_signal) == pytest.approx(want, rel=1e-9)


UNSCALED = torch.linspace(1e-4, 0.02, 100, dtype=D)
REACH = {  # the path and its signal/noise at t = 1, from alpha-bar_T written out
    "Ho's numbers with 100 steps": (md.BetaTable(UNSCALED), 0.7558),
    "latent diffusion's with 100": (md.BetaTable(md.scaled_linear_betas(100)), 1.185),
    "latent diffusion": (md.BetaTable(md.scaled_linear_betas(1000)), 0.06842),
    "TimeGrad": (md.BetaTable(torch.linspace(1e-4, 0.1, 100, dtype=D)), 0.07517),
    "CSDI": (md.BetaTable(md.quadratic_betas(50)), 0.005792),
    "linear": (md.BetaTable(md.linear_betas(100)), None),
    "cosine": (md.BetaTable(md.cosine_betas(50)), None),
    "sqrt": (md.BetaTable(md.sqrt_betas(100)), 0.002239),
    "sigmoid": (md.BetaTable(schedules.sigmoid_betas(100)), 0.001754),
    "zero terminal": (md.BetaTable(schedules.zero_terminal_snr(UNSCALED)), 0),
    "VP": (md.VP(), math.sqrt(1 / math.expm1(10.05))),
    "Cosine": (md.Cosine(), 0),
    "LinearPath": (md.LinearPath(), 0),
    "VE": (md.VE(), 1 / 80),
    "VE narrow": (md.VE(0.1, 5.0), 0.2),
}


@pytest.mark.parametrize(("path", "ratio"), REACH.values(), ids=REACH.keys())
def test_reaches_noise(path, ratio):
    """At most a tenth of the noise passes; else the message has the ratio and what to do."""
    at = path(1.0)
    if ratio is not None:
        assert float(at.signal / at.noise) == pytest.approx(ratio, rel=5e-4)  # 4 digits
    if ratio is None or ratio < 0.1:
        schedules.check_reaches_noise(path)
    else:
        with pytest.raises(ValueError, match="signal/noise") as error:
            schedules.check_reaches_noise(path)
        for word in (str(ratio), "linear_betas", "zero_terminal_snr", "cosine", "most=0.1"):
            assert word in str(error.value)
    if ratio:
        schedules.check_reaches_noise(path, most=1.01 * ratio)
        with pytest.raises(ValueError, match=type(path).__name__):
            schedules.check_reaches_noise(path, most=0.99 * ratio)


def test_the_limit_itself_passes():
    at = md.VE()(1.0)
    schedules.check_reaches_noise(md.VE(), most=float(at.signal / at.noise))
    schedules.check_reaches_noise(md.Cosine(), most=0.0)


# ---- tables of betas; more of them in test_tables.py -----------------------------------------


def test_linear_betas_written_out():
    """eq:betas-linear: (0.1 + (i-1)/(T-1) 19.9) / T; at T = 1000 this is Ho et al.'s table."""
    for T in (1000, 100, 25):
        want = [(0.1 + (i - 1) / (T - 1) * 19.9) / T for i in range(1, T + 1)]
        torch.testing.assert_close(
            md.linear_betas(T), torch.tensor(want, dtype=D), rtol=1e-12, atol=0
        )
    ho = torch.linspace(1e-4, 0.02, 1000, dtype=D)
    torch.testing.assert_close(md.linear_betas(1000), ho, rtol=1e-12, atol=0)


def test_linear_betas_reach_noise_at_any_length():
    """alpha-bar_T is near exp(-10) however many steps; the unscaled table stops at .364."""
    for T in (100, 200, 1000, 4000):
        assert float((1 - md.linear_betas(T)).prod()) < 1e-4
    unscaled = torch.linspace(1e-4, 0.02, 100, dtype=D)
    assert float((1 - unscaled).prod()) == pytest.approx(0.364, abs=5e-4)


def test_cosine_betas_written_out():
    """eq:betas-cosine: alpha-bar(u) = cos^2((u + .008) / 1.008 pi / 2), ratios clipped at .999."""
    for T in (50, 1000):
        f = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
        want = [min(1 - f[i] / f[i - 1], 0.999) for i in range(1, T + 1)]
        torch.testing.assert_close(
            md.cosine_betas(T), torch.tensor(want, dtype=D), rtol=1e-12, atol=0
        )
        assert sum(b == 0.999 for b in md.cosine_betas(T).tolist()) == 1
        bars = (1 - md.cosine_betas(T)).cumprod(0)
        assert float(bars[T // 2 - 1]) == pytest.approx(f[T // 2] / f[0], rel=1e-9)


def test_other_tables_written_out():
    """sqrt, quadratic (CSDI) and scaled linear (latent diffusion) tables."""
    T = 50
    bar = (1 - md.sqrt_betas(T)).cumprod(0)
    for i in (1, 10, 49):  # relative to alpha-bar(0) = 1 - sqrt(1e-4) = .99
        want = (1 - math.sqrt(i / T + 1e-4)) / 0.99
        assert float(bar[i - 1]) == pytest.approx(want, rel=1e-9)
    assert float(md.sqrt_betas(T)[-1]) == 0.999
    q = md.quadratic_betas(T)
    assert float(q[0]) == pytest.approx(1e-4) and float(q[-1]) == pytest.approx(0.5)
    assert float(q[10]) == pytest.approx((0.01 + 10 / 49 * (math.sqrt(0.5) - 0.01)) ** 2)
    s = md.scaled_linear_betas(1000)
    assert float(s[0]) == pytest.approx(0.00085) and float(s[-1]) == pytest.approx(0.012)
    # latent diffusion's alpha-bar_T: .0047, far from 0
    assert float((1 - s).prod()) == pytest.approx(0.00466, abs=5e-5)


@pytest.mark.parametrize("make", [md.linear_betas, md.cosine_betas, md.sqrt_betas,
                                  md.quadratic_betas, md.scaled_linear_betas])  # fmt: skip
@pytest.mark.parametrize("T", [1, 2, 21, 1000])
def test_tables_are_tables(make, T):
    """float64, T entries in (0, 1), accepted by BetaTable; or refused with a reason."""
    if make is md.linear_betas and T <= 20:
        with pytest.raises(ValueError, match="cosine_betas"):
            make(T)
        return
    betas = make(T)
    assert betas.dtype == D and betas.shape == (T,)
    assert md.BetaTable(betas).T == T


def test_betas_from_follows_any_curve():
    betas = schedules.betas_from(lambda u: 1 - 0.9 * u, 10)
    torch.testing.assert_close(
        (1 - betas).cumprod(0),
        1 - 0.9 * torch.arange(1, 11, dtype=D) / 10,
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.BetaTable(torch.tensor([1.0])), "1.0"),
        (lambda: md.BetaTable(torch.tensor([1.0, 0.1])), "1.0"),
        (lambda: md.BetaTable(torch.tensor([0.1, 1.0, 1.0])), "1.0"),
        (lambda: md.BetaTable(torch.tensor([0.0, 1.0])), "0.0"),
        (lambda: md.BetaTable(torch.tensor([-0.1, 1.0])), "-0.1"),
        (lambda: md.BetaTable(torch.tensor([0.1, 1.0001])), "1.0001"),
        (lambda: md.BetaTable(torch.tensor([math.nan, 1.0])), "nan"),
        (lambda: md.BetaTable(torch.tensor([0.1, 0.0])), "0.0"),
        (lambda: md.BetaTable(torch.tensor([0.1, math.nan])), "nan"),
        (lambda: md.BetaTable(torch.tensor([])), "shape"),
        (lambda: md.BetaTable(torch.ones(2, 2) / 3), "shape"),
        (lambda: md.VP(1.0, 0.5), "beta_min=1.0"),
        (lambda: md.VP(0.0, 0.5), "beta_min=0.0"),
        (lambda: md.VE(0.1, 0.1), "sigma_min=0.1"),
        (lambda: md.VE(0.1, math.inf), "sigma_max=inf"),
        (lambda: md.linear_betas(0), "T=0"),
        (lambda: md.cosine_betas(2.5), "T=2.5"),
        (lambda: md.linear_betas(100, beta_max=150), "beta_max=150"),
        (lambda: md.quadratic_betas(50, first=0.5, last=0.1), "first=0.5"),
    ],
)
def test_schedules_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()


@each_path
def test_t_of_refuses_integers(path):
    """A table once rounded its own levels to them, and gave a wrong time."""
    with pytest.raises(ValueError, match=r"log_snr has dtype torch\.int64: give a floating"):
        path.t_of(torch.tensor([0, 2]))
