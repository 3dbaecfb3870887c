"""The learned normal prior: it starts at N(0, I), and a scale is a standard deviation."""

import math

import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro_vae.models.priors.normal import Normal

from pyro_vae.errors import InputError


def make(loc=(0.5, -1.0), raw_scale=(-1.0, 2.0), **options) -> Normal:
    prior = Normal(latent_dim=2, **options).double()
    with torch.no_grad():
        prior.loc.copy_(torch.tensor(loc))
        prior.raw_scale.copy_(torch.tensor(raw_scale))
    return prior


@pytest.mark.parametrize("floor", [1e-6, 1e-3, 0.5])
def test_starts_at_the_standard_normal(floor):
    p = Normal(latent_dim=3, floor=floor)()
    torch.testing.assert_close(p.mean, torch.zeros(3))
    torch.testing.assert_close(p.stddev, torch.ones(3))


def test_density_is_that_of_scipy():
    prior = make(floor=0.25)
    z = torch.linspace(-4, 4, 14, dtype=torch.float64).reshape(7, 2)
    scale = [0.25 + math.log1p(math.exp(raw)) for raw in (-1.0, 2.0)]
    expected = scipy.stats.norm([0.5, -1.0], scale).logpdf(z.numpy()).sum(-1)
    torch.testing.assert_close(prior().log_prob(z).detach(), torch.from_numpy(expected))


def test_moments_of_samples():
    """Within four standard errors of mean and variance in each dimension, seed 0."""
    torch.manual_seed(0)
    p = make()()
    z = p.sample((40_000,))
    assert ((z.mean(0) - p.mean).abs() < 4 * p.stddev / 200).all()
    assert ((z.var(0) / p.variance - 1).abs() < 4 * math.sqrt(2 / 40_000)).all()


def test_maximum_likelihood_finds_mean_and_standard_deviation():
    """Gradients of both parameters vanish at the sample's moments, and nowhere near."""
    generator = torch.Generator().manual_seed(1)
    z = 2 + 0.5 * torch.randn(500, 2, generator=generator, dtype=torch.float64)
    raw = torch.log(torch.expm1(z.std(0, correction=0) - 1e-3))
    for shift, stationary in ((0.0, True), (0.05, False)):
        prior = make(z.mean(0).tolist(), (raw + shift).tolist())
        with torch.no_grad():
            prior.loc += shift
        prior().log_prob(z).mean().backward()
        for parameter in prior.parameters():
            assert bool((parameter.grad.abs() < 1e-6).all()) is stationary


def test_the_divergence_from_a_normal_posterior_is_known():
    """KL(q ‖ p) in closed form, Σ_d log σ_d/s_d + (s_d² + (m_d − μ_d)²)/2σ_d² − ½."""
    p = make()()
    m, s = torch.tensor([0.1, 0.2]).double(), torch.tensor([0.3, 0.4]).double()
    kl = torch.distributions.kl_divergence(dist.Normal(m, s).to_event(1), p)
    spread = (s**2 + (m - p.mean) ** 2) / (2 * p.variance)
    torch.testing.assert_close(kl, (torch.log(p.stddev / s) + spread - 0.5).sum())


def test_float32_stays_finite_at_extremes():
    for raw in (-1e4, 1e4):
        prior = Normal(latent_dim=2)
        torch.nn.init.constant_(prior.raw_scale, raw)
        z = torch.tensor([[-1e4, 1e4], [0.0, 1.0]], requires_grad=True)
        log_prob = prior().log_prob(z)
        assert torch.isfinite(log_prob).all()
        log_prob.sum().backward()
        for tensor in (z, *prior.parameters()):
            assert torch.isfinite(tensor.grad).all()


@pytest.mark.parametrize("floor", [0.0, -1.0, 1.0, math.nan, math.inf])
def test_bad_arguments(floor):
    with pytest.raises(InputError, match="normal: floor"):
        Normal(latent_dim=2, floor=floor)
