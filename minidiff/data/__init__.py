"""Data that needs no network: toys made in code, and sets that pip packages ship."""

from .batching import batches
from .images import Split, digits8x8, fashion_mnist, jitter, mnist, mnist5k, split
from .toys import TOYS, checkerboard, eight_gaussians, moons, ring, swiss_roll

__all__ = [
    "TOYS",
    "Split",
    "batches",
    "checkerboard",
    "digits8x8",
    "eight_gaussians",
    "fashion_mnist",
    "jitter",
    "mnist",
    "mnist5k",
    "moons",
    "ring",
    "split",
    "swiss_roll",
]
