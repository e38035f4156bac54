"""Data that needs no network: toys made in code, and sets that pip packages ship."""

from .batching import batches
from .images import Split, digits8x8, fashion_mnist, jitter, mnist, mnist5k, split
from .physionet import ICU_CHANNELS, physionet2012
from .series import Scaling, Series, Windows, on_days, standardise, weather, windows
from .toys import TOYS, checkerboard, eight_gaussians, moons, ring, swiss_roll

__all__ = [
    "ICU_CHANNELS",
    "TOYS",
    "Scaling",
    "Series",
    "Split",
    "Windows",
    "batches",
    "checkerboard",
    "digits8x8",
    "eight_gaussians",
    "fashion_mnist",
    "jitter",
    "mnist",
    "mnist5k",
    "moons",
    "on_days",
    "physionet2012",
    "ring",
    "split",
    "standardise",
    "swiss_roll",
    "weather",
    "windows",
]
