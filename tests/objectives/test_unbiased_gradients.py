"""Gradients of whole pairs: path derivatives agree with Pyro's estimator, wrong ones do not."""

from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.assembly import build_pair
from pyro_vae.config import Config
from pyro_vae.objectives._path import path_estimate
from pyro_vae.objectives._per_datum import Estimate
from pyro_vae.objectives._weights import log_mean_exp, normalized
from pyro_vae.objectives.closed_form import ClosedFormELBO
from pyro_vae.objectives.dreg import DReG
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding
from pyro_vae.objectives.trace import Trace
from pyro_vae.protocols import Facts

EVENT = (3, 3)
COPIES = 100
BLOCKS = 50


@dataclass(frozen=True)
class Case:
    """Specs of a small pair, and how far its weights are moved from their start."""

    guide: str = "diagonal_normal"
    others: dict = field(default_factory=dict)
    moved: float = 0.4

    def pair(self):
        torch.manual_seed(0)
        config = Config(
            data="digits", latent_dim=3, dtype="float64", likelihood="bernoulli",
            encoder="mlp(hidden=(6,), activation=tanh)", guide=self.guide, **self.others,
        )  # fmt: skip
        model, guide = build_pair(config, Facts(EVENT, "binary"), torch.full(EVENT, 0.4))
        with torch.no_grad():
            for parameter in (*model.parameters(), *guide.parameters()):
                parameter += self.moved * torch.randn_like(parameter)
        return model, guide


CASES = {
    "diagonal": Case(),
    "hierarchical": Case(
        "hierarchical(hidden=(5,))",
        {"model": "hierarchical(latent_dims=(3, 2), hidden=(5,))"},
    ),
    "iaf": Case("iaf(hidden=(4,))", moved=0.25),
    "vamp": Case("diagonal_normal", {"prior": "vamp(components=3)"}),
    "iaf_vamp": Case("iaf(hidden=(4,))", {"prior": "vamp(components=3)"}, moved=0.25),
}
X = (torch.rand(2, *EVENT, generator=torch.Generator().manual_seed(1)) < 0.4).double()


def gradients(objective, model, guide, seed):
    """Name → gradients of the mean bound over ``COPIES`` draws of two data, ``[BLOCKS, size]``."""
    pyro.clear_param_store()  # of another pair's weights by the same names
    torch.manual_seed(seed)
    named = {
        f"{owner}.{name}": parameter
        for owner, program in (("model", model), ("guide", guide))
        for name, parameter in program.named_parameters()
    }
    x = X.repeat(COPIES, 1, 1)
    rows = []
    for _ in range(BLOCKS):
        loss = objective.differentiable_loss(model, guide, x) / COPIES
        assert abs(float(loss.detach())) < 60
        rows.append(torch.autograd.grad(loss, list(named.values())))
    return {
        name: torch.stack([gradient.flatten() for gradient in column])
        for name, column in zip(named, zip(*rows, strict=True), strict=True)
    }


class HoldsLocAndScale(StickingTheLanding):
    """Holds the parameters of the distributions in log q, which depend on an earlier z."""

    def estimate(self, call):
        guide = call.run_guide()
        log_joint = call.terms(guide, call.run_model(guide)).log_joint
        held = sum(held_log_prob(site["fn"], site["value"]) for site in guide.latent.values())
        log_weight = log_joint - held
        return Estimate(log_weight.mean(0), None, 1.0)


class HoldsLocAndScaleDReG(DReG):
    """The same with w̃² for the weight of what passes through z; p's gradient is left out."""

    def estimate(self, call):
        guide = call.run_guide()
        log_joint = call.terms(guide, call.run_model(guide)).log_joint
        held = sum(held_log_prob(site["fn"], site["value"]) for site in guide.latent.values())
        log_weight = log_joint - held
        surrogate = (normalized(log_weight) ** 2 * log_weight).sum(0)
        return Estimate(log_mean_exp(log_weight.detach()), surrogate, 1.0)


def held_log_prob(q, z):
    """log q(z), no gradient reaching any parameter of the distribution or log-determinant."""
    if isinstance(q, dist.TransformedDistribution):
        log_det = 0.0
        for transform in reversed(q.transforms):
            before = transform.inv(z)
            log_det = log_det + transform.log_abs_det_jacobian(before, z).detach()
            z = before
        return held_log_prob(q.base_dist, z) - log_det
    while hasattr(q, "base_dist"):
        q = q.base_dist
    return dist.Normal(q.loc.detach(), q.scale.detach()).log_prob(z).sum(-1)


