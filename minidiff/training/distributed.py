"""Several processes that train one model, as ``accelerate launch`` starts them, one on each device.

Every process runs the same script. :func:`~minidiff.training.loop.train` finds out by itself; a
script needs this module only to put its model in the right place and to do what one process alone
should do::

    here = md.training.processes()
    model.to(here.device)
    ...
    if here.rank == 0:
        print(step)

``accelerate launch --cpu --num_processes 2`` starts one process only, unless MPI is there. Two on
a machine without a GPU are ``accelerate launch --multi_gpu --num_processes 2``.
"""

from __future__ import annotations

import atexit
import math
import os
import zlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # as accelerate reads them


class Processes(NamedTuple):
    """The processes of this run, as one of them sees them. Alone, every method does nothing.

    Each method but ``device`` is a meeting: all processes must call it, in the same order.

    Attributes:
        rank: Index of this process, from 0.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1  # pyright: ignore[reportIncompatibleMethodOverride]

    @property
    def device(self) -> torch.device:
        """Device of this process; move the model here."""
        if self.count == 1:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        from accelerate import PartialState

        return torch.device(PartialState().device or "cpu")

    def check_device(self, params: Iterable[Tensor]) -> None:
        """Raise a ``ValueError`` if several processes run and a parameter is not on its device."""
        for p in params if self.count > 1 else ():
            if p.device.type != self.device.type or (p.is_cuda and p.device != self.device):
                raise ValueError(
                    f"model is on {p.device}, but process {self.rank} of {self.count} works on "
                    f"{self.device}: model.to(minidiff.training.processes().device)"
                )

    def check_same(self, facts: object) -> None:
        """Raise a ``ValueError`` if ``facts`` are printed differently on two processes."""
        if len(set(self.each(lambda: float(zlib.crc32(repr(facts).encode()))))) > 1:
            raise ValueError(
                f"process {self.rank} of {self.count} trains with {facts}, another process with "
                "something else: all must run the same script with the same arguments"
            )

    def each(self, work: Callable[[], float]) -> list[float]:
        """Do ``work`` on every process and return the numbers of all, in the order of ranks.

        Raises:
            ValueError: if it raises on another process (there the error itself is raised), so
                that no process waits for one that has stopped.
        """
        if self.count == 1:
            return [work()]
        from accelerate.utils import gather

        value, error = math.nan, None
        try:
            value = work()
        except Exception as raised:
            error = raised
        mine = torch.tensor([value], dtype=torch.float64, device=self.device)
        values: list[float] = gather(mine).tolist()  # type: ignore[union-attr]
        if error is not None:
            raise error
        failed = [rank for rank, value in enumerate(values) if math.isnan(value)]
        if failed:
            raise ValueError(
                f"process {failed[0]} of {self.count} failed: its own message says why; "
                "all of them stop here"
            )
        return values

    @torch.no_grad()
    def average_gradients(self, params: Iterable[Tensor]) -> None:
        r"""Replace each gradient by its mean over the processes (:eq:`eq:accumulate`).

        A parameter without a gradient on some processes counts as 0 there; without one on all of
        them it stays without.
        """
        if self.count == 1:
            return
        from accelerate.utils import reduce

        for dtype in dict.fromkeys(p.dtype for p in params):
            same = [p for p in params if p.dtype == dtype]
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in same]
            used = torch.tensor([float(p.grad is not None) for p in same])
            flat = torch.cat([*(g.flatten() for g in grads), used.to(grads[0])])
            mean: Tensor = reduce(flat, "mean")  # type: ignore[assignment]
            *means, used = mean.split([*(p.numel() for p in same), len(same)])
            for p, grad, value, users in zip(same, grads, means, used.tolist(), strict=True):
                p.grad = grad.copy_(value.view_as(grad)) if users else None

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Make tensors equal to those of process 0, in place."""
        if self.count == 1:
            return
        from accelerate.utils import broadcast

        for tensor in tensors:
            first = tensor.detach().clone(memory_format=torch.contiguous_format)
            broadcast(first)
            tensor.copy_(first)


def processes() -> Processes:
    """Return the processes that a launcher started, and join them; one when there was no launcher.

    ``accelerate`` is imported only if the environment says that there are several.

    Raises:
        ModuleNotFoundError: if there are several, and accelerate is not installed.
        ValueError: if accelerate sees another number of processes than the environment names.
    """
    by_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1")
    names = ("WORLD_SIZE", *MPI) if by_cpu else ("WORLD_SIZE",)
    count = max(int(os.environ.get(name) or 1) for name in names)
    if count == 1:
        return Processes()
    try:
        from accelerate import PartialState
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{count} processes were launched, but accelerate is not here: pip install accelerate"
        ) from None
    ours = not torch.distributed.is_initialized()
    state = PartialState(cpu=by_cpu or not torch.cuda.is_available())
    if ours and torch.distributed.is_initialized():
        atexit.register(state.destroy_process_group)  # or NCCL complains when Python ends
    if state.num_processes != count:
        raise ValueError(
            f"WORLD_SIZE={count}, but accelerate sees {state.num_processes} processes: start the "
            "script with accelerate launch, or unset WORLD_SIZE"
        )
    return Processes(state.process_index, count)


def share(batch: Any, index: int, of: int) -> Any:
    """Return part ``index`` of a batch that is cut into ``of`` equal parts along its leading axis.

    Args:
        batch: A tensor, or tuples, lists, NamedTuples and dicts of tensors, all with the same
            number of examples on the leading axis. Anything else, tensors without axes included,
            is passed on as it is.
        index: Which part, from 0.
        of: Number of parts; 1 returns the batch itself.

    Raises:
        ValueError: if the tensors differ in length, or the length is not a multiple of ``of``.
    """
    if of == 1:
        return batch
    lengths: set[int] = set()

    def cut(x: Any) -> Any:
        if isinstance(x, Tensor) and x.ndim:
            lengths.add(len(x))
            size = len(x) // of
            return x[index * size : (index + 1) * size]
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return type(x)(*map(cut, x))
        if isinstance(x, tuple | list):
            return type(x)(map(cut, x))
        if isinstance(x, dict):
            return {key: cut(value) for key, value in x.items()}
        return x

    part = cut(batch)
    if len(lengths) > 1:
        raise ValueError(
            f"batch has tensors of lengths {sorted(lengths)}: to be cut into {of} parts they must "
            "agree; keep what is not one row an example out of the batch"
        )
    if any(n % of or not n for n in lengths):
        raise ValueError(
            f"batch has {lengths.pop()} examples, which cannot be cut into {of} equal parts "
            "(processes times accumulate): make the batch size a multiple"
        )
    return part
