"""The VampPrior."""

__all__ = ["Vamp"]

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.checks import check_count, check_number
from pyro_vae.errors import InputError

from ._mixture import uniform_mixture


class Vamp(nn.Module):
    """The VampPrior: a mixture of the guide's posteriors at K learned pseudo-inputs.

    p(z) = (1/K) Σ_k q(z|u_k)

    The one place where p depends on q: gradients of log p(z) reach the guide
    through its posteriors at u_k. The guide's parameters stay the guide's, the
    prior's own are the pseudo-inputs alone. They are unconstrained: a pseudo-input
    clamped to the data's range would have zero gradient once outside. ``copy.deepcopy``
    keeps them together where guide and prior are copied in one call.

    They are learned in the data's units, so that a learning rate moves all data alike:
    levels as a part of their range, reals of their standard deviation, and counts as
    u = exp(v) − 1, in relative steps.

    For the diagonal normal guide log p(z) is a matrix product. For another one every
    pair (z, u_k) is evaluated, and ``iaf`` needs ``latent_dim`` passes for each: use
    few components, or ``spline_flow``.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), equation 9
        https://arxiv.org/abs/1705.07120

    Arguments:
        posterior: the guide's method, x ``[K, *event_shape]`` → q(z|x), ``batch_shape [K]``.
        event_shape: the shape of one datum.
        data_mean: the mean of the training data, ``event_shape``.
        data_sample: n → that many random training data, ``[n, *event_shape]``.
        unit: n − 1 for levels, the standard deviation of real data, else 1.
        measure: that of the data.
        has_density: whether q has a log-density at any z.
        components: K.
        init: ``mean`` starts at the data mean plus noise, ``data`` at K training data.
        noise: that noise's standard deviation, in the units above; equal
            pseudo-inputs would get equal gradients and stay equal.

    Example:
        >>> def posterior(x):
        ...     return dist.Normal(x, 1.0).to_event(1)
        >>> prior = Vamp(posterior, event_shape=(2,), components=3)
        >>> _ = nn.init.constant_(prior.u, 3.0)
        >>> prior().log_prob(torch.full((2,), 3.0)).detach()
        tensor(-1.8379)
    """

    def __init__(
        self,
        posterior: Callable[[Tensor], dist.TorchDistribution],
        event_shape: tuple[int, ...],
        data_mean: Tensor | None = None,
        data_sample: Callable[[int], Tensor] | None = None,
        unit: float = 1.0,
        measure: str | None = None,
        has_density: bool = True,
        components: int = 500,
        init: str = "mean",
        noise: float = 0.01,
    ):
        super().__init__()
        if not has_density:
            raise InputError(
                "vamp: its density is that of q(z|u) at any z, which this guide does not have; "
                "use a guide that has one, such as diagonal_normal"
            )
        check_count("vamp", "components", components)
        if init not in ("mean", "data"):
            raise InputError(f"vamp: init must be mean or data, got {init!r}")
        check_number("vamp", "noise", noise)
        # A method, not a module: nn.Module registers nothing of the guide.
        self.posterior = posterior
        self.unit = unit
        self.log = measure == "counts"
        start = noise * torch.randn(components, *event_shape)
        if init == "data" and data_sample is not None:
            start = self._in_units(data_sample(components))
            if tuple(start.shape) != (components, *event_shape):
                raise InputError(
                    f"vamp: init=data needs components={components} training data, "
                    f"got {len(start)}; give fewer components, or init=mean"
                )
        elif data_mean is not None:
            start = start + self._in_units(data_mean)
        self.u = nn.Parameter(start)

    def pseudo_inputs(self) -> Tensor:
        """Return the u_k in units of the data, ``[K, *event_shape]``, without gradient."""
        return self._pseudo_inputs().detach()

    def forward(self) -> dist.TorchDistribution:
        """Return p(z), ``event_shape (latent_dim,)``; the encoder runs on the K pseudo-inputs."""
        return uniform_mixture(self.posterior(self._pseudo_inputs()))

    def _pseudo_inputs(self) -> Tensor:
        return self.u.expm1() if self.log else self.u * self.unit

    def _in_units(self, x: Tensor) -> Tensor:
        return x.log1p() if self.log else x / self.unit
