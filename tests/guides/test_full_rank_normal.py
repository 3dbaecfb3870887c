"""The full-rank guide: its density, its memory of draws, the exact linear-Gaussian posterior."""

import copy

import pyro.distributions as dist
import pytest
import torch
from pyro_vae.guides.full_rank_normal import FullRankNormal
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae.errors import InputError
from pyro_vae.networks import Encoder

SCALES = ["amortized", "constant"]


def stated(guide, x, D):
    """μ and Σ from the head's outputs: Σ = L Lᵀ, L = diag(σ) (I + N), N by rows."""
    outputs = guide.head(guide.encoder(x)).detach()
    raw = outputs[:, D:] if guide.amortized else guide.raw_tril.detach().expand(len(x), -1)
    L = torch.zeros(len(x), D, D, dtype=x.dtype)
    for n in range(len(x)):
        entries = iter(raw[n, D:])
        for i in range(D):
            sigma = torch.log1p(raw[n, i].exp()) + 1e-6
            for j in range(i):
                L[n, i, j] = sigma * next(entries)
            L[n, i, i] = sigma
    return outputs[:, :D], L @ L.mT


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_density_is_that_of_the_stated_covariance(make, x, scale, latent_dim):
    guide = make(FullRankNormal, latent_dim, scale=scale)
    z = torch.randn(3, latent_dim, generator=torch.Generator().manual_seed(1)).double()
    log_q = guide.posterior(x).log_prob(z)
    locs, covariances = stated(guide, x, latent_dim)
    for n in range(3):
        expected = multivariate_normal(locs[n], covariances[n]).logpdf(z[n])
        assert float(log_q[n].detach()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scale", SCALES)
def test_samples_have_the_stated_covariance_and_density(
    make, x, scale, sampled_covariance, mean_ratio
):
    """Within four standard errors; a 2 % error in log q's constant is seen."""
    guide = make(FullRankNormal, scale=scale)
    _, covariances = stated(guide, x, 2)
    correlation = covariances[0, 0, 1] / covariances[0].diagonal().prod().sqrt()
    assert 0.2 < abs(float(correlation)) < 0.9
    q = guide.posterior(x[:1])
    assert sampled_covariance(q, covariances[0]) < 4
    assert sampled_covariance(q, 1.02 * covariances[0]) > 4
    mean, error = mean_ratio(q)
    assert abs(mean - 1) < 4 * error
    mean, error = mean_ratio(q, error=0.02)
    assert abs(mean - 1) > 4 * error


def test_kl_to_the_prior_is_the_mean_of_its_samples(make, x):
    """KL(q ‖ N(0, I)) within four standard errors of log q − log p over 1e5 draws, seed 3."""
    q = make(FullRankNormal).posterior(x)
    prior = dist.MultivariateNormal(x.new_zeros(2), torch.eye(2, dtype=x.dtype))
    kl = kl_divergence(q, prior)
    torch.manual_seed(3)
    with torch.no_grad():
        z = q.sample((100_000,))
        terms = q.log_prob(z) - prior.log_prob(z)
    error = terms.std(0) / len(z) ** 0.5
    assert (error < 0.03).all()
    assert ((terms.mean(0) - kl).abs() < 4 * error).all()


@pytest.mark.parametrize("scale", SCALES)
def test_broadcasts_and_encodes_once(make, broadcasts, scale):
    broadcasts(make(FullRankNormal, scale=scale))


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_match_finite_differences_and_reach_every_parameter(make, gradients_match, scale):
    gradients_match(make(FullRankNormal, scale=scale))


def gradients(log_q, guide):
    return torch.autograd.grad(log_q.sum(), list(guide.parameters()), retain_graph=True)


def test_own_draw_and_any_z_have_one_density_and_one_gradient(make, x):
    """log q at a draw, from its ε, is log q by the solve; so is the gradient along z(μ, L)."""
    guide = make(FullRankNormal, latent_dim=4)
    q = guide.posterior(x).expand((5, 3))
    z = q.rsample()
    by_noise, by_solve = q.log_prob(z), q.log_prob(z + 0)
    assert torch.autograd.grad(by_noise.sum(), [z], retain_graph=True, allow_unused=True) == (None,)
    torch.testing.assert_close(by_noise, by_solve)
    for a, b in zip(gradients(by_noise, guide), gradients(by_solve, guide), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("how", ["sample", "leaf", "stopped", "detached"])
def test_partial_gradients_are_not_taken_from_the_noise(make, x, how):
    """The score at a fixed z, d log q/dz at a leaf, and log q with μ, L held still."""
    guide = make(FullRankNormal, latent_dim=3)
    q, fresh = guide.posterior(x), guide.posterior(x)
    z = q.rsample() if how in ("stopped", "detached") else q.sample()
    if how == "stopped":  # sticking the landing: only the path through z is left
        q = copy.copy(q)
        q.loc, L = q.loc.detach(), q._unbroadcasted_scale_tril.detach()
        q._unbroadcasted_scale_tril = L
        fresh = dist.MultivariateNormal(q.loc, scale_tril=L)
        wanted = list(guide.parameters())
    elif how == "detached":
        z.detach_()
        wanted = list(guide.parameters())[-2:]
    elif how == "leaf":
        wanted = [z.requires_grad_()]
    else:
        wanted = list(guide.parameters())[-2:]
    got = torch.autograd.grad(q.log_prob(z).sum(), wanted, retain_graph=True)
    expected = torch.autograd.grad(fresh.log_prob(z).sum(), wanted)
    for a, b in zip(got, expected, strict=True):
        assert (b != 0).any()
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("latent_dim", [1, 3, 50])
def test_float32_stays_finite_at_large_outputs(survives_extremes, latent_dim):
    survives_extremes(FullRankNormal, latent_dim)


@pytest.mark.parametrize("raw_scale", [-1e4, 1e4])
def test_float32_stays_finite_at_a_large_constant_factor(linear_guide, raw_scale):
    guide = linear_guide(FullRankNormal, scale="constant").float()
    for entry in (-1e4, 1e4):
        with torch.no_grad():
            guide.raw_tril.copy_(torch.tensor([raw_scale, raw_scale, entry]))
        q = guide.posterior(torch.full((3, 5), 1e4))
        assert torch.isfinite(q.log_prob(q.rsample())).all()


def test_starts_near_a_diagonal_normal():
    torch.manual_seed(0)
    guide = FullRankNormal(Encoder(nn.Flatten(), (30,), 30), latent_dim=10)
    covariance = guide.posterior(torch.rand(20, 30)).covariance_matrix
    sd = covariance.diagonal(dim1=-2, dim2=-1).sqrt()
    correlation = covariance / sd.unsqueeze(-1) / sd.unsqueeze(-2) - torch.eye(10)
    assert 0 < correlation.abs().max() < 0.3


def test_trained_from_scratch_it_is_the_exact_posterior(skewed, linear_guide, train):
    """E_q log p(x, z) + H(q), in closed form, within 0.01 nat of mean log p(x).

    E_q log p(x|z) = log N(x; W μ + b, σ² I) − tr(Wᵀ W Σ)/(2σ²)
    E_q log p(z) = −½ (|μ|² + tr Σ) − (D/2) log 2π,  H(q) = ½ log det(2πe Σ)
    """
    p = skewed
    x = p.simulate(500, seed=0)
    guide = linear_guide(FullRankNormal, scale="constant")

    def gap() -> float:
        with torch.no_grad():
            q = guide.posterior(x)
            loc, covariance = q.mean, q.covariance_matrix[0]
            fit = dist.Normal(loc @ p.W.T + p.b, p.sigma).log_prob(x).sum(-1)
            fit = fit - (p.W.T @ p.W @ covariance).trace() / (2 * p.sigma**2)
            log_2pi = torch.log(torch.tensor(2 * torch.pi))
            prior = -0.5 * ((loc**2).sum(-1) + covariance.trace()) - log_2pi
            entropy = 0.5 * (covariance.logdet() + 2 * (1 + log_2pi))
            return float((p.log_evidence(x) - (fit + prior + entropy)).mean())

    assert gap() > 1
    train(p.model, guide, x, num_steps=800)
    assert -1e-9 < gap() < 0.01


@pytest.mark.parametrize("scale", ["learned", 1.0, True])
def test_bad_arguments(make, scale):
    with pytest.raises(InputError, match="full_rank_normal: scale must be amortized or constant"):
        make(FullRankNormal, scale=scale)
