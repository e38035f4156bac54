"""Tables of betas, each from its formula written out; linear and cosine in test_schedules.py."""

import math

import pytest
import torch

import minidiff as md
from minidiff import tables

D = torch.float64
MAKERS = {
    "linear": md.linear_betas,
    "cosine": md.cosine_betas,
    "quadratic": md.quadratic_betas,
    "scaled linear": md.scaled_linear_betas,
    "sqrt": md.sqrt_betas,
    "sigmoid": tables.sigmoid_betas,
}


def bars(betas):
    """alpha-bar after every step, in plain Python."""
    total, out = 1.0, []
    for beta in betas.tolist():
        total *= 1 - beta
        out.append(total)
    return out


# ---- formulas ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end", "tau"), [(-3.0, 3.0, 1.0), (0.0, 3.0, 0.7), (-3.0, 1.0, 2.0)]
)
def test_sigmoid_betas_written_out(start, end, tau):
    """eq:betas-sigmoid: alpha-bar at every step but the last, which is clipped at .999."""

    def sig(z):
        return 1 / (1 + math.exp(-z / tau))

    for T in (5, 100):
        got = tables.sigmoid_betas(T, start=start, end=end, tau=tau)
        f = [sig(end) - sig(start + i / T * (end - start)) for i in range(T + 1)]
        want = [1 - f[i] / f[i - 1] for i in range(1, T)] + [0.999]
        # alpha-bar is a difference of two numbers near 1: 1e-10 of a beta of 1e-3
        torch.testing.assert_close(got, torch.tensor(want, dtype=D), rtol=1e-10, atol=0)


def test_sigmoid_by_hand():
    """Half the variance is noise half way, whatever the temperature; a small tau turns later."""
    for tau in (0.3, 1.0):
        assert bars(tables.sigmoid_betas(40, tau=tau))[19] == pytest.approx(0.5, rel=1e-12)
    # 1 / (1 + e^-3) = .952574, 1 / (1 + e^1.5) = .182426, 1 / (1 + e^3) = .047426
    want = (0.952574 - 0.182426) / (0.952574 - 0.047426)
    assert bars(tables.sigmoid_betas(40))[9] == pytest.approx(want, rel=1e-5)
    assert bars(tables.sigmoid_betas(40, tau=0.3))[9] > 0.99


def test_the_other_sigmoid():
    """What diffusers calls sigmoid: betas between .0001 and .02 along a sigmoid of -6 to 6.

    Its alpha-bar at half of 100 steps is .89, ours is a half: another table.
    """
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDPMScheduler(num_train_timesteps=100, beta_schedule="sigmoid").betas
    want = [1e-4 + 0.0199 / (1 + math.exp(6 - 12 * i / 99)) for i in range(100)]
    torch.testing.assert_close(theirs.double(), torch.tensor(want, dtype=D), rtol=1e-5, atol=1e-8)
    assert bars(theirs)[49] > 0.88 > 0.51 > bars(tables.sigmoid_betas(100))[49]


def test_sqrt_betas_written_out():
    """eq:betas-sqrt: alpha-bar is (1 - root(u + s)) / (1 - root(s)), clipped at the end."""
    for T, s in ((10, 1e-4), (60, 1e-4), (10, 0.01)):
        f = [1 - math.sqrt(i / T + s) for i in range(T)]
        want = [1 - f[i] / f[i - 1] for i in range(1, T)] + [0.999]
        got = md.sqrt_betas(T, offset=s)
        torch.testing.assert_close(got, torch.tensor(want, dtype=D), rtol=1e-11, atol=0)
    assert torch.equal(md.sqrt_betas(10), md.sqrt_betas(10, offset=1e-4))


