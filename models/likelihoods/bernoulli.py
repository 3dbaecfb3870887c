"""The Bernoulli likelihood of binary data."""

__all__ = ["Bernoulli"]

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class Bernoulli(nn.Module):
    """Binary data, one logit a dimension.

    log p(x) = Σ_d x_d l_d − log(1 + exp l_d)

    Logits, never probabilities: in float32 a probability rounds to 0 or 1 and
    its log-mass to a floor of −15.9 a pixel.

    Example:
        >>> p = Bernoulli()(torch.tensor([[100.0], [-100.0]]))
        >>> p.log_prob(torch.tensor([0.0, 0.0]))
        tensor([-100.,   -0.])
    """

    params_per_dim = 1
    support = dist.constraints.boolean
    measure = "binary"

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, 1]``."""
        return dist.Bernoulli(logits=params.squeeze(-1), validate_args=False)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, 1]`` whose mean is ``mean``, kept inside 1 %."""
        return torch.logit(mean.clamp(0.01, 0.99)).unsqueeze(-1)
