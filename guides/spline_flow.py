"""The neural spline flow guide."""

__all__ = ["SplineFlow"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.flows import AutoregressiveLayer, CouplingLayer, LocScale, Spline, check_sizes
from pyro_vae.links import positive

from ._flow_guide import FlowGuide, standard_normal_like


class SplineFlow(FlowGuide):
    """Neural spline flow, z = μ(x) + σ(x) f(ε), f made of rational-quadratic splines.

    log q(z|x) = log N(ε; 0, I) − Σ_d log σ_d − Σ_layers Σ_d log f_d'

    In each layer one half of the dimensions, and the encoder's features, give
    the monotone splines of the other half (a coupling), so that a sample and the
    density at any z both cost one pass. Outside ±bound, in units of σ, a spline
    is the identity. Starts near N(μ(x), diag σ²(x)). One dimension cannot be
    split: its splines depend on x alone.

    References:
        Neural Spline Flows (Durkan et al., 2019), sections 3.1 and 3.2
        https://arxiv.org/abs/1906.04032

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
        layers: the number of couplings; two of them move every dimension once.
        hidden: the widths of each coupling's network.
        bins: the number of pieces of each spline.
        bound: where the splines end, in units of σ.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import Encoder, mlp
        >>> body, features = mlp(hidden=(8,)).encoder((4,))
        >>> guide = SplineFlow(Encoder(body, (4,), features), latent_dim=2)
        >>> guide.posterior(torch.zeros(3, 4)).log_prob(torch.zeros(2)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        encoder: Any,
        latent_dim: int,
        layers: int = 2,
        hidden: tuple[int, ...] = (128,),
        bins: int = 8,
        bound: float = 4.0,
    ):
        check_sizes("spline_flow", layers=layers, hidden=hidden, bins=bins, bound=bound)
        super().__init__(encoder, latent_dim)
        layer = CouplingLayer if latent_dim > 1 else AutoregressiveLayer
        self.layers = nn.ModuleList(
            layer(index, latent_dim, hidden, Spline(bins, bound), encoder.out_features)
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
        steps = [layer(features) for layer in self.layers] + [LocScale(loc, positive(raw_scale))]
        base = standard_normal_like(loc)
        return dist.TransformedDistribution(base, steps, validate_args=False)
