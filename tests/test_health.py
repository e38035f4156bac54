"""Each alarm of minidiff.health goes off at the bug it was made for, and is silent without it.

Where a bug sits in the noising or in the sampling loop, no network is trained: exact denoisers
stand in for a perfect one. Training is needed for what only a trained network shows.
"""

import math
import re
from pathlib import Path

import pytest
import torch
from paths import D, each_path, seeded
from torch import nn

import minidiff as md
from minidiff import health

T = 50
TABLES = {"linear": md.BetaTable(md.linear_betas(T)), "cosine": md.BetaTable(md.cosine_betas(T))}
TABLE = TABLES["linear"]
X = (2 * torch.rand(400, 3, 4, dtype=D, generator=seeded(9)) - 1).clamp(-0.9, 0.9)
each_table = pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
each_seed = pytest.mark.parametrize("seed", range(3))


def alarms(findings):
    """Names of the findings that left their band."""
    return {f.name for f in findings if not f.healthy}


def value(findings, name):
    return next(f.value for f in findings if f.name == name)


# ---- a finding -----------------------------------------------------------------------------------


def test_finding_and_report():
    """Ends belong to the band, NaN to none; the report marks what is outside."""
    good, edge = health.Finding("a", 1.0, 0.5, 2.0), health.Finding("b", 2.0, 0.5, 2.0)
    bad, nan = health.Finding("c", 2.1, 0.5, 2.0), health.Finding("d", math.nan, 0.5, 2.0)
    assert [f.healthy for f in (good, edge, bad, nan)] == [True, True, False, False]
    lines = health.report([good, bad]).splitlines()
    assert lines[0].startswith("  a") and lines[1].startswith("! c") and "2.1" in lines[1]


# ---- data ----------------------------------------------------------------------------------------


def test_data_in_another_range():
    digits = md.data.digits8x8()[0]
    assert alarms(health.data(digits)) == set()
    assert alarms(health.data((digits + 1) / 2)) == {"smallest value of the data"}
    assert "largest value of the data" in alarms(health.data((digits + 1) * 127.5))
    assert alarms(health.data((digits + 1) / 2, low=0.0)) == set()


# ---- the noising ---------------------------------------------------------------------------------


def jump(table, bug=""):
    """A noising function as one writes it; with the empty name it is right."""

    def noising(x0, t, rng):
        i = ((t * table.T).round().long() - int(bug == "one step late")).clamp(min=1)
        bar = (table.alphas if bug == "alpha" else table.alpha_bars)[i - 1].reshape(-1, 1, 1)
        draw = torch.rand if bug == "rand" else torch.randn
        eps = draw(x0.shape, generator=rng, dtype=D)
        eps = eps[:1].expand_as(eps) if bug == "one noise" else eps
        eps = math.sqrt(3) * (2 * eps - 1) if bug == "flat" else eps
        noise = 1 - bar if bug == "beta" else (1 - bar).sqrt()
        x_t = bar.sqrt() * x0 + noise * eps
        return x_t, torch.randn(x0.shape, generator=rng, dtype=D) if bug == "redraw" else eps

    return noising


NOISING = {
    "beta": "mean square of the noise",
    "rand": "mean of the noise",
    "alpha": "mean square of the noise",
    "one noise": "noise shared in the batch",
    "one step late": "mean square of the noise",
    "redraw": "target is not this noise",
}


@each_table
@pytest.mark.parametrize("bug", NOISING)
def test_bugs_of_the_noising(bug, table):
    """The noise that x_t implies is not what it should be, by more than six standard errors."""
    found = health.noising(jump(table, bug), table, X, rng=seeded())
    assert NOISING[bug] in alarms(found)
    assert all(f.healthy for f in health.noising(jump(table), table, X, rng=seeded()))


@each_path
@each_seed
def test_noising_is_silent_on_every_path(path, seed):
    """Five paths, three seeds, seven numbers at ten times each: no alarm at six standard errors."""

    def noising(x0, t, rng):
        eps = md.tensors.randn_like(x0, rng)
        return md.diffuse(path(t), x0, eps), eps

    assert alarms(health.noising(noising, path, X, rng=seeded(seed))) == set()


