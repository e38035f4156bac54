"""What a sampler costs beside the network: minidiff and diffusers in one process, as a ratio.

    python benchmarks/sampler_overhead.py                  # a table
    python benchmarks/sampler_overhead.py --json FILE      # and the numbers

The network does nothing (it returns its input), so what is left is the sampler: its own
arithmetic on a batch of shape (16, 1, 28, 28), and everything around it. Both sides start a chain
from the same noise on the same table of 1000 betas and visit the same steps; where both follow the
same rule without noise they must end at the same sample, which is checked before anything is timed.
A chain is timed whole, with the setting up of its grid, and divided by its calls of the network.
The two sides take turns in random order, one untimed chain and one timed; one thread, garbage
collector off. The clock counts the thread's own CPU time, so that other programs disturb little.
The numbers are medians, and only their ratio means anything on another machine. A sampler without a
peer in diffusers has a row without a ratio.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeScheduler
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteScheduler
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import minidiff as md

SHAPE = (16, 1, 28, 28)
TRAIN_STEPS = 1000
CHAIN_DEFAULTS = {"num_train_timesteps": TRAIN_STEPS, "beta_schedule": "linear"}
Chain = Callable[[], Tensor]


class Row(NamedTuple):
    sampler: str
    steps: int
    calls: int  # of the network, a chain
    ours_us: float  # microseconds a call
    noise_us: float  # of them, drawing noise
    theirs_us: float | None
    ratio: float | None  # median over the repeats of ours / theirs
    quartiles: tuple[float, float] | None  # of the ratio


class Nothing(nn.Module):
    """A network that returns its input."""

    def forward(self, x: Tensor, t: Tensor, cond: object = None) -> Tensor:
        return x


class Sampler(NamedTuple):
    """How to run one on both sides, and what it costs by design."""

    ours: Callable[..., Any]  # (denoise, schedule, x, times, rng) -> states
    peer: Callable[[], Any] | None  # a scheduler of diffusers
    calls: Callable[[int], int] = lambda n: n  # of the network in n steps
    draws: Callable[[int], int] = lambda n: 0  # of noise in n steps
    equal: bool = False  # both sides end at the same sample


def _without_noise(sampler: Callable[..., Any]) -> Callable[..., Any]:
    return lambda denoise, schedule, x, times, rng: sampler(denoise, schedule, x, times)


def _with_noise(sampler: Callable[..., Any]) -> Callable[..., Any]:
    return lambda denoise, schedule, x, times, rng: sampler(denoise, schedule, x, times, rng=rng)


def _peer(kind: Callable[..., Any], **options: Any) -> Callable[[], Any]:
    return partial(kind, **CHAIN_DEFAULTS, timestep_spacing="trailing", **options)


SAMPLERS = {
    "ddim": Sampler(_without_noise(md.ddim), _peer(DDIMScheduler, clip_sample=False), equal=True),
    "ancestral": Sampler(
        _with_noise(md.ancestral),
        _peer(DDPMScheduler, clip_sample=False, variance_type="fixed_small"),
        draws=lambda n: n - 1,
    ),
    "dpmpp_2m": Sampler(
        _without_noise(md.dpmpp_2m),
        _peer(DPMSolverMultistepScheduler, final_sigmas_type="zero"),
    ),
    "euler": Sampler(_without_noise(md.euler), None),
    "heun": Sampler(_without_noise(md.heun), None, calls=lambda n: 2 * n - 1),
    "edm_heun": Sampler(
        _without_noise(md.edm_heun), _peer(HeunDiscreteScheduler), calls=lambda n: 2 * n - 1
    ),
    "consistency": Sampler(
        _with_noise(md.consistency),
        partial(CMStochasticIterativeScheduler, num_train_timesteps=TRAIN_STEPS),
        draws=lambda n: n - 1,
    ),
    "reverse_sde": Sampler(_with_noise(md.reverse_sde), None, draws=lambda n: n - 1),
    "predictor_corrector": Sampler(
        _with_noise(md.predictor_corrector),
        None,
        calls=lambda n: 2 * n,
        draws=lambda n: 2 * n - 1,
    ),
    "langevin": Sampler(
        _with_noise(partial(md.langevin, steps=3)),
        None,
        calls=lambda n: 3 * n + 1,
        draws=lambda n: 3 * n,
    ),
}


def chains(name: str, steps: int) -> tuple[Chain, Chain | None]:
    """Return one chain on each side; the other side is None where it has no such sampler."""
    sampler, x, net = SAMPLERS[name], _start(), Nothing()
    model = md.Denoiser(net, md.BetaTable(md.linear_betas(TRAIN_STEPS)), "eps")
    rng, their_rng = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)

    def our_chain() -> Tensor:
        times = md.grids.strided(TRAIN_STEPS, steps)
        return md.last(sampler.ours(model, model.schedule, x, times, rng))

    if sampler.peer is None:
        return our_chain, None
    theirs = sampler.peer()
    noisy = {"generator": their_rng} if sampler.draws(steps) else {}

    @torch.no_grad()
    def their_chain() -> Tensor:
        theirs.set_timesteps(steps)
        sample = x * float(theirs.init_noise_sigma)
        for t in theirs.timesteps:
            given = theirs.scale_model_input(sample, t)
            sample = theirs.step(net(given, t), t, sample, **noisy).prev_sample
        return sample

    return our_chain, their_chain


def _start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def _seconds(chain: Callable[[], object]) -> float:
    start = time.thread_time()
    chain()
    return time.thread_time() - start


def measure(name: str, steps: int, *, repeats: int = 21) -> Row:
    """Time both sides in turns and return their medians.

    Args:
        name: A key of ``SAMPLERS``.
        steps: Steps of a chain.
        repeats: Timed chains on each side, after one that warms up.
    """
    sampler, sides = SAMPLERS[name], [c for c in chains(name, steps) if c is not None]
    ends = [chain() for chain in sides]  # warm: caches filled, code paths taken
    # same input, same steps, same network: for ddim the same answer, or the race is not one
    if sampler.equal and not torch.allclose(ends[0], ends[1], rtol=1e-3):
        raise ValueError(f"{name} in {steps} steps: the two sides disagree")
    calls, rng = sampler.calls(steps), torch.Generator().manual_seed(0)
    order = random.Random(0)
    seconds: list[list[float]] = [[] for _ in sides]
    drawing: list[float] = []
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    torch.set_num_threads(1)
    gc.collect()
    gc.disable()
    try:
        for _ in range(repeats):
            for side in order.sample(range(len(sides)), len(sides)):
                sides[side]()  # the other side has just had the caches
                seconds[side].append(_seconds(sides[side]) / calls)
            draw = partial(_draw, sampler.draws(steps), rng)
            drawing.append(_seconds(draw) / calls)
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
    us = [1e6 * statistics.median(s) for s in (*seconds, drawing)]
    if len(sides) == 1:
        return Row(name, steps, calls, us[0], us[-1], None, None, None)
    # a pair is timed within a fraction of a second: a machine that slows down slows both
    ratios = [a / b for a, b in zip(*seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return Row(name, steps, calls, us[0], us[-1], us[1], middle, (low, high))


def work(name: str, steps: int) -> tuple[float, float]:
    """Count what our chain does for each call of the network: no clock, so the same every time.

    Returns:
        Functions called, of Python and of C, and operations that reach torch's dispatcher.
    """
    chain, calls = chains(name, steps)[0], SAMPLERS[name].calls(steps)
    for _ in range(2):
        chain()  # caches filled
    functions = 0

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal functions
        functions += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        chain()
    finally:
        sys.setprofile(before)
    with _Operations() as operations:
        chain()
    return functions / calls, operations.count / calls


class _Operations(TorchDispatchMode):
    """Count operations."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def _draw(times: int, rng: torch.Generator) -> None:
    for _ in range(times):
        torch.randn(SHAPE, generator=rng)


def main() -> None:
    """Print the table of benchmarks/README.md."""
    parser = argparse.ArgumentParser(description="sampler cost beside a network that does nothing")
    parser.add_argument("--repeats", type=int, default=41, help="timed chains on each side")
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    args = parser.parse_args()
    rows = [measure(s, n, repeats=args.repeats) for s in SAMPLERS for n in (50, 200)]
    print(f"batch {SHAPE}, one thread, medians of {args.repeats} chains, microseconds a call")
    print(f"torch {torch.__version__}, diffusers {diffusers.__version__}\n")
    print("| sampler | steps | calls | minidiff | of it noise | diffusers | ratio | quartiles |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        peer = "| | | |"
        if r.ratio is not None and r.quartiles is not None:
            low, high = r.quartiles
            peer = f"| {r.theirs_us:.0f} | {r.ratio:.2f} | {low:.2f} to {high:.2f} |"
        print(f"| {r.sampler} | {r.steps} | {r.calls} | {r.ours_us:.0f} | {r.noise_us:.0f} {peer}")
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
