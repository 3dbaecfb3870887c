"""Pareto k̂ of importance weights: how heavy their tail is."""

__all__ = ["pareto_k", "threshold", "Tail"]

import math

import torch
from torch import Tensor

# A generalized Pareto distribution is not fitted to fewer exceedances than this.
SMALLEST_TAIL = 5
# Zhang & Stephens' prior on the scale, and PSIS's on k̂: ten observations at k = ½.
PRIOR_SCALE = 3
PRIOR_COUNT = 10
PRIOR_K = 0.5
# Weights that differ by less than this many roundings of their logarithm are one value.
ROUNDINGS = 16


def threshold(num_samples: int) -> float:
    """Return the k̂ up to which a mean of K weights can be trusted, min(0.7, 1 − 1/log₁₀ K).

    Above it the mean's relative error falls too slowly in K, as K^{−(1 − k)}, for K
    draws to suffice; −∞ for K = 1.

    References:
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024),
        section 3.2.4   https://arxiv.org/abs/1507.02646

    Example:
        >>> threshold(5000), threshold(100)
        (0.7, 0.5)
    """
    if num_samples == 1:
        return -math.inf
    return min(0.7, 1 - 1 / math.log10(num_samples))


def pareto_k(log_weights: Tensor) -> Tensor:
    """Return k̂ of each column's weights, ``[B]``, float64: the shape of their upper tail.

    Above a high threshold u, w − u is nearly generalized Pareto distributed,

    p(y) = (1 + k y/σ)^{−1/k − 1}/σ,

    and the weights have 1/k moments: a mean but no variance from k = ½ on, no mean from
    1 on; k < 0 where they are bounded. k is estimated from the M = ⌈min(0.2 S, 3 √S)⌉
    largest weights by Zhang & Stephens, and drawn to ½ as (M k + 5)/(M + 10).

    References:
        A New and Efficient Estimation Method for the Generalized Pareto Distribution
        (Zhang & Stephens, 2009)   https://doi.org/10.1198/tech.2009.08017
        Pareto Smoothed Importance Sampling (Vehtari, Simpson, Gelman, Yao & Gabry, 2024)
        https://arxiv.org/abs/1507.02646

    Arguments:
        log_weights: ``[S, B]``, in nats; −∞ is a weight of 0.

    Returns:
        −∞ where all weights, or the M + 1 largest, are equal; NaN where it is not known:
        from fewer than 21 draws, or where fewer than five weights are above u, as where
        all the others are 0.
    """
    tail = Tail(len(log_weights), log_weights.shape[1], log_weights.device)
    tail.update(log_weights.double())
    eps = torch.finfo(log_weights.dtype).eps
    high = tail.largest[0]
    constant = high - log_weights.double().amin(0) <= ROUNDINGS * eps * high.abs()
    return torch.where(constant & (len(log_weights) > 1), -math.inf, tail.pareto_k())


class Tail:
    """The M + 1 largest of S log-weights a datum, kept while the others stream by."""

    def __init__(self, num_samples: int, size: int, device: torch.device):
        self.count = math.ceil(min(0.2 * num_samples, 3 * math.sqrt(num_samples)))
        """M."""
        self.largest = torch.empty(0, size, dtype=torch.float64, device=device)
        """Descending, at most ``[M + 1, B]``."""

    def update(self, log_weights: Tensor) -> None:
        """Take in some more, ``[s, B]``, float64."""
        together = torch.cat([self.largest, log_weights])
        self.largest = together.topk(min(self.count + 1, len(together)), dim=0).values

    def pareto_k(self) -> Tensor:
        """Return k̂ of what was seen, ``[B]``."""
        if self.count < SMALLEST_TAIL:
            return torch.full_like(self.largest.sum(0), math.nan)
        tail, cut = self.largest[: self.count].flip(0), self.largest[self.count]
        # w − u over the largest w, from the smallest up, without a difference of exponentials.
        excess = (tail - tail[-1]).exp() * -(cut - tail).expm1()
        excess = torch.where(tail > cut, excess.clamp(min=1e-300), 0.0)
        k = (self.count * _fit(excess) + PRIOR_COUNT * PRIOR_K) / (self.count + PRIOR_COUNT)
        # Of one weight among zeros, or a few above a tie, no shape is seen.
        exceeding = (excess > 0).sum(0)
        k = k.masked_fill(exceeding < SMALLEST_TAIL, math.nan)
        return torch.where((exceeding == 0) & cut.isfinite(), -math.inf, k)


def _fit(excess: Tensor) -> Tensor:
    """k of a generalized Pareto distribution by Zhang & Stephens, from ``[M, B]`` ascending.

    With θ = −k/σ the likelihood has the profile k(θ) = (1/M) Σ log(1 − θ y),
    l(θ) = M (log(−θ/k(θ)) − k(θ) − 1); θ̂ is its mean over a grid under weights ∝ exp l.
    """
    M = len(excess)
    size = 30 + math.floor(math.sqrt(M))
    index = torch.arange(1, size + 1, dtype=excess.dtype, device=excess.device)
    spread = (1 - (size / (index - 0.5)).sqrt()) / PRIOR_SCALE
    quartile = excess[int(M / 4 + 0.5) - 1]
    # Where a quarter is tied with the threshold, the least excess there is.
    least = excess.masked_fill(excess == 0, math.inf).amin(0)
    grid = spread.unsqueeze(1) / torch.where(quartile > 0, quartile, least) + 1 / excess[-1]
    k = torch.stack([_profile(theta, excess) for theta in grid])
    log_likelihood = M * ((-grid / k).log() - k - 1)
    # θ = 0 is the exponential distribution, where −θ/k has the limit 1/mean.
    theta = (log_likelihood.nan_to_num(nan=-math.inf).softmax(0) * grid).sum(0)
    return _profile(theta, excess)


def _profile(theta: Tensor, excess: Tensor) -> Tensor:
    return (-theta * excess).log1p().mean(0)
