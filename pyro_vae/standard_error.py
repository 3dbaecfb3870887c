"""The standard error over data of a mean, independent or not."""

__all__ = ["standard_error_of_mean"]

import math

from torch import Tensor


def standard_error_of_mean(values: Tensor, ordered: bool = False) -> float | None:
    """Return the standard error over data of the mean of ``values`` ``[B]``; None for one datum.

    Neighbouring frames of a video are alike: ordered data are cut into √B
    contiguous blocks whose means are taken as independent (batch means).

    Example:
        >>> import torch
        >>> standard_error_of_mean(torch.tensor([1.0, 3.0]))
        1.0
    """
    if ordered:
        num_blocks = math.isqrt(len(values))
        values = values.new_tensor([float(b.mean()) for b in values.tensor_split(num_blocks)])
    if len(values) < 2:
        return None
    return float(values.std() / math.sqrt(len(values)))
