"""The inverse autoregressive flow guide."""

__all__ = ["IAF"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.flows import Affine, AutoregressiveLayer, check_sizes
from pyro_vae.links import positive

from ._flow_guide import FlowGuide


class IAF(FlowGuide):
    """Inverse autoregressive flow: affine steps z_d ← m_d(z_<d, x) + exp(s_d(z_<d, x)) z_d.

    z₀ ~ N(μ(x), diag σ²(x)) passes ``layers`` steps, the order of the dimensions
    reversed from one to the next:

    log q(z|x) = log N(z₀; μ, diag σ²) − Σ_layers Σ_d s_d,  |s_d| < 3

    m and s are masked networks whose first layer also takes the encoder's
    features. A sample and its density cost one pass of the networks, the density
    at any other z ``latent_dim`` passes. Starts near N(μ(x), diag σ²(x)).

    References:
        Improving Variational Inference with Inverse Autoregressive Flow
        (Kingma et al., 2016), section 3
        https://arxiv.org/abs/1606.04934

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
        layers: the number of steps.
        hidden: the widths of each step's network.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import Encoder, mlp
        >>> body, features = mlp(hidden=(8,)).encoder((4,))
        >>> guide = IAF(Encoder(body, (4,), features), latent_dim=2)
        >>> guide.posterior(torch.zeros(3, 4)).rsample((5,)).shape
        torch.Size([5, 3, 2])
    """

    def __init__(
        self,
        encoder: Any,
        latent_dim: int,
        layers: int = 2,
        hidden: tuple[int, ...] = (256,),
    ):
        check_sizes("iaf", layers=layers, hidden=hidden)
        super().__init__(encoder, latent_dim)
        self.layers = nn.ModuleList(
            AutoregressiveLayer(index, latent_dim, hidden, Affine(), encoder.out_features)
            for index in range(layers)
        )

    def outputs(self, x: Tensor) -> Tensor:
        """Return the features, which the steps take, μ(x), and σ(x) before its link, ``[B, P]``."""
        features = self.encoder(x)
        return torch.cat([features, self.head(features)], dim=-1)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z) at outputs ``[B, P]``, ``batch_shape [B]``, ``event_shape (latent_dim,)``."""
        sizes = (self.encoder.out_features, self.latent_dim, self.latent_dim)
        features, loc, raw_scale = outputs.split(sizes, dim=-1)
        base = dist.Normal(loc, positive(raw_scale), validate_args=False).to_event(1)
        steps = [layer(features) for layer in self.layers]
        return dist.TransformedDistribution(base, steps, validate_args=False)
