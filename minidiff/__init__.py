"""minidiff: a small, tested package for diffusion models.

Conventions, in one place:

- One path ``x_t = signal(t) x0 + noise(t) eps``; t = 0 is data, t = 1 is noise.
- A denoiser is a function ``(x, t) -> E[x0 | x_t]``. Guidance, conditions, clipping and
  inpainting are functions from denoisers to a denoiser. A sampler takes a denoiser and a
  decreasing grid of times, and yields states.
- ``x`` has shape ``(B, *event)``. ``t`` has shape ``()``, ``(B,)``, or the rank of x and
  broadcastable to it, such as ``(B, L, 1)``.
- ``signal`` is the root of alpha-bar of Ho et al.; ``noise`` is the root of one minus it.
- ``known`` is bool, and True means observed. There is no other mask polarity.
- Log-likelihoods are in nats unless a name says bits.
- ``rng`` is keyword-only. None draws from a fresh generator; the global state is never touched.

Names that are not listed here live in their module: ``md.grids.karras``, ``md.nets.UNet``,
``md.data.swiss_roll``, ``md.metrics.frechet_distance``, ``md.plots.scatter``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import (
    bounds,
    conditions,
    covariances,
    denoiser,
    exact,
    grids,
    guidance,
    likelihood,
    losses,
    predictions,
    process,
    samplers,
    schedules,
    solvers,
    stochastic,
    tables,
    tensors,
    times,
    training,
    variance,
)
from .conditions import inpaint, replace
from .denoiser import Branch, Denoise, Denoiser, Output, count_calls
from .exact import Empirical, Gaussian, GaussianMixture
from .grids import ddpm_steps
from .guidance import cfg, classifier, clip, energy
from .losses import denoising_error, denoising_loss, uniform_times
from .predictions import (
    PREDICTIONS,
    Prediction,
    eps_from_x0,
    from_x0,
    score_from_x0,
    to_x0,
    velocity_from_x0,
)
from .process import (
    Move,
    Transition,
    diffuse,
    drift_diffusion,
    posterior,
    prior_kl,
    step_forward,
)
from .samplers import (
    State,
    ancestral,
    consistency,
    ddim,
    encode,
    last,
    prior,
    trajectory,
)
from .schedules import (
    VE,
    VP,
    BetaTable,
    Cosine,
    Level,
    LinearPath,
    Schedule,
    cosine_betas,
    linear_betas,
    quadratic_betas,
    scaled_linear_betas,
    sigmoid_betas,
    sqrt_betas,
    zero_terminal_snr,
)
from .solvers import dpmpp_2m, edm_heun, euler, heun
from .stochastic import langevin, predictor_corrector, reverse_sde
from .training import EMA, Step, train
from .variance import forward_variance, posterior_variance

if TYPE_CHECKING:
    from . import (
        apps,
        baselines,
        checkpoints,
        classics,
        data,
        evaluation,
        heads,
        health,
        metrics,
        nets,
        plots,
        recipes,
        scoring,
    )

__version__ = "0.1.0"

_LATER = (
    "apps",
    "baselines",
    "checkpoints",
    "classics",
    "data",
    "evaluation",
    "heads",
    "health",
    "metrics",
    "nets",
    "plots",
    "recipes",
    "scoring",
)  # loaded on first use

__all__ = [
    "EMA",
    "PREDICTIONS",
    "VE",
    "VP",
    "BetaTable",
    "Branch",
    "Cosine",
    "Denoise",
    "Denoiser",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "Level",
    "LinearPath",
    "Move",
    "Output",
    "Prediction",
    "Schedule",
    "State",
    "Step",
    "Transition",
    "ancestral",
    "apps",
    "baselines",
    "bounds",
    "cfg",
    "checkpoints",
    "classics",
    "classifier",
    "clip",
    "conditions",
    "consistency",
    "cosine_betas",
    "count_calls",
    "covariances",
    "data",
    "ddim",
    "ddpm_steps",
    "denoiser",
    "denoising_error",
    "denoising_loss",
    "diffuse",
    "dpmpp_2m",
    "drift_diffusion",
    "edm_heun",
    "encode",
    "energy",
    "eps_from_x0",
    "euler",
    "evaluation",
    "exact",
    "forward_variance",
    "from_x0",
    "grids",
    "guidance",
    "heads",
    "health",
    "heun",
    "inpaint",
    "langevin",
    "last",
    "likelihood",
    "linear_betas",
    "losses",
    "metrics",
    "nets",
    "plots",
    "posterior",
    "posterior_variance",
    "predictions",
    "predictor_corrector",
    "prior",
    "prior_kl",
    "process",
    "quadratic_betas",
    "recipes",
    "replace",
    "reverse_sde",
    "samplers",
    "scaled_linear_betas",
    "schedules",
    "score_from_x0",
    "scoring",
    "sigmoid_betas",
    "solvers",
    "sqrt_betas",
    "step_forward",
    "stochastic",
    "tables",
    "tensors",
    "times",
    "to_x0",
    "train",
    "training",
    "trajectory",
    "uniform_times",
    "variance",
    "velocity_from_x0",
    "zero_terminal_snr",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module 'minidiff' has no attribute {name!r}")
