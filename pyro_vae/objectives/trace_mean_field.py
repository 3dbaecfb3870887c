"""Pyro's TraceMeanField_ELBO."""

__all__ = ["TraceMeanField"]

import warnings
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from torch.distributions import kl_divergence

from pyro_vae.errors import InputError
from pyro_vae.objectives._order import check_one_scale, check_order
from pyro_vae.objectives._particles import checked_traces, particles


class TraceMeanField(TraceMeanField_ELBO):
    """Pyro's TraceMeanField_ELBO: KL(q ‖ p) analytic where torch knows it, else Monte Carlo.

    (1/K) Σ_k log p(x|z_k) − KL(q(z|x) ‖ p(z)),  z_k ~ q(z|x)

    Several latents must be drawn by guide and model in the same order. Where the
    guide draws z1, then z2 given it, and the model z2, then z1, the analytic
    KL(q(z1|x) ‖ p(z1|z2)) would take z2 as independent of z1: no bound on log p(x).

    Arguments:
        num_particles: K, the number of z drawn a datum and step.

    Raises:
        InputError: when run on programs of unlike order, or with a latent whose scale in
            the model is another than in the guide, which Pyro would not see.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles))

    def analytic_kl(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, bool]:
        """Return latent site → whether torch knows its KL(q ‖ p); else it is sampled."""
        with torch.no_grad():
            model_trace, guide_trace = self._get_trace(model, guide, args, kwargs)
        known = {}
        for name in guide_trace.stochastic_nodes:
            try:
                kl_divergence(guide_trace.nodes[name]["fn"], model_trace.nodes[name]["fn"])
            except NotImplementedError:
                known[name] = False
            else:
                known[name] = True
        return known

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        with warnings.catch_warnings():  # said below, in one line
            warnings.filterwarnings("ignore", "Failed to verify mean field", UserWarning)
            model_trace, guide_trace = checked_traces(
                "trace_mean_field", super()._get_trace, model, guide, args, kwargs
            )
        for name in guide_trace.stochastic_nodes:
            if not guide_trace.nodes[name]["fn"].has_rsample:
                raise InputError(
                    f"trace_mean_field: latent site {name!r} of the guide is not reparameterized; "
                    "use --objective trace_graph, tvo or reweighted_wake_sleep"
                )
        latents = [name for name in guide_trace.stochastic_nodes if name in model_trace.nodes]
        check_order("trace_mean_field", latents, model_trace.stochastic_nodes)
        for name in latents:
            check_one_scale("trace_mean_field", guide_trace.nodes[name], model_trace.nodes[name])
        return model_trace, guide_trace
