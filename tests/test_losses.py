"""Losses: the draws written out, the weight of the bound, and what the minimum is."""

import math

import pytest
import torch
from torch import nn

import minidiff as md
from minidiff import losses, schedules, times

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


# ---- times; their samplers in test_times.py ----------------------------------------------------


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


def test_importance_in_a_loss():
    """The three lines of its docstring: gradients are weighted, the history is not."""
    model = md.Denoiser(Affine(TABLE, 0.0, 1.0, scale=0.5), TABLE, "eps")
    model.net.shift = nn.Parameter(torch.tensor(0.0, dtype=D))
    importance, rng, x0 = losses.Importance(bins=5, history=2), seeded(), data(200, 1)
    for _ in range(3):
        each = md.denoising_loss(model, x0, times=importance, rng=rng)
        got = importance.reweight(each)
    assert got.shape == (200,) and len(set((got / each).detach().tolist())) >= 5
    grad = torch.autograd.grad(got.mean(), model.net.shift, retain_graph=True)[0]
    each_grad = torch.autograd.grad(each, model.net.shift, (got / each).detach() / 200)[0]
    torch.testing.assert_close(grad, each_grad, rtol=1e-12, atol=1e-15)
    same = md.denoising_loss(model, x0.float(), times=importance, rng=rng).float()
    assert importance.reweight(same).dtype == torch.float32


# ---- weights ----------------------------------------------------------------------------------

PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(0.1, 5.0),
    "table": TABLE,
    "zero terminal": md.BetaTable(schedules.zero_terminal_snr(md.linear_betas(50))),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def test_weights_written_out():
    """eq:weight-snr, eq:weight-min-snr, eq:weight-p2, eq:weight-edm at two levels, by hand.

    The first has signal 3 times the noise; the second, on a straight path, a quarter of it.
    """
    zero = torch.zeros(2, dtype=D)
    at = md.Level(torch.tensor([0.9**0.5, 0.2], dtype=D), torch.tensor([0.1**0.5, 0.8], dtype=D),
                  zero, zero)  # fmt: skip

    def same(got, *want):
        torch.testing.assert_close(got, torch.tensor(want, dtype=D), rtol=1e-12, atol=0)

    same(losses.snr(at), 9, 1 / 16)
    same(losses.min_snr()(at), 5, 1 / 16)
    same(losses.min_snr(20)(at), 9, 1 / 16)
    same(losses.min_snr(0.05)(at), 0.05, 0.05)
    same(losses.p2()(at), 9 / 10, 1 / 17)
    same(losses.p2(0.5, 16)(at), 9 / 5, 1 / 16 / math.sqrt(16 + 1 / 16))
    same(losses.p2(2, 1)(at), 9 / 100, 1 / 16 / (17 / 16) ** 2)
    same(losses.p2(0)(at), 9, 1 / 16)
    # sigma is 1/3 and 4: (sigma^2 + sd^2) / (sigma sd)^2
    same(losses.edm()(at), (1 / 9 + 1 / 4) * 36, (16 + 1 / 4) / 4)
    same(losses.edm(2.0)(at), (1 / 9 + 4) / (4 / 9), (16 + 4) / 64)
    clean = md.VP()(0.0)
    assert float(losses.min_snr(5)(clean)) == 5  # the others are not finite there
    end = md.Cosine()(1.0)
    for weight, want in ((losses.snr, 0), (losses.min_snr(), 0), (losses.p2(), 0),
                         (losses.edm(0.5), 4), (losses.elbo, 0)):  # fmt: skip
        assert float(weight(end)) == want


