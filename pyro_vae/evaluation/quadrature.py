"""log p(x) by adaptive quadrature, for programs of one or two real latent dimensions."""

__all__ = [
    "log_evidence_by_quadrature",
    "Evidence",
    "LatentSpace",
    "latent_space",
    "draws_of",
    "log_terms",
    "log_guide",
    "in_double",
]

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.errors import InputError
from pyro_vae.evaluation._cubature import CPU_CHUNK, Integral, check_tolerance, integrate
from pyro_vae.execution import Execution, Program, check_no_points, execute
from pyro_vae.log_weights import check_data, own_parameters
from pyro_vae.seeding import derive_seed, forked, seeded

MAX_DIM = 2
NUM_DRAWS = 2000  # of the prior: they place the first cells
DATA_BLOCK = 100
UNDERFLOWN = -700.0  # exp of it is 0 beside any density that a float64 holds


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
            space = latent_space(model, block)
            terms = log_terms(model, block, space)
            _check_function(terms, block, space)

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


@dataclass(frozen=True)
class LatentSpace:
    """The latents of a program as one vector z ``[*, D]``."""

    shapes: dict[str, torch.Size]
    """site → event shape, in the model's order."""
    dtype: torch.dtype

    @property
    def dim(self) -> int:
        """D."""
        return sum(shape.numel() for shape in self.shapes.values())

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """Return site → ``[P, C, *event]`` of z ``[P, C, D]``."""
        parts = z.to(self.dtype).split([s.numel() for s in self.shapes.values()], dim=-1)
        pairs = zip(self.shapes.items(), parts, strict=True)
        return {name: part.reshape(*z.shape[:-1], *shape) for (name, shape), part in pairs}

    def vector(self, values: dict[str, Tensor]) -> Tensor:
        """Return z ``[N, B, D]``, float64, of site → ``[…, N, B, *event]``.

        Raises:
            InputError: the sites are others.
        """
        if values.keys() != self.shapes.keys():
            raise InputError(
                f"the guide draws {', '.join(values)} and the model {', '.join(self.shapes)}; "
                "take two that go together"
            )
        parts = [
            values[name].reshape(*_lead(values[name], shape), -1)
            for name, shape in self.shapes.items()
        ]
        lead = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        z = torch.cat([part.expand(*lead, -1) for part in parts], dim=-1)
        return z.flatten(end_dim=-3).double()


class Terms(NamedTuple):
    """log p(x, z) and its parts, each ``[P, C]``, float64."""

    log_joint: Tensor
    log_prior: Tensor

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x|z) = log p(x, z) − log p(z); −∞ where p(z) is 0."""
        known = self.log_prior > -math.inf
        return torch.where(known, self.log_joint - self.log_prior, -math.inf)


def in_double(programs: tuple[Program, ...], x: Tensor) -> tuple[tuple[Program, ...], Tensor]:
    """Return float64 copies of modules, and x; unchanged where any is a plain function.

    They are copied together: what one holds of another (a vamp prior, the guide's
    posterior) stays shared.
    """
    if not all(isinstance(program, nn.Module) for program in programs):
        return programs, x
    memo: dict[int, Any] = {}
    copies = copy.deepcopy(programs, memo)
    for part in list(memo.values()):
        if isinstance(part, nn.Module):
            part.double()
    return copies, x.double()


def latent_space(model: Program, x: Tensor) -> LatentSpace:
    """Return the model's latents, one or two real dimensions together.

    Raises:
        InputError: they are more or none, discrete, or not over all reals.
    """
    with seeded(0, x.device):
        run = execute(model, "model", 1, (x,), num_data=x.shape[0])
    if not run.observed:
        raise InputError("the model has no observed site; expected pyro.sample('x', …, obs=x)")
    for name, site in run.latent.items():
        _check_real(name, site["fn"])
    shapes = {name: site["fn"].event_shape for name, site in run.latent.items()}
    space = LatentSpace(shapes, x.dtype if x.is_floating_point() else torch.get_default_dtype())
    if not 1 <= space.dim <= MAX_DIM:
        found = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()) or "no latent"
        raise InputError(
            f"quadrature takes one or two latent dimensions, got {space.dim} ({found}); "
            "use log_likelihood"
        )
    return space


def draws_of(
    program: Program, kind: str, x: Tensor, space: LatentSpace, seed: int, num: int = NUM_DRAWS
) -> Tensor:
    """Return draws of the prior or the guide, ``[N, B, D]``, for each datum."""
    each = max(1, (CPU_CHUNK if x.device.type == "cpu" else 2**18) // len(x))
    parts = []
    with seeded(seed, x.device):
        for start in range(0, num, each):
            run = execute(program, kind, min(each, num - start), (x,), num_data=x.shape[0])
            parts.append(space.vector(run.values))
    return torch.cat(parts)


def log_terms(model: Program, x: Tensor, space: LatentSpace) -> Callable[[Tensor, Tensor], Terms]:
    """Return the function (z ``[P, C, D]``, data ``[C]``) → log p(x, z) and log p(z)."""

    def terms(z: Tensor, data: Tensor) -> Terms:
        run = execute(
            model, "model", len(z), (x[data],), values=space.values(z), num_data=len(data)
        )
        joint = _total(run, run.latent | run.enumerated | run.observed)
        # Σ_c p(z, c): the latents that are summed out may stand before z or after it.
        prior = _total(run, run.latent | run.enumerated)
        # Where the prior has underflown a decoder may overflow: nothing lies there.
        joint = torch.where(joint.isnan() & (prior < UNDERFLOWN), -math.inf, joint)
        _check_finite("p(x, z)", joint, z, data)
        return Terms(joint, prior)

    return terms


def log_guide(guide: Program, x: Tensor, space: LatentSpace) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (z ``[P, C, D]``, data ``[C]``) → log q(z|x), ``[P, C]``.

    Raises:
        InputError: the guide has no density at any z, or other latents than the model.
    """
    if not getattr(guide, "has_density", True):
        raise InputError(
            "quadrature needs log q(z|x) at any z, which this guide does not have; "
            "use a guide that has a density"
        )

    def log_prob(z: Tensor, data: Tensor) -> Tensor:
        values = space.values(z)
        run = execute(guide, "guide", len(z), (x[data],), values=values, num_data=len(data))
        check_no_points(run)
        q = _total(run, run.latent)
        _check_finite("q(z|x)", q, z, data)
        return q

    return log_prob


