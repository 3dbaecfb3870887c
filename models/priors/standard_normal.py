"""The standard normal prior."""

__all__ = ["StandardNormal"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """The standard normal, N(0, I); no parameters.

    log p(z) = −½ Σ_d (z_d² + log 2π)

    Arguments:
        latent_dim: the dimension of z.

    Example:
        >>> StandardNormal(latent_dim=2)().log_prob(torch.zeros(2))
        tensor(-1.8379)
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int):
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
