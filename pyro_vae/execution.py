"""Runs Pyro programs under K particles, and reads the log-density of each site a datum."""

__all__ = ["Execution", "Program", "execute", "check_same_latents", "check_no_points"]

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.capture import same_values
from pyro_vae.errors import InputError

Program = Callable[..., Any]
Site = dict[str, Any]
PARTICLES = "num_particles"


@dataclass(frozen=True)
class Execution:
    """One run of a program under K particles: its sample sites that carry a density.

    Discrete latents of the model marked ``infer={"enumerate": "parallel"}`` and not
    drawn by the guide are summed out; they stand in ``enumerated``.
    """

    program: str
    """``model`` or ``guide``, as errors call it."""
    latent: dict[str, Site]
    enumerated: dict[str, Site]
    observed: dict[str, Site]
    subsamples: dict[str, Tensor]
    """Indices of the program's own plates."""
    num_samples: int
    num_data: int

    @property
    def values(self) -> dict[str, Tensor]:
        """The latents, site → ``[K, B, …]``."""
        return {name: site["value"] for name, site in self.latent.items()}

    def log_prob(self, site: Site, value: Tensor | None = None) -> Tensor:
        """Return a site's log-density without any scale, masked, broadcastable to ``[K, B]``.

        In an execution with enumerated sites it may have dimensions to the left.
        """
        value = site["value"] if value is None else value
        log_prob: Tensor = site["fn"].log_prob(value, *site["args"], **site["kwargs"])
        # Σ_c p(c) = 1 for a masked datum too: its likelihood is masked, p(c) is not.
        mask = None if site["name"] in self.enumerated else site["mask"]
        log_prob = scale_and_mask(log_prob, 1.0, mask)
        shape = (self.num_samples, self.num_data)
        fits = all(
            got in (1, expected)
            for got, expected in zip(reversed(log_prob.shape), reversed(shape), strict=False)
        )
        if not fits or (log_prob.dim() > 2 and not self.enumerated):
            raise InputError(
                f"{_kind(site)} site {site['name']!r} of the {self.program}: expected a "
                f"log-density of shape {list(shape)}, got {list(log_prob.shape)}; declare event "
                "dimensions by .to_event"
            )
        return log_prob

    def total(self, log_probs: list[Tensor]) -> Tensor:
        """Σ over sites, ``[K, B]``, enumerated dimensions summed out of exp(Σ)."""
        like = log_probs[0] if log_probs else torch.zeros(())
        # Without any site, a guide that draws nothing, the one column serves all data.
        plain = like.new_zeros(self.num_samples, self.num_data or 1)
        for log_prob in log_probs:
            if log_prob.dim() <= 2:
                plain = plain + log_prob
        joint = [log_prob for log_prob in log_probs if log_prob.dim() > 2]
        if not joint:
            return plain
        summed = sum(joint[1:], joint[0])
        return plain + summed.flatten(end_dim=-3).logsumexp(0)

    def likelihood_and_prior(self, latent: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) and log p(z), each ``[K, B]``, enumerated latents c summed out.

        log p(x|z) = log Σ_c p(c) p(x|z, c); where a latent depends on c, as in a mixture,
        log p(z) = log Σ_c p(c) p(z|c) and log p(x|z) = log Σ_c p(c) p(z|c) p(x|z, c) − log p(z).

        Arguments:
            latent: the log-densities of the latent sites.
        """
        summed = [self.log_prob(site) for site in self.enumerated.values()]
        rest = [*summed, *(self.log_prob(site) for site in self.observed.values())]
        if all(log_prob.dim() <= 2 for log_prob in latent):
            return self.total(rest), self.total(latent)
        log_prior = self.total([*summed, *latent])
        return self.total([*rest, *latent]) - log_prior, log_prior


def execute(
    program: Program,
    kind: str,
    num_samples: int,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    values: dict[str, Tensor] | None = None,
    num_data: int | None = None,
) -> Execution:
    """Run a program under a plate of K particles to the left of the data plate.

    Arguments:
        program: a Pyro program of ``args`` and ``kwargs``.
        kind: ``model`` or ``guide``.
        num_samples: K.
        values: sites that take these values, ``[K, B, …]``, instead of being drawn;
            indices of subsampled plates among them.
        num_data: the size that the data plate must have; None takes what it has.

    Raises:
        InputError: a site that stands outside the data plate, or a plate at dim −2.
    """
    run = _under_particles(program, num_samples)
    if values is not None:
        run = poutine.replay(run, trace=_as_trace(values))
    if kind == "model":
        run = poutine.enum(run, first_available_dim=-3)
    trace = _trace(run, args, kwargs or {})
    sites = dict(_sites(trace))
    for site in sites.values():
        num_data = _check_plate(site, kind, num_data)
    hidden = {name: site for name, site in sites.items() if not site["is_observed"]}
    enumerated = {n: s for n, s in hidden.items() if "_enumerate_dim" in s["infer"]}
    for name, site in enumerated.items():
        if site["infer"].get("num_samples") is not None:
            raise InputError(
                f"latent site {name!r} of the {kind} is marked for enumeration by num_samples "
                "draws, which sum to no probability; leave num_samples out"
            )
    subsamples = {
        name: site["value"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site_is_subsample(site) and name != PARTICLES
    }
    return Execution(
        program=kind,
        latent={name: site for name, site in hidden.items() if name not in enumerated},
        enumerated=enumerated,
        observed={name: site for name, site in sites.items() if site["is_observed"]},
        subsamples=subsamples,
        num_samples=num_samples,
        num_data=num_data or 0,
    )


def check_same_latents(model: Execution, guide_latents: dict[str, Any]) -> None:
    """Refuse a latent that is in only one of the programs, and a model that observes nothing.

    Raises:
        InputError: with the names on both sides.
    """
    for name in sorted(model.latent.keys() ^ guide_latents.keys()):
        place, other = ("model", "guide") if name in model.latent else ("guide", "model")
        fix = "take two that go together"
        if place == "model" and getattr(model.latent[name]["fn"], "has_enumerate_support", False):
            fix = "draw it there, or sum it out here: infer={'enumerate': 'parallel'}"
        raise InputError(
            f"latent site {name!r} is in the {place} but not in the {other} (model: "
            f"{', '.join(model.latent)}; guide: {', '.join(guide_latents)}); {fix}"
        )
    if not model.observed:
        raise InputError("the model has no observed site; expected pyro.sample('x', …, obs=x)")


def check_no_points(guide: Execution) -> None:
    """Refuse a guide that is a point mass at some site: log p(x, z) is no bound on log p(x).

    Raises:
        InputError: with the site's name.
    """
    for name, site in (guide.latent | guide.observed).items():
        if is_point(site["fn"]):
            raise InputError(
                f"latent site {name!r} of the guide is a Delta, a point without a density: it has "
                "no ELBO, no IWAE and no KL (to train it as an autoencoder, give the guide "
                "has_bound = False and take --objective trace)"
            )


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def plate_scale(site: Site) -> float:
    """What the site's subsampled plates multiply its log-density by, N/B."""
    frames = (frame for frame in site["cond_indep_stack"] if frame.full_size is not None)
    return prod(frame.full_size / frame.size for frame in frames)