def _total(run: Execution, sites: dict[str, Any]) -> Tensor:
    return run.total([run.log_prob(site) for site in sites.values()]).double()


def _lead(value: Tensor, shape: torch.Size) -> torch.Size:
    return value.shape[: value.dim() - len(shape)]


def _check_real(name: str, fn: Any) -> None:
    support = getattr(fn.support, "base_constraint", fn.support)
    if support.is_discrete:
        raise InputError(
            f"latent site {name!r} is discrete; sum it out: infer={{'enumerate': 'parallel'}}"
        )
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support not in (constraints.real, constraints.real_vector):
        raise InputError(
            f"latent site {name!r} has the support {support}, expected all reals; draw a real "
            "latent and transform it inside the model"
        )


def _check_function(
    terms: Callable[[Tensor, Tensor], Terms], x: Tensor, space: LatentSpace
) -> None:
    """Refuse a log p(x, z) that varies from call to call, or with the z evaluated beside it."""
    data = torch.arange(len(x), device=x.device)
    z = torch.zeros(1, len(x), space.dim, dtype=torch.float64, device=x.device)
    once = terms(z, data).log_joint[0]
    again = terms(torch.cat([z, z + 1]), data).log_joint[0]
    rounding = torch.finfo(space.dtype).eps ** 0.5
    if not torch.allclose(once, again, rtol=rounding, atol=rounding):
        raise InputError(
            "log p(x, z) is not the same at each call with one z; expected a model that draws "
            "nothing beside its latents and takes each z alone: put dropout and batch norm into "
            "evaluation mode by .eval()"
        )


def _check_finite(what: str, values: Tensor, z: Tensor, data: Tensor) -> None:
    bad = values.isnan() | (values == math.inf)
    if bool(bad.any()):
        p, c = (int(i) for i in bad.nonzero()[0])
        raise InputError(
            f"log {what} is {float(values[p, c])} at datum {int(data[c])}, z = {z[p, c].tolist()}; "
            "expected a finite number or −∞"
        )


def _powers(z: Tensor) -> Tensor:
    """z and z zᵀ, ``[P, C, D + D²]``."""
    return torch.cat([z, (z.unsqueeze(-1) * z.unsqueeze(-2)).flatten(start_dim=-2)], dim=-1)


def _mean_and_covariance(moments: Tensor) -> tuple[Tensor, Tensor]:
    D = 1 if moments.shape[-1] == 2 else 2
    mean = moments[:, :D]
    second = moments[:, D:].reshape(-1, D, D)
    return mean, second - mean.unsqueeze(-1) * mean.unsqueeze(-2)
