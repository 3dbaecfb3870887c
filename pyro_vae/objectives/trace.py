"""Pyro's Trace_ELBO."""

__all__ = ["Trace"]

from pyro.infer import Trace_ELBO

from pyro_vae.errors import InputError


class Trace(Trace_ELBO):
    """Pyro's Trace_ELBO: the Monte Carlo ELBO, particles vectorized under one plate.

    (1/K) Σ_k log p(x, z_k) − log q(z_k|x),  z_k ~ q(z|x)

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
    """

    def __init__(self, num_particles: int = 1):
        if type(num_particles) is not int or num_particles < 1:
            raise InputError(f"num_particles must be a whole number ≥ 1, got {num_particles!r}")
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=num_particles > 1,
            max_plate_nesting=1,
        )
