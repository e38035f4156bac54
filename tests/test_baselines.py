"""The baselines of series, against small examples by hand, numpy, exact laws and torch's lstsq."""

import math

import numpy as np
import pytest
import torch

from minidiff import baselines, exact

D = torch.float64
NAN = math.nan


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def coins(*shape, share=0.5, seed=1):
    """A random mask, True with this probability."""
    return torch.rand(*shape, generator=seeded(seed)) < share


def hide(values, known):
    """NaN wherever nothing is known."""
    return torch.where(known, values, NAN)


# ---- filling gaps ----------------------------------------------------------------------------

#   a gap in the middle, at both ends, one known value, nothing known; time goes down
GAPS = torch.tensor(
    [
        [1.0, NAN, NAN, NAN],
        [NAN, NAN, NAN, NAN],
        [NAN, 4.0, NAN, NAN],
        [4.0, NAN, 7.0, NAN],
        [NAN, -2.0, NAN, NAN],
        [9.0, NAN, NAN, NAN],
    ],
    dtype=D,
)[None]


def test_last_value_by_hand():
    got = baselines.last_value(GAPS, ~GAPS.isnan(), 0.5)
    assert got[0].T.tolist() == [
        [1, 1, 1, 4, 4, 9],
        [4, 4, 4, 4, -2, -2],
        [7, 7, 7, 7, 7, 7],
        [0.5] * 6,
    ]


def test_interpolate_by_hand():
    """eq:interpolation: from 1 to 4 in three hours, from 4 to -2 in two; flat outside."""
    got = baselines.interpolate(GAPS, ~GAPS.isnan(), 0.5)
    assert got[0].T.tolist() == [
        [1, 2, 3, 4, 6.5, 9],
        [4, 4, 4, 1, -2, -2],
        [7, 7, 7, 7, 7, 7],
        [0.5] * 6,
    ]


FILLERS = [baselines.last_value, baselines.interpolate]


def filled_by_numpy(fill, y, seen, otherwise):
    n = np.arange(len(y))
    if not seen.any():
        return np.full(len(y), otherwise)
    if fill is baselines.interpolate:
        return np.interp(n, n[seen], y[seen])
    last = [max(n[seen][n[seen] <= i], default=n[seen][0]) for i in n]
    return y[last]


@pytest.mark.parametrize("fill", FILLERS)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_fillers_agree_with_numpy(fill, share):
    """60 series of 15 values with random masks, one by one by numpy, to 1e-12; a value that only
    one dtype can hold shows that nothing is computed in single precision.
    """
    known, spare = coins(20, 15, 3, share=share), torch.tensor([0.0, -1.0, 9.0], dtype=D)
    values = hide(1 + 1e-9 * data(20, 15, 3), known)
    got = fill(values, known, spare)
    for b in range(20):
        for k in range(3):
            want = filled_by_numpy(fill, values[b, :, k].numpy(), known[b, :, k].numpy(), spare[k])
            np.testing.assert_allclose(got[b, :, k].numpy() - 1, want - 1, rtol=0, atol=1e-15)
    assert torch.equal(got[known], values[known])


@pytest.mark.parametrize("fill", FILLERS)
def test_fillers_leave_the_input_and_its_dtype(fill):
    known = coins(4, 6, 2)
    values = hide(data(4, 6, 2), known).float()
    before = values.clone()
    got = fill(values, known, torch.zeros(2, dtype=D))
    assert got.dtype == torch.float32 and got.shape == values.shape
    assert torch.equal(values.nan_to_num(7), before.nan_to_num(7))
    whole = data(2, 3, 2)
    assert torch.equal(fill(whole, torch.ones_like(whole, dtype=torch.bool), 0), whole)
    none = fill(torch.full((2, 3, 2), NAN), torch.zeros(2, 3, 2, dtype=torch.bool), torch.arange(2))
    assert none.tolist() == [[[0.0, 1.0]] * 3] * 2


