"""The Poisson likelihood of counts."""

__all__ = ["Poisson"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.links import inverse_positive, positive


class Poisson(nn.Module):
    """Counts, a Poisson rate a dimension; mean and variance are equal.

    log p(x) = Σ_d x_d log λ_d − λ_d − log x_d!

    λ = 1e-6 + softplus(output): a log link would overflow in float32 from an
    output of 89. The floor costs a dimension that is always zero 1e-6 nat.

    Example:
        >>> p = Poisson()(torch.tensor([[-1e4], [3.0]]))
        >>> p.mean
        tensor([1.0000e-06, 3.0486e+00])
        >>> p.log_prob(torch.tensor([0.0, 2.0]))
        tensor([-1.0000e-06, -1.5124e+00])
    """

    params_per_dim = 1
    support = dist.constraints.nonnegative_integer
    measure = "counts"

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, 1]``."""
        return _Poisson(positive(params.squeeze(-1)), validate_args=False)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, 1]`` whose mean is ``mean``, at least 0.01."""
        return inverse_positive(mean.clamp(min=0.01)).unsqueeze(-1)


class _Poisson(dist.Poisson):
    """A Poisson distribution whose log-mass is computed in float64."""

    def log_prob(self, value: Tensor) -> Tensor:
        # x log λ and log x! cancel; at x = 10⁴ both are near 10⁵, where float32 goes in steps of
        # 0.008. log x! of data takes the data's shape, whatever the number of samples of λ.
        rate, x = self.rate.double(), value.double()
        log_mass = x * rate.log() - rate - torch.lgamma(x + 1)
        return log_mass.to(self.rate.dtype)
