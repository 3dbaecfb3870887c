"""Sticking the landing: the ELBO with the path derivative."""

__all__ = ["StickingTheLanding"]

from typing import Any

import torch
from torch import Tensor

from pyro_vae.objectives._path import path_estimate
from pyro_vae.objectives._per_datum import Call, Estimate, PerDatum


class StickingTheLanding(PerDatum):
    """The ELBO, its gradient through z alone: without noise where q is the posterior.

    (1/K) Σ_k log p(x, z_k) − log q(z_k|x),  z_k ~ q(z|x)

    The guide's parameters inside log q are held fixed, which drops the score
    ∂log q/∂φ, zero on average. Where q(z|x) = p(z|x) every draw has gradient 0 for
    the guide. Densities of later latents stay live in the earlier ones (hierarchical
    guides), and nothing is held fixed in a prior that uses q (vamp).

    References:
        Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational
        Inference (Roeder et al., 2017), equation 8
        https://arxiv.org/abs/1703.09194

    Arguments:
        num_particles: K.

    Raises:
        InputError: when differentiated with a guide that is not reparameterized, or whose
            density is known at its own draws only.
    """

    def estimate(self, call: Call) -> Estimate:
        """Return the ELBO of each datum and the surrogate of its path derivative."""
        return path_estimate(call, _mean, _uniform)


def _mean(log_weight: Tensor) -> Tensor:
    return log_weight.mean(0)


def _uniform(log_weight: Tensor, betas: list[Any]) -> tuple[Tensor, None]:
    return torch.full_like(log_weight, 1 / log_weight.shape[0]), None
