"""The five kinds of paths that most tests go through, and seeded numbers."""

import pytest
import torch

import minidiff as md

D = torch.float64
PATHS = {
    "VP": md.VP(),
    "Cosine": md.Cosine(),
    "LinearPath": md.LinearPath(),
    "VE": md.VE(),
    "BetaTable": md.BetaTable(md.linear_betas(1000)),
}
each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())


def seeded(seed=0):
    """A CPU generator."""
    return torch.Generator().manual_seed(seed)


def data(*shape, seed=0, dtype=D):
    """Standard normal numbers."""
    return torch.randn(*shape, dtype=dtype, generator=seeded(seed))
