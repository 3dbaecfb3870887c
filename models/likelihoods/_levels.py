"""What the likelihoods of levels 0 … n−1 share: a base class, log C(n−1, x), the logistic mass."""

__all__ = [
    "FLOOR",
    "MANY",
    "Levels",
    "LogisticLevels",
    "check_num_levels",
    "log_choose",
    "unit_mean",
]

from collections.abc import Iterator
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus
from torch.types import _size

from pyro_vae.errors import InputError

# The smallest scale of a logistic, in levels: one level can have mass 1 − 2 σ(−25).
FLOOR = 0.02

# Above so many levels a start at the data mean takes the mean to half a level.
MANY = 1024

# Elements of one temporary in a sum over levels: 32 MiB in float64.
BLOCK = 2**22


class Levels(TorchDistribution):
    """A mass over the levels 0 … n−1, which are floats of the parameters' dtype.

    Arguments:
        num_levels: n.
        params: tensors; the first has the batch's shape and ``param_dims`` more
            dimensions, the others broadcast to it.
    """

    arg_constraints: ClassVar = {}
    param_dims = 0

    def __init__(self, num_levels: int, *params: Tensor):
        self.num_levels, self.params = num_levels, params
        shape = params[0].shape
        super().__init__(shape[: len(shape) - self.param_dims], validate_args=False)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self.num_levels - 1)

    def expand(self, batch_shape: _size, _instance: None = None) -> "Levels":
        shape = self.params[0].shape
        trailing = shape[len(shape) - self.param_dims :]
        full = torch.Size(batch_shape) + trailing
        return type(self)(self.num_levels, *(param.expand(full) for param in self.params))


class LogisticLevels(Levels):
    """A logistic variable of ``loc`` and ``scale``, in levels, rounded and clamped to 0 … n−1.

    P(x) = σ(a) − σ(b),  a = (x + ½ − loc)/scale,  b = (x − ½ − loc)/scale,
    with a = ∞ at x = n−1 and b = −∞ at x = 0, so that Σ P = 1.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        # σ(a) − σ(b) = σ(a) σ(−b) (1 − exp(b − a)), each factor finite in logs.
        loc, scale = self.params
        above_first, below_last = value > 0, value < self.num_levels - 1
        log_upper = logsigmoid(((value + 0.5) - loc) / scale)
        log_lower = logsigmoid((loc - (value - 0.5)) / scale)
        log_width = torch.log(-torch.expm1(-1 / scale))
        return (
            torch.where(below_last, log_upper, 0.0)
            + torch.where(above_first, log_lower, 0.0)
            + torch.where(above_first & below_last, log_width, 0.0)
        )

    def sample(self, sample_shape: _size = ()) -> Tensor:
        with torch.no_grad():
            loc, scale = self.params
            shape = self._extended_shape(sample_shape)
            # u = 0 gives −∞, which is level 0.
            noise = torch.logit(torch.rand(shape, dtype=loc.dtype, device=loc.device))
            return (loc + scale * noise).clamp(0, self.num_levels - 1).round()

    @property
    def mean(self) -> Tensor:
        # E[x] = Σ_{l=1}^{n−1} P(x ≥ l)
        loc, scale = self.params
        mean = torch.zeros_like(loc)
        for level in self._blocks(start=1):
            mean = mean + torch.sigmoid((loc - (level - 0.5)) / scale).sum(0)
        return mean

    @property
    def rough_mean(self) -> Tensor:
        """The mean to half a level, without a sum: ∫ P(x ≥ t + ½) dt from 0 to n−1."""
        loc, scale = self.params
        ends = softplus(loc / scale), softplus((loc - (self.num_levels - 1)) / scale)
        return scale * (ends[0] - ends[1])

    @property
    def variance(self) -> Tensor:
        # By enumeration, all terms positive: E[x²] − E[x]² loses a small variance in float32.
        mean = self.mean
        variance = torch.zeros_like(mean)
        for level in self._blocks():
            variance = variance + ((level - mean) ** 2 * self.log_prob(level).exp()).sum(0)
        return variance

    def _blocks(self, start: int = 0) -> Iterator[Tensor]:
        """The levels from ``start``, ``[block, 1, …]``; as many as keep a temporary small."""
        loc = self.params[0]
        levels = torch.arange(start, self.num_levels, dtype=loc.dtype, device=loc.device)
        for block in levels.split(max(1, BLOCK // max(1, loc.numel()))):
            yield block.view(-1, *[1] * loc.dim())


def check_num_levels(name: str, num_levels: int | None) -> int:
    """Return n.

    Raises:
        InputError: the data have no levels, or fewer than two.
    """
    if num_levels is None:
        raise InputError(f"{name}: needs data with levels, such as values=levels")
    if not isinstance(num_levels, int) or num_levels < 2:
        raise InputError(f"{name}: num_levels must be an integer above 1, got {num_levels!r}")
    return num_levels


def log_choose(num_levels: int, like: Tensor) -> Tensor:
    """Return log C(n−1, x) for x = 0 … n−1, ``[n]``, of the dtype and device of ``like``.

    By way of float64: lgamma(256) in float32 is off by 1e-4, for every pixel alike.
    """
    x = torch.arange(num_levels, dtype=torch.float64, device=like.device)
    last = x.new_full((), num_levels)
    return (torch.lgamma(last) - torch.lgamma(x + 1) - torch.lgamma(last - x)).to(like.dtype)


def unit_mean(mean: Tensor, num_levels: int) -> Tensor:
    """Return mean/(n−1), kept inside 1 %."""
    return (mean / (num_levels - 1)).clamp(0.01, 0.99)
