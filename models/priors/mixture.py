"""The mixture-of-normals prior."""

__all__ = ["Mixture"]

import torch
from pyro.distributions import TorchDistribution
from torch import nn

from pyro_vae.checks import check_count, check_number
from pyro_vae.links import inverse_positive, positive

from ._mixture import DiagonalNormalMixture


class Mixture(nn.Module):
    """A mixture of diagonal normals with learned weights, means and scales.

    p(z) = Σ_k w_k N(z; μ_k, diag σ_k²),  w = softmax(logits)

    Starts at equal weights, σ = 1 and μ_k ~ N(0, I): equal components would get
    equal gradients and stay equal.

    Arguments:
        latent_dim: the dimension of z.
        components: K.
        floor: the smallest σ, from 1e-6 to below 1, where they start.

    Example:
        >>> prior = Mixture(latent_dim=2, components=3)
        >>> nn.init.zeros_(prior.loc).shape  # all components N(0, I)
        torch.Size([3, 2])
        >>> prior().log_prob(torch.zeros(2)).detach()
        tensor(-1.8379)
    """

    def __init__(self, latent_dim: int, components: int = 10, floor: float = 1e-3):
        super().__init__()
        check_count("mixture", "components", components)
        check_number("mixture", "floor", floor, 1e-6, 1, ends="[)")
        self.floor = floor
        self.logits = nn.Parameter(torch.zeros(components))
        self.loc = nn.Parameter(torch.randn(components, latent_dim))
        self.raw_scale = nn.Parameter(inverse_positive(torch.ones(components, latent_dim), floor))

    def forward(self) -> TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        return DiagonalNormalMixture(self.logits, self.loc, positive(self.raw_scale, self.floor))
