"""Make the picture of the README: a spiral and digits, each on its way from noise to data.

    python scripts/readme_picture.py

Trains the spiral's network in about a minute; the digits come from the shipped checkpoint.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import matplotlib  # noqa: E402

matplotlib.use("agg")

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

import minidiff as md  # noqa: E402

SHOWN = [1.0, 0.6, 0.4, 0.3, 0.2, 0.1, 0.05, 0.0]  # times of the eight frames


def spiral() -> torch.Tensor:
    """Return the frames of 3,000 points, shape (8, 3000, 2)."""
    data = md.data.swiss_roll(10_000, rng=md.tensors.seeded(0))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        net = md.nets.MLP(2)
    model = md.Denoiser(net, md.BetaTable(md.linear_betas(200)), "eps")
    ema = md.EMA(model)
    run = md.train(
        lambda x, rng: md.denoising_loss(model, x, rng=rng).mean(), model,
        md.data.batches(data, 256), steps=4000, lr=lambda k: 2e-3 * (1 - k / 4000), ema=ema,
    )  # fmt: skip
    for _ in run:
        pass
    return frames(ema.model, model.schedule, (3000, 2))


def digits() -> torch.Tensor:
    """Return the frames of three digits, shape (8, 3, 1, 28, 28)."""
    model = md.checkpoints.load("mnist-ddpm")
    return frames(md.clip(model, -1, 1), model.schedule, (3, 1, 28, 28), seed=6)


def frames(denoise, schedule, shape, seed: int = 1) -> torch.Tensor:
    x = md.prior(schedule, shape, rng=md.tensors.seeded(seed))
    times = md.ddpm_steps(schedule.T)
    track = md.trajectory(md.ancestral(denoise, schedule, x, times, rng=md.tensors.seeded(seed, 1)))
    every = torch.cat([x[None], track])
    return torch.stack([every[int((times - t).abs().argmin())] for t in SHOWN])


def main() -> None:
    torch.set_num_threads(1)
    md.plots.use_style()
    fig = plt.figure(figsize=(9.6, 4.6), layout="constrained")
    grid = fig.add_gridspec(2, 1, height_ratios=[1.15, 3])
    top, bottom = fig.add_subfigure(grid[0]), fig.add_subfigure(grid[1])
    for ax, points, t in zip(top.subplots(1, 8), spiral(), SHOWN, strict=True):
        md.plots.scatter(ax, points, color=md.plots.PREDICTION, size=0.8, reach=2.8)
        ax.set_axis_off()
        ax.set_title(f"t = {t:g}", loc="center", fontsize=9)
    md.plots.images(
        bottom.subplots(), digits().transpose(0, 1).flatten(0, 1).clamp(-1, 1), columns=8
    )
    target = ROOT / "book" / "_static" / "readme.png"
    fig.savefig(target, dpi=100)
    print(f"{target.relative_to(ROOT)}: {target.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
