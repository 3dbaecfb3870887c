"""Links from an unconstrained network output to a distribution's parameter."""

__all__ = ["positive", "inverse_positive"]

import torch
from torch import Tensor
from torch.nn.functional import softplus


def positive(x: Tensor, floor: float = 1e-6) -> Tensor:
    """Return floor + softplus(x), a standard deviation bounded away from zero.

    In float32 softplus(−104) is 0, whose logarithm is −∞; the floor keeps every
    log-density finite.

    Example:
        >>> positive(torch.tensor([-1e4, 0.0, 1e4]))
        tensor([1.0000e-06, 6.9315e-01, 1.0000e+04])
    """
    return softplus(x) + floor


def inverse_positive(y: Tensor, floor: float = 1e-6) -> Tensor:
    """Return the x with ``positive(x, floor) == y``, for y > floor.

    Example:
        >>> inverse_positive(torch.tensor(1.0), floor=0.5)
        tensor(-0.4328)
    """
    y = y - floor
    return y + torch.log(-torch.expm1(-y))
