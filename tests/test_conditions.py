"""Conditions: bit-exact where promised, right on exact conditionals, and biased as computed."""

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from paths import D, data, each_path, seeded
from torch import Tensor

import minidiff as md
from minidiff import conditions as C


def num(value):
    return torch.tensor(value, dtype=D)


T = num(0.5)


def keep(x, t):
    return x


# ---- inpaint ------------------------------------------------------------------------------

SAMPLERS = {
    "ancestral": md.ancestral,
    "ddim": md.ddim,
    "ddim eta=.7": lambda *args, **kw: md.ddim(*args, eta=0.7, **kw),
    "heun": lambda *args, rng: md.heun(*args),
    "dpmpp_2m": lambda *args, rng: md.dpmpp_2m(*args),
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


# ---- replace ------------------------------------------------------------------------------


@each_path
@pytest.mark.parametrize("t", [num(0.3), num([0.0, 0.5, 0.9])], ids=["one time", "times"])
def test_replace_written_out(path, t):
    """eq:replace with D = 10 x: the denoiser sees signal v + noise z where known, x elsewhere, and
    the known values come back to the bit.

    z is drawn in the shape of x from the given generator, anew at each call.
    """
    values, known = data(3, 4), data(3, 4, seed=1) > 0
    values[~known] = math.nan
    seen = []

    def denoise(x, t):
        seen.append(x)
        return 10 * x

    held = md.replace(denoise, path, values, known, rng=seeded(5))
    x, rng, at = data(3, 4, seed=2), seeded(5), path(t)
    signal, noise = (f.reshape(-1, 1) if f.ndim else f for f in (at.signal, at.noise))
    for call in range(2):
        got = held(x, t)
        z = torch.randn(3, 4, dtype=D, generator=rng)
        want = torch.where(known, signal * values + noise * z, x)
        torch.testing.assert_close(seen[call], want, rtol=1e-12, atol=1e-12)
        assert torch.equal(got, torch.where(known, values, 10 * seen[call]))
    assert not torch.equal(seen[0], seen[1])


@each_path
def test_replaced_entries_have_the_level(path):
    """Mean signal v and standard deviation noise, over 20,000 examples, to 5 standard errors."""
    n, v, seen = 20_000, 1.5, []

    def denoise(x, t):
        seen.append(x)
        return x

    known = torch.tensor([True, False])
    values = num([[v, 0.0]]).expand(n, 2)
    x = md.replace(denoise, path, values, known, rng=seeded())(data(n, 2, seed=1), num(0.6))
    at, first = path(0.6), seen[0][:, 0]
    std = float(at.noise)
    assert float(first.mean()) == pytest.approx(float(at.signal) * v, abs=5 * std / n**0.5)
    assert float(first.std()) == pytest.approx(std, rel=5 / (2 * n) ** 0.5)
    assert torch.equal(x[:, 0], values[:, 0])


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("shape", [(3, 2), (3, 1, 4, 4), (3, 5, 2)])
def test_replace_is_bit_exact(sampler, shape):
    """Known entries come back to the bit, whatever stands where nothing is known."""
    for dtype in (torch.float32, D):
        values, known = data(*shape, dtype=dtype), data(*shape, seed=1) > 0
        values[~known] = math.nan
        path = md.Cosine()
        denoise = md.replace(lambda x, t: 0.9 * torch.tanh(x), path, values, known, rng=seeded(3))
        start = data(*shape, seed=2, dtype=dtype)
        x = md.last(sampler(denoise, path, start, md.grids.uniform(7), rng=seeded()))
        assert torch.equal(x[known], values[known])
        assert bool(torch.isfinite(x).all()) and x.dtype == dtype


def test_replace_draws_from_its_rng(global_state_untouched):
    """One seed, one result; no seed, another result each time; the global state is left alone."""
    x, values, known = data(2, 2), data(2, 2, seed=1), torch.tensor([True, False])

    def mix(x, t):
        return x.flip(1)  # the unknown entry shows what the known one was replaced by

    def run(rng):
        return md.replace(mix, md.VP(), values, known, rng=rng)(x, T)

    assert torch.equal(run(seeded(4)), run(seeded(4)))
    assert not torch.equal(run(seeded(4)), run(seeded(5)))
    assert not torch.equal(run(None), run(None))


RHO, V = 0.8, 1.5  # two standard normals with correlation RHO; the first is V


def pair_row(signal, noise):
    """Second row of signal C (signal^2 C + noise^2 I)^-1 for C = [[1, RHO], [RHO, 1]], by hand."""
    whole, cross = signal**2 + noise**2, signal**2 * RHO
    det = whole**2 - cross**2
    return signal * (RHO * whole - cross) / det, signal * (whole - RHO * cross) / det


def replaced_chain(path, times):
    """Mean and variance of the second entry after every step of the ancestral chain, exactly.

    With ratio r = signal_t / signal_s and fresh = noise_t^2 - r^2 noise_s^2 the step is
    keep x + add (p (signal V + noise z) + q x) + sqrt(var) z'.
    """
    level = path(times)
    signal, noise = level.signal.tolist(), level.noise.tolist()
    mean, variance = 0.0, signal[0] ** 2 + noise[0] ** 2
    out = []
    for st, nt, ss, ns in zip(signal, noise, signal[1:], noise[1:], strict=False):
        r = st / ss
        fresh = nt**2 - (r * ns) ** 2
        hold, add, var = r * ns**2 / nt**2, ss * fresh / nt**2, ns**2 * fresh / nt**2
        p, q = pair_row(st, nt)
        mean = (hold + add * q) * mean + add * p * st * V
        variance = (hold + add * q) ** 2 * variance + (add * p * nt) ** 2 + var
        out.append((mean, variance))
    return out


LIMIT = ((1 - math.sqrt(1 - RHO**2)) / RHO * V, (1 - RHO**2) * math.atanh(RHO) / RHO)


@each_path
def test_replace_is_biased(path):
    """eq:replace-step: over the exact *unconditional* denoiser of two correlated normals.

    The chain is linear, so mean and variance are iterated exactly; 20,000 chains of 50 steps agree
    with them to 5 standard errors, at the end and on the way. Right would be the mean RHO V = 1.2
    and the variance 1 - RHO^2 = .36: both are missed by far more than that.
    """
    n = 20_000
    data_ = md.GaussianMixture.full(torch.zeros(1, 2, dtype=D), num([[[1, RHO], [RHO, 1]]]))
    values = num([[V, math.nan]]).expand(n, 2)
    denoise = md.replace(
        data_.denoiser(path), path, values, torch.tensor([True, False]), rng=seeded(3)
    )
    times = md.grids.log_snr(path, 50, low=-9, high=9)
    start = md.prior(path, (n, 2), at=times[0], rng=seeded(1), dtype=D)
    states = list(md.ancestral(denoise, path, start, times, rng=seeded(2)))
    exact = replaced_chain(path, times)
    for k in (10, 25, 40, len(exact) - 1):
        x, (mean, var) = states[k].x[:, 1], exact[k]
        assert float(x.mean()) == pytest.approx(mean, abs=5 * math.sqrt(var / n))
        assert float(x.var()) == pytest.approx(var, rel=5 * math.sqrt(2 / n))
    assert abs(mean - RHO * V) > 50 * math.sqrt(var / n)
    assert abs(var - (1 - RHO**2)) > 10 * var * math.sqrt(2 / n)


@pytest.mark.parametrize("path", [md.Cosine(), md.LinearPath()], ids=["Cosine", "LinearPath"])
def test_the_bias_of_replace_does_not_vanish(path):
    """eq:replace-bias: with ever more steps the chain settles on mean V (1 - sqrt(1 - RHO^2)) / RHO
    and variance (1 - RHO^2) artanh(RHO) / RHO: .75 and .494, where 1.2 and .36 are right.

    The distance to the limit falls in proportion to the step.
    """
    gaps = []
    for n in (500, 2000, 8000):
        mean, var = replaced_chain(path, md.grids.log_snr(path, n, low=-16, high=16))[-1]
        gaps.append((abs(mean - LIMIT[0]), abs(var - LIMIT[1])))
    for coarse, fine in pairwise(gaps):
        assert all(3.3 < c / f < 4.5 for c, f in zip(coarse, fine, strict=True))
    assert gaps[-1][0] < 1e-3 and gaps[-1][1] < 2e-3
    assert (round(LIMIT[0], 3), round(LIMIT[1], 3)) == (0.75, 0.494)


# ---- rounded ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 3), (2, 4, 3), (2, 2, 4, 3)])
def test_rounded_written_out(shape):
    """eq:rounded: the nearest row of the table, searched one by one in plain Python. What is a row
    already stays as it is.
    """
    table, x = data(7, 3, seed=1), data(*shape)
    got = C.rounded(lambda x, t: 2 * x, table)(x, T)
    assert got.shape == x.shape
    for vector, found in zip((2 * x).reshape(-1, 3).tolist(), got.reshape(-1, 3), strict=True):
        gaps = [sum((u - v) ** 2 for u, v in zip(vector, e, strict=True)) for e in table.tolist()]
        assert torch.equal(found, table[gaps.index(min(gaps))])
    again = C.rounded(keep, table)
    assert torch.equal(again(got, T), got)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounded_in_half_precision(dtype):
    """torch has no distance of halves: the nearest row is found in float32, of the same numbers."""
    table, x = data(7, 3, seed=1).to(dtype), data(2, 4, 3).to(dtype)
    got = C.rounded(keep, table)(x, T)
    assert got.dtype == dtype
    assert torch.equal(got, C.rounded(keep, table.float())(x.float(), T).to(dtype))


def test_rounded_takes_the_first_of_a_tie():
    table = num([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    x = num([[0.0, 0.0], [0.0, 0.5], [0.9, 0.0], [-0.5, 0.5], [0.5, 0.5]])
    got = C.rounded(keep, table)(x, T)
    assert torch.equal(got, table[torch.tensor([0, 2, 0, 1, 0])])


def test_rounded_tells_long_vectors_apart():
    """1000 vectors of length 400 that differ by .01, in float32: a distance through a matrix
    product would lose every digit. The search in float64 is the judge.
    """
    table, x = 100 + 0.01 * data(1000, 16), 100 + 0.01 * data(40, 16, seed=1)
    table, x = table.float(), x.float()
    gaps = (x.double()[:, None] - table.double()).square().sum(2)
    assert torch.equal(C.rounded(keep, table)(x, T), table[gaps.argmin(1)])


def test_rounded_sampler_ends_on_words():
    """The last step of a sampler returns the prediction, so every vector is one of the table."""
    table = data(5, 2, seed=1)
    denoise = C.rounded(lambda x, t: 0.9 * x, table)
    x = md.last(md.ancestral(denoise, md.VP(), data(3, 4, 2), md.grids.uniform(5), rng=seeded()))
    assert bool((x[..., None, :] == table).all(-1).any(-1).all())
    half = C.rounded(keep, table)(data(3, 2, dtype=torch.float32), T)
    assert half.dtype == torch.float32  # a table of another dtype does not change that of x


# ---- drop ---------------------------------------------------------------------------------


class Pair(NamedTuple):
    label: Tensor
    vector: Tensor


class Three(NamedTuple):
    label: Tensor
    vector: Tensor
    more: Tensor


def test_drop_written_out():
    """eq:drop: u < p picks the examples, with u uniform from the given generator."""
    cond, null = data(50, 3), num([7.0, 8.0, 9.0])
    got = C.drop(cond, null, 0.3, rng=seeded(4))
    u = torch.rand(50, generator=seeded(4))
    assert 5 < int((u < 0.3).sum()) < 25
    for i in range(50):
        assert got[i].tolist() == ([7, 8, 9] if u[i] < 0.3 else cond[i].tolist())


@pytest.mark.parametrize("p", [0.1, 0.5, 0.85])
def test_drop_drops_a_share_of_p(p):
    """100,000 labels, to 5 standard errors of a count."""
    n = 100_000
    got = C.drop(torch.zeros(n, dtype=torch.long), torch.tensor(1), p, rng=seeded(1))
    assert float(got.double().mean()) == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / n))


@pytest.mark.parametrize("p", [0, 0.0, 1, 1.0])
def test_drop_never_and_always(p):
    cond = torch.arange(1000)
    got = C.drop(cond, torch.tensor(-1), p, rng=seeded())
    assert torch.equal(got, torch.full_like(cond, -1) if p else cond)


def test_drop_keeps_what_meets_p():
    """u < p, not u <= p: at p = u the example stays."""
    u = float(torch.rand(1, generator=seeded(4)))
    cond, null = torch.tensor([1]), torch.tensor(9)
    assert C.drop(cond, null, u, rng=seeded(4)).tolist() == [1]
    assert C.drop(cond, null, u + 1e-6, rng=seeded(4)).tolist() == [9]


def test_drop_takes_all_fields_of_an_example():
    """One coin an example; each field by its own null, broadcast over the event; same type back."""
    cond = Pair(torch.arange(200), data(200, 2, 3))
    null = Pair(torch.tensor(-1), num([1.0, 2.0, 3.0]))
    before = (cond.label.clone(), cond.vector.clone())
    got = C.drop(cond, null, 0.4, rng=seeded())
    assert type(got) is Pair and got.label.dtype == torch.long and got.vector.dtype == D
    gone = got.label == -1
    assert 50 < int(gone.sum()) < 110
    assert torch.equal(got.vector[gone], num([1.0, 2.0, 3.0]).expand(int(gone.sum()), 2, 3))
    assert torch.equal(got.vector[~gone], cond.vector[~gone])
    assert torch.equal(got.label[~gone], cond.label[~gone])
    assert torch.equal(cond.label, before[0]) and torch.equal(cond.vector, before[1])


def test_drop_draws_from_its_rng(global_state_untouched):
    cond, null = torch.arange(500), torch.tensor(-1)
    one, same, other = (C.drop(cond, null, 0.5, rng=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(C.drop(cond, null, 0.5), C.drop(cond, null, 0.5))


def test_drop_gives_the_null_label_of_a_net():
    """For labels 0..9 the null is 10: what is dropped is embedded like cond=None."""
    embed = md.nets.LabelEmbedding(10, 4).double()
    labels = torch.arange(10).repeat(10)
    got = C.drop(labels, torch.tensor(embed.null), 0.3, rng=seeded())
    assert got.dtype == labels.dtype and got.shape == (100,)
    gone = got == 10
    assert 10 < int(gone.sum()) < 50 and torch.equal(got[~gone], labels[~gone])
    assert torch.equal(embed(got, 100)[gone], embed(None, 100)[gone])
    short = C.drop(labels.to(torch.uint8), torch.tensor(10), 0.3, rng=seeded())
    assert short.dtype == torch.uint8 and torch.equal(short.long(), got)


def test_guidance_offers_the_conditions():
    """One object under both names."""
    for name in ("inpaint", "replace", "rounded", "drop"):
        assert getattr(md.guidance, name) is getattr(C, name)
    assert md.inpaint is C.inpaint and md.replace is C.replace


# ---- refusals -----------------------------------------------------------------------------

X, ALL = torch.zeros(2, 3), torch.ones(3, dtype=torch.bool)
LABELS, NULL = torch.arange(4), torch.tensor(9)
BAD = {
    "float mask": (lambda f: f(X, torch.ones(2, 3)), "known has dtype"),
    "wrong mask": (lambda f: f(X, torch.ones(4, 3, dtype=torch.bool)), "known has shape"),
    "NaN": (lambda f: f(X / 0, ALL), "values holds NaN"),
    "infinite": (lambda f: f(X + math.inf, ALL), "values holds NaN or infinite"),
    "one NaN": (lambda f: f(num([[0, math.nan]]), torch.tensor([True, True])), "values holds NaN"),
}
HOLDERS = {
    "inpaint": lambda values, known: md.inpaint(keep, values, known),
    "replace": lambda values, known: md.replace(keep, md.VP(), values, known),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS.keys())
@pytest.mark.parametrize(("call", "word"), BAD.values(), ids=BAD.keys())
def test_holders_refuse_at_the_call(hold, call, word):
    with pytest.raises(ValueError, match=word):
        call(hold)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: C.drop(LABELS, NULL, -0.01), "p=-0.01"),
        (lambda: C.drop(LABELS, NULL, 1.01), "p=1.01"),
        (lambda: C.drop(LABELS, NULL, math.nan), "p=nan"),
        (lambda: C.drop(None, NULL, 0.1), "cond is a NoneType and null a Tensor"),
        (lambda: C.drop(LABELS, None, 0.1), "null a NoneType"),
        (lambda: C.drop(LABELS, 9, 0.1), "null a int"),
        (lambda: C.drop((LABELS, LABELS), (NULL, NULL), 0.1), "cond is a tuple"),
        (lambda: C.drop(Pair(LABELS, LABELS), NULL, 0.1), "cond is a Pair and null a Tensor"),
        (lambda: C.drop(LABELS, Pair(NULL, NULL), 0.1), "cond is a Tensor and null a Pair"),
        (lambda: C.drop(Pair(LABELS, LABELS), Three(NULL, NULL, NULL), 0.1), "null a Three"),
        (lambda: C.drop(Pair(LABELS, None), Pair(NULL, NULL), 0.1), "two NamedTuples"),
        (lambda: C.drop(Pair(LABELS, NULL), Pair(NULL, NULL), 0.1), "a leading axis B"),
        (lambda: C.drop(Pair(LABELS, LABELS[:3]), Pair(NULL, NULL), 0.1), "a leading axis B"),
        (lambda: C.drop(NULL, NULL, 0.1), "a leading axis B"),
        (lambda: C.drop(LABELS, LABELS, 0.1), r"null has shape \(4,\): .* one example, \(\)"),
        (lambda: C.drop(X, torch.zeros(2), 0.1), r"null has shape \(2,\): .* one example, \(3,\)"),
        (lambda: C.rounded(keep, torch.zeros(3)), r"vectors has shape \(3,\)"),
        (lambda: C.rounded(keep, torch.zeros(2, 3, 4)), "vectors has shape"),
        (lambda: C.rounded(keep, torch.zeros(0, 3)), r"vectors has shape \(0, 3\)"),
        (lambda: C.rounded(keep, X / 0), "give a finite"),
        (lambda: C.rounded(keep, num([[0.0, 1.0], [2.0, math.inf]])), "give a finite"),
        (lambda: C.rounded(keep, X)(torch.zeros(2, 4), T), r"x0 has shape \(2, 4\)"),
        (lambda: C.rounded(keep, X)(torch.zeros(3), T), r"x0 has shape \(3,\)"),
    ],
)
def test_conditions_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()
