"""Pictures of the course: functions ``(ax, ...) -> ax`` and one style file.

Colours mean the same everywhere: blue is data, grey is noise, orange is a prediction or sample,
green is known. They stay apart for colour-blind readers (Okabe and Ito's palette).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap, PowerNorm
from torch import Tensor

STYLE = Path(__file__).with_name("course.mplstyle")
DATA, NOISE, PREDICTION, KNOWN = "#0072B2", "#8a8a8a", "#D55E00", "#009E73"


def use_style() -> None:
    """Switch matplotlib to the course's style; a lab calls this once."""
    plt.style.use(str(STYLE))


def _array(x: Tensor | np.ndarray) -> np.ndarray:
    return x.detach().cpu().float().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _pairs(points: Tensor) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise ValueError(f"points has shape {tuple(points.shape)}: give (N, 2), at least one")
    return _array(points)


def scatter(
    ax: Axes,
    points: Tensor,
    *,
    color: str = DATA,
    label: str | None = None,
    size: float = 3.0,
    reach: float | None = None,
) -> Axes:
    """Draw points of shape ``(N, 2)``; ``reach`` fixes both axes to -reach..reach."""
    xy = _pairs(points)
    ax.scatter(xy[:, 0], xy[:, 1], s=size, c=color, alpha=0.5, linewidths=0, label=label)
    ax.set_aspect("equal")
    if reach is not None:
        ax.set_xlim(-reach, reach)
        ax.set_ylim(-reach, reach)
    return ax


def heat(
    ax: Axes,
    points: Tensor,
    *,
    reach: float,
    bins: int = 64,
    color: str = DATA,
    top: float | None = None,
) -> Axes:
    """Draw the density of points ``(N, 2)`` in -reach..reach as shades of one colour.

    The shade follows the root of the density, so that thin bridges between modes stay visible.
    ``top`` is the density of the full colour, as a share of the points per unit of area; give the
    same one to panels that are compared.
    """
    xy, box = _pairs(points), (-reach, reach, -reach, reach)
    if not reach > 0 or bins < 1:
        raise ValueError(f"reach={reach}, bins={bins}: give a positive reach and at least 1 bin")
    counts = np.histogram2d(xy[:, 0], xy[:, 1], bins=bins, range=[box[:2], box[2:]])[0]
    density = counts.T / len(xy) / (2 * reach / bins) ** 2
    shades = LinearSegmentedColormap.from_list("shades", ["white", color, "black"])
    norm = PowerNorm(0.5, vmin=0, vmax=density.max() if top is None else top)
    ax.imshow(density, origin="lower", extent=box, cmap=shades, norm=norm)
    ax.grid(False)
    return ax


def images(ax: Axes, pictures: Tensor, *, columns: int = 10, gap: int = 1) -> Axes:
    """Draw images ``(N, 1 or 3, H, W)`` with values in [-1, 1] as one sheet."""
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or len(pictures) == 0:
        raise ValueError(f"pictures has shape {tuple(pictures.shape)}: give (N, 1 or 3, H, W)")
    if columns < 1:
        raise ValueError(f"columns={columns}: give at least 1")
    n, c, height, width = pictures.shape
    rows = -(-n // columns)
    sheet = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, c))
    for i, picture in enumerate(_array(pictures)):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = (picture.transpose(1, 2, 0) + 1) / 2
    ax.imshow(sheet.clip(0, 1).squeeze(), vmin=0, vmax=1)
    ax.set_axis_off()
    return ax


def film(ax: Axes, frames: Tensor, *, labels: Sequence[str] | None = None) -> Axes:
    """Draw one image at several times, ``(N, 1 or 3, H, W)``, side by side with labels below."""
    if labels is not None and len(labels) != len(frames):
        raise ValueError(
            f"labels has {len(labels)} entries for {len(frames)} frames: give one each"
        )
    images(ax, frames, columns=max(len(frames), 1))
    width = frames.shape[-1] + 1
    for i, label in enumerate(labels or ()):
        ax.text(
            i * width + frames.shape[-1] / 2, frames.shape[-2] + 1, label, ha="center", va="top",
            fontsize=8,
        )  # fmt: skip
    return ax


