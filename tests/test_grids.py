"""Grids of times: written out, strictly decreasing, and refused where they would not be."""

import math

import diffusers
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from paths import D, each_path

import minidiff as md
from minidiff import grids


def is_grid(times, n, *, end=0.0):
    """n + 1 float64 times on the CPU, strictly decreasing to ``end``."""
    assert times.dtype == D and times.device.type == "cpu" and times.shape == (n + 1,)
    assert bool((times.diff() < 0).all()) and float(times[0]) <= 1
    assert float(times[-1]) == end


def test_ddpm_steps():
    """eq:ddpm-grid: T/T, (T-1)/T, .., 0; each is exactly its step of the table."""
    assert md.ddpm_steps(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert md.ddpm_steps(1).tolist() == [1.0, 0.0]
    times = md.ddpm_steps(1000)
    is_grid(times, 1000)
    assert times.tolist() == [i / 1000 for i in range(1000, -1, -1)]


def test_uniform():
    assert grids.uniform(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    torch.testing.assert_close(
        grids.uniform(2, start=0.9, end=0.1), torch.tensor([0.9, 0.5, 0.1], dtype=D)
    )


def test_strided_written_out():
    """Starts at T, whole steps, as even as they can be."""
    assert (grids.strided(1000, 10) * 1000).round().tolist() == list(range(1000, -1, -100))
    assert (grids.strided(10, 4) * 10).tolist() == [10, 8, 5, 2, 0]  # 7.5 and 2.5 round to even
    assert torch.equal(grids.strided(50, 50), md.ddpm_steps(50))


@given(st.integers(1, 400), st.data())
def test_strided_takes_distinct_whole_steps(T, data):
    n = data.draw(st.integers(1, T))
    times = grids.strided(T, n)
    is_grid(times, n)
    steps = times * T
    assert float(times[0]) == 1 and float((steps - steps.round()).abs().max()) < 1e-9
    gaps = -steps.round().diff()
    assert float(gaps.max() - gaps.min()) <= 2  # rounding moves each end by at most a half


def test_linspaced_written_out():
    """Steps T and 1 with even steps between them, then 0: round(1 + k (T - 1) / (n - 1))."""
    assert (grids.linspaced(1000, 10) * 1000).round().tolist() == [
        1000, 889, 778, 667, 556, 445, 334, 223, 112, 1, 0
    ]  # fmt: skip
    assert (grids.linspaced(10, 4) * 10).tolist() == [10, 7, 4, 1, 0]
    assert (grids.linspaced(1000, 2) * 1000).tolist() == [1000, 1, 0]
    assert (grids.linspaced(6, 5) * 6).round().tolist() == [6, 5, 4, 2, 1, 0]  # 4.75, 3.5, 2.25
    assert torch.equal(grids.linspaced(50, 50), md.ddpm_steps(50))


@given(st.integers(2, 400), st.data())
def test_linspaced_takes_distinct_whole_steps(T, data):
    n = data.draw(st.integers(2, T))
    times = grids.linspaced(T, n)
    assert times.shape == (n + 1,)
    is_grid(times, n)
    steps = times * T
    assert float((steps - steps.round()).abs().max()) < 1e-9
    assert steps.round()[[0, -2]].tolist() == [T, 1]
    gaps = -steps[:-1].round().diff()
    assert float(gaps.max() - gaps.min()) <= 2


@pytest.mark.parametrize("n", [2, 10, 20, 50, 100])
def test_linspaced_is_linspace_of_diffusers(n):
    """Their steps count from 0. (A half rounds to even, of i in ours and of i - 1 in theirs.)"""
    scheduler = diffusers.DDPMScheduler(1000, timestep_spacing="linspace")
    scheduler.set_timesteps(n)
    times = grids.linspaced(1000, n)[:-1] * 1000
    assert times.round().long().tolist() == (scheduler.timesteps + 1).tolist()


@each_path
def test_log_snr_is_evenly_spaced(path):
    """Equal steps of log-SNR, to rounding."""
    times = grids.log_snr(path, 12, low=-7, high=6)
    is_grid(times, 12)
    lam = path(times[:-1]).log_snr
    want = torch.linspace(-7, 6, 12, dtype=D)
    slack = 1e-4 if isinstance(path, md.BetaTable) else 1e-9  # a table snaps to its steps
    assert float((lam - want).abs().max()) < slack
    open_end = grids.log_snr(path, 12, low=-7, high=6, land=False)
    assert open_end.shape == (13,)
    assert float(path(open_end[-1]).log_snr) == pytest.approx(6, abs=1e-4)


def test_log_snr_starts_where_the_path_ends():
    """VE ends at log-SNR -8.76; a lower start becomes t = 1."""
    times = grids.log_snr(md.VE(), 5)
    assert float(times[0]) == pytest.approx(1.0, abs=1e-12)
    assert float(grids.log_snr(md.Cosine(), 5)[0]) < 1


@each_path
def test_karras_written_out(path):
    """Noise-to-signal ratios of Karras et al. (5), between .02 and 30 here, then 0."""
    n, low, high = 6, 0.02, 30.0
    times = grids.karras(path, n, sigma_min=low, sigma_max=high)
    is_grid(times, n)
    at = path(times[:-1])
    ratio = (at.noise / at.signal).tolist()
    for i in range(n):
        want = (high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7
        assert ratio[i] == pytest.approx(want, rel=1e-4)  # a table snaps within 1e-3 of a step


def test_karras_on_ve_ends_with_sigma_min_and_clean_data():
    """[.., sigma_min, 0] strictly decreases although VE jumps at 0."""
    path = md.VE()
    times = grids.karras(path, 18)
    is_grid(times, 18)
    assert float(path(times[0]).noise) == pytest.approx(80, rel=1e-12)
    assert float(path(times[-2]).noise) == pytest.approx(0.002, rel=2e-5)  # at t = 1e-6, not 0
    assert float(path(times[-1]).noise) == 0


@pytest.mark.parametrize(
    ("times", "word"),
    [
        (torch.tensor([1.0, 0.5, 0.5, 0.0]), r"times\[1\]=0.5"),
        (torch.tensor([0.0, 1.0]), "decrease strictly"),
        (torch.tensor([1.0]), "n \\+ 1"),
        (torch.tensor([[1.0, 0.0]]), "shape"),
        (torch.tensor([1.5, 0.0]), "1.5"),
        (torch.tensor([1.0, -0.1]), "-0.1"),
        (torch.tensor([1.0, math.nan, 0.0]), "nan"),
    ],
)
def test_check_times_refuses(times, word):
    with pytest.raises(ValueError, match=word):
        grids.check_times(times)


def test_check_times_takes_lists_and_increasing_grids():
    assert grids.check_times([1, 0.5, 0]).dtype == D
    assert grids.check_times(torch.tensor([0.0, 0.5]), increasing=True).tolist() == [0, 0.5]
    with pytest.raises(ValueError, match="increase strictly"):
        grids.check_times(torch.tensor([0.5, 0.0]), increasing=True)


@pytest.mark.parametrize("make", [grids.uniform, md.ddpm_steps, lambda n: grids.strided(9, n)])
@pytest.mark.parametrize("n", [0, -3, 2.0, "4", True is False])
def test_a_number_of_steps_is_whole_and_positive(make, n):
    with pytest.raises(ValueError, match="whole number of steps"):
        make(n)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: grids.strided(10, 11), "n=11 exceeds T=10"),
        (lambda: grids.linspaced(10, 11), "n=11 with T=10"),
        (lambda: grids.linspaced(10, 1), "n=1 with T=10"),
        (lambda: grids.linspaced(10, 2.0), "n=2.0"),
        (lambda: grids.linspaced(0, 2), "n=0"),
        (lambda: grids.uniform(4, start=0.2, end=0.8), "decrease"),
        (lambda: grids.log_snr(md.VP(), 4, low=3, high=3), "high=3"),
        (lambda: grids.log_snr(md.VE(), 4, high=-20), "high=-20"),
        (lambda: grids.karras(md.VE(), 4, sigma_min=1, sigma_max=1), "sigma_min=1"),
        (lambda: grids.karras(md.VE(), 4, sigma_min=0), "sigma_min=0"),
        (lambda: grids.karras(md.VE(), 4, sigma_max=1e5), "sigma_max=100000.0"),
        (lambda: grids.karras(md.VE(), 4, rho=0), "rho=0"),
        # two levels above the first step of a table cannot be told apart
        (lambda: grids.karras(md.BetaTable(md.linear_betas(1000)), 40), "sigma_min=0.002"),
        (lambda: grids.log_snr(md.BetaTable(md.linear_betas(1000)), 30, high=15), "high=15"),
    ],
)
def test_grids_refuse(call, word):
    with pytest.raises(ValueError, match=word):
        call()
