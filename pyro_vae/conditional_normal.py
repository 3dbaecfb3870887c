"""A diagonal normal whose mean and scale are a network of what it is conditioned on."""

__all__ = ["ConditionalNormal"]

import pyro.distributions as dist
from torch import Tensor, nn

from pyro_vae.links import positive
from pyro_vae.networks import mlp
from pyro_vae.precision import full_precision


class ConditionalNormal(nn.Module):
    """p(y|z) = N(μ(z), diag σ²(z)), one layer of a hierarchy given the next.

    Arguments:
        in_dim: the size of z.
        out_dim: the size of y.
        hidden: the widths of the layers between.
        activation: as for ``networks.mlp``.

    Example:
        >>> import torch
        >>> ConditionalNormal(3, 2)(torch.zeros(5, 3)).event_shape
        torch.Size([2])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden: tuple[int, ...] = (100, 100),
        activation: str = "tanh",
    ):
        super().__init__()
        self.out_dim = out_dim
        self.body, features = mlp(hidden, activation).encoder((in_dim,))
        self.head = nn.Linear(features, 2 * out_dim)

    def forward(self, z: Tensor) -> dist.TorchDistribution:
        """Return p(y|z), ``[*]`` by ``event_shape (out_dim,)``, for z ``[*, in_dim]``."""
        features = self.body(z.reshape(-1, z.shape[-1])).reshape(*z.shape[:-1], -1)
        loc, raw_scale = full_precision(self.head(features)).chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale), validate_args=False).to_event(1)
