"""What a prior, a likelihood, a guide and a network body must offer, and the checks of it."""

__all__ = [
    "MEASURES",
    "Facts",
    "Prior",
    "Likelihood",
    "Guide",
    "check_model",
    "check_prior",
    "check_likelihood",
    "check_guide",
    "check_measure",
    "check_learned_scale",
]

from dataclasses import dataclass
from math import isfinite, prod
from typing import Any, Protocol, runtime_checkable

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.errors import InputError
from pyro_vae.specs import parse_spec

MEASURES = ("binary", "levels", "counts", "continuous")


@dataclass(frozen=True)
class Facts:
    """What the components need to know of a data set, without the data.

    ``event_shape`` is the shape of one datum; ``measure`` one of "binary",
    "levels", "counts" (masses) or "continuous" (a density); ``num_levels`` is n
    for levels 0 … n−1 and for their dequantized values (level + u)/n;
    ``data_loc`` and ``data_scale`` are the mean of real data over all dimensions and
    their standard deviation about the mean of each, 0 and 1 for all other data;
    ``constant_dims`` counts the dimensions that take one value in all training
    data, and ``discrete`` tells whether continuous values repeat as levels do.
    """

    event_shape: tuple[int, ...]
    measure: str
    num_levels: int | None = None
    dequantized: bool = False
    ordered: bool = False
    constant_dims: int = 0
    discrete: bool = False
    data_loc: float = 0.0
    data_scale: float = 1.0

    @property
    def is_valid(self) -> bool:
        """Whether every field is of its kind: one to three positive sizes, n ≥ 2, flags."""
        sizes = self.event_shape
        flags = (self.dequantized, self.ordered, self.discrete)
        return (
            1 <= len(sizes) <= 3
            and all(type(size) is int and size > 0 for size in sizes)
            and self.measure in MEASURES
            and (self.num_levels is None or (type(self.num_levels) is int and self.num_levels > 1))
            and all(type(flag) is bool for flag in flags)
            and type(self.constant_dims) is int
            and all(map(isfinite, (self.data_loc, self.data_scale)))
            and self.data_scale > 0
        )

    @property
    def num_dims(self) -> int:
        """D, the number of dimensions of one datum."""
        return prod(self.event_shape)

    @property
    def is_real(self) -> bool:
        """Whether the data are real numbers, not dequantized levels."""
        return self.measure == "continuous" and not self.dequantized

    @property
    def unit(self) -> float:
        """The unit of one step in x: n − 1 for levels, the deviation of real data, else 1."""
        if self.measure == "levels" and self.num_levels:
            return float(self.num_levels - 1)
        return self.data_scale


@runtime_checkable
class Prior(Protocol):
    """p(z): an ``nn.Module`` whose ``forward()`` is a distribution over one z."""

    def __call__(self) -> TorchDistribution:
        """Return p(z), ``batch_shape ()`` and ``event_shape (latent_dim,)``."""


@runtime_checkable
class Likelihood(Protocol):
    """p(x | params): an ``nn.Module`` over the decoder's outputs.

    It may have ``learns_scale`` (true where some scale is learned, so that data
    need be without atoms) and ``params_at(mean)``, the parameters of a given mean.
    """

    params_per_dim: int
    support: Any
    measure: str

    def __call__(self, params: Tensor) -> TorchDistribution:
        """Map ``params`` ``[*, *event_shape, params_per_dim]`` to a distribution over x.

        Its ``batch_shape + event_shape`` is ``[*, *event_shape]``; dimensions
        left in the batch are independent.
        """


@runtime_checkable
class Guide(Protocol):
    """q(z | x): a Pyro program of ``x`` ``[B, *event_shape]``.

    ``has_density`` tells whether log q is known at any z, not only at its own
    draws. A guide with ``has_bound = False`` has no ELBO: it is a point. Where it
    has ``outputs(x)`` ``[B, P]``, all of q(z|x) that depends on x, and ``distribution(outputs)``,
    of which ``posterior`` is made, the best q of its family can be found for each datum.
    """

    has_density: bool

    def posterior(self, x: Tensor) -> TorchDistribution:
        """Return q(z | x), ``batch_shape [B]`` and ``event_shape (latent_dim,)``."""

    def __call__(self, x: Tensor) -> Any:
        """Sample the latent sites inside ``pyro.plate("data", B, dim=-1)``."""


def check_model(model: Any, spec: str) -> None:
    """Refuse a model without ``prior``, ``likelihood`` or ``decode``.

    Raises:
        InputError: the missing attribute.
    """
    for name in ("prior", "likelihood", "decode"):
        if not hasattr(model, name):
            raise InputError(f"model {spec} has no attribute {name!r}")


