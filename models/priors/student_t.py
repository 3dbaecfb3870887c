"""The Student t prior."""

__all__ = ["StudentT"]

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.types import _size

from pyro_vae.errors import InputError


class StudentT(nn.Module):
    """Independent Student t coordinates, tails of a power law; no parameters.

    log p(z) = −Σ_d (ν+1)/2 log(1 + z_d²/(ν s²)) + log s + log B(½, ν/2) + ½ log ν

    The variance is s² ν/(ν − 2): at ν = 5 ``scale=0.7746`` has that of N(0, I).

    Arguments:
        latent_dim: the dimension of z.
        df: ν, the degrees of freedom; above 2, where the variance exists.
        scale: s.

    Example:
        >>> StudentT(latent_dim=1, df=3.0)().log_prob(torch.tensor([0.0]))  # log 2/(π √3)
        tensor(-1.0009)
    """

    loc: Tensor

    def __init__(self, latent_dim: int, df: float = 5.0, scale: float = 1.0):
        super().__init__()
        if not 2 < df < math.inf:
            raise InputError(f"student_t: df must be finite and above 2, got {df!r}")
        if not 0 < scale < math.inf:
            raise InputError(f"student_t: scale must be positive and finite, got {scale!r}")
        self.df = df
        self.scale = scale
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        df, scale = (torch.full_like(self.loc, value) for value in (self.df, self.scale))
        return _StudentT(df, self.loc, scale).to_event(1)


class _StudentT(dist.StudentT):  # type: ignore[misc]
    """torch's, without the check of its χ²'s arguments: on a GPU a wait at every call."""

    def __init__(self, df: Tensor, loc: Tensor, scale: Tensor):
        self.df, self.loc, self.scale = df, loc, scale
        self._chi2 = dist.Chi2(df, validate_args=False)
        torch.distributions.Distribution.__init__(self, loc.shape, validate_args=False)

    def expand(self, batch_shape: _size, _instance: "_StudentT | None" = None) -> "_StudentT":
        """Return the same distribution with another ``batch_shape``."""
        return super().expand(batch_shape, self._get_checked_instance(_StudentT, _instance))
