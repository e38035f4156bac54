"""Guidance as wrappers: functions from denoisers to a denoiser.

Those that hold known entries stand in ``conditions`` and can be had from here too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .conditions import drop, inpaint, replace, rounded
from .denoiser import Denoise
from .predictions import FAINT
from .schedules import Level, Schedule
from .tensors import bcast

__all__ = [
    "cfg",
    "classifier",
    "clip",
    "drop",
    "dynamic_threshold",
    "energy",
    "inpaint",
    "interval",
    "replace",
    "rounded",
]

LogProb = Callable[[Tensor, Tensor], Tensor]
Energy = Callable[[Tensor], Tensor]


def clip(denoise: Denoise, low: float, high: float) -> Denoise:
    r"""Keep the prediction inside the range of the data: ``min(max(x0, low), high)``.

    Raises:
        ValueError: if low is not below high.

    Source: released code of Ho, Jain and Abbeel (2020); the paper does not mention it.
    """
    if not low < high:
        raise ValueError(f"low={low}, high={high}: need low < high, such as -1 and 1")

    def clipped(x: Tensor, t: Tensor, /) -> Tensor:
        return denoise(x, t).clamp(low, high)

    return clipped


def cfg(cond: Denoise, uncond: Denoise, scale: float) -> Denoise:
    r"""Classifier-free guidance (:eq:`eq:cfg`).

    .. math:: \hat x_0 = D(x,t) + \mathrm{scale}\,\bigl(D(x,t\mid c) - D(x,t)\bigr)

    Args:
        cond: Denoiser given the condition, ``model.given(c)``.
        uncond: Denoiser without it, ``model.given(None)``.
        scale: 0 is unconditional, 1 conditional, above 1 guided. The w of Ho and Salimans is
            ``scale - 1``; at 0 and 1 only one of the two is evaluated.

    Raises:
        ValueError: if scale is negative or not finite.

    Source: Ho and Salimans (2022), equation 6.
    """
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale={scale}: give 0 (unconditional), 1 (conditional) or more")

    def guided(x: Tensor, t: Tensor, /) -> Tensor:
        if scale == 0:
            return uncond(x, t)
        if scale == 1:
            return cond(x, t)
        free = uncond(x, t)
        return free + scale * (cond(x, t) - free)

    return guided


def interval(
    guided: Denoise, plain: Denoise, schedule: Schedule, *, low: float, high: float
) -> Denoise:
    r"""Guide only at middle noise levels (:eq:`eq:interval`).

    .. math:: \hat x_0 = \begin{cases} \hat x_0^{\mathrm{guided}} & \mathrm{low} <
        \mathrm{noise}/\mathrm{signal} \le \mathrm{high} \\ \hat x_0^{\mathrm{plain}} &
        \text{otherwise}\end{cases}

    At high noise guidance makes samples alike, at low noise it changes nothing but the cost.

    Args:
        guided: The denoiser inside the interval, such as ``cfg(cond, uncond, 3.0)``.
        plain: The denoiser outside, such as ``cond``.
        schedule: The path.
        low: Noise-to-signal ratio below which, and at which, guidance is off.
        high: Ratio above which it is off.

    Raises:
        ValueError: if not 0 <= low < high.

    Source: Kynkaanniemi et al. (2024), equation 3.
    """
    if not 0 <= low < high:
        raise ValueError(f"low={low}, high={high}: need 0 <= low < high, in units of noise/signal")

    def limited(x: Tensor, t: Tensor, /) -> Tensor:
        at = schedule(t)
        ratio = at.noise / at.signal
        inside = (ratio > low) & (ratio <= high)
        if bool(inside.all()):
            return guided(x, t)
        if not bool(inside.any()):
            return plain(x, t)
        return torch.where(bcast(inside, x).to(x.device), guided(x, t), plain(x, t))

    return limited


def classifier(denoise: Denoise, schedule: Schedule, log_prob: LogProb, scale: float) -> Denoise:
    r"""Classifier guidance: add the classifier's gradient to the score (:eq:`eq:classifier`).

    .. math:: \hat x_0 = D(x,t) + \mathrm{scale}\;\frac{\mathrm{noise}^2}{\mathrm{signal}}\;
        \nabla_x\log p(c\mid x_t=x)

    With the exact classifier and scale 1 this is the exact conditional denoiser.

    Args:
        denoise: ``(x, t) -> x0``, unconditional or not.
        schedule: The path.
        log_prob: ``(x, t) -> (B,)``, log-probability of the wanted class given *noisy* x,
            differentiable in x. One that was trained on clean data only misleads.
        scale: 0 is off, 1 is Bayes' rule, more is sharper.

    Raises:
        ValueError: if scale is not finite; when called, if log_prob does not return one value an
            example or has no gradient, or signal < 1e-6.

    Source: Dhariwal and Nichol (2021), equation 14 and algorithm 2.
    """
    _check_scale(scale)

    def guided(x: Tensor, t: Tensor, /) -> Tensor:
        noisy = _tracked(x)
        with torch.enable_grad():
            gradient = _gradient("log_prob", log_prob(noisy, t), noisy, keep=noisy is x)
        return denoise(x, t) + scale * _pull(schedule, t, x) * gradient

    return guided


def energy(denoise: Denoise, schedule: Schedule, energy: Energy, scale: float) -> Denoise:
    r"""Guide by any function of the prediction; lower is better (:eq:`eq:energy`).

    .. math:: \hat x_0 = D(x,t) - \mathrm{scale}\;\frac{\mathrm{noise}^2}{\mathrm{signal}}\;
        \nabla_x E\bigl(D(x,t)\bigr)

    The gradient runs through the denoiser, so E needs to know clean data only. It takes
    :math:`E(D(x,t))` for :math:`-\log\mathrm E[e^{-E(x_0)}\mid x_t]`, which it is not: where the
    posterior is wide it moves too far (:eq:`eq:energy-bias`), and samples crowd round the target
    (:eq:`eq:energy-samples`).

    Args:
        denoise: ``(x, t) -> x0``, differentiable in x.
        schedule: The path.
        energy: ``x0 -> (B,)``, differentiable.
        scale: Weight of the energy; 0 is off.

    Raises:
        ValueError: if scale is not finite; when called, if energy does not return one value an
            example or has no gradient, or signal < 1e-6.

    Source: Chung et al. (2023), equation 16; Bansal et al. (2023), equation 6.
    """
    _check_scale(scale)

    def guided(x: Tensor, t: Tensor, /) -> Tensor:
        noisy = _tracked(x)
        with torch.enable_grad():
            x0 = denoise(noisy, t)
            gradient = _gradient("energy", energy(x0), noisy, keep=noisy is x)
        return (x0 if noisy is x else x0.detach()) - scale * _pull(schedule, t, x) * gradient

    return guided


def _check_scale(scale: float) -> None:
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale}: give a finite number, 0 is off")


def _tracked(x: Tensor) -> Tensor:
    """Return x itself where the caller differentiates through it, else a leaf of its own."""
    return x if torch.is_grad_enabled() and x.requires_grad else x.detach().requires_grad_()


def _gradient(name: str, value: Tensor, x: Tensor, *, keep: bool) -> Tensor:
    """Gradient of ``value`` in x; ``keep`` makes it differentiable, as a likelihood needs it."""
    if value.shape != x.shape[:1]:
        raise ValueError(
            f"{name} returned shape {tuple(value.shape)} for {len(x)} examples: return one value "
            "an example"
        )
    gradient = None
    if value.requires_grad:  # perhaps only in the weights of a network
        gradient = torch.autograd.grad(value.sum(), x, create_graph=keep, allow_unused=True)[0]
    if gradient is None:
        raise ValueError(
            f"{name} returned a value without a gradient in x: leave no_grad, inference_mode and "
            "detach out of it and of what it calls"
        )
    return gradient


def _pull(schedule: Schedule, t: Tensor, x: Tensor) -> Tensor:
    """noise^2 / signal, which turns a change of the score into one of x0."""
    at: Level = schedule(t)
    if bool((at.signal < FAINT).any()):
        raise ValueError(
            f"signal={float(at.signal.min()):.3g} is below {FAINT}: a gradient in x says nothing "
            "about x0 there; start the grid below t = 1"
        )
    at = at.over(x)
    return at.noise**2 / at.signal


def dynamic_threshold(denoise: Denoise, *, quantile: float = 0.995, floor: float = 1.0) -> Denoise:
    r"""Clip each prediction at its own quantile and shrink it back (:eq:`eq:threshold`).

    .. math:: \hat x_0 = \frac{\min(\max(D,-s),\,s)}{s/\mathrm{floor}}, \qquad
        s = \max\bigl(\mathrm{floor},\;\text{quantile of }|D|\bigr)

    Keeps strongly guided images from saturating. For pixels in [-floor, floor].

    Args:
        denoise: ``(x, t) -> x0``.
        quantile: Share of an example's entries that shall stay inside.
        floor: Half the range of the data.

    Raises:
        ValueError: if the quantile is not in (0, 1] or floor is not positive and finite.

    Source: Saharia et al. (2022), Imagen, section 2.3.
    """
    if not (0 < quantile <= 1 and 0 < floor < math.inf):
        raise ValueError(
            f"quantile={quantile}, floor={floor}: need 0 < quantile <= 1 and 0 < floor < infinity"
        )

    def limited(x: Tensor, t: Tensor, /) -> Tensor:
        x0 = denoise(x, t)
        sizes = x0.abs().reshape(len(x0), -1)
        if sizes.dtype != torch.float64:
            sizes = sizes.float()  # torch has no quantile of half precision
        s = torch.quantile(sizes, quantile, dim=1).clamp(min=floor).to(x0)
        return (x0 * (floor / bcast(s, x0))).clamp(-floor, floor)

    return limited
