"""log p(x) by adaptive quadrature, for programs of one or two real latent dimensions."""

__all__ = [
    "log_evidence_by_quadrature",
    "Evidence",
    "plane_of",
]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.evaluation._cubature import Integral, check_tolerance, integrate
from pyro_vae.evaluation.latent_space import (
    LatentSpace,
    check_function,
    draws_of,
    in_double,
    latent_space,
    log_terms,
)
from pyro_vae.execution import Program
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.seeding import derive_seed, forked

MAX_DIM = 2
DATA_BLOCK = 100


@dataclass(frozen=True)
class Evidence:
    """log p(x) and the moments of p(z|x) by quadrature, a datum, float64."""

    log_px: Tensor
    """log ∫ p(x, z) dz, ``[B]``, in nats."""
    error: Tensor
    """The rule's own estimate of what it misses, ``[B]``, in nats; see ``integrate``."""
    converged: Tensor
    """Whether ``error`` is below the tolerance, boolean ``[B]``."""
    mean: Tensor
    """E[z|x], ``[B, D]``; sites in the model's order, each flattened."""
    covariance: Tensor
    """Cov[z|x], ``[B, D, D]``. It and the mean are by-products, without errors of their own."""
    evaluations: Tensor
    """The number of z at which the model was evaluated, ``[B]``."""


@torch.no_grad()
def log_evidence_by_quadrature(
    model: Program,
    x: Tensor,
    *,
    tolerance: float = 1e-3,
    max_evaluations: int = 200_000,
    chunk_size: int | None = None,
    seed: int = 0,
    double: bool = True,
) -> Evidence:
    """Return log p(x) = log ∫ p(x, z) dz of every datum, with an error, and the moments of p(z|x).

    For models whose latents have together one or two real dimensions: one site, or two
    scalar ones. Discrete latents that are enumerated in parallel are summed out. No guide
    is asked: the first cells cover all of space, by the prior's mass; see ``integrate``.

    Arguments:
        model: a Pyro program of ``x`` with latents inside ``pyro.plate("data", B, dim=-1)``.
        x: ``[B, *event_shape]``, on the program's device.
        tolerance: of ``error``, in nats.
        max_evaluations: how many z a datum may cost; then it has not converged.
        chunk_size: how many z the model evaluates at once; None is 3,200 on a CPU and
            2¹⁸ elsewhere.
        seed: of the prior's draws that place the first cells.
        double: whether a module is copied and evaluated in float64. float32 rounds the
            log-likelihood of 784 pixels by about 10⁻⁴ nats; the errors include what it may
            cost. Plain functions run as they are.

    Raises:
        InputError: other than one or two latent dimensions; a latent that is discrete and
            not enumerated, or not over all reals; log p(x, z) is NaN or +∞, or not the same
            at each call with one z, as with dropout or batch norm in training mode.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", x.shape[0], dim=-1):
        ...         z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> result = log_evidence_by_quadrature(model, torch.zeros(1).double())
        >>> result.log_px  # −½ log 4π
        tensor([-1.2655], dtype=torch.float64)
    """
    check_data(x, 1)
    check_tolerance(tolerance, max_evaluations)
    if double:
        (model,), x = in_double((model,), x)
    parts = []
    with own_parameters(model), forked(x.device):
        for i, block in enumerate(x.split(DATA_BLOCK)):
            space = plane_of(model, block)
            terms = log_terms(model, block, space)
            check_function(terms, block, space)

            def joint(z: Tensor, data: Tensor, terms: Any = terms) -> tuple[Tensor, Tensor]:
                return terms(z, data).log_joint, _powers(z)

            parts.append(
                integrate(
                    joint,
                    [draws_of(model, "model", block, space, derive_seed(seed, "quadrature", i))],
                    tolerance=tolerance,
                    max_evaluations=max_evaluations,
                    chunk_size=chunk_size,
                    controlled=False,
                    dtype=space.dtype,
                )
            )
    columns = [torch.cat([getattr(p, name) for p in parts]) for name in Integral.__annotations__]
    log_px, error, moments, _, converged, evaluations = columns
    return Evidence(log_px, error, converged, *_mean_and_covariance(moments), evaluations)


def plane_of(model: Program, x: Tensor) -> LatentSpace:
    """Return the space of a model's latents, one or two real dimensions together.

    Raises:
        InputError: they are more or none, discrete, or not over all reals.
    """
    space = latent_space(model, x)
    for name, transform in space.transforms.items():
        raise InputError(
            f"latent site {name!r} has the support {transform.codomain}, expected all reals; draw "
            "a real latent and transform it inside the model"
        )
    if not 1 <= space.dim <= MAX_DIM:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in space.shapes.items())
        raise InputError(
            f"quadrature takes one or two latent dimensions, got {space.dim} ({found}); "
            "use log_likelihood"
        )
    return space


def _powers(z: Tensor) -> Tensor:
    """z and z zᵀ, ``[P, C, D + D²]``."""
    return torch.cat([z, (z.unsqueeze(-1) * z.unsqueeze(-2)).flatten(start_dim=-2)], dim=-1)


def _mean_and_covariance(moments: Tensor) -> tuple[Tensor, Tensor]:
    D = 1 if moments.shape[-1] == 2 else 2
    mean = moments[:, :D]
    second = moments[:, D:].reshape(-1, D, D)
    return mean, second - mean.unsqueeze(-1) * mean.unsqueeze(-2)
