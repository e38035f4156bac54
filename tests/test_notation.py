"""Each row of the Rosetta table in book/notation.md, evaluated.

The row `(rosetta-NAME)=` belongs to `test_rosetta_NAME`. What papers write stands written out in
the test; what this book and diffusers call it is taken from minidiff and from the installed
diffusers. diffusers computes its tables in float32, hence the relative tolerance 1e-4 against it;
where only float64 is involved the tolerance is rounding.
"""

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

import minidiff as md

diffusers = pytest.importorskip("diffusers")

PAGE = Path(__file__).resolve().parents[1] / "book" / "notation.md"
COLUMNS = ["This book", "Ho et al.", "Song et al.", "EDM", "Flows", "diffusers"]
T = 1000
TABLE = md.BetaTable(md.linear_betas(T))
NEAR = {"rtol": 1e-4, "atol": 1e-6}  # against float32
TIGHT = {"rtol": 1e-10, "atol": 1e-12}
TIMES = torch.tensor([0.1, 0.35, 0.8], dtype=torch.float64)
RNG = torch.Generator().manual_seed(0)
X0 = torch.randn(3, 2, dtype=torch.float64, generator=RNG)
EPS = torch.randn(3, 2, dtype=torch.float64, generator=RNG)
STEPS = [1, 2, 500, T]


def close(a, b, tolerance=TIGHT):
    a, b = (torch.as_tensor(v, dtype=torch.float64) for v in (a, b))
    return bool(torch.allclose(a, b, **tolerance))


def rows():
    """Each row: name -> its lines up to the blank line that ends it."""
    found = re.findall(
        r"^\(rosetta-([a-z0-9-]+)\)=\n(.*?)(?:\n\n|\Z)", PAGE.read_text(), re.M | re.S
    )
    return dict(found)


def step_time(i):
    return torch.tensor(i / T, dtype=torch.float64)


def scheduler(name, **config):
    return getattr(diffusers, name)(**config)


def ddpm(**config):
    return scheduler("DDPMScheduler", num_train_timesteps=T, clip_sample=False, **config)


def test_rows_and_tests_are_the_same_set():
    """A row without a test fails here, a test without a row, and a row with a missing column."""
    tests = {name for name in globals() if name.startswith("test_rosetta_")}
    assert {"test_rosetta_" + name.replace("-", "_") for name in rows()} == tests
    for name, text in rows().items():
        assert re.findall(r"^: \*(.+?)\*:", text, re.M) == COLUMNS, f"row {name}"


def test_names_on_the_page_exist():
    """`XScheduler.name` is an attribute of that scheduler, `BetaTable.name` and the like of
    ours.
    """
    text = PAGE.read_text()
    theirs = re.findall(r"`(\w+Scheduler)\.(\w+)[`(]", text)
    assert len(set(theirs)) >= 15
    for cls, attribute in theirs:
        assert hasattr(scheduler(cls), attribute), f"diffusers {cls}.{attribute}"
    ours = {"Level": md.Level, "BetaTable": TABLE}
    found = re.findall(r"`(Level|BetaTable)\.(\w+)`", text)
    assert len(set(found)) == 6
    for cls, attribute in found:
        assert hasattr(ours[cls], attribute), f"minidiff {cls}.{attribute}"
    for name in (
        "drift_diffusion",
        "posterior",
        "posterior_variance",
        "forward_variance",
        "prior",
        "cfg",
    ):
        assert f"`{name}" in text or f"of `{name}`" in text
        assert hasattr(md, name)
    for name in re.findall(r'`"(\w+)"`', text):
        assert name in md.PREDICTIONS or name == "fixed_large"


# ---------------------------------------------------------------- data, noise and time


