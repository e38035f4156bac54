"""Bad input, one row a mistake: the call must raise a ValueError, at once, that helps.

Each row: what a student might type, the argument that the message must name, the offending value
as it must appear, and a word of the remedy. Nothing is consumed or iterated here: samplers and
train must refuse when they are called.
"""
# ruff: noqa: E501 (a table is read in rows)

import inspect
import math

import pytest
import torch
from torch import nn

import minidiff as md

VP, TABLE = md.VP(), md.BetaTable(md.linear_betas(100))
AT, CLEAN = VP(0.5), VP(0.0)
X, WIDE = torch.zeros(2, 3), torch.zeros(2, 4)
INTS, NAN = torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), math.nan)
KNOWN = torch.ones(2, 3, dtype=torch.bool)
TIMES = md.grids.uniform(4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x, t, cond=None):
        return self.scale * x


NET = Net()
MODEL = md.Denoiser(NET, TABLE, "eps")


def keep(x, t):
    return x


def loss(x, rng):
    return md.denoising_loss(MODEL, x, rng=rng).mean()


def train(**change):
    return md.train(loss, NET, lambda k: X, **({"steps": 3, "lr": 0.1} | change))


# (call, argument, value, remedy)
TABLE_OF_MISTAKES = {
    # schedules and their tables
    "betas of 1000 steps for 10": (lambda: md.linear_betas(10), "T=10", "2", "cosine_betas"),
    "no steps": (lambda: md.cosine_betas(0), "T=", "0", "whole number"),
    "fractional steps": (lambda: md.sqrt_betas(10.5), "T=", "10.5", "whole number"),
    "percent for betas": (lambda: md.BetaTable(torch.tensor([1.0, 2.0])), "betas", "2.0", "(0, 1)"),
    "alpha-bars for betas": (lambda: md.BetaTable(torch.ones(3)), "betas", "1.0", "(0, 1)"),
    "a matrix of betas": (lambda: md.BetaTable(torch.ones(2, 2) / 2), "betas", "(2, 2)", "vector"),
    "VP's ends swapped": (lambda: md.VP(20, 0.1), "beta_min=20", "0.1", "<"),
    "VE from zero": (lambda: md.VE(0.0, 80), "sigma_min=0", "80", "<"),
    "first above last": (lambda: md.quadratic_betas(9, first=0.5, last=0.1), "first=0.5", "0.1", "rise"),
    "last beta 1": (lambda: md.quadratic_betas(9, last=1.5), "last=1.5", "1.5", "below 1"),
    "a step for a time": (lambda: TABLE(torch.tensor(50)), "t ", "int64", "step / T"),
    "time 2": (lambda: VP(2.0), "t ", "2.0", "[0, 1]"),
    "negative time": (lambda: TABLE(-0.5), "t ", "-0.5", "[0, 1]"),
    "NaN time": (lambda: VP(torch.tensor([0.1, math.nan])), "t ", "nan", "[0, 1]"),
    "noisier than the path": (lambda: md.VE().t_of(-20.0), "log_snr", "-20", "above"),
    "NaN log-SNR": (lambda: VP.t_of(math.nan), "log_snr", "NaN", "inf"),
    "a sigmoid upside down": (lambda: md.sigmoid_betas(9, start=3.0, end=-3.0), "start=3.0", "-3.0", "<"),
    "alpha-bars to rescale": (lambda: md.zero_terminal_snr(torch.ones(3)), "betas", "1.0", "(0, 1)"),
    "a table that keeps the data": (
        lambda: md.schedules.check_reaches_noise(md.BetaTable(torch.linspace(1e-4, 0.02, 100))),
        "schedule", "0.7", "linear_betas"),
    # grids
    "one step with two ends": (lambda: md.grids.linspaced(100, 1), "n=1", "T=100", "from 2"),
    "no grid steps": (lambda: md.ddpm_steps(0), "n=", "0", "whole number"),
    "more steps than the table": (lambda: md.grids.strided(100, 200), "n=200", "T=100", "no more"),
    "a grid upwards": (lambda: md.grids.uniform(4, start=0.0, end=1.0), "times", "0.0", "decrease"),
    "karras beyond the path": (
        lambda: md.grids.karras(md.VE(), 4, sigma_max=200.0), "sigma_max=200.0", "80", "at most"),
    "log-SNR upside down": (lambda: md.grids.log_snr(VP, 4, low=8, high=2), "high=2", "8", "above"),
    # process
    "eps of another shape": (lambda: md.diffuse(AT, X, WIDE), "eps", "(2, 4)", "equal"),
    "x0 of another shape": (lambda: md.posterior(AT, CLEAN, X, WIDE), "x0", "(2, 4)", "equal"),
    "s and t swapped": (lambda: md.posterior(CLEAN, AT, X, X), "at_t", "at_s", "swap"),
    "the same level twice": (lambda: md.step_forward(AT, AT, X, X), "at_t", "at_s", "s < t"),
    "five times for two": (
        lambda: md.diffuse(VP(torch.full((5,), 0.5)), X, X), "(5,)", "(2, 3)", "give shape"),
    "the SDE of VP at 0": (lambda: md.drift_diffusion(CLEAN), "at ", "noise 0", "inside"),
    # predictions
    "unknown prediction": (lambda: md.to_x0("epsilon", X, X, AT), "prediction=", "epsilon", "eps"),
    "y of another shape": (lambda: md.to_x0("v", WIDE, X, AT), "y ", "(2, 4)", "equal"),
    "a column for x0": (lambda: md.score_from_x0(X[:, :1], X, AT), "x0", "(2, 1)", "equal"),
    "noise of clean data": (lambda: md.eps_from_x0(X, X, CLEAN), "at ", "noise 0", "t > 0"),
    "eps where signal is 0": (
        lambda: md.to_x0("eps", X, X, md.Cosine()(1.0)), "signal=0", "1e-06", "predict"),
    "spread 0": (lambda: md.predictions.edm(0), "sigma_data=", "0", "standard deviation"),
    # denoisers
    "a network for a name": (lambda: md.Denoiser(NET, VP, "noise"), "prediction=", "noise", "eps"),
    "steps into a model": (lambda: MODEL(X, torch.tensor([5, 7])), "t ", "int64", "step / T"),
    "a step into a model": (lambda: MODEL(X, torch.tensor(500)), "t ", "500", "[0, 1]"),
    "times for other rows": (lambda: MODEL(X, torch.rand(3)), "(3,)", "(2, 3)", "give shape"),
    "schedule and net swapped": (lambda: md.Denoiser(VP, NET), "schedule", "Net", "Denoiser(net, schedule"),
    # losses
    "pixels of 8 bits": (lambda: md.denoising_loss(MODEL, INTS), "x0", "int64", "floating"),
    "NaN in the data": (lambda: md.denoising_loss(MODEL, NAN), "x0", "NaN", "mask"),
    "a mask of floats": (
        lambda: md.denoising_loss(MODEL, X, known=KNOWN.float()), "known", "float32", "bool"),
    "a mask of another shape": (
        lambda: md.denoising_loss(MODEL, X, known=KNOWN[:, :2]), "known", "(2, 2)", "broadcast"),
    "everything known": (lambda: md.denoising_loss(MODEL, X, known=KNOWN), "mask", "no entry", "True"),
    "nothing scored": (lambda: md.denoising_loss(MODEL, X, scored=~KNOWN), "mask", "no entry", "True"),
    # samplers
    "a grid from 0 to 1": (
        lambda: md.ancestral(keep, VP, X, TIMES.flip(0)), "times", "decrease", "minidiff.grids"),
    "steps for times": (lambda: md.ddim(keep, VP, X, torch.tensor([9, 5, 0])), "times", "9", "[0, 1]"),
    "one time": (lambda: md.ddim(keep, VP, X, TIMES[:1]), "times", "(1,)", "n + 1"),
    "eta 2": (lambda: md.ddim(keep, VP, X, TIMES, eta=2), "eta=", "2", "0 (deterministic)"),
    "a start of NaN": (lambda: md.ancestral(keep, VP, NAN, TIMES), "x ", "NaN", "remove"),
    "a start of integers": (lambda: md.ancestral(keep, VP, INTS, TIMES), "x ", "int64", "floating"),
    "a number for a start": (lambda: md.ddim(keep, VP, torch.tensor(1.0), TIMES), "x ", "()", "example"),
    "encode downwards": (lambda: md.encode(keep, VP, X, TIMES), "times", "increase", "grids"),
    "nothing to take": (lambda: md.last([]), "states", "empty", "again"),
    "nothing to stack": (lambda: md.trajectory(iter([])), "states", "empty", "again"),
    "a number for a shape": (lambda: md.prior(VP, 16), "shape=", "16", "(B, *event)"),
    "no samples": (lambda: md.prior(VP, (0, 2)), "shape=", "(0, 2)", "at least 1"),
    "a prior at time 2": (lambda: md.prior(VP, (2, 2), at=2.0), "t ", "2.0", "[0, 1]"),
    "no flow upwards": (lambda: md.euler(keep, VP, X, TIMES.flip(0)), "times", "decrease", "grids"),
    "Heun from NaN": (lambda: md.heun(keep, VP, NAN, TIMES), "x ", "NaN", "remove"),
    "2M in one time": (lambda: md.dpmpp_2m(keep, VP, X, TIMES[:1]), "times", "(1,)", "n + 1"),
    "negative churn": (lambda: md.edm_heun(keep, VP, X, TIMES, churn=-1), "churn=-1", "inflate", ">= 0"),
    "an SDE from silence": (lambda: md.reverse_sde(keep, md.Cosine(), X, TIMES), "times", "1.0", "0.98"),
    "no updates a level": (lambda: md.langevin(keep, VP, X, TIMES, steps=0), "steps=", "0", "at least 1"),
    "an update of 0": (lambda: md.langevin(keep, VP, X, TIMES, step=0.0), "step=", "0.0", "positive"),
    "half a correction": (
        lambda: md.predictor_corrector(keep, VP, X, TIMES, corrections=0.5), "corrections=", "0.5", "whole"),
    "snr in percent": (
        lambda: md.predictor_corrector(keep, VP, X, TIMES, snr=16), "snr=", "16", "0.16"),
    "consistency below its end": (
        lambda: md.consistency(keep, VP, X, TIMES, end=0.5), "end=", "0.5", "above"),
    # variances and likelihoods
    "a bound of 0": (lambda: md.variance.analytic(lambda at: 1.0, most=0.0), "most=", "0.0", "positive"),
    "a branch unasked": (
        lambda: md.variance.npr(MODEL.given(None))(md.process.moves(VP, TIMES, eta=1.0)[0]),
        "branch", "never", "very branch"),
    "a cap of 0 pixels": (
        lambda: md.variance.cap_last(md.posterior_variance, VP, TIMES, pixels=0), "pixels=", "0", "positive"),
    "a bound that stops early": (
        lambda: md.likelihood.vlb(keep, VP, X, TIMES[:-1]), "times", "0.25", "ends at 0"),
    "a bound without noise": (lambda: md.likelihood.vlb(keep, VP, X, TIMES, eta=0.0), "eta=", "0", "above 0"),
    "half grey values": (
        lambda: md.likelihood.discretised_decoder(X, X, 1.0), "x0", "0", "gaussian_decoder"),
    "a flow from clean data": (
        lambda: md.likelihood.ode_log_likelihood(keep, VP, X, TIMES.flip(0)), "times", "0.0", "log_snr"),
    "no probes": (lambda: md.likelihood.hutchinson(0), "probes=", "0", "at least 1"),
    "bits of nothing": (lambda: md.likelihood.bits_per_dim(X, 0), "dims=", "0", "entries"),
    "a hybrid without a table": (
        lambda: md.likelihood.hybrid_loss(md.Denoiser(NET, VP), X), "schedule", "VP", "BetaTable"),
    # guidance
    "a classifier with NaN": (
        lambda: md.classifier(keep, VP, lambda x, t: x.sum(1), math.nan), "scale=", "nan", "finite"),
    "an infinite energy": (
        lambda: md.energy(keep, VP, lambda x0: x0.sum(1), math.inf), "scale=", "inf", "finite"),
    "an empty interval": (
        lambda: md.guidance.interval(keep, keep, VP, low=2, high=1), "low=2", "high=1", "noise/signal"),
    "a quantile in percent": (
        lambda: md.guidance.dynamic_threshold(keep, quantile=99.5), "quantile=", "99.5", "<= 1"),
    "one vector": (lambda: md.guidance.rounded(keep, X[0]), "vectors", "(3,)", "(V, d)"),
    "a float mask to replace": (
        lambda: md.replace(keep, VP, X, KNOWN.float()), "known", "float32", "bool"),
    "drop in percent": (lambda: md.guidance.drop(X, X[0], 10), "p=", "10", "0.1"),
    "nothing to drop": (lambda: md.guidance.drop(None, X[0], 0.1), "cond", "NoneType", "Tensors"),
    "clip upside down": (lambda: md.clip(keep, 1, -1), "low=1", "high=-1", "low < high"),
    "negative guidance": (lambda: md.cfg(keep, keep, -1), "scale=", "-1", "0 (unconditional)"),
    "a float mask": (lambda: md.inpaint(keep, X, KNOWN.float()), "known", "float32", "bool"),
    "unknown marked known": (lambda: md.inpaint(keep, NAN, KNOWN), "values", "NaN", "unknown"),
    # oracles
    "a width of 0": (lambda: md.GaussianMixture(X, 0.0), "stds", "0.0", "positive"),
    "weights for others": (lambda: md.GaussianMixture(X, 1.0, torch.ones(3)), "weights", "(3,)", "2"),
    "a mean of other events": (lambda: md.Gaussian(X[0], X[0, :2] + 1), "std", "(2,)", "(3,)"),
    "no points": (lambda: md.Empirical(X[:0]), "points", "(0, 3)", "at least one"),
    "no samples of an oracle": (lambda: md.Empirical(X).sample(0), "n=", "0", "whole number"),
    "the density of points": (lambda: md.Empirical(X).log_prob(X, 0.0, VP), "t=", "0", "t > 0"),
    "points of another dimension": (
        lambda: md.Empirical(X).denoiser(VP)(WIDE, torch.tensor(0.5)), "x ", "(2, 4)", "(3,)"),
    # training
    "no updates": (lambda: train(steps=0), "steps=", "0", "whole number"),
    "a negative rate": (lambda: train(lr=-0.1), "lr=", "-0.1", "at least 0"),
    "clip 0": (lambda: train(clip=0.0), "clip=", "0.0", "None"),
    "a negative seed": (lambda: train(seed=-1), "seed", "-1", ">= 0"),
    "save never": (lambda: train(save_every=0), "save_every=", "0", "whole number"),
    "nothing to train": (
        lambda: md.train(loss, nn.Identity(), lambda k: X, steps=1, lr=0.1), "model", "no parameter",
        "gradient"),
    "a constant average": (lambda: md.EMA(NET, 1.0), "decay=", "1.0", "0.999"),
    # data, metrics, nets, plots, files
    "no toys": (lambda: md.data.swiss_roll(0), "n=", "0", "whole number"),
    "a batch above the data": (lambda: md.data.batches(X, 3), "size=", "3", "2"),
    "labels of another length": (lambda: md.data.batches((X, X[:1]), 1), "data", "[2, 1]", "equal"),
    "features of another net": (
        lambda: md.metrics.frechet_distance(X, WIDE), "a has 3", "b 4", "equal"),
    "one row": (lambda: md.metrics.frechet_distance(X[:1], X), "a and b", "1", "2 or more"),
    "no projections": (
        lambda: md.metrics.sliced_wasserstein(X, X, projections=0), "projections=", "0", "at least 1"),
    "an odd embedding": (lambda: md.nets.sinusoidal(X, 7), "dim=", "7", "even"),
    "an image of three channels": (
        lambda: md.nets.UNet(1, width=8)(torch.zeros(1, 3, 30, 30), torch.zeros(1)),
        "x has shape", "3, 30", "1 channel"),
    "a class that is none": (
        lambda: md.nets.MLP(3, classes=2)(X, torch.zeros(2), torch.tensor([0, 7])), "cond", "7", "0 to 2"),
    "a condition for none": (
        lambda: md.nets.MLP(3)(X, torch.zeros(2), torch.tensor([0, 1])), "cond", "no classes", "None"),
    "points of three": (lambda: md.plots.scatter(None, X), "points", "(2, 3)", "(N, 2)"),
    "an unknown checkpoint": (lambda: md.checkpoints.load("cifar"), "name=", "cifar", "mnist-ddpm"),
    "no such file": (lambda: md.checkpoints.restore(NET, "no/such/file"), "path=", "no/such", "check"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("call", "argument", "value", "remedy"),
    TABLE_OF_MISTAKES.values(),
    ids=[k.replace(" ", "_") for k in TABLE_OF_MISTAKES],
)
def test_mistakes_are_refused_with_help(call, argument, value, remedy):
    """Argument, value and remedy are in the message, which fits a few lines."""
    with pytest.raises(ValueError) as error:
        call()
    message = str(error.value)
    for word in (argument, value, remedy):
        assert word in message, message
    assert type(error.value) is ValueError and len(message) < 400


# flat functions that take nothing which could be wrong in a way of its own
HARMLESS = {
    "count_calls", "forward_variance", "posterior_variance", "uniform_times", "denoising_error",
    "from_x0", "velocity_from_x0", "prior_kl", "scaled_linear_betas",
}  # fmt: skip


def test_every_public_function_has_a_row():
    """Functions that are called in the table above, by name; the rest are listed as harmless."""
    source = inspect.getsource(inspect.getmodule(test_every_public_function_has_a_row))
    for name in md.__all__:
        if inspect.isfunction(getattr(md, name)) and name not in HARMLESS:
            assert f"md.{name}(" in source, f"{name}: no mistake of its arguments is in the table"
