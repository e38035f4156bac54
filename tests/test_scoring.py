"""Scores against closed forms, double sums and counts, and what each of them cannot see."""

import math

import numpy as np
import pytest
import torch

from minidiff import scoring

D = torch.float64
ROOT_PI = math.sqrt(math.pi)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def density(z):
    return torch.exp(-(torch.as_tensor(z, dtype=D) ** 2) / 2) / math.sqrt(2 * math.pi)


def midpoints(n):
    """n quantiles of N(0, 1), at the middles of n equal shares of probability."""
    return torch.special.ndtri((torch.arange(n, dtype=D) + 0.5) / n)


def gaussian_crps(y):
    """CRPS of N(0, 1) at y.

    E|X - y| = y (2 Phi(y) - 1) + 2 phi(y), by integrating (x - y) phi = -phi' - y phi on either
    side of y; X - X' is N(0, 2), so E|X - X'| = 2 / sqrt(pi). Their difference, the second halved:
    """
    y = torch.as_tensor(y, dtype=D)
    return y * (2 * torch.special.ndtr(y) - 1) + 2 * density(y) - 1 / ROOT_PI


# ---- weighted quantile loss ---------------------------------------------------------------


def quantile_loss(samples, target):
    """The 19-level loss of numpy vectors (S, N) and (N,), written out."""
    total = 0.0
    for k in range(1, 20):
        a = 0.05 * k
        for x, y in zip(np.quantile(samples, a, axis=0), target, strict=True):
            total += 2 * (a * (y - x) if y > x else (1 - a) * (x - y))
    return total / 19 / np.abs(target).sum()


@pytest.mark.parametrize("S", [1, 2, 7, 21, 100])
def test_quantile_loss_by_numpy(S):
    """eq:crps-quantile by loops over levels and entries; 1e-9, as places are rounded to 1e-10."""
    samples, target = 1.3 * data(S, 3, 4) + 0.2, data(3, 4, seed=1)
    want = quantile_loss(samples.reshape(S, 12).numpy(), target.flatten().numpy())
    assert scoring.crps_quantile(samples, target) == pytest.approx(want, rel=1e-9)
    assert scoring.crps_quantile(samples.flip(0), target) == pytest.approx(want, rel=1e-9)
    x, y = samples.float(), target.float()  # single precision is widened before anything else
    want = quantile_loss(x.double().reshape(S, 12).numpy(), y.double().flatten().numpy())
    assert scoring.crps_quantile(x, y) == pytest.approx(want, rel=1e-9)


def test_levels():
    want = "0.05 0.1 0.15 0.2 0.25 0.3 0.35 0.4 0.45 0.5 0.55 0.6 0.65 0.7 0.75 0.8 0.85 0.9 0.95"
    assert scoring.LEVELS == tuple(float(w) for w in want.split())


def test_quantile_loss_by_hand():
    """Samples 0 and 4 have quantiles 4a; target 1, levels 1/4, 1/2 and 3/4: losses 0, 1, 1."""
    samples, target = torch.tensor([[0.0], [4.0]]), torch.tensor([1.0])
    got = scoring.crps_quantile(samples, target, levels=(0.25, 0.5, 0.75))
    assert got == pytest.approx(2 / 3, rel=1e-12)
    got = scoring.crps_quantile(samples - 3, target - 3, levels=(0.25, 0.5, 0.75))
    assert got == pytest.approx(1 / 3, rel=1e-12)  # the same loss over |-2|
    assert scoring.crps_quantile(samples, target, levels=(0.5,)) == pytest.approx(1, rel=1e-12)


def test_a_point_forecast_scores_its_absolute_error():
    """Above the point the factor is 2a, below 2(1 - a); over symmetric levels each averages to 1,
    so the score is sum |error| / sum |y|, to rounding.
    """
    target, point = data(5, 6), data(5, 6, seed=1)
    want = float((point - target).abs().sum() / target.abs().sum())
    for S in (1, 30):
        got = scoring.crps_quantile(point.expand(S, 5, 6), target)
        assert got == pytest.approx(want, rel=1e-12)


