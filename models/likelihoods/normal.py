"""The normal likelihood of continuous data."""

__all__ = ["Normal"]

import pyro.distributions as dist
from torch import Tensor

from ._scale import LocationScale


class Normal(LocationScale):
    """Continuous data, a normal a dimension; the scale is fixed, learned or a decoder output.

    log p(x) = −½ Σ_d ((x_d − μ_d)²/σ_d² + log 2π σ_d²)

    ``scale=<number>`` fixes σ; ``scale=learned`` learns one σ for all
    dimensions; with ``scale=per_pixel`` the decoder outputs μ_d and σ_d. Learned
    scales stay above ``floor``, 0.1 level for dequantized data: where a pixel is
    constant the likelihood has no maximum otherwise.

    Arguments:
        scale: a positive number, ``learned`` or ``per_pixel``; in units of x.
        floor: the smallest learned σ; 0.1/num_levels, or 1e-3 of the spread of real data.
        num_levels: n, where x is (level + u)/n.
        data_scale: the standard deviation of real data, where a learned σ starts.

    Example:
        >>> import torch
        >>> p = Normal(scale=0.5)(torch.zeros(1, 1))
        >>> p.log_prob(torch.tensor([0.5]))  # −½ (0.5/0.5)² − ½ log(2π 0.25)
        tensor([-0.7258])
    """

    def __init__(
        self,
        scale: float | str = "learned",
        floor: float | None = None,
        num_levels: int | None = None,
        data_scale: float | None = None,
    ):
        super().__init__("normal", scale, floor, num_levels, data_scale)

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        loc, scale = self.loc_and_scale(params)
        return dist.Normal(loc, scale, validate_args=False)
