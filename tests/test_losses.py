"""Losses: the draws written out, the weight of the bound, and what the minimum is."""

import math

import pytest
import torch
from torch import nn

import minidiff as md
from minidiff import losses

D = torch.float64


class Wave(nn.Module):
    """A net without meaning: smooth, nonlinear, and dependent on time and condition."""

    def forward(self, x, t, cond=None):
        t = t.reshape(-1, *(1,) * (x.ndim - 1)) if t.ndim == 1 else t
        y = torch.sin(2 * x) + t
        return y if cond is None else y + cond.reshape(-1, *(1,) * (x.ndim - 1))


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0):
    return torch.randn(*shape, dtype=D, generator=seeded(seed))


TABLE = md.BetaTable(md.linear_betas(100))
BARS = (1 - md.linear_betas(100)).cumprod(0)


def test_bound_weight():
    """eq:mean-gap, eq:bound-weight: KL = |mu - mu'|^2 / 2 sigma^2 = weight |eps - eps'|^2.

    The KL of the two reverse Gaussians (equal variance) is integrated over 20001 points of 24
    standard deviations: the trapezoid rule is exact to rounding there, 1e-9.
    """
    cases = [(100, 2, "small"), (100, 50, "small"), (100, 100, "large"), (25, 9, "large")]
    for T, t, variance in cases:
        betas = md.linear_betas(T)
        bar = (1 - betas).cumprod(0)
        beta, alpha = betas[t - 1], 1 - betas[t - 1]
        sigma2 = beta if variance == "large" else (1 - bar[t - 2]) / (1 - bar[t - 1]) * beta
        table = md.BetaTable(betas)
        at_t, at_s = table(t / T), table((t - 1) / T)
        x0, eps, guess = (torch.tensor([v], dtype=D) for v in (0.8, -1.1, -0.7))
        x_t = md.diffuse(at_t, x0, eps)
        mean = md.posterior(at_t, at_s, x_t, x0).mean
        x0_guess = (x_t - (1 - bar[t - 1]).sqrt() * guess) / bar[t - 1].sqrt()
        mean_guess = md.posterior(at_t, at_s, x_t, x0_guess).mean
        gap = float((mean - mean_guess) ** 2 / (2 * sigma2))
        weight = beta**2 / (2 * sigma2 * alpha * (1 - bar[t - 1]))
        assert gap == pytest.approx(float(weight * (eps - guess) ** 2), rel=1e-8)

        std = float(sigma2.sqrt())
        u = torch.linspace(-12, 12, 20001, dtype=D) * std + float(mean)
        log_q = -((u - mean) ** 2) / (2 * sigma2) - math.log(std * math.sqrt(2 * math.pi))
        log_p = -((u - mean_guess) ** 2) / (2 * sigma2) - math.log(std * math.sqrt(2 * math.pi))
        kl = torch.trapezoid(log_q.exp() * (log_q - log_p), u)
        assert float(kl) == pytest.approx(gap, rel=1e-9)


def test_simple_loss_written_out():
    """eq:simple: t uniform on 1..T, then eps; the mean of (net(x_t, t) - eps)^2 over entries."""
    x0 = data(6, 2, 3)
    got = md.denoising_loss(md.Denoiser(Wave(), TABLE, "eps"), x0, rng=seeded())
    rng = seeded()
    steps = torch.randint(1, 101, (6,), generator=rng)
    eps = torch.randn(6, 2, 3, generator=rng, dtype=D)
    for b in range(6):
        bar = BARS[steps[b] - 1]
        x_t = bar.sqrt() * x0[b] + (1 - bar).sqrt() * eps[b]
        want = ((torch.sin(2 * x_t) + steps[b] / 100 - eps[b]) ** 2).sum() / 6
        assert float(got[b]) == pytest.approx(float(want), rel=1e-7)  # the net gets t in float64
    assert got.shape == (6,)
    error = md.denoising_error(md.Denoiser(Wave(), TABLE, "eps"), x0, rng=seeded())
    torch.testing.assert_close(error.mean((1, 2)), got, rtol=1e-14, atol=0)


@pytest.mark.parametrize("prediction", ["x0", "v", "flow", "edm"])
def test_native_losses_written_out(prediction):
    """Other native targets on the linear path: x0, s eps - n x0, eps - x0, and EDM's."""
    x0 = data(5, 3)
    got = md.denoising_loss(md.Denoiser(Wave(), md.LinearPath(), prediction), x0, rng=seeded())
    rng = seeded()
    t = 1 - torch.rand(5, generator=rng, dtype=D)[:, None]
    eps = torch.randn(5, 3, generator=rng, dtype=D)
    x_t = (1 - t) * x0 + t * eps
    spread = (t**2 + 0.25 * (1 - t) ** 2).sqrt()
    target = {
        "x0": x0,
        "v": (1 - t) * eps - t * x0,
        "flow": eps - x0,
        "edm": (x0 - 0.25 * (1 - t) / spread**2 * x_t) / (0.5 * t / spread),
    }[prediction]
    y = torch.sin(2 * (x_t / spread if prediction == "edm" else x_t)) + t
    torch.testing.assert_close(got, ((y - target) ** 2).mean(1), rtol=1e-9, atol=0)