@each_path
def test_snr_is_the_native_eps_loss(path):
    """|eps - eps'|^2 = SNR |x0 - x0'|^2, so the weight gives the loss of an eps-prediction."""
    model, x0 = md.Denoiser(Wave(), path, "eps"), data(9, 2)

    def times(schedule, n, rng):
        return torch.linspace(0.05, 0.95, n, dtype=D)

    native = md.denoising_loss(model, x0, times=times, rng=seeded())
    snr = md.denoising_loss(model, x0, weight=losses.snr, times=times, rng=seeded())
    # 1e-8: x0 comes from eps through division by signal, down to 1e-3
    torch.testing.assert_close(snr, native, rtol=1e-8, atol=0)
    huge = md.denoising_loss(model, x0, weight=losses.min_snr(1e9), times=times, rng=seeded())
    torch.testing.assert_close(huge, native, rtol=1e-8, atol=0)
    # P2 in its own words: 1 / (k + SNR)^gamma on the squared error of eps
    p2 = md.denoising_loss(model, x0, weight=losses.p2(0.7, 2.0), times=times, rng=seeded())
    at = path(torch.linspace(0.05, 0.95, 9, dtype=D))
    factor = 1 / (2 + at.signal**2 / at.noise**2) ** 0.7
    torch.testing.assert_close(p2, factor * native, rtol=1e-8, atol=0)


@each_path
@pytest.mark.parametrize("sigma_data", [0.5, 2.0])
def test_edm_is_the_native_edm_loss(path, sigma_data):
    """eq:weight-edm: the weight cancels c_out^2, on every path."""
    prediction = md.predictions.edm(sigma_data)
    model, x0 = md.Denoiser(Wave(), path, prediction), data(9, 2)
    native = md.denoising_loss(model, x0, rng=seeded())
    weighted = md.denoising_loss(model, x0, weight=losses.edm(sigma_data), rng=seeded())
    torch.testing.assert_close(weighted, native, rtol=1e-9, atol=0)
    at = path(0.4)
    spread2 = at.noise**2 + sigma_data**2 * at.signal**2
    c_out = at.noise * sigma_data / spread2.sqrt()
    torch.testing.assert_close(losses.edm(sigma_data)(at) * c_out**2, torch.ones((), dtype=D))


@each_path
def test_elbo_weight_is_a_slope(path):
    """eq:weight-elbo: minus half the derivative of SNR, by autograd."""
    t = torch.linspace(0.0513, 0.9977, 60, dtype=D, requires_grad=True)
    at = path(t)
    snr = at.signal**2 / at.noise**2
    slope = torch.autograd.grad(snr.sum(), t)[0]
    torch.testing.assert_close(losses.elbo(path(t.detach())), -slope / 2, rtol=1e-9, atol=1e-12)


@each_path
def test_elbo_weight_integrates_to_information(path):
    """The bound's integral for Gaussian data is known: half a difference of logarithms.

    The best denoiser of N(0, d^2) leaves d^2 / (1 + SNR d^2), so the weighted error is the
    derivative of -log(1 + SNR d^2) / 2. Trapezoid rule with 40,001 points: 1e-5 at the kinks.
    """
    d2 = 0.7**2
    t = torch.linspace(0.2, 1.0, 40_001, dtype=D)
    at = path(t)
    snr = at.signal**2 / at.noise**2
    got = torch.trapezoid(losses.elbo(at) * d2 / (1 + snr * d2), t)
    want = (torch.log1p(snr[0] * d2) - torch.log1p(snr[-1] * d2)) / 2
    assert float(got) == pytest.approx(float(want), rel=2e-4)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: losses.min_snr(0.0), "gamma=0.0"),
        (lambda: losses.min_snr(math.nan), "gamma=nan"),
        (lambda: losses.p2(-0.1), "gamma=-0.1"),
        (lambda: losses.p2(1.0, 0.0), "k=0.0"),
        (lambda: losses.edm(0.0), "sigma_data=0.0"),
    ],
)
def test_weights_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()


# ---- second heads -----------------------------------------------------------------------------


class TwoHeads(nn.Module):
    """The outputs a x + b t and c x^2 + d, with the names of the four numbers as parameters."""

    def __init__(self, a=0.6, b=0.1, c=0.3, d=0.5):
        super().__init__()
        for name, value in zip("abcd", (a, b, c, d), strict=True):
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=D)))

    def forward(self, x, t, cond=None):
        t = t.reshape(-1, *(1,) * (x.ndim - 1))
        shift = 0 if cond is None else cond.reshape(t.shape)
        return md.Output(self.a * x + self.b * t, self.c * x**2 + self.d + shift)