def test_uniform_noise_of_variance_one():
    """Mean and variance are right, only the fourth power tells: 1.8 and not 3."""
    square = math.sqrt(3)

    def noising(x0, t, rng):
        eps = square * (2 * torch.rand(x0.shape, generator=rng, dtype=D) - 1)
        return md.diffuse(TABLE(t), x0, eps), eps

    found = health.noising(noising, TABLE, X, rng=seeded())
    assert alarms(found) == {"mean fourth power of the noise"}
    # standard error of a mean of 4,800 fourth powers of this noise: root of (9 - 3.24) / 4800
    assert abs(value(found, "mean fourth power of the noise") - 1.8) < 6 * 0.035


def test_noise_moments():
    """eq:noise-moments, written out at one time, and the widths of the bands."""
    t = torch.full((len(X),), 1.0, dtype=D)
    x_t, eps = jump(TABLE)(X, t, seeded(3))

    def fixed(x0, t, rng):  # the same draw at each time, at the right level
        i = (t * T).round().long()
        bar = TABLE.alpha_bars[i - 1].reshape(-1, 1, 1)
        return bar.sqrt() * x0 + (1 - bar).sqrt() * eps, eps

    found = {f.name: f for f in health.noising(fixed, TABLE, X, rng=seeded())}
    n = X.numel()
    expected = {
        "mean of the noise": (eps.mean(), 0, 1),
        "mean square of the noise": ((eps**2).mean(), 1, 2),
        "mean fourth power of the noise": ((eps**4).mean(), 3, 96),
        "noise along the data": ((eps * X).mean() / (X**2).mean().sqrt(), 0, 1),
    }
    for name, (number, middle, variance) in expected.items():
        f = found[name]
        assert f.value == pytest.approx(float(number), rel=1e-7)
        assert f.high - middle == pytest.approx(6 * math.sqrt(variance / n), rel=1e-9)
    assert torch.allclose((x_t - TABLE(1.0).signal * X) / TABLE(1.0).noise, eps)


def test_noise_moments_by_quadrature():
    """E eps^2, eps^4 and eps^8 are 1, 3 and 105 for a normal, 1, 9/5 for a flat one: integrals."""
    z = torch.linspace(-14, 14, 200_001, dtype=D)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)
    normal = [float(torch.trapezoid(z**k * density, z)) for k in (2, 4, 8)]
    assert normal == pytest.approx([1, 3, 105], rel=1e-9)
    u = torch.linspace(-math.sqrt(3), math.sqrt(3), 200_001, dtype=D)
    flat = [float(torch.trapezoid(u**k, u)) / (2 * math.sqrt(3)) for k in (2, 4)]
    assert flat == pytest.approx([1, 1.8], rel=1e-8)
    assert normal[2] - normal[1] ** 2 == pytest.approx(96, rel=1e-9)


def test_a_table_that_does_not_reach_noise():
    short = md.BetaTable(torch.linspace(1e-4, 0.02, 100, dtype=D))
    found = health.noising(jump(short), short, X, rng=seeded())
    assert alarms(found) == {"signal left at the end"}
    bar = math.exp(sum(math.log(1 - b) for b in short.betas.tolist()))
    assert value(found, "signal left at the end") == pytest.approx(math.sqrt(bar / (1 - bar)))
    assert math.sqrt(bar / (1 - bar)) == pytest.approx(0.756, abs=1e-3)


# ---- the sampling loop ---------------------------------------------------------------------------


