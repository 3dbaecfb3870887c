"""The continuous Bernoulli likelihood of data in the unit interval."""

__all__ = ["ContinuousBernoulli"]

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ._bisect import bisect


class ContinuousBernoulli(nn.Module):
    """Continuous data in [0, 1], one logit a dimension: a Bernoulli's formula, normalized.

    log p(x) = Σ_d x_d l_d − log((exp l_d − 1)/l_d)

    A truncated exponential: uniform at l = 0, and at large |l| its standard
    deviation is 1/|l|. Where a pixel is 0, or 1, in all data the likelihood grows
    as log |l| without a maximum, so levels need to be dequantized.

    References:
        The continuous Bernoulli: fixing a pervasive error in variational autoencoders
        (Loaiza-Ganem & Cunningham, 2019)
        https://arxiv.org/abs/1907.06845

    Example:
        >>> p = ContinuousBernoulli()(torch.tensor([[0.0], [100.0]]))
        >>> p.log_prob(torch.tensor([0.9, 1.0]))  # log 1, log 100
        tensor([0.0000, 4.6052])
    """

    params_per_dim = 1
    support = dist.constraints.unit_interval
    measure = "continuous"
    learns_scale = True

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, 1]``."""
        return _LogitContinuousBernoulli(params.squeeze(-1), validate_args=False)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, 1]`` whose mean is ``mean``, kept inside 1 %."""
        target = mean.double().clamp(0.01, 0.99)
        # The mean rises with l, and is 1/|l| away from 0 or 1 at large |l|.
        logits = bisect(
            lambda logits: _LogitContinuousBernoulli(logits, validate_args=False).mean,
            target,
            target.new_full((), 128.0),
        )
        return logits.to(mean.dtype).unsqueeze(-1)


# log(sinh(l/2)/(l/2)) = Σ_n c_n l²ⁿ with c_n = B_2n/(2n (2n)!), the Bernoulli numbers B_2n.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_VALUE = [b / (2 * n * math.factorial(2 * n)) for n, b in enumerate(_BERNOULLI, 1)]
_SLOPE = [2 * n * c for n, c in enumerate(_VALUE, 1)]
_CURVATURE = [(2 * n - 1) * c for n, c in enumerate(_SLOPE, 1)]


class _LogitContinuousBernoulli(dist.TorchDistribution):
    """The continuous Bernoulli in terms of its logit l, at any l.

    ``pyro.distributions.ContinuousBernoulli`` clamps λ = sigmoid(l): in float32
    its density stops at |l| = 16 (1.8 nats a dimension too low at l = 100, 6.4 at
    1e4), and at l = 0.005 rounding makes its variance 0.25 for 1/12.

    Below |l| = ½ the log-normalizer is a series in l. Above, with a = |l| and d
    the distance to the favoured end of [0, 1],

        p(x) = a exp(−a d)/(1 − exp(−a)).
    """

    arg_constraints = {"logits": dist.constraints.real}  # noqa: RUF012
    support = dist.constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None):
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_LogitContinuousBernoulli":
        """Return the same distribution with ``batch_shape``."""
        return _LogitContinuousBernoulli(self.logits.expand(batch_shape), False)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, nats."""
        near, logits, a = self._branches(0.5)
        uniform = logits * (value - 0.5) - logits.square() * _series(_VALUE, logits)
        distance = torch.where(self.logits > 0, 1 - value, value)
        exponential = torch.log(a / -torch.expm1(-a)) - a * distance
        return torch.where(near, uniform, exponential)

    @property
    def mean(self) -> Tensor:
        """½ + ½ coth(l/2) − 1/l."""
        near, logits, a = self._branches(0.5)
        distance = 1 / a + torch.exp(-a) / torch.expm1(-a)
        exponential = torch.where(self.logits > 0, 1 - distance, distance)
        return torch.where(near, 0.5 + logits * _series(_SLOPE, logits), exponential)

    @property
    def variance(self) -> Tensor:
        """1/l² − ¼/sinh²(l/2)."""
        near, logits, a = self._branches(0.5)
        exponential = 1 / a.square() - torch.exp(-a) / torch.expm1(-a).square()
        return torch.where(near, _series(_CURVATURE, logits), exponential)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return log(1 + u (exp l − 1))/l, the inverse of the cdf at uniform u."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        u = u.clamp(min=torch.finfo(u.dtype).eps / 2)  # as far from 0 as u stays from 1
        near, logits, a = self._branches(0.01)
        # log E exp(l b) = Σ_k κ_k lᵏ/k! with the cumulants κ_k of b ~ Bernoulli(u)
        v, w = u * (1 - u), 1 - 2 * u
        fourth = (1 - 6 * v) / 24 + logits * w * (1 - 12 * v) / 120
        uniform = u + logits * v * (0.5 + logits * (w / 6 + logits * fourth))
        tail = torch.where(self.logits > 0, 1 - u, u)
        distance = (-torch.log1p(tail * torch.expm1(-a)) / a).clamp(max=1.0)
        exponential = torch.where(self.logits > 0, 1 - distance, distance)
        return torch.where(near, uniform, exponential)

    def _branches(self, bound: float) -> tuple[Tensor, Tensor, Tensor]:
        """|l| < bound; l there, else 0; |l| elsewhere, else 1: neither branch makes a NaN."""
        size = self.logits.abs()
        near = size < bound
        return near, self.logits.where(near, 0.0), size.where(~near, 1.0)


def _series(coefficients: list[float], logits: Tensor) -> Tensor:
    """Σ_n c_n l²⁽ⁿ⁻¹⁾, by Horner's rule."""
    square = logits.square()
    total = torch.full_like(logits, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total = total * square + c
    return total
