"""TraceMeanField_ELBO by name: an analytic KL and a Monte Carlo reconstruction."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.objectives.trace_mean_field import TraceMeanField


def test_kl_is_analytic(linear_gaussian):
    """On given noise: the reconstruction at z, minus ½ Σ (μ² + σ² − 1 − log σ²)."""
    x = linear_gaussian.simulate(6, seed=1)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    loc, scale = parameters(x)
    torch.manual_seed(0)
    loss = TraceMeanField().loss(linear_gaussian.model, linear_gaussian.guide_of(parameters), x)
    torch.manual_seed(0)
    z = dist.Normal(loc, scale).to_event(1).rsample()
    fit = dist.Normal(z @ linear_gaussian.W.T + linear_gaussian.b, 0.8).log_prob(x).sum()
    kl = 0.5 * (loc**2 + scale**2 - 1 - 2 * scale.log()).sum()
    assert -loss == pytest.approx(float(fit - kl), rel=1e-10)


def test_mean_is_the_exact_elbo(linear_gaussian):
    """Within four standard errors over 400 draws of 100 particles, seed 0."""
    x = linear_gaussian.simulate(6, seed=1)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    guide = linear_gaussian.guide_of(parameters)
    torch.manual_seed(0)
    objective = TraceMeanField(100)
    losses = torch.tensor([objective.loss(linear_gaussian.model, guide, x) for _ in range(400)])
    error = float(losses.std()) / 20
    exact = float(linear_gaussian.elbo(x, *parameters(x)).sum())
    assert abs(float(losses.mean()) + exact) < 4 * error


def test_bad_number_of_particles():
    with pytest.raises(InputError, match="num_particles must be a whole number"):
        TraceMeanField(0)
