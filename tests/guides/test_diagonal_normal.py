"""The mean-field normal guide: its density, its gradients, its limit on a linear model."""

import dataclasses

import pytest
import torch
from pyro_vae.guides.diagonal_normal import DiagonalNormal
from pyro_vae.models.likelihoods.normal import Normal
from pyro_vae.models.priors.standard_normal import StandardNormal
from pyro_vae.models.vae import VAE
from scipy.stats import norm
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.networks import Decoder, Encoder, mlp

SCALES = ["amortized", "constant"]


def make(latent_dim=2, event_shape=(4,), scale="amortized") -> DiagonalNormal:
    torch.manual_seed(0)
    body, features = mlp(hidden=(8,), activation="tanh").encoder(event_shape)
    return DiagonalNormal(Encoder(body, event_shape, features), latent_dim, scale).double()


X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)


@pytest.mark.parametrize("scale", SCALES)
def test_density_is_that_of_the_samples(mean_ratio, scale):
    """E_q[h/q] = 1 within four standard errors; a 2 % error in log q's constant is seen."""
    q = make(scale=scale).posterior(X[:1])
    mean, error = mean_ratio(q)
    assert abs(mean - 1) < 4 * error
    mean, error = mean_ratio(q, error=0.02)
    assert abs(mean - 1) > 4 * error


@pytest.mark.parametrize("scale", SCALES)
def test_density_is_scipys(scale):
    guide = make(scale=scale)
    outputs = guide.head(guide.encoder(X)).detach()
    raw = outputs[:, 2:] if scale == "amortized" else torch.zeros(3, 2).double()
    law = norm(outputs[:, :2], torch.log1p(raw.exp()) + 1e-6)
    z = torch.tensor([[0.3, -2.0], [3.0, 0.0], [-1.0, 1.5]]).double()
    expected = torch.as_tensor(law.logpdf(z)).sum(-1)
    torch.testing.assert_close(guide.posterior(X).log_prob(z).detach(), expected)


@pytest.mark.parametrize("scale", SCALES)
def test_broadcasts_and_encodes_once(broadcasts, scale):
    broadcasts(make(scale=scale))


def test_samples_are_reparameterized():
    """z = μ + σ ε: dz/dμ = 1 and dz/dσ = ε."""
    guide = make()
    q = guide.posterior(X)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    torch.manual_seed(2)
    z = q.rsample()
    epsilon = ((z - loc) / scale).detach()
    (d_loc,) = torch.autograd.grad(z.sum(), [loc], retain_graph=True)
    (d_scale,) = torch.autograd.grad(z.sum(), [scale], retain_graph=True)
    torch.testing.assert_close(d_loc, torch.ones_like(loc))
    torch.testing.assert_close(d_scale, epsilon)
    for parameter in guide.parameters():
        (gradient,) = torch.autograd.grad(z.sum(), [parameter], retain_graph=True)
        assert (gradient != 0).any()


def test_the_state_of_a_saved_guide_has_its_names():
    amortized, constant = make().state_dict(), make(scale="constant").state_dict()
    assert list(amortized)[-2:] == ["head.weight", "head.bias"]
    assert amortized["head.weight"].shape == (4, 8)
    assert constant["head.weight"].shape == (2, 8)
    assert constant.keys() - amortized.keys() == {"raw_scale"}


def test_constant_scale_is_one_for_all_data():
    guide = make(scale="constant")
    with torch.no_grad():
        guide.raw_scale.copy_(torch.tensor([-1.0, 2.0]))
    q = guide.posterior(X)
    torch.testing.assert_close(q.mean, guide.head(guide.encoder(X)))
    expected = torch.log1p(torch.tensor([-1.0, 2.0]).double().exp()) + 1e-6
    torch.testing.assert_close(q.stddev.detach(), expected.expand(3, 2))


@pytest.mark.parametrize("scale", SCALES)
def test_gradients_match_finite_differences_and_reach_every_parameter(gradients_match, scale):
    gradients_match(make(scale=scale))


@pytest.mark.parametrize("scale", SCALES)
def test_float32_stays_finite_at_large_outputs(survives_extremes, scale):
    survives_extremes(DiagonalNormal, latent_dim=3, scale=scale)


@pytest.mark.parametrize("scale", ["learned", 1.0, None])
def test_bad_arguments(scale):
    with pytest.raises(InputError, match="diagonal_normal: scale must be amortized or constant"):
        make(scale=scale)


def mean_field_gap(W, sigma) -> float:
    """KL of the best diagonal normal: ½ (Σ_i log Λ_ii − log det Λ), Λ = I + Wᵀ W/σ²."""
    precision = torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / sigma**2
    return float(0.5 * (precision.diagonal().log().sum() - precision.logdet()))


def test_trained_with_p_fixed_it_stops_at_the_mean_field_gap(skewed, linear_guide, train):
    """log p(x) − ELBO, both exact, within 0.02 nat of the gap, 0.43 here."""
    p = skewed
    gap = mean_field_gap(p.W, p.sigma)
    assert gap > 0.1
    x = p.simulate(500, seed=0)
    guide = linear_guide(DiagonalNormal, scale="constant")
    train(p.model, guide, x, num_steps=400)
    with torch.no_grad():
        q = guide.posterior(x)
        lost = float((p.log_evidence(x) - p.elbo(x, q.mean, q.stddev)).mean())
    assert gap - 1e-9 < lost < gap + 0.02


def test_trained_with_p_too_it_turns_w_until_there_is_no_gap(skewed, linear_guide, train):
    """Wᵀ W becomes diagonal: p(z|x) is then in the family, and the ELBO is log p(x).

    References:
        Don't Blame the ELBO! (Lucas et al., 2019) https://arxiv.org/abs/1911.02469
    """
    x = skewed.simulate(500, seed=0)
    body = nn.Sequential(nn.Linear(2, 5))
    likelihood = Normal(scale="learned")
    model = VAE(StandardNormal(2), likelihood, Decoder(body, 2, (5,), 1), (5,)).double()
    with torch.no_grad():
        body[0].weight.copy_(skewed.W)
        body[0].bias.copy_(skewed.b)

    def learned():
        W, b = (parameter.detach().clone() for parameter in body[0].parameters())
        sigma = float(likelihood(torch.zeros(1, 1).double()).stddev.detach())
        return dataclasses.replace(skewed, W=W, b=b, sigma=sigma)

    assert mean_field_gap(learned().W, learned().sigma) > 0.1
    guide = linear_guide(DiagonalNormal, scale="constant")
    train(model, guide, x, num_steps=1000)
    p = learned()
    with torch.no_grad():
        assert mean_field_gap(p.W, p.sigma) < 0.01
        q = guide.posterior(x)
        assert float((p.log_evidence(x) - p.elbo(x, q.mean, q.stddev)).mean()) < 0.02
        assert p.log_evidence(x).mean() > skewed.log_evidence(x).mean()