@pytest.mark.parametrize("fill", FILLERS)
def test_what_is_not_known_is_not_looked_at(fill):
    known, values = coins(5, 8, 3), data(5, 8, 3)
    other = torch.where(known, values, 1e6)
    assert torch.equal(fill(hide(values, known), known, 0), fill(other, known, 0))


# ---- windows as one Gaussian -----------------------------------------------------------------

SERIES = exact.VAR(
    torch.tensor([[[0.6, 0.2], [-0.3, 0.5]], [[0.1, 0.0], [0.2, 0.1]]], dtype=D),
    torch.tensor([[1.0, 0.4], [0.4, 0.6]], dtype=D),
    torch.tensor([0.5, -1.0], dtype=D),
)
LAW = SERIES.joint(5)  # mean and covariance of windows of five hours
MODEL = baselines.GaussianWindows(LAW.means[0], LAW.covs[0])


def some_windows():
    """Six windows with gaps: two share a mask, one knows nothing, one everything."""
    known = coins(6, 5, 2)
    known[1], known[2], known[3] = known[0], False, True
    return hide(SERIES.sample(6, 5, rng=seeded(2)), known), known


def test_exact_law_gives_the_exact_mean():
    """eq:conditional-gaussian: the oracle of imputation, window by window, to 1e-10."""
    values, known = some_windows()
    got = MODEL.mean(values, known)
    assert torch.equal(got[known], values[known])
    for b in (0, 1, 2, 4, 5):
        want = exact.ConditionalGaussian(LAW.means[0], LAW.covs[0], values[b], known[b])
        torch.testing.assert_close(got[b], want.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got[2], LAW.means[0], rtol=1e-12, atol=1e-12)


def test_exact_law_gives_exact_draws(global_state_untouched):
    """Both moments of 40,000 draws of each window within 5 standard errors of the oracle's."""
    n, (values, known) = 40_000, some_windows()
    x = MODEL.sample(values, known, n, rng=seeded(3))
    assert x.shape == (n, 6, 5, 2) and x.dtype == D
    assert bool((x[:, known] == values[known]).all())
    for b in (0, 1, 2, 4, 5):
        want = exact.ConditionalGaussian(LAW.means[0], LAW.covs[0], values[b], known[b])
        gap = (x[:, b] - want.mean)[:, ~known[b]]
        products = (gap[:, :, None] * gap[:, None]).flatten(1)
        for sample, mean in ((gap, torch.zeros_like(gap[0])), (products, want.cov.flatten())):
            assert bool(((sample.mean(0) - mean).abs() < 5 * sample.std(0) / n**0.5).all())
    one, other = ((x[:, b] - x[:, b].mean(0))[:, ~known[b]] for b in (0, 1))
    mixed = (one * other).mean(0) / (one.std(0) * other.std(0))
    assert float(mixed.abs().max()) < 5 / n**0.5  # windows with equal masks are independent


def test_draws_repeat_and_keep_the_dtype():
    values, known = some_windows()
    x = MODEL.sample(values, known, 3, rng=seeded(3))
    assert torch.equal(x, MODEL.sample(values, known, 3, rng=seeded(3)))
    assert not torch.equal(x, MODEL.sample(values, known, 3, rng=seeded(4)))
    small = values.float()
    got = MODEL.sample(small, known, 3)
    assert got.dtype == MODEL.mean(small, known).dtype == torch.float32
    assert bool((got[:, known] == small[known]).all())
    other = torch.where(known, values, -5.0)
    assert torch.equal(x, MODEL.sample(other, known, 3, rng=seeded(3)))
    assert bool((other[~known] == -5).all())  # the input is left alone
    MODEL.sample(other, known, 1), MODEL.mean(other, known)
    baselines.GaussianWindows.fit(other, known | True)
    assert bool((other[~known] == -5).all())


