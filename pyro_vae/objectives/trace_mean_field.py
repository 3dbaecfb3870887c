"""Pyro's TraceMeanField_ELBO."""

__all__ = ["TraceMeanField"]

from pyro.infer import TraceMeanField_ELBO

from pyro_vae.objectives._particles import particles


class TraceMeanField(TraceMeanField_ELBO):
    """Pyro's TraceMeanField_ELBO: KL(q ‖ p) analytic where torch knows it, else Monte Carlo.

    (1/K) Σ_k log p(x|z_k) − KL(q(z|x) ‖ p(z)),  z_k ~ q(z|x)

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles))
