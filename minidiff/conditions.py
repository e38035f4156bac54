"""Conditions: what is known of a sample is held fixed, or shown to the network in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .denoiser import Denoise
from .schedules import Schedule
from .tensors import bcast, check_mask, generator, randn_like

EXACTLY = "donot_use_mm_for_euclid_dist"  # torch's name


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
    known = _check_known(values, known)

    def held(x: Tensor, t: Tensor, /) -> Tensor:
        mask, clean = known.to(x.device), values.to(x)
        return torch.where(mask, clean, denoise(torch.where(mask, clean, x), t))

    return held


def _check_known(values: Tensor, known: Tensor) -> Tensor:
    known = check_mask("known", known, values)
    if not bool(torch.isfinite(values[known]).all()):
        raise ValueError("values holds NaN or infinite entries where known: mark them unknown")
    return known


def replace(
    denoise: Denoise,
    schedule: Schedule,
    values: Tensor,
    known: Tensor,
    *,
    rng: torch.Generator | None = None,
) -> Denoise:
    r"""Overwrite known entries of x_t by their noised values (:eq:`eq:replace`).

    .. math:: \hat x_0 = m\odot v + (1-m)\odot D\bigl(m\odot(\mathrm{signal}\,v
        + \mathrm{noise}\,z) + (1-m)\odot x,\;t\bigr)

    with fresh z at each call: conditions any unconditional model, without training. The samples are
    biased, however many steps there are: the denoiser takes the known entries to be as noisy as the
    others and trusts them too little (:eq:`eq:replace-bias`). RePaint goes back and forth to lessen
    that, and this is its first half.

    Args:
        denoise: ``(x, t) -> x0``, unconditional.
        schedule: The path.
        values: The known values, shape ``(B, *event)``; ignored where not known (NaN is fine).
        known: bool, True = observed; broadcastable to ``values``.
        rng: Source of z.

    Raises:
        ValueError: if known is not a bool mask for values, or a known value is not finite.

    Source: Lugmayr et al. (2022), RePaint, equation 8; Song et al. (2021), appendix I.2.
    """
    known = _check_known(values, known)
    rng = generator(rng)

    def held(x: Tensor, t: Tensor, /) -> Tensor:
        mask, clean, at = known.to(x.device), values.to(x), schedule(t).over(x)
        noisy = at.signal * clean + at.noise * randn_like(x, rng)
        return torch.where(mask, clean, denoise(torch.where(mask, noisy, x), t))

    return held


def drop(cond: Any, null: Any, p: float, *, rng: torch.Generator | None = None) -> Any:
    r"""Replace the condition of random examples by its null value, for training (:eq:`eq:drop`).

    .. math:: c_i \leftarrow \begin{cases} \varnothing & u_i < p \\ c_i & \text{otherwise}
        \end{cases}, \qquad u_i\sim U[0,1)

    One model then learns the conditional and the unconditional denoiser that
    :func:`~minidiff.guidance.cfg` needs.

    Args:
        cond: A Tensor with leading axis B, or a NamedTuple of such.
        null: The null value of one example, in the same form; broadcastable. For labels 0..9 of a
            net with ``classes=10`` it is ``torch.tensor(10)``.
        p: Probability, .1 to .2 in the paper.
        rng: Source of u.

    Returns:
        The form of ``cond``; the fields of an example are replaced together.

    Raises:
        ValueError: if p is not in [0, 1], or null has another form or shape than one example of
            cond.

    Source: Ho and Salimans (2022), algorithm 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: give a probability, such as 0.1")
    named = hasattr(cond, "_fields")
    fields, nulls = (tuple(c) if hasattr(c, "_fields") else (c,) for c in (cond, null))
    if (
        named != hasattr(null, "_fields")
        or len(fields) != len(nulls)
        or not all(isinstance(c, Tensor) for c in (*fields, *nulls))
        or not all(c.ndim and len(c) == len(fields[0]) for c in fields)
    ):
        raise ValueError(
            f"cond is a {type(cond).__name__} and null a {type(null).__name__}: give two Tensors, "
            "or two NamedTuples of as many Tensors; those of cond have a leading axis B"
        )
    rng = generator(rng)
    gone = torch.rand(len(fields[0]), generator=rng, device=rng.device) < p
    kept = [
        torch.where(bcast(gone.to(c.device), c), _one("null", n, c), c)
        for c, n in zip(fields, nulls, strict=True)
    ]
    return type(cond)(*kept) if named else kept[0]


def _one(name: str, value: Tensor, batch: Tensor) -> Tensor:
    """Return ``value`` in the shape of one example of ``batch``, or raise a ``ValueError``."""
    event = batch.shape[1:]
    try:
        return value.to(batch).expand(event)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}: it must broadcast to that of one example, "
            f"{tuple(event)}"
        ) from None


def rounded(denoise: Denoise, vectors: Tensor) -> Denoise:
    r"""Move each predicted vector to the nearest one of a table (:eq:`eq:rounded`).

    .. math:: \hat x_0 = e_k, \qquad k = \arg\min_j \lVert D(x,t)-e_j\rVert

    The "clamping trick" for embeddings of words: the sampler commits to words as it goes.

    Args:
        denoise: ``(x, t) -> x0`` with events ``(..., d)``.
        vectors: The table, shape ``(V, d)``.

    Raises:
        ValueError: if vectors is not a finite matrix; when called, if d does not agree.

    Source: Li et al. (2022), Diffusion-LM, section 4.2.
    """
    if vectors.ndim != 2 or not vectors.numel() or not bool(torch.isfinite(vectors).all()):
        raise ValueError(f"vectors has shape {tuple(vectors.shape)}: give a finite (V, d) table")

    def nearest(x: Tensor, t: Tensor, /) -> Tensor:
        x0 = denoise(x, t)
        if x0.ndim < 2 or x0.shape[-1] != vectors.shape[1]:
            raise ValueError(
                f"x0 has shape {tuple(x0.shape)}: its last axis must hold the "
                f"{vectors.shape[1]} numbers of a vector"
            )
        table, flat = vectors.to(x0), x0.reshape(-1, x0.shape[-1])
        if flat.dtype != torch.float64:
            flat = flat.float()  # torch has no distance of half precision
        # through a matrix product distances lose their digits where vectors are long and close
        gaps = torch.cdist(flat, table.to(flat), compute_mode=EXACTLY)
        return table[gaps.argmin(1)].reshape(x0.shape)

    return nearest
