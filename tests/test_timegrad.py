"""TimeGrad: scale and memory of a window, three heads, and a rollout that has the exact law."""

import itertools
import math

import pytest
import torch
from paths import D, perturbed, seeded

import minidiff as md
from minidiff.apps import timegrad
from minidiff.apps.heads import DiagonalHead, DiffusionHead, FullHead
from minidiff.apps.recurrent import Moment, Recurrent, carry, mean_scale, usual_change
from minidiff.data import Windows
from minidiff.exact import VAR
from minidiff.nets import ChannelConvolutions

B, L, C, K, W = 5, 12, 8, 3, 6
TABLE = md.BetaTable(md.quadratic_betas(50))


def windows(seed=0, share=0.85, n=B, length=L):
    rng = seeded(seed)
    values = torch.randn(n, length, K, generator=rng, dtype=D).cumsum(1)
    observed = torch.rand(n, length, K, generator=rng) < share
    when = torch.arange(length) + 1000 * torch.arange(n)[:, None]
    return Windows(torch.where(observed, values, float("nan")), observed, when)


def encoder(seed=0, lags=(1, 4)):
    made = Recurrent(torch.ones(K, dtype=D), lags=lags, width=W, layers=2, dropout=0.0, weight=5.0)
    return perturbed(made, seed)


def head(seed=0):
    net = perturbed(ChannelConvolutions(K, W, width=4, blocks=2), seed)
    return DiffusionHead(md.Denoiser(net, TABLE, "eps"), K, md.ddpm_steps(50))


def model(seed=0):
    return timegrad.Forecaster(encoder(seed), head(seed))


# ---- the scale of a window ---------------------------------------------------------------------


def test_mean_scale_golden_values():
    """The values of the test of the published scaler (gluonts): 1, 3, 1.5 and twice the batch's
    mean, 1.00396824.., for a row of zeros and a row of which nothing was observed."""
    ones = torch.ones(50)
    rows = torch.stack([ones, torch.cat([0 * ones[:25], 3 * ones[:25]]),
                        torch.cat([2 * ones[:49], 1.5 * ones[:1]]), 0 * ones, ones])  # fmt: skip
    seen = torch.ones(5, 50, dtype=torch.bool)
    seen[1, :25], seen[2, :49], seen[4] = False, False, False
    got = mean_scale(rows.reshape(5, 50, 1), seen.reshape(5, 50, 1))
    # of 50 + 25 + 1 + 50 observed values the mean size is (50 + 75 + 1.5) / 126
    want = [1, 3, 1.5, 126.5 / 126, 126.5 / 126]
    assert got.shape == (5, 1, 1) and got.flatten().tolist() == pytest.approx(want, rel=1e-6)
    assert want[3] == pytest.approx(1.00396824, abs=5e-8)  # printed from float32


def test_mean_scale_with_a_usual_size():
    """w hours of size u are added to sum and count; then no other window has a say."""
    batch = windows()
    usual = torch.tensor([1.0, 2.0, 3.0], dtype=D)
    got = mean_scale(batch.values, batch.observed, usual=usual, weight=4.0)
    for b in range(B):
        for k in range(K):
            sizes = [abs(v) for v in batch.values[b, :, k].tolist() if not math.isnan(v)]
            want = (4 * float(usual[k]) + sum(sizes)) / (4 + len(sizes))
            assert float(got[b, 0, k]) == pytest.approx(want, rel=1e-12)
    none = torch.zeros(1, L, K, dtype=torch.bool)
    assert mean_scale(batch.values[:1], none, usual=usual, weight=4.0).flatten().tolist() == [
        1,
        2,
        3,
    ]


def test_mean_scale_refuses():
    values, seen = torch.ones(2, 3, 1), torch.zeros(2, 3, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match="observed is False everywhere"):
        mean_scale(values, seen)
    with pytest.raises(ValueError, match="weight=-1"):
        mean_scale(values, ~seen, weight=-1)
    with pytest.raises(ValueError, match="mark them unobserved"):
        mean_scale(values * float("nan"), ~seen)
    with pytest.raises(ValueError, match="bool"):
        mean_scale(values, seen.float())


