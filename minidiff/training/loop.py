"""Training as a generator that can be killed at any step and goes on to the same bits."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from ..tensors import seeded
from .distributed import processes
from .files import load_weights, read_tensors, write_tensors
from .update import Update, check_autocast

__all__ = ["EMA", "FORMAT", "Step", "load_weights", "read_tensors", "train", "write_tensors"]

FORMAT = "minidiff-training-1"
PARTS = "processes*accumulate"  # how many parts a batch is cut into
OLDER = {PARTS: 1, "autocast": "None"}  # files from before these were written down


class Step(NamedTuple):
    """What a training step reports, after the update.

    Attributes:
        index: Number of updates made so far, from 1.
        loss: Loss of the batch before the update, averaged over parts and processes.
        grad_norm: Norm of the gradient before clipping; not finite where float16 overflowed and
            the update was skipped.
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
    accumulate: int = 1,
    autocast: torch.dtype | None = None,
) -> Iterator[Step]:
    r"""Train ``model`` and yield after every update.

    Step k draws everything from ``(seed, k)``: the batch, the loss's noise, and dropout. So a
    run that was killed and started again with the same arguments goes on from the saved file
    and ends at the same bits as an unbroken run, and the global random state stays untouched.

    Under ``accelerate launch`` every process calls this with the same arguments and takes its
    share of each batch. With processes times ``accumulate`` = N, the batch is cut into N equal
    parts P_j. For a loss that is a mean over examples, the gradients of the parts average to
    that of the whole (:eq:`eq:accumulate`):

    .. math:: \nabla\,\frac1B\sum_{i=1}^B \ell_i
        = \frac1N\sum_{j=1}^N \nabla\,\frac NB\sum_{i\in P_j} \ell_i

    Each part has its own noise and dropout, which depend on j and not on the process, so only N
    matters. A layer that looks across examples, such as batch normalisation, sees one part.

    Args:
        loss: ``(batch, rng) -> scalar``; rng is a CPU generator made for this step and part.
        model: The model, put into training mode. Of several processes each has its own, on
            ``distributed.processes().device``; they start from the weights of process 0, and
            buffers are those of process 0 after every step.
        batches: ``step -> batch``, a pure function that returns the whole batch on every process;
            see ``minidiff.data.batches``, and ``distributed.share`` for what a batch may be.
        steps: Number of updates of the whole run.
        lr: Learning rate, or a function of the step's index (from 0).
        ema: Average of the weights to keep.
        clip: Largest gradient norm; None does not clip.
        seed: Seed of the run.
        save: File to resume from if it exists, and to write to every ``save_every`` steps and at
            the end. Written under a temporary name and renamed, so it is always whole. Process 0
            writes it, all read it. Refused with another model, optimiser, ``steps``, ``seed``, N
            or ``autocast``. Not checked: ``lr``, ``clip``, the decay of ``ema``, data and loss.
        save_every: Steps between two writes.
        optimizer: Makes the optimiser from the parameters; its lr is set before every step.
        accumulate: Number of equal parts that a process cuts its share into, and works through
            one after the other to save memory.
        autocast: ``torch.bfloat16`` or ``torch.float16``: compute the loss under
            ``torch.autocast`` with float32 weights. float16 needs a GPU; its loss is scaled so
            that small gradients survive, and an update whose gradients overflow is skipped.

    Yields:
        ``Step(index, loss, grad_norm)``, the same on all processes, which must go on together.

    Raises:
        ValueError: at the call, if an argument is out of range or the saved file belongs to
            another run; in a step, if the batch cannot be cut, or the loss is not a finite scalar
            or its gradient is not finite, on one process or all (the weights are then those of
            before the step).
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: give a whole number of updates, at least 1")
    if not isinstance(save_every, int) or save_every < 1:
        raise ValueError(f"save_every={save_every!r}: give a whole number of steps, at least 1")
    if not isinstance(accumulate, int) or accumulate < 1:
        raise ValueError(f"accumulate={accumulate!r}: give a whole number of parts, at least 1")
    if clip is not None and not clip > 0:
        raise ValueError(f"clip={clip}: give the largest gradient norm, or None")
    if not callable(lr) and not lr >= 0:
        raise ValueError(f"lr={lr}: give a learning rate of at least 0")
    seeded(seed)  # refuses a bad seed now
    params = [p for p in model.parameters() if p.requires_grad]
    if not params:
        raise ValueError("model has no parameter that requires a gradient: nothing to train")
    scaler, opt, here = check_autocast(autocast, params), optimizer(params), processes()
    here.check_device(params)
    path = None if save is None else Path(save)
    run_of = {"steps": steps, "seed": seed, "optimizer": type(opt).__name__}
    run_of |= {PARTS: here.count * accumulate, "autocast": str(autocast)}
    size = sum(p.numel() for p in params)
    here.check_same(run_of | {"parameters": size, "ema": ema is not None, "save_every": save_every})
    for module in (model,) if ema is None else (model, ema.model):
        here.copy_from_first([*module.parameters(), *module.buffers()])

    def resume() -> float:
        if path is None or not path.exists():
            return 0
        return _resume(path, model, ema, opt, params, scaler, **run_of)

    starts = [int(k) for k in here.each(resume)]
    if len(set(starts)) > 1:
        raise ValueError(
            f"save={str(path)!r} holds steps {starts} for the processes, by rank: name a file in a "
            "folder that all of them see"
        )
    rate = lr if callable(lr) else lambda _: float(lr)
    update = Update(loss, batches, params, opt, clip, seed, accumulate, autocast, scaler, here)

    def write(done: int) -> float:
        if here.rank == 0 and path is not None:
            _save(path, model, ema, opt, scaler, done=done, **run_of)
        return 0.0

    def run() -> Iterator[Step]:
        for k in range(starts[0], steps):
            model.train()  # every time: the caller may have sampled from it in between
            for group in opt.param_groups:
                group["lr"] = rate(k)
            value, norm = update(k)
            here.copy_from_first(model.buffers())
            if ema is not None:
                ema.update(model)
            if path is not None and ((k + 1) % save_every == 0 or k + 1 == steps):
                here.each(partial(write, k + 1))  # returns when the file is there
            yield Step(k + 1, value, norm)

    return run()


def _save(
    path: Path,
    model: nn.Module,
    ema: EMA | None,
    opt: torch.optim.Optimizer,
    scaler: GradScaler | None,
    **run: int | str,
) -> None:
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    if ema is not None:
        tensors |= {f"ema.{k}": v for k, v in ema.model.state_dict().items()}
    for i, state in opt.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    info: dict[str, Any] = run | {"ema_updates": -1 if ema is None else ema.updates}
    info["scaler"] = None if scaler is None else scaler.state_dict()
    write_tensors(path, tensors, {"format": FORMAT, "run": json.dumps(info)})


def _resume(
    path: Path,
    model: nn.Module,
    ema: EMA | None,
    opt: torch.optim.Optimizer,
    params: list[nn.Parameter],
    scaler: GradScaler | None,
    **want: int | str,
) -> int:
    tensors, info = read_tensors(path)
    if info.get("format") != FORMAT:
        raise ValueError(f"save={str(path)!r} was not written by train: choose another file name")
    run = OLDER | json.loads(info["run"])
    for name, value in want.items():
        if run[name] != value:
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
    if scaler is not None:
        scaler.load_state_dict(run["scaler"])
    opt.load_state_dict({"state": state, "param_groups": opt.state_dict()["param_groups"]})
    return int(run["done"])
