"""Networks: plain torch modules ``net(x, t, cond)``; they know nothing of diffusion."""

from .attention import Context, CrossAttention, SelfAttention
from .classifier import Classifier, PatchClassifier
from .embed import LabelEmbedding, TimeEmbedding, sinusoidal
from .mlp import MLP
from .ring import ChannelConvolutions
from .series import Observed, SeriesTransformer
from .unet import UNet

__all__ = [
    "MLP",
    "ChannelConvolutions",
    "Classifier",
    "Context",
    "CrossAttention",
    "LabelEmbedding",
    "Observed",
    "PatchClassifier",
    "SelfAttention",
    "SeriesTransformer",
    "TimeEmbedding",
    "UNet",
    "sinusoidal",
]
