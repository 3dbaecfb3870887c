"""Pyro's Trace_ELBO."""

__all__ = ["Trace"]

from pyro.infer import Trace_ELBO

from pyro_vae.objectives._particles import particles


class Trace(Trace_ELBO):
    """Pyro's Trace_ELBO: the Monte Carlo ELBO, particles vectorized under one plate.

    (1/K) Σ_k log p(x, z_k) − log q(z_k|x),  z_k ~ q(z|x)

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles))