def test_quantile_loss_of_a_calibrated_gaussian():
    """E 2 rho_a(y - z_a) = 2 phi(z_a) at the quantile z_a, and E|y| = sqrt(2 / pi).

    The forecast has its quantiles at the 19 levels exactly, and targets stand at 20,000 equal
    shares, an error below 1e-5. Times E|y| this is 4.8 % above the exact CRPS, 1 / sqrt(pi).
    """
    z = torch.special.ndtri(torch.arange(1, 20, dtype=D) / 20)
    ends = torch.tensor([10.0], dtype=D)
    samples = torch.cat([-ends, z, ends])[:, None].expand(21, 20_000)
    got = scoring.crps_quantile(samples, midpoints(20_000))
    want = float(2 * density(z).mean()) / math.sqrt(2 / math.pi)
    assert got == pytest.approx(want, rel=1e-5) and want == pytest.approx(0.741234, rel=1e-6)
    assert got * math.sqrt(2 / math.pi) * ROOT_PI == pytest.approx(1.048, abs=0.0005)


@pytest.mark.parametrize("S", [5, 25])
def test_few_samples_raise_the_quantile_loss(S):
    """By about 1/S of .7412 for a calibrated forecast, as its docstring says.

    The loss of an entry has a standard deviation of 3/4 of its mean: with 100,000 of them four
    standard errors are 1 %, and "about" is another 2 %.
    """
    n = 100_000
    got = scoring.crps_quantile(data(S, n), data(n, seed=1))
    assert got / 0.741234 == pytest.approx(1 + 1 / S, abs=0.03)


def test_quantile_loss_depends_on_the_origin_only():
    """A factor cancels; a shift leaves the loss and changes what it is divided by."""
    samples, target = data(20, 40), data(40, seed=1)
    base = scoring.crps_quantile(samples, target)
    assert scoring.crps_quantile(-7 * samples, -7 * target) == pytest.approx(base, rel=1e-9)
    moved = scoring.crps_quantile(samples + 100, target + 100)
    loss = base * float(target.abs().sum())
    assert moved == pytest.approx(loss / float((target + 100).sum()), rel=1e-9)


def test_only_scored_entries_count():
    """Whatever stands elsewhere, NaN too, in samples and target, for every score with a mask."""
    scored = torch.rand(3, 4, 2, generator=seeded(2)) < 0.6
    samples, target = data(9, 3, 4, 2), data(3, 4, 2, seed=1)
    some, one = samples[:, scored], target[scored]
    want = quantile_loss(some.numpy(), one.numpy())
    for junk in (math.nan, math.inf, 1e9):
        x = torch.where(scored, samples, torch.full_like(samples, junk))
        y = torch.where(scored, target, torch.full_like(target, junk))
        assert scoring.crps_quantile(x, y, scored=scored) == pytest.approx(want, rel=1e-9)
        got = scoring.interval_coverage(x, y, 0.5, scored=scored)
        assert got == scoring.interval_coverage(some, one, 0.5)
        got = scoring.rank_histogram(x, y, bins=3, scored=scored)
        torch.testing.assert_close(got, scoring.rank_histogram(some, one, bins=3))
    row = torch.tensor([True, False, True, False])[:, None]  # broadcast over (3, 4, 2)
    want = quantile_loss(
        samples[:, :, ::2].reshape(9, -1).numpy(), target[:, ::2].flatten().numpy()
    )
    assert scoring.crps_quantile(samples, target, scored=row) == pytest.approx(
        float(want), rel=1e-9
    )


# ---- sum over channels --------------------------------------------------------------------


