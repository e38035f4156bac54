"""Training as a generator that can be killed at any step and goes on to the same bits."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from .tensors import mixed_seed, seeded

FORMAT = "minidiff-training-1"


class Step(NamedTuple):
    """What a training step reports, after the update.

    Attributes:
        index: Number of updates made so far, from 1.
        loss: Loss of the batch before the update.
        grad_norm: Norm of the gradient before clipping.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    loss: float
    grad_norm: float


class EMA:
    r"""Exponential moving average of a model's weights (:eq:`eq:ema`).

    .. math:: \bar\theta \leftarrow d\,\bar\theta + (1-d)\,\theta,
        \qquad d = \min\Bigl(\mathrm{decay},\,\frac{1+n}{10+n}\Bigr)

    where n = 0, 1, .. counts the updates made before this one, so that the first, poor weights are
    soon forgotten. Buffers are copied.

    Args:
        model: The model in training.
        decay: Largest decay, in [0, 1).

    Attributes:
        model: The averaged copy, in eval mode and without gradients: sample from this one.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: give a number in [0, 1), such as 0.999")
        self.decay, self.updates = decay, 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights of ``model``."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        theirs = dict(model.named_parameters())
        for name, mean in self.model.named_parameters():
            mean.lerp_(theirs[name].detach(), 1 - decay)
        now = dict(model.named_buffers())
        for name, buffer in self.model.named_buffers():
            buffer.copy_(now[name])


def train(
    loss: Callable[[Any, torch.Generator], Tensor],
    model: nn.Module,
    batches: Callable[[int], Any],
    *,
    steps: int,
    lr: float | Callable[[int], float],
    ema: EMA | None = None,
    clip: float | None = 1.0,
    seed: int = 0,
    save: str | Path | None = None,
    save_every: int = 500,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = torch.optim.Adam,
) -> Iterator[Step]:
    """Train ``model`` and yield after every update.

    Step k draws everything from ``(seed, k)``: the batch, the loss's noise, and dropout. So a
    run that was killed and started again with the same arguments goes on from the saved file
    and ends at the same bits as an unbroken run, and the global random state stays untouched.

    Args:
        loss: ``(batch, rng) -> scalar``; rng is a CPU generator made for this step.
        model: The model, put into training mode.
        batches: ``step -> batch``, a pure function; see ``minidiff.data.batches``.
        steps: Number of updates of the whole run.
        lr: Learning rate, or a function of the step's index (from 0).
        ema: Average of the weights to keep.
        clip: Largest gradient norm; None does not clip.
        seed: Seed of the run.
        save: File to resume from if it exists, and to write to every ``save_every`` steps and at
            the end. Written under a temporary name and renamed, so it is always whole.
        save_every: Steps between two writes.
        optimizer: Makes the optimiser from the parameters; its lr is set before every step.

    Yields:
        ``Step(index, loss, grad_norm)``.

    Raises:
        ValueError: at the call, if an argument is out of range or the saved file belongs to
            another run; in a step, if the loss is not a finite scalar or its gradient is not
            finite (the weights are then those of before the step).
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: give a whole number of updates, at least 1")
    if not isinstance(save_every, int) or save_every < 1:
        raise ValueError(f"save_every={save_every!r}: give a whole number of steps, at least 1")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: give the largest gradient norm, or None")
    if not callable(lr) and not lr >= 0:
        raise ValueError(f"lr={lr}: give a learning rate of at least 0")
    seeded(seed)  # refuses a bad seed now
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model has no parameter that requires a gradient: nothing to train")
    opt = optimizer(params)
    path = None if save is None else Path(save)
    start, run_of = 0, {"steps": steps, "seed": seed, "optimizer": type(opt).__name__}
    if path is not None and path.exists():
        start = _resume(path, model, ema, opt, params, **run_of)
    rate = lr if callable(lr) else lambda _: float(lr)

    def run() -> Iterator[Step]:
        for k in range(start, steps):
            model.train()  # every time: the caller may have sampled from it in between
            for group in opt.param_groups:
                group["lr"] = rate(k)
            value, norm = _update(loss, model, batches, params, opt, clip, (seed, k))
            if ema is not None:
                ema.update(model)
            if path is not None and ((k + 1) % save_every == 0 or k + 1 == steps):
                _save(path, model, ema, opt, done=k + 1, **run_of)
            yield Step(k + 1, value, norm)

    return run()


