"""Averages of weights given by their logarithms, ``[K, B]``."""

__all__ = ["log_mean_exp", "normalized"]

import math

from torch import Tensor


def log_mean_exp(log_weight: Tensor) -> Tensor:
    """Return log (1/K) Σ_k w_k of each datum, ``[B]``."""
    return log_weight.logsumexp(0) - math.log(log_weight.shape[0])


def normalized(log_weight: Tensor) -> Tensor:
    """Return w̃_k = w_k/Σ_j w_j, ``[K, B]``, without gradient."""
    return log_weight.detach().softmax(0)
