"""Draws that float32 or a device would spoil."""

__all__ = ["draw_log_gamma", "draw_poisson"]

import torch
from torch import Tensor


def draw_log_gamma(a: Tensor) -> Tensor:
    """Return the logarithm of a draw of Gamma(a, 1), which itself is 0 in most draws at small a.

    g = g′ u^(1/a) with g′ ~ Gamma(a + 1, 1), u uniform; for a of float64.
    """
    tiny = torch.finfo(a.dtype).tiny
    u = torch.rand_like(a).clamp(min=tiny)
    return torch._standard_gamma(a + 1).log() + u.log() / a.clamp(min=1e4 * tiny)


def draw_poisson(rate: Tensor) -> Tensor:
    """Return a draw of Poisson(rate), the rate at most 2³¹: CUDA counts in 32 bits."""
    return torch.poisson(rate.clamp(max=2.0**31))
