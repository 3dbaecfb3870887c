"""The path derivative: the ELBO's exact gradient on average, without noise at the posterior."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro_vae.guides.full_rank_normal import FullRankNormal
from pyro_vae.guides.planar import Planar
from pyro_vae.models.likelihoods.normal import Normal
from pyro_vae.models.linear_gaussian import LinearGaussian
from pyro_vae.models.priors.standard_normal import StandardNormal
from torch import nn

from pyro_vae.errors import InputError
from pyro_vae.links import inverse_positive
from pyro_vae.networks import Encoder
from pyro_vae.objectives.closed_form import ClosedFormELBO
from pyro_vae.objectives.iwae import IWAE
from pyro_vae.objectives.sticking_the_landing import StickingTheLanding
from pyro_vae.objectives.trace import Trace
from pyro_vae.objectives.trace_mean_field import TraceMeanField

ESTIMATORS = (Trace, TraceMeanField, ClosedFormELBO, StickingTheLanding)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("num_particles", [1, 3])
def test_gradient_is_that_of_the_exact_elbo(
    linear_gaussian, linear_pair, near_posterior, exact_elbo, exact_gradient, deviations,
    estimator, num_particles,
):  # fmt: skip
    """Every parameter of p and q within four standard errors; 20,000 repeats, seed 1."""
    x = linear_gaussian.simulate(2, seed=2)
    parameters = near_posterior(linear_gaussian, 0.6, 0.6)
    _, exact = exact_gradient(lambda p: exact_elbo(p, x).sum(), parameters)
    pair = linear_pair(parameters, x, 20_000)
    gradients = pair.gradients(estimator(num_particles), seed=1)
    found = deviations(gradients, exact)
    assert max(found.values()) < 4, found
    wrong = deviations(gradients, {name: 1.05 * g + 0.05 for name, g in exact.items()})
    assert max(wrong.values()) > 6


def exact_pair(p):
    """The model's own W, b, σ, and the full-rank guide at its posterior."""
    torch.manual_seed(0)
    model = LinearGaussian(StandardNormal(2), Normal(scale="learned"), 2, (5,)).double()
    with torch.no_grad():
        layer = model.decoder.body[-1]
        layer.weight.copy_(p.W)
        layer.bias.copy_(p.b)
        scale = model.likelihood(torch.zeros(1, 1, dtype=torch.float64)).stddev.squeeze()
        guide = FullRankNormal(Encoder(nn.Flatten(), (5,), 5), 2, scale="constant").double()
        covariance = torch.linalg.inv(torch.eye(2).double() + p.W.T @ p.W / scale**2)
        A = covariance @ p.W.T / scale**2
        guide.head.weight.copy_(A)
        guide.head.bias.copy_(-A @ p.b)
        L = torch.linalg.cholesky(covariance)
        N = L / L.diagonal()[:, None]
        guide.raw_tril.copy_(torch.stack([*inverse_positive(L.diagonal()), N[1, 0]]))
    return model, guide


def draws(objective, model, guide, x, count=60):
    """Gradients of the guide and of the model, ``[count, size]`` each; seed 0."""
    torch.manual_seed(0)
    parameters = [*guide.parameters(), *model.parameters()]
    size = sum(parameter.numel() for parameter in guide.parameters())
    rows = []
    for _ in range(count):
        loss = objective.differentiable_loss(model, guide, x)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows).tensor_split([size], dim=1)


def test_no_noise_at_the_exact_posterior(linear_gaussian):
    """Standard deviations over 60 draws: the guide's below 1e-10, the decoder's positive."""
    model, guide = exact_pair(linear_gaussian)
    x = linear_gaussian.simulate(3, seed=2)
    torch.testing.assert_close(guide.posterior(x).mean, model.posterior(x).mean)
    covariance = guide.posterior(x).covariance_matrix
    torch.testing.assert_close(covariance, model.posterior(x).covariance_matrix.expand(3, 2, 2))
    of_guide, of_model = draws(StickingTheLanding(), model, guide, x)
    assert of_guide.shape[1] == 15
    assert float(of_guide.std(0).max()) < 1e-10
    assert float(of_guide.abs().max()) < 1e-10
    assert float(of_model.std(0).min()) > 1e-2
    of_guide, of_model = draws(Trace(), model, guide, x)
    assert float(of_guide.std(0).min()) > 1e-2
    assert float(of_model.std(0).min()) > 1e-2


