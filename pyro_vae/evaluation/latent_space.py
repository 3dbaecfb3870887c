"""The latents of any program as one real vector, and log p(x, z), log q(z|x) as functions of it."""

__all__ = [
    "LatentSpace",
    "Terms",
    "latent_space",
    "log_terms",
    "log_guide",
    "draws_of",
    "in_double",
    "check_function",
]

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, NamedTuple

import torch
from pyro.poutine import infer_config
from torch import Tensor, nn
from torch.distributions import Transform, VonMises, biject_to, constraints, identity_transform
from torch.distributions.constraints import MixtureSameFamilyConstraint

from pyro_vae.errors import InputError
from pyro_vae.evaluation._chunks import default_chunk
from pyro_vae.execution import Execution, Program, check_no_points, execute
from pyro_vae.seeding import seeded

NUM_DRAWS = 2000
UNDERFLOWN = -700.0  # exp of it is 0 beside any density that a float64 holds


@dataclass(frozen=True)
class LatentSpace:
    """The latents of a program as one vector z ``[*, D]`` over all reals.

    A latent with another support, positive or on a simplex, is z = T(u) of a real u by
    ``torch.distributions.biject_to``: the vector holds u, whose density is p(T(u)) |∂T/∂u|.
    """

    shapes: dict[str, torch.Size]
    """site → the shape of its part of the vector, in the model's order."""
    dtype: torch.dtype
    transforms: dict[str, Transform]
    """site → T; only of those that are not real themselves."""

    @property
    def dim(self) -> int:
        """D."""
        return sum(shape.numel() for shape in self.shapes.values())

    def values(self, z: Tensor) -> dict[str, Tensor]:
        """Return site → ``[P, C, *event]`` of z ``[P, C, D]``."""
        return {
            name: self.transforms.get(name, identity_transform)(part)
            for name, part in self._parts(z).items()
        }

    def log_det(self, z: Tensor) -> Tensor | float:
        """log |∂T/∂z| ``[P, C]`` of z ``[P, C, D]``; 0 where all latents are real."""
        if not self.transforms:
            return 0.0
        parts, total = self._parts(z), z.new_zeros(z.shape[:-1])
        for name, transform in self.transforms.items():
            part = parts[name]
            total = total + transform.log_abs_det_jacobian(part, transform(part))
        return total

    def _parts(self, z: Tensor) -> dict[str, Tensor]:
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
        parts = []
        for name, shape in self.shapes.items():
            part = self.transforms.get(name, identity_transform).inv(values[name])
            parts.append(part.reshape(*_lead(part, shape), -1))
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
    """Return the space of the model's latents.

    Raises:
        InputError: there is none, one is discrete and not summed out, or its support is
            no smooth image of the reals.
    """
    with seeded(0, x.device):
        # Two draws: a support that moves with another latent is seen to differ between them.
        run = execute(model, "model", 2, (x,), num_data=x.shape[0])
    if not run.observed:
        raise InputError("the model has no observed site; expected pyro.sample('x', …, obs=x)")
    if not run.latent:
        raise InputError("the model has no latent that is drawn; expected pyro.sample('z', …)")
    transforms = {name: _to_support(name, site["fn"]) for name, site in run.latent.items()}
    shapes = {
        name: torch.Size(transforms[name].inverse_shape(site["fn"].event_shape))
        for name, site in run.latent.items()
    }
    # That of the programs' own draws, whatever that of x is.
    dtype = reduce(torch.promote_types, (site["value"].dtype for site in run.latent.values()))
    constrained = {n: t for n, t in transforms.items() if t is not identity_transform}
    return LatentSpace(shapes, dtype, constrained)