def own_scale(site: Site) -> Any:
    """The site's scale without that of its plates: β, or a ``poutine.scale``."""
    plates = plate_scale(site)
    return site["scale"] if plates == 1 else site["scale"] / plates


def same_scale(one: Any, other: Any) -> bool:
    """Whether two scales are one; a tensor, which may be annealed, is never a number."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one is other or (one.shape == other.shape and same_values(one, other))
    return not isinstance(one, Tensor) and not isinstance(other, Tensor) and bool(one == other)


def equal_everywhere(one: Any, other: Any) -> bool:
    """Whether two numbers or tensors are equal wherever they are broadcast together."""
    if one is other:
        return True
    if not isinstance(one, Tensor) and not isinstance(other, Tensor):
        return bool(one == other)
    a, b = (torch.as_tensor(each).detach() for each in (one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape:
        return same_values(one, other)
    return bool((a.double().to(b.device) == b.double()).all())


def _under_particles(program: Program, num_samples: int) -> Program:
    def run(*args: Any, **kwargs: Any) -> Any:
        with pyro.plate(PARTICLES, num_samples, dim=-2):
            return program(*args, **kwargs)

    return run


def _trace(run: Program, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Trace a run; Pyro adds a table of shapes to what is raised inside, which is no one line."""
    try:
        return poutine.trace(run).get_trace(*args, **kwargs)
    except ValueError as error:
        if isinstance(error, InputError):
            raise (error.__cause__ or error) from None
        if "collide" not in str(error):
            raise
        raise InputError(
            "a plate of the program stands at dim=-2, where samples go; beside the data plate "
            "declare dimensions as event dimensions with .to_event"
        ) from None


def _sites(trace: Any) -> Iterator[tuple[str, Site]]:
    """The sample sites that carry a density: neither plates nor deterministic values."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            if site["infer"].get("_deterministic"):
                continue
            yield name, site


def _check_plate(site: Site, program: str, num_data: int | None) -> int:
    """Return the size of the data plate that the site stands in."""
    sizes = {frame.dim: frame.size for frame in site["cond_indep_stack"]}
    size: int | None = sizes.get(-1)
    beside = [f for f in site["cond_indep_stack"] if f.vectorized and f.dim < -2]
    if beside:
        raise InputError(
            f"{_kind(site)} site {site['name']!r} of the {program}: expected no plate beside the "
            f"data plate, got {beside[0].name!r} at dim={beside[0].dim}; declare event dimensions "
            "by .to_event"
        )
    if size is None:
        raise InputError(
            f"{_kind(site)} site {site['name']!r} of the {program} stands outside the data plate "
            "and has no weight per datum; put it inside pyro.plate('data', x.shape[0], dim=-1)"
        )
    if num_data is not None and size != num_data:
        raise InputError(
            f"{_kind(site)} site {site['name']!r} of the {program} stands in a data plate of "
            f"{size}, expected {num_data}, one of all data that are weighed"
        )
    return size


def _kind(site: Site) -> str:
    return "observed" if site["is_observed"] else "latent"


def _as_trace(values: dict[str, Tensor]) -> Any:
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(
            name, name=name, type="sample", value=value, is_observed=False, infer={}, fn=None
        )
    return trace
