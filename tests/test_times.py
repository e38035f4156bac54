"""Samplers of training times: the draws written out, and importance sampling without bias."""

import math

import pytest
import torch

import minidiff as md
from minidiff import losses, schedules

D = torch.float64


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def test_uniform_times_on_a_table_are_its_steps(rng):
    """Steps 1..T, each about equally often: 10,000 draws of 10 steps, 5 sigma of a binomial."""
    t = md.uniform_times(md.BetaTable(md.cosine_betas(10)), 10_000, rng)
    steps = (t * 10).round()
    assert t.dtype == D and float((t * 10 - steps).abs().max()) < 1e-12
    counts = torch.bincount(steps.long(), minlength=11)
    assert counts[0] == 0 and len(counts) == 11
    assert float((counts[1:] - 1000).abs().max()) < 5 * 30


def test_uniform_times_elsewhere_are_in_the_half_open_interval(rng):
    t = md.uniform_times(md.VP(), 100_000, rng)
    assert t.dtype == D and 0 < float(t.min()) < 1e-3 and 0.999 < float(t.max()) <= 1
    assert float(t.mean()) == pytest.approx(0.5, abs=5 * 0.289 / 316)


def test_low_discrepancy_times_written_out():
    """eq:low-discrepancy: one random number, and n times at a distance of 1/n round a circle."""
    for n in (1, 5, 8):
        t = losses.low_discrepancy_times(md.VP(), n, seeded())
        u = float(torch.rand((), generator=seeded(), dtype=D))
        want = [1 - math.fmod(u + i / n, 1.0) for i in range(n)]
        torch.testing.assert_close(t, torch.tensor(want, dtype=D), rtol=0, atol=1e-15)
        parts = (t * n).ceil().long()  # (0, 1/n] is part 1
        assert sorted(parts.tolist()) == list(range(1, n + 1))
        assert 0 < float(t.min()) and float(t.max()) <= 1


def test_low_discrepancy_times_on_a_table():
    """Rounded up to steps; with n = T each step comes exactly once, with n = 3 T three times."""
    table = md.BetaTable(md.cosine_betas(10))
    t = losses.low_discrepancy_times(table, 10, seeded())
    steps = (t * 10).round()
    assert float((t * 10 - steps).abs().max()) < 1e-12
    assert sorted(steps.long().tolist()) == list(range(1, 11))
    t = losses.low_discrepancy_times(table, 30, seeded())
    assert torch.bincount((t * 10).round().long()).tolist() == [0] + [3] * 10


def test_each_low_discrepancy_time_is_uniform(rng):
    """The first and the last of five, over 4,000 draws: moments of U(0, 1) within 5 errors."""
    t = torch.stack([losses.low_discrepancy_times(md.VP(), 5, rng) for _ in range(4000)])
    for column in (t[:, 0], t[:, 4]):
        assert float(column.mean()) == pytest.approx(1 / 2, abs=5 * 0.2887 / 4000**0.5)
        assert float((column**2).mean()) == pytest.approx(1 / 3, abs=5 * 0.2981 / 4000**0.5)
    # the mean of five plain draws has the standard deviation .129; these have 1/5 of .2887
    assert float(t.mean(1).std()) == pytest.approx(0.2887 / 5, rel=0.06)


@pytest.mark.parametrize("path", [md.VE(1e-6, 1e6), md.Cosine(), md.LinearPath()], ids=str)
def test_log_normal_times_written_out(path):
    """eq:log-normal-times: log(noise/signal) is mean + std z, with the z of the generator."""
    z = torch.randn(300, generator=seeded(), dtype=D)
    for mean, std in ((-1.2, 1.2), (0.5, 0.8)):
        t = losses.log_normal_times(mean, std)(path, 300, seeded())
        at = path(t)
        torch.testing.assert_close((at.noise / at.signal).log(), mean + std * z, rtol=0, atol=1e-9)
    default = losses.log_normal_times()(path, 300, seeded())
    assert torch.equal(default, losses.log_normal_times(-1.2, 1.2)(path, 300, seeded()))