def test_crps_sum_by_numpy():
    """eq:crps-sum: the loss of sums along the last axis, to 1e-9 as above; not the mean loss."""
    samples, target = data(11, 6, 3), data(6, 3, seed=1)
    want = quantile_loss(samples.sum(2).numpy(), target.sum(1).numpy())
    assert scoring.crps_sum(samples, target) == pytest.approx(want, rel=1e-9)
    assert abs(scoring.crps_quantile(samples, target) / want - 1) > 0.1
    got = scoring.crps_sum(samples[:, :, :1], target[:, :1])  # one channel is its own sum
    assert got == pytest.approx(scoring.crps_quantile(samples[..., 0], target[:, 0]), rel=1e-12)


def test_crps_sum_does_not_see_channels():
    """Offsets d = (3, -5, 2) cancel in the sum: CRPS-sum is that of the perfect one, to rounding.

    For the others E|X - y| >= |d| for each channel, so the mean CRPS, 1/sqrt(pi) = .56 if perfect,
    is at least 10/3 - .56; and the energy score, 1.13 = half the mean distance sqrt(2) E chi_3 of
    two samples, at least sqrt(38) - 1.13. The tenths are room for 500 targets and 40 samples.
    """
    target, perfect = 50 + data(500, 3), 50 + data(40, 500, 3, seed=1)
    nonsense = perfect + torch.tensor([3.0, -5.0, 2.0], dtype=D)
    base = scoring.crps_sum(perfect, target)
    assert scoring.crps_sum(nonsense, target) == pytest.approx(base, rel=1e-9)
    for score, good, bad in (
        (scoring.crps_ensemble, 0.56, 10 / 3 - 0.56),
        (scoring.energy_score, 1.13, math.sqrt(38) - 1.13),
    ):
        assert float(score(perfect, target).mean()) == pytest.approx(good, abs=0.1)
        assert float(score(nonsense, target).mean()) > bad - 0.1
    apart = scoring.crps_quantile(nonsense, target) / scoring.crps_quantile(perfect, target)
    assert apart > 4


# ---- CRPS of an ensemble ------------------------------------------------------------------


def test_crps_of_a_published_ensemble():
    """A number of the package properscoring: 1000 draws of numpy at 0; rounding only."""
    samples = torch.from_numpy(np.random.RandomState(0).randn(1000))
    got = scoring.crps_ensemble(samples, torch.tensor(0.0, dtype=D))
    assert got.shape == () and float(got) == pytest.approx(0.2297109370729622, rel=1e-12)


def test_crps_of_exact_quantiles_is_that_of_the_normal():
    """eq:crps-ensemble of S midpoint quantiles is the midpoint rule for the CRPS as an integral of
    2 (1{y <= q_a} - a)(q_a - y) over levels a.

    With h = 1/S its error is at most h^2 / 4 phi(y) at the kink q_a = y and below h^2 elsewhere:
    6 h^2 for |y| <= 2. The numbers are properscoring's; those of seven digits are rounded.
    """
    S, y = 20_000, torch.tensor([0.0, 1.0, -1.0, 2.0, -2.0], dtype=D)
    got = scoring.crps_ensemble(midpoints(S)[:, None].expand(S, 5), y)
    assert float(got[0]) == pytest.approx(0.2336949772551091, abs=6 / S**2)
    want = torch.tensor([0.2336950, 0.6024414, 0.6024414, 1.4527918, 1.4527918], dtype=D)
    torch.testing.assert_close(got, want, rtol=0, atol=5e-8 + 6 / S**2)
    torch.testing.assert_close(got, gaussian_crps(y), rtol=0, atol=6 / S**2)
    # and the width: N(0, 9) at 3y has three times the score
    got = scoring.crps_ensemble(3 * midpoints(S)[:, None].expand(S, 5), 3 * y)
    torch.testing.assert_close(got, 3 * gaussian_crps(y), rtol=0, atol=18 / S**2)


