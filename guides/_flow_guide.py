"""What the guides with a flow share."""

__all__ = ["FlowGuide", "standard_normal_like"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ._amortized import EncodedGuide


class FlowGuide(EncodedGuide):
    """A guide with μ(x), σ(x) and a flow: subclasses give ``outputs`` and ``distribution``.

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
    """

    def __init__(self, encoder: Any, latent_dim: int):
        super().__init__()
        self.encoder = encoder
        self.latent_dim = latent_dim
        self.head = nn.Linear(encoder.out_features, 2 * latent_dim)


def standard_normal_like(x: Tensor) -> dist.TorchDistribution:
    """Return N(0, I) over the last dimension of ``x``, in its shape, dtype and device."""
    zero = torch.zeros_like(x)
    return dist.Normal(zero, torch.ones_like(x), validate_args=False).to_event(1)