def test_usual_change_skips_gaps():
    """Only pairs of observed neighbours count."""
    values = torch.tensor([[0.0, 1, float("nan"), 5, 2], [9, 9, 9, 9, 11]]).reshape(2, 5, 1)
    found = usual_change(Windows(values, ~values.isnan(), torch.arange(5).expand(2, 5)))
    assert found.tolist() == pytest.approx([((1 + 9 + 0 + 0 + 0 + 4) / 6) ** 0.5])
    with pytest.raises(ValueError, match="windows that move"):
        usual_change(Windows(values[1:, :4], ~values[1:, :4].isnan(), torch.arange(4)[None]))


def test_carry_looks_back_only():
    values = torch.tensor([float("nan"), 3, float("nan"), float("nan"), 7]).reshape(1, 5, 1)
    assert carry(values, ~values.isnan()).flatten().tolist() == [0, 3, 3, 3, 7]


# ---- the memory --------------------------------------------------------------------------------


def test_moments_hold_the_last_value_and_the_scale():
    """loc is the last observed value before the hour, scale that of the changes in the history."""
    batch, enc = windows(), encoder()
    moment = enc.unroll(batch, C)
    assert moment.state.shape == (B, L - 4, W) and moment.loc.shape == (B, L - 4, K)
    filled = carry(batch.values, batch.observed)
    assert torch.equal(moment.loc, filled[:, 3:-1])
    both = batch.observed[:, 1:C] & batch.observed[:, : C - 1]
    steps = torch.where(both, batch.values[:, 1:C] - batch.values[:, : C - 1], 0)
    want = (5.0 + steps.abs().sum(1)) / (5.0 + both.sum(1))
    assert torch.allclose(moment.scale, want[:, None].expand(moment.scale.shape))


def test_walking_agrees_with_unrolling():
    """start on the history and advance with what came is unroll, hour by hour, to 1e-12."""
    batch, enc = windows(share=2.0), encoder()
    whole = enc.unroll(batch, C)
    moment, memory = enc.start(Windows(*(p[:, :C] for p in batch)))
    for hour in range(C, L):
        for mine, theirs in zip(moment, whole, strict=True):
            assert torch.allclose(mine, theirs[:, hour - 4], atol=1e-12)
        if hour + 1 < L:
            moment, memory = enc.advance(memory, batch.values[:, hour])


def test_states_do_not_see_the_future():
    """Change everything from hour 9 on: moments up to hour 9 keep every bit, later ones move."""
    batch, enc = windows(), encoder()
    a = enc.unroll(batch, C)
    values, observed = batch.values.clone(), batch.observed.clone()
    values[:, 9:], observed[:, 9:] = 5.0, True
    b = enc.unroll(batch._replace(values=values, observed=observed), C)
    for mine, theirs in zip(a, b, strict=True):
        assert torch.equal(mine[:, : 9 - 4 + 1], theirs[:, : 9 - 4 + 1])
    assert float((a.state - b.state)[:, 9 - 4 + 1 :].detach().abs().min()) > 0


def test_states_see_each_input():
    """Lag 1, lag 4, the mask, the hour of the day and the scale each move the state."""
    batch, enc = windows(share=2.0, length=6), encoder()
    enc.weight = 1e30  # the scale, in which every value has a part, stands still
    base = enc.unroll(batch, 5).state[:, 0]  # before hour 4: one step of the GRU
    for hour, moves in ((3, True), (0, True), (1, False), (2, False)):
        values = batch.values.clone()
        values[:, hour, 0] += 1.0
        moved = enc.unroll(batch._replace(values=values), 5).state[:, 0]
        assert torch.equal(moved, base) != moves
    enc.weight = 5.0
    assert not torch.equal(enc.unroll(batch, 5).state[:, 0], base)
    enc.weight = 1e30
    observed = batch.observed.clone()
    observed[:, 3, 0] = False
    assert not torch.equal(enc.unroll(batch._replace(observed=observed), 5).state[:, 0], base)
    assert not torch.equal(enc.unroll(batch._replace(when=batch.when + 1), 5).state[:, 0], base)
    day = enc.unroll(batch._replace(when=batch.when + 24), 5).state[:, 0]
    assert torch.allclose(day, base, atol=1e-9)


