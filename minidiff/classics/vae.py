r"""A variational autoencoder: a latent-variable model and the bound on its likelihood.

The model is z ~ N(0, I), x ~ p(x | z). The encoder q(z | x) is a Gaussian with independent
entries. Log-likelihoods are per example, in nats, of shape ``(B,)``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..tensors import check_count, check_same_shape, generator
from .gaussians import Gaussian, gaussian_kl, log_normal, reparameterise
from .layers import check_points, latent_noise, perceptron


class Bound(NamedTuple):
    """The parts of the ELBO, each of shape ``(B,)`` in nats: total = reconstruction - beta kl."""

    reconstruction: Tensor
    kl: Tensor
    total: Tensor


class Encoder(nn.Module):
    """The approximate posterior q(z | x): points ``(B, features)`` to a ``Gaussian`` of z.

    Args:
        features: Entries of a point.
        latent: Entries of z.
        width: Hidden units of a layer.
        depth: Hidden layers; 0 makes mean and log-variance linear in x.
    """

    def __init__(self, features: int, latent: int, *, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.features = features
        self.net = perceptron(features, 2 * latent, width=width, depth=depth)

    def forward(self, x: Tensor) -> Gaussian:
        """Return mean and log-variance, each ``(B, latent)``."""
        mean, log_var = self.net(check_points("x", x, self.features)).chunk(2, -1)
        return Gaussian(mean, log_var)


class GaussianDecoder(nn.Module):
    """The likelihood N(x; f(z), v I) with one variance v for all entries, learned with the rest.

    For a fixed variance: ``decoder.log_var.requires_grad_(False)``.

    Args:
        latent: Entries of z.
        features: Entries of a point.
        width: Hidden units of a layer.
        depth: Hidden layers; 0 makes f linear: probabilistic PCA.
        log_var: log v at the start. Begin well below the variance of the data: at that variance
            the decoder can ignore z, and training may stay there (posterior collapse).
    """

    def __init__(
        self, latent: int, features: int, *, width: int = 128, depth: int = 2, log_var: float = -4.0
    ) -> None:
        super().__init__()
        self.latent = latent
        self.net = perceptron(latent, features, width=width, depth=depth)
        self.log_var = nn.Parameter(torch.tensor(float(log_var)))

    def mean(self, z: Tensor) -> Tensor:
        """Return E[x | z], shape ``(B, features)``."""
        return self.net(check_points("z", z, self.latent))

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z) in nats, shape ``(B,)``."""
        return log_normal(x, self.mean(z), self.log_var)

    def sample(self, z: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw x ~ p(x | z): the mean and its noise."""
        return reparameterise(self.mean(z), self.log_var, rng=rng)


class BernoulliDecoder(nn.Module):
    r"""The likelihood of independent bits, p(x_i = 1 | z) = sigmoid(l_i) (:eq:`eq:bernoulli`).

    .. math:: \log p(x\mid z) = \sum_i x_i\,l_i - \log\bigl(1+e^{l_i}\bigr)

    Args:
        latent: Entries of z.
        features: Entries of a point.
        width: Hidden units of a layer.
        depth: Hidden layers.
    """

    def __init__(self, latent: int, features: int, *, width: int = 128, depth: int = 2) -> None:
        super().__init__()
        self.latent = latent
        self.net = perceptron(latent, features, width=width, depth=depth)

    def mean(self, z: Tensor) -> Tensor:
        """Return the probabilities of 1, shape ``(B, features)``."""
        return self.net(check_points("z", z, self.latent)).sigmoid()

    def log_prob(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x | z) in nats, shape ``(B,)``; x holds 0 and 1, or raise ValueError."""
        if not bool(((x == 0) | (x == 1)).all()):
            raise ValueError(f"x reaches {float(x.max())}: give zeros and ones, such as x > 0.5")
        logit = self.net(check_points("z", z, self.latent))
        check_same_shape("x", x, "the decoder's output", logit)
        return (x * logit - softplus(logit)).sum(-1)

    def sample(self, z: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw zeros and ones."""
        p, rng = self.mean(z), generator(rng)
        u = torch.rand(p.shape, generator=rng, dtype=p.dtype, device=rng.device)
        return (u.to(p.device) < p).to(p.dtype)


class VAE(nn.Module):
    """An encoder and a decoder. Train by ``-vae.elbo(x, rng=rng).total.mean()``.

    Args:
        encoder: ``x -> Gaussian`` of z.
        decoder: A ``GaussianDecoder`` or ``BernoulliDecoder``, or what has their ``latent``,
            ``mean``, ``log_prob`` and ``sample``.
    """

    def __init__(self, encoder: Encoder, decoder: GaussianDecoder | BernoulliDecoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def elbo(self, x: Tensor, *, beta: float = 1.0, rng: torch.Generator | None = None) -> Bound:
        r"""Estimate the ELBO with one draw of z and the KL in closed form (:eq:`eq:elbo`).

        .. math:: \log p(x) \ge \mathrm E_{q(z|x)}\log p(x\mid z)
            - \mathrm{KL}\bigl(q(z\mid x)\,\|\,p(z)\bigr)

        Args:
            x: Points, shape ``(B, features)``.
            beta: Weight of the KL; only 1 bounds the likelihood.
            rng: Source of z.

        Raises:
            ValueError: if beta is negative or x has another shape.

        Source: Kingma and Welling (2014), equation 7; beta of Higgins et al. (2017).
        """
        if not beta >= 0:
            raise ValueError(f"beta={beta}: give a number of at least 0; 1 bounds the likelihood")
        q = self.encoder(x)
        reconstruction = self.decoder.log_prob(x, reparameterise(q.mean, q.log_var, rng=rng))
        kl = gaussian_kl(q.mean, q.log_var)
        return Bound(reconstruction, kl, reconstruction - beta * kl)

    def log_weight(self, x: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        r"""Estimate the ELBO in its other form, by a draw of z, shape ``(B,)`` (:eq:`eq:elbo-gap`).

        .. math:: \log w = \log p(x, z) - \log q(z\mid x), \qquad z\sim q(z\mid x)

        Its mean is the ELBO, and the mean of w is p(x). It is the same for every z, so without
        noise, where q is the exact posterior.

        Source: Kingma and Welling (2014), equation 6.
        """
        q = self.encoder(x)
        z = reparameterise(q.mean, q.log_var, rng=rng)
        prior = log_normal(z, torch.zeros_like(z), z.new_zeros(()))
        return self.decoder.log_prob(x, z) + prior - log_normal(z, q.mean, q.log_var)

    @torch.no_grad()
    def log_likelihood(
        self, x: Tensor, samples: int, *, rng: torch.Generator | None = None
    ) -> Tensor:
        r"""Estimate log p(x) by importance sampling, shape ``(B,)`` (:eq:`eq:iw-bound`).

        .. math:: \log\frac1K\sum_{k=1}^K w_k, \qquad w_k = \frac{p(x,z_k)}{q(z_k\mid x)},
            \quad z_k\sim q(z\mid x)

        In the mean a lower bound of log p(x), which rises with K to log p(x); at K = 1 the ELBO.

        Args:
            x: Points, shape ``(B, features)``.
            samples: K, at least 1.
            rng: Source of z.

        Raises:
            ValueError: if samples is not a whole number of at least 1.

        Source: Burda et al. (2016), section 3.
        """
        check_count("samples", samples)
        rng = generator(rng)
        log_w = torch.stack([self.log_weight(x, rng=rng) for _ in range(samples)])
        return log_w.logsumexp(0) - math.log(samples)

    @torch.no_grad()
    def sample(self, n: int, *, rng: torch.Generator | None = None) -> Tensor:
        """Draw ``n`` points, the decoder's noise included; ``decoder.mean`` leaves it out."""
        rng = generator(rng)
        return self.decoder.sample(latent_noise(n, self.decoder.latent, self, rng), rng=rng)
