"""Per-datum log-weights of any (model, guide) pair: the one primitive all bounds share."""

__all__ = ["log_weights", "log_weight_terms", "LogWeights", "draw_latents", "weigh"]

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor, nn

from pyro_vae.errors import InputError

Program = Callable[[Tensor], Any]
PARTICLES = "num_particles"


class LogWeights(NamedTuple):
    """The three terms of a log-weight, each ``[num_samples, B]``, in nats."""

    log_likelihood: Tensor
    """log p(x|z), the observed sites."""
    log_prior: Tensor
    """log p(z), the model's latent sites."""
    log_guide: Tensor
    """log q(z|x), the guide's sites."""

    @property
    def log_weight(self) -> Tensor:
        """log p(x, z) − log q(z|x)."""
        return self.log_likelihood + self.log_prior - self.log_guide

    @property
    def kl(self) -> Tensor:
        """log q(z|x) − log p(z); its mean over samples is KL(q(z|x) ‖ p(z))."""
        return self.log_guide - self.log_prior


class Latents(NamedTuple):
    """Draws of the guide and their log-densities."""

    values: dict[str, Tensor]
    """site → ``[num_samples, B, …]``."""
    log_guide: Tensor
    """``[num_samples, B]``."""


def log_weights(model: Program, guide: Program, x: Tensor, num_samples: int) -> Tensor:
    """Return log p(x, z) − log q(z|x) for draws z ~ q(z|x), ``[num_samples, B]``, in nats.

    Unscaled by any plate or ``poutine.scale``; masks are respected. Randomness
    comes from torch's global generator. E[exp log w] = p(x) for each datum.

    Arguments:
        model: a Pyro program of ``x`` with latents inside ``pyro.plate("data", B, dim=-1)``.
        guide: the same for q.
        x: ``[B, *event_shape]``.
        num_samples: K, drawn in parallel under a plate to the left of "data".

    Raises:
        InputError: a site that has no per-datum weight, or is in only one of the programs.
    """
    return log_weight_terms(model, guide, x, num_samples).log_weight


def log_weight_terms(model: Program, guide: Program, x: Tensor, num_samples: int) -> LogWeights:
    """Return the terms of ``log_weights`` apart, each ``[num_samples, B]``."""
    check_data(x, num_samples)
    with own_parameters(model, guide):
        return weigh(model, x, draw_latents(guide, x, num_samples))


def check_data(x: Tensor, num_samples: int) -> None:
    """Refuse data that are no tensor ``[B, *event_shape]``, and a K that is no count.

    Raises:
        InputError: what was expected, and what came.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"expected data as a torch tensor, got {type(x).__name__}")
    if x.dim() < 1 or len(x) == 0:
        raise InputError(f"expected data of shape [B, *event_shape], got {list(x.shape)}")
    if type(num_samples) is not int or num_samples < 1:
        raise InputError(f"num_samples must be a whole number, at least 1, got {num_samples!r}")


def draw_latents(
    guide: Program, x: Tensor, num_samples: int, *, allow_points: bool = False
) -> Latents:
    """Draw ``num_samples`` z ~ q(z|x) for every datum; the encoder runs once a datum.

    Raises:
        InputError: q is a point mass at some site, which has no density, and
            ``allow_points`` is not set: then log p(x, z) is no bound on log p(x).
    """
    trace = poutine.trace(_under_particles(guide, num_samples)).get_trace(x)
    sites = dict(_sites(trace))
    for name, site in sites.items():
        if not allow_points and _is_point(site["fn"]):
            raise InputError(
                f"latent site {name!r} of the guide is a Delta, a point without a density: it has "
                "no ELBO, no IWAE and no KL (to train it as an autoencoder, give the guide "
                "has_bound = False)"
            )
    values = {name: site["value"] for name, site in sites.items() if not site["is_observed"]}
    return Latents(values, _total(sites, num_samples, x, "guide"))


def weigh(model: Program, x: Tensor, latents: Latents) -> LogWeights:
    """Return the log-weights of given draws: the model is replayed at the guide's values."""
    num_samples = latents.log_guide.shape[0]
    replayed = poutine.replay(_under_particles(model, num_samples), trace=_as_trace(latents.values))
    sites = dict(_sites(poutine.trace(replayed).get_trace(x)))
    observed = {name: site for name, site in sites.items() if site["is_observed"]}
    latent = {name: site for name, site in sites.items() if not site["is_observed"]}
    for name in sorted(latent.keys() ^ latents.values.keys()):
        place, other = ("model", "guide") if name in latent else ("guide", "model")
        raise InputError(
            f"latent site {name!r} is in the {place} but not in the {other} (model: "
            f"{', '.join(latent)}; guide: {', '.join(latents.values)}); take two that go together"
        )
    if not observed:
        raise InputError("the model has no observed site; expected pyro.sample('x', …, obs=x)")
    return LogWeights(
        _total(observed, num_samples, x, "model"),
        _total(latent, num_samples, x, "model"),
        latents.log_guide,
    )


