"""The discretized logistic likelihood of levels."""

__all__ = ["DiscretizedLogistic"]

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor, nn

from pyro_vae.links import inverse_positive, positive

from ._bisect import bisect
from ._levels import FLOOR, MANY, LogisticLevels, check_num_levels, unit_mean
from ._scale import check_mode

START = 0.1  # of the unit interval; as a standard deviation 0.1 π/√3 = 0.18


class DiscretizedLogistic(nn.Module):
    """Levels as a rounded logistic variable; the scale is fixed, learned or a decoder output.

    p(x) = Π_d σ((x_d + ½ − μ_d)/s_d) − σ((x_d − ½ − μ_d)/s_d)

    At x = n−1 the first term is 1 and at x = 0 the second is 0: the edge levels
    take the tails, so that Σ p = 1. In units of the decoder the levels span 0 to
    1: μ is n−1 times its first output, s is n−1 times the scale.

    ``scale=<number>`` fixes the scale; ``scale=learned`` learns one for all
    dimensions; with ``scale=per_pixel`` the decoder outputs it beside μ. It is at
    least 0.02 level, where a constant pixel has mass 1 − 3e-11: a mass cannot
    exceed one, and discrete data need no other floor.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow
        (Kingma et al., 2016) https://arxiv.org/abs/1606.04934
        PixelCNN++ (Salimans et al., 2017), equations 1 and 2
        https://arxiv.org/abs/1701.05517

    Arguments:
        num_levels: n; x is 0 … n−1.
        scale: a number of at least 0.02/(n−1), ``learned`` or ``per_pixel``; the
            logistic's scale (not its standard deviation) in units of the interval.

    Example:
        >>> p = DiscretizedLogistic(num_levels=3, scale=0.5)(torch.tensor([[0.5]]))
        >>> p.log_prob(torch.arange(3.0)).exp()  # σ(−½), σ(½) − σ(−½), 1 − σ(½)
        tensor([0.3775, 0.2449, 0.3775])
    """

    measure = "levels"

    def __init__(self, num_levels: int | None, scale: float | str = "per_pixel"):
        super().__init__()
        self.num_levels = check_num_levels("discretized_logistic", num_levels)
        self.floor = FLOOR / (self.num_levels - 1)
        check_mode("discretized_logistic", "scale", scale, low=self.floor)
        self.scale = scale
        self.params_per_dim = 2 if scale == "per_pixel" else 1
        self.support = constraints.integer_interval(0, self.num_levels - 1)
        if scale == "learned":
            self.raw_scale = nn.Parameter(inverse_positive(torch.tensor(START), self.floor))

    def forward(self, params: Tensor) -> TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        last = self.num_levels - 1
        return LogisticLevels(self.num_levels, last * params[..., 0], last * self._scale(params))

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, P]`` whose mean is ``mean``, kept inside 1 %.

        The edge levels pull the mean inside, so μ lies further out; found by bisection.
        """
        mean = unit_mean(mean, self.num_levels)
        raw = inverse_positive(mean.new_full((), START), self.floor).expand_as(mean)
        rest = [raw] if self.scale == "per_pixel" else []

        def mean_at(loc: Tensor) -> Tensor:
            p = self(torch.stack([loc, *rest], dim=-1))
            # Half of a level among many is nothing, and their sum is seconds for an image.
            mean = p.mean if self.num_levels <= MANY else p.rough_mean
            return mean / (self.num_levels - 1)

        # σ(−5) < 1 %: at μ = −5 s the mean is below, at 1 + 5 s above.
        bound = 1 + 5 * self._scale(torch.stack([raw, raw], dim=-1)).detach().max()
        return torch.stack([bisect(mean_at, mean, bound), *rest], dim=-1)

    def _scale(self, params: Tensor) -> Tensor:
        """The scale in units of the interval; it broadcasts to ``[*, *event_shape]``."""
        if self.scale == "per_pixel":
            return positive(params[..., 1], self.floor)
        if self.scale == "learned":
            return positive(self.raw_scale, self.floor)
        return params.new_full((), float(self.scale))
