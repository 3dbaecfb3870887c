"""Pyro's TraceMeanField_ELBO."""

__all__ = ["TraceMeanField"]

import warnings
from typing import Any

from pyro.infer import TraceMeanField_ELBO

from pyro_vae.errors import InputError
from pyro_vae.objectives._particles import particles


class TraceMeanField(TraceMeanField_ELBO):
    """Pyro's TraceMeanField_ELBO: KL(q ‖ p) analytic where torch knows it, else Monte Carlo.

    (1/K) Σ_k log p(x|z_k) − KL(q(z|x) ‖ p(z)),  z_k ~ q(z|x)

    Several latents must be drawn by guide and model in the same order. Where the
    guide draws z1, then z2 given it, and the model z2, then z1, the analytic
    KL(q(z1|x) ‖ p(z1|z2)) would take z2 as independent of z1: no bound on log p(x).

    Arguments:
        num_particles: K, the number of z drawn a datum and step.

    Raises:
        InputError: when run on programs of unlike order.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():  # said below, in one line
            warnings.filterwarnings("ignore", "Failed to verify mean field", UserWarning)
            model_trace, guide_trace = super()._get_trace(model, guide, args, kwargs)
        latents = [name for name in guide_trace.stochastic_nodes if name in model_trace.nodes]
        if latents != [name for name in model_trace.stochastic_nodes if name in latents]:
            raise InputError(
                "trace_mean_field: the guide draws its latents in another order than the model, "
                "so that their KL is no sum of analytic ones; use --objective trace"
            )
        return model_trace, guide_trace
