"""A generative adversarial network: a generator against a discriminator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tensors import mixed_seed, randn, seeded
from .game import generator_loss, value
from .layers import check_points, latent_noise, perceptron

ADAM = partial(torch.optim.Adam, betas=(0.5, 0.999))  # less momentum: the target moves
LEAKY = partial(nn.LeakyReLU, 0.2)  # kinks: a smooth discriminator is slow to see narrow modes


class Generator(nn.Module):
    """Map noise z ~ N(0, I) of shape ``(B, latent)`` to points ``(B, features)``.

    Args:
        latent: Entries of z.
        features: Entries of a point.
        width: Hidden units of a layer.
        depth: Hidden layers.
    """

    def __init__(self, latent: int, features: int, *, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.latent = latent
        self.net = perceptron(latent, features, width=width, depth=depth, activation=LEAKY)

    def forward(self, z: Tensor) -> Tensor:
        """Return the points G(z)."""
        return self.net(check_points("z", z, self.latent))

    @torch.no_grad()
    def sample(self, n: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points: one pass of the network."""
        return self(latent_noise(n, self.latent, self, rng))


class Discriminator(nn.Module):
    """Map points ``(B, features)`` to logits ``(B,)``; positive means "looks real".

    Args:
        features: Entries of a point.
        width: Hidden units of a layer.
        depth: Hidden layers.
    """

    def __init__(self, features: int, *, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.features = features
        self.net = perceptron(features, 1, width=width, depth=depth, activation=LEAKY)

    def forward(self, x: Tensor) -> Tensor:
        """Return one logit a point."""
        return self.net(check_points("x", x, self.features))[:, 0]


class GanStep(NamedTuple):
    """What a step of ``train_gan`` reports, each before its own update.

    Attributes:
        index: Number of steps made so far, from 1.
        value: V(D, G) of the batch, which the discriminator then raises; -2 log 2 = -1.386 where
            it cannot tell the batches apart.
        loss: The generator's loss against the updated discriminator.
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]
    value: float
    loss: float


def train_gan(
    generator: Generator,
    discriminator: nn.Module,
    batches: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    loss: Callable[[Tensor], Tensor] = generator_loss,
    seed: int = 0,
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = ADAM,
) -> Iterator[GanStep]:
    """Play the game and yield after every step: one update of D, then one of G on fresh noise.

    As in ``minidiff.train``, step k draws everything from ``(seed, k)``, so equal arguments and
    weights give equal bits, and the global random state stays untouched. There are two losses, so
    ``train`` itself does not fit. An average of the weights is kept in the caller's loop.

    Args:
        generator: Has ``latent``, and maps noise ``(B, latent)`` to points.
        discriminator: Maps points to logits ``(B,)``.
        batches: ``step -> points``, a pure function; see ``minidiff.data.batches``.
        steps: Number of steps.
        lr: Learning rate of both optimisers.
        loss: The generator's, a function of its logits: ``generator_loss`` or ``saturating_loss``.
        seed: Seed of the run.
        optimizer: Makes an optimiser from parameters; its lr is set.

    Yields:
        ``GanStep(index, value, loss)``.

    Raises:
        ValueError: at the call, if an argument is out of range; in a step, if a loss is not finite.

    Source: Goodfellow et al. (2014), algorithm 1 with k = 1.
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r}: give a whole number of steps, at least 1")
    if not lr >= 0:
        raise ValueError(f"lr={lr}: give a learning rate of at least 0")
    seeded(seed)  # refuses a bad seed now
    players = [list(generator.parameters()), list(discriminator.parameters())]
    opt_g, opt_d = (optimizer(p) for p in players)
    for group in (*opt_g.param_groups, *opt_d.param_groups):
        group["lr"] = lr

    def update(opt: torch.optim.Optimizer, loss: Tensor, params: list[nn.Parameter]) -> None:
        if not bool(torch.isfinite(loss)):
            raise ValueError(f"loss is {loss.item()}: lower lr, or check the data")
        opt.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=params)  # the other player stays as it is
        opt.step()

    def run() -> Iterator[GanStep]:
        for k in range(steps):
            generator.train()
            discriminator.train()
            x, rng = batches(k), seeded(seed, k)
            with torch.random.fork_rng([]):  # dropout of a net of your own draws from there
                torch.default_generator.manual_seed(mixed_seed(seed, k, 1))
                shape = (len(x), generator.latent)
                z = randn(shape, rng, dtype=x.dtype, device=x.device)
                gain = value(discriminator(x), discriminator(generator(z).detach()))
                update(opt_d, -gain, players[1])
                z = randn(shape, rng, dtype=x.dtype, device=x.device)
                cost = loss(discriminator(generator(z)))
                update(opt_g, cost, players[0])
            yield GanStep(k + 1, float(gain.detach()), float(cost.detach()))

    return run()