def test_rosetta_clean_data():
    """x0 in; pred_original_sample out, when the prediction is exact."""
    theirs = ddpm()
    assert "original_samples" in inspect.signature(theirs.add_noise).parameters
    i = 500
    at = TABLE(step_time(i))
    x_t = md.diffuse(at, X0, EPS)
    out = theirs.step(EPS, i - 1, x_t)
    assert close(out.pred_original_sample, X0, NEAR)
    assert close(md.to_x0("eps", EPS, x_t, at), X0)
    # flows: index 1 is data. x_t = t x_1 + (1 - t) x_0 at their t = 1
    x_1, x_0, their_t = X0, EPS, 1.0
    assert close(their_t * x_1 + (1 - their_t) * x_0, md.diffuse(md.LinearPath()(0.0), X0, EPS))


def test_rosetta_noise_draw():
    """EDM's n has standard deviation sigma; ours has 1, as diffusers' `noise`."""
    at = md.VE()(0.4)
    sigma = at.noise / at.signal
    n = sigma * EPS
    assert close(X0 + n, md.diffuse(at, X0, EPS))
    assert "noise" in inspect.signature(ddpm().add_noise).parameters
    assert close(md.diffuse(md.LinearPath()(1.0), X0, EPS), EPS)  # flows: index 0 is noise


def test_rosetta_noisy_sample():
    theirs = ddpm()
    for i in STEPS:
        at = TABLE(step_time(i))
        x_t = md.diffuse(at, X0, EPS)
        assert close(theirs.add_noise(X0, EPS, torch.full((3,), i - 1)), x_t, NEAR)
        sigma = ((1 - TABLE.alpha_bars[i - 1]) / TABLE.alpha_bars[i - 1]).sqrt()
        assert close(X0 + sigma * EPS, x_t / at.signal)  # EDM
    their_t = 0.3
    assert close(
        their_t * X0 + (1 - their_t) * EPS, md.diffuse(md.LinearPath()(1 - their_t), X0, EPS)
    )
    assert "sample" in inspect.signature(theirs.step).parameters


def test_rosetta_time():
    """Step i is t = i / T, and index i - 1 of diffusers.

    EDM's time is sigma; flows count from noise.
    """
    theirs = ddpm()
    for i in STEPS:
        assert close(TABLE(step_time(i)).signal ** 2, theirs.alphas_cumprod[i - 1], NEAR)
    flow = scheduler("FlowMatchEulerDiscreteScheduler")
    flow.set_timesteps(10)
    path = md.LinearPath()
    ours = flow.timesteps.double() / 1000
    assert close(path(ours).noise, flow.sigmas[:-1], NEAR)
    # Song: same time; the VP of their paper at t
    t = 0.4
    exponent = -0.25 * t**2 * (20 - 0.1) - 0.5 * t * 0.1
    assert close(md.VP()(t).signal, math.exp(exponent))
    # EDM: t = sigma runs to sigma_max
    assert close(md.VE(0.002, 80.0)(1.0).noise, 80.0)


def test_rosetta_direction():
    grid = md.ddpm_steps(T)
    assert grid[0] == 1 and grid[-1] == 0 and (grid.diff() < 0).all()
    theirs = scheduler("DDIMScheduler")
    theirs.set_timesteps(10)
    assert (theirs.timesteps.diff() < 0).all()
    assert ((1 - grid).diff() > 0).all()  # the time of the flow papers
    sigma = torch.stack([md.VE()(t).noise for t in grid[::100]])
    assert (sigma.diff() < 0).all() and sigma[-1] == 0


# ---------------------------------------------------------------- the path


def test_rosetta_signal():
    theirs, solver = ddpm(), scheduler("DPMSolverMultistepScheduler")
    product = 1.0
    for i, beta in enumerate(TABLE.betas.tolist(), start=1):
        product *= 1 - beta
        if i in STEPS:
            signal = TABLE(step_time(i)).signal
            assert close(signal, math.sqrt(product))
            assert close(theirs.alphas_cumprod[i - 1].sqrt(), signal, NEAR)
            assert close(solver.alpha_t[i - 1], signal, NEAR)
    for t in TIMES.tolist():
        grid = torch.linspace(0, t, 2001, dtype=torch.float64)
        integral = torch.trapezoid(0.1 + grid * (20 - 0.1), grid)  # exact for a straight line
        assert close(md.VP()(t).signal, torch.exp(-integral / 2), {"rtol": 1e-9})
        assert md.VE()(t).signal == 1
        assert close(md.LinearPath()(1 - t).signal, t)


