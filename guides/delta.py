"""The point guide of a plain autoencoder."""

__all__ = ["Delta"]

from typing import Any

import pyro.distributions as dist
from torch import Tensor, nn

from ._amortized import EncodedGuide


class Delta(EncodedGuide):
    """A point mass at the encoder's output, q(z|x) = δ(z − μ(x)): a plain autoencoder.

    Training maximizes log p(x|μ(x)) + log p(μ(x)): a reconstruction and the
    prior's penalty. That log-joint is no bound on log p(x), which it can exceed,
    so there is no ELBO, IWAE, KL or k̂ of this guide (``has_bound`` is False): it
    reconstructs, and log p(x) is estimated from the prior. A point mass has no
    log-density in z either (``has_density`` is False); Pyro takes 0 at μ(x) and
    −∞ elsewhere.

    References:
        From Variational to Deterministic Autoencoders (Ghosh et al., 2020)
        https://arxiv.org/abs/1903.12436

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.

    Example:
        >>> import torch
        >>> from pyro_vae.networks import Encoder
        >>> guide = Delta(Encoder(nn.Flatten(), (4,), 4), latent_dim=2)
        >>> q = guide.posterior(torch.ones(3, 4))
        >>> q.log_prob(q.mean)
        tensor([0., 0., 0.])
    """

    has_density = False
    has_bound = False

    def __init__(self, encoder: Any, latent_dim: int):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.out_features, latent_dim)

    def outputs(self, x: Tensor) -> Tensor:
        """Return μ(x), ``[B, latent_dim]``."""
        outputs: Tensor = self.head(self.encoder(x))
        return outputs

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z) at outputs ``[B, P]``, ``batch_shape [B]``, ``event_shape (latent_dim,)``."""
        return dist.Delta(outputs, event_dim=1, validate_args=False)
