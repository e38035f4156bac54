"""Mixtures of Gaussians: every quantity of the diffusion, at every level, in closed form.

Diffusing a mixture gives a mixture, and so does conditioning on its noisy value, so nothing here
is an approximation. Four kinds: independent entries, full covariances, one Gaussian, and a finite
data set, which is one component of width 0 for each point. Public through ``minidiff.exact``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..schedules import Level, Schedule
from ..tensors import check_data, generator, randn
from .components import (
    FullPosterior,
    Parts,
    Posterior,
    Turned,
    Upright,
    average,
    check_covs,
    check_events,
    choose,
    expanded,
    moments,
    normalised,
    over,
    parts_of,
    positive,
)
from .line import nodes, rearrange

NO_DENSITY = "t=0: a finite data set has no density without noise, use t > 0"
MIXED = "t mixes 0 and noisy times: give a finite set all clean or none"
CHUNK = 1 << 20  # points times components that a quadrature looks at at once


class GaussianMixture:
    r"""A mixture of Gaussians with independent entries (:eq:`eq:mixture`).

    .. math:: p(x_0) = \sum_k w_k\,\mathcal N(x_0;\,m_k,\,s_k^2)

    Args:
        means: Shape ``(K, *event)``.
        stds: Positive; shape ``()``, ``(K,)`` or ``(K, *event)``.
        weights: Positive, shape ``(K,)``; normalised to sum 1. Equal if None.

    Raises:
        ValueError: if shapes disagree or a value is not positive.
    """

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None) -> None:
        means = check_data("means", torch.as_tensor(means))
        stds = torch.as_tensor(stds, dtype=means.dtype)  # a Python number in full precision
        self.means, self.weights = means, normalised(weights, means)
        if not positive(stds):
            raise ValueError(f"stds reaches {float(stds.min())}: give positive, finite numbers")
        self.stds = expanded("stds", stds, means)
        self._components: Upright | Turned = Upright(means, self.stds)

    @staticmethod
    def full(means: Tensor, covs: Tensor, weights: Tensor | None = None) -> FullMixture:
        r"""Make a mixture with full covariance matrices (:eq:`eq:mixture-full`).

        .. math:: p(x_0) = \sum_k w_k\,\mathcal N(x_0;\,m_k,\,C_k)

        Args:
            means: Shape ``(K, *event)``.
            covs: Symmetric and positive definite, shape ``(K, D, D)``, over the D entries of a
                flattened event.
            weights: Positive, shape ``(K,)``; normalised to sum 1. Equal if None.

        Raises:
            ValueError: if shapes disagree, a matrix is not symmetric or not positive definite, or
                a weight is not positive.
        """
        return FullMixture(means, covs, weights)

    def sample(self, n: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points, shape ``(n, *event)``."""
        rng = generator(rng)
        which, like = choose(self.weights, n, rng).to(self.means.device), self.means
        noise = randn((n, *like.shape[1:]), rng, dtype=like.dtype, device=like.device)
        return like[which] + self._components.stretch(which, noise)

    def second_moment(self) -> Tensor:
        """Return ``E[x0**2]`` of every entry, shape ``event``."""
        return (over(self.weights, self.means) * (self.means**2 + self.stds**2)).sum(0)

    def log_prob(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        r"""Log-density of ``x_t`` in nats (:eq:`eq:mixture-density`).

        .. math:: \log\sum_k w_k\,\mathcal N(x;\,\mathrm{signal}\,m_k,\,
            \mathrm{signal}^2s_k^2+\mathrm{noise}^2)

        Args:
            x: Shape ``(B, *event)``.
            t: Time; 0 is the density of the data, which a finite set does not have.
            schedule: The path.

        Returns:
            Shape ``(B,)``.
        """
        return self._parts(x, schedule(t)).joint.logsumexp(1)

    def score(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        """Gradient of :meth:`log_prob` in ``x``, the shape of ``x``."""
        parts = self._parts(x, schedule(t))
        return average(parts.joint, self._components.to(x).back(-parts.pull))

    def denoiser(self, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
        r"""Return the exact ``E[x0 | x_t]`` (:eq:`eq:mixture-denoiser`).

        .. math:: \sum_k r_k(x)\Bigl(m_k + \frac{\mathrm{signal}\,s_k^2}
            {\mathrm{signal}^2s_k^2+\mathrm{noise}^2}(x-\mathrm{signal}\,m_k)\Bigr)

        where :math:`r_k` is the posterior weight of component k. At t = 0 it returns x itself.
        """

        def denoise(x: Tensor, t: Tensor | float) -> Tensor:
            at = schedule(t)
            if not bool((at.noise > 0).any()):
                return x / at.over(x).signal
            parts = self._parts(x, at, no_width=MIXED)
            return average(parts.joint, self._components.to(x).back(parts.mean))

        return denoise

    def posterior(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Posterior:
        r"""Return all of ``q(x0 | x_t)``, a mixture again (:eq:`eq:mixture-posterior`).

        .. math:: \sum_k r_k(x)\,\mathcal N\Bigl(x_0;\,m_k + \frac{\mathrm{signal}\,s_k^2}{v_k}
            (x-\mathrm{signal}\,m_k),\;\frac{s_k^2\,\mathrm{noise}^2}{v_k}\Bigr),
            \qquad v_k = \mathrm{signal}^2s_k^2+\mathrm{noise}^2

        Arguments are those of :meth:`log_prob`; t > 0 for a finite set.

        Source: Bishop (2006), equation 2.116, for each component.
        """
        parts = self._parts(x, schedule(t))
        return Posterior(parts.joint.softmax(1), parts.mean, parts.var)

    def covariance(self, x: Tensor, t: Tensor | float, schedule: Schedule) -> Tensor:
        r"""Return ``Var[x0 | x_t]`` of every entry (:eq:`eq:mixture-covariance`).

        .. math:: \sum_k r_k\bigl(V_k + (\mu_k-\bar\mu)^2\bigr),
            \qquad \bar\mu = \sum_k r_k\mu_k

        with the means :math:`\mu_k` and variances :math:`V_k` of :meth:`posterior`. No two large
        numbers are subtracted. It is 0 at t = 0. The curvature of the density gives the same
        number (:eq:`eq:tweedie-second`):

        .. math:: \mathrm{Var}[x_{0,i}\mid x_t] = \frac{\mathrm{noise}^2}{\mathrm{signal}^2}
            \Bigl(1 + \mathrm{noise}^2\,\frac{\partial^2\log p_t}{\partial x_i^2}\Bigr)

        Arguments are those of :meth:`log_prob`.

        Returns:
            The shape of ``x``.

        Source: Efron (2011), section 2.
        """
        at = schedule(t)
        if not bool((at.noise > 0).any()):
            return torch.zeros_like(x)
        parts, turned = self._parts(x, at, no_width=MIXED), self._components.to(x)
        means, variances = turned.back(parts.mean), turned.entries(parts.var)
        return moments(parts.joint.softmax(1), means, variances)[1]

    def mmse(self, t: Tensor | float, schedule: Schedule) -> float:
        r"""Return the error that no denoiser can avoid, the mean over entries (:eq:`eq:mmse`).

        .. math:: \frac1D\,\mathrm E\lVert x_0-\mathrm E[x_0\mid x_t]\rVert^2
            = \frac1D\sum_i\mathrm E\,\mathrm{Var}[x_{0,i}\mid x_t]

        One component: :math:`s^2\mathrm{noise}^2/(\mathrm{signal}^2s^2+\mathrm{noise}^2)`. Several,
        with events of one entry: an integral over x_t, right to 1e-9.

        Args:
            t: One time.
            schedule: The path.

        Raises:
            ValueError: if t is not one time, or several components have events of more entries.

        Source: Guo, Shamai and Verdu (2005), for the name.
        """
        t = torch.as_tensor(t, dtype=torch.float64)
        at = schedule(t)
        if at.noise.ndim:
            raise ValueError(f"t has shape {tuple(at.noise.shape)}: give one time")
        if not float(at.noise) > 0:
            return 0.0
        if len(self.weights) == 1:
            spread = self._components.spread.double()
            var = at.signal**2 * spread + at.noise**2
            return float((spread * at.noise**2 / var).mean())
        centres, widths = self._line(
            at, self.means, "mmse", "estimate it by variance.mean_covariance"
        )
        points, shares = nodes(centres[0], widths[0])
        points, total = points.reshape(-1, *self.means.shape[1:]), 0.0
        size = max(1, CHUNK // len(self.weights))
        for x, share in zip(points.split(size), shares.split(size), strict=True):
            doubt = self.covariance(x, t, schedule).reshape(-1)
            total += float((share * self.log_prob(x, t, schedule).exp() * doubt).sum())
        return total

    def flow(self, x: Tensor, t: Tensor | float, s: Tensor | float, schedule: Schedule) -> Tensor:
        r"""Follow the probability-flow ODE from time t to time s, exactly.

        One component moves at a constant number of standard deviations (:eq:`eq:flow-gaussian`);
        on a line paths cannot cross, so x keeps the share of the mass below it
        (:eq:`eq:flow-cdf`).

        .. math:: x_s = \mathrm{signal}_s\,m + \sqrt{\frac{\mathrm{signal}_s^2s^2+
            \mathrm{noise}_s^2}{\mathrm{signal}_t^2s^2+\mathrm{noise}_t^2}}\,
            (x_t-\mathrm{signal}_t\,m), \qquad F_s(x_s) = F_t(x_t)

        Args:
            x: ``x_t``, shape ``(B, *event)``.
            t: Where x is now; not 0 for a finite set.
            s: Where it shall go, before or after t.
            schedule: The path.

        Returns:
            ``x_s``, the shape of ``x``; not differentiable if there are several components.

        Raises:
            ValueError: if several components have events of more than one entry.

        Source: Song et al. (2021), equation 13, whose solution this is.
        """
        at_t, at_s = schedule(t), schedule(s)
        pull = self._parts(x, at_t).pull  # refuses what has no density
        if len(self.weights) == 1:
            turned = self._components.to(x)
            at_t, at_s = turned.level(at_t, x), turned.level(at_s, x)
            var_t, var_s = (at.signal**2 * turned.spread + at.noise**2 for at in (at_t, at_s))
            gap = pull * var_t
            moved = at_s.signal * turned.centres + (var_s / var_t).sqrt() * gap
            return turned.back(moved).squeeze(1)
        wide = x.double()
        one, two = (
            self._line(at.over(wide), wide, "flow", "integrate the ODE with a solver")
            for at in (at_t, at_s)
        )
        y = rearrange((wide.reshape(-1, 1) - one[0]) / one[1], *two, self.weights.to(wide))
        return y.reshape(x.shape).to(x)

    # ---- shared arithmetic ----------------------------------------------------------------------

    def _parts(self, x: Tensor, at: Level, *, no_width: str = NO_DENSITY) -> Parts:
        check_events(x, self.means)
        return parts_of(self._components, self.weights, x, at, no_width)

    def _line(self, at: Level, like: Tensor, name: str, remedy: str) -> tuple[Tensor, Tensor]:
        """Centres and widths of x_t, ``(B or 1, K)``, if an event is one entry; where like is."""
        if self.means[0].numel() != 1:
            raise ValueError(
                f"{name} of {len(self.weights)} components in {self.means[0].numel()} entries has "
                f"no closed form: {remedy}"
            )
        like = like.double()
        signal, noise = (f.to(like).reshape(-1, 1) for f in (at.signal, at.noise))
        means, stds = (f.to(like).reshape(1, -1) for f in (self.means, self.stds))
        return signal * means, (signal**2 * stds**2 + noise**2).sqrt()


class FullMixture(GaussianMixture):
    r"""A mixture with full covariances, from :meth:`GaussianMixture.full`.

    Each covariance is diagonalised once, :math:`C_k = Q_k\Lambda_kQ_k^\top`. Noise looks the same
    along all axes, so in the coordinates :math:`Q_k^\top x` the entries of component k are
    independent at every level. Times are scalars or one a sample: a level for each position
    would not survive the rotation.
    """

    def __init__(self, means: Tensor, covs: Tensor, weights: Tensor | None = None) -> None:
        means = check_data("means", torch.as_tensor(means))
        self.covs = check_covs("covs", covs, len(means), means[0].numel()).to(means)
        self.means, self.weights = means, normalised(weights, means)
        self.stds = self.covs.diagonal(dim1=1, dim2=2).sqrt().reshape(means.shape)
        self._turned = self._components = Turned.of(means, self.covs)

    def posterior(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, t: Tensor | float, schedule: Schedule
    ) -> FullPosterior:
        r"""Return all of ``q(x0 | x_t)``, with covariances (:eq:`eq:mixture-full-posterior`).

        .. math:: V_k = C_k - \mathrm{signal}^2C_k\bigl(\mathrm{signal}^2C_k+\mathrm{noise}^2
            I\bigr)^{-1}C_k

        Arguments are those of :meth:`GaussianMixture.log_prob`.

        Source: Bishop (2006), equation 2.116, for each component.
        """
        parts, turned = self._parts(x, schedule(t)), self._turned.to(x)
        covs = (turned.axes * parts.var.unsqueeze(-2)) @ turned.axes.mT
        return FullPosterior(parts.joint.softmax(1), turned.back(parts.mean), covs)


class Gaussian(GaussianMixture):
    r"""One Gaussian with independent entries: its denoiser is a straight line (:eq:`eq:gaussian`).

    .. math:: \mathrm E[x_0\mid x_t] = m + \frac{\mathrm{signal}\,s^2}
        {\mathrm{signal}^2s^2+\mathrm{noise}^2}\,(x_t-\mathrm{signal}\,m)

    Args:
        mean: Shape ``event``.
        std: Positive, broadcastable to ``mean``.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        mean = torch.as_tensor(mean)
        std = expanded("std", torch.as_tensor(std, dtype=mean.dtype), mean)
        super().__init__(mean[None], std[None])


class Empirical(GaussianMixture):
    r"""A finite data set: the mixture with one component of width 0 a point (:eq:`eq:empirical`).

    .. math:: \mathrm E[x_0\mid x_t=x] = \sum_i r_i\,x^{(i)}, \qquad
        r \propto \exp\Bigl(-\frac{\lVert x-\mathrm{signal}\,x^{(i)}\rVert^2}
        {2\,\mathrm{noise}^2}\Bigr)

    A perfectly trained network that has seen only these points is this denoiser: it reproduces
    the data set and nothing else. Its density, score and posterior need t > 0.

    Args:
        points: Shape ``(N, *event)``.
    """

    def __init__(self, points: Tensor) -> None:
        self.means = check_data("points", torch.as_tensor(points))
        self.stds = torch.zeros_like(self.means)
        self.weights = self.means.new_full((len(self.means),), 1 / len(self.means))
        self._components = Upright(self.means, self.stds)