HEADS = {"sn": losses.sn_loss, "npr": losses.npr_loss}
each_head = pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())


def test_sn_loss_written_out():
    """eq:sn-loss: times, then noise; the second output against its square, averaged."""
    x0 = data(6, 2, 3)
    got = losses.sn_loss(md.Denoiser(TwoHeads(), TABLE), x0, rng=seeded())
    rng = seeded()
    steps = torch.randint(1, 101, (6,), generator=rng)
    eps = torch.randn(6, 2, 3, generator=rng, dtype=D)
    for b in range(6):
        bar = BARS[steps[b] - 1]
        x_t = bar.sqrt() * x0[b] + (1 - bar).sqrt() * eps[b]
        want = ((0.3 * x_t**2 + 0.5 - eps[b] ** 2) ** 2).sum() / 6
        assert got[b].item() == pytest.approx(want.item(), rel=1e-10)
    assert got.shape == (6,)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "score", "edm"])
def test_npr_loss_written_out(prediction):
    """eq:npr-loss on the linear path: what each first output says about the noise, by hand."""
    x0 = data(5, 3)
    got = losses.npr_loss(md.Denoiser(TwoHeads(), md.LinearPath(), prediction), x0, rng=seeded())
    rng = seeded()
    t = 1 - torch.rand(5, generator=rng, dtype=D)[:, None]
    eps = torch.randn(5, 3, generator=rng, dtype=D)
    x = (1 - t) * x0 + t * eps
    spread = (t**2 + 0.25 * (1 - t) ** 2).sqrt()
    given = x / spread if prediction == "edm" else x
    y, second = 0.6 * given + 0.1 * t, 0.3 * given**2 + 0.5
    guess = {
        "eps": y,
        "x0": (x - (1 - t) * y) / t,
        "v": (t * x + (1 - t) * y) / (t**2 + (1 - t) ** 2),
        "flow": x + (1 - t) * y,
        "score": -t * y,
        "edm": (x - (1 - t) * (0.25 * (1 - t) / spread**2 * x + 0.5 * t / spread * y)) / t,
    }[prediction]
    want = ((second - (eps - guess) ** 2) ** 2).mean(1)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


@each_head
def test_heads_train_only_the_second_output(head):
    """No gradient to the first output, also where the target is made from it."""
    net = TwoHeads()
    head(md.Denoiser(net, TABLE), data(50, 2), rng=seeded()).mean().backward()
    assert net.a.grad is None and net.b.grad is None
    assert abs(float(net.c.grad)) > 0.01 and abs(float(net.d.grad)) > 0.001


class GaussianHeads(nn.Module):
    """For data N(0, d^2): a mean that is off by a factor, and the exact answer of a head to it."""

    def __init__(self, schedule, spread, wrong, kind):
        super().__init__()
        self.schedule, self.spread, self.wrong, self.kind = schedule, spread, wrong, kind
        self.shift = nn.Parameter(torch.zeros((), dtype=D))

    def forward(self, x, t, cond=None):
        at = self.schedule(t).over(x)
        total = at.signal**2 * self.spread**2 + at.noise**2
        mean, var = at.noise * x / total, at.signal**2 * self.spread**2 / total
        seen = mean**2 if self.kind == "sn" else ((1 - self.wrong) * mean) ** 2
        return md.Output(self.wrong * mean, seen + var + self.shift)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("wrong", [1.0, 0.6])
def test_heads_are_minimal_at_the_conditional_moments(kind, wrong):
    """SN: E[eps^2 | x_t]; NPR: E[(eps - eps')^2 | x_t] = variance + squared error of the mean.

    At the minimum the slope in a shift is 0 within 4 standard errors of 100,000 draws, which are
    below .01; and a shift d adds d^2.
    """
    net = GaussianHeads(TABLE, 0.7, wrong, kind)
    x0 = 0.7 * data(100_000, 1)
    at_best = HEADS[kind](md.Denoiser(net, TABLE), x0, rng=seeded())
    with torch.no_grad():
        net.shift += 0.1
    beside = HEADS[kind](md.Denoiser(net, TABLE), x0, rng=seeded())
    gap = (beside - at_best).detach() - 0.01  # 0.2 (second - target), which averages to 0
    error = float(gap.std() / len(x0) ** 0.5)
    assert abs(float(gap.mean())) < 4 * error < 0.01
    assert float(gap.std()) > 0.02  # the noise is there


