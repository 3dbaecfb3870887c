"""What the programs with a decoder share: p(x|z) from z."""

__all__ = ["Decoded"]

from typing import Any

from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.errors import InputError


class Decoded(PyroModule):
    """A generative program whose data come from a decoded z, p(x | decoder(z)).

    Arguments:
        likelihood: p(x | params), see ``protocols.Likelihood``.
        decoder: maps z ``[*, latent_dim]`` to params ``[*, *event_shape, P]``.
        event_shape: the shape of one datum.
        output_bias: ``zero`` leaves the decoder's output as initialized,
            ``data_mean`` starts it at the mean of the training data.
        data_mean: that mean, ``event_shape``.
    """

    def __init__(
        self,
        likelihood: Any,
        decoder: Any,
        event_shape: tuple[int, ...],
        output_bias: str,
        data_mean: Tensor | None,
    ):
        super().__init__("model")
        name = type(self).__name__.lower()
        if output_bias not in ("zero", "data_mean"):
            raise InputError(f"{name}: output_bias must be zero or data_mean, got {output_bias!r}")
        self.likelihood = likelihood
        self.decoder = decoder
        self.event_dim = len(event_shape)
        if output_bias == "data_mean" and data_mean is not None:
            if not hasattr(likelihood, "params_at"):
                raise InputError(
                    f"{name}: this likelihood has no params_at, so output_bias must be zero"
                )
            decoder.set_output_bias(likelihood.params_at(data_mean))

    def decode(self, z: Tensor) -> TorchDistribution:
        """Return p(x|z), ``batch_shape [*]`` and ``event_shape``, for z ``[*, latent_dim]``."""
        p = self.likelihood(self.decoder(z))
        return p.to_event(self.event_dim - p.event_dim)
