"""What the guides of one latent share: the program over their posterior."""

__all__ = ["AmortizedGuide"]

import pyro
import pyro.distributions as dist
from pyro.nn import PyroModule
from torch import Tensor


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
