"""The heavy-tailed mean-field guide."""

__all__ = ["StudentT"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.checks import check_number
from pyro_vae.links import positive
from pyro_vae.student_t import MAX_DF, LocationScaleT

from ._amortized import EncodedGuide


class StudentT(EncodedGuide):
    """Independent Student-t latents, whose tails keep importance weights bounded.

    log q(z|x) = Σ_d −½ (ν + 1) log(1 + y_d²/ν) − log s_d
                 + log Γ(½ (ν + 1)) − log Γ(½ ν) − ½ log πν,  y = (z − μ(x))/s(x)

    Where the posterior has normal tails, p(x, z)/q(z|x) goes to 0 far from μ; a
    normal guide narrower than the posterior lets it grow without bound. Samples
    are reparameterized, z = μ + s ε/√(χ²_ν/ν). The standard deviation is
    s √(ν/(ν − 2)), not s.

    References:
        Importance Weighting and Variational Inference (Domke & Sheldon, 2018)
        https://arxiv.org/abs/1808.09034

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
        df: ν > 2, the degrees of freedom; small is heavy-tailed.

    Example:
        >>> from pyro_vae.networks import Encoder
        >>> guide = StudentT(Encoder(nn.Flatten(), (4,), 4), latent_dim=2, df=6.0)
        >>> q = guide.posterior(torch.zeros(3, 4))
        >>> (q.variance / q.base_dist.scale**2)[0]  # ν/(ν − 2)
        tensor([1.5000, 1.5000], grad_fn=<SelectBackward0>)
    """

    def __init__(self, encoder: Any, latent_dim: int, df: float = 5.0):
        super().__init__()
        check_number("student_t", "df", df, 2, MAX_DF, ends="(]")
        self.encoder = encoder
        self.df = float(df)
        self.head = nn.Linear(encoder.out_features, 2 * latent_dim)

    def outputs(self, x: Tensor) -> Tensor:
        """Return μ(x) and s(x) before its link, ``[B, P]``."""
        outputs: Tensor = self.head(self.encoder(x))
        return outputs

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z) at outputs ``[B, P]``, ``batch_shape [B]``, ``event_shape (latent_dim,)``."""
        loc, raw_scale = outputs.chunk(2, dim=-1)
        df = torch.full_like(loc, self.df)
        return LocationScaleT(df, loc, positive(raw_scale), validate_args=False).to_event(1)
