"""The bottom-up guide of two stochastic layers."""

__all__ = ["Hierarchical"]

from typing import Any

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.conditional_normal import ConditionalNormal
from pyro_vae.errors import InputError
from pyro_vae.links import positive
from pyro_vae.precision import full_precision


class Hierarchical(PyroModule):
    """Bottom-up q(z1|x) q(z2|z1), diagonal normals; goes with the model ``hierarchical``.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), section 5.1
        https://arxiv.org/abs/1509.00519

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dims: the sizes of z1 and z2, as the model has them.
        hidden: the widths between z1 and z2.
        activation: of that network, as for ``mlp``.
    """

    has_density = True

    def __init__(
        self,
        encoder: Any,
        latent_dims: tuple[int, ...],
        hidden: tuple[int, ...] = (100, 100),
        activation: str = "tanh",
    ):
        super().__init__("guide")
        if len(latent_dims) != 2:
            raise InputError(
                "guide hierarchical has two latents and the model one; use --model hierarchical, "
                "or another guide"
            )
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_features, 2 * latent_dims[0])
        self.top = ConditionalNormal(latent_dims[0], latent_dims[1], hidden, activation)

    def outputs(self, x: Tensor) -> Tensor:
        """Return μ(x) of z1 and σ(x) before its link, ``[B, P]``."""
        outputs: Tensor = self.head(self.encoder(x))
        return outputs

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z1) at outputs ``[B, P]``, ``event_shape (latent_dims[0],)``."""
        loc, raw_scale = outputs.chunk(2, dim=-1)
        return dist.Normal(loc, positive(raw_scale), validate_args=False).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z1|x), ``batch_shape [B]`` and ``event_shape (latent_dims[0],)``."""
        return self.distribution(full_precision(self.outputs(x)))

    def forward(self, x: Tensor) -> Tensor:
        """Sample z1, then z2 given it; the encoder runs once a datum."""
        q = self.posterior(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            z1: Tensor = pyro.sample("z1", q)
            pyro.sample("z2", self.top(z1))
            return z1