# ---- heads -------------------------------------------------------------------------------------


def batch_of_targets(n=40):
    rng = seeded(2)
    target, state = (
        torch.randn(n, K, generator=rng, dtype=D),
        torch.randn(n, W, generator=rng, dtype=D),
    )
    observed = torch.rand(n, K, generator=rng) < 0.7
    return state, torch.where(observed, target, float("nan")), observed


def test_diffusion_head_written_out():
    """One time for each state, errors averaged over the observed elements, eps_hat by hand."""
    state, target, observed = batch_of_targets()
    h = head()
    got = h.loss(state, target, observed, rng=seeded(3))
    rng = seeded(3)
    steps = torch.randint(1, 51, (40,), generator=rng)
    eps = torch.randn(40, K, dtype=D, generator=rng)
    beta = torch.linspace(1e-4**0.5, 0.5**0.5, 50, dtype=D) ** 2
    bar = (1 - beta).cumprod(0)[steps - 1][:, None]
    x0 = target.nan_to_num(0.0)
    out = h.model.net(bar.sqrt() * x0 + (1 - bar).sqrt() * eps, steps.double() / 50, state)
    want = ((out - eps) ** 2)[observed].mean()
    assert got.item() == pytest.approx(want.item(), rel=1e-12)


def test_the_mask_of_the_released_code_cancels_and_ours_does_not():
    """An averaged loss, weighted by a mask and averaged again, is the loss without the mask."""
    state, target, observed = batch_of_targets()
    h = head()
    everything = torch.ones_like(observed)
    plain = h.loss(state, target.nan_to_num(0.0), everything, rng=seeded(3))
    weights = observed.all(1).double()  # theirs: one weight an hour
    cancelled = (plain * weights).sum() / weights.sum()
    assert cancelled.item() == pytest.approx(plain.item(), rel=1e-12)
    ours = h.loss(state, target, observed, rng=seeded(3))
    assert abs(ours.item() - plain.item()) > 1e-3


def test_diagonal_head_against_torch():
    state, target, observed = batch_of_targets()
    h = perturbed(DiagonalHead(K, W))
    got = h.loss(state, target, observed)
    raw = state @ h.out.weight.T + h.out.bias
    law = torch.distributions.Normal(raw[:, :K], torch.nn.functional.softplus(raw[:, K:]) + 1e-3)
    want = -law.log_prob(target.nan_to_num(0.0))[observed].mean()
    assert got.item() == pytest.approx(want.item(), rel=1e-10)


def full_law(h, state):
    """Mean and covariance of each state, by loops."""
    raw = state @ h.out.weight.T + h.out.bias
    root = torch.zeros(len(raw), K, K, dtype=D)
    place = K
    for i in range(K):
        for j in range(i + 1):
            value = raw[:, place]
            root[:, i, j] = torch.nn.functional.softplus(value) + 1e-3 if i == j else value
            place += 1
    return raw[:, :K], root @ root.mT


def test_full_head_integrates_missing_channels_out():
    """Against torch's MultivariateNormal of the observed channels of each row."""
    state, target, observed = batch_of_targets()
    h = perturbed(FullHead(K, W))
    mean, cov = (p.detach() for p in full_law(h, state))
    total = 0.0
    for i, seen in enumerate(observed):
        if bool(seen.any()):
            law = torch.distributions.MultivariateNormal(mean[i][seen], cov[i][seen][:, seen])
            total -= float(law.log_prob(target[i][seen]))
    got = h.loss(state, target, observed)
    assert got.item() == pytest.approx(total / int(observed.sum()), rel=1e-10)


