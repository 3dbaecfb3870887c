"""The doubly reparameterized gradient of IWAE."""

__all__ = ["DReG"]

from typing import Any

from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import equal_everywhere
from pyro_vae.objectives._path import path_estimate
from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum
from pyro_vae.objectives._weights import log_mean_exp, normalized


class DReG(PerDatum):
    """IWAE-K, doubly reparameterized: the guide's signal-to-noise ratio grows as √K.

    log p̂_K(x) = log (1/K) Σ_k w_k
    ∇_φ = Σ_k w̃_k² ∂log w_k/∂z_k · ∂z_k/∂φ,  ∇_θ = Σ_k w̃_k ∇_θ log p(x, z_k)

    The value is that of ``iwae``, and so is the mean of the gradient. The guide's
    parameters inside log q are held fixed; see ``sticking_the_landing``. The score
    of β log q that is dropped stands in Σ_k w̃_k ∇_φ log w_β with the factor −β, and
    E[w̃_k ∂log q(z_k)/∂φ] = E[w̃_k (1 − w̃_k) ∂log w_k/∂z_k · ∂z_k/∂φ]: with β ≠ 1 the
    second w̃_k of ∇_φ is 1 − β (1 − w̃_k).

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives
        (Tucker et al., 2019), equation 8
        https://arxiv.org/abs/1810.04152

    Arguments:
        num_particles: K.

    Raises:
        InputError: when differentiated with a guide that is not reparameterized, or whose
            density is known at its own draws only; latents of the guide with unlike β.
    """

    def __init__(self, num_particles: int = 10):
        super().__init__(num_particles)

    def estimate(self, call: Call) -> Estimate:
        """Return log p̂_K of each datum and the surrogate of its gradient."""
        return path_estimate(call, log_mean_exp, _doubly)


def _doubly(log_weight: Tensor, betas: list[Any]) -> tuple[Tensor, Tensor]:
    """w̃ and 1 − β (1 − w̃), which is w̃ at β = 1."""
    weights = normalized(log_weight)
    beta = betas[0] if betas else 1.0
    if not all(equal_everywhere(other, beta) for other in betas):
        raise InputError(
            "dreg: the guide's latents have unlike scales, and the gradient has one β; wrap both "
            "programs in pyro_vae.annealing.Beta"
        )
    if not isinstance(beta, Tensor) and beta == 1:
        return weights, weights
    return weights, 1 - beta * (1 - weights)