@contextmanager
def own_parameters(*programs: Program) -> Iterator[None]:
    """Run modules beside Pyro's global parameter store, so that neither changes the other.

    Programs that are all modules hold their own parameters: they run in an
    empty store. Where any is a plain function the global store is used.

    Raises:
        InputError: the global store holds other values under a module's names.
    """
    store = pyro.get_param_store()
    if not all(isinstance(program, nn.Module) for program in programs):
        yield
        return
    outer = dict(store.named_parameters())
    with store.scope():
        yield
        inner = dict(store.named_parameters())
    for name in inner.keys() & outer.keys():
        if inner[name] is not outer[name] and not torch.equal(inner[name], outer[name]):
            raise InputError(
                f"Pyro's parameter store holds another {name!r} than the module: "
                "call pyro.clear_param_store(), or load the stored values into the module"
            )


def _under_particles(program: Program, num_samples: int) -> Program:
    def run(x: Tensor) -> Any:
        try:
            with pyro.plate(PARTICLES, num_samples, dim=-2):
                return program(x)
        except ValueError as error:
            if "collide" not in str(error):
                raise
            raise InputError(
                "a plate of the program stands at dim=-2, where samples go; beside the data plate "
                "declare dimensions as event dimensions with .to_event"
            ) from None

    return run


def _is_point(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _sites(trace: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sample sites that carry a density: neither plates nor deterministic values."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site_is_subsample(site):
            if site["infer"].get("_deterministic"):
                continue
            yield name, site


def _total(sites: dict[str, dict[str, Any]], num_samples: int, x: Tensor, program: str) -> Tensor:
    """Σ over sites of the unscaled log-density, ``[num_samples, B]``."""
    shape = (num_samples, x.shape[0])
    total = x.new_zeros(shape)
    for name, site in sites.items():
        kind = "observed" if site["is_observed"] else "latent"
        frames = {frame.dim: frame.size for frame in site["cond_indep_stack"]}
        if frames.get(-1) != shape[1]:
            raise InputError(
                f"{kind} site {name!r} of the {program} stands outside the data plate and has no "
                f"weight per datum; put it inside pyro.plate('data', x.shape[0], dim=-1)"
            )
        log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
        log_prob = scale_and_mask(log_prob, 1.0, site["mask"])
        if log_prob.dim() > 2 or any(
            got not in (1, expected)
            for got, expected in zip(reversed(log_prob.shape), reversed(shape), strict=False)
        ):
            raise InputError(
                f"{kind} site {name!r} of the {program}: expected a log-density of shape "
                f"{list(shape)}, got {list(log_prob.shape)}; declare event dimensions by .to_event"
            )
        total = total + log_prob
    return total


def _as_trace(values: dict[str, Tensor]) -> Any:
    trace = poutine.Trace()
    for name, value in values.items():
        trace.add_node(
            name, name=name, type="sample", value=value, is_observed=False, infer={}, fn=None
        )
    return trace
