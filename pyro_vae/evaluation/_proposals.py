"""Proposals wider than the guide, on the flat vector of all latents, each mixed with the prior."""

__all__ = [
    "Block",
    "Mixture",
    "defensive",
    "wide",
    "adapted",
    "pilot",
    "num_prior",
    "ess",
]

import math
from dataclasses import dataclass
from typing import Protocol

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.evaluation._chunks import default_chunk
from pyro_vae.evaluation.latent_space import draws_of, latent_space, log_guide, log_terms
from pyro_vae.execution import Program
from pyro_vae.seeding import derive_seed, seeded

PRIOR_SHARE = 0.1  # α
DEGREES = 5.0  # of freedom, ν
INFLATION = 1.5  # of the spread of the guide's draws
ROUNDS = 4
ESS_PER_DIM = 20  # that the moments of weighted draws stand on
RIDGE = 1e-6  # of the variances: a covariance of few draws has a Cholesky factor


class Block:
    """Some data ``[B, *event_shape]``, and log p(x, z) of their latents as one vector."""

    def __init__(self, model: Program, guide: Program, x: Tensor, chunk_size: int | None):
        self.model, self.guide, self.x = model, guide, x
        self.chunk_size = chunk_size or default_chunk(x.device)
        self.space = latent_space(model, x)
        self.terms = log_terms(model, x, self.space)

    def take(self, index: Tensor) -> "Block":
        """The same of some of the data."""
        return Block(self.model, self.guide, self.x[index], self.chunk_size)

    def draws(self, kind: str, seed: int, num: int) -> Tensor:
        """Return draws of the prior (``model``) or of the ``guide``, ``[num, B, D]``."""
        if num == 0:
            return self.x.new_zeros(0, len(self.x), self.space.dim, dtype=torch.float64)
        program = self.model if kind == "model" else self.guide
        return draws_of(program, kind, self.x, self.space, seed, num)


class Proposal(Protocol):
    """s(z|x), one a datum."""

    def draw(self, block: Block, seed: int, num: int) -> Tensor:
        """Return draws ``[num, B, D]``."""
        ...

    def log_prob(self, block: Block, z: Tensor, data: Tensor) -> Tensor:
        """Return log s(z|x) ``[P, C]`` of z ``[P, C, D]`` for data ``[C]``."""
        ...

    def take(self, index: Tensor) -> "Proposal":
        """The same of some of the data."""
        ...


class Guided:
    """The guide, s(z|x) = q(z|x), which needs a density at any z."""

    def draw(self, block: Block, seed: int, num: int) -> Tensor:
        """Return draws ``[num, B, D]``."""
        return block.draws("guide", seed, num)

    def log_prob(self, block: Block, z: Tensor, data: Tensor) -> Tensor:
        """Return log q(z|x)."""
        return log_guide(block.guide, block.x, block.space, "a defensive mixture")(z, data)

    def take(self, index: Tensor) -> "Guided":
        """It reads the data of the block it is given."""
        return self


@dataclass(frozen=True)
class StudentT:
    """A multivariate Student-t of ν degrees of freedom at given moments.

    Pyro's makes a D × D matrix a draw, 2 GB of 1,000 draws of 100 data at D = 50.
    """

    loc: Tensor
    """``[B, D]``."""
    scale_tril: Tensor
    """``[B, D, D]``; the covariance is ν/(ν − 2) times its square."""

    def draw(self, block: Block, seed: int, num: int) -> Tensor:
        """Return draws ``[num, B, D]``."""
        with seeded(seed, self.loc.device):
            normal = torch.randn(num, *self.loc.shape, dtype=self.loc.dtype, device=self.loc.device)
            chi2 = dist.Chi2(self.loc.new_tensor(DEGREES)).sample((num, len(self.loc)))
        normal = normal * (DEGREES / chi2).sqrt().unsqueeze(-1)
        return self.loc + torch.einsum("bde,nbe->nbd", self.scale_tril, normal)

    def log_prob(self, block: Block, z: Tensor, data: Tensor) -> Tensor:
        """Return log s(z|x)."""
        scale_tril, dim = self.scale_tril[data], z.shape[-1]
        centered = (z - self.loc[data]).permute(1, 2, 0)
        whitened = torch.linalg.solve_triangular(scale_tril, centered, upper=False)
        distance = whitened.square().sum(1).T
        # log Γ((ν + D)/2)/Γ(ν/2) − (D/2) log νπ − log |L| − ((ν + D)/2) log(1 + |L⁻¹(z − m)|²/ν)
        constant = math.lgamma((DEGREES + dim) / 2) - math.lgamma(DEGREES / 2)
        constant -= dim / 2 * math.log(DEGREES * math.pi)
        log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return constant - log_det - (DEGREES + dim) / 2 * (distance / DEGREES).log1p()

    def take(self, index: Tensor) -> "StudentT":
        """The same of some of the data."""
        return StudentT(self.loc[index], self.scale_tril[index])