def test_weighted_loss_written_out():
    """A weight multiplies the squared error of x0; 1 / noise^2 signal^2 makes it the eps loss."""
    model = md.Denoiser(Wave(), TABLE, "eps")
    x0 = data(7, 2)
    plain = md.denoising_loss(model, x0, rng=seeded())
    snr = md.denoising_loss(model, x0, weight=lambda at: at.signal**2 / at.noise**2, rng=seeded())
    # |eps - eps'|^2 = (signal / noise)^2 |x0 - x0'|^2; 1e-9: 1 / noise is up to 32
    torch.testing.assert_close(snr, plain, rtol=1e-9, atol=0)
    one = md.denoising_loss(model, x0, weight=lambda at: torch.ones(()), rng=seeded())
    twice = md.denoising_loss(model, x0, weight=lambda at: torch.full((), 2.0), rng=seeded())
    torch.testing.assert_close(twice, 2 * one, rtol=1e-14, atol=0)


class Affine(nn.Module):
    """The exact eps of Gaussian data, scaled and shifted."""

    def __init__(self, schedule, mean, std, scale=1.0, shift=0.0):
        super().__init__()
        self.schedule, self.mean, self.std = schedule, mean, std
        self.scale, self.shift = scale, shift

    def forward(self, x, t, cond=None):
        at = self.schedule(t).over(x)
        total = at.signal**2 * self.std**2 + at.noise**2
        exact = at.noise * (x - at.signal * self.mean) / total  # E[eps | x_t]
        return self.scale * exact + self.shift


def test_conditional_mean_minimises():
    """eq:optimum: no net beats the conditional mean; what it leaves is the closed form.

    For data N(m, s^2): Var[eps | x_t] = (signal s)^2 / ((signal s)^2 + noise^2), averaged over
    the steps. 200,000 draws: the mean is within 4 standard errors of it, and every net is compared
    on the same draws. A shift d adds d^2 on average (the residual is independent of it).
    """
    n, mean, std = 200_000, 0.5, 0.7
    x0 = mean + std * data(n, 1)
    share = BARS * std**2 / (BARS * std**2 + 1 - BARS)

    def losses_of(**wrong):
        net = Affine(TABLE, mean, std, **wrong)
        return md.denoising_loss(md.Denoiser(net, TABLE, "eps"), x0, rng=seeded())

    best = losses_of()
    error = float(best.std() / n**0.5)
    assert abs(float(best.mean() - share.mean())) < 4 * error
    assert error < 0.002  # so that a factor of 1.01 on a loss near .25 shows
    for wrong in ({"scale": 0.95}, {"scale": 1.05}, {"shift": 0.05}, {"shift": -0.05}):
        gap = losses_of(**wrong) - best
        # the gap is positive by many of its own standard errors
        assert float(gap.mean()) > 5 * float(gap.std() / n**0.5) > 0
    gap = losses_of(shift=0.1) - best
    assert abs(float(gap.mean()) - 0.01) < 4 * float(gap.std() / n**0.5)


# ---- times ------------------------------------------------------------------------------------


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


def test_times_per_position():
    """A time sampler may return (B, L, 1): every token has its own noise level."""

    def times(schedule, n, rng):
        t = torch.rand(n, 4, 1, generator=rng, dtype=D)
        return t * torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=D)[:, None]  # token 2 stays clean

    seen = {}

    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            seen.update(x=x, t=t)
            return torch.zeros_like(x)

    x0 = data(3, 4, 2)
    error = md.denoising_error(md.Denoiser(Net(), md.Cosine(), "v"), x0, times=times, rng=seeded())
    assert error.shape == x0.shape and seen["t"].shape == (3, 4, 1)
    assert torch.equal(seen["x"][:, 2], x0[:, 2])
    rng = seeded()
    t = times(None, 3, rng)
    eps = torch.randn(3, 4, 2, generator=rng, dtype=D)
    s, n = torch.cos(math.pi / 2 * t), torch.sin(math.pi / 2 * t)
    torch.testing.assert_close(error, (s * eps - n * x0) ** 2, rtol=1e-9, atol=1e-12)


# ---- masks ------------------------------------------------------------------------------------


