"""The bound of an exact chain: against joint Gaussians, an entropy and the two other variances."""

import math
from itertools import pairwise

import pytest
import torch

import minidiff as md
from minidiff import exact

D = torch.float64
CHOICES = {
    "tilde": lambda tilde, beta, optimal: tilde,
    "beta": lambda tilde, beta, optimal: beta,
    "optimal": lambda tilde, beta, optimal: optimal,
}
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(0.05, 10.0),
    "BetaTable": md.BetaTable(md.linear_betas(100)),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
each_choice = pytest.mark.parametrize("choice", CHOICES)


def variance(choice, tilde, beta, optimal):
    return {"tilde": tilde, "beta": beta, "optimal": optimal}[choice]


def joint_bound(mean, std, path, times, choice):
    """-E log p(x0..xT) / q(x1..xT | x0) of a Gaussian as a divergence of two joint Gaussians.

    Both chains are written as x = A z + b with independent z, a row a variable (x0, then the
    noisy ones from clean to noisy), so the divergence is that of two normal vectors, and the
    bound is the divergence of the joints plus the entropy of the data.
    """
    levels = [path(float(t)) for t in times.flip(0)[1:]]  # clean to noisy, without t = 0
    s, n = [float(a.signal) for a in levels], [float(a.noise) for a in levels]
    K, eye = len(levels), torch.eye(len(levels) + 1, dtype=D)
    rows, means = [std * eye[0]], [mean]  # the forward chain
    for i in range(K):
        a = s[i] / s[i - 1] if i else s[0]
        fresh = n[i] ** 2 - (a * n[i - 1] if i else 0.0) ** 2
        rows.append(a * rows[-1] + math.sqrt(fresh) * eye[i + 1])
        means.append(a * means[-1])
    q = torch.stack(rows), torch.tensor(means, dtype=D)
    back = [math.sqrt(s[-1] ** 2 + n[-1] ** 2) * eye[K]]  # the reverse chain, from noise on
    centres, tilde = [0.0], 0.0
    for i in range(K - 1, -1, -1):
        total = s[i] ** 2 * std**2 + n[i] ** 2
        gain, doubt = s[i] * std**2 / total, std**2 * n[i] ** 2 / total
        guess = gain * back[-1]  # x0hat = mean + gain (x - s mean)
        guess_mean = mean + gain * (centres[-1] - s[i] * mean)
        if i:
            a = s[i] / s[i - 1]
            beta = n[i] ** 2 - a**2 * n[i - 1] ** 2
            tilde = n[i - 1] ** 2 / n[i] ** 2 * beta
            keep, add = a * n[i - 1] ** 2 / n[i] ** 2, s[i - 1] * beta / n[i] ** 2
            v = variance(choice, tilde, beta, tilde + add**2 * doubt)
            back.append(keep * back[-1] + add * guess + math.sqrt(v) * eye[i])
            centres.append(keep * centres[-1] + add * guess_mean)
        else:
            v = variance(choice, tilde, n[0] ** 2, doubt)
            back.append(guess + math.sqrt(v) * eye[0])
            centres.append(guess_mean)
    p = torch.stack(back[::-1]), torch.tensor(centres[::-1], dtype=D)
    both = [torch.distributions.MultivariateNormal(m, A @ A.T) for A, m in (q, p)]
    entropy = 0.5 * math.log(2 * math.pi * math.e * std**2)
    return float(torch.distributions.kl_divergence(*both)) + entropy


@each_choice
@each_path
def test_bound_is_a_divergence_of_joint_gaussians(path, choice):
    """For one Gaussian all variables of both chains are jointly Gaussian: linear algebra, 1e-8."""
    times = torch.tensor([0.95, 0.6, 0.3, 0.1, 0.0], dtype=D)
    oracle = md.Gaussian(torch.tensor([0.4], dtype=D), 0.5)
    want = joint_bound(0.4, 0.5, path, times, choice)
    assert exact.bound(oracle, path, times, CHOICES[choice]) == pytest.approx(want, rel=1e-8)


