"""Pyro's Trace_ELBO."""

__all__ = ["Trace"]

from typing import Any

from pyro.infer import Trace_ELBO

from pyro_vae.objectives._particles import SampledKL, checked_traces, particles


class Trace(SampledKL, Trace_ELBO):
    """Pyro's Trace_ELBO: the Monte Carlo ELBO, particles vectorized under one plate.

    (1/K) Σ_k log p(x, z_k) − log q(z_k|x),  z_k ~ q(z|x)

    Arguments:
        num_particles: K, the number of z drawn a datum and step.

    Raises:
        InputError: when run with a latent of the model that the guide does not draw, or a
            plate that is subsampled in one program alone.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return checked_traces("trace", super()._get_trace, model, guide, args, kwargs)
