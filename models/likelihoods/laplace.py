"""The Laplace likelihood of continuous data."""

__all__ = ["Laplace"]

import pyro.distributions as dist
from torch import Tensor

from ._scale import LocationScale


class Laplace(LocationScale):
    """Continuous data, a Laplace a dimension; the scale is fixed, learned or a decoder output.

    log p(x) = −Σ_d (|x_d − μ_d|/b_d + log 2 b_d)

    b is the mean absolute deviation; the standard deviation is √2 b.
    ``scale=<number>`` fixes b; ``scale=learned`` learns one b for all
    dimensions; with ``scale=per_pixel`` the decoder outputs μ_d and b_d. Learned
    scales stay above ``floor``, 0.1 level for dequantized data: where a pixel is
    constant the likelihood has no maximum otherwise.

    Arguments:
        scale: a positive number, ``learned`` or ``per_pixel``; in units of x.
        floor: the smallest learned b; 0.1/num_levels, or 1e-3 of the spread of real data.
        num_levels: n, where x is (level + u)/n.
        data_scale: the standard deviation of real data, where a learned b starts.

    Example:
        >>> import torch
        >>> p = Laplace(scale=0.5)(torch.zeros(1, 1))
        >>> p.log_prob(torch.tensor([0.5]))  # −0.5/0.5 − log(2 · 0.5)
        tensor([-1.])
    """

    def __init__(
        self,
        scale: float | str = "learned",
        floor: float | None = None,
        num_levels: int | None = None,
        data_scale: float | None = None,
    ):
        super().__init__("laplace", scale, floor, num_levels, data_scale)

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        loc, scale = self.loc_and_scale(params)
        return dist.Laplace(loc, scale, validate_args=False)
