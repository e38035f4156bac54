"""The likelihood of the probability flow against exact densities, divergences against derivatives,
and bits against counting.

A Gaussian keeps its shape on the flow, z at log-SNR l has variance std^2 + exp(-l), so there the
result with all its end errors is written out and what is left is the error of Runge-Kutta.
"""

import math
from itertools import pairwise

import pytest
import torch
from torch.distributions import Normal

import minidiff as md
from minidiff import likelihood

D = torch.float64
EXACT = {"rtol": 1e-12, "atol": 1e-12}
ANGLES = torch.arange(8, dtype=D) * math.pi / 4
CENTRES = 0.7 * torch.stack([ANGLES.cos(), ANGLES.sin()], 1)
RING = md.GaussianMixture(CENTRES, 0.05)
PATHS = [md.VP(), md.Cosine(), md.LinearPath(), md.VE(), md.BetaTable(md.linear_betas(1000))]
each_path = pytest.mark.parametrize("path", PATHS, ids=lambda s: type(s).__name__)


def seed(value):
    return torch.Generator().manual_seed(value)


def normal(*shape, at=0):
    return torch.randn(shape, generator=seed(at), dtype=D)


def summed(values):
    return values.reshape(len(values), -1).sum(1)


def grid(path, n, low, high):
    return md.grids.log_snr(path, n, low=low, high=high, land=False).flip(0)


# ---- divergences ---------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(), (1,), (3,), (1, 2, 2)], ids=str)
def test_exact_divergence_is_the_trace_of_the_jacobian(event):
    """eq:divergence: f_i = x_i^3 + (sum x)^2 sin x_i, whose derivatives are written out."""

    def field(x):
        total = x.reshape(len(x), -1).sum(1).reshape(-1, *(1,) * len(event))
        return x**3 + total**2 * torch.sin(x)

    x = normal(4, *event)
    value, got = likelihood.exact_divergence(field, x, seed(0))
    total = summed(x).reshape(-1, *(1,) * len(event))
    want = summed(3 * x**2 + 2 * total * torch.sin(x) + total**2 * torch.cos(x))
    torch.testing.assert_close(got, want, **EXACT)
    torch.testing.assert_close(value, field(x), **EXACT)
    assert got.shape == (4,) and not (value.requires_grad or got.requires_grad)


def swirl(x):
    """A field with derivatives off the diagonal, so that one probe is not enough."""
    a, b = x.unbind(1)
    return torch.stack([torch.sin(a) + 2 * a * b, a**2 - 3 * b], 1)


def test_hutchinson_has_no_bias():
    """eq:hutchinson: 4000 probes within 5 SE of the trace; the SE is that of v^T J v.

    Its variance over signs is (J_ab + J_ba)^2, here (2 a + 2 a)^2.
    """
    x = normal(3, 2, at=1)
    value, got = likelihood.hutchinson(4000)(swirl, x, seed(2))
    a, b = x.unbind(1)
    want = torch.cos(a) + 2 * b - 3
    assert bool(((got - want).abs() < 5 * 4 * a.abs() / 4000**0.5).all())
    assert bool(((got - want).abs() > 0).all())
    torch.testing.assert_close(value, swirl(x), **EXACT)
    assert got.shape == (3,) and not (value.requires_grad or got.requires_grad)


def test_hutchinson_written_out():
    """eq:hutchinson: the signs drawn again, one set a probe, the mean of v^T J v over them."""
    x = normal(3, 2, at=1)
    _, got = likelihood.hutchinson(3)(swirl, x, seed(4))
    jacobian = torch.autograd.functional.jacobian(lambda x: swirl(x).sum(0), x).permute(1, 0, 2)
    g, want = seed(4), torch.zeros(3, dtype=D)
    for _ in range(3):
        v = 2 * torch.randint(0, 2, (3, 2), generator=g).double() - 1
        want += torch.einsum("bi,bij,bj->b", v, jacobian, v) / 3
    torch.testing.assert_close(got, want, **EXACT)


def test_hutchinson_of_a_diagonal_field_needs_one_probe():
    """eq:hutchinson: v_i^2 is 1 for signs, so a field without cross terms has no spread."""
    x = normal(4, 2, 3)
    slopes = normal(2, 3, at=5)
    for k in range(3):
        _, got = likelihood.hutchinson()(lambda x: slopes * x, x, seed(k))
        torch.testing.assert_close(got, slopes.sum().expand(4), **EXACT)


