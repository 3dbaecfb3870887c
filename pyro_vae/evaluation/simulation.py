"""Data drawn from a model, with the latents they were drawn from; and data drawn again."""

__all__ = ["simulate", "replicate", "Simulated"]

from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import Program, Site, check_same_latents, execute
from pyro_vae.log_weights import check_data, draw_latents, own_parameters
from pyro_vae.seeding import derive_seed, seeded

CHUNK = 1000  # data drawn at once, so that memory does not grow with their number


@dataclass(frozen=True)
class Simulated:
    """Draws (z, x) of the joint p(z) p(x|z), so that z is an exact draw of p(z|x) too."""

    latents: dict[str, Tensor]
    """site → ``[B, *event]``, in the model's order: the sites of ``latent_space``."""
    x: Tensor
    """``[B, *event_shape]``, in the dtype of the data that it is like."""
    enumerated: dict[str, Tensor] = field(default_factory=dict)
    """The discrete latents that densities sum out, ``infer={"enumerate": "parallel"}``."""


@torch.no_grad()
def simulate(model: Program, like: Tensor, seed: int = 0) -> Simulated:
    """Draw z ~ p(z), then x ~ p(x|z), by running the program with its observed site drawn.

    Latents marked ``infer={"enumerate": "parallel"}`` are drawn as well and stand in
    ``enumerated``. A ``poutine.scale``, β or a plate's N/B, weighs densities alone: draws
    are of the unscaled model.

    The program is run twice on the same noise, given ``like`` and given the draws: what
    depends on the values of x cannot be simulated in one run.

    Arguments:
        model: a Pyro program of ``x``; a module is run as it is.
        like: ``[B, *event_shape]``: shape, dtype and device of x; values do not matter.
        seed: of the noise; torch's global random state is left as it was.

    Raises:
        InputError: the program does not observe exactly one site; part of it is masked; a
            site's draws are not one per datum, of x's size; the program depends on the values
            of x, or observes something else than x; a draw is not finite.
    """
    check_data(like, 1)
    parts = []
    with own_parameters(model):
        for i, part in enumerate(like.split(CHUNK)):
            parts.append(_simulate(model, part, derive_seed(seed, "simulation", i), {}))
    return Simulated(
        latents={n: torch.cat([p.latents[n] for p in parts]) for n in parts[0].latents},
        x=torch.cat([p.x for p in parts]),
        enumerated={n: torch.cat([p.enumerated[n] for p in parts]) for n in parts[0].enumerated},
    )


@torch.no_grad()
def replicate(model: Program, guide: Program, x: Tensor, seed: int = 0) -> Tensor:
    """Draw x̃ ~ p(x|z) with z ~ q(z|x) for every datum, ``[B, *event_shape]``.

    The posterior predictive of each x, under q for p(z|x); of a guide that is a point, at
    its one z. Discrete latents c that the guide does not draw are drawn from p(c|z, x).

    Arguments:
        model, guide: a pair of Pyro programs of ``x``; modules are run as they are.
        x: ``[B, *event_shape]``, on the programs' device.
        seed: of the noise; torch's global random state is left as it was.

    Raises:
        InputError: the latents of the two differ; or as for ``simulate``.
    """
    check_data(x, 1)
    parts = []
    with own_parameters(model, guide):
        for i, part in enumerate(x.split(CHUNK)):
            noise = derive_seed(seed, "replication", i)
            with seeded(derive_seed(noise, "latents"), x.device):
                values = _latents(model, guide, part)
            parts.append(_simulate(model, part, noise, values).x)
    return torch.cat(parts)


def _latents(model: Program, guide: Program, x: Tensor) -> dict[str, Tensor]:
    """Draw from q(z|x) p(c|z, x), site → ``[B, *event]``."""
    draws = draw_latents(guide, x, 1, allow_points=True).values
    run = execute(model, "model", 1, (x,), values=draws, num_data=len(x))
    check_same_latents(run, draws)
    values = {name: value.squeeze(0) for name, value in draws.items()}
    if not run.enumerated:
        return values
    given = poutine.condition(model, data=values)
    trace = poutine.trace(infer_discrete(given, first_available_dim=-2, temperature=1)).get_trace(x)
    return values | {name: trace.nodes[name]["value"] for name in run.enumerated}