def loss_curve(
    ax: Axes, losses: Iterable[float], *, color: str = PREDICTION, label: str | None = None
) -> Axes:
    """Draw a training loss: every step faintly, its exponential average firmly."""
    values = np.fromiter(losses, dtype=float)
    if len(values) == 0:
        raise ValueError("losses is empty: collect [step.loss for step in train(...)]")
    if not np.isfinite(values).all():
        raise ValueError("losses holds NaN or infinite values: give [step.loss for step in ...]")
    smooth, keep = np.empty_like(values), 1 - 1 / max(2.0, len(values) / 50)
    mean = values[: max(1, len(values) // 50)].mean()
    for i, value in enumerate(values):
        mean = keep * mean + (1 - keep) * value
        smooth[i] = mean
    index = np.arange(1, len(values) + 1)
    ax.plot(index, values, color=color, alpha=0.2, linewidth=0.6)
    ax.plot(index, smooth, color=color, label=label)
    ax.set_xlabel("step")
    ax.set_ylabel("loss")
    return ax


def paths(ax: Axes, track: Tensor, *, color: str = PREDICTION) -> Axes:
    """Draw the paths of points through a trajectory ``(N, B, 2)``, from start to end."""
    if track.ndim != 3 or track.shape[2] != 2:
        raise ValueError(f"track has shape {tuple(track.shape)}: give (N, B, 2)")
    lines = _array(track)
    ax.plot(lines[:, :, 0], lines[:, :, 1], color=color, alpha=0.5, linewidth=0.8)
    ax.scatter(lines[-1, :, 0], lines[-1, :, 1], s=10, c=color, zorder=3, linewidths=0)
    ax.set_aspect("equal")
    return ax


def fan(
    ax: Axes,
    hours: Tensor,
    samples: Tensor,
    *,
    color: str = PREDICTION,
    label: str | None = None,
    paths: int = 0,
) -> Axes:
    """Draw samples ``(S, L)`` over hours ``(L,)``: bands of 90 and 50 %, their median, some paths.

    Each band holds, hour by hour, the middle 90 or 50 % of the samples; a path need not stay in it.
    """
    if samples.ndim != 2 or hours.shape != samples.shape[1:] or len(samples) < 2:
        raise ValueError(
            f"samples has shape {tuple(samples.shape)} and hours {tuple(hours.shape)}: give (S, L),"
            " two samples or more, and (L,)"
        )
    if not 0 <= paths <= len(samples):
        raise ValueError(f"paths={paths}: give 0 to {len(samples)}, the samples there are")
    x, y = _array(hours), _array(samples)
    for inside, alpha in ((0.9, 0.2), (0.5, 0.35)):
        low, high = np.quantile(y, [(1 - inside) / 2, (1 + inside) / 2], axis=0)
        ax.fill_between(x, low, high, color=color, alpha=alpha, linewidth=0)
    ax.plot(x, np.median(y, axis=0), color=color, label=label)
    if paths:
        ax.plot(x, y[:paths].T, color=color, alpha=0.5, linewidth=0.6)
    return ax


def gaps(ax: Axes, observed: Tensor, known: Tensor) -> Axes:
    """Draw what a network is shown of one window ``(L, K)``: known, hidden, and never observed.

    Hours run to the right, channels down. Green is known, orange was observed and is hidden, grey
    is missing.
    """
    if (
        known.shape != observed.shape
        or observed.ndim != 2
        or {known.dtype, observed.dtype} != {torch.bool}
    ):
        raise ValueError(
            f"observed has shape {tuple(observed.shape)} and dtype {observed.dtype}, known "
            f"{tuple(known.shape)} and {known.dtype}: give two bool masks (L, K)"
        )
    if bool((known & ~observed).any()):
        raise ValueError("known marks values that were not observed: give known & observed")
    shade = (observed.int() + known.int()).T
    colours = ListedColormap(["#d9d9d9", PREDICTION, KNOWN])
    ax.imshow(_array(shade), cmap=colours, vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    ax.grid(False)
    return ax
