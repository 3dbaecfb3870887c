"""The scale of a likelihood: a number, one learned for all dimensions, or a decoder output."""

__all__ = ["LocationScale", "check_mode", "choose_floor"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_vae.checks import check_number
from pyro_vae.links import inverse_positive


class LocationScale(nn.Module):
    """A location and a scale for each dimension; the base of normal, laplace and student_t.

    ``scale=<number>`` fixes the scale; ``scale=learned`` learns one for all
    dimensions; with ``scale=per_pixel`` the decoder outputs location and scale.
    Learned scales stay above ``floor``: where a pixel is constant the likelihood
    has no maximum otherwise.

    A learned scale is floor + unit · softplus(raw), so that a step of an optimizer
    is in proportion to the data. The unit is the spread of real data, where a scale
    starts; it is 1 for data with levels in the unit interval, where it starts at ¼.

    Arguments:
        name: the likelihood's name, for its errors.
        scale: a positive number, ``learned`` or ``per_pixel``; in units of x.
        floor: the smallest learned scale; 0.1/num_levels, or 1e-3 units for real data.
        num_levels: n, where x is (level + u)/n.
        data_scale: the standard deviation of real data, the unit; None for data with levels.
    """

    support = dist.constraints.real
    measure = "continuous"

    def __init__(
        self,
        name: str,
        scale: float | str,
        floor: float | None,
        num_levels: int | None,
        data_scale: float | None,
    ):
        super().__init__()
        check_mode(name, "scale", scale)
        self.scale = scale
        self.unit, self.start = (1.0, 0.25) if data_scale is None else (data_scale, data_scale)
        self.floor = choose_floor(name, floor, num_levels, self.unit)
        self.learns_scale = isinstance(scale, str)
        self.params_per_dim = 2 if scale == "per_pixel" else 1
        if scale == "learned":
            self.raw_scale = nn.Parameter(self._start(torch.zeros(())))

    def loc_and_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location ``[*, *event_shape]``, and the scale, which broadcasts to it."""
        if self.scale == "per_pixel":
            scale = self._link(params[..., 1])
        elif self.scale == "learned":
            scale = self._link(self.raw_scale)
        else:
            scale = params.new_full((), float(self.scale))
        return params[..., 0], scale

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, P]`` whose mean is ``mean``."""
        if self.params_per_dim == 1:
            return mean.unsqueeze(-1)
        return torch.stack([mean, self._start(mean).expand_as(mean)], dim=-1)

    def _link(self, raw: Tensor) -> Tensor:
        return softplus(raw) * self.unit + self.floor

    def _start(self, like: Tensor) -> Tensor:
        """What the link takes to ``start``, or above the floor."""
        scale = max(self.start, 2 * self.floor)
        return inverse_positive(like.new_tensor((scale - self.floor) / self.unit), floor=0.0)


def check_mode(name: str, key: str, value: Any, low: float = 1e-12, high: float = 1e12) -> None:
    """Refuse what is neither a number between the bounds nor ``learned`` nor ``per_pixel``.

    Raises:
        InputError: what was expected, what came.
    """
    check_number(name, key, value, low, high, words=("learned", "per_pixel"))


def choose_floor(
    name: str,
    floor: float | None,
    num_levels: int | None,
    unit: float = 1.0,
    low: float = 1e-12,
    high: float = 1e12,
) -> float:
    """Return the smallest scale: as given, else 0.1/num_levels, or 1e-3 units for real data.

    Raises:
        InputError: a floor outside [low, high).
    """
    if floor is None:
        return max(low, 0.1 / num_levels if num_levels else 1e-3 * unit)
    check_number(name, "floor", floor, low, high, ends="[)")
    return float(floor)
