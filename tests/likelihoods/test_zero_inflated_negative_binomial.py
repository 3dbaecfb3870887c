"""Zero inflation: π at zero by hand, the negative binomial elsewhere and as the gate closes."""

import math

import pytest
import torch
from pyro_vae.models.likelihoods.negative_binomial import NegativeBinomial
from pyro_vae.models.likelihoods.zero_inflated_negative_binomial import (
    ZeroInflatedNegativeBinomial,
)
from scipy import stats

from pyro_vae.errors import InputError
from pyro_vae.links import inverse_positive

MODES = [0.3, "learned", "per_pixel"]


def at(mean, alpha, gate_logit, dtype=torch.float64):
    """The distribution of one dimension with this μ, α and gate."""
    raw = float(inverse_positive(torch.tensor(mean, dtype=torch.float64), floor=0))
    params = torch.tensor([[raw, gate_logit]], dtype=dtype)
    return ZeroInflatedNegativeBinomial(dispersion=alpha)(params)


@pytest.mark.parametrize("gate_logit", [-1e4, -30.0, -1.0, 0.0, 2.0, 30.0, 1e4])
@pytest.mark.parametrize(("mean", "alpha"), [(0.01, 0.1), (5.0, 1.0), (100.0, 1e-3)])
def test_masses_sum_to_one(mean, alpha, gate_logit):
    stop = mean + 40 * math.sqrt(mean + alpha * mean**2) + 40 * (1 + alpha * mean)
    x = torch.arange(int(stop), dtype=torch.float64)
    assert abs(float(at(mean, alpha, gate_logit).log_prob(x).logsumexp(0))) < 1e-10


@pytest.mark.parametrize("pi", [1e-9, 0.05, 0.5, 0.9])
def test_log_mass_is_the_formula(pi):
    """π [x = 0] + (1 − π) NB(x), scipy's NB."""
    mean, alpha = 4.0, 0.7
    p = at(mean, alpha, math.log(pi / (1 - pi)))
    negative_binomial = stats.nbinom(1 / alpha, 1 / (1 + alpha * mean))
    for x in (0, 1, 3, 50):
        expected = (1 - pi) * negative_binomial.pmf(x) + (pi if x == 0 else 0)
        log_prob = float(p.log_prob(torch.tensor([x]).double()))
        assert log_prob == pytest.approx(math.log(expected), rel=1e-9)


def test_a_closed_gate_is_the_negative_binomial():
    x = torch.tensor([0.0, 1.0, 7.0, 200.0]).double()
    params = torch.tensor([[2.0, 0.4]]).double()
    expected = NegativeBinomial(dispersion="per_pixel")(params).log_prob(x)
    gate = torch.tensor([[-1e4]]).double()
    likelihood = ZeroInflatedNegativeBinomial(dispersion="per_pixel")
    got = likelihood(torch.cat([params, gate], -1)).log_prob(x)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


def test_float32_keeps_its_digits_behind_a_closed_gate():
    """log NB(0) of 1e-3 beside a logit of −10⁴: a sum with the logit would round it away."""
    log_prob = at(1e-3, 0.5, -1e4, torch.float32).log_prob(torch.tensor([0.0]))
    assert float(log_prob) == pytest.approx(-2 * math.log1p(5e-4), rel=1e-5)


@pytest.mark.parametrize("gate_logit", [-2.0, 0.0, 1.5])
def test_mean_and_variance(gate_logit):
    """Against sums over the masses."""
    p = at(4.0, 0.7, gate_logit)
    x = torch.arange(2000).double()
    mass = p.log_prob(x).exp()
    mean = (mass * x).sum()
    torch.testing.assert_close(p.mean[0], mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(p.variance[0], (mass * (x - mean) ** 2).sum(), rtol=1e-9, atol=0)


def test_samples_have_the_masses():
    """Frequencies of 0 … 14 within 4.5 standard errors: false alarm 1 in 9,800; seed 0."""
    torch.manual_seed(0)
    p, n = at(3.0, 0.5, -0.7, torch.float32), 40_000
    draws = p.sample((n,))
    assert draws.dtype == torch.float32
    for x in range(15):
        mass = float(p.log_prob(torch.tensor([float(x)])).exp())
        frequency = float((draws == x).double().mean())
        assert abs(frequency - mass) < 4.5 * math.sqrt(mass * (1 - mass) / n)


@pytest.mark.parametrize("dispersion", MODES)
@pytest.mark.parametrize("gate_logit", [-1e4, -50.0, 0.0, 50.0, 1e4])
@pytest.mark.parametrize("output", [-1e4, 0.0, 1e4])
def test_float32_is_finite_and_float64s_value(dispersion, gate_logit, output):
    likelihood = ZeroInflatedNegativeBinomial(dispersion=dispersion)
    x = torch.tensor([0.0, 1.0, 100.0, 1e4])
    params = torch.full((4, likelihood.params_per_dim), output)
    params[:, -1] = gate_logit
    params.requires_grad_()
    log_prob = likelihood(params).log_prob(x)
    log_prob.sum().backward()
    assert torch.isfinite(log_prob).all()
    assert all(torch.isfinite(p.grad).all() for p in (params, *likelihood.parameters()))
    exact = likelihood.double()(params.detach().double()).log_prob(x.double()).detach()
    torch.testing.assert_close(log_prob.detach().double(), exact, rtol=1e-6, atol=1e-5)


def test_gradient_is_the_difference_quotient():
    likelihood = ZeroInflatedNegativeBinomial(dispersion="per_pixel")
    x = torch.tensor([0.0, 0.0, 1.0, 5.0, 300.0]).double()
    generator = torch.Generator().manual_seed(4)
    params = torch.randn(5, 3, generator=generator, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: likelihood(p).log_prob(x), params)


@pytest.mark.parametrize("dispersion", MODES)
def test_expands_and_takes_more_samples_than_data(dispersion):
    likelihood = ZeroInflatedNegativeBinomial(dispersion, event_shape=(4, 3)).double()
    assert likelihood.params_per_dim == (3 if dispersion == "per_pixel" else 2)
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
    likelihood = ZeroInflatedNegativeBinomial(dispersion, event_shape=(2, 2))
    mean = torch.tensor([[0.1, 0.3], [7.5, 1e4]])
    params = likelihood.params_at(mean)
    assert params.shape == (2, 2, likelihood.params_per_dim)
    torch.testing.assert_close(likelihood(params).mean, mean)
    torch.testing.assert_close(params[..., -1].sigmoid(), torch.full((2, 2), 0.1))
    assert torch.isfinite(likelihood.params_at(torch.zeros(2, 2))).all()


@pytest.mark.parametrize("dispersion", [0.0, -1.0, math.inf, math.nan, "learn", None])
def test_bad_arguments(dispersion):
    told = "^zero_inflated_negative_binomial: dispersion must be .* got"
    with pytest.raises(InputError, match=told):
        ZeroInflatedNegativeBinomial(dispersion=dispersion)
