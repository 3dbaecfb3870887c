"""The logistic prior: its density is scipy's, its samples are finite and have that density."""

import math

import pytest
import scipy.integrate
import scipy.stats
import torch
from pyro_vae.models.priors.logistic import Logistic

from pyro_vae.errors import InputError

SCALES = [1.0, 0.7]


def make(scale=1.0, latent_dim=2) -> Logistic:
    return Logistic(latent_dim=latent_dim, scale=scale).double()


@pytest.mark.parametrize("scale", SCALES)
def test_density_is_that_of_scipy(scale):
    """To 1e-12, so that a scale rounded to float32 would be seen."""
    z = torch.linspace(-30, 30, 26, dtype=torch.float64).reshape(13, 2)
    expected = scipy.stats.logistic(0, scale).logpdf(z.numpy()).sum(-1)
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
    z = Logistic(latent_dim=2, scale=0.7).to(dtype)().sample((20_000,))
    for d in range(2):
        assert scipy.stats.kstest(z[:, d].numpy(), scipy.stats.logistic(0, 0.7).cdf).pvalue > 1e-4


def test_coordinates_are_independent():
    """The correlation of |z_1| and |z_2| is within four standard errors of 0, seed 1."""
    torch.manual_seed(1)
    z = make()().sample((20_000,)).abs()
    assert abs(float(z.T.corrcoef()[0, 1])) < 4 / math.sqrt(20_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_uniform_of_zero_is_a_finite_sample(dtype, monkeypatch):
    """logit(0) = −∞; the lattice's next number, ε/2, is the bound on the other side."""
    p = Logistic(latent_dim=1).to(dtype)()
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda u: u.zero_())
    z = p.sample()
    assert torch.isfinite(z).all()
    assert float(z) == pytest.approx(math.log(torch.finfo(dtype).eps / 4))
    assert torch.isfinite(p.expand((3,)).sample((2,))).all()


def test_float32_stays_finite_at_extremes():
    """log p = −|z| and its slope −sign z, far out; slope 0 in the middle."""
    z = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4])[:, None].requires_grad_()
    log_prob = Logistic(latent_dim=1)().log_prob(z)
    expected = torch.tensor([-1e4, -50.0, -2 * math.log(2), -50.0, -1e4])
    torch.testing.assert_close(log_prob.detach(), expected)
    log_prob.sum().backward()
    torch.testing.assert_close(z.grad.flatten(), torch.tensor([1.0, 1.0, 0.0, -1.0, -1.0]))


def test_shapes_and_no_parameters():
    prior = Logistic(latent_dim=4)
    assert (prior().batch_shape, prior().event_shape) == ((), (4,))
    assert prior().expand((3,)).sample((2,)).shape == (2, 3, 4)
    assert not list(prior.parameters())
    assert not prior.state_dict()


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_bad_arguments(scale):
    with pytest.raises(InputError, match="logistic: scale"):
        Logistic(latent_dim=2, scale=scale)
