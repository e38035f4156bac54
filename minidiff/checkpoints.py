"""Trained models that ship with the package, and files of your own.

``load("mnist-ddpm")`` returns a model that is ready to sample from. Every shipped file has a card
beside it (data, command, seconds, seed, loss, checksum) and can be made again with

    python -m minidiff.checkpoints train mnist-ddpm

Files are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .denoiser import Denoiser
from .losses import denoising_loss
from .nets import UNet
from .schedules import BetaTable, linear_betas
from .training import EMA, load_weights, processes, read_tensors, train, write_tensors

WEIGHTS = Path(__file__).parent / "weights"
FORMAT = "minidiff-weights-1"


def save(model: nn.Module, path: str | Path, *, half: bool = False, note: str = "") -> None:
    """Write a model's weights to one safetensors file.

    Args:
        model: Any module; of a trained model the average, ``ema.model``.
        path: File to write; an older one is replaced only when the new one is whole.
        half: Store floating weights as float16, half the size.
        note: A line about the model, kept in the file.
    """
    tensors = {
        k: v.half() if half and v.is_floating_point() else v for k, v in model.state_dict().items()
    }
    write_tensors(path, tensors, {"format": FORMAT, "note": note})


def restore(model: nn.Module, path: str | Path) -> None:
    """Read weights written by :func:`save` into a model built with the same arguments.

    Raises:
        ValueError: if the file is missing, truncated, foreign, or does not fit the model; the
            model is then unchanged.
    """
    tensors, info = read_tensors(path)
    if info.get("format") != FORMAT:
        raise ValueError(
            f"path={str(path)!r} holds {info.get('format', 'another kind of data')}, not weights: "
            "write it with minidiff.checkpoints.save(ema.model, path)"
        )
    load_weights(model, tensors, f"path={str(path)!r}")


@dataclass(frozen=True)
class Recipe:
    """How a shipped model is built and trained."""

    about: str
    build: Callable[[], Denoiser]
    data: Callable[[], Any]
    steps: int
    batch: int
    lr: float
    decay: float = 0.9995
    warmup: int = 500

    def rate(self, k: int) -> float:
        """Learning rate of step k: a linear warm-up, then half a cosine down to 0."""
        rest = max(k - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return self.lr * min(1.0, (k + 1) / self.warmup) * (1 + math.cos(math.pi * rest)) / 2


def _mnist_ddpm() -> Denoiser:
    net = UNet(1, width=40, mults=(1, 2), attention=(1,), patch=2, dropout=0.05)
    return Denoiser(net, BetaTable(linear_betas(1000)), "eps")


def _mnist_train() -> Tensor:
    from .data import mnist5k

    return mnist5k()[0][:4000]


RECIPES: dict[str, Recipe] = {
    "mnist-ddpm": Recipe(
        "unconditional DDPM (eps, linear betas, T = 1000) on the first 4,000 digits of mnist5k()",
        _mnist_ddpm,
        _mnist_train,
        steps=10_000,
        batch=64,
        lr=1e-3,
    ),
}


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"name={name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def load(name: str) -> Denoiser:
    """Return a shipped model in eval mode, on the CPU, in float32.

    Args:
        name: A key of ``RECIPES``, such as ``"mnist-ddpm"``.

    Raises:
        ValueError: if the name is unknown, the file is missing, or its checksum differs from
            its card's.
    """
    recipe = _recipe(name)
    path = WEIGHTS / f"{name}.safetensors"
    if not (path.exists() and path.with_suffix(".json").exists()):
        raise ValueError(
            f"name={name!r}: {path.name} or its card is not in {path.parent}: install minidiff "
            f"again, or make them with python -m minidiff.checkpoints train {name}"
        )
    card = json.loads(path.with_suffix(".json").read_text())
    if hashlib.sha256(path.read_bytes()).hexdigest() != card["sha256"]:
        raise ValueError(
            f"name={name!r}: {path.name} does not match the checksum on its card: it was changed "
            "or cut short; install minidiff again"
        )
    with torch.random.fork_rng([]):  # the weights that are drawn here are replaced at once
        model = recipe.build()
    restore(model, path)
    return model.eval().requires_grad_(False)


def make(
    name: str, folder: str | Path = WEIGHTS, *, steps: int | None = None, seed: int = 0
) -> None:
    """Train a shipped model as its card says and write file and card into ``folder``.

    Can be interrupted and called again. Takes half an hour to hours on a CPU. Under
    ``accelerate launch -m minidiff.checkpoints train NAME`` all processes share each batch.
    """
    from tqdm import tqdm

    from .data import batches

    recipe, folder = _recipe(name), Path(folder)
    steps = recipe.steps if steps is None else steps
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = recipe.build()
    here = processes()
    device, first = here.device, here.rank == 0  # the first process alone talks and writes
    model.to(device)
    ema = EMA(model, recipe.decay)
    feed = batches(recipe.data(), recipe.batch, seed)
    running = folder / f"{name}.training.safetensors"
    start, recent = time.perf_counter(), 0.0

    def loss(x: Tensor, rng: torch.Generator) -> Tensor:
        return denoising_loss(model, x.to(device), rng=rng).mean()

    run = train(
        loss, model, feed, steps=steps, lr=recipe.rate, ema=ema, seed=seed, save=running
    )  # fmt: skip
    for step in (bar := tqdm(run, total=steps, mininterval=10, disable=not first)):
        recent = step.loss if step.index == 1 else 0.99 * recent + 0.01 * step.loss
        bar.set_postfix(loss=f"{recent:.4f}", refresh=False)
    if not first:
        return
    path = folder / f"{name}.safetensors"
    save(ema.model, path, half=True, note=recipe.about)
    card = {
        "about": recipe.about,
        "command": f"python -m minidiff.checkpoints train {name} --steps {steps} --seed {seed}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "images": steps * recipe.batch,
        "seconds": round(time.perf_counter() - start),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}, {here.count} x {device.type}",
        "torch": torch.__version__,
        "seed": seed,
        "loss": round(recent, 5),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    path.with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n")
    running.unlink()


def main(argv: list[str] | None = None) -> None:
    """Command line: ``python -m minidiff.checkpoints train NAME``."""
    parser = argparse.ArgumentParser(prog="python -m minidiff.checkpoints")
    parser.add_argument("action", choices=["train", "list"])
    parser.add_argument("name", nargs="?", choices=sorted(RECIPES))
    parser.add_argument("--folder", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.action == "list":
        for name, recipe in RECIPES.items():
            print(f"{name}: {recipe.about}")
    elif args.name is None:
        parser.error("train needs a name")
    else:
        make(args.name, args.folder, steps=args.steps, seed=args.seed)


if __name__ == "__main__":
    main()
