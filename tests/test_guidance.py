"""Wrappers of denoisers: written out, bit-exact where promised, and right on exact conditionals."""

import math

import pytest
import torch

import minidiff as md

D = torch.float64
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(),
    "BetaTable": md.BetaTable(md.linear_betas(1000)),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0, dtype=D):
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))


T = torch.tensor(0.5, dtype=D)


def a(x, t):
    return torch.sin(x) + t


def b(x, t):
    return 2 * x - t


# ---- clip and cfg -------------------------------------------------------------------------


def test_clip():
    """min(max(x0, low), high), entry by entry."""
    x = torch.tensor([[-3.0, -0.2, 0.1, 5.0]], dtype=D)
    got = md.clip(lambda x, t: 2 * x, -1, 0.5)(x, T)
    assert got.tolist() == [[-1, -0.4, 0.2, 0.5]]


def test_cfg_is_linear():
    """free + scale (cond - free): 0 and 1 are the two parts to the bit, and 3 is written out."""
    x = data(4, 2)
    assert torch.equal(md.cfg(a, b, 0.0)(x, T), b(x, T))
    assert torch.equal(md.cfg(a, b, 1.0)(x, T), a(x, T))
    got = md.cfg(a, b, 3.0)(x, T)
    torch.testing.assert_close(got, 3 * a(x, T) - 2 * b(x, T), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(md.cfg(a, b, 0.5)(x, T), (a(x, T) + b(x, T)) / 2)


@pytest.mark.parametrize(("scale", "calls"), [(0, (0, 1)), (1, (1, 0)), (2.5, (1, 1))])
def test_cfg_asks_no_more_than_it_needs(scale, calls):
    cond, free = md.count_calls(a), md.count_calls(b)
    md.cfg(cond, free, scale)(data(2, 2), T)
    assert (cond.calls, free.calls) == calls


def test_cfg_is_the_rule_of_ho_and_salimans():
    """In eps: (1 + w) eps_c - w eps, with w = scale - 1."""
    path, x, w = md.VP(), data(3, 2), 1.7
    at = path(0.5)
    eps = {f: md.eps_from_x0(f(x, T), x, at) for f in (a, b)}
    want = (1 + w) * eps[a] - w * eps[b]
    got = md.eps_from_x0(md.cfg(a, b, 1 + w)(x, T), x, at)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_cfg_sharpens_an_exact_conditional():
    """score = score_free + scale grad log p(c | x): its gradient by autograd, on a mixture."""
    path, x = md.Cosine(), data(5, 1).requires_grad_()
    both = md.GaussianMixture(torch.tensor([[1.0], [-1.0]], dtype=D), 0.5)
    one = md.Gaussian(torch.tensor([1.0], dtype=D), torch.tensor([0.5], dtype=D))
    log_c = one.log_prob(x, T, path) - both.log_prob(x, T, path)  # log p(c | x) - log p(c)
    (pull,) = torch.autograd.grad(log_c.sum(), x)
    x = x.detach()
    guided = md.cfg(one.denoiser(path), both.denoiser(path), 2.5)(x, T)
    want = both.score(x, T, path) + 2.5 * pull
    torch.testing.assert_close(md.score_from_x0(guided, x, path(T)), want, rtol=1e-9, atol=1e-9)


# ---- inpaint ------------------------------------------------------------------------------

SAMPLERS = {
    "ancestral": md.ancestral,
    "ddim": md.ddim,
    "ddim eta=.7": lambda *args, **kw: md.ddim(*args, eta=0.7, **kw),
}


@each_path
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4), (3, 5, 2)])
def test_inpaint_is_bit_exact(path, sampler, shape):
    """Known entries come back to the bit, in float32 too; unknown ones are finite and free."""
    for dtype in (torch.float32, D):
        values, known = data(*shape, dtype=dtype), data(*shape, seed=1) > 0
        values[~known] = math.nan  # what is not known is never read
        denoise = md.inpaint(lambda x, t: 0.9 * torch.tanh(x), values, known)
        start = data(*shape, seed=2, dtype=dtype)
        x = md.last(sampler(denoise, path, start, md.grids.uniform(7), rng=seeded()))
        assert torch.equal(x[known], values[known])
        assert bool(torch.isfinite(x).all()) and x.dtype == dtype


def test_inpaint_shows_clean_values_to_the_denoiser():
    """Before and after: known entries of x are replaced by their values; the others pass."""
    values, known = data(2, 3), torch.tensor([True, False, True])
    seen = []

    def denoise(x, t):
        seen.append(x)
        return 10 * x

    x = data(2, 3, seed=1)
    got = md.inpaint(denoise, values, known)(x, T)
    want = torch.stack([values[:, 0], x[:, 1], values[:, 2]], 1)
    assert torch.equal(seen[0], want)
    assert torch.equal(got, torch.stack([values[:, 0], 10 * x[:, 1], values[:, 2]], 1))


@each_path
def test_inpaint_over_an_exact_conditional_samples_it(path):
    """Two correlated normals, the first known: samples have the conditional mean and variance.

    The denoiser is exact for "x_1 noisy, x_0 clean": the posterior of x_1 given x_0 = v is
    N(rho v, 1 - rho^2). 20,000 ancestral chains of 400 steps; 5 standard errors, and 2 % for the
    chain's own deficit of order 1/N.
    """
    rho, v, n = 0.8, 1.5, 20_000
    mean, var = rho * v, 1 - rho**2

    def conditional(x, t):
        at = path(t)
        s, n2 = at.signal, at.noise**2
        m, c = rho * x[:, :1], var  # given the clean first entry
        second = m + s * c / (s**2 * c + n2) * (x[:, 1:] - s * m)
        return torch.cat([x[:, :1], second], 1)

    values = torch.tensor([[v, math.nan]], dtype=D).expand(n, 2)
    known = torch.tensor([True, False])
    denoise = md.inpaint(conditional, values, known)
    times = md.grids.log_snr(path, 400, low=-9, high=8)
    start = md.prior(path, (n, 2), at=times[0], rng=seeded(1), dtype=D)
    x = md.last(md.ancestral(denoise, path, start, times, rng=seeded(2)))[:, 1]
    assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(var / n) + 0.01)
    assert float(x.var()) == pytest.approx(var, rel=5 * math.sqrt(2 / n) + 0.03)


def test_wrappers_compose():
    """Clip inside, guidance, inpainting outside: a plain nest of calls."""
    values, known = torch.full((2, 2), 5.0, dtype=D), torch.tensor([True, False])
    denoise = md.inpaint(md.clip(md.cfg(a, b, 2.0), -1, 1), values, known)
    got = denoise(data(2, 2), T)
    assert bool((got[:, 0] == 5).all()) and float(got[:, 1].abs().max()) <= 1


X = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: md.clip(a, 1, -1), "low=1, high=-1"),
        (lambda: md.clip(a, 0, 0), "low=0"),
        (lambda: md.clip(a, math.nan, 1), "low=nan"),
        (lambda: md.cfg(a, b, -0.5), "scale=-0.5"),
        (lambda: md.cfg(a, b, math.nan), "scale=nan"),
        (lambda: md.inpaint(a, X, torch.ones(2, 3)), "known has dtype"),
        (lambda: md.inpaint(a, X, torch.ones(4, 3, dtype=torch.bool)), "known has shape"),
        (lambda: md.inpaint(a, X / 0, torch.ones(3, dtype=torch.bool)), "values holds NaN"),
    ],
)
def test_wrappers_refuse_at_the_call(call, word):
    """When they are built, not when they are first asked."""
    with pytest.raises(ValueError, match=word):
        call()
