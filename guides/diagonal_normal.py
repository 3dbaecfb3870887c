"""The mean-field normal guide."""

__all__ = ["DiagonalNormal"]

from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.links import positive


class DiagonalNormal(PyroModule):
    """A normal with diagonal covariance, q(z|x) = N(μ(x), diag σ²(x)).

    Samples are reparameterized, z = μ(x) + σ(x) ε with ε ~ N(0, I), so that
    gradients reach the encoder through z.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), section 2.4
        https://arxiv.org/abs/1312.6114

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
    """

    has_density = True

    def __init__(self, encoder: Any, latent_dim: int):
        super().__init__("guide")
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_features, 2 * latent_dim)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), ``batch_shape [B]`` and ``event_shape (latent_dim,)``."""
        loc, raw_scale = self.head(self.encoder(x)).chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale), validate_args=False).to_event(1)

    def forward(self, x: Tensor) -> Tensor:
        """Sample z for ``x`` ``[B, *event_shape]``; the encoder runs once a datum."""
        q = self.posterior(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            z: Tensor = pyro.sample("z", q)
            return z