def test_log_normal_is_logit_normal_on_the_line():
    """On LinearPath with mean 0: t = 1 / (1 + exp(-std z)), the sampler of rectified flow.

    Its density 1 / (std sqrt(2 pi) t (1 - t)) exp(-logit(t)^2 / 2 std^2) gives 68.27 % of the
    times to sigmoid(-1) .. sigmoid(1) at std 1: 20,000 draws, 5 standard errors.
    """
    t = losses.log_normal_times(0.0, 1.0)(md.LinearPath(), 20_000, seeded())
    z = torch.randn(20_000, generator=seeded(), dtype=D)
    torch.testing.assert_close(t, 1 / (1 + torch.exp(-z)), rtol=1e-12, atol=0)
    low, high = 1 / (1 + math.e), 1 / (1 + 1 / math.e)
    grid = torch.linspace(low, high, 2001, dtype=D)
    logit = torch.log(grid / (1 - grid))
    density = torch.exp(-(logit**2) / 2) / (math.sqrt(2 * math.pi) * grid * (1 - grid))
    share = float(torch.trapezoid(density, grid))
    assert share == pytest.approx(0.6827, abs=1e-4)
    inside = float(((t > low) & (t < high)).double().mean())
    assert inside == pytest.approx(share, abs=5 * (0.6827 * 0.3173 / 20_000) ** 0.5)


def test_log_normal_times_stay_on_the_path():
    """Levels beyond the ends are moved to t = 1 and to 1e-6; where signal ends at 0 none is."""
    z = torch.randn(1000, generator=seeded(), dtype=D)
    for path in (md.VE(0.5, 2.0), md.VP(), md.BetaTable(md.linear_betas(100))):
        low = float(path(1.0).log_snr)
        t = losses.log_normal_times(0.0, 8.0)(path, 1000, seeded())
        assert 1e-6 <= float(t.min()) and float(t.max()) <= 1 and t.dtype == D
        assert torch.equal(t > 1 - 1e-9, -16 * z < low + 1e-9)
        high = float(path(1e-6).log_snr)
        clipped = -16 * z > high
        assert bool(clipped.any()) and float((t[clipped] - 1e-6).abs().max()) < 1e-12
    for path in (md.Cosine(), md.BetaTable(schedules.zero_terminal_snr(md.linear_betas(50)))):
        t = losses.log_normal_times(4.0, 1.0)(path, 1000, seeded())
        assert float(t.max()) < 1 and len(set(t.tolist())) == 1000


def test_log_normal_times_are_not_rounded_on_a_table():
    table = md.BetaTable(md.linear_betas(50))
    t = losses.log_normal_times()(table, 100, seeded())
    assert float((t * 50 - (t * 50).round()).abs().max()) > 0.4
    # a time within 1e-3 of a step is that step: 1e-3 of the largest segment
    z = torch.randn(100, generator=seeded(), dtype=D)
    want = (2.4 - 2.4 * z).clamp(float(table(1.0).log_snr), float(table(1e-6).log_snr))
    torch.testing.assert_close(table(t).log_snr, want, rtol=0, atol=2e-3)


# ---- importance sampling of times -------------------------------------------------------------


def filled(bins=4, history=3, floor=0.001, size=lambda t: 1 + 9 * t, schedule=None, seed=0):
    """A sampler that has seen enough losses ``size(t)`` to know where they are large."""
    importance = losses.Importance(bins, history, floor)
    rng = seeded(seed)
    for _ in range(40):
        t = importance(schedule or md.VP(), 8 * bins, rng)
        importance.reweight(size(t))
    return importance


def draw_all(importance, schedule, n, seed=1):
    """(times, weights 1 / (B p)) of one draw of many."""
    t = importance(schedule, n, seeded(seed))
    return t, importance.reweight(torch.ones(n, dtype=D))


def test_importance_probabilities_written_out():
    """eq:importance-bins, eq:importance-weight: two bins, three losses each, floor .1.

    Root mean squares of (1, 2, 2) and (4, 4, 2) are root 3 and root 12: one and two thirds. The
    oldest losses, 100, are forgotten.
    """
    importance = losses.Importance(bins=2, history=3, floor=0.1)
    wanted = {0: [100.0, 1.0, -2.0, 2.0], 1: [100.0, 100.0, 4.0, 4.0, 2.0]}
    rng = seeded()
    while any(wanted.values()):
        where = int(importance(md.VP(), 1, rng) > 0.5)
        if not wanted[where]:
            continue  # drawn, not used
        importance.reweight(torch.tensor([wanted[where].pop(0)], dtype=D))
    p = [0.9 / 3 + 0.05, 0.9 * 2 / 3 + 0.05]
    assert importance.probabilities.tolist() == pytest.approx(p, rel=1e-12)
    t = importance(md.VP(), 50, rng)
    got = importance.reweight(torch.full((50,), 3.0, dtype=D))
    want = [3 / (2 * p[int(v > 0.5)]) for v in t]
    assert got.tolist() == pytest.approx(want, rel=1e-12) and len(set(got.tolist())) == 2