@pytest.mark.parametrize("S", [2, 3, 16])
def test_crps_by_double_sums(S):
    """eq:crps-ensemble and eq:crps-fair by their S^2 differences, with ties; 1e-12 is rounding."""
    samples, target = data(S, 4, 3).mul(2).round(decimals=1), data(4, 3, seed=1)
    samples[:, 0, 0], target[0, 1] = 0.5, samples[0, 0, 1]
    error = (samples - target).abs().mean(0)
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1))
    got = scoring.crps_ensemble(samples, target)
    torch.testing.assert_close(got, error - pairs / (2 * S * S), rtol=1e-12, atol=1e-12)
    got = scoring.crps_fair(samples, target)
    torch.testing.assert_close(got, error - pairs / (2 * S * (S - 1)), rtol=1e-12, atol=1e-12)


def test_crps_is_the_integral_of_squared_steps():
    """Steps of {0, 1, 4} to target 2: (1/3)^2 on [0, 1], (2/3)^2 on [1, 2], (1/3)^2 on [2, 4].

    Target 6 lies above: (1/3)^2, three times (2/3)^2, and 1 from 4 to 6.
    """
    samples = torch.tensor([[4.0, 4.0], [0.0, 0.0], [1.0, 1.0]])
    got = scoring.crps_ensemble(samples, torch.tensor([2.0, 6.0]))
    assert got.tolist() == pytest.approx([(1 + 4 + 2) / 9, (1 + 12) / 9 + 2], rel=1e-6)


def test_one_sample_scores_its_absolute_error():
    x, y = data(1, 3, 2), data(3, 2, seed=1)
    torch.testing.assert_close(scoring.crps_ensemble(x, y), (x[0] - y).abs())
    torch.testing.assert_close(scoring.energy_score(x, y), (x[0] - y).norm(dim=1))


@pytest.mark.parametrize("S", [2, 10])
def test_only_the_fair_crps_has_no_bias(S):
    """Calibrated N(0, 1): the fair score is 1/sqrt(pi) for every S, the other 1 + 1/S times that.

    40,000 entries, within 4.5 standard errors of them; the two claims differ by many.
    """
    n = 40_000
    samples, target = data(S, n, seed=S), data(n, seed=1)
    for score, want in (
        (scoring.crps_fair(samples, target), 1 / ROOT_PI),
        (scoring.crps_ensemble(samples, target), (1 + 1 / S) / ROOT_PI),
    ):
        error = float(score.std()) / n**0.5
        assert float(score.mean()) == pytest.approx(want, abs=4.5 * error)
        assert 4.5 * error < 0.5 / S / ROOT_PI


def test_crps_prefers_the_right_width():
    """Forecasts N(0, s^2) of targets N(0, 1) score sqrt(2/pi) sqrt(1 + s^2) - s/sqrt(pi).

    From X - y of N(0, 1 + s^2). 2,000 by 2,000 midpoints leave less than 1e-3.
    """
    x, y = midpoints(2000)[:, None], midpoints(500)
    got = {s: float(scoring.crps_fair((s * x).expand(2000, 500), y).mean()) for s in (0.5, 1, 2)}
    for s, value in got.items():
        want = math.sqrt(2 / math.pi) * math.sqrt(1 + s * s) - s / ROOT_PI
        assert value == pytest.approx(want, abs=2e-3)
    assert got[1] < min(got[0.5], got[2]) - 0.02


def test_scores_far_from_zero_and_in_single_precision():
    """A shift by 1e6 changes nothing beyond rounding (1e-9 of float64); results have the target's
    dtype and shape; float32 input is computed in float64 and rounded once (6e-8).
    """
    samples, target = data(30, 5, 4), data(5, 4, seed=1)
    for score, shape in (
        (scoring.crps_ensemble, (5, 4)),
        (scoring.crps_fair, (5, 4)),
        (scoring.energy_score, (5,)),
        (scoring.energy_score_fair, (5,)),
    ):
        base = score(samples, target)
        assert base.shape == shape and base.dtype == D
        torch.testing.assert_close(score(samples + 1e6, target + 1e6), base, rtol=0, atol=1e-8)
        x, y = 7 + samples.float(), 7 + target.float()
        single, double = score(x, y), score(x.double(), y.double())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), double, rtol=6e-8, atol=0)
        torch.testing.assert_close(score(-3 * samples, -3 * target), 3 * base)


