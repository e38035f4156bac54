"""Reverse variances against the text of Ho et al., written out from betas."""

import pytest
import torch

import minidiff as md
from minidiff.process import moves

TABLES = {"linear": md.linear_betas(1000), "cosine": md.cosine_betas(50)}
each_table = pytest.mark.parametrize("betas", TABLES.values(), ids=TABLES.keys())


@each_table
def test_posterior_variance_textbook(betas):
    """eq:beta-tilde: (1 - bar_{t-1}) / (1 - bar_t) beta_t. 1e-10: 1 - bar cancels four digits."""
    beta = [0.0, *betas.tolist()]
    bar = torch.tensor([1 - b for b in beta], dtype=torch.float64).cumprod(0).tolist()
    T = len(betas)
    steps = moves(md.BetaTable(betas), md.ddpm_steps(T), eta=1.0)
    for t, move in zip(range(T, 0, -1), steps, strict=True):
        want = (1 - bar[t - 1]) / (1 - bar[t]) * beta[t]
        assert md.posterior_variance(move) == pytest.approx(want, rel=1e-10, abs=1e-30)
    assert md.posterior_variance(steps[-1]) == 0


@each_table
def test_forward_variance_textbook(betas):
    """eq:beta-choice: the variance of the forward step is beta_t itself, for every t."""
    T = len(betas)
    steps = moves(md.BetaTable(betas), md.ddpm_steps(T), eta=1.0)
    for t, move in zip(range(T, 0, -1), steps, strict=True):
        assert md.forward_variance(move) == pytest.approx(float(betas[t - 1]), rel=1e-10)


def test_strided_variances_use_the_long_step():
    """Over a jump the betas are those of the jump, 1 - bar_t / bar_s, not the table's entries."""
    betas = md.linear_betas(1000)
    bar = (1 - betas).cumprod(0)
    steps = moves(md.BetaTable(betas), md.grids.strided(1000, 10), eta=1.0)
    for t, s, move in zip(range(1000, 100, -100), range(900, 0, -100), steps, strict=False):
        long = 1 - bar[t - 1] / bar[s - 1]
        assert move.forward == pytest.approx(float(long), rel=1e-10)
        want = (1 - bar[s - 1]) / (1 - bar[t - 1]) * long
        assert move.var == pytest.approx(float(want), rel=1e-10)


def test_eta_scales_the_posterior_variance():
    """The variance that ddim passes on is eta squared times beta tilde; the forward one is not."""
    table, times = md.BetaTable(md.cosine_betas(20)), md.ddpm_steps(20)
    for full, half, none in zip(
        *(moves(table, times, eta=eta) for eta in (1.0, 0.5, 0.0)), strict=True
    ):
        assert md.posterior_variance(half) == pytest.approx(full.var / 4, rel=1e-14)
        assert md.posterior_variance(none) == 0
        assert md.forward_variance(none) == full.forward