def loop(table, bug=""):
    """DDPM's loop as one writes it; with the empty name it is right."""

    def sample(denoise, x, rng):
        betas, bars = table.betas.tolist(), [1.0, *table.alpha_bars.tolist()]
        for i in range(table.T, 0, -1):
            beta, bar, before = betas[i - 1], bars[i], bars[i - 1]
            if bug == "wraps":
                before = table.alpha_bars.tolist()[i - 2]
            x0 = denoise(x, torch.tensor((i - (bug == "told early")) / table.T, dtype=D))
            keep = math.sqrt(1 - beta) * (1 - before) / (1 - bar)
            std = math.sqrt(beta * (1 - before) / (1 - bar))
            std = {"squared": std**2, "silent": 0.0}.get(bug, std)
            std = math.sqrt(beta) if bug == "grain" and i == 1 else std
            add = math.sqrt(bar if bug == "add" else before) * beta / (1 - bar)
            x = keep * x + add * x0 + std * md.tensors.randn_like(x, rng)
        return x

    return sample


HANDED = {"mean of what is handed on", "variance of what is handed on"}
LOOPS = {
    "told early": HANDED,
    "squared": {"variance of what is handed on"},
    "silent": {"variance of what is handed on"},
    "add": {"mean of what is handed on"},
    "grain": {"end is not the last prediction"},
    "wraps": {"end is not the last prediction"},
}


@each_table
@pytest.mark.parametrize("bug", LOOPS)
def test_bugs_of_the_loop(bug, table):
    """On data that are one point the right loop is exact, so any alarm is a bug."""
    assert LOOPS[bug] & alarms(health.sampler(loop(table, bug), table, rng=seeded(1)))
    assert alarms(health.sampler(loop(table), table, count=5000, rng=seeded(1))) == set()


@each_path
@each_seed
def test_samplers_of_the_package_are_exact_for_one_point(path, seed):
    """ancestral, ddim and dpmpp_2m, on all paths: no alarm."""
    grid = md.grids.uniform(40)
    runs = {
        "ancestral": lambda d, x, rng: md.last(md.ancestral(d, path, x, grid, rng=rng)),
        "ddim": lambda d, x, rng: md.last(md.ddim(d, path, x, grid)),
        "dpmpp_2m": lambda d, x, rng: md.last(md.dpmpp_2m(d, path, x, grid)),
    }
    for name, sample in runs.items():
        found = health.sampler(sample, path, count=5000, rng=seeded(seed))
        assert alarms(found) == set(), name


def test_variance_beta_is_exact_for_wide_data():
    """eq:beta-choice: right for data of variance 1, too wide for one point."""

    def sample(d, x, rng):
        grid = md.ddpm_steps(T)
        states = md.ancestral(d, TABLE, x, grid, variance=md.forward_variance, rng=rng)
        return md.last(states)

    assert alarms(health.sampler(sample, TABLE, std=1.0, rng=seeded())) == set()
    assert alarms(health.sampler(sample, TABLE, rng=seeded())) == {"variance of what is handed on"}


def test_a_loop_that_works_with_noise():
    """Algorithm 2 as the paper writes it, with the noise that the denoiser implies."""

    def sample(denoise, x, rng):
        for i in range(T, 0, -1):
            beta, bar = TABLE.betas[i - 1], TABLE.alpha_bars[i - 1]
            before = TABLE.alpha_bars[i - 2] if i > 1 else torch.ones_like(bar)
            t = torch.tensor(i / T, dtype=D)
            eps = md.eps_from_x0(denoise(x, t), x, TABLE(t))
            mean = (x - beta / (1 - bar).sqrt() * eps) / (1 - beta).sqrt()
            std = (beta * (1 - before) / (1 - bar)).sqrt()
            x = mean + std * md.tensors.randn_like(x, rng)
        return x

    assert alarms(health.sampler(sample, TABLE, rng=seeded())) == set()


def test_one_point_walks_through_its_marginals():
    """eq:one-point: with D = a the posterior step turns N(s_t a, n_t^2) into N(s_s a, n_s^2)."""
    betas = TABLE.betas.tolist()
    bars = [1.0]
    for beta in betas:
        bars.append(bars[-1] * (1 - beta))
    for i in range(2, T + 1):
        beta, bar, before = betas[i - 1], bars[i], bars[i - 1]
        keep = math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        add = math.sqrt(before) * beta / (1 - bar)
        assert keep * math.sqrt(bar) + add == pytest.approx(math.sqrt(before), rel=1e-12)
        var = keep**2 * (1 - bar) + beta * (1 - before) / (1 - bar)
        assert var == pytest.approx(1 - before, rel=1e-9)


