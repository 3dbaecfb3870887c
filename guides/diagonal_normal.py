"""The mean-field normal guide."""

__all__ = ["DiagonalNormal"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.links import positive

from ._amortized import EncodedGuide


class DiagonalNormal(EncodedGuide):
    """A normal with diagonal covariance, q(z|x) = N(μ(x), diag σ²(x)).

    Samples are reparameterized, z = μ(x) + σ(x) ε with ε ~ N(0, I), so that
    gradients reach the encoder through z. ``scale=constant`` learns one σ a
    latent for all x. With a linear encoder that is the exact mean-field optimum
    of a linear-Gaussian model, ½ (Σ_i log Λ_ii − log det Λ) nats below log p(x),
    Λ the precision of p(z|x).

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014), section 2.4
        https://arxiv.org/abs/1312.6114

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
        scale: ``amortized``, σ from the encoder, or ``constant``, σ the same for all x.

    Example:
        >>> from pyro_vae.networks import Encoder
        >>> guide = DiagonalNormal(Encoder(nn.Flatten(), (4,), 4), latent_dim=2, scale="constant")
        >>> guide.posterior(torch.zeros(3, 4)).stddev[0]  # softplus(0) at the start
        tensor([0.6931, 0.6931], grad_fn=<SelectBackward0>)
    """

    def __init__(self, encoder: Any, latent_dim: int, scale: str = "amortized"):
        super().__init__()
        if scale not in ("amortized", "constant"):
            raise InputError(f"diagonal_normal: scale must be amortized or constant, got {scale!r}")
        self.encoder = encoder
        self.amortized = scale == "amortized"
        outputs = 2 * latent_dim if self.amortized else latent_dim
        self.head = nn.Linear(encoder.out_features, outputs)
        if not self.amortized:
            self.raw_scale = nn.Parameter(torch.zeros(latent_dim))

    def outputs(self, x: Tensor) -> Tensor:
        """Return μ(x) and, where it is amortized, σ(x) before its link, ``[B, P]``."""
        outputs: Tensor = self.head(self.encoder(x))
        return outputs

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z) at outputs ``[B, P]``, ``batch_shape [B]``, ``event_shape (latent_dim,)``."""
        loc, raw_scale = outputs.chunk(2, dim=-1) if self.amortized else (outputs, self.raw_scale)
        return dist.Normal(loc, positive(raw_scale), validate_args=False).to_event(1)