def test_rosetta_noise_level():
    solver = scheduler("DPMSolverMultistepScheduler")
    for i in STEPS:
        noise = TABLE(step_time(i)).noise
        assert close(noise, (1 - TABLE.alpha_bars[i - 1]).sqrt())
        assert close(solver.sigma_t[i - 1], noise, {"rtol": 1e-3})  # 1 - alpha-bar in float32
    flow = scheduler("FlowMatchEulerDiscreteScheduler")
    flow.set_timesteps(7)
    assert close(md.LinearPath()(flow.sigmas[:-1].double()).noise, flow.sigmas[:-1])
    # EDM: s sigma, at the log-SNR of the VP path
    for t in TIMES:
        at = md.VP()(t)
        sigma = torch.exp(-at.log_snr / 2)
        assert close(at.signal * sigma, at.noise)
        assert close(md.VE()(t).noise, 0.002 * (80 / 0.002) ** t)
        assert close(md.LinearPath()(1 - t).noise, 1 - t)


def test_rosetta_edm_sigma():
    euler = scheduler("EulerDiscreteScheduler")  # sigmas run from step T down to step 1, then 0
    for i in STEPS:
        at = TABLE(step_time(i))
        ratio = at.noise / at.signal
        bar = TABLE.alpha_bars[i - 1]
        assert close(ratio, ((1 - bar) / bar).sqrt())
        assert close(euler.sigmas[T - i], ratio, {"rtol": 1e-3})  # 1 - alpha-bar in float32
    edm = scheduler("EDMEulerScheduler", sigma_min=0.002, sigma_max=80.0)
    edm.set_timesteps(5)
    ramp = torch.linspace(0, 1, 5, dtype=torch.float64)
    karras = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    assert close(edm.sigmas[:-1], karras, NEAR)
    at = md.VE()(TIMES)
    assert close(at.noise / at.signal, at.noise)
    flow_time = 0.3
    at = md.LinearPath()(1 - flow_time)
    assert close(at.noise / at.signal, (1 - flow_time) / flow_time)


def test_rosetta_log_snr():
    solver = scheduler("DPMSolverMultistepScheduler")
    for i in STEPS:
        bar = TABLE.alpha_bars[i - 1]
        log_snr = TABLE(step_time(i)).log_snr
        assert close(log_snr, (bar / (1 - bar)).log(), {"rtol": 1e-9})
        assert close(2 * solver.lambda_t[i - 1], log_snr, {"rtol": 1e-3, "atol": 1e-3})
    for t in TIMES:
        ve, flow = md.VE()(t), md.LinearPath()(1 - t)
        assert close(ve.log_snr, -2 * ve.noise.log())
        assert close(flow.log_snr, 2 * (t / (1 - t)).log())


def test_rosetta_beta():
    theirs = ddpm()
    assert close(theirs.betas, TABLE.betas, NEAR)
    assert close(TABLE.betas[[0, -1]], torch.tensor([1e-4, 0.02], dtype=torch.float64))
    rate = 0.1 + torch.arange(1, T + 1, dtype=torch.float64) / T * (20 - 0.1)  # Song's beta(i / T)
    # the table starts at beta(0) and not at beta(1/T): a shift of one step, 2e-5
    assert close(TABLE.betas, rate / T, {"rtol": 0, "atol": 2.1e-5})


def test_rosetta_alpha():
    assert close(TABLE.alphas, 1 - TABLE.betas)
    assert close(ddpm().alphas, TABLE.alphas, NEAR)
    assert not close(TABLE.alphas[499], TABLE(step_time(500)).signal, {"rtol": 0.1})  # not signal


