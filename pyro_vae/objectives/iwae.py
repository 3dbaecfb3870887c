"""The importance-weighted bound."""

__all__ = ["IWAE"]

from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum
from pyro_vae.objectives._weights import log_mean_exp


class IWAE(PerDatum):
    """The importance-weighted bound: the log of a mean of K weights, per datum.

    log p̂_K(x) = log (1/K) Σ_k p(x, z_k)/q(z_k|x),  z_k ~ q(z|x)

    E log p̂_K ≤ log p(x), non-decreasing in K; K = 1 is the ELBO. The gradient goes
    through z and log q, Σ_k w̃_k ∇ log w_k with w̃ = w/Σw: its signal-to-noise ratio
    falls as 1/√K for the guide, see ``dreg``. With β ≠ 1 the weights are those of
    log w_β.

    References:
        Importance Weighted Autoencoders (Burda et al., 2016), equations 8 and 13
        https://arxiv.org/abs/1509.00519

    Arguments:
        num_particles: K.

    Raises:
        InputError: when differentiated with a guide that is not reparameterized.
    """

    def __init__(self, num_particles: int = 10):
        super().__init__(num_particles)

    def estimate(self, call: Call) -> Estimate:
        """Return log p̂_K of each datum, differentiable."""
        terms = call.reparameterized_terms()
        return Estimate(log_mean_exp(terms.log_weight), None, terms.factor)