def test_sampler_measures_what_it_is_handed():
    """One call at a known time with a known x: mean and variance of the implied noise, by hand."""
    at = TABLE(0.5)
    x = torch.linspace(-2, 3, 1000, dtype=D).reshape(-1, 1)

    def sample(denoise, start, rng):
        return denoise(x, torch.tensor(0.5, dtype=D)) + 0.25

    found = health.sampler(sample, TABLE, point=0.3, count=1000, rng=seeded())
    r = (x - at.signal * 0.3) / at.noise
    assert value(found, "mean of what is handed on") == pytest.approx(float(r.mean()))
    assert value(found, "variance of what is handed on") == pytest.approx(float((r**2).mean()))
    assert value(found, "end is not the last prediction") == pytest.approx(0.25)


# ---- the loss ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_start_loss(prediction):
    """eq:start-loss: mean over the steps, written out for each target."""
    bars = TABLE.alpha_bars
    square = float((X**2).mean())
    table = md.BetaTable(md.linear_betas(100))
    bars = table.alpha_bars
    expected = {"eps": 1.0, "x0": square, "v": float((bars + (1 - bars) * square).mean())}
    found = health.start_loss(prediction, table, X)
    assert found == pytest.approx(expected[prediction], rel=1e-9)
    model = md.Denoiser(md.nets.MLP(4, width=8, depth=1).double(), table, prediction)
    loss = md.denoising_loss(model, X.repeat(5, 1, 1), rng=seeded()).detach()
    # the net starts at zero; the standard error of this mean is measured, four of them are allowed
    assert abs(float(loss.mean()) - found) < 4 * float(loss.std()) / math.sqrt(len(loss))


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_native_factor(prediction):
    """eq:native-loss: the loss of a wrong guess, on its own scale and through x0."""
    at = TABLE(0.4)
    s, n = float(at.signal), float(at.noise)
    expected = {"eps": s * s / (n * n), "x0": 1.0, "v": 1 / (n * n)}[prediction]
    assert float(health.native_factor(prediction, at)) == pytest.approx(expected, rel=1e-12)
    eps, guess = torch.randn(X.shape, generator=seeded(), dtype=D), 0.3 * X + 0.1
    x = s * X + n * eps
    wrong = {"eps": (x - s * guess) / n, "x0": guess, "v": s * (x - s * guess) / n - n * guess}
    right = {"eps": eps, "x0": X, "v": s * eps - n * X}
    gap = ((wrong[prediction] - right[prediction]) ** 2).mean()
    assert float(gap / ((guess - X) ** 2).mean()) == pytest.approx(expected, rel=1e-9)


def test_linear_error():
    """eq:linear-error against the best line found by least squares over many draws."""
    mix = torch.randn(4, 4, generator=seeded(2), dtype=D)
    x0 = torch.rand(200_000, 4, generator=seeded(3), dtype=D) @ mix
    at = TABLE(0.3)
    x = md.diffuse(at, x0, torch.randn(x0.shape, generator=seeded(4), dtype=D))
    design = torch.cat([x, torch.ones(len(x), 1, dtype=D)], 1)
    fit = design @ torch.linalg.lstsq(design, x0).solution
    best = float(((fit - x0) ** 2).mean())
    # relative standard error of a mean of 800,000 squares: about 0.2 %; four of them
    assert float(health.linear_error(x0, at)) == pytest.approx(best, rel=0.008)
    lam = torch.linalg.eigvalsh(torch.cov(x0.T, correction=0))
    s2, n2 = float(at.signal) ** 2, float(at.noise) ** 2
    written = float((lam * n2 / (s2 * lam + n2)).mean())
    assert float(health.linear_error(x0, at)) == pytest.approx(written, rel=1e-9)