def test_rosetta_alpha_bar():
    bars = TABLE.alpha_bars
    assert close(ddpm().alphas_cumprod, bars, NEAR)
    for i in STEPS:
        at = TABLE(step_time(i))
        assert close(at.signal**2, bars[i - 1])
        sigma = at.noise / at.signal
        assert close(1 / (1 + sigma**2), bars[i - 1])  # EDM, at the same log-SNR
    # Song's exponential: both at step 500; the discrete product is a little smaller
    song = math.exp(-(0.1 * 0.5 + (20 - 0.1) * 0.5**2 / 2))
    assert float(bars[499]) == pytest.approx(song, rel=0.02)


# ---------------------------------------------------------------- the equation of motion


def test_rosetta_drift():
    for t in TIMES:
        rate = 0.1 + t * (20 - 0.1)
        assert close(md.drift_diffusion(md.VP()(t))[0], -rate / 2)
        assert close(md.drift_diffusion(md.VE()(t))[0], 0.0)  # s = 1
        assert close(md.drift_diffusion(md.LinearPath()(t))[0], -1 / (1 - t))
    # Ho: between two steps the log of signal falls by -log(1 - beta) / 2, close to beta / 2
    i = 500
    middle = torch.tensor((i - 0.5) / T, dtype=torch.float64)
    f, _ = md.drift_diffusion(TABLE(middle))
    assert close(f, -T * TABLE.betas[i - 1] / 2, {"rtol": 0.01})


def test_rosetta_diffusion():
    for t in TIMES:
        assert close(md.drift_diffusion(md.VP()(t))[1], 0.1 + t * (20 - 0.1))
        ve, h = md.VE(), 1e-5
        slope = (ve(t + h).noise ** 2 - ve(t - h).noise ** 2) / (2 * h)
        g2 = md.drift_diffusion(ve(t))[1]
        assert close(g2, slope, {"rtol": 1e-6})  # a central difference
        assert close(g2, 2 * ve(t).noise * ve(t).d_noise)  # EDM, s = 1
        assert close(md.drift_diffusion(md.LinearPath()(t))[1], 2 * t / (1 - t))
        # EDM with s: 2 s^2 sigma' sigma for the VP path
        vp = md.VP()
        at = vp(t)
        sigma_dot = (at.d_noise * at.signal - at.noise * at.d_signal) / at.signal**2
        sigma = at.noise / at.signal
        assert close(md.drift_diffusion(at)[1], 2 * at.signal**2 * sigma_dot * sigma)
    i = 500
    middle = torch.tensor((i - 0.5) / T, dtype=torch.float64)
    assert close(md.drift_diffusion(TABLE(middle))[1], T * TABLE.betas[i - 1], {"rtol": 0.01})


def gaussian_score(x, at, std):
    """Score of data N(0, std^2), written out."""
    return -x / (at.signal**2 * std**2 + at.noise**2)


def test_rosetta_score():
    """Data N(0, 0.5^2): the exact denoiser turned into a score, by each formula."""
    std = 0.5
    for schedule in (md.VP(), md.LinearPath(), md.VE(), TABLE):
        at = schedule(0.4)
        x = X0
        truth = gaussian_score(x, at, std)
        denoised = at.signal * std**2 / (at.signal**2 * std**2 + at.noise**2) * x
        assert close((at.signal * denoised - x) / at.noise**2, truth)
        assert close(md.score_from_x0(denoised, x, at), truth)
        eps = (x - at.signal * denoised) / at.noise
        assert close(-eps / at.noise, truth)
        assert close(md.from_x0("score", denoised, x, at), truth)
        if isinstance(schedule, md.VE):
            assert close((denoised - x) / at.noise**2, truth)  # EDM, sigma = noise
        if isinstance(schedule, md.LinearPath):
            t = 1 - 0.4  # their time; their velocity is data minus noise
            assert close((t * (denoised - eps) - x) / (1 - t), truth)


# ---------------------------------------------------------------- what a network predicts


def their_x0(prediction_type, y, x_t, i):
    """diffusers' reading of a network output at step i."""
    return ddpm(prediction_type=prediction_type).step(y, i - 1, x_t).pred_original_sample


