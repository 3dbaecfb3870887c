"""Trace_ELBO by name: the exact ELBO on average, the exact evidence with the exact posterior."""

import pytest
import torch

from pyro_vae.errors import InputError
from pyro_vae.objectives.trace import Trace


@pytest.mark.parametrize("num_particles", [1, 7])
def test_exact_posterior_gives_the_evidence(linear_gaussian, num_particles):
    x = linear_gaussian.simulate(6, seed=0)
    loss = Trace(num_particles).loss(linear_gaussian.model, linear_gaussian.exact_guide, x)
    assert -loss == pytest.approx(float(linear_gaussian.log_evidence(x).sum()), abs=1e-9)


def test_mean_is_the_exact_elbo(linear_gaussian):
    """Within four standard errors over 400 draws of 100 particles, seed 0."""
    x = linear_gaussian.simulate(6, seed=1)
    parameters = linear_gaussian.diagonal_guide(shift=0.5, variance=0.6)
    guide = linear_gaussian.guide_of(parameters)
    torch.manual_seed(0)
    losses = torch.tensor([Trace(100).loss(linear_gaussian.model, guide, x) for _ in range(400)])
    error = float(losses.std()) / 20
    exact = float(linear_gaussian.elbo(x, *parameters(x)).sum())
    assert error < 0.02
    assert abs(float(losses.mean()) + exact) < 4 * error


@pytest.mark.parametrize("num_particles", [0, -1, 2.0, "3"])
def test_bad_number_of_particles(num_particles):
    with pytest.raises(InputError, match="num_particles must be a whole number"):
        Trace(num_particles)
