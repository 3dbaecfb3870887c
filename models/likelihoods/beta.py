"""The beta likelihood of data strictly inside the unit interval."""

__all__ = ["Beta"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ._draws import draw_log_gamma
from ._scale import check_mode, choose_floor


class _OpenUnitInterval(dist.constraints.Constraint):
    """0 < x < 1, both ends excluded."""

    def check(self, value: Tensor) -> Tensor:
        """Return where ``value`` lies strictly inside."""
        return (value > 0) & (value < 1)

    def __repr__(self) -> str:
        return "0 < x < 1"


class Beta(nn.Module):
    """Continuous data in (0, 1), a beta a dimension, by its mean m and concentration κ.

    log p(x) = Σ_d (a_d − 1) log x_d + (b_d − 1) log(1 − x_d) − log B(a_d, b_d),
    a = m κ, b = (1 − m) κ

    The decoder outputs m through a sigmoid, within 1e-6 of 0 and 1. Its other
    output, or one learned number, is the standard deviation at m = ½, through a
    sigmoid between ``floor`` and 0.4995; κ = 1/(4 sd²) − 1 is at least 0.002, and
    at most 1/(4 floor²) − 1: where a pixel is constant the likelihood has no
    maximum otherwise. Elsewhere the standard deviation is √(m (1 − m)/(κ + 1)).

    Arguments:
        concentration: κ as a positive number up to 1e9, ``learned`` (one for all
            dimensions) or ``per_pixel``.
        floor: the smallest standard deviation at m = ½, from 1e-6 to below 0.25;
            0.1/num_levels, or 1e-3 for real data.
        num_levels: n, where x is (level + u)/n.

    Example:
        >>> p = Beta(concentration=4.0)(torch.zeros(1, 1))
        >>> p.log_prob(torch.tensor([0.5]))  # Beta(2, 2), 6 x (1 − x)
        tensor([0.4055])
    """

    support = _OpenUnitInterval()
    measure = "continuous"

    def __init__(
        self,
        concentration: float | str = "per_pixel",
        floor: float | None = None,
        num_levels: int | None = None,
    ):
        super().__init__()
        check_mode("beta", "concentration", concentration, high=1e9)
        # At 1e-10 κ would be 2.5e19, whose log B(a, b) is off by thousands of nats.
        self.floor = choose_floor("beta", floor, num_levels, low=1e-6, high=0.25)
        self.concentration = concentration
        self.learns_scale = isinstance(concentration, str)
        self.params_per_dim = 2 if concentration == "per_pixel" else 1
        if concentration == "learned":
            self.raw_sd = nn.Parameter(torch.zeros(()))  # sd ≈ ¼, κ ≈ 3

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        logit = params[..., 0].double()
        if self.concentration == "per_pixel":
            kappa = self._kappa(params[..., 1].double())
        elif self.concentration == "learned":
            kappa = self._kappa(self.raw_sd.double())
        else:
            kappa = logit.new_full((), float(self.concentration))
        # 1 − m as the sigmoid of −logit: at logit 40 the difference would be 0
        a, b = _inside(logit) * kappa, _inside(-logit) * kappa
        return _DoubleBeta(a, b, params.dtype, validate_args=False)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, P]`` whose mean is ``mean``, kept inside 1 %."""
        inner = (mean.clamp(0.01, 0.99) - _MARGIN) / (1 - 2 * _MARGIN)
        logit = torch.logit(inner)
        if self.params_per_dim == 1:
            return logit.unsqueeze(-1)
        return torch.stack([logit, torch.zeros_like(logit)], dim=-1)

    def _kappa(self, raw: Tensor) -> Tensor:
        sd = self.floor + (_LARGEST_SD - self.floor) * torch.sigmoid(raw)
        return 0.25 / sd.square() - 1


_MARGIN = 1e-6
_LARGEST_SD = 0.4995


def _inside(logit: Tensor) -> Tensor:
    """The sigmoid, kept ``_MARGIN`` away from 0 and 1."""
    return _MARGIN + (1 - 2 * _MARGIN) * torch.sigmoid(logit)


class _DoubleBeta(dist.TorchDistribution):
    """The beta of float64 concentrations, with values and densities in ``dtype``.

    A float32 log B(a, b) is off by 0.001 nats at κ = 1e3, 0.01 at 1e4 and 3 at
    1.6e6, which is κ at the floor of 256 levels; in float64 the density is within
    1e-8 there, and within 1e-3 at 1.1e11, the floor of 65,536 levels.
    """

    arg_constraints = {  # noqa: RUF012
        "concentration1": dist.constraints.positive,
        "concentration0": dist.constraints.positive,
    }
    support = _OpenUnitInterval()
    has_rsample = True

    def __init__(
        self,
        concentration1: Tensor,
        concentration0: Tensor,
        dtype: torch.dtype,
        validate_args: bool | None = None,
    ):
        self.concentration1, self.concentration0 = concentration1, concentration0
        self.dtype = dtype
        super().__init__(concentration1.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_DoubleBeta":
        """Return the same distribution with ``batch_shape``."""
        a, b = self.concentration1.expand(batch_shape), self.concentration0.expand(batch_shape)
        return _DoubleBeta(a, b, self.dtype, False)

    @property
    def mean(self) -> Tensor:
        """a/(a + b)."""
        a, b = self.concentration1, self.concentration0
        return (a / (a + b)).to(self.dtype)

    @property
    def variance(self) -> Tensor:
        """a b/((a + b)² (a + b + 1))."""
        a, b = self.concentration1, self.concentration0
        total = a + b
        return (a / total * (b / total) / (total + 1)).to(self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of ``value``, nats."""
        a, b, x = self.concentration1, self.concentration0, value.double()
        log_norm = torch.lgamma(a + b) - torch.lgamma(a) - torch.lgamma(b)
        return (log_norm + (a - 1) * x.log() + (b - 1) * torch.log1p(-x)).to(self.dtype)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Return g/(g + h), g ~ Gamma(a, 1) and h ~ Gamma(b, 1), rounded into (0, 1)."""
        shape = self._extended_shape(sample_shape)
        logit = draw_log_gamma(self.concentration1.expand(shape))
        logit = logit - draw_log_gamma(self.concentration0.expand(shape))
        limits = torch.finfo(self.dtype)
        return torch.sigmoid(logit).to(self.dtype).clamp(limits.tiny, 1 - limits.eps / 2)