@pytest.mark.parametrize("kind", [DiagonalHead, FullHead])
def test_gaussian_heads_draw_their_law(kind):
    """Mean and covariance of 40,000 draws; a standard error is 1/200 of a standard deviation."""
    h = perturbed(kind(K, W))
    state = torch.randn(1, W, generator=seeded(4), dtype=D)
    got = h.draw(state.expand(40_000, W), rng=seeded()).detach()
    if kind is FullHead:
        mean, cov = (p.detach()[0] for p in full_law(h, state))
    else:
        raw = (state @ h.out.weight.T + h.out.bias).detach()[0]
        mean = raw[:K]
        cov = torch.diag((torch.nn.functional.softplus(raw[K:]) + 1e-3) ** 2)
    std = cov.diagonal().sqrt()
    assert float(((got.mean(0) - mean) / std).abs().max()) < 4.5 / 200
    assert float(((got.T.cov() - cov) / (std[:, None] * std)).abs().max()) < 4.5 * 2**0.5 / 200


@pytest.mark.parametrize("made", [head, lambda: perturbed(DiagonalHead(K, W)),
                                  lambda: perturbed(FullHead(K, W))])  # fmt: skip
def test_unobserved_values_never_change_a_loss(made):
    """NaN, 0 or 1e30 where nothing was observed: loss and gradients equal to the last bit."""
    state, target, observed = batch_of_targets()
    found = []
    for filler in (float("nan"), 0.0, 1e30):
        h = made()
        value = h.loss(state, torch.where(observed, target, filler), observed, rng=seeded(1))
        value.backward()
        found.append((value.item(), [p.grad.clone() for p in h.parameters()]))
    for value, grads in found[1:]:
        assert value == found[0][0] and math.isfinite(value)
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0][1], strict=True))


@pytest.mark.parametrize("made", [head, lambda: DiagonalHead(K, W).double(),
                                  lambda: FullHead(K, W).double()])  # fmt: skip
def test_heads_refuse_bad_targets(made):
    state, target, observed = batch_of_targets()
    for y, seen, words in (
        (target, observed.double(), "bool"),
        (target, observed[:, :1], "they must be equal"),
        (target, torch.ones_like(observed), "mark them unobserved"),
        (target, torch.zeros_like(observed), "nothing to learn"),
    ):
        with pytest.raises(ValueError, match=words):
            made().loss(state, y, seen, rng=seeded())


# ---- whole forecasts ---------------------------------------------------------------------------


def test_the_loss_of_whole_windows():
    """Changes in units of the scale, from the longest lag on, only where the value is there."""
    batch, m = windows(), model()
    got = m.loss(batch, C, rng=seeded(5))
    moment = m.encoder.unroll(batch, C)
    y = (batch.values[:, 4:] - moment.loc) / moment.scale
    seen = batch.observed[:, 4:]
    want = m.head.loss(
        moment.state.reshape(-1, W), y.reshape(-1, K), seen.reshape(-1, K), rng=seeded(5)
    )
    assert got.item() == want.item()
    noisy = torch.where(batch.observed, batch.values, 1e20)
    assert m.loss(batch._replace(values=noisy), C, rng=seeded(5)).item() == got.item()


class Remembers:
    """An encoder that keeps the plain history as its state: what the exact denoiser needs."""

    def start(self, past):
        return self._moment(past.values), past.values

    def advance(self, memory, value):
        memory = torch.cat([memory[:, 1:], value[:, None]], 1)
        return self._moment(memory), memory

    def _moment(self, memory):
        zero = torch.zeros_like(memory[:, -1])
        return Moment(memory, zero, zero + 1)


class Exact:
    """The exact denoiser of the next value, with a Denoiser's two names."""

    def __init__(self, var, schedule):
        self.var, self.schedule = var, schedule

    def given(self, history):
        return self.var.denoiser(self.schedule, history)


VECTOR = VAR(
    torch.tensor([[[0.6, 0.2], [-0.1, 0.5]], [[0.1, 0.0], [0.2, -0.3]]], dtype=D),
    torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=D),
    torch.tensor([0.3, -0.2], dtype=D),
)


