"""The true reverse step of a mixture: Bayes' rule on a grid, entropies in closed form, refusals."""

import math

import mpmath
import pytest
import torch
from paths import D, each_path

import minidiff as md
from minidiff import exact

MEANS, STDS, WEIGHTS = [-1.0, 0.4, 1.2], [0.3, 0.1, 0.5], [0.2, 0.5, 0.3]
GRID = torch.linspace(-9, 9, 90_001, dtype=D)  # steps of 2e-4: finer than the narrowest bell


def column(values):
    return torch.tensor(values, dtype=D)[:, None]


def bells():
    stds, weights = torch.tensor(STDS, dtype=D), torch.tensor(WEIGHTS, dtype=D)
    return md.GaussianMixture(column(MEANS), stds, weights)


def normal(u, mean, var):
    return torch.exp(-((u - mean) ** 2) / (2 * var)) / (2 * math.pi * var) ** 0.5


def density(step, row):
    """The mixture that one row of a reverse step describes, on the grid."""
    variances = step.variances.expand(step.means.shape)
    parts = zip(step.weights[row], step.means[row], variances[row], strict=True)
    return sum(float(w) * normal(GRID, float(m), float(v)) for w, m, v in parts)


# ---- the step ------------------------------------------------------------------------------------


@each_path
@pytest.mark.parametrize("points", [False, True])
def test_reverse_step_is_bayes(path, points):
    """eq:reverse-mixture: q(x_s) q(x_t | x_s), divided by its sum over a grid, at three steps.

    Both factors are written out from signal and noise; the sum over a fine grid of a smooth density
    that vanishes at both ends is exact to rounding. 1e-9 because VE's b^2 is a difference.
    """
    data = md.Empirical(column(MEANS)) if points else bells()
    stds, weights = ([0.0] * 3, [1 / 3] * 3) if points else (STDS, WEIGHTS)
    for s, t in [(0.3, 0.35), (0.45, 0.9), (0.5, 0.502)]:
        (a_s, n_s), (a_t, n_t) = ((float(f) for f in path(u)[:2]) for u in (s, t))
        if n_t > 2:
            continue  # VE at .9: nothing of it fits on the grid
        a, b2 = a_t / a_s, n_t**2 - (a_t / a_s) ** 2 * n_s**2
        prior = sum(
            w * normal(GRID, a_s * m, (a_s * d) ** 2 + n_s**2)
            for m, d, w in zip(MEANS, stds, weights, strict=True)
        )
        x = torch.tensor([[-0.7], [0.1], [1.4]], dtype=D)
        step = exact.reverse_step(data, x, t, s, path)
        for row, value in enumerate(x[:, 0].tolist()):
            want = prior * normal(torch.tensor(value, dtype=D), a * GRID, b2)
            want = want / (want.sum() * (GRID[1] - GRID[0]))
            torch.testing.assert_close(density(step, row), want, rtol=1e-9, atol=1e-9)


def test_reverse_step_onto_clean_data_is_the_posterior():
    """At s = 0 the step is q(x0 | x_t), here for pictures of two pixels and a finite set."""
    x = torch.tensor([[0.3, -0.2], [1.0, 0.5]], dtype=D)
    data = md.Empirical(torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.2, -0.4]], dtype=D))
    got = exact.reverse_step(data, x, 0.4, 0.0, md.VP())
    at = md.VP()(0.4)
    gap = x[:, None] - at.signal * data.means
    want = torch.softmax(-(gap**2).sum(2) / (2 * at.noise**2), 1)
    torch.testing.assert_close(got.weights, want, rtol=1e-12, atol=0)
    torch.testing.assert_close(got.means, data.means.expand(2, 3, 2), rtol=1e-12, atol=0)
    assert not bool(got.variances.any())


