"""What the estimators over per-datum log-weights share: a bound a datum, and its gradient."""

__all__ = ["PerDatum", "Call", "Estimate", "Terms"]

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from pyro.infer import ELBO
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import torch_item
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from pyro.util import warn_if_nan
from torch import Tensor

from pyro_vae.errors import InputError
from pyro_vae.execution import (
    Execution,
    Program,
    check_no_points,
    check_same_latents,
    equal_everywhere,
    execute,
    own_scale,
    plate_scale,
    same_scale,
)
from pyro_vae.objectives._particles import particles


class Terms(NamedTuple):
    """The terms of log w_β of K draws, each ``[K, B]``, and what stands outside the bound.

    log w_β = log p(x|z) + β (log p(z) − log q(z|x))
    """

    log_likelihood: Tensor
    log_prior: Tensor
    """β log p(z)."""
    log_guide: Tensor
    """β log q(z|x)."""
    factor: Any
    """N/B of subsampled plates and a scale common to all sites; a number or ``[B]``."""

    common: Any
    """That scale alone."""

    @property
    def log_joint(self) -> Tensor:
        """log p(x|z) + β log p(z)."""
        return self.log_likelihood + self.log_prior

    @property
    def log_weight(self) -> Tensor:
        """log w_β."""
        return self.log_joint - self.log_guide


class Estimate(NamedTuple):
    """One evaluation of a bound."""

    value: Tensor
    """The bound of each datum, ``[B]``, in nats."""
    surrogate: Tensor | None
    """``[B]``: its gradient is the estimate of the bound's; None: the value's own."""
    factor: Any
    """As in ``Terms``."""


class Call(NamedTuple):
    """Two programs, what they are called with, and the estimator that asks."""

    model: Program
    guide: Program
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    num_particles: int
    name: str

    def run_guide(self, around: AbstractContextManager[Any] | None = None) -> Execution:
        """Draw z ~ q(z|x); ``around`` is a messenger that sees every draw."""
        with around or nullcontext():
            run = execute(self.guide, "guide", self.num_particles, self.args, self.kwargs)
        check_no_points(run)
        return run

    def run_model(self, guide: Execution, values: dict[str, Tensor] | None = None) -> Execution:
        """Run the model at the guide's draws, or at other ``values`` of the same latents."""
        run = execute(
            self.model,
            "model",
            self.num_particles,
            self.args,
            self.kwargs,
            values={**guide.subsamples, **(guide.values if values is None else values)},
            num_data=guide.num_data or None,
        )
        check_same_latents(run, guide.latent)
        return run

    def terms(self, guide: Execution, model: Execution) -> Terms:
        """Return the terms of log w_β, each site under its own scale."""
        common, factor = common_scale(model), outside(model)
        try:
            log_guide = scaled_total(guide, common)
        except NotImplementedError:  # an inverse that the guide's transform does not have
            raise InputError(
                f"{self.name} needs log q(z|x) at any z, and this guide has it at its own draws "
                "only; use a guide that has a density, or --objective trace"
            ) from None
        return Terms(
            *model.likelihood_and_prior(scaled_densities(model, common)),
            log_guide,
            factor,
            common,
        )

    def reconstruction(self, model: Execution) -> tuple[Tensor, Any, Any]:
        """Return log p(x|z) ``[K, B]``, ``factor`` and ``common``, no density of a latent taken.

        Of a model whose latents depend on none that is summed out.
        """
        return model.likelihood_and_prior([])[0], outside(model), common_scale(model)

    def reparameterized_terms(self) -> Terms:
        """Draw and weigh, differentiably through z.

        Raises:
            InputError: gradients are asked for, and a site of the guide has no ``rsample``.
        """
        guide = self.run_guide()
        self.check_reparameterized(guide)
        return self.terms(guide, self.run_model(guide))

    def fixed_runs(self) -> tuple[Execution, Execution]:
        """Run guide and model at draws that are held fixed: no gradient passes through z."""
        detach = EachLatent(lambda name, z: z.detach()) if needs_gradient() else None
        guide = self.run_guide(detach)
        return guide, self.run_model(guide)

    def check_reparameterized(self, guide: Execution) -> None:
        """Refuse a gradient through draws that have none."""
        for name, site in guide.latent.items():
            if needs_gradient() and not site["fn"].has_rsample:
                raise InputError(
                    f"{self.name}: latent site {name!r} of the guide is not reparameterized, and "
                    "this gradient goes through z; use --objective trace_graph, tvo or "
                    "reweighted_wake_sleep"
                )

    def check_unscaled(self, guide: Execution, model: Execution) -> None:
        """Refuse β ≠ 1, for bounds that have none."""
        common = common_scale(model)
        for site in (*model.latent.values(), *guide.latent.values()):
            if not same_scale(own_scale(site), common):
                raise InputError(
                    f"{self.name} has no β: leave out --beta and --warm-up, or any scale of "
                    f"latent site {site['name']!r}"
                )


