"""The aggregated posterior q(z) = (1/N) Σ_n q(z|x_n), from log q(z|x) of all pairs in blocks."""

__all__ = [
    "Pairs",
    "program_pairs",
    "posterior_pairs",
    "dimension_pairs",
    "log_aggregate",
    "information_density",
    "is_product",
    "needs_networks",
]

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation.latent_space import LatentSpace
from pyro_vae.execution import Program, check_no_points, execute

BLOCK = 2**20  # numbers in a [P, C, D] block of pairs: 8 MB in float64

Pairs = Callable[[Tensor, Tensor], Tensor]
"""(z ``[P, D]``, data ``[C]``) → log q(z_p|x_c) ``[P, C]``, float64; or ``[P, C, *]``."""


def program_pairs(guide: Program, x: Tensor, space: LatentSpace) -> Pairs:
    """Return log q of all pairs of a guide that has a density, its latents as one vector.

    The encoder runs once a datum for all z.
    """

    def pairs(z: Tensor, data: Tensor) -> Tensor:
        each = z[:, None].expand(-1, len(data), -1)
        values = space.values(each)
        run = execute(guide, "guide", len(z), (x[data],), values=values, num_data=len(data))
        check_no_points(run)
        log_q = run.total([run.log_prob(site) for site in run.latent.values()]).double()
        return log_q + space.log_det(each)

    return pairs


def posterior_pairs(posterior: Callable[[Tensor], Any], x: Tensor) -> Pairs:
    """Return log q of all pairs of a ``posterior(x)``, one latent's."""

    def pairs(z: Tensor, data: Tensor) -> Tensor:
        q = posterior(x[data])
        log_q: Tensor = q.log_prob(z[:, None].expand(-1, len(data), *q.event_shape))
        return log_q.double()

    return pairs


def dimension_pairs(posterior: Callable[[Tensor], Any], x: Tensor) -> Pairs:
    """Return log q(z_d|x) of all pairs a dimension, ``[P, C, D]``, where q is a product."""

    def pairs(z: Tensor, data: Tensor) -> Tensor:
        q: Any = is_product(posterior(x[data]))
        log_q: Tensor = q.log_prob(z[:, None].expand(-1, len(data), *z.shape[1:]))
        return log_q.double()

    return pairs


def log_aggregate(pairs: Pairs, z: Tensor, num_data: int, block: int = BLOCK) -> Tensor:
    """Return log q(z) = log (1/N) Σ_n q(z|x_n) of z ``[P, D]``, ``[P]``, float64."""
    total = z.new_full((len(z),), -math.inf, dtype=torch.float64)
    for data in _blocks(z, num_data, block):
        total = torch.logaddexp(total, _checked(pairs(z, data)).logsumexp(1))
    return total - math.log(num_data)


def information_density(pairs: Pairs, z: Tensor, block: int = BLOCK) -> Tensor:
    """Return log q(z|x_n) − log q(z) of draws z ~ q(z|x_n), ``[S, N]``, float64.

    Its mean is an unbiased estimate of I_q(x; z) with x uniform over the N data, the datum's
    own q(z|x_n) among those that q(z) averages: no value exceeds log N.

    Arguments:
        pairs: log q of all pairs; ``[P, C, *]`` gives ``[S, N, *]``.
        z: ``[S, N, D]``.
        block: how many numbers of z are paired with data at once; it bounds memory only.
    """
    num_draws, num_data = z.shape[:2]
    flat = z.flatten(0, 1)
    total = own = None
    for data in _blocks(flat, num_data, block):
        part = _checked(pairs(flat, data))
        part = part.view(num_draws, num_data, *part.shape[1:])
        if total is None or own is None:
            total = part.new_full((num_draws, num_data, *part.shape[3:]), -math.inf)
            own = torch.empty_like(total)
        own[:, data] = part[:, data, torch.arange(len(data), device=data.device)]
        total = torch.logaddexp(total, part.logsumexp(2))
    if total is None or own is None:
        raise InputError("expected at least one datum, got none")
    return own - (total - math.log(num_data))


def is_product(fn: Any) -> Any | None:
    """Return the distribution of each dimension where they are independent; None elsewhere."""
    while isinstance(fn, ExpandedDistribution):
        fn = fn.base_dist
    if not isinstance(fn, dist.Independent):
        return None if fn.event_shape else fn
    alone = fn.reinterpreted_batch_ndims == len(fn.event_shape)
    return fn.base_dist if alone and not fn.base_dist.event_shape else None


def needs_networks(fns: list[Any]) -> bool:
    """Whether log q(z|x) at another z runs a network: flows, and latents that hang on others."""
    return len(fns) > 1 or isinstance(fns[0], dist.TransformedDistribution)


def _blocks(z: Tensor, num_data: int, block: int) -> Iterator[Tensor]:
    step = max(1, block // z.numel())
    yield from torch.arange(num_data, device=z.device).split(step)


def _checked(log_q: Tensor) -> Tensor:
    if bool((log_q.isnan() | (log_q == math.inf)).any()):
        raise InputError(
            "log q(z|x) is NaN or +infinity at a draw of another datum: check the guide, or "
            "diagnose in float64"
        )
    return log_q
