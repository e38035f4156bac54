"""The five kinds of paths that most tests go through, written out, and seeded numbers."""

import math

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


def vector(*numbers):
    """These numbers."""
    return torch.tensor(numbers, dtype=D)


def perturbed(net, seed=0, size=0.3):
    """The net in float64 with reproducible weights: new layers start at zero, which hides errors.

    Set by hand, so that no test depends on the global random state.
    """
    net = net.double()
    rng = seeded(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(size * torch.randn(p.shape, generator=rng, dtype=D))
    return net


def times_of(values):
    """A grid from plain numbers."""
    return torch.tensor(values, dtype=D)


def guess(x, t):
    """A stand-in for a denoiser, smooth in x and in t."""
    return torch.tanh(x) * (0.9 - 0.3 * float(t))


def level(name, t):
    """Signal, noise and their slopes, from the closed forms of the paths; plain numbers."""
    if name == "VP":
        s = math.exp(-(t**2) * 19.9 / 4 - t * 0.1 / 2)
        n, rate = math.sqrt(1 - s * s), (0.1 + 19.9 * t) / 2
        return s, n, -rate * s, rate * s * s / n
    if name == "Cosine":
        turn = math.pi / 2
        s, n = math.cos(turn * t) if t < 1 else 0.0, math.sin(turn * t)
        return s, n, -turn * n, turn * s
    if name == "LinearPath":
        return 1 - t, t, -1.0, 1.0
    n = 0.002 * 40000**t
    return 1.0, n, 0.0, math.log(40000) * n


class Counting(md.Schedule):
    """The linear path, which counts in ``calls`` how often it computed a level."""

    calls = 0

    def level(self, t):
        self.calls += 1
        return md.LinearPath().level(t)

    def time(self, log_snr):
        return md.LinearPath().time(log_snr)