def test_quadratic_betas_written_out():
    """eq:betas-quadratic: roots equally spaced between those of the ends."""
    for T, first, last in ((50, 1e-4, 0.5), (7, 0.01, 0.3)):
        a, b = math.sqrt(first), math.sqrt(last)
        want = [(a + i / (T - 1) * (b - a)) ** 2 for i in range(T)]
        got = md.quadratic_betas(T, first=first, last=last)
        torch.testing.assert_close(got, torch.tensor(want, dtype=D), rtol=1e-12, atol=0)
    assert torch.equal(md.quadratic_betas(50), md.quadratic_betas(50, first=1e-4, last=0.5))
    a, b = math.sqrt(0.00085), math.sqrt(0.012)
    want = [(a + i / 999 * (b - a)) ** 2 for i in range(1000)]
    torch.testing.assert_close(
        md.scaled_linear_betas(1000), torch.tensor(want, dtype=D), rtol=1e-12, atol=0
    )


def test_published_tables():
    """alpha-bar of tables in use, four digits: computed from the published betas by the papers'
    code. CSDI at steps 1, 2, 10, 25, 50; TimeGrad at steps 25, 50, 100.
    """
    csdi = bars(md.quadratic_betas(50))
    for step, bar in ((1, 0.9999), (2, 0.999313), (10, 0.930586), (25, 0.32499), (50, 3.354e-5)):
        assert csdi[step - 1] == pytest.approx(bar, rel=2e-4)
    timegrad = bars(torch.linspace(1e-4, 0.1, 100, dtype=D))
    for step, bar in ((25, 0.735), (50, 0.283), (100, 0.00562)):
        assert timegrad[step - 1] == pytest.approx(bar, rel=1e-3)
    # the same rates by linear_betas, whose two numbers are T times as large
    same = md.linear_betas(100, beta_min=0.01, beta_max=10.0)
    assert bars(same)[99] == pytest.approx(0.00562, rel=1e-3)


def test_betas_from_clips_and_divides():
    """Only ratios count; alpha-bar may end at 0, and a beta above ``most`` is ``most``."""
    twice = tables.betas_from(lambda u: 2 * (1 - u), 4)
    torch.testing.assert_close(twice, torch.tensor([1 / 4, 1 / 3, 1 / 2, 0.999], dtype=D))
    mild = tables.betas_from(lambda u: 1 - u, 4, most=0.4)
    torch.testing.assert_close(mild, torch.tensor([1 / 4, 1 / 3, 0.4, 0.4], dtype=D))
    assert mild.dtype == D


# ---- no signal at the end ------------------------------------------------------------------


def test_zero_terminal_snr_written_out():
    """eq:zero-snr: the roots of alpha-bar, moved down and stretched."""
    betas = torch.tensor([0.1, 0.2, 0.5, 0.3], dtype=D)
    root = [math.sqrt(b) for b in bars(betas)]
    want = [root[0] * (r - root[3]) / (root[0] - root[3]) for r in root]
    got = tables.zero_terminal_snr(betas)
    for bar, r in zip(bars(got), want, strict=True):
        assert bar == pytest.approx(r**2, rel=1e-12, abs=1e-15)
    assert got[0] == betas[0] and float(got[-1]) == 1
    # the second of four by hand: roots .948683, .848528, .6, .501996
    two = 0.948683 * (0.848528 - 0.501996) / (0.948683 - 0.501996)
    assert bars(got)[1] == pytest.approx(two**2, rel=1e-5)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_zero_terminal_snr_is_that_of_diffusers(make):
    """In float64, to 1e-9: both divide differences of numbers that may be 1e-3 apart."""
    scheduling = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    betas = make(100)
    got = tables.zero_terminal_snr(betas)
    want = scheduling.rescale_zero_terminal_snr(betas.clone())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)
    assert torch.equal(betas, make(100))  # the argument stays what it was
    assert got.dtype == D and got[0] == betas[0] and float(got[-1]) == 1
    assert bool(((got[:-1] > 0) & (got[:-1] < 1)).all())
    table = md.BetaTable(got)
    assert (float(table(1.0).signal), float(table(1.0).noise)) == (0, 1)


