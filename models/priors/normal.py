"""The learned normal prior."""

__all__ = ["Normal"]

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae.checks import check_number
from pyro_vae.links import inverse_positive, positive


class Normal(nn.Module):
    """A normal with learned mean and scale a coordinate; starts at N(0, I).

    log p(z) = −½ Σ_d ((z_d − μ_d)²/σ_d² + log 2π σ_d²)

    With a decoder whose first layer is affine it expresses nothing that N(0, I)
    does not: it changes the units of z, and with them the path of the training.

    Arguments:
        latent_dim: the dimension of z.
        floor: the smallest σ, from 1e-6 to below 1, where it starts.

    Example:
        >>> prior = Normal(latent_dim=2)
        >>> nn.init.constant_(prior.loc, 3.0).tolist()
        [3.0, 3.0]
        >>> prior().log_prob(torch.full((2,), 3.0)).detach()
        tensor(-1.8379)
    """

    def __init__(self, latent_dim: int, floor: float = 1e-3):
        super().__init__()
        check_number("normal", "floor", floor, 1e-6, 1, ends="[)")
        self.floor = floor
        self.loc = nn.Parameter(torch.zeros(latent_dim))
        self.raw_scale = nn.Parameter(inverse_positive(torch.ones(latent_dim), floor))

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        scale = positive(self.raw_scale, self.floor)
        return dist.Normal(self.loc, scale, validate_args=False).to_event(1)
