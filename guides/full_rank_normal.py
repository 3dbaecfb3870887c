"""The normal guide with a full covariance."""

__all__ = ["FullRankNormal"]

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.flows import state_of
from pyro_vae.links import positive
from pyro_vae.precision import in_full_precision

from ._amortized import EncodedGuide


class FullRankNormal(EncodedGuide):
    """A normal with full covariance, q(z|x) = N(μ(x), L(x) L(x)ᵀ).

    L = diag(σ) (I + N), N strictly lower triangular and unconstrained: every
    covariance has one such L. It starts near a diagonal normal, N ≈ 0. Samples
    are z = μ + L ε with ε ~ N(0, I).

    ``scale=constant`` learns one L for all x. With a linear encoder that is the
    exact posterior of a linear-Gaussian model.

    The log-density of a guide's own sample comes from the ε that made it, right
    at any encoder output. At another z it takes a solve with L, whose float32
    rounding errors grow by up to Π_i √(1 + |N_i|²), N_i the rows of N.

    References:
        An Introduction to Variational Autoencoders (Kingma & Welling, 2019), section 2.5.1
        https://arxiv.org/abs/1906.02691

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
        scale: ``amortized``, L from the encoder, or ``constant``, L the same for all x.

    Example:
        >>> from pyro_vae.networks import Encoder
        >>> guide = FullRankNormal(Encoder(nn.Flatten(), (4,), 4), latent_dim=2, scale="constant")
        >>> _ = guide.raw_tril.data.copy_(torch.tensor([0.0, 0.0, 2.0]))  # σ = log 2, N_21 = 2
        >>> guide.posterior(torch.zeros(3, 4)).scale_tril[0]
        tensor([[0.6931, 0.0000],
                [1.3863, 0.6931]], grad_fn=<SelectBackward0>)
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, encoder: Any, latent_dim: int, scale: str = "amortized"):
        super().__init__()
        if scale not in ("amortized", "constant"):
            raise InputError(
                f"full_rank_normal: scale must be amortized or constant, got {scale!r}"
            )
        self.encoder = encoder
        self.latent_dim = latent_dim
        self.amortized = scale == "amortized"
        rows, columns = torch.tril_indices(latent_dim, latent_dim, offset=-1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)
        entries = latent_dim + len(rows)
        if self.amortized:
            self.head = nn.Linear(encoder.out_features, latent_dim + entries)
            with torch.no_grad():
                self.head.weight[2 * latent_dim :] *= 0.1
                self.head.bias[2 * latent_dim :] *= 0.1
        else:
            self.head = nn.Linear(encoder.out_features, latent_dim)
            self.raw_tril = nn.Parameter(torch.zeros(entries))

    def outputs(self, x: Tensor) -> Tensor:
        """Return μ(x) and, where it is amortized, L(x) before its links, ``[B, P]``."""
        outputs: Tensor = self.head(self.encoder(x))
        return outputs

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z) at outputs ``[B, P]``, ``batch_shape [B]``, ``event_shape (latent_dim,)``."""
        loc = outputs[..., : self.latent_dim]
        raw_tril = outputs[..., self.latent_dim :] if self.amortized else self.raw_tril
        return _CholeskyNormal(loc, scale_tril=self._scale_tril(raw_tril), validate_args=False)

    def _scale_tril(self, raw: Tensor) -> Tensor:
        """L ``[*, D, D]`` from ``[*, D + D (D − 1)/2]``: D raw scales, then the rows of N."""
        D = self.latent_dim
        scale = positive(raw[..., :D])
        N = raw.new_zeros(*raw.shape[:-1], D, D)
        N[..., self.rows, self.columns] = raw[..., D:]
        return torch.diag_embed(scale) + scale.unsqueeze(-1) * N


class _CholeskyNormal(dist.MultivariateNormal):
    """N(loc, L Lᵀ), with the log-density of its last draw z = loc + L ε taken from ε.

    log q(z) = −½ |ε|² − Σ_i log L_ii − (D/2) log 2π

    Neither the value nor the gradient along z(loc, L) needs the solve L⁻¹ (z − loc).
    For ∂log q/∂z alone, take the density at ``z.detach().requires_grad_()``.
    """

    _draw: tuple[Tensor, ...] | None = None
    _state: tuple[tuple[int, bool], ...] = ()

    @in_full_precision
    def rsample(self, sample_shape: Any = ()) -> Tensor:
        L = self._unbroadcasted_scale_tril
        shape = self._extended_shape(sample_shape)
        epsilon = torch.randn(shape, dtype=L.dtype, device=L.device)
        # torch.matmul would copy L once for every sample.
        z: Tensor = self.loc + torch.einsum("...ij,...j->...i", L, epsilon)
        self._draw, self._state = (z, epsilon, self.loc, L), state_of(z)
        return z

    @in_full_precision
    def log_prob(self, value: Tensor) -> Tensor:
        if not self._drew(value):
            return super().log_prob(value)
        assert self._draw is not None
        _, epsilon, _, L = self._draw
        log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = 0.5 * self.event_shape[0] * math.log(2 * math.pi)
        return -0.5 * (epsilon**2).sum(-1) - log_det - constant

    @property
    def normal_factor(self) -> Tensor:
        """L: for ``closed_form``, the density is that of N(loc, L Lᵀ) still."""
        L: Tensor = self._unbroadcasted_scale_tril
        return L

    def _drew(self, value: Tensor) -> bool:
        """Whether ``value`` is the last draw, its gradient if asked for that of z(loc, L)."""
        if self._draw is None or value is not self._draw[0] or state_of(value) != self._state:
            return False
        _, _, loc, L = self._draw
        unchanged = loc is self.loc and L is self._unbroadcasted_scale_tril
        return unchanged and (value.grad_fn is not None or not torch.is_grad_enabled())
