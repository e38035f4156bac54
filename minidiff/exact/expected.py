"""The variational bound that an exact denoiser reaches on average, in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from ..schedules import Schedule
from .mixtures import GaussianMixture


def bound(
    data: GaussianMixture,
    schedule: Schedule,
    times: Tensor,
    choose: Callable[[float, float, float], float],
) -> float:
    r"""Expected variational bound of a chain with the exact denoiser, in nats an example.

    The sum of three kinds of terms, with :math:`\mathcal E_t` the
    :meth:`~minidiff.exact.mixtures.GaussianMixture.mmse` at t and D entries. From the start
    (:eq:`eq:expected-start`):

    .. math:: L_T = \frac D2\Bigl(\frac{\mathrm{signal}_T^2\,\mathrm E[x_0^2]+\mathrm{noise}_T^2}
        {\mathrm{signal}_T^2+\mathrm{noise}_T^2} - 1
        - \log\frac{\mathrm{noise}_T^2}{\mathrm{signal}_T^2+\mathrm{noise}_T^2}\Bigr)

    from each move from t to a noisy s (:eq:`eq:expected-bound`), where
    :math:`f = 1-e^{\lambda_t-\lambda_s}`:

    .. math:: L_t = \frac D2\Bigl(\log\frac v{\tilde\beta}
        + \frac{\tilde\beta + \mathrm{add}^2\mathcal E_t}{v} - 1\Bigr),
        \qquad \tilde\beta = \mathrm{noise}_s^2f,\quad \mathrm{add} = \mathrm{signal}_s f

    and from the move onto clean data (:eq:`eq:expected-decoder`):

    .. math:: L_0 = \frac D2\Bigl(\log 2\pi v + \frac{\mathcal E_t}{v}\Bigr)

    Args:
        data: What ``mmse`` knows: one component, or events of one entry.
        schedule: The path.
        times: Strictly decreasing, last 0; the chain starts at the first.
        choose: The variance v of a step from (tilde, beta, optimal), where tilde is the posterior
            variance above, beta is :math:`\mathrm{noise}_t^2 f`, and optimal is the minimiser
            :math:`\tilde\beta + \mathrm{add}^2\mathcal E_t`. For the move onto clean data they are
            tilde of the move before (its own is 0), :math:`\mathrm{noise}_t^2` and
            :math:`\mathcal E_t`.

    Raises:
        ValueError: if the times are no such grid, or a chosen variance is not positive.

    Source: Ho, Jain and Abbeel (2020), equation 5; the optimum of Bao et al. (2022).
    """
    at = schedule(_checked(times))
    size = data.means[0].numel()
    if not bool((at.log_snr.diff() > 0).all()):
        raise ValueError(f"times={times}: two of them are one level of {schedule!r}")
    signal, noise, log_snr = at.signal.tolist(), at.noise.tolist(), at.log_snr.tolist()
    total = signal[0] ** 2 + noise[0] ** 2
    second = float(data.second_moment().double().mean())
    share = noise[0] ** 2 / total
    start = (signal[0] ** 2 * second / total + share - 1 - math.log(share)) / 2
    terms, tilde = [start], 0.0
    for i, t in enumerate(times[:-1]):
        doubt = data.mmse(t, schedule)
        fresh = -math.expm1(log_snr[i] - log_snr[i + 1])
        beta = noise[i] ** 2 * fresh
        if i == len(times) - 2:
            v = _variance(choose, tilde, beta, doubt)
            terms.append((math.log(2 * math.pi * v) + doubt / v) / 2)
            break
        tilde, add = noise[i + 1] ** 2 * fresh, signal[i + 1] * fresh
        optimal = tilde + add**2 * doubt
        v = _variance(choose, tilde, beta, optimal)
        terms.append((math.log(v / tilde) + optimal / v - 1) / 2)
    return size * math.fsum(terms)


def _checked(times: Tensor) -> Tensor:
    good = isinstance(times, Tensor) and times.ndim == 1 and len(times) > 1
    if not good or not bool((times.diff() < 0).all()) or float(times[-1]) != 0:
        raise ValueError(f"times={times}: give at least two times, strictly decreasing, last 0")
    return times.double()


def _variance(
    choose: Callable[[float, float, float], float], tilde: float, beta: float, optimal: float
) -> float:
    value = float(choose(tilde, beta, optimal))
    if not 0 < value < math.inf:
        raise ValueError(
            f"choose({tilde:.3g}, {beta:.3g}, {optimal:.3g}) is {value}: give a positive variance "
            "(a chain of one step has no tilde for its move onto clean data)"
        )
    return value
