"""CSDI: what is hidden, what the loss sees, and that imputing keeps what is known."""

import math

import pytest
import torch
from paths import D, perturbed, seeded

import minidiff as md
from minidiff.apps import csdi, targets
from minidiff.data import Windows
from minidiff.nets.series import Observed, SeriesTransformer

B, L, K = 6, 8, 4
TABLE = md.BetaTable(md.quadratic_betas(50))
GROUPS = torch.tensor([0, 0, 1, 1])


def windows(seed=0, share=0.8, n=B):
    """Random windows with a fifth of the values missing (NaN)."""
    rng = seeded(seed)
    values = torch.randn(n, L, K, generator=rng, dtype=D)
    observed = torch.rand(n, L, K, generator=rng) < share
    when = torch.arange(L).expand(n, L) + 100 * torch.arange(n)[:, None]
    return Windows(torch.where(observed, values, float("nan")), observed, when)


def model(seed=0):
    net = SeriesTransformer(K, width=16, blocks=2, heads=2, dropout=0.0)
    return md.Denoiser(perturbed(net, seed), TABLE, "eps")


# ---- strategies --------------------------------------------------------------------------------

STRATEGIES = {
    "random": targets.random_targets,
    "historical": targets.historical_targets,
    "block": targets.block_targets(2, 5, GROUPS),
    "mixed": targets.mixed_targets(targets.random_targets, targets.block_targets(2, 5, GROUPS)),
}
each_strategy = pytest.mark.parametrize("hide", STRATEGIES.values(), ids=STRATEGIES.keys())


@each_strategy
def test_known_is_part_of_what_was_observed(hide, global_state_untouched):
    """known <= observed always; something is hidden; the same seed hides the same."""
    observed = windows(n=200).observed
    known = hide(observed, seeded(1))
    assert known.dtype == torch.bool and known.shape == observed.shape
    assert not bool((known & ~observed).any()) and bool((observed & ~known).any())
    assert torch.equal(known, hide(observed, seeded(1)))
    assert not torch.equal(known, hide(observed, seeded(2)))


def test_random_targets_hide_a_uniform_share():
    """Of n observed values round(r n) are hidden, r uniform: mean 1/2, variance 1/12; every cell
    alike. 4,000 windows: the mean is within 4.5 * .289 / sqrt(4000) = .021."""
    observed = windows(n=4000, share=0.9).observed
    hidden = observed & ~targets.random_targets(observed, seeded())
    share = hidden.flatten(1).sum(1) / observed.flatten(1).sum(1)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.021)
    assert float(share.var()) == pytest.approx(1 / 12, abs=0.006)
    rate = hidden.sum(0) / observed.sum(0)  # a cell: spread sqrt(1/4 / 3600) = .0083, 32 cells
    assert float((rate - 0.5).abs().max()) < 4.5 * 0.0083


def test_historical_targets_borrow_the_gaps_of_another_example():
    """With one gap an example, what is hidden is the gap of another one, each of them as often."""
    n = 5
    observed = torch.ones(n, L, K, dtype=torch.bool)
    for i in range(n):
        observed[i, i, 0] = False
    found = torch.zeros(n, n)
    rng = seeded()
    for _ in range(2000):
        hidden = observed & ~targets.historical_targets(observed, rng)
        assert hidden.flatten(1).sum(1).tolist() == [1] * n
        found += hidden[:, :n, 0].float()
    assert float(found.diagonal().max()) == 0  # never its own
    off = found[~torch.eye(n, dtype=torch.bool)]  # 500 each; spread sqrt(2000 * 3/16) = 19.4
    assert float((off - 500).abs().max()) < 4.5 * 19.4
    with pytest.raises(ValueError, match="one example"):
        targets.historical_targets(observed[:1], rng)


