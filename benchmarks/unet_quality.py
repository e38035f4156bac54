"""What two U-Nets of one size learn in the same CPU time: FD of digits, minidiff and diffusers.

    OMP_NUM_THREADS=1 python benchmarks/unet_quality.py --json FILE            # about an hour
    OMP_NUM_THREADS=1 python benchmarks/unet_quality.py --budget 30 --seeds 0  # a quick look

Each net has three levels and two residual blocks a level and takes 28x28 images; the parameters
agree within 5 %. Everything else is the same code for all: 4,000 digits of ``data.mnist5k``, batch
32, Adam with a warm-up and half a cosine down to 0 over the budget, v-prediction on the cosine
table of 1,000 steps, an EMA, gradient clipping, float32, one thread. A run ends when the process
has used its budget of CPU seconds (``time.process_time``). Then the average makes 1,000 digits in
20 DDIM steps, and their FD to the 1,000 held-out digits is measured as everywhere in the course.

Ours comes twice: with the plan of the other, pixel by pixel, and with patches of 2 x 2 pixels
stacked into channels, as the shipped models have it. With ``--json`` finished runs are kept in the
file and not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from unet_throughput import peer

import minidiff as md

BATCH, LR, DECAY, WARMUP = 32, 1e-3, 0.98, 0.05


class Peer(nn.Module):
    """diffusers' net behind our interface ``net(x, t, cond)``."""

    def __init__(self) -> None:
        super().__init__()
        self.net = peer()

    def forward(self, x: Tensor, t: Tensor, cond: None = None) -> Tensor:
        """Return the net's output; it counts time in steps."""
        return self.net(x, 1000 * t - 1).sample


NETS: dict[str, Callable[[], nn.Module]] = {
    "minidiff, patches of 2": lambda: md.nets.UNet(1, width=32, mults=(1, 2, 2), blocks=2, patch=2),
    "minidiff": lambda: md.nets.UNet(1, width=32, mults=(1, 2, 2), blocks=2),
    "diffusers": Peer,
}

KEYS = dict(zip(("patched", "pixels", "diffusers"), NETS, strict=True))


def run(name: str, seed: int, budget: float, count: int) -> dict[str, Any]:
    """Train one net for ``budget`` CPU seconds and measure its samples."""
    digits = md.data.split(*md.data.mnist5k(), 1000)
    torch.manual_seed(seed)
    model = md.Denoiser(NETS[name](), md.BetaTable(md.cosine_betas(1000)), "v")
    ema = md.EMA(model, DECAY)

    def loss(x: Tensor, rng: torch.Generator) -> Tensor:
        return md.denoising_loss(model, x, rng=rng).mean()

    start = time.process_time()

    def rate(_: int) -> float:
        share = min((time.process_time() - start) / budget, 1.0)
        return LR * min(1.0, share / WARMUP) * (1 + math.cos(math.pi * share)) / 2

    steps = md.train(
        loss, model, md.data.batches(digits.x, BATCH, seed),
        steps=10**6, lr=rate, ema=ema, seed=seed,
    )  # fmt: skip
    done = _within(budget, start, steps)
    seconds = time.process_time() - start
    evaluation = md.evaluation.mnist5k()
    quality = evaluation.quality(_sample(ema.model, count))
    return {
        "net": name,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 1),
        "steps": done,
        "images_a_second": round(done * BATCH / seconds, 1),
        **{k: round(v, 4) for k, v in quality._asdict().items()},
        "floor": round(evaluation.floor(count).fd, 4),
    }


def _within(budget: float, start: float, steps: Iterator[md.Step]) -> int:
    done = 0
    for step in steps:
        done = step.index
        if time.process_time() - start > budget:
            break
    return done


@torch.no_grad()
def _sample(model: Any, count: int) -> Tensor:
    grid, clipped, parts = md.grids.strided(1000, 20), md.clip(model, -1, 1), []
    for i in range(0, count, 100):
        shape = (min(100, count - i), 1, 28, 28)
        x = md.prior(model.schedule, shape, rng=md.tensors.seeded(99, i))
        parts.append(md.last(md.ddim(clipped, model.schedule, x, grid)))
    return torch.cat(parts)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table of benchmarks/README.md."""
    lines = [
        "| U-Net | parameters | images a second | FD by seed | mean FD | confident |",
        "|---|---:|---:|---|---:|---:|",
    ]
    for name in NETS:
        mine = [r for r in rows if r["net"] == name]
        if mine:
            speed = statistics.mean(r["images_a_second"] for r in mine)
            fds = ", ".join(f"{r['fd']:.1f}" for r in mine)
            mean = statistics.mean(r["fd"] for r in mine)
            sure = statistics.mean(r["confident"] for r in mine)
            lines.append(
                f"| {name} | {mine[0]['parameters']:,} | {speed:.0f} | {fds} | {mean:.1f} | "
                f"{sure:.0%} |"
            )
    return "\n".join(lines)


def numbers(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what the book prints: per net means over seeds with the range, and two ratios."""
    found: dict[str, Any] = {}
    mean = statistics.mean
    for key, name in KEYS.items():
        mine = [r for r in rows if r["net"] == name]
        for field in ("parameters", "images_a_second", "fd", "confident") if mine else ():
            values = [r[field] for r in mine]
            found[f"{key}_{field}"] = {
                "value": mean(values), "band": [min(values), max(values)], "seeds": len(values),
            }  # fmt: skip
            found[f"{key}_{field}_low"] = {"value": min(values)}
            found[f"{key}_{field}_high"] = {"value": max(values)}
    for key in KEYS:
        for field in ("images_a_second", "fd"):
            if {f"{key}_{field}", f"diffusers_{field}"} <= set(found):
                ratio = found[f"{key}_{field}"]["value"] / found[f"diffusers_{field}"]["value"]
                found[f"{key}_{field}_ratio"] = {"value": ratio}
    return found


def main() -> None:
    """Run what is not in the file yet and print the table."""
    parser = argparse.ArgumentParser(description="FD of two U-Nets after the same CPU time")
    parser.add_argument("--budget", type=float, default=200, help="CPU seconds of training a run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--count", type=int, default=1000, help="samples a run")
    parser.add_argument("--json", type=Path, help="file of finished runs, read and written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    told = {
        "budget": args.budget,
        "batch": BATCH,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    rows: list[dict[str, Any]] = []
    if args.json is not None and args.json.exists():
        old = json.loads(args.json.read_text())
        if {k: old[k] for k in told} != told:
            raise SystemExit(f"{args.json} holds runs with other settings: name another file")
        rows = old["rows"]
    for seed in args.seeds:
        for name in args.nets:
            if any((r["net"], r["seed"]) == (name, seed) for r in rows):
                continue
            rows.append(run(name, seed, args.budget, args.count))
            print(json.dumps(rows[-1]), flush=True)
            if args.json is not None:
                record = {**told, "rows": rows, "numbers": numbers(rows)}
                args.json.write_text(json.dumps(record, indent=1) + "\n")
    print(f"\n{args.budget:g} CPU seconds a run, floor {rows[0]['floor']:.1f}\n")
    print(table(rows))


if __name__ == "__main__":
    main()
