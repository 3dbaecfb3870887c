"""The categorical likelihood of levels."""

__all__ = ["Categorical"]

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn
from torch.types import _size

from ._levels import Levels, check_num_levels
from .beta_binomial import BetaBinomial


class Categorical(nn.Module):
    """Levels without an order, one logit a level.

    log p(x) = Σ_d l_{d, x_d} − log Σ_k exp l_{d, k}

    It can take any shape, and it is large: 784 pixels of 256 levels are 200,704
    outputs a datum and a sample, 0.8 MB in float32 (several times that in
    training), and a last layer of 60 million weights on 300 hidden units. The
    discretized logistic, alone or mixed, has 2 or 3 K outputs a pixel.

    References:
        Pixel Recurrent Neural Networks (van den Oord et al., 2016)
        https://arxiv.org/abs/1601.06759

    Arguments:
        num_levels: n; x is 0 … n−1.

    Example:
        >>> p = Categorical(num_levels=3)(torch.tensor([[0.0, 1.0, 0.0]]))
        >>> p.log_prob(torch.tensor([1.0]))  # 1 − log(2 + e)
        tensor([-0.5514])
    """

    measure = "levels"

    def __init__(self, num_levels: int | None):
        super().__init__()
        self.num_levels = check_num_levels("categorical", num_levels)
        self.params_per_dim = self.num_levels
        self.support = constraints.integer_interval(0, self.num_levels - 1)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, n]``."""
        return _CategoricalLevels(self.num_levels, params)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, n]`` whose mean is ``mean``, kept inside 1 %.

        Of all masses with that mean they are those of the beta-binomial with
        a + b = 2, which is broad: uniform at the middle.
        """
        broad = BetaBinomial(self.num_levels)
        levels = torch.arange(self.num_levels, dtype=mean.dtype, device=mean.device)
        return broad(broad.params_at(mean).unsqueeze(-2)).log_prob(levels)


class _CategoricalLevels(Levels):
    """A mass from logits ``[*batch_shape, n]``, over floats and not over int64."""

    param_dims = 1

    def log_prob(self, value: Tensor) -> Tensor:
        log_mass = self.params[0].log_softmax(-1)
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        index = value.long().expand(shape).unsqueeze(-1)
        return log_mass.expand(*shape, self.num_levels).gather(-1, index).squeeze(-1)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            p = dist.Categorical(logits=self.params[0], validate_args=False)
            return p.sample(torch.Size(sample_shape)).to(self.params[0].dtype)

    @property
    def mean(self) -> Tensor:
        return (self.params[0].softmax(-1) * self._levels).sum(-1)

    @property
    def variance(self) -> Tensor:
        deviation = self._levels - self.mean.unsqueeze(-1)
        return (self.params[0].softmax(-1) * deviation**2).sum(-1)

    @property
    def _levels(self) -> Tensor:
        (logits,) = self.params
        return torch.arange(self.num_levels, dtype=logits.dtype, device=logits.device)