def test_block_targets_hide_one_run_of_one_group():
    """Lengths 2..5 equally often, every start possible, whole groups, nothing else."""
    observed = torch.ones(8000, L, K, dtype=torch.bool)
    hidden = ~targets.block_targets(2, 5, GROUPS)(observed, seeded())
    first = hidden[:, :, 0] | hidden[:, :, 2]
    assert torch.equal(hidden[..., 0], hidden[..., 1])
    assert torch.equal(hidden[..., 2], hidden[..., 3])
    assert not bool((hidden[..., 0] & hidden[..., 2]).any())
    size = first.sum(1)
    assert bool(((first[:, 1:] & ~first[:, :-1]).sum(1) + first[:, 0] == 1).all())  # one run
    for n in range(2, 6):  # spread sqrt(8000 * 3/16) = 38.7
        here = size == n
        assert int(here.sum()) == pytest.approx(2000, abs=4.5 * 38.7)
        starts = first[here].long().argmax(1)
        assert sorted(set(starts.tolist())) == list(range(L - n + 1))
    assert int(hidden[:, :, 0].any(1).sum()) == pytest.approx(4000, abs=4.5 * 44.7)
    with pytest.raises(ValueError, match="1 <= shortest <= longest"):
        targets.block_targets(3, 2)
    for bad in (observed[:, :4], observed[..., :3]):
        with pytest.raises(ValueError, match="give windows of 5 hours"):
            targets.block_targets(2, 5, GROUPS)(bad, seeded())


def test_mixed_targets_toss_a_coin_for_each_example():
    """Two strategies that hide the first or the last channel: half each, never both."""
    first = lambda o, rng: o & (torch.arange(K) != 0)  # noqa: E731
    last = lambda o, rng: o & (torch.arange(K) != K - 1)  # noqa: E731
    observed = torch.ones(4000, L, K, dtype=torch.bool)
    hidden = ~targets.mixed_targets(first, last)(observed, seeded())
    assert bool((hidden.flatten(1).sum(1) == L).all())
    assert float(hidden[:, 0, 0].float().mean()) == pytest.approx(0.5, abs=4.5 * 0.5 / 4000**0.5)


# ---- the loss ----------------------------------------------------------------------------------


@each_strategy
def test_loss_written_out(hide):
    """The loss is one ratio of sums over observed and hidden values, with eps_hat by hand."""
    batch, m = windows(), model()
    got = csdi.loss(m, batch, hide, rng=seeded(3))
    rng = seeded(3)
    known = hide(batch.observed, rng)
    steps = torch.randint(1, 51, (B,), generator=rng)
    eps = torch.randn(B, L, K, dtype=D, generator=rng)
    beta = torch.linspace(1e-4**0.5, 0.5**0.5, 50, dtype=D) ** 2
    bar = (1 - beta).cumprod(0)[steps - 1].reshape(B, 1, 1)
    x0 = batch.values.nan_to_num(0.0)
    noisy = torch.where(known, x0, bar.sqrt() * x0 + (1 - bar).sqrt() * eps)
    out = m.net(noisy, steps.double() / 50, Observed(torch.where(known, x0, 0), known, batch.when))
    scored = (batch.observed & ~known).double()
    want = (scored * (out - eps) ** 2).sum() / scored.sum()
    assert got.item() == pytest.approx(want.item(), rel=1e-12)


@each_strategy
def test_unobserved_values_never_change_the_loss(hide):
    """Whatever stands at unobserved places, NaN or 1e30: equal to the last bit, gradients too."""
    batch, found = windows(), []
    for filler in (float("nan"), 0.0, 1e30, float("inf")):
        m = model()
        values = torch.where(batch.observed, batch.values, filler)
        value = csdi.loss(m, batch._replace(values=values), hide, rng=seeded(1))
        value.backward()
        found.append((float(value), [p.grad.clone() for p in m.parameters()]))
    for value, grads in found[1:]:
        assert value == found[0][0]
        assert all(torch.equal(a, b) for a, b in zip(grads, found[0][1], strict=True))


