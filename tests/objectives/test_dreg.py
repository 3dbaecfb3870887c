"""The doubly reparameterized gradient: IWAE's mean, by quadrature, with less noise."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_vae.annealing import Beta
from pyro_vae.errors import InputError
from pyro_vae.objectives._path import path_estimate
from pyro_vae.objectives._per_datum import Estimate
from pyro_vae.objectives._weights import log_mean_exp, normalized
from pyro_vae.objectives.dreg import DReG
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding


class SinglyReparameterized(DReG):
    """Σ w̃ ∂log w/∂z · ∂z/∂φ: the score dropped as in sticking-the-landing, biased for K > 1."""

    def estimate(self, call):
        return path_estimate(call, log_mean_exp, lambda *terms: (normalized(terms[0]), None))


def test_gradient_of_two_particles_by_quadrature(
    one_latent, two_data, linear_pair, near_posterior, mean_of_two, exact_gradient, deviations
):
    """∂ E log p̂₂ for every parameter within four standard errors; 100,000 repeats, seed 1."""
    parameters = near_posterior(one_latent, 0.7, 0.6)
    mean = mean_of_two(lambda log_w: log_w.logsumexp(0) - math.log(2), two_data)
    _, gradient = exact_gradient(lambda p: mean(p).sum(), parameters)
    pair = linear_pair(parameters, two_data, 100_000)
    found = deviations(pair.gradients(DReG(2), seed=1), gradient)
    assert max(found.values()) < 4, found
    wrong = deviations(pair.gradients(SinglyReparameterized(2), seed=1), gradient)
    assert max(wrong[name] for name in pair.guide_names) > 6


@pytest.mark.parametrize("K", [4, 12])
def test_mean_is_that_of_iwae(linear_gaussian, linear_pair, near_posterior, deviations, K):
    """Every parameter of p and q, two latents; 40,000 repeats each, seeds 1 and 2."""
    x = linear_gaussian.simulate(1, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.6, 1.3), x, 40_000 // K)
    reference = pair.gradients(IWAE(K), seed=1)
    found = deviations(pair.gradients(DReG(K), seed=2), reference)
    assert max(found.values()) < 4, found
    biased = deviations(pair.gradients(SinglyReparameterized(K), seed=2), reference)
    assert max(biased[name] for name in pair.guide_names) > 6


@pytest.mark.parametrize("beta", [0.3, 2.0])
def test_mean_is_that_of_iwae_with_beta(
    one_latent, two_data, linear_pair, near_posterior, deviations, beta
):
    """β stands inside w_β, and before the score: w̃² ∂log w/∂z would be biased by its share."""
    pair = linear_pair(near_posterior(one_latent, 0.5, 1.3), two_data, 40_000)
    scaled = Beta(torch.tensor(beta, dtype=torch.float64))
    reference = pair.gradients(IWAE(3), seed=1, wrap=scaled)
    found = deviations(pair.gradients(DReG(3), seed=2, wrap=scaled), reference)
    assert max(found.values()) < 4, found


class HoldsLocAndScale(DReG):
    """Holds loc and scale of log q(z₂|z₁), which depend on z₁, in place of the parameters."""

    def estimate(self, call):
        guide = call.run_guide()
        log_joint = call.terms(guide, call.run_model(guide)).log_joint
        for site in guide.latent.values():
            q = site["fn"].base_dist
            held = dist.Normal(q.loc.detach(), q.scale.detach()).log_prob(site["value"])
            log_joint = log_joint - held.sum(-1)
        surrogate = (normalized(log_joint) ** 2 * log_joint).sum(0)
        return Estimate(log_mean_exp(log_joint.detach()), surrogate, 1.0)


def test_mean_is_that_of_iwae_for_a_chain(chain, deviation):
    """A guide z₁ → z₂, K = 4, 20,000 repeats, seeds 1 to 3; what holds loc and scale is off."""
    chain = type(chain)(20_000)
    with torch.no_grad():
        chain.leaves[1].fill_(-0.6)  # q(z₂|z₁) leans against p(z₂|z₁)
    reference = chain.gradients(IWAE(4), seed=1)
    variance = reference.var(0) / len(reference)
    ours = chain.gradients(DReG(4), seed=2)
    assert deviation(ours, reference.mean(0), variance) < 4
    wrong = chain.gradients(HoldsLocAndScale(4), seed=3)
    assert deviation(wrong, reference.mean(0), variance) > 12


def test_less_noise_for_the_guide_alone(linear_gaussian, linear_pair, near_posterior):
    """On the same noise the model's gradient is IWAE's, the guide's has less variance."""
    x = linear_gaussian.simulate(1, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.3, 1.2), x, 2000)
    ours, iwae = pair.gradients(DReG(16), seed=0), pair.gradients(IWAE(16), seed=0)
    for name in pair.model_names:
        torch.testing.assert_close(ours[name], iwae[name])
    for name in pair.guide_names:
        assert (ours[name].std(0) < 0.3 * iwae[name].std(0)).all(), name


def test_value_is_that_of_iwae(linear_gaussian, linear_pair, near_posterior):
    x = linear_gaussian.simulate(3, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.6, 1.3), x, 40)
    got, iwae = pair.values(DReG(7), seed=0), pair.values(IWAE(7), seed=0)
    torch.testing.assert_close(got, iwae, rtol=0, atol=1e-12)


def test_one_particle_is_sticking_the_landing(linear_gaussian, linear_pair, near_posterior):
    x = linear_gaussian.simulate(3, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.6, 1.3), x, 40)
    path = pair.gradients(StickingTheLanding(1), seed=0)
    for name, gradient in pair.gradients(DReG(1), seed=0).items():
        torch.testing.assert_close(gradient, path[name])


@pytest.mark.parametrize("num_particles", [1, 4])
def test_same_noise_same_value(keeps_one_value, num_particles):
    keeps_one_value(DReG(num_particles))


def test_trains_in_svi(lands_on_the_posterior):
    lands_on_the_posterior(DReG(3), within=1e-3)


@pytest.mark.parametrize("num_particles", [0, 1.5, "2"])
def test_bad_arguments(num_particles):
    with pytest.raises(InputError, match="num_particles must be a whole number ≥ 1"):
        DReG(num_particles)


def test_latents_of_unlike_beta_are_refused():
    """The score of each latent's log q comes in with its own β; the gradient has one."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0)) + pyro.sample("y", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 1.0))
            with poutine.scale(scale=0.5):
                pyro.sample("y", dist.Normal(loc, 1.0))

    with pytest.raises(InputError, match="dreg: the guide's latents have unlike scales"):
        DReG(2).loss_and_grads(model, guide, torch.zeros(3))