def test_an_ill_conditioned_law():
    """Neighbours with a correlation of 1 - 1e-9: the mean of two neighbours, to 1e-6."""
    at = torch.arange(3, dtype=D)
    cov = torch.exp(-1e-9 * (at[:, None] - at).abs())
    model = baselines.GaussianWindows(torch.zeros(3, 1, dtype=D), cov)
    values = torch.tensor([1.0, NAN, 1.0 + 2e-4], dtype=D).reshape(1, 3, 1)
    known = ~values.isnan()
    assert float(model.mean(values, known)[0, 1]) == pytest.approx(1 + 1e-4, abs=1e-6)
    x = model.sample(values, known, 20_000, rng=seeded(1))[:, 0, 1, 0]
    assert float(x.var()) == pytest.approx(1e-9, rel=0.05)  # of a bridge: 1e-9; 5 s.e. of 20,000


def test_pairwise_moments_written_out():
    """eq:pairwise-covariance, by a loop over pairs: means over what is seen, products over what is
    seen together, to 1e-12. With few gaps no eigenvalue needs to be raised.
    """
    known = coins(40, 3, 2, share=0.9)
    values = hide(data(40, 3, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]], dtype=D) + 2, known)
    got = baselines.GaussianWindows.fit(values, known, rounds=0)
    x, seen = values.reshape(40, 6).numpy(), known.reshape(40, 6).numpy()
    mean = [x[seen[:, i], i].mean() for i in range(6)]
    cov = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            both = seen[:, i] & seen[:, j]
            cov[i, j] = ((x[both, i] - mean[i]) * (x[both, j] - mean[j])).mean()
    assert np.linalg.eigvalsh(cov)[0] > 1e-3 * cov.trace() / 6
    np.testing.assert_allclose(got.centre.flatten().numpy(), mean, rtol=1e-12)
    np.testing.assert_allclose(got.cov.numpy(), cov, rtol=1e-12, atol=1e-12)
    assert got.centre.shape == (3, 2) and got.centre.dtype == got.cov.dtype == D


def test_small_eigenvalues_are_raised():
    """Pairs of different windows need not fit: correlations 1, 1 and -1 of three entries have the
    eigenvalues 2, 2 and -1, and the last becomes 0.1 of the mean variance, which is 1.
    """
    pairs = [(0, 1, 1), (1, 2, 1), (0, 2, -1)]
    values = torch.full((6, 3, 1), NAN, dtype=D)
    for row, (i, j, sign) in enumerate(pairs):
        for twin, size in ((0, 1.0), (1, -1.0)):
            values[2 * row + twin, i], values[2 * row + twin, j] = size, sign * size
    got = baselines.GaussianWindows.fit(values, ~values.isnan(), ridge=0.1, rounds=0)
    assert torch.linalg.eigvalsh(got.cov).tolist() == pytest.approx([0.1, 2, 2], abs=1e-12)
    axis = torch.tensor([1.0, -1.0, 1.0], dtype=D) / 3**0.5  # of the eigenvalue -1
    want = 2 * torch.eye(3, dtype=D) - 1.9 * axis[:, None] * axis
    torch.testing.assert_close(got.cov, want, rtol=1e-12, atol=1e-12)


def one_round(values, known, mean, cov):
    """eq:em-covariance, window by window, by inverting the block of the observed entries."""
    rows, left = [], torch.zeros_like(cov)
    for x, seen in zip(values.flatten(1), known.flatten(1), strict=True):
        o, u, row = seen.nonzero()[:, 0], (~seen).nonzero()[:, 0], x.clone()
        gain = cov[u][:, o] @ torch.linalg.inv(cov[o][:, o])
        row[u] = mean[u] + gain @ (x[o] - mean[o])
        left[u[:, None], u] += cov[u][:, u] - gain @ cov[o][:, u]
        rows.append(row)
    full = torch.stack(rows)
    gap = full - full.mean(0)
    return full.mean(0), (gap.T @ gap + left) / len(full)


def likelihood(values, known, mean, cov):
    """Log-density of all that was observed, by torch."""
    total = 0.0
    for x, seen in zip(values.flatten(1), known.flatten(1), strict=True):
        law = torch.distributions.MultivariateNormal(mean[seen], cov[seen][:, seen])
        total += float(law.log_prob(x[seen]))
    return total


