"""Pyro's TraceGraph_ELBO."""

__all__ = ["TraceGraph"]

from typing import Any

from pyro.infer import TraceGraph_ELBO
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae.objectives._particles import SampledKL, checked_traces, particles


class TraceGraph(SampledKL, TraceGraph_ELBO):
    """Pyro's TraceGraph_ELBO: the ELBO, score terms with only the costs downstream of them.

    Its value is that of ``trace``; for latents without a reparameterization its
    gradient has less variance, with baselines where the guide declares them.

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
    """

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return checked_traces("trace_graph", super()._get_trace, model, guide, args, kwargs)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss, whose gradient is that of Pyro's surrogate."""
        elbo, surrogate = self._loss_and_surrogate_loss(model, guide, args, kwargs)
        loss: Tensor = -elbo.detach() + (surrogate - surrogate.detach())
        warn_if_nan(loss, "loss")
        return loss
