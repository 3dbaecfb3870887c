"""Links from a decoder's output to what multiplies: exp within bounds, the log of softplus."""

__all__ = ["BOUND", "bounded_exp", "inverse_bounded_exp", "log_bounded_exp", "log_softplus"]

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

BOUND = 1e6
_C = math.log(BOUND)


def log_bounded_exp(raw: Tensor) -> Tensor:
    """Return c tanh(raw/c), c = log BOUND: raw near 0, within ±c everywhere."""
    return _C * torch.tanh(raw / _C)


def bounded_exp(raw: Tensor) -> Tensor:
    """Return exp(raw) near 0, between 1/BOUND and BOUND everywhere."""
    return log_bounded_exp(raw).exp()


def inverse_bounded_exp(y: float) -> float:
    """Return the raw with ``bounded_exp(raw) == y``."""
    return _C * math.atanh(math.log(y) / _C)


def log_softplus(x: Tensor) -> Tensor:
    """Return log log(1 + exp x) in float64, which is x far below 0.

    Its gradient is 1 there: a rate that is too small grows, however small it is. In
    float32 softplus(−104) is 0.
    """
    x = x.double()
    # log(1 + y) = y (1 − y/2 + …): below −30 the logarithm is x to 5e-14.
    return torch.where(x < -30, x, softplus(x.clamp(min=-30)).log())
