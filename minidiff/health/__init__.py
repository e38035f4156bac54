"""Is my training healthy? Cheap measurements, each with the band that a healthy run stays in.

Each function looks at one part alone: the data, the noising, the loss curve, a trained denoiser,
the sampling loop, the samples. So the first one that is not healthy says where the mistake is.
"""

from .curves import curve, linear_error, native_factor, start_loss
from .finding import Finding, report
from .inputs import data, noising
from .models import Errors, denoiser, errors, versus
from .sampling import chain, sampler

__all__ = [
    "Errors",
    "Finding",
    "chain",
    "curve",
    "data",
    "denoiser",
    "errors",
    "linear_error",
    "native_factor",
    "noising",
    "report",
    "sampler",
    "start_loss",
    "versus",
]
