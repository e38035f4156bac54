"""Distances against closed forms, and what they must not depend on."""

import math

import pytest
import torch

from minidiff import metrics

D = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


def exactly(mean, cov, n=50, seed=0):
    """Points whose sample mean and covariance are these to rounding."""
    x = data(n, len(mean), seed=seed)
    x = x - x.mean(0)
    own = x.T @ x / (n - 1)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(own)).T
    return x @ torch.linalg.cholesky(torch.as_tensor(cov, dtype=D)).T + torch.tensor(mean, dtype=D)


# ---- Frechet ------------------------------------------------------------------------------


def test_frechet_of_diagonal_gaussians():
    """eq:frechet where covariances commute: |m - m'|^2 + sum (s - s')^2; 1e-9 is rounding."""
    a = exactly([1.0, -2.0, 0.0], torch.diag(torch.tensor([1.0, 4.0, 0.25])))
    b = exactly([0.0, 1.0, 0.0], torch.diag(torch.tensor([9.0, 1.0, 0.25])), n=80, seed=1)
    want = (1 + 9) + (1 - 3) ** 2 + (2 - 1) ** 2
    assert metrics.frechet_distance(a, b) == pytest.approx(want, rel=1e-9)


def test_frechet_of_general_gaussians():
    """Non-commuting covariances in the plane: tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for 2 x 2."""
    ca, cb = torch.tensor([[2.0, 1.0], [1.0, 3.0]]), torch.tensor([[1.0, -0.4], [-0.4, 0.5]])
    product = (ca @ cb).double()
    root = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(product.det())))
    want = 0.25 + 5 + 1.5 - 2 * root
    got = metrics.frechet_distance(exactly([0.5, 0.0], ca), exactly([0.0, 0.0], cb, seed=1))
    assert got == pytest.approx(want, rel=1e-6)  # the covariances are float32 constants


def test_frechet_in_one_dimension_and_rank_one():
    """(m - m')^2 + (s - s')^2; a singular covariance is no obstacle; vectors are columns."""
    a, b = exactly([1.0], [[4.0]]), exactly([3.0], [[0.25]])
    assert metrics.frechet_distance(a, b) == pytest.approx(4 + 2.25, rel=1e-9)
    assert metrics.frechet_distance(a[:, 0], b[:, 0]) == pytest.approx(6.25, rel=1e-9)
    line = data(40, 1) * torch.tensor([[1.0, 2.0, -1.0]], dtype=D)
    want = float(line.var(0).sum())  # (1 - 2)^2 of all deviations
    twice = 2 * line - line.mean(0)  # the same mean, doubled deviations
    assert metrics.frechet_distance(line, twice) == pytest.approx(want, rel=1e-6)


def test_frechet_invariances():
    """Zero for a set and itself; symmetric; unchanged by order and rotation; scales as a square."""
    a, b = data(60, 4), 1.3 * data(50, 4, seed=1) + 0.2
    base = metrics.frechet_distance(a, b)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-10)
    assert metrics.frechet_distance(b, a) == pytest.approx(base, rel=1e-9)
    assert metrics.frechet_distance(a.flip(0), b) == pytest.approx(base, rel=1e-9)
    turn = torch.linalg.qr(data(4, 4, seed=2)).Q
    assert metrics.frechet_distance(a @ turn, b @ turn) == pytest.approx(base, rel=1e-9)
    assert metrics.frechet_distance(3 * a, 3 * b) == pytest.approx(9 * base, rel=1e-9)
    images = a.reshape(60, 1, 2, 2)
    assert metrics.frechet_distance(images, b) == pytest.approx(base, rel=1e-12)
    assert metrics.frechet_distance(a.float(), b.float()) == pytest.approx(base, rel=1e-5)


def test_frechet_is_biased_upwards_for_small_sets():
    """As its docstring says: two halves of one Gaussian are further apart the fewer they are."""
    floor = [
        metrics.frechet_distance(data(n, 8, seed=3), data(n, 8, seed=4)) for n in (50, 500, 5000)
    ]
    assert floor[0] > 3 * floor[1] > 9 * floor[2] > 0


# ---- sliced Wasserstein -------------------------------------------------------------------


def swd(a, b, **kwargs):
    return metrics.sliced_wasserstein(a, b, rng=seeded(), **kwargs)


def test_swd_of_a_shift():
    """|d| / sqrt(D) in expectation over directions; 20,000 of them leave 1 % (D = 5)."""
    a, d = data(30, 5), torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=D)
    got = swd(a, a[torch.randperm(30, generator=seeded())] + d, projections=20_000)
    assert got == pytest.approx(float(d.norm()) / math.sqrt(5), rel=0.01)


def test_swd_in_one_dimension_is_exact():
    """Every direction is +-1: the root mean square of sorted differences."""
    a, b = data(40, 1), data(40, 1, seed=1) * 2
    want = float((a.sort(0).values - b.sort(0).values).square().mean().sqrt())
    assert swd(a, b, projections=3) == pytest.approx(want, rel=1e-12)
    assert swd(a[:, 0], b[:, 0], projections=3) == pytest.approx(want, rel=1e-12)


