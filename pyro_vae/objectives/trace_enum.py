"""Pyro's TraceEnum_ELBO."""

__all__ = ["TraceEnum"]

from pyro.infer import TraceEnum_ELBO

from pyro_vae.objectives._particles import particles


class TraceEnum(TraceEnum_ELBO):
    """Pyro's TraceEnum_ELBO: the ELBO, discrete latents marked for enumeration summed exactly.

    Sites with ``infer={"enumerate": "parallel"}``, in the model alone or in the guide, are
    summed over; all others are drawn as by ``trace``.

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles), strict_enumeration_warning=False)
