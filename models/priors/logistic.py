"""The logistic prior."""

__all__ = ["Logistic"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.types import _size

from pyro_vae.checks import check_number


class Logistic(nn.Module):
    """Independent logistic coordinates, smooth with exponential tails; no parameters.

    log p(z) = −Σ_d (|z_d|/s + 2 log(1 + exp(−|z_d|/s)) + log s)

    The variance is π² s²/3: ``scale=0.5513`` has the variance of N(0, I).

    Arguments:
        latent_dim: the dimension of z.
        scale: s.

    Example:
        >>> Logistic(latent_dim=1)().log_prob(torch.tensor([0.0]))  # −2 log 2
        tensor(-1.3863)
    """

    loc: Tensor

    def __init__(self, latent_dim: int, scale: float = 1.0):
        super().__init__()
        check_number("logistic", "scale", scale)
        self.scale = float(scale)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        scale = torch.full_like(self.loc, self.scale)
        return _Logistic(self.loc, scale, validate_args=False).to_event(1)


class _Logistic(dist.Logistic):
    """Pyro's, whose samples are finite."""

    def rsample(self, sample_shape: _size = ()) -> Tensor:
        """Draw loc + scale · logit(u), u uniform."""
        u = self.loc.new_empty(self._extended_shape(sample_shape)).uniform_()
        # In float32 u is 0 once in 2²⁴ draws, whose logit is −∞; its cell reaches up to ε/2.
        return self.icdf(u.clamp(min=torch.finfo(u.dtype).eps / 4))