def test_hutchinson_spread_falls_with_the_root_of_the_probes():
    """2000 examples at one point: 1 and 16 probes, a ratio of 4; its SE is 2 percent."""
    x = torch.tensor([[0.7, -0.4]], dtype=D).expand(2000, 2)
    one, many = (likelihood.hutchinson(n)(swirl, x, seed(6))[1].std() for n in (1, 16))
    assert float(one) == pytest.approx(4 * 0.7, rel=0.05)
    assert float(one / many) == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("probes", [0, -1, 1.5, "1"])
def test_hutchinson_refuses_bad_probes(probes):
    with pytest.raises(ValueError, match="probes="):
        likelihood.hutchinson(probes)


# ---- the flow ------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps, most", [(50, 2e-3), (200, 1e-3)])
def test_flow_likelihood_of_the_ring(steps, most):
    """eq:ode-likelihood: mean |error| of log p on 1000 points, in nats, VP.

    Measured 5e-4 to 6e-4 at 50 steps and 2.5e-4 at 200. There it stays, however many steps: that is
    the smoothing by the first level, log-SNR 14 (see the floors below).
    """
    path = md.VP()
    x0 = RING.sample(1000, rng=seed(7))
    times = grid(path, steps, -10.04, 14.0)
    got = likelihood.ode_log_likelihood(RING.denoiser(path), path, x0, times)
    error = (got - RING.log_prob(x0, 0.0, path)).abs()
    assert got.shape == (1000,)
    assert 1e-4 < float(error.mean()) < most


@pytest.mark.parametrize(
    "high, floor", [(9.0, 0.034), (12.0, 1.8e-3), (14.0, 2.5e-4), (16.0, 4.9e-5)]
)
def test_floor_of_the_first_level(high, floor):
    """What steps cannot mend: the result is the density smoothed by exp(-high), not the data's.

    Against the smoothed ring, written out, 120 steps are within 1e-4; against the data's own
    density the mean error is .034, .0018, 2.5e-4 or 4.9e-5 nats, here on 60 points to a third.
    """
    path = md.VP()
    x0 = RING.sample(60, rng=seed(8))
    got = likelihood.ode_log_likelihood(
        RING.denoiser(path), path, x0, grid(path, 120, -10.04, high)
    )
    var = 0.05**2 + math.exp(-high)
    gaps = ((x0[:, None] - CENTRES) ** 2).sum(2)
    smooth = (-gaps / (2 * var)).logsumexp(1) - math.log(8 * 2 * math.pi * var)
    assert float((got - smooth).abs().mean()) < 1e-4
    error = (got - RING.log_prob(x0, 0.0, path)).abs()
    assert float(error.mean()) == pytest.approx(floor, rel=1 / 3)


def on_a_gaussian(x0, mean, std, low, high):
    """What the flow of N(mean, std^2) gives between two log-SNRs without any error of a solver."""
    start, end = std**2 + math.exp(-high), std**2 + math.exp(-low)
    z = mean + math.sqrt(end / start) * (x0 - mean)
    wide = 1 + math.exp(-low)
    log_p = -(z**2 / wide + math.log(2 * math.pi * wide)) / 2
    return summed(log_p + math.log(end / start) / 2)


@each_path
@pytest.mark.parametrize("event", [(), (2,), (1, 2, 2)], ids=str)
def test_flow_likelihood_of_a_gaussian(path, event):
    """eq:ode-likelihood with both end errors, on every path: 32 steps of .375 are at 2e-4.

    No path enters but through its log-SNR, so the five agree among themselves far closer.
    """
    mean, std = 0.3, 0.6
    data = md.Gaussian(torch.full(event, mean, dtype=D), torch.tensor(std, dtype=D))
    x0 = data.sample(5, rng=seed(9))
    times = grid(path, 32, -6.0, 6.0)
    got = likelihood.ode_log_likelihood(data.denoiser(path), path, x0, times)
    want = on_a_gaussian(x0, mean, std, -6.0, 6.0)
    assert got.shape == (5,)
    torch.testing.assert_close(got, want, rtol=0, atol=5e-4)


def test_flow_likelihood_of_unit_data_is_the_smoothed_density():
    """For data of variance 1 the end is exact, and what is left is N(0, 1 + noise^2/signal^2)."""
    data, path = md.Gaussian(torch.zeros(3, dtype=D), torch.tensor(1.0)), md.Cosine()
    x0 = data.sample(4, rng=seed(10))
    got = likelihood.ode_log_likelihood(data.denoiser(path), path, x0, grid(path, 40, -3.0, 2.0))
    want = summed(Normal(torch.zeros((), dtype=D), math.sqrt(1 + math.exp(-2.0))).log_prob(x0))
    torch.testing.assert_close(got, want, rtol=0, atol=5e-5)


