"""The normal likelihood of continuous data."""

__all__ = ["Normal"]

import math

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.links import inverse_positive, positive


class Normal(nn.Module):
    """Continuous data, a normal a dimension; the scale is fixed, learned or a decoder output.

    log p(x) = −½ Σ_d ((x_d − μ_d)²/σ_d² + log 2π σ_d²)

    ``scale=<number>`` fixes σ; ``scale=learned`` learns one σ for all
    dimensions; with ``scale=per_pixel`` the decoder outputs μ_d and σ_d. Learned
    scales stay above ``floor``, 0.1 level for dequantized data: where a pixel is
    constant the likelihood has no maximum otherwise.

    Arguments:
        scale: a positive number, ``learned`` or ``per_pixel``; in units of x.
        floor: the smallest learned σ; 0.1/num_levels, or 1e-3 for real data.
        num_levels: n, where x is (level + u)/n.

    Example:
        >>> p = Normal(scale=0.5)(torch.zeros(1, 1))
        >>> p.log_prob(torch.tensor([0.5]))  # −½ (0.5/0.5)² − ½ log(2π 0.25)
        tensor([-0.7258])
    """

    support = dist.constraints.real
    measure = "continuous"

    def __init__(
        self,
        scale: float | str = "learned",
        floor: float | None = None,
        num_levels: int | None = None,
    ):
        super().__init__()
        if isinstance(scale, str) and scale not in ("learned", "per_pixel"):
            raise InputError(
                f"normal: scale must be a positive number, learned or per_pixel, got {scale!r}"
            )
        if not isinstance(scale, str) and not 0 < scale < math.inf:
            raise InputError(f"normal: scale must be positive and finite, got {scale!r}")
        if floor is not None and not 0 < floor < math.inf:
            raise InputError(f"normal: floor must be positive and finite, got {floor!r}")
        self.scale = scale
        self.floor = floor or (0.1 / num_levels if num_levels else 1e-3)
        self.learns_scale = isinstance(scale, str)
        self.params_per_dim = 2 if scale == "per_pixel" else 1
        if scale == "learned":
            # σ starts at a quarter of the unit interval, or above the floor.
            start = torch.tensor(max(0.25, 2 * self.floor))
            self.raw_scale = nn.Parameter(inverse_positive(start, self.floor))

    def forward(self, params: Tensor) -> dist.TorchDistribution:
        """Return p(x) of ``batch_shape [*, *event_shape]`` from ``[*, *event_shape, P]``."""
        loc = params[..., 0]
        if self.scale == "per_pixel":
            scale = positive(params[..., 1], self.floor)
        elif self.scale == "learned":
            scale = positive(self.raw_scale, self.floor)
        else:
            scale = params.new_tensor(self.scale)
        return dist.Normal(loc, scale, validate_args=False)

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, P]`` whose mean is ``mean``."""
        if self.params_per_dim == 1:
            return mean.unsqueeze(-1)
        start = inverse_positive(mean.new_tensor(max(0.25, 2 * self.floor)), self.floor)
        return torch.stack([mean, start.expand_as(mean)], dim=-1)