@each_head
def test_heads_pass_conditions_and_times(head):
    """cond moves the second output of TwoHeads by 2; a scalar event is its own mean."""
    model, x0 = md.Denoiser(TwoHeads(), md.Cosine(), "v"), data(4)

    def half(schedule, n, rng):
        return torch.full((n,), 0.5, dtype=D)

    eps = torch.randn(4, generator=seeded(), dtype=D)
    x = (x0 + eps) / math.sqrt(2)
    guess = 0 if head is losses.sn_loss else (x + 0.6 * x + 0.05) / math.sqrt(2)
    got = head(model, x0, cond=torch.full((4,), 2.0, dtype=D), times=half, rng=seeded())
    want = (0.3 * x**2 + 2.5 - (eps - guess) ** 2) ** 2
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)


@each_head
@pytest.mark.parametrize("prediction", ["v", "x0", "flow", "edm"])
def test_heads_where_no_signal_is_left(head, prediction):
    """t = 1 of a path that ends at signal 0, where x_t is the noise: the first output adds nothing.

    So the target of NPR is 0, and that of SN is x_t^2.
    """

    def end(schedule, n, rng):
        return torch.ones(n, dtype=D)

    model = md.Denoiser(TwoHeads(), md.Cosine(), prediction)
    got = head(model, data(3, 2), times=end, rng=seeded())
    eps = torch.randn(3, 2, generator=seeded(), dtype=D)
    target = eps**2 if head is losses.sn_loss else 0
    torch.testing.assert_close(got, ((0.3 * eps**2 + 0.5 - target) ** 2).mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_implied_noise_needs_no_signal(prediction):
    """An output that is the noise, up to a factor, tells it at signal 0 and next to it."""
    x, y = data(2, 3), data(2, 3, seed=1)
    for t in (1.0, 1 - 1e-9, 0.5):
        at = md.Cosine()(t)
        got = losses._implied_noise(md.PREDICTIONS[prediction], y, x, at)
        want = y if prediction == "eps" else -at.noise * y
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


class Narrow(nn.Module):
    def forward(self, x, t, cond=None):
        return md.Output(x, x[:, :1])


@each_head
@pytest.mark.parametrize(
    ("net", "x0", "word"),
    [
        (Wave(), torch.zeros(2, 3), "no second output"),
        (Narrow(), torch.zeros(2, 3), r"second has shape \(2, 1\)"),
        (TwoHeads(), torch.tensor([[math.nan]]), "x0 holds NaN"),
    ],
)
def test_heads_refuse(head, net, x0, word):
    with pytest.raises(ValueError, match=word):
        head(md.Denoiser(net, TABLE), x0)


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
    assert losses.Importance is times.Importance and losses.Times is times.Times


@pytest.mark.parametrize("prediction", ["eps", "score", "v"])
@pytest.mark.parametrize("schedule", [md.Cosine(), md.LinearPath()])
def test_a_weighted_loss_survives_a_time_without_signal(schedule, prediction):
    """t within 1e-7 of 1 moves to signal 1.01e-6; other times stay where they are."""

    def late(schedule, n, rng):
        return torch.tensor([1 - 1e-7, 0.5, 1.0], dtype=D)

    seen = []

    class Net(nn.Module):
        def forward(self, x, t, cond=None):
            seen.append(t)
            return torch.zeros_like(x)

    model, x0 = md.Denoiser(Net(), schedule, prediction), data(3, 2)
    loss = md.denoising_loss(model, x0, weight=losses.min_snr(), times=late, rng=seeded())
    assert bool(torch.isfinite(loss).all())
    signal = schedule(seen[0].double()).signal
    assert signal[[0, 2]].tolist() == pytest.approx([1.01e-6] * 2, rel=1e-3)
    assert float(seen[0][1]) == 0.5