def test_no_noise_at_the_exact_posterior_of_a_chain(chain):
    """A guide z₁ → z₂: log q(z₂|z₁) depends on z₁ through its loc, and that stays live."""
    chain.move_to_posterior()
    assert float(chain.gradients(StickingTheLanding(2), seed=0).abs().max()) < 1e-10
    assert float(chain.gradients(Trace(2), seed=0).std(0).min()) > 1e-2


def test_value_is_the_elbo(linear_gaussian, linear_pair, near_posterior, deviation, exact_elbo):
    """Pyro's Trace_ELBO on the same noise, and the exact ELBO within four standard errors."""
    x = linear_gaussian.simulate(4, seed=2)
    parameters = near_posterior(linear_gaussian, 0.5, 0.6)
    pair = linear_pair(parameters, x, 3000)
    values = pair.values(StickingTheLanding(2), seed=0)
    assert deviation(values, exact_elbo(parameters, x)) < 4
    torch.manual_seed(0)
    assert -float(values.sum()) == pytest.approx(
        Trace(2).loss(pair.model, pair.guide, pair.x), rel=1e-12
    )


def test_model_gradient_is_that_of_trace(linear_gaussian, linear_pair, near_posterior):
    """On the same noise: only the guide's gradient is another."""
    pair = linear_pair(near_posterior(linear_gaussian, 0.5, 0.6), linear_gaussian.b[None], 50)
    ours = pair.gradients(StickingTheLanding(3), seed=0)
    trace = pair.gradients(Trace(3), seed=0)
    for name in pair.model_names:
        torch.testing.assert_close(ours[name], trace[name])
    for name in pair.guide_names:
        assert not torch.allclose(ours[name], trace[name], atol=1e-3), name


def test_one_particle_iwae_has_the_same_value(linear_gaussian, linear_pair, near_posterior):
    pair = linear_pair(near_posterior(linear_gaussian, 0.5, 0.6), linear_gaussian.b[None], 50)
    one = pair.values(StickingTheLanding(1), seed=0)
    torch.testing.assert_close(one, pair.values(IWAE(1), seed=0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_same_noise_same_value(keeps_one_value, num_particles):
    keeps_one_value(StickingTheLanding(num_particles))


def test_trains_in_svi(lands_on_the_posterior):
    """Without noise at the end: closer than any estimator with the score."""
    lands_on_the_posterior(StickingTheLanding(), within=1e-3)


def test_a_density_at_own_draws_only_is_refused():
    torch.manual_seed(0)
    model = LinearGaussian(StandardNormal(2), Normal(scale=0.5), 2, (5,))
    guide = Planar(Encoder(nn.Flatten(), (5,), 5), 2)
    with pytest.raises(InputError, match=r"sticking_the_landing needs log q.* at its own"):
        StickingTheLanding().loss_and_grads(model, guide, torch.zeros(2, 5))


@pytest.mark.parametrize("num_particles", [0, 1.5, "2"])
def test_bad_arguments(num_particles):
    with pytest.raises(InputError, match="num_particles must be a whole number ≥ 1"):
        StickingTheLanding(num_particles)


def test_a_density_that_does_not_depend_on_z():
    """q = U(0, s): log q is −log s wherever z lies, and the path through log q has no gradient."""
    s = torch.tensor(0.8, requires_grad=True)
    x = torch.zeros(3)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Uniform(torch.zeros(()), s))

    torch.manual_seed(0)
    loss = StickingTheLanding().differentiable_loss(model, guide, x)
    (gradient,) = torch.autograd.grad(loss, s)
    torch.manual_seed(0)
    u = torch.rand(3)  # z = s u, −log p(x, z) = z² + …, its derivative along s is 2 s u²
    torch.testing.assert_close(gradient, (2 * s.detach() * u**2).sum())