def test_swd_of_unequal_counts_is_exact():
    """A set and its doubles are one distribution; {0} and {0, 2} are at sqrt((0 + 4) / 2);
    {0, 3} and {0, 1, 2}: mass moves by 0 (1/3), 1 (1/6), 2 (1/6), 1 (1/3).
    """
    a = data(25, 3)
    assert swd(a, torch.cat([a, a])) == pytest.approx(0, abs=1e-12)
    assert swd(torch.cat([a, a, a]), torch.cat([a, a])) == pytest.approx(0, abs=1e-12)
    point, two = torch.zeros(1, 1), torch.tensor([[0.0], [2.0]])
    assert swd(point, two) == pytest.approx(math.sqrt(2), rel=1e-12)
    got = swd(torch.tensor([[0.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]]))
    assert got == pytest.approx(math.sqrt(1 / 6 + 4 / 6 + 1 / 3), rel=1e-12)


def test_swd_invariances(global_state_untouched):
    a, b = data(60, 4), data(60, 4, seed=1) + 0.5
    base = swd(a, b)
    assert swd(a, a) == 0
    assert swd(b, a) == pytest.approx(base, rel=1e-12)
    assert swd(a.flip(0), b) == pytest.approx(base, rel=1e-12)
    assert swd(a + 7, b + 7) == pytest.approx(base, rel=1e-9)
    assert swd(2 * a, 2 * b) == pytest.approx(2 * base, rel=1e-12)
    assert swd(a.reshape(60, 2, 2), b) == pytest.approx(base, rel=1e-12)
    assert metrics.sliced_wasserstein(a, b) != metrics.sliced_wasserstein(a, b)  # fresh directions
    # and they agree within their spread: 256 directions, of relative size 1/sqrt(256) at most
    assert metrics.sliced_wasserstein(a, b) == pytest.approx(base, rel=0.3)


def test_swd_of_two_gaussians():
    """N(0, 1) and N(0, 4): |2 - 1| = 1 along every direction; 20,000 points leave 3 %."""
    got = swd(data(20_000, 2), 2 * data(20_000, 2, seed=1), projections=50)
    assert got == pytest.approx(1, rel=0.03)


X = torch.zeros(4, 2)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: metrics.frechet_distance(X, torch.zeros(4, 3)), "2 columns and b 3"),
        (lambda: metrics.frechet_distance(X[:1], X), "1 and 4 rows"),
        (lambda: metrics.frechet_distance(X / 0, X), "a holds NaN"),
        (lambda: metrics.frechet_distance(X, X.long()), "b has dtype"),
        (lambda: metrics.sliced_wasserstein(X, torch.zeros(4, 3)), "2 columns and b 3"),
        (lambda: metrics.sliced_wasserstein(X, X, projections=0), "projections=0"),
        (lambda: metrics.sliced_wasserstein(X, X, projections=2.5), "projections=2.5"),
        (lambda: metrics.sliced_wasserstein(X, X[:0]), "b has shape"),
        (lambda: metrics.sliced_wasserstein(X, torch.full((4, 2), math.inf)), "b holds"),
    ],
)
def test_metrics_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()


# ---- modes --------------------------------------------------------------------------------


def test_mode_coverage_by_hand():
    """Ten points on a line, modes at 0, 1 and 5, radius 1: at a distance of .6 from 1 and .4 from
    0 a point is 0's; at 2 (distance 1) it is still 1's; at 2.1 and -1.1 it is nobody's.
    """
    points = torch.tensor([[0.0], [0.4], [-1.0], [-1.1], [0.6], [2.0], [2.1], [3.9], [4.0], [6.0]])
    modes = torch.tensor([[0.0], [1.0], [5.0]])
    got = metrics.mode_coverage(points, modes, radius=1.0)
    assert got.shares.tolist() == pytest.approx([0.3, 0.2, 0.2])
    assert got.inside == pytest.approx(0.7) and got.covered == 3
    assert metrics.mode_coverage(points, modes, radius=1.0, least=0.3).covered == 1
    assert metrics.mode_coverage(points, modes, radius=1.0, least=0.31).covered == 0
    none = metrics.mode_coverage(points + 50, modes, radius=1.0)
    assert none.shares.tolist() == [0, 0, 0] and none.inside == 0 and none.covered == 0


def test_mode_coverage_refuses():
    points = torch.zeros(4, 2)
    for wrong in ({"radius": 0.0}, {"radius": 1.0, "least": 0.0}, {"radius": float("nan")}):
        with pytest.raises(ValueError, match="give positive numbers"):
            metrics.mode_coverage(points, points, **wrong)
    with pytest.raises(ValueError, match="samples has 2 columns and modes 3"):
        metrics.mode_coverage(points, torch.zeros(1, 3), radius=1.0)
