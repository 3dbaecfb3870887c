"""The scale of a likelihood: a number, one learned for all dimensions, or a decoder output."""

__all__ = ["LocationScale", "check_mode", "choose_floor"]

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.links import inverse_positive, positive


class LocationScale(nn.Module):
    """A location and a scale for each dimension; the base of normal, laplace and student_t.

    ``scale=<number>`` fixes the scale; ``scale=learned`` learns one for all
    dimensions; with ``scale=per_pixel`` the decoder outputs location and scale.
    Learned scales stay above ``floor``: where a pixel is constant the likelihood
    has no maximum otherwise.

    Arguments:
        name: the likelihood's name, for its errors.
        scale: a positive number, ``learned`` or ``per_pixel``; in units of x.
        floor: the smallest learned scale; 0.1/num_levels, or 1e-3 for real data.
        num_levels: n, where x is (level + u)/n.
    """

    support = dist.constraints.real
    measure = "continuous"

    def __init__(self, name: str, scale: float | str, floor: float | None, num_levels: int | None):
        super().__init__()
        check_mode(name, "scale", scale)
        self.scale = scale
        self.floor = choose_floor(name, floor, num_levels)
        self.learns_scale = isinstance(scale, str)
        self.params_per_dim = 2 if scale == "per_pixel" else 1
        if scale == "learned":
            self.raw_scale = nn.Parameter(self._start(torch.zeros(())))

    def loc_and_scale(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return the location ``[*, *event_shape]``, and the scale, which broadcasts to it."""
        if self.scale == "per_pixel":
            scale = positive(params[..., 1], self.floor)
        elif self.scale == "learned":
            scale = positive(self.raw_scale, self.floor)
        else:
            scale = params.new_full((), float(self.scale))
        return params[..., 0], scale

    def params_at(self, mean: Tensor) -> Tensor:
        """Return the parameters ``[*event_shape, P]`` whose mean is ``mean``."""
        if self.params_per_dim == 1:
            return mean.unsqueeze(-1)
        return torch.stack([mean, self._start(mean).expand_as(mean)], dim=-1)

    def _start(self, like: Tensor) -> Tensor:
        """A quarter of the unit interval, or above the floor, before the link."""
        return inverse_positive(like.new_tensor(max(0.25, 2 * self.floor)), self.floor)


def check_mode(name: str, key: str, value: Any) -> None:
    """Refuse what is neither a positive number nor ``learned`` nor ``per_pixel``.

    Raises:
        InputError: what was expected, what came.
    """
    if value in ("learned", "per_pixel"):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            f"{name}: {key} must be a positive number, learned or per_pixel, got {value!r}"
        )
    if not 0 < value < math.inf:
        raise InputError(f"{name}: {key} must be positive and finite, got {value!r}")


def choose_floor(name: str, floor: float | None, num_levels: int | None) -> float:
    """Return the smallest scale: as given, else 0.1/num_levels, or 1e-3 for real data.

    Raises:
        InputError: a floor that is not positive and finite.
    """
    if floor is None:
        return 0.1 / num_levels if num_levels else 1e-3
    if isinstance(floor, bool) or not isinstance(floor, int | float) or not 0 < floor < math.inf:
        raise InputError(f"{name}: floor must be positive and finite, got {floor!r}")
    return floor
