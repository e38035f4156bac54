"""Data that needs no network: toys made in code, and sets that pip packages ship."""

from .batching import batches
from .images import digits8x8, mnist5k
from .toys import TOYS, checkerboard, eight_gaussians, moons, ring, swiss_roll

__all__ = [
    "TOYS",
    "batches",
    "checkerboard",
    "digits8x8",
    "eight_gaussians",
    "mnist5k",
    "moons",
    "ring",
    "swiss_roll",
]