def test_known_entries_are_clean_and_not_scored():
    """known = True: x_t holds x0 there, and the mean runs over the other entries alone."""
    seen = []

    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            seen.append(x)
            return torch.sin(2 * x)

    model, x0 = md.Denoiser(Net(), TABLE, "eps"), data(4, 6)
    known = torch.rand(4, 6, generator=seeded(1)) < 0.5
    known[:, 0], known[:, 1] = True, False
    got = md.denoising_loss(model, x0, known=known, rng=seeded())
    error = md.denoising_error(model, x0, rng=seeded())
    assert torch.equal(seen[0][known], x0[known])
    assert torch.equal(seen[0][~known], seen[1][~known])
    want = [error[b][~known[b]].mean() for b in range(4)]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-12, atol=0)


def test_scored_decides_alone():
    """scored replaces "not known", and may be broadcast."""
    model, x0 = md.Denoiser(Wave(), TABLE, "eps"), data(4, 3, 2)
    known = torch.zeros(4, 3, 1, dtype=torch.bool)
    known[:, 0] = True
    scored = torch.tensor([[False], [True], [False]]).expand(4, 3, 1)
    got = md.denoising_loss(model, x0, known=known, scored=scored, rng=seeded())
    error = md.denoising_error(model, x0, known=known, rng=seeded())
    torch.testing.assert_close(got, error[:, 1].mean(1), rtol=1e-12, atol=0)


def test_nan_outside_the_mask_stays_outside():
    """Selection, not multiplication: a NaN of the net at an unscored entry does not spread."""

    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            return torch.cat([torch.full_like(x[:, :1], math.nan), x[:, 1:]], 1)

    x0 = data(3, 4)
    scored = torch.ones(3, 4, dtype=torch.bool)
    scored[:, 0] = False
    got = md.denoising_loss(md.Denoiser(Net(), TABLE), x0, scored=scored, rng=seeded())
    assert bool(torch.isfinite(got).all())


def test_gradients_reach_the_net():
    """d loss / d shift of the exact net is 2 E[eps' - eps] = 0 at the optimum, 2 d beside it."""
    net = Affine(TABLE, 0.0, 1.0)
    net.shift = nn.Parameter(torch.tensor(0.5, dtype=D))
    loss = md.denoising_loss(md.Denoiser(net, TABLE), data(20_000, 1), rng=seeded()).mean()
    loss.backward()
    assert float(net.shift.grad) == pytest.approx(1.0, abs=0.05)  # standard error .01


def test_conditions_pass_through():
    model, x0 = md.Denoiser(Wave(), TABLE), data(3, 2)
    cond = torch.tensor([0.0, 1.0, 2.0], dtype=D)
    with_cond = md.denoising_loss(model, x0, cond=cond, rng=seeded())
    without = md.denoising_loss(model, x0, rng=seeded())
    assert float(with_cond[0]) == pytest.approx(float(without[0]), rel=1e-12)
    assert float(with_cond[1]) != pytest.approx(float(without[1]), rel=1e-3)


def test_events_may_be_scalars():
    """x of shape (B,): the loss is the error; an unscored example is refused."""
    model, x0 = md.Denoiser(Wave(), TABLE), data(4)
    got = md.denoising_loss(model, x0, rng=seeded())
    assert torch.equal(got, md.denoising_error(model, x0, rng=seeded()))
    with pytest.raises(ValueError, match="no entry"):
        md.denoising_loss(model, x0, scored=torch.tensor([True, True, False, True]))


X0 = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("kwargs", "word"),
    [
        ({"known": torch.ones(2, 3)}, "known has dtype"),
        ({"known": torch.ones(2, 4, dtype=torch.bool)}, r"known has shape \(2, 4\)"),
        ({"known": torch.ones(2, 3, dtype=torch.bool)}, "no entry"),
        ({"scored": torch.zeros(2, 3, dtype=torch.bool)}, "no entry"),
        ({"scored": torch.zeros(2, 3)}, "scored has dtype"),
        ({"x0": torch.tensor([[0.0, math.nan]])}, "x0 holds NaN"),
        ({"x0": torch.tensor([[0, 1]])}, "x0 has dtype"),
        ({"x0": torch.zeros(0, 2)}, "x0 has shape"),
        ({"times": lambda s, n, rng: torch.full((n + 1,), 0.5)}, "shape"),
        ({"times": lambda s, n, rng: torch.full((n,), 1.5)}, "1.5"),
    ],
)
def test_losses_refuse(kwargs, word):
    kwargs = {"x0": X0} | kwargs
    with pytest.raises(ValueError, match=word):
        md.denoising_loss(md.Denoiser(Wave(), TABLE), **kwargs)


def test_the_module_and_the_flat_names_agree():
    assert losses.denoising_loss is md.denoising_loss and losses.uniform_times is md.uniform_times
