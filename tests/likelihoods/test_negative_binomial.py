"""The negative binomial: masses against scipy in all three modes, and the Poisson as its limit."""

import math

import numpy as np
import pytest
import torch
from pyro_vae.models.likelihoods.negative_binomial import NegativeBinomial
from scipy import stats

from pyro_vae.errors import InputError
from pyro_vae.links import inverse_positive

MODES = [0.3, "learned", "per_pixel"]


def at(mean, alpha, dtype=torch.float64):
    """The distribution of one dimension with this mean and dispersion."""
    params = inverse_positive(torch.tensor([[mean]], dtype=torch.float64), floor=0).to(dtype)
    return NegativeBinomial(dispersion=alpha)(params)


def scipys(mean, alpha):
    """scipy counts successes of probability 1 / (1 + α μ) up to the r-th."""
    return stats.nbinom(1 / alpha, 1 / (1 + alpha * mean))


def counts(*x):
    return torch.tensor(x, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mean", "alpha"),
    [(0.01, 0.1), (1.0, 1.0), (5.0, 0.02), (5.0, 1e-6), (20.0, 4.0), (300.0, 0.5), (1e4, 1e-4)],
)
def test_masses_sum_to_one(mean, alpha):
    """Beyond mean + 40 sd + 40 αμ the mass is below 1e-12: the tail decays as e^(−x/(1 + αμ))."""
    stop = mean + 40 * math.sqrt(mean + alpha * mean**2) + 40 * (1 + alpha * mean)
    x = torch.arange(int(stop), dtype=torch.float64)
    assert abs(float(at(mean, alpha).log_prob(x).logsumexp(0))) < 1e-9


@pytest.mark.parametrize(("mean", "alpha"), [(1e4, 100.0), (1e4, 1e6), (1e-5, 1e6), (2.0, 1e4)])
@pytest.mark.parametrize("stop", [1, 10, 300_000])
def test_partial_sums_are_scipys_distribution_function(mean, alpha, stop):
    """With r = 0.01 the tail reaches 10⁷: the sum over 0 … stop−1 against a beta integral."""
    total = at(mean, alpha).log_prob(torch.arange(stop, dtype=torch.float64)).logsumexp(0).exp()
    assert float(total) == pytest.approx(scipys(mean, alpha).cdf(stop - 1), rel=1e-9)


