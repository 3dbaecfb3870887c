"""Poisson: masses against scipy and summed over the counts, exact in float32 too."""

import math

import pytest
import torch
from pyro_vae.models.likelihoods.poisson import Poisson
from scipy import stats

from pyro_vae.links import inverse_positive

OUTPUTS = [-1e4, -31.0, -30.0, -3.0, 0.0, 2.0, 50.0, 1e4]


def at(rate, dtype=torch.float64):
    """The distribution of one dimension with this rate."""
    return Poisson()(
        inverse_positive(torch.tensor([[rate]], dtype=torch.float64), floor=0).to(dtype)
    )


@pytest.mark.parametrize("output", OUTPUTS)
def test_masses_sum_to_one(output):
    """The counts beyond mean + 40 √mean + 100 weigh less than 1e-100."""
    p = Poisson()(torch.tensor([[output]], dtype=torch.float64))
    mean = float(p.mean)
    x = torch.arange(int(mean + 40 * math.sqrt(mean) + 100), dtype=torch.float64)
    assert abs(float(p.log_prob(x).logsumexp(0))) < 1e-9


@pytest.mark.parametrize("rate", [1e-5, 0.3, 4.0, 200.0, 1e4])
def test_log_mass_is_scipys(rate):
    x = torch.tensor([0.0, 1.0, 2.0, 10.0, 100.0, 1e4], dtype=torch.float64)
    expected = torch.from_numpy(stats.poisson.logpmf(x.numpy(), rate))
    torch.testing.assert_close(at(rate).log_prob(x), expected, rtol=1e-9, atol=1e-9)


def test_the_rate_is_the_mean_and_the_variance():
    p = Poisson()(torch.tensor([[-2.0], [3.0]], dtype=torch.float64))
    softplus = torch.tensor([math.log1p(math.exp(-2)), math.log1p(math.exp(3))]).double()
    torch.testing.assert_close(p.mean, softplus, rtol=1e-6, atol=0)
    assert torch.equal(p.variance, p.mean)


def test_a_dimension_that_is_always_zero_costs_nothing():
    p = Poisson()(torch.tensor([[-1e4]]))
    assert float(p.log_prob(torch.tensor([0.0]))) == 0


@pytest.mark.parametrize("output", [-1e4, -104.0, -60.0, -30.5, -29.5])
def test_a_small_rate_grows_from_a_count(output):
    """log λ is the output there: the gradient is x, in float32 too, and log p is x l − log x!."""
    params = torch.full((3, 1), output, requires_grad=True)
    x = torch.tensor([0.0, 1.0, 5.0])
    log_prob = Poisson()(params).log_prob(x)
    torch.testing.assert_close(log_prob.detach(), x * output - torch.lgamma(x + 1))
    log_prob.sum().backward()
    torch.testing.assert_close(params.grad[:, 0], x)


def test_draws_stop_at_32_bits():
    """Beyond, CUDA's counter wraps around."""
    draws = Poisson()(torch.tensor([[1e12]])).sample()
    assert 2**31 - 10 * 2**15.5 < float(draws) < 2**31 + 10 * 2**15.5


@pytest.mark.parametrize("x", [0.0, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("output", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_float32_is_finite_and_float64s_value(output, x):
    params = torch.tensor([[output]], requires_grad=True)
    log_prob = Poisson()(params).log_prob(torch.tensor([x]))
    log_prob.sum().backward()
    assert log_prob.dtype == torch.float32
    assert torch.isfinite(params.grad).all()
    exact = Poisson()(params.detach().double()).log_prob(torch.tensor([x]).double())
    # Rounding of the rate, about ε |x − λ|, and of the result; x! in float32 errs by 7e-4.
    torch.testing.assert_close(log_prob.detach().double(), exact, rtol=3e-7, atol=1e-5)


def test_samples_have_the_masses():
    """Frequencies of 0 … 8 and of more within 4.5 standard errors, 1 in 14,000; seed 0."""
    torch.manual_seed(0)
    p, n = at(3.0, torch.float32), 40_000
    draws = p.sample((n,))
    assert draws.dtype == torch.float32
    masses = p.log_prob(torch.arange(9.0)).double().exp()
    for x, mass in enumerate([*masses.tolist(), 1 - float(masses.sum())]):
        frequency = float((draws == x if x < 9 else draws > 8).double().mean())
        assert abs(frequency - mass) < 4.5 * math.sqrt(mass * (1 - mass) / n)


def test_gradient_is_the_difference_quotient():
    x = torch.tensor([0.0, 1.0, 5.0, 300.0], dtype=torch.float64)
    params = torch.tensor([[-4.0], [0.5], [3.0], [250.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: Poisson()(p).log_prob(x), params)


def test_expands_and_takes_more_samples_than_data():
    p = Poisson()(torch.zeros(7, 5, 4, 3, 1).double())
    x = torch.ones(5, 4, 3).double()
    assert p.to_event(2).log_prob(x).shape == (7, 5)
    wide = p.to_event(2).expand((6, 7, 5))
    assert wide.sample((2,)).shape == (2, 6, 7, 5, 4, 3)
    torch.testing.assert_close(wide.log_prob(x)[3], p.to_event(2).log_prob(x))


def test_params_at_the_mean():
    mean = torch.tensor([[0.0, 0.3], [7.5, 1e4]])
    expected = torch.tensor([[0.01, 0.3], [7.5, 1e4]])
    torch.testing.assert_close(Poisson()(Poisson().params_at(mean)).mean, expected)