def test_nothing_beats_the_line_for_gaussian_data():
    """For Gaussian data the conditional mean is the line; for two points it is far below."""
    at = TABLE(0.1)
    t = torch.tensor(0.1, dtype=D)
    gauss = md.Gaussian(torch.zeros(1, dtype=D), torch.tensor(0.7, dtype=D))
    line = float(health.linear_error(torch.tensor([[-0.7], [0.7]], dtype=D), at))
    assert gauss.mmse(t, TABLE) == pytest.approx(line, rel=1e-6)
    two = md.Empirical(torch.tensor([[-0.7], [0.7]], dtype=D))
    assert two.mmse(t, TABLE) < 0.9 * line


def test_curve():
    """A falling curve passes; a wrong start, a plateau and a leap are each called by name."""
    table, rng = TABLE, seeded()
    noise = 1 + 0.1 * torch.randn(400, generator=rng, dtype=D)
    at = table(torch.arange(1, T + 1, dtype=D) / T)
    line = float((at.signal**2 / at.noise**2 * health.linear_error(X, at)).mean())
    good = (noise * (0.9 * line + (1 - 0.9 * line) * (-torch.arange(400) / 30).exp())).tolist()
    good[0] = 1.0
    assert alarms(health.curve(good, "eps", table, X)) == set()
    assert alarms(health.curve([3 * v for v in good[:1]] + good[1:], "eps", table, X)) == {
        "first loss over that of 0"
    }
    assert alarms(health.curve([1.0] * 400, "eps", table, X)) == {"end over the best line"}
    leap = good[:300] + [4 * line] + good[301:]
    assert alarms(health.curve(leap, "eps", table, X)) == {"largest loss over the median"}
    assert not health.curve([1.0] * 300 + [math.nan] * 100, "eps", table, X)[1].healthy


# ---- a trained denoiser: exact ones stand in -----------------------------------------------------

POINTS = torch.tensor([[-0.8, 0.8], [0.8, 0.8], [-0.8, -0.8], [0.5, -0.8]], dtype=D)
MIXTURE = md.GaussianMixture(POINTS, torch.full((4,), 0.1, dtype=D))
TRAIN, HELD = MIXTURE.sample(4000, rng=seeded(7)), MIXTURE.sample(1500, rng=seeded(8))


def test_signal_error():
    """eq:signal-error on both sides, and one look in each third of the time."""

    def timid(x, t):
        at = TABLE(t).over(x)
        return 0.5 * x / (at.signal + at.noise)

    found = health.errors(timid, TABLE, HELD, rng=seeded(5))
    rng = seeded(5)
    t = md.losses.low_discrepancy_times(TABLE, 3 * len(HELD), rng)
    eps = torch.randn(3 * len(HELD), 2, generator=rng, dtype=D)
    at, x0 = TABLE(t).over(eps), HELD.repeat(3, 1)
    x = at.signal * x0 + at.noise * eps
    eps_hat = (x - at.signal * timid(x, t)) / at.noise
    assert torch.allclose(found.error, (at.noise**2 * (eps_hat - eps) ** 2).mean(1), rtol=1e-9)
    assert torch.equal(found.t, t)
    assert torch.bincount(found.third).tolist() == pytest.approx([1500] * 3, abs=60)


@each_table
@each_seed
def test_the_exact_denoiser_is_healthy(table, seed):
    """The conditional mean lies below the line, at the same loss on both halves of the data."""
    found = health.denoiser(MIXTURE.denoiser(table), table, HELD, TRAIN, rng=seeded(seed))
    assert alarms(found) == set()


def wrong_model(bug, table=TABLE):
    exact, other = MIXTURE.denoiser(table), MIXTURE.denoiser(TABLES["cosine"])
    return {
        "another table": other,
        "the mean only": lambda x, t: TRAIN.mean(0).expand_as(x),
        "too bold": lambda x, t: exact(x, t) + 4.0,
        "dropout": lambda x, t: nn.functional.dropout(exact(x, t), 0.1),
        "batch statistics": lambda x, t: exact(x, t) - 0.1 * exact(x, t).mean(0),
    }[bug]


