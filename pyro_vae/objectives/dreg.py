"""The doubly reparameterized gradient of IWAE."""

__all__ = ["DReG"]

from torch import Tensor

from pyro_vae.objectives._path import path_estimate
from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum
from pyro_vae.objectives._weights import log_mean_exp, normalized


class DReG(PerDatum):
    """IWAE-K, doubly reparameterized: the guide's signal-to-noise ratio grows as √K.

    log p̂_K(x) = log (1/K) Σ_k w_k
    ∇_φ = Σ_k w̃_k² ∂log w_k/∂z_k · ∂z_k/∂φ,  ∇_θ = Σ_k w̃_k ∇_θ log p(x, z_k)

    The value is that of ``iwae``, and so is the mean of the gradient. The guide's
    parameters inside log q are held fixed; see ``sticking_the_landing``.

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives
        (Tucker et al., 2019), equation 8
        https://arxiv.org/abs/1810.04152

    Arguments:
        num_particles: K.

    Raises:
        InputError: when differentiated with a guide that is not reparameterized, or whose
            density is known at its own draws only.
    """

    def __init__(self, num_particles: int = 10):
        super().__init__(num_particles)

    def estimate(self, call: Call) -> Estimate:
        """Return log p̂_K of each datum and the surrogate of its gradient."""
        return path_estimate(call, log_mean_exp, _squared)


def _squared(log_weight: Tensor) -> tuple[Tensor, Tensor]:
    weights = normalized(log_weight)
    return weights, weights
