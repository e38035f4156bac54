"""How good are samples of digits? Numbers that the course reports together, never one alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from .metrics import frechet_distance, nearest, precision_recall, usual_distance

SURE = 0.9  # a classification above this probability counts as confident


class Quality(NamedTuple):
    """What is known about a set of samples.

    Attributes:
        samples: How many there are; all distances depend on it.
        fd: Frechet distance to the held-out data in the features of a classifier (not FID).
        precision: Share of the samples that lie among held-out data.
        recall: Share of the held-out data that lie among samples.
        confident: Share that the classifier is sure of (above .9).
        memorisation: Median distance to the nearest training example over that of held-out data,
            as :func:`~minidiff.metrics.memorisation`.
    """

    samples: int
    fd: float
    precision: float
    recall: float
    confident: float
    memorisation: float


class Evaluation:
    """Measure samples against one data set with one classifier.

    The features of held-out data are computed once. ``floor`` is what training examples
    themselves get, at a count: no model needs to do better.

    Args:
        features: ``x (B, ...) -> (B, D)``, the layer before the last of a classifier.
        scores: ``x (B, ...) -> (B, classes)``, logits of the same classifier.
        train: Training data of the generative model, shape ``(N, ...)``.
        held_out: Data that neither the model nor the classifier was trained on.
        batch: Examples a call of the classifier.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        scores: Callable[[Tensor], Tensor],
        train: Tensor,
        held_out: Tensor,
        *,
        batch: int = 250,
    ) -> None:
        self._features, self._scores, self._batch = features, scores, batch
        self.train, self.held_out = train, held_out
        self._held_out = self.features(held_out)

    def features(self, x: Tensor) -> Tensor:
        """Return the classifier's features, shape ``(B, D)``, without gradient."""
        return self._map(self._features, x)

    def quality(self, samples: Tensor) -> Quality:
        """Measure a set of samples.

        Raises:
            ValueError: if their shape is not that of the data, or there are fewer than 4.
        """
        if samples.shape[1:] != self.held_out.shape[1:] or len(samples) < 4:
            raise ValueError(
                f"samples have shape {tuple(samples.shape)}: give at least 4 of shape "
                f"{tuple(self.held_out.shape[1:])}"
            )
        found = self.features(samples)
        both = precision_recall(self._held_out, found)
        sure = self._map(self._scores, samples).softmax(1).max(1).values > SURE
        return Quality(
            samples=len(samples),
            fd=frechet_distance(found, self._held_out),
            precision=both.precision,
            recall=both.recall,
            confident=float(sure.double().mean()),
            memorisation=float(nearest(samples, self.train)[0].median()) / self._usual,
        )

    @cached_property
    def _usual(self) -> float:
        """Median distance of held-out data to training data: the divisor of ``memorisation``."""
        return usual_distance(self.held_out, self.train)

    def floor(self, count: int) -> Quality:
        """Measure the first ``count`` training examples as if they were samples.

        Their ``memorisation`` is 0: they are copies.
        """
        if not 4 <= count <= len(self.train):
            raise ValueError(f"count={count}: give 4 to {len(self.train)}, what there is")
        return self.quality(self.train[:count])

    def _map(self, f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([f(part) for part in x.split(self._batch)])


def accuracy(scores: Callable[[Tensor], Tensor], x: Tensor, labels: Tensor) -> float:
    """Return the share of ``x`` whose best score is that of its label.

    Raises:
        ValueError: if the counts differ.
    """
    if labels.shape != (len(x),):
        raise ValueError(f"labels have shape {tuple(labels.shape)}: give ({len(x)},)")
    with torch.no_grad():
        best = torch.cat([scores(part).argmax(1) for part in x.split(250)])
    return float((best == labels).double().mean())


def mnist5k() -> Evaluation:
    """Return the evaluation of digits that the course uses everywhere.

    4,000 digits of ``data.mnist5k`` to train on, 1,000 held out, and the features of
    ``checkpoints.load("mnist-classifier")``. ``checkpoints.load("mnist-judge")`` is another
    classifier for :func:`accuracy`, with another architecture and another seed.
    """
    from . import checkpoints, data

    digits = data.split(*data.mnist5k(), 1000)
    classifier = checkpoints.load("mnist-classifier")
    return Evaluation(classifier.features, classifier, digits.x, digits.held_x)