def _update(
    loss: Callable[[Any, torch.Generator], Tensor],
    model: nn.Module,
    batches: Callable[[int], Any],
    params: list[nn.Parameter],
    opt: torch.optim.Optimizer,
    clip: float | None,
    key: tuple[int, int],
) -> tuple[float, float]:
    devices = sorted({p.device.index or 0 for p in params if p.device.type == "cuda"})
    with torch.random.fork_rng(devices):  # dropout draws from the global state
        for state in (
            torch.default_generator,
            *(torch.cuda.default_generators[d] for d in devices),
        ):
            state.manual_seed(mixed_seed(*key, 1))
        opt.zero_grad(set_to_none=True)
        value = loss(batches(key[1]), seeded(*key, 0))
        if value.ndim != 0:
            raise ValueError(f"loss has shape {tuple(value.shape)}: return a scalar, e.g. .mean()")
        if not bool(torch.isfinite(value)):
            raise ValueError(
                f"loss is {value.item()} at step {key[1]}: lower lr, or check data and dtype"
            )
        value.backward()
        norm = nn.utils.clip_grad_norm_(params, math.inf if clip is None else clip)
        if not bool(torch.isfinite(norm)):
            raise ValueError(
                f"the gradient of loss has norm {float(norm)} at step {key[1]}: lower lr, or keep "
                "roots and logarithms in the loss away from 0"
            )
        opt.step()
    return float(value.detach()), float(norm)


# ---- files -----------------------------------------------------------------------------------


def write_tensors(path: str | Path, tensors: dict[str, Tensor], info: dict[str, str]) -> None:
    """Write a safetensors file under a temporary name, flush it to disk and rename it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    # clone: safetensors refuses tensors that share memory
    own = {k: v.detach().to("cpu").clone().contiguous() for k, v in tensors.items()}
    with open(partial, "wb") as file:  # not save_file: it makes files that only their owner reads
        file.write(to_bytes(own, metadata=info))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file; nothing is ever unpickled.

    Raises:
        ValueError: if the file is missing, truncated, or not a safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            return {k: file.get_tensor(k) for k in file.keys()}, dict(file.metadata() or {})
    except FileNotFoundError:
        raise ValueError(f"path={str(path)!r} does not exist: check the name") from None
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"path={str(path)!r} is not a whole safetensors file ({error}): it is truncated or "
            "was written by another program; minidiff never unpickles, save it again with "
            "minidiff.checkpoints.save"
        ) from None


def load_weights(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy tensors into a module; names and shapes must agree exactly.

    Raises:
        ValueError: naming the first tensors that are missing, left over or of another shape.
    """
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        raise ValueError(
            f"{where} does not fit the model: missing {missing[:3]}, left over {extra[:3]}; "
            "build the model with the arguments it was saved with"
        )
    for name, value in own.items():
        if value.shape != tensors[name].shape:
            raise ValueError(
                f"{where}: {name} has shape {tuple(tensors[name].shape)}, the model "
                f"{tuple(value.shape)}; build the model with the arguments it was saved with"
            )
    module.load_state_dict(tensors)


def _save(
    path: Path,
    model: nn.Module,
    ema: EMA | None,
    opt: torch.optim.Optimizer,
    **run: int | str,
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{k}": v for k, v in ema.model.state_dict().items()}
    for i, state in opt.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    info = run | {"ema_updates": -1 if ema is None else ema.updates}
    write_tensors(path, tensors, {"format": FORMAT, "run": json.dumps(info)})


def _resume(
    path: Path,
    model: nn.Module,
    ema: EMA | None,
    opt: torch.optim.Optimizer,
    params: list[nn.Parameter],
    **want: int | str,
) -> int:
    tensors, info = read_tensors(path)
    if info.get("format") != FORMAT:
        raise ValueError(f"save={str(path)!r} was not written by train: choose another file name")
    run = json.loads(info["run"])
    for name, value in want.items():
        if run.get(name, value) != value:
            raise ValueError(
                f"{name}={value}, but save={str(path)!r} holds a run with {name}={run[name]}: "
                "use the same arguments to resume, or another file for another run"
            )
    if (run["ema_updates"] >= 0) != (ema is not None):
        raise ValueError(
            f"save={str(path)!r} was written with{'out' if ema else ''} ema: do the same"
        )

    def part(name: str) -> dict[str, Tensor]:
        return {k[len(name) :]: v for k, v in tensors.items() if k.startswith(name)}

    load_weights(model, part("model."), str(path))
    if ema is not None:
        load_weights(ema.model, part("ema."), str(path))
        ema.updates = run["ema_updates"]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in part("optimizer.").items():
        index, name = key.split(".", 1)
        if name != "step" and value.shape != params[int(index)].shape:
            raise ValueError(f"{path}: the optimiser's {key} has shape {tuple(value.shape)}")
        state.setdefault(int(index), {})[name] = value
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return int(run["done"])
