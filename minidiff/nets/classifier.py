"""Two classifiers of small images, unlike each other, to measure samples with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES = 64  # size of the layer before the last


class Classifier(nn.Module):
    """Convolutions and max-pooling, then a layer of 64 features, then a score for each class.

    Args:
        classes: Number of classes.
        width: Channels of the first convolution.

    Shapes: ``(B, 1, 28, 28) -> (B, classes)``; any size from 12 on.
    """

    def __init__(self, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(3),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(18 * width, FEATURES),
        )
        self.last = nn.Linear(FEATURES, classes)

    def features(self, x: Tensor) -> Tensor:
        """Return the 64 numbers that the classes are read from, shape ``(B, 64)``."""
        return F.relu(self.body(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


class PatchClassifier(nn.Module):
    """A small transformer over patches of 4 x 4 pixels, for images of 28 x 28.

    It shares no layer type with :class:`Classifier` but the linear one, so the two do not make the
    same mistakes for the same reason.
    """

    def __init__(self, classes: int = 10, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.enter = nn.Linear(16, width)
        self.place = nn.Parameter(0.02 * torch.randn(49, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.1, "relu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (1, 28, 28):
            raise ValueError(f"x has shape {tuple(x.shape)}: give (B, 1, 28, 28)")
        patches = F.pixel_unshuffle(x, 4).flatten(2).transpose(1, 2)
        h = self.body(self.enter(patches) + self.place)
        return self.last(self.norm(h.mean(1)))