def test_rounds_written_out():
    """Two rounds by the formula, to 1e-9, and a likelihood that grows with each of four."""
    known = coins(60, 3, 2, share=0.7)
    known[1], known[2] = known[0], True
    values = hide(data(60, 3, 2).cumsum(1) + 2, known)
    fits = [baselines.GaussianWindows.fit(values, known, rounds=r) for r in range(5)]
    moments = [(f.centre.flatten(), f.cov) for f in fits]
    for before, after in ((0, 1), (1, 2)):
        mean, cov = one_round(values, known, *moments[before])
        assert float(torch.linalg.eigvalsh(cov)[0]) > 1e-3 * float(cov.trace()) / 6  # none raised
        torch.testing.assert_close(moments[after][0], mean, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(moments[after][1], cov, rtol=1e-9, atol=1e-9)
    logs = [likelihood(values, known, *m) for m in moments]
    assert logs == sorted(logs) and logs[1] - logs[0] > 0.1
    default = baselines.GaussianWindows.fit(values, known)
    assert torch.equal(default.cov, fits[3].cov)


def test_rounds_repair_what_pairs_break():
    """Two channels that differ by 0.01, the second one hidden where the level is high, a sixth of
    the time. Pairs take means and products over different windows and miss the difference by far;
    ten rounds find it, to 5 %.
    """
    level, small = data(4000, 1, 1), 0.01 * data(4000, 1, 2, seed=1)
    known = torch.ones(4000, 1, 2, dtype=torch.bool)
    known[:, 0, 1] = level[:, 0, 0] < 1
    values, contrast = hide(level + small, known), torch.tensor([1.0, -1.0], dtype=D)

    def width(rounds):
        cov = baselines.GaussianWindows.fit(values, known, ridge=1e-6, rounds=rounds).cov
        return float(contrast @ cov @ contrast) ** 0.5

    assert width(0) > 0.5
    assert width(10) == pytest.approx(0.01 * 2**0.5, rel=0.05)


def test_nothing_hidden_is_the_sample_covariance():
    """Then a round changes nothing: the moments of torch, to 1e-12."""
    values = data(50, 3, 2)
    got = baselines.GaussianWindows.fit(values, torch.ones(50, 3, 2, dtype=torch.bool))
    want = torch.cov(values.flatten(1).T, correction=0)
    torch.testing.assert_close(got.cov, want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got.centre, values.mean(0), rtol=1e-12, atol=1e-12)


def test_fit_recovers_the_law():
    """Of 8,000 windows with a fifth hidden: a moment of pairs has a standard error of at most
    sqrt(2) times the variance over sqrt(0.64 n), and a round makes it smaller; all within 5. The
    conditional mean follows to 0.1.
    """
    n = 8_000
    known = coins(n, 5, 2, share=0.8)
    values = hide(SERIES.sample(n, 5, rng=seeded(5)), known)
    got = baselines.GaussianWindows.fit(values, known)
    scale = LAW.covs[0].diagonal()
    error = (2 * scale[:, None] * scale / (0.64 * n)).sqrt()
    assert bool(((got.cov - LAW.covs[0]).abs() < 5 * error).all())
    assert bool(
        ((got.centre - LAW.means[0]).flatten().abs() < 5 * (scale / (0.8 * n)).sqrt()).all()
    )
    torch.testing.assert_close(
        got.mean(*some_windows()), MODEL.mean(*some_windows()), rtol=0, atol=0.1
    )


# ---- forecasting -----------------------------------------------------------------------------


def test_naive_forecasts_by_hand():
    history = torch.tensor([[[1.0], [2.0], [3.0], [4.0], [5.0]]])
    assert baselines.persistence(history, 3).flatten().tolist() == [5, 5, 5]
    got = baselines.seasonal_naive(history, 7, period=3)
    assert got.shape == (1, 7, 1) and got.flatten().tolist() == [3, 4, 5, 3, 4, 5, 3]
    day = data(2, 30, 3)
    want = torch.cat([day[:, 6:], day[:, 6:8]], 1)  # eq:seasonal-naive: hours 25 and 26 repeat 1, 2
    assert torch.equal(baselines.seasonal_naive(day, 26), want)
    assert torch.equal(baselines.seasonal_naive(day, 4), day[:, 6:10])


def test_residuals_are_drawn_whole(global_state_untouched):
    """Each draw is a point plus one row of the residuals; each row with a third of the chances,
    within 5 standard errors of 30,000, and two forecasts draw independently.
    """
    n, point = 30_000, torch.tensor([[[10.0, 20.0]], [[30.0, 40.0]]]).repeat(1, 2, 1)
    residuals = torch.arange(12.0).reshape(3, 2, 2)
    x = baselines.with_residuals(point, residuals, n, rng=seeded(1))
    assert x.shape == (n, 2, 2, 2)
    assert torch.equal(x, baselines.with_residuals(point, residuals, n, rng=seeded(1)))
    gap = x - point
    same = (gap[:, :, None] == residuals).flatten(3).all(3)  # (n, 2 forecasts, 3 rows)
    assert bool((same.sum(2) == 1).all())
    error = (1 / 3 * 2 / 3 / n) ** 0.5
    assert float((same.double().mean(0) - 1 / 3).abs().max()) < 5 * error
    both = (same[:, 0, :, None] & same[:, 1, None]).double().mean(0)
    assert float((both - 1 / 9).abs().max()) < 5 * (1 / 9 * 8 / 9 / n) ** 0.5
    assert baselines.with_residuals(point, residuals.double(), 1).dtype == torch.float32


def profiled(n, seed=0, start=1000):
    """A VAR with two lags and constants that follow the hour of six, by the definition."""
    A, profile = (
        SERIES.coefficients,
        torch.stack([torch.arange(6) - 2.5, (-1.0) ** torch.arange(6)], 1),
    )
    shocks = data(n + 50, 2, seed=seed) @ torch.linalg.cholesky(SERIES.cov).T
    when, rows = torch.arange(start - 50, start + n), [torch.zeros(2, dtype=D)] * 2
    for hour, z in zip(when.tolist(), shocks, strict=True):
        rows.append(profile[hour % 6].double() + A[0] @ rows[-1] + A[1] @ rows[-2] + z)
    return torch.stack(rows[-n:]), when[-n:], A, profile.double()


def lstsq(values, whole, when, ridge=0.0):
    """By torch's lstsq with dummies, and the ridge as rows below: coefficients, profile, cov."""
    rows = [i for i in range(2, len(values)) if all(whole[i - 2 : i + 1])
            and when[i] - when[i - 2] == 2]  # fmt: skip
    lagged = torch.stack([torch.cat([values[i - 1], values[i - 2]]) for i in rows])
    dummies = torch.nn.functional.one_hot(when[rows] % 6, 6).double()
    X, y = torch.cat([lagged, dummies], 1), values[rows]
    share = dummies.T @ lagged / dummies.sum(0)[:, None]
    centred = lagged - dummies @ share
    penalty = torch.zeros(4, 10, dtype=D)
    penalty[:, :4] = (ridge * centred.square().sum() / 4) ** 0.5 * torch.eye(4, dtype=D)
    B = torch.linalg.lstsq(torch.cat([X, penalty]), torch.cat([y, torch.zeros(4, 2, dtype=D)]))
    error = y - X @ B.solution
    A = torch.stack([B.solution[:2].T, B.solution[2:4].T])
    return A, B.solution[4:], error.T @ error / (len(rows) - 10)


@pytest.mark.parametrize("ridge", [0.0, 0.01])
def test_fit_var_is_least_squares(ridge):
    """eq:fit-var: with gaps and missing hours, equal to torch's lstsq with a dummy for each hour
    and rows that stand for the penalty, to 1e-9.
    """
    values, when, _, _ = profiled(300)
    observed = coins(300, 2, share=0.95)
    keep = torch.ones(300, dtype=torch.bool)
    keep[100:117] = keep[200] = False
    values, when, observed = hide(values, observed)[keep], when[keep], observed[keep]
    got = baselines.fit_var(values, observed, when, lags=2, period=6, ridge=ridge)
    A, profile, cov = lstsq(values, observed.all(1), when, ridge)
    torch.testing.assert_close(got.var.coefficients, A, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.profile, profile, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.var.cov, cov, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(got.var.offset, profile.mean(0), rtol=1e-9, atol=1e-9)


def test_fit_var_recovers_a_series():
    """From 8,000 hours: coefficients and constants within 5 of the standard errors of least
    squares, sqrt(C_kk (X^T X)^-1_ii); the covariance within 5 of sqrt(2 / n) of its largest.
    """
    n = 8_000
    values, when, A, profile = profiled(n)
    whole = torch.ones(n, 2, dtype=torch.bool)
    got = baselines.fit_var(values, whole, when, lags=2, period=6)
    lagged = torch.cat([values[1:-1], values[:-2]], 1)
    X = torch.cat([lagged, torch.nn.functional.one_hot(when[2:] % 6, 6).double()], 1)
    inverse = torch.linalg.inv(X.T @ X).diagonal()
    error = (SERIES.cov.diagonal()[:, None] * inverse).sqrt()  # (K, 10)
    gap = torch.cat([got.var.coefficients[0], got.var.coefficients[1], got.profile.T], 1)
    gap = gap - torch.cat([A[0], A[1], profile.T], 1)
    assert bool((gap.abs() < 5 * error).all())
    assert float((got.var.cov - SERIES.cov).abs().max()) < 5 * (2 / n) ** 0.5


def test_fit_var_scales_with_the_data():
    """Ten times the values: the same coefficients, ten times the constants, also with a ridge."""
    values, when, _, _ = profiled(400)
    whole = torch.ones(400, 2, dtype=torch.bool)
    one, ten = (
        baselines.fit_var(s * values, whole, when, lags=3, period=6, ridge=0.1) for s in (1, 10)
    )
    torch.testing.assert_close(ten.var.coefficients, one.var.coefficients, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ten.profile, 10 * one.profile, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ten.var.cov, 100 * one.var.cov, rtol=1e-9, atol=1e-9)


def test_fitted_var_follows_the_hour():
    """Offsets are the profile at the hour; draws have the mean of the recursion written out, within
    5 standard errors of 20,000.
    """
    profile = torch.stack([torch.arange(6.0), -torch.arange(6.0)], 1).double()
    fitted = baselines.FittedVAR(SERIES, profile)
    when = torch.tensor([[4, 5, 6], [11, 12, 13]])
    hours = torch.tensor([[4, 5, 0], [5, 0, 1]])
    assert torch.equal(fitted.offsets(when), profile[hours])
    assert torch.equal(fitted.offsets(torch.tensor([[-1, 0]])), profile[[5, 0]][None])
    history, A = data(2, 3, 2), SERIES.coefficients
    x = fitted.draw(history, when, 20_000, rng=seeded(1))
    assert x.shape == (20_000, 2, 3, 2)
    assert torch.equal(x, fitted.draw(history, when, 20_000, rng=seeded(1)))
    for b in (0, 1):
        rows = [*history[b]]
        for i in range(3):
            rows.append(profile[hours[b, i]] + A[0] @ rows[-1] + A[1] @ rows[-2])
        error = x[:, b].std(0) / 20_000**0.5
        assert bool(((x[:, b].mean(0) - torch.stack(rows[3:])).abs() < 5 * error).all())
    assert fitted.draw(history.float(), when, 1).dtype == torch.float32


def test_fitted_draws_of_one_step_are_the_residuals():
    """The covariance of one step is C, of two steps C + A C A^T: 5 standard errors of 40,000."""
    fitted, n = baselines.FittedVAR(SERIES, torch.zeros(1, 2, dtype=D)), 40_000
    x = fitted.draw(torch.zeros(1, 2, 2, dtype=D), torch.tensor([[0, 1]]), n, rng=seeded(2))[:, 0]
    A, C = SERIES.coefficients[0], SERIES.cov
    for i, want in ((0, C), (1, C + A @ C @ A.T)):
        products = (x[:, i, :, None] * x[:, i, None]).flatten(1)
        gap = products.mean(0) - want.flatten()
        assert bool((gap.abs() < 5 * products.std(0) / n**0.5).all())


# ---- bad input -------------------------------------------------------------------------------

X, SEEN = torch.ones(2, 3, 2), torch.ones(2, 3, 2, dtype=torch.bool)
HOURS = torch.arange(40)
LONG, WHOLE = data(40, 2), torch.ones(40, 2, dtype=torch.bool)
G = baselines.GaussianWindows(torch.zeros(3, 2), torch.eye(6))


def without(channel):
    return WHOLE & (torch.arange(2) != channel)


def fitting(values=LONG, observed=WHOLE, when=HOURS, lags=1, period=2, ridge=0.0):
    return baselines.fit_var(values, observed, when, lags=lags, period=period, ridge=ridge)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        *[
            (lambda f=f, a=a: f(*a), word)
            for f in FILLERS
            for a, word in [
                ((X[0], SEEN[0], 0), r"values has shape \(3, 2\)"),
                ((X[:0], SEEN[:0], 0), "values has shape"),
                ((X.long(), SEEN, 0), "values has dtype"),
                ((X, SEEN.float(), 0), "known has dtype"),
                ((X, SEEN[:1], 0), r"known has shape \(1, 3, 2\)"),
                ((X, SEEN[..., :1], 0), "known has shape"),
                ((X, torch.ones(2, 3, 3, dtype=torch.bool), 0), "known has shape"),
                ((X / 0, SEEN, 0), "values holds NaN"),
                ((X, SEEN, NAN), "otherwise=nan"),
                ((X, SEEN, torch.zeros(3)), "otherwise="),
                ((X, SEEN, torch.zeros(2, 1)), "otherwise="),
            ]
        ],
        (lambda: baselines.GaussianWindows(torch.zeros(6), torch.eye(6)), "centre has shape"),
        (lambda: baselines.GaussianWindows(X[0] / 0, torch.eye(6)), "centre holds NaN"),
        (lambda: baselines.GaussianWindows(X[0], torch.eye(5)), "cov has shape"),
        (lambda: baselines.GaussianWindows(X[0], -torch.eye(6)), "cov has an eigenvalue"),
        (lambda: baselines.GaussianWindows.fit(X, SEEN), "mean variance 0"),
        (lambda: baselines.GaussianWindows.fit(data(2, 3, 2), SEEN, ridge=0.0), "ridge=0"),
        (lambda: baselines.GaussianWindows.fit(data(2, 3, 2), SEEN, rounds=-1), "rounds=-1"),
        (lambda: baselines.GaussianWindows.fit(data(2, 3, 2), SEEN, rounds=1.0), "rounds=1.0"),
        (lambda: baselines.GaussianWindows.fit(data(2, 3, 2), SEEN, ridge=NAN), "ridge=nan"),
        (lambda: baselines.GaussianWindows.fit(X / 0, SEEN), "values holds NaN"),
        (lambda: baselines.GaussianWindows.fit(X, SEEN.long()), "observed has dtype"),
        (lambda: baselines.GaussianWindows.fit(X, SEEN[:1]), "observed has shape"),
        (
            lambda: baselines.GaussianWindows.fit(X, SEEN & torch.tensor([True, False])),
            r"observed has no window with both \(hour, channel\) \(0, 0\) and \(0, 1\)",
        ),
        (
            lambda: baselines.GaussianWindows.fit(
                X[:, :2], torch.eye(2, dtype=torch.bool)[:, :, None].expand(2, 2, 2)
            ),
            r"\(0, 0\) and \(1, 0\)",
        ),
        (lambda: G.mean(X[:, :2], SEEN[:, :2]), r"values has shape \(2, 2, 2\)"),
        (lambda: G.mean(X, SEEN[:1]), "known has shape"),
        (lambda: G.mean(X / 0, SEEN), "values holds NaN"),
        (lambda: G.sample(X, SEEN, 0), "n=0"),
        (lambda: G.sample(X, SEEN.int(), 2), "known has dtype"),
        (lambda: G.sample(X.long(), SEEN, 2), "values has dtype"),
        (lambda: baselines.persistence(X, 0), "horizon=0"),
        (lambda: baselines.persistence(X[0], 1), r"history has shape \(3, 2\)"),
        (lambda: baselines.persistence(X / 0, 1), "history holds NaN"),
        (lambda: baselines.seasonal_naive(X, 0, period=2), "horizon=0"),
        (lambda: baselines.seasonal_naive(X, 2), "history has 3 values: period=24"),
        (lambda: baselines.seasonal_naive(X, 2, period=0), "period=0"),
        (lambda: baselines.seasonal_naive(X / 0, 2, period=2), "history holds NaN"),
        (lambda: baselines.with_residuals(X, X, 0), "n=0"),
        (lambda: baselines.with_residuals(X, X[:, :2], 1), r"residuals has shape \(2, 2, 2\)"),
        (lambda: baselines.with_residuals(X, X[0], 1), "residuals has shape"),
        (lambda: baselines.with_residuals(X, X / 0, 1), "residuals holds NaN"),
        (lambda: baselines.with_residuals(X / 0, X, 1), "point holds NaN"),
        (lambda: baselines.with_residuals(X[0], X, 1), "point has shape"),
        (lambda: fitting(LONG[:, 0], WHOLE[:, 0]), r"values has shape \(40,\): give \(N, K\)"),
        (lambda: fitting(LONG / 0), "values holds NaN"),
        (lambda: fitting(LONG.long()), "values has dtype"),
        (lambda: fitting(observed=WHOLE.float()), "observed has dtype"),
        (lambda: fitting(observed=WHOLE[:, :1]), "observed has shape"),
        (lambda: fitting(observed=without(1)), r"no value of channels \[1\]"),
        (lambda: fitting(when=HOURS.float()), "when has torch"),
        (lambda: fitting(when=HOURS > 3), "when has torch"),
        (lambda: fitting(when=HOURS[None]), r"when has torch.int64 \(1, 40\)"),
        (lambda: fitting(when=HOURS[:9]), "when has 9 hours: give 40"),
        (lambda: fitting(when=HOURS.flip(0)), "increasing"),
        (lambda: fitting(when=HOURS // 2), "increasing"),
        (lambda: fitting(when=2 * HOURS), r"values has 0 whole rows, by hour \[0, 0\]"),
        (lambda: fitting(lags=0), "lags=0"),
        (lambda: fitting(period=0), "period=0"),
        (lambda: fitting(ridge=-1.0), "ridge=-1"),
        (lambda: fitting(ridge=NAN), "ridge=nan"),
        (lambda: fitting(lags=14), "values has 26 whole rows"),
        (lambda: fitting(lags=60), "values has 0 whole rows"),
        (lambda: fitting(period=41), "values has 39 whole rows, by hour"),
        (lambda: fitting(torch.cat([LONG[:, :1]] * 2, 1)), "more if lags determine each other"),
        (lambda: fitting(torch.ones(40, 2)), "more if lags determine each other"),
        (
            lambda: baselines.FittedVAR(SERIES, torch.zeros(2, 2)).offsets(torch.zeros(1, 2)),
            "when has torch",
        ),
        (lambda: baselines.FittedVAR(SERIES, torch.zeros(2, 2)).offsets(HOURS), "when has torch"),
    ],
)  # fmt: skip
def test_baselines_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()
