"""Kullback–Leibler divergences in closed form, each derived by hand from its definition."""

__all__ = ["kl_divergence", "kl_per_dim", "kl_diagonal_normal", "NoClosedForm"]

from typing import Any

import torch.distributions as dist
from torch import Tensor

from pyro_vae.errors import InputError


class NoClosedForm(InputError):
    """KL(q ‖ p) of these two has no closed form here."""


def kl_divergence(q: Any, p: Any) -> Tensor:
    """Return KL(q ‖ p) in nats, of the broadcast batch shape.

    Raises:
        NoClosedForm: naming both families.
    """
    return kl_per_dim(q, p).sum(-1)


def kl_per_dim(q: Any, p: Any) -> Tensor:
    """Return KL(q ‖ p) a dimension, ``[*batch, D]``, where both are products over dimensions.

    Raises:
        NoClosedForm: naming both families.
    """
    while isinstance(q, dist.Independent):
        q = q.base_dist
    while isinstance(p, dist.Independent):
        p = p.base_dist
    if not (isinstance(q, dist.Normal) and isinstance(p, dist.Normal)):
        raise NoClosedForm(f"no closed form of KL({type(q).__name__} ‖ {type(p).__name__})")
    return kl_diagonal_normal(q.loc, q.scale, p.loc, p.scale)


def kl_diagonal_normal(
    loc: Tensor, scale: Tensor, prior_loc: Tensor, prior_scale: Tensor
) -> Tensor:
    """½ ((σ/s)² + ((μ − m)/s)² − 1) − log(σ/s), a dimension."""
    ratio = scale / prior_scale
    return 0.5 * (ratio**2 + ((loc - prior_loc) / prior_scale) ** 2 - 1) - ratio.log()
