"""What came before diffusion: three small generative models of points ``(B, features)``.

``gan`` plays a game and has no likelihood, ``vae`` bounds the likelihood from below, ``flow``
computes it exactly. ``game`` and ``gaussians`` hold their mathematics as plain functions.
Images are flattened first: ``images.flatten(1)``.
"""

from .flow import Coupling, Flow, dequantise
from .gan import Discriminator, GanStep, Generator, train_gan
from .vae import VAE, BernoulliDecoder, Encoder, GaussianDecoder

__all__ = [
    "VAE",
    "BernoulliDecoder",
    "Coupling",
    "Discriminator",
    "Encoder",
    "Flow",
    "GanStep",
    "GaussianDecoder",
    "Generator",
    "dequantise",
    "train_gan",
]