class HoldsThePriorsGuide(StickingTheLanding):
    """Stops gradients in all uses of q, the one inside the VampPrior too."""

    def estimate(self, call):
        with holding_the_priors_guide(call.model.prior):
            return super().estimate(call)


class HoldsThePriorsGuideDReG(DReG):
    """The same for DReG."""

    def estimate(self, call):
        with holding_the_priors_guide(call.model.prior):
            return super().estimate(call)


@contextmanager
def holding_the_priors_guide(prior):
    own = prior.posterior
    prior.posterior = lambda u: held(own(u))
    yield
    prior.posterior = own


class SinglyReparameterized(DReG):
    """Σ w̃ ∂log w/∂z · ∂z/∂φ: the score dropped as in sticking-the-landing."""

    def estimate(self, call):
        return path_estimate(call, log_mean_exp, lambda *terms: (normalized(terms[0]), None))


def held(q):
    normal = q.base_dist
    # u keeps its graph, without a gradient: zero, not None.
    loc, scale = (p.detach() + 0 * p for p in (normal.loc, normal.scale))
    return dist.Normal(loc, scale, validate_args=False).to_event(1)


@cache
def elbo_reference(case):
    return gradients(Trace(), *CASES[case].pair(), seed=1)


@cache
def iwae_reference(case):
    return gradients(IWAE(4), *CASES[case].pair(), seed=3)


def of_guide(found):
    return max(value for name, value in found.items() if name.startswith("guide."))


SLOW = {"iaf_vamp"}
every_case = pytest.mark.parametrize(
    "case", [pytest.param(c, marks=pytest.mark.slow if c in SLOW else ()) for c in CASES]
)


@every_case
def test_elbo(case, deviations):
    """Sticking-the-landing against Trace_ELBO, every parameter; 5,000 draws each, seeds 1, 2."""
    pair = CASES[case].pair()
    found = deviations(gradients(StickingTheLanding(), *pair, seed=2), elbo_reference(case))
    assert {"guide.head.weight", "model.decoder.body.0.weight"} < found.keys()
    assert max(found.values()) < 4, found
    if case == "diagonal":
        found = deviations(gradients(ClosedFormELBO(), *pair, seed=2), elbo_reference(case))
        assert max(found.values()) < 4, found


@every_case
def test_iwae(case, deviations):
    """DReG-4 against IWAE-4, every parameter; 5,000 draws each, seeds 3 and 4."""
    pair = CASES[case].pair()
    found = deviations(gradients(DReG(4), *pair, seed=4), iwae_reference(case))
    assert max(found.values()) < 4, found
    wrong = deviations(gradients(SinglyReparameterized(4), *pair, seed=4), iwae_reference(case))
    assert of_guide(wrong) > 6


@pytest.mark.parametrize("case", ["diagonal", "hierarchical", "iaf"])
def test_holding_loc_and_scale_is_noticed(case, deviations):
    """Unbiased for a diagonal guide, and rejected where loc and scale depend on an earlier z.

    But for the ELBO of ``hierarchical``: E over z₂ of ∂log q(z₂|z₁)/∂loc is zero, and what
    is missing there is noise alone; see ``test_no_noise_at_the_exact_posterior_of_a_chain``.
    """
    pair = CASES[case].pair()
    of_elbo = of_guide(deviations(gradients(HoldsLocAndScale(), *pair, 2), elbo_reference(case)))
    dreg = gradients(DReG(4), *pair, 5)  # has less noise than iwae, which it is held against above
    of_iwae = of_guide(deviations(gradients(HoldsLocAndScaleDReG(4), *pair, 4), dreg))
    assert of_iwae < 4 if case == "diagonal" else of_iwae > 6
    assert of_elbo > 6 if case == "iaf" else of_elbo < 4


def test_holding_the_priors_guide_is_noticed(deviations):
    """The guide's parameters inside the VampPrior count; without them both are rejected."""
    pair = CASES["vamp"].pair()
    of_elbo = deviations(gradients(HoldsThePriorsGuide(), *pair, 2), elbo_reference("vamp"))
    of_iwae = deviations(gradients(HoldsThePriorsGuideDReG(4), *pair, 4), iwae_reference("vamp"))
    assert min(of_guide(of_elbo), of_guide(of_iwae)) > 6
