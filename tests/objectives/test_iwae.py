"""The importance-weighted bound against exact evidence and two-dimensional quadrature."""

import math

import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.trace import Trace

KS = (1, 2, 4, 8, 64)


def log_p_hat_2(log_w):
    return log_w.logsumexp(0) - math.log(2)


def test_bounds_grow_with_k_up_to_the_evidence(linear_gaussian, linear_pair, near_posterior):
    """Each K significantly above the one before, none above log p(x); 3,000 repeats, seeds 0 …"""
    x = linear_gaussian.simulate(4, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.8, 1.5), x, 3000)
    values = [pair.values(IWAE(K), seed) for seed, K in enumerate(KS)]
    means = torch.stack([v.mean(0) for v in values])
    variances = torch.stack([v.var(0) / len(v) for v in values])
    rise = means.diff(dim=0) / (variances[1:] + variances[:-1]).sqrt()
    assert (rise > 4).all()
    above = (means - linear_gaussian.log_evidence(x)) / variances.sqrt()
    assert (above < 4).all()
    assert (linear_gaussian.log_evidence(x) - means[-1] < 0.05).all()


def test_one_particle_is_the_elbo(linear_gaussian, linear_pair, near_posterior, deviation,
                                  exact_elbo):  # fmt: skip
    """Its mean within four standard errors, seed 0; Pyro's Trace_ELBO on the same noise."""
    x = linear_gaussian.simulate(4, seed=2)
    parameters = near_posterior(linear_gaussian, 0.5, 0.6)
    pair = linear_pair(parameters, x, 4000)
    values = pair.values(IWAE(1), seed=0)
    assert deviation(values, exact_elbo(parameters, x)) < 4
    torch.manual_seed(0)
    loss = Trace().loss(pair.model, pair.guide, pair.x)
    assert -float(values.sum()) == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("K", [1, 3, 20])
def test_mean_ratio_to_the_evidence_is_one(
    linear_gaussian, linear_pair, near_posterior, deviation, K
):
    """E p̂_K = p(x) a datum, within four standard errors; q wider than p(z|x), seed 1."""
    x = linear_gaussian.simulate(4, seed=2)
    pair = linear_pair(near_posterior(linear_gaussian, 0.3, 2.0), x, 4000)
    ratio = (pair.values(IWAE(K), seed=1) - linear_gaussian.log_evidence(x)).exp()
    assert float(ratio.std() / math.sqrt(len(ratio))) < 0.03
    assert deviation(ratio, torch.ones(4)) < 4


def test_value_and_gradient_of_two_particles_by_quadrature(
    one_latent, two_data, linear_pair, near_posterior, mean_of_two, exact_gradient, deviation,
    deviations,
):  # fmt: skip
    """E log p̂₂ and ∂/∂ of every parameter, within four standard errors; 100,000 repeats."""
    parameters = near_posterior(one_latent, 0.7, 0.6)
    mean = mean_of_two(log_p_hat_2, two_data)
    pair = linear_pair(parameters, two_data, 100_000)
    values = pair.values(IWAE(2), seed=2)
    assert float(values.std(0).max()) / math.sqrt(len(values)) < 3e-3
    assert deviation(values, mean(parameters)) < 4
    _, gradient = exact_gradient(lambda p: mean(p).sum(), parameters)
    gradients = pair.gradients(IWAE(2), seed=3)
    found = deviations(gradients, gradient)
    assert max(found.values()) < 4, found
    wrong = deviations(gradients, {name: 1.02 * g + 0.02 for name, g in gradient.items()})
    assert max(wrong.values()) > 6


def test_a_weight_a_datum(linear_gaussian, linear_pair, near_posterior):
    """A datum's bound is its own: another 3,000 nats away changes no digit of it."""
    near = linear_gaussian.simulate(1, seed=4)
    far = near + 40
    parameters = near_posterior(linear_gaussian, 0.3, 1.3)
    together = linear_pair(parameters, torch.cat([near, far]), 50).values(IWAE(5), seed=0)
    truth = linear_gaussian.log_evidence(torch.cat([near, far]))
    assert float(truth[0] - truth[1]) > 3000
    assert ((together - truth).mean(0).abs() < 0.5).all()


def test_same_noise_same_value(keeps_one_value):
    keeps_one_value(IWAE(4))


def test_trains_in_svi(lands_on_the_posterior):
    lands_on_the_posterior(IWAE(3), within=0.05)


@pytest.mark.parametrize("num_particles", [0, -1, 2.0, "3", None, True])
def test_bad_arguments(num_particles):
    with pytest.raises(InputError, match="num_particles must be a whole number ≥ 1, got") as error:
        IWAE(num_particles)
    assert "\n" not in str(error.value)