def test_flow_likelihood_is_of_fourth_order():
    """Half the step leaves a 16th: from 16 to 32, 64 and 128 steps the slope comes close to 4."""
    mean, std, path = 0.3, 0.6, md.LinearPath()
    data = md.Gaussian(torch.full((1,), mean, dtype=D), torch.tensor(std, dtype=D))
    x0 = torch.tensor([[-0.5], [0.2], [1.0]], dtype=D)
    want = on_a_gaussian(x0, mean, std, -6.0, 6.0)
    errors = []
    for n in (16, 32, 64, 128):
        got = likelihood.ode_log_likelihood(data.denoiser(path), path, x0, grid(path, n, -6.0, 6.0))
        errors.append(float((got - want).abs().max()))
    slopes = [math.log2(worse / better) for worse, better in pairwise(errors)]
    assert slopes == [pytest.approx(4, abs=d) for d in (0.25, 0.15, 0.1)]


def test_flow_likelihood_by_hutchinson():
    """Exact on a Gaussian, without bias on the ring: 1000 probes stay within 5 SE of the trace.

    The SE comes from 20 examples of the same point with one probe each.
    """
    path = md.VP()
    data = md.Gaussian(torch.zeros(2, dtype=D), torch.tensor(0.6))
    x0, times = data.sample(3, rng=seed(11)), grid(path, 10, -8.0, 8.0)
    denoise = data.denoiser(path)
    exact = likelihood.ode_log_likelihood(denoise, path, x0, times)
    got = likelihood.ode_log_likelihood(
        denoise, path, x0, times, divergence=likelihood.hutchinson(), rng=seed(12)
    )
    torch.testing.assert_close(got, exact, **EXACT)

    x0 = torch.tensor([[0.55, 0.35]], dtype=D).expand(400, 2)  # between two of the eight
    denoise, times = RING.denoiser(path), grid(path, 20, -8.0, 8.0)
    exact = likelihood.ode_log_likelihood(denoise, path, x0[:1], times)
    got = likelihood.ode_log_likelihood(
        denoise, path, x0, times, divergence=likelihood.hutchinson(), rng=seed(13)
    )
    se = float(got.std()) / 20
    assert se > 1e-3
    assert abs(float(got.mean() - exact)) < 5 * se


def test_one_set_of_probes_serves_the_whole_flow():
    """Each of the four calls a step gets a generator in the same state; a seed fixes the result."""
    x0, path, drawn = normal(2, 2), md.VP(), []

    def divergence(field, x, rng):
        drawn.append(float(torch.rand((), generator=rng)))
        return field(x), torch.zeros(len(x), dtype=D)

    times = grid(path, 3, -4.0, 4.0)
    for k in (0, 0, 1):
        likelihood.ode_log_likelihood(
            RING.denoiser(path), path, x0, times, divergence=divergence, rng=seed(k)
        )
    assert len(drawn) == 3 * 12
    assert len(set(drawn[:24])) == 1 and len(set(drawn[24:])) == 1 and drawn[0] != drawn[-1]


def test_denoiser_is_asked_as_by_a_sampler():
    """Scalar float64 times, x_t and not z; gradients work inside no_grad; dtype is kept."""
    path, asked = md.VE(), []
    data = md.Gaussian(torch.zeros(2), torch.tensor(0.6))
    exact = data.denoiser(path)

    def denoise(x, t):
        asked.append(t)
        return exact(x, t)

    x0 = data.sample(3, rng=seed(14))
    with torch.no_grad():
        got = likelihood.ode_log_likelihood(denoise, path, x0, grid(path, 20, -8.0, 8.0))
    assert got.dtype == torch.float32 and not got.requires_grad
    assert all(t.ndim == 0 and t.dtype == D for t in asked) and len(asked) == 80
    torch.testing.assert_close(
        got, on_a_gaussian(x0, 0.0, 0.6, -8.0, 8.0), rtol=0, atol=5e-3, check_dtype=False
    )


def test_flow_likelihood_refuses_bad_input():
    x0 = normal(2, 2)

    def run(times, path=None, x0=x0):
        path = path or md.VP()
        return likelihood.ode_log_likelihood(
            RING.denoiser(path), path, x0, torch.tensor(times, dtype=D)
        )

    with pytest.raises(ValueError, match="increase strictly"):
        run([0.9, 0.1])
    with pytest.raises(ValueError, match=r"times span \[0\.0"):
        run([0.0, 0.5, 0.9])
    with pytest.raises(ValueError, match="signal > 0"):
        run([0.1, 1.0], md.Cosine())
    with pytest.raises(ValueError, match="NaN"):
        run([0.1, 0.9], x0=x0 * math.nan)


# ---- bits ----------------------------------------------------------------------------------------


