"""What a sampler costs beside the network: minidiff and diffusers in one process, as a ratio.

    python benchmarks/sampler_overhead.py                  # a table
    python benchmarks/sampler_overhead.py --json FILE      # and the numbers

The network does nothing (it returns its input), so what is left is the sampler: its own
arithmetic on a batch of shape (16, 1, 28, 28), and everything around it. Both sides start a chain
from the same noise on the same table of 1000 betas, visit the same steps and, for DDIM, end at the
same sample, which is checked before anything is timed. A chain is timed whole, with the setting up
of its grid, and divided by its number of steps. The two sides take turns in random order, one
untimed chain and one timed; one thread, garbage collector off. The clock counts the thread's own
CPU time, so that other programs disturb little. The numbers are medians, and only their ratio means
anything on another machine.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor, nn

import minidiff as md

SHAPE = (16, 1, 28, 28)
TRAIN_STEPS = 1000
Chain = Callable[[], Tensor]


class Row(NamedTuple):
    sampler: str
    steps: int
    ours_us: float  # microseconds a step
    theirs_us: float
    ratio: float  # median over the repeats of ours / theirs
    quartiles: tuple[float, float]  # of the ratio


class Nothing(nn.Module):
    """A network that returns its input."""

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return x


def ddim_chains(steps: int) -> tuple[Chain, Chain]:
    """Return DDIM with eta 0 as (ours, theirs)."""
    model, x, net = _model(), _start(), Nothing()
    theirs: Any = DDIMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_schedule="linear",
        clip_sample=False,
        timestep_spacing="trailing",
    )

    def our_chain() -> Tensor:
        return md.last(md.ddim(model, model.schedule, x, md.grids.strided(TRAIN_STEPS, steps)))

    @torch.no_grad()
    def their_chain() -> Tensor:
        theirs.set_timesteps(steps)
        sample = x
        for t in theirs.timesteps:
            sample = theirs.step(net(sample, t), t, sample).prev_sample
        return sample

    return our_chain, their_chain


def ancestral_chains(steps: int) -> tuple[Chain, Chain]:
    """Return ancestral sampling with the posterior variance as (ours, theirs)."""
    model, x, net = _model(), _start(), Nothing()
    rng, their_rng = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    theirs: Any = DDPMScheduler(
        num_train_timesteps=TRAIN_STEPS,
        beta_schedule="linear",
        variance_type="fixed_small",
        clip_sample=False,
        timestep_spacing="trailing",
    )

    def our_chain() -> Tensor:
        times = md.grids.strided(TRAIN_STEPS, steps)
        return md.last(md.ancestral(model, model.schedule, x, times, rng=rng))

    @torch.no_grad()
    def their_chain() -> Tensor:
        theirs.set_timesteps(steps)
        sample = x
        for t in theirs.timesteps:
            sample = theirs.step(net(sample, t), t, sample, generator=their_rng).prev_sample
        return sample

    return our_chain, their_chain


def _model() -> md.Denoiser:
    return md.Denoiser(Nothing(), md.BetaTable(md.linear_betas(TRAIN_STEPS)), "eps")


def _start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


SAMPLERS = {"ddim": ddim_chains, "ancestral": ancestral_chains}


def measure(sampler: str, steps: int, *, repeats: int = 21) -> Row:
    """Time both sides in turns and return their medians.

    Args:
        sampler: A key of ``SAMPLERS``.
        steps: Steps of a chain.
        repeats: Timed chains on each side, after one that warms up.
    """
    chains = SAMPLERS[sampler](steps)
    ours, theirs = (chain() for chain in chains)  # warm: caches filled, code paths taken
    # same input, same steps, same network: for ddim the same answer, or the race is not one
    if sampler == "ddim" and not torch.allclose(ours, theirs, rtol=1e-3):
        raise ValueError(f"ddim in {steps} steps: the two sides disagree")
    order = random.Random(0)
    seconds: tuple[list[float], list[float]] = ([], [])
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for side in order.sample((0, 1), 2):
                chains[side]()  # the other side has just had the caches
                start = time.thread_time()
                chains[side]()
                seconds[side].append((time.thread_time() - start) / steps)
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
    # a pair is timed within a fraction of a second: a machine that slows down slows both
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    us = [1e6 * statistics.median(s) for s in seconds]
    return Row(sampler, steps, us[0], us[1], middle, (low, high))


def main() -> None:
    """Print the table of benchmarks/README.md."""
    parser = argparse.ArgumentParser(description="sampler cost beside a network that does nothing")
    parser.add_argument("--repeats", type=int, default=41, help="timed chains on each side")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    rows = [measure(s, n, repeats=args.repeats) for s in SAMPLERS for n in (50, 200)]
    print(f"batch {SHAPE}, one thread, medians of {args.repeats} chains, microseconds a step")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}\n")
    print("| sampler | steps | minidiff | diffusers | ratio | quartiles of the ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for r in rows:
        print(
            f"| {r.sampler} | {r.steps} | {r.ours_us:.0f} | {r.theirs_us:.0f} "
            f"| {r.ratio:.2f} | {r.quartiles[0]:.2f} to {r.quartiles[1]:.2f} |"
        )
    record = {
        "batch": SHAPE,
        "threads": 1,
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
