"""The Laplace prior: its density is scipy's, its samples have that density."""

import math

import pyro.distributions as dist
import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro_vae.models.priors.laplace import Laplace

from pyro_vae.errors import InputError

SCALES = [1.0, 0.7]


def make(scale=1.0, latent_dim=2) -> Laplace:
    return Laplace(latent_dim=latent_dim, scale=scale).double()


@pytest.mark.parametrize("scale", SCALES)
def test_density_is_that_of_scipy(scale):
    """To 1e-12, so that a scale rounded to float32 would be seen."""
    z = torch.linspace(-30, 30, 26, dtype=torch.float64).reshape(13, 2)
    expected = scipy.stats.laplace(0, scale).logpdf(z.numpy()).sum(-1)
    got = make(scale)().log_prob(z)
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", SCALES)
def test_mean_and_variance_are_those_of_the_density(scale):
    p = make(scale, latent_dim=1)()

    def moment(power):
        return scipy.integrate.quad(
            lambda z: 2 * z**power * float(p.log_prob(torch.tensor([z]).double()).exp()), 0, 60
        )[0]

    assert moment(0) == pytest.approx(1, abs=1e-8)
    assert float(p.mean) == 0
    assert float(p.variance) == pytest.approx(moment(2), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_samples_have_the_density(dtype):
    """Kolmogorov–Smirnov in each coordinate, false alarm 1e-4 each, seed 0."""
    torch.manual_seed(0)
    z = Laplace(latent_dim=2, scale=0.7).to(dtype)().sample((20_000,))
    for d in range(2):
        assert scipy.stats.kstest(z[:, d].numpy(), scipy.stats.laplace(0, 0.7).cdf).pvalue > 1e-4


def test_coordinates_are_independent():
    """The correlation of |z_1| and |z_2| is within four standard errors of 0, seed 1."""
    torch.manual_seed(1)
    z = make()().sample((20_000,)).abs()
    assert abs(float(z.T.corrcoef()[0, 1])) < 4 / math.sqrt(20_000)


def test_the_divergence_from_a_normal_posterior_is_known():
    """torch's KL(N ‖ Laplace) is the integral of q (log q − log p)."""
    q, p = dist.Normal(torch.tensor([0.4]).double(), torch.tensor([0.6]).double()), make(0.7, 1)()
    z = torch.linspace(-8, 8, 200_001, dtype=torch.float64)[:, None]
    log_q = q.log_prob(z).squeeze(-1)
    integral = torch.trapezoid(log_q.exp() * (log_q - p.log_prob(z)), z.squeeze(-1))
    kl = torch.distributions.kl_divergence(q.to_event(1), p)
    assert float(kl) == pytest.approx(float(integral), abs=1e-8)


def test_float32_stays_finite_at_extremes():
    z = torch.tensor([[-1e4, 1e4], [0.0, 1e-30]], requires_grad=True)
    log_prob = Laplace(latent_dim=2)().log_prob(z)
    expected = [-2e4 - 2 * math.log(2), -2 * math.log(2)]
    torch.testing.assert_close(log_prob.detach(), torch.tensor(expected))
    log_prob.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_shapes_and_no_parameters():
    prior = Laplace(latent_dim=4)
    assert (prior().batch_shape, prior().event_shape) == ((), (4,))
    assert prior().expand((3,)).sample((2,)).shape == (2, 3, 4)
    assert not list(prior.parameters())
    assert not prior.state_dict()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_bad_arguments(scale):
    with pytest.raises(InputError, match="laplace: scale"):
        Laplace(latent_dim=2, scale=scale)
