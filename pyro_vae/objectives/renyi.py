"""The variational Rényi bound."""

__all__ = ["Renyi"]

import math

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum
from pyro_vae.objectives._weights import log_mean_exp


class Renyi(PerDatum):
    """The Rényi bound of order α, per datum; α = 1 is the ELBO, α = 0 IWAE.

    L_α = 1/(1 − α) log (1/K) Σ_k w_k^(1−α),  w_k = p(x, z_k)/q(z_k|x)

    On given draws non-increasing in α. For α ≥ 0 its mean is at most log p(x); for
    α < 0 it is no lower bound, and marked so. ``alpha=max`` is α → −∞, the largest
    log-weight (VR-max).

    References:
        Rényi Divergence Variational Inference (Li & Turner, 2016), equations 5 and 10
        https://arxiv.org/abs/1602.02311

    Arguments:
        alpha: α, a number, or ``max``.
        num_particles: K.

    Example:
        >>> Renyi(alpha=-1.0).is_lower_bound
        False
    """

    def __init__(self, alpha: float | str = 0.5, num_particles: int = 10):
        super().__init__(num_particles)
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if alpha != "max" and not (number and abs(float(alpha)) <= LARGEST_ALPHA):
            raise InputError(
                f"renyi: alpha must be a number from -{LARGEST_ALPHA:g} to {LARGEST_ALPHA:g}, or "
                f"max, got {alpha!r}"
            )
        self.alpha = -math.inf if alpha == "max" else float(alpha)

    @property
    def is_lower_bound(self) -> bool:  # type: ignore[override]
        """Whether α ≥ 0."""
        return self.alpha >= 0

    def estimate(self, call: Call) -> Estimate:
        """Return L_α of each datum, differentiable."""
        terms = call.reparameterized_terms()
        return Estimate(self._bound(terms.log_weight), None, terms.factor)

    def _bound(self, log_weight: Tensor) -> Tensor:
        if self.alpha == -math.inf:
            return log_weight.amax(0)
        if self.alpha == 1:
            return log_weight.mean(0)
        power = 1 - self.alpha
        if abs(power) < SMALL_POWER:
            # log-mean-exp of nearly equal numbers loses the digits that 1/power needs.
            largest = log_weight.detach().amax(0).clamp(min=torch.finfo(log_weight.dtype).min)
            ratio = torch.expm1(power * (log_weight - largest)).mean(0)
            return largest + torch.log1p(ratio) / power
        return log_mean_exp(power * log_weight) / power


LARGEST_ALPHA = 1e6
SMALL_POWER = 1e-2
