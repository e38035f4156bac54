"""Safetensors files that are always whole: written aside and renamed, read without unpickling."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn


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
