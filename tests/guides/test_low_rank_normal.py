"""The low-rank guide: its density against the dense one, its stability where torch's fails."""

import pytest
import torch
from pyro_vae.guides.low_rank_normal import LowRankNormal, _FactorNormal
from scipy.stats import multivariate_normal
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.networks import Encoder


def stated(guide, x, D):
    """μ and Σ = S (I + F Fᵀ) S from the head's outputs, S = diag(σ), F by rows."""
    outputs = guide.head(guide.encoder(x)).detach()
    S = torch.diag_embed(torch.log1p(outputs[:, D : 2 * D].exp()) + 1e-6)
    F = outputs[:, 2 * D :].reshape(len(x), D, -1)
    return outputs[:, :D], S @ (torch.eye(D, dtype=x.dtype) + F @ F.mT) @ S


@pytest.mark.parametrize(("latent_dim", "rank"), [(1, 1), (2, 1), (2, 2), (5, 2), (5, 5)])
def test_density_is_that_of_the_stated_covariance(make, x, latent_dim, rank):
    guide = make(LowRankNormal, latent_dim, rank=rank)
    q = guide.posterior(x)
    assert q.factor.shape == (3, latent_dim, rank)
    z = torch.randn(3, latent_dim, generator=torch.Generator().manual_seed(1)).double()
    locs, covariances = stated(guide, x, latent_dim)
    log_q, entropy = q.log_prob(z).detach(), q.entropy().detach()
    torch.testing.assert_close(q.covariance_matrix, covariances)
    torch.testing.assert_close(q.variance, covariances.diagonal(dim1=-2, dim2=-1))
    for n in range(3):
        p = multivariate_normal(locs[n], covariances[n])
        assert float(log_q[n]) == pytest.approx(p.logpdf(z[n]), rel=1e-9)
        assert float(entropy[n]) == pytest.approx(p.entropy(), rel=1e-9)


def test_samples_have_the_stated_covariance_and_density(make, x, sampled_covariance, mean_ratio):
    """Within four standard errors; a 2 % error in log q's constant is seen."""
    guide = make(LowRankNormal)
    _, covariances = stated(guide, x, 2)
    correlation = covariances[0, 0, 1] / covariances[0].diagonal().prod().sqrt()
    assert 0.1 < abs(float(correlation)) < 0.9
    q = guide.posterior(x[:1])
    assert sampled_covariance(q, covariances[0]) < 4
    assert sampled_covariance(q, 1.02 * covariances[0]) > 4
    mean, error = mean_ratio(q)
    assert abs(mean - 1) < 4 * error
    mean, error = mean_ratio(q, error=0.02)
    assert abs(mean - 1) > 4 * error


def test_broadcasts_and_encodes_once(make, broadcasts):
    broadcasts(make(LowRankNormal))


def test_gradients_match_finite_differences_and_reach_every_parameter(make, gradients_match):
    gradients_match(make(LowRankNormal))


def test_samples_are_reparameterized(make, x):
    """d E|z − μ|²/dσ by the draws, 4e5 of seed 4, is that of tr Σ within 2 %."""
    q = make(LowRankNormal).posterior(x)
    torch.manual_seed(4)
    z = q.expand((400_000, 3)).rsample()
    sampled = ((z - q.mean) ** 2).sum() / len(z)
    for wanted in (q.scale, q.factor):
        (got,) = torch.autograd.grad(sampled, [wanted], retain_graph=True)
        (expected,) = torch.autograd.grad(q.variance.sum(), [wanted], retain_graph=True)
        torch.testing.assert_close(got, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("size", [1.0, 1e2, 1e4])
def test_float32_log_prob_is_right_where_the_factor_is_large_and_its_columns_agree(size):
    """Against float64 within 0.05 nat; torch's own is off by 0.1, then by hundreds."""
    torch.manual_seed(0)
    shared = torch.randn(64, 8, 1, dtype=torch.float64)
    F = size * (shared + 1e-3 * torch.randn(64, 8, 2, dtype=torch.float64))
    loc, scale = torch.zeros(64, 8, dtype=torch.float64), torch.rand(64, 8).double() + 0.5
    F, scale = F.float(), scale.float()
    low = _FactorNormal(loc.float(), scale, F)
    z = low.rsample()
    log_q = low.log_prob(z)
    y = (z / scale).double()
    F = F.double()
    eye = torch.eye(8, dtype=torch.float64)
    covariance = eye + F @ F.mT
    L = torch.linalg.cholesky(covariance)
    u = torch.linalg.solve_triangular(L, y.unsqueeze(-1), upper=False).squeeze(-1)
    expected = -0.5 * (u**2).sum(-1) - L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    expected = expected - 4 * torch.log(torch.tensor(2 * torch.pi)) - scale.double().log().sum(-1)
    assert (log_q - expected).abs().max() < 0.05


@pytest.mark.parametrize(("latent_dim", "rank"), [(1, 1), (3, 2), (50, 5)])
def test_float32_stays_finite_at_large_outputs(survives_extremes, latent_dim, rank):
    survives_extremes(LowRankNormal, latent_dim, rank=rank)


def test_starts_near_a_diagonal_normal():
    torch.manual_seed(0)
    q = LowRankNormal(Encoder(nn.Flatten(), (30,), 30), latent_dim=10).posterior(torch.rand(9, 30))
    assert 0 < q.factor.abs().max() < 0.2


@pytest.mark.parametrize(("latent_dim", "rank"), [(1, 1), (2, 2), (7, 2)])
def test_rank_is_two_unless_there_is_one_latent(make, x, latent_dim, rank):
    assert make(LowRankNormal, latent_dim).posterior(x).factor.shape == (3, latent_dim, rank)


@pytest.mark.parametrize("rank", [0, 3, -1, 1.0, "2", True])
def test_bad_arguments(make, rank):
    message = "low_rank_normal: rank must be a whole number from 1 to latent_dim, 2, got"
    with pytest.raises(InputError, match=message):
        make(LowRankNormal, rank=rank)