# ---- energy score -------------------------------------------------------------------------

MEMBERS = [
    [0.79546742, 0.02461368],
    [0.4777960, 0.7584595],
    [0.2164079, 0.3181810],
    [0.5409873, 0.1319422],
]


def test_energy_score_of_a_published_example():
    """A test of the package scoringrules: four members in the plane, printed to seven digits."""
    samples, target = torch.tensor(MEMBERS, dtype=D), torch.tensor([0.2743836, 0.8146400], dtype=D)
    got = scoring.energy_score(samples, target)
    assert got.shape == () and float(got) == pytest.approx(0.3949793, abs=1e-7)
    assert float(scoring.energy_score_fair(samples, target)) == pytest.approx(0.3274585, abs=1e-7)


@pytest.mark.parametrize("held", [1, 9 * 9 * 3, 2**22])
def test_energy_score_by_double_sums(held, monkeypatch):
    """eq:energy-score and eq:energy-score-fair written out, however many events are taken at a
    time (1, 3 of 8, all); 1e-12 is rounding.
    """
    sizes, cdist = [], torch.cdist

    def watched(a, b, **options):
        sizes.append(len(a) * a.shape[1] * b.shape[1])
        return cdist(a, b, **options)

    monkeypatch.setattr(torch, "cdist", watched)
    monkeypatch.setattr(scoring, "DISTANCES", held)
    samples, target = data(9, 4, 2, 5), data(4, 2, 5, seed=1)
    error = (samples - target).square().sum(-1).sqrt().mean(0)
    pairs = (samples[:, None] - samples[None]).square().sum(-1).sqrt().sum((0, 1))
    got = scoring.energy_score(samples, target)
    torch.testing.assert_close(got, error - pairs / (2 * 81), rtol=1e-12, atol=0)
    got = scoring.energy_score_fair(samples, target)
    torch.testing.assert_close(got, error - pairs / (2 * 72), rtol=1e-12, atol=0)
    assert max(sizes) <= max(held, 81) and sum(sizes) == 2 * 8 * 81


def test_energy_score_of_one_entry_is_the_crps():
    samples, target = data(12, 7, 1), data(7, 1, seed=1)
    error = (samples - target).abs().mean(0)[:, 0]
    pairs = (samples[:, None] - samples[None]).abs().sum((0, 1))[:, 0]
    got = scoring.energy_score(samples, target)
    torch.testing.assert_close(got, error - pairs / 288, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got, scoring.crps_ensemble(samples, target)[:, 0])


def test_energy_score_keeps_small_distances():
    """30 samples, 1e-3 wide, around 1e4: torch's default distance, by a product, has no digit."""
    samples, target = 1e4 + 1e-3 * data(30, 2, 5), 1e4 + 1e-3 * data(2, 5, seed=1)
    error = (samples - target).square().sum(-1).sqrt().mean(0)
    pairs = (samples[:, None] - samples[None]).square().sum(-1).sqrt().sum((0, 1))
    got = scoring.energy_score(samples, target)
    torch.testing.assert_close(got, error - pairs / 1800, rtol=1e-9, atol=0)


def test_energy_score_sees_dependence():
    """Right means and widths, no correlation, against targets with .95 of it: worse by over 5
    standard errors of 2,000 paired scores, while the mean CRPS is the same within 4.
    """
    n, r = 2000, 0.95

    def pair(x):
        return torch.stack([x[..., 0], r * x[..., 0] + math.sqrt(1 - r * r) * x[..., 1]], -1)

    target, noise = pair(data(n, 2)), data(50, n, 2, seed=1)
    for score, least, most in (
        (lambda x: scoring.energy_score(x, target), 5, math.inf),
        (lambda x: scoring.crps_ensemble(x, target).mean(1), -4, 4),
    ):
        gap = score(noise) - score(pair(noise))
        assert least < float(gap.mean() / gap.std()) * n**0.5 < most