def test_the_loss_ignores_known_values_as_targets():
    """Doubling the network's error where it is known changes nothing: only hidden values score."""
    batch = windows()._replace(observed=torch.ones(B, L, K, dtype=torch.bool))
    batch = batch._replace(values=batch.values.nan_to_num(0.5))
    known = torch.rand(B, L, K, generator=seeded()) < 0.5

    class Wrong(torch.nn.Module):
        def __init__(self, size):
            super().__init__()
            self.size = size

        def forward(self, x, t, cond):
            return torch.where(cond.known, self.size, 0.1)

    a, b = (csdi.loss(md.Denoiser(Wrong(s), TABLE), batch, lambda o, rng: known, rng=seeded(2))
            for s in (1.0, 1e6))  # fmt: skip
    assert float(a) == float(b)


BAD = [
    ({"observed": torch.ones(B, L, K)}, "bool"),
    ({"observed": torch.ones(B, L, 1, dtype=torch.bool)}, "one mark a value"),
    ({"values": torch.full((B, L, K), float("nan"), dtype=D)}, "mark them unobserved"),
]


@pytest.mark.parametrize("bad, words", BAD)
def test_loss_refuses_bad_windows(bad, words):
    with pytest.raises(ValueError, match=words):
        csdi.loss(
            model(), windows()._replace(**bad), lambda o, rng: windows().observed, rng=seeded()
        )


def test_loss_refuses_windows_without_a_value():
    batch = windows()
    observed = batch.observed.clone()
    observed[2] = False
    with pytest.raises(ValueError, match="a whole window"):
        csdi.loss(model(), batch._replace(observed=observed), rng=seeded())


def test_loss_refuses_bad_strategies():
    """Known but not observed, a mask of another kind, or nothing hidden."""
    batch = windows()
    for known, words in (
        (torch.ones(B, L, K, dtype=torch.bool), "known & observed"),
        (torch.zeros(B, L, K), "bool"),
        (torch.zeros(B, L, 1, dtype=torch.bool), "known has shape"),
        (batch.observed, "counts no entry"),
    ):
        with pytest.raises(ValueError, match=words):
            csdi.loss(model(), batch, lambda o, rng, known=known: known, rng=seeded())


# ---- imputing ----------------------------------------------------------------------------------

TIMES = md.ddpm_steps(50)
BOTH = {"impute": csdi.impute, "replacement": csdi.impute_by_replacement}
each_way = pytest.mark.parametrize("way", BOTH.values(), ids=BOTH.keys())


@each_way
def test_known_values_come_back_bit_for_bit(way):
    batch, m = windows(), model()
    got = way(m, batch.values, batch.observed, batch.when, TIMES, n=3, rng=seeded())
    assert got.shape == (3, B, L, K) and bool(torch.isfinite(got).all())
    seen = batch.observed.expand(got.shape)
    assert torch.equal(got[seen], batch.values.expand(got.shape)[seen])
    unknown = got[:, ~batch.observed]
    assert float(unknown.std(0).min()) > 0  # samples, not one answer repeated


@each_way
def test_all_known_is_the_identity(way):
    batch = windows(share=2.0)
    got = way(model(), batch.values, batch.observed, batch.when, TIMES, n=2, rng=seeded())
    assert torch.equal(got, batch.values.expand(2, B, L, K))


def test_nothing_known_is_plain_diffusion():
    """Bit for bit the ancestral sampler on the bare denoiser, whatever the values hold."""
    batch, m = windows(), model()
    none = torch.zeros(B, L, K, dtype=torch.bool)
    got = csdi.impute(m, batch.values, none, batch.when, TIMES, n=1, rng=seeded(5))[0]
    rng = seeded(5)
    x = torch.randn(B, L, K, dtype=D, generator=rng)
    blank = m.given(Observed(torch.zeros(B, L, K, dtype=D), none, batch.when))
    assert torch.equal(got, md.last(md.ancestral(blank, TABLE, x, TIMES, rng=rng)))


def test_samples_do_not_mix_windows():
    """A window imputed beside others has the law it has alone: the net never looks across."""
    batch, m = windows(), model()
    shown = Observed(batch.values.nan_to_num(0.0), batch.observed, batch.when)
    x, t = torch.randn(B, L, K, dtype=D, generator=seeded()), torch.full((B,), 0.4, dtype=D)
    whole = m(x, t, shown)
    for i in range(B):
        alone = m(x[i : i + 1], t[:1], Observed(*(f[i : i + 1] for f in shown)))
        assert torch.allclose(whole[i : i + 1], alone, atol=1e-12)