def test_zero_terminal_snr_of_its_own_result():
    """A table that ends without signal stays as it is, and two steps are enough."""
    once = tables.zero_terminal_snr(md.linear_betas(30))
    torch.testing.assert_close(tables.zero_terminal_snr(once), once, rtol=1e-11, atol=0)
    two = tables.zero_terminal_snr(torch.tensor([0.25, 0.5]))
    assert two.tolist() == [0.25, 1.0] and two.dtype == D


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tables.zero_terminal_snr(torch.tensor([0.3])), ["1 step", "at least 2"]),
        (lambda: tables.zero_terminal_snr(torch.tensor([0.3, 1.2])), ["1.2", "(0, 1)"]),
        (lambda: tables.zero_terminal_snr(torch.ones(2, 2) / 2), ["(2, 2)", "vector"]),
        (lambda: tables.check_betas(torch.tensor([1.0])), ["1.0", "(0, 1)", "last"]),
        (lambda: tables.check_betas(torch.tensor([])), ["(0,)", "vector"]),
        (lambda: tables.check_betas(torch.tensor([0.5, 0.0])), ["0.0", "(0, 1)"]),
        (lambda: tables.sigmoid_betas(0), ["T=0", "whole number"]),
        (lambda: tables.sigmoid_betas(50, start=3.0), ["start=3.0", "end=3.0", "start < end"]),
        (lambda: tables.sigmoid_betas(50, tau=0.0), ["tau=0.0", "tau > 0"]),
        (lambda: tables.sigmoid_betas(50, tau=-1.0), ["tau=-1.0", "tau > 0"]),
        (lambda: tables.sigmoid_betas(50, tau=0.01), ["alpha_bar", "above 0 before"]),
        (lambda: tables.betas_from(lambda u: 1.0, 5), ["alpha_bar(0)", "fall"]),
        (lambda: tables.betas_from(lambda u: 0.5 - u, 5), ["alpha_bar", "above 0"]),
        (lambda: tables.betas_from(lambda u: 1 - u, 0), ["T=0", "whole number"]),
        (lambda: tables.linear_betas(100, beta_min=0.0), ["beta_min=0.0", "<"]),
        (lambda: tables.linear_betas(100, beta_min=30.0), ["beta_min=30.0", "<"]),
        (lambda: tables.linear_betas(20), ["T=20", "beta of 1", "cosine_betas"]),
        (lambda: tables.quadratic_betas(9, first=0.0), ["first=0.0", "rise"]),
        (lambda: tables.quadratic_betas(9, last=1.0), ["last=1.0", "below 1"]),
        (lambda: tables.quadratic_betas(9, first=0.5), ["first=0.5", "rise"]),
        (lambda: tables.quadratic_betas(True + 0.5), ["T=1.5"]),
        (lambda: tables.check_range("beta", 0.0, 1.0), ["beta_min=0.0", "<"]),
        (lambda: tables.check_range("beta", 1.0, 1.0), ["beta_max=1.0", "<"]),
        (lambda: tables.check_range("beta", 1.0, math.inf), ["beta_max=inf", "<"]),
    ],
)
def test_tables_refuse(call, words):
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_every_table_is_also_in_schedules(make):
    """``md.schedules.X`` is ``md.tables.X``, the function itself."""
    from minidiff import schedules

    assert getattr(schedules, make.__name__) is make is getattr(tables, make.__name__)
    for name in ("betas_from", "zero_terminal_snr"):
        assert getattr(schedules, name) is getattr(tables, name)


def test_one_step_and_linear_from_21():
    """The shortest tables: 21 steps for the linear one, one for the others."""
    assert md.linear_betas(21).shape == (21,)
    for make in list(MAKERS.values())[1:]:
        betas = make(1)
        assert betas.shape == (1,) and 0 < float(betas[0]) < 1
    assert md.linear_betas(1, beta_min=0.1, beta_max=0.5).tolist() == [0.1]