# ---- calibration --------------------------------------------------------------------------


@pytest.mark.parametrize("level", [0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_borders_of_the_interval_are_inside(level):
    """Samples 0 to 20: level c ends at 10 -+ 10c, whole numbers that rounding must not move."""
    low, high = round(10 - 10 * level), round(10 + 10 * level)
    target = torch.tensor([low - 0.01, low, 10, high, high + 0.01], dtype=D)
    samples = torch.arange(21, dtype=D)[:, None].expand(21, 5)
    for at, want in enumerate((0, 1, 1, 1, 0)):
        assert scoring.interval_coverage(samples[:, at], target[at], level) == want
    assert scoring.interval_coverage(samples, target, level) == pytest.approx(0.6, rel=1e-12)


def test_interval_between_samples():
    """Five samples 0, 1, 2, 3, 10 at level .7: places .6 and 3.4, so from .6 to 5.8."""
    samples = torch.tensor([10.0, 2, 0, 1, 3], dtype=D)[:, None].expand(5, 4)
    target = torch.tensor([0.59, 0.61, 5.79, 5.81], dtype=D)
    got = [scoring.interval_coverage(samples[:, i], target[i], 0.7) for i in range(4)]
    assert got == [0, 1, 1, 0]
    assert scoring.interval_coverage(samples, target, 0.7) == 0.5


def test_coverage_of_exact_quantiles_is_nominal():
    """eq:interval-coverage of 2,001 quantiles of N(0, 1), targets at 1,000 equal shares: to 2e-3,
    one target at either end. Half as wide a forecast covers P(|y| < z / 2) instead.
    """
    samples, target = midpoints(2001)[:, None].expand(2001, 1000), midpoints(1000)
    for level in (0.5, 0.9):
        assert scoring.interval_coverage(samples, target, level) == pytest.approx(level, abs=2e-3)
    want = math.erf(1.6448536 / 2 / math.sqrt(2))
    assert scoring.interval_coverage(samples / 2, target) == pytest.approx(want, abs=2e-3)


@pytest.mark.parametrize(
    ("S", "level", "want"),
    [(21, 0.9, 18 / 22), (41, 0.5, 20 / 42), (100, 0.9, 0.882), (25, 0.9, 0.831)],
)
def test_coverage_of_few_samples_is_below_nominal(S, level, want):
    """c (S - 1) / (S + 1) for a perfect forecast: P(y <= k-th of S) = k / (S + 1) by symmetry.

    For the first two the interval ends at samples, so the law is of no matter; the last two are
    uniform, where a place between two samples is as linear as its chance. 40,000 targets have a
    standard error below .0025: 4 of them, and the half unit of three printed digits.
    """
    n = 40_000
    draw = data if S in (21, 41) else lambda *s, seed=0: torch.rand(s, generator=seeded(seed))
    got = scoring.interval_coverage(draw(S, n), draw(n, seed=1), level)
    error = math.sqrt(want * (1 - want) / n)
    assert level * (S - 1) / (S + 1) == pytest.approx(want, abs=5e-4)
    assert got == pytest.approx(want, abs=4 * error + 5e-4)
    assert abs(got - level) > 6 * error


def test_ranks_by_hand():
    """Samples 0, 1, 2: targets below, between, above have ranks 0, 1, 2, 3."""
    samples = torch.tensor([1.0, 0.0, 2.0])[:, None].expand(3, 4)
    target = torch.tensor([-1.0, 0.5, 1.5, 9.0])

    def shares(at, bins):
        return scoring.rank_histogram(samples[:, at], target[at], bins=bins).tolist()

    assert [shares(i, 4).index(1) for i in range(4)] == [0, 1, 2, 3]
    assert [shares(i, 2) for i in range(4)] == [[1, 0], [1, 0], [0, 1], [0, 1]]
    # in three bins of 4/3 ranks: rank 1 is [1, 2], a third of it before 4/3
    assert shares(0, 3) == pytest.approx([1, 0, 0])
    assert shares(1, 3) == pytest.approx([1 / 3, 2 / 3, 0])
    assert shares(2, 3) == pytest.approx([0, 2 / 3, 1 / 3])
    # eight bins: each rank fills two
    assert shares(2, 8) == pytest.approx([0, 0, 0, 0, 0.5, 0.5, 0, 0])
    got = scoring.rank_histogram(samples, target, bins=1)
    assert got.tolist() == [1] and got.dtype == D
    got = scoring.rank_histogram(samples[:, [0, 0, 0, 1]], target[[0, 0, 0, 1]], bins=4)
    assert got.tolist() == [0.75, 0.25, 0, 0]


def test_ties_share_their_mass():
    """Samples 0, 1, 1, 5 at 1: one below, two equal: ranks 1, 2 and 3 of 0..4, a third each."""
    samples, target = torch.tensor([[1.0], [5.0], [0.0], [1.0]]), torch.tensor([1.0])
    got = scoring.rank_histogram(samples, target, bins=5)
    assert got.tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])
    got = scoring.rank_histogram(torch.zeros(7, 3), torch.zeros(3), bins=4)
    assert got.tolist() == pytest.approx([0.25] * 4)
    # 10 of -1, 0, 1 for each of 20,000 targets: flat, without randomness, in expectation
    values = torch.randint(-1, 2, (11, 20_000), generator=seeded()).float()
    got = scoring.rank_histogram(values[:10], values[10], bins=11)
    assert float(20_000 * 11 * (got - 1 / 11).square().sum()) < 35.6  # fewer than chi-square's