def _simulate(model: Program, like: Tensor, seed: int, values: dict[str, Tensor]) -> Simulated:
    first, _ = _run(model, like, seed, values)
    again, observed = _run(model, first.x, seed, values)
    _check_same(first, again)
    if not _same(observed.flatten().to(like.dtype), first.x.flatten()):
        raise InputError(
            "the model observes something else than x, such as a rescaled x: what it draws is no "
            "x; give it the data as they are observed, pyro.sample('x', …, obs=x)"
        )
    return first


def _run(
    model: Program, x: Tensor, seed: int, values: dict[str, Tensor]
) -> tuple[Simulated, Tensor]:
    """Draw every site that has no value yet; return the draws, and what was to be observed."""
    with seeded(seed, x.device):
        trace: Any = poutine.trace(_Draw(values)(model)).get_trace(x)
    sites: list[Site] = [
        site
        for site in trace.nodes.values()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    ]
    for site in sites:
        _check_site(site, len(x))
    observed = [site for site in sites if "was_observed" in site["infer"]]
    if len(observed) != 1:
        names = ", ".join(repr(site["name"]) for site in observed) or "none"
        raise InputError(
            f"simulation needs a model with exactly one observed site, the data; it has: {names}"
        )
    value = observed[0]["value"]
    if value.numel() != x.numel():
        raise InputError(
            f"observed site {observed[0]['name']!r} draws {list(value.shape)}, expected as many "
            f"numbers as x, {list(x.shape)}; observe all of x"
        )
    hidden = {site["name"]: site for site in sites if site is not observed[0]}
    summed = {name for name, site in hidden.items() if site["infer"].get("enumerate") == "parallel"}
    drawn = Simulated(
        latents={name: site["value"] for name, site in hidden.items() if name not in summed},
        x=value.reshape(x.shape).to(x.dtype),
        enumerated={name: hidden[name]["value"] for name in hidden if name in summed},
    )
    return drawn, observed[0]["infer"]["obs"]


class _Draw(Messenger):
    """Give sites their values and draw what is observed, but for what is deterministic."""

    def __init__(self, values: dict[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]
            return
        fixed = msg["infer"].get("_deterministic") or isinstance(msg["fn"], dist.Unit)
        if not msg["is_observed"] or fixed:
            return
        msg["is_observed"] = False
        msg["infer"] = {**msg["infer"], "was_observed": True, "obs": msg["value"]}
        msg["value"] = None


def _check_site(site: Site, num_data: int) -> None:
    name, value = site["name"], site["value"]
    if isinstance(site["fn"], dist.Unit):
        raise InputError(
            f"the model has a factor, {name!r}, a weight without a distribution, so that its data "
            "cannot be drawn; write it as a distribution"
        )
    mask = site["mask"]
    if mask is not None and not bool(torch.as_tensor(mask).all()):
        raise InputError(
            f"site {name!r} of the model is masked: a model of a part of the data has no draws of "
            "all of them; take the mask away"
        )
    batch_shape = tuple(site["fn"].batch_shape)
    if batch_shape != (num_data,):
        raise InputError(
            f"site {name!r} of the model draws with batch_shape {list(batch_shape)}, expected one "
            f"draw a datum, [{num_data}]; put it inside pyro.plate('data', x.shape[0], dim=-1) and "
            "declare event dimensions by .to_event"
        )
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise InputError(
            f"site {name!r} of the model drew a value that is not finite; check the model's "
            "parameters, or use float64"
        )


def _check_same(first: Simulated, again: Simulated) -> None:
    one = {**first.latents, **first.enumerated, "x": first.x}
    other = {**again.latents, **again.enumerated, "x": again.x}
    if one.keys() != other.keys() or not all(_same(one[name], other[name]) for name in one):
        raise InputError(
            "the model depends on the values of x beside observing them, as an autoregressive or "
            "conditional model does, so that one run draws no x of its own"
        )


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal but for the rounding of kernels that add in another order."""
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    rounding = torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one, other, rtol=rounding, atol=rounding)
