"""N(0, I): it integrates to one, and samples are what it says."""

import math

import torch
from pyro_vae.models.priors.standard_normal import StandardNormal


def test_integrates_to_one():
    prior = StandardNormal(latent_dim=2).double()
    grid = torch.linspace(-9, 9, 401, dtype=torch.float64)
    log_prob = prior().log_prob(torch.cartesian_prod(grid, grid))
    cell = 2 * math.log(18 / 400)
    assert abs(float(log_prob.logsumexp(0)) + cell) < 1e-9


def test_moments_of_samples():
    """Within four standard errors of mean 0 and variance 1 in each dimension, seed 0."""
    torch.manual_seed(0)
    z = StandardNormal(latent_dim=3)().sample((40_000,))
    assert (z.mean(0).abs() < 4 / math.sqrt(40_000)).all()
    assert ((z.var(0) - 1).abs() < 4 * math.sqrt(2 / 40_000)).all()


def test_shapes_and_no_parameters():
    prior = StandardNormal(latent_dim=4)
    assert prior().batch_shape == ()
    assert prior().event_shape == (4,)
    assert not list(prior.parameters())
    assert not prior.state_dict()
