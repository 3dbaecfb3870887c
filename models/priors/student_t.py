"""The Student t prior."""

__all__ = ["StudentT"]

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.checks import check_number
from pyro_vae.student_t import MAX_DF, LocationScaleT


class StudentT(nn.Module):
    """Independent Student t coordinates, tails of a power law; no parameters.

    log p(z) = −Σ_d (ν+1)/2 log(1 + z_d²/(ν s²)) + log s + log B(½, ν/2) + ½ log ν

    The variance is s² ν/(ν − 2): at ν = 5 ``scale=0.7746`` has that of N(0, I).

    Arguments:
        latent_dim: the dimension of z.
        df: ν, the degrees of freedom; above 2, where the variance exists, to 1e6.
        scale: s.

    Example:
        >>> StudentT(latent_dim=1, df=3.0)().log_prob(torch.tensor([0.0]))  # log 2/(π √3)
        tensor(-1.0009)
    """

    loc: Tensor

    def __init__(self, latent_dim: int, df: float = 5.0, scale: float = 1.0):
        super().__init__()
        check_number("student_t", "df", df, 2, MAX_DF, ends="(]")
        check_number("student_t", "scale", scale)
        self.df = float(df)
        self.scale = float(scale)
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``."""
        df, scale = (torch.full_like(self.loc, value) for value in (self.df, self.scale))
        return LocationScaleT(df, self.loc, scale, validate_args=False).to_event(1)
