"""Networks: plain torch modules ``net(x, t, cond)``; they know nothing of diffusion."""

from .attention import Context, CrossAttention, SelfAttention
from .classifier import Classifier, PatchClassifier
from .embed import LabelEmbedding, TimeEmbedding, sinusoidal
from .mlp import MLP
from .unet import UNet

__all__ = [
    "MLP",
    "Classifier",
    "Context",
    "CrossAttention",
    "LabelEmbedding",
    "PatchClassifier",
    "SelfAttention",
    "TimeEmbedding",
    "UNet",
    "sinusoidal",
]
