"""The variational autoencoder's generative program."""

__all__ = ["VAE"]

from typing import Any

import pyro
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor

from pyro_vae.errors import InputError


class VAE(PyroModule):
    """One stochastic layer, p(z) p(x|z): z from the prior, x from the decoded likelihood.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        https://arxiv.org/abs/1312.6114

    Arguments:
        prior: p(z), see ``protocols.Prior``.
        likelihood: p(x | params), see ``protocols.Likelihood``.
        decoder: maps z ``[*, latent_dim]`` to params ``[*, *event_shape, P]``.
        event_shape: the shape of one datum.
        output_bias: ``zero`` leaves the decoder's output as initialized,
            ``data_mean`` starts it at the mean of the training data.
        data_mean: that mean, ``event_shape``.
    """

    def __init__(
        self,
        prior: Any,
        likelihood: Any,
        decoder: Any,
        event_shape: tuple[int, ...],
        output_bias: str = "zero",
        data_mean: Tensor | None = None,
    ):
        super().__init__("model")
        if output_bias not in ("zero", "data_mean"):
            raise InputError(f"vae: output_bias must be zero or data_mean, got {output_bias!r}")
        self.prior = prior
        self.likelihood = likelihood
        self.decoder = decoder
        self.event_dim = len(event_shape)
        if output_bias == "data_mean" and data_mean is not None:
            if not hasattr(likelihood, "params_at"):
                raise InputError(
                    "vae: this likelihood has no params_at, so output_bias must be zero"
                )
            decoder.set_output_bias(likelihood.params_at(data_mean))

    def decode(self, z: Tensor) -> TorchDistribution:
        """Return p(x|z), ``batch_shape [*]`` and ``event_shape``, for z ``[*, latent_dim]``."""
        p = self.likelihood(self.decoder(z))
        return p.to_event(self.event_dim - p.event_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Run the program on ``x`` ``[B, *event_shape]``; returns the latents."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z: Tensor = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)
            return z
