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
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from .denoiser import Denoiser
from .recipes import RECIPES as RECIPES
from .recipes import Recipe as Recipe
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


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ValueError(f"name={name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


Others = Literal[
    "mnist-classifier", "mnist-judge", "digits-classifier", "weather-timegrad",
    "weather-timegrad-rough",
]  # fmt: skip


@overload
def load(name: Others) -> Any: ...
@overload
def load(name: str) -> Denoiser: ...
def load(name: str) -> Any:
    """Return a shipped model in eval mode, on the CPU, in float32.

    Args:
        name: A key of ``RECIPES``, such as ``"mnist-ddpm"``.

    Returns:
        A ``Denoiser``; for a classifier or a forecaster, that module.

    Raises:
        ValueError: if the name is unknown, the file is missing, or its checksum differs from
            its card's.
    """
    return _read(name, WEIGHTS)


def _read(name: str, folder: Path) -> Any:
    recipe = _recipe(name)
    path = folder / f"{name}.safetensors"
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
        model = _build(recipe, folder)
    restore(recipe.part(model), path)
    return model.eval().requires_grad_(False)


def _build(recipe: Recipe, folder: Path) -> Any:
    return recipe.build() if recipe.body is None else recipe.build(_read(recipe.body, folder))


def make(
    name: str, folder: str | Path = WEIGHTS, *, steps: int | None = None, seed: int = 0
) -> None:
    """Train a shipped model as its card says and write file and card into ``folder``.

    Can be interrupted and called again. Takes minutes to hours on a CPU. A recipe with a ``body``
    or a ``start`` reads that one from ``folder``. Under
    ``accelerate launch -m minidiff.checkpoints train NAME`` all processes share each batch.
    """
    recipe = _recipe(name) if steps is None else replace(_recipe(name), steps=steps)
    train_command = f"python -m minidiff.checkpoints train {name}"
    fit(recipe, name, folder, seed=seed, command=train_command)


def fit(recipe: Recipe, name: str, folder: str | Path, *, seed: int = 0, command: str = "") -> None:
    """Train a model by any recipe: write ``NAME.safetensors`` and its card into ``folder``.

    Can be interrupted and called again; see :func:`make`, which does this for the shipped models.

    Args:
        recipe: How; it need not be one of ``RECIPES``.
        name: Name of the two files.
        folder: Where to.
        seed: Of weights, order, noise and dropout.
        command: What the card says one should type, without steps and seed.
    """
    from tqdm import tqdm

    from .data import batches

    folder = Path(folder)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = _build(recipe, folder)
    if recipe.start is not None:
        model.load_state_dict(_read(recipe.start, folder).state_dict(), strict=False)
    here = processes()
    device, first = here.device, here.rank == 0  # the first process alone talks and writes
    model.to(device)
    ema = EMA(model, recipe.decay)
    feed = batches(recipe.data(), recipe.batch, seed)
    running = folder / f"{name}.training.safetensors"
    start, spent, timed, recent = time.perf_counter(), time.process_time(), 0, math.nan

    def loss(batch: Any, rng: torch.Generator) -> Tensor:
        if isinstance(batch, Tensor):
            return recipe.loss(model, batch.to(device), rng)
        return recipe.loss(model, tuple(b.to(device) for b in batch), rng)

    run = train(
        loss, model, feed, steps=recipe.steps, lr=recipe.rate, ema=ema, seed=seed, save=running,
        autocast=recipe.autocast,
    )  # fmt: skip
    for step in (bar := tqdm(run, total=recipe.steps, mininterval=10, disable=not first)):
        timed += 1
        recent = step.loss if timed == 1 else 0.99 * recent + 0.01 * step.loss
        bar.set_postfix(step=step.index, loss=f"{recent:.4f}", refresh=False)
    if not first:
        return
    path = folder / f"{name}.safetensors"
    save(recipe.part(ema.model), path, half=True, note=recipe.about)
    card = {
        "about": recipe.about,
        "command": f"{command} --steps {recipe.steps} --seed {seed}",
        "parameters": sum(p.numel() for p in recipe.part(model).parameters()),
        "body": recipe.body,
        "start": recipe.start,
        "steps": recipe.steps,
        "steps_timed": timed,  # fewer than steps if the run was interrupted: what seconds cover
        "examples": recipe.steps * recipe.batch,
        "seconds": round(time.perf_counter() - start),
        "cpu_seconds": round(time.process_time() - spent),
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
