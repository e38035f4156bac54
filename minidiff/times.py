"""At which times a loss looks: samplers of training times, ``(schedule, n, rng) -> t``."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from .schedules import FIRST, BetaTable, Schedule
from .tensors import check_count

Times = Callable[[Schedule, int, torch.Generator], Tensor]


def uniform_times(schedule: Schedule, n: int, rng: torch.Generator) -> Tensor:
    r"""Draw ``n`` training times: uniform in (0, 1], or DDPM's steps 1..T on a table.

    Args:
        schedule: A ``BetaTable`` gives ``i/T`` with i uniform on 1..T; any other path is
            continuous.
        n: Number of times.
        rng: Source of randomness; the draw happens on its device.

    Returns:
        float64, shape ``(n,)``.

    Source: Ho, Jain and Abbeel (2020), algorithm 1, line 3.
    """
    if isinstance(schedule, BetaTable):
        steps = torch.randint(1, schedule.T + 1, (n,), generator=rng, device=rng.device)
        return steps.double() / schedule.T
    return 1 - torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)


def low_discrepancy_times(schedule: Schedule, n: int, rng: torch.Generator) -> Tensor:
    r"""Draw ``n`` evenly spread times with one random shift (:eq:`eq:low-discrepancy`).

    .. math:: t_i = 1 - \bigl((u + i/n) \bmod 1\bigr), \qquad i = 0..n-1, \quad u\sim U[0,1)

    Each time by itself is uniform as in :func:`uniform_times`, and each of n equal parts of (0, 1]
    gets exactly one. On a ``BetaTable`` a time is rounded up to its step.

    Args:
        schedule: The path.
        n: Number of times.
        rng: Source of the one random number; the draw happens on its device.

    Returns:
        float64, shape ``(n,)``.

    Source: Kingma et al. (2021), appendix I.1.
    """
    u = torch.rand((), generator=rng, dtype=torch.float64, device=rng.device)
    spread = torch.arange(n, dtype=torch.float64, device=rng.device) / n
    return _to_steps(schedule, 1 - (u + spread) % 1)


def log_normal_times(mean: float = -1.2, std: float = 1.2) -> Times:
    r"""Make a sampler whose noise/signal is log-normal (:eq:`eq:log-normal-times`).

    .. math:: \log\sigma \sim \mathcal N(\mathrm{mean}, \mathrm{std}^2),
        \qquad \lambda(t) = -2\log\sigma

    A level that the path does not have is moved to its end: to t = 1, or to the earliest time
    1e-6. On a ``BetaTable`` the time is not rounded to a step. On ``LinearPath``
    :math:`\sigma = t/(1-t)`, so this is the logit-normal sampler.

    Args:
        mean: Mean of the logarithm of noise/signal.
        std: Its standard deviation, above 0.

    Raises:
        ValueError: if mean is not finite, or std not finite and above 0.

    Source: Karras et al. (2022), table 1; Esser et al. (2024), section 3.1.
    """
    if not (math.isfinite(mean) and 0 < std < math.inf):
        raise ValueError(f"mean={mean}, std={std}: give a finite mean and a std above 0")

    def times(schedule: Schedule, n: int, rng: torch.Generator) -> Tensor:
        z = torch.randn(n, generator=rng, dtype=torch.float64, device=rng.device)
        low, high = (float(schedule(t).log_snr) for t in (1.0, FIRST))
        return schedule.t_of((-2 * (mean + std * z)).clamp(low, high))

    return times


class Importance:
    r"""Draw more often where the loss is large, and weigh it down there by as much.

    Time is cut into equal bins. A bin is drawn with a probability that follows the root mean square
    of its last losses (:eq:`eq:importance-bins`), and :meth:`reweight` makes the mean an unbiased
    estimate of the mean under :func:`uniform_times`:

    .. math:: p_b = (1-\mathrm{floor})\,\frac{r_b}{\sum_c r_c} + \frac{\mathrm{floor}}{B},
        \qquad r_b = \sqrt{\frac1H\sum_{j=1}^H L_{b,j}^2}

    Until every one of the B bins holds H losses, all are equally likely: some 1,250 draws with the
    defaults, however many steps a table has. With ``bins=T`` this is the published scheme, which
    for T = 2000 needs some 50,000 draws to begin. In a loss for ``train``::

        importance = Importance()
        def loss(x0, rng):
            losses = denoising_loss(model, x0, times=importance, rng=rng)
            return importance.reweight(losses).mean()

    The history is no part of a saved run (a resumed one collects it again), and each process has
    its own; both leave the estimate unbiased.

    Args:
        bins: Number B of equal parts of (0, 1].
        history: Number H of losses that a bin remembers.
        floor: Share of draws that is uniform; no weight exceeds ``1 / floor``.

    Raises:
        ValueError: if bins or history is not a whole number above 0, or floor not in (0, 1].

    Source: Nichol and Dhariwal (2021), section 3.3, there with one bin a step.
    """

    def __init__(self, bins: int = 64, history: int = 10, floor: float = 0.001) -> None:
        check_count("bins", bins)
        check_count("history", history)
        if not 0 < floor <= 1:
            raise ValueError(f"floor={floor}: give a share above 0 and at most 1, such as 0.001")
        self.bins, self.history, self.floor = bins, history, floor
        self._losses: list[deque[float]] = [deque(maxlen=history) for _ in range(bins)]
        self._drawn: tuple[Tensor, Tensor] | None = None  # bins of the last draw, their weights

    @property
    def probabilities(self) -> Tensor:
        """Probability of each bin in the next draw (:eq:`eq:importance-bins`), ``(bins,)``."""
        uniform = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        if any(len(losses) < self.history for losses in self._losses):
            return uniform
        root = torch.tensor([list(losses) for losses in self._losses], dtype=torch.float64)
        root = root.square().mean(1).sqrt()
        total = root.sum()
        return torch.lerp(root / total, uniform, self.floor) if total > 0 else uniform

    def __call__(self, schedule: Schedule, n: int, rng: torch.Generator) -> Tensor:
        """Draw ``n`` times in (0, 1], on a ``BetaTable`` its steps, and remember their bins."""
        p = self.probabilities
        drawn = torch.multinomial(p.to(rng.device), n, replacement=True, generator=rng)
        inside = torch.rand(n, generator=rng, dtype=torch.float64, device=rng.device)
        bins = drawn.cpu()
        self._drawn = bins, 1 / (self.bins * p[bins])
        return _to_steps(schedule, (drawn + 1 - inside) / self.bins)

    def reweight(self, losses: Tensor) -> Tensor:
        r"""Weigh the losses of the last draw and remember them (:eq:`eq:importance-weight`).

        .. math:: L_i \;\to\; \frac{L_i}{B\,p_{b(i)}}

        Args:
            losses: One a drawn time, shape ``(n,)``, not yet weighted.

        Returns:
            Shape ``(n,)``, with gradients.

        Raises:
            ValueError: if nothing was drawn since the last call, the number of losses is another
                than that of the draw, or a loss is not finite.
        """
        if self._drawn is None:
            raise ValueError("losses belong to no draw: pass times=importance to the loss first")
        bins, weights = self._drawn
        if losses.shape != bins.shape:
            raise ValueError(
                f"losses has shape {tuple(losses.shape)}, but {len(bins)} times were drawn: give "
                "one loss a time, before any mean"
            )
        if not bool(torch.isfinite(losses).all()):
            raise ValueError("losses holds NaN or infinite values: they would stay in the history")
        self._drawn = None
        for b, loss in zip(bins.tolist(), losses.detach().tolist(), strict=True):
            self._losses[b].append(loss)
        return losses * weights.to(losses)


def _to_steps(schedule: Schedule, t: Tensor) -> Tensor:
    """Round times in (0, 1] up to the steps of a table; leave those of other paths alone."""
    return (t * schedule.T).ceil() / schedule.T if isinstance(schedule, BetaTable) else t
