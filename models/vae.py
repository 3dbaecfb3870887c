"""The variational autoencoder's generative program."""

__all__ = ["VAE"]

from typing import Any

import pyro
from torch import Tensor

from ._decoded import Decoded


class VAE(Decoded):
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
        super().__init__(likelihood, decoder, event_shape, output_bias, data_mean)
        self.prior = prior

    def forward(self, x: Tensor) -> Tensor:
        """Run the program on ``x`` ``[B, *event_shape]``; returns the latents."""
        with pyro.plate("data", x.shape[0], dim=-1):
            z: Tensor = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x)
            return z
