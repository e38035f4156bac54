"""Exact oracles: data whose quantities under diffusion are known in closed form.

Mixtures of Gaussians and finite data sets, oracles of imputation and of forecasting, the bound
that an exact denoiser reaches, and the true reverse step. Nothing here uses the package's own
process, variances or likelihoods, so it can judge them.
"""

from .autoregression import VAR, VarForecast
from .components import FullPosterior, Posterior
from .expected import bound
from .mixtures import Empirical, FullMixture, Gaussian, GaussianMixture
from .oracles import AR1, ConditionalGaussian, Forecast
from .reverse import best_gaussian, non_gaussianity, reverse_step

__all__ = [
    "AR1",
    "VAR",
    "ConditionalGaussian",
    "Empirical",
    "Forecast",
    "FullMixture",
    "FullPosterior",
    "Gaussian",
    "GaussianMixture",
    "Posterior",
    "VarForecast",
    "best_gaussian",
    "bound",
    "non_gaussianity",
    "reverse_step",
]