@dataclass(frozen=True)
class Mixture:
    """r(z) = α p(z) + (1 − α) s(z|x): a weight p(x, z)/r(z) never exceeds p(x|z)/α.

    Of K draws exactly num_prior are the prior's, and α is their share: the mean of the
    weights is unbiased, and what a draw is from is known.

    References:
        Weighted Average Importance Sampling and Defensive Mixture Distributions
        (Hesterberg, 1995)   https://doi.org/10.1080/00401706.1995.10484303
    """

    proposal: Proposal

    def take(self, index: Tensor) -> "Mixture":
        """The same of some of the data."""
        return Mixture(self.proposal.take(index))

    def draw(self, block: Block, seed: int, num_prior: int, num: int) -> Tensor:
        """Return ``num`` draws, ``[num, B, D]``: first ``num_prior`` of the prior."""
        prior = block.draws("model", derive_seed(seed, "prior"), num_prior)
        rest = self.proposal.draw(block, derive_seed(seed, "proposal"), num - num_prior)
        return torch.cat([prior, rest])

    def log_weights(self, block: Block, z: Tensor, share: float) -> Tensor:
        """Return log p(x, z) − log r(z) ``[N, B]`` of z ``[N, B, D]``, α the ``share``."""
        size = z.shape[1]
        data_step = min(block.chunk_size, size)
        sample_step = max(1, block.chunk_size // data_step)
        columns = []
        for data in torch.arange(size, device=z.device).split(data_step):
            parts = [
                self._weigh(block, part, data, share) for part in z[:, data].split(sample_step)
            ]
            columns.append(torch.cat(parts))
        return torch.cat(columns, dim=1)

    def _weigh(self, block: Block, z: Tensor, data: Tensor, share: float) -> Tensor:
        terms = block.terms(z, data)
        log_s = self.proposal.log_prob(block, z, data)
        log_r = torch.logaddexp(math.log(share) + terms.log_prior, math.log1p(-share) + log_s)
        return terms.log_joint - log_r


def num_prior(num: int) -> int:
    """How many of ``num`` draws of a mixture are the prior's."""
    return round(PRIOR_SHARE * num)


def pilot(block: Block, mixture: Mixture, seed: int, num: int) -> tuple[Tensor, Tensor]:
    """Return ``num`` draws of a mixture, ``[num, B, D]``, and their log-weights ``[num, B]``."""
    few = num_prior(num)
    z = mixture.draw(block, seed, few, num)
    return z, mixture.log_weights(block, z, few / num)


def defensive() -> Mixture:
    """The guide and the prior."""
    return Mixture(Guided())


def wide(block: Block, seed: int, num: int) -> Mixture:
    """A Student-t at the moments of draws of the guide, its spread inflated, and the prior."""
    z = block.draws("guide", seed, num)
    return Mixture(_at_moments(z, z.new_zeros(z.shape[:2]), INFLATION))


def adapted(block: Block, z: Tensor, log_weights: Tensor, seed: int, num: int) -> Mixture:
    """A Student-t that adaptive importance sampling has moved to p(z|x), and the prior.

    Each round takes the moments of the draws under w^β, β ≤ 1 the largest that leaves an
    effective sample size of 20 D, then draws and weighs ``num`` anew.

    References:
        Adaptive Importance Sampling in General Mixture Classes (Cappé, Douc, Guillin,
        Marin & Robert, 2008)   https://arxiv.org/abs/0710.4242

    Arguments:
        z, log_weights: draws ``[N, B, D]`` and their log-weights ``[N, B]`` to start from.
    """
    for i in range(ROUNDS):
        mixture = Mixture(_at_moments(z, _tempered(log_weights, ESS_PER_DIM * z.shape[-1]), 1.0))
        if i < ROUNDS - 1:
            z, log_weights = pilot(block, mixture, derive_seed(seed, "round", i), num)
    return mixture


def _at_moments(z: Tensor, log_weights: Tensor, inflation: float) -> StudentT:
    """The Student-t whose location and scale are the weighted mean and covariance."""
    weights = log_weights.softmax(0)
    loc = torch.einsum("nb,nbd->bd", weights, z)
    centered = (z - loc) * weights.sqrt().unsqueeze(-1)
    covariance = torch.einsum("nbd,nbe->bde", centered, centered)
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    ridge = RIDGE * variance + torch.finfo(z.dtype).tiny
    scale_tril = torch.linalg.cholesky(covariance + torch.diag_embed(ridge))
    return StudentT(loc, inflation * scale_tril)


def _tempered(log_weights: Tensor, smallest: float) -> Tensor:
    """β log w, β ≤ 1 the largest whose effective sample size is at least ``smallest``."""
    known = log_weights > -math.inf
    # Without any weight all draws count alike.
    log_weights = torch.where(known.any(0), log_weights, 0.0)
    smallest = min(smallest, len(log_weights) / 4)
    low, high = log_weights.new_zeros(log_weights.shape[1]), log_weights.new_ones(1)
    low = torch.where(ess(log_weights) >= smallest, 1.0, low)
    high = torch.ones_like(low)
    for _ in range(40):
        middle = (low + high) / 2
        enough = ess(middle * log_weights) >= smallest
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(log_weights > -math.inf, low * log_weights, log_weights)


def ess(log_weights: Tensor) -> Tensor:
    """(Σ w)²/Σ w² of each column."""
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp()