@pytest.mark.parametrize(("S", "bins"), [(19, 10), (24, 10), (9, 10), (30, 7)])
def test_ranks_of_exchangeable_targets_are_flat(S, bins):
    """eq:rank-histogram with 20,000 targets from the law of the samples: chi-square with bins - 1
    degrees of freedom, or less where a rank is shared; its 99.99 % point is 33.7 for 9, 27.9 for 6.
    """
    n = 20_000
    got = scoring.rank_histogram(data(S, n), data(n, seed=1), bins=bins)
    assert float(got.sum()) == pytest.approx(1, abs=1e-12)
    assert float(n * bins * (got - 1 / bins).square().sum()) < (33.7 if bins == 10 else 27.9)


def test_shapes_of_the_rank_histogram():
    """Too narrow: high at both ends; too wide: in the middle; too low: at the right end."""
    x, y = data(19, 5000), data(5000, seed=1)
    narrow, wide, low = (scoring.rank_histogram(f, y) for f in (x / 2, 2 * x, x - 1))
    assert min(narrow[0], narrow[9]) > 0.2 > 0.08 > max(narrow[4], narrow[5])
    assert max(wide[0], wide[9]) < 0.04 < 0.13 < min(wide[4], wide[5])
    assert low[9] > 0.25 > 0.04 > low[0]


# ---- bad input ----------------------------------------------------------------------------

X, Y = torch.ones(5, 3, 2), torch.ones(3, 2)
HOLE = torch.tensor([[1.0, 1.0], [1.0, math.nan], [1.0, 1.0]])
ON = torch.ones(3, 2, dtype=torch.bool)
EVERY = (
    scoring.crps_quantile,
    scoring.crps_sum,
    scoring.crps_ensemble,
    scoring.crps_fair,
    scoring.energy_score,
    scoring.energy_score_fair,
    scoring.interval_coverage,
    scoring.rank_histogram,
)
MASKED = (scoring.crps_quantile, scoring.interval_coverage, scoring.rank_histogram)


