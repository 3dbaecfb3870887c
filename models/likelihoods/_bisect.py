"""The inverse of an increasing function of each dimension."""

__all__ = ["bisect"]

from collections.abc import Callable

import torch
from torch import Tensor


@torch.no_grad()
def bisect(function: Callable[[Tensor], Tensor], target: Tensor, bound: Tensor) -> Tensor:
    """Return y in ±bound with ``function(y) == target``, for an increasing function."""
    low, high = -bound.expand_as(target), bound.expand_as(target)
    # To 2 bound/2³⁰, or 2⁻⁶⁰: below what the dtype tells apart.
    for _ in range(60 if target.dtype == torch.float64 else 30):
        middle = (low + high) / 2
        below = function(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2