def test_rosetta_eps():
    i = 500
    at = TABLE(step_time(i))
    x_t = md.diffuse(at, X0, EPS)
    assert close(md.from_x0("eps", X0, x_t, at), EPS)
    assert close(their_x0("epsilon", EPS, x_t, i), md.to_x0("eps", EPS, x_t, at), NEAR)
    score = md.from_x0("score", X0, x_t, at)
    assert close(-at.noise * score, EPS)  # Song
    at = md.VE()(0.4)
    x = md.diffuse(at, X0, EPS)
    assert close((x - X0) / at.noise, md.from_x0("eps", X0, x, at))  # EDM, with D = x0


def test_rosetta_x0():
    i = 500
    at = TABLE(step_time(i))
    x_t = md.diffuse(at, X0, EPS)
    assert close(md.to_x0("x0", X0, x_t, at), X0)
    assert close(their_x0("sample", X0, x_t, i), X0, NEAR)
    bar = TABLE.alpha_bars[i - 1]
    assert close((x_t - (1 - bar).sqrt() * EPS) / bar.sqrt(), X0)  # Ho
    score = -EPS / at.noise
    assert close((x_t + at.noise**2 * score) / at.signal, X0)  # Song


def test_rosetta_v():
    i = 500
    at = TABLE(step_time(i))
    x_t = md.diffuse(at, X0, EPS)
    bar = TABLE.alpha_bars[i - 1]
    v = bar.sqrt() * EPS - (1 - bar).sqrt() * X0
    assert close(md.from_x0("v", X0, x_t, at), v)
    theirs = ddpm(prediction_type="v_prediction")
    assert close(theirs.get_velocity(X0, EPS, torch.full((3,), i - 1)), v, NEAR)
    assert close(their_x0("v_prediction", v, x_t, i), md.to_x0("v", v, x_t, at), NEAR)
    assert close(-md.from_x0(md.predictions.edm(1.0), X0, x_t, at), v)  # EDM with sigma_data 1


def test_rosetta_flow():
    t = torch.tensor(0.4, dtype=torch.float64)
    at = md.LinearPath()(t)
    x_t = md.diffuse(at, X0, EPS)
    ours = md.from_x0("flow", X0, x_t, at)
    assert close(ours, EPS - X0)
    assert close(-ours, X0 - EPS)  # flows: x_1 - x_0 with x_1 data
    theirs = scheduler("FlowMatchEulerDiscreteScheduler")
    theirs.set_timesteps(5)
    start, end = theirs.sigmas[:2].double()
    x = (1 - start) * X0 + start * EPS
    stepped = theirs.step(ours, theirs.timesteps[0], x).prev_sample
    assert close(stepped, (1 - end) * X0 + end * EPS, NEAR)  # a straight path: one step is exact
    # Song: f x - g^2 score / 2, and EDM: (x - D) / sigma per unit of sigma
    for schedule in (md.VP(), md.LinearPath(), md.VE()):
        at = schedule(t)
        x_t = md.diffuse(at, X0, EPS)
        f, g2 = md.drift_diffusion(at)
        velocity = at.d_signal * X0 + at.d_noise * EPS
        assert close(md.from_x0("flow", X0, x_t, at), velocity, {"rtol": 1e-9})
        assert close(f * x_t - g2 / 2 * (-EPS / at.noise), velocity, {"rtol": 1e-9})
    assert close((x_t - X0) / at.noise * at.d_noise, velocity)  # the last schedule is VE


def test_rosetta_edm():
    """c_skip, c_out and c_in of the paper's table 1 and of diffusers, on the VE path."""
    data = 0.5
    theirs = scheduler("EDMEulerScheduler", sigma_data=data)
    for t in TIMES:
        at = md.VE()(t)
        sigma = at.noise
        x = md.diffuse(at, X0, EPS)
        skip = data**2 / (sigma**2 + data**2)
        out = sigma * data / (sigma**2 + data**2).sqrt()
        y = (X0 - skip * x) / out
        assert close(md.from_x0("edm", X0, x, at), y, {"rtol": 1e-7})
        assert close(md.to_x0("edm", y, x, at), X0, {"rtol": 1e-7})
        assert close(theirs.precondition_outputs(x, y, sigma), X0, {"rtol": 1e-7})
        c_in = md.PREDICTIONS["edm"].c_in(at)
        assert close(c_in, 1 / (sigma**2 + data**2).sqrt())
        assert close(theirs.precondition_inputs(x, sigma), c_in * x, NEAR)


