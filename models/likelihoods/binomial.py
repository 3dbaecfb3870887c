"""The binomial likelihood of levels."""

__all__ = ["Binomial"]

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.types import _size

from ._levels import Levels, check_num_levels, log_choose, unit_mean


class Binomial(nn.Module):
    """Levels as n−1 coin flips, one logit a dimension.

    log p(x) = Σ_d log C(n−1, x_d) + x_d log σ(l_d) + (n−1−x_d) log σ(−l_d)

    The mean (n−1) σ(l) fixes the variance, (n−1) σ(l) σ(−l), at most (n−1)/4:
    with 256 levels a standard deviation of 8. ``beta_binomial`` frees it. With
    two levels it is the Bernoulli.

    Arguments:
        num_levels: n; x is 0 … n−1.

    Example:
        >>> p = Binomial(num_levels=3)(torch.zeros(1, 1))
        >>> p.log_prob(torch.tensor([1.0])).exp()  # C(2, 1)/4
        tensor([0.5000])
    """

    measure = "levels"
    params_per_dim = 1

    def __init__(self, num_levels: int | None):
        super().__init__()
        self.num_levels = check_num_levels("binomial", num_levels)
        self.support = constraints.integer_interval(0, self.num_levels - 1)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, 1]``."""
        return _BinomialLevels(self.num_levels, params.squeeze(-1))

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, 1]`` whose mean is ``mean``, kept inside 1 %."""
        return torch.logit(unit_mean(mean, self.num_levels)).unsqueeze(-1)


class _BinomialLevels(Levels):
    """Float64 inside: terms that cancel reach 175 nats with 256 levels, 45,000 with 65,536."""

    def log_prob(self, value: Tensor) -> Tensor:
        # x log σ(l) + (n−1−x) log σ(−l) = x l + (n−1) log σ(−l). In float32 the sum errs by 2e-5
        # nat a dimension with 256 levels, by 5e-3 with 65,536; softplus of torch is l from 20 on.
        logits, x = self.params[0].double(), value.double()
        log_count = log_choose(self.num_levels, logits)[value.long()]
        log_mass = log_count + x * logits + (self.num_levels - 1) * logsigmoid(-logits)
        return log_mass.to(self.params[0].dtype)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            (logits,) = self.params
            # The rarer side, whose probability does not round to 1.
            prob = torch.sigmoid(-logits.double().abs()).expand(self._extended_shape(sample_shape))
            last = torch.full_like(prob, self.num_levels - 1)
            rare = torch.binomial(last, prob)
            return torch.where(logits > 0, last - rare, rare).to(logits.dtype)

    @property
    def mean(self) -> Tensor:
        return (self.num_levels - 1) * torch.sigmoid(self.params[0])

    @property
    def variance(self) -> Tensor:
        return self.mean * torch.sigmoid(-self.params[0])