def test_reverse_step_without_signal_forgets_x():
    """Where signal_t = 0 nothing is known: the step is the distribution of x_s itself."""
    table = md.BetaTable(md.zero_terminal_snr(md.linear_betas(50)))
    got = exact.reverse_step(bells(), torch.tensor([[5.0]], dtype=D), 1.0, 0.98, table)
    at = table(0.98)
    torch.testing.assert_close(got.weights[0], torch.tensor(WEIGHTS, dtype=D), rtol=1e-12, atol=0)
    torch.testing.assert_close(got.means[0], at.signal * column(MEANS), rtol=1e-12, atol=0)
    want = at.signal**2 * column(STDS) ** 2 + at.noise**2
    torch.testing.assert_close(got.variances[0], want, rtol=1e-12, atol=0)


# ---- the best Gaussian -------------------------------------------------------------------------


def mixture(weights, means, variances):
    weights, means, variances = (torch.tensor([f], dtype=D) for f in (weights, means, variances))
    return exact.Posterior(weights, means[..., None], variances[..., None])


def test_best_gaussian_by_hand():
    """eq:moment-match: weights 1/4, 3/4 at -1, 1: mean .5, variance .35 inside, .75 between."""
    mean, var = exact.best_gaussian(mixture([0.25, 0.75], [-1.0, 1.0], [0.2, 0.4]))
    assert float(mean) == pytest.approx(0.5, rel=1e-14)
    assert float(var) == pytest.approx(0.25 * 0.2 + 0.75 * 0.4 + 0.25 * 2.25 + 0.75 * 0.25)
    assert mean.shape == var.shape == (1, 1)


def test_best_gaussian_is_the_best():
    """eq:moment-match: moving its mean or its variance either way makes the divergence larger.

    The divergence is a sum over the grid; near its smallest value it is flat, so 5 % changes move
    it by at least 6e-4, far above the rounding of the sum.
    """
    step = mixture([0.3, 0.7], [-0.6, 0.5], [0.09, 0.3])
    mean, var = (float(f) for f in exact.best_gaussian(step))
    q = density(step, 0)

    def kl(m, v):
        terms = torch.where(q > 0, q * (q.clamp(min=1e-300) / normal(GRID, m, v)).log(), 0.0)
        return float(terms.sum() * (GRID[1] - GRID[0]))

    least = kl(mean, var)
    for m, v in [(0.05, 1.0), (-0.05, 1.0), (0.0, 1.05), (0.0, 0.95)]:
        assert kl(mean + m, var * v) > least + 5e-4


# ---- its distance ------------------------------------------------------------------------------


def test_non_gaussianity_of_two_far_bells():
    """eq:non-gaussianity: bells 40 widths apart do not overlap, and their entropy is log 2 more.

    KL = log(V / v) / 2 - log 2 with v the variance of a bell and V = v + 1 that of the whole.
    """
    v = 0.05**2
    got = exact.non_gaussianity(mixture([0.5, 0.5], [-1.0, 1.0], [v, v]))
    assert got.shape == (1,) and got.dtype == D
    assert float(got) == pytest.approx(math.log((v + 1) / v) / 2 - math.log(2), rel=1e-11)


def test_non_gaussianity_is_an_integral():
    """eq:non-gaussianity: q log(q / g) summed over a grid, for divergences from .4 to 2e-7 nats.

    The plain sum loses digits to cancellation: 1e-12 of 1, so the small ones compare to 1e-5.
    """
    for gap, rel in [(3.0, 1e-9), (0.5, 1e-9), (0.05, 1e-5)]:
        step = mixture([0.4, 0.6], [-gap / 2, gap / 2], [0.5, 0.7 if gap > 0.1 else 0.5002])
        mean, var = (float(f) for f in exact.best_gaussian(step))
        q = density(step, 0)
        d = q.clamp(min=1e-300).log() + (GRID - mean) ** 2 / (2 * var)
        d = d + math.log(2 * math.pi * var) / 2
        want = float((q * d).sum() * (GRID[1] - GRID[0]))
        assert float(exact.non_gaussianity(step)) == pytest.approx(want, rel=rel, abs=1e-13)


