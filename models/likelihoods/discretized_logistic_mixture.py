"""The mixture of discretized logistics, a likelihood of levels."""

__all__ = ["DiscretizedLogisticMixture"]

import torch
from pyro.distributions import Categorical, TorchDistribution, constraints
from torch import Tensor, nn
from torch.types import _size

from pyro_vae.checks import check_count
from pyro_vae.links import inverse_positive, positive

from ._bisect import bisect
from ._levels import FLOOR, MANY, Levels, LogisticLevels, check_num_levels, unit_mean


class DiscretizedLogisticMixture(nn.Module):
    """Levels as a mixture of rounded logistic variables, for each dimension its own.

    p(x) = Π_d Σ_k w_dk (σ((x_d + ½ − μ_dk)/s_dk) − σ((x_d − ½ − μ_dk)/s_dk))

    The edge levels take the tails, as in ``discretized_logistic``. The decoder
    outputs K logits of the weights, K locations and K scales, in units in which
    the levels span 0 to 1; scales are at least 0.02 level.

    The k-th location is (k − ½)/K plus an output. Outputs start near 0, and
    components that start at one place have the same gradient and part slowly.

    References:
        PixelCNN++ (Salimans et al., 2017), equations 1 and 2; without the coupling
        of color channels https://arxiv.org/abs/1701.05517

    Arguments:
        num_levels: n; x is 0 … n−1.
        components: K.

    Example:
        >>> likelihood = DiscretizedLogisticMixture(num_levels=3, components=2)
        >>> p = likelihood(torch.zeros(1, 6))
        >>> p.mean
        tensor([1.])
        >>> p.log_prob(torch.arange(3.0)).exp().sum()
        tensor(1.)
    """

    grid: Tensor
    measure = "levels"

    def __init__(self, num_levels: int | None, components: int = 5):
        super().__init__()
        name = "discretized_logistic_mixture"
        self.num_levels = check_num_levels(name, num_levels)
        check_count(name, "components", components, high=1000)
        self.components = components
        self.params_per_dim = 3 * components
        self.support = constraints.integer_interval(0, self.num_levels - 1)
        self.floor = FLOOR / (self.num_levels - 1)
        grid = (torch.arange(components) + 0.5) / components
        self.register_buffer("grid", grid, persistent=False)

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, 3K]``."""
        logits, loc, raw_scale = params.split(self.components, dim=-1)
        last = self.num_levels - 1
        scale = positive(raw_scale, self.floor)
        return _MixtureLevels(self.num_levels, logits, last * (self.grid + loc), last * scale)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, 3K]`` whose mean is ``mean``, kept inside 1 %.

        Equal weights, scales of half the distance between locations, and one
        shift of all locations, found by bisection.
        """
        mean = unit_mean(mean, self.num_levels)
        start = max(0.5 / self.components, 2 * self.floor)
        raw = inverse_positive(mean.new_full((), start), self.floor)

        def params(shift: Tensor) -> Tensor:
            shape = (*shift.shape, self.components)
            locs = shift.unsqueeze(-1).expand(shape)
            return torch.cat([shift.new_zeros(shape), locs, raw.expand(shape)], dim=-1)

        def mean_at(shift: Tensor) -> Tensor:
            p = self(params(shift))
            mean = p.mean if self.num_levels <= MANY else p.rough_mean
            return mean / (self.num_levels - 1)

        # σ(−5) < 1 %: with all locations below −5 s the mean is below, above 1 + 5 s above.
        return params(bisect(mean_at, mean, mean.new_full((), 1 + 5 * start)))


class _MixtureLevels(Levels):
    """From logits, locations and scales, each ``[*batch_shape, K]``."""

    param_dims = 1

    def log_prob(self, value: Tensor) -> Tensor:
        # Components first: twice as fast on a CPU as a short last dimension.
        shape = torch.broadcast_shapes(value.shape, self.batch_shape)
        logits, loc, scale = (
            param.expand(*shape, -1).movedim(-1, 0).contiguous() for param in self.params
        )
        log_mass = LogisticLevels(self.num_levels, loc, scale).log_prob(value)
        return torch.logsumexp(logits.log_softmax(0) + log_mass, dim=0)

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            logits, loc, scale = self.params
            shape = self._extended_shape(sample_shape)
            index = Categorical(logits=logits, validate_args=False).sample(torch.Size(sample_shape))
            chosen = (
                param.expand(*shape, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
                for param in (loc, scale)
            )
            return LogisticLevels(self.num_levels, *chosen).sample()

    @property
    def mean(self) -> Tensor:
        logits, loc, scale = self.params
        return (logits.softmax(-1) * LogisticLevels(self.num_levels, loc, scale).mean).sum(-1)

    @property
    def rough_mean(self) -> Tensor:
        """The mean to half a level, without a sum over levels."""
        logits, loc, scale = self.params
        return (logits.softmax(-1) * LogisticLevels(self.num_levels, loc, scale).rough_mean).sum(-1)

    @property
    def variance(self) -> Tensor:
        # Var x = Σ_k w_k (Var_k + (E_k − E x)²)
        logits, loc, scale = self.params
        weights, part = logits.softmax(-1), LogisticLevels(self.num_levels, loc, scale)
        mean = part.mean
        between = (mean - (weights * mean).sum(-1, keepdim=True)) ** 2
        return (weights * (part.variance + between)).sum(-1)