# ---------------------------------------------------------------- sampling


def textbook_posterior(i, x_t, x0):
    """Ho et al., equations 6 and 7."""
    beta, bar = TABLE.betas[i - 1], TABLE.alpha_bars[i - 1]
    before = TABLE.alpha_bars[i - 2]
    mean = (
        before.sqrt() * beta / (1 - bar) * x0 + (1 - beta).sqrt() * (1 - before) / (1 - bar) * x_t
    )
    return mean, (1 - before) / (1 - bar) * beta


def test_rosetta_posterior_mean():
    theirs = ddpm(prediction_type="sample")
    for i in (2, 500, T):
        at_t, at_s = TABLE(step_time(i)), TABLE(step_time(i - 1))
        x_t = md.diffuse(at_t, X0, EPS)
        mean, var = textbook_posterior(i, x_t, X0)
        assert close(md.posterior(at_t, at_s, x_t, X0).mean, mean)
        rng = torch.Generator().manual_seed(1)
        stepped = theirs.step(X0, i - 1, x_t, generator=rng).prev_sample
        z = torch.randn(X0.shape, dtype=X0.dtype, generator=torch.Generator().manual_seed(1))
        assert close(stepped - var.sqrt() * z, mean, {"rtol": 1e-3, "atol": 1e-4})


def test_rosetta_posterior_variance():
    small, large = ddpm(variance_type="fixed_small"), ddpm(variance_type="fixed_large")
    for i in (2, 500, T):
        at_t, at_s = TABLE(step_time(i)), TABLE(step_time(i - 1))
        tilde = textbook_posterior(i, X0, X0)[1]
        move = md.process.moves(TABLE, torch.stack([step_time(i), step_time(i - 1)]), eta=1.0)[0]
        assert close(md.posterior(at_t, at_s, X0, X0).var, tilde)
        assert close(md.posterior_variance(move), tilde)
        assert close(md.forward_variance(move), TABLE.betas[i - 1])
        assert close(small._get_variance(i - 1), tilde, {"rtol": 1e-3})
        assert close(large._get_variance(i - 1), TABLE.betas[i - 1], {"rtol": 1e-2})


def test_rosetta_eta():
    """One DDIM step with eta from step 500 to 499.

    Mean and variance as in the paper, and diffusers'.
    """
    i, eta = 500, 0.6
    theirs = scheduler("DDIMScheduler", clip_sample=False, set_alpha_to_one=True)
    theirs.set_timesteps(T)
    at_t, at_s = TABLE(step_time(i)), TABLE(step_time(i - 1))
    x_t = md.diffuse(at_t, X0, EPS)
    grid = torch.stack([step_time(i), step_time(i - 1)])
    tilde = textbook_posterior(i, x_t, X0)[1]
    z = torch.randn(X0.shape, dtype=X0.dtype, generator=torch.Generator().manual_seed(1))
    written = (
        at_s.signal * X0 + (at_s.noise**2 - eta**2 * tilde).sqrt() * EPS + eta * tilde.sqrt() * z
    )
    rng = torch.Generator().manual_seed(1)
    ours = md.last(md.ddim(lambda x, t: X0, TABLE, x_t, grid, eta=eta, rng=rng))
    assert close(ours, written, {"rtol": 1e-9})
    stepped = theirs.step(EPS, i - 1, x_t, eta=eta, variance_noise=z).prev_sample
    assert close(stepped, written, {"rtol": 1e-3, "atol": 1e-4})
    # flows: eta = 0 on the straight path is an Euler step along eps - x0
    path, s, t = md.LinearPath(), 0.3, 0.7
    x = md.diffuse(path(t), X0, EPS)
    grid = torch.tensor([t, s], dtype=torch.float64)
    euler = x + (s - t) * (EPS - X0)
    assert close(md.last(md.ddim(lambda x, t: X0, path, x, grid)), euler)


