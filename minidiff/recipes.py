"""How each shipped model is built and trained: one recipe a name. `checkpoints` runs them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import data
from .apps import csdi, targets, weather
from .bounds import hybrid_loss
from .conditions import drop
from .denoiser import Denoiser
from .heads import TwoOutputs, add_head
from .losses import denoising_loss, npr_loss, sn_loss
from .nets import Classifier, PatchClassifier, UNet
from .schedules import BetaTable
from .tables import cosine_betas
from .times import low_discrepancy_times

Loss = Callable[[Any, Any, torch.Generator], Tensor]  # (model, batch, rng) -> scalar
TIMES = low_discrepancy_times


@dataclass(frozen=True)
class Recipe:
    """How a shipped model is built and trained.

    Attributes:
        about: One line for the card.
        build: Makes the model with fresh weights, drawn from torch's global generator.
        data: The training set, a tensor or a tuple of tensors.
        loss: ``(model, batch, rng) -> scalar``.
        steps: Number of updates.
        batch: Examples an update.
        lr: Largest learning rate.
        decay: Of the average of the weights that is kept.
        warmup: Steps of linear warm-up.
        autocast: Compute the loss in this dtype.
        body: A recipe whose trained net the model is built on, and whose weights stay.
        start: A recipe whose weights the training begins with; what it has not stays fresh.
    """

    about: str
    build: Callable[..., Any]
    data: Callable[[], Any]
    loss: Loss
    steps: int
    batch: int = 128
    lr: float = 2e-3
    decay: float = 0.9995
    warmup: int = 500
    autocast: torch.dtype | None = torch.bfloat16
    body: str | None = None
    start: str | None = None

    def rate(self, k: int) -> float:
        """Learning rate of step k: a linear warm-up, then half a cosine down to 0."""
        rest = max(k - self.warmup, 0) / max(self.steps - self.warmup, 1)
        return self.lr * min(1.0, (k + 1) / self.warmup) * (1 + math.cos(math.pi * rest)) / 2

    def part(self, model: Any) -> nn.Module:
        """Return what is trained, and written to a file: all of the model, or its head."""
        return model if self.body is None else model.net.head


# ---- data: the split that every chapter uses ----------------------------------------------------


def _digits() -> data.Split:
    return data.split(*data.mnist5k(), 1000)


def _small_digits() -> data.Split:
    return data.split(*data.digits8x8(), 497)


def _weather_days() -> data.Windows:
    parts = weather.split()
    return parts.cut(parts.train, weather.DAY)


def _weather_runs(channels: str) -> data.Windows:
    parts = weather.split(weather.SETS[channels])
    return parts.cut(parts.train, weather.HISTORY + weather.HORIZON)


# ---- models -------------------------------------------------------------------------------------


def _mnist(classes: int | None = None) -> Denoiser:
    net = UNet(1, width=40, mults=(1, 2), attention=(1,), patch=2, dropout=0.1, classes=classes)
    return Denoiser(net, BetaTable(cosine_betas(1000)), "v")


def _small(out: int = 1) -> UNet:
    return UNet(1, out=out, width=32, mults=(1, 2), attention=(1,), dropout=0.1)


def _small_digits_model() -> Denoiser:
    return Denoiser(_small(), BetaTable(cosine_betas(1000)), "v")


def _small_hybrid() -> Denoiser:
    return Denoiser(TwoOutputs(_small(out=2)), BetaTable(cosine_betas(1000)), "v")


# ---- losses -------------------------------------------------------------------------------------


def _denoise(model: Denoiser, x: Tensor, rng: torch.Generator) -> Tensor:
    return denoising_loss(model, x, times=TIMES, rng=rng).mean()


def _denoise_given(model: Denoiser, batch: tuple[Tensor, Tensor], rng: torch.Generator) -> Tensor:
    x, labels = batch
    null = torch.tensor(10, device=labels.device)
    cond = drop(labels, null, 0.1, rng=rng)
    return denoising_loss(model, x, cond=cond, times=TIMES, rng=rng).mean()


def _hybrid(model: Denoiser, x: Tensor, rng: torch.Generator) -> Tensor:
    return hybrid_loss(model, x, times=TIMES, rng=rng).mean()


def _sn(model: Denoiser, x: Tensor, rng: torch.Generator) -> Tensor:
    return sn_loss(model, x, times=TIMES, rng=rng).mean()


def _npr(model: Denoiser, x: Tensor, rng: torch.Generator) -> Tensor:
    return npr_loss(model, x, times=TIMES, rng=rng).mean()


def _classify(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    rng: torch.Generator,
    *,
    shake: Callable[..., Tensor],
) -> Tensor:
    x, labels = batch
    return F.cross_entropy(model(shake(x, rng=rng)), labels)


_shake = partial(_classify, shake=data.jitter)

STATIONS = torch.arange(15) // 5
HIDE = targets.mixed_targets(targets.random_targets, targets.block_targets(6, 24, STATIONS))


def _hide_all(observed: Tensor, rng: torch.Generator) -> Tensor:
    return torch.zeros_like(observed)


def _impute(model: Denoiser, batch: Any, rng: torch.Generator, *, hide: targets.Strategy) -> Tensor:
    return csdi.loss(model, data.Windows(*batch), hide, times=TIMES, rng=rng)


def _forecast(model: Any, batch: Any, rng: torch.Generator) -> Tensor:
    return model.loss(data.Windows(*batch), weather.HISTORY, rng=rng)


IMPUTER = partial(
    Recipe, build=weather.imputer, data=_weather_days, steps=8000, batch=32, lr=1e-3, decay=0.999,
    warmup=300,
)  # fmt: skip


def forecasting(channels: str, head: str) -> Recipe:
    """Return how a forecaster of the weather is trained: all heads alike."""
    return Recipe(
        f"GRU with a {head} head, forecasts of {channels} weather",
        partial(weather.forecaster, channels, head),
        partial(_weather_runs, channels),
        _forecast,
        steps=1500,
        batch=64,
        decay=0.998,
        warmup=200,
        autocast=None,
    )


CLASSIFIER = partial(
    Recipe,
    data=lambda: _digits()[:2],
    loss=_shake,
    steps=4000,
    lr=1.5e-3,
    decay=0.998,
    warmup=200,
    autocast=None,
)
ON_MNIST = partial(
    Recipe,
    build=add_head,
    data=lambda: _digits().x,
    steps=2000,
    lr=1e-3,
    body="mnist-ddpm",
    autocast=None,
)
ON_SMALL = partial(
    Recipe,
    build=add_head,
    data=lambda: _small_digits().x,
    steps=2500,
    lr=1e-3,
    body="digits-ddpm",
    autocast=None,
)

RECIPES: dict[str, Recipe] = {
    "mnist-ddpm": Recipe(
        "unconditional DDPM (v, cosine betas, T = 1000) on 4,000 digits of mnist5k()",
        _mnist,
        lambda: _digits().x,
        _denoise,
        steps=10_000,
    ),
    "mnist-ddpm-conditional": Recipe(
        "mnist-ddpm trained on with its classes; one label in ten replaced by the null class 10",
        partial(_mnist, 10),
        lambda: _digits()[:2],
        _denoise_given,
        steps=8000,
        lr=1e-3,
        start="mnist-ddpm",
    ),
    "mnist-range": ON_MNIST("mnist-ddpm and a head for the learned range", loss=_hybrid),
    "mnist-sn": ON_MNIST("mnist-ddpm and a head for the squared noise", loss=_sn),
    "mnist-npr": ON_MNIST("mnist-ddpm and a head for the squared residual", loss=_npr),
    "mnist-classifier": CLASSIFIER("convolutions, 64 features; its features define FD", Classifier),
    "mnist-judge": CLASSIFIER(
        "transformer on patches, the independent classifier", PatchClassifier, steps=6000
    ),
    "digits-ddpm": Recipe(
        "unconditional DDPM (v, cosine betas, T = 1000) on 1,300 digits of digits8x8()",
        _small_digits_model,
        lambda: _small_digits().x,
        _denoise,
        steps=4000,
    ),
    "digits-hybrid": Recipe(
        "mean and learned range together by L_hybrid, otherwise digits-ddpm",
        _small_hybrid,
        lambda: _small_digits().x,
        _hybrid,
        steps=4000,
    ),
    "digits-range": ON_SMALL("digits-ddpm and a head for the learned range", loss=_hybrid),
    "digits-sn": ON_SMALL("digits-ddpm and a head for the squared noise", loss=_sn),
    "digits-npr": ON_SMALL("digits-ddpm and a head for the squared residual", loss=_npr),
    "digits-classifier": CLASSIFIER(
        "convolutions, 64 features, for digits8x8()",
        partial(Classifier, 10, 16),
        data=lambda: _small_digits()[:2],
        steps=3000,
    ),
    "weather-csdi": IMPUTER(
        "CSDI on 24 hours of 15 channels; hides values at random, or hours of a station",
        loss=partial(_impute, hide=HIDE),
    ),
    "weather-blind": IMPUTER(
        "the network of weather-csdi, never shown a value: unconditional diffusion",
        loss=partial(_impute, hide=_hide_all),
    ),
    "weather-timegrad": forecasting("smooth", "diffusion"),
    "weather-timegrad-rough": forecasting("rough", "diffusion"),
}