def test_bits_of_a_uniform_density_are_eight():
    """eq:bits: 256 equal cells, whatever the scale of the data: density 1/2 or 1, or counting."""
    dims = 12
    for log_p, cell in ((-math.log(2), 2 / 256), (0.0, 1 / 256), (-math.log(256), 1)):
        got = likelihood.bits_per_dim(torch.tensor([dims * log_p], dtype=D), dims, cell=cell)
        assert float(got) == pytest.approx(8, abs=1e-12)
    assert float(likelihood.bits_per_dim(torch.tensor([0.0]), 3)) == pytest.approx(7)  # the default
    got = likelihood.bits_per_dim(torch.tensor([[-6.0, 3.0]], dtype=D), 2, cell=1)
    want = torch.tensor([[3.0, -1.5]], dtype=D) / math.log(2)
    torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("dims, cell", [(0, 1), (-2, 1), (2.0, 1), (2, 0), (2, -0.1)])
def test_bits_refuse_bad_input(dims, cell):
    with pytest.raises(ValueError, match="dims="):
        likelihood.bits_per_dim(torch.zeros(2), dims, cell=cell)


def test_dequantise_written_out():
    """eq:dequantise: u drawn again; float32 stays float32."""
    k = torch.arange(256, dtype=D).reshape(4, 64)
    u = torch.rand((4, 64), generator=seed(15), dtype=D)
    want = 2 * (k + u) / 256 - 1
    x0 = 2 * k / 255 - 1
    torch.testing.assert_close(likelihood.dequantise(x0, rng=seed(15)), want, **EXACT)
    got = likelihood.dequantise(x0.float(), rng=seed(15))
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-7)
    assert not torch.equal(got, likelihood.dequantise(x0.float(), rng=seed(16)))


def test_dequantised_values_fill_their_cells():
    """The cells [2 k/256 - 1, 2 (k+1)/256 - 1) tile [-1, 1); inside the values are uniform."""
    k = torch.arange(256, dtype=D)[:, None].expand(256, 500)
    y = likelihood.dequantise((2 * k / 255 - 1).contiguous(), rng=seed(17))
    place = (y + 1) * 128
    assert torch.equal(place.floor(), k)
    u = place - k
    n = u.numel()
    assert abs(float(u.mean()) - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(float((u**2).mean()) - 1 / 3) < 5 * (4 / 45 / n) ** 0.5
    assert float(u.min()) < 0.001 and float(u.max()) > 0.999


def test_density_of_dequantised_values_bounds_their_probability():
    """eq:dequantise: E log q(x + u) + log cell <= log of the mass of q in the cell, by Jensen.

    For a density that is constant on the cells both sides are equal.
    """
    q = Normal(torch.tensor(0.1, dtype=D), 0.05)
    k = torch.tensor([100, 125, 140, 160], dtype=D)
    edges = 2 * k / 256 - 1
    mass = (q.cdf(edges + 2 / 256) - q.cdf(edges)).log()
    x0 = (2 * k / 255 - 1)[:, None].expand(4, 20_000).contiguous()
    y = likelihood.dequantise(x0, rng=seed(18))
    bits = likelihood.bits_per_dim(q.log_prob(y), 1)
    truth = likelihood.bits_per_dim(mass, 1, cell=1)
    gap = bits.mean(1) - truth
    assert bool((gap > -5 * bits.std(1) / 20_000**0.5).all())
    assert float(gap[3]) > 0.01 and float(gap.max()) < 0.2

    masses = normal(256, at=19).softmax(0)
    log_q = (masses * 128).log()[((y + 1) * 128).long()]
    torch.testing.assert_close(
        likelihood.bits_per_dim(log_q, 1),
        likelihood.bits_per_dim(masses[k.long()].log(), 1, cell=1)[:, None].expand(4, 20_000),
        **EXACT,
    )


@pytest.mark.parametrize("value", [0.0, 1.01, -1.02, math.nan])
def test_dequantise_refuses_what_is_not_eight_bit(value):
    with pytest.raises(ValueError, match=r"8-bit|NaN"):
        likelihood.dequantise(torch.tensor([[1.0, value]]))
    with pytest.raises(ValueError, match="dtype"):
        likelihood.dequantise(torch.tensor([[0, 255]]))


def test_bounds_can_be_had_from_here():
    """One module for likelihoods: its names are those of bounds and its own."""
    from minidiff import bounds

    for name in ("Bound", "vlb", "continuous_vlb", "hybrid_loss", "gaussian_decoder"):
        assert getattr(likelihood, name) is getattr(bounds, name)
    assert likelihood.discretised_decoder is bounds.discretised_decoder
