"""Plots: each function draws on the axes it was given and returns them."""

import math

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minidiff import plots


@pytest.fixture
def ax():
    with plt.rc_context():
        plots.use_style()
        figure, axes = plt.subplots()
        yield axes
        figure.canvas.draw()  # layout problems show here
        plt.close(figure)


def pictures(n=6, c=1, side=4):
    rng = torch.Generator().manual_seed(0)
    return torch.rand(n, c, side, side, generator=rng) * 2 - 1


def test_scatter(ax):
    points = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert plots.scatter(ax, points, label="data", reach=3) is ax
    drawn = ax.collections[0].get_offsets()
    assert drawn.shape == (20, 2) and float(abs(drawn - points.detach().numpy()).max()) < 1e-6
    assert ax.get_xlim() == (-3, 3) and ax.get_aspect() == 1
    assert ax.get_legend_handles_labels()[1] == ["data"]


def test_heat(ax):
    """Four bins by hand: x to the right, y upwards; shares per area; points outside count in N."""
    points = torch.tensor([[0.5, 0.5], [0.6, 0.1], [-0.5, 0.9], [0.5, -0.5], [7.0, 0.0]])
    assert plots.heat(ax, points, reach=1, bins=2, top=0.8) is ax
    (image,) = ax.images
    assert image.get_array().tolist() == [[0, 0.2], [0.2, 0.4]]  # rows from below; bins of area 1
    assert image.origin == "lower" and image.norm.vmax == 0.8
    assert ax.get_xlim() == (-1, 1) == ax.get_ylim()
    for wrong in (torch.zeros(3), torch.zeros(3, 3), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match="points has shape"):
            plots.heat(ax, wrong, reach=1)
    with pytest.raises(ValueError, match="reach=0"):
        plots.heat(ax, points, reach=0)
    with pytest.raises(ValueError, match="bins=0"):
        plots.heat(ax, points, reach=1, bins=0)


def test_images(ax):
    """A sheet of 2 rows of 3 with a gap of one pixel; -1 is black, 1 is white."""
    assert plots.images(ax, pictures(), columns=3) is ax
    sheet = ax.images[0].get_array()
    assert sheet.shape == (9, 14)
    want = (pictures()[4, 0] + 1) / 2  # second row, second column
    assert float(abs(sheet[5:9, 5:9] - want.numpy()).max()) < 1e-6
    assert not ax.axison


def test_images_in_colour_and_out_of_range(ax):
    plots.images(ax, 3 * pictures(5, 3), columns=10)
    sheet = ax.images[0].get_array()
    assert sheet.shape == (4, 49, 3) and 0 <= sheet.min() and sheet.max() <= 1


def test_film(ax):
    assert plots.film(ax, pictures(3), labels=["t = 1", "t = .5", "t = 0"]) is ax
    assert [text.get_text() for text in ax.texts] == ["t = 1", "t = .5", "t = 0"]
    assert plots.film(ax, pictures(3)) is ax


def test_loss_curve(ax):
    """The raw values faintly, their average firmly; a generator is fine."""
    values = [1 / (k + 1) for k in range(200)]
    assert plots.loss_curve(ax, iter(values), label="loss") is ax
    raw, smooth = ax.lines
    assert raw.get_ydata().tolist() == values and len(smooth.get_ydata()) == 200
    assert min(values) < smooth.get_ydata()[-1] < values[100]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("step", "loss")
    assert plots.loss_curve(ax, [1.0]) is ax


def test_paths(ax):
    track = torch.randn(5, 7, 2, generator=torch.Generator().manual_seed(0))
    assert plots.paths(ax, track) is ax
    assert len(ax.lines) == 7
    assert ax.lines[3].get_xdata().tolist() == track[:, 3, 0].tolist()


def test_style_file_loads():
    """Known keys only, and a white card: readable on a dark page too."""
    with plt.rc_context():
        plots.use_style()
        assert plt.rcParams["figure.facecolor"] == "white"
        assert plt.rcParams["savefig.dpi"] == 100
        assert plt.rcParams["image.cmap"] == "gray"
    assert plots.STYLE.exists()