HISTORY = torch.tensor([[[1.0, -1.0], [0.5, 2.0]]], dtype=D)
PAST = Windows(HISTORY, torch.ones(1, 2, 2, dtype=torch.bool), torch.arange(2)[None])
COSINE = md.Cosine()


def grid(steps):
    """Times equally spaced in log-SNR from -12, where nothing of the data is left, and 0."""
    t = COSINE.t_of(torch.linspace(-12, 10, steps, dtype=D))
    return torch.cat([t, torch.zeros(1, dtype=D)])


def check_law(paths, mean, cov, n):
    """Mean and covariance within 4.5 standard errors of n draws, in standard deviations."""
    paths, mean = paths.reshape(n, -1), mean.flatten()
    cov = cov.reshape(len(mean), len(mean))
    std = cov.diagonal().sqrt()
    assert float(((paths.mean(0) - mean) / std).abs().max()) < 4.5 / n**0.5
    gap = (paths.T.cov() - cov) / (std[:, None] * std)
    assert float(gap.abs().max()) < 4.5 * (2 / n) ** 0.5


def test_rollout_has_the_exact_predictive_law():
    """Mean and covariance over 4 hours and 2 channels of a VAR, with the exact denoiser.

    Ten steps an hour are enough: with the exact covariance of x0 in the variance of a step, each
    step draws from the exact reverse transition, if the innovations are uncorrelated. What is left
    is Monte Carlo.
    """
    noise = torch.tensor([0.5, 1.4], dtype=D)
    var = VAR(VECTOR.coefficients, torch.diag(noise), VECTOR.offset)

    def exact(move):
        at = move.at_t
        doubt = noise * at.noise**2 / (at.signal**2 * noise + at.noise**2)
        return (move.var + move.add**2 * doubt)[None]

    n = 30_000
    drawer = DiffusionHead(Exact(var, COSINE), 2, grid(10), variance=exact)
    got = timegrad.rollout(Remembers(), drawer, PAST, 4, n=n, rng=seeded())
    assert got.shape == (n, 1, 4, 2)
    check_law(got, *var.predictive(HISTORY, 4), n)


def drawn_by_hand(value, times):
    """Mean and variance that an ancestral chain makes of N(1, value), with the exact denoiser.

    x_s = keep x + add E[x0 | x] + sqrt(var) z with E[x0 | x] = 1 + gain (x - signal), and the
    textbook coefficients of q(x_s | x_t, x0); from x ~ N(0, 1).
    """
    mean, spread = 0.0, 1.0
    for t, s in itertools.pairwise(times):
        a, b = COSINE(t), COSINE(s)
        ratio = (a.signal / b.signal) ** 2 if float(s) else a.signal**2
        add = b.signal * (1 - ratio) / a.noise**2
        keep = ratio.sqrt() * b.noise**2 / a.noise**2
        gain = a.signal * value / (a.signal**2 * value + a.noise**2)
        slope = keep + add * gain
        mean = float(slope * mean + add * (1 - gain * a.signal))
        spread = float(slope**2 * spread + b.noise**2 * (1 - ratio) / a.noise**2)
    return mean, spread


def test_rollout_with_the_usual_variance_is_narrow_by_a_known_factor():
    """Correlated innovations and the posterior variance: chapter 05's chain, hour after hour.

    Each hour's innovation loses what drawn_by_hand says, a fifth of its variance at 40 steps and
    1.1 % at 1000; the mean stays exact. The paths then have the exact law of a VAR with those
    innovations.
    """
    values, basis = torch.linalg.eigh(VECTOR.cov)
    for steps, least, most in ((40, 0.75, 0.9), (1000, 0.985, 1.0)):
        made = [drawn_by_hand(v, grid(steps)) for v in values]
        assert all(abs(mean - 1) < 1e-3 for mean, _ in made)
        kept = torch.tensor([spread for _, spread in made], dtype=D)
        assert least < float((kept / values).min()) <= float((kept / values).max()) < most
        if steps == 40:
            narrow = VAR(VECTOR.coefficients, basis @ torch.diag(kept) @ basis.T, VECTOR.offset)
    n = 20_000
    drawer = DiffusionHead(Exact(VECTOR, COSINE), 2, grid(40))
    got = timegrad.rollout(Remembers(), drawer, PAST, 4, n=n, rng=seeded())
    assert torch.allclose(narrow.predictive(HISTORY, 4).mean, VECTOR.predictive(HISTORY, 4).mean)
    check_law(got, *narrow.predictive(HISTORY, 4), n)