def test_small_divergences_keep_their_digits():
    """eq:non-gaussianity: against the plain integral with 40 digits, 1e-9 from 2e-9 to 1e-14 nats.

    A tenth of the step divides the divergence by a thousand (eq:cubic-gap), so it gets there fast.
    """
    for bar, beta, size in [(0.7, 1e-3, 2e-9), (0.7, 1e-4, 2e-12), (0.3, 1e-4, 1e-14)]:
        table = md.BetaTable(torch.tensor([1 - bar, beta], dtype=D))
        data = md.GaussianMixture(column([-1.2, 0.8]), torch.tensor(0.2, dtype=D), [0.4, 0.6])
        step = exact.reverse_step(data, torch.tensor([[0.35]], dtype=D), 1.0, 0.5, table)
        got = float(exact.non_gaussianity(step))
        assert size / 2 < got < 2 * size
        with mpmath.workdps(40):
            variances = step.variances.expand(step.means.shape)
            w, m, v = (
                [mpmath.mpf(a) for a in f.flatten().tolist()]
                for f in (step.weights, step.means, variances)
            )
            w = [a / sum(w) for a in w]
            mean = mpmath.fdot(w, m)
            var = sum(a * (c + (b - mean) ** 2) for a, b, c in zip(w, m, v, strict=True))

            def term(u, w=w, m=m, v=v, mean=mean, var=var):
                each = zip(w, m, v, strict=True)
                q = sum(a * mpmath.npdf(u, b, mpmath.sqrt(c)) for a, b, c in each)
                return q * mpmath.log(q / mpmath.npdf(u, mean, mpmath.sqrt(var)))

            cuts = [mean + k * mpmath.sqrt(var) for k in range(-12, 13, 3)]
            assert got == pytest.approx(float(mpmath.quad(term, cuts)), rel=1e-9)


def test_non_gaussianity_of_a_gaussian_is_zero():
    """One bell, or two equal ones, are Gaussian: 0 to rounding, and never below."""
    for step in (mixture([1.0], [0.7], [2.0]), mixture([0.5, 0.5], [0.3, 0.3], [0.1, 0.1])):
        assert 0 <= float(exact.non_gaussianity(step)) < 1e-15


def test_non_gaussianity_in_chunks(monkeypatch):
    """Many rows are cut into pieces; each row is what it is alone."""
    x = torch.linspace(-2, 2, 9, dtype=D)[:, None]
    step = exact.reverse_step(bells(), x, 0.5, 0.4, md.Cosine())
    whole = exact.non_gaussianity(step)
    monkeypatch.setattr("minidiff.exact.reverse.CHUNK", 1)
    torch.testing.assert_close(exact.non_gaussianity(step), whole, rtol=1e-12, atol=1e-18)
    assert bool((whole > 1e-6).all())


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: exact.reverse_step(bells(), x, 0.2, 0.3, md.VP()), "noisier than s"),
        (lambda x: exact.reverse_step(bells(), x, 0.3, 0.3, md.VP()), "noisier than s"),
        (lambda x: exact.reverse_step(bells(), x.expand(1, 2), 0.3, 0.2, md.VP()), "events"),
        (lambda x: exact.reverse_step(bells(), x, torch.full((1,), 0.3), 0.2, md.VP()), "one numb"),
        (
            lambda x: exact.reverse_step(
                md.GaussianMixture.full(x, torch.ones(1, 1, 1)), x, 0.3, 0.2, md.VP()
            ),
            "independent entries",
        ),
        (
            lambda x: exact.non_gaussianity(
                exact.reverse_step(md.Empirical(x), x, 0.3, 0.0, md.VP())
            ),
            "points have no density",
        ),
        (
            lambda x: exact.non_gaussianity(
                exact.reverse_step(md.Empirical(x.expand(1, 2)), x.expand(1, 2), 0.3, 0.1, md.VP())
            ),
            "2 entries",
        ),
    ],
)
def test_refusals(call, words):
    """Bad input names itself."""
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(1, 1, dtype=D))
