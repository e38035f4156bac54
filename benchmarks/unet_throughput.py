"""How many images a second two U-Nets of one size train on: minidiff and diffusers, as a ratio.

    OMP_NUM_THREADS=1 python benchmarks/unet_throughput.py                  # a table
    OMP_NUM_THREADS=1 python benchmarks/unet_throughput.py --json FILE      # and the numbers

Both nets have three levels and two residual blocks a level, attention in the middle only, and take
28x28 images of one channel; their widths are chosen so that the numbers of parameters agree within
6 %. One pass is a forward and a backward pass of a squared error on a batch of 32. The two take
turns in random order; the clock counts the thread's own CPU time; medians. On a GPU (``--device
cuda``) the clock is the wall's, after synchronising. What a net learns in that time is another
question, which this table does not ask. Where the package ``denoising-diffusion-pytorch`` is
installed (it is not needed), its U-Net runs too; it has linear attention on every level.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

import minidiff as md

SHAPE = (32, 1, 28, 28)


class Row(NamedTuple):
    net: str
    parameters: int
    forward: float  # images a second
    training: float


def peer() -> Any:
    """Return diffusers' U-Net with the plan of ours: its widths give as many parameters."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 72),
        down_block_types=("DownBlock2D",) * 3,
        up_block_types=("UpBlock2D",) * 3,
        norm_num_groups=8,
        attention_head_dim=8,
    )


def nets(device: str = "cpu") -> dict[str, tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]]:
    """Return both nets with their calls ``(x, t) -> y``, t in [0, 1]."""
    torch.manual_seed(0)
    ours = md.nets.UNet(1, width=32, mults=(1, 2, 2), blocks=2)
    theirs = peer()
    ours, theirs = ours.to(device), theirs.to(device)
    found: dict[str, tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]] = {
        "minidiff": (ours, lambda x, t: ours(x, t, None)),
        "diffusers": (theirs, lambda x, t: theirs(x, 999 * t).sample),
    }
    try:
        third = importlib.import_module("denoising_diffusion_pytorch")
    except ImportError:
        return found
    other = third.Unet(34, dim_mults=(1, 2, 2), channels=1).to(device)
    return found | {"denoising-diffusion-pytorch": (other, lambda x, t: other(x, 999 * t))}


def measure(*, repeats: int = 9, device: str = "cpu") -> list[Row]:
    """Return a row for each net, ours first.

    Args:
        repeats: Timed passes of each kind on each side, after one that warms up.
        device: Where both nets run.
    """
    clock = time.thread_time if device == "cpu" else time.perf_counter
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=rng).to(device)
    t = torch.rand(len(x), generator=rng).to(device)
    both, order = nets(device), random.Random(0)

    def forward(name: str) -> None:
        with torch.no_grad():
            both[name][1](x, t)

    def training(name: str) -> None:
        both[name][0].zero_grad(set_to_none=True)
        (both[name][1](x, t) - x).square().mean().backward()

    def seconds(work: Callable[[str], None], name: str) -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        start = clock()
        work(name)
        if device != "cpu":
            torch.cuda.synchronize()
        return clock() - start

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[tuple[str, str], list[float]] = {}
    try:
        for work in (forward, training):
            for name in both:
                work(name)
            for _ in range(repeats):
                for name in order.sample(list(both), len(both)):
                    times.setdefault((work.__name__, name), []).append(seconds(work, name))
    finally:
        torch.set_num_threads(threads)

    def rate(kind: str, name: str) -> float:
        return len(x) / statistics.median(times[kind, name])

    return [Row(n, _size(both[n][0]), rate("forward", n), rate("training", n)) for n in both]


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def main() -> None:
    """Print the table of benchmarks/README.md."""
    parser = argparse.ArgumentParser(description="images a second of two U-Nets of one size")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes on each side")
    parser.add_argument("--device", default="cpu", help="cpu (one thread) or cuda")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    rows = measure(repeats=args.repeats, device=args.device)
    print(f"batch {SHAPE}, {args.device}, medians of {args.repeats} passes, images a second;")
    print("in brackets ours / theirs")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}\n")
    print("| U-Net | parameters | forward | forward and backward |")
    print("|---|---:|---:|---:|")
    for r in rows:
        cells = [
            f"{theirs:.{0 if theirs > 9 else 2}f} ({ours / theirs:.2f})"
            for ours, theirs in zip(rows[0][1:], r[1:], strict=True)
        ]
        print(f"| {r.net} | {' | '.join(cells)} |")
    record = {
        "batch": SHAPE,
        "device": args.device,
        "repeats": args.repeats,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "rows": [r._asdict() for r in rows],
    }
    print("\n" + json.dumps(record))
    if args.json is not None:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
