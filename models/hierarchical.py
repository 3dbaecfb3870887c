"""Two stochastic layers."""

__all__ = ["Hierarchical"]

from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.conditional_normal import ConditionalNormal
from pyro_vae.errors import InputError

from ._decoded import Decoded


class Hierarchical(Decoded):
    """Two stochastic layers, p(z2) p(z1|z2) p(x|z1); goes with the guide ``hierarchical``.

    p(z1|z2) = N(μ(z2), diag σ²(z2)), a network of the widths ``hidden``; z2 comes from
    the prior, and x from the decoded z1.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), section 5.1
        https://arxiv.org/abs/1509.00519

    Arguments:
        prior: p(z2), see ``protocols.Prior``.
        likelihood: p(x | params), see ``protocols.Likelihood``.
        decoder: maps z1 ``[*, latent_dims[0]]`` to params ``[*, *event_shape, P]``.
        event_shape: the shape of one datum.
        latent_dims: the sizes of z1 and z2; by default twice the latent_dim, and it.
        hidden: the widths between z2 and z1.
        activation: of that network, as for ``mlp``.
        output_bias, data_mean: as for ``vae``.
    """

    def __init__(
        self,
        prior: Any,
        likelihood: Any,
        decoder: Any,
        event_shape: tuple[int, ...],
        latent_dims: tuple[int, int] | None = None,
        hidden: tuple[int, ...] = (100, 100),
        activation: str = "tanh",
        output_bias: str = "zero",
        data_mean: Tensor | None = None,
    ):
        super().__init__(likelihood, decoder, event_shape, output_bias, data_mean)
        if latent_dims is None or len(latent_dims) != 2:
            raise InputError(f"hierarchical: latent_dims must be two sizes, got {latent_dims!r}")
        self.top = prior
        self.middle = ConditionalNormal(latent_dims[1], latent_dims[0], hidden, activation)

    def prior(self) -> dist.TorchDistribution:
        """Return p(z1), what ``decode`` takes; drawn through z2, without a closed-form density."""
        return _Marginal(self.top(), self.middle)

    def forward(self, x: Tensor) -> Tensor:
        """Run the program on ``x`` ``[B, *event_shape]``; returns z1."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z2 = pyro.sample("z2", self.top())
            z1: Tensor = pyro.sample("z1", self.middle(z2))
            pyro.sample("x", self.decode(z1), obs=x)
            return z1


class _Marginal(dist.TorchDistribution):
    """∫ p(z1|z2) p(z2) dz2: it can be drawn from."""

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector

    def __init__(self, top: dist.TorchDistribution, middle: ConditionalNormal):
        self.top, self.middle = top, middle
        super().__init__(torch.Size(), torch.Size((middle.out_dim,)), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw z2, then z1 given it, ``[*sample_shape, latent_dims[0]]``."""
        with torch.no_grad():
            z1: Tensor = self.middle(self.top.sample(torch.Size(sample_shape))).sample()
            return z1
