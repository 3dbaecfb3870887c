"""The Laplace prior."""

__all__ = ["Laplace"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.checks import check_number


class Laplace(nn.Module):
    """Independent Laplace coordinates, heavier tails than the normal; no parameters.

    log p(z) = −Σ_d (|z_d|/b + log 2b)

    The variance is 2b²: ``scale=0.7071`` has the variance of N(0, I).

    Arguments:
        latent_dim: the dimension of z.
        scale: b, the mean of |z_d|.

    Example:
        >>> Laplace(latent_dim=1)().log_prob(torch.tensor([3.0]))  # −3 − log 2
        tensor(-3.6931)
    """

    loc: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0):
        super().__init__()
        check_number("laplace", "scale", scale)
        self.scale = float(scale)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        # Filled in the module's dtype: a float32 buffer would round b for float64 too.
        scale = torch.full_like(self.loc, self.scale)
        return dist.Laplace(self.loc, scale, validate_args=False).to_event(1)
