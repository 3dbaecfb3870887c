"""k̂ against an independent implementation, samples of known tails, and its own promises."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import genpareto

from pyro_vae.evaluation.pareto import Tail, pareto_k, threshold


def _zhang_stephens(excess: np.ndarray) -> float:
    """Zhang & Stephens (2009), section 3, with k in their sign turned; one datum, in numpy."""
    x = np.sort(excess)
    n, m = len(x), 30 + int(np.sqrt(len(x)))
    quartile = x[int(n / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    k = np.array([np.mean(np.log1p(-t * x)) for t in theta])
    profile = n * (np.log(-theta / k) - k - 1)
    weights = [1 / np.exp(np.clip(profile - value, -700, 700)).sum() for value in profile]
    return float(np.mean(np.log1p(-np.dot(weights, theta) * x)))


def _psis(log_weights: np.ndarray) -> float:
    """k̂ of one datum as in Vehtari et al. (2024), algorithm 1 and appendix G."""
    S = len(log_weights)
    M = math.ceil(min(0.2 * S, 3 * math.sqrt(S)))
    weights = np.sort(np.exp(log_weights - log_weights.max()))
    k = _zhang_stephens(weights[-M:] - weights[-M - 1])
    return (M * k + 10 * 0.5) / (M + 10)


@pytest.mark.parametrize("num_samples", [25, 100, 1000, 4001])
@pytest.mark.parametrize("k", [-0.5, 0.0, 0.7, 1.2])
def test_equals_an_independent_implementation(num_samples, k):
    weights = genpareto.rvs(k, size=(num_samples, 8), random_state=np.random.default_rng(0))
    log_weights = np.log(weights)
    expected = torch.tensor([_psis(column) for column in log_weights.T], dtype=torch.float64)
    found = pareto_k(torch.tensor(log_weights))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", [-0.5, 0.0, 0.3, 0.7, 1.2])
def test_of_generalized_pareto_samples(k):
    """100 columns of 20,000 draws, seed 0: mean k̂ within four standard errors, and its spread.

    k̂'s asymptotic variance is (1 + k)²/M for k > −½; the prior draws k̂ to ½ by 10/(M + 10).
    A finite tail leaves a bias below 0.01. (At k = −½ the variance falls more slowly than 1/M.)
    """
    S = 20_000
    M = math.ceil(3 * math.sqrt(S))
    weights = genpareto.rvs(k, size=(S, 100), random_state=np.random.default_rng(0))
    found = pareto_k(torch.tensor(np.log(weights)))
    sd = (1 + k) / math.sqrt(M) * M / (M + 10)
    assert 0.75 < float(found.std()) / sd < (2 if k < 0 else 1.25)
    expected = (M * k + 5) / (M + 10)
    assert abs(float(found.mean()) - expected) < 4 * sd / math.sqrt(100) + 0.01


@pytest.mark.parametrize("variance", [0.2, 0.4, 0.6, 0.8])
def test_of_a_gaussian_guide_that_is_too_narrow(variance):
    """log w = ½ (1 − v) u², u ~ N(0, 1): k = 1 − v up to a logarithm; 20 columns, seed 1."""
    generator = torch.Generator().manual_seed(1)
    u = torch.randn(100_000, 20, generator=generator, dtype=torch.float64)
    found = pareto_k((1 - variance) / 2 * u**2)
    # The slowly varying factor 1/√log w is worth up to 0.05 at this threshold, sd/√20 0.015.
    assert abs(float(found.mean()) - (1 - variance)) < 0.08
    assert float(found.std()) < 0.08


def test_wider_guides_have_bounded_weights():
    u = torch.randn(1000, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert (pareto_k(-0.15 * u**2) < 0).all()


def test_a_factor_changes_nothing_and_neither_does_the_order():
    generator = torch.Generator().manual_seed(3)
    log_weights = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    expected = pareto_k(log_weights)
    for offset in (-1e4, 1e4):
        torch.testing.assert_close(pareto_k(log_weights + offset), expected, rtol=0, atol=1e-6)
    assert torch.equal(pareto_k(log_weights[torch.randperm(500)]), expected)
    torch.testing.assert_close(pareto_k(log_weights.float()), expected, rtol=0, atol=1e-4)


def test_streamed_tail_is_the_whole_one():
    generator = torch.Generator().manual_seed(4)
    log_weights = 2 * torch.randn(1000, 5, generator=generator, dtype=torch.float64)
    tail = Tail(1000, 5, torch.device("cpu"))
    for block in log_weights.split(37):
        tail.update(block)
    assert torch.equal(tail.pareto_k(), pareto_k(log_weights))
    assert tail.largest.shape == (96, 5)


def test_constant_weights_have_no_tail():
    assert (pareto_k(torch.full((100, 2), -300.0)) == -math.inf).all()
    noise = torch.rand(100, 2, generator=torch.Generator().manual_seed(5))
    assert (pareto_k(1e-4 * noise - 300) == -math.inf).all()
    assert torch.isfinite(pareto_k(1e-4 * noise.double() - 300)).all()


def test_too_few_draws_are_not_known():
    log_weights = torch.randn(21, 3, generator=torch.Generator().manual_seed(6))
    assert torch.isfinite(pareto_k(log_weights)).all()
    assert pareto_k(log_weights[:20]).isnan().all()
    assert pareto_k(log_weights[:1]).isnan().all()


def test_weights_of_zero():
    generator = torch.Generator().manual_seed(7)
    log_weights = torch.randn(1000, 4, generator=generator, dtype=torch.float64)
    half = log_weights.clone()
    half[::2] = -math.inf
    tails = pareto_k(half), pareto_k(log_weights)
    assert all(torch.isfinite(k).all() for k in tails)
    rare = log_weights.clone()
    rare[:970] = -math.inf
    assert torch.isfinite(pareto_k(rare)).all()
    assert pareto_k(torch.full((100, 2), -math.inf)).isnan().all()


def test_a_few_weights_among_zeros_or_above_a_tie_are_not_known():
    for rest in (-math.inf, 0.0):
        log_weights = torch.full((1000, 6), rest)
        for column in range(6):
            log_weights[:column, column] = 3.0 + torch.arange(column) / 10
        found = pareto_k(log_weights)
        assert found[1:5].isnan().all()
        assert torch.isfinite(found[5])


def test_weights_beyond_every_exponent_do_not_overflow():
    """Log-weights of sd 1,000 and 100,000: far above every threshold, and finite."""
    log_weights = torch.randn(1000, 5, generator=torch.Generator().manual_seed(8))
    for scale in (1e3, 1e5):
        found = pareto_k(scale * log_weights.double())
        assert torch.isfinite(found).all()
        assert (found > 3).all()


def test_tied_weights():
    """Rounded log-weights keep their k̂; a maximum met by a fifth of the draws has no tail."""
    log_weights = 2 * torch.randn(1000, 200, generator=torch.Generator().manual_seed(9)).double()
    exact, rounded = pareto_k(log_weights), pareto_k((log_weights / 0.05).round() * 0.05)
    assert abs(float((exact - rounded).mean())) < 0.02
    two = (torch.arange(1000) % 5 == 0).double().unsqueeze(1)
    assert pareto_k(two) == -math.inf


def test_threshold():
    assert threshold(1) == -math.inf
    assert threshold(10) == 0
    assert threshold(100) == 0.5
    assert threshold(1000) == pytest.approx(2 / 3)
    assert threshold(2155) == pytest.approx(0.7, abs=1e-4)
    assert threshold(10**6) == 0.7
