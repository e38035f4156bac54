"""Tables of betas: the noise variances of the T steps of a discrete chain, and changes to them.

Each function returns a float64 vector that :class:`~minidiff.schedules.BetaTable` turns into a
path.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def check_range(name: str, low: float, high: float) -> None:
    """Raise a ``ValueError`` if not 0 < ``name_min`` < ``name_max`` < infinity."""
    if not 0 < low < high < math.inf:
        raise ValueError(f"{name}_min={low}, {name}_max={high}: need 0 < {name}_min < {name}_max")


def check_betas(betas: Tensor) -> Tensor:
    """Return ``betas`` as a float64 CPU vector; raise if they are not variances of a chain.

    Each must lie in (0, 1). The last of two or more may be exactly 1: then nothing is left of the
    data at the end.
    """
    betas = torch.as_tensor(betas).detach().to("cpu", torch.float64)
    if betas.ndim != 1 or len(betas) == 0:
        raise ValueError(f"betas has shape {tuple(betas.shape)}: give a vector of T variances")
    inner = betas[:-1] if len(betas) > 1 and float(betas[-1]) == 1 else betas
    if not bool(((inner > 0) & (inner < 1)).all()):
        raise ValueError(
            f"betas span [{float(betas.min())}, {float(betas.max())}]: each must lie in (0, 1); "
            "only the last of several may be exactly 1"
        )
    return betas


def _refuse_steps(T: int) -> None:
    if not isinstance(T, int) or T < 1:
        raise ValueError(f"T={T!r}: give a whole number of steps, at least 1")


def linear_betas(T: int, *, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    r"""Linear table ``beta_min/T .. beta_max/T``: any T reaches noise (:eq:`eq:betas-linear`).

    .. math:: \beta_i = \frac1T\Bigl(\beta_{\min}
        + \frac{i-1}{T-1}(\beta_{\max}-\beta_{\min})\Bigr)

    With T = 1000 these are Ho et al.'s 1e-4 .. 0.02. Their two numbers used unscaled with fewer
    steps leave much of the data at t = 1 (alpha-bar_T = .36 at T = 100).

    Args:
        T: Number of steps, more than ``beta_max``.
        beta_min: Noise rate per unit of time at the first step, as in ``VP``.
        beta_max: Noise rate per unit of time at the last step, as in ``VP``.

    Raises:
        ValueError: if a beta would reach 1.

    Source: Ho, Jain and Abbeel (2020), section 4; scaling of Nichol and Dhariwal (2021).
    """
    _refuse_steps(T)
    check_range("beta", beta_min, beta_max)
    if beta_max >= T:
        raise ValueError(
            f"T={T} with beta_max={beta_max} gives a beta of {beta_max / T:.3g}: take T above "
            f"{beta_max:g}, or cosine_betas(T), which works for any T"
        )
    return torch.linspace(beta_min / T, beta_max / T, T, dtype=torch.float64)


def betas_from(alpha_bar: Callable[[float], float], T: int, *, most: float = 0.999) -> Tensor:
    """Table whose cumulative product follows ``alpha_bar(u)``, u in [0, 1], clipped at ``most``.

    What counts is the ratio to ``alpha_bar(0)``; ``alpha_bar(1)`` may be 0.

    Raises:
        ValueError: if alpha_bar does not fall, or is 0 before u = 1.
    """
    _refuse_steps(T)
    bars = [alpha_bar(i / T) for i in range(T + 1)]
    for i in range(T):
        if not bars[i] > max(bars[i + 1], 0):
            raise ValueError(
                f"alpha_bar({i / T:.4g})={bars[i]:.4g} is followed by {bars[i + 1]:.4g}: it must "
                "be above 0 before u = 1 and fall with every step"
            )
    ratios = [bars[i + 1] / bars[i] for i in range(T)]
    return torch.tensor([min(1 - r, most) for r in ratios], dtype=torch.float64)


def cosine_betas(T: int, *, offset: float = 0.008) -> Tensor:
    r"""Cosine table (:eq:`eq:betas-cosine`).

    .. math:: \bar\alpha(u) \propto \cos^2\Bigl(\frac{u+s}{1+s}\,\frac{\pi}{2}\Bigr),
        \qquad \beta_i = \min\Bigl(1-\frac{\bar\alpha(i/T)}{\bar\alpha((i-1)/T)},\,0.999\Bigr)

    Source: Nichol and Dhariwal (2021), equation 17.
    """
    return betas_from(lambda u: math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2, T)


def sqrt_betas(T: int, *, offset: float = 1e-4) -> Tensor:
    r"""Square-root table for embeddings of text (:eq:`eq:betas-sqrt`).

    .. math:: \bar\alpha(u) \propto 1-\sqrt{u+s}

    Source: Li et al. (2022), Diffusion-LM, appendix A.
    """
    return betas_from(lambda u: max(1 - math.sqrt(u + offset), 0.0), T)


def sigmoid_betas(T: int, *, start: float = -3.0, end: float = 3.0, tau: float = 1.0) -> Tensor:
    r"""Table whose alpha-bar falls along a sigmoid (:eq:`eq:betas-sigmoid`).

    .. math:: \bar\alpha(u) = \frac{\mathrm{sig}(b/\tau) - \mathrm{sig}((a+u\,(b-a))/\tau)}
        {\mathrm{sig}(b/\tau) - \mathrm{sig}(a/\tau)}

    What GeoDiff and diffusers call "sigmoid" is another table: there the betas follow a sigmoid.

    Args:
        T: Number of steps.
        start: Argument of the sigmoid at u = 0, a in the formula.
        end: Argument of the sigmoid at u = 1, b in the formula.
        tau: Temperature. A smaller one keeps alpha-bar flat for longer at both ends.

    Raises:
        ValueError: if not start < end and 0 < tau, or the sigmoid is too steep to be resolved.

    Source: Jabri, Fleet and Chen (2022); Chen (2023), whose defaults are used.
    """
    if not (start < end and tau > 0):
        raise ValueError(f"start={start}, end={end}, tau={tau}: need start < end and tau > 0")

    def sig(z: float) -> float:
        return (1 + math.tanh(z / tau / 2)) / 2  # unlike exp, never overflows

    # only ratios of alpha-bar count: the denominator is left out
    return betas_from(lambda u: sig(end) - sig(start + u * (end - start)), T)


def quadratic_betas(T: int, *, first: float = 1e-4, last: float = 0.5) -> Tensor:
    r"""Table that is linear in :math:`\sqrt\beta` (:eq:`eq:betas-quadratic`).

    .. math:: \sqrt{\beta_i} = \sqrt{\beta_1}
        + \frac{i-1}{T-1}\bigl(\sqrt{\beta_T}-\sqrt{\beta_1}\bigr)

    The defaults are those of CSDI, with T = 50.

    Raises:
        ValueError: if not 0 < first < last < 1.

    Source: Tashiro et al. (2021), section 6.
    """
    _refuse_steps(T)
    if not 0 < first < last < 1:
        raise ValueError(f"first={first}, last={last}: betas must rise from above 0 to below 1")
    return torch.linspace(first**0.5, last**0.5, T, dtype=torch.float64) ** 2


def scaled_linear_betas(T: int, *, first: float = 0.00085, last: float = 0.012) -> Tensor:
    r"""The table of latent diffusion, which its code calls linear: linear in :math:`\sqrt\beta`.

    Made for T = 1000; with fewer steps it does not reach noise.

    Source: Rombach et al. (2022), released configuration.
    """
    return quadratic_betas(T, first=first, last=last)


def zero_terminal_snr(betas: Tensor) -> Tensor:
    r"""Change a table so that no signal is left at its last step (:eq:`eq:zero-snr`).

    .. math:: \sqrt{\bar\alpha_i}\;\to\;
        \sqrt{\bar\alpha_1}\;\frac{\sqrt{\bar\alpha_i}-\sqrt{\bar\alpha_T}}
        {\sqrt{\bar\alpha_1}-\sqrt{\bar\alpha_T}}

    The first step stays as it is and the last beta is exactly 1. An eps or score prediction says
    nothing about x0 there: predict v, x0 or flow.

    Args:
        betas: A table of at least 2 steps, shape ``(T,)``.

    Returns:
        float64, shape ``(T,)``.

    Raises:
        ValueError: if betas is no table, or has one step.

    Source: Lin et al. (2024), algorithm 1.
    """
    betas = check_betas(betas)
    if len(betas) < 2:
        raise ValueError("betas has 1 step: its first step is its last, give at least 2")
    root = (1 - betas).cumprod(0).sqrt()
    left = root - root[-1]  # the factor that scales it back falls out of the ratios
    return torch.cat([betas[:1], 1 - (left[1:] / left[:-1]) ** 2])