@pytest.mark.parametrize(
    ("bug", "alarm"),
    [
        ("another table", "error over the best line"),
        ("the mean only", "the same, first third of time"),
        ("too bold", "excess in the last third"),
        ("dropout", "change when asked again"),
        ("batch statistics", "change when asked again"),
    ],
)
def test_sick_denoisers(bug, alarm):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = health.denoiser(wrong_model(bug), TABLE, HELD, TRAIN, rng=seeded())
    assert alarm in alarms(found)


def test_learned_by_heart():
    """The best denoiser of the training set itself, 150 digits: perfect there, poor elsewhere."""
    digits = md.data.digits8x8()[0][:300].double().reshape(300, 64)
    copy = md.Empirical(digits[:150]).denoiser(TABLE)
    found = health.denoiser(copy, TABLE, digits[150:], digits[:150], rng=seeded())
    assert "held-out over training error" in alarms(found)


def test_error_ratio():
    """eq:error-ratio written out: the same noise for both, so equal denoisers give exactly 1."""
    exact = MIXTURE.denoiser(TABLE)
    assert health.versus(exact, exact, TABLE, HELD, rng=seeded()).value == 1.0
    worse = lambda x, t: exact(x, t) + 0.2  # noqa: E731
    found = health.versus(worse, exact, TABLE, HELD, most=1.02, rng=seeded(1))
    one, two = (health.errors(d, TABLE, HELD, rng=seeded(1)).error for d in (worse, exact))
    assert found.value == pytest.approx(float(one.mean() / two.mean()), rel=1e-9)
    assert not found.healthy and found.high == 1.02