def test_one_bin_a_step_is_the_published_scheme():
    """bins = T: p over steps and weights 1 / (T p) as Nichol and Dhariwal's code has them."""
    T, history = 5, 10
    table = md.BetaTable(md.cosine_betas(T))
    importance, rng = losses.Importance(bins=T), seeded()
    kept = [[] for _ in range(T)]
    for k in range(60):
        t = importance(table, 4, rng)
        values = torch.rand(4, generator=seeded(k), dtype=D)
        for step, value in zip((t * T).round().long().tolist(), values.tolist(), strict=True):
            kept[step - 1] = [*kept[step - 1], value][-history:]
        importance.reweight(values)
    assert all(len(k) == history for k in kept)
    w = [math.sqrt(sum(v * v for v in k) / history) for k in kept]
    p = [0.999 * v / sum(w) + 0.001 / T for v in w]
    assert importance.probabilities.tolist() == pytest.approx(p, rel=1e-12)
    t = importance(table, 30, rng)
    got = importance.reweight(torch.ones(30, dtype=D))
    want = [1 / (T * p[round(float(v) * T) - 1]) for v in t]
    assert got.tolist() == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("T", [None, 7, 10, 1000])
def test_importance_is_unbiased(T):
    """The mean of weighted losses is the mean under uniform times, also where bins cut steps.

    Exactly: a bin has the probability p and the weight 1 / (B p), and inside a bin time is
    uniform, so each bin counts 1/B. By simulation: 40,000 draws, 4 standard errors.
    """
    schedule = md.VP() if T is None else md.BetaTable(md.cosine_betas(T))

    def loss(t):
        return torch.exp(4 * t)

    importance = filled(bins=4, size=loss, schedule=schedule)
    p = importance.probabilities
    assert float(p.sum()) == pytest.approx(1, rel=1e-12) and float(p[3] / p[0]) > 5
    n = 40_000
    t = importance(schedule, n, seeded(3))
    assert 0 < float(t.min()) and float(t.max()) <= 1
    u = t if T is None else None
    weighted = importance.reweight(loss(t))
    weights = weighted / loss(t)
    if T is None:  # which bin a time came from can be seen
        bins = (u * 4).ceil().long() - 1
        torch.testing.assert_close(weights, 1 / (4 * p[bins]), rtol=1e-12, atol=0)
        share = torch.bincount(bins, minlength=4) / n
        assert float(((share - p) / (p * (1 - p) / n).sqrt()).abs().max()) < 4
        inside = u * 4 - bins
        for b in range(4):  # uniform inside
            x = inside[bins == b]
            assert float(x.mean()) == pytest.approx(0.5, abs=4 * 0.2887 / len(x) ** 0.5)
            assert float((x**2).mean()) == pytest.approx(1 / 3, abs=4 * 0.2981 / len(x) ** 0.5)
        exact = math.expm1(4) / 4
    else:
        steps = t * T
        assert float((steps - steps.round()).abs().max()) < 1e-9
        exact = sum(math.exp(4 * i / T) for i in range(1, T + 1)) / T
        # a step that lies in two bins comes with either weight; every step counts 1/T
        counted = torch.zeros(T, dtype=D).index_add_(0, steps.round().long() - 1, weights) / n
        if T < 100:
            torch.testing.assert_close(counted, torch.full((T,), 1 / T, dtype=D), rtol=0.1, atol=0)
    error = float(weighted.std() / n**0.5)
    assert float(weighted.mean()) == pytest.approx(exact, abs=4 * error)
    assert error < 0.02 * exact


def test_importance_lowers_the_variance():
    """A loss that lives in the last tenth of time: the standard error falls to under a third.

    By Cauchy and Schwarz no p over these bins does better than p ~ root mean square; the value
    expected from that is computed, and the floor and the spread of the history cost little.
    """

    def loss(t):
        return torch.where(t > 0.9, 10.0, 0.1) * (1 + t)

    importance = filled(bins=10, history=10, size=loss)
    t, weights = draw_all(importance, md.VP(), 20_000)
    spread = float((weights * loss(t)).std())
    plain = float(loss(md.uniform_times(md.VP(), 20_000, seeded(2))).std())
    u = (torch.arange(10_000, dtype=D) + 0.5) / 10_000
    mean = float(loss(u).mean())
    root = loss(u).reshape(10, -1).square().mean(1).sqrt()
    best = math.sqrt(float(root.mean()) ** 2 - mean**2)
    assert best < plain / 20 and spread < plain / 3
    assert spread < 2 * best + 0.1 * mean


