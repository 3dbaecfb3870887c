"""The zero-inflated negative binomial likelihood of counts."""

__all__ = ["ZeroInflatedNegativeBinomial"]

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.types import _size

from .negative_binomial import NegativeBinomial


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Counts with zeros of a second kind: 0 with probability π, else a negative binomial.

    p(x) = Π_d π_d [x_d = 0] + (1 − π_d) NB(x_d; μ_d, α_d)

    The decoder outputs μ_d, α_d if ``per_pixel``, and the gate's logit
    log π_d/(1 − π_d); the mean is (1 − π) μ, the variance
    (1 − π) (μ + α μ² + π μ²). Zeros alone do not tell π from a large α: where
    data have few counts above zero the two trade off.

    References:
        Deep generative modeling for single-cell transcriptomics (Lopez et al., 2018)
        https://doi.org/10.1038/s41592-018-0229-2

    Arguments:
        dispersion: a number α from 1e-6 to 1e6, ``learned`` or ``per_pixel``.
        event_shape: the shape of one datum, which a learned α has; ``()`` learns one for all.

    Example:
        >>> params = torch.tensor([[3.0, 0.0]])  # μ = 3.0486, π = ½
        >>> p = ZeroInflatedNegativeBinomial(dispersion=0.5)(params)
        >>> p.mean
        tensor([1.5243])
        >>> p.log_prob(torch.tensor([0.0])).exp()  # ½ + ½ (1 + μ/2)⁻²
        tensor([0.5785])
    """

    _name = "zero_inflated_negative_binomial"

    def __init__(self, dispersion: float | str = "learned", event_shape: tuple[int, ...] = ()):
        super().__init__(dispersion, event_shape)
        self.params_per_dim += 1

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        counts = super().forward(params[..., :-1])
        return _ZeroInflated(counts, params[..., -1])

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, P]`` whose mean is ``mean``, with π = 0.1."""
        gate_logits = torch.full_like(mean, math.log(0.1 / 0.9))
        return torch.cat([super().params_at(mean / 0.9), gate_logits.unsqueeze(-1)], dim=-1)


class _ZeroInflated(TorchDistribution):
    """0 with probability π = sigmoid(gate_logits), else a draw of ``counts``."""

    arg_constraints: ClassVar = {"gate_logits": constraints.real}
    support = constraints.nonnegative_integer

    def __init__(self, counts: TorchDistribution, gate_logits: Tensor):
        self.counts = counts
        self.gate_logits = gate_logits
        super().__init__(gate_logits.shape, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return torch.sigmoid(-self.gate_logits) * self.counts.mean

    @property
    def variance(self) -> Tensor:
        # E Var + Var E: the mean given the gate is 0 or μ.
        between = torch.sigmoid(self.gate_logits) * self.counts.mean**2
        return torch.sigmoid(-self.gate_logits) * (self.counts.variance + between)

    def log_prob(self, value: Tensor) -> Tensor:
        counted = logsigmoid(-self.gate_logits) + self.counts.log_prob(value)
        # Finite for every x, so that `where` passes no NaN back from the branch not taken.
        at_zero = torch.logaddexp(logsigmoid(self.gate_logits), counted)
        return torch.where(value == 0, at_zero, counted)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            counts = self.counts.sample(sample_shape)
            return counts * torch.bernoulli(torch.sigmoid(-self.gate_logits).expand_as(counts))

    def expand(self, batch_shape: _size, _instance: None = None) -> "_ZeroInflated":
        return _ZeroInflated(self.counts.expand(batch_shape), self.gate_logits.expand(batch_shape))