def test_bound_from_pure_noise():
    """At signal 0 the start costs nothing; a chain of one step is a Gaussian fit: by hand."""
    oracle = md.Gaussian(torch.tensor([0.4], dtype=D), 0.5)
    times = torch.tensor([1.0, 0.0], dtype=D)
    for path in (md.Cosine(), md.LinearPath()):
        got = exact.bound(oracle, path, times, CHOICES["optimal"])
        assert got == pytest.approx(0.5 * math.log(2 * math.pi * math.e * 0.25), rel=1e-12)
        got = exact.bound(oracle, path, times, CHOICES["beta"])
        assert got == pytest.approx(0.5 * (math.log(2 * math.pi) + 0.25), rel=1e-12)
    # s = cos(.4 pi), n = sin(.4 pi): start of data with E x^2 = .41, then one step
    s2, n2 = math.cos(0.4 * math.pi) ** 2, math.sin(0.4 * math.pi) ** 2
    doubt = 0.25 * n2 / (0.25 * s2 + n2)
    want = 0.5 * (s2 * 0.41 + n2 - 1 - math.log(n2)) + 0.5 * math.log(2 * math.pi * math.e * doubt)
    got = exact.bound(oracle, md.Cosine(), torch.tensor([0.8, 0.0], dtype=D), CHOICES["optimal"])
    assert got == pytest.approx(want, rel=1e-12)


def test_what_choose_is_given():
    """The three numbers of every move, written out on the quarter circle."""
    seen = []

    def choose(tilde, beta, optimal):
        seen.append((tilde, beta, optimal))
        return optimal

    oracle = md.Gaussian(torch.tensor([0.0], dtype=D), 0.5)
    exact.bound(oracle, md.Cosine(), torch.tensor([0.8, 0.5, 0.2, 0.0], dtype=D), choose)
    want = []
    for t, u in ((0.8, 0.5), (0.5, 0.2)):
        s_t, n_t, s_u, n_u = (
            f(math.pi * v / 2) for v in (t, u) for f in (math.cos, math.sin)
        )  # fmt: skip
        beta = n_t**2 - (s_t / s_u) ** 2 * n_u**2
        tilde, add = n_u**2 / n_t**2 * beta, s_u * beta / n_t**2
        doubt = 0.25 * n_t**2 / (0.25 * s_t**2 + n_t**2)
        want.append((tilde, beta, tilde + add**2 * doubt))
    n2, s2 = math.sin(0.1 * math.pi) ** 2, math.cos(0.1 * math.pi) ** 2
    want.append((want[-1][0], n2, 0.25 * n2 / (0.25 * s2 + n2)))
    assert len(seen) == 3
    for got, numbers in zip(seen, want, strict=True):
        assert got == pytest.approx(numbers, rel=1e-10)
        assert all(type(v) is float for v in got)


def test_entries_add_up():
    """Independent entries with the same variance choice: D alike give D times the bound of one."""
    times = md.grids.uniform(7)
    one = md.Gaussian(torch.tensor([0.3], dtype=D), 0.5)
    many = md.Gaussian(torch.full((2, 3), 0.3, dtype=D), 0.5)
    for choose in CHOICES.values():
        got = exact.bound(many, md.VP(), times, choose)
        assert got == pytest.approx(6 * exact.bound(one, md.VP(), times, choose), rel=1e-12)


MIXTURE = md.GaussianMixture(
    torch.tensor([[-1.0], [0.4], [1.2]], dtype=D),
    torch.tensor([0.3, 0.1, 0.5], dtype=D),
    torch.tensor([0.2, 0.5, 0.3], dtype=D),
)


def entropy():
    """-E log p of the mixture by trapezoids; to 1e-12, as the bells are 40 spacings wide."""
    x = torch.linspace(-8, 8, 6401, dtype=D)
    p = sum(
        w * torch.exp(-((x - m) ** 2) / (2 * s * s)) / math.sqrt(2 * math.pi * s * s)
        for m, s, w in ((-1.0, 0.3, 0.2), (0.4, 0.1, 0.5), (1.2, 0.5, 0.3))
    )
    return float(-torch.trapezoid(p * p.clamp(min=1e-300).log(), x))