def check_prior(prior: Any, latent_dim: int, spec: str) -> None:
    """Refuse a prior whose ``forward()`` is not a distribution over one z.

    Raises:
        InputError: what it is instead.
    """
    _check_module(prior, "prior", spec)
    p = prior()
    _check_distribution(p, f"prior {spec}: forward()")
    got = (tuple(p.batch_shape), tuple(p.event_shape))
    if got != ((), (latent_dim,)):
        raise InputError(
            f"prior {spec}: expected batch_shape () and event_shape ({latent_dim},), "
            f"got {got[0]} and {got[1]}; declare dimensions with .to_event"
        )


def check_likelihood(likelihood: Any, facts: Facts, spec: str) -> None:
    """Refuse a likelihood that lacks an attribute or misshapes its distribution.

    Raises:
        InputError: the missing attribute, or expected and actual shape.
    """
    _check_module(likelihood, "likelihood", spec)
    for name in ("params_per_dim", "support", "measure"):
        if not hasattr(likelihood, name):
            raise InputError(f"likelihood {spec} has no attribute {name!r}")
    if likelihood.measure not in MEASURES:
        raise InputError(
            f"likelihood {spec}: measure must be one of {', '.join(MEASURES)}, "
            f"got {likelihood.measure!r}"
        )
    anchor = next(likelihood.parameters(), torch.zeros(()))
    p = likelihood(anchor.new_zeros(2, *facts.event_shape, likelihood.params_per_dim))
    _check_distribution(p, f"likelihood {spec}: forward()")
    got, expected = tuple(p.shape()), (2, *facts.event_shape)
    if got != expected:
        raise InputError(
            f"likelihood {spec}: expected a distribution over x of shape {expected}, got {got}"
        )


def check_guide(guide: Any, spec: str) -> None:
    """Refuse a guide without ``posterior`` or ``has_density``.

    Raises:
        InputError: the missing attribute.
    """
    for name in ("posterior", "has_density"):
        if not hasattr(guide, name):
            raise InputError(f"guide {spec} has no attribute {name!r}")


def _check_module(component: Any, kind: str, spec: str) -> None:
    if not isinstance(component, nn.Module):
        raise InputError(
            f"{kind} {spec}: expected an nn.Module, got {type(component).__name__}; derive from it"
        )


def _check_distribution(p: Any, what: str) -> None:
    if not isinstance(p, dist.Distribution):
        kind = f"{type(p).__module__}.{type(p).__qualname__}"
        raise InputError(f"{what} must return a distribution of pyro.distributions, got {kind}")


_FIX = {
    "binary": "values=binary",
    "levels": "values=levels",
    "continuous": "values=continuous",
    "counts": "values=counts",
}


def check_measure(likelihood: Any, facts: Facts, likelihood_spec: str, data_spec: str) -> None:
    """Refuse a likelihood of another measure than the data's, naming the fix.

    Raises:
        InputError: with the data spec to use instead.
    """
    if likelihood.measure != facts.measure:
        raise InputError(
            f"likelihood {likelihood_spec} needs {likelihood.measure} data, {data_spec} is "
            f"{facts.measure}; {_fix(likelihood, facts, data_spec)}, or use another likelihood"
        )


def check_learned_scale(
    likelihood: Any, facts: Facts, likelihood_spec: str, data_spec: str
) -> None:
    """Refuse a learned scale on discrete or constant dimensions: its likelihood has no maximum.

    Raises:
        InputError: with the values or the scale to use instead.
    """
    if getattr(likelihood, "learns_scale", False) and not facts.dequantized:
        if facts.discrete:
            raise InputError(
                f"likelihood {likelihood_spec} learns a scale and {data_spec} takes discrete "
                "values, so its likelihood has no maximum; give integer levels with "
                "values=continuous (dequantized), or use a likelihood of fixed scale"
            )
        if facts.constant_dims:
            raise InputError(
                f"likelihood {likelihood_spec} learns a scale and {facts.constant_dims} of "
                f"{facts.num_dims} dimensions of {data_spec} are constant, so its likelihood has "
                "no maximum; drop them, or use a likelihood of fixed scale"
            )


def _fix(likelihood: Any, facts: Facts, data_spec: str) -> str:
    """How to get data of the likelihood's measure."""
    wanted, spec = _FIX[likelihood.measure], parse_spec(data_spec)
    # Reals, and data that hold only 0 and 1, have no levels to make other values from.
    if facts.measure == "continuous" and not facts.dequantized:
        whole = "whole numbers" if likelihood.measure == "counts" else "whole grey levels"
        return f"give {whole} and {wanted}"
    binary = facts.measure == "binary" and spec.arguments.get("binarize") == "none"
    if binary and likelihood.measure != "counts":
        return f"give grey levels and {wanted}"
    return f"use data with {wanted}, such as '{spec.name}({wanted})'"
