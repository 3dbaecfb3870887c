"""The Poisson likelihood of counts."""

__all__ = ["Poisson"]

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.types import _size

from pyro_vae.links import inverse_positive

from ._draws import draw_poisson
from ._links import log_softplus


class Poisson(nn.Module):
    """Counts, a Poisson rate a dimension; mean and variance are equal.

    log p(x) = Σ_d x_d log λ_d − λ_d − log x_d!

    λ = softplus(output): a log link would overflow in float32 from an output of 89.
    log λ is the output far below 0, so that a rate near 0 still learns from a count.

    Example:
        >>> p = Poisson()(torch.tensor([[-1e4], [3.0]]))
        >>> p.mean
        tensor([0.0000, 3.0486])
        >>> p.log_prob(torch.tensor([1.0, 2.0]))
        tensor([-1.0000e+04, -1.5124e+00])
    """

    params_per_dim = 1
    support = constraints.nonnegative_integer
    measure = "counts"

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, 1]``."""
        return _Poisson(log_softplus(params.squeeze(-1)), params.dtype)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, 1]`` whose mean is ``mean``, at least 0.01."""
        return inverse_positive(mean.clamp(min=0.01), floor=0.0).unsqueeze(-1)


class _Poisson(TorchDistribution):
    """A Poisson of log λ in float64, with values and masses in ``dtype``."""

    arg_constraints: ClassVar = {"log_rate": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, log_rate: Tensor, dtype: torch.dtype):
        self.log_rate, self.dtype = log_rate, dtype
        super().__init__(log_rate.shape, validate_args=False)

    def expand(self, batch_shape: _size, _instance: None = None) -> "_Poisson":
        return _Poisson(self.log_rate.expand(batch_shape), self.dtype)

    @property
    def mean(self) -> Tensor:
        return self.log_rate.exp().to(self.dtype)

    @property
    def variance(self) -> Tensor:
        return self.mean

    def log_prob(self, value: Tensor) -> Tensor:
        # x log λ and log x! cancel; at x = 10⁴ both are near 10⁵, where float32 goes in steps of
        # 0.008. log x! of data takes the data's shape, whatever the number of samples of λ.
        log_rate, x = self.log_rate, value.double()
        log_mass = x * log_rate - log_rate.exp() - torch.lgamma(x + 1)
        return log_mass.to(self.dtype)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            return draw_poisson(self.mean.expand(self._extended_shape(sample_shape)))
