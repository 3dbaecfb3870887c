"""What each estimator's value must be on given draws: identities of the log-weights."""

__all__ = ["Identity", "identities", "sampled_kl"]

from typing import Any, NamedTuple

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import (
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vae import objectives
from pyro_vae.closed_form import kl_divergence as hand_derived
from pyro_vae.comparison.per_datum import Draw
from pyro_vae.objectives._per_datum import relative_scale
from pyro_vae.objectives._weights import log_mean_exp

# Subclasses of a user may be other estimators: these classes exactly.
TRACES = (Trace_ELBO, objectives.Trace)
MEAN_FIELDS = (TraceMeanField_ELBO, objectives.TraceMeanField)
ENUMERATING = (TraceEnum_ELBO, objectives.TraceEnum)
SAMPLED_ELBOS: tuple[type, ...] = (
    *TRACES, *ENUMERATING, TraceGraph_ELBO, objectives.TraceGraph, objectives.StickingTheLanding
)  # fmt: skip
IWAES = (objectives.IWAE, objectives.DReG, objectives.ReweightedWakeSleep)
RENYIS = (RenyiELBO, objectives.PyroRenyi, objectives.Renyi)


class Identity(NamedTuple):
    """An interval in which the value of each datum lies, a point for an equality."""

    name: str
    low: Tensor
    """``[B]``"""
    high: Tensor

    def worst(self, values: Tensor, tolerance: Tensor) -> tuple[float, float]:
        """Return how far the value of a datum lies outside, and what it may, in nats.

        Of the datum that lies farthest outside in units of its own tolerance.
        """
        outside = torch.maximum(self.low - values, values - self.high).clamp(min=0)
        outside = outside.nan_to_num(nan=torch.inf)  # ∞ − ∞ is no equality
        tolerance = tolerance.expand_as(outside)
        b = int((outside / tolerance).argmax())
        return float(outside[b]), float(tolerance[b])


def identities(
    label: str, objective: Any, draw: Draw, closed_form: Tensor | None
) -> list[Identity]:
    """Return the identities that an estimator obeys on a draw; none for what is not known here.

    Arguments:
        label: what it is called in the table.
        objective: the estimator, by its class.
        draw: the noise, and the log-weights w_k of it.
        closed_form: the value of ``ClosedFormELBO`` on it, ``[B]``, where there is one.
    """
    kind, log_weight = type(objective), draw.terms.log_weight.double()
    elbo, iwae = log_weight.mean(0), log_mean_exp(log_weight)
    if kind in MEAN_FIELDS:
        return [_mean_field(label, draw, closed_form)]
    if kind in SAMPLED_ELBOS and not (kind in ENUMERATING and _enumerates(draw)):
        found = [_equal(f"{label} = (1/K) Σ log w", elbo)]
        if kind in TRACES and closed_form is not None:
            expected = closed_form - (sampled_kl(draw) - analytic_kl(draw))
            name = f"{label} − closed_form = −((1/K) Σ [log q − log p] − KL), the error of the KL"
            found.insert(0, _equal(name, expected))
        return found
    if kind in IWAES:
        return [_equal(f"{label} = log (1/K) Σ w", iwae)]
    if kind in RENYIS:
        return [_renyi(label, objective.alpha, log_weight)]
    if kind is objectives.TVO and objective.side == "left":
        return [Identity(f"(1/K) Σ log w ≤ {label} ≤ log (1/K) Σ w", elbo, iwae)]
    if kind is objectives.TVO:
        return [Identity(f"log (1/K) Σ w ≤ {label} ≤ max log w", iwae, log_weight.amax(0))]
    return []


def sampled_kl(draw: Draw) -> Tensor:
    """Return (1/K) Σ_k log q(z_k|x) − log p(z_k) of each datum, ``[B]``."""
    return (draw.terms.log_guide - draw.terms.log_prior).double().mean(0)


def analytic_kl(draw: Draw) -> Tensor:
    """Return KL(q ‖ p) of each datum by torch's formulas, or ours where torch has none, ``[B]``."""
    return sum((_kl_of(draw, name, ours=True) for name in draw.guide.latent), torch.zeros(()))


def _mean_field(label: str, draw: Draw, closed_form: Tensor | None) -> Identity:
    """The reconstruction minus every KL that torch knows, the others sampled."""
    known, kl = True, draw.terms.log_weight.new_zeros(draw.num_data).double()
    for name in draw.guide.latent:
        try:
            kl = kl + _kl_of(draw, name)
        except NotImplementedError:
            known = False
            kl = kl + _sampled_kl_of(draw, name)
    if known and closed_form is not None:
        return _equal(f"{label} = closed_form", closed_form)
    reconstruction = draw.terms.log_likelihood.double().mean(0)
    return _equal(
        f"{label} = (1/K) Σ log p(x|z) − KL, sampled where not analytic", reconstruction - kl
    )


def _renyi(label: str, alpha: float, log_weight: Tensor) -> Identity:
    if alpha == 1:
        return _equal(f"{label} = (1/K) Σ log w", log_weight.mean(0))
    if alpha == -torch.inf:
        return _equal(f"{label} = max log w", log_weight.amax(0))
    power = 1 - alpha
    name = "log (1/K) Σ w" if alpha == 0 else "1/(1−α) log (1/K) Σ w^(1−α)"
    return _equal(f"{label} = {name}", log_mean_exp(power * log_weight) / power)


def _equal(name: str, value: Tensor) -> Identity:
    return Identity(name, value, value)


def _kl_of(draw: Draw, name: str, *, ours: bool = False) -> Tensor:
    """β KL(q ‖ p) of one latent, the mean over K of what it depends on, ``[B]``."""
    q, p = draw.guide.latent[name], draw.model.latent[name]
    try:
        kl = kl_divergence(q["fn"], p["fn"])
    except NotImplementedError:
        if not ours:
            raise
        kl = hand_derived(q["fn"], p["fn"])
    return _mean_over_draws(draw, q, kl)


def _sampled_kl_of(draw: Draw, name: str) -> Tensor:
    q, p = draw.guide.latent[name], draw.model.latent[name]
    return _mean_over_draws(draw, q, draw.guide.log_prob(q) - draw.model.log_prob(p))


def _mean_over_draws(draw: Draw, site: dict[str, Any], kl: Tensor) -> Tensor:
    beta = relative_scale(site, draw.terms.common)
    total = draw.guide.total([beta * scale_and_mask(kl, 1.0, site["mask"])])
    return total.double().mean(0)


def _enumerates(draw: Draw) -> bool:
    """Whether the guide's own latents are summed out, where a draw takes one value of each."""
    return any(site["infer"].get("enumerate") for site in draw.guide.latent.values())
