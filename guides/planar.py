"""The planar flow guide."""

__all__ = ["Planar"]

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import elu

from pyro_vae.flows import LocScale, Step, bounded, check_sizes
from pyro_vae.links import positive

from ._flow_guide import FlowGuide, standard_normal_like

MARGIN = 0.01  # w·û > −1 + MARGIN: no step contracts more than a hundredfold
LIMIT = 5.0  # |u_d|, |w_d| and their product w·u stay where float32 resolves the margin


class Planar(FlowGuide):
    """Planar flow, z = μ(x) + σ(x) f(ε): each layer bends ε by ε ← ε + û tanh(w·ε + b).

    log q(z|x) = log N(ε; 0, I) − Σ_d log σ_d − Σ_layers log(1 + (1 − tanh²(w·ε + b)) w·û)

    u, w and b are affine in the encoder's features. û is u where w·u ≥ 0, and
    keeps w·û above −1, so that every layer is invertible, where it is not. The
    layers are those of the paper in units of q's own scale, u/σ and σ w there.
    There is no inverse in closed form: the density is known at the
    distribution's latest sample only (``has_density`` is False).

    References:
        Variational Inference with Normalizing Flows (Rezende & Mohamed, 2015),
        equations 10–12 and appendix A.1
        https://arxiv.org/abs/1505.05770

    Arguments:
        encoder: maps x ``[B, *event_shape]`` to features ``[B, out_features]``.
        latent_dim: the dimension of z.
        layers: the number of planar layers.

    Example:
        >>> from pyro_vae.networks import Encoder, mlp
        >>> body, features = mlp(hidden=(8,)).encoder((4,))
        >>> q = Planar(Encoder(body, (4,), features), latent_dim=2).posterior(torch.zeros(3, 4))
        >>> q.log_prob(q.rsample((5,))).shape
        torch.Size([5, 3])
    """

    has_density = False

    def __init__(self, encoder: Any, latent_dim: int, layers: int = 4):
        check_sizes("planar", layers=layers)
        super().__init__(encoder, latent_dim)
        self.sizes = (latent_dim, latent_dim, 1)
        self.to_u, self.to_w, self.to_b = (
            nn.Linear(encoder.out_features, layers * size) for size in self.sizes
        )
        self.num_layers = layers
        with torch.no_grad():  # near the identity, with a gradient for w and b
            self.to_u.weight.mul_(0.01)
            self.to_u.bias.zero_()

    def outputs(self, x: Tensor) -> Tensor:
        """Return μ(x), and before their links σ(x), u, w and b of each layer, ``[B, P]``."""
        features = self.encoder(x)
        layers = [to(features) for to in (self.to_u, self.to_w, self.to_b)]
        return torch.cat([self.head(features), *layers], dim=-1)

    def distribution(self, outputs: Tensor) -> dist.TorchDistribution:
        """Return q(z) at outputs ``[B, P]``, ``batch_shape [B]``, ``event_shape (latent_dim,)``."""
        layers = [self.num_layers * size for size in self.sizes]
        head, u, w, b = outputs.split([2 * self.latent_dim, *layers], dim=-1)
        loc, raw_scale = head.chunk(2, dim=-1)
        parameters = zip(
            bounded(u, LIMIT).chunk(self.num_layers, dim=-1),
            bounded(w, LIMIT).chunk(self.num_layers, dim=-1),
            b.chunk(self.num_layers, dim=-1),
            strict=True,
        )
        steps = [*(_Bend(u, w, b) for u, w, b in parameters), LocScale(loc, positive(raw_scale))]
        base = standard_normal_like(loc)
        return dist.TransformedDistribution(base, steps, validate_args=False)


class _Bend(Step):
    """y = x + û tanh(w·x + b), u and w ``[B, D]``, b ``[B, 1]``.

    û = u + (m(w·u) − w·u) w/‖w‖² has w·û = m(w·u). The paper and Pyro take
    m(a) = softplus(a) − 1, whose û grows as 1/‖w‖ where w → 0, since m(0) ≠ 0.
    Here m(a) = a for a ≥ 0 and (1 − MARGIN)(exp(a/(1 − MARGIN)) − 1) below: m(0) = 0
    and m'(0) = 1, so û → u.
    """

    def __init__(self, u: Tensor, w: Tensor, b: Tensor):
        super().__init__()
        a = (w * u).sum(-1, keepdim=True)
        self.slope = (1 - MARGIN) * elu(a / (1 - MARGIN))  # w·û
        self.u = u + (self.slope - a) * w / (w * w).sum(-1, keepdim=True).clamp(min=1e-12)
        self.w, self.b = w, b

    def forward_and_log_det(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y and log(1 + (1 − tanh²) w·û)."""
        t = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        return x + self.u * t, torch.log1p((1 - t * t) * self.slope).squeeze(-1)
