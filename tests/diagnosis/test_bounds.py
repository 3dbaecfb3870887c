"""Bounds on log p(x) of simulated data: around the exact value, and with the right errors."""

import math

import pytest
import torch

from pyro_vae.diagnosis.bounds import simulated_bounds
from pyro_vae.evaluation import bidirectional_monte_carlo


def test_bounds_enclose_the_exact_evidence(linear_gaussian):
    """Lower and upper of few temperatures, 200 data, seed 0; the data's own log p(x) is exact."""
    like = torch.zeros(200, 5, dtype=torch.float64)
    found = simulated_bounds(linear_gaussian.model, like, num_chains=4, num_temperatures=6, seed=0)
    same = bidirectional_monte_carlo(
        linear_gaussian.model, like, num_chains=4, num_temperatures=6, seed=0
    )
    exact = float(linear_gaussian.log_evidence(same.x).mean())
    low, high = same.lower - linear_gaussian.log_evidence(same.x), same.gap
    assert found.lower.value < exact < found.upper.value
    assert found.lower.value - exact == pytest.approx(float(low.mean()), abs=1e-9)
    assert found.gap.value == pytest.approx(found.upper.value - found.lower.value, abs=1e-9)
    assert found.gap.value > 5 * found.gap.data_standard_error
    assert found.gap.data_standard_error == pytest.approx(float(high.std()) / math.sqrt(200))
    assert 0 < found.acceptance <= 1
    assert found.lower.understated  # four chains, six temperatures


def test_with_many_temperatures_the_gap_closes(linear_gaussian):
    """60 temperatures, seed 1: within three standard errors of 0, and below a tenth of a nat."""
    like = torch.zeros(60, 5, dtype=torch.float64)
    found = simulated_bounds(linear_gaussian.model, like, num_chains=8, num_temperatures=60, seed=1)
    assert abs(found.gap.value) < 3 * found.gap.data_standard_error + 0.05
    assert found.lower.standard_error < found.lower.data_standard_error
    assert "simulated" in found.note


def test_an_error_of_enough_chains_is_no_lower_limit(linear_gaussian):
    """40 chains, 60 temperatures, seed 2: standard errors of some 0.06 nats a datum."""
    like = torch.zeros(20, 5, dtype=torch.float64)
    settings = {"num_chains": 40, "num_temperatures": 60, "seed": 2}
    found = simulated_bounds(linear_gaussian.model, like, **settings)
    assert not found.lower.understated
    assert found.lower.standard_error < 0.18 / 20**0.5


def test_one_chain_has_no_error_over_chains(linear_gaussian):
    like = torch.zeros(3, 5, dtype=torch.float64)
    found = simulated_bounds(linear_gaussian.model, like, num_chains=1, num_temperatures=4)
    assert found.lower.standard_error is None
    assert found.lower.count == 3
