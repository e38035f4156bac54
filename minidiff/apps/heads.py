"""Laws of the next values, given a state: by diffusion, and two Gaussians to compare with.

A head has ``loss(state, target, observed, rng=)``, a scalar, and ``draw(state, rng=)``.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..denoiser import Denoiser
from ..losses import Times, denoising_error, uniform_times
from ..samplers import ancestral, last, prior
from ..tensors import check_mask, check_same_shape, masked_mean, randn_like
from ..variance import Variance, posterior_variance

NARROWEST = 1e-3  # the smallest standard deviation of a Gaussian head


class DiffusionHead(nn.Module):
    """Draw the next values by a reverse chain: the head of TimeGrad.

    Args:
        model: A ``Denoiser`` whose net takes a state as its condition.
        channels: K.
        times: Decreasing grid of the chain, such as ``ddpm_steps(50)``.
        learns: ``(schedule, M, rng) -> t``: the times of training, one for each state.
        variance: Of the chain's steps; see :func:`~minidiff.samplers.ancestral`.
    """

    def __init__(
        self,
        model: Denoiser,
        channels: int,
        times: Tensor,
        *,
        learns: Times = uniform_times,
        variance: Variance = posterior_variance,
    ) -> None:
        super().__init__()
        self.model, self.channels, self.times = model, channels, times
        self.learns, self.variance = learns, variance

    def loss(
        self,
        state: Tensor,
        target: Tensor,
        observed: Tensor,
        *,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        r"""Squared error of the noise over the observed values (:eq:`eq:timegrad-loss`).

        .. math:: \frac{\sum_{n,k} m_{nk}\,(\epsilon_{nk}-\hat\epsilon_{nk})^2}{\sum_{n,k} m_{nk}}

        The released code multiplies a loss that is already averaged by the mask, which cancels; the
        mask here is one of elements.

        Args:
            state: Shape ``(M, width)``.
            target: Next values, shape ``(M, K)``; anything where not observed.
            observed: bool, shape ``(M, K)``.
            rng: Source of times and noise.

        Raises:
            ValueError: if shapes or the mask do not fit, or nothing is observed.

        Source: Rasul et al. (2021), equation 7 and algorithm 1.
        """
        check_target(target, observed)
        clean = torch.where(observed, target, 0)
        error = denoising_error(self.model, clean, cond=state, times=self.learns, rng=rng)
        return masked_mean(error, observed)

    def draw(self, state: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draw one value for each state: ``(N, width) -> (N, K)``.

        Source: Rasul et al. (2021), algorithm 2.
        """
        schedule = self.model.schedule
        x = prior(
            schedule, (len(state), self.channels), at=self.times[0], rng=rng,
            device=state.device, dtype=state.dtype,
        )  # fmt: skip
        denoise = self.model.given(state)
        steps = ancestral(denoise, schedule, x, self.times, variance=self.variance, rng=rng)
        return last(steps)


class DiagonalHead(nn.Module):
    """Independent Gaussians, one a channel: the head of DeepAR.

    Args:
        channels: K.
        width: Size of the state.

    Source: Salinas et al. (2020), section 3.1.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, 2 * channels)

    def loss(
        self,
        state: Tensor,
        target: Tensor,
        observed: Tensor,
        *,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        r"""Negative log-density of the observed values, nats a value (:eq:`eq:gaussian-head`).

        The arguments and errors are those of :meth:`DiffusionHead.loss`; nothing is random.
        """
        check_target(target, observed)
        mean, std = self._law(state)
        z = (torch.where(observed, target, 0) - mean) / std
        return masked_mean(z**2 / 2 + std.log() + math.log(2 * math.pi) / 2, observed)

    def draw(self, state: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draw one value for each state: ``(N, width) -> (N, K)``."""
        mean, std = self._law(state)
        return mean + std * randn_like(mean, rng)

    def _law(self, state: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.out(state).chunk(2, 1)
        return mean, F.softplus(raw) + NARROWEST


class FullHead(nn.Module):
    """One Gaussian with a full covariance over the channels, by its Cholesky factor.

    Args:
        channels: K.
        width: Size of the state.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.channels = channels
        self.out = nn.Linear(width, channels + channels * (channels + 1) // 2)

    def loss(
        self,
        state: Tensor,
        target: Tensor,
        observed: Tensor,
        *,
        rng: torch.Generator | None = None,
    ) -> Tensor:
        r"""Negative log-density of the observed values, nats a value (:eq:`eq:gaussian-head`).

        .. math:: \frac{1}{\sum_{n,k} m_{nk}}\sum_n \tfrac12\bigl(d_n^\top C_n^{-1}d_n
            + \log\det C_n + o_n\log 2\pi\bigr)

        with d the observed part of target minus mean, C that part of the covariance, and o the
        number of observed channels: a missing channel is integrated out.

        The arguments and errors are those of :meth:`DiffusionHead.loss`; nothing is random.
        """
        check_target(target, observed)
        mean, root = self._law(state)
        gap = torch.where(observed, target - mean, 0)
        both = observed[:, :, None] & observed[:, None]
        cov = torch.where(both, root @ root.mT, torch.eye(self.channels).to(root))
        part = torch.linalg.cholesky(cov)  # a missing channel is a 1 by itself, which adds nothing
        z = torch.linalg.solve_triangular(part, gap[:, :, None], upper=False)[:, :, 0]
        logdet = part.diagonal(dim1=1, dim2=2).log().sum(1)
        count = observed.sum()
        return ((z**2).sum() / 2 + logdet.sum()) / count + math.log(2 * math.pi) / 2

    def draw(self, state: Tensor, *, rng: torch.Generator) -> Tensor:
        """Draw one value for each state: ``(N, width) -> (N, K)``."""
        mean, root = self._law(state)
        return mean + (root @ randn_like(mean, rng)[:, :, None])[:, :, 0]

    def _law(self, state: Tensor) -> tuple[Tensor, Tensor]:
        out, k = self.out(state), self.channels
        rows, columns = torch.tril_indices(k, k)
        root = out.new_zeros(len(out), k, k)
        root[:, rows, columns] = out[:, k:]
        inside = F.softplus(root.diagonal(dim1=1, dim2=2)) + NARROWEST
        return out[:, :k], root.tril(-1) + torch.diag_embed(inside)


def check_target(target: Tensor, observed: Tensor) -> None:
    """Raise a ``ValueError`` if mask and values do not fit, or an observed value is not finite."""
    check_mask("observed", observed, target)
    check_same_shape("observed", observed, "target", target)
    if not bool(torch.isfinite(target[observed]).all()):
        raise ValueError("target holds NaN or infinite values where observed: mark them unobserved")
    if not bool(observed.any()):
        raise ValueError("observed is False everywhere: nothing to learn from")
