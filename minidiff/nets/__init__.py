"""Networks: plain torch modules ``net(x, t, cond)``; they know nothing of diffusion."""

from .attention import SelfAttention
from .embed import LabelEmbedding, TimeEmbedding, sinusoidal
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "LabelEmbedding", "SelfAttention", "TimeEmbedding", "UNet", "sinusoidal"]