def test_shuffled_labels():
    """A model that was told the right labels is better with them than with shuffled ones."""
    labels = torch.cdist(HELD, POINTS).argmin(1)
    parts = [md.Gaussian(p, torch.tensor(0.1, dtype=D)).denoiser(TABLE) for p in POINTS]

    def given(y):
        def denoise(x, t):
            all_of_them = torch.stack([part(x, t) for part in parts])
            return all_of_them[y.repeat(len(x) // len(y)), torch.arange(len(x))]

        return denoise

    other = labels[torch.randperm(len(labels), generator=seeded())]
    right = health.versus(given(labels), given(other), TABLE, HELD, most=0.9, rng=seeded())
    deaf = health.versus(parts[0], parts[0], TABLE, HELD, most=0.9, rng=seeded())
    assert right.healthy and right.value < 0.1 and not deaf.healthy


# ---- the chain -----------------------------------------------------------------------------------


@each_table
@each_seed
def test_chain_of_an_exact_denoiser_is_healthy(table, seed):
    start = md.prior(table, (1000, 2), rng=seeded(seed)).double()
    states = md.ancestral(
        MIXTURE.denoiser(table), table, start, md.ddpm_steps(T), rng=seeded(seed + 10)
    )
    assert alarms(health.chain(states, table, TRAIN)) == set()


@each_table
def test_chain_of_ten_steps(table):
    """Few steps of the posterior variance are too narrow on their way, and right at their end."""
    start = md.prior(table, (1000, 2), rng=seeded()).double()
    grid = md.grids.uniform(10)
    states = md.ancestral(MIXTURE.denoiser(table), table, start, grid, rng=seeded(10))
    found = health.chain(states, table, TRAIN)
    assert alarms(found) == {"second moment along the chain"} and found[0].value < 0.85


def test_second_moment_written_out():
    """eq:second-moment: the ratio of both sides at a given state, and three numbers of its end."""
    at = TABLE(0.5)
    x = torch.tensor([[1.0, -2.0], [0.5, 0.25]], dtype=D)
    found = health.chain([md.State(torch.tensor(0.5, dtype=D), x, x)], TABLE, TRAIN)
    whole = at.signal**2 * (TRAIN**2).mean() + at.noise**2
    assert found[0].value == pytest.approx(float((x**2).mean() / whole), rel=1e-9)
    shift = (x.mean() - TRAIN.mean()) / TRAIN.std()
    assert found[1].value == pytest.approx(float(shift), rel=1e-9)
    assert found[2].value == pytest.approx(float(x.std() / TRAIN.std()), rel=1e-9)
    assert found[3].value == pytest.approx(float(2.0 / TRAIN.abs().max()), rel=1e-9)


def test_missing_clip_blows_up():
    """eq:blow-up: an error of a few percent in the noise is multiplied where little signal is."""
    table = md.BetaTable(md.cosine_betas(1000))
    exact = MIXTURE.denoiser(table)

    def rough(x, t):  # the noise 5 % too small, read as x0
        at = table(t)
        return (x - 0.95 * at.noise * md.eps_from_x0(exact(x, t), x, at)) / at.signal

    def states(denoise):
        start = torch.randn(200, 2, generator=seeded(), dtype=D)
        return md.ancestral(denoise, table, start, md.ddpm_steps(1000)[[0, 1, 2, 3, 4]])

    loose = list(states(rough))
    assert "second moment along the chain" in alarms(health.chain(loose, table, TRAIN))
    held = list(states(md.clip(rough, -1, 1)))
    assert "second moment along the chain" not in alarms(health.chain(held, table, TRAIN))


def test_blow_up():
    """eq:blow-up: Algorithm 2's mean, with the noise off by delta, is off by beta delta / (n root).

    At the last step of the cosine table beta is .999, so this is nearly 31.6 delta.
    """
    table = md.BetaTable(md.cosine_betas(1000))
    beta = float(table.betas[-1])
    bar, before = table.alpha_bars[-1].item(), table.alpha_bars[-2].item()
    x, eps, delta = 0.7, 0.69, 0.03

    def mean(guess):
        x0 = (x - math.sqrt(1 - bar) * guess) / math.sqrt(bar)
        keep = math.sqrt(1 - beta) * (1 - before) / (1 - bar)
        return keep * x + math.sqrt(before) * beta / (1 - bar) * x0

    off = abs(mean(eps + delta) - mean(eps))
    written = beta / math.sqrt((1 - bar) * (1 - beta)) * delta
    assert off == pytest.approx(written, rel=1e-6)
    assert written == pytest.approx(31.6 * delta, rel=2e-3)
    linear = md.BetaTable(md.linear_betas(1000))
    factor = linear.betas / ((1 - linear.alpha_bars) * linear.alphas).sqrt()
    assert int(factor.argmax()) == 999 and float(factor.max()) == pytest.approx(0.0202, rel=1e-3)


# ---- trained for two seconds ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    """Three short trainings on four clouds in the plane, with and without a planted bug."""

    def fit(bug):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = md.Denoiser(md.nets.MLP(2, width=64, depth=2), TABLE, "eps")
        ema = md.EMA(model, 0.99)

        def loss(x0, rng):
            t = md.uniform_times(TABLE, len(x0), rng)
            eps = torch.randn(x0.shape, generator=rng)
            noise = TABLE(t).over(x0).noise
            x_t = TABLE(t).over(x0).signal * x0 + (noise**2 if bug == "beta" else noise) * eps
            return ((model.net(x_t, t.float()) - eps) ** 2).mean()

        feed = md.data.batches(TRAIN.float(), 128, 0)
        rate = 1e-2 if bug == "no average" else (lambda k: 8e-3 * (1 - k / 200))
        run = md.train(loss, model, feed, steps=200, lr=rate, ema=ema)
        losses = [step.loss for step in run]
        return losses, model.eval(), ema.model

    return {name: fit(name) for name in ("", "beta", "no average")}


def test_healthy_training(runs):
    """No alarm from start to end. The start and the steps need noise of their own."""
    losses, raw, average = runs[""]
    found = health.curve(losses, "eps", TABLE, TRAIN)
    found += health.denoiser(average, TABLE, HELD.float(), TRAIN.float(), rng=seeded())
    found += [health.versus(raw, average, TABLE, HELD.float(), most=1.02, rng=seeded())]
    start = md.prior(TABLE, (500, 2), rng=seeded(1))
    states = md.ancestral(md.clip(average, -1.3, 1.3), TABLE, start, md.ddpm_steps(T), rng=seeded())
    found += health.chain(states, TABLE, TRAIN)
    assert alarms(found) == set(), health.report(found)


def test_one_seed_for_start_and_steps(runs):
    """Noise that repeats the start adds up with it: the chain is too wide on its way."""
    start = md.prior(TABLE, (500, 2), rng=seeded())
    states = md.ancestral(runs[""][2], TABLE, start, md.ddpm_steps(T), rng=seeded())
    found = health.chain(states, TABLE, TRAIN)
    assert alarms(found) == {"second moment along the chain"}
    # the first noise repeats the start, so it multiplies it by keep + root of var
    move = md.process.moves(TABLE, md.ddpm_steps(T), eta=1.0)[0]
    at = TABLE((T - 1) / T)
    whole = float(at.signal**2 * (TRAIN**2).mean() + at.noise**2)
    expected = (float(move.keep) + math.sqrt(float(move.var))) ** 2 / whole
    # the network says little there; the mean square of these 1,000 numbers errs by 4.5 %
    assert found[0].value == pytest.approx(expected, rel=0.18)
    assert found[0].value == pytest.approx(2.1, abs=0.05)


def test_trained_with_beta_for_its_root(runs):
    """Held against the right noising, the network is above the line."""
    _, _, average = runs["beta"]
    found = health.denoiser(average, TABLE, HELD.float(), TRAIN.float(), rng=seeded())
    assert "the same, first third of time" in alarms(found)


def test_without_an_average(runs):
    """At a learning rate that stays high the raw weights are worse than their average."""
    _, raw, average = runs["no average"]
    found = health.versus(raw, average, TABLE, HELD.float(), most=1.02, rng=seeded())
    assert not found.healthy and found.value > 1.02


# ---- the page ------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[1] / "book" / "health.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def recipe():
    """What the recipe of the page leaves behind, run as printed."""
    scope: dict = {}
    exec(BLOCKS[0], scope)
    return scope


def test_the_recipe_of_the_page(recipe):
    """No mark on a shipped model; with the root forgotten three marks, all of the noising."""
    assert alarms(recipe["found"]) == set() and len(recipe["found"]) == 21
    head = BLOCKS[0].split("found += md.health.sampler")[0]
    sick = head.replace("(1 - bar).sqrt() * eps", "(1 - bar) * eps")
    assert sick != head
    scope: dict = {}
    exec(sick, scope)
    noise = {"mean square of the noise", "mean fourth power of the noise"}
    assert alarms(scope["found"]) == noise | {"target is not this noise"}


def test_a_network_of_your_own(recipe):
    """A network that predicts the noise and is told the step, turned into a denoiser."""
    model, table = recipe["model"], recipe["table"]

    def net(x, step):
        t = step / table.T
        return md.eps_from_x0(model(x, t), x, table(t).over(x))

    scope = {"net": net, "table": table}
    exec(BLOCKS[2], scope)
    x = torch.randn(4, 1, 8, 8, generator=seeded())
    for t in (torch.tensor(0.5, dtype=D), torch.tensor([0.1, 0.3, 0.6, 0.9], dtype=D)):
        with torch.no_grad():
            assert torch.allclose(scope["denoise"](x, t), model(x, t), atol=1e-4)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: health.data(X, low=1.0, high=-1.0), ("low=1.0", "low < high")),
        (lambda: health.noising(jump(TABLE), TABLE, X[:2], rng=seeded()), ("24", "repeat it")),
        (lambda: health.curve([1.0], "eps", TABLE, X), ("(1,)", "at least 50")),
        (lambda: health.denoiser(lambda x, t: x, TABLE, HELD[:5], TRAIN), ("5", "at least 100")),
        (lambda: health.sampler(loop(TABLE), TABLE, count=10), ("count=10", "1,000")),
        (lambda: health.sampler(lambda d, x, rng: x, TABLE), ("never", "denoise(x, t)")),
        (lambda: health.chain([], TABLE, TRAIN), ("empty", "sampler")),
    ],
)
def test_mistakes_are_refused(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(w in str(error.value) for w in words), str(error.value)