def test_colours_are_four_and_stand_out():
    """Contrast of at least 3 on white (WCAG 1.4.11, graphics), but for the grey of noise."""
    colours = [plots.DATA, plots.NOISE, plots.PREDICTION, plots.KNOWN]
    assert len(set(colours)) == 4
    for colour in colours:
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
            for v in matplotlib.colors.to_rgb(colour)
        ]
        luminance = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
        assert 1.05 / (luminance + 0.05) >= 3


def test_fan_bands_are_quantiles(ax):
    """Borders of both bands and the median line, against numpy; the paths come on top."""
    samples = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).double()
    plots.fan(ax, torch.arange(4), samples, label="it", paths=3)
    levels = [(0.05, 0.95), (0.25, 0.75)]
    for band, (low, high) in zip(ax.collections, levels, strict=True):
        corners = band.get_paths()[0].vertices
        for hour in range(4):
            here = corners[corners[:, 0] == hour, 1]
            want = np.quantile(samples[:, hour].float().numpy(), [low, high])
            assert [here.min(), here.max()] == pytest.approx(want.tolist(), rel=1e-6)
    lines = ax.get_lines()
    assert len(lines) == 4 and lines[0].get_label() == "it"
    assert lines[0].get_ydata() == pytest.approx(np.median(samples.float().numpy(), axis=0))
    assert lines[2].get_ydata() == pytest.approx(samples[1].float().numpy())


def test_gaps_show_three_states(ax):
    """Known 2, hidden 1, missing 0, with channels down."""
    observed = torch.tensor([[1, 1], [1, 0], [0, 1]]) > 0
    known = torch.tensor([[1, 0], [0, 0], [0, 1]]) > 0
    plots.gaps(ax, observed, known)
    assert ax.images[0].get_array().tolist() == [[2, 1, 0], [1, 0, 2]]
    assert ax.images[0].cmap(1.0) == matplotlib.colors.to_rgba(plots.KNOWN)


@pytest.mark.parametrize(
    ("draw", "word"),
    [
        (lambda ax: plots.scatter(ax, torch.zeros(3, 3)), r"points has shape \(3, 3\)"),
        (lambda ax: plots.scatter(ax, torch.zeros(3)), "points has shape"),
        (lambda ax: plots.images(ax, torch.zeros(3, 2, 4, 4)), "pictures has shape"),
        (lambda ax: plots.images(ax, torch.zeros(4, 4)), "pictures has shape"),
        (lambda ax: plots.images(ax, torch.zeros(0, 1, 4, 4)), "pictures has shape"),
        (lambda ax: plots.images(ax, pictures(), columns=0), "columns=0"),
        (lambda ax: plots.film(ax, torch.zeros(4, 4)), "shape"),
        (lambda ax: plots.film(ax, pictures(3), labels=["a", "b"]), "labels"),
        (lambda ax: plots.loss_curve(ax, []), "losses is empty"),
        (lambda ax: plots.loss_curve(ax, [1.0, math.nan]), "losses holds"),
        (lambda ax: plots.paths(ax, torch.zeros(3, 2)), "track has shape"),
        (lambda ax: plots.fan(ax, torch.zeros(3), torch.zeros(4, 2)), "samples has shape"),
        (lambda ax: plots.fan(ax, torch.zeros(3), torch.zeros(1, 3)), "two samples"),
        (lambda ax: plots.fan(ax, torch.zeros(3), torch.zeros(2, 3), paths=3), "paths=3"),
        (lambda ax: plots.gaps(ax, torch.ones(3, 2), torch.ones(3, 2)), "bool masks"),
        (lambda ax: plots.gaps(ax, torch.ones(3, 2) > 0, torch.ones(3, 1) > 0), "bool masks"),
        (lambda ax: plots.gaps(ax, torch.ones(3, 2) < 0, torch.ones(3, 2) > 0), "not observed"),
    ],
)
def test_plots_refuse(ax, draw, word):
    with pytest.raises(ValueError, match=word):
        draw(ax)