def test_warm_up_does_not_depend_on_the_steps():
    """T = 2000: out of the uniform phase after at most 2,500 draws; with a bin a step never."""
    table, rng = md.BetaTable(md.linear_betas(2000)), seeded()
    importance, published = losses.Importance(), losses.Importance(bins=2000)
    drawn = 0
    while len(set(importance.probabilities.tolist())) == 1:
        assert drawn < 2500  # 1,250 on average, 1,900 at most in 200 trials
        drawn += 50
        for sampler in (importance, published):
            t = sampler(table, 50, rng)
            sampler.reweight(0.1 + t)
    assert drawn >= 640 and len(set(published.probabilities.tolist())) == 1
    p = importance.probabilities
    assert len(p) == 64 and float(p[-1]) > 5 * float(p[0])


def test_the_uniform_phase_is_uniform():
    """Before the history is full every weight is exactly 1 and one bin short keeps it so."""
    importance = losses.Importance(bins=3, history=2, floor=0.5)
    t, weights = draw_all(importance, md.VP(), 1)
    torch.testing.assert_close(weights, torch.ones(1, dtype=D), rtol=1e-15, atol=0)
    counts = [0, 0, 0]
    counts[int((t * 3).ceil()) - 1] += 1
    rng = seeded()
    while min(counts) < 2:
        assert importance.probabilities.tolist() == [1 / 3] * 3
        t = importance(md.VP(), 1, rng)
        importance.reweight(t**3)
        counts[int((t * 3).ceil()) - 1] += 1
    assert len(set(importance.probabilities.tolist())) == 3
    zero = filled(bins=3, size=torch.zeros_like)
    assert zero.probabilities.tolist() == [1 / 3] * 3  # no loss anywhere: nothing to prefer


def test_one_bin_is_uniform():
    """One bin that remembers one loss: every weight is 1."""
    importance = filled(bins=1, history=1)
    assert importance.probabilities.tolist() == [1]
    t, weights = draw_all(importance, md.VP(), 1000)
    assert weights.tolist() == [1] * 1000 and 0 < float(t.min()) < 0.02 < 0.98 < float(t.max()) <= 1


def test_the_floor_bounds_the_weights():
    """Where the loss is nearly 0 a bin keeps floor / B, so no weight exceeds 1 / floor."""
    importance = filled(bins=4, floor=0.04, size=lambda t: torch.where(t > 0.75, 1.0, 0.0))
    assert importance.probabilities.tolist() == pytest.approx([0.01, 0.01, 0.01, 0.97])
    _, weights = draw_all(importance, md.VP(), 2000)
    assert float(weights.max()) == pytest.approx(25) and float(weights.min()) < 0.26
    assert filled(floor=1.0).probabilities.tolist() == [0.25] * 4


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.reweight(torch.ones(3)), ["losses", "times=importance"]),
        (lambda s: (s(md.VP(), 3, seeded()), s.reweight(torch.ones(2))), ["(2,)", "3 times"]),
        (lambda s: (s(md.VP(), 1, seeded()), s.reweight(torch.ones(()))), ["()", "1 times"]),
        (lambda s: (s(md.VP(), 2, seeded()), s.reweight(torch.ones(2, 1))), ["(2, 1)", "mean"]),
        (
            lambda s: (s(md.VP(), 2, seeded()), s.reweight(torch.tensor([1.0, math.nan]))),
            ["losses", "NaN"],
        ),
        (
            lambda s: (s(md.VP(), 2, seeded()), s.reweight(torch.tensor([1.0, math.inf]))),
            ["losses", "infinite"],
        ),
        (
            lambda s: (
                s(md.VP(), 2, seeded()),
                s.reweight(torch.ones(2)),
                s.reweight(torch.ones(2)),
            ),
            ["no draw"],
        ),
        (lambda s: losses.Importance(bins=0), ["bins=0", "at least 1"]),
        (lambda s: losses.Importance(bins=6.0), ["bins=6.0", "whole number"]),
        (lambda s: losses.Importance(history=0), ["history=0", "at least 1"]),
        (lambda s: losses.Importance(floor=0.0), ["floor=0.0", "above 0"]),
        (lambda s: losses.Importance(floor=1.1), ["floor=1.1", "at most 1"]),
        (lambda s: losses.log_normal_times(0.0, 0.0), ["std=0.0", "above 0"]),
        (lambda s: losses.log_normal_times(0.0, math.inf), ["std=inf", "above 0"]),
        (lambda s: losses.log_normal_times(math.nan), ["mean=nan", "finite"]),
    ],
)
def test_times_refuse(call, words):
    with pytest.raises(ValueError) as error:
        call(losses.Importance())
    for word in words:
        assert word in str(error.value)