@pytest.mark.parametrize("mean", [1e-3, 0.7, 40.0, 1e4])
@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0, 100.0])
def test_log_mass_is_scipys(mean, alpha):
    x = counts(0, 1, 2, 10, 100, 1e4)
    expected = torch.from_numpy(scipys(mean, alpha).logpmf(x.numpy()))
    torch.testing.assert_close(at(mean, alpha).log_prob(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mean", [0.2, 3.0, 60.0])
def test_small_dispersion_is_the_poisson_and_its_first_correction(mean):
    """log NB − log Poisson = α ((x − μ)² − x)/2 + O(α²)."""
    x, alpha = torch.arange(30).double(), 1e-6
    poisson = torch.from_numpy(stats.poisson.logpmf(x.numpy(), mean))
    expected = alpha * ((x - mean) ** 2 - x) / 2
    difference = at(mean, alpha).log_prob(x) - poisson
    torch.testing.assert_close(difference, expected, rtol=1e-3, atol=2e-8)


@pytest.mark.parametrize(("mean", "alpha"), [(2.0, 0.5), (30.0, 0.1), (5.0, 1e-6)])
def test_mean_and_variance(mean, alpha):
    """Exact; samples within 4.5 standard errors, false alarm 1 in 70,000 each; seed 1."""
    p, n = at(mean, alpha), 40_000
    assert float(p.mean) == pytest.approx(mean)
    assert float(p.variance) == pytest.approx(scipys(mean, alpha).var())
    torch.manual_seed(1)
    draws = p.sample((n,))
    variance, kurtosis = float(p.variance), 3 + float(scipys(mean, alpha).stats("k"))
    assert abs(float(draws.mean()) - mean) < 4.5 * math.sqrt(variance / n)
    error = variance * math.sqrt((kurtosis - 1) / n)
    assert abs(float(draws.var()) - variance) < 4.5 * error


@pytest.mark.parametrize(("mean", "alpha"), [(2.0, 0.5), (1e4, 100.0)])
def test_samples_have_the_masses(mean, alpha):
    """Frequencies of 0 … 9 and of more within 4.5 standard errors, 1 in 13,000; seed 2."""
    torch.manual_seed(2)
    p, n = at(mean, alpha, torch.float32), 40_000
    draws = p.sample((n,))
    assert draws.dtype == torch.float32
    assert torch.equal(draws, draws.round())
    masses = p.log_prob(torch.arange(10.0)).double().exp()
    for x, mass in enumerate([*masses.tolist(), 1 - float(masses.sum())]):
        frequency = float((draws == x if x < 10 else draws > 9).double().mean())
        assert abs(frequency - mass) < 4.5 * math.sqrt(mass * (1 - mass) / n)


def test_learned_is_one_dispersion_a_dimension():
    likelihood = NegativeBinomial(event_shape=(4, 5)).double()
    assert likelihood.params_per_dim == 1
    (parameter,) = likelihood.parameters()
    assert parameter.shape == (4, 5)
    with torch.no_grad():
        parameter.copy_(torch.linspace(-3, 3, 20).view(4, 5))
    p = likelihood(torch.full((7, 4, 5, 1), 2.0).double())
    alpha = (p.variance - p.mean) / p.mean**2
    expected = torch.exp(13.815510558 * torch.tanh(parameter / 13.815510558))
    torch.testing.assert_close(alpha, expected.expand(7, 4, 5))
    p.log_prob(torch.ones(7, 4, 5)).sum().backward()
    assert (parameter.grad != 0).all()
    assert NegativeBinomial().raw_dispersion.shape == ()


def test_per_pixel_takes_mean_and_dispersion_from_the_decoder():
    params = torch.tensor([[0.5, -1.0], [3.0, 0.0], [3.0, 0.7]]).double()
    p = NegativeBinomial(dispersion="per_pixel")(params)
    torch.testing.assert_close(p.mean, torch.log1p(params[:, 0].exp()))
    alpha = (p.variance - p.mean) / p.mean**2
    torch.testing.assert_close(alpha, params[:, 1].exp(), rtol=2e-3, atol=0)


@pytest.mark.parametrize("dispersion", [1e-6, 1e-4, 0.3, 1e6, "learned", "per_pixel"])
@pytest.mark.parametrize("output", [-1e4, -10.0, 0.0, 10.0, 1e4])
def test_float32_is_finite_and_float64s_value(dispersion, output):
    likelihood = NegativeBinomial(dispersion=dispersion)
    x = torch.tensor([0.0, 1.0, 100.0, 1e4])
    params = torch.full((4, likelihood.params_per_dim), output, requires_grad=True)
    log_prob = likelihood(params).log_prob(x)
    log_prob.sum().backward()
    assert log_prob.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in (params, *likelihood.parameters()))
    exact = likelihood.double()(params.detach().double()).log_prob(x.double()).detach()
    # μ and α are rounded to float32, the mass is not: without float64 it errs by up to 0.05.
    torch.testing.assert_close(log_prob.detach().double(), exact, rtol=1e-6, atol=1e-5)


def test_float32_gradient_is_float64s_at_a_large_total_count():
    def gradient(dtype):
        likelihood = NegativeBinomial(dispersion="per_pixel")
        params = torch.tensor([[10.0, -12.0]], dtype=dtype, requires_grad=True)
        likelihood(params).log_prob(torch.tensor([20.0], dtype=dtype)).sum().backward()
        return params.grad.double()

    torch.testing.assert_close(gradient(torch.float32), gradient(torch.float64), rtol=1e-5, atol=0)


def test_gradient_is_the_difference_quotient():
    likelihood = NegativeBinomial(dispersion="per_pixel")
    x = counts(0, 1, 5, 300)
    params = counts(-4, 0.5, 3, 250, 2, -1, 0.3, -4).view(2, 4).T.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: likelihood(p).log_prob(x), params)