def gaussian(length=3, k=2):
    """Mean and covariance of a small window, not diagonal."""
    root = torch.randn(length * k, length * k, generator=seeded(4), dtype=D)
    return torch.randn(
        length, k, generator=seeded(5), dtype=D
    ), root @ root.T / 6 + 0.2 * torch.eye(6)


def test_the_exact_denoiser_imputes_the_conditional_law():
    """Mean and covariance of 4,000 samples over a fine grid, against the Gaussian by hand.

    The chain of 300 steps is too narrow by about 2 % (see the recursion of chapter 05); the mean's
    error is Monte Carlo, at most 4.5 / sqrt(4000) = .07 standard deviations.
    """
    mean, cov = gaussian()
    known = torch.tensor([[[1, 0], [0, 1], [1, 0]]], dtype=torch.bool)
    values = torch.where(known, 1.0, float("nan")).to(D)
    law = md.exact.ConditionalGaussian(mean, cov, torch.where(known, 1.0, 0.0).to(D)[0], known[0])

    class Fast:
        schedule = md.Cosine()

        def given(self, shown):
            return law.denoiser(self.schedule)

    times = torch.cat(
        [md.Cosine().t_of(torch.linspace(-9, 9, 300, dtype=D)), torch.zeros(1, dtype=D)]
    )
    got = csdi.impute(
        Fast(), values, known, torch.zeros(1, 3), times, n=4000, size=4000, rng=seeded(1)
    )
    free = got[:, 0][:, ~known[0]]
    flat, seen = mean.flatten(), known.flatten()
    a, b = cov[~seen][:, seen], cov[seen][:, seen]
    want = flat[~seen] + a @ torch.linalg.solve(b, 1 - flat[seen])
    left = cov[~seen][:, ~seen] - a @ torch.linalg.solve(b, a.T)
    spread = left.diagonal().sqrt()
    assert float(((free.mean(0) - want) / spread).abs().max()) < 0.07
    ratio = free.T.cov() / (spread[:, None] * spread)
    assert float((ratio - left / (spread[:, None] * spread)).abs().max()) < 0.13


def test_replacement_with_the_exact_denoiser_is_biased():
    """Two values with correlation rho, one known: the samples' mean is short of rho times it."""
    rho, n = 0.9, 4000
    cov = torch.tensor([[1, rho], [rho, 1]], dtype=D)
    mixture = md.GaussianMixture.full(torch.zeros(1, 1, 2, dtype=D), cov[None])

    class Blind:
        schedule = md.Cosine()

        def given(self, shown):
            assert not bool(shown.known.any())
            return mixture.denoiser(self.schedule)

    times = torch.cat(
        [md.Cosine().t_of(torch.linspace(-9, 9, 200, dtype=D)), torch.zeros(1, dtype=D)]
    )
    values = torch.tensor([[[2.0, float("nan")]]], dtype=D)
    known = torch.tensor([[[True, False]]])
    got = csdi.impute_by_replacement(
        Blind(), values, known, torch.zeros(1, 1), times, n=n, size=n, rng=seeded()
    )
    free = got[:, 0, 0, 1]
    assert bool((got[:, 0, 0, 0] == 2).all())
    assert float(free.mean()) < 2 * rho - 10 * float(free.std()) / math.sqrt(n)


@each_way
@pytest.mark.parametrize("bad, words", [
    ({"known": torch.ones(B, L, K)}, "bool"),
    ({"known": torch.ones(B, L, 1, dtype=torch.bool)}, "one mark a value"),
    ({"known": torch.ones(B, L, K, dtype=torch.bool)}, "mark them unobserved"),
    ({"when": torch.zeros(B)}, "when"),
    ({"values": torch.zeros(B, L, dtype=D)}, "values"),
    ({"n": 0}, "n=0"),
    ({"size": 0}, "size=0"),
])  # fmt: skip
def test_imputing_refuses_bad_input(way, bad, words):
    batch = windows()
    good = {
        "values": batch.values,
        "known": batch.observed,
        "when": batch.when,
        "times": TIMES,
        "n": 1,
        "size": 9,
    }
    with pytest.raises(ValueError, match=words):
        way(model(), **(good | bad))