class PerDatum(ELBO):
    """A bound on log p(x) a datum from K draws z_k ~ q(z|x), summed over the data.

    Subclasses return an ``Estimate``. Weights are per datum and unscaled: a plate's
    N/B stands outside the bound, as does a scale common to all sites; a scale of
    the latent sites against it is β.

    Arguments:
        num_particles: K, the number of z drawn a datum and step.
    """

    is_lower_bound = True
    """Whether its mean is at most log p(x), at β = 1; for an ELBO also at β > 1."""

    def __init__(self, num_particles: int = 1):
        super().__init__(**particles(num_particles))

    def estimate(self, call: Call) -> Estimate:
        """Return the bound a datum, and what to differentiate."""
        raise NotImplementedError

    def per_datum(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Tensor:
        """Return the bound of each datum, ``[B]``, in nats, without any plate's scale."""
        with torch.no_grad():
            return self.estimate(self._call(model, guide, args, kwargs)).value

    def analytic_kl(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> dict[str, bool]:
        """Return latent site → whether its KL(q ‖ p) is analytic here; else it is sampled."""
        guide_run = self._call(model, guide, args, kwargs).run_guide()
        return dict.fromkeys(guide_run.latent, False)

    def differentiable_loss(
        self, model: Program, guide: Program, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Return minus the bound summed over the data, whose gradient is the estimator's."""
        value, surrogate, factor = self.estimate(self._call(model, guide, args, kwargs))
        loss = -(factor * value).sum()
        if surrogate is not None:
            loss = _WithGradient.apply(loss.detach(), -(factor * surrogate).sum())
        warn_if_nan(loss, "loss")
        return loss

    def loss(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return minus the bound summed over the data."""
        with torch.no_grad():
            loss: float = torch_item(self.differentiable_loss(model, guide, *args, **kwargs))
        return loss

    def loss_and_grads(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
        """Return the loss, its gradient added to the parameters'."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        value: float = torch_item(loss)
        return value

    def _call(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Call:
        return Call(model, guide, args, kwargs, self.num_particles, name_of(self))

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Any:
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)


class _WithGradient(torch.autograd.Function):
    """A value with the gradient of another; their difference would make NaN of ∞."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, surrogate: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


class EachLatent(Messenger):
    """Pass every latent draw through a function, before anything that follows sees it."""

    def __init__(self, function: Callable[[str, Tensor], Tensor]):
        super().__init__()
        self.function = function

    def _pyro_post_sample(self, msg: Any) -> None:
        deterministic = msg["infer"].get("_deterministic")
        if not (msg["is_observed"] or site_is_subsample(msg) or deterministic):
            msg["value"] = self.function(msg["name"], msg["value"])


def scaled_total(run: Execution, common: Any, values: dict[str, Tensor] | None = None) -> Tensor:
    """Σ over latent sites of the log-density, each under its scale relative to ``common``.

    A guide's ``pyro.factor`` belongs to log q.
    """
    factors = run.observed.values() if run.program == "guide" else ()
    densities = scaled_densities(run, common, values)
    return run.total([*densities, *(run.log_prob(site) for site in factors)])


def scaled_densities(
    run: Execution, common: Any, values: dict[str, Tensor] | None = None
) -> list[Tensor]:
    """The log-density of each latent site, under its scale relative to ``common``."""
    values = run.values if values is None else values
    densities = []
    for name, site in run.latent.items():
        log_prob = run.log_prob(site, values[name])
        if log_prob.dim() > 2 and not same_scale(own_scale(site), common):
            raise InputError(
                f"latent site {name!r} of the model depends on one that is summed out, and has a "
                "scale of its own: β has no meaning for it"
            )
        densities.append(relative_scale(site, common) * log_prob)
    return densities


def check_one_plate(model: Execution) -> None:
    """Refuse sites that plates scale by unlike N/B: a weight per datum has one.

    Raises:
        InputError: with the site's name.
    """
    sites = list((model.observed | model.enumerated | model.latent).values())
    for site in sites[1:]:
        if not math.isclose(plate_scale(site), plate_scale(sites[0])):
            raise InputError(
                f"site {site['name']!r} of the model: its subsampled plates scale it by "
                f"{plate_scale(site):g} and {sites[0]['name']!r} by {plate_scale(sites[0]):g}; a "
                "weight per datum takes the data plate alone"
            )


def outside(model: Execution) -> Any:
    """What stands outside a bound: N/B of the data plate times the scale common to all sites."""
    check_one_plate(model)
    observed = next(iter(model.observed.values()))
    return plate_scale(observed) * common_scale(model)


def relative_scale(site: dict[str, Any], common: Any) -> Any:
    """β: the site's own scale against the one that all observed sites have."""
    own = own_scale(site)
    return own if not isinstance(common, Tensor) and common == 1 else own / common


def needs_gradient() -> bool:
    """Whether gradients are recorded: a loss alone needs none of the work for them."""
    return torch.is_grad_enabled()


def name_of(objective: ELBO) -> str:
    """What the command line calls it: the file's stem, for errors and tables."""
    return type(objective).__module__.rpartition(".")[2]


def common_scale(model: Execution) -> Any:
    """The scale of the observed sites, which stands outside the bound."""
    scales = [own_scale(site) for site in model.observed.values()]
    first = scales[0]
    for name, other in zip(model.observed, scales, strict=True):
        if not equal_everywhere(other, first):
            raise InputError(
                f"observed site {name!r} of the model has another scale than the first: a "
                "weight per datum takes one scale for all of them"
            )
    for name, site in model.enumerated.items():
        if not same_scale(own_scale(site), first):
            raise InputError(
                f"latent site {name!r} of the model is summed out and has a scale of its own: "
                "β has no meaning for it"
            )
    return first
