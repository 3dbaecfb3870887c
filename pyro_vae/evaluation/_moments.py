"""Running mean and variance of what streams by."""

__all__ = ["Moments"]

import math

import torch
from torch import Tensor


class Moments:
    """Running mean and variance over samples, ``[B]``, merged by block (Chan et al., 1983)."""

    def __init__(self, size: int, device: torch.device):
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.sum_squares = torch.zeros_like(self.mean)  # Σ (value − mean)²

    def update(self, values: Tensor) -> None:
        """Take in some more, ``[s, B]``."""
        count = values.shape[0]
        mean = values.mean(dim=0)
        total = self.count + count
        shift = mean - self.mean
        self.sum_squares += (values - mean).square().sum(dim=0)
        self.sum_squares += shift.square() * (self.count * count / total)
        # An infinite mean (some weight was 0) stays what it is; its shift is NaN.
        updated = self.mean + shift * (count / total)
        self.mean = torch.where(updated.isnan(), self.mean + mean, updated)
        self.count = total

    def standard_error(self) -> Tensor:
        """Return that of the mean, ``[B]``; NaN for one sample."""
        if self.count < 2:
            return torch.full_like(self.mean, math.nan)
        return (self.sum_squares / (self.count - 1) / self.count).sqrt()