# ---- the network -------------------------------------------------------------------------------


def test_the_network_starts_at_zero_and_reads_only_what_is_known():
    net = SeriesTransformer(K, width=16, blocks=2, heads=2)
    batch = windows()
    x, t = torch.randn(B, L, K, generator=seeded()), torch.rand(B, generator=seeded())
    shown = Observed(batch.values.float(), batch.observed, batch.when)  # NaN where unknown
    assert float(net(x, t, shown).abs().max()) == 0
    m = model().net
    base = m(x.double(), t.double(), shown)
    assert bool(torch.isfinite(base).all())
    other = torch.where(batch.observed, x + 7, x).double()  # a known value of x_t is never read
    assert torch.equal(m(other, t.double(), shown), base)


def test_channels_may_be_renamed():
    """Permuting the channels with their embeddings permutes the output: no order is built in."""
    net, order = model().net, torch.tensor([2, 0, 3, 1])
    batch = windows()
    x, t = torch.randn(B, L, K, dtype=D, generator=seeded()), torch.rand(B, dtype=D)
    shown = Observed(batch.values, batch.observed, batch.when)
    want = net(x, t, shown)[..., order]
    with torch.no_grad():
        net.names.copy_(net.names[order].clone())
    moved = Observed(shown.values[..., order], shown.known[..., order], shown.when)
    assert torch.allclose(net(x[..., order], t, moved), want, atol=1e-10)


def test_the_network_knows_the_hour_of_the_day_only():
    """A day later is the same input; an hour later is not."""
    net, batch = model().net, windows()
    x, t = torch.randn(B, L, K, dtype=D, generator=seeded()), torch.rand(B, dtype=D)
    outs = [net(x, t, Observed(batch.values, batch.observed, batch.when + h)) for h in (0, 24, 1)]
    assert torch.allclose(outs[0], outs[1], atol=1e-9)
    assert float((outs[0] - outs[2]).abs().max()) > 1e-3


@pytest.mark.parametrize("shape", [(3, 1, K), (3, L, 1), (1, 1, 1)])
def test_one_hour_or_one_channel(shape):
    """The attention that has nothing to look at is left out."""
    n, length, k = shape
    net = perturbed(SeriesTransformer(k, width=16, blocks=1, heads=2))
    shown = Observed(
        torch.zeros(shape), torch.zeros(shape, dtype=torch.bool), torch.zeros(n, length)
    )
    out = net(torch.randn(shape, dtype=D, generator=seeded()), torch.rand(n, dtype=D), shown)
    assert out.shape == shape and bool(torch.isfinite(out).all())


@pytest.mark.parametrize("change, words", [
    ({"x": torch.zeros(B, L, K + 1)}, "x has shape"),
    ({"t": torch.zeros(B, 1)}, "x has shape"),
    ({"cond": None}, "Observed"),
    ({"known": torch.zeros(B, L, K)}, "bool"),
    ({"known": torch.zeros(B, L, 1, dtype=torch.bool)}, "cond.known"),
    ({"values": torch.zeros(B, L, 1)}, "cond.values"),
    ({"when": torch.zeros(B)}, "cond.when"),
])  # fmt: skip
def test_the_network_refuses_bad_input(change, words):
    net = SeriesTransformer(K, width=16, blocks=1, heads=2)
    shown = {"values": torch.zeros(B, L, K), "known": torch.zeros(B, L, K, dtype=torch.bool),
                 "when": torch.zeros(B, L)}  # fmt: skip
    shown |= {k: v for k, v in change.items() if k in shown}
    with pytest.raises(ValueError, match=words):
        net(change.get("x", torch.zeros(B, L, K)), change.get("t", torch.zeros(B)),
            change.get("cond", Observed(**shown)))  # fmt: skip
    with pytest.raises(ValueError, match="heads"):
        SeriesTransformer(K, width=16, heads=3)
