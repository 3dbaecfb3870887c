"""Pyro's RenyiELBO."""

__all__ = ["PyroRenyi"]

from typing import Any

import torch
from pyro.infer import RenyiELBO
from pyro.infer.util import torch_item
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae.checks import check_number
from pyro_vae.errors import InputError
from pyro_vae.execution import is_point, own_scale, plate_scale, same_scale
from pyro_vae.objectives._particles import SampledKL, checked_traces, particles


class PyroRenyi(SampledKL, RenyiELBO):
    """Pyro's RenyiELBO, refused where its weights are not those of one datum.

    See ``renyi``, which it equals on the same noise. Pyro puts the scale of a subsampled
    plate inside the logarithm of the mean, and gives a latent outside the data plate
    one weight for the whole batch: neither is a bound on log p(x).

    Arguments:
        alpha: α ≠ 1; 0 is IWAE.
        num_particles: K.

    Raises:
        InputError: when run with a subsampled plate, a scale of the observations, a
            point for a guide, or a site outside the data plate.
    """

    def __init__(self, alpha: float = 0.0, num_particles: int = 10):
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha == 1:
            raise InputError(
                f"pyro_renyi: alpha must be a number other than 1, got {alpha!r}; for 1 use trace"
            )
        if alpha != 0:
            check_number("pyro_renyi", "|alpha|", abs(alpha), 1e-6, 1e6)
        super().__init__(alpha=float(alpha), **particles(num_particles))

    @property
    def is_lower_bound(self) -> bool:
        """Whether α ≥ 0."""
        return bool(self.alpha >= 0)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Return the loss; its gradient is that of Pyro's surrogate, through z and log q."""
        (traces,) = self._get_traces(model, guide, args, kwargs)
        log_weight = 0.0
        for sign, trace in zip((1, -1), traces, strict=True):
            for site in trace.nodes.values():
                if site["type"] == "sample":
                    log_weight = log_weight + sign * site["log_prob"]
                    if trace is traces[1] and not site["fn"].has_rsample:
                        raise InputError(
                            f"pyro_renyi: latent site {site['name']!r} of the guide is not "
                            "reparameterized; use --objective trace_graph, tvo or "
                            "reweighted_wake_sleep"
                        )
        power = 1 - self.alpha
        log_weight = torch.atleast_1d(torch.as_tensor(power * log_weight))
        log_weight = log_weight.reshape(self.num_particles, -1)
        log_mean = log_weight.logsumexp(0) - torch.log(log_weight.new_tensor(self.num_particles))
        loss = -log_mean.sum() / power
        warn_if_nan(loss, "loss")
        return loss

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Return the loss, its gradient added to the parameters'.

        Pyro's own leaves the parameters of a discrete latent unmoved at α = 0.
        """
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value: float = torch_item(loss)
        return value

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        model_trace, guide_trace = checked_traces(
            "pyro_renyi", super()._get_trace, model, guide, args, kwargs
        )
        for trace in (model_trace, guide_trace):
            for name, site in trace.nodes.items():
                if site["type"] != "sample":
                    continue
                if all(frame.dim != -1 for frame in site["cond_indep_stack"]):
                    raise InputError(
                        f"pyro_renyi: site {name!r} stands outside the data plate, where Pyro "
                        "takes one weight for all data"
                    )
                if trace is guide_trace and is_point(site["fn"]):
                    raise InputError(
                        f"pyro_renyi: latent site {name!r} of the guide is a point without a "
                        "density, and log p(x, z) is no bound; use --objective trace"
                    )
                if site["is_observed"] and not same_scale(own_scale(site), 1.0):
                    raise InputError(
                        f"pyro_renyi: Pyro puts the scale of site {name!r} inside the logarithm, "
                        "which is no bound; use --objective renyi"
                    )
                if plate_scale(site) != 1:
                    raise InputError(
                        "pyro_renyi: Pyro puts the scale of a subsampled plate inside the "
                        "logarithm, which is no bound; use --objective renyi"
                    )
        return model_trace, guide_trace
