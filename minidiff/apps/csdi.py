"""CSDI: fill gaps of a series by diffusion, given what was observed.

The network learns from gaps that are made: some of the observed values are hidden, and it is scored
on those. What to hide is a strategy of :mod:`minidiff.apps.targets`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..conditions import inpaint, replace
from ..data.series import Windows, check_observed
from ..denoiser import Denoise, Denoiser
from ..losses import Times, denoising_error, uniform_times
from ..nets.series import Observed
from ..samplers import ancestral, last, prior
from ..schedules import Schedule
from ..tensors import check_count, check_mask, generator, masked_mean
from ..variance import Variance, posterior_variance
from .targets import Strategy, random_targets

# ---- training ----------------------------------------------------------------------------------


class Example(NamedTuple):
    """A batch in the form of the core.

    Attributes:
        x0: Clean values, 0 where nothing was observed, shape ``(B, L, K)``.
        known: bool: shown to the network.
        scored: bool: observed, but hidden from the network.
        cond: What the network is shown.
    """

    x0: Tensor
    known: Tensor
    scored: Tensor
    cond: Observed


def example(batch: Windows, known: Tensor) -> Example:
    """Map windows and a choice of what is shown to ``(x0, known, scored, cond)``.

    Args:
        batch: Windows; a NaN is legal where nothing was observed.
        known: bool, the shape of the values, within what was observed.

    Raises:
        ValueError: if a mask is not bool or of another shape, something unobserved is called
            known, an observed value is not finite, or a window has no observed value.
    """
    observed = check_observed(batch.values, batch.observed)
    if check_mask("known", known, batch.values).shape != known.shape:
        raise ValueError(f"known has shape {tuple(known.shape)}: give {tuple(batch.values.shape)}")
    if bool((known & ~observed).any()):
        raise ValueError("known marks values that were not observed: give known & observed")
    if not bool(observed.flatten(1).any(1).all()):
        raise ValueError("observed is False for a whole window: leave such windows out")
    x0 = torch.where(observed, batch.values, 0)
    shown = Observed(torch.where(known, x0, 0), known, batch.when)
    return Example(x0, known, observed & ~known, shown)


def loss(
    model: Denoiser,
    batch: Windows,
    hide: Strategy = random_targets,
    *,
    times: Times = uniform_times,
    rng: torch.Generator | None = None,
) -> Tensor:
    r"""Squared error on the hidden values of a batch (:eq:`eq:csdi-loss`).

    .. math:: \frac{\sum_i s_i\,(\epsilon_i-\hat\epsilon_i)^2}{\sum_i s_i},
        \qquad s = \mathrm{observed}\wedge\neg\,\mathrm{known}

    One ratio over the batch, so an example with many hidden values counts more. What stands at
    unobserved places never enters.

    Args:
        model: A ``Denoiser`` of a net that takes ``Observed``, such as ``SeriesTransformer``.
        batch: Windows.
        hide: Strategy.
        times: ``(schedule, B, rng) -> t``.
        rng: Source of the strategy's choices, then times, then noise.

    Raises:
        ValueError: as :func:`example`, or if nothing of the batch was hidden.

    Source: Tashiro et al. (2021), equation 12 of section 4.
    """
    rng = generator(rng)
    x0, known, scored, cond = example(batch, hide(batch.observed, rng))
    error = denoising_error(model, x0, cond=cond, known=known, times=times, rng=rng)
    return masked_mean(error, scored)


# ---- imputation --------------------------------------------------------------------------------


class Imputer(Protocol):
    """What can impute: a ``Denoiser``, or an oracle with the same two names."""

    @property
    def schedule(self) -> Schedule:
        """The path that it denoises."""
        ...

    def given(self, cond: Observed, /) -> Denoise:
        """Return its denoiser for what is known."""
        ...


def impute(
    model: Imputer,
    values: Tensor,
    known: Tensor,
    when: Tensor,
    times: Tensor,
    *,
    n: int = 100,
    size: int = 100,
    variance: Variance = posterior_variance,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Draw samples of the unknown values, given the known ones.

    The reverse chain runs on the unknown values only: the known ones stand in every state at their
    clean value, as in training, and come back bit for bit. With nothing known this is plain
    sampling; with all known it is the identity.

    Args:
        model: A ``Denoiser`` that :func:`loss` has trained.
        values: Shape ``(B, L, K)``; ignored where not known (NaN is fine).
        known: bool, shape ``(B, L, K)``, True = observed.
        when: Hours, shape ``(B, L)``.
        times: Decreasing grid, such as ``ddpm_steps(50)`` for all steps of a table of 50.
        n: Samples a window; the published scores take 100.
        size: Windows that go through the network at once.
        variance: Of a step. The default is the published one, and makes samples too narrow; see
            :func:`~minidiff.covariances.residual_covariance`.
        rng: Source of noise.

    Returns:
        Shape ``(n, B, L, K)``. The mean or the median over the first axis is a point estimate; the
        spread is what the model does not know.

    Raises:
        ValueError: if a shape or mask does not fit, or a known value is not finite.

    Source: Tashiro et al. (2021), algorithm 2.
    """

    def held(shown: Observed) -> Denoise:
        return inpaint(model.given(shown), shown.values, shown.known)

    shown = Observed(values, known, when)
    return _draw(model, held, shown, times, n, size, variance, generator(rng))


def impute_by_replacement(
    model: Imputer,
    values: Tensor,
    known: Tensor,
    when: Tensor,
    times: Tensor,
    *,
    n: int = 100,
    size: int = 100,
    variance: Variance = posterior_variance,
    rng: torch.Generator | None = None,
) -> Tensor:
    """Draw samples with a model that was trained unconditionally: the control of the paper.

    The network is shown nothing; the known part of each state is overwritten by the known values
    with fresh noise of that time (:func:`~minidiff.conditions.replace`). Its samples are biased
    (:eq:`eq:replace-bias`).

    The arguments, the result and the errors are those of :func:`impute`.

    Source: Tashiro et al. (2021), section 4.1 and appendix C.
    """
    rng = generator(rng)

    def held(shown: Observed) -> Denoise:
        blind = Observed(shown.values, torch.zeros_like(shown.known), shown.when)
        return replace(model.given(blind), model.schedule, shown.values, shown.known, rng=rng)

    shown = Observed(values, known, when)
    return _draw(model, held, shown, times, n, size, variance, rng)


def _draw(
    model: Imputer,
    held: Callable[[Observed], Denoise],
    shown: Observed,
    times: Tensor,
    n: int,
    size: int,
    variance: Variance,
    rng: torch.Generator,
) -> Tensor:
    values, known, when = shown
    check_count("n", n)
    check_count("size", size)
    if values.ndim != 3 or when.shape != values.shape[:2]:
        raise ValueError(
            f"values has shape {tuple(values.shape)} and when {tuple(when.shape)}: give (B, L, K) "
            "and (B, L)"
        )
    check_observed(values, known)
    clean, found = torch.where(known, values, 0), []
    for rows in (torch.arange(n * len(values)) % len(values)).split(size):
        part = Observed(clean[rows], known[rows], when[rows])
        x = prior(
            model.schedule, part.values.shape, at=times[0], rng=rng,
            device=values.device, dtype=values.dtype,
        )  # fmt: skip
        walk = ancestral(held(part), model.schedule, x, times, variance=variance, rng=rng)
        found.append(last(walk))
    return torch.cat(found).reshape(n, *values.shape)