def draws_of(
    program: Program, kind: str, x: Tensor, space: LatentSpace, seed: int, num: int = NUM_DRAWS
) -> Tensor:
    """Return draws of the prior or the guide, ``[N, B, D]``, for each datum.

    Latents that densities sum out are drawn as well: enumerated, they would give a z for each
    of their values, whatever its probability.
    """
    unmarked: Any = {"enumerate": None}
    drawn = infer_config(program, lambda site: unmarked) if kind == "model" else program
    each = max(1, default_chunk(x.device) // len(x))
    parts = []
    with seeded(seed, x.device):
        for start in range(0, num, each):
            run = execute(drawn, kind, min(each, num - start), (x,), num_data=x.shape[0])
            values = run.values
            if kind == "model":
                values = {name: values[name] for name in space.shapes}
            parts.append(space.vector(values))
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
        log_det = space.log_det(z)
        joint, prior = joint + log_det, prior + log_det
        # Where the prior has underflown a decoder may overflow: nothing lies there.
        joint = torch.where(joint.isnan() & (prior < UNDERFLOWN), -math.inf, joint)
        _check_finite("p(x, z)", joint, z, data)
        return Terms(joint, prior)

    return terms


def log_guide(
    guide: Program, x: Tensor, space: LatentSpace, what: str = "quadrature"
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (z ``[P, C, D]``, data ``[C]``) → log q(z|x), ``[P, C]``.

    Raises:
        InputError: the guide has no density at any z, or other latents than the model.
    """
    if not getattr(guide, "has_density", True):
        raise InputError(
            f"{what} needs log q(z|x) at any z, which this guide does not have; "
            "use a guide that has a density"
        )

    def log_prob(z: Tensor, data: Tensor) -> Tensor:
        values = space.values(z)
        run = execute(guide, "guide", len(z), (x[data],), values=values, num_data=len(data))
        check_no_points(run)
        q = _total(run, run.latent | run.observed) + space.log_det(z)  # a pyro.factor counts
        _check_finite("q(z|x)", q, z, data)
        return q

    return log_prob


def _total(run: Execution, sites: dict[str, Any]) -> Tensor:
    return run.total([run.log_prob(site) for site in sites.values()]).double()


def _lead(value: Tensor, shape: torch.Size) -> torch.Size:
    return value.shape[: value.dim() - len(shape)]


def _to_support(name: str, fn: Any) -> Transform:
    """The map from the reals to a site's support, the identity where it is all reals."""
    support = fn.support
    if isinstance(support, MixtureSameFamilyConstraint):
        support = support.base_constraint
    if support.is_discrete:
        raise InputError(
            f"latent site {name!r} is discrete; sum it out: infer={{'enumerate': 'parallel'}}"
        )
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if _is_circular(fn):
        # Its support says the reals, over which a density with period 2π integrates to ∞.
        raise InputError(
            f"latent site {name!r} is an angle; draw a real latent and map it inside the model"
        )
    if base in (constraints.real, constraints.real_vector):
        return identity_transform
    try:
        return biject_to(_fixed(name, support, len(fn.event_shape)))
    except NotImplementedError:
        raise InputError(
            f"latent site {name!r} has the support {support}, to which no map from the reals is "
            "known; draw a real latent and transform it inside the model"
        ) from None


def _fixed(name: str, support: Any, event_dim: int) -> Any:
    """The support of every datum and draw, its bounds without their dimensions."""
    if isinstance(support, constraints.independent):
        base = _fixed(name, support.base_constraint, event_dim)
        return constraints.independent(base, support.reinterpreted_batch_ndims)
    fixed = copy.copy(support)
    for key, bound in vars(support).items():
        if isinstance(bound, Tensor) and bound.dim() > event_dim:
            first = bound.flatten(end_dim=bound.dim() - event_dim - 1)[0]
            if not bool((bound == first).all()):
                raise InputError(
                    f"latent site {name!r} has a support that varies with the datum or with "
                    "another latent; draw a real latent and transform it inside the model"
                )
            setattr(fixed, key, first)
    return fixed


def _is_circular(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, VonMises)


def check_function(terms: Callable[[Tensor, Tensor], Terms], x: Tensor, space: LatentSpace) -> None:
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
