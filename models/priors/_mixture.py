"""Mixtures over z: diagonal normals as matrix products, and any batch of posteriors."""

__all__ = ["DiagonalNormalMixture", "PosteriorMixture", "uniform_mixture"]

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal
from torch.types import _size

# Numbers in a [z, K, latent_dim] block of PosteriorMixture: 32 MB in float64.
_BLOCK = 2**22


class DiagonalNormalMixture(TorchDistribution):
    """A mixture of diagonal normals, p(z) = Σ_k w_k N(z; μ_k, diag σ_k²), w = softmax(logits).

    The quadratic form is expanded, so that K components cost one matrix product
    and ``[N, K]`` numbers for N z, never ``[N, K, D]``:

    Σ_d (z_d − μ_kd)²/σ_kd² = Σ_d z_d²/σ_kd² − 2 z_d μ_kd/σ_kd² + μ_kd²/σ_kd²

    Arguments:
        logits: the unnormalized log-weights, ``[K]``.
        loc: the means μ, ``[K, D]``.
        scale: the standard deviations σ, ``[K, D]``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.real_vector
    has_rsample = False

    def __init__(
        self, logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = False
    ):
        self.logits, self.loc, self.scale = logits, loc, scale
        super().__init__(torch.Size(), loc.shape[-1:], validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: "DiagonalNormalMixture | None" = None
    ) -> "DiagonalNormalMixture":
        """Return the same distribution with another ``batch_shape``."""
        new = self._get_checked_instance(DiagonalNormalMixture, _instance)
        new.logits, new.loc, new.scale = self.logits, self.loc, self.scale
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) of z ``[*, D]``, ``[*]``."""
        if self._validate_args:
            self._validate_sample(value)
        # The expanded terms reach μ²/σ², 10⁵ and more, where the form itself is of order one.
        # In float32 they would leave errors of 0.01 nats, in float64 of 10⁻¹⁶ Σ_d μ²/σ².
        loc, scale = self.loc.double(), self.scale.double()
        precision = scale**-2
        weight = torch.cat([-0.5 * precision, loc * precision], dim=-1)
        constant = (
            self.logits.double().log_softmax(-1)
            - (0.5 * loc**2 * precision + scale.log()).sum(-1)
            - 0.5 * math.log(2 * math.pi) * loc.shape[-1]
        )
        z = value.reshape(-1, loc.shape[-1]).double()
        joint = torch.addmm(constant, torch.cat([z**2, z], dim=-1), weight.T)
        dtype = torch.promote_types(value.dtype, self.loc.dtype)
        log_prob = joint.logsumexp(-1).to(dtype).reshape(value.shape[:-1])
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draw z ``[*sample_shape, *batch_shape, D]``: a component at random, then from it."""
        shape = self._extended_shape(sample_shape)
        k = _draw_components(self.logits.softmax(-1), shape[:-1])
        loc = self.loc[k]
        return loc + self.scale[k] * torch.randn_like(loc)

    @property
    def mean(self) -> Tensor:
        """Σ_k w_k μ_k, ``[*batch_shape, D]``."""
        return (self.logits.softmax(-1) @ self.loc).expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """Σ_k w_k (σ_k² + (μ_k − mean)²), ``[*batch_shape, D]``."""
        weight = self.logits.softmax(-1)
        spread = (self.loc - weight @ self.loc) ** 2
        return (weight @ (self.scale**2 + spread)).expand(self._extended_shape())


class PosteriorMixture(TorchDistribution):
    """A uniform mixture of any K distributions over z, p(z) = (1/K) Σ_k q_k(z).

    Without gradients the density is taken over blocks of z, whose ``[z, K, D]``
    numbers bound the memory; with them all blocks are kept for the backward pass.

    Arguments:
        components: the q_k, ``batch_shape [K]`` and ``event_shape (D,)``.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, components: Distribution, validate_args: bool | None = False):
        self.components = components
        super().__init__(torch.Size(), components.event_shape, validate_args=validate_args)

    def expand(
        self, batch_shape: _size, _instance: "PosteriorMixture | None" = None
    ) -> "PosteriorMixture":
        """Return the same distribution with another ``batch_shape``."""
        new = self._get_checked_instance(PosteriorMixture, _instance)
        new.components = self.components
        TorchDistribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log p(z) of z ``[*, D]``, ``[*]``."""
        if self._validate_args:
            self._validate_sample(value)
        (K,), (D,) = self.components.batch_shape, self.event_shape
        blocks = value.reshape(-1, 1, D).split(max(1, _BLOCK // (K * D)))
        terms = [self.components.log_prob(z).logsumexp(-1) for z in blocks]
        log_prob = (torch.cat(terms) - math.log(K)).reshape(value.shape[:-1])
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draw z ``[*sample_shape, *batch_shape, D]``: a component at random, then from it."""
        shape = self._extended_shape(sample_shape)
        (K,) = self.components.batch_shape
        k = torch.randint(K, (shape[:-1].numel(),))
        # A batch of distributions is sampled whole: `turn` draws of each, as many as the
        # component chosen most often needs. The i-th z of a component is its i-th draw.
        count = k.bincount(minlength=K)
        order = k.argsort(stable=True)
        turn = torch.empty_like(k)
        turn[order] = torch.arange(len(k)) - (count.cumsum(0) - count)[k[order]]
        draws = self.components.sample(torch.Size([int(count.max())]))
        return draws[turn.to(draws.device), k.to(draws.device)].reshape(shape)

    @property
    def mean(self) -> Tensor:
        """(1/K) Σ_k E_k z, ``[*batch_shape, D]``; where the components have it."""
        return self.components.mean.mean(0).expand(self._extended_shape())

    @property
    def variance(self) -> Tensor:
        """(1/K) Σ_k Var_k z + (E_k z − mean)², ``[*batch_shape, D]``."""
        loc = self.components.mean
        total = self.components.variance + (loc - loc.mean(0)) ** 2
        return total.mean(0).expand(self._extended_shape())


def uniform_mixture(components: Distribution) -> TorchDistribution:
    """Return (1/K) Σ_k q_k of a batch ``[K]``; diagonal normals as matrix products."""
    if isinstance(components, Independent) and isinstance(components.base_dist, Normal):
        loc, scale = components.base_dist.loc, components.base_dist.scale
        if components.reinterpreted_batch_ndims == 1 and loc.dim() == 2:
            return DiagonalNormalMixture(torch.zeros_like(loc[:, 0]), loc, scale)
    return PosteriorMixture(components)


def _draw_components(probs: Tensor, shape: torch.Size) -> Tensor:
    """Draw components at random, with replacement, ``shape``."""
    return torch.multinomial(probs, shape.numel(), replacement=True).reshape(shape)