@pytest.mark.parametrize("score", EVERY)
@pytest.mark.parametrize(
    ("samples", "target", "word"),
    [
        (X.long(), Y, "samples is torch.int64"),
        (X, Y.long(), "target is torch.int64"),
        (X.numpy(), Y, "samples is .*give a floating tensor"),
        (X, [1.0], "target is .*give a floating tensor"),
        (Y, Y, r"samples has shape \(3, 2\) and target \(3, 2\)"),
        (X.transpose(0, 1), Y, "samples has shape"),  # the batch before the samples
        (X, Y[:1], "samples has shape"),  # would broadcast
        (X[:0], Y, "S >= 1"),
        (X[:, :0], Y[:0], "samples has shape"),
        (torch.tensor(1.0), torch.tensor(1.0), "samples has shape"),
        (X, HOLE, "target holds NaN"),
        (HOLE.expand(5, 3, 2), Y, "samples holds NaN"),
        (X, Y / 0, "target holds NaN or infinite"),
    ],
)
def test_scores_refuse(score, samples, target, word):
    with pytest.raises(ValueError, match=word):
        score(samples, target)


@pytest.mark.parametrize("score", MASKED)
def test_masks_are_checked(score):
    for scored, word in (
        (ON.float(), "scored has dtype torch.float32"),
        (torch.ones(4, dtype=torch.bool), "must broadcast"),
        (~ON, "scored counts no entry"),
    ):
        with pytest.raises(ValueError, match=word):
            score(X, Y, scored=scored)
    with pytest.raises(ValueError, match="target holds NaN"):
        score(X, HOLE, scored=ON)
    with pytest.raises(ValueError, match="samples holds NaN"):
        score(HOLE.expand(5, 3, 2), Y, scored=~HOLE.isnan() | ON)
    score(HOLE.expand(5, 3, 2), HOLE, scored=~HOLE.isnan())


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: scoring.crps_quantile(X, 0 * Y), "target is 0"),
        (lambda: scoring.crps_quantile(X, HOLE.nan_to_num(0) * 0, scored=ON), "target is 0"),
        (lambda: scoring.crps_sum(X, torch.tensor([1.0, -1.0]).expand(3, 2)), "target is 0"),
        (lambda: scoring.crps_quantile(X, Y, levels=()), r"levels=\(\)"),
        (lambda: scoring.crps_quantile(X, Y, levels=(0.5, 1.0)), "give numbers between"),
        (lambda: scoring.crps_quantile(X, Y, levels=(5, 95)), "give numbers between"),
        (lambda: scoring.crps_sum(X, Y, levels=(0.0,)), "give numbers between"),
        (lambda: scoring.crps_sum(X[:, 0, 0], Y[0, 0]), "last axis is an event"),
        (lambda: scoring.energy_score(X[:, 0, 0], Y[0, 0]), "last axis is an event"),
        (lambda: scoring.crps_fair(X[:1], Y), "samples holds 1 draw"),
        (lambda: scoring.energy_score_fair(X[:1], Y), "samples holds 1 draw"),
        (lambda: scoring.interval_coverage(X, Y, 90), "level=90"),
        (lambda: scoring.interval_coverage(X, Y, 0.0), r"level=0\.0"),
        (lambda: scoring.interval_coverage(X, Y, math.nan), "level=nan"),
        (lambda: scoring.rank_histogram(X, Y, bins=0), "bins=0"),
        (lambda: scoring.rank_histogram(X, Y, bins=2.5), "bins=2.5"),
        (lambda: scoring.rank_histogram(X, Y, bins=True), "bins=True"),
    ],
)
def test_bad_options_are_refused(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_scores_draw_nothing_and_change_nothing(global_state_untouched):
    """Neither the global random state nor their arguments."""
    x, y = data(5, 3, 2), data(3, 2, seed=1)
    before = x.clone(), y.clone()
    for score in EVERY:
        score(x, y)
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])