def test_maximum_likelihood_recovers_mean_and_dispersion():
    """20,000 counts of numpy's, μ = 6 and r = 2.5: both within 4 standard errors; seed 3.

    SE(μ̂)² = (μ + α μ²)/n, and the error of log α from the curvature of the likelihood.
    """
    mean, r, n = 6.0, 2.5, 20_000
    x = torch.from_numpy(np.random.default_rng(3).negative_binomial(r, r / (r + mean), n)).double()
    likelihood = NegativeBinomial(event_shape=()).double()
    output = torch.tensor([0.0], dtype=torch.float64, requires_grad=True)
    unknown = [output, likelihood.raw_dispersion]

    def loss():
        return -likelihood(output).log_prob(x).sum() / n

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer = torch.optim.LBFGS(unknown, max_iter=100, tolerance_grad=1e-10,
                                  line_search_fn="strong_wolfe")  # fmt: skip
    optimizer.step(closure)
    p = likelihood(output)
    (slope,) = torch.autograd.grad(loss(), likelihood.raw_dispersion, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, likelihood.raw_dispersion)
    error = 1 / math.sqrt(n * float(curvature))
    assert 0.005 < error < 0.03
    assert abs(float(p.mean.detach()) - mean) < 4 * math.sqrt((mean + mean**2 / r) / n)
    assert abs(float(p.dispersion.detach().log()) - math.log(1 / r)) < 4 * error


@pytest.mark.parametrize("dispersion", [1e-6, 0.3, 1e6])
@pytest.mark.parametrize("output", [-1e4, -104.0, -31.0])
def test_a_small_mean_grows_from_a_count(dispersion, output):
    """d log p/d log μ = (x − μ)/(1 + α μ), which is x there."""
    params = torch.full((3, 1), output, requires_grad=True)
    x = torch.tensor([0.0, 1.0, 5.0])
    NegativeBinomial(dispersion=dispersion)(params).log_prob(x).sum().backward()
    torch.testing.assert_close(params.grad[:, 0], x)


def test_draws_of_a_mean_of_zero_are_zero():
    torch.manual_seed(4)
    assert not NegativeBinomial(dispersion=0.5)(torch.tensor([[-1e4]])).sample((100,)).any()


@pytest.mark.parametrize("dispersion", MODES)
def test_expands_and_takes_more_samples_than_data(dispersion):
    likelihood = NegativeBinomial(dispersion, event_shape=(4, 3)).double()
    p = likelihood(torch.randn(7, 5, 4, 3, likelihood.params_per_dim).double())
    x = torch.ones(5, 4, 3).double()
    assert (p.batch_shape, p.event_shape) == ((7, 5, 4, 3), ())
    assert p.to_event(2).log_prob(x).shape == (7, 5)
    wide = p.to_event(2).expand((6, 7, 5))
    assert wide.sample((2,)).shape == (2, 6, 7, 5, 4, 3)
    assert wide.mean.shape == wide.variance.shape == (6, 7, 5, 4, 3)
    torch.testing.assert_close(wide.log_prob(x)[3], p.to_event(2).log_prob(x))


@pytest.mark.parametrize("dispersion", MODES)
def test_params_at_the_mean(dispersion):
    likelihood = NegativeBinomial(dispersion, event_shape=(2, 2))
    mean = torch.tensor([[0.0, 0.3], [7.5, 1e4]])
    params = likelihood.params_at(mean)
    assert params.shape == (2, 2, likelihood.params_per_dim)
    expected = torch.tensor([[0.01, 0.3], [7.5, 1e4]])
    torch.testing.assert_close(likelihood(params).mean, expected)


@pytest.mark.parametrize(
    "dispersion", [0.0, -1.0, 1e-7, 1e7, math.inf, math.nan, 10**400, True, "learn", None, [0.5]]
)
def test_bad_arguments(dispersion):
    with pytest.raises(InputError, match=r"^negative_binomial: dispersion must be .* got"):
        NegativeBinomial(dispersion=dispersion)
