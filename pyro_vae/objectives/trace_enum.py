"""Pyro's TraceEnum_ELBO."""

__all__ = ["TraceEnum"]

from typing import Any

from pyro.infer import TraceEnum_ELBO

from pyro_vae.errors import InputError
from pyro_vae.execution import equal_everywhere, own_scale
from pyro_vae.objectives._particles import SampledKL, checked_traces, particles


class TraceEnum(SampledKL, TraceEnum_ELBO):
    """Pyro's TraceEnum_ELBO: the ELBO, discrete latents marked for enumeration summed exactly.

    Sites with ``infer={"enumerate": "parallel"}``, in the model alone or in the guide, are
    summed over; all others are drawn as by ``trace``.

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles), strict_enumeration_warning=False)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        traces = checked_traces("trace_enum", super()._get_trace, model, guide, args, kwargs,
                                fix="let the guide leave it out")  # fmt: skip
        _check_summed(*traces)
        return traces


def _check_summed(model_trace: Any, guide_trace: Any) -> None:
    """Refuse a β on a latent that the model sums out, together with unscaled observations."""
    sites = [site for site in model_trace.nodes.values() if site["type"] == "sample"]
    observed = [own_scale(site) for site in sites if site["is_observed"]]
    for site in sites:
        summed = "_enumerate_dim" in site["infer"] and site["name"] not in guide_trace.nodes
        if summed and not all(equal_everywhere(own_scale(site), scale) for scale in observed):
            raise InputError(
                f"trace_enum: latent site {site['name']!r} of the model is summed out and has a "
                "scale of its own: β has no meaning for it"
            )