def test_bound_approaches_the_entropy():
    """Many steps: the optimal variance reaches -E log p from above, its gap falling like 1/K.

    Grids of equal steps of log-SNR from -9.9 to 12; at K = 400 what is left is about .009 nats.
    """
    gaps = []
    for K in (25, 50, 100, 400):
        times = md.grids.log_snr(md.VP(), K, low=-9.9, high=12)
        gaps.append(exact.bound(MIXTURE, md.VP(), times, CHOICES["optimal"]) - entropy())
    assert all(a > 1.5 * b for a, b in pairwise(gaps))
    assert 0 < gaps[-1] < 0.02


@pytest.mark.parametrize("K", [10, 25, 50, 100])
@pytest.mark.parametrize("path", [md.VP(), md.BetaTable(md.linear_betas(1000))], ids=["VP", "1000"])
def test_optimal_beats_beta_beats_tilde(path, K):
    """The order that Bao et al. report, for every number of steps, and all above the entropy."""
    times = md.grids.uniform(K)
    optimal, beta, tilde = (
        exact.bound(MIXTURE, path, times, CHOICES[c]) for c in ("optimal", "beta", "tilde")
    )
    assert entropy() < optimal < beta < tilde


def test_optimal_is_the_minimum():
    """Any other factor on the optimal variance costs more, in one move or in all."""
    times = md.grids.uniform(10)
    best = exact.bound(MIXTURE, md.VP(), times, CHOICES["optimal"])
    for factor in (0.9, 1.1):
        more = exact.bound(MIXTURE, md.VP(), times, lambda a, b, v, f=factor: f * v)
        extra = 10 / 2 * (math.log(factor) + 1 / factor - 1)  # of ten moves
        assert more == pytest.approx(best + extra, rel=1e-10)


ONE = md.Gaussian(torch.zeros(1, dtype=D), 1.0)
GRID = torch.tensor([1.0, 0.5, 0.0], dtype=D)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: exact.bound(ONE, md.VP(), GRID.flip(0), CHOICES["beta"]), "times"),
        (lambda: exact.bound(ONE, md.VP(), GRID[:2], CHOICES["beta"]), "last 0"),
        (lambda: exact.bound(ONE, md.VP(), GRID[2:], CHOICES["beta"]), "at least two"),
        (lambda: exact.bound(ONE, md.VP(), GRID[None], CHOICES["beta"]), "times"),
        (lambda: exact.bound(ONE, md.VP(), [1.0, 0.0], CHOICES["beta"]), "times"),
        (lambda: exact.bound(ONE, md.VP(), 1.5 * GRID, CHOICES["beta"]), "1.5"),
        (lambda: exact.bound(ONE, md.VP(), GRID[[0, 2]], CHOICES["tilde"]), "choose.* is 0"),
        (lambda: exact.bound(ONE, md.VP(), GRID, lambda a, b, v: -v), "positive variance"),
        (lambda: exact.bound(ONE, md.VP(), GRID, lambda a, b, v: math.inf), "is inf"),
        (
            lambda: exact.bound(
                ONE, md.BetaTable(md.linear_betas(50)),
                torch.tensor([0.50001, 0.5, 0.0], dtype=D), CHOICES["beta"],
            ),
            "one level",
        ),
        (
            lambda: exact.bound(
                md.GaussianMixture(torch.zeros(2, 3), 1.0), md.VP(), GRID, CHOICES["beta"]
            ),
            "mean_covariance",
        ),
    ],
)  # fmt: skip
def test_bound_refuses(call, word):
    with pytest.raises(ValueError, match=word):
        call()


def test_a_grid_in_float32_is_no_worse():
    """The times are taken as they are, the arithmetic is float64."""
    times = torch.tensor([1.0, 0.5, 0.25, 0.0])
    a = exact.bound(MIXTURE, md.VP(), times, CHOICES["beta"])
    assert a == pytest.approx(exact.bound(MIXTURE, md.VP(), times.double(), CHOICES["beta"]))