def test_rosetta_prior():
    """The standard deviation of the start, read off two draws with one seed."""

    def scale(schedule):
        shape = (2, 3)
        draw = md.prior(schedule, shape, rng=torch.Generator().manual_seed(3), dtype=torch.float64)
        z = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        assert (draw / z).std() < 1e-9
        return (draw / z).mean()

    assert close(scale(TABLE), 1.0) and close(scale(md.VP()), 1.0)
    assert ddpm().init_noise_sigma == 1.0
    assert close(scale(md.LinearPath()), 1.0)
    edm = scheduler("EDMEulerScheduler", sigma_max=80.0)
    assert close(scale(md.VE(0.002, 80.0)), edm.init_noise_sigma, NEAR)
    # the papers write sigma_max: data of variance 1 add 8e-5 of it
    assert close(scale(md.VE(0.002, 80.0)), 80.0, {"rtol": 1e-4})


def test_rosetta_guidance_scale():
    cond, uncond, scale = X0, EPS, 3.0
    t = step_time(500)
    ours = md.cfg(lambda x, t: cond, lambda x, t: uncond, scale)(X0, t)
    w = scale - 1
    assert close(ours, (1 + w) * cond - w * uncond)  # Ho and Salimans
    for edge, branch in ((0.0, uncond), (1.0, cond)):
        assert close(md.cfg(lambda x, t: cond, lambda x, t: uncond, edge)(X0, t), branch)
    # guiding x0 or eps is the same thing, since both are affine in each other with one x_t
    at = TABLE(t)
    x_t = md.diffuse(at, X0, EPS)
    eps = [md.from_x0("eps", x0, x_t, at) for x0 in (cond, uncond)]
    mixed = md.to_x0("eps", eps[1] + scale * (eps[0] - eps[1]), x_t, at)
    assert close(mixed, ours)
    # diffusers: the line of its Stable Diffusion pipeline, read from the installed file and run
    source = (
        Path(diffusers.__file__).parent / "pipelines/stable_diffusion/pipeline_stable_diffusion.py"
    )
    line = re.search(
        r"noise_pred = (noise_pred_uncond \+ self\.guidance_scale .*)", source.read_text()
    )
    assert line is not None
    names = {"noise_pred_uncond": uncond, "noise_pred_text": cond, "guidance_scale": scale}
    theirs = eval(line[1].replace("self.", ""), {"__builtins__": {}}, names)
    assert close(theirs, ours)


def test_rosetta_mask():
    known = torch.tensor([[True, False], [False, True], [True, True]])
    held = md.inpaint(lambda x, t: torch.zeros_like(x), X0, known)(EPS, step_time(500))
    assert torch.equal(held[known], X0[known]) and (held[~known] == 0).all()
    # RePaint: where the mask is 1, the step returns the diffused original, whatever the model says
    theirs = scheduler("RePaintScheduler", eta=0.0)
    theirs.set_timesteps(T, jump_length=1, jump_n_sample=1)
    outs = []
    for model_output in (EPS, -EPS):
        rng = torch.Generator().manual_seed(0)
        outs.append(
            theirs.step(model_output, 499, EPS, X0, known.double(), generator=rng).prev_sample
        )
    assert torch.equal(outs[0][known], outs[1][known])
    assert (outs[0][~known] != outs[1][~known]).all()
    assert "white" in _inpainting_doc()


def _inpainting_doc():
    """What diffusers says of its pipelines' mask, from the installed file."""
    folder = Path(diffusers.__file__).parent / "pipelines/stable_diffusion"
    text = (folder / "pipeline_stable_diffusion_inpaint.py").read_text().lower()
    found = re.search(r"white pixels in the mask\s+are repainted", text)
    return found[0] if found else ""
