"""Guidance and conditions as wrappers: functions from denoisers to a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from .denoiser import Denoise
from .tensors import check_mask


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
        ValueError: if scale is negative.

    Source: Ho and Salimans (2022), equation 6.
    """
    if not scale >= 0:
        raise ValueError(f"scale={scale}: give 0 (unconditional), 1 (conditional) or more")

    def guided(x: Tensor, t: Tensor, /) -> Tensor:
        if scale == 0:
            return uncond(x, t)
        if scale == 1:
            return cond(x, t)
        free = uncond(x, t)
        return free + scale * (cond(x, t) - free)

    return guided


def inpaint(denoise: Denoise, values: Tensor, known: Tensor) -> Denoise:
    r"""Hold known entries at their values, before and after the denoiser (:eq:`eq:inpaint`).

    .. math:: \hat x_0 = m\odot v + (1-m)\odot D\bigl(m\odot v+(1-m)\odot x,\;t\bigr)

    Known entries come back bit-exact under every sampler, because its last step returns the
    prediction. The denoiser must have been trained to see clean values there (``known`` in
    ``denoising_loss``), or the result is not a sample of the conditional distribution.

    Args:
        denoise: ``(x, t) -> x0``.
        values: The known values, shape ``(B, *event)``; ignored where not known (NaN is fine).
        known: bool, True = observed; broadcastable to ``values``.

    Raises:
        ValueError: if known is not a bool mask for values, or a known value is not finite.

    Source: Tashiro et al. (2021), section 4.
    """
    known = check_mask("known", known, values)
    if not bool(torch.isfinite(values[known]).all()):
        raise ValueError("values holds NaN or infinite entries where known: mark them unknown")

    def held(x: Tensor, t: Tensor, /) -> Tensor:
        mask, clean = known.to(x.device), values.to(x)
        return torch.where(mask, clean, denoise(torch.where(mask, clean, x), t))

    return held
