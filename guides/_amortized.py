"""What the guides of one latent share: the program over their posterior, and what encodes x."""

__all__ = ["AmortizedGuide", "EncodedGuide"]

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.precision import full_precision


class AmortizedGuide(PyroModule):
    """A guide of one latent z ~ q(z|x); subclasses give the ``posterior``."""

    has_density = True

    def __init__(self) -> None:
        super().__init__("guide")

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), ``batch_shape [B]`` and ``event_shape (latent_dim,)``."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Sample z for ``x`` ``[B, *event_shape]``; the encoder runs once a datum."""
        q = self.posterior(x)
        with pyro.plate("data", x.shape[0], dim=-1):
            z: Tensor = pyro.sample("z", q)
            return z


class EncodedGuide(AmortizedGuide):
    """A guide whose q(z|x) is a family of distributions at the outputs of an encoder.

    Subclasses give ``outputs`` and ``distribution``, whose own weights are shared by all
    data: the best q of the family for a datum is found by moving its outputs alone.
    """

    def outputs(self, x: Tensor) -> Tensor:
        """Return what the encoder says of x, ``[B, P]``: all of q(z|x) that depends on x."""
        raise NotImplementedError

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z) at outputs ``[B, P]``, ``batch_shape [B]``, ``event_shape (latent_dim,)``."""
        raise NotImplementedError

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """Return q(z|x), ``batch_shape [B]`` and ``event_shape (latent_dim,)``."""
        return self.distribution(full_precision(self.outputs(x)))