def test_rollout_feeds_back_its_own_draws():
    """Each path continues from its own value: hours are correlated as the series is."""
    m = model()
    past = Windows(*(p[:, :C] for p in windows()))
    got = m.forecast(past, 3, n=4, rng=seeded())
    assert got.shape == (4, B, 3, K) and bool(torch.isfinite(got).all())
    assert torch.equal(got, m.forecast(past, 3, n=4, rng=seeded()))
    assert not got.requires_grad
    rng, many = seeded(), Windows(*(p.repeat(4, *(1,) * (p.ndim - 1)) for p in past))
    moment, memory = m.encoder.start(many)
    with torch.no_grad():
        for hour in range(3):
            value = moment.loc + moment.scale * m.head.draw(moment.state, rng=rng)
            assert torch.equal(got[:, :, hour].reshape(-1, K), value)
            moment, memory = m.encoder.advance(memory, value)


GOOD = windows()


@pytest.mark.parametrize("change, words", [
    ({"observed": torch.ones(B, L, K)}, "bool"),
    ({"observed": torch.ones(B, L, 1, dtype=torch.bool)}, "one mark a value"),
    ({"observed": torch.ones(B, L, K, dtype=torch.bool)}, "mark them unobserved"),
    ({"observed": torch.zeros(B, L, K, dtype=torch.bool)}, "a whole history"),
    ({"values": torch.zeros(B, L, K + 1, dtype=D)}, "values has shape"),
    ({"when": GOOD.when.flip(1)}, "sort the rows"),
    ({"when": GOOD.when // 2}, "sort the rows"),
    ({"when": GOOD.when[:, 1:]}, "when"),
])  # fmt: skip
def test_bad_windows_are_refused(change, words):
    bad = GOOD._replace(**change)
    for call in (lambda: model().loss(bad, C, rng=seeded()), lambda: model().forecast(bad, 2, n=1)):
        with pytest.raises(ValueError, match=words):
            call()


def test_bad_arguments_are_refused():
    for horizon in (0, -1, 2.0):
        with pytest.raises(ValueError, match=f"horizon={horizon}"):
            model().forecast(GOOD, horizon, n=1)
    with pytest.raises(ValueError, match="n=0"):
        model().forecast(GOOD, 1, n=0)
    for history in (3, 13):
        with pytest.raises(ValueError, match=f"history={history} of 12 hours"):
            model().loss(GOOD, history, rng=seeded())
    with pytest.raises(ValueError, match="lags"):
        Recurrent(torch.ones(K), lags=(2, 1))


def test_the_network_on_a_ring():
    """It starts at zero; a rotation of channels, noise and state features rotates the output."""
    net = ChannelConvolutions(K, W, width=4, blocks=2)
    x, t, state = (data for data in (torch.randn(7, K), torch.rand(7), torch.randn(7, W)))
    assert float(net(x, t, state).abs().max()) == 0
    made = perturbed(net)
    x, t, state = x.double(), t.double(), state.double()
    want = made(x, t, state).roll(1, 1)
    last = made.spread[2]
    with torch.no_grad():
        last.weight.copy_(last.weight.reshape(4, K, -1).roll(1, 1).reshape(4 * K, -1).clone())
        last.bias.copy_(last.bias.reshape(4, K).roll(1, 1).flatten().clone())
    assert torch.allclose(made(x.roll(1, 1), t, state), want, atol=1e-12)
    for bad in ((x[:, :2], t, state), (x, t[:, None], state), (x, t, None), (x, t, state[:, :2])):
        with pytest.raises(ValueError, match=r"cond is|x has shape"):
            made(*bad)
